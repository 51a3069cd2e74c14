from __future__ import annotations

import pytest
import torch

from spiketide.data import collate
from spiketide.errors import DataError, ShapeError


def test_static_samples_keep_their_layout():
    x = torch.arange(24.0).reshape(2, 3, 4)
    batch = collate(x, torch.tensor([1, 0]), temporal=False)
    assert torch.equal(batch.x, x)
    assert batch.lengths is None
    assert batch.y.tolist() == [1, 0]


def test_sequences_of_one_length_get_time_first_and_no_lengths():
    x = torch.arange(24.0).reshape(2, 3, 4)
    batch = collate(x, torch.tensor([1, 0]), temporal=True)
    assert batch.x.shape == (3, 2, 4)
    for b in range(2):
        for t in range(3):
            assert torch.equal(batch.x[t, b], x[b, t])
    assert batch.x.is_contiguous()
    assert batch.lengths is None


def test_ragged_sequences_are_zero_padded_with_their_lengths():
    samples = [torch.full((3, 2), 1.0), torch.full((1, 2), 2.0), torch.full((4, 2), 3.0)]
    batch = collate(samples, torch.tensor([5, 6, 7]), temporal=True)
    assert batch.x.shape == (4, 3, 2)
    assert batch.lengths.tolist() == [3, 1, 4]
    assert batch.lengths.dtype == torch.int64
    assert batch.x[:, :, 0].tolist() == [[1, 2, 3], [1, 0, 3], [1, 0, 3], [0, 0, 3]]


def test_lists_always_give_lengths():
    batch = collate([torch.ones(2, 1), torch.ones(2, 1)], torch.tensor([0, 0]), temporal=True)
    assert batch.lengths.tolist() == [2, 2]


def test_higher_ranks():
    batch = collate([torch.ones(2, 1, 4, 5), torch.ones(3, 1, 4, 5)], torch.tensor([0, 0]), temporal=True)
    assert batch.x.shape == (3, 2, 1, 4, 5)
    assert batch.x[2].sum() == 20


@pytest.mark.parametrize(
    ("x", "y", "temporal", "error", "words"),
    [
        ([], torch.zeros(0, dtype=torch.long), True, DataError, "at least one sample"),
        (torch.ones(2, 3, 1), torch.zeros(3, dtype=torch.long), True, ShapeError, r"y \(2,\), got \(3,\)"),
        (torch.ones(2, 3), torch.zeros(2, dtype=torch.long), True, ShapeError, r"x.unsqueeze\(-1\)"),
        ([torch.ones(3)], torch.zeros(1, dtype=torch.long), False, ShapeError, "torch.stack"),
        ([torch.ones(3, 2), torch.ones(3, 4)], torch.zeros(2, dtype=torch.long), True, ShapeError, "one N"),
        ([torch.ones(3)], torch.zeros(1, dtype=torch.long), True, ShapeError, "feature axis"),
    ],
)
def test_refusals(x, y, temporal, error, words):
    with pytest.raises(error, match=words):
        collate(x, y, temporal=temporal)
