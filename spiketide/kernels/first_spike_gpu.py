"""First spikes on the GPU: the events of every window are sorted, then walked through by one program a block of neurons.

A fully connected layer is a convolution with one place and windows of one pixel, so three kernels do all:

- forward: a program takes a window and a block of neurons that look at it. It carries the lines of their membranes in registers,
  adds a row of weights at each event and judges at the next one, when all events of one time are in. What it notes of a
  crossing is the line; the division that makes it a time comes once, at the end. It ends early when all have fired.
- gradient of the weights: a program takes a block of synapses and a part of the windows; the parts are added up by torch.
- displacement of the inputs: a program takes a sample and a block of inputs, and walks through the neurons that look at them.

No atomics: every sum has a fixed order, so equal inputs give equal bits. Windows are unfolded and sorted ``EVENTS`` events at a
time (or one line of outputs of one image, where that is more): memory beyond inputs and outputs is about 40 bytes an event in
float32, 320 MiB. The backward pass unfolds nothing: the parts take at most ``4 ROWS COLUMNS PROGRAMS`` bytes, 2 MiB, more than
the weights in whole blocks.

float32 (and float64, for tests of derivatives). Not measured on a device: correct in Triton's interpreter, and compiled ahead of
time.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from ..errors import EngineError
from .first_spike import Fired, Shape, Window

EVENTS = 2**23
"""Events sorted at a time."""

PROGRAMS = 1024
"""Programs that share the gradient of the weights, at the least, where there are enough windows."""

WINDOWS = 64
"""Windows of one of them, at the least."""

NEURONS, BETWEEN = 128, 32
"""Forward: neurons of a program; events between two looks at whether all have fired."""

ROWS, COLUMNS = 16, 32
"""Gradient of the weights: neurons and inputs of a program."""

DEEP, INPUTS = 8, 64
"""Displacement of the inputs: neurons looked at together, inputs of a program."""


@triton.jit
def fire_kernel(  # type: ignore[no-untyped-def]
    when_,
    which_,
    total_,
    w_,
    numbers_,
    t_,
    v_,
    r_,
    first,
    events,
    taps,
    places,
    groups,
    per_group,
    EXACT: tl.constexpr,
    POTENTIAL: tl.constexpr,
    SLOPE: tl.constexpr,
    BN: tl.constexpr,
    BETWEEN: tl.constexpr,
):
    """First crossings of one group's neurons at one place; ``when_`` and ``which_ (windows, groups, events)`` are sorted."""
    kind_of = when_.dtype.element_ty
    line = tl.program_id(0).to(tl.int64)
    group = (line % groups).to(tl.int32)
    window = first + line // groups
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    known = n < per_group
    threshold, stop = tl.load(numbers_), tl.load(numbers_ + 1)
    total = tl.load(total_ + line)
    at = line * events
    slope = tl.zeros((BN,), dtype=kind_of)
    offset = tl.zeros((BN,), dtype=kind_of)
    # of the stretch of line on which a neuron crosses
    its_slope, its_offset = slope, offset
    begin, end = slope, offset
    alive = known
    now = tl.load(when_ + at, mask=total > 0, other=0.0)
    done = 0
    going = total > 0
    while going:
        last = tl.minimum(done + BETWEEN, total)
        for e in tl.range(done, last):
            key = tl.load(which_ + at + e).to(tl.int32)
            kind = key // taps
            row = group.to(tl.int64) * taps + (key - kind * taps)
            w = tl.load(w_ + row * per_group + n, mask=known, other=0.0)
            following = tl.load(when_ + at + e + 1, mask=e + 1 < total, other=0.0)
            following = tl.where(e + 1 < total, following, stop)
            a = tl.load(numbers_ + 2 + kind)
            slope += a * w
            offset += (tl.load(numbers_ + 5 + kind) - a * now) * w
            # events of one time belong together: judged after the last of them
            bar = tl.where(following > now, threshold, float("inf"))
            crossed = alive & (slope * following + offset >= bar)
            its_slope = tl.where(crossed, slope, its_slope)
            its_offset = tl.where(crossed, offset, its_offset)
            begin = tl.where(crossed, now, begin)
            end = tl.where(crossed, following, end)
            alive = alive & (~crossed)
            now = following
        done = last
        # a crossing of the last step may turn out to be none, and then the potential at the end is asked for
        left = (tl.max(alive.to(tl.int32), axis=0) > 0) | (now > stop - 1)
        going = (done < total) & left
    crossed = known & (~alive)
    at_once = its_slope * begin + its_offset >= threshold
    rise = tl.where(crossed & (~at_once), its_slope, its_slope * 0 + 1)
    gap = threshold - its_offset
    if kind_of == tl.float32:
        t = tl.div_rn(
            gap, rise
        )  # Triton's own division is an approximation: a whole step could become the next one
    else:
        t = gap / rise
    t = tl.where(at_once, begin, tl.minimum(tl.maximum(t, begin), end))
    if not EXACT:
        t = tl.ceil(t)
    fired = crossed & (t < stop)
    sample = window // places
    place = (sample * groups * per_group + group * per_group + n) * places + window % places
    tl.store(t_ + place, tl.where(fired, t, float("inf")), mask=known)
    if SLOPE:
        tl.store(r_ + place, tl.where(fired, its_slope, 0.0), mask=known)
    if POTENTIAL:
        tl.store(v_ + place, tl.where(fired, its_slope * t + its_offset, slope * stop + offset), mask=known)


@triton.jit
def value_and_slope(  # type: ignore[no-untyped-def]
    s, numbers_, JUMP: tl.constexpr, BY_SLOPE: tl.constexpr
):
    """``eps(s)``, and the transfer: ``eps'(s)`` or whether the input came before. ``s`` is never ``+inf``."""
    if JUMP:
        value = tl.where(s >= 0, 1.0, 0.0).to(s.dtype)
        # the kernel of a jump has no slope
        transfer = tl.zeros_like(s) if BY_SLOPE else value
    else:
        rise, up = tl.load(numbers_), tl.load(numbers_ + 1)
        way, down = tl.load(numbers_ + 2), tl.load(numbers_ + 3)
        after = tl.maximum(s, 0.0)
        value = tl.minimum(after, rise) * up - tl.minimum(tl.maximum(after - rise, 0.0), way) * down
        if BY_SLOPE:
            slope = tl.where(s <= rise, up, tl.where(s - rise <= way, -down, 0.0))
            transfer = tl.where(s > 0, slope, 0.0)
        else:
            transfer = tl.where(s > 0, 1.0, 0.0).to(s.dtype)
    return value, transfer


@triton.jit
def weights_kernel(  # type: ignore[no-untyped-def]
    times_,
    fired_,
    update_,
    numbers_,
    dw_,
    windows,
    parts,
    places,
    wide_out,
    groups,
    in_group,
    per_group,
    high,
    wide,
    kernel_high,
    kernel_wide,
    stride,
    padding,
    JUMP: tl.constexpr,
    BN: tl.constexpr,
    BI: tl.constexpr,
):
    """``dw[part, o, tap] = sum over the part's windows of update[o] eps(fired[o] - times[tap])``."""
    blocks = tl.cdiv(per_group, BN)
    group = tl.program_id(0) // blocks
    lane = (tl.program_id(0) % blocks) * BN + tl.arange(0, BN)
    known = lane < per_group
    n = group * per_group + lane
    tap = tl.program_id(1) * BI + tl.arange(0, BI)
    taps = in_group * kernel_high * kernel_wide
    channel = group * in_group + tap // (kernel_high * kernel_wide)
    row = tap // kernel_wide % kernel_high - padding
    column = tap % kernel_wide - padding
    part = tl.program_id(2).to(tl.int64)
    sums = tl.zeros((BN, BI), dtype=times_.dtype.element_ty)
    for window in range(part * windows // parts, (part + 1) * windows // parts):
        sample = (window // places).to(tl.int64)
        place = (window % places).to(tl.int32)
        at = (sample * groups * per_group + n) * places + place
        fired = tl.load(fired_ + at, mask=known, other=0.0)
        update = tl.load(update_ + at, mask=known, other=0.0)
        y = place // wide_out * stride + row
        x = place % wide_out * stride + column
        inside = (tap < taps) & (y >= 0) & (y < high) & (x >= 0) & (x < wide)
        seen = ((sample * groups * in_group + channel) * high + y) * wide + x
        times = tl.load(times_ + seen, mask=inside, other=float("inf"))
        value, _ = value_and_slope(fired[:, None] - times[None, :], numbers_, JUMP, False)
        sums += update[:, None] * value
    to = ((part * groups * per_group + n) * taps)[:, None] + tap[None, :]
    tl.store(dw_ + to, sums, mask=known[:, None] & (tap < taps)[None, :])


@triton.jit
def inputs_kernel(  # type: ignore[no-untyped-def]
    times_,
    fired_,
    carry_,
    back_,
    numbers_,
    d_,
    high_out,
    wide_out,
    groups,
    in_group,
    per_group,
    high,
    wide,
    kernel_high,
    kernel_wide,
    stride,
    padding,
    JUMP: tl.constexpr,
    BY_SLOPE: tl.constexpr,
    BN: tl.constexpr,
    BI: tl.constexpr,
):
    """``d[i] = sum over the neurons o that look at i of carry[o] back[o, i] transfer(fired[o] - times[i])``."""
    sample = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BI + tl.arange(0, BI)
    size = groups * in_group * high * wide
    known = i < size
    channel = i // (high * wide)
    group = channel // in_group
    below = i // wide % high + padding
    right = i % wide + padding
    times = tl.load(times_ + sample * size + i, mask=known, other=float("inf"))
    sums = tl.zeros((BN, BI), dtype=times_.dtype.element_ty)
    for ky in range(kernel_high):
        y = (below - ky) // stride
        inside_y = known & (below >= ky) & ((below - ky) % stride == 0) & (y < high_out)
        for kx in range(kernel_wide):
            x = (right - kx) // stride
            inside = inside_y & (right >= kx) & ((right - kx) % stride == 0) & (x < wide_out)
            for begin in range(0, per_group, BN):
                lane = begin + tl.arange(0, BN)
                n = (group * per_group)[None, :] + lane[:, None]
                both = inside[None, :] & (lane < per_group)[:, None]
                at = ((sample * groups * per_group + n) * high_out + y[None, :]) * wide_out + x[None, :]
                fired = tl.load(fired_ + at, mask=both, other=0.0)
                carry = tl.load(carry_ + at, mask=both, other=0.0)
                synapse = n.to(tl.int64) * in_group + (channel % in_group)[None, :]
                back = tl.load(back_ + (synapse * kernel_high + ky) * kernel_wide + kx, mask=both, other=0.0)
                _, transfer = value_and_slope(fired - times[None, :], numbers_, JUMP, BY_SLOPE)
                sums += carry * back * transfer
    tl.store(d_ + sample * size + i, tl.sum(sums, axis=0), mask=known)


@functools.lru_cache(maxsize=256)
def _on_device(numbers: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Constants of a layer, moved once; as arguments of a kernel they would be rounded to float32."""
    return torch.tensor(numbers, dtype=dtype, device=device)


def _check(**tensors: Tensor) -> None:
    word, times = "first spikes on the GPU", tensors["times"]
    for name, tensor in tensors.items():
        if tensor.dtype not in (torch.float32, torch.float64) or tensor.dtype != times.dtype:
            raise EngineError(
                f"{word} expected float32 for times and weights, got {name} in {tensor.dtype} (times in {times.dtype}): half "
                "precision cannot tell the steps of a window apart. Use .float(), and leave the layer out of autocast."
            )
        if tensor.device != times.device:
            raise EngineError(
                f"{word} expected all tensors on {times.device}, got {name} on {tensor.device}: move the model there."
            )


def _launching(like: Tensor) -> Any:
    """The context in which this device is the current one, as Triton launches on the current device."""
    return torch.cuda.device(like.device) if like.is_cuda else contextlib.nullcontext()


def _windows(times: Tensor, window: Window, kinds: int) -> Iterator[tuple[int, Tensor]]:
    """What the neurons look at, as ``(number of the first window, times (windows, groups, taps))``, some at a time."""
    images = times.unflatten(1, (window.groups, -1))
    if window.padding:
        images = F.pad(images, [window.padding] * 4, value=math.inf)
    kh, kw = window.kernel
    seen = images.unfold(3, kh, window.stride).unfold(4, kw, window.stride).permute(0, 3, 4, 1, 2, 5, 6)
    samples, high, wide = seen.shape[:3]
    lines = max(EVENTS // (seen[0, 0].numel() * kinds), 1)
    most = max(lines // high, 1)
    for b in range(0, samples, most):
        for y in range(0, high, lines):
            some = seen[b : b + most, y : y + lines]
            yield (b * high + y) * wide, some.flatten(4).flatten(0, 2)


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
    images, taps = times[:, :, None, None], weight[:, :, None, None]
    fired = fire_conv(images, taps, shape, Window((1, 1)), threshold, stop, exact, potential, slope)
    return Fired(*(part.flatten(1) for part in fired))


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
    """See :func:`.first_spike.fire_conv`; without ``potential`` or ``slope`` that field is empty."""
    _check(times=times, weight=weight)
    samples, n_out = times.shape[0], weight.shape[0]
    high, wide = window.out((times.shape[2], times.shape[3]))
    t, v, r = (
        times.new_empty(samples if wanted else 0, n_out, high, wide) for wanted in (True, potential, slope)
    )
    if not t.numel():
        return Fired(t, v, r)
    delays, slopes, jumps = zip(*shape.events(), strict=True)
    more = (0.0,) * (3 - len(delays))
    numbers = _on_device((threshold, stop, *slopes, *more, *jumps, *more), times.dtype, times.device)
    # (groups, taps, neurons of a group): what one event adds lies beside each other
    rows = weight.detach().flatten(1).unflatten(0, (window.groups, -1)).transpose(1, 2).contiguous()
    groups, taps, per_group = rows.shape
    with _launching(times):
        for first, seen in _windows(times.detach(), window, len(delays)):
            keys = torch.cat([seen + delay for delay in delays], dim=2)
            total = (keys < stop).sum(2, dtype=torch.int32)
            when, which = torch.sort(keys, dim=2, stable=True)
            fire_kernel[(len(seen) * groups, triton.cdiv(per_group, NEURONS))](
                when,
                which,
                total,
                rows,
                numbers,
                t,
                v,
                r,
                first,
                when.shape[2],
                taps,
                high * wide,
                groups,
                per_group,
                EXACT=exact,
                POTENTIAL=potential,
                SLOPE=slope,
                BN=min(NEURONS, max(triton.next_power_of_2(per_group), 32)),
                BETWEEN=BETWEEN,
                num_warps=1,
            )
    return Fired(t, v, r)


def back_linear(
    times: Tensor, fired: Tensor, update: Tensor, carry: Tensor, back: Tensor, shape: Shape, by_slope: bool
) -> tuple[Tensor, Tensor]:
    """See :func:`.first_spike.back_linear`."""
    times, fired, update, carry, back = (
        part[:, :, None, None] for part in (times, fired, update, carry, back)
    )
    dw, d = back_conv(times, fired, update, carry, back, shape, Window((1, 1)), by_slope)
    return dw.flatten(1), d.flatten(1)


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
    """See :func:`.first_spike.back_conv`; every neuron is looked at."""
    _check(times=times, fired=fired, update=update, carry=carry, back=back)
    times, fired, update, carry, back = (
        part.detach().contiguous() for part in (times, fired, update, carry, back)
    )
    samples, channels, *size = times.shape
    high_out, wide_out = window.out((size[0], size[1]))
    groups = window.groups
    in_group, per_group = channels // groups, back.shape[0] // groups
    taps = back[0].numel()
    windows = samples * high_out * wide_out
    if not windows:
        return torch.zeros_like(back), torch.zeros_like(times)
    rise, fall = shape.rise, shape.fall
    if not shape.plateau:
        numbers = (math.inf, 1 / rise, 0.0, 0.0)
    elif math.isinf(fall) or rise == 0:
        numbers = (rise, 1 / rise if rise else 0.0, 0.0, 0.0)
    else:
        numbers = (rise, 1 / rise, fall - rise, 1 / (fall - rise))
    constants = _on_device(numbers, times.dtype, times.device)
    place = (groups, in_group, per_group, *size, *window.kernel, window.stride, window.padding)
    blocks = (groups * triton.cdiv(per_group, ROWS), triton.cdiv(taps, COLUMNS))
    # a function of the sizes alone, so that the sums are the same on every device
    parts = max(min(triton.cdiv(PROGRAMS, blocks[0] * blocks[1]), windows // WINDOWS), 1)
    dw = times.new_empty(parts, *back.shape)
    d = torch.empty_like(times)
    with _launching(times):
        weights_kernel[(*blocks, parts)](
            times,
            fired,
            update,
            constants,
            dw,
            windows,
            parts,
            high_out * wide_out,
            wide_out,
            *place,
            JUMP=rise == 0,
            BN=ROWS,
            BI=COLUMNS,
        )
        inputs_kernel[(samples, triton.cdiv(times[0].numel(), INPUTS))](
            times,
            fired,
            carry,
            back,
            constants,
            d,
            high_out,
            wide_out,
            *place,
            JUMP=rise == 0,
            BY_SLOPE=by_slope,
            BN=DEEP,
            BI=INPUTS,
        )
    return dw.sum(0), d
