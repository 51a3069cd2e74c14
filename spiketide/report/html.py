"""Writes the report: one file, no scripts, nothing fetched from anywhere."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import RunError
from ..segments import Onsets
from ..synapses import LayerDelays
from . import first_spike_plots, plots, strips
from .data import Constants, ReportData, Row, SampleTrace
from .plots import Picture, clean, short

SIZE_LIMIT = 2_000_000
"""Bytes a report may have; samples that do not fit are left out and counted."""

RESERVE = 100_000
"""Bytes kept free of samples, for what comes after them."""

STRIP_SHARE = 0.5
"""Share of the room for strips and samples that strips may take."""

CONSTANT_FIGURES = 24
"""Constants that are drawn; the table has all of them."""

DELAY_LAYERS = 12
"""Layers whose delays are drawn; the table has all of them."""

EXPECTED = ("seed", "machine", "versions", "commit", "command")
"""What a report should know about its run; whatever is missing is said to be."""

TITLES = {
    "summary": "Summary",
    "curves": "Learning curves",
    "confusion": "Confusion matrix",
    "labels": "Labels over time",
    "onsets": "Onsets",
    "samples": "Samples over time",
    "times": "Spike times and deadlines",
    "first_spikes": "First spikes",
    "filters": "Weights of the first layer",
    "firing": "Firing rates",
    "delays": "Delays",
    "constants": "Trained constants",
    "diagnosis": "Diagnosis",
    "environment": "How it was run",
}

OPTIONAL = ("labels", "onsets", "first_spikes", "times", "filters", "delays", "constants")
"""Sections that are there only when there is something to show, as most runs have no such thing."""

ABSENT = {
    "summary": "the run handed over no summary figures.",
    "curves": "the run recorded no epoch.",
    "confusion": "the run was not tested, or its task has no classes.",
    "samples": "no test sample was traced.",
    "firing": "no firing rates were recorded, or the network has no spiking layer.",
    "diagnosis": "diagnose was not run on this model.",
    "environment": "the run recorded nothing about itself.",
}

STYLE = """
:root{color-scheme:light dark;--page:#fbfbfa;--pane:#f4f4f2;--ink:#1c2126;--soft:#565e67;--hair:#e3e3df;
--strong:#b9bcbd;--first:#0068a8;--second:#b84e00;--other:#a0a5ab;--on:#ffffff}
@media (prefers-color-scheme:dark){:root{--page:#131619;--pane:#1f2429;--ink:#e7e9eb;--soft:#a3abb3;
--hair:#2c3238;--strong:#565e66;--first:#62b4ea;--second:#f29a4a;--other:#68717a;--on:#10151a}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;text-size-adjust:100%}
body{margin:0;background:var(--page);color:var(--ink);line-height:1.55;overflow-wrap:anywhere;
font:1rem/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main,header,footer{max-width:1180px;margin:0 auto;padding:0 16px}
header{padding-top:48px}
h1{font-size:clamp(1.6rem,4vw,2.3rem);line-height:1.2;
letter-spacing:-.015em;margin:.1em 0 .3em;font-weight:650}
h2{font-size:1.3rem;letter-spacing:-.01em;margin:0 0 10px;font-weight:620}
h3{font-size:1rem;margin:0 0 12px;font-weight:600;display:flex;gap:10px;align-items:baseline;flex-wrap:wrap}
p{margin:0 0 12px;max-width:68ch}
.over{color:var(--soft);font-size:.85rem;letter-spacing:.04em;margin:0}
.verdict{font-size:1.1rem;margin:0 0 6px;max-width:74ch}
.claim{color:var(--soft)}
.tag{font-size:.8rem;
font-weight:600;border:1px solid currentColor;border-radius:99px;padding:1px 9px}
.yes{color:var(--first)}.no{color:var(--second)}
nav{margin:20px 0 0;padding:12px 0;
border-top:1px solid var(--hair);display:flex;flex-wrap:wrap;gap:4px 20px;font-size:.9rem}
a{color:var(--first);text-underline-offset:3px;text-decoration-thickness:1px}
a:focus-visible,.scroll:focus-visible,summary:focus-visible{outline:2px solid var(--first);outline-offset:2px}
section{padding:36px 0 12px;border-top:1px solid var(--hair);margin-top:28px;scroll-margin-top:0}
.lead{color:var(--soft);margin-bottom:22px;max-width:84ch}
.absent{color:var(--soft);border-left:3px solid var(--strong);padding:2px 0 2px 12px}
.grid{display:grid;gap:36px 32px;align-items:start;
grid-template-columns:repeat(auto-fill,minmax(min(100%,340px),1fr))}
.grid+.grid{margin-top:36px}
.row{display:flex;flex-wrap:wrap;gap:32px;align-items:flex-start}
figure{margin:0;min-width:0}
figcaption{color:var(--soft);font-size:.86rem;line-height:1.5;margin-top:8px}
svg{display:block;width:100%;height:auto;font-size:11px;overflow:visible}
.grid svg{max-width:420px}
.scroll{overflow-x:auto;max-width:100%}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{text-align:left;vertical-align:baseline;
padding:9px 16px 9px 0;border-bottom:1px solid var(--hair);font-weight:400}
td:last-child{padding-right:0}
.figures{max-width:820px}.figures table{table-layout:fixed}
.figures th{width:60%}
.figures td{font-size:1.2rem;font-weight:620;text-align:right}
.figures td.none{font-weight:400;color:var(--soft);font-size:1rem}
th small{display:block;color:var(--soft);font-size:.86rem;line-height:1.45}
.errors{flex:0 1 230px}
.errors th,.errors td{padding:5px 12px 5px 0;font-size:.9rem}.errors th{color:var(--soft)}
.errors th:last-child,.errors td:last-child{text-align:right;padding-right:0}
.delays{margin-top:28px}
.delays th,.delays td{padding:5px 14px 5px 0;font-size:.9rem;white-space:nowrap;overflow-wrap:normal}
.delays thead th{color:var(--soft)}
.delays td,.delays thead th+th{text-align:right}
caption{text-align:left;font-weight:600;font-size:.86rem;padding-bottom:4px}
.facts{max-width:820px}.facts table{table-layout:fixed}
.facts th{color:var(--soft);width:8.5em}
.facts td{min-width:0}
code,pre{font:.88em/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,"Liberation Mono",monospace}
pre{margin:0;padding:12px 14px;background:var(--pane);
border-radius:6px;white-space:pre-wrap}
ul{margin:0;padding-left:1.2em;max-width:74ch}li{margin:0 0 6px}
footer{color:var(--soft);font-size:.86rem;padding-top:28px;padding-bottom:48px}
text{fill:var(--soft)}
text.title{fill:var(--ink);font-size:12px;font-weight:600}text.ink,text.key,text.cell{fill:var(--ink)}
text.cell{font-size:10px}text.on{fill:var(--on)}text.note{fill:var(--ink)}
path,circle{fill:none;stroke-linejoin:round;stroke-linecap:round}
path.grid{stroke:var(--hair);stroke-width:1}path.base{stroke:var(--strong);stroke-width:1}
path.first,path.second{stroke-width:2}path.first{stroke:var(--first)}path.second{stroke:var(--second)}
path.dash{stroke-dasharray:5 4}path.thin{stroke-width:1.3}path.thick{stroke-width:8;stroke-linecap:butt}
path.other{stroke:var(--other);stroke-width:1}circle.other{fill:var(--other)}
path.limit{stroke:var(--second);stroke-width:1;stroke-dasharray:4 3}circle.limit{fill:var(--second)}
path.mark{stroke:var(--ink);stroke-width:1;stroke-dasharray:2 3}
path.spike{stroke:var(--ink);stroke-width:1.4;stroke-linecap:butt}
path.marks{stroke:var(--ink);stroke-linecap:butt}
circle.first{fill:var(--first)}circle.second{fill:var(--second)}
.area.first{fill:var(--first);stroke:none}.area.second{fill:var(--second);stroke:none}
.area.ink-line{fill:var(--ink);stroke:none}
rect.pane,rect.track{fill:var(--pane)}rect.frame{fill:none;stroke:var(--hair)}
image.crisp{image-rendering:pixelated}
@media (max-width:600px){header{padding-top:28px}section{padding-top:28px;margin-top:20px}
th,td{padding-right:10px}
.facts table,.facts tbody,.facts tr,.facts th,.facts td{display:block;
width:auto}.facts th{border:0;padding-bottom:0}
.facts td{padding-top:2px}}
@media print{nav{display:none}section{break-inside:auto}figure{break-inside:avoid}}
"""

STEP_STYLE = """:root{--k0:#232d7b;--k1:#e58700;--k2:#33af9e;--k3:#a4457e;--k4:#4e5beb;--k5:#6a1200;--k6:#cc7dff;--k7:#616a05}
@media (prefers-color-scheme:dark){:root{--k0:#4dabf9;--k1:#d59f26;--k2:#1d7366;--k3:#ff58b2;--k4:#8544ce;--k5:#b83500;
--k6:#ffd0ff;--k7:#97ff5f}}
COLOURSpath.line{stroke-width:1.4}path.v1,rect.v1{opacity:.6}path.v2,rect.v2{opacity:.35}
path.rest{stroke:var(--other)}.area.rest{fill:var(--other);stroke:none}
path.adapt{stroke:var(--soft);stroke-width:1.1}circle.adapt{fill:var(--soft)}
path.falling{stroke:var(--second);stroke-linecap:butt}.area.falling{fill:var(--second)}
.strips{display:grid;gap:28px;max-width:1100px}
.wide{min-width:760px}
.numbers{margin-top:28px}.numbers.first{margin-top:0;max-width:820px}
.numbers th,.numbers td{padding:5px 14px 5px 0;font-size:.9rem;white-space:nowrap;overflow-wrap:normal}
.numbers thead th{color:var(--soft)}
.numbers td,.numbers thead th+th{text-align:right}.numbers td.when,.numbers thead th.when{text-align:left}
.numbers tfoot th,.numbers tfoot td{font-weight:620;border-bottom:0}
"""
"""What only sequences labelled step by step, adaptation and trained constants need. The colours of classes were searched for so
that, seen normally and with each kind of colour blindness, all eight differ and stand out from the page."""


def write_report(data: ReportData, path: str | os.PathLike[str]) -> Path:
    """Write the report of a run as one HTML file, all at once or not at all.

    The text is written beside ``path`` and moved over it when complete, so that a full disk, a kill or an
    error in the middle leaves an older report as it was. The same data give the same bytes.

    Example:
        >>> import tempfile
        >>> from spiketide.report import ReportData, write_report
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_report(ReportData(title="digits"), f"{folder}/report.html").name
        'report.html'

    Args:
        data: what to show.
        path: the file; its folder is made when missing.

    Returns:
        ``path``.

    Raises:
        RunError: the file cannot be written there.
    """
    target = Path(path)
    content = render_report(data).encode("utf-8")
    part = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        if target.is_dir():
            raise IsADirectoryError(f"{target} is a folder")
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(part, "xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, target)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise RunError(
            f"expected to write the report to {target}, got: {error}. Nothing there was changed; free space, "
            "choose another path, or make the folder writable."
        ) from error
    return target


def render_report(data: ReportData) -> str:
    """The report as text: what ``write_report`` writes."""
    parts = {
        "summary": _summary(data),
        "curves": _curves(data),
        "confusion": _confusion(data),
        "onsets": _onsets(data),
        "times": _times(data),
        "filters": _filters(data),
        "firing": _firing(data),
        "delays": _delays(data),
        "constants": _constants(data),
        "diagnosis": _diagnosis(data),
        "environment": _environment(data),
    }
    colours = _class_colours(data)
    room = SIZE_LIMIT - RESERVE - sum(len(part.encode("utf-8")) for part in parts.values())
    parts["labels"] = _labels(data, colours, int(room * STRIP_SHARE) if data.samples else room)
    room -= len(parts["labels"].encode("utf-8"))
    parts["first_spikes"] = _first_spikes(data, room)
    parts["samples"] = _samples(data, colours, room) if data.first_spikes is None else ""
    hidden = () if data.first_spikes is None else ("samples",)
    titles = {
        key: title for key, title in TITLES.items() if parts[key] or not (key in OPTIONAL or key in hidden)
    }
    sections = "".join(
        f'<section id="{key}" aria-labelledby="h-{key}"><h2 id="h-{key}">{title}</h2>{parts[key]}</section>\n'
        for key, title in titles.items()
    )
    links = "".join(f'<a href="#{key}">{title}</a>' for key, title in titles.items())
    # The policy makes "nothing is fetched" a property the browser enforces, not a promise.
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">\n"
        '<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n'
        f"<title>{clean(data.title)} – run report</title>\n<style>{_style(data)}</style>\n</head>\n<body>\n"
        f'<header>{_heading(data)}<nav aria-label="Sections">{links}</nav></header>\n<main>\n'
        f"{sections}</main>\n"
        "<footer>Written by spiketide. One file, nothing is loaded from elsewhere.</footer>\n"
        "</body>\n</html>\n"
    )


def _style(data: ReportData) -> str:
    """The style of the page: runs of samples with one class each need the first part only."""
    slow = any(sample.adaptation or sample.label is None for sample in data.samples)
    if not (slow or data.strips or data.over_time or data.onsets or data.constants):
        return STYLE
    colours = "".join(
        f"path.k{k}{{stroke:var(--k{k})}}.area.k{k},circle.k{k}{{fill:var(--k{k});stroke:none}}\n"
        for k in range(plots.PALETTE)
    )
    return STYLE + STEP_STYLE.replace("COLOURS", colours)


def _class_colours(data: ReportData) -> list[str]:
    """One colour a class on the whole page; with very many classes the most frequent ones have them."""
    count = len(data.class_names or ())
    weights = np.zeros(count)
    if data.confusion is not None:
        weights[: len(data.confusion)] += data.confusion.sum(axis=1)
    else:
        for strip in data.strips:
            weights += np.bincount(strip.labels[strip.labelled], minlength=count)
    return plots.class_colours(count, weights)


# ── parts ─────────────────────────────────────────────────────────────────────────────────────────


def _heading(data: ReportData) -> str:
    name = data.recipe if data.recipe and "\n" not in data.recipe else ""
    over = "Report of a run" + (f" of <code>{clean(name)}</code>" if name else "")
    return f'<p class="over">{over}</p><h1>{clean(data.title)}</h1>{_verdict(data)}'


def _verdict(data: ReportData) -> str:
    if data.accuracy is None or data.confusion is None:
        result = "No test result: " + clean(data.missing.get("confusion", ABSENT["confusion"]))
    else:
        total, right = int(data.confusion.sum()), int(np.trace(data.confusion))
        share = plots.number(data.accuracy, percent=True)
        tested = clean(plots.of_test(data.unit))
        result = f"<strong>{share}</strong> of the {tested} are right ({right:,} of {total:,})."
    lines = f'<p class="verdict">{result}</p>'
    if data.claim is None:
        return f'{lines}<p class="claim">No claim to compare with: the recipe names none.</p>'
    claim = dict(data.claim)
    verdict = claim.pop("verdict", None)
    paper = claim.pop("paper", None) or "an unnamed paper"
    value, tolerance = claim.pop("value", None), claim.pop("tolerance", None)
    told = f"Claim: {_value(value) if value is not None else 'no value given'}"
    told += f" ± {_value(tolerance)}" if tolerance is not None else ", no tolerance given"
    told += f", {clean(paper)}."
    told += "".join(
        f" {clean(str(key).replace('_', ' ').capitalize())}: {_value(extra)}." for key, extra in claim.items()
    )
    if isinstance(verdict, bool | np.bool_):
        verdict = "reproduced" if verdict else "not reproduced"
    if verdict is None:
        tag = '<span class="tag">no verdict</span>'
    else:
        # Colour and sign only for the two words that are certain; any other verdict speaks for itself.
        css, sign = {"reproduced": ("yes", "✓ "), "not reproduced": ("no", "✗ ")}.get(
            str(verdict), ("plain", "")
        )
        tag = f'<span class="tag {css}">{sign}{clean(verdict)}</span>'
    return f'{lines}<p class="claim">{tag} {told}</p>'


def _summary(data: ReportData) -> str:
    if not data.summary:
        return _absent(data, "summary")
    rows = "".join(_row(row) for row in data.summary)
    return f'<div class="figures"><table><tbody>{rows}</tbody></table></div>'


def _row(row: Row) -> str:
    note = f"<small>{clean(row.note)}</small>" if row.note else ""
    whole = isinstance(row.value, int | np.integer) and not isinstance(row.value, bool)
    value = f"{row.value:,}" if whole else _value(row.value)
    cell = f"<td>{value}" if row.value is not None else '<td class="none">not measured'
    return f'<tr><th scope="row">{clean(row.label)}{note}</th>{cell}</td></tr>'


def _curves(data: ReportData) -> str:
    curves = {name: points for name, points in data.curves.items() if points}
    if not curves:
        return _absent(data, "curves")
    best, why = _best_epoch(data)
    figures = [plots.learning_curve(name, points, best) for name, points in curves.items()]
    empty = [clean(name) for name in data.curves if name not in curves]
    lead = f"No epoch recorded for: {', '.join(empty)}. " if empty else ""
    if best is not None:
        lead += f"Marked: epoch {best}, {why}."
    else:
        lead += (
            "No best epoch is marked: none was given, and there is no validation accuracy or loss to tell it."
        )
    return _lead(lead) + _grid(figures)


def _best_epoch(data: ReportData) -> tuple[int | None, str]:
    """The given epoch, else that of highest validation accuracy, else of lowest validation loss, and why."""
    if data.best_epoch is not None:
        return data.best_epoch, "whose weights were tested"
    for word, sign, why in (
        ("acc", -1, "the first of highest validation accuracy"),
        ("loss", 1, "the first of lowest validation loss"),
    ):
        for name, points in data.curves.items():
            found = [
                (sign * p[2], p[0])
                for p in points
                if word in name.lower() and p[2] is not None and np.isfinite(p[2])
            ]
            if found:
                return min(found)[1], why
    return None, ""


def _confusion(data: ReportData) -> str:
    if data.confusion is None:
        return _absent(data, "confusion")
    names = data.class_names or ()
    matrix = plots.confusion_matrix(data.confusion, names, data.unit)
    bars = plots.class_accuracy(data.confusion, names, data.unit)
    # Scroll boxes take the keyboard focus, or their far side could be reached by pointer only.
    box = (
        f'<div class="scroll" role="region" aria-label="Confusion matrix" tabindex="0">'
        f'<div style="min-width:{matrix.width}px">{matrix.svg}</div></div>'
        if matrix.width > plots.WIDTH
        else matrix.svg
    )
    wide = max(matrix.width, 440)
    left = f'<figure style="flex:1 1 {matrix.width}px;max-width:{wide}px">{box}{_caption(matrix)}</figure>'
    right = f'<figure style="flex:1 1 340px;max-width:400px">{bars.svg}{_caption(bars)}</figure>'
    return f'<div class="row">{left}{right}{_confused(data)}</div>'


def _confused(data: ReportData) -> str:
    """The most frequent errors, by name: what a reader looks for in the matrix."""
    names = data.class_names or ()
    found = plots.confusions(data.confusion) if data.confusion is not None else []
    if not found:
        return ""
    rows = "".join(
        f"<tr><td>{clean(short(names[true], 30))}</td><td>{clean(short(names[given], 30))}</td>"
        f"<td>{count:,}</td></tr>"
        for true, given, count in found
    )
    heads = "".join(f'<th scope="col">{word}</th>' for word in ("true", "predicted", "times"))
    table = f"<caption>Most frequent errors</caption><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody>"
    return f'<div class="errors"><table>{table}</table></div>'


def _labels(data: ReportData, colours: Sequence[str], room: int) -> str:
    if not data.strips:
        return ""
    names = data.class_names or ()
    curve = _over_time(data, wide=True)
    room -= len(curve.encode("utf-8"))
    cards: list[str] = []
    for place, strip in enumerate(data.strips):
        picture = strips.strip_picture(strip, names, f"strip{place}", colours)
        card = _wide_figure(picture, strip.title or f"Strip {place + 1}")
        room -= len(card.encode("utf-8"))
        if room < 0:
            break
        cards.append(card)
    lead = (
        "Test sequences from left to right: the input, a mark per event; below it the true class of every step, the predicted "
        "one, and, marked on the last band, where the two differ. "
    )
    if len(cards) < len(data.strips):
        left = len(data.strips) - len(cards)
        lead += f"{left} of {len(data.strips)} sequences were left out to keep this file small. "
    return _lead(lead) + f'<div class="strips">{"".join(cards)}{curve}</div>'


def _over_time(data: ReportData, *, wide: bool) -> str:
    """The accuracy along a sequence; in seconds, if beside strips that agree on their step."""
    if not data.over_time:
        return ""
    lengths = {strip.step_ms for strip in data.strips}
    step_ms = lengths.pop() if len(lengths) == 1 else None
    picture = strips.accuracy_over_time(data.over_time, step_ms=step_ms, wide=wide)
    return _wide_figure(picture, "Accuracy over time") if wide else _grid([picture])


def _onsets(data: ReportData) -> str:
    if not data.onsets:
        return ""
    near = f" at most {clean(data.onset_tolerance)} away" if data.onset_tolerance else " near enough"
    lead = (
        "An onset is a labelled step right after a labelled step of another class: the first step of a sequence is none, nor is "
        "the first after a stretch without labels. A true onset is found if a predicted onset of the same class lies"
        f"{near}; a predicted onset that belongs to no true one is false."
    )
    heads = ("class", "true", "found", "missed", "false", "sensitivity", "precision")
    head = "".join(f'<th scope="col">{word}</th>' for word in heads)
    rows = "".join(_onset_row(name, counts) for name, counts in data.onsets.items())
    total = Onsets(*(sum(column) for column in zip(*data.onsets.values(), strict=True)))
    table = (
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody>"
        f"<tfoot>{_onset_row('all classes', total)}</tfoot>"
    )
    return _lead(lead) + _number_table(table, "Onsets in numbers", css="numbers first")


def _onset_row(name: str, counts: Onsets) -> str:
    cells = [f"{count:,}" for count in (counts.true, counts.found, counts.missed, counts.false)]
    cells += [
        "none" if np.isnan(share) else plots.number(share, percent=True)
        for share in (counts.sensitivity, counts.precision)
    ]
    row = "".join(f"<td>{cell}</td>" for cell in cells)
    return f'<tr><th scope="row">{clean(short(name, 40))}</th>{row}</tr>'


def _samples(data: ReportData, colours: Sequence[str], room: int) -> str:
    curve = "" if data.strips else _over_time(data, wide=False)
    if not data.samples:
        return _absent(data, "samples") + curve
    names = data.class_names or ()
    room -= len(curve.encode("utf-8"))
    # When not all fit, a wrong one is kept: it is the one a reader learns from.
    order = sorted(range(len(data.samples)), key=lambda place: data.samples[place].correct is not False)[:1]
    order += [place for place in range(len(data.samples)) if place not in order]
    cards: dict[int, str] = {}
    for place in order:
        card = _sample(data.samples[place], place, names, colours)
        room -= len(card.encode("utf-8"))
        if room < 0:
            break
        cards[place] = card
    shown = [data.samples[place] for place in cards]
    lead = (
        "Test samples step by step, on one time axis: the input and the spikes of the hidden layers (a mark "
        "per spike, neuron 0 at the bottom), the membrane potential of a few neurons (a lane each, on one "
        "scale, their spikes as ticks above), and the score of every class "
    )
    if any(sample.label is not None or sample.prediction is not None for sample in data.samples):
        lead += (
            "(blue the true one, orange a wrong prediction, grey the others). The dotted line marks the step from "
            "which the predicted class leads until the end. "
        )
    else:
        lead += "(a colour each). "
    if len(cards) < len(data.samples):
        left = len(data.samples) - len(cards)
        lead += f"{left} of {len(data.samples)} samples were left out to keep this file small. "
    if shown and data.unit == "samples" and all(sample.correct for sample in shown):
        errors = None if data.confusion is None else int(data.confusion.sum() - np.trace(data.confusion))
        if errors is None:
            lead += "All samples shown are right."
        elif errors:
            lead += f"All samples shown are right; none of the {errors:,} wrong ones of the test set is here."
        else:
            lead += "All are right, because no test sample was wrong."
    return _lead(lead) + f'<div class="grid">{"".join(cards[place] for place in sorted(cards))}</div>{curve}'


def _sample(sample: SampleTrace, place: int, names: Sequence[str], colours: Sequence[str]) -> str:
    head = _sample_head(place, sample.label, sample.prediction, sample.correct, names)
    picture = plots.sample_trace(sample, names, f"s{place}", colours)
    why = "the sample has no valid step" if sample.arrays() and not sample.lengths else "nothing was recorded"
    figure = _figure(picture) if picture else f'<p class="absent">Not shown: {why}.</p>'
    return f'<article aria-label="Sample {place + 1}"><h3>{head}</h3>{figure}</article>'


def _sample_head(
    place: int, label: int | None, prediction: int | None, correct: bool | None, names: Sequence[str]
) -> str:
    head = f"Sample {place + 1}"
    if label is not None:
        head += f": {clean(names[label])}"
    if prediction is not None and not correct:
        head += f", taken for {clean(names[prediction])}"
    if correct is not None:
        yes, no = '<span class="tag yes">✓ right</span>', '<span class="tag no">✗ wrong</span>'
        head += f" {yes if correct else no}"
    return head


def _first_spikes(data: ReportData, room: int) -> str:
    found = data.first_spikes
    if found is None or not found.samples:
        return ""
    names = data.class_names or ()
    # As with samples over time: when not all fit, a wrong one is kept.
    order = sorted(range(len(found.samples)), key=lambda place: found.samples[place].correct)[:1]
    order += [place for place in range(len(found.samples)) if place not in order]
    cards: dict[int, str] = {}
    for place in order:
        sample = found.samples[place]
        picture = first_spike_plots.first_spike_raster(sample, found, names, f"f{place}")
        head = _sample_head(place, sample.label, sample.prediction, sample.correct, names)
        card = f'<article aria-label="Sample {place + 1}"><h3>{head}</h3>{_figure(picture)}</article>'
        room -= len(card.encode("utf-8"))
        if room < 0:
            break
        cards[place] = card
    lead = (
        "Test samples on one time axis: a mark for each neuron at the step at which it fires, neuron 0 at the top, the window of "
        "each layer shaded. In the last panel a dot for each output that fires: blue the true class, orange a wrong prediction, "
        "grey the others. The dotted line marks the first output spike, which decides. "
    )
    if len(cards) < len(found.samples):
        left = len(found.samples) - len(cards)
        lead += f"{left} of {len(found.samples)} samples were left out to keep this file small. "
    if all(found.samples[place].correct for place in cards):
        lead += "All samples shown are right."
    return _lead(lead) + f'<div class="grid">{"".join(cards[place] for place in sorted(cards))}</div>'


def _times(data: ReportData) -> str:
    found = data.first_spikes
    if found is None:
        return ""
    lead = (
        "A network of first spikes answers with its first output spike: stopped early, it has an answer for some samples and "
        "none yet for the others."
    )
    pictures = [
        first_spike_plots.deadline_curve(found),
        first_spike_plots.decision_times(found, data.class_names or ()),
    ]
    if found.spikes:
        pictures.append(first_spike_plots.layer_times(found))
    return _lead(lead) + _grid(pictures)


def _filters(data: ReportData) -> str:
    found = data.first_spikes
    if found is None or not found.filters:
        return ""
    lead = "The weights by which the first layer hears the input: a bright pixel on a positive one makes the neuron fire earlier."
    pictures = [
        first_spike_plots.filter_tiles(name, weights, f"filters{place}")
        for place, (name, weights) in enumerate(found.filters.items())
    ]
    return _lead(lead) + _grid(pictures)


def _firing(data: ReportData) -> str:
    layers = {name: rates for name, rates in data.firing.items() if rates.size}
    if not layers:
        return _absent(data, "firing")
    limit = 24
    empty = [clean(name) for name in data.firing if name not in layers]
    lead = "How often each neuron fires over the test samples: one bar per range of rates. "
    lead += f"Without a neuron: {', '.join(empty)}. " if empty else ""
    if len(layers) > limit:
        lead += f"The first {limit} of {len(layers)} layers are shown. "
    per = "step" if data.first_spikes is None else "sample"
    return _lead(lead) + _grid([plots.firing_histogram(n, r, per) for n, r in list(layers.items())[:limit]])


def _delays(data: ReportData) -> str:
    if not data.delays:
        return ""
    lead = (
        "How many steps each connection waits before it passes a spike on, rounded to whole steps as evaluation does: after "
        "training (bars) and, where it is known, before (line). The maps show each delay after training. "
    )
    shown = list(data.delays.items())[:DELAY_LAYERS]
    if len(shown) < len(data.delays):
        lead += f"The first {DELAY_LAYERS} of {len(data.delays)} layers are drawn. "
    # a grid a layer keeps its two pictures side by side
    grids = [
        _grid([plots.delay_histogram(name, layer), plots.delay_map(name, layer, f"delays-{place}")])
        for place, (name, layer) in enumerate(shown)
    ]
    return _lead(lead) + "".join(grids) + _delay_table(data.delays)


def _delay_table(layers: Mapping[str, LayerDelays]) -> str:
    """The numbers of all layers; in steps, but for the counts and the shares."""
    heads = (
        "layer", "delays", "min", "mean", "median", "max", "at 0", "at max_delay", "width", "moved by",
    )  # fmt: skip
    rows = []
    for name, layer in layers.items():
        learnt = "learnt" if layer.learnt else "fixed"
        steps = [layer.lowest, layer.mean, layer.median, layer.highest]
        cells = [f"{layer.count:,} {learnt}", *(plots.number(value) for value in steps)]
        cells += [plots.number(share, percent=True) for share in (layer.share_at_zero, layer.share_at_max)]
        cells += [plots.number(layer.effective_width)]
        cells += ["unknown" if layer.moved is None else plots.number(layer.moved)]
        row = "".join(f"<td>{clean(cell)}</td>" for cell in cells)
        rows.append(f'<tr><th scope="row">{clean(short(name, 40))}</th>{row}</tr>')
    head = "".join(f'<th scope="col">{word}</th>' for word in heads)
    table = (
        "<caption>Delays after training, in steps; moved by: mean absolute difference to the initial ones</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"
    )
    return (
        '<div class="scroll delays" role="region" aria-label="Delays in numbers" tabindex="0">'
        f"<table>{table}</table></div>"
    )


def _constants(data: ReportData) -> str:
    if not data.constants:
        return ""
    shown = list(data.constants.items())[:CONSTANT_FIGURES]
    lead = "The constants of the neurons after training (bars) and, where they are known, before (line). "
    if any(constants.logarithmic for _, constants in shown):
        lead += "An axis is logarithmic where the values spread over more than a factor of 4. "
    if len(shown) < len(data.constants):
        lead += f"The first {CONSTANT_FIGURES} of {len(data.constants)} are drawn. "
    pictures = [plots.constants_histogram(name, constants) for name, constants in shown]
    return _lead(lead) + _grid(pictures) + _constant_table(data.constants)


def _constant_table(constants: Mapping[str, Constants]) -> str:
    """The finite values in numbers: a row before and a row after training."""
    heads = ("constant", "training", "values", "min", "median", "mean", "max", "sd")
    rows = []
    for name, one in constants.items():
        unit = f" ({clean(short(one.unit, 12))})" if one.unit else ""
        times = [("before", one.begun)] if one.begun is not None else []
        times.append(("after", one.trained))
        for place, (when, values) in enumerate(times):
            finite = values[np.isfinite(values)]
            figures = (np.min, np.median, np.mean, np.max, np.std)
            cells = [plots.number(float(f(finite))) if finite.size else "none finite" for f in figures]
            cells = [f"{finite.size:,}", *cells]
            span = f' rowspan="{len(times)}"' if len(times) > 1 else ""
            first = f'<th scope="rowgroup"{span}>{clean(short(name, 40))}{unit}</th>' if not place else ""
            row = "".join(f"<td>{clean(cell)}</td>" for cell in cells)
            rows.append(f'<tr>{first}<td class="when">{when}</td>{row}</tr>')
    # the word before or after stands on the left, under its head
    css = {"training": ' class="when"'}
    head = "".join(f'<th scope="col"{css.get(word, "")}>{word}</th>' for word in heads)
    table = (
        "<caption>Constants before and after training; values: how many are finite; sd: their standard deviation</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"
    )
    return _number_table(table, "Constants in numbers")


def _number_table(table: str, label: str, css: str = "numbers") -> str:
    return f'<div class="scroll {css}" role="region" aria-label="{label}" tabindex="0"><table>{table}</table></div>'


def _diagnosis(data: ReportData) -> str:
    if data.diagnosis is None:
        return _absent(data, "diagnosis")
    if not data.diagnosis:
        from ..diagnose import SATURATED_SHARE, SILENT_SHARE

        return (
            "<p>diagnose found nothing wrong on a batch. It speaks up when more than "
            f"{SILENT_SHARE:.0%} of a layer’s neurons never fire there or {SATURATED_SHARE:.0%} fire nearly always, and when "
            "gradients vanish or explode.</p>"
        )
    return "<ul>" + "".join(f"<li>{clean(line)}</li>" for line in data.diagnosis) + "</ul>"


def _environment(data: ReportData) -> str:
    lead = "" if data.environment else _absent(data, "environment")
    facts = {"recipe": _recipe(data.recipe)}
    for key in (*EXPECTED, *data.environment):
        value = data.environment.get(key)
        known = value is not None and value != ""
        facts[str(key)] = (_block(value) if key == "command" else _value(value)) if known else "not recorded"
    rows = "".join(
        f'<tr><th scope="row">{clean(key.replace("_", " ").capitalize())}</th><td>{value}</td></tr>'
        for key, value in facts.items()
    )
    return f'{lead}<div class="facts"><table><tbody>{rows}</tbody></table></div>'


# ── pieces ────────────────────────────────────────────────────────────────────────────────────────


def _absent(data: ReportData, section: str) -> str:
    why = data.missing.get(section, ABSENT[section])
    return f'<p class="absent">Not shown: {clean(why)}</p>'


def _lead(text: str) -> str:
    return f'<p class="lead">{text.strip()}</p>' if text.strip() else ""


def _caption(picture: Picture) -> str:
    return f"<figcaption>{clean(picture.caption)}</figcaption>"


def _figure(picture: Picture) -> str:
    return f"<figure>{picture.svg}{_caption(picture)}</figure>"


def _wide_figure(picture: Picture, label: str) -> str:
    """A picture that keeps its size on a narrow screen, which scrolls along it."""
    box = (
        f'<div class="scroll" role="region" aria-label="{clean(label)}" tabindex="0">'
        f'<div class="wide">{picture.svg}</div></div>'
    )
    return f"<figure>{box}{_caption(picture)}</figure>"


def _grid(pictures: Iterable[Picture]) -> str:
    return f'<div class="grid">{"".join(_figure(picture) for picture in pictures)}</div>'


def _recipe(text: str) -> str:
    if not text:
        return "not recorded"
    return _block(text) if "\n" in text else f"<code>{clean(text)}</code>"


def _block(value: Any) -> str:
    text = str(value) if not isinstance(value, list | tuple) else " ".join(map(str, value))
    return f"<pre><code>{clean(text)}</code></pre>"


def _value(value: Any) -> str:
    """A value of a table cell as safe text: mappings and lists in one line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{clean(key)}\u00a0{_value(inner)}" for key, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_value(inner) for inner in value)
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, int | np.integer):
        return str(int(value))
    if isinstance(value, float | np.floating):
        return clean(f"{float(value):.4g}")
    return clean("none" if value is None else value)
