"""``spiketide energy``: which data it looks at, what it counts, what it writes and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_recipe as tiny
import torch

from spiketide.cli import main
from spiketide.data import Digits
from spiketide.energy import costs, paper_counts
from spiketide.training.folder import RunFolder
from spiketide.training.recipe import Recipe
from spiketide.training.run import test as measure
from spiketide.training.run import train


def spiking(**model: Any) -> dict[str, Any]:
    """A recipe without noise: a latency code, 20 LIF neurons and a read-out."""
    content = tiny.content()
    content["model"]["init_args"] |= {
        "encoder": {"class_path": "spiketide.encoders.Latency", "init_args": {"steps": 6}},
        **model,
    }
    return content


def classical() -> dict[str, Any]:
    """The same with an LSTM in the middle."""
    return spiking(
        network=[
            {"class_path": "torch.nn.Flatten"},
            {"class_path": "spiketide.baselines.LSTM", "init_args": {"n_in": 64, "n": 4}},
            {"class_path": "spiketide.synapses.Dense", "init_args": {"n_in": 4, "n_out": 10}},
        ]
    )


def run(path: Path, content: dict[str, Any]) -> Path:
    train(Recipe(content, name="tiny"), RunFolder(path))
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    return {
        "snn": run(folder / "snn", spiking()),
        "noisy": run(folder / "noisy", tiny.content()),
        "lstm": run(folder / "lstm", classical()),
    }


def result(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def hidden(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Input and hidden spikes on the validation digits, by a plain loop over the stored weights."""
    data = Recipe.load(path / "recipe.yaml").build().data
    data.setup("fit")
    pixels = torch.cat([batch.x for batch in data.val_dataloader()]).flatten(1)
    fires_at = torch.where(pixels > 0, torch.floor(5 * (1.0 - pixels) + 0.5), torch.tensor(6.0))
    x = torch.stack([(fires_at == step).float() for step in range(6)])
    weights = torch.load(path / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    w, b = weights["network.1.weight"], weights["network.1.bias"]
    v, out = torch.zeros(x.shape[1], 20), []
    for step in x:
        v = torch.exp(torch.tensor(-1 / 5.0)) * v + step @ w.t() + b
        out.append((v > 1.0).float())
        v = v - out[-1]
    return x, torch.stack(out)


def test_the_energy_of_a_run(
    runs: dict[str, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    touched: list[str] = []
    read = Digits.read

    def watch(self: Digits, part: Any) -> Any:
        touched.append(part)
        return read(self, part)

    monkeypatch.setattr(Digits, "read", watch)
    assert main(["energy", str(runs["snn"]), "--json"]) == 0
    found = result(capsys)
    assert set(touched) == {"train"}  # validation is a part of it; the test data are not read
    x, y = hidden(runs["snn"])
    samples = x.shape[1]
    assert found["samples"] == samples and found["on"] == "validation" and found["steps"] == 6
    assert found["rate"] == pytest.approx(float(y.mean())) and 0.005 < found["rate"] < 0.6
    # the papers' formulas for 6 steps, with the biases of both synapses and the comparisons of the neurons beside them
    first = paper_counts("lif", 64, 20, rate_in=float(x.mean()), rate_out=float(y.mean()), recurrent=False)
    second = paper_counts("li", 20, 10, rate_in=float(y.mean()))
    prices = costs("horowitz-fp32")
    pico = first.energy(prices) + second.energy(prices) + (20 + 10) * 0.9 + 20 * 0.9
    assert found["energy_nj"] == pytest.approx(6 * pico * 1e-3, rel=1e-6)
    lstm = found["baselines"][0]
    own = paper_counts("lstm", 64, lstm["units"]).mac + lstm["units"] * 10
    assert lstm["energy_nj"] == pytest.approx(6 * (own * 4.6 + 10 * 0.9) * 1e-3)
    stored = json.loads((runs["snn"] / "energy.json").read_text())
    assert stored == {key: value for key, value in found.items() if key != "verb"}
    metrics = json.loads((runs["snn"] / "metrics.json").read_text())
    assert found["quality"] == metrics["best"]["val/accuracy"]


def test_random_encoders_draw_the_same_twice_and_disturb_nobody(
    runs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    energies = []
    for _ in range(2):
        assert main(["energy", str(runs["noisy"]), "--costs", "lemaire", "--json"]) == 0
        energies.append(result(capsys)["energy_nj"])
    assert energies[0] == energies[1] > 0
    assert torch.equal(torch.get_rng_state(), before)


def test_against_another_run(runs: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["energy", str(runs["snn"]), "--against", str(runs["lstm"]), "--json"]) == 0
    shown = capsys.readouterr().out.splitlines()
    found = json.loads(shown[-1])
    (beside,) = found["baselines"]
    own = paper_counts("lstm", 64, 4).mac + 4 * 10
    assert beside["energy_nj"] == pytest.approx(6 * (own * 4.6 + 10 * 0.9) * 1e-3)
    assert beside["parameters"] == 4 * 4 * (64 + 4 + 2) + 4 * 10 + 10 and beside["units"] is None
    metrics = json.loads((runs["lstm"] / "metrics.json").read_text())
    assert beside["quality"] == metrics["best"]["val/accuracy"]
    assert found["against"]["energy_nj"] == beside["energy_nj"]
    text = "\n".join(shown)
    assert f"{found['quality']:.4f}" in text and f"{beside['quality']:.4f}" in text and "val/accuracy" in text
    # at the break-even rate, by the formulas: fixed part + rate * what spikes cause
    x, _ = hidden(runs["snn"])
    rate = beside["break_even_rate"]
    first = paper_counts("lif", 64, 20, rate_in=float(x.mean()), rate_out=rate, recurrent=False)
    second = paper_counts("li", 20, 10, rate_in=rate)
    prices = costs("horowitz-fp32")
    pico = first.energy(prices) + second.energy(prices) + 50 * 0.9
    assert 6 * pico * 1e-3 == pytest.approx(beside["energy_nj"], rel=1e-6)
    assert not (runs["lstm"] / "energy.json").exists()


def test_the_test_data_wait_for_the_test(runs: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["energy", str(runs["lstm"]), "--on", "test"]) == 2
    assert "was not tested yet" in capsys.readouterr().err
    assert not (runs["lstm"] / "energy.json").exists()
    measure(RunFolder(runs["lstm"]))
    assert main(["energy", str(runs["lstm"]), "--on", "test", "--json"]) == 0
    found = result(capsys)
    assert found["on"] == "test" and found["samples"] == 359
    # nothing in it spikes
    assert all(row["break_even_rate"] is None for row in found["baselines"])


def test_refusals(tmp_path: Path, runs: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["energy", str(runs["snn"]), "--costs", "horowitz"]) == 2
    assert "did you mean 'horowitz-" in capsys.readouterr().err
    assert main(["energy", str(tmp_path / "nothing"), "--runs", str(tmp_path)]) == 2
    assert "neither a run folder nor a recipe" in capsys.readouterr().err
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / "recipe.yaml").write_text((runs["snn"] / "recipe.yaml").read_text())
    assert main(["energy", str(begun)]) == 2
    assert "no best checkpoint yet" in capsys.readouterr().err
    assert main(["energy", str(runs["snn"]), "--on", "train"]) == 2
    with RunFolder(runs["snn"]).hold():
        assert main(["energy", str(runs["snn"])]) == 2
    assert "another process is using" in capsys.readouterr().err
