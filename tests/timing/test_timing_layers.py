"""Layers of spike times: firing by the clock, fixed slopes by their closed form, binary weights, pooling, silence, refusals."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spiketide import LIF
from spiketide.errors import NonFiniteError, ParameterError, ShapeError
from spiketide.timing import (
    PSP,
    AveragePool2d,
    EarliestPool2d,
    FixedSlope,
    Flatten,
    Network,
    OnlineLinear,
    PixelTimes,
    Ramp,
    RampUpDown,
    ReL,
    Rule,
    Silence,
    SpikeProp,
    Step,
    STiDi,
    TimingConv2d,
    TimingCrossEntropy,
    TimingLayer,
    TimingLinear,
    to_times,
    to_train,
)

inf = math.inf
STOP = 32.0
KERNELS: list[PSP] = [Step(), Ramp(8.0), RampUpDown(8.0, 24.0), ReL(16.0)]
CONVS: list[dict[str, int]] = [{}, {"padding": 1}, {"stride": 2}, {"padding": 2, "stride": 2, "groups": 2}]


def quarters(*size: int) -> Tensor:
    """Weights of which sums and products with the kernels above are exact: no threshold is missed by a rounding."""
    return torch.randint(-3, 7, size, dtype=torch.float64) / 16


def some_times(*size: int, span: int = 20) -> Tensor:
    """Whole steps; a fifth never fire."""
    times = torch.randint(0, span, size).double()
    return times.masked_fill(torch.rand(size) < 0.2, inf)


def by_the_clock(times: Tensor, layer: TimingLayer) -> tuple[Tensor, Tensor]:
    """First whole step with the membrane at the threshold, all steps tried in turn; the potential there, or at the end."""
    weight = layer.effective_weight()
    found, potential = None, None
    for step in range(int(layer.stop) + 1):
        x = layer.psp.value(step - times)
        if isinstance(layer, TimingConv2d):
            window = layer.window
            v = F.conv2d(x, weight, None, window.stride, window.padding, 1, window.groups)
        else:
            v = torch.einsum("bi,oi->bo", x, weight)
        if found is None or potential is None:
            found, potential = torch.full_like(v, inf), v
        potential = torch.where(torch.isinf(found), v, potential)
        if step < layer.stop:
            found = torch.where((v >= layer.threshold) & torch.isinf(found), float(step), found)
    assert found is not None and potential is not None
    return found, potential


# ---------------------------------------------------------------------------------------- firing


@pytest.mark.parametrize("psp", KERNELS, ids=repr)
def test_a_layer_fires_when_the_clock_says_so(psp: PSP) -> None:
    layer = TimingLinear(12, 40, psp=psp, stop=STOP, rule=STiDi(slope="constant")).double()
    layer.set_weight(quarters(40, 12))
    times = some_times(9, 12)
    fired = layer.fire(times)
    want, potential = by_the_clock(times, layer)
    share = float(torch.isfinite(want).double().mean())
    assert 0.08 < share < 0.98 and len(want.unique()) > 5
    assert torch.equal(fired.times, want) and torch.equal(layer(times), want)
    torch.testing.assert_close(fired.potential, potential.detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("psp", KERNELS, ids=repr)
@pytest.mark.parametrize("options", CONVS, ids=str)
def test_a_convolution_fires_when_the_clock_says_so(psp: PSP, options: dict[str, int]) -> None:
    layer = TimingConv2d(4, 6, 3, psp=psp, stop=STOP, rule=STiDi(slope="constant"), **options).double()
    layer.set_weight(quarters(*layer.weight.shape))
    times = some_times(3, 4, 7, 6)
    fired = layer.fire(times)
    want, potential = by_the_clock(times, layer)
    share = float(torch.isfinite(want).double().mean())
    assert 0.08 < share < 0.98 and len(want.unique()) > 5
    assert torch.equal(fired.times, want) and torch.equal(layer(times), want)
    torch.testing.assert_close(fired.potential, potential.detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("psp", KERNELS[1:], ids=repr)
def test_times_between_the_steps_lie_on_the_threshold(psp: PSP) -> None:
    layer = TimingLinear(12, 40, psp=psp, stop=STOP, exact=True).double()
    layer.set_weight(torch.randn(40, 12, dtype=torch.float64) / 4 + 0.1)
    times = torch.rand(9, 12, dtype=torch.float64) * 20
    fired = layer(times)
    alive = torch.isfinite(fired)
    assert 0.2 < float(alive.double().mean()) < 0.98
    at = torch.where(alive, fired, STOP)
    v = (psp.value(at[:, :, None] - times[:, None]) * layer.effective_weight()).sum(2)
    torch.testing.assert_close(v[alive], torch.ones_like(v[alive]), rtol=0, atol=1e-12)
    # nowhere before: a finer clock than any event
    before = torch.linspace(0, 1, 4001, dtype=torch.float64)[:-1, None, None] * at
    for b in range(3):
        past = psp.value(before[:, b, :, None] - times[b]) * layer.effective_weight()
        assert float(past.detach().sum(2).max()) < 1 + 1e-9


@pytest.mark.parametrize("psp", KERNELS, ids=repr)
@pytest.mark.parametrize("exact", [False, True])
def test_nobody_fires_at_the_end_of_the_window_or_after_it(psp: PSP, exact: bool) -> None:
    layer = TimingLinear(1, 2, psp=psp, stop=8.0, exact=exact, rule=STiDi(slope="constant")).double()
    layer.set_weight(torch.tensor([[1.0], [1.0 + 1e-9]]))
    last = 8.0 - {"Step": 0.0, "Ramp": 8.0, "RampUpDown": 8.0, "ReL": 16.0}[type(psp).__name__]
    if last >= 0:
        assert layer(torch.tensor([[last]]).double())[0, 0] == inf
    assert layer(torch.tensor([[inf], [9.0]]).double()).tolist() == [[inf, inf], [inf, inf]]


# ---------------------------------------------------------------------------------------- fixed slope

START, LENGTH = 32.0, 16.0


def closed(layer: TimingLayer, times: Tensor, weight: Tensor) -> Tensor:
    """When a fixed slope fires, as one expression; past the end of the window it goes on."""
    psp: Any = layer.psp
    x = torch.relu((psp.start - times) / psp.length)
    if isinstance(layer, TimingConv2d):
        window = layer.window
        v = F.conv2d(x, weight, None, window.stride, window.padding, 1, window.groups)
    else:
        v = x @ weight.t()
    return (psp.start + psp.length * (1 - v / layer.threshold)).clamp(min=psp.start)


def fixed(n_in: int = 10, n_out: int = 30, **more: Any) -> TimingLinear:
    more = {"stop": START + LENGTH, "psp": FixedSlope(START, LENGTH), **more}
    return TimingLinear(n_in, n_out, **more).double()


@pytest.mark.parametrize("threshold", [1.0, 2.5])
def test_a_fixed_slope_is_its_closed_form(threshold: float) -> None:
    layer = fixed(exact=True, threshold=threshold)
    layer.set_weight(torch.randn(30, 10, dtype=torch.float64) * threshold / 3)
    times = torch.rand(8, 10, dtype=torch.float64) * START
    want = closed(layer, times, layer.effective_weight())
    early, late = want <= START, want >= START + LENGTH
    assert early.any() and late.any() and (~early & ~late).sum() > 40
    torch.testing.assert_close(layer(times), want.masked_fill(late, inf), rtol=0, atol=1e-12)


def test_a_fixed_slope_is_a_membrane_stepped_through_time() -> None:
    layer = fixed()
    layer.set_weight(quarters(30, 10))
    times = some_times(8, 10, span=32)
    found = torch.full((8, 30), inf, dtype=torch.float64)
    potential = torch.zeros(8, 30, dtype=torch.float64)
    for t in range(int(START), int(START + LENGTH)):
        heard = (min(t, START) - times).clamp(min=0) / LENGTH
        v = (layer.effective_weight() * heard[:, None]).sum(2) + max(t - START, 0) / LENGTH
        potential = torch.where(torch.isinf(found), v, potential)
        found = torch.where((v >= 1) & torch.isinf(found), float(t), found)
    spoken = torch.isfinite(found)
    assert 0.2 < float(spoken.double().mean()) < 0.98 and len(found.unique()) > 8
    fired = layer.fire(times)
    assert torch.equal(fired.times, found)
    torch.testing.assert_close(fired.potential[spoken], potential[spoken].detach(), rtol=0, atol=1e-12)
    torch.testing.assert_close(
        fired.potential[~spoken], potential[~spoken].detach() + 1 / LENGTH, rtol=0, atol=1e-12
    )


def test_until_its_window_opens_a_fixed_slope_is_a_straight_line() -> None:
    """The potential at the start is that of the general engine's ramps at the end of a window that ends there."""
    layer = fixed(threshold=64.0)
    layer.set_weight(quarters(30, 10))
    times = some_times(8, 10, span=40)
    line = TimingLinear(10, 30, psp=ReL(LENGTH), stop=START, threshold=64.0).double()
    line.set_weight(layer.weight.detach())
    want = line.fire(times)
    assert bool(torch.isinf(want.times).all()) and len(want.potential.unique()) > 100
    at = layer(times)
    since = torch.where(torch.isinf(at), LENGTH, at - START)
    torch.testing.assert_close(
        layer.fire(times).potential, want.potential + 64.0 * since / LENGTH, rtol=0, atol=1e-12
    )


def test_the_rule_of_a_fixed_slope_is_the_exact_derivative() -> None:
    """Displacement with transfer "weight" and slope "constant" against autograd through the closed forms."""
    rule = STiDi(slope="constant", normalise=False)
    net = Network(
        TimingConv2d(1, 3, 3, psp=FixedSlope(16.0, 16.0), stop=32.0, exact=True, rule=rule, padding=1),
        TimingConv2d(3, 4, 2, psp=FixedSlope(32.0, 16.0), stop=48.0, exact=True, rule=rule, stride=2),
        Flatten(),
        TimingLinear(36, 5, psp=FixedSlope(48.0, 16.0), stop=64.0, exact=True, rule=rule, threshold=2.0),
    ).double()
    firing: list[Any] = [net[0], net[1], net[3]]
    for layer, size in zip(firing, (0.3, 0.25, 0.2), strict=True):
        layer.set_weight(torch.randn(layer.weight.shape, dtype=torch.float64) * size)
    times = torch.rand(4, 1, 6, 6, dtype=torch.float64) * 16
    y = torch.tensor([0, 4, 2, 1])

    given = times.clone().requires_grad_()
    fired, seen = net.follow(given)
    loss = TimingCrossEntropy(5.0)(net.output, fired, y)
    loss.backward()
    silent = torch.isinf(fired.times)
    assert silent.any() and (~silent).any() and all(torch.isinf(t).any() for t in seen.values())

    free = times.clone().requires_grad_()
    weights = [layer.weight.detach().clone().requires_grad_() for layer in firing]
    t = free
    for number, (layer, weight) in enumerate(zip(firing, weights, strict=True)):
        t = closed(layer, t.flatten(1) if number == 2 else t, weight)
        assert bool((t > layer.psp.start).all()), "where the window opens there is a kink: see the next test"
    want = F.cross_entropy(-t / 5.0, y)
    want.backward()

    assert loss.item() == pytest.approx(want.item(), rel=1e-12)
    assert given.grad is not None and free.grad is not None
    # the loss hands over displacements in units of 1 / tau, so that one learning rate fits every tau
    torch.testing.assert_close(given.grad, 5.0 * free.grad, rtol=1e-9, atol=1e-13)
    for layer, weight in zip(firing, weights, strict=True):
        assert weight.grad is not None and float(weight.grad.abs().max()) > 1e-3
        torch.testing.assert_close(layer.weight.grad, 5.0 * weight.grad, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("grad", [1.0, -1.0])
def test_who_fires_as_the_window_opens_is_moved_later_only(grad: float) -> None:
    layer = fixed(1, 1, exact=True, rule=STiDi(slope="constant"))
    layer.set_weight(torch.tensor([[3.0]]))
    out = layer(torch.tensor([[0.0]]).double())
    assert out.tolist() == [[START]]
    (grad * out).sum().backward()
    # a positive gradient asks for an earlier spike: there is none
    assert layer.weight.grad is not None
    assert layer.weight.grad.item() == (0.0 if grad > 0 else START)  # length times (32 - 0) / length


# ---------------------------------------------------------------------------------------- weights


@pytest.mark.parametrize("psp", [Step(), Ramp(8.0), ReL(16.0), FixedSlope(16.0, 16.0)], ids=repr)
def test_weights_of_one_magnitude_fire_alike_binary_or_not(psp: PSP) -> None:
    options: Any = {"psp": psp, "stop": STOP, "rule": STiDi(slope="constant")}
    for make, given in (
        (lambda **o: TimingLinear(12, 30, **options, **o), some_times(9, 12, span=16)),
        (lambda **o: TimingConv2d(2, 6, 3, **options, **o), some_times(3, 2, 6, 6, span=16)),
    ):
        real, binary = make().double(), make(binary=True).double()
        weight = torch.where(torch.rand(real.weight.shape) < 0.65, 0.25, -0.25).double()
        real.set_weight(weight)
        binary.set_weight(weight)
        assert torch.equal(binary.effective_weight(), weight) and float(binary.scale) == 0.25
        want = real.fire(given)
        assert torch.isfinite(want.times).any() and torch.isinf(want.times).any()
        for mine, theirs in zip(binary.fire(given), want, strict=True):
            assert torch.equal(mine, theirs)


def test_a_binary_layer_sees_signs_and_learns_real_numbers() -> None:
    layer = TimingLinear(6, 8, psp=Ramp(8.0), stop=STOP, binary=True, learn_scale=True).double()
    with torch.no_grad():
        layer.weight[0, 0] = 0.0
        layer.scale.fill_(0.5)
    sign = torch.where(layer.weight >= 0, 1.0, -1.0).double()
    assert torch.equal(layer.effective_weight(), 0.5 * sign)
    twin = TimingLinear(6, 8, psp=Ramp(8.0), stop=STOP).double()
    twin.set_weight((0.5 * sign).detach())
    times, pull = some_times(5, 6), torch.randn(5, 8).double()
    for each in (layer, twin):
        out = each(times)
        out.backward(pull)
    assert torch.isfinite(out).any()
    grad = twin.weight.grad
    assert grad is not None and layer.weight.grad is not None and layer.scale.grad is not None
    # straight through the sign to the real weight; the scale gets the exact sum
    torch.testing.assert_close(layer.weight.grad, 0.5 * grad, rtol=1e-12, atol=0)
    torch.testing.assert_close(layer.scale.grad, (sign * grad).sum(), rtol=1e-12, atol=0)


def test_a_small_update_does_not_change_a_binary_forward_and_a_large_one_does() -> None:
    layer = TimingLinear(6, 8, binary=True, mean=2.0)
    times = some_times(5, 6).float()
    before = layer(times)
    with torch.no_grad():
        least = layer.weight.abs().min()
        layer.weight -= 0.9 * least * layer.weight.sign()
    assert torch.equal(layer(times), before)
    with torch.no_grad():
        layer.weight.neg_()
    assert not torch.equal(layer(times), before)


def test_scales_are_learnt_only_on_demand() -> None:
    plain, learnt = TimingLinear(3, 2), TimingLinear(3, 2, learn_scale=True)
    assert [name for name, _ in plain.named_parameters()] == ["weight"]
    assert sorted(name for name, _ in learnt.named_parameters()) == ["scale", "weight"]
    assert sorted(plain.state_dict()) == sorted(learnt.state_dict()) == ["scale", "weight"]


def test_a_state_dict_brings_the_same_spikes() -> None:
    first = Network(TimingConv2d(1, 4, 3), EarliestPool2d(), Flatten(), TimingLinear(36, 10, binary=True))
    other = Network(TimingConv2d(1, 4, 3), EarliestPool2d(), Flatten(), TimingLinear(36, 10, binary=True))
    with torch.no_grad():
        for layer in (first[0], first[3]):
            layer.scale.mul_(1.3)
    times = some_times(4, 1, 8, 8).float()
    want = first(times)
    assert not torch.equal(other(times), want)
    other.load_state_dict(first.state_dict())
    assert torch.equal(other(times), want)


def test_initial_weights_have_the_stated_moments() -> None:
    layer = TimingLinear(300, 400, mean=2.0, threshold=3.0)
    assert float(layer.weight.detach().mean()) == pytest.approx(2.0 / math.sqrt(0.3 * 300), abs=0.01)
    assert float(layer.weight.detach().std()) == pytest.approx(1.0, abs=0.01)
    assert float(layer.scale) == pytest.approx(2 * 3.0 / math.sqrt(300))


def test_what_weights_are_refused() -> None:
    layer = TimingLinear(3, 2, binary=True)
    kept = layer.weight.detach().clone()
    with pytest.raises(ShapeError, match=r"expected weights \(2, 3\), got \(3, 2\)"):
        layer.set_weight(torch.ones(3, 2))
    with pytest.raises(ParameterError, match=r"binary: all weights need one magnitude above 0, got 1 to 2"):
        layer.set_weight(torch.tensor([[1.0, -1.0, 2.0], [1.0, 1.0, 1.0]]))
    with pytest.raises(ParameterError, match=r"one magnitude above 0, got 0 to 0"):
        layer.set_weight(torch.zeros(2, 3))
    with pytest.raises(NonFiniteError, match=r"TimingLinear got 1 NaN or Inf among 6 weights"):
        layer.set_weight(torch.tensor([[1.0, 1.0, math.nan], [1.0, 1.0, 1.0]]))
    assert torch.equal(layer.weight, kept)


# ---------------------------------------------------------------------------------------- between layers


def test_pooling_hands_a_displacement_to_the_first_spike_alone() -> None:
    times = some_times(2, 3, 6, 4)
    times[0, 0, :2, :2] = torch.tensor([[7.0, 5.0], [5.0, 5.0]])  # equals: the first in reading order
    times[0, 1, :2, :2] = inf
    times.requires_grad_()
    pooled = EarliestPool2d(2)(times)
    windows = times.detach().unfold(2, 2, 2).unfold(3, 2, 2).flatten(4)
    assert torch.equal(pooled, windows.amin(4)) and pooled[0, 1, 0, 0] == inf
    d = torch.randn(pooled.shape, dtype=torch.float64)
    pooled.backward(d)
    assert times.grad is not None
    got = times.grad.unfold(2, 2, 2).unfold(3, 2, 2).flatten(4)
    heard = torch.isfinite(pooled)
    assert bool(((got != 0).sum(4)[heard] == 1).all())
    first = windows.argmin(4, keepdim=True)
    assert torch.equal(got.gather(4, first).squeeze(4)[heard], d[heard])
    assert times.grad[0, 0, :2, :2].tolist() == [[0.0, float(d[0, 0, 0, 0])], [0.0, 0.0]]


def test_pooling_leaves_out_what_fills_no_window() -> None:
    times = some_times(1, 1, 5, 7)
    assert torch.equal(
        EarliestPool2d(3)(times), times[:, :, :3, :6].unfold(2, 3, 3).unfold(3, 3, 3).flatten(4).amin(4)
    )


def test_the_average_counts_silent_ones_at_the_end() -> None:
    times = torch.tensor([[[[2.0, 4.0, inf, inf], [inf, 4.0, inf, inf]]]], requires_grad=True)
    pooled = AveragePool2d(2, stop=8.0)(times)
    assert pooled.tolist() == [[[[(2 + 4 + 8 + 4) / 4, inf]]]]
    pooled.backward(torch.tensor([[[[4.0, 1.0]]]]))
    assert times.grad is not None
    assert times.grad.tolist() == [[[[1.0, 1.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]]]]


def test_silence_silences_its_share_in_training_alone() -> None:
    times = torch.full((50, 1000), 3.0)
    layer = Silence(0.3)
    out = layer(times)
    assert float(torch.isinf(out).float().mean()) == pytest.approx(0.3, abs=0.01)
    assert torch.equal(out[torch.isfinite(out)], times[torch.isfinite(out)])
    assert layer.eval()(times) is times and Silence(0.0)(times) is times


def test_silence_with_an_end_keeps_the_mean_potential() -> None:
    end, length = 96.0, 32.0
    times = end - length * torch.rand(1, 400)
    times[0, ::7] = inf
    layer = Silence(0.25, end=end)
    psp = FixedSlope(end, length)

    def heard(t: Tensor) -> Tensor:
        return psp.value(end - t).sum(1)

    means = torch.stack([heard(layer(times)) for _ in range(400)]).mean()
    assert float(means) == pytest.approx(float(heard(times)), rel=0.005)
    assert bool(torch.isinf(layer(times)[0, ::7]).all())
    # without an end it is smaller by the share that is silent
    means = torch.stack([heard(Silence(0.25)(times)) for _ in range(400)]).mean()
    assert float(means) == pytest.approx(0.75 * float(heard(times)), rel=0.01)


def test_silence_never_makes_negative_times() -> None:
    out = Silence(0.5, end=8.0)(torch.tensor([[0.0, 1.0, 6.0, 9.0]] * 100))
    kept = [{float(t) for t in column if t < inf} for column in out.t()]
    assert kept == [{0.0}, {0.0}, {4.0}, {10.0}]


def test_a_silenced_neuron_gets_no_displacement() -> None:
    times = torch.full((1, 1000), 6.0, requires_grad=True)
    out = Silence(0.5, end=8.0)(times)
    out.backward(torch.ones_like(out))
    assert times.grad is not None
    assert torch.equal(times.grad != 0, torch.isfinite(out)) and 300 < int((times.grad != 0).sum()) < 700


# ---------------------------------------------------------------------------------------- words and refusals


def test_layers_say_what_they_are() -> None:
    assert repr(TimingLinear(3, 2, psp=Ramp(8.0), stop=32.0, binary=True)) == (
        "TimingLinear(3, 2, Ramp(rise=8), stop=32, STiDi(transfer='weight', slope='chord', normalise=True), binary)"
    )
    conv = TimingConv2d(2, 4, 3, padding=1, stride=2, groups=2, exact=True, stop=31.5, rule=SpikeProp())
    assert repr(conv) == (
        "TimingConv2d(2, 4, 3, padding=1, stride=2, groups=2, ReL(unit=31.5), stop=31.5, "
        "SpikeProp(transfer='exact', slope='exact', normalise=False))"
    )
    assert [
        repr(m) for m in (EarliestPool2d(3), AveragePool2d(stop=8.0), Silence(0.1, end=9.0), Flatten())
    ] == [
        "EarliestPool2d(3)",
        "AveragePool2d(2, stop=8)",
        "Silence(p=0.1, end=9.0)",
        "Flatten()",
    ]


@pytest.mark.parametrize(
    ("size", "options", "want"),
    [
        ((1, 6, 9, 8), {}, (4, 7, 6)),
        ((2, 6, 9, 8), {"padding": 1}, (4, 9, 8)),
        ((2, 6, 9, 8), {"stride": 3}, (4, 3, 2)),
        ((2, 6, 3, 3), {"groups": 2}, (4, 1, 1)),
    ],
)
def test_shapes_of_a_convolution(
    size: tuple[int, ...], options: dict[str, int], want: tuple[int, ...]
) -> None:
    layer = TimingConv2d(6, 4, 3, **options)
    assert layer(torch.zeros(size)).shape == (size[0], *want)
    assert layer.weight.shape == (4, 6 // options.get("groups", 1), 3, 3)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: TimingLinear(0, 2), "expected n_in as a positive integer, got 0"),
        (lambda: TimingLinear(2, True), "expected n_out as a positive integer, got True"),
        (lambda: TimingLinear(2, 2.0), r"expected n_out as a positive integer, got 2\.0"),  # type: ignore[arg-type]
        (lambda: TimingLinear(2, 2, stop=0), "stop as a positive number of steps"),
        (lambda: TimingLinear(2, 2, stop=math.inf), "stop as a positive number of steps"),
        (lambda: TimingLinear(2, 2, stop=10.5), "whole unless exact=True, got 10.5"),
        (lambda: TimingLinear(2, 2, threshold=0.0), "a threshold above 0"),
        (lambda: TimingLinear(2, 2, threshold=math.nan), "a threshold above 0"),
        (lambda: TimingLinear(2, 2, mean=math.nan), "a finite mean"),
        (lambda: TimingLinear(2, 2, psp="ReL"), "expected psp as a spiketide.timing.PSP, got 'ReL'"),
        (lambda: TimingLinear(2, 2, rule="STiDi"), "expected rule as a spiketide.timing.Rule, got 'STiDi'"),
        (
            lambda: TimingLinear(2, 2, psp=FixedSlope(8.0, 8.0), stop=8.0),
            "expected stop=16, the end of FixedSlope",
        ),
        (
            lambda: TimingLinear(2, 2, psp=Step(), rule=SpikeProp()),
            r"divides by the slope of the membrane.*Step\(\)",
        ),
        (lambda: TimingLinear(2, 2, psp=Step(), rule=STiDi(slope="local")), r"with Step\(\) there is none"),
        (
            lambda: TimingLinear(2, 2, psp=Step(), rule=STiDi(transfer="share")),
            r"with Step\(\) there is none",
        ),
        (
            lambda: TimingLinear(2, 2, psp=FixedSlope(8.0, 8.0), stop=16.0, rule=STiDi(transfer="share")),
            "'share' is not defined with FixedSlope",
        ),
        (lambda: TimingConv2d(2, 4, 0), "expected kernel as an integer from 1 on, got 0"),
        (lambda: TimingConv2d(2, 4, 3, padding=-1), "expected padding as an integer from 0 on, got -1"),
        (lambda: TimingConv2d(2, 4, 3, stride=0), "expected stride as an integer from 1 on, got 0"),
        (lambda: TimingConv2d(3, 4, 3, groups=2), "channels that 2 groups divide, got 3 and 4"),
        (lambda: TimingConv2d(2, 3, 3, groups=2), "channels that 2 groups divide, got 2 and 3"),
        (lambda: EarliestPool2d(0), "EarliestPool2d expected size as a positive integer"),
        (lambda: AveragePool2d(2.0), "AveragePool2d expected size as a positive integer"),  # type: ignore[arg-type]
        (lambda: AveragePool2d(2, stop=math.inf), "stop as a positive number of steps"),
        (lambda: Silence(1.0), "p from 0 to below 1, got 1.0"),
        (lambda: Silence(math.nan), "p from 0 to below 1"),
        (lambda: Silence(0.5, end=0.0), "end as a positive number of steps, or None, got 0.0"),
        (lambda: Rule(transfer="weigth"), "transfer.*'weigth'.*weight"),
        (lambda: Rule(slope="const"), "slope.*'const'.*constant"),
        (lambda: Rule(slope_limit=0.0), "slope_limit above 0"),
        (lambda: STiDi(transfer="exact"), "not recursive.*SpikeProp"),
        (lambda: STiDi(slope="exact"), "not recursive.*SpikeProp"),
    ],
)
def test_settings_that_are_refused(make: Any, words: str) -> None:
    with pytest.raises(ParameterError, match=words):
        make()


@pytest.mark.parametrize(
    ("layer", "times", "words"),
    [
        (TimingLinear(4, 2), torch.zeros(3, 5), r"expected spike times \(B, 4\), got \(3, 5\)\."),
        (
            TimingLinear(4, 2),
            torch.zeros(3, 1, 2, 2),
            r"got \(3, 1, 2, 2\)\. Put spiketide.timing.Flatten\(\) in front",
        ),
        (TimingLinear(4, 2), torch.zeros(4), r"got \(4,\)"),
        (TimingLinear(4, 2), torch.zeros(3, 4, dtype=torch.int64), r"got torch.int64: times.float\(\)"),
        (
            TimingLinear(4, 2),
            torch.zeros(3, 4, dtype=torch.float16),
            r"float32 or float64.*got torch.float16",
        ),
        (
            TimingConv2d(2, 3, 3),
            torch.zeros(1, 3, 5, 5),
            r"expected spike times \(B, 2, H, W\), got \(1, 3, 5, 5\)",
        ),
        (TimingConv2d(2, 3, 3), torch.zeros(2, 5, 5), r"got \(2, 5, 5\)"),
        (TimingConv2d(2, 3, 5), torch.zeros(1, 2, 4, 9), r"window of \(5, 5\).*larger images, got \(4, 9\)"),
        (EarliestPool2d(4), torch.zeros(1, 1, 3, 9), r"of 4 x 4 or more, got \(1, 1, 3, 9\)"),
        (AveragePool2d(2), torch.zeros(3, 9), r"\(B, C, H, W\).*got \(3, 9\)"),
    ],
)
def test_shapes_that_are_refused(layer: torch.nn.Module, times: Tensor, words: str) -> None:
    with pytest.raises(ShapeError, match=words):
        layer(times)


@pytest.mark.parametrize("psp", [ReL(64.0), FixedSlope(32.0, 32.0)], ids=repr)
@pytest.mark.parametrize("bad", [math.nan, -1.0, -math.inf])
def test_times_that_are_none(psp: PSP, bad: float) -> None:
    times = torch.zeros(2, 3)
    times[1, 2] = bad
    with pytest.raises(NonFiniteError, match="from 0 on, or inf, got 1 of 6 that are NaN or negative"):
        TimingLinear(3, 2, psp=psp)(times)


def test_networks_that_are_refused() -> None:
    with pytest.raises(
        ParameterError, match="a TimingLayer at the end, got Flatten: its first spike decides"
    ):
        Network(TimingLinear(3, 2), Flatten())
    with pytest.raises(ParameterError, match="at the end, got nothing"):
        Network()
    pool = EarliestPool2d()
    for stranger in (nn.Linear(3, 4), nn.Conv2d(1, 2, 3), LIF(4)):
        with pytest.raises(
            ParameterError, match=f"from spike times to spike times, got {type(stranger).__name__}"
        ):
            Network(stranger, TimingLinear(4, 2))
    with pytest.raises(ParameterError, match="one module stands in two places: make a second one"):
        Network(TimingConv2d(1, 2, 3), pool, TimingConv2d(2, 2, 3), pool, Flatten(), TimingLinear(8, 2))


def test_a_network_gives_the_times_of_every_layer() -> None:
    net = Network(TimingConv2d(1, 4, 3), EarliestPool2d(), Flatten(), TimingLinear(36, 10))
    times = some_times(5, 1, 8, 8).float()
    fired, seen = net.follow(times)
    assert list(seen) == ["0", "3"]
    assert torch.equal(seen["0"], net[0](times)) and torch.equal(seen["3"], fired.times)
    assert torch.equal(net(times), fired.times) and fired.potential.shape == (5, 10)
    assert torch.isfinite(fired.times).any()


def test_silent_outputs_have_a_later_time_the_farther_they_are_from_their_threshold() -> None:
    layer = TimingLinear(1, 4, psp=ReL(16.0), stop=16.0, threshold=2.0)
    layer.set_weight(torch.tensor([[4.0], [1.0], [0.0], [-9.0]]))
    fired = layer.fire(torch.zeros(1, 1))
    assert fired.times.tolist() == [[8.0, inf, inf, inf]]
    assert fired.potential.tolist() == [[2.0, 1.0, 0.0, -9.0]]
    assert layer.virtual(fired).tolist() == [[8.0, 16 + 8.0, 16 + 16.0, 16 + 32.0]]
    assert layer.virtual(fired, 0.5).tolist() == [[8.0, 16 + 4.0, 16 + 8.0, 16 + 16.0]]
    assert layer.virtual(fired, 1.0, 1.0).tolist() == [[8.0, 24.0, 32.0, 32.0]]
    slope = TimingLinear(1, 2, psp=FixedSlope(8.0, 4.0), stop=12.0)
    slope.set_weight(torch.tensor([[0.25], [-0.25]]))
    fired = slope.fire(torch.full((1, 1), 4.0))
    # the closed form goes on behind the window: 8 + 4 (1 - v)
    assert slope.virtual(fired).tolist() == [[11.0, 13.0]]


@pytest.mark.parametrize(
    ("take", "words"),
    [
        (TimingLinear(4, 2), "TimingLinear expected spike times"),
        (TimingLinear(4, 2).set_weight, "TimingLinear expected weights"),
        (TimingConv2d(1, 2, 3), "TimingConv2d expected spike times"),
        (OnlineLinear(4, 2), "OnlineLinear expected spike times"),
        (Network(TimingLinear(4, 2)), "layer 0: TimingLinear expected spike times"),
        (EarliestPool2d(2), "EarliestPool2d expected spike times"),
        (AveragePool2d(2), "AveragePool2d expected spike times"),
        (Flatten(), "Flatten expected spike times"),
        (Silence(0.5), "Silence expected spike times"),
        (to_times, "to_times expected a spike train"),
        (lambda times: to_train(times, 4), "to_train expected spike times"),
        (PixelTimes(), "PixelTimes expected intensities from 0 to 1"),
    ],
)
def test_arrays_and_lists_are_refused_in_words(take: Any, words: str) -> None:
    with pytest.raises(ShapeError, match=f"{words}.* as a torch tensor, got ndarray.*from_numpy"):
        take(np.zeros((1, 1, 4, 4), np.float32))
    with pytest.raises(ShapeError, match=f"{words}.* as a torch tensor, got list.*torch.tensor"):
        take([[0.0, 1.0, 2.0, 3.0]])


def test_what_a_layer_fired_is_told_from_its_times() -> None:
    layer = TimingLinear(4, 2)
    with pytest.raises(ShapeError, match=r"got Fired\. Its field times is meant: x\.times"):
        layer(layer.fire(torch.zeros(1, 4)))


def test_another_precision_than_that_of_the_weights() -> None:
    layer = TimingLinear(4, 2, psp=FixedSlope(8.0, 8.0), stop=16.0)
    with pytest.raises(ShapeError, match=r"input of torch.float32, as its weights are, got torch.float64"):
        layer(torch.zeros(1, 4, dtype=torch.float64))


def test_a_network_names_the_layer_that_refuses() -> None:
    net = Network(Flatten(), TimingLinear(4, 3), TimingLinear(5, 2))
    for run in (net, net.follow):
        with pytest.raises(ShapeError, match=r"layer 1: TimingLinear expected .*\(B, 4\), got \(1, 9\)"):
            run(torch.zeros(1, 3, 3))
        with pytest.raises(ShapeError, match=r"layer 2: TimingLinear expected .*\(B, 5\), got \(1, 3\)"):
            run(torch.zeros(1, 2, 2))
        with pytest.raises(NonFiniteError, match="layer 1: TimingLinear .* 4 of 4"):
            run(torch.full((1, 4), math.nan))


# --------------------------------------------------------------------------------- at the threshold, and what the pages say


def page(name: str) -> str:
    return " ".join((Path(__file__).parents[2] / "docs" / name).read_text().split())


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize(
    "psp", [Step(), Ramp(4.0), ReL(4.0), RampUpDown(4.0, 8.0), FixedSlope(4.0, 4.0)], ids=repr
)
def test_one_spike_fires_at_its_threshold(psp: PSP, exact: bool) -> None:
    """One weight of 1 brings the membrane exactly to 1."""
    layer = TimingLinear(1, 1, psp=psp, stop=8.0, exact=exact, rule=STiDi(slope="constant"))
    layer.set_weight(torch.ones(1, 1))
    assert layer(torch.zeros(1, 1)).item() == (0.0 if isinstance(psp, Step) else 4.0)
    assert "| `threshold` | 1 | fires at or above it (" in page("reference/timing.md")
    assert "fires when it reaches its threshold, at or above" in page("explanation/conventions.md")


def test_learnt_online_and_stepped_it_has_to_be_passed() -> None:
    layer = OnlineLinear(1, 1, stop=8, threshold=1.0)
    layer.set_weight(torch.ones(1, 1))
    assert layer(torch.zeros(1, 1)).item() == inf
    layer.set_weight(torch.full((1, 1), 1 + 1e-6))
    assert layer(torch.zeros(1, 1)).item() == 1.0
    neuron = LIF(1, threshold=1.0)
    for current, spikes in ((1.0, 0.0), (1 + 1e-6, 1.0)):
        assert neuron(torch.full((1, 1, 1), current))[0].item() == spikes
    words = page("explanation/conventions.md")
    assert "A neuron that is stepped fires strictly above its threshold" in words
    assert "only `OnlineLinear` (`S4NN`, `BS4NN`) fires strictly above" in words


# -------------------------------------------------------------------------------------------------- windows of a network


def window(start: float, length: float, n_in: int = 4) -> TimingLinear:
    return TimingLinear(n_in, 4, psp=FixedSlope(start, length), stop=start + length)


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        (
            (window(32.0, 32.0), Flatten(), window(32.0, 32.0)),
            r"layer 2 \(TimingLinear\) hears inputs until step 32, when its window opens, and layer 0 \(TimingLinear\) fires "
            r"from step 32 to 64: it would hear nothing and never fire. Give it psp=FixedSlope\(64, 32\), stop=96",
        ),
        ((window(32.0, 32.0), window(16.0, 16.0)), "layer 1 .* until step 16"),
        (
            (window(64.0, 32.0), TimingLinear(4, 4, stop=64.0)),
            r"layer 1 .* until step 64, when its window ends.*layer 0 .* from step 64 to 96.*Give it a stop above 96",
        ),
    ],
)
def test_a_layer_that_can_hear_nothing_is_refused(layers: tuple[Any, ...], words: str) -> None:
    with pytest.raises(ParameterError, match=words):
        Network(*layers)


def test_windows_that_overlap_are_named(caplog: pytest.LogCaptureFixture) -> None:
    Network(window(32.0, 32.0), window(48.0, 32.0))
    Network(TimingLinear(4, 4, stop=64.0), window(32.0, 32.0))
    first, second = (record.getMessage() for record in caplog.records)
    assert first.startswith(
        "layer 1 (TimingLinear) hears inputs until step 48, when its window opens, and layer 0"
    )
    assert "from step 32 to 64: later spikes are lost" in first and "FixedSlope(64, 32), stop=96" in first
    assert "until step 32" in second and "from step 0 to 64" in second


def test_windows_one_behind_the_other_are_taken_in_silence(caplog: pytest.LogCaptureFixture) -> None:
    Network(
        window(32.0, 32.0), Flatten(), window(64.0, 16.0), window(96.0, 8.0), TimingLinear(4, 2, stop=128.0)
    )
    Network(TimingLinear(4, 4, stop=64.0), TimingLinear(4, 4, stop=32.0))
    assert not caplog.records
