"""Your own arrays, with the guarantees of every data set here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ..errors import DataError, ParameterError, ShapeError
from .base import DataModule, Samples

Arrays: TypeAlias = ArrayLike | Tensor | Sequence[ArrayLike] | Sequence[Tensor]

SEQUENCES = "Sequences of different lengths are a list of arrays (T_i, *N) with temporal=True."


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

        Validated on sequences of your own choice, of another singer perhaps, instead of a tenth of the training data:

        >>> data = ArrayData(songs[:30], [0, 1] * 15, x_val=songs[30:], y_val=[0, 1] * 5, temporal=True)
        >>> {part: len(rows) for part, rows in data.split_indices.items()}
        {'train': 30, 'validation': 10, 'test': 0}

    Shapes:
        sample-first, as arrays usually are: static ``x (n, *N)``; temporal ``x (n, T, *N)`` (one length, no
        ``lengths`` in the batches) or a list of ``n`` arrays ``(T_i, *N)`` (padded, with ``lengths``). ``y
        (n,)`` whole numbers from 0; or, where every step has a label of its own, ``(n, T)`` or a list of arrays
        ``(T_i,)``, with -1 where a step has none. Batches are time-first: ``(T, B, *N)``.

    Args:
        x_train: what may be trained on; unless ``x_val`` is given, validation is carved from it.
        y_train: its class numbers.
        x_test: test data; ``None``: there are none, and testing is refused.
        y_test: their class numbers.
        temporal: whether the first axis of a sample is time. An array does not tell, so you must.
        class_names: names of the classes; ``None``: their numbers, up to the largest in ``y_train``.
        x_val: validation data of your own; ``None``: ``validation_fraction`` of the training data, by class.
        y_val: their class numbers.
        **common: see :class:`~spiketide.data.base.DataModule`. With ``x_val`` nothing is carved: leave
            ``validation_fraction`` out, or give 0.

    Raises:
        ShapeError: another number of labels than samples, no time axis, samples of unlike features, or labels in columns or
            one-hot.
        DataError: no samples, a sequence without steps, NaN or infinity, also as float32, complex numbers or text, labels that
            are not whole or have no class.
        ParameterError: a ``validation_fraction`` above 0 with ``x_val``; see also
            :class:`~spiketide.data.base.DataModule`.
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
        x_val: Arrays | None = None,
        y_val: Arrays | None = None,
        **common: Any,
    ) -> None:
        if "validation_fraction" in common:
            fraction = common["validation_fraction"]
            if x_val is None and fraction == 0:
                raise ParameterError(
                    "ArrayData expected x_val and y_val with validation_fraction=0: without data of your own to validate on, a "
                    "split is always carved from the training data, since the best epoch is chosen on it."
                )
            if x_val is not None and fraction != 0:
                raise ParameterError(
                    f"ArrayData expected x_val or a validation_fraction, got both ({fraction}): leave validation_fraction out to "
                    "validate on x_val, or x_val to carve from the training data."
                )
            if x_val is not None:
                del common["validation_fraction"]  # which the base class knows above 0 only
        super().__init__(**common)
        if x_val is not None:
            self.validation_fraction = 0.0
        self._temporal = temporal
        self._own_rows: int | None = None  # the training samples in front of validation data of one's own
        self._parts = {"train": self._part(x_train, y_train, "train", class_names)}
        self._shape = _feature_shape(self._parts["train"].x, temporal)
        for part, x, y in (("val", x_val, y_val), ("test", x_test, y_test)):
            if (x is None) != (y is None):
                raise DataError(f"ArrayData expected x_{part} and y_{part} together, or neither.")
            if x is None:
                continue
            self._parts[part] = samples = self._part(x, y, part, class_names)
            if (shape := _feature_shape(samples.x, temporal)) != self._shape:
                raise ShapeError(
                    f"ArrayData expected x_{part} with samples like x_train's, *N = {self._shape}, got {shape}."
                )
        if class_names is None:
            class_names = [str(label) for label in range(_largest(self._parts["train"]) + 1)]
        self._class_names = tuple(class_names)
        words = {"train": "training", "val": "validation"}
        for part, samples in self._parts.items():
            self._checked(samples, words.get(part, part))
        if "val" in self._parts:
            self._own_rows = len(self._parts["train"].ids)
            self._parts["train"] = _joined(self._parts["train"], self._parts.pop("val"))
        if "test" in self._parts:
            first, samples = len(self._parts["train"].ids), self._parts["test"]
            self._parts["test"] = samples._replace(ids=torch.arange(first, first + len(samples.ids)))

    def _part(self, x: Any, y: Any, part: str, class_names: Sequence[str] | None) -> Samples:
        inputs = _inputs(x, f"x_{part}", self._temporal)
        labels = _labels(y, f"y_{part}", self._temporal, inputs, class_names)
        if len(inputs) != len(labels):
            raise ShapeError(
                f"ArrayData expected one label for each of {len(inputs)} samples in y_{part}, got "
                f"{len(labels)}. Arrays are sample-first here: x (n, T, *N)."
            )
        return Samples(inputs, labels, torch.arange(len(labels)))

    def carve(self, samples: Samples) -> tuple[Tensor, Tensor]:
        """Rows to train on and to validate on: those that were given, or else carved by class."""
        if self._own_rows is None:
            return super().carve(samples)
        return torch.arange(self._own_rows), torch.arange(self._own_rows, len(samples.ids))

    def _check_split(self, samples: Samples, train: Tensor, validation: Tensor) -> None:
        if self._own_rows is None:  # what was given is as it was meant
            super()._check_split(samples, train, validation)

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
        """The rows of each part; those of ``x_val`` and then of the test count on from the last training row."""
        if "test" in self._parts:
            return super().split_indices
        training = self._prepared_training()
        return {
            "train": training.ids[self._train_rows].tolist(),
            "validation": training.ids[self._validation_rows].tolist(),
            "test": [],
        }


def _tensor(value: Any, name: str) -> Tensor:
    """Numbers, copied; what is none is refused by what it is."""
    if isinstance(value, Tensor):
        found = value.detach().cpu().clone()
    else:
        try:
            array = np.array(value)
        except (TypeError, ValueError) as problem:
            raise ShapeError(
                f"ArrayData expected numbers of one shape in {name}, got something else ({problem}). {SEQUENCES}"
            ) from problem
        if array.dtype.kind not in "biufc":
            _refuse(array, name)
        found = torch.from_numpy(np.ascontiguousarray(array).reshape(array.shape))
    if found.is_complex():
        raise DataError(
            f"ArrayData expected real numbers in {name}, got {found.dtype}: take .real, .imag or abs(), or both parts as two "
            "features."
        )
    return found


def _refuse(array: NDArray[Any], name: str) -> None:
    """The error for an array that holds no numbers."""
    first = array.reshape(-1)[0] if array.size else None
    if array.dtype.kind in "US" or isinstance(first, (str, bytes)):
        numbers = (
            "number the classes: names, y = np.unique(y, return_inverse=True), and give class_names=names.tolist()"
            if name.startswith("y_")
            else "convert it to numbers first, for example with x.astype(float)"
        )
        raise DataError(f"ArrayData expected numbers in {name}, got text ({str(first)[:20]!r}): {numbers}.")
    if array.dtype == object and isinstance(first, (np.ndarray, Tensor, list, tuple)):
        raise ShapeError(
            f"ArrayData expected numbers of one shape in {name}, got an array of arrays: give list({name}). {SEQUENCES}"
        )
    what = type(first).__name__ if array.dtype == object else str(array.dtype)
    raise DataError(f"ArrayData expected numbers in {name}, got {what}: convert them first.")


def _inputs(value: Any, name: str, temporal: bool) -> Tensor | list[Tensor]:
    if len(value) == 0:
        raise DataError(f"ArrayData got no samples in {name}: the data set is empty.")
    if temporal and isinstance(value, (list, tuple)):
        x = [
            _floats(_tensor(sample, f"{name}[{number}]"), name, number) for number, sample in enumerate(value)
        ]
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
        return x
    given = _tensor(value, name)
    if given.dim() < (3 if temporal else 2):
        raise ShapeError(
            f"ArrayData expected {name} {'(n, T, *N)' if temporal else '(n, *N)'}, got {tuple(given.shape)}. "
            "Single numbers have N = (1,)."
        )
    if 0 in given.shape:
        raise DataError(f"ArrayData got an empty {name}, {tuple(given.shape)}.")
    return _floats(given, name)


def _floats(given: Tensor, name: str, number: int | None = None) -> Tensor:
    """As float32, all of them finite; ``number``: which sample it is, ``None``: all of them."""
    x = given.to(torch.float32)
    finite = torch.isfinite(x)
    if bool(finite.all()):
        return x
    if number is None:
        number = int((~finite.flatten(1).all(1)).nonzero()[0])
    if not bool(torch.isfinite(given).all()):
        raise DataError(
            f"ArrayData expected finite numbers, {name}[{number}] has NaN or infinity: clean it first."
        )
    raise DataError(
        f"ArrayData expected numbers up to {torch.finfo(torch.float32).max:.2g}, the largest of float32, "
        f"{name}[{number}] has {float(given[~finite][0]):.3g}: scale the data first."
    )


def _largest(samples: Samples) -> int:
    labels = samples.labels()
    return int(labels.max()) if len(labels) else 0  # none at all is refused with the other checks


def _labels(
    value: Any, name: str, temporal: bool, x: Tensor | list[Tensor], class_names: Sequence[str] | None
) -> Tensor | list[Tensor]:
    if temporal and isinstance(value, (list, tuple)) and len(value) and np.ndim(value[0]) == 1:
        rows = [_tensor(row, f"{name}[{number}]") for number, row in enumerate(value)]
        if len({tuple(row.shape) for row in rows}) == 1:
            _check_rows(torch.stack(rows), name, x, class_names)
        return [_whole_numbers(row, f"{name}[{number}]") for number, row in enumerate(rows)]
    y = _tensor(value, name)
    if y.dim() > 1 and temporal:
        _check_rows(y, name, x, class_names)
    if y.dim() not in ((1, 2) if temporal else (1,)):
        raise ShapeError(
            f"ArrayData expected {name} (n,), one class number a sample, got {tuple(y.shape)}{_columns(y)}."
        )
    return _whole_numbers(y, name)


def _check_rows(y: Tensor, name: str, x: Tensor | list[Tensor], class_names: Sequence[str] | None) -> None:
    """Labels of steps, ``(n, T)``, and neither a column ``(n, 1)`` nor one-hot: one row a sample and one column a class."""
    steps = {x.shape[1]} if isinstance(x, Tensor) else {sample.shape[0] for sample in x}
    column = y.dim() == 2 and y.shape[1] == 1 and steps != {1}
    # names of the classes tell labels of steps, 1 at a single step of every sequence, from as many classes as steps
    named = (
        steps == {y.shape[1]}
        and class_names is not None
        and (y.shape[1] == 2 or len(class_names) != y.shape[1])
    )
    if column or (_is_one_hot(y) and (y.dim() > 2 or not named)):
        way_out = (
            f" If they are labels of steps, 1 at one step of each sequence, say so by class_names, which has {y.shape[1]} names "
            "for one-hot labels and two for these."
            if y.dim() == 2 and steps == {y.shape[1]}
            else ""
        )
        raise ShapeError(
            f"ArrayData expected {name} (n,), one class number a sample, or (n, T), one a step, got {tuple(y.shape)}"
            f"{_columns(y)}.{way_out}"
        )


def _columns(y: Tensor) -> str:
    """What to do with labels that have an axis too many."""
    if y.shape[-1] == 1:
        return ", a column: give y[:, 0]" if y.dim() == 2 else ""
    return ", one-hot: give the class numbers, y.argmax(-1)" if _is_one_hot(y) else ""


def _is_one_hot(y: Tensor) -> bool:
    """Whether every row along the last axis is a single 1 among zeros."""
    return bool(
        y.dim() > 1 and y.shape[-1] > 1 and ((y == 0) | (y == 1)).all() and ((y == 1).sum(-1) == 1).all()
    )


def _whole_numbers(y: Tensor, name: str) -> Tensor:
    if y.is_floating_point() or y.dtype == torch.bool:
        raise DataError(
            f"ArrayData expected whole class numbers from 0 in {name}, got {y.dtype}: convert them with y.astype(int)."
        )
    return y.to(torch.int64)


def _joined(first: Samples, second: Samples) -> Samples:
    """Training samples and behind them those to validate on; a list where they are of different lengths."""
    if first.stepwise != second.stepwise:
        raise ShapeError(
            "ArrayData expected y_val like y_train, one label a sample in both or one a step in both, got "
            f"{'one a step' if second.stepwise else 'one a sample'} in y_val only."
        )
    parts: list[Tensor | list[Tensor]] = []
    for one, other in ((first.x, second.x), (first.y, second.y)):
        if isinstance(one, Tensor) and isinstance(other, Tensor) and one.shape[1:] == other.shape[1:]:
            parts.append(torch.cat([one, other]))
        else:
            parts.append([*one, *other])
    return Samples(parts[0], parts[1], torch.arange(len(first.ids) + len(second.ids)))


def _feature_shape(x: Tensor | list[Tensor], temporal: bool) -> tuple[int, ...]:
    if isinstance(x, Tensor):
        return tuple(x.shape[2:] if temporal else x.shape[1:])
    return tuple(x[0].shape[1:])
