"""IF: the integrate-and-fire neuron, without a leak."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from ..surrogate import Surrogate, spike
from .base import RESETS, Constant, Neuron, Size, Value, after_reset, check_choice


@functools.cache
def _step(reset: str) -> Callable[..., Any]:
    def step(x: Any, v: Any, threshold: Any) -> Any:
        v = v + x
        s = spike(v - threshold)
        return s, after_reset(reset, v, s, threshold)

    return step


class IF(Neuron):
    """Integrate-and-fire: the membrane sums its input and fires above the threshold.

    ``v' = v + x``; ``s = 1 if v' > threshold``; then the reset: soft ``v = v' - threshold s``, hard ``v = v' (1 - s)``.

    Example:
        >>> import torch
        >>> from spiketide import IF
        >>> y, (v,) = IF(1)(torch.full((5, 1, 1), 0.4))
        >>> y.flatten().tolist(), round(float(v), 4)
        ([0.0, 0.0, 1.0, 0.0, 0.0], 1.0)

    Shapes:
        ``x (T, B, *n)`` -> spikes ``(T, B, *n)``; state ``(v,)``, ``(B, *n)``.

    Args:
        n: number of neurons, or the shape of a feature map.
        threshold: firing threshold, > 0.
        learn: ``("threshold",)`` to train it.
        reset: ``soft``, ``soft_detached``, ``hard``, ``hard_detached`` or ``none``.
        surrogate, dt, engine, checkpoint, output: as :class:`Neuron`.

    Raises:
        ParameterError: threshold <= 0, unknown reset or learnable constant.

    Reference: Lapicque 1907; charge, fire, reset in this order within a step, strictly above the threshold (as NIR).
    """

    states = ("v",)

    def __init__(
        self,
        n: Size,
        *,
        threshold: Value = 1.0,
        learn: Sequence[str] = (),
        reset: str = "soft",
        surrogate: Surrogate | None = None,
        dt: float = 1.0,
        engine: str | None = None,
        checkpoint: int | None = None,
        output: str = "spikes",
    ) -> None:
        self.reset = check_choice("reset", reset, RESETS)
        super().__init__(n, surrogate=surrogate, dt=dt, engine=engine, checkpoint=checkpoint, output=output)
        chosen = self._learn(learn, ("threshold",))
        self.threshold = Constant(
            "threshold", threshold, self.shape, learn="threshold" in chosen, low=0.0, role="thresholds"
        )

    @property
    def step(self) -> Callable[..., Any]:  # type: ignore[override]
        """The step for this reset."""
        return _step(self.reset)

    def coefs(self) -> tuple[Any, ...]:
        """``(threshold,)``."""
        return (self.threshold(),)
