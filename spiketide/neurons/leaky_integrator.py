"""LeakyIntegrator: a membrane that never fires, for read-outs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from .base import Neuron, Size, TimeConstant, Value


@functools.cache
def _step(scale_input: bool) -> Callable[..., Any]:
    def step(x: Any, v: Any, decay: Any) -> Any:
        v = decay * v + ((1 - decay) * x if scale_input else x)
        return v, v

    return step


class LeakyIntegrator(Neuron):
    """Leaky integrator: ``v' = decay v + (1 - decay) x``, and the output is the membrane itself.

    Example:
        >>> import torch
        >>> from spiketide import LeakyIntegrator
        >>> y, _ = LeakyIntegrator(1, tau_mem=1.0, scale_input=False)(torch.eye(3)[0].view(3, 1, 1))
        >>> [round(v, 4) for v in y.flatten().tolist()]
        [1.0, 0.3679, 0.1353]

    Shapes:
        ``x (T, B, *n)`` -> membrane ``(T, B, *n)`` (zero past a sample's length); state ``(v,)``, ``(B, *n)``.

    Args:
        n: number of units.
        tau_mem: time constant, in the unit of ``dt``.
        learn: ``("tau_mem",)`` to train it.
        scale_input: multiply the input by ``1 - decay`` (Yin et al.); False adds it as it is (Hammouamri et al.).
        dt, discretisation, engine, checkpoint: as :class:`LIF`.

    Raises:
        ParameterError: tau_mem <= 0 (euler: < dt), unknown names.

    Reference: Yin, Corradi & Bohté 2021 (their "integrator" read-out).
    """

    states = ("v",)
    spiking = False

    def __init__(
        self,
        n: Size,
        *,
        tau_mem: Value = 20.0,
        dt: float = 1.0,
        learn: Sequence[str] = (),
        discretisation: str = "exp",
        scale_input: bool = True,
        engine: str | None = None,
        checkpoint: int | None = None,
    ) -> None:
        self.scale_input = bool(scale_input)
        super().__init__(n, dt=dt, engine=engine, checkpoint=checkpoint)
        chosen = self._learn(learn, ("tau_mem",))
        self.tau_mem = TimeConstant(
            "tau_mem", tau_mem, self.shape, dt=dt, discretisation=discretisation, learn="tau_mem" in chosen
        )

    @property
    def step(self) -> Callable[..., Any]:  # type: ignore[override]
        """The step for this reset and input scaling."""
        return _step(self.scale_input)

    def coefs(self) -> tuple[Any, ...]:
        """``(decay,)``."""
        return (self.tau_mem.decay(),)
