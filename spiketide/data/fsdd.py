"""The Free Spoken Digit Dataset: real speech, small, and with a split that is honest about speakers."""

from __future__ import annotations

import hashlib
import io
import itertools
import shutil
import wave
import zipfile
import zlib
from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import DataError, ParameterError, unknown
from .augment import Change, Changing
from .augment_sound import SpecAugment, SpecWarp, draws_for
from .base import DataModule, Samples
from .download import ENVIRONMENT, RemoteFile, fetch
from .features import DeltaMel, FrontEnd, LogMel, cached, fingerprint

RATE = 8000
"""Samples a second of every recording."""


class FSDDRecordings(DataModule):
    """What all forms of :class:`FSDD` share: the recordings, how they get here, and who is in which part.

    Args:
        held_out_speaker: test on this speaker; ``None``: the official split.
        validation_speaker: validate on this speaker; ``None``: on a stratified share.
        **common: see :class:`~spiketide.data.base.DataModule`.

    Raises:
        ParameterError: an unknown speaker, or one speaker in two parts.
        DataError: recordings missing.
    """

    speakers: ClassVar[tuple[str, ...]] = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
    repetitions: ClassVar[int] = 50
    official_test: ClassVar[int] = 5
    """Recordings with an index below this are the official test part."""
    archive: ClassVar[RemoteFile] = RemoteFile(
        "fsdd/free-spoken-digit-dataset-1.0.10.zip",
        "https://github.com/Jakobovski/free-spoken-digit-dataset/archive/refs/tags/v1.0.10.zip",
        0,
        None,
    )
    digest: ClassVar[str] = "04e1baae96c6a26e39c623f2b01d0182ddae627ba0ac02a3cdc17ba2af99fd9b"
    """What ``LC_ALL=C sha256sum recordings/*.wav | sha256sum`` says in the folder ``fsdd``. GitHub does not
    promise the bytes of an archive, so the recordings inside are verified, not the archive."""

    def __init__(
        self, *, held_out_speaker: str | None = None, validation_speaker: str | None = None, **common: Any
    ) -> None:
        super().__init__(**common)
        for speaker in (held_out_speaker, validation_speaker):
            if speaker is not None and speaker not in self.speakers:
                raise ParameterError(unknown("speaker", speaker, self.speakers))
        if held_out_speaker is not None and held_out_speaker == validation_speaker:
            raise ParameterError(
                "FSDD expected a validation_speaker other than the held_out_speaker, got "
                f"{held_out_speaker!r} for both: the test speaker must not be used to choose anything."
            )
        self.held_out_speaker = held_out_speaker
        self.validation_speaker = validation_speaker

    @property
    def temporal(self) -> bool:
        """True."""
        return True

    @property
    def class_names(self) -> tuple[str, ...]:
        """``"0"`` to ``"9"``."""
        return tuple(map(str, range(10)))

    @property
    def recordings(self) -> list[tuple[int, str, int]]:
        """Digit, speaker and index of every recording; its place here is its number in ``split_indices``."""
        return list(itertools.product(range(10), self.speakers, range(self.repetitions)))

    def prepare_data(self) -> None:
        """Download and unpack the recordings when there are none; compute what is not cached."""
        if not self._present():
            self._install()
        self._compute()

    def carve(self, samples: Samples) -> tuple[Tensor, Tensor]:
        """All recordings of ``validation_speaker``, or a stratified share."""
        if self.validation_speaker is None:
            return super().carve(samples)
        recordings = self.recordings
        chosen = torch.tensor(
            [recordings[number][1] == self.validation_speaker for number in samples.ids.tolist()]
        )
        return (~chosen).nonzero().flatten(), chosen.nonzero().flatten()

    @abstractmethod
    def _compute(self) -> object:
        """Make from the recordings whatever the batches are made of."""

    @property
    def _folder(self) -> Path:
        return self.data_root / "fsdd" / "recordings"

    def _present(self) -> bool:
        return any(self._folder.glob("*.wav"))

    def _install(self) -> None:
        from filelock import FileLock

        archive = self.data_root / self.archive.path
        ours = not archive.is_file()  # one that was put there by hand stays
        fetch(
            [self.archive],
            self.data_root,
            title="FSDD",
            hint=f"or unpack it so that the wav files lie in {self._folder},",
        )
        with FileLock(archive.with_name(".unpack.lock")):
            if not self._present():  # else another process was faster
                unpack(archive, self._folder, self.digest)
                if ours:
                    archive.unlink()

    def _is_test(self, digit: int, speaker: str, index: int) -> bool:
        if self.held_out_speaker is None:
            return index < self.official_test
        return speaker == self.held_out_speaker

    def _contents(self) -> tuple[list[Path], list[bytes]]:
        folder = self._folder
        paths = [folder / f"{digit}_{speaker}_{index}.wav" for digit, speaker, index in self.recordings]
        lacking = [path.name for path in paths if not path.is_file()]
        if lacking:
            raise DataError(
                f"FSDD expected {len(paths)} recordings {{digit}}_{{speaker}}_{{index}}.wav in {folder}, "
                f"{len(lacking)} are missing (the first: {lacking[0]}). Run prepare_data() with that folder "
                f"empty or away to download them, copy them there, or set {ENVIRONMENT} (or the argument "
                "root) to the folder that holds fsdd/recordings/."
            )
        return paths, [path.read_bytes() for path in paths]


class FSDD(FSDDRecordings):
    """3000 recordings of spoken digits (six speakers, ten digits, fifty times each) as log-mel frames.

    Two ways to split it:

    - the official one: recordings 0 to 4 of every speaker and digit are the test part (300), 5 to 49 the
      training part (2700). Test and training share speakers;
    - ``held_out_speaker``: the 500 recordings of one speaker are the test part, the 2500 of the others the
      training part. Harder and more honest.

    Validation is carved from the training part, stratified by digit; **it then shares speakers with
    training**, so with a held-out speaker it is much too optimistic about the test. ``validation_speaker``
    takes all training recordings of one speaker instead (``validation_fraction`` is then not used), which
    measures what the test measures.

    The frames (see :class:`~spiketide.data.features.LogMel`) are normalised by each recording alone and kept
    in the user's cache folder, under a key of the parameters and of the contents of all files.

    Example:
        >>> from spiketide.data import FSDD
        >>> data = FSDD(held_out_speaker="theo", validation_speaker="lucas", n_mels=32)
        >>> data.sample_shape, data.temporal, data.dt
        ((32,), True, 10.0)

    Shapes:
        Batches ``x (T, B, n_mels)`` float32, zero-padded to the longest of the batch; ``y (B,)``; ``lengths
        (B,)``. With the default frames a recording has 15 to 229 steps, 43 in the median.

    Args:
        held_out_speaker: test on this speaker; ``None``: the official split. Speakers: george, jackson,
            lucas, nicolas, theo, yweweler.
        validation_speaker: validate on this speaker; ``None``: on a stratified share of all training
            recordings.
        n_mels: mel bands.
        window_ms: window of a frame (ms).
        hop_ms: from frame to frame (ms).
        normalise: ``"recording"``: zero mean and unit deviation over each recording; ``"none"``: log energies
            as they are.
        max_steps: keep only the first frames of longer recordings; ``None``: all.
        **common: see :class:`~spiketide.data.base.DataModule`.

    Raises:
        ParameterError: an unknown speaker, one speaker in two parts, or sizes out of their range.
        DataError: recordings missing, truncated or of another format, or librosa not installed.

    Reference:
        Z. Jackson et al., "Free Spoken Digit Dataset" v1.0.10, doi:10.5281/zenodo.1342401, CC BY-SA 4.0. The
        file names and the official split are its own; the split by speakers is not.
    """

    def __init__(
        self,
        *,
        held_out_speaker: str | None = None,
        validation_speaker: str | None = None,
        n_mels: int = 40,
        window_ms: float = 25.0,
        hop_ms: float = 10.0,
        normalise: Literal["recording", "none"] = "recording",
        max_steps: int | None = None,
        **common: Any,
    ) -> None:
        super().__init__(held_out_speaker=held_out_speaker, validation_speaker=validation_speaker, **common)
        if max_steps is not None and max_steps < 1:
            raise ParameterError(f"FSDD expected max_steps of 1 or more, got {max_steps}.")
        self.max_steps = max_steps
        self.features = LogMel(
            sample_rate=RATE, n_mels=n_mels, window_ms=window_ms, hop_ms=hop_ms, normalise=normalise
        )
        self._frames: list[NDArray[np.float32]] | None = None

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """``(n_mels,)``."""
        return (self.features.n_mels,)

    @property
    def dt(self) -> float:
        """Milliseconds of a step: ``hop_ms``."""
        return self.features.hop_ms

    def read(self, part: Literal["train", "test"]) -> Samples:
        """Frames of one part; ``ids`` are places in :attr:`recordings`."""
        ids = [number for number, it in enumerate(self.recordings) if self._is_test(*it) == (part == "test")]
        frames, recordings = self._all_frames(), self.recordings
        x = [torch.from_numpy(frames[number][: self.max_steps]) for number in ids]
        y = torch.tensor([recordings[number][0] for number in ids])
        return Samples(x, y, torch.tensor(ids))

    def _compute(self) -> object:
        return self._all_frames()

    def _all_frames(self) -> list[NDArray[np.float32]]:
        if self._frames is None:
            paths, contents = self._contents()

            def compute() -> list[NDArray[np.float32]]:
                from tqdm.auto import tqdm

                bar = tqdm(paths, desc="FSDD log-mel frames", unit=" recordings", disable=None, leave=False)
                return [self.features(decode_wav(raw, path)) for path, raw in zip(bar, contents, strict=True)]

            self._frames = cached("fsdd", fingerprint(self.features.key(), contents), len(paths), compute)
        return self._frames


class FSDDClips(FSDDRecordings, Changing):
    """The recordings of :class:`FSDD` as clips of one length, by a front end of one's choice, and changed while training.

    A recording stands in the middle of its clip, silence around it; of a longer one its loudest part is taken: the middle of the
    longest recordings is silent, the word stands at one end. The splits are those of :class:`FSDD`. What
    is drawn for a sample is a function of ``seed``, the epoch and the number of the recording.

    Example:
        >>> from spiketide.data import FSDDClips, SpecAugment
        >>> data = FSDDClips(clip_ms=800.0, spec_augment=SpecAugment(), held_out_speaker="theo")
        >>> data.sample_shape, data.steps, data.dt
        ((3, 40), 81, 10.0)

    Shapes:
        Batches ``x (T, B, *N)`` float32, ``T = steps``; ``y (B,)``; no lengths. With the default front end ``N = (3, 40)``.

    Args:
        held_out_speaker: test on this speaker; ``None``: the official split.
        validation_speaker: validate on this speaker; ``None``: on a stratified share.
        features: the front end, at 8 kHz; ``None``: :class:`~spiketide.data.features.DeltaMel` with the published sizes.
        clip_ms: length of a clip (ms); 98 % of the recordings are shorter than 800.
        warp: stretches in time and along the bands while training.
        spec_augment: masks while training, after the stretches.
        **common: see :class:`~spiketide.data.base.DataModule`.

    Raises:
        ParameterError: an unknown speaker, one speaker in two parts, a front end for another sample rate, or a clip shorter than
            a frame.
        DataError: recordings missing, truncated or of another format, or librosa not installed.

    Reference: as :class:`FSDD`.
    """

    def __init__(
        self,
        *,
        held_out_speaker: str | None = None,
        validation_speaker: str | None = None,
        features: FrontEnd | None = None,
        clip_ms: float = 1000.0,
        warp: SpecWarp | None = None,
        spec_augment: SpecAugment | None = None,
        **common: Any,
    ) -> None:
        super().__init__(held_out_speaker=held_out_speaker, validation_speaker=validation_speaker, **common)
        self.features: FrontEnd = DeltaMel(sample_rate=RATE, flatten=False) if features is None else features
        rate = getattr(self.features, "sample_rate", RATE)
        if rate != RATE:
            raise ParameterError(
                f"FSDDClips expected a front end for its {RATE} samples a second, got {type(self.features).__name__}(sample_rate="
                f"{rate}): give it sample_rate={RATE} (--data.features.sample_rate {RATE})."
            )
        if not clip_ms >= self.features.hop_ms:
            raise ParameterError(
                f"FSDDClips expected clip_ms of {self.features.hop_ms} (one frame) or more, got {clip_ms!r}."
            )
        self.clip_ms, self.warp, self.spec_augment = float(clip_ms), warp, spec_augment
        self._clips: NDArray[np.float32] | None = None

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """That of the front end."""
        return self.features.shape

    @property
    def samples(self) -> int:
        """Samples of a clip."""
        return round(self.clip_ms * RATE / 1000)

    @property
    def steps(self) -> int:
        """Frames of a clip."""
        return self.features.frames(self.samples)

    @property
    def dt(self) -> float:
        """Milliseconds from frame to frame."""
        return self.features.hop_ms

    def read(self, part: Literal["train", "test"]) -> Samples:
        """Frames of one part ``(n, T, *N)``; ``ids`` are places in :attr:`recordings`."""
        recordings = self.recordings
        ids = torch.tensor([n for n, it in enumerate(recordings) if self._is_test(*it) == (part == "test")])
        x = torch.from_numpy(self._all_frames())[ids]
        return Samples(x, torch.tensor([recordings[n][0] for n in ids.tolist()]), ids)

    def change(self) -> Change | None:
        """Stretches and masks, where they are asked for."""
        if self.warp is None and self.spec_augment is None:
            return None
        return _ChangedFrames(self.seed, self.features.bands, self.warp, self.spec_augment)

    def _compute(self) -> object:
        return self._all_frames()

    def _all_frames(self) -> NDArray[np.float32]:
        if self._clips is None:
            paths, contents = self._contents()

            def compute() -> list[NDArray[np.float32]]:
                from tqdm.auto import tqdm

                bar = tqdm(paths, desc="FSDD frames", unit=" recordings", disable=None, leave=False)
                return [
                    self.features(placed(decode_wav(raw, path), self.samples))
                    for path, raw in zip(bar, contents, strict=True)
                ]

            key = fingerprint({**self.features.key(), "samples": self.samples, "place": "loudest"}, contents)
            frames = cached("fsdd-clips", key, len(paths), compute)
            self._clips = np.stack(frames).reshape(len(frames), -1, *self.sample_shape)
        return self._clips


@dataclass(frozen=True)
class _ChangedFrames:
    """What is done to the frames of a training batch."""

    seed: int
    bands: int
    warp: SpecWarp | None
    masks: SpecAugment | None

    def __call__(self, samples: Samples, rows: Tensor, epochs: NDArray[np.int64]) -> Tensor:
        changed = []
        for epoch, row in zip(epochs.tolist(), rows.tolist(), strict=True):
            frames, number = samples.x[row].numpy(), int(samples.ids[row])
            # streams of their own: masks do not move when frames are stretched too
            if self.warp is not None:
                frames = self.warp(frames, self.bands, draws_for(self.seed, epoch, number, 0))
            if self.masks is not None:
                frames = self.masks(frames, self.bands, draws_for(self.seed, epoch, number, 1))
            changed.append(torch.from_numpy(np.asarray(frames, dtype=np.float32)))
        return torch.stack(changed)


def placed(wave: NDArray[np.float32], samples: int) -> NDArray[np.float32]:
    """A recording in the middle of silence; of one that is longer the part that holds the most energy (the first of equals).

    Example:
        >>> import numpy as np
        >>> from spiketide.data.fsdd import placed
        >>> placed(np.ones(2, np.float32), 5).tolist(), placed(np.array([0.1, 0.0, 0.0, 0.5, -0.5]), 2).tolist()
        ([0.0, 1.0, 1.0, 0.0, 0.0], [0.5, -0.5])
    """
    lack = samples - len(wave)
    if lack < 0:
        energy = np.concatenate([[0.0], np.cumsum(np.square(wave, dtype=np.float64))])
        begin = int(np.argmax(energy[samples:] - energy[:-samples]))
        return wave[begin : begin + samples]
    return np.pad(wave, (lack // 2, lack - lack // 2))


def decode_wav(raw: bytes, path: Path) -> NDArray[np.float32]:
    """The samples of one 8 kHz mono 16-bit recording, in [-1, 1).

    Args:
        raw: the contents of the file.
        path: the file, for messages.

    Raises:
        DataError: truncated, corrupt, empty or of another format.
    """
    remedy = "Copy it again, or delete the folder recordings and run again to download it."
    try:
        with wave.open(io.BytesIO(raw)) as sound:
            form = sound.getnchannels(), sound.getsampwidth(), sound.getframerate()
            promised = sound.getnframes()
            samples = sound.readframes(promised)
    except (wave.Error, EOFError) as problem:
        raise DataError(
            f"{path} is truncated or not a wav file ({problem or 'it ends too early'}). {remedy}"
        ) from problem
    if form != (1, 2, RATE):
        raise DataError(
            f"{path} expected one channel of 2 bytes at {RATE} Hz, it has {form[0]} of {form[1]} at "
            f"{form[2]} Hz. {remedy}"
        )
    if len(samples) != 2 * promised or promised == 0:
        raise DataError(
            f"{path} is truncated: its header promises {promised} samples, it has {len(samples) // 2}. "
            f"{remedy}"
        )
    return np.frombuffer(samples, "<i2").astype(np.float32) / np.float32(32768)


def unpack(archive: Path, target: Path, digest: str) -> None:
    """Take the recordings out of the release archive, verify them, and put them in place in one move.

    Args:
        archive: the zip.
        target: the folder ``recordings``, which must not exist or be empty.
        digest: SHA256 over the sorted lines of ``sha256sum recordings/*.wav``.

    Raises:
        DataError: not a zip, or other recordings than expected; ``target`` is as it was.
    """
    partial = target.with_name(".recordings.part")
    shutil.rmtree(partial, ignore_errors=True)  # of an interrupted run
    try:
        partial.mkdir(parents=True)
        lines = []
        with zipfile.ZipFile(archive) as store:
            for entry in store.infolist():
                inside = PurePosixPath(entry.filename)
                if inside.parent.name == "recordings" and inside.suffix == ".wav":
                    content = store.read(entry)
                    (partial / inside.name).write_bytes(content)
                    lines.append(f"{hashlib.sha256(content).hexdigest()}  recordings/{inside.name}\n")
        found = hashlib.sha256("".join(sorted(lines, key=lambda line: line[66:])).encode()).hexdigest()
        if found != digest:
            raise DataError(
                f"{archive} holds other recordings than expected ({len(lines)} files, digest {found}, "
                f"expected {digest}). Delete it and run again to download it once more."
            )
        partial.replace(target)
    except (zipfile.BadZipFile, zlib.error) as problem:
        raise DataError(
            f"{archive} is not a whole zip file ({problem}). Delete it and run again."
        ) from problem
    except OSError as problem:
        raise DataError(f"{archive} cannot be unpacked to {target}: {problem}.") from problem
    finally:
        shutil.rmtree(partial, ignore_errors=True)
