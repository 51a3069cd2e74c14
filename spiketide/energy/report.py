"""Counts priced: energy of every layer, classical networks of the same size beside it, and where the two break even."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

from ..baselines import BASELINES, parameter_count, size_for
from .costs import Costs
from .meter import Counts, LayerCounts, classical_step

PICO_TO_NANO = 1e-3

CAVEAT = (
    "Estimates from operation counts and a price list for 45 nm; nothing was measured on a chip. Control, clocks, leakage, "
    "communication between cores, DRAM, the encoder and the read-out behind the last layer are not in them."
)


class Energy(NamedTuple):
    """Where the energy of a layer goes (pJ)."""

    synapses: float
    neurons: float
    memory: float
    addressing: float

    @property
    def total(self) -> float:
        """All of it."""
        return sum(self)


def price(layer: LayerCounts, costs: Costs) -> Energy:
    """The energy of what a layer did, in pJ over all samples.

    ::

        synapses   = AC add + MAC (mul + add) + biases add
        neurons    = MAC (mul + add) + (AC + AC on spikes + comparisons) add
        memory     = sum over memories of accesses * access(size)      if the model prices memory
        addressing = additions add + MAC (mul + add)                   if the model prices addressing

    Example:
        >>> from spiketide.energy import LayerCounts, costs, price
        >>> layer = LayerCounts("0", "Dense", "synapse", effective=100.0)
        >>> price(layer, costs("horowitz-fp32")).total
        90.0
    """
    synapses = (layer.synaptic_ac + layer.bias) * costs.ac + layer.synaptic_mac * costs.mac
    events = layer.ac + layer.ac_on_spikes + layer.comparisons
    neurons = layer.mac * costs.mac + events * costs.ac
    word = costs.word
    bits = 1 / 8 if not layer.graded else word  # a delay line of spikes keeps a bit for each
    memory = (
        layer.weight_reads * costs.access(layer.words * word)
        + (layer.target_reads + layer.target_writes) * costs.access(layer.target_words * word)
        + (layer.state_reads + layer.state_writes) * costs.access(layer.state_words * word)
        + layer.input_reads * costs.access(layer.input_words * word)
        + layer.output_writes * costs.access(layer.output_words * word)
        + (layer.delay_reads + layer.delay_writes) * costs.access(layer.delay_words * bits)
    )
    addressing = layer.address_ac * costs.ac + layer.address_mac * costs.mac if costs.addressing else 0.0
    return Energy(synapses, neurons, memory, addressing)


def energy_per_sample(counts: Counts, costs: Costs) -> float:
    """Energy of an average sample (nJ)."""
    return _total(counts.layers.values(), costs) / max(1, counts.samples) * PICO_TO_NANO


def _total(layers: Iterable[LayerCounts], costs: Costs) -> float:
    return sum(price(layer, costs).total for layer in layers)


@dataclass(frozen=True)
class Baseline:
    """A classical network beside the measured one.

    Args:
        kind: ``"lstm"``, ``"gru"``, ``"rnn"``, or the name of another run.
        units: hidden units; ``None`` for another run.
        parameters: of the whole network.
        energy: of an average sample (nJ), every product of the input done, as the papers count.
        sparse_energy: the same, but input values that are zero are skipped and spikes at the input are added instead of
            multiplied, as the measured network does; ``None`` for another run, which is measured as it is.
        quality: what another run reached on validation data, by the metric of its recipe.
    """

    kind: str
    units: int | None
    parameters: int
    energy: float
    sparse_energy: float | None = None
    quality: float | None = None


def equal_size(counts: Counts, costs: Costs) -> list[Baseline]:
    """An LSTM, a GRU and a plain RNN with about as many parameters as the measured network, on the same input.

    One recurrent layer and a dense read-out at every step. Their cost does not hang on what the units do, so they are counted
    by formula and need not be trained; whether they would be as accurate is another question (``--against``).

    Args:
        counts: of the measured network: its inputs, outputs, steps and parameters.
        costs: the price model.

    Raises:
        ParameterError: a network without parameters.
    """
    found = []
    steps, density = counts.steps / max(1, counts.samples), _density(counts)
    for kind, layer in BASELINES.items():
        n = size_for(kind, counts.inputs, counts.parameters, n_out=counts.outputs)
        parameters = parameter_count(kind, counts.inputs, n, n_out=counts.outputs)
        rows = [_classical_row(kind, counts.inputs, n, steps), _readout_row(n, counts.outputs, steps)]
        energy = _total(rows, costs)
        skipped = steps * layer.gates * n * counts.inputs
        saved = skipped * (1 - density) * costs.mac
        if not counts.input_graded:
            saved += skipped * density * costs.mul
        if costs.sram:
            saved += skipped * (1 - density) * costs.access(rows[0].words * costs.word)
            saved += skipped * (1 - density) * costs.ac * costs.addressing
            saved += steps * counts.inputs * (1 - density) * costs.access(rows[0].input_words * costs.word)
        sparse = energy - saved
        found.append(Baseline(kind, n, parameters, energy * PICO_TO_NANO, sparse * PICO_TO_NANO))
    return found


def _density(counts: Counts) -> float:
    return counts.input_events / max(1.0, counts.steps * counts.inputs)


def _classical_row(kind: str, n_in: int, n: int, steps: float) -> LayerCounts:
    row = LayerCounts(kind, kind.upper(), "classical")
    for name, value in classical_step(kind, n_in, n).items():
        setattr(row, name, steps * value)
    layer = BASELINES[kind]
    row.words, row.state_words = parameter_count(kind, n_in, n), layer.kept * n
    row.target_words, row.output_words, row.input_words = layer.gates * n, n, n_in + n
    return row


def _readout_row(n: int, n_out: int, steps: float) -> LayerCounts:
    row = LayerCounts("readout", "Dense", "synapse", graded=True)
    row.events, row.effective, row.dense = steps * n, steps * n * n_out, steps * n * n_out
    row.outputs = row.bias = steps * n_out
    row.words, row.input_words, row.target_words = (n + 1) * n_out, n, n_out
    row.settle()
    return row


class BreakEven(NamedTuple):
    """The firing rate at which two networks cost the same, and what it means.

    ``rate`` is ``None`` where there is none: the spiking network costs more even when silent, or nothing in it hangs on spikes.
    """

    rate: float | None
    words: str


def break_even(counts: Counts, costs: Costs, energy: float) -> BreakEven:
    """The mean firing rate at which the measured network costs ``energy`` (nJ a sample).

    The energy of a network is ``fixed + rate * slope``: fixed is what happens whether or not a neuron spikes (updates,
    biases, the input), the slope what its spikes cause. All layers are taken to fire more or less in proportion.

    Args:
        counts: of a network with spiking layers.
        costs: the price model.
        energy: of the network to compare with, for an average sample (nJ).
    """
    if not counts.rate:
        return BreakEven(None, "no neuron spiked, so what a spike costs is not known")
    caused = _total((_caused(layer) for layer in counts.layers.values()), costs)
    slope = caused / max(1, counts.samples) * PICO_TO_NANO / counts.rate
    fixed = energy_per_sample(counts, costs) - slope * counts.rate
    if slope <= 0:
        return BreakEven(None, "nothing in this network hangs on its spikes")
    rate = (energy - fixed) / slope
    if rate < 0:
        return BreakEven(None, "this network costs more even if it never spikes")
    if rate > 1:
        return BreakEven(rate, f"above one spike per {counts.per}: this network costs less at any rate")
    return BreakEven(rate, f"spikes per {counts.per} at which both cost the same")


def _caused(layer: LayerCounts) -> LayerCounts:
    """The part of a layer's work that spikes of the network cause."""
    # all counts at 0, all sizes and kinds as they are
    counts = [item.name for item in fields(layer) if item.type == "float"]
    part: LayerCounts = replace(layer, **dict.fromkeys(counts, 0.0))  # type: ignore[arg-type]
    if layer.role == "synapse" and layer.driven:
        part.events, part.effective = layer.events, layer.effective
        part.settle()
    if layer.role == "pool" and layer.driven:
        part.ac, part.comparisons, part.input_reads = layer.ac, layer.comparisons, layer.input_reads
    if layer.spiking:
        part.ac_on_spikes, part.output_writes = layer.ac_on_spikes, layer.output_writes
    return part


# ---------------------------------------------------------------------------------------------------------------- output


def summary(counts: Counts, costs: Costs, baselines: list[Baseline]) -> dict[str, Any]:
    """Everything as plain numbers, for JSON: energies in nJ for an average sample."""
    share = PICO_TO_NANO / max(1, counts.samples)
    rows = counts.to_dict()
    for row, layer in zip(rows["layers"], counts.layers.values(), strict=True):
        parts = price(layer, costs)
        row["energy_nj"] = {name: value * share for name, value in parts._asdict().items()}
        row["energy_nj"]["total"] = parts.total * share
        row["rate"] = layer.rate if layer.spiking else None
        for name in ("synaptic_ac", "synaptic_mac", "accumulates", "multiply_accumulates", "traffic"):
            row[name] = getattr(layer, name) / max(1, counts.samples)
    beside = []
    for baseline in baselines:
        even = break_even(counts, costs, baseline.energy)
        sparse = baseline.sparse_energy
        fair = break_even(counts, costs, sparse) if sparse is not None else None
        beside.append(
            {
                "kind": baseline.kind,
                "units": baseline.units,
                "parameters": baseline.parameters,
                "quality": baseline.quality,
                "energy_nj": baseline.energy,
                "sparse_input_energy_nj": sparse,
                "break_even_rate": even.rate,
                "break_even_in_words": even.words,
                "sparse_input_break_even_rate": fair.rate if fair else None,
            }
        )
    return {
        "costs": {
            "name": costs.name,
            "about": costs.about,
            "mac_pj": costs.mac,
            "ac_pj": costs.ac,
            "sram_pj": [list(pair) for pair in costs.sram],
            "sources": dict(costs.sources),
        },
        "energy_nj": energy_per_sample(counts, costs),
        **rows,
        "baselines": beside,
        "caveat": CAVEAT,
    }


def _beside(found: dict[str, Any]) -> Any:
    """The networks beside the measured one; columns that would be empty are left out."""
    from rich.table import Table

    rows = found["baselines"]
    by_formula = any(row["units"] is not None for row in rows)
    skipping = any(row["sparse_input_energy_nj"] is not None for row in rows)
    reached = any(row["quality"] is not None for row in rows)
    sheet = Table(title="beside it", title_justify="left")
    sheet.add_column("network", overflow="fold")
    heads = [
        *(["units"] if by_formula else []),
        "parameters",
        *([found.get("metric") or "reached"] if reached else []),
    ]
    heads += [
        "nJ",
        "times this",
        *(["nJ, zeros of the input skipped"] if skipping else []),
        "break-even rate",
    ]
    for name in heads:
        sheet.add_column(name, justify="right")

    def add(kind: str, row: dict[str, Any], even: str) -> None:
        ratio = row["energy_nj"] / found["energy_nj"] if found["energy_nj"] else None
        cells = [kind]
        if by_formula:
            cells.append("" if row.get("units") is None else f"{row['units']}")
        cells.append(f"{row['parameters']:,}")
        if reached:
            cells.append("" if row.get("quality") is None else f"{row['quality']:.4f}")
        cells += [f"{row['energy_nj']:,.2f}", "" if ratio is None else f"{ratio:.2f}"]
        if skipping:
            sparse = row.get("sparse_input_energy_nj")
            cells.append("" if sparse is None else f"{sparse:,.2f}")
        sheet.add_row(*cells, even)

    add("this one", found, "")
    for row in rows:
        even = row["break_even_rate"]
        add(row["kind"], row, "none" if even is None else f"{even:.4f}" if even <= 1 else "> 1")
    return sheet


def table(found: dict[str, Any], *, width: int = 118) -> str:
    """A :func:`summary` as text for a terminal."""
    from rich.console import Console
    from rich.table import Table

    text = io.StringIO()
    console = Console(file=text, width=width, highlight=False, color_system=None, legacy_windows=False)
    priced = found["costs"]["sram_pj"] or None
    sheet = Table(title="operations of an average sample", title_justify="left")
    rate = f"spikes per {found['rate_per'].replace(' and', ',')}"
    for name in ("layer", "input", "AC", "MAC", "updates", rate, "words moved", "nJ"):
        sheet.add_column(name, justify="left" if name in ("layer", "input") else "right")
    for row in found["layers"]:
        kind = {"synapse": "graded" if row["graded"] else "spikes", "classical": "dense"}.get(row["role"], "")
        sheet.add_row(
            f"{row['name']} {row['kind']}",
            kind,
            f"{row['accumulates']:,.0f}",
            f"{row['multiply_accumulates']:,.0f}",
            f"{row['updates']:,.0f}" if row["updates"] else "",
            "" if row["rate"] is None else f"{row['rate']:.4f}",
            f"{row['traffic']:,.0f}",
            f"{row['energy_nj']['total']:,.2f}",
        )
    sums = {
        name: sum(row[name] for row in found["layers"])
        for name in ("accumulates", "multiply_accumulates", "updates", "traffic")
    }
    sheet.add_section()
    sheet.add_row(
        "together",
        "",
        f"{sums['accumulates']:,.0f}",
        f"{sums['multiply_accumulates']:,.0f}",
        f"{sums['updates']:,.0f}",
        f"{found['rate']:.4f}",
        f"{sums['traffic']:,.0f}",
        f"{found['energy_nj']:,.2f}",
    )
    console.print(sheet)
    if found["baselines"]:
        console.print(_beside(found))
    model = found["costs"]
    console.print(f"prices: {model['name']}: {model['about']}.")
    console.print(
        f"MAC {model['mac_pj']:.3g} pJ, AC {model['ac_pj']:.3g} pJ; sources: {'; '.join(sorted(set(model['sources'].values())))}."
    )
    if priced is None:
        console.print(
            "words moved are counted above and cost nothing in this model; --costs lemaire prices them."
        )
    if any(row["units"] for row in found["baselines"]):
        console.print(
            "The classical networks are of equal size, counted by formula and not trained: nothing is said about their accuracy."
        )
    if found["baselines"]:
        console.print(
            f"The break-even rate (spikes per {found['rate_per']}) is that at which the energies are equal by the same prices, "
            "all layers firing in proportion; it compares with the column nJ."
        )
    for row in found["baselines"]:
        if row["break_even_rate"] is None:
            console.print(f"no break-even rate with {row['kind']}: {row['break_even_in_words']}.")
    for name, why in found["uncounted"].items():
        console.print(f"not counted: {name}, {why}")
    console.print(found["caveat"])
    return text.getvalue().rstrip()
