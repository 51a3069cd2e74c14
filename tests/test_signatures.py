"""The page of signatures is what the code says; ``python tests/test_signatures.py`` writes it anew."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

from torch import nn

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "signatures.md"
MODULES = (
    "spiketide.neurons", "spiketide.synapses", "spiketide.lateral", "spiketide.compose", "spiketide.checkpointed", "spiketide.norms",
    "spiketide.readouts", "spiketide.losses", "spiketide.encoders", "spiketide.init", "spiketide.surrogate", "spiketide.scan",
    "spiketide.timing", "spiketide.data", "spiketide.training", "spiketide.energy", "spiketide.probe", "spiketide.diagnose",
    "spiketide.baselines", "spiketide.types", "spiketide.layer",
)  # fmt: skip
HEAD = """# Signatures

Constructors and functions with their arguments and defaults, by the module they are imported from; what is marked * is importable from
`spiketide` too. The docstrings (`help(name)`) give shapes, units, errors and sources.
`**common` stands for the arguments of `DataModule` (of `TimingLoss` in `spiketide.timing`), `**training` for those of `Task`, `**layer` for
those of `TimingLayer`, `**options` for those of the class before. Written by `python tests/test_signatures.py`.
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


def line(name: str, thing: object, at_the_top: bool) -> str:
    """One row: the call and the first sentence of its docstring."""
    bare = (
        getattr(thing, "__init__", None) is nn.Module.__init__
    )  # takes nothing, and says so by *args, **kwargs
    shown: list[str] = []
    for argument in () if bare else inspect.signature(thing).parameters.values():  # type: ignore[arg-type]
        if argument.name in ("self", "ctx"):
            continue
        text = {argument.VAR_POSITIONAL: "*", argument.VAR_KEYWORD: "**"}.get(
            argument.kind, ""
        ) + argument.name
        if argument.default is not argument.empty:
            text += f"={argument.default!r}"
        if argument.kind is argument.KEYWORD_ONLY and "*" not in shown:
            shown += [] if any(part.startswith("*") for part in shown) else ["*"]
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
