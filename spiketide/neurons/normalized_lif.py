"""NormalizedLIF: a leaky neuron whose threshold is counted in the squared norm of its own weights."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import ParameterError
from ..init import Init
from ..surrogate import Sigmoid, Surrogate, spike
from .base import RESETS, Constant, Neuron, Size, Value, after_reset, check_choice

SHARED = ("layer", "channel", "neuron")


@functools.cache
def _step(reset: str) -> Callable[..., Any]:
    def step(x: Any, v: Any, decay: Any, threshold: Any, gain: Any) -> Any:
        v = decay * v + gain * x
        s = spike(v - threshold)
        return s, after_reset(reset, v, s, threshold)

    return step


class NormalizedLIF(Neuron):
    r"""Leaky integrate-and-fire whose membrane is a moving average of its drive, in units of its weights' squared norm.

    .. math:: v[t] = \beta\, (v[t-1] - b\, s[t-1]) + (1 - \beta)\, x[t], \qquad s[t] = [v[t] > b]

    Behind a synapse with weights ``w``, :class:`spiketide.Normalized` and :class:`spiketide.Lateral` give it ``x = w·in /
    |w|^2``: it then fires when the average of ``w·in`` exceeds ``b |w|^2``, with the gradient through the norm. Alone it takes
    ``x`` as it comes.

    Example:
        >>> import torch
        >>> from spiketide import Dense, Normalized, NormalizedLIF
        >>> layer = Normalized(Dense(4, 8, bias=False), NormalizedLIF(8, threshold=0.5))
        >>> y, state = layer(torch.rand(20, 3, 4))
        >>> tuple(y.shape)
        (20, 3, 8)

    Shapes:
        ``x (T, B, *n)`` -> spikes ``(T, B, *n)``; state ``(v,)``, ``(B, *n)``.

    Args:
        n: number of neurons, or the shape of a feature map.
        decay: the paper's beta, what is left of the membrane after a step, above 0 and below 1 (``exp(-dt / tau)``: 0.7 are 28 ms
            at steps of 10 ms); a number, a tensor, or an initialiser.
        threshold: the paper's b, > 0; one per neuron (channel) where it is learnt.
        leaky: ``False``: no leak (the paper's NLIF): ``beta = 1`` and the drive counts in full.
        decay_per: what shares a decay: ``"layer"`` (as published), ``"channel"`` or ``"neuron"``.
        learn: names to train: ``"decay"``, ``"threshold"``.
        reset: ``soft`` (by the threshold, as above), ``soft_detached``, ``hard``, ``hard_detached``, or ``none``: for
            :class:`spiketide.Lateral`, whose connections do it.
        dt, surrogate, engine, checkpoint, output: as :class:`LIF`. The surrogate's default is the paper's,
            ``Sigmoid(10.0, scaled=False)``.

    Raises:
        ParameterError: decay outside (0, 1), threshold <= 0, an unknown name, or a decay to learn without a leak.

    Reference: Zimmer, Pellegrini, Singh & Masquelier 2019. There decay and threshold are clamped after
        each step of the optimiser (0 and 1 included); here they are stored so that they cannot leave their range. The reset takes
        the whole threshold, ``b (|w|^2 + 1e-8)``, there ``b |w|^2``. NLIF is our reading: with ``beta = 1`` their ``(1 - beta)``
        would silence the input.
    """

    states = ("v",)

    def __init__(
        self,
        n: Size,
        *,
        decay: Value = 0.7,
        threshold: Value = 1.0,
        leaky: bool = True,
        decay_per: str = "layer",
        learn: Sequence[str] = (),
        reset: str = "soft",
        dt: float = 1.0,
        surrogate: Surrogate | None = None,
        engine: str | None = None,
        checkpoint: int | None = None,
        output: str = "spikes",
    ) -> None:
        self.reset = check_choice("reset", reset, RESETS)
        self.leaky = bool(leaky)
        super().__init__(
            n,
            surrogate=surrogate or Sigmoid(10.0, scaled=False),
            dt=dt,
            engine=engine,
            checkpoint=checkpoint,
            output=output,
        )
        chosen = self._learn(learn, ("decay", "threshold"))
        check_choice("decay_per", decay_per, SHARED)
        if not leaky and "decay" in chosen:
            raise ParameterError(
                "NormalizedLIF expected no decay to learn with leaky=False: there is no leak."
            )
        if leaky:
            shared = {
                "layer": (1,) * len(self.shape),
                "channel": (self.shape[0], *(1,) * (len(self.shape) - 1)),
                "neuron": self.shape,
            }[decay_per]
            if isinstance(decay, Init) or (callable(decay) and not isinstance(decay, Tensor)):
                decay = decay(shared)
            elif isinstance(decay, (int, float)) and not isinstance(decay, bool) and "decay" in chosen:
                decay = torch.full(shared, float(decay))
            self.decay = Constant(
                "decay", decay, self.shape, learn="decay" in chosen, low=0.0, high=1.0, role="time_constants"
            )
        self.threshold = Constant(
            "threshold", threshold, self.shape, learn="threshold" in chosen, low=0.0, role="thresholds"
        )

    @property
    def step(self) -> Callable[..., Any]:  # type: ignore[override]
        """The step for this reset."""
        return _step(self.reset)

    def membrane_decay(self) -> Tensor:
        """What is left of the membrane after a step."""
        decay: Tensor = self.decay() if self.leaky else self.threshold().new_ones(())
        return decay

    def gain(self) -> Tensor:
        """What the drive is multiplied by: ``1 - decay``, or 1 without a leak."""
        decay = self.membrane_decay()
        return 1.0 - decay if self.leaky else decay

    def coefs(self) -> tuple[Any, ...]:
        """``(decay, threshold, gain)``."""
        decay = self.membrane_decay()
        return decay, self.threshold(), 1.0 - decay if self.leaky else decay
