"""Event-driven projection on the CPU: lists of the nonzeros, and sums of the rows that they name.

Both directions are the same sum of gathered rows::

    y[r, :]  = bias + sum over the nonzeros (r, j) of  x[r, j] * w[j, :]        forward
    dw[j, :] =        sum over the nonzeros (r, j) of  x[r, j] * gy[r, :]       weight gradient

What decides the speed is the second-level cache: every gathered row is read from there. So the columns are
cut into tiles such that the gathered matrix (the weights, or a block of rows of ``gy``) fits, and a tile
that is not the whole row is first copied together: rows a power of two apart would fall into the same few
sets of the cache. The sum of 64 columns stays in registers while its events pass by. Numba's loops cannot
say that (their vectors would be written back and read again for every few events: 1.5 times slower), so
this one loop, and the search for nonzeros, are given to the compiler as vector instructions. They are
LLVM's own, for any machine.

The order of every sum is that of the events, whatever the tiles and the number of threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import extending, njit, prange, types

from .lines import prefetch_write
from .threading import kernel, threads

Array = np.ndarray[Any, Any]
intrinsic: Any = extending.intrinsic  # what it makes is called with other arguments than it is written with

TILE_BYTES = 1 << 20
"""Most bytes of a tile of the weights or of their gradient: half of the second-level cache it was tuned on."""

GRADIENT_TILE = 256
"""Most columns of a tile of the weight gradient: more would leave fewer rows to a block."""

GRADIENT_BLOCK_BYTES = 512 << 10
"""Bytes of a block of rows of ``gy``; the weight gradient, that it is added to, passes by."""

WIDE, NARROW = 64, 16
"""Columns summed in registers at once: four AVX-512 registers (eight of AVX2), and one for the rest."""


# -------------------------------------------------------------------------------------- vector instructions


def _pointer(context: Any, builder: Any, kind: Any, array: Any, offset: Any) -> Any:
    """The address of ``array[offset]`` of a contiguous array, counted in elements from its start."""
    return builder.gep(context.make_array(kind)(context, builder, array).data, [offset])


def _load(builder: Any, pointer: Any, vector: Any, align: int) -> Any:
    value = builder.load(builder.bitcast(pointer, vector.as_pointer()))
    value.align = align
    return value


def _gather(lanes: int, valued: bool) -> Any:
    """Generate the loop that adds rows of ``lanes`` columns (times their values) to a sum in registers.

    ``for e in range(first, last): out[at : at+lanes] += values[e] * matrix[index[e], begin : begin+lanes]``
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        out, at, matrix, begin, index, values, first, last, _ = arguments
        kinds = signature.args
        number = context.get_value_type(kinds[0].dtype)
        align = context.get_abi_sizeof(number)
        vector, word = ir.VectorType(number, lanes), first.type
        width = builder.extract_value(context.make_array(kinds[2])(context, builder, matrix).shape, 1)
        target = _pointer(context, builder, kinds[0], out, at)
        before = _load(builder, target, vector, align)

        entry, head = builder.block, builder.append_basic_block("events")
        body, done = builder.append_basic_block("event"), builder.append_basic_block("done")
        builder.branch(head)
        builder.position_at_end(head)
        event, total = builder.phi(word), builder.phi(vector)
        event.add_incoming(first, entry)
        total.add_incoming(before, entry)
        builder.cbranch(builder.icmp_unsigned("<", event, last), body, done)

        builder.position_at_end(body)
        row = builder.zext(builder.load(_pointer(context, builder, kinds[4], index, event)), word)
        start = builder.add(builder.mul(row, width), begin)
        term = _load(builder, _pointer(context, builder, kinds[2], matrix, start), vector, align)
        if valued:
            value = builder.load(_pointer(context, builder, kinds[5], values, event))
            one = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.IntType(32)(0))
            all_lanes = ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes)
            term = builder.fmul(
                builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), all_lanes), term
            )
        event.add_incoming(builder.add(event, word(1)), body)
        total.add_incoming(builder.fadd(total, term), body)
        builder.branch(head)

        builder.position_at_end(done)
        builder.store(total, builder.bitcast(target, vector.as_pointer())).align = align
        return context.get_dummy_value()

    return generate


def _gather_signature(out: Any, matrix: Any, index: Any, values: Any, lanes: Any) -> Any:
    at = types.uintp
    return types.void(out, at, matrix, at, index, values, at, at, lanes)


@intrinsic(prefer_literal=True)
def _add_rows(
    typing: Any,
    out: Any,
    at: Any,
    matrix: Any,
    begin: Any,
    index: Any,
    values: Any,
    first: Any,
    last: Any,
    lanes: Any,
) -> Any:
    """``out[at:at+lanes] += sum over e in first:last of matrix[index[e], begin:begin+lanes]``."""
    if isinstance(lanes, types.IntegerLiteral):
        return _gather_signature(out, matrix, index, values, lanes), _gather(lanes.literal_value, False)
    return None


@intrinsic(prefer_literal=True)
def _add_scaled_rows(
    typing: Any,
    out: Any,
    at: Any,
    matrix: Any,
    begin: Any,
    index: Any,
    values: Any,
    first: Any,
    last: Any,
    lanes: Any,
) -> Any:
    """The same with every row multiplied by its value."""
    if isinstance(lanes, types.IntegerLiteral):
        return _gather_signature(out, matrix, index, values, lanes), _gather(lanes.literal_value, True)
    return None


@intrinsic
def _compare_64(typing: Any, x: Any, row: Any, begin: Any) -> Any:
    """A bit for each of ``x[row, begin : begin+64]``: which are not zero; which are neither zero nor one."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        matrix, row, begin = arguments
        kind = signature.args[0]
        number = context.get_value_type(kind.dtype)
        vector = ir.VectorType(number, 64)
        width = builder.extract_value(context.make_array(kind)(context, builder, matrix).shape, 1)
        start = builder.add(builder.mul(row, width), begin)
        pointer = _pointer(context, builder, kind, matrix, start)
        x = _load(builder, pointer, vector, context.get_abi_sizeof(number))
        bits = ir.IntType(64)
        nonzero = builder.fcmp_unordered("!=", x, ir.Constant(vector, [0.0] * 64))
        graded = builder.and_(nonzero, builder.fcmp_unordered("!=", x, ir.Constant(vector, [1.0] * 64)))
        pair = [builder.bitcast(nonzero, bits), builder.bitcast(graded, bits)]
        return context.make_tuple(builder, signature.return_type, pair)

    return types.UniTuple(types.uint64, 2)(x, types.uintp, types.uintp), generate


@intrinsic
def _count_bits(typing: Any, word: Any) -> Any:
    """How many bits of a 64-bit word are set."""
    return types.uint64(types.uint64), lambda context, builder, signature, arguments: builder.ctpop(
        arguments[0]
    )


@intrinsic
def _lowest_bit(typing: Any, word: Any) -> Any:
    """The place of the lowest bit that is set in a 64-bit word (there is one)."""
    return types.uint64(types.uint64), lambda context, builder, signature, arguments: builder.cttz(
        arguments[0], ir.IntType(1)(1)
    )


# ----------------------------------------------------------------------------------------------------- lists


@njit(nogil=True, cache=True)
def _mark_rows(x: Array, masks: Array, counts: Array, first: int, last: int) -> Any:
    """Bit masks of the nonzeros of some rows, and how many they are; returns whether any is not one."""
    n_in = x.shape[1]
    graded = np.uint64(0)
    for r in range(first, last):
        n = np.uint64(0)
        for k in range(n_in // 64):
            word, other = _compare_64(x, np.uintp(r), np.uintp(k * 64))
            masks[r, k] = word
            graded |= other
            n += _count_bits(word)
        if n_in % 64:
            word = np.uint64(0)
            row = x[r]
            for j in range(n_in - n_in % 64, n_in):
                v = row[j]
                word |= np.uint64(v != 0) << np.uint64(j % 64)
                graded |= np.uint64(v != 0) & np.uint64(v != 1)
            masks[r, n_in // 64] = word
            n += _count_bits(word)
        counts[r + 1] = n
    return graded != 0


@kernel
def mark(x: Array, masks: Array, counts: Array, bounds: Array, graded: Array) -> None:
    """Bit masks and counts of all rows; ``graded[i]``: a value in chunk ``i`` is neither zero nor one."""
    for i in prange(bounds.shape[0] - 1):
        graded[i] = _mark_rows(x, masks, counts, bounds[i], bounds[i + 1])


@njit(nogil=True, cache=True)
def _list_rows(
    x: Array, masks: Array, starts: Array, columns: Array, values: Array, first: int, last: int
) -> None:
    valued = values.shape[0] > 0
    for r in range(first, last):
        e = starts[r]
        for k in range(masks.shape[1]):
            word = masks[r, k]
            while word != 0:
                columns[e] = np.uint64(k * 64) + _lowest_bit(word)
                word &= word - np.uint64(1)
                e += 1
        if valued:
            row = x[r]
            for e in range(starts[r], starts[r + 1]):
                values[e] = row[columns[e]]


@kernel
def list_events(x: Array, masks: Array, starts: Array, columns: Array, values: Array, bounds: Array) -> None:
    """Columns of the nonzeros, row by row, and their values where wanted."""
    for i in prange(bounds.shape[0] - 1):
        _list_rows(x, masks, starts, columns, values, bounds[i], bounds[i + 1])


@njit(nogil=True, cache=True)
def _sort_block(
    starts: Array,
    columns: Array,
    values: Array,
    first: int,
    last: int,
    ends: Array,
    rows: Array,
    moved: Array,
) -> None:
    """The events of a block of rows sorted by column; those of column ``j`` end before ``ends[j + 1]``."""
    valued = values.shape[0] > 0
    for j in range(ends.shape[0]):
        ends[j] = 0
    for e in range(starts[first], starts[last]):
        ends[columns[e] + 1] += 1
    total = starts[first]
    for j in range(ends.shape[0]):
        total += ends[j]
        ends[j] = total
    # ends[j] is where column j begins; it moves on as events are placed, and at last is where column j ends.
    for r in range(first, last):
        for e in range(starts[r], starts[r + 1]):
            j = columns[e]
            k = ends[j]
            ends[j] = k + 1
            rows[k] = r - first
            if valued:
                moved[k] = values[e]
    for j in range(ends.shape[0] - 1, 0, -1):
        ends[j] = ends[j - 1]
    ends[0] = starts[first]


@kernel
def sort_events(
    starts: Array, columns: Array, values: Array, block: int, ends: Array, rows: Array, moved: Array
) -> None:
    """The lists by column instead of by row, for every block of rows."""
    n_rows = starts.shape[0] - 1
    for i in prange(ends.shape[0]):
        _sort_block(starts, columns, values, i * block, min(n_rows, (i + 1) * block), ends[i], rows, moved)


# ------------------------------------------------------------------------------------------------------ sums


@njit(nogil=True, cache=True)
def add_events(out: Array, matrix: Array, index: Array, values: Array, first: int, last: int) -> None:
    """``out += sum over e of values[e] * matrix[index[e]]``; a multiple of 16 columns, no values: ones."""
    n = np.uintp(0)
    width = np.uintp(out.shape[0])
    begin, end = np.uintp(first), np.uintp(last)
    if values.shape[0] > 0:
        while n + np.uintp(WIDE) <= width:
            _add_scaled_rows(out, n, matrix, n, index, values, begin, end, WIDE)
            n += np.uintp(WIDE)
        while n < width:
            _add_scaled_rows(out, n, matrix, n, index, values, begin, end, NARROW)
            n += np.uintp(NARROW)
    else:
        while n + np.uintp(WIDE) <= width:
            _add_rows(out, n, matrix, n, index, values, begin, end, WIDE)
            n += np.uintp(WIDE)
        while n < width:
            _add_rows(out, n, matrix, n, index, values, begin, end, NARROW)
            n += np.uintp(NARROW)


@njit(nogil=True, cache=True)
def pack(matrix: Array, first: int, last: int, begin: int, width: int, tile: Array) -> None:
    """Copy ``matrix[first:last, begin:begin+width]`` together, with zeros in the columns of the tile beyond."""
    for r in range(first, last):
        source, target = matrix[r][begin : begin + width], tile[r - first]
        for n in range(width):
            target[n] = source[n]
        for n in range(width, target.shape[0]):
            target[n] = 0


@njit(nogil=True, cache=True)
def padded(width: int) -> int:
    """The next multiple of 16 columns."""
    return (width + NARROW - 1) // NARROW * NARROW


@njit(nogil=True, cache=True)
def _project_tile(
    w: Array,
    bias: Array,
    starts: Array,
    columns: Array,
    values: Array,
    y: Array,
    first: int,
    last: int,
    begin: int,
    width: int,
) -> None:
    """Rows ``first`` to ``last`` of ``width`` columns of ``y``."""
    tile = w
    if width < w.shape[1] or width % NARROW:
        tile = np.empty((w.shape[0], padded(width)), w.dtype)
        pack(w, 0, w.shape[0], begin, width, tile)
    offset = np.zeros(tile.shape[1], w.dtype)
    if bias.shape[0] > 0:
        for n in range(width):
            offset[n] = bias[begin + n]
    total = np.empty(tile.shape[1], w.dtype)
    for r in range(first, last):
        out = y[r][begin : begin + width]
        for n in range(0, width, NARROW):
            prefetch_write(out, n)
        for n in range(total.shape[0]):
            total[n] = offset[n]
        add_events(total, tile, columns, values, starts[r], starts[r + 1])
        for n in range(width):
            out[n] = total[n]


@kernel
def project_tiles(
    w: Array, bias: Array, starts: Array, columns: Array, values: Array, y: Array, bounds: Array, tile: int
) -> None:
    """``y = bias + x @ w``, in units of a tile of columns and a chunk of rows."""
    n_out = w.shape[1]
    chunks = bounds.shape[0] - 1
    for unit in prange((n_out + tile - 1) // tile * chunks):
        begin = unit // chunks * tile
        i = unit % chunks
        _project_tile(
            w, bias, starts, columns, values, y, bounds[i], bounds[i + 1], begin, min(tile, n_out - begin)
        )


@njit(nogil=True, cache=True)
def add_all(out: Array, matrix: Array, rows: int) -> None:
    """``out += the sum of the first rows``."""
    part = np.zeros(out.shape[0], out.dtype)
    for r in range(rows):
        row = matrix[r]
        for n in range(part.shape[0]):
            part[n] += row[n]
    for n in range(part.shape[0]):
        out[n] += part[n]


@njit(nogil=True, cache=True)
def _gradient_tile(
    gy: Array,
    ends: Array,
    rows: Array,
    values: Array,
    dw: Array,
    db: Array,
    block: int,
    first: int,
    last: int,
    begin: int,
    width: int,
) -> None:
    """Inputs ``first`` to ``last`` of ``width`` columns of ``dw``."""
    n_rows = gy.shape[0]
    packed = width < gy.shape[1] or width % NARROW != 0
    # A tile of the gradient is summed in its own place for the reason that gathered rows are copied together.
    total = np.zeros((last - first, padded(width)), gy.dtype)
    source = np.empty((min(block, n_rows) if packed else 0, padded(width)), gy.dtype)
    column = db[begin : begin + width]  # nothing where it is not wanted
    for i in range(ends.shape[0]):
        at, until = i * block, min((i + 1) * block, n_rows)
        if packed:
            pack(gy, at, until, begin, width, source)
        else:
            source = gy[at:until]
        if column.shape[0] > 0:
            add_all(column, source, until - at)
        for j in range(first, last):
            add_events(total[j - first], source, rows, values, ends[i, j], ends[i, j + 1])
    for j in range(first, last):
        out, found = dw[j][begin : begin + width], total[j - first]
        for n in range(width):
            out[n] = found[n]


@kernel
def gradient_tiles(
    gy: Array,
    ends: Array,
    rows: Array,
    values: Array,
    dw: Array,
    db: Array,
    block: int,
    bounds: Array,
    tile: int,
) -> None:
    """``dw = x.T @ gy`` and ``db = gy.sum(0)``, in units of a tile of columns and a chunk of inputs."""
    n_out = gy.shape[1]
    chunks = bounds.shape[0] - 1
    for unit in prange((n_out + tile - 1) // tile * chunks):
        begin = unit // chunks * tile
        i = unit % chunks
        # of the chunks of inputs the first one sums the bias gradient (the first chunk may hold no input at all)
        column = db if i == 0 else db[:0]
        _gradient_tile(
            gy,
            ends,
            rows,
            values,
            dw,
            column,
            block,
            bounds[i],
            bounds[i + 1],
            begin,
            min(tile, n_out - begin),
        )


# --------------------------------------------------------------------------------------- what the rest calls


@njit(nogil=True, cache=True)
def sample(x: Array, step: int, count: int) -> int:
    """Nonzeros in ``count`` rows of ``x``, ``step`` apart and around the end."""
    found = 0
    for i in range(count):
        row = x[i * step % x.shape[0]]
        for j in range(row.shape[0]):
            found += row[j] != 0
    return found


def _even(total: int, parts: int) -> Array:
    """Bounds that cut ``total`` items into chunks of the same size."""
    return np.arange(parts + 1) * total // parts


def _balanced(starts: Array, parts: int) -> Array:
    """Bounds that cut rows into chunks of the same work: four for a row, and its events.

    The rows are time first: where spikes come in a burst, equal numbers of rows would be unequal work.
    """
    work = starts + 4 * np.arange(starts.shape[0])
    return np.searchsorted(work, np.linspace(0, work[-1], parts + 1)).astype(np.int64)


def _tile(n_in: int, n_out: int, itemsize: int) -> int:
    """Columns of a tile: all where ``n_in`` rows of them fit, otherwise a multiple of 64."""
    fitting = TILE_BYTES // (n_in * itemsize)
    return n_out if n_out <= fitting else min(n_out, max(WIDE, fitting // WIDE * WIDE))


def _chunks(tiles: int) -> int:
    """Into how many chunks to cut the rows so that the units are the same number for every thread."""
    return 1 if tiles % threads() == 0 else threads()


def find(x: Array) -> tuple[Array, Array, bool]:
    """Nonzeros of contiguous ``x (rows, n_in)``.

    Returns: ``masks (rows, ceil(n_in / 64))``, a bit for every element; ``starts (rows + 1,)``, where each
    row's list will begin, the last being the number of all; whether any is not one.
    """
    rows, n_in = x.shape
    masks = np.empty((rows, (n_in + 63) // 64), np.uint64)
    counts = np.zeros(rows + 1, np.int64)
    bounds = _even(rows, threads())
    graded = np.zeros(bounds.shape[0] - 1, np.bool_)
    mark(x, masks, counts, bounds, graded)
    return masks, np.cumsum(counts), bool(graded.any())


def lists(x: Array, masks: Array, starts: Array, graded: bool) -> tuple[Array, Array]:
    """Columns of the nonzeros in order, and their values (empty when all are one)."""
    events = int(starts[-1])
    columns = np.empty(events, np.int32)
    values = np.empty(events if graded else 0, x.dtype)
    list_events(x, masks, starts, columns, values, _balanced(starts, threads()))
    return columns, values


def project(w: Array, bias: Array, starts: Array, columns: Array, values: Array, y: Array) -> None:
    """``y = bias + x @ w``; ``w (n_in, n_out)`` contiguous, ``bias`` may be empty."""
    n_in, n_out = w.shape
    tile = _tile(n_in, n_out, w.itemsize)
    bounds = _balanced(starts, _chunks(-(-n_out // tile)))
    project_tiles(w, bias, starts, columns, values, y, bounds, tile)


def weight_gradient(gy: Array, starts: Array, columns: Array, values: Array, dw: Array, db: Array) -> None:
    """``dw = x.T @ gy`` and ``db = gy.sum(0)``; ``gy (rows, n_out)`` and ``dw (n_in, n_out)`` contiguous, ``db`` may be empty.

    Threads share the columns where each gets 64 of them, so that each reads its part of ``gy`` only; otherwise the inputs.
    """
    n_in, n_out = dw.shape
    tile = min(_tile(n_in, n_out, gy.itemsize), GRADIENT_TILE)
    share = -(-n_out // (threads() * WIDE)) * WIDE
    tile = min(tile, share) if n_out > WIDE else tile
    block = min(max(1, GRADIENT_BLOCK_BYTES // (tile * gy.itemsize)), 1 << 16)
    ends = np.empty((-(-gy.shape[0] // block), n_in + 1), np.int64)
    rows = np.empty(columns.shape[0], np.uint16)
    moved = np.empty_like(values)
    sort_events(starts, columns, values, block, ends, rows, moved)
    db[:] = 0
    gradient_tiles(gy, ends, rows, moved, dw, db, block, _even(n_in, _chunks(-(-n_out // tile))), tile)
