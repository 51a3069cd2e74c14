"""What every encoder shares: the call, and what it refuses."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from ..errors import DataError, ParameterError, ShapeError


class Encoder(nn.Module, ABC):
    """From values in [0, 1] to a sequence, ``encoder(x) -> (T, B, *N)``.

    An encoder stands before the network and has no state. Static data ``(B, *N)`` gets its time axis here.

    Shapes:
        ``x``: ``(B, *N)``, values in [0, 1]; result: ``(steps, B, *N)`` of the dtype of ``x``.

    Args:
        steps: Time steps ``T`` of the result, 1 or more.

    Raises:
        ParameterError: ``steps`` below 1.
        ShapeError: not a floating tensor ``(B, *N)``.
        DataError: an empty batch, NaN or Inf, values outside [0, 1].
    """

    def __init__(self, steps: int) -> None:
        super().__init__()
        if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
            raise ParameterError(
                f"{type(self).__name__} expected a whole number of steps, 1 or more, got {steps!r}."
            )
        self.steps = steps

    def forward(self, x: Tensor) -> Tensor:
        """The sequence ``(T, B, *N)``."""
        self._check_axes(x)
        self._check_values(x)
        return self.encode(x)

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """The sequence from checked values."""

    def _check_axes(self, x: Tensor) -> None:
        """Static data: a batch axis and at least one feature axis."""
        if isinstance(x, Tensor) and x.dim() < 2:
            raise ShapeError(
                f"{type(self).__name__} expected values (B, *N), got {tuple(x.shape)}: "
                "for one sample add the batch axis, x.unsqueeze(0)."
            )

    def _check_values(self, x: Tensor) -> None:
        """Finite floating values in [0, 1], unless an encoder takes others."""
        check_values(type(self).__name__, x)

    def extra_repr(self) -> str:
        """The arguments, for ``print(module)``."""
        own = {
            key: value for key, value in vars(self).items() if not key.startswith("_") and key != "training"
        }
        return ", ".join(f"{key}={value!r}" for key, value in own.items())


def check_values(name: str, x: Tensor) -> None:
    """Refuse what is not a floating tensor of finite values in [0, 1].

    Raises:
        ShapeError: not a floating tensor.
        DataError: no values, NaN or Inf, values outside [0, 1].
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise ShapeError(
            f"{name} expected a floating point tensor of values in [0, 1], got {got}: "
            "scale first, for bytes x.float() / 255."
        )
    if x.numel() == 0:
        raise DataError(f"{name} expected at least one value, got an empty tensor {tuple(x.shape)}.")
    low, high = (bound.item() for bound in x.aminmax())
    if not (low >= 0.0 and high <= 1.0):  # NaN fails every comparison
        bad = int((~x.isfinite()).sum())
        if bad:
            raise DataError(
                f"{name} expected finite values, got {bad} NaN or Inf among {x.numel()}: clean the data "
                "first."
            )
        raise DataError(
            f"{name} expected values in [0, 1], got {low:.4g} to {high:.4g}: scale first, for example "
            "(x - x.min()) / (x.max() - x.min()) with the extremes of the training data."
        )
