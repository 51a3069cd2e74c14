"""Runs of equal labels along a sequence: where waves, phonemes and other segments begin, and how well that was found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import ParameterError, ShapeError
from .types import UNLABELLED


class Onsets(NamedTuple):
    """How the onsets of one class were found.

    ``true`` onsets, of which ``found`` have a predicted onset of the same class within the tolerance that no other true onset
    claims; ``false`` predicted onsets that belong to none.
    """

    true: int
    found: int
    false: int

    @property
    def missed(self) -> int:
        """True onsets without a predicted one."""
        return self.true - self.found

    @property
    def sensitivity(self) -> float:
        """Share of the true onsets that were found; NaN without any."""
        return self.found / self.true if self.true else float("nan")

    @property
    def precision(self) -> float:
        """Share of the predicted onsets that belong to a true one; NaN without any."""
        predicted = self.found + self.false
        return self.found / predicted if predicted else float("nan")


def onsets(labels: ArrayLike, within: ArrayLike | None = None) -> NDArray[np.int64]:
    """Steps at which another class begins: where a labelled step follows a labelled step of another class.

    The first step of a sequence begins nothing, nor does the first after a stretch without labels: where its segment began is not
    known.

    Example:
        >>> from spiketide.segments import onsets
        >>> onsets([0, 0, 1, 1, -1, 1, 2]).tolist()
        [2, 6]

    Shapes:
        ``labels (T,)`` -> ``(K,)`` ascending.

    Args:
        labels: class numbers, -1 where a step has none.
        within: labels of the truth when ``labels`` are predictions: only steps that are labelled there, as their predecessor is,
            are looked at.
    """
    array = _row("onsets", labels)
    known = array if within is None else _row("onsets", within)
    if known.shape != array.shape:
        raise ShapeError(f"onsets expected rows of one length, got {len(array)} and {len(known)} steps.")
    there = (known != UNLABELLED) & (array != UNLABELLED)
    return 1 + np.flatnonzero((np.diff(array) != 0) & there[1:] & there[:-1])


def match_onsets(
    truth: Sequence[ArrayLike], predicted: Sequence[ArrayLike], classes: int, *, tolerance: float
) -> list[Onsets]:
    """Compare the onsets of every class, sequence by sequence.

    A true onset is found if a predicted onset of the same class lies at most ``tolerance`` steps away. Each predicted onset
    serves one true onset: the pairs are made in the order of time, which on a line finds as many pairs as there can be. Predicted
    onsets in stretches without labels count nowhere.

    Example:
        >>> from spiketide.segments import match_onsets
        >>> rows = match_onsets([[1, 0, 0, 1, 1, 0]], [[1, 0, 1, 1, 0, 1]], 2, tolerance=1)
        >>> [(row.true, row.found, row.false) for row in rows]
        [(2, 2, 0), (1, 1, 1)]

    Shapes:
        ``truth`` and ``predicted``: ``n`` rows ``(T_i,)`` of class numbers, -1 where a step has none.

    Args:
        truth: labels of the steps.
        predicted: what the network said of them.
        classes: how many classes there are.
        tolerance: steps, 0 or more; need not be whole.

    Raises:
        ShapeError: rows that do not fit each other.
        ParameterError: a tolerance below 0.

    Reference:
        Yin et al. 2020 report onsets within 150 ms (37.5 steps) on QTDB. Differs: their count of hits lets one prediction serve
        several true onsets, pads the lists of the other waves with zeros, and takes steps without a label for P waves.
    """
    if tolerance < 0:
        raise ParameterError(f"match_onsets expected a tolerance of 0 or more steps, got {tolerance!r}.")
    if len(truth) != len(predicted):
        raise ShapeError(
            f"match_onsets expected as many predicted rows as true ones, got {len(predicted)} and {len(truth)}."
        )
    counts = np.zeros((classes, 3), dtype=np.int64)
    for given, said in zip(truth, predicted, strict=True):
        a, b = _row("match_onsets", given), _row("match_onsets", said)
        begins, claims = onsets(a), onsets(b, within=a)
        for label in range(classes):
            mine, theirs = begins[a[begins] == label], claims[b[claims] == label]
            hits = _pairs(mine, theirs, tolerance)
            counts[label] += (len(mine), hits, len(theirs) - hits)
    return [Onsets(*(int(n) for n in row)) for row in counts]


def _pairs(first: NDArray[Any], second: NDArray[Any], tolerance: float) -> int:
    """How many pairs of two ascending lists lie within the tolerance, each member used once."""
    i = j = hits = 0
    while i < len(first) and j < len(second):
        gap = second[j] - first[i]
        if abs(gap) <= tolerance:
            hits, i, j = hits + 1, i + 1, j + 1
        elif gap < 0:
            j += 1
        else:
            i += 1
    return hits


def near(labels: ArrayLike, predicted: ArrayLike, tolerance: int) -> NDArray[np.bool_]:
    """Where a prediction occurs among the labels at most ``tolerance`` steps away: accuracy that forgives small shifts.

    Example:
        >>> from spiketide.segments import near
        >>> near([0, 0, 1, 1], [0, 1, 0, 0], 1).tolist()
        [True, True, True, False]

    Shapes:
        ``labels``, ``predicted`` ``(T,)`` -> ``(T,)``.

    Reference:
        The windowed accuracy of Yin et al. 2020 (5 steps to either side).
    """
    a, b = _row("near", labels), _row("near", predicted)
    if a.shape != b.shape:
        raise ShapeError(f"near expected rows of one length, got {len(a)} and {len(b)} steps.")
    if tolerance < 0:
        raise ParameterError(f"near expected a tolerance of 0 or more steps, got {tolerance!r}.")
    right = a == b
    for shift in range(1, min(tolerance, len(a) - 1) + 1):
        right[shift:] |= a[:-shift] == b[shift:]
        right[:-shift] |= a[shift:] == b[:-shift]
    return right


def _row(name: str, labels: ArrayLike) -> NDArray[np.int64]:
    array = np.asarray(labels)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise ShapeError(
            f"{name} expected a row (T,) of class numbers, got shape {array.shape} of {array.dtype}."
        )
    return array.astype(np.int64)
