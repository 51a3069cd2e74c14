"""Latency code, by hand and back."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spiketide.encoders import Latency
from spiketide.errors import ParameterError, ShapeError


def times(encoder: Latency, values: list[float]) -> list[int]:
    """Step of each spike read from the train itself, -1 for silence; at most one spike each."""
    spikes = encoder(torch.tensor([values]))
    assert set(spikes.unique().tolist()) <= {0.0, 1.0} and float(spikes.sum(0).max()) <= 1.0
    return [int(row.argmax()) if row.any() else -1 for row in spikes[:, 0].T]


def test_linear_by_hand() -> None:
    assert times(Latency(11), [1.0, 0.9, 0.5, 0.1, 0.0]) == [0, 1, 5, 9, -1]
    # 4 (1 - x) = 0.4, 0.5, 1.5, 3.6: rounded, a half to the later step
    assert times(Latency(5), [0.9, 0.875, 0.625, 0.1]) == [0, 1, 2, 4]
    assert times(Latency(1), [1.0, 0.3, 0.0]) == [0, 0, -1]
    # the sixteen grey levels of the digits, one step each
    assert times(Latency(17), [level / 16 for level in range(17)]) == [-1, *range(15, -1, -1)]


def test_threshold_and_normalise_by_hand() -> None:
    assert times(Latency(11, threshold=0.5), [1.0, 0.6, 0.5, 0.4]) == [0, 4, -1, -1]
    assert times(Latency(11, threshold=0.5, normalise=True), [1.0, 0.75, 0.55, 0.5]) == [0, 5, 9, -1]


def test_charging_by_hand() -> None:
    # 20 log(x / (x - 0.2)): 4.46, 5.75, 10.2, 35.8, 60.9
    encoder = Latency(50, tau=20.0, threshold=0.2)
    assert times(encoder, [1.0, 0.8, 0.5, 0.24, 0.21, 0.2, 0.1]) == [4, 5, 10, 35, -1, -1, -1]
    assert times(Latency(50, tau=20.0, dt=2.0, threshold=0.2), [1.0, 0.5, 0.21]) == [2, 5, 30]


def test_charging_is_the_crossing_of_a_leaky_integrator() -> None:
    encoder = Latency(100, tau=15.0, threshold=0.3)
    x = torch.linspace(0.31, 1.0, 20).unsqueeze(0)
    for value, step in zip(x[0].tolist(), encoder.times(x)[0].tolist(), strict=True):
        crossing = [t for t in range(1, 101) if value * (1 - math.exp(-t / 15.0)) > 0.3]
        assert step == (crossing[0] - 1 if crossing else 100)  # it crosses between step and step + 1


@given(st.integers(2, 40), st.floats(0, 0.9), st.booleans(), st.integers(0, 100))
@settings(max_examples=30, deadline=None)
def test_inverse_within_half_a_step(steps: int, threshold: float, normalise: bool, seed: int) -> None:
    encoder = Latency(steps, threshold=threshold, normalise=normalise)
    x = torch.rand(3, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    spikes = encoder(x)
    span = 1 - threshold if normalise else 1.0
    fires = x > threshold
    assert torch.equal(spikes.sum(0) > 0, fires)
    error = (encoder.inverse(spikes) - x).abs()
    assert float(error[fires].max() if fires.any() else 0) <= 0.5 * span / (steps - 1) + 1e-9
    assert bool((encoder.inverse(spikes)[~fires] == 0).all())


def test_charging_inverse_round_trips_the_spikes() -> None:
    encoder = Latency(60, tau=20.0, threshold=0.2)
    spikes = encoder(torch.rand(4, 50, generator=torch.Generator().manual_seed(0)))
    back = encoder.inverse(spikes)
    assert float(back.max()) <= 1.0
    assert torch.equal(encoder(back), spikes)


def test_larger_is_never_later() -> None:
    x = torch.linspace(0, 1, 101).unsqueeze(0)
    for encoder in (Latency(30), Latency(30, threshold=0.3), Latency(30, tau=5.0, threshold=0.1)):
        t = encoder.times(x)[0]
        assert bool((t[1:] <= t[:-1]).all()) and t[-1] < t[50]


def test_no_gradient_goes_back() -> None:
    assert not Latency(4)(torch.rand(1, 2, requires_grad=True)).requires_grad


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threshold": 1.0}, "threshold"),
        ({"threshold": -0.1}, "threshold"),
        ({"dt": 0.0}, "dt"),
        ({"tau": 0.0, "threshold": 0.2}, "tau"),
        ({"tau": 20.0}, "threshold above 0 with tau"),
        ({"tau": 20.0, "threshold": 0.2, "normalise": True}, "normalise"),
    ],
)
def test_refuses(arguments: dict, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        Latency(10, **arguments)


def test_inverse_refuses_other_steps() -> None:
    with pytest.raises(ShapeError, match=r"\(10, B, "):
        Latency(10).inverse(torch.zeros(9, 2, 3))
