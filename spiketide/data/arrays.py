"""Your own arrays, with the guarantees of every data set here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from ..errors import DataError, ShapeError
from .base import DataModule, Samples

Arrays: TypeAlias = ArrayLike | Tensor | Sequence[ArrayLike] | Sequence[Tensor]


class ArrayData(DataModule):
    """Arrays or tensors in memory, or lists of sequences of different lengths.

    Example:
        >>> import numpy as np
        >>> from spiketide.data import ArrayData
        >>> rng = np.random.default_rng(0)
        >>> songs = [rng.normal(size=(int(steps), 3)) for steps in rng.integers(5, 9, size=40)]
        >>> data = ArrayData(songs, [0, 1] * 20, temporal=True, batch_size=8)
        >>> batch = next(iter(data.train_dataloader()))
        >>> batch.x.shape[1:], batch.lengths.shape, data.num_classes
        (torch.Size([8, 3]), torch.Size([8]), 2)

    Shapes:
        sample-first, as arrays usually are: static ``x (n, *N)``; temporal ``x (n, T, *N)`` (one length, no
        ``lengths`` in the batches) or a list of ``n`` arrays ``(T_i, *N)`` (padded, with ``lengths``). ``y
        (n,)`` whole numbers from 0; or, where every step has a label of its own, ``(n, T)`` or a list of arrays
        ``(T_i,)``, with -1 where a step has none. Batches are time-first: ``(T, B, *N)``.

    Args:
        x_train: what may be trained on; validation is carved from it.
        y_train: its class numbers.
        x_test: test data; ``None``: there are none, and testing is refused.
        y_test: their class numbers.
        temporal: whether the first axis of a sample is time. An array does not tell, so you must.
        class_names: names of the classes; ``None``: their numbers, up to the largest in ``y_train``.
        **common: see :class:`~spiketide.data.base.DataModule`.

    Raises:
        ShapeError: another number of labels than samples, no time axis, or samples of unlike features.
        DataError: no samples, a sequence without steps, NaN or infinity, labels that are not whole or have no
            class.
    """

    def __init__(
        self,
        x_train: Arrays,
        y_train: Arrays,
        x_test: Arrays | None = None,
        y_test: Arrays | None = None,
        *,
        temporal: bool,
        class_names: Sequence[str] | None = None,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self._temporal = temporal
        x, y = _inputs(x_train, "x_train", temporal), _labels(y_train, "y_train", temporal)
        self._parts = {"train": Samples(x, y, torch.arange(len(y)))}
        self._shape = _feature_shape(x, temporal)
        if (x_test is None) != (y_test is None):
            raise DataError("ArrayData expected x_test and y_test together, or neither.")
        if x_test is not None and y_test is not None:
            x, y = _inputs(x_test, "x_test", temporal), _labels(y_test, "y_test", temporal)
            if _feature_shape(x, temporal) != self._shape:
                raise ShapeError(
                    f"ArrayData expected x_test with samples like x_train's, *N = {self._shape}, got "
                    f"{_feature_shape(x, temporal)}."
                )
            first = len(self._parts["train"].y)
            self._parts["test"] = Samples(x, y, torch.arange(first, first + len(y)))
        for part, samples in self._parts.items():
            if len(samples.x) != len(samples.y):
                raise ShapeError(
                    f"ArrayData expected one label for each of {len(samples.x)} samples in y_{part}, got "
                    f"{len(samples.y)}. Arrays are sample-first here: x (n, T, *N)."
                )
        if class_names is None:
            class_names = [str(label) for label in range(_largest(self._parts["train"]) + 1)]
        self._class_names = tuple(class_names)
        for part, samples in self._parts.items():
            self._checked(samples, "training" if part == "train" else part)

    @property
    def temporal(self) -> bool:
        """As it was given."""
        return self._temporal

    @property
    def class_names(self) -> tuple[str, ...]:
        """As they were given, or the numbers."""
        return self._class_names

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """The shape of one sample, without time."""
        return self._shape

    def read(self, part: Literal["train", "test"]) -> Samples:
        """The arrays as they were given."""
        if part not in self._parts:
            raise DataError("ArrayData was given no test data: pass x_test and y_test to test on them.")
        return self._parts[part]

    @property
    def split_indices(self) -> dict[str, list[int]]:
        """The rows of each part; test rows count on from the last training row."""
        if "test" in self._parts:
            return super().split_indices
        training = self._prepared_training()
        return {
            "train": training.ids[self._train_rows].tolist(),
            "validation": training.ids[self._validation_rows].tolist(),
            "test": [],
        }


def _tensor(value: Any, name: str) -> Tensor:
    try:
        return (
            value.detach().cpu().clone() if isinstance(value, Tensor) else torch.from_numpy(np.array(value))
        )
    except (TypeError, ValueError) as problem:
        raise ShapeError(
            f"ArrayData expected numbers of one shape in {name}, got something else ({problem}). Sequences "
            "of different lengths are a list of arrays (T_i, *N) with temporal=True."
        ) from problem


def _inputs(value: Any, name: str, temporal: bool) -> Tensor | list[Tensor]:
    if len(value) == 0:
        raise DataError(f"ArrayData got no samples in {name}: the data set is empty.")
    x: Tensor | list[Tensor]
    if temporal and isinstance(value, (list, tuple)):
        x = [_tensor(sample, f"{name}[{number}]").to(torch.float32) for number, sample in enumerate(value)]
        for number, sample in enumerate(x):
            if sample.dim() < 2 or sample.shape[1:] != x[0].shape[1:]:
                raise ShapeError(
                    f"ArrayData expected sequences (T_i, *N) of one N, *N = {tuple(x[0].shape[1:])}, got "
                    f"{tuple(sample.shape)} in {name}[{number}]. A sequence of single numbers has N = (1,)."
                )
            if sample.shape[0] == 0:
                raise DataError(
                    f"ArrayData expected at least one step in every sequence, {name}[{number}] has none."
                )
    else:
        x = _tensor(value, name).to(torch.float32)
        if x.dim() < (3 if temporal else 2):
            raise ShapeError(
                f"ArrayData expected {name} {'(n, T, *N)' if temporal else '(n, *N)'}, got {tuple(x.shape)}. "
                "Single numbers have N = (1,)."
            )
        if 0 in x.shape:
            raise DataError(f"ArrayData got an empty {name}, {tuple(x.shape)}.")
    for number, sample in enumerate(x if isinstance(x, list) else [x]):
        if not torch.isfinite(sample).all():
            if isinstance(x, Tensor):
                number = int((~torch.isfinite(x.flatten(1)).all(1)).nonzero()[0])
            raise DataError(
                f"ArrayData expected finite numbers, {name}[{number}] has NaN or infinity: clean it first."
            )
    return x


def _largest(samples: Samples) -> int:
    labels = samples.labels()
    return int(labels.max()) if len(labels) else 0  # none at all is refused with the other checks


def _labels(value: Any, name: str, temporal: bool) -> Tensor | list[Tensor]:
    if temporal and isinstance(value, (list, tuple)) and value and np.ndim(value[0]) == 1:
        return [
            _whole_numbers(_tensor(row, f"{name}[{number}]"), f"{name}[{number}]")
            for number, row in enumerate(value)
        ]
    y = _tensor(value, name)
    if y.dim() not in ((1, 2) if temporal else (1,)):
        raise ShapeError(f"ArrayData expected {name} (n,), one class number a sample, got {tuple(y.shape)}.")
    return _whole_numbers(y, name)


def _whole_numbers(y: Tensor, name: str) -> Tensor:
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise DataError(f"ArrayData expected whole class numbers from 0 in {name}, got {y.dtype}.")
    return y.to(torch.int64)


def _feature_shape(x: Tensor | list[Tensor], temporal: bool) -> tuple[int, ...]:
    if isinstance(x, Tensor):
        return tuple(x.shape[2:] if temporal else x.shape[1:])
    return tuple(x[0].shape[1:])
