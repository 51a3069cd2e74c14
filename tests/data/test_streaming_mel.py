"""Frames of live sound: those of the whole clip, whatever the pieces, and the formulas of the docstring."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import savgol_filter

from spiketide.data import StreamingMel
from spiketide.errors import DataError, NonFiniteError, ParameterError, ShapeError


def speech(samples: int, seed: int = 0) -> np.ndarray:
    """Noise whose loudness and colour change."""
    rng = np.random.default_rng(seed)
    time = np.arange(samples)
    loudness = 0.3 * np.abs(np.sin(time / 1500.0)) ** 3
    return loudness * (np.sin(time**2 / 30000.0) + 0.3 * rng.normal(size=samples))


def plainly(front: StreamingMel, wave: np.ndarray) -> np.ndarray:
    """The docstring's formulas, one number after the other; only the mel filters are librosa's."""
    import librosa

    n, hop, bands = front.n_fft, front.hop, front.bands
    mel = librosa.filters.mel(
        sr=front.sample_rate, n_fft=n, n_mels=bands, fmin=front.f_min, fmax=front.f_max
    ).astype(float)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n) / n)
    waves = np.exp(-2j * np.pi * np.outer(np.arange(n // 2 + 1), np.arange(n)) / n)
    padded = np.concatenate([np.zeros(n), wave])
    m = []
    for t in range(len(wave) // hop):
        end = n + (t + 1) * hop
        power = np.abs(waves @ (window * padded[end - n : end])) ** 2
        energy = front.sample_rate / n / (window**2).sum() * mel @ power
        m.append(np.log(1 + energy / front.floor))
    m = np.array(m)
    # fits by least squares to the last frames, silence before the first
    before = np.concatenate([np.zeros((front.width - 1, bands)), m])
    z = np.arange(front.width) - (front.width - 1) / 2
    slope, curve = np.zeros_like(m), np.zeros_like(m)
    for t in range(len(m)):
        last = before[t : t + front.width]
        slope[t] = np.polyfit(z, last, 1)[0]
        curve[t] = 2 * np.polyfit(z, last, 2)[0]
    y = np.stack([m, slope, curve], axis=1)
    if front.normalise == "none":
        return y
    f = math.exp(-front.hop_ms / front.memory_ms)
    mean, *deviations = front.start
    squares = np.square(deviations)
    least = 0.1 * np.array(deviations)
    for t in range(len(y)):
        # the mixture of the past and this frame, from its definition: E[m] and E[m^2] - E[m]^2
        raw = squares[0] + mean**2
        mean = f * mean + (1 - f) * y[t, 0].mean()
        raw = f * raw + (1 - f) * (y[t, 0] ** 2).mean()
        squares[0] = raw - mean**2
        for c in (1, 2):
            squares[c] = f * squares[c] + (1 - f) * (y[t, c] ** 2).mean()
        y[t, 0] -= mean
        y[t] /= np.maximum(np.sqrt(squares), least)[:, None]
    return y


@pytest.mark.parametrize(
    "options",
    [
        {"normalise": "none"},
        {"memory_ms": 200.0},
        {"sample_rate": 8000, "width": 4, "n_mels": 20, "floor": 1e-7},
        {
            "sample_rate": 11025,
            "window_ms": 25.0,
            "f_max": 5000.0,
            "n_mels": 12,
            "start": (1.0, 3.0, 1.0, 2.0),
        },
    ],
)
def test_the_formulas(options: dict[str, Any]) -> None:
    front = StreamingMel(flatten=False, **options)
    wave = speech(6000)
    expected = plainly(front, wave)
    found = front(wave)
    assert found.dtype == np.float32 and found.shape == expected.shape == (6000 // front.hop, 3, front.bands)
    assert np.allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert found.std() > 0.3
    flat = StreamingMel(**options)(wave)
    assert np.array_equal(flat, found.reshape(len(found), -1))


FRONTS = [
    StreamingMel(sample_rate=8000),
    StreamingMel(sample_rate=8000, flatten=False, normalise="none", width=9, window_ms=10.0, n_mels=10),
    StreamingMel(sample_rate=4000, window_ms=60.0, hop_ms=7.0, f_max=2000.0, n_mels=16),
]


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(FRONTS), st.lists(st.integers(0, 700), max_size=12), st.integers(0, 9))
def test_pieces_give_the_frames_of_the_whole_to_the_bit(
    front: StreamingMel, cuts: list[int], seed: int
) -> None:
    wave = speech(2000, seed).astype(np.float32)
    live = front.stream()
    pieces = [live(piece) for piece in np.split(wave, np.cumsum(cuts).clip(max=2000))]
    whole = front(wave)
    assert len(whole) == front.frames(2000) == 2000 // front.hop
    assert np.array_equal(np.concatenate(pieces), whole)


def test_a_frame_comes_with_its_last_sample_and_knows_nothing_after_it() -> None:
    front = StreamingMel(sample_rate=8000)
    wave = speech(4000)
    live = front.stream()
    assert [len(live(wave[n : n + 1])) for n in range(240)] == ([0] * 79 + [1]) * 3
    before = front(wave)
    changed = wave.copy()
    changed[2400:] = np.random.default_rng(1).normal(size=1600)
    after = front(changed)
    assert np.array_equal(before[:30], after[:30])
    assert not np.allclose(before[30], after[30])


def test_slope_and_curvature_are_those_of_the_centred_fit_half_a_width_late() -> None:
    front = StreamingMel(sample_rate=8000, flatten=False, normalise="none", width=9)
    y = front(speech(8000)).astype(float)
    for order in (1, 2):
        centred = savgol_filter(y[:, 0], 9, order, deriv=order, axis=0)
        assert np.allclose(y[8:, order], centred[4:-4], atol=1e-4)


def test_silence_and_white_noise() -> None:
    front = StreamingMel(sample_rate=8000, flatten=False, normalise="none")
    assert not front(np.zeros(800)).any()
    noise = 0.1 * np.random.default_rng(0).normal(size=80000)
    for rate in (8000, 16000):
        y = StreamingMel(sample_rate=rate, flatten=False, normalise="none", n_mels=20)(noise)
        power = 1e-5 * np.expm1(y[:, 0].astype(float)).mean()
        assert power == pytest.approx(0.01, rel=0.05)  # whatever the rate
    running = StreamingMel(sample_rate=8000)
    assert np.isfinite(running(np.zeros(80000))).all() and np.abs(running(np.zeros(80000))[-1]).max() < 1e-3


def test_the_running_mean_takes_the_gain_out() -> None:
    front = StreamingMel(sample_rate=8000, flatten=False)
    plain = StreamingMel(sample_rate=8000, flatten=False, normalise="none")
    noise = np.random.default_rng(0).normal(size=40000)
    loud, quiet = front(0.3 * noise)[-100:, 0], front(0.03 * noise)[-100:, 0]
    assert abs(float(loud.mean() - quiet.mean())) < 0.1
    assert float(plain(0.3 * noise)[-100:, 0].mean() - plain(0.03 * noise)[-100:, 0].mean()) > 4


def test_the_key_knows_all_that_moves_the_numbers() -> None:
    base: dict[str, Any] = {"sample_rate": 8000}
    changes: list[dict[str, Any]] = [
        {"n_mels": 30},
        {"sample_rate": 16000},
        {"window_ms": 20.0},
        {"hop_ms": 5.0},
        {"f_min": 50.0},
        {"f_max": 3000.0},
        {"width": 7},
        {"floor": 1e-6},
        {"normalise": "none"},
        {"memory_ms": 500.0},
        {"start": (1.0, 1.0, 1.0, 1.0)},
    ]
    keys = [str(StreamingMel(**{**base, **change}).key()) for change in [{}, *changes]]
    assert len(set(keys)) == len(changes) + 1
    assert StreamingMel(flatten=False).key() == StreamingMel().key()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n_mels": 0}, "n_mels of 1 or more"),
        ({"f_max": 9000.0}, "f_max <= 8000.0 Hz"),
        ({"window_ms": 5.0}, "no shorter, got 5.0 and 10.0 ms"),
        ({"hop_ms": float("nan")}, "hop_ms above 0"),
        ({"memory_ms": 0.0}, "memory_ms above 0"),
        ({"floor": -1.0}, "floor above 0"),
        ({"width": 2}, "width of 3 frames"),
        ({"start": (1.0, 2.0)}, "three deviations above 0"),
        ({"start": (1.0, 2.0, 0.0, 1.0)}, "three deviations above 0"),
        ({"normalise": "runing"}, "did you mean 'running'"),
    ],
)
def test_arguments_out_of_range(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ParameterError, match=words):
        StreamingMel(**options)


def test_bad_sound_is_refused_and_takes_nothing_in() -> None:
    front = StreamingMel(sample_rate=8000)
    with pytest.raises(DataError, match="expected 80 samples"):
        front(np.zeros(79))
    with pytest.raises(ParameterError, match="Lower n_mels or raise window_ms"):
        StreamingMel(sample_rate=8000, n_mels=200)(np.zeros(800))
    live, other = front.stream(), front.stream()
    wave = speech(1600)
    live(wave[:800]), other(wave[:800])
    with pytest.raises(NonFiniteError, match="NaN or infinity"):
        live(np.full(100, np.nan))
    with pytest.raises(ShapeError, match="one channel"):
        live(np.zeros((100, 2)))
    assert np.array_equal(live(wave[800:]), other(wave[800:]))


def test_long_silence_ends_in_zeros_not_in_numbers_at_the_end_of_float32() -> None:
    front = StreamingMel(sample_rate=8000)
    live = front.stream()
    live(speech(8000))
    size = np.abs(live(np.zeros(8000 * 100)))
    assert size[:1000].min(1).max() > 0  # the running mean falls slowly
    assert not ((size > 0) & (size < 1e-30)).any()
    assert not size[-1].any()
