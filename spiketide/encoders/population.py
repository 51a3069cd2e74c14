"""Population code: each value excites the cells whose receptive fields it falls into."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import ParameterError, ShapeError
from ..surrogate import Gaussian, Surrogate, spike
from .base import Encoder
from .threshold import Threshold


class Population(Encoder):
    """Gaussian receptive fields that tile [0, 1]: ``N`` values become ``N * cells`` graded inputs, or spikes.

    ::

        centre_i = (i - 1) / (cells - 2),   i = 1 .. cells;     width = 1 / (cells - 2)
        g_i(x)   = exp(-(x - centre_i)^2 / (2 width^2))                     peak 1
        density: g_i(x) / (width sqrt(2 pi))                        as published, peak 31.1 for 80 cells
        threshold: 1 where the above exceeds it, else 0

    The cells of one value lie next to each other: value ``n`` goes to ``n * cells .. (n + 1) * cells - 1``.

    Example:
        >>> import torch
        >>> from spiketide.encoders import Population
        >>> encoder = Population(4)                              # centres 0, 0.5, 1, 1.5, width 0.5
        >>> encoder(torch.tensor([[[0.5]]])).round(decimals=3).tolist()
        [[[0.6069999933242798, 1.0, 0.6069999933242798, 0.13500000536441803]]]

    Shapes:
        ``steps`` ``None``: ``x`` ``(T, B, N)`` in [0, 1], result ``(T, B, N * cells)``.
        ``steps`` given: ``x`` ``(B, N)`` in [0, 1], result ``(steps, B, N * cells)``, the same frame at every
        step.

    Args:
        cells: Receptive fields per value, 3 or more.
        steps: ``None`` for data that has a time axis, the time steps for data that has none.
        density: Normalise the area instead of the peak.
        threshold: Give spikes where the response exceeds it, above 0 and below the peak; ``None`` for graded
            responses, or for 0.2 with ``learn_threshold``.
        learn_threshold: Learn it, one for all cells and values, through the surrogate's derivative; it stays
            between 0 and the peak. Then a gradient goes back to ``x`` too.
        surrogate: Used with ``learn_threshold``; ``None``: ``Gaussian()``.

    Raises:
        ParameterError: fewer than 3 cells, ``steps`` below 1, a threshold that no or every response exceeds, a
            surrogate without ``learn_threshold``.
        ShapeError: not ``(T, B, N)`` (or ``(B, N)`` with ``steps``).
        DataError: an empty batch, NaN or Inf, values outside [0, 1].

    Reference:
        Yin et al. 2020, S-MNIST: 80 cells, densities, and in the variant with spikes a
        trainable threshold that begins at 0.2 (``Population(80, density=True, learn_threshold=True)``), with their
        Gaussian surrogate; here it is learnt within its range. Where their index begins is not said; here
        the first cell is at 0 and the last at 1 + width.
    """

    centres: Tensor

    def __init__(
        self,
        cells: int,
        *,
        steps: int | None = None,
        density: bool = False,
        threshold: float | None = None,
        learn_threshold: bool = False,
        surrogate: Surrogate | None = None,
    ) -> None:
        super().__init__(1 if steps is None else steps)
        if cells < 3:
            raise ParameterError(f"Population expected at least 3 cells, got {cells!r}.")
        self.static = steps is not None
        self.cells, self.density = int(cells), density
        self.width = 1.0 / (cells - 2)
        self.peak = 1.0 / (self.width * math.sqrt(2.0 * math.pi)) if density else 1.0
        if surrogate is not None and not learn_threshold:
            raise ParameterError(
                "Population expected learn_threshold=True with a surrogate: a fixed threshold passes no gradient."
            )
        if threshold is None and learn_threshold:
            threshold = 0.2
        self.surrogate = (surrogate or Gaussian()) if learn_threshold else None
        self.threshold = (
            None
            if threshold is None
            else Threshold("Population", threshold, learn=learn_threshold, high=self.peak)
        )
        self.register_buffer("centres", torch.arange(cells) * self.width, persistent=False)

    def _check_axes(self, x: Tensor) -> None:
        wanted, rank = ("(B, N)", 2) if self.static else ("(T, B, N)", 3)
        if isinstance(x, Tensor) and x.dim() != rank:
            raise ShapeError(
                f"Population expected values {wanted}, got {tuple(x.shape)}: flatten the features, and give "
                "steps for static data only."
            )

    def encode(self, x: Tensor) -> Tensor:
        """The responses."""
        centres = self.centres.to(x.dtype)
        response = self.peak * torch.exp(-0.5 * ((x.unsqueeze(-1) - centres) / self.width).square())
        if self.threshold is not None:
            over = response - self.threshold(x.dtype)
            response = (over > 0).to(x.dtype) if self.surrogate is None else spike(over, self.surrogate)
        response = response.flatten(-2)
        return response.unsqueeze(0).expand(self.steps, *response.shape) if self.static else response

    def extra_repr(self) -> str:
        """The arguments, for ``print(module)``."""
        steps = self.steps if self.static else None
        graded = ", threshold=None" if self.threshold is None else ""  # else it shows itself
        return f"{self.cells}, steps={steps}, density={self.density}{graded}"
