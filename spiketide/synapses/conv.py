"""Convolutions in space: the same kernel at every step and at every place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import ParameterError, ShapeError
from ..layer import check_lengths
from ..shapes import check_dtype, no_tensor
from .base import Synapse, independent, per_axis, positive, uniform_


class _Conv(Synapse):
    """A convolution over ``axes`` spatial axes, time and batch merged."""

    axes: ClassVar[int]
    names: ClassVar[str]
    convolve: ClassVar[Callable[..., Tensor]]

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel_size: Any,
        stride: Any,
        padding: Any,
        dilation: Any,
        groups: int,
        bias: bool,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        self.c_in = positive(name, "c_in", c_in)
        self.c_out = positive(name, "c_out", c_out)
        self.kernel_size = per_axis(name, "kernel_size", kernel_size, self.axes, 1)
        self.stride = per_axis(name, "stride", stride, self.axes, 1)
        self.padding = per_axis(name, "padding", padding, self.axes, 0)
        self.dilation = per_axis(name, "dilation", dilation, self.axes, 1)
        self.groups = positive(name, "groups", groups)
        if c_in % groups or c_out % groups:
            raise ParameterError(
                f"{name} expected groups to divide c_in and c_out, got groups={groups}, "
                f"c_in={c_in}, c_out={c_out}."
            )
        self.weight = nn.Parameter(torch.empty(c_out, c_in // groups, *self.kernel_size))
        self.bias = nn.Parameter(torch.empty(c_out)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weights and bias anew."""
        fan_in = self.weight[0].numel()
        uniform_(self.weight, fan_in)
        if self.bias is not None:
            uniform_(self.bias, fan_in)

    def rows(self) -> Tensor:
        """What each output channel weighs ``(c_out, K)``."""
        return independent(self.weight.flatten(1), self.groups)

    def output_size(self, *size: int) -> tuple[int, ...]:
        """The spatial size that comes out for one that goes in; below one where the kernel does not fit."""
        return tuple(
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, k, s, p, d in zip(
                size, self.kernel_size, self.stride, self.padding, self.dilation, strict=True
            )
        )

    def check(self, x: Tensor, lengths: Tensor | None) -> None:
        """Refuse anything but ``(T, B, c_in, *space)`` with room for the kernel."""
        name = type(self).__name__
        wanted = f"(T, B, {self.c_in}, {self.names})"
        if not isinstance(x, Tensor):
            raise ShapeError(f"{name} expected a tensor {wanted}, got {type(x).__name__}.{no_tensor(x)}")
        if not x.is_floating_point():
            raise ShapeError(
                f"{name} expected floating point input, got {x.dtype}: spikes are floats here, "
                "convert with x.float()."
            )
        if x.dim() != 3 + self.axes:
            hint = " For a single step add the time axis: x.unsqueeze(0)." if x.dim() == 2 + self.axes else ""
            raise ShapeError(f"{name} expected {wanted}, got {tuple(x.shape)} with {x.dim()} axes.{hint}")
        if x.shape[2] != self.c_in:
            raise ShapeError(
                f"{name} expected {wanted}, got {tuple(x.shape)} with {x.shape[2]} channels on axis 2: the "
                "order is time, batch, channels, space; bring the axes there with x.movedim."
            )
        if min(self.output_size(*x.shape[3:])) < 1:
            raise ShapeError(
                f"{name} with kernel {self.kernel_size}, dilation {self.dilation} and padding {self.padding} "
                f"expected a space that its kernel fits into, got {tuple(x.shape[3:])} in {tuple(x.shape)}: "
                "pad more or take a smaller kernel."
            )
        if lengths is not None:
            check_lengths(name, x, lengths)
        check_dtype(self, x, self.weight)

    def apply_steps(self, x: Tensor) -> Tensor:
        """Convolve every step."""
        y = type(self).convolve(
            x.flatten(0, 1), self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups
        )
        return y.unflatten(0, x.shape[:2])

    def extra_repr(self) -> str:
        """Sizes, as ``print(layer)`` shows them."""
        return (
            f"{self.c_in}, {self.c_out}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, dilation={self.dilation}, groups={self.groups}, "
            f"bias={self.bias is not None}"
        )


class Conv1d(_Conv):
    r"""Convolve over one spatial axis, each step by itself (to convolve over time is another layer).

    .. math:: y_o[t, l] = b_o + \sum_{c,k} w_{ock}\, x_c[t,\; l \cdot stride + k \cdot dilation - padding]

    The weights begin uniform in ``±1/sqrt(fan_in)``, ``fan_in = c_in / groups * kernel_size`` (Kaiming's
    rule with the gain of :class:`torch.nn.Conv1d`), and so does the bias.

    Example:
        >>> import torch
        >>> from spiketide.synapses import Conv1d
        >>> y, state = Conv1d(2, 8, 5, padding=2)(torch.zeros(10, 4, 2, 40))
        >>> tuple(y.shape)
        (10, 4, 8, 40)

    Shapes:
        ``x (T, B, c_in, L)`` -> ``y (T, B, c_out, L_out)``, state ``()``. Parameters: ``weight (c_out, c_in
        / groups, K)``, ``bias (c_out,)`` or ``None``.

    Args:
        c_in: channels in.
        c_out: channels out.
        kernel_size: places the kernel spans.
        stride: places between outputs.
        padding: zeros added on either side.
        dilation: places between kernel entries.
        groups: blocks of channels that do not see each other.
        bias: add a learnt offset per channel.

    Raises:
        ParameterError: a size out of range, or groups that do not divide the channels.
        ShapeError: input of another rank or channel number, of integers, or too small for the kernel.
    """

    axes = 1
    names = "L"
    convolve = staticmethod(functional.conv1d)

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel_size: int,
        *,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__(c_in, c_out, kernel_size, stride, padding, dilation, groups, bias)


class Conv2d(_Conv):
    r"""Convolve over two spatial axes, each step by itself.

    .. math:: y_o[t, h, w] = b_o + \sum_{c,k,l} w_{ockl}\, x_c[t,\; h s + k d - p,\; w s + l d - p]

    with stride s, dilation d and padding p of each axis.

    The weights begin uniform in ``±1/sqrt(fan_in)``, ``fan_in = c_in / groups * kernel height * kernel
    width`` (Kaiming's rule with the gain of :class:`torch.nn.Conv2d`), and so does the bias.

    Example:
        >>> import torch
        >>> from spiketide.synapses import Conv2d
        >>> y, state = Conv2d(2, 8, (3, 5), stride=2, padding=(1, 2))(torch.zeros(10, 4, 2, 28, 28))
        >>> tuple(y.shape)
        (10, 4, 8, 14, 14)

    Shapes:
        ``x (T, B, c_in, H, W)`` -> ``y (T, B, c_out, H_out, W_out)``, state ``()``. Parameters:
        ``weight (c_out, c_in / groups, K_h, K_w)``, ``bias (c_out,)`` or ``None``.

    Args:
        c_in: channels in.
        c_out: channels out.
        kernel_size: places the kernel spans; one number, or one for each of height and width.
        stride: places between outputs; one or two numbers.
        padding: zeros added on either side; one or two numbers.
        dilation: places between kernel entries; one or two numbers.
        groups: blocks of channels that do not see each other.
        bias: add a learnt offset per channel.

    Raises:
        ParameterError: a size out of range, or groups that do not divide the channels.
        ShapeError: input of another rank or channel number, of integers, or too small for the kernel.
    """

    axes = 2
    names = "H, W"
    convolve = staticmethod(functional.conv2d)

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel_size: int | tuple[int, int],
        *,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__(c_in, c_out, kernel_size, stride, padding, dilation, groups, bias)
