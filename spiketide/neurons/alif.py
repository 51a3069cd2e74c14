"""ALIF: adaptive threshold (Yin, Corradi & Bohté)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch

from ..errors import ParameterError
from ..surrogate import MultiGaussian, Surrogate, spike
from .base import OUTPUTS, RESETS, Constant, Neuron, Size, TimeConstant, Value, after_reset, check_choice

DELAYED = "delayed"


@functools.cache
def _step(reset: str, scale_input: bool, graded: bool) -> Callable[..., Any]:
    def step(
        x: Any, v: Any, a: Any, s: Any, decay_mem: Any, decay_adapt: Any, threshold: Any, adaptation: Any
    ) -> Any:
        a = decay_adapt * a + (1 - decay_adapt) * s
        moving = threshold + adaptation * a
        v = decay_mem * v + ((1 - decay_mem) * x if scale_input else x)
        if reset == DELAYED:
            v = v - moving * s
        z = torch.relu(v - moving) if graded else spike(v - moving)
        return z, (v if reset == DELAYED else after_reset(reset, v, z, moving)), a, z

    return step


class ALIF(Neuron):
    """Adaptive leaky integrate-and-fire: every spike raises the threshold, which decays back.

    With the spikes ``s`` of the step before::

        a' = decay_adapt a + (1 - decay_adapt) s
        moving = threshold + adaptation a'
        v' = decay_mem v + (1 - decay_mem) x - moving s       (reset="delayed", the paper's order)
        s' = 1 if v' > moving

    The other resets act in the same step, on ``v' = decay_mem v + (1 - decay_mem) x``: soft ``v' - moving s'`` and so on.

    Example:
        >>> import torch
        >>> from spiketide import ALIF
        >>> y, (v, a, s) = ALIF(1, threshold=0.1, learn=())(torch.full((30, 1, 1), 1.0))
        >>> int(y.sum()), round(float(a), 4)
        (9, 0.0369)

    Shapes:
        ``x (T, B, *n)`` -> spikes ``(T, B, *n)``; state ``(v, a, s)``, each ``(B, *n)``.

    Args:
        n: number of neurons, or the shape of a feature map.
        tau_mem: the paper's tau_m, in the unit of ``dt`` (one value per neuron when learnt).
        tau_adapt: the paper's tau_adp.
        threshold: the paper's b0: 0.01 in most tasks, 0.1 for S-MNIST, 1.6 for speech commands.
        adaptation: the paper's beta: 1.8 (0.184 for speech commands); 0 gives a LIF. On QTDB, 1.8 at a membrane
            scale of 0.01 silences a hidden layer.
        learn: names to train: ``"tau_mem"``, ``"tau_adapt"``, ``"threshold"``, ``"adaptation"``. The paper trains both taus.
        reset: ``delayed`` (the paper's), ``soft``, ``soft_detached``, ``hard``, ``hard_detached`` or ``none``.
        dt, discretisation, scale_input, surrogate, engine, checkpoint: as :class:`LIF`. The surrogate's default is the
            multi-Gaussian.
        output: ``"spikes"``, ``"membrane"``, or ``"relu"``: a graded ``relu(v' - moving)`` takes the place of the spike
            everywhere, in output, recurrence, adaptation and reset. This is the paper's ReLU-SRNN, the network without spikes.

    Raises:
        ParameterError: as :class:`LIF`; adaptation < 0; a hard reset with ``output="relu"``.

    Reference: Yin, Corradi & Bohté 2020 and 2021. Differs: the state starts at zero (theirs at random, also at test), and
        the time constants are parametrised so that they stay positive (theirs went negative).
    """

    states = ("v", "a", "s")
    outputs: ClassVar[tuple[str, ...]] = (*OUTPUTS, "relu")

    def __init__(
        self,
        n: Size,
        *,
        tau_mem: Value = 20.0,
        tau_adapt: Value = 200.0,
        dt: float = 1.0,
        threshold: Value = 0.01,
        adaptation: Value = 1.8,
        learn: Sequence[str] = ("tau_mem", "tau_adapt"),
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
        if output == "relu" and reset.startswith("hard"):
            raise ParameterError(
                f'ALIF(output="relu") expected a delayed, soft or no reset, got {reset!r}: a graded output s of 2 '
                "would turn the hard reset's v (1 - s) round."
            )
        chosen = self._learn(learn, ("tau_mem", "tau_adapt", "threshold", "adaptation"))
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
        self.threshold = Constant(
            "threshold", threshold, self.shape, learn="threshold" in chosen, low=0.0, role="thresholds"
        )
        # adaptation 0 (a LIF) is allowed when fixed, hence the bound a hair below zero
        low = 0.0 if "adaptation" in chosen else -1e-12
        self.adaptation = Constant(
            "adaptation", adaptation, self.shape, learn="adaptation" in chosen, low=low, role="thresholds"
        )

    @property
    def step(self) -> Callable[..., Any]:  # type: ignore[override]
        """The step for this reset, input scaling and kind of output."""
        return _step(self.reset, self.scale_input, self.output == "relu")

    def coefs(self) -> tuple[Any, ...]:
        """``(decay_mem, decay_adapt, threshold, adaptation)``."""
        return self.tau_mem.decay(), self.tau_adapt.decay(), self.threshold(), self.adaptation()
