"""Every packaged recipe: fits its classes, builds, trains, and begins as it always began.

The first twenty training losses of a recipe at its seed stand in ``tests/golden/<recipe>.json``. A change that is meant to
be neutral leaves them as they are. When a change is meant to move them, say so under "Numerics" in the changelog and write
them anew::

    python tests/recipes/test_recipes.py [RECIPE ...]

They are computed in float64: processors round a sum of float32 differently, and one spike that tips over its threshold moves every
loss after it; in float64 that does not happen, so the figures hold on every processor.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from spiketide import recipes
from spiketide.training.recipe import Recipe
from spiketide.training.run import first_losses

GOLDEN = Path(__file__).parents[1] / "golden"
STEPS = 20
PRECISE = ("--threads", "1", "--trainer.precision", "64-true")
NEEDS_NOTHING = {"digits/latency_lif"}


def golden_file(name: str) -> Path:
    return GOLDEN / f"{name.replace('/', '__')}.json"


def needs_data(name: str) -> None:
    if name not in NEEDS_NOTHING and not os.environ.get("SPIKETIDE_DATA"):
        pytest.skip(f"{name} needs its data set: set SPIKETIDE_DATA to the folder with the data sets")


def test_there_are_recipes() -> None:
    assert {"digits/latency_lif", "fsdd/recurrent_alif", "mnist/latency_lif"} <= set(recipes.names())


@pytest.mark.parametrize("name", recipes.names())
def test_it_fits_its_classes_and_is_told_apart(name: str, tmp_path: Path) -> None:
    recipe = Recipe.load(name)
    assert recipe.settings["about"]
    built = recipe.build()
    assert sum(p.numel() for p in built.model.parameters()) > 0
    copy = tmp_path / "copy.yaml"
    copy.write_text(recipe.yaml)
    assert Recipe.load(copy).yaml == recipe.yaml
    text = recipes.find(name)[1].read_text()
    assert not re.search(r"^\s*(<<|_base_|inherits?|extends):", text, re.MULTILINE)  # flat: no inheritance


@pytest.mark.parametrize("name", recipes.names())
def test_the_table_names_it(name: str) -> None:
    assert f"`{name}`" in (recipes.FOLDER / "README.md").read_text()


@pytest.mark.parametrize("name", recipes.names())
def test_the_first_losses_are_golden(name: str) -> None:
    needs_data(name)
    path = golden_file(name)
    assert path.is_file(), f"write it: python tests/recipes/test_recipes.py {name}"
    golden = json.loads(path.read_text())
    losses = first_losses(Recipe.load(name, list(PRECISE)), STEPS)
    assert len(losses) == len(golden["losses"]) == STEPS
    assert losses == pytest.approx(golden["losses"], rel=1e-5)


def test_the_golden_losses_are_of_a_network_that_learns() -> None:
    for path in sorted(GOLDEN.glob("*__*.json")):
        losses = json.loads(path.read_text())["losses"]
        assert len(losses) == STEPS and all(map(math.isfinite, losses)), path.name
        assert losses[-1] < losses[0], path.name


def test_golden_losses_notice_a_changed_constant() -> None:
    """The tolerance is tight enough to see a time constant that moved by a thousandth."""
    losses = json.loads(golden_file("digits/latency_lif").read_text())["losses"]
    words = [*PRECISE, "--model.network.2.tau_mem", "10.01"]
    assert first_losses(Recipe.load("digits/latency_lif", words), STEPS) != pytest.approx(losses, rel=1e-5)


def regenerate(names: list[str]) -> None:
    for name in names or recipes.names():
        content: dict[str, Any] = {"losses": first_losses(Recipe.load(name, list(PRECISE)), STEPS)}
        content |= {"torch": torch.__version__, "precision": "float64"}
        golden_file(name).write_text(json.dumps(content, indent=1) + "\n")
        print(f"{golden_file(name)}: {content['losses'][0]:.4f} ... {content['losses'][-1]:.4f}")


if __name__ == "__main__":
    regenerate(sys.argv[1:])
