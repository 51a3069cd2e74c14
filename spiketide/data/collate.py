"""From samples to a batch: the only place where a time axis is moved to the front."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError, ShapeError
from ..types import UNLABELLED, Batch


def collate(x: Tensor | Sequence[Tensor], y: Tensor | Sequence[Tensor], *, temporal: bool) -> Batch:
    """One :class:`~spiketide.types.Batch` from samples that are sample-first.

    Sequences of one length come as one tensor and give ``lengths=None``; sequences given as a list are
    zero-padded to the longest of the batch and always give ``lengths``, even when they happen to be equal,
    so that a data set has one kind of batch.

    Example:
        >>> import torch
        >>> from spiketide.data import collate
        >>> batch = collate([torch.ones(3, 2), torch.ones(5, 2)], torch.tensor([0, 1]), temporal=True)
        >>> batch.x.shape, batch.lengths
        (torch.Size([5, 2, 2]), tensor([3, 5]))
        >>> collate(torch.ones(4, 1, 8, 8), torch.zeros(4, dtype=torch.long), temporal=False).x.shape
        torch.Size([4, 1, 8, 8])

    Shapes:
        static: ``x (B, *N)`` -> ``(B, *N)``.
        temporal: ``x (B, T, *N)`` or a list of ``B`` tensors ``(T_i, *N)`` -> ``(T, B, *N)``; ``lengths
            (B,)``.
        labels of steps: ``y (B, T)`` or a list of ``(T_i,)`` -> ``(T, B)``, past a sample's end
            :data:`spiketide.types.UNLABELLED`.

    Args:
        x: the samples, in main memory. Lists give float32.
        y: ``(B,)`` class numbers, or one a step.
        temporal: whether a sample's first axis is time.

    Raises:
        DataError: no samples at all.
        ShapeError: another number of labels than samples, a static list, or sequences of unlike features.
    """
    if len(x) == 0:
        raise DataError("collate expected at least one sample, got none: the data set or the batch is empty.")
    if isinstance(y, Tensor) and (y.dim() != 1 or len(y) != len(x)) and not (temporal and _fits(x, y)):
        raise ShapeError(
            f"collate expected one label for each of {len(x)} samples, y ({len(x)},), got {tuple(y.shape)}."
        )
    if not isinstance(y, Tensor) and not (temporal and _fits(x, y)):
        raise ShapeError(
            f"collate expected one label for each step of {len(x)} sequences, got {len(y)} rows of labels of lengths "
            f"{sorted({len(row) for row in y})} for sequences of {sorted({sample.shape[0] for sample in x})} steps."
        )
    y = _time_first(y)
    if isinstance(x, Tensor):
        if not temporal:
            return Batch(x, y, None)
        if x.dim() < 3:
            raise ShapeError(
                f"collate expected sequences (B, T, *N), got {tuple(x.shape)}: a sequence of single numbers "
                "has N = (1,), add the axis with x.unsqueeze(-1)."
            )
        return Batch(torch.from_numpy(np.ascontiguousarray(x.numpy().swapaxes(0, 1))), y, None)
    if not temporal:
        raise ShapeError(
            "collate expected one tensor (B, *N) for static samples, got a list; use torch.stack(x)."
        )
    features = {tuple(sample.shape[1:]) for sample in x}
    if len(features) > 1 or () in features:
        raise ShapeError(
            "collate expected sequences (T_i, *N) with one N and at least one feature axis, got N in "
            f"{sorted(features)}."
        )
    # NumPy copies in this thread. torch (pad_sequence, contiguous) wakes its thread pool for a few kilobytes,
    # which on a busy machine costs ten milliseconds a batch.
    lengths = [sample.shape[0] for sample in x]
    padded = np.zeros((max(lengths), len(x), *x[0].shape[1:]), dtype=np.float32)
    for number, sample in enumerate(x):
        padded[: lengths[number], number] = sample.numpy()
    return Batch(torch.from_numpy(padded), y, torch.tensor(lengths, dtype=torch.int64))


def _fits(x: Tensor | Sequence[Tensor], y: Tensor | Sequence[Tensor]) -> bool:
    """Whether there is one label for each step of each sample."""
    return len(y) == len(x) and all(
        row.dim() == 1 and len(row) == sample.shape[0] for row, sample in zip(y, x, strict=True)
    )


def _time_first(y: Tensor | Sequence[Tensor]) -> Tensor:
    if isinstance(y, Tensor):
        return y if y.dim() == 1 else torch.from_numpy(np.ascontiguousarray(y.numpy().T))
    padded = np.full((max(len(row) for row in y), len(y)), UNLABELLED, dtype=np.int64)
    for number, row in enumerate(y):
        padded[: len(row), number] = row.numpy()
    return torch.from_numpy(padded)
