"""Augmentation of sound while training: of waves (shift, noise) and of their frames (masks in time and frequency)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ParameterError

Range = tuple[float, float]


def draws_for(*numbers: int) -> np.random.RandomState:
    """Random draws that are a function of these numbers alone, on every machine and for every version of NumPy.

    Example:
        >>> from spiketide.data.augment_sound import draws_for
        >>> draws_for(0, 3, 17).randint(1000) == draws_for(0, 3, 17).randint(1000)
        True
    """
    return np.random.RandomState(np.random.SeedSequence(numbers).generate_state(4))


class WaveAugment:
    """Changes of a clip of sound: moved in time, background noise and white noise mixed in.

    .. code-block:: text

        w'[n] = w[n - s],  s even from -shift to shift samples, zeros where nothing came from
        w''   = w' + g b,  b a piece of background of the same length, with probability ``chance``
        w'''  = w'' + h z, z[n] ~ N(0, 1)

    Both gains follow from a signal-to-noise ratio drawn evenly from its range (dB):
    ``g^2 mean(b^2) = mean(w'^2) / 10^(snr / 10)``.
    A silent clip stays silent, silent background adds nothing.

    Example:
        >>> import numpy as np
        >>> from spiketide.data import WaveAugment
        >>> from spiketide.data.augment_sound import draws_for
        >>> wave = np.sin(np.arange(16000) / 5)
        >>> noisy = WaveAugment(white_snr=(20.0, 20.0))(wave, (), draws_for(0, 0, 0), 16000)
        >>> round(10 * np.log10(np.mean(wave**2) / np.mean((noisy - wave) ** 2)))
        20

    Args:
        shift_ms: most to move by, to either side (ms); 0: none.
        background_snr: least and largest ratio of the clip to the background (dB); ``None``: no background.
        chance: probability that there is background.
        white_snr: the same range for white noise, which is always there; ``None``: none.

    Raises:
        ParameterError: a negative shift, a chance outside [0, 1], or a range that is not finite and in order.

    Reference:
        The three kinds are those of Zimmer et al. 2019, whose published run uses none. There: chance 0.8,
        background scaled by a coefficient on the power of the clip; here by a ratio in dB.
    """

    def __init__(
        self,
        *,
        shift_ms: float = 0.0,
        background_snr: Range | None = None,
        chance: float = 0.8,
        white_snr: Range | None = None,
    ) -> None:
        if not (shift_ms >= 0 and math.isfinite(shift_ms)):
            raise ParameterError(f"WaveAugment expected shift_ms of 0 or more, got {shift_ms}.")
        if not 0 <= chance <= 1:
            raise ParameterError(f"WaveAugment expected a chance from 0 to 1, got {chance}.")
        for name, given in (("background_snr", background_snr), ("white_snr", white_snr)):
            if given is not None and not (
                len(given) == 2 and given[0] <= given[1] and all(map(math.isfinite, given))
            ):
                raise ParameterError(
                    f"WaveAugment expected {name} as two ratios in dB, the smaller first, for example (5.0, 20.0), got {given}."
                )
        self.shift_ms, self.chance = shift_ms, chance
        self.background_snr, self.white_snr = background_snr, white_snr

    def __call__(
        self,
        wave: NDArray[np.floating[Any]],
        backgrounds: Sequence[NDArray[np.floating[Any]]],
        draws: np.random.RandomState,
        rate: int,
    ) -> NDArray[np.floating[Any]]:
        """The changed clip ``(n,)``.

        Args:
            wave: the clip.
            backgrounds: recordings of noise, each at least as long as the clip.
            draws: where the random numbers come from.
            rate: samples a second (Hz).
        """
        # All are drawn whatever is asked for: one option does not move what another draws.
        u = draws.random_sample(6)
        most = round(self.shift_ms * rate / 1000)
        wave = moved(wave, math.floor(u[0] * (2 * most + 1)) - most)
        if self.background_snr is not None and u[1] < self.chance:
            if not backgrounds:
                raise ParameterError(
                    "WaveAugment with background_snr expected recordings of noise, got none."
                )
            noise = backgrounds[math.floor(u[2] * len(backgrounds))]
            begin = math.floor(u[3] * (len(noise) - len(wave) + 1))
            wave = mixed(wave, noise[begin : begin + len(wave)], _within(self.background_snr, u[4]))
        if self.white_snr is not None:
            wave = mixed(wave, draws.standard_normal(len(wave)), _within(self.white_snr, u[5]))
        return wave


class SpecAugment:
    """Masks over the frames of a clip: stretches of time, and bands of frequency.

    Each mask covers a whole number of frames (bands), drawn evenly from 0 to its largest width, at an even place. What is covered
    becomes the mean of its channel over the clip.

    Example:
        >>> import numpy as np
        >>> from spiketide.data import SpecAugment
        >>> from spiketide.data.augment_sound import draws_for
        >>> y = SpecAugment(time_masks=1, time_width=20, band_masks=0)(np.random.rand(101, 40), 40, draws_for(0, 0, 0))
        >>> y.shape, int((y.std(axis=1) == 0).sum()) <= 20
        ((101, 40), True)

    Args:
        time_masks: how many.
        time_width: most frames of one.
        band_masks: how many.
        band_width: most bands of one.

    Raises:
        ParameterError: a negative number.

    Reference:
        D. S. Park et al., "SpecAugment", Interspeech 2019, without its time warping; they cover with zero, the mean of their
        normalised frames.
    """

    def __init__(
        self, *, time_masks: int = 2, time_width: int = 20, band_masks: int = 2, band_width: int = 6
    ) -> None:
        for name, given in (
            ("time_masks", time_masks), ("time_width", time_width), ("band_masks", band_masks), ("band_width", band_width),
        ):  # fmt: skip
            if given < 0:
                raise ParameterError(f"SpecAugment expected {name} of 0 or more, got {given}.")
        self.time_masks, self.time_width = time_masks, time_width
        self.band_masks, self.band_width = band_masks, band_width

    def __call__(
        self, frames: NDArray[np.floating[Any]], bands: int, draws: np.random.RandomState
    ) -> NDArray[np.floating[Any]]:
        """The masked frames, a copy.

        Args:
            frames: ``(T, *N)``; ``N`` is bands, or channels after channels of bands.
            bands: bands of a channel.
            draws: where the random numbers come from.
        """
        y = frames.reshape(len(frames), -1, bands).copy()
        mean = y.mean(axis=(0, 2), dtype=np.float64).astype(y.dtype)[None, :, None]
        for begin, end in self._masks(self.time_masks, self.time_width, len(y), draws):
            y[begin:end] = mean
        for begin, end in self._masks(self.band_masks, self.band_width, bands, draws):
            y[:, :, begin:end] = mean
        return y.reshape(frames.shape)

    @staticmethod
    def _masks(count: int, width: int, size: int, draws: np.random.RandomState) -> list[tuple[int, int]]:
        masks = []
        for u, v in draws.random_sample((count, 2)):
            length = min(math.floor(u * (width + 1)), size)
            begin = math.floor(v * (size - length + 1))
            masks.append((begin, begin + length))
        return masks


class SpecWarp:
    """Frames stretched in time, moved in time, and stretched along their bands: other tempos, other vocal tracts.

    .. code-block:: text

        y[t, c, k] = x[middle + (t - middle - s) / f, c, k / g]     between frames and bands linear, outside zero

        f  even from the range ``time`` (above 1: slower)
        s  even from -shift to shift frames (not whole)
        g  even from the range ``bands`` (above 1: everything at a higher frequency, as from a shorter vocal tract)

    Each is drawn for a clip, all its channels alike.

    Example:
        >>> import numpy as np
        >>> from spiketide.data import SpecWarp
        >>> from spiketide.data.augment_sound import draws_for
        >>> x = np.zeros((5, 4))
        >>> x[2, 2] = 1.0
        >>> SpecWarp(time=(1.0, 1.0), bands=(1.5, 1.5), shift=0)(x, 4, draws_for(0, 0, 0))[2].round(2).tolist()
        [0.0, 0.0, 0.33, 1.0]

    Args:
        time: least and largest stretch of time.
        bands: least and largest stretch of the bands.
        shift: most frames to move by, to either side.

    Raises:
        ParameterError: factors that are not positive and in order, or a negative shift.

    Reference:
        N. Jaitly & G. E. Hinton 2013, "Vocal tract length perturbation" (there the warp of a mel axis is piecewise linear).
    """

    def __init__(self, *, time: Range = (0.85, 1.2), bands: Range = (0.88, 1.14), shift: float = 5.0) -> None:
        for name, given in (("time", time), ("bands", bands)):
            if not (len(given) == 2 and 0 < given[0] <= given[1] < math.inf):
                raise ParameterError(
                    f"SpecWarp expected {name} as two positive factors, the smaller first, for example (0.9, 1.1), got {given}."
                )
        if not (shift >= 0 and math.isfinite(shift)):
            raise ParameterError(f"SpecWarp expected a shift of 0 or more frames, got {shift}.")
        self.time, self.bands, self.shift = time, bands, float(shift)

    def __call__(
        self, frames: NDArray[np.floating[Any]], bands: int, draws: np.random.RandomState
    ) -> NDArray[np.floating[Any]]:
        """The warped frames.

        Args:
            frames: ``(T, *N)``; ``N`` is bands, or channels after channels of bands.
            bands: bands of a channel.
            draws: where the random numbers come from.
        """
        u, v, w = draws.random_sample(3)
        middle = (len(frames) - 1) / 2
        when = middle + (np.arange(len(frames)) - middle - self.shift * (2 * v - 1)) / _within(self.time, u)
        where = np.arange(bands) / _within(self.bands, w)
        x = frames.reshape(len(frames), -1)
        x = (_between(when, len(frames)).astype(x.dtype) @ x).reshape(len(frames), -1, bands)
        return (x @ _between(where, bands).T.astype(x.dtype)).reshape(frames.shape)


def _between(places: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """Linear interpolation as a matrix ``(n, size)``: at fractional places of ``size`` values, zero outside."""
    return np.maximum(0.0, 1.0 - np.abs(places[:, None] - np.arange(size)))


def moved(wave: NDArray[np.floating[Any]], by: int) -> NDArray[np.floating[Any]]:
    """The clip ``by`` samples later (earlier when negative), zeros where nothing came from.

    Example:
        >>> import numpy as np
        >>> from spiketide.data.augment_sound import moved
        >>> moved(np.array([1, 2, 3]), 1).tolist(), moved(np.array([1, 2, 3]), -5).tolist()
        ([0, 1, 2], [0, 0, 0])
    """
    result = np.zeros_like(wave)
    if abs(by) < len(wave):
        result[max(by, 0) : len(wave) + min(by, 0)] = wave[max(-by, 0) : len(wave) - max(by, 0)]
    return result


def mixed(
    wave: NDArray[np.floating[Any]], noise: NDArray[np.floating[Any]], snr: float
) -> NDArray[np.floating[Any]]:
    """The clip with noise of its length, ``snr`` decibels below it in mean power.

    Example:
        >>> import numpy as np
        >>> from spiketide.data.augment_sound import mixed
        >>> mixed(np.array([1.0, 1.0]), np.array([4.0, -4.0]), 20.0).tolist()
        [1.1, 0.9]
    """
    ours, theirs = (float(np.mean(np.square(x, dtype=np.float64))) for x in (wave, noise))
    if ours == 0 or theirs == 0:
        return wave
    gain = math.sqrt(ours / theirs / 10 ** (snr / 10))
    return (wave + gain * noise).astype(wave.dtype)


def _within(bounds: Range, u: float) -> float:
    return float(bounds[0] + (bounds[1] - bounds[0]) * u)
