"""From sound to spikes: a model of the cochlea and the first cells behind it, and a level code of band energies."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, ParameterError, ShapeError
from ..kernels.threading import kernel

_VERSION = 1
"""Goes into cache keys: raise it when the arithmetic below changes."""

_BLOCK = 64
"""Channels that one pass over the time axis carries along: their state stays in the first-level cache."""


class Events(NamedTuple):
    """The spikes of one recording, sorted by time, then by unit."""

    times: NDArray[np.float64]
    """``(n,)`` seconds from the beginning of the recording."""
    units: NDArray[np.int64]
    """``(n,)`` channels, counted from 0, the lowest frequency."""


@dataclass(frozen=True, kw_only=True)
class Cochlea:
    """Basilar membrane, hair cells and bushy cells: sound in, spikes of ``channels`` bushy cells out.

    Level, for every recording alone (``p`` in [-1, 1], ``R`` the RMS of the louder half of its samples)::

        s = p * 10^((level - 30) / 20) / max(R, silence)      RMS 1 is 30 dB SPL, as in Meddis 1986

    Basilar membrane, channel ``i`` with centre ``f_i`` spaced evenly on the ERB scale: four times the same
    resonator of two poles, with gain 1 at its centre (an all-pole gammatone filter)::

        y[t] = g x[t] + 2 r cos(th) y[t-1] - r^2 y[t-2]
        th = 2 pi f / rate,   r = exp(-2 pi 1.019 E / rate),   E = 24.7 (0.00437 f + 1)

    Hair cell, transmitter in the cell (``q``), in the cleft (``c``) and on its way back (``w``); constants per
    second, ``dt = 1 / rate``::

        k = g (y + A) / (y + A + B) where y + A > 0, else 0
        dq/dt = Y (M - q) + X w - k q;    dc/dt = k q - (L + R) c;    dw/dt = R c - X w
        A 5, B 300, g 2000, Y 5.05, L 2500, R 6580, X 66.31, M 1;     rate of one cell  p = H c,  H 50000 per s

    Bushy cell, on which ``hair_cells`` equal hair cells converge: a leaky integrate-and-fire neuron with a
    synaptic current, reset to 0 and silent for ``refractory`` after a spike::

        dI/dt = -I / tau_syn + hair_cells p;    du/dt = -u / tau_mem + (weight / hair_cells) I;    spike at u >= 1

    The hair cell is integrated semi-implicitly (``c`` exactly), the bushy cell exactly for a drive that is
    constant within a sample, so the resting state does not depend on the rate. It begins at rest, and rest is
    below threshold: **silence gives no spikes**. Deterministic: the same samples give the same spikes.

    Example:
        >>> import numpy as np
        >>> from spiketide.encoders import Cochlea
        >>> ear = Cochlea()
        >>> tone = np.sin(2 * np.pi * 1000 * np.arange(4000) / 8000)
        >>> times, units = ear(tone)
        >>> bool(abs(ear.centres[int(np.median(units))] - 1000) < 30)
        True
        >>> len(ear(np.zeros(4000)).times)
        0

    Shapes:
        ``wave (n,)`` floating, mono, at ``sample_rate`` -> ``Events``: ``times (k,)`` seconds, whole samples
        over the rate; ``units (k,)`` from 0 (lowest centre) to ``channels - 1``.

    Args:
        sample_rate: samples a second (Hz) of the waves. Other rates: :func:`resample` first.
        channels: bushy cells.
        low: lowest centre (Hz).
        high: highest centre (Hz); ``None``: 0.4625 of the rate (3700 Hz at 8 kHz), at most 10 kHz.
        level: level of the louder half of a recording (dB SPL). The default was chosen on spoken digits, partly by how well
            ridge regression did on speakers held out: figures on those speakers are a little optimistic for it.
        silence: recordings whose ``R`` is below this (of full scale 1) are not raised to ``level`` but by the
            gain that this one would get.
        hair_cells: hair cells on one bushy cell.
        weight: 1 / s, all hair cells of a bushy cell together.
        tau_mem: membrane time constant (ms).
        tau_syn: time constant of the synaptic current (ms).
        refractory: ms.

    Raises:
        ParameterError: a size that is not positive, centres that do not lie below half the rate, or a rest
            above threshold.
        ShapeError: not mono (mix down with ``wave.mean(axis)``).
        DataError: no samples, NaN or infinity, or integers (divide by full scale first).

    Reference:
        B. Cramer et al., "The Heidelberg Spiking Data Sets for the Systematic Evaluation of Spiking Neural
        Networks", arXiv 1910.07407: 700 channels, transmitter-pool hair cells (R. Meddis, JASA 79(3), 1986, and
        83(3), 1988) and bushy cells on which 40 hair cells converge. The paper itself was not at hand; constants
        of hair and bushy cell are those of the authors' public conversion program (lauscher; X is 66.3 there). What differs:
        that program has a hydrodynamic membrane (Sieroka et al. 2006) of another frequency map, here it is a
        filter bank; there each hair cell fires at random, here the bushy cell gets the expected number of
        their spikes; there the whole recording is scaled to one RMS and its ends are faded, here the louder half
        is scaled, so that silence around a word does not make the word louder, and nothing is faded. ``level``
        and the order of the channels are our own. **The spikes are therefore like those of the published data
        sets, not the same**, and no comparison with them has been made.
    """

    sample_rate: int = 8000
    channels: int = 700
    low: float = 80.0
    high: float | None = None
    level: float = 85.0
    silence: float = 1e-3
    hair_cells: int = 40
    weight: float = 13e3
    tau_mem: float = 1.0
    tau_syn: float = 0.5
    refractory: float = 1.0

    def __post_init__(self) -> None:
        _positive(self, ("sample_rate", "channels", "low", "silence", "hair_cells", "weight"))
        _positive(self, ("tau_mem", "tau_syn"))
        if not math.isfinite(self.level):
            raise ParameterError(f"Cochlea expected a finite level in dB, got {self.level!r}.")
        if not (math.isfinite(self.refractory) and self.refractory >= 0):
            raise ParameterError(f"Cochlea expected refractory >= 0 ms, got {self.refractory!r}.")
        _below_half_the_rate("Cochlea", self.low, self._high, self.sample_rate)
        rest = self.weight * _REST_RATE * self.tau_syn * self.tau_mem * 1e-6
        if rest >= 1.0:
            raise ParameterError(
                f"Cochlea expected a resting bushy cell below its threshold 1, got {rest:.3g}: it would fire in "
                "silence. Lower weight, tau_mem or tau_syn."
            )

    @property
    def _high(self) -> float:
        return _highest(self.high, self.sample_rate)

    @property
    def centres(self) -> NDArray[np.float64]:
        """Centre frequency of every channel (Hz), ascending."""
        return erb_spaced(self.low, self._high, self.channels)

    def __call__(self, wave: NDArray[np.floating[Any]]) -> Events:
        """The spikes of one recording."""
        sound = checked_wave("Cochlea", wave)
        gain = 10.0 ** ((self.level - 30.0) / 20.0) / max(loudness(sound), self.silence)
        fired = np.zeros((len(sound), self.channels), dtype=np.bool_)
        _hear(
            (sound * gain).astype(np.float32),
            *_resonators(self.low, self._high, self.channels, self.sample_rate),
            *self._cells(),
            fired,
        )
        steps, units = np.divmod(np.flatnonzero(fired), self.channels)
        return Events(steps / self.sample_rate, units)

    def _cells(self) -> tuple[np.float32, np.float32, np.float32, np.float32, np.float32, int]:
        dt = 1.0 / self.sample_rate
        stay, hold = math.exp(-dt / (self.tau_mem * 1e-3)), math.exp(-dt / (self.tau_syn * 1e-3))
        into = self.hair_cells * _H * self.tau_syn * 1e-3 * (1.0 - hold)  # what c adds to the current
        through = self.weight / self.hair_cells * self.tau_mem * 1e-3 * (1.0 - stay)
        single = (np.float32(value) for value in (dt, stay, hold, into, through))
        dt_, stay_, hold_, into_, through_ = single
        return dt_, stay_, hold_, into_, through_, round(self.refractory * 1e-3 * self.sample_rate)

    def key(self) -> dict[str, Any]:
        """What the spikes depend on besides the sound: for the key of a cache."""
        return {"feature": "cochlea", "version": _VERSION, **asdict(self)}


@dataclass(frozen=True, kw_only=True)
class BandLevels:
    """A level code: each channel's energy in each bin, in steps below the loudest of the recording.

    ::

        y_i = band-pass of the sound (Butterworth, two sections, one ERB wide, centres even on the ERB scale)
        e[t, i] = log(sum over bin t of max(y_i, 0)^2)               natural logarithm
        n[t, i] = clip(floor((e[t, i] - P + depth) / step), 0, levels)       P: 99th percentile of e

    ``n`` is graded (0 to ``levels``), not a spike train of one neuron; as input it is ``n`` spikes in one bin. A
    recording without any energy gives zeros.

    Example:
        >>> import numpy as np
        >>> from spiketide.encoders import BandLevels
        >>> code = BandLevels()(np.sin(2 * np.pi * 1000 * np.arange(4000) / 8000))
        >>> code.shape, int(code.max())
        ((50, 140), 5)

    Shapes:
        ``wave (n,)`` floating, mono -> ``(ceil(n / bin), channels)`` float32; a last bin that is not full
        counts with what it has.

    Args:
        sample_rate: samples a second (Hz).
        channels: bands.
        low: lowest centre (Hz).
        high: highest centre (Hz); ``None``: as :class:`Cochlea`.
        dt: length of a bin (ms).
        step: natural log units for one count.
        depth: natural log units below ``P`` at which counting begins.
        levels: highest count.

    Raises:
        ParameterError, ShapeError, DataError: as :class:`Cochlea`.

    Reference:
        Our own, from a trial of front ends on spoken digits; no publication.
    """

    sample_rate: int = 8000
    channels: int = 140
    low: float = 80.0
    high: float | None = None
    dt: float = 10.0
    step: float = 1.5
    depth: float = 7.5
    levels: int = 5

    def __post_init__(self) -> None:
        _positive(self, ("sample_rate", "channels", "low", "dt", "step", "depth", "levels"))
        _below_half_the_rate("BandLevels", self.low, self._high, self.sample_rate)
        if self.bin < 1:
            raise ParameterError(
                f"BandLevels expected a bin of one sample at least, got dt={self.dt} ms at {self.sample_rate} Hz."
            )

    @property
    def _high(self) -> float:
        return _highest(self.high, self.sample_rate)

    @property
    def bin(self) -> int:
        """Samples in a bin."""
        return round(self.dt * 1e-3 * self.sample_rate)

    @property
    def centres(self) -> NDArray[np.float64]:
        """Centre frequency of every channel (Hz), ascending."""
        return erb_spaced(self.low, self._high, self.channels)

    def __call__(self, wave: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        """The counts of one recording."""
        sound = checked_wave("BandLevels", wave)
        energy = np.zeros((-(-len(sound) // self.bin), self.channels))
        _band_energies(
            sound, _butterworth(self.low, self._high, self.channels, self.sample_rate), self.bin, energy
        )
        if not (energy > _NOTHING).any():
            return np.zeros(energy.shape, dtype=np.float32)
        level = np.log(np.maximum(energy, _NOTHING))
        count = np.floor((level - np.percentile(level, 99) + self.depth) / self.step)
        return np.clip(count, 0, self.levels).astype(np.float32)

    def key(self) -> dict[str, Any]:
        """What the counts depend on besides the sound: for the key of a cache."""
        return {"feature": "band-levels", "version": _VERSION, **asdict(self)}


def resample(wave: NDArray[np.floating[Any]], rate: int, to: int) -> NDArray[np.float32]:
    """The same sound at another rate, by SciPy's polyphase filter (Kaiser window, its default).

    Example:
        >>> import numpy as np
        >>> from spiketide.encoders import resample
        >>> resample(np.zeros(441), 44100, 8000).shape
        (80,)

    Args:
        wave: ``(n,)`` mono sound.
        rate: its samples a second (Hz).
        to: the wanted ones.

    Raises:
        ParameterError: a rate that is not positive.
        ShapeError, DataError: as :class:`Cochlea`.
    """
    if rate < 1 or to < 1:
        raise ParameterError(f"resample expected rates of 1 Hz or more, got {rate} and {to}.")
    sound = checked_wave("resample", wave)
    if rate == to:
        return sound.astype(np.float32)
    from scipy.signal import resample_poly

    common = math.gcd(rate, to)
    return np.asarray(resample_poly(sound, to // common, rate // common), dtype=np.float32)


def erb_spaced(low: float, high: float, channels: int) -> NDArray[np.float64]:
    """Frequencies (Hz) that lie evenly on the ERB-rate scale, both ends included.

    Reference:
        B. R. Glasberg, B. C. J. Moore, Hearing Research 47, 1990: ``21.4 log10(0.00437 f + 1)``.
    """
    ends = np.log10(0.00437 * np.array([low, high]) + 1.0)
    return np.asarray((10.0 ** np.linspace(ends[0], ends[1], channels) - 1.0) / 0.00437)


def erb_width(frequency: NDArray[np.float64]) -> NDArray[np.float64]:
    """The equivalent rectangular bandwidth (Hz) of the ear's filter at a frequency (Glasberg and Moore)."""
    return 24.7 * (0.00437 * frequency + 1.0)


def loudness(sound: NDArray[np.float64]) -> float:
    """RMS of the half of the samples with the larger magnitude."""
    size = np.abs(sound)
    half = len(size) // 2
    return float(np.sqrt(np.mean(np.square(np.partition(size, half)[half:]))))


def checked_wave(name: str, wave: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """One mono recording of finite floating samples, as float64.

    Raises:
        ShapeError, DataError: it is not.
    """
    wave = np.asarray(wave)
    if wave.ndim != 1:
        raise ShapeError(
            f"{name} expected one mono recording (n,), got {wave.shape}: mix the channels of a stereo recording "
            "down first, for example wave.mean(axis=1)."
        )
    if not np.issubdtype(wave.dtype, np.floating):
        raise DataError(
            f"{name} expected floating samples in [-1, 1], got {wave.dtype}: divide 16-bit samples by 32768."
        )
    if len(wave) == 0:
        raise DataError(f"{name} expected at least one sample, got an empty recording.")
    bad = int((~np.isfinite(wave)).sum())
    if bad:
        raise DataError(
            f"{name} expected finite samples, got {bad} NaN or infinite among {len(wave)}: the recording is broken."
        )
    return wave.astype(np.float64)


# ------------------------------------------------------------------------------------------------- inside

_A, _B, _G, _Y, _L, _R, _X, _M, _H = 5.0, 300.0, 2000.0, 5.05, 2500.0, 6580.0, 66.31, 1.0, 50000.0
_K_REST = _G * _A / (_A + _B)
_C_REST = _M * _Y * _K_REST / (_L * _K_REST + _Y * (_L + _R))
_Q_REST = _C_REST * (_L + _R) / _K_REST
_W_REST = _C_REST * _R / _X
_REST_RATE = _H * _C_REST
"""Spikes a second of one hair cell in silence."""

_NOTHING = 1e-12
"""Energy that counts as none: below the rounding of a 16-bit recording."""


def _positive(model: Any, names: tuple[str, ...]) -> None:
    for name in names:
        value = getattr(model, name)
        if not (math.isfinite(value) and value > 0):
            raise ParameterError(f"{type(model).__name__} expected {name} > 0, got {value!r}.")


def _highest(high: float | None, rate: int) -> float:
    return min(0.4625 * rate, 10_000.0) if high is None else high


def _below_half_the_rate(name: str, low: float, high: float, rate: int) -> None:
    if not (low < high < rate / 2):
        raise ParameterError(
            f"{name} expected centres with low < high < half the sample rate, got {low} and {high} Hz at {rate} Hz."
        )


@lru_cache(maxsize=8)
def _resonators(
    low: float, high: float, channels: int, rate: int
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Input gain and the two feedback coefficients of one stage, ``(channels,)`` each."""
    centre = erb_spaced(low, high, channels)
    theta = 2.0 * np.pi * centre / rate
    radius = np.exp(-2.0 * np.pi * 1.019 * erb_width(centre) / rate)
    first, second = 2.0 * radius * np.cos(theta), -(radius**2)
    gain = np.abs(1.0 - first * np.exp(-1j * theta) - second * np.exp(-2j * theta))
    return gain.astype(np.float32), first.astype(np.float32), second.astype(np.float32)


@lru_cache(maxsize=8)
def _butterworth(low: float, high: float, channels: int, rate: int) -> NDArray[np.float64]:
    """Two second-order sections for each band, ``(channels, 2, 5)``: b0 b1 b2 a1 a2."""
    from scipy.signal import butter

    sections = np.empty((channels, 2, 5))
    for number, centre in enumerate(erb_spaced(low, high, channels)):
        width = float(erb_width(np.asarray(centre)))
        band = [max(centre - width / 2, 1.0), min(centre + width / 2, 0.499 * rate)]
        sos = butter(2, band, "bandpass", fs=rate, output="sos")
        sections[number] = sos[:, [0, 1, 2, 4, 5]]
    return sections


@kernel(parallel=False, error_model="numpy")  # a division that may raise would not vectorise
def _hear(  # type: ignore[no-untyped-def]  # compiled
    sound, gain, first, second, dt, stay, hold, into, through, refractory, fired
):
    """All channels, a block at a time; within it time outside and channels, which vectorise, inside.

    Everything that belongs to a channel lies in one array at constant distances: so the compiler sees that
    nothing overlaps. Rows: 0-3 and 4-7 the filters' last two values, 8-10 their coefficients, 11-13 transmitter,
    14 current, 15 membrane, 16 samples of silence left, 17 spikes.
    """
    one, zero = np.float32(1.0), np.float32(0.0)
    a, b, g = np.float32(_A), np.float32(_B), np.float32(_G)
    back = np.float32(_X) * dt
    fresh = np.float32(_Y * _M) * dt
    drain = one + np.float32(_Y) * dt
    taken = np.float32(_R) * dt
    kept = np.float32(np.exp(-(_L + _R) * dt))
    share = np.float32((1.0 - np.exp(-(_L + _R) * dt)) / (_L + _R))
    slow = one / (one + back)
    wait = np.float32(refractory)
    channels = len(gain)
    m = np.empty(18 * _BLOCK, dtype=np.float32)
    for begin in range(0, channels, _BLOCK):
        size = min(_BLOCK, channels - begin)
        m[:] = zero
        m[8 * _BLOCK : 8 * _BLOCK + size] = gain[begin : begin + size]
        m[9 * _BLOCK : 9 * _BLOCK + size] = first[begin : begin + size]
        m[10 * _BLOCK : 10 * _BLOCK + size] = second[begin : begin + size]
        m[11 * _BLOCK : 12 * _BLOCK] = np.float32(_Q_REST)
        m[12 * _BLOCK : 13 * _BLOCK] = np.float32(_C_REST)
        m[13 * _BLOCK : 14 * _BLOCK] = np.float32(_W_REST)
        m[14 * _BLOCK : 15 * _BLOCK] = into * np.float32(_C_REST) / (one - hold)
        m[15 * _BLOCK : 16 * _BLOCK] = through * into * np.float32(_C_REST) / ((one - hold) * (one - stay))
        for t in range(len(sound)):
            x = sound[t]
            many = 0
            for i in range(_BLOCK):
                b0, a1, a2 = m[8 * _BLOCK + i], m[9 * _BLOCK + i], m[10 * _BLOCK + i]
                old0, old1, old2, old3 = m[i], m[_BLOCK + i], m[2 * _BLOCK + i], m[3 * _BLOCK + i]
                y0 = b0 * x + a1 * old0 + a2 * m[4 * _BLOCK + i]
                y1 = b0 * y0 + a1 * old1 + a2 * m[5 * _BLOCK + i]
                y2 = b0 * y1 + a1 * old2 + a2 * m[6 * _BLOCK + i]
                y = b0 * y2 + a1 * old3 + a2 * m[7 * _BLOCK + i]
                m[4 * _BLOCK + i] = old0
                m[5 * _BLOCK + i] = old1
                m[6 * _BLOCK + i] = old2
                m[7 * _BLOCK + i] = old3
                m[i] = y0
                m[_BLOCK + i] = y1
                m[2 * _BLOCK + i] = y2
                m[3 * _BLOCK + i] = y
                open_ = y + a
                open_ = open_ if open_ > zero else zero
                k = g * open_ / (open_ + b)
                q = (m[11 * _BLOCK + i] + fresh + back * m[13 * _BLOCK + i]) / (drain + dt * k)
                c = m[12 * _BLOCK + i] * kept + k * q * share
                m[11 * _BLOCK + i] = q
                m[12 * _BLOCK + i] = c
                m[13 * _BLOCK + i] = (m[13 * _BLOCK + i] + taken * c) * slow
                current = m[14 * _BLOCK + i] * hold + into * c
                m[14 * _BLOCK + i] = current
                silent = m[16 * _BLOCK + i]
                u = m[15 * _BLOCK + i] * stay + through * current
                u = u if silent <= zero else zero
                spike = one if u >= one else zero
                m[15 * _BLOCK + i] = zero if u >= one else u
                m[16 * _BLOCK + i] = wait if u >= one else silent - one
                m[17 * _BLOCK + i] = spike
            for i in range(_BLOCK):
                many += 1 if m[17 * _BLOCK + i] > zero else 0
            if many > 0:
                for i in range(size):
                    fired[t, begin + i] = m[17 * _BLOCK + i] > zero


@kernel(parallel=False, error_model="numpy")  # a division that may raise would not vectorise
def _band_energies(sound, sections, samples, energy):  # type: ignore[no-untyped-def]  # compiled
    """Energy of each half-wave rectified band in each bin; time outside, channels inside."""
    channels = sections.shape[0]
    z = np.zeros((4, channels))
    parts = np.empty((10, channels))
    for s in range(2):
        for j in range(5):
            parts[5 * s + j] = sections[:, s, j]
    for t in range(len(sound)):
        x = sound[t]
        row = energy[t // samples]
        for i in range(channels):
            y = parts[0, i] * x + z[0, i]
            z[0, i] = parts[1, i] * x - parts[3, i] * y + z[1, i]
            z[1, i] = parts[2, i] * x - parts[4, i] * y
            o = parts[5, i] * y + z[2, i]
            z[2, i] = parts[6, i] * y - parts[8, i] * o + z[3, i]
            z[3, i] = parts[7, i] * y - parts[9, i] * o
            half = max(o, 0.0)
            row[i] += half * half
