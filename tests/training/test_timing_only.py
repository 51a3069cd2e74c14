"""Data in which counts tell nothing: a network with learned delays reads them, one without memory cannot.

Randman fires every unit once a sample. Units that happen to fire in the same step tell a network without memory which class it
is (all of it, with these sizes), so each unit is put off into a window of its own, by a fixed delay in front of the network: what
is left is when a unit fires relative to the others. Whole delays that stay as drawn get most of the way there (about 94 %); a
network without delays gets nowhere.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from spiketide.compose import Sequential
from spiketide.data import Randman
from spiketide.layer import Layer
from spiketide.losses import CrossEntropy
from spiketide.neurons import LIF, LeakyIntegrator
from spiketide.norms import BatchNorm
from spiketide.readouts import SumSoftmax
from spiketide.surrogate import ATan
from spiketide.synapses import (
    AxonalDelay,
    DelayAnneal,
    Dense,
    SynapticDelay,
    clamp_delays,
    delay_statistics,
)
from spiketide.training import parameter_groups

UNITS, CLASSES, WINDOW = 12, 4, 6
LATEST, TAIL = 36, 24
HIDDEN, EPOCHS, LR = 128, 16, 5e-3
FORGETFUL = {"dt": 10.0, "tau_mem": 10.05, "discretisation": "euler"}  # retention 0.005 a step


@pytest.fixture(scope="module")
def parts() -> dict[str, tuple[Tensor, Tensor]]:
    """Spikes ``(T, N, units)`` and labels of each part, units in turn."""
    data = Randman(
        dim=1,
        alpha=3.0,
        units=UNITS,
        classes=CLASSES,
        steps=WINDOW,
        samples_per_class=400,
        validation_fraction=0.15,
    )
    latest = (UNITS - 1) * WINDOW
    in_turn = AxonalDelay(
        UNITS,
        latest,
        learn=False,
        interpolation="none",
        start=torch.arange(0.0, latest + 1, WINDOW),
        tail=latest,
    )
    data.setup("fit")
    data.setup("test")
    loaders = {
        "train": data.train_dataloader(),
        "validation": data.val_dataloader(),
        "test": data.test_dataloader(),
    }
    found = {}
    for name, loader in loaders.items():
        batches = list(loader)
        x = torch.cat([batch.x for batch in batches], 1)
        found[name] = (in_turn(x)[0], torch.cat([batch.y for batch in batches]))
    return found


def network(synapses: Callable[[int, int], nn.Module]) -> Sequential:
    return Sequential(
        synapses(UNITS, HIDDEN),
        BatchNorm(HIDDEN),
        LIF(HIDDEN, **FORGETFUL, reset="hard_detached", surrogate=ATan(slope=5.0)),
        synapses(HIDDEN, CLASSES),
        LeakyIntegrator(CLASSES, **FORGETFUL, scale_input=False),
    )


def delayed(n_in: int, n_out: int) -> SynapticDelay:
    # A spike meets a coincidence of a single step here, so that half a step of rounding matters: the last kernels are narrower than
    # the published ones and nearly one tap, which is what evaluation uses.
    return SynapticDelay(n_in, n_out, LATEST, tail=TAIL, offset=0.05)


def fit(layers: Layer, x: Tensor, y: Tensor, *, size: int = 50) -> None:
    readout, loss = SumSoftmax(), CrossEntropy()
    groups = parameter_groups(layers, lr=LR, multipliers={"delays": 20.0})
    optimiser = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, [group["lr"] for group in groups], epochs=EPOCHS, steps_per_epoch=-(-len(y) // size)
    )
    anneal = DelayAnneal(final=0.06, share=0.5)
    for epoch in range(EPOCHS):
        anneal(layers, epoch, EPOCHS)
        layers.train()
        for chosen in torch.randperm(len(y)).split(size):
            optimiser.zero_grad()
            loss(readout(layers(x[:, chosen])[0]), y[chosen]).backward()
            optimiser.step()
            clamp_delays(layers)
            schedule.step()


def accuracy(layers: Layer, x: Tensor, y: Tensor) -> float:
    layers.eval()
    with torch.no_grad():
        return float((SumSoftmax()(layers(x)[0]).argmax(-1) == y).float().mean())


def test_counts_and_coincidences_are_the_same_in_every_sample(
    parts: dict[str, tuple[Tensor, Tensor]],
) -> None:
    for x, y in parts.values():
        assert bool((x.sum(0) == 1).all())  # every unit once in every sample
        assert bool((x.sum(2) <= 1).all())  # and never two of them in a step
        assert sorted(y.unique().tolist()) == list(range(CLASSES))
        times = x.argmax(0) - WINDOW * torch.arange(UNITS)
        assert int(times.min()) == 0 and int(times.max()) == WINDOW - 1


def test_learned_delays_read_the_timing(parts: dict[str, tuple[Tensor, Tensor]]) -> None:
    layers = network(delayed)
    before = delay_statistics(layers)
    fit(layers, *parts["train"])
    assert accuracy(layers, *parts["validation"]) >= 0.95
    assert accuracy(layers, *parts["test"]) >= 0.95
    after = delay_statistics(layers, before)
    assert all(layer.moved is not None and layer.moved > 0.5 for layer in after.values())


def test_without_delays_the_same_network_guesses(parts: dict[str, tuple[Tensor, Tensor]]) -> None:
    layers = network(lambda n_in, n_out: Dense(n_in, n_out, bias=False))
    fit(layers, *parts["train"])
    for part in ("train", "validation", "test"):
        assert accuracy(layers, *parts[part]) < 1.4 / CLASSES
