"""The Python of the tutorial runs as it stands, with plain Lightning around it."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import tiny_recipe as tiny

from spiketide.training.folder import RunFolder
from spiketide.training.run import NOISE, train

TUTORIAL = Path(__file__).parents[2] / "docs" / "tutorials" / "first_run.md"


def test_the_python_of_the_first_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = re.findall(r"```python\n(.*?)```", TUTORIAL.read_text(), re.DOTALL)[0]
    assert "max_epochs=30" in code
    quiet = "max_epochs=4, enable_progress_bar=False, enable_model_summary=False, logger=False, enable_checkpointing=False"
    space: dict[str, Any] = {}
    with warnings.catch_warnings():
        for message in (*NOISE, ".*log_every_n_steps.*"):
            warnings.filterwarnings("ignore", message=message)
        exec(code.replace("max_epochs=30", quiet), space)
    trainer: L.Trainer = space["trainer"]
    assert float(trainer.callback_metrics["test/accuracy"]) > 0.9


def test_a_trained_run_is_used_as_the_first_run_says(tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(tiny.recipe(max_epochs=1), RunFolder(run))
    code = re.findall(r"```python\n(.*?)```", TUTORIAL.read_text(), re.DOTALL)[1]
    assert '"runs/digits/latency_lif/..."' in code
    space: dict[str, Any] = {}
    exec(code.replace("runs/digits/latency_lif/...", str(run)), space)
    assert space["output"].scores.shape == (len(space["batch"].y), 10) and not space["built"].model.training
