"""Seeds, history, best checkpoint, early stop."""

from __future__ import annotations

import errno
import json
import os
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import tiny_recipe as tiny
import torch
from torch import Tensor

from spiketide.errors import RunError
from spiketide.training.callbacks import Bar, Keep, Reseed, derive
from spiketide.training.classification import Classification
from spiketide.training.folder import AtomicCheckpointIO, RunFolder
from spiketide.training.recipe import Best, Recipe
from spiketide.training.run import train
from spiketide.training.task import Output


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


class Two:
    """What two processes of a distributed run share, for two threads: nobody gets on before both are there."""

    def __init__(self) -> None:
        self.meet = threading.Barrier(2, timeout=5.0)
        self.said: Any = None

    def trainer(self, rank: int, folder: Path) -> Any:
        writer = AtomicCheckpointIO()

        def save(path: Path, storage_options: Any = None) -> None:
            if rank == 0:
                writer.save_checkpoint({"weights": torch.zeros(3)}, path, storage_options)
            self.meet.wait()

        def broadcast(content: Any) -> Any:
            if rank == 0:
                self.said = content
            self.meet.wait()
            heard = self.said
            self.meet.wait()
            return heard

        return SimpleNamespace(
            current_epoch=0,
            callback_metrics={"train/loss": torch.tensor(1.0), "val/accuracy": torch.tensor(0.5)},
            optimizers=[SimpleNamespace(param_groups=[{"lr": 0.1}])],
            save_checkpoint=save,
            strategy=SimpleNamespace(broadcast=broadcast),
            should_stop=False,
        )


@pytest.mark.parametrize("broken", ["best.ckpt", "last.ckpt", "metrics.csv"])
def test_a_process_that_cannot_write_stops_the_others(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync

    def full(descriptor: int) -> None:
        if broken in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    both, errors = Two(), {}

    def epoch(rank: int) -> None:
        keep = Keep(RunFolder(tmp_path, writer=rank == 0), Best("val/accuracy", "max"))
        keep._validated = True
        try:
            keep.on_train_epoch_end(both.trainer(rank, tmp_path), None)  # type: ignore[arg-type]
        except Exception as error:
            errors[rank] = error

    threads = [threading.Thread(target=epoch, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {rank: type(error) for rank, error in errors.items()} == {0: RunError, 1: RunError}
    assert str(errors[0]) == str(errors[1])
    assert f"{broken}: the disk is full" in str(errors[1])


def test_the_bar_shows_loss_accuracy_and_rate(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    train(tiny.recipe(enable_progress_bar=True, max_epochs=1), RunFolder(tmp_path / "run"))
    shown = "".join(capfd.readouterr())
    assert all(word in shown for word in ("loss=", "acc=", "rate=")) and "v_num" not in shown
    assert issubclass(Bar, L.pytorch.callbacks.ProgressBar)


def test_a_layer_without_any_spike_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = tiny.content()
    content["trainer"]["max_epochs"] = 1
    folder = RunFolder(tmp_path / "firing")
    train(Recipe(content, name="tiny"), folder)
    assert "no spike" not in caplog.text
    content["model"]["init_args"]["network"][2]["init_args"]["threshold"] = 1e6
    train(Recipe(content, name="tiny"), RunFolder(tmp_path / "silent"))
    assert "no spike in the whole epoch from 2: what follows learns nothing" in caplog.text
