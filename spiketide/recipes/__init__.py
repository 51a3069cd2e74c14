"""The recipes of the package, one complete YAML each: where they are and what they say.

A recipe is flat and complete: no inheritance, no defaults hidden elsewhere. ``docs/how-to/add_a_recipe.md`` says
what stands in it. This file reads YAML only; building the objects is :mod:`spiketide.training.recipe`.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from ..errors import RecipeError

__all__ = ["find", "names", "read"]

FOLDER = Path(__file__).parent


def names() -> list[str]:
    """Names of the packaged recipes.

    Example:
        >>> from spiketide import recipes
        >>> "digits/latency_lif" in recipes.names()
        True
    """
    return sorted(path.relative_to(FOLDER).with_suffix("").as_posix() for path in FOLDER.glob("*/*.yaml"))


def find(recipe: str | Path) -> tuple[str, Path]:
    """The short name and the file of a recipe, given its name in the package or a path to a YAML file.

    Raises:
        RecipeError: neither a packaged recipe nor an existing file.
    """
    text = str(recipe)
    if text in names():
        return text, FOLDER / f"{text}.yaml"
    path = Path(text)
    if path.is_file():
        return path.stem, path
    if path.suffix in (".yaml", ".yml"):
        raise RecipeError(f"there is no recipe file {text!r}; spiketide list names the packaged recipes.")
    near = difflib.get_close_matches(text, names(), n=3, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    if near[1:]:
        hint += f" Or {' or '.join(map(repr, near[1:]))}?"
    raise RecipeError(f"unknown recipe {text!r}{hint} See spiketide list, or give the path of a YAML file.")


def read(path: Path) -> dict[str, Any]:
    """The YAML of a recipe as it stands, unchecked.

    Raises:
        RecipeError: not readable, not YAML, or not a mapping.
    """
    import yaml  # comes with jsonargparse

    class Loader(yaml.SafeLoader):
        """YAML whose keys are given once."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            seen: dict[Any, int] = {}
            for key, _ in node.value:
                line = key.start_mark.line + 1
                if key.tag == "tag:yaml.org,2002:str" and seen.setdefault(key.value, line) != line:
                    raise RecipeError(
                        f"{path} gives {key.value!r} twice in one place, in lines {seen[key.value]} and {line}: keep one."
                    )
            return super().construct_mapping(node, deep)

    try:
        with path.open(encoding="utf-8") as file:  # a file, not its text: errors name it
            content = yaml.load(file, Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError(f"cannot read the recipe {path}: {error}") from error
    if not isinstance(content, dict):
        raise RecipeError(f"the recipe {path} should be a mapping of sections, got {type(content).__name__}.")
    return content
