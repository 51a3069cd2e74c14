from __future__ import annotations

import gzip

import numpy as np
import pytest
import torch
from data_files import everything, idx_bytes, mnist_images

from spiketide.data import MNIST, FashionMNIST, download
from spiketide.errors import DataError, ParameterError


def by_image(data) -> dict[int, torch.Tensor]:
    """Test samples by their place."""
    data.prepare_data()
    data.setup("test")
    samples, first = {}, data.split_indices["test"][0]
    for batch in data.test_dataloader():
        columns = batch.x.unbind(1 if data.temporal else 0)
        samples |= {len(samples) + b: x for b, x in enumerate(columns)}
    assert first == len(data.split_indices["train"]) + len(data.split_indices["validation"])
    return samples


def test_images_are_scaled_and_in_place(mnist_root):
    images, labels = mnist_images(50, seed=1)
    data = MNIST(root=mnist_root, eval_batch_size=16)
    samples = by_image(data)
    assert len(samples) == 50
    for number, x in samples.items():
        assert x.shape == data.sample_shape == (1, 28, 28)
        assert np.array_equal(x.squeeze(0).numpy(), images[number].astype(np.float32) / np.float32(255))
    assert max(float(x.max()) for x in samples.values()) == 1.0
    assert [int(y) for batch in data.test_dataloader() for y in batch.y] == labels.tolist()


def test_training_labels_stay_with_their_images(mnist_root):
    data = MNIST(root=mnist_root, batch_size=32)
    for batch in data.train_dataloader():
        assert torch.equal((batch.x[:, 0, 0, 0] * 255).round().long(), batch.y)
    parts = data.split_indices
    assert everything(parts) == list(range(250))
    assert len(parts["validation"]) == 20


def test_sequences(mnist_root):
    images = {n: x.squeeze(0) for n, x in by_image(MNIST(root=mnist_root)).items()}
    pixels = by_image(MNIST(root=mnist_root, as_sequence="pixels"))
    rows = by_image(MNIST(root=mnist_root, as_sequence="rows"))
    for number, image in images.items():
        assert torch.equal(pixels[number], image.reshape(784, 1))
        assert torch.equal(rows[number], image)
    batch = next(iter(MNIST(root=mnist_root, as_sequence="pixels", batch_size=8).train_dataloader()))
    assert batch.x.shape == (784, 8, 1)
    assert batch.lengths is None
    batch = next(iter(MNIST(root=mnist_root, as_sequence="rows", batch_size=8).train_dataloader()))
    assert batch.x.shape == (28, 8, 28)


def test_one_permutation_for_all_parts(mnist_root):
    plain = MNIST(root=mnist_root, as_sequence="pixels")
    data = MNIST(root=mnist_root, as_sequence="pixels", permutation_seed=4, seed=9)
    p = data.permutation
    assert sorted(p.tolist()) == list(range(784))
    assert p.tolist() != list(range(784))
    assert torch.equal(p, MNIST(as_sequence="pixels", permutation_seed=4).permutation)
    assert not torch.equal(p, MNIST(as_sequence="pixels", permutation_seed=5).permutation)
    before, after = by_image(plain), by_image(data)
    assert all(torch.equal(after[number], before[number][p]) for number in before)
    labels_at = p.tolist().index(0)  # where the pixel with the label has gone
    for loader in (data.train_dataloader(), data.val_dataloader()):
        for batch in loader:
            assert torch.equal((batch.x[labels_at, :, 0] * 255).round().long(), batch.y)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"as_sequence": "pixel"}, "unknown as_sequence 'pixel'; did you mean 'pixels'"),
        ({"as_sequence": True}, "unknown as_sequence"),
        ({"permutation_seed": 0}, "expected as_sequence='pixels'"),
        ({"as_sequence": "rows", "permutation_seed": 0}, "only the order of pixels"),
        ({"as_sequence": "pixels", "permutation_seed": -1}, "0 to 2"),
    ],
)
def test_options_that_make_no_sense(options, words):
    with pytest.raises(ParameterError, match=words):
        MNIST(**options)


def test_broken_files_are_named(mnist_root):
    path = mnist_root / "mnist" / "train-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    data = MNIST(root=mnist_root)
    data.prepare_data()  # the file is there: nothing is downloaded over it
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz is truncated or corrupt"):
        data.setup("fit")
    assert path.read_bytes() == whole[:-100]


def test_files_that_do_not_belong_together(mnist_root):
    labels = mnist_root / "mnist" / "train-labels-idx1-ubyte.gz"
    labels.write_bytes(gzip.compress(idx_bytes(np.zeros(7, np.uint8))))
    with pytest.raises(DataError, match=r"200 labels, one byte for each image .* do not belong together"):
        MNIST(root=mnist_root).setup("fit")
    images = mnist_root / "mnist" / "train-images-idx3-ubyte.gz"
    images.write_bytes(gzip.compress(idx_bytes(np.zeros((7, 8, 8), np.uint8))))
    with pytest.raises(DataError, match=r"\(n, 28, 28\) bytes, it holds \(7, 8, 8\)"):
        MNIST(root=mnist_root).setup("fit")


def test_an_empty_file(mnist_root):
    (mnist_root / "mnist" / "train-labels-idx1-ubyte.gz").write_bytes(
        gzip.compress(idx_bytes(np.zeros(0, np.uint8)))
    )
    (mnist_root / "mnist" / "train-images-idx3-ubyte.gz").write_bytes(
        gzip.compress(idx_bytes(np.zeros((0, 28, 28), np.uint8)))
    )
    with pytest.raises(DataError, match="training part of MNIST is empty"):
        MNIST(root=mnist_root).setup("fit")


def test_missing_files_are_listed(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "RETRIES", 0)
    monkeypatch.setattr(
        MNIST, "files", tuple(file._replace(url="http://127.0.0.1:9/x") for file in MNIST.files)
    )
    with pytest.raises(DataError) as caught:
        MNIST(root=tmp_path).prepare_data()
    for file in MNIST.files:
        assert str(tmp_path / file.path) in str(caught.value)
        assert f"{file.size:,}" in str(caught.value)
        assert file.sha256 in str(caught.value)


@pytest.mark.parametrize("kind", [MNIST, FashionMNIST])
def test_real_files(real_data, kind):
    import hashlib

    data = kind(root=real_data, seed=1)
    data.prepare_data()
    parts = data.split_indices
    assert {part: len(ids) for part, ids in parts.items()} == {
        "train": 54000,
        "validation": 6000,
        "test": 10000,
    }
    assert len(set(parts["train"]) | set(parts["validation"]) | set(parts["test"])) == 70000
    samples = data.read("train")
    counts = torch.bincount(samples.y)
    if kind is FashionMNIST:
        assert counts.tolist() == [6000] * 10
    else:
        assert counts.tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    validation = torch.bincount(samples.y[parts["validation"]])
    assert (validation - counts * 0.1).abs().max() <= 1.0
    batch = next(iter(data.train_dataloader()))
    assert 0.0 <= float(batch.x.min()) <= float(batch.x.max()) <= 1.0
    for file in data.files:
        path = real_data / file.path
        assert path.stat().st_size == file.size
        assert hashlib.sha256(path.read_bytes()).hexdigest() == file.sha256
