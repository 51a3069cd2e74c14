"""First spikes on the CPU: the events of a sample in the order of time, all neurons of a layer beside each other in memory.

Between its events a membrane is the line ``slope t + offset``. An event adds a row of weights to both; whether a neuron crosses
before the next event is one comparison, counted over the row, so the rare crossing alone costs a division. A neuron that has
fired gets the offset ``-inf`` and never crosses again.

In the backward pass only neurons with a displacement are looked at. Sums over samples are made in a fixed number of parts, so
that they do not depend on the number of threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

from .first_spike import STEP_WIDTH, Fired, Shape, Window
from .threading import kernel

Array = np.ndarray[Any, Any]

FAST = {"contract", "reassoc", "nsz"}
"""Allowed liberties with floating point; infinities are in use and stay what they are."""

PARTS = 8
"""Parts of the batch with a weight gradient of their own."""


@njit(cache=True, nogil=True)
def _events(times: Array, offsets: Array, stop: float, when: Array, which: Array, kind: Array) -> int:
    """Sort the events of one sample by time: by whole steps first, then inside each step. Returns how many there are."""
    buckets = int(np.ceil(stop)) + 1
    count = np.zeros(buckets + 1, np.int64)
    n = times.shape[0]
    for e in range(offsets.shape[0]):
        for i in range(n):
            t = times[i] + offsets[e]
            if t < stop:
                count[int(t) + 1] += 1
    for j in range(buckets):
        count[j + 1] += count[j]
    total = count[buckets]
    begin = count.copy()
    for e in range(offsets.shape[0]):
        for i in range(n):
            t = times[i] + offsets[e]
            if t < stop:
                place = count[int(t)]
                count[int(t)] = place + 1
                # insertion from behind: whole steps find their place at once
                while place > begin[int(t)] and when[place - 1] > t:
                    when[place] = when[place - 1]
                    which[place] = which[place - 1]
                    kind[place] = kind[place - 1]
                    place -= 1
                when[place] = t
                which[place] = i
                kind[place] = e
    return int(total)


# Rows are named by the place where they begin. Places are unsigned: Numba checks a signed one for counting from the end, and a
# loop with such a check is not turned into vector instructions.


@njit(cache=True, nogil=True, fastmath=FAST)
def _count(slope: Array, offset: Array, begin: int, n: int, at: float, threshold: float) -> int:
    """Neurons at or above the threshold."""
    reached = 0
    first = np.uint64(begin)
    for o in range(np.uint64(n)):
        if slope[first + o] * at + offset[first + o] >= threshold:
            reached += 1
    return reached


@njit(cache=True, nogil=True, fastmath=FAST)
def _add(
    slope: Array, offset: Array, begin: int, n: int, weight: Array, row: int, a: float, q: float
) -> None:
    first, source = np.uint64(begin), np.uint64(row)
    for o in range(np.uint64(n)):
        slope[first + o] += a * weight[source + o]
        offset[first + o] += q * weight[source + o]


@njit(cache=True, nogil=True, fastmath=FAST)
def _add_count(
    slope: Array,
    offset: Array,
    n: int,
    weight: Array,
    row: int,
    a: float,
    q: float,
    at: float,
    threshold: float,
) -> int:
    reached = 0
    source = np.uint64(row)
    for o in range(np.uint64(n)):
        s = slope[o] + a * weight[source + o]
        k = offset[o] + q * weight[source + o]
        slope[o] = s
        offset[o] = k
        if s * at + k >= threshold:
            reached += 1
    return reached


@njit(cache=True, nogil=True)
def _crossing(s: float, k: float, since: float, threshold: float, discrete: bool) -> float:
    """When the line that began at ``since`` reaches the threshold, known that it does."""
    if s * since + k >= threshold:
        t = since
    else:
        t = (threshold - k) / s
        if t < since:
            t = since
    return np.ceil(t) if discrete else t


@kernel(parallel=True)
def _fire_linear(
    times: Array,
    weight: Array,
    offsets: Array,
    slopes: Array,
    jumps: Array,
    threshold: Any,
    stop: Any,
    discrete: bool,
    out_t: Array,
    out_v: Array,
    out_r: Array,
) -> None:
    samples, n_in = times.shape
    n_out = out_t.shape[1]
    for b in prange(samples):
        when = np.empty(n_in * offsets.shape[0], times.dtype)
        which = np.empty(n_in * offsets.shape[0], np.int32)
        kind = np.empty(n_in * offsets.shape[0], np.int8)
        total = _events(times[b], offsets, stop, when, which, kind)
        slope = np.zeros(n_out, times.dtype)
        offset = np.zeros(n_out, times.dtype)
        for o in range(n_out):
            out_t[b, o] = np.inf
            out_r[b, o] = 0
        alive = n_out
        e = 0
        while e < total and alive > 0:
            now = when[e]
            following = now
            reached = 0
            while following == now:
                a = slopes[kind[e]]
                q = jumps[kind[e]] - a * now
                row = which[e] * n_out
                e += 1
                following = when[e] if e < total else stop
                if following == now:
                    _add(slope, offset, 0, n_out, weight, row, a, q)
                else:
                    reached = _add_count(slope, offset, n_out, weight, row, a, q, following, threshold)
            if reached > 0:
                for o in range(n_out):
                    if slope[o] * following + offset[o] >= threshold:
                        t = _crossing(slope[o], offset[o], now, threshold, discrete)
                        if t < stop:
                            out_t[b, o] = t
                            out_v[b, o] = slope[o] * t + offset[o]
                            out_r[b, o] = slope[o]
                            offset[o] = -np.inf
                            alive -= 1
        if alive > 0:
            for o in range(n_out):
                if out_t[b, o] == np.inf:
                    out_v[b, o] = slope[o] * stop + offset[o]


@njit(cache=True, nogil=True)
def _record(
    b: int,
    p: int,
    n: int,
    slope: Array,
    offset: Array,
    since: float,
    at: float,
    threshold: float,
    stop: float,
    discrete: bool,
    potential: bool,
    out_t: Array,
    out_v: Array,
    out_r: Array,
) -> None:
    """Note the neurons of one place that crossed."""
    first = np.uint64(p * n)
    for o in range(np.uint64(n)):
        j = first + o
        if slope[j] * at + offset[j] >= threshold:
            t = _crossing(slope[j], offset[j], since, threshold, discrete)
            if t < stop:
                out_t[b, o, p] = t
                if potential:
                    out_v[b, o, p] = slope[j] * t + offset[j]
                out_r[b, o, p] = slope[j]
                offset[j] = -np.inf


@kernel(parallel=True)
def _fire_conv(
    times: Array,
    weight: Array,
    kernel_size: Any,
    size: Any,
    out_size: Any,
    stride: int,
    padding: int,
    groups: int,
    offsets: Array,
    slopes: Array,
    jumps: Array,
    threshold: Any,
    stop: Any,
    discrete: bool,
    potential: bool,
    out_t: Array,
    out_v: Array,
    out_r: Array,
) -> None:
    samples, n_in = times.shape
    kh, kw = kernel_size
    wide = size[1]
    plane = size[0] * size[1]
    channels = n_in // plane
    high_out, wide_out = out_size
    places = high_out * wide_out
    n_out = out_t.shape[1]
    per_group = n_out // groups
    in_group = channels // groups
    whole_rows = stride == 1 and groups == 1
    for b in prange(samples):
        when = np.empty(n_in * offsets.shape[0], times.dtype)
        which = np.empty(n_in * offsets.shape[0], np.int32)
        kind = np.empty(n_in * offsets.shape[0], np.int8)
        total = _events(times[b], offsets, stop, when, which, kind)
        slope = np.zeros(places * n_out, times.dtype)
        offset = np.zeros(places * n_out, times.dtype)
        since = np.zeros(places, times.dtype)
        for e in range(total):
            now = when[e]
            i = which[e]
            a = slopes[kind[e]]
            q = jumps[kind[e]] - a * now
            channel = i // plane
            y = (i - channel * plane) // wide + padding
            x = (i - channel * plane) % wide + padding
            low = (channel // in_group) * per_group
            for ky in range(kh):
                if y < ky or (y - ky) % stride != 0:
                    continue
                oy = (y - ky) // stride
                if oy >= high_out:
                    continue
                if whole_rows:
                    # the windows of this row that see the input lie beside each other, and so do their weights, turned round
                    left = max(x - kw + 1, 0)
                    right = min(x, wide_out - 1)
                    n = right - left + 1
                    if n <= 0:
                        continue
                    p = oy * wide_out + left
                    late = False
                    for j in range(p, p + n):
                        if now > since[j]:
                            late = True
                    if late:
                        if _count(slope, offset, p * n_out, n * n_out, now, threshold) > 0:
                            for j in range(p, p + n):
                                # not where this step's events are only in part added up
                                if now > since[j] and _count(slope, offset, j * n_out, n_out, now, threshold):
                                    _record(
                                        b,
                                        j,
                                        n_out,
                                        slope,
                                        offset,
                                        since[j],
                                        now,
                                        threshold,
                                        stop,
                                        discrete,
                                        potential,
                                        out_t,
                                        out_v,
                                        out_r,
                                    )
                        for j in range(p, p + n):
                            since[j] = now
                    row = ((channel * kh + ky) * kw + kw - 1 - x + left) * n_out
                    _add(slope, offset, p * n_out, n * n_out, weight, row, a, q)
                    continue
                for kx in range(kw):
                    if x < kx or (x - kx) % stride != 0:
                        continue
                    ox = (x - kx) // stride
                    if ox >= wide_out:
                        continue
                    p = oy * wide_out + ox
                    if now > since[p]:
                        if _count(slope, offset, p * n_out, n_out, now, threshold) > 0:
                            _record(
                                b,
                                p,
                                n_out,
                                slope,
                                offset,
                                since[p],
                                now,
                                threshold,
                                stop,
                                discrete,
                                potential,
                                out_t,
                                out_v,
                                out_r,
                            )
                        since[p] = now
                    row = ((channel * kh + ky) * kw + kw - 1 - kx) * per_group
                    _add(slope, offset, p * n_out + low, per_group, weight, row, a, q)
        for p in range(places):
            if _count(slope, offset, p * n_out, n_out, stop, threshold) > 0:
                _record(
                    b,
                    p,
                    n_out,
                    slope,
                    offset,
                    since[p],
                    stop,
                    threshold,
                    stop,
                    discrete,
                    potential,
                    out_t,
                    out_v,
                    out_r,
                )
            if potential:
                for o in range(n_out):
                    if out_t[b, o, p] == np.inf:
                        out_v[b, o, p] = slope[p * n_out + o] * stop + offset[p * n_out + o]


@njit(cache=True, nogil=True, fastmath=FAST)
def _row(
    at: float,
    times: Array,
    first: int,
    n: int,
    back: Array,
    row: int,
    update: float,
    carry: float,
    dw: Array,
    place: int,
    d: Array,
    shift: float,
    rise: float,
    up: float,
    fall: float,
    down: float,
    by_slope: bool,
) -> None:
    """Both sums for one neuron over its inputs, which lie beside each other."""
    mine, source, target = np.uint64(first), np.uint64(row), np.uint64(place)
    zero = carry * 0  # of the arrays' precision, as a literal would not be
    if down == 0 and not by_slope:
        for r in range(np.uint64(n)):
            e = at - times[mine + r] + shift
            dw[target + r] += update * (min(max(e, zero), rise) * up)
            d[mine + r] += carry * back[source + r] if e > zero else zero
    else:
        for r in range(np.uint64(n)):
            e = at - times[mine + r] + shift
            value = min(max(e, zero), rise) * up - (max(min(e, fall), rise) - rise) * down
            slope = up if e <= rise else (-down if e <= fall else zero)
            dw[target + r] += update * value if e > zero else zero
            d[mine + r] += back[source + r] * (carry * slope if by_slope else carry) if e > zero else zero


@njit(cache=True, nogil=True, fastmath=FAST)
def _column(
    at: float,
    fired: Array,
    first: int,
    n: int,
    back: Array,
    row: int,
    update: Array,
    carry: Array,
    dw: Array,
    shift: float,
    rise: float,
    up: float,
    fall: float,
    down: float,
    by_slope: bool,
) -> float:
    """Both sums for one input over the neurons that it reaches, which lie beside each other."""
    mine, source = np.uint64(first), np.uint64(row)
    zero = at * 0
    total = zero
    if down == 0 and not by_slope:
        for o in range(np.uint64(n)):
            e = fired[mine + o] - at + shift
            dw[source + o] += update[mine + o] * (min(max(e, zero), rise) * up)
            total += carry[mine + o] * back[source + o] if e > zero else zero
    else:
        for o in range(np.uint64(n)):
            e = fired[mine + o] - at + shift
            value = min(max(e, zero), rise) * up - (max(min(e, fall), rise) - rise) * down
            slope = up if e <= rise else (-down if e <= fall else zero)
            part = carry[mine + o] * back[source + o]
            dw[source + o] += update[mine + o] * value if e > zero else zero
            total += (part * slope if by_slope else part) if e > zero else zero
    return total


@kernel(parallel=True)
def _back_linear(
    times: Array,
    fired: Array,
    update: Array,
    carry: Array,
    back: Array,
    shift: Any,
    rise: Any,
    up: Any,
    fall: Any,
    down: Any,
    by_slope: bool,
    dw: Array,
    d: Array,
) -> None:
    """Inputs outside, samples inside: the row of an input's weights and its gradient stay in the first-level cache."""
    n_in, samples = times.shape
    n_out = fired.shape[0] // samples
    for i in prange(n_in):
        for o in range(n_out):
            dw[i * n_out + o] = 0
        for b in range(samples):
            if times[i, b] < np.inf:
                d[i, b] = _column(
                    times[i, b],
                    fired,
                    b * n_out,
                    n_out,
                    back,
                    i * n_out,
                    update,
                    carry,
                    dw,
                    shift,
                    rise,
                    up,
                    fall,
                    down,
                    by_slope,
                )
            else:
                d[i, b] = 0


@kernel(parallel=True)
def _back_conv(
    times: Array,
    fired: Array,
    update: Array,
    carry: Array,
    back: Array,
    kernel_size: Any,
    out_size: Any,
    stride: int,
    padding: int,
    groups: int,
    shift: Any,
    rise: Any,
    up: Any,
    fall: Any,
    down: Any,
    by_slope: bool,
    parts: int,
    dw: Array,
    d: Array,
) -> None:
    samples, channels, high, wide = times.shape
    kh, kw = kernel_size
    wide_out = out_size[1]
    n_out = fired.shape[1]
    places = fired.shape[2]
    per_group = n_out // groups
    in_group = channels // groups
    taps = in_group * kh * kw
    for part in prange(parts):
        seen = np.empty(groups * taps, times.dtype)
        sums = np.empty(groups * taps, times.dtype)
        used = np.empty(groups, np.bool_)
        for b in range(part * samples // parts, (part + 1) * samples // parts):
            # who has a displacement, place by place
            begin = np.zeros(places + 1, np.int64)
            for o in range(n_out):
                for p in range(places):
                    if update[b, o, p] != 0 or carry[b, o, p] != 0:
                        begin[p + 1] += 1
            for p in range(places):
                begin[p + 1] += begin[p]
            who = np.empty(begin[places], np.int32)
            place = begin.copy()
            for o in range(n_out):
                for p in range(places):
                    if update[b, o, p] != 0 or carry[b, o, p] != 0:
                        who[place[p]] = o
                        place[p] += 1
            for p in range(places):
                if begin[p + 1] == begin[p]:
                    continue
                top = (p // wide_out) * stride - padding
                left = (p % wide_out) * stride - padding
                used[:] = False
                for j in range(begin[p], begin[p + 1]):
                    o = who[j]
                    group = o // per_group
                    if not used[group]:
                        used[group] = True
                        r = group * taps
                        for c in range(in_group):
                            for ky in range(kh):
                                y = top + ky
                                for kx in range(kw):
                                    x = left + kx
                                    inside = 0 <= y < high and 0 <= x < wide
                                    seen[r] = times[b, group * in_group + c, y, x] if inside else np.inf
                                    sums[r] = 0
                                    r += 1
                    _row(
                        fired[b, o, p],
                        seen,
                        group * taps,
                        taps,
                        back,
                        o * taps,
                        update[b, o, p],
                        carry[b, o, p],
                        dw,
                        (part * n_out + o) * taps,
                        sums,
                        shift,
                        rise,
                        up,
                        fall,
                        down,
                        by_slope,
                    )
                for group in range(groups):
                    if used[group]:
                        r = group * taps
                        for c in range(in_group):
                            for ky in range(kh):
                                y = top + ky
                                for kx in range(kw):
                                    x = left + kx
                                    if 0 <= y < high and 0 <= x < wide:
                                        d[b, group * in_group + c, y, x] += sums[r]
                                    r += 1


def _numbers(shape: Shape, dtype: Any) -> tuple[Array, Array, Array]:
    delays, slopes, jumps = np.array(shape.events(), dtype=dtype).T.copy()
    return delays, slopes, jumps


def _just_after(fired: Tensor, shape: Shape) -> Tensor:
    """With the instantaneous kernel, the next number above: an input at the very time of the spike took part in it."""
    fired = fired.detach()
    if shape.rise:
        return fired
    return torch.nextafter(fired, fired.new_tensor(float("inf"))).clamp(min=STEP_WIDTH)


def fire_linear(
    times: Tensor, weight: Tensor, shape: Shape, threshold: float, stop: float, exact: bool
) -> Fired:
    """See :func:`.first_spike.fire_linear`."""
    t = times.detach().contiguous().numpy()
    kind = t.dtype.type
    out = [torch.empty(len(times), weight.shape[0], dtype=times.dtype) for _ in range(3)]
    _fire_linear(
        t,
        weight.detach().t().reshape(-1).numpy(),
        *_numbers(shape, t.dtype),
        kind(threshold),
        kind(stop),
        not exact,
        *(part.numpy() for part in out),
    )
    return Fired(*out)


def fire_conv(
    times: Tensor,
    weight: Tensor,
    shape: Shape,
    window: Window,
    threshold: float,
    stop: float,
    exact: bool,
    potential: bool,
) -> Fired:
    """See :func:`.first_spike.fire_conv`."""
    samples, _, high, wide = times.shape
    n_out = weight.shape[0]
    size = window.out((high, wide))
    places = size[0] * size[1]
    t = times.detach().reshape(samples, -1).contiguous().numpy()
    kind = t.dtype.type
    rows = weight.detach().flip(3).unflatten(0, (window.groups, -1)).permute(0, 2, 3, 4, 1)
    found = torch.full((samples, n_out, places), float("inf"), dtype=times.dtype)
    v = torch.empty(samples if potential else 1, n_out, places, dtype=times.dtype)
    r = torch.zeros_like(found)
    _fire_conv(
        t,
        rows.reshape(-1).numpy(),
        window.kernel,
        (high, wide),
        size,
        window.stride,
        window.padding,
        window.groups,
        *_numbers(shape, t.dtype),
        kind(threshold),
        kind(stop),
        not exact,
        potential,
        found.numpy(),
        v.numpy(),
        r.numpy(),
    )
    return Fired(*(part.unflatten(2, size) for part in (found, v if potential else v[:0], r)))


def back_linear(
    times: Tensor, fired: Tensor, update: Tensor, carry: Tensor, back: Tensor, shape: Shape, by_slope: bool
) -> tuple[Tensor, Tensor]:
    """See :func:`.first_spike.back_linear`."""
    dw = torch.empty(back.shape[1], back.shape[0], dtype=times.dtype)
    d = torch.empty(times.shape[1], times.shape[0], dtype=times.dtype)
    kind = dw.numpy().dtype.type
    _back_linear(
        times.detach().t().contiguous().numpy(),
        *(part.detach().reshape(-1).numpy() for part in (_just_after(fired, shape), update, carry, back.t())),
        *(kind(number) for number in shape.numbers()),
        by_slope,
        dw.view(-1).numpy(),
        d.numpy(),
    )
    return dw.t(), d.t()


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
    n_out = back.shape[0]
    dw = torch.zeros(min(PARTS, len(times)), n_out, back[0].numel(), dtype=times.dtype)
    d = torch.zeros(times.shape, dtype=times.dtype)
    kind = dw.numpy().dtype.type
    _back_conv(
        times.detach().contiguous().numpy(),
        *(
            part.detach().flatten(2).contiguous().numpy()
            for part in (_just_after(fired, shape), update, carry)
        ),
        back.detach().reshape(-1).numpy(),
        window.kernel,
        window.out((times.shape[2], times.shape[3])),
        window.stride,
        window.padding,
        window.groups,
        *(kind(number) for number in shape.numbers()),
        by_slope,
        len(dw),
        dw.view(-1).numpy(),
        d.numpy(),
    )
    return dw.sum(0).view_as(back), d
