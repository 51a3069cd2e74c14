"""What every data set shares: splits, the order of an epoch, batches, and the lock on the test data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from ..errors import DataError, ParameterError, unknown
from ..types import UNLABELLED, Batch
from .collate import collate
from .download import data_root

ORDERS = ("shuffled", "file", "drawn")


class Samples(NamedTuple):
    """One part of a data set, in memory, sample-first.

    Shapes:
        ``x`` is ``(n, *N)`` for static data, ``(n, T, *N)`` for sequences of one length, or a list of ``n``
        tensors ``(T_i, *N)``; ``y`` is ``(n,)`` int64, or, where every step has a label of its own, ``(n, T)`` or
        a list of ``(T_i,)``, :data:`spiketide.types.UNLABELLED` (-1) where a step has none; ``ids`` is ``(n,)``
        int64, the number of each sample in the whole data set, training and test together.
    """

    x: Tensor | list[Tensor]
    y: Tensor | list[Tensor]
    ids: Tensor
    scale: float = 1.0
    """``x`` is turned to float32 and divided by this when a batch is made: bytes stay bytes in memory."""

    @property
    def stepwise(self) -> bool:
        """Whether every step has a label of its own."""
        return isinstance(self.y, list) or self.y.dim() > 1

    def labels(self, rows: Tensor | None = None) -> Tensor:
        """All labels of these samples in a row, unlabelled steps left out."""
        if isinstance(self.y, list):
            chosen = range(len(self.y)) if rows is None else rows.tolist()
            y = torch.cat([self.y[row].flatten() for row in chosen]) if len(chosen) else torch.empty(0).long()
        else:
            y = (self.y if rows is None else self.y[rows]).flatten()
        return y[y != UNLABELLED] if self.stepwise else y

    def choose(self, rows: Tensor) -> Tensor | list[Tensor]:
        """The labels of these samples, sample by sample."""
        return [self.y[row] for row in rows.tolist()] if isinstance(self.y, list) else self.y[rows]


class DataModule(L.LightningDataModule, ABC):
    """A data set: training, validation and test batches, with the guarantees that every data set here gives.

    - The validation split is carved from the training part only, stratified by class, from ``seed``. Test
      data are never used for it.
    - Test data are closed until ``setup("test")``, which ``Trainer.test`` calls; :meth:`test_dataloader`
      raises before.
    - The order of the training samples in an epoch depends on ``seed`` and the epoch's number and on nothing
      else. The global random state is neither used nor moved, so a resumed run sees the order that an
      uninterrupted one would have.
    - Under several processes each takes its share by itself (``use_distributed_sampler`` has nothing left to
      replace): the k-th batches of ``W`` processes together are the k-th batch of one process with a ``W``
      times larger ``batch_size``. When the training samples do not divide by ``W``, up to ``W - 1`` of an
      epoch are seen twice in it. Validation and test samples are seen exactly once, in equally many batches
      everywhere.
    - No sample is dropped: the last batch of an epoch may be smaller.

    In a loop of your own, call ``loader.sampler.set_epoch(epoch)`` before each epoch, as Lightning does;
    without it every epoch has the order of the first.

    A new data set is a subclass with :attr:`temporal`, :attr:`class_names`, :attr:`sample_shape`,
    :meth:`read` and, if there is something to download, ``prepare_data``.

    Example:
        >>> from spiketide.data import Digits
        >>> data = Digits(batch_size=32, seed=1)
        >>> batch = next(iter(data.train_dataloader()))
        >>> batch.x.shape, batch.y.shape, batch.lengths
        (torch.Size([32, 1, 8, 8]), torch.Size([32]), None)
        >>> {part: len(ids) for part, ids in data.split_indices.items()}
        {'train': 1294, 'validation': 144, 'test': 359}

    Shapes:
        Batches are :class:`~spiketide.types.Batch`: ``x (B, *N)`` static, ``(T, B, *N)`` temporal, ``N``
        being :attr:`sample_shape`.

    Args:
        batch_size: samples in a training batch of one process.
        eval_batch_size: samples in a validation or test batch; ``None``: as ``batch_size``.
        validation_fraction: share of the training part that is kept for validation, between 0 and 1.
        seed: of the validation split, of ``limit`` and of the order of each epoch. Test data do not depend on
            it.
        num_workers: processes that make batches. The data are in memory and a batch is one indexing: 0 is
            fastest.
        root: folder with the data sets; ``None``: the environment variable ``SPIKETIDE_DATA``, else the
            user's cache folder.
        limit: use at most this many training samples, stratified, for a smoke run; validation and test stay
            as they are.
        order: of the training samples in an epoch: ``"shuffled"``, anew in each; ``"file"``, as they are stored;
            ``"drawn"``, as many as there are, drawn with replacement.

    Raises:
        ParameterError: a size or fraction out of its range, an unknown order.
        DataError: data missing, broken or empty, or a class that would have no training or no validation
            sample.
    """

    def __init__(
        self,
        *,
        batch_size: int = 64,
        eval_batch_size: int | None = None,
        validation_fraction: float = 0.1,
        seed: int = 0,
        num_workers: int = 0,
        root: str | Path | None = None,
        limit: int | None = None,
        order: Literal["shuffled", "file", "drawn"] = "shuffled",
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if order not in ORDERS:
            raise ParameterError(f"{name}: " + unknown("order", order, ORDERS))
        for word, size in (
            ("batch_size", batch_size),
            ("eval_batch_size", eval_batch_size),
            ("limit", limit),
        ):
            if size is not None and size < 1:
                raise ParameterError(f"{name} expected {word} of 1 or more, got {size}.")
        if num_workers < 0:
            raise ParameterError(f"{name} expected num_workers of 0 or more, got {num_workers}.")
        if not 0 < validation_fraction < 1:
            raise ParameterError(
                f"{name} expected validation_fraction between 0 and 1, both excluded, got "
                f"{validation_fraction}: a validation split is always carved from the training data."
            )
        if not 0 <= seed < 2**32:
            raise ParameterError(f"{name} expected a seed from 0 to 2**32 - 1, got {seed}.")
        self.batch_size = batch_size
        self.eval_batch_size = batch_size if eval_batch_size is None else eval_batch_size
        self.validation_fraction = validation_fraction
        self.seed = seed
        self.num_workers = num_workers
        self.root = root
        self.limit = limit
        self.order = order
        self._training: Samples | None = None
        self._test: Samples | None = None
        self._train_rows = self._validation_rows = torch.empty(0, dtype=torch.int64)
        self._test_open = False

    # What a data set says about itself.

    @property
    @abstractmethod
    def temporal(self) -> bool:
        """Whether a sample's first axis is time."""

    @property
    @abstractmethod
    def class_names(self) -> tuple[str, ...]:
        """The classes, in the order of their numbers."""

    @property
    @abstractmethod
    def sample_shape(self) -> tuple[int, ...]:
        """``*N``: the shape of one sample, without time."""

    @abstractmethod
    def read(self, part: Literal["train", "test"]) -> Samples:
        """Read and verify one part; ``"train"`` is all that may be trained on, validation included."""

    def carve(self, samples: Samples) -> tuple[Tensor, Tensor]:
        """Rows of the training part to train on, and to validate on: by class, or by chance where steps have the labels."""
        order = _order(samples, torch.arange(len(samples.ids)), self.seed)
        cut = round(self.validation_fraction * len(order))
        return torch.from_numpy(np.sort(order[cut:])), torch.from_numpy(np.sort(order[:cut]))

    # What follows from it.

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.class_names)

    @property
    def data_root(self) -> Path:
        """The folder where the data sets are looked for."""
        return data_root(self.root)

    @property
    def split_indices(self) -> dict[str, list[int]]:
        """The numbers of the samples in ``"train"``, ``"validation"`` and ``"test"``, for reports and proofs.

        It opens no test data for batches.
        """
        training, test = self._prepared_training(), self._read_test()
        return {
            "train": training.ids[self._train_rows].tolist(),
            "validation": training.ids[self._validation_rows].tolist(),
            "test": test.ids.tolist(),
        }

    def setup(self, stage: str) -> None:
        """Read what ``"fit"``, ``"validate"`` or ``"test"`` needs; only ``"test"`` opens the test data."""
        if stage in ("fit", "validate"):
            self._read_training()
        elif stage == "test":
            self._read_test()
        else:
            raise ParameterError(unknown("stage", stage, ("fit", "validate", "test")))
        self._test_open = stage == "test"

    def teardown(self, stage: str) -> None:
        """Close the test data again."""
        self._test_open = False

    def train_dataloader(self) -> DataLoader[Batch]:
        """Training batches, shuffled unless ``order`` says otherwise."""
        dataset = _Rows(self._prepared_training(), self._train_rows, self.temporal)
        world, rank = self._processes()
        # DistributedSampler adds the epoch to its seed: seeds are spread so that run 0 in epoch 1 is not run
        # 1 in epoch 0.
        spread = int(np.random.SeedSequence(self.seed).generate_state(1)[0])
        kind = _Drawn if self.order == "drawn" else DistributedSampler
        sampler: DistributedSampler[Batch] = kind(
            dataset,
            num_replicas=world,
            rank=rank,
            shuffle=self.order == "shuffled",
            seed=spread,
            drop_last=False,
        )
        if self.trainer is not None:
            # Workers fetch the first batches as soon as the loader is asked, before Lightning sets the epoch.
            sampler.set_epoch(self.trainer.current_epoch)
        return self._loader(dataset, sampler, self.batch_size)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Validation batches, in order."""
        return self._in_order(_Rows(self._prepared_training(), self._validation_rows, self.temporal))

    def test_dataloader(self) -> DataLoader[Batch]:
        """Test batches, in order; only after ``setup("test")``.

        Raises:
            DataError: in any other stage.
        """
        if not self._test_open:
            raise DataError(
                f"The test data of {type(self).__name__} are closed: they are touched once, at the end. Use "
                "val_dataloader() while you develop, and trainer.test(...) or setup('test') when you are "
                "done."
            )
        test = self._read_test()
        return self._in_order(_Rows(test, torch.arange(len(test.ids)), self.temporal))

    # How.

    def _read_training(self) -> Samples:
        if self._training is None:
            samples = self._checked(self.read("train"), "training")
            train, validation = self.carve(samples)
            self._check_split(samples, train, validation)
            if self.limit is not None and self.limit < len(train):
                chosen = _order(samples, train, self.seed)[: self.limit]
                train = train[torch.from_numpy(np.sort(chosen))]
            self._train_rows, self._validation_rows, self._training = train, validation, samples
        return self._training

    def _prepared_training(self) -> Samples:
        if self._training is None and self.trainer is None:  # without a Trainer nobody else has called it
            self.prepare_data()
        return self._read_training()

    def _read_test(self) -> Samples:
        if self._test is None:
            self._test = self._checked(self.read("test"), "test")
        return self._test

    def _checked(self, samples: Samples, part: str) -> Samples:
        name = type(self).__name__
        if len(samples.y) == 0:
            raise DataError(
                f"The {part} part of {name} is empty: there is nothing to learn from or to test on."
            )
        if len(samples.x) != len(samples.y) or len(samples.ids) != len(samples.y):
            raise DataError(
                f"The {part} part of {name} has {len(samples.x)} samples, {len(samples.y)} labels and "
                f"{len(samples.ids)} numbers: expected one of each for every sample."
            )
        labels = samples.labels()
        if not len(labels):
            raise DataError(
                f"The {part} part of {name} has no labelled step at all: there is nothing to learn."
            )
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= self.num_classes:
            raise DataError(
                f"The {part} part of {name} has labels from {low} to {high}: expected 0 to "
                f"{self.num_classes - 1}, one for each of its {self.num_classes} classes"
                f"{f', or {UNLABELLED} for a step without one' if samples.stepwise else ''}."
            )
        if samples.stepwise:
            for number, (x, y) in enumerate(zip(samples.x, samples.y, strict=True)):
                if y.shape != x.shape[:1]:
                    raise DataError(
                        f"Sample {number} of the {part} part of {name} has {x.shape[0]} steps and labels of shape "
                        f"{tuple(y.shape)}: expected one label a step."
                    )
                if not isinstance(samples.x, list):
                    break  # all have one shape
        return samples

    def _check_split(self, samples: Samples, train: Tensor, validation: Tensor) -> None:
        everywhere = torch.bincount(samples.labels(), minlength=self.num_classes)
        for word, rows in (("training", train), ("validation", validation)):
            here = torch.bincount(samples.labels(rows), minlength=self.num_classes)
            lacking = ((here == 0) & (everywhere > 0)).nonzero().flatten().tolist()
            if lacking:
                first = lacking[0]
                raise DataError(
                    f"{type(self).__name__}: class {self.class_names[first]!r} ({int(everywhere[first])} "
                    f"{'steps' if samples.stepwise else 'samples'}) has no {word} sample with "
                    f"validation_fraction={self.validation_fraction}"
                    f"{f' ({len(lacking)} classes have none)' if len(lacking) > 1 else ''}. "
                    f"{'Raise' if word == 'validation' else 'Lower'} validation_fraction, or give more data."
                )

    def _processes(self) -> tuple[int, int]:
        trainer = self.trainer
        return (1, 0) if trainer is None else (trainer.world_size, trainer.global_rank)

    def _in_order(self, dataset: _Rows) -> DataLoader[Batch]:
        world, rank = self._processes()
        if len(dataset) < world:
            raise DataError(
                f"{type(self).__name__} has {len(dataset)} samples to evaluate on for {world} processes: use "
                "fewer devices or a larger validation_fraction."
            )
        return self._loader(
            dataset, _Once(dataset, world, rank), _even_batch_size(len(dataset), world, self.eval_batch_size)
        )

    def _loader(
        self, dataset: _Rows, sampler: DistributedSampler[Batch], batch_size: int
    ) -> DataLoader[Batch]:
        on_gpu = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return DataLoader(
            dataset,
            batch_size=batch_size,
            sampler=sampler,
            collate_fn=_whole,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=on_gpu,
            # A loader draws a seed for its workers each time it is iterated. From the global generator, that
            # would move the random numbers of the model, and a resumed run would part from an uninterrupted
            # one.
            generator=torch.Generator().manual_seed(self.seed),
        )


def _order(samples: Samples, rows: Tensor, seed: int) -> NDArray[np.int64]:
    """An order of these samples of which any beginning is a fair choice."""
    if samples.stepwise:  # a sequence holds many classes: none to go by
        return np.random.RandomState(seed).permutation(len(rows)).astype(np.int64)
    return stratified_order(samples.labels(rows).numpy(), seed)


def stratified_order(y: NDArray[np.integer[Any]], seed: int) -> NDArray[np.int64]:
    """A random order of the samples in which every beginning has the classes in their proportions.

    Written here and not taken from scikit-learn because any prefix is a valid stratified choice, down to a
    single sample, and because ``RandomState``'s stream is frozen by NumPy: a split stays what it is across
    versions.

    Example:
        >>> import numpy as np
        >>> from spiketide.data.base import stratified_order
        >>> y = np.repeat([0, 1], [6, 3])
        >>> np.bincount(y[stratified_order(y, 0)[:3]]).tolist()
        [2, 1]

    Args:
        y: ``(n,)`` class numbers.
        seed: of the order.
    """
    shuffled = np.random.RandomState(seed).permutation(len(y))
    place = np.empty(len(y))
    for label in np.unique(y):
        members = shuffled[y[shuffled] == label]
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    return shuffled[np.argsort(place[shuffled], kind="stable")].astype(np.int64)


class _Rows(Dataset[Batch]):
    """Rows of a part. A whole batch is one indexing, without Python for each sample of a tensor."""

    def __init__(self, samples: Samples, rows: Tensor, temporal: bool) -> None:
        self.samples = samples
        self.rows = rows
        self.temporal = temporal

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([index])

    def __getitems__(self, indices: list[int]) -> Batch:
        """What a DataLoader asks for first: the batch of these samples."""
        rows = self.rows[torch.tensor(indices)]
        x, _, _, scale = self.samples
        y = self.samples.choose(rows)
        if isinstance(x, Tensor):
            # NumPy, as in collate: one pass in this thread, from bytes to floats.
            chosen = np.divide(x.numpy()[rows.numpy()], np.float32(scale), dtype=np.float32)
            return collate(torch.from_numpy(chosen), y, temporal=self.temporal)
        return collate([x[row] / scale for row in rows.tolist()], y, temporal=self.temporal)


def _whole(batch: Any) -> Any:
    """The dataset has made the batch already."""
    return batch


class _Drawn(DistributedSampler[Batch]):
    """As many samples as there are, drawn with replacement from the seed and the epoch's number."""

    def __iter__(self) -> Iterator[Any]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        samples = len(self.dataset)  # type: ignore[arg-type]
        drawn = torch.randint(samples, (self.total_size,), generator=generator).tolist()
        return iter(drawn[self.rank : self.total_size : self.num_replicas])


class _Once(DistributedSampler[Batch]):
    """Every sample in order, exactly once over all processes; torch's own repeats some to even out."""

    def __init__(self, dataset: _Rows, world: int, rank: int) -> None:
        super().__init__(dataset, num_replicas=world, rank=rank, shuffle=False)
        self.mine = range(rank, len(dataset), world)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.mine)

    def __len__(self) -> int:
        return len(self.mine)


def _even_batch_size(samples: int, world: int, wanted: int) -> int:
    """The first batch size from ``wanted`` up with which every process has equally many batches.

    Shares differ by one sample at most; a process with one batch less than the others would leave them
    waiting in the first collective operation.
    """
    size, few, many = wanted, samples // world, -(-samples // world)
    while -(-few // size) != -(-many // size):
        size += 1
    return size
