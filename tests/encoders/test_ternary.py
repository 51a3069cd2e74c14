"""The ternary code and its trainable threshold."""

from __future__ import annotations

import math

import pytest
import torch

from spiketide.encoders import Ternary
from spiketide.errors import DataError, ParameterError, ShapeError
from spiketide.layer import parameter_roles
from spiketide.surrogate import FastSigmoid, MultiGaussian, Smooth


def test_by_hand() -> None:
    x = torch.tensor([[[0.051, 0.05, 0.0, -0.05, -0.051, 9.0, -9.0]]], dtype=torch.float64)
    encoder = Ternary(0.05, learn=False)
    assert encoder(x).tolist() == [[[1, 0, 0, 0, -1, 1, -1]]]  # at the threshold there is no spike
    assert encoder(x).dtype == torch.float64
    assert list(encoder.parameters()) == [] and encoder.state_dict() == {}


def test_is_sign_beyond_the_threshold() -> None:
    x = torch.randn(20, 3, 4, 2)
    for learn in (True, False):
        y = Ternary(0.7, learn)(x)
        assert torch.equal(y, x.sign() * (x.abs() > 0.7))
        assert {-1.0, 0.0, 1.0} == set(y.unique().tolist())


def test_the_default_is_the_papers() -> None:
    encoder = Ternary()
    assert encoder.threshold().item() == pytest.approx(0.05) and encoder.surrogate == MultiGaussian()
    assert list(encoder.state_dict()) == ["threshold.raw"]
    assert list(parameter_roles(encoder).values()) == ["thresholds"]
    assert "0.05, learnable" in repr(encoder) and not hasattr(encoder, "steps")


def test_gradients_by_hand() -> None:
    encoder = Ternary(0.2, surrogate=FastSigmoid(4.0)).double()
    values, weights = [0.5, 0.1, -0.3], [1.0, -2.0, 3.0]
    x = torch.tensor([[values]], dtype=torch.float64, requires_grad=True)
    (encoder(x)[0, 0] * torch.tensor(weights, dtype=torch.float64)).sum().backward()

    def g(z: float) -> float:
        return 1 / (1 + 4 * abs(z)) ** 2

    gx = [w * (g(v - 0.2) + g(-0.2 - v)) for v, w in zip(values, weights, strict=True)]
    gt = sum(w * (g(-0.2 - v) - g(v - 0.2)) for v, w in zip(values, weights, strict=True))
    assert x.grad.flatten().tolist() == pytest.approx(gx, rel=1e-6)
    assert float(encoder.threshold.raw.grad) == pytest.approx(0.2 * gt, rel=1e-6)  # threshold = exp(raw)


def test_gradcheck_of_the_smooth_twin() -> None:
    encoder = Ternary(0.3, surrogate=Smooth(MultiGaussian())).double()

    def run(x: torch.Tensor, raw: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(encoder, {"threshold.raw": raw}, (x,))

    x = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    raw = torch.tensor(math.log(0.3), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(run, (x, raw))


def test_learns_the_threshold_that_separates() -> None:
    """Values of +-0.1 are noise, of +-1 are signal: the threshold moves between them from below."""
    generator = torch.Generator().manual_seed(0)
    size = torch.where(torch.rand(200, 4, 1, generator=generator) < 0.5, 0.1, 1.0)
    x = size * (1 - 2.0 * torch.randint(0, 2, size.shape, generator=generator))
    wanted = x.sign() * (size > 0.5)
    encoder = Ternary(0.05)
    assert not torch.equal(encoder(x), wanted)
    descent = torch.optim.Adam(encoder.parameters(), lr=0.05)
    for _ in range(60):
        descent.zero_grad()
        (encoder(x) - wanted).square().mean().backward()
        descent.step()
    assert torch.equal(encoder(x), wanted) and 0.1 < encoder.threshold().item() < 1.0


def test_the_threshold_stays_positive() -> None:
    encoder = Ternary(0.05)
    with torch.no_grad():
        encoder.threshold.raw.fill_(-1e6)
    assert encoder.threshold().item() > 0.0
    y = encoder(torch.tensor([[[0.0, 1.0, -1.0]]]))
    assert y.tolist() == [[[0.0, 1.0, -1.0]]]
    y.sum().backward()
    assert bool(encoder.threshold.raw.grad.isfinite())


@pytest.mark.parametrize("threshold", [0.0, -1.0, float("nan"), float("inf")])
def test_refuses_thresholds(threshold: float) -> None:
    with pytest.raises(ParameterError, match="threshold above 0"):
        Ternary(threshold)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.zeros(2, 3), ShapeError, r"\(T, B, \*N\)"),
        (torch.zeros(2, 3, 1, dtype=torch.int64), ShapeError, "int64"),
        ([[0.5]], ShapeError, "list"),
        (torch.zeros(0, 3, 1), DataError, "empty"),
        (torch.tensor([[[1.0, float("nan"), float("inf")]]]), DataError, "2 NaN or Inf among 3"),
    ],
)
def test_refuses_values(x, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Ternary()(x)
