"""SE-adLIF: the adaptive LIF with a symplectic update."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import ParameterError
from ..surrogate import SLAYER, Surrogate, spike
from .base import RESETS, Constant, Neuron, Size, Value, after_reset, check_choice, check_dt

_HAIR = 1e-3
"""Share of a range at either end in which nothing is drawn: there the sigmoid that keeps a constant inside is flat."""


@functools.cache
def _step(reset: str, gain: float) -> Callable[..., Any]:
    def step(
        x: Any, v: Any, w: Any, decay_mem: Any, decay_adapt: Any, coupling: Any, jump: Any, threshold: Any
    ) -> Any:
        v = decay_mem * v + (1 - decay_mem) * (x - w)
        s = spike(v - threshold)
        v = after_reset(reset, v, s, threshold)
        w = decay_adapt * w + (1 - decay_adapt) * (gain * (coupling * v + jump * s))
        return s, v, w

    return step


def _inside(low: float, high: float) -> Callable[[tuple[int, ...]], Tensor]:
    """An initialiser: uniform draws strictly between the bounds."""

    def draw(shape: tuple[int, ...]) -> Tensor:
        return low + (high - low) * (_HAIR + (1 - 2 * _HAIR) * torch.rand(shape))

    return draw


def _interval(name: str, given: Sequence[float], least: float) -> tuple[float, float]:
    bounds = tuple(given)
    numbers = all(isinstance(b, (int, float)) and math.isfinite(b) for b in bounds)
    if len(bounds) != 2 or not numbers or not least < bounds[0] < bounds[1]:
        raise ParameterError(f"{name} expected (low, high) with {least:g} < low < high, got {given!r}.")
    return float(bounds[0]), float(bounds[1])


class SEAdLIF(Neuron):
    """AdLIF with a symplectic (semi-implicit) Euler step: the adaptation current sees the membrane of its own step.

    ::

        v' = decay_mem v + (1 - decay_mem) (x - w)
        s' = 1 if v' > threshold;  v' <- v' (1 - s')                        (reset="hard", the paper's)
        w' = decay_adapt w + (1 - decay_adapt) gain (coupling v' + jump s')

    An explicit step, which takes the old membrane for ``w'`` and the old ``w`` for ``v'``, adds energy to an oscillation at
    every step. This one does not: below the threshold it has the determinant ``d r`` of the decays, whatever the coupling, and
    the trace ``d + r - (1 - d)(1 - r) gain coupling``, so it is stable for
    ``-1 < gain coupling < (1 + d)(1 + r) / ((1 - d)(1 - r))``.
    (:class:`AdLIF` is semi-implicit too, the other way round: ``w'`` first, and the last spike acts one step later.)

    Every constant is kept between bounds, as in the paper: a learnable one is ``low + (high - low) sigmoid(raw)``.

    Example:
        >>> import torch
        >>> from spiketide import SEAdLIF
        >>> neuron = SEAdLIF(1, tau_mem=15.0, tau_adapt=180.0, coupling=0.1, jump=0.2, learn=())
        >>> y, (v, w) = neuron(torch.full((40, 1, 1), 10.0))
        >>> int(y.sum()), bool(w > 0)
        (17, True)

    Shapes:
        ``x (T, B, *n)`` -> spikes ``(T, B, *n)``; state ``(v, w)``, each ``(B, *n)``.

    Args:
        n: number of neurons, or the shape of a feature map.
        tau_mem, tau_adapt: time constants of membrane and adaptation current, in the unit of ``dt``. The default draws one per
            neuron evenly from its range.
        coupling: sub-threshold coupling (the paper's a), in [0, 1], times ``gain``; the default draws one per neuron.
        jump: spike-triggered jump (the paper's b), in [0, 2], times ``gain``; the default draws one per neuron.
        learn: names to train: ``"tau_mem"``, ``"tau_adapt"``, ``"coupling"``, ``"jump"``, ``"threshold"``.
        gain: the paper's q. It brings a and b to the size of the other parameters.
        tau_mem_range, tau_adapt_range: bounds of the time constants, in the unit of ``dt``.
        dt: length of a step. The paper's ranges count steps: give them times ``dt`` where it is not 1.
        threshold, discretisation, reset, engine, checkpoint, output: as :class:`LIF`.
        surrogate: default ``SLAYER(5, 0.4)``; the paper's ECG networks have ``SLAYER(5, 0.2)``.

    Raises:
        ParameterError: as :class:`LIF`; a constant outside its range; ranges within which the neuron can be unstable.

    Reference: Baronig et al. 2025, "Advancing spatio-temporal processing through adaptation in spiking neural networks",
        the SE-adLIF with q = 120, tau_u in [5, 25] and tau_w in [60, 300]. Differs: their parameters are clipped to the bounds
        and these are mapped between them by a sigmoid, so that a constant at a bound still has a gradient.
    """

    states = ("v", "w")

    def __init__(
        self,
        n: Size,
        *,
        tau_mem: Value | None = None,
        tau_adapt: Value | None = None,
        coupling: Value | None = None,
        jump: Value | None = None,
        threshold: Value = 1.0,
        learn: Sequence[str] = ("tau_mem", "tau_adapt", "coupling", "jump"),
        gain: float = 120.0,
        tau_mem_range: tuple[float, float] = (5.0, 25.0),
        tau_adapt_range: tuple[float, float] = (60.0, 300.0),
        dt: float = 1.0,
        discretisation: str = "exp",
        reset: str = "hard",
        surrogate: Surrogate | None = None,
        engine: str | None = None,
        checkpoint: int | None = None,
        output: str = "spikes",
    ) -> None:
        self.reset = check_choice("reset", reset, RESETS)
        self.discretisation = check_choice("discretisation", discretisation, ("exp", "euler"))
        if not (isinstance(gain, (int, float)) and math.isfinite(gain) and gain > 0):
            raise ParameterError(f"SEAdLIF expected gain > 0, got {gain!r}.")
        self.gain = float(gain)
        dt = check_dt(dt)
        least = 0.0 if discretisation == "exp" else dt
        mem = _interval("tau_mem_range", tau_mem_range, least)
        adapt = _interval("tau_adapt_range", tau_adapt_range, least)
        # the bound on the coupling grows with both time constants, so the corner of the smallest is the worst
        d, r = (self._multiplier(low, dt) for low in (mem[0], adapt[0]))
        bound = (1 + d) * (1 + r) / ((1 - d) * (1 - r))
        if self.gain >= bound:
            raise ParameterError(
                f"SEAdLIF expected a gain below {bound:.4g}, where a coupling of 1 is unstable at tau_mem = {mem[0]:g} and "
                f"tau_adapt = {adapt[0]:g} with dt = {dt:g}, got {self.gain:g}: the paper's ranges and gain count steps, so give "
                "the ranges times dt, or a smaller gain."
            )
        super().__init__(
            n,
            surrogate=surrogate or SLAYER(5.0, 0.4),
            dt=dt,
            engine=engine,
            checkpoint=checkpoint,
            output=output,
        )
        chosen = self._learn(learn, ("tau_mem", "tau_adapt", "coupling", "jump", "threshold"))

        def bounded(name: str, value: Value | None, bounds: tuple[float, float], role: str) -> Constant:
            start = _inside(*bounds) if value is None else value
            learnt = name in chosen
            # a fixed constant may stand on its bound; a learnable one could not be mapped there
            slack = 0.0 if learnt else 1e-6 * bounds[1]
            return Constant(
                name,
                start,
                self.shape,
                learn=learnt,
                low=bounds[0] - slack,
                high=bounds[1] + slack,
                role=role,
            )

        self.tau_mem = bounded("tau_mem", tau_mem, mem, "time_constants")
        self.tau_adapt = bounded("tau_adapt", tau_adapt, adapt, "time_constants")
        self.coupling = bounded("coupling", coupling, (0.0, 1.0), "weights")
        self.jump = bounded("jump", jump, (0.0, 2.0), "weights")
        self.threshold = Constant(
            "threshold", threshold, self.shape, learn="threshold" in chosen, low=0.0, role="thresholds"
        )

    def _multiplier(self, tau: float, dt: float) -> float:
        return math.exp(-dt / tau) if self.discretisation == "exp" else 1 - dt / tau

    def _decay(self, tau: Tensor) -> Tensor:
        ratio = self.dt / tau
        return torch.exp(-ratio) if self.discretisation == "exp" else 1 - ratio

    @property
    def step(self) -> Callable[..., Any]:  # type: ignore[override]
        """The step for this reset and gain."""
        return _step(self.reset, self.gain)

    def coefs(self) -> tuple[Any, ...]:
        """``(decay_mem, decay_adapt, coupling, jump, threshold)``."""
        return (
            self._decay(self.tau_mem()),
            self._decay(self.tau_adapt()),
            self.coupling(),
            self.jump(),
            self.threshold(),
        )
