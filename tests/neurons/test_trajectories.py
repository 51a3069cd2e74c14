"""What each neuron does, step by step: tables made by hand, loops in exact fractions, and the differential equations."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import assert_fires, interpreted
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from spiketide import ALIF, IF, LIF, AdLIF, CubaLIF, LeakyIntegrator, neurons
from spiketide.neurons import Neuron
from spiketide.neurons.base import RESETS

pytestmark = pytest.mark.usefixtures("poisoned_memory")

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "neurons.json").read_text())
HALF = Fraction(1, 2)


def run(
    neuron: Neuron, x: list[float], dtype: torch.dtype = torch.float32
) -> tuple[list[float], list[list[float]]]:
    """Outputs and the state after every step, of one neuron and one sample, run step by step."""
    out, states, state = [], [], None
    for value in x:
        y, state = neuron(torch.tensor([[[value]]], dtype=dtype), state)
        out.append(float(y.detach()))
        states.append([float(s.detach()) for s in state])
    return out, states


# -------------------------------------------------------------------------------------------------- tables by hand


@pytest.mark.parametrize("engine", ["reference", "cpu"])
@pytest.mark.parametrize("name", [name for name in GOLDEN if name != "how"])
def test_tables_by_hand(name: str, engine: str) -> None:
    table = GOLDEN[name]
    rows = table["rows"]
    neuron = getattr(neurons, table["class"])(1, engine=engine, **table["arguments"])
    x = [row[0] for row in rows]
    out, states = run(neuron, x)
    assert out == [row[1] for row in rows]
    assert states == [row[2] for row in rows]
    whole, end = neuron(torch.tensor(x).view(-1, 1, 1))
    assert whole.flatten().tolist() == out and [float(s.detach()) for s in end] == states[-1]


def test_the_tables_have_every_neuron() -> None:
    classes = {c.__name__ for c in vars(neurons).values() if isinstance(c, type) and issubclass(c, Neuron)}
    assert {table["class"] for name, table in GOLDEN.items() if name != "how"} == classes - {
        "Neuron",
        "StepNeuron",
    }


# ------------------------------------------------------------------------------------------- loops in exact fractions


def after(reset: str, v: Fraction, s: int, threshold: Fraction) -> Fraction:
    if reset.startswith("soft"):
        return v - threshold * s
    return v if reset == "none" else v * (1 - s)


def lif(
    x: list[Fraction], reset: str, scaled: bool, d: Fraction, threshold: Fraction
) -> list[tuple[int, list[Fraction]]]:
    v, rows = Fraction(0), []
    for xt in x:
        v = d * v + ((1 - d) * xt if scaled else xt)
        s = int(v > threshold)
        v = after(reset, v, s, threshold)
        rows.append((s, [v]))
    return rows


def cuba(
    x: list[Fraction], reset: str, scaled: bool, d: Fraction, c: Fraction, threshold: Fraction
) -> list[Any]:
    v, i, rows = Fraction(0), Fraction(0), []
    for xt in x:
        i = c * i + xt
        v = d * v + ((1 - d) * i if scaled else i)
        s = int(v > threshold)
        v = after(reset, v, s, threshold)
        rows.append((s, [v, i]))
    return rows


def alif(
    x: list[Fraction], reset: str, alpha: Fraction, rho: Fraction, b0: Fraction, beta: Fraction
) -> list[Any]:
    """The equations of Yin et al., line by line: u, eta, theta, s."""
    u, eta, s, rows = Fraction(0), Fraction(0), 0, []
    for current in x:
        eta = rho * eta + (1 - rho) * s
        theta = b0 + beta * eta
        u = alpha * u + (1 - alpha) * current
        if reset == "delayed":
            u -= theta * s
        s = int(u - theta > 0)
        if reset != "delayed":
            u = after(reset, u, s, theta)
        rows.append((s, [u, eta, Fraction(s)]))
    return rows


def adlif(
    x: list[Fraction], reset: str, d: Fraction, r: Fraction, a: Fraction, b: Fraction, threshold: Fraction
) -> list[Any]:
    v, w, s, rows = Fraction(0), Fraction(0), 0, []
    for xt in x:
        w = r * w + (1 - r) * (a * v + b * s)
        v = d * v + (1 - d) * (xt - w)
        if reset == "delayed":
            v -= threshold * s
        s = int(v > threshold)
        if reset != "delayed":
            v = after(reset, v, s, threshold)
        rows.append((s, [v, w, Fraction(s)]))
    return rows


def eighths(count: int, seed: int) -> list[Fraction]:
    values = torch.randint(-6, 15, (count,), generator=torch.Generator().manual_seed(seed)).tolist()
    return [Fraction(v, 8) for v in values]


EULER: dict[str, Any] = {"tau_mem": 2.0, "discretisation": "euler"}


def exact(neuron: Neuron, x: list[Fraction], rows: list[tuple[int, list[Fraction]]]) -> None:
    """The same numbers to the last bit: 12 steps of halving eighths fit into a float64."""
    out, states = run(neuron.double(), [float(v) for v in x], torch.float64)
    assert out == [float(s) for s, _ in rows]
    assert states == [[float(v) for v in values] for _, values in rows]
    assert_fires(torch.tensor(out))


@pytest.mark.parametrize("reset", RESETS)
def test_exact_lif_if_and_cuba(reset: str) -> None:
    x, one = eighths(12, 0), Fraction(1)
    with interpreted():
        exact(IF(1, reset=reset, threshold=2.0), x, lif(x, reset, False, one, Fraction(2)))
        for scaled in (False, True):
            threshold = Fraction(3, 8) if scaled else Fraction(3, 4)
            t = float(threshold)
            exact(
                LIF(1, reset=reset, threshold=t, scale_input=scaled, **EULER),
                x,
                lif(x, reset, scaled, HALF, threshold),
            )
            high = 3 * threshold  # the current adds up
            neuron = CubaLIF(1, reset=reset, threshold=float(high), scale_input=scaled, tau_syn=4.0, **EULER)
            exact(neuron, x, cuba(x, reset, scaled, HALF, Fraction(3, 4), high))


@pytest.mark.parametrize("reset", ["delayed", *RESETS])
def test_exact_adaptive_neurons(reset: str) -> None:
    x, r = eighths(12, 1), Fraction(3, 4)
    with interpreted():
        neuron: Neuron = ALIF(
            1, reset=reset, threshold=0.25, adaptation=2.0, tau_adapt=4.0, learn=(), **EULER
        )
        exact(neuron, x, alif(x, reset, HALF, r, Fraction(1, 4), Fraction(2)))
        neuron = AdLIF(
            1, reset=reset, threshold=0.25, coupling=0.5, jump=1.0, tau_adapt=4.0, learn=(), **EULER
        )
        exact(neuron, x, adlif(x, reset, HALF, r, HALF, Fraction(1), Fraction(1, 4)))


@given(
    x=st.lists(st.integers(-8, 24), min_size=1, max_size=10),
    reset=st.sampled_from(RESETS),
    scaled=st.booleans(),
    threshold=st.integers(1, 16),
)
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_exact_lif_on_any_input(x: list[int], reset: str, scaled: bool, threshold: int) -> None:
    values, limit = [Fraction(v, 8) for v in x], Fraction(threshold, 8)
    neuron = LIF(1, reset=reset, threshold=float(limit), scale_input=scaled, **EULER).double()
    with interpreted():
        out, states = run(neuron, [float(v) for v in values], torch.float64)
    rows = lif(values, reset, scaled, HALF, limit)
    assert out == [float(s) for s, _ in rows] and states == [[float(v[0])] for _, v in rows]


def test_alif_of_the_paper_with_its_constants() -> None:
    # Yin et al.: alpha = exp(-1/tau_m), rho = exp(-1/tau_adp), theta = b0 + beta eta, reset by the current threshold of
    # the previous spike; b0 0.01, beta 1.8, tau_m 20, tau_adp 200
    neuron = ALIF(1).double()
    assert [float(c.detach()) for c in neuron.coefs()] == pytest.approx(
        [math.exp(-1 / 20), math.exp(-1 / 200), 0.01, 1.8], rel=1e-6
    )
    generator = torch.Generator().manual_seed(0)
    current = (0.4 * torch.rand(300, generator=generator, dtype=torch.float64)).tolist()
    alpha, rho, b0, beta = (float(c.detach()) for c in neuron.coefs())
    u, eta, s, want = 0.0, 0.0, 0.0, []
    for value in current:
        eta = rho * eta + (1 - rho) * s
        theta = b0 + beta * eta
        u = alpha * u + (1 - alpha) * value - theta * s
        s = 1.0 if u - theta > 0 else 0.0
        want.append(s)
    y, state = neuron(torch.tensor(current, dtype=torch.float64).view(-1, 1, 1))
    assert_fires(y)
    assert y.flatten().tolist() == want
    assert [float(v.detach()) for v in state] == pytest.approx([u, eta, s], rel=1e-12)


def test_the_detached_resets_differ_in_their_gradient_only() -> None:
    for detached, attached in (("soft_detached", "soft"), ("hard_detached", "hard")):
        grads, outputs = [], []
        for reset in (detached, attached):
            x = torch.tensor([0.6, 0.7, 0.2, 0.9, 0.1]).view(-1, 1, 1).requires_grad_()
            y, (v,) = LIF(1, tau_mem=5.0, threshold=1.0, reset=reset, engine="reference")(x)
            (grad,) = torch.autograd.grad(v.sum(), x)
            grads.append(grad)
            outputs.append((y.detach(), v.detach()))
        assert torch.equal(outputs[0][0], outputs[1][0]) and torch.equal(outputs[0][1], outputs[1][1])
        assert float(outputs[0][0].sum()) > 0
        assert not torch.equal(grads[0], grads[1])
    # soft, detached: the membrane at the end is the input times the decay to the power of its age, whatever was fired
    decay = math.exp(-1 / 5)
    x = torch.tensor([0.6, 0.7, 0.2, 0.9, 0.1]).view(-1, 1, 1).requires_grad_()
    _, (v,) = LIF(1, tau_mem=5.0, threshold=1.0, reset="soft_detached")(x)
    (grad,) = torch.autograd.grad(v.sum(), x)
    assert grad.flatten().tolist() == pytest.approx([decay**k for k in (4, 3, 2, 1, 0)], rel=1e-6)


# ------------------------------------------------------------------------------------- dt -> 0: the differential equation


def membrane(neuron: Neuron, x: Tensor) -> Tensor:
    y, _ = neuron.double()(x.view(-1, 1, 1).double())
    return y.detach().flatten()


@given(st.floats(2.0, 50.0), st.floats(0.05, 1.9), st.floats(-3.0, 3.0))
@settings(max_examples=50, deadline=None, derandomize=True, database=None)
def test_exp_is_exact_for_a_constant_current_whatever_the_step(tau: float, dt: float, current: float) -> None:
    # tau dv/dt = -v + I from v = 0
    neuron = LeakyIntegrator(1, tau_mem=tau, dt=dt)
    v = membrane(neuron, torch.full((30,), current))
    want = [current * (1 - math.exp(-dt * (k + 1) / tau)) for k in range(30)]
    assert v.tolist() == pytest.approx(want, rel=2e-6, abs=1e-9)  # tau is stored in float32


@pytest.mark.parametrize("discretisation", ["exp", "euler"])
def test_a_changing_current_converges_to_the_differential_equation(discretisation: str) -> None:
    # tau dv/dt = -v + sin(w t): v = (sin wt - w tau cos wt + w tau e^(-t/tau)) / (1 + (w tau)^2)
    tau, w, end = 10.0, 0.3, 40.0
    wt = w * tau
    want = (math.sin(w * end) - wt * math.cos(w * end) + wt * math.exp(-end / tau)) / (1 + wt**2)
    errors = []
    for dt in (1.0, 0.5, 0.25, 0.125):
        steps = round(end / dt)
        t = dt * torch.arange(1, steps + 1, dtype=torch.float64)
        v = membrane(LeakyIntegrator(1, tau_mem=tau, dt=dt, discretisation=discretisation), torch.sin(w * t))
        errors.append(abs(float(v[-1]) - want))
    assert errors[-1] < 0.01
    for coarse, fine in itertools.pairwise(errors):
        assert fine < 0.6 * coarse, f"the error does not halve with the step: {errors}"


def test_euler_and_exp_are_two_networks_that_meet_at_small_steps() -> None:
    # 10.05 ms in steps of 10 ms: 0.3697 and 0.004975
    exp = LIF(1, tau_mem=10.05, dt=10.0).tau_mem.decay()
    euler = LIF(1, tau_mem=10.05, dt=10.0, discretisation="euler").tau_mem.decay()
    assert float(exp) == pytest.approx(0.3697, abs=5e-5)
    assert float(euler) == pytest.approx(0.004975, abs=5e-7)
    small = [
        float(LIF(1, tau_mem=10.05, dt=0.01, discretisation=d).tau_mem.decay()) for d in ("exp", "euler")
    ]
    assert small[0] == pytest.approx(small[1], abs=1e-6) and small[0] != small[1]


def test_the_firing_rate_converges_to_that_of_the_differential_equation() -> None:
    # tau dv/dt = -v + I with a hard reset at the threshold fires every tau log(I / (I - threshold))
    tau, current, end = 20.0, 2.0, 1000.0
    want = end / (tau * math.log(current / (current - 1.0)))
    errors = []
    for dt in (1.0, 0.1, 0.02):
        neuron = LIF(1, tau_mem=tau, dt=dt, threshold=1.0, reset="hard", scale_input=True)
        y, _ = neuron(torch.full((round(end / dt), 1, 1), current))
        errors.append(abs(float(y.sum()) - want) / want)
    assert errors[2] < 0.005 and errors[2] < errors[0]


def test_the_current_based_neuron_converges_to_its_differential_equations() -> None:
    # di/dt = -i / tau_syn, tau_mem dv/dt = -v + i, i(0) = 1: a difference of two exponentials
    tau_mem, tau_syn, end = 10.0, 4.0, 15.0
    want = tau_syn / (tau_syn - tau_mem) * (math.exp(-end / tau_syn) - math.exp(-end / tau_mem))
    errors = []
    for dt in (0.5, 0.25, 0.125):
        neuron = CubaLIF(
            1, tau_mem=tau_mem, tau_syn=tau_syn, dt=dt, threshold=100.0, scale_input=True
        ).double()
        x = torch.zeros(round(end / dt), 1, 1, dtype=torch.float64)
        x[0] = 1.0
        _, (v, i) = neuron(x)
        assert float(i) == pytest.approx(math.exp(-(end - dt) / tau_syn), rel=1e-5)
        errors.append(abs(float(v) - want))
    assert errors[-1] < 0.02 * want
    assert errors[1] < 0.6 * errors[0] and errors[2] < 0.6 * errors[1]


# ---------------------------------------------------------------------------------------------- stability of AdLIF


def transition(neuron: AdLIF) -> Tensor:
    """The map of (v, w) in a step without input and spikes, measured on the neuron itself."""
    columns = []
    for begin in ((1.0, 0.0), (0.0, 1.0)):
        v, w = (torch.tensor([[value]], dtype=torch.float64) for value in begin)
        zero = torch.zeros(1, 1, 1, dtype=torch.float64)
        y, (v2, w2, _) = neuron(zero, (v, w, zero[0]))
        assert not bool(y.any())
        columns.append(torch.stack([v2.flatten(), w2.flatten()]))
    return torch.cat(columns, 1).detach()


@given(st.floats(1.2, 200.0), st.floats(1.2, 500.0), st.floats(-0.999, 0.999))
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_adlif_is_stable_below_threshold_for_every_coupling_it_takes(
    tau_mem: float, tau_adapt: float, coupling: float
) -> None:
    neuron = AdLIF(
        1, tau_mem=tau_mem, tau_adapt=tau_adapt, coupling=coupling, threshold=100.0, engine="reference"
    ).double()
    m = transition(neuron)
    d, r = float(neuron.tau_mem.decay().detach()), float(neuron.tau_adapt.decay().detach())
    a = float(neuron.coupling().detach())
    assert float(torch.det(m)) == pytest.approx(d * r, abs=1e-9)
    assert float(m.trace()) == pytest.approx(d + r - (1 - d) * (1 - r) * a, abs=1e-9)
    assert float(torch.linalg.eigvals(m).abs().max()) < 1


def test_the_stability_bound_of_adlif_is_where_it_says() -> None:
    # -1 < coupling < (1 + d)(1 + r) / ((1 - d)(1 - r)): the constructor takes (-1, 1), so the map is built from measured pieces
    neuron = AdLIF(1, tau_mem=2.0, tau_adapt=3.0, coupling=0.5, threshold=100.0, engine="reference").double()
    d, r = float(neuron.tau_mem.decay().detach()), float(neuron.tau_adapt.decay().detach())
    assert d == pytest.approx(math.exp(-1 / 2)) and r == pytest.approx(math.exp(-1 / 3))
    free = transition(
        AdLIF(1, tau_mem=2.0, tau_adapt=3.0, coupling=1e-9, threshold=100.0, engine="reference").double()
    )
    per_coupling = (transition(neuron) - free) / 0.5

    def radius(coupling: float) -> float:
        return float(torch.linalg.eigvals(free + coupling * per_coupling).abs().max())

    bound = (1 + d) * (1 + r) / ((1 - d) * (1 - r))
    assert radius(-1 + 1e-3) < 1 < radius(-1 - 1e-3)
    assert radius(bound - 1e-3) < 1 < radius(bound + 1e-3)


def test_without_scaled_input_a_negative_coupling_is_bounded_by_the_leak() -> None:
    def radius(coupling: float) -> float:
        neuron = AdLIF(
            1,
            tau_mem=20.0,
            tau_adapt=60.0,
            coupling=coupling,
            threshold=100.0,
            scale_input=False,
            engine="reference",
        )
        return float(torch.linalg.eigvals(transition(neuron.double())).abs().max())

    leak = 1 - math.exp(-1 / 20)
    assert radius(-0.9 * leak) < 1 < radius(-1.1 * leak)
    assert radius(0.99) < 1


def test_adlif_resonates() -> None:
    # complex eigenvalues: a kick rings instead of decaying
    neuron = AdLIF(1, tau_mem=20.0, tau_adapt=20.0, coupling=0.99, threshold=100.0).double()
    assert float(torch.linalg.eigvals(transition(neuron)).imag.abs().max()) > 0.01
    x = torch.zeros(150, 1, 1, dtype=torch.float64)
    x[0] = 50.0
    v, state = [], None
    with interpreted():
        for xt in x:
            _, state = neuron(xt.unsqueeze(0), state)
            v.append(float(state[0].detach()))
    assert v[0] > 0 > min(v)


@pytest.mark.parametrize(
    ("build", "example"),
    [
        (lambda: IF(1), [0.0, 0.0, 1.0, 0.0, 0.0]),
        (lambda: LIF(1, tau_mem=20.0), [0.0, 0.0, 1.0, 0.0, 0.0]),
    ],
)
def test_the_examples_of_the_docstrings(build: Callable[[], Neuron], example: list[float]) -> None:
    out, _ = run(build(), [0.4] * 5)
    assert out == example
