"""Synaptic operations, counted by hand."""

from __future__ import annotations

import pytest
import torch

from spiketide.compose import Recurrent, Sequential
from spiketide.energy import connections, count_operations
from spiketide.neurons import LIF
from spiketide.synapses import Conv2d, Dense


def test_dense_by_hand() -> None:
    x = torch.zeros(4, 2, 3)
    x[0, 0, 1] = 1.0
    x[3, 1, 2] = -0.5
    assert connections(Dense(3, 5), x) == 2 * 5
    lengths = torch.tensor([4, 2])  # the second event is past its sample's end
    assert connections(Dense(3, 5), x, lengths) == 5
    assert connections(Dense(3, 5), torch.ones_like(x), lengths) == 6 * 3 * 5


def test_convolution_knows_its_borders() -> None:
    x = torch.zeros(1, 1, 1, 3, 3)
    x[..., 0, 0] = 1.0  # a corner reaches 4 of the 9 places of a padded 3 x 3 kernel
    assert connections(Conv2d(1, 2, 3, padding=1), x) == 4 * 2
    # 3 x 3 places with padding: 9 centre taps + 12 side taps + 4 corner taps + ... = 49 in all
    assert connections(Conv2d(1, 2, 3, padding=1), torch.ones_like(x)) == 49 * 2


def test_a_network_with_feedback() -> None:
    torch.manual_seed(0)
    network = Sequential(Dense(3, 8), Recurrent(LIF(8, tau_mem=3.0, threshold=0.3), Dense(8, 8)), Dense(8, 2))
    x, lengths = (torch.rand(12, 4, 3) < 0.4).float(), torch.tensor([12, 3, 7, 12])
    valid = (torch.arange(12).unsqueeze(1) < lengths).unsqueeze(-1)
    with count_operations(network) as total:
        network(x, lengths=lengths)
        total.samples += 4
    with torch.no_grad():
        hidden, _ = Sequential(network[0], network[1])(x, lengths=lengths)
    fed_back = torch.cat([torch.zeros(1, 4, 8), hidden[:-1]]) * valid
    assert hidden.sum() > 20
    assert total.sparse == {
        "0": float((x * valid).sum()) * 8,
        "1.synapse": float(fed_back.sum()) * 8,
        "2": float(hidden.sum()) * 2,
    }
    steps = int(lengths.sum())
    assert total.dense == {"0": steps * 3 * 8, "1.synapse": steps * 8 * 8, "2": steps * 8 * 2}
    assert total.sparse_per_sample == pytest.approx(sum(total.sparse.values()) / 4)
    assert total.dense_per_sample == pytest.approx(sum(total.dense.values()) / 4)


def test_the_count_changes_nothing_and_leaves_nothing() -> None:
    network = Sequential(Dense(3, 4), LIF(4))
    x = torch.rand(5, 2, 3)
    before, _ = network(x)
    with count_operations(network):
        during, _ = network(x)
    assert torch.equal(before, during)
    assert not any(module._forward_hooks for module in network.modules())
