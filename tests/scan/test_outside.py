"""Numbers that a step reads from outside its arguments: taken when it is registered, the same on every engine."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from spiketide import StepNeuron, spike
from spiketide.scan import Dynamics, scan
from spiketide.scan.dynamics import entry, register
from spiketide.scan.outside import fingerprint, frozen
from spiketide.surrogate import ATan

THRESHOLD = 1.0
SETTINGS: dict[str, float] = {"threshold": 1.0}
OTHER = types.ModuleType("other")
OTHER.threshold = 1.0  # type: ignore[attr-defined]
FOUR = torch.full((4, 1, 1), 0.6)


def plain(x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    v = v + x
    s = spike(v - THRESHOLD)
    return s, v - THRESHOLD * s


def twin(x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    v = v + x
    s = spike(v - 2.0)
    return s, v - 2.0 * s


def by_helper(x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    return plain(x, v)


def by_dict(x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    v = v + x
    s = spike(v - SETTINGS["threshold"])
    return s, v - SETTINGS["threshold"] * s


def by_module(x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    v = v + x
    s = spike(v - OTHER.threshold)
    return s, v - OTHER.threshold * s


def closed() -> tuple[Callable[..., Any], Callable[[float], None]]:
    threshold = 1.0

    def step(x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        v = v + x
        s = spike(v - threshold)
        return s, v - threshold * s

    def change(to: float) -> None:
        nonlocal threshold
        threshold = to

    return step, change


def set_global(to: float) -> None:
    globals()["THRESHOLD"] = to


def set_dict(to: float) -> None:
    SETTINGS["threshold"] = to


def set_module(to: float) -> None:
    OTHER.threshold = to  # type: ignore[attr-defined]


CASES = {
    "global": lambda: (plain, set_global),
    "helper": lambda: (by_helper, set_global),
    "dict": lambda: (by_dict, set_dict),
    "module": lambda: (by_module, set_module),
    "cell": closed,
}


@pytest.fixture(autouse=True)
def _as_before() -> Any:
    yield
    set_global(1.0), set_dict(1.0), set_module(1.0)


@pytest.mark.parametrize("case", CASES)
def test_a_sweep_over_a_number_from_outside_is_a_sweep_on_every_engine(case: str) -> None:
    step, change = CASES[case]()
    counts = {}
    for threshold in (1.0, 2.0, 0.5, 1.0):
        change(threshold)
        for engine in ("reference", "cpu"):
            neuron = StepNeuron(1, step, states=("v",), constants={}, engine=engine)
            counts.setdefault(threshold, set()).add(neuron(FOUR)[0].sum().item())
            y, _ = scan(Dynamics(("v",), (), step), FOUR, None, (), ATan(2.0), engine=engine)
            counts[threshold].add(y.sum().item())
    assert counts == {1.0: {2.0}, 2.0: {1.0}, 0.5: {4.0}}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("engine", ["reference", "cpu"])
def test_a_layer_keeps_the_numbers_it_was_built_with(case: str, engine: str) -> None:
    step, change = CASES[case]()
    neuron = StepNeuron(1, step, states=("v",), constants={}, engine=engine)
    change(0.5)
    assert neuron(FOUR)[0].flatten().tolist() == [0.0, 1.0, 0.0, 1.0]


def test_a_step_with_the_same_graph_does_not_run_with_the_numbers_of_another() -> None:
    set_global(2.0)
    first = StepNeuron(1, plain, states=("v",), constants={}, engine="reference")
    second = StepNeuron(1, twin, states=("v",), constants={}, engine="reference")
    assert first._key == second._key
    set_global(0.5)
    for neuron in (first, second):
        assert neuron(FOUR)[0].flatten().tolist() == [0.0, 0.0, 0.0, 1.0]
    assert StepNeuron(1, plain, states=("v",), constants={})(FOUR)[0].sum() == 4.0


def test_gradients_go_through_the_step_that_was_read() -> None:
    step, change = closed()
    neurons = [StepNeuron(1, step, states=("v",), constants={}, engine=e) for e in ("reference", "cpu")]
    change(0.25)
    grads = []
    for neuron in neurons:
        x = FOUR.clone().requires_grad_()
        (neuron(x)[0] * torch.arange(1.0, 5.0).view(4, 1, 1)).sum().backward()
        grads.append(x.grad)
    assert torch.allclose(grads[0], grads[1]) and grads[0].abs().sum() > 0


def test_what_reads_nothing_is_the_same_function_and_keeps_its_key() -> None:
    assert frozen(twin) is twin and frozen(None) is None
    assert frozen(plain) is not plain
    assert fingerprint(twin) == fingerprint(twin) is not None
    assert fingerprint(by_dict) is None, "what is in a dict cannot be seen to change"
    before = fingerprint(by_helper)
    set_global(3.0)
    assert fingerprint(by_helper) != before
    set_global(1.0)
    assert fingerprint(by_helper) == before

    def alone(x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return spike(v - 0.12345), v + x

    assert entry(register(Dynamics(("v",), (), alone), ATan(2.0))).dynamics.step is alone


def test_a_step_that_calls_itself_by_name_can_be_read() -> None:
    def nested(x: Any, v: Any, depth: int = 0) -> Any:
        return nested(x, v, depth + 1) if depth < 2 else (v + x - THRESHOLD, v + x)

    assert fingerprint(nested) is not None
    once = frozen(nested)
    set_global(100.0)
    assert once(2.0, 0.0)[0] == 1.0 and nested(2.0, 0.0)[0] == -98.0


def in_place(x: Tensor, v: Tensor, decay: Tensor) -> tuple[Tensor, Tensor]:
    v *= decay
    v += x
    x -= 10.0
    s = spike(v - 1.0)
    v -= s
    return s, v


@pytest.mark.parametrize("engine", ["reference", "cpu"])
def test_a_step_written_in_place_changes_nothing_of_the_callers(engine: str) -> None:
    x, v0, decay = torch.full((5, 2, 3), 0.6), torch.full((2, 3), 0.25), torch.tensor(0.5)
    kept = x.clone(), v0.clone(), decay.clone()
    dynamics = Dynamics(("v",), ("decay",), in_place)
    y, (v,) = scan(dynamics, x, (v0,), (decay,), ATan(2.0), engine=engine)
    again, (w,) = scan(dynamics, x, (v0,), (decay,), ATan(2.0), engine=engine)
    assert torch.equal(x, kept[0]) and torch.equal(v0, kept[1]) and torch.equal(decay, kept[2])
    assert torch.equal(y, again) and torch.equal(v, w)

    def written_out(x: Tensor, v: Tensor, decay: Tensor) -> tuple[Tensor, Tensor]:
        v = v * decay + x
        s = spike(v - 1.0)
        return s, v - s

    wanted, (u,) = scan(
        Dynamics(("v",), ("decay",), written_out), x, (v0,), (decay,), ATan(2.0), engine="reference"
    )
    assert torch.equal(y, wanted) and torch.equal(v, u)


def test_a_step_written_in_place_has_its_gradient_on_the_reference_engine() -> None:
    operands = torch.full((5, 2, 3), 0.6), torch.full((2, 3), 0.25)

    def grads(engine: str) -> list[Tensor]:
        x, v0 = (o.clone().requires_grad_() for o in operands)
        y, _ = scan(Dynamics(("v",), ("decay",), in_place), x, (v0,), (0.5,), ATan(2.0), engine=engine)
        y.sum().backward()
        return [x.grad, v0.grad]  # type: ignore[list-item]

    for a, b in zip(grads("reference"), grads("cpu"), strict=True):
        assert torch.allclose(a, b) and a.abs().sum() > 0


def test_a_step_may_return_a_list() -> None:
    def listed(x: Tensor, v: Tensor) -> list[Tensor]:
        v = v + x
        return [spike(v - 1.0), v]

    outputs = [
        scan(Dynamics(("v",), (), listed), FOUR, None, (), ATan(2.0), engine=e)[0]
        for e in ("cpu", "reference")
    ]
    assert torch.equal(outputs[0], outputs[1])


def test_a_python_if_in_a_step_says_what_to_write() -> None:
    from spiketide.errors import EngineError

    def branching(x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return (x, v) if v > 0 else (v, x)

    with pytest.warns(UserWarning, match="torch.where"):
        neuron = StepNeuron(2, branching, states=("v",), constants={})
        with pytest.raises(EngineError, match=r"cannot branch on values.*torch\.where"):
            neuron(torch.rand(3, 1, 2))


@pytest.mark.parametrize("engine", ["reference", "cpu"])
def test_it_runs_in_inference_mode(engine: str) -> None:
    # as in Lightning's validate and test; tensors then do not say whether they were written
    x, v0 = torch.rand(6, 2, 3), torch.rand(2, 3)
    for step in (in_place, lambda x, v, decay: in_place(x, v.clone(), decay)):
        dynamics = Dynamics(("v",), ("decay",), step)
        want, _ = scan(dynamics, x, (v0,), (0.5,), ATan(2.0), engine=engine)
        before = x.clone(), v0.clone()
        with torch.inference_mode():
            y, _ = scan(dynamics, x, (v0,), (0.5,), ATan(2.0), engine=engine)
            assert torch.equal(y, want) and y.sum() > 0
            made = torch.zeros(2, 3)  # a tensor of inference mode as the state
            scan(dynamics, x, (made,), (0.5,), ATan(2.0), engine=engine)
            assert not bool(made.any())
        assert torch.equal(x, before[0]) and torch.equal(v0, before[1])
