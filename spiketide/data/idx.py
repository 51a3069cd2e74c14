"""The idx format of the MNIST family: a magic number, the sizes, the bytes."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError

_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def read_idx(path: str | Path) -> NDArray[np.generic]:
    """Read one idx file, gzipped when its name ends in ``.gz``.

    The file is verified while it is read: gzip's own checksum, the magic number, and the number of bytes that
    the header promises.

    Args:
        path: the file.

    Returns:
        The array, in the machine's byte order, with the sizes of the header.

    Raises:
        DataError: the file is missing, truncated, corrupt or not idx; the message names it and the remedy.

    Reference:
        Y. LeCun, C. Cortes, C. J. C. Burges, "The MNIST database of handwritten digits", section "the IDX
        file format".
    """
    path = Path(path)
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except FileNotFoundError as problem:
        raise DataError(
            f"{path} expected, and it is not there: run prepare_data(), or put it there."
        ) from problem
    except (EOFError, zlib.error, gzip.BadGzipFile) as problem:
        raise _broken(path, f"its gzip stream is broken ({problem})") from problem
    except OSError as problem:
        raise DataError(f"{path} cannot be read: {problem}.") from problem
    if len(raw) < 4 or raw[0] != 0 or raw[1] != 0 or raw[2] not in _DTYPES:
        raise _broken(
            path,
            f"an idx file begins with 00 00 <type> <axes>, this one with {raw[:4].hex(' ') or 'nothing'}",
        )
    axes = raw[3]
    start = 4 + 4 * axes
    if len(raw) < start:
        raise _broken(path, f"the header of {axes} sizes needs {start} bytes, the file has {len(raw)}")
    sizes = tuple(int(size) for size in np.frombuffer(raw, ">u4", axes, offset=4))
    dtype = np.dtype(_DTYPES[raw[2]])
    expected = start + math.prod(sizes) * dtype.itemsize
    if len(raw) != expected:
        raise _broken(path, f"its header promises {expected} bytes for sizes {sizes}, it has {len(raw)}")
    return np.frombuffer(raw, dtype, offset=start).reshape(sizes).astype(dtype.newbyteorder("="))


def _broken(path: Path, why: str) -> DataError:
    return DataError(
        f"{path} is truncated or corrupt: {why}. Delete it and run again to download it, or copy it again."
    )
