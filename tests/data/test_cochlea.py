"""The cochlea: tonotopy, silence, determinism, levels, refusals, and what real digits look like through it."""

from __future__ import annotations

import numpy as np
import pytest

from spiketide.data import LogMel
from spiketide.data.fsdd import decode_wav
from spiketide.encoders import BandLevels, Cochlea, resample
from spiketide.encoders import cochlea as module
from spiketide.errors import DataError, ParameterError, ShapeError


def tone(frequency: float, seconds: float = 0.3, rate: int = 8000) -> np.ndarray:
    return 0.1 * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)


@pytest.mark.parametrize("frequency", [150.0, 500.0, 1000.0, 2000.0, 3500.0])
def test_a_tone_excites_the_cells_of_its_frequency(frequency):
    ear = Cochlea(level=70.0)
    times, units = ear(tone(frequency))
    assert len(times) > 50
    most = ear.centres[np.bincount(units, minlength=700).argmax()]
    assert abs(most - frequency) < 1.5 * float(module.erb_width(np.asarray(frequency)))
    assert (np.diff(times) >= 0).all() and times.min() >= 0 and times.max() < 0.3


def test_centres_lie_evenly_on_the_erb_scale():
    centres = Cochlea().centres
    assert np.allclose(centres[[0, -1]], [80.0, 3700.0])
    assert np.allclose(np.diff(np.log10(0.00437 * centres + 1), 2), 0, atol=1e-12)
    assert np.isclose(Cochlea(sample_rate=48000).centres[-1], 10_000)


def test_silence_gives_no_spikes_and_rest_is_rest():
    for wave in (np.zeros(8000), np.full(8000, 1e-12)):
        assert len(Cochlea()(wave).times) == 0
    assert not BandLevels()(np.zeros(1000)).any()
    # The resting values are those at which nothing changes.
    m = module
    k, q, c, w = m._K_REST, m._Q_REST, m._C_REST, m._W_REST
    assert np.isclose(m._Y * (m._M - q) + m._X * w, k * q)
    assert np.isclose(k * q, (m._L + m._R) * c)
    assert np.isclose(m._R * c, m._X * w)


def reference(sound: np.ndarray, ear: Cochlea, channel: int) -> list[int]:
    """One channel in float64 by the equations of the docstring, with forty times finer steps for the hair cell."""
    rate, fine = ear.sample_rate, 40
    f = ear.centres[channel]
    theta, r = 2 * np.pi * f / rate, np.exp(-2 * np.pi * 1.019 * 24.7 * (0.00437 * f + 1) / rate)
    a1, a2 = 2 * r * np.cos(theta), -(r**2)
    g = abs(1 - a1 * np.exp(-1j * theta) - a2 * np.exp(-2j * theta))
    from scipy.signal import lfilter

    y = sound
    for _ in range(4):
        y = lfilter([g], [1, -a1, -a2], y)
    q, c, w = module._Q_REST, module._C_REST, module._W_REST
    dt = 1 / rate / fine
    drive = ear.hair_cells * 50000 * c
    current = drive * ear.tau_syn * 1e-3
    u = ear.weight / ear.hair_cells * current * ear.tau_mem * 1e-3
    fired, silent = [], 0
    for t, value in enumerate(y):
        k = 2000 * max(value + 5, 0) / (max(value + 5, 0) + 300)
        for _ in range(fine):
            released, back = k * q, 66.31 * w
            q += dt * (5.05 * (1 - q) + back - released)
            w += dt * (6580 * c - back)
            c += dt * (released - 9080 * c)
            current += dt * (-current / (ear.tau_syn * 1e-3) + ear.hair_cells * 50000 * c)
            u += dt * (-u / (ear.tau_mem * 1e-3) + ear.weight / ear.hair_cells * current)
        if silent > 0:
            u, silent = 0.0, silent - 1
        elif u >= 1:
            fired.append(t)
            u, silent = 0.0, round(ear.refractory * 1e-3 * rate)
    return fired


@pytest.mark.parametrize("channel", [150, 350, 600])
def test_it_follows_its_equations(channel):
    """Against a fine integration of the differential equations: the same number of spikes, nearly."""
    ear = Cochlea(level=95.0)
    pulses = np.repeat(np.tile([1.0, 0.02], 8), 100)  # 12.5 ms each
    wave = tone(ear.centres[channel], 0.2) * pulses
    times, units = ear(wave)
    found = np.rint(times[units == channel] * 8000).astype(int)
    gain = 10 ** ((95 - 30) / 20) / module.loudness(wave)
    expected = reference(wave * gain, ear, channel)
    assert len(expected) > 10
    assert abs(len(found) - len(expected)) <= 0.15 * len(expected) + 2
    near = [np.abs(found - t).min() <= 8 for t in expected]  # a millisecond
    assert np.mean(near) > 0.85


def test_level_refractory_and_loudness():
    rng = np.random.default_rng(0)
    wave = rng.standard_normal(4000) * 0.05
    first = Cochlea()(wave)
    quiet, loud = Cochlea()(wave * 0.5), Cochlea()(wave * 4)
    assert np.array_equal(first.times, quiet.times) and np.array_equal(first.units, loud.units)
    counts = [len(Cochlea(level=level)(wave).times) for level in (40.0, 65.0, 85.0)]
    assert counts[0] < counts[1] < counts[2]
    times, units = Cochlea(refractory=10.0)(wave)
    gaps = [np.diff(times[units == unit]) for unit in np.unique(units)]
    assert min(gap.min() for gap in gaps if len(gap)) >= 0.010
    # Far below `silence` a recording stays soft.
    assert len(Cochlea()(wave * 1e-6).times) == 0
    # Silence around a sound does not make it louder.
    assert module.loudness(wave) == pytest.approx(module.loudness(np.pad(wave, 500)), rel=0.2)


def test_the_same_sound_gives_the_same_spikes_and_blocks_do_not_matter():
    rng = np.random.default_rng(1)
    wave = rng.standard_normal(2000).astype(np.float32)
    first, again = Cochlea()(wave), Cochlea()(wave)
    assert np.array_equal(first.times, again.times) and np.array_equal(first.units, again.units)
    whole = Cochlea(channels=65, low=100.0, high=3000.0)(wave)  # a block and one more
    assert set(whole.units) == set(range(65))
    last = Cochlea(channels=2, low=100.0, high=3000.0)(wave)
    assert np.array_equal(whole.times[whole.units == 64], last.times[last.units == 1])


def test_resampling():
    wave = tone(700.0, 0.5, 44100)
    at = resample(wave, 44100, 8000)
    assert at.dtype == np.float32 and len(at) == 4000
    assert np.abs(at[200:-200] - tone(700.0, 0.5)[200:-200]).max() < 1e-3
    assert np.array_equal(resample(wave, 8000, 8000), wave.astype(np.float32))
    with pytest.raises(ParameterError, match="rates of 1 Hz"):
        resample(wave, 0, 8000)


def test_other_rates_hear_the_same_tone():
    for rate in (16000, 48000):
        ear = Cochlea(sample_rate=rate, level=70.0)
        units = ear(tone(1000.0, rate=rate)).units
        assert abs(ear.centres[np.bincount(units).argmax()] - 1000) < 200


@pytest.mark.parametrize("ear", [Cochlea(), BandLevels()])
@pytest.mark.parametrize(
    ("wave", "kind", "words"),
    [
        (np.zeros((100, 2)), ShapeError, r"one mono recording \(n,\), got \(100, 2\).*wave.mean"),
        (np.array([0.0, np.nan]), DataError, "got 1 NaN or infinite among 2"),
        (np.array([0.0, np.inf]), DataError, "NaN or infinite"),
        (np.empty(0), DataError, "empty recording"),
        (np.zeros(10, dtype=np.int16), DataError, "floating samples.*int16.*32768"),
    ],
)
def test_broken_sound(ear, wave, kind, words):
    with pytest.raises(kind, match=words):
        ear(wave)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sample_rate": 0}, "sample_rate > 0"),
        ({"channels": 0}, "channels > 0"),
        ({"high": 4000.0}, "low < high < half the sample rate"),
        ({"low": 3800.0}, "low < high"),
        ({"level": float("nan")}, "finite level"),
        ({"refractory": -1.0}, "refractory >= 0"),
        ({"tau_mem": float("inf")}, "tau_mem > 0"),
        ({"weight": 50e3}, "it would fire in silence"),
    ],
)
def test_options_that_make_no_sense(options, words):
    with pytest.raises(ParameterError, match=words):
        Cochlea(**options)


def test_band_levels_against_scipy():
    from scipy.signal import butter, sosfilt

    code = BandLevels(channels=9)
    wave = np.random.default_rng(2).standard_normal(830)
    expected = np.empty((11, 9))
    for i, f in enumerate(code.centres):
        width = 24.7 * (0.00437 * f + 1)
        y = sosfilt(butter(2, [f - width / 2, f + width / 2], "bandpass", fs=8000, output="sos"), wave)
        power = np.maximum(y, 0) ** 2
        expected[:, i] = [np.log(max(power[80 * t : 80 * t + 80].sum(), 1e-12)) for t in range(11)]
    expected = np.clip(np.floor((expected - np.percentile(expected, 99) + 7.5) / 1.5), 0, 5)
    found = code(wave)
    assert np.array_equal(found, expected)
    assert len(np.unique(found)) > 3
    with pytest.raises(ParameterError, match="one sample at least"):
        BandLevels(dt=0.01)


def test_real_digits_look_like_their_spectrogram(real_data):
    """Counts of 70 groups of cells in 10 ms against log-mel frames of the same bins."""
    ear, mel = Cochlea(), LogMel(n_mels=70)
    paths = sorted((real_data / "fsdd" / "recordings").glob("*_1?.wav"))[::12]
    correlation, spikes = [], []
    for path in paths:
        wave = decode_wav(path.read_bytes(), path)
        times, units = ear(wave)
        frames = mel(wave)
        counts = np.zeros(frames.shape)
        np.add.at(counts, (np.floor(times * 100 + 1e-9).astype(int), units // 10), 1)
        correlation.append(np.corrcoef(np.log1p(counts).ravel(), frames.ravel())[0, 1])
        spikes.append(len(times))
    assert len(paths) >= 50
    assert np.mean(correlation) > 0.55  # measured 0.61 on all
    assert 5_000 < np.mean(spikes) < 20_000  # measured 10,900 on all
