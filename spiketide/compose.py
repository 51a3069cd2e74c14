"""Layers made of layers: in sequence, in recurrence, in both directions of time, around a skip."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from .errors import NonFiniteError, ParameterError, ShapeError
from .layer import Layer
from .neurons.base import Neuron
from .norms import Dropout
from .scan.delayed import Delayed
from .shapes import check_input, check_lengths, check_state, is_whole, silence_padding, time_mask
from .synapses.base import Synapse
from .synapses.delay import AxonalDelay
from .synapses.dense import Dense
from .types import State


class Framewise(Layer):
    """Any ``torch.nn.Module`` without memory, applied to every step by itself: time and batch are merged in front of it.

    ``y[t] = module(x[t])``, computed at once as ``module(x (T * B, *N))``.

    Example:
        >>> import torch
        >>> from spiketide.compose import Framewise
        >>> y, _ = Framewise(torch.nn.MaxPool2d(2))(torch.rand(5, 3, 4, 8, 8))
        >>> tuple(y.shape)
        (5, 3, 4, 4, 4)

    Shapes:
        ``x (T, B, *N_in)`` -> ``y (T, B, *N_out)``; zero past a sample's length; no state.

    Args:
        module: stateless over time; ``torch.nn.BatchNorm*`` and ``torch.nn.Dropout`` are refused, since
            :class:`spiketide.norms.BatchNorm` heeds lengths and :class:`spiketide.norms.Dropout` keeps its mask in time.

    Raises:
        ParameterError: a module that belongs to the refused kinds or is not a module.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        if not isinstance(module, nn.Module) or isinstance(module, Layer):
            raise ParameterError(
                f"Framewise expected a torch module that is not a Layer, got {type(module).__name__}."
            )
        refused = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd, nn.RNNBase)
        for part in module.modules():
            if isinstance(part, refused):
                raise ParameterError(
                    f"{type(part).__name__} does not fit a sequence step by step: use spiketide.BatchNorm, spiketide.Dropout or "
                    "spiketide.Recurrent."
                )
            if isinstance(part, Layer):
                raise ParameterError(
                    f"{type(module).__name__} holds a {type(part).__name__}, a layer with a time axis: use spiketide.Sequential."
                )
        self.module = module

    def forward(
        self, x: Tensor, state: State | None = None, *, lengths: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Apply the module to every step."""
        if x.dim() < 3:
            raise ShapeError(f"Framewise expected (T, B, *N), got {tuple(x.shape)}.")
        if state is not None:
            check_state(self, state, ())
        if lengths is not None:
            check_lengths("Framewise", x, lengths)
        # silenced before too: what stands in the padding, even NaN, must not reach the weight gradient
        y = self.module(silence_padding(x, lengths).flatten(0, 1))
        return silence_padding(y.unflatten(0, x.shape[:2]), lengths), ()


def as_layer(module: nn.Module) -> Layer:
    """``module`` if it is a layer, else a :class:`Framewise` of it."""
    return module if isinstance(module, Layer) else Framewise(module)


def _as_one(synapse: Layer, neuron: Layer, x: Any) -> bool:
    """Whether a synapse and the neurons behind it can be run as one loop, with nobody listening to what passes between them."""
    if type(synapse) is not Dense or not isinstance(neuron, Neuron) or not isinstance(x, Tensor):
        return False
    # a forward put in the place of the class's own, or compiled by itself, is not to be passed by
    if any(m._compiled_call_impl is not None or not OWN.isdisjoint(vars(m)) for m in (synapse, neuron)):
        return False
    everywhere = nn.modules.module
    listening = [
        *(synapse._forward_hooks, synapse._forward_pre_hooks, neuron._forward_pre_hooks),
        *(hooks for m in (synapse, neuron) for hooks in (m._backward_hooks, m._backward_pre_hooks)),
        *(everywhere._global_forward_hooks, everywhere._global_forward_pre_hooks),
        *(everywhere._global_backward_hooks, everywhere._global_backward_pre_hooks),
    ]
    if any(listening):
        return False
    if not all(getattr(hook, OUTPUTS_ONLY, False) for hook in neuron._forward_hooks.values()):
        return False
    return neuron.fuses_with(synapse, x)


OWN = frozenset(("forward", "check", "apply_steps", "coefs", "_run"))
"""Methods that a caller may have replaced in a single layer."""

OUTPUTS_ONLY = "outputs_only"
"""What a forward hook bears as a true attribute when it does not look at the inputs of its module."""


class Sequential(Layer):
    """Layers one after the other, within a step: layer ``l + 1`` sees the spikes of layer ``l`` at the same ``t``.

    A :class:`Dense` synapse on the CPU and the neurons right behind it run as one loop where few of its inputs spike: the same
    spikes, and less memory moved. A hook on the synapse keeps them apart.

    Example:
        >>> import torch
        >>> from spiketide import LIF, Dense, LeakyIntegrator, Sequential
        >>> model = Sequential(Dense(4, 8), LIF(8), Dense(8, 2), LeakyIntegrator(2))
        >>> y, state = model(torch.rand(10, 3, 4))
        >>> y2, state = model(torch.rand(10, 3, 4), state)      # the same sequences go on
        >>> tuple(y.shape), len(state)
        ((10, 3, 2), 4)

    Shapes:
        as its layers; the state is the tuple of their states.

    Args:
        layers: Layers, or torch modules without memory (which become :class:`Framewise`).

    Raises:
        ParameterError: something that is not a module.
        ShapeError: a state of another number of layers.
    """

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        for i, layer in enumerate(layers):
            if not isinstance(layer, nn.Module):
                raise ParameterError(
                    f"Sequential expected layers, got {type(layer).__name__} at position {i}."
                )
            self.add_module(str(i), as_layer(layer))

    def __iter__(self) -> Iterator[Layer]:
        return iter(self._modules.values())  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self._modules)

    def __getitem__(self, index: int) -> Layer:
        return list(self)[index]

    def initial_state(self, x: Tensor) -> State:
        """The layers' own beginnings; they know their shapes only when the sequence reaches them, hence ``None`` leaves."""
        return tuple(None for _ in self)

    def forward(
        self, x: Tensor, state: State | None = None, *, lengths: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Run the layers in order."""
        if state is None:
            state = self.initial_state(x)
        if not isinstance(state, tuple) or len(state) != len(self):
            got = len(state) if isinstance(state, tuple) else f"a {type(state).__name__}"
            raise ShapeError(
                f"Sequential expected a tuple of the states of its {len(self)} layers, got {got}; pass None to begin."
            )
        new: list[State] = []
        layers = list(self)
        number = 0
        while number < len(layers):
            layer, begin = layers[number], state[number]
            try:
                after = layers[number + 1] if number + 1 < len(layers) else None
                if after is not None and begin in (None, ()) and _as_one(layer, after, x):
                    synapse = cast(Dense, layer)
                    synapse.check(x, lengths)
                    new.append(())
                    number += 1
                    x, end = after(x, state[number], lengths=lengths, behind=synapse)
                    layer = after
                else:
                    x, end = layer(x, begin, lengths=lengths)
            except (NonFiniteError, ShapeError) as error:
                raise type(error)(f"layer {number}: {error}") from error
            lengths = layer.lengths_after(lengths)
            new.append(end)
            number += 1
        return x, tuple(new)

    def lengths_after(self, lengths: Tensor | None) -> Tensor | None:
        """Through all layers."""
        for layer in self:
            lengths = layer.lengths_after(lengths)
        return lengths


class Recurrent(Layer):
    """A neuron population whose spikes come back to it one step later, through a synapse.

    ``s[t] = neuron(x[t] + synapse(s[t-1]))``, with ``s[-1] = 0``. With a :class:`Dense` synapse the whole recurrence is one
    fused loop; with learnt delays in front of it or dropout behind it, ``Sequential(AxonalDelay(n, d), Dense(n, n),
    Dropout(p))`` or a part of that, too: a spike then comes back 1 to ``d + 1`` steps later. With another stateless synapse it
    runs on the reference engine; a synapse with a state of its own is stepped.

    Example:
        >>> import torch
        >>> from spiketide import ALIF, Dense, Recurrent
        >>> layer = Recurrent(ALIF(16), Dense(16, 16))
        >>> y, (neuron_state, synapse_state) = layer(torch.rand(20, 3, 16))
        >>> tuple(y.shape), len(neuron_state)
        ((20, 3, 16), 4)

    Shapes:
        ``x (T, B, *n)`` -> ``(T, B, *n)``; state: ``((*neuron state, s[t-1]), synapse state)``.

    Args:
        neuron: the population.
        synapse: from the population to itself.

    Raises:
        ParameterError: a neuron or synapse that is none, a Dense synapse of other sizes than the population, or a synapse that
            looks ahead, skips steps or adds some.
    """

    def __init__(self, neuron: Neuron, synapse: Layer) -> None:
        super().__init__()
        if not isinstance(neuron, Neuron):
            raise ParameterError(
                f"Recurrent expected a neuron first, got {type(neuron).__name__}: Recurrent(LIF(n), Dense(n, n))."
            )
        if not isinstance(synapse, Layer):
            n = neuron.shape[0]
            raise ParameterError(
                f"Recurrent expected a synapse second, such as Dense({n}, {n}), got {type(synapse).__name__}."
            )
        if isinstance(synapse, Dense) and (
            (synapse.n_in,) != neuron.shape or (synapse.n_out,) != neuron.shape
        ):
            raise ParameterError(
                f"Recurrent expected Dense({neuron.shape[0]}, {neuron.shape[0]}) for {neuron.shape} neurons, got "
                f"Dense({synapse.n_in}, {synapse.n_out})."
            )
        tails = [type(part).__name__ for part in synapse.modules() if getattr(part, "tail", 0)]
        if tails:
            raise ParameterError(
                f"Recurrent expected a synapse that gives one step for each, got {tails[0]} with a tail: use tail=0 there."
            )
        ahead = [
            type(part).__name__
            for part in synapse.modules()
            if isinstance(part, Synapse) and "streaming" in part.exempt
        ]
        if ahead:
            raise ParameterError(
                f"Recurrent expected a synapse that gives each step when it comes, got {ahead[0]} that looks ahead or skips "
                "steps: use padding='causal' and a stride of 1 in time there."
            )
        self.neuron, self.synapse = neuron, synapse

    def initial_state(self, x: Tensor) -> State:
        """Zeros for the neuron and its last spikes; the synapse's own beginning."""
        begin = self.neuron.initial_state(x)
        return ((*begin, torch.zeros_like(begin[0])), self.synapse.initial_state(x))

    def forward(
        self, x: Tensor, state: State | None = None, *, lengths: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Run ``T`` steps of the recurrence."""
        if state is not None and not (isinstance(state, tuple) and len(state) == 2):
            raise ShapeError(
                "Recurrent expected a state (neuron, synapse), as it returns it; pass None to begin."
            )
        check_input(self.neuron, x, self.neuron.shape, lengths)
        if lengths is not None:
            lengths = lengths.to(x.device)
        inner, outer = (None, None) if state is None else state
        if isinstance(self.synapse, Dense) and type(self.synapse).apply_steps is Dense.apply_steps:
            drive = x if self.synapse.bias is None else x + self.synapse.bias
            y, end = self.neuron(drive, inner, lengths=lengths, feedback=self.synapse.weight)
            return y, (end, ())
        if isinstance(self.synapse, Synapse) and not self.synapse.stateful:
            # a synapse without a state of its own: the same map at every step
            y, end = self.neuron(
                x, inner, lengths=lengths, feedback=lambda s: self.synapse(s.unsqueeze(0))[0].squeeze(0)
            )
            return y, (end, ())
        if (parts := self._late()) is not None:
            return self._delayed(x, inner, outer, lengths, *parts)
        return self._step_by_step(x, inner, outer, lengths)

    def _late(self) -> tuple[AxonalDelay | None, Dense, Dropout | None] | None:
        """Delays, matrix and dropout of a synapse that consists of these in this order, which has a loop of its own."""
        parts = list(self.synapse) if type(self.synapse) is Sequential else []
        delay = parts.pop(0) if parts and type(parts[0]) is AxonalDelay else None
        dropout = parts.pop() if parts and type(parts[-1]) is Dropout else None
        if len(parts) != 1 or type(parts[0]) is not Dense or self.neuron.checkpoint is not None:
            return None
        dense = parts[0]
        if not (self.neuron.shape == (dense.n_in,) == (dense.n_out,)) or torch.compiler.is_compiling():
            return None
        if delay is not None and cast(AxonalDelay, delay).n != dense.n_in:
            return None
        return cast("AxonalDelay | None", delay), dense, cast("Dropout | None", dropout)

    def _delayed(
        self,
        x: Tensor,
        inner: State | None,
        outer: State | None,
        lengths: Tensor | None,
        delay: AxonalDelay | None,
        dense: Dense,
        dropout: Dropout | None,
    ) -> tuple[Tensor, State]:
        parts = list(cast(Sequential, self.synapse))
        begin = [None] * len(parts) if outer is None else list(outer)
        if len(begin) != len(parts):
            raise ShapeError(
                f"Recurrent expected the states of its synapse's {len(parts)} layers, got {len(begin)}."
            )
        if inner is not None:
            check_state(self.neuron, inner, self.initial_state(x)[0])
        first = x.new_zeros(x.shape[1:]) if inner is None else inner[-1]
        states: list[State] = []
        late, before, past, mask = dense.weight.new_ones(1, dense.n_in), None, None, None
        if delay is not None:
            late, frames = delay.kernel().t(), begin[0]
            if frames is not None:
                check_state(delay, frames, delay.initial_state(x))
            if inner is not None or frames is not None:
                past = (delay.initial_state(x) if frames is None else frames)[0].transpose(0, 1)
                before = torch.cat([past, first.unsqueeze(0)])
        elif inner is not None:
            before = first.unsqueeze(0)
        if dropout is not None:
            drawn = dropout.begin(x, begin[-1])
            mask = drawn[0].detach() if drawn else None
        drive = x
        if dense.bias is not None:
            drive = x + (dense.bias if mask is None else mask * dense.bias)
        feedback = Delayed(dense.weight, late, before, mask)
        y, end = self.neuron(drive, inner, lengths=lengths, feedback=feedback)
        if delay is not None:  # it has seen the outputs up to the last but one
            seen = torch.cat([first.unsqueeze(0), y[:-1]]) if len(y) else y
            states.append((delay.remember(past, seen, lengths),))
        states.append(())
        if dropout is not None:
            states.append(drawn)
        return y, (end, tuple(states))

    def _step_by_step(
        self, x: Tensor, inner: State | None, outer: State | None, lengths: Tensor | None
    ) -> tuple[Tensor, State]:
        if inner is None:
            inner = self.initial_state(x)[0]
        *neuron_state, last = inner
        begin: Any = tuple(neuron_state)
        outputs = []
        for t, current in enumerate(x.unbind(0)):
            part = None if lengths is None else (lengths - t).clamp(0, 1)
            back, outer = self.synapse(last.unsqueeze(0), outer, lengths=part)
            if back.shape[1:] != current.shape:
                raise ShapeError(
                    f"Recurrent expected a synapse that gives {tuple(current.shape[1:])} for each sample and step, as its neuron "
                    f"takes, got {tuple(back.shape[2:])} from {type(self.synapse).__name__}."
                )
            y, begin = self.neuron(current.unsqueeze(0) + back, begin, lengths=part)
            if part is None:
                last = y[0]
            else:
                last = torch.where((part > 0).reshape(-1, *([1] * (last.dim() - 1))), y[0], last)
            outputs.append(y)
        if outer is None:  # no step was run: the synapse says what its beginning is
            _, outer = self.synapse(x)
        return torch.cat(outputs) if outputs else x, ((*begin, last), outer)


def reverse(x: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Reverse time, each sample within its own length; padding stays behind.

    Shapes: ``x (T, B, *N)`` -> the same.
    """
    if lengths is None:
        return x.flip(0)
    lengths = lengths.to(x.device)
    steps = torch.arange(x.shape[0], device=x.device).unsqueeze(1)
    mask = time_mask(lengths, x.shape[0])
    index = torch.where(mask, lengths.unsqueeze(0) - 1 - steps, steps)
    index = index.reshape(*index.shape, *([1] * (x.dim() - 2))).expand_as(x)
    return torch.gather(x, 0, index)


class Bidirectional(Layer):
    """A layer run forward and a copy of it run backward in time, their outputs side by side.

    ``y[t] = [ forward(x)[t], reverse(backward(reverse(x)))[t] ]`` along the last axis of a dense layer, the channels of a feature
    map. With ``lengths`` each sample is reversed within its own length.

    Example:
        >>> import torch
        >>> from spiketide import ALIF, Bidirectional, Dense, Recurrent
        >>> y, _ = Bidirectional(Recurrent(ALIF(8), Dense(8, 8)))(torch.rand(20, 3, 8))
        >>> tuple(y.shape)
        (20, 3, 16)

    Shapes:
        ``x (T, B, *N)`` -> ``(T, B, 2 N_0, ...)``; no state: the backward direction needs the whole sequence.

    Args:
        layer: the forward direction; the backward one is a deep copy with its own parameters, drawn anew where the layer can.

    Raises:
        ShapeError: a state is given (a bidirectional layer cannot stream).
    """

    exempt: ClassVar[dict[str, str]] = {
        "streaming": "the backward direction begins at the sequence's end",
        "causality": "the backward direction sees the future",
    }

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.ahead, self.back = layer, copy.deepcopy(layer)
        for module in self.back.modules():
            draw = getattr(module, "reset_parameters", None)
            if callable(draw):
                draw()

    def forward(
        self, x: Tensor, state: State | None = None, *, lengths: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Run both directions over the whole sequence."""
        if state:
            raise ShapeError("Bidirectional has no state to go on from: it needs the whole sequence at once.")
        ahead, _ = self.ahead(x, lengths=lengths)
        back, _ = self.back(reverse(x, lengths), lengths=lengths)
        return torch.cat([ahead, reverse(back, lengths)], dim=2), ()


class Substeps(Layer):
    """Every step is shown several times to a layer, and what it says in these is averaged: more time for slow inputs.

    ``y[t] = mean of layer(...)[k t .. k t + k - 1]``, where the layer sees ``x[t]`` at the substeps ``k t .. k t + k - 1``.

    Example:
        >>> import torch
        >>> from spiketide import LIF
        >>> from spiketide.compose import Substeps
        >>> y, _ = Substeps(LIF(1, tau_mem=10.0), 4)(torch.tensor([[[0.0]], [[0.4]], [[0.9]]]))
        >>> y.flatten().tolist()
        [0.0, 0.25, 0.75]

    Shapes:
        ``x (T, B, *N_in)`` -> ``(T, B, *N_out)``; the layer's state.

    Args:
        layer: runs ``T * steps`` steps; it gives one for each.
        steps: how often each step is shown, 1 or more.

    Raises:
        ParameterError: steps below 1.
        ShapeError: a layer that makes sequences longer.

    Reference: Yin, Corradi & Bohté 2021 show each frame of speech for five steps and average the spikes over them. Differs: their
        backward direction is off by one substep.
    """

    def __init__(self, layer: nn.Module, steps: int) -> None:
        super().__init__()
        if not is_whole(steps):
            raise ParameterError(f"Substeps expected steps of 1 or more, got {steps!r}.")
        self.layer, self.steps = as_layer(layer), int(steps)

    def initial_state(self, x: Tensor) -> State:
        """The layer's."""
        return self.layer.initial_state(x)

    def forward(
        self, x: Tensor, state: State | None = None, *, lengths: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Run the layer on repeated steps and average."""
        if lengths is not None:
            check_lengths("Substeps", x, lengths)
        more = None if lengths is None else lengths * self.steps
        y, end = self.layer(x.repeat_interleave(self.steps, 0), state, lengths=more)
        if y.shape[0] != x.shape[0] * self.steps:
            raise ShapeError(
                f"Substeps expected a layer that gives {x.shape[0] * self.steps} steps for as many, got {y.shape[0]}: use tail=0."
            )
        return y.unflatten(0, (x.shape[0], self.steps)).mean(1), end


class Residual(Layer):
    """A skip around a layer: ``y = x + layer(x)``.

    Example:
        >>> import torch
        >>> from spiketide import LIF, Dense, Residual, Sequential
        >>> y, _ = Residual(Sequential(Dense(8, 8), LIF(8)))(torch.rand(10, 3, 8))
        >>> tuple(y.shape)
        (10, 3, 8)

    Shapes:
        ``x (T, B, *N)`` -> the same; the layer's state.

    Args:
        layer: keeps the shape of its input.

    Raises:
        ShapeError: the layer changes the shape.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = as_layer(layer)

    def initial_state(self, x: Tensor) -> State:
        """The layer's."""
        return self.layer.initial_state(x)

    def forward(
        self, x: Tensor, state: State | None = None, *, lengths: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Run the layer and add its input."""
        y, end = self.layer(x, state, lengths=lengths)
        if y.shape != x.shape:
            raise ShapeError(
                f"Residual expected a layer that keeps {tuple(x.shape)}, got {tuple(y.shape)} out of it."
            )
        return silence_padding(x, lengths) + y, end
