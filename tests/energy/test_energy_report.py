"""Prices, networks of equal size, and where two networks break even."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from spiketide import LIF, Dense, LeakyIntegrator, Recurrent, Sequential
from spiketide.baselines import BASELINES
from spiketide.energy import (
    COSTS,
    Counts,
    LayerCounts,
    break_even,
    costs,
    energy_per_sample,
    equal_size,
    metering,
    paper_counts,
    price,
    summary,
    table,
)

FP32, LEMAIRE = costs("horowitz-fp32"), costs("lemaire")


def counted(density: float = 0.3, graded: bool = False, threshold: float = 0.3) -> Counts:
    torch.manual_seed(3)
    network = Sequential(
        Dense(5, 12),
        Recurrent(LIF(12, tau_mem=4.0, threshold=threshold), Dense(12, 12, bias=False)),
        Dense(12, 3),
        LeakyIntegrator(3),
    ).eval()
    x = (torch.rand(20, 4, 5) < density).float() * (0.5 if graded else 1.0)
    with torch.no_grad(), metering(network) as counts:
        network(x)
    return counts


def test_prices_term_by_term() -> None:
    row = LayerCounts("n", "LIF", "neuron", mac=10, ac=3, ac_on_spikes=2, comparisons=7, state_reads=5)
    assert price(row, FP32) == pytest.approx((0, 10 * 4.6 + (3 + 2 + 7) * 0.9, 0, 0))
    row.state_words = 5 * 1024  # 20 KB: 15 pJ
    assert price(row, LEMAIRE) == pytest.approx((0, 10 * 3.2 + 12 * 0.1, 5 * 15.0, 0))
    synapse = LayerCounts("s", "Conv2d", "synapse", effective=100, events=10, bias=4, outputs=8, spatial=True)
    synapse.words, synapse.target_words = 8 * 1024, 10  # 32 KB: 20 pJ
    synapse.settle()
    memory = 104 * 20.0 + 2 * 104 * 10.0 + 10 * 10.0
    assert price(synapse, LEMAIRE) == pytest.approx((104 * 0.1, 0, memory, 100 * 0.1 + 20 * 3.2))
    synapse.graded = True
    synapse.settle()
    memory = 104 * 20.0 + 8 * 10.0 + 10 * 10.0  # the sum is written once
    assert price(synapse, LEMAIRE) == pytest.approx((4 * 0.1 + 100 * 3.2, 0, memory, 100 * 0.1))
    assert price(synapse, FP32).total == pytest.approx(4 * 0.9 + 100 * 4.6)


def test_equal_size_on_paper() -> None:
    counts = counted()
    steps, m, out = 20, 5, 3
    assert counts.parameters == 5 * 12 + 12 + 144 + 36 + 3
    for baseline in equal_size(counts, FP32):
        n = baseline.units
        layer = BASELINES[baseline.kind](m, n)
        own = sum(p.numel() for p in layer.parameters()) + n * out + out
        assert own == baseline.parameters and abs(own - counts.parameters) < 80
        # the classical layer by the papers' formula; the read-out multiplies n x out and adds a bias for each output
        each = paper_counts(baseline.kind, m, n).mac * 4.6 + n * out * 4.6 + out * 0.9
        assert baseline.energy == pytest.approx(steps * each * 1e-3)


@pytest.mark.parametrize("graded", [False, True])
def test_the_same_input_skipped_or_added(graded: bool) -> None:
    counts = counted(graded=graded)
    density = counts.input_events / (counts.steps * 5)
    assert 0.2 < density < 0.4 and counts.input_graded is graded
    for baseline in equal_size(counts, FP32):
        gates = BASELINES[baseline.kind].gates
        products = 20 * gates * baseline.units * 5
        dear = products * 4.6
        cheap = products * density * (4.6 if graded else 0.9)
        assert baseline.sparse_energy == pytest.approx(baseline.energy - (dear - cheap) * 1e-3)
    for baseline in equal_size(counts, LEMAIRE):
        assert 0 < baseline.sparse_energy < baseline.energy


def test_break_even_on_paper() -> None:
    """A hundred updates of 4.6 pJ and 10 spikes that cause 50 additions: fixed 460 pJ, 45 pJ for a rate of 0.1."""
    neuron = LayerCounts("1", "LIF", "neuron", updates=100, spikes=10, mac=100, spiking=True)
    synapse = LayerCounts("2", "Dense", "synapse", driven=True, effective=50)
    counts = Counts({"1": neuron, "2": synapse}, samples=1)
    assert energy_per_sample(counts, FP32) == pytest.approx(0.505)
    assert break_even(counts, FP32, 0.505).rate == pytest.approx(0.1)
    assert break_even(counts, FP32, 0.469).rate == pytest.approx(0.02)  # 460 + 9
    assert break_even(counts, FP32, 0.595).rate == pytest.approx(0.3)  # 460 + 3 * 45
    dear = break_even(counts, FP32, 0.459)
    assert dear.rate is None and "even if it never spikes" in dear.words
    cheap = break_even(counts, FP32, 1.0)
    assert cheap.rate == pytest.approx(1.2) and "at any rate" in cheap.words
    synapse.driven = False  # the same additions, caused by the input
    assert break_even(counts, FP32, 0.505).rate is None


@pytest.mark.parametrize("model", COSTS)
def test_a_network_breaks_even_with_itself_at_its_own_rate(model: str) -> None:
    counts = counted()
    prices = costs(model)
    assert break_even(counts, prices, energy_per_sample(counts, prices)).rate == pytest.approx(counts.rate)


def test_more_spikes_cost_more() -> None:
    lively, quiet = counted(threshold=0.1), counted(threshold=0.6)
    assert lively.rate > quiet.rate > 0
    for model in COSTS.values():
        assert energy_per_sample(lively, model) > energy_per_sample(quiet, model)


def test_a_silent_network_has_no_break_even() -> None:
    counts = counted(density=0.0, threshold=50.0)
    assert counts.rate == 0
    found = break_even(counts, FP32, 1.0)
    assert found.rate is None and "no neuron spiked" in found.words


@pytest.mark.parametrize("model", COSTS)
def test_the_summary_adds_up(model: str) -> None:
    counts, prices = counted(), costs(model)
    found: dict[str, Any] = summary(counts, prices, equal_size(counts, prices))
    assert found["energy_nj"] == pytest.approx(sum(row["energy_nj"]["total"] for row in found["layers"]))
    for row in found["layers"]:
        parts = [value for name, value in row["energy_nj"].items() if name != "total"]
        assert row["energy_nj"]["total"] == pytest.approx(sum(parts))
    assert found["layers"][0]["effective"] == counts.layers["0"].effective / 4
    assert [row["kind"] for row in found["baselines"]] == ["lstm", "gru", "rnn"]
    assert (found["costs"]["sram_pj"] != []) == (model == "lemaire")
    assert "nothing was measured on a chip" in found["caveat"]


def test_the_table_says_what_it_is() -> None:
    counts = counted()
    shown = table(summary(counts, FP32, equal_size(counts, FP32)))
    for words in (
        "1.neuron LIF",
        "lstm",
        "break-even",
        "horowitz-fp32",
        "ISSCC 2014",
        "Estimates",
        "not trained",
    ):
        assert words in " ".join(shown.split()), words
    assert f"{energy_per_sample(counts, FP32):,.2f}" in shown
    assert max(map(len, shown.splitlines())) <= 118
    silent = counted(density=0.0, threshold=50.0)
    shown = table(summary(silent, FP32, equal_size(silent, FP32)))
    assert "no break-even rate with lstm: no neuron spiked" in " ".join(shown.split())
