"""The loops of :mod:`.fixed_slope`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange
from torch import Tensor

from .threading import kernel

Array = np.ndarray[Any, Any]

BLOCK = 1 << 14
"""Elements that one thread takes at a time."""


@kernel(parallel=True)
def _activity(times: Array, start: Any, length: Any, out: Array, block: int) -> None:
    n = times.shape[0]
    zero = start * 0
    for part in prange((n + block - 1) // block):
        for i in range(np.uint64(part * block), np.uint64(min(n, (part + 1) * block))):
            out[i] = max((start - times[i]) / length, zero)


@kernel(parallel=True)
def _meet(
    v: Array, start: Any, length: Any, threshold: Any, never: Any, exact: bool, out: Array, block: int
) -> None:
    n = v.shape[0]
    one = length / length
    for part in prange((n + block - 1) // block):
        for i in range(np.uint64(part * block), np.uint64(min(n, (part + 1) * block))):
            t = start + length * (one - v[i] / threshold)
            t = max(t if exact else np.ceil(t), start)
            out[i] = t if t < start + length else never


@kernel(parallel=True)
def _stand(v: Array, start: Any, length: Any, threshold: Any, found: Array, out: Array, block: int) -> None:
    n = v.shape[0]
    for part in prange((n + block - 1) // block):
        for i in range(np.uint64(part * block), np.uint64(min(n, (part + 1) * block))):
            out[i] = v[i] + threshold * (min(found[i], start + length) - start) / length


@kernel(parallel=True)
def _release(grad: Array, found: Array, start: Any, threshold: Any, out: Array, block: int) -> None:
    n = grad.shape[0]
    zero = start * 0
    for part in prange((n + block - 1) // block):
        for i in range(np.uint64(part * block), np.uint64(min(n, (part + 1) * block))):
            out[i] = zero if found[i] <= start and grad[i] > zero else grad[i] / threshold


@kernel(parallel=True)
def _keep(grad: Array, x: Array, block: int) -> None:
    n = grad.shape[0]
    zero = grad.dtype.type(0)
    for part in prange((n + block - 1) // block):
        for i in range(np.uint64(part * block), np.uint64(min(n, (part + 1) * block))):
            grad[i] = grad[i] if x[i] > zero else zero


def _flat(*tensors: Tensor) -> list[Array]:
    return [tensor.view(-1).numpy() for tensor in tensors]


def activity(times: Tensor, start: float, length: float, out: Tensor) -> None:
    """See :func:`.fixed_slope.activity`."""
    t, x = _flat(times, out)
    kind = t.dtype.type
    _activity.sized(len(t), t, kind(start), kind(length), x, BLOCK)


def meet(
    v: Tensor, start: float, length: float, threshold: float, exact: bool, found: Tensor, at: Tensor
) -> None:
    """See :func:`.fixed_slope.meet`."""
    potential, t, standing = _flat(v.detach(), found, at)
    kind = t.dtype.type
    numbers = kind(start), kind(length), kind(threshold)
    _meet.sized(len(t), potential, *numbers, kind(np.inf), exact, t, BLOCK)
    if len(at):
        _stand.sized(len(t), potential, *numbers, t, standing, BLOCK)


def release(grad: Tensor, found: Tensor, start: float, threshold: float, out: Tensor) -> None:
    """See :func:`.fixed_slope.release`."""
    g, t, kept = _flat(grad.detach(), found, out)
    kind = g.dtype.type
    _release.sized(len(t), g, t, kind(start), kind(threshold), kept, BLOCK)


def keep(grad: Tensor, x: Tensor) -> None:
    """See :func:`.fixed_slope.keep`."""
    g, at = _flat(grad, x)
    _keep.sized(len(g), g, at, BLOCK)
