"""Tiny numbers as zero, while gradients run.

Surrogate derivatives far from the threshold and gradients from long ago are products of many small numbers. They end among the
denormal numbers (below 1e-38 in float32), on which a processor is up to a hundred times slower, here and in every product that is
made of them afterwards: a training step of a convolutional network took three times as long. A backward loop therefore asks the
processor to take them for zero, on its own threads and only while it runs.
"""

from __future__ import annotations

import platform
from typing import Any

from llvmlite import ir
from numba import extending, types

intrinsic: Any = extending.intrinsic  # what it makes is called with other arguments than it is written with

KNOWN = platform.machine().lower() in ("x86_64", "amd64")
"""Elsewhere nothing is asked, and nothing changes."""

ZEROS = 0x8040
"""Bits of the control register: results that are denormal become zero, and so do operands."""


def _register(builder: Any, name: str, place: Any) -> None:
    byte = ir.IntType(8).as_pointer()
    access = builder.module.declare_intrinsic(name, [], ir.FunctionType(ir.VoidType(), [byte]))
    builder.call(access, [builder.bitcast(place, byte)])


@intrinsic
def flush_tiny(typing: Any) -> Any:
    """Take denormal numbers for zero from here on, on this thread; gives what :func:`restore_tiny` takes."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word = ir.IntType(32)
        if not KNOWN:
            return word(0)
        place = builder.alloca(word)
        _register(builder, "llvm.x86.sse.stmxcsr", place)
        before = builder.load(place)
        builder.store(builder.or_(before, word(ZEROS)), place)
        _register(builder, "llvm.x86.sse.ldmxcsr", place)
        return before

    return types.uint32(), generate


@intrinsic
def restore_tiny(typing: Any, before: Any) -> Any:
    """As it was before :func:`flush_tiny`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if KNOWN:
            place = builder.alloca(ir.IntType(32))
            builder.store(arguments[0], place)
            _register(builder, "llvm.x86.sse.ldmxcsr", place)
        return context.get_dummy_value()

    return types.void(types.uint32), generate
