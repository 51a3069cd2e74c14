"""Delayed projections on the CPU: every synapse reads its input shifted by its own delay.

Eight samples (sixteen with AVX-512) stand side by side, and in front of them time: a tile of ``(steps, 8)`` numbers for every
neuron. A delay is then an offset of whole lines, so a synapse is a multiply-add of contiguous memory without any gather, and a
few neighbouring taps share what they read in registers::

    y[t] += w[0] x[t + first] + w[1] x[t + first + 1] + ...         forward, and (with w reversed) the input gradient
    g[n] += sum over t, samples of  gy[t] x[t + first + n]          gradient of the taps

Forward, the sums of some steps stay in registers while the inputs pass by; a line is read once and added, by all its taps, to
the sums that it belongs to, which leaves room for as many sums as there are registers. Some inputs at a time serve many
outputs, so that what they read stays in the first-level cache. For the taps' gradient several steps are summed apart, as a
chain of additions would wait for each. Numba's loops would write every sum back and read it again, so these two loops are
given to the compiler as vector instructions; they are LLVM's own, for any machine.

The order of every sum is that of the inputs (of the tiles, for the gradient of the taps), whatever the number of threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import extending, njit, prange, types

from .threading import kernel
from .tiles import register_bytes

Array = np.ndarray[Any, Any]
intrinsic: Any = extending.intrinsic  # what it makes is called with other arguments than it is written with

_LARGE = register_bytes() == 64  # AVX-512: registers of twice the size, and twice as many of them

LANES = 16 if _LARGE else 8
"""Samples side by side: a line, one register of float32."""

CHUNK = 16 if _LARGE else 10
"""Steps whose sums stay in registers, beside four taps and a line; at the end of a sequence half as many."""

BLOCK = 8 if _LARGE else 16
"""Synapses of an output that are summed in one go: what they read stays in the first-level cache."""

HALF = CHUNK // 2

GROUP = 32 if _LARGE else 64
"""Outputs of a unit of work, which read it in turn."""

OUTPUTS = 4
"""Outputs that share an input's tile while it is in the first-level cache, for the gradient of the taps."""

APART = 8
"""Sums of a tap's gradient that are kept apart in registers, of all its taps together; steps come in multiples of it."""

EDGE = 32
"""Silent lines around the frames of a tile: more than the longest loop reads, so that reading may begin and end in silence.

The lags of kernels of up to as many places reach no further; longer ones look where silence begins.
"""

COLUMNS = 16
"""Inputs that are put into tiles together: a cache line of float32."""


# ------------------------------------------------------------------------------------------------- vector instructions


def data(context: Any, builder: Any, kind: Any, array: Any) -> Any:
    """Where the numbers of an array begin."""
    return context.make_array(kind)(context, builder, array).data


def _line(builder: Any, data: Any, index: Any, vector: Any, size: int) -> Any:
    value = builder.load(builder.bitcast(builder.gep(data, [index]), vector.as_pointer()))
    value.align = size
    return value


def multiply_add(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """``a * b + c``, rounded once where the machine can."""
    return builder.fadd(builder.fmul(a, b, flags=("contract",)), c, flags=("contract",))


def everywhere(builder: Any, value: Any, vector: Any) -> Any:
    """A number in all lanes of a vector."""
    nothing = ir.Constant(vector, ir.Undefined)
    one = builder.insert_element(nothing, value, ir.IntType(32)(0))
    return builder.shuffle_vector(
        one, nothing, ir.Constant(ir.VectorType(ir.IntType(32), vector.count), [0] * vector.count)
    )


def _loop(builder: Any, steps: Any, start: list[Any], stride: int = 1) -> tuple[Any, list[Any], Any]:
    """Begin ``for t in range(0, steps, stride)`` that carries values; returns t, the carried (at last the sums), how to
    end it."""
    entry, head = builder.block, builder.append_basic_block("steps")
    body, done = builder.append_basic_block("step"), builder.append_basic_block("done")
    builder.branch(head)
    builder.position_at_end(head)
    t = builder.phi(steps.type)
    t.add_incoming(steps.type(0), entry)
    carried = []
    for value in start:
        phi = builder.phi(value.type)
        phi.add_incoming(value, entry)
        carried.append(phi)
    builder.cbranch(builder.icmp_signed("<", t, steps), body, done)
    builder.position_at_end(body)

    def end(values: list[Any]) -> None:
        t.add_incoming(builder.add(t, steps.type(stride)), body)
        for phi, value in zip(carried, values, strict=True):
            phi.add_incoming(value, body)
        builder.branch(head)
        builder.position_at_end(done)

    return t, carried, end


def _add_taps(taps: int, chunk: int, inside: bool) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        out, source, weights, places, lines, into, first, block, time, last, count, _, _, _ = arguments
        number = context.get_value_type(signature.args[0].dtype)
        size, word = context.get_abi_sizeof(number), count.type
        vector = ir.VectorType(number, LANES)
        y, x, w, at, begins = (
            data(context, builder, kind, array)
            for kind, array in zip(signature.args[:5], (out, source, weights, places, lines), strict=True)
        )
        begins = builder.gep(begins, [block])
        y = builder.gep(y, [builder.mul(into, word(LANES))])
        at = builder.gep(at, [first])
        w = builder.gep(w, [builder.mul(first, word(taps))])
        begin = [_line(builder, y, word(k * LANES), vector, size) for k in range(chunk)]
        q, carried, end = _loop(builder, count, begin)
        totals = list(carried)
        row = builder.add(builder.load(builder.gep(at, [q])), time)
        if not inside:
            row = builder.select(builder.icmp_signed("<", row, word(0)), word(0), row)
            row = builder.select(builder.icmp_signed(">", row, last), last, row)
        row = builder.add(row, builder.load(builder.gep(begins, [q])))
        base = builder.gep(x, [builder.mul(row, word(LANES))])
        scale = builder.gep(w, [builder.mul(q, word(taps))])
        factors = [
            everywhere(builder, builder.load(builder.gep(scale, [word(n)])), vector) for n in range(taps)
        ]
        # line by line, each to all the sums that it belongs to: no line has to be kept; a sum takes its taps in their order
        for j in range(chunk + taps - 1):
            line = _line(builder, base, word(j * LANES), vector, size)
            for n in range(max(0, j - chunk + 1), min(taps, j + 1)):
                totals[j - n] = multiply_add(builder, line, factors[n], totals[j - n])
        end(totals)
        for k, total in enumerate(carried):
            place = builder.bitcast(builder.gep(y, [word(k * LANES)]), vector.as_pointer())
            builder.store(total, place).align = size
        return context.get_dummy_value()

    return generate


@intrinsic(prefer_literal=True)
def _shifted_add(
    typing: Any,
    out: Any,
    source: Any,
    weights: Any,
    places: Any,
    lines: Any,
    into: Any,
    first: Any,
    block: Any,
    time: Any,
    last: Any,
    count: Any,
    taps: Any,
    chunk: Any,
    inside: Any,
) -> Any:
    """``out[into + k] += sum over q < count, n < taps, of weights[first + q, n] * source[lines[block + q] + p + k + n]``, k <
    chunk, where ``p`` is ``places[first + q] + time``, or 0 or ``last`` if it is beyond them (``inside``: none is).

    All arrays flat; ``out`` and ``source`` counted in lines.
    """
    fixed = (taps, chunk, inside)
    if all(isinstance(value, types.IntegerLiteral) for value in fixed):
        at = types.intp
        generate = _add_taps(taps.literal_value, chunk.literal_value, bool(inside.literal_value))
        given = (out, source, weights, places, lines)
        return types.void(*given, at, at, at, at, at, at, *fixed), generate
    return None


def _sum_lanes(builder: Any, parts: list[Any]) -> Any:
    """The sums of the lanes of one, two or four vectors, as a vector of as many numbers; in a fixed order on any machine."""

    def neighbours(a: Any, b: Any) -> Any:
        """Sums of neighbouring lanes: within every four lanes two of ``a``, then two of ``b``."""
        lanes = a.type.count
        kind = ir.VectorType(ir.IntType(32), lanes)
        chosen = [
            [q + k + odd for q in range(0, lanes, 4) for k in (0, 2, lanes, lanes + 2)] for odd in (0, 1)
        ]
        even, odd = (builder.shuffle_vector(a, b, ir.Constant(kind, places)) for places in chosen)
        return builder.fadd(even, odd)

    def halves(a: Any, count: int) -> Any:
        """Halves added until so many lanes are left."""
        while a.type.count > count:
            half = a.type.count // 2
            kind = ir.VectorType(ir.IntType(32), half)
            low, high = (
                builder.shuffle_vector(a, a, ir.Constant(kind, list(range(at, at + half))))
                for at in (0, half)
            )
            a = builder.fadd(low, high)
        return a

    if len(parts) == 1:
        return halves(parts[0], 1)
    if len(parts) == 2:  # x x y y in every four lanes
        four = halves(neighbours(*parts), 4)
        kind = ir.VectorType(ir.IntType(32), 2)
        even, odd = (builder.shuffle_vector(four, four, ir.Constant(kind, at)) for at in ([0, 2], [1, 3]))
        return builder.fadd(even, odd)
    return halves(neighbours(neighbours(*parts[:2]), neighbours(*parts[2:])), 4)


def _dot_taps(taps: int) -> Any:
    apart = APART // taps  # steps summed apart
    kept = (
        taps - 1 if taps < APART else 0
    )  # lines that the next step reads again; eight sums leave no room for them

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        found, outer, source, place, row, line, steps, _ = arguments
        number = context.get_value_type(signature.args[0].dtype)
        size, word = context.get_abi_sizeof(number), steps.type
        vector = ir.VectorType(number, LANES)
        g, a, x = (
            data(context, builder, kind, array)
            for kind, array in zip(signature.args[:3], (found, outer, source), strict=True)
        )
        x = builder.gep(x, [builder.mul(line, word(LANES))])
        a = builder.gep(a, [builder.mul(row, word(LANES))])
        g = builder.gep(g, [builder.mul(place, word(taps))])
        zero = ir.Constant(vector, [0.0] * LANES)
        edge = [_line(builder, x, word(n * LANES), vector, size) for n in range(kept)]
        t, carried, end = _loop(builder, steps, [*edge, *([zero] * (taps * apart))], stride=apart)
        seen, totals = carried[:kept], carried[kept:]
        here = builder.mul(t, word(LANES))
        lines = list(seen)
        for k in range(kept, apart + taps - 1):
            lines.append(_line(builder, x, builder.add(here, word(k * LANES)), vector, size))
        sums = []
        for k in range(apart):
            factor = _line(builder, a, builder.add(here, word(k * LANES)), vector, size)
            for n in range(taps):
                sums.append(multiply_add(builder, lines[k + n], factor, totals[k * taps + n]))
        end([*lines[apart : apart + kept], *sums])
        parts = []
        for n in range(taps):
            part = totals[n]
            for k in range(1, apart):
                part = builder.fadd(part, totals[k * taps + n])
            parts.append(part)
        for begin in range(0, taps, 4):
            four = parts[begin : begin + 4]
            sums = _sum_lanes(builder, four)
            kind = ir.VectorType(number, len(four))
            to = builder.bitcast(builder.gep(g, [word(begin)]), kind.as_pointer())
            before = builder.load(to)
            before.align = size
            builder.store(builder.fadd(before, sums), to).align = size
        return context.get_dummy_value()

    return generate


@intrinsic(prefer_literal=True)
def _shifted_dot(
    typing: Any, found: Any, outer: Any, source: Any, place: Any, row: Any, line: Any, steps: Any, taps: Any
) -> Any:
    """``found[place, n] += sum over t < steps and the samples of a tile of outer[row + t] * source[line + t + n]``; steps a
    multiple of ``APART``.

    All arrays flat; ``outer`` and ``source`` counted in lines.
    """
    if isinstance(taps, types.IntegerLiteral):
        at = types.intp
        return types.void(found, outer, source, at, at, at, at, taps), _dot_taps(taps.literal_value)
    return None


# ---------------------------------------------------------------------------------------------------------- the layout


@kernel
def to_tiles(x: Array, tiles: Array, first: int) -> None:
    """Samples of ``x (T, B, N)`` from ``first`` on -> ``tiles (tiles, N, L, LANES)`` from line ``EDGE`` on; silent elsewhere and
    beyond the batch."""
    steps, batch, n = x.shape
    for unit in prange(tiles.shape[0]):
        begin = first + unit * LANES
        count = min(LANES, batch - begin)
        tile = tiles[unit]
        for i in range(n):
            row = tile[i]
            row[:EDGE] = 0
            row[EDGE + steps :] = 0
            if count < LANES:
                row[EDGE : EDGE + steps, count:] = 0
        # sixteen inputs of all samples at once: their lines stay in the first-level cache
        for t in range(steps):
            for block in range(0, n, COLUMNS):
                for i in range(block, min(n, block + COLUMNS)):
                    line = tile[i, EDGE + t]
                    for s in range(count):
                        line[s] = x[t, begin + s, i]


@njit(nogil=True, cache=True)
def _from_tile(rows: Array, y: Array, begin: int, time: int, chunk: int, low: int, high: int) -> None:
    """``y[time + k, begin + s, o] = line k of output o``, sample ``s``."""
    count = min(LANES, y.shape[1] - begin)
    for k in range(min(chunk, y.shape[0] - time)):
        for s in range(count):
            target = y[time + k, begin + s]
            for o in range(low, high):
                target[o] = rows[((o - low) * chunk + k) * LANES + s]


# ------------------------------------------------------------------------------------------------------------ the sums


@njit(nogil=True, cache=True)
def _project_inside(
    rows: Array,
    source: Array,
    weights: Array,
    places: Array,
    lines: Array,
    taps: int,
    time: int,
    last: int,
    low: int,
    high: int,
) -> None:
    """``CHUNK`` steps of outputs ``low`` to ``high`` of one tile of samples, whose reads all lie in the tile."""
    synapses, at = lines.shape[0], time + EDGE
    for block in range(0, synapses, BLOCK):
        count = min(BLOCK, synapses - block)
        for o in range(low, high):
            into, first = (o - low) * CHUNK, o * synapses + block
            if taps == 1:
                _shifted_add(
                    rows, source, weights, places, lines, into, first, block, at, last, count, 1, CHUNK, 1
                )
            elif taps == 2:
                _shifted_add(
                    rows, source, weights, places, lines, into, first, block, at, last, count, 2, CHUNK, 1
                )
            elif taps == 4:
                _shifted_add(
                    rows, source, weights, places, lines, into, first, block, at, last, count, 4, CHUNK, 1
                )
            else:
                _shifted_add(
                    rows, source, weights, places, lines, into, first, block, at, last, count, 8, CHUNK, 1
                )


@njit(nogil=True, cache=True)
def _project_steps(
    rows: Array,
    source: Array,
    weights: Array,
    places: Array,
    lines: Array,
    taps: int,
    time: int,
    last: int,
    low: int,
    high: int,
) -> None:
    """The same, where reads may lie beyond the tile."""
    synapses, at = lines.shape[0], time + EDGE
    for block in range(0, synapses, BLOCK):
        count = min(BLOCK, synapses - block)
        for o in range(low, high):
            into, first = (o - low) * CHUNK, o * synapses + block
            if taps == 1:
                _shifted_add(
                    rows, source, weights, places, lines, into, first, block, at, last, count, 1, CHUNK, 0
                )
            elif taps == 2:
                _shifted_add(
                    rows, source, weights, places, lines, into, first, block, at, last, count, 2, CHUNK, 0
                )
            elif taps == 4:
                _shifted_add(
                    rows, source, weights, places, lines, into, first, block, at, last, count, 4, CHUNK, 0
                )
            else:
                _shifted_add(
                    rows, source, weights, places, lines, into, first, block, at, last, count, 8, CHUNK, 0
                )


@njit(nogil=True, cache=True)
def _project_last(
    rows: Array,
    source: Array,
    weights: Array,
    places: Array,
    lines: Array,
    taps: int,
    time: int,
    last: int,
    low: int,
    high: int,
) -> None:
    """The same for half as many steps."""
    synapses, at = lines.shape[0], time + EDGE
    for block in range(0, synapses, BLOCK):
        count = min(BLOCK, synapses - block)
        for o in range(low, high):
            into, first = (o - low) * HALF, o * synapses + block
            if taps == 1:
                _shifted_add(
                    rows, source, weights, places, lines, into, first, block, at, last, count, 1, HALF, 0
                )
            elif taps == 2:
                _shifted_add(
                    rows, source, weights, places, lines, into, first, block, at, last, count, 2, HALF, 0
                )
            elif taps == 4:
                _shifted_add(
                    rows, source, weights, places, lines, into, first, block, at, last, count, 4, HALF, 0
                )
            else:
                _shifted_add(
                    rows, source, weights, places, lines, into, first, block, at, last, count, 8, HALF, 0
                )


@kernel
def project(
    tiles: Array, weights: Array, places: Array, lines: Array, frames: int, begin: int, y: Array
) -> None:
    """``y[t, b, o] = sum over q, n of weights[o, q, n] x[t + places[o, q] + n]``, ``x`` the input of ``q``, for the samples of
    these tiles.

    Args:
        tiles: of :func:`to_tiles`, ``EDGE`` silent lines around the frames at least.
        weights: ``(O, Q, N)``.
        places: ``(O, Q)`` int64; below 0 or beyond the frames there is silence.
        lines: ``(Q,)`` int64, the line of a tile where the input of each begins.
        frames: of the input.
        begin: the first sample of the first tile.
        y: ``(T, B, O)``, whose samples from ``begin`` on are taken.
    """
    outputs, _, taps = weights.shape
    groups = (outputs + GROUP - 1) // GROUP
    flat, at = weights.reshape(-1), places.reshape(-1)
    every = tiles.reshape(tiles.shape[0], -1)
    last = frames + EDGE
    least, largest = at.min(), at.max()
    for unit in prange(tiles.shape[0] * groups):
        tile, low = unit // groups, unit % groups * GROUP
        high = min(outputs, low + GROUP)
        rows = np.empty((high - low) * CHUNK * LANES, y.dtype)
        time = 0
        while time < y.shape[0]:
            whole = y.shape[0] - time > HALF
            chunk = CHUNK if whole else HALF
            rows[: (high - low) * chunk * LANES] = 0
            if whole and least + time + EDGE >= 0 and largest + time <= frames:
                _project_inside(rows, every[tile], flat, at, lines, taps, time, last, low, high)
            elif whole:
                _project_steps(rows, every[tile], flat, at, lines, taps, time, last, low, high)
            else:
                _project_last(rows, every[tile], flat, at, lines, taps, time, last, low, high)
            _from_tile(rows, y, begin + tile * LANES, time, chunk, low, high)
            time += chunk


@njit(nogil=True, cache=True)
def _gradient_unit(
    source: Array,
    outer: Array,
    places: Array,
    lines: Array,
    found: Array,
    frames: int,
    steps: int,
    length: int,
    taps: int,
    low: int,
    high: int,
) -> None:
    """Outputs ``low`` to ``high``, what one tile of samples adds."""
    synapses = lines.shape[0]
    for q in range(synapses):
        for o in range(low, high):
            place = o * synapses + q
            p = places[place]
            begin, count = 0, (steps + APART - 1) // APART * APART
            if p + EDGE < 0 or p + count + taps > frames + EDGE:
                # from the first step that reads a frame to the last
                begin = max(0, 1 - taps - p) // APART * APART
                count = (min(steps, frames - p) - begin + APART - 1) // APART * APART
                if count <= 0:
                    continue
            row, line = o * length + EDGE + begin, lines[q] + EDGE + begin + p
            if taps == 1:
                _shifted_dot(found, outer, source, place, row, line, count, 1)
            elif taps == 2:
                _shifted_dot(found, outer, source, place, row, line, count, 2)
            elif taps == 4:
                _shifted_dot(found, outer, source, place, row, line, count, 4)
            else:
                _shifted_dot(found, outer, source, place, row, line, count, 8)


@kernel
def gradient(
    tiles: Array, outer: Array, places: Array, lines: Array, frames: int, steps: int, found: Array
) -> None:
    """``found[o, q, n] += sum over t, b of gy[t, b, o] x[t + places[o, q] + n]``; both in tiles, else as :func:`project`."""
    outputs, _, taps = found.shape
    flat, at = found.reshape(-1), places.reshape(-1)
    inputs, grads = tiles.reshape(tiles.shape[0], -1), outer.reshape(outer.shape[0], -1)
    for unit in prange((outputs + OUTPUTS - 1) // OUTPUTS):
        low, high = unit * OUTPUTS, min(outputs, (unit + 1) * OUTPUTS)
        for tile in range(tiles.shape[0]):
            _gradient_unit(
                inputs[tile], grads[tile], at, lines, flat, frames, steps, outer.shape[2], taps, low, high
            )
