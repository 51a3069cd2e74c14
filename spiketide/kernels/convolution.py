"""A convolution over time (and space) that costs what the spikes of its input cost, and the choice how to do it.

Two ways ("engines"):

- ``"dense"``: torch's convolution, over time and batch as one axis of one image, channels last.
- ``"event"``: the nonzeros of the input are listed once; each place of the output gets the list of those that its kernel covers,
  named by tap and channel, and from there on it is the projection of :mod:`spiketide.kernels.projection`: rows of the kernel are
  added up in registers, forward and in the weight gradient. The gradient of the input is dense either way.

Both give the same numbers up to rounding, and those of the event way do not depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from ..errors import EngineError, unknown
from .projection import (
    ENGINES,
    TRUST,
    Events,
    _forward,
    _last,
    _numpy,
    _weight_gradient,
    choose,
    list_events,
    why_not,
)

SAMPLE = 4096
"""Places looked at first: dense input is recognised by these."""


class Geometry(NamedTuple):
    """How the places of an output see those of the input, in time and space.

    Args:
        dilation: steps between the taps of time.
        before, after: silent steps in front of the first and behind the last.
        strides, dilations, paddings: of each axis of space; zeros on both sides.
    """

    dilation: int = 1
    before: int = 0
    after: int = 0
    strides: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    paddings: tuple[int, ...] = ()

    def space(self, size: Sequence[int], kernel_size: Sequence[int]) -> tuple[int, ...]:
        """The size of space that comes out."""
        return tuple(
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, k, s, d, p in zip(
                size, kernel_size, self.strides, self.dilations, self.paddings, strict=True
            )
        )

    def sources(self, size: Sequence[int], kernel_size: Sequence[int]) -> np.ndarray[Any, Any]:
        """Which place of the input each place of the output sees through each tap of space; -1: none.

        Shapes:
            ``(taps, places out)`` int64, in row-major order both.
        """
        axes = []
        for n, m, k, s, d, p in zip(
            size,
            self.space(size, kernel_size),
            kernel_size,
            self.strides,
            self.dilations,
            self.paddings,
            strict=True,
        ):
            at = np.arange(m)[None, :] * s + np.arange(k)[:, None] * d - p  # (taps, places) of this axis
            axes.append(np.where((at >= 0) & (at < n), at, -1))
        found = np.zeros((1, 1), np.int64)
        for at, n in zip(axes, size, strict=True):
            joined = found[:, None, :, None] * n + at[None, :, None, :]
            outside = (found[:, None, :, None] < 0) | (at[None, :, None, :] < 0)
            found = np.where(outside, -1, joined).reshape(found.shape[0] * at.shape[0], -1)
        return found


def _spread_events(events: Events, shape: Sequence[int], weight: Tensor, geometry: Geometry) -> Events:
    """Events of ``x (T' B places, C)`` as those of every place of the output, over ``taps * C`` inputs."""
    from .convolution_cpu import count, spread

    steps, batch, *size = shape
    taps, *kernel_size = weight.shape[2:]
    source = geometry.sources(size, kernel_size)
    places = int(np.prod(size, dtype=np.int64))
    starts, columns, values = map(_numpy, events)
    out = steps + geometry.before + geometry.after - (taps - 1) * geometry.dilation
    counts = np.zeros(out * batch * source.shape[1], np.int64)
    numbers = (taps, geometry.dilation, geometry.before, steps, batch, places)
    count(starts, source, *numbers, counts)
    begin = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=begin[1:])
    named = np.empty(int(begin[-1]), np.int32)
    moved = np.empty(int(begin[-1]) if len(values) else 0, values.dtype)
    spread(starts, columns, values, source, *numbers, weight.shape[1], begin, named, moved)
    return Events(torch.from_numpy(begin), torch.from_numpy(named), torch.from_numpy(moved))


def _matrix(weight: Tensor) -> Tensor:
    """``(c_out, c_in, *kernel)`` as ``(c_out, taps c_in)``, stored input by input."""
    return weight.movedim(1, -1).flatten(1).t().contiguous().t()


def _with_an_axis(arguments: dict[str, Any]) -> dict[str, Any]:
    """Of an image of width one."""
    return {name: (*value, 0 if name == "padding" else 1) for name, value in arguments.items()}


def _arguments(batch: int, geometry: Geometry) -> dict[str, Any]:
    """What torch's convolution takes for the merged image ``(1, C, T' B, *space)``."""
    return {
        "stride": (1, *geometry.strides),
        "padding": (geometry.before * batch, *geometry.paddings),
        "dilation": (geometry.dilation * batch, *geometry.dilations),
    }


def _torch(dims: int) -> Any:
    return (functional.conv1d, functional.conv2d, functional.conv3d)[dims - 1]


def _last_memory(x: Tensor) -> Tensor:
    """An image with its channels last in memory; one of a single axis has no such form."""
    if x.dim() == 3:
        return x
    return x.contiguous(memory_format=torch.channels_last if x.dim() == 4 else torch.channels_last_3d)


def _dense(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, groups: int) -> Tensor:
    """``x (T', B, *space, C)`` -> ``(T, B, *space, c_out)``."""
    batch = x.shape[1]
    image = x.flatten(0, 1).unsqueeze(0).movedim(-1, 1)
    arguments = _arguments(batch, geometry)
    if geometry.before != geometry.after:
        ends = (geometry.before * batch, geometry.after * batch)
        image = functional.pad(image, (0, 0) * len(geometry.strides) + ends)
        arguments["padding"] = (0, *geometry.paddings)
    one_axis = not geometry.strides
    if one_axis:  # as an image of width one, which has a channels-last form
        image, weight = image.unsqueeze(-1), weight.unsqueeze(-1)
        arguments = _with_an_axis(arguments)
    y = _torch(image.dim() - 2)(_last_memory(image), _last_memory(weight), bias, groups=groups, **arguments)
    if one_axis:
        y = y.squeeze(-1)
    return y.movedim(1, -1).squeeze(0).unflatten(0, (-1, batch))


class _Convolve(torch.autograd.Function):
    """The event way under autograd."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, events: Events
    ) -> Tensor:
        ctx.geometry, ctx.shape = geometry, x.shape
        ctx.save_for_backward(*events, weight)
        space = geometry.space(x.shape[2:-1], weight.shape[3:])
        return _forward(events, _matrix(weight), bias).unflatten(0, (-1, x.shape[1], *space))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        starts, columns, values, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        gx = gw = gb = None
        if needs_x:
            gx = _input_gradient(gy, ctx.shape, weight, ctx.geometry)
        if needs_weight:
            rows = gy.reshape(-1, gy.shape[-1])
            taps = weight[0, 0].numel() * weight.shape[1]
            matrix, gb = _weight_gradient(Events(starts, columns, values), rows, taps, needs_bias)
            gw = matrix.unflatten(1, (*weight.shape[2:], weight.shape[1])).movedim(-1, 1)
        elif needs_bias:
            gb = gy.flatten(0, -2).sum(0)
        return gx, gw, gb, None, None


def _input_gradient(gy: Tensor, shape: Sequence[int], weight: Tensor, geometry: Geometry) -> Tensor:
    """The gradient of the input, dense: ``gy (T, B, *space, c_out)`` -> ``shape``."""
    steps, batch, *size = shape[:-1]
    arguments = _arguments(batch, geometry)
    even = geometry.before == geometry.after
    if not even:  # of the padded input, cut afterwards
        steps += geometry.before + geometry.after
        arguments["padding"] = (0, *geometry.paddings)
    cotangent = gy.flatten(0, 1).unsqueeze(0).movedim(-1, 1)
    wanted = [1, shape[-1], steps * batch, *size]
    if not geometry.strides:
        cotangent, weight, wanted = cotangent.unsqueeze(-1), weight.unsqueeze(-1), [*wanted, 1]
        arguments = _with_an_axis(arguments)
    gx = torch.ops.aten.convolution_backward(
        _last_memory(cotangent),
        gy.new_empty(1).expand(wanted),  # its values do not matter, only its shape
        _last_memory(weight),
        None,
        arguments["stride"],
        arguments["padding"],
        arguments["dilation"],
        False,
        (0,) * len(arguments["stride"]),
        1,
        (True, False, False),
    )[0]
    if not geometry.strides:
        gx = gx.squeeze(-1)
    gx = gx.movedim(1, -1).squeeze(0).unflatten(0, (steps, batch))
    return gx if even else gx[geometry.before : geometry.before + shape[0]]


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    geometry: Geometry = Geometry(),  # noqa: B008
    *,
    groups: int = 1,
    engine: str | None = None,
) -> Tensor:
    r"""Convolve over time and space, channels last.

    .. math:: y[t, b, q, o] = b_o + \sum_{k,l,c} w_{ockl}\; x[t + k d - before, b, source_l(q), c]

    Example:
        >>> import torch
        >>> from spiketide.kernels.convolution import Geometry, convolve
        >>> x = torch.tensor([0.0, 1.0, 0.0, 0.0]).view(4, 1, 1)
        >>> convolve(x, torch.tensor([[[1.0, 2.0]]]), geometry=Geometry(before=1), engine="event").flatten().tolist()
        [0.0, 2.0, 1.0, 0.0]

    Shapes:
        ``x (T', B, *space, c_in)``, ``weight (c_out, c_in / groups, K, *kernel)``, ``bias (c_out,)`` -> ``(T, B, *space,
        c_out)``, ``T = T' + before + after - (K - 1) dilation``; at least one step in and out.

    Args:
        x: the input, of any values; those that are exactly zero are skipped where that is cheaper.
        weight: the kernel; its first axis behind the channels is time.
        bias: added to every place.
        geometry: see :class:`Geometry`.
        groups: blocks of channels that do not see each other; then dense.
        engine: ``None`` to choose by cost; ``"dense"`` or ``"event"`` to force a way.

    Raises:
        EngineError: unknown engine, or ``"event"`` forced where it cannot run.
    """
    if engine is not None and engine not in ENGINES:
        raise EngineError(unknown("engine of a convolution", engine, ENGINES))
    reason = "it has groups" if groups != 1 else None if engine == "dense" else why_not(x, weight, bias)
    if torch.compiler.is_compiling():
        reason = "torch.compile traces it"
    if engine == "event" and reason:
        raise EngineError(
            f"the event-driven convolution cannot run here: {reason}. Leave engine=None to choose."
        )
    if engine != "dense" and not reason:
        flat = x.detach().reshape(-1, x.shape[-1])
        gradient = torch.is_grad_enabled() and weight.requires_grad
        taps = weight[0, 0].numel()
        events = None
        if engine == "event" or _worth_it(flat, weight.shape[0], taps, gradient):
            events = list_events(flat.contiguous(), weight.shape[0], gradient=gradient, engine="event")
        if events is not None and (
            engine == "event"
            or _cheaper(len(flat), x.shape[-1], weight.shape[0], taps, float(events.starts[-1]), gradient)
        ):
            with torch.no_grad():
                events = _spread_events(events, x.shape[:-1], weight, geometry)
            y: Tensor = _Convolve.apply(x, weight, bias, geometry, events)
            return y
    _last.engine = "dense"
    return _dense(x, weight, bias, geometry, groups)


def _cheaper(rows: int, n_in: int, n_out: int, taps: int, events: float, gradient: bool) -> bool:
    return choose(rows, n_in * taps, n_out, events * taps, gradient=gradient) == "event"


def _worth_it(x: Tensor, n_out: int, taps: int, gradient: bool) -> bool:
    """Whether some rows of ``x (rows, n_in)`` leave a chance that the event way is cheaper."""
    rows, n_in = x.shape
    seen = x[:: max(1, rows // SAMPLE)]
    events = float(torch.count_nonzero(seen)) * rows / max(1, len(seen))
    return _cheaper(rows, n_in, n_out, taps, TRUST * events, gradient)
