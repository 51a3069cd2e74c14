"""Operations of convolutions in time and of lateral connections, against plain loops over their spikes."""

from __future__ import annotations

import itertools

import pytest
import torch
from helpers import assert_fires

from spiketide import Lateral, NormalizedLIF, Sequential, TemporalConv2d
from spiketide.energy import count_operations, metering
from spiketide.probe import record


@pytest.mark.parametrize("padding", ["causal", "same"])
def test_counts_are_those_of_loops_over_the_events(padding: str) -> None:
    torch.manual_seed(0)
    conv = TemporalConv2d(2, 4, (3, 3), dilation=(2, 1), padding=padding, bias=False)
    neuron = NormalizedLIF((4, 5), threshold=0.3, reset="none")
    network = Sequential(Lateral(conv, neuron)).eval()
    x = torch.randn(9, 3, 2, 5) * (torch.rand(9, 3, 2, 5) < 0.6)
    lengths = torch.tensor([9, 4, 1])
    with torch.no_grad(), count_operations(network) as total, record(network) as seen:
        network(x, lengths=lengths)
    with torch.no_grad(), metering(network) as counts:
        network(x, lengths=lengths)
    (spikes,) = seen.spikes().values()
    assert_fires(spikes[:, :1])
    back = 4 if padding == "causal" else 2
    effective = dense = 0
    for b, n in enumerate(lengths.tolist()):
        for t, f, k, j in itertools.product(range(n), range(5), range(3), range(3)):
            when, where = t + 2 * k - back, f + j - 1
            if 0 <= when < n and 0 <= where < 5:
                dense += 2 * 4
                effective += 4 * int((x[when, b, :, where] != 0).sum())
    lateral = sum(4 * float(spikes[t, b].sum()) for b, n in enumerate(lengths.tolist()) for t in range(n - 1))
    assert lateral > 0
    assert total.sparse == {"0.synapse": effective, "0.lateral": lateral}
    assert total.dense == {"0.synapse": dense, "0.lateral": float(int(lengths.sum()) * 4 * 5 * 4)}
    rows = counts.layers
    assert set(rows) == {"0.synapse", "0.lateral", "0.neuron"} and not counts.uncounted
    assert (rows["0.synapse"].effective, rows["0.synapse"].dense) == (effective, dense)
    assert (rows["0.lateral"].effective, rows["0.lateral"].words) == (lateral, 16)
    assert rows["0.synapse"].graded and not rows["0.synapse"].driven and rows["0.lateral"].driven
    assert rows["0.neuron"].spikes == float(spikes.sum())
    # a decay and a comparison a step; the gain of the drive is in the weights
    assert rows["0.neuron"].mac == rows["0.neuron"].updates == int(lengths.sum()) * 20


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("cuts", [(5,), (1, 2, 8), (3, 4, 5, 6)])
def test_chunks_count_what_the_whole_sequence_does(stride: int, cuts: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    conv = TemporalConv2d(2, 4, (3, 3), dilation=(2, 1), stride=(stride, 1), bias=False)
    network = Sequential(Lateral(conv, NormalizedLIF((4, 5), threshold=0.2, reset="none"))).eval()
    x = torch.randn(11, 3, 2, 5) * (torch.rand(11, 3, 2, 5) < 0.6)
    with torch.no_grad(), metering(network) as whole:
        network(x)
    state = None
    with torch.no_grad(), metering(network) as chunks:
        for start, stop in itertools.pairwise((0, *cuts, 11)):
            _, state = network(x[start:stop], state)
    assert whole.layers["0.lateral"].effective > 0
    assert chunks.layers == whole.layers and chunks.samples == whole.samples
    state = None
    with torch.no_grad(), count_operations(network) as total:
        for start, stop in itertools.pairwise((0, *cuts, 11)):
            _, state = network(x[start:stop], state)
    assert total.sparse == {name: whole.layers[name].effective for name in ("0.synapse", "0.lateral")}
