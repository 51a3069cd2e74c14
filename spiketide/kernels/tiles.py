"""Vector code that a compiler of loops does not find: a matrix product in registers, and the places of what is not zero.

A time loop multiplies a few rows by a matrix at every step. Written as loops, the sums go out to the cache and back for every
row of the matrix; here a tile of the result stays in vector registers while the rows stream by. On one core the product with a
256 x 256 matrix runs at 95 GFLOP/s with AVX2 (AMD EPYC), where the vendor's library reaches 87 with its data in the cache and 58
with data out of it, and with AVX-512 at 145 (Intel Xeon, when the matrix was not yet in strips), where loops reach 76.
Every sum runs over the rows in their order, alone in its lane, so results depend neither on the tile nor on the neighbours.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import extending, types
from numba.core import cgutils

intrinsic: Any = extending.intrinsic  # what it makes is called with other arguments than it is written with


@functools.cache
def register_bytes() -> int:
    """Bytes of a vector register."""
    features = binding.get_host_cpu_features()
    return 64 if features.get("avx512f") else 32 if features.get("avx") else 16


ROWS = 8 if register_bytes() == 64 else 6
"""Rows of a tile, which read a row of the matrix together."""

VECTORS = 2
"""Vector registers that a row of a tile has: with the matrix and the factor 19 of AVX-512's 32 registers, 15 of 16 otherwise."""


def columns(dtype: Any) -> int:
    """Columns of a tile for numbers of ``dtype``."""
    return register_bytes() * VECTORS // np.dtype(dtype).itemsize


def _address(context: Any, builder: Any, kind: Any, array: Any) -> tuple[Any, Any]:
    made = context.make_array(kind)(context, builder, array)
    return builder.ptrtoint(made.data, ir.IntType(64)), builder.extract_value(made.strides, 0)


@intrinsic
def tile_product(typing: Any, out: Any, places: Any, i: Any, g: Any, w: Any) -> Any:
    """``out[places, i : i + columns] = g[:ROWS] @ w``, where ``places`` are ``ROWS`` rows of ``out``.

    The matrix is cut into strips ``w (K, columns)`` beforehand (:func:`pack`), each without gaps in memory: a strip stays in the
    first-level cache for all rows of ``g``. Rows of ``out`` and ``g`` are contiguous.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        out, places, shift, g, w = arguments
        kinds, word = signature.args, ir.IntType(64)
        number = context.get_value_type(kinds[0].dtype)
        itemsize = context.get_abi_sizeof(number)
        lanes = register_bytes() // itemsize
        vector = ir.VectorType(number, lanes)
        into, into_row = _address(context, builder, kinds[0], out)
        into = builder.add(into, builder.mul(shift, word(itemsize)))
        target_rows = context.make_array(kinds[1])(context, builder, places).data
        given, given_row = _address(context, builder, kinds[3], g)
        matrix = builder.inttoptr(_address(context, builder, kinds[4], w)[0], number.as_pointer())
        inner = builder.extract_value(context.make_array(kinds[4])(context, builder, w).shape, 0)
        name = f"llvm.fmuladd.v{lanes}f{8 * itemsize}"
        fuse = cgutils.get_or_insert_function(builder.module, ir.FunctionType(vector, [vector] * 3), name)
        zero = ir.Constant(vector, [ir.Constant(number, 0.0)] * lanes)
        first = ir.Constant(ir.VectorType(ir.IntType(32), lanes), [ir.IntType(32)(0)] * lanes)
        nothing = ir.Constant(vector, ir.Undefined)
        before = builder.block
        head, body, done = (builder.append_basic_block(f"tile.{n}") for n in ("head", "body", "done"))
        rows = [
            builder.inttoptr(builder.add(given, builder.mul(given_row, word(r))), number.as_pointer())
            for r in range(ROWS)
        ]
        builder.branch(head)
        builder.position_at_end(head)
        j = builder.phi(word)
        j.add_incoming(word(0), before)
        sums = [[builder.phi(vector) for _ in range(VECTORS)] for _ in range(ROWS)]
        for row in sums:
            for value in row:
                value.add_incoming(zero, before)
        builder.cbranch(builder.icmp_signed("<", j, inner), body, done)
        builder.position_at_end(body)
        start = builder.gep(matrix, [builder.mul(j, word(VECTORS * lanes))])
        start = builder.bitcast(start, vector.as_pointer())
        parts = [builder.load(builder.gep(start, [word(k)]), align=itemsize) for k in range(VECTORS)]
        for r in range(ROWS):
            value = builder.load(builder.gep(rows[r], [j]))
            one = builder.insert_element(nothing, value, ir.IntType(32)(0))
            all_ = builder.shuffle_vector(one, nothing, first)
            for k in range(VECTORS):
                sums[r][k].add_incoming(builder.call(fuse, [all_, parts[k], sums[r][k]]), body)
        j.add_incoming(builder.add(j, word(1)), body)
        builder.branch(head)
        builder.position_at_end(done)
        for r in range(ROWS):
            place = builder.load(builder.gep(target_rows, [word(r)]))
            target = builder.inttoptr(builder.add(into, builder.mul(into_row, place)), vector.as_pointer())
            for k in range(VECTORS):
                builder.store(sums[r][k], builder.gep(target, [word(k)]), align=itemsize)
        return context.get_dummy_value()

    return types.void(out, places, types.intp, g, w), generate


def pack(matrix: Any) -> Any:
    """A torch matrix ``(K, N)`` in strips ``(ceil(N / columns), K, columns)``, zeros beyond its end."""
    width = columns(matrix.numpy().dtype)
    strips = -(-matrix.shape[1] // width)
    padded = matrix.new_zeros(matrix.shape[0], strips * width)
    padded[:, : matrix.shape[1]] = matrix
    return padded.unflatten(1, (strips, width)).movedim(1, 0).contiguous()


BITS = 64


@intrinsic
def nonzero_bits(typing: Any, array: Any, index: Any) -> Any:
    """Bit ``q`` says whether ``array[index + q]`` is not zero, for 64 numbers of a contiguous one-dimensional array."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        values, offset = arguments
        data = context.make_array(signature.args[0])(context, builder, values).data
        number = context.get_value_type(signature.args[0].dtype)
        vector = ir.VectorType(number, BITS)
        start = builder.bitcast(builder.gep(data, [offset]), vector.as_pointer())
        loaded = builder.load(start, align=context.get_abi_sizeof(number))
        zero = ir.Constant(vector, [ir.Constant(number, 0.0)] * BITS)
        return builder.bitcast(builder.fcmp_unordered("!=", loaded, zero), ir.IntType(BITS))

    return types.uint64(array, types.intp), generate


@intrinsic
def lowest_bit(typing: Any, bits: Any) -> Any:
    """Place of the lowest bit that is set, of a number that is not zero."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.IntType(1)(1))

    return types.int64(types.uint64), generate
