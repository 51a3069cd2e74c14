"""Latency: the larger the value, the earlier its one spike."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import ParameterError, ShapeError
from .base import Encoder


class Latency(Encoder):
    """One spike per value, earlier for larger values; values up to the threshold never fire.

    ::

        linear (tau None):      t = round((steps - 1) (1 - x))                  1 fires in step 0
            normalise:          t = round((steps - 1) (1 - x) / (1 - threshold))  uses every step
        RC charging:            t = floor(tau / dt * log(x / (x - threshold)))  never if t >= steps

    The second is when a leaky integrator with time constant ``tau`` and constant input ``x``, begun at 0,
    crosses ``threshold``. A half is rounded up (to the later step). Deterministic; no gradient goes back to
    ``x``.

    Example:
        >>> import torch
        >>> from spiketide.encoders import Latency
        >>> encoder = Latency(5)
        >>> spikes = encoder(torch.tensor([[1.0, 0.5, 0.0]]))
        >>> spikes[:, 0].tolist()
        [[1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
        >>> encoder.inverse(spikes).tolist()
        [[1.0, 0.5, 0.0]]

    Shapes:
        ``x``: ``(B, *N)`` in [0, 1]; result: ``(steps, B, *N)`` of 0 and 1.

    Args:
        steps: Time steps ``T``.
        tau: Time constant of the charging in ms; ``None`` for the linear map.
        dt: Length of a step in ms, used with ``tau``.
        threshold: Values not above it never fire, in [0, 1). With ``tau`` it is the firing threshold and
            above 0.
        normalise: Linear map only: stretch it so that the values above the threshold use all steps.

    Raises:
        ParameterError: arguments out of range, or ``normalise`` with ``tau`` (that map has no last value to
        stretch to). ShapeError, DataError: see :class:`spiketide.encoders.Encoder`.

    Reference:
        RC form as in Zenke's SpyTorch tutorials (2019), there with tau 20 ms and threshold 0.2.
    """

    def __init__(
        self,
        steps: int,
        *,
        tau: float | None = None,
        dt: float = 1.0,
        threshold: float = 0.0,
        normalise: bool = False,
    ) -> None:
        super().__init__(steps)
        if not 0.0 <= threshold < 1.0:
            raise ParameterError(f"Latency expected a threshold in [0, 1), got {threshold!r}.")
        if not (dt > 0.0 and math.isfinite(dt)):
            raise ParameterError(f"Latency expected dt above 0 ms, got {dt!r}.")
        if tau is not None:
            if not (tau > 0.0 and math.isfinite(tau)):
                raise ParameterError(
                    f"Latency expected tau above 0 ms, or None for the linear map, got {tau!r}."
                )
            if threshold == 0.0:
                raise ParameterError(
                    "Latency expected a threshold above 0 with tau, got 0: every value would fire in step 0. "
                    "Try 0.2."
                )
            if normalise:
                raise ParameterError(
                    "Latency takes normalise with the linear map only: leave out tau or normalise."
                )
        self.tau = None if tau is None else float(tau)
        self.dt, self.threshold, self.normalise = float(dt), float(threshold), normalise

    def times(self, x: Tensor) -> Tensor:
        """The step of each value's spike, ``(B, *N)`` int64, and ``steps`` for a value that never fires."""
        if self.tau is None:
            span = 1.0 - self.threshold if self.normalise else 1.0
            t = ((self.steps - 1) * (1.0 - x) / span + 0.5).floor()
        else:
            # Values up to the threshold give log of a negative number or of infinity; they are replaced
            # below.
            t = (self.tau / self.dt * torch.log(x / (x - self.threshold))).floor()
        return torch.where((x > self.threshold) & (t < self.steps), t, self.steps).long()

    def encode(self, x: Tensor) -> Tensor:
        """The spikes."""
        # One row more catches those that never fire.
        rows = x.new_zeros(self.steps + 1, *x.shape)
        return rows.scatter_(0, self.times(x.detach()).unsqueeze(0), 1.0)[: self.steps]

    def inverse(self, spikes: Tensor) -> Tensor:
        """The values that spike trains stand for: ``(steps, B, *N)`` -> ``(B, *N)``, 0 where nothing fired.

        Exact for the linear map up to half a step; for the RC map the value that crosses in the middle of the
        step.
        """
        if spikes.dim() < 3 or spikes.shape[0] != self.steps:
            raise ShapeError(
                f"Latency.inverse expected spikes ({self.steps}, B, *N), got {tuple(spikes.shape)}: "
                "time comes first, and it has the encoder's steps."
            )
        fired, t = spikes.max(0)
        if self.tau is None:
            span = 1.0 - self.threshold if self.normalise else 1.0
            x = 1.0 - t * span / max(self.steps - 1, 1)
        else:
            x = (self.threshold / (1.0 - torch.exp(-(t + 0.5) * self.dt / self.tau))).clamp(max=1.0)
        return torch.where(fired > 0, x, 0.0).to(spikes.dtype)
