"""Spikes that come back late: the fused loop against the reference, and layers against being stepped."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from spiketide import ALIF, LIF, Dense, Dropout, LeakyIntegrator, Recurrent, Sequential
from spiketide.errors import EngineError, ShapeError
from spiketide.scan import Delayed, Dynamics, recurrent_scan
from spiketide.surrogate import ATan
from spiketide.synapses import AxonalDelay


def step(x, v, decay, threshold):
    from spiketide import spike

    v = decay * v + x
    s = spike(v - threshold)
    return s, v - threshold * s


LEAKY = Dynamics(("v",), ("decay", "threshold"), step)


def operands(
    places: int, *, steps: int = 18, batch: int = 9, n: int = 21, before: bool = False, mask: bool = False
) -> dict[str, Tensor]:
    torch.manual_seed(0)
    kinds: dict[str, Any] = {"dtype": torch.float64}
    late = torch.rand(places, n, **kinds) * (torch.rand(places, n) < 0.6)
    late[:, 0] = 0.0  # one that never comes back
    given = {
        "x": 0.7 * torch.rand(steps, batch, n, **kinds),
        "v": 0.5 * torch.rand(batch, n, **kinds),
        "weight": torch.randn(n, n, **kinds) / n**0.5,
        "late": late,
        "decay": 0.5 + 0.4 * torch.rand(n, **kinds),
        "threshold": torch.tensor(0.9, **kinds),
    }
    if mask:
        given["mask"] = (torch.rand(batch, n, **kinds) > 0.3) / 0.7
    if before:
        given["before"] = (torch.rand(places, batch, n) < 0.2).double()
    return {name: value.requires_grad_(name != "mask") for name, value in given.items()}


def outcome(given: dict[str, Tensor], engine: str, lengths: Tensor | None) -> dict[str, Tensor]:
    before = given.get("before")
    feedback = Delayed(given["weight"], given["late"], before, given.get("mask"))
    previous = None if before is None else before[-1]
    coefs = given["decay"], given["threshold"]
    y, (v, last) = recurrent_scan(
        LEAKY,
        given["x"],
        (given["v"],),
        coefs,
        ATan(2.0),
        feedback,
        previous=previous,
        engine=engine,
        lengths=lengths,
    )
    torch.manual_seed(1)
    loss = sum((part * torch.randn_like(part)).sum() for part in (y, v, last))
    given = {name: value for name, value in given.items() if value.requires_grad}
    grads = torch.autograd.grad(loss, list(given.values()))
    found = {"y": y.detach(), "v": v.detach(), "last": last.detach()}
    return found | {f"gradient of {name}": g for name, g in zip(given, grads, strict=True)}


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("lengths", [None, [18, 0, 1, 7, 18, 3, 17, 2, 9]])
@pytest.mark.parametrize("places", [1, 5, 30])
def test_the_fused_loop_is_the_reference(
    places: int, lengths: list[int] | None, before: bool, mask: bool
) -> None:
    given = operands(places, before=before, mask=mask)
    ends = None if lengths is None else torch.tensor(lengths)
    fused, reference = (outcome(given, engine, ends) for engine in ("cpu", "reference"))
    assert 0.02 < float(fused["y"].mean()) < 0.9
    assert torch.equal(fused["y"], reference["y"])
    for name in fused:
        torch.testing.assert_close(fused[name], reference[name], rtol=1e-9, atol=1e-10, msg=name)


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 2, 1), (2, 17, 64), (5, 8, 40)])
def test_small_and_odd_sizes(shape: tuple[int, int, int]) -> None:
    steps, batch, n = shape
    given = operands(3, steps=steps, batch=batch, n=n, before=True)
    fused, reference = (outcome(given, engine, None) for engine in ("cpu", "reference"))
    for name in fused:
        torch.testing.assert_close(fused[name], reference[name], rtol=1e-9, atol=1e-10, msg=name)


def test_the_number_of_threads_changes_no_bit() -> None:
    given = {
        name: value.detach().float().requires_grad_()
        for name, value in operands(5, steps=60, batch=40).items()
    }
    found, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(outcome(given, "cpu", None))
    finally:
        torch.set_num_threads(before)
    last = found[0].pop("gradient of weight"), found[1].pop("gradient of weight")
    torch.testing.assert_close(*last, rtol=1e-5, atol=1e-4)  # the last product is torch's
    for name in found[0]:
        assert torch.equal(found[0][name], found[1][name]), name


def test_without_gradients_the_outputs_are_the_same() -> None:
    given = operands(5)
    with torch.no_grad():
        feedback = Delayed(given["weight"], given["late"])
        y, _ = recurrent_scan(LEAKY, given["x"], None, (given["decay"], 0.9), ATan(2.0), feedback)
    x = given["x"].detach().requires_grad_()
    z, _ = recurrent_scan(LEAKY, x, None, (given["decay"], 0.9), ATan(2.0), feedback)
    assert torch.equal(y, z.detach()) and float(y.sum()) > 10


def layers(
    neuron: Any, width: float | None, n: int = 20, dropout: float | None = None, delay: bool = True
) -> tuple[Recurrent, Recurrent]:
    """One that has the fused loop, and one that is stepped."""
    torch.manual_seed(2)
    parts = [AxonalDelay(n, 6, width=width)] * delay + [Dense(n, n)]
    parts += [] if dropout is None else [Dropout(dropout)]
    fused = Recurrent(neuron, Sequential(*parts)).double()
    stepped = Recurrent(fused.neuron, fused.synapse)
    stepped._late = lambda: None  # type: ignore[method-assign]
    return fused, stepped


@pytest.mark.parametrize(
    "width, dropout, delay", [(None, None, True), (1.0, 0.3, True), (0.2, None, True), (None, 0.4, False)]
)
@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("lengths", [None, [23, 0, 4, 20, 9]])
@pytest.mark.parametrize("state", [False, True])
def test_a_layer_is_itself_stepped(
    width: float | None, dropout: float | None, delay: bool, mode: str, lengths: list[int] | None, state: bool
) -> None:
    neuron = ALIF(20, tau_mem=5.0, tau_adapt=20.0, threshold=0.5, learn=("tau_mem", "tau_adapt"))
    found = []
    torch.manual_seed(3)
    x = (1.6 * torch.rand(23, 5, 20, dtype=torch.float64)).requires_grad_()
    first = 1.6 * torch.rand(9, 5, 20, dtype=torch.float64)
    ends = None if lengths is None else torch.tensor(lengths)
    for layer in layers(neuron, width, dropout=dropout, delay=delay):
        layer.train(mode == "train")
        torch.manual_seed(5)  # of the mask
        begin = None
        if state:
            begin = tree_map(lambda leaf: leaf.detach().requires_grad_(), layer(first)[1])
            if dropout is not None and mode == "train":  # a mask has no gradient
                begin[1][-1][0].requires_grad_(False)
        y, end = layer(x, begin, lengths=ends)
        leaves = tree_leaves(end)
        torch.manual_seed(4)
        loss = sum((part * torch.randn_like(part)).sum() for part in (y, *leaves))
        wanted = [
            x,
            *layer.parameters(),
            *(leaf for leaf in (tree_leaves(begin) if state else []) if leaf.requires_grad),
        ]
        grads = torch.autograd.grad(loss, wanted, allow_unused=True)
        found.append([y, *leaves, *grads])
    assert 0.02 < float(found[0][0].detach().mean()) < 0.9
    for a, b in zip(*found, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_chunks_are_the_whole_in_evaluation() -> None:
    layer, _ = layers(LIF(20, tau_mem=5.0, threshold=0.5), 2.0)
    layer.eval()
    x = 0.6 * torch.rand(31, 3, 20, dtype=torch.float64)
    whole, _ = layer(x)
    parts, state = [], None
    for size in (1, 2, 8, 20):
        y, state = layer(x[sum(len(p) for p in parts) :][:size], state)
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=0)
    assert float(whole.detach().sum()) > 20


def test_a_state_may_lack_what_the_delay_has_seen() -> None:
    fused, stepped = layers(LIF(20, tau_mem=5.0, threshold=0.5), 1.0)
    x = 0.6 * torch.rand(12, 3, 20, dtype=torch.float64)
    _, (inner, _) = fused(x)
    for outer in (None, (None, None)):
        a, b = fused(x, (inner, outer))[0], stepped(x, (inner, outer))[0]
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_graded_outputs_come_back_late_too() -> None:
    fused, stepped = layers(LeakyIntegrator(20, tau_mem=3.0), 1.0)
    x = torch.rand(15, 4, 20, dtype=torch.float64)
    grads = []
    for layer in (fused, stepped):
        y, _ = layer(x)
        grads.append([y, *torch.autograd.grad(y.square().sum(), list(layer.parameters()))])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


def test_who_has_the_fused_loop() -> None:
    delay, dense = AxonalDelay(4, 3), Dense(4, 4)
    assert Recurrent(LIF(4), Sequential(delay, dense))._late()
    assert Recurrent(LIF(4), Sequential(delay, dense, Dropout(0.1)))._late()
    assert Recurrent(LIF(4), Sequential(dense, Dropout(0.1)))._late()
    assert Recurrent(LIF(4), Sequential(dense, delay))._late() is None
    assert Recurrent(LIF(4), Sequential(Dropout(0.1), dense))._late() is None
    assert Recurrent(LIF(4), Sequential(delay, dense, LeakyIntegrator(4)))._late() is None
    assert Recurrent(LIF(4, checkpoint=2), Sequential(delay, dense))._late() is None
    assert Recurrent(LIF(4), Sequential(Dense(4, 5), AxonalDelay(5, 2), Dense(5, 4)))._late() is None


def test_under_autocast_the_loop_stays_float32() -> None:
    fused, _ = layers(LIF(20, tau_mem=5.0, threshold=0.5), 1.0)
    fused.float()
    x = 0.6 * torch.rand(12, 3, 20)
    y, _ = fused(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z, _ = fused(x)
    assert torch.equal(y, z) and float(y.detach().sum()) > 10


@pytest.mark.filterwarnings(
    "ignore:.*should not be instantiated:DeprecationWarning"
)  # of torch, about itself
def test_torch_compile_gives_the_same() -> None:
    fused, _ = layers(LIF(20, tau_mem=5.0, threshold=0.5), 1.0)
    fused.eval()
    x = 0.6 * torch.rand(4, 3, 20, dtype=torch.float64)
    torch.testing.assert_close(
        torch.compile(fused, backend="eager")(x)[0], fused(x)[0], rtol=1e-9, atol=1e-10
    )


@pytest.mark.parametrize(
    "feedback, said",
    [
        (Delayed(torch.zeros(3, 4), torch.zeros(2, 4)), r"\(3, 4\)"),
        (Delayed(torch.zeros(4, 4), torch.zeros(2, 3)), r"\(2, 3\)"),
        (Delayed(torch.zeros(4, 4), torch.zeros(0, 4)), r"\(0, 4\)"),
        (
            Delayed(torch.zeros(4, 4), torch.zeros(2, 4), torch.zeros(3, 2, 4)),
            r"2 steps before .*\(3, 2, 4\)",
        ),
    ],
)
@pytest.mark.parametrize("engine", ["cpu", "reference"])
def test_kernels_that_do_not_fit_are_refused(feedback: Delayed, said: str, engine: str) -> None:
    with pytest.raises(ShapeError, match=said):
        recurrent_scan(LEAKY, torch.zeros(5, 2, 4), None, (0.9, 1.0), ATan(2.0), feedback, engine=engine)


def test_what_cannot_be_fused_says_so() -> None:
    feedback = Delayed(torch.zeros(4, 4), torch.zeros(2, 4))
    with pytest.raises(EngineError, match="without checkpoint"):
        recurrent_scan(
            LEAKY, torch.zeros(5, 2, 4), None, (0.9, 1.0), ATan(2.0), feedback, engine="cpu", checkpoint=2
        )
    given = operands(3)
    y, _ = recurrent_scan(
        LEAKY, given["x"], None, (0.9, 1.0), ATan(2.0), Delayed(given["weight"], given["late"])
    )
    with pytest.raises(EngineError, match="first derivatives only"):
        torch.autograd.grad(y.sum(), given["x"], create_graph=True)
