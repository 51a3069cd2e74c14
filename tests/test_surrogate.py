"""Surrogates: the derivative is that of the primitive, the constants are the papers', and users can add their own."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import assert_fires, assert_near, interpreted
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import spiketide
from spiketide import LIF, spike
from spiketide.errors import ParameterError
from spiketide.surrogate import (
    SLAYER,
    ATan,
    Boxcar,
    FastSigmoid,
    Gaussian,
    MultiGaussian,
    Sigmoid,
    Smooth,
    Surrogate,
    Triangle,
    spike_derivative,
    use,
)

ALL: list[Surrogate] = [
    ATan(),
    ATan(5.0),
    FastSigmoid(),
    FastSigmoid(100.0),
    Sigmoid(),
    Sigmoid(10.0, scaled=False),
    Triangle(),
    Triangle(0.3, 2.0),
    Gaussian(),
    Gaussian(0.3, 1.0),
    MultiGaussian(),
    MultiGaussian(0.5, 3.0, 0.3, 1.0),
    SLAYER(),
    SLAYER(5.0, 0.4),
    Boxcar(),
    Boxcar(0.5, 2.0),
]
INTEGRALS = {
    ATan: 1.0,
    Sigmoid: 1.0,
    Triangle: 1.0,
    Gaussian: 0.5,
    MultiGaussian: 0.425,
    SLAYER: 0.4,
    Boxcar: 1.0,
}


def points(dtype: torch.dtype = torch.float64) -> Tensor:
    """Where to look: between the kinks, which all lie at multiples of 1/4."""
    return (torch.linspace(-3, 3, 601, dtype=torch.float64) + 0.00123).to(dtype)


def at(surrogate: Surrogate, x: float) -> float:
    return float(surrogate.derivative(torch.tensor(x, dtype=torch.float64)))


def test_every_surrogate_of_the_module_is_looked_at() -> None:
    known = {
        c for c in vars(spiketide.surrogate).values() if isinstance(c, type) and issubclass(c, Surrogate)
    }
    assert known - {Surrogate, Smooth} == {type(s) for s in ALL}
    assert len(known) == 10


@pytest.mark.parametrize("surrogate", ALL, ids=repr)
def test_the_derivative_is_that_of_the_primitive(surrogate: Surrogate) -> None:
    x = points().requires_grad_()
    (grad,) = torch.autograd.grad(surrogate.primitive(x).sum(), x)
    assert_near(grad, surrogate.derivative(x.detach()), 1e-12)
    assert float(grad.abs().max()) > 0
    h = 1e-6  # and autograd itself is not trusted
    slope = (surrogate.primitive(points() + h) - surrogate.primitive(points() - h)) / (2 * h)
    assert_near(slope, grad, 1e-6)


@pytest.mark.parametrize("surrogate", ALL, ids=repr)
def test_the_backward_of_a_spike_is_the_derivative(surrogate: Surrogate) -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        x = points(dtype).requires_grad_()
        weight = torch.linspace(-1, 2, x.numel(), dtype=dtype)
        s = spike(x, surrogate)
        assert s.dtype == dtype and set(s.tolist()) == {0.0, 1.0}
        (grad,) = torch.autograd.grad(s, x, weight)
        assert torch.equal(grad, weight * surrogate.derivative(x.detach()))
    with use(surrogate):
        assert torch.equal(spike_derivative(x.detach()), surrogate.derivative(x.detach()))


@pytest.mark.parametrize("surrogate", ALL, ids=repr)
def test_far_away_it_is_small_and_finite(surrogate: Surrogate) -> None:
    for dtype in (torch.float32, torch.float64):
        x = torch.tensor([-3e30, -1e4, 1e4, 3e30], dtype=dtype)
        far = surrogate.derivative(x)
        assert bool(torch.isfinite(far).all()) and float(far.abs().max()) < 1e-3
        assert bool(torch.isfinite(surrogate.primitive(x)).all())
    assert bool(torch.isnan(surrogate.derivative(torch.tensor(math.nan)))), "a NaN must not be swallowed"


@pytest.mark.parametrize("surrogate", ALL, ids=repr)
def test_symmetric_and_integrating_to_what_it_says(surrogate: Surrogate) -> None:
    x = points()
    assert_near(surrogate.derivative(-x), surrogate.derivative(x), 1e-12)
    rise = float(
        surrogate.primitive(torch.tensor(1e6).double()) - surrogate.primitive(torch.tensor(-1e6).double())
    )
    grid = torch.linspace(-40, 40, 800_001, dtype=torch.float64)
    inside = float(surrogate.primitive(grid[-1]) - surrogate.primitive(grid[0]))
    assert float(torch.trapezoid(surrogate.derivative(grid), grid)) == pytest.approx(inside, rel=2e-4)
    if surrogate in (ATan(), Sigmoid(), Triangle(), Gaussian(), MultiGaussian(), SLAYER(5.0, 1.0), Boxcar()):
        assert rise == pytest.approx(INTEGRALS[type(surrogate)], rel=1e-5)


# ------------------------------------------------------------------------------------------------------- the papers


def test_a_spike_is_strictly_above_the_threshold() -> None:
    x = torch.tensor([-1.0, -1e-45, -0.0, 0.0, 1e-45, 1e-8, 1.0, math.inf, -math.inf])
    assert spike(x, ATan()).tolist() == [0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0]


def test_multi_gaussian_of_yin_et_al() -> None:
    # notes on adaptive spiking networks, section 2: h 0.15, scale 6, gamma 0.5
    mg = MultiGaussian()
    assert (mg.h, mg.s, mg.sigma, mg.scale) == (0.15, 6.0, 0.5, 0.5)
    assert at(mg, 0.0) == pytest.approx(0.43911, abs=5e-6)
    assert at(mg, 1.27216 - 1e-5) > 0 > at(mg, 1.27216 + 1e-5)
    x = torch.linspace(0, 10, 1_000_001, dtype=torch.float64)
    low, where = mg.derivative(x).min(0)
    assert float(low) == pytest.approx(-0.015866, abs=5e-7)
    assert float(x[where]) == pytest.approx(1.864, abs=5e-4)
    far = torch.tensor(1e6, dtype=torch.float64)
    assert float(mg.primitive(far) - mg.primitive(-far)) == pytest.approx(0.425, abs=1e-9)
    narrow = MultiGaussian(sigma=0.3)
    assert at(narrow, 0.0) == pytest.approx(0.73185, abs=5e-6)
    assert at(narrow, 0.76329 - 1e-5) > 0 > at(narrow, 0.76329 + 1e-5)
    low, where = narrow.derivative(x).min(0)
    assert float(low) == pytest.approx(-0.02644, abs=5e-6)
    assert float(x[where]) == pytest.approx(1.118, abs=5e-4)


def test_the_other_surrogates_of_yin_et_al() -> None:
    assert at(Gaussian(), 0.0) == pytest.approx(0.3989, abs=5e-5)
    assert at(Triangle(0.5, 1.0), 0.25) == pytest.approx(0.5 * 0.75)
    assert at(Triangle(0.5, 1.0), 1.0) == 0.0
    assert at(SLAYER(5.0, 0.5), 0.2) == pytest.approx(0.5 * math.exp(-1.0))


def test_the_unscaled_sigmoid_of_zimmer_et_al() -> None:
    # notes on convolutional networks, section 1.1: without the chain factor the height is 0.25, not 2.5
    assert at(Sigmoid(10.0, scaled=False), 0.0) == pytest.approx(0.25)
    assert at(Sigmoid(10.0), 0.0) == pytest.approx(2.5)
    sigma = 1 / (1 + math.exp(-1.0))
    assert at(Sigmoid(10.0, scaled=False), 0.1) == pytest.approx(sigma * (1 - sigma))


@pytest.mark.parametrize("x", [0.0, 0.05, -0.2, 1.0])
def test_the_arctangent_of_hammouamri_et_al(x: float) -> None:
    # notes on learned delays, section 3, alpha 5
    assert at(ATan(5.0), x) == pytest.approx(2.5 / (1 + (7.854 * x) ** 2), rel=1e-4)
    assert at(ATan(2.0), x) == pytest.approx(1 / (1 + (math.pi * x) ** 2), rel=1e-12)


def test_fast_sigmoid_of_zenke_and_ganguli() -> None:
    assert at(FastSigmoid(10.0), 0.1) == pytest.approx(0.25)
    assert at(FastSigmoid(100.0), -0.01) == pytest.approx(0.25)
    assert at(FastSigmoid(100.0), 0.0) == 1.0


def test_boxcar() -> None:
    box = Boxcar(width=0.5, height=2.0)
    assert [at(box, x) for x in (-0.26, -0.25, -0.24, 0.0, 0.24, 0.25, 0.26)] == [
        0.0,
        0.0,
        2.0,
        2.0,
        2.0,
        0.0,
        0.0,
    ]


# --------------------------------------------------------------------------------------------------------- constants


@pytest.mark.parametrize(
    "make",
    [
        lambda v: ATan(v),
        lambda v: FastSigmoid(v),
        lambda v: Sigmoid(v),
        lambda v: Triangle(v),
        lambda v: Triangle(1.0, v),
        lambda v: Gaussian(v),
        lambda v: Gaussian(0.5, v),
        lambda v: MultiGaussian(h=v),
        lambda v: MultiGaussian(s=v),
        lambda v: MultiGaussian(sigma=v),
        lambda v: MultiGaussian(scale=v),
        lambda v: SLAYER(v),
        lambda v: SLAYER(1.0, v),
        lambda v: Boxcar(v),
        lambda v: Boxcar(1.0, v),
    ],
)
def test_bad_constants_are_refused(make: Callable[[Any], Surrogate]) -> None:
    for bad in (0.0, -1.0, math.nan, math.inf, "2", None):
        with pytest.raises(ParameterError, match=r"expected \w+ > 0, got"):
            make(bad)
    make(1)
    make(0.25)


def test_equality_hash_print_and_pickle() -> None:
    for surrogate in [*ALL, Smooth(ATan(3.0))]:
        copy = pickle.loads(pickle.dumps(surrogate))
        assert copy == surrogate and hash(copy) == hash(surrogate) and copy is not surrogate
        assert repr(surrogate).startswith(type(surrogate).__name__ + "(")
    assert len({*ALL, *ALL}) == len(ALL)
    assert ATan(2) == ATan(2.0) != FastSigmoid(2.0)
    assert Smooth(ATan()) != ATan() and Smooth(ATan(2.0)) != Smooth(ATan(3.0))
    assert "slope=5.0" in repr(ATan(5.0))


def test_a_spike_needs_to_know_its_surrogate() -> None:
    with pytest.raises(ParameterError, match=r"outside a scan needs its surrogate: spike\(x, FastSigmoid"):
        spike(torch.zeros(3))
    with use(ATan(2.0)):
        assert spike(torch.ones(1)).tolist() == [1.0]
        with use(Smooth(ATan(2.0))):
            assert spike(torch.zeros(1)).tolist() == [0.5]
        assert spike(torch.zeros(1)).tolist() == [0.0]
    with pytest.raises(ParameterError):
        spike(torch.zeros(3))
    with pytest.raises(ParameterError), use(ATan(2.0)):
        raise ParameterError("an error inside must not leave the surrogate behind")
    with pytest.raises(ParameterError, match="outside a scan"):
        spike(torch.zeros(3))


# --------------------------------------------------------------------------------------------------- of a user


class Lorentz(Surrogate):
    """A derivative that the library does not have."""

    def __init__(self, width: float = 0.5) -> None:
        self.width = float(width)

    def derivative(self, x: Any) -> Any:
        return 1 / (1 + (x / self.width) ** 2) ** 2

    def primitive(self, x: Any) -> Any:
        u = x / self.width
        return self.width * 0.5 * (u / (1 + u * u) + torch.atan(u))


class Steps(Surrogate):
    """One that the fused engines cannot read."""

    def derivative(self, x: Any) -> Any:
        return torch.sinc(x)

    def primitive(self, x: Any) -> Any:
        raise NotImplementedError


def gradient(surrogate: Surrogate, engine: str | None) -> Tensor:
    torch.manual_seed(1)
    x = (0.35 + 0.6 * torch.randn(20, 3, 5)).requires_grad_()
    y, _ = LIF(5, tau_mem=6.0, threshold=0.9, surrogate=surrogate, engine=engine)(x)
    if not surrogate.smooth:
        assert_fires(y)
    (grad,) = torch.autograd.grad((y * torch.arange(20.0).view(-1, 1, 1)).sum(), x)
    return grad


@pytest.mark.parametrize("surrogate", [Lorentz(0.5), Lorentz(0.1), Smooth(Lorentz(0.5))], ids=repr)
def test_a_surrogate_of_a_user_in_all_engines(surrogate: Surrogate) -> None:
    with interpreted():
        assert_near(gradient(surrogate, "cpu"), gradient(surrogate, "reference"), 1e-5)
    assert not torch.equal(gradient(surrogate, "reference"), gradient(ATan(2.0), "reference"))


def test_a_surrogate_of_a_user_is_checked_like_the_others() -> None:
    test_the_derivative_is_that_of_the_primitive(Lorentz(0.5))
    assert Lorentz(0.5) == Lorentz(0.5) != Lorentz(0.4)


def test_a_surrogate_that_cannot_be_read_runs_on_the_reference_engine() -> None:
    with pytest.warns(UserWarning, match=r"do not know torch\.sinc"):
        grad = gradient(Steps(), None)
    assert torch.equal(grad, gradient(Steps(), "reference"))


@given(st.floats(0.1, 50.0), st.floats(-5.0, 5.0))
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_any_constant_any_place(slope: float, x: float) -> None:
    at_x = torch.tensor([x], dtype=torch.float64)
    for surrogate in (ATan(slope), FastSigmoid(slope), Sigmoid(slope), SLAYER(slope), Gaussian(slope)):
        h = 1e-6
        if abs(x) > 2 * h:
            rise = (surrogate.primitive(at_x + h) - surrogate.primitive(at_x - h)) / (2 * h)
            assert float(rise) == pytest.approx(float(surrogate.derivative(at_x)), rel=1e-4, abs=1e-6)
