"""``spiketide energy`` and ``spiketide export`` on runs of single spikes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_recipe as tiny
import torch

from spiketide.cli import main
from spiketide.timing import packed_encoder, unpack
from spiketide.training.folder import RunFolder
from spiketide.training.recipe import Recipe
from spiketide.training.run import train

STEPS, HIDDEN = 16.0, 24


def content(kind: str, binary: bool) -> dict[str, Any]:
    """One hidden layer, free or fixed slopes, on a hundred digits."""

    def layer(n_in: int, n_out: int, number: int) -> dict[str, Any]:
        own: dict[str, Any] = {"n_in": n_in, "n_out": n_out, "stop": STEPS, "binary": binary}
        if kind == "fixed":
            psp = {"start": STEPS * number, "length": STEPS}
            own |= {"psp": {"class_path": "spiketide.timing.FixedSlope", "init_args": psp}}
            own["stop"] = STEPS * (number + 1)
        return {"class_path": "spiketide.timing.TimingLinear", "init_args": own}

    made = tiny.content()
    made["model"] = {
        "class_path": "spiketide.training.SingleSpike",
        "init_args": {
            "encoder": {
                "class_path": "spiketide.timing.IntensityToLatency",
                "init_args": {"steps": int(STEPS)},
            },
            "network": [
                {"class_path": "spiketide.timing.Flatten"},
                layer(64, HIDDEN, 1),
                layer(HIDDEN, 10, 2),
            ],
            "moments": [0.3, 0.6],
            "lr": 0.02,
        },
    }
    return made


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    made = {}
    for kind in ("free", "fixed"):
        for binary in (False, True):
            name = f"{kind}{'-binary' if binary else ''}"
            made[name] = folder / name
            train(Recipe(content(kind, binary), name="tiny"), RunFolder(made[name]))
    return made


def result(capsys: pytest.CaptureFixture[str]) -> tuple[str, dict[str, Any]]:
    text = capsys.readouterr().out
    return text, json.loads(text.splitlines()[-1])


def validation(run: Path) -> tuple[torch.Tensor, Any]:
    """Spike times of the validation digits, and the trained model."""
    built = Recipe.load(run / "recipe.yaml").build()
    state = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    built.model.load_state_dict(state)
    built.data.setup("fit")
    pixels = torch.cat([batch.x for batch in built.data.val_dataloader()])
    return built.model.encoder(pixels), built.model.eval()


@pytest.mark.parametrize("name", ["free", "free-binary", "fixed", "fixed-binary"])
def test_the_energy_of_a_run(runs: dict[str, Path], name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["energy", str(runs[name]), "--json"]) == 0
    text, found = result(capsys)
    times, model = validation(runs[name])
    with torch.no_grad():
        hidden = model.network[1](model.network[0](times))
        out = model.network(times)
    samples = len(times)
    rows = {row["name"]: row for row in found["layers"]}
    heard = int((hidden < (2 * STEPS if name.startswith("fixed") else STEPS)).sum())
    assert found["samples"] == samples and found["rate_per"] == "neuron"
    assert rows["1.synapse"]["synaptic_ac"] * samples == pytest.approx(
        int(torch.isfinite(times).sum()) * HIDDEN
    )
    assert rows["2.synapse"]["synaptic_ac"] * samples == pytest.approx(heard * 10) and heard > 0
    spikes = int(torch.isfinite(hidden).sum() + torch.isfinite(out).sum())
    assert found["rate"] == pytest.approx(spikes / (samples * (HIDDEN + 10)))
    assert all(row["multiply_accumulates"] == 0 for row in rows.values())
    assert rows["1.synapse"]["weight_bits"] == (1 if "binary" in name else 32)
    (relu,) = found["baselines"]
    macs = 64 * HIDDEN + HIDDEN * 10
    assert relu["energy_nj"] == pytest.approx((macs * 4.6 + (HIDDEN + 10) * 0.9) * 1e-3)
    operations = sum(row["accumulates"] + row["comparisons"] for row in rows.values())
    assert found["energy_nj"] == pytest.approx(operations * 0.9e-3)
    assert "ReLU, same shape" in text and "spikes per neuron" in text and "per neuron, step" not in text
    stored = json.loads((runs[name] / "energy.json").read_text())
    assert stored["energy_nj"] == found["energy_nj"]


def test_every_price_model_and_bits_cost_less_memory(
    runs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    energies = {}
    for name in ("free", "free-binary"):
        for prices in ("horowitz-fp32", "horowitz-int32", "lemaire"):
            assert main(["energy", str(runs[name]), "--costs", prices, "--json"]) == 0
            found = result(capsys)[1]
            first = found["layers"][0]
            energies[name, prices] = found["energy_nj"]
            if prices == "lemaire":
                assert first["energy_nj"]["memory"] > 0
                assert first["weight_reads"] == pytest.approx(
                    first["effective"] / (32 if "binary" in name else 1)
                )
        assert energies[name, "horowitz-fp32"] == pytest.approx(9 * energies[name, "horowitz-int32"])
        assert energies[name, "lemaire"] > energies[name, "horowitz-int32"]


def test_against_another_run(runs: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["energy", str(runs["free"]), "--against", str(runs["fixed"]), "--json"]) == 0
    found = result(capsys)[1]
    assert found["baselines"][0]["kind"] == str(runs["fixed"]) and found["against"]["rate_per"] == "neuron"


@pytest.mark.parametrize("name", ["free-binary", "fixed-binary"])
def test_export(runs: dict[str, Path], name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "net.npz"
    assert main(["export", str(runs[name]), "--to", str(path), "--json"]) == 0
    text, found = result(capsys)
    weights = 64 * HIDDEN + HIDDEN * 10
    assert found["weights"] == weights and found["float32_bytes"] == 4 * weights and found["encoder"] is True
    assert found["bytes"] == path.stat().st_size < weights / 8 + 3000
    assert f"{found['bytes']:,} bytes" in text
    times, model = validation(runs[name])
    again = unpack(path).eval()
    with torch.no_grad():
        pixels = torch.rand(4, 1, 8, 8)
        assert torch.equal(packed_encoder(path)(pixels), model.encoder(pixels))
        assert torch.equal(again(times), model.network(times)) and bool(torch.isfinite(again(times)).any())
    # never over a file that is there
    before = path.read_bytes()
    assert main(["export", str(runs["free-binary"]), "--to", str(path), "--json"]) == 2
    assert "exists already" in capsys.readouterr().err and path.read_bytes() == before


def test_export_refuses_what_would_lose(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "net.npz"
    assert main(["export", str(runs["free"]), "--to", str(path)]) == 2
    said = capsys.readouterr().err
    assert "layer 1 (TimingLinear) has real weights" in said and "lossless or refused" in said
    train(Recipe(tiny.content(), name="tiny"), RunFolder(tmp_path / "lif"))
    assert main(["export", str(tmp_path / "lif"), "--to", str(path)]) == 2
    assert "its network is a Sequential" in capsys.readouterr().err
    assert main(["export", str(runs["free"])]) == 2
    assert "--to" in capsys.readouterr().err
    assert not path.exists()
