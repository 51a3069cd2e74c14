"""TIMIT: read speech with the phone of every frame."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch import Tensor

from ..errors import DataError, ParameterError, unknown
from ..types import UNLABELLED
from .base import DataModule, Samples
from .features import _mel_filters, cached, fingerprint

RATE = 16000
"""Samples a second of every recording."""

_WORDS = (
    "aa ae ah ao aw ax ax-h axr ay b bcl ch d dcl dh dx eh el em en eng epi er ey f g gcl h# hh hv ih ix iy jh k kcl l m n ng nx "
    "ow oy p pau pcl q r s sh t tcl th uh uw ux v w y z zh"
)
PHONES = tuple(_WORDS.split())
"""The 61 labels of the corpus, in alphabetical order."""

_CORE = (
    "MDAB0 MWBT0 FELC0 MTAS1 MWEW0 FPAS0 MJMP0 MLNT0 FPKT0 MLLL0 MTLS0 FJLM0 "
    "MBPM0 MKLT0 FNLP0 MCMJ0 MJDH0 FMGD0 MGRT0 MNJM0 FDHC0 MJLN0 MPAM0 FMLD0"
)

_MANY = 1000
"""Pieces that an utterance may have: the numbers of samples leave room for them."""


@dataclass(frozen=True, kw_only=True)
class Cepstra:
    """Frames of 12 mel cepstra and the log energy, with their first and second differences in time: 39 numbers.

    .. code-block:: text

        e[t]    = log(sum of squares in the window + floor)
        c[t, i] = i-th cosine coefficient (type II, orthonormal) of log(mel energies + floor),  i = 1 .. 12
        d[t]    = slope of the straight line through z[t-2] .. z[t+2],  ends repeated;   z = (c, e);  second: the same of d

    Windows are not centred: frame ``t`` is samples ``t hop`` to ``t hop + window``, and there are only whole ones.

    Example:
        >>> from spiketide.data.timit import Cepstra
        >>> Cepstra().window, Cepstra().hop, Cepstra().frames(16000)
        (400, 160, 98)

    Args:
        n_mels: mel bands.
        window_ms: length of the Hamming window (ms).
        hop_ms: from frame to frame (ms).
        preemphasis: ``x[n] - preemphasis x[n-1]`` before all else; 0: none.
        floor: added to energies before the logarithm (waves are in [-1, 1]).

    Raises:
        ParameterError: a size that is not positive, or fewer than 13 bands.
        DataError: librosa is not installed.

    Reference:
        S. B. Davis, P. Mermelstein, IEEE Trans. ASSP 28(4), 1980. Sizes as in Yin et al. 2021; what they
        leave open (window, pre-emphasis, floor, mel scale, width of the differences) is our choice of the usual.
    """

    n_mels: int = 26
    window_ms: float = 25.0
    hop_ms: float = 10.0
    preemphasis: float = 0.97
    floor: float = 1e-10

    def __post_init__(self) -> None:
        for name in ("window_ms", "hop_ms", "floor"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ParameterError(f"Cepstra expected {name} > 0, got {value!r}.")
        if self.n_mels < 13 or self.window < 2 or self.hop < 1 or not 0 <= self.preemphasis < 1:
            raise ParameterError(
                "Cepstra expected n_mels of 13 or more, a window of 2 samples, a hop of 1 and preemphasis in [0, 1), got "
                f"{self.n_mels}, {self.window}, {self.hop} and {self.preemphasis}."
            )

    @property
    def window(self) -> int:
        """Samples in a window."""
        return round(self.window_ms * RATE / 1000)

    @property
    def hop(self) -> int:
        """Samples from frame to frame."""
        return round(self.hop_ms * RATE / 1000)

    def frames(self, samples: int) -> int:
        """Whole windows in so many samples."""
        return max(0, 1 + (samples - self.window) // self.hop)

    def __call__(self, wave: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        """The frames ``(T, 39)`` of one recording."""
        from scipy.fft import dct
        from scipy.signal import savgol_filter

        x = np.asarray(wave, dtype=np.float64)
        x = np.concatenate([x[:1], x[1:] - self.preemphasis * x[:-1]])
        pieces = sliding_window_view(x, self.window)[:: self.hop]
        power = np.abs(np.fft.rfft(pieces * np.hamming(self.window), axis=1)) ** 2
        mel = np.log(power @ _mel_filters(RATE, self.window, self.n_mels).T + self.floor)
        cepstra = dct(mel, type=2, norm="ortho", axis=1)[:, 1:13]
        energy = np.log(np.square(pieces).sum(1, keepdims=True) + self.floor)
        first = np.concatenate([cepstra, energy], axis=1)
        slope = savgol_filter(first, 5, 1, deriv=1, axis=0, mode="nearest")
        bend = savgol_filter(slope, 5, 1, deriv=1, axis=0, mode="nearest")
        return np.concatenate([first, slope, bend], axis=1).astype(np.float32)

    def key(self) -> dict[str, Any]:
        """What the frames depend on besides the sound: for the key of a cache."""
        from importlib.metadata import PackageNotFoundError, version

        try:
            return {"feature": "cepstra", "version": 1, "librosa": version("librosa"), **asdict(self)}
        except PackageNotFoundError as problem:
            raise DataError(
                "TIMIT needs librosa, which is not installed: pip install 'spiketide[audio]'"
            ) from problem


class Utterance(NamedTuple):
    """One recording of the corpus."""

    speaker: str
    sentence: str
    wave: Path
    phones: Path


class TIMIT(DataModule):
    """English sentences read by 630 speakers, labelled with 61 phones frame by frame.

    The corpus of the Linguistic Data Consortium (LDC93S1), which has no free download, put there by hand in its own layout, upper
    or lower case, SPHERE or RIFF files (``SA1.WAV`` or ``SA1.WAV.wav``)::

        timit/TRAIN/DR1/FCJF0/SI648.WAV  SI648.PHN  ...          timit/TEST/DR1/FAKS0/...

    Every frame has the phone in which its middle lies; -1 where no phone is given. Utterances are cut into pieces of
    ``chunk`` frames, the last one shorter. The two sentences that all speakers read (``SA1``, ``SA2``) are left out, as is
    usual.

    Test: the 24 speakers of the core test set, or all 168 of the folder ``TEST``. Validation: whole speakers of ``TRAIN``, drawn
    by ``seed`` until they have ``validation_fraction`` of the pieces. No speaker is in two parts.

    Example:
        >>> from spiketide.data import TIMIT
        >>> data = TIMIT()
        >>> data.sample_shape, data.num_classes, data.dt
        ((39,), 61, 10.0)

    Shapes:
        Batches ``x (T, B, 39)`` float32, zero-padded; ``y (T, B)``, -1 past the end; ``lengths (B,)``.

    Args:
        test: ``"core"`` or ``"full"``.
        chunk: frames in a piece; ``None``: whole utterances.
        normalise: every one of the 39 numbers with statistics of the folder ``TRAIN``: ``"range"``: its extremes become 0 and 1;
            ``"standard"``: mean 0, standard deviation 1; ``"none"``.
        **common: see :class:`~spiketide.data.base.DataModule`.

    Raises:
        ParameterError: an unknown test or normalisation, or a chunk below 1.
        DataError: files missing or broken, a phone that is not one of the 61, or librosa or soundfile not installed.

    Reference:
        J. S. Garofolo et al., "TIMIT Acoustic-Phonetic Continuous Speech Corpus", LDC93S1, 1993. Features, their scaling by
        training extremes, pieces of 100 frames and the 61 labels a frame as in Yin, Corradi & Bohté 2021, who score a validation
        set that is not described and show each frame for 5 steps (repeat them in the network if wanted). The corpus was not at
        hand: the reader is tested on files written in its format. Not known:
        whether they leave out the SA sentences (their 13 134 training pieces speak for it), and what they do with the last,
        shorter piece.
    """

    core: ClassVar[tuple[str, ...]] = tuple(_CORE.split())
    """Speakers of the core test set: two men and a woman of each dialect region."""

    def __init__(
        self,
        *,
        test: Literal["core", "full"] = "core",
        chunk: int | None = 100,
        normalise: Literal["range", "standard", "none"] = "range",
        **common: Any,
    ) -> None:
        super().__init__(**common)
        if test not in ("core", "full"):
            raise ParameterError(unknown("test", test, ("core", "full")))
        if normalise not in ("range", "standard", "none"):
            raise ParameterError(unknown("normalise", normalise, ("range", "standard", "none")))
        if chunk is not None and chunk < 1:
            raise ParameterError(f"TIMIT expected a chunk of 1 frame or more, or None, got {chunk}.")
        self.test, self.chunk, self.normalise = test, chunk, normalise
        self.features = Cepstra()
        self._speakers: list[str] = []
        self._scaling: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None

    @property
    def temporal(self) -> bool:
        """True."""
        return True

    @property
    def class_names(self) -> tuple[str, ...]:
        """The 61 phones."""
        return PHONES

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """``(39,)``."""
        return (39,)

    @property
    def dt(self) -> float:
        """Milliseconds from frame to frame."""
        return self.features.hop_ms

    def prepare_data(self) -> None:
        """Compute the frames that are not cached; say where the files belong when they are not there."""
        for part in ("TRAIN", "TEST"):
            self._frames(part, self.utterances(part))

    def utterances(self, part: Literal["TRAIN", "TEST"]) -> list[Utterance]:
        """The recordings of one folder, without SA sentences, by speaker and sentence."""
        base = self.data_root / "timit"
        places = [base, _child(base, "TIMIT"), _child(base, "DATA")]
        folder = next((it for place in places if (it := _child(place, part)) is not None), None)
        if folder is None:
            raise DataError(
                f"TIMIT expected the folders TRAIN and TEST of the corpus in {base}, {part} is not there. It is sold by the "
                "Linguistic Data Consortium (LDC93S1): put it there, or set SPIKETIDE_DATA (or the argument root) to "
                "the folder that holds timit/."
            )
        utterances = sorted(_utterances(folder))
        if not utterances:
            raise DataError(f"{folder} expected DR1/FCJF0/SI648.WAV and .PHN and so on, there is none.")
        return utterances

    def read(self, part: Literal["train", "test"]) -> Samples:
        """Pieces of one part; ``ids`` are ``1000 utterance + piece``, utterances counted through TRAIN, then TEST."""
        train = self.utterances("TRAIN")
        whole = train if part == "train" else self.utterances("TEST")
        if part == "test":
            if self.test == "core":
                lacking = set(self.core) - {it.speaker for it in whole}
                if lacking:
                    raise DataError(
                        f"TIMIT expected the {len(self.core)} speakers of the core test set in the folder TEST, {len(lacking)} "
                        f"are missing (the first: {min(lacking)}): is the corpus whole?"
                    )
            both = {it.speaker for it in train} & {it.speaker for it in whole}
            if both:
                raise DataError(f"TIMIT expected no speaker in TRAIN and in TEST, {min(both)} is in both.")
        frames = self._frames("TRAIN" if part == "train" else "TEST", whole)
        shift, scale = self._normalisation(frames if part == "train" else None)
        first = 0 if part == "train" else len(train)
        x: list[Tensor] = []
        y: list[Tensor] = []
        ids: list[int] = []
        speakers: list[str] = []
        for number, (it, values) in enumerate(zip(whole, frames, strict=True), start=first):
            if part == "test" and self.test == "core" and it.speaker not in self.core:
                continue
            labels = frame_labels(it.phones, len(values), self.features.hop, self.features.window)
            values = (values - shift) / scale
            size = len(values) if self.chunk is None else self.chunk
            for piece, start in enumerate(range(0, len(values), size)):
                x.append(torch.from_numpy(values[start : start + size]))
                y.append(torch.from_numpy(labels[start : start + size]))
                ids.append(_MANY * number + piece)
                speakers.append(it.speaker)
        if part == "train":
            self._speakers = speakers
        return Samples(x, y, torch.tensor(ids))

    def carve(self, samples: Samples) -> tuple[Tensor, Tensor]:
        """Whole speakers, in an order drawn from ``seed``, until they have ``validation_fraction``."""
        speakers = np.array(self._speakers)
        chosen = np.zeros(len(speakers), dtype=bool)
        for speaker in np.random.RandomState(self.seed).permutation(np.unique(speakers))[:-1]:
            chosen |= speakers == speaker
            if chosen.mean() >= self.validation_fraction:
                break
        if not chosen.any():
            raise DataError(
                "TIMIT expected two speakers at least in the folder TRAIN, one to validate on: is it whole?"
            )
        rows = torch.from_numpy(chosen)
        return (~rows).nonzero().flatten(), rows.nonzero().flatten()

    def _frames(self, part: str, utterances: list[Utterance]) -> list[NDArray[np.float32]]:
        digest = hashlib.sha256()
        for it in utterances:
            digest.update(hashlib.sha256(_bytes(it.wave)).digest())
        key = fingerprint({**self.features.key(), "files": digest.hexdigest()}, [])

        def compute() -> list[NDArray[np.float32]]:
            from tqdm.auto import tqdm

            bar = tqdm(utterances, desc=f"TIMIT {part}", unit=" utterances", disable=None, leave=False)
            return [self.features(read_wave(it.wave, self.features.window)) for it in bar]

        return cached(f"timit-{part.lower()}", key, len(utterances), compute)

    def _normalisation(
        self, train: list[NDArray[np.float32]] | None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """What is subtracted and what is divided by, from the folder TRAIN alone."""
        if self._scaling is None:
            frames = self._frames("TRAIN", self.utterances("TRAIN")) if train is None else train
            low, high = (np.stack([f(x, axis=0) for x in frames]) for f in (np.min, np.max))
            if self.normalise == "range":
                shift, scale = low.min(0), high.max(0) - low.min(0)
            elif self.normalise == "standard":
                count = sum(map(len, frames))
                shift = sum(x.sum(0, dtype=np.float64) for x in frames) / count
                square = sum(np.square(x - shift).sum(0, dtype=np.float64) for x in frames)
                scale = np.sqrt(square / count)
            else:
                shift, scale = np.zeros(39), np.ones(39)
            scale = np.where(scale > 1e-6, scale, 1.0)  # a number that never changes stays 0
            self._scaling = shift.astype(np.float32), scale.astype(np.float32)
        return self._scaling


def frame_labels(path: Path, frames: int, hop: int, window: int) -> NDArray[np.int64]:
    """The phone in which the middle of each frame lies, -1 for none, from a ``.PHN`` file: lines ``begin end phone``, in samples.

    Raises:
        DataError: the file cannot be read, a line is not of this form, or a phone is not known.
    """
    middle = np.arange(frames) * hop + window // 2
    labels = np.full(frames, UNLABELLED, dtype=np.int64)
    for number, line in enumerate(_bytes(path).decode("ascii", errors="replace").splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        if len(words) != 3 or not (words[0].isdecimal() and words[1].isdecimal()):
            raise DataError(f"{path}, line {number}, expected 'begin end phone', it is {line!r:.60}.")
        if words[2] not in PHONES:
            raise DataError(f"{path}, line {number}: {unknown('phone', words[2], PHONES)}")
        labels[(middle >= int(words[0])) & (middle < int(words[1]))] = PHONES.index(words[2])
    return labels


def read_wave(path: Path, least: int) -> NDArray[np.float64]:
    """One recording, mono at 16 kHz, from a SPHERE or RIFF file.

    Raises:
        DataError: broken, compressed, of another rate or number of channels, or shorter than ``least`` samples.
    """
    try:
        import soundfile
    except ImportError as problem:
        raise DataError(
            "TIMIT is read with soundfile, which is not installed: pip install 'spiketide[audio]'"
        ) from problem
    try:
        wave, rate = soundfile.read(path, dtype="float64", always_2d=True)
    except (OSError, RuntimeError) as problem:
        raise DataError(
            f"{path} is not a whole SPHERE or RIFF file ({problem}). Copy it again; a compressed SPHERE file must be "
            "unpacked first."
        ) from problem
    if rate != RATE or wave.shape[1] != 1:
        raise DataError(
            f"{path} expected one channel at {RATE} Hz, it has {wave.shape[1]} at {rate} Hz: is it of this corpus?"
        )
    if len(wave) < least:
        raise DataError(
            f"{path} expected {least} samples at least, it has {len(wave)}: it is cut off. Copy it again."
        )
    return wave[:, 0]


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as problem:
        raise DataError(f"{path} cannot be read: {problem}.") from problem


def _child(folder: Path | None, name: str) -> Path | None:
    """The folder of this name inside, in upper or lower case."""
    if folder is None or not folder.is_dir():
        return None
    return next((it for it in sorted(folder.iterdir()) if it.is_dir() and it.name.upper() == name), None)


def _utterances(folder: Path) -> Iterator[Utterance]:
    for region in folder.iterdir():
        if not (region.is_dir() and region.name.upper().startswith("DR")):
            continue
        for speaker in (it for it in region.iterdir() if it.is_dir()):
            files = {it.name.upper(): it for it in speaker.iterdir()}
            for name, phones in files.items():
                sentence, _, kind = name.partition(".")
                if kind != "PHN" or sentence.startswith("SA"):
                    continue
                wave = files.get(f"{sentence}.WAV") or files.get(f"{sentence}.WAV.WAV")
                if wave is None:
                    raise DataError(f"{phones} has no recording {sentence}.WAV beside it.")
                yield Utterance(speaker.name.upper(), sentence, wave, phones)
