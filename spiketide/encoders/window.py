"""Windows of pixels: an image read pixel by pixel, a few at a time."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from ..errors import ParameterError
from .base import Encoder


class Window(Encoder):
    """A static image becomes a sequence: at step ``t`` the ``width`` pixels from ``t * stride`` on.

    ::

        p      = flatten(x)                          P pixels in reading order, or p[permutation]
        y[t,k] = p[t stride + k]                     k = 0 .. width - 1;  0 past the last pixel
        T      = ceil(P / stride)                    784 for MNIST with stride 1, whatever the width

    ``width=1`` is sequential MNIST as usual, ``width=8`` what Yin et al. feed to their network. ``permutation_seed`` draws one
    order of the pixels for all images (permuted MNIST); it is the order that ``MNIST(as_sequence="pixels",
    permutation_seed=...)`` gives for the same seed.

    Example:
        >>> import torch
        >>> from spiketide.encoders import Window
        >>> y = Window(2)(torch.tensor([[[0.1, 0.2], [0.3, 0.4]]]))     # one image of 2 x 2
        >>> y.shape
        torch.Size([4, 1, 2])
        >>> [[round(v, 1) for v in step] for step in y[:, 0].tolist()]
        [[0.1, 0.2], [0.2, 0.3], [0.3, 0.4], [0.4, 0.0]]

    Shapes:
        ``x``: ``(B, *N)`` in [0, 1], ``P`` numbers a sample; result ``(ceil(P / stride), B, width)``, contiguous.

    Args:
        width: Pixels in a window, 1 or more.
        stride: Pixels from one window to the next, 1 or more.
        permutation_seed: Of the fixed order of the pixels, 0 to 2**32 - 1; ``None``: reading order.
        binarise: 1 for pixels above this, else 0, in [0, 1); ``None``: the values as they are. Only with the values as they are a
            gradient goes back to ``x``.

    Raises:
        ParameterError: an argument out of its range.
        ShapeError, DataError: see :class:`spiketide.encoders.Encoder`.

    Reference:
        Yin, Corradi & Bohté 2021, S-MNIST with width 8 and PS-MNIST with width 4; their training of
        PS-MNIST binarises at 0.1. What their code does at the end of the image is not known here: zeros are ours, so that
        there are as many steps as pixels. Their permutation was saved in a file; here it is drawn from a seed with NumPy's
        frozen ``RandomState``.
    """

    def __init__(
        self,
        width: int,
        stride: int = 1,
        *,
        permutation_seed: int | None = None,
        binarise: float | None = None,
    ) -> None:
        super().__init__(1)
        del self.steps  # as many as the image asks for
        for name, value in (("width", width), ("stride", stride)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ParameterError(f"Window expected a whole {name} of 1 or more, got {value!r}.")
        if permutation_seed is not None and not 0 <= permutation_seed < 2**32:
            raise ParameterError(
                f"Window expected permutation_seed from 0 to 2**32 - 1, got {permutation_seed}."
            )
        if binarise is not None and not 0.0 <= binarise < 1.0:
            raise ParameterError(f"Window expected binarise in [0, 1), or None, got {binarise!r}.")
        self.width, self.stride = width, stride
        self.permutation_seed = permutation_seed
        self.binarise = None if binarise is None else float(binarise)

    def permutation(self, pixels: int) -> Tensor | None:
        """``(pixels,)``: which pixel stands at each place of the sequence; ``None``: reading order.

        Args:
            pixels: how many an image has.
        """
        if self.permutation_seed is None:
            return None
        return torch.from_numpy(_permutation(self.permutation_seed, pixels).copy())

    def encode(self, x: Tensor) -> Tensor:
        """The windows, ``(T, B, width)``."""
        pixels = x.flatten(1)
        count = pixels.shape[1]
        if self.binarise is not None:
            pixels = (pixels > self.binarise).to(x.dtype)
        order = self.permutation(count)
        if order is not None:
            pixels = pixels[:, order.to(x.device)]
        steps = -(-count // self.stride)
        missing = (steps - 1) * self.stride + self.width - count
        if missing > 0:
            pixels = pad(pixels, (0, missing))
        return pixels.unfold(1, self.width, self.stride).transpose(0, 1).contiguous()


@lru_cache(maxsize=8)
def _permutation(seed: int, pixels: int) -> np.ndarray:
    return np.random.RandomState(seed).permutation(pixels)
