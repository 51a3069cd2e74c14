"""Scales set before training reach the wanted moments; dead neurons are woken."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from spiketide.errors import ParameterError, ShapeError
from spiketide.timing import (
    AveragePool2d,
    EarliestPool2d,
    FixedSlope,
    Flatten,
    Network,
    Ramp,
    RampUpDown,
    ReL,
    Silence,
    Step,
    STiDi,
    TimingConv2d,
    TimingLinear,
    calibrate,
    revive,
)

inf = math.inf


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    """Nothing here learns."""
    with torch.no_grad():
        yield


def images(n: int = 40) -> Tensor:
    """Blobs on black: most pixels never fire."""
    times = torch.randint(0, 30, (n, 1, 12, 12)).float()
    return times.masked_fill(torch.rand(n, 1, 12, 12) < 0.4, inf)


@pytest.mark.parametrize("psp", [ReL(64.0), Ramp(16.0), RampUpDown(32.0, 128.0)], ids=repr)
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("binary", [False, True])
def test_medians_come_at_their_moments(psp: Any, exact: bool, binary: bool) -> None:
    options: Any = {"psp": psp, "stop": 64.0, "exact": exact, "binary": binary}
    net = Network(
        TimingConv2d(1, 12, 3, mean=2.0, **options),
        EarliestPool2d(),
        Silence(0.5),
        Flatten(),
        TimingLinear(300, 50, mean=2.0, **options),
        TimingLinear(50, 30, mean=2.0, **options),
    )
    times = images()
    moments = [0.55, 0.7, 0.85]
    calibrate(net, times, moments)
    assert net.training and net[2].training
    net.eval()
    pooled = net[1](net[0](times))
    heard = (
        net[1](torch.where(torch.nn.functional.max_pool2d((times < 64).float(), 3, 1) > 0, 0.0, inf)) < inf
    )
    out = pooled[heard.expand_as(pooled)], *[net.follow(times)[1][name].flatten() for name in ("4", "5")]
    for found, moment in zip(out, moments, strict=True):
        middle = float(found.sort().values[len(found) // 2])
        if binary:  # potentials are few and far between: the moment lies between two neighbours of the median
            low, high = (float(found.sort().values[int(len(found) * q)]) for q in (0.3, 0.7))
            assert low <= 64 * moment + 1 and high >= 64 * moment - 1
        else:
            assert middle == pytest.approx(64 * moment, abs=0.1 if exact else 1.0)


def test_neurons_that_hear_nothing_do_not_count() -> None:
    """Of images that are black but for a corner, the median is that of the corner."""
    times = torch.full((20, 1, 12, 12), inf)
    times[:, :, :5, :5] = torch.randint(0, 20, (20, 1, 5, 5)).float()
    net = Network(TimingConv2d(1, 20, 3, mean=3.0, stop=64.0, exact=True), Flatten(), TimingLinear(2000, 5))
    calibrate(net, times, [0.5, 0.8])
    found = net[0](times)
    assert float(torch.isinf(found).float().mean()) > 0.6
    corner = found[:, :, :5, :5].flatten()
    assert float(corner.sort().values[len(corner) // 2]) == pytest.approx(32.0, abs=0.1)


@pytest.mark.parametrize("moment", [0.25, 0.6])
def test_with_a_fixed_slope_one_spike_in_twenty_comes_before_the_moment(moment: float) -> None:
    net = Network(
        TimingConv2d(1, 12, 3, psp=FixedSlope(32.0, 32.0), stop=64.0, exact=True),
        AveragePool2d(stop=64.0),
        Flatten(),
        TimingLinear(300, 40, psp=FixedSlope(64.0, 32.0), stop=96.0, exact=True),
    )
    times = images()
    calibrate(net, times, [moment, 0.5])
    for found, at in ((net[1](net[0](times)), 32 + 32 * moment), (net(times), 64 + 16.0)):
        spikes = found[torch.isfinite(found)].flatten()
        assert len(spikes) > 200
        assert float((spikes <= at + 1e-3).float().mean()) == pytest.approx(0.05, abs=0.006)


def test_weights_are_left_alone_and_nothing_depends_on_the_scale_before() -> None:
    net = Network(TimingLinear(20, 30), TimingLinear(30, 10))
    times = torch.randint(0, 20, (30, 20)).float()
    kept = [layer.weight.detach().clone() for layer in net]
    calibrate(net, times, [0.5, 0.8])
    scales = [float(layer.scale) for layer in net]
    for layer in net:
        layer.scale.mul_(17.0)
    calibrate(net, times, [0.5, 0.8])
    assert [float(layer.scale) for layer in net] == scales
    assert all(torch.equal(layer.weight, weight) for layer, weight in zip(net, kept, strict=True))


KERNELS = [
    (Step(), 64.0),
    (ReL(64.0), 64.0),
    (ReL(2.5), 64.0),
    (Ramp(16.0), 64.0),
    (RampUpDown(32.0, 128.0), 64.0),
    (FixedSlope(32.0, 32.0), 64.0),
    (FixedSlope(32.5, 31.5), 64.0),
]


@pytest.mark.parametrize(("psp", "stop"), KERNELS, ids=repr)
@pytest.mark.parametrize("part", [1, 4], ids=["whole steps", "quarters of a step"])
def test_no_potential_of_a_binary_layer_lies_on_its_threshold(psp: Any, stop: float, part: int) -> None:
    """In exact arithmetic every potential is away from the threshold; so float32 and float64 say the same spikes."""
    torch.manual_seed(0)
    rule = STiDi(slope="constant")
    net = Network(TimingLinear(49, 60, psp=psp, stop=stop, binary=True, rule=rule, mean=2.0))
    times = (torch.randint(0, 30 * part, (60, 49)) / part).masked_fill(torch.rand(60, 49) < 0.1, inf)
    calibrate(net, times, [0.5])
    layer = net[0]
    assert bool((net(times) < stop).any())
    assert torch.equal(net(times).double(), copy.deepcopy(net).double()(times.double()))
    # the kernel at quarters of a step, in whole multiples of what all its values are multiples of
    clock = torch.arange(0, 4 * int(stop)).double() / 4
    signs = torch.where(layer.weight >= 0, 1.0, -1.0).double()
    unit = layer.threshold / float(layer.scale)  # the threshold in signs
    if isinstance(psp, FixedSlope):
        sums = (psp.start - times.double()).clamp(min=0) @ signs.T
        reached = unit * torch.arange(1, 1 + int(psp.length)).double()
        distance = (sums.flatten()[:, None] - reached).abs().amin()
        assert float(distance) * 2 * part > 0.9 / (psp.length + 1)
        return
    seen = clock if part == 4 else clock[::4]
    v = psp.value(seen[:, None, None] - times.double()) @ signs.T
    quantum = {"ReL": 1 / psp.unit, "Ramp": 1 / 16, "RampUpDown": 1 / 96, "Step": part}[type(psp).__name__]
    assert float((v - unit).abs().amin()) * part / quantum == pytest.approx(0.5, abs=0.01)


def test_a_binary_convolution_and_a_mean_of_times_are_unambiguous_too() -> None:
    torch.manual_seed(0)
    options: Any = {"stop": 64.0, "binary": True, "mean": 2.0}
    net = Network(
        TimingConv2d(1, 8, 3, **options),
        AveragePool2d(stop=64.0),
        TimingConv2d(8, 8, 3, **options),
        EarliestPool2d(3),
        Flatten(),
        TimingLinear(8, 10, **options),
    )
    times = images()
    calibrate(net, times, [0.5, 0.7, 0.8])
    assert bool(torch.isfinite(net(times)).any())
    assert torch.equal(net(times).double(), copy.deepcopy(net).double()(times.double()))


def test_a_level_that_potentials_share_no_measure_with_is_left_where_it_is() -> None:
    torch.manual_seed(0)
    net = Network(TimingLinear(20, 30, psp=Ramp(math.pi), binary=True), TimingLinear(30, 10))
    calibrate(net, torch.rand(30, 20) * 20, [0.5, 0.8])
    found = net[0](torch.rand(30, 20) * 20)
    assert bool(torch.isfinite(found).any())


def test_the_scale_of_real_weights_is_what_the_moment_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("spiketide.timing.calibration._unambiguous")
    net = Network(TimingLinear(20, 30), TimingLinear(30, 10))
    calibrate(net, torch.randint(0, 20, (30, 20)).float(), [0.5, 0.8])


def test_a_layer_that_hears_nothing_is_named() -> None:
    net = Network(TimingLinear(4, 3), TimingLinear(3, 2))
    with pytest.raises(
        ParameterError, match=r"layer 0 \(TimingLinear\) hears no spike at all: no scale makes it fire"
    ):
        calibrate(net, torch.full((5, 4), inf), [0.5, 0.8])
    assert net.training


def test_input_of_another_width_is_named() -> None:
    net = Network(Flatten(), TimingLinear(16, 3), TimingLinear(4, 2))
    with pytest.raises(ShapeError, match=r"layer 1: TimingLinear expected .*\(B, 16\), got \(5, 9\)"):
        calibrate(net, torch.zeros(5, 1, 3, 3), [0.5, 0.8])
    with pytest.raises(ShapeError, match=r"layer 2: TimingLinear expected .*\(B, 4\), got \(5, 3\)"):
        calibrate(net, torch.zeros(5, 1, 4, 4), [0.5, 0.8])
    with pytest.raises(ShapeError, match=r"layer 1: TimingLinear .*got torch.int64: times.float\(\)"):
        calibrate(net, torch.zeros(5, 16, dtype=torch.int64), [0.5, 0.8])
    assert net.training


def test_a_layer_that_cannot_fire_is_named() -> None:
    net = Network(TimingLinear(4, 30, mean=3.0), TimingLinear(30, 2, mean=-9.0))
    with pytest.raises(
        ParameterError, match=r"layer 1 \(TimingLinear\) fires too late with any scale.*Raise mean.*than 0.8"
    ):
        calibrate(net, torch.zeros(5, 4), [0.5, 0.8])


def test_a_moment_before_the_input_is_refused() -> None:
    with pytest.raises(ParameterError, match="layer 0 .*ask for a later moment than 0.1"):
        calibrate(Network(TimingLinear(4, 30, mean=3.0)), torch.full((5, 4), 20.0), [0.1])


@pytest.mark.parametrize("moments", [[0.5], [0.5, 0.6, 0.7], [0.5, 1.0], [0.0, 0.5], [0.5, math.nan]])
def test_moments_that_are_refused(moments: list[float]) -> None:
    with pytest.raises(
        ParameterError, match=r"calibrate expected 2 moments in \(0, 1\), one for each layer that fires"
    ):
        calibrate(Network(TimingLinear(4, 3), TimingLinear(3, 2)), torch.zeros(5, 4), moments)


# ---------------------------------------------------------------------------------------- dead neurons


@pytest.mark.parametrize(
    ("psp", "stop"),
    [(ReL(64.0), 64.0), (Ramp(16.0), 64.0), (Step(), 64.0), (FixedSlope(64.0, 32.0), 96.0)],
    ids=repr,
)
@pytest.mark.parametrize("threshold", [1.0, 3.0])
def test_woken_neurons_reach_the_threshold_on_half_of_the_inputs(
    psp: Any, stop: float, threshold: float
) -> None:
    layer = TimingLinear(
        20, 6, psp=psp, stop=stop, threshold=threshold, rule=STiDi(slope="constant"), mean=0.0
    )
    layer.scale.fill_(0.3)
    with torch.no_grad():
        layer.weight[:3] -= 1.0
    kept = layer.weight.detach().clone()
    times = torch.randint(0, 40, (60, 20)).float()
    before = layer(times).detach()
    dead = torch.isinf(before).all(0)
    assert dead[:3].all() and before.shape == (60, 6)
    chosen = torch.tensor([True, True, False, False, False, False])
    revive(layer, chosen, times, height=1.1)
    end = layer.start or layer.stop
    v = (psp.shape.value(end - times)[:, None] * (layer.weight * layer.scale).detach()).sum(2)
    for j in (0, 1):
        assert float(v[:, j].median()) == pytest.approx(1.1 * threshold, rel=0.15)
        added = layer.weight.detach()[j] - kept[j]
        assert float(added.std()) < 1e-5 < float(added.mean())
    assert torch.equal(layer.weight[2:], kept[2:])
    after = layer(times)
    assert bool((torch.isfinite(after[:, :2]).float().mean(0) >= 0.4).all())


def test_woken_maps_of_a_convolution() -> None:
    layer = TimingConv2d(1, 4, 3, stop=64.0)
    with torch.no_grad():
        layer.weight[1] = -1.0
    times = images()
    assert bool(torch.isinf(layer(times)[:, 1]).all())
    kept = layer.weight.detach().clone()
    revive(layer, torch.tensor([False, True, False, False]), times)
    assert float(torch.isfinite(layer(times)[:, 1]).float().mean()) > 0.4
    assert torch.equal(layer.weight[[0, 2, 3]], kept[[0, 2, 3]])


def test_nobody_is_woken_who_hears_nothing_and_nobody_pushed_down() -> None:
    layer = TimingLinear(4, 2, stop=64.0)
    layer.set_weight(torch.tensor([[-1.0, -1.0, -1.0, -1.0], [5.0, 5.0, 5.0, 5.0]]))
    kept = layer.weight.detach().clone()
    revive(layer, torch.tensor([True, True]), torch.full((5, 4), inf))
    revive(layer, torch.tensor([False, False]), torch.zeros(5, 4))
    revive(layer, torch.tensor([False, True]), torch.zeros(5, 4))  # it is above already
    assert torch.equal(layer.weight, kept)
