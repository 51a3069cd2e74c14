"""Direct current: the value itself at every step."""

from __future__ import annotations

import math

from torch import Tensor

from ..errors import ParameterError
from .base import Encoder


class Direct(Encoder):
    """The same current at every step, ``y[t] = gain * x``.

    The first layer's neurons turn it into spikes. It is graded: the first product is a full matrix product.

    Example:
        >>> import torch
        >>> from spiketide.encoders import Direct
        >>> Direct(3)(torch.tensor([[0.25, 1.0]])).tolist()
        [[[0.25, 1.0]], [[0.25, 1.0]], [[0.25, 1.0]]]

    Shapes:
        ``x``: ``(B, *N)`` in [0, 1]; result: ``(steps, B, *N)``, a view that repeats one frame and takes no
        memory.

    Args:
        steps: Time steps ``T``.
        gain: Factor of the current.

    Raises:
        ParameterError: ``steps`` below 1 or a gain that is not finite.
        ShapeError, DataError: see :class:`spiketide.encoders.Encoder`.
    """

    def __init__(self, steps: int, *, gain: float = 1.0) -> None:
        super().__init__(steps)
        if not math.isfinite(gain):
            raise ParameterError(f"Direct expected a finite gain, got {gain!r}.")
        self.gain = float(gain)

    def encode(self, x: Tensor) -> Tensor:
        """The frame, ``steps`` times."""
        return (x if self.gain == 1.0 else self.gain * x).unsqueeze(0).expand(self.steps, *x.shape)
