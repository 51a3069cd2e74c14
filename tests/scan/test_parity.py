"""The engines agree: handwritten torch = the reference loop = the fused CPU loop, forward and backward."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import pytest
import torch
from helpers import (
    assert_fires,
    assert_near,
    assert_parity,
    assert_same,
    differentiate,
    interpreted,
    named,
    scanned,
)
from torch import Tensor

import spiketide
from spiketide import (
    ALIF,
    IF,
    LIF,
    AdLIF,
    BalancedResonateFire,
    CubaLIF,
    Dense,
    LeakyIntegrator,
    NormalizedLIF,
    Recurrent,
    SEAdLIF,
    Sequential,
    StepNeuron,
    spike,
)
from spiketide.errors import EngineError, ParameterError, ShapeError
from spiketide.kernels import threading
from spiketide.neurons import Neuron
from spiketide.neurons.base import RESETS
from spiketide.scan import Dynamics, recurrent_scan, scan
from spiketide.surrogate import (
    SLAYER,
    ATan,
    Boxcar,
    FastSigmoid,
    Gaussian,
    MultiGaussian,
    Sigmoid,
    Smooth,
    Triangle,
    spike_derivative,
)

pytestmark = pytest.mark.usefixtures("poisoned_memory")

F32, F64 = 1e-5, 1e-12


def tolerance(dtype: torch.dtype) -> float:
    return F32 if dtype == torch.float32 else F64


# ------------------------------------------------------------------------------------------------ the neurons' table

ADAPTIVE = ("delayed", *RESETS)
SURROGATES = (
    ATan(5.0),
    FastSigmoid(10.0),
    Sigmoid(4.0),
    Sigmoid(10.0, scaled=False),
    Triangle(0.5, 1.0),
    Gaussian(),
    MultiGaussian(),
    SLAYER(5.0, 0.4),
    Boxcar(),
)


def _cases() -> dict[str, Callable[[int], Neuron]]:
    """Name -> builder of a neuron for every model, reset, discretisation and input scaling of the package."""
    cases: dict[str, Callable[[int], Neuron]] = {}

    def add(name: str, cls: type[Neuron], **arguments: Any) -> None:
        cases[name] = lambda n: cls(n, **arguments)

    for reset in RESETS:
        add(f"IF-{reset}", IF, reset=reset, threshold=4.0 if reset == "none" else 0.9, learn=("threshold",))
        add(
            f"NormalizedLIF-{reset}",
            NormalizedLIF,
            decay=0.8,
            threshold=0.5 if reset == "none" else 0.2,
            reset=reset,
            learn=("decay", "threshold"),
        )
    add("NormalizedLIF-no leak", NormalizedLIF, leaky=False, threshold=0.9, learn=("threshold",))
    for disc, scaled in itertools.product(("exp", "euler"), (False, True)):
        how = {"discretisation": disc, "scale_input": scaled, "dt": 1.0}
        tail = f"{disc}-{'scaled' if scaled else 'plain'}"
        add(f"LeakyIntegrator-{tail}", LeakyIntegrator, tau_mem=4.0, learn=("tau_mem",), **how)
        for reset in RESETS:
            # what nothing brings down stays above the usual threshold
            threshold = (0.15 if scaled else 0.9) * (2.5 if reset == "none" else 1.0)
            add(
                f"LIF-{reset}-{tail}",
                LIF,
                tau_mem=6.0,
                threshold=threshold,
                reset=reset,
                learn=("tau_mem", "threshold"),
                **how,
            )
            learn = ("tau_mem", "tau_syn", "threshold")
            arguments = {
                "tau_mem": 6.0,
                "tau_syn": 2.5,
                "threshold": 2 * threshold,
                "reset": reset,
                "learn": learn,
            }
            add(f"CubaLIF-{reset}-{tail}", CubaLIF, **arguments, **how)
        for reset in ADAPTIVE:
            threshold = (0.1 if scaled else 0.6) * (2.0 if reset == "none" else 1.0)
            learn = ("tau_mem", "tau_adapt", "threshold", "adaptation")
            arguments = {
                "tau_mem": 6.0,
                "tau_adapt": 20.0,
                "threshold": threshold,
                "reset": reset,
                "learn": learn,
            }
            add(f"ALIF-{reset}-{tail}", ALIF, **arguments, **how)
            learn = ("tau_mem", "tau_adapt", "coupling", "jump", "threshold")
            arguments = {
                "tau_mem": 6.0,
                "tau_adapt": 20.0,
                "threshold": threshold,
                "reset": reset,
                "learn": learn,
            }
            add(f"AdLIF-{reset}-{tail}", AdLIF, **arguments, **how)
    for disc, reset in itertools.product(("exp", "euler"), RESETS):
        add(
            f"SEAdLIF-{reset}-{disc}-scaled",
            SEAdLIF,
            tau_mem=6.0,
            tau_adapt=70.0,
            coupling=0.5,
            jump=0.5,
            gain=20.0,
            threshold=0.1,
            reset=reset,
            discretisation=disc,
            learn=("tau_mem", "tau_adapt", "coupling", "jump", "threshold"),
        )
    add(
        "BalancedResonateFire",
        BalancedResonateFire,
        delta=0.1,
        decay_refractory=0.8,
        omega=7.0,
        damping=0.5,
        threshold=0.12,
        learn=("omega", "damping", "threshold"),
    )
    return cases


CASES = _cases()
COMPILED = (
    "IF-soft",
    "LIF-soft-exp-plain",
    "LIF-hard_detached-exp-plain",
    "CubaLIF-soft-exp-scaled",
    "ALIF-delayed-exp-scaled",
    "AdLIF-delayed-exp-scaled",
    "LeakyIntegrator-exp-scaled",
    "SEAdLIF-hard-exp-scaled",
    "BalancedResonateFire",
)


def current(steps: int, batch: int, *shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Input whose neurons fire now and then, with a mean that differs between neurons."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(steps, batch, *shape, generator=generator, dtype=torch.float64)
    return (0.35 + 0.6 * x).to(dtype)


def operands_of(neuron: Neuron, x: Tensor, *, seed: int = 3) -> dict[str, Tensor]:
    """Input, a state that is not zero, and constants that differ from neuron to neuron."""
    generator = torch.Generator().manual_seed(seed)
    size = x.shape[1:]
    state = [0.2 * torch.rand(size, generator=generator, dtype=torch.float64) for _ in neuron.states]
    coefs = []
    for coef in neuron.coefs():
        spread = 1 + 0.04 * torch.randn(x.shape[2:], generator=generator, dtype=torch.float64)
        value = coef.detach().double()
        coefs.append((value * spread).clamp(max=0.999 if float(value.max()) < 1 else 1e9))
    return named(x, [s.to(x.dtype) for s in state], [c.to(x.dtype) for c in coefs])


def compare(
    neuron: Neuron, operands: dict[str, Tensor], wanted: list[str] | None = None, **options: Any
) -> None:
    """The CPU engine against the reference."""
    dtype = operands["x"].dtype
    want = scanned(neuron.dynamics, neuron.surrogate, operands, "reference", wanted, **options)
    got = scanned(neuron.dynamics, neuron.surrogate, operands, "cpu", wanted, **options)
    if neuron.spiking and want.y.shape[0] > 15:
        assert_fires(want.y, type(neuron).__name__)
    assert_parity(got, want, rtol=tolerance(dtype))


def test_the_table_has_every_neuron_of_the_package() -> None:
    known = {
        cls.__name__
        for cls in vars(spiketide.neurons).values()
        if isinstance(cls, type) and issubclass(cls, Neuron)
    }
    missing = known - {name.split("-")[0] for name in CASES} - {"Neuron", "StepNeuron"}
    assert not missing, f"add {missing} to _cases() in {__file__}"
    assert len(CASES) == 5 + 6 + 4 * (1 + 5 + 5 + 6 + 6) + 2 * 5 + 1


@pytest.mark.parametrize("name", CASES)
def test_every_neuron_reset_and_discretisation(name: str) -> None:
    neuron = CASES[name](5)
    with interpreted():
        compare(neuron, operands_of(neuron, current(20, 3, 5)))


@pytest.mark.parametrize("name", COMPILED)
def test_compiled(name: str) -> None:
    neuron = CASES[name](7)
    compare(neuron, operands_of(neuron, current(63, 3, 7)))


FLOAT64 = [
    n
    for n in CASES
    if n.endswith(("-hard", "-delayed-exp-plain", "-delayed-exp-scaled", "-soft-euler-scaled"))
]


@pytest.mark.parametrize("name", FLOAT64)
def test_float64(name: str) -> None:
    neuron = CASES[name](4).double()
    with interpreted():
        compare(neuron, operands_of(neuron, current(20, 2, 4, dtype=torch.float64)))


@pytest.mark.parametrize("surrogate", SURROGATES, ids=repr)
def test_every_surrogate(surrogate: spiketide.surrogate.Surrogate) -> None:
    neuron = LIF(5, tau_mem=6.0, threshold=0.9, surrogate=surrogate)
    for dtype in (torch.float32, torch.float64):
        with interpreted():
            compare(neuron, operands_of(neuron, current(20, 3, 5, dtype=dtype)))


@pytest.mark.parametrize("surrogate", [MultiGaussian(), Sigmoid(4.0), Triangle(0.5, 1.0)], ids=repr)
def test_compiled_surrogates(surrogate: spiketide.surrogate.Surrogate) -> None:
    neuron = LIF(5, tau_mem=6.0, threshold=0.9, surrogate=surrogate)
    compare(neuron, operands_of(neuron, current(63, 3, 5)), ["x"])


# ------------------------------------------------------------------------------------------- torch written by hand


class HandSpike(torch.autograd.Function):
    """A spike with the arctangent's derivative, slope 2, written here on purpose without the library."""

    @staticmethod
    def forward(ctx: Any, u: Tensor) -> Tensor:
        ctx.save_for_backward(u)
        return (u > 0).to(u.dtype)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:  # type: ignore[override]
        (u,) = ctx.saved_tensors
        return g / (1 + (math.pi * u) ** 2)


def by_hand_lif(given: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
    v, decay, threshold = given["state0"], given["coef0"], given["coef1"]
    out = []
    for xt in given["x"].unbind(0):
        v = decay * v + xt
        s = HandSpike.apply(v - threshold)
        v = v - threshold * s
        out.append(s)
    return torch.stack(out), [v]


def by_hand_alif(given: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
    u, eta, s = given["state0"], given["state1"], given["state2"]
    alpha, rho, b0, beta = (given[f"coef{k}"] for k in range(4))
    out = []
    for xt in given["x"].unbind(0):
        eta = rho * eta + (1 - rho) * s
        theta = b0 + beta * eta
        u = alpha * u + (1 - alpha) * xt - theta * s
        s = HandSpike.apply(u - theta)
        out.append(s)
    return torch.stack(out), [u, eta, s]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("name", "by_hand"), [("LIF-soft-exp-plain", by_hand_lif), ("ALIF-delayed-exp-scaled", by_hand_alif)]
)
def test_handwritten_torch(name: str, by_hand: Callable[..., Any], dtype: torch.dtype) -> None:
    neuron = CASES[name](7)
    neuron.surrogate = ATan(2.0)
    operands = operands_of(neuron, current(63, 3, 7, dtype=dtype))
    want = differentiate(by_hand, operands)
    assert_fires(want.y)
    for engine in ("reference", "cpu"):
        got = scanned(neuron.dynamics, ATan(2.0), operands, engine)
        assert_parity(got, want, rtol=tolerance(dtype))


# ------------------------------------------------------------------------------------------------- shapes and layouts


@pytest.mark.parametrize("steps", [0, 1, 2, 63])
@pytest.mark.parametrize("shape", [(), (7,), (3, 5), (2, 3, 4)], ids=str)
def test_lengths_of_time_and_ranks(steps: int, shape: tuple[int, ...]) -> None:
    neuron = CASES["LIF-soft-exp-plain"](7)
    compare(neuron, operands_of(neuron_of_scalar_constants(neuron), current(steps, 3, *shape)))


def neuron_of_scalar_constants(neuron: Neuron) -> Neuron:
    return LIF(1, tau_mem=6.0, threshold=0.9) if isinstance(neuron, LIF) else neuron


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_short_sequences_of_a_neuron_that_rebuilds_its_past(steps: int) -> None:
    neuron = CASES["ALIF-delayed-exp-scaled"](7)
    compare(neuron, operands_of(neuron, current(steps, 3, 7)))


def test_an_empty_batch_and_an_empty_layer() -> None:
    for shape in ((5, 0, 7), (5, 3, 0)):
        x = torch.zeros(shape, requires_grad=True)
        for engine in ("reference", "cpu"):
            y, (v,) = scan(LIF(1).dynamics, x, None, (0.9, 1.0), ATan(2.0), engine=engine)
            assert y.shape == x.shape and v.shape == x.shape[1:]
            (grad,) = torch.autograd.grad(y.sum() + v.sum(), x)
            assert grad.shape == x.shape


@pytest.mark.parametrize("coef_shape", [(), (1,), (5,), (3, 1), (3, 5), (1, 5)], ids=str)
def test_coefficients_of_every_broadcast_shape(coef_shape: tuple[int, ...]) -> None:
    x = current(20, 2, 3, 5)
    coefs = [torch.full(coef_shape, 0.85), torch.full(coef_shape, 0.9)]
    neuron = CASES["LIF-soft-exp-plain"](7)
    compare(neuron, named(x, [torch.zeros(2, 3, 5)], coefs))


def test_numbers_and_tensors_as_coefficients_are_the_same_to_the_bit() -> None:
    dynamics, surrogate = LIF(1).dynamics, ATan(2.0)
    for dtype in (torch.float32, torch.float64):
        x = current(20, 2, 5, dtype=dtype)
        tensors = (torch.tensor(0.9, dtype=dtype), torch.tensor(0.7, dtype=dtype))
        for engine in ("reference", "cpu"):
            y, (v,) = scan(dynamics, x, None, (0.9, 0.7), surrogate, engine=engine)
            y2, (v2,) = scan(dynamics, x, None, tensors, surrogate, engine=engine)
            assert_same(y, y2, engine)
            assert_same(v, v2, engine)


def test_layouts_that_are_not_contiguous() -> None:
    neuron = CASES["LIF-soft-exp-plain"](6)
    plain = operands_of(neuron, current(20, 4, 6))
    want = scanned(neuron.dynamics, neuron.surrogate, plain, "cpu")
    strange = {
        "x": plain["x"].permute(2, 0, 1).contiguous().permute(1, 2, 0),
        "state0": plain["state0"].t().contiguous().t(),
        "coef0": torch.stack([plain["coef0"]] * 2, 1)[:, 0],
        "coef1": plain["coef1"].repeat_interleave(3)[::3],
    }
    for name, tensor in strange.items():
        assert not tensor.is_contiguous(), name
        assert torch.equal(tensor, plain[name])
    for engine in ("reference", "cpu"):
        assert_parity(scanned(neuron.dynamics, neuron.surrogate, strange, engine), want, rtol=F32)


def test_one_frame_repeated_without_memory_and_one_scalar_cotangent() -> None:
    frame = current(1, 3, 7)
    for engine in ("reference", "cpu"):
        x = frame.expand(20, 3, 7)  # stride 0, as the Direct encoder gives it
        y, _ = scan(LIF(1).dynamics, x, None, (0.9, 1.0), ATan(2.0), engine=engine)
        y2, _ = scan(LIF(1).dynamics, x.contiguous(), None, (0.9, 1.0), ATan(2.0), engine=engine)
        assert_same(y, y2)
    grads = []
    for engine in ("reference", "cpu"):
        x = current(20, 3, 7).requires_grad_()
        y, _ = scan(LIF(1).dynamics, x, None, (0.9, 1.0), ATan(2.0), engine=engine)
        y.sum().backward()  # a cotangent of stride 0
        grads.append(x.grad)
    assert_near(grads[1], grads[0], F32)


def test_inputs_are_left_as_they_were() -> None:
    neuron = CASES["ALIF-delayed-exp-scaled"](7)
    operands = operands_of(neuron, current(20, 3, 7))
    before = {name: tensor.clone() for name, tensor in operands.items()}
    scanned(neuron.dynamics, neuron.surrogate, operands, "cpu")
    for name, tensor in before.items():
        assert_same(operands[name], tensor, name)


def test_an_input_changed_in_place_before_the_backward_is_refused_not_used() -> None:
    layer = LeakyIntegrator(3, learn=("tau_mem",))  # its decay's gradient reads the input
    source = torch.rand(5, 2, 3)
    x = source.clone()
    y, _ = layer(x)
    x += 1.0
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


# --------------------------------------------------------------------------------------- gradients of some operands


@pytest.mark.parametrize(
    "wanted",
    [
        ["x"],
        ["state0"],
        ["coef0"],
        ["coef1"],
        ["coef3"],
        ["state1", "coef2"],
        ["x", "state2"],
        ["coef0", "coef1"],
    ],
    ids=", ".join,
)
def test_gradients_of_some_operands_only(wanted: list[str]) -> None:
    for name in ("LIF-soft-exp-plain", "ALIF-delayed-exp-scaled", "AdLIF-hard-exp-plain"):
        neuron = CASES[name](4)
        operands = operands_of(neuron, current(20, 2, 4))
        some = [w for w in wanted if w in operands]
        if some:
            with interpreted():
                compare(neuron, operands, some)
            full = scanned(neuron.dynamics, neuron.surrogate, operands, "reference")
            with interpreted():
                part = scanned(neuron.dynamics, neuron.surrogate, operands, "cpu", some)
            for key in some:
                assert_near(part.grads[key], full.grads[key], F32, key)


def test_a_backward_through_one_output_only() -> None:
    x = current(20, 2, 5)
    for pick in (lambda y, v: y.sum(), lambda y, v: v.square().sum(), lambda y, v: y[3].sum()):
        grads = []
        for engine in ("reference", "cpu"):
            xi = x.clone().requires_grad_()
            y, (v,) = scan(LIF(1).dynamics, xi, None, (0.9, 0.9), ATan(2.0), engine=engine)
            (grad,) = torch.autograd.grad(pick(y, v), xi)
            grads.append(grad)
        assert float(grads[0].abs().max()) > 0
        assert_near(grads[1], grads[0], F32)


# ------------------------------------------------------------------------------------------------------------ lengths


@pytest.mark.parametrize("name", ["LIF-soft-exp-plain", "ALIF-delayed-exp-scaled"])
def test_lengths(name: str) -> None:
    neuron = CASES[name](7)
    compare(neuron, operands_of(neuron, current(20, 5, 7)), lengths=torch.tensor([20, 0, 1, 13, 7]))


@pytest.mark.parametrize("name", [n for n in CASES if "exp-plain" in n or n.startswith("IF")])
def test_lengths_of_every_neuron(name: str) -> None:
    neuron = CASES[name](3)
    with interpreted():
        compare(
            neuron,
            operands_of(neuron, current(20, 4, 3)),
            lengths=torch.tensor([20, 0, 1, 13], dtype=torch.int32),
        )


def test_lengths_of_feature_maps_and_of_the_full_length() -> None:
    neuron = LIF((2, 3), tau_mem=6.0, threshold=0.9)
    operands = operands_of(neuron, current(20, 3, 2, 3))
    compare(neuron, operands, lengths=torch.tensor([4, 20, 11]))
    full = scanned(neuron.dynamics, neuron.surrogate, operands, "cpu", lengths=torch.tensor([20, 20, 20]))
    free = scanned(neuron.dynamics, neuron.surrogate, operands, "cpu")
    assert_parity(full, free, rtol=1e-7)


# -------------------------------------------------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("lengths", [None, torch.tensor([20, 0, 7])], ids=["all", "lengths"])
@pytest.mark.parametrize("name", ["LIF-soft-exp-plain", "ALIF-delayed-exp-scaled"])
def test_checkpoints_are_exact_to_the_bit(name: str, lengths: Tensor | None) -> None:
    neuron = CASES[name](7)
    operands = operands_of(neuron, current(20, 3, 7))
    want = scanned(neuron.dynamics, neuron.surrogate, operands, "cpu", lengths=lengths)
    for size in (1, 3, 7, 19, 20, 50):
        got = scanned(neuron.dynamics, neuron.surrogate, operands, "cpu", lengths=lengths, checkpoint=size)
        assert_same(got.y, want.y)
        for k, (a, b) in enumerate(zip(got.final, want.final, strict=True)):
            assert_same(a, b, f"state {k}, chunks of {size}")
        for key, grad in want.grads.items():
            assert_same(got.grads[key], grad, f"gradient of {key}, chunks of {size}")


def test_checkpoints_on_the_reference_engine_and_of_nothing() -> None:
    neuron = CASES["LIF-soft-exp-plain"](7)
    operands = operands_of(neuron, current(20, 3, 7))
    want = scanned(neuron.dynamics, neuron.surrogate, operands, "reference")
    got = scanned(neuron.dynamics, neuron.surrogate, operands, "reference", checkpoint=6)
    assert_parity(got, want, rtol=F32)
    empty = operands_of(neuron, current(0, 3, 7))
    assert_parity(
        scanned(neuron.dynamics, neuron.surrogate, empty, "cpu", checkpoint=4),
        scanned(neuron.dynamics, neuron.surrogate, empty, "reference"),
        rtol=F32,
    )


def test_checkpoints_keep_less() -> None:
    def kept(checkpoint: int | None) -> int:
        total = 0

        def pack(tensor: Tensor) -> Tensor:
            nonlocal total
            total += tensor.numel()
            return tensor

        x = current(100, 2, 7).requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            scan(LIF(1).dynamics, x, None, (0.9, 1.0), ATan(2.0), engine="cpu", checkpoint=checkpoint)
        return total

    state, series = 2 * 7, 100 * 2 * 7
    assert kept(None) == series + state + 2  # one value a step, the initial state, two coefficients
    assert kept(10) == series + 10 * state + state + 2  # the input (not a copy) and ten states


def test_checkpoint_of_nonsense_is_refused() -> None:
    with pytest.raises(ParameterError, match="checkpoint expected a number of steps >= 1, got 0"):
        scan(LIF(1).dynamics, current(5, 2, 3), None, (0.9, 1.0), ATan(2.0), checkpoint=0)
    with pytest.raises(ParameterError, match="checkpoint expected a number of steps >= 1 or None, got 2.5"):
        LIF(3, checkpoint=2.5)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------------ threads


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="one core")
def test_threads_change_nothing_and_are_torchs(two_threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[int] = []
    dispatcher = threading.Kernel.dispatcher

    def watch(self: threading.Kernel, parallel: bool) -> Callable[..., Any]:
        compiled = dispatcher(self, parallel)

        def call(*arguments: Any) -> Any:
            used.append(numba.get_num_threads() if parallel else 1)
            return compiled(*arguments)

        return call

    monkeypatch.setattr(threading.Kernel, "dispatcher", watch)
    before = numba.get_num_threads()
    neuron = CASES["LIF-soft-exp-plain"](400)  # large enough to be worth sharing
    operands = operands_of(neuron, current(100, 8, 400))
    layer = Recurrent(LIF(60, tau_mem=6.0), Dense(60, 60))
    x = current(40, 20, 60)
    outcomes, recurrent = [], []
    for count in (2, 1):
        torch.set_num_threads(count)
        used.clear()
        outcomes.append(scanned(neuron.dynamics, neuron.surrogate, operands, "cpu"))
        assert set(used) == {count}
        layer.zero_grad()
        y, _ = layer(x)
        assert_fires(y)
        y.sum().backward()
        recurrent.append((y.detach(), layer.synapse.weight.grad.clone()))
        assert set(used) == {count}
    assert numba.get_num_threads() == before
    assert_fires(outcomes[0].y)
    for key, grad in outcomes[0].grads.items():
        assert_same(outcomes[1].grads[key], grad, key)
    assert_same(outcomes[1].y, outcomes[0].y)
    assert_same(recurrent[1][0], recurrent[0][0])
    assert_near(recurrent[1][1], recurrent[0][1], F32)  # the last product is torch's


# ------------------------------------------------------------------------------------------- dtypes and torch's modes


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_inputs_are_computed_in_float32(dtype: torch.dtype) -> None:
    x = current(20, 3, 7).to(dtype)
    dynamics, surrogate = LIF(1).dynamics, ATan(2.0)
    for engine in ("reference", "cpu"):
        low, wide = x.clone().requires_grad_(), x.float().requires_grad_()
        y, (v,) = scan(dynamics, low, None, (0.9, 0.9), surrogate, engine=engine)
        y2, (v2,) = scan(dynamics, wide, None, (0.9, 0.9), surrogate, engine=engine)
        assert_fires(y2)
        assert y.dtype == dtype and v.dtype == torch.float32
        assert_same(y.float(), y2)
        assert_same(v, v2)
        (g,) = torch.autograd.grad(y.float().sum() + v.sum(), low)
        (g2,) = torch.autograd.grad(y2.sum() + v2.sum(), wide)
        assert g.dtype == dtype
        assert_same(g, g2.to(dtype))


def test_a_layer_takes_half_inputs_and_goes_on_from_its_state() -> None:
    layer = LIF(7, tau_mem=6.0, threshold=0.9)
    x = current(20, 3, 7).bfloat16()
    whole, (v,) = layer(x)
    first, state = layer(x[:8])
    rest, (v2,) = layer(x[8:], state)
    assert whole.dtype == torch.bfloat16 and v.dtype == torch.float32
    assert_fires(whole)
    assert_same(torch.cat([first, rest]), whole)
    assert_same(v2, v)


def test_autocast() -> None:
    model = Sequential(Dense(9, 12), LIF(12, tau_mem=6.0, threshold=0.3), Dense(12, 3), LeakyIntegrator(3))
    x = current(20, 3, 9)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, state = model(x)
        drive, _ = model[0](x)
        spikes, (v,) = model[1](drive)
    assert drive.dtype == torch.bfloat16, "autocast did nothing, so this tests nothing"
    assert_fires(spikes)
    plain, (v_plain,) = model[1](drive.float())
    assert_same(spikes.float(), plain)
    assert_same(v, v_plain)
    y.float().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and bool(torch.isfinite(parameter.grad).all()), name
        assert parameter.grad.dtype == torch.float32
    assert float(model[0].weight.grad.abs().max()) > 0


def test_autocast_does_not_reach_into_the_scan() -> None:
    weight = 0.3 * torch.randn(7, 7)
    x = current(20, 3, 7)
    dynamics, surrogate = LIF(1).dynamics, ATan(2.0)
    for engine in ("reference", "cpu"):
        plain, end = recurrent_scan(dynamics, x, None, (0.9, 0.9), surrogate, weight, engine=engine)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed, end2 = recurrent_scan(dynamics, x, None, (0.9, 0.9), surrogate, weight, engine=engine)
        assert_fires(plain)
        assert_same(mixed, plain, engine)
        assert_near(end2[0], end[0], F32, engine)


def test_nothing_is_kept_without_gradients() -> None:
    layer = LIF(3, learn=("tau_mem",))
    x = torch.rand(5, 2, 3, requires_grad=True)
    for mode in (torch.no_grad, torch.inference_mode):
        kept: list[Tensor] = []
        with (
            torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t) or t, lambda t: t),
            mode(),
        ):
            y, (v,) = layer(x)
        assert not kept and not y.requires_grad and not v.requires_grad
    with_gradients, _ = layer(x)
    assert with_gradients.requires_grad
    assert_same(with_gradients.detach(), y)
    y, _ = LIF(3)(x.detach())
    assert not y.requires_grad


@pytest.mark.parametrize("checkpoint", [None, 4])
def test_two_backwards_through_one_graph(checkpoint: int | None) -> None:
    x = current(20, 3, 7).requires_grad_()
    decay = torch.tensor(0.9, requires_grad=True)
    y, (v,) = scan(LIF(1).dynamics, x, None, (decay, 0.9), ATan(2.0), engine="cpu", checkpoint=checkpoint)
    loss = y.sum() + v.square().sum()
    first = torch.autograd.grad(loss, (x, decay), retain_graph=True)
    second = torch.autograd.grad(loss, (x, decay))
    for a, b in zip(first, second, strict=True):
        assert_same(a, b)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(loss, (x, decay))


def test_second_derivatives_are_refused_not_silently_dropped() -> None:
    x = current(20, 3, 7).requires_grad_()
    y, _ = LIF(7)(x)
    with pytest.raises(EngineError, match='engine="reference"'):
        torch.autograd.grad(y.sum(), x, create_graph=True)
    y, _ = Recurrent(LIF(7), Dense(7, 7))(x)
    with pytest.raises(EngineError, match="first derivatives only"):
        torch.autograd.grad(y.sum(), x, create_graph=True)
    y, _ = LIF(7, engine="reference")(x)
    (grad,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(grad.square().sum(), x)
    assert float(second.abs().max()) > 0


# --------------------------------------------------------------------------------------------------- steps of users


def quadratic(x: Any, v: Any, decay: Any, threshold: Any) -> Any:
    v = decay * v * (1 + 0.1 * v) + x
    s = spike(v - threshold)
    return s, torch.where(s > 0, torch.clamp(v - threshold, -0.5, 0.5), v)


def everything(x: Any, v: Any, w: Any, decay: Any, threshold: Any) -> Any:
    drive = torch.tanh(x) + torch.sigmoid(w) * 0.1 - torch.exp(-torch.abs(v)) * 0.05
    gate = (v > -0.5) & ~(w >= 2.0) | (x == 0.0)
    v = torch.where(gate, decay * v + drive, 0.5 * v)
    w = torch.maximum(decay * w, torch.minimum(w, x)) + 0.01 * (v**2 - abs(w) ** 3) / (1 + v.square())
    w = w + 0.01 * torch.sin(v) * torch.cos(w) + 0.01 * torch.log(1.5 + v * v) - 0.01 * torch.sqrt(1 + w * w)
    w = w + 0.01 * torch.atan(w) + 0.01 * torch.erf(v) + 0.01 * torch.relu(v) + (1.0 + w * w) ** -0.5 * 0.01
    s = spike(v - threshold)
    return s, v - threshold * s.detach(), w + 0.1 * s


def comparing(x: Any, v: Any, threshold: Any) -> Any:
    # (a number times a comparison is float32 in torch, whatever the rest is)
    v = 0.8 * v + x + 0.1 * (v < 0).to(v.dtype) - 0.05 * (v <= -0.2).to(v.dtype) + 0.01 * (x != 0).to(v.dtype)
    s = spike(v - threshold)
    return s, v * (1 - s)


def constants_out(x: Any, v: Any, w: Any, threshold: Any) -> Any:
    s = spike(0.9 * w + x - threshold)
    return s, 0.0, threshold * 0.5


def reading_the_past(x: Any, v: Any, w: Any, threshold: Any) -> Any:
    # the output is the state of before, the state is the input of before
    return v, w, x


def unbounded(x: Any, v: Any, threshold: Any) -> Any:
    v = torch.clamp(0.8 * v + x, min=-math.inf, max=2.0)
    s = spike(v - threshold)
    return s, torch.where(v > math.inf, 0.0, v - threshold * s)


USERS = {
    f.__name__: (f, states, coefs)
    for f, states, coefs in [
        (quadratic, ("v",), (0.85, 0.8)),
        (everything, ("v", "w"), (0.9, 0.6)),
        (comparing, ("v",), (0.7,)),
        (constants_out, ("v", "w"), (0.6,)),
        (reading_the_past, ("v", "w"), (0.6,)),
        (unbounded, ("v",), (0.7,)),
    ]
}


@pytest.mark.parametrize("name", USERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_steps_of_users(name: str, dtype: torch.dtype) -> None:
    step, states, coefs = USERS[name]
    x = current(20, 3, 5, dtype=dtype)
    dynamics = Dynamics(states, tuple(f"c{k}" for k in range(len(coefs))), step)
    operands = named(
        x,
        [0.3 * current(1, 3, 5, dtype=dtype, seed=k)[0] for k in range(len(states))],
        [torch.tensor(c, dtype=dtype) for c in coefs],
    )
    want = scanned(dynamics, FastSigmoid(5.0), operands, "reference")
    if name != "reading_the_past":
        assert_fires(want.y, name)
    with interpreted():
        got = scanned(dynamics, FastSigmoid(5.0), operands, "cpu")
    assert_parity(got, want, rtol=tolerance(dtype), bits=name != "everything")


def test_a_step_with_every_function_compiled() -> None:
    step, states, coefs = USERS["everything"]
    operands = named(current(63, 3, 5), [torch.zeros(3, 5)] * 2, [torch.tensor(c) for c in coefs])
    dynamics = Dynamics(states, ("decay", "threshold"), step)
    want = scanned(dynamics, ATan(2.0), operands, "reference", ["x"])
    assert_parity(scanned(dynamics, ATan(2.0), operands, "cpu", ["x"]), want, rtol=F32, bits=False)


def test_ties_share_the_gradient_as_in_torch() -> None:
    def step(x: Any, v: Any, c: Any) -> Any:
        return torch.maximum(x, c) + torch.minimum(x, c) * 2 + abs(x - c) + torch.clamp(x, -1.0, 1.0), v

    x = torch.tensor([[[0.5, -1.0, 1.0, 0.3]]])
    operands = named(x, [torch.zeros(1, 4)], [torch.full((4,), 0.5)])
    dynamics = Dynamics(("v",), ("c",), step)
    want = scanned(dynamics, ATan(2.0), operands, "reference")
    with interpreted():
        assert_parity(scanned(dynamics, ATan(2.0), operands, "cpu"), want, rtol=F32)


def branching(x: Any, v: Any, threshold: Any) -> Any:
    if (v > 100).any():
        v = v * 0
    v = 0.8 * v + x
    s = spike(v - threshold)
    return s, v - threshold * s


def bare_branch(x: Any, v: Any, threshold: Any) -> Any:
    v = 0.8 * v + x
    if v > threshold:
        v = v - threshold
    return v, v


def strange_power(x: Any, v: Any, threshold: Any) -> Any:
    v = 0.5 * v + 0.2 * 2.0**x
    s = spike(v - threshold)
    return s, v - threshold * s


def unknown_function(x: Any, v: Any, threshold: Any) -> Any:
    v = 0.2 * v + 0.5 * torch.sinc(x)
    s = spike(v - threshold)
    return s, v - threshold * s


def unknown_option(x: Any, v: Any, threshold: Any) -> Any:
    v = torch.add(0.8 * v, x, alpha=0.5)
    s = spike(v - threshold)
    return s, v - threshold * s


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (branching, r"do not know \.any"),
        (strange_power, r"step cannot be traced: TypeError: unsupported operand"),
        (unknown_function, r"do not know torch\.sinc"),
        (unknown_option, r"unexpected keyword argument 'alpha'"),
    ],
)
def test_a_step_that_cannot_be_traced(step: Callable[..., Any], message: str) -> None:
    dynamics = Dynamics(("v",), ("threshold",), step)
    x = current(20, 2, 3)
    with pytest.raises(EngineError, match=message) as refused:
        scan(dynamics, x, None, (0.5,), ATan(2.0), engine="cpu")
    assert 'engine="reference" can' in str(refused.value)
    with pytest.warns(UserWarning, match=f"reference engine, a slow loop: .*{message}"):
        y, (v,) = scan(dynamics, x, None, (0.5,), ATan(2.0))
    assert_fires(y)
    want, state = [], torch.zeros(2, 3)
    with spiketide.surrogate.use(ATan(2.0)):
        for xt in x:
            s, state = step(xt, state, 0.5)
            want.append(s)
    assert_same(y, torch.stack(want))
    assert_same(v, state)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once, not at every call
        scan(dynamics, x, None, (0.5,), ATan(2.0))


@pytest.mark.parametrize(("dim", "mixes"), [(None, True), (0, True), (-1, False)])
def test_a_step_that_mixes_the_samples_of_a_batch_is_told_of(dim: int | None, mixes: bool) -> None:
    def step(x: Any, v: Any, decay: Any) -> Any:
        v = decay * v + x - (v.mean() if dim is None else v.mean(dim, keepdim=True))
        return spike(v - 1.0), v

    with pytest.warns(UserWarning, match=r"do not know \.mean") as said:
        scan(Dynamics(("v",), ("decay",), step), current(5, 2, 3), None, (0.5,), ATan(2.0))
    assert ("mixes the samples of a batch" in str(said[0].message)) == mixes


def test_a_branch_on_a_value_says_what_to_write_instead() -> None:
    with pytest.raises(EngineError, match=r"replace `if` by torch\.where\(condition, a, b\)"):
        scan(
            Dynamics(("v",), ("threshold",), bare_branch),
            current(5, 2, 3),
            None,
            (0.5,),
            ATan(2.0),
            engine="cpu",
        )
    with pytest.raises(EngineError, match=r"torch\.where"):
        StepNeuron(3, bare_branch, states=("v",), constants={"threshold": 0.5}, engine="cpu")


def test_wrong_numbers_of_values_and_tensors_from_outside() -> None:
    def too_few(x: Any, v: Any, threshold: Any) -> Any:
        return spike(v - threshold)

    outside = torch.ones(3)

    def closing_over(x: Any, v: Any, threshold: Any) -> Any:
        v = v + outside * x
        return spike(v - threshold), v

    x = current(5, 2, 3)
    with pytest.raises(EngineError, match=r"step must return 2 values \(s, v'\), got 1"):
        scan(Dynamics(("v",), ("threshold",), too_few), x, None, (0.5,), ATan(2.0), engine="cpu")
    # as many samples as values: taken apart, the batch would pass for spikes and state
    with pytest.raises(EngineError, match=r"step must return 2 values \(s, v'\), got 1"):
        scan(Dynamics(("v",), ("threshold",), too_few), x, None, (0.5,), ATan(2.0), engine="reference")
    with_vjp = Dynamics(("v",), ("threshold",), too_few, lambda gs, gv, x, v, threshold: (gs, gv, 0.0))
    with pytest.raises(EngineError, match=r"step must return 2 values \(s, v'\), got 1"):
        scan(with_vjp, x, None, (0.5,), ATan(2.0), engine="reference")
    with pytest.raises(EngineError, match=r"pass tensors as coefs"):
        scan(Dynamics(("v",), ("threshold",), closing_over), x, None, (0.5,), ATan(2.0), engine="cpu")


# ------------------------------------------------------------------------------------------- hand-written backwards


def plain_step(x: Any, v: Any, decay: Any, threshold: Any) -> Any:
    v = decay * v + x
    s = spike(v - threshold)
    return s, v - threshold * s


def right_vjp(gs: Any, gv: Any, x: Any, v: Any, decay: Any, threshold: Any) -> Any:
    u = decay * v + x
    s = spike(u - threshold)
    ds = (gs - threshold * gv) * spike_derivative(u - threshold)
    gu = ds + gv
    return gu, gu * decay, gu * v, -ds - s * gv


def vjp_without_the_reset(gs: Any, gv: Any, x: Any, v: Any, decay: Any, threshold: Any) -> Any:
    u = decay * v + x
    s = spike(u - threshold)
    ds = gs * spike_derivative(u - threshold)
    gu = ds + gv
    return gu, gu * decay, gu * v, -ds - s * gv


def vjp_of_numbers(gs: Any, gv: Any, x: Any, v: Any, decay: Any, threshold: Any) -> Any:
    return gs, 0.0, 0.0, 1.0


HAND_STATES, HAND_COEFS = ("v",), ("decay", "threshold")


def vjp_outcome(step_vjp: Callable[..., Any] | None, engine: str, **options: Any) -> Any:
    x = current(20, 3, 5)
    operands = named(x, [torch.zeros(3, 5)], [torch.full((5,), 0.85), torch.tensor(0.9)])
    dynamics = Dynamics(HAND_STATES, HAND_COEFS, plain_step, step_vjp)
    with interpreted():
        return scanned(dynamics, ATan(2.0), operands, engine, **options)


def test_a_hand_written_backward_is_used_by_all_engines() -> None:
    derived = vjp_outcome(None, "reference")
    assert_fires(derived.y)
    for engine in ("reference", "cpu"):
        assert_parity(vjp_outcome(right_vjp, engine), derived, rtol=F32)
        lengths = torch.tensor([20, 4, 0])
        assert_parity(
            vjp_outcome(right_vjp, engine, lengths=lengths),
            vjp_outcome(None, engine, lengths=lengths),
            rtol=F32,
        )
    # a strange one shows that it is really what runs
    for engine in ("reference", "cpu"):
        odd = vjp_outcome(vjp_of_numbers, engine)
        assert float(odd.grads["state0"].abs().max()) == 0.0
        assert_near(odd.grads["coef1"], torch.tensor(20.0 * 3 * 5), F32)


def test_a_wrong_hand_written_backward_is_detected() -> None:
    derived = vjp_outcome(None, "reference")
    for engine in ("reference", "cpu"):
        with pytest.raises(AssertionError, match="gradient of x: off by"):
            assert_parity(vjp_outcome(vjp_without_the_reset, engine), derived, rtol=F32)


def test_a_hand_written_backward_of_another_number_of_values() -> None:
    def short(gs: Any, gv: Any, x: Any, v: Any, decay: Any, threshold: Any) -> Any:
        return gs, gv

    with pytest.raises(EngineError, match=r"step_vjp must return 4 values \(gx, \*gstate, \*gcoefs\), got 2"):
        vjp_outcome(short, "cpu")


# ---------------------------------------------------------------------------------------------------------- recurrent


def grid(*shape: int, step: float = 1 / 64, low: int = -16, high: int = 72, seed: int = 0) -> Tensor:
    """Multiples of a power of two: their sums are exact in any order, so engines may not differ by a bit."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high, shape, generator=generator).float() * step


def recurrent_operands(batch: int, n: int, *, steps: int = 20, states: int = 1) -> dict[str, Tensor]:
    x = grid(steps, batch, n)
    state = [grid(batch, n, low=0, high=20, seed=4 + k) for k in range(states)]
    matrix = (
        grid(n, n, low=-24, high=24, seed=5) * (4 / n)
        if n & (n - 1) == 0
        else grid(n, n, low=-10, high=10, seed=5)
    )
    previous = (grid(batch, n, seed=6) > 0.2).float()
    return named(x, state, [torch.tensor(0.5), torch.full((n,), 1.0)], matrix=matrix, previous=previous)


SIMPLE = Dynamics(("v",), ("decay", "threshold"), plain_step)


@pytest.mark.parametrize(("batch", "n"), [(1, 8), (3, 6), (4, 5), (5, 7), (9, 16)])
def test_recurrent_is_the_reference(batch: int, n: int) -> None:
    operands = recurrent_operands(batch, n)
    want = scanned(SIMPLE, ATan(2.0), operands, "reference")
    got = scanned(SIMPLE, ATan(2.0), operands, "cpu")
    assert_fires(want.y)
    assert torch.equal(want.final[-1], want.y[-1])
    assert_same(got.y, want.y, "spikes")
    for k, (a, b) in enumerate(zip(got.final, want.final, strict=True)):
        assert_same(a, b, f"state {k}")
    assert set(want.grads) == {"x", "state0", "coef0", "coef1", "matrix", "previous"}
    for key, grad in want.grads.items():
        assert float(grad.abs().max()) > 0, key
        assert_near(got.grads[key], grad, F32, key)


@pytest.mark.parametrize("name", ["LIF-soft-exp-plain", "ALIF-delayed-exp-scaled", "AdLIF-delayed-exp-plain"])
@pytest.mark.parametrize("lengths", [None, [20, 0, 1, 13, 7]], ids=["all", "lengths"])
def test_recurrent_neurons_in_float64(name: str, lengths: list[int] | None) -> None:
    neuron = CASES[name](6).double()
    operands = operands_of(neuron, current(20, 5, 6, dtype=torch.float64))
    operands["matrix"] = 0.3 * torch.randn(6, 6, dtype=torch.float64)
    operands["previous"] = (torch.rand(5, 6, dtype=torch.float64) > 0.6).double()
    options = {"lengths": None if lengths is None else torch.tensor(lengths)}
    want = scanned(neuron.dynamics, neuron.surrogate, operands, "reference", **options)
    assert_fires(want.y)
    with interpreted():
        got = scanned(neuron.dynamics, neuron.surrogate, operands, "cpu", **options)
    assert_parity(got, want, rtol=1e-11, bits=False)
    assert_same(got.y, want.y)
    if lengths is not None:
        assert_same(want.final[-1][1], operands["previous"][1])


def test_recurrent_lengths_compiled() -> None:
    operands = recurrent_operands(5, 7)
    lengths = torch.tensor([20, 0, 1, 13, 7])
    want = scanned(SIMPLE, ATan(2.0), operands, "reference", lengths=lengths)
    got = scanned(SIMPLE, ATan(2.0), operands, "cpu", lengths=lengths)
    assert_same(got.y, want.y)
    assert_same(got.final[-1], want.final[-1])
    for key, grad in want.grads.items():
        assert_near(got.grads[key], grad, F32, key)
    assert float(got.y[1:, 2].abs().max()) == 0 and float(got.grads["x"][1:, 2].abs().max()) == 0


@pytest.mark.parametrize("lengths", [None, torch.tensor([20, 0, 9, 13, 7])], ids=["all", "lengths"])
def test_recurrent_checkpoints_are_exact_to_the_bit(lengths: Tensor | None) -> None:
    operands = recurrent_operands(5, 7)
    want = scanned(SIMPLE, ATan(2.0), operands, "cpu", lengths=lengths)
    for size in (1, 3, 7, 20, 50):
        got = scanned(SIMPLE, ATan(2.0), operands, "cpu", lengths=lengths, checkpoint=size)
        assert_same(got.y, want.y)
        for key, grad in want.grads.items():
            assert_same(got.grads[key], grad, f"{key}, chunks of {size}")


def test_a_recurrent_sample_does_not_depend_on_its_neighbours_nor_its_place() -> None:
    torch.manual_seed(3)
    x, matrix = current(20, 9, 7), 0.4 * torch.randn(7, 7)

    def run(samples: list[int]) -> tuple[Tensor, Tensor]:
        xi = x[:, samples].clone().requires_grad_()
        y, _ = recurrent_scan(SIMPLE, xi, None, (0.9, 0.9), ATan(2.0), matrix, engine="cpu")
        (grad,) = torch.autograd.grad((y * torch.arange(20.0).view(-1, 1, 1)).sum(), xi)
        return y, grad

    y, grad = run(list(range(9)))
    assert_fires(y)
    for samples in ([8], [2, 5, 0], [7, 6, 5, 4, 3]):
        some, some_grad = run(samples)
        assert_same(some, y[:, samples])
        assert_same(some_grad, grad[:, samples])


@pytest.mark.parametrize("wanted", [["x"], ["matrix"], ["previous"], ["coef0"], ["state0"]], ids=str)
def test_recurrent_gradients_of_one_operand(wanted: list[str]) -> None:
    operands = recurrent_operands(3, 6)
    full = scanned(SIMPLE, ATan(2.0), operands, "reference")
    with interpreted():
        part = scanned(SIMPLE, ATan(2.0), operands, "cpu", wanted)
    for key in wanted:
        assert_near(part.grads[key], full.grads[key], F32, key)


@pytest.mark.parametrize("steps", [0, 1])
def test_short_recurrent_sequences(steps: int) -> None:
    operands = recurrent_operands(3, 6, steps=steps)
    want = scanned(SIMPLE, ATan(2.0), operands, "reference")
    for checkpoint in (None, 2):
        with interpreted():
            got = scanned(SIMPLE, ATan(2.0), operands, "cpu", checkpoint=checkpoint)
        assert_parity(got, want, rtol=F32)


def test_graded_feedback_is_multiplied_not_counted() -> None:
    def graded(x: Any, v: Any, decay: Any, threshold: Any) -> Any:
        v = decay * v + x
        return torch.relu(v - threshold), v

    operands = recurrent_operands(3, 6)
    operands["previous"] = grid(3, 6)
    operands["matrix"] = operands["matrix"] * 0.25
    dynamics = Dynamics(("v",), ("decay", "threshold"), graded)
    want = scanned(dynamics, ATan(2.0), operands, "reference")
    assert len(want.y.unique()) > 20
    with interpreted():
        assert_parity(scanned(dynamics, ATan(2.0), operands, "cpu"), want, rtol=F32, bits=False)


def test_feedback_by_any_callable() -> None:
    matrix = grid(6, 6, low=-10, high=10)
    x = grid(20, 3, 6)
    want, end = recurrent_scan(SIMPLE, x, None, (0.5, 1.0), ATan(2.0), matrix, engine="reference")
    got, end2 = recurrent_scan(SIMPLE, x, None, (0.5, 1.0), ATan(2.0), lambda s: s @ matrix.t())
    assert_fires(want)
    assert_same(got, want)
    assert_same(end2[0], end[0])
    kernel = torch.tensor([[[0.5, -0.25, 0.5]]])
    maps = grid(20, 3, 1, 6)

    def convolve(s: Tensor) -> Tensor:
        return torch.nn.functional.conv1d(s, kernel, padding=1)

    y, (v, last) = recurrent_scan(SIMPLE, maps, None, (0.5, 1.0), ATan(2.0), convolve)
    assert y.shape == maps.shape and v.shape == last.shape == maps.shape[1:]
    s, v2, want_y = torch.zeros(3, 1, 6), torch.zeros(3, 1, 6), []
    for xt in maps:
        v2 = 0.5 * v2 + (xt + convolve(s))
        s = (v2 - 1.0 > 0).float()
        v2 = v2 - s
        want_y.append(s)
    assert_same(y, torch.stack(want_y))


def test_recurrent_errors() -> None:
    x, w = torch.rand(5, 2, 4), torch.rand(4, 4)

    def run(*arguments: Any, x: Tensor = x, **options: Any) -> Any:
        return recurrent_scan(SIMPLE, x, None, (0.5, 1.0), ATan(2.0), *arguments, **options)

    with pytest.raises(EngineError, match='a callable feedback runs on engine="reference" only'):
        run(lambda s: s, engine="cpu")
    with pytest.raises(EngineError, match="unknown engine 'cuda'.*Known: cpu, gpu, reference"):
        run(w, engine="cuda")
    with pytest.raises(ShapeError, match=r"a matrix \(N, N\), got \(5, 2, 4\) and \(4, 3\)"):
        run(w[:, :3])
    with pytest.raises(ShapeError, match=r"expected x \(T, B, N\) and a matrix"):
        run(w, x=torch.rand(5, 2, 2, 2))
    with pytest.raises(ShapeError, match=r"previous of shape \(2, 4\), got \(1, 4\)"):
        run(w, previous=torch.zeros(1, 4))
    with pytest.raises(ShapeError, match="lengths from 0 to T = 5, got 2 to 6"):
        run(w, lengths=torch.tensor([2, 6]))
    with pytest.raises(ParameterError, match="checkpoint expected"):
        run(w, checkpoint=0)


def test_a_length_beyond_the_arrays_does_not_write_there() -> None:
    # the look at the values is left out under torch.compile; the kernel must be safe by itself
    from spiketide.scan import recurrent
    from spiketide.scan.dynamics import register

    key = register(SIMPLE, ATan(2.0))
    x, w = grid(5, 2, 4), grid(4, 4)
    arguments = (key, x, [torch.zeros(2, 4)], torch.zeros(2, 4), [torch.tensor(0.5), torch.tensor(1.0)], w)
    with interpreted():  # Python checks the bounds, compiled code would not
        y, _, last, _ = recurrent.forward(*arguments, torch.tensor([9, 5]), None)
        want, _, last2, _ = recurrent.forward(*arguments, torch.tensor([5, 5]), None)
    assert_same(y, want)
    assert_same(last, last2)


def test_scan_errors() -> None:
    x = torch.rand(5, 2, 4)

    def run(x: Any = x, state: Any = None, coefs: Any = (0.5, 1.0), **options: Any) -> Any:
        return scan(SIMPLE, x, state, coefs, ATan(2.0), **options)

    with pytest.raises(ShapeError, match="floating tensor"):
        run(torch.ones(5, 2, 4, dtype=torch.int64))
    with pytest.raises(ShapeError, match="floating tensor"):
        run(np.zeros((5, 2, 4)))
    with pytest.raises(ShapeError, match=r"\(T, B, \*N\), got \(5,\) with 1 axes"):
        run(torch.rand(5))
    with pytest.raises(ShapeError, match=r"expected 1 state tensors \('v',\), got 2"):
        run(state=(torch.zeros(2, 4), torch.zeros(2, 4)))
    with pytest.raises(ShapeError, match=r"state v of shape \(2, 4\), got \(3, 4\).*one batch size"):
        run(state=(torch.zeros(3, 4),))
    with pytest.raises(ShapeError, match=r"expected 2 coefs \('decay', 'threshold'\), got 1"):
        run(coefs=(0.5,))
    with pytest.raises(ShapeError, match=r"coef decay to be a scalar or broadcastable to \(4,\), got \(3,\)"):
        run(coefs=(torch.zeros(3), 1.0))
    with pytest.raises(ShapeError, match=r"coef threshold.*got \(2, 4\)"):
        run(coefs=(0.5, torch.zeros(2, 4)))
    with pytest.raises(EngineError, match="unknown engine 'refrence'; did you mean 'reference'"):
        run(engine="refrence")
    for lengths, message in [
        (torch.tensor([5.0, 5.0]), r"lengths \(2,\) of integers.*float32"),
        (torch.tensor([True, False]), "of integers.*bool"),
        (torch.tensor([5]), r"lengths \(2,\) of integers"),
        (torch.tensor([-1, 5]), "from 0 to T = 5, got -1 to 5"),
        (torch.tensor([3, 6]), "from 0 to T = 5, got 3 to 6"),
    ]:
        with pytest.raises(ShapeError, match=message):
            run(lengths=lengths)
    with pytest.raises(ParameterError, match="expected a surrogate such as"):
        scan(SIMPLE, x, None, (0.5, 1.0), ATan)  # type: ignore[arg-type]


def test_smooth_twins_run_and_differ_from_spikes() -> None:
    x = current(20, 2, 5, dtype=torch.float64)
    operands = named(
        x, [torch.zeros(2, 5, dtype=torch.float64)], [torch.tensor(0.9).double(), torch.tensor(0.9).double()]
    )
    want = scanned(SIMPLE, Smooth(FastSigmoid(3.0)), operands, "reference")
    assert len(want.y.unique()) > 100
    with interpreted():
        assert_parity(scanned(SIMPLE, Smooth(FastSigmoid(3.0)), operands, "cpu"), want, rtol=F64)
