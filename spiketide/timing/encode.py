"""From intensities to spike times, and between spike times and spike trains."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..errors import NonFiniteError, ParameterError, ShapeError
from ..shapes import check_tensor, is_whole


class IntensityToLatency(nn.Module):
    """Bright pixels fire early: ``t = floor((1 - x) span steps)``; dark ones never.

    Example:
        >>> import torch
        >>> from spiketide.timing import IntensityToLatency
        >>> IntensityToLatency(64, span=0.5)(torch.tensor([[1.0, 0.5, 0.01]])).tolist()
        [[0.0, 16.0, inf]]

    Shapes:
        ``x (B, *N)`` in [0, 1] -> spike times ``(B, *N)``, steps; ``inf``: never.

    Args:
        steps: of the window.
        span: part of the window over which the spikes are spread.
        threshold: darker inputs than this never fire.
        exact: do not round down to whole steps.

    Raises:
        ParameterError: a number out of range.
        NonFiniteError: NaN or infinity in the input.
        ShapeError: values outside [0, 1], integers, or no tensor.

    Reference:
        The latency code of S4NN with 255 levels; compression (``span``) after our own trials.
    """

    def __init__(
        self, steps: int = 64, *, span: float = 1.0, threshold: float = 10 / 255, exact: bool = False
    ):
        super().__init__()
        if not is_whole(steps):
            raise ParameterError(f"IntensityToLatency expected steps as a positive integer, got {steps!r}.")
        if not 0 < span <= 1 or not 0 <= threshold < 1:
            raise ParameterError(
                f"IntensityToLatency expected span in (0, 1] and threshold in [0, 1), got {span!r} and {threshold!r}."
            )
        self.steps, self.span, self.threshold, self.exact = (
            int(steps),
            float(span),
            float(threshold),
            bool(exact),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Spike times of intensities."""
        check_tensor("IntensityToLatency", x, "intensities from 0 to 1")
        if not x.is_floating_point():
            raise ShapeError(
                f"IntensityToLatency expected intensities in floating point, from 0 to 1, got {x.dtype}: x / 255 for bytes."
            )
        low, high = (float(end) for end in x.detach().aminmax()) if x.numel() else (0.0, 0.0)
        if not (math.isfinite(low) and math.isfinite(high)):
            raise NonFiniteError(
                f"IntensityToLatency got {int((~torch.isfinite(x)).sum())} NaN or Inf among {x.numel()} values: clean the data."
            )
        if low < 0 or high > 1:
            raise ShapeError(
                f"IntensityToLatency expected intensities from 0 to 1, got {low:g} to {high:g}: divide bytes by 255, or rescale."
            )
        if x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64) and not x.requires_grad:
            from ..kernels.latency_cpu import latency

            return latency(x, self.span * self.steps, self.threshold, exact=self.exact)
        times = (1 - x) * (self.span * self.steps)
        if not self.exact:
            times = times.floor()
        return times.masked_fill_(x < self.threshold, math.inf)

    def extra_repr(self) -> str:
        """Settings, as ``print`` shows them."""
        return f"{self.steps}, span={self.span:g}, threshold={self.threshold:g}, exact={self.exact}"


def to_train(times: Tensor, steps: int) -> Tensor:
    """Spike times as a spike train, time first, so that any layer of the library can go on with them.

    A time between two steps counts for the step that it lies in; times at or past the end are left out.

    Example:
        >>> import torch
        >>> from spiketide.timing import to_train
        >>> to_train(torch.tensor([[1.0, float("inf")]]), 3)[:, 0].tolist()
        [[0.0, 0.0], [1.0, 0.0], [0.0, 0.0]]

    Shapes:
        ``(B, *N)`` -> ``(steps, B, *N)``.

    Args:
        times: spike times.
        steps: of the train.

    Raises:
        ShapeError: no tensor.
    """
    check_tensor("to_train", times, "spike times (B, *N)")
    clock = torch.arange(steps, dtype=times.dtype, device=times.device)
    return (times.floor() == clock.view(-1, *[1] * times.dim())).to(times.dtype)


def to_times(train: Tensor) -> Tensor:
    """The first spike of every neuron of a spike train; ``inf`` without one.

    Example:
        >>> import torch
        >>> from spiketide.timing import to_times
        >>> to_times(torch.tensor([[[0.0, 0.0]], [[1.0, 0.0]], [[1.0, 0.0]]])).tolist()
        [[1.0, inf]]

    Shapes:
        ``(T, B, *N)`` -> ``(B, *N)``.

    Args:
        train: spikes, anything but 0 is one.

    Raises:
        ShapeError: no time axis and batch, or no tensor.
    """
    check_tensor("to_times", train, "a spike train (T, B, *N)")
    if train.dim() < 2 or train.shape[0] == 0:
        raise ShapeError(f"to_times expected a spike train (T, B, *N), got {tuple(train.shape)}.")
    spikes = train != 0
    kind = train.dtype if train.is_floating_point() else torch.get_default_dtype()
    return torch.where(spikes.any(0), spikes.to(torch.uint8).argmax(0).to(kind), math.inf)
