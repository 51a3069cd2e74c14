"""``spiketide encode``: the file it writes, interruptions, broken audio, and the command."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import soundfile
from data_files import write_wav

from spiketide.cli import main
from spiketide.data import SpikeFile
from spiketide.encoders import Cochlea, resample
from spiketide.encoders import folder as module
from spiketide.encoders.folder import encode_folder, find_recordings, read_audio, time_type
from spiketide.errors import DataError, ParameterError

EAR = Cochlea(channels=70)


def sound(seed: int, n: int = 1600) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return 6000 * np.sin(np.arange(n) * (0.2 + 0.1 * seed)) + rng.normal(scale=300, size=n)


@pytest.fixture
def clips(tmp_path) -> Path:
    """Three labels in sub-folders, one of them deeper."""
    root = tmp_path / "clips"
    for seed, name in enumerate(("cat/a.wav", "cat/b.wav", "dog/a.wav", "dog/old/c.wav", "emu/x.wav")):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        write_wav(root / name, sound(seed))
    (root / "cat" / "notes.txt").write_text("not audio")
    return root


def content(path: Path) -> dict:
    with h5py.File(path, "r") as store:
        return {
            "times": [np.asarray(t) for t in store["spikes/times"][:]],
            "units": [np.asarray(u) for u in store["spikes/units"][:]],
            "labels": store["labels"][:].tolist(),
            "keys": [key.decode() for key in store["extra/keys"][:]],
            "file": [key.decode() for key in store["extra/file"][:]],
            "speaker": store["extra/speaker"][:].tolist() if "extra/speaker" in store else None,
            "units_attr": int(store["spikes"].attrs["units"]),
        }


def same(a: Path, b: Path) -> bool:
    x, y = content(a), content(b)
    pairs = zip(x["times"] + x["units"], y["times"] + y["units"], strict=True)
    return (
        all(np.array_equal(p, q) for p, q in pairs) and x["labels"] == y["labels"] and x["file"] == y["file"]
    )


def test_the_file_holds_what_the_ear_hears(clips, tmp_path):
    done = encode_folder(clips, tmp_path / "out.h5", ear=EAR, jobs=1)
    found = content(tmp_path / "out.h5")
    assert found["keys"] == ["cat", "dog", "emu"] and found["labels"] == [0, 0, 1, 1, 2]
    assert found["file"] == ["cat/a.wav", "cat/b.wav", "dog/a.wav", "dog/old/c.wav", "emu/x.wav"]
    assert found["speaker"] is None and found["units_attr"] == 70
    for name, times, units in zip(found["file"], found["times"], found["units"], strict=True):
        expected = EAR(read_audio(clips / name, 8000))
        assert times.dtype == np.float16 and len(times) > 20
        assert np.array_equal(times, expected.times.astype(np.float16))
        assert np.array_equal(units, expected.units)
    assert (done.recordings, done.classes, done.resumed, done.skipped) == (5, 3, 0, ())
    assert done.spikes == sum(map(len, found["times"]))
    visible = {path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock")}
    assert visible == {"clips", "out.h5"}  # no part file, nothing half
    data = SpikeFile(tmp_path / "out.h5", group=7, validation_fraction=0.5)
    assert data.class_names == ("cat", "dog", "emu") and data.sample_shape == (10,)
    assert data.read("train").x[0].sum() == len(found["times"][0])


def test_processes_give_the_same_file(clips, tmp_path):
    encode_folder(clips, tmp_path / "one.h5", ear=EAR, jobs=1)
    encode_folder(clips, tmp_path / "two.h5", ear=EAR, jobs=2)
    assert same(tmp_path / "one.h5", tmp_path / "two.h5")


def counted(monkeypatch, stop_after: int | None = None) -> list[str]:
    """The names of the recordings that are encoded; Ctrl-C comes after some of them."""
    names: list[str] = []
    original = module._hear

    def hear(path, ear):
        if stop_after is not None and len(names) == stop_after:
            raise KeyboardInterrupt
        names.append(path.name)
        return original(path, ear)

    monkeypatch.setattr(module, "_hear", hear)
    return names


def test_an_interrupted_call_goes_on(clips, tmp_path, monkeypatch):
    encode_folder(clips, tmp_path / "whole.h5", ear=EAR, jobs=1)
    out = tmp_path / "out.h5"
    with monkeypatch.context() as patch:
        counted(patch, stop_after=3)
        with pytest.raises(
            KeyboardInterrupt, match="stopped with 3 of 5 recordings done; run the same command"
        ):
            encode_folder(clips, out, ear=EAR, jobs=1)
    assert not out.exists()
    names = counted(monkeypatch)
    done = encode_folder(clips, out, ear=EAR, jobs=1)
    assert names == ["c.wav", "x.wav"] and done.resumed == 3
    assert same(out, tmp_path / "whole.h5")


@pytest.mark.parametrize("kept", [-3, -200])
def test_a_kill_in_the_middle_of_a_piece_loses_only_that(clips, tmp_path, monkeypatch, kept):
    out = tmp_path / "out.h5"
    encode_folder(clips, tmp_path / "whole.h5", ear=EAR, jobs=1)
    with monkeypatch.context() as patch:
        counted(patch, stop_after=3)
        with pytest.raises(KeyboardInterrupt):
            encode_folder(clips, out, ear=EAR, jobs=1)
    part = tmp_path / "out.h5.part"
    part.write_bytes(part.read_bytes()[:kept])
    names = counted(monkeypatch)
    assert encode_folder(clips, out, ear=EAR, jobs=1).resumed == 2
    assert len(names) == 3
    assert same(out, tmp_path / "whole.h5")


def test_a_changed_recording_is_encoded_again(clips, tmp_path, monkeypatch):
    out = tmp_path / "out.h5"
    with monkeypatch.context() as patch:
        counted(patch, stop_after=3)
        with pytest.raises(KeyboardInterrupt):
            encode_folder(clips, out, ear=EAR, jobs=1)
    write_wav(clips / "cat" / "a.wav", sound(9, 1200))
    names = counted(monkeypatch)
    encode_folder(clips, out, ear=EAR, jobs=1)
    assert names == ["a.wav", "c.wav", "x.wav"]
    assert np.array_equal(content(out)["units"][0], EAR(read_audio(clips / "cat" / "a.wav", 8000)).units)


def test_a_part_file_of_another_ear_is_refused(clips, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        counted(patch, stop_after=2)
        with pytest.raises(KeyboardInterrupt):
            encode_folder(clips, tmp_path / "out.h5", ear=EAR, jobs=1)
    with pytest.raises(DataError, match="other settings of the ear: delete it"):
        encode_folder(clips, tmp_path / "out.h5", ear=Cochlea(channels=35), jobs=1)


def test_a_failed_write_leaves_no_half_file(clips, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(DataError, match=r"cannot be written.*No space left.*run again"):
            encode_folder(clips, tmp_path / "out.h5", ear=EAR, jobs=1)
    assert {p.name for p in tmp_path.iterdir() if not p.name.endswith(".lock")} == {"clips", "out.h5.part"}
    names = counted(monkeypatch)
    assert encode_folder(clips, tmp_path / "out.h5", ear=EAR, jobs=1).resumed == 5
    assert names == []


BREAKS = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:20]),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("<html>not found</html>"),
    "no samples": lambda path: write_wav(path, np.empty(0)),
    "nan": lambda path: soundfile.write(path, np.full(100, np.nan, "f4"), 8000, subtype="FLOAT"),
}


@pytest.mark.parametrize("kind", BREAKS)
@pytest.mark.parametrize("jobs", [1])
def test_broken_audio_is_named_or_left_out(clips, tmp_path, kind, jobs, caplog):
    BREAKS[kind](clips / "dog" / "a.wav")
    with pytest.raises(DataError, match=r"dog/a\.wav cannot be read as audio.*--skip-bad.*is kept"):
        encode_folder(clips, tmp_path / "out.h5", ear=EAR, jobs=jobs)
    assert not (tmp_path / "out.h5").exists()
    done = encode_folder(clips, tmp_path / "out.h5", ear=EAR, jobs=jobs, skip_bad=True)
    assert done.skipped == ("dog/a.wav",) and done.recordings == 4 and done.resumed == 2
    assert content(tmp_path / "out.h5")["labels"] == [0, 0, 1, 2]
    assert "left out" in caplog.text and "a.wav" in caplog.text


def test_nothing_but_broken_audio(clips, tmp_path):
    for path in clips.rglob("*.wav"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match="not one of the 5 recordings"):
        encode_folder(clips, tmp_path / "out.h5", ear=EAR, jobs=1, skip_bad=True)


def test_names_as_in_fsdd(tmp_path):
    folder = tmp_path / "clips"
    folder.mkdir()
    for seed, name in enumerate(("0_theo_0", "1_anna_lena_12", "0_anna_lena_3")):
        write_wav(folder / f"{name}.wav", sound(seed))
    encode_folder(folder, tmp_path / "out.h5", naming="fsdd", ear=EAR, jobs=1)
    found = content(tmp_path / "out.h5")
    assert found["file"] == ["0_anna_lena_3.wav", "0_theo_0.wav", "1_anna_lena_12.wav"]
    assert found["labels"] == [0, 0, 1] and found["speaker"] == [0, 1, 0]
    with h5py.File(tmp_path / "out.h5") as store:
        assert [name.decode() for name in store["extra/speaker_names"][:]] == ["anna_lena", "theo"]
    write_wav(folder / "hello.wav", sound(0))
    with pytest.raises(DataError, match=r"hello\.wav expected a name \{label\}_\{speaker\}_\{index\}\.wav"):
        find_recordings(folder, "fsdd")
    with pytest.raises(DataError, match="lies in no sub-folder.*--naming fsdd"):
        find_recordings(folder, "folder")


def test_stereo_other_rates_and_formats(tmp_path):
    rng = np.random.default_rng(0)
    stereo = rng.uniform(-0.5, 0.5, size=(4410, 2))
    soundfile.write(tmp_path / "a.flac", stereo, 44100, subtype="PCM_24")
    found = read_audio(tmp_path / "a.flac", 8000)
    assert len(found) == 800
    assert np.abs(found - resample(stereo.mean(1), 44100, 8000)).max() < 1e-5


def test_long_recordings_have_finer_times(tmp_path):
    folder = tmp_path / "clips" / "x"
    folder.mkdir(parents=True)
    write_wav(folder / "a.wav", np.concatenate([np.zeros(17000), sound(0)]))
    assert encode_folder(folder.parent, tmp_path / "a.h5", ear=EAR, jobs=1).times == "float32"
    times = content(tmp_path / "a.h5")["times"][0]
    assert times.dtype == np.float32 and times.min() > 2
    assert np.array_equal(times, EAR(read_audio(folder / "a.wav", 8000)).times.astype(np.float32))
    assert encode_folder(folder.parent, tmp_path / "b.h5", ear=EAR, jobs=1, resolution=2.0).times == "float16"
    assert [time_type(t, 1.0) for t in (0.0, 1.99, 2.0, 1e6)] == ["float16", "float16", "float32", "float32"]


def test_refusals(clips, tmp_path):
    with pytest.raises(DataError, match="not a folder"):
        encode_folder(tmp_path / "nowhere", tmp_path / "out.h5")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no audio files"):
        encode_folder(tmp_path / "empty", tmp_path / "out.h5")
    (tmp_path / "there.h5").write_text("mine")
    with pytest.raises(DataError, match="is there already"):
        encode_folder(clips, tmp_path / "there.h5")
    assert (tmp_path / "there.h5").read_text() == "mine"
    for options, words in (
        ({"naming": "x"}, "unknown naming"),
        ({"jobs": 0}, "1 job or more"),
        ({"resolution": 0.0}, "resolution above 0"),
    ):
        with pytest.raises(ParameterError, match=words):
            encode_folder(clips, tmp_path / "out.h5", **options)


def test_two_calls_at_once(clips, tmp_path):
    from filelock import FileLock

    with FileLock(tmp_path / ".out.h5.lock"), pytest.raises(DataError, match="another process encodes"):
        encode_folder(clips, tmp_path / "out.h5", ear=EAR, jobs=1)


def test_the_command(clips, tmp_path, capsys):
    words = [
        "encode",
        str(clips),
        "--out",
        str(tmp_path / "out.h5"),
        "--channels",
        "70",
        "--jobs",
        "1",
        "--json",
    ]
    assert main(words) == 0
    said = capsys.readouterr()
    last = json.loads(said.out.splitlines()[-1])
    assert last["verb"] == "encode" and last["recordings"] == 5 and last["skipped"] == []
    encode_folder(clips, tmp_path / "direct.h5", ear=EAR, jobs=1)
    assert same(tmp_path / "out.h5", tmp_path / "direct.h5")
    assert main(words) == 2
    assert "is there already" in capsys.readouterr().err
    (clips / "emu" / "x.wav").write_bytes(b"RIFF")
    words[3] = str(tmp_path / "again.h5")
    assert main(words) == 2
    assert "emu/x.wav cannot be read as audio" in capsys.readouterr().err
    assert main([*words, "--skip-bad"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["skipped"] == ["emu/x.wav"]


def test_without_soundfile(clips, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "soundfile", None)
    with pytest.raises(DataError, match="soundfile, which is not installed"):
        encode_folder(clips, tmp_path / "out.h5", jobs=1)
    shutil.rmtree(clips)
