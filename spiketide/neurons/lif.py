"""LIF: the leaky integrate-and-fire neuron."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from ..surrogate import Surrogate, spike
from .base import RESETS, Constant, Neuron, Size, TimeConstant, Value, after_reset, check_choice


@functools.cache
def _step(reset: str, scale_input: bool) -> Callable[..., Any]:
    def step(x: Any, v: Any, decay: Any, threshold: Any) -> Any:
        v = decay * v + ((1 - decay) * x if scale_input else x)
        s = spike(v - threshold)
        return s, after_reset(reset, v, s, threshold)

    return step


class LIF(Neuron):
    """Leaky integrate-and-fire.

    ``v' = decay v + x`` (or ``decay v + (1 - decay) x``); ``s = 1 if v' > threshold``; then the reset: soft
    ``v = v' - threshold s``, hard ``v = v' (1 - s)``. ``decay = exp(-dt / tau_mem)``, or ``1 - dt / tau_mem`` (euler).

    Example:
        >>> import torch
        >>> from spiketide import LIF
        >>> y, (v,) = LIF(1, tau_mem=20.0)(torch.full((4, 1, 1), 0.4))
        >>> y.flatten().tolist()
        [0.0, 0.0, 1.0, 0.0]

    Shapes:
        ``x (T, B, *n)`` -> spikes ``(T, B, *n)``; state ``(v,)``, ``(B, *n)``.

    Args:
        n: number of neurons, or the shape of a feature map.
        tau_mem: membrane time constant, in the unit of ``dt``; a number, one per neuron, or an initialiser.
        dt: length of a step (milliseconds by convention).
        threshold: firing threshold, > 0.
        learn: names to train: ``"tau_mem"``, ``"threshold"``.
        discretisation: ``"exp"`` or ``"euler"``.
        scale_input: multiply the input by ``1 - decay``, so that the membrane is a moving average of it.
        reset: ``soft``, ``soft_detached``, ``hard``, ``hard_detached`` or ``none``.
        surrogate, engine, checkpoint, output: as :class:`Neuron`.

    Raises:
        ParameterError: tau_mem <= 0 (euler: < dt), threshold <= 0, dt <= 0, unknown reset, discretisation or constant.

    Reference: charge, fire, reset in this order within a step, strictly above the threshold. Hammouamri et al. 2023 §3 is
        ``LIF(n, tau_mem=10.05, dt=10.0, discretisation="euler", reset="hard_detached", surrogate=ATan(5.0))``; they fire at
        equality too, which matters on a set of measure zero only.
    """

    states = ("v",)

    def __init__(
        self,
        n: Size,
        *,
        tau_mem: Value = 20.0,
        dt: float = 1.0,
        threshold: Value = 1.0,
        learn: Sequence[str] = (),
        discretisation: str = "exp",
        scale_input: bool = False,
        reset: str = "soft",
        surrogate: Surrogate | None = None,
        engine: str | None = None,
        checkpoint: int | None = None,
        output: str = "spikes",
    ) -> None:
        self.reset = check_choice("reset", reset, RESETS)
        self.scale_input = bool(scale_input)
        super().__init__(n, surrogate=surrogate, dt=dt, engine=engine, checkpoint=checkpoint, output=output)
        chosen = self._learn(learn, ("tau_mem", "threshold"))
        self.tau_mem = TimeConstant(
            "tau_mem", tau_mem, self.shape, dt=dt, discretisation=discretisation, learn="tau_mem" in chosen
        )
        self.threshold = Constant(
            "threshold", threshold, self.shape, learn="threshold" in chosen, low=0.0, role="thresholds"
        )

    @property
    def step(self) -> Callable[..., Any]:  # type: ignore[override]
        """The step for this reset and input scaling."""
        return _step(self.reset, self.scale_input)

    def membrane_decay(self) -> Any:
        """What is left of the membrane after a step."""
        return self.tau_mem.decay()

    def coefs(self) -> tuple[Any, ...]:
        """``(decay, threshold)``."""
        return self.tau_mem.decay(), self.threshold()
