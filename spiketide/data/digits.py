"""Scikit-learn's handwritten digits: real, small, and there without a download."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
import torch

from .base import DataModule, Samples, stratified_order


class Digits(DataModule):
    """1797 handwritten digits of 8 x 8 pixels, as scikit-learn carries them.

    The set has no official test split. Here the test part is a fifth (359 samples), stratified, from a seed
    that is fixed for ever (``TEST_SEED``) and independent of the run's ``seed``: every run and every paper
    that uses this class is tested on the same samples. The validation split is then carved from the other
    1438.

    Example:
        >>> from spiketide.data import Digits
        >>> data = Digits()
        >>> data.sample_shape, data.num_classes, data.temporal
        ((1, 8, 8), 10, False)
        >>> x = next(iter(data.train_dataloader())).x
        >>> float(x.min()), float(x.max())
        (0.0, 1.0)

    Shapes:
        Batches ``x (B, 1, 8, 8)`` float32 in [0, 1] (the pixel counts 0..16 over 16), ``y (B,)``, no lengths.

    Args:
        **common: see :class:`~spiketide.data.base.DataModule`.

    Reference:
        E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository,
        1998, doi:10.24432/C50P49. scikit-learn carries the test part of that set (13 writers) without the
        writers' names, so a split by writer is not possible: test digits are by writers that were trained on.
    """

    TEST_FRACTION: ClassVar[float] = 0.2
    TEST_SEED: ClassVar[int] = 20260101

    def __init__(self, **common: Any) -> None:
        super().__init__(**common)

    @property
    def temporal(self) -> bool:
        """False: an encoder gives these images their time."""
        return False

    @property
    def class_names(self) -> tuple[str, ...]:
        """``"0"`` to ``"9"``."""
        return tuple(map(str, range(10)))

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """``(1, 8, 8)``: one channel, rows, columns."""
        return (1, 8, 8)

    def read(self, part: Literal["train", "test"]) -> Samples:
        """Read one part out of scikit-learn; ``ids`` are the row numbers there."""
        from sklearn.datasets import load_digits

        bunch = load_digits()
        y = np.asarray(bunch.target, dtype=np.int64)
        order = stratified_order(y, self.TEST_SEED)
        cut = round(self.TEST_FRACTION * len(order))
        ids = np.sort(order[:cut] if part == "test" else order[cut:])
        x = torch.from_numpy(bunch.images[ids]).to(torch.float32).div(16.0).unsqueeze(1)
        return Samples(x, torch.from_numpy(y[ids]), torch.from_numpy(ids))
