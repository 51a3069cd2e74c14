"""What a report shows, as plain numbers and arrays: no model, no trainer, no drawing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import ParameterError, ShapeError, unknown
from ..segments import Onsets
from ..synapses import LayerDelays
from ..types import UNLABELLED
from .first_spikes import FirstSpikes

Point: TypeAlias = tuple[int, float | None, float | None]
"""One epoch of one metric: (epoch, training value or None, validation value or None)."""

SECTIONS = ("summary", "curves", "confusion", "samples", "firing", "diagnosis", "environment")
"""The parts of every report, in their order: the keys of ``ReportData.missing``. Those on labels over time, onsets, delays and
trained constants come in where there are any."""


class Row(NamedTuple):
    """One line of the summary table: what, how much, and what the number means.

    ``value`` ``None`` reads "not measured"; the note then says why. Text is shown as it is, an integer with
    thousands separated, a float with four significant digits.
    """

    label: str
    value: str | int | float | None
    note: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class SampleTrace:
    """What one test sample did to the network, step by step.

    Example:
        >>> import numpy as np
        >>> from spiketide.report import SampleTrace
        >>> scores = np.array([[0.0, 0.0], [0.3, 0.2], [0.3, 0.6], [0.3, 0.7]])
        >>> SampleTrace(label=1, prediction=1, input=np.eye(4), scores=scores).final_from
        2

    Shapes:
        ``input`` ``(T, *N)`` spikes or graded values; ``hidden[layer]`` ``(T, *N)`` spikes;
        ``membrane[layer]`` ``(T, K)`` potentials of K neurons; ``threshold[layer]`` a number, ``(K,)`` or
        ``(T, K)``; ``adaptation[layer]`` ``(T, K)``; ``neurons[layer]`` K indices; ``scores`` ``(T, C)``. Feature axes
        are flattened. All have T steps, of which the first ``lengths`` are valid.

    Args:
        label: the true class, an index; None for a sequence that has no single label.
        prediction: the class the model gave, an index; None likewise.
        input: what the network saw, or None when it was not recorded.
        hidden: spikes of the hidden layers by name.
        membrane: membrane potentials of a few neurons by layer name.
        scores: the read-out of every class over time, or None.
        lengths: valid steps of this sample; None means all. Steps past them are not drawn.
        threshold: firing thresholds belonging to ``membrane``, where there are any.
        adaptation: the adaptation variable of the neurons in ``membrane``, drawn beneath each of them on an axis of its own.
        neurons: which neurons ``membrane`` shows: they are named, and their spikes marked.

    Raises:
        ShapeError: arrays that disagree about T or K, or have too few axes.
    """

    label: int | None
    prediction: int | None
    input: NDArray[Any] | None = None
    hidden: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    membrane: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    scores: NDArray[Any] | None = None
    lengths: int | None = None
    threshold: Mapping[str, ArrayLike] = field(default_factory=dict)
    neurons: Mapping[str, Sequence[int]] = field(default_factory=dict)
    adaptation: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "label", None if self.label is None else int(self.label))
        put(self, "prediction", None if self.prediction is None else int(self.prediction))
        if self.input is not None:
            put(self, "input", _steps_by_features("input", self.input))
        put(self, "hidden", {str(k): _steps_by_features(f"hidden {k!r}", v) for k, v in self.hidden.items()})
        put(
            self,
            "membrane",
            {str(k): _steps_by_features(f"membrane {k!r}", v) for k, v in self.membrane.items()},
        )
        put(
            self,
            "adaptation",
            {str(k): _steps_by_features(f"adaptation {k!r}", v) for k, v in self.adaptation.items()},
        )
        if self.scores is not None:
            put(self, "scores", _steps_by_features("scores", self.scores))
        steps = {name: len(array) for name, array in self.arrays()}
        if len(set(steps.values())) > 1:
            raise ShapeError(
                f"SampleTrace expected arrays of the same T on the first axis, got {steps}: record all of "
                "one sample in one forward, time first."
            )
        total = next(iter(steps.values()), 0)
        lengths = total if self.lengths is None else int(self.lengths)
        if not 0 <= lengths <= total:
            raise ShapeError(
                f"SampleTrace expected lengths within 0..{total}, the steps of its arrays, got {lengths}."
            )
        put(self, "lengths", lengths)
        self._check_thresholds(total)
        for layer, values in self.adaptation.items():
            if layer not in self.membrane:
                raise ParameterError(
                    "SampleTrace adaptation: " + unknown("membrane layer", layer, self.membrane)
                )
            if values.shape != self.membrane[layer].shape:
                raise ShapeError(
                    f"SampleTrace expected the adaptation of {layer!r} as {self.membrane[layer].shape}, like its membrane, "
                    f"got {values.shape}: record the same neurons."
                )
        for layer, indices in self.neurons.items():
            if layer not in self.membrane:
                raise ParameterError(
                    "SampleTrace neurons: " + unknown("membrane layer", layer, self.membrane)
                )
            wanted = self.membrane[layer].shape[1]
            if len(indices) != wanted:
                raise ShapeError(
                    f"SampleTrace expected {wanted} neuron indices for the membrane of {layer!r}, "
                    f"got {len(indices)}."
                )

    def arrays(self) -> list[tuple[str, NDArray[Any]]]:
        """Every array that was recorded, with the words for it."""
        named: list[tuple[str, NDArray[Any] | None]] = [("input", self.input), ("scores", self.scores)]
        named += [(f"hidden {k!r}", v) for k, v in self.hidden.items()]
        named += [(f"membrane {k!r}", v) for k, v in self.membrane.items()]
        named += [(f"adaptation {k!r}", v) for k, v in self.adaptation.items()]
        return [(name, array) for name, array in named if array is not None]

    def _check_thresholds(self, total: int) -> None:
        full: dict[str, NDArray[Any]] = {}
        for layer, value in self.threshold.items():
            if layer not in self.membrane:
                raise ParameterError(
                    "SampleTrace threshold: " + unknown("membrane layer", layer, self.membrane)
                )
            wanted = (total, self.membrane[layer].shape[1])
            try:
                full[layer] = np.broadcast_to(np.asarray(value, dtype=np.float64), wanted)
            except ValueError as error:
                raise ShapeError(
                    f"SampleTrace expected the threshold of {layer!r} as a number, ({wanted[1]},) or "
                    f"{wanted}, got shape {np.shape(value)}."
                ) from error
        object.__setattr__(self, "threshold", full)

    @property
    def correct(self) -> bool | None:
        """Whether the prediction is the true class, None when one of them is None."""
        if self.label is None or self.prediction is None:
            return None
        return self.label == self.prediction

    @property
    def final_from(self) -> int | None:
        """The step from which the predicted class has the strictly highest score until the end.

        None when there is no prediction, no scores, no valid steps, or the highest score at the last step is shared or not
        the prediction's: then the scores shown do not explain the prediction, and nothing is claimed.
        """
        if self.prediction is None or self.scores is None or not self.lengths:
            return None
        if self.prediction >= self.scores.shape[1]:
            return None
        scores = self.scores[: self.lengths]
        own = scores[:, self.prediction]
        others = np.delete(scores, self.prediction, axis=1)
        leads = np.all(own[:, None] > others, axis=1)
        if not leads[-1]:
            return None
        behind = np.flatnonzero(~leads)
        return int(behind[-1]) + 1 if behind.size else 0


@dataclass(frozen=True, eq=False)
class Strip:
    """A sequence whose steps are labelled one by one: what was to be said of each step, and what was said.

    Example:
        >>> from spiketide.report import Strip
        >>> strip = Strip(labels=[0, 0, 1, -1], predictions=[0, 1, 1, 1], title="record 1", step_ms=4.0)
        >>> strip.wrong.tolist(), strip.accuracy
        ([False, True, False, False], 0.6666666666666666)

    Shapes:
        ``labels`` and ``predictions`` ``(T,)`` class indices; ``input`` ``(T, *N)``, flattened to ``(T, N)``.

    Args:
        labels: the true class of every step, -1 where a step has none.
        predictions: the class given to every step, -1 where none was.
        input: what the network saw: events (0, 1, and -1 for events of the other sign) or graded values; None when it was
            not recorded.
        title: the words above it.
        step_ms: milliseconds of a step: the axis then is in seconds; None: in steps.
        channels: names of the N input channels; none: they are numbered.

    Raises:
        ShapeError: rows that are not whole numbers, or disagree about T or N.
        ParameterError: a class below -1, or a step that does not last longer than 0 ms.
    """

    labels: NDArray[Any]
    predictions: NDArray[Any]
    input: NDArray[Any] | None = None
    title: str = ""
    step_ms: float | None = None
    channels: Sequence[str] = ()

    def __post_init__(self) -> None:
        put = object.__setattr__
        for name in ("labels", "predictions"):
            row = np.asarray(getattr(self, name))
            if row.ndim != 1 or not len(row) or row.dtype.kind not in "iu":
                raise ShapeError(
                    f"Strip expected {name} as (T,) class numbers with T of 1 or more, got shape {row.shape} of {row.dtype}."
                )
            row = row.astype(np.int64)
            if row.min() < UNLABELLED:
                raise ParameterError(
                    f"Strip expected {name} of 0 or more, or {UNLABELLED} for a step without a class, got {row.min()}."
                )
            put(self, name, row)
        total = len(self.labels)
        if len(self.predictions) != total:
            raise ShapeError(
                f"Strip expected as many predictions as labels, got {len(self.predictions)} and {total}."
            )
        if self.input is not None:
            put(self, "input", _steps_by_features("input", self.input, "Strip"))
            if len(self.input) != total:
                raise ShapeError(
                    f"Strip expected an input of {total} steps, as many as labels, got {len(self.input)}."
                )
        put(self, "title", str(self.title))
        put(self, "channels", tuple(str(name) for name in self.channels))
        size = 0 if self.input is None else self.input.shape[1]
        if self.channels and len(self.channels) != size:
            raise ShapeError(
                f"Strip expected {size} channel names, one per input channel, got {len(self.channels)}."
            )
        if self.step_ms is not None:
            put(self, "step_ms", float(self.step_ms))
            if not 0 < self.step_ms < np.inf:
                raise ParameterError(
                    f"Strip expected step_ms > 0, the milliseconds of a step, or None, got {self.step_ms!r}."
                )

    @property
    def labelled(self) -> NDArray[np.bool_]:
        """Which steps have a true class."""
        return self.labels != UNLABELLED

    @property
    def wrong(self) -> NDArray[np.bool_]:
        """Which steps have a true class and were given another, or none."""
        return self.labelled & (self.labels != self.predictions)

    @property
    def accuracy(self) -> float | None:
        """The share of the labelled steps that are right, None when no step has a label."""
        labelled = int(self.labelled.sum())
        return (labelled - int(self.wrong.sum())) / labelled if labelled else None


@dataclass(frozen=True, eq=False)
class Constants:
    """A constant of every neuron of a layer, such as its time constant, before and after training.

    Example:
        >>> from spiketide.report import Constants
        >>> tau = Constants(begun=[20.0, 20.0], trained=[5.0, 80.0], unit="ms")
        >>> tau.trained.tolist(), tau.logarithmic
        ([5.0, 80.0], True)

    Shapes:
        ``begun`` and ``trained`` ``(n,)``; other shapes are flattened.

    Args:
        begun: the values before training, or None when they are not known.
        trained: the values after training.
        unit: what they are counted in, for example ``"ms"``; empty when they have no unit.

    Raises:
        ShapeError: no value at all, values that are not numbers, or another number of them before than after training.
    """

    begun: NDArray[Any] | None
    trained: NDArray[Any]
    unit: str = ""

    def __post_init__(self) -> None:
        put = object.__setattr__
        for name in ("begun", "trained"):
            if getattr(self, name) is None and name == "begun":
                continue
            values = np.asarray(getattr(self, name))
            if not values.size or values.dtype.kind not in "biuf":
                raise ShapeError(
                    f"Constants expected {name} as (n,) numbers with n of 1 or more, got shape {values.shape} of {values.dtype}."
                )
            put(self, name, values.reshape(-1).astype(np.float64))
        if self.begun is not None and self.begun.shape != self.trained.shape:
            raise ShapeError(
                f"Constants expected as many values before training as after it, got {self.begun.size} and {self.trained.size}."
            )
        put(self, "unit", str(self.unit))

    @property
    def finite(self) -> NDArray[Any]:
        """The finite values before and after training, in one row."""
        values = self.trained if self.begun is None else np.concatenate([self.begun, self.trained])
        return values[np.isfinite(values)]

    @property
    def logarithmic(self) -> bool:
        """Whether a logarithmic axis suits: all finite values above 0, the largest over 4 times the smallest."""
        values = self.finite
        return bool(values.size and values.min() > 0 and values.max() > 4 * values.min())


@dataclass(frozen=True, kw_only=True, eq=False)
class ReportData:
    """Everything one report shows. Whatever is left out is explained in its place, never dropped, but for delays, trained
    constants, and what only sequences labelled step by step have.

    Example:
        >>> from spiketide.report import ReportData, Row
        >>> data = ReportData(title="digits", summary=[Row("Seeds", 3)], confusion=[[9, 1], [0, 10]])
        >>> data.class_names, data.accuracy
        (('0', '1'), 0.95)

    Shapes:
        ``confusion`` ``(C, C)`` counts, row the true class, column the predicted one; ``firing[layer]`` one
        rate per neuron, in spikes per step, any shape; ``over_time[word]`` ``(T,)``, T of its own.

    Args:
        title: the heading.
        recipe: name or full text of the recipe.
        summary: the rows of the summary table.
        curves: metric name -> (epoch, train, validation) for every epoch, either value may be None.
        confusion: counts over the test set, or None.
        unit: what ``confusion`` counts, in the plural: ``"samples"``, or for example ``"labelled steps"``.
        class_names: C names; None numbers the classes.
        samples: a few test samples (see ``choose_samples``).
        firing: layer name -> firing rate of every neuron.
        first_spikes: of a network whose neurons fire once at most, when they did; the rates of ``firing`` are then spikes per
            neuron and sample, and sections on spike times stand where those on samples over time would.
        delays: layer name -> its delays (:func:`spiketide.synapses.delay_statistics`); without any, the report has no such
            section, as most networks have no delays.
        strips: a few test sequences whose steps are labelled one by one, true and predicted classes under the input.
        over_time: word, for example ``"test"`` -> accuracy at each step within a sequence, 0 to 1; NaN where no sample has
            a step.
        onsets: class name -> how its onsets were found (:func:`spiketide.segments.match_onsets`).
        onset_tolerance: how far a predicted onset may lie from the true one, in words: ``"37.5 steps (150 ms)"``.
        constants: name, for example ``"1 ALIF tau_mem"`` -> the values of all neurons before and after training.
        claim: what the paper says, None when the recipe claims nothing. Keys ``paper``, ``value``,
            ``tolerance``, ``verdict`` (True, False, or text), and any further ones.
        environment: how it was run. Expected: ``versions``, ``seed``, ``machine``, ``commit``, ``command``;
            any further key is shown too, and a missing one is called not recorded.
        diagnosis: what ``diagnose`` said, an empty list when it found nothing, None when it was not run.
        best_epoch: the epoch whose weights were tested; None derives it from the validation curves.
        missing: section -> why it is empty, for example ``{"curves": "stopped in the first epoch."}``.

    Raises:
        ShapeError: a confusion matrix that is not square or does not fit ``class_names``.
        ParameterError: counts that are negative or not whole, a negative rate, a malformed curve, a class
            out of range, an accuracy outside 0 to 1, an unknown section.
    """

    title: str
    recipe: str = ""
    summary: Sequence[Row] = ()
    curves: Mapping[str, Sequence[Point]] = field(default_factory=dict)
    confusion: NDArray[Any] | None = None
    unit: str = "samples"
    class_names: Sequence[str] | None = None
    samples: Sequence[SampleTrace] = ()
    firing: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    first_spikes: FirstSpikes | None = None
    delays: Mapping[str, LayerDelays] = field(default_factory=dict)
    strips: Sequence[Strip] = ()
    over_time: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    onsets: Mapping[str, Onsets] = field(default_factory=dict)
    onset_tolerance: str = ""
    constants: Mapping[str, Constants] = field(default_factory=dict)
    claim: Mapping[str, Any] | None = None
    environment: Mapping[str, Any] = field(default_factory=dict)
    diagnosis: Sequence[str] | None = None
    best_epoch: int | None = None
    missing: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "summary", tuple(Row(*row) for row in self.summary))
        put(self, "curves", {str(k): _points(str(k), v) for k, v in self.curves.items()})
        put(self, "samples", tuple(self.samples))
        firing = {str(k): np.asarray(v, dtype=np.float64).reshape(-1) for k, v in self.firing.items()}
        put(self, "firing", firing)
        put(self, "delays", {str(k): v for k, v in self.delays.items()})
        put(self, "strips", tuple(self.strips))
        put(self, "over_time", {str(k): _shares(str(k), v) for k, v in self.over_time.items()})
        put(self, "onsets", {str(k): Onsets(*v) for k, v in self.onsets.items()})
        put(self, "constants", {str(k): v for k, v in self.constants.items()})
        put(self, "unit", str(self.unit).strip())
        if not self.unit:
            raise ParameterError(
                'ReportData expected unit as the plural of what confusion counts, such as "samples", got nothing.'
            )
        for layer, rates in firing.items():
            if np.any(rates < 0):
                raise ParameterError(
                    f"ReportData expected firing rates >= 0 in spikes per step, got {rates.min():.3g} "
                    f"in {layer!r}."
                )
        if self.confusion is not None:
            put(self, "confusion", _counts(self.confusion))
        put(self, "class_names", self._names())
        for section in self.missing:
            if section not in SECTIONS:
                raise ParameterError("ReportData missing: " + unknown("section", section, SECTIONS))
        self._check_samples()

    def _names(self) -> tuple[str, ...]:
        size = 0 if self.confusion is None else len(self.confusion)
        if self.class_names is not None:
            names = tuple(str(name) for name in self.class_names)
            if self.confusion is not None and len(names) != size:
                raise ShapeError(
                    f"ReportData expected {size} class names for a confusion matrix {self.confusion.shape}, "
                    f"got {len(names)}."
                )
            return names
        for sample in self.samples:
            size = max(
                size, *(1 + given for given in (sample.label, sample.prediction) if given is not None), 0
            )
            size = max(size, 0 if sample.scores is None else sample.scores.shape[1])
        for strip in self.strips:
            size = max(size, 1 + int(strip.labels.max()), 1 + int(strip.predictions.max()))
        if self.first_spikes is not None:
            said = [
                index for sample in self.first_spikes.samples for index in (sample.label, sample.prediction)
            ]
            size = max(size, *(1 + index for index in (*said, *self.first_spikes.labels.tolist())), 0)
        return tuple(str(index) for index in range(size))

    def _check_samples(self) -> None:
        names = self.class_names or ()
        if self.first_spikes is not None:
            found = self.first_spikes
            said = {index for sample in found.samples for index in (sample.label, sample.prediction)}
            strange = sorted(
                index for index in said | set(found.labels.tolist()) if not 0 <= index < len(names)
            )
            if strange:
                raise ParameterError(
                    f"ReportData expected the classes of first_spikes within 0..{len(names) - 1}, got {strange[0]}: classes are "
                    "indices into class_names."
                )
            for one in found.samples:
                outputs = list(one.times.values())[-1]
                if len(outputs) != len(names):
                    raise ShapeError(
                        f"ReportData expected {len(names)} output times in a sample of first_spikes, one per class, got "
                        f"{len(outputs)}."
                    )
        for position, sample in enumerate(self.samples):
            for what, index in (("label", sample.label), ("prediction", sample.prediction)):
                if index is not None and not 0 <= index < len(names):
                    raise ParameterError(
                        f"ReportData expected the {what} of sample {position} within 0..{len(names) - 1}, "
                        f"got {index}: classes are indices into class_names."
                    )
            if sample.scores is not None and sample.scores.shape[1] != len(names):
                raise ShapeError(
                    f"ReportData expected scores (T, {len(names)}) for sample {position}, one column per "
                    f"class, got {sample.scores.shape}."
                )
        for position, strip in enumerate(self.strips):
            highest = max(int(strip.labels.max()), int(strip.predictions.max()))
            if highest >= len(names):
                raise ParameterError(
                    f"ReportData expected the classes of strip {position} within 0..{len(names) - 1}, got {highest}: classes are "
                    "indices into class_names."
                )

    @property
    def accuracy(self) -> float | None:
        """The share of the confusion matrix on its diagonal, None without one or when it counts nothing."""
        if self.confusion is None or not self.confusion.sum():
            return None
        return float(np.trace(self.confusion) / self.confusion.sum())


def choose_samples(labels: ArrayLike, predictions: ArrayLike, count: int = 6, *, wrong: int = 2) -> list[int]:
    """Indices of test samples worth showing: some right, each of another class, and some wrong.

    The same input gives the same choice: the first right sample of each class in turn, then the first wrong
    ones. When there are fewer wrong (or right) samples than asked for, the others fill their place.

    Example:
        >>> from spiketide.report import choose_samples
        >>> choose_samples([0, 0, 1, 1, 2], [0, 0, 1, 2, 2], 3, wrong=1)
        [0, 2, 3]

    Shapes:
        ``labels`` and ``predictions`` ``(B,)``; at most ``count`` indices into them, right ones first.

    Raises:
        ShapeError: labels and predictions of different shape.
        ParameterError: a count below one or ``wrong`` outside ``0..count``.
    """
    truth, given = np.asarray(labels), np.asarray(predictions)
    if truth.ndim != 1 or truth.shape != given.shape:
        raise ShapeError(f"choose_samples expected two (B,) arrays, got {truth.shape} and {given.shape}.")
    if count < 1 or not 0 <= wrong <= count:
        raise ParameterError(
            f"choose_samples expected count >= 1 and 0 <= wrong <= count, got {count} and {wrong}."
        )
    misses = np.flatnonzero(truth != given)
    hits = np.flatnonzero(truth == given)
    # The nth hit of every class before the (n+1)th of any: variety first, order of the test set second.
    seen: dict[Any, int] = {}
    turn = np.zeros(len(hits), dtype=np.int64)
    for position, label in enumerate(truth[hits].tolist()):
        turn[position] = seen.get(label, 0)
        seen[label] = int(turn[position]) + 1
    hits = hits[np.argsort(turn, kind="stable")]
    bad = min(len(misses), max(wrong, count - len(hits)))
    good = min(len(hits), count - bad)
    return sorted(hits[:good].tolist()) + misses[:bad].tolist()


def _steps_by_features(what: str, value: ArrayLike, owner: str = "SampleTrace") -> NDArray[Any]:
    array = np.asarray(value)
    if array.ndim < 1 or array.dtype.kind not in "biuf":
        raise ShapeError(
            f"{owner} expected {what} as a numeric array (T, *N), got shape {array.shape} of {array.dtype}."
        )
    steps = array.shape[0]
    return array.reshape(steps, int(np.prod(array.shape[1:], dtype=np.int64))).astype(np.float64)


def _points(metric: str, points: Sequence[Point]) -> tuple[Point, ...]:
    checked: list[Point] = []
    for point in points:
        if len(point) != 3:
            raise ParameterError(
                f"ReportData expected (epoch, train, validation) for the curve {metric!r}, got {point!r}."
            )
        epoch, train, validation = point
        checked.append(
            (
                int(epoch),
                None if train is None else float(train),
                None if validation is None else float(validation),
            )
        )
    return tuple(sorted(checked, key=lambda point: point[0]))


def _shares(word: str, value: ArrayLike) -> NDArray[Any]:
    array = np.asarray(value)
    if array.ndim != 1 or not array.size or array.dtype.kind not in "biuf":
        raise ShapeError(
            f"ReportData expected over_time {word!r} as (T,) numbers with T of 1 or more, got shape {array.shape} of "
            f"{array.dtype}."
        )
    array = array.astype(np.float64)
    known = array[~np.isnan(array)]
    if known.size and not (known.min() >= 0 and known.max() <= 1):
        raise ParameterError(
            f"ReportData expected over_time {word!r} as accuracies from 0 to 1, NaN where no sample has a step, got "
            f"{known.min():.3g} to {known.max():.3g}: give shares, not percent."
        )
    return array


def _counts(value: ArrayLike) -> NDArray[Any]:
    array = np.asarray(value)
    if array.ndim != 2 or array.shape[0] != array.shape[1] or not array.size:
        raise ShapeError(f"ReportData expected a confusion matrix (C, C) of counts, got shape {array.shape}.")
    whole = array.dtype.kind in "biuf" and bool(
        np.all(np.isfinite(array) & (array == np.floor(array)) & (array >= 0))
    )
    if not whole:
        raise ParameterError(
            "ReportData expected a confusion matrix of whole counts >= 0: give counts, not shares; they are "
            "normalised when drawn."
        )
    return array.astype(np.int64)
