"""Small files of spikes in the exact format of the Heidelberg data sets, written here independently of the readers."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

SHD_TEST = 40
SSC_TEST = 35


def write_spikes(
    path: Path,
    labels: np.ndarray,
    seed: int,
    speakers: np.ndarray | None = None,
    keys: list[str] | None = None,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """A file as published: float16 seconds, and a recording without any event among them."""
    rng = np.random.default_rng(seed)
    written = []
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as store:
        times = store.create_dataset("spikes/times", (len(labels),), h5py.vlen_dtype(np.float16))
        units = store.create_dataset("spikes/units", (len(labels),), h5py.vlen_dtype(np.int64))
        for row in range(len(labels)):
            n = 0 if row == 3 else int(rng.integers(20, 60))
            pair = np.sort(rng.random(n) * 0.4).astype(np.float16), rng.integers(0, 700, n)
            times[row], units[row] = pair
            written.append(pair)
        store["labels"] = labels.astype(np.uint16)
        if speakers is not None:
            store["extra/speaker"] = speakers.astype(np.uint16)
        if keys is not None:
            store["extra/keys"] = np.array([key.encode() for key in keys])
    return written


def write_shd(root: Path) -> Path:
    """SHD of 8 speakers with 20 recordings each to train on, and ``SHD_TEST`` of another speaker to test with."""
    rows = np.arange(160)
    write_spikes(root / "shd" / "shd_train.h5", rows % 20, 0, speakers=rows // 20)
    write_spikes(root / "shd" / "shd_test.h5", np.arange(SHD_TEST) % 20, 1, speakers=np.full(SHD_TEST, 9))
    return root


def write_ssc(root: Path) -> Path:
    """SSC of 140 recordings to train on, 70 to validate and ``SSC_TEST`` to test with."""
    keys = [f"word {k}" for k in range(35)]
    for seed, (part, n) in enumerate((("train", 140), ("valid", 70), ("test", SSC_TEST))):
        write_spikes(root / "ssc" / f"ssc_{part}.h5", np.arange(n) % 35, seed, keys=keys)
    return root
