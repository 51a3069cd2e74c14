"""The task of networks that learn image by image: it trains, resumes to the bit, is tested and says what it cannot do."""

from __future__ import annotations

import copy
import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch

from spiketide import Batch
from spiketide.cli import main
from spiketide.data import Digits
from spiketide.errors import ParameterError, SpiketideError
from spiketide.timing import BS4NN, S4NN, PixelTimes, TimingLinear
from spiketide.timing import Network as TimingNetwork
from spiketide.training import OnlineTiming
from spiketide.training.folder import RunFolder
from spiketide.training.recipe import Recipe
from spiketide.training.run import surroundings, train


def content(kind: str, **network: Any) -> dict[str, Any]:
    options = {"sizes": [64, 40, 10], "threshold": 20.0, "spread": [2.0, 12.0], **network}
    if kind == "S4NN":
        options["dead"] = options.get("dead", 0.2)  # high, so that some neurons are drawn anew in each epoch
    return {
        "seed": 3,
        "threads": 1,
        "data": {
            "class_path": "spiketide.data.Digits",
            "init_args": {"batch_size": 100, "order": "file" if kind == "S4NN" else "drawn"},
        },
        "model": {
            "class_path": "spiketide.training.OnlineTiming",
            "init_args": {"network": {"class_path": f"spiketide.timing.{kind}", "init_args": options}},
        },
        "trainer": {"accelerator": "cpu", "max_epochs": 3, "enable_progress_bar": False},
    }


def state(folder: RunFolder) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(folder.last, weights_only=True)["state_dict"]
    return found


@pytest.mark.parametrize("kind", ["S4NN", "BS4NN"])
def test_it_learns_and_a_run_cut_short_goes_on_to_the_bit(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe(content(kind), name="online")
    whole, cut = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "cut")
    train(recipe, whole)
    step = OnlineTiming.training_step

    def fail(self: OnlineTiming, batch: Any, batch_idx: int) -> Any:
        if self.trainer.current_epoch == 1 and batch_idx == 4:
            raise MemoryError
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(OnlineTiming, "training_step", fail)
        with pytest.raises(MemoryError):
            train(recipe, cut)
    train(recipe, cut, resume=True)
    one, other = state(whole), state(cut)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    with open(whole.path / "metrics.csv") as first, open(cut.path / "metrics.csv") as second:
        tables = [
            [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(f)]
            for f in (first, second)
        ]
    assert tables[0] == tables[1]
    rows = [{name: float(value) for name, value in row.items()} for row in tables[0]]
    assert rows[-1]["train/accuracy"] > rows[0]["train/accuracy"]
    # chance is 0.1; signs of 64 x 40 weights learn little from so few images
    assert rows[-1]["val/accuracy"] > (0.6 if kind == "S4NN" else 0.25)
    assert rows[-1]["lr"] == (0.2 if kind == "S4NN" else 0.1)
    for row in rows:
        assert (
            row["train/optimistic"] >= row["train/accuracy"] and row["val/optimistic"] >= row["val/accuracy"]
        )
        assert 0 < row["train/rate/1"] <= 1 and row["val/no_fire"] + row["val/rate/2"] > 0
        assert row["val/spikes"] == pytest.approx(40 * row["val/rate/1"] + 10 * row["val/rate/2"], rel=1e-4)


def test_what_is_logged_of_an_epoch_is_what_a_plain_loop_finds(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    one = content("S4NN")
    one["trainer"]["max_epochs"] = 1
    recipe = Recipe(one, name="online")
    model = copy.deepcopy(recipe.build().model)
    train(recipe, folder)
    data = Digits(batch_size=100, seed=3, order="file")
    data.setup("fit")
    net, samples, optimistic, fired = model.network, 0, 0.0, 0.0
    for batch in data.train_dataloader():
        said, seen = net.learn(model.encode(batch), batch.y)
        first = said.times.amin(1)
        among = said.times[torch.arange(len(batch.y)), batch.y] == first
        silent = torch.isinf(first)
        optimistic += float(torch.where(silent, said.potential.argmax(1) == batch.y, among).sum())
        fired += float(torch.isfinite(seen["1"]).sum())
        samples += len(batch.y)
    for name, value in net.state_dict().items():
        assert torch.equal(state(folder)[f"network.{name}"], value), name
    with open(folder.path / "metrics.csv") as file:
        row = next(csv.DictReader(file))
    assert float(row["train/optimistic"]) == pytest.approx(optimistic / samples, abs=1e-6)
    assert float(row["train/rate/1"]) == pytest.approx(fired / samples / 40, abs=1e-6)


def test_from_the_command_line_to_the_test_and_its_energy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "run"
    recipe = Recipe(content("BS4NN"), name="online")
    train(recipe, RunFolder(place))
    assert main(["test", str(place), "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["samples"] == 359 and result["test_accuracy"] > 0.25
    assert result["test_optimistic"] >= result["test_accuracy"]
    assert 0 <= result["test_no_fire"] < 0.5
    assert (place / "report.html").is_file()
    assert main(["energy", str(place), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["verb"] == "energy"


def test_it_wants_a_network_that_learns_by_itself() -> None:
    with pytest.raises(ParameterError, match="SingleSpike"):
        OnlineTiming(TimingNetwork(TimingLinear(4, 2)))  # type: ignore[arg-type]


def test_the_encoder_has_the_window_of_the_network() -> None:
    encoder: Any = OnlineTiming(S4NN([4, 2], steps=32)).encoder
    assert isinstance(encoder, PixelTimes) and encoder.steps == 32
    given = PixelTimes(code="byte")
    assert OnlineTiming(BS4NN([4, 2]), encoder=given).encoder is given


def test_several_processes_are_refused() -> None:
    model = OnlineTiming(S4NN([4, 2]))
    model._trainer = SimpleNamespace(world_size=2)  # type: ignore[assignment]
    with pytest.raises(ParameterError, match="one image after the other"):
        model.on_fit_start()


def test_a_trainer_that_clips_is_refused() -> None:
    options: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(max_epochs=1, accelerator="cpu", gradient_clip_val=1.0, **options)
    with surroundings(), pytest.raises(ParameterError, match="learns without a gradient, so there is none"):
        trainer.fit(OnlineTiming(S4NN([64, 20, 10])), datamodule=Digits(limit=64))


def test_a_layer_that_never_fires_is_named(tmp_path: Path) -> None:
    recipe = Recipe(content("BS4NN", threshold=1e6), name="online")
    with pytest.raises(ParameterError, match="layer 1: none of its neurons fired"):
        train(recipe, RunFolder(tmp_path / "run"))


@pytest.mark.parametrize("x", [torch.full((2, 4), float("nan")), torch.full((2, 4), 1.5)])
def test_images_that_are_none(x: torch.Tensor) -> None:
    model = OnlineTiming(S4NN([4, 2]))
    with pytest.raises(SpiketideError, match="PixelTimes"):
        model(Batch(x, torch.zeros(2, dtype=torch.int64)))


def test_black_and_white_images_are_learnt() -> None:
    model = OnlineTiming(S4NN([4, 3, 2], threshold=3.0))
    net: Any = model.network
    for x in (torch.zeros(2, 4), torch.ones(2, 4)):
        fired, _ = net.learn(model.encode(Batch(x, torch.tensor([0, 1]))), torch.tensor([0, 1]))
        assert fired.times.shape == (2, 2) and torch.isfinite(net.output.weight).all()
