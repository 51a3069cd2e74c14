"""The lists of a convolution: which nonzeros of the input each place of the output sees, and through which tap."""

from __future__ import annotations

from typing import Any, TypeAlias

from numba import prange

from .threading import kernel

Array: TypeAlias = Any


@kernel
def count(
    starts: Array,
    source: Array,
    taps: int,
    dilation: int,
    before: int,
    steps: int,
    batch: int,
    places: int,
    counts: Array,
) -> None:
    """How many events each place of the output sees."""
    out = counts.shape[0] // source.shape[1]
    for u in prange(out):
        t, b = u // batch, u % batch
        for q in range(source.shape[1]):
            n = 0
            for k in range(taps):
                when = t + k * dilation - before
                if when >= 0 and when < steps:
                    first = (when * batch + b) * places
                    for j in range(source.shape[0]):
                        p = source[j, q]
                        if p >= 0:
                            n += starts[first + p + 1] - starts[first + p]
            counts[u * source.shape[1] + q] = n


@kernel
def spread(
    starts: Array,
    columns: Array,
    values: Array,
    source: Array,
    taps: int,
    dilation: int,
    before: int,
    steps: int,
    batch: int,
    places: int,
    channels: int,
    begin: Array,
    named: Array,
    moved: Array,
) -> None:
    """The events of each place of the output, named ``(tap of time, tap of space, channel)``."""
    out = (begin.shape[0] - 1) // source.shape[1]
    valued = values.shape[0] > 0
    for u in prange(out):
        t, b = u // batch, u % batch
        for q in range(source.shape[1]):
            e = begin[u * source.shape[1] + q]
            for k in range(taps):
                when = t + k * dilation - before
                if when >= 0 and when < steps:
                    first = (when * batch + b) * places
                    for j in range(source.shape[0]):
                        p = source[j, q]
                        if p >= 0:
                            name = (k * source.shape[0] + j) * channels
                            for i in range(starts[first + p], starts[first + p + 1]):
                                named[e] = name + columns[i]
                                if valued:
                                    moved[e] = values[i]
                                e += 1
