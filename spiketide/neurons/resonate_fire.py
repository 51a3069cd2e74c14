"""BRF: the balanced resonate-and-fire neuron."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import ParameterError
from ..surrogate import MultiGaussian, Surrogate, spike
from .base import Constant, Neuron, Size, Value

FASTEST = 0.95
"""Largest ``delta omega``: at 1 the boundary of divergence is reached without any damping left to choose."""


@functools.cache
def _step(delta: float, decay_refractory: float) -> Callable[..., Any]:
    def step(x: Any, v: Any, w: Any, a: Any, rotation: Any, retention: Any, threshold: Any) -> Any:
        keep = retention - delta * a
        new = keep * v - rotation * w + delta * x
        w = rotation * v + keep * w
        s = spike(new - (threshold + a))
        return s, new, w, decay_refractory * a + s

    return step


class BalancedResonateFire(Neuron):
    """Balanced resonate-and-fire (BRF): a damped oscillator that fires on the inputs of its own rhythm.

    With the complex membrane ``v + i w``, its angular frequency ``omega`` and the refractory ``a``::

        b  = p(omega) - damping - a           p(omega) = (-1 + sqrt(1 - (delta omega)^2)) / delta
        v' = v + delta (b v - omega w + x)
        w' = w + delta (omega v + b w)
        s' = 1 if v' > threshold + a
        a' = decay_refractory a + s'

    There is no reset of the membrane: a spike raises the threshold and damps the oscillation, and both wear off.
    ``p(omega)`` is the boundary of divergence: there the step is a pure rotation by ``asin(delta omega)``. With the damping
    above 0 every step shrinks ``v + i w``, so the membrane is bounded for bounded input, for all constants in their ranges:
    ``0 < omega < 0.95 / delta`` and ``0 < damping < 2 sqrt(1 - 0.95^2) / delta - 1 / (1 - decay_refractory)``, whatever has
    been learnt.

    ``delta`` is the paper's dt, the length of its Euler step in its own unit of time, 0.01 for every data set. It is a number of
    the model, which also scales input and damping, and not the duration of a frame: the neuron has no ``dt``, and a frame is
    one step. A lightly damped oscillation of ``p`` steps has ``omega = sin(2 pi / p) / delta``, for ``p`` from 5;
    :meth:`period` tells it.

    Example:
        >>> import math, torch
        >>> from spiketide import BalancedResonateFire
        >>> neuron = BalancedResonateFire(1, omega=math.sin(2 * math.pi / 20) / 0.01, damping=1.0, learn=())
        >>> time = torch.arange(200).view(-1, 1, 1)
        >>> [int(neuron(10 * torch.cos(2 * math.pi * time / p))[0].sum()) for p in (10, 20, 40)]    # periods of the input
        [0, 18, 0]

    Shapes:
        ``x (T, B, *n)`` -> spikes ``(T, B, *n)``; state ``(v, w, a)``, each ``(B, *n)``.

    Args:
        n: number of neurons, or the shape of a feature map.
        omega: angular frequency, in radians per unit of ``delta``; the default draws one per neuron evenly from 5 to 10.
        damping: the paper's b-offset, per unit of ``delta``; the default draws one per neuron evenly from 2 to 3.
        threshold: the paper's theta, 1.
        learn: names to train: ``"omega"``, ``"damping"``, ``"threshold"``.
        delta: length of the Euler step.
        decay_refractory: what a step leaves of the refractory, in [0, 1).
        surrogate, engine, checkpoint, output: as :class:`LIF`. The surrogate's default is the multi-Gaussian.

    Raises:
        ParameterError: as :class:`LIF`; a constant outside its range; delta <= 0; decay_refractory outside [0, 1); both so
            large that no damping would be stable.

    Reference: Higuchi et al. 2024, "Balanced Resonate-and-Fire Neurons"; their u, v, q, b-offset are ``v``, ``w``, ``a``,
        ``damping``. Their omega and offset begin evenly in [5, 10] and [2, 3], and for S-MNIST in [15, 50] and [0.1, 1].
        Differs: they take the absolute value of both and leave them unbounded, which lets omega cross ``1 / delta``, where p is
        not a number; their double Gaussian does not shift the two side lobes by sigma.
    """

    states = ("v", "w", "a")

    def __init__(
        self,
        n: Size,
        *,
        omega: Value | None = None,
        damping: Value | None = None,
        threshold: Value = 1.0,
        learn: Sequence[str] = ("omega", "damping"),
        delta: float = 0.01,
        decay_refractory: float = 0.9,
        surrogate: Surrogate | None = None,
        engine: str | None = None,
        checkpoint: int | None = None,
        output: str = "spikes",
    ) -> None:
        if not (isinstance(delta, (int, float)) and math.isfinite(delta) and delta > 0):
            raise ParameterError(f"BalancedResonateFire expected delta > 0, got {delta!r}.")
        if not (isinstance(decay_refractory, (int, float)) and 0 <= decay_refractory < 1):
            raise ParameterError(
                f"BalancedResonateFire expected decay_refractory in [0, 1), got {decay_refractory!r}."
            )
        self.delta, self.decay_refractory = float(delta), float(decay_refractory)
        # |1 + delta b| must stay below the root for the largest refractory too, which fires at every step
        most = 2 * math.sqrt(1 - FASTEST**2) / self.delta - 1 / (1 - self.decay_refractory)
        if most <= 0:
            raise ParameterError(
                f"BalancedResonateFire expected delta (now {self.delta:g}) and decay_refractory (now {self.decay_refractory:g}) "
                "with delta / (1 - decay_refractory) below 0.62: a neuron that keeps firing would diverge; lower one of them."
            )
        super().__init__(
            n, surrogate=surrogate or MultiGaussian(), engine=engine, checkpoint=checkpoint, output=output
        )
        chosen = self._learn(learn, ("omega", "damping", "threshold"))

        def even(low: float, high: float) -> Callable[[tuple[int, ...]], Tensor]:
            return lambda shape: low + (high - low) * torch.rand(shape)

        self.omega = Constant(
            "omega",
            even(5.0, 10.0) if omega is None else omega,
            self.shape,
            learn="omega" in chosen,
            low=0.0,
            high=FASTEST / self.delta,
            role="time_constants",
        )
        self.damping = Constant(
            "damping",
            even(2.0, 3.0) if damping is None else damping,
            self.shape,
            learn="damping" in chosen,
            low=0.0,
            high=most,
            role="time_constants",
        )
        self.threshold = Constant(
            "threshold", threshold, self.shape, learn="threshold" in chosen, low=0.0, role="thresholds"
        )

    @property
    def step(self) -> Callable[..., Any]:  # type: ignore[override]
        """The step for this delta and refractory decay."""
        return _step(self.delta, self.decay_refractory)

    def period(self) -> Tensor:
        """Steps in which a free oscillation comes round, one number per neuron or one for all."""
        rotation, retention, _ = self.coefs()
        return 2 * math.pi / torch.atan2(rotation, retention)

    def coefs(self) -> tuple[Any, ...]:
        """``(rotation, retention, threshold)``: ``delta omega``, and ``1 + delta b`` without the refractory."""
        rotation = self.delta * self.omega()
        retention = torch.sqrt(1 - rotation * rotation) - self.delta * self.damping()
        return rotation, retention, self.threshold()
