"""Speed of the published convolutional network beside its convolutions alone and its own equations in a loop, and inference.

    OMP_WAIT_POLICY=passive python benchmarks/conv.py [--quick] [--batch 32] [--rounds 5] [--json]

The network of Zimmer et al. 2019: three convolutions of 64 channels in time and frequency on 3 x 100 x 40, with and without
lateral connections, mean read-out. A training step is forward, cross-entropy and backward.

- "equations in a loop" are those of the notes, sections 1 to 3, with a Python loop over time, as the published code has one;
- "convolutions alone" is the same network without neurons, in each of torch's two memory layouts.

Before anything is timed the thresholds are set so that every layer fires at about 5 % (5 Hz at steps of 10 ms), since spikes cost
what they are.

Figures stand behind a parity gate: our spikes in float64 are those of the loop, and so are the gradients.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import torch
from common import emit, gate, interleaved, machine, median_ratio, table
from torch import Tensor, nn
from torch.nn import functional

from spiketide import Dense, Lateral, Normalized, NormalizedLIF, NormalizedReadout, Sequential, TemporalConv2d
from spiketide.kernels import projection
from spiketide.kernels.convolution import Geometry, convolve
from spiketide.probe import firing_rates, record
from spiketide.readouts import MeanMembrane
from spiketide.surrogate import Sigmoid, spike

DILATIONS = ((1, 1), (4, 3), (16, 9))
STEPS, BANDS, CHANNELS, CLASSES = 100, 40, 64, 12
RATE = 0.05
EPSILON = 1e-8


def network(lateral: bool) -> Sequential:
    """The published network."""
    layers: list[nn.Module] = []
    for k, dilation in enumerate(DILATIONS):
        synapse = TemporalConv2d(
            CHANNELS if k else 3, CHANNELS, (4, 3), dilation=dilation, padding="same", bias=False, spread=0.15
        )
        neuron = NormalizedLIF(
            (CHANNELS, BANDS), learn=("decay", "threshold"), reset="none" if lateral else "soft"
        )
        layers.append((Lateral if lateral else Normalized)(synapse, neuron))
    readout = NormalizedReadout(Dense(CHANNELS * BANDS, CLASSES, bias=False))
    return Sequential(*layers, nn.Flatten(), readout)


def settle(model: Sequential, x: Tensor) -> None:
    """Raise or lower the thresholds of one layer after the other until it fires at ``RATE``."""
    for k in range(len(DILATIONS)):
        low, high = -4.0, 4.0
        for _ in range(14):
            middle = (low + high) / 2
            with torch.no_grad(), record(model) as records:
                model[k].neuron.threshold.raw.fill_(middle)
                model(x)
            if list(firing_rates(records).values())[k] > RATE:
                low = middle
            else:
                high = middle


def looped(model: Sequential, lateral: bool) -> Callable[[Tensor], Tensor]:
    """The equations of the notes on the same weights, in a loop over time."""
    rule = Sigmoid(10.0, scaled=False)

    def run(x: Tensor) -> Tensor:
        x = x.permute(1, 2, 0, 3)
        for k, dilation in enumerate(DILATIONS):
            layer: Any = model[k]
            weight, neuron = layer.synapse.weight, layer.neuron
            pads = (-(-3 * dilation[0] // 2), dilation[1])
            drive = functional.conv2d(x, weight, None, 1, pads, dilation)
            beta, b = neuron.decay().reshape(()), neuron.threshold().reshape(1, -1, 1)
            rows = weight.flatten(1)
            n, gram = rows.square().sum(1).reshape(1, -1, 1), rows @ rows.t()
            u = s = torch.zeros_like(drive[:, :, 0])
            spikes = []
            for t in range(drive.shape[2]):
                reset = torch.einsum("baf,ac->bcf", s, gram) if lateral else s * b * (n + EPSILON)
                u = beta * (u - reset) + (1 - beta) * drive[:, :, t]
                s = spike(u / (n + EPSILON) - b, rule)
                spikes.append(s)
            x = torch.stack(spikes, 2)
        readout: Any = model[len(DILATIONS) + 1]
        rows = readout.synapse.weight
        scores = x.permute(0, 2, 1, 3).flatten(2) @ rows.t()
        return scores.mean(1) / (rows.square().sum(1) + EPSILON) - readout.threshold()

    return run


def ours(model: Sequential) -> Callable[[Tensor], Tensor]:
    """The network with its read-out."""
    readout = MeanMembrane()
    return lambda x: readout(model(x)[0])


def floor(model: Sequential, memory: torch.memory_format) -> Callable[[Tensor], Tensor]:
    """The convolutions and the last product alone."""

    def run(x: Tensor) -> Tensor:
        x = x.permute(1, 2, 0, 3).contiguous(memory_format=memory)
        for k, dilation in enumerate(DILATIONS):
            layer: Any = model[k]
            weight = layer.synapse.weight.contiguous(memory_format=memory)
            x = functional.conv2d(x, weight, None, 1, (-(-3 * dilation[0] // 2), dilation[1]), dilation)
        readout: Any = model[len(DILATIONS) + 1]
        return (x.permute(0, 2, 1, 3).flatten(2) @ readout.synapse.weight.t()).mean(1)

    return run


def training(run: Callable[[Tensor], Tensor], model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], None]:
    """Forward, loss, backward."""

    def step() -> None:
        model.zero_grad()
        functional.cross_entropy(run(x), y).backward()

    return step


def parity(seed: int) -> None:
    """Spikes and gradients in float64, on a shorter input."""
    for lateral in (True, False):
        torch.manual_seed(seed)
        model = network(lateral).double()
        x = torch.randn(30, 2, 3, BANDS, dtype=torch.float64)
        settle(model, x)
        y = torch.tensor([0, 5])
        found = []
        for run in (ours(model), looped(model, lateral)):
            model.zero_grad()
            scores = run(x)
            functional.cross_entropy(scores, y).backward()
            found.append(
                (scores.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None])
            )
        name = "lateral" if lateral else "no lateral"
        error = float((found[0][0] - found[1][0]).abs().max())
        gate(f"{name}: scores", error < 1e-9, f"off by {error:.2e}")
        for a, b in zip(found[0][1], found[1][1], strict=True):
            scale = float(b.abs().max()) or 1.0
            error = float((a - b).abs().max()) / scale
            gate(f"{name}: gradients", error < 1e-7, f"off by {error:.2e} of the largest")


def inference(model: Sequential, x: Tensor, rounds: int) -> dict[str, float]:
    """Milliseconds of the third convolution by its spikes and dense, and of the whole network."""
    with torch.no_grad(), record(model) as records:
        model(x)
    spikes = list(records.spikes().values())[1].movedim(2, -1).contiguous()
    weight = model[2].synapse.weight.detach()
    geometry = Geometry(16, 24, 24, (1,), (9,), (9,))
    ways = {
        engine: (lambda engine=engine: convolve(spikes, weight, None, geometry, engine=engine))
        for engine in projection.ENGINES
    }

    def whole() -> None:
        with torch.no_grad():
            model(x)

    times = interleaved({**ways, "network": whole}, rounds=rounds)
    return {name: 1e3 * statistics.median(values) for name, values in times.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="two samples, one round: does it run")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    batch, rounds = (2, 1) if options.quick else (options.batch, options.rounds)
    parity(0)
    torch.manual_seed(0)
    x, y = torch.randn(STEPS, batch, 3, BANDS), torch.randint(CLASSES, (batch,))
    models = {lateral: network(lateral) for lateral in (True, False)}
    entries: dict[str, Callable[[], Any]] = {}
    rates = {}
    for lateral, model in models.items():
        settle(model, x)
        with torch.no_grad(), record(model) as records:
            model(x)
        name = "lateral" if lateral else "no lateral"
        rates[name] = list(firing_rates(records).values())
        entries[f"spiketide, {name}"] = training(ours(model), model, x, y)
        entries[f"equations in a loop, {name}"] = training(looped(model, lateral), model, x, y)
    plain = models[False]
    for name, memory in (("first", torch.contiguous_format), ("last", torch.channels_last)):
        entries[f"convolutions alone, channels {name}"] = training(floor(plain, memory), plain, x, y)
    times = interleaved(entries, rounds=rounds, warmup=1)
    low = min(
        (name for name in entries if name.startswith("convolutions")),
        key=lambda name: statistics.median(times[name]),
    )
    rows = [
        (
            name,
            f"{1e3 * statistics.median(values):.0f}",
            f"{median_ratio(values, times[low]):.2f}",
        )
        for name, values in times.items()
    ]
    table(f"training step, B = {batch}", rows, ("entry", "ms", "of the convolutions"))
    result: dict[str, Any] = {"machine": machine(), "batch": batch, "rates": rates, "floor": low}
    result["ms"] = {name: 1e3 * statistics.median(values) for name, values in times.items()}
    for name in ("lateral", "no lateral"):
        faster = median_ratio(times[f"equations in a loop, {name}"], times[f"spiketide, {name}"])
        above = median_ratio(times[f"spiketide, {name}"], times[low])
        print(
            f"{name}: {faster:.1f} x faster than its equations in a loop (target 6), {above:.2f} of the convolutions alone "
            f"(target {1.6 if name == 'lateral' else 1.25}); firing {', '.join(f'{rate:.3f}' for rate in rates[name])}"
        )
        result[name] = {"faster": faster, "above": above}
    result["inference"] = found = inference(models[True], x, rounds)
    print(
        f"inference: third convolution {found['event']:.1f} ms by its spikes, {found['dense']:.1f} ms dense; "
        f"network {found['network']:.0f} ms"
    )
    emit(result, options.json)


if __name__ == "__main__":
    main()
