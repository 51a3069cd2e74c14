"""Layers made of layers: what they compute, written out by hand, and what they refuse."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from helpers import assert_fires, assert_near, assert_same, interpreted
from torch import Tensor, nn

from spiketide import (
    ALIF,
    IF,
    LIF,
    BatchNorm,
    Bidirectional,
    Conv1d,
    Conv2d,
    Dense,
    Dropout,
    Framewise,
    Layer,
    LeakyIntegrator,
    Recurrent,
    Residual,
    Sequential,
    detach,
)
from spiketide.compose import as_layer, reverse
from spiketide.errors import ParameterError, ShapeError
from spiketide.types import leaves

pytestmark = pytest.mark.usefixtures("poisoned_memory")


def strong(layer: Any, gain: float = 3.0) -> Any:
    with torch.no_grad():
        layer.weight.mul_(gain)
    return layer


# --------------------------------------------------------------------------------------------------------- sequential


def test_a_layer_sees_the_spikes_of_the_same_step() -> None:
    model = Sequential(IF(1, threshold=0.5), IF(1, threshold=0.5), IF(1, threshold=0.5))
    x = torch.zeros(4, 1, 1)
    x[1] = 0.75
    y, state = model(x)
    assert y.flatten().tolist() == [0.0, 1.0, 0.0, 0.0], "three layers, no delay"
    assert [float(s[0]) for s in state] == [0.25, 0.5, 0.5]


def test_sequential_is_its_layers_one_after_the_other() -> None:
    model = Sequential(strong(Dense(4, 6)), LIF(6, tau_mem=6.0), nn.ReLU(), Dense(6, 2))
    x, lengths = torch.rand(10, 3, 4), torch.tensor([10, 4, 0])
    y, state = model(x, lengths=lengths)
    h, _ = model[0](x, lengths=lengths)
    h, v = model[1](h, lengths=lengths)
    assert_fires(model[1](model[0](x)[0])[0])
    want, _ = model[3](torch.relu(h), lengths=lengths)
    assert_same(y, want)
    assert_same(state[1][0], v[0])
    assert len(model) == 4 == len(list(model)) == len(state) and isinstance(model[2], Framewise)
    assert [name for name, _ in model.named_parameters()] == ["0.weight", "0.bias", "3.weight", "3.bias"]


def test_sequential_of_nothing_and_of_wrong_things() -> None:
    x = torch.rand(5, 2, 3)
    y, state = Sequential()(x)
    assert_same(y, x)
    assert state == ()
    with pytest.raises(ParameterError, match="Sequential expected layers, got str at position 1"):
        Sequential(LIF(3), "relu")  # type: ignore[arg-type]
    with pytest.raises(ParameterError, match="got builtin_function_or_method at position 0"):
        Sequential(torch.relu)  # type: ignore[arg-type]
    model = Sequential(LIF(3), LIF(3))
    for bad in ((), ((),), (None, None, None), [None, None], torch.zeros(2, 3)):
        with pytest.raises(ShapeError, match="Sequential expected a tuple of the states of its 2 layers"):
            model(x, bad)
    y2, _ = model(x, (None, None))  # a layer may begin while another goes on
    assert_same(y2, model(x)[0])
    _, state = model(torch.rand(5, 4, 3))
    with pytest.raises(ShapeError, match="another batch size"):
        model(x, state)
    with pytest.raises(
        ShapeError, match=r"LIF expected \(T, B, 3\), 3 features a step, got 7 in \(5, 2, 7\)"
    ):
        Sequential(Dense(3, 7), LIF(3))(x)


# ---------------------------------------------------------------------------------------------------------- framewise


def test_framewise_is_the_module_at_every_step() -> None:
    for module, shape in [
        (nn.Linear(4, 3), (4,)),
        (nn.MaxPool2d(2), (2, 4, 4)),
        (nn.Flatten(), (2, 3)),
        (nn.Tanh(), (3, 2)),
    ]:
        x = torch.rand(5, 3, *shape)
        y, state = Framewise(module)(x)
        assert state == ()
        assert_near(y.detach(), torch.stack([module(frame) for frame in x]).detach(), 1e-6)
    y, _ = Framewise(nn.Linear(4, 3))(torch.rand(5, 3, 4), lengths=torch.tensor([5, 2, 0]))
    assert not bool(y[2:, 1].any()) and bool((y[:2, 1] != 0).all())


@pytest.mark.parametrize(
    "module",
    [
        nn.BatchNorm1d(3),
        nn.Dropout(0.5),
        nn.Dropout2d(0.5),
        nn.GRU(3, 3),
        nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)),
        nn.ModuleList([nn.Dropout(0.1)]),
        nn.SyncBatchNorm(3),
    ],
    ids=lambda m: type(m).__name__,
)
def test_modules_that_have_a_better_place_are_refused(module: nn.Module) -> None:
    with pytest.raises(
        ParameterError,
        match=r"does not fit a sequence step by step: use spiketide\.BatchNorm, spiketide\.Dropout",
    ):
        Framewise(module)
    with pytest.raises(ParameterError, match="does not fit"):
        Sequential(LIF(3), module)


def test_framewise_refuses_layers_and_other_things() -> None:
    with pytest.raises(ParameterError, match="a torch module that is not a Layer, got LIF"):
        Framewise(LIF(3))
    with pytest.raises(ParameterError, match="got builtin_function_or_method"):
        Framewise(torch.relu)  # type: ignore[arg-type]
    with pytest.raises(
        ParameterError, match=r"holds a LIF, a layer with a time axis: use spiketide\.Sequential"
    ):
        Sequential(nn.Sequential(nn.Linear(3, 3), LIF(3)))
    with pytest.raises(ShapeError, match=r"Framewise expected \(T, B, \*N\), got \(2, 3\)"):
        Framewise(nn.Tanh())(torch.rand(2, 3))
    with pytest.raises(ShapeError, match="expected a state of 0 tensors"):
        Framewise(nn.Tanh())(torch.rand(5, 2, 3), (torch.zeros(2, 3),))
    with pytest.raises(ShapeError, match="lengths"):
        Framewise(nn.Tanh())(torch.rand(5, 2, 3), lengths=torch.tensor([9, 1]))
    layer = LIF(3)
    assert as_layer(layer) is layer and isinstance(as_layer(nn.Tanh()), Framewise)


# ---------------------------------------------------------------------------------------------------------- recurrent


def by_hand(layer: Recurrent, x: Tensor) -> tuple[Tensor, Tensor]:
    """``s[t] = neuron(x[t] + synapse(s[t-1]))`` a step at a time, with nothing but the two layers."""
    s = torch.zeros(x.shape[1:])
    state, back_state, out = None, None, []
    for xt in x:
        back, back_state = layer.synapse(s.unsqueeze(0), back_state)
        y, state = layer.neuron(xt.unsqueeze(0) + back, state)
        s = y[0]
        out.append(s)
    return torch.stack(out), state[0]


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (lambda: Recurrent(LIF(5, tau_mem=6.0), strong(Dense(5, 5))), (5,)),
        (lambda: Recurrent(LIF(5, tau_mem=6.0), strong(Dense(5, 5, bias=False))), (5,)),
        (lambda: Recurrent(ALIF(5, threshold=0.1), strong(Dense(5, 5))), (5,)),
        (lambda: Recurrent(LIF((2, 6), tau_mem=6.0), strong(Conv1d(2, 2, 3, padding=1))), (2, 6)),
        (lambda: Recurrent(LIF((1, 4, 4), tau_mem=6.0), strong(Conv2d(1, 1, 3, padding=1))), (1, 4, 4)),
        (
            lambda: Recurrent(
                LIF(5, tau_mem=6.0), Sequential(strong(Dense(5, 5)), LeakyIntegrator(5, tau_mem=3.0))
            ),
            (5,),
        ),
        (lambda: Recurrent(LIF(5, tau_mem=6.0), Framewise(nn.Linear(5, 5))), (5,)),
    ],
)
def test_recurrence_is_the_previous_step_fed_back(layer: Any, shape: tuple[int, ...]) -> None:
    model = layer()
    x = torch.rand(15, 3, *shape)
    grads, outputs = [], []
    for run in (lambda m, i: (m(i)[0], m(i)[1][0][0]), by_hand):
        given = x.clone().requires_grad_()
        with interpreted():
            y, v = run(model, given)
            parameters = list(model.parameters())
            grads.append(torch.autograd.grad(y.square().sum() + v.square().sum(), [given, *parameters]))
        outputs.append((y.detach(), v.detach()))
    assert_fires(outputs[1][0])
    assert_same(outputs[0][0], outputs[1][0])
    assert_near(outputs[0][1], outputs[1][1], 1e-5)
    for a, b in zip(*grads, strict=True):
        assert float(b.abs().max()) > 0
        assert_near(a, b, 1e-4)
    silent = copy.deepcopy(model)
    for parameter in silent.synapse.parameters():
        nn.init.zeros_(parameter)
    assert not torch.equal(silent(x)[0], outputs[0][0]), "the feedback changed nothing: this tests nothing"


def test_the_state_of_a_recurrent_layer() -> None:
    layer = Recurrent(LIF(5, tau_mem=6.0), strong(Dense(5, 5)))
    x = torch.rand(10, 3, 5)
    y, ((v, last), outer) = layer(x)
    assert_same(last, y[-1])
    assert v.shape == (3, 5) and outer == ()
    _, ((_, last), _) = layer(x, lengths=torch.tensor([10, 4, 0]))
    assert_same(last[1], y[3, 1].detach())
    assert not bool(last[2].any())
    begin, none = layer.initial_state(x)
    assert [tuple(leaf.shape) for leaf in leaves(begin)] == [(3, 5), (3, 5)] and none == ()
    assert begin[0].data_ptr() != begin[1].data_ptr(), "two states, two tensors"
    assert_same(layer(x, (begin, none))[0], y)


def test_recurrent_of_no_steps() -> None:
    for synapse in (Dense(5, 5), Sequential(Dense(5, 5), LeakyIntegrator(5))):
        layer = Recurrent(LIF(5), synapse)
        y, state = layer(torch.rand(0, 3, 5))
        assert y.shape == (0, 3, 5)
        detach(state)
        x = torch.rand(6, 3, 5)
        assert_same(layer(x, state)[0], layer(x)[0])


def test_recurrent_refusals() -> None:
    with pytest.raises(
        ParameterError,
        match=r"Recurrent expected a neuron first, got Dense: Recurrent\(LIF\(n\), Dense\(n, n\)\)",
    ):
        Recurrent(Dense(5, 5), LIF(5))  # type: ignore[arg-type]
    with pytest.raises(
        ParameterError, match=r"Recurrent expected a synapse second, such as Dense\(\d+, \d+\), got Linear"
    ):
        Recurrent(LIF(5), nn.Linear(5, 5))  # type: ignore[arg-type]
    with pytest.raises(
        ParameterError, match=r"Recurrent expected Dense\(5, 5\) for \(5,\) neurons, got Dense\(5, 6\)"
    ):
        Recurrent(LIF(5), Dense(5, 6))
    with pytest.raises(ParameterError, match=r"got Dense\(4, 5\)"):
        Recurrent(LIF(5), Dense(4, 5))


# ------------------------------------------------------------------------------------------------------ bidirectional


def test_reverse_turns_each_sample_within_its_own_length() -> None:
    x = torch.arange(8.0).view(4, 2, 1)
    assert reverse(x)[:, 0, 0].tolist() == [6.0, 4.0, 2.0, 0.0]
    turned = reverse(x, torch.tensor([3, 0]))
    assert turned[:, 0, 0].tolist() == [4.0, 2.0, 0.0, 6.0]
    assert turned[:, 1, 0].tolist() == [1.0, 3.0, 5.0, 7.0]
    lengths = torch.tensor([3, 1], dtype=torch.int32)
    maps = torch.rand(4, 2, 3, 5)
    assert_same(reverse(reverse(maps, lengths), lengths), maps)
    assert_same(reverse(maps, torch.tensor([4, 4])), maps.flip(0))


def test_bidirectional_is_one_layer_ahead_and_one_back() -> None:
    layer = Bidirectional(Recurrent(LIF(5, tau_mem=6.0), strong(Dense(5, 5))))
    x, lengths = torch.rand(10, 3, 5), torch.tensor([10, 6, 0])
    y, state = layer(x, lengths=lengths)
    assert y.shape == (10, 3, 10) and state == ()
    ahead, _ = layer.ahead(x, lengths=lengths)
    assert_fires(ahead)
    assert_same(y[..., :5], ahead)
    for b, size in ((0, 10), (1, 6)):
        back, _ = layer.back(x[:size, b : b + 1].flip(0))
        assert_same(y[:size, b, 5:], back.flip(0)[:, 0])
    assert not bool(y[6:, 1].any()) and not bool(y[:, 2].any())
    assert not torch.equal(layer.ahead.synapse.weight, layer.back.synapse.weight), (
        "the two directions begin with the same weights"
    )
    assert {n.split(".")[0] for n, _ in layer.named_parameters()} == {"ahead", "back"}
    maps, _ = Bidirectional(LIF((2, 3, 3)))(torch.rand(4, 2, 2, 3, 3))
    assert maps.shape == (4, 2, 4, 3, 3)
    with pytest.raises(ShapeError, match="it needs the whole sequence at once"):
        layer(x, ((torch.zeros(3, 5), torch.zeros(3, 5)), ()))


# ------------------------------------------------------------------------------------------------------------ residual


def test_residual_adds_its_input() -> None:
    inner = Sequential(strong(Dense(4, 4)), LIF(4, tau_mem=6.0))
    layer = Residual(inner)
    x, lengths = torch.rand(10, 3, 4), torch.tensor([10, 4, 0])
    y, state = layer(x)
    want, want_state = inner(x)
    assert_fires(want)
    assert_same(y, x + want)
    assert_same(state[1][0], want_state[1][0])
    padded, _ = layer(x, lengths=lengths)
    assert not bool(padded[4:, 1].any()) and not bool(padded[:, 2].any())
    assert_same(padded[:4, 1], y[:4, 1])
    assert isinstance(Residual(nn.Tanh()).layer, Framewise)
    with pytest.raises(
        ShapeError, match=r"Residual expected a layer that keeps \(10, 3, 4\), got \(10, 3, 5\) out of it"
    ):
        Residual(Dense(4, 5))(x)


# ------------------------------------------------------------------------------------------------------ the whole


def test_a_deep_model_streams_learns_copies_and_pickles() -> None:
    torch.manual_seed(2)
    model = Sequential(
        strong(Dense(6, 8)),
        BatchNorm(8),
        LIF(8, tau_mem=6.0, threshold=0.8, learn=("tau_mem",)),
        Dropout(0.2),
        Recurrent(ALIF(8, threshold=0.1), Dense(8, 8)),
        Residual(Sequential(Dense(8, 8), LIF(8, tau_mem=6.0, threshold=0.3))),
        Dense(8, 3),
        LeakyIntegrator(3, tau_mem=5.0),
    )
    x = torch.rand(12, 5, 6)
    opt = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    with interpreted():
        for _ in range(25):
            opt.zero_grad()
            y, _ = model(x)
            loss = nn.functional.cross_entropy(y.mean(0), torch.tensor([0, 1, 2, 0, 1]))
            loss.backward()
            assert all(p.grad is not None for p in model.parameters())
            opt.step()
            losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0], losses
    model.eval()
    with torch.no_grad():
        whole, _ = model(x)
        parts, state = [], None
        for part in x.split([5, 0, 1, 6]):
            y, state = model(part, state)
            parts.append(y)
        assert_near(torch.cat(parts), whole, 1e-5)
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert_same(other(x)[0], whole)


def test_every_composition_is_a_layer_with_the_verb() -> None:
    for cls in (Sequential, Recurrent, Bidirectional, Residual, Framewise):
        assert issubclass(cls, Layer)
