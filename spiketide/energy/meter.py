"""Operations and memory traffic of a network, counted layer by layer while it works on real data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..baselines import _Classical
from ..checkpointed import Checkpointed, recomputing
from ..compose import Bidirectional, Framewise, Recurrent, Sequential
from ..errors import EngineError, ParameterError
from ..lateral import Lateral, Normalized
from ..layer import Layer, parameter_roles
from ..neurons.base import Neuron
from ..norms import BatchNorm, Dropout
from ..shapes import silence_padding
from ..synapses.base import Synapse
from ..synapses.delay import _ChannelDelay, _Delayed
from ..types import State, leaves, map_state
from .formulas import paper_counts
from .operations import aside, connections, connections_and_end, lateral_connections, state_of
from .step import StepOperations, step_operations

FREE_MODULES = (nn.Flatten, nn.Unflatten, nn.Identity)
LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass
class LayerCounts:
    """What one layer did, summed over all samples; ``kind`` says which of the fields mean something.

    Args:
        name: of the module; the feedback of a recurrence is ``<recurrence>.synapse``.
        kind: the class.
        role: ``"synapse"``, ``"neuron"``, ``"norm"``, ``"pool"`` or ``"classical"``.
        driven: the input comes from spikes of the network, not from outside (the encoder, the data).
        graded: the input was something else than -1, 0 and 1 at least once.
        events: nonzero values that came in.
        effective: connections that these used.
        dense: all connections at every valid step.
        bias: additions of biases.
        outputs: values that went out, at valid steps, zeros included.
        updates: neurons times steps.
        spikes: nonzero outputs of a spiking neuron.
        mac, ac: multiply-accumulates and accumulates of neurons, norms and classical layers.
        ac_on_spikes: accumulates of neurons that spikes cause.
        comparisons, functions: of neurons; functions (an exponential, a division) are not priced.
        weight_reads: words read from the weights: one for each connection used, and biases.
        target_reads, target_writes: words of membranes (or sums) that arriving inputs change: an accumulate reads one and
            writes it back, a row of multiply-accumulates ends in one write.
        state_reads, state_writes: words of state in updates; constants of single neurons are read too.
        input_reads, output_writes: events and values between layers; of spikes, those that are.
        delay_reads, delay_writes: values that go into a delay line, and values that arrive out of it.
        address_ac, address_mac: additions and multiplications that find an address (priced by Lemaire et al. only).
        words: words of the weights; ``state_words`` of the states, ``target_words`` of what arriving inputs change,
            ``input_words``, ``output_words`` of a step, ``delay_words`` of a delay line.
    """

    name: str
    kind: str
    role: str
    driven: bool = False
    graded: bool = False
    events: float = 0.0
    effective: float = 0.0
    dense: float = 0.0
    bias: float = 0.0
    outputs: float = 0.0
    updates: float = 0.0
    spikes: float = 0.0
    mac: float = 0.0
    ac: float = 0.0
    ac_on_spikes: float = 0.0
    comparisons: float = 0.0
    functions: float = 0.0
    weight_reads: float = 0.0
    target_reads: float = 0.0
    target_writes: float = 0.0
    state_reads: float = 0.0
    state_writes: float = 0.0
    input_reads: float = 0.0
    output_writes: float = 0.0
    delay_reads: float = 0.0
    delay_writes: float = 0.0
    address_ac: float = 0.0
    address_mac: float = 0.0
    words: int = 0
    state_words: int = 0
    target_words: int = 0
    input_words: int = 0
    output_words: int = 0
    delay_words: int = 0
    spiking: bool = False
    shift: bool = False
    spatial: bool = False

    @property
    def synaptic_ac(self) -> float:
        """Accumulates at synapses: connections that spikes (-1, 0, 1) used."""
        return 0.0 if self.graded or self.shift else self.effective

    @property
    def synaptic_mac(self) -> float:
        """Multiply-accumulates at synapses: connections that nonzero graded values used."""
        return self.effective if self.graded and not self.shift else 0.0

    @property
    def accumulates(self) -> float:
        """All additions: synapses, biases, neurons."""
        return self.synaptic_ac + self.bias + self.ac + self.ac_on_spikes

    @property
    def multiply_accumulates(self) -> float:
        """All multiplications, with the additions behind them."""
        return self.synaptic_mac + self.mac

    @property
    def traffic(self) -> float:
        """Words read and written, of whatever memory."""
        names = ("weight_reads", "target_reads", "target_writes", "state_reads", "state_writes")
        more = ("input_reads", "output_writes", "delay_reads", "delay_writes")
        return float(sum(getattr(self, name) for name in (*names, *more)))

    @property
    def rate(self) -> float:
        """Spikes per neuron and step."""
        return self.spikes / self.updates if self.spiking and self.updates else 0.0

    def settle(self) -> None:
        """Fill in the traffic of a synapse, which hangs on whether its input was graded."""
        if self.role != "synapse":
            return
        if self.delay_words:
            self.delay_writes, self.delay_reads = self.events, self.effective
        if self.shift:
            self.input_reads, self.output_writes = self.events, self.effective
            return
        self.input_reads = self.events
        self.weight_reads = self.effective + self.bias
        self.address_ac = self.effective
        if self.graded:
            self.target_reads, self.target_writes, self.address_mac = 0.0, self.outputs, 0.0
        else:
            # every event reads, changes and writes what it meets; so does the bias
            self.target_reads = self.target_writes = self.effective + self.bias
            # a convolution computes where an event's patch begins
            self.address_mac = 2.0 * self.events if self.spatial else 0.0


@dataclass
class Counts:
    """What a network did on some samples; ``layers`` in the order in which they ran first."""

    layers: dict[str, LayerCounts] = field(default_factory=dict)
    samples: int = 0
    """Sequences that were begun. A call with a state handed over goes on with those of the calls before it."""
    steps: float = 0.0
    """Valid steps of the network's input, over all samples."""
    inputs: int = 0
    """Values of one step of the input."""
    outputs: int = 0
    """Values of one step of the output."""
    input_events: float = 0.0
    """Nonzero values of the input at valid steps."""
    input_graded: bool = False
    parameters: int = 0
    uncounted: dict[str, str] = field(default_factory=dict)
    """Modules whose work is in no count, and why."""
    per: str = "neuron and step"
    """What a rate counts spikes by."""

    def total(self, what: str) -> float:
        """A field or property of :class:`LayerCounts`, over all layers, of an average sample."""
        return sum(float(getattr(layer, what)) for layer in self.layers.values()) / max(1, self.samples)

    @property
    def rate(self) -> float:
        """Spikes per neuron and step, over all spiking neurons."""
        spiking = [layer for layer in self.layers.values() if layer.spiking]
        return sum(layer.spikes for layer in spiking) / max(1.0, sum(layer.updates for layer in spiking))

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers: of each layer every count of an average sample."""
        words = {"words", "state_words", "target_words", "input_words", "output_words", "delay_words"}
        rows = []
        for layer in self.layers.values():
            row: dict[str, Any] = {}
            for item in fields(layer):
                value = getattr(layer, item.name)
                is_count = isinstance(value, float) and item.name not in words
                row[item.name] = value / max(1, self.samples) if is_count else value
            rows.append(row)
        return {
            "samples": self.samples,
            "steps": self.steps / max(1, self.samples),
            "inputs": self.inputs,
            "outputs": self.outputs,
            "input_density": self.input_events / max(1.0, self.steps * self.inputs),
            "input_graded": self.input_graded,
            "parameters": self.parameters,
            "rate": self.rate,
            "rate_per": self.per,
            "layers": rows,
            "uncounted": dict(self.uncounted),
        }


@contextmanager
def metering(network: nn.Module, *, fold: bool = True) -> Iterator[Counts]:
    """Count what every layer of a network does in each forward inside the block.

    Counted are effective operations: connections whose input is not zero. Whether that input is spikes (values -1, 0, 1:
    accumulates) or graded (multiply-accumulates) is looked at, for each synapse over all samples. Steps past a sample's end count
    nowhere. The network should be in evaluation mode, in which delays are whole and norms do not depend on the batch. The memory
    traffic is filled in when the block ends.

    A sample is a sequence that begins from a fresh state: no state given, or the zeros of ``initial_state``. A call with a state
    handed over goes on with the samples of the calls before it. So a sequence fed in chunks, or step by step, is one sample of
    all its steps, with the counts of the sequence fed at once. Where no call of the block has begun any, the first one counts
    its own. In training, what a :class:`spiketide.Checkpointed` layer computes anew in the backward is not counted again.

    Example:
        >>> import torch
        >>> from spiketide import LIF, Dense, Sequential
        >>> from spiketide.energy import metering
        >>> network = Sequential(Dense(3, 4, bias=False), LIF(4))
        >>> x = torch.zeros(5, 1, 3)
        >>> x[2, 0, 1] = 1.0
        >>> with metering(network) as counts:
        ...     y, state = network(x)
        >>> counts.layers["0"].synaptic_ac, counts.layers["0"].dense, counts.layers["1"].updates
        (4.0, 60.0, 20.0)

    Args:
        network: its layers; a ``Recurrent`` gives two, its neuron and its feedback.
        fold: factors that the weights in front of a neuron can take exactly, ``(1 - decay) x`` and batch norms, cost nothing.
            False counts them as they are written.

    Raises:
        ParameterError: something that is not a layer.

    Reference: effective and dense operations as NeuroBench defines them (Yik et al. 2025), but for recurrences and delays,
        which it does not see; biases are counted apart. Memory traffic as Lemaire et al. 2022 count it: one read for each
        weight used, one read and one write of the membrane for each spike that arrives. Ours: updates read and write every
        state variable at every step; delay lines write an event once and read it once for each connection on which it arrives.
    """
    if not isinstance(network, Layer):
        raise ParameterError(
            f"metering expected a layer, spiketide.Sequential for example, got {type(network).__name__}."
        )
    meter = _Meter(network, fold)
    with ExitStack() as stack:
        for handle in meter.attach():
            stack.callback(handle.remove)
        yield meter.counts
        meter.finish()


class _Meter:
    """The hooks and what they write."""

    def __init__(self, network: nn.Module, fold: bool) -> None:
        self.network, self.fold = network, fold
        self.counts = Counts(parameters=sum(p.numel() for p in network.parameters()))
        self.names = {module: name or type(module).__name__ for name, module in network.named_modules()}
        self.foldable = _foldable(network) if fold else {}
        self.silent = 0  # inside a recurrence, or inside our own calls: nothing is counted
        self.seen = False  # whether a spiking layer ran in this forward
        self.before: dict[nn.Module, bool] = {}
        self.fresh = True  # whether this forward begins its samples
        self.handed: State = ()  # what the last forward handed on
        self.lines: dict[
            nn.Module, State
        ] = {}  # of synapses with a memory: what would be on its way if every input were there
        self.steps: dict[nn.Module, StepOperations] = {}
        self.dense_of_one: dict[tuple[nn.Module, tuple[int, ...]], float] = {}

    # ------------------------------------------------------------------------------------------------------- hooks

    def attach(self) -> Iterator[Any]:
        """Put hooks on every layer that counts."""
        yield self.network.register_forward_pre_hook(self._begin, with_kwargs=True, prepend=True)
        inside: set[nn.Module] = set()
        for module in self.network.modules():
            if module in inside:
                continue
            hook: Callable[..., None] | None = None
            if isinstance(module, Checkpointed):
                yield module.register_forward_pre_hook(self._whole)
                yield module.layer.register_forward_pre_hook(self._chunk_of(module), prepend=True)
            if isinstance(module, Recurrent):
                yield module.register_forward_pre_hook(self._enter)
                hook = self._recurrent
            elif isinstance(module, Lateral):
                hook = self._lateral
            elif isinstance(module, Synapse):
                inside |= set(module.modules())
                hook = self._synapse
            elif isinstance(module, Neuron):
                hook = self._neuron
            elif isinstance(module, BatchNorm):
                hook = self._norm
            elif isinstance(module, _Classical):
                inside |= set(module.modules())
                hook = self._classical
            elif isinstance(module, Framewise):
                inside |= set(module.modules())
                hook = self._framewise
            elif isinstance(module, Bidirectional):
                yield module.ahead.register_forward_pre_hook(self._fork)
                yield module.back.register_forward_pre_hook(self._join)
            elif not isinstance(module, (Sequential, Dropout, Normalized)) and isinstance(module, Layer):
                weights = any(True for _ in module.parameters(recurse=False))
                if weights:
                    self._leave_out(module, "a layer of its own kind; its parameters are in no count")
            if hook is not None:
                yield module.register_forward_hook(hook, with_kwargs=True)
        yield self.network.register_forward_hook(self._end, with_kwargs=True)

    @property
    def away(self) -> bool:
        """Whether nothing is to be counted now."""
        return bool(self.silent) or recomputing()

    def _begin(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self.away:
            return
        self.seen = False
        self.fresh = self._is_fresh(state_of(args, kwargs))
        if self.fresh:
            self.lines.clear()

    def _is_fresh(self, state: Any) -> bool:
        """Whether samples begin with this state: none, or zeros that no call has handed on."""
        # a layer that has run leaves no gap
        if state is None or any(leaf is None for leaf in leaves(state)):
            return True
        given = _tensors(state)
        kept = {leaf.untyped_storage().data_ptr() for leaf in _tensors(self.handed) if leaf.numel()}
        if not given or any(leaf.untyped_storage().data_ptr() in kept for leaf in given if leaf.numel()):
            return False
        return not any(bool((leaf != 0).any()) for leaf in given)

    def _end(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if self.away:
            return
        x, lengths = args[0], kwargs.get("lengths")
        if self.fresh or not self.counts.samples:
            self.counts.samples += x.shape[1]
        self.handed = map_state(lambda leaf: leaf.detach(), output[1])
        x = silence_padding(x.detach(), lengths)
        self.counts.inputs = x.shape[2:].numel()
        self.counts.outputs = output[0].shape[2:].numel()
        self.counts.steps += _valid(x, lengths)
        self.counts.input_events += float((x != 0).sum())
        self.counts.input_graded |= _graded(x)

    def _enter(self, module: nn.Module, args: Any) -> None:
        # the second run of a chunk may end before this layer does
        if not recomputing():
            self.silent += 1

    def _whole(self, module: nn.Module, args: Any) -> None:
        if not self.away:
            self.before[module] = self.seen

    def _chunk_of(self, whole: nn.Module) -> Callable[..., None]:
        """Every chunk begins with what the layers in front of them all have seen."""

        def hook(module: nn.Module, args: Any) -> None:
            if not self.away:
                self.seen = self.before.get(whole, self.seen)

        return hook

    def _fork(self, module: nn.Module, args: Any) -> None:
        if self.away:
            return
        for parent in self.network.modules():
            if isinstance(parent, Bidirectional) and parent.ahead is module:
                self.before[parent.back] = self.seen

    def _join(self, module: nn.Module, args: Any) -> None:
        if not self.away:
            self.seen = self.before.get(module, self.seen)

    def _recurrent(self, module: Any, args: Any, kwargs: Any, output: Any) -> None:
        if recomputing():
            return
        self.silent -= 1
        if self.silent:
            return
        x, lengths = args[0], kwargs.get("lengths")
        state = state_of(args, kwargs)
        y = output[0].detach()
        self._neuron(module.neuron, (x,), {"lengths": lengths}, output, fold_of=module)
        # What came back is y one step later; the synapse is called on it as a layer, whose own hooks count it.
        first = torch.zeros_like(y[:1]) if state is None else state[0][-1].detach().unsqueeze(0).to(y.dtype)
        fed_back = torch.cat([first, y[:-1]])
        with aside(module.synapse):
            module.synapse(fed_back, None if state is None else state[1] or None, lengths=lengths)

    def _lateral(self, module: Any, args: Any, kwargs: Any, output: Any) -> None:
        """The connections between the channels of a place; the synapse and the neurons inside have hooks of their own."""
        if self.away:
            return
        y, channels = output[0].detach(), module.neuron.shape[0]
        name = f"{self.names[module]}.lateral"
        row = self.counts.layers.setdefault(name, LayerCounts(name, "Lateral", "synapse"))
        used, dense = lateral_connections(module, y, kwargs.get("lengths"), state_of(args, kwargs))
        row.effective += used
        row.dense += dense
        self._from_outside(row, y, y)
        # the matrix of a place, even where it follows from the synapse's weights: hardware keeps it
        row.words = channels * channels

    def _row(self, module: nn.Module, role: str, kind: str | None = None) -> LayerCounts:
        name = self.names[module]
        made = LayerCounts(name, kind or type(module).__name__, role)
        return self.counts.layers.setdefault(name, made)

    def _leave_out(self, module: nn.Module, why: str) -> None:
        self.counts.uncounted[self.names[module]] = f"{type(module).__name__}: {why}"

    def _synapse(self, module: Any, args: Any, kwargs: Any, output: Any) -> None:
        if self.away:
            return
        x, lengths = args[0].detach(), kwargs.get("lengths")
        state = state_of(args, kwargs)
        y = output[0]
        row = self._row(module, "synapse")
        x = silence_padding(x, lengths)
        self.silent += 1  # counting calls the synapse itself
        try:
            with aside(module):
                row.effective += connections(module, x, lengths, state or None)
                if module.mixes_steps:
                    row.dense += self._dense_in_time(module, x, lengths, state or None)
                else:
                    row.dense += self._dense(module, x) * _valid(x, lengths)
        finally:
            self.silent -= 1
        after = module.lengths_after(lengths)
        row.outputs += _valid(y, after) * y.shape[2:].numel()
        row.bias += _valid(y, after) * y.shape[2:].numel() if getattr(module, "bias", None) is not None else 0
        if isinstance(module, _Delayed):
            binary_bits = x.shape[2:].numel() * module.delays.max_delay
            row.delay_words = max(row.delay_words, binary_bits)
            row.shift = isinstance(module, _ChannelDelay)
        self._from_outside(row, x, y)
        # delays and masks are no weights
        roles = parameter_roles(module)
        row.words = sum(p.numel() for p in module.parameters() if roles[p] != "delays")
        row.spatial = x.dim() > 3

    def _from_outside(self, row: LayerCounts, x: Tensor, y: Tensor) -> None:
        """What every synapse notes of its input."""
        row.driven |= self.seen
        row.graded |= _graded(x)
        row.events += float((x != 0).sum())
        row.input_words, row.target_words = x.shape[2:].numel(), y.shape[2:].numel()

    def _dense(self, module: nn.Module, x: Tensor) -> float:
        """All connections of one step."""
        key = (module, tuple(x.shape[2:]))
        if key not in self.dense_of_one:
            self.dense_of_one[key] = connections(module, x.new_ones(1, 1, *x.shape[2:]))  # type: ignore[arg-type]
        return self.dense_of_one[key]

    def _dense_in_time(self, module: Any, x: Tensor, lengths: Tensor | None, state: State | None) -> float:
        """All connections of a synapse with a memory, with those of earlier steps whose inputs arrive now."""
        begin: Any = None
        if state is not None:
            begin = self.lines.get(module)
            if begin is not None and [leaf.shape for leaf in _tensors(begin)] != [
                leaf.shape for leaf in _tensors(state)
            ]:
                begin = None
            if begin is None and not self.fresh:
                begin = map_state(lambda leaf: torch.ones_like(leaf) if leaf.dim() > 1 else leaf, state)
        dense, self.lines[module] = connections_and_end(module, torch.ones_like(x), lengths, begin)
        return dense

    def _neuron(
        self, module: Any, args: Any, kwargs: Any, output: Any, fold_of: nn.Module | None = None
    ) -> None:
        if self.away:
            return
        y, lengths = output[0].detach(), kwargs.get("lengths")
        row = self._row(module, "neuron")
        row.spiking = module.emits_spikes
        updates = _valid(y, lengths) * y.shape[2:].numel()
        spikes = float((silence_padding(y, lengths) != 0).sum())
        row.updates += updates
        row.outputs += updates
        row.spikes += spikes if row.spiking else 0.0
        row.output_writes += spikes if row.spiking else updates
        row.output_words = y.shape[2:].numel()
        self.seen |= row.spiking
        if module not in self.steps:
            try:
                with aside(module):
                    self.steps[module] = step_operations(module)
            except EngineError as error:
                self._leave_out(module, f"updates are counted, their arithmetic is not. {error}")
                return
        step = self.steps[module]
        folded = (fold_of or module) in self.foldable
        row.mac += updates * (step.mac - (step.input_scale if folded else 0))
        row.ac += updates * step.ac
        row.ac_on_spikes += spikes * step.ac_per_spike
        row.comparisons += updates * step.comparisons
        row.functions += updates * step.functions
        with aside(module):
            coefs = dict(zip(module.dynamics.coefs, module.coefs(), strict=True))
        single = {name for name, value in coefs.items() if _many(value)}
        own = len(single & set(step.coefs))
        row.state_reads += updates * (step.state_reads + own)
        row.state_writes += updates * step.state_writes
        row.state_words = len(module.states) * y.shape[2:].numel()
        if step.functions:
            self._leave_out(module, "exponentials, roots or divisions of its step are counted, not priced")

    def _norm(self, module: Any, args: Any, kwargs: Any, output: Any) -> None:
        if self.away:
            return
        x, lengths = args[0], kwargs.get("lengths")
        row = self._row(module, "norm")
        values = _valid(x, lengths) * x.shape[2:].numel()
        row.outputs += values
        if module in self.foldable:
            if not self.foldable[module]:  # the synapse in front had no bias; now it has
                row.bias += values
                row.weight_reads += values
                row.target_reads += values
                row.target_writes += values
                row.target_words, row.words = x.shape[2:].numel(), module.shape[0]
            return
        row.mac += values
        row.words = 2 * module.shape[0]
        row.weight_reads += 2 * values
        row.target_reads += values
        row.target_writes += values
        row.target_words = x.shape[2:].numel()

    def _classical(self, module: Any, args: Any, kwargs: Any, output: Any) -> None:
        if self.away:
            return
        x, y, lengths = args[0].detach(), output[0].detach(), kwargs.get("lengths")
        row = self._row(module, "classical")
        x = silence_padding(x, lengths)
        self._from_outside(row, x, y)
        steps = _valid(y, lengths)
        one = classical_step(type(module).__name__.lower(), module.n_in, module.n, bias=module.bias)
        for name, value in one.items():
            setattr(row, name, getattr(row, name) + steps * value)
        row.outputs += steps * module.n
        row.dense += steps * module.gates * module.n * (module.n_in + module.n)
        row.words = sum(p.numel() for p in module.parameters())
        row.state_words, row.output_words = module.kept * module.n, module.n

    def _framewise(self, module: Any, args: Any, kwargs: Any, output: Any) -> None:
        if self.away:
            return
        lengths = kwargs.get("lengths")
        x = silence_padding(args[0].detach(), lengths)
        parts = [part for part in module.module.modules() if not list(part.children())]
        if all(isinstance(part, FREE_MODULES) for part in parts):
            return
        if not isinstance(module.module, LINEAR):
            kinds = ", ".join(sorted({type(part).__name__ for part in parts}))
            self._leave_out(module, f"{kinds} has no count")
            return
        y = output[0]
        row = self._row(module, "synapse", f"Framewise {type(module.module).__name__}")
        self._from_outside(row, x, y)
        with aside(module):
            row.effective += _unit(module.module, x)
            row.dense += _unit(module.module, x.new_ones(1, 1, *x.shape[2:])) * _valid(x, lengths)
        values = _valid(y, lengths) * y.shape[2:].numel()
        row.outputs += values
        row.bias += values if module.module.bias is not None else 0
        row.words = sum(p.numel() for p in module.module.parameters())
        row.spatial = not isinstance(module.module, nn.Linear)

    def finish(self) -> None:
        """What can be said only when everything was seen."""
        for row in self.counts.layers.values():
            row.settle()


def classical_step(kind: str, n_in: int, n: int, *, bias: bool = True) -> dict[str, float]:
    """One step of an LSTM, GRU or RNN as fields of :class:`LayerCounts`: arithmetic of the papers, memory by Lemaire's rules.

    Every weight is read and multiplied once, every gate written once; the state is read and written; and an addition
    finds the address of each weight.

    Example:
        >>> from spiketide.energy.meter import classical_step
        >>> classical_step("rnn", 3, 2)["mac"], classical_step("rnn", 3, 2)["weight_reads"]
        (18, 14)
    """
    gates, kept = {"lstm": (4, 2), "gru": (3, 1), "rnn": (1, 1)}[kind]
    matrices = gates * n * (n_in + n)
    return {
        "mac": paper_counts(kind, n_in, n).mac,
        "weight_reads": matrices + 2 * gates * n * bias,
        "target_writes": gates * n,
        "target_reads": gates * n,
        "input_reads": n_in + n,
        "state_reads": kept * n,
        "state_writes": kept * n,
        "output_writes": n,
        "address_ac": matrices,
    }


def _foldable(network: nn.Module) -> dict[nn.Module, bool]:
    """Layers right behind a weighted synapse, which can take their factors: layer -> whether that synapse has a bias."""
    found: dict[nn.Module, bool] = {}
    for group in network.modules():
        if isinstance(group, Normalized):
            found[group.neuron] = getattr(group.synapse, "bias", None) is not None
        if not isinstance(group, Sequential):
            continue
        front: bool | None = None
        for layer in group:
            if isinstance(layer, Synapse) and not isinstance(layer, _ChannelDelay):
                front = getattr(layer, "bias", None) is not None
            elif isinstance(layer, Framewise) and isinstance(layer.module, LINEAR):
                front = layer.module.bias is not None
            elif isinstance(layer, Framewise) and isinstance(layer.module, FREE_MODULES):
                pass
            elif isinstance(layer, BatchNorm) and front is not None:
                found[layer] = front
                front = True
            elif isinstance(layer, Dropout):
                pass
            elif isinstance(layer, (Neuron, Recurrent)) and front is not None:
                # a recurrence adds its feedback to the input: the factor goes into both matrices
                linear = not isinstance(layer, Recurrent) or _ends_linear(layer.synapse)
                if linear:
                    found[layer] = front
                front = None
            else:
                front = None
    return found


def _ends_linear(synapse: nn.Module) -> bool:
    """Whether the weights of a feedback can take a factor of the neuron behind it."""
    last = list(synapse)[-1] if isinstance(synapse, Sequential) and len(synapse) else synapse
    return isinstance(last, Synapse) and not isinstance(last, _ChannelDelay)


def _unit(module: nn.Module, x: Tensor) -> float:
    """Connections that the nonzero entries of ``x (T, B, *N)`` use in a linear module of torch."""
    ones = {
        name: torch.zeros_like(value) if name == "bias" else torch.ones_like(value)
        for name, value in module.named_parameters()
    }
    return float(
        functional_call(module, ones, ((x != 0).to(x.dtype).flatten(0, 1),)).sum(dtype=torch.float64)
    )


def _valid(y: Tensor, lengths: Tensor | None) -> int:
    """Valid steps of all samples together."""
    return y.shape[0] * y.shape[1] if lengths is None else int(lengths.sum())


def _graded(x: Tensor) -> bool:
    """Whether there is anything but -1, 0 and 1 in it; NaN is."""
    return bool(((x != 0) & (x.abs() != 1)).any())


def _tensors(state: Any) -> list[Tensor]:
    """The tensors of a state; a layer that has yet to begin has none."""
    return [leaf for leaf in leaves(state) if isinstance(leaf, Tensor)]


def _many(value: Any) -> bool:
    return isinstance(value, Tensor) and value.numel() > 1
