"""Rate code: at every step a spike with a probability that grows with the value."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import ParameterError
from .base import Encoder


class Poisson(Encoder):
    """Independent spikes at a rate proportional to the value.

    ::

        P(s[t] = 1) = x * max_rate * dt / 1000                      max_rate in Hz, dt in ms

    At most one spike per step, so it is the Bernoulli approximation of a Poisson train, good while the
    probability is small. In training mode every call draws anew, from torch's global generator. In eval mode
    every call begins from ``seed``, so that the same batch gives the same spikes and a test result can be
    repeated (on every device: those numbers are drawn on the CPU); with ``seed=None`` evaluation draws anew
    too. The draws of a sample depend on its place in the batch.

    Example:
        >>> import torch
        >>> from spiketide.encoders import Poisson
        >>> encoder = Poisson(1000, max_rate=100.0).eval()
        >>> s = encoder(torch.tensor([[1.0, 0.5, 0.0]]))
        >>> [round(rate, 2) for rate in s.mean(0)[0].tolist()]
        [0.1, 0.05, 0.0]
        >>> bool((encoder(torch.tensor([[1.0, 0.5, 0.0]])) == s).all())
        True

    Shapes:
        ``x``: ``(B, *N)`` in [0, 1]; result: ``(steps, B, *N)`` of 0 and 1.

    Args:
        steps: Time steps ``T``.
        max_rate: Rate of the value 1, in Hz; at most one spike per step, ``max_rate * dt / 1000 <= 1``.
        dt: Length of a step in ms.
        seed: Seed of every call in eval mode, or ``None``.

    Raises:
        ParameterError: a rate that is negative or above one spike per step, ``dt`` not above 0.
        ShapeError, DataError: see :class:`spiketide.encoders.Encoder`.
    """

    def __init__(self, steps: int, *, max_rate: float = 100.0, dt: float = 1.0, seed: int | None = 0) -> None:
        super().__init__(steps)
        if not (dt > 0.0 and math.isfinite(dt)):
            raise ParameterError(f"Poisson expected dt above 0 ms, got {dt!r}.")
        if not (max_rate >= 0.0 and max_rate * dt / 1000.0 <= 1.0):
            raise ParameterError(
                f"Poisson expected max_rate from 0 to {1000.0 / dt:g} Hz (one spike per step of {dt:g} ms), "
                f"got {max_rate!r}."
            )
        self.max_rate, self.dt, self.seed = float(max_rate), float(dt), seed

    def encode(self, x: Tensor) -> Tensor:
        """The spikes."""
        probability = (x.detach() * (self.max_rate * self.dt / 1000.0)).float()
        shape = (self.steps, *x.shape)
        if self.training or self.seed is None:
            draws = torch.rand(shape, device=x.device)
        else:
            draws = torch.rand(shape, generator=torch.Generator().manual_seed(self.seed)).to(x.device)
        return (draws < probability).to(x.dtype)
