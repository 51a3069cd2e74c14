"""Losses on read-out scores, and penalties on recorded spikes.

The penalties take what :func:`spiketide.probe.record` recorded. Below, ``s[t, b, j]`` are the spikes of one
layer, ``K`` the number of valid steps of all samples (the sum of the lengths), and ``r_j = 1/K sum_{valid t,
b} s[t, b, j]`` the firing rate of neuron ``j`` in spikes per step. Steps past a sample's end count nowhere.
Penalties of several layers add up.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .errors import DataError, ParameterError, ShapeError, unknown
from .probe import Records, check_valid, neuron_rates, valid_steps
from .shapes import silence_padding


class CrossEntropy(nn.Module):
    """Cross-entropy of the softmax of the scores, mean over the batch.

    ::

        loss    = - mean_b sum_c q[b, c] log softmax_c(scores[b])
        q[b, c] = (1 - label_smoothing) [c = y[b]] + label_smoothing / C

    On scores of :class:`spiketide.readouts.SumSoftmax` this is the published loss of Yin and of Hammouamri, a
    softmax of a sum of softmaxes: with ``T`` votes the scores stay within [0, T] and differ by at most ``T``.

    Example:
        >>> import torch
        >>> from spiketide.losses import CrossEntropy
        >>> round(CrossEntropy()(torch.zeros(2, 10), torch.tensor([3, 7])).item(), 4)
        2.3026

    Shapes:
        ``scores``: ``(B, C)``; ``y``: ``(B,)`` int64; result: a scalar.

    Args:
        label_smoothing: Share of the target spread evenly over the classes, in [0, 1).

    Raises:
        ParameterError: ``label_smoothing`` outside [0, 1).
        ShapeError: wrong shapes or types.
        DataError: a label outside 0 to C - 1.
    """

    def __init__(self, *, label_smoothing: float = 0.0) -> None:
        super().__init__()
        if not 0.0 <= label_smoothing < 1.0:
            raise ParameterError(f"CrossEntropy expected label_smoothing in [0, 1), got {label_smoothing!r}.")
        self.label_smoothing = float(label_smoothing)

    def forward(self, scores: Tensor, y: Tensor) -> Tensor:
        """The loss, a scalar."""
        if scores.dim() != 2 or not scores.is_floating_point():
            raise ShapeError(
                f"CrossEntropy expected scores (B, C), got {tuple(scores.shape)} {scores.dtype}: "
                "put a read-out between the last layer and the loss."
            )
        if y.shape != scores.shape[:1] or y.dtype != torch.int64:
            hint = (
                " Labels of every step are trained with Labelling."
                if y.dim() == 2 and y.shape[1:] == scores.shape[:1]
                else ""
            )
            raise ShapeError(
                f"CrossEntropy expected labels ({scores.shape[0]},) of int64, got {tuple(y.shape)} {y.dtype}.{hint}"
            )
        if y.numel() and not (int(y.min()) >= 0 and int(y.max()) < scores.shape[1]):
            raise DataError(
                f"CrossEntropy expected labels from 0 to {scores.shape[1] - 1}, got {int(y.min())} to "
                f"{int(y.max())}: does the last layer have one output per class?"
            )
        return functional.cross_entropy(scores, y, label_smoothing=self.label_smoothing)


class Regulariser(nn.Module, ABC):
    """A penalty on spikes: ``penalty(spikes, lengths) -> scalar``, already times its weight.

    Shapes:
        ``spikes``: name -> ``(T, B, *N)``, from :func:`spiketide.probe.record` (its non-spiking layers are
        left out) or a plain dictionary; ``lengths``: ``(B,)`` or ``None``.

    Raises:
        DataError: nothing to penalise.
    """

    def __init__(self, weight: float) -> None:
        super().__init__()
        if not (weight >= 0.0 and math.isfinite(weight)):
            raise ParameterError(f"{type(self).__name__} expected a weight of 0 or more, got {weight!r}.")
        self.weight = float(weight)

    def forward(self, spikes: Mapping[str, Tensor], lengths: Tensor | None = None) -> Tensor:
        """The penalty, a scalar."""
        if isinstance(spikes, Records):
            spikes = spikes.spikes()
        if not spikes:
            raise DataError(
                f"{type(self).__name__} expected the spikes of at least one layer, got none: call the model "
                "inside `with record(model) as records:` and pass the records; the model needs a spiking "
                "neuron."
            )
        layers = list(spikes.values())
        parts = [self._penalty(s, lengths, (i + 1) / len(layers)) for i, s in enumerate(layers)]
        return self.weight * torch.stack(parts).sum()

    @abstractmethod
    def _penalty(self, s: Tensor, lengths: Tensor | None, depth: float) -> Tensor:
        """Penalty of one layer, without the weight; ``depth`` goes from 1/L to 1 at the last layer."""


class SpikeRate(Regulariser):
    """Holds firing rates down to a target: a squared hinge.

    ::

        per="neuron":   weight * mean_j max(0, r_j - target)^2
        per="layer":    weight * max(0, mean_j r_j - target)^2

    Example:
        >>> import torch
        >>> from spiketide.losses import SpikeRate
        >>> s = torch.ones(4, 1, 2)
        >>> s[:, :, 1] = 0
        >>> SpikeRate(target=0.5, weight=1.0)({"hidden": s}).item()
        0.125
        >>> SpikeRate(target=0.5, weight=1.0, per="layer")({"hidden": s}).item()
        0.0

    Args:
        target: Rate above which the penalty begins, in spikes per step, 0 to 1.
        weight: Factor of the penalty.
        per: ``"neuron"`` holds down each one, ``"layer"`` the mean of the layer.

    Raises:
        ParameterError: ``target`` outside [0, 1], a negative weight, an unknown ``per``.
    """

    def __init__(self, *, target: float, weight: float, per: str = "neuron") -> None:
        super().__init__(weight)
        if not 0.0 <= target <= 1.0:
            raise ParameterError(f"SpikeRate expected a target in [0, 1] spikes per step, got {target!r}.")
        if per not in ("neuron", "layer"):
            raise ParameterError(unknown("per", per, ("neuron", "layer")))
        self.target, self.per = float(target), per

    def _penalty(self, s: Tensor, lengths: Tensor | None, depth: float) -> Tensor:
        rates = neuron_rates(s, lengths)
        if self.per == "layer":
            rates = rates.mean()
        return (rates - self.target).relu().square().mean()


class Silence(Regulariser):
    """Wakes neurons that fire too little: a squared hinge from below.

    ::

        weight * mean_j max(0, minimum - r_j)^2

    A silent neuron gets a gradient at every step where its surrogate has one.

    Example:
        >>> import torch
        >>> from spiketide.losses import Silence
        >>> round(Silence(minimum=0.1, weight=1.0)({"hidden": torch.zeros(4, 1, 2)}).item(), 6)
        0.01

    Args:
        minimum: Rate below which the penalty begins, in spikes per step, above 0 and up to 1.
        weight: Factor of the penalty.

    Raises:
        ParameterError: ``minimum`` outside (0, 1], a negative weight.
    """

    def __init__(self, *, minimum: float, weight: float) -> None:
        super().__init__(weight)
        if not 0.0 < minimum <= 1.0:
            raise ParameterError(f"Silence expected a minimum in (0, 1] spikes per step, got {minimum!r}.")
        self.minimum = float(minimum)

    def _penalty(self, s: Tensor, lengths: Tensor | None, depth: float) -> Tensor:
        return (self.minimum - neuron_rates(s, lengths)).relu().square().mean()


class Activity(Regulariser):
    """Zimmer's activity loss: half the mean squared spike.

    ::

        weight * 1/2 mean_{valid t, b, j} s[t, b, j]^2              by_depth: times l / L for layer l of L

    Its value is half the mean rate, but its gradient is ``s / count``: only neurons that fired are pushed,
    and only at the steps where they did.

    Example:
        >>> import torch
        >>> from spiketide.losses import Activity
        >>> s = torch.ones(4, 1, 2)
        >>> round(Activity(weight=0.1)({"hidden": s}).item(), 6)
        0.05

    Args:
        weight: Factor of the penalty.
        by_depth: Penalise deeper layers more, in the order of the records.

    Raises:
        ParameterError: a negative weight.

    Reference:
        Pellegrini, Zimmer, Masquelier 2021, arXiv 2011.06846; the released code has weight 0.1 and
        ``by_depth``. There padding counts in the mean; here it does not.
    """

    def __init__(self, *, weight: float, by_depth: bool = False) -> None:
        super().__init__(weight)
        self.by_depth = by_depth

    def _penalty(self, s: Tensor, lengths: Tensor | None, depth: float) -> Tensor:
        check_valid(s, lengths)
        squares: Tensor = _Squares.apply(silence_padding(s, lengths))
        return 0.5 * (depth if self.by_depth else 1.0) * squares / (valid_steps(s, lengths) * s[0, 0].numel())


class _Squares(torch.autograd.Function):
    """The sum of squares, with a gradient in one pass over the spikes; torch's own takes six."""

    @staticmethod
    def forward(ctx: Any, s: Tensor) -> Tensor:
        ctx.save_for_backward(s)
        return torch.linalg.vector_norm(s).square()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (s,) = ctx.saved_tensors
        return s * (2 * grad)
