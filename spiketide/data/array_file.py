"""Arrays of one's own in a file, for recipes."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, ShapeError, unknown
from .arrays import ArrayData

PARTS = ("train", "val", "test")
NAMES = frozenset(f"{kind}_{part}" for kind in ("x", "y", "lengths") for part in PARTS)
"""What may stand in a file."""


class ArrayFile(ArrayData):
    """The arrays of an ``.npz`` file, as ``numpy.savez`` writes it: :class:`.arrays.ArrayData` that a recipe can name.

    The file holds ``x_train`` and ``y_train`` and, if there are any, ``x_val`` and ``y_val``, ``x_test`` and ``y_test``.
    Sequences of different lengths stand padded in one array ``(n, T, *N)``, with ``lengths_train`` (``lengths_val``,
    ``lengths_test``) ``(n,)`` beside them.

    Example:
        >>> import os, tempfile
        >>> import numpy as np
        >>> from spiketide.data import ArrayFile
        >>> path = os.path.join(tempfile.mkdtemp(), "songs.npz")
        >>> x, y = np.random.default_rng(0).random((40, 9, 3)), np.arange(40) % 2
        >>> np.savez(path, x_train=x, y_train=y, lengths_train=np.full(40, 7))
        >>> batch = next(iter(ArrayFile(path, temporal=True, batch_size=8).train_dataloader()))
        >>> batch.x.shape, batch.lengths.tolist()
        (torch.Size([7, 8, 3]), [7, 7, 7, 7, 7, 7, 7, 7])

        In a recipe::

            data:
              class_path: spiketide.data.ArrayFile
              init_args: {path: songs.npz, temporal: true}

    Args:
        path: the file; a relative path begins at the working directory.
        temporal: whether the first axis of a sample is time.
        class_names: names of the classes; ``None``: their numbers.
        **common: see :class:`~spiketide.data.base.DataModule`.

    Raises:
        DataError: no such file, none of NumPy's, arrays of objects, arrays that are missing, or of unknown names.
        ShapeError: lengths that do not fit; see also :class:`.arrays.ArrayData`.
    """

    def __init__(
        self, path: str, *, temporal: bool, class_names: list[str] | None = None, **common: Any
    ) -> None:
        arrays = _read(Path(path))
        parts: dict[str, Any] = dict(arrays)
        for part in PARTS:
            lengths = arrays.get(f"lengths_{part}")
            if lengths is None:
                continue
            parts[f"x_{part}"] = _cut(arrays[f"x_{part}"], lengths, part, temporal)
            y = arrays.get(f"y_{part}")
            if y is not None and y.ndim == 2:  # a label for every step
                parts[f"y_{part}"] = [row[:steps] for row, steps in zip(y, lengths.tolist(), strict=False)]
        super().__init__(
            parts["x_train"],
            parts["y_train"],
            parts.get("x_test"),
            parts.get("y_test"),
            temporal=temporal,
            class_names=class_names,
            x_val=parts.get("x_val"),
            y_val=parts.get("y_val"),
            **common,
        )


def _read(path: Path) -> dict[str, NDArray[Any]]:
    """All arrays of a file."""
    if not path.is_file():
        raise DataError(
            f"ArrayFile found no file {path.resolve()}: numpy.savez(path, x_train=..., y_train=...) makes one."
        )
    try:
        with path.open("rb") as raw:
            file = np.load(raw, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise DataError(
                    f"ArrayFile expected several arrays in {path}, got one: write them with numpy.savez, each by its name."
                )
            arrays = {name: file[name] for name in file.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"ArrayFile cannot read {path} ({error}): it takes plain numbers as numpy.savez writes them. Sequences of different "
            "lengths: pad them to one array, and give lengths_train."
        ) from error
    for name in arrays:
        if name not in NAMES:
            raise DataError(unknown(f"array in {path}:", name, sorted(NAMES)))
    for name in ("x_train", "y_train"):
        if name not in arrays:
            raise DataError(
                f"ArrayFile expected {name} in {path}, got {', '.join(sorted(arrays)) or 'nothing'}."
            )
    for part in PARTS:
        if f"lengths_{part}" in arrays and f"x_{part}" not in arrays:
            raise DataError(f"ArrayFile expected x_{part} beside lengths_{part} in {path}.")
    return arrays


def _cut(x: NDArray[Any], lengths: NDArray[Any], part: str, temporal: bool) -> list[NDArray[Any]]:
    """Sequences without their padding."""
    if not temporal:
        raise DataError(
            f"ArrayFile was given lengths_{part}, and samples without time: temporal=True, or no lengths."
        )
    fits = lengths.shape == x.shape[:1] and lengths.dtype.kind in "iu" and x.ndim > 1
    if not fits or (len(lengths) and not 1 <= int(lengths.min()) <= int(lengths.max()) <= x.shape[1]):
        raise ShapeError(
            f"ArrayFile expected lengths_{part} ({len(x)},), whole numbers from 1 to the steps of x_{part} {x.shape}, got "
            f"{lengths.dtype} {lengths.shape}"
            + (f" from {lengths.min()} to {lengths.max()}." if lengths.size else ".")
        )
    return [sample[:steps] for sample, steps in zip(x, lengths.tolist(), strict=True)]
