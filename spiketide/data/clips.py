"""One-second clips of sound, and their features computed by several processes.

Apart from the data set, because each process imports this file: without Lightning that is seconds less.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import wave as wave_format
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .features import FrontEnd

log = logging.getLogger("spiketide.data")

RATE = 16000
"""Samples a second of every recording, and samples of a clip: one second."""

_BLOCK = 256
"""Clips whose features a process computes at once."""


class Clip(NamedTuple):
    """One second of sound: a file of a word, or a piece of a recording of noise."""

    path: Path
    begin: int | None = None
    """First sample of the piece; ``None``: a whole file."""


def read_wave(path: Path) -> NDArray[np.float32]:
    """The samples of one 16 kHz mono 16-bit recording, in [-1, 1).

    Raises:
        DataError: not there, truncated, empty, or of another format.
    """
    remedy = "Copy it again from the archive, or remove it."
    try:
        with wave_format.open(str(path), "rb") as sound:
            form = sound.getnchannels(), sound.getsampwidth(), sound.getframerate()
            promised = sound.getnframes()
            samples = sound.readframes(promised)
    except (OSError, wave_format.Error, EOFError) as problem:
        raise DataError(
            f"{path} cannot be read, is truncated or not a wav file ({problem or 'it ends too early'}). {remedy}"
        ) from problem
    if form != (1, 2, RATE):
        raise DataError(
            f"{path} expected one channel of 2 bytes at {RATE} Hz, it has {form[0]} of {form[1]} at {form[2]} Hz. {remedy}"
        )
    if len(samples) != 2 * promised or promised == 0:
        raise DataError(
            f"{path} is truncated or empty: its header promises {promised} samples, it has {len(samples) // 2}. {remedy}"
        )
    return np.frombuffer(samples, "<i2").astype(np.float32) / np.float32(32768)


def read_clip(clip: Clip, place: str = "middle") -> NDArray[np.float32]:
    """One second of sound, short recordings placed as :func:`one_second` says.

    Raises:
        DataError: as :func:`read_wave`.
    """
    wave = read_wave(clip.path)
    return one_second(wave, place) if clip.begin is None else wave[clip.begin : clip.begin + RATE]


def one_second(wave: NDArray[np.float32], place: str = "middle") -> NDArray[np.float32]:
    """The middle second of a recording, or the recording in the middle of a second of zeros.

    Example:
        >>> import numpy as np
        >>> from spiketide.data.clips import one_second
        >>> one_second(np.ones(15998, np.float32))[[0, 1, -2, -1]].tolist(), float(one_second(np.arange(16003.0))[0])
        ([0.0, 1.0, 1.0, 0.0], 1.0)

    Args:
        wave: ``(n,)``.
        place: ``"middle"``; ``"start"``: the first second, or zeros behind the recording.
    """
    spare = len(wave) - RATE
    if place == "start":
        return wave[:RATE] if spare >= 0 else np.pad(wave, (0, -spare))
    if spare >= 0:
        return wave[spare // 2 : spare // 2 + RATE]
    lack = -spare
    return np.pad(wave, (lack // 2, lack - lack // 2))


def in_order(
    front: FrontEnd, clips: Sequence[Clip], *, place: str = "middle", jobs: int | None = None
) -> Iterator[NDArray[np.float32]]:
    """The features of the clips, block by block, computed by some processes.

    Args:
        front: the front end.
        clips: what to read.
        place: see :func:`one_second`.
        jobs: processes; ``None``: one for each core, but one alone where that takes seconds only.
    """
    blocks = [clips[begin : begin + _BLOCK] for begin in range(0, len(clips), _BLOCK)]
    if jobs is None:
        jobs = (os.cpu_count() or 1) if len(blocks) > 8 else 1
    done = 0
    if min(jobs, len(blocks)) > 1:
        # Not forked: threads of torch and Numba do not survive that.
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(min(jobs, len(blocks)), mp_context=context, initializer=_worker)
        try:
            for block in pool.map(_block, [front] * len(blocks), blocks, [place] * len(blocks)):
                yield block
                done += 1
        except BrokenProcessPool as problem:
            log.warning(
                "a process that computed features died (%s), perhaps for want of memory, or because the main module does not "
                'guard its code with if __name__ == "__main__"; going on with this process alone.',
                problem,
            )
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    for clips_left in blocks[done:]:
        yield _block(front, clips_left, place)


def _worker() -> None:
    """Ctrl-C is the parent's: it stops the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _block(front: FrontEnd, clips: Iterable[Clip], place: str) -> NDArray[np.float32]:
    """On one thread: there is a process for every core, and matrix products round differently on several threads."""
    from threadpoolctl import threadpool_limits

    noise: dict[
        Path, NDArray[np.float32]
    ] = {}  # a recording of a minute is read once, not for each of its pieces
    waves = []
    for clip in clips:
        if clip.begin is None:
            waves.append(read_clip(clip, place))
        else:
            if clip.path not in noise:
                noise[clip.path] = read_wave(clip.path)
            waves.append(noise[clip.path][clip.begin : clip.begin + RATE])
    with threadpool_limits(1):
        return np.stack([front(wave) for wave in waves])
