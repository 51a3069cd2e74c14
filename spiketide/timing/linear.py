"""Fully connected neurons that fire at most once."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from ..errors import ParameterError, ShapeError
from ..kernels import first_spike
from ..kernels.first_spike import Fired
from ..kernels.projection import product
from ..shapes import is_whole
from .base import TimingLayer


class TimingLinear(TimingLayer):
    r"""Every input reaches every neuron, and each neuron fires once at most.

    .. math:: V_j(t) = \sum_i w_{ji}\, \varepsilon(t - t_i) \qquad t_j = \min \{t < \mathrm{stop} : V_j(t) \ge \theta\}

    Example:
        >>> import torch
        >>> from spiketide.timing import Ramp, TimingLinear
        >>> layer = TimingLinear(2, 1, psp=Ramp(16.0), stop=64.0)
        >>> layer.set_weight(torch.tensor([[1.0, 0.5]]))
        >>> layer(torch.tensor([[0.0, 4.0], [float("inf"), 4.0]])).tolist()  # (s + (s - 4) / 2) / 16 = 1 at 12
        [[12.0], [inf]]

    Shapes:
        ``times (B, n_in)`` -> ``(B, n_out)``, steps; ``inf``: never. Parameters: ``weight (n_out, n_in)`` (membrane:
        ``weight * scale``).

    Args:
        n_in: number of inputs.
        n_out: number of neurons.
        **layer: kernel, window, rule, binary weights: see :class:`.base.TimingLayer`.

    Raises:
        ParameterError: a size that is not a positive integer, or an option out of range.
        ShapeError: input of another rank or size, of integers, or no tensor.
        NonFiniteError: NaN or negative times.

    Reference:
        The model of S4NN (Kheradpisheh & Masquelier 2020, kernel :class:`.psp.Step`) and STiDi-BP (Mirsadeghi et al. 2021) with
        other piecewise-linear kernels. The firing time is found from the events, not by stepping.
    """

    def __init__(self, n_in: int, n_out: int, **layer: Any):
        for name, size in (("n_in", n_in), ("n_out", n_out)):
            if not is_whole(size):
                raise ParameterError(f"TimingLinear expected {name} as a positive integer, got {size!r}.")
        n_in, n_out = int(n_in), int(n_out)
        self.n_in, self.n_out = n_in, n_out
        super().__init__((n_out, n_in), n_in, **layer)

    def check(self, times: Tensor) -> None:
        """Refuse anything but ``(B, n_in)``."""
        if times.dim() != 2 or times.shape[1] != self.n_in:
            hint = " Put spiketide.timing.Flatten() in front." if times.dim() > 2 else ""
            raise ShapeError(
                f"TimingLinear expected spike times (B, {self.n_in}), got {tuple(times.shape)}.{hint}"
            )

    def charge(self, times: Tensor, weight: Tensor, *, potential: bool, slope: bool = True) -> Fired:
        """See :func:`spiketide.kernels.first_spike.fire_linear`."""
        return first_spike.fire_linear(
            times,
            weight,
            self.psp.shape,
            threshold=self.threshold,
            stop=self.stop,
            exact=self.exact,
            potential=potential,
            slope=slope,
        )

    def mix(self, x: Tensor, weight: Tensor) -> Tensor:
        """``x @ weight.T``."""
        return F.linear(x, weight)

    def unmix(self, grad: Tensor, x: Tensor, weight: Tensor, wanted: tuple[bool, bool]) -> tuple[Any, Any]:
        """Its gradients."""
        if grad.device.type != "cpu":
            return (grad @ weight if wanted[0] else None), (grad.t() @ x if wanted[1] else None)
        return (product(grad, weight) if wanted[0] else None), (product(grad.t(), x) if wanted[1] else None)

    def extra_repr(self) -> str:
        """Sizes and settings, as ``print(layer)`` shows them."""
        return f"{self.n_in}, {self.n_out}, {super().extra_repr()}"
