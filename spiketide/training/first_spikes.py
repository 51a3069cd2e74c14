"""What the test of a single-spike network says beyond its accuracy, and the pictures of it that a report shows."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..energy import FirstSpikeLayer, Operations, count_first_spike_operations
from ..report import FirstSpikes, FirstSpikeSample, Row
from ..timing import Network, TimingLayer
from ..types import Batch
from .callbacks import Reseed
from .recipe import Built
from .single_spike import SingleSpike
from .task import Output

INPUT = "input"

LARGEST = 96
"""Pictures and filters of more pixels a side are not shown."""


class FirstSpikeTest:
    """Sums over the batches of a test: spike times of every layer, decisions, operations."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.histograms: dict[str, Tensor] = {}
        self.decisions: list[Tensor] = []
        self.labels: list[Tensor] = []
        self.spikes = 0
        self.hits = 0

    @property
    def steps(self) -> int:
        """Steps until the output's window ends."""
        return math.ceil(self.network.output.stop)

    def add(self, output: Output, y: Tensor, operations: Operations) -> None:
        """Take in one batch, and its additions into ``operations``."""
        times = output.times
        assert times is not None
        for row in count_first_spike_operations(self.network, times).layers.values():
            if isinstance(row, FirstSpikeLayer) and row.role == "synapse":
                name = row.name.removesuffix(".synapse")
                operations.sparse[name] = operations.sparse.get(name, 0.0) + row.reached
                operations.dense[name] = operations.dense.get(name, 0.0) + row.dense
        for name, when in times.items():
            fired = when[torch.isfinite(when)].floor().long()
            counts = torch.bincount(fired[fired < self.steps], minlength=self.steps).cpu()
            self.histograms[name] = self.histograms.get(name, 0) + counts
            self.spikes += fired.numel() if name != INPUT else 0
        outputs = list(times.values())[-1]
        first = outputs.amin(1)
        said = output.scores.argmax(-1)
        answered = torch.isfinite(first)
        among = outputs.gather(1, y[:, None]).squeeze(1) == first
        self.hits += int(torch.where(answered, among, said == y).sum())
        self.decisions.append(first.cpu())
        self.labels.append(y.cpu())

    def measured(self, deadline: np.ndarray) -> dict[str, Any]:
        """The part of ``test.json`` that only a single-spike network has.

        ``decision_time`` counts an image without an output spike with the end of the window, as training logs do.

        Args:
            deadline: accuracy if one stops after each step, ``(T,)``: an image without an answer by then is not right.
        """
        decisions = torch.cat(self.decisions).double()
        samples = max(1, len(decisions))
        late = torch.where(torch.isfinite(decisions), decisions, float(self.steps))
        return {
            "test_optimistic": self.hits / samples,
            "test_no_fire": int(torch.isinf(decisions).sum()) / samples,
            "spikes_per_image": self.spikes / samples,
            "decision_time": float(late.mean()) if len(late) else math.nan,
            "deadline": deadline.tolist(),
            "decided": self.decided().tolist(),
        }

    def decided(self) -> np.ndarray:
        """Share of all images on which an output has fired by the end of each step, ``(T,)``."""
        decisions = torch.cat(self.decisions)
        step = decisions[torch.isfinite(decisions)].floor().long()
        counts = torch.bincount(step, minlength=self.steps)[: self.steps].cumsum(0)
        return np.asarray(counts.double().numpy() / max(1, len(decisions)))


def windows(network: Network, labels: dict[str, str]) -> dict[str, tuple[float, float]]:
    """When the input and each layer may fire, by the names of a report."""
    layers = {name: layer for name, layer in network.named_children() if isinstance(layer, TimingLayer)}
    first = next(iter(layers.values()))
    found = {INPUT: (0.0, first.start or first.stop)}
    return found | {labels[name]: (layer.start, layer.stop) for name, layer in layers.items()}


def shown(
    counts: FirstSpikeTest, deadline: np.ndarray, built: Built, chosen: list[int], labels: dict[str, str]
) -> FirstSpikes:
    """What the report shows of it; ``deadline`` as in :meth:`FirstSpikeTest.measured`."""
    named = {INPUT: INPUT, **labels}
    samples, shape = trace_first_spikes(built, chosen, named)
    return FirstSpikes(
        windows=windows(counts.network, labels),
        spikes={named[name]: row.numpy() for name, row in counts.histograms.items()},
        decisions=torch.cat(counts.decisions).numpy(),
        labels=torch.cat(counts.labels).numpy(),
        accuracy=deadline,
        decided=counts.decided(),
        samples=samples,
        filters=filters(counts.network, shape, labels),
    )


def trace_first_spikes(
    built: Built, chosen: list[int], named: dict[str, str]
) -> tuple[list[FirstSpikeSample], tuple[int, ...]]:
    """Spike times of a few test samples, by their number in the order of the test data, and the shape of an image."""
    model: Any = built.model.cpu().eval()
    assert isinstance(model, SingleSpike)
    data = built.data
    data.prepare_data()
    data.setup("test")
    found: dict[int, FirstSpikeSample] = {}
    shape: tuple[int, ...] = ()
    first = 0
    with torch.no_grad():
        for index, batch in enumerate(data.test_dataloader()):
            here = [number - first for number in chosen if first <= number < first + len(batch.y)]
            shape = tuple(batch.x.shape[1:])
            if here:
                Reseed.test_batch(built.seed, index)  # the same noise as in the measurement
                for column, sample in zip(here, _samples(model, batch, here, named), strict=True):
                    found[first + column] = sample
            first += len(batch.y)
            if len(found) == len(chosen):
                break
    return [found[number] for number in chosen], shape


def _samples(
    model: SingleSpike, batch: Batch, columns: list[int], named: dict[str, str]
) -> list[FirstSpikeSample]:
    source = model.encode(batch)
    fired, seen = model.follow(batch._replace(x=source), encoded=True)
    said = model.output_of(fired, seen).scores.argmax(-1)
    times = {INPUT: source, **seen}
    return [
        FirstSpikeSample(
            label=int(batch.y[column]),
            prediction=int(said[column]),
            times={named[name]: when[column].numpy() for name, when in times.items()},
            image=picture(batch.x[column]),
        )
        for column in columns
    ]


def picture(x: Tensor) -> np.ndarray | None:
    """A sample as ``(H, W)``: the mean of its channels; a row of a square number of pixels is folded; else ``None``.

    Example:
        >>> import torch
        >>> from spiketide.training.first_spikes import picture
        >>> picture(torch.ones(16)).shape, picture(torch.ones(3, 4, 5)).shape, picture(torch.ones(7))
        ((4, 4), (4, 5), None)
    """
    side = math.isqrt(x.numel())
    if x.dim() == 1 and side * side == x.numel():
        x = x.reshape(side, side)
    elif x.dim() == 3:
        x = x.float().mean(0)
    if x.dim() != 2 or max(x.shape) > LARGEST:
        return None
    return np.asarray(x.numpy(), dtype=np.float64)


def filters(network: Network, shape: tuple[int, ...], labels: dict[str, str]) -> dict[str, np.ndarray]:
    """Weights of the first layer as pictures, in thresholds: windows of a convolution, or images if the input is one."""
    name, layer = next((n, m) for n, m in network.named_children() if isinstance(m, TimingLayer))
    weight = layer.effective_weight().detach().cpu() / layer.threshold
    if weight.dim() == 2:
        side = math.isqrt(weight.shape[1])
        if len(shape) == 1 and side * side == weight.shape[1]:
            shape = (1, side, side)
        if len(shape) == 2:
            shape = (1, *shape)
        if len(shape) != 3 or math.prod(shape) != weight.shape[1]:
            return {}
        weight = weight.reshape(-1, *shape)
    if weight.dim() != 4 or max(weight.shape[2:]) > LARGEST or min(weight.shape[2:]) < 2:
        return {}
    return {labels[name]: weight.double().numpy()}


def summary(result: dict[str, Any]) -> list[Row]:
    """Rows of the summary that only a single-spike network has."""
    return [
        Row("Test accuracy, ties as hits", result["test_optimistic"], "the right output is among the first"),
        Row(
            "Images without an output spike",
            f"{result['test_no_fire']:.2%}",
            "decided by the largest potential; counted in the test accuracy, not in the accuracy at a deadline",
        ),
        Row(
            "Decision time",
            f"{result['decision_time']:.1f} of {len(result['deadline'])} steps",
            "mean of the first output spike",
        ),
        Row("Spikes a sample", result["spikes_per_image"], "of all neurons, without the input"),
    ]
