"""TIMIT, on a small corpus in its layout and its SPHERE format that is written here."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from data_files import everything

from spiketide.data import TIMIT
from spiketide.data.timit import PHONES, Cepstra, frame_labels, read_wave
from spiketide.errors import DataError, ParameterError

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("librosa")

TRAIN = ("FCJF0", "MDPK0", "FDAW0", "MEDR0")
TEST = ("MDAB0", "FELC0", "FAKS0")  # the last is not in the core set


def utterance(folder: Path, sentence: str, seed: int, samples: int, riff: bool = False) -> None:
    """Tones, one a phone, and the labels of the phones."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    ends = [*np.sort(rng.choice(np.arange(500, samples, 7), size=4, replace=False)).tolist(), samples]
    phones = ["h#", *rng.permutation(["sh", "iy", "axr"]).tolist(), "h#"]  # all speakers say all of them
    wave, lines, begin = np.zeros(samples), [], 0
    for phone, end in zip(phones, ends, strict=True):
        time = np.arange(begin, end) / 16000
        wave[begin:end] = 0.2 * np.sin(2 * np.pi * (200 + 100 * PHONES.index(phone)) * time)
        lines.append(f"{begin} {end} {phone} \n")
        begin = end
    wave += rng.normal(scale=0.01, size=samples)
    name, form = (f"{sentence}.WAV.wav", "WAV") if riff else (f"{sentence}.WAV", "NIST")
    soundfile.write(folder / name, wave, 16000, format=form, subtype="PCM_16")
    (folder / f"{sentence}.PHN").write_text("".join(lines))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("timit_root")
    for part, speakers in (("TRAIN", TRAIN), ("TEST", TEST)):
        for place, speaker in enumerate(speakers):
            folder = root / "timit" / part / f"DR{1 + place % 2}" / speaker
            for number, sentence in enumerate(("SI648", "SX37", "SA1")):
                samples = 16000 + 4000 * number + 1000 * place
                utterance(folder, sentence, 10 * place + number, samples, riff=sentence == "SX37")
    return root


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(TIMIT, "core", TEST[:2])


def test_the_published_lists():
    assert len(PHONES) == len(set(PHONES)) == 61 and TIMIT(root="x").class_names == PHONES


def test_cepstra_against_librosa():
    import librosa

    wave = np.random.default_rng(0).normal(scale=0.1, size=9000)
    y = Cepstra()(wave)
    assert y.shape == (Cepstra().frames(9000), 39) == (54, 39) and y.dtype == np.float32
    raised = np.append(wave[0], wave[1:] - 0.97 * wave[:-1])
    mel = librosa.feature.melspectrogram(
        y=raised, sr=16000, n_fft=400, hop_length=160, window=np.hamming(400), center=False, n_mels=26
    )
    cepstra = librosa.feature.mfcc(S=np.log(mel + 1e-10), n_mfcc=13)[1:]
    energy = [np.log((raised[160 * t : 160 * t + 400] ** 2).sum() + 1e-10) for t in range(54)]
    first = np.vstack([cepstra, energy])
    slope = librosa.feature.delta(first, width=5, mode="nearest")
    bend = librosa.feature.delta(slope, width=5, mode="nearest")
    np.testing.assert_allclose(y, np.vstack([first, slope, bend]).T, rtol=2e-4, atol=2e-4)


def test_cepstra_of_silence_and_of_one_window():
    assert np.isfinite(Cepstra()(np.zeros(4000))).all()
    assert Cepstra()(np.ones(400)).shape == (1, 39)
    for options in ({"n_mels": 12}, {"hop_ms": 0.0}, {"preemphasis": 1.0}, {"floor": float("nan")}):
        with pytest.raises(ParameterError, match="Cepstra expected"):
            Cepstra(**options)


def test_labels_are_those_of_the_middle_of_the_frame(tmp_path):
    path = tmp_path / "a.PHN"
    path.write_text("0 300 h#\n300 680 sh\n\n800 2000 iy\n")  # nothing from 680 to 800
    expected = ["h#", "sh", "sh", "", "iy", "iy"]  # middles 200, 360, 520, 680, 840, 1000
    found = frame_labels(path, 6, 160, 400).tolist()
    assert [PHONES[n] if n >= 0 else "" for n in found] == expected


def test_utterances_and_pieces(corpus):
    data = TIMIT(root=corpus, chunk=30, normalise="none")
    utterances = data.utterances("TRAIN")
    assert [(it.speaker, it.sentence) for it in utterances] == [
        (speaker, sentence) for speaker in sorted(TRAIN) for sentence in ("SI648", "SX37")
    ]
    samples = data.read("train")
    row = 0
    for number, it in enumerate(utterances):
        wave = soundfile.read(it.wave)[0]
        frames = Cepstra()(wave)
        labels = frame_labels(it.phones, len(frames), 160, 400)
        assert (labels >= 0).all()
        for piece, start in enumerate(range(0, len(frames), 30)):
            assert np.array_equal(samples.x[row].numpy(), frames[start : start + 30])
            assert np.array_equal(samples.y[row].numpy(), labels[start : start + 30])
            assert samples.ids[row] == 1000 * number + piece
            row += 1
    assert row == len(samples.ids)
    whole = TIMIT(root=corpus, chunk=None, normalise="none").read("train")
    assert len(whole.x) == 8 and torch.equal(torch.cat(whole.x), torch.cat(samples.x))


def test_parts_share_no_speaker(corpus):
    for seed in range(4):
        data = TIMIT(root=corpus, chunk=30, seed=seed)
        parts = data.split_indices
        names = [it.speaker for part in ("TRAIN", "TEST") for it in data.utterances(part)]
        speakers = {part: {names[number // 1000] for number in ids} for part, ids in parts.items()}
        assert speakers["test"] == set(TEST[:2])
        assert len(speakers["validation"]) == 1 and speakers["validation"] | speakers["train"] == set(TRAIN)
        assert not speakers["validation"] & speakers["train"]
    full = TIMIT(root=corpus, chunk=30, test="full").split_indices
    assert {names[number // 1000] for number in full["test"]} == set(TEST)
    assert set(parts["test"]) < set(full["test"]) and len(everything(full)) == len(set(everything(full)))


def test_scaling_comes_from_training_alone(corpus):
    raw = TIMIT(root=corpus, normalise="none")
    train, test = (torch.cat(raw.read(part).x) for part in ("train", "test"))
    low, high = train.min(0).values, train.max(0).values
    ranged = TIMIT(root=corpus)
    after = torch.cat(ranged.read("test").x)  # test first: the scale is not the order's
    torch.testing.assert_close(after, (test - low) / (high - low), rtol=1e-4, atol=1e-5)
    after = torch.cat(ranged.read("train").x)
    assert float(after.min()) == 0.0 and float(after.max()) == 1.0
    standard = TIMIT(root=corpus, normalise="standard")
    after = torch.cat(standard.read("train").x)
    torch.testing.assert_close(after.mean(0), torch.zeros(39), rtol=0, atol=1e-4)
    torch.testing.assert_close(after.std(0, correction=0), torch.ones(39), rtol=1e-4, atol=0)
    after = torch.cat(standard.read("test").x)
    torch.testing.assert_close(
        after, (test - train.mean(0)) / train.std(0, correction=0), rtol=1e-3, atol=1e-3
    )


def test_batches(corpus):
    data = TIMIT(root=corpus, batch_size=4)
    batch = next(iter(data.train_dataloader()))
    steps = batch.x.shape[0]
    assert batch.x.shape == (steps, 4, 39) and batch.y.shape == (steps, 4) and batch.lengths is not None
    for sample, length in enumerate(batch.lengths.tolist()):
        assert (batch.y[:length, sample] >= 0).all() and (batch.y[length:, sample] == -1).all()


def test_lower_case_and_another_folder(corpus, tmp_path):
    for path in (corpus / "timit").rglob("*.*"):
        place = tmp_path / "timit" / "data" / str(path.relative_to(corpus / "timit")).lower()
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)
    lower, upper = TIMIT(root=tmp_path).read("train"), TIMIT(root=corpus).read("train")
    assert lower.ids.tolist() == upper.ids.tolist()
    assert all(torch.equal(a, b) for a, b in zip(lower.x, upper.x, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(lower.y, upper.y, strict=True))


def test_frames_are_computed_once(corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    calls = []
    original = Cepstra.__call__
    monkeypatch.setattr(Cepstra, "__call__", lambda self, wave: (calls.append(1), original(self, wave))[1])
    TIMIT(root=corpus).prepare_data()
    assert len(calls) == 14
    data = TIMIT(root=corpus, chunk=20, test="full")
    data.read("train"), data.read("test")
    assert len(calls) == 14


@pytest.fixture
def broken(corpus, tmp_path) -> Path:
    shutil.copytree(corpus / "timit", tmp_path / "timit")
    return tmp_path


FIRST = "timit/TRAIN/DR1/FCJF0"


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("SI648.PHN", b"0 100 h#\n100 zz\n", "line 2, expected 'begin end phone'"),
        ("SI648.PHN", b"0 100 hh#\n", "line 1: unknown phone 'hh#'"),
        ("SI648.PHN", b"-5 100 h#\n", "line 1, expected"),
        ("SI648.WAV", b"NIST_1A\n   1024\nnothing", "not a whole SPHERE or RIFF file"),
        ("SI648.WAV", b"", "not a whole SPHERE or RIFF file"),
    ],
)
def test_broken_files(broken, file, content, message):
    (broken / FIRST / file).write_bytes(content)
    with pytest.raises(DataError, match=message):
        TIMIT(root=broken).read("train")


def test_waves_of_another_form(tmp_path):
    for samples, rate, channels, message in (
        (16000, 8000, 1, "at 8000 Hz"),
        (16000, 16000, 2, "it has 2 at"),
        (399, 16000, 1, "400 samples at least"),
    ):
        soundfile.write(
            tmp_path / "a.WAV", np.zeros((samples, channels)), rate, format="NIST", subtype="PCM_16"
        )
        with pytest.raises(DataError, match=message):
            read_wave(tmp_path / "a.WAV", 400)


def test_incomplete_corpora(broken, tmp_path_factory):
    with pytest.raises(DataError, match=r"LDC93S1(.|\n)*SPIKETIDE_DATA"):
        TIMIT(root=tmp_path_factory.mktemp("empty")).prepare_data()
    shutil.copytree(broken / FIRST, broken / "timit/TEST/DR1/FCJF0")
    with pytest.raises(DataError, match="FCJF0 is in both"):
        TIMIT(root=broken).read("test")
    shutil.rmtree(broken / "timit/TEST/DR1/FCJF0")
    (broken / FIRST / "SI648.WAV").unlink()
    with pytest.raises(DataError, match=r"no recording SI648\.WAV beside it"):
        TIMIT(root=broken).read("train")
    for speaker in TRAIN:
        shutil.rmtree(next((broken / "timit/TRAIN").glob(f"DR*/{speaker}")))
    with pytest.raises(DataError, match="there is none"):
        TIMIT(root=broken).read("train")


def test_one_speaker_cannot_be_split_and_the_core_must_be_there(broken, monkeypatch):
    for speaker in TRAIN[1:]:
        shutil.rmtree(next((broken / "timit/TRAIN").glob(f"DR*/{speaker}")))
    with pytest.raises(DataError, match="two speakers"):
        TIMIT(root=broken).setup("fit")
    monkeypatch.setattr(TIMIT, "core", ("MDAB0", "MWBT0"))
    with pytest.raises(DataError, match="the first: MWBT0"):
        TIMIT(root=broken).read("test")


@pytest.mark.parametrize("options", [{"test": "all"}, {"normalise": "z"}, {"chunk": 0}])
def test_options_that_make_no_sense(options):
    with pytest.raises(ParameterError, match="unknown|chunk of 1"):
        TIMIT(**options)
