"""Counts on real activity: against plain loops, against the papers' formulas, against NeuroBench's definitions."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import assert_fires
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from spiketide import (
    ALIF,
    IF,
    LIF,
    AxonalDelay,
    BatchNorm,
    Bidirectional,
    Checkpointed,
    Conv1d,
    Conv2d,
    Dense,
    Dropout,
    LeakyIntegrator,
    Recurrent,
    Sequential,
    SynapticDelay,
    spike,
)
from spiketide.baselines import GRU
from spiketide.energy import costs, count_operations, metering, paper_counts, price, step_operations
from spiketide.errors import ParameterError
from spiketide.layer import Layer
from spiketide.neurons import Neuron
from spiketide.types import detach


def spikes(*shape: int, density: float = 0.4) -> Tensor:
    return (torch.rand(*shape) < density).float()


def measured(network: Layer, x: Tensor, lengths: Tensor | None = None, **options: Any) -> Any:
    network.eval()
    with torch.no_grad(), metering(network, **options) as counts:
        network(x, lengths=lengths)
    return counts


# ----------------------------------------------------------------------------------------------- a toy, on paper


def toy() -> Sequential:
    """Two inputs, two units that feed back, one output; no leak worth the name, weights that can be followed by hand."""
    network = Sequential(
        Dense(2, 2, bias=False),
        Recurrent(LIF(2, tau_mem=1e6, threshold=1.0), Dense(2, 2, bias=False)),
        Dense(2, 1, bias=False),
        LeakyIntegrator(1, tau_mem=10.0, scale_input=False),
    )
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[0.7, 0.0], [0.0, 1.5]]))
        network[1].synapse.weight.copy_(torch.tensor([[0.0, 0.0], [0.6, 0.0]]))
        network[2].weight.fill_(1.0)
    return network


def test_a_toy_network_on_paper() -> None:
    # inputs:          a  b
    x = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]).unsqueeze(1)
    # unit 1 (0.7 of a): 0.7, 1.4 fires in step 2 and keeps 0.4; 0.4; 0.4
    # unit 2 (1.5 of b, 0.6 of unit 1 a step later): 0, 0, 1.5 + 0.6 = 2.1 fires in step 3 and keeps 1.1; 1.1 fires in step 4
    counts = measured(toy(), x)
    layers = counts.layers
    assert list(layers) == ["0", "1.neuron", "1.synapse", "2", "3"]
    assert layers["0"].synaptic_ac == 3 * 2  # three input spikes, two units each
    assert (
        layers["1.synapse"].synaptic_ac == 2 * 2
    )  # the spikes of steps 2 and 3 came back, that of step 4 not any more
    assert layers["2"].synaptic_ac == 3 * 1  # three spikes to one output
    assert layers["1.neuron"].updates == 4 * 2 and layers["3"].updates == 4 * 1
    assert layers["1.neuron"].mac == 4 * 2  # a decay each
    assert layers["1.neuron"].ac_on_spikes == 3  # three resets
    assert layers["1.neuron"].comparisons == 4 * 2
    assert layers["3"].mac == 4 and layers["3"].comparisons == 0
    assert layers["1.neuron"].rate == counts.rate == pytest.approx(3 / 8)
    assert not any(layer.graded for name, layer in layers.items() if name in ("0", "1.synapse", "2"))
    assert [name for name, layer in layers.items() if layer.driven] == ["1.synapse", "2"]
    ac = 6 + 4 + 3 + 3  # input, feedback, output, resets
    mac = 8 + 4  # decays of the units and of the output
    for name, e_mac, e_ac in (("horowitz-fp32", 4.6, 0.9), ("horowitz-int32", 3.2, 0.1)):
        energy = sum(price(layer, costs(name)).total for layer in layers.values())
        assert energy == pytest.approx(ac * e_ac + mac * e_mac + 8 * e_ac)  # and eight comparisons


def test_the_memory_of_the_toy_on_paper() -> None:
    x = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]).unsqueeze(1)
    layers = measured(toy(), x).layers
    first, neuron, back, out, readout = layers.values()
    # six connections used: six weights read, six membranes read and written; three spikes read
    assert (first.weight_reads, first.target_reads, first.target_writes, first.input_reads) == (6, 6, 6, 3)
    assert (back.weight_reads, back.target_reads, back.target_writes, back.input_reads) == (4, 4, 4, 2)
    assert (out.weight_reads, out.target_reads, out.target_writes, out.input_reads) == (3, 3, 3, 3)
    # eight updates read and write one membrane each; three spikes go out
    assert (neuron.state_reads, neuron.state_writes, neuron.output_writes) == (8, 8, 3)
    assert (readout.state_reads, readout.state_writes, readout.output_writes) == (4, 4, 4)
    accesses = (3 * 6 + 3) + (3 * 4 + 2) + (3 * 3 + 3) + (8 + 8 + 3) + (4 + 4 + 4)
    assert sum(layer.traffic for layer in layers.values()) == accesses == 78
    # every memory is far below 8 KB: 10 pJ an access; an address for each connection used
    found = [price(layer, costs("lemaire")) for layer in layers.values()]
    assert sum(e.memory for e in found) == pytest.approx(10 * 78)
    assert sum(e.addressing for e in found) == pytest.approx((6 + 4 + 3) * 0.1)
    assert sum(e.synapses + e.neurons for e in found) == pytest.approx(12 * 3.2 + 16 * 0.1 + 8 * 0.1)


# -------------------------------------------------------------------------------- the papers' counting on real activity


@pytest.mark.parametrize(("kind", "neuron"), [("lif", LIF), ("alif", ALIF)])
def test_recurrent_layers_are_counted_as_in_the_papers(kind: str, neuron: Any) -> None:
    m, n, steps, batch = 6, 9, 40, 5
    constants: dict[str, Any] = {"tau_adapt": 20.0} if kind == "alif" else {}
    network = Sequential(
        Dense(m, n, bias=False),
        Recurrent(neuron(n, tau_mem=5.0, threshold=0.1, **constants), Dense(n, n, bias=False)),
    )
    x = spikes(steps, batch, m)
    counts = measured(network, x)
    with torch.no_grad():
        y, _ = network(x)
    assert_fires(y)
    own = counts.layers["1.neuron"]
    rate_in, rate = float(x.mean()), float(y.mean())
    assert own.rate == pytest.approx(rate)
    paper = paper_counts(kind, m, n, rate_in=rate_in, rate_out=rate)
    total = steps * batch
    # the papers let the spikes of the last step come back too, which nobody sees
    last = float(y[-1].sum()) * n
    ac = sum(layer.synaptic_ac + layer.ac_on_spikes for layer in counts.layers.values())
    assert ac + last == pytest.approx(paper.ac * total)
    assert sum(layer.multiply_accumulates for layer in counts.layers.values()) == paper.mac * total
    as_written = measured(network, x, fold=False).layers["1.neuron"].mac
    scale = step_operations(network[1].neuron).input_scale
    assert as_written == paper_counts(kind, m, n, scale_input=bool(scale)).mac * total


def test_classical_layers_are_counted_as_in_the_papers() -> None:
    network = Sequential(GRU(4, 6), Dense(6, 3))
    lengths = torch.tensor([10, 0, 7])
    counts = measured(network, torch.randn(10, 3, 4), lengths)
    assert counts.layers["0"].mac == 17 * paper_counts("gru", 4, 6).mac
    assert counts.layers["0"].dense == 17 * 3 * (4 * 6 + 6 * 6)
    assert counts.layers["1"].synaptic_mac == 17 * 6 * 3 and counts.layers["1"].graded
    assert counts.layers["1"].bias == 17 * 3 and counts.layers["1"].synaptic_ac == 0
    assert counts.parameters == 3 * 6 * (4 + 6 + 2) + 3 * 7


# ------------------------------------------------------------------------------------------- NeuroBench's definitions


def test_neurobench() -> None:
    """Effective and dense operations and activation sparsity, by plain torch on the same weights.

    NeuroBench: an effective operation has a nonzero activation and a nonzero weight; it is an accumulate where the inputs of the
    layer are all -1, 0 or 1, a multiply-accumulate otherwise; dense operations count all; biases count nowhere; operations are
    those of an average sample. Activation sparsity is the share of zeros among the outputs of the neurons.
    """
    steps, batch, sizes = 25, 7, (11, 16, 12, 4)
    decay, threshold = math.exp(-1 / 6.0), 0.4
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        layers += [Dense(a, b), LIF(b, tau_mem=6.0, threshold=threshold)]
    network = Sequential(*layers)
    x = torch.rand(steps, batch, sizes[0]) * spikes(steps, batch, sizes[0])  # graded, with zeros

    effective = {"ac": 0.0, "mac": 0.0}
    dense, zeros, places = 0.0, 0, 0
    signal = x
    for k in range(0, len(layers), 2):
        weight, bias = (p.detach() for p in (layers[k].weight, layers[k].bias))
        used = (signal != 0).double() @ (weight != 0).double().t()
        binary = set(signal.unique().tolist()) <= {-1.0, 0.0, 1.0}
        effective["ac" if binary else "mac"] += float(used.sum())
        dense += signal.shape[0] * signal.shape[1] * weight.numel()
        v, out = torch.zeros(batch, weight.shape[0]), []
        for current in signal @ weight.t() + bias:
            v = decay * v + current
            s = (v > threshold).float()
            v = v - threshold * s
            out.append(s)
        signal = torch.stack(out)
        zeros, places = zeros + int((signal == 0).sum()), places + signal.numel()
    assert_fires(signal, "the last layer")

    counts = measured(network, x)
    assert counts.samples == batch
    assert counts.total("synaptic_mac") == pytest.approx(effective["mac"] / batch)
    assert counts.total("synaptic_ac") == pytest.approx(effective["ac"] / batch)
    assert counts.total("dense") == pytest.approx(dense / batch)
    assert 1 - counts.rate == pytest.approx(zeros / places)
    assert 0 < effective["ac"] < dense and 0 < effective["mac"] < dense  # the fixture skips something
    assert counts.total("bias") == steps * sum(sizes[1:])  # apart, as NeuroBench leaves them out


# ------------------------------------------------------------------------------------------------- what goes in decides


@pytest.mark.parametrize(
    ("values", "graded"),
    [
        ([0.0, 1.0], False),
        ([-1.0, 0.0, 1.0], False),
        ([0.0, 2.0], True),
        ([0.0, 0.5, 1.0], True),
        ([0.0], False),
    ],
)
def test_graded_is_seen_not_assumed(values: list[float], graded: bool) -> None:
    network = Sequential(Dense(3, 4, bias=False))
    x = torch.tensor(values)[torch.arange(24) % len(values)].view(4, 2, 3)
    row = measured(network, x).layers["0"]
    used = float((x != 0).sum()) * 4
    assert row.graded is graded
    assert (row.synaptic_mac, row.synaptic_ac) == ((used, 0.0) if graded else (0.0, used))


def test_one_graded_batch_makes_the_layer_graded() -> None:
    network = Sequential(Dense(3, 4, bias=False))
    with metering(network) as counts:
        network(torch.ones(2, 1, 3))
        network(torch.full((2, 1, 3), 0.5))
        network(torch.ones(2, 1, 3))
    row = counts.layers["0"]
    assert row.graded and row.synaptic_mac == 3 * 2 * 3 * 4 and row.synaptic_ac == 0
    assert counts.samples == 3 and counts.steps == 6


def test_zero_input_costs_no_operation_at_synapses() -> None:
    network = Sequential(Dense(3, 4, bias=False), LIF(4), Dense(4, 2, bias=False))
    counts = measured(network, torch.zeros(6, 2, 3))
    assert counts.total("synaptic_ac") == counts.total("synaptic_mac") == counts.rate == 0
    assert counts.layers["1"].updates == 6 * 2 * 4  # but the membranes are updated


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 6), st.integers(0, 10**6), st.booleans())
def test_chunks_and_samples_add_up(cut: int, seed: int, graded: bool) -> None:
    """One whole sequence, its two chunks with carried state, and each sample alone: the same counts."""
    torch.manual_seed(seed)
    network = Sequential(
        Dense(3, 6),
        Recurrent(LIF(6, tau_mem=4.0, threshold=0.3), Dense(6, 6)),
        SynapticDelay(6, 4, 3),
        LIF(4, threshold=0.2),
    ).eval()
    x = torch.rand(7, 3, 3) if graded else spikes(7, 3, 3)
    whole = measured(network, x)
    with torch.no_grad(), metering(network) as chunks:
        _, state = network(x[:cut])
        network(x[cut:], state)
    with torch.no_grad(), metering(network) as alone:
        for b in range(3):
            network(x[:, b : b + 1])
    for name, row in whole.layers.items():
        for what in (
            "effective",
            "dense",
            "updates",
            "spikes",
            "mac",
            "ac_on_spikes",
            "bias",
            "state_reads",
            "traffic",
        ):
            assert getattr(chunks.layers[name], what) == getattr(row, what), (name, what)
            assert getattr(alone.layers[name], what) == getattr(row, what), (name, what)
            assert chunks.total(what) == whole.total(what) == alone.total(what)
    assert chunks.samples == whole.samples == alone.samples == 3
    assert chunks.to_dict()["steps"] == whole.to_dict()["steps"] == 7


def test_what_begins_a_sample() -> None:
    network = Sequential(Dense(3, 4, bias=False), IF(4, threshold=1e9)).eval()
    x, silence = torch.ones(5, 2, 3), torch.zeros(5, 2, 3)
    with torch.no_grad():
        begin = network.initial_state(x)
        warm = network(x)[1]
        with metering(network) as counts:
            y, state = network(silence)
            for _ in range(3):
                y, state = network(silence, state)  # still all zeros, but handed over
        assert counts.samples == 2 and counts.steps == 4 * 5 * 2
        with metering(network) as counts:
            network(x, begin)
            network(x, begin)
            network(x, state=None)
            network(x, state=detach(network(x)[1]))
        assert counts.samples == 4 * 2 and counts.steps == 5 * 5 * 2
        with metering(network) as counts:  # a stream that was begun before
            y, state = network(x[:, :1], ((), (warm[1][0][:1],)))
            network(x[:, :1], state)
        assert counts.samples == 1 and counts.total("effective") == 2 * 5 * 3 * 4
    stateless = Dense(3, 4, bias=False)
    with torch.no_grad(), metering(stateless) as counts:
        y, state = stateless(x)
        stateless(x, state)
    assert counts.samples == 2 and counts.steps == 2 * 5 * 2


def test_a_stream_finds_its_delay_lines_full() -> None:
    """Of a synapse with a memory, all connections of every step: those of inputs before the block too."""
    network = SynapticDelay(2, 2, 3).eval()
    x = torch.ones(9, 1, 2)
    with torch.no_grad():
        _, state = network(x)
        with metering(network) as counts:
            for step in x:
                _, state = network(step[None], state)
    assert counts.layers["SynapticDelay"].dense == counts.layers["SynapticDelay"].effective == 9 * 2 * 2
    assert counts.samples == 1 and counts.steps == 9


@pytest.mark.parametrize("mode", [True, False])
def test_a_checkpointed_training_step_is_counted_once(mode: bool) -> None:
    """What is computed anew in the backward is no work of the network, and counting leaves no trace in the step."""

    def made() -> list[nn.Module]:
        torch.manual_seed(2)
        feedback = Sequential(Dropout(0.2), Dense(12, 12))
        return [
            Dense(3, 12),
            Recurrent(ALIF(12, tau_mem=4.0, threshold=0.3, learn=("tau_mem",)), feedback),
            Dropout(0.2),
            SynapticDelay(12, 6, 4),
            LIF(6, threshold=0.2),
            Dense(6, 2),
            LeakyIntegrator(2),
        ]

    def front(network: Layer) -> str:
        return "layer." if isinstance(network, Checkpointed) else ""

    x = spikes(17, 3, 3)
    plain, parts = Sequential(*made()).train(mode), Checkpointed(made(), 3).train(mode)

    def step(network: Layer) -> list[Tensor]:
        torch.manual_seed(5)
        loss = network(x)[0].square().mean()
        return [
            loss,
            *torch.autograd.grad(loss, network.get_parameter(f"{front(network)}1.synapse.1.weight")),
        ]

    untouched = step(parts)
    with metering(plain) as want:
        step(plain)
    with metering(parts) as counts:
        while_counted = step(parts)
    assert all(torch.equal(a, b) for a, b in zip(untouched, while_counted, strict=True))
    assert counts.samples == want.samples == 3 and counts.steps == want.steps == 17 * 3
    assert counts.layers.keys() == {f"layer.{name}" for name in want.layers}
    # in training, the feedback that is looked at has a mask of its own
    compared = [name for name in want.layers if not (mode and name.startswith("1.synapse"))]
    assert len(compared) >= 6
    for name in compared:
        row, got = want.layers[name], counts.layers[f"layer.{name}"]
        assert replace(got, name=name) == row
    with count_operations(plain) as operations:
        step(plain)
    with count_operations(parts) as again:
        step(parts)
    for name in operations.sparse.keys() & set(compared):
        assert again.sparse[f"layer.{name}"] == operations.sparse[name] > 0


def test_padding_counts_nowhere() -> None:
    network = Sequential(
        Dense(3, 6),
        BatchNorm(6),
        Recurrent(ALIF(6, tau_mem=4.0, threshold=0.05), Sequential(AxonalDelay(6, 2), Dense(6, 6))),
        Dropout(0.3),
        nn.Linear(6, 2),
        LeakyIntegrator(2),
    )
    lengths = torch.tensor([9, 2, 0, 5])
    x = spikes(9, 4, 3)
    past = torch.arange(9).unsqueeze(1) >= lengths
    x[past] = float("nan")
    padded = measured(network, x, lengths)
    with torch.no_grad(), metering(network) as alone:
        for b, steps in enumerate(lengths.tolist()):
            if steps:
                network(x[:steps, b : b + 1])
    assert padded.layers.keys() == alone.layers.keys()
    assert padded.layers["2.neuron"].spikes > 0
    for name, row in alone.layers.items():
        got = padded.layers[name]
        assert got.graded == row.graded
        for what in (
            "effective",
            "dense",
            "bias",
            "updates",
            "spikes",
            "mac",
            "ac_on_spikes",
            "outputs",
            "traffic",
        ):
            assert getattr(got, what) == getattr(row, what), (name, what)


# --------------------------------------------------------------------------------------------------- kinds of layers


def test_delay_lines() -> None:
    network = Sequential(
        SynapticDelay(3, 4, 5, start=2.0), LIF(4, threshold=0.2), AxonalDelay(4, 3, start=1.0), Dense(4, 2)
    )
    x = torch.zeros(6, 1, 3)
    x[0, 0] = 1.0  # three events that arrive in step 2
    x[5, 0, 1] = 1.0  # one that is still on its way at the end
    row = measured(network, x).layers["0"]
    assert row.delay_writes == 4 and row.delay_reads == row.synaptic_ac == 3 * 4
    assert row.delay_words == 3 * 5 and row.words == 12  # delays are no weights
    shift = measured(network, x).layers["2"]
    assert shift.synaptic_ac == shift.synaptic_mac == shift.weight_reads == 0  # nothing is added, only moved
    assert shift.delay_writes == shift.events and shift.delay_reads == shift.effective


def test_a_delayed_feedback_is_counted_where_it_arrives() -> None:
    network = Sequential(
        Dense(3, 5),
        Recurrent(
            LIF(5, tau_mem=4.0, threshold=0.3),
            Sequential(AxonalDelay(5, 2, start=2.0), Dense(5, 5, bias=False)),
        ),
    )
    x = spikes(12, 2, 3)
    layers = measured(network, x).layers
    with torch.no_grad():
        y, _ = network(x)
    assert_fires(y)
    # one step of recurrence and two of the axon: the spikes of the last three steps do not arrive
    assert layers["1.synapse.1"].synaptic_ac == float(y[:-3].sum()) * 5
    assert layers["1.synapse.0"].delay_writes == float(y[:-1].sum())
    assert layers["1.synapse.0"].delay_reads == float(y[:-3].sum())


def test_the_feedback_of_a_convolution() -> None:
    network = Sequential(
        Recurrent(LIF((2, 5), tau_mem=4.0, threshold=1.0), Conv1d(2, 2, 3, padding=1, bias=False))
    )
    x = spikes(8, 2, 2, 5)
    layers = measured(network, x).layers
    with torch.no_grad():
        y, _ = network(x)
    assert_fires(y)
    reach = torch.tensor([2.0, 3.0, 3.0, 3.0, 2.0]) * 2  # taps of a padded kernel, times channels
    assert layers["0.synapse"].synaptic_ac == float((y[:-1] * reach).sum())
    # an event of a convolution finds its patch with two multiplications
    assert layers["0.synapse"].address_mac == 2 * float(y[:-1].sum())


def test_torch_modules_inside() -> None:
    network = Sequential(
        Conv2d(1, 2, 3, padding=1),
        LIF((2, 4, 4), threshold=0.2),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(8, 3),
    )
    x = spikes(5, 2, 1, 4, 4)
    counts = measured(network, x)
    with torch.no_grad():
        inner, _ = Sequential(*list(network)[:4])(x)
    assert counts.layers["4"].synaptic_ac == float(inner.sum()) * 3
    assert counts.layers["4"].dense == 5 * 2 * 8 * 3 and counts.layers["4"].bias == 5 * 2 * 3
    assert counts.layers["4"].driven and not counts.layers["0"].driven
    assert list(counts.uncounted) == ["2"] and "MaxPool2d" in counts.uncounted["2"]


def test_folding() -> None:
    network = Sequential(
        Dense(3, 6, bias=False),
        BatchNorm(6),
        LIF(6, scale_input=True),
        BatchNorm(6),
        LIF(6, scale_input=True),
    )
    x = spikes(5, 2, 3)
    folded, written = measured(network, x).layers, measured(network, x, fold=False).layers
    # the first norm goes into the weights and leaves a bias; the one behind spikes has no weights to go into
    assert (folded["1"].mac, folded["1"].bias) == (0, 5 * 2 * 6)
    assert folded["2"].mac == 5 * 2 * 6 and written["2"].mac == 2 * 5 * 2 * 6
    assert folded["3"].mac == written["3"].mac == written["1"].mac == 5 * 2 * 6
    assert folded["4"].mac == written["4"].mac == 2 * 5 * 2 * 6


def test_both_directions() -> None:
    network = Sequential(Bidirectional(Sequential(Dense(3, 4), LIF(4, threshold=0.2))), Dense(8, 2))
    counts = measured(network, spikes(6, 2, 3))
    assert [name for name, row in counts.layers.items() if row.driven] == ["1"]
    names = ["0.ahead.0", "0.ahead.1", "0.back.0", "0.back.1", "1"]
    assert list(counts.layers) == names
    assert counts.layers["0.back.0"].synaptic_ac == counts.layers["0.ahead.0"].synaptic_ac > 0


class Strange(Neuron):
    """A step that the graph does not know."""

    states = ("v",)

    @staticmethod
    def step(x: Any, v: Any, decay: Any) -> Any:
        v = decay * v + torch.special.expit(x)
        return spike(v - 1.0), v

    def coefs(self) -> tuple[Any, ...]:
        return (0.9,)


class Gain(Layer):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor, state: Any = None, *, lengths: Tensor | None = None) -> tuple[Tensor, Any]:
        return x * self.gain, ()


def test_what_is_not_counted_is_said() -> None:
    network = Sequential(Dense(3, 4), Gain(), Strange(4, engine="reference"), Dense(4, 2))
    counts = measured(network, spikes(5, 2, 3))
    assert set(counts.uncounted) == {"1", "2"}
    assert "Gain" in counts.uncounted["1"] and "cannot be traced" in counts.uncounted["2"]
    assert counts.layers["2"].updates == 5 * 2 * 4 and counts.layers["2"].mac == 0


def test_it_changes_nothing_and_leaves_nothing() -> None:
    network = Sequential(
        Dense(3, 4), Recurrent(LIF(4, threshold=0.3), Dense(4, 4)), SynapticDelay(4, 2, 3)
    ).eval()
    x = spikes(5, 2, 3)
    before, _ = network(x)
    with metering(network) as counts:
        during, _ = network(x)
    assert torch.equal(before, during)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
    kept = counts.total("effective")
    network(x)
    assert counts.total("effective") == kept
    with pytest.raises(RuntimeError, match="boom"), metering(network):
        raise RuntimeError("boom")
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


def test_a_single_layer_and_something_else() -> None:
    layer = Dense(3, 4, bias=False)
    counts = measured(layer, torch.ones(2, 3, 3))
    assert counts.layers["Dense"].synaptic_ac == 2 * 3 * 3 * 4 and counts.samples == 3
    with pytest.raises(ParameterError, match="expected a layer"), metering(nn.Linear(3, 4)):
        pass


def test_it_agrees_with_the_counts_of_a_test() -> None:
    """``spiketide test`` counts the same connections in its own way."""
    network = Sequential(
        Dense(3, 8), Recurrent(LIF(8, tau_mem=3.0, threshold=0.3), Dense(8, 8)), Dense(8, 2)
    ).eval()
    x, lengths = spikes(12, 4, 3), torch.tensor([12, 3, 7, 12])
    with torch.no_grad(), count_operations(network) as total:
        network(x, lengths=lengths)
    rows = {name: row for name, row in measured(network, x, lengths).layers.items() if row.role == "synapse"}
    assert {name: row.effective for name, row in rows.items()} == total.sparse
    assert {name: row.dense for name, row in rows.items()} == total.dense
