"""Delayed projections on the CPU that cost what the spikes of their input cost.

In front of every output its steps lie side by side. A spike of an input then adds a few neighbouring taps to every output, each
at a place of its own: one multiply-add of as many numbers as there are taps, from memory to memory. A spike ``x`` in frame ``s``
adds to steps ``s - n``, so the taps lie in the reverse order here::

    y_o[s - first - N + 1 + m] += x w_oi[N - 1 - m]              forward
    g_oi[N - 1 - m] += x gy_o[s - first - N + 1 + m]             gradient of the taps

The nonzeros are listed once, by sample, input and time. One sample and some outputs at a time stay in the first-level cache.
What falls outside the sequence is put into (read from) ``N`` numbers beside it, whichever delay it had: the longest delay costs
nothing.

The order of every sum is that of the inputs and their copies, and then that of time, as by shifted reads, to the bit; for the
gradient of the taps that of the samples, and then that of time, in parts of some spikes; whatever the number of threads. Zeros
are never touched: an infinite weight behind a silent input is nothing here, and NaN in a product; so is what comes back to it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import extending, njit, prange, types

from .delay_cpu import data, everywhere, multiply_add
from .threading import kernel
from .tiles import BITS, lowest_bit, nonzero_bits

Array = np.ndarray[Any, Any]
intrinsic: Any = extending.intrinsic  # what it makes is called with other arguments than it is written with

UNROLLED = 4
"""Outputs of one turn of the loops: arrays of taps hold a multiple of it."""

TILE_BYTES = 32 << 10
"""Bytes that the steps of a unit's outputs may take: the first-level cache."""

OUTPUTS = 64
"""Most outputs of a unit of work, and, beyond ``TILE_BYTES``, least: a quarter of it."""

INPUTS = 64
"""Inputs of a unit of work of the gradient."""

TOGETHER = 128
"""Spikes of an input from which their share of the gradient is added to that of the others: a single sum over all of them would
lose digits with their number."""

LINES = 256
"""Outputs that are written side by side, each to a line of its own."""


# ------------------------------------------------------------------------------------------------- vector instructions


def _loop(taps: int, inside: bool, gradient: bool) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        rows, weights, places, begin, at, end, length, value, count, _, _ = arguments
        number = context.get_value_type(signature.args[0].dtype)
        size, word = context.get_abi_sizeof(number), count.type
        vector = ir.VectorType(number, taps)
        y, w, place = (
            data(context, builder, kind, array)
            for kind, array in zip(signature.args[:3], (rows, weights, places), strict=True)
        )
        w, place = builder.gep(w, [builder.mul(begin, word(taps))]), builder.gep(place, [begin])
        x = everywhere(builder, value, vector)
        entry, head = builder.block, builder.append_basic_block("outputs")
        body, done = builder.append_basic_block("output"), builder.append_basic_block("done")
        builder.branch(head)
        builder.position_at_end(head)
        o, row = builder.phi(word), builder.phi(word)
        o.add_incoming(word(0), entry)
        row.add_incoming(word(0), entry)
        builder.cbranch(builder.icmp_signed("<", o, count), body, done)
        builder.position_at_end(body)
        here = row
        for k in range(UNROLLED):
            q = builder.add(o, word(k))
            t = builder.add(at, builder.sext(builder.load(builder.gep(place, [q])), word))
            if not inside:
                t = builder.select(builder.icmp_signed("<", t, word(0)), word(0), t)
                t = builder.select(builder.icmp_signed(">", t, end), end, t)
            steps = builder.bitcast(builder.gep(y, [builder.add(here, t)]), vector.as_pointer())
            kernel_ = builder.bitcast(builder.gep(w, [builder.mul(q, word(taps))]), vector.as_pointer())
            a, b = builder.load(steps), builder.load(kernel_)
            a.align = b.align = size
            if gradient:
                builder.store(multiply_add(builder, a, x, b), kernel_).align = size
            else:
                builder.store(multiply_add(builder, b, x, a), steps).align = size
            here = builder.add(here, length)
        o.add_incoming(builder.add(o, word(UNROLLED)), body)
        row.add_incoming(here, body)
        builder.branch(head)
        builder.position_at_end(done)
        return context.get_dummy_value()

    return generate


def _typed(gradient: bool, rows: Any, weights: Any, places: Any, taps: Any, inside: Any) -> Any:
    if isinstance(taps, types.IntegerLiteral) and isinstance(inside, types.IntegerLiteral):
        at = types.intp
        signature = types.void(rows, weights, places, at, at, at, at, rows.dtype, at, taps, inside)
        return signature, _loop(taps.literal_value, bool(inside.literal_value), gradient)
    return None


@intrinsic(prefer_literal=True)
def _add(
    typing: Any,
    rows: Any,
    weights: Any,
    places: Any,
    begin: Any,
    at: Any,
    end: Any,
    length: Any,
    value: Any,
    count: Any,
    taps: Any,
    inside: Any,
) -> Any:
    """``rows[o, at + places[begin + o] + m] += value * weights[begin + o, m]`` for o < count, m < taps.

    All arrays flat, rows ``length`` apart; ``count`` a multiple of ``UNROLLED``. Without ``inside`` a place below 0 or above
    ``end`` is that border.
    """
    return _typed(False, rows, weights, places, taps, inside)


@intrinsic(prefer_literal=True)
def _collect(
    typing: Any,
    rows: Any,
    weights: Any,
    places: Any,
    begin: Any,
    at: Any,
    end: Any,
    length: Any,
    value: Any,
    count: Any,
    taps: Any,
    inside: Any,
) -> Any:
    """``weights[begin + o, m] += value * rows[o, at + places[begin + o] + m]``, otherwise as :func:`_add`."""
    return _typed(True, rows, weights, places, taps, inside)


# ----------------------------------------------------------------------------------------------------------- the spikes


@kernel
def count(x: Array, found: Array) -> None:
    """Nonzeros of ``x (T, B, I)``: ``found[b, i]``, int64."""
    for b in prange(x.shape[1]):
        total = found[b]
        total[:] = 0
        for t in range(x.shape[0]):
            row = x[t, b]
            for i in range(row.shape[0]):
                total[i] += row[i] != 0


@kernel
def fill(x: Array, starts: Array, ends: Array, steps: Array, values: Array) -> None:
    """The nonzeros of ``x (T, B, I)`` one after the other, by sample, input and time.

    A thread that takes denormal numbers for zeros may count fewer than another lists: no list grows beyond its room.

    Args:
        x: the input.
        starts: ``(B, I + 1)`` int64, where the list of each begins.
        ends: ``(B, I)`` int64, the same; overwritten by where it ends.
        steps: zeros, take their frames, int32.
        values: zeros, take them.
    """
    n = x.shape[2]
    whole = n // BITS * BITS
    for b in prange(x.shape[1]):
        at, room = ends[b], starts[b, 1:]
        for t in range(x.shape[0]):
            row = x[t, b]
            for begin in range(0, whole, BITS):
                bits = nonzero_bits(row, begin)
                while bits:
                    i = begin + lowest_bit(bits)
                    bits &= bits - np.uint64(1)
                    e = at[i]
                    if e < room[i]:
                        steps[e], values[e], at[i] = t, row[i], e + 1
            for i in range(whole, n):
                e = at[i]
                if row[i] != 0 and e < room[i]:
                    steps[e], values[e], at[i] = t, row[i], e + 1


# ------------------------------------------------------------------------------------------------------------- the sums


@njit(nogil=True, cache=True)
def _forward_unit(
    rows: Array,
    weights: Array,
    places: Array,
    first: Array,
    last: Array,
    starts: Array,
    steps: Array,
    values: Array,
    copies: int,
    padded: int,
    taps: int,
    before: int,
    low: int,
    count: int,
    length: int,
) -> None:
    """All spikes of one sample, to ``count`` outputs from ``low`` on."""
    end = length - taps
    for i in range(starts.shape[0] - 1):
        for m in range(copies):
            q = (i * copies + m) * padded + low
            for e in range(starts[i], starts[i + 1]):
                at, value = steps[e] + before, values[e]
                inside = at + first[i] >= 0 and at + last[i] <= end
                if taps == 1:
                    if inside:
                        _add(rows, weights, places, q, at, end, length, value, count, 1, 1)
                    else:
                        _add(rows, weights, places, q, at, end, length, value, count, 1, 0)
                elif taps == 2:
                    if inside:
                        _add(rows, weights, places, q, at, end, length, value, count, 2, 1)
                    else:
                        _add(rows, weights, places, q, at, end, length, value, count, 2, 0)
                elif taps == 4:
                    if inside:
                        _add(rows, weights, places, q, at, end, length, value, count, 4, 1)
                    else:
                        _add(rows, weights, places, q, at, end, length, value, count, 4, 0)
                else:
                    if inside:
                        _add(rows, weights, places, q, at, end, length, value, count, 8, 1)
                    else:
                        _add(rows, weights, places, q, at, end, length, value, count, 8, 0)


@kernel
def project(
    starts: Array,
    steps: Array,
    values: Array,
    weights: Array,
    places: Array,
    first: Array,
    last: Array,
    before: int,
    group: int,
    y: Array,
) -> None:
    """Outputs of the spikes.

    Args:
        starts: ``(B, I + 1)`` int64, where the spikes of each input begin.
        steps: their frames.
        values: what they carry.
        weights: ``(I, M, O', N)``, the taps in reverse; ``O'`` outputs, a multiple of ``UNROLLED``.
        places: ``(I, M, O')`` int32, ``1 - first``, ``first`` the place of the first tap.
        first: ``(I,)`` the least of them.
        last: ``(I,)`` the largest.
        before: silent frames in front of the first.
        group: outputs of a unit.
        y: ``(T, B, O)``, taken.
    """
    _, copies, padded, taps = weights.shape
    samples, outputs = y.shape[1], y.shape[2]
    length = y.shape[0] + 2 * taps
    flat, at = weights.reshape(-1), places.reshape(-1)
    groups = (padded + group - 1) // group
    # the taps of one group of outputs stay in the second-level cache for all samples
    for unit in prange(groups * samples):
        b, low = unit % samples, unit // samples * group
        count = min(group, padded - low)
        rows = np.zeros(count * length, y.dtype)
        _forward_unit(
            rows, flat, at, first, last, starts[b], steps, values, copies, padded, taps, before, low, count, length
        )  # fmt: skip
        for t in range(y.shape[0]):
            target = y[t, b]
            for o in range(low, min(low + count, outputs)):
                target[o] = rows[(o - low) * length + taps + t]


@kernel
def to_rows(gy: Array, rows: Array, taps: int) -> None:
    """``gy (T, B, O)`` -> ``rows (B, O', T + 2 taps)``: the steps of each output, ``taps`` zeros on both sides."""
    steps = gy.shape[0]
    for b in prange(rows.shape[0]):
        for o in range(rows.shape[1]):
            row = rows[b, o]
            if o < gy.shape[2]:
                row[:taps] = 0
                row[taps + steps :] = 0
            else:
                row[:] = 0
        # some outputs at a time: the lines that they are written to stay in the first-level cache
        for begin in range(0, gy.shape[2], LINES):
            stop = min(gy.shape[2], begin + LINES)
            for t in range(steps):
                line = gy[t, b]
                for o in range(begin, stop):
                    rows[b, o, taps + t] = line[o]


@njit(nogil=True, cache=True)
def _collect_some(
    rows: Array,
    part: Array,
    places: Array,
    first: int,
    last: int,
    begin: int,
    stop: int,
    steps: Array,
    values: Array,
    q: int,
    taps: int,
    before: int,
    count: int,
    length: int,
) -> None:
    """What the spikes ``begin`` to ``stop`` of an input add to the taps between it and ``count`` outputs."""
    end = length - taps
    for e in range(begin, stop):
        at, value = steps[e] + before, values[e]
        inside = at + first >= 0 and at + last <= end
        if taps == 1:
            if inside:
                _collect(rows, part, places, q, at, end, length, value, count, 1, 1)
            else:
                _collect(rows, part, places, q, at, end, length, value, count, 1, 0)
        elif taps == 2:
            if inside:
                _collect(rows, part, places, q, at, end, length, value, count, 2, 1)
            else:
                _collect(rows, part, places, q, at, end, length, value, count, 2, 0)
        elif taps == 4:
            if inside:
                _collect(rows, part, places, q, at, end, length, value, count, 4, 1)
            else:
                _collect(rows, part, places, q, at, end, length, value, count, 4, 0)
        else:
            if inside:
                _collect(rows, part, places, q, at, end, length, value, count, 8, 1)
            else:
                _collect(rows, part, places, q, at, end, length, value, count, 8, 0)


@njit(nogil=True, cache=True)
def _move(part: Array, found: Array) -> None:
    """Add a part to the whole, and begin it anew."""
    for k in range(part.shape[0]):
        found[k] += part[k]
        part[k] = 0


@kernel
def gradient(
    starts: Array,
    steps: Array,
    values: Array,
    rows: Array,
    places: Array,
    first: Array,
    last: Array,
    before: int,
    group: int,
    found: Array,
) -> None:
    """Gradient of the taps, in their reverse order: ``found (I, M, O', N)``; ``rows`` of :func:`to_rows`, the rest as in
    :func:`project`."""
    inputs, copies, padded, taps = found.shape
    samples, length = rows.shape[0], rows.shape[2]
    found[:] = 0
    flat, at, parts = found.reshape(-1), places.reshape(-1), np.zeros(found.size, found.dtype)
    every = rows.reshape(samples, -1)
    groups, blocks = (padded + group - 1) // group, (inputs + INPUTS - 1) // INPUTS
    for unit in prange(groups * blocks):
        low, begin = unit % groups * group, unit // groups * INPUTS
        stop = min(inputs, begin + INPUTS)
        count = min(group, padded - low)
        waiting = np.zeros(stop - begin, np.int64)
        for b in range(samples):
            here = every[b, low * length :]
            for i in range(begin, stop):
                e, done = starts[b, i], starts[b, i + 1]
                while e < done:
                    some = min(done - e, TOGETHER - waiting[i - begin])
                    waiting[i - begin] += some
                    full = waiting[i - begin] == TOGETHER
                    for m in range(copies):
                        q = (i * copies + m) * padded + low
                        _collect_some(
                            here, parts, at, first[i], last[i], e, e + some, steps, values,
                            q, taps, before, count, length,
                        )  # fmt: skip
                        if full:
                            _move(parts[q * taps : (q + count) * taps], flat[q * taps : (q + count) * taps])
                    if full:
                        waiting[i - begin] = 0
                    e += some
        for i in range(begin, stop):
            for m in range(copies):
                q = (i * copies + m) * padded + low
                _move(parts[q * taps : (q + count) * taps], flat[q * taps : (q + count) * taps])
