"""Log-mel frames of sound, their differences in time, and a cache on disk for what is costly to compute."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import tempfile
import warnings
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from ..errors import DataError, ParameterError, unknown
from .download import user_cache

logger = logging.getLogger("spiketide.data")

_VERSION = 1
"""Goes into the cache key: raise it when the arithmetic below changes."""


@dataclass(frozen=True, kw_only=True)
class LogMel:
    """Frames of log-mel energies of one recording, normalised by that recording alone.

    .. code-block:: text

        m[t, k] = log(sum_f mel[k, f] |STFT(wave)[t, f]|^2 + floor)
        y[t, k] = (m[t, k] - mean(m)) / sd(m)          mean and sd over all t and k of this recording

    One mean and one standard deviation for the whole recording: the loudness of the speaker and the gain of
    the microphone go, the shape of the spectrum stays. Nothing is learnt from other recordings, so no split
    can leak through it. Frames are centred (frame ``t`` around ``t hop_ms``) and the ends are padded with
    zeros, as librosa does by default; a recording of ``n`` samples gives ``1 + n // hop`` frames.

    Example:
        >>> import numpy as np
        >>> from spiketide.data import LogMel
        >>> LogMel().frames(8000)
        101
        >>> LogMel().window, LogMel().hop, LogMel().n_fft
        (200, 80, 256)

    Shapes:
        ``wave (n,)`` float -> ``(1 + n // hop, n_mels)`` float32.

    Args:
        sample_rate: samples a second (Hz).
        n_mels: mel bands between 0 Hz and half the sample rate.
        window_ms: length of the Hann window (ms).
        hop_ms: from one frame to the next (ms): the ``dt`` of the network that listens.
        floor: added to the energy before the logarithm (waves are in [-1, 1]).
        normalise: ``"recording"`` as above, or ``"none"``: ``y = m``.

    Raises:
        ParameterError: a size that is not positive, an unknown normalisation, or more bands than the window
            resolves.
        DataError: librosa is not installed.

    Reference:
        S. B. Davis, P. Mermelstein, IEEE Trans. ASSP 28(4), 1980 (mel filters); Slaney's mel scale and area
        normalisation as in librosa. Differs from the usual cepstral mean and variance normalisation, which
        takes one mean and deviation for each band: on spoken digits that removes what tells the digits apart
        (a closed-form linear classifier on these frames falls from 94 % to 79 %).
    """

    sample_rate: int = 8000
    n_mels: int = 40
    window_ms: float = 25.0
    hop_ms: float = 10.0
    floor: float = 1e-8
    normalise: Literal["recording", "none"] = "recording"

    def __post_init__(self) -> None:
        for name in ("sample_rate", "n_mels", "window_ms", "hop_ms", "floor"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ParameterError(f"LogMel expected {name} > 0, got {value!r}.")
        if self.normalise not in ("recording", "none"):
            raise ParameterError(unknown("normalise", self.normalise, ("recording", "none")))
        if self.hop < 1 or self.window < 2:
            raise ParameterError(
                f"LogMel expected a window of 2 samples and a hop of 1 at least, got {self.window} and "
                f"{self.hop} (window_ms={self.window_ms}, hop_ms={self.hop_ms} at {self.sample_rate} Hz)."
            )

    @property
    def window(self) -> int:
        """Samples in the window."""
        return round(self.window_ms * self.sample_rate / 1000)

    @property
    def hop(self) -> int:
        """Samples from one frame to the next."""
        return round(self.hop_ms * self.sample_rate / 1000)

    @property
    def n_fft(self) -> int:
        """Samples of the Fourier transform: the power of two that holds the window."""
        return 1 << (self.window - 1).bit_length()

    def frames(self, samples: int) -> int:
        """Frames that a recording of so many samples gives."""
        return 1 + samples // self.hop

    def __call__(self, wave: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        """The frames of one recording."""
        filters = _mel_filters(self.sample_rate, self.n_fft, self.n_mels)
        window = _window(self.window, self.n_fft)
        pieces = sliding_window_view(np.pad(wave, self.n_fft // 2), self.n_fft)[:: self.hop]
        # librosa's stft gives the same numbers but costs a millisecond a call, most of it checks.
        energy = np.abs(np.fft.rfft(pieces * window, axis=1)) ** 2
        mel = np.log(energy @ filters.T + self.floor)
        if self.normalise == "recording":
            # In float64, and with a floor: a silent recording (sd 0) becomes zeros, not NaN and not noise.
            mel = (mel - mel.mean(dtype=np.float64)) / max(float(mel.std(dtype=np.float64)), 1e-6)
        return np.ascontiguousarray(mel, dtype=np.float32)

    def key(self) -> dict[str, Any]:
        """What the frames depend on besides the sound: for the key of a cache."""
        from importlib.metadata import PackageNotFoundError, version

        try:
            return {"feature": "log-mel", "version": _VERSION, "librosa": version("librosa"), **asdict(self)}
        except PackageNotFoundError as problem:
            raise _no_librosa() from problem


@lru_cache(maxsize=8)
def _window(samples: int, n_fft: int) -> NDArray[np.float32]:
    """A periodic Hann window in the middle of the transform."""
    from scipy.signal import get_window

    before = (n_fft - samples) // 2
    return np.pad(get_window("hann", samples), (before, n_fft - samples - before)).astype(np.float32)


@lru_cache(maxsize=8)
def _mel_filters(sample_rate: int, n_fft: int, n_mels: int) -> NDArray[np.float32]:
    filters = _any_mel_filters(sample_rate, n_fft, n_mels, 0.0, sample_rate / 2, False, True)
    empty = int((filters.max(axis=1) <= 0).sum())
    if empty:
        raise ParameterError(
            f"LogMel expected a window long enough for {n_mels} bands; with a transform of {n_fft} samples "
            f"at {sample_rate} Hz, {empty} bands hold no frequency at all. Lower n_mels or raise window_ms."
        )
    return filters


@lru_cache(maxsize=8)
def _any_mel_filters(
    sample_rate: int, n_fft: int, n_mels: int, f_min: float, f_max: float, htk: bool, area: bool
) -> NDArray[np.float32]:
    """Mel filters; a band may hold no frequency."""
    try:
        import librosa.filters
    except ImportError as problem:
        raise _no_librosa() from problem
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # librosa warns of empty bands
        filters = librosa.filters.mel(
            sr=sample_rate,
            n_fft=n_fft,
            n_mels=n_mels,
            fmin=f_min,
            fmax=f_max,
            htk=htk,
            norm="slaney" if area else None,
        )
    return np.asarray(filters, dtype=np.float32)


def _no_librosa() -> DataError:
    return DataError(
        "Log-mel frames are computed with librosa, which is not installed: pip install 'spiketide[audio]'"
    )


class FrontEnd(ABC):
    """From one clip of sound to frames, for data sets that let the front end be chosen."""

    hop_ms: float
    """From frame to frame (ms)."""
    bands: int
    """Frequency bands: the last axis, or what the last axis is a multiple of."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """``*N``: the shape of a frame."""

    @abstractmethod
    def frames(self, samples: int) -> int:
        """Frames that so many samples give."""

    @abstractmethod
    def __call__(self, wave: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        """The frames ``(T, *N)`` of one clip in [-1, 1]."""

    @abstractmethod
    def key(self) -> dict[str, Any]:
        """What the numbers depend on besides the sound (not their arrangement in axes): for the key of a cache."""

    def of_batch(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """What is done to a batch ``(B, T, *N)``: nothing, unless a paper asks for it."""
        return x


def deltas(frames: NDArray[np.floating[Any]], *, order: int = 1, width: int = 9) -> NDArray[np.floating[Any]]:
    """The derivative in time of each column, by a polynomial of degree ``order`` fitted to ``width`` frames around each frame.

    A Savitzky-Golay filter; the first and last frames take the derivatives of the first and last fit, as
    ``librosa.feature.delta`` does by default.

    Example:
        >>> import numpy as np
        >>> from spiketide.data.features import deltas
        >>> line = 3.0 * np.arange(10.0)[:, None]
        >>> deltas(line).ravel().round(6).tolist() == [3.0] * 10
        True

    Shapes:
        ``(T, *N)`` -> the same, ``T >= width``.

    Args:
        frames: what changes in time.
        order: 1: slope; 2: curvature (the second derivative of a parabola).
        width: frames in a fit, odd.

    Raises:
        ParameterError: an order below 1, or a width that is even or not above the order.
        DataError: fewer frames than ``width``.
    """
    from scipy.signal import savgol_filter

    if order < 1 or width <= order or width % 2 == 0:
        raise ParameterError(
            f"deltas expected an order of 1 or more and an odd width above it, got {order} and {width}."
        )
    if len(frames) < width:
        raise DataError(
            f"deltas expected {width} frames at least, got {len(frames)}: the sound is too short."
        )
    return np.asarray(savgol_filter(frames, width, order, deriv=order, axis=0, mode="interp"))


class DeltaMel(FrontEnd):
    """Log-mel energies with their first and second derivative in time: three channels of bands.

    .. code-block:: text

        w       = wave / max|wave|
        S[t, k] = sum_f mel[k, f] |STFT(w)[t, f]|^2
        m[t, k] = log(1 + S[t, k] / max S)
        y[t]    = (m[t], slope of m, curvature of m)                    see deltas, 9 frames
        y[t, c, k] / sd over t of y[t, c, k]                            rescale="sample"; an sd of 0 counts as 1

    Example:
        >>> import numpy as np
        >>> from spiketide.data import DeltaMel
        >>> DeltaMel().shape, DeltaMel(flatten=False).shape, DeltaMel().frames(16000)
        ((120,), (3, 40), 101)
        >>> bool(DeltaMel()(np.zeros(16000)).any())                           # silence is zeros
        False

    Shapes:
        ``wave (n,)`` -> ``(1 + n // hop, 3 n_mels)``, or ``(1 + n // hop, 3, n_mels)``, float32.

    Args:
        n_mels: mel bands (Slaney's scale and area normalisation).
        sample_rate: samples a second (Hz).
        window_ms: Hann window, and length of the Fourier transform (ms).
        hop_ms: from frame to frame (ms); frames are centred.
        f_min: lower edge of the lowest band (Hz).
        f_max: upper edge of the highest band (Hz), at most half the sample rate.
        rescale: ``"sample"`` as above (no mean is taken off); ``"none"``; ``"batch"``: as ``"sample"``, and then every batch, of
            evaluation too, is divided by its standard deviation over samples and time: as published, and only for that, since a
            sample's score then depends on its batch.
        flatten: one axis of ``3 n_mels`` (channel after channel) instead of two.
        padding: what is beyond the ends for the first and last frames: ``"reflect"`` or ``"constant"`` (zeros).

    Raises:
        ParameterError: sizes that make no sense, or an unknown name.
        DataError: librosa is not installed, or a clip of fewer than 9 frames.

    Reference:
        Zimmer, Pellegrini, Singh & Masquelier 2019, used too by Yin et al. 2021. ``padding``: their librosa
        (before 0.9) reflects by default, today's pads with zeros. Computed in double precision here: theirs is single, and in
        bands where almost nothing happens what they rescale to a deviation of 1 is rounding.
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
        rescale: Literal["sample", "none", "batch"] = "sample",
        flatten: bool = True,
        padding: Literal["reflect", "constant"] = "reflect",
    ) -> None:
        for what, given, known in (
            ("rescale", rescale, ("sample", "none", "batch")),
            ("padding", padding, ("reflect", "constant")),
        ):
            if given not in known:
                raise ParameterError(unknown(what, given, known))
        if n_mels < 1 or not 0 <= f_min < f_max <= sample_rate / 2:
            raise ParameterError(
                f"DeltaMel expected n_mels of 1 or more and 0 <= f_min < f_max <= {sample_rate / 2} Hz, got {n_mels}, {f_min} "
                f"and {f_max}."
            )
        self.n_fft, self.hop = (round(ms * sample_rate / 1000) for ms in (window_ms, hop_ms))
        if self.n_fft < 2 or self.hop < 1:
            raise ParameterError(
                f"DeltaMel expected a window of 2 samples and a hop of 1 at least, got {window_ms} and {hop_ms} ms."
            )
        self.bands, self.sample_rate, self.hop_ms = n_mels, sample_rate, hop_ms
        self.f_min, self.f_max = f_min, f_max
        self.rescale, self.flatten, self.padding = rescale, flatten, padding

    @property
    def shape(self) -> tuple[int, ...]:
        """``(3 n_mels,)`` or ``(3, n_mels)``."""
        return (3 * self.bands,) if self.flatten else (3, self.bands)

    def frames(self, samples: int) -> int:
        """One in each hop, and one more."""
        return 1 + samples // self.hop

    def __call__(self, wave: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        """The frames of one clip."""
        wave = np.asarray(wave, dtype=np.float64)
        filters = _any_mel_filters(
            self.sample_rate, self.n_fft, self.bands, self.f_min, self.f_max, False, True
        )
        energy = _power(_over_peak(wave), self.n_fft, self.n_fft, self.hop, self.padding)
        mel = np.log1p(_over_peak(energy @ filters.T))
        y = np.stack([mel, deltas(mel), deltas(mel, order=2)], axis=1)
        if self.rescale != "none":
            y = y / _never_zero(y.std(axis=0))
        return np.ascontiguousarray(y.reshape(len(y), *self.shape), dtype=np.float32)

    def of_batch(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Divided by the deviation over samples and time, with ``rescale="batch"``."""
        if self.rescale != "batch":
            return x
        return (x / _never_zero(x.std(axis=(0, 1), dtype=np.float64))).astype(np.float32)

    def key(self) -> dict[str, Any]:
        """All but the arrangement of the axes and what is done to batches."""
        return {
            "feature": "delta-mel",
            "version": _VERSION,
            "librosa": _librosa_version(),
            "n_mels": self.bands,
            "sample_rate": self.sample_rate,
            "window": self.n_fft,
            "hop": self.hop,
            "f_min": self.f_min,
            "f_max": self.f_max,
            "rescale": "none" if self.rescale == "none" else "sample",
            "padding": self.padding,
        }


class DecibelMel(FrontEnd):
    """Mel energies in decibels of a clip at 8 kHz, many narrow bands.

    .. code-block:: text

        S[t, k] = sum_f mel[k, f] |STFT(wave at 8 kHz)[t, f]|^2        HTK scale, triangles of height 1
        y[t, k] = 10 log10(max(S[t, k], 1e-10)) + 100                   from 0: silence is 0

    The highest band of the published front end ends at 14 kHz, above half the sample rate: 53 of its 140 bands hold no frequency
    and say -100 dB for ever. By default the bands end at 4 kHz here, and the window of 256 samples is transformed with zeros
    around it to 1024 points, so that even the narrowest band holds a frequency; and the scale begins at 0, so that what a layer
    sees before and behind a clip (zeros) is silence, not full loudness.

    Example:
        >>> import numpy as np
        >>> from spiketide.data import DecibelMel
        >>> DecibelMel().shape, DecibelMel().frames(16000)
        ((140,), 101)
        >>> float(np.abs(DecibelMel()(np.zeros(16000))).max()), float(DecibelMel(published=True)(np.zeros(16000))[0, 0])
        (0.0, -100.0)

    Shapes:
        ``wave (n,)`` at 16 kHz -> ``(1 + ceil(n / 2) // 80, n_mels)`` float32.

    Args:
        n_mels: mel bands.
        published: the bands up to 14 kHz, dead ones included, a transform of 256 points, and decibels without the 100.

    Raises:
        ParameterError: no bands.
        DataError: librosa is not installed.

    Reference:
        Hammouamri et al. 2023. They resample with torchaudio's windowed sinc; here it is SciPy's polyphase
        filter, which has another transition band just below 4 kHz.
    """

    rate = 8000
    window = 256
    hop = 80
    hop_ms = 10.0
    f_min = 50.0

    def __init__(self, *, n_mels: int = 140, published: bool = False) -> None:
        if n_mels < 1:
            raise ParameterError(f"DecibelMel expected n_mels of 1 or more, got {n_mels}.")
        self.bands, self.published = n_mels, published
        self.n_fft, self.f_max = (self.window, 14000.0) if published else (4 * self.window, self.rate / 2)

    @property
    def shape(self) -> tuple[int, ...]:
        """``(n_mels,)``."""
        return (self.bands,)

    @property
    def filters(self) -> NDArray[np.float32]:
        """``(n_mels, n_fft / 2 + 1)``; a row of zeros is a dead band."""
        return _any_mel_filters(self.rate, self.n_fft, self.bands, self.f_min, self.f_max, True, False)

    def frames(self, samples: int) -> int:
        """One in each hop, and one more."""
        return 1 + -(-samples // 2) // self.hop

    def __call__(self, wave: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        """The frames of one clip."""
        from ..encoders import resample

        sound = resample(wave, 2 * self.rate, self.rate).astype(np.float64)
        energy = _power(sound, self.window, self.n_fft, self.hop, "reflect")
        decibels = 10.0 * np.log10(np.maximum(energy @ self.filters.T, 1e-10))
        return np.ascontiguousarray(decibels if self.published else decibels + 100.0, dtype=np.float32)

    def key(self) -> dict[str, Any]:
        """The choice of bands."""
        return {
            "feature": "decibel-mel",
            "version": _VERSION,
            "librosa": _librosa_version(),
            "n_mels": self.bands,
            "published": self.published,
        }


def _power(
    wave: NDArray[np.floating[Any]], window: int, n_fft: int, hop: int, padding: str
) -> NDArray[np.floating[Any]]:
    """|STFT|^2 ``(T, n_fft / 2 + 1)``, Hann window in the middle of the transform, centred frames."""
    pieces = sliding_window_view(np.pad(wave, n_fft // 2, mode=padding), n_fft)[::hop]  # type: ignore[call-overload]
    return np.square(np.abs(np.fft.rfft(pieces * _window(window, n_fft), axis=1)))


def _over_peak(x: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    peak = np.abs(x).max()
    return x / peak if peak > 0 else x


def _never_zero(scale: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    return np.where(scale > 0, scale, 1.0)


def _librosa_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("librosa")
    except PackageNotFoundError as problem:
        raise _no_librosa() from problem


def fingerprint(parameters: dict[str, Any], contents: Sequence[bytes]) -> str:
    """A key for :func:`cached`: SHA256 over the parameters and the contents of all files, in order."""
    digest = hashlib.sha256(json.dumps(parameters, sort_keys=True).encode())
    for content in contents:
        digest.update(len(content).to_bytes(8, "little"))
        digest.update(content)
    return digest.hexdigest()


def cached(
    name: str, key: str, count: int, compute: Callable[[], list[NDArray[np.float32]]]
) -> list[NDArray[np.float32]]:
    """Sequences ``(T_i, F)`` from the cache on disk, else computed and stored there.

    The cache lies in the user's cache folder, never beside the data. A file is written under another name and
    moved when it is whole, so an interruption leaves no half file; one that cannot be read all the same is
    computed again. Where the folder cannot be written the result is the same, only slower, and a warning is
    logged.

    Args:
        name: the data set, for the file's name.
        key: whatever the sequences depend on, as :func:`fingerprint` gives it.
        count: how many sequences there are.
        compute: makes them.
    """
    path = user_cache() / "features" / f"{name}-{key[:32]}.npz"
    if path.is_file():
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as store:
                values, lengths = store["values"], store["lengths"]
            if len(lengths) == count and lengths.sum() == len(values):
                return np.split(values, np.cumsum(lengths)[:-1])
            problem: object = "it holds other sequences"
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            problem = error
        logger.warning("%s cannot be read (%s): computing the features again.", path, problem)
    sequences = compute()
    try:
        _store(path, sequences)
    except OSError as error:
        logger.warning(
            "%s cannot be written (%s): the features will be computed again next time.", path, error
        )
    return sequences


def stored(
    name: str,
    key: str,
    shape: tuple[int, ...],
    compute: Callable[[int], Iterable[NDArray[np.float32]]],
) -> NDArray[np.float32]:
    """An array from the cache on disk, computed block by block where it is not there; it may be larger than memory.

    The array is mapped, not read. Finished blocks stay when the computation is interrupted, and the next call goes on behind
    them; the file gets its name in one move, when it is whole. Two processes do not compute the same array: the second
    waits. Where the folder cannot be written the array is made in memory, and a warning is logged.

    Args:
        name: the data set, for the file's name.
        key: whatever the array depends on, as :func:`fingerprint` gives it.
        shape: of the whole array.
        compute: gives the blocks ``(k, *shape[1:])`` from a row on, in order.
    """
    from filelock import FileLock

    if 0 in shape:
        return np.zeros(shape, dtype=np.float32)
    path = user_cache() / "features" / f"{name}-{key[:32]}.npy"
    try:
        if (array := _mapped(path, shape)) is not None:
            return array
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f".{path.stem}.lock")):
            if (array := _mapped(path, shape, quiet=True)) is None:  # else another process was faster
                _fill(path, shape, compute)
                array = _mapped(path, shape)
        if array is not None:
            return array
    except OSError as error:
        logger.warning(
            "%s cannot be written (%s): the features will be computed again next time.", path, error
        )
    return np.concatenate(list(compute(0)))


def _mapped(path: Path, shape: tuple[int, ...], quiet: bool = False) -> NDArray[np.float32] | None:
    """The array of a file, its pages private to this process; none when it is not there or not whole."""
    if not path.is_file():
        return None
    try:
        array = np.load(path, mmap_mode="c", allow_pickle=False)
        if array.shape == shape and array.dtype == np.float32:
            return array
        problem: object = f"it holds {array.dtype} {array.shape}"
    except (ValueError, EOFError) as error:
        problem = error
    if not quiet:
        logger.warning("%s cannot be read (%s): computing the features again.", path, problem)
    return None


def _fill(
    path: Path, shape: tuple[int, ...], compute: Callable[[int], Iterable[NDArray[np.float32]]]
) -> None:
    partial, mark = path.with_name(f".{path.stem}.part"), path.with_name(f".{path.stem}.rows")
    done = 0
    array = _mapped(partial, shape, quiet=True)
    if array is not None and mark.is_file():
        words = mark.read_text().split()
        done = int(words[0]) if len(words) == 1 and words[0].isdecimal() else 0
    if not 0 < done <= shape[0]:
        done = 0
        np.lib.format.open_memmap(partial, mode="w+", dtype=np.float32, shape=shape)
    rows = np.lib.format.open_memmap(partial, mode="r+")
    for block in compute(done) if done < shape[0] else ():
        rows[done : done + len(block)] = block
        done += len(block)
        rows.flush()  # the rows are on disk before the mark says so
        fresh = mark.with_name(f"{mark.name}.new")
        fresh.write_text(str(done))
        os.replace(fresh, mark)
    del rows
    if done != shape[0]:
        raise DataError(f"expected {shape[0]} rows of features, {done} were computed.")
    os.replace(partial, path)
    mark.unlink(missing_ok=True)


def _store(path: Path, sequences: list[NDArray[np.float32]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as out:
            np.savez(out, values=np.concatenate(sequences), lengths=np.array([len(s) for s in sequences]))
            out.flush()
            os.fsync(out.fileno())
        os.replace(partial, path)
    except BaseException:  # Ctrl-C too: leave no half file
        Path(partial).unlink(missing_ok=True)
        raise
