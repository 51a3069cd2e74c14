"""SE-adLIF, the balanced resonate-and-fire neuron and the ALIF without spikes: against their equations and their closed forms."""

from __future__ import annotations

import cmath
import itertools
import math
from fractions import Fraction
from typing import Any

import pytest
import torch
from helpers import assert_fires, assert_near, assert_same, differentiate, interpreted
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from spiketide import ALIF, LIF, BalancedResonateFire, Dense, Recurrent, SEAdLIF, Sequential
from spiketide.errors import ParameterError
from spiketide.neurons import Neuron
from spiketide.neurons.base import RESETS
from spiketide.probe import firing_rates, record
from spiketide.surrogate import SLAYER, MultiGaussian

pytestmark = pytest.mark.usefixtures("poisoned_memory")

F64 = torch.float64


def values(*tensors: Tensor) -> list[float]:
    return [float(t.detach()) for t in tensors]


def noise(steps: int, *shape: int, mean: float = 0.0, std: float = 1.0, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return mean + std * torch.randn(steps, *shape, generator=generator, dtype=F64)


def transition(neuron: Neuron, *rest: float) -> Tensor:
    """The map of the first two states in a step without input and spikes, measured on the neuron."""
    columns = []
    more = tuple(torch.full((1, 1), value, dtype=F64) for value in rest)
    for begin in ((1.0, 0.0), (0.0, 1.0)):
        state = tuple(torch.tensor([[value]], dtype=F64) for value in begin)
        y, after = neuron(torch.zeros(1, 1, 1, dtype=F64), (*state, *more))
        assert not bool(y.any())
        columns.append(torch.stack([s.detach().flatten() for s in after[:2]]))
    return torch.cat(columns, 1)


# ------------------------------------------------------------------------------------------------------------ SE-adLIF


def se_adlif(
    x: list[Fraction],
    reset: str,
    d: Fraction,
    r: Fraction,
    q: Fraction,
    a: Fraction,
    b: Fraction,
    top: Fraction,
) -> list[tuple[int, list[Fraction]]]:
    """The equations of the paper in their order: charge, fire, reset, and then the adaptation by the new membrane."""
    u, w, rows = Fraction(0), Fraction(0), []
    for current in x:
        u = d * u + (1 - d) * (current - w)
        z = int(u > top)
        if reset.startswith("soft"):
            u -= top * z
        elif reset.startswith("hard"):
            u *= 1 - z
        w = r * w + (1 - r) * q * (a * u + b * z)
        rows.append((z, [u, w]))
    return rows


@pytest.mark.parametrize("reset", RESETS)
def test_se_adlif_in_exact_fractions(reset: str) -> None:
    draws = torch.randint(-6, 15, (10,), generator=torch.Generator().manual_seed(1)).tolist()
    x = [Fraction(v, 8) for v in draws]
    neuron = SEAdLIF(
        1,
        tau_mem=2.0,
        tau_adapt=4.0,
        tau_mem_range=(1.5, 9.0),
        tau_adapt_range=(3.0, 9.0),
        discretisation="euler",
        gain=4.0,
        coupling=0.5,
        jump=0.25,
        threshold=0.25,
        reset=reset,
        learn=(),
    ).double()
    half = Fraction(1, 2)
    rows = se_adlif(x, reset, half, Fraction(3, 4), Fraction(4), half, half / 2, half / 2)
    state: Any = None
    with interpreted():
        for value, (z, want) in zip(x, rows, strict=True):
            y, state = neuron(torch.tensor([[[float(value)]]], dtype=F64), state)
            assert float(y) == z and values(*state) == [float(v) for v in want]
    assert_fires(torch.tensor([float(z) for z, _ in rows]))


PAPER = {"tau_mem": 15.0, "tau_adapt": 180.0, "coupling": 0.5, "jump": 1.0, "learn": ()}


def test_se_adlif_has_the_constants_of_the_paper() -> None:
    neuron = SEAdLIF(1, **PAPER).double()
    d, r, a, b, threshold = values(*neuron.coefs())
    assert (d, r) == pytest.approx((math.exp(-1 / 15), math.exp(-1 / 180)), rel=1e-6)
    assert (a, b, threshold, neuron.gain, neuron.reset) == (0.5, 1.0, 1.0, 120.0, "hard")
    assert neuron.surrogate == SLAYER(5.0, 0.4)
    many = SEAdLIF(2000)
    for name, (low, high) in {
        "tau_mem": (5, 25),
        "tau_adapt": (60, 300),
        "coupling": (0, 1),
        "jump": (0, 2),
    }.items():
        drawn = getattr(many, name)().detach()
        assert drawn.shape == (2000,) and low < float(drawn.min()) and float(drawn.max()) < high
        # even: the deciles of the draws are those of the range
        deciles = torch.quantile(drawn, torch.arange(0.1, 1.0, 0.1))
        want = low + (high - low) * torch.arange(0.1, 1.0, 0.1)
        assert float((deciles - want).abs().max()) < 0.05 * (high - low)


@given(
    raws=st.tuples(*[st.floats(-1e4, 1e4)] * 3),
    discretisation=st.sampled_from(["exp", "euler"]),
)
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_se_adlif_is_stable_whatever_is_learnt(raws: tuple[float, ...], discretisation: str) -> None:
    neuron = SEAdLIF(1, discretisation=discretisation, threshold=1e3, engine="reference").double()
    with torch.no_grad():
        for constant, raw in zip((neuron.tau_mem, neuron.tau_adapt, neuron.coupling), raws, strict=True):
            constant.raw.fill_(raw)
    m = transition(neuron)
    d, r, a, _, _ = values(*neuron.coefs())
    tau_mem, tau_adapt = values(neuron.tau_mem(), neuron.tau_adapt())
    assert 5 <= tau_mem <= 25 and 60 <= tau_adapt <= 300 and 0 < a < 1
    assert float(torch.det(m)) == pytest.approx(d * r, abs=1e-9)
    assert float(m.trace()) == pytest.approx(d + r - (1 - d) * (1 - r) * 120 * a, abs=1e-9)
    assert float(torch.linalg.eigvals(m).abs().max()) < 1


def test_the_symplectic_step_adds_no_energy_and_the_explicit_one_does() -> None:
    neuron = SEAdLIF(1, **{**PAPER, "coupling": 1.0, "threshold": 1e3}, engine="reference").double()
    m = transition(neuron)
    d, r, a, _, _ = values(*neuron.coefs())
    q = neuron.gain
    explicit = torch.tensor([[d, -(1 - d)], [(1 - r) * q * a, r]], dtype=F64)
    radius = [float(torch.linalg.eigvals(matrix).abs().max()) for matrix in (m, explicit)]
    assert bool(torch.linalg.eigvals(m).imag.any()), "it rings"
    assert radius[0] == pytest.approx(math.sqrt(d * r), rel=1e-9)
    assert radius[0] < 0.97 < radius[1]
    # what the map says is what the neuron does: a kick, and the same product of matrices
    x = torch.zeros(60, 1, 1, dtype=F64)
    x[0] = 100.0
    _, (v, w) = neuron(x)
    kick = torch.tensor([(1 - d) * 100.0, (1 - r) * q * a * (1 - d) * 100.0], dtype=F64)
    want = torch.linalg.matrix_power(m, 59) @ kick
    assert values(v, w) == pytest.approx(want.tolist(), rel=1e-9)


def test_se_adlif_refuses_what_could_be_unstable_and_says_why() -> None:
    with pytest.raises(
        ParameterError, match=r"gain below 78\.\d+, where a coupling of 1 is unstable.*dt = 4"
    ):
        SEAdLIF(3, dt=4.0)
    scaled = SEAdLIF(1, **{**PAPER, "tau_mem": 60.0, "tau_adapt": 720.0}, dt=4.0,
                     tau_mem_range=(20.0, 100.0), tau_adapt_range=(240.0, 1200.0))  # fmt: skip
    assert values(*scaled.coefs()) == pytest.approx(values(*SEAdLIF(1, **PAPER).coefs()))
    # the bound itself: just below it the worst corner of the ranges is stable, just above it is not
    d, r = math.exp(-4 / 5), math.exp(-4 / 60)
    bound = (1 + d) * (1 + r) / ((1 - d) * (1 - r))
    corner: dict[str, Any] = {"tau_mem": 5.0, "tau_adapt": 60.0, "coupling": 1.0, "jump": 0.0, "dt": 4.0}
    below = SEAdLIF(1, **corner, gain=0.999 * bound, threshold=1e3, learn=(), engine="reference").double()
    assert float(torch.linalg.eigvals(transition(below)).abs().max()) < 1
    below.gain = 1.001 * bound  # an attribute set later makes other kernels, and is not looked at
    assert float(torch.linalg.eigvals(transition(below)).abs().max()) > 1
    with pytest.raises(ParameterError, match="SEAdLIF expected a gain below"):
        SEAdLIF(1, **corner, gain=1.001 * bound)


def test_se_adlif_bad_constants() -> None:
    for bad in (0.0, -1.0, math.nan, math.inf, "q"):
        with pytest.raises(ParameterError, match="SEAdLIF expected gain > 0"):
            SEAdLIF(3, gain=bad)  # type: ignore[arg-type]
    for ranges in ((5.0,), (25.0, 5.0), (0.0, 5.0), (5.0, math.inf), (5.0, "x")):
        with pytest.raises(ParameterError, match=r"tau_mem_range expected \(low, high\) with 0 < low < high"):
            SEAdLIF(3, tau_mem_range=ranges)  # type: ignore[arg-type]
    with pytest.raises(ParameterError, match="with 1 < low < high"):
        SEAdLIF(3, tau_mem_range=(0.5, 20.0), discretisation="euler")
    with pytest.raises(ParameterError, match="tau_mem expected finite values > 5 and < 25, got 30"):
        SEAdLIF(3, tau_mem=30.0)
    for name, top in (("coupling", 1.0), ("jump", 2.0)):
        fixed = SEAdLIF(3, **{name: top}, learn=())  # the bounds are allowed where nothing is learnt
        assert (
            float(getattr(fixed, name)()) == top
            and float(getattr(SEAdLIF(3, **{name: 0.0}, learn=()), name)()) == 0
        )
        with pytest.raises(ParameterError, match=f"{name} expected finite values > 0 and < {top:g}"):
            SEAdLIF(3, **{name: top})
        with pytest.raises(ParameterError, match=f"{name} expected"):
            SEAdLIF(3, **{name: top + 0.1}, learn=())
    with pytest.raises(ParameterError, match="unknown learnable constant of SEAdLIF 'gain'"):
        SEAdLIF(3, learn=("gain",))
    with pytest.raises(ParameterError, match="unknown reset 'delayed'"):
        SEAdLIF(3, reset="delayed")


# ------------------------------------------------------------------------------------------------------------------ BRF


def brf(neuron: BalancedResonateFire, x: list[float]) -> tuple[list[float], complex, float]:
    """The paper's equations on complex numbers."""
    dt, omega, offset = neuron.delta, float(neuron.omega().detach()), float(neuron.damping().detach())
    p = (-1 + math.sqrt(1 - (dt * omega) ** 2)) / dt
    z, q, spikes = 0j, 0.0, []
    for current in x:
        b = p - offset - q
        z = z + dt * (complex(b, omega) * z + current)
        spikes.append(1.0 if z.real > 1 + q else 0.0)
        q = 0.9 * q + spikes[-1]
    return spikes, z, q


@given(omega=st.floats(1.0, 80.0), damping=st.floats(0.05, 8.0), seed=st.integers(0, 100))
@settings(max_examples=40, deadline=None, derandomize=True, database=None)
def test_brf_is_the_equation_of_the_paper(omega: float, damping: float, seed: int) -> None:
    neuron = BalancedResonateFire(1, omega=omega, damping=damping, learn=()).double()
    x = noise(60, seed=seed, mean=20.0, std=60.0)
    with interpreted():
        y, (v, w, a) = neuron(x.view(-1, 1, 1))
    spikes, z, q = brf(neuron, x.tolist())
    assert y.flatten().tolist() == spikes
    assert values(v, w, a) == pytest.approx([z.real, z.imag, q], rel=1e-9, abs=1e-12)


def test_brf_fires_and_wears_its_refractory_off() -> None:
    neuron = BalancedResonateFire(1, omega=10.0, damping=1.0, learn=()).double()
    period = float(neuron.period().detach())
    x = 60 * torch.cos(2 * math.pi * torch.arange(400, dtype=F64) / period)
    y, (_, _, a) = neuron(x.view(-1, 1, 1))
    assert_fires(y)
    spikes, z, q = brf(neuron, x.tolist())
    assert y.flatten().tolist() == spikes and float(a) == pytest.approx(q)
    silent, (_, _, rest) = neuron(torch.zeros(30, 1, 1, dtype=F64), (*neuron.initial_state(y[:1])[:2], a))
    assert not bool(silent.any()) and float(rest) == pytest.approx(0.9**30 * q)


def test_at_the_boundary_of_divergence_the_step_is_a_rotation() -> None:
    for omega in (0.5, 10.0, 50.0, 94.0):
        neuron = BalancedResonateFire(
            1, omega=omega, damping=1e-9, threshold=9.0, learn=(), engine="reference"
        ).double()
        eigenvalues = torch.linalg.eigvals(transition(neuron, 0.0))
        assert float((eigenvalues.abs() - 1).abs().max()) < 1e-9
        assert float(eigenvalues.imag.max()) == pytest.approx(0.01 * omega, rel=1e-6)
        assert float(neuron.period().detach()) == pytest.approx(
            2 * math.pi / math.asin(0.01 * omega), rel=1e-6
        )


@given(
    raws=st.tuples(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4)),
    delta=st.floats(1e-3, 0.06),
    decay=st.floats(0.0, 0.9),
    share=st.floats(0.0, 1.0),
)
@settings(max_examples=80, deadline=None, derandomize=True, database=None)
def test_brf_shrinks_whatever_is_learnt(
    raws: tuple[float, float], delta: float, decay: float, share: float
) -> None:
    neuron = BalancedResonateFire(
        1, delta=delta, decay_refractory=decay, omega=5.0, damping=0.1, threshold=9.0, engine="reference"
    ).double()
    with torch.no_grad():
        neuron.omega.raw.fill_(raws[0])
        neuron.damping.raw.fill_(raws[1])
    largest = share / (1 - decay)  # the refractory of a neuron that has fired at every step
    m = transition(neuron, largest)
    radius = float(torch.linalg.eigvals(m).abs().max())
    assert radius < 1
    rotation, retention, _ = values(*neuron.coefs())
    assert radius == pytest.approx(abs(complex(retention - delta * largest, rotation)), rel=1e-9)
    for constant in (neuron.omega, neuron.damping):  # and the gradient is there to come back with
        (grad,) = torch.autograd.grad(sum(c.sum() for c in neuron.coefs()), constant.raw, retain_graph=True)
        assert bool(torch.isfinite(grad).all())


def test_brf_answers_to_its_own_rhythm() -> None:
    # a steady oscillation e^(i t theta) of the complex input has the response delta / (e^(i theta) - eigenvalue)
    neuron = BalancedResonateFire(1, omega=30.0, damping=2.0, threshold=1e3, learn=()).double()
    period = float(neuron.period().detach())
    rotation, retention, _ = values(*neuron.coefs())
    eigenvalue = complex(retention, rotation)
    found = []
    for p in (0.7 * period, period, 1.4 * period):
        theta = 2 * math.pi / p
        time = torch.arange(1500, dtype=F64)
        # a real cosine drives two rotations, of which one goes with the neuron and one against it
        state, course = None, []
        for part in torch.cos(theta * time).view(-1, 1, 1).split(500):
            y, state = neuron(part, state)
            course.append(state)
        v, w, _ = (s.detach() for s in course[-1])
        t = 1499
        want = sum(
            0.01 / 2 * cmath.exp(1j * sign * theta * (t + 1)) / (cmath.exp(1j * sign * theta) - eigenvalue)
            for sign in (1, -1)
        )
        assert complex(float(v), float(w)) == pytest.approx(want, rel=1e-8)
        found.append(abs(0.01 / (cmath.exp(1j * theta) - eigenvalue)))
    assert found[1] > 2 * max(found[0], found[2])


def test_a_free_oscillation_comes_round_in_its_period() -> None:
    for omega, damping in ((10.0, 0.5), (40.0, 2.0), (5.0, 3.0)):
        neuron = BalancedResonateFire(1, omega=omega, damping=damping, threshold=1e3, learn=()).double()
        x = torch.zeros(400, 1, 1, dtype=F64)
        x[0] = 1000.0
        state, v = None, []
        with interpreted():
            for part in x:
                _, state = neuron(part[None], state)
                v.append(float(state[0]))
        crossings = [k + v[k] / (v[k] - v[k + 1]) for k in range(399) if v[k] > 0 >= v[k + 1]]
        assert len(crossings) >= 2
        gaps = [b - a for a, b in itertools.pairwise(crossings)]
        assert sum(gaps) / len(gaps) == pytest.approx(float(neuron.period().detach()), rel=0.02)


def test_brf_draws_its_constants_as_the_paper() -> None:
    neuron = BalancedResonateFire(2000)
    for constant, low, high in ((neuron.omega, 5.0, 10.0), (neuron.damping, 2.0, 3.0)):
        drawn = constant().detach()
        assert constant.learnable and drawn.shape == (2000,)
        assert low <= float(drawn.min()) < low + 0.1 * (high - low)
        assert high - 0.1 * (high - low) < float(drawn.max()) <= high
    assert neuron.surrogate == MultiGaussian() and (neuron.delta, neuron.decay_refractory) == (0.01, 0.9)
    assert [p.shape for p in BalancedResonateFire((3, 4, 5)).parameters()] == [(3, 1, 1), (3, 1, 1)]


def test_brf_bad_constants() -> None:
    for bad in (0.0, -1.0, math.nan, math.inf, None):
        with pytest.raises(ParameterError, match="BalancedResonateFire expected delta > 0"):
            BalancedResonateFire(3, delta=bad)  # type: ignore[arg-type]
    for bad in (-0.1, 1.0, math.nan, "q"):
        with pytest.raises(ParameterError, match=r"decay_refractory in \[0, 1\)"):
            BalancedResonateFire(3, decay_refractory=bad)  # type: ignore[arg-type]
    with pytest.raises(
        ParameterError,
        match=r"delta \(now 0.1\) and decay_refractory \(now 0.9\).*keeps firing would diverge",
    ):
        BalancedResonateFire(3, delta=0.1)
    with pytest.raises(ParameterError, match="omega expected finite values > 0 and < 95, got 95"):
        BalancedResonateFire(3, omega=95.0)
    with pytest.raises(ParameterError, match=r"damping expected finite values > 0 and < 52\.4"):
        BalancedResonateFire(3, damping=60.0)
    with pytest.raises(ParameterError, match="unknown learnable constant of BalancedResonateFire 'delta'"):
        BalancedResonateFire(3, learn=("delta",))


# -------------------------------------------------------------------------------------------------------- in a network


@pytest.mark.parametrize("build", [
    lambda: SEAdLIF(6, threshold=0.1),
    lambda: BalancedResonateFire(6, omega=20.0, damping=1.0, threshold=0.1),
])  # fmt: skip
@pytest.mark.parametrize("lengths", [None, [40, 0, 17]], ids=["all", "lengths"])
def test_in_recurrence_the_engines_agree(build: Any, lengths: list[int] | None) -> None:
    torch.manual_seed(3)
    layer = Recurrent(build(), Dense(6, 6)).double()
    x = noise(40, 3, 6, mean=2.0, std=6.0)
    outcomes = []
    for engine in ("reference", "cpu"):
        layer.neuron.engine = engine
        names = dict(layer.named_parameters())

        def run(given: dict[str, Tensor]) -> tuple[Tensor, Any]:
            options = {"lengths": None if lengths is None else torch.tensor(lengths)}
            parts = {k: v for k, v in given.items() if k != "x"}
            y, (end, _) = torch.func.functional_call(layer, parts, (given["x"],), options)
            return y, end

        with interpreted():
            outcomes.append(differentiate(run, {"x": x, **{k: p.detach() for k, p in names.items()}}))
    want, got = outcomes
    assert_fires(want.y)
    assert_same(got.y, want.y)
    for name, grad in want.grads.items():
        assert bool(grad.any()), name
        assert_near(got.grads[name], grad, 1e-10, name)


# -------------------------------------------------------------------------------------------------- ALIF without spikes


def relu_alif(neuron: ALIF, x: Tensor, w: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Yin et al.'s loop with the spike replaced by relu(u - theta)."""
    alpha, rho, b0, beta = neuron.coefs()
    u = eta = s = torch.zeros_like(x[0])
    out = []
    for current in x.unbind(0):
        if w is not None:
            current = current + s @ w.t()
        eta = rho * eta + (1 - rho) * s
        theta = b0 + beta * eta
        u = alpha * u + (1 - alpha) * current - theta * s
        s = torch.relu(u - theta)
        out.append(s)
    return torch.stack(out), u, eta, s


@pytest.mark.parametrize("engine", ["reference", "cpu"])
@pytest.mark.parametrize("recurrent", [False, True])
def test_the_relu_unit_is_the_loop_of_the_paper(engine: str, recurrent: bool) -> None:
    neuron = ALIF(5, tau_mem=6.0, tau_adapt=20.0, threshold=0.1, output="relu", engine=engine,
                  learn=("tau_mem", "tau_adapt", "threshold", "adaptation")).double()  # fmt: skip
    x = noise(30, 3, 5, mean=0.4, std=0.6)
    weight = (0.4 * noise(5, 5, seed=4)).requires_grad_()
    layer: Any = neuron
    if recurrent:
        layer = Recurrent(neuron, Dense(5, 5, bias=False)).double()
        with torch.no_grad():
            layer.synapse.weight.copy_(weight)
        weight = layer.synapse.weight
    given_x = x.clone().requires_grad_()
    cotangent = noise(30, 3, 5, seed=7)
    wanted = [given_x, *neuron.parameters(), *([weight] if recurrent else [])]

    def graded(y: Tensor, ends: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return torch.autograd.grad((cotangent * y).sum() + sum(e.square().sum() for e in ends), wanted)

    want, *ends = relu_alif(neuron, given_x, weight if recurrent else None)
    grads = graded(want, tuple(ends))
    with interpreted():
        y, state = layer(given_x)
        state = state[0][:3] if recurrent else state
        found = graded(y, state)
    assert 0.05 < float((want > 0).double().mean()) < 0.9 and len(want.unique()) > 50
    assert_near(y.detach(), want.detach(), 1e-12)
    for a, b in zip(state, ends, strict=True):
        assert_near(a.detach(), b.detach(), 1e-12)
    for a, b in zip(found, grads, strict=True):
        assert bool(b.any())
        assert_near(a, b, 1e-10)


def test_the_relu_unit_is_no_spiking_neuron() -> None:
    model = Sequential(LIF(4, tau_mem=6.0, threshold=0.3), ALIF(4, output="relu"))
    with record(model) as records, interpreted():
        model(torch.rand(20, 2, 4))
    assert list(records) == ["0", "1"] and list(firing_rates(records)) == ["0"]
    assert not ALIF(4, output="relu").emits_spikes and ALIF(4).emits_spikes
    with pytest.raises(ParameterError, match="unknown output 'relu'"):
        LIF(4, output="relu")
    with pytest.raises(ParameterError, match="Known: membrane, relu, spikes"):
        ALIF(4, output="rectified")
    for reset in ("hard", "hard_detached"):
        with pytest.raises(ParameterError, match="a delayed, soft or no reset"):
            ALIF(4, output="relu", reset=reset)
    # soft resets and none run too
    for reset in ("soft", "soft_detached", "none"):
        with interpreted():
            y, _ = ALIF(4, output="relu", reset=reset, tau_mem=5.0)(torch.rand(10, 2, 4))
        assert len(y.unique()) > 10
