"""From a run to what its report shows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tiny_recipe as tiny
import torch

from spiketide.compose import Bidirectional, Recurrent, Sequential
from spiketide.neurons import ALIF, LIF, LeakyIntegrator
from spiketide.report import ReportData
from spiketide.synapses import AxonalDelay, Dense, TemporalConv1d
from spiketide.training import reporting
from spiketide.training.folder import RunFolder
from spiketide.training.recipe import Recipe
from spiketide.training.reporting import layer_names, record_membranes
from spiketide.training.run import test as run_test
from spiketide.training.run import train


def test_membranes_by_hand() -> None:
    network = Sequential(LIF(1, tau_mem=20.0, threshold=1.0, reset="soft"), LeakyIntegrator(1))
    x = torch.full((4, 1, 1), 0.4)
    with torch.no_grad():
        found = record_membranes(network, x)
    decay = float(np.exp(-1 / 20))
    v1 = 0.4
    v2 = decay * v1 + 0.4
    v3 = decay * v2 + 0.4 - 1.0  # it fired
    v4 = decay * v3 + 0.4
    assert list(found) == ["0"]  # a read-out has no spikes to explain
    membrane, threshold, adaptation = found["0"]
    assert adaptation is None
    assert membrane.flatten().tolist() == pytest.approx([v1, v2, v3, v4], abs=1e-6)
    assert threshold is not None and threshold.flatten().tolist() == [1.0] * 4


def test_the_adaptive_threshold_moves() -> None:
    network = Sequential(Dense(3, 5), Recurrent(ALIF(5, threshold=0.05), Dense(5, 5)))
    x = torch.rand(20, 2, 3)
    with torch.no_grad():
        membrane, threshold, adaptation = record_membranes(network, x)["1.neuron"]
        spikes, _ = network(x)
    assert membrane.shape == (20, 2, 5) and threshold is not None
    assert spikes.sum() > 0
    assert float(threshold.min()) == pytest.approx(0.05) and float(threshold.max()) > 0.055
    assert adaptation is not None
    torch.testing.assert_close(threshold, 0.05 + 1.8 * adaptation)
    assert layer_names(network) == {"1.neuron": "1 ALIF"}


def test_a_network_that_looks_ahead_says_how_far() -> None:
    same = {"padding": "same"}
    network = Sequential(
        TemporalConv1d(2, 2, 4, dilation=4, **same), TemporalConv1d(2, 2, 3), TemporalConv1d(2, 2, 5, **same)
    )
    (row,) = reporting._looking_ahead(network)
    assert row[:2] == ("Looks ahead", "8 steps")  # 6 and 2
    assert reporting._looking_ahead(Sequential(TemporalConv1d(2, 2, 3))) == []
    assert reporting._looking_ahead(Sequential(Bidirectional(LIF(3))))[0][1] == "to the end"


def test_membranes_with_spikes_that_come_back_late() -> None:
    torch.manual_seed(0)
    recurrent = Recurrent(LIF(5, threshold=0.5), Sequential(AxonalDelay(5, 3), Dense(5, 5)))
    network, x = Sequential(Dense(3, 5), recurrent), 3 * torch.rand(20, 2, 3)
    with torch.no_grad():
        membrane, _, _ = record_membranes(network, x)["1.neuron"]
        for steps in (1, 4, 5, 20):  # the state after so many steps
            y, (_, ((v, _), _)) = network(x[:steps])
            torch.testing.assert_close(membrane[steps - 1], v, rtol=1e-5, atol=1e-6)
    assert membrane.shape == (20, 2, 5) and float(y.sum()) > 5


def test_what_cannot_stream_has_no_membranes() -> None:
    network = Sequential(Bidirectional(LIF(3)))
    assert record_membranes(network, torch.rand(4, 2, 3)) == {}


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], ReportData]:
    """The result of a run whose claim is out of reach, and what its report was given."""
    changed = tiny.content()
    changed["trainer"]["max_epochs"] = 2
    changed["claim"] = {
        "paper": "A 2020",
        "where": "T 1",
        "metric": "test_accuracy",
        "value": 1.0,
        "tolerance": 0.001,
    }
    folder = RunFolder(tmp_path_factory.mktemp("run") / "run")
    train(Recipe(changed, name="tiny"), folder)
    given: list[ReportData] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reporting, "write_report", lambda data, path: given.append(data))
        result = run_test(folder)
    return result, given[0]


def test_the_report_agrees_with_the_measurement(shown: tuple[dict[str, Any], ReportData]) -> None:
    result, data = shown
    assert data.accuracy == pytest.approx(result["test_accuracy"])
    assert int(data.confusion.sum()) == result["samples"] == 359  # type: ignore[union-attr]
    assert data.class_names == tuple("0123456789")
    assert data.firing["2 LIF"].shape == (20,)
    assert float(data.firing["2 LIF"].mean()) == pytest.approx(result["firing_rate"], rel=1e-5)
    assert [len(points) for points in data.curves.values()] == [2, 2, 2]
    assert data.claim is not None and data.claim["verdict"] is False
    assert {"versions", "seed", "machine", "commit", "command"} <= data.environment.keys()


def test_samples_show_what_was_measured(shown: tuple[dict[str, Any], ReportData]) -> None:
    _, data = shown
    assert len(data.samples) == 6
    assert sum(not sample.correct for sample in data.samples) == 2
    for sample in data.samples:
        # Poisson noise included: the trace is the very forward that was measured, so its last scores give its prediction.
        assert sample.scores is not None and sample.input is not None
        assert int(sample.scores[-1].argmax()) == sample.prediction
        assert sample.input.shape == (6, 64) and 0 < sample.input.mean() < 0.5
        spikes, membrane = sample.hidden["2 LIF"], sample.membrane["2 LIF"]
        neurons = list(sample.neurons["2 LIF"])
        assert membrane.shape == (6, 4)
        assert spikes.sum(0)[neurons[0]] == spikes.sum(0).max()  # the busiest neurons are shown


def delayed(lr_delays: float, **network: Any) -> Recipe:
    """The tiny recipe with delays in its first synapses."""
    changed = tiny.content()
    changed["trainer"]["max_epochs"] = 1
    inside = changed["model"]["init_args"]
    inside["network"][1] = {
        "class_path": "spiketide.synapses.SynapticDelay",
        "init_args": {"n_in": 64, "n_out": 20, "max_delay": 4, "fan_in": 16, **network},
    }
    inside["lr_delays"] = lr_delays
    return Recipe(changed, name="tiny")


@pytest.mark.parametrize("lr_delays", [0.0, 5.0])
def test_the_report_knows_the_delays_before_training(lr_delays: float, tmp_path: Any) -> None:
    folder, given = RunFolder(tmp_path / "run"), []
    began: list[torch.Tensor] = []

    def watch(self: Any, *_: Any) -> None:
        began.append(self.network[1].delays.delay.detach().clone())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reporting.Task, "on_train_start", watch, raising=False)
        patch.setattr(reporting, "write_report", lambda data, path: given.append(data))
        train(delayed(lr_delays), folder)
        run_test(folder)
    layer = given[0].delays["1 SynapticDelay"]
    assert list(given[0].delays) == ["1 SynapticDelay"] and len(began) == 1
    there = ~layer.before.isnan()
    assert torch.equal(layer.before[there], began[0].double()[there]) and layer.count == 20 * 16
    trained = torch.load(folder.best, weights_only=True)["state_dict"]["network.1.delays.delay"]
    assert torch.equal(layer.delays[there], trained.double()[there])
    assert (layer.moved > 0.05) if lr_delays else (layer.moved == 0.0)


def test_a_run_without_delays_reports_none(shown: tuple[dict[str, Any], ReportData]) -> None:
    assert shown[1].delays == {}
