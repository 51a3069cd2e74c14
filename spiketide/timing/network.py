"""Layers of spike times in a row, and the decision that their first spikes make."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..errors import NonFiniteError, ParameterError, ShapeError
from ..kernels.first_spike import Fired
from ..layer import Layer
from .base import TimingLayer
from .loss import check_fired
from .psp import FixedSlope

log = logging.getLogger("spiketide")


class Network(nn.Sequential):
    """Layers of spike times one behind the other; the last one's potentials and all times on the way can be had too.

    Example:
        >>> import torch
        >>> from spiketide.timing import Network, TimingLinear
        >>> net = Network(TimingLinear(8, 6), TimingLinear(6, 3))
        >>> fired, seen = net.follow(torch.rand(2, 8) * 32)
        >>> fired.potential.shape, list(seen)
        (torch.Size([2, 3]), ['0', '1'])

    A layer hears what comes before its window ends; with :class:`.psp.FixedSlope`, before its window opens. So each such layer
    needs a window of its own, behind that of the layer that feeds it: where some spikes come too late for it, a line in the
    log says so, and where all do, the network is refused.

    Args:
        *layers: modules from times to times; the last one a :class:`.base.TimingLayer`.

    Raises:
        ParameterError: the last layer does not fire, a module takes no spike times, one stands in two places, or a layer whose
            window lies so that it can hear nothing of the one before.
        ShapeError, NonFiniteError: on input that a layer refuses; the message names the layer.
    """

    def __init__(self, *layers: nn.Module):
        if not layers or not isinstance(layers[-1], TimingLayer):
            last = type(layers[-1]).__name__ if layers else "nothing"
            raise ParameterError(
                f"Network expected a TimingLayer at the end, got {last}: its first spike decides."
            )
        if len({id(layer) for layer in layers}) < len(layers):
            raise ParameterError(
                "Network expected every layer once, one module stands in two places: make a second one, also of a pooling layer."
            )
        for layer in layers:
            if isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d, Layer)):
                raise ParameterError(
                    f"Network expected modules from spike times to spike times, got {type(layer).__name__}: TimingLinear, "
                    "TimingConv2d, EarliestPool2d, Flatten, Silence. Spike trains go through spiketide.Sequential; "
                    "FirstSpikes puts a Network into one."
                )
        super().__init__(*layers)
        self._check_windows()

    def _check_windows(self) -> None:
        """Every layer must hear the one before: with a fixed slope it listens only until its own window opens."""
        before: tuple[str, TimingLayer] | None = None
        for name, layer in self.named_children():
            if not isinstance(layer, TimingLayer):
                continue
            if before is not None:
                source, feeding = before
                climbs, until = isinstance(layer.psp, FixedSlope), _hears_until(layer)
                means = (
                    f"layer {name} ({type(layer).__name__}) hears inputs until step {until:g}, when its window "
                    f"{'opens' if climbs else 'ends'}, and layer {source} ({type(feeding).__name__}) fires from step "
                    f"{feeding.start:g} to {feeding.stop:g}"
                )
                remedy = (
                    f"psp=FixedSlope({feeding.stop:g}, {layer.psp.unit:g}), stop={feeding.stop + layer.psp.unit:g}"
                    if climbs
                    else f"a stop above {feeding.stop:g}"
                )
                if until <= feeding.start:
                    raise ParameterError(
                        f"Network expected windows one behind the other, but {means}: it would hear nothing and never fire. "
                        f"Give it {remedy}."
                    )
                if climbs and until < feeding.stop:
                    log.warning("%s: later spikes are lost. To hear all of them give it %s.", means, remedy)
            before = name, layer

    def forward(self, times: Tensor) -> Tensor:
        """Spike times of the last layer; ``inf`` where a neuron is silent.

        Args:
            times: of the input.
        """
        for name, layer in self.named_children():
            with named(name):
                times = layer(times)
        return times

    @property
    def hears_until(self) -> float:
        """The step from which inputs come too late for the first layer that fires."""
        return _hears_until(next(layer for layer in self if isinstance(layer, TimingLayer)))

    @property
    def output(self) -> TimingLayer:
        """The last layer."""
        last = self[-1]
        assert isinstance(last, TimingLayer)
        return last

    def follow(self, times: Tensor) -> tuple[Fired, dict[str, Tensor]]:
        """What the last layer did, and the spike times of every :class:`.base.TimingLayer` by name.

        Args:
            times: of the input.
        """
        seen = {}
        last = len(self) - 1
        for number, (name, layer) in enumerate(self.named_children()):
            with named(name):
                if number == last:
                    fired = self.output.fire(times)
                    seen[name] = fired.times
                    return fired, seen
                times = layer(times)
            if isinstance(layer, TimingLayer):
                seen[name] = times
        raise AssertionError("unreachable: a network has a last layer")


def _hears_until(layer: TimingLayer) -> float:
    """The step from which inputs come too late for a layer: with a fixed slope when its window opens."""
    return layer.start if isinstance(layer.psp, FixedSlope) else layer.stop


@contextmanager
def named(name: str) -> Iterator[None]:
    """Whatever is refused inside is refused in the name of this layer.

    Args:
        name: of the layer in its network.

    Raises:
        ShapeError, NonFiniteError: those that come from inside, with the name in front.
    """
    try:
        yield
    except (ShapeError, NonFiniteError) as error:
        raise type(error)(f"layer {name}: {error}") from error


class Decision(NamedTuple):
    """What the outputs of a network say.

    Shapes:
        all ``(B,)``: the ``label``; the ``time`` at which it was known (``inf``: no output fired, the label is that of the
        largest potential); whether it is ``tied``, that is, another output fired at the same time.
    """

    label: Tensor
    time: Tensor
    tied: Tensor


def decide(fired: Fired) -> Decision:
    """The class whose neuron fires first; among equals the one with the larger potential at that step, then the lower number.

    Where no output fires, the largest potential at the end of the window decides: such a decision is not one of a first spike,
    and measures count it apart (``no_fire``).

    Example:
        >>> import torch
        >>> from spiketide.kernels.first_spike import Fired
        >>> from spiketide.timing import decide
        >>> times, v = torch.tensor([[5.0, 3.0, 3.0]]), torch.tensor([[1.0, 1.1, 1.2]])
        >>> decide(Fired(times, v, v))
        Decision(label=tensor([2]), time=tensor([3.]), tied=tensor([True]))

    Args:
        fired: what the output layer did, ``(B, C)``: see :meth:`Network.follow`.

    Raises:
        ParameterError: spike times alone.
    """
    check_fired("decide", fired)
    first = fired.times.amin(1, keepdim=True)
    candidates = (fired.times == first) | torch.isinf(first)
    potential = fired.potential.masked_fill(~candidates, -torch.inf)
    label = potential.argmax(1)
    tied = ((fired.times == first) & torch.isfinite(first)).sum(1) > 1
    return Decision(label, first.squeeze(1), tied)


def optimistic(fired: Fired, y: Tensor) -> Tensor:
    """Which samples a count that takes a tie for a hit calls right: the label is among the outputs that fired first.

    The published scores of S4NN and BS4NN count so. Where no output fires, the decision by potential counts.

    Args:
        fired: what the output layer did, ``(B, C)``.
        y: labels, ``(B,)``.
    """
    label, first, _ = decide(fired)
    among = fired.times.gather(1, y[:, None]).squeeze(1) == first
    return torch.where(torch.isfinite(first), among, label == y)
