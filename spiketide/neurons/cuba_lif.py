"""CubaLIF: current-based LIF, a synaptic current in front of the membrane."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from ..surrogate import Surrogate, spike
from .base import RESETS, Constant, Neuron, Size, TimeConstant, Value, after_reset, check_choice


@functools.cache
def _step(reset: str, scale_input: bool) -> Callable[..., Any]:
    def step(x: Any, v: Any, i: Any, decay_mem: Any, decay_syn: Any, threshold: Any) -> Any:
        i = decay_syn * i + x
        v = decay_mem * v + ((1 - decay_mem) * i if scale_input else i)
        s = spike(v - threshold)
        return s, after_reset(reset, v, s, threshold), i

    return step


class CubaLIF(Neuron):
    """Current-based leaky integrate-and-fire: the input charges a synaptic current that charges the membrane.

    ``i' = decay_syn i + x``; ``v' = decay_mem v + i'`` (or ``(1 - decay_mem) i'``); ``s = 1 if v' > threshold``; reset as LIF.

    Example:
        >>> import torch
        >>> from spiketide import CubaLIF
        >>> y, (v, i) = CubaLIF(1, tau_mem=20.0, tau_syn=5.0)(torch.eye(4)[0].view(4, 1, 1))
        >>> y.flatten().tolist()
        [0.0, 1.0, 1.0, 0.0]

    Shapes:
        ``x (T, B, *n)`` -> spikes ``(T, B, *n)``; state ``(v, i)``, each ``(B, *n)``.

    Args:
        n: number of neurons, or the shape of a feature map.
        tau_mem, tau_syn: membrane and synaptic time constants, in the unit of ``dt``.
        learn: names to train: ``"tau_mem"``, ``"tau_syn"``, ``"threshold"``.
        dt, threshold, discretisation, scale_input, reset, surrogate, engine, checkpoint, output: as :class:`LIF`.

    Raises:
        ParameterError: as :class:`LIF`.

    Reference: NIR's CubaLIF; here the current jumps before the membrane of the same step sees it (no step of delay).
    """

    states = ("v", "i")

    def __init__(
        self,
        n: Size,
        *,
        tau_mem: Value = 20.0,
        tau_syn: Value = 5.0,
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
        chosen = self._learn(learn, ("tau_mem", "tau_syn", "threshold"))
        self.tau_mem = TimeConstant(
            "tau_mem", tau_mem, self.shape, dt=dt, discretisation=discretisation, learn="tau_mem" in chosen
        )
        self.tau_syn = TimeConstant(
            "tau_syn", tau_syn, self.shape, dt=dt, discretisation=discretisation, learn="tau_syn" in chosen
        )
        self.threshold = Constant(
            "threshold", threshold, self.shape, learn="threshold" in chosen, low=0.0, role="thresholds"
        )

    @property
    def step(self) -> Callable[..., Any]:  # type: ignore[override]
        """The step for this reset and input scaling."""
        return _step(self.reset, self.scale_input)

    def coefs(self) -> tuple[Any, ...]:
        """``(decay_mem, decay_syn, threshold)``."""
        return self.tau_mem.decay(), self.tau_syn.decay(), self.threshold()
