"""FSDD as spikes: the counts of the codes, the splits of FSDD, the cache, and what a matrix hears in them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from data_files import REPETITIONS, SPEAKERS

from spiketide.data import FSDD, SpikingFSDD
from spiketide.data.fsdd import FSDDRecordings, decode_wav
from spiketide.encoders import BandLevels, Cochlea
from spiketide.errors import DataError, ParameterError


@pytest.fixture(autouse=True)
def _small(monkeypatch, request):
    if "real_data" not in request.fixturenames:
        monkeypatch.setattr(FSDDRecordings, "speakers", SPEAKERS)
        monkeypatch.setattr(FSDDRecordings, "repetitions", REPETITIONS)


def wave_of(root, data, number: int) -> np.ndarray:
    digit, speaker, index = data.recordings[number]
    path = root / "fsdd" / "recordings" / f"{digit}_{speaker}_{index}.wav"
    return decode_wav(path.read_bytes(), path)


def test_counts_are_those_of_the_cochlea(fsdd_root):
    data = SpikingFSDD(root=fsdd_root, channels=70, dt=5.0, steps=25, refractory=2.0)
    samples = data.read("test")
    assert samples.x.shape == (150, 25, 70) and samples.x.dtype == torch.uint8
    total = 0
    for row in range(0, 150, 7):
        times, units = Cochlea(level=85.0, refractory=2.0)(wave_of(fsdd_root, data, int(samples.ids[row])))
        expected = np.zeros((400, 70))
        for t, unit in zip(np.rint(times * 8000).astype(int), units, strict=True):
            expected[t // 40, unit // 10] += 1
        assert np.array_equal(samples.x[row].numpy(), expected[:25])
        total += expected.sum()
    assert total > 1000


def test_counts_are_those_of_the_level_code(fsdd_root):
    data = SpikingFSDD(root=fsdd_root, code="levels", channels=20, steps=None)
    samples = data.read("train")
    for row in range(0, 60, 9):
        expected = BandLevels(channels=20)(wave_of(fsdd_root, data, int(samples.ids[row])))
        assert np.array_equal(samples.x[row].numpy(), expected)
    assert max(int(x.max()) for x in samples.x) == 5


def test_sequences_are_as_long_as_the_recordings(fsdd_root):
    for code in ("cochlea", "levels"):
        data = SpikingFSDD(root=fsdd_root, code=code, steps=None, validation_fraction=0.3)
        samples = data.read("test")
        for x, number in zip(samples.x, samples.ids.tolist(), strict=True):
            assert len(x) == -(-len(wave_of(fsdd_root, data, number)) // 80)
        batch = next(iter(data.train_dataloader()))
        assert batch.lengths is not None and batch.x.shape[0] == batch.lengths.max()


def test_splits_are_those_of_fsdd(fsdd_root):
    for options in (
        {"validation_fraction": 0.3},
        {"held_out_speaker": "theo"},
        {"held_out_speaker": "theo", "validation_speaker": "lucas"},
    ):
        spikes, frames = SpikingFSDD(root=fsdd_root, **options), FSDD(root=fsdd_root, **options)
        assert spikes.split_indices == frames.split_indices


def test_batches(fsdd_root):
    data = SpikingFSDD(root=fsdd_root, held_out_speaker="theo", batch_size=8, binary=True)
    batch = next(iter(data.train_dataloader()))
    assert batch.x.shape == (60, 8, 140) and batch.lengths is None
    assert batch.x.unique().tolist() == [0.0, 1.0]
    changed = SpikingFSDD(
        root=fsdd_root,
        held_out_speaker="theo",
        batch_size=8,
        binary=True,
        channel_shift=9,
        time_warp=(0.9, 1.1),
    )
    other = next(iter(changed.train_dataloader()))
    assert torch.equal(other.y, batch.y) and other.x.shape == batch.x.shape
    assert not torch.equal(other.x, batch.x)


def test_spikes_are_encoded_once_for_all_bins(fsdd_root, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    calls = []
    original = Cochlea.__call__
    monkeypatch.setattr(Cochlea, "__call__", lambda self, wave: (calls.append(1), original(self, wave))[1])
    first = SpikingFSDD(root=fsdd_root).read("train")
    assert len(calls) == 210
    again = SpikingFSDD(root=fsdd_root).read("train")
    assert torch.equal(first.x, again.x)
    SpikingFSDD(root=fsdd_root, dt=5.0, channels=700, steps=20).read("test")
    assert len(calls) == 210
    SpikingFSDD(root=fsdd_root, level=60.0).read("test")
    assert len(calls) == 420


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"code": "cochlear"}, "did you mean 'cochlea'"),
        ({"channels": 150}, "divide the 700 cells"),
        ({"channels": 0}, "divide the 700 cells"),
        ({"code": "levels", "channels": 0}, "channels > 0"),
        ({"steps": 0}, "steps of 1"),
        ({"dt": -1.0}, "dt > 0"),
        ({"held_out_speaker": "teo"}, "did you mean 'theo'"),
        ({"held_out_speaker": "theo", "validation_speaker": "theo"}, "'theo' for both"),
        ({"time_warp": (2.0, 1.0)}, "time_warp"),
    ],
)
def test_options_that_make_no_sense(options, words):
    with pytest.raises(ParameterError, match=words):
        SpikingFSDD(**options)


def test_missing_recordings(tmp_path, fsdd_root):
    import shutil

    shutil.copytree(fsdd_root / "fsdd", tmp_path / "fsdd")
    (tmp_path / "fsdd" / "recordings" / "3_theo_2.wav").unlink()
    with pytest.raises(DataError, match=r"the first: 3_theo_2\.wav"):
        SpikingFSDD(root=tmp_path).prepare_data()


def windows(frames: np.ndarray) -> np.ndarray:
    """Twenty windows of the recording's own length, pairs of channels: what a matrix is given."""
    edges = np.linspace(0, len(frames), 21)
    low = np.floor(edges).astype(int)
    sums = np.concatenate([np.zeros((1, frames.shape[1])), np.cumsum(frames, 0)])
    whole = sums[low] + (edges - low)[:, None] * frames[np.minimum(low, len(frames) - 1)]
    return np.diff(whole, axis=0).reshape(20, -1, 2).sum(2).ravel()


@pytest.mark.parametrize(("code", "at_least"), [("cochlea", 0.70), ("levels", 0.70)])
def test_a_linear_classifier_hears_the_digits(real_data, code, at_least):
    """A ridge on the counts, speaker theo held out: measured 77 % and 75 %; chance is 10 %."""
    data = SpikingFSDD(root=real_data, held_out_speaker="theo", code=code, steps=None)
    train, test = data.read("train"), data.read("test")
    a, b = (np.array([windows(x.numpy().astype(float)) for x in part.x]) for part in (train, test))
    mean, sd = a.mean(0), a.std(0) + 1e-3
    a, b = (np.column_stack([(z - mean) / sd, np.ones(len(z))]) for z in (a, b))
    weights = np.linalg.solve(a.T @ a + 3000 * np.eye(a.shape[1]), a.T @ np.eye(10)[train.y])
    accuracy = ((b @ weights).argmax(1) == test.y.numpy()).mean()
    assert accuracy >= at_least


def test_real_counts(real_data):
    """Spikes and the share of bins with any, as the documentation says."""
    data = SpikingFSDD(root=real_data)
    x = torch.cat([data.read(part).x for part in ("train", "test")]).numpy()
    assert x.shape == (3000, 60, 140)
    assert 9000 < x.sum((1, 2)).mean() < 13000  # measured 10,842
    assert 0.14 < (x > 0).mean() < 0.20  # measured 0.171
    assert x.max() == 35
    few = torch.cat([SpikingFSDD(root=real_data, binary=True).read(part).x for part in ("train", "test")])
    assert np.array_equal(few.numpy(), x > 0)
