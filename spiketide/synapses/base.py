"""What all synapses share: no state of their own unless they say so, and silence past a sample's end."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..errors import ParameterError
from ..layer import Layer, check_state
from ..shapes import is_whole
from ..shapes import silence_padding as silence_padding
from ..types import State


class Synapse(Layer):
    """A layer that maps each step by itself; :meth:`apply_steps` says how, :meth:`check` what it takes.

    Shapes:
        ``x (T, B, *N_in)`` -> ``y (T, B, *N_out)``, state ``()``. With ``lengths (B,)`` the outputs past a
        sample's end are zero (also their bias).
    """

    stateful: ClassVar[bool] = False
    """Whether it remembers: then its state is not empty, and in recurrence it is stepped."""

    @property
    def mixes_steps(self) -> bool:
        """Whether an output sees other steps than its own: those before it, and with some also those behind."""
        return self.stateful

    @abstractmethod
    def check(self, x: Tensor, lengths: Tensor | None) -> None:
        """Refuse what this synapse cannot take."""

    def rows(self) -> Tensor:
        """What each output weighs, ``(n_out, K)``: for the norms of weights and the inner products between outputs.

        Raises:
            ParameterError: this synapse has no such form.
        """
        raise ParameterError(f"{type(self).__name__} does not say what its outputs weigh (it has no rows()).")

    @abstractmethod
    def apply_steps(self, x: Tensor) -> Tensor:
        """Map every step of ``x (T, B, *N_in)``; the result is a new tensor."""

    def forward(
        self, x: Tensor, state: State | None = None, *, lengths: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Map every step of ``x`` by itself; ``state`` is ``()`` in and out."""
        self.check(x, lengths)
        if state is not None:
            check_state(self, state, ())
        # silenced before too: what stands in the padding, even NaN, must not reach the weight gradient
        return silence_padding(self.apply_steps(silence_padding(x, lengths)), lengths), ()


def uniform_(parameter: Tensor, fan_in: int) -> None:
    """Fill uniformly up to ±1/sqrt(fan_in): Kaiming's rule with the gain that torch's own layers use."""
    bound = 1.0 / math.sqrt(fan_in)
    nn.init.uniform_(parameter, -bound, bound)


def positive(owner: str, name: str, value: object) -> int:
    """A size as a positive integer.

    Raises:
        ParameterError: it is none.
    """
    if not is_whole(value):
        raise ParameterError(f"{owner} expected {name} to be a positive integer, got {value!r}.")
    return int(value)  # type: ignore[call-overload]


def per_axis(owner: str, name: str, value: object, axes: int, least: int) -> tuple[int, ...]:
    """One integer for each spatial axis, from one for all or a sequence.

    Raises:
        ParameterError: another number of them, not integers, or one below ``least``.
    """
    values: tuple[Any, ...] = tuple(value) if isinstance(value, (tuple, list)) else (value,) * axes
    if len(values) != axes or not all(is_whole(v, least) for v in values):
        raise ParameterError(
            f"{owner} expected {name} to be an integer >= {least}"
            + (f" or {axes} of them" if axes > 1 else "")
            + f", got {value!r}."
        )
    return tuple(int(v) for v in values)


def independent(rows: Tensor, groups: int) -> Tensor:
    """Rows of a grouped synapse side by side: outputs of different groups see different inputs, so their inner product is 0.

    Shapes:
        ``(n_out, K)`` -> ``(n_out, groups K)``.
    """
    if groups == 1:
        return rows
    return torch.block_diag(*rows.chunk(groups))


def last_frames(before: Tensor, x: Tensor, lengths: Tensor | None, kept: int) -> Tensor:
    """The last ``kept`` frames of each sample, ``before`` and the sequence together.

    Shapes:
        ``before (kept, B, *N)``, ``x (T, B, *N)`` -> ``(B, kept, *N)``.
    """
    steps = x.shape[0]
    if lengths is None:
        if steps < kept:
            return torch.cat([before[before.shape[0] - (kept - steps) :], x]).transpose(0, 1)
        frames = x[steps - kept :].transpose(0, 1)
        # a few frames are copied, so that whoever keeps them does not keep the sequence
        return frames.clone() if 2 * kept <= steps else frames
    frames = torch.cat([before, x]).transpose(0, 1)
    samples = torch.arange(frames.shape[0], device=frames.device).unsqueeze(1)
    return frames[samples, lengths.to(frames.device).unsqueeze(1) + torch.arange(kept, device=frames.device)]
