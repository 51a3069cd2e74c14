"""Supervised classification of sequences: one label for each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..compose import Sequential
from ..layer import Layer
from ..losses import CrossEntropy
from ..readouts import Readout
from .task import Output, Task


class Classification(Task):
    """A spiking network that is trained to name the class of a sequence.

    ::

        scores = readout(network(encoder(x)))        loss = loss(scores, y) + sum of the regularisers

    With ``truncate``, the loss after a window is that of the read-out of everything up to its end; what came before the
    window counts in it and gets no gradient.

    Example:
        >>> import torch
        >>> from spiketide import Batch
        >>> from spiketide.encoders import Latency
        >>> from spiketide.neurons import LIF, LeakyIntegrator
        >>> from spiketide.readouts import MaxMembrane
        >>> from spiketide.synapses import Dense
        >>> from spiketide.training import Classification
        >>> model = Classification(
        ...     network=[Dense(64, 32), LIF(32, tau_mem=5.0), Dense(32, 10), LeakyIntegrator(10, tau_mem=10.0)],
        ...     encoder=Latency(8),
        ...     readout=MaxMembrane(),
        ... )
        >>> model(Batch(torch.rand(3, 64), torch.zeros(3, dtype=torch.int64))).scores.shape
        torch.Size([3, 10])

    Args:
        network: A layer, or a list of modules, which become a :class:`spiketide.compose.Sequential`.
        readout: From the network's output to one score a class.
        loss: Of scores and labels; ``None`` is the cross-entropy.
        **training: Encoder, regularisers and optimiser: see :class:`.task.Task`.

    Raises:
        ParameterError: an unknown name or a number out of range.
        NonFiniteError: NaN or Inf in a batch.
        ShapeError: a batch that is no :class:`spiketide.Batch`.
    """

    def __init__(
        self,
        network: Layer | list[nn.Module],
        readout: Readout,
        *,
        loss: nn.Module | None = None,
        **training: Any,
    ):
        super().__init__(network, **training)
        self.readout = readout
        self.loss = CrossEntropy() if loss is None else loss

    def scores(self, y: Tensor, lengths: Tensor | None) -> Tensor:
        """What the read-out says, ``(B, C)``."""
        return self.readout(y, lengths)

    def evolve(self, output: Output) -> Tensor:
        """The read-out of the steps so far."""
        return self.readout.evolve(output.y, output.lengths)

    def criterion(self, scores: Tensor, y: Tensor) -> Tensor:
        """The loss of the scores."""
        loss: Tensor = self.loss(scores, y)
        return loss

    def measures(self, output: Output, y: Tensor) -> dict[str, tuple[Tensor, int]]:
        """``accuracy``: share of the sequences named right."""
        return {"accuracy": ((output.scores.argmax(-1) == y).float().mean(), len(y))}

    def windowed(
        self,
        seen: list[Tensor],
        y: Tensor,
        spikes: dict[str, Tensor],
        here: Tensor | None,
        past: Tensor | None,
    ) -> Output:
        """The read-out of all steps up to the end of the window."""
        return Output(self.scores(torch.cat([*seen, y]), past), y, spikes, here, here)


def stack(layers: list[nn.Module]) -> Sequential:
    """A :class:`spiketide.compose.Sequential` from a list, for recipes, in which a list is an argument.

    Example:
        >>> from spiketide.neurons import LIF
        >>> from spiketide.synapses import Dense
        >>> from spiketide.training import stack
        >>> len(stack([Dense(4, 8), LIF(8)]))
        2

    Args:
        layers: Layers, or torch modules without memory.
    """
    return Sequential(*layers)
