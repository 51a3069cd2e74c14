"""First spikes on the CPU against stepping, root finding in plain Python and dense sums over all pairs."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from spiketide.errors import EngineError
from spiketide.kernels import first_spike as fs
from spiketide.kernels import first_spike_cpu as cpu
from spiketide.kernels.first_spike import Fired, Shape, Terms, Window

SHAPES = {
    "step": Shape(0.0),
    "ramp": Shape(16.0),
    "ramp-odd": Shape(5.0),
    "line": Shape(64.0, plateau=False),
    "up-down": Shape(8.0, 40.0),
    "late-fall": Shape(8.0, 80.0),
}
WINDOWS = {
    "plain": Window((3, 3)),
    "padded": Window((3, 3), padding=1),
    "stride": Window((3, 3), stride=2),
    "gaps": Window((2, 2), stride=3),  # some inputs are never looked at
    "groups": Window((3, 3), padding=1, stride=2, groups=2),
    "wide": Window((2, 5), padding=2, stride=3),
    "depthwise": Window((5, 5), padding=2, groups=4),
}
STOP = 64.0
DTYPES = [torch.float32, torch.float64]

shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
windows = pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])


def draw(*size: int, dtype: torch.dtype = torch.float64, whole: bool = True, seed: int = 0) -> Tensor:
    """Spike times of which about a third never come; some lie at or behind the end of the window."""
    random = torch.Generator().manual_seed(seed)
    times = torch.rand(size, generator=random, dtype=torch.float64) * 100
    times[(times > 70) & (times < 98)] = math.inf
    return (times.floor() if whole else times).to(dtype)


def weights(*size: int, fan_in: int, dtype: torch.dtype = torch.float64, seed: int = 1) -> Tensor:
    """Some neurons are mostly excited, others mostly inhibited."""
    random = torch.Generator().manual_seed(seed)
    w = torch.randn(size, generator=random, dtype=torch.float64) * 1.4 / math.sqrt(fan_in)
    mean = (torch.arange(size[0]) * 7 % 11 - 4) / (2.0 * fan_in)
    return (w + mean.view(-1, *[1] * (len(size) - 1))).to(dtype)


def image(window: Window, dtype: torch.dtype, whole: bool = True) -> tuple[Tensor, Tensor]:
    times = draw(5, 4, 9, 10, dtype=dtype, whole=whole)
    fan_in = 4 // window.groups * window.kernel[0] * window.kernel[1]
    return times, weights(12, 4 // window.groups, *window.kernel, fan_in=fan_in, dtype=dtype)


def lively(times: Tensor) -> None:
    """A silent net passes anything, and so does one that fires at once."""
    share = float(torch.isfinite(times).float().mean())
    assert 0.05 < share < 0.95, share
    assert len(times[torch.isfinite(times)].unique()) > 10


def unfolded(times: Tensor, window: Window) -> Tensor:
    """What each neuron's window sees, ``(B, groups, taps, places)``; plain slicing."""
    kh, kw = window.kernel
    high, wide = window.out((times.shape[2], times.shape[3]))
    full = F.pad(times, (window.padding,) * 4, value=math.inf)
    s = window.stride
    taps = [
        full[:, :, y : y + s * (high - 1) + 1 : s, x : x + s * (wide - 1) + 1 : s]
        for y in range(kh)
        for x in range(kw)
    ]
    seen = torch.stack(taps, 2).flatten(3)  # (B, C, kh kw, places)
    return seen.unflatten(1, (window.groups, -1)).flatten(2, 3)


# ---------------------------------------------------------------------------------------------------------- firing


@dtypes
@shapes
def test_fully_connected_layers_fire_as_by_the_clock(shape: Shape, dtype: torch.dtype) -> None:
    for n_in, n_out in ((70, 37), (9, 1), (200, 64)):
        times, w = draw(23, n_in, dtype=dtype), weights(n_out, n_in, fan_in=n_in, dtype=dtype)
        found = fs.fire_linear(times, w, shape, threshold=1.0, stop=STOP, exact=False).times
        clock = fs.clock_linear(times, w, shape, threshold=1.0, stop=STOP)
        if n_out > 1:
            lively(clock)
        assert torch.equal(found, clock)


@dtypes
@windows
@shapes
def test_convolutions_fire_as_by_the_clock(shape: Shape, window: Window, dtype: torch.dtype) -> None:
    times, w = image(window, dtype)
    found = fs.fire_conv(times, w, shape, window, threshold=1.0, stop=STOP, exact=False)
    clock = fs.clock_conv(times, w, shape, window, threshold=1.0, stop=STOP)
    lively(clock)
    assert torch.equal(found.times, clock)
    assert found.potential.numel() == 0


@pytest.mark.parametrize("exact", [False, True])
@shapes
def test_a_convolution_is_a_fully_connected_layer_at_each_place(shape: Shape, exact: bool) -> None:
    window = WINDOWS["groups"]
    times, w = image(window, torch.float64, whole=not exact)
    options = {"threshold": 1.0, "stop": STOP, "exact": exact}
    conv = fs.fire_conv(times, w, shape, window, potential=True, **options)
    seen = unfolded(times, window)
    for group in range(2):
        rows = seen[:, group].movedim(1, 2)  # (B, places, taps)
        flat = fs.fire_linear(rows.flatten(0, 1), w[6 * group : 6 * group + 6].flatten(1), shape, **options)
        for mine, theirs in zip(conv, flat, strict=True):
            part = theirs.view(*rows.shape[:2], 6).movedim(2, 1)
            torch.testing.assert_close(mine[:, 6 * group : 6 * group + 6].flatten(2), part)
    lively(conv.times)


def crossing(times: Sequence[float], w: Sequence[float], shape: Shape, stop: float) -> float:
    """The first root of ``sum_i w_i eps(t - t_i) = 1`` by the values at all kinks, in plain Python."""

    def eps(s: float) -> float:
        if shape.rise == 0:
            return float(s >= 0)
        if s <= 0:
            return 0.0
        if not shape.plateau or s <= shape.rise:
            return s / shape.rise
        if math.isinf(shape.fall):
            return 1.0
        return max(0.0, (shape.fall - s) / (shape.fall - shape.rise))

    def v(t: float) -> float:
        return sum(x * eps(t - at) for x, at in zip(w, times, strict=True) if at < t or at == t)

    kinks = {0.0, stop}
    for at in times:
        kinks |= {k for k in (at, at + shape.rise, at + shape.fall) if k < stop}
    ordered = sorted(kinks)
    for left, right in itertools.pairwise(ordered):
        a = v(left)
        if a >= 1:
            return left
        b = v(right)
        if shape.rise > 0 and b >= 1:
            t = left + (1 - a) / (b - a) * (right - left)
            return t if t < stop else math.inf
    return math.inf


@shapes
def test_exact_times_are_the_first_roots(shape: Shape) -> None:
    times, w = draw(6, 30, whole=False), weights(20, 30, fan_in=30)
    found = fs.fire_linear(times, w, shape, threshold=1.0, stop=STOP, exact=True).times
    wanted = torch.tensor(
        [[crossing(t, row, shape, STOP) for row in w.tolist()] for t in times.tolist()], dtype=torch.float64
    )
    lively(wanted)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)
    stepped = fs.fire_linear(times, w, shape, threshold=1.0, stop=STOP, exact=False).times
    up = torch.where(wanted.ceil() < STOP, wanted.ceil(), math.inf)
    assert torch.equal(stepped, up)


@pytest.mark.parametrize("exact", [False, True])
@windows
@shapes
def test_potentials_and_slopes(shape: Shape, window: Window, exact: bool) -> None:
    times, w = image(window, torch.float64, whole=not exact)
    found = fs.fire_conv(times, w, shape, window, threshold=1.0, stop=STOP, exact=exact, potential=True)
    silent = torch.isinf(found.times)
    at = torch.where(silent, STOP, found.times).flatten(2).unflatten(1, (window.groups, -1))
    seen = unfolded(times, window)
    seen = torch.where(seen < STOP, seen, math.inf)  # later spikes do not exist
    s = at.unsqueeze(3) - seen.unsqueeze(2)  # (B, groups, maps, taps, places)
    rows = w.flatten(1).unflatten(0, (window.groups, -1)).unsqueeze(-1)
    v = (rows * shape.value(s)).sum(3).view_as(found.times)
    torch.testing.assert_close(found.potential, v, rtol=1e-9, atol=1e-9)
    if exact and shape.rise > 0:
        torch.testing.assert_close(v[~silent], torch.ones_like(v[~silent]))
    r = (rows * shape.slope(s)).sum(3).view_as(v)
    torch.testing.assert_close(found.slope, torch.where(silent, 0, r), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("exact", [False, True])
@shapes
def test_what_was_not_asked_for_changes_nothing(shape: Shape, exact: bool) -> None:
    times, w = (
        draw(7, 40, dtype=torch.float32, whole=not exact),
        weights(33, 40, fan_in=40, dtype=torch.float32),
    )
    options = {"threshold": 1.0, "stop": STOP, "exact": exact}
    all_of_it = fs.fire_linear(times, w, shape, **options)
    for potential in (False, True):
        for slope in (False, True):
            part = fs.fire_linear(times, w, shape, **options, potential=potential, slope=slope)
            assert torch.equal(part.times, all_of_it.times)
            assert not potential or torch.equal(part.potential, all_of_it.potential)
            assert not slope or torch.equal(part.slope, all_of_it.slope)


@shapes
def test_extremes(shape: Shape) -> None:
    window = WINDOWS["padded"]
    options = {"threshold": 1.0, "stop": STOP, "exact": False}
    _, w = image(window, torch.float32)
    nothing = torch.full((2, 4, 9, 10), math.inf)
    dark = fs.fire_conv(nothing, w, shape, window, **options, potential=True)
    assert torch.isinf(dark.times).all() and not dark.potential.any() and not dark.slope.any()
    late = fs.fire_conv(torch.full_like(nothing, STOP), w, shape, window, **options, potential=True)
    assert torch.isinf(late.times).all() and not late.potential.any()
    # every input at 0, weights of 100 thresholds: all fire at once, one step after a ramp begins
    bright = fs.fire_conv(torch.zeros(2, 4, 9, 10), torch.full_like(w, 100.0), shape, window, **options)
    assert (bright.times == (0.0 if shape.rise == 0 else 1.0)).all()
    never = fs.fire_conv(torch.zeros(2, 4, 9, 10), torch.full_like(w, -100.0), shape, window, **options)
    assert torch.isinf(never.times).all()
    assert fs.fire_conv(nothing[:0], w, shape, window, **options).times.shape == (0, 12, 9, 10)
    assert fs.fire_linear(torch.zeros(0, 3), torch.ones(2, 3), shape, **options).times.shape == (0, 2)
    # windows of one step, and of so many that no table has a place for each
    one = fs.fire_linear(
        torch.zeros(1, 1), torch.full((1, 1), 9.0), shape, threshold=1.0, stop=1.0, exact=False
    )
    assert one.times.item() == (0.0 if shape.rise == 0 else math.inf)
    times, w = draw(9, 50) * 4096, weights(20, 50, fan_in=50)
    big = Shape(shape.rise * 4096, shape.fall * 4096, shape.plateau)
    far = fs.fire_linear(times, w, big, threshold=1.0, stop=STOP * 4096, exact=True).times
    near = fs.fire_linear(times / 4096, w, shape, threshold=1.0, stop=STOP, exact=True).times
    lively(near)
    torch.testing.assert_close(far / 4096, near)


def test_samples_do_not_know_of_each_other_nor_layouts_matter() -> None:
    window, shape = WINDOWS["padded"], SHAPES["ramp"]
    times, w = image(window, torch.float32)
    options = {"threshold": 1.0, "stop": STOP, "exact": False, "potential": True}
    whole = fs.fire_conv(times, w, shape, window, **options)
    for b in range(len(times)):
        alone = fs.fire_conv(times[b : b + 1], w, shape, window, **options)
        assert all(torch.equal(x[0], y[b]) for x, y in zip(alone, whole, strict=True))
    turned = times.to(memory_format=torch.channels_last)
    turned = fs.fire_conv(turned, w.transpose(2, 3).contiguous().transpose(2, 3), shape, window, **options)
    assert all(torch.equal(x, y) for x, y in zip(turned, whole, strict=True))


def test_half_precision_is_refused_with_advice() -> None:
    with pytest.raises(EngineError, match=r"float32 and float64.*times\.float\(\)"):
        fs.fire_linear(
            torch.zeros(1, 2, dtype=torch.bfloat16),
            torch.ones(1, 2),
            SHAPES["ramp"],
            threshold=1.0,
            stop=4.0,
            exact=False,
        )


# ------------------------------------------------------------------------------------------------------- learning


def eps_and_gate(s: Tensor, shape: Shape, by_slope: bool) -> tuple[Tensor, Tensor]:
    """``s = -inf``: nothing. An input at the same time counts only where it acts at once."""
    gate = (s >= 0) if shape.rise == 0 else (s > 0)
    return shape.value(s), shape.slope(s) if by_slope else gate.to(s.dtype)


def dense_linear(
    times: Tensor, at: Tensor, u: Tensor, c: Tensor, back: Tensor, shape: Shape, by_slope: bool
) -> tuple[Tensor, Tensor]:
    eps, gate = eps_and_gate(at.unsqueeze(2) - times.unsqueeze(1), shape, by_slope)
    return torch.einsum("bj,bji->ji", u, eps), torch.einsum("bj,ji,bji->bi", c, back, gate)


def dense_conv(
    times: Tensor,
    at: Tensor,
    u: Tensor,
    c: Tensor,
    back: Tensor,
    shape: Shape,
    window: Window,
    by_slope: bool,
) -> tuple[Tensor, Tensor]:
    at, u, c = (part.flatten(2).unflatten(1, (window.groups, -1)) for part in (at, u, c))
    s = at.unsqueeze(3) - unfolded(times, window).unsqueeze(2)
    eps, gate = eps_and_gate(s, shape, by_slope)
    rows = back.flatten(1).unflatten(0, (window.groups, -1))
    dw = torch.einsum("bgop,bgotp->got", u, eps).reshape(back.shape)
    asked = torch.einsum("bgop,got,bgotp->bgtp", c, rows, gate)
    # the transpose of unfolding is what autograd makes of it
    x = torch.zeros_like(times, requires_grad=True)
    unfolded(x, window).backward(asked)
    assert x.grad is not None
    return dw, x.grad


def displaced(found: Tensor, seed: int = 2) -> tuple[Tensor, Tensor]:
    """Updates and transfers, three in four of them 0."""
    random = torch.Generator().manual_seed(seed)
    u, c = torch.randn(2, *found.shape, generator=random, dtype=torch.float64)
    keep = torch.rand(found.shape, generator=random) < 0.25
    return torch.where(keep, u, 0).to(found), torch.where(keep, c, 0).to(found)


@pytest.mark.parametrize("by_slope", [False, True])
@pytest.mark.parametrize("batch", [1, 7, 33])
@shapes
def test_sums_of_fully_connected_layers(shape: Shape, batch: int, by_slope: bool) -> None:
    times, w = draw(batch, 45, whole=False), weights(19, 45, fan_in=45)
    times[:, :20] = times[:, :20].floor()
    at = draw(batch, 19, seed=5)
    at = torch.where(torch.isinf(at), STOP, at)
    u, c = displaced(at)
    mine = fs.back_linear(times, at, u, c, w, shape, by_slope=by_slope)
    for x, y in zip(mine, dense_linear(times, at, u, c, w, shape, by_slope), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-10)
    assert u.any() and mine[0].any() and (mine[1].any() or (by_slope and shape.rise == 0))


@pytest.mark.parametrize("by_slope", [False, True])
@windows
@shapes
def test_sums_of_convolutions(shape: Shape, window: Window, by_slope: bool) -> None:
    for batch in (1, 5, 11):  # fewer and more than the parts of the batch
        times = draw(batch, 4, 9, 10)
        _, w = image(window, torch.float64)
        at = draw(batch, 12, *window.out((9, 10)), seed=5)
        at = torch.where(torch.isinf(at), STOP, at)
        u, c = displaced(at)
        mine = fs.back_conv(times, at, u, c, w, shape, window, by_slope=by_slope)
        for x, y in zip(mine, dense_conv(times, at, u, c, w, shape, window, by_slope), strict=True):
            torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-10)
        assert mine[0].any()


TERMS = {
    f"{gain}-{transfer}": Terms(gain, transfer, normalise, 16.0, 2.0, STOP)
    for gain, transfer, normalise in (
        ("constant", "weight", False),
        ("constant", "sign", True),
        ("chord", "weight", True),
        ("local", "weight", False),
        ("local", "share", True),
        ("exact", "exact", False),
        ("exact", "exact", True),
        ("chord", "exact", False),
    )
}


@pytest.mark.parametrize("conv", [False, True], ids=["linear", "conv"])
@pytest.mark.parametrize("terms", TERMS.values(), ids=TERMS)
def test_rules_from_their_formulas(terms: Terms, conv: bool) -> None:
    shape = SHAPES["ramp"] if terms.gain != "exact" else SHAPES["line"]
    window = WINDOWS["groups"] if conv else None
    options = {"threshold": 1.0, "stop": STOP, "exact": False}
    if window is not None:
        times, w = image(window, torch.float64)
        fired = fs.fire_conv(times, w, shape, window, **options)
    else:
        times, w = draw(9, 45), weights(19, 45, fan_in=45)
        fired = fs.fire_linear(times, w, shape, **options)
    lively(fired.times)
    grad, _ = displaced(fired.times)  # silent neurons too, as a loss does with outputs
    dw, d = fs.learn(times, fired, grad, w, shape, window, terms)
    alone, none = fs.learn(times, fired, grad, w, shape, window, terms, wants_times=False)
    assert none is None and torch.equal(alone, dw)

    # one neuron at a time, in plain Python
    u, c, at, one = (torch.zeros(fired.times.numel(), dtype=torch.float64) for _ in range(4))
    clipped = 0
    for k, (t, g, r) in enumerate(
        zip(*(x.flatten().tolist() for x in (fired.times, grad, fired.slope)), strict=True)
    ):
        silent = math.isinf(t)
        at[k] = STOP if silent else t
        gain = 1.0
        if not silent and terms.gain == "chord":
            gain = t / 32.0
        elif not silent and terms.gain in ("local", "exact"):
            clipped += 1 / (16.0 * r) > 2.0
            gain = min(1 / (16.0 * r), 2.0) * (16.0 if terms.gain == "exact" else 1.0)
        u[k] = -g * gain
        inverse = 0.0 if silent else min(1 / r, 32.0)
        one[k] = inverse
        c[k] = g * inverse if terms.transfer in ("share", "exact") else g
    assert terms.gain not in ("local", "exact") or 0 < clipped < len(u)
    at, u, c, one = (x.view_as(grad) for x in (at, u, c, one))
    back = w.sign() if terms.transfer == "sign" else w
    by_slope = terms.transfer in ("share", "exact")

    def dense(u: Tensor, c: Tensor, back: Tensor) -> tuple[Tensor, Tensor]:
        if window is None:
            return dense_linear(times, at, u, c, back, shape, by_slope)
        return dense_conv(times, at, u, c, back, shape, window, by_slope)

    wanted_w, wanted_d = dense(u, c, back)
    if terms.transfer == "share":
        total = dense(u, one, w.abs())[1]
        wanted_d = torch.where(total > 0, wanted_d / total.clamp(min=1e-300), 0)
    if terms.normalise:
        length = (grad.flatten(1).norm(dim=1) / wanted_d.flatten(1).norm(dim=1)).nan_to_num(0, 0, 0)
        wanted_d = wanted_d * length.view(-1, *[1] * (d.dim() - 1))
    torch.testing.assert_close(dw, wanted_w, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(d, wanted_d, rtol=1e-9, atol=1e-9)


def test_a_rule_without_displacements_asks_for_nothing() -> None:
    terms = TERMS["chord-weight"]
    times, w = draw(3, 45), weights(19, 45, fan_in=45)
    fired = fs.fire_linear(times, w, SHAPES["line"], threshold=1.0, stop=STOP, exact=False)
    dw, d = fs.learn(times, fired, torch.zeros_like(fired.times), w, SHAPES["line"], None, terms)
    assert d is not None and not dw.any() and not d.any()
    empty = Fired(*(x[:0] for x in fired))
    dw, d = fs.learn(times[:0], empty, empty.times, w, SHAPES["line"], None, terms)
    assert d is not None and dw.shape == w.shape and not dw.any() and d.shape == (0, 45)


# -------------------------------------------------------------------------------------------------------- pooling


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["maps", "pixels"])
def test_pooling_equals_torchs(size: int, layout: torch.memory_format) -> None:
    times = (draw(3, 5, 7, 8, dtype=torch.float32) / 8).floor().contiguous(memory_format=layout)  # many ties
    grad = torch.randn(3, 5, 7 // size, 8 // size).contiguous(memory_format=layout)
    x = times.clone().requires_grad_()
    wanted = -F.max_pool2d(-x, size)
    wanted.backward(grad)
    first = cpu.pool(times, size)
    assert torch.equal(first, wanted) and torch.isinf(first).any() == (size == 1)
    assert torch.equal(cpu.pool_back(times, first, grad, size), x.grad)


@pytest.mark.parametrize("channels", [1, 2])
def test_pooling_lets_nan_through(channels: int) -> None:
    for place in range(4):
        times = torch.arange(4.0).view(1, 1, 2, 2).repeat(1, channels, 1, 1)
        times[:, -1].view(-1)[place] = math.nan
        first = cpu.pool(times, 2)
        assert first[:, -1].isnan().all() and (channels == 1 or not first[0, 0].any())
        given = cpu.pool_back(times, first, torch.ones_like(first), 2)
        assert not given[:, -1].any() and (
            channels == 1 or given[0, 0].view(-1).tolist() == [1.0, 0.0, 0.0, 0.0]
        )


# -------------------------------------------------------------------------------------------------------- threads


THREADS = """
import torch
from spiketide.kernels import first_spike as fs
from spiketide.kernels import first_spike_cpu as cpu
from spiketide.kernels import threading

torch.manual_seed(0)
times = torch.rand(13, 4, 12, 12).mul(90).floor()
window, shape = fs.Window((5, 5), padding=1, groups=2), fs.Shape(64.0, plateau=False)
w, v = torch.randn(12, 2, 5, 5) * 0.2 + 0.1, torch.randn(50, 576) * 0.1
terms = fs.Terms("chord", "weight", True, 64.0, 5.0, 64.0)

def both(threads):
    torch.set_num_threads(threads)
    assert threading.threads() == threads
    a = fs.fire_conv(times, w, shape, window, threshold=1.0, stop=64.0, exact=False, potential=True)
    b = fs.fire_linear(times.flatten(1), v, shape, threshold=1.0, stop=64.0, exact=False)
    grads = [torch.randn(x.times.shape, generator=torch.Generator().manual_seed(1)) for x in (a, b)]
    c = fs.learn(times, a, grads[0], w, shape, window, terms)
    d = fs.learn(times.flatten(1), b, grads[1], v, shape, None, terms)
    p = cpu.pool(a.times, 2)
    return [*a, *b, *c, *d, p, cpu.pool_back(a.times, p, p, 2)]

one, two = both(1), both(2)
assert 0.05 < one[0].isfinite().float().mean() < 0.95
print([i for i, (x, y) in enumerate(zip(one, two)) if not torch.equal(x, y)])
"""


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    env = {**os.environ, "NUMBA_NUM_THREADS": "2", "OMP_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-c", THREADS], env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
