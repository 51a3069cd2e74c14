from __future__ import annotations

import hashlib

import numpy as np
import torch
from data_files import everything
from sklearn.datasets import load_digits

from spiketide.data import Digits

LABELS = load_digits().target


def test_sizes_values_and_shapes():
    data = Digits(batch_size=2000)
    parts = data.split_indices
    assert {part: len(ids) for part, ids in parts.items()} == {"train": 1294, "validation": 144, "test": 359}
    assert everything(parts) == list(range(1797))
    batch = next(iter(data.train_dataloader()))
    assert batch.x.shape == (1294, *data.sample_shape)
    assert batch.lengths is None
    assert float(batch.x.min()) == 0.0
    assert float(batch.x.max()) == 1.0
    assert torch.equal(batch.x * 16, (batch.x * 16).round())


def test_images_and_labels_are_those_of_the_ids():
    data = Digits(eval_batch_size=500)
    data.setup("test")
    batch = next(iter(data.test_dataloader()))
    ids = data.split_indices["test"]
    assert batch.y.tolist() == LABELS[ids].tolist()
    assert np.array_equal(batch.x.squeeze(1).numpy() * 16, load_digits().images[ids])


def test_every_part_is_stratified():
    share = np.bincount(LABELS) / 1797
    for ids in Digits(seed=8).split_indices.values():
        assert np.abs(np.bincount(LABELS[ids]) - share * len(ids)).max() <= 1.0


def test_the_test_part_is_fixed_for_ever():
    first, second = Digits(seed=0).split_indices, Digits(seed=1, validation_fraction=0.3).split_indices
    assert first["test"] == second["test"]
    assert first["validation"] != second["validation"]
    assert hashlib.sha256(str(first["test"]).encode()).hexdigest()[:16] == GOLDEN_TEST


GOLDEN_TEST = "8c799a8a0e00d0fe"
