"""A network that listens: piece by piece the decisions of the whole clip."""

from __future__ import annotations

import json
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_files import write_wav
from hypothesis import given, settings
from hypothesis import strategies as st
from speech_files import clip, write_speech_commands
from torch import nn

from spiketide import Batch, Lateral, NormalizedLIF, NormalizedReadout, TemporalConv2d
from spiketide.cli import main
from spiketide.data import DeltaMel, StreamingMel
from spiketide.encoders import Latency
from spiketide.errors import DataError, ParameterError
from spiketide.neurons import LIF, LeakyIntegrator
from spiketide.readouts import LastMembrane, MaxMembrane, MeanMembrane, Readout, SpikeCount, SumSoftmax
from spiketide.synapses import Dense
from spiketide.training import Classification
from spiketide.training.folder import RunFolder
from spiketide.training.recipe import Recipe
from spiketide.training.run import train
from spiketide.training.running import RunningReadout
from spiketide.training.sound import as_clip, classify, hear, listener, microphone, pieces, read_sound
from spiketide.training.stream import Streamer, label_stream

READOUTS = [
    SpikeCount(),
    SpikeCount(normalise=True),
    LastMembrane(),
    MeanMembrane(),
    MaxMembrane(),
    SumSoftmax(),
    SumSoftmax(skip=7),
]


def named(readout: Readout) -> str:
    return type(readout).__name__ + "".join(
        f"-{k}" for k in ("normalise", "skip") if getattr(readout, k, False)
    )


FRONT = StreamingMel(n_mels=12, flatten=False)


def layers(padding: str = "causal") -> list[nn.Module]:
    torch.manual_seed(0)
    first = TemporalConv2d(3, 8, (4, 3), padding=padding, bias=False, spread=0.15)
    second = TemporalConv2d(8, 8, (3, 3), dilation=(4, 2), padding=padding, bias=False, spread=0.15)
    return [
        Lateral(first, NormalizedLIF((8, 12), reset="none", threshold=0.5, learn=("decay", "threshold"))),
        Lateral(second, NormalizedLIF((8, 12), reset="none", threshold=0.5, learn=("decay", "threshold"))),
        nn.Flatten(),
        NormalizedReadout(Dense(96, 5, bias=False), decay=0.8),
    ]


def task(readout: Readout | None = None, padding: str = "causal") -> Classification:
    return Classification(layers(padding), MeanMembrane() if readout is None else readout).eval()


def word(number: int = 4, k: int = 0) -> np.ndarray:
    return (clip(number, k) / 32768).astype(np.float32)


# ------------------------------------------------------------------------------------------------- read-outs


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(READOUTS), st.lists(st.integers(0, 9), min_size=1, max_size=8), st.integers(0, 99))
def test_a_running_read_out_is_evolve(readout: Readout, sizes: list[int], seed: int) -> None:
    steps = max(8, sum(sizes))  # a skipped beginning needs a step behind it
    y = torch.randn(steps, 1, 4, generator=torch.Generator().manual_seed(seed))
    if isinstance(readout, SpikeCount):
        y = (y > 0).float()
    running = RunningReadout(readout)
    cuts = [min(c, steps) for c in np.cumsum(sizes).tolist()]
    found = torch.cat([running(part[:, 0]) for part in y.tensor_split(cuts)])
    assert running.steps == steps and found.dtype == torch.float32
    torch.testing.assert_close(found, readout.evolve(y)[:, 0], rtol=1e-5, atol=1e-5)
    running.reset()
    torch.testing.assert_close(running(y[:3, 0]), found[:3])


def test_a_read_out_of_ones_own_is_refused() -> None:
    class Squared(MeanMembrane):
        def _score(self, y: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
            return super()._score(y, lengths) ** 2

    with pytest.raises(ParameterError, match="Squared has no form for a stream; known: SpikeCount"):
        RunningReadout(Squared())


# ------------------------------------------------------------------------------------------------- the network


def batch_run(model: Classification, wave: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores of the clip, and after each frame; the layers spike, and not all the time."""
    x = torch.from_numpy(FRONT(wave)).unsqueeze(1)
    with torch.no_grad():
        output = model(Batch(x, torch.zeros(1, dtype=torch.int64)))
    rates = [float(s.mean()) for s in output.spikes.values()]
    assert len(rates) == 2 and all(0.01 < rate < 0.6 for rate in rates)
    return output.scores[0], model.evolve(output)[:, 0]


@pytest.mark.parametrize("readout", READOUTS, ids=named)
def test_streamed_scores_are_those_of_the_batch(readout: Readout) -> None:
    model = task(readout)
    end, expected = batch_run(model, word())
    assert float(expected.std(0).max()) > 1e-2
    streamer, front = Streamer(model), FRONT.stream()
    found = np.concatenate([streamer.scores(front(piece)) for piece in pieces(word(), 160)])
    assert np.allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert np.allclose(found[-1], end, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("block", [37, 160, 1000])
def test_blocks_of_any_length_are_heard_alike(block: int) -> None:
    model = task()
    _, expected = batch_run(model, word())
    heard = list(hear(Streamer(model), FRONT.stream(), pieces(word(), block)))
    assert [item.frame for item in heard] == list(range(100))
    assert np.allclose([item.probabilities for item in heard], expected.softmax(-1), atol=1e-4)
    assert [item.label for item in heard] == expected.argmax(-1).tolist()
    assert [item.probability for item in heard] == [float(item.probabilities.max()) for item in heard]
    assert all(item.milliseconds > 0 for item in heard)


def test_rows_of_numbers_are_classified_too_and_a_reset_begins_anew() -> None:
    x = FRONT(word())
    streamer = Streamer(task())
    first = [item.probability for item in label_stream(streamer, list(x[:30]))]
    assert [item.probability for item in label_stream(streamer, list(x[:30]))] != first
    streamer.reset()
    assert [item.probability for item in label_stream(streamer, list(x[:30]), chunk=1)] == first
    labels, probabilities = streamer(np.zeros((0, 3, 12)))
    assert labels.shape == (0,) and len(probabilities) == 0


def test_the_streamer_computes_weights_once_and_leaves_the_task_alone() -> None:
    model = task()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    streamer = Streamer(model)
    x = FRONT(word())
    expected = streamer.scores(x)
    with torch.no_grad():
        for value in model.parameters():
            value.mul_(3.0)
    streamer.reset()
    assert np.array_equal(streamer.scores(x), expected)
    model.load_state_dict(before)
    assert "prepared" not in vars(model.network[0]) and "prepared" in vars(streamer.task.network[0])
    y, _ = model.network(torch.from_numpy(x).unsqueeze(1))
    y.sum().backward()  # the gradient still goes through the norms
    assert all(p.grad is not None for p in model.parameters())


def test_a_restart_forgets_the_sound_before_but_not_the_loudness() -> None:
    model = task()
    wave = np.concatenate([word(4), word(20)])
    frames = FRONT(wave)
    expected: list[np.ndarray] = []
    for begin in range(0, 200, 30):
        expected += list(torch.from_numpy(Streamer(model).scores(frames[begin : begin + 30])).softmax(-1))
    for block in (160, 7777):
        heard = list(hear(Streamer(model), FRONT.stream(), pieces(wave, block), restart=30))
        assert np.allclose([item.probabilities for item in heard], np.stack(expected), atol=1e-4)


def test_what_knows_the_future_is_refused() -> None:
    with pytest.raises(ParameterError, match=r"TemporalConv2d .* looks ahead in time .* padding='causal'"):
        Streamer(task(padding="same"))
    static = Classification([Dense(12, 5), LeakyIntegrator(5)], MeanMembrane(), encoder=Latency(8))
    with pytest.raises(ParameterError, match="Latency makes 8 steps of its own"):
        Streamer(static)(np.zeros((3, 12)))


# ------------------------------------------------------------------------------------------------- what is said


class Lines(list[str]):
    def __call__(self, text: str) -> None:
        self.append(text)


NAMES = tuple("abcde")


def test_a_line_when_the_decision_changes_every_so_often_and_at_the_end() -> None:
    model, wave = task(LastMembrane()), np.concatenate([word(4), word(28, 1)])
    heard = list(hear(Streamer(model), FRONT.stream(), pieces(wave, 160)))
    labels = [item.label for item in heard]
    changes = [0] + [n for n in range(1, 200) if labels[n] != labels[n - 1]]
    assert 1 < len(changes) < 190

    def row(n: int) -> str:
        return f"{(n + 1) / 100:.3f},{NAMES[labels[n]]},{heard[n].probability:.4f}"

    for every, expected in (
        (None, {*changes, 199}),
        (30, {*changes, *range(29, 200, 30), 199}),
        (1, set(range(200))),
    ):
        said = Lines()
        found = classify(Streamer(model), FRONT, pieces(wave, 160), NAMES, say=said, every=every)
        assert said[0] == "seconds,class,probability"
        assert said[1:-2] == [row(n) for n in sorted(expected)]
        assert said[-2] == f"decision  {NAMES[labels[-1]]}, probability {heard[-1].probability:.4f}"
        assert found["frames"] == 200 and found["seconds"] == 2.0 and found["decision"] == NAMES[labels[-1]]
        assert found["probabilities"] == pytest.approx(
            dict(zip(NAMES, heard[-1].probabilities.tolist(), strict=True))
        )
        assert found["milliseconds"]["mean"] > 0 and found["milliseconds"]["p99"] > 0
        assert f"{found['milliseconds']['mean']:.2f}"[:-1] in said[-1] and "a frame of 10 ms" in said[-1]
    said = Lines()
    classify(Streamer(model), FRONT, pieces(wave, 160), NAMES, say=said, restart=0.5)
    times = [line.split(",")[0] for line in said[1:-2]]
    assert {"0.010", "0.500", "0.510", "1.000", "1.010", "1.500", "1.510", "2.000"} <= set(times)


def test_threads_are_put_back_and_what_makes_no_sense_is_refused() -> None:
    streamer, before = Streamer(task()), torch.get_num_threads()
    seen: list[int] = []

    def blocks() -> Iterator[np.ndarray]:
        seen.append(torch.get_num_threads())
        yield word()[:1600]

    classify(streamer, FRONT, blocks(), NAMES, say=Lines())
    assert seen == [1] and torch.get_num_threads() == before
    for options, words in (
        ({"every": 0}, "--every expected 1 frame"),
        ({"restart": 0.001}, "--restart expected 0.01"),
    ):
        with pytest.raises(ParameterError, match=words):
            classify(streamer, FRONT, [], NAMES, say=Lines(), **options)
    with pytest.raises(DataError, match="ended before the first frame"):
        classify(streamer, FRONT, [np.zeros(159)], NAMES, say=Lines())


def test_ctrl_c_ends_live_sound_and_interrupts_a_file() -> None:
    def blocks() -> Iterator[np.ndarray]:
        yield word()[:1600]
        raise KeyboardInterrupt

    said = Lines()
    assert classify(Streamer(task()), FRONT, blocks(), NAMES, say=said, live=True)["frames"] == 10
    assert said[-1].startswith("latency")
    with pytest.raises(KeyboardInterrupt):
        classify(Streamer(task()), FRONT, blocks(), NAMES, say=Lines())


# ------------------------------------------------------------------------------------------------- files and devices


def test_a_file_is_read_or_says_what_is_wrong(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    import soundfile

    path = tmp_path / "one.wav"
    write_wav(path, clip(4, 0))
    assert np.array_equal(read_sound(path, 8000), clip(4, 0).astype("<i2") / np.float32(32768))
    with pytest.raises(
        DataError, match=r"8000 samples a second, this network was trained on 16000: add --resample"
    ):
        read_sound(path, 16000)
    assert len(read_sound(path, 16000, resample=True)) == 32000
    both = np.stack([np.arange(100), -np.arange(100)], 1)
    write_wav(tmp_path / "two.wav", both, channels=2)
    with pytest.raises(DataError, match="2 channels, expected one: choose with --channel 1 to 2"):
        read_sound(tmp_path / "two.wav", 8000)
    assert np.array_equal(read_sound(tmp_path / "two.wav", 8000, channel=2) * 32768, -np.arange(100.0))
    with pytest.raises(DataError, match="a channel from 1 to 2, got 3"):
        read_sound(tmp_path / "two.wav", 8000, channel=3)
    with pytest.raises(DataError, match="there is no file"):
        read_sound(tmp_path / "none.wav", 8000)
    (tmp_path / "text.wav").write_text("no sound at all, but long enough to be a header of some kind " * 3)
    with pytest.raises(DataError, match=r"text\.wav cannot be read as sound"):
        read_sound(tmp_path / "text.wav", 8000)
    write_wav(tmp_path / "empty.wav", np.zeros(0))
    with pytest.raises(DataError, match="no samples"):
        read_sound(tmp_path / "empty.wav", 8000)
    soundfile.write(tmp_path / "nan.wav", np.array([0.0, np.nan]), 8000, subtype="FLOAT")
    with pytest.raises(DataError, match="NaN or infinity"):
        read_sound(tmp_path / "nan.wav", 8000)
    assert not caplog.records
    cut = tmp_path / "cut.wav"
    cut.write_bytes(path.read_bytes()[:16044])
    assert len(read_sound(cut, 8000)) == 8000
    assert "cut.wav is truncated: its header promises 16000 samples, it has 8000" in caplog.text
    write_wav(tmp_path / "loud.wav", np.clip(clip(4, 0) * 9, -32768, 32767))
    read_sound(tmp_path / "loud.wav", 8000)
    assert "loud.wav is clipped" in caplog.text
    write_wav(tmp_path / "still.wav", np.zeros(100))
    read_sound(tmp_path / "still.wav", 8000)
    assert "still.wav is silent" in caplog.text


class FakeDevice(types.ModuleType):
    """What of sounddevice is used."""

    class PortAudioError(Exception):
        pass

    def __init__(self, wave: np.ndarray, problem: Exception | None = None) -> None:
        super().__init__("sounddevice")
        self.wave, self.problem, self.opened, self.closed, self.given = wave, problem, 0, 0, {}
        self.place = 0

    def InputStream(self, **options: Any) -> FakeDevice:
        if self.problem is not None:
            raise self.problem
        self.given = options
        return self

    def __enter__(self) -> FakeDevice:
        self.opened += 1
        return self

    def __exit__(self, *_: Any) -> None:
        self.closed += 1

    def read(self, samples: int) -> tuple[np.ndarray, bool]:
        if self.place + samples > len(self.wave):
            raise KeyboardInterrupt
        self.place += samples
        return self.wave[self.place - samples : self.place, None], self.place == 2 * samples


def test_a_microphone_is_another_iterator(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    device = FakeDevice(word())
    monkeypatch.setitem(sys.modules, "sounddevice", device)
    blocks = microphone(16000, 160, device="3")
    assert device.given == {
        "samplerate": 16000,
        "blocksize": 160,
        "channels": 1,
        "dtype": "float32",
        "device": 3,
    }
    found = classify(Streamer(task()), FRONT, blocks, NAMES, say=Lines(), live=True)
    expected = classify(Streamer(task()), FRONT, pieces(word(), 160), NAMES, say=Lines())
    assert found["frames"] == 100 and found["probabilities"] == expected["probabilities"]
    assert (device.opened, device.closed) == (1, 1)
    assert caplog.text.count("samples were lost") == 1
    device.place = 0
    assert len(list(microphone(16000, 160, seconds=0.25))) == 25
    with pytest.raises(ParameterError, match="--seconds expected a time above 0"):
        microphone(16000, 160, seconds=0.0)
    for problem in (FakeDevice.PortAudioError("Invalid device"), ValueError("No input device matching 'x'")):
        monkeypatch.setitem(sys.modules, "sounddevice", FakeDevice(word(), problem))
        with pytest.raises(DataError, match=r"no microphone at 16000 samples .* choose one with --device"):
            microphone(16000, 160, device="x")
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(DataError, match=r"pip install 'spiketide\[microphone\]'"):
        microphone(16000, 160)


def test_sounddevice_without_portaudio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sounddevice.py").write_text("raise OSError('PortAudio library not found')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "sounddevice", raising=False)
    with pytest.raises(DataError, match="PortAudio library not found.*libportaudio2"):
        microphone(16000, 160)


# ------------------------------------------------------------------------------------------------- the command


def recipe(root: Path) -> Recipe:
    def conv(c_in: int, dilation: list[int]) -> dict[str, Any]:
        synapse = {
            "c_in": c_in,
            "c_out": 6,
            "kernel_size": [3, 3],
            "dilation": dilation,
            "bias": False,
            "spread": 0.15,
        }
        neuron = {"n": [6, 8], "reset": "none", "threshold": 0.5, "learn": ["decay", "threshold"]}
        return {
            "class_path": "spiketide.lateral.Lateral",
            "init_args": {
                "synapse": {"class_path": "spiketide.synapses.TemporalConv2d", "init_args": synapse},
                "neuron": {"class_path": "spiketide.neurons.NormalizedLIF", "init_args": neuron},
            },
        }

    content = {
        "seed": 1,
        "threads": 1,
        "data": {
            "class_path": "spiketide.data.SpeechCommands",
            "init_args": {
                "version": 1,
                "classes": 30,
                "root": str(root),
                "features": {
                    "class_path": "spiketide.data.StreamingMel",
                    "init_args": {"n_mels": 8, "flatten": False},
                },
                "batch_size": 15,
                "jobs": 1,
            },
        },
        "model": {
            "class_path": "spiketide.training.Classification",
            "init_args": {
                "network": [
                    conv(3, [1, 1]),
                    conv(6, [4, 2]),
                    {"class_path": "torch.nn.Flatten"},
                    {
                        "class_path": "spiketide.lateral.NormalizedReadout",
                        "init_args": {
                            "synapse": {
                                "class_path": "spiketide.synapses.Dense",
                                "init_args": {"n_in": 48, "n_out": 30, "bias": False},
                            }
                        },
                    },
                ],
                "readout": {"class_path": "spiketide.readouts.MeanMembrane"},
                "lr": 0.02,
            },
        },
        "trainer": {"accelerator": "cpu", "max_epochs": 1, "enable_progress_bar": False},
    }
    return Recipe(content, name="listens")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunFolder]:
    root = tmp_path_factory.mktemp("listens")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(root / "cache"))
        write_speech_commands(root / "data", noise=0)
        folder = RunFolder(root / "run")
        train(recipe(root / "data"), folder)
        yield folder


def test_the_command_gives_the_decision_of_the_batch_run(
    run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from spiketide.training.stream import trained

    model, data = trained(run)
    samples = data.read("test")
    for row, name in ((0, "bed"), (29, "zero")):
        file = next(path for path in sorted((data.folder / name).iterdir()) if path.stem[4:8] == "0004")
        x = samples.x[row].unsqueeze(1)
        with torch.no_grad():
            scores = model.eval()(Batch(x, torch.zeros(1, dtype=torch.int64))).scores[0]
        assert main(["stream", str(run.path), "--wav", str(file), "--every", "20", "--json"]) == 0
        lines = capsys.readouterr().out.splitlines()
        found = json.loads(lines[-1])
        assert list(found["probabilities"].values()) == pytest.approx(scores.softmax(-1).tolist(), abs=1e-5)
        assert found["decision"] == data.class_names[int(scores.argmax())] and found["frames"] == 100
        rows = [line.split(",") for line in lines[1:-3]]
        assert {"0.200", "0.400", "0.600", "0.800", "1.000"} <= {first for first, *_ in rows}
        assert rows[-1] == ["1.000", found["decision"], f"{found['probability']:.4f}"]
    short = next(path for path in sorted((data.folder / "bed").iterdir()) if path.stem[4:8] == "0001")
    wave = read_sound(short, 16000)
    assert len(wave) == 12001
    assert main(["stream", str(run.path), "--wav", str(short), "--clip", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    x = torch.from_numpy(data.features(as_clip(data, wave))).unsqueeze(1)
    with torch.no_grad():
        scores = model(Batch(x, torch.zeros(1, dtype=torch.int64))).scores[0]
    assert found["frames"] == 100
    assert list(found["probabilities"].values()) == pytest.approx(scores.softmax(-1).tolist(), abs=1e-5)


def test_the_command_listens_to_a_microphone(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", FakeDevice(word()))
    assert main(["stream", str(run.path), "--microphone", "--restart", "0.4", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["frames"] == 100 and found["verb"] == "stream"
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    assert main(["stream", str(run.path), "--microphone"]) == 2
    assert "spiketide[microphone]" in capsys.readouterr().err


def test_the_command_says_what_is_wrong(
    run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_wav(tmp_path / "short.wav", np.ones(100), rate=16000)
    write_wav(tmp_path / "slow.wav", np.ones(8000), rate=8000)
    wav = ["--wav", str(tmp_path / "short.wav")]
    for words, message in (
        (wav, "has 100 samples, expected 160 (10 ms) at least"),
        (["--wav", str(tmp_path / "slow.wav")], "was trained on 16000: add --resample"),
        ([*wav, "--microphone"], "takes --wav FILE or --microphone, not both"),
        ([*wav, "--chunk", "3"], "--chunk does not go with --wav"),
        ([*wav, "--seconds", "3"], "--seconds does not go with --wav"),
        (["rows.txt", *wav], "FILE does not go with --wav"),
        (["--microphone", "--channel", "1"], "--channel does not go with --microphone"),
        (["--every", "3"], "--every does not go with rows of numbers"),
    ):
        assert main(["stream", str(run.path), *words]) == 2
        assert message in capsys.readouterr().err
    assert main(["stream", str(run.path), "--wav", str(tmp_path / "slow.wav"), "--resample"]) == 0


def test_a_run_that_knows_the_future_says_all_that_must_change(
    tmp_path: Path, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    from spiketide.training import sound

    class Data:
        features = DeltaMel()

    monkeypatch.setattr(sound, "trained", lambda folder: (task(padding="same"), Data()))
    with pytest.raises(
        ParameterError, match=r"front end DeltaMel.*StreamingMel.* And TemporalConv2d .*padding='causal'"
    ):
        listener(run)
    monkeypatch.setattr(sound, "trained", lambda folder: (task(), object()))
    with pytest.raises(ParameterError, match="no front end for sound"):
        listener(run)
    with pytest.raises(ParameterError, match="--clip is for data sets of clips"):
        as_clip(Data(), word())


def test_recordings_of_digits_are_placed_as_their_data_set_does() -> None:
    from spiketide.data import FSDDClips

    data = FSDDClips(features=StreamingMel(sample_rate=8000), clip_ms=500.0)
    assert np.array_equal(as_clip(data, np.ones(3998, np.float32)), np.pad(np.ones(3998, np.float32), 1))


def test_neurons_that_are_not_normalized_stream_behind_lateral() -> None:
    torch.manual_seed(1)
    neuron = LIF(12, tau_mem=3.0, threshold=0.3, reset="none", scale_input=False)
    model = Classification(
        [Lateral(Dense(12, 12, bias=False), neuron, connections="free"), Dense(12, 3), LeakyIntegrator(3)],
        MeanMembrane(),
    ).eval()
    x = torch.rand(40, 1, 12)
    with torch.no_grad():
        expected = model(Batch(x, torch.zeros(1, dtype=torch.int64)))
    assert 0.01 < float(next(iter(expected.spikes.values())).mean()) < 0.6
    streamer = Streamer(model)
    found = np.concatenate([streamer.scores(row.numpy()) for row in x])
    assert np.allclose(found[-1], expected.scores[0], atol=1e-5)


# ------------------------------------------------------------------------------------------------- the page

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "stream_sound.md"


def test_the_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    exec(compile(block, str(PAGE), "exec"), {})
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [str(n) for n in range(125)]


def test_the_command_of_the_page_makes_the_published_network_causal(tmp_path: Path) -> None:
    text = PAGE.read_text(encoding="utf-8").replace("\\\n", " ")
    (line,) = re.findall(r"^spiketide train (fsdd/.*)$", text, flags=re.MULTILINE)
    name, *words = line.split()
    assert words[:2] == ["--run", "listens"]
    assert name == "fsdd/live_conv" and len(words) == 2
    built = Recipe.load(name, []).build()
    options = ["--data.features", "spiketide.data.StreamingMel", "--data.features.sample_rate", "8000"]
    options += ["--data.features.flatten", "false"]
    for number in range(3):
        options += [f"--model.network.{number}.synapse.padding", "causal"]
    by_hand = Recipe.load("fsdd/zimmer2019_conv", options)  # as the page says for other recipes
    assert by_hand.settings["data"] == Recipe.load(name, []).settings["data"]
    assert built.data.sample_shape == (3, 40) and isinstance(built.data.features, StreamingMel)
    streamer = Streamer(built.model)  # refuses what looks ahead
    frames = built.data.features(0.1 * np.random.default_rng(0).normal(size=2400))
    assert streamer.scores(frames).shape == (30, 10)
    with pytest.raises(ParameterError, match="looks ahead"):
        Streamer(Recipe.load("fsdd/zimmer2019_conv", []).build().model)


def test_hearing_refuses_what_is_no_sound() -> None:
    front = StreamingMel(sample_rate=8000)
    model = Classification([Dense(120, 3), LeakyIntegrator(3)], MeanMembrane())
    streamer, wave = Streamer(model), np.zeros(400, np.float32)
    with pytest.raises(ParameterError, match=r"got StreamingMel"):
        next(hear(streamer, front, [wave]))  # type: ignore[arg-type]
    with pytest.raises(ParameterError, match=r"give it as \[wave\]"):
        next(hear(streamer, front.stream(), wave))
    with pytest.raises(ParameterError, match=r"got int16: of 16-bit sound divide by 32768"):
        next(hear(streamer, front.stream(), [wave.astype(np.int16)]))
    assert streamer.steps == 0
