"""What one input spike does to a membrane over time, and how the membrane meets its threshold."""

from __future__ import annotations

import math

from torch import Tensor

from ..errors import ParameterError
from ..kernels.first_spike import Shape


class PSP:
    """A postsynaptic potential: piecewise linear, so that firing times are found exactly.

    ``eps(s)`` is called the kernel, ``s`` the time since the spike in steps. See :class:`Step`, :class:`Ramp`,
    :class:`RampUpDown`, :class:`ReL`, and :class:`FixedSlope`, where the layer also has a clock.
    """

    shape: Shape

    @property
    def unit(self) -> float:
        """Steps by which slopes are measured: the rise time, 1 for a jump."""
        return self.shape.rise or 1.0

    def value(self, s: Tensor) -> Tensor:
        """``eps(s)``, elementwise; ``s = -inf`` gives 0."""
        return self.shape.value(s)

    def slope(self, s: Tensor) -> Tensor:
        """``eps'(s)``, elementwise, from the left."""
        return self.shape.slope(s)

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value:g}" for name, value in vars(self).items() if name != "shape")
        return f"{type(self).__name__}({arguments})"


def _positive(word: str, name: str, number: float) -> float:
    if isinstance(number, bool) or not isinstance(number, (int, float)) or not 0 < number < math.inf:
        raise ParameterError(f"{word} expected {name} as a positive number of steps, got {number!r}.")
    return float(number)


class Step(PSP):
    """At once and for good: ``eps(s) = 1`` for ``s >= 0``. An integrate-and-fire neuron with instantaneous synapses.

    Example:
        >>> import torch
        >>> from spiketide.timing import Step
        >>> Step().value(torch.tensor([-1.0, 0.0, 5.0])).tolist()
        [0.0, 1.0, 1.0]

    Reference:
        Kheradpisheh & Masquelier 2020 (S4NN).
    """

    def __init__(self) -> None:
        self.shape = Shape(0.0)


class Ramp(PSP):
    """Up in a straight line, then it stays: ``eps(s) = min(s / rise, 1)`` for ``s > 0``.

    Example:
        >>> import torch
        >>> from spiketide.timing import Ramp
        >>> Ramp(4.0).value(torch.tensor([-1.0, 1.0, 4.0, 9.0])).tolist()
        [0.0, 0.25, 1.0, 1.0]

    Args:
        rise: steps of the way up.

    Raises:
        ParameterError: ``rise`` is not positive.

    Reference:
        One of the piecewise-linear kernels that fit the description of STiDi-BP (Mirsadeghi et al. 2021); the paper's own
        constants are not public.
    """

    def __init__(self, rise: float) -> None:
        self.rise = _positive("Ramp", "rise", rise)
        self.shape = Shape(self.rise)


class RampUpDown(PSP):
    """Up and down again: ``s / rise``, then ``(fall - s) / (fall - rise)``, then 0.

    Example:
        >>> import torch
        >>> from spiketide.timing import RampUpDown
        >>> RampUpDown(4.0, 8.0).value(torch.tensor([2.0, 4.0, 6.0, 9.0])).tolist()
        [0.5, 1.0, 0.5, 0.0]

    Args:
        rise: steps of the way up.
        fall: steps from the spike until it is 0 again.

    Raises:
        ParameterError: ``rise`` is not positive or ``fall`` is not above it.

    Reference:
        As :class:`Ramp`.
    """

    def __init__(self, rise: float, fall: float) -> None:
        self.rise, self.fall = (
            _positive("RampUpDown", "rise", rise),
            _positive("RampUpDown", "fall", fall),
        )
        if self.fall <= self.rise:
            raise ParameterError(
                f"RampUpDown expected fall above rise={self.rise:g}, got {fall!r}: it counts from the spike, not from the top."
            )
        self.shape = Shape(self.rise, self.fall)


class ReL(PSP):
    """A straight line that never ends (ReL-PSP): ``eps(s) = s / unit`` for ``s > 0``.

    With the window's length as ``unit`` it is :class:`Ramp` without a plateau inside the window.

    Example:
        >>> import torch
        >>> from spiketide.timing import ReL
        >>> ReL(4.0).value(torch.tensor([-1.0, 2.0, 8.0])).tolist()
        [0.0, 0.5, 2.0]

    Args:
        unit: steps in which it rises by 1.

    Raises:
        ParameterError: ``unit`` is not positive.

    Reference:
        M. Zhang et al., "Rectified linear postsynaptic potential function for backpropagation in deep spiking neural networks",
        arXiv:2003.11837.
    """

    def __init__(self, unit: float) -> None:
        self.shape = Shape(_positive("ReL", "unit", unit), plateau=False)

    def __repr__(self) -> str:
        return f"ReL(unit={self.unit:g})"


class FixedSlope(PSP):
    """Inputs are heard until ``start``; from there every membrane climbs to its threshold at one and the same speed.

    ::

        V(t) = sum_i w_i (min(t, start) - t_i)+ / length  +  threshold (t - start)+ / length
        fires in [start, start + length)

    All ramps end together at ``start``, when the layer's own window opens, and a reference drive common to the layer takes over.
    So ``t = start + length (1 - V(start) / threshold)``: a strong potential fires early, none at all is silent, and one already
    at the threshold fires at ``start``. The membrane's slope at the spike, by which every other kernel here divides, is a
    constant. That makes the linear approximation of STiDi-BP (``dt/dV`` is a constant) exact, and its non-recursive transfer
    ``w`` the true derivative ``dt_j/dt_i``; the price is time, as layers fire one after the other.

    Example:
        >>> import torch
        >>> from spiketide.timing import FixedSlope, TimingLinear
        >>> layer = TimingLinear(2, 2, psp=FixedSlope(64.0, 64.0), stop=128.0, exact=True)
        >>> layer.set_weight(torch.tensor([[0.5, 0.5], [1.0, -1.0]]))
        >>> layer(torch.tensor([[16.0, 32.0]])).tolist()  # V(start) = (48 + 32) / 128 and (48 - 32) / 64
        [[88.0, 112.0]]

    Args:
        start: when inputs end and the layer's window opens, steps.
        length: of the window, and of the ramp of one input, steps.

    Raises:
        ParameterError: a number that is not positive.

    Reference:
        A. Stanojevic et al., "High-performance deep spiking neural networks with 0.3 spikes per neuron", Nature Communications
        15, 2024 (the condition of a fixed slope at the threshold, B1). Differs: one learning rule more, whole steps of time.
    """

    def __init__(self, start: float, length: float) -> None:
        self.start, self.length = (
            _positive("FixedSlope", "start", start),
            _positive("FixedSlope", "length", length),
        )
        self.shape = Shape(self.length, plateau=False)
