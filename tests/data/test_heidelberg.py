"""SHD, SSC and files of one's own, written here in the published format."""

from __future__ import annotations

import gzip
import hashlib
import shutil
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from data_files import everything
from spike_files import write_shd, write_spikes, write_ssc

from spiketide.data import SHD, SSC, EventFrames, SpikeFile, heidelberg
from spiketide.errors import DataError, ParameterError


@pytest.fixture(scope="module")
def shd_root(tmp_path_factory) -> Path:
    return write_shd(tmp_path_factory.mktemp("shd"))


@pytest.fixture(scope="module")
def ssc_root(tmp_path_factory) -> Path:
    return write_ssc(tmp_path_factory.mktemp("ssc"))


@pytest.mark.parametrize("binning", ["uniform", "anchored"])
def test_frames_are_those_of_the_events(shd_root, tmp_path, binning):
    pairs = write_spikes(tmp_path / "shd" / "shd_train.h5", np.arange(40) % 20, 7)
    shutil.copy(shd_root / "shd" / "shd_test.h5", tmp_path / "shd")
    data = SHD(root=tmp_path, binning=binning, dt=4.0, group=7, validation="random", validation_fraction=0.5)
    samples = data.read("train")
    frames = EventFrames(dt=4.0, group=7, binning=binning)
    for x, (times, units) in zip(samples.x, pairs, strict=True):
        assert x.dtype == torch.uint8
        assert np.array_equal(x.numpy(), frames(times, units))
    assert samples.x[3].shape == (1, 100) and not samples.x[3].any()  # no events: one silent frame
    batch = next(iter(data.train_dataloader()))
    assert batch.x.dtype == torch.float32 and batch.x.shape == (int(batch.lengths.max()), 20, 100)
    assert data.sample_shape == (100,) and data.dt == 4.0


def test_validation_takes_whole_speakers(shd_root):
    data = SHD(root=shd_root, validation_fraction=0.3)
    parts = data.split_indices
    speaker = {part: {number // 20 for number in parts[part]} for part in ("train", "validation")}
    assert len(speaker["validation"]) == 3 and len(speaker["train"]) == 5  # 2 of 8 are not enough for 0.3
    assert not speaker["train"] & speaker["validation"]
    assert [len(parts[part]) for part in ("train", "validation", "test")] == [100, 60, 40]
    assert everything(parts) == list(range(200))
    assert data.split_indices == SHD(root=shd_root, validation_fraction=0.3).split_indices
    chosen = {
        tuple(sorted({n // 20 for n in SHD(root=shd_root, seed=seed).split_indices["validation"]}))
        for seed in range(8)
    }
    assert len(chosen) > 2 and all(len(them) == 1 for them in chosen)


def test_random_validation_is_stratified(shd_root):
    data = SHD(root=shd_root, validation="random", validation_fraction=0.25)
    y = np.arange(160) % 20
    assert np.bincount(y[data.split_indices["validation"]]).tolist() == [2] * 20


def test_validation_on_the_test_set_is_that(shd_root):
    data = SHD(root=shd_root, validation="test")
    parts = data.split_indices
    assert parts["validation"] == parts["test"] == list(range(160, 200))
    assert parts["train"] == list(range(160))
    data.setup("test")
    for a, b in zip(data.val_dataloader(), data.test_dataloader(), strict=True):
        assert torch.equal(a.x, b.x) and torch.equal(a.y, b.y)
    assert "selects on the test set" in SHD.__doc__


def test_ssc_has_its_own_parts(ssc_root):
    data = SSC(root=ssc_root, group=70)
    parts = data.split_indices
    assert parts == {
        "train": list(range(140)),
        "validation": list(range(140, 210)),
        "test": list(range(210, 245)),
    }
    assert data.class_names[34] == "word 34" and data.num_classes == 35
    assert next(iter(data.val_dataloader())).x.shape[2] == 10
    assert SSC(root=ssc_root / "nowhere").class_names[34] == "34"


def test_frames_are_binned_once(shd_root, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    calls = []
    original = EventFrames.__call__
    monkeypatch.setattr(
        EventFrames, "__call__", lambda self, *a, **k: (calls.append(1), original(self, *a, **k))[1]
    )
    first = SHD(root=shd_root).read("train")
    assert len(calls) == 160
    second = SHD(root=shd_root).read("train")
    assert len(calls) == 160
    assert all(torch.equal(a, b) for a, b in zip(first.x, second.x, strict=True))
    SHD(root=shd_root, dt=5.0).read("train")
    assert len(calls) == 320  # other options, other key
    assert all(path.is_relative_to(tmp_path / "cache") for path in tmp_path.rglob("*.npz"))


def test_options_of_the_frames(shd_root):
    data = SHD(root=shd_root, binary=True, max_time=0.1, max_steps=6, group=700)
    x = data.read("train").x
    assert max(len(frames) for frames in x) == 6
    assert max(int(frames.max()) for frames in x) == 1
    assert SHD(root=shd_root, max_time=0.1).read("train").x[0].shape[0] <= 10


def test_augmentation(shd_root):
    plain, changed = (
        SHD(root=shd_root, channel_shift=k, validation="random", validation_fraction=0.25) for k in (0, 40)
    )
    a, b = next(iter(plain.train_dataloader())), next(iter(changed.train_dataloader()))
    assert torch.equal(a.y, b.y) and torch.equal(a.lengths, b.lengths) and not torch.equal(a.x, b.x)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: SHD(validation="speakers"), "did you mean 'speaker'"),
        (lambda: SHD(binning="x"), "unknown binning"),
        (lambda: SHD(group=3), "divides the 700"),
        (lambda: SSC(dt=0.0), "dt > 0"),
        (lambda: SHD(channel_shift=-1), "channel_shift of 0"),
    ],
)
def test_options_that_make_no_sense(make, words):
    with pytest.raises(ParameterError, match=words):
        make()


# Broken files.


def damaged(path: Path, damage) -> Path:
    write_spikes(path, np.arange(30) % 2, 0)
    damage(path)
    return path


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def without(name: str):
    def damage(path: Path) -> None:
        with h5py.File(path, "r+") as store:
            del store[name]

    return damage


def replaced(name: str, value):
    def damage(path: Path) -> None:
        with h5py.File(path, "r+") as store:
            del store[name]
            store[name] = value

    return damage


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (cut, "truncated, corrupt or not an HDF5"),
        (lambda path: path.write_bytes(b""), "truncated, corrupt or not an HDF5"),
        (lambda path: path.write_bytes(b"<html>" * 100), "truncated, corrupt or not an HDF5"),
        (lambda path: path.unlink(), "is not there"),
        (without("spikes/times"), "it lacks spikes/times"),
        (without("spikes"), "it lacks spikes/times, spikes/units"),
        (without("labels"), "it lacks labels"),
        (replaced("labels", np.arange(29)), "one of each for every recording.*'labels': 29"),
        (replaced("labels", np.zeros(30)), "whole numbers .* as labels"),
        (replaced("labels", np.zeros((30, 2), int)), r"whole numbers .n,. as labels"),
    ],
)
def test_broken_files(tmp_path, damage, words):
    path = damaged(tmp_path / "shd" / "shd_train.h5", damage)
    with pytest.raises(DataError, match=words) as caught:
        heidelberg.read_spike_file(path)
    assert "shd_train.h5" in str(caught.value)


def test_a_hole_in_the_middle_is_noticed(tmp_path):
    """The head is whole, the events are not: HDF5's own heap is overwritten."""
    path = tmp_path / "a.h5"
    write_spikes(path, np.arange(400) % 2, 0)
    raw = bytearray(path.read_bytes())
    places = [i for i in range(len(raw) - 4) if raw[i : i + 4] == b"GCOL"]
    assert places
    for place in places:
        raw[place : place + 64] = b"\xff" * 64
    path.write_bytes(raw)
    with pytest.raises(DataError, match="truncated, corrupt"):
        SpikeFile(path).read("train")


def test_a_broken_recording_is_named(tmp_path):
    path = tmp_path / "a.h5"
    write_spikes(path, np.arange(30) % 2, 0)
    with h5py.File(path, "r+") as store:
        store["spikes/units"][17] = np.array([700] * len(store["spikes/times"][17]))
    with pytest.raises(DataError, match="units from 0 to 699 in recording 17 of .*a.h5"):
        SpikeFile(path).read("train")
    with h5py.File(path, "r+") as store:
        store["spikes/units"][17] = np.array([1])
    with pytest.raises(DataError, match="one unit for each time in recording 17"):
        SpikeFile(path).read("train")


def test_speakers_that_are_not_there(tmp_path, shd_root):
    write_spikes(tmp_path / "shd" / "shd_train.h5", np.arange(40) % 20, 0)
    with pytest.raises(DataError, match='no extra/speaker. Use validation="random"'):
        SHD(root=tmp_path).setup("fit")
    write_spikes(tmp_path / "shd" / "shd_train.h5", np.arange(40) % 20, 0, speakers=np.zeros(40))
    with pytest.raises(DataError, match="one speaker only"):
        SHD(root=tmp_path).setup("fit")


# Archives.


def test_archives_that_lie_there_are_unpacked(shd_root, tmp_path):
    folder = tmp_path / "shd"
    folder.mkdir()
    source = shd_root / "shd"
    (folder / "shd_train.h5.gz").write_bytes(gzip.compress((source / "shd_train.h5").read_bytes()))
    with zipfile.ZipFile(folder / "shd_test.h5.zip", "w") as store:
        store.write(source / "shd_test.h5", "shd_test.h5")
    data = SHD(root=tmp_path)
    data.prepare_data()
    assert data.split_indices == SHD(root=shd_root).split_indices
    for name in ("shd_train.h5", "shd_test.h5"):
        assert (folder / name).read_bytes() == (source / name).read_bytes()
    assert (folder / "shd_train.h5.gz").is_file() and (folder / "shd_test.h5.zip").is_file()


@pytest.mark.parametrize("kind", ["gz", "zip", "other"])
def test_broken_archives_leave_nothing(shd_root, tmp_path, kind):
    folder = tmp_path / "shd"
    folder.mkdir()
    raw = (shd_root / "shd" / "shd_train.h5").read_bytes()
    if kind == "gz":
        (folder / "shd_train.h5.gz").write_bytes(gzip.compress(raw)[:-500])
    elif kind == "zip":
        (folder / "shd_train.h5.zip").write_bytes(b"PK nothing")
    else:
        with zipfile.ZipFile(folder / "shd_train.h5.zip", "w") as store:
            store.writestr("readme.txt", "hello")
    with pytest.raises(
        DataError, match="expected shd_train.h5 inside" if kind == "other" else "truncated or corrupt"
    ):
        SHD(root=tmp_path).setup("fit")
    visible = [path.name for path in folder.iterdir() if not path.name.endswith(".lock")]
    assert visible == ["shd_train.h5.gz" if kind == "gz" else "shd_train.h5.zip"]


def test_downloads_are_verified(shd_root, tmp_path, monkeypatch):
    asked = []

    def download(files, root, **words):
        (file,) = files
        asked.append(file.url)
        target = root / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(target, "w") as store:
            store.write(shd_root / "shd" / target.name[:-4], target.name[:-4])
        digests[target.name] = hashlib.md5(target.read_bytes()).hexdigest()

    digests: dict[str, str] = {}
    monkeypatch.setattr(heidelberg, "fetch", download)
    with pytest.raises(DataError, match="another MD5"):
        SHD(root=tmp_path).prepare_data()
    assert not list((tmp_path / "shd").glob("shd*"))
    assert asked == ["https://zenkelab.org/datasets/shd_train.h5.zip"]
    monkeypatch.setattr(heidelberg, "_check_digest", lambda archive, md5: None)
    SHD(root=tmp_path).prepare_data()
    assert sorted(path.name for path in (tmp_path / "shd").glob("shd*")) == ["shd_test.h5", "shd_train.h5"]
    assert asked[-1] == "https://zenkelab.org/datasets/shd_test.h5.zip"


def test_offline(tmp_path, monkeypatch):
    from spiketide.data import download

    monkeypatch.setattr(download, "RETRIES", 0)
    monkeypatch.setattr(SHD, "address", "http://127.0.0.1:9/")
    with pytest.raises(DataError) as caught:
        SHD(root=tmp_path).prepare_data()
    assert str(tmp_path / "shd" / "shd_train.h5.zip") in str(caught.value)
    assert "shd_train.h5.gz, or shd_train.h5 itself" in str(caught.value)


# Files of one's own.


def test_spike_file(tmp_path):
    write_spikes(tmp_path / "a.h5", np.arange(40) % 2, 0, speakers=np.arange(40) // 10, keys=["no", "yes"])
    write_spikes(tmp_path / "b.h5", np.arange(10) % 2, 1)
    data = SpikeFile(tmp_path / "a.h5", tmp_path / "b.h5", validation="speaker", validation_fraction=0.2)
    parts = data.split_indices
    assert data.class_names == ("no", "yes")
    assert len(parts["validation"]) == 10 and len({n // 10 for n in parts["validation"]}) == 1
    assert parts["test"] == list(range(40, 50))
    alone = SpikeFile(tmp_path / "b.h5", validation_fraction=0.2)
    assert alone.split_indices["test"] == [] and alone.class_names == ("0", "1")
    with pytest.raises(DataError, match="no test file"):
        alone.setup("test")
    with pytest.raises(ParameterError, match="unknown validation 'test'"):
        SpikeFile(tmp_path / "b.h5", validation="test")
    with h5py.File(tmp_path / "b.h5", "r+") as store:
        store["spikes"].attrs["units"] = 770
    assert SpikeFile(tmp_path / "b.h5", group=77).sample_shape == (10,)
    empty = tmp_path / "c.h5"
    write_spikes(empty, np.arange(0), 0)
    with pytest.raises(DataError, match="holds no recording"):
        SpikeFile(empty).setup("fit")
