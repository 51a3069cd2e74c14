"""Two processes on the same global batch are one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_recipe as tiny

from spiketide.training.folder import RunFolder
from spiketide.training.recipe import Recipe
from spiketide.training.run import train


def test_two_gloo_processes_equal_one(tmp_path: Path) -> None:
    changed = tiny.content()
    # Without noise: the processes draw numbers of their own, which is right and would differ.
    changed["model"]["init_args"]["encoder"] = {
        "class_path": "spiketide.encoders.Direct",
        "init_args": {"steps": 6},
    }
    del changed["model"]["init_args"]["network"][3]
    changed["trainer"]["max_epochs"] = 2
    data = changed["data"]["init_args"]
    data["batch_size"] = 16
    path = tiny.write(tmp_path / "two.yaml", changed)
    words = ["train", str(path), "--run", str(tmp_path / "two"), "--json"]
    words += ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    process = subprocess.Popen(
        [sys.executable, "-m", "spiketide.cli", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    data["batch_size"] = 32
    one = train(Recipe(changed, name="one"), RunFolder(tmp_path / "one"))
    out, err = process.communicate(timeout=180)
    assert process.returncode == 0, err
    two = json.loads(out.splitlines()[-1])
    assert len(out.splitlines()) == 5  # one process speaks, and no more than it has to say
    histories = [
        json.loads((tmp_path / run / "metrics.json").read_text())["history"] for run in ("one", "two")
    ]
    assert len(histories[0]) == len(histories[1]) == 2
    for first, second in zip(*histories, strict=True):
        for name in ("train/loss", "train/accuracy", "train/rate", "val/loss", "val/accuracy"):
            assert second[name] == pytest.approx(first[name], abs=1e-6), name
    assert histories[0][1]["train/loss"] < histories[0][0]["train/loss"]
    assert one["best"]["epoch"] == two["best"]["epoch"]
