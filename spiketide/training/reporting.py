"""From a tested run to the plain numbers that a report shows."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn

from ..diagnose import Diagnosis, diagnose
from ..errors import RunError
from ..probe import is_spiking
from ..report import ReportData, Row, SampleTrace, choose_samples, write_report
from ..types import Batch, leaves
from .callbacks import Reseed
from .classification import Classification, Output
from .folder import RunFolder
from .operations import Operations, count_operations
from .recipe import Built, Recipe

SAMPLES, WRONG, MEMBRANES = 6, 2, 5
"""Samples a report shows, how many of them misclassified, and membranes a layer."""


class Collector(L.Callback):
    """What the test data showed: predictions, rates of every neuron, synaptic operations."""

    def __init__(self) -> None:
        self.labels: list[Tensor] = []
        self.predictions: list[Tensor] = []
        self.operations = Operations()
        self._counts: dict[str, Tensor] = {}
        self._steps = 0.0
        self._stack = ExitStack()

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin to count operations."""
        self.operations = self._stack.enter_context(count_operations(pl_module.network))

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Take in one batch."""
        output: Output = outputs
        self.labels.append(batch.y.cpu())
        self.predictions.append(output.scores.argmax(-1).cpu())
        self.operations.samples += batch.y.shape[0]
        steps = output.y.shape[0] * output.y.shape[1] if output.lengths is None else int(output.lengths.sum())
        self._steps += steps
        for name, spikes in output.spikes.items():
            count = spikes.sum((0, 1), dtype=torch.float64).flatten().cpu()
            self._counts[name] = self._counts.get(name, 0) + count

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop counting."""
        self._stack.close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Stop counting."""
        self._stack.close()

    @property
    def samples(self) -> int:
        """Test samples seen."""
        return sum(len(labels) for labels in self.labels)

    @property
    def accuracy(self) -> float:
        """Share of test samples predicted right."""
        right = sum(int((a == b).sum()) for a, b in zip(self.labels, self.predictions, strict=True))
        return right / self.samples

    @property
    def rates(self) -> dict[str, np.ndarray]:
        """Layer -> spikes per step of each neuron."""
        return {name: (count / self._steps).numpy() for name, count in self._counts.items()}

    def confusion(self, classes: int) -> np.ndarray:
        """Counts ``(C, C)``, rows true."""
        pairs = torch.cat(self.labels) * classes + torch.cat(self.predictions)
        return torch.bincount(pairs, minlength=classes**2).reshape(classes, classes).numpy()

def make_report(*a): pass
def rewrite_report(*a): pass
def diagnose_recipe(*a): pass
