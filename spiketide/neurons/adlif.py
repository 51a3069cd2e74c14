"""AdLIF: sub-threshold adaptation by a second current."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from ..surrogate import MultiGaussian, Surrogate, spike
from .base import RESETS, Constant, Neuron, Size, TimeConstant, Value, after_reset, check_choice

DELAYED = "delayed"


@functools.cache
def _step(reset: str, scale_input: bool) -> Callable[..., Any]:
    def step(
        x: Any,
        v: Any,
        w: Any,
        s: Any,
        decay_mem: Any,
        decay_adapt: Any,
        coupling: Any,
        jump: Any,
        threshold: Any,
    ) -> Any:
        w = decay_adapt * w + (1 - decay_adapt) * (coupling * v + jump * s)
        v = decay_mem * v + ((1 - decay_mem) * (x - w) if scale_input else x - w)
        if reset == DELAYED:
            v = v - threshold * s
        z = spike(v - threshold)
        return z, (v if reset == DELAYED else after_reset(reset, v, z, threshold)), w, z

    return step


class AdLIF(Neuron):
    """Adaptive LIF with an adaptation current that the membrane (coupling) and the spikes (jump) drive; it can resonate.

    With the spikes ``s`` of the step before::

        w' = decay_adapt w + (1 - decay_adapt) (coupling v + jump s)
        v' = decay_mem v + (1 - decay_mem) (x - w') - threshold s     (reset="delayed")
        s' = 1 if v' > threshold

    The sub-threshold system is stable for ``-1 < coupling < (1 + d)(1 + r) / ((1 - d)(1 - r))`` with the decays ``d`` and
    ``r``: its determinant is ``d r`` and its trace ``d + r - (1 - d)(1 - r) coupling``. The parametrisation keeps a learnable
    coupling in (-1, 1), stable for every time constant. That is for ``scale_input=True``; with the bare input,
    ``v' = decay_mem v + x - w'``, the lower bound is
    ``-(1 - d)``: a more negative coupling feeds the membrane more than its leak takes.

    Example:
        >>> import torch
        >>> from spiketide import AdLIF
        >>> y, (v, w, s) = AdLIF(1, learn=())(torch.full((40, 1, 1), 0.5))
        >>> int(y.sum())
        7

    Shapes:
        ``x (T, B, *n)`` -> spikes ``(T, B, *n)``; state ``(v, w, s)``, each ``(B, *n)``.

    Args:
        n: number of neurons, or the shape of a feature map.
        tau_mem, tau_adapt: time constants of membrane and adaptation current, in the unit of ``dt``.
        coupling: sub-threshold coupling (the literature's a), in (-1, 1).
        jump: spike-triggered jump (the literature's b).
        learn: names to train: ``"tau_mem"``, ``"tau_adapt"``, ``"coupling"``, ``"jump"``, ``"threshold"``.
        threshold, dt, discretisation, scale_input, surrogate, engine, checkpoint, output: as :class:`LIF`. The surrogate's
            default is the multi-Gaussian.
        reset: ``delayed`` (one step later), ``soft``, ``soft_detached``, ``hard``, ``hard_detached`` or ``none``.

    Raises:
        ParameterError: as :class:`LIF`; coupling outside (-1, 1).

    Reference: Bittar & Garner 2022; update order chosen in trials on QTDB. Differs from Bittar & Garner: explicit
        (1 - decay_adapt), reset one step later without the decay factor.
    """

    states = ("v", "w", "s")

    def __init__(
        self,
        n: Size,
        *,
        tau_mem: Value = 20.0,
        tau_adapt: Value = 60.0,
        coupling: Value = 0.5,
        jump: Value = 1.0,
        dt: float = 1.0,
        threshold: Value = 0.1,
        learn: Sequence[str] = ("tau_mem", "tau_adapt", "coupling", "jump"),
        discretisation: str = "exp",
        scale_input: bool = True,
        reset: str = DELAYED,
        surrogate: Surrogate | None = None,
        engine: str | None = None,
        checkpoint: int | None = None,
        output: str = "spikes",
    ) -> None:
        self.reset = check_choice("reset", reset, (DELAYED, *RESETS))
        self.scale_input = bool(scale_input)
        super().__init__(
            n,
            surrogate=surrogate or MultiGaussian(),
            dt=dt,
            engine=engine,
            checkpoint=checkpoint,
            output=output,
        )
        chosen = self._learn(learn, ("tau_mem", "tau_adapt", "coupling", "jump", "threshold"))
        self.tau_mem = TimeConstant(
            "tau_mem", tau_mem, self.shape, dt=dt, discretisation=discretisation, learn="tau_mem" in chosen
        )
        self.tau_adapt = TimeConstant(
            "tau_adapt",
            tau_adapt,
            self.shape,
            dt=dt,
            discretisation=discretisation,
            learn="tau_adapt" in chosen,
        )
        self.coupling = Constant(
            "coupling", coupling, self.shape, learn="coupling" in chosen, low=-1.0, high=1.0
        )
        self.jump = Constant("jump", jump, self.shape, learn="jump" in chosen)
        self.threshold = Constant(
            "threshold", threshold, self.shape, learn="threshold" in chosen, low=0.0, role="thresholds"
        )

    @property
    def step(self) -> Callable[..., Any]:  # type: ignore[override]
        """The step for this reset and input scaling."""
        return _step(self.reset, self.scale_input)

    def coefs(self) -> tuple[Any, ...]:
        """``(decay_mem, decay_adapt, coupling, jump, threshold)``."""
        return self.tau_mem.decay(), self.tau_adapt.decay(), self.coupling(), self.jump(), self.threshold()
