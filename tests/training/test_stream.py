"""Labels of a stream: whatever the pieces, those of the whole sequence."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_labelling import recipe

from spiketide.cli import main
from spiketide.compose import Bidirectional, Recurrent
from spiketide.encoders import LevelCrossing, Ternary
from spiketide.errors import DataError, NonFiniteError, ParameterError, RunError, ShapeError
from spiketide.neurons import ALIF, LIF, LeakyIntegrator
from spiketide.norms import BatchNorm
from spiketide.readouts import FirstSpike
from spiketide.synapses import Dense
from spiketide.timing import Flatten, TimingLinear
from spiketide.training import Classification, Labelling, SingleSpike
from spiketide.training.folder import RunFolder
from spiketide.training.recipe import Recipe
from spiketide.training.run import train
from spiketide.training.stream import Labelled, Streamer, label_stream, open_stream, read_rows, segments


def task(**options: Any) -> Labelling:
    torch.manual_seed(0)
    hidden = Recurrent(ALIF(16, threshold=0.05), Dense(16, 16, bias=False))
    # a read-out without bias and memory says something else at every step
    return Labelling(
        [Dense(4, 16), hidden, Dense(16, 3, bias=False), LeakyIntegrator(3, tau_mem=1.0)], **options
    )


def events(steps: int = 300) -> np.ndarray:
    return (np.random.default_rng(0).random((steps, 4)) < 0.2).astype(np.float32)


@pytest.mark.parametrize("chunk", [1, 7, 300])
def test_pieces_give_the_labels_of_the_whole(chunk: int) -> None:
    model = task().eval()
    x = events()
    with torch.no_grad():
        y, _ = model.network(torch.from_numpy(x).unsqueeze(1))
    expected = y[:, 0].argmax(-1).tolist()
    assert len(set(expected)) == 3
    found = list(label_stream(Streamer(model), list(x), chunk=chunk))
    assert [item.label for item in found] == expected
    assert [item.step for item in found] == list(range(300))
    probable = y[:, 0].softmax(-1).amax(-1)
    assert [item.probability for item in found] == pytest.approx(probable.tolist(), abs=1e-5)


def test_a_batch_norm_streams_by_its_running_statistics() -> None:
    torch.manual_seed(0)
    model = Labelling([Dense(4, 16), BatchNorm(16), LIF(16, threshold=0.5), Dense(16, 3, bias=False)])
    x = events()
    for _ in range(5):  # statistics that are not those of the beginning
        model.network(torch.from_numpy(events(50)).unsqueeze(1) + 0.5)
    streamer = Streamer(model)
    model.eval()
    with torch.no_grad():
        y, _ = model.network(torch.from_numpy(x).unsqueeze(1))
    assert len(set(y[:, 0].argmax(-1).tolist())) >= 2
    found = [item.label for item in label_stream(streamer, list(x), chunk=7)]
    assert found == y[:, 0].argmax(-1).tolist()


def test_reset_begins_anew() -> None:
    streamer = Streamer(task())
    first = streamer(events()[:50])[1]
    second = streamer(events()[:50])[1]
    streamer.reset()
    assert not np.array_equal(first, second)
    assert np.array_equal(first, streamer(events()[:50])[1])


def test_a_network_of_float64_streams_in_float64() -> None:
    model = Labelling([Dense(4, 3), LeakyIntegrator(3)]).double().eval()  # no spikes, which would round
    x = np.random.default_rng(0).random((60, 4)) * 0.4
    with torch.no_grad():
        y, _ = model.network(torch.from_numpy(x).unsqueeze(1))
        coarse, _ = model.network(torch.from_numpy(x.astype(np.float32).astype(np.float64)).unsqueeze(1))
    streamer = Streamer(model)
    labels, probabilities = streamer(x)
    assert probabilities.dtype == np.float64
    np.testing.assert_allclose(probabilities, y[:, 0].softmax(-1).numpy(), rtol=0, atol=1e-13)
    assert abs(coarse - y).max() > 1e-9  # float32 on the way would show
    assert labels.tolist() == y[:, 0].argmax(-1).tolist()
    found = list(label_stream(Streamer(model), list(x), chunk=7))
    expected = y[:, 0].softmax(-1).amax(-1).tolist()
    assert [item.probability for item in found] == pytest.approx(expected, abs=1e-13)
    assert Streamer(task())(x.astype(np.float64))[1].dtype == np.float32  # whatever the input comes as
    assert Streamer(task())((x > 0.2).astype(np.int64))[1].dtype == np.float32


def test_an_encoder_of_the_task_is_applied() -> None:
    model = task(encoder=Ternary(0.3)).eval()
    x = np.random.default_rng(1).normal(size=(40, 4)).astype(np.float32)
    with torch.no_grad():
        y, _ = model.network(model.encoder(torch.from_numpy(x).unsqueeze(1)))  # type: ignore[misc]
    assert [item.label for item in label_stream(Streamer(model), list(x))] == y[:, 0].argmax(-1).tolist()


@settings(deadline=None, max_examples=25)
@given(
    st.integers(1, 9),
    st.integers(1, 40),
    st.sampled_from(["difference", "send_on_delta"]),
    st.integers(0, 99),
)
def test_a_signal_is_coded_as_if_it_were_whole(chunk: int, steps: int, mode: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    signal = np.cumsum(rng.integers(-3, 4, (steps, 2)) * 0.25, axis=0)
    code = LevelCrossing(threshold=0.5, mode=mode)
    model = task().eval()
    with torch.no_grad():
        y, _ = model.network(torch.from_numpy(code(signal)).unsqueeze(1))
    found = list(label_stream(Streamer(model), list(signal), chunk=chunk, code=code))
    assert [item.label for item in found] == y[:, 0].argmax(-1).tolist()


@pytest.mark.parametrize("mode", ["send_on_delta", "difference"])
@pytest.mark.parametrize("threshold", [0.1, 0.2, 0.3])
def test_the_code_of_a_signal_in_steps_of_its_threshold_does_not_depend_on_the_pieces(
    mode: Any, threshold: float
) -> None:
    rng = np.random.default_rng(0)
    signal = np.round(np.cumsum(rng.integers(-3, 4, (400, 2)), axis=0) * 0.1, 6)  # as a converter gives it
    code = LevelCrossing(threshold=threshold, mode=mode)
    whole = code(signal)
    assert whole.any(0).all()
    for chunk in (1, 2, 7, 100, 399, 1000):
        stream = code.stream()
        pieces = [stream(signal[first : first + chunk]) for first in range(0, 400, chunk)]
        assert np.array_equal(np.concatenate([*pieces, stream.end()]), whole), chunk
        again = stream(signal)  # behind the end another signal begins
        assert np.array_equal(again, whole[: len(again)])
    # and of the labels that come out at the end
    model = task().eval()
    found = [
        [item.label for item in label_stream(Streamer(model), list(signal), chunk=chunk, code=code)]
        for chunk in (1, 7, 100)
    ]
    assert found[0] == found[1] == found[2] and len(found[0]) == 400


def test_a_stream_of_events_says_what_it_needs() -> None:
    stream = LevelCrossing(threshold=0.1, mode="send_on_delta").stream()
    stream(np.zeros((3, 2)))
    with pytest.raises(ShapeError, match="expected 2 channels, as in the pieces before, got 1"):
        stream(np.zeros((3, 1)))
    with pytest.raises(DataError, match="raise the threshold"):  # of the whole signal, not of the piece
        stream(np.full((1, 2), 1e9))
    assert not stream(np.zeros((1, 2))).any()  # and nothing of it was taken in
    with pytest.raises(ParameterError, match="cannot be smoothed or normalised"):
        LevelCrossing(threshold=0.1, normalise="range").stream()


def test_what_cannot_stream_is_refused() -> None:
    with pytest.raises(ParameterError, match=r"FirstSpike has no form for a stream; known: .*SumSoftmax"):
        Streamer(Classification([Dense(4, 3), LIF(3)], FirstSpike()))
    with pytest.raises(ParameterError, match="this task is SingleSpike"):
        Streamer(SingleSpike([Flatten(), TimingLinear(64, 10)]))
    both = Bidirectional(Recurrent(ALIF(6), Dense(6, 6)))
    with pytest.raises(ParameterError, match="Bidirectional needs the whole sequence"):
        Streamer(Labelling([Dense(4, 6), both, Dense(12, 3)]))
    smooth = LevelCrossing(threshold=0.1, smooth=(5, 3))
    with pytest.raises(ParameterError, match="cannot be smoothed"):
        list(label_stream(Streamer(task()), [np.zeros(2)], code=smooth))
    with pytest.raises(ParameterError, match="chunk of 1 or more"):
        list(label_stream(Streamer(task()), [], chunk=0))


def test_bad_input_is_refused_and_takes_nothing_in() -> None:
    streamer = Streamer(task())
    streamer(events()[:20])
    bad = events()[20:30]
    bad[3, 1] = np.nan
    with pytest.raises(NonFiniteError, match="step 23 of the stream"):
        streamer(bad)
    assert streamer.steps == 20
    other = Streamer(task())
    other(events()[:20])
    assert np.array_equal(streamer(events()[20:])[1], other(events()[20:])[1])
    with pytest.raises(ShapeError, match=r"steps \(n, \*N\)"):
        streamer(np.zeros(4))


def test_rows_are_read_from_text(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="spiketide")
    text = "\ufeffup, down\n\n1,0\n0,5;1\n  0.5 \t 2e-1 \r\n"
    assert [row.tolist() for row in read_rows(io.StringIO(text), columns=2)] == [[1, 0], [0.5, 1], [0.5, 0.2]]
    assert "line 1 of the stream holds no number and is taken for a header: up, down" in caplog.text
    assert [row.tolist() for row in read_rows(["\ufeff1,0"], columns=2)] == [
        [1, 0]
    ]  # as spreadsheets write it
    for lines, message in (
        (["1 0", "1 0 1"], "line 2 of the stream has 3 numbers, expected 2: '1 0 1'. Two leads"),
        (["x y", "1 0", "a b"], "line 3 of the stream has 'a', which is no number: 'a b'"),
        (["1,x"], "line 1 of the stream has 'x', which is no number"),  # no header: it holds a number
        (["1,,0"], "line 1 of the stream has an empty cell"),
        (["1,0", "nan,0"], "line 2 of the stream has NaN or infinity"),
    ):
        with pytest.raises(DataError, match=re.escape(message)):
            list(read_rows(lines, columns=2, hint=" Two leads"))


def test_rows_of_frames() -> None:
    rows = list(read_rows(["1,2,3,4,5,6", "6,5,4,3,2,1"], columns=6, shape=(3, 2)))
    assert [row.tolist() for row in rows] == [[[1, 2], [3, 4], [5, 6]], [[6, 5], [4, 3], [2, 1]]]
    with pytest.raises(DataError, match=r"has 2 numbers, expected 6: '1,2'. \(frames\)"):
        list(read_rows(["1,2"], columns=6, shape=(3, 2), hint=" (frames)"))


def test_segments_are_runs_of_one_label() -> None:
    labels = [0, 0, 2, 1, 1, 1]
    found = list(segments(Labelled(step, label, 1.0) for step, label in enumerate(labels)))
    assert found == [(0, 2, 0), (2, 1, 2), (3, 3, 1)]
    assert list(segments([])) == []


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = RunFolder(tmp_path_factory.mktemp("stream") / "run")
    train(recipe(folder.path), folder)
    return folder


def test_the_command_labels_a_file_and_a_pipe(
    run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    streamer, data = open_stream(run)
    x = data.read("test").x[0].numpy()
    expected = [data.class_names[label] for label in streamer(x)[0]]
    text = "\n".join(" ".join(map(str, row)) for row in x.tolist())
    path = tmp_path / "events.txt"
    path.write_text(text)
    assert main(["stream", str(run.path), str(path), "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "step,class,probability" and '"steps": 40' in lines[-1]
    assert [line.split(",")[1] for line in lines[1:-1]] == expected
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    assert main(["stream", str(run.path), "--segments", "--chunk", "9"]) == 0
    runs = [line.split(",") for line in capsys.readouterr().out.splitlines()[1:]]
    assert [name for _, steps, name in runs for _ in range(int(steps))] == expected


class Closed(io.StringIO):
    """Standard output whose reader has gone after two lines, as ``head -2`` does."""

    def write(self, text: str) -> int:
        if self.getvalue().count("\n") >= 2:
            raise BrokenPipeError(32, "Broken pipe")
        return super().write(text)


@pytest.mark.parametrize("options", [[], ["--json"], ["--segments"]])
def test_a_reader_that_goes_away_ends_it_without_a_word(
    run: RunFolder,
    options: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path, out = tmp_path / "events.txt", Closed()
    path.write_text(
        "\n".join(" ".join(map(str, row)) for row in open_stream(run)[1].read("test").x[0].tolist())
    )
    monkeypatch.setattr(sys, "stdout", out)
    assert main(["stream", str(run.path), str(path), *options]) == 0
    assert out.getvalue().count("\n") == 2 and not capsys.readouterr().err


def test_a_run_of_float64_streams_in_float64(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    settings = recipe(tmp_path).settings
    settings["trainer"] |= {"precision": "64-true", "max_epochs": 1}
    train(Recipe(settings, name="double"), folder)
    streamer, _ = open_stream(folder)
    assert {p.dtype for p in streamer.task.parameters()} == {torch.float64}
    assert streamer(np.zeros((5, 2)))[1].dtype == np.float64


def test_the_command_codes_a_signal(
    run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    signal = np.round(np.sin(np.arange(60) / 4), 3)
    path = tmp_path / "signal.csv"
    path.write_text("mV\n" + "\n".join(map(str, signal)))
    assert main(["stream", str(run.path), str(path), "--level-crossing", "0.1"]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    streamer, data = open_stream(run)
    whole = streamer(LevelCrossing(threshold=0.1)(signal[:, None]))[0]
    assert [line.split(",")[1] for line in lines] == [data.class_names[label] for label in whole]


def test_the_command_says_what_is_wrong(
    run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["stream", str(run.path), str(tmp_path / "none.csv")]) == 2
    assert "there is no file" in capsys.readouterr().err
    path = tmp_path / "some.csv"
    for text, message, options in (
        ("", "held no row of numbers", []),
        ("up,down\n", "held no row of numbers", ["--level-crossing", "0.1"]),
        ("0.5\n", "samples of 1 signals need --level-crossing", []),
        ("1,0\n", "one sample of each of 1 signals", ["--level-crossing", "0.1"]),
    ):
        path.write_text(text)
        assert main(["stream", str(run.path), str(path), *options]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(RunError, match="no best checkpoint"):
        (tmp_path / "empty").mkdir()
        (tmp_path / "empty" / "recipe.yaml").write_text((run.path / "recipe.yaml").read_text())
        open_stream(RunFolder.open(tmp_path / "empty"))
