"""A folder of audio files to one HDF5 file of spikes, in the format of the Heidelberg data sets."""

from __future__ import annotations

import json
import logging
import math
import multiprocessing
import os
import re
import signal
import struct
import tempfile
import zlib
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, ParameterError, unknown
from .cochlea import Cochlea, resample

log = logging.getLogger("spiketide")

SUFFIXES = (".aif", ".aiff", ".flac", ".mp3", ".ogg", ".wav")
"""Files that count as audio, in small letters."""

_HEAD = struct.Struct("<4sII")
_MAGIC = b"SPKT"
_FSDD = re.compile(r"(?P<label>[^_]+)_(?P<speaker>.+)_(?P<index>\d+)")


class Recording(NamedTuple):
    """One audio file and what its place says."""

    name: str
    """Its path below the folder, with forward slashes."""
    label: str
    speaker: str | None


@dataclass(frozen=True)
class Encoded:
    """What :func:`encode_folder` did."""

    out: str
    recordings: int
    classes: int
    spikes: int
    resumed: int
    """Recordings that an earlier, interrupted call had finished."""
    skipped: tuple[str, ...]
    """Broken files that were left out."""
    times: str
    """``"float16"`` or ``"float32"``."""


def encode_folder(
    folder: str | Path,
    out: str | Path,
    *,
    naming: Literal["folder", "fsdd"] = "folder",
    ear: Cochlea | None = None,
    jobs: int | None = None,
    skip_bad: bool = False,
    resolution: float = 1.0,
) -> Encoded:
    """Send every recording through a cochlea and write all spikes to one file.

    The file has ``spikes/times`` (seconds) and ``spikes/units`` (one list a recording; attribute ``units``: the
    number of channels), ``labels``, ``extra/keys`` (the names of the labels, sorted), ``extra/file``, and with
    ``naming="fsdd"`` ``extra/speaker`` (numbers) and ``extra/speaker_names``. Recordings are in the order of their
    paths. Stereo is mixed down by the mean of its channels, other rates are resampled to that of the ear.

    Times are float16, as published, as long as its steps at the end of the longest recording are at most
    ``resolution`` (0.5 ms up to 1 s, 1 ms up to 2 s, 2 ms up to 4 s), and float32 otherwise.

    Finished recordings are kept beside the output in ``<out>.part``: the same call after an interruption goes on
    from there, whatever happened. Recordings whose size or time of change is another are encoded again. The
    output appears in one move, when it is whole.

    Args:
        folder: with ``naming="folder"`` a sub-folder for each label, with audio files at any depth; with
            ``"fsdd"`` files ``{label}_{speaker}_{index}.wav`` (other audio formats too), at any depth.
        out: the HDF5 file to write.
        naming: where labels come from.
        ear: the cochlea; ``None``: :class:`Cochlea` with its defaults (8 kHz, 700 channels).
        jobs: processes; ``None``: one for each core; 1: none but this one.
        skip_bad: leave out broken recordings, with a warning, instead of stopping at the first.
        resolution: largest step of float16 times that is accepted (ms).

    Returns:
        What was done.

    Raises:
        ParameterError: an unknown naming, or sizes out of their range.
        DataError: no recordings, a name that does not fit, a broken recording (named; without ``skip_bad``), an
            output that is there already or cannot be written, a part file of other settings, another call at
            work on the same output, or soundfile not installed.
    """
    from filelock import FileLock, Timeout

    if naming not in ("folder", "fsdd"):
        raise ParameterError(unknown("naming", naming, ("folder", "fsdd")))
    if jobs is not None and jobs < 1:
        raise ParameterError(f"encode expected 1 job or more, got {jobs}.")
    if not (math.isfinite(resolution) and resolution > 0):
        raise ParameterError(f"encode expected a resolution above 0 ms, got {resolution!r}.")
    ear = Cochlea() if ear is None else ear
    folder, out = Path(folder), Path(out)
    recordings = find_recordings(folder, naming)
    _soundfile()
    if out.exists():
        raise DataError(f"{out} is there already: move it away, or choose another --out.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(out.with_name(f".{out.name}.lock"), timeout=0):
            return _encode(folder, out, recordings, ear, jobs or os.cpu_count() or 1, skip_bad, resolution)
    except Timeout as problem:
        raise DataError(f"another process encodes to {out} at this moment: wait for it.") from problem
    except OSError as problem:
        raise DataError(
            f"{out} or its part file cannot be written ({problem}). What is finished is kept: run again."
        ) from problem


def find_recordings(folder: Path, naming: Literal["folder", "fsdd"]) -> list[Recording]:
    """The audio files of a folder, sorted by path, with their labels.

    Raises:
        DataError: no such folder, no audio in it, or a file that says no label.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder: encode expects a folder of audio files.")
    paths = sorted(
        path.relative_to(folder)
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and path.is_file() and not path.name.startswith(".")
    )
    if not paths:
        raise DataError(f"{folder} holds no audio files ({', '.join(SUFFIXES)}).")
    found = []
    for path in paths:
        if naming == "folder":
            if len(path.parts) < 2:
                raise DataError(
                    f"{folder / path} lies in no sub-folder: expected a sub-folder for each label. For names like "
                    "{label}_{speaker}_{index}.wav use --naming fsdd."
                )
            found.append(Recording(path.as_posix(), path.parts[0], None))
        else:
            match = _FSDD.fullmatch(path.stem)
            if match is None:
                raise DataError(
                    f"{folder / path} expected a name {{label}}_{{speaker}}_{{index}}{path.suffix}: rename it, or "
                    "use --naming folder."
                )
            found.append(Recording(path.as_posix(), match["label"], match["speaker"]))
    return found


def read_audio(path: Path, rate: int) -> NDArray[np.float32]:
    """A mono recording at ``rate``, from any format that soundfile reads.

    Raises:
        DataError: broken, empty or not finite; the message names the file.
    """
    soundfile = _soundfile()
    try:
        sound, given = soundfile.read(path, dtype="float64", always_2d=True)
        return resample(sound.mean(axis=1), int(given), rate)
    except (soundfile.SoundFileError, RuntimeError, OSError) as problem:  # a DataError is a RuntimeError too
        raise DataError(f"{path} cannot be read as audio: {problem}") from problem


# ------------------------------------------------------------------------------------------------- inside


def _soundfile() -> Any:
    try:
        import soundfile
    except (ImportError, OSError) as problem:
        raise DataError(
            "Audio is read with soundfile, which is not installed: pip install 'spiketide[audio]'"
        ) from problem
    return soundfile


def _encode(
    folder: Path,
    out: Path,
    recordings: list[Recording],
    ear: Cochlea,
    jobs: int,
    skip_bad: bool,
    resolution: float,
) -> Encoded:
    from tqdm.auto import tqdm

    bad: dict[str, str] = {}
    with _Part(out.with_name(out.name + ".part"), ear) as part:
        wanted = []
        for it in recordings:
            stamp = _stamp(folder / it.name)
            if part.stamps.get(it.name) != stamp:
                wanted.append((it.name, stamp))
        resumed = len(recordings) - len(wanted)
        bar = tqdm(
            total=len(recordings),
            initial=resumed,
            desc="encode",
            unit=" recordings",
            disable=None,
            leave=False,
        )
        try:
            with bar:
                for name, stamp, result in _results(folder, wanted, ear, min(jobs, max(len(wanted), 1))):
                    if isinstance(result, str):
                        if not skip_bad:
                            raise DataError(
                                f"{result} Repair or remove it, or leave out what is broken with --skip-bad. What is "
                                "finished is kept: run again to go on."
                            )
                        log.warning("left out: %s", result)
                        bad[name] = result
                    else:
                        part.add(name, stamp, *result)
                    bar.update()
        except KeyboardInterrupt as stopped:
            raise KeyboardInterrupt(
                f"stopped with {len(part.stamps)} of {len(recordings)} recordings done; run the same command to go on"
            ) from stopped
        except BrokenProcessPool as problem:
            raise DataError(
                f"a worker process died ({problem}), perhaps for want of memory: run again to go on, with fewer --jobs."
            ) from problem
        good = [it for it in recordings if it.name not in bad]
        if not good:
            raise DataError(f"not one of the {len(recordings)} recordings in {folder} can be read.")
        spikes, kind = _write(out, good, part, ear, resolution)
    part.path.unlink()
    return Encoded(str(out), len(good), len({it.label for it in good}), spikes, resumed, tuple(bad), kind)


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


_Result = tuple[NDArray[np.int64], NDArray[np.int64]] | str  # samples and units, or what is wrong


def _hear(path: Path, ear: Cochlea) -> _Result:
    """In a worker: the spikes of one file."""
    try:
        times, units = ear(read_audio(path, ear.sample_rate))
    except DataError as problem:
        return str(problem)
    return np.rint(times * ear.sample_rate).astype(np.int64), units


def _results(
    folder: Path, wanted: list[tuple[str, list[int]]], ear: Cochlea, jobs: int
) -> Iterator[tuple[str, list[int], _Result]]:
    """Each recording's result, in the order in which they are ready."""
    if jobs == 1:
        for name, stamp in wanted:
            yield name, stamp, _hear(folder / name, ear)
        return
    # Not forked: threads of torch and Numba do not survive that.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_deaf_to_interrupts)
    waiting: dict[Future[_Result], tuple[str, list[int]]] = {}
    left = iter(wanted)
    try:
        while True:
            while len(waiting) < 4 * jobs and (it := next(left, None)) is not None:
                waiting[pool.submit(_hear, folder / it[0], ear)] = it
            if not waiting:
                return
            for done in wait(waiting, return_when=FIRST_COMPLETED).done:
                name, stamp = waiting.pop(done)
                yield name, stamp, done.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _deaf_to_interrupts() -> None:
    """Ctrl-C is the parent's: it stops the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class _Part:
    """Finished recordings in one file that only grows: each with its length and checksum before it.

    A kill in the middle of writing leaves a last piece that is not whole; it is cut off when the file is opened
    again.
    """

    def __init__(self, path: Path, ear: Cochlea) -> None:
        self.path = path
        self.stamps: dict[str, list[int]] = {}
        self._places: dict[str, int] = {}
        self._settings = json.loads(json.dumps(ear.key()))
        self._file: BinaryIO

    def __enter__(self) -> _Part:
        self._file = self.path.open("a+b")
        try:
            self._load()
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def _load(self) -> None:
        self._file.seek(0)
        end = 0
        first = True
        while (piece := self._piece()) is not None:
            head = piece[0]
            if first and head.get("settings") != self._settings:
                raise DataError(
                    f"{self.path} was begun with other settings of the ear: delete it to begin anew, or choose another "
                    "--out."
                )
            if not first:
                self.stamps[head["name"]], self._places[head["name"]] = head["stamp"], end
            first, end = False, self._file.tell()
        self._file.truncate(end)
        self._file.seek(end)
        if first:
            self._append({"settings": self._settings}, b"")

    def _piece(self) -> tuple[dict[str, Any], bytes] | None:
        """The next piece that is whole, or none."""
        head = self._file.read(_HEAD.size)
        if len(head) < _HEAD.size:
            return None
        magic, size, check = _HEAD.unpack(head)
        if magic != _MAGIC:
            return None
        body = self._file.read(size)
        if len(body) < size or zlib.crc32(body) != check:
            return None
        words, _, data = body.partition(b"\n")
        return json.loads(words), data

    def _append(self, head: dict[str, Any], data: bytes) -> int:
        body = json.dumps(head).encode() + b"\n" + data
        self._file.seek(0, os.SEEK_END)
        place = self._file.tell()
        self._file.write(_HEAD.pack(_MAGIC, len(body), zlib.crc32(body)) + body)
        self._file.flush()
        return place

    def add(self, name: str, stamp: list[int], samples: NDArray[np.int64], units: NDArray[np.int64]) -> None:
        data = samples.astype("<u4").tobytes() + units.astype("<u4").tobytes()
        self._places[name] = self._append({"name": name, "stamp": stamp}, data)
        self.stamps[name] = stamp

    def get(self, name: str) -> tuple[NDArray[Any], NDArray[Any]]:
        """Samples and units of a recording."""
        self._file.seek(self._places[name])
        piece = self._piece()
        if piece is None:
            raise DataError(f"{self.path} was changed while it was read: run again.")
        both = np.frombuffer(piece[1], "<u4")
        return both[: len(both) // 2], both[len(both) // 2 :]


def _write(
    out: Path, recordings: list[Recording], part: _Part, ear: Cochlea, resolution: float
) -> tuple[int, str]:
    """The output, whole or not at all; how many spikes, and the type of their times."""
    import h5py

    latest = max((int(part.get(it.name)[0].max(initial=0)) for it in recordings), default=0)
    kind = time_type(latest / ear.sample_rate, resolution)
    labels = sorted({it.label for it in recordings})
    speakers = sorted({it.speaker for it in recordings if it.speaker is not None})
    handle, partial = tempfile.mkstemp(dir=out.parent, prefix=f".{out.name}-", suffix=".tmp")
    os.close(handle)
    spikes = 0
    try:
        with h5py.File(partial, "w") as store:
            group = store.create_group("spikes")
            group.attrs["units"] = ear.channels
            group.attrs["sample_rate"] = ear.sample_rate
            group.attrs["encoder"] = json.dumps(ear.key())
            smallest = np.uint16 if ear.channels <= 2**16 else np.uint32
            times = group.create_dataset("times", (len(recordings),), h5py.vlen_dtype(np.dtype(kind)))
            units = group.create_dataset("units", (len(recordings),), h5py.vlen_dtype(smallest))
            for row, it in enumerate(recordings):
                samples, channel = part.get(it.name)
                times[row] = (samples / ear.sample_rate).astype(kind)
                units[row] = channel.astype(smallest)
                spikes += len(samples)
            store["labels"] = np.array([labels.index(it.label) for it in recordings], dtype=np.uint16)
            text = h5py.string_dtype()
            store.create_dataset("extra/keys", data=labels, dtype=text)
            store.create_dataset("extra/file", data=[it.name for it in recordings], dtype=text)
            if speakers:
                numbers = [speakers.index(it.speaker) for it in recordings if it.speaker is not None]
                store["extra/speaker"] = np.array(numbers, dtype=np.uint16)
                store.create_dataset("extra/speaker_names", data=speakers, dtype=text)
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        os.chmod(partial, 0o644)
        os.replace(partial, out)
    except BaseException:  # Ctrl-C too: leave no half file
        Path(partial).unlink(missing_ok=True)
        raise
    return spikes, kind


def time_type(latest: float, resolution: float) -> Literal["float16", "float32"]:
    """The type for times up to ``latest`` (s) whose steps are at most ``resolution`` (ms).

    Example:
        >>> from spiketide.encoders.folder import time_type
        >>> time_type(1.9, 1.0), time_type(2.1, 1.0)
        ('float16', 'float32')
    """
    if latest > 1000.0:
        return "float32"
    return "float16" if 1000.0 * float(np.spacing(np.float16(latest))) <= resolution else "float32"
