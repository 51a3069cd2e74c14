"""Poisson rate code: rates, independence, and what can be repeated."""

from __future__ import annotations

import pytest
import torch

from spiketide.encoders import Poisson
from spiketide.errors import ParameterError

X = torch.tensor([[0.0, 0.25, 0.5, 1.0]])


def test_rates_in_hertz() -> None:
    torch.manual_seed(0)
    for encoder, top in (
        (Poisson(40_000, max_rate=200.0), 0.2),
        (Poisson(40_000, max_rate=50.0, dt=10.0), 0.5),
    ):
        s = encoder(X)
        assert set(s.unique().tolist()) == {0.0, 1.0}
        expected = top * X[0]
        # five standard deviations of a binomial mean
        bound = 5 * (expected * (1 - expected) / 40_000).sqrt() + 1e-9
        assert bool(((s.mean((0, 1)) - expected).abs() <= bound).all())
        assert bool((s[..., 0] == 0).all())
    assert bool((Poisson(50, max_rate=1000.0)(torch.ones(1, 2)) == 1).all())


def test_steps_are_independent() -> None:
    torch.manual_seed(1)
    s = Poisson(40_000, max_rate=300.0)(torch.ones(1, 2))[:, 0]
    centred = s - s.mean(0)
    lag = (centred[1:] * centred[:-1]).mean(0) / centred.square().mean(0)
    assert float(lag.abs().max()) < 0.03
    assert float((centred[:, 0] * centred[:, 1]).mean().abs()) < 0.01


def test_training_draws_anew_from_the_global_generator() -> None:
    encoder = Poisson(100, max_rate=500.0)
    torch.manual_seed(0)
    first, second = encoder(X), encoder(X)
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(encoder(X), first)


def test_evaluation_can_be_repeated() -> None:
    encoder = Poisson(100, max_rate=500.0).eval()
    before = torch.get_rng_state()
    first = encoder(X)
    assert torch.equal(encoder(X), first)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(Poisson(100, max_rate=500.0, seed=0).eval()(X), first)
    assert not torch.equal(Poisson(100, max_rate=500.0, seed=1).eval()(X), first)
    free = Poisson(100, max_rate=500.0, seed=None).eval()
    assert not torch.equal(free(X), free(X))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_rate": -1.0}, "max_rate"),
        ({"max_rate": 1001.0}, "from 0 to 1000 Hz"),
        ({"max_rate": 600.0, "dt": 2.0}, "from 0 to 500 Hz"),
        ({"max_rate": float("nan")}, "max_rate"),
        ({"dt": 0.0}, "dt"),
    ],
)
def test_refuses(arguments: dict, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        Poisson(10, **arguments)
