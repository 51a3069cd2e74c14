"""Parameter groups: who decays, who learns at which pace."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from spiketide.compose import Sequential
from spiketide.errors import ParameterError
from spiketide.neurons import LIF
from spiketide.synapses import Dense
from spiketide.training import parameter_groups
from spiketide.training.groups import ROLES


def test_every_parameter_is_in_one_group_and_only_matrices_decay() -> None:
    network = Sequential(Dense(4, 3), LIF(3, learn=("tau_mem", "threshold")), Dense(3, 2))
    delay = nn.Parameter(torch.zeros(3, 4))
    delay.role = "delays"  # type: ignore[attr-defined]
    network.register_parameter("delay", delay)
    groups = {
        group["name"]: group
        for group in parameter_groups(
            network,
            lr=0.1,
            weight_decay=0.5,
            multipliers={"time_constants": 2.0, "thresholds": 3.0, "delays": 100.0},
        )
    }
    assert {
        name: (round(group["lr"], 6), group["weight_decay"], len(group["params"]))
        for name, group in groups.items()
    } == {
        "weights": (0.1, 0.5, 2),
        "biases": (0.1, 0.0, 2),
        "time_constants": (0.2, 0.0, 1),
        "thresholds": (0.3, 0.0, 1),
        "delays": (10.0, 0.0, 1),  # two axes, and still no decay
    }
    grouped = [id(p) for group in groups.values() for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in network.parameters())


def test_frozen_parameters_are_left_out() -> None:
    layer = nn.Linear(2, 2)
    layer.bias.requires_grad_(False)
    assert [group["name"] for group in parameter_groups(layer, lr=0.1)] == ["weights"]
    layer.weight.requires_grad_(False)
    with pytest.raises(ParameterError, match="no trainable parameter"):
        parameter_groups(layer, lr=0.1)


def test_unknown_roles() -> None:
    with pytest.raises(ParameterError, match="did you mean 'delays'"):
        parameter_groups(nn.Linear(2, 2), lr=0.1, multipliers={"delay": 2.0})
    odd = nn.Linear(2, 2)
    odd.weight.role = "wieghts"  # type: ignore[assignment]
    with pytest.raises(ParameterError, match="did you mean 'weights'"):
        parameter_groups(odd, lr=0.1)
    assert ROLES == ("weights", "time_constants", "thresholds", "delays")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lr": -0.1}, "lr of 0 or more, got -0.1"),
        ({"lr": float("nan")}, "lr of 0 or more, got nan"),
        ({"lr": 0.1, "weight_decay": -1.0}, "weight_decay of 0 or more, got -1.0"),
        ({"lr": 0.1, "multipliers": {"delays": -1}}, "a factor for delays of 0 or more, got -1"),
        ({"lr": 0.1, "multipliers": {"weights": float("inf")}}, "a factor for weights of 0 or more, got inf"),
    ],
)
def test_rates_below_0_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ParameterError, match=words):
        parameter_groups(nn.Linear(2, 2), **options)
