"""Log-mel frames of sound as it comes: no frame knows what follows it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from scipy.signal import get_window, lfilter, savgol_coeffs

from ..errors import DataError, NonFiniteError, ParameterError, ShapeError, unknown
from .features import FrontEnd, _any_mel_filters, _librosa_version

_VERSION = 1
"""Goes into the cache key: raise it when the arithmetic below changes."""

LEAST_DEVIATION = 0.1
"""A running deviation counts as this share of its starting value at least: long silence is not blown up into noise."""


TINY = 1e-30
"""What is smaller counts as 0. In long digital silence the running mean decays for ever, and a network takes five times as long
on numbers at the end of float32."""


class FrameStream(ABC):
    """A front end that is fed samples, in pieces of any size, and gives the frames that they complete."""

    @abstractmethod
    def __call__(self, samples: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        """The frames ``(n, *N)`` that end in these samples, perhaps none."""


class CausalFrontEnd(FrontEnd):
    """A front end whose frame ``t`` is a function of the samples up to its end, and which can thus follow live sound.

    ``front(wave)`` and the pieces of ``front.stream()`` are the same frames.
    """

    sample_rate: int
    """Samples a second (Hz)."""
    hop: int
    """Samples from the end of a frame to the end of the next."""

    @abstractmethod
    def stream(self) -> FrameStream:
        """The beginning of a sound."""


class StreamingMel(CausalFrontEnd):
    r"""Log-mel energies with slope and curvature, computed from the past alone: what :class:`DeltaMel` is for whole clips.

    .. code-block:: text

        frame t ends with sample (t + 1) hop; silence (zeros) comes before the first sample
        S[t, k] = df / sum(window^2) * sum_f mel[k, f] |FFT(window * frame t)|^2        white noise of power p: S = p
        m[t, k] = log(1 + S[t, k] / floor)                                            silence: 0
        m'[t, k] = sum_i a[i] m[t - width + 1 + i, k]         a[i] = z / sum z^2,    z = i - (width - 1) / 2
        m''[t, k] = sum_i b[i] m[t - width + 1 + i, k]        b[i] = 2 q / sum q^2,  q = z^2 - (width^2 - 1) / 12

    ``m'`` is the slope of the line and ``m''`` the second derivative of the parabola fitted to the last ``width`` frames
    (one-sided Savitzky-Golay filters). Since a line has one slope and a parabola one curvature, they are those of a centred fit,
    ``(width - 1) / 2`` frames late. With ``normalise="running"``, means over all bands, of the past and the frame itself:

    .. code-block:: text

        mu[t] = f mu[t-1] + (1 - f) mean_k m[t, k]                                           f = exp(-hop_ms / memory_ms)
        v[t] = f v[t-1] + (1 - f) mean_k (m[t, k] - mean_k m[t, k])^2 + f (1 - f) (mean_k m[t, k] - mu[t-1])^2
        y[t] = ((m - mu) / sd, m' / sd', m'' / sd''),    sd = sqrt(v),    sd' and sd'' alike from the squares of m' and m''

    beginning at ``start``; a deviation below a tenth of its start counts as that.

    Example:
        >>> import numpy as np
        >>> from spiketide.data import StreamingMel
        >>> front = StreamingMel(sample_rate=8000, flatten=False)
        >>> front.shape, front.frames(8000)
        ((3, 40), 100)
        >>> wave = np.random.default_rng(0).normal(scale=0.1, size=8000)
        >>> live = front.stream()
        >>> pieces = [live(piece) for piece in np.split(wave, [30, 1000, 1001, 7777])]
        >>> bool((np.concatenate(pieces) == front(wave)).all())
        True

    Shapes:
        ``wave (n,)`` in [-1, 1] -> ``(n // hop, 3 n_mels)``, or ``(n // hop, 3, n_mels)``, float32.

    Args:
        n_mels: mel bands (Slaney's scale and area normalisation).
        sample_rate: samples a second (Hz).
        window_ms: Hann window, and length of the Fourier transform (ms): at least ``hop_ms``.
        hop_ms: from frame to frame (ms).
        f_min: lower edge of the lowest band (Hz).
        f_max: upper edge of the highest band (Hz), at most half the sample rate.
        width: frames in the fits of slope and curvature, 3 or more; their delay is half of it.
        floor: power below which the logarithm is flat: 1e-5 is white noise 50 dB below full scale.
        normalise: ``"running"`` as above: the loudness of the speaker and the gain of the microphone go; or ``"none"``:
            ``y = (m, m', m'')``.
        memory_ms: how far back the running means reach (ms).
        start: the mean of ``m`` and the deviations of ``m``, ``m'`` and ``m''`` before the first frame.
        flatten: one axis of ``3 n_mels`` (channel after channel) instead of two.

    Raises:
        ParameterError: sizes that make no sense, more bands than the window resolves, or an unknown name.
        DataError: librosa is not installed, or a sound shorter than a hop.
        NonFiniteError: NaN or infinity among the samples.
        ShapeError: sound that is not one axis of samples.

    Reference:
        Zimmer, Pellegrini, Singh & Masquelier 2019 have the three channels. Theirs divide by the maximum
        and by the deviation of the whole clip, and look half a fit ahead. ``start`` are the rounded values over training
        recordings of spoken digits.
    """

    def __init__(
        self,
        *,
        n_mels: int = 40,
        sample_rate: int = 16000,
        window_ms: float = 30.0,
        hop_ms: float = 10.0,
        f_min: float = 20.0,
        f_max: float = 4000.0,
        width: int = 5,
        floor: float = 1e-5,
        normalise: Literal["running", "none"] = "running",
        memory_ms: float = 1000.0,
        start: Sequence[float] = (2.0, 2.5, 0.4, 0.3),
        flatten: bool = True,
    ) -> None:
        if normalise not in ("running", "none"):
            raise ParameterError(unknown("normalise", normalise, ("running", "none")))
        if sample_rate < 1:
            raise ParameterError(f"StreamingMel expected a sample_rate above 0 (Hz), got {sample_rate!r}.")
        if n_mels < 1 or not 0 <= f_min < f_max <= sample_rate / 2:
            raise ParameterError(
                f"StreamingMel expected n_mels of 1 or more and 0 <= f_min < f_max <= {sample_rate / 2} Hz, got {n_mels}, "
                f"{f_min} and {f_max}."
            )
        for name, value in (
            ("window_ms", window_ms),
            ("hop_ms", hop_ms),
            ("floor", floor),
            ("memory_ms", memory_ms),
        ):
            if not (math.isfinite(value) and value > 0):
                raise ParameterError(f"StreamingMel expected {name} above 0, got {value!r}.")
        self.n_fft, self.hop = (round(ms * sample_rate / 1000) for ms in (window_ms, hop_ms))
        if self.hop < 1 or self.n_fft < max(2, self.hop):
            raise ParameterError(
                "StreamingMel expected a hop of 1 sample at least and a window of 2 that is no shorter, got "
                f"{window_ms} and {hop_ms} ms at {sample_rate} Hz."
            )
        if isinstance(width, bool) or not isinstance(width, int) or width < 3:
            raise ParameterError(f"StreamingMel expected a width of 3 frames or more, got {width!r}.")
        start = tuple(float(value) for value in start)
        if len(start) != 4 or not all(map(math.isfinite, start)) or min(start[1:]) <= 0:
            raise ParameterError(
                "StreamingMel expected start as a mean and three deviations above 0 (of energy, slope, curvature), got "
                f"{start}."
            )
        self.bands, self.sample_rate, self.hop_ms, self.window_ms = n_mels, sample_rate, hop_ms, window_ms
        self.f_min, self.f_max, self.width, self.floor = f_min, f_max, width, floor
        self.normalise, self.memory_ms, self.start, self.flatten = normalise, memory_ms, start, flatten

    @property
    def shape(self) -> tuple[int, ...]:
        """``(3 n_mels,)`` or ``(3, n_mels)``."""
        return (3 * self.bands,) if self.flatten else (3, self.bands)

    def frames(self, samples: int) -> int:
        """One for each whole hop."""
        return samples // self.hop

    def __call__(self, wave: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        """The frames of one clip."""
        found = self.stream()(wave)
        if not len(found):
            raise DataError(
                f"StreamingMel expected {self.hop} samples ({self.hop_ms:g} ms) at least, got {np.size(wave)}: the sound is too "
                "short."
            )
        return found

    def stream(self) -> MelStream:
        """The beginning of a sound: feed it samples, get frames."""
        return MelStream(self)

    def key(self) -> dict[str, Any]:
        """All but the arrangement of the axes."""
        return {
            "feature": "streaming-mel",
            "version": _VERSION,
            "librosa": _librosa_version(),
            "n_mels": self.bands,
            "sample_rate": self.sample_rate,
            "window": self.n_fft,
            "hop": self.hop,
            "f_min": self.f_min,
            "f_max": self.f_max,
            "width": self.width,
            "floor": self.floor,
            "normalise": self.normalise,
            "memory_ms": self.memory_ms,
            "start": list(self.start),
        }


class MelStream(FrameStream):
    """:class:`StreamingMel` on sound that comes in pieces: what it keeps is a window of samples, a fit of frames, four numbers.

    Every frame is computed by the same operations in the same order, whatever comes with it: the frames are the same to the bit.
    """

    def __init__(self, front: StreamingMel) -> None:
        self.front = front
        self._filters = _filters(front.sample_rate, front.n_fft, front.bands, front.f_min, front.f_max)
        self._window = get_window("hann", front.n_fft)
        width = front.width
        self._fits = [savgol_coeffs(width, order, deriv=order, use="dot") for order in (1, 2)]
        self._samples = np.zeros(front.n_fft - front.hop)
        self._past = np.zeros((width - 1, front.bands))
        mean, *deviations = front.start
        self._mean, self._squares = mean, np.square(deviations)
        self._least = LEAST_DEVIATION * np.array(deviations)
        self._forget = math.exp(-front.hop_ms / front.memory_ms)

    def __call__(self, samples: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        """The frames ``(n, *N)`` that end in these samples."""
        front = self.front
        samples = np.asarray(samples)
        if samples.ndim != 1:
            raise ShapeError(
                f"StreamingMel expected one channel of samples (n,), got {samples.shape}: take one channel, wave[:, 0]."
            )
        if not np.isfinite(samples).all():
            raise NonFiniteError("StreamingMel expected finite samples, got NaN or infinity.")
        joined = np.concatenate([self._samples, samples.astype(np.float64)])
        count = max(0, (len(joined) - front.n_fft) // front.hop + 1)
        if not count:
            self._samples = joined
            return np.zeros((0, *front.shape), np.float32)
        pieces = sliding_window_view(joined, front.n_fft)[:: front.hop]
        mel = self._log_mel(pieces)
        self._samples = joined[count * front.hop :].copy()
        y = self._channels(mel)
        if front.normalise == "running":
            y = self._normalised(y)
            y[np.abs(y) < TINY] = 0.0
        return np.ascontiguousarray(y.reshape(count, *front.shape), dtype=np.float32)

    def _log_mel(self, pieces: NDArray[np.float64]) -> NDArray[np.float64]:
        spectrum = np.fft.rfft(pieces * self._window, axis=1)
        power = spectrum.real**2 + spectrum.imag**2
        # one product a frame: a product of many rows at once would round otherwise
        energy = np.matmul(power[:, None, :], self._filters)[:, 0]
        return np.log1p(energy / self.front.floor)

    def _channels(self, mel: NDArray[np.float64]) -> NDArray[np.float64]:
        joined, width = np.concatenate([self._past, mel]), self.front.width
        self._past = joined[len(mel) :].copy()
        channels = [mel]
        for fit in self._fits:
            total = np.zeros_like(mel)
            for i in range(width):  # tap by tap: the same sums in every piece
                total += fit[i] * joined[i : i + len(mel)]
            channels.append(total)
        return np.stack(channels, axis=1)

    def _normalised(self, y: NDArray[np.float64]) -> NDArray[np.float64]:
        f = self._forget
        means = y[:, 0].mean(axis=1)
        mean = _forgetting(means, self._mean, f)
        before = np.concatenate([[self._mean], mean[:-1]])
        new = np.square(y).mean(axis=2)
        new[:, 0] = np.square(y[:, 0] - means[:, None]).mean(axis=1) + f * np.square(means - before)
        squares = np.stack([_forgetting(new[:, c], self._squares[c], f) for c in range(3)], axis=1)
        self._mean, self._squares = float(mean[-1]), squares[-1].copy()
        y = y.copy()
        y[:, 0] -= mean[:, None]
        return np.asarray(y / np.maximum(np.sqrt(squares), self._least)[:, :, None])


def _forgetting(x: NDArray[np.float64], start: float, f: float) -> NDArray[np.float64]:
    """``y[t] = f y[t-1] + (1 - f) x[t]`` from ``y[-1] = start``."""
    y, _ = lfilter([1.0 - f], [1.0, -f], x, zi=[f * start])
    return np.asarray(y)


@lru_cache(maxsize=8)
def _filters(sample_rate: int, n_fft: int, n_mels: int, f_min: float, f_max: float) -> NDArray[np.float64]:
    """Mel filters ``(n_fft / 2 + 1, n_mels)``, scaled so that white noise gives its power."""
    filters = _any_mel_filters(sample_rate, n_fft, n_mels, f_min, f_max, False, True)
    empty = int((filters.max(axis=1) <= 0).sum())
    if empty:
        raise ParameterError(
            f"StreamingMel expected a window long enough for {n_mels} bands; with {n_fft} samples at {sample_rate} Hz, {empty} "
            "bands hold no frequency at all. Lower n_mels or raise window_ms."
        )
    scale = sample_rate / n_fft / np.square(get_window("hann", n_fft)).sum()
    return np.ascontiguousarray(filters.T.astype(np.float64) * scale)
