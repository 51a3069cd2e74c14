"""A run that was cut short goes on to the result of the run that was not, to the bit."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_recipe as tiny
import torch
from torch import Tensor

import spiketide.training.folder as folder_module
from spiketide.cli import main
from spiketide.errors import RunError
from spiketide.training.callbacks import Keep
from spiketide.training.classification import Classification
from spiketide.training.folder import RunFolder
from spiketide.training.run import Stopped, train

KILL = """
import os, signal, sys
from spiketide.cli import main
from spiketide.training.classification import Classification
step = Classification.training_step
def until(self, batch, batch_idx):
    if self.trainer.current_epoch == 1 and batch_idx == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, batch, batch_idx)
Classification.training_step = until
sys.exit(main(sys.argv[1:]))
"""


def differences(first: Any, second: Any, where: str = "") -> list[str]:
    """Places where two checkpoints differ in a bit, times aside."""
    if isinstance(first, Tensor):
        return [] if torch.equal(first, second) else [where]
    if isinstance(first, dict):
        if first.keys() != second.keys():
            return [f"{where} keys"]
        return [d for k in first if k != "seconds" for d in differences(first[k], second[k], f"{where}.{k}")]
    if isinstance(first, list | tuple):
        if len(first) != len(second):
            return [f"{where} length"]
        return [
            d
            for i, pair in enumerate(zip(first, second, strict=True))
            for d in differences(*pair, f"{where}.{i}")
        ]
    return [] if first == second or first != first else [f"{where}: {first} {second}"]


def rows(folder: RunFolder) -> list[dict[str, str]]:
    with open(folder.path / "metrics.csv") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def assert_same(run: RunFolder, reference: RunFolder) -> None:
    assert rows(run) == rows(reference)
    for name in ("last", "best"):
        one, other = (torch.load(getattr(f, name), weights_only=True) for f in (run, reference))
        for part in ("state_dict", "optimizer_states", "lr_schedulers", "callbacks", "epoch", "global_step"):
            assert differences(one[part], other[part], part) == []


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunFolder, subprocess.Popen[bytes]]]:
    """A process that kills itself in the third epoch; it runs beside the first tests."""
    place = tmp_path_factory.mktemp("killed")
    recipe = tiny.write(place / "tiny.yaml")
    process = subprocess.Popen(
        [sys.executable, "-c", KILL, "train", str(recipe), "--run", str(place / "run")],
        stderr=subprocess.DEVNULL,
    )
    yield RunFolder(place / "run"), process
    process.kill()
    process.wait()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, killed: Any) -> RunFolder:
    folder = RunFolder(tmp_path_factory.mktemp("runs") / "whole")
    result = train(tiny.recipe(), folder)
    assert result["epochs"] == 3
    return folder


def test_the_reference_learns(uninterrupted: RunFolder) -> None:
    losses = [float(row["train/loss"]) for row in rows(uninterrupted)]
    assert losses[-1] < losses[0] - 0.1  # a run that stands still would resume to anything
    assert 0.01 < float(rows(uninterrupted)[-1]["train/rate"]) < 0.6


def test_ctrl_c_says_how_to_resume(
    tmp_path: Path,
    uninterrupted: RunFolder,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    step = Classification.training_step

    def press(self: Classification, batch: Any, batch_idx: int) -> Tensor:
        if self.trainer.current_epoch == 1 and batch_idx == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, batch, batch_idx)

    folder = RunFolder(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(Classification, "training_step", press)
        code = main(["train", str(tiny.write(tmp_path / "tiny.yaml")), "--run", str(folder.path), "--json"])
    said = capsys.readouterr()
    assert code == 130
    assert f"spiketide train --resume {folder.path}" in said.err
    assert json.loads(said.out.splitlines()[-1]) == {
        "verb": "train",
        "stopped": True,
        "run": str(folder.path),
    }
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler  # a second Ctrl-C works too
    assert main(["train", "--resume", str(folder.path)]) == 0
    assert_same(folder, uninterrupted)


@pytest.mark.parametrize("file", ["best.ckpt", "last.ckpt", "metrics.csv"])
def test_a_kill_between_two_files_of_one_epoch(
    file: str, tmp_path: Path, uninterrupted: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, seen, write = RunFolder(tmp_path / "run"), 0, folder_module.write

    class Killed(BaseException):
        pass

    def fail(path: Path, content: str | bytes) -> None:
        nonlocal seen
        seen += path.name == file
        if path.name == file and seen == 2:
            raise Killed
        write(path, content)

    monkeypatch.setattr(folder_module, "write", fail)
    with pytest.raises(Killed):
        train(tiny.recipe(), folder)
    monkeypatch.setattr(folder_module, "write", write)
    train(tiny.recipe(), folder, resume=True)
    assert_same(folder, uninterrupted)


def test_sigkill_in_the_middle_of_an_epoch(uninterrupted: RunFolder, killed: tuple[RunFolder, Any]) -> None:
    folder, process = killed
    assert process.wait(timeout=120) == -signal.SIGKILL
    assert len(rows(folder)) == 1  # only epoch 0 was whole
    assert not folder.finished
    result = train(tiny.recipe(), folder, resume=True)
    assert result["finished"] and result["epochs"] == 3
    assert_same(folder, uninterrupted)


def test_workers_that_fetch_early_fetch_the_right_epoch(
    tmp_path: Path, uninterrupted: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = tiny.content()
    changed["data"]["init_args"]["num_workers"] = 1
    recipe, folder = tiny.Recipe(changed, name="tiny"), RunFolder(tmp_path / "run")
    step = Classification.training_step

    def fail(self: Classification, batch: Any, batch_idx: int) -> Tensor:
        if self.trainer.current_epoch == 1 and batch_idx == 1:
            raise MemoryError
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(Classification, "training_step", fail)
        with pytest.raises(MemoryError):
            train(recipe, folder)
    train(recipe, folder, resume=True)
    assert rows(folder) == rows(uninterrupted)  # workers change nothing, and neither does the resume


def test_a_run_stopped_before_its_first_checkpoint_begins_anew(
    tmp_path: Path, uninterrupted: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(self: Any, batch: Any, batch_idx: int) -> None:
        raise KeyboardInterrupt

    folder = RunFolder(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(Classification, "training_step", stop)
        with pytest.raises(Stopped, match="--resume"):
            train(tiny.recipe(), folder)
    train(tiny.recipe(), folder, resume=True)
    assert_same(folder, uninterrupted)


def test_a_finished_run_is_not_trained_again(
    uninterrupted: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Classification, "training_step", lambda *_: pytest.fail("trained"))
    assert train(tiny.recipe(), uninterrupted, resume=True)["epochs"] == 3


def test_another_recipe_is_not_resumed(uninterrupted: RunFolder) -> None:
    with pytest.raises(RunError, match="another recipe"):
        train(tiny.recipe(max_epochs=4), uninterrupted, resume=True)


def test_patience_survives_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that ran out of patience and was killed before it could say so stops at once when it is resumed."""
    changed = tiny.content()
    changed["best"] = {
        "metric": "val/rate",
        "mode": "min",
        "patience": 1,
    }  # the rate rises: epoch 0 stays the best
    changed["trainer"]["max_epochs"] = 20
    recipe = tiny.Recipe(changed, name="tiny")
    whole, cut = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "cut")
    epochs = train(recipe, whole)["epochs"]
    assert epochs < 20

    def die(self: Keep, row: Any, better: bool) -> str:
        if self._out_of_patience:
            raise MemoryError
        return ""

    with monkeypatch.context() as patch:
        patch.setattr(Keep, "_line", die)
        with pytest.raises(MemoryError):
            train(recipe, cut)
    assert train(recipe, cut, resume=True)["epochs"] == epochs
    assert rows(cut) == rows(whole)
