"""Timing-only data: exactly one spike for each unit, and times that tell the class."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from spiketide.data import Randman
from spiketide.errors import ParameterError

SMALL = {"units": 12, "classes": 4, "steps": 40, "samples_per_class": 60}


def test_every_unit_fires_exactly_once():
    data = Randman(**SMALL)
    for part, n in (("train", 4 * 48), ("test", 4 * 12)):
        samples = data.read(part)
        assert samples.x.shape == (n, 40, 12)
        assert samples.x.unique().tolist() == [0, 1]
        assert (samples.x.sum(1) == 1).all()  # counts carry nothing
        assert np.bincount(samples.y).tolist() == [n // 4] * 4
    whole = torch.cat([data.read(part).x for part in ("train", "test")])
    assert whole[:, 0].any() and whole[:, -1].any()  # all of the time is used


def test_it_comes_from_its_seed():
    first, again = Randman(**SMALL).read("train"), Randman(**SMALL, seed=3).read("train")
    assert torch.equal(first.x, again.x)
    assert not torch.equal(first.x, Randman(**SMALL, data_seed=1).read("train").x)
    parts = Randman(**SMALL).split_indices
    assert sorted(parts["train"] + parts["validation"] + parts["test"]) == list(range(240))
    state = np.random.get_state()[1].copy()
    Randman(**SMALL).read("test")
    assert np.array_equal(state, np.random.get_state()[1])


def times(samples) -> np.ndarray:
    return samples.x.numpy().argmax(1).astype(float)


def test_neighbours_in_time_are_of_one_class_and_smoothness_helps():
    accuracy = {}
    for dim, alpha in ((1, 2.0), (2, 0.5)):
        data = Randman(dim=dim, alpha=alpha, **SMALL)
        train, test = data.read("train"), data.read("test")
        distance = ((times(test)[:, None] - times(train)[None]) ** 2).sum(-1)
        accuracy[dim] = (train.y[distance.argmin(1)] == test.y).float().mean().item()
    assert accuracy[1] > 0.95  # one nearest neighbour on smooth curves; chance is 0.25
    assert accuracy[2] < accuracy[1]


def test_the_times_are_the_formula():
    data = Randman(dim=2, alpha=1.5, units=3, classes=2, steps=50, samples_per_class=10, cutoff=4)
    random = np.random.RandomState(0)
    for k in range(2):
        points = random.uniform(size=(10, 2))
        a, b, c = random.uniform(size=(3, 3, 2, 4))
        f = np.ones((10, 3))
        for s in range(10):
            for i in range(3):
                for d in range(2):
                    f[s, i] *= sum(
                        n**-1.5
                        * a[i, d, n - 1]
                        * np.sin(2 * np.pi * (n * points[s, d] * b[i, d, n - 1] + c[i, d, n - 1]))
                        for n in range(1, 5)
                    )
        expected = np.minimum(np.floor(50 * (f - f.min(0)) / (f.max(0) - f.min(0))), 49)
        assert np.array_equal(data._draw()[10 * k : 10 * k + 10], expected)


def test_batches():
    data = Randman(**SMALL, batch_size=16)
    batch = next(iter(data.train_dataloader()))
    assert batch.x.shape == (40, 16, 12) and batch.lengths is None
    assert batch.x.dtype == torch.float32 and (batch.x.sum(0) == 1).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dim": 0}, "dim of 1"),
        ({"units": 0}, "units of 1"),
        ({"classes": 1}, "classes of 2"),
        ({"steps": 1}, "steps of 2"),
        ({"cutoff": 0}, "cutoff of 1"),
        ({"samples_per_class": 2}, "samples_per_class of 3"),
        ({"samples_per_class": 4, "test_fraction": 0.01}, "at least one test"),
        ({"alpha": -1.0}, "alpha of 0"),
        ({"alpha": float("nan")}, "alpha of 0"),
        ({"test_fraction": 1.0}, "test_fraction between"),
        ({"data_seed": -1}, "data_seed from 0"),
    ],
)
def test_options_that_make_no_sense(options, words):
    with pytest.raises(ParameterError, match=words):
        Randman(**options)
