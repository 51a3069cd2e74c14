"""The Heidelberg spiking data sets, and any file of spikes in their HDF5 format."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
import shutil
import zipfile
import zlib
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import DataError, ParameterError, unknown
from .augment import Augmented
from .base import Samples
from .download import RemoteFile, fetch
from .events import EventFrames, compact
from .features import cached, fingerprint

_CHUNK = 512
"""Recordings that are read from a file at once."""


class SpikeRecordings(Augmented):
    """What all data sets in this format share: reading, frames, the cache, and validation by speaker.

    A file holds ``spikes/times`` and ``spikes/units`` (one list a recording: seconds, usually float16, and
    channel), ``labels``, and perhaps ``extra/keys`` (names of the classes) and ``extra/speaker``. It is read piece
    by piece, once: the frames are kept in the user's cache folder under a key of the options and of the file's
    SHA256, and in memory as bytes.

    Args:
        units: channels of the events.
        dt: length of a frame (ms).
        binning: ``"uniform"`` or ``"anchored"``, see :class:`~spiketide.data.events.EventFrames`.
        group: adjacent channels that are summed to one.
        max_time: leave out what comes at or after this time (s).
        max_steps: keep only the first frames.
        min_steps: add silent frames behind shorter recordings, up to this number.
        binary: 1 where there is any event, instead of the count.
        channel_shift: see :class:`~spiketide.data.augment.Augmented`; training samples only.
        time_warp: see there.
        **common: see :class:`~spiketide.data.base.DataModule`.
    """

    def __init__(
        self,
        *,
        units: int = 700,
        dt: float = 10.0,
        binning: Literal["uniform", "anchored"] = "uniform",
        group: int = 5,
        max_time: float | None = None,
        max_steps: int | None = None,
        min_steps: int = 1,
        binary: bool = False,
        channel_shift: int = 0,
        time_warp: tuple[float, float] | None = None,
        **common: Any,
    ) -> None:
        super().__init__(channel_shift=channel_shift, time_warp=time_warp, **common)
        self.frames = EventFrames(
            units=units,
            dt=dt,
            binning=binning,
            group=group,
            max_time=max_time,
            max_steps=max_steps,
            min_steps=min_steps,
            binary=binary,
            sort=True,  # the published code sorts too; the files are sorted already
        )
        self._speakers: NDArray[np.int64] | None = None

    @property
    def temporal(self) -> bool:
        """True."""
        return True

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """``(units // group,)``."""
        return (self.frames.channels,)

    @property
    def dt(self) -> float:
        """Milliseconds of a step."""
        return self.frames.dt

    @abstractmethod
    def _file(self, part: str) -> Path:
        """The HDF5 file of a part, there already."""

    def _content(self, part: str, first: int = 0) -> Samples:
        """One file; ``ids`` count from ``first``."""
        path = self._file(part)
        labels = read_spike_file(path).labels
        if len(labels) == 0:
            raise DataError(f"{path} holds no recording: the {part} part would be empty.")
        key = fingerprint({**self.frames.key(), "file": _sha256(path)}, [])

        def compute() -> list[NDArray[Any]]:
            from tqdm.auto import tqdm

            numbers = tqdm(range(len(labels)), desc=path.name, disable=None, leave=False)
            return [
                compact(self.frames(t, u, name=f"recording {i} of {path}"))
                for i, (t, u) in zip(numbers, events(path), strict=True)
            ]

        frames = cached(path.stem, key, len(labels), compute)
        x = [torch.from_numpy(frame) for frame in frames]
        return Samples(x, torch.from_numpy(labels), torch.arange(first, first + len(labels)))

    def _by_speaker(self, samples: Samples) -> tuple[Tensor, Tensor]:
        """Whole speakers, in an order drawn from ``seed``, until they have ``validation_fraction``."""
        speakers = self._speakers
        if speakers is None:
            raise DataError(
                f"{type(self).__name__} cannot validate by speaker: the training file has no extra/speaker. Use "
                'validation="random".'
            )
        order = np.random.RandomState(self.seed).permutation(np.unique(speakers))
        chosen = np.zeros(len(speakers), dtype=bool)
        for speaker in order[:-1]:  # one is left to train on
            chosen |= speakers == speaker
            if chosen.mean() >= self.validation_fraction:
                break
        if not chosen.any():
            raise DataError(
                f"{type(self).__name__} cannot validate by speaker: the training file has one speaker only. Use "
                'validation="random".'
            )
        rows = torch.from_numpy(chosen)
        return (~rows).nonzero().flatten(), rows.nonzero().flatten()


class _Official(SpikeRecordings):
    """Files of zenkelab.org: found, unpacked or downloaded."""

    title: ClassVar[str]
    folder: ClassVar[str]
    digests: ClassVar[dict[str, str]]
    """MD5 of ``<name>.h5.zip`` for each part's name."""
    address: ClassVar[str] = "https://zenkelab.org/datasets/"

    def prepare_data(self) -> None:
        """Download and unpack what is not there; compute the frames that are not cached."""
        for part in self.digests:
            self._content(part)

    def _file(self, part: str) -> Path:
        from filelock import FileLock

        path = self.data_root / self.folder / f"{self.folder}_{part}.h5"
        if path.is_file():
            return path
        zipped, gzipped = path.with_name(path.name + ".zip"), path.with_name(path.name + ".gz")
        ours = not (zipped.is_file() or gzipped.is_file())
        if ours:
            remote = RemoteFile(f"{self.folder}/{zipped.name}", f"{self.address}{zipped.name}", 0, None)
            fetch(
                [remote], self.data_root, title=self.title, hint=f"or {gzipped.name}, or {path.name} itself,"
            )
        with FileLock(path.with_name(f".{path.name}.unpack.lock")):
            if not path.is_file():  # else another process was faster
                if ours:
                    _check_digest(zipped, self.digests[part])
                unpack(zipped if zipped.is_file() else gzipped, path)
                if ours:
                    zipped.unlink(missing_ok=True)
        return path


class SHD(_Official):
    """The Spiking Heidelberg Digits: spoken digits, English and German, as spikes of 700 channels.

    8156 recordings to train on and validate with, 2264 to test with, of 12 speakers, two of whom are in the test
    part only.

    Validation is carved from the training part, **whole speakers at a time** by default: in an order drawn from
    ``seed`` until they have at least ``validation_fraction`` of the recordings. ``"random"``: a share stratified by
    class, which shares its speakers with training. ``"test"``: **selects on the test set**, as most published
    numbers do; the validation batches are then the test part, and a result chosen by them is not a test result. It
    exists to reproduce those numbers.

    Example:
        >>> from spiketide.data import SHD
        >>> data = SHD(binning="anchored", dt=10.0, group=5)
        >>> data.sample_shape, data.num_classes, data.class_names[10]
        ((140,), 20, 'null')

    Shapes:
        Batches ``x (T, B, 700 // group)`` float32 counts, zero-padded to the longest of the batch; ``y (B,)``;
        ``lengths (B,)``.

    Args:
        validation: ``"speaker"``, ``"random"`` or ``"test"``.
        dt: length of a frame (ms).
        binning: ``"uniform"`` or ``"anchored"``, see :class:`~spiketide.data.events.EventFrames`.
        group: adjacent channels that are summed to one; it divides 700.
        max_time: leave out what comes at or after this time (s).
        max_steps: keep only the first frames.
        min_steps: add silent frames behind shorter recordings, up to this number.
        binary: 1 where there is any event, instead of the count.
        channel_shift: see :class:`~spiketide.data.augment.Augmented`; training samples only.
        time_warp: see there.
        **common: see :class:`~spiketide.data.base.DataModule`.

    Raises:
        ParameterError: an unknown validation or binning, or a size out of its range.
        DataError: files missing, truncated, of another layout, or without speakers where they are needed.

    Reference:
        B. Cramer, Y. Stradmann, J. Schemmel, F. Zenke, arXiv 1910.07407; files of zenkelab.org, CC BY 4.0. The MD5
        sums of the zip archives are those that several public readers of this data set carry; ``.h5.gz`` archives
        that you put there are checked by their own checksum only. Never read here from the real files: they were
        not at hand; the order of the class names is that of those readers.
    """

    title = "SHD"
    folder = "shd"
    digests: ClassVar[dict[str, str]] = {
        "train": "f3252aeb598ac776c1b526422d90eecb",
        "test": "1503a5064faa34311c398fb0a1ed0a6f",
    }

    def __init__(
        self,
        *,
        validation: Literal["speaker", "random", "test"] = "speaker",
        **options: Any,
    ) -> None:
        super().__init__(units=700, **options)
        if validation not in ("speaker", "random", "test"):
            raise ParameterError(unknown("validation", validation, ("speaker", "random", "test")))
        self.validation = validation
        self._trained_on = 0

    @property
    def class_names(self) -> tuple[str, ...]:
        """English, then German, zero to nine."""
        english = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
        german = ("null", "eins", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun")
        return english + german

    def read(self, part: Literal["train", "test"]) -> Samples:
        """One file; test ``ids`` count on from the last training one."""
        if part == "test":
            return self._content("test", len(read_spike_file(self._file("train")).labels))
        samples = self._content("train")
        self._trained_on = len(samples.y)
        self._speakers = read_spike_file(self._file("train")).speakers
        if self.validation == "test":
            samples = _joined(samples, self._content("test", self._trained_on))
        return samples

    def carve(self, samples: Samples) -> tuple[Tensor, Tensor]:
        """Whole speakers, a stratified share, or the test part."""
        if self.validation == "speaker":
            return self._by_speaker(samples)
        if self.validation == "test":
            rows = torch.arange(len(samples.y))
            return rows[: self._trained_on], rows[self._trained_on :]
        return super().carve(samples)


class SSC(_Official):
    """The Spiking Speech Commands: 35 words as spikes of 700 channels, with the official validation part.

    75 466 recordings to train on, 9981 to validate with, 20 382 to test with. ``validation_fraction`` is not used.

    Example:
        >>> from spiketide.data import SSC
        >>> SSC(group=7).sample_shape, SSC().num_classes
        ((100,), 35)

    Shapes:
        Batches ``x (T, B, 700 // group)`` float32 counts, zero-padded to the longest of the batch; ``y (B,)``;
        ``lengths (B,)``. In memory the frames are bytes: about one gigabyte with 140 channels and 10 ms.

    Args:
        dt: length of a frame (ms).
        binning: ``"uniform"`` or ``"anchored"``, see :class:`~spiketide.data.events.EventFrames`.
        group: adjacent channels that are summed to one; it divides 700.
        max_time: leave out what comes at or after this time (s).
        max_steps: keep only the first frames.
        min_steps: add silent frames behind shorter recordings, up to this number.
        binary: 1 where there is any event, instead of the count.
        channel_shift: see :class:`~spiketide.data.augment.Augmented`; training samples only.
        time_warp: see there.
        **common: see :class:`~spiketide.data.base.DataModule`.

    Raises:
        ParameterError: an unknown binning, or a size out of its range.
        DataError: files missing, truncated, or of another layout.

    Reference:
        As :class:`SHD`; the words are those of P. Warden's Speech Commands (CC BY 4.0). Never read here from the
        real files. Classes are named by the file's ``extra/keys`` when it is there, else by their numbers.
    """

    title = "SSC"
    folder = "ssc"
    digests: ClassVar[dict[str, str]] = {
        "train": "d102be95e7144fcc0553d1f45ba94170",
        "valid": "b4eee3516a4a90dd0c71a6ac23a8ae43",
        "test": "a35ff1e9cffdd02a20eb850c17c37748",
    }
    classes: ClassVar[int] = 35

    def __init__(self, **options: Any) -> None:
        super().__init__(units=700, **options)
        self._first_validation = 0

    @property
    def class_names(self) -> tuple[str, ...]:
        """As the training file names them, else their numbers."""
        path = self.data_root / self.folder / f"{self.folder}_train.h5"
        names = read_spike_file(path).keys if path.is_file() else ()
        return names if len(names) == self.classes else tuple(map(str, range(self.classes)))

    def read(self, part: Literal["train", "test"]) -> Samples:
        """Training and validation files, or the test file; ``ids`` count through the three in this order."""
        if part == "test":
            before = [len(read_spike_file(self._file(name)).labels) for name in ("train", "valid")]
            return self._content("test", sum(before))
        train = self._content("train")
        self._first_validation = len(train.y)
        return _joined(train, self._content("valid", len(train.y)))

    def carve(self, samples: Samples) -> tuple[Tensor, Tensor]:
        """The official parts."""
        rows = torch.arange(len(samples.y))
        return rows[: self._first_validation], rows[self._first_validation :]


class SpikeFile(SpikeRecordings):
    """Files of spikes in the format of the Heidelberg data sets, as ``spiketide encode`` writes them.

    Example:
        >>> import h5py, numpy as np, tempfile
        >>> from pathlib import Path
        >>> from spiketide.data import SpikeFile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "taps.h5"
        ...     with h5py.File(path, "w") as store:
        ...         for name, kind in (("times", "f2"), ("units", "u2")):
        ...             data = store.create_dataset(f"spikes/{name}", (20,), h5py.vlen_dtype(kind))
        ...             for i in range(20):
        ...                 data[i] = [0, 1]
        ...         store["labels"] = np.arange(20) % 2
        ...     data = SpikeFile(path, units=4, group=2, validation="random", validation_fraction=0.2)
        ...     data.num_classes, {part: len(ids) for part, ids in data.split_indices.items()}
        (2, {'train': 16, 'validation': 4, 'test': 0})

    Shapes:
        As :class:`SHD`.

    Args:
        train: the file that may be trained on; validation is carved from it.
        test: the file with the test part; ``None``: there is none, and testing is refused.
        validation: ``"random"``: stratified by class; ``"speaker"``: whole speakers, where the file names them.
        units: channels of the events; ``None``: as the file says in the attribute ``units`` of ``spikes``, else 700.
        dt: length of a frame (ms).
        binning: ``"uniform"`` or ``"anchored"``, see :class:`~spiketide.data.events.EventFrames`.
        group: adjacent channels that are summed to one; it divides ``units``.
        max_time: leave out what comes at or after this time (s).
        max_steps: keep only the first frames.
        min_steps: add silent frames behind shorter recordings, up to this number.
        binary: 1 where there is any event, instead of the count.
        channel_shift: see :class:`~spiketide.data.augment.Augmented`; training samples only.
        time_warp: see there.
        **common: see :class:`~spiketide.data.base.DataModule`.

    Raises:
        ParameterError: an unknown validation or binning, or a size out of its range.
        DataError: files missing, truncated, or of another layout.
    """

    def __init__(
        self,
        train: str | Path,
        test: str | Path | None = None,
        *,
        validation: Literal["random", "speaker"] = "random",
        units: int | None = None,
        **options: Any,
    ) -> None:
        if validation not in ("random", "speaker"):
            raise ParameterError(unknown("validation", validation, ("random", "speaker")))
        self.train = Path(train).expanduser()
        self.test = None if test is None else Path(test).expanduser()
        found = read_spike_file(self.train)
        super().__init__(units=(found.units or 700) if units is None else units, **options)
        self.validation = validation
        self._speakers = found.speakers
        self._count = len(found.labels)
        most = int(found.labels.max()) + 1 if len(found.labels) else 1
        self._names = found.keys or tuple(map(str, range(most)))

    @property
    def class_names(self) -> tuple[str, ...]:
        """As the training file names them, else their numbers."""
        return self._names

    def _file(self, part: str) -> Path:
        path = self.train if part == "train" else self.test
        if path is None:
            raise DataError("SpikeFile was given no test file: pass test to test on it.")
        return path

    def read(self, part: Literal["train", "test"]) -> Samples:
        """One file; test ``ids`` count on from the last training one."""
        return self._content(part, 0 if part == "train" else self._count)

    def carve(self, samples: Samples) -> tuple[Tensor, Tensor]:
        """Whole speakers, or a stratified share."""
        return self._by_speaker(samples) if self.validation == "speaker" else super().carve(samples)

    @property
    def split_indices(self) -> dict[str, list[int]]:
        """The numbers of the recordings of each part; those of the test file count on."""
        if self.test is not None:
            return super().split_indices
        training = self._prepared_training()
        return {
            "train": training.ids[self._train_rows].tolist(),
            "validation": training.ids[self._validation_rows].tolist(),
            "test": [],
        }


class SpikeFileContent(NamedTuple):
    """What a file says about its recordings, without their events."""

    labels: NDArray[np.int64]
    """``(n,)``."""
    keys: tuple[str, ...]
    """Names of the classes; empty: not there."""
    speakers: NDArray[np.int64] | None
    """``(n,)``."""
    units: int | None
    """Channels."""


def read_spike_file(path: Path) -> SpikeFileContent:
    """Labels, class names and speakers of a file; no events are read.

    Raises:
        DataError: not there, truncated, not HDF5, or of another layout.
    """
    with _opened(path) as store:
        labels = np.asarray(store["labels"][:])
        if labels.ndim != 1 or labels.dtype.kind not in "iu":
            raise DataError(
                f"{path} expected whole numbers (n,) as labels, it has {labels.dtype} {labels.shape}."
            )
        lengths = {name: len(store[name]) for name in ("spikes/times", "spikes/units", "labels")}
        speakers = np.asarray(store["extra/speaker"][:]) if "extra/speaker" in store else None
        if speakers is not None:
            lengths["extra/speaker"] = len(speakers)
        if len(set(lengths.values())) > 1:
            raise DataError(
                f"{path} expected one of each for every recording, it has {lengths}: it is not whole."
            )
        raw = store["extra/keys"][:] if "extra/keys" in store else ()
        keys = tuple(key.decode("utf-8", "replace") if isinstance(key, bytes) else str(key) for key in raw)
        units = store["spikes"].attrs.get("units")
    return SpikeFileContent(
        labels.astype(np.int64),
        keys,
        None if speakers is None else speakers.astype(np.int64),
        None if units is None else int(units),
    )


def events(path: Path) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """Times (seconds) and units of each recording, read piece by piece.

    Raises:
        DataError: as :func:`read_spike_file`.
    """
    with _opened(path) as store:
        times, units = store["spikes/times"], store["spikes/units"]
        for begin in range(0, len(times), _CHUNK):
            yield from zip(times[begin : begin + _CHUNK], units[begin : begin + _CHUNK], strict=True)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The open file; what goes wrong with its format becomes a :class:`DataError`."""
    import h5py

    if not path.is_file():
        raise DataError(f"{path} is not there: expected an HDF5 file of spikes.")
    try:
        with h5py.File(path, "r") as store:
            lacking = [name for name in ("spikes/times", "spikes/units", "labels") if name not in store]
            if lacking:
                raise DataError(
                    f"{path} expected the data sets spikes/times, spikes/units and labels, it lacks "
                    f"{', '.join(lacking)}: it is another kind of file, or not whole."
                )
            yield store
    except (OSError, KeyError, RuntimeError) as problem:
        if isinstance(problem, DataError):
            raise
        raise DataError(
            f"{path} is truncated, corrupt or not an HDF5 file ({problem}). Delete it and run again to get it anew, "
            "or copy it again."
        ) from problem


def unpack(archive: Path, target: Path) -> None:
    """Take the one HDF5 file out of ``.zip`` or ``.gz`` and put it in place in one move.

    Args:
        archive: ``<name>.h5.zip`` or ``<name>.h5.gz``; it stays.
        target: ``<name>.h5``.

    Raises:
        DataError: the archive is broken or holds another file; there is no ``target`` then.
    """
    partial = target.with_name(f".{target.name}.part")
    try:
        with contextlib.ExitStack() as stack:
            if archive.suffix == ".zip":
                store = stack.enter_context(zipfile.ZipFile(archive))
                inside = [name for name in store.namelist() if Path(name).name == target.name]
                if not inside:
                    raise DataError(
                        f"{archive} expected {target.name} inside, it holds {store.namelist()[:3]}."
                    )
                source: Any = stack.enter_context(store.open(inside[0]))
            else:
                source = stack.enter_context(gzip.open(archive))
            with partial.open("wb") as out:
                shutil.copyfileobj(source, out, 1 << 20)
                out.flush()
                os.fsync(out.fileno())
        partial.replace(target)
    except (zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError) as problem:
        raise DataError(
            f"{archive} is truncated or corrupt ({problem}). Delete it and run again."
        ) from problem
    except OSError as problem:
        raise DataError(f"{archive} cannot be unpacked to {target}: {problem}.") from problem
    finally:
        partial.unlink(missing_ok=True)


def _check_digest(archive: Path, md5: str) -> None:
    found = _digest(archive, "md5")
    if found != md5:
        archive.unlink()
        raise DataError(
            f"{archive} came with another MD5 ({found}) than published ({md5}): it is removed. Run again to download "
            "it once more."
        )


def _sha256(path: Path) -> str:
    return _digest(path, "sha256")


def _digest(path: Path, kind: str) -> str:
    digest = hashlib.new(kind, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _joined(first: Samples, second: Samples) -> Samples:
    y = torch.cat([first.labels(), second.labels()])
    return Samples([*first.x, *second.x], y, torch.cat([first.ids, second.ids]))
