"""SoLi, on files in the format of its authors that are written here."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from spiketide.data import SoLi
from spiketide.data.soli import pieces
from spiketide.errors import DataError, ParameterError


def write(folder: Path, name: str, frames: int, **change) -> dict[str, np.ndarray]:
    """One recording: pixel 0 counts the frames, pixel 1 tells the channel; the first two frames are background."""
    gesture, session, instance = map(int, name.split("_"))
    rng = np.random.default_rng(100 * gesture + 10 * session + instance)
    content: dict[str, np.ndarray] = {}
    for channel in range(4):
        x = rng.random((frames, 1024)).astype(np.float32)
        x[:, 0], x[:, 1] = np.arange(frames) / 255, channel / 255
        content[f"ch{channel}"] = x
    content["label"] = np.full((frames, 1), gesture, dtype=np.int64)
    content["label"][:2] = 11
    content.update(change)
    folder.mkdir(parents=True, exist_ok=True)
    with h5py.File(folder / f"{name}.h5", "w") as store:
        for key, value in content.items():
            if value is not None:
                store[key] = value
    return content


FRAMES = {
    "0_2_0": 40,
    "0_2_1": 41,
    "0_3_2": 80,
    "1_2_0": 7,
    "1_2_4": 95,
    "1_3_5": 40,
    "0_2_3": 50,
    "1_2_9": 39,
}
SPLIT = {"train": list(FRAMES)[:6], "eval": list(FRAMES)[6:]}


@pytest.fixture
def root(tmp_path) -> Path:
    for name, frames in FRAMES.items():
        write(tmp_path / "soli" / "dsp", name, frames)
    (tmp_path / "soli" / "file_half.json").write_text(json.dumps(SPLIT))
    return tmp_path


def test_pieces_cover_every_frame_and_are_whole():
    for frames in range(1, 30):
        for steps in range(1, 12):
            made = pieces(frames, steps)
            assert all(len(piece) == steps for piece in made)
            assert set(np.concatenate(made).tolist()) == set(range(frames))
            assert len(made) == -(-frames // steps)
            if frames >= steps:
                assert all((np.diff(piece) == 1).all() for piece in made)
    assert [p[0] for p in pieces(95, 40)] == [0, 40, 55]


def test_values_and_labels(root):
    samples = SoLi(root=root).read("train")
    frames = [FRAMES[name] for name in SPLIT["train"]]
    expected = [(r, p) for r, n in enumerate(frames) for p in range(-(-n // 40))]
    assert samples.ids.tolist() == [1000 * r + p for r, p in expected]
    assert samples.x.shape == (len(expected), 40, 1024) and samples.x.dtype == torch.uint8
    assert samples.y.shape == (len(expected), 40)
    for row, (recording, piece) in enumerate(expected):
        name = SPLIT["train"][recording]
        content = write(root / "elsewhere", name, FRAMES[name])
        places = pieces(FRAMES[name], 40)[piece]
        assert samples.x[row, :, 0].tolist() == places.tolist()  # the frames
        assert samples.x[row, :, 1].tolist() == [3] * 40  # the channel
        np.testing.assert_allclose(
            samples.x[row].numpy() / 255, content["ch3"][places], atol=0.5 / 255 + 1e-6
        )
        wanted = content["label"][places, 0]
        assert samples.y[row].tolist() == np.where(wanted == 11, -1, wanted).tolist()
    assert (samples.y == -1).any()


def test_batches(root):
    data = SoLi(root=root, channel=0, batch_size=4, validation_fraction=0.34)
    batch = next(iter(data.train_dataloader()))
    assert batch.x.shape == (40, 4, 1024) and batch.y.shape == (40, 4) and batch.lengths is None
    assert batch.x.dtype == torch.float32 and 0.0 <= float(batch.x.min()) < float(batch.x.max()) <= 1.0
    assert float(batch.x[:, :, 1].max()) == 0.0  # channel 0
    data.setup("test")
    rows = [batch.y for batch in data.test_dataloader()]
    assert torch.cat(rows, 1).shape == (40, 3)  # 50 frames and 39


def test_no_recording_is_in_two_parts(root):
    for seed in range(6):
        parts = SoLi(root=root, validation_fraction=0.34, seed=seed).split_indices
        recordings = [{number // 1000 for number in ids} for ids in parts.values()]
        assert sum(map(len, recordings)) == 8 and set.union(*recordings) == set(range(8))
        assert recordings[2] == {6, 7} and len(recordings[1]) == 2


def test_bytes_and_scales(root):
    folder = root / "soli" / "dsp"
    byte = np.random.default_rng(0).integers(0, 256, size=(40, 1024))
    for options, values in (
        ({}, byte.astype(np.uint8)),
        ({}, byte),
        ({"scale": 255.0}, byte.astype(np.float64)),
        ({"scale": 510.0}, byte * 2.0),
    ):
        write(folder, "0_2_0", 40, ch3=values)
        assert np.array_equal(SoLi(root=root, **options).read("train").x[0].numpy(), byte)
    write(folder, "0_2_0", 40, ch3=byte.astype(np.float32))
    with pytest.raises(DataError, match="scale=255"):
        SoLi(root=root).read("train")
    write(folder, "0_2_0", 40, ch3=byte / 200 - 0.01)  # cut off below 0 and above 1
    x = SoLi(root=root).read("train").x[0]
    assert int(x.min()) == 0 and int(x.max()) == 255


def test_background_alone_is_left_out(root):
    folder = root / "soli" / "dsp"
    write(folder, "1_2_4", 95, label=np.where(np.arange(95) < 40, 11, 1))  # flat labels are read too
    ids = SoLi(root=root).read("train").ids.tolist()
    assert 4000 not in ids and 4001 in ids and 4002 in ids
    for name in SPLIT["train"]:
        write(folder, name, FRAMES[name], label=np.full(FRAMES[name], 11))
    with pytest.raises(DataError, match="no frame with a gesture"):
        SoLi(root=root).read("train")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ch3": None}, "no dataset ch3"),
        ({"label": None}, "no dataset ch3 or label"),
        ({"ch3": np.zeros((40, 32, 32))}, r"ch3 \(frames, 1024\), it has \(40, 32, 32\)"),
        ({"ch3": np.zeros((0, 1024))}, r"it has \(0, 1024\)"),
        ({"label": np.zeros(39)}, "one label for each of 40 frames"),
        ({"label": np.full(40, 12)}, "whole labels from 0 to 11"),
        ({"label": np.full(40, 0.5)}, "whole labels"),
        ({"ch3": np.full((40, 1024), np.nan)}, "NaN"),
    ],
)
def test_broken_recordings(root, change, message):
    write(root / "soli" / "dsp", "0_2_0", 40, **change)
    with pytest.raises(DataError, match=message):
        SoLi(root=root).read("train")


def test_broken_files(root):
    path = root / "soli" / "dsp" / "0_2_1.h5"
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(DataError, match="0_2_1.h5 is broken"):
        SoLi(root=root).read("train")
    path.unlink()
    with pytest.raises(DataError, match="not there: is the data set whole"):
        SoLi(root=root).read("train")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"train": ["0_2_0"', "not a whole JSON"),
        ("[1]", "'train' is not one"),
        ('{"train": ["0_2_0"]}', "'eval' is not one"),
        ('{"train": ["../x"], "eval": ["0_2_1"]}', "'train' is not one"),
        ('{"train": ["0_2_0"], "eval": ["0_2_0"]}', "0_2_0 is in both"),
        ('{"train": ["0_2_0", "0_2_0"], "eval": ["0_2_1"]}', "twice"),
    ],
)
def test_broken_lists(root, text, message):
    (root / "soli" / "file_half.json").write_text(text)
    with pytest.raises(DataError, match=message):
        SoLi(root=root).prepare_data()


def test_what_is_missing_is_told(tmp_path):
    with pytest.raises(DataError, match=r"deep-soli(.|\n)*SPIKETIDE_DATA"):
        SoLi(root=tmp_path).prepare_data()


@pytest.mark.parametrize("options", [{"channel": 4}, {"channel": -1}, {"steps": 0}, {"scale": 0.0}])
def test_options_that_make_no_sense(options):
    with pytest.raises(ParameterError, match="expected"):
        SoLi(**options)
