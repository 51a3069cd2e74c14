"""The one verb and its laws: ``y, state = layer(x, state)``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor, nn

from .shapes import check_input as check_input
from .shapes import check_lengths as check_lengths
from .shapes import check_state as check_state
from .shapes import time_mask as time_mask
from .types import State


def parameter_roles(model: nn.Module) -> dict[nn.Parameter, str]:
    """What every parameter is for: ``"weights"``, ``"time_constants"``, ``"thresholds"``, ``"delays"``.

    The word of the parameter itself (its attribute ``role``), or else of its module: a copy of a parameter, such as
    ``copy.deepcopy`` makes, forgets its own.

    Example:
        >>> import copy
        >>> from spiketide import LIF
        >>> from spiketide.layer import parameter_roles
        >>> list(parameter_roles(copy.deepcopy(LIF(3, learn=("tau_mem",)))).values())
        ['time_constants']
    """
    roles: dict[nn.Parameter, str] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            roles.setdefault(parameter, getattr(parameter, "role", getattr(module, "role", "weights")))
    return roles


def unstreamable(network: nn.Module, *, training: bool = True) -> nn.Module | None:
    """The first part of a network that is exempt from the law of streaming or has a tail: it cannot go on from a state.

    Args:
        network: to be looked through.
        training: also those that are exempt in training mode only (batch norms).
    """
    for module in network.modules():
        reason = getattr(module, "exempt", {}).get("streaming", "")
        if (reason and (training or not reason.startswith(TRAINING_ONLY))) or getattr(module, "tail", 0):
            return module
    return None


TRAINING_ONLY = "training mode only"
"""How the reason of an exemption begins that ends in evaluation mode."""


class Layer(nn.Module, ABC):
    """Everything with a time axis.

    A layer maps a sequence to a sequence and hands its state on::

        y, state = layer(x)                      # state None: begin, with zeros
        y, state = layer(x_next, state)          # the same sequence goes on
        y, state = layer(x, lengths=lengths)     # padded batch: steps past a sample's end change nothing

    Laws, checked by the contract battery for every layer of the package:

    1. streaming: chunks with carried state equal the whole sequence;
    2. causality: the future never changes the past;
    3. batch independence: a sample's output does not depend on its neighbours;
    4. a forward changes nothing in the module (states are arguments and results, never attributes).

    A class that cannot keep a law says so in ``exempt`` with a reason.

    Shapes:
        ``x``: ``(T, B, *N_in)``; ``y``: ``(T, B, *N_out)``; ``state``: a tuple tree of tensors whose first axis is ``B``;
        ``lengths``: ``(B,)`` integers, the valid steps of ``x`` for each sample, ``0 <= lengths <= T``. Past a
        sample's end ``y`` is zero and the state stays as it was.
    """

    exempt: ClassVar[dict[str, str]] = {}
    """Law -> reason, for laws (``"streaming"``, ``"causality"``, ``"batch_independence"``, ``"purity"``) not kept."""

    def initial_state(self, x: Tensor) -> State:
        """The state before the first step of ``x`` ``(T, B, *N_in)``: zeros of the right shape, dtype and device."""
        return ()

    def lengths_after(self, lengths: Tensor | None) -> Tensor | None:
        """Valid steps of the output for each sample: those of the input, unless the layer makes sequences longer."""
        return lengths

    @abstractmethod
    def forward(
        self, x: Tensor, state: State | None = None, *, lengths: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Run ``T`` steps from ``state`` (``None``: begin) and return the outputs and the state after them."""
