"""The elementwise parts of a layer whose membranes climb at one speed: one pass each, where torch takes several.

See :class:`spiketide.timing.FixedSlope`. On the CPU each pass is a compiled loop into memory that is used again; elsewhere it is
torch's own operations.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .memory import empty


def activity(times: Tensor, start: float, length: float) -> Tensor:
    """``max((start - t) / length, 0)``: what a spike has brought when the window opens; 0 for ``inf``.

    Shapes:
        any.
    """
    if times.device.type != "cpu":
        return ((start - times) / length).clamp_(min=0)
    from . import fixed_slope_cpu

    times = times.detach().contiguous()
    out = empty(times.shape, times.dtype)
    fixed_slope_cpu.activity(times, start, length, out)
    return out


def meet(
    v: Tensor, start: float, length: float, threshold: float, *, exact: bool, potential: bool
) -> tuple[Tensor, Tensor]:
    """When a membrane that stands at ``v`` as the window opens meets its threshold, and its potential at that time.

    Args:
        v: potentials at ``start``.
        start: when the window opens, steps.
        length: of the window, steps.
        threshold: of the membrane.
        exact: between the steps; else the first whole step.
        potential: whether the potentials are wanted; else they come back empty.
    """
    if v.device.type != "cpu":
        found = start + length * (1 - v / threshold)
        found = (found if exact else found.ceil()).clamp(min=start)
        silent = found >= start + length
        at = v + threshold * (torch.where(silent, start + length, found) - start) / length
        return found.masked_fill(silent, math.inf), at if potential else v[:0]
    from . import fixed_slope_cpu

    v = v.contiguous()
    found = empty(v.shape, v.dtype)
    at = torch.empty_like(v) if potential else v[:0]
    fixed_slope_cpu.meet(v, start, length, threshold, exact, found, at)
    return found, at


def release(grad: Tensor, found: Tensor, start: float, threshold: float) -> Tensor:
    """``grad / threshold``, 0 where a neuron that fires as its window opens should fire earlier: it cannot.

    Shapes:
        both alike.
    """
    if grad.device.type != "cpu":
        return torch.where((found <= start) & (grad > 0), 0, grad / threshold)
    from . import fixed_slope_cpu

    grad = grad.contiguous()
    out = empty(grad.shape, grad.dtype)
    fixed_slope_cpu.release(grad, found.contiguous(), start, threshold, out)
    return out


def keep(grad: Tensor, x: Tensor) -> Tensor:
    """``grad`` where the input was active, 0 where it was not; a fresh ``grad`` on the CPU is overwritten.

    Shapes:
        both alike.
    """
    if grad.device.type != "cpu" or not grad.is_contiguous():
        return torch.where(x > 0, grad, 0)
    from . import fixed_slope_cpu

    fixed_slope_cpu.keep(grad, x.contiguous())
    return grad
