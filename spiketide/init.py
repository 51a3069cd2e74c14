"""Initial values of per-neuron constants (time constants, thresholds) as objects.

An initialiser is called with a shape and gives a tensor. It can stand in a constructor and in a recipe
(``class_path: spiketide.init.Normal``), wherever a plain number can. Weights begin with the functions of
``torch.nn.init``, which need no wrapper here.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from .errors import ParameterError, ShapeError


class Init(ABC):
    """Draws initial values: ``init(shape, generator=None) -> Tensor`` of the default dtype."""

    @abstractmethod
    def __call__(self, shape: tuple[int, ...], *, generator: torch.Generator | None = None) -> Tensor:
        """Values of ``shape``; ``generator`` ``None`` means torch's global one."""

    def __repr__(self) -> str:
        inside = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({inside})"


def as_init(value: float | Init) -> Init:
    """A number as :class:`Constant`, an initialiser as it is.

    Example:
        >>> from spiketide.init import as_init
        >>> as_init(20.0)
        Constant(value=20.0)
    """
    return value if isinstance(value, Init) else Constant(value)


def _finite(name: str, **values: float) -> None:
    for key, value in values.items():
        if not math.isfinite(value):
            raise ParameterError(f"{name} expected a finite {key}, got {value!r}.")


class Constant(Init):
    """The same value everywhere.

    Example:
        >>> from spiketide.init import Constant
        >>> Constant(20.0)((3,)).tolist()
        [20.0, 20.0, 20.0]

    Args:
        value: The value, in the unit of what it initialises.
    """

    def __init__(self, value: float) -> None:
        _finite("Constant", value=value)
        self.value = float(value)

    def __call__(self, shape: tuple[int, ...], *, generator: torch.Generator | None = None) -> Tensor:
        """Values of ``shape``; nothing is drawn."""
        return torch.full(shape, self.value)


class Normal(Init):
    """Normal draws, cut off at a minimum when one is given.

    ``x ~ N(mean, std^2)`` given ``x >= minimum``: the tail below the minimum is spread over the rest, it does
    not pile up on the minimum. (Drawn by inverting the distribution function in float64.)

    Example:
        >>> import torch
        >>> from spiketide.init import Normal
        >>> tau = Normal(20.0, 5.0, minimum=1.0)((1000,), generator=torch.Generator().manual_seed(0))
        >>> bool(tau.min() >= 1.0), round(tau.mean().item())
        (True, 20)

    Args:
        mean: Mean before the cut.
        std: Standard deviation before the cut, 0 or more.
        minimum: Smallest value, below ``mean``; ``None`` for no cut.

    Raises:
        ParameterError: a negative ``std``, a minimum not below the mean, or a value that is not finite.

    Reference:
        Time constants N(20, 5) and the like: Yin et al. 2021, without a
        cut, so that a draw can be negative.
    """

    def __init__(self, mean: float, std: float, *, minimum: float | None = None) -> None:
        _finite("Normal", mean=mean, std=std, **({} if minimum is None else {"minimum": minimum}))
        if std < 0:
            raise ParameterError(f"Normal expected std of 0 or more, got {std!r}.")
        if minimum is not None and minimum >= mean:
            raise ParameterError(f"Normal expected minimum below mean = {mean!r}, got {minimum!r}.")
        self.mean, self.std = float(mean), float(std)
        self.minimum = None if minimum is None else float(minimum)

    def __call__(self, shape: tuple[int, ...], *, generator: torch.Generator | None = None) -> Tensor:
        """Draws of ``shape``."""
        if self.minimum is None or self.std == 0.0:
            return self.mean + self.std * torch.randn(shape, generator=generator)
        cut = torch.tensor((self.minimum - self.mean) / self.std, dtype=torch.float64)
        u = torch.rand(shape, generator=generator, dtype=torch.float64)
        below = torch.special.ndtr(cut)
        z = torch.special.ndtri(below + u * (1 - below))
        # u = 0 with a far cut gives -inf; the clamp puts it where it belongs, and absorbs the rounding to
        # float32.
        return (self.mean + self.std * z).to(torch.get_default_dtype()).clamp(min=self.minimum)


class HalfNormal(Init):
    """Absolute values of normal draws around 0, ``x = |std z|`` with ``z ~ N(0, 1)``.

    Example:
        >>> import torch
        >>> from spiketide.init import HalfNormal
        >>> delays = HalfNormal(12.0)((1001,), generator=torch.Generator().manual_seed(0))
        >>> bool(delays.min() >= 0), 7 < delays.median().item() < 9
        (True, True)

    Args:
        std: Standard deviation before the sign is dropped, 0 or more.

    Raises:
        ParameterError: a negative or infinite ``std``.
    """

    def __init__(self, std: float) -> None:
        _finite("HalfNormal", std=std)
        if std < 0:
            raise ParameterError(f"HalfNormal expected std of 0 or more, got {std!r}.")
        self.std = float(std)

    def __call__(self, shape: tuple[int, ...], *, generator: torch.Generator | None = None) -> Tensor:
        """Draws of ``shape``."""
        return (self.std * torch.randn(shape, generator=generator)).abs()


class LogNormal(Init):
    """Log-normal draws, ``x = median * exp(sigma * z)`` with ``z ~ N(0, 1)``: always positive.

    Example:
        >>> import torch
        >>> from spiketide.init import LogNormal
        >>> tau = LogNormal(20.0, 0.5)((1001,), generator=torch.Generator().manual_seed(0))
        >>> bool(tau.min() > 0), 18 < tau.median().item() < 22
        (True, True)

    Args:
        median: Half of the draws lie below it; above 0.
        sigma: Standard deviation of ``log x``, 0 or more.

    Raises:
        ParameterError: a median not above 0, a negative sigma, or a value that is not finite.
    """

    def __init__(self, median: float, sigma: float) -> None:
        _finite("LogNormal", median=median, sigma=sigma)
        if median <= 0 or sigma < 0:
            raise ParameterError(
                f"LogNormal expected median above 0 and sigma of 0 or more, got {median!r} and {sigma!r}."
            )
        self.median, self.sigma = float(median), float(sigma)

    def __call__(self, shape: tuple[int, ...], *, generator: torch.Generator | None = None) -> Tensor:
        """Draws of ``shape``."""
        return self.median * torch.exp(self.sigma * torch.randn(shape, generator=generator))


class Uniform(Init):
    """Uniform draws from ``[low, high)``.

    Example:
        >>> import torch
        >>> from spiketide.init import Uniform
        >>> x = Uniform(5.0, 25.0)((1000,), generator=torch.Generator().manual_seed(0))
        >>> bool(x.min() >= 5.0), bool(x.max() <= 25.0)
        (True, True)

    Args:
        low: Lower end.
        high: Upper end, not below ``low``.

    Raises:
        ParameterError: ends in the wrong order or not finite.
    """

    def __init__(self, low: float, high: float) -> None:
        _finite("Uniform", low=low, high=high)
        if high < low:
            raise ParameterError(f"Uniform expected low <= high, got {low!r} and {high!r}.")
        self.low, self.high = float(low), float(high)

    def __call__(self, shape: tuple[int, ...], *, generator: torch.Generator | None = None) -> Tensor:
        """Draws of ``shape``."""
        return self.low + (self.high - self.low) * torch.rand(shape, generator=generator)


class MultiGroup(Init):
    """A population in blocks along its first axis, each block with its own initialiser.

    With ``n`` neurons and ``k`` groups each block has ``n // k`` neurons; the last one also takes the
    remainder.

    Example:
        >>> from spiketide.init import Constant, MultiGroup
        >>> MultiGroup([Constant(20.0), Constant(200.0)])((5,)).tolist()
        [20.0, 20.0, 200.0, 200.0, 200.0]

    Args:
        groups: One initialiser per block, in order.

    Raises:
        ParameterError: no group, or something that is not an initialiser.
        ShapeError: fewer neurons than groups.

    Reference:
        Yin et al. 2021, TIMIT: tau_adp in blocks of n/4. Their code drops the remainder, so that n must be
        divisible.
    """

    def __init__(self, groups: Sequence[Init]) -> None:
        if not groups:
            raise ParameterError("MultiGroup expected at least one group, got none.")
        for group in groups:
            if not isinstance(group, Init):
                raise ParameterError(
                    f"MultiGroup expected initialisers such as Normal(20.0, 5.0), got {group!r}; "
                    "write Constant(value) for a number."
                )
        self.groups = list(groups)

    def __call__(self, shape: tuple[int, ...], *, generator: torch.Generator | None = None) -> Tensor:
        """Draws of ``shape``, block after block."""
        n, k = (shape[0] if shape else 0), len(self.groups)
        if n < k:
            raise ShapeError(
                f"MultiGroup expected at least {k} neurons for its {k} groups, got shape {tuple(shape)}."
            )
        sizes = [n // k] * (k - 1) + [n - n // k * (k - 1)]
        blocks = [
            group((size, *shape[1:]), generator=generator)
            for group, size in zip(self.groups, sizes, strict=True)
        ]
        return torch.cat(blocks)
