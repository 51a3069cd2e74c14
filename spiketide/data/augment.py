"""Training samples that are changed each time they are seen; of spike frames: shifted channels and warped time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler

from ..errors import ParameterError
from ..types import Batch
from .base import DataModule, Samples, _Rows
from .collate import collate

Change = Callable[[Samples, Tensor, NDArray[np.int64]], "Tensor | list[Tensor]"]
"""Makes the samples of a training batch: from the part, their rows in it, and the epoch of each, what ``collate`` takes."""


class Changing(DataModule):
    """A data set whose training samples may be changed each time they are seen, in the order that it has without changes.

    A subclass says in :meth:`change` how. What it draws for a sample must be a function of ``seed``, the epoch and
    the number of the sample in the data set, and of nothing else: not of the batch, the processes or the workers,
    so a resumed run goes on as it would have. Validation and test samples are never changed.

    Args:
        **common: see :class:`~spiketide.data.base.DataModule`.
    """

    def change(self) -> Change | None:
        """What is done to training samples; ``None``: nothing."""
        return None

    def train_dataloader(self) -> DataLoader[Batch]:
        """Shuffled training batches, changed where that is asked for."""
        plain, change = super().train_dataloader(), self.change()
        if change is None:
            return plain
        inner, before = plain.dataset, plain.sampler
        assert isinstance(inner, _Rows) and isinstance(before, DistributedSampler)
        dataset = _ChangedRows(inner.samples, inner.rows, self.temporal, change)
        world, rank = self._processes()
        sampler = _WithEpoch(
            dataset, num_replicas=world, rank=rank, shuffle=True, seed=before.seed, drop_last=False
        )
        sampler.set_epoch(before.epoch)
        return self._loader(dataset, sampler, self.batch_size)


class Augmented(Changing):
    """A data set of spike frames whose training samples may be changed each time they are seen.

    - channels: all channels of a sample move by one whole number, drawn evenly from ``-channel_shift`` to
      ``channel_shift``; what leaves at one end is lost, zeros come in at the other;
    - time: frame ``t`` of the new sample is frame ``floor((t + 0.5) / f)`` of the old one, ``f`` drawn evenly
      from the range ``time_warp``: 1.1 is slower, by a tenth. Frames are repeated or left out, not mixed, so
      counts stay counts. A sequence gets ``round(f T)`` steps; where all samples have one length that length
      stays, and what runs over is cut.

    What is drawn for a sample is a function of ``seed``, the epoch and the number of the sample in the data set,
    and of nothing else: not of the batch, the processes or the workers, so a resumed run goes on as it would
    have. Validation and test samples are never changed.

    Args:
        channel_shift: most channels (as they are in a batch, after grouping) to move by; 0: none.
        time_warp: least and largest factor; ``None``: none.
        **common: see :class:`~spiketide.data.base.DataModule`.

    Raises:
        ParameterError: a negative shift, or factors that are not positive or not in order.
    """

    def __init__(
        self, *, channel_shift: int = 0, time_warp: tuple[float, float] | None = None, **common: Any
    ) -> None:
        super().__init__(**common)
        name = type(self).__name__
        if channel_shift < 0:
            raise ParameterError(f"{name} expected channel_shift of 0 or more channels, got {channel_shift}.")
        if time_warp is not None:
            low, high = (float(factor) for factor in time_warp)
            if not (0 < low <= high and math.isfinite(high)):
                raise ParameterError(
                    f"{name} expected time_warp as two positive factors, the smaller first, for example "
                    f"(0.9, 1.1), got {time_warp}."
                )
            time_warp = (low, high)
        self.channel_shift = channel_shift
        self.time_warp = time_warp

    def change(self) -> Change | None:
        """Moved and warped frames, where that is asked for."""
        if self.channel_shift == 0 and self.time_warp is None:
            return None
        return _Frames(self.seed, self.channel_shift, self.time_warp)


class _WithEpoch(DistributedSampler[Batch]):
    """Tells with each index the epoch, as ``epoch * samples + index``: workers know of it in no other way."""

    def __iter__(self) -> Iterator[Any]:
        first = self.epoch * len(self.dataset)  # type: ignore[arg-type]
        order: Iterator[Any] = super().__iter__()
        return (first + index for index in order)


class _ChangedRows(_Rows):
    def __init__(self, samples: Samples, rows: Tensor, temporal: bool, change: Change) -> None:
        super().__init__(samples, rows, temporal)
        self.change = change

    def __getitems__(self, indices: list[int]) -> Batch:
        """The batch; an index is ``epoch * samples + place``."""
        epochs, places = np.divmod(np.array(indices, dtype=np.int64), len(self.rows))
        rows = self.rows[torch.from_numpy(places)]
        changed = self.change(self.samples, rows, epochs)
        return collate(changed, self.samples.choose(rows), temporal=self.temporal)


@dataclass(frozen=True)
class _Frames:
    """What is done to spike frames."""

    seed: int
    shift: int
    warp: tuple[float, float] | None

    def __call__(self, samples: Samples, rows: Tensor, epochs: NDArray[np.int64]) -> Tensor | list[Tensor]:
        x, _, ids, scale = samples
        fixed = isinstance(x, Tensor)
        changed = [
            torch.from_numpy(self._changed(x[row].numpy(), epoch, int(ids[row]), fixed)) / scale
            for epoch, row in zip(epochs.tolist(), rows.tolist(), strict=True)
        ]
        return torch.stack(changed) if fixed else changed

    def _changed(self, frames: NDArray[Any], epoch: int, number: int, fixed: bool) -> NDArray[Any]:
        draws = np.random.SeedSequence((self.seed, epoch, number)).generate_state(2) / 2.0**32
        if self.warp is not None:
            low, high = self.warp
            factor = low + (high - low) * float(draws[0])
            frames = warped(frames, factor, len(frames) if fixed else None)
        if self.shift:
            frames = shifted(frames, int(draws[1] * (2 * self.shift + 1)) - self.shift)
        return frames


def warped(frames: NDArray[Any], factor: float, steps: int | None = None) -> NDArray[Any]:
    """The frames ``(T, *N)`` in ``factor`` times the time, cut or zero-padded to ``steps``.

    Example:
        >>> import numpy as np
        >>> from spiketide.data.augment import warped
        >>> warped(np.array([[1], [2], [3]]), 2.0).ravel().tolist()
        [1, 1, 2, 2, 3, 3]
        >>> warped(np.array([[1], [2], [3], [4]]), 0.5, 4).ravel().tolist()
        [2, 4, 0, 0]
    """
    length = max(1, round(factor * len(frames)))
    source = np.minimum(((np.arange(length) + 0.5) / factor).astype(np.int64), len(frames) - 1)
    if steps is None:
        return frames[source]
    result = np.zeros((steps, *frames.shape[1:]), dtype=frames.dtype)
    result[: min(steps, length)] = frames[source[:steps]]
    return result


def shifted(frames: NDArray[Any], by: int) -> NDArray[Any]:
    """The frames ``(T, C)`` with every channel moved up by ``by``, zeros where nothing came from.

    Example:
        >>> import numpy as np
        >>> from spiketide.data.augment import shifted
        >>> shifted(np.array([[1, 2, 3]]), 1).tolist(), shifted(np.array([[1, 2, 3]]), -5).tolist()
        ([[0, 1, 2]], [[0, 0, 0]])
    """
    result = np.zeros_like(frames)
    channels = frames.shape[1]
    if abs(by) < channels:
        result[:, max(by, 0) : channels + min(by, 0)] = frames[:, max(-by, 0) : channels - max(by, 0)]
    return result
