"""The page that tells how to add a data set works as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from spiketide.errors import DataError

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "add_a_data_set.md"


def test_the_page_runs(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 120, 2)), np.arange(60) % 2
    (tmp_path / "heartbeats").mkdir()
    path = tmp_path / "heartbeats" / "beats.npz"
    np.savez(path, x_train=x[:40], y_train=y[:40], x_test=x[40:], y_test=y[40:])
    monkeypatch.setenv("SPIKETIDE_DATA", str(tmp_path))
    names: dict = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) == 5
    monkeypatch.chdir(tmp_path)
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    data = names["data"]
    assert {part: len(ids) for part, ids in data.split_indices.items()} == {
        "train": 36,
        "validation": 4,
        "test": 20,
    }
    batch = next(iter(data.train_dataloader()))
    assert batch.x.shape == (120, 16, *data.sample_shape)
    data.setup("test")
    batch = next(iter(data.test_dataloader()))
    assert torch.equal(batch.x[:, 0, 0], torch.from_numpy(x[40, :, 0]).float())
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(DataError, match="truncated or corrupt"):
        names["Heartbeats"]().setup("fit")
