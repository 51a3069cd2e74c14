"""The one verb and its laws: ``y, state = layer(x, state)``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from .errors import ShapeError
from .types import State, leaves


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

    @abstractmethod
    def forward(
        self, x: Tensor, state: State | None = None, *, lengths: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Run ``T`` steps from ``state`` (``None``: begin) and return the outputs and the state after them."""


def time_mask(lengths: Tensor, steps: int) -> Tensor:
    """Valid steps as a boolean mask.

    Shapes: ``lengths (B,)`` -> ``(T, B)``, true where ``t < lengths[b]``.
    """
    return torch.arange(steps, device=lengths.device).unsqueeze(1) < lengths.unsqueeze(0)


def check_input(layer: nn.Module, x: Tensor, shape: tuple[int, ...], lengths: Tensor | None = None) -> None:
    """Refuse what a layer of feature shape ``shape`` cannot take.

    Raises:
        ShapeError: not a floating tensor, wrong rank, wrong features, or lengths of another shape.
    """
    name = type(layer).__name__
    if not isinstance(x, Tensor):
        raise ShapeError(f"{name} expected a tensor (T, B, *N), got {type(x).__name__}.")
    if not x.is_floating_point():
        raise ShapeError(
            f"{name} expected floating point input, got {x.dtype}: spikes are floats here, convert with x.float()."
        )
    wanted = "(T, B, " + ", ".join(map(str, shape)) + ")"
    if x.dim() != len(shape) + 2:
        hint = ""
        if x.dim() == len(shape) + 1:
            hint = " For a single step add the time axis: x.unsqueeze(0)."
        raise ShapeError(f"{name} expected {wanted}, got {tuple(x.shape)} with {x.dim()} axes.{hint}")
    if tuple(x.shape[2:]) != shape:
        raise ShapeError(
            f"{name} expected {wanted}, got {tuple(x.shape)}: is this batch-first or features-first? "
            "spiketide is time-first: x.transpose(0, 1)."
        )
    if lengths is not None:
        check_lengths(name, x, lengths)


def check_lengths(name: str, x: Tensor, lengths: Tensor) -> None:
    """Refuse lengths that are not ``(B,)`` integers."""
    if lengths.dim() != 1 or lengths.shape[0] != x.shape[1] or lengths.is_floating_point():
        raise ShapeError(
            f"{name} expected lengths ({x.shape[1]},) of integers for input {tuple(x.shape)}, "
            f"got {tuple(lengths.shape)} {lengths.dtype}. If x is batch-first, transpose it: x.transpose(0, 1)."
        )


def check_state(layer: nn.Module, state: State, expected: State) -> None:
    """Refuse a state that is not of this layer and this batch.

    Raises:
        ShapeError: another structure, another batch size (for example the last, smaller batch), another shape.
    """
    name = type(layer).__name__
    got, want = leaves(state), leaves(expected)
    if len(got) != len(want):
        raise ShapeError(
            f"{name} expected a state of {len(want)} tensors, got {len(got)}: a state belongs to the layer that "
            "returned it; pass None to begin."
        )
    for have, need in zip(got, want, strict=True):
        if have.shape != need.shape:
            raise ShapeError(
                f"{name} expected state tensors of shape {tuple(need.shape)}, got {tuple(have.shape)}: the state is of "
                "another batch size or layer; pass None to begin a new batch."
            )
