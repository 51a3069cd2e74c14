"""Gaussian receptive fields."""

from __future__ import annotations

import math

import pytest
import torch

from spiketide.encoders import Population
from spiketide.errors import ParameterError, ShapeError
from spiketide.layer import parameter_roles
from spiketide.surrogate import FastSigmoid, Gaussian, Smooth


def test_by_hand() -> None:
    y = Population(4)(torch.tensor([[[0.0, 0.75]]]))  # centres 0, .5, 1, 1.5; width .5
    near = [math.exp(-0.5 * d * d) for d in (0, 1, 2, 3)]
    far = [math.exp(-0.5 * d * d) for d in (1.5, 0.5, 0.5, 1.5)]
    torch.testing.assert_close(y, torch.tensor([[[*near, *far]]]))


def test_published_density() -> None:
    """80 cells: peak 31.1 (adaptive_srnn notes, section 3.2 a), and each field has area 1."""
    encoder = Population(80, density=True)
    assert encoder.peak == pytest.approx(31.1, abs=0.05)
    x = torch.linspace(0, 1, 10_001, dtype=torch.float64)
    y = encoder(x.view(-1, 1, 1))[:, 0]
    assert y.shape == (10_001, 80) and float(y.max()) == pytest.approx(encoder.peak, rel=1e-4)
    assert torch.trapezoid(y[:, 40], x).item() == pytest.approx(1.0, abs=1e-6)
    torch.testing.assert_close(y, encoder.peak * Population(80)(x.view(-1, 1, 1))[:, 0])


def test_every_value_excites_the_nearest_cell_most() -> None:
    encoder = Population(12)
    x = torch.linspace(0, 1, 50)
    y = encoder(x.view(-1, 1, 1))[:, 0]
    assert torch.equal(y.argmax(1), (x.unsqueeze(1) - encoder.centres).abs().argmin(1))
    assert float(y.max(1).values.min()) >= math.exp(-0.5 * 0.25) - 1e-5  # never further than half a width


def test_spikes_by_threshold() -> None:
    y = Population(4, threshold=0.5)(torch.tensor([[[0.5]]]))
    assert y.tolist() == [[[1.0, 1.0, 1.0, 0.0]]]
    y = Population(4, density=True, threshold=0.5)(
        torch.tensor([[[0.5]]])
    )  # peak 0.798: neighbours reach 0.484
    assert y.tolist() == [[[0.0, 1.0, 0.0, 0.0]]]


def test_static_and_temporal_agree() -> None:
    x = torch.rand(3, 2)
    static = Population(5, steps=7)(x)
    temporal = Population(5)(x.expand(7, 3, 2))
    assert static.shape == (7, 3, 10)
    torch.testing.assert_close(static, temporal)


def test_gradient_of_the_graded_response() -> None:
    x = torch.rand(2, 1, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 0.9 + 0.05
    encoder = Population(6).double()
    assert torch.autograd.gradcheck(encoder, (x.requires_grad_(),))


def test_learnt_threshold_begins_like_the_fixed_one() -> None:
    x = torch.rand(6, 3, 4)
    for density in (False, True):
        learnt = Population(9, density=density, learn_threshold=True)
        assert learnt.surrogate == Gaussian() and list(learnt.state_dict()) == ["threshold.raw"]
        assert learnt.threshold().item() == pytest.approx(0.2)
        assert torch.equal(learnt(x), Population(9, density=density, threshold=0.2)(x))
        assert list(parameter_roles(learnt).values()) == ["thresholds"]
    assert not Population(9, threshold=0.2)(x.requires_grad_()).requires_grad


def test_gradient_of_the_learnt_threshold() -> None:
    """By hand: minus the surrogate's derivative, times the derivative of ``peak sigmoid(raw)``."""
    encoder = Population(4, threshold=0.4, learn_threshold=True, surrogate=FastSigmoid(3.0)).double()
    x = torch.tensor([[[0.3, 0.9]]], dtype=torch.float64, requires_grad=True)
    weight = torch.arange(1.0, 9.0, dtype=torch.float64)
    (encoder(x)[0, 0] * weight).sum().backward()
    expected, gx = 0.0, [0.0, 0.0]
    for place, w in enumerate(weight.tolist()):
        value, centre = (0.3, 0.9)[place // 4], (place % 4) * 0.5
        response = math.exp(-0.5 * ((value - centre) / 0.5) ** 2)
        slope = w / (1 + 3 * abs(response - 0.4)) ** 2
        expected -= slope * 0.4 * (1 - 0.4)
        gx[place // 4] += slope * response * -(value - centre) / 0.25
    assert float(encoder.threshold.raw.grad) == pytest.approx(expected, rel=1e-6)
    assert x.grad.flatten().tolist() == pytest.approx(gx, rel=1e-6)


def test_gradcheck_of_the_smooth_twin() -> None:
    encoder = Population(5, density=True, learn_threshold=True, surrogate=Smooth(Gaussian())).double()
    x = torch.rand(2, 1, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 0.9 + 0.05
    raw = encoder.threshold.raw

    def run(x: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(encoder, {"threshold.raw": value}, (x,))

    assert torch.autograd.gradcheck(run, (x.requires_grad_(), raw.detach().requires_grad_()))


def test_the_threshold_cannot_leave_its_range() -> None:
    x = torch.rand(4, 2, 3)
    for push in (1.0, -1.0):
        encoder = Population(6, learn_threshold=True)
        descent = torch.optim.SGD(encoder.parameters(), lr=1e4)
        for _ in range(3):
            descent.zero_grad()
            (push * encoder(x)).sum().backward()
            descent.step()
            assert 0.0 < encoder.threshold().item() < 1.0
        assert (encoder.threshold().item() > 0.5) == (push > 0)  # fewer spikes, or more
        encoder(x).sum().backward()
        assert bool(encoder.threshold.raw.grad.isfinite())


def test_refuses() -> None:
    with pytest.raises(ParameterError, match="learn_threshold=True"):
        Population(5, threshold=0.5, surrogate=Gaussian())
    with pytest.raises(ParameterError, match="peak response 1"):
        Population(5, threshold=1.0, learn_threshold=True)
    with pytest.raises(ParameterError, match="3 cells"):
        Population(2)
    for threshold in (0.0, 1.0, -0.1):
        with pytest.raises(ParameterError, match="peak response 1"):
            Population(5, threshold=threshold)
    Population(80, density=True, threshold=20.0)
    with pytest.raises(ShapeError, match=r"\(T, B, N\)"):
        Population(5)(torch.rand(2, 3))
    with pytest.raises(ShapeError, match=r"\(B, N\).*flatten"):
        Population(5, steps=4)(torch.rand(2, 3, 3))
