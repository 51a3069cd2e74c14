"""The traced step: what it is known by, what the backward keeps, and that the plan never misses a value."""

from __future__ import annotations

import atexit
import functools
import itertools
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import assert_parity, interpreted, named, scanned
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from spiketide import ALIF, IF, LIF, AdLIF, CubaLIF, Dense, LeakyIntegrator, Recurrent, spike
from spiketide.neurons import Neuron
from spiketide.scan import Dynamics, saved_bytes, scan, source
from spiketide.scan.dynamics import entry, program, register
from spiketide.scan.graph import Graph, Program, Symbol, _Adjoint
from spiketide.surrogate import ATan, FastSigmoid, MultiGaussian, Surrogate

pytestmark = pytest.mark.usefixtures("poisoned_memory")


# ------------------------------------------------------------------------------------------------- what is kept


def kept_bytes(run: Callable[[], Any], x: Tensor) -> float:
    """Bytes per neuron and step that autograd really holds after a forward, beside tensors of no time axis."""
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.shape[:1] == x.shape[:1]:
            seen[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        run()
    return sum(seen.values()) / x.numel()


@pytest.mark.parametrize(
    ("build", "for_input", "for_all"),
    [
        (lambda: IF(9), (4, 0), (4, 0)),
        (lambda: LIF(9), (4, 0), (4, 0)),
        (lambda: LIF(9, reset="hard"), (4, 0), (4, 0)),
        (lambda: LIF(9, scale_input=True), (4, 0), (4, 4)),
        (lambda: CubaLIF(9), (4, 0), (8, 0)),
        (lambda: ALIF(9), (8, 0), (8, 4)),
        (lambda: AdLIF(9), (4, 0), (8, 4)),
        (lambda: LeakyIntegrator(9), (0, 0), (4, 4)),
        (lambda: LeakyIntegrator(9, scale_input=False), (0, 0), (4, 0)),
    ],
)
def test_what_the_backward_keeps(
    build: Callable[[], Neuron], for_input: tuple[int, int], for_all: tuple[int, int]
) -> None:
    neuron = build()
    said = saved_bytes(neuron.dynamics, neuron.surrogate)
    assert (said["written"], said["input"]) == for_input
    said = saved_bytes(neuron.dynamics, neuron.surrogate, need_coefs=True)
    assert (said["written"], said["input"]) == for_all
    x = torch.rand(8, 3, 9, requires_grad=True)
    with interpreted():
        for learnt, expected in ((False, for_input), (True, for_all)):
            coefs = [torch.as_tensor(c).detach().clone().requires_grad_(learnt) for c in neuron.coefs()]

            def run(coefs: list[Tensor] = coefs) -> Any:
                return scan(neuron.dynamics, x, None, coefs, neuron.surrogate, engine="cpu")

            assert kept_bytes(run, x) == sum(expected)


def test_flags_for_single_coefficients() -> None:
    neuron = ALIF(3)
    only = {
        name: saved_bytes(
            neuron.dynamics, neuron.surrogate, need_coefs=[name == c for c in neuron.dynamics.coefs]
        )
        for name in neuron.dynamics.coefs
    }
    assert only["decay_mem"] == {"written": 8, "input": 4}  # its gradient reads x: (1 - decay) x
    assert only["threshold"] == {"written": 8, "input": 0}
    assert saved_bytes(neuron.dynamics, neuron.surrogate, need_input=False)["input"] == 0


def test_a_recurrent_scan_keeps_its_outputs_and_no_input() -> None:
    x = torch.rand(8, 3, 9, requires_grad=True)
    layer = Recurrent(LIF(9), Dense(9, 9, bias=False))
    with interpreted():
        assert kept_bytes(lambda: layer(x), x) == 8  # the membrane, and the spikes for the matrix's gradient


# ------------------------------------------------------------------------------------------------- keys


def lif_again(x: Any, v: Any, decay: Any, threshold: Any) -> Any:
    v = decay * v + x
    s = spike(v - threshold)
    return s, v - threshold * s


def lif_other_order(x: Any, v: Any, decay: Any, threshold: Any) -> Any:
    v = x + decay * v
    s = spike(v - threshold)
    return s, v - threshold * s


def test_equal_arithmetic_is_one_key_and_other_arithmetic_another() -> None:
    lif = LIF(3)
    assert register(lif.dynamics, ATan(2.0)) == register(
        Dynamics(("v",), ("decay", "threshold"), lif_again), ATan(2.0)
    )
    assert LIF(3)._key == LIF(700, tau_mem=3.0, threshold=0.2)._key, "sizes and constants are not compiled in"
    different = [
        LIF(3)._key,
        LIF(3, surrogate=ATan(2.5))._key,
        LIF(3, surrogate=FastSigmoid(2.0))._key,
        LIF(3, reset="hard")._key,
        LIF(3, reset="soft_detached")._key,
        LIF(3, scale_input=True)._key,
        IF(3)._key,
        register(Dynamics(("v",), ("decay", "threshold"), lif_other_order), ATan(2.0)),
        register(Dynamics(("v",), ("leak", "threshold"), lif_again), ATan(2.0)),
    ]
    assert len(set(different)) == len(different)
    assert MultiGaussian(0.15) == MultiGaussian(h=0.15) and hash(MultiGaussian()) == hash(MultiGaussian())
    assert MultiGaussian(0.15) != MultiGaussian(0.16)


def test_keys_are_the_same_in_every_process() -> None:
    code = "from spiketide import *; print(LIF(3)._key, ALIF(3)._key, AdLIF(3, reset='hard')._key)"
    printed = {
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed, "PATH": ""},
            cwd=Path(__file__).parents[2],
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert printed == {f"{LIF(3)._key} {ALIF(3)._key} {AdLIF(3, reset='hard')._key}"}


def test_a_class_of_the_same_name_with_another_derivative_is_another_surrogate() -> None:
    def make(height: float) -> Surrogate:
        class Mine(Surrogate):
            def derivative(self, x: Any) -> Any:
                return height / (1 + abs(x))

            def primitive(self, x: Any) -> Any:
                return x

        return Mine()

    def untraceable(x: Any, v: Any, threshold: Any) -> Any:
        v = torch.sinc(v) + x
        return spike(v - threshold), v

    for step in (lif_again, untraceable):
        names = ("decay", "threshold") if step is lif_again else ("threshold",)
        grads = []
        for height in (1.0, 2.0):
            x = torch.full((1, 1, 1), 0.5, requires_grad=True)
            y, _ = scan(
                Dynamics(("v",), names, step), x, None, (0.5,) * len(names), make(height), engine="reference"
            )
            (grad,) = torch.autograd.grad(y.sum(), x)
            grads.append(float(grad))
        assert grads[1] == pytest.approx(2 * grads[0])
        assert grads[0] > 0


def test_the_key_changes_with_the_surrogate_and_the_reset_of_a_layer() -> None:
    layer, x = LIF(3), torch.rand(20, 2, 3)
    soft, _ = layer(x)
    layer.reset = "hard"
    hard, _ = layer(x)
    assert not torch.equal(soft, hard) and torch.equal(hard, LIF(3, reset="hard")(x)[0])
    layer.surrogate = FastSigmoid(3.0)
    grads = []
    with interpreted():
        for each in (layer, LIF(3, reset="hard", surrogate=FastSigmoid(3.0)), LIF(3, reset="hard")):
            given = x.clone().requires_grad_()
            (grad,) = torch.autograd.grad(each(given)[0].sum(), given)
            grads.append(grad)
    assert torch.equal(grads[0], grads[1]) and not torch.equal(grads[0], grads[2])


def test_an_unknown_key_says_what_to_do() -> None:
    from spiketide.errors import EngineError

    with pytest.raises(EngineError, match="no dynamics is registered under 'nothing'.*build the layer here"):
        entry("nothing")


# ------------------------------------------------------------------------------------------- printed sources


def test_printed_sources_are_written_once_and_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    source.cache_folder.cache_clear()
    try:
        folder = source.cache_folder()
        assert tmp_path in folder.parents
        module = source.load_source("VALUE = 1\n", "made")
        assert module.VALUE == 1 and source.load_source("VALUE = 1\n", "made") is module
        assert source.load_source("VALUE = 2\n", "made").VALUE == 2
        assert len(list(folder.iterdir())) >= 2 and not list(folder.glob("*.tmp"))
        (written,) = [p for p in folder.glob("made_*.py") if p.read_text() == "VALUE = 1\n"]
        written.write_text("VALUE = 'half a fi")  # a process killed while it wrote
        sys.modules.pop(f"spiketide_printed.{written.stem}")
        assert source.load_source("VALUE = 1\n", "made").VALUE == 1
        dependence = tmp_path / "helper.py"
        dependence.write_text("1")
        first = source.load_source("VALUE = 3\n", "made", (dependence,))
        dependence.write_text("2")
        assert source.load_source("VALUE = 3\n", "made", (dependence,)) is not first, (
            "helpers belong to the digest"
        )
    finally:
        source.cache_folder.cache_clear()


def test_a_cache_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    source.cache_folder.cache_clear()
    try:
        folder = source.cache_folder()
        assert folder.is_dir() and tmp_path not in folder.parents
        assert source.load_source("VALUE = 4\n", "made").VALUE == 4
    finally:
        source.cache_folder.cache_clear()


# ------------------------------------------------------------------------------------- programs nobody wrote


UNARY: dict[str, Callable[[Any], Any]] = {
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "abs": abs,
    "neg": lambda a: -a,
    "square": lambda a: a * a * 0.3,
    "clamp": lambda a: torch.clamp(a, -0.7, 0.9),
    "exp": lambda a: torch.exp(-torch.abs(a)),
    "spike": lambda a: spike(a - 0.3),
    "relu": torch.relu,
    "detach": lambda a: a.detach(),
}
BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b * 0.5,
    "div": lambda a, b: a / (1 + b * b),
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "where": lambda a, b: torch.where(a > b, a, 0.5 * b),
    "gate": lambda a, b: torch.where((a > 0) & ~(b > 0.5), b, 1 - b),
}


@st.composite
def programs(draw: Any) -> tuple[int, int, list[tuple[str, int, int]], list[int]]:
    """Numbers of states and coefficients, operations on values that are there, and which values come out."""
    states, coefs = draw(st.integers(1, 3)), draw(st.integers(0, 2))
    values = 1 + states + coefs
    operations = []
    for _ in range(draw(st.integers(1, 9))):
        name = draw(st.sampled_from([*UNARY, *BINARY]))
        operations.append((name, draw(st.integers(0, values - 1)), draw(st.integers(0, values - 1))))
        values += 1
    outputs = [draw(st.integers(0, values - 1)) for _ in range(1 + states)]
    return states, coefs, operations, outputs


def step_of(
    states: int, coefs: int, operations: list[tuple[str, int, int]], outputs: list[int]
) -> Callable[..., Any]:
    """The step that a description means."""

    def step(*given: Any) -> Any:
        values = list(given)
        for name, a, b in operations:
            values.append(UNARY[name](values[a]) if name in UNARY else BINARY[name](values[a], values[b]))
        out = [values[i] for i in outputs]
        return (out[0], *(0.9 * o for o in out[1:]))

    return step


@functools.cache
def scratch() -> Path:
    folder = tempfile.TemporaryDirectory(prefix="spiketide-test-")
    atexit.register(folder.cleanup)
    return Path(folder.name)


def compare_program(description: Any, wanted: list[bool], lengths: bool, checkpoint: int | None) -> None:
    states, coefs, operations, outputs = description
    step = step_of(*description)
    dynamics = Dynamics(tuple(f"s{k}" for k in range(states)), tuple(f"c{k}" for k in range(coefs)), step)
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    operands = named(
        normal(5, 2, 2), [normal(2, 2) for _ in range(states)], [0.5 + 0.1 * normal(2) for _ in range(coefs)]
    )
    chosen = [name for name, flag in zip(operands, itertools.cycle(wanted)) if flag] or ["x"]
    options: dict[str, Any] = {"lengths": torch.tensor([3, 5]) if lengths else None}
    want = scanned(dynamics, FastSigmoid(2.0), operands, "reference", chosen, **options)
    with interpreted(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(source, "cache_folder", scratch)  # hundreds of steps that nobody will run again
        got = scanned(dynamics, FastSigmoid(2.0), operands, "cpu", chosen, checkpoint=checkpoint, **options)
    assert_parity(got, want, rtol=1e-11, bits=False)


@given(
    description=programs(),
    wanted=st.lists(st.booleans(), min_size=1, max_size=6),
    lengths=st.booleans(),
    checkpoint=st.sampled_from([None, 2]),
)
@settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_a_plan_never_misses_a_value(
    description: Any, wanted: list[bool], lengths: bool, checkpoint: int | None
) -> None:
    compare_program(description, wanted, lengths, checkpoint)


@pytest.mark.parametrize(
    ("states", "coefs", "outputs"),
    [
        (2, 0, [1, 2, 1]),  # states that change places
        (2, 1, [0, 3, 0]),  # a state that is a constant, and one that is the input
        (1, 1, [2, 1]),  # the output is a constant, the state stays as it is
        (3, 0, [1, 2, 3, 0]),  # a delay line
        (1, 0, [0, 1]),  # nothing at all
    ],
)
def test_steps_that_only_hand_on(states: int, coefs: int, outputs: list[int]) -> None:
    for operations in ([], [("mul", 0, 1)]):
        last = [len(operations) and 1 + states + coefs, *outputs[1:]] if operations else outputs
        for lengths, checkpoint in itertools.product((False, True), (None, 2)):
            compare_program((states, coefs, operations, last), [True], lengths, checkpoint)


def hodgkin_huxley(
    x: Any, v: Any, m: Any, h: Any, n: Any, dt: Any, g_na: Any, g_k: Any, threshold: Any
) -> Any:
    """Four states and a hundred operations (Hodgkin & Huxley 1952, in millivolts above rest, euler)."""

    def rate(a: Any, b: Any, width: float) -> Any:
        return a * torch.exp(-b / width)

    m = m + dt * (rate(1.0, 25 - v, -25.0) * (1 - m) - rate(4.0, v, 18.0) * m)
    h = h + dt * (rate(0.07, v, 20.0) * (1 - h) - h / (1 + torch.exp((30 - v) / 10)))
    n = n + dt * (rate(0.1, 10 - v, -25.0) * (1 - n) - rate(0.125, v, 80.0) * n)
    current = g_na * m**3 * h * (v - 115) + g_k * (n * n) * (n * n) * (v + 12) + 0.3 * (v - 10.6)
    v = v + dt * (x - current)
    return spike((v - threshold) * 0.1), v, m, h, n


def test_a_large_step_is_planned_in_bounded_time() -> None:
    names = ("dt", "g_na", "g_k", "threshold")
    traced = Program(("v", "m", "h", "n"), names, hodgkin_huxley, ATan(2.0))
    begin = time.process_time()
    plan = traced.plan(True, (True,) * 4)
    assert time.process_time() - begin < 10, "planning does not end"
    assert len(plan.saved) <= 5  # the states and the input always suffice
    operands = named(
        30 * torch.rand(8, 2, 3, dtype=torch.float64),
        [torch.full((2, 3), value, dtype=torch.float64) for value in (0.0, 0.05, 0.6, 0.32)],
        [torch.tensor(value, dtype=torch.float64) for value in (0.01, 120.0, 36.0, 0.2)],
    )
    dynamics = Dynamics(("v", "m", "h", "n"), names, hodgkin_huxley)
    want = scanned(dynamics, ATan(2.0), operands, "reference")
    assert 0 < float(want.y.mean()) < 1
    with interpreted():
        assert_parity(scanned(dynamics, ATan(2.0), operands, "cpu"), want, rtol=1e-11, bits=False)


def test_the_plan_of_the_adaptive_neuron_is_minimal() -> None:
    traced = program(ALIF(3)._key)
    plan = traced.plan(True, (False,) * 4)
    # nothing smaller lets the backward know everything: try all single values
    reads = traced._forward_values_read(
        [g for g in (traced.grad_x, *traced.grad_state) if g is not None], {traced.gy, *traced.gnext}
    )
    for value in traced._varying():
        rebuilt = traced.graph.computable(sum({1 << i for i in (*traced.coefs, value)}))
        prior = [traced.state[k] for k, n in enumerate(traced.next) if rebuilt >> n & 1]
        known = traced.graph.computable(rebuilt | sum({1 << i for i in prior}))
        assert any(not known >> r & 1 for r in reads), f"value {value} alone would do"
    assert len(plan.saved) == 2


def test_constants_of_the_step_are_exact() -> None:
    def step(x: Any, v: Any) -> Any:
        return x * math.pi + 1e-40, v

    x = torch.tensor([[[1.0]]], dtype=torch.float64)
    with interpreted():
        y, _ = scan(Dynamics(("v",), (), step), x, None, (), ATan(2.0), engine="cpu")
    assert float(y) == math.pi + 1e-40


def test_the_gradient_of_an_output_that_stands_there_twice_is_the_sum() -> None:
    """As a neuron whose output is its state: the gradients of both uses add up."""
    graph = Graph()
    x = Symbol(graph, graph.input("x"))
    y = 3.0 * x
    first, second = graph.input("first"), graph.input("second")
    grad = _Adjoint(graph, ATan(2.0)).run([(y.index, first), (y.index, second)])
    summed = Symbol(graph, first) + Symbol(graph, second)
    assert grad[x.index] in ((summed * 3.0).index, (3.0 * summed).index)
