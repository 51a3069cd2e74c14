"""Delayed projections of a few taps on the GPU: every synapse gathers its input at its own delay.

One program takes a sample, a span of time and a block of outputs, and walks through the synapses: each adds its taps times the
input, read at the outputs' own delays from lines of time that stay in the caches. The gradient of the input is the same kernel
with inputs and outputs exchanged; the gradient of the taps is one sum over samples and time for every synapse, in a fixed order.

Not measured on a device: correct in Triton's interpreter, and compiled ahead of time.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

STEPS, OUTPUTS = 32, 32
"""Steps and outputs of a program."""


@triton.jit
def project_kernel(  # type: ignore[no-untyped-def]
    x_,
    w_,
    first_,
    y_,
    steps,
    given,
    before,
    batch,
    inputs,
    outputs,
    COPIES: tl.constexpr,
    TAPS: tl.constexpr,
    BT: tl.constexpr,
    BO: tl.constexpr,
):
    """``y[t, b, o] = sum over q, n of w[o, q, n] x[t + first[o, q] + n - before, b, q // COPIES]``."""
    b = tl.program_id(0).to(tl.int64)
    t = tl.program_id(1) * BT + tl.arange(0, BT)
    o = tl.program_id(2) * BO + tl.arange(0, BO)
    known = o < outputs
    total = tl.zeros((BT, BO), dtype=x_.dtype.element_ty)
    synapses = inputs * COPIES
    for q in range(synapses):
        at = o.to(tl.int64) * synapses + q
        first = tl.load(first_ + at, mask=known, other=0).to(tl.int32) - before
        for n in range(TAPS):
            w = tl.load(w_ + at * TAPS + n, mask=known, other=0.0)
            line = t[:, None] + first[None, :] + n
            inside = (line >= 0) & (line < given) & known[None, :]
            value = tl.load(
                x_ + (line.to(tl.int64) * batch + b) * inputs + q // COPIES, mask=inside, other=0.0
            )
            total += w[None, :] * value
    place = (t[:, None].to(tl.int64) * batch + b) * outputs + o[None, :]
    tl.store(y_ + place, total, mask=(t[:, None] < steps) & known[None, :])


@triton.jit
def gradient_kernel(  # type: ignore[no-untyped-def]
    x_,
    gy_,
    first_,
    g_,
    steps,
    given,
    before,
    batch,
    inputs,
    outputs,
    COPIES: tl.constexpr,
    TAPS: tl.constexpr,
    BT: tl.constexpr,
    BO: tl.constexpr,
):
    """``g[o, q, n] = sum over t, b of gy[t, b, o] x[t + first[o, q] + n - before, b, q // COPIES]``."""
    q = tl.program_id(0)
    o = tl.program_id(1) * BO + tl.arange(0, BO)
    known = o < outputs
    synapses = inputs * COPIES
    at = o.to(tl.int64) * synapses + q
    first = tl.load(first_ + at, mask=known, other=0).to(tl.int32) - before
    for n in range(TAPS):
        total = tl.zeros((BT, BO), dtype=x_.dtype.element_ty)
        for b in range(batch):
            for begin in range(0, steps, BT):
                t = begin + tl.arange(0, BT)
                place = (t[:, None].to(tl.int64) * batch + b) * outputs + o[None, :]
                gy = tl.load(gy_ + place, mask=(t[:, None] < steps) & known[None, :], other=0.0)
                line = t[:, None] + first[None, :] + n
                inside = (line >= 0) & (line < given) & known[None, :]
                value = tl.load(
                    x_ + (line.to(tl.int64) * batch + b) * inputs + q // COPIES, mask=inside, other=0.0
                )
                total += gy * value
        tl.store(g_ + at * TAPS + n, tl.sum(total, axis=0), mask=known)


def _meta(weights: Tensor) -> dict[str, Any]:
    return {"COPIES": weights.shape[2], "TAPS": weights.shape[3], "BT": STEPS, "BO": OUTPUTS}


def project(x: Tensor, weights: Tensor, first: Tensor, steps: int, before: int) -> Tensor:
    """``y (steps, B, O)`` from ``x (given, B, I)``, ``weights (O, I, M, N)`` and ``first (O, I, M)``; all contiguous."""
    given, batch, inputs = x.shape
    outputs = weights.shape[0]
    y = x.new_empty(steps, batch, outputs)
    if not y.numel():
        return y
    grid = (batch, triton.cdiv(steps, STEPS), triton.cdiv(outputs, OUTPUTS))
    with torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext():
        project_kernel[grid](
            x, weights, first, y, steps, given, before, batch, inputs, outputs, **_meta(weights)
        )
    return y


def gradient(x: Tensor, gy: Tensor, found: Tensor, first: Tensor, before: int) -> Tensor:
    """Gradient of the taps, added to the zeros of ``found (O, I, M, N)``; ``gy (T, B, O)``."""
    given, batch, inputs = x.shape
    outputs = found.shape[0]
    grid = (inputs * found.shape[2], triton.cdiv(outputs, OUTPUTS))
    with torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext():
        gradient_kernel[grid](
            x, gy, first, found, gy.shape[0], given, before, batch, inputs, outputs, **_meta(found)
        )
    return found
