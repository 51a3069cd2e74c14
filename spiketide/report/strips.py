"""Pictures of sequences that are labelled step by step: input above bands of true and predicted classes, accuracy along them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..types import UNLABELLED
from .data import Strip
from .plots import (
    CHAR,
    WIDTH,
    Frame,
    Picture,
    _line,
    _n,
    _raster,
    _svg,
    _text,
    _title,
    _x_axis,
    _y_axis,
    class_colours,
    class_legend,
    number,
    plural,
    short,
    ticks,
)

STRIP_WIDTH = 960
"""Width of a strip: sequences are long, and a narrow screen scrolls along it."""

STRIP_STEPS = 4000
"""Steps of a strip that are drawn; the caption tells how many there are."""

STRIP_COLUMNS = 880
"""Largest width of the image that a crowded input becomes."""

NAMED = 8
"""Input channels up to which each has its lane and its name."""

BAND, GAP, THIN = 18.0, 3.0, 8.0
"""Height of a band of classes, the gap between two, and the height of the band of errors."""

LINES = ("first", "second dash", "k2 line", "k3 line", "k4 line", "k5 line")
"""Styles of the curves of accuracy; further ones are named, not drawn."""


def strip_picture(
    strip: Strip, names: Sequence[str], key: str, colours: Sequence[str] | None = None
) -> Picture:
    """One sequence from left to right: its input, the true classes, the predicted ones, and where they differ.

    Args:
        strip: the sequence.
        names: the class names.
        key: a prefix for the ids within the picture, unique on the page.
        colours: of the classes; None: those of :func:`class_colours`.
    """
    colours = class_colours(len(names)) if colours is None else colours
    total = len(strip.labels)
    steps = min(total, STRIP_STEPS)
    truth, given = strip.labels[:steps], strip.predictions[:steps]
    there = {int(index) for index in np.union1d(truth, given) if index != UNLABELLED}
    body = [_text(0, 12, short(strip.title, 120), css="title")] if strip.title else []
    y = 30.0 if strip.title else 12.0
    legend, rows = class_legend(names, colours, there, 0, y, STRIP_WIDTH)
    body.append(legend)
    y += 17 * (rows - 1) + 10
    array = None if strip.input is None else strip.input[:steps]
    lanes = _lanes(strip)
    left = CHAR * max(len(word) for word in ("predicted", *lanes)) + 10
    at = (left, STRIP_WIDTH - left - 8.0, -0.5, steps - 0.5)
    if array is not None and array.shape[1]:
        size = array.shape[1]
        frame = _pane(body, at, y, 14.0 * size if size <= NAMED else min(4.0 * size, 120.0), size - 0.5)
        places = range(size) if size <= NAMED else (0, size - 1)
        for channel, word in zip(places, lanes, strict=True):
            place = frame.y(channel) + 4
            if size > NAMED:
                place = min(max(place, frame.top + 9), frame.bottom)
            body.append(_text(left - 6, place, word, anchor="end"))
        body += _events(frame, array, key)
        y = frame.bottom + 8
    frame = Frame(left, y, at[1], BAND, at[2], at[3], 0, 1)
    hatch = (
        f'<pattern id="{key}-none" width="5" height="5" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
        '<path class="base" d="M0 0v5"/></pattern>'
    )
    body.append(hatch if (truth == UNLABELLED).any() or (given == UNLABELLED).any() else "")
    for word, row in (("true", truth), ("predicted", given)):
        frame = Frame(left, y, at[1], BAND, at[2], at[3], 0, 1)
        body.append(_text(left - 6, y + BAND / 2 + 4, word, anchor="end"))
        body += _band(frame, row, colours, f"{key}-none")
        y += BAND + GAP
    frame = _pane(body, at, y, THIN, 1)
    body.append(_text(left - 6, y + THIN, "wrong", anchor="end"))
    wrong = _spans(frame, _runs(strip.wrong[:steps]), least=1.0)
    body.append(f'<path class="area ink-line" d="{wrong}"/>' if wrong else "")
    body.append(_time_axis(frame, steps, strip.step_ms, 10))
    label = f"Strip of {plural(steps, 'step')}, true and predicted classes" + (
        f": {strip.title}" if strip.title else ""
    )
    return Picture(
        _svg(frame.bottom + 38, label, body, width=STRIP_WIDTH), _words(strip, steps, names), STRIP_WIDTH
    )


def _lanes(strip: Strip) -> list[str]:
    """The words to the left of the input: of every channel, or of the first and the last of many."""
    size = 0 if strip.input is None else strip.input.shape[1]
    named = [short(name, 12) for name in strip.channels] or [f"input {index}" for index in range(size)]
    return named if size <= NAMED else [named[0], named[-1]]


def _pane(body: list[str], at: tuple[float, ...], y: float, height: float, high: float) -> Frame:
    left, width, start, stop = at
    frame = Frame(left, y, width, height, start, stop, -0.5, high)
    body.append(f'<rect class="pane" x="{_n(left)}" y="{_n(y)}" width="{_n(width)}" height="{_n(height)}"/>')
    return frame


def _events(frame: Frame, array: NDArray[Any], key: str) -> list[str]:
    """The input: events of the other sign in the second colour, where there are any."""
    if np.isin(array, (-1, 0, 1)).all() and (array < 0).any():
        signs = (("ink-line", array > 0, "up"), ("falling", array < 0, "down"))
        return [
            _raster(frame, events.astype(np.float64), css, f"{key}-{word}", columns=STRIP_COLUMNS)
            for css, events, word in signs
        ]
    return [_raster(frame, array, "ink-line", f"{key}-in", columns=STRIP_COLUMNS)]


def _runs(row: NDArray[Any]) -> list[tuple[int, int, int]]:
    """(value, first step, step after the last) of every stretch of equal values."""
    edges = [0, *(np.flatnonzero(np.diff(row)) + 1).tolist(), len(row)]
    return [(int(row[start]), start, stop) for start, stop in pairwise(edges)]


def _spans(frame: Frame, runs: Sequence[tuple[int, int, int]], *, least: float = 0.0) -> str:
    """Rectangles over the stretches whose value is not 0, each at least so wide."""
    d = []
    for value, start, stop in runs:
        if value:
            x, end = frame.x(start - 0.5), frame.x(stop - 0.5)
            if end - x < least:
                x, end = (x + end - least) / 2, (x + end + least) / 2
            # both edges are rounded as such, so that neighbours meet
            d.append(f"M{_n(x)} {_n(frame.top)}H{_n(end)}V{_n(frame.bottom)}H{_n(x)}z")
    return "".join(d)


def _band(frame: Frame, row: NDArray[Any], colours: Sequence[str], hatch: str) -> list[str]:
    """A stretch of colour for every run of a class, hatched where there is none."""
    by_colour: dict[str, list[tuple[int, int, int]]] = {}
    parts = []
    for value, start, stop in _runs(row):
        if value != UNLABELLED:
            by_colour.setdefault(colours[value], []).append((1, start, stop))
            continue
        x, end = frame.x(start - 0.5), frame.x(stop - 0.5)
        place = f'x="{_n(x)}" y="{_n(frame.top)}" width="{_n(end - x)}" height="{_n(frame.height)}"'
        parts.append(f'<rect fill="url(#{hatch})" {place}/>')
    return parts + [
        f'<path class="area {css}" d="{_spans(frame, by_colour[css])}"/>' for css in sorted(by_colour)
    ]


def _time_axis(frame: Frame, steps: int, step_ms: float | None, count: int) -> str:
    if step_ms is None:
        return _x_axis(frame, ticks(0, steps - 1, count, integer=True), "time step")
    seconds = ticks(0, (steps - 1) * step_ms / 1000, count)
    places = [1000 * second / step_ms for second in seconds]
    return _x_axis(frame, places, "time in seconds", labels=[f"{second:.6g}" for second in seconds])


def _words(strip: Strip, steps: int, names: Sequence[str]) -> str:
    total = len(strip.labels)
    labelled, wrong = int(strip.labelled.sum()), int(strip.wrong.sum())
    words = plural(total, "step")
    if strip.step_ms is not None:
        words += f" of {number(strip.step_ms)} ms"
    if not labelled:
        words += ", none of them labelled."
    else:
        words += ", all labelled" if labelled == total else f", {labelled:,} labelled"
        right = labelled - wrong
        words += f"; {right:,} of {labelled:,} are right ({number(right / labelled, percent=True)})."
    if labelled < total:
        words += " Hatched: no label."
    pairs, counts = np.unique(
        np.stack([strip.labels[strip.wrong], strip.predictions[strip.wrong]], axis=1),
        axis=0,
        return_counts=True,
    )
    if wrong:
        true, said = pairs[np.argmax(counts)].tolist()
        taken = "left without a class" if said == UNLABELLED else f"taken for “{names[said]}”"
        words += f" Most often wrong: “{names[true]}” {taken} ({plural(int(counts.max()), 'step')})."
    if strip.input is None:
        words += " The input was not recorded."
    elif np.isin(strip.input, (-1, 0, 1)).all():
        words += f" Input: {plural(int(np.count_nonzero(strip.input)), 'event')} in {plural(strip.input.shape[1], 'channel')}"
        words += ", those of the other sign orange." if (strip.input < 0).any() else "."
    if steps < total:
        words += f" The first {steps:,} steps are drawn."
    return words


def accuracy_over_time(
    curves: Mapping[str, NDArray[Any]], *, step_ms: float | None = None, wide: bool = False
) -> Picture:
    """The accuracy at each step within a sequence, a curve a word.

    Args:
        curves: word -> ``(T,)`` shares, NaN where no sample has a step; T may differ.
        step_ms: milliseconds of a step: the axis then is in seconds; None: in steps.
        wide: as wide as a strip, for a place above or below strips.
    """
    width = float(STRIP_WIDTH if wide else WIDTH)
    shown = dict(list(curves.items())[: len(LINES)])
    styles = dict(zip(shown, LINES, strict=False))
    steps = max(len(values) for values in shown.values())
    known = np.concatenate(list(shown.values()))
    known = known[np.isfinite(known)]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    # at least a tenth of the scale, within 0 and 1
    middle, reach = (low + high) / 2, max((high - low) * 0.55, 0.05)
    low, high = max(0.0, middle - reach), min(1.0, middle + reach)
    values = ticks(low, high)
    labels = [f"{100 * v:.4g}\u202f%" for v in values]
    left = CHAR * max(len(label) for label in labels) + 10
    keys = [(styles[word], short(word, 14)) for word in shown] if len(curves) > 1 else []
    title = "Accuracy over time within a sequence"
    # with several curves on a narrow picture, the keys have a line of their own
    apart = len(keys) > 0 and not wide
    body = [_title(12, title, [] if apart else keys, width=width)]
    body.append(_title(29, "", keys, width=width) if apart else "")
    reach = 0.5 if steps == 1 else 0.01 * (steps - 1)
    frame = Frame(left, 40.0 if apart else 24.0, width - left - 8, 150, -reach, steps - 1 + reach, low, high)
    body.append(_y_axis(frame, values, labels))
    for word, curve in shown.items():
        body.append(_line(frame, np.arange(len(curve)), curve, styles[word], columns=900 if wide else 300))
    body.append(_time_axis(frame, steps, step_ms, 10 if wide else 5))
    words = " ".join(_curve_words(word, curve) for word, curve in shown.items())
    if len(curves) > len(shown):
        words += f" Not drawn: {', '.join(list(curves)[len(shown) :])}."
    return Picture(
        _svg(
            frame.bottom + 38, "Line chart of the accuracy at each step within a sequence", body, width=width
        ),
        words,
        int(width),
    )


def _curve_words(word: str, curve: NDArray[Any]) -> str:
    known = np.flatnonzero(np.isfinite(curve))
    begin = f"{word[:1].upper()}{word[1:]}: "
    if not known.size:
        return f"{begin}no step has an accuracy."
    tenth = max(1, len(curve) // 10)
    first, last = curve[known[known < known[0] + tenth]], curve[known[known > known[-1] - tenth]]
    parts = [number(float(np.mean(part)), percent=True) for part in (first, last)]
    part = "step" if tenth == 1 else "tenth"
    words = f"{begin}{parts[0]} in the first {part}, {parts[1]} in the last"
    lowest = known[np.argmin(curve[known])]
    words += f"; lowest {number(float(curve[lowest]), percent=True)} at step {lowest:,}."
    holes = len(curve) - known.size
    if holes:
        words += f" {plural(holes, 'step')} without an accuracy {'is' if holes == 1 else 'are'} blank."
    return words
