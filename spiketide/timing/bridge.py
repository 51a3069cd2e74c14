"""A network of spike times in front of the rest of the library."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..encoders.base import Encoder
from ..errors import NonFiniteError, ParameterError, ShapeError
from .encode import to_times, to_train
from .network import Network


class FirstSpikes(Encoder):
    """A network of spike times as an encoder: its output spikes as a train, for any layer of the library behind it.

    ::

        data -> encoder -> spike times -> network -> spike times -> train (steps, B, *N)

    In front there may be an encoder into spike times (:class:`.encode.IntensityToLatency`); any encoder of
    :mod:`spiketide.encoders`, whose first spikes count; or nothing: then the input is a spike train itself, the output of a
    layer for example, of which the first spikes count too.

    It stands before a network, not in it: a neuron that fires once decides over its whole window, so there is no state to
    hand on. No gradient goes through it, neither into ``network`` nor to what lies in front: the step of a spike is no
    differentiable function of a train, and there is no surrogate. Layers behind it learn as ever. So train ``network`` first,
    by its own rule.

    Example:
        >>> import torch
        >>> from spiketide import LIF, Dense, Sequential
        >>> from spiketide.timing import FirstSpikes, IntensityToLatency, Network, TimingLinear
        >>> early = Network(TimingLinear(64, 20, stop=32.0))
        >>> front = FirstSpikes(early, encoder=IntensityToLatency(32))
        >>> behind = Sequential(Dense(20, 10), LIF(10))
        >>> y, state = behind(front(torch.rand(3, 64)))
        >>> y.shape
        torch.Size([32, 3, 10])

    Shapes:
        ``x (B, *N)`` with an encoder, ``(T, B, *N)`` without -> ``(steps, B, *N_out)`` of 0 and 1, at most one 1 for each neuron.

    Args:
        network: layers of spike times.
        encoder: from data to spike times, or to spike trains if it is an :class:`spiketide.encoders.Encoder`; ``None``: the
            input is a spike train.
        steps: of the result; ``None``: until the window of the last layer ends. Later spikes are left out.

    Raises:
        ParameterError: something that is no network of spike times, steps below 1.
        ShapeError: without an encoder, no spike train.
        NonFiniteError: without an encoder, NaN in it.
    """

    def __init__(
        self, network: Network, *, encoder: nn.Module | None = None, steps: int | None = None
    ) -> None:
        if not isinstance(network, Network):
            raise ParameterError(
                f"FirstSpikes expected a spiketide.timing.Network, got {type(network).__name__}: Network(*layers) makes one."
            )
        super().__init__(math.ceil(network.output.stop) if steps is None else steps)
        self.network, self.encoder = network, encoder

    def _check_axes(self, x: Tensor) -> None:
        """The encoder in front looks at its input itself."""
        if self.encoder is None and (not isinstance(x, Tensor) or x.dim() < 3 or not x.is_floating_point()):
            got = f"{tuple(x.shape)} {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
            raise ShapeError(
                f"FirstSpikes without an encoder expected a spike train (T, B, *N) in floating point, got {got}. For data "
                "(B, *N) give it an encoder: spiketide.timing.IntensityToLatency()."
            )

    def _check_values(self, x: Tensor) -> None:
        """The same; in a train NaN would pass for a spike."""
        if self.encoder is None and bool(torch.isnan(x).any()):
            raise NonFiniteError(
                f"FirstSpikes got {int(torch.isnan(x).sum())} NaN among {x.numel()} values of a spike train: look at the layer "
                "before."
            )

    def encode(self, x: Tensor) -> Tensor:
        """The train of the network's output spikes."""
        with torch.no_grad():
            given = x if self.encoder is None else self.encoder(x)
            is_train = self.encoder is None or isinstance(self.encoder, Encoder)
            return to_train(self.network(to_times(given) if is_train else given), self.steps)
