"""Recording the neurons of a forward, and firing rates."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from spiketide.compose import Recurrent, Sequential
from spiketide.errors import DataError, ShapeError
from spiketide.layer import Layer
from spiketide.losses import SpikeRate
from spiketide.neurons import LIF, LeakyIntegrator
from spiketide.probe import (
    SATURATED_RATE,
    activity,
    firing_rates,
    is_spiking,
    mean_rates,
    neuron_rates,
    record,
)
from spiketide.synapses import Dense


def network() -> Sequential:
    torch.manual_seed(0)
    model = Sequential(Dense(6, 8), LIF(8, tau_mem=5.0), Dense(8, 3), LeakyIntegrator(3, tau_mem=20.0))
    with torch.no_grad():
        model.get_submodule("0").weight.mul_(20.0)
    return model


X = torch.rand(10, 4, 6, generator=torch.Generator().manual_seed(0))


class Twice(Layer):
    """One neuron used twice in a forward."""

    def __init__(self) -> None:
        super().__init__()
        self.neuron = LIF(6, tau_mem=2.0)

    def forward(self, x, state=None, *, lengths=None):
        once, _ = self.neuron(x * 3)
        return self.neuron(once * 2)


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_outputs_by_name_with_their_graph() -> None:
    model = network()
    with record(model) as records:
        y, _ = model(X)
    assert list(records) == ["1", "3"]
    assert records["3"] is y and records["1"].shape == (10, 4, 8)
    assert records.modules["1"] is model.get_submodule("1")
    assert 0.01 < records["1"].mean().item() < 0.9  # a silent layer would pass anything
    again, _ = model.get_submodule("1")(model.get_submodule("0")(X)[0])
    assert torch.equal(records["1"], again)
    assert list(records.spikes()) == ["1"] and is_spiking(records.modules["1"])
    SpikeRate(target=0.0, weight=1.0)(records).backward()
    gradient = model.get_submodule("0").weight.grad
    assert gradient is not None and float(gradient.abs().sum()) > 0


def test_a_new_forward_replaces_the_records() -> None:
    model = network()
    with record(model) as records:
        model(X)
        model(X[:3])
        assert list(records) == ["1", "3"] and records["1"].shape[0] == 3
    model(X)
    assert records["1"].shape[0] == 3  # not recorded any more


def test_a_neuron_used_twice() -> None:
    model = Twice()
    with record(model) as records:
        y, _ = model(X)
    assert list(records) == ["neuron", "neuron#2"]
    assert torch.equal(records["neuron#2"], y) and not torch.equal(records["neuron"], y)
    assert set(firing_rates(records)) == {"neuron", "neuron#2"}


def test_a_bare_neuron_has_its_class_name() -> None:
    model = LIF(6)
    with record(model) as records:
        y, _ = model(X)
    assert records["LIF"] is y


def test_a_recurrent_neuron_is_recorded_once_and_whole() -> None:
    torch.manual_seed(0)
    model = Sequential(Recurrent(LIF(6, tau_mem=2.0), Dense(6, 6)), LeakyIntegrator(6, tau_mem=20.0))
    with record(model) as records:
        inner, _ = model.get_submodule("0")(X * 4)
        model(X * 4)
    assert list(records) == ["0.neuron", "1"] and list(records.spikes()) == ["0.neuron"]
    assert torch.equal(records["0.neuron"], inner) and inner.mean().item() > 0.01


class Leaky(Layer):
    """A synapse with a state, which Recurrent runs step by step."""

    def initial_state(self, x):
        return (x.new_zeros(x.shape[1:]),)

    def forward(self, x, state=None, *, lengths=None):
        trace = (state or self.initial_state(x))[0] * 0.5 + x[0]
        return -trace.unsqueeze(0), (trace,)


def test_a_neuron_run_step_by_step_is_recorded_whole() -> None:
    model = Sequential(Recurrent(LIF(6, tau_mem=2.0), Leaky()), Recurrent(LIF(6, tau_mem=2.0), Leaky()))
    with record(model) as records:
        y, _ = model(X * 4)
        first, _ = model[0](X * 4)
    assert list(records) == ["0.neuron", "1.neuron", "0.neuron#2"]
    assert torch.equal(records["1.neuron"], y) and torch.equal(records["0.neuron"], first)
    assert torch.equal(records["0.neuron#2"], first) and 0.05 < first.mean().item() < 0.9
    assert records.modules["0.neuron"] is model[0].neuron
    assert hooks(model) == 0


def test_hooks_are_gone_also_after_an_error() -> None:
    model = network()
    with record(model):
        assert hooks(model) == 3
    assert hooks(model) == 0
    with pytest.raises(ShapeError), record(model):
        model(X[0])
    assert hooks(model) == 0


def test_kinds_and_models_without_neurons() -> None:
    model = network()
    with record(model, Dense) as records:
        model(X)
    assert list(records) == ["0", "2"] and records.spikes() == {}
    with record(nn.Linear(6, 2)) as records:
        pass
    assert dict(records) == {} and firing_rates(records) == {}


def test_rates_by_hand() -> None:
    s = torch.zeros(4, 2, 3)
    s[:, :, 0] = 1  # always
    s[0, :, 1] = 1  # in one step of four: 2 of 8
    s[3, 1, 2] = 1  # only in the padding of sample 1
    whole = activity({"a": s})["a"]
    assert whole.per_neuron.tolist() == [1.0, 0.25, 0.125]
    assert whole.rate == pytest.approx(1.375 / 3) and whole.silent == 0.0
    assert whole.saturated == pytest.approx(1 / 3)
    masked = activity({"a": s}, torch.tensor([4, 2]))["a"]
    assert masked.per_neuron.tolist() == pytest.approx([1.0, 2 / 6, 0.0])
    assert masked.rate == pytest.approx((1 + 1 / 3) / 3)
    assert masked.silent == pytest.approx(1 / 3) and masked.saturated == pytest.approx(1 / 3)
    assert firing_rates({"a": s}, torch.tensor([4, 2])) == {"a": masked.rate}


def test_rates_of_a_training_loop_are_those_of_the_records() -> None:
    torch.manual_seed(3)
    lengths = torch.tensor([4, 0, 2])
    spikes = {
        name: (torch.rand(4, 3, *size) < 0.4).float()
        * (torch.arange(4).unsqueeze(1) < lengths).view(4, 3, *ones)
        for name, size, ones in (("a", (5,), (1,)), ("b", (2, 3), (1, 1)))
    }
    for given in (None, lengths):
        rates, rate = mean_rates(spikes, given)
        assert {name: value.item() for name, value in rates.items()} == pytest.approx(
            firing_rates(spikes, given)
        )
        steps = 12 if given is None else 6
        assert rate.item() == pytest.approx(sum(s.sum().item() for s in spikes.values()) / (steps * 11))


def test_layers_of_unlike_duration_count_their_own_steps() -> None:
    rates, rate = mean_rates({"a": torch.ones(4, 2, 3), "b": torch.zeros(6, 2, 3)})
    assert rates["a"].item() == 1.0 and rates["b"].item() == 0.0
    assert rate.item() == pytest.approx(24 / 60)


def test_rates_of_a_training_loop_without_a_valid_step_are_zero() -> None:
    silent = {"a": torch.zeros(4, 2, 3), "b": torch.zeros(4, 2, 1)}
    for spikes, lengths in ((silent, torch.tensor([0, 0])), ({"a": torch.zeros(0, 2, 3)}, None), ({}, None)):
        rates, rate = mean_rates(spikes, lengths)
        assert rate.item() == 0.0 and all(value.item() == 0.0 for value in rates.values())
        assert rates.keys() == spikes.keys()


def test_exactly_the_saturation_limit_is_not_saturated() -> None:
    s = torch.tensor([1.0, 0.0]).view(2, 1, 1)
    assert s.mean().item() == SATURATED_RATE
    assert activity({"a": s})["a"].saturated == 0.0


def test_feature_maps_and_gradient() -> None:
    s = torch.rand(5, 2, 3, 4, 4, requires_grad=True)
    rates = neuron_rates(s, torch.tensor([5, 1]))
    assert rates.shape == (3, 4, 4)
    expected = (s[:, 0].sum(0) + s[0, 1]) / 6
    torch.testing.assert_close(rates, expected)
    rates.sum().backward()
    assert bool((s.grad[:, 0] == 1 / 6).all()) and bool((s.grad[1:, 1] == 0).all())


def test_rates_refuse() -> None:
    s = torch.zeros(4, 2, 3)
    with pytest.raises(DataError, match="all 0"):
        neuron_rates(s, torch.tensor([0, 0]))
    with pytest.raises(ShapeError, match="from 0 to T = 4, got 1 to 5"):
        neuron_rates(s, torch.tensor([5, 1]))
    with pytest.raises(ShapeError, match="lengths"):
        neuron_rates(s, torch.tensor([1]))
    with pytest.raises(DataError, match="at least one step"):
        neuron_rates(s[:0])
    with pytest.raises(ShapeError, match=r"\(T, B"):
        neuron_rates(s[0, 0])
