"""Braille letters read by a robot's fingertip: tactile traces, as they are or as level-crossing events."""

from __future__ import annotations

import gzip
import io
import itertools
import pickle
import zlib
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..encoders.level_crossing import LevelCrossing
from ..errors import DataError, ParameterError, unknown
from .base import DataModule, Samples
from .download import RemoteFile, fetch

_TAXELS = 12
_LARGEST = 1 << 26
"""Bytes that the file may unpack to: the original has 10 MB."""


_RECONSTRUCT: Any = np.zeros(1).__reduce__()[0]
"""What pickles of arrays call first, wherever this NumPy keeps it."""


class Braille(DataModule):
    """27 Braille letters (space and A to Z), each read 50 times by a fingertip of 12 taxels that slides over it.

    A recording has 76 or 77 samples of 12 taxels, whole numbers from 55 to 255; only four taxels ever touch a dot. Here
    all have 77 steps: where there are 76, the last step has no event (the last value is repeated in traces).

    ``code="events"``: :class:`~spiketide.encoders.LevelCrossing` of each recording alone. ``code="traces"``: values over 255.

    There is no official split. Here every fifth repetition (0, 5, ..., 45) of every letter is the test part, 270
    recordings; validation takes whole repetitions of the other 40, drawn by ``seed``, of all letters alike.

    Example:
        >>> from spiketide.data import Braille
        >>> data = Braille(threshold=2.0)
        >>> data.sample_shape, data.num_classes, data.dt
        ((24,), 27, 25.0)

    Shapes:
        Batches ``x (77, B, 24)`` float32, up and down of taxel 0, of taxel 1, ... (``"traces"``: ``(77, B, 12)``); ``y
        (B,)``; no lengths.

    Args:
        code: ``"events"`` or ``"traces"``.
        threshold: of the events, in units of the taxels (1 of 255).
        mode: ``"send_on_delta"`` or ``"difference"``, see :class:`~spiketide.encoders.LevelCrossing`.
        max_events: events a step and direction at most ; ``None``: any number, as counts. ``"difference"`` has one anyway.
        **common: see :class:`~spiketide.data.base.DataModule`.

    Raises:
        ParameterError: an unknown code or mode, numbers out of their range, or more than one event with ``"difference"``.
        DataError: the file is missing and cannot be downloaded, is broken, or is not of this format. It is a pickle, and one that
            names anything but NumPy arrays is refused before any of it is run.

    Reference:
        S. F. Müller-Cleve et al., "Braille letter reading: A benchmark for spatio-temporal pattern recognition on
        neuromorphic hardware", Frontiers in Neuroscience 16, 2022, and the file of a tutorial of theirs,
        doi:10.5281/zenodo.6556273, CC BY 4.0; sampled at 40 Hz according to the authors' pages (the file does not say).
        Their events come from an upsampled signal with a refractory time, so **these are others**. Threshold and mode were
        chosen by a linear classifier (ridge) on the training repetitions alone, four folds by repetition: 94.5 % for one
        event a step at threshold 2; see ``docs/reference/data.md`` for the others.
    """

    letters: ClassVar[tuple[str, ...]] = ("Space", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    repetitions: ClassVar[int] = 50
    steps: ClassVar[int] = 77
    dt: ClassVar[float] = 25.0
    """Milliseconds of a step."""
    file: ClassVar[RemoteFile] = RemoteFile(
        "braille_touch/tutorial5_braille_spiking_data.pkl.gz",
        "https://zenodo.org/records/6556273/files/tutorial5_braille_spiking_data.pkl.gz",
        301_542,
        "f48a449264a00ee665df62329f2364059e49d0d0faeee4993e595d08616e5a1c",
    )

    def __init__(
        self,
        *,
        code: Literal["events", "traces"] = "events",
        threshold: float = 2.0,
        mode: Literal["send_on_delta", "difference"] = "send_on_delta",
        max_events: int | None = 1,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        if code not in ("events", "traces"):
            raise ParameterError(unknown("code", code, ("events", "traces")))
        if mode == "difference" and max_events not in (None, 1):
            raise ParameterError(
                f"Braille expected mode='send_on_delta' with max_events={max_events}: 'difference' has one event a step."
            )
        self.code = code
        self.encoder = LevelCrossing(
            threshold=threshold, mode=mode, max_events=None if mode == "difference" else max_events
        )
        self._recordings: list[NDArray[np.float64]] | None = None

    @property
    def temporal(self) -> bool:
        """True."""
        return True

    @property
    def class_names(self) -> tuple[str, ...]:
        """``"Space"``, then ``"A"`` to ``"Z"``."""
        return self.letters

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """``(24,)``, or ``(12,)`` for traces."""
        return (_TAXELS if self.code == "traces" else 2 * _TAXELS,)

    def prepare_data(self) -> None:
        """Download what is missing."""
        fetch([self.file], self.data_root, title="Braille")

    def read(self, part: Literal["train", "test"]) -> Samples:
        """One part; ``ids`` are ``50 letter + repetition``."""
        traces = self._traces()
        ids = [n for n in range(len(traces)) if (n % self.repetitions % 5 == 0) == (part == "test")]
        y = torch.tensor([number // self.repetitions for number in ids])
        if self.code == "traces":
            whole = [np.pad(traces[n], ((0, self.steps - len(traces[n])), (0, 0)), mode="edge") for n in ids]
            return Samples(
                torch.from_numpy(np.stack(whole).astype(np.float32)), y, torch.tensor(ids), scale=255.0
            )
        x = np.zeros((len(ids), self.steps, *self.sample_shape), dtype=np.float32)
        for row, number in enumerate(ids):
            events = self.encoder(traces[number])
            x[row, : len(events)] = events
        return Samples(torch.from_numpy(x), y, torch.tensor(ids))

    def carve(self, samples: Samples) -> tuple[Tensor, Tensor]:
        """Whole repetitions, drawn by ``seed``: what the test measures too."""
        repetition = (samples.ids % self.repetitions).numpy()
        known = np.unique(repetition)
        count = round(self.validation_fraction * len(known))
        chosen = np.isin(repetition, np.random.RandomState(self.seed).permutation(known)[:count])
        rows = torch.from_numpy(chosen)
        return (~rows).nonzero().flatten(), rows.nonzero().flatten()

    def _traces(self) -> list[NDArray[np.float64]]:
        """All recordings, by letter, then by repetition."""
        if self._recordings is None:
            path = self.data_root / self.file.path
            found = read_braille(path)
            wanted = list(itertools.product(self.letters, range(self.repetitions)))
            lacking = [key for key in wanted if key not in found]
            if lacking or len(found) != len(wanted):
                extra = sorted(set(found) - set(wanted))
                first = f"{lacking[0]} is missing" if lacking else f"{extra[0]} is not one of them"
                raise _broken(path, f"expected {self.repetitions} repetitions of each letter; {first}")
            longest = max(len(trace) for trace in found.values())
            if longest > self.steps:
                raise _broken(path, f"expected at most {self.steps} samples a recording, one has {longest}")
            self._recordings = [found[key] for key in wanted]
        return self._recordings


def read_braille(path: Path) -> dict[tuple[str, int], NDArray[np.float64]]:
    """The recordings of the file, ``(letter, repetition) -> (T, 12)``.

    Raises:
        DataError: missing, truncated, not a gzipped pickle, one that names more than NumPy arrays, or of other content.
    """
    try:
        with gzip.open(path) as packed:
            raw = packed.read(_LARGEST + 1)
    except FileNotFoundError as problem:
        raise DataError(
            f"{path} expected, and it is not there: run prepare_data(), or put it there."
        ) from problem
    except (EOFError, zlib.error, gzip.BadGzipFile) as problem:
        raise _broken(path, f"its gzip stream is broken ({problem})") from problem
    except OSError as problem:
        raise DataError(f"{path} cannot be read: {problem}.") from problem
    if len(raw) > _LARGEST:
        raise _broken(path, f"it unpacks to more than {_LARGEST >> 20} MB, the original has 10 MB")
    try:
        content = _Arrays(raw, path).load()
    except DataError:
        raise
    except Exception as problem:  # a broken pickle fails in any way that its opcodes can
        raise _broken(path, f"it is not a whole pickle ({type(problem).__name__}: {problem})") from problem
    if not isinstance(content, list):
        raise _broken(path, f"expected a list of recordings, it holds a {type(content).__name__}")
    found: dict[tuple[str, int], NDArray[np.float64]] = {}
    for number, it in enumerate(content):
        key, trace = _recording(it, number, path)
        if key in found:
            raise _broken(path, f"letter {key[0]!r}, repetition {key[1]} is in it twice")
        found[key] = trace
    return found


def _recording(it: Any, number: int, path: Path) -> tuple[tuple[str, int], NDArray[np.float64]]:
    if not isinstance(it, dict) or not {"letter", "repetition", "taxel_data"} <= it.keys():
        raise _broken(
            path, f"recording {number} expected 'letter', 'repetition' and 'taxel_data', it has others"
        )
    letter, repetition, trace = it["letter"], it["repetition"], it["taxel_data"]
    if not isinstance(letter, str) or not isinstance(repetition, int):
        raise _broken(path, f"recording {number} has letter {letter!r:.40} and repetition {repetition!r:.40}")
    shape = getattr(trace, "shape", None)
    if not isinstance(trace, np.ndarray) or trace.ndim != 2 or len(trace) == 0 or trace.shape[1] != _TAXELS:
        raise _broken(path, f"recording {number} expected taxel_data (T, {_TAXELS}), it has {shape}")
    if not np.issubdtype(trace.dtype, np.floating) or not np.isfinite(trace).all():
        raise _broken(path, f"recording {number} expected finite floating taxel_data, it has others")
    if trace.min() < 0 or trace.max() > 255:
        raise _broken(path, f"recording {number} expected values from 0 to 255, it has others")
    return (letter, repetition), trace.astype(np.float64)


class _Arrays(pickle.Unpickler):
    """A pickle can name any function to call; this one knows those that make NumPy arrays, and no others."""

    known: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
        ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def __init__(self, raw: bytes, path: Path) -> None:
        super().__init__(io.BytesIO(raw))
        self.path = path

    def find_class(self, module: str, name: str) -> Any:
        """One of the known names."""
        if (module, name) not in self.known:
            raise DataError(
                f"{self.path} is a pickle that names {module}.{name}: expected NumPy arrays only. It was not loaded; get the "
                "file from its publisher."
            )
        return self.known[module, name]


def _broken(path: Path, why: str) -> DataError:
    return DataError(f"{path} is not the Braille data: {why}. Delete it and run again to download it.")
