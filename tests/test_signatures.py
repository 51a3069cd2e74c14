"""The page of signatures is what the code says; ``python tests/test_signatures.py`` writes it anew."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path
from typing import Any

from torch import nn

from spiketide.training.recipe import arguments

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "signatures.md"
MODULES = (
    "spiketide.neurons", "spiketide.synapses", "spiketide.lateral", "spiketide.compose", "spiketide.checkpointed", "spiketide.norms",
    "spiketide.readouts", "spiketide.losses", "spiketide.encoders", "spiketide.init", "spiketide.surrogate", "spiketide.scan",
    "spiketide.timing", "spiketide.data", "spiketide.training", "spiketide.energy", "spiketide.probe", "spiketide.diagnose",
    "spiketide.baselines", "spiketide.types", "spiketide.layer",
)  # fmt: skip
HEAD = """# Signatures

Constructors and functions with their arguments and defaults, by the module they are imported from; what is marked * is importable from
`spiketide` too. The docstrings (`help(name)`) give shapes, units, errors and sources. Written by `python tests/test_signatures.py`.
"""


def members(module_name: str) -> dict[str, object]:
    """Public classes and functions that users import from a module: its own, and those of its parts that it hands on."""
    module = importlib.import_module(module_name)
    chosen = getattr(module, "__all__", None) or [name for name in vars(module) if not name.startswith("_")]
    found = {}
    for name in chosen:
        thing = getattr(module, name)
        home = str(getattr(thing, "__module__", ""))
        own = home == module_name or home.startswith(module_name + ".")
        if own and (inspect.isclass(thing) or inspect.isfunction(thing)) and inspect.getdoc(thing):
            found[name] = thing
    return dict(sorted(found.items()))


def parameters(thing: Any) -> list[inspect.Parameter]:
    """Arguments of a call; those that ``**kwargs`` hands on to the classes below are written out in its place."""
    if (
        getattr(thing, "__init__", None) is nn.Module.__init__
    ):  # takes nothing, and says so by *args, **kwargs
        return []
    found = [argument for argument in inspect.signature(thing).parameters.values() if argument.name != "self"]
    if not inspect.isclass(thing) or not found or found[-1].kind is not inspect.Parameter.VAR_KEYWORD:
        return found
    below = {}
    for base in reversed(thing.__mro__[1:-1]):
        below |= dict(inspect.signature(base.__init__).parameters)  # type: ignore[misc]
    handed_on = arguments(f"{thing.__module__}.{thing.__qualname__}") - {argument.name for argument in found}
    known = [below[name].replace(kind=inspect.Parameter.KEYWORD_ONLY) for name in below if name in handed_on]
    return found[:-1] + known if {argument.name for argument in known} == handed_on else found


def line(name: str, thing: Any, at_the_top: bool) -> str:
    """One row: the call and the first sentence of its docstring."""
    shown: list[str] = []
    for argument in parameters(thing):
        text = {argument.VAR_POSITIONAL: "*", argument.VAR_KEYWORD: "**"}.get(
            argument.kind, ""
        ) + argument.name
        if argument.default is not argument.empty:
            text += f"={argument.default!r}"
        if argument.kind is argument.KEYWORD_ONLY and not any(part.startswith("*") for part in shown):
            shown.append("*")
        shown.append(text)
    first = (inspect.getdoc(thing) or "").split("\n\n")[0].replace("\n", " ")
    call = re.sub(r"<(?:function|class) '?([\w.]+)'?[^>]*>", r"\1", f"{name}({', '.join(shown)})")
    first = re.sub(r":(?:class|func|meth|mod):`~?\.?([^`]*)`", r"`\1`", first).replace("``", "`")
    return f"- `{call}`{'*' if at_the_top else ''}: {first}"


def page() -> str:
    top = vars(importlib.import_module("spiketide"))
    parts = [HEAD]
    for module_name in MODULES:
        rows = [line(name, thing, top.get(name) is thing) for name, thing in members(module_name).items()]
        if rows:
            parts.append(f"\n## `{module_name}`\n\n" + "\n".join(rows) + "\n")
    return "".join(parts)


def test_the_page_is_what_the_code_says() -> None:
    assert page() == PAGE.read_text(), "run python tests/test_signatures.py"


def test_it_names_what_users_import() -> None:
    text = page()
    for call in (
        "SynapticDelay(n_in, n_out, max_delay",
        "LIF(n",
        "MNIST(",
        "Classification(",
        "TimingLinear(",
    ):
        assert call in text
    assert " object at 0x" not in text and "<" not in re.sub(r"``?[^`]*``?", "", text.split("##", 1)[1])


if __name__ == "__main__":
    PAGE.write_text(page())
