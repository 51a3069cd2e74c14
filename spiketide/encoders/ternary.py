"""Ternary code: up, down or nothing, by one threshold."""

from __future__ import annotations

from torch import Tensor

from ..errors import DataError, ShapeError
from ..surrogate import MultiGaussian, Surrogate, spike
from .base import Encoder
from .threshold import Threshold


class Ternary(Encoder):
    """Values of a sequence become +1, 0 or -1.

    ::

        y = H(x - threshold) - H(-threshold - x)          H(z) = 1 where z > 0, else 0

    Both steps have the surrogate's derivative ``g`` in the backward pass: ``dy/dx = g(x - threshold) + g(-threshold - x)``,
    ``dy/dthreshold = g(-threshold - x) - g(x - threshold)``.

    Example:
        >>> import torch
        >>> from spiketide.encoders import Ternary
        >>> encoder = Ternary(0.05)
        >>> encoder(torch.tensor([[[0.3, -0.01, -2.0]]])).tolist()       # one step, one sample, three values
        [[[1.0, 0.0, -1.0]]]
        >>> round(encoder.threshold().item(), 4)
        0.05

    Shapes:
        ``x``: ``(T, B, *N)``, any finite values; result the same shape.

    Args:
        threshold: Above 0; the beginning if it is learnt.
        learn: Learn the threshold (one for all features), as ``exp(raw)``, so it stays above 0.
        surrogate: Of both steps.

    Raises:
        ParameterError: a threshold that is not above 0.
        ShapeError: not a floating tensor ``(T, B, *N)``.
        DataError: an empty batch, NaN or Inf.

    Reference:
        Yin, Corradi & Bohté 2021, speech commands: threshold 0.05 at first, multi-Gaussian surrogate.
        They learn the threshold itself at 0.01 of the learning rate; here it is learnt on the scale of its logarithm.
    """

    def __init__(
        self, threshold: float = 0.05, learn: bool = True, *, surrogate: Surrogate | None = None
    ) -> None:
        super().__init__(1)
        del self.steps  # as many as the data have
        self.surrogate = MultiGaussian() if surrogate is None else surrogate
        self.threshold = Threshold("Ternary", threshold, learn=learn)

    def _check_axes(self, x: Tensor) -> None:
        if isinstance(x, Tensor) and x.dim() < 3:
            raise ShapeError(
                f"Ternary expected a sequence (T, B, *N), got {tuple(x.shape)}: it encodes data that have a time axis; "
                "for one sample add the batch axis, x.unsqueeze(1)."
            )

    def _check_values(self, x: Tensor) -> None:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            got = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise ShapeError(f"Ternary expected a floating point tensor, got {got}: use x.float().")
        if x.numel() == 0:
            raise DataError(f"Ternary expected at least one value, got an empty tensor {tuple(x.shape)}.")
        bad = int((~x.isfinite()).sum())
        if bad:
            raise DataError(
                f"Ternary expected finite values, got {bad} NaN or Inf among {x.numel()}: clean the data first."
            )

    def encode(self, x: Tensor) -> Tensor:
        """The signs of what lies beyond the threshold."""
        threshold = self.threshold(x.dtype)
        up: Tensor = spike(x - threshold, self.surrogate)
        return up - spike(-threshold - x, self.surrogate)

    def extra_repr(self) -> str:
        """The surrogate; the threshold shows itself."""
        return f"surrogate={self.surrogate!r}"
