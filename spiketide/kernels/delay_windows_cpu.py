"""Delayed projections with whole kernels on the CPU that cost what the spikes of their input cost.

The kernels of an input to some outputs lie as one block ``(K, outputs)``, places in reverse; so do the outputs of a sample,
``(T, outputs)``. A spike then adds the block, times what it carries, to the window of the steps that it reaches: one pass over
contiguous memory. The gradient of the kernels adds windows to blocks in the same way::

    y[s - K + 1 + j, o] += x k_oi[K - 1 - j]                     forward, j = 0 .. K - 1
    g_oi[K - 1 - j] += x gy[s - K + 1 + j, o]                    gradient of the kernels

The order of every sum is that of the inputs and then that of time (of the samples first, for the gradient, in parts of some
spikes), whatever the number of threads. Zeros are never touched.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange

from .threading import kernel

Array = np.ndarray[Any, Any]

INPUTS = 32
"""Inputs of a unit of work of the gradient."""

TOGETHER = 128
"""Spikes of an input from which their share of the gradient is added to that of the others: a single sum over all of them would
lose digits with their number."""


@njit(nogil=True, cache=True)
def _add(target: Array, source: Array, value: Any) -> None:
    for k in range(target.shape[0]):
        target[k] += value * source[k]


@njit(nogil=True, cache=True)
def _move(part: Array, found: Array) -> None:
    """Add a part to the whole, and begin it anew."""
    for k in range(part.shape[0]):
        found[k] += part[k]
        part[k] = 0


@kernel
def project(
    starts: Array, steps: Array, values: Array, blocks: Array, before: int, outputs: int, y: Array
) -> None:
    """Outputs of the spikes.

    Args:
        starts: ``(B, I + 1)`` int64, where the spikes of each input begin.
        steps: their frames.
        values: what they carry.
        blocks: ``(groups, I, K, width)``, the kernels, places in reverse.
        before: silent frames in front of the first.
        outputs: of the layer, in groups of ``width``.
        y: ``(T, B, O)``, taken.
    """
    groups, inputs, places, width = blocks.shape
    length, samples = y.shape[0], y.shape[1]
    for unit in prange(groups * samples):
        b, group = unit % samples, unit // samples
        tile = np.zeros(length * width, y.dtype)
        for i in range(inputs):
            block = blocks[group, i].reshape(-1)
            for e in range(starts[b, i], starts[b, i + 1]):
                first = steps[e] + before - places + 1
                low, high = max(0, first), min(length, first + places)
                if low < high:
                    window = tile[low * width : high * width]
                    _add(window, block[(low - first) * width : (high - first) * width], values[e])
        begin = group * width
        count = min(width, outputs - begin)
        for t in range(length):
            target = y[t, b]
            for o in range(count):
                target[begin + o] = tile[t * width + o]


@kernel
def to_groups(gy: Array, grouped: Array) -> None:
    """``gy (T, B, O)`` -> ``(B, groups, T, width)``, zeros beyond the last output."""
    steps, samples, outputs = gy.shape
    groups, width = grouped.shape[1], grouped.shape[3]
    for b in prange(samples):
        for t in range(steps):
            line = gy[t, b]
            for group in range(groups):
                target, begin = grouped[b, group, t], group * width
                for o in range(width):
                    target[o] = line[begin + o] if begin + o < outputs else 0


@kernel
def gradient(starts: Array, steps: Array, values: Array, grouped: Array, before: int, found: Array) -> None:
    """Gradient of the kernels, in the form of ``blocks``; ``grouped`` of :func:`to_groups`, the rest as in :func:`project`."""
    groups, inputs, places, width = found.shape
    samples, length = grouped.shape[0], grouped.shape[2]
    parts = (inputs + INPUTS - 1) // INPUTS
    for unit in prange(groups * parts):
        group, begin = unit % groups, unit // groups * INPUTS
        stop = min(inputs, begin + INPUTS)
        found[group, begin:stop] = 0
        parts = np.zeros((stop - begin, places * width), found.dtype)
        waiting = np.zeros(stop - begin, np.int64)
        for b in range(samples):
            rows = grouped[b, group].reshape(-1)
            for i in range(begin, stop):
                part = parts[i - begin]
                for e in range(starts[b, i], starts[b, i + 1]):
                    first = steps[e] + before - places + 1
                    low, high = max(0, first), min(length, first + places)
                    if low < high:
                        target = part[(low - first) * width : (high - first) * width]
                        _add(target, rows[low * width : high * width], values[e])
                    waiting[i - begin] += 1
                    if waiting[i - begin] == TOGETHER:
                        waiting[i - begin] = 0
                        _move(part, found[group, i].reshape(-1))
        for i in range(begin, stop):
            _move(parts[i - begin], found[group, i].reshape(-1))
