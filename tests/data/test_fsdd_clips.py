"""Spoken digits as clips of one length: what stands in them, what changes while training, and stretches in time and frequency."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from data_files import REPETITIONS, SPEAKERS, everything
from hypothesis import given, settings
from hypothesis import strategies as st

from spiketide.data import FSDDClips, SpecAugment, SpecWarp, StreamingMel
from spiketide.data.augment_sound import draws_for
from spiketide.data.fsdd import decode_wav, placed
from spiketide.errors import ParameterError

pytest.importorskip("librosa")


@pytest.fixture
def clips(monkeypatch: pytest.MonkeyPatch) -> type[FSDDClips]:
    monkeypatch.setattr(FSDDClips, "speakers", SPEAKERS)
    monkeypatch.setattr(FSDDClips, "repetitions", REPETITIONS)
    return FSDDClips


def test_the_splits_are_those_of_the_recordings(clips, small_fsdd, fsdd_root):
    for how in (
        {},
        {"held_out_speaker": "theo"},
        {"held_out_speaker": "theo", "validation_speaker": "lucas"},
    ):
        how |= {"root": fsdd_root, "validation_fraction": 0.2}
        mine, theirs = clips(**how), small_fsdd(**how)
        assert mine.split_indices == theirs.split_indices
    assert everything(mine.split_indices) == list(range(10 * len(SPEAKERS) * REPETITIONS))


def test_a_batch_holds_the_front_end_of_each_recording_in_its_middle(clips, fsdd_root):
    data = clips(root=fsdd_root, clip_ms=500.0, eval_batch_size=16, validation_fraction=0.2)
    assert data.steps == 51 and data.sample_shape == (3, 40) and data.dt == 10.0
    data.setup("test")
    seen, order = 0, [data.recordings[number] for number in data.split_indices["test"]]
    for batch in data.test_dataloader():
        assert batch.x.shape == (51, len(batch.y), 3, 40) and batch.lengths is None
        for b in range(len(batch.y)):
            digit, speaker, index = order[seen]
            path = fsdd_root / "fsdd" / "recordings" / f"{digit}_{speaker}_{index}.wav"
            wave = placed(decode_wav(path.read_bytes(), path), 4000)
            np.testing.assert_array_equal(batch.x[:, b].numpy(), data.features(wave))
            assert int(batch.y[b]) == digit
            seen += 1
    assert seen == len(order)


@given(samples=st.integers(1, 50), length=st.integers(1, 50))
def test_a_short_recording_stands_in_the_middle_of_silence(samples, length):
    samples += length
    clip = placed(np.arange(1, length + 1, dtype=np.float32), samples)
    assert len(clip) == samples and clip[clip > 0].tolist() == list(range(1, length + 1))
    left, right = (np.flatnonzero(clip)[0], samples - 1 - np.flatnonzero(clip)[-1])
    assert abs(left - right) <= 1  # silence in equal parts


@given(st.lists(st.integers(-9, 9), min_size=1, max_size=40), st.integers(1, 40))
def test_of_a_long_recording_the_loudest_part_is_taken(values, samples):
    samples = min(samples, len(values))
    energies = [sum(v * v for v in values[k : k + samples]) for k in range(len(values) - samples + 1)]
    begin = energies.index(max(energies))
    clip = placed(np.array(values, np.float32), samples)
    assert clip.tolist() == values[begin : begin + samples]


@pytest.mark.parametrize("name", ["7_lucas_29", "0_theo_0"])
def test_a_word_at_the_end_of_a_long_recording_is_not_cut_off(real_data, name):
    path = real_data / "fsdd" / "recordings" / f"{name}.wav"
    wave = decode_wav(path.read_bytes(), path)
    assert np.square(placed(wave, 5120)).sum() >= 0.95 * np.square(wave).sum()


def epoch(data, number: int) -> torch.Tensor:
    loader = data.train_dataloader()
    loader.sampler.set_epoch(number)
    found = {}
    for batch in loader:
        for b, y in enumerate(batch.y.tolist()):
            found.setdefault(y, []).append(batch.x[:, b])
    return torch.stack([x for y in sorted(found) for x in found[y]])


def test_training_clips_change_by_seed_and_epoch_and_others_do_not(clips, fsdd_root):
    def make(**how):
        data = clips(root=fsdd_root, clip_ms=300.0, batch_size=8, validation_fraction=0.2, **how)
        data.setup("fit")
        return data

    plain = make()
    warped = make(warp=SpecWarp(), spec_augment=SpecAugment(time_width=5))
    assert torch.equal(epoch(plain, 0).sort(0).values, epoch(plain, 0).sort(0).values)
    first, again, later = epoch(warped, 0), epoch(warped, 0), epoch(warped, 1)
    assert torch.equal(first, again) and not torch.equal(first, later)
    assert not torch.equal(first, epoch(make(warp=SpecWarp(), seed=1), 0))
    for a, b in zip(plain.val_dataloader(), warped.val_dataloader(), strict=True):
        assert torch.equal(a.x, b.x)
    other = make(warp=SpecWarp())  # masks come from a stream of their own
    masked = (epoch(other, 0) != first).float().mean()
    assert 0 < float(masked) < 0.6


def test_options_that_make_no_sense():
    for options, words in (
        ({"clip_ms": 1.0}, "one frame"),
        ({"held_out_speaker": "anna"}, "speaker"),
        ({"held_out_speaker": "theo", "validation_speaker": "theo"}, "other than"),
    ):
        with pytest.raises(ParameterError, match=words):
            FSDDClips(**options)
    for options in ({"time": (0.0, 1.0)}, {"bands": (1.2, 0.8)}, {"shift": -1.0}, {"time": (1.0,)}):
        with pytest.raises(ParameterError, match="SpecWarp expected"):
            SpecWarp(**options)


# ------------------------------------------------------------------------------------------------------ stretches


@settings(max_examples=40, deadline=None)
@given(
    time=st.floats(0.5, 2.0), bands=st.floats(0.5, 2.0), shift=st.floats(0.0, 6.0), seed=st.integers(0, 99)
)
def test_a_stretch_is_linear_interpolation(time, bands, shift, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(13, 2, 9))
    y = SpecWarp(time=(time, time), bands=(bands, bands), shift=shift)(x, 9, draws_for(1, 2, seed))
    moved = shift * (2 * draws_for(1, 2, seed).random_sample(3)[1] - 1)
    for c in range(2):
        padded = np.pad(x[:, c], 1)  # zeros around
        for t in range(13):
            for k in range(9):
                when, where = 6 + (t - 6 - moved) / time + 1, k / bands + 1
                if not (0 <= when <= 14 and 0 <= where <= 10):
                    want = 0.0
                else:
                    i, j = min(int(when), 13), min(int(where), 9)
                    u, v = when - i, where - j
                    want = (1 - u) * ((1 - v) * padded[i, j] + v * padded[i, j + 1])
                    want += u * ((1 - v) * padded[i + 1, j] + v * padded[i + 1, j + 1])
                assert y[t, c, k] == pytest.approx(want, abs=1e-9)


def test_the_ranges_are_used_and_flat_frames_are_alike():
    x = np.zeros((41, 20))
    x[20, 10] = 1.0
    warp, places = SpecWarp(time=(1.0, 1.0), bands=(0.8, 1.25), shift=4.0), []
    for k in range(200):
        y = warp(x, 20, draws_for(0, 0, k))
        mass = y.sum()
        if mass > 0:
            places.append((y.sum(1) @ np.arange(41) / mass, y.sum(0) @ np.arange(20) / mass))
    steps, bands = np.array(places).T
    assert 16 <= steps.min() < 16.5 and 23.5 < steps.max() <= 24
    assert 7.8 < bands.min() < 8.5 and 12 < bands.max() < 12.8
    flat = np.random.default_rng(0).normal(size=(15, 40)).astype(np.float32)
    one = SpecWarp()(flat, 20, draws_for(3, 1, 4))
    other = SpecWarp()(flat.reshape(15, 2, 20), 20, draws_for(3, 1, 4))
    assert one.dtype == np.float32 and np.array_equal(one, other.reshape(15, 40))


def test_a_front_end_for_another_rate_is_refused():
    with pytest.raises(ParameterError, match=r"8000 samples a second, got StreamingMel\(sample_rate=16000\)"):
        FSDDClips(features=StreamingMel(flatten=False))
