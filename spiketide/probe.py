"""Look inside a forward: the outputs of every neuron, and their firing rates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .checkpointed import Checkpointed, recomputing
from .compose import Recurrent
from .errors import DataError, ShapeError
from .neurons.base import Neuron
from .shapes import check_lengths, silence_padding

SATURATED_RATE = 0.5
"""A neuron that fires in more than this share of the steps is called saturated."""


class Records(dict[str, Tensor]):
    """Outputs ``(T, B, *N)`` of the neurons of a model by name, in the order in which they ran.

    ``modules`` has the neuron of each name. A neuron that ran twice in one forward has a second entry
    ``name#2``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.modules: dict[str, nn.Module] = {}

    def spikes(self) -> dict[str, Tensor]:
        """The records of spiking neurons only: read-out integrators are left out."""
        return {name: y for name, y in self.items() if is_spiking(self.modules[name])}


def is_spiking(module: nn.Module) -> bool:
    """Whether a module is a neuron whose outputs are spikes (a read-out integrator's are not)."""
    return isinstance(module, Neuron) and module.emits_spikes


@contextmanager
def record(
    model: nn.Module, kinds: type[nn.Module] | tuple[type[nn.Module], ...] = Neuron
) -> Iterator[Records]:
    """Record the outputs of every neuron of a model in its last forward.

    The recorded tensors are those of the forward, with their graph, so that a penalty on them trains the
    model. A new forward of ``model`` replaces the records. The hooks are gone after the block, also after an
    error; the records stay. Of a :class:`spiketide.Checkpointed` layer the whole sequence is recorded, and its second run in
    the backward is not; what is recorded is kept whole in memory.

    Example:
        >>> import torch
        >>> from spiketide.compose import Sequential
        >>> from spiketide.neurons import LIF, LeakyIntegrator
        >>> from spiketide.probe import firing_rates, record
        >>> from spiketide.synapses import Dense
        >>> model = Sequential(Dense(4, 8), LIF(8), Dense(8, 2), LeakyIntegrator(2, tau_mem=20.0))
        >>> with record(model) as records:
        ...     y, state = model(torch.rand(10, 3, 4))
        >>> {name: tuple(out.shape) for name, out in records.items()}
        {'1': (10, 3, 8), '3': (10, 3, 2)}
        >>> list(firing_rates(records))
        ['1']

    Args:
        model: Any module; names are those of ``model.named_modules()``, and the class name for ``model``
            itself.
        kinds: Record the modules of these classes. A model that has none gives empty records.
    """
    names = {m: name or type(m).__name__ for name, m in model.named_modules() if isinstance(m, kinds)}
    records = Records()

    def begin(module: nn.Module, args: Any) -> None:
        if not recomputing():
            records.clear()
            records.modules.clear()

    def add(module: nn.Module, output: Tensor) -> None:
        name = key = names[module]
        times = 1
        while key in records:
            times += 1
            key = f"{name}#{times}"
        records[key] = output
        records.modules[key] = module

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        if not recomputing():  # the second run of a chunk in the backward adds nothing
            add(module, output[0] if isinstance(output, tuple) else output)

    keep.outputs_only = True  # type: ignore[attr-defined]  # see spiketide.compose

    # A recurrence through a synapse with a state runs its neuron step by step: its own output is recorded
    # for the whole sequence instead.
    before: dict[nn.Module, set[str]] = {}

    def enter(module: nn.Module, args: Any) -> None:
        if not recomputing():
            before[module] = set(records)

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        if recomputing():
            return
        neuron = module.get_submodule("neuron")
        for key in [key for key in records if key not in before[module] and records.modules[key] is neuron]:
            del records[key], records.modules[key]
        keep(neuron, args, output)

    # A checkpointed layer runs chunk by chunk: what its chunks gave is put together, use by use of a module.
    chunks: dict[nn.Module, list[int]] = {}

    def enter_whole(module: nn.Module, args: Any) -> None:
        if not recomputing():
            chunks[module] = []

    def enter_chunk(module: Checkpointed) -> Any:
        def mark(inner: nn.Module, args: Any) -> None:
            if not recomputing() and module in chunks:
                chunks[module].append(len(records))

        return mark

    def leave_whole(module: nn.Module, args: Any, output: Any) -> None:
        if recomputing():
            return
        marks, keys = chunks.pop(module), list(records)
        parts = [keys[a:b] for a, b in zip(marks, [*marks[1:], len(keys)], strict=True)]
        ran = [[records.modules[key] for key in part] for part in parts]
        if len(parts) < 2 or any(modules != ran[0] for modules in ran):
            return
        taken = [[records.pop(key) for key in part] for part in parts]
        for key in keys[marks[0] :]:
            del records.modules[key]
        for inner, *outputs in zip(ran[0], *taken, strict=True):
            add(inner, torch.cat(outputs))

    handles = [model.register_forward_pre_hook(begin)]
    try:
        for module in model.modules():
            if isinstance(module, Recurrent) and module.neuron in names:
                handles.append(module.register_forward_pre_hook(enter))
                handles.append(module.register_forward_hook(leave))
            if isinstance(module, Checkpointed):
                handles.append(module.register_forward_pre_hook(enter_whole))
                handles.append(module.layer.register_forward_pre_hook(enter_chunk(module)))
                handles.append(module.register_forward_hook(leave_whole))
        handles += [module.register_forward_hook(keep) for module in names]
        yield records
    finally:
        for handle in handles:
            handle.remove()


def valid_steps(y: Tensor, lengths: Tensor | None = None) -> int | Tensor:
    """Valid steps of all samples together; with lengths a tensor ``()``, so that nothing waits for a GPU.

    Shapes:
        ``y``: ``(T, B, *N)``; ``lengths``: ``(B,)``.
    """
    return y.shape[0] * y.shape[1] if lengths is None else lengths.sum()


def mean_rates(
    spikes: Mapping[str, Tensor], lengths: Mapping[str, Tensor | None] | Tensor | None = None
) -> tuple[dict[str, Tensor], Tensor]:
    """Spikes per neuron and valid step, of each layer and over all neurons together, for a loop that trains.

    As :func:`firing_rates`, but nothing waits for a GPU and nothing is refused: no valid step, or no layer, is a
    rate of 0. Steps past a sample's end must be silent, as layers leave them.

    Example:
        >>> import torch
        >>> from spiketide.probe import mean_rates
        >>> rates, rate = mean_rates({"a": torch.ones(4, 3, 1), "b": torch.zeros(4, 3, 3)})
        >>> rates["a"].item(), rates["b"].item(), rate.item()
        (1.0, 0.0, 0.25)

    Shapes:
        ``spikes[layer]``: ``(T, B, *N)``; ``lengths``: ``(B,)``, for all layers or one for each; every rate: ``()``.
    """
    if not spikes:
        return {}, torch.zeros(())
    counts = {name: s.sum() for name, s in spikes.items()}
    # places a neuron could have fired in
    places: dict[str, Any] = {}
    for name, s in spikes.items():
        steps = valid_steps(s, lengths[name] if isinstance(lengths, Mapping) else lengths)
        places[name] = (steps.clamp(min=1) if isinstance(steps, Tensor) else max(1, steps)) * s.shape[
            2:
        ].numel()
    rates = {name: count / places[name] for name, count in counts.items()}
    return rates, torch.stack(list(counts.values())).sum() / sum(places.values())


def neuron_rates(spikes: Tensor, lengths: Tensor | None = None) -> Tensor:
    """The firing rate of each neuron in spikes per step: the mean over all valid steps of all samples.

    Example:
        >>> import torch
        >>> from spiketide.probe import neuron_rates
        >>> s = torch.tensor([[[1.0], [1.0]], [[0.0], [1.0]]])
        >>> neuron_rates(s).item(), neuron_rates(s, torch.tensor([2, 0])).item()
        (0.75, 0.5)

    Shapes:
        ``spikes``: ``(T, B, *N)``; ``lengths``: ``(B,)``; result: ``(*N)``.

    Raises:
        ShapeError: lengths that do not fit.
        DataError: no valid step at all.
    """
    valid = check_valid(spikes, lengths)
    return spikes.mean((0, 1)) if lengths is None else silence_padding(spikes, lengths).sum((0, 1)) / valid


def check_valid(spikes: Tensor, lengths: Tensor | None) -> int:
    """The number of valid steps of all samples, of which a rate can be taken.

    Raises:
        ShapeError: lengths that do not fit.
        DataError: no valid step at all.
    """
    if spikes.dim() < 2:
        raise ShapeError(f"firing rates expected spikes (T, B, *N), got {tuple(spikes.shape)}.")
    if lengths is not None:
        check_lengths("firing rates", spikes, lengths)
    valid = int(valid_steps(spikes, lengths))
    if valid == 0 and lengths is None:
        raise DataError(f"firing rates expected at least one step, got spikes {tuple(spikes.shape)}.")
    if valid == 0:
        raise DataError("firing rates expected at least one valid step, got lengths that are all 0.")
    return valid


class Activity(NamedTuple):
    """How a layer fired: mean rate (spikes per neuron and step), each neuron's ``(*N)``, two shares."""

    rate: float
    per_neuron: Tensor
    silent: float
    saturated: float


def activity(records: Mapping[str, Tensor], lengths: Tensor | None = None) -> dict[str, Activity]:
    """Rates of each recorded layer, with the share of neurons that never fired and that fired nearly always.

    Of :class:`Records` only the spiking layers count; of a plain dictionary, all. A neuron is silent when it
    fired at no valid step of any sample, and saturated when it fired in more than ``SATURATED_RATE`` of them.

    Example:
        >>> import torch
        >>> from spiketide.probe import activity
        >>> s = torch.tensor([1.0, 0.0, 0.0, 0.0]).expand(5, 2, 4)
        >>> layer = activity({"hidden": s})["hidden"]
        >>> layer.rate, layer.silent, layer.saturated
        (0.25, 0.75, 0.25)
    """
    spikes = records.spikes() if isinstance(records, Records) else records
    result = {}
    for name, s in spikes.items():
        with torch.no_grad():
            rates = neuron_rates(s.float(), lengths)
            result[name] = Activity(
                rates.mean().item(),
                rates,
                (rates == 0).float().mean().item(),
                (rates > SATURATED_RATE).float().mean().item(),
            )
    return result


def firing_rates(records: Mapping[str, Tensor], lengths: Tensor | None = None) -> dict[str, float]:
    """Mean spikes per neuron and valid step of each spiking layer.

    Example:
        >>> import torch
        >>> from spiketide.probe import firing_rates
        >>> firing_rates({"hidden": torch.tensor([1.0, 0.0]).expand(4, 3, 2)})
        {'hidden': 0.5}
    """
    return {name: layer.rate for name, layer in activity(records, lengths).items()}
