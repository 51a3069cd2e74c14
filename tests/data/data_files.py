"""Small files in the exact formats, written here independently of the readers."""

from __future__ import annotations

import struct
import wave
from itertools import chain
from pathlib import Path

import numpy as np


def idx_bytes(array: np.ndarray) -> bytes:
    """The idx format, written here independently of the reader."""
    head = struct.pack(">BBBB", 0, 0, {"uint8": 8, "int32": 12}[array.dtype.name], array.ndim)
    sizes = struct.pack(f">{array.ndim}I", *array.shape)
    return head + sizes + array.astype(array.dtype.newbyteorder(">")).tobytes()


def write_wav(path: Path, samples: np.ndarray, rate: int = 8000, channels: int = 1, width: int = 2) -> None:
    with wave.open(str(path), "wb") as out:
        out.setnchannels(channels)
        out.setsampwidth(width)
        out.setframerate(rate)
        out.writeframes(samples.astype("<i2").tobytes())


def mnist_images(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    images = np.random.RandomState(seed).randint(0, 256, size=(n, 28, 28)).astype(np.uint8)
    labels = (np.arange(n) % 10).astype(np.uint8)
    images[:, 0, 0] = labels  # every image says what it is
    images[:, 27, 27] = 255
    return images, labels


SPEAKERS = ("george", "lucas", "theo")
REPETITIONS = 7


def write_recordings(folder: Path) -> None:
    folder.mkdir(parents=True)
    rng = np.random.RandomState(0)
    for digit in range(10):
        for speaker in SPEAKERS:
            for index in range(REPETITIONS):
                time = np.arange(rng.randint(400, 1200))
                tone = 3000 * np.sin(time * (0.1 + 0.2 * digit)) + rng.normal(scale=50, size=len(time))
                write_wav(folder / f"{digit}_{speaker}_{index}.wav", tone)


def everything(parts: dict[str, list[int]]) -> list[int]:
    """The numbers of all parts, sorted."""
    return sorted(chain.from_iterable(parts.values()))
