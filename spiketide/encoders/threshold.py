"""The threshold of an encoder: fixed, or learnt and kept in its range."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..errors import ParameterError

_SPAN = 16.0
"""As for the constants of neurons: within e^16 of the unit the value is still inside its range in float32."""


class Threshold(nn.Module):
    """One number above 0, and below ``high`` if there is one; calling it gives its value.

    A learnable one is stored unconstrained (``raw``), so no optimiser step leaves the range: ``exp(raw)``, or ``high
    sigmoid(raw)``. Its parameter group is ``"thresholds"``.

    Example:
        >>> from spiketide.encoders.threshold import Threshold
        >>> Threshold("Ternary", 0.25, learn=True)
        Threshold(0.25, learnable)

    Args:
        owner: for messages.
        value: at the beginning.
        learn: learnable.
        high: open upper bound, ``None`` for none.

    Raises:
        ParameterError: ``value`` out of its range.
    """

    role = "thresholds"

    def __init__(self, owner: str, value: float, *, learn: bool, high: float | None = None) -> None:
        super().__init__()
        if not (math.isfinite(value) and value > 0.0 and (high is None or value < high)):
            wanted = "above 0" if high is None else f"between 0 and the peak response {high:.4g}"
            raise ParameterError(f"{owner} expected a threshold {wanted}, got {value!r}.")
        self.high = high
        if learn:
            unit = value if high is None else value / (high - value)
            self.raw = nn.Parameter(torch.tensor(math.log(unit)))
        else:
            self.fixed = float(value)

    @property
    def learnable(self) -> bool:
        """Whether it is trained."""
        return "raw" in self._parameters

    def forward(self, dtype: torch.dtype | None = None) -> Tensor:
        """The value now, a scalar; with ``dtype`` in that one."""
        if not self.learnable:
            return torch.tensor(self.fixed, dtype=dtype)  # in main memory: a scalar goes with any device
        # held at the end of its range with the gradient of the end, so that training can bring it back
        raw = self.raw + (self.raw.clamp(-_SPAN, _SPAN) - self.raw).detach()
        value = torch.exp(raw) if self.high is None else self.high * torch.sigmoid(raw)
        return value if dtype is None else value.to(dtype)

    def extra_repr(self) -> str:
        """Value and whether it is learnt."""
        return f"{self.forward().item():g}{', learnable' if self.learnable else ''}"
