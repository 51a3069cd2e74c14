"""Onsets and tolerant accuracy against brute force."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spiketide.errors import ParameterError, ShapeError
from spiketide.segments import Onsets, match_onsets, near, onsets

rows = st.lists(st.integers(-1, 2), min_size=1, max_size=14)


def changes(labels: list[int]) -> list[tuple[int, int]]:
    return [
        (t, labels[t])
        for t in range(1, len(labels))
        if labels[t] != labels[t - 1] and labels[t] != -1 and labels[t - 1] != -1
    ]


@given(rows)
def test_onsets_are_changes_between_labelled_steps(labels: list[int]) -> None:
    assert onsets(labels).tolist() == [t for t, _ in changes(labels)]


def most_pairs(first: list[int], second: list[int], tolerance: float) -> int:
    """The largest number of disjoint pairs in reach, by trying all assignments."""
    small, large = sorted((first, second), key=len)
    return max(
        sum(abs(a - b) <= tolerance for a, b in zip(small, chosen, strict=True))
        for chosen in itertools.permutations(large, len(small))
    )


@settings(deadline=None)
@given(st.data(), rows, st.integers(0, 6))
def test_matching_finds_as_many_pairs_as_there_can_be(
    data: st.DataObject, truth: list[int], tolerance: int
) -> None:
    said = data.draw(st.lists(st.integers(0, 2), min_size=len(truth), max_size=len(truth)))
    found = match_onsets([truth], [said], 3, tolerance=tolerance)
    for label in range(3):
        mine = [t for t, c in changes(truth) if c == label]
        theirs = [
            t
            for t in range(1, len(said))
            if said[t] == label and said[t - 1] != label and truth[t] != -1 and truth[t - 1] != -1
        ]
        if len(mine) > 5 or len(theirs) > 6:
            continue
        hits = most_pairs(mine, theirs, tolerance)
        assert found[label] == Onsets(len(mine), hits, len(theirs) - hits)


@given(st.data(), rows, st.integers(0, 5))
def test_near_looks_to_both_sides(data: st.DataObject, truth: list[int], tolerance: int) -> None:
    said = data.draw(st.lists(st.integers(0, 2), min_size=len(truth), max_size=len(truth)))
    expected = [
        any(truth[s] == said[t] for s in range(max(0, t - tolerance), min(len(truth), t + tolerance + 1)))
        for t in range(len(truth))
    ]
    assert near(truth, said, tolerance).tolist() == expected


def test_shares_and_their_absence() -> None:
    row = Onsets(true=4, found=3, false=1)
    assert (row.missed, row.sensitivity, row.precision) == (1, 0.75, 0.75)
    assert math.isnan(Onsets(0, 0, 0).sensitivity) and math.isnan(Onsets(0, 0, 0).precision)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ShapeError, match="one length, got 3 and 2"):
        match_onsets([[0, 1]], [[0, 1, 1]], 2, tolerance=1)
    with pytest.raises(ShapeError, match="as many predicted rows"):
        match_onsets([[0, 1]], [], 2, tolerance=1)
    with pytest.raises(ParameterError, match="tolerance of 0 or more"):
        match_onsets([[0, 1]], [[0, 1]], 2, tolerance=-1)
    with pytest.raises(ShapeError, match="class numbers"):
        onsets(np.zeros((2, 2), dtype=int))
    with pytest.raises(ShapeError, match="class numbers"):
        near([0.5], [0], 1)
