"""First spikes on the CPU: the events of a sample in the order of time, neurons beside each other in memory.

An image is worked off row by row. An event changes the slope of the membranes that hear it: one row of weights is added, in a
convolution that of all places of the row at once. From one time to the next the membranes move on along their slopes. Where all
times are whole, those are single steps without a branch; else the neurons that have crossed are counted, and only where there are
any a division says when. A neuron that has fired stays at ``-inf``.

A fully connected layer is the convolution of an image of one pixel. A group of a convolution is a convolution of its own.

Images lie channels last in memory (their shape is ``(B, C, H, W)`` all the same): that is the order in which rows of weights,
windows and displacements are contiguous.

In the backward pass only neurons with a displacement are looked at, and in fully connected layers only inputs that fired. Sums
over samples are made in a fixed order and a fixed number of parts, so that they do not depend on the number of threads.

Memory of the forward pass beside weights and results, in bytes for each sample and group in work (one for each thread), with
``N`` inputs, of which ``n`` fire, kernels of ``k`` events, windows of ``h`` rows and numbers of ``f`` bytes::

    N (f + 16)  +  n k (f + 4)  +  n k ceil(h / stride) (2 f + 12)  +  8 max(stop, n / 8)  +  a few rows of neurons

That of the backward pass: ``min(8, B)`` gradients of the weights in a convolution; in a fully connected layer the weights of 8
inputs and their gradient for each thread, and three times the outputs of the batch.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

from .first_spike import Fired, Shape, Terms, Window, even
from .memory import empty
from .threading import kernel

Array = np.ndarray[Any, Any]

PARTS = 8
"""Parts of the batch with a weight gradient of their own."""

LANES = 32
"""Rows of neurons are padded to a multiple of it, so that loops over them have no rest."""

CHUNK = 64
"""Neurons that are asked together whether any has crossed."""

GAP = 16
"""Steps without an event that are still walked one by one."""

STRIP = 8
"""Inputs whose weight gradient is summed up together."""

MULTIPLE = np.uint64(2**64 - 16)
"""Mask that tells the compiler that a count has no rest after 16."""


# Rows are named by the place where they begin. Places are unsigned: Numba checks a signed one for counting from the end, and a
# loop with such a check is not turned into vector instructions. Constants are arguments: a literal is a float64, and so becomes
# the loop.


@njit(cache=True, nogil=True, error_model="numpy")
def _hear(
    slope: Array,
    weight: Array,
    n: int,
    at: Array,
    rise: Array,
    spot: Array,
    row: Array,
    first: int,
    last: int,
    flat: bool,
) -> int:
    """Add what the events from ``first`` on bring that come at one time; ``flat``: to all neurons. Returns the next event."""
    j = first
    now = at[first]
    while j < last and at[j] == now:
        if flat and j + 3 < last and at[j + 3] == now:
            a0, a1, a2, a3 = rise[j], rise[j + 1], rise[j + 2], rise[j + 3]
            r0, r1, r2, r3 = (
                np.uint64(row[j]),
                np.uint64(row[j + 1]),
                np.uint64(row[j + 2]),
                np.uint64(row[j + 3]),
            )
            for o in range(np.uint64(n) & MULTIPLE):
                two = a0 * weight[r0 + o] + a1 * weight[r1 + o]
                slope[o] += two + (a2 * weight[r2 + o] + a3 * weight[r3 + o])
            j += 4
        else:
            a = rise[j]
            begin, source = np.uint64(spot[j]), np.uint64(row[j])
            for o in range(np.uint64(n) & MULTIPLE):
                slope[begin + o] += a * weight[source + o]
            j += 1
    return j


@njit(cache=True, nogil=True, error_model="numpy")
def _tick(
    v: Array, slope: Array, margin: int, n: int, t: Array, at: float, threshold: float, low: float
) -> None:
    """One step on, and who has crossed."""
    first = np.uint64(margin)
    for o in range(np.uint64(n) & MULTIPLE):
        x = v[o] + slope[first + o]
        t[o] = at if x >= threshold else t[o]
        v[o] = low if x >= threshold else x


@njit(cache=True, nogil=True, error_model="numpy")
def _tick_all(
    v: Array,
    slope: Array,
    margin: int,
    n: int,
    t: Array,
    r: Array,
    q: Array,
    at: float,
    threshold: float,
    low: float,
) -> None:
    """The same, with slope and potential at the spike."""
    first = np.uint64(margin)
    for o in range(np.uint64(n) & MULTIPLE):
        s = slope[first + o]
        x = v[o] + s
        t[o] = at if x >= threshold else t[o]
        r[o] = s if x >= threshold else r[o]
        q[o] = x if x >= threshold else q[o]
        v[o] = low if x >= threshold else x


# A count is exact in any order. All other sums keep the order they are written in, and products stay products: the variants of a
# loop for one thread and for several are compiled apart and must not round differently.


@njit(cache=True, nogil=True, fastmath={"reassoc"}, error_model="numpy")
def _move(
    v: Array,
    before: Array,
    slope: Array,
    margin: int,
    first: int,
    n: int,
    dt: float,
    threshold: float,
    one: float,
) -> float:
    """Along the slopes for a while; how many are at the threshold then."""
    begin, shift = np.uint64(first), np.uint64(first + margin)
    reached = one - one
    for o in range(np.uint64(n) & MULTIPLE):
        x = v[begin + o]
        before[begin + o] = x
        x += slope[shift + o] * dt
        v[begin + o] = x
        reached += one if x >= threshold else one - one
    return reached


@njit(cache=True, nogil=True, error_model="numpy")
def _leap(
    v: Array,
    before: Array,
    slope: Array,
    margin: int,
    n: int,
    chunk: int,
    t: Array,
    r: Array,
    q: Array,
    now: float,
    following: float,
    threshold: float,
    stop: float,
    discrete: bool,
    low: float,
    one: float,
) -> None:
    """On to the following event; where any has crossed, the time at which it did. That depends on nothing that comes later."""
    least = np.floor(now) + one if discrete else now
    for begin in range(0, n, chunk):
        count = min(chunk, n - begin)
        if _move(v, before, slope, margin, begin, count, following - now, threshold, one) == 0:
            continue
        first, shift = np.uint64(begin), np.uint64(begin + margin)
        for o in range(np.uint64(count) & MULTIPLE):
            x = v[first + o]
            s = slope[shift + o]
            at = now + (threshold - before[first + o]) / s
            # by rounding it may lie outside
            at = at if at < following else following
            at = np.ceil(at) if discrete else at
            at = at if at > least else least
            fires = (x >= threshold) & (at < stop)
            t[first + o] = at if fires else t[first + o]
            r[first + o] = s if fires else r[first + o]
            q[first + o] = before[first + o] + s * (at - now) if fires else q[first + o]
            v[first + o] = low if fires else x


@njit(cache=True, nogil=True, error_model="numpy")
def _judge(
    v: Array, margin: int, n: int, t: Array, q: Array, at: float, threshold: float, low: float
) -> None:
    """Membranes that jump: who is there now."""
    first = np.uint64(margin)
    for o in range(np.uint64(n) & MULTIPLE):
        x = v[first + o]
        t[o] = at if x >= threshold else t[o]
        q[o] = x if x >= threshold else q[o]
        v[first + o] = low if x >= threshold else x


@njit(cache=True, nogil=True, error_model="numpy")
def _sort(times: Array, n: int, delays: Array, stop: float, when: Array, which: Array) -> int:
    """Events ``which = input * kinds + kind`` by time, equal ones by input: by buckets, then inside them. Returns how many."""
    kinds = delays.shape[0]
    buckets = int(min(max(np.ceil(stop), n // 8), 65536))
    scale = buckets / float(stop)
    count = np.zeros(buckets + 1, np.int64)
    for k in range(kinds):
        for i in range(n):
            t = times[i] + delays[k]
            if t < stop:
                count[min(int(t * scale), buckets - 1) + 1] += 1
    for j in range(buckets):
        count[j + 1] += count[j]
    total = count[buckets]
    begin = count.copy()
    for k in range(kinds):
        for i in range(n):
            t = times[i] + delays[k]
            if t < stop:
                bucket = min(int(t * scale), buckets - 1)
                place = count[bucket]
                count[bucket] = place + 1
                while place > begin[bucket] and when[place - 1] > t:
                    when[place] = when[place - 1]
                    which[place] = which[place - 1]
                    place -= 1
                when[place] = t
                which[place] = i * kinds + k
    return int(total)


@kernel(parallel=True, error_model="numpy")
def _fire(
    times: Array,
    size: Any,
    out_size: Any,
    rows: int,
    spots: int,
    width: int,
    stride: int,
    padding: int,
    groups: int,
    weight: Array,
    delays: Array,
    rises: Array,
    jump: bool,
    whole_kernel: bool,
    threshold: Any,
    stop: Any,
    low: Any,
    one: Any,
    potential: bool,
    slopes: bool,
    discrete: bool,
    chunk: int,
    gap: int,
    lanes: int,
    out_t: Array,
    out_v: Array,
    out_r: Array,
) -> None:
    """``weight``: for each group, input channel, phase of the stride and row of the window the weights of a row of places."""
    samples, pixels, channels = times.shape
    high, wide = size
    high_out, wide_out = out_size
    n_out = out_t.shape[1] // (high_out * wide_out)
    per_group = n_out // groups
    in_group = channels // groups
    kinds = delays.shape[0]
    margin = (spots - 1) * per_group
    n = wide_out * per_group
    padded = (n + lanes - 1) // lanes * lanes
    reach = max(((wide - 1 + padding) // stride) * per_group + width, margin + padded)
    flat = high == 1 and wide == 1 and spots == 1 and padding == 0
    detail = potential or slopes
    for unit in prange(samples * groups):
        b = unit // groups
        group = unit % groups
        # the inputs that fire: when, in which row, where they reach the neurons' row, and where their weights are
        inputs = pixels * in_group
        fired_at = np.empty(inputs + 1, times.dtype)
        fired_y = np.empty(inputs + 1, np.int32)
        fired_spot = np.empty(inputs + 1, np.int32)
        fired_row = np.empty(inputs + 1, np.int64)
        active = 0
        whole = discrete and whole_kernel
        for y in range(high):
            for x in range(wide):
                place = x + padding
                spot = place // stride
                row = (group * in_group * stride + place - spot * stride) * rows * width
                for c in range(in_group):
                    t = times[b, y * wide + x, group * in_group + c]
                    fired_at[active] = t
                    fired_y[active] = y + padding
                    fired_spot[active] = spot * per_group
                    fired_row[active] = row + c * stride * rows * width
                    if t < stop:
                        active += 1
        for i in range(active):
            whole = whole and fired_at[i] == np.floor(fired_at[i])
        when = np.empty(active * kinds, times.dtype)
        which = np.empty(active * kinds, np.int32)
        total = _sort(fired_at, active, delays, stop, when, which)
        # for each row of neurons its events, in the order of time
        begin = np.zeros(high_out + 1, np.int64)
        for e in range(total):
            y = fired_y[which[e] // kinds]
            for oy in range(max(0, (y - rows + stride) // stride), min(high_out - 1, y // stride) + 1):
                begin[oy + 1] += 1
        for oy in range(high_out):
            begin[oy + 1] += begin[oy]
        pairs = begin[high_out]
        pair_at = np.empty(pairs, times.dtype)
        pair_rise = np.empty(pairs, times.dtype)
        pair_spot = np.empty(pairs, np.int32)
        pair_row = np.empty(pairs, np.int64)
        end = begin.copy()
        for e in range(total):
            i = which[e] // kinds
            rise = rises[which[e] - i * kinds]
            y = fired_y[i]
            for oy in range(max(0, (y - rows + stride) // stride), min(high_out - 1, y // stride) + 1):
                j = end[oy]
                pair_at[j] = when[e]
                pair_rise[j] = rise
                pair_spot[j] = fired_spot[i]
                pair_row[j] = fired_row[i] + (y - oy * stride) * width
                end[oy] = j + 1
        slope = np.empty(reach, times.dtype)
        v = np.empty(padded, times.dtype)
        before = np.empty(padded, times.dtype)
        t_row = np.empty(padded, times.dtype)
        r_row = np.zeros(padded, times.dtype)
        q_row = np.zeros(padded, times.dtype)
        for oy in range(high_out):
            slope[:] = 0
            v[:] = 0
            t_row[:] = np.inf
            if detail:
                r_row[:] = 0
            j = begin[oy]
            last = begin[oy + 1]
            while j < last:
                now = pair_at[j]
                j = _hear(slope, weight, width, pair_at, pair_rise, pair_spot, pair_row, j, last, flat)
                if jump:
                    at = np.ceil(now) if discrete else now
                    if at < stop:
                        _judge(slope, margin, padded, t_row, q_row, at, threshold, low)
                    continue
                following = pair_at[j] if j < last else stop
                if whole and j < last and following - now <= gap:
                    at = now
                    while at < following:
                        at += one
                        if detail:
                            _tick_all(v, slope, margin, padded, t_row, r_row, q_row, at, threshold, low)
                        else:
                            _tick(v, slope, margin, padded, t_row, at, threshold, low)
                else:
                    _leap(
                        v,
                        before,
                        slope,
                        margin,
                        padded,
                        chunk,
                        t_row,
                        r_row,
                        q_row,
                        now,
                        following,
                        threshold,
                        stop,
                        discrete,
                        low,
                        one,
                    )
            first = oy * wide_out * n_out
            for ox in range(1 if groups == 1 else wide_out):
                source = ox * per_group
                target = first + ox * n_out + group * per_group
                count = n if groups == 1 else per_group
                for o in range(count):
                    out_t[b, target + o] = t_row[source + o]
                if slopes:
                    for o in range(count):
                        out_r[b, target + o] = r_row[source + o]
                if potential:
                    for o in range(source, source + count):
                        silent = slope[margin + o] if jump else v[o]
                        out_v[b, target - source + o] = silent if t_row[o] == np.inf else q_row[o]


@kernel(parallel=True, error_model="numpy")
def _turn(weight: Array, out: Array) -> None:
    """Transpose into padded rows, a strip at a time."""
    n_out, n_in = weight.shape
    width = out.shape[1]
    for strip in prange((n_in + 15) // 16):
        first = strip * 16
        last = min(first + 16, n_in)
        for o in range(n_out):
            for i in range(first, last):
                out[i, o] = weight[o, i]
        for i in range(first, last):
            for o in range(n_out, width):
                out[i, o] = 0


@njit(cache=True, nogil=True, error_model="numpy")
def _terms(
    gain: int,
    inverse: bool,
    found: float,
    g: float,
    r: float,
    stop: float,
    unit: float,
    limit: float,
    height: float,
    out: Array,
    j: int,
) -> None:
    """Time, update and carry of one neuron: :func:`.first_spike.terms` for one number, or what was given (``gain`` 0)."""
    out[j, 0], out[j, 1], out[j, 2] = found, g, r
    if gain == 0:
        return
    silent = found == np.inf
    steep = 1.0
    if gain == 2 and not silent:
        steep = found / (2.0 * unit)
    elif gain == 3 and not silent:
        steep = min(1.0 / max(unit * r, 1e-30), limit) * height
    out[j, 0] = stop if silent else found
    out[j, 1] = -g * steep
    out[j, 2] = g
    if inverse:
        out[j, 2] = 0.0 if silent else g * min(1.0 / max(r, 1e-30), limit * unit)


# In both loops a kernel is a jump (rise 0), a ramp with or without a plateau (down 0), or one that goes down again.


@njit(cache=True, nogil=True, error_model="numpy")
def _rows(
    who: Array,
    count: int,
    terms: Array,
    seen: Array,
    n: int,
    back: Array,
    dw: Array,
    place: int,
    d: Array,
    rise: float,
    up: float,
    fall: float,
    down: float,
    by_slope: bool,
    sums: bool,
    zero: float,
    endless: float,
) -> None:
    """Both sums for the neurons ``who`` of a place over the inputs that they look at, which lie beside each other."""
    for j in range(count):
        source = np.uint64(who[j] * n)
        target = np.uint64(place) + source
        at, update, carry = terms[j, 0], terms[j, 1], terms[j, 2]
        if rise == 0:
            for i in range(np.uint64(n) & MULTIPLE):
                dw[target + i] += update if seen[i] <= at else zero
            if sums and not by_slope:
                for i in range(np.uint64(n) & MULTIPLE):
                    d[i] += carry * back[source + i] if seen[i] <= at else zero
        elif down == 0 and not sums:
            for i in range(np.uint64(n) & MULTIPLE):
                e = at - seen[i]
                e = e if e > zero else zero
                dw[target + i] += update * (e if e < rise else rise)
        elif down == 0:
            bound = rise if by_slope else endless
            factor = carry * up if by_slope else carry
            for i in range(np.uint64(n) & MULTIPLE):
                e = at - seen[i]
                d[i] += factor * back[source + i] if (e > zero) & (e <= bound) else zero
                e = e if e > zero else zero
                dw[target + i] += update * (e if e < rise else rise)
        else:
            steep = down / up
            for i in range(np.uint64(n) & MULTIPLE):
                e = at - seen[i]
                lift = e if e < rise else rise
                sink = e if e < fall else fall
                sink = sink if sink > rise else rise
                slope = up if e <= rise else (-down if e <= fall else zero)
                dw[target + i] += update * (lift - (sink - rise) * steep) if e > zero else zero
                if sums:
                    d[i] += back[source + i] * (carry * slope if by_slope else carry) if e > zero else zero


@njit(cache=True, nogil=True, error_model="numpy")
def _fold(part: Array, n: int) -> float:
    """The sum of ``n`` numbers, a multiple of 16, by halves; they are lost."""
    while n > 16:
        half = (n // 16 + 1) // 2 * 16
        first = np.uint64(half)
        for o in range(np.uint64(n - half) & MULTIPLE):
            part[o] += part[first + o]
        n = half
    a = (part[0] + part[1]) + (part[2] + part[3])
    b = (part[4] + part[5]) + (part[6] + part[7])
    c = (part[8] + part[9]) + (part[10] + part[11])
    d = (part[12] + part[13]) + (part[14] + part[15])
    return (a + b) + (c + d)


@njit(cache=True, nogil=True, error_model="numpy")
def _columns(
    times: Array,
    b: int,
    first: int,
    last: int,
    fired: Array,
    update: Array,
    carry: Array,
    n: int,
    back: Array,
    dw: Array,
    d: Array,
    rise: float,
    up: float,
    fall: float,
    down: float,
    by_slope: bool,
    sums: bool,
    zero: float,
    endless: float,
    part: Array,
) -> None:
    """Both sums for some inputs of a sample over the neurons that they reach, side by side in memory; ``part`` is scratch."""
    mine = np.uint64(b * n)
    steep = down / up
    bound = rise if by_slope else endless
    for i in range(first, last):
        at = times[b, i]
        if not at < endless:
            if sums:
                d[b, i] = zero
            continue
        source = np.uint64((i - first) * n)
        if rise == 0:
            for o in range(np.uint64(n) & MULTIPLE):
                dw[source + o] += update[mine + o] if fired[mine + o] >= at else zero
            if sums:
                for o in range(np.uint64(n) & MULTIPLE):
                    part[o] = carry[mine + o] * back[source + o] if fired[mine + o] >= at else zero
        elif down == 0 and not sums:
            for o in range(np.uint64(n) & MULTIPLE):
                e = fired[mine + o] - at
                e = e if e > zero else zero
                dw[source + o] += update[mine + o] * (e if e < rise else rise)
        elif down == 0:
            for o in range(np.uint64(n) & MULTIPLE):
                e = fired[mine + o] - at
                part[o] = carry[mine + o] * back[source + o] if (e > zero) & (e <= bound) else zero
                e = e if e > zero else zero
                dw[source + o] += update[mine + o] * (e if e < rise else rise)
        else:
            for o in range(np.uint64(n) & MULTIPLE):
                e = fired[mine + o] - at
                lift = e if e < rise else rise
                sink = e if e < fall else fall
                sink = sink if sink > rise else rise
                slope = up if e <= rise else (-down if e <= fall else zero)
                dw[source + o] += update[mine + o] * (lift - (sink - rise) * steep) if e > zero else zero
                if sums:
                    x = carry[mine + o] * back[source + o]
                    part[o] = (x * slope if by_slope else x) if e > zero else zero
        if sums:
            total = _fold(part, n)
            if by_slope and down == 0:
                total = zero if rise == 0 else total * up
            d[b, i] = total


@kernel(parallel=True, error_model="numpy")
def _back_linear(
    times: Array,
    found: Array,
    grad: Array,
    slope: Array,
    back: Array,
    gain: int,
    inverse: bool,
    stop: Any,
    unit: Any,
    limit: Any,
    height: Any,
    rise: Any,
    up: Any,
    fall: Any,
    down: Any,
    zero: Any,
    endless: Any,
    by_slope: bool,
    sums: bool,
    lanes: int,
    strip_of: int,
    dw: Array,
    d: Array,
) -> None:
    """Some inputs at a time: their weights, the gradient of these and the terms of a sample fit into the first-level cache."""
    samples, n_in = times.shape
    n_out = found.shape[1]
    width = (n_out + lanes - 1) // lanes * lanes
    at = np.zeros(samples * width, times.dtype)
    update = np.zeros(samples * width, times.dtype)
    carry = np.zeros(samples * width, times.dtype)
    used = np.zeros(samples, np.bool_)
    three = np.empty((1, 3), times.dtype)
    steep = gain == 0 or gain == 3 or inverse
    for b in range(samples):
        for o in range(n_out):
            r = slope[b, o] if steep else zero
            _terms(gain, inverse, found[b, o], grad[b, o], r, stop, unit, limit, height, three, 0)
            k = b * width + o
            at[k] = three[0, 0]
            update[k] = three[0, 1] * up
            carry[k] = three[0, 2]
            used[b] = used[b] or three[0, 1] != 0 or three[0, 2] != 0
    for strip in prange((n_in + strip_of - 1) // strip_of):
        first = strip * strip_of
        last = min(first + strip_of, n_in)
        mine = np.zeros(strip_of * width, times.dtype)
        part = np.empty(width, times.dtype)
        weight = np.zeros(strip_of * width if sums else 1, times.dtype)
        if sums:
            for o in range(n_out):
                for i in range(first, last):
                    weight[(i - first) * width + o] = back[o, i]
        for b in range(samples):
            if used[b]:
                _columns(
                    times,
                    b,
                    first,
                    last,
                    at,
                    update,
                    carry,
                    width,
                    weight,
                    mine,
                    d,
                    rise,
                    up,
                    fall,
                    down,
                    by_slope,
                    sums,
                    zero,
                    endless,
                    part,
                )
            elif sums:
                d[b, first:last] = zero
        for o in range(n_out):
            for i in range(first, last):
                dw[o, i] = mine[(i - first) * width + o]


@njit(cache=True, nogil=True, error_model="numpy")
def _square(d: Array, b: int, part: Array) -> float:
    """The sum of squares of a row; ``part`` is scratch of 64."""
    part[:] = 0
    n = d.shape[1] // 64 * 64
    for begin in range(0, n, 64):
        first = np.uint64(begin)
        for k in range(np.uint64(part.shape[0]) & MULTIPLE):
            part[k] += d[b, first + k] * d[b, first + k]
    for i in range(n, d.shape[1]):
        part[i - n] += d[b, i] * d[b, i]
    return _fold(part, 64)


@kernel(parallel=True, error_model="numpy")
def _back_conv(
    times: Array,
    size: Any,
    found: Array,
    grad: Array,
    slope: Array,
    back: Array,
    gain: int,
    inverse: bool,
    stop: Any,
    unit: Any,
    limit: Any,
    height: Any,
    kernel_size: Any,
    wide_out: int,
    stride: int,
    padding: int,
    groups: int,
    rise: Any,
    up: Any,
    fall: Any,
    down: Any,
    zero: Any,
    endless: Any,
    by_slope: bool,
    sums: bool,
    normalise: bool,
    width: int,
    parts: int,
    dw: Array,
    d: Array,
) -> None:
    """``back`` and the parts ``dw``: for each map the window row by row, channels last, padded to ``width``."""
    samples, places, n_out = found.shape
    high, wide = size
    kh, kw = kernel_size
    channels = times.shape[1] // (high * wide)
    per_group = n_out // groups
    in_group = channels // groups
    steep = gain == 0 or gain == 3 or inverse
    for part in prange(parts):
        seen = np.full(width, np.inf, times.dtype)
        asked = np.zeros(width, times.dtype)
        who = np.empty(per_group + 1, np.int64)
        terms = np.empty((per_group, 3), times.dtype)
        ratio = np.empty(1, times.dtype)
        squares = np.empty(64, times.dtype)
        for b in range(part * samples // parts, (part + 1) * samples // parts):
            length = 0.0
            for p in range(places):
                top = (p // wide_out) * stride - padding
                left = (p % wide_out) * stride - padding
                inside = top >= 0 and left >= 0 and top + kh <= high and left + kw <= wide
                from_y, to_y = max(top, 0), min(top + kh, high)
                from_x, to_x = max(left, 0), min(left + kw, wide)
                run = (to_x - from_x) * channels if groups == 1 else in_group
                for group in range(groups):
                    low = group * per_group
                    count = 0
                    for o in range(low, low + per_group):
                        who[count] = o
                        count += grad[b, p, o] != 0
                    if gain == 0:
                        count = 0
                        for o in range(low, low + per_group):
                            who[count] = o
                            count += (grad[b, p, o] != 0) | (slope[b, p, o] != 0)
                    if count == 0 or run <= 0:
                        continue
                    if not inside:
                        seen[:] = np.inf
                    for y in range(from_y, to_y):
                        for x in range(from_x, from_x + 1 if groups == 1 else to_x):
                            source = np.uint64((y * wide + x) * channels + group * in_group)
                            target = np.uint64(((y - top) * kw + x - left) * in_group)
                            for c in range(np.uint64(run)):
                                seen[target + c] = times[b, source + c]
                    if sums:
                        asked[:] = 0
                    for j in range(count):
                        o = who[j]
                        g = grad[b, p, o]
                        r = slope[b, p, o] if steep else zero
                        _terms(gain, inverse, found[b, p, o], g, r, stop, unit, limit, height, terms, j)
                        terms[j, 1] *= up
                        length += g * g
                    _rows(
                        who,
                        count,
                        terms,
                        seen,
                        width,
                        back,
                        dw,
                        part * n_out * width,
                        asked,
                        rise,
                        up,
                        fall,
                        down,
                        by_slope,
                        sums,
                        zero,
                        endless,
                    )
                    if sums:
                        for y in range(from_y, to_y):
                            for x in range(from_x, from_x + 1 if groups == 1 else to_x):
                                target = np.uint64((y * wide + x) * channels + group * in_group)
                                source = np.uint64(((y - top) * kw + x - left) * in_group)
                                for c in range(np.uint64(run)):
                                    d[b, target + c] += asked[source + c]
            if normalise:
                theirs = _square(d, b, squares)
                if theirs > 0:
                    ratio[0] = np.sqrt(length / theirs)
                    factor = ratio[0]
                    for i in range(np.uint64(d.shape[1])):
                        d[b, i] *= factor


@kernel(parallel=True, error_model="numpy")
def _pool(times: Array, side: int, out: Array) -> None:
    samples, high, wide, channels = out.shape
    for b in prange(samples):
        for y in range(high):
            for x in range(wide):
                for c in range(np.uint64(channels)):
                    out[b, y, x, c] = times[b, y * side, x * side, c]
                for k in range(1, side * side):
                    i, j = y * side + k // side, x * side + k % side
                    for c in range(np.uint64(channels)):
                        t = times[b, i, j, c]
                        first = out[b, y, x, c]
                        # NaN stays, so that the next layer finds it
                        out[b, y, x, c] = t if t < first or t != t else first


@kernel(parallel=True, error_model="numpy")
def _pool_back(times: Array, first: Array, grad: Array, side: int, out: Array) -> None:
    """The first of a window in reading order that is as early as its earliest gets the gradient."""
    samples, high, wide, channels = grad.shape
    for b in prange(samples):
        zero = np.zeros(channels, times.dtype)
        rest = np.empty(channels, times.dtype)
        for y in range(high):
            for x in range(wide):
                for c in range(np.uint64(channels)):
                    rest[c] = grad[b, y, x, c]
                for k in range(side * side):
                    i, j = y * side + k // side, x * side + k % side
                    for c in range(np.uint64(channels)):
                        mine = times[b, i, j, c] == first[b, y, x, c]
                        g = rest[c]
                        out[b, i, j, c] = g if mine else zero[c]
                        rest[c] = zero[c] if mine else g


@kernel(parallel=True, error_model="numpy")
def _pool_pairs(times: Array, tall: int, broad: int, out: Array) -> None:
    """:func:`_pool` of windows of 2 in images of one channel: ``times (M tall broad)``, ``out (M, high, wide)``."""
    maps, high, wide = out.shape
    for row in prange(maps * high):
        m, y = row // high, row % high
        upper = np.uint64((m * tall + 2 * y) * broad)
        lower = upper + np.uint64(broad)
        into = out[m, y]
        for x in range(np.uint64(wide)):
            first = times[upper + np.uint64(2) * x]
            for t in (
                times[upper + np.uint64(2) * x + np.uint64(1)],
                times[lower + np.uint64(2) * x],
                times[lower + np.uint64(2) * x + np.uint64(1)],
            ):
                first = t if (t < first) | (t != t) else first
            into[x] = first


@kernel(parallel=True, error_model="numpy")
def _pool_pairs_back(times: Array, tall: int, broad: int, first: Array, grad: Array, out: Array) -> None:
    """:func:`_pool_back` of the same."""
    maps, high, wide = grad.shape
    zero = times.dtype.type(0)
    for row in prange(maps * high):
        m, y = row // high, row % high
        upper = np.uint64((m * tall + 2 * y) * broad)
        lower = upper + np.uint64(broad)
        early, given = first[m, y], grad[m, y]
        for x in range(np.uint64(wide)):
            at, below = upper + np.uint64(2) * x, lower + np.uint64(2) * x
            t, g = early[x], given[x]
            one, two, three = times[at] == t, times[at + np.uint64(1)] == t, times[below] == t
            four = times[below + np.uint64(1)] == t
            out[at] = g if one else zero
            out[at + np.uint64(1)] = g if two & (not one) else zero
            out[below] = g if three & (not (one | two)) else zero
            out[below + np.uint64(1)] = g if four & (not (one | two | three)) else zero


# ------------------------------------------------------------------------------------------------ what the tensors become


def _last(x: Tensor) -> Tensor:
    """Channels last: ``(B, H, W, C)``, contiguous."""
    return x.detach().permute(0, 2, 3, 1).contiguous()


def _events(shape: Shape, dtype: Any) -> tuple[Array, Array, bool, bool]:
    """Delays and changes of the slope (jump: of the potential), whether it jumps, whether the delays are whole."""
    events = shape.events()
    jump = shape.rise == 0
    delays = np.array([event[0] for event in events], dtype=dtype)
    rises = np.array([event[2 if jump else 1] for event in events], dtype=dtype)
    return delays, rises, jump, bool((delays == np.floor(delays)).all())


def _up(n: int, multiple: int = 16) -> int:
    return -(-n // multiple) * multiple


def _walk(
    t: Tensor,
    size: tuple[int, int],
    weight: Tensor,
    shape: Shape,
    window: Window,
    n_out: int,
    threshold: float,
    stop: float,
    exact: bool,
    potential: bool,
    slope: bool,
) -> list[Tensor]:
    """``t (B, H W, C)``, prepared weights -> three times ``(B, H' W' O)``."""
    kind = t.numpy().dtype.type
    high, wide = window.out(size)
    spots = -(-window.kernel[1] // window.stride)
    wanted = (True, potential, slope)
    out = [empty((len(t) if want else 0, high * wide * n_out), t.dtype) for want in wanted]
    _fire(
        t.numpy(),
        size,
        (high, wide),
        window.kernel[0],
        spots,
        weight.shape[-1],
        window.stride,
        window.padding,
        window.groups,
        weight.view(-1).numpy(),
        *_events(shape, kind),
        kind(threshold),
        kind(stop),
        kind(-math.inf),
        kind(1),
        potential,
        slope,
        not exact,
        CHUNK,
        GAP,
        LANES,
        *(part.numpy() for part in out),
    )
    return out


def fire_linear(
    times: Tensor,
    weight: Tensor,
    shape: Shape,
    threshold: float,
    stop: float,
    exact: bool,
    potential: bool = True,
    slope: bool = True,
) -> Fired:
    """See :func:`.first_spike.fire_linear`."""
    n_out, n_in = weight.shape
    turned = torch.empty(n_in, _up(n_out), dtype=times.dtype, device="cpu")
    _turn(weight.detach().to(times.dtype).numpy(), turned.numpy())
    t = times.detach().contiguous().view(len(times), 1, n_in)
    window = Window((1, 1))
    return Fired(*_walk(t, (1, 1), turned, shape, window, n_out, threshold, stop, exact, potential, slope))


def fire_conv(
    times: Tensor,
    weight: Tensor,
    shape: Shape,
    window: Window,
    threshold: float,
    stop: float,
    exact: bool,
    potential: bool = False,
    slope: bool = True,
) -> Fired:
    """See :func:`.first_spike.fire_conv`."""
    size = (times.shape[2], times.shape[3])
    n_out, in_group, kh, kw = weight.shape
    spots = -(-kw // window.stride)
    # an input at column x is seen at tap kx = phase + stride k by place (x - phase) / stride - k
    rows = weight.new_zeros(
        (window.groups, in_group, window.stride, kh, _up(spots * n_out // window.groups)), dtype=times.dtype
    )
    taps = weight.detach().unflatten(0, (window.groups, -1))
    for phase in range(window.stride):
        mine = taps[..., phase :: window.stride].flip(-1)
        if mine.shape[-1]:
            first = spots - mine.shape[-1]
            part = mine.permute(0, 2, 3, 4, 1).flatten(3)
            begin = first * taps.shape[1]
            rows[:, :, phase, :, begin : begin + part.shape[-1]] = part
    t = _last(times)
    out = _walk(t.flatten(1, 2), size, rows, shape, window, n_out, threshold, stop, exact, potential, slope)
    high, wide = window.out(size)
    return Fired(*(part.view(-1, high, wide, n_out).permute(0, 3, 1, 2) for part in out))


GAINS = {"constant": 1, "chord": 2, "local": 3, "exact": 3}


def _rule(terms: Terms | None, shape: Shape, kind: Any) -> tuple[Any, ...]:
    if terms is None:
        return 0, False, kind(0), kind(1), kind(1), kind(1)
    height = terms.unit if terms.gain == "exact" else 1.0
    return (
        GAINS[terms.gain],
        terms.transfer == "exact",
        *(kind(number) for number in (terms.stop, terms.unit, terms.limit, height)),
    )


def _numbers(shape: Shape, kind: Any) -> tuple[Any, ...]:
    _, rise, up, fall, down = (0.0, 0.0, 1.0, math.inf, 0.0) if shape.rise == 0 else shape.numbers()
    return tuple(kind(number) for number in (rise, up, fall, down, 0, math.inf))


def _sums_linear(
    times: Tensor,
    three: tuple[Tensor, Tensor, Tensor],
    back: Tensor,
    shape: Shape,
    terms: Terms | None,
    by_slope: bool,
    sums: bool,
) -> tuple[Tensor, Tensor]:
    """``three``: times, gradient and slope with ``terms``; times, update and carry without."""
    dw = torch.empty(back.shape, dtype=times.dtype, device="cpu")
    d = empty(times.shape if sums else (0, 0), times.dtype)
    kind = dw.numpy().dtype.type
    _back_linear(
        times.detach().contiguous().numpy(),
        *(part.detach().contiguous().numpy() for part in three),
        back.detach().contiguous().numpy(),
        *_rule(terms, shape, kind),
        *_numbers(shape, kind),
        by_slope,
        sums,
        16,
        STRIP,
        dw.numpy(),
        d.numpy(),
    )
    return dw, d


def _sums_conv(
    times: Tensor,
    three: tuple[Tensor, Tensor, Tensor],
    back: Tensor,
    shape: Shape,
    window: Window,
    terms: Terms | None,
    by_slope: bool,
    sums: bool,
    normalise: bool,
) -> tuple[Tensor, Tensor]:
    n_out, in_group, kh, kw = back.shape
    taps = in_group * kh * kw
    width = _up(taps)
    parts = min(PARTS, len(times))
    rows = torch.zeros(n_out, width, dtype=times.dtype, device="cpu")
    rows[:, :taps] = back.detach().permute(0, 2, 3, 1).flatten(1)
    dw = torch.zeros(parts, n_out, width, dtype=times.dtype, device="cpu")
    t = _last(times)
    d = torch.zeros(t.shape if sums else (0, *t.shape[1:]), dtype=times.dtype, device="cpu")
    kind = dw.numpy().dtype.type
    _back_conv(
        t.flatten(1).numpy(),
        (t.shape[1], t.shape[2]),
        *(_last(part).flatten(1, 2).numpy() for part in three),
        rows.view(-1).numpy(),
        *_rule(terms, shape, kind),
        window.kernel,
        window.out((t.shape[1], t.shape[2]))[1],
        window.stride,
        window.padding,
        window.groups,
        *_numbers(shape, kind),
        by_slope,
        sums,
        normalise,
        width,
        parts,
        dw.view(-1).numpy(),
        d.flatten(1).numpy(),
    )
    total = dw.sum(0)[:, :taps].view(n_out, kh, kw, in_group).permute(0, 3, 1, 2).contiguous()
    return total, d.permute(0, 3, 1, 2)


def back_linear(
    times: Tensor, fired: Tensor, update: Tensor, carry: Tensor, back: Tensor, shape: Shape, by_slope: bool
) -> tuple[Tensor, Tensor]:
    """See :func:`.first_spike.back_linear`."""
    return _sums_linear(times, (fired, update, carry), back, shape, None, by_slope, True)


def back_conv(
    times: Tensor,
    fired: Tensor,
    update: Tensor,
    carry: Tensor,
    back: Tensor,
    shape: Shape,
    window: Window,
    by_slope: bool,
) -> tuple[Tensor, Tensor]:
    """See :func:`.first_spike.back_conv`."""
    return _sums_conv(times, (fired, update, carry), back, shape, window, None, by_slope, True, False)


def learn(
    times: Tensor,
    fired: Fired,
    grad: Tensor,
    back: Tensor,
    shape: Shape,
    window: Window | None,
    terms: Terms,
    wants_times: bool,
) -> tuple[Tensor, Tensor | None]:
    """See :func:`.first_spike.learn`; any transfer but ``"share"``."""
    steep = terms.gain in ("local", "exact") or terms.transfer == "exact"
    three = fired.times, grad, fired.slope if steep else fired.times[:0]
    by_slope = terms.transfer == "exact"
    if window is None:
        dw, d = _sums_linear(times, three, back, shape, terms, by_slope, wants_times)
        if wants_times and terms.normalise:
            d = even(grad, d)
    else:
        normalise = wants_times and terms.normalise
        dw, d = _sums_conv(times, three, back, shape, window, terms, by_slope, wants_times, normalise)
    return dw, d if wants_times else None


def _plain(x: Tensor) -> bool:
    """Whether an image lies channels first in memory: then every map is an image of one channel."""
    return x.is_contiguous() and x.shape[1] > 1


def _image(x: Tensor, plain: bool) -> Tensor:
    x = x.detach()
    return x.contiguous().view(-1, *x.shape[2:], 1) if plain else _last(x)


def pool(times: Tensor, side: int) -> Tensor:
    """The earliest time of each window of an image, ``(B, C, H, W) -> (B, C, H // side, W // side)``."""
    plain = _plain(times)
    t = _image(times, plain)
    high, wide = times.shape[2] // side, times.shape[3] // side
    out = empty((len(t), high, wide, t.shape[3]), times.dtype)
    if plain and side == 2:
        _pool_pairs.sized(t.numel(), t.numpy().reshape(-1), *times.shape[2:], out.numpy()[..., 0])
    else:
        _pool(t.numpy(), side, out.numpy())
    return out.view(*times.shape[:2], high, wide) if plain else out.permute(0, 3, 1, 2)


def pool_back(times: Tensor, first: Tensor, grad: Tensor, side: int) -> Tensor:
    """Its backward pass: to the first neuron of each window, in reading order among equals."""
    plain = _plain(times)
    t = _image(times, plain)
    out = empty(t.shape, t.dtype)
    if times.shape[2] % side or times.shape[3] % side:
        out.zero_()
    three = [part.numpy() for part in (t, _image(first, plain), _image(grad, plain))]
    if plain and side == 2:
        flat, early, given = three[0].reshape(-1), three[1][..., 0], three[2][..., 0]
        _pool_pairs_back.sized(t.numel(), flat, *times.shape[2:], early, given, out.numpy().reshape(-1))
    else:
        _pool_back(*three, side, out.numpy())
    return out.view(times.shape) if plain else out.permute(0, 3, 1, 2)
