"""Pictures of networks whose neurons fire once at most: first spikes, times of layers and decisions, deadlines, filters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .first_spikes import FirstSpikes, FirstSpikeSample
from .plots import (
    CHAR,
    MAX_CLASSES,
    WIDTH,
    Frame,
    Picture,
    _line,
    _mask,
    _n,
    _raster,
    _svg,
    _text,
    _title,
    _x_axis,
    _y_axis,
    number,
    plural,
    short,
    ticks,
)

IMAGE = 74.0
"""Side of the picture beside a raster."""

GAP = 24.0
"""From the lower edge of a panel to the upper edge of the next one, with its title in between."""

MAX_PANELS = 7
"""Hidden layers that are drawn; the caption counts the others."""

MAX_TILES = 60
"""Filters that are drawn; the caption counts the others."""

NEARLY = 0.99
"""The caption of the deadline tells when this part of the last accuracy is reached."""


def _pane(body: list[str], frame: Frame, window: tuple[float, float]) -> None:
    """The frame of a layer, with its window shaded and its borders drawn."""
    start, stop = (min(max(edge - 0.5, frame.x_low), frame.x_high) for edge in window)
    x, end = frame.x(start), frame.x(stop)
    body.append(
        f'<rect class="pane" x="{_n(x)}" y="{_n(frame.top)}" width="{_n(end - x)}" height="{_n(frame.height)}"/>'
    )
    borders = "".join(f"M{_n(edge)} {_n(frame.top)}v{_n(frame.height)}" for edge in (x, end))
    body.append(f'<path class="base" d="{borders}"/>')


def first_spike_raster(
    sample: FirstSpikeSample, found: FirstSpikes, names: Sequence[str], key: str
) -> Picture:
    """One sample: its picture, and a mark for each neuron at its spike time, layers one below the other on one time axis.

    Args:
        sample: when its neurons fired.
        found: the windows of the layers, and the steps.
        names: the class names.
        key: a prefix for the ids within the picture, unique on the page.
    """
    steps = found.steps
    *hidden, (last, outputs) = sample.times.items()
    shown, left_out = hidden[: MAX_PANELS + 1], hidden[MAX_PANELS + 1 :]
    left, y = IMAGE + 16, 22.0
    width = WIDTH - left - 8
    body: list[str] = []
    panes: list[Frame] = []
    for place, (name, times) in enumerate([*shown, (last, outputs)]):
        y += GAP if panes else 0
        fired = int(np.isfinite(times).sum())
        is_output, lanes = name == last, min(len(times), MAX_CLASSES)
        height = max(11.0 * lanes, 30.0) if is_output else (IMAGE if not place else 46.0)
        frame = Frame(
            left, y, width, height, -0.5, steps - 0.5, -0.5, (lanes if is_output else len(times)) - 0.5
        )
        word = name[:1].upper() + name[1:]
        body.append(
            f'<g transform="translate({_n(left)} 0)">'
            + _title(y - 7, short(word, 20), [("", f"{fired:,} of {len(times):,} fired")], width=width)
            + "</g>"
        )
        _pane(body, frame, found.windows[name])
        if is_output:
            body.append(_outputs(frame, times, _lanes(sample, times), sample, names))
        else:
            body.append(_raster(frame, _grid(times, steps), "ink-line", f"{key}-{place}"))
        if not place:
            body.append(_image(sample, y, f"{key}-image"))
        panes.append(frame)
        y = frame.bottom
    if math.isfinite(sample.decided):
        x = panes[-1].x(math.floor(sample.decided))
        d = "".join(f"M{_n(x)} {_n(pane.top)}v{_n(pane.height)}" for pane in panes)
        body.append(f'<path class="mark" d="{d}"/>')
    body.append(_x_axis(panes[-1], ticks(0, steps - 1, 6, integer=True), "time step"))
    label = (
        f"First spikes of a sample of class “{names[sample.label]}”, predicted “{names[sample.prediction]}”"
    )
    words = _sample_words(sample, outputs, names)
    if left_out:
        words += f" Not drawn: {', '.join(name for name, _ in left_out)}."
    return Picture(_svg(y + 38, label, body), words)


def _grid(times: NDArray[Any], steps: int) -> NDArray[Any]:
    """Spike times ``(n,)`` as a train ``(T, n)``, neuron 0 at the top."""
    train = np.zeros((steps, len(times)))
    (fired,) = np.nonzero(np.isfinite(times) & (times < steps))
    train[np.floor(times[fired]).astype(int), len(times) - 1 - fired] = 1
    return train


def _image(sample: FirstSpikeSample, y: float, key: str) -> str:
    if sample.image is None:
        return ""
    rows, columns = sample.image.shape
    side = IMAGE / max(rows, columns)
    wide, tall = side * columns, max(side * rows, 4.0)
    place = f'x="0" y="{_n(y)}" width="{_n(wide)}" height="{_n(tall)}"'
    return f'<rect class="pane" {place}/>' + _mask(sample.image, place, "ink-line area", key)


def _lanes(sample: FirstSpikeSample, outputs: NDArray[Any]) -> list[int]:
    """The outputs that are drawn: all, or of very many the two in question and the earliest others."""
    if len(outputs) <= MAX_CLASSES:
        return list(range(len(outputs)))
    earliest = np.argsort(outputs, kind="stable").tolist()
    chosen = dict.fromkeys([sample.label, sample.prediction, *earliest])
    return sorted(list(chosen)[:MAX_CLASSES])


def _outputs(
    frame: Frame,
    times: NDArray[Any],
    lanes: Sequence[int],
    sample: FirstSpikeSample,
    names: Sequence[str],
) -> str:
    """A dot for each output that fired: the true class and a wrong prediction in colour; class 0 at the top."""
    parts = []
    pitch = frame.height / len(lanes)
    colours = {sample.prediction: "second", sample.label: "first"}
    for place, index in enumerate(lanes):
        y, time = frame.top + (place + 0.5) * pitch, float(times[index])
        parts.append(_text(frame.left - 5, y + 3.5, short(names[index], 12), css="cell", anchor="end"))
        if math.isfinite(time):
            css = colours.get(index, "other")
            parts.append(f'<circle class="{css}" cx="{_n(frame.x(math.floor(time)))}" cy="{_n(y)}" r="3"/>')
    return "".join(parts)


def _sample_words(sample: FirstSpikeSample, outputs: NDArray[Any], names: Sequence[str]) -> str:
    given = f"“{names[sample.prediction]}”"
    if not math.isfinite(sample.decided):
        return f"No output fires: the largest potential says {given}."
    words = f"{given} fires first, at step {sample.decided:.6g}"
    if sample.correct:
        rivals = np.delete(outputs, sample.prediction)
        second = float(np.min(rivals, initial=np.inf))
        tie = second == sample.decided
        after = (
            " (as another one does: the larger potential decides)"
            if tie
            else f", {second - sample.decided:.6g} before the next"
        )
        return words + (f"{after}." if math.isfinite(second) else ", and no other output fires.")
    own = float(outputs[sample.label])
    late = f"fires at {own:.6g}" if math.isfinite(own) else "does not fire"
    return f"{words}; the true class “{names[sample.label]}” {late}."


def layer_times(found: FirstSpikes) -> Picture:
    """How many spikes of each layer come at each step, one panel a layer, each on a scale of its own."""
    steps = found.steps
    # a power of two, as windows mostly begin at multiples of one
    group = 2 ** math.ceil(math.log2(max(1.0, steps / 150)))
    starts = np.arange(0, steps, group)
    left, y = 4.0, 22.0
    body: list[str] = []
    words = []
    frame = Frame(left, y, 1, 1, 0, 1, 0, 1)
    for place, (name, counts) in enumerate(found.spikes.items()):
        y += GAP if place else 0
        total = int(counts.sum())
        window = found.windows[name]
        word = name[:1].upper() + name[1:]
        middle = "no spike" if not total else f"median {_median(counts)}"
        body.append(_title(y - 7, short(word, 26), [("", middle)]))
        bars = np.add.reduceat(counts, starts).astype(np.float64)
        frame = Frame(
            left, y, WIDTH - left - 8, 44.0, -0.5, steps - 0.5, 0.0, 1.08 * max(float(bars.max()), 1.0)
        )
        _pane(body, frame, window)
        d = []
        for start, count in zip(starts.tolist(), bars.tolist(), strict=True):
            if count:
                x, end = frame.x(start - 0.5), frame.x(min(start + group, steps) - 0.5)
                d.append(f"M{_n(x)} {_n(frame.bottom)}V{_n(frame.y(count))}H{_n(end)}V{_n(frame.bottom)}z")
        body.append(f'<path class="first area" d="{"".join(d)}"/>' if d else "")
        span = f"{_share(total, len(found.decisions))} spikes a sample"
        words.append(f"{word}: {span}, window {window[0]:.6g} to {window[1]:.6g}.")
        y = frame.bottom
    body.append(_x_axis(frame, ticks(0, steps - 1, 6, integer=True), "time step"))
    text = "Spikes at each step over the test set, each layer on a scale of its own; its window is shaded. "
    text += f"A bar holds {group} steps. " if group > 1 else ""
    return Picture(_svg(y + 38, "Histograms of the spike times of each layer", body), text + " ".join(words))


def _median(counts: NDArray[Any]) -> int:
    return int(np.searchsorted(np.cumsum(counts), counts.sum() / 2))


def _share(total: int, samples: int) -> str:
    return number(total / samples) if samples else "no"


def decision_times(found: FirstSpikes, names: Sequence[str]) -> Picture:
    """When the first output fired, by true class: box from quartile to quartile, its median, whiskers from 5 to 95 %."""
    decided = np.isfinite(found.decisions)
    classes = [index for index in range(len(names)) if np.any(found.labels == index)]
    quantiles = {
        index: np.quantile(found.decisions[decided & (found.labels == index)], (0.05, 0.25, 0.5, 0.75, 0.95))
        for index in classes
        if np.any(decided & (found.labels == index))
    }
    note = ""
    if len(classes) > MAX_CLASSES:
        order = sorted(
            classes, key=lambda index: -float(quantiles[index][2]) if index in quantiles else -math.inf
        )
        classes = sorted(order[:MAX_CLASSES])
        note = f" Shown are the {MAX_CLASSES} slowest of {len(names)} classes."
    texts = [short(names[index], 14) for index in classes]
    left = CHAR * max((len(text) for text in texts), default=1) + 10
    known = [float(value) for index in classes if index in quantiles for value in quantiles[index]]
    low, high = (min(known), max(known)) if known else (0.0, float(found.steps))
    room = max(0.04 * (high - low), 0.5)
    pitch = 22.0 if len(classes) <= 20 else 17.0
    frame = Frame(left, 26, WIDTH - left - 8, pitch * max(len(classes), 1), low - room, high + room, 0, 1)
    body = [_title(12, "Decision times per class")]
    at = ticks(frame.x_low, frame.x_high, 5)
    lines = "".join(f"M{_n(frame.x(value))} {_n(frame.top)}v{_n(frame.height)}" for value in at)
    body.append(f'<path class="grid" d="{lines}"/>' if lines else "")
    whiskers, boxes, medians = [], [], []
    for place, (index, text) in enumerate(zip(classes, texts, strict=True)):
        y = frame.top + (place + 0.5) * pitch
        body.append(_text(left - 8, y + 4, text, anchor="end"))
        if index not in quantiles:
            body.append(_text(left + 4, y + 4, "never decided"))
            continue
        p5, q1, q2, q3, p95 = (frame.x(float(value)) for value in quantiles[index])
        whiskers.append(f"M{_n(p5)} {_n(y)}H{_n(p95)}")
        boxes.append(
            f'<rect class="first area" x="{_n(q1)}" y="{_n(y - 5)}" width="{_n(max(q3 - q1, 1.0))}" height="10" rx="2"/>'
        )
        medians.append(f'<circle class="second" cx="{_n(q2)}" cy="{_n(y)}" r="3"/>')
    body.append(f'<path class="other" d="{"".join(whiskers)}"/>' if whiskers else "")
    body += [*boxes, *medians, _x_axis(frame, at, "step of the first output spike")]
    words = "From quartile to quartile of the samples of a class, with the median (dot) and a line from 5 to 95 %."
    if known:
        middles = {index: float(quantiles[index][2]) for index in classes if index in quantiles}
        fast, slow = min(middles, key=middles.__getitem__), max(middles, key=middles.__getitem__)
        words += (
            f" Earliest: “{names[fast]}”, median {number(middles[fast])}; latest: “{names[slow]}”, median "
            f"{number(middles[slow])}."
        )
    silent = int((~decided).sum())
    words += (
        f" On {plural(silent, 'sample')} no output fires: left out."
        if silent
        else " Every sample is decided."
    )
    return Picture(_svg(frame.bottom + 38, "Box plot of decision times per class", body), words + note)


def deadline_curve(found: FirstSpikes) -> Picture:
    """Accuracy if one stops at each step, and the share of samples that are decided by then."""
    steps = found.steps
    (active,) = np.nonzero(found.decided > 0)
    begin = int(active[0]) if active.size else 0
    # from a little before the first answer, as nothing is to be seen earlier
    begin = max(0, begin - max(1, (steps - begin) // 12))
    left = CHAR * 5 + 10
    frame = Frame(left, 42, WIDTH - left - 8, 150, begin - 0.5, steps - 0.5, 0.0, 1.0)
    values = [0.0, 0.25, 0.5, 0.75, 1.0]
    body = [
        _title(12, "Accuracy at a deadline"),
        _title(29, "", [("second dash", "decided"), ("first", "right")]),
        _y_axis(frame, values, [f"{100 * v:.0f}\u202f%" for v in values]),
    ]
    at = np.arange(begin, steps)
    body.append(_line(frame, at, found.decided[begin:], "second dash"))
    body.append(_line(frame, at, found.accuracy[begin:], "first"))
    body.append(_x_axis(frame, ticks(begin, steps - 1, 5, integer=True), "stopped after time step"))
    last = float(found.accuracy[-1])
    words = (
        "Share of the test samples on which an output has fired, and of those where the right one was first. "
    )
    if last > 0:
        for part in (0.5, NEARLY):
            step = int(np.argmax(found.accuracy >= part * last))
            words += f"{number(part, percent=True)} of the last accuracy is reached at step {step:,}"
            words += ", " if part != NEARLY else ". "
    words += f"At the end {number(last, percent=True)} are right, {number(float(found.decided[-1]), percent=True)} decided"
    undecided = 1 - float(found.decided[-1])
    words += "; the undecided ones count as wrong here." if undecided > 0 else "."
    return Picture(
        _svg(frame.bottom + 38, "Line chart of accuracy and share of decided samples over time", body), words
    )


def filter_tiles(name: str, weights: NDArray[Any], key: str) -> Picture:
    """The weights of a layer as pictures, one a neuron or map: positive in the first colour, negative in the second.

    Shapes: ``weights`` ``(n, C, H, W)``; of several channels each has its picture, side by side.

    Args:
        name: of the layer.
        weights: as its membranes see them.
        key: a prefix for the ids within the picture, unique on the page.
    """
    count, channels, rows, columns = weights.shape
    shown = max(1, min(count, MAX_TILES // channels))
    tiles = weights[:shown].reshape(shown * channels, rows, columns)
    across = max(channels, (10 if len(tiles) > 24 else 6) // channels * channels)
    down = math.ceil(len(tiles) / across)
    gap = max(1, round(0.12 * columns))
    canvas = np.zeros((down * (rows + gap) - gap, across * (columns + gap) - gap))
    for place, tile in enumerate(tiles):
        top, at = place // across * (rows + gap), place % across * (columns + gap)
        canvas[top : top + rows, at : at + columns] = tile
    finite = np.nan_to_num(canvas, nan=0.0, posinf=0.0, neginf=0.0)
    peak = max(float(np.abs(finite).max()), 1e-300)
    side = WIDTH / canvas.shape[1]
    height = side * canvas.shape[0]
    body = [_title(12, short(name, 26), [("first thick", "positive"), ("second thick", "negative")])]
    place_of = f'x="0" y="24" width="{_n(WIDTH)}" height="{_n(height)}"'
    for place in range(len(tiles)):
        x = place % across * (columns + gap) * side
        y = 24 + place // across * (rows + gap) * side
        body.append(
            f'<rect class="pane" x="{_n(x)}" y="{_n(y)}" width="{_n(columns * side)}" height="{_n(rows * side)}"/>'
        )
    for css, sign in (("first", 1), ("second", -1)):
        body.append(_mask(np.maximum(sign * finite, 0) / peak, place_of, f"{css} area", f"{key}-{css}"))
    what = plural(count, "filter") if rows * columns < 150 else plural(count, "neuron")
    words = f"{name}: {what} of {rows} × {columns}" + (f" × {channels} channels" if channels > 1 else "")
    words += f", on one scale up to {number(peak)} thresholds."
    if shown < count:
        words += f" The first {shown} are shown."
    return Picture(_svg(24 + height + 2, f"Weights of {name} as pictures", body), words)
