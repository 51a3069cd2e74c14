"""Small pictures of blobs, and recipes of networks of first spikes that learn them in a second."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from spiketide.data import ArrayData
from spiketide.training.recipe import Recipe

CENTRES = ((2, 2), (2, 5), (5, 4))


def blobs(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures ``(count, 1, 8, 8)`` of a noisy blob at one of three places, and which."""
    rng = np.random.default_rng(seed)
    y = np.arange(count) % len(CENTRES)
    at = np.array(CENTRES)[y] + rng.normal(0, 0.7, (count, 2))
    rows, columns = np.mgrid[:8, :8]
    distance = (rows - at[:, 0, None, None]) ** 2 + (columns - at[:, 1, None, None]) ** 2
    x = np.exp(-distance / 4) + rng.normal(0, 0.08, (count, 8, 8))
    return x.clip(0, 1).astype(np.float32)[:, None], y


class Blobs(ArrayData):
    """Ninety blobs to train on, forty to test."""

    def __init__(self, batch_size: int = 16, validation_fraction: float = 0.2, seed: int = 0) -> None:
        parts = (*blobs(90, 0), *blobs(40, 1))
        common: dict[str, Any] = {"batch_size": batch_size, "validation_fraction": validation_fraction}
        super().__init__(*parts, temporal=False, seed=seed, **common)


def _layer(kind: str, **arguments: Any) -> dict[str, Any]:
    made: dict[str, Any] = {"class_path": f"spiketide.timing.{kind}"}
    if arguments:
        made["init_args"] = arguments
    return made


def _fixed(start: float) -> dict[str, Any]:
    return {"psp": _layer("FixedSlope", start=start, length=16.0), "stop": start + 16.0}


RULE = _layer("STiDi", slope="constant", normalise=False)

NETWORKS: dict[str, dict[str, Any]] = {
    "free": {
        "network": [
            _layer("Flatten"),
            _layer("TimingLinear", n_in=64, n_out=20, stop=32.0, rule=RULE),
            _layer("TimingLinear", n_in=20, n_out=3, stop=32.0, rule=RULE),
        ],
        "encoder": _layer("IntensityToLatency", steps=32, span=0.5),
        "loss": _layer("TimingCrossEntropy", tau=4.0),
        "moments": [0.5, 0.8],
    },
    "fixed": {
        "network": [
            _layer("TimingConv2d", n_in=1, n_out=4, kernel=3, padding=1, rule=RULE, **_fixed(16.0)),
            _layer("EarliestPool2d"),
            _layer("Flatten"),
            _layer("Silence", p=0.1, end=32.0),
            _layer("TimingLinear", n_in=64, n_out=3, rule=RULE, **_fixed(32.0)),
        ],
        "encoder": _layer("IntensityToLatency", steps=16),
        "loss": _layer("TimingCrossEntropy", tau=2.0),
        "moments": [0.5, 0.8],
    },
    "online": {
        "network": _layer("S4NN", sizes=[64, 20, 3], steps=32, threshold=20.0, lr=0.1, spread=[4.0, 8.0]),
        "encoder": _layer("PixelTimes", steps=32),
    },
}


def content(kind: str) -> dict[str, Any]:
    """A recipe with free slopes, a fixed one, or learning image by image (S4NN), to change."""
    online = kind == "online"
    return {
        "seed": 2,
        "threads": 1,
        "data": {
            "class_path": "blobs_recipe.Blobs",
            "init_args": {},
        },
        "model": {
            "class_path": f"spiketide.training.{'OnlineTiming' if online else 'SingleSpike'}",
            "init_args": copy.deepcopy(NETWORKS[kind])
            | ({} if online else {"optimizer": "adam", "lr": 0.03}),
        },
        "trainer": {"accelerator": "cpu", "max_epochs": 3, "enable_progress_bar": False},
    }


def recipe(kind: str) -> Recipe:
    """The same as a recipe."""
    return Recipe(content(kind), name=f"blobs-{kind}")


def write(path: Path, changed: dict[str, Any]) -> Path:
    """A recipe as a file."""
    path.write_text(yaml.safe_dump(changed))
    return path
