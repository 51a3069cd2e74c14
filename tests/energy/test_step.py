"""Operations of a neuron's step, counted from its graph, against the papers and against counting by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from spiketide import ALIF, IF, LIF, AdLIF, CubaLIF, LeakyIntegrator, StepNeuron, spike
from spiketide.energy import paper_counts, step_operations
from spiketide.errors import EngineError
from spiketide.neurons import Neuron


@pytest.mark.parametrize("reset", ["delayed", "soft", "soft_detached"])
def test_alif_is_the_papers(reset: str) -> None:
    step = step_operations(ALIF(1, reset=reset))
    # one unit without an input: 3 MAC, 2 AC a spike
    paper = paper_counts("alif", 1, 1, rate_in=0, rate_out=1, recurrent=False)
    assert (step.mac - step.input_scale, step.ac_per_spike) == paper
    scaled = paper_counts("alif", 1, 1, rate_in=0, rate_out=1, recurrent=False, scale_input=True)
    assert step.mac == scaled.mac == 4
    assert (step.ac, step.comparisons, step.functions) == (0, 1, 0)
    assert (step.state_reads, step.state_writes) == (3, 3)


@pytest.mark.parametrize("reset", ["soft", "soft_detached"])
def test_lif_and_readout_are_the_papers(reset: str) -> None:
    step = step_operations(LIF(1, reset=reset))
    paper = paper_counts("lif", 1, 1, rate_in=0, rate_out=1, recurrent=False)
    assert (step.mac, step.ac_per_spike) == paper and step.ac == 0
    integrator = step_operations(LeakyIntegrator(1))
    assert integrator.mac - integrator.input_scale == paper_counts("li", 1, 1, rate_in=0).mac == 1
    assert integrator.comparisons == integrator.ac_per_spike == 0
    assert step_operations(LIF(1, scale_input=True)).mac == 2


def test_others_by_hand() -> None:
    hard, none = step_operations(LIF(1, reset="hard")), step_operations(LIF(1, reset="none"))
    assert hard.ac_per_spike == none.ac_per_spike == 0  # an assignment, and nothing
    assert hard.mac == 1  # the product with 1 - s is a selection
    # v + x, v - threshold s
    integrate = step_operations(IF(1))
    assert integrate[:4] == (0, 1, 1, 1)
    # decay_syn i + x, decay_mem v + i, the reset
    cuba = step_operations(CubaLIF(1))
    assert cuba[:4] == (2, 0, 1, 1) and cuba.state_reads == 2
    # decays of w and v, coupling v, (1 - da) (...), (1 - dm) (...); x - w; jump s and the reset
    adaptive = step_operations(AdLIF(1))
    assert adaptive[:4] == (5, 1, 2, 1) and adaptive.input_scale == 0
    # what reads the membrane does not show when a neuron spikes: its additions count at every step
    assert step_operations(ALIF(1, output="membrane"))[:3] == (4, 2, 0)


def custom(step: Any, states: tuple[str, ...], **constants: float) -> StepNeuron:
    return StepNeuron(2, step, states=states, constants=constants)


def test_a_neuron_of_ones_own() -> None:
    def quadratic(x: Any, v: Any, decay: Any, threshold: Any) -> Any:
        v = decay * v * (1 + 0.1 * v) + x  # 0.1 v + 1, decay v, their product + x
        s = spike(v - threshold)
        return s, v - threshold * s

    assert step_operations(custom(quadratic, ("v",), decay=0.9, threshold=1.0))[:4] == (3, 0, 1, 1)

    def countdown(x: Any, v: Any, r: Any, decay: Any, threshold: Any) -> Any:
        v = decay * v + torch.where(r > 0, 0.0, x)  # one MAC, one comparison
        s = spike(v - threshold)
        r = torch.where(s > 0, 3.0, r - 1)  # an addition, a comparison
        return s, v * (1 - s), r

    assert step_operations(custom(countdown, ("v", "r"), decay=0.9, threshold=1.0))[:5] == (1, 1, 0, 3, 0)

    def exponential(x: Any, v: Any, decay: Any, threshold: Any) -> Any:
        v = decay * v + torch.exp(v - threshold) + x  # MAC, function, and two additions
        s = spike(v - threshold)
        return s, v - threshold * s

    found = step_operations(custom(exponential, ("v",), decay=0.9, threshold=1.0))
    assert found.functions == 1 and found.mac == 1 and found.ac_per_spike == 1
    assert found.ac == 2  # v - threshold inside exp, and + x; the sum with exp is the MAC's own

    def counts_spikes(x: Any, v: Any, n: Any, decay: Any, threshold: Any) -> Any:
        v = decay * v + x
        s = spike(v - threshold)
        return s, v, n + s  # a spike itself is added

    assert step_operations(custom(counts_spikes, ("v", "n"), decay=0.9, threshold=1.0))[:3] == (1, 0, 1)


def test_constants_cost_nothing_and_a_product_of_the_input_alone_can_be_folded() -> None:
    def scaled(x: Any, v: Any, decay: Any, gain: Any, threshold: Any) -> Any:
        v = decay * decay * v + gain * (1 - decay) * x
        s = spike(v - threshold)
        return s, v - threshold * s

    found = step_operations(custom(scaled, ("v",), decay=0.9, gain=2.0, threshold=1.0))
    assert found.mac == 2 and found.input_scale == 1

    def twice(x: Any, v: Any, decay: Any, threshold: Any) -> Any:
        v = decay * v + (1 - decay) * x
        s = spike(v + x - threshold)  # the bare input is used too: no weight can take the factor
        return s, v - threshold * s

    assert step_operations(custom(twice, ("v",), decay=0.9, threshold=1.0)).input_scale == 0


class Untraceable(Neuron):
    states = ("v",)

    @staticmethod
    def step(x: Any, v: Any, decay: Any) -> Any:
        v = torch.cumsum(decay * v + x, 0)
        return v, v

    def coefs(self) -> tuple[Any, ...]:
        return (0.9,)


def test_a_step_that_cannot_be_traced_has_no_count() -> None:
    with pytest.raises(EngineError, match=r"Untraceable: its operations cannot be counted.*cumsum"):
        step_operations(Untraceable(2, engine="reference"))
