"""Seeds, history, best checkpoint, early stop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import tiny_recipe as tiny
import torch
from torch import Tensor

from spiketide.errors import RunError
from spiketide.training.callbacks import Bar, Reseed, derive
from spiketide.training.classification import Classification, Output
from spiketide.training.folder import RunFolder
from spiketide.training.recipe import Recipe
from spiketide.training.run import train


def test_derived_seeds_do_not_collide() -> None:
    seeds = {
        derive(seed, rank, "train", epoch) for seed in range(10) for rank in range(4) for epoch in range(50)
    }
    assert len(seeds) == 2000
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_numbers_are_a_function_of_seed_epoch_and_process() -> None:
    def draw(seed: int, epoch: int, rank: int) -> list[float]:
        trainer: Any = type("Trainer", (), {"current_epoch": epoch, "global_rank": rank})()
        Reseed(seed).on_train_epoch_start(trainer, None)  # type: ignore[arg-type]
        return torch.rand(3).tolist()

    assert draw(0, 1, 0) == draw(0, 1, 0)
    assert len({tuple(draw(*key)) for key in [(0, 1, 0), (0, 2, 0), (0, 1, 1), (1, 1, 0)]}) == 4


def test_a_diverged_loss_stops_with_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Classification.objective

    def diverge(self: Classification, output: Output, y: Tensor) -> Tensor:
        # added, so that the gradient stays finite and it is the epoch's mean that tells
        return real(self, output, y) + (float("nan") if self.trainer.current_epoch == 1 else 0.0)

    monkeypatch.setattr(Classification, "objective", diverge)
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(RunError, match=r"became nan in epoch 1. Lower the learning rate"):
        train(tiny.recipe(), folder)
    saved = torch.load(folder.last, weights_only=True)
    assert saved["epoch"] == 0 and not folder.finished  # the last good state is kept
    assert all(bool(torch.isfinite(value).all()) for value in saved["state_dict"].values())


def test_the_best_epoch_is_kept_and_its_weights_are_in_best(tmp_path: Path) -> None:
    changed = tiny.content()
    changed["best"] = {"metric": "val/loss", "mode": "min"}
    changed["trainer"]["max_epochs"] = 3
    folder = RunFolder(tmp_path / "run")
    train(Recipe(changed, name="tiny"), folder)
    metrics = json.loads((folder.path / "metrics.json").read_text())
    losses = [row["val/loss"] for row in metrics["history"]]
    best = losses.index(min(losses))
    assert metrics["best"]["epoch"] == best == torch.load(folder.best, weights_only=True)["epoch"]
    assert metrics["finished"]


def test_epochs_without_validation_are_not_judged(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    train(tiny.recipe(check_val_every_n_epoch=2), folder)
    history = json.loads((folder.path / "metrics.json").read_text())["history"]
    assert ["val/loss" in row for row in history] == [False, True, False]


def test_the_bar_shows_loss_accuracy_and_rate(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    train(tiny.recipe(enable_progress_bar=True, max_epochs=1), RunFolder(tmp_path / "run"))
    shown = "".join(capfd.readouterr())
    assert all(word in shown for word in ("loss=", "acc=", "rate=")) and "v_num" not in shown
    assert issubclass(Bar, L.pytorch.callbacks.ProgressBar)
