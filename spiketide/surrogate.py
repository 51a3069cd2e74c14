"""Spikes and the surrogate gradients they are trained with.

A spike is ``s = 1 if x > 0 else 0`` (strictly above) of ``x``, the membrane minus its threshold. Its derivative is zero
almost everywhere, so the backward pass uses a surrogate derivative instead (Neftci, Mostafa & Zenke 2019).

Every surrogate gives its ``derivative`` (what the backward multiplies with) and its ``primitive`` (a smooth function
with that derivative, the *smooth twin* used to check gradients numerically). Both are written with ordinary torch
arithmetic; the fused engines read the same two methods, so a surrogate of your own is a subclass with two methods.

Example:
    >>> import torch
    >>> from spiketide import spike
    >>> from spiketide.surrogate import FastSigmoid
    >>> x = torch.tensor([-0.1, 0.0, 0.1], requires_grad=True)
    >>> s = spike(x, FastSigmoid(10.0))
    >>> s.sum().backward()
    >>> s.tolist(), [round(g, 4) for g in x.grad.tolist()]
    ([0.0, 0.0, 1.0], [0.25, 1.0, 0.25])
"""

from __future__ import annotations

import contextlib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from .errors import ParameterError

__all__ = [
    "SLAYER",
    "ATan",
    "Boxcar",
    "FastSigmoid",
    "Gaussian",
    "MultiGaussian",
    "Sigmoid",
    "Smooth",
    "Surrogate",
    "Triangle",
    "spike",
    "spike_derivative",
]


def _positive(owner: object, **values: float) -> None:
    for name, value in values.items():
        if not (isinstance(value, (int, float)) and math.isfinite(value) and value > 0):
            raise ParameterError(f"{type(owner).__name__} expected {name} > 0, got {value!r}.")


class Surrogate(ABC):
    """A surrogate derivative for the spike: subclass with :meth:`derivative` and :meth:`primitive`.

    Two surrogates with the same class and the same constants are equal and share their compiled kernels.
    """

    smooth: bool = False
    """True for the smooth twin only, whose forward is the primitive itself."""

    @abstractmethod
    def derivative(self, x: Any) -> Any:
        """Surrogate derivative at ``x = membrane - threshold``, element-wise; shape of ``x``."""

    @abstractmethod
    def primitive(self, x: Any) -> Any:
        """A function whose derivative is :meth:`derivative`, element-wise; shape of ``x``."""

    def __setattr__(self, name: str, value: Any) -> None:
        # kernels are compiled for the constants, and equal surrogates share them
        if name in self.__dict__:
            raise ParameterError(
                f"a {type(self).__name__} is constant: make a new one instead of setting {name}."
            )
        super().__setattr__(name, value)

    def _constants(self) -> tuple[tuple[str, Any], ...]:
        return tuple(sorted(vars(self).items()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self._constants())})"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self._constants() == other._constants()

    def __hash__(self) -> int:
        return hash((type(self), self._constants()))


class ATan(Surrogate):
    """Arctangent: ``slope/2 / (1 + (pi/2 slope x)^2)``, height ``slope/2``, integral 1.

    Args:
        slope: the paper's alpha; 2 in Fang et al., 5 in Hammouamri et al.

    Reference: Fang et al. 2021 (ICCV), eq. 9; Hammouamri et al. 2023 with slope 5.
    """

    def __init__(self, slope: float = 2.0) -> None:
        _positive(self, slope=slope)
        self.slope = float(slope)

    def derivative(self, x: Any) -> Any:
        """``slope/2 / (1 + (pi/2 slope x)^2)``."""
        z = (math.pi / 2 * self.slope) * x
        return (self.slope / 2) / (1 + z * z)

    def primitive(self, x: Any) -> Any:
        """``atan(pi/2 slope x) / pi + 1/2``."""
        return torch.atan((math.pi / 2 * self.slope) * x) * (1 / math.pi) + 0.5


class FastSigmoid(Surrogate):
    """Fast sigmoid (SuperSpike): ``1 / (1 + slope |x|)^2``, height 1.

    Args:
        slope: steepness; Zenke & Ganguli use 100 with membranes in volts, 10 to 25 is usual at threshold 1.

    Reference: Zenke & Ganguli 2018, eq. 11.
    """

    def __init__(self, slope: float = 10.0) -> None:
        _positive(self, slope=slope)
        self.slope = float(slope)

    def derivative(self, x: Any) -> Any:
        """``1 / (1 + slope |x|)^2``."""
        z = 1 + self.slope * torch.abs(x)
        return 1 / (z * z)

    def primitive(self, x: Any) -> Any:
        """``x / (1 + slope |x|)``."""
        return x / (1 + self.slope * torch.abs(x))


class Sigmoid(Surrogate):
    """Logistic: ``slope sigma(slope x) sigma(-slope x)``; without its slope factor if ``scaled=False``.

    Args:
        slope: steepness.
        scaled: False leaves out the chain factor ``slope`` (height 1/4 whatever the slope), as Zimmer et al.'s code does.

    Reference: Zimmer et al. 2019 and their code (slope 10, unscaled); scaled form as in Neftci et al. 2019.
    """

    def __init__(self, slope: float = 10.0, *, scaled: bool = True) -> None:
        _positive(self, slope=slope)
        self.slope = float(slope)
        self.scaled = bool(scaled)

    def derivative(self, x: Any) -> Any:
        """``(slope or 1) sigma(slope x) (1 - sigma(slope x))``."""
        p = torch.sigmoid(self.slope * x)
        return (self.slope if self.scaled else 1.0) * (p * (1 - p))

    def primitive(self, x: Any) -> Any:
        """``sigma(slope x)`` (divided by the slope if not scaled)."""
        return torch.sigmoid(self.slope * x) * (1.0 if self.scaled else 1 / self.slope)


class Triangle(Surrogate):
    """Triangle: ``height max(0, 1 - |x| / width)``.

    Args:
        height: value at the threshold. Bellec et al. use 0.3, Yin et al. 0.5 with width 1.
        width: half width of the base.

    Reference: Bellec et al. 2018, eq. 2 (height 0.3); Yin et al. 2021 ("linear": gamma 0.5).
    """

    def __init__(self, height: float = 1.0, width: float = 1.0) -> None:
        _positive(self, height=height, width=width)
        self.height, self.width = float(height), float(width)

    def derivative(self, x: Any) -> Any:
        """``height max(0, 1 - |x| / width)``."""
        z = 1 - torch.abs(x) * (1 / self.width)
        return self.height * torch.where(z > 0, z, 0.0 * z)

    def primitive(self, x: Any) -> Any:
        """The integral: two parabolas from 0 to ``height width``."""
        z = torch.clamp(x * (1 / self.width), -1.0, 1.0)
        return (self.height * self.width) * (0.5 + z - 0.5 * z * torch.abs(z))


def _normal(x: Any, mean: float, sigma: float) -> Any:
    z = (x - mean) * (1 / sigma) if mean else x * (1 / sigma)
    return torch.exp(-0.5 * (z * z)) * (1 / (sigma * math.sqrt(2 * math.pi)))


def _normal_cdf(x: Any, mean: float, sigma: float) -> Any:
    return 0.5 * (1 + torch.erf((x - mean) * (1 / (sigma * math.sqrt(2)))))


class Gaussian(Surrogate):
    """Gaussian: ``scale N(x; 0, sigma)``.

    Args:
        sigma: standard deviation ("lens").
        scale: factor in front ("gamma"); 0.5 gives 0.3989 at the threshold for sigma 0.5.

    Reference: Yin, Corradi & Bohté 2020.
    """

    def __init__(self, sigma: float = 0.5, scale: float = 0.5) -> None:
        _positive(self, sigma=sigma, scale=scale)
        self.sigma, self.scale = float(sigma), float(scale)

    def derivative(self, x: Any) -> Any:
        """``scale N(x; 0, sigma)``."""
        return self.scale * _normal(x, 0.0, self.sigma)

    def primitive(self, x: Any) -> Any:
        """``scale`` times the normal distribution function."""
        return self.scale * _normal_cdf(x, 0.0, self.sigma)


class MultiGaussian(Surrogate):
    """Multi-Gaussian: a central lobe minus two wide side lobes, negative far from the threshold.

    ``scale [ (1 + h) N(x; 0, sigma) - h N(x; sigma, s sigma) - h N(x; -sigma, s sigma) ]``

    Args:
        h: height of the side lobes.
        s: their width in units of sigma (the paper's "scale", 6).
        sigma: width of the central lobe.
        scale: factor in front ("gamma", 0.5).

    Reference: Yin, Corradi & Bohté 2021: h 0.15, s 6, sigma 0.5, gamma 0.5; at 0 it is 0.43911, its first
    zero is at 1.27216, its integral 0.425.
    """

    def __init__(self, h: float = 0.15, s: float = 6.0, sigma: float = 0.5, scale: float = 0.5) -> None:
        _positive(self, h=h, s=s, sigma=sigma, scale=scale)
        self.h, self.s, self.sigma, self.scale = float(h), float(s), float(sigma), float(scale)

    def derivative(self, x: Any) -> Any:
        """The three lobes."""
        wide = self.s * self.sigma
        side = _normal(x, self.sigma, wide) + _normal(x, -self.sigma, wide)
        return self.scale * ((1 + self.h) * _normal(x, 0.0, self.sigma) - self.h * side)

    def primitive(self, x: Any) -> Any:
        """The three distribution functions."""
        wide = self.s * self.sigma
        side = _normal_cdf(x, self.sigma, wide) + _normal_cdf(x, -self.sigma, wide)
        return self.scale * ((1 + self.h) * _normal_cdf(x, 0.0, self.sigma) - self.h * side)


class SLAYER(Surrogate):
    """Two-sided exponential: ``scale exp(-slope |x|)``.

    Args:
        slope: decay away from the threshold.
        scale: height at the threshold; 0.4 in Baronig et al. (SE-adLIF), 0.5 in Yin et al.

    Reference: Shrestha & Orchard 2018; Yin et al. 2021 (slope 5); Baronig et al. 2025 (slope 5, scale 0.4).
    """

    def __init__(self, slope: float = 5.0, scale: float = 1.0) -> None:
        _positive(self, slope=slope, scale=scale)
        self.slope, self.scale = float(slope), float(scale)

    def derivative(self, x: Any) -> Any:
        """``scale exp(-slope |x|)``."""
        return self.scale * torch.exp(-self.slope * torch.abs(x))

    def primitive(self, x: Any) -> Any:
        """The Laplace distribution function, times ``2 scale / slope``."""
        tail = torch.exp(-self.slope * torch.abs(x))
        return (self.scale / self.slope) * torch.where(x > 0, 2 - tail, tail)


class Boxcar(Surrogate):
    """Boxcar: ``height`` where ``|x| < width / 2``, else 0.

    Args:
        width: full width of the box.
        height: value inside; 1 gives the integral ``width``.

    Reference: Kaiser et al. 2020; Fabre et al. 2025 (SiLIF) with width 1, height 1.
    """

    def __init__(self, width: float = 1.0, height: float = 1.0) -> None:
        _positive(self, width=width, height=height)
        self.width, self.height = float(width), float(height)

    def derivative(self, x: Any) -> Any:
        """``height`` inside the box."""
        inside = torch.abs(x) < self.width / 2
        return torch.where(inside, 0.0 * x + self.height, 0.0 * x)

    def primitive(self, x: Any) -> Any:
        """A ramp from 0 to ``height width``."""
        return self.height * (torch.clamp(x, -self.width / 2, self.width / 2) + self.width / 2)


class Smooth(Surrogate):
    """The smooth twin: the forward *is* the primitive, so gradients can be checked by finite differences.

    It never fires binary spikes; it exists for tests (``torch.autograd.gradcheck`` in float64) and for studying a
    surrogate. Primitives with kinks (triangle, boxcar, fast sigmoid) are smooth almost everywhere only.

    Args:
        base: the surrogate whose twin this is.
    """

    smooth = True

    def __init__(self, base: Surrogate) -> None:
        self.base = base

    def derivative(self, x: Any) -> Any:
        """The base's derivative."""
        return self.base.derivative(x)

    def primitive(self, x: Any) -> Any:
        """The base's primitive."""
        return self.base.primitive(x)


_active: ContextVar[Surrogate | None] = ContextVar("spiketide_surrogate", default=None)


@contextlib.contextmanager
def use(surrogate: Surrogate) -> Iterator[None]:
    """Make ``surrogate`` the one that :func:`spike` uses inside the block (engines call a neuron's step so)."""
    token = _active.set(surrogate)
    try:
        yield
    finally:
        _active.reset(token)


class _Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, surrogate: Surrogate) -> Tensor:
        ctx.save_for_backward(x)
        ctx.surrogate = surrogate
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return grad * ctx.surrogate.derivative(x), None


def _resolve(surrogate: Surrogate | None) -> Surrogate:
    chosen = surrogate if surrogate is not None else _active.get()
    if chosen is None:
        raise ParameterError(
            "spike(x) outside a scan needs its surrogate: spike(x, FastSigmoid(10.0)). Inside a neuron's step the scan "
            "supplies it."
        )
    return chosen


def spike(x: Any, surrogate: Surrogate | None = None) -> Any:
    """``1`` where ``x > 0``, else ``0``, with a surrogate derivative in the backward pass.

    Inside a neuron's ``step`` leave ``surrogate`` out: the scan supplies the layer's.

    Args:
        x: membrane minus threshold, any shape.
        surrogate: which derivative; ``None`` takes the scan's.

    Raises:
        ParameterError: no surrogate given outside a scan.
    """
    if hasattr(x, "traced_spike"):
        return x.traced_spike(surrogate)
    chosen = _resolve(surrogate)
    if chosen.smooth:
        return chosen.primitive(x)
    return _Spike.apply(x, chosen)


def spike_derivative(x: Any, surrogate: Surrogate | None = None) -> Any:
    """The surrogate derivative at ``x``, for hand-written ``step_vjp`` functions."""
    if hasattr(x, "traced_spike_derivative"):
        return x.traced_spike_derivative(surrogate)
    return _resolve(surrogate).derivative(x)
