"""Every packaged recipe: fits its classes, builds, trains, and begins as it always began.

The first twenty training losses of a recipe at its seed stand in ``tests/golden/<recipe>.json``. A change that is meant to
be neutral leaves them as they are. When a change is meant to move them, say so under "Numerics" in the changelog and write
them anew::

    python tests/recipes/test_recipes.py [RECIPE ...]

They are computed in float64: processors round a sum of float32 differently, and one spike that tips over its threshold moves every
loss after it; in float64 that does not happen, so the figures hold on every processor.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from spiketide import LIF, Dropout, Recurrent, SynapticDelay, recipes
from spiketide.cli import main
from spiketide.readouts import SumSoftmax
from spiketide.training import parameter_groups
from spiketide.training.recipe import Recipe
from spiketide.training.run import first_losses

GOLDEN = Path(__file__).parents[1] / "golden"
STEPS = 20
PRECISE = ("--threads", "1", "--trainer.precision", "64-true")
SMALLER = {
    "fsdd/live_conv": ("--data.batch_size", "4"),
    "fsdd/zimmer2019_conv": ("--data.batch_size", "4"),
    "mnist/conv": ("--data.batch_size", "16"),
    "fashion_mnist/conv": ("--data.batch_size", "16"),
    "mnist/permuted_brf": ("--data.batch_size", "8", "--model.encoder.stride", "7"),
    "mnist/sequential_brf": ("--data.batch_size", "8", "--model.encoder.stride", "7"),
    "mnist/yin2021_psmnist": ("--data.batch_size", "4", "--model.encoder.stride", "4"),
}
"""Recipes whose twenty batches would take minutes: fewer images, every so many pixels. So few teach nothing yet."""
TIED = {
    "fashion_mnist/kheradpisheh2022_bs4nn",
    "mnist/kheradpisheh2020_s4nn",
    "mnist/kheradpisheh2022_bs4nn",
}
"""Recipes whose weights all begin positive: all outputs fire at once, an error of a step, which has to grow before it falls."""
NEEDS_NOTHING = {"digits/latency_lif"}
DELAYS = {
    "shd/hammouamri2023_delays",
    "shd/hammouamri2023_delays_clean",
    "ssc/hammouamri2023_delays",
    "ssc/hammouamri2023_delays_clean",
}
RECURRENT_DELAYS = "ssc/queant2025_delrec"
WITHOUT_DATA = DELAYS | {
    RECURRENT_DELAYS,
    "gsc12/yin2021_srnn",
    "gsc12/zimmer2019_conv",
    "gsc35/hammouamri2023_delays",
    "gsc35/hammouamri2023_delays_clean",
    "shd/yin2021_srnn",
    "soli/yin2021_srnn",
    "ssc/yin2021_srnn",
    "timit/yin2021_srnn",
}
"""Recipes whose data set was never at hand: trained on small files of the same format instead, and without golden losses."""


def golden_file(name: str) -> Path:
    return GOLDEN / f"{name.replace('/', '__')}.json"


def needs_data(name: str) -> None:
    if name in WITHOUT_DATA:
        pytest.skip(f"{name} has no golden losses: its data set was not at hand when it was written")
    if name not in NEEDS_NOTHING and not os.environ.get("SPIKETIDE_DATA"):
        pytest.skip(f"{name} needs its data set: set SPIKETIDE_DATA to the folder with the data sets")


def test_there_are_recipes() -> None:
    known = set(recipes.names())
    assert {"digits/latency_lif", "fsdd/recurrent_alif", "mnist/latency_lif"} <= known
    assert known >= WITHOUT_DATA


@pytest.mark.parametrize("name", recipes.names())
def test_it_fits_its_classes_and_is_told_apart(name: str, tmp_path: Path) -> None:
    recipe = Recipe.load(name)
    assert recipe.settings["about"]
    built = recipe.build()
    assert sum(p.numel() for p in built.model.parameters()) > 0
    copy = tmp_path / "copy.yaml"
    copy.write_text(recipe.yaml)
    assert Recipe.load(copy).yaml == recipe.yaml
    text = recipes.find(name)[1].read_text()
    assert not re.search(r"^\s*(<<|_base_|inherits?|extends):", text, re.MULTILINE)  # flat: no inheritance


@pytest.mark.parametrize("name", recipes.names())
def test_the_table_names_it(name: str) -> None:
    assert f"`{name}`" in (recipes.FOLDER / "README.md").read_text()


@pytest.mark.parametrize("name", recipes.names())
def test_the_first_losses_are_golden(name: str) -> None:
    needs_data(name)
    path = golden_file(name)
    assert path.is_file(), f"write it: python tests/recipes/test_recipes.py {name}"
    golden = json.loads(path.read_text())
    losses = first_losses(Recipe.load(name, [*PRECISE, *SMALLER.get(name, ())]), STEPS)
    assert len(losses) == len(golden["losses"]) == STEPS
    assert losses == pytest.approx(golden["losses"], rel=1e-5)


@pytest.mark.parametrize("name", sorted(WITHOUT_DATA))
def test_without_data_means_without_golden_losses(name: str) -> None:
    assert not golden_file(name).exists(), f"take {name} out of WITHOUT_DATA"


def test_the_golden_losses_are_of_a_network_that_learns() -> None:
    for path in sorted(GOLDEN.glob("*__*.json")):
        losses = json.loads(path.read_text())["losses"]
        assert len(losses) == STEPS and all(map(math.isfinite, losses)), path.name
        assert len(set(losses)) == STEPS, path.name
        begin = max(losses) if path.stem.replace("__", "/") in TIED else losses[0]
        assert losses[-1] < begin or path.stem.replace("__", "/") in SMALLER, path.name


def test_golden_losses_notice_a_changed_constant() -> None:
    """The tolerance is tight enough to see a time constant that moved by a thousandth."""
    losses = json.loads(golden_file("digits/latency_lif").read_text())["losses"]
    words = [*PRECISE, "--model.network.2.tau_mem", "10.01"]
    assert first_losses(Recipe.load("digits/latency_lif", words), STEPS) != pytest.approx(losses, rel=1e-5)


# -------------------------------------------------------------------------------------------------- published networks


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("shd/hammouamri2023_delays", 214_016),
        ("shd/hammouamri2023_delays_clean", 214_016),
        ("ssc/hammouamri2023_delays", 2_458_624),
        ("ssc/hammouamri2023_delays_clean", 2_458_624),
        (RECURRENT_DELAYS, 374_051),  # published: 0.37 M
    ],
)
def test_it_has_the_published_number_of_parameters(name: str, count: int) -> None:
    """learned delays, section 6: weights, positions and the affine of the batch norms; 2 l, 1 and 3 l, 2 delays a synapse."""
    network = Recipe.load(name).build().model.network
    assert sum(p.numel() for p in network.parameters()) == count


@pytest.mark.parametrize("name", sorted(DELAYS))
def test_it_is_optimised_as_published(name: str) -> None:
    """learned delays, sections 1 to 5."""
    recipe = Recipe.load(name)
    built = recipe.build()
    model, data = built.model, built.data
    epochs, batch, max_delay, tau, p = (
        (150, 256, 24, 10.05, 0.4) if name.startswith("shd") else (60, 128, 30, 15.0, 0.25)
    )
    assert built.trainer["max_epochs"] == epochs and data.batch_size == batch
    groups = {
        group["name"]: (group["lr"], group["weight_decay"])
        for group in parameter_groups(
            model, lr=model.lr, weight_decay=model.weight_decay, multipliers=model.lr_factors
        )
    }
    assert groups == {"weights": (0.005, 1e-5), "biases": (0.005, 0.0), "delays": (pytest.approx(0.1), 0.0)}
    assert (model.optimizer, model.schedule, model.schedule_delays) == ("adam", "onecycle", "cosine")
    assert model.cycle_momentum and model.clip is None
    delays = [layer for layer in model.network if isinstance(layer, SynapticDelay)]
    assert all((layer.delays.max_delay, layer.tail) == (max_delay, max_delay // 2) for layer in delays)
    lengths = model.network.lengths_after(torch.tensor([70]))
    assert lengths is not None and lengths.tolist() == [70 + len(delays) * max_delay // 2]
    widths = []
    for epoch in (0, epochs // 4 - 1, epochs // 4, epochs - 1):
        model.delay_anneal(model.network, epoch, epochs)
        widths.append(delays[0].delays.effective_width())
    assert widths[0] == max_delay / 2 + 0.27 and widths[1] > 0.5
    assert widths[2:] == pytest.approx([0.5, 0.5])
    neurons = [layer for layer in model.network if isinstance(layer, LIF)]
    for neuron in (*neurons, model.network[len(model.network) - 1]):
        assert float(neuron.tau_mem.decay()) == pytest.approx(1 - 10 / tau, abs=1e-6)
    assert {neuron.reset for neuron in neurons} == {"hard_detached"}
    assert {layer.p for layer in model.network if isinstance(layer, Dropout)} == {p}
    assert isinstance(model.readout, SumSoftmax) and model.readout.skip == 0
    assert data.sample_shape == (140,) and data.dt == 10.0
    assert data.frames.binning == ("uniform" if name.endswith("clean") else "anchored")
    if name.startswith("shd"):
        assert data.validation == ("speaker" if name.endswith("clean") else "test")
    assert (built.claim is None) == name.endswith("clean")


def test_recurrent_delays_begin_and_narrow_as_published() -> None:
    """learned delays, section 12.2."""
    built = Recipe.load(RECURRENT_DELAYS).build()
    model, data = built.model, built.data
    layers = [layer for layer in model.network if isinstance(layer, Recurrent)]
    assert len(layers) == 3 and all(layer._late() is not None for layer in layers)
    for layer in layers:
        delay, dense, dropout = layer.synapse
        drawn = delay.delays.delay.detach()
        assert 5 < float(drawn.median()) < 11 and float(drawn.max()) <= 48  # |N(0, 12)| has its median at 8.1
        weight = dense.weight.detach()
        torch.testing.assert_close(weight @ weight.t(), torch.eye(256), rtol=0, atol=1e-4)
        assert dropout.p == 0.3 and layer.neuron.reset == "soft"
        assert float(layer.neuron.tau_mem.decay()) == pytest.approx(0.5)
    for epoch in (0, 1, 50, 99):
        model.delay_anneal(model.network, epoch, 100)
        half_base = layers[0].synapse[0].delays.effective_width()
        assert half_base == pytest.approx(1 + 10 * 0.95**epoch, rel=1e-5)
    assert (model.lr, model.lr * model.lr_factors["delays"]) == (0.001, pytest.approx(0.05))
    assert data.frames.max_steps == 250 or data.frames.max_time == 1.4


@pytest.mark.parametrize("name", sorted({*DELAYS, RECURRENT_DELAYS}))
def test_it_trains_and_is_tested_on_files_of_the_same_format(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole network, for a few steps: an epoch with wide kernels and one with narrow ones, then ``spiketide test``."""
    from spike_files import SHD_TEST, SSC_TEST, write_shd, write_ssc  # on the path of pytest, not of a script

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("SPIKETIDE_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    shd = name.startswith("shd")
    (write_shd if shd else write_ssc)(tmp_path / "data")
    words = "--run run --threads 1 --trainer.accelerator cpu --trainer.max_epochs 2 --model.delay_anneal.share 0.5"
    words += " --data.limit 32 --data.batch_size 16 --data.eval_batch_size 70"
    if name == RECURRENT_DELAYS:  # the few spikes of these files would not make it fire
        words += "".join(f" --model.network.{k}.neuron.threshold 0.05" for k in (1, 4, 7))
    assert main(["train", name, *words.split()]) == 0
    assert main(["test", "run", "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["samples"] == (SHD_TEST if shd else SSC_TEST)
    assert math.isfinite(result["test_loss"]) and 0 <= result["test_accuracy"] <= 1
    assert 0 < result["synaptic_operations"] < result["dense_operations"]
    claim = Recipe.load(name).claim
    assert (claim is None) or claim.metric in result

    state = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    trained, built = state["state_dict"], Recipe.load(name, ["--threads", "1"]).build()
    assert state["epoch"] == 1 and state["global_step"] == 4
    for key, begin in built.model.state_dict().items():
        if key.endswith("delays.delay"):
            layer = built.model.get_submodule(key.removesuffix(".delays.delay"))
            assert not torch.equal(trained[key], begin)
            assert float(trained[key].min()) >= 0 and float(trained[key].max()) <= layer.delays.max_delay
        elif key.endswith("delays.width"):
            assert float(trained[key]) == pytest.approx(built.model.delay_anneal.final)
        elif key.endswith("weight"):
            assert not torch.equal(trained[key], begin) and bool(torch.isfinite(trained[key]).all())


def regenerate(names: list[str]) -> None:
    for name in names or [name for name in recipes.names() if name not in WITHOUT_DATA]:
        words = [*PRECISE, *SMALLER.get(name, ())]
        content: dict[str, Any] = {"losses": first_losses(Recipe.load(name, words), STEPS)}
        content |= {"torch": torch.__version__, "precision": "float64"}
        golden_file(name).write_text(json.dumps(content, indent=1) + "\n")
        print(f"{golden_file(name)}: {content['losses'][0]:.4f} ... {content['losses'][-1]:.4f}")


if __name__ == "__main__":
    regenerate(sys.argv[1:])
