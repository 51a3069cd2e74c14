"""The task of first spikes: what it measures, trains, refuses, and says about layers that do not fire."""

from __future__ import annotations

import gzip
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from data_files import idx_bytes, mnist_images
from torch import Tensor, nn

from spiketide.cli import main
from spiketide.errors import DataError, NonFiniteError, ParameterError, ShapeError
from spiketide.timing import (
    EarliestPool2d,
    FixedSlope,
    Flatten,
    IntensityToLatency,
    Network,
    Ramp,
    ReL,
    RelativeTargets,
    Silence,
    Step,
    STiDi,
    TimingConv2d,
    TimingCrossEntropy,
    TimingLinear,
)
from spiketide.training import SingleSpike
from spiketide.training.folder import RunFolder
from spiketide.training.recipe import Recipe
from spiketide.training.run import train
from spiketide.types import Batch

inf = math.inf
TIMING = "spiketide.timing."


def content(**model: Any) -> dict[str, Any]:
    """A recipe that trains in a second."""
    return {
        "seed": 3,
        "threads": 1,
        "data": {
            "class_path": "spiketide.data.Digits",
            "init_args": {"batch_size": 32, "limit": 640, "seed": 5, "validation_fraction": 0.1},
        },
        "model": {
            "class_path": "spiketide.training.SingleSpike",
            "init_args": {
                "encoder": {
                    "class_path": TIMING + "IntensityToLatency",
                    "init_args": {"steps": 32, "span": 0.5},
                },
                "network": [
                    {"class_path": TIMING + "Flatten"},
                    {
                        "class_path": TIMING + "TimingLinear",
                        "init_args": {"n_in": 64, "n_out": 48, "stop": 32.0},
                    },
                    {"class_path": TIMING + "Silence", "init_args": {"p": 0.1}},
                    {
                        "class_path": TIMING + "TimingLinear",
                        "init_args": {"n_in": 48, "n_out": 10, "stop": 32.0},
                    },
                ],
                "loss": {
                    "class_path": TIMING + "TimingCrossEntropy",
                    "init_args": {"tau": 4.0, "anchor": 0.1},
                },
                "moments": [0.5, 0.8],
                "optimizer": "adam",
                "lr": 0.03,
                **model,
            },
        },
        "trainer": {"accelerator": "cpu", "max_epochs": 4, "enable_progress_bar": False},
    }


def run(folder: Path, recipe: dict[str, Any]) -> tuple[list[dict[str, float]], dict[str, Tensor]]:
    """The history of a run and its last state."""
    train(Recipe(recipe, name="small"), RunFolder(folder))
    history = json.loads((folder / "metrics.json").read_text())["history"]
    return history, torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


# ---------------------------------------------------------------------------------------- training


def test_digits_are_learnt_and_two_runs_are_equal_to_the_bit(tmp_path: Path) -> None:
    history, state = run(tmp_path / "first", content())
    last = history[-1]
    assert last["val/accuracy"] > 0.75 and last["train/accuracy"] > history[0]["train/accuracy"] + 0.1
    assert last["train/loss"] < 0.7 * history[0]["train/loss"]
    assert last["train/optimistic"] >= last["train/accuracy"]
    assert 0 <= last["val/no_fire"] < 0.1 and 8 < last["val/time"] < 32
    assert last["val/spikes"] == pytest.approx(48 * last["val/rate/1"] + 10 * last["val/rate/3"], rel=1e-5)
    assert last["val/rate"] == pytest.approx(last["val/spikes"] / 58, rel=1e-5)
    assert bool(state["calibrated"]) and float(state["network.1.scale"]) != pytest.approx(2 / math.sqrt(64))
    again, same = run(tmp_path / "second", content())
    numbers = [
        {k: v for k, v in row.items() if "seconds" not in k and "memory" not in k}
        for row in (*history, *again)
    ]
    assert numbers[: len(history)] == numbers[len(history) :]
    assert state.keys() == same.keys() and all(torch.equal(state[name], same[name]) for name in state)


def test_scales_are_set_before_the_first_step_and_only_then() -> None:
    model = SingleSpike([Flatten(), TimingLinear(64, 20), TimingLinear(20, 10)], moments=[0.5, 0.8])
    before = float(model.network[1].scale)
    batches = [Batch(torch.rand(100, 1, 8, 8), torch.zeros(100, dtype=torch.int64)) for _ in range(9)]
    assert not bool(model.calibrated)
    model.prepare(iter(batches))
    scale = float(model.network[1].scale)
    assert bool(model.calibrated) and scale != before
    # on the first 256 images
    other = SingleSpike([Flatten(), TimingLinear(64, 20), TimingLinear(20, 10)], moments=[0.5, 0.8])
    other.load_state_dict({name: value for name, value in model.state_dict().items()})
    other.calibrated.fill_(False)
    x = torch.cat([batch.x for batch in batches])[:256]
    other.prepare([Batch(x, torch.zeros(256, dtype=torch.int64))])
    assert float(other.network[1].scale) == scale
    model.network[1].scale.mul_(2.0)
    model.prepare(iter(batches))
    assert float(model.network[1].scale) == 2 * scale


def test_images_of_another_size_are_refused_before_the_first_step() -> None:
    model = SingleSpike([Flatten(), TimingLinear(64, 20), TimingLinear(20, 10)], moments=[0.5, 0.8])
    batch = Batch(torch.rand(30, 1, 7, 7), torch.zeros(30, dtype=torch.int64))
    with pytest.raises(ShapeError, match=r"layer 1: TimingLinear expected .*\(B, 64\), got \(30, 49\)"):
        model.prepare([batch])
    assert not bool(model.calibrated)


def test_a_layer_that_never_fires_is_named_with_advice(tmp_path: Path) -> None:
    recipe = content(moments=None)
    recipe["model"]["init_args"]["network"][3]["init_args"]["mean"] = -20.0
    with pytest.raises(
        ParameterError,
        match=r"layer 3 \(TimingLinear\): none of its neurons fired on any of .* images\. Give moments",
    ):
        run(tmp_path / "a", recipe)
    recipe = content()
    recipe["model"]["init_args"]["network"][1]["init_args"]["mean"] = -20.0
    with pytest.raises(ParameterError, match=r"layer 1 \(TimingLinear\) fires too late with any scale"):
        run(tmp_path / "b", recipe)


def test_hidden_neurons_that_never_fire_are_woken(tmp_path: Path) -> None:
    recipe = content(moments=None, lr=0.001, revive_below=0.01)
    recipe["model"]["init_args"]["network"][1]["init_args"]["mean"] = -20.0
    history, _ = run(tmp_path / "a", recipe)
    assert history[0]["train/rate/1"] == 0.0
    assert history[1]["train/rate/1"] > 0.3 and history[-1]["train/accuracy"] > history[0]["train/accuracy"]


def networks() -> list[list[nn.Module]]:
    """One of each sort, for images of 8 x 8."""
    slope = STiDi(slope="constant", normalise=False)
    return [
        [Flatten(), TimingLinear(64, 20), TimingLinear(20, 10)],
        [
            TimingConv2d(1, 4, 3, psp=Ramp(16.0), stop=64.0),
            EarliestPool2d(),
            Flatten(),
            Silence(0.2),
            TimingLinear(36, 10, psp=Step(), stop=64.0, binary=True),
        ],
        [
            TimingConv2d(1, 4, 3, psp=FixedSlope(64.0, 64.0), stop=128.0, rule=slope),
            EarliestPool2d(),
            Flatten(),
            Silence(0.2, end=128.0),
            TimingLinear(36, 10, psp=FixedSlope(128.0, 64.0), stop=192.0, rule=slope),
        ],
    ]


@pytest.mark.parametrize(
    "loss", [TimingCrossEntropy(anchor=0.1), RelativeTargets(16.0, anchor=0.1)], ids=repr
)
@pytest.mark.parametrize("which", range(3))
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_black_and_white_images_go_through_training(which: int, loss: Any, optimizer: str) -> None:
    """Black ones fire nothing and teach nothing; white ones fire all at once. No NaN, whatever comes after."""
    model = SingleSpike(networks()[which], loss=loss)
    chosen: Any = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[optimizer]
    steps = chosen(model.parameters(), lr=0.05 if optimizer == "adam" else 1e-3)
    y = torch.arange(6) % 10
    start = [p.detach().clone() for p in model.parameters()]
    for x, moves in (
        (torch.zeros(6, 1, 8, 8), False),
        (torch.ones(6, 1, 8, 8), True),
        (torch.rand(6, 1, 8, 8), True),
    ):
        before = [p.detach().clone() for p in model.parameters()]
        steps.zero_grad()
        fired, seen = model.follow(Batch(x, y))
        value = model.objective_of(fired, y)
        assert bool(torch.isfinite(value))
        assert not any(bool(torch.isnan(times).any()) for times in seen.values())
        assert bool(torch.isfinite(fired.potential).all())
        value.backward()
        steps.step()
        moved = [not torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True)]
        assert any(moved) if moves else not any(moved)
        assert all(bool(torch.isfinite(p).all()) for p in model.parameters())
        if not moves:
            sums = model.measures_of(fired, seen, y)
            assert (
                int(sums["no_fire"]) == 6 and sum(int(n) for name, n in sums.items() if "fired" in name) == 0
            )
    assert not torch.equal(start[-1], [*model.parameters()][-1])


# ---------------------------------------------------------------------------------------- measures


def by_hand() -> SingleSpike:
    """Three outputs that repeat three inputs, 16 steps later or, for weights below 1, later still."""
    model = SingleSpike(
        [TimingLinear(3, 3, psp=ReL(16.0), stop=64.0)], encoder=IntensityToLatency(64, threshold=0.01)
    )
    model.network[0].set_weight(torch.eye(3))
    return model


X = torch.tensor([[1.0, 0.5, 0.0], [0.5, 0.5, 0.0], [0.0, 0.1, 0.2], [0.0, 0.0, 0.75]])
Y = torch.tensor([0, 1, 2, 0])


def test_measures_by_hand() -> None:
    """Input at 0, 32, 57.6 and 51.2 (too late: no spike within 64), 16. First spikes: 0 at 16; 0 and 1 at 48; none; 2 at 32."""
    model = by_hand()
    fired, seen = model.follow(Batch(X, Y))
    assert fired.times.tolist() == [[16.0, 48.0, inf], [48.0, 48.0, inf], [inf, inf, inf], [inf, inf, 32.0]]
    sums = {name: float(value.detach()) for name, value in model.measures_of(fired, seen, Y).items()}
    # the second is a tie that goes to 0; the third has no spike and 2 is closest to its threshold; the fourth is wrong
    assert sums == {
        "accuracy": 2.0,
        "optimistic": 3.0,
        "no_fire": 1.0,
        "time": 16.0 + 48 + 64 + 32,
        "fired/0": 5.0,
    }
    output = model(Batch(X, Y))
    assert output.scores.argmax(1).tolist() == [0, 0, 2, 2]
    assert float(model.measures(output, Y)["accuracy"][0]) == 0.5
    assert float(model.criterion(output.scores, Y)) == 0.5
    assert output.y.shape == (64, 4, 3) and float(output.y.sum()) == 5
    assert output.spikes["0"].tolist() == [torch.isfinite(fired.times).float().tolist()]


def test_answers_in_time() -> None:
    model = by_hand()
    output = model(Batch(X, Y))
    said = model.answers(output)
    assert said.shape == (64, 4)
    assert said[:, 0].tolist() == [-1] * 16 + [0] * 48
    assert said[:, 1].tolist() == [-1] * 48 + [0] * 16
    assert said[:, 2].tolist() == [-1] * 64
    assert said[:, 3].tolist() == [-1] * 32 + [2] * 32
    evolved = model.evolve(output)
    assert evolved[15].abs().sum() == 0 and evolved[16, 0].tolist() == [64 - 16, 0.0, 0.0]
    assert evolved[-1, 0].tolist() == [48.0, 16.0, 0.0]
    assert torch.equal(model.scores(output.y, None), evolved[-1])


# ---------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("network", "options", "words"),
    [
        ([Flatten()], {}, "expected a TimingLayer at the end, got Flatten"),
        ([], {}, "expected a TimingLayer at the end, got nothing"),
        (
            None,
            {"loss": RelativeTargets(64.0)},
            "a margin of 64 steps does not fit into a window of 64: lower the margin or lengthen",
        ),
        (None, {"revive_below": 1.0}, "revive_below from 0 to below 1, got 1.0"),
        (None, {"revive_below": math.nan}, "revive_below from 0 to below 1"),
        (None, {"truncate": 5}, "no steps to truncate"),
        (None, {"lr": 0.0}, "expected lr above 0"),
        (None, {"optimizer": "adm"}, "optimizer.*'adm'.*adam"),
    ],
)
def test_settings_that_are_refused(network: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ParameterError, match=words):
        SingleSpike([TimingLinear(4, 2)] if network is None else network, **options)


def test_inputs_that_come_too_late_are_told_of(caplog: pytest.LogCaptureFixture) -> None:
    SingleSpike([TimingLinear(4, 2, stop=64.0)], encoder=IntensityToLatency(256, span=0.25))
    SingleSpike([TimingLinear(4, 2, psp=FixedSlope(64.0, 32.0), stop=96.0)])
    assert "later ones are lost" not in caplog.text
    SingleSpike([TimingLinear(4, 2, stop=64.0)], encoder=IntensityToLatency(256))
    assert "gives spike times up to step 256, and the first layer hears inputs until step 64" in caplog.text
    caplog.clear()
    SingleSpike([TimingLinear(4, 2, psp=FixedSlope(32.0, 32.0), stop=64.0)])
    assert "until step 32: later ones are lost" in caplog.text


def test_a_network_of_its_own_or_a_list_of_layers() -> None:
    layers = [TimingLinear(4, 2)]
    assert isinstance(SingleSpike(layers).network, Network)
    net = Network(*layers)
    assert SingleSpike(net).network is net


@pytest.mark.parametrize(
    ("x", "error", "words"),
    [
        (torch.tensor([[0.0, math.nan, 1.0]]), NonFiniteError, "1 NaN or Inf among 3 values"),
        (torch.tensor([[0.0, inf, 1.0]]), NonFiniteError, "1 NaN or Inf among 3 values"),
        (torch.tensor([[0.0, 255.0, 1.0]]), ShapeError, "from 0 to 1, got 0 to 255: divide bytes by 255"),
        (torch.tensor([[0, 255, 1]], dtype=torch.uint8), ShapeError, "got torch.uint8: x / 255 for bytes"),
        (torch.zeros(1, 4), ShapeError, r"expected spike times \(B, 3\), got \(1, 4\)"),
        (torch.zeros(1, 1, 1, 3), ShapeError, r"Put spiketide.timing.Flatten\(\) in front"),
    ],
)
def test_images_that_are_refused(x: Tensor, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        by_hand().training_step(Batch(x, torch.tensor([0])), 1)


def test_batches_and_labels_that_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"expected batches Batch\(x, y, lengths\).*got tuple"):
        by_hand().training_step((X, Y), 1)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="has outputs 0 to 2, got labels from 0 to 3"):
        by_hand().training_step(Batch(X, torch.tensor([0, 1, 2, 3])), 1)
    with pytest.raises(ShapeError, match="whole labels"):
        by_hand().training_step(Batch(X, Y.float()), 1)


@pytest.fixture
def mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small MNIST in a working folder of its own."""
    folder = tmp_path / "data" / "mnist"
    folder.mkdir(parents=True)
    for name, n, seed in (("train", 200, 0), ("t10k", 50, 1)):
        images, labels = mnist_images(n, seed)
        (folder / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(images)))
        (folder / f"{name}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(labels)))
    monkeypatch.setenv("SPIKETIDE_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.mark.parametrize(
    ("name", "broken"),
    [
        ("train-images-idx3-ubyte.gz", lambda raw: raw[: len(raw) // 2]),
        ("train-labels-idx1-ubyte.gz", lambda raw: b"<html>not found</html>"),
        ("train-images-idx3-ubyte.gz", lambda raw: gzip.compress(gzip.decompress(raw)[:-5])),
    ],
)
def test_a_broken_file_of_mnist_ends_the_run_with_its_name(
    name: str, broken: Any, mnist: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = mnist / name
    path.write_bytes(broken(path.read_bytes()))
    assert main(["train", "mnist/mirsadeghi2021_stidi_fc", "--trainer.max_epochs", "1", "--json"]) == 2
    said = capsys.readouterr()
    assert str(path) in said.err and "Traceback" not in said.err
    assert str(path) in json.loads(said.out.splitlines()[-1])["error"]


def test_all_black_training_images_are_explained(mnist: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = mnist / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(idx_bytes(np.zeros((200, 28, 28), np.uint8))))
    assert main(["train", "mnist/mirsadeghi2021_stidi_fc", "--trainer.max_epochs", "1"]) == 2
    assert "layer 1 (TimingLinear) hears no spike at all" in capsys.readouterr().err
    shutil.rmtree("runs", ignore_errors=True)


def test_the_recipe_of_the_command_line_is_the_same_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = content()
    recipe["trainer"]["max_epochs"] = 1
    Path("small.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["train", "small.yaml", "--run", "out"]) == 0
    saved = torch.load(Path("out") / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert bool(saved["calibrated"]) and saved["network.1.weight"].shape == (48, 64)
