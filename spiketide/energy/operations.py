"""How many synaptic operations a network did: what event-driven hardware does, against the same network done densely."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..checkpointed import recomputing
from ..compose import Recurrent
from ..lateral import Lateral
from ..layer import parameter_roles
from ..shapes import silence_padding
from ..synapses.base import Synapse
from ..types import State, map_state


@dataclass
class Operations:
    """Counts of additions at synapses.

    ``sparse[name]`` counts, for every nonzero input of a synapse, the connections it has: what event-driven hardware adds.
    ``dense[name]`` counts every connection at every valid step, whatever the input. Biases are counted in neither.
    """

    samples: int = 0
    sparse: dict[str, float] = field(default_factory=dict)
    dense: dict[str, float] = field(default_factory=dict)

    @property
    def sparse_per_sample(self) -> float:
        """Event-driven operations of an average sample."""
        return sum(self.sparse.values()) / max(1, self.samples)

    @property
    def dense_per_sample(self) -> float:
        """Dense operations of an average sample."""
        return sum(self.dense.values()) / max(1, self.samples)


def connections(
    synapse: Synapse, x: Tensor, lengths: Tensor | None = None, state: State | None = None
) -> float:
    """Connections that the nonzero entries of ``x`` use, counted by the synapse itself with all weights set to one.

    Exact for every synapse that is linear in its input, whatever its geometry. With ``state``, what is still on its way in it
    counts where it arrives.

    Example:
        >>> import torch
        >>> from spiketide.synapses import Dense
        >>> from spiketide.energy.operations import connections
        >>> x = torch.zeros(5, 1, 3)
        >>> x[2, 0, 1] = 0.7
        >>> connections(Dense(3, 4), x)
        4.0
    """
    return connections_and_end(synapse, x, lengths, state)[0]


def connections_and_end(
    synapse: Synapse, x: Tensor, lengths: Tensor | None = None, state: State | None = None
) -> tuple[float, State]:
    """The same, and the state after it: what is on its way then."""
    roles = parameter_roles(synapse)
    ones = {
        name: torch.zeros_like(value) if name.split(".")[-1] == "bias" else torch.ones_like(value)
        for name, value in synapse.named_parameters()
        if roles[value] != "delays"  # when an input arrives is no weight
    }
    # what has no features is no input on its way: the steps since the last output, of a stride
    begin = map_state(lambda leaf: (leaf != 0).to(leaf.dtype) if leaf.dim() > 1 else leaf, state)
    counts, end = functional_call(synapse, ones, ((x != 0).to(x.dtype), begin), {"lengths": lengths})
    return float(counts.sum(dtype=torch.float64)), end


@contextmanager
def aside(module: nn.Module) -> Iterator[None]:
    """Run a layer once more to look at it: without gradients, and without a trace in random numbers or a checkpoint's books."""
    devices = {p.device for p in module.parameters() if p.device.type == "cuda"}
    # kernels save tensors without gradients too; inside a checkpoint they must not be counted among those of the network
    unseen = torch.autograd.graph.saved_tensors_hooks(_same, _same)
    with torch.no_grad(), torch.random.fork_rng(list(devices)), unseen:
        yield


def _same(x: Tensor) -> Tensor:
    return x


def state_of(args: Any, kwargs: Any) -> Any:
    """The state in the arguments of a layer's forward; ``None`` without one."""
    return args[1] if len(args) > 1 else kwargs.get("state")


def lateral_connections(
    layer: Lateral, y: Tensor, lengths: Tensor | None = None, state: State | None = None
) -> tuple[float, float]:
    """Connections between the channels of a place that the spikes ``y (T, B, C, *S)`` of a layer use, and all that there are.

    Each spike reaches all ``C`` channels of its place, a step later, where its sample still has one. Those of the step before
    ``y`` are in the state that it began with.

    Args:
        layer: the one whose output ``y`` is.
        y: its output.
        lengths: of its input.
        state: that it began with.
    """
    lengths = layer.lengths_after(lengths)
    places = y.shape[0] * y.shape[1] if lengths is None else int(lengths.sum())
    dense = float(places * y.shape[2:].numel() * y.shape[2])
    if not y.shape[0]:
        return 0.0, dense
    spikes = silence_padding(y.detach(), lengths)
    last = y.shape[0] - 1 if lengths is None else (lengths.to(y.device) - 1).clamp(min=0).long()
    late = spikes[last, torch.arange(y.shape[1], device=y.device)]
    used = float(spikes.sum(dtype=torch.float64) - late.sum(dtype=torch.float64)) * y.shape[2]
    if state is not None and state[1] is not None:
        before = state[1][-1].detach()
        # it arrives where there is a first step
        there = (before != 0).flatten(1).sum(1, dtype=torch.float64)
        used += float(there.sum() if lengths is None else there[lengths.to(y.device) > 0].sum()) * y.shape[2]
    return used, dense


@contextmanager
def count_operations(network: nn.Module) -> Iterator[Operations]:
    """Count the synaptic operations of every forward inside the block; ``samples`` is for the caller to set.

    The feedback of a :class:`spiketide.compose.Recurrent` and the connections of a :class:`spiketide.Lateral` are counted from
    their spikes, one step later. What a :class:`spiketide.Checkpointed` layer computes anew in the backward is not counted again.
    """
    total = Operations()
    handles = []
    counting = False  # counting calls the synapse itself, and that call must not be counted

    def add(name: str, synapse: Synapse, x: Tensor, lengths: Tensor | None, state: Any) -> None:
        nonlocal counting
        if counting or recomputing():
            return
        counting = True
        try:
            with aside(synapse):
                total.sparse[name] = total.sparse.get(name, 0.0) + connections(
                    synapse, x, lengths, state or None
                )
                total.dense[name] = total.dense.get(name, 0.0) + connections(
                    synapse, torch.ones_like(x), lengths
                )
        finally:
            counting = False

    def forward_hook(name: str) -> Any:
        def hook(module: Any, args: Any, kwargs: Any, output: Any) -> None:
            add(name, module, args[0], kwargs.get("lengths"), state_of(args, kwargs))

        return hook

    def feedback_hook(name: str) -> Any:
        def hook(module: Any, args: Any, kwargs: Any, output: Any) -> None:
            spikes, state = output[0], state_of(args, kwargs)
            first = torch.zeros_like(spikes[:1]) if state is None else state[0][-1].detach().unsqueeze(0)
            fed_back = torch.cat([first.to(spikes.dtype), spikes[:-1]])
            add(name, module.synapse, fed_back, kwargs.get("lengths"), None if state is None else state[1])

        return hook

    def lateral_hook(name: str) -> Any:
        def hook(module: Any, args: Any, kwargs: Any, output: Any) -> None:
            if counting or recomputing():
                return
            used, dense = lateral_connections(
                module, output[0], kwargs.get("lengths"), state_of(args, kwargs)
            )
            total.sparse[name] = total.sparse.get(name, 0.0) + used
            total.dense[name] = total.dense.get(name, 0.0) + dense

        return hook

    inside: set[nn.Module] = set()
    for name, module in network.named_modules():
        if isinstance(module, Lateral):
            handles.append(module.register_forward_hook(lateral_hook(f"{name}.lateral"), with_kwargs=True))
        if isinstance(module, Recurrent):
            inside |= set(module.synapse.modules())
            handles.append(module.register_forward_hook(feedback_hook(f"{name}.synapse"), with_kwargs=True))
        elif isinstance(module, Synapse) and module not in inside:
            inside |= set(module.modules())
            handles.append(module.register_forward_hook(forward_hook(name), with_kwargs=True))
    try:
        yield total
    finally:
        for handle in handles:
            handle.remove()
