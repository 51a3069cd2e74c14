"""Gradients against finite differences, in float64, on the smooth twin of every neuron: no engine is trusted here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from helpers import interpreted
from torch import Tensor

from spiketide import (
    ALIF,
    IF,
    LIF,
    AdLIF,
    BalancedResonateFire,
    CubaLIF,
    Dense,
    LeakyIntegrator,
    Recurrent,
    SEAdLIF,
    StepNeuron,
    spike,
)
from spiketide.errors import EngineError
from spiketide.neurons import Neuron
from spiketide.scan import recurrent_scan, scan
from spiketide.surrogate import ATan, MultiGaussian, Sigmoid, Smooth, Surrogate, spike_derivative

pytestmark = pytest.mark.usefixtures("poisoned_memory")

STEPS, BATCH, N = 4, 2, 2


def user_step(x: Any, v: Any, w: Any, decay: Any, threshold: Any) -> Any:
    w = decay * w + (1 - decay) * torch.tanh(v)
    v = decay * v * (1 + 0.1 * v) + x - w
    s = spike(v - threshold)
    return s, v - threshold * s, w


NEURONS: dict[str, Callable[[Surrogate], Neuron]] = {
    "IF": lambda s: IF(N, surrogate=s),
    "LIF soft": lambda s: LIF(N, tau_mem=5.0, surrogate=s),
    "LIF hard scaled": lambda s: LIF(
        N, tau_mem=5.0, reset="hard", scale_input=True, threshold=0.3, surrogate=s
    ),
    "LIF none": lambda s: LIF(N, tau_mem=5.0, reset="none", surrogate=s),
    "CubaLIF": lambda s: CubaLIF(N, tau_mem=5.0, tau_syn=2.0, surrogate=s),
    "ALIF delayed": lambda s: ALIF(N, tau_mem=5.0, tau_adapt=9.0, threshold=0.3, surrogate=s),
    "ALIF hard": lambda s: ALIF(N, tau_mem=5.0, tau_adapt=9.0, threshold=0.3, reset="hard", surrogate=s),
    "AdLIF delayed": lambda s: AdLIF(N, tau_mem=5.0, tau_adapt=9.0, threshold=0.3, surrogate=s),
    "AdLIF soft": lambda s: AdLIF(N, tau_mem=5.0, tau_adapt=9.0, threshold=0.3, reset="soft", surrogate=s),
    "SEAdLIF": lambda s: SEAdLIF(N, gain=9.0, threshold=0.3, coupling=0.5, jump=0.7, surrogate=s),
    "SEAdLIF soft": lambda s: SEAdLIF(
        N, gain=9.0, threshold=0.3, coupling=0.5, jump=0.7, reset="soft", surrogate=s
    ),
    "BalancedResonateFire": lambda s: BalancedResonateFire(
        N, delta=0.1, decay_refractory=0.8, omega=6.0, damping=0.5, threshold=0.3, surrogate=s
    ),
    "LeakyIntegrator": lambda s: LeakyIntegrator(N, tau_mem=5.0),
    "of a user": lambda s: StepNeuron(
        N, user_step, states=("v", "w"), constants={"decay": 0.8, "threshold": 0.9}, surrogate=s
    ),
}


def operands(neuron: Neuron) -> tuple[list[Tensor], int]:
    """Input, states and one value per neuron for every constant; and how many are states."""
    generator = torch.Generator().manual_seed(2)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    coefs = [torch.as_tensor(c).detach().double().expand(N) * (1 + 0.05 * normal(N)) for c in neuron.coefs()]
    tensors = [0.5 + normal(STEPS, BATCH, N), *(0.3 * normal(BATCH, N) for _ in neuron.states), *coefs]
    return [t.clone().requires_grad_() for t in tensors], len(neuron.states)


def check(function: Callable[..., Any], given: Sequence[Tensor]) -> None:
    assert torch.autograd.gradcheck(function, tuple(given), eps=1e-6, atol=1e-7, rtol=1e-5, nondet_tol=0.0)


@pytest.mark.parametrize("engine", ["reference", "cpu"])
@pytest.mark.parametrize("name", NEURONS)
def test_every_neuron(name: str, engine: str) -> None:
    surrogate = Smooth(MultiGaussian() if "LIF d" in name else ATan(2.0))
    neuron = NEURONS[name](surrogate)
    given, states = operands(neuron)

    def run(x: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        y, end = scan(neuron.dynamics, x, rest[:states], rest[states:], neuron.surrogate, engine=engine)
        return (y, *end)

    with interpreted():
        check(run, given)


@pytest.mark.parametrize("engine", ["reference", "cpu"])
def test_lengths_and_checkpoints(engine: str) -> None:
    neuron = NEURONS["ALIF delayed"](Smooth(ATan(2.0)))
    given, states = operands(neuron)

    def run(x: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        y, end = scan(
            neuron.dynamics,
            x,
            rest[:states],
            rest[states:],
            neuron.surrogate,
            engine=engine,
            lengths=torch.tensor([3, STEPS]),
            checkpoint=2,
        )
        return (y, *end)

    with interpreted():
        check(run, given)


@pytest.mark.parametrize("engine", ["reference", "cpu"])
@pytest.mark.parametrize("name", ["LIF soft", "ALIF delayed", "CubaLIF", "LeakyIntegrator", "of a user"])
def test_recurrent(name: str, engine: str) -> None:
    neuron = NEURONS[name](Smooth(Sigmoid(2.0)))
    given, states = operands(neuron)
    generator = torch.Generator().manual_seed(4)
    matrix = (0.5 * torch.randn(N, N, generator=generator, dtype=torch.float64)).requires_grad_()
    previous = torch.rand(BATCH, N, generator=generator, dtype=torch.float64).requires_grad_()

    def run(x: Tensor, matrix: Tensor, previous: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        y, end = recurrent_scan(
            neuron.dynamics,
            x,
            rest[:states],
            rest[states:],
            neuron.surrogate,
            matrix,
            previous=previous,
            engine=engine,
        )
        return (y, *end)

    with interpreted():
        check(run, [given[0], matrix, previous, *given[1:]])


def test_recurrent_lengths_and_checkpoints() -> None:
    neuron = NEURONS["LIF soft"](Smooth(Sigmoid(2.0)))
    given, states = operands(neuron)
    matrix = torch.tensor([[0.5, -0.3], [0.2, 0.4]], dtype=torch.float64, requires_grad=True)
    previous = torch.tensor([[0.1, 0.9], [0.4, 0.6]], dtype=torch.float64, requires_grad=True)

    def run(x: Tensor, matrix: Tensor, previous: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        y, end = recurrent_scan(
            neuron.dynamics,
            x,
            rest[:states],
            rest[states:],
            neuron.surrogate,
            matrix,
            previous=previous,
            engine="cpu",
            lengths=torch.tensor([0, 3]),
            checkpoint=2,
        )
        return (y, *end)

    with interpreted():
        check(run, [given[0], matrix, previous, *given[1:]])


def test_compiled() -> None:
    neuron = NEURONS["LIF soft"](Smooth(ATan(2.0)))
    given, states = operands(neuron)

    def run(x: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        y, end = scan(neuron.dynamics, x, rest[:states], rest[states:], neuron.surrogate, engine="cpu")
        return (y, *end)

    check(run, given)


def test_layers_down_to_their_parameters() -> None:
    surrogate = Smooth(ATan(2.0))
    layer = Recurrent(
        ALIF(N, tau_mem=5.0, tau_adapt=9.0, threshold=0.3, surrogate=surrogate), Dense(N, N)
    ).double()
    names = [name for name, _ in layer.named_parameters()]
    assert {"neuron.tau_mem.raw", "neuron.tau_adapt.raw", "synapse.weight", "synapse.bias"} == set(names)
    x = torch.randn(STEPS, BATCH, N, dtype=torch.float64)
    values = [p.detach().clone().requires_grad_() for p in layer.parameters()]

    def run(x: Tensor, *given: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, given, strict=True)), (x,))[0]

    with interpreted():
        check(run, [x.requires_grad_(), *values])


def test_a_wrong_backward_does_not_pass() -> None:
    def step(x: Any, v: Any, decay: Any) -> Any:
        v = decay * v + x
        return torch.tanh(v), v

    def step_vjp(gy: Any, gv: Any, x: Any, v: Any, decay: Any) -> Any:
        y = torch.tanh(decay * v + x)
        g = gy * (1 - y * y)  # + gv is dropped
        return g, g * decay, g * v

    def wrong(x: Tensor) -> Tensor:
        from spiketide.scan import Dynamics

        return scan(Dynamics(("v",), ("decay",), step, step_vjp), x, None, (0.9,), ATan(2.0), engine="cpu")[0]

    x = torch.randn(STEPS, BATCH, N, dtype=torch.float64, requires_grad=True)
    with interpreted(), pytest.raises(RuntimeError, match="Jacobian mismatch"):
        torch.autograd.gradcheck(wrong, (x,))
    with pytest.raises(EngineError, match="first derivatives only"):
        torch.autograd.gradgradcheck(wrong, (x,))


def test_a_hand_written_backward_of_a_smooth_twin() -> None:
    def step(x: Any, v: Any, decay: Any, threshold: Any) -> Any:
        v = decay * v + x
        s = spike(v - threshold)
        return s, v - threshold * s

    def step_vjp(gs: Any, gv: Any, x: Any, v: Any, decay: Any, threshold: Any) -> Any:
        u = decay * v + x
        ds = (gs - threshold * gv) * spike_derivative(u - threshold)
        gu = ds + gv
        return gu, gu * decay, gu * v, -ds - spike(u - threshold) * gv

    neuron = NEURONS["LIF soft"](Smooth(ATan(2.0)))
    given, _ = operands(neuron)
    dynamics = neuron.dynamics._replace(step=step, step_vjp=step_vjp)
    for engine in ("reference", "cpu"):

        def run(x: Tensor, v: Tensor, *coefs: Tensor, engine: str = engine) -> tuple[Tensor, ...]:
            y, end = scan(dynamics, x, (v,), coefs, neuron.surrogate, engine=engine)
            return (y, *end)

        with interpreted():
            check(run, given)
