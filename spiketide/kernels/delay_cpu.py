"""Delayed projections on the CPU: every synapse reads its input shifted by its own delay.

Sixteen samples stand side by side, and in front of them time: a tile of ``(steps, 16)`` numbers for every neuron. A delay
is then an offset of whole cache lines, so a synapse is a multiply-add of contiguous memory without any gather, and a few
neighbouring taps share what they read in registers::

    y[t] += w[0] x[t + first] + w[1] x[t + first + 1] + ...         forward, and (with w reversed) the input gradient
    g[n] += sum over t, samples of  gy[t] x[t + first + n]          gradient of the taps

Forward, the sums of eight steps stay in registers while the inputs pass by, sixteen inputs at a time for sixteen outputs,
so that what they read stays in the first-level cache. For the taps' gradient several steps are summed apart, as a chain
of additions would wait for each. Numba's loops would write every sum back and read it again, so these two loops are given
to the compiler as vector instructions; they are LLVM's own, for any machine.

The order of every sum is that of the inputs (of the tiles, for the gradient of the taps), whatever the number of threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import extending, njit, prange, types

from .threading import kernel

Array = np.ndarray[Any, Any]
intrinsic: Any = extending.intrinsic  # what it makes is called with other arguments than it is written with

LANES = 16
"""Samples side by side: a cache line of float32."""

CHUNK = 8
"""Steps whose sums stay in registers."""

BLOCK = 16
"""Outputs of a unit of work (a cache line of the result), and synapses of an output that are summed in one go."""

OUTPUTS = 4
"""Outputs that share an input's tile while it is in the first-level cache, for the gradient of the taps."""


# ------------------------------------------------------------------------------------------------- vector instructions


def _data(context: Any, builder: Any, kind: Any, array: Any) -> Any:
    return context.make_array(kind)(context, builder, array).data


def _line(builder: Any, data: Any, index: Any, vector: Any, size: int) -> Any:
    value = builder.load(builder.bitcast(builder.gep(data, [index]), vector.as_pointer()))
    value.align = size
    return value


def _multiply_add(builder: Any, a: Any, b: Any, c: Any) -> Any:
    return builder.fadd(builder.fmul(a, b, flags=("contract",)), c, flags=("contract",))


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


def _add_taps(taps: int) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        out, source, weights, lines, into, first, time, count, _ = arguments
        number = context.get_value_type(signature.args[0].dtype)
        size, word = context.get_abi_sizeof(number), count.type
        vector = ir.VectorType(number, LANES)
        y, x, w, at = (
            _data(context, builder, kind, array)
            for kind, array in zip(signature.args[:4], (out, source, weights, lines), strict=True)
        )
        y = builder.gep(y, [builder.mul(into, word(LANES))])
        at = builder.gep(at, [first])
        w = builder.gep(w, [builder.mul(first, word(taps))])
        nothing = ir.Constant(vector, ir.Undefined)
        everywhere = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
        begin = [_line(builder, y, word(k * LANES), vector, size) for k in range(CHUNK)]
        q, carried, end = _loop(builder, count, begin)
        totals = list(carried)
        row = builder.add(builder.load(builder.gep(at, [q])), time)
        base = builder.gep(x, [builder.mul(row, word(LANES))])
        scale = builder.gep(w, [builder.mul(q, word(taps))])
        window = [_line(builder, base, word(k * LANES), vector, size) for k in range(CHUNK + taps - 1)]
        for n in range(taps):
            one = builder.insert_element(
                nothing, builder.load(builder.gep(scale, [word(n)])), ir.IntType(32)(0)
            )
            factor = builder.shuffle_vector(one, nothing, everywhere)
            totals = [_multiply_add(builder, window[k + n], factor, total) for k, total in enumerate(totals)]
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
    lines: Any,
    into: Any,
    first: Any,
    time: Any,
    count: Any,
    taps: Any,
) -> Any:
    """``out[into + k] += sum over count synapses from first on, n < taps, of weights[q, n] * source[lines[q] + time + k +
    n]``, k < 8.

    All arrays flat; ``out`` and ``source`` counted in lines of 16.
    """
    if isinstance(taps, types.IntegerLiteral):
        at = types.intp
        return types.void(out, source, weights, lines, at, at, at, at, taps), _add_taps(taps.literal_value)
    return None


def _dot_taps(taps: int) -> Any:
    apart = max(2, CHUNK // taps)  # steps summed apart

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        found, outer, source, place, row, line, steps, _ = arguments
        number = context.get_value_type(signature.args[0].dtype)
        size, word = context.get_abi_sizeof(number), steps.type
        vector = ir.VectorType(number, LANES)
        g, a, x = (
            _data(context, builder, kind, array)
            for kind, array in zip(signature.args[:3], (found, outer, source), strict=True)
        )
        x = builder.gep(x, [builder.mul(line, word(LANES))])
        a = builder.gep(a, [builder.mul(row, word(LANES))])
        g = builder.gep(g, [builder.mul(place, word(taps))])
        zero = ir.Constant(vector, [0.0] * LANES)
        edge = [_line(builder, x, word(n * LANES), vector, size) for n in range(taps - 1)]
        t, carried, end = _loop(builder, steps, [*edge, *([zero] * (taps * apart))], stride=apart)
        seen, totals = carried[: taps - 1], carried[taps - 1 :]
        here = builder.mul(t, word(LANES))
        lines = list(seen)
        for k in range(apart):
            at = builder.add(here, word((taps - 1 + k) * LANES))
            lines.append(_line(builder, x, at, vector, size))
        sums = []
        for k in range(apart):
            factor = _line(builder, a, builder.add(here, word(k * LANES)), vector, size)
            for n in range(taps):
                sums.append(_multiply_add(builder, lines[k + n], factor, totals[k * taps + n]))
        end([*(lines[apart:]), *sums] if taps > 1 else sums)
        for n in range(taps):
            part, lanes = totals[n], LANES
            for k in range(1, apart):
                part = builder.fadd(part, totals[k * taps + n])
            # halves are added until one number is left: a fixed order on any machine
            while lanes > 1:
                lanes //= 2
                kind = ir.VectorType(ir.IntType(32), lanes)
                low = builder.shuffle_vector(part, part, ir.Constant(kind, list(range(lanes))))
                high = builder.shuffle_vector(part, part, ir.Constant(kind, list(range(lanes, 2 * lanes))))
                part = builder.fadd(low, high)
            to = builder.gep(g, [word(n)])
            one = builder.extract_element(part, ir.IntType(32)(0))
            builder.store(builder.fadd(builder.load(to), one), to)
        return context.get_dummy_value()

    return generate


@intrinsic(prefer_literal=True)
def _shifted_dot(
    typing: Any, found: Any, outer: Any, source: Any, place: Any, row: Any, line: Any, steps: Any, taps: Any
) -> Any:
    """``found[place, n] += sum over t < steps and 16 samples of outer[row + t] * source[line + t + n]``; steps a multiple of 8.

    All arrays flat; ``outer`` and ``source`` counted in lines of 16.
    """
    if isinstance(taps, types.IntegerLiteral):
        at = types.intp
        return types.void(found, outer, source, at, at, at, at, taps), _dot_taps(taps.literal_value)
    return None


# ---------------------------------------------------------------------------------------------------------- the layout


@kernel
def to_tiles(x: Array, tiles: Array, before: int) -> None:
    """``x (T, B, N)`` -> ``tiles (ceil(B / 16), N, L, 16)`` from line ``before`` on; silent elsewhere and beyond the batch."""
    steps, batch, n = x.shape
    for unit in prange(tiles.shape[0]):
        begin = unit * LANES
        count = min(LANES, batch - begin)
        tile = tiles[unit]
        for i in range(n):
            row = tile[i]
            for t in range(before):
                for s in range(LANES):
                    row[t, s] = 0
            for t in range(before + steps, row.shape[0]):
                for s in range(LANES):
                    row[t, s] = 0
            if count < LANES:
                for t in range(before, before + steps):
                    for s in range(count, LANES):
                        row[t, s] = 0
        # sixteen inputs of sixteen samples at once: their lines stay in the first-level cache
        for t in range(steps):
            for block in range(0, n, LANES):
                for i in range(block, min(n, block + LANES)):
                    line = tile[i, before + t]
                    for s in range(count):
                        line[s] = x[t, begin + s, i]


@njit(nogil=True, cache=True)
def _from_tile(rows: Array, y: Array, begin: int, low: int, high: int) -> None:
    """``y[t, begin + s, o] = line t of output o``, sample ``s``."""
    count = min(LANES, y.shape[1] - begin)
    length = rows.shape[0] // (LANES * (high - low))
    for t in range(y.shape[0]):
        for s in range(count):
            target = y[t, begin + s]
            for o in range(low, high):
                target[o] = rows[((o - low) * length + t) * LANES + s]


# ------------------------------------------------------------------------------------------------------------ the sums


@njit(nogil=True, cache=True)
def _project_unit(
    source: Array,
    weights: Array,
    lines: Array,
    y: Array,
    synapses: int,
    taps: int,
    begin: int,
    low: int,
    high: int,
) -> None:
    """Outputs ``low`` to ``high`` of one tile of samples."""
    length = (y.shape[0] + CHUNK - 1) // CHUNK * CHUNK
    rows = np.zeros((high - low) * length * LANES, y.dtype)
    for time in range(0, length, CHUNK):
        for block in range(0, synapses, BLOCK):
            count = min(BLOCK, synapses - block)
            for o in range(low, high):
                into, first = (o - low) * length + time, o * synapses + block
                if taps == 1:
                    _shifted_add(rows, source, weights, lines, into, first, time, count, 1)
                elif taps == 2:
                    _shifted_add(rows, source, weights, lines, into, first, time, count, 2)
                elif taps == 4:
                    _shifted_add(rows, source, weights, lines, into, first, time, count, 4)
                else:
                    _shifted_add(rows, source, weights, lines, into, first, time, count, 8)
    _from_tile(rows, y, begin, low, high)


@kernel
def project(tiles: Array, weights: Array, lines: Array, y: Array) -> None:
    """``y[t, b, o] = sum over q, n of weights[o, q, n] x[lines[o, q] + t + n]``, ``x`` the lines of the tile of ``b``.

    Every row of a tile goes on for at least 7 lines after those that ``y`` needs.
    """
    outputs, synapses, taps = weights.shape
    blocks = (outputs + BLOCK - 1) // BLOCK
    flat, at = weights.reshape(-1), lines.reshape(-1)
    every = tiles.reshape(tiles.shape[0], -1)
    for unit in prange(tiles.shape[0] * blocks):
        tile, low = unit // blocks, unit % blocks * BLOCK
        high = min(outputs, low + BLOCK)
        _project_unit(every[tile], flat, at, y, synapses, taps, tile * LANES, low, high)


@njit(nogil=True, cache=True)
def _gradient_unit(
    source: Array,
    outer: Array,
    lines: Array,
    found: Array,
    synapses: int,
    steps: int,
    taps: int,
    low: int,
    high: int,
) -> None:
    """Outputs ``low`` to ``high``, what one tile of samples adds."""
    for q in range(synapses):
        for o in range(low, high):
            place = o * synapses + q
            row, line = o * steps, lines[place]
            if taps == 1:
                _shifted_dot(found, outer, source, place, row, line, steps, 1)
            elif taps == 2:
                _shifted_dot(found, outer, source, place, row, line, steps, 2)
            elif taps == 4:
                _shifted_dot(found, outer, source, place, row, line, steps, 4)
            else:
                _shifted_dot(found, outer, source, place, row, line, steps, 8)


@kernel
def gradient(tiles: Array, outer: Array, lines: Array, found: Array) -> None:
    """``found[o, q, n] = sum over t, b of gy[t, b, o] x[lines[o, q] + t + n]``; both in tiles, ``gy`` of 8 m lines."""
    outputs, synapses, taps = found.shape
    flat, at = found.reshape(-1), lines.reshape(-1)
    inputs, grads = tiles.reshape(tiles.shape[0], -1), outer.reshape(outer.shape[0], -1)
    for unit in prange((outputs + OUTPUTS - 1) // OUTPUTS):
        low, high = unit * OUTPUTS, min(outputs, (unit + 1) * OUTPUTS)
        flat[low * synapses * taps : high * synapses * taps] = 0
        for tile in range(tiles.shape[0]):
            _gradient_unit(inputs[tile], grads[tile], at, flat, synapses, outer.shape[2], taps, low, high)
