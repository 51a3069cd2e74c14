"""The CPU engine behind an event-driven projection: the input current of a neuron never leaves the first-level cache.

A projection writes its sums to memory and the scan reads them back; in the backward the scan writes a gradient that the weight
gradient reads. Where the inputs are spikes these passes cost more than the sums. Here a row of sums (one sample, one step, the
columns of a tile) is made, and the neurons of that row take their step on it at once. Backward, the gradients of a block of steps
stay in the second-level cache until the weight gradient has added them up.

Spikes, states, and the gradients of input, states and coefficients are those of the two kernels one after the other, to the bit.
The weight gradient adds the same terms in another order: blocks of steps from the last to the first, and then the parts of the
batch. That order depends on the shape alone, not on the number of threads.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

from ..kernels import projection_cpu, tiles
from ..kernels.memory import empty
from ..kernels.projection import Events, product
from ..kernels.threading import Kernel, kernel, threads
from .cpu import HEADER, Backward, Forward, compile_printed, flat_lengths, indent
from .dynamics import plan_for, program
from .graph import Plan, Program

Array = np.ndarray[Any, Any]

IMPORTS = (
    HEADER
    + """\
from spiketide.kernels.projection_cpu import add_all, add_events, pack, padded
from spiketide.kernels.tiles import tile_product
"""
)


def _multiply() -> str:
    """The product of a block of gradients with the weights, for the gradient of the input."""
    rows = tiles.ROWS
    return f"""

@njit(nogil=True)
def multiply(source, strips, out, since, until, begin, end, batch):
    # out[rows of these steps and samples] = source @ the matrix in strips
    if strips.shape[0] == 0:
        return
    count, columns, n = end - begin, strips.shape[2], out.shape[1]
    total = (until - since) * count
    spare, own = np.empty(({rows}, columns), source.dtype), np.arange({rows})
    places = np.empty(total, np.int64)
    for q in range(total):
        places[q] = (since + q // count) * batch + begin + q % count
    for i in range(strips.shape[0]):
        strip, lo = strips[i], i * columns
        width = min(columns, n - lo)
        for q in range(0, total, {rows}):
            if q + {rows} <= total and width == columns:
                tile_product(out, places[q : q + {rows}], lo, source[q : q + {rows}], strip)
            else:
                tile_product(spare, own, 0, source[q : q + {rows}], strip)
                for k in range(min({rows}, total - q)):
                    for c in range(width):
                        out[places[q + k], lo + c] = spare[k, c]
"""


TILE = 512
"""Most columns of a tile: their row of sums, state and outputs sit in a first-level cache of 32 KiB."""

WEIGHT_BYTES = 1 << 20
"""Most bytes of a tile of the weights or of their gradient, in the second-level cache."""

BLOCK_BYTES = 256 << 10
"""Bytes of the gradients of a block of steps, in the second-level cache beside them."""

PARTS = 4
"""Parts of a batch (at most) that have weight gradients of their own, so that as many threads find work."""


# ------------------------------------------------------------------------------------------------------ forward


def _coef_rows(coefs: Sequence[Tensor], n: int, dtype: torch.dtype) -> tuple[list[Array], tuple[bool, ...]]:
    """Coefficients as one number or as one per neuron, and which of them are one number."""
    scalars = tuple(c.numel() == 1 for c in coefs)
    arrays = [
        (c.detach().to(dtype).reshape(-1) if one else c.detach().to(dtype).expand(n)).contiguous().numpy()
        for c, one in zip(coefs, scalars, strict=True)
    ]
    return arrays, scalars


def _names(scalars: Sequence[bool]) -> tuple[list[str], list[str], list[str]]:
    """Arguments for the coefficients; the lines that read single numbers; slices of those that are rows."""
    names = [f"k{k}" for k in range(len(scalars))]
    once = [f"{n}j = {n}[0]" for n, one in zip(names, scalars, strict=True) if one]
    sliced = [f"{n}_ = {n}[first:last]" for n, one in zip(names, scalars, strict=True) if not one]
    return names, once, sliced


def _without(body: Sequence[str], scalars: Sequence[bool]) -> list[str]:
    once = {f"k{k}j = k{k}_[j]" for k, one in enumerate(scalars) if one}
    return [line for line in body if line not in once]


UNITS = [
    "chunks = (batch + chunk - 1) // chunk",
    "for unit in prange((n_out + tile - 1) // tile * chunks):",
]
"""The units of work: a tile of columns of a part of the batch."""

UNIT = [
    "first, part = unit // chunks * tile, unit % chunks",
    "last = min(n_out, first + tile)",
    "width = last - first",
    "begin, end = part * chunk, min(batch, (part + 1) * chunk)",
]


def _prefetch(names: Sequence[str], dtype: torch.dtype) -> list[str]:
    line = 16 if dtype == torch.float32 else 8
    if not names:
        return []
    return [f"for j in range(0, width, {line}):", *(f"    prefetch_write({n}_, j)" for n in names)]


def _forward_source(
    p: Program, saved: Sequence[int], masked: bool, dtype: torch.dtype, scalars: Sequence[bool]
) -> str:
    body = _without(Forward(p, saved, masked, dtype, saved).body, scalars)
    states = [f"s{k}" for k in range(len(p.state))]
    names, once, sliced = _names(scalars)
    stores = [f"z{q}" for q in range(len(saved))]
    mask = ["l"] if masked else []
    args = ["w", "bias", "starts", "columns", "values", *mask, *states, *names, "y", *stores]
    text = IMPORTS + f"\n\ndef kernel({', '.join(args)}, batch, chunk, tile):\n"
    text += indent(["steps, n_out = y.shape[0], w.shape[1]", *once, *UNITS], 1)
    text += indent(
        [
            *UNIT,
            *sliced,
            "weights = w",
            "if width < n_out or padded(width) != width:",
            "    weights = np.empty((w.shape[0], padded(width)), w.dtype)",
            "    pack(w, 0, w.shape[0], first, width, weights)",
            "offset = np.zeros(weights.shape[1], w.dtype)",
            "if bias.shape[0] > 0:",
            "    for j in range(width):",
            "        offset[j] = bias[first + j]",
            "x_ = np.empty(weights.shape[1], w.dtype)",
            "for t in range(steps):",
            "    for b in range(begin, end):",
        ],
        2,
    )
    rows = [*mask, *states]
    text += indent(
        [
            "r, at = t * batch + b, b * n_out + first",
            *(f"{n}_ = {n}[t, at : at + width]" for n in ("y", *stores)),
            *_prefetch(["y", *stores], dtype),
            "for j in range(x_.shape[0]):",
            "    x_[j] = offset[j]",
            "add_events(x_, weights, columns, values, starts[r], starts[r + 1])",
            *(f"{n}_ = {n}[at : at + width]" for n in rows),
            "for j in range(width):",
            *("    " + line for line in body),
        ],
        4,
    )
    return text


@functools.cache
def _forward(
    key: str, saved: tuple[int, ...], masked: bool, dtype: torch.dtype, scalars: tuple[bool, ...]
) -> Kernel:
    text = _forward_source(program(key), saved, masked, dtype, scalars)
    return compile_printed(text, "projected", (Path(projection_cpu.__file__),))


def _columns(n_in: int, n_out: int, itemsize: int) -> int:
    """Columns of a tile: a multiple of 64 (or all) such that the weights of ``n_in`` inputs fit in the cache."""
    fitting = max(64, WEIGHT_BYTES // (n_in * itemsize) // 64 * 64)
    return min(n_out, TILE, fitting)


def forward(
    key: str,
    events: Events,
    weight: Tensor,
    bias: Tensor | None,
    shape: tuple[int, int],
    state: Sequence[Tensor],
    coefs: Sequence[Tensor],
    lengths: Tensor | None,
    needs: tuple[bool, tuple[bool, ...]] | None,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Run the projection and the neurons behind it.

    Args:
        key: of the registered dynamics.
        events: nonzeros of the input's ``T * B`` rows, time first.
        weight: ``(N, n_in)``.
        bias: ``(N,)`` or ``None``.
        shape: ``(T, B)``, neither 0.
        state: each ``(B, N)``.
        coefs: each a number or ``(N,)``.
        lengths: ``(B,)`` or ``None``.
        needs: what the backward will have to give (input, each coefficient); ``None``: nothing is saved.

    Returns:
        outputs ``(T, B, N)``, final state, and the saved tensors.
    """
    (steps, batch), (n, n_in) = shape, weight.shape
    dtype = weight.dtype
    saved: tuple[int, ...] = () if needs is None else plan_for(key, *needs).saved
    y = empty((steps, batch, n), dtype)
    stores = [empty((steps, batch, n), dtype) for _ in saved]
    final = [s.detach().to(dtype).clone(memory_format=torch.contiguous_format) for s in state]
    w = weight.detach().t().contiguous()
    offset = weight.new_empty(0) if bias is None else bias.detach().contiguous()
    rows, scalars = _coef_rows(coefs, n, dtype)
    args: list[Any] = [w.numpy(), offset.numpy(), *(t.numpy() for t in events)]
    if lengths is not None:
        args.append(flat_lengths(lengths, batch * n))
    args += [s.numpy().reshape(-1) for s in final]
    args += rows
    args += [t.numpy().reshape(steps, batch * n) for t in (y, *stores)]
    tile = _columns(n_in, n, w.element_size())
    # the parts of a batch share nothing here, so there may be as many as threads
    parts = -(-threads() // -(-n // tile))
    run = _forward(key, saved, lengths is not None, dtype, scalars)
    run.sized(steps * batch * n, *args, batch, -(-batch // parts), tile)
    return y, final, stores


# ----------------------------------------------------------------------------------------------------- backward


@njit(nogil=True, cache=True)
def _sort(
    starts: Array,
    columns: Array,
    values: Array,
    batch: int,
    begin: int,
    end: int,
    since: int,
    until: int,
    base: int,
    ends: Array,
    rows: Array,
    moved: Array,
) -> None:
    """Events of some samples and steps, by column; those of column ``j`` end before ``ends[j + 1]``."""
    valued = values.shape[0] > 0
    for j in range(ends.shape[0]):
        ends[j] = 0
    for t in range(since, until):
        for e in range(starts[t * batch + begin], starts[t * batch + end]):
            ends[columns[e] + 1] += 1
    total = base
    for j in range(ends.shape[0]):
        total += ends[j]
        ends[j] = total
    for t in range(since, until):
        for b in range(begin, end):
            r = t * batch + b
            local = (t - since) * (end - begin) + b - begin
            for e in range(starts[r], starts[r + 1]):
                j = columns[e]
                k = ends[j]
                ends[j] = k + 1
                rows[k] = local
                if valued:
                    moved[k] = values[e]
    for j in range(ends.shape[0] - 1, 0, -1):
        ends[j] = ends[j - 1]
    ends[0] = base


@kernel
def sort_events(
    starts: Array,
    columns: Array,
    values: Array,
    batch: int,
    chunk: int,
    span: int,
    bases: Array,
    ends: Array,
    rows: Array,
    moved: Array,
) -> None:
    """The lists by column for every part of the batch and block of steps: ``bases (parts, blocks)``, ``ends (.., n_in + 1)``."""
    steps = (starts.shape[0] - 1) // batch
    blocks = bases.shape[1]
    for unit in prange(bases.shape[0] * blocks):
        part, i = unit // blocks, unit % blocks
        _sort(
            starts,
            columns,
            values,
            batch,
            part * chunk,
            min(batch, (part + 1) * chunk),
            i * span,
            min(steps, (i + 1) * span),
            bases[part, i],
            ends[part, i],
            rows,
            moved,
        )


def _backward_source(
    p: Program, plan: Plan, masked: bool, dtype: torch.dtype, scalars: Sequence[bool], current: bool
) -> str:
    # with ``current`` it writes the gradient of the current, otherwise that of the input, where there are strips of the weights

    body = Backward(p, plan, masked, dtype)
    states = [f"s{k}" for k in range(len(p.state)) if k in plan.prior]
    names, once, sliced = _names(scalars)
    stores = [f"z{q}" for q in range(len(plan.saved))]
    grads = [f"g{k}" for k in range(len(p.state))]
    sums = [f"q{k}" for k, i in enumerate(plan.grad_coefs) if i is not None]
    mask = ["l"] if masked else []
    out = ["gx"] if current else ["strips", "gin"]
    args = ["gy", *mask, *states, *names, *stores, *out, *grads, *sums]
    args += ["rows", "values", "ends", "dw", "db", "batch", "chunk", "span", "tile"]
    text = IMPORTS + ("" if current else _multiply()) + f"\n\ndef kernel({', '.join(args)}):\n"
    text += indent(["steps, n_out, n_in = gy.shape[0], dw.shape[2], dw.shape[1]", *once, *UNITS], 1)
    text += indent(
        [
            *UNIT,
            *sliced,
            "count = end - begin",
            f"source = np.zeros((span * count + {tiles.ROWS}, padded(width)), gy.dtype)",
            "total = np.zeros((n_in, padded(width)), gy.dtype)",
            "column = np.zeros(padded(width), gy.dtype)",
            "mode = flush_tiny()",
            "for i in range(ends.shape[1] - 1, -1, -1):",
            "    since, until = i * span, min(steps, (i + 1) * span)",
            "    for back in range(until - since):",
            "        t = until - 1 - back",
            "        for b in range(begin, end):",
        ],
        2,
    )
    rows = [*mask, *states, *grads, *sums]
    before = [f"p{q}_ = z{q}[max(t - 1, 0), at : at + width]" for q in range(len(plan.saved))]
    inner = [
        "at = b * n_out + first",
        "gx_ = source[(t - since) * count + b - begin][:width]",
        *(f"{n}_ = {n}[t, at : at + width]" for n in ("gy", *stores)),
        *(f"{n}_ = {n}[at : at + width]" for n in rows),
    ]
    later, first = _without(body.later, scalars), _without(body.first, scalars)
    if plan.prior:
        inner += [
            "if t > 0:",
            *("    " + line for line in before),
            "    for j in range(width):",
            *("        " + line for line in later),
            "else:",
            "    for j in range(width):",
            *("        " + line for line in first),
        ]
    else:
        inner += ["for j in range(width):", *("    " + line for line in later)]
    if current:
        inner += ["out_ = gx[t, at : at + width]", *_prefetch(["out"], dtype)]
        inner += ["for j in range(width):", "    out_[j] = gx_[j]"]
    text += indent(inner, 5)
    text += indent(
        [
            "    if db.shape[0] > 0:",
            "        add_all(column, source, (until - since) * count)",
            "    found = ends[part, i]",
            "    for m in range(n_in):",
            "        add_events(total[m], source, rows, values, found[m], found[m + 1])",
            *(["    multiply(source, strips, gin, since, until, begin, end, batch)"] * (not current)),
            "restore_tiny(mode)",
            "for m in range(n_in):",
            "    for j in range(width):",
            "        dw[part, m, first + j] = total[m, j]",
            "if db.shape[0] > 0:",
            "    for j in range(width):",
            "        db[part, first + j] = column[j]",
        ],
        2,
    )
    return text


@functools.cache
def _backward(
    key: str, plan: Plan, masked: bool, dtype: torch.dtype, scalars: tuple[bool, ...], current: bool
) -> Kernel:
    text = _backward_source(program(key), plan, masked, dtype, scalars, current)
    return compile_printed(text, "projected_backward", (Path(projection_cpu.__file__),))


def _division(steps: int, batch: int, n_in: int, n_out: int, itemsize: int) -> tuple[int, int, int]:
    """Samples of a part, steps of a block, columns of a tile of the backward: of the shape alone."""
    tile = _columns(n_in, n_out, itemsize)
    tiles = -(-n_out // tile)
    # a step of a part fits in the cache, and its events have places of 16 bits
    most = min(max(16, 2 * BLOCK_BYTES // (tile * itemsize)), 1 << 16)
    chunk = min(most, -(-batch // max(1, min(batch, PARTS // tiles))))
    span = max(1, min(steps, BLOCK_BYTES // (chunk * tile * itemsize), (1 << 16) // chunk))
    return chunk, span, tile


def backward(
    key: str,
    gy: Tensor,
    gfinal: Sequence[Tensor],
    events: Events,
    n_in: int,
    bias: bool,
    state: Sequence[Tensor],
    coefs: Sequence[Tensor],
    stores: Sequence[Tensor],
    lengths: Tensor | None,
    needs: tuple[bool, tuple[bool, ...]],
    weight: Tensor | None,
) -> tuple[Tensor | None, Tensor, Tensor | None, list[Tensor], list[Tensor]]:
    """Run the neurons' backward and the weight gradient behind it.

    Args:
        gy: gradient of the outputs ``(T, B, N)``.
        gfinal: gradient of the final state, each ``(B, N)``.
        events: as in the forward.
        n_in: number of inputs.
        bias: whether its gradient is wanted.
        state, coefs, stores, lengths, needs: as in :func:`forward`.
        weight: ``(N, n_in)`` where the gradient of the input is wanted, else ``None``.

    Returns:
        gradients of the input ``(T, B, n_in)`` or ``None``, of the weight ``(N, n_in)``, of the bias, of the initial state,
        and of every wanted coefficient, one value per neuron and sample.
    """
    plan = plan_for(key, *needs)
    steps, batch, n = gy.shape
    dtype, size = gy.dtype, batch * n
    gstate = [g.detach().to(dtype).clone(memory_format=torch.contiguous_format) for g in gfinal]
    sums = [gy.new_zeros((batch, n)) for i in plan.grad_coefs if i is not None]
    chunk, span, tile = _division(steps, batch, n_in, n, gy.element_size())
    parts, blocks = -(-batch // chunk), -(-steps // span)
    starts, columns, values = (t.numpy() for t in events)
    borders = starts[:-1].reshape(steps, batch)[:, ::chunk]
    counts = np.diff(np.append(borders.reshape(-1), starts[-1])).reshape(steps, parts)
    counts = np.add.reduceat(counts, np.arange(0, steps, span), axis=0).T
    bases = (np.cumsum(counts) - counts.reshape(-1)).reshape(parts, blocks)
    ends = np.empty((parts, blocks, n_in + 1), np.int64)
    rows, moved = np.empty(columns.shape[0], np.uint16), np.empty_like(values)
    sort_events(starts, columns, values, batch, chunk, span, bases, ends, rows, moved)
    # with all columns of a row in the cache the product for the input's gradient is made there and then
    current = weight is not None and tile < n
    shape = (0, batch, n_in) if weight is None else (steps, batch, n if current else n_in)
    out = empty(shape, dtype)
    dw, db = empty((parts, n_in, n), dtype), gy.new_empty((parts, n) if bias else (0, n))
    args: list[Any] = [gy.detach().contiguous().numpy().reshape(steps, size)]
    if lengths is not None:
        args.append(flat_lengths(lengths, size))
    args += [state[k].detach().to(dtype).contiguous().numpy().reshape(-1) for k in plan.prior]
    made, scalars = _coef_rows(coefs, n, dtype)
    args += made
    args += [t.numpy().reshape(steps, size) for t in stores]
    if current:
        args.append(out.numpy().reshape(steps, size))
    else:
        args += [tiles.pack(gy.new_empty(n, 0) if weight is None else weight.detach()).numpy()]
        args += [out.numpy().reshape(shape[0] * batch, n_in)]
    args += [g.numpy().reshape(-1) for g in (*gstate, *sums)]
    args += [rows, moved, ends, dw.numpy(), db.numpy(), batch, chunk, span, tile]
    _backward(key, plan, lengths is not None, dtype, scalars, current).sized(steps * size, *args)
    gw = dw[0] if parts == 1 else dw.sum(0)
    if weight is not None and current:
        out = product(out.view(-1, n), weight).view(steps, batch, n_in)
    return None if weight is None else out, gw.t(), db.sum(0) if bias else None, gstate, sums
