"""The page that tells how to account for energy works as it stands, and names what is there."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import yaml

import spiketide.energy
from spiketide.training.recipe import check_keys

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "how-to" / "account_energy.md").read_text()


def test_the_page_runs() -> None:
    names: dict[str, Any] = {}
    said = io.StringIO()
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 3
    with contextlib.redirect_stdout(said):
        for block in blocks:
            exec(block, names)
    text = said.getvalue()
    rate = names["counts"].layers["1.neuron"].rate
    assert 0.01 < rate < 0.6, rate
    assert "StepOperations(mac=1, ac=0, ac_per_spike=1, comparisons=1" in text
    assert "lemaire" in text and names["even"].rate is not None
    # the size that the page prints is the one that its recipe takes
    units = text.split()[-1]
    assert f"n: {units}}}" in PAGE and f"n_in: {units}," in PAGE


def test_the_recipe_of_the_page_names_what_is_there() -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    network = yaml.safe_load(block)["network"]
    check_keys(
        {
            "data": {},
            "model": {"class_path": "spiketide.training.Classification", "init_args": {"network": network}},
        }
    )


def test_the_reference_names_what_is_there() -> None:
    table = (DOCS / "reference" / "energy.md").read_text().split("## What is counted")[0]
    named = {
        name
        for cell in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
        for name in re.findall(r"`(\w+)[(`]", cell)
    }
    public = {name for name in vars(spiketide.energy) if not name.startswith("_")}
    modules = {"costs", "first_spike", "formulas", "meter", "operations", "report", "step"}
    assert len(named) > 12 and named <= public | {"spiketide"}
    smaller = {
        "Baseline",
        "BreakEven",
        "Energy",
        "FirstSpikeCounts",
        "FirstSpikeLayer",
        "Operations",
        "PaperCounts",
        "StepOperations",
    }  # what the others return
    assert public - named - modules == smaller, public - named - modules
