"""The GPU kernels of first spikes in Triton's interpreter, against the CPU engine, the clock and plain formulas.

Not collected by itself: ``TRITON_INTERPRET=1`` must be set before Triton is imported, so ``test_first_spike_gpu.py`` runs this
file in a process of its own.

Weights and times are multiples of small powers of two, so that sums are exact and whole times must be equal to the bit.
"""

from __future__ import annotations

import math

import pytest
import torch
from helpers import assert_near, assert_same
from torch import Tensor
from torch.nn import functional as F

from spiketide.errors import EngineError
from spiketide.kernels import first_spike, first_spike_cpu, first_spike_gpu
from spiketide.kernels.first_spike import Shape, Window
from spiketide.timing import RampUpDown, STiDi, TimingConv2d, TimingLinear

SHAPES = {
    "step": Shape(0.0),
    "ramp": Shape(8.0),
    "up and down": Shape(8.0, 24.0),
    "line": Shape(32.0, plateau=False),
}
STOP = 32.0

every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())


def draw_times(*size: int, fine: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    """With ties, and a fifth that never come."""
    times = torch.randint(0, int(STOP) * fine, size).to(dtype) / fine
    return times.masked_fill_(torch.rand(size) < 0.2, math.inf)


def draw_weights(*size: int, shape: Shape, dtype: torch.dtype = torch.float32) -> Tensor:
    """Of a size that lets some neurons fire."""
    fan = math.prod(size[1:]) * (2 if shape.rise == 0 else 1)
    return torch.randint(-16, 65, size).to(dtype) / 2 ** round(math.log2(6 * fan))


def assert_equal_fired(got: first_spike.Fired, want: first_spike.Fired, exact: bool) -> None:
    share = float(torch.isfinite(want.times).float().mean())
    assert 0.1 < share < 0.99, f"{share:.0%} fire: that would pass whatever is computed"
    tight = 1e-6 if want.times.dtype == torch.float32 else 1e-14
    if exact:
        assert_same(torch.isfinite(got.times), torch.isfinite(want.times), "who fires")
        assert_near(got.times.nan_to_num(posinf=-1), want.times.nan_to_num(posinf=-1), tight, "times")
    else:
        assert_same(got.times, want.times, "times")
    assert_near(got.slope, want.slope, tight, "slopes")
    assert_near(got.potential, want.potential, tight, "potentials")


@every_shape
@pytest.mark.parametrize(
    ("exact", "dtype"), [(False, torch.float32), (True, torch.float32), (True, torch.float64)]
)
def test_linear_fires_as_on_the_cpu(shape: Shape, exact: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(3)
    times, weight = (
        draw_times(3, 15, fine=4 if exact else 1, dtype=dtype),
        draw_weights(37, 15, shape=shape, dtype=dtype),
    )
    got = first_spike_gpu.fire_linear(times, weight, shape, 1.0, STOP, exact)
    assert_equal_fired(got, first_spike_cpu.fire_linear(times, weight, shape, 1.0, STOP, exact), exact)
    if not exact:
        clock = first_spike.clock_linear(times, weight, shape, threshold=1.0, stop=STOP)
        assert_same(got.times, clock, "against the clock")


def test_many_neurons_and_events() -> None:
    torch.manual_seed(4)
    n_in, n_out = first_spike_gpu.BETWEEN + 9, first_spike_gpu.NEURONS + 5
    shape = SHAPES["ramp"]
    times, weight = draw_times(2, n_in), draw_weights(n_out, n_in, shape=shape)
    times[1, 3:] = math.inf
    arguments = (times, weight, shape, 1.0, STOP, False)
    assert_equal_fired(
        first_spike_gpu.fire_linear(*arguments), first_spike_cpu.fire_linear(*arguments), False
    )


@pytest.mark.parametrize("ends", ["all fired", "in the last step"])
def test_ending_early_changes_nothing(ends: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_spike_gpu, "BETWEEN", 1)
    shape = Shape(7.0, plateau=False)
    if ends == "all fired":
        times, want = torch.tensor([[0.0, 3.0, 7.0]]), (7.0, 1.0, 1 / 7)
        weight = torch.tensor([[1.0, 0.0, -8.0]])
    else:
        # 1 at 7.5, so no whole step of the window; the last input still belongs to the potential at the end
        times, want = torch.tensor([[0.5, 7.5, 7.75]]), (math.inf, (7.5 + 4 * 0.25) / 7, 0.0)
        weight = torch.tensor([[1.0, 0.0, 4.0]])
    got = first_spike_gpu.fire_linear(times, weight, shape, 1.0, 8.0, False)
    assert [float(part) for part in got] == pytest.approx(want, rel=1e-6)


def test_a_crossing_is_rounded_to_nearest() -> None:
    """``(threshold - offset) / slope`` is a whole number here: an approximate division could put the spike one step later."""
    n = torch.arange(1, 40)
    weight = (1 / n.float())[:, None]
    got = first_spike_gpu.fire_linear(torch.zeros(1, 1), weight, Shape(1.0, plateau=False), 1.0, 64.0, False)
    assert_same(got.times[0], torch.ceil(1 / weight[:, 0]), "times")


WINDOWS = {
    "plain": ((2, 2, 3, 5), 9, Window((3, 3))),
    "padded": ((1, 2, 3, 3), 9, Window((3, 3), padding=1)),
    "strided": ((2, 2, 5, 4), 9, Window((2, 3), stride=2, padding=1)),
    "grouped": ((1, 4, 3, 4), 18, Window((3, 3), groups=2)),
    "deep and one": ((1, 3, 3, 3), 9, Window((2, 2), groups=3)),
}
every_window = pytest.mark.parametrize(("size", "n_out", "window"), WINDOWS.values(), ids=WINDOWS.keys())


@every_window
@pytest.mark.parametrize(("shape", "exact"), [(SHAPES["up and down"], True), (SHAPES["step"], False)])
def test_conv_fires_as_on_the_cpu(
    size: tuple[int, ...], n_out: int, window: Window, shape: Shape, exact: bool
) -> None:
    torch.manual_seed(5)
    times = draw_times(*size, fine=4 if exact else 1)
    weight = draw_weights(n_out, size[1] // window.groups, *window.kernel, shape=shape)
    arguments = (times, weight, shape, window, 1.0, STOP, exact)
    got = first_spike_gpu.fire_conv(*arguments, True)
    assert_equal_fired(got, first_spike_cpu.fire_conv(*arguments, True), exact)
    if not exact:
        assert_same(got.times, first_spike.clock_conv(*arguments[:4], threshold=1.0, stop=STOP), "clock")
    for wanted in ((False, True), (True, False)):
        some = first_spike_gpu.fire_conv(*arguments, *wanted)
        assert_same(some.times, got.times)
        for part, whole, given in zip(some[1:], got[1:], wanted, strict=True):
            assert_same(part, whole[: len(whole) if given else 0])


@pytest.mark.parametrize(("events", "want"), [(1, [2] * 6), (100, [4] * 3), (150, [8, 4])])
def test_events_sorted_a_part_at_a_time(
    events: int, want: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(6)
    shape, window = SHAPES["ramp"], Window((3, 3))
    times, weight = draw_times(3, 1, 4, 4), draw_weights(2, 1, 3, 3, shape=shape)
    arguments = (times, weight, shape, window, 1.0, STOP, False, True)
    whole = first_spike_gpu.fire_conv(*arguments)
    monkeypatch.setattr(first_spike_gpu, "EVENTS", events)
    # two events of each of 9 taps: a line of two windows is 36 events, an image 72
    assert [len(part) for _, part in first_spike_gpu._windows(times, window, 2)] == want
    for a, b in zip(first_spike_gpu.fire_conv(*arguments), whole, strict=True):
        assert_same(a, b)


def formula(
    times: Tensor,
    fired: Tensor,
    update: Tensor,
    carry: Tensor,
    back: Tensor,
    shape: Shape,
    window: Window,
    by_slope: bool,
) -> tuple[Tensor, Tensor]:
    """Both sums, a neuron at a time."""
    p, (kh, kw), per_group = window.padding, window.kernel, back.shape[0] // window.groups
    padded = F.pad(times, [p] * 4, value=math.inf)
    dw, d = torch.zeros_like(back), torch.zeros_like(padded)
    for o in range(back.shape[0]):
        low = o // per_group * back.shape[1]
        for y in range(fired.shape[2]):
            for x in range(fired.shape[3]):
                top, left = y * window.stride, x * window.stride
                at = (
                    slice(None),
                    slice(low, low + back.shape[1]),
                    slice(top, top + kh),
                    slice(left, left + kw),
                )
                s = fired[:, o, y, x, None, None, None] - padded[at]
                gate = (s >= 0) if shape.rise == 0 else (s > 0)
                transfer = shape.slope(s) if by_slope else gate.to(s.dtype)
                dw[o] += (update[:, o, y, x, None, None, None] * shape.value(s)).sum(0)
                d[at] += carry[:, o, y, x, None, None, None] * back[o] * transfer
    return dw, d[:, :, p : d.shape[2] - p, p : d.shape[3] - p]


def draw_backward(size: tuple[int, ...], n_out: int, window: Window, dtype: torch.dtype) -> list[Tensor]:
    torch.manual_seed(7)
    out = (size[0], n_out, *window.out((size[2], size[3])))
    times, fired = draw_times(*size, dtype=dtype), draw_times(*out, dtype=dtype).clamp(max=STOP)
    update, carry = (torch.randn(out, dtype=dtype) * (torch.rand(out) < 0.7) for _ in range(2))
    return [
        times,
        fired,
        update,
        carry,
        torch.randn(n_out, size[1] // window.groups, *window.kernel, dtype=dtype),
    ]


def assert_equal_sums(got: tuple[Tensor, Tensor], want: tuple[Tensor, Tensor]) -> None:
    for what, a, b in zip(("weights", "inputs"), got, want, strict=True):
        assert_near(a, b, 2e-6 if b.dtype == torch.float32 else 1e-14, what)


@every_window
@pytest.mark.parametrize("by_slope", [False, True])
def test_conv_sums(size: tuple[int, ...], n_out: int, window: Window, by_slope: bool) -> None:
    tensors, shape = draw_backward(size, n_out, window, torch.float32), SHAPES["up and down"]
    got = first_spike_gpu.back_conv(*tensors, shape, window, by_slope)
    assert_equal_sums(got, formula(*tensors, shape, window, by_slope))
    assert_equal_sums(got, first_spike_cpu.back_conv(*tensors, shape, window, by_slope))


@every_shape
@pytest.mark.parametrize("by_slope", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_linear_sums(shape: Shape, by_slope: bool, dtype: torch.dtype) -> None:
    one = Window((1, 1))
    tensors = draw_backward((3, first_spike_gpu.INPUTS + 7, 1, 1), first_spike_gpu.ROWS + 3, one, dtype)
    if shape.rise == 0 and by_slope:
        want = formula(*tensors, shape, one, by_slope)
        assert not want[1].any()  # a jump has no slope
    want = tuple(part[:, :, 0, 0] for part in formula(*tensors, shape, one, by_slope))
    flat = [part[:, :, 0, 0] for part in tensors]
    got = first_spike_gpu.back_linear(*flat, shape, by_slope)
    assert_equal_sums(got, want)
    if dtype == torch.float64 and not by_slope:
        assert_equal_sums(got, first_spike_cpu.back_linear(*flat, shape, by_slope))


def test_sums_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    window = Window((3, 3), padding=1)
    tensors = draw_backward((3, 1, 6, 5), 2, window, torch.float64)
    launched = []
    kernel = first_spike_gpu.weights_kernel

    class Recorded:
        def __getitem__(self, grid: tuple[int, ...]):  # type: ignore[no-untyped-def]
            launched.append(grid)
            return kernel[grid]

    monkeypatch.setattr(first_spike_gpu, "weights_kernel", Recorded())
    monkeypatch.setattr(first_spike_gpu, "WINDOWS", 12)
    got = first_spike_gpu.back_conv(*tensors, SHAPES["ramp"], window, False)
    assert launched == [(1, 1, 7)]  # 90 windows, not a multiple
    assert_equal_sums(got, formula(*tensors, SHAPES["ramp"], window, False))


def test_layers_learn_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(8)
    options = {"psp": RampUpDown(8.0, 24.0), "stop": STOP, "rule": STiDi(transfer="share", slope="local")}
    conv, linear = TimingConv2d(1, 3, 3, stride=2, padding=1, **options), TimingLinear(27, 5, **options)
    for layer in (conv, linear):
        layer.set_weight(draw_weights(*layer.weight.shape, shape=layer.psp.shape))
    times = draw_times(2, 1, 6, 6)
    results = []
    for engine in (first_spike_cpu, first_spike_gpu):
        monkeypatch.setattr(first_spike, "_engine", lambda _, engine=engine: engine)
        given = times.clone().requires_grad_()
        out = linear(conv(given).flatten(1))
        error = torch.where(torch.isfinite(out), out, 0).square().sum()
        results.append((out.detach(), *torch.autograd.grad(error, (given, conv.weight, linear.weight))))
    (want, *wanted), (got, *grads) = results
    assert 0.2 < float(torch.isfinite(want).float().mean()) <= 1
    assert_same(got, want, "times")
    for a, b in zip(grads, wanted, strict=True):
        assert float(b.abs().max()) > 0
        assert_near(a, b, 1e-5, "gradient")


def test_nothing_comes_and_nobody_there() -> None:
    shape, one = SHAPES["up and down"], torch.ones(2, 3)
    silent = first_spike_gpu.fire_linear(torch.full((2, 3), math.inf), one, shape, 1.0, STOP, False)
    assert bool(torch.isinf(silent.times).all())
    assert not silent.potential.any() and not silent.slope.any()
    fired = torch.full((2, 2), STOP)
    for part in first_spike_gpu.back_linear(
        torch.full((2, 3), math.inf), fired, fired, fired, one, shape, True
    ):
        assert not part.any()
    nobody = first_spike_gpu.fire_linear(torch.empty(0, 3), one, shape, 1.0, STOP, False)
    assert nobody.times.shape == (0, 2)
    empty = torch.empty(0, 2)
    dw, d = first_spike_gpu.back_linear(torch.empty(0, 3), empty, empty, empty, one, shape, False)
    assert_same(dw, torch.zeros(2, 3))
    assert d.shape == (0, 3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_refused(dtype: torch.dtype) -> None:
    times, weight, shape = torch.zeros(1, 2), torch.ones(3, 2), SHAPES["step"]
    for given in ((times.to(dtype), weight.to(dtype)), (times, weight.to(dtype))):
        with pytest.raises(EngineError, match=r"float32.*got (times|weight) in torch\.\w*float16"):
            first_spike_gpu.fire_linear(*given, shape, 1.0, STOP, False)
    out = torch.zeros(1, 3)
    with pytest.raises(EngineError, match=r"got carry in torch\.\w*float16"):
        first_spike_gpu.back_linear(times, out, out, out.to(dtype), weight, shape, False)
