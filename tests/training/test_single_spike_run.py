"""A run of a single-spike network from train to report, and a killed one that goes on to the same bits."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import blobs_recipe
import numpy as np
import pytest
import torch
from test_resume import assert_same

from spiketide.cli import main
from spiketide.timing import TimingConv2d, TimingLayer, decide
from spiketide.training import SingleSpike
from spiketide.training.folder import RunFolder
from spiketide.training.reporting import Collector, diagnose_recipe
from spiketide.training.run import train

KINDS = ("free", "fixed", "online")

KILL = """
import os, signal, sys
from spiketide.cli import main
from spiketide.training import SingleSpike
step = SingleSpike.training_step
def until(self, batch, batch_idx):
    if self.trainer.current_epoch == 1 and batch_idx == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, batch, batch_idx)
SingleSpike.training_step = until
sys.exit(main(sys.argv[1:]))
"""


def said(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    """What a verb prints as JSON."""
    capsys.readouterr()
    assert main([*words, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


class Ran:
    """A tested run, and what its network does on the test pictures, computed here."""

    def __init__(self, kind: str, place: Path):
        self.kind, self.path = kind, place / "run"
        recipe = blobs_recipe.write(place / f"{kind}.yaml", blobs_recipe.content(kind))
        assert main(["train", str(recipe), "--run", str(self.path)]) == 0
        assert main(["test", str(self.path)]) == 0
        self.result = json.loads((self.path / "test.json").read_text())
        self.report = (self.path / "report.html").read_text()
        self.model: Any = blobs_recipe.recipe(kind).build().model.eval()
        checkpoint = torch.load(self.path / "checkpoints" / "best.ckpt", weights_only=True)
        self.model.load_state_dict(checkpoint["state_dict"])
        x, y = blobs_recipe.blobs(40, 1)
        self.y = torch.from_numpy(y)
        with torch.no_grad():
            self.inputs = self.model.encoder(torch.from_numpy(x))
            self.fired, self.seen = self.model.network.follow(self.inputs)


@pytest.fixture(scope="module", params=KINDS)
def ran(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return Ran(request.param, tmp_path_factory.mktemp(request.param))


def test_it_learns_and_is_measured(ran: Ran) -> None:
    decision = decide(ran.fired)
    right = decision.label == ran.y
    assert ran.result["test_accuracy"] == float(right.double().mean()) > 0.6
    first = ran.fired.times.amin(1)
    silent = torch.isinf(first)
    among = ran.fired.times[torch.arange(40), ran.y] == first
    assert ran.result["test_optimistic"] == float(torch.where(silent, right, among).double().mean())
    assert ran.result["test_no_fire"] == float(silent.double().mean())
    spikes = sum(int(torch.isfinite(times).sum()) for times in ran.seen.values())
    assert ran.result["spikes_per_image"] == spikes / 40
    late = first.clamp(max=math.ceil(ran.model.network.output.stop))
    assert ran.result["decision_time"] == pytest.approx(float(late.double().mean()), abs=1e-9)
    shares = {name: float(torch.isfinite(times).double().mean()) for name, times in ran.seen.items()}
    assert ran.result["firing_rates"] == pytest.approx(shares)
    neurons = sum(times[0].numel() for times in ran.seen.values())
    assert ran.result["firing_rate"] == pytest.approx(spikes / 40 / neurons)


def test_the_deadline_counts_what_has_fired_first_by_then(ran: Ran) -> None:
    steps = math.ceil(ran.model.network.output.stop)
    labels = decide(ran.fired).label
    right, decided = [], []
    for step in range(steps):
        hits = answers = 0
        for image in range(40):
            times = ran.fired.times[image]
            if not bool((times <= step).any()):
                continue
            answers += 1
            # ties at the first step go to the potential, as the strict accuracy counts
            hits += int(labels[image] == ran.y[image])
        right.append(hits / 40)
        decided.append(answers / 40)
    assert ran.result["deadline"] == pytest.approx(right, abs=1e-12)
    assert ran.result["decided"] == pytest.approx(decided, abs=1e-12)
    undecided = torch.isinf(ran.fired.times).all(1)
    lucky = float(((labels == ran.y) & undecided).double().mean())
    assert ran.result["deadline"][-1] == pytest.approx(ran.result["test_accuracy"] - lucky)
    assert decided[-1] == pytest.approx(1 - ran.result["test_no_fire"])
    assert right == sorted(right) and right[0] < right[-1]


def test_operations_are_input_spikes_times_their_fan_out(ran: Ran) -> None:
    sparse = dense = 0
    times = ran.inputs
    for name, layer in ran.model.network.named_children():
        if not isinstance(layer, TimingLayer):
            times = layer(times)
            continue
        if isinstance(layer, TimingConv2d):
            assert layer.window.padding == 1 and times.shape[1:] == (1, 8, 8)
            for row in range(8):
                for column in range(8):
                    # windows of 3 x 3 around each pixel of the picture that hold this one
                    reach = (min(row + 1, 7) - max(row - 1, 0) + 1) * (
                        min(column + 1, 7) - max(column - 1, 0) + 1
                    )
                    sparse += 4 * reach * int(torch.isfinite(times[:, 0, row, column]).sum())
                    dense += 4 * reach * 40
        else:
            sparse += int(torch.isfinite(times).sum()) * layer.weight.shape[0]
            dense += layer.weight.numel() * 40
        times = ran.seen[name]
    assert ran.result["synaptic_operations"] == pytest.approx(sparse / 40)
    assert ran.result["dense_operations"] == pytest.approx(dense / 40)
    assert 0 < sparse < dense


def test_the_report_has_its_sections(ran: Ran) -> None:
    for title in (
        "Summary",
        "Learning curves",
        "Confusion matrix",
        "Spike times and deadlines",
        "First spikes",
        "Weights of the first layer",
        "Firing rates",
        "Diagnosis",
    ):
        assert f">{title}</h2>" in ran.report
    assert "Samples over time" not in ran.report and "spikes per neuron and step" not in ran.report
    assert ran.report.count("<article") == 6
    assert "spikes per neuron and sample" in ran.report
    assert "No class had" not in ran.report
    for curve in ("Decision time", "Spikes a sample", "Share without a decision"):
        assert f"Line chart of {curve.lower()} over the epochs" in ran.report


def test_a_test_is_stored_and_a_report_written_anew(ran: Ran, capsys: pytest.CaptureFixture[str]) -> None:
    again = said(capsys, "test", str(ran.path))
    assert again["stored"] and {k: again[k] for k in ran.result} == ran.result
    (ran.path / "report.html").unlink()
    assert said(capsys, "report", str(ran.path))["report"] == str(ran.path / "report.html")
    assert (ran.path / "report.html").read_text() == ran.report


def test_an_image_without_an_answer_is_never_right(ran: Ran, tmp_path: Path) -> None:
    """With outputs that never fire, potentials still decide, and the deadline still counts nothing."""
    mute = tmp_path / "run"
    shutil.copytree(ran.path, mute)
    file = mute / "checkpoints" / "best.ckpt"
    checkpoint = torch.load(file, weights_only=True)
    last = list(ran.seen)[-1]
    checkpoint["state_dict"][f"network.{last}.weight"] -= 100.0
    torch.save(checkpoint, file)
    assert main(["test", str(mute), "--again"]) == 0
    result = json.loads((mute / "test.json").read_text())
    assert result["test_no_fire"] == 1.0 and result["test_accuracy"] > 0
    assert set(result["deadline"]) == {0.0} and set(result["decided"]) == {0.0}
    assert result["decision_time"] == len(result["deadline"])
    page = (mute / "report.html").read_text()
    assert "never decided" in page and "No output fires" in page and "is silent" in page


def test_no_label_equals_a_missing_answer() -> None:
    silence = torch.full((4, 2), -1)
    right, judged = Collector()._right_over_time(silence, torch.tensor([-1, 0]), None)
    assert right.tolist() == [0] * 4 and judged.tolist() == [2] * 4


def test_outputs_without_a_class_are_numbered(tmp_path: Path) -> None:
    changed = blobs_recipe.content("free")
    changed["model"]["init_args"]["network"][2]["init_args"]["n_out"] = 5
    changed["trainer"]["max_epochs"] = 1
    run = tmp_path / "run"
    assert main(["train", str(blobs_recipe.write(tmp_path / "five.yaml", changed)), "--run", str(run)]) == 0
    assert main(["test", str(run)]) == 0
    assert "Confusion matrix of 5 classes" in (run / "report.html").read_text()


def test_reproduce_means_over_seeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = blobs_recipe.write(tmp_path / "blobs.yaml", blobs_recipe.content("fixed"))
    words = ("--run", str(tmp_path / "seeds"), "--seeds", "2", "--trainer.max_epochs", "1")
    found = said(capsys, "reproduce", str(recipe), *words)
    values = [row["test_accuracy"] for row in found["runs"]]
    assert found["seeds"] == 2 and found["mean"] == pytest.approx(np.mean(values))
    assert all(len(row["deadline"]) == 48 for row in found["runs"])


def test_diagnose_speaks_of_layers_as_training_begins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = blobs_recipe.content("fixed")
    found = said(capsys, "diagnose", str(blobs_recipe.write(tmp_path / "a.yaml", changed)))
    assert [row["name"] for row in found["layers"]] == ["0", "4"]
    assert 16 < found["layers"][0]["median"] < 32 < found["layers"][1]["median"] < 48

    changed["model"]["init_args"]["moments"] = None  # scales as drawn: the outputs fire as their window opens
    changed["model"]["init_args"]["network"][4]["init_args"]["mean"] = 8.0
    found = said(capsys, "diagnose", str(blobs_recipe.write(tmp_path / "b.yaml", changed)))
    assert any("layer 4 (TimingLinear) fires all at once" in message for message in found["messages"])


def test_diagnose_takes_a_run_as_it_was_trained(ran: Ran, capsys: pytest.CaptureFixture[str]) -> None:
    built = blobs_recipe.recipe(ran.kind).build()
    built.data.prepare_data()
    built.data.setup("fit")
    batch = next(iter(built.data.train_dataloader()))
    with torch.no_grad():
        _, seen = ran.model.network.follow(ran.model.encoder(batch.x))
    name, times = next(iter(seen.items()))
    first = said(capsys, "diagnose", str(ran.path))["layers"][0]
    assert first["name"] == name  # the scales are those of the checkpoint, not set anew
    assert first["rate"] == pytest.approx(float(torch.isfinite(times).double().mean()))


def test_diagnose_names_what_cannot_be_calibrated() -> None:
    changed = blobs_recipe.content("fixed")
    changed["model"]["init_args"]["network"][0]["init_args"]["mean"] = -50.0
    found = diagnose_recipe(blobs_recipe.Recipe(changed, name="deaf"))
    assert any("layer 0 (TimingConv2d)" in message for message in found.messages)
    assert not found.healthy


def test_a_run_killed_half_way_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    recipe = blobs_recipe.write(tmp_path / "blobs.yaml", blobs_recipe.content("fixed"))
    killed, whole = RunFolder(tmp_path / "killed"), RunFolder(tmp_path / "whole")
    process = subprocess.Popen(
        [sys.executable, "-c", KILL, "train", str(recipe), "--run", str(killed.path)],
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])},
    )
    train(blobs_recipe.Recipe.load(recipe), whole)
    assert process.wait(timeout=120) == -signal.SIGKILL
    assert not killed.finished
    assert main(["train", "--resume", str(killed.path)]) == 0
    assert_same(killed, whole)


def test_a_free_slope_resumes_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut, whole = RunFolder(tmp_path / "cut"), RunFolder(tmp_path / "whole")
    step = SingleSpike.training_step

    def fail(self: Any, batch: Any, batch_idx: int) -> Any:
        if self.trainer.current_epoch == 1 and batch_idx == 1:
            raise MemoryError
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(SingleSpike, "training_step", fail)
        with pytest.raises(MemoryError):
            train(blobs_recipe.recipe("free"), cut)
    train(blobs_recipe.recipe("free"), cut, resume=True)
    train(blobs_recipe.recipe("free"), whole)
    assert_same(cut, whole)
