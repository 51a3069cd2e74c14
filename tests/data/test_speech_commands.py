"""Speech Commands, on small files in the official layout, and on a few real clips where there are some."""

from __future__ import annotations

import logging
import shutil
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from data_files import everything, write_wav
from hypothesis import given, settings
from hypothesis import strategies as st
from speech_files import NOISE_SAMPLES, V1, V2, clip, write_speech_commands

from spiketide.data import (
    DecibelMel,
    DeltaMel,
    SpecAugment,
    SpeechCommands,
    WaveAugment,
    clips,
    speech_commands,
)
from spiketide.data.augment_sound import draws_for, mixed, moved
from spiketide.data.clips import Clip, in_order, one_second, read_wave
from spiketide.data.features import FrontEnd, deltas, stored
from spiketide.data.speech_commands import COMMANDS, _Epoch, occurrences
from spiketide.errors import DataError, ParameterError

pytest.importorskip("librosa")


class Raw(FrontEnd):
    """The samples themselves, 160 a frame: what the reader does is seen without a front end."""

    hop_ms, bands, shape = 10.0, 160, (160,)
    calls = 0

    def frames(self, samples):
        return samples // 160

    def __call__(self, wave):
        assert wave.shape == (16000,)
        Raw.calls += 1
        return wave.reshape(100, 160).astype(np.float32)

    def key(self):
        return {"feature": "raw"}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("speech_commands_root")
    write_speech_commands(place)
    return place


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    Raw.calls = 0
    return tmp_path / "cache" / "spiketide" / "features"


def raw(root, **options) -> SpeechCommands:
    return SpeechCommands(**{"root": root, "version": 1, "classes": 30, "features": Raw(), **options})


# ---------------------------------------------------------------------------------------------------- parts


def test_the_words():
    assert list(SpeechCommands(version=1, classes=30).class_names) == V1
    assert list(SpeechCommands().class_names) == V2
    assert SpeechCommands(version=2, classes=12).class_names == (*COMMANDS, "_silence_", "_unknown_")


@pytest.mark.parametrize(("version", "words"), [(1, V1), (2, V2)])
def test_all_words_by_the_official_lists(version, words, root, tmp_path):
    if version == 2:
        write_speech_commands(tmp_path / "SpeechCommands", version=2, noise=0)  # that folder is known too
        root = tmp_path
    data = raw(root, version=version, classes=len(words))
    parts = data.split_indices
    assert {part: len(ids) for part, ids in parts.items()} == {
        "train": 3 * len(words), "validation": len(words), "test": len(words)
    }  # fmt: skip
    assert everything(parts) == list(range(5 * len(words)))
    # By name the five clips of a word lie together: three to train with, one to validate, one to test.
    assert parts["validation"] == list(range(3, 5 * len(words), 5))
    assert parts["test"] == list(range(4, 5 * len(words), 5))
    for part in ("train", "test"):
        samples = data.read(part)
        for x, y, number in zip(samples.x, samples.y.tolist(), samples.ids.tolist(), strict=True):
            word, k = divmod(number, 5)
            assert y == word
            wave = (clip(word, k, 12001 if k == 1 else 16000).astype("<i2") / 32768).astype(np.float32)
            expected = np.zeros(16000, np.float32)
            begin = (16000 - len(wave)) // 2
            expected[begin : begin + len(wave)] = wave
            assert np.array_equal(x.numpy().ravel(), expected)


def test_short_clips_at_the_start(root):
    x = raw(root, place="start").read("train").x[1].numpy().ravel()
    assert x[:100].any() and not x[12001:].any()


def stretch(samples: torch.Tensor) -> tuple[int, int, int]:
    """Recording, first and last sample of a piece of noise."""
    places = np.rint(samples.numpy().ravel() * 32768)
    return int(places[0] < 0), int(abs(places[0]) - 1) * 10, int(abs(places[-1]) - 1) * 10


def test_twelve_classes(root):
    data = raw(root, classes=12, silence=(40, 20, 10))
    train, test = data.read("train"), data.read("test")
    rows, validation = data.carve(train)
    assert Counter(test.y.tolist()) == Counter({**dict.fromkeys(range(10), 1), 10: 10, 11: 20})
    assert Counter(train.y[rows].tolist()) == Counter({**dict.fromkeys(range(10), 3), 10: 40, 11: 60})
    assert Counter(train.y[validation].tolist()) == Counter({**dict.fromkeys(range(10), 1), 10: 20, 11: 20})
    for samples in (train, test):
        for y, number in zip(samples.y.tolist(), samples.ids.tolist(), strict=True):
            word = V1[number // 5] if number < 150 else "_silence_"
            expected = word if word in (*COMMANDS, "_silence_") else "_unknown_"
            assert data.class_names[y] == expected
    assert everything(data.split_indices) == list(range(150 + 70))


def test_the_parts_share_no_noise(root):
    data = raw(root, classes=12, silence=(60, 30, 30))
    train, test = data.read("train"), data.read("test")
    rows, validation = data.carve(train)
    pieces = {
        "train": [train.x[row] for row in rows.tolist() if train.y[row] == 10],
        "validation": [train.x[row] for row in validation.tolist() if train.y[row] == 10],
        "test": [x for x, y in zip(test.x, test.y.tolist(), strict=True) if y == 10],
    }
    bounds = {"train": (0.0, 0.8), "validation": (0.8, 0.9), "test": (0.9, 1.0)}
    for part, (low, high) in bounds.items():
        found = [stretch(piece) for piece in pieces[part]]
        assert len(set(found)) > len(found) // 3 and {recording for recording, *_ in found} == {0, 1}
        for _, first, last in found:
            assert last - first in (15990, 16000)
            assert low * NOISE_SAMPLES - 10 <= first and last < high * NOISE_SAMPLES
    spread = [first for _, first, _ in map(stretch, pieces["train"])]
    assert max(spread) - min(spread) > 0.5 * NOISE_SAMPLES


def test_noise_of_training_is_drawn_from_the_seed_and_that_of_test_is_not(root):
    def silent(seed, part):
        samples = raw(root, classes=12, silence=(9, 2, 4), seed=seed).read(part)
        return torch.stack([x for x, y in zip(samples.x, samples.y.tolist(), strict=True) if y == 10])

    assert torch.equal(silent(1, "train"), silent(1, "train"))
    assert not torch.equal(silent(1, "train"), silent(2, "train"))
    assert torch.equal(silent(1, "test"), silent(2, "test"))


def test_the_separate_test_archive(root, tmp_path):
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    data = raw(tmp_path, classes=12, test="archive", silence=(4, 2, 1))
    with pytest.raises(DataError, match=r"_silence_(.|\n)*speech_commands_test_set_v0\.01\.tar\.gz"):
        data.read("test")
    for n, word in enumerate((*COMMANDS, "_silence_", "_unknown_")):
        folder = tmp_path / "speech_commands_test_set_v0.01" / word
        folder.mkdir(parents=True)
        for k in range(2):
            write_wav(folder / f"{k}.wav", clip(n, k), rate=16000)
    test = data.read("test")
    assert Counter(test.y.tolist()) == Counter(dict.fromkeys(range(12), 2))
    assert sorted(test.ids.tolist()) == list(range(157, 157 + 24))
    row = test.y.tolist().index(11)
    assert np.array_equal(test.x[row].numpy().ravel(), (clip(11, 0).astype("<i2") / 32768).astype(np.float32))
    assert len(set(everything(data.split_indices))) == len(everything(data.split_indices)) == 120 + 6 + 24


@given(st.integers(1, 40000), st.sampled_from(["middle", "start"]))
@settings(max_examples=60, deadline=None)
def test_one_second(samples, place):
    wave = np.arange(1, samples + 1, dtype=np.float32)
    y = one_second(wave, place)
    assert y.shape == (16000,)
    inside = y[y > 0]
    assert len(inside) == min(samples, 16000) and (np.diff(inside) == 1).all()  # one whole stretch
    before, after = (int(inside[0]) - 1, samples - int(inside[-1])) if samples > 16000 else (
        int(np.flatnonzero(y)[0]), 16000 - 1 - int(np.flatnonzero(y)[-1])
    )  # fmt: skip
    assert before == (0 if place == "start" else before) and (place == "start" or abs(after - before) <= 1)


# ------------------------------------------------------------------------------------------------ front ends


def a_wave(seed: int = 0) -> np.ndarray:
    return (clip(seed % 30, seed) / 32768).astype(np.float32)


def librosa_frames(wave: np.ndarray) -> np.ndarray:
    """The published front end, written with librosa alone: ``(101, 3, 40)`` before any rescaling."""
    import librosa

    mel = librosa.feature.melspectrogram(
        y=(wave / np.abs(wave).max()).astype(np.float64), sr=16000, n_fft=480, hop_length=160, n_mels=40, fmin=20, fmax=4000,
        pad_mode="reflect",
    )  # fmt: skip
    mel = np.log1p(mel / np.abs(mel).max())
    channels = [mel, librosa.feature.delta(mel, order=1), librosa.feature.delta(mel, order=2)]
    return np.stack(channels).transpose(2, 0, 1)


@pytest.mark.parametrize("seed", [0, 7])
def test_delta_mel_against_librosa(seed):
    expected = librosa_frames(a_wave(seed))
    plain = DeltaMel(rescale="none", flatten=False)(a_wave(seed))
    assert plain.shape == (101, 3, 40) and plain.dtype == np.float32
    assert np.allclose(plain, expected, atol=2e-5) and plain.max() == pytest.approx(np.log(2.0))
    rescaled = DeltaMel()(a_wave(seed))
    assert rescaled.shape == (101, 120)
    assert np.allclose(rescaled.reshape(101, 3, 40), expected / expected.std(axis=0), rtol=1e-3, atol=2e-3)
    assert (
        np.allclose(rescaled.std(axis=0), 1.0, atol=1e-4) and rescaled[:, :40].mean() > 0.1
    )  # the mean stays


def test_delta_mel_knows_its_options():
    wave = a_wave()
    assert np.allclose(DeltaMel()(wave), DeltaMel()(0.1 * wave), atol=1e-3)  # over its peak: no gain
    assert not np.allclose(DeltaMel(padding="constant")(wave)[0], DeltaMel()(wave)[0])
    assert (
        DeltaMel(n_mels=20, hop_ms=5.0)(wave).shape == (201, 60) and DeltaMel(hop_ms=5.0).frames(16000) == 201
    )
    assert not DeltaMel()(np.zeros(16000)).any()
    one = np.zeros(16000)
    one[8000] = 1e-5
    assert np.isfinite(DeltaMel()(one)).all() and np.isfinite(DeltaMel()(np.full(16000, 0.3))).all()
    with pytest.raises(DataError, match="9 frames at least, got 7"):
        DeltaMel()(np.ones(1000))


def test_deltas_of_a_parabola():
    t = np.arange(30.0)[:, None]
    y = 2 * t**2 - 3 * t + 1
    assert np.allclose(deltas(y, order=2), 4.0)
    assert np.allclose(deltas(y)[4:-4], (4 * t - 3)[4:-4])
    for options in ({"order": 0}, {"width": 8}, {"order": 9}):
        with pytest.raises(ParameterError, match="odd width above it"):
            deltas(y, **options)


def test_the_published_decibels_and_their_dead_bands():
    import librosa

    from spiketide.encoders import resample

    front = DecibelMel(published=True)
    dead = np.flatnonzero(front.filters.max(axis=1) == 0)
    assert dead.tolist() == list(range(87, 140))  # 53, learned delays section 5
    y = front(a_wave(3))
    power = (
        np.abs(librosa.stft(resample(a_wave(3), 16000, 8000), n_fft=256, hop_length=80, pad_mode="reflect"))
        ** 2
    )
    # Triangles between 142 points that are even on the HTK scale, by the definition.
    mel = np.linspace(2595 * np.log10(1 + 50 / 700), 2595 * np.log10(1 + 14000 / 700), 142)
    points = 700 * (10 ** (mel / 2595) - 1)
    hertz = np.arange(129) * 31.25
    rise = (hertz - points[:-2, None]) / np.diff(points)[:-1, None]
    fall = (points[2:, None] - hertz) / np.diff(points)[1:, None]
    filters = np.maximum(0, np.minimum(rise, fall))
    expected = 10 * np.log10(np.maximum(filters @ power, 1e-10)).T
    assert y.shape == (101, 140) and np.allclose(y, expected, atol=0.02)
    assert (y[:, 87:] == -100.0).all() and y[:, :87].max() > 0


def test_the_corrected_decibels_have_no_dead_band():
    front = DecibelMel()
    assert front.filters.max(axis=1).min() > 0.5 and front.filters.shape == (140, 513)
    noise = np.random.RandomState(0).normal(scale=0.1, size=16000)
    y = front(noise)
    assert y.shape == (101, 140) and y.min() >= 0 and (y.std(axis=0) > 0.5).all()
    assert not front(np.zeros(16000)).any()
    # A tone is where it belongs: 140 bands between 50 Hz and 4 kHz, even on the HTK scale.
    for hertz in (300.0, 1000.0, 3000.0):
        tone = 0.3 * np.sin(2 * np.pi * hertz / 16000 * np.arange(16000))
        mel = [2595 * np.log10(1 + f / 700) for f in (50, hertz, 4000)]
        place = 141 * (mel[1] - mel[0]) / (mel[2] - mel[0]) - 1
        assert abs(front(tone)[50].argmax() - place) < 2


def test_batches(root):
    plain = SpeechCommands(root=root, version=1, classes=30, batch_size=8, seed=3)
    batch = next(iter(plain.train_dataloader()))
    assert batch.x.shape == (101, 8, 120) and batch.x.dtype == torch.float32 and batch.lengths is None
    samples = plain.read("train")
    row = samples.y.tolist().index(int(batch.y[0]))
    assert any(torch.equal(batch.x[:, 0], samples.x[row + k]) for k in range(4))
    shaped = SpeechCommands(
        root=root, version=1, classes=30, batch_size=8, seed=3, features=DeltaMel(flatten=False)
    )
    other = next(iter(shaped.train_dataloader()))
    assert torch.equal(other.x.flatten(2), batch.x) and other.x.shape == (101, 8, 3, 40)


def test_batches_rescaled_as_published(root):
    """Divided once more by the deviation over samples and time: in evaluation the score depends on the batch."""
    options = {"root": root, "version": 1, "classes": 30, "seed": 3}
    plain = SpeechCommands(**options, batch_size=8)
    published = SpeechCommands(**options, batch_size=8, features=DeltaMel(rescale="batch"))
    for loader in ("train_dataloader", "val_dataloader"):
        a, b = next(iter(getattr(plain, loader)())), next(iter(getattr(published, loader)()))
        assert torch.allclose(b.x, a.x / a.x.std((0, 1), correction=0), atol=1e-4)
        assert torch.allclose(b.x.std((0, 1), correction=0), torch.ones(120), atol=1e-4)
    small = next(
        iter(SpeechCommands(**options, batch_size=4, features=DeltaMel(rescale="batch")).val_dataloader())
    )
    assert not torch.allclose(small.x, b.x[:, :4], atol=1e-3)


# ------------------------------------------------------------------------------------------------ the cache


def test_features_are_computed_once_for_all_classes(root, cache):
    raw(root).prepare_data()
    assert Raw.calls == 150
    raw(root, seed=4).prepare_data()
    raw(root, classes=12, silence=(5, 3, 2), seed=1).prepare_data()
    assert Raw.calls == 150 + 10  # the pieces of noise are new
    raw(root, classes=12, silence=(5, 3, 2), seed=2).prepare_data()
    assert Raw.calls == 150 + 10 + 8  # the two for test are not drawn from the seed
    raw(root, place="start").prepare_data()
    assert Raw.calls == 150 + 18 + 150
    assert not [path for path in cache.iterdir() if path.suffix in (".part", ".rows")]


def test_a_changed_clip_is_computed_again(root, cache, tmp_path):
    shutil.copytree(root, tmp_path / "data")
    raw(tmp_path / "data").prepare_data()
    path = next((tmp_path / "data/speech_commands_v0.01/bed").glob("*.wav"))
    before = path.read_bytes()
    path.write_bytes(before)  # touched, not changed
    raw(tmp_path / "data").prepare_data()
    assert Raw.calls == 150
    path.write_bytes(before[:-2] + bytes([before[-2] ^ 1, before[-1]]))
    raw(tmp_path / "data").prepare_data()
    assert Raw.calls > 150


def test_an_interrupted_computation_goes_on(root, cache, monkeypatch):
    monkeypatch.setattr(clips, "_BLOCK", 10)
    whole = [x.clone() for x in raw(root, jobs=1).read("train").x]
    for path in cache.iterdir():
        path.unlink()
    honest = Raw.__call__

    def interrupted(self, wave):
        if Raw.calls == 57:
            raise KeyboardInterrupt
        return honest(self, wave)

    Raw.calls = 0
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Raw, "__call__", interrupted)
        raw(root, jobs=1).read("train")
    assert not list(cache.glob("*.npy"))  # nothing that is not whole has the name
    Raw.calls = 0
    again = raw(root, jobs=1).read("train")
    assert Raw.calls == 120 - 50  # five blocks were kept
    assert all(torch.equal(a, b) for a, b in zip(whole, again.x, strict=True))
    assert len(list(cache.glob("*.npy"))) == 1 and not list(cache.glob(".*.part"))


@pytest.mark.parametrize("damage", ["cut", "other", "mark"])
def test_a_damaged_cache_is_computed_again(cache, caplog, damage):
    rows = np.arange(24, dtype=np.float32).reshape(6, 4)

    def compute(first):
        made.append(first)
        yield from np.split(rows[first:], range(2, 6 - first, 2))

    made: list[int] = []
    assert np.array_equal(stored("toy", "k" * 64, (6, 4), compute), rows)
    assert np.array_equal(stored("toy", "k" * 64, (6, 4), compute), rows) and made == [0]
    path = cache / f"toy-{'k' * 32}.npy"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-9])
    elif damage == "other":
        np.save(path, rows[:3])
    else:  # an interrupted one whose mark is nonsense
        path.rename(path.with_name(f".{path.stem}.part"))
        path.with_name(f".{path.stem}.rows").write_text("seven")
    with caplog.at_level(logging.WARNING, "spiketide.data"):
        assert np.array_equal(stored("toy", "k" * 64, (6, 4), compute), rows)
    assert made == [0, 0] and ("cannot be read" in caplog.text) == (damage != "mark")


def test_a_cache_that_cannot_be_written_costs_only_time(root, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING, "spiketide.data"):
        samples = raw(root).read("test")
    assert "cannot be written" in caplog.text and len(samples.x) == 30


def test_what_is_read_can_be_changed_without_changing_the_cache(root, cache):
    x = raw(root).read("test").x[0]
    before = x.clone()
    x += 1.0
    assert torch.equal(raw(root).read("test").x[0], before)


def test_processes_give_the_same(root, monkeypatch):
    monkeypatch.setattr(clips, "_BLOCK", 4)
    some = [Clip(path) for path in sorted((root / "speech_commands_v0.01").glob("[a-c]*/*.wav"))]
    noise = next((root / "speech_commands_v0.01").glob("*/hum1.wav"))
    some += [Clip(noise, 100), Clip(noise, 7000)]
    alone = np.concatenate(list(in_order(DeltaMel(), some, jobs=1)))
    together = np.concatenate(list(in_order(DeltaMel(), some, jobs=2)))
    assert np.array_equal(alone, together) and len(alone) == len(some) == 17


# ---------------------------------------------------------------------------------------------- epochs


def labels_of_epoch(loader, epoch: int) -> list[int]:
    loader.sampler.set_epoch(epoch)
    return [y for batch in loader for y in batch.y.tolist()]


def test_every_clip_once_an_epoch_in_the_order_of_other_data_sets(root):
    data = raw(root, batch_size=16, seed=5)
    loader = data.train_dataloader()
    assert sorted(labels_of_epoch(loader, 0)) == sorted(list(range(30)) * 3)
    assert labels_of_epoch(loader, 1) == labels_of_epoch(
        raw(root, batch_size=16, seed=5).train_dataloader(), 1
    )
    orders = {tuple(labels_of_epoch(raw(root, seed=s).train_dataloader(), e)) for s in (5, 6) for e in (0, 1)}
    assert len(orders) == 4


def test_every_class_equally_likely(root):
    data = raw(root, classes=12, silence=(40, 5, 5), balance="classes", batch_size=50, seed=1)
    loader = data.train_dataloader()
    n = len(data.split_indices["train"])
    epochs = [labels_of_epoch(loader, epoch) for epoch in range(40)]
    assert {len(epoch) for epoch in epochs} == {n} == {130}
    counts = np.bincount(np.concatenate(epochs), minlength=12)
    expected = 40 * n / 12
    assert (((counts - expected) ** 2) / expected).sum() < 31.3  # chi square with 11 degrees, p = 0.001
    assert epochs[3] == labels_of_epoch(
        raw(root, classes=12, silence=(40, 5, 5), balance="classes", seed=1).train_dataloader(), 3
    )
    assert epochs[0] != epochs[1]


def test_unknown_clips_of_an_epoch(root):
    data = raw(root, classes=12, silence=(7, 1, 1), unknown_per_epoch=12, batch_size=64)
    loader = data.train_dataloader()
    seen: set[tuple[float, ...]] = set()
    for epoch in range(40):
        loader.sampler.set_epoch(epoch)
        y, keys = [], []
        for batch in loader:
            y += batch.y.tolist()
            keys += [tuple(row) for row in batch.x[50, :, :4].tolist()]
        assert Counter(y) == Counter({**dict.fromkeys(range(10), 3), 10: 7, 11: 12})
        chosen = {key for key, label in zip(keys, y, strict=True) if label == 11}
        assert len(chosen) == 12  # without replacement
        seen |= chosen
    assert len(seen) == 60  # other ones in each epoch, and in the end all
    assert len(loader) == 1
    with pytest.raises(ParameterError, match="at most 60"):
        raw(root, classes=12, silence=(7, 1, 1), unknown_per_epoch=61).train_dataloader()


@pytest.mark.parametrize("options", [{}, {"balance": "classes"}, {"unknown_per_epoch": 5}])
def test_processes_share_an_epoch(root, options):
    data = raw(root, classes=12, silence=(8, 1, 1), **options)
    loader = data.train_dataloader()
    one = loader.sampler
    for world in (2, 3):
        parts = [_Epoch(loader.dataset, world, rank, one.order, one.seed) for rank in range(world)]
        for sampler in (one, *parts):
            sampler.set_epoch(4)
        alone, shares = list(one), [list(part) for part in parts]
        assert {len(share) for share in shares} == {len(parts[0])} == {-(-len(alone) // world)}
        dealt = [index for turn in zip(*shares, strict=True) for index in turn]
        assert dealt[: len(alone)] == alone and dealt[len(alone) :] == alone[: len(dealt) - len(alone)]


@given(st.lists(st.integers(0, 5), max_size=40))
@settings(deadline=None)
def test_occurrences(values):
    found = occurrences(np.array(values, dtype=np.int64)).tolist()
    assert found == [values[:place].count(value) for place, value in enumerate(values)]


# --------------------------------------------------------------------------------------------- augmentation


@given(st.integers(-50, 50), st.integers(1, 40))
@settings(deadline=None)
def test_moved(by, samples):
    wave = np.arange(1.0, samples + 1)
    y = moved(wave, by)
    assert y.tolist() == [wave[n - by] if 0 <= n - by < samples else 0.0 for n in range(samples)]


@pytest.mark.parametrize("snr", [-5.0, 0.0, 17.0])
def test_mixed(snr):
    rng = np.random.RandomState(0)
    wave, noise = rng.normal(size=4000), 7 * rng.normal(size=4000) + 3
    added = mixed(wave, noise, snr) - wave
    assert 10 * np.log10(np.mean(wave**2) / np.mean(added**2)) == pytest.approx(snr)
    assert np.corrcoef(added, noise)[0, 1] == pytest.approx(1.0)
    assert np.array_equal(mixed(wave, np.zeros(4000), snr), wave)
    assert not mixed(np.zeros(4000), noise, snr).any()


def test_waves_are_changed_within_their_ranges():
    wave = np.random.RandomState(0).normal(size=16000)
    noise = [np.full(20000, 1.0), np.arange(30000.0)]
    shifts, ratios, kinds = [], [], Counter()
    augment = WaveAugment(shift_ms=100.0)
    for number in range(60):
        y = augment(wave, (), draws_for(0, 0, number), 16000)
        correlation = np.fft.irfft(np.fft.rfft(y, 40000) * np.conj(np.fft.rfft(wave, 40000)))
        shifts.append(
            int(correlation.argmax()) if correlation.argmax() < 20000 else int(correlation.argmax()) - 40000
        )
        assert np.array_equal(moved(wave, shifts[-1]), y)
    assert min(shifts) < -1200 < 1200 < max(shifts) and max(map(abs, shifts)) <= 1600
    for number in range(300):
        y = WaveAugment(background_snr=(3.0, 9.0), chance=0.8)(wave, noise, draws_for(1, 0, number), 16000)
        added = y - wave
        if not added.any():
            kinds["none"] += 1
            continue
        kinds["flat" if np.ptp(added) < 1e-9 else "ramp"] += 1
        ratios.append(10 * np.log10(np.mean(wave**2) / np.mean(added**2)))
    assert min(ratios) >= 3 - 1e-6 and max(ratios) <= 9 + 1e-6 and np.ptp(ratios) > 5
    assert abs(kinds["none"] / 300 - 0.2) < 0.1 and min(kinds["flat"], kinds["ramp"]) > 80


@given(st.integers(0, 3), st.integers(0, 30), st.integers(0, 3), st.integers(0, 50), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_spec_augment(time_masks, time_width, band_masks, band_width, seed):
    frames = np.random.RandomState(0).normal(size=(25, 3, 40)).astype(np.float32)
    augment = SpecAugment(
        time_masks=time_masks, time_width=time_width, band_masks=band_masks, band_width=band_width
    )
    y = augment(frames, 40, draws_for(seed))
    flat = augment(frames.reshape(25, 120), 40, draws_for(seed))
    assert np.array_equal(flat.reshape(25, 3, 40), y)
    changed = y != frames
    assert (changed == changed[:, :1]).all()  # all channels alike
    mask = changed[:, 0]
    rows, columns = mask.all(axis=1), mask.all(axis=0)
    assert (mask == (rows[:, None] | columns)).all()
    if not mask.all():
        assert rows.sum() <= time_masks * time_width and columns.sum() <= band_masks * band_width
    for channel in range(3):
        mean = frames[:, channel].astype(np.float64).mean()
        assert np.allclose(y[:, channel][mask], mean, atol=1e-6)


def test_training_clips_are_changed_by_seed_epoch_and_number(root):
    changes = {
        "augment": WaveAugment(shift_ms=50.0, background_snr=(0.0, 10.0), white_snr=(10.0, 20.0)),
        "spec_augment": SpecAugment(),
    }

    def epoch(number, batch_size=16, seed=2, **options):
        loader = raw(root, batch_size=batch_size, seed=seed, **options).train_dataloader()
        loader.sampler.set_epoch(number)
        return torch.cat([batch.x for batch in loader], dim=1)

    first = epoch(0, **changes)
    assert torch.equal(first, epoch(0, batch_size=7, **changes))  # not of the batch
    assert torch.equal(first, epoch(0, num_workers=1, **changes))  # nor of the workers
    assert not torch.equal(first, epoch(0))
    # The same clips in another epoch are changed otherwise: compare clip by clip, whatever the order.
    plain0, plain1, second = epoch(0), epoch(1), epoch(1, **changes)
    same = 0
    for place in range(90):
        other = next(k for k in range(90) if torch.equal(plain0[:, place], plain1[:, k]))
        same += torch.equal(first[:, place], second[:, other])
    assert same == 0
    masks_alone = epoch(0, spec_augment=SpecAugment())
    assert not torch.equal(masks_alone, plain0)
    data = raw(root, batch_size=30, **changes)
    assert torch.equal(
        next(iter(data.val_dataloader())).x, next(iter(raw(root, batch_size=30).val_dataloader())).x
    )


def test_a_clip_that_comes_twice_is_changed_twice(root):
    options = {"classes": 12, "silence": (2, 1, 1), "balance": "classes", "batch_size": 200}
    data = raw(root, **options, augment=WaveAugment(shift_ms=200.0))
    plain = raw(root, **options)
    a, b = next(iter(data.train_dataloader())), next(iter(plain.train_dataloader()))
    assert torch.equal(a.y, b.y)
    silent = (b.y == 10).nonzero().flatten().tolist()  # two clips, drawn eight times or so
    clips = {tuple(b.x[:, place].flatten()[:50].tolist()) for place in silent}
    changed = {tuple(a.x[:, place].flatten().tolist()) for place in silent}
    assert len(silent) > 4 and len(clips) <= 2 and len(changed) >= len(silent) - 1


def test_background_comes_from_the_stretch_for_training(root):
    noise = raw(root, augment=WaveAugment(background_snr=(0.0, 1.0)))
    noise.setup("fit")
    pieces = noise._change().noise
    assert [len(piece) for piece in pieces] == [int(0.8 * NOISE_SAMPLES)] * 2


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: WaveAugment(shift_ms=-1.0), "shift_ms of 0"),
        (lambda: WaveAugment(chance=1.5), "chance from 0 to 1"),
        (lambda: WaveAugment(white_snr=(3.0, 1.0)), "white_snr as two ratios"),
        (lambda: WaveAugment(background_snr=(0.0, float("inf"))), "background_snr as two"),
        (lambda: SpecAugment(band_width=-1), "band_width of 0"),
        (lambda: DeltaMel(rescale="clip"), "unknown rescale"),
        (lambda: DeltaMel(padding="zero"), "unknown padding"),
        (lambda: DeltaMel(f_max=9000.0), "8000.0 Hz"),
        (lambda: DeltaMel(hop_ms=0.01), "hop of 1"),
        (lambda: DecibelMel(n_mels=0), "n_mels of 1"),
        (lambda: SpeechCommands(version=3), "unknown version"),
        (lambda: SpeechCommands(version=1, classes=35), "12 or 30 classes, got 35"),
        (lambda: SpeechCommands(test="lists"), "did you mean 'list'"),
        (lambda: SpeechCommands(place="end"), "unknown place"),
        (lambda: SpeechCommands(classes=12, silence=(5, 0, 5)), r"or \(0, 0, 0\)"),
        (lambda: SpeechCommands(test="archive"), "belong to 12 classes"),
        (lambda: SpeechCommands(unknown_per_epoch=3), "belong to 12 classes"),
        (lambda: SpeechCommands(classes=12, unknown_per_epoch=3, balance="classes"), "balance='none'"),
        (lambda: SpeechCommands(jobs=0), "1 job or more"),
    ],
)
def test_options_that_make_no_sense(make, words):
    with pytest.raises(ParameterError, match=words):
        make()


# ------------------------------------------------------------------------------------------------ bad input


@pytest.fixture
def broken(root, tmp_path) -> Path:
    shutil.copytree(root / "speech_commands_v0.01", tmp_path / "speech_commands_v0.01")
    return tmp_path / "speech_commands_v0.01"


def test_lists_that_name_absent_clips(broken):
    victim = (broken / "testing_list.txt").read_text().split()[-1]
    (broken / victim).unlink()
    with pytest.raises(DataError, match=rf"1 of them are not in .*first: {victim}(.|\n)*allow_missing=True"):
        raw(broken.parent).read("train")
    assert len(raw(broken.parent, allow_missing=True).read("test").x) == 29


def test_incomplete_folders(broken):
    shutil.rmtree(broken / "wow")
    with pytest.raises(DataError, match="wow not there(.|\n)*SPIKETIDE_DATA"):
        raw(broken.parent, allow_missing=True).read("train")
    (broken / "wow").mkdir()
    (broken / "validation_list.txt").unlink()
    with pytest.raises(DataError, match="validation_list.txt cannot be read"):
        raw(broken.parent, allow_missing=True).read("train")
    shutil.copy(broken / "testing_list.txt", broken / "validation_list.txt")
    with pytest.raises(DataError, match="is in both lists"):
        raw(broken.parent, allow_missing=True).read("train")


def test_noise_that_is_missing_or_short(broken):
    data = raw(broken.parent, classes=12, silence=(3, 2, 1))
    write_wav(broken / "_background_noise_" / "short.wav", np.ones(159_000), rate=16000)
    with pytest.raises(DataError, match=r"short\.wav expected a second of noise"):
        data.read("train")
    shutil.rmtree(broken / "_background_noise_")
    with pytest.raises(DataError, match=r"for the class _silence_, there is none(.|\n)*silence=\(0, 0, 0\)"):
        data.read("train")
    with pytest.raises(DataError, match="for background_snr"):
        raw(broken.parent, augment=WaveAugment(background_snr=(0.0, 1.0))).train_dataloader()
    without = raw(broken.parent, classes=12, silence=(0, 0, 0))
    assert 10 not in without.read("train").y.tolist() and len(without.split_indices["train"]) == 90


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda path: path.write_bytes(b""), "truncated or not a wav file"),
        (lambda path: path.write_bytes(b"RIFF nothing"), "truncated or not a wav file"),
        (lambda path: path.write_bytes(path.read_bytes()[:9000]), "promises 16000 samples, it has 4478"),
        (lambda path: write_wav(path, np.ones(100), rate=8000), "at 8000 Hz"),
        (lambda path: write_wav(path, np.ones(100), rate=16000, channels=2), "it has 2 of 2"),
        (lambda path: write_wav(path, np.ones(0), rate=16000), "truncated or empty"),
    ],
)
def test_broken_clips(broken, write, words):
    path = sorted((broken / "cat").glob("*.wav"))[0]
    write(path)
    with pytest.raises(DataError, match=rf"{path.name}(.|\n)*{words}"):
        raw(broken.parent).read("train")


def test_silent_clipped_and_one_sample_clips(broken):
    paths = sorted((broken / "cat").glob("*.wav"))
    write_wav(paths[0], np.zeros(16000), rate=16000)
    write_wav(paths[1], np.full(1, 30000), rate=16000)
    write_wav(paths[2], np.where(np.arange(20000) % 50 < 25, 32767, -32768), rate=16000)
    data = SpeechCommands(
        root=broken.parent, version=1, classes=30, augment=WaveAugment(white_snr=(0.0, 0.0))
    )
    train = data.read("train")
    cats = [x for x, y in zip(train.x, train.y.tolist(), strict=True) if y == V1.index("cat")][:3]
    assert (
        all(bool(x.isfinite().all()) for x in cats) and not cats[0].any() and cats[1].any() and cats[2].any()
    )
    assert all(bool(batch.x.isfinite().all()) for batch in data.train_dataloader())


# ------------------------------------------------------------------------------------------------- archives


def pack(folder: Path, archive: Path, inside: str) -> None:
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive, "w:gz") as store:
        store.add(folder, arcname=inside)


@pytest.mark.parametrize("inside", [".", "speech_commands_v0.01"])
def test_an_archive_is_unpacked(root, tmp_path, inside):
    archive = tmp_path / "speech_commands" / "speech_commands_v0.01.tar.gz"
    pack(root / "speech_commands_v0.01", archive, inside)
    raw(tmp_path).prepare_data()
    assert archive.is_file()  # it was put there by hand
    assert raw(tmp_path).split_indices == raw(root).split_indices
    assert (tmp_path / "speech_commands/speech_commands_v0.01/_background_noise_/hum0.wav").is_file()
    assert not list((tmp_path / "speech_commands").glob(".*.part"))


def test_broken_archives(root, tmp_path):
    archive = tmp_path / "speech_commands" / "speech_commands_v0.01.tar.gz"
    pack(root / "speech_commands_v0.01", archive, ".")
    archive.write_bytes(archive.read_bytes()[:200_000])
    with pytest.raises(DataError, match="not a whole archive"):
        raw(tmp_path).prepare_data()
    pack(root / "speech_commands_v0.01" / "bed", archive, ".")
    with pytest.raises(DataError, match="holds something else"):
        raw(tmp_path).prepare_data()
    assert [path.name for path in archive.parent.iterdir() if not path.name.endswith(".lock")] == [
        archive.name
    ]


@pytest.mark.parametrize("version", [1, 2])
def test_what_is_downloaded(version, root, tmp_path, monkeypatch):
    asked = []

    def fetch(files, place, *, title, hint):
        asked.extend(files)
        if version == 1:
            pack(root / "speech_commands_v0.01", place / files[0].path, ".")
        else:
            raise DataError("no network")

    monkeypatch.setattr(speech_commands, "fetch", fetch)
    data = raw(tmp_path, version=version, classes=30 if version == 1 else 35)
    if version == 1:
        data.prepare_data()
        assert not (tmp_path / asked[0].path).exists()  # ours, and no longer needed
    else:
        with pytest.raises(DataError, match="no network"):
            data.prepare_data()
    (file,) = asked
    assert file.url == f"http://download.tensorflow.org/data/speech_commands_v0.0{version}.tar.gz"
    assert file.path == f"speech_commands/speech_commands_v0.0{version}.tar.gz"
    assert len(bytes.fromhex(file.sha256)) == 32 and file.size > 10**9


# ------------------------------------------------------------------------------------------------ real clips


def test_real_clips(real_data):
    folder = real_data / "gsc_v1_mini30"
    if not folder.is_dir():
        pytest.skip(f"needs {folder}")
    with pytest.raises(DataError, match="allow_missing=True"):
        SpeechCommands(root=folder, version=1, classes=30).read("train")
    data = SpeechCommands(root=folder, version=1, classes=30, allow_missing=True, batch_size=32)
    lists = {
        part: set((data.folder / f"{part}_list.txt").read_text().split())
        for part in ("validation", "testing")
    }
    every = sorted(f"{path.parent.name}/{path.name}" for path in data.folder.glob("*/*.wav"))
    parts = data.split_indices
    assert len(every) == 300 and everything(parts) == list(range(300))
    assert {every[n] for n in parts["validation"]} == lists["validation"] & set(every)
    assert {every[n] for n in parts["test"]} == lists["testing"] & set(every)
    train = data.read("train")
    assert [V1[y] for y in train.y.tolist()] == [every[n].split("/")[0] for n in train.ids.tolist()]
    row = 5
    frames = librosa_frames(one_second(read_wave(data.folder / every[int(train.ids[row])])))
    assert np.allclose(train.x[row].reshape(101, 3, 40), frames / frames.std(axis=0), rtol=2e-2, atol=2e-2)
    batch = next(iter(data.train_dataloader()))
    assert batch.x.shape == (101, 32, 120) and bool(batch.x.isfinite().all())
    twelve = SpeechCommands(root=folder, version=1, classes=12, allow_missing=True, silence=(0, 0, 0))
    assert Counter(twelve.read("train").y.tolist())[11] == sum(
        every[n].split("/")[0] not in COMMANDS for n in parts["train"] + parts["validation"]
    )
