"""A small task of step labels for recipes: is the last event an up or a down one?"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch

from spiketide.data.base import DataModule, Samples


class Waves(DataModule):
    """A square wave known by its up and down events; a tenth of the steps has no label."""

    dt = 4.0

    def __init__(self, **common: Any) -> None:
        super().__init__(**common)

    temporal = True  # type: ignore[assignment]
    class_names = ("low", "high")  # type: ignore[assignment]
    sample_shape = (2,)  # type: ignore[assignment]

    def read(self, part: Literal["train", "test"]) -> Samples:
        rng = np.random.default_rng(0 if part == "train" else 1)
        n = 64 if part == "train" else 16
        level = np.cumsum(rng.random((n, 40)) < 0.15, axis=1) % 2
        change = np.diff(level, prepend=0, axis=1)
        x = np.stack([change > 0, change < 0], axis=-1).astype(np.float32)
        y = np.where(rng.random((n, 40)) < 0.1, -1, level)
        first = 0 if part == "train" else 64
        return Samples(torch.from_numpy(x), torch.from_numpy(y).long(), torch.arange(first, first + n))
