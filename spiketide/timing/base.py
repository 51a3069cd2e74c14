"""What layers of spike times share: weights, firing, and the backward pass of a learning rule."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import NonFiniteError, ParameterError, ShapeError
from ..kernels import first_spike, fixed_slope
from ..kernels.first_spike import Fired, Terms, Window
from ..shapes import check_dtype, check_tensor
from .psp import PSP, FixedSlope, ReL, Step
from .rules import Rule, STiDi


class TimingLayer(nn.Module, ABC):
    """Neurons that fire at most once: spike times in, spike times out.

    A tensor of spike times ``(B, *N)`` counts in steps since the input began; ``inf`` says that the neuron never fired. The
    weights are kept as ``weight``, of size about 1, times one number for the layer, ``scale``, so that one learning rate
    fits every layer and calibration (:func:`spiketide.timing.calibrate`) only sets ``scale``. With ``binary`` the forward pass
    sees the signs of ``weight`` times ``scale``, and the update passes straight through to ``weight``.

    The gradient that :meth:`forward` passes on is the layer's learning rule, not autograd's: see :class:`.rules.Rule`. A loss
    gives the displacements, so ``loss.backward()`` and any optimiser of torch work as usual.

    Args:
        fan_in: inputs of a neuron.
        psp: the kernel; ``None`` is ``ReL(stop)``.
        stop: end of the layer's window, steps: a neuron that has not fired before never fires.
        threshold: of the membrane.
        exact: spikes between the steps; else the first whole step at or after the crossing.
        rule: the learning rule; ``None`` is ``STiDi()``.
        binary: forward with the signs of the weights.
        learn_scale: ``scale`` is learnt too.
        mean: mean of the initial weights in units of ``1 / sqrt(0.3 fan_in)``; their deviation is 1.

    Raises:
        ParameterError: a number out of range, a kernel that does not go with the rule.
    """

    weight: nn.Parameter
    scale: Tensor
    window: Window | None = None
    """Where a convolution looks; ``None``: every input reaches every neuron."""

    def __init__(
        self,
        shape: tuple[int, ...],
        fan_in: int,
        *,
        psp: PSP | None = None,
        stop: float = 64.0,
        threshold: float = 1.0,
        exact: bool = False,
        rule: Rule | None = None,
        binary: bool = False,
        learn_scale: bool = False,
        mean: float = 1.0,
    ):
        super().__init__()
        word = type(self).__name__
        if not 0 < stop < math.inf or (not exact and stop != int(stop)):
            raise ParameterError(
                f"{word} expected stop as a positive number of steps, whole unless exact=True, got {stop!r}."
            )
        if not 0 < threshold < math.inf or not math.isfinite(mean):
            raise ParameterError(
                f"{word} expected a threshold above 0 and a finite mean, got {threshold!r} and {mean!r}."
            )
        self.psp = ReL(float(stop)) if psp is None else psp
        self.rule = STiDi() if rule is None else rule
        for name, part, kind in (("psp", self.psp, PSP), ("rule", self.rule, Rule)):
            if not isinstance(part, kind):
                raise ParameterError(
                    f"{word} expected {name} as a spiketide.timing.{kind.__name__}, got {part!r}."
                )
        if isinstance(self.psp, FixedSlope) and not math.isclose(self.psp.start + self.psp.length, stop):
            raise ParameterError(
                f"{word} expected stop={self.psp.start + self.psp.length:g}, the end of {self.psp!r}, got {stop!r}."
            )
        needs_slope = "exact" in (self.rule.transfer, self.rule.slope) or self.rule.slope == "local"
        if isinstance(self.psp, Step) and (needs_slope or self.rule.transfer == "share"):
            raise ParameterError(
                f"{word}: {self.rule!r} divides by the slope of the membrane, and with Step() there is none. Use Ramp, "
                "RampUpDown or ReL, or a rule with slope 'constant' or 'chord' and transfer 'weight' or 'sign'."
            )
        if isinstance(self.psp, FixedSlope) and self.rule.transfer == "share":
            raise ParameterError(f"{word}: transfer 'share' is not defined with FixedSlope; use 'weight'.")
        self.stop, self.threshold, self.exact = float(stop), float(threshold), bool(exact)
        self.binary, self.mean, self.fan_in = bool(binary), float(mean), fan_in
        self.weight = nn.Parameter(torch.empty(shape))
        if learn_scale:
            self.scale = nn.Parameter(torch.tensor(1.0))
        else:
            self.register_buffer("scale", torch.tensor(1.0))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew and put the scale where half the inputs at half the window reach the threshold."""
        with torch.no_grad():
            self.weight.normal_(self.mean / math.sqrt(0.3 * self.fan_in), 1.0)
            self.scale.fill_(2.0 * self.threshold / math.sqrt(self.fan_in))

    @property
    def start(self) -> float:
        """When the layer's window opens: 0 but with :class:`.psp.FixedSlope`."""
        return self.psp.start if isinstance(self.psp, FixedSlope) else 0.0

    def effective_weight(self) -> Tensor:
        """The weights that the membrane sees; the gradient goes straight through the sign."""
        return (_Sign.apply(self.weight) if self.binary else self.weight) * self.scale

    def set_weight(self, weight: Tensor) -> None:
        """Give the membrane these weights: stored as they are, with a scale of 1 (binary: of their one magnitude).

        Args:
            weight: of the shape of ``weight``.

        Raises:
            ShapeError: another shape, or no tensor.
            ParameterError: a binary layer and weights of different magnitudes, or all of 0.
            NonFiniteError: NaN or infinite weights.
        """
        check_tensor(type(self).__name__, weight, "weights")
        if weight.shape != self.weight.shape:
            raise ShapeError(
                f"{type(self).__name__} expected weights {tuple(self.weight.shape)}, got {tuple(weight.shape)}."
            )
        if not bool(torch.isfinite(weight).all()):
            raise NonFiniteError(
                f"{type(self).__name__} got {int((~torch.isfinite(weight)).sum())} NaN or Inf among {weight.numel()} weights."
            )
        size = weight.abs().amax()
        if self.binary and (not bool(size > 0) or not bool((weight.abs() == size).all())):
            raise ParameterError(
                f"{type(self).__name__} is binary: all weights need one magnitude above 0, got "
                f"{float(weight.abs().amin()):g} to {float(size):g}."
            )
        with torch.no_grad():
            self.weight.copy_(weight / size if self.binary else weight)
            self.scale.fill_(float(size) if self.binary else 1.0)

    @abstractmethod
    def check(self, times: Tensor) -> None:
        """Refuse a wrong shape."""

    def check_times(self, times: Tensor) -> None:
        """Refuse what is no tensor of spike times that fits.

        Raises:
            ShapeError: no tensor, another shape, or not of float32 or float64.
            NonFiniteError: NaN or negative times.
        """
        check_tensor(type(self).__name__, times, "spike times")
        if times.dtype not in (torch.float32, torch.float64):
            raise ShapeError(
                f"{type(self).__name__} expected spike times of float32 or float64 (inf: never), got {times.dtype}: "
                "times.float()."
            )
        self.check(times)
        if isinstance(self.psp, FixedSlope):
            check_dtype(self, times, self.weight)
        # NaN is less than anything here
        if times.numel() and not float(times.detach().amin()) >= 0:
            bad = int((~(times >= 0)).sum())
            raise NonFiniteError(
                f"{type(self).__name__} expected spike times from 0 on, or inf, got {bad} of {times.numel()} that are NaN or "
                "negative."
            )

    @abstractmethod
    def charge(self, times: Tensor, weight: Tensor, *, potential: bool, slope: bool = True) -> Fired:
        """First spikes with these weights; potentials and slopes that are not wanted may come back empty."""

    @abstractmethod
    def mix(self, x: Tensor, weight: Tensor) -> Tensor:
        """The plain weighted sum, for :class:`.psp.FixedSlope`."""

    @abstractmethod
    def unmix(self, grad: Tensor, x: Tensor, weight: Tensor, wanted: tuple[bool, bool]) -> tuple[Any, Any]:
        """Its gradients: of the input, of the weights."""

    def forward(self, times: Tensor) -> Tensor:
        """First spike of each neuron, ``inf`` where there is none.

        Args:
            times: of the inputs, ``(B, *N)``.
        """
        return self.fire(times, potential=False).times

    def fire(self, times: Tensor, *, potential: bool = True) -> Fired:
        """The same with the potentials: at the spike, or at the window's end where none came.

        Args:
            times: of the inputs, ``(B, *N)``.
            potential: whether the potentials are wanted; else that field may be empty.
        """
        self.check_times(times)
        fired: tuple[Tensor, Tensor, Tensor] = _FirstSpike.apply(
            times, self.effective_weight(), self, potential
        )
        return Fired(*fired)

    def virtual(self, fired: Fired, reach: float = 1.0, limit: float = 2.0) -> Tensor:
        """Spike times in which a silent neuron has one past the window, later the farther it is from its threshold.

        ``stop + reach L min(1 - V(stop) / threshold, limit)`` with ``L`` the length of the window. For training alone: a decision
        never uses it.

        Args:
            fired: from :meth:`fire`.
            reach: factor.
            limit: most of the bracket.
        """
        gap = (1 - fired.potential / self.threshold).clamp(0, limit)
        return torch.where(
            torch.isfinite(fired.times), fired.times, self.stop + reach * (self.stop - self.start) * gap
        )

    def extra_repr(self) -> str:
        """Settings, as ``print(layer)`` shows them."""
        return f"{self.psp!r}, stop={self.stop:g}, {self.rule!r}" + (", binary" if self.binary else "")


class _Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        return torch.where(weight >= 0, 1.0, -1.0).to(weight.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class _FirstSpike(torch.autograd.Function):
    """Forward the exact firing time; backward the rule, with ``grad = -d``.

    A silent neuron has a gradient only where a loss gives it one (an output): its time is then the end of the window and its
    ``G`` is that of ``"constant"``.
    """

    @staticmethod
    def forward(
        ctx: Any, times: Tensor, weight: Tensor, layer: TimingLayer, potential: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.layer = layer
        if isinstance(layer.psp, FixedSlope):
            psp = layer.psp
            x = fixed_slope.activity(times, psp.start, psp.length)
            found, at = fixed_slope.meet(
                layer.mix(x, weight),
                psp.start,
                psp.length,
                layer.threshold,
                exact=layer.exact,
                potential=potential,
            )
            ctx.save_for_backward(x, weight, found)
            slope = torch.full_like(at, layer.threshold / psp.length)
            result = (found, at, slope)
        else:
            wanted = potential or (any(ctx.needs_input_grad[:2]) and _terms(layer).steep)
            fired = layer.charge(times, weight, potential=potential, slope=wanted)
            ctx.save_for_backward(times, weight, fired.times, fired.slope)
            result = (fired.times, fired.potential, fired.slope)
        ctx.mark_non_differentiable(result[1], result[2])
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, Tensor | None, None, None]:
        layer: TimingLayer = ctx.layer
        rule = layer.rule
        wants_times, wants_weight = ctx.needs_input_grad[:2]
        back: Tensor
        d: Tensor | None
        if isinstance(layer.psp, FixedSlope):
            x, weight, found = ctx.saved_tensors
            # dt = -length / threshold dv, dx = -dt_in / length
            g = fixed_slope.release(grad, found, layer.psp.start, layer.threshold)
            g_update = g if rule.slope != "chord" else g * _chord(found, layer)
            back = weight if rule.transfer != "sign" else torch.where(weight >= 0, 1.0, -1.0).to(weight.dtype)
            if g_update is g and back is weight:
                d, dw = layer.unmix(g, x, weight, (wants_times, wants_weight))
            else:
                d, dw = (
                    layer.unmix(g, x, back, (wants_times, False))[0],
                    layer.unmix(g_update, x, weight, (False, wants_weight))[1],
                )
            if dw is not None:
                dw = dw.mul_(-layer.psp.length)  # it is nobody else's
            if d is not None:
                d = fixed_slope.keep(d, x)
                d = first_spike.even(grad, d) if rule.normalise else d
        else:
            times, weight, found, slope = ctx.saved_tensors
            dw, d = first_spike.learn(
                times,
                Fired(found, found[:0], slope),
                grad,
                weight,
                layer.psp.shape,
                layer.window,
                _terms(layer),
                wants_times=wants_times,
            )
        return (d if wants_times else None), (dw if wants_weight else None), None, None


def _chord(found: Tensor, layer: TimingLayer) -> Tensor:
    """``t / (2 u)``, of the time since the window began; half the window's length in units for a silent neuron."""
    since = torch.where(torch.isinf(found), layer.stop, found) - layer.start
    return since / (2 * layer.psp.unit)


def _terms(layer: TimingLayer) -> Terms:
    rule = layer.rule
    return Terms(rule.slope, rule.transfer, rule.normalise, layer.psp.unit, rule.slope_limit, layer.stop)
