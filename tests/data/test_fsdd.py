from __future__ import annotations

import hashlib
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from data_files import REPETITIONS, SPEAKERS, everything, write_wav

from spiketide.data import FSDD, LogMel, download, fsdd
from spiketide.data.fsdd import decode_wav, unpack
from spiketide.errors import DataError, ParameterError


def names(data, part: str) -> list[tuple[int, str, int]]:
    return [data.recordings[number] for number in data.split_indices[part]]


def test_official_split(small_fsdd, fsdd_root):
    data = small_fsdd(root=fsdd_root, validation_fraction=0.2)
    data.prepare_data()
    assert {index for _, _, index in names(data, "test")} == {0, 1, 2, 3, 4}
    assert {index for part in ("train", "validation") for _, _, index in names(data, part)} == {5, 6}
    assert len(names(data, "test")) == 150
    assert [digit for digit, _, _ in names(data, "validation")].count(3) == 12 // 10
    assert everything(data.split_indices) == list(range(10 * len(SPEAKERS) * REPETITIONS))


def test_held_out_speaker(small_fsdd, fsdd_root):
    data = small_fsdd(root=fsdd_root, held_out_speaker="theo")
    assert {speaker for _, speaker, _ in names(data, "test")} == {"theo"}
    assert len(names(data, "test")) == 70
    for part in ("train", "validation"):
        assert {speaker for _, speaker, _ in names(data, part)} == {"george", "lucas"}
    assert len(names(data, "validation")) == 14


def test_validation_speaker(small_fsdd, fsdd_root):
    data = small_fsdd(root=fsdd_root, held_out_speaker="theo", validation_speaker="lucas")
    assert {speaker for _, speaker, _ in names(data, "validation")} == {"lucas"}
    assert {speaker for _, speaker, _ in names(data, "train")} == {"george"}
    assert len(names(data, "validation")) == len(names(data, "train")) == 70
    official = small_fsdd(root=fsdd_root, validation_speaker="lucas")
    assert len(names(official, "validation")) == 20  # its training recordings; its test recordings stay
    assert {speaker for _, speaker, _ in names(official, "test")} == set(SPEAKERS)


def test_frames_lengths_and_labels(small_fsdd, fsdd_root):
    data = small_fsdd(root=fsdd_root, eval_batch_size=16, validation_fraction=0.3)
    data.setup("test")
    seen, order = 0, names(data, "test")
    for batch in data.test_dataloader():
        assert batch.x.shape[1:] == (len(batch.y), *data.sample_shape)
        assert batch.x.shape[0] == batch.lengths.max()
        for b, length in enumerate(batch.lengths.tolist()):
            digit, speaker, index = order[seen]
            path = fsdd_root / "fsdd" / "recordings" / f"{digit}_{speaker}_{index}.wav"
            expected = LogMel()(decode_wav(path.read_bytes(), path))
            assert batch.y[b] == digit
            assert length == len(expected) == 1 + (path.stat().st_size - 44) // 2 // 80
            assert np.array_equal(batch.x[:length, b].numpy(), expected)
            assert not batch.x[length:, b].any()
            seen += 1
    assert seen == 150


def test_max_steps_and_bands(small_fsdd, fsdd_root):
    data = small_fsdd(root=fsdd_root, max_steps=8, n_mels=20)
    whole = small_fsdd(root=fsdd_root, n_mels=20)
    short, long = data.read("train"), whole.read("train")
    assert data.sample_shape == (20,)
    assert max(len(x) for x in short.x) == 8
    assert all(torch.equal(a, b[:8]) for a, b in zip(short.x, long.x, strict=True))


def test_frames_are_cached_and_the_cache_knows_the_files(small_fsdd, fsdd_root, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shutil.copytree(fsdd_root / "fsdd", tmp_path / "data" / "fsdd")
    calls = []
    original = LogMel.__call__
    monkeypatch.setattr(LogMel, "__call__", lambda self, wave: (calls.append(1), original(self, wave))[1])
    small_fsdd(root=tmp_path / "data").prepare_data()
    assert len(calls) == 210
    first = small_fsdd(root=tmp_path / "data").read("train")
    assert len(calls) == 210
    write_wav(tmp_path / "data" / "fsdd" / "recordings" / "0_george_5.wav", np.arange(900))
    second = small_fsdd(root=tmp_path / "data").read("train")
    assert len(calls) == 420
    changed = [not torch.equal(a, b) for a, b in zip(first.x, second.x, strict=True)]
    assert sum(changed) == 1
    assert all(path.is_relative_to(tmp_path / "cache") for path in tmp_path.rglob("*.npz"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"held_out_speaker": "teo"}, "unknown speaker 'teo'; did you mean 'theo'"),
        ({"validation_speaker": "nobody"}, "Known: george, jackson, lucas, nicolas, theo, yweweler"),
        ({"held_out_speaker": "theo", "validation_speaker": "theo"}, "'theo' for both"),
        ({"max_steps": 0}, "max_steps of 1 or more"),
        ({"n_mels": 0}, "n_mels > 0"),
    ],
)
def test_options_that_make_no_sense(options, words):
    with pytest.raises(ParameterError, match=words):
        FSDD(**options)


def test_a_missing_recording_is_named(small_fsdd, fsdd_root, tmp_path):
    shutil.copytree(fsdd_root / "fsdd", tmp_path / "fsdd")
    (tmp_path / "fsdd" / "recordings" / "3_theo_2.wav").unlink()
    with pytest.raises(DataError, match=r"1 are missing \(the first: 3_theo_2\.wav\).*SPIKETIDE_DATA"):
        small_fsdd(root=tmp_path).prepare_data()


def wav(tmp_path: Path, **options) -> bytes:
    write_wav(tmp_path / "a.wav", np.arange(1000), **options)
    return (tmp_path / "a.wav").read_bytes()


def test_decoding(tmp_path):
    write_wav(tmp_path / "a.wav", np.array([0, 16384, -32768, 32767]))
    assert decode_wav((tmp_path / "a.wav").read_bytes(), tmp_path).tolist() == [0.0, 0.5, -1.0, 32767 / 32768]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda raw: raw[:-10], "promises 1000 samples, it has 995"),
        (lambda raw: raw[:44], "promises 1000 samples, it has 0"),
        (lambda raw: raw[:30], "truncated or not a wav"),
        (lambda raw: b"", "truncated or not a wav"),
        (lambda raw: b"<html>" + raw, "truncated or not a wav"),
    ],
)
def test_broken_recordings(tmp_path, damage, words):
    with pytest.raises(DataError, match=words) as caught:
        decode_wav(damage(wav(tmp_path)), tmp_path / "7_theo_1.wav")
    assert "7_theo_1.wav" in str(caught.value)
    assert "Copy it again" in str(caught.value)


@pytest.mark.parametrize("options", [{"rate": 16000}, {"channels": 2}])
def test_recordings_of_another_format(tmp_path, options):
    with pytest.raises(DataError, match="expected one channel of 2 bytes at 8000 Hz"):
        decode_wav(wav(tmp_path, **options), tmp_path / "a.wav")


def archive_of(folder: Path, target: Path) -> str:
    """A release archive as GitHub makes it; returns the digest of its recordings."""
    target.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    with zipfile.ZipFile(target, "w") as store:
        store.writestr("free-spoken-digit-dataset-1.0.10/README.md", "hello")
        for path in sorted(folder.iterdir(), reverse=True):
            store.write(path, f"free-spoken-digit-dataset-1.0.10/recordings/{path.name}")
            lines.append(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  recordings/{path.name}\n")
    return hashlib.sha256("".join(reversed(lines)).encode()).hexdigest()


def test_the_release_archive_is_verified_and_unpacked(small_fsdd, fsdd_root, tmp_path, monkeypatch):
    archive = tmp_path / small_fsdd.archive.path
    digest = archive_of(fsdd_root / "fsdd" / "recordings", archive)
    data = small_fsdd(root=tmp_path, validation_fraction=0.3)
    with pytest.raises(DataError, match=r"other recordings than expected \(210 files"):
        data.prepare_data()
    visible = [path.name for path in (tmp_path / "fsdd").iterdir() if not path.name.endswith(".lock")]
    assert visible == [archive.name]  # put there by hand: it stays, and nothing half is beside it
    monkeypatch.setattr(small_fsdd, "digest", digest)
    data.prepare_data()
    assert len(list((tmp_path / "fsdd" / "recordings").glob("*.wav"))) == 210
    assert archive.is_file()
    assert len(data.split_indices["test"]) == 150


def test_a_downloaded_archive_is_removed_once_its_recordings_are_in_place(
    small_fsdd, fsdd_root, tmp_path, monkeypatch
):
    def download_it(files, root, **words):
        monkeypatch.setattr(
            small_fsdd, "digest", archive_of(fsdd_root / "fsdd" / "recordings", root / files[0].path)
        )

    monkeypatch.setattr(fsdd, "fetch", download_it)
    small_fsdd(root=tmp_path).prepare_data()
    assert len(list((tmp_path / "fsdd" / "recordings").glob("*.wav"))) == 210
    assert not list((tmp_path / "fsdd").glob("*.zip"))


def test_a_broken_archive(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"PK nothing")
    with pytest.raises(DataError, match="not a whole zip file"):
        unpack(tmp_path / "a.zip", tmp_path / "recordings", "")
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


def test_offline(small_fsdd, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "RETRIES", 0)
    monkeypatch.setattr(small_fsdd, "archive", FSDD.archive._replace(url="http://127.0.0.1:9/a.zip"))
    with pytest.raises(DataError) as caught:
        small_fsdd(root=tmp_path).prepare_data()
    assert str(tmp_path / "fsdd" / "free-spoken-digit-dataset-1.0.10.zip") in str(caught.value)
    assert f"the wav files lie in {tmp_path / 'fsdd' / 'recordings'}" in str(caught.value)


# The real recordings.


def test_real_splits(real_data):
    official = FSDD(root=real_data)
    parts = {part: names(official, part) for part in ("train", "validation", "test")}
    assert {part: len(found) for part, found in parts.items()} == {
        "train": 2430,
        "validation": 270,
        "test": 300,
    }
    for found, each in ((parts["train"], 243), (parts["validation"], 27), (parts["test"], 30)):
        assert np.bincount([digit for digit, _, _ in found]).tolist() == [each] * 10
    assert not set(parts["train"]) & set(parts["validation"])
    for speaker in FSDD.speakers:
        data = FSDD(root=real_data, held_out_speaker=speaker)
        sizes = {part: len(ids) for part, ids in data.split_indices.items()}
        assert sizes == {"train": 2250, "validation": 250, "test": 500}
        assert {name for _, name, _ in names(data, "test")} == {speaker}


def test_the_digest_is_that_of_the_real_recordings(real_data):
    folder = real_data / "fsdd" / "recordings"
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  recordings/{path.name}\n"
        for path in sorted(folder.iterdir(), key=lambda path: path.name)
    ]
    assert hashlib.sha256("".join(lines).encode()).hexdigest() == FSDD.digest


@pytest.mark.parametrize(("held_out", "at_least"), [(None, 0.90), ("theo", 0.75)])
def test_a_linear_classifier_hears_the_digits(real_data, held_out, at_least):
    """The frames carry what they should: a closed-form ridge on twenty evenly spaced frames."""
    data = FSDD(root=real_data, held_out_speaker=held_out)

    def pooled(samples) -> np.ndarray:
        rows = []
        for x in samples.x:
            at = np.linspace(0, len(x) - 1, 20)
            low = np.floor(at).astype(int)
            high, share = np.minimum(low + 1, len(x) - 1), (at - low)[:, None]
            rows.append((x.numpy()[low] * (1 - share) + x.numpy()[high] * share).ravel())
        return np.column_stack([np.array(rows), np.ones(len(rows))])

    train, test = data.read("train"), data.read("test")
    a, b = pooled(train), np.eye(10)[train.y]
    weights = np.linalg.solve(a.T @ a + 100 * np.eye(a.shape[1]), a.T @ b)
    accuracy = ((pooled(test) @ weights).argmax(1) == test.y.numpy()).mean()
    assert accuracy >= at_least
