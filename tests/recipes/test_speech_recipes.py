"""Speech Commands: the recipes are the published networks, and run from training to test on small files in the official layout."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest
import torch

from spiketide import (
    ALIF,
    LIF,
    Dropout,
    Lateral,
    LeakyIntegrator,
    NormalizedLIF,
    Recurrent,
    SynapticDelay,
    TemporalConv2d,
)
from spiketide.cli import main
from spiketide.data import DecibelMel, DeltaMel
from spiketide.encoders import Ternary
from spiketide.losses import Activity
from spiketide.readouts import MeanMembrane, SumSoftmax
from spiketide.surrogate import MultiGaussian, Sigmoid
from spiketide.training import parameter_groups
from spiketide.training.recipe import Recipe
from spiketide.training.schedule import Schedule

pytest.importorskip("librosa")

DELAYS = ("gsc35/hammouamri2023_delays", "gsc35/hammouamri2023_delays_clean")
SRNN = "gsc12/yin2021_srnn"
CONV = "gsc12/zimmer2019_conv"


def groups(model) -> dict[str, tuple[float, float]]:
    found = parameter_groups(
        model, lr=model.lr, weight_decay=model.weight_decay, multipliers=model.lr_factors
    )
    return {group["name"]: (pytest.approx(group["lr"]), group["weight_decay"]) for group in found}


def test_the_adaptive_network_is_the_published_one() -> None:
    """adaptive SRNN, sections 1 and 3.6."""
    built = Recipe.load(SRNN).build()
    model, data = built.model.requires_grad_(False), built.data
    # 221.7 k; two biases in the recurrent layer, a time constant of membrane and adaptation for each of 600 neurons.
    assert sum(p.numel() for p in model.network.parameters()) == 221_724
    assert sum(p.numel() for p in model.parameters()) == 221_725  # and the threshold of the code
    assert built.trainer["max_epochs"] == 30 and data.batch_size == 32
    assert (model.optimizer, model.schedule) == ("adam", "step") and model.clip is None
    rates = groups(Recipe.load(SRNN).build().model)
    assert rates["weights"] == rates["biases"] == (0.003, 0.0)
    # An update of log tau by r moves tau = 20 by 20 r: the published 2 x 0.003. So with the threshold of 0.05 and 0.01 x 0.003.
    assert 20 * rates["time_constants"][0].expected == pytest.approx(2 * 0.003)
    assert 0.05 * rates["thresholds"][0].expected == pytest.approx(0.01 * 0.003)
    assert isinstance(model.encoder, Ternary) and model.encoder.threshold().item() == pytest.approx(0.05)
    assert isinstance(model.encoder.surrogate, MultiGaussian) and isinstance(model.readout, MeanMembrane)
    first, recurrent, last = model.network[1], model.network[3], model.network[5]
    assert isinstance(recurrent, Recurrent) and isinstance(last, LeakyIntegrator)
    assert recurrent.synapse.bias is not None
    for neuron in (first, recurrent.neuron):
        assert isinstance(neuron, ALIF) and neuron.shape == (300,) and neuron.reset == "delayed"
        assert isinstance(neuron.surrogate, MultiGaussian) and neuron.scale_input
        assert float(neuron.threshold().max()) == pytest.approx(1.6) == float(neuron.threshold().min())
        assert float(neuron.adaptation().max()) == pytest.approx(0.184)
        for constant, mean, std in ((neuron.tau_mem, 20.0, 5.0), (neuron.tau_adapt, 200.0, 50.0)):
            tau = -1 / constant.decay().log()
            assert abs(float(tau.mean()) - mean) < std / 4 and abs(float(tau.std()) - std) < std / 4
    tau = -1 / last.tau_mem.decay().log()
    assert abs(float(tau.mean()) - 10.0) < 1.0 and float(tau.std()) < 2.0
    assert (data.version, data.classes, data.balance, data.silence) == (1, 12, "classes", (2300, 260, 260))
    assert isinstance(data.features, DeltaMel) and data.features.rescale == "sample"
    assert data.sample_shape == (120,) and data.place == "middle" and data.test == "list"
    assert built.claim is not None and built.claim.value == 0.921


@pytest.mark.parametrize("name", DELAYS)
def test_the_network_with_delays_is_the_published_one(name: str) -> None:
    """learned delays, sections 1 to 6."""
    built = Recipe.load(name).build()
    model, data, clean = built.model, built.data, name.endswith("clean")
    assert sum(p.numel() for p in model.network.parameters()) == 2_458_624  # 2.5 M: 3 l, 2 delays a synapse
    assert built.trainer["max_epochs"] == 100 and data.batch_size == 128
    assert groups(model) == {"weights": (0.005, 1e-5), "biases": (0.005, 0.0), "delays": (0.1, 0.0)}
    assert (model.optimizer, model.schedule, model.schedule_delays) == ("adam", "onecycle", "cosine")
    assert model.cycle_momentum and model.clip is None
    delays = [layer for layer in model.network if isinstance(layer, SynapticDelay)]
    assert [(it.delays.max_delay, it.tail, it.kernel_count) for it in delays] == [(30, 15, 2)] * 4
    neurons = [layer for layer in model.network if isinstance(layer, LIF)]
    for neuron in (*neurons, model.network[len(model.network) - 1]):
        assert float(neuron.tau_mem.decay()) == pytest.approx(1 / 3, abs=1e-6)
    assert {(neuron.reset, neuron.shape) for neuron in neurons} == {("hard_detached", (512,))}
    assert {layer.p for layer in model.network if isinstance(layer, Dropout)} == {0.25}
    assert isinstance(model.readout, SumSoftmax) and model.readout.skip == 0
    widths = []
    for epoch in (0, 25, 99):
        model.delay_anneal(model.network, epoch, 100)
        widths.append(delays[0].delays.effective_width())
    assert widths == pytest.approx([15.27, 0.5, 0.5])
    assert isinstance(data.features, DecibelMel) and data.features.published != clean
    dead = int((data.features.filters.max(axis=1) == 0).sum())
    assert dead == (0 if clean else 53) and data.sample_shape == (140,)
    assert (data.version, data.classes, data.place, data.balance) == (2, 35, "start", "none")
    assert data.augment is None and data.spec_augment is None
    assert (built.claim is None) == clean


def test_the_convolutional_network_is_the_published_one() -> None:
    """conv SNN, sections 1 to 4."""
    built = Recipe.load(CONV).build()
    model, data = built.model.requires_grad_(False), built.data
    assert sum(p.numel() for p in model.parameters()) == 131_535
    assert built.trainer["max_epochs"] == 10 and data.batch_size == 64
    assert (model.optimizer, model.schedule, model.warmup) == ("radam", "step", 1.0)
    assert (model.step_every, model.step_factor, model.clip, model.clip_at) == (1, 0.85, "value", 5.0)
    rates = groups(Recipe.load(CONV).build().model)
    assert set(rates) == {"weights", "time_constants", "thresholds"}
    assert rates["weights"] == (0.001, 1e-5) and rates["time_constants"] == rates["thresholds"] == (
        0.001,
        0.0,
    )
    layers = [layer for layer in model.network if isinstance(layer, Lateral)]
    assert len(layers) == 3 and all(layer.connections == "synapse" and layer.normalized for layer in layers)
    for layer, c_in, dilation in zip(layers, (3, 64, 64), ((1, 1), (4, 3), (16, 9)), strict=True):
        synapse, neuron = layer.synapse, layer.neuron
        assert isinstance(synapse, TemporalConv2d) and isinstance(neuron, NormalizedLIF)
        assert tuple(synapse.weight.shape) == (64, c_in, 4, 3) and synapse.bias is None
        assert (synapse.dilation, synapse.padding, synapse.stride) == (dilation, "same", (1, 1))
        assert abs(float(synapse.rows().square().sum(1).mean()) - 0.0225) < 0.002
        assert neuron.surrogate == Sigmoid(10.0, scaled=False) and neuron.decay.raw.numel() == 1
        assert abs(float(neuron.decay()) - 0.7) < 0.05 and abs(float(neuron.threshold().mean()) - 1.0) < 0.01
    assert isinstance(model.readout, MeanMembrane)
    (activity,) = model.regularisers
    assert isinstance(activity, Activity) and (activity.weight, activity.by_depth) == (0.1, True)
    assert (data.version, data.classes, data.balance, data.silence) == (1, 12, "classes", (2300, 260, 260))
    assert isinstance(data.features, DeltaMel) and data.sample_shape == (3, 40)
    assert built.claim is not None and built.claim.value == 0.94


def test_its_schedule_is_the_published_one() -> None:
    """Epoch 1 rises from lr / N to lr, epoch 2 is at lr, then 0.85 an epoch (section 4)."""
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.RAdam([weight], lr=1.0)
    schedule = Schedule(optimizer, ["step"], total=100, step_every=10, step_factor=0.85, warmup=10)
    rates = []
    for _ in range(40):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[:10] == pytest.approx([(k + 1) / 10 for k in range(10)])
    assert rates[10:] == pytest.approx([1.0] * 10 + [0.85] * 10 + [0.85**2] * 10)


@pytest.mark.parametrize("name", [SRNN, CONV, *DELAYS])
def test_it_trains_and_is_tested_on_files_of_the_same_format(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole network, for a few steps in two epochs, then ``spiketide test``."""
    from speech_files import write_speech_commands  # on the path of pytest

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("SPIKETIDE_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    srnn, twelve = name == SRNN, name in (SRNN, CONV)
    write_speech_commands(tmp_path / "data", version=1 if twelve else 2, noise=2 if twelve else 0)
    words = "--run run --threads 1 --trainer.accelerator cpu --trainer.max_epochs 2 --data.limit 24 --data.batch_size 12"
    words += " --data.eval_batch_size 70 --data.jobs 1 "
    # With its threshold of 1.6 the recurrent layer is silent for the first steps: its recurrent weights would not move in four.
    words += (
        "--data.silence [8,3,4] --model.network.1.threshold 0.1 --model.network.3.neuron.threshold 0.1"
        if srnn
        else "--data.silence [8,3,4]"
        if name == CONV
        else "--model.delay_anneal.share 0.5"
    )
    assert main(["train", name, *words.split()]) == 0
    assert main(["test", "run", "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["samples"] == (30 + 4 if twelve else 35)
    assert math.isfinite(result["test_loss"]) and 0 <= result["test_accuracy"] <= 1
    assert 0 < result["synaptic_operations"] < result["dense_operations"]
    claim = Recipe.load(name).claim
    assert (claim is None) or claim.metric in result
    state = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    trained, built = state["state_dict"], Recipe.load(name, ["--threads", "1"]).build()
    assert state["epoch"] == 1 and state["global_step"] == 4
    for key, begin in built.model.state_dict().items():
        if key.endswith(("weight", "raw", "delays.delay")):
            assert not torch.equal(trained[key], begin) and bool(torch.isfinite(trained[key]).all()), key


@pytest.mark.skipif(not os.environ.get("SPIKETIDE_DATA"), reason="needs clips: set SPIKETIDE_DATA")
def test_the_convolutional_network_runs_on_real_clips(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ten clips a word, no noise: for what they are, the recipe trains, is tested and is accounted for."""
    root = Path(os.environ["SPIKETIDE_DATA"]) / "gsc_v1_mini30"
    if not root.is_dir():
        pytest.skip("the small excerpt of Speech Commands is not there")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("SPIKETIDE_DATA", str(root))
    monkeypatch.chdir(tmp_path)
    words = "--run run --threads 1 --trainer.accelerator cpu --trainer.max_epochs 1 --trainer.limit_train_batches 3"
    words += " --data.batch_size 12 --data.jobs 1 --data.silence [0,0,0] --data.allow_missing true"
    assert main(["train", CONV, *words.split()]) == 0
    assert main(["test", "run", "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["samples"] > 10 and 0 <= result["test_accuracy"] <= 1
    assert set(result["firing_rates"]) == {"0.neuron", "1.neuron", "2.neuron"}
    assert all(0 < rate < 0.5 for rate in result["firing_rates"].values())
