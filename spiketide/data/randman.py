"""Smooth random manifolds of spike times: data in which only the timing of spikes tells anything."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import ParameterError
from .base import DataModule, Samples


class Randman(DataModule):
    """Each class is a smooth random manifold in the space of spike times; each unit fires exactly once a sample.

    For class ``k`` and unit ``i``, at a point ``x`` drawn evenly from the unit cube of ``dim`` dimensions::

        f_ki(x) = product over d of  sum over n = 1 .. cutoff of
                      n^-alpha a_n sin(2 pi (n x_d b_n + c_n))          a, b, c ~ U(0, 1), one of each per k, i, d, n
        time    = (f_ki(x) - min) / (max - min)                         extremes over the samples of the class
        step    = min(floor(steps time), steps - 1)

    Every unit spikes once in every sample of every class: **counts carry nothing**, a network must use the times.
    ``alpha`` is the smoothness (small: wrinkled, hard), ``dim`` the dimension of the manifold (large: hard).
    Nothing is read or downloaded; the data are made from ``data_seed`` in memory. Training and test samples are
    other points of the same manifolds.

    Example:
        >>> from spiketide.data import Randman
        >>> data = Randman(units=5, classes=3, steps=20, samples_per_class=50, batch_size=8)
        >>> batch = next(iter(data.train_dataloader()))
        >>> batch.x.shape, batch.x.sum(0).unique().tolist()
        (torch.Size([20, 8, 5]), [1.0])

    Shapes:
        Batches ``x (steps, B, units)`` float32 of 0 and 1, ``y (B,)``, no lengths.

    Args:
        dim: dimensions of each manifold.
        alpha: smoothness: the exponent with which the amplitudes of the harmonics fall.
        units: input units, each of which fires once.
        classes: manifolds.
        steps: time steps of a sample.
        samples_per_class: samples of a class, training, validation and test together.
        test_fraction: share of each class's samples that is the test part.
        cutoff: harmonics.
        data_seed: of the manifolds and of the points on them. ``seed`` is only that of the validation split and
            of the order of the epochs.
        **common: see :class:`~spiketide.data.base.DataModule`.

    Raises:
        ParameterError: a size out of its range, or so few samples that a class would have no test sample.

    Reference:
        F. Zenke, T. P. Vogels, "The Remarkable Robustness of Surrogate Gradient Learning for Instilling Complex
        Function in Spiking Neural Networks", Neural Computation 33(4), 2021. Written from a description of their
        generator, not compared with it: the random numbers, the number of harmonics and the defaults are our own.
    """

    def __init__(
        self,
        *,
        dim: int = 1,
        alpha: float = 1.0,
        units: int = 20,
        classes: int = 10,
        steps: int = 100,
        samples_per_class: int = 1000,
        test_fraction: float = 0.2,
        cutoff: int = 100,
        data_seed: int = 0,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        for word, size, least in (
            ("dim", dim, 1),
            ("units", units, 1),
            ("classes", classes, 2),
            ("steps", steps, 2),
            ("samples_per_class", samples_per_class, 3),
            ("cutoff", cutoff, 1),
        ):
            if size < least:
                raise ParameterError(f"Randman expected {word} of {least} or more, got {size}.")
        if not (math.isfinite(alpha) and alpha >= 0):
            raise ParameterError(f"Randman expected alpha of 0 or more, got {alpha!r}.")
        if not 0 < test_fraction < 1:
            raise ParameterError(
                f"Randman expected test_fraction between 0 and 1, both excluded, got {test_fraction}."
            )
        if not 0 <= data_seed < 2**32:
            raise ParameterError(f"Randman expected data_seed from 0 to 2**32 - 1, got {data_seed}.")
        testing = round(test_fraction * samples_per_class)
        if not 0 < testing < samples_per_class - 1:
            raise ParameterError(
                f"Randman expected at least one test and two other samples of each class, got {testing} test of "
                f"{samples_per_class} samples: change samples_per_class or test_fraction."
            )
        self.dim, self.alpha, self.units, self.classes = dim, alpha, units, classes
        self.steps, self.samples_per_class, self.cutoff = steps, samples_per_class, cutoff
        self.test_fraction, self.data_seed = test_fraction, data_seed
        self._testing = testing
        self._steps_of_spikes: NDArray[np.int64] | None = None

    @property
    def temporal(self) -> bool:
        """True."""
        return True

    @property
    def class_names(self) -> tuple[str, ...]:
        """``"0"`` and so on: the manifolds have no other names."""
        return tuple(map(str, range(self.classes)))

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """``(units,)``."""
        return (self.units,)

    def read(self, part: Literal["train", "test"]) -> Samples:
        """Samples of one part; ``ids`` count through the classes, ``samples_per_class`` each."""
        if self._steps_of_spikes is None:
            self._steps_of_spikes = self._draw()
        inside = np.arange(self.classes * self.samples_per_class) % self.samples_per_class
        ids = np.flatnonzero((inside < self._testing) == (part == "test"))
        x = np.zeros((len(ids), self.steps, self.units), dtype=np.uint8)
        np.put_along_axis(x, self._steps_of_spikes[ids][:, None, :], 1, axis=1)
        y = torch.from_numpy(ids // self.samples_per_class)
        return Samples(torch.from_numpy(x), y, torch.from_numpy(ids))

    def _draw(self) -> NDArray[np.int64]:
        """The step of every unit's spike, ``(classes * samples_per_class, units)``."""
        random = np.random.RandomState(self.data_seed)
        harmonic = np.arange(1, self.cutoff + 1)
        fall = harmonic**-self.alpha
        result = np.empty((self.classes, self.samples_per_class, self.units), dtype=np.int64)
        for number in range(self.classes):
            points = random.uniform(size=(self.samples_per_class, self.dim))
            amplitude, stretch, phase = random.uniform(size=(3, self.units, self.dim, self.cutoff))
            value = np.ones((self.samples_per_class, self.units))
            for unit in range(self.units):
                for d in range(self.dim):
                    angle = points[:, d, None] * (harmonic * stretch[unit, d]) + phase[unit, d]
                    value[:, unit] *= np.sin(2.0 * np.pi * angle) @ (fall * amplitude[unit, d])
            low, high = value.min(axis=0), value.max(axis=0)
            time = (value - low) / np.maximum(high - low, 1e-12)
            result[number] = np.minimum(np.floor(self.steps * time), self.steps - 1)
        return result.reshape(-1, self.units)
