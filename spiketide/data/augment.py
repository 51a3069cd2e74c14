"""Augmentation of spike frames while training: shifted channels and warped time."""

from __future__ import annotations

import math
from collections.abc import Iterator
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


class Augmented(DataModule):
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

    def train_dataloader(self) -> DataLoader[Batch]:
        """Shuffled training batches, changed where that is asked for."""
        if self.channel_shift == 0 and self.time_warp is None:
            return super().train_dataloader()
        plain = super().train_dataloader()  # the order of the epochs is that of the data set without changes
        inner = plain.dataset
        assert isinstance(inner, _Rows)
        dataset = _ChangedRows(
            inner.samples, inner.rows, self.temporal, self.seed, self.channel_shift, self.time_warp
        )
        world, rank = self._processes()
        before = plain.sampler
        assert isinstance(before, DistributedSampler)
        sampler = _WithEpoch(
            dataset, num_replicas=world, rank=rank, shuffle=True, seed=before.seed, drop_last=False
        )
        sampler.set_epoch(before.epoch)
        return self._loader(dataset, sampler, self.batch_size)


class _WithEpoch(DistributedSampler[Batch]):
    """Tells with each index the epoch, as ``epoch * samples + index``: workers know of it in no other way."""

    def __iter__(self) -> Iterator[Any]:
        first = self.epoch * len(self.dataset)  # type: ignore[arg-type]
        order: Iterator[Any] = super().__iter__()
        return (first + index for index in order)


class _ChangedRows(_Rows):
    def __init__(
        self,
        samples: Samples,
        rows: Tensor,
        temporal: bool,
        seed: int,
        shift: int,
        warp: tuple[float, float] | None,
    ) -> None:
        super().__init__(samples, rows, temporal)
        self.seed, self.shift, self.warp = seed, shift, warp

    def __getitems__(self, indices: list[int]) -> Batch:
        chosen = [divmod(index, len(self.rows)) for index in indices]
        rows = self.rows[torch.tensor([index for _, index in chosen])]
        x, y, ids, scale = self.samples
        changed = [
            torch.from_numpy(self._changed(x[row].numpy(), epoch, int(ids[row]))) / scale
            for (epoch, _), row in zip(chosen, rows.tolist(), strict=True)
        ]
        together = torch.stack(changed) if isinstance(x, Tensor) else changed
        return collate(together, y[rows], temporal=self.temporal)

    def _changed(self, frames: NDArray[Any], epoch: int, number: int) -> NDArray[Any]:
        draws = np.random.SeedSequence((self.seed, epoch, number)).generate_state(2) / 2.0**32
        if self.warp is not None:
            low, high = self.warp
            factor = low + (high - low) * float(draws[0])
            fixed = isinstance(self.samples.x, Tensor)
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
