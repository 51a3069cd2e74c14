"""Between layers of spike times: pooling, flattening, dropout."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ..errors import ParameterError, ShapeError
from ..shapes import check_tensor, is_whole


def _size(word: str, size: int) -> int:
    if not is_whole(size):
        raise ParameterError(f"{word} expected size as a positive integer, got {size!r}.")
    return int(size)


def _image(word: str, times: Tensor, size: int) -> None:
    check_tensor(word, times, "spike times (B, C, H, W)")
    if times.dim() != 4 or min(times.shape[2:]) < size:
        raise ShapeError(
            f"{word} expected spike times (B, C, H, W) of {size} x {size} or more, got {tuple(times.shape)}."
        )


class _Earliest(torch.autograd.Function):
    """The compiled form for the CPU."""

    @staticmethod
    def forward(ctx: Any, times: Tensor, size: int) -> Tensor:
        from ..kernels import first_spike_cpu

        first = first_spike_cpu.pool(times, size)
        ctx.save_for_backward(times, first)
        ctx.size = size
        return first

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        from ..kernels import first_spike_cpu

        times, first = ctx.saved_tensors
        return first_spike_cpu.pool_back(times, first, grad, ctx.size), None


class EarliestPool2d(nn.Module):
    """The first spike of each window, as a maximum is the strongest activity.

    A displacement goes to the neuron that fired first (the first in reading order among equals) and to no other. Rows and
    columns that fill no whole window are left out.

    Example:
        >>> import torch
        >>> from spiketide.timing import EarliestPool2d
        >>> EarliestPool2d(2)(torch.tensor([[[[3.0, 5.0], [float("inf"), 4.0]]]])).tolist()
        [[[[3.0]]]]

    Shapes:
        ``(B, C, H, W)`` -> ``(B, C, H // size, W // size)``.

    Args:
        size: side of the windows, pixels.

    Raises:
        ParameterError: a size that is not a positive integer.
        ShapeError: input that is no image of times, or too small.
    """

    def __init__(self, size: int = 2):
        super().__init__()
        self.size = _size("EarliestPool2d", size)

    def forward(self, times: Tensor) -> Tensor:
        """The earliest time of each window."""
        _image("EarliestPool2d", times, self.size)
        if times.device.type != "cpu" or times.dtype not in (torch.float32, torch.float64):
            return -F.max_pool2d(-times, self.size)
        first: Tensor = _Earliest.apply(times, self.size)
        return first

    def extra_repr(self) -> str:
        """The size, as ``print`` shows it."""
        return str(self.size)


class AveragePool2d(nn.Module):
    """The mean time of each window, silent neurons counted as firing at its end; silent where all are.

    One spike more may be needed than the inputs gave: a unit that averages is a neuron of its own. A displacement is
    shared among those that fired.

    Example:
        >>> import torch
        >>> from spiketide.timing import AveragePool2d
        >>> AveragePool2d(2, stop=8.0)(torch.tensor([[[[2.0, 4.0], [float("inf"), 4.0]]]])).tolist()
        [[[[4.5]]]]

    Shapes:
        ``(B, C, H, W)`` -> ``(B, C, H // size, W // size)``.

    Args:
        size: side of the windows, pixels.
        stop: end of the window of time, steps.

    Raises:
        ParameterError: a size that is not a positive integer, a stop that is not positive.
        ShapeError: input that is no image of times, or too small.
    """

    def __init__(self, size: int = 2, *, stop: float = 64.0):
        super().__init__()
        self.size = _size("AveragePool2d", size)
        if not 0 < stop < math.inf:
            raise ParameterError(f"AveragePool2d expected stop as a positive number of steps, got {stop!r}.")
        self.stop = float(stop)

    def forward(self, times: Tensor) -> Tensor:
        """The mean of each window."""
        _image("AveragePool2d", times, self.size)
        mean = F.avg_pool2d(torch.where(torch.isfinite(times), times, self.stop), self.size)
        return torch.where(mean < self.stop, mean, math.inf)

    def extra_repr(self) -> str:
        """Settings, as ``print`` shows them."""
        return f"{self.size}, stop={self.stop:g}"


class Flatten(nn.Module):
    """``(B, *N)`` to ``(B, n)``.

    Example:
        >>> import torch
        >>> from spiketide.timing import Flatten
        >>> Flatten()(torch.zeros(2, 3, 4, 4)).shape
        torch.Size([2, 48])
    """

    def forward(self, times: Tensor) -> Tensor:
        """Everything but the samples in one axis."""
        check_tensor("Flatten", times, "spike times (B, *N)")
        return times.flatten(1)


class Silence(nn.Module):
    """Dropout for spike times: while training, each neuron is silenced with probability ``p``.

    Nothing is scaled up in return, so the neurons behind reach their threshold later. With ``end`` the remaining spikes come
    earlier instead, ``t -> end - (end - t) / (1 - p)``, which keeps the mean potential under ramps that end at ``end``
    (:class:`.psp.FixedSlope`); a spike that would come before 0 comes at 0.

    Example:
        >>> import torch
        >>> from spiketide.timing import Silence
        >>> times = torch.zeros(2, 1000)
        >>> layer = Silence(0.2)
        >>> bool(torch.isinf(layer(times)).any()), bool(torch.isinf(layer.eval()(times)).any())
        (True, False)

    Args:
        p: share of neurons that are silenced.
        end: when the ramps of the layer behind end, steps (its ``start``); ``None``: the remaining spikes stay.

    Raises:
        ParameterError: ``p`` is not in [0, 1), ``end`` is not positive.
    """

    def __init__(self, p: float = 0.2, *, end: float | None = None):
        super().__init__()
        if not 0 <= p < 1:
            raise ParameterError(f"Silence expected p from 0 to below 1, got {p!r}.")
        if end is not None and not 0 < end < math.inf:
            raise ParameterError(f"Silence expected end as a positive number of steps, or None, got {end!r}.")
        self.p, self.end = float(p), end

    def forward(self, times: Tensor) -> Tensor:
        """Some are silenced, in training only."""
        check_tensor("Silence", times, "spike times")
        if not self.training or self.p == 0:
            return times
        silenced = torch.rand_like(times) < self.p
        if self.end is not None:
            # inf stays inf; layers refuse negative times
            times = (self.end - (self.end - times) / (1 - self.p)).clamp(min=0)
        return times.masked_fill(silenced, math.inf)

    def extra_repr(self) -> str:
        """Settings, as ``print`` shows them."""
        return f"p={self.p}, end={self.end}"
