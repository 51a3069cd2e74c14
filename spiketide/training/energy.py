"""The energy of a trained run: its best checkpoint on validation data, counted, priced, and beside something classical."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.seed import isolate_rng

from ..energy import (
    Baseline,
    Costs,
    Counts,
    FirstSpikeCounts,
    costs,
    count_first_spike_operations,
    energy_per_sample,
    equal_size,
    metering,
    same_shape,
    summary,
)
from ..errors import RunError, unknown
from ..timing import Network
from ..types import Batch
from .callbacks import Reseed, derive
from .folder import RunFolder
from .recipe import Built
from .run import load, surroundings

PARTS = ("validation", "test")


def energy_of_run(
    folder: RunFolder,
    *,
    model: str = "horowitz-fp32",
    against: RunFolder | None = None,
    on: str = "validation",
) -> dict[str, Any]:
    """Count what the best checkpoint of a run does, price it, and write ``energy.json`` into its folder.

    Args:
        folder: a trained run.
        model: name of a price model, see :func:`spiketide.energy.costs`.
        against: another run, measured in the same way; ``None``: an LSTM, a GRU and an RNN of equal size, by formula, and
            beside a network whose neurons fire once the ReLU network of its shape.
        on: ``"validation"``, or ``"test"`` for a run that was tested already: test data are touched once.

    Returns:
        the content of ``energy.json``: :func:`spiketide.energy.summary`, with the run and the data it was measured on.

    Raises:
        RunError: no checkpoint yet; test data of a run that was not tested.
        ParameterError: no such price model.
    """
    prices = costs(model)
    if on not in PARTS:
        raise RunError(unknown("part of the data", on, PARTS))
    _check(folder, on)
    if against is not None:
        _check(against, on)
        mine, its = (load(run).settings["data"]["class_path"] for run in (folder, against))
        if mine != its:
            raise RunError(
                f"{folder.path} is on {mine}, {against.path} on {its}: energies a sample compare on the same data only. Name a "
                "run on the same data, or leave --against away."
            )
    with folder.hold():
        counts, quality = _measure(folder, on)
        if against is None:
            beside = _formulas(counts, prices)
        else:
            other, its_quality = _measure(against, on)
            beside = [
                Baseline(
                    kind=str(against.path),
                    units=None,
                    parameters=other.parameters,
                    energy=energy_per_sample(other, prices),
                    quality=its_quality["value"],
                )
            ]
        found = {
            "run": str(folder.path),
            "on": on,
            "metric": quality["metric"],
            "quality": quality["value"],
            **summary(counts, prices, beside),
        }
        if against is not None:
            found["against"] = summary(other, prices, [])
        folder.write_json("energy.json", found)
    return found


def _formulas(counts: Counts, prices: Costs) -> list[Baseline]:
    """What stands beside a network where no other run is named."""
    return same_shape(counts, prices) if isinstance(counts, FirstSpikeCounts) else equal_size(counts, prices)


def _check(folder: RunFolder, on: str) -> None:
    if not folder.best.is_file():
        raise RunError(
            f"{folder.path} has no best checkpoint yet; go on with: spiketide train --resume {folder.path}"
        )
    if on == "test" and folder.read_json("test.json") is None:
        raise RunError(
            f"{folder.path} was not tested yet, and test data are touched once, by `spiketide test {folder.path}`: "
            "run that first, or measure on validation data."
        )


def _measure(folder: RunFolder, on: str) -> tuple[Counts, dict[str, Any]]:
    """Counts of the best checkpoint over all batches, and what it reached on validation data."""
    with isolate_rng(), torch.no_grad():
        built = load(folder).build()
        folder.fill(built.model)
        with surroundings(built.threads):
            counts = count_batches(built, on)
    best = (folder.read_json("metrics.json") or {}).get("best") or {}
    return counts, {"metric": built.best.metric, "value": best.get(built.best.metric)}


def count_batches(built: Built, on: str) -> Counts:
    """What the network of a built recipe does on its validation or test data, in evaluation mode."""
    model, data = built.model.cpu().eval(), built.data
    data.prepare_data()
    data.setup("fit" if on == "validation" else "test")
    batches = data.val_dataloader() if on == "validation" else data.test_dataloader()
    # random encoders draw what they drew when the run was validated or tested
    L.seed_everything(derive(built.seed, 0, "validation"), verbose=False)

    def encoded() -> Iterator[tuple[Batch, Any]]:
        for index, batch in enumerate(batches):
            if on == "test":
                Reseed.test_batch(built.seed, index)
            yield batch, batch.x if model.encoder is None else model.encoder(batch.x)

    counts: Counts
    if isinstance(model.network, Network):
        counts = once = FirstSpikeCounts()
        for _, times in encoded():
            seen = {"input": times} | model.network.follow(times)[1]
            count_first_spike_operations(model.network, seen, into=once)
    else:
        with metering(model.network) as counts:
            for batch, x in encoded():
                model.network(x, lengths=batch.lengths)
    if not counts.samples:
        raise RunError(f"the {on} data of this run hold no sample, so there is nothing to count.")
    if not math.isfinite(sum(layer.effective + layer.mac for layer in counts.layers.values())):
        raise RunError(
            f"the counts on the {on} data are not finite: look at the run with spiketide diagnose."
        )
    return counts
