"""Supervised labelling of sequences: one label for every step."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import DataError, ParameterError, ShapeError
from ..layer import Layer
from ..shapes import time_mask
from ..types import UNLABELLED
from .task import Output, Task


class Labelling(Task):
    """A spiking network that is trained to name the class of every step, as it goes.

    ::

        scores[t] = network(encoder(x))[t]
        loss = cross-entropy of softmax(scores[t]), mean over the counted steps, + sum of the regularisers

    Counted are the valid steps of each sequence from ``skip`` on that have a label, and with ``class_weights`` one whose class
    has a weight above 0. A sequence none of whose steps counts trains nothing; of a batch without any the loss is 0, without a
    gradient. The prediction at ``t`` is the highest score at ``t``: nothing later is looked at, so the network can label a
    stream.

    Logged: ``accuracy`` over all valid steps, the first ``skip`` included; with ``unlabelled``, ``accuracy`` is the published
    score, in which a step without a label is taken for that class, and ``accuracy_labelled`` has the labelled steps alone.

    Example:
        >>> import torch
        >>> from spiketide import ALIF, Batch, Dense, LeakyIntegrator, Recurrent
        >>> from spiketide.training import Labelling
        >>> model = Labelling(
        ...     network=[Dense(4, 36), Recurrent(ALIF(36), Dense(36, 36)), Dense(36, 6), LeakyIntegrator(6, tau_mem=20.0)],
        ...     skip=10,
        ... )
        >>> model(Batch(torch.rand(50, 3, 4), torch.zeros(50, 3, dtype=torch.int64))).scores.shape
        torch.Size([50, 3, 6])

    Args:
        network: A layer, or a list of modules, which become a :class:`spiketide.compose.Sequential`; its last layer has one
            output a class.
        skip: First steps that are not trained on, while the membranes settle.
        unlabelled: The class that a step without a label counts as, in training and in ``accuracy``; ``None``: such steps
            count nowhere.
        label_smoothing: Share of the target spread evenly over the classes, in [0, 1).
        class_weights: Weight of each class in the loss, 0 for one that is not trained on; ``None``: all 1.
        tolerance: Steps by which a predicted onset may be off in the test's statistics
            (:func:`spiketide.segments.match_onsets`).
        near: Steps by which a predicted label may be off in ``test_accuracy_near`` (:func:`spiketide.segments.near`).
        **training: Encoder, regularisers and optimiser: see :class:`.task.Task`.

    Raises:
        ParameterError: a number out of range.
        ShapeError: labels that do not fit the steps.
        DataError: a label outside the classes.
        NonFiniteError: NaN or Inf in a batch.

    Reference:
        Yin et al. 2021, ECG: ``skip=10``, ``unlabelled=0`` (the P wave). Differs: the loss is the mean over the steps, theirs the
        sum; a factor that Adam does not see.
    """

    def __init__(
        self,
        network: Layer | list[nn.Module],
        *,
        skip: int = 0,
        unlabelled: int | None = None,
        label_smoothing: float = 0.0,
        class_weights: list[float] | None = None,
        tolerance: float = 0.0,
        near: int = 5,
        **training: Any,
    ):
        super().__init__(network, **training)
        if skip < 0:
            raise ParameterError(f"Labelling expected skip of 0 or more steps, got {skip!r}.")
        if unlabelled is not None and unlabelled < 0:
            raise ParameterError(
                f"Labelling expected unlabelled as a class from 0, or None, got {unlabelled!r}."
            )
        if not 0.0 <= label_smoothing < 1.0:
            raise ParameterError(f"Labelling expected label_smoothing in [0, 1), got {label_smoothing!r}.")
        if class_weights is not None and not (
            all(0 <= weight < math.inf for weight in class_weights) and any(class_weights)
        ):
            raise ParameterError(
                f"Labelling expected class_weights of 0 or more, one of them above 0, got {class_weights!r}."
            )
        if not tolerance >= 0:
            raise ParameterError(f"Labelling expected a tolerance of 0 or more steps, got {tolerance!r}.")
        if near < 0:
            raise ParameterError(f"Labelling expected near of 0 or more steps, got {near!r}.")
        self.tolerance, self.near = float(tolerance), int(near)
        self.skip = int(skip)
        self.unlabelled = unlabelled
        self.label_smoothing = float(label_smoothing)
        self.class_weights = None if class_weights is None else [float(weight) for weight in class_weights]

    def scores(self, y: Tensor, lengths: Tensor | None) -> Tensor:
        """The network's output itself, ``(T, B, C)``."""
        return y

    def evolve(self, output: Output) -> Tensor:
        """The network's output itself: each step is judged by itself."""
        return output.y

    def checked(self, y: Tensor, scores: Tensor) -> Tensor:
        """Labels ``(T, B)``, checked against the scores ``(T, B, C)``, with the class of the unlabelled steps filled in."""
        if y.shape != scores.shape[:2] or y.dtype != torch.int64:
            raise ShapeError(
                f"Labelling expected one int64 label a step, {tuple(scores.shape[:2])}, got {tuple(y.shape)} {y.dtype}: a layer "
                "with a tail makes sequences longer and cannot label steps; whole sequences with one label each are trained "
                "with Classification."
            )
        classes = scores.shape[2]
        if self.unlabelled is not None and self.unlabelled >= classes:
            raise ParameterError(
                f"Labelling expected unlabelled below {classes}, the outputs of the network, got {self.unlabelled}."
            )
        if y.numel() and not (int(y.min()) >= UNLABELLED and int(y.max()) < classes):
            raise DataError(
                f"Labelling expected labels from 0 to {classes - 1}, or {UNLABELLED} for none, got {int(y.min())} to "
                f"{int(y.max())}: does the last layer have one output per class?"
            )
        return y if self.unlabelled is None else torch.where(y == UNLABELLED, self.unlabelled, y)

    def targets(self, output: Output, y: Tensor) -> Tensor:
        """Labels ``(T, B)`` of the steps that are trained on; none at the others."""
        target = self.checked(y, output.scores)
        if self.truncate is None and self.skip >= len(target):
            raise ParameterError(
                f"Labelling expected skip below the {len(target)} steps of the sequences, got {self.skip}: no step would be "
                "trained on."
            )
        steps = torch.arange(output.first, output.first + len(target), device=target.device).unsqueeze(1)
        return torch.where((steps >= self.skip) & _valid(output, target), target, UNLABELLED)

    def criterion(self, scores: Tensor, y: Tensor) -> Tensor:
        """Cross-entropy over the steps with a label whose class has a weight; 0 if there is none."""
        weight = self._weights(scores)
        if not bool(self._counts(y, weight).any()):
            return scores.sum() * 0.0
        return functional.cross_entropy(
            scores.flatten(0, 1),
            y.flatten(),
            weight=weight,
            ignore_index=UNLABELLED,
            label_smoothing=self.label_smoothing,
        )

    def _weights(self, scores: Tensor) -> Tensor | None:
        weight = None if self.class_weights is None else scores.new_tensor(self.class_weights)
        if weight is not None and len(weight) != scores.shape[2]:
            raise ParameterError(f"Labelling expected {scores.shape[2]} class_weights, got {len(weight)}.")
        return weight

    def _counts(self, y: Tensor, weight: Tensor | None) -> Tensor:
        """True where the loss heeds a label."""
        labelled = y != UNLABELLED
        return labelled if weight is None else labelled & (weight > 0)[y.clamp(min=0)]

    def counted(self, output: Output, y: Tensor) -> int:
        """How many steps the loss is the mean of."""
        scores = output.scores
        return int(self._counts(self.targets(output, y), self._weights(scores)).sum())

    def measures(self, output: Output, y: Tensor) -> dict[str, tuple[Tensor, int]]:
        """``accuracy``, and with ``unlabelled`` also ``accuracy_labelled``."""
        predicted = output.scores.argmax(-1)
        valid = _valid(output, y)
        labelled = _share((predicted == y), valid & (y != UNLABELLED))
        if self.unlabelled is None:
            return {"accuracy": labelled}
        return {
            "accuracy": _share(predicted == self.checked(y, output.scores), valid),
            "accuracy_labelled": labelled,
        }

    def labels_of(self, y: Tensor, start: int, stop: int) -> Tensor:
        """The labels of the steps of a window."""
        return y[start:stop]


def _valid(output: Output, y: Tensor) -> Tensor:
    """True ``(T, B)`` at the steps before a sample's end."""
    if output.lengths is None:
        return torch.ones_like(y, dtype=torch.bool)
    return time_mask(output.lengths.to(y.device), len(y))


def _share(right: Tensor, counted: Tensor) -> tuple[Tensor, int]:
    count = int(counted.sum())
    return (right & counted).sum() / max(1, count), count
