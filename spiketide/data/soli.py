"""SoLi: hand gestures in front of a radar, as range-Doppler images, labelled frame by frame."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import DataError, ParameterError
from ..types import UNLABELLED
from .base import DataModule, Samples, stratified_order

_PIXELS = 1024
_MANY = 1000
"""Pieces that a recording may have: the numbers of samples leave room for them."""


class SoLi(DataModule):
    """Eleven gestures, 32 x 32 range-Doppler images of one radar channel, in pieces of 40 frames.

    The files of deep-soli, as their authors publish them, put there by hand (there is no download here)::

        soli/file_half.json          {"train": ["0_8_4", ...], "eval": [...]}     from the folder config of their repository
        soli/dsp/0_8_4.h5            gesture_session_instance: ch0 .. ch3 (frames, 1024), label (frames,) or (frames, 1)

    ``"train"`` is what may be trained on, validation included; ``"eval"`` is the test part. A recording of ``n`` frames
    gives ``ceil(n / 40)`` pieces: 0 to 39, 40 to 79, ..., and last the frames ``n - 40`` to ``n - 1``, which overlap with
    the piece before. One with fewer frames is repeated from its beginning. Frames of class 11, the background without a
    hand, are unlabelled, and pieces of nothing else are left out.

    Validation takes whole recordings, stratified by gesture: pieces of one recording overlap. Test and training share
    sessions (people) in the published split, and so do validation and training.

    Example:
        >>> from spiketide.data import SoLi
        >>> data = SoLi(channel=3)
        >>> data.sample_shape, data.num_classes, data.steps
        ((1024,), 11, 40)

    Shapes:
        Batches ``x (40, B, 1024)`` float32 in [0, 1]; ``y (40, B)``, -1 for a frame without a gesture; no lengths.

    Args:
        channel: 0 to 3, which of the four images.
        steps: frames in a piece.
        scale: what the values in the files are divided by; ``None``: 255 for whole numbers, 1 for floating ones. Beyond [0, 1]
            they are cut off. Images are kept as bytes in memory.
        **common: see :class:`~spiketide.data.base.DataModule`.

    Raises:
        ParameterError: a channel that is not 0 to 3, steps below 1, or a scale that is not above 0.
        DataError: files missing, broken or of another format.

    Reference:
        S. Wang et al., "Interacting with Soli", UIST 2016 (the data; their program turns floating values 0 to 1 into bytes,
        as here). Pieces, the one channel and the left-out background as in Yin, Corradi & Bohté 2021.
        The data were not at hand: format and split file are those of the authors' repository, the reader is tested on files
        written in that format. Not known, and our choice: that values are floating in [0, 1], that background counts as
        unlabelled where a recording mixes it with a gesture, and which order the gestures of the paper have among the
        numbers 0 to 10.
    """

    background: ClassVar[int] = 11

    def __init__(
        self, *, channel: int = 3, steps: int = 40, scale: float | None = None, **common: Any
    ) -> None:
        super().__init__(**common)
        if channel not in range(4):
            raise ParameterError(f"SoLi expected a channel from 0 to 3, got {channel!r}.")
        if steps < 1:
            raise ParameterError(f"SoLi expected steps of 1 or more, got {steps}.")
        if scale is not None and not 0 < scale < float("inf"):
            raise ParameterError(f"SoLi expected a scale above 0, or None, got {scale!r}.")
        self.channel, self.steps, self.scale = channel, steps, scale

    @property
    def temporal(self) -> bool:
        """True."""
        return True

    @property
    def class_names(self) -> tuple[str, ...]:
        """``"0"`` to ``"10"``, the numbers in the files."""
        return tuple(map(str, range(self.background)))

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """``(1024,)``."""
        return (_PIXELS,)

    def prepare_data(self) -> None:
        """Say where the files belong when they are not there."""
        self._split()

    def read(self, part: Literal["train", "test"]) -> Samples:
        """Pieces of one part; ``ids`` are ``1000 recording + piece``, recordings counted through both lists."""
        split = self._split()
        names = split["train" if part == "train" else "eval"]
        first = 0 if part == "train" else len(split["train"])
        images: list[NDArray[np.uint8]] = []
        labels: list[NDArray[np.int64]] = []
        ids: list[int] = []
        for number, name in enumerate(names, start=first):
            x, y = self._recording(self.data_root / "soli" / "dsp" / f"{name}.h5")
            for piece, frames in enumerate(pieces(len(x), self.steps)):
                if (y[frames] != UNLABELLED).any():
                    images.append(x[frames])
                    labels.append(y[frames])
                    ids.append(_MANY * number + piece)
        if not ids:
            raise DataError(
                f"The {part} part of SoLi has no frame with a gesture: are the labels of these files 0 to {self.background - 1}?"
            )
        return Samples(
            torch.from_numpy(np.stack(images)),
            torch.from_numpy(np.stack(labels)),
            torch.tensor(ids),
            scale=255.0,
        )

    def carve(self, samples: Samples) -> tuple[Tensor, Tensor]:
        """Whole recordings, stratified by gesture."""
        recording = samples.ids.numpy() // _MANY
        known = np.unique(recording)
        names = self._split()["train"]
        gesture = np.array([int(names[number].split("_")[0]) for number in known])
        order = known[stratified_order(gesture, self.seed)]
        chosen = np.isin(recording, order[: round(self.validation_fraction * len(order))])
        rows = torch.from_numpy(chosen)
        return (~rows).nonzero().flatten(), rows.nonzero().flatten()

    def _split(self) -> dict[str, list[str]]:
        path = self.data_root / "soli" / "file_half.json"
        try:
            split = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as problem:
            raise DataError(
                f"SoLi expected {path} and recordings {path.parent / 'dsp'}/0_8_4.h5 ..., and they are not there. Get the data "
                "set from the link in the repository deep-soli of its authors and the list from its folder config, and put "
                "both there, or set SPIKETIDE_DATA (or the argument root) to the folder that holds soli/."
            ) from problem
        except (OSError, ValueError) as problem:
            raise DataError(f"{path} is not a whole JSON file ({problem}). Get it again.") from problem
        parts: dict[str, list[str]] = {}
        for part in ("train", "eval"):
            names = split.get(part) if isinstance(split, dict) else None
            if not isinstance(names, list) or not names or not all(_is_name(name) for name in names):
                raise DataError(
                    f"{path} expected lists of names such as '0_8_4' under 'train' and 'eval'; {part!r} is not one."
                )
            parts[part] = names
        twice = {name for name in parts["train"] if name in set(parts["eval"])}
        if twice or len(set(parts["train"] + parts["eval"])) < len(parts["train"] + parts["eval"]):
            which = f"{min(twice)} is in both" if twice else "a name is in one of them twice"
            raise DataError(f"{path} expected 'train' and 'eval' to name every recording once; {which}.")
        return parts

    def _recording(self, path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Images as bytes ``(n, 1024)`` and the label of each, background unlabelled."""
        import h5py

        try:
            with h5py.File(path) as store:
                x, y = np.asarray(store[f"ch{self.channel}"]), np.asarray(store["label"])
        except FileNotFoundError as problem:
            raise DataError(f"SoLi expected {path}, and it is not there: is the data set whole?") from problem
        except (OSError, KeyError) as problem:
            raise DataError(
                f"{path} is broken, or has no dataset ch{self.channel} or label ({problem}). Get it again."
            ) from problem
        if x.ndim != 2 or x.shape[1] != _PIXELS or len(x) == 0:
            raise DataError(f"{path} expected ch{self.channel} (frames, {_PIXELS}), it has {x.shape}.")
        if len(x) > _MANY * self.steps:
            raise DataError(f"{path} expected at most {_MANY * self.steps} frames, it has {len(x)}.")
        if y.shape not in ((len(x),), (len(x), 1)):
            raise DataError(f"{path} expected one label for each of {len(x)} frames, it has {y.shape}.")
        y = y.ravel()
        labels = y.astype(np.int64)
        if not np.array_equal(labels, y) or labels.min() < 0 or labels.max() > self.background:
            raise DataError(f"{path} expected whole labels from 0 to {self.background}, it has others.")
        whole = np.issubdtype(x.dtype, np.integer)
        if not whole and not np.isfinite(x).all():
            raise DataError(f"{path} expected finite values in ch{self.channel}, it has NaN or infinity.")
        if self.scale is None and not whole and x.max() > 2:
            raise DataError(
                f"{path} expected floating values in [0, 1] in ch{self.channel}, it has up to {x.max():.4g}: give the scale, "
                "for example scale=255."
            )
        scale = (255.0 if whole else 1.0) if self.scale is None else self.scale
        image = np.rint(255.0 * np.clip(x / scale, 0.0, 1.0)).astype(np.uint8)
        return image, np.where(labels == self.background, UNLABELLED, labels)


def pieces(frames: int, steps: int) -> list[NDArray[np.int64]]:
    """Frames of each piece: whole ones in a row, the last moved back to the end; a short recording repeated.

    Example:
        >>> from spiketide.data.soli import pieces
        >>> [piece.tolist() for piece in pieces(5, 3)], [piece.tolist() for piece in pieces(2, 3)]
        ([[0, 1, 2], [2, 3, 4]], [[0, 1, 0]])
    """
    if frames < steps:
        return [np.arange(steps) % frames]
    starts = [*range(0, frames - steps, steps), frames - steps]
    return [np.arange(start, start + steps) for start in starts]


def _is_name(name: object) -> bool:
    return (
        isinstance(name, str)
        and len(name.split("_")) == 3
        and all(number.isdecimal() for number in name.split("_"))
    )
