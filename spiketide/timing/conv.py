"""Convolution of spike times: neurons that look at a window of an image and fire at most once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import ParameterError, ShapeError
from ..kernels import first_spike
from ..kernels.first_spike import Fired, Window
from ..shapes import is_whole
from .base import TimingLayer


class TimingConv2d(TimingLayer):
    r"""The same weights at every place of an image; each neuron of a map fires once at most.

    .. math:: V_{c,x}(t) = \sum_{c',q} w_{c,c',q}\, \varepsilon(t - t_{c',\,x+q})

    Zeros around the image are inputs that never fire. The update of a weight sums over all places.

    Example:
        >>> import torch
        >>> from spiketide.timing import TimingConv2d
        >>> layer = TimingConv2d(1, 4, 5, stop=64.0)
        >>> layer(torch.randint(0, 64, (2, 1, 12, 12)).float()).shape
        torch.Size([2, 4, 8, 8])

    Shapes:
        ``times (B, C, H, W)`` -> ``(B, n_out, H', W')`` with ``H' = (H + 2 padding - kernel) // stride + 1``. Parameters:
        ``weight (n_out, n_in / groups, kernel, kernel)``.

    Args:
        n_in: input channels.
        n_out: maps.
        kernel: side of the window, pixels.
        padding: pixels around the image that never fire.
        stride: pixels from one window to the next.
        groups: input channels and maps are split into so many groups that do not see each other.
        **layer: kernel over time, window of time, rule, binary weights: see :class:`.base.TimingLayer`.

    Raises:
        ParameterError: a number out of range, channels that groups do not divide.
        ShapeError: input of another rank or size, smaller than the window, or no tensor.
        NonFiniteError: NaN or negative times.

    Reference:
        Mirsadeghi et al., arXiv:2108.13621 (R-CSNN); kernel and rule as in :class:`.linear.TimingLinear`.
    """

    window: Window

    def __init__(
        self,
        n_in: int,
        n_out: int,
        kernel: int,
        *,
        padding: int = 0,
        stride: int = 1,
        groups: int = 1,
        **layer: Any,
    ):
        for name, size, least in (
            ("n_in", n_in, 1),
            ("n_out", n_out, 1),
            ("kernel", kernel, 1),
            ("padding", padding, 0),
            ("stride", stride, 1),
            ("groups", groups, 1),
        ):
            if not is_whole(size, least):
                raise ParameterError(
                    f"TimingConv2d expected {name} as an integer from {least} on, got {size!r}."
                )
        n_in, n_out, kernel, stride, padding, groups = map(
            int, (n_in, n_out, kernel, stride, padding, groups)
        )
        if n_in % groups or n_out % groups:
            raise ParameterError(
                f"TimingConv2d expected channels that {groups} groups divide, got {n_in} and {n_out}."
            )
        self.n_in, self.n_out = n_in, n_out
        self.window = Window((kernel, kernel), padding, stride, groups)
        super().__init__((n_out, n_in // groups, kernel, kernel), n_in // groups * kernel * kernel, **layer)

    def check(self, times: Tensor) -> None:
        """Refuse anything but ``(B, n_in, H, W)`` with room for one window."""
        if times.dim() != 4 or times.shape[1] != self.n_in:
            raise ShapeError(
                f"TimingConv2d expected spike times (B, {self.n_in}, H, W), got {tuple(times.shape)}."
            )
        if min(self.window.out((times.shape[2], times.shape[3]))) < 1:
            raise ShapeError(
                f"TimingConv2d with a window of {self.window.kernel} and padding {self.window.padding} expected larger images, "
                f"got {tuple(times.shape[2:])}."
            )

    def charge(self, times: Tensor, weight: Tensor, *, potential: bool, slope: bool = True) -> Fired:
        """See :func:`spiketide.kernels.first_spike.fire_conv`."""
        return first_spike.fire_conv(
            times,
            weight,
            self.psp.shape,
            self.window,
            threshold=self.threshold,
            stop=self.stop,
            exact=self.exact,
            potential=potential,
            slope=slope,
        )

    def mix(self, x: Tensor, weight: Tensor) -> Tensor:
        """The convolution."""
        window = self.window
        return F.conv2d(x, weight, padding=window.padding, stride=window.stride, groups=window.groups)

    def unmix(self, grad: Tensor, x: Tensor, weight: Tensor, wanted: tuple[bool, bool]) -> tuple[Any, Any]:
        """Its gradients."""
        window = self.window
        two = [window.stride] * 2, [window.padding] * 2, [1, 1]
        d, dw, _ = torch.ops.aten.convolution_backward(
            grad, x, weight, None, *two, False, [0, 0], window.groups, [*wanted, False]
        )
        return d, dw

    def extra_repr(self) -> str:
        """Sizes and settings, as ``print(layer)`` shows them."""
        window = self.window
        return (
            f"{self.n_in}, {self.n_out}, {window.kernel[0]}, padding={window.padding}, stride={window.stride}, "
            f"groups={window.groups}, {super().extra_repr()}"
        )
