"""Arrays of one's own in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from spiketide.cli import main
from spiketide.data import ArrayData, ArrayFile
from spiketide.errors import DataError, ShapeError


def arrays(n: int = 40) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {"x_train": rng.random((n, 9, 3)), "y_train": np.arange(n) % 2}


def save(path: Path, **content: Any) -> str:
    np.savez(path, **content)
    return str(path)


def test_it_is_the_arrays_in_it(tmp_path: Path) -> None:
    given = arrays() | {"x_test": np.ones((6, 9, 3)), "y_test": np.zeros(6, int)}
    given |= {"x_val": np.zeros((4, 9, 3)), "y_val": np.ones(4, int)}
    ours = ArrayFile(save(tmp_path / "a.npz", **given), temporal=True, batch_size=8, seed=3)
    theirs = ArrayData(**given, temporal=True, batch_size=8, seed=3)
    assert ours.split_indices == theirs.split_indices and ours.class_names == ("0", "1")
    ours.setup("test")
    theirs.setup("test")
    for kind in ("train", "val", "test"):
        pairs = zip(
            getattr(ours, f"{kind}_dataloader")(), getattr(theirs, f"{kind}_dataloader")(), strict=True
        )
        for a, b in pairs:
            assert torch.equal(a.x, b.x) and torch.equal(a.y, b.y) and a.lengths is None


@pytest.mark.parametrize("by_step", [False, True])
def test_padding_is_cut_off(tmp_path: Path, by_step: bool) -> None:
    given, lengths = arrays(), np.random.default_rng(1).integers(1, 10, 40)
    padding = np.arange(9) >= lengths[:, None]
    given["x_train"][padding] = np.nan  # would be refused
    if by_step:
        given["y_train"] = np.where(padding, 7, np.arange(9) % 2)  # would be a class
    data = ArrayFile(save(tmp_path / "a.npz", **given, lengths_train=lengths), temporal=True, batch_size=40)
    batch = next(iter(data.train_dataloader()))
    assert batch.lengths is not None and bool(torch.isfinite(batch.x).all()) and data.num_classes == 2
    rows = data.split_indices["train"]
    assert sorted(batch.lengths.tolist()) == sorted(lengths[rows].tolist())


def test_a_recipe_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save(Path("songs.npz"), **arrays(), x_test=np.ones((6, 9, 3)), y_test=np.zeros(6, int))
    layers = [
        {"class_path": "spiketide.synapses.Dense", "init_args": {"n_in": 3, "n_out": 2}},
        {"class_path": "spiketide.neurons.LIF", "init_args": {"n": 2}},
    ]
    readout = {"class_path": "spiketide.readouts.SpikeCount"}
    recipe = {
        "data": {
            "class_path": "spiketide.data.ArrayFile",
            "init_args": {"path": "songs.npz", "temporal": True},
        },
        "model": {
            "class_path": "spiketide.training.Classification",
            "init_args": {"network": layers, "readout": readout},
        },
        "trainer": {"accelerator": "cpu", "max_epochs": 1, "enable_progress_bar": False},
    }
    Path("mine.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["train", "mine.yaml", "--data.batch_size", "16"]) == 0
    assert main(["test", "mine.yaml"]) == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"x_train": np.ones((4, 2))}, "expected y_train"),
        ({**arrays(), "x_tset": np.ones(3)}, "x_test"),
        ({**arrays(), "lengths_test": np.ones(3, int)}, "expected x_test beside lengths_test"),
        ({**arrays(), "lengths_train": np.full(40, 10)}, r"from 1 to the steps of x_train \(40, 9, 3\)"),
        ({**arrays(), "lengths_train": np.zeros(40, int)}, "from 0 to 0"),
        ({**arrays(), "lengths_train": np.ones(40)}, "float64"),
        ({**arrays(), "lengths_train": np.ones(39, int)}, r"\(39,\)"),
        ({**arrays(), "x_test": np.array([1, None])}, "plain numbers"),
    ],
)
def test_files_that_do_not_fit_are_refused(content: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = save(tmp_path / "a.npz", **content)
    with pytest.raises((DataError, ShapeError), match=message):
        ArrayFile(path, temporal=True)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found no file"):
        ArrayFile(str(tmp_path / "none.npz"), temporal=True)
    (tmp_path / "text.npz").write_text("no arrays")
    with pytest.raises(DataError, match="cannot read"):
        ArrayFile(str(tmp_path / "text.npz"), temporal=True)
    whole = save(tmp_path / "whole.npz", **arrays())
    (tmp_path / "half.npz").write_bytes(Path(whole).read_bytes()[:900])
    with pytest.raises(DataError, match="cannot read"):
        ArrayFile(str(tmp_path / "half.npz"), temporal=True)
    np.save(tmp_path / "one.npy", np.ones((4, 2)))
    with pytest.raises(DataError, match="expected several arrays"):
        ArrayFile(str(tmp_path / "one.npy"), temporal=True)
    with pytest.raises(DataError, match="samples without time"):
        ArrayFile(save(tmp_path / "a.npz", **arrays(), lengths_train=np.full(40, 5)), temporal=False)
