"""From a recipe's YAML to checked, resolved settings, and from there to the objects.

The constructor is the schema: every ``class_path`` is imported and its ``init_args`` are compared with the
signature of its class; jsonargparse then checks the types and fills in the defaults, one class at a time and the
innermost first. (Given the whole tree at once it parses each class several times for each class around it: a
bidirectional network took 18 s to read.)
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import importlib
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from inspect import isabstract
from pathlib import Path
from typing import Any, Literal, get_type_hints

import lightning as L
import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace
from jsonargparse.typing import PositiveInt

from .. import recipes
from ..errors import RecipeError, SpiketideError, unknown
from .task import Task

OURS = {
    "callbacks", "logger", "plugins", "default_root_dir", "enable_checkpointing", "num_sanity_val_steps",
    "gradient_clip_val", "gradient_clip_algorithm", "barebones", "enable_model_summary",
}  # fmt: skip
"""Arguments of ``lightning.Trainer`` that a run sets itself."""

LARGEST_SEED = 2**32 - 1

HARMLESS = {
    "seed", "threads", "about", "data.root", "data.num_workers", "trainer.accelerator", "trainer.enable_progress_bar",
    "trainer.log_every_n_steps",
}  # fmt: skip
"""What may be overridden without leaving the recipe: where and how it runs, not what."""

OF_PACKAGES = {"spiketide", "torch", "lightning", "builtins"}
"""Packages whose version says what they do."""

SHOWN = 60
"""Letters of an overridden value that are told."""


@dataclass
class Claim:
    """What the paper of a recipe says, to compare with.

    Args:
        paper: authors, year, where it can be found.
        where: table, figure or section of the number.
        metric: the metric of ours that is compared, as ``spiketide test`` names it.
        value: the number.
        tolerance: how far the mean over seeds may be below the number and still count as reproduced.
    """

    paper: str
    where: str
    metric: str
    value: float
    tolerance: float


@dataclass
class Best:
    """Which checkpoint is the best one, and when to stop waiting for a better one.

    Args:
        metric: a metric of the validation data.
        mode: whether more or less of it is better.
        patience: epochs without a better value before training stops; ``None``: never.
    """

    metric: str = "val/accuracy"
    mode: Literal["max", "min"] = "max"
    patience: int | None = None


@dataclass
class Built:
    """The objects of a recipe."""

    model: Task
    data: L.LightningDataModule
    trainer: dict[str, Any]
    """Arguments for ``lightning.Trainer``."""
    best: Best
    claim: Claim | None
    seed: int
    threads: int | None
    """CPU threads; ``None``: as torch has them."""


class Recipe:
    """A checked recipe with every argument written out.

    Example:
        >>> from spiketide.training.recipe import Recipe
        >>> recipe = Recipe.load("digits/latency_lif", ["--seed", "3"])
        >>> recipe.settings["seed"]
        3

    Args:
        content: the mapping of the YAML.
        name: short name, used for the folder of its runs.

    Raises:
        RecipeError: an unknown key (with the nearest right one), a class that does not exist, a value of the wrong type.
    """

    def __init__(self, content: dict[str, Any], *, name: str):
        self.name = name
        self.path: Path | None = None
        """The file that it was read from; ``None`` for a recipe of the package."""
        self.overridden: tuple[str, ...] = ()
        """What the command line changed, ``model.lr=0.1`` for example; the seed and where it runs do not count."""
        check_keys(content)
        seed = content.get("seed", 0)
        if isinstance(seed, int) and not 0 <= seed <= LARGEST_SEED:
            raise RecipeError(
                f"seed should be from 0 to {LARGEST_SEED}, got {seed}: choose another with --seed."
            )
        _share_seed(content)
        self._parser = _parser()
        checked = {key: _check_types(value, key) for key, value in content.items()}
        try:
            self._parsed: Namespace = _filled(self._parser.parse_object(checked))
        except (ArgumentError, TypeError, ValueError) as error:
            raise RecipeError(f"the recipe {name!r} does not fit: {_shorten(str(error))}") from error

    @classmethod
    def load(cls, recipe: str | Path, overrides: Sequence[str] = ()) -> Recipe:
        """Read a recipe by name or path and change single arguments, as on the command line."""
        name, path = recipes.find(recipe)
        content = recipes.read(path)
        changed: dict[str, str] = {}
        for key, value in _pairs(overrides):
            before = copy.deepcopy(content)
            _set(content, key, value)
            plain = key.replace(".init_args", "")
            if content != before and plain not in HARMLESS:
                shown = " ".join(value.split())
                changed[plain] = f"{plain}={shown if len(shown) <= SHOWN else shown[: SHOWN - 1] + '…'}"
        made = cls(content, name=name)
        made.path = None if name in recipes.names() else path.resolve()
        made.overridden = tuple(changed.values())
        return made

    @property
    def yaml(self) -> str:
        """The whole recipe with every default written out; a recipe itself."""
        return self._parser.dump(self._parsed, skip_unset=False)

    @property
    def settings(self) -> dict[str, Any]:
        """The same as a mapping."""
        return yaml.safe_load(self.yaml)

    def files(self) -> dict[str, str]:
        """What stands behind the classes that are the user's own: SHA-256 of the file of each module, by its name.

        What such a module imports itself is not looked at.
        """
        found: dict[str, str] = {}
        for class_path in sorted(_class_paths(self.settings)):
            target = _imported(class_path, "recipe")
            module = sys.modules.get(getattr(target, "__module__", ""))
            file = getattr(module, "__file__", None)
            if module is not None and file and module.__name__.partition(".")[0] not in OF_PACKAGES:
                with contextlib.suppress(OSError):
                    found[module.__name__] = hashlib.sha256(Path(file).read_bytes()).hexdigest()
        return found

    @property
    def claim(self) -> Claim | None:
        """The number of the paper, if the recipe follows one."""
        claim = self._parsed.claim
        return None if claim is None else Claim(**vars(claim))

    def build(self) -> Built:
        """Seed everything and construct the objects: the same seed gives the same initial weights."""
        L.seed_everything(self._parsed.seed, workers=True, verbose=False)
        return Built(
            model=_construct(self._parsed.model, "model"),
            data=_construct(self._parsed.data, "data"),
            trainer={
                key: _construct(value, f"trainer.{key}") for key, value in vars(self._parsed.trainer).items()
            },
            best=Best(**vars(self._parsed.best)),
            claim=self.claim,
            seed=self._parsed.seed,
            threads=self._parsed.threads,
        )


def _class_paths(node: Any) -> set[str]:
    """All classes that a part of a recipe names."""
    if isinstance(node, dict):
        here = {node["class_path"]} if isinstance(node.get("class_path"), str) else set()
        return here.union(*map(_class_paths, node.values()))
    return set().union(*map(_class_paths, node)) if isinstance(node, list) else set()


def _construct(node: Any, where: str) -> Any:
    """Build the classes of a checked recipe from the inside out.

    jsonargparse can do it too, but takes a constructor's own error (tau_mem below zero) for a type that does not fit.
    """
    if isinstance(node, list):
        return [_construct(item, f"{where}.{index}") for index, item in enumerate(node)]
    if not isinstance(node, Namespace) or "class_path" not in node:
        return node
    arguments = {
        key: _construct(value, f"{where}.{key}")
        for key, value in vars(node.get("init_args", Namespace())).items()
    }
    try:
        return _imported(node.class_path, where)(**arguments)
    except SpiketideError as error:
        raise type(error)(f"{where}: {error}") from error
    except (TypeError, ValueError) as error:
        raise RecipeError(f"{where}: {node.class_path} refused its arguments: {error}") from error


def _parser() -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--about", type=str, default="", help="the recipe in one line")
    parser.add_argument("--claim", type=Claim | None, default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--threads", type=PositiveInt | None, default=None, help="CPU threads; null: all cores"
    )
    parser.add_subclass_arguments(L.LightningDataModule, "data", required=True)
    parser.add_subclass_arguments(Task, "model", required=True)
    parser.add_class_arguments(L.Trainer, "trainer", skip=OURS, instantiate=False)
    parser.add_class_arguments(Best, "best", instantiate=False)
    return parser


# ------------------------------------------------------------------------------------------------- misspelt keys


def check_keys(content: dict[str, Any]) -> None:
    """Refuse a key that no constructor knows.

    jsonargparse refuses them too, but names neither the nearest right key nor, inside a list of layers, the place.

    Raises:
        RecipeError: naming the place, the nearest right key and all known ones.
    """
    sections = {"about", "claim", "seed", "threads", "data", "model", "trainer", "best"}
    for key, value in content.items():
        if key not in sections:
            raise RecipeError(unknown("section", key, sections))
        if key in ("trainer", "best", "claim") and isinstance(value, dict):
            known = {
                "trainer": _trainer_arguments(),
                "best": set(asdict(Best())),
                "claim": set(Claim.__annotations__),
            }
            for name in value:
                if key == "trainer" and name.startswith("gradient_clip"):
                    raise RecipeError(
                        f"trainer.{name}: the model clips the gradient itself; use model.clip (norm or value) and model.clip_at, "
                        "on the command line --model.clip norm --model.clip_at 1.0."
                    )
                if name not in known[key]:
                    raise RecipeError(unknown(f"key in {key}:", name, known[key]))
        _check_node(value, key)
    for missing in sorted({"data", "model"} - set(content)):
        raise RecipeError(
            f"the recipe has no section {missing!r}; it needs data and model, each with a class_path."
        )


def _check_node(node: Any, where: str) -> None:
    if isinstance(node, list):
        for index, item in enumerate(node):
            _check_node(item, f"{where}.{index}")
    if not isinstance(node, dict):
        return
    if "class_path" in node:
        for key in node:
            if key not in ("class_path", "init_args"):
                raise RecipeError(unknown(f"key in {where}:", key, ["class_path", "init_args"]))
        class_path = node["class_path"]
        known = arguments(class_path, where)
        for key in node.get("init_args") or {}:
            if key not in known:
                raise RecipeError(unknown(f"argument of {class_path} in {where}:", key, known))
        node = node.get("init_args") or {}
    for key, value in node.items():
        _check_node(value, f"{where}.{key}")


@cache
def arguments(class_path: str, where: str = "recipe") -> frozenset[str]:
    """Names of the constructor arguments of a class, those handed on by ``**kwargs`` included.

    Raises:
        RecipeError: there is no such class.
    """
    try:
        return _parser_of(_imported(class_path, where))[1]
    except ValueError as error:
        if isinstance(error, SpiketideError):
            raise
        untyped = re.search(r"Parameter '(\w+)' from '([\w.]+)' does not specify a type", str(error))
        if untyped is None:
            raise RecipeError(f"{where}: {class_path} cannot stand in a recipe: {error}") from error
        raise RecipeError(
            f"{where}: {class_path} does not say of which type its argument {untyped[1]!r} is, and a recipe is checked by the "
            f"types: annotate it in {untyped[2]}, for example `{untyped[1]}: int`."
        ) from error


@cache
def _parser_of(target: Any) -> tuple[ArgumentParser, frozenset[str]]:
    """The parser of a constructor's arguments, as ``recipe_.NAME``, and their names."""
    parser = ArgumentParser(exit_on_error=False)
    add = parser.add_class_arguments if isinstance(target, type) else parser.add_function_arguments
    return parser, frozenset(key.split(".", 1)[1] for key in add(target, "recipe_"))


# --------------------------------------------------------------------------------------------- types and defaults


def _check_types(node: Any, where: str) -> Any:
    """Check every class in a part of a recipe by itself, from the inside out.

    Returns:
        The part, with a stand-in (:func:`_stand_in`) in the place of every class.

    Raises:
        RecipeError: naming the place, the class and the argument that does not fit.
    """
    if isinstance(node, list):
        return [_check_types(item, f"{where}.{index}") for index, item in enumerate(node)]
    if not isinstance(node, dict):
        return node
    if "class_path" not in node:
        return {key: _check_types(value, f"{where}.{key}") for key, value in node.items()}
    given = {
        key: _check_types(value, f"{where}.{key}") for key, value in (node.get("init_args") or {}).items()
    }
    target = _imported(node["class_path"], where)
    parser, _ = _parser_of(target)
    try:
        parsed = parser.parse_object({"recipe_": given})
    except (ArgumentError, TypeError, ValueError) as error:
        message = _shorten(str(error)).replace("recipe_.", "")
        message = _no_list(message, given, parser, where) or message
        raise RecipeError(f"{where}: {node['class_path']} does not fit: {message}") from error
    spec = Namespace(class_path=node["class_path"])
    if "recipe_" in parsed:
        spec.init_args = _filled(parsed.recipe_)
    return _stand_in(target, spec, where)


def _no_list(message: str, given: dict[str, Any], parser: ArgumentParser, where: str) -> str | None:
    """What to say of a single value where a list is wanted, in place of jsonargparse's ``message``."""
    found = re.match(r'Parser key "(\w+)":', message)
    wanted = re.search(r"Expected a <class '(?:list|tuple|collections\.abc\.Sequence)'>", message)
    if not found or not wanted or "import path" in message:
        return None
    name, value = found[1], given.get(found[1])
    if not isinstance(value, (str, int, float)):
        return None
    default = parser.get_default(f"recipe_.{name}")
    parts = [part.strip() for part in str(value).split(",")]
    if isinstance(default, (list, tuple)) and default:
        parts = [str(part) for part in default]  # of as many as it has
    listed = f"[{', '.join(parts)}]"
    return f"{name} should be a list, got {value!r}. Write for example {listed}; on the command line --{where}.{name} '{listed}'."


class _StandIn:
    """Marks an object that has the type of a class in a recipe and holds the checked arguments for it."""

    spec: Namespace

    def __repr__(self) -> str:
        return str(self.spec.class_path)

    def __deepcopy__(self, memo: dict[int, Any]) -> _StandIn:
        return self


def _stand_in(target: Any, spec: Namespace, where: str) -> Any:
    """An object of the type that ``target`` makes, for the check of the class around it; never constructed."""
    made = target if isinstance(target, type) else get_type_hints(target).get("return")
    if not isinstance(made, type) or (isinstance(target, type) and isabstract(target)):
        raise RecipeError(
            f"{where}: {spec.class_path} makes no object: expected a class that can be constructed, or a function "
            "whose return annotation is a class."
        )
    kind: Any = type(made.__name__, (_StandIn, made), {})
    kind.__abstractmethods__ = frozenset()  # a function may promise an abstract class
    stand_in: Any = object.__new__(kind)
    object.__setattr__(stand_in, "spec", spec)
    return stand_in


def _filled(node: Any) -> Any:
    """The checked arguments with every stand-in replaced by what it stands for."""
    if isinstance(node, _StandIn):
        return node.spec
    if isinstance(node, Namespace):
        return Namespace(**{key: _filled(value) for key, value in vars(node).items()})
    if isinstance(node, dict):
        return {key: _filled(value) for key, value in node.items()}
    if type(node) in (list, tuple):
        return type(node)(_filled(item) for item in node)
    return node


def _imported(class_path: str, where: str) -> Any:
    module_name, _, name = str(class_path).rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except (ImportError, ValueError) as error:
        raise RecipeError(
            f"class_path {class_path!r} in {where}: cannot import {module_name!r} ({error}). "
            "A module of your own must be on Python's path: PYTHONPATH=. when it lies in this folder."
        ) from error
    if not hasattr(module, name):
        names = [key for key in dir(module) if key[:1].isupper()]
        raise RecipeError(f"in {where}: " + unknown(f"class of {module_name}:", name, names))
    return getattr(module, name)


@cache
def _trainer_arguments() -> frozenset[str]:
    return arguments("lightning.Trainer") - OURS


def _share_seed(content: dict[str, Any]) -> None:
    """Give data that take a seed, and were given none, the seed of the run.

    Seeds of one recipe then differ in the order of the samples and in the validation split too, as repetitions should.
    """
    data = content["data"]
    if isinstance(data, dict) and "seed" in arguments(data.get("class_path", ""), "data"):
        given = dict(data.get("init_args") or {})
        given.setdefault("seed", content.get("seed", 0))
        data["init_args"] = given


# ------------------------------------------------------------------------------------------------- command line


def _pairs(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """``--key value`` and ``--key=value`` as pairs."""
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--") or len(word) < 3:
            raise RecipeError(f"unexpected word {word!r}; arguments of a recipe are given as --key value.")
        key, equals, value = word[2:].partition("=")
        if not equals:
            if not rest:
                raise RecipeError(f"--{key} needs a value: --{key} VALUE.")
            value = rest.pop(0)
        yield key, value


def _set(content: dict[str, Any], key: str, text: str) -> None:
    """Set one value by its dotted key; ``init_args`` may be left out, items of lists are numbers from 0."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    node: Any = content
    *path, last = key.split(".")
    for depth, part in enumerate(path):
        node = _enter(node, part)
        if isinstance(node, dict):
            if node.get(part) is None:
                node[part] = {}
            elif isinstance(node[part], str) and _is_class(node[part]):
                node[part] = {"class_path": node[part]}
            node = node[part]
        else:
            node = node[_place(node, part, key, path[:depth])]
    node = _enter(node, last)
    if isinstance(node, dict):
        node[last] = value
    else:
        node[_place(node, last, key, path)] = value


def _place(node: Any, part: str, key: str, path: list[str]) -> int:
    """The number of an item of a list, which is what a key goes on into."""
    where = ".".join(path)
    if not isinstance(node, list):
        shown = repr(node) if len(repr(node)) <= 60 else f"of type {type(node).__name__}"
        raise RecipeError(f"--{key}: {where} is {shown} and has no part {part!r}.")
    if not part.isdigit():
        raise RecipeError(
            f"--{key}: {where} is a list, of which {part!r} names no item: its {len(node)} items are counted from 0, "
            f"as in --{where}.0."
        )
    if int(part) >= len(node):
        raise RecipeError(f"--{key}: {where} has {len(node)} items, counted from 0.")
    return int(part)


def _enter(node: Any, part: str) -> Any:
    """Step over ``init_args`` when a key leaves it out."""
    if isinstance(node, dict) and "class_path" in node and part not in ("class_path", "init_args"):
        return node.setdefault("init_args", {})
    return node


def _is_class(text: str) -> bool:
    return bool(re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", text))


def _shorten(message: str) -> str:
    """Drop the lines of a jsonargparse message that repeat the whole input or explain its own notation."""
    noise = ("Given value:", "Subtypes:", "Subclass types expect", "- a class path (str)", "- a dict with")
    return "\n".join(line for line in message.splitlines() if not line.strip().startswith(noise))
