"""A recipe that trains in a second and draws random numbers wherever a run can: dropout, Poisson spikes, shuffling."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml

from spiketide.training.recipe import Recipe

CONTENT: dict[str, Any] = {
    "seed": 3,
    "threads": 1,
    "data": {
        "class_path": "spiketide.data.Digits",
        "init_args": {"batch_size": 32, "limit": 96, "seed": 5, "validation_fraction": 0.05},
    },
    "model": {
        "class_path": "spiketide.training.Classification",
        "init_args": {
            "encoder": {
                "class_path": "spiketide.encoders.Poisson",
                "init_args": {"steps": 6, "max_rate": 500.0},
            },
            "network": [
                {"class_path": "torch.nn.Flatten"},
                {"class_path": "spiketide.synapses.Dense", "init_args": {"n_in": 64, "n_out": 20}},
                {"class_path": "spiketide.neurons.LIF", "init_args": {"n": 20, "tau_mem": 5.0}},
                {"class_path": "spiketide.norms.Dropout", "init_args": {"p": 0.2}},
                {"class_path": "spiketide.synapses.Dense", "init_args": {"n_in": 20, "n_out": 10}},
                {
                    "class_path": "spiketide.neurons.LeakyIntegrator",
                    "init_args": {"n": 10, "tau_mem": 5.0, "scale_input": False},
                },
            ],
            "readout": {"class_path": "spiketide.readouts.MaxMembrane"},
            "lr": 0.03,
            "schedule": "onecycle",
            "clip": "norm",
        },
    },
    "trainer": {"accelerator": "cpu", "max_epochs": 3, "enable_progress_bar": False},
}


def content() -> dict[str, Any]:
    """A copy to change."""
    return copy.deepcopy(CONTENT)


def recipe(**trainer: Any) -> Recipe:
    """The recipe, with other arguments of the trainer."""
    changed = content()
    changed["trainer"].update(trainer)
    return Recipe(changed, name="tiny")


def write(path: Path, changed: dict[str, Any] | None = None) -> Path:
    """The recipe as a file."""
    path.write_text(yaml.safe_dump(changed or CONTENT))
    return path
