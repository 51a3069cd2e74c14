"""The guarantees that every data module inherits, on arrays whose only feature is the sample's number."""

from __future__ import annotations

from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch
from helpers import quiet_trainer
from jsonargparse import ArgumentError, ArgumentParser
from torch.utils.data import DistributedSampler

from spiketide import data as package
from spiketide.data import ArrayData, DataModule
from spiketide.data.base import _even_batch_size, stratified_order
from spiketide.errors import DataError, ParameterError, ShapeError

CLASSES = np.repeat([0, 1, 2], [50, 30, 20])


def numbers(n: int, first: int = 0) -> np.ndarray:
    return np.arange(first, first + n, dtype=np.float32).reshape(n, 1)


def toy(y=CLASSES, n_test: int = 13, **options) -> ArrayData:
    y = np.asarray(y)
    return ArrayData(
        numbers(len(y)), y, numbers(n_test, len(y)), np.arange(n_test) % 3, temporal=False, **options
    )


def order(loader, epoch: int | None = None) -> list[int]:
    if epoch is not None:
        loader.sampler.set_epoch(epoch)
    return [int(number) for batch in loader for number in batch.x.flatten()]


def attach(module: DataModule, world: int, rank: int) -> DataModule:
    """As if a Trainer with several processes held the module."""
    device = SimpleNamespace(root_device=torch.device("cpu"))
    module.trainer = SimpleNamespace(world_size=world, global_rank=rank, current_epoch=0, strategy=device)
    return module


def test_parts_are_disjoint_complete_and_stratified():
    module = toy(validation_fraction=0.2)
    parts = module.split_indices
    assert sorted(parts["train"] + parts["validation"]) == list(range(100))
    assert parts["test"] == list(range(100, 113))
    assert np.bincount(CLASSES[parts["validation"]]).tolist() == [10, 6, 4]
    assert np.bincount(CLASSES[parts["train"]]).tolist() == [40, 24, 16]


def test_the_split_depends_on_the_seed_and_on_nothing_else():
    torch.manual_seed(1)
    np.random.seed(1)
    first = toy(seed=3).split_indices
    torch.manual_seed(2)
    np.random.seed(2)
    assert toy(seed=3).split_indices == first
    other = toy(seed=4).split_indices
    assert other["validation"] != first["validation"]
    assert other["test"] == first["test"]
    assert toy(seed=3, batch_size=7, limit=11).split_indices["validation"] == first["validation"]


def test_the_split_stays_what_it_is_across_versions():
    assert stratified_order(np.array([0, 0, 0, 1, 1, 2]), 5).tolist() == GOLDEN_ORDER


GOLDEN_ORDER = [2, 4, 5, 1, 3, 0]


def test_every_prefix_is_stratified():
    found = stratified_order(CLASSES, 0)
    assert sorted(found.tolist()) == list(range(100))
    for length in range(1, 101):
        counts = np.bincount(CLASSES[found[:length]], minlength=3)
        assert np.abs(counts - length * np.array([0.5, 0.3, 0.2])).max() <= 1.0


def test_limit_is_stratified_and_leaves_validation_and_test_alone():
    whole, some = toy(), toy(limit=10)
    parts = some.split_indices
    assert np.bincount(CLASSES[parts["train"]]).tolist() == [5, 3, 2]
    assert set(parts["train"]) <= set(whole.split_indices["train"])
    assert parts["validation"] == whole.split_indices["validation"]
    assert parts["test"] == whole.split_indices["test"]
    assert len(order(some.train_dataloader())) == 10
    assert toy(limit=10**6).split_indices == whole.split_indices


def test_an_epoch_sees_every_sample_once_and_drops_none():
    module = toy(batch_size=32)
    loader = module.train_dataloader()
    assert [len(batch.y) for batch in loader] == [32, 32, 26]
    assert sorted(order(loader)) == module.split_indices["train"]
    for batch in loader:
        assert batch.y.tolist() == CLASSES[batch.x.flatten().long()].tolist()
        assert batch.x.dtype == torch.float32
        assert batch.y.dtype == torch.int64


def test_the_order_of_an_epoch_is_a_function_of_seed_and_epoch():
    orders = {
        (s, e): order(toy(seed=s, validation_fraction=0.5).train_dataloader(), e)
        for s in (0, 1)
        for e in (0, 1, 7)
    }
    fresh = toy(seed=0, validation_fraction=0.5).train_dataloader()
    assert order(fresh, 7) == orders[0, 7]
    assert order(fresh, 0) == orders[0, 0]
    assert order(fresh, 0) != orders[0, 1]


def test_the_order_of_the_file_is_the_same_in_every_epoch():
    loader = toy(batch_size=32, order="file").train_dataloader()
    assert order(loader, 0) == order(loader, 3) == toy().split_indices["train"]


def test_samples_drawn_with_replacement():
    module = toy(batch_size=32, order="drawn")
    loader = module.train_dataloader()
    first, second = order(loader, 0), order(loader, 1)
    assert order(loader, 0) == first != second and len(first) == 90
    assert set(first) <= set(module.split_indices["train"])
    # of n samples drawn n times about 63 % appear
    assert 45 < len(set(first)) < 70 and len(set(first) | set(second)) > len(set(first))
    shares = []
    for rank in (0, 1):
        half = attach(toy(batch_size=16, order="drawn"), 2, rank).train_dataloader()
        shares.append(order(half, 1))
    assert [number for pair in zip(*shares, strict=True) for number in pair] == second


def test_seeds_are_not_shifted_epochs():
    # As arrays of ranks, so that the different splits of two seeds do not hide a shared permutation.
    ranks = {}
    for seed in (0, 1):
        loader = toy(seed=seed).train_dataloader()
        for epoch in (0, 1):
            loader.sampler.set_epoch(epoch)
            ranks[seed, epoch] = list(loader.sampler)
    assert ranks[0, 1] != ranks[1, 0]


def test_the_global_random_state_is_neither_used_nor_moved():
    module = toy()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = order(module.train_dataloader())
    order(module.val_dataloader())
    module.setup("test")
    order(module.test_dataloader())
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(123)
    assert order(module.train_dataloader()) == first


def test_validation_is_in_order():
    module = toy(eval_batch_size=3)
    assert order(module.val_dataloader()) == module.split_indices["validation"]
    assert [len(batch.y) for batch in module.val_dataloader()] == [3, 3, 3, 1]


def test_test_data_are_closed_until_the_test_stage():
    module = toy()
    for stage in (None, "fit", "validate"):
        if stage:
            module.setup(stage)
        with pytest.raises(DataError, match="closed: they are touched once"):
            module.test_dataloader()
    module.setup("test")
    assert order(module.test_dataloader()) == list(range(100, 113))
    module.teardown("test")
    with pytest.raises(DataError, match="closed"):
        module.test_dataloader()
    module.setup("test")
    module.setup("fit")
    with pytest.raises(DataError, match="closed"):
        module.test_dataloader()


def test_reading_the_training_part_reads_no_test_data(monkeypatch):
    module, read = toy(), []
    original = ArrayData.read
    monkeypatch.setattr(ArrayData, "read", lambda self, part: (read.append(part), original(self, part))[1])
    module.setup("fit")
    list(module.train_dataloader())
    list(module.val_dataloader())
    assert read == ["train"]


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_the_batches_of_one(world):
    one = toy(batch_size=8 * world, seed=2).train_dataloader()
    shares = [attach(toy(batch_size=8, seed=2), world, rank).train_dataloader() for rank in range(world)]
    assert all(
        isinstance(share.sampler, DistributedSampler) for share in shares
    )  # Lightning leaves those alone
    for epoch in (0, 5):
        for loader in (one, *shares):
            loader.sampler.set_epoch(epoch)
        for whole, *pieces in zip(one, *shares, strict=True):
            assert len({len(piece.y) for piece in pieces}) == 1
            together = sorted(int(v) for piece in pieces for v in piece.x.flatten())
            assert together == sorted(int(v) for v in whole.x.flatten())


def test_uneven_training_shares_lose_nobody():
    shares = [attach(toy(batch_size=8), 4, rank).train_dataloader() for rank in range(4)]  # 90 = 4 * 22 + 2
    seen = [number for share in shares for number in order(share)]
    assert len(seen) == 92
    assert set(seen) == set(toy().split_indices["train"])


@pytest.mark.parametrize(
    ("n", "world", "size"), [(13, 2, 4), (13, 2, 6), (9, 2, 4), (7, 3, 1), (5, 2, 1), (24, 4, 3)]
)
def test_evaluation_sees_every_sample_once_in_equally_many_batches(n, world, size):
    loaders = []
    for rank in range(world):
        module = attach(toy(n_test=n, eval_batch_size=size), world, rank)
        module.setup("test")
        loaders.append(module.test_dataloader())
    assert sorted(number for loader in loaders for number in order(loader)) == list(range(100, 100 + n))
    assert len({len(list(loader)) for loader in loaders}) == 1


def test_even_batch_size_is_the_wanted_one_wherever_that_is_possible():
    for world in (1, 2, 3, 8):
        for n in range(world, 200):
            for wanted in (1, 2, 5, 64):
                size = _even_batch_size(n, world, wanted)
                counts = {-(-len(range(rank, n, world)) // size) for rank in range(world)}
                assert len(counts) == 1
                if n % world == 0:
                    assert size == wanted


def test_more_processes_than_samples():
    module = attach(toy(n_test=3), 4, 0)
    module.setup("test")
    with pytest.raises(DataError, match="3 samples to evaluate on for 4 processes"):
        module.test_dataloader()


class Recorder(L.LightningModule):
    """Writes down what it is fed."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: dict[int, list[int]] = {}

    def training_step(self, batch, index):
        self.seen.setdefault(self.current_epoch, []).extend(int(v) for v in batch.x.flatten())
        return self.weight * 1.0

    def validation_step(self, batch, index):
        pass

    def test_step(self, batch, index):
        self.seen.setdefault(-1, []).extend(int(v) for v in batch.x.flatten())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(folder, epochs: int) -> L.Trainer:
    return quiet_trainer(
        default_root_dir=folder, max_epochs=epochs, num_sanity_val_steps=None, limit_val_batches=None
    )


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
@pytest.mark.filterwarnings("ignore:.*GPU available but not used.*")
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # of Lightning
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 1])
def test_a_resumed_run_sees_the_order_of_an_uninterrupted_one(tmp_path, workers):
    whole = Recorder()
    trainer(tmp_path, 4).fit(whole, datamodule=toy(num_workers=workers))
    assert sorted(whole.seen) == [0, 1, 2, 3]
    assert whole.seen[0] != whole.seen[1]
    assert order(toy().train_dataloader(), 3) == whole.seen[3]  # and it is the one that set_epoch gives

    first, second = Recorder(), Recorder()
    run = trainer(tmp_path, 2)
    run.fit(first, datamodule=toy(num_workers=workers))
    run.save_checkpoint(tmp_path / "half.ckpt")
    torch.manual_seed(99)
    trainer(tmp_path, 4).fit(second, datamodule=toy(num_workers=workers), ckpt_path=tmp_path / "half.ckpt")
    assert first.seen | second.seen == whole.seen
    assert sorted(second.seen) == [2, 3]


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
@pytest.mark.filterwarnings("ignore:.*GPU available but not used.*")
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # of Lightning
def test_the_trainer_opens_the_test_data(tmp_path):
    module, model, run = toy(), Recorder(), trainer(tmp_path, 1)
    run.fit(model, datamodule=module)
    assert -1 not in model.seen
    run.test(model, datamodule=module, verbose=False)
    assert model.seen[-1] == list(range(100, 113))
    with pytest.raises(DataError, match="closed"):
        module.test_dataloader()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 0}, "batch_size of 1 or more, got 0"),
        ({"eval_batch_size": 0}, "eval_batch_size"),
        ({"limit": 0}, "limit"),
        ({"num_workers": -1}, "num_workers"),
        ({"validation_fraction": 0.0}, "always carved"),
        ({"validation_fraction": 1.0}, "between 0 and 1"),
        ({"validation_fraction": float("nan")}, "between 0 and 1"),
        ({"seed": -1}, "seed"),
        ({"order": "drwan"}, "did you mean 'drawn'"),
    ],
)
def test_options_out_of_range(options, words):
    with pytest.raises(ParameterError, match=words):
        toy(**options)


def test_unknown_stage():
    with pytest.raises(ParameterError, match="unknown stage 'tset'; did you mean 'test'"):
        toy().setup("tset")


def test_a_class_without_validation_or_training_samples():
    with pytest.raises(DataError, match=r"class '1' \(3 samples\) has no validation sample.*Raise"):
        toy(y=[0] * 97 + [1] * 3, n_test=2, validation_fraction=0.1).setup("fit")
    with pytest.raises(DataError, match=r"class '1' \(1 samples\) has no training sample.*Lower"):
        toy(y=[0] * 99 + [1], n_test=2, validation_fraction=0.9).setup("fit")


# Arrays of one's own.


def test_sequences_of_different_lengths():
    sequences = [np.full((3 + n % 4, 2), n) for n in range(40)]
    module = ArrayData(sequences, np.arange(40) % 2, temporal=True, batch_size=16)
    assert module.sample_shape == (2,)
    assert module.temporal
    for batch in module.train_dataloader():
        assert batch.x.dtype == torch.float32
        for b, length in enumerate(batch.lengths.tolist()):
            number = int(batch.x[0, b, 0])
            assert length == 3 + number % 4
            assert (batch.x[:length, b] == number).all()
            assert (batch.x[length:, b] == 0).all()
            assert batch.y[b] == number % 2
    assert module.split_indices["test"] == []
    with pytest.raises(DataError, match="no test data"):
        module.setup("test")


def test_sequences_of_one_length():
    x = np.random.default_rng(0).normal(size=(30, 5, 2, 3))
    batch = next(iter(ArrayData(x, [0, 1] * 15, temporal=True, batch_size=4).train_dataloader()))
    assert batch.x.shape == (5, 4, 2, 3)
    assert batch.lengths is None


def test_the_arrays_are_copied():
    x = torch.zeros(20, 1)
    module = ArrayData(x, [0, 1] * 10, temporal=False)
    x.fill_(7.0)
    assert max(order(module.train_dataloader())) == 0


def test_validation_data_of_ones_own():
    y = np.arange(20) % 2
    x = numbers(20)
    module = ArrayData(
        x,
        y,
        numbers(5, 30),
        [0, 1, 0, 1, 0],
        x_val=numbers(7, 20),
        y_val=[1] * 7,
        temporal=False,
        batch_size=4,
    )
    assert module.split_indices == {
        "train": list(range(20)),
        "validation": list(range(20, 27)),
        "test": list(range(27, 32)),
    }
    assert sorted(order(module.train_dataloader())) == list(range(20))
    assert order(module.val_dataloader()) == list(range(20, 27))
    assert [batch.y.tolist() for batch in module.val_dataloader()] == [
        [1] * 4,
        [1] * 3,
    ]  # a class may be missing
    module.setup("test")
    assert order(module.test_dataloader()) == list(range(30, 35))
    for options in ({"validation_fraction": 0}, {"validation_fraction": 0.0, "seed": 5}, {"limit": 6}):
        module = ArrayData(x, y, x_val=numbers(7, 20), y_val=[1] * 7, temporal=False, **options)
        assert order(module.val_dataloader()) == list(range(20, 27))
        assert len(order(module.train_dataloader())) == options.get("limit", 20)
    for options, words in (
        ({"validation_fraction": 0.2, "x_val": x, "y_val": y}, "x_val or a validation_fraction, got both"),
        ({"validation_fraction": 0}, "x_val and y_val with validation_fraction=0.*always carved"),
    ):
        with pytest.raises(ParameterError, match=words):
            ArrayData(x, y, temporal=False, **options)


def test_validation_sequences_of_ones_own():
    """Tensors of one length stay tensors; of other lengths than the training data all are padded."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(12, 6, 3)), np.arange(12) % 2
    one = ArrayData(x, y, x_val=x[:4] + 1, y_val=y[:4], temporal=True)
    assert one.val_dataloader().dataset[0].lengths is None
    assert torch.equal(next(iter(one.val_dataloader())).x[:, 1], torch.from_numpy(x[1] + 1).float())
    for x_val in (x[:4, :5], [x[0], x[1, :2], x[2], x[3]]):
        other = ArrayData(x, y, x_val=x_val, y_val=y[:4], temporal=True)
        batch = next(iter(other.val_dataloader()))
        assert batch.lengths.tolist() == [len(sample) for sample in x_val]
        assert next(iter(other.train_dataloader())).lengths.tolist() == [6] * 12
    steps = rng.integers(-1, 2, size=(12, 6))
    other = ArrayData(x, steps, x_val=x[:4, :5], y_val=steps[:4, :5], temporal=True)
    assert torch.equal(next(iter(other.val_dataloader())).y, torch.from_numpy(steps[:4, :5].T))
    with pytest.raises(ShapeError, match="got one a step in y_val only"):
        ArrayData(x, y, x_val=x[:4], y_val=steps[:4], temporal=True)


def test_what_is_wrong_with_labels_is_said():
    x, flat = np.zeros((40, 5, 3)), np.zeros((40, 3))
    y = np.arange(40) % 5
    hot = np.eye(5, dtype=int)[y]
    for labels in (list("ab") * 20, np.array(list("ab") * 20), np.array(list("ab") * 20, dtype=object)):
        for inputs, temporal in ((x, True), (flat, False)):
            with pytest.raises(DataError, match=r"numbers in y_train, got text \('a'\): .*np.unique"):
                ArrayData(inputs, labels, temporal=temporal)
    names, labels = np.unique(list("ab") * 20, return_inverse=True)  # as advised
    assert ArrayData(x, labels, temporal=True, class_names=names.tolist()).class_names == ("a", "b")
    for inputs, temporal in ((x, True), (list(x), True), (flat, False)):
        for column in (y[:, None], y[:, None].tolist()):
            with pytest.raises(ShapeError, match=r"got \(40, 1\), a column: give y\[:, 0\]"):
                ArrayData(inputs, column, temporal=temporal)
    for inputs in (x, list(x), x[:, :3], flat):  # with as many steps as classes, and with fewer
        temporal = inputs is not flat
        for given in (hot, list(hot), hot.astype(float), hot.astype(bool), torch.from_numpy(hot)):
            if isinstance(given, list) and not temporal:
                continue
            with pytest.raises(
                ShapeError, match=r"got \(40, 5\), one-hot: give the class numbers, y\.argmax"
            ):
                ArrayData(inputs, given, temporal=temporal, class_names=list("abcde"))
    with pytest.raises(ShapeError, match=r"\(40, 5, 5\), one-hot"):
        ArrayData(x, np.broadcast_to(hot[:, None], (40, 5, 5)), temporal=True)
    with pytest.raises(
        ShapeError, match=r"say so by class_names, which has 5 names for one-hot labels and two"
    ):
        ArrayData(x, hot, temporal=True)
    onset = ArrayData(x, hot, temporal=True, class_names=["nothing", "onset"])  # a label a step, as advised
    assert next(iter(onset.train_dataloader())).y.sum(0).tolist() == [1] * 36
    single = ArrayData(x[:, :1], y[:, None], temporal=True)  # one step, and one label for it
    assert single.read("train").y.shape == (40, 1)


def test_what_is_wrong_with_values_is_said():
    x, y = np.zeros((4, 5, 3)), [0, 1, 0, 1]
    large = x.copy()
    large[2, 1, 0] = -1e39
    for inputs in (large, list(large)):
        with pytest.raises(
            DataError, match=r"up to 3\.4e\+38, the largest of float32, x_train\[2\] has -1e\+39: scale"
        ):
            ArrayData(inputs, y, temporal=True)
    for inputs in (x + 1j, list(x + 1j), torch.from_numpy(x + 1j)):
        with pytest.raises(DataError, match=r"real numbers in x_train.*, got torch.complex128: take \.real"):
            ArrayData(inputs, y, temporal=True)
    with pytest.raises(DataError, match=r"numbers in x_train, got text \('0\.0'\): .*astype\(float\)"):
        ArrayData(x.astype(str), y, temporal=True)
    ragged = np.empty(2, dtype=object)
    ragged[:] = [np.zeros((3, 2)), np.zeros((4, 2))]
    with pytest.raises(ShapeError, match=r"got an array of arrays: give list\(x_train\)"):
        ArrayData(ragged, [0, 1], temporal=True)
    with pytest.raises(DataError, match=r"numbers in y_train, got NoneType"):
        ArrayData(x, [None] * 4, temporal=True)
    with pytest.raises(DataError, match=r"numbers in x_train, got datetime64"):
        ArrayData(x.astype("M8[s]"), y, temporal=True)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "words"),
    [
        (([], []), {"temporal": True}, DataError, "no samples in x_train"),
        ((np.zeros((0, 3)), []), {"temporal": False}, DataError, "no samples in x_train"),
        ((np.zeros((4, 3)), [0, 1]), {"temporal": False}, ShapeError, "each of 4 samples in y_train, got 2"),
        ((np.zeros((4, 3)), [0, 1, 0, 1]), {"temporal": True}, ShapeError, r"\(n, T, \*N\), got \(4, 3\)"),
        ((np.zeros(4), [0, 1, 0, 1]), {"temporal": False}, ShapeError, r"N = \(1,\)"),
        (
            ([np.zeros((2, 1)), np.zeros((0, 1))], [0, 1]),
            {"temporal": True},
            DataError,
            r"x_train\[1\] has none",
        ),
        (([np.zeros((2, 1)), np.zeros((2, 3))], [0, 1]), {"temporal": True}, ShapeError, r"x_train\[1\]"),
        (([[1.0, 2.0], [1.0]], [0, 1]), {"temporal": False}, ShapeError, "different lengths are a list"),
        ((np.zeros((2, 3)), [0.0, 1.0]), {"temporal": False}, DataError, "whole class numbers"),
        ((np.zeros((2, 3)), [[0], [1]]), {"temporal": False}, ShapeError, r"y_train \(n,\)"),
        ((np.zeros((2, 3)), [-1, 0]), {"temporal": False}, DataError, "labels from -1"),
        ((np.zeros((2, 3)), [0, 5]), {"temporal": False, "class_names": ["a", "b"]}, DataError, "0 to 1"),
        (
            (np.zeros((2, 3)), [0, 1], np.zeros((2, 3))),
            {"temporal": False},
            DataError,
            "together, or neither",
        ),
        (
            (np.zeros((2, 3)), [0, 1], np.zeros((2, 4)), [0, 1]),
            {"temporal": False},
            ShapeError,
            r"\(3,\), got \(4,\)",
        ),
        ((np.zeros((2, 3)), [0, 1], np.zeros((2, 3)), [0, 2]), {"temporal": False}, DataError, "test part"),
        ((np.array([[0.0], [np.nan]]), [0, 1]), {"temporal": False}, DataError, r"x_train\[1\] has NaN"),
        (
            ([np.zeros((2, 1)), np.full((2, 1), np.inf)], [0, 1]),
            {"temporal": True},
            DataError,
            r"x_train\[1\]",
        ),
    ],
)
def test_arrays_that_cannot_be_used(arguments, options, error, words):
    with pytest.raises(error, match=words):
        ArrayData(*arguments, **options)


# Construction from a file, and the package.


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("Digits", {"seed": 5, "limit": 7}),
        ("MNIST", {"as_sequence": "pixels", "permutation_seed": 3, "batch_size": 9}),
        ("MNIST", {"as_sequence": False}),
        ("FashionMNIST", {"as_sequence": "rows", "validation_fraction": 0.2}),
        ("FSDD", {"held_out_speaker": "theo", "validation_speaker": "lucas", "max_steps": 50, "root": "/x"}),
    ],
)
def test_every_data_set_can_be_written_in_a_recipe(name, options):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(DataModule, "data")
    config = {"data": {"class_path": f"spiketide.data.{name}", "init_args": options}}
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes  # newer and older name
    module = instantiate(parser.parse_object(config)).data
    assert type(module) is getattr(package, name)
    for key, value in options.items():
        assert str(getattr(module, key)) == str(value)
    assert type(module.temporal) is bool
    assert module.num_classes == 10
    config["data"]["init_args"] = {"batchsize": 3}
    with pytest.raises(ArgumentError, match="batchsize"):
        parser.parse_object(config)


def test_help_explains_the_shared_options():
    parser = ArgumentParser()
    parser.add_class_arguments(package.FSDD, "data")
    text = " ".join(parser.format_help().split())
    assert "share of the training part that is kept for validation" in text
    assert "test on this speaker" in text


def test_the_batch_is_found_beside_the_data():
    from spiketide import Batch

    assert package.Batch is Batch and "Batch" in package.__all__


def test_the_package_lists_and_finds_its_names():
    assert set(package.__all__) <= set(dir(package))
    for name in package.__all__:
        assert getattr(package, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        package.Nothing
