"""Both binnings against a loop that is written out, and everything that is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from spiketide.data import ArrayData, EventFrames
from spiketide.data.augment import Augmented, shifted, warped
from spiketide.data.base import Samples
from spiketide.errors import DataError, ParameterError


def slow(times, units, n_units, dt, binning, group):
    """One event after the other."""
    if len(times) == 0:
        return np.zeros((1, n_units // group))
    rows: list[np.ndarray] = []
    opened = None
    for t, unit in zip(times, units, strict=True):
        t = float(t)
        if binning == "uniform":
            number = math.floor(1000.0 * t / dt)
        else:
            if opened is None or 1000.0 * t - 1000.0 * opened > dt:
                opened = t
                rows.append(np.zeros(n_units // group))
            number = len(rows) - 1
        while len(rows) <= number:
            rows.append(np.zeros(n_units // group))
        rows[number][int(unit) // group] += 1
    return np.array(rows)


def recording(seed: int, n: int = 400, kind: str = "f2") -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    gaps = rng.exponential(0.003, size=n) * (1 + 40 * (rng.random(n) < 0.02))  # with pauses
    return np.sort(np.cumsum(gaps).astype(kind)), rng.integers(0, 12, size=n).astype("u2")


@pytest.mark.parametrize("binning", ["uniform", "anchored"])
@pytest.mark.parametrize("kind", ["f2", "f4", "f8"])
@pytest.mark.parametrize(("dt", "group"), [(10.0, 1), (10.0, 4), (2.5, 3), (1000.0, 12)])
def test_frames_are_those_of_the_slow_loop(binning, kind, dt, group):
    for seed in range(5):
        times, units = recording(seed, kind=kind)
        found = EventFrames(units=12, dt=dt, binning=binning, group=group)(times, units)
        expected = slow(times, units, 12, dt, binning, group)
        assert found.dtype == np.float32
        assert np.array_equal(found, expected)
        assert found.sum() == len(times)


def test_what_anchored_frames_do_with_silence_and_edges():
    frames = EventFrames(units=2, binning="anchored", dt=10.0)
    # 0.5 s of silence first; 0.510 is exactly dt after the opening and belongs to the frame; then a pause.
    found = frames([0.5, 0.51, 0.5101, 3.0], [0, 1, 1, 0])
    assert found.tolist() == [[1, 1], [0, 1], [1, 0]]
    assert len(EventFrames(units=2, dt=10.0)([0.5, 0.51, 0.5101, 3.0], [0, 1, 1, 0])) == 301


def test_counts_and_binary_and_limits():
    times, units = [0.001, 0.002, 0.003, 0.015, 0.029, 0.030], [3, 3, 2, 0, 0, 1]
    assert EventFrames(units=4)(times, units).tolist() == [
        [0, 0, 1, 2],
        [1, 0, 0, 0],
        [1, 0, 0, 0],
        [0, 1, 0, 0],
    ]
    assert EventFrames(units=4, binary=True)(times, units)[0].tolist() == [0, 0, 1, 1]
    assert EventFrames(units=4, group=2)(times, units)[0].tolist() == [0, 3]
    assert EventFrames(units=4, group=2, binary=True)(times, units)[0].tolist() == [0, 1]
    assert len(EventFrames(units=4, max_steps=2)(times, units)) == 2
    assert EventFrames(units=4, max_steps=2)(times, units).sum() == 4
    assert EventFrames(units=4, max_time=0.03)(times, units).sum() == 5  # at the limit: out
    assert len(EventFrames(units=4, max_time=0.015)(times, units)) == 1


@pytest.mark.parametrize("binning", ["uniform", "anchored"])
def test_no_events_are_one_silent_frame(binning):
    frames = EventFrames(units=6, group=3, binning=binning)
    assert frames([], []).tolist() == [[0.0, 0.0]]
    assert EventFrames(units=6, binning=binning, max_time=0.1)([0.5], [1]).shape == (1, 6)


def test_sorting_is_asked_for_and_stable():
    times, units = [0.020, 0.001, 0.020, 0.005], [1, 0, 2, 1]
    with pytest.raises(DataError, match="expected ascending times in the recording.*sort=True"):
        EventFrames(units=3)(times, units)
    found = EventFrames(units=3, binning="anchored", dt=4.0, sort=True)(times, units)
    assert found.tolist() == [[1, 1, 0], [0, 1, 1]]


@pytest.mark.parametrize(
    ("times", "units", "words"),
    [
        ([0.1, 0.2], [0], r"one unit for each time.*\(2,\).*\(1,\)"),
        ([[0.1]], [[0]], "one unit for each time"),
        ([0.1, float("nan")], [0, 0], "finite times.*got 1 NaN or infinite among 2"),
        ([0.1, float("inf")], [0, 0], "finite times"),
        ([-0.1, 0.2], [0, 0], "times from 0 s on.*-0.1 s"),
        ([0.1, 0.2], [0, 4], "units from 0 to 3.*got 0 to 4"),
        ([0.1, 0.2], [-1, 0], "units from 0 to 3.*got -1"),
        ([0.1], [0.5], "whole numbers as units.*float64"),
        (["a"], [0], "numbers as times"),
    ],
)
def test_broken_events(times, units, words):
    with pytest.raises(DataError, match=words) as caught:
        EventFrames(units=4, sort=True)(times, units, name="tap 3")
    assert "tap 3" in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"group": 3}, "divides the 700 units, got 3"),
        ({"group": 0}, "divides the 700 units, got 0"),
        ({"units": 0}, "units of 1 or more"),
        ({"dt": 0.0}, "dt > 0"),
        ({"dt": float("nan")}, "dt > 0"),
        ({"binning": "anchord"}, "did you mean 'anchored'"),
        ({"max_time": 0.0}, "max_time > 0"),
        ({"max_steps": 0}, "max_steps of 1"),
    ],
)
def test_options_that_make_no_sense(options, words):
    with pytest.raises(ParameterError, match=words):
        EventFrames(**options)


# Augmentation.


def test_warped_and_shifted_against_a_loop():
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 5, size=(13, 7))
    for factor in (0.7, 0.95, 1.0, 1.3):
        found = warped(frames, factor)
        assert len(found) == round(13 * factor)
        for t, row in enumerate(found):
            assert np.array_equal(row, frames[min(int((t + 0.5) / factor), 12)])
    assert np.array_equal(warped(frames, 1.0), frames)
    assert warped(frames, 0.5, 13)[6:].sum() == 0
    for by in (-8, -2, 0, 3, 7):
        expected = np.zeros_like(frames)
        for c in range(7):
            if 0 <= c - by < 7:
                expected[:, c] = frames[:, c - by]
        assert np.array_equal(shifted(frames, by), expected)


class Tones(Augmented):
    """24 samples whose channel and first step tell their number."""

    def __init__(self, lists: bool = False, **options) -> None:
        super().__init__(validation_fraction=0.25, batch_size=4, **options)
        self.lists = lists

    temporal = True
    class_names = ("a", "b")
    sample_shape = (16,)

    def read(self, part):
        n, first = (24, 0) if part == "train" else (8, 24)
        x = torch.zeros(n, 20, 16, dtype=torch.uint8)
        x[:, 2:18, 8] = 1
        x[:, 0, 8] = torch.arange(n, dtype=torch.uint8) + 10
        return Samples(list(x) if self.lists else x, torch.arange(n) % 2, torch.arange(first, first + n))


def epoch_of(data, epoch: int, **options) -> dict[int, torch.Tensor]:
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    found = {}
    for batch in loader:
        for b in range(len(batch.y)):
            x = batch.x[:, b]
            found[int(x.max()) - 10] = x[: batch.lengths[b]] if batch.lengths is not None else x
    return found


def test_augmentation_depends_on_seed_epoch_and_sample_only():
    options = {"channel_shift": 3, "seed": 5}
    first, again = epoch_of(Tones(**options), 1), epoch_of(Tones(**options), 1)
    alone = Tones(**options)
    alone.batch_size = 1
    one_by_one, next_epoch = epoch_of(alone, 1), epoch_of(Tones(**options), 2)
    workers = epoch_of(Tones(num_workers=1, **options), 1)
    other_seed = epoch_of(Tones(channel_shift=3, seed=6), 1)
    assert len(first) == 18
    for number, x in first.items():
        for same in (again, one_by_one, workers):
            assert torch.equal(x, same[number])
    assert any(not torch.equal(x, next_epoch[number]) for number, x in first.items())
    common = first.keys() & other_seed.keys()
    assert any(not torch.equal(first[number], other_seed[number]) for number in common)
    channels = {
        int(x.sum(0).argmax()) for epoch in range(6) for x in epoch_of(Tones(**options), epoch).values()
    }
    assert channels == set(range(5, 12))  # every shift comes, none is larger


def test_warping_lists_changes_lengths_and_tensors_keep_theirs():
    lengths = {len(x) for x in epoch_of(Tones(lists=True, time_warp=(0.8, 1.2)), 0).values()}
    assert min(lengths) >= 16 and max(lengths) <= 24 and len(lengths) > 3
    assert {len(x) for x in epoch_of(Tones(time_warp=(0.8, 1.2)), 0).values()} == {20}


def test_only_training_samples_are_changed_and_the_order_stays():
    plain, changed = Tones(), Tones(channel_shift=7, time_warp=(0.5, 0.6))
    for a, b in zip(plain.val_dataloader(), changed.val_dataloader(), strict=True):
        assert torch.equal(a.x, b.x)
    for data in (plain, changed):
        data.setup("test")
    for a, b in zip(plain.test_dataloader(), changed.test_dataloader(), strict=True):
        assert torch.equal(a.x, b.x)
    ys = [torch.cat([batch.y for batch in data.train_dataloader()]) for data in (plain, changed)]
    assert torch.equal(*ys)
    state = torch.random.get_rng_state()
    epoch_of(changed, 0)
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize(
    "options", [{"channel_shift": -1}, {"time_warp": (1.1, 0.9)}, {"time_warp": (0.0, 1.0)}]
)
def test_augmentation_that_makes_no_sense(options):
    with pytest.raises(ParameterError, match=r"Tones expected (channel_shift|time_warp)"):
        Tones(**options)


def test_frames_feed_array_data():
    frames = EventFrames(units=12, group=4)
    x = [frames(*recording(seed)) for seed in range(12)]
    data = ArrayData(x, [0, 1] * 6, temporal=True, batch_size=4, validation_fraction=0.2)
    batch = next(iter(data.train_dataloader()))
    assert batch.x.shape[1:] == (4, 3)


def test_min_steps_adds_silence_behind():
    frames = EventFrames(units=4, min_steps=6)
    short = frames([0.001, 0.021], [0, 3])
    assert short.shape == (6, 4) and short[:3].sum() == 2 and not short[3:].any()
    np.testing.assert_array_equal(short[:3], EventFrames(units=4)([0.001, 0.021], [0, 3]))
    assert frames([], []).shape == (6, 4)
    assert frames([0.099], [1]).shape == (10, 4)  # a longer one is as it was
    for options in ({"min_steps": 0}, {"min_steps": 5, "max_steps": 4}):
        with pytest.raises(ParameterError, match="min_steps from 1 to max_steps"):
            EventFrames(units=4, **options)
