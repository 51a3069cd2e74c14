"""Operations of networks that fire once: on paper, and against hardware with a clock, simulated step by step in plain loops."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from spiketide.energy import (
    FirstSpikeCounts,
    break_even,
    costs,
    count_first_spike_operations,
    energy_per_sample,
    fan_out,
    price,
    same_shape,
    summary,
    table,
)
from spiketide.errors import ParameterError, ShapeError
from spiketide.timing import (
    AveragePool2d,
    EarliestPool2d,
    FixedSlope,
    Flatten,
    Network,
    Ramp,
    RampUpDown,
    ReL,
    Silence,
    Step,
    TimingConv2d,
    TimingLayer,
    TimingLinear,
)

INF = math.inf
FP32, INT32, LEMAIRE = costs("horowitz-fp32"), costs("horowitz-int32"), costs("lemaire")


def counted(network: Network, times: Tensor, **options: Any) -> FirstSpikeCounts:
    network.eval()
    with torch.no_grad():
        return count_first_spike_operations(network, {"input": times} | network.follow(times)[1], **options)


# --------------------------------------------------------------------------------------------------------- on paper


def paper() -> Network:
    """Two inputs, two neurons, one output; ``V(t) = sum w (t - t_i)``, threshold 4."""
    network = Network(
        TimingLinear(2, 2, psp=ReL(1.0), stop=8.0, threshold=4.0),
        TimingLinear(2, 1, psp=ReL(1.0), stop=8.0, threshold=4.0),
    )
    network[0].set_weight(torch.tensor([[1.0, 1.0], [0.5, 0.0]]))
    network[1].set_weight(torch.tensor([[2.0, 5.0]]))
    return network


def test_a_network_on_paper() -> None:
    # inputs at 1 and 3. neuron 0: 0, 1, 2 (step 3), 4 at step 4: fires at 4; neuron 1: 0.5 a step from 1 on: 4 would come at 9: silent
    # output: 2 a step from 4 on: 4 at step 6
    times = torch.tensor([[1.0, 3.0]])
    network = paper()
    assert network.follow(times)[1]["0"].tolist() == [[4.0, INF]] and network(times).tolist() == [[6.0]]
    counts = counted(network, times)
    rows: Any = counts.layers
    assert list(rows) == ["0.synapse", "0.neuron", "1.synapse", "1.neuron"]
    assert rows["0.synapse"].synaptic_ac == 2 * 2 and rows["0.synapse"].weight_reads == 4
    # one addition and one comparison in steps 2, 3, 4 of neuron 0 and 2 to 7 of neuron 1
    assert rows["0.neuron"].ac == rows["0.neuron"].comparisons == rows["0.neuron"].updates == 3 + 6
    assert rows["1.synapse"].synaptic_ac == 1 and rows["1.neuron"].updates == 2
    assert (
        rows["0.neuron"].rate == 0.5 and rows["1.neuron"].rate == 1.0 and counts.rate == pytest.approx(2 / 3)
    )
    assert counts.total("multiply_accumulates") == 0 and counts.parameters == 6
    # 5 additions at synapses, 11 of neurons, 11 comparisons
    assert energy_per_sample(counts, FP32) == pytest.approx((5 + 11 + 11) * 0.9e-3)
    assert energy_per_sample(counts, INT32) == pytest.approx((5 + 11 + 11) * 0.1e-3)
    # the ReLU network: 6 products, a comparison for each of 3 units
    (relu,) = same_shape(counts, FP32)
    assert relu.energy == pytest.approx((6 * 4.6 + 3 * 0.9) * 1e-3) and relu.sparse_energy == relu.energy
    # memory: everything fits into the smallest, 10 pJ an access
    first = price(rows["0.synapse"], LEMAIRE)
    assert first.memory == pytest.approx(10 * (2 + 4 + 4 + 4))  # spikes in, weights, slopes in, slopes out
    assert price(rows["0.neuron"], LEMAIRE).memory == pytest.approx(
        10 * (9 * 3 + 1)
    )  # A, V in, V out; a spike


def test_a_dark_input_costs_nothing_and_is_skipped_by_the_fair_comparison() -> None:
    counts = counted(paper(), torch.tensor([[INF, INF]]))
    assert energy_per_sample(counts, LEMAIRE) == 0 and counts.rate == 0
    assert break_even(counts, FP32, 1.0).rate is None
    (relu,) = same_shape(counted(paper(), torch.tensor([[1.0, INF]])), FP32)
    # two products of the dark input are skipped
    assert relu.energy - relu.sparse_energy == pytest.approx(2 * 4.6e-3)


def test_binary_weights_are_read_a_bit_each_and_never_multiplied() -> None:
    torch.manual_seed(0)
    real = Network(TimingLinear(100, 40, stop=16.0), TimingLinear(40, 10, stop=16.0))
    binary = Network(
        TimingLinear(100, 40, stop=16.0, binary=True), TimingLinear(40, 10, stop=16.0, binary=True)
    )
    times = torch.randint(0, 16, (3, 100)).float()
    for network, bits in ((real, 32), (binary, 1)):
        counts = counted(network, times)
        row: Any = counts.layers["0.synapse"]
        assert row.effective == 3 * 100 * 40 and row.weight_bits == bits
        assert row.weight_reads == row.effective * bits / 32 and row.words == math.ceil(4000 * bits / 32)
        assert counts.total("multiply_accumulates") == 0
        # a word out of 16,000 bytes lies between those of 8 and of 32 KB; 500 bytes cost the least
        each = 10 + (16000 - 8192) / (32768 - 8192) * 10 if bits == 32 else 10.0
        reads = row.weight_reads * each
        rest = (2 * row.effective + row.events) * 10.0
        assert price(row, LEMAIRE).memory == pytest.approx(reads + rest)
    # the ReLU network beside a binary one has weights of 32 bits
    beside = [same_shape(counted(network, times), LEMAIRE)[0].energy for network in (real, binary)]
    assert beside[0] == pytest.approx(beside[1])


# -------------------------------------------------------------------------------------------- hardware with a clock


def synapses(layer: TimingLayer, shape: tuple[int, ...]) -> tuple[list[list[tuple[int, float]]], int]:
    """For each input its neurons and weights, by plain loops over the geometry; how many neurons."""
    weight = layer.effective_weight().detach()
    if isinstance(layer, TimingLinear):
        return [[(j, float(weight[j, i])) for j in range(len(weight))] for i in range(shape[0])], len(weight)
    assert isinstance(layer, TimingConv2d)
    window, (_, high, wide) = layer.window, shape
    rows, columns = window.out((high, wide))
    maps, inside = layer.n_out // window.groups, layer.n_in // window.groups
    found: list[list[tuple[int, float]]] = [[] for _ in range(math.prod(shape))]
    for o in range(layer.n_out):
        for y in range(rows):
            for x in range(columns):
                for c in range(inside):
                    for ky in range(window.kernel[0]):
                        for kx in range(window.kernel[1]):
                            row, column = (
                                y * window.stride - window.padding + ky,
                                x * window.stride - window.padding + kx,
                            )
                            if 0 <= row < high and 0 <= column < wide:
                                channel = o // maps * inside + c
                                neuron = (o * rows + y) * columns + x
                                found[(channel * high + row) * wide + column].append(
                                    (neuron, float(weight[o, c, ky, kx]))
                                )
    return found, layer.n_out * rows * columns


def clocked(layer: TimingLayer, times: Tensor, deadline: float = INF) -> tuple[list[float], Counter[str]]:
    """One sample on hardware that steps: firing times and what it did."""
    reaches, n = synapses(layer, tuple(times.shape))
    given = times.flatten().tolist()
    slope, v, fired = [0.0] * n, [0.0] * n, [INF] * n
    did: Counter[str] = Counter(dense=sum(map(len, reaches)))
    jumps, fixed = isinstance(layer.psp, Step), isinstance(layer.psp, FixedSlope)
    awake = False
    for t in range(int(layer.stop)):
        if t > deadline:
            break
        listening = not fixed or t < layer.start
        arrived = False

        def deliver(t: int = t, listening: bool = listening) -> bool:
            came = False
            for i, when in enumerate(given):
                for delay, turn, jump in layer.psp.shape.events():
                    if when + delay == t and listening:
                        came = came or delay == 0
                        did["events"] += 1
                        for j, w in reaches[i]:
                            did["ac"] += 1
                            slope[j] += w * turn
                            v[j] += w * jump
            return came

        def compare(j: int, threshold: float, t: int = t) -> None:
            did["comparisons"] += 1
            if v[j] >= threshold:
                fired[j] = t

        if jumps:
            arrived = deliver()
            for j in range(n):
                if arrived and fired[j] == INF:
                    compare(j, layer.threshold)
            continue
        if awake and fixed:
            if t <= layer.start:
                for j in range(n):
                    v[j] += slope[j]
                    did["added"] += 1
            if t >= layer.start:
                did["shared"] += 1
                for j in range(n):
                    if fired[j] == INF:
                        compare(j, layer.threshold * (1 - (t - layer.start) / layer.psp.length))
        elif awake:
            for j in range(n):
                if fired[j] == INF:
                    v[j] += slope[j]
                    did["added"] += 1
                    compare(j, layer.threshold)
        arrived = deliver()
        awake = awake or arrived
    return fired, did


GEOMETRIES: dict[str, tuple[Any, tuple[int, ...]]] = {
    "linear": (lambda **o: TimingLinear(9, 5, **o), (9,)),
    "conv": (lambda **o: TimingConv2d(2, 3, 3, **o), (2, 5, 4)),
    "padding": (lambda **o: TimingConv2d(1, 2, 3, padding=1, **o), (1, 4, 3)),
    "stride": (lambda **o: TimingConv2d(2, 2, 3, padding=1, stride=2, **o), (2, 6, 5)),
    "groups": (lambda **o: TimingConv2d(4, 6, 2, groups=2, stride=3, **o), (4, 6, 7)),
}
KERNELS = {
    "step": (Step(), 16.0),
    "ramp": (Ramp(4.0), 16.0),
    "up-down": (RampUpDown(4.0, 8.0), 16.0),
    "line": (ReL(8.0), 16.0),
    "fixed": (FixedSlope(8.0, 8.0), 16.0),
}


@pytest.mark.parametrize("deadline", [INF, 9.0])
@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_against_hardware_with_a_clock(geometry: str, kernel: str, binary: bool, deadline: float) -> None:
    torch.manual_seed(3)
    make, shape = GEOMETRIES[geometry]
    psp, stop = KERNELS[kernel]
    layer = make(psp=psp, stop=stop, binary=binary)
    # eighths, so that every sum is exact and the clock meets the same steps
    weight = torch.randint(-4, 9, layer.weight.shape) / 8
    layer.set_weight(torch.where(weight >= 0, 0.25, -0.25) if binary else weight)
    times = torch.randint(0, 20, (3, *shape)).float()
    times[torch.rand(times.shape) < 0.3] = INF
    times[2] = INF  # one sample is dark
    found = layer(times)
    expected: Counter[str] = Counter()
    for sample, fired in zip(times, found, strict=True):
        own, did = clocked(layer, sample, deadline)
        if deadline == INF:
            assert own == fired.flatten().tolist()
        expected += did
        expected["spikes"] += sum(t <= deadline for t in fired.flatten().tolist() if t < INF)
    assert expected["ac"] > 0 and expected["comparisons"] > 0
    counts = counted(Network(layer), times, deadline=None if deadline == INF else deadline)
    synapse, neuron = counts.layers["0.synapse"], counts.layers["0.neuron"]
    assert synapse.events == expected["events"] and synapse.synaptic_ac == expected["ac"]
    assert synapse.dense == expected["dense"]
    # a convolution finds the place of a patch for every event, a matrix has its row
    assert (synapse.address_ac, synapse.address_mac) == (
        expected["ac"],
        0 if geometry == "linear" else 2 * expected["events"],
    )
    assert neuron.comparisons == expected["comparisons"]
    assert neuron.ac == expected["added"] + expected["shared"]
    assert neuron.spikes == expected["spikes"] and counts.samples == 3


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_fan_out_counts_the_synapses_of_each_input(geometry: str) -> None:
    make, shape = GEOMETRIES[geometry]
    layer = make()
    reaches, _ = synapses(layer, shape)
    assert fan_out(layer, torch.zeros(2, *shape)).flatten().tolist() == [len(own) for own in reaches]
    assert len({len(own) for own in reaches}) > 1 or geometry == "linear"  # borders differ from the middle


def test_batches_add_up_and_each_sample_may_end_at_its_own_time() -> None:
    torch.manual_seed(1)
    network = Network(
        TimingConv2d(1, 4, 3, stop=16.0), EarliestPool2d(2), Flatten(), TimingLinear(36, 10, stop=16.0)
    )
    times = torch.randint(0, 16, (6, 1, 8, 8)).float()
    whole = counted(network, times)
    parts = FirstSpikeCounts()
    for part in times.split(2):
        counted(network, part, into=parts)
    assert parts.to_dict() == whole.to_dict() and whole.samples == 6
    decided = network(times).amin(1)
    assert bool(torch.isfinite(decided).all())
    early = counted(network, times, deadline=decided)
    alone = FirstSpikeCounts()
    for sample, when in zip(times, decided.tolist(), strict=True):
        counted(network, sample[None], into=alone, deadline=when)
    assert early.to_dict() == alone.to_dict()
    assert energy_per_sample(early, FP32) < energy_per_sample(whole, FP32)


def test_times_between_the_steps_count_as_if_the_clock_met_them() -> None:
    torch.manual_seed(2)
    whole, exact = (TimingLinear(30, 20, stop=16.0, exact=exact) for exact in (False, True))
    exact.load_state_dict(whole.state_dict())
    times = torch.randint(0, 16, (4, 30)).float()
    found = exact(times)
    assert bool((found[torch.isfinite(found)].frac() > 0).any())
    rows = [counted(Network(layer), times).layers["0.neuron"] for layer in (whole, exact)]
    assert rows[0].updates == rows[1].updates and rows[0].comparisons == rows[1].comparisons


# ------------------------------------------------------------------------------------------------- between layers


def test_pools_look_at_spikes_in_whole_windows_only() -> None:
    times = torch.full((1, 1, 5, 5), INF)
    times[0, 0, 0, 0], times[0, 0, 1, 1], times[0, 0, 4, 4] = (
        3.0,
        2.0,
        1.0,
    )  # the last one lies in no whole window
    for pool, ac, mac, looks in (
        (EarliestPool2d(2), 0, 0, 2),
        (AveragePool2d(2, stop=8.0), 2, 0, 0),
        (AveragePool2d(3, stop=8.0), 2, 1, 0),  # a ninth is no shift
    ):
        counts = counted(
            Network(pool, Flatten(), TimingLinear(4 if pool.size == 2 else 1, 2, stop=8.0)), times
        )
        row = counts.layers["0"]
        assert (row.ac, row.mac, row.comparisons) == (ac, mac, looks)
        assert not counts.uncounted
    # what comes out of the first pool is one spike, and the layer behind hears one
    assert (
        counted(Network(EarliestPool2d(2), Flatten(), TimingLinear(4, 2, stop=8.0)), times)
        .layers["2.synapse"]
        .events
        == 1
    )


def test_dropout_silences_nothing_here_and_strangers_are_named() -> None:
    network = Network(Silence(0.9), TimingLinear(50, 3, stop=8.0)).train()
    times = torch.zeros(1, 50)
    with torch.no_grad():
        counts = count_first_spike_operations(network, {"input": times, "1": torch.full((1, 3), INF)})
    assert counts.layers["1.synapse"].events == 50
    counts = counted(Network(torch.nn.Hardtanh(0.0, 99.0), TimingLinear(50, 3, stop=8.0)), times)
    assert list(counts.uncounted) == ["0"] and "Hardtanh" in counts.uncounted["0"]


def test_the_relu_network_of_the_same_shape_on_paper() -> None:
    network = Network(
        TimingConv2d(1, 4, 3, padding=1, stop=16.0),
        EarliestPool2d(2),
        Flatten(),
        TimingLinear(64, 10, stop=16.0),
    )
    counts = counted(network, torch.zeros(2, 1, 8, 8))
    # 3 x 3 at 8 x 8 places with zeros around: (3 * 8 - 2) of 24 rows and columns
    products = 4 * 22 * 22 + 64 * 10
    (relu,) = same_shape(counts, INT32)
    assert relu.energy == pytest.approx((products * 3.2 + (4 * 64 + 10) * 0.1) * 1e-3)
    assert relu.parameters == 36 + 640 and relu.kind == "ReLU, same shape"


def test_the_table_says_spikes_per_neuron() -> None:
    counts = counted(paper(), torch.tensor([[1.0, 3.0]]))
    found = summary(counts, FP32, same_shape(counts, FP32))
    assert found["rate_per"] == "neuron" and found["steps"] == 8
    text = table(found)
    assert "per neuron, step" not in text and "ReLU, same shape" in text
    assert "break-even rate (spikes per neuron)" in " ".join(text.split())
    even = break_even(counts, FP32, energy_per_sample(counts, FP32))
    assert even.rate == pytest.approx(counts.rate) and "per neuron at" in even.words


def test_what_is_missing_is_named() -> None:
    network, times = paper(), torch.zeros(2, 2)
    with pytest.raises(ParameterError, match="got none of input"):
        count_first_spike_operations(network, network.follow(times)[1])
    with pytest.raises(ShapeError, match="2 samples.*got 1 of layer 1"):
        count_first_spike_operations(
            network, {"input": times, "0": torch.zeros(2, 2), "1": torch.zeros(1, 1)}
        )
