from __future__ import annotations

import logging

import numpy as np
import pytest

from spiketide.data import LogMel, features
from spiketide.data.features import cached, fingerprint
from spiketide.errors import ParameterError


def tone(hertz: float, n: int = 4000) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(n) / 8000)).astype(np.float32)


def test_a_tone_lights_its_band_and_only_that():
    import librosa

    frames = LogMel(normalise="none")(tone(1000.0))
    assert frames.shape == (51, 40)
    assert frames.dtype == np.float32
    centres = librosa.mel_frequencies(42, fmin=0.0, fmax=4000.0)[1:-1]
    brightest = frames[25].argmax()
    assert abs(centres[brightest] - 1000.0) < 60.0
    assert frames[25, brightest] - np.median(frames[25]) > 8.0


def test_the_equation():
    """One frame, computed from the definition with NumPy alone but for the filters."""
    import librosa

    wave = tone(700.0)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(200) / 200)
    window = np.pad(window, (28, 28))  # 25 ms in the middle of 256
    around = wave[10 * 80 - 128 : 10 * 80 + 128]
    energy = np.abs(np.fft.rfft(around * window)) ** 2
    expected = np.log(librosa.filters.mel(sr=8000, n_fft=256, n_mels=40) @ energy + 1e-8)
    assert np.allclose(LogMel(normalise="none")(wave)[10], expected, atol=1e-4)


def test_librosa_agrees():
    import librosa

    wave = np.random.default_rng(0).normal(scale=0.1, size=3000).astype(np.float32)
    theirs = librosa.feature.melspectrogram(
        y=wave, sr=8000, n_fft=256, win_length=200, hop_length=80, n_mels=40
    )
    ours = LogMel(normalise="none")(wave)
    assert np.allclose(ours, np.log(theirs.T + 1e-8), atol=1e-3)


def test_normalisation_is_of_one_recording_and_takes_out_the_gain():
    rng = np.random.default_rng(0)
    wave = (tone(500.0) * np.linspace(0, 1, 4000) + 0.01 * rng.normal(size=4000)).astype(np.float32)
    loud, quiet = LogMel()(wave), LogMel()(wave * np.float32(0.3))
    assert abs(loud.mean()) < 1e-4
    assert abs(loud.std() - 1.0) < 1e-4
    assert np.allclose(loud, quiet, atol=1e-2)
    assert not np.allclose(
        LogMel(normalise="none")(wave), LogMel(normalise="none")(wave * np.float32(0.3)), atol=1.0
    )


def test_silence_is_zero_and_not_nan():
    assert np.abs(LogMel()(np.zeros(1000, np.float32))).max() < 1e-6


@pytest.mark.parametrize("n", [1, 79, 80, 81, 4000])
def test_number_of_frames(n):
    mel = LogMel()
    assert len(mel(np.ones(n, np.float32))) == mel.frames(n) == 1 + n // 80


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n_mels": 0}, "n_mels > 0"),
        ({"hop_ms": -1.0}, "hop_ms > 0"),
        ({"window_ms": float("nan")}, "window_ms > 0"),
        ({"hop_ms": 0.01}, "hop of 1"),
        ({"normalise": "recordings"}, "did you mean 'recording'"),
    ],
)
def test_sizes_out_of_range(options, words):
    with pytest.raises(ParameterError, match=words):
        LogMel(**options)


def test_more_bands_than_the_window_resolves():
    with pytest.raises(ParameterError, match="Lower n_mels or raise window_ms"):
        LogMel(n_mels=200)(tone(500.0))


SEQUENCES = [np.arange(6, dtype=np.float32).reshape(3, 2), np.ones((1, 2), np.float32)]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "spiketide" / "features"


def never():
    raise AssertionError("computed again")


def same(found):
    return len(found) == 2 and all(np.array_equal(a, b) for a, b in zip(found, SEQUENCES, strict=True))


def test_computed_once(cache):
    assert same(cached("toy", "k" * 64, 2, lambda: SEQUENCES))
    assert [path.name for path in cache.iterdir()] == [f"toy-{'k' * 32}.npz"]
    assert same(cached("toy", "k" * 64, 2, never))


def test_an_interruption_leaves_no_file(cache, monkeypatch):
    def interrupt(*args, **kwargs):
        args[0].write(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(features.np, "savez", interrupt)
        cached("toy", "k" * 64, 2, lambda: SEQUENCES)
    assert list(cache.iterdir()) == []
    assert same(cached("toy", "k" * 64, 2, lambda: SEQUENCES))


@pytest.mark.parametrize(
    "damage", [lambda raw: raw[: len(raw) // 2], lambda raw: b"nonsense", lambda raw: b""]
)
def test_a_damaged_file_is_computed_again(cache, caplog, damage):
    cached("toy", "k" * 64, 2, lambda: SEQUENCES)
    (path,) = cache.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    with caplog.at_level(logging.WARNING, "spiketide.data"):
        assert same(cached("toy", "k" * 64, 2, lambda: SEQUENCES))
    assert "cannot be read" in caplog.text
    assert same(cached("toy", "k" * 64, 2, never))


def test_a_folder_that_cannot_be_written_costs_only_time(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING, "spiketide.data"):
        assert same(cached("toy", "k" * 64, 2, lambda: SEQUENCES))
    assert "cannot be written" in caplog.text


def test_the_key_knows_parameters_contents_and_order():
    keys = {
        fingerprint(LogMel().key(), [b"a", b"b"]),
        fingerprint(LogMel(n_mels=39).key(), [b"a", b"b"]),
        fingerprint(LogMel().key(), [b"a", b"c"]),
        fingerprint(LogMel().key(), [b"b", b"a"]),
        fingerprint(LogMel().key(), [b"ab"]),
        fingerprint(LogMel().key(), [b"", b"ab"]),
    }
    assert len(keys) == 6
    assert fingerprint(LogMel().key(), [b"a", b"b"]) in keys
