"""What a report shows of a network whose neurons fire once at most, as plain numbers and arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import ParameterError, ShapeError


@dataclass(frozen=True, kw_only=True, eq=False)
class FirstSpikeSample:
    """When every neuron fired on one test sample.

    Example:
        >>> from spiketide.report import FirstSpikeSample
        >>> inf = float("inf")
        >>> sample = FirstSpikeSample(label=1, prediction=0, times={"input": [0.0, 3.0], "0 TimingLinear": [7.0, inf]})
        >>> sample.decided, sample.correct
        (7.0, False)

    Shapes:
        ``times[layer]`` ``(n,)`` steps, ``inf`` for a neuron that never fired; feature axes are flattened; ``image``
        ``(H, W)``.

    Args:
        label: the true class, an index.
        prediction: the class the network gave, an index.
        times: spike times of the input and of every layer, in their order; the last are the outputs.
        image: the input as a picture, from 0 (dark) to 1, or None when it is none.

    Raises:
        ShapeError: no times, times that are NaN or negative, a picture of another rank.
    """

    label: int
    prediction: int
    times: Mapping[str, NDArray[Any]]
    image: NDArray[Any] | None = None

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "label", int(self.label))
        put(self, "prediction", int(self.prediction))
        times = {str(k): np.asarray(v, dtype=np.float64).reshape(-1) for k, v in self.times.items()}
        if not times:
            raise ShapeError(
                "FirstSpikeSample expected the times of the outputs at least, by name, got none."
            )
        for name, values in times.items():
            if not np.all(values >= 0):
                raise ShapeError(
                    f"FirstSpikeSample expected spike times from 0 on, or inf, got NaN or less in {name!r}."
                )
        put(self, "times", times)
        if self.image is not None:
            image = np.asarray(self.image, dtype=np.float64)
            if image.ndim != 2 or not image.size:
                raise ShapeError(f"FirstSpikeSample expected a picture (H, W), got shape {image.shape}.")
            put(self, "image", np.clip(image, 0, 1))

    @property
    def correct(self) -> bool:
        """Whether the prediction is the true class."""
        return self.label == self.prediction

    @property
    def decided(self) -> float:
        """When the first output fired, ``inf`` if none did."""
        return float(np.min(list(self.times.values())[-1], initial=np.inf))


@dataclass(frozen=True, kw_only=True, eq=False)
class FirstSpikes:
    """What the neurons of a single-spike network did on the test set.

    Example:
        >>> from spiketide.report import FirstSpikes
        >>> found = FirstSpikes(
        ...     windows={"input": (0, 2), "0 TimingLinear": (2, 4)},
        ...     spikes={"input": [3, 1], "0 TimingLinear": [0, 0, 1, 2]},
        ...     decisions=[2.0, 3.0, float("inf")], labels=[0, 1, 1],
        ...     accuracy=[0, 0, 1 / 3, 1 / 3], decided=[0, 0, 1 / 3, 2 / 3],
        ... )
        >>> found.steps, found.spikes["input"].tolist()
        (4, [3, 1, 0, 0])

    Shapes:
        ``spikes[layer]`` ``(T,)`` counts; ``decisions`` and ``labels`` ``(B,)``; ``accuracy`` and ``decided`` ``(T,)``;
        ``filters[layer]`` ``(n, C, H, W)``.

    Args:
        windows: of the input and of every layer: when it may fire, from and up to, in steps.
        spikes: how many spikes each of them gave at each step, over the test set.
        decisions: when the first output fired on each test sample, ``inf`` if none did.
        labels: true classes of these samples, indices.
        accuracy: share of all samples whose answer, at the end of each step, is there and right.
        decided: share of all samples on which an output has fired by the end of each step.
        samples: a few test samples.
        filters: weights of the first layer as pictures.

    Raises:
        ShapeError: arrays that disagree about T or B, a layer without a window, filters of another rank.
        ParameterError: a window that does not end after its beginning, shares outside 0 to 1, more right than decided.
    """

    windows: Mapping[str, tuple[float, float]]
    spikes: Mapping[str, NDArray[Any]]
    decisions: NDArray[Any]
    labels: NDArray[Any]
    accuracy: NDArray[Any]
    decided: NDArray[Any]
    samples: Sequence[FirstSpikeSample] = ()
    filters: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "windows", {str(k): (float(a), float(b)) for k, (a, b) in self.windows.items()})
        put(self, "decisions", _row("decisions", self.decisions))
        put(self, "labels", _row("labels", self.labels).astype(np.int64))
        put(self, "accuracy", _row("accuracy", self.accuracy))
        put(self, "decided", _row("decided", self.decided))
        put(self, "samples", tuple(self.samples))
        put(self, "filters", {str(k): np.asarray(v, dtype=np.float64) for k, v in self.filters.items()})
        steps = len(self.decided)
        if len(self.accuracy) != steps or not steps:
            raise ShapeError(
                f"FirstSpikes expected accuracy and decided of the same T of 1 or more, got {len(self.accuracy)} and {steps}."
            )
        if len(self.decisions) != len(self.labels):
            raise ShapeError(
                f"FirstSpikes expected a label for every decision, got {len(self.labels)} and {len(self.decisions)}."
            )
        spikes = {}
        for name, counts in self.spikes.items():
            row = _row(f"spikes of {name!r}", counts)
            if len(row) > steps:
                raise ShapeError(
                    f"FirstSpikes expected spikes of {name!r} at {steps} steps at most, got {len(row)}."
                )
            spikes[str(name)] = np.pad(row, (0, steps - len(row))).astype(np.int64)
        put(self, "spikes", spikes)
        for name in [*spikes, *(name for sample in self.samples for name in sample.times)]:
            if name not in self.windows:
                raise ShapeError(f"FirstSpikes expected a window for {name!r}, got {list(self.windows)}.")
        for name, (start, stop) in self.windows.items():
            if not 0 <= start < stop:
                raise ParameterError(
                    f"FirstSpikes expected the window of {name!r} as 0 <= start < stop, got {start:g} and {stop:g}."
                )
        for share in (self.accuracy, self.decided):
            if not np.all((share >= 0) & (share <= 1)):
                raise ParameterError("FirstSpikes expected accuracy and decided as shares from 0 to 1.")
        if np.any(self.accuracy > self.decided + 1e-9):
            raise ParameterError(
                "FirstSpikes expected no more right answers than there are answers: accuracy <= decided."
            )
        for name, weights in self.filters.items():
            if weights.ndim != 4 or not weights.size:
                raise ShapeError(
                    f"FirstSpikes expected the filters of {name!r} as (n, C, H, W), got {weights.shape}."
                )

    @property
    def steps(self) -> int:
        """T, the steps until the window of the outputs ends."""
        return len(self.decided)


def _row(what: str, value: ArrayLike) -> NDArray[Any]:
    array = np.asarray(value)
    if array.ndim != 1 or array.dtype.kind not in "biuf":
        raise ShapeError(
            f"FirstSpikes expected {what} as a row of numbers, got shape {array.shape} of {array.dtype}."
        )
    return array.astype(np.float64)
