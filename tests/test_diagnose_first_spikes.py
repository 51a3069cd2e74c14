"""diagnose on networks of first spikes: it names what is silent, what fires at once, and outputs that never do."""

from __future__ import annotations

import math

import pytest
import torch

from spiketide.diagnose import Diagnosis, diagnose_first_spikes
from spiketide.errors import DataError
from spiketide.timing import FixedSlope, IntensityToLatency, Network, Silence, TimingLinear, calibrate
from spiketide.types import Batch


def network() -> Network:
    torch.manual_seed(0)
    return Network(TimingLinear(30, 40, stop=64.0), TimingLinear(40, 3, stop=64.0))


def batch(count: int = 30) -> Batch:
    generator = torch.Generator().manual_seed(1)
    times = torch.randint(0, 32, (count, 30), generator=generator).float()
    return Batch(times, torch.arange(count) % 3)


def calibrated() -> Network:
    net = network()
    calibrate(net, batch().x, [0.5, 0.8])
    return net


def told(found: Diagnosis) -> str:
    return "\n".join(found.messages)


def test_a_calibrated_network_is_healthy_and_its_numbers_are_right() -> None:
    net, given = calibrated(), batch()
    found = diagnose_first_spikes(net, given)
    assert found.healthy, found
    _, seen = net.follow(given.x)
    for row, (name, times) in zip(found.rows, seen.items(), strict=True):
        spikes = sorted(times[torch.isfinite(times)].tolist())
        most = max(sum(t <= other < t + 2 for other in spikes) for t in set(spikes))
        assert row.name == name and row.at_once == pytest.approx(most / len(spikes))
        assert row.rate == pytest.approx(len(spikes) / times.numel())
        assert row.median == spikes[len(spikes) // 2]
    assert "median step" in str(found) and "Hz" not in str(found)


def test_it_leaves_the_network_as_it_was() -> None:
    net = Network(TimingLinear(30, 40), Silence(0.5), TimingLinear(40, 3))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = torch.get_rng_state()
    diagnose_first_spikes(net, batch())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_a_silent_layer_is_named_once() -> None:
    net = calibrated()
    with torch.no_grad():
        net[0].weight.abs_().neg_()  # type: ignore[union-attr, operator]
    found = diagnose_first_spikes(net, batch())
    assert len(found.messages) == 1  # the outputs cannot fire either, which is no news
    assert "layer 0 (TimingLinear) is silent" in found.messages[0] and "moments" in found.messages[0]
    assert found.rows[0].rate == 0 and found.rows[0].median is None


def test_a_layer_that_fires_at_once_is_named() -> None:
    net = Network(
        TimingLinear(30, 40, psp=FixedSlope(32.0, 32.0), stop=64.0),
        TimingLinear(40, 3, psp=FixedSlope(64.0, 32.0), stop=96.0),
    )
    calibrate(net, batch().x, [0.3, 0.3])
    assert "at once" not in told(diagnose_first_spikes(net, batch()))
    net[0].set_weight(torch.full((40, 30), 5.0))  # type: ignore[operator]
    found = diagnose_first_spikes(net, batch())
    assert "layer 0 (TimingLinear) fires all at once: 100 %" in told(found)
    assert "around step 32" in told(found)


def test_outputs_that_never_fire_are_named_if_the_batch_has_their_class() -> None:
    net = calibrated()
    with torch.no_grad():
        net[1].weight[1] = -1.0  # type: ignore[union-attr, index]
    assert "output 1 never fires" in told(diagnose_first_spikes(net, batch()))
    given = batch()
    others = given.y != 1
    without = Batch(given.x[others], given.y[others])
    assert "never fire" not in told(diagnose_first_spikes(net, without))
    with torch.no_grad():
        net[1].weight.fill_(-1.0)  # type: ignore[union-attr, operator]
    assert "layer 1 (TimingLinear) is silent" in told(diagnose_first_spikes(net, batch()))


def test_images_without_a_decision_are_counted() -> None:
    net = calibrated()
    given = batch()
    given.x[:12] = math.inf
    found = told(diagnose_first_spikes(net, given))
    assert "on 40 % of the batch no output fires" in found


def test_bad_input_is_told_without_a_crash() -> None:
    net, code = calibrated(), IntensityToLatency(32)
    y = torch.tensor([0, 1])
    assert "NaN" in told(diagnose_first_spikes(net, Batch(torch.full((2, 30), math.nan), y), encoder=code))
    assert "0 to 1" in told(diagnose_first_spikes(net, Batch(torch.full((2, 30), 2.0), y), encoder=code))
    assert "every value of this batch is 0" in told(
        diagnose_first_spikes(net, Batch(torch.zeros(2, 30), y), encoder=code)
    )
    assert "no spike at all" in told(
        diagnose_first_spikes(net, Batch(torch.full((2, 30), 0.01), y), encoder=code)
    )
    with pytest.raises(DataError, match="samples"):
        diagnose_first_spikes(net, Batch(torch.zeros(0, 30), y[:0]), encoder=code)


def test_weights_that_are_not_finite_are_named() -> None:
    net = calibrated()
    with torch.no_grad():
        net[1].weight[0, 0] = math.nan  # type: ignore[union-attr, index]
    found = diagnose_first_spikes(net, batch())
    assert len(found.messages) == 1 and "parameter 1.weight" in found.messages[0]
