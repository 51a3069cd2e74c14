"""Which output spike should move where: the displacements that training starts from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import DataError, ParameterError, ShapeError
from ..kernels.first_spike import Fired
from .base import TimingLayer


class _Displace(torch.autograd.Function):
    """A number whose gradient with respect to the times is minus the displacement."""

    @staticmethod
    def forward(ctx: Any, times: Tensor, displacement: Tensor, value: Tensor) -> Tensor:
        ctx.save_for_backward(displacement)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (displacement,) = ctx.saved_tensors
        return -grad * displacement, None, None


def check_fired(name: str, fired: Fired) -> None:
    """Refuse spike times alone.

    Args:
        name: of what asks.
        fired: what was given.

    Raises:
        ParameterError: it is not what a network's output did.
    """
    if not isinstance(fired, Fired):
        raise ParameterError(
            f"{name} expected what the output did, spike times and potentials, got {type(fired).__name__}: "
            "fired, seen = network.follow(times), or layer.fire(times) of a single layer."
        )


class TimingLoss(nn.Module, ABC):
    """From the spikes of the outputs and the labels to displacements.

    Silent outputs take part with a virtual time behind the window (:meth:`.base.TimingLayer.virtual`), without which
    nothing would be learnt once the wrong ones are silent. The anchor asks a correct output that is later than ``anchor_at``
    of the window to come earlier by ``anchor`` windows, so that a spike decides and not the potential at the end.

    Args:
        anchor: strength; 0: none.
        anchor_at: part of the window after which it pulls.
        reach: windows between the end and the virtual time of an output without any potential; 0: silent ones fire at the end.

    Raises:
        ParameterError: a number out of range.
        ShapeError: labels that are no integers or do not fit the batch.
        DataError: labels that no output stands for.
    """

    def __init__(self, *, anchor: float = 0.0, anchor_at: float = 0.75, reach: float = 1.0):
        super().__init__()
        word = type(self).__name__
        if not (anchor >= 0 and reach >= 0):
            raise ParameterError(
                f"{word} expected anchor and reach of 0 or more, got {anchor!r} and {reach!r}."
            )
        if not 0 < anchor_at <= 1:
            raise ParameterError(
                f"{word} expected anchor_at above 0 and up to 1, a part of the window, got {anchor_at!r}."
            )
        self.anchor, self.anchor_at, self.reach = float(anchor), float(anchor_at), float(reach)

    def forward(self, layer: TimingLayer, fired: Fired, y: Tensor) -> Tensor:
        """The loss, a number; its gradient hands the displacements, averaged over the batch, to the output layer.

        Args:
            layer: the output layer.
            fired: what it did, ``(B, C)``.
            y: labels, ``(B,)``.
        """
        word = type(self).__name__
        check_fired(word, fired)
        size = tuple(fired.times.shape)
        if len(size) != 2 or y.shape != size[:1] or y.is_floating_point():
            raise ShapeError(
                f"{word} expected outputs (B, C) and whole labels (B,), got {size} and {tuple(y.shape)} of {y.dtype}."
            )
        y = y.long()
        if bool(((y < 0) | (y >= size[1])).any()):
            raise DataError(
                f"{word} has outputs 0 to {size[1] - 1}, got labels from {int(y.min())} to {int(y.max())}."
            )
        self.check(layer)
        with torch.no_grad():
            times = layer.virtual(fired, self.reach)
            d, value = self.displace(layer, times, torch.isfinite(fired.times), y)
        loss: Tensor = _Displace.apply(fired.times, d / len(y), value)
        return loss

    def check(self, layer: TimingLayer) -> None:
        """Refuse an output layer whose window is too short for this loss."""

    def pull(self, layer: TimingLayer, times: Tensor, y: Tensor) -> Tensor:
        """The anchor's share, ``(B, C)``, in windows."""
        late = times > layer.start + self.anchor_at * (layer.stop - layer.start)
        return -self.anchor * (late & F.one_hot(y, times.shape[1]).bool()).to(times.dtype)

    @abstractmethod
    def displace(self, layer: TimingLayer, times: Tensor, fired: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Displacements ``(B, C)`` and the value of the loss."""


class RelativeTargets(TimingLoss):
    """The right output where the first one is, every other one a margin behind it.

    ::

        t_min = min_k t_k       target_y = t_min       target_k = max(t_k, t_min + margin)       d_k = (target_k - t_k) / window

    Where no output fires, ``target_y`` is a margin before the window's end and the others stay.

    Example:
        >>> import torch
        >>> from spiketide.kernels.first_spike import Fired
        >>> from spiketide.timing import RelativeTargets, TimingLinear
        >>> times = torch.tensor([[10.0, 20.0]], requires_grad=True)
        >>> loss = RelativeTargets(margin=4.0, normalise=False)
        >>> loss(TimingLinear(1, 2, stop=64.0), Fired(times, times, times), torch.tensor([1])).backward()
        >>> (-64 * times.grad).tolist()  # the first should be 4 later, the right one 10 earlier
        [[4.0, -10.0]]

    Args:
        margin: steps.
        normalise: give the displacements of every sample the length (2-norm) 1.
        **common: anchor and virtual times: see :class:`TimingLoss`.

    Raises:
        ParameterError: a margin that is not positive, or not shorter than the window.

    Reference:
        Kheradpisheh & Masquelier 2020 (relative targets). Differs: silent outputs have virtual times, and targets are not cut
        at the end of the window.
    """

    def __init__(self, margin: float = 16.0, *, normalise: bool = True, **common: Any):
        super().__init__(**common)
        if not margin > 0:
            raise ParameterError(f"RelativeTargets expected a margin above 0 steps, got {margin!r}.")
        self.margin, self.normalise = float(margin), bool(normalise)

    def check(self, layer: TimingLayer) -> None:
        """The margin has to fit in the window."""
        if self.margin >= layer.stop - layer.start:
            raise ParameterError(
                f"RelativeTargets: a margin of {self.margin:g} steps does not fit into a window of {layer.stop - layer.start:g}: "
                "lower the margin or lengthen the window (stop)."
            )

    def displace(self, layer: TimingLayer, times: Tensor, fired: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        mine = F.one_hot(y, times.shape[1]).bool()
        first = times.amin(1, keepdim=True)
        spoken = fired.any(1, keepdim=True)
        target = torch.where(mine, first, torch.maximum(times, first + self.margin))
        silent = torch.where(mine, layer.stop - self.margin, times)
        d = (torch.where(spoken, target, silent) - times) / (layer.stop - layer.start)
        value = 0.5 * d.square().sum(1).mean()
        d = d + self.pull(layer, times, y)
        if self.normalise:
            length = d.norm(dim=1, keepdim=True)
            d = torch.where(length > 0, d / length.clamp(min=1e-30), 0)
        return d, value


class TimingCrossEntropy(TimingLoss):
    """Cross-entropy of ``softmax(-t / tau)``: the displacement is the probability, minus 1 for the right output.

    Example:
        >>> import torch
        >>> from spiketide.kernels.first_spike import Fired
        >>> from spiketide.timing import TimingCrossEntropy, TimingLinear
        >>> times = torch.tensor([[10.0, 10.0]], requires_grad=True)
        >>> TimingCrossEntropy(4.0)(TimingLinear(1, 2), Fired(times, times, times), torch.tensor([1])).backward()
        >>> times.grad.tolist()
        [[-0.5, 0.5]]

    Args:
        tau: steps; a difference of so many makes a ratio of e.
        smoothing: share of the target spread evenly over all classes.
        **common: anchor and virtual times: see :class:`TimingLoss`.

    Raises:
        ParameterError: ``tau`` is not positive or ``smoothing`` not in [0, 1).
    """

    def __init__(self, tau: float = 8.0, *, smoothing: float = 0.0, **common: Any):
        super().__init__(**common)
        if not tau > 0:
            raise ParameterError(f"TimingCrossEntropy expected tau above 0 steps, got {tau!r}.")
        if not 0 <= smoothing < 1:
            raise ParameterError(
                f"TimingCrossEntropy expected smoothing from 0 to below 1, got {smoothing!r}."
            )
        self.tau, self.smoothing = float(tau), float(smoothing)

    def displace(self, layer: TimingLayer, times: Tensor, fired: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        classes = times.shape[1]
        log_p = F.log_softmax(-times / self.tau, 1)
        target = F.one_hot(y, classes).to(times.dtype) * (1 - self.smoothing) + self.smoothing / classes
        return log_p.exp() - target + self.pull(layer, times, y), -(target * log_p).sum(1).mean()
