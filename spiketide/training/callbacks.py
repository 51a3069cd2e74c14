"""What watches a training run: seeds, history and checkpoints, the progress bar."""

from __future__ import annotations

import csv
import hashlib
import io
import logging
import math
import time
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint, TQDMProgressBar

from ..errors import RunError, unknown
from .folder import RunFolder
from .recipe import Best

log = logging.getLogger("spiketide")


def derive(*parts: object) -> int:
    """A seed of 32 bits from anything: near parts give unrelated seeds."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4], "big")


class Reseed(L.Callback):
    """Random numbers as a function of (seed, epoch, process), so a resumed epoch draws what it would have drawn.

    Nothing has to be saved for that, and every process of a distributed run comes back to its own stream.
    Validation draws the same numbers in every epoch: a Poisson encoder then shows the same spikes each time and
    epochs are compared on the same inputs. Each test batch has its own seed, so it can be shown again as it was.
    """

    def __init__(self, seed: int):
        self.seed = seed

    def _seed(self, trainer: L.Trainer, *parts: object) -> None:
        L.seed_everything(derive(self.seed, trainer.global_rank, *parts), verbose=False)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Seed the training steps of this epoch."""
        self._seed(trainer, "train", trainer.current_epoch)

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Seed the validation."""
        self._seed(trainer, "validation")

    def on_test_batch_start(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Seed one test batch."""
        self.test_batch(self.seed, batch_idx)

    @staticmethod
    def test_batch(seed: int, batch_idx: int) -> None:
        """Draw what a test batch drew."""
        L.seed_everything(derive(seed, "test", batch_idx), verbose=False)


RATE = "train/rate/"
"""How the metrics are named that count the spikes of one layer."""


class Keep(Checkpoint):
    """At the end of every epoch: a row of history, ``best.ckpt`` if it is better, ``last.ckpt``, the metrics files.

    The history lives in the checkpoint, so a resumed run continues it, and rows of an epoch that was cut short are
    never doubled. Lightning's own CSV logger empties its folder when a run is resumed.

    Raises:
        RunError: the monitored metric is not logged, training diverged to a loss that is not a number, or a file
            cannot be written.
    """

    def __init__(self, folder: RunFolder, best: Best):
        self.folder = folder
        self.choice = best
        self.history: list[dict[str, float]] = []
        self.best: dict[str, float] | None = None
        self._began = 0.0
        self._validated = False

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"history": self.history, "best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From the checkpoint."""
        self.history, self.best = state_dict["history"], state_dict["best"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A run that had run out of patience when it was cut short stops again."""
        trainer.should_stop = self._out_of_patience

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._began = time.perf_counter()
        self._validated = False

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remember that this epoch has validation metrics of its own."""
        self._validated = True

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write everything; the best checkpoint before the last, so that a kill between them repeats the epoch."""
        row: dict[str, float] = {"epoch": trainer.current_epoch}
        for name, value in sorted(trainer.callback_metrics.items()):
            if name.startswith("train/") or (name.startswith("val/") and self._validated):
                row[name] = float(value)
        row["lr"] = float(trainer.optimizers[0].param_groups[0]["lr"])
        row["seconds"] = round(time.perf_counter() - self._began, 3)
        if not math.isfinite(row.get("train/loss", 0.0)):
            raise RunError(
                f"the training loss became {row['train/loss']} in epoch {row['epoch']}. Lower the learning rate "
                "(--model.lr) or clip the gradient (--model.clip norm --model.clip_at 1.0)."
            )
        self.history.append(row)
        better = self._is_better(row)
        if better:
            self.best = row
            self._save(trainer, self.folder.best)
        self._save(trainer, self.folder.last)
        failed: list[Exception] = []
        try:
            self.write()
        except RunError as error:
            failed.append(error)
        _tell_all(trainer, failed)
        log.info(self._line(row, better))
        silent = [
            name.removeprefix(RATE) for name, value in row.items() if name.startswith(RATE) and not value
        ]
        if silent:
            log.warning(
                "no spike in the whole epoch from %s: what follows learns nothing from it; see spiketide diagnose %s",
                ", ".join(silent),
                self.folder.path,
            )
        if self._out_of_patience:
            log.info("no better %s for %d epochs: stopping", self.choice.metric, self.choice.patience)
            trainer.should_stop = True

    def _save(self, trainer: L.Trainer, path: Path) -> None:
        failed: list[Exception] = []
        trainer.save_checkpoint(path, storage_options=failed)
        _tell_all(trainer, failed)

    def write(self, *, finished: bool = False) -> None:
        """``metrics.csv`` and ``metrics.json`` as of now."""
        names = list(dict.fromkeys(name for row in self.history for name in row))
        table = io.StringIO()
        writer = csv.DictWriter(table, names)
        writer.writeheader()
        writer.writerows(self.history)
        self.folder.write("metrics.csv", table.getvalue())
        content = {
            "finished": finished,
            "epochs": len(self.history),
            "seconds": round(sum(row["seconds"] for row in self.history), 3),
            "best": self.best,
            "history": self.history,
        }
        self.folder.write_json("metrics.json", content)

    def _is_better(self, row: dict[str, float]) -> bool:
        metric = self.choice.metric
        if metric not in row:
            if not self._validated and metric.startswith("val/"):
                return False
            raise RunError("best.metric: " + unknown("metric", metric, set(row) - {"epoch", "seconds"}))
        if self.best is None:
            return True
        sign = 1 if self.choice.mode == "max" else -1
        return sign * row[metric] > sign * self.best[metric]

    @property
    def started(self) -> bool:
        """Whether an epoch was begun."""
        return self._began > 0

    @property
    def _out_of_patience(self) -> bool:
        if self.choice.patience is None or self.best is None:
            return False
        return self.history[-1]["epoch"] - self.best["epoch"] >= self.choice.patience

    def _line(self, row: dict[str, float], better: bool) -> str:
        shown = {"loss": "train/loss", "acc": "train/accuracy", "rate": "train/rate"}
        shown |= {"val loss": "val/loss", "val acc": "val/accuracy"}
        parts = [f"{word} {row[name]:.4f}" for word, name in shown.items() if name in row]
        mark = " *" if better else ""
        return f"epoch {row['epoch']:.0f}  " + "  ".join(parts) + f"  {row['seconds']:.1f} s{mark}"


def _tell_all(trainer: L.Trainer, failed: list[Exception]) -> None:
    """Raise in every process what went wrong in the one that writes: the others would wait for it for ever."""
    message = trainer.strategy.broadcast(str(failed[0]) if failed else None)
    if failed:
        raise failed[0]
    if message is not None:
        raise RunError(message)


class Bar(TQDMProgressBar):
    """The progress bar with loss, accuracy and firing rate, and nothing else."""

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """The logged values without the version number."""
        items = super().get_metrics(trainer, pl_module)
        items.pop("v_num", None)
        return items
