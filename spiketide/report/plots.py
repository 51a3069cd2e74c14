"""The pictures of a report: small SVGs in one style, each with a sentence that says what it shows.

Every function returns a ``Picture``: the ``<svg>`` and its caption. The SVGs are written by hand and not by a
plotting library because they then take their colours from the page (one file, light and dark), keep their
text as text at the size of the page, hold a raster in one path, and are the same bytes for the same data.
Pictures are drawn 360 units wide, about a phone, so that nothing shrinks below reading size there.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..synapses import LayerDelays
from .data import Constants, Point, SampleTrace

WIDTH = 360
"""Width of a picture in SVG units; about as many pixels on every screen."""

MAX_MARKS = 2500
"""Spikes drawn as one vector path; a raster with more becomes an image."""

IMAGE_COLUMNS, IMAGE_ROWS = 480, 200
"""Largest image of a raster: a larger one is binned down to this."""

IMAGE_LEVELS = 7
"""Grey levels of an image above blank: enough to read, few enough to compress."""

MAP_COLUMNS, MAP_ROWS = 240, 160
"""Largest map of delays: a larger one is binned down to this."""

MAX_LAYERS = 4
"""Hidden layers drawn per sample; the caption names the others."""

MAX_NEURONS = 4
"""Membrane traces drawn per layer."""

MAX_CLASSES = 40
"""Classes up to which each has its own label and score line."""

PALETTE = 8
"""Colours that a class can have: see the page's style."""

SHADES = 3
"""Strengths of each of them."""

BINS = 24
"""Bars of a histogram of constants."""

CHAR = 6.8
"""Width to keep for a character at the 11-unit text size of the pictures: that of a wide system font."""

LANE = 32.0
"""Height of one membrane trace."""

LOW_LANE = 26.0
"""Height of the adaptation beneath it: room for the two ends of its axis."""

GAP = 34.0
"""From the lower edge of a panel to the upper edge of the next one, with its title in between."""


class Picture(NamedTuple):
    """An SVG and the sentences under it. ``width`` is its natural width in pixels."""

    svg: str
    caption: str
    width: int = WIDTH


# ── words and numbers ─────────────────────────────────────────────────────────────────────────────


def clean(text: object) -> str:
    """Any text, made safe for HTML: escaped, and without characters that HTML forbids."""
    kept = "".join(
        "\ufffd" if (c < " " and c not in "\n\t") or "\x7f" <= c <= "\x9f" else c
        for c in str(text)
        if c != "\r"
    )
    return escape(kept.encode("utf-8", "replace").decode("utf-8"))


def short(text: str, limit: int = 12) -> str:
    """At most ``limit`` characters, with an ellipsis when cut."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def number(value: float | None, *, percent: bool = False) -> str:
    """A value as it reads in a sentence."""
    if value is None:
        return "none"
    if not math.isfinite(value):
        return "not finite"
    if percent:
        return f"{100 * value:.1f}\u202f%"
    text = f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.3g}"
    return text.replace("-", "\u2212")


def plural(count: int, noun: str) -> str:
    """``3 spikes``, ``1 spike``, ``12,000 spikes``."""
    ending = "es" if noun.endswith("class") else "s"
    return f"{count:,} {noun}{'' if count == 1 else ending}"


def of_test(unit: str) -> str:
    """``samples`` -> ``test samples``, ``labelled steps`` -> ``labelled test steps``."""
    *before, last = unit.split()
    return " ".join([*before, "test", last])


def singular(unit: str) -> str:
    """``labelled steps`` -> ``labelled step``."""
    return unit.removesuffix("s")


# ── geometry ──────────────────────────────────────────────────────────────────────────────────────


def ticks(low: float, high: float, count: int = 4, *, integer: bool = False) -> list[float]:
    """Round numbers within ``low..high``."""
    from matplotlib.ticker import MaxNLocator

    locator = MaxNLocator(nbins=count, integer=integer, steps=[1, 2, 2.5, 5, 10], min_n_ticks=1)
    slack = 1e-9 * max(abs(low), abs(high), high - low)
    found = [float(v) for v in locator.tick_values(low, high) if low - slack <= v <= high + slack]
    return [0.0 if abs(v) < slack else v for v in found]


@dataclass(frozen=True)
class Frame:
    """A rectangle of the picture and the data range that it shows."""

    left: float
    top: float
    width: float
    height: float
    x_low: float
    x_high: float
    y_low: float
    y_high: float

    @property
    def bottom(self) -> float:
        """Lower edge."""
        return self.top + self.height

    @property
    def right(self) -> float:
        """Right edge."""
        return self.left + self.width

    def x(self, value: float) -> float:
        """Horizontal place of a value."""
        return self.left + (value - self.x_low) / (self.x_high - self.x_low) * self.width

    def y(self, value: float) -> float:
        """Vertical place of a value; large values are up."""
        return self.bottom - (value - self.y_low) / (self.y_high - self.y_low) * self.height


def _n(value: float) -> str:
    """A coordinate with one decimal, without a trailing zero: most bytes of a report are coordinates."""
    text = f"{value:.1f}"
    text = text[:-2] if text.endswith(".0") else text
    return "0" if text == "-0" else text


def _span(values: Iterable[float], *, pad: float = 0.06, floor: float | None = None) -> tuple[float, float]:
    """A range around the finite values, never empty."""
    finite = [float(v) for v in values if math.isfinite(v)]
    if not finite:
        return 0.0, 1.0
    low, high = min(finite), max(finite)
    # Values that differ by rounding only would be blown up to a full-height saw-tooth.
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        room = abs(high) / 2 or 0.5
    else:
        room = pad * (high - low)
    low, high = low - room, high + room
    return (max(low, floor) if floor is not None and min(finite) >= floor else low), high


def _text(x: float, y: float, content: str, *, css: str = "", anchor: str = "start", extra: str = "") -> str:
    kind = f' class="{css}"' if css else ""
    place = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return f'<text x="{_n(x)}" y="{_n(y)}"{kind}{place}{extra}>{clean(content)}</text>'


def _svg(height: float, label: str, body: Iterable[str], *, width: float = WIDTH) -> str:
    return (
        f'<svg viewBox="0 0 {_n(width)} {_n(height)}" role="img" aria-label="{clean(label)}">'
        + "".join(body)
        + "</svg>"
    )


def _title(y: float, text: str, keys: Sequence[tuple[str, str]] = (), *, width: float = WIDTH) -> str:
    """A panel's title on the left and its legend, (css class, words), on the right."""
    parts = [_text(0, y, text, css="title")]
    x = width - 1.0
    for css, words in reversed(keys):
        if not css:
            parts.append(_text(x, y, words, css="key", anchor="end"))
            continue
        # The words begin at their swatch: fonts differ in width, and the gap between the two must not.
        x -= CHAR * len(words)
        parts.append(_text(x, y, words, css="key"))
        parts.append(f'<path class="{css}" d="M{_n(x - 18)} {_n(y - 4)}h13"/>')
        x -= 18 + 10
    return "".join(parts)


def _y_axis(frame: Frame, values: Sequence[float], labels: Sequence[str]) -> str:
    lines = "".join(f"M{_n(frame.left)} {_n(frame.y(v))}h{_n(frame.width)}" for v in values)
    texts = "".join(
        _text(frame.left - 6, frame.y(v) + 4, label, anchor="end")
        for v, label in zip(values, labels, strict=True)
    )
    return (f'<path class="grid" d="{lines}"/>' if lines else "") + texts


def _x_axis(frame: Frame, values: Sequence[float], title: str, *, labels: Sequence[str] | None = None) -> str:
    base = frame.bottom
    labels = [f"{v:.6g}" for v in values] if labels is None else labels
    marks = "".join(f"M{_n(frame.x(v))} {_n(base)}v4" for v in values)
    texts = "".join(
        _text(frame.x(v), base + 16, label, anchor="middle") for v, label in zip(values, labels, strict=True)
    )
    line = f'<path class="base" d="M{_n(frame.left)} {_n(base)}h{_n(frame.width)}{marks}"/>'
    return line + texts + _text(frame.left + frame.width / 2, base + 32, title, anchor="middle")


def class_colours(count: int, weights: NDArray[Any] | None = None) -> list[str]:
    """The css classes that give each class its colour, the same wherever it is drawn.

    Of more classes than there are colours, those of the largest weight have one each (the first ones without weights, and of
    equals), and the others share a grey.
    """
    room = PALETTE * SHADES
    ranked = list(range(count))
    if count > room and weights is not None:
        ranked.sort(key=lambda index: -float(weights[index]))
    # the places go by index, so that what a class weighs changes no colour unless there are too many classes
    chosen = sorted(ranked[:room])
    colours = ["rest"] * count
    for place, index in enumerate(chosen):
        shade = f" v{place // PALETTE}" if place >= PALETTE else ""
        colours[index] = f"k{place % PALETTE}{shade}"
    return colours


def _legend(
    x: float, y: float, entries: Sequence[tuple[str, str]], *, right: float = WIDTH
) -> tuple[str, int]:
    """Swatches with words, (css class, words), from ``x`` on, in as many rows of 17 units as it takes: drawing, rows."""
    parts, at, rows = [], x, 1
    for css, words in entries:
        wide = 18 + CHAR * len(words)
        if at > x and at + wide > right:
            at, y, rows = x, y + 17, rows + 1
        parts.append(
            f'<path class="{css} thick" d="M{_n(at)} {_n(y - 4)}h13"/>{_text(at + 18, y, words, css="key")}'
        )
        at += wide + 14
    return "".join(parts), rows


def class_legend(
    names: Sequence[str], colours: Sequence[str], there: Iterable[int], x: float, y: float, right: float
) -> tuple[str, int]:
    """The legend of the classes that are there; those that share a grey are one entry of it."""
    present = sorted(there)
    entries = [(colours[index], short(names[index], 14)) for index in present if colours[index] != "rest"]
    rest = sum(colours[index] == "rest" for index in present)
    if rest:
        entries.append(("rest", plural(rest, "other class")))
    return _legend(x, y, entries, right=right)


def _thin(xs: NDArray[Any], ys: NDArray[Any], columns: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """The lowest and the highest point of every column, in order: what a screen of that width would show."""
    if len(ys) <= 2 * columns:
        return xs, ys
    edges = np.linspace(0, len(ys), columns + 1).astype(int)
    keep: list[int] = []
    for start, stop in pairwise(edges.tolist()):
        part = ys[start:stop]
        finite = np.flatnonzero(np.isfinite(part))
        if not finite.size:
            keep.append(start)
            continue
        low, high = finite[np.argmin(part[finite])], finite[np.argmax(part[finite])]
        keep += sorted({start + int(low), start + int(high)})
    return xs[keep], ys[keep]


def _line(frame: Frame, xs: NDArray[Any], ys: NDArray[Any], css: str, *, columns: int = 300) -> str:
    """A line through the finite points, broken where a value is missing; a point on its own is a dot."""
    xs, ys = _thin(np.asarray(xs, dtype=np.float64), np.asarray(ys, dtype=np.float64), columns)
    d: list[str] = []
    dots: list[str] = []
    run: list[str] = []
    for x, y in zip([*xs.tolist(), math.nan], [*ys.tolist(), math.nan], strict=True):
        if math.isfinite(y):
            run.append(f"{_n(frame.x(x))} {_n(frame.y(y))}")
            continue
        if len(run) > 1:
            d.append("M" + "L".join(run))
        elif run:
            cx, cy = run[0].split(" ")
            dots.append(f'<circle class="{css} dot" cx="{cx}" cy="{cy}" r="2.5"/>')
        run = []
    return (f'<path class="{css}" d="{"".join(d)}"/>' if d else "") + "".join(dots)


# ── rasters ───────────────────────────────────────────────────────────────────────────────────────


def is_spikes(array: NDArray[Any]) -> bool:
    """Whether every value is 0 or 1."""
    return bool(np.all((array == 0) | (array == 1)))


def _shrink(strength: NDArray[Any], rows: int, columns: int) -> NDArray[Any]:
    """Mean over bins, so that a picture is never larger than ``(rows, columns)``."""
    for axis, limit in ((0, rows), (1, columns)):
        size = strength.shape[axis]
        if size > limit:
            edges = np.linspace(0, size, limit + 1).astype(int)[:-1]
            widths = np.diff(np.append(edges, size))
            sums = np.add.reduceat(strength, edges, axis=axis)
            strength = sums / (widths[:, None] if axis == 0 else widths[None, :])
    return strength


def _mask(strength: NDArray[Any], place: str, css: str, key: str, *, crisp: bool = True) -> str:
    """An image of strengths 0..1 as a stencil for a colour of the page, so that it follows light and dark."""
    from PIL import Image

    if not strength.any():
        return ""
    # Anything above zero gets the first level at least: a lone spike must not round away.
    levels = np.ceil(np.clip(strength, 0, 1) * IMAGE_LEVELS - 1e-9).astype(np.uint8)
    image = Image.frombytes("P", levels.shape[::-1], levels.tobytes())
    greys = [0, *(round(60 + level * 195 / IMAGE_LEVELS) for level in range(1, IMAGE_LEVELS + 1))]
    image.putpalette([channel for grey in greys for channel in (grey, grey, grey)])
    packed = io.BytesIO()
    image.save(packed, "PNG", bits=4)
    data = base64.b64encode(packed.getvalue()).decode("ascii")
    kind = "crisp" if crisp else "smooth"
    stencil = (
        f'<image class="{kind}" {place} preserveAspectRatio="none" href="data:image/png;base64,{data}"/>'
    )
    return f'<mask id="{key}">{stencil}</mask><rect class="{css}" {place} mask="url(#{key})"/>'


def _raster(frame: Frame, array: NDArray[Any], css: str, key: str, *, columns: int = IMAGE_COLUMNS) -> str:
    """Spikes ``(T, N)`` as ticks of one path, or anything else as an image; neuron 0 is at the bottom."""
    steps, size = array.shape
    spikes = is_spikes(array)
    count = int(np.count_nonzero(array))
    if spikes and count <= MAX_MARKS:
        cell = frame.height / size
        tall, wide = min(max(0.8 * cell, 1.4), 9.0), min(max(0.7 * frame.width / steps, 1.2), 3.0)
        at, neuron = np.nonzero(array)
        marks = "".join(
            f"M{_n(frame.x(t))} {_n(frame.y(n) - tall / 2)}v{_n(tall)}"
            for t, n in zip(at.tolist(), neuron.tolist(), strict=True)
        )
        return f'<path class="{css} marks" stroke-width="{_n(wide)}" d="{marks}"/>' if marks else ""
    picture = np.nan_to_num(array.T[::-1], nan=0.0, posinf=0.0, neginf=0.0)
    place = f'x="{_n(frame.left)}" y="{_n(frame.top)}" width="{_n(frame.width)}" height="{_n(frame.height)}"'
    positive = _shrink(np.maximum(picture, 0), IMAGE_ROWS, columns)
    negative = _shrink(np.maximum(-picture, 0), IMAGE_ROWS, columns)
    peak = max(float(positive.max()), float(negative.max()), 1e-300)
    # A small image keeps its cells; one that was binned is smoothed rather than aliased.
    crisp = positive.shape == picture.shape
    return _mask(positive / peak, place, f"{css} area", f"{key}p", crisp=crisp) + _mask(
        negative / peak, place, "second area", f"{key}n", crisp=crisp
    )


# ── learning curves ───────────────────────────────────────────────────────────────────────────────


def metric_title(metric: str) -> str:
    """``firing_rate`` -> ``Firing rate``."""
    words = metric.replace("_", " ").strip()
    return words[:1].upper() + words[1:]


def learning_curve(metric: str, points: Sequence[Point], best: int | None) -> Picture:
    """One metric over the epochs, training and validation, the tested epoch marked.

    Args:
        metric: the name of the metric; one that contains ``acc`` and stays within 0..1 is shown in percent.
        points: (epoch, train, validation), in order of epochs, at least one.
        best: the epoch to mark, or None.
    """
    epochs = np.array([p[0] for p in points], dtype=np.float64)
    series = {
        "train": np.array([math.nan if p[1] is None else p[1] for p in points]),
        "validation": np.array([math.nan if p[2] is None else p[2] for p in points]),
    }
    everything = np.concatenate(list(series.values()))
    finite = everything[np.isfinite(everything)]
    percent = "acc" in metric.lower() and finite.size > 0 and finite.min() >= 0 and finite.max() <= 1
    low, high = _span(everything, floor=0.0)
    if percent:
        high = min(high, 1.0)
    y_ticks = ticks(low, high)
    labels = [f"{100 * v:.4g}\u202f%" if percent else f"{v:.6g}" for v in y_ticks]
    left = max(30.0, CHAR * max((len(label) for label in labels), default=1) + 10)
    room = 0.5 if len(points) == 1 else 0.02 * (epochs[-1] - epochs[0])
    frame = Frame(left, 38, WIDTH - left - 8, 150, epochs[0] - room, epochs[-1] + room, low, high)
    css = {"train": "first dash", "validation": "second"}
    shown = [name for name, values in series.items() if np.isfinite(values).any()]
    title = metric_title(metric)
    body = [_title(12, short(title, 24), [(css[name], name) for name in shown])]
    body += [_y_axis(frame, y_ticks, labels)]
    body += [_x_axis(frame, ticks(epochs[0], epochs[-1], 5, integer=True), "epoch")]
    body += [_line(frame, epochs, series[name], css[name]) for name in shown]
    at = np.flatnonzero(epochs == best) if best is not None else np.array([], dtype=np.int64)
    if at.size:
        x = frame.x(float(epochs[at[0]]))
        body.append(f'<path class="mark" d="M{_n(x)} {_n(frame.top)}V{_n(frame.bottom)}"/>')
        half = CHAR * (5 + len(str(best))) / 2
        place = min(max(x, frame.left + half), WIDTH - half)
        body.append(_text(place, frame.top - 4, f"best {best}", css="note", anchor="middle"))
        for name in shown:
            value = float(series[name][at[0]])
            if math.isfinite(value):
                colour = css[name].split()[0]
                body.append(f'<circle class="{colour} dot" cx="{_n(x)}" cy="{_n(frame.y(value))}" r="3.5"/>')
    return Picture(
        _svg(226, f"Line chart of {title.lower()} over the epochs", body),
        _curve_words(
            title, epochs, {name: series[name] for name in shown}, at, percent, set(series) - set(shown)
        ),
    )


def _curve_words(
    title: str,
    epochs: NDArray[Any],
    shown: dict[str, NDArray[Any]],
    at: NDArray[Any],
    percent: bool,
    lacking: set[str],
) -> str:
    told = []
    for name, values in shown.items():
        good = values[np.isfinite(values)]
        first, last = number(float(good[0]), percent=percent), number(float(good[-1]), percent=percent)
        told.append(f"{name} {first} to {last}" if good.size > 1 else f"{name} {first}")
    start, stop = int(epochs[0]), int(epochs[-1])
    when = f"in epoch {start}, the only one" if start == stop else f"from epoch {start} to {stop}"
    words = f"{title} {when}: " + (", ".join(told) + "." if told else "no finite value was recorded.")
    if at.size:
        here = [
            f"{name} {number(float(values[at[0]]), percent=percent)}"
            for name, values in shown.items()
            if math.isfinite(values[at[0]])
        ]
        if here and start != stop:
            words += f" At the marked epoch {int(epochs[at[0]])}: {', '.join(here)}."
    words += "".join(f" No {name} values were recorded." for name in sorted(lacking))
    holes = sum(int(np.sum(~np.isfinite(values))) for values in shown.values())
    if holes:
        verb = "is" if holes == 1 else "are"
        words += f" {plural(holes, 'value')} {verb} missing or not finite; the line is broken there."
    return words


# ── confusion ─────────────────────────────────────────────────────────────────────────────────────


def confusion_matrix(counts: NDArray[Any], names: Sequence[str], unit: str = "samples") -> Picture:
    """Counts of (true, predicted): each row shaded by its share, errors in the second colour; ``unit`` says what is counted."""
    size = len(counts)
    labelled = size <= MAX_CLASSES
    texts = [short(name, 10) for name in names]
    longest = max(len(text) for text in texts) if labelled else len(str(size))
    left = 26 + CHAR * longest
    if not labelled:
        cell = 480 / size
    elif size <= 12:
        cell = min((WIDTH - left - 4) / size, 56.0)
    else:
        cell = 19.0
    upright = CHAR * longest <= cell - 2
    side = cell * size
    foot = 14 if upright or not labelled else CHAR * longest + 6
    top, width = 4.0, max(float(WIDTH), left + side + 4)
    height = top + side + foot + 24
    totals = np.maximum(counts.sum(axis=1), 1)
    share = counts / totals[:, None]
    body: list[str] = []
    if labelled:
        for row, column in np.argwhere(counts > 0).tolist():
            strength = 0.12 + 0.88 * float(share[row, column]) ** (1.0 if row == column else 0.5)
            colour = "first" if row == column else "second"
            x, y = left + column * cell, top + row * cell
            body.append(
                f'<rect class="{colour} area" x="{_n(x + 0.5)}" y="{_n(y + 0.5)}" '
                f'width="{_n(cell - 1)}" height="{_n(cell - 1)}" fill-opacity="{strength:.2f}"/>'
            )
            text = str(counts[row, column])
            if CHAR * (0.82 if cell < 20 else 0.9) * len(text) <= cell - 1:
                body.append(
                    _text(
                        x + cell / 2,
                        y + cell / 2 + 4,
                        text,
                        css="cell" + (" tiny" if cell < 20 else "") + (" on" if strength > 0.55 else ""),
                        anchor="middle",
                    )
                )
    else:
        place = f'x="{_n(left)}" y="{_n(top)}" width="{_n(side)}" height="{_n(side)}"'
        hits = np.diag(np.diag(share))
        # Diagonal and rest are two stencils; shrinking keeps the size bounded for any number of classes.
        for part, css, key in ((hits, "first", "right"), (np.sqrt(share - hits), "second", "wrong")):
            small = _shrink(part, IMAGE_COLUMNS, IMAGE_COLUMNS)
            small = small / max(float(small.max()), 1e-300)
            body.append(_mask(small, place, f"{css} area", f"confusion-{key}"))
    body.append(f'<rect class="frame" x="{_n(left)}" y="{_n(top)}" width="{_n(side)}" height="{_n(side)}"/>')
    every = range(size) if labelled else sorted({int(v) for v in ticks(0, size - 1, 6, integer=True)})
    for index in every:
        word = texts[index] if labelled else str(index)
        middle = (index + 0.5) * cell
        body.append(_text(left - 5, top + middle + 4, word, anchor="end"))
        x, y = left + middle, top + side
        if upright or not labelled:
            body.append(_text(x, y + 14, word, anchor="middle"))
        else:
            turn = f' transform="rotate(-90 {_n(x + 4)} {_n(y + 5)})"'
            body.append(_text(x + 4, y + 5, word, anchor="end", extra=turn))
    middle = top + side / 2
    body.append(
        _text(11, middle, "true class", anchor="middle", extra=f' transform="rotate(-90 11 {_n(middle)})"')
    )
    body.append(_text(left + side / 2, height - 4, "predicted class", anchor="middle"))
    return Picture(
        _svg(height, f"Confusion matrix of {plural(size, 'class')}", body, width=width),
        _confusion_words(counts, unit),
        math.ceil(width),
    )


def _confusion_words(counts: NDArray[Any], unit: str) -> str:
    total, right = int(counts.sum()), int(np.trace(counts))
    if not total:
        return f"The matrix counts no {singular(unit)}: nothing was tested."
    words = (
        f"Rows are the true class, columns the predicted one. {right:,} of {plural(total, singular(unit))} are "
        f"right ({number(right / total, percent=True)}): the diagonal, blue; the others are off it, orange."
    )
    return words + (" No class was taken for another." if right == total else "")


def confusions(counts: NDArray[Any], limit: int = 6) -> list[tuple[int, int, int]]:
    """The most frequent errors as (true, predicted, count), most frequent first."""
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:limit]
    found = [divmod(int(flat), len(counts)) for flat in order]
    return [(row, column, int(wrong[row, column])) for row, column in found if wrong[row, column] > 0]


def class_accuracy(counts: NDArray[Any], names: Sequence[str], unit: str = "samples") -> Picture:
    """How much of every class was recognised, as bars; with very many classes the worst ones. ``unit``: what is counted."""
    totals, right = counts.sum(axis=1), np.diag(counts)
    share = np.where(totals > 0, right / np.maximum(totals, 1), np.nan)
    order = np.arange(len(counts))
    tested = np.flatnonzero(totals > 0)
    note = ""
    if len(counts) > MAX_CLASSES:
        order = tested[np.argsort(share[tested], kind="stable")][:MAX_CLASSES]
        note = f" Shown are the {len(order)} worst of {len(counts)} classes."
    texts = [short(names[index], 14) for index in order.tolist()]
    left = CHAR * max((len(text) for text in texts), default=1) + 10
    counted = [f"{int(right[i]):,}/{int(totals[i]):,}" for i in order.tolist()]
    room = CHAR * (8 + max((len(text) for text in counted), default=0)) + 18
    track = WIDTH - left - room
    pitch = 24.0 if len(order) <= 20 else 18.0
    body = [_title(12, "Accuracy per class")]
    for place, index in enumerate(order.tolist()):
        y = 26 + place * pitch
        body.append(_text(left - 8, y + pitch / 2 + 4, texts[place], anchor="end"))
        bar = f'x="{_n(left)}" y="{_n(y + pitch / 2 - 4)}" height="8" rx="2"'
        body.append(f'<rect class="track" {bar} width="{_n(track)}"/>')
        if totals[index]:
            if share[index] > 0:
                body.append(f'<rect class="first area" {bar} width="{_n(track * float(share[index]))}"/>')
            end = left + track + 8 + CHAR * 7.5
            body.append(
                _text(
                    end, y + pitch / 2 + 4, number(float(share[index]), percent=True), css="ink", anchor="end"
                )
            )
            body.append(_text(WIDTH - 1, y + pitch / 2 + 4, counted[place], anchor="end"))
        else:
            body.append(_text(WIDTH - 1, y + pitch / 2 + 4, f"no {short(unit.split()[-1], 9)}", anchor="end"))
    if not tested.size:
        words = f"No class had a {singular(of_test(unit))}."
    else:
        worst, best = (
            tested[np.argmin(share[tested])],
            tested[len(tested) - 1 - np.argmax(share[tested][::-1])],
        )
        least, most = number(float(share[worst]), percent=True), number(float(share[best]), percent=True)
        words = "Share of each class recognised, and counts. "
        words += f"Lowest: “{names[worst]}” with {least}; highest: “{names[best]}” with {most}."
        empty = len(counts) - len(tested)
        words += f" {plural(empty, 'class')} had no {singular(of_test(unit))}." if empty else ""
    return Picture(_svg(30 + pitch * len(order), "Bar chart of the accuracy per class", body), words + note)


# ── one sample over time ──────────────────────────────────────────────────────────────────────────


class _Trace:
    """The panels of one sample, stacked over one time axis, and the words about them."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.y = 0.0
        self.body: list[str] = []
        self.words: list[str] = []
        self.panes: list[Frame] = []

    def title(self, text: str, keys: Sequence[tuple[str, str]]) -> None:
        """Begin a panel."""
        self.y += GAP if self.panes else 22.0
        self.body.append(_title(self.y - 8, text, keys))

    def pane(self, height: float, low: float, high: float) -> Frame:
        """An empty pane at the current place."""
        frame = Frame(36.0, self.y, WIDTH - 42.0, height, -0.5, self.steps - 0.5, low, high)
        self.body.append(
            f'<rect class="pane" x="{_n(frame.left)}" y="{_n(frame.top)}" width="{_n(frame.width)}" '
            f'height="{_n(height)}"/>'
        )
        self.panes.append(frame)
        self.y = frame.bottom
        return frame

    def raster(self, title: str, array: NDArray[Any], key: str) -> None:
        """Spikes or graded values of a layer."""
        size = array.shape[1]
        spikes, count = is_spikes(array), int(np.count_nonzero(array))
        noun = "channel" if title == "Input" else "neuron"
        amount = plural(count, "spike") if spikes else "graded"
        self.title(short(title, 22), [("", f"{plural(size, noun)} · {amount}")])
        frame = self.pane(float(min(max(7 * size, 22), 92)), -0.5, size - 0.5)
        for mark in sorted({0, size - 1}):
            y = min(max(frame.y(mark) + 4, frame.top + 9), frame.bottom)
            self.body.append(_text(frame.left - 6, y, str(mark), anchor="end"))
        self.body.append(_raster(frame, array, "ink-line", key))
        self.words.append(_raster_words(title, noun, array, spikes, count))

    def membrane(self, sample: SampleTrace, layer: str) -> None:
        """One lane per neuron, on one scale, with its threshold and, where known, its spikes."""
        traces = sample.membrane[layer][: self.steps]
        shown = min(traces.shape[1], MAX_NEURONS)
        limits = sample.threshold.get(layer)
        limit = None if limits is None else np.asarray(limits)[: self.steps, :shown]
        indices = [int(index) for index in sample.neurons.get(layer, ())][:shown]
        known = limit[np.isfinite(limit)].tolist() if limit is not None else []
        low, high = _span([*traces[:, :shown].ravel().tolist(), *known], pad=0.08)
        keys = [("limit", "threshold")] if limit is not None else []
        slow = sample.adaptation.get(layer)
        if slow is not None:
            slow = slow[: self.steps, :shown]
            keys.append(("adapt", "adaptation"))
        self.title(short(f"Membrane of {layer}", 22), keys)
        hidden = sample.hidden.get(layer)
        at = np.arange(self.steps)
        for lane in range(shown):
            self.y += 4 if lane else 0
            frame = self.pane(LANE, low, high)
            if limit is not None:
                self.body.append(_line(frame, at, limit[:, lane], "limit", columns=80))
            self.body.append(_line(frame, at, traces[:, lane], "first thin", columns=170))
            if slow is not None:
                self.adaptation(slow, lane)
            if not indices:
                continue
            self.body.append(_text(frame.left - 6, frame.top + 20, str(indices[lane]), anchor="end"))
            if hidden is not None and 0 <= indices[lane] < hidden.shape[1]:
                fired = np.flatnonzero(hidden[: self.steps, indices[lane]] > 0)[:MAX_MARKS]
                d = "".join(f"M{_n(frame.x(t))} {_n(frame.top)}v5" for t in fired.tolist())
                self.body.append(f'<path class="spike" d="{d}"/>' if d else "")
        who = f"neurons {', '.join(map(str, indices))}" if len(indices) > 1 else plural(shown, "neuron")
        who = f"neuron {indices[0]}" if len(indices) == 1 else who
        finite = traces[:, :shown][np.isfinite(traces[:, :shown])]
        text = f"Membrane of {layer}, {who}: "
        if finite.size:
            text += f"{number(float(finite.min()))} to {number(float(finite.max()))}"
        if finite.size < traces[:, :shown].size:
            text += (
                " and values that are not finite, where the line is broken"
                if finite.size
                else "no finite value"
            )
        text += "." if limit is not None else "; no threshold was given."
        if slow is not None:
            found = slow[np.isfinite(slow)]
            text += " Beneath each its adaptation"
            text += (
                f", {number(float(found.min()))} to {number(float(found.max()))}."
                if found.size
                else ", no finite value."
            )
        if traces.shape[1] > shown:
            text += f" {traces.shape[1] - shown} more traces are not drawn."
        self.words.append(text)

    def adaptation(self, slow: NDArray[Any], lane: int) -> None:
        """A low lane of the adaptation of one neuron, on the scale of all neurons shown."""
        self.y += 1
        low, high = _span(slow.ravel().tolist(), floor=0.0)
        frame = self.pane(LOW_LANE, low, high)
        self.body.append(_line(frame, np.arange(self.steps), slow[:, lane], "adapt", columns=170))
        found = slow[np.isfinite(slow)]
        if not found.size:
            return
        # the ends of the axis are those of the values, not of the lane
        texts = [_end(value, float(np.ptp(found))) for value in (float(found.max()), float(found.min()))]
        if texts[0] == texts[1]:
            self.body.append(_text(frame.left - 6, frame.top + LOW_LANE / 2 + 4, texts[0], anchor="end"))
            return
        for text, y in zip(texts, (frame.top + 10, frame.bottom - 2), strict=True):
            self.body.append(_text(frame.left - 6, y, text, anchor="end"))

    def scores(self, sample: SampleTrace, names: Sequence[str], colours: Sequence[str]) -> None:
        """The score of every class: the true one and a wrong prediction in colour, or all of them where no class is the one."""
        scores = np.asarray(sample.scores)[: self.steps]
        size = scores.shape[1]
        shares = size > 1 and bool(np.all(scores >= 0) and np.allclose(scores.sum(axis=1), 1, atol=1e-3))
        chosen = {index for index in (sample.label, sample.prediction) if index is not None}
        others = [index for index in range(size) if index not in chosen]
        left_out = max(0, len(others) - MAX_CLASSES)
        if left_out:
            # The strongest rivals are the ones that matter; stable order keeps the file the same.
            peaks = np.nan_to_num(scores[:, others].max(axis=0), nan=-np.inf)
            others = sorted(np.asarray(others)[np.argsort(-peaks, kind="stable")[:MAX_CLASSES]].tolist())
        low, high = (0.0, 1.0) if shares else _span(scores[:, [*others, *sorted(chosen)]].ravel().tolist())
        keys = []
        if sample.label is not None:
            keys.append(("first", f"true: {short(names[sample.label], 10)}"))
        if sample.prediction is not None and not sample.correct:
            keys.append(("second", f"predicted: {short(names[sample.prediction], 10)}"))
        self.title("Probability" if shares else "Score", keys)
        if not chosen:
            legend, rows = class_legend(names, colours, others, 0, self.y + 9, WIDTH)
            self.body.append(legend)
            self.y += 17 * rows
        frame = self.pane(100.0, low, high)
        values = ticks(low, high, 3)
        self.body.append(
            _y_axis(frame, values, [short(f"{v:.3g}".replace("-", "\u2212"), 6) for v in values])
        )
        at = np.arange(self.steps)
        columns = 150 if len(others) <= 12 else 60
        for index in others:
            css = "other" if chosen else f"{colours[index]} line"
            self.body.append(_line(frame, at, scores[:, index], css, columns=columns))
        if sample.prediction is not None and not sample.correct:
            self.body.append(_line(frame, at, scores[:, sample.prediction], "second"))
        if sample.label is not None:
            self.body.append(_line(frame, at, scores[:, sample.label], "first"))
        if left_out:
            self.words.append(f"{plural(left_out, 'weaker class')} of {size} are not drawn.")


def sample_trace(
    sample: SampleTrace, names: Sequence[str], key: str, colours: Sequence[str] | None = None
) -> Picture | None:
    """What one sample did: input, hidden spikes, membranes and scores over one time axis. None when empty.

    Args:
        sample: the traces.
        names: the class names.
        key: a prefix for the ids within the picture, unique on the page.
        colours: of the classes, for a sample without a class of its own; None: those of :func:`class_colours`.
    """
    steps = sample.lengths or 0
    if not steps:
        return None
    trace = _Trace(steps)
    if sample.input is not None and sample.input.shape[1]:
        trace.raster("Input", sample.input[:steps], key + "-in")
    for place, (layer, array) in enumerate(list(sample.hidden.items())[:MAX_LAYERS]):
        if array.shape[1]:
            trace.raster(f"Spikes of {layer}", array[:steps], f"{key}-h{place}")
    for layer, traces in list(sample.membrane.items())[:MAX_LAYERS]:
        if traces.shape[1]:
            trace.membrane(sample, layer)
    if sample.scores is not None:
        trace.scores(sample, names, class_colours(len(names)) if colours is None else colours)
    if not trace.panes:
        return None
    last = trace.panes[-1]
    final = sample.final_from
    if final is not None:
        d = "".join(f"M{_n(pane.x(final))} {_n(pane.top)}v{_n(pane.height)}" for pane in trace.panes)
        trace.body.append(f'<path class="mark" d="{d}"/>')
    trace.body.append(_x_axis(last, ticks(0, steps - 1, 6, integer=True), "time step"))
    words = [_final_words(sample, names, final, steps), *trace.words, *_lacking(sample)]
    label = f"Traces over {plural(steps, 'time step')} of a sample"
    if sample.label is not None:
        label += f" of class “{names[sample.label]}”"
    if sample.prediction is not None:
        label += f", predicted “{names[sample.prediction]}”"
    return Picture(_svg(trace.y + 38, label, trace.body), " ".join(word for word in words if word))


def _end(value: float, span: float) -> str:
    """An end of a small axis in six characters at most; what is next to nothing beside the span reads 0."""
    value = 0.0 if abs(value) < 0.005 * span else value
    text = f"{value:.2g}"
    return (text if len(text) <= 6 else f"{value:.0e}").replace("-", "\u2212")


def _raster_words(title: str, noun: str, array: NDArray[Any], spikes: bool, count: int) -> str:
    steps, size = array.shape
    text = f"{title}: {plural(size, noun)}, "
    if spikes:
        if not count:
            return text + "no spike at all."
        text += f"{plural(count, 'spike')} ({count / array.size:.2g} per {noun} and step)"
        binned = count > MAX_MARKS and (steps > IMAGE_COLUMNS or size > IMAGE_ROWS)
        return text + (", stronger where they are denser." if binned else ".")
    finite = array[np.isfinite(array)]
    if not finite.size:
        return text + "no finite value, drawn blank."
    text += f"graded from {number(float(finite.min()))} to {number(float(finite.max()))}"
    text += ", negative values orange." if finite.min() < 0 else ", stronger is larger."
    holes = array.size - finite.size
    return text + (f" {plural(holes, 'value')} not finite, drawn blank." if holes else "")


def _lacking(sample: SampleTrace) -> list[str]:
    """What the picture does not show, and why."""
    words = []
    lacking = [
        name
        for name, there in (
            ("input", sample.input is not None),
            ("hidden spikes", bool(sample.hidden)),
            ("membrane potential", bool(sample.membrane)),
            ("score over time", sample.scores is not None),
        )
        if not there
    ]
    if lacking:
        words.append(f"Not recorded: {', '.join(lacking)}.")
    if len(sample.hidden) > MAX_LAYERS:
        words.append(f"Spikes not drawn: {', '.join(list(sample.hidden)[MAX_LAYERS:])}.")
    if len(sample.membrane) > MAX_LAYERS:
        words.append(f"Membranes not drawn: {', '.join(list(sample.membrane)[MAX_LAYERS:])}.")
    total = max(len(array) for _, array in sample.arrays())
    padded = total - (sample.lengths or 0)
    if padded:
        words.append(f"{plural(padded, 'padded step')} after its end not drawn.")
    return words


def _final_words(sample: SampleTrace, names: Sequence[str], final: int | None, steps: int) -> str:
    if sample.scores is None or sample.prediction is None:
        return ""
    given = f"“{names[sample.prediction]}”"
    last = sample.scores[steps - 1]
    if final is None:
        text = f"{given} does not lead alone at the last step, so no final step is marked"
    elif final == 0:
        text = f"{given} leads from the first step to the end"
    else:
        text = f"{given} leads for good from step {final} of 0\u2013{steps - 1} on"
    rivals = [index for index in range(len(last)) if index != sample.prediction]
    if sample.correct is not False and not rivals:
        return f"{text}."
    if sample.label is None or sample.correct:
        rival = max(rivals, key=lambda index: float(np.nan_to_num(last[index], nan=-np.inf)))
        other = f"the next class “{names[rival]}”"
    else:
        rival, other = sample.label, f"the true class “{names[sample.label]}”"
    own, theirs = float(last[sample.prediction]), float(last[rival])
    close = own != theirs and number(own) == number(theirs)
    ends = [f"{value:.6g}".replace("-", "\u2212") if close else number(value) for value in (own, theirs)]
    return f"{text}; it ends at {ends[0]}, {other} at {ends[1]}."


# ── firing rates ──────────────────────────────────────────────────────────────────────────────────


def firing_histogram(layer: str, rates: NDArray[Any], per: str = "step") -> Picture:
    """How the firing rates of a layer are spread; silent neurons in the second colour.

    Shapes: ``rates`` ``(N,)``, in spikes per step (or per what ``per`` says), at least one neuron.
    """
    finite = rates[np.isfinite(rates)]
    peak = float(finite.max()) if finite.size else 0.0
    high = peak if peak > 0 else 1.0
    counts, edges = np.histogram(finite, bins=20, range=(0.0, high))
    silent = int(np.sum(finite == 0))
    top = float(max(counts.max(), 1))
    y_ticks = ticks(0, top, 3, integer=True)
    left = max(30.0, CHAR * max(len(f"{v:,.0f}") for v in y_ticks) + 10)
    frame = Frame(left, 38, WIDTH - left - 10, 110, 0.0, high, 0.0, top * 1.05)
    body = [_title(12, short(layer, 26), [("second thick", f"{silent:,} silent")] if silent else [])]
    body.append(_y_axis(frame, y_ticks, [f"{v:,.0f}" for v in y_ticks]))
    bars: dict[str, list[str]] = {"first area": [], "second area": []}
    for place, count in enumerate(counts.tolist()):
        x, wide = frame.x(edges[place]) + 0.5, frame.width / 20 - 1
        quiet = silent if place == 0 else 0
        for css, start, stop in (("second area", 0, quiet), ("first area", quiet, count)):
            if stop > start:
                bars[css].append(f"M{_n(x)} {_n(frame.y(start))}h{_n(wide)}V{_n(frame.y(stop))}h-{_n(wide)}z")
    body += [f'<path class="{css}" d="{"".join(d)}"/>' for css, d in bars.items() if d]
    body.append(_x_axis(frame, ticks(0, high, 5), f"spikes per neuron and {per}"))
    words = f"{layer}: {plural(rates.size, 'neuron')}"
    if not finite.size:
        words += "; no finite rate."
    else:
        mean = float(finite.mean())
        middle = frame.x(min(mean, high))
        body.append(f'<path class="mark" d="M{_n(middle)} {_n(frame.top)}V{_n(frame.bottom)}"/>')
        half = CHAR * 2
        label = min(max(middle, left + half), WIDTH - half)
        body.append(_text(label, frame.top - 4, "mean", css="note", anchor="middle"))
        words += (
            f", mean rate {number(mean)}, median {number(float(np.median(finite)))}, highest {number(peak)}"
        )
        words += (
            f"; {silent:,} never fired ({number(silent / finite.size, percent=True)})."
            if silent
            else "; all of them fired."
        )
        if finite.size < rates.size:
            words += f" {plural(rates.size - finite.size, 'rate')} not finite, left out."
    return Picture(_svg(186, f"Histogram of the firing rates of {layer}", body), words)


# ── delays ────────────────────────────────────────────────────────────────────────────────────────


def delay_histogram(name: str, layer: LayerDelays) -> Picture:
    """How the delays of a layer are spread: bars after training, a line before."""
    after = np.asarray(layer.histogram, dtype=np.float64)
    before = None if layer.histogram_before is None else np.asarray(layer.histogram_before, dtype=np.float64)
    # a bar is to be two units wide at least: of very many steps several share one
    group = math.ceil(len(after) / 150)
    starts = np.arange(0, len(after), group)
    drawn = [None if counts is None else np.add.reduceat(counts, starts) for counts in (after, before)]
    edges = [*(starts - 0.5).tolist(), len(after) - 0.5]
    top = max(1.0, *(float(counts.max()) for counts in drawn if counts is not None))
    y_ticks = ticks(0, top, 3, integer=True)
    left = max(30.0, CHAR * max(len(f"{v:,.0f}") for v in y_ticks) + 10)
    frame = Frame(left, 38, WIDTH - left - 10, 110, -0.5, len(after) - 0.5, 0.0, top * 1.05)
    keys = [("first thick", "after")] + ([("second", "before")] if before is not None else [])
    body = [_title(12, short(name, 26), keys)]
    body.append(_y_axis(frame, y_ticks, [f"{v:,.0f}" for v in y_ticks]))
    bars = []
    for (start, stop), count in zip(pairwise(edges), drawn[0].tolist(), strict=True):  # type: ignore[union-attr]
        if count:
            # a gap where there is room for one
            x, wide = frame.x(start), frame.x(stop) - frame.x(start)
            gap = 0.5 if wide > 3 else 0.0
            height = frame.bottom - frame.y(count)
            bars.append(f"M{_n(x + gap)} {_n(frame.bottom)}v-{_n(height)}h{_n(wide - 2 * gap)}v{_n(height)}z")
    if bars:
        body.append(f'<path class="first area" d="{"".join(bars)}"/>')
    if drawn[1] is not None:
        line = f"M{_n(frame.x(edges[0]))} {_n(frame.bottom)}"
        for stop, count in zip(edges[1:], drawn[1].tolist(), strict=True):
            line += f"V{_n(frame.y(count))}H{_n(frame.x(stop))}"
        body.append(f'<path class="second thin" d="{line}V{_n(frame.bottom)}"/>')
    body.append(_x_axis(frame, ticks(0, layer.max_delay, 5, integer=True), "delay in steps"))
    return Picture(_svg(186, f"Histogram of the delays of {name}", body), _delay_words(name, layer, group))


def _delay_words(name: str, layer: LayerDelays, group: int) -> str:
    words = f"{name}: {plural(layer.count, 'learnt delay' if layer.learnt else 'fixed delay')}"
    words += f" of 0 to {plural(layer.max_delay, 'step')}"
    if layer.count:
        words += f", mean {number(layer.mean)}, median {number(layer.median)}"
        at = (layer.share_at_zero, layer.share_at_max)
        words += f"; {number(at[0], percent=True)} at 0 and {number(at[1], percent=True)} at the longest."
    else:
        words += ", no connection."
    if layer.moved is None:
        words += " What they were before training is not known."
    elif layer.count:
        words += f" They moved by {number(layer.moved)} steps on average."
    return words + (f" A bar holds {group} steps." if group > 1 else "")


def delay_map(name: str, layer: LayerDelays, key: str) -> Picture:
    """Every delay of a layer: a row an output and a column an input, or one row of channels.

    Args:
        name: of the layer.
        layer: its delays.
        key: a prefix for the ids within the picture, unique on the page.
    """
    matrix = layer.matrix().numpy()
    rows, columns = matrix.shape
    there = np.isfinite(matrix).astype(np.float64)
    # A delay of 0 has the first level and no connection none; of binned cells the mean is that of the connections there.
    strength = np.where(there > 0, (1 + np.nan_to_num(matrix)) / (1 + layer.max_delay), 0.0)
    density = _shrink(there, MAP_ROWS, MAP_COLUMNS)
    small = _shrink(strength, MAP_ROWS, MAP_COLUMNS) / np.where(density > 0, density, 1.0)
    one_each = layer.delays.dim() == 1
    per = 1 if one_each else math.prod(layer.delays.shape[2:])
    inputs = columns // per
    height = float(min(max(6 * rows, 24), 160))
    left = 26 + CHAR * len(str(rows - 1))
    frame = Frame(left, 38, WIDTH - left - 6, height, -0.5, inputs - 0.5, 0, 1)
    body = [_title(12, short(name, 26))]
    # the scale: as many levels as an image has, from 0 to the longest
    levels = (np.arange(1, IMAGE_LEVELS + 1) / IMAGE_LEVELS)[None, :]
    far = _text(WIDTH - 1, 12, str(layer.max_delay), anchor="end")
    at = WIDTH - 6 - CHAR * len(str(layer.max_delay)) - 70
    body += [_text(at - 5, 12, "0", anchor="end"), far]
    body.append(_mask(levels, f'x="{_n(at)}" y="4" width="70" height="9"', "first area", f"{key}-scale"))
    place = f'x="{_n(left)}" y="{_n(frame.top)}" width="{_n(frame.width)}" height="{_n(height)}"'
    body.append(f'<rect class="pane" {place}/>')
    body.append(_mask(small, place, "first area", f"{key}-map", crisp=small.shape == matrix.shape))
    if not one_each:
        body.append(_text(left - 5, frame.top + 9, "0", anchor="end"))
        if rows > 1:
            body.append(_text(left - 5, frame.bottom, str(rows - 1), anchor="end"))
        middle = frame.top + height / 2
        turn = f' transform="rotate(-90 11 {_n(middle)})"'
        body.append(_text(11, middle, "out" if height < 44 else "output", anchor="middle", extra=turn))
    body.append(_x_axis(frame, ticks(0, inputs - 1, 6, integer=True), "channel" if one_each else "input"))
    words = f"Delay of every {'channel' if one_each else 'connection'} of {name}, stronger is longer, up to "
    words += f"{plural(layer.max_delay, 'step')}."
    if not there.all():
        words += f" Blank: not connected ({number(1 - float(there.mean()), percent=True)})."
    if per > 1:
        words += f" Each input has {per} columns, side by side."
    if small.shape != matrix.shape:
        words += f" {rows} × {columns} delays, binned to {small.shape[0]} × {small.shape[1]} means."
    return Picture(_svg(38 + height + 38, f"Map of the delays of {name}", body), words)


# ── trained constants ─────────────────────────────────────────────────────────────────────────────


def constants_histogram(name: str, constants: Constants) -> Picture:
    """How a constant is spread over the neurons: bars after training, a line before, on one axis.

    The axis is logarithmic where that suits the values: see ``Constants.logarithmic``.
    """
    log = constants.logarithmic
    finite = constants.finite
    scaled = np.log10(finite) if log else finite
    low, high = _span(scaled.tolist(), pad=0.02)
    edges = np.linspace(low, high, BINS + 1)

    def counts_of(values: NDArray[Any]) -> NDArray[Any]:
        values = values[np.isfinite(values)]
        return np.histogram(np.log10(values) if log else values, bins=edges)[0]

    after = counts_of(constants.trained)
    before = None if constants.begun is None else counts_of(constants.begun)
    top = float(max(1, after.max(), 0 if before is None else before.max()))
    y_ticks = ticks(0, top, 3, integer=True)
    left = max(30.0, CHAR * max(len(f"{v:,.0f}") for v in y_ticks) + 10)
    frame = Frame(left, 38, WIDTH - left - 10, 110, low, high, 0.0, top * 1.05)
    keys = [("first thick", "after")] + ([("second", "before")] if before is not None else [])
    body = [_title(12, short(name, 26), keys)]
    body.append(_y_axis(frame, y_ticks, [f"{v:,.0f}" for v in y_ticks]))
    body.append(_bars(frame, edges.tolist(), after))
    if before is not None:
        line = f"M{_n(frame.x(low))} {_n(frame.bottom)}"
        for stop, count in zip(edges[1:].tolist(), before.tolist(), strict=True):
            line += f"V{_n(frame.y(count))}H{_n(frame.x(stop))}"
        body.append(f'<path class="second thin" d="{line}V{_n(frame.bottom)}"/>')
    axis = f"value in {constants.unit}" if constants.unit else "value"
    if log:
        at = _log_ticks(10**low, 10**high, room=frame.width)
        labels = [_plain(v) for v in at]
        body.append(_x_axis(frame, [math.log10(v) for v in at], f"{axis}, logarithmic", labels=labels))
    else:
        at = ticks(low, high, 5)
        body.append(_x_axis(frame, at, axis, labels=[_plain(v) for v in at]))
    label = f"Histogram of {name} after training" + (" and before" if before is not None else "")
    return Picture(_svg(186, label, body), _constants_words(name, constants))


def _bars(frame: Frame, edges: Sequence[float], counts: NDArray[Any]) -> str:
    d = []
    for (start, stop), count in zip(pairwise(edges), counts.tolist(), strict=True):
        if count:
            x, wide, height = (
                frame.x(start) + 0.5,
                frame.x(stop) - frame.x(start) - 1,
                frame.bottom - frame.y(count),
            )
            d.append(f"M{_n(x)} {_n(frame.bottom)}v-{_n(height)}h{_n(wide)}v{_n(height)}z")
    return f'<path class="first area" d="{"".join(d)}"/>' if d else ""


def _plain(value: float) -> str:
    return f"{value:.4g}".replace("-", "\u2212")


def _log_ticks(low: float, high: float, *, room: float) -> list[float]:
    """1, 2 and 5 of each power of ten within ``low..high``, or as many of them as have room for their labels."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    slack = 1e-9
    for digits, stride in (
        ((1, 2, 5), 1),
        ((1, 3), 1),
        *(((1,), stride) for stride in (1, 2, 5, 10, 20, 50, 100)),
    ):
        powers = range(math.ceil(first / stride) * stride, last + 1, stride)
        found = [float(f"{digit}e{power}") for power in powers for digit in digits]
        found = [v for v in found if low * (1 - slack) <= v <= high * (1 + slack)]
        places = [room * math.log(v / low) / math.log(high / low) for v in found]
        half = [CHAR * len(_plain(v)) / 2 for v in found]
        gaps = [
            b - a - left - right
            for (a, b), (left, right) in zip(pairwise(places), pairwise(half), strict=True)
        ]
        if all(gap >= 6 for gap in gaps):
            return found
    return found[:1]


def _constants_words(name: str, constants: Constants) -> str:
    unit = f" {constants.unit}" if constants.unit else ""
    words = f"{name} of {plural(constants.trained.size, 'neuron')}"
    spans = []
    for when, values in (("after", constants.trained), ("before", constants.begun)):
        if values is None:
            continue
        values = values[np.isfinite(values)]
        if not values.size:
            spans.append(f"no finite value {when} training")
            continue
        low, high = number(float(values.min())), number(float(values.max()))
        spread = (
            f"{low}{unit} for all"
            if low == high
            else f"{low} to {high}{unit}, median {number(float(np.median(values)))},"
        )
        spans.append(f"{spread} {when} training")
    words += ": " + "; ".join(spans) + "."
    if constants.begun is None:
        words += " What they were before training is not known."
    holes = sum(int(np.sum(~np.isfinite(v))) for v in (constants.trained, constants.begun) if v is not None)
    if holes:
        words += f" {plural(holes, 'value')} not finite, left out."
    return words
