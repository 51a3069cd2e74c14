"""The reader of QTDB: on small files of its format, and on the published ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import savemat

from spiketide.data import QTDB
from spiketide.errors import DataError, ParameterError


def write(root: Path, *, n: int = 12, **changes: np.ndarray) -> Path:
    """Both files, with some steps unlabelled; ``changes`` replace x or y of the training part."""
    rng = np.random.default_rng(0)
    folder = root / "qtdb"
    folder.mkdir(exist_ok=True)
    for part, count in (("train", n), ("test", 3)):
        x = (rng.random((count, 1301, 4)) < 0.08).astype(np.int16)
        x[:, -1, 0] = -1
        y = np.eye(6, dtype=np.uint8)[rng.integers(0, 6, (count, 1301))]
        y[:, 100:200] = 0
        content = {"x": x, "y": y, "t": np.tile(np.arange(1301, dtype=np.uint16), (count, 1)), "max_i": 1301}
        if part == "train":
            content.update(changes)
        savemat(folder / f"QTDB_{part}.mat", content, do_compression=True)
    return root


def test_batches_are_time_first_with_a_label_a_step(tmp_path: Path) -> None:
    data = QTDB(root=write(tmp_path), batch_size=4, validation_fraction=0.25, seed=1)
    batch = next(iter(data.train_dataloader()))
    assert batch.x.shape == (1300, 4, 4) and batch.x.dtype == torch.float32
    assert batch.y.shape == (1300, 4) and batch.y.dtype == torch.int64 and batch.lengths is None
    assert set(batch.x.unique().tolist()) == {0.0, 1.0}  # the end marker is gone
    assert bool((batch.y[100:200] == -1).all()) and int(batch.y[:100].min()) >= 0
    parts = data.split_indices
    assert [len(ids) for ids in parts.values()] == [9, 3, 3]
    assert not set(parts["train"]) & set(parts["validation"])
    assert parts["test"] == [618, 619, 620]


def test_steps_cuts_sequences_short(tmp_path: Path) -> None:
    batch = next(iter(QTDB(root=write(tmp_path), steps=50).train_dataloader()))
    assert batch.x.shape[0] == batch.y.shape[0] == 50


@pytest.mark.parametrize("steps", [0, 1301])
def test_steps_out_of_range_are_refused(steps: int) -> None:
    with pytest.raises(ParameterError, match="steps from 1 to 1300"):
        QTDB(steps=steps)


def broken(what: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    x = (rng.random((12, 1301, 4)) < 0.08).astype(np.int16)
    x[:, -1, 0] = -1
    y = np.eye(6, dtype=np.uint8)[rng.integers(0, 6, (12, 1301))]
    if what == "no end marker":
        x[3, -1, 0] = 0
    elif what == "values":
        x[0, 5, 1] = 3
    elif what == "two labels":
        y[0, 0] = 1
    elif what == "shape":
        y = y[:, :-1]
    elif what == "unlabelled":
        y[:] = 0
    return {"x": x, "y": y}


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("no end marker", "end marker -1"),
        ("values", "events of 0 and 1, got values from 0 to 3"),
        ("two labels", "at most a single 1"),
        ("shape", r"expected x \(n, 1301, 4\)"),
        ("unlabelled", "no labelled step at all"),
    ],
)
def test_a_file_of_another_content_is_refused(tmp_path: Path, what: str, message: str) -> None:
    data = QTDB(root=write(tmp_path, **broken(what)))
    with pytest.raises(DataError, match=message):
        data.train_dataloader()


def test_a_broken_file_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path) / "qtdb" / "QTDB_train.mat"
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(DataError, match="broken or no MATLAB file"):
        QTDB(root=tmp_path).train_dataloader()
    savemat(path, {"z": np.zeros(3)})
    with pytest.raises(DataError, match="x and y are missing"):
        QTDB(root=tmp_path).train_dataloader()


def test_the_published_files_are_as_described(real_data: Path) -> None:
    data = QTDB(root=real_data, validation_fraction=0.0987)
    training, test = data.read("train"), data.read("test")
    assert training.x.shape == (618, 1300, 4) and test.x.shape == (141, 1300, 4)
    assert {part: len(ids) for part, ids in data.split_indices.items()} == {
        "train": 557,
        "validation": 61,
        "test": 141,
    }
    assert (training.y == -1).float().mean().item() == pytest.approx(0.082, abs=5e-4)
    assert (test.y == -1).float().mean().item() == pytest.approx(0.104, abs=5e-4)
    shares = torch.bincount(test.labels(), minlength=6) / len(test.labels())
    assert shares.tolist() == pytest.approx([0.1469, 0.0617, 0.0599, 0.0551, 0.3400, 0.3364], abs=1e-3)
    events = training.x.float().mean((0, 1)).tolist()
    assert events == pytest.approx([0.0826, 0.0676, 0.0868, 0.0726], abs=1e-3)
