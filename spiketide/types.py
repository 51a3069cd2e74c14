"""The words every other file uses: states, batches, and what to do with them.

Legend of shapes: ``T`` time steps, ``B`` samples of a batch, ``*N`` the shape of a layer (``N`` for a dense
layer, ``C, H, W`` for a feature map). Every tensor with a time axis is ``(T, B, *N)``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor

State: TypeAlias = tuple[Any, ...]
"""A tuple tree whose leaves are tensors. ``()`` is the state of a layer that has none."""


UNLABELLED = -1
"""The label of a step that has none."""


class Batch(NamedTuple):
    """One batch as the data modules give it.

    Shapes: ``x`` is ``(T, B, *N)`` for temporal data and ``(B, *N)`` for static data (an encoder gives it a time
    axis); ``y`` is ``(B,)`` int64, or ``(T, B)`` where every step has its own label (:data:`UNLABELLED`: none); ``lengths`` is
    ``(B,)`` int64 valid steps, or ``None`` when all are ``T``.
    """

    x: Tensor
    y: Tensor
    lengths: Tensor | None = None


def map_state(function: Callable[[Tensor], Tensor], state: Any) -> Any:
    """Apply ``function`` to every tensor of a state tree and keep the tree."""
    if isinstance(state, tuple):
        return tuple(map_state(function, leaf) for leaf in state)
    return state if state is None else function(state)


def leaves(state: Any) -> list[Tensor]:
    """The tensors of a state tree, in order."""
    if isinstance(state, tuple):
        return [leaf for branch in state for leaf in leaves(branch)]
    return [state]


def detach(state: Any) -> Any:
    """Cut the gradient of a carried state, as truncated back-propagation through time does between windows.

    Example:
        >>> import torch
        >>> from spiketide.types import detach
        >>> v = torch.zeros(2, 3, requires_grad=True) * 1.0
        >>> detach((v,))[0].requires_grad
        False
    """
    return map_state(lambda leaf: leaf.detach(), state)
