"""The Python of the tutorial on single spikes runs as it stands, and says what is true."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from spiketide.training.run import NOISE

PAGE = Path(__file__).parents[2] / "docs" / "tutorials" / "single_spikes.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


def test_the_network_of_the_tutorial_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    quiet = "max_epochs=5, enable_progress_bar=False, enable_model_summary=False, logger=False, enable_checkpointing=False"
    assert "max_epochs=20" in BLOCKS[0]
    space: dict[str, Any] = {}
    with warnings.catch_warnings():
        for message in (*NOISE, ".*log_every_n_steps.*"):
            warnings.filterwarnings("ignore", message=message)
        exec(BLOCKS[0].replace("max_epochs=20", quiet), space)
    assert float(space["trainer"].callback_metrics["val/accuracy"]) > 0.8
    exec(BLOCKS[1], space)
    assert space["fired"].times.shape[1] == 10 and list(space["seen"]) == ["1", "2"]


def test_the_figure_shows_what_the_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    import matplotlib

    matplotlib.use("Agg", force=True)
    space: dict[str, Any] = {}
    exec(BLOCKS[2], space)
    assert (tmp_path / "displacement.svg").stat().st_size > 5000
    space["plt"].close("all")
    # it moves the way that was wished
    assert space["moved"].item() < space["spike"].item()
    weights = torch.tensor([0.75, 0.55, -0.2, 0.6])
    # excites: earlier, by its weight; inhibits: later; after the spike: nothing
    assert space["inputs"][0, 3] > space["spike"].item()
    want = space["wish"] * weights * torch.tensor([1.0, 1.0, 1.0, 0.0])
    torch.testing.assert_close(space["asked"], want)
    # the update, by its formula
    pushed = ((space["spike"].detach() - space["inputs"].detach()) / 16).clamp(0, 1)
    torch.testing.assert_close(space["neuron"].weight.detach() - weights, -0.03 * space["wish"] * pushed)
