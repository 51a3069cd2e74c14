"""A cache folder that is not the user's, small data sets, and the real data where there are some."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest
from data_files import REPETITIONS, SPEAKERS, idx_bytes, mnist_images, write_recordings


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """No test reads or writes the user's cache."""
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of the real data sets; tests that need it are skipped without."""
    folder = os.environ.get("SPIKETIDE_DATA")
    if not folder:
        pytest.skip("needs the real data sets: set SPIKETIDE_DATA to the folder that holds them")
    return Path(folder)


@pytest.fixture
def mnist_root(tmp_path: Path) -> Path:
    """A root with an MNIST of 200 + 50 images."""
    folder = tmp_path / "mnist"
    folder.mkdir()
    for name, n, seed in (("train", 200, 0), ("t10k", 50, 1)):
        images, labels = mnist_images(n, seed)
        (folder / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(images)))
        (folder / f"{name}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(labels)))
    return tmp_path


@pytest.fixture
def small_fsdd(monkeypatch):
    """The class, cut down to three speakers and seven repetitions."""
    from spiketide.data import FSDD

    monkeypatch.setattr(FSDD, "speakers", SPEAKERS)
    monkeypatch.setattr(FSDD, "repetitions", REPETITIONS)
    return FSDD


@pytest.fixture(scope="session")
def fsdd_root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("fsdd_root")
    write_recordings(root / "fsdd" / "recordings")
    return root
