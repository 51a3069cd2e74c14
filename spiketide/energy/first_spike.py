"""Operations of networks in which every neuron fires at most once, counted from their spike times."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..errors import ParameterError, ShapeError
from ..timing import AveragePool2d, EarliestPool2d, FixedSlope, Flatten, Network, Silence, Step, TimingLayer
from .costs import Costs
from .meter import FREE_MODULES, Counts, LayerCounts
from .report import PICO_TO_NANO, Baseline, price

WORD_BITS = 32
"""Of the words that memory traffic is counted in."""

INPUT = "input"
"""Under this name the spike times of the input stand beside those of the layers."""


@dataclass
class FirstSpikeLayer(LayerCounts):
    """:class:`.meter.LayerCounts` of a layer whose neurons fire once.

    Args:
        weight_bits: of a weight in memory: 1 where only its sign is kept.
        neurons: neurons times samples: by these a rate is counted here, not by steps.
        reached: connections that spikes reach, each once, however many events the kernel has.
    """

    weight_bits: int = WORD_BITS
    neurons: float = 0.0
    reached: float = 0.0

    @property
    def rate(self) -> float:
        """Spikes per neuron, at most 1."""
        return self.spikes / self.neurons if self.spiking and self.neurons else 0.0

    def settle(self) -> None:
        """Fill in the traffic; of binary weights one bit is read for each."""
        super().settle()
        if self.role == "synapse":
            self.weight_reads = self.effective * self.weight_bits / WORD_BITS


@dataclass
class FirstSpikeCounts(Counts):
    """:class:`.meter.Counts` of a network whose neurons fire once: rates are spikes per neuron."""

    per: str = "neuron"

    @property
    def rate(self) -> float:
        """Spikes per neuron, over all layers that fire."""
        rows = [row for row in self.layers.values() if isinstance(row, FirstSpikeLayer) and row.spiking]
        return sum(row.spikes for row in rows) / max(1.0, sum(row.neurons for row in rows))


def count_first_spike_operations(
    network: Network,
    seen: Mapping[str, Tensor],
    *,
    into: FirstSpikeCounts | None = None,
    deadline: Tensor | float | None = None,
) -> FirstSpikeCounts:
    """What hardware with a clock does for a network of spike times: exact, from the times of all spikes.

    **Synapses**, ``<layer>.synapse``: a spike is one accumulate at each synapse that it reaches, for each event of its kernel
    that falls into the window of the layer behind. At the border of an image it reaches fewer synapses; strides and groups
    are heeded.

    ================ ====== ===================================================================================
    kernel           events the accumulate
    ================ ====== ===================================================================================
    ``Step``         1      ``V += w``: the potential itself
    ``ReL``          1      ``A += w``: the slope of the membrane; every step then does ``V += A``
    ``FixedSlope``   1      the same, until the layer's own window opens
    ``Ramp``         2      ``A += w`` at the spike, ``A -= w`` when the ramp ends
    ``RampUpDown``   3      up, down, and at rest again; the constant factors of ``w`` are held to be stored or shifted
    ================ ====== ===================================================================================

    No weight is ever multiplied. Factors common to a layer (``1 / rise``, the scale of binary weights) go into its
    threshold, so with binary weights every sum is an integer that goes up or down by one, and one bit is read for each
    weight; real weights are read as words of 32 bits. An accumulate counts also where the neuron has fired already: spikes
    are broadcast.

    **Neurons**, ``<layer>.neuron``: from the first spike that reaches the layer until it fires itself, or its window ends, a
    neuron whose membrane is a line (two running sums, slope and potential) does one addition ``V += A`` and one comparison
    in each step. With ``Step`` it is compared only in steps in which a spike reaches the layer. With ``FixedSlope`` it adds
    in each step before its window and compares in each step of it; the common drive is a threshold that falls, one addition
    a step for the whole layer. A layer that no spike reaches does nothing.

    **Between layers**: ``EarliestPool2d`` looks once for each spike whether another one came before it (a comparison);
    ``AveragePool2d`` adds once for each spike and scales each mean once (a multiply-accumulate, none if its window is a power
    of two). Flattening and dropout are free. The encoder is not counted.

    The simulation finds each time by one division, between two events. That is its own device: hardware counts steps and divides
    nowhere, so no division is counted. Times between two steps (``exact=True``) are counted as if the clock met them: an
    update in the next whole step.

    Example:
        >>> import torch
        >>> from spiketide.energy import count_first_spike_operations
        >>> from spiketide.timing import Network, ReL, TimingLinear
        >>> network = Network(TimingLinear(2, 3, psp=ReL(4.0), stop=8.0))
        >>> network[0].set_weight(torch.tensor([[1.0, 1.0], [0.5, 0.0], [-1.0, 0.0]]))
        >>> times = torch.tensor([[0.0, 2.0]])
        >>> counts = count_first_spike_operations(network, {"input": times} | network.follow(times)[1])
        >>> counts.layers["0.synapse"].synaptic_ac  # two spikes, three synapses each
        6.0
        >>> counts.layers["0.neuron"].comparisons  # steps 1 to 3 (fires); 1 to 7 (at 8 it would); 1 to 7
        17.0

    Args:
        network: whose times these are.
        seen: spike times: of the input under ``"input"``, of each layer that fires by its name, as
            :meth:`spiketide.timing.Network.follow` gives them.
        into: counts to add these to; ``None``: begin.
        deadline: steps, one number or one for each sample, ``(B,)``: nothing happens later. With the time of the decision, what
            a network costs that stops when its first output fires.

    Raises:
        ParameterError: a layer's times are missing.
        ShapeError: times of another batch.
    """
    wanted = [INPUT, *(name for name, layer in network.named_children() if isinstance(layer, TimingLayer))]
    missing = [name for name in wanted if name not in seen]
    if missing:
        raise ParameterError(
            f"count_first_spike_operations expected spike times of {', '.join(wanted)}, got none of {', '.join(missing)}: "
            '{"input": times} | network.follow(times)[1].'
        )
    times = seen[INPUT].detach()
    samples = times.shape[0]
    wrong = [name for name in wanted if seen[name].shape[0] != samples]
    if wrong:
        raise ShapeError(
            f"count_first_spike_operations expected times of {samples} samples, as the input has, got {seen[wrong[0]].shape[0]} "
            f"of layer {wrong[0]}."
        )
    counts = FirstSpikeCounts() if into is None else into
    counts.parameters = sum(layer.weight.numel() for layer in network if isinstance(layer, TimingLayer))
    end = torch.as_tensor(math.inf if deadline is None else deadline, dtype=times.dtype, device=times.device)
    end = end.expand(samples)
    counts.samples += samples
    counts.inputs = times[0].numel()
    counts.input_events += float(torch.isfinite(times).sum())
    counts.steps += samples * network.output.stop
    driven = False
    with torch.no_grad():
        for name, layer in network.named_children():
            if isinstance(layer, TimingLayer):
                found = seen[name].detach()
                _layer(counts, name, layer, times, found, end, driven)
                times, driven = found, True
            else:
                _between(counts, name, layer, times, end, driven)
                if not isinstance(layer, Silence):
                    times = layer(times)
    counts.outputs = times[0].numel()
    return counts


def _row(counts: FirstSpikeCounts, name: str, kind: str, role: str) -> FirstSpikeLayer:
    row = counts.layers.setdefault(name, FirstSpikeLayer(name, kind, role))
    assert isinstance(row, FirstSpikeLayer)
    return row


def _layer(
    counts: FirstSpikeCounts,
    name: str,
    layer: TimingLayer,
    times: Tensor,
    found: Tensor,
    end: Tensor,
    driven: bool,
) -> None:
    fixed = isinstance(layer.psp, FixedSlope)
    close = layer.start if fixed else layer.stop
    until = _like(end, times)
    fan = fan_out(layer, times)
    events = torch.zeros_like(fan)
    for delay, *_ in layer.psp.shape.events():
        at = times + delay
        events += ((at < close) & (at <= until)).sum(0)
    heard = (times < close) & (times <= until)
    row = _row(counts, f"{name}.synapse", type(layer).__name__, "synapse")
    row.driven |= driven
    row.events += float(events.sum())
    row.effective += float((events * fan).sum())
    row.reached += float((heard.sum(0) * fan).sum())
    row.dense += float(fan.sum()) * len(times)
    row.outputs += found.numel()
    row.weight_bits = 1 if layer.binary else WORD_BITS
    row.words = math.ceil(layer.weight.numel() * row.weight_bits / WORD_BITS)
    row.input_words, row.target_words = times[0].numel(), found[0].numel()
    row.spatial = times.dim() > 2
    row.settle()

    row = _row(counts, f"{name}.neuron", type(layer).__name__, "neuron")
    row.spiking = True
    spikes = float((found <= _like(end, found)).logical_and(torch.isfinite(found)).sum())
    row.spikes += spikes
    row.output_writes += spikes
    row.neurons += found.numel()
    row.outputs += found.numel()
    row.output_words = found[0].numel()
    work = _work(layer, times.masked_fill(~heard, math.inf), found, end)
    row.updates += work.updates
    row.ac += work.additions + work.shared
    row.comparisons += work.comparisons
    # slope and potential in, potential out; a comparison alone reads the potential
    alone = work.updates - work.additions
    row.state_reads += 2 * work.additions + alone
    row.state_writes += work.additions
    row.state_words = (1 if isinstance(layer.psp, Step) else 2) * found[0].numel()


class _Work(NamedTuple):
    """Of the neurons of a layer: neuron-steps, additions in them, comparisons, additions for the whole layer."""

    updates: float
    additions: float
    comparisons: float
    shared: float


def _work(layer: TimingLayer, heard: Tensor, found: Tensor, end: Tensor) -> _Work:
    first = heard.flatten(1).amin(1).ceil()
    awake = torch.isfinite(first)
    stop = math.ceil(layer.stop)
    last = found.flatten(1).ceil().clamp(max=stop - 1)
    last = torch.minimum(last, end.floor()[:, None])
    if isinstance(layer.psp, Step):
        looks = _distinct(heard.flatten(1).ceil(), last)
        return _Work(looks, 0.0, looks, 0.0)
    if not isinstance(layer.psp, FixedSlope):
        steps = (last - first[:, None]).clamp(min=0)[awake].sum(dtype=torch.float64).item()
        return _Work(steps, steps, steps, 0.0)
    begin = math.ceil(layer.start)
    added = (end.floor().clamp(max=begin) - first).clamp(min=0)[awake].sum(
        dtype=torch.float64
    ).item() * last.shape[1]
    looks = (last - begin + 1).clamp(min=0)[awake].sum(dtype=torch.float64).item()
    drive = (end.floor().clamp(max=stop - 1) - begin + 1).clamp(min=0)[awake].sum(dtype=torch.float64).item()
    return _Work(added + looks, added, looks, drive)


def _distinct(heard: Tensor, last: Tensor) -> float:
    """Pairs of a neuron and a step in which a spike reaches its layer, up to its last step."""
    order = heard.sort(1).values
    new = torch.isfinite(order)
    new[:, 1:] &= order[:, 1:] != order[:, :-1]
    upto = torch.cat([torch.zeros_like(new[:, :1], dtype=torch.int64), new.cumsum(1)], 1)
    place = torch.searchsorted(order, last.contiguous(), right=True)
    return float(upto.gather(1, place).sum())


def _like(end: Tensor, times: Tensor) -> Tensor:
    return end.view(-1, *[1] * (times.dim() - 1))


def fan_out(layer: TimingLayer, times: Tensor) -> Tensor:
    """Synapses that each input of a sample has: fewer at the border of an image; strides and groups are heeded.

    Example:
        >>> import torch
        >>> from spiketide.energy import fan_out
        >>> from spiketide.timing import TimingConv2d
        >>> fan_out(TimingConv2d(1, 2, 3), torch.zeros(1, 1, 4, 4))[0, :2].tolist()
        [[2.0, 4.0, 4.0, 2.0], [4.0, 8.0, 8.0, 4.0]]

    Shapes:
        ``times (B, *N)`` -> ``(*N)``, float64.

    Args:
        layer: that the inputs reach.
        times: of its inputs; only their shape counts.
    """
    layer.check(times)
    x = torch.zeros_like(times[:1], dtype=torch.float64)
    ones = torch.ones_like(layer.weight, dtype=torch.float64)
    fan: Tensor = layer.unmix(torch.ones_like(layer.mix(x, ones)), x, ones, (True, False))[0]
    return fan[0].round()


def _between(
    counts: FirstSpikeCounts, name: str, layer: nn.Module, times: Tensor, end: Tensor, driven: bool
) -> None:
    if isinstance(layer, (EarliestPool2d, AveragePool2d)):
        row = _row(counts, name, type(layer).__name__, "pool")
        row.driven |= driven
        high, wide = (size // layer.size * layer.size for size in times.shape[2:])
        inside = times[..., :high, :wide]
        spikes = float((torch.isfinite(inside) & (inside <= _like(end, inside))).sum())
        units = inside.numel() / layer.size**2
        row.events += spikes
        row.outputs += units
        row.input_words, row.output_words = times[0].numel(), inside[0].numel() // layer.size**2
        row.input_reads += spikes
        if isinstance(layer, EarliestPool2d):
            row.comparisons += spikes
        else:
            row.ac += spikes
            row.mac += 0.0 if math.log2(layer.size).is_integer() else units
    elif not isinstance(layer, (Flatten, Silence, *FREE_MODULES)):
        counts.uncounted[name] = f"{type(layer).__name__}: has no count"


def same_shape(counts: FirstSpikeCounts, costs: Costs) -> list[Baseline]:
    """The network of the same shape with ReLU units: one pass, every weight multiplied once, one comparison for each unit.

    ``sparse_energy`` skips the inputs that have no spike in the first layer (dark pixels); zeros of its own units, which only
    training tells, are not skipped.

    Example:
        >>> import torch
        >>> from spiketide.energy import costs, count_first_spike_operations, same_shape
        >>> from spiketide.timing import Network, TimingLinear
        >>> network = Network(TimingLinear(20, 10))
        >>> times = torch.zeros(1, 20)
        >>> counts = count_first_spike_operations(network, {"input": times} | network.follow(times)[1])
        >>> round(same_shape(counts, costs("horowitz-fp32"))[0].energy, 3)  # 200 x 4.6 + 10 x 0.9 pJ
        0.929

    Args:
        counts: of the one-spike network.
        costs: the price model.
    """
    energy = sparse = 0.0
    for number, row in enumerate(row for row in counts.layers.values() if row.role == "synapse"):
        assert isinstance(row, FirstSpikeLayer)
        full = _relu(row, row.dense, costs)
        energy += full
        sparse += _relu(row, row.reached, costs) if number == 0 else full
    share = PICO_TO_NANO / max(1, counts.samples)
    return [Baseline("ReLU, same shape", None, counts.parameters, energy * share, sparse * share)]


def _relu(row: LayerCounts, products: float, costs: Costs) -> float:
    synapse = LayerCounts(row.name, "ReLU", "synapse", graded=True, effective=products, outputs=row.outputs)
    synapse.events = row.input_words * row.outputs / max(1, row.target_words) * products / max(1.0, row.dense)
    synapse.words = (
        row.words if not isinstance(row, FirstSpikeLayer) else row.words * WORD_BITS // row.weight_bits
    )
    synapse.input_words, synapse.target_words, synapse.spatial = (
        row.input_words,
        row.target_words,
        row.spatial,
    )
    synapse.settle()
    unit = LayerCounts(row.name, "ReLU", "neuron", comparisons=row.outputs, output_writes=row.outputs)
    unit.output_words = row.target_words
    return price(synapse, costs).total + price(unit, costs).total
