"""WFDB records written with the package itself, and the waves between marks."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spiketide.data import QTDB, read_record, wave_labels
from spiketide.data.wfdb_records import WAVES, Annotations
from spiketide.errors import DataError, ParameterError, ShapeError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    wfdb = pytest.importorskip("wfdb")


def write(
    folder: Path, signal: np.ndarray, rate: float, name: str = "rec", leads: tuple = ("II", "V1")
) -> Path:
    with warnings.catch_warnings():  # of pandas, which the package uses to write; reading must be quiet
        warnings.simplefilter("ignore")
        wfdb.wrsamp(
            name,
            fs=rate,
            units=["mV"] * signal.shape[1],
            sig_name=list(leads[: signal.shape[1]]),
            p_signal=signal,
            fmt=["16"] * signal.shape[1],
            write_dir=str(folder),
        )
    return folder / name


def mark(folder: Path, samples, symbols, ending: str = "pu0") -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wfdb.wrann("rec", "abc", np.array(samples), symbol=list(symbols), write_dir=str(folder))
    (folder / "rec.abc").rename(folder / f"rec.{ending}")  # it writes endings of letters only


def tones(n: int, rate: float) -> np.ndarray:
    time = np.arange(n) / rate
    return np.column_stack([np.sin(2 * np.pi * 3 * time), 2.0 + 0.5 * np.cos(2 * np.pi * 5 * time)])


def test_values_names_and_order(tmp_path):
    x = tones(2000, 250.0)
    path = write(tmp_path, x, 250.0)
    record = read_record(path)
    assert record.rate == 250.0 and record.annotations is None
    np.testing.assert_allclose(record.signal, x, atol=2e-4)  # 16 bits
    for channels in ([1, 0], ["V1", "II"], ["V1", 0]):
        np.testing.assert_array_equal(read_record(path, channels).signal, record.signal[:, ::-1])
    np.testing.assert_array_equal(read_record(f"{path}.hea", [1]).signal, record.signal[:, 1:])


@pytest.mark.parametrize("own", [500.0, 360.0, 1000.0, 128.0])
def test_resampling_keeps_the_signal(tmp_path, own):
    """Tones far below half the rate come out as the same tones; the large mean of a lead makes no step at the ends."""
    path = write(tmp_path, tones(int(4 * own), own), own)
    signal, rate, _ = read_record(path)
    assert rate == 250.0 and signal.shape == (1000, 2)
    error = np.abs(signal - tones(1000, 250.0))
    assert error[25:-25].max() < 5e-3 and error.max() < 0.3
    same = read_record(path, rate=None)
    assert same.rate == own and len(same.signal) == int(4 * own)


def test_marks_move_with_the_rate(tmp_path):
    path = write(tmp_path, tones(3600, 360.0), 360.0)
    samples = [0, 36, 40, 100, 361, 3599]
    mark(tmp_path, samples, "(p)(N)")
    annotations = read_record(path, annotator="pu0").annotations
    assert annotations.symbols == tuple("(p)(N)")
    assert annotations.samples.tolist() == [min(round(s * 250 / 360), 2499) for s in samples]
    assert read_record(path, rate=None, annotator="pu0").annotations.samples.tolist() == samples


BEAT = [(0, "("), (10, "p"), (20, ")"), (30, "("), (36, "N"), (45, ")"), (70, "("), (90, "t"), (110, ")")]


def strip(beats: int, length: int = 200, leave_out: str = "") -> Annotations:
    marks = [(20 + length * beat + at, s) for beat in range(beats) for at, s in BEAT if s not in leave_out]
    return Annotations(np.array([at for at, _ in marks]), tuple(s for _, s in marks))


def test_labels_by_hand():
    labels = wave_labels(strip(2), 500, 250.0)
    expected = np.full(500, -1)
    for start in (20, 220):
        for begin, end, name in (
            (0, 20, "P"),
            (20, 30, "PQ"),
            (30, 36, "QR"),
            (36, 45, "RS"),
            (45, 110, "ST"),
        ):
            expected[start + begin : start + end] = WAVES.index(name)
    expected[130:220] = WAVES.index("TP")  # after the last beat nothing is known
    assert labels.tolist() == expected.tolist()


def test_the_classes_are_those_of_the_data_set(tmp_path):
    assert QTDB(root=tmp_path).class_names == WAVES


def test_without_p_waves_or_t_waves_nothing_is_guessed():
    def names(annotations: Annotations) -> set[str]:
        labels = wave_labels(annotations, 500, 250.0)
        return {WAVES[n] for n in labels if n >= 0}

    assert names(strip(2, leave_out="p")) == {"QR", "RS", "ST"}
    assert names(strip(2, leave_out="t")) == {"P", "PQ", "QR", "RS"}
    assert names(strip(2, leave_out="N")) == {"P", "TP"}
    assert names(strip(2, leave_out="()")) == set()
    assert names(strip(2, leave_out="(")) == {"RS", "ST"}


def test_marks_of_hand_annotations():
    """``q1c`` has no onset of the T wave, and may have two peaks of it and a U wave after it."""
    plain = Annotations(np.array([10, 15, 20, 25, 30, 35, 60, 70, 140]), tuple("(p)(N)t)("))
    labels = wave_labels(plain, 200, 250.0)
    assert set(labels[35:70]) == {WAVES.index("ST")} and set(labels[70:]) == {-1}
    more = Annotations(
        np.array([10, 15, 20, 25, 30, 35, 60, 65, 70, 80, 85, 90, 140, 145, 150]), tuple("(p)(N)tt)(u)(p)")
    )
    labels = wave_labels(more, 200, 250.0)
    assert set(labels[35:70]) == {WAVES.index("ST")}
    assert set(labels[70:140]) == {WAVES.index("TP")}
    assert set(labels[140:150]) == {WAVES.index("P")}


def test_beats_of_every_kind_are_beats():
    for symbol in "NVLRAaFjeQ/":
        marks = Annotations(np.array([5, 9, 12]), ("(", symbol, ")"))
        labels = wave_labels(marks, 20, 250.0)
        assert (
            labels[5:9].tolist() == [WAVES.index("QR")] * 4
            and labels[9:12].tolist() == [WAVES.index("RS")] * 3
        )
    marks = Annotations(np.array([5, 9, 12]), ("(", "+", ")"))  # a change of rhythm is none
    assert (wave_labels(marks, 20, 250.0) == -1).all()


def test_beats_that_were_not_annotated_are_not_bridged():
    apart = strip(2, length=900)
    assert WAVES.index("TP") not in wave_labels(apart, 2000, 250.0)
    assert WAVES.index("TP") in wave_labels(apart, 2000, 250.0, longest=4.0)


@given(
    st.lists(st.integers(0, 60), max_size=25),
    st.lists(st.sampled_from(list("()pNtuV+|")), min_size=25, max_size=25),
)
@settings(max_examples=150, deadline=None)
def test_any_marks_give_labels_in_the_order_of_the_heart(samples, symbols):
    """Whatever was marked: labels are classes or -1, and where two classes touch, the second may follow the first."""
    marks = Annotations(np.sort(np.array(samples, dtype=np.int64)), tuple(symbols[: len(samples)]))
    labels = wave_labels(marks, 61, 250.0)
    assert labels.shape == (61,) and labels.min() >= -1 and labels.max() < 6
    if not samples:
        assert (labels == -1).all()
    edges = [int(n) for n in marks.samples]
    for t in range(1, 61):
        if labels[t] != labels[t - 1]:
            assert t in edges


def test_from_record_to_labels(tmp_path):
    x = tones(2000, 500.0)
    path = write(tmp_path, x, 500.0)
    annotations = strip(4, length=400)
    mark(tmp_path, annotations.samples, annotations.symbols, "q1c")
    signal, rate, marks = read_record(path, annotator="q1c")
    labels = wave_labels(marks, len(signal), rate)
    direct = wave_labels(annotations, 2000, 500.0)[::2]
    assert labels.shape == (1000,) and set(WAVES[n] for n in labels if n >= 0) == set(WAVES)
    assert (labels == direct).mean() > 0.97  # halves are rounded


def test_missing_samples(tmp_path):
    x = tones(1000, 250.0)
    x[100:104, 0] = np.nan
    path = write(tmp_path, x, 250.0)
    with pytest.raises(DataError, match="4 missing samples, the first at 100"):
        read_record(path)
    assert np.isfinite(read_record(path, [1]).signal).all()
    filled = read_record(path, gaps="interpolate").signal
    whole = read_record(path, [1], gaps="interpolate").signal
    np.testing.assert_allclose(filled[99:105, 0], np.linspace(filled[99, 0], filled[104, 0], 6), atol=1e-12)
    np.testing.assert_array_equal(filled[:, 1:], whole)


def test_broken_records(tmp_path):
    with pytest.raises(DataError, match=r"expected .*none\.hea"):
        read_record(tmp_path / "none")
    path = write(tmp_path, tones(1000, 250.0), 250.0)
    with pytest.raises(DataError, match=r"expected the marks .*rec\.atr.*there are dat, hea"):
        read_record(path, annotator="atr")
    data = tmp_path / "rec.dat"
    whole = data.read_bytes()
    data.write_bytes(whole[:1001])
    with pytest.raises(DataError, match="not a whole WFDB record"):
        read_record(path)
    data.unlink()
    with pytest.raises(DataError, match="not a whole WFDB record"):
        read_record(path)
    data.write_bytes(whole)
    (tmp_path / "rec.hea").write_text("nothing")
    with pytest.raises(DataError, match="not a whole WFDB record"):
        read_record(path)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"channels": ["aVR"]}, DataError, "unknown lead 'aVR'.*II, V1"),
        ({"channels": [2]}, DataError, "leads 0 to 1"),
        ({"channels": [-1]}, DataError, "leads 0 to 1"),
        ({"channels": []}, ParameterError, "list of leads"),
        ({"channels": "II"}, ParameterError, "list of leads"),
        ({"rate": 0.0}, ParameterError, "rate above 0"),
        ({"rate": 3.14159265358979 * 50}, ParameterError, "simple ratio"),
        ({"gaps": "zero"}, ParameterError, "unknown gaps"),
    ],
)
def test_requests_that_make_no_sense(tmp_path, options, error, message):
    path = write(tmp_path, tones(500, 250.0), 250.0)
    with pytest.raises(error, match=message):
        read_record(path, **options)


def test_without_the_package(tmp_path, monkeypatch):
    path = write(tmp_path, tones(500, 250.0), 250.0)
    monkeypatch.setitem(sys.modules, "wfdb", None)
    with pytest.raises(DataError, match=r"pip install 'spiketide\[ecg\]'"):
        read_record(path)


@pytest.mark.parametrize(
    ("marks", "steps", "rate", "error", "message"),
    [
        (strip(1), 100, 250.0, DataError, "of one record and one rate"),
        (Annotations(np.array([5, 3]), ("(", ")")), 10, 250.0, DataError, "in order"),
        (Annotations(np.array([-1]), ("(",)), 10, 250.0, DataError, "in order"),
        (Annotations(np.array([1, 2]), ("(",)), 10, 250.0, ShapeError, "one symbol for each"),
        (strip(1), 0, 250.0, ParameterError, "above 0"),
        (strip(1), 500, 0.0, ParameterError, "above 0"),
    ],
)
def test_refuses_marks(marks, steps, rate, error, message):
    with pytest.raises(error, match=message):
        wave_labels(marks, steps, rate)
