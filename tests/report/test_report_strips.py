"""Sequences labelled step by step: bands, events and curves at the places that the labels say."""

import base64
import io
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from spiketide.report import ReportData, SampleTrace, Strip, html, plots, render_report, strips
from spiketide.segments import Onsets, match_onsets

NAMES = ("P", "PQ", "QR")
BOX = re.compile(r"M([\d.]+) ([\d.]+)H([\d.]+)V([\d.]+)H")


def boxes(svg, css):
    """(left, top, right, bottom) of the rectangles of each path of a class."""
    paths = re.findall(rf'<path class="area {css}" d="([^"]*)"', svg)
    return [[tuple(map(float, box)) for box in BOX.findall(path)] for path in paths]


def hatched(svg):
    found = re.findall(
        r'<rect fill="url\(#[\w-]+\)" x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="([\d.]+)"', svg
    )
    return [(float(x), float(y), float(x) + float(w), float(y) + float(h)) for x, y, w, h in found]


def read_back(svg, steps):
    """The two rows of labels that the bands show, and the wrong steps, read from the drawing at the middle of every step."""
    left, right = re.search(r'<rect class="pane" x="([\d.]+)"[^>]* width="([\d.]+)" height="8"', svg).groups()
    left, width = float(left), float(right)
    bands = {}
    for k in range(plots.PALETTE):
        for path in boxes(svg, f"k{k}"):
            for x, top, end, _ in path:
                bands.setdefault(top, []).append((x, end, k))
    for x, top, end, _ in hatched(svg):
        bands.setdefault(top, []).append((x, end, -1))
    middles = left + width * (np.arange(steps) + 0.5) / steps
    rows = []
    for top in sorted(bands):
        row = [[k for x, end, k in bands[top] if x <= middle < end] for middle in middles]
        assert all(len(here) == 1 for here in row), "a step is covered once"
        rows.append([here[0] for here in row])
    spans = [span for path in boxes(svg, "ink-line") for span in path]
    wrong = [any(x <= middle < end for x, _, end, _ in spans) for middle in middles]
    return rows, wrong


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 60).flatmap(
        lambda steps: st.tuples(*[st.lists(st.integers(-1, 2), min_size=steps, max_size=steps)] * 2)
    )
)
def test_the_bands_say_what_the_labels_say(rows):
    strip = Strip(*rows)
    svg = strips.strip_picture(strip, NAMES, "s").svg
    found, wrong = read_back(svg, len(rows[0]))
    assert found == list(map(list, rows))
    assert wrong == strip.wrong.tolist()


def test_the_words_count_labelled_steps_and_name_the_most_frequent_error():
    strip = Strip([0, 0, 1, 1, 1, -1], [0, 1, 2, 2, 1, 0], step_ms=4.0)
    caption = strips.strip_picture(strip, NAMES, "s").caption
    assert "6 steps of 4 ms, 5 labelled; 2 of 5 are right (40.0\u202f%). Hatched: no label." in caption
    assert "Most often wrong: “PQ” taken for “QR” (2 steps)." in caption
    assert "The input was not recorded." in caption
    assert "left without a class (1 step)" in strips.strip_picture(Strip([0], [-1]), NAMES, "s").caption
    assert "none of them labelled" in strips.strip_picture(Strip([-1], [0]), NAMES, "s").caption


def events(svg, css):
    found = re.findall(rf'<path class="{css} marks"[^>]* d="([^"]*)"', svg)
    return [(float(x), float(y)) for d in found for x, y in re.findall(r"M([\d.]+) ([\d.]+)", d)]


def test_events_stand_above_their_step_and_in_their_lane():
    x = np.zeros((10, 2))
    x[0, 0] = x[9, 1] = 1
    strip = Strip([0] * 10, [0] * 10, x, channels=["up", "down"])
    svg = strips.strip_picture(strip, NAMES, "s").svg
    (_, _, band_end, _) = boxes(svg, "k0")[0][0]
    (band_left, *_) = boxes(svg, "k0")[0][0]
    (first, low), (last, high) = sorted(events(svg, "ink-line"))
    step = (band_end - band_left) / 10
    assert [first, last] == pytest.approx([band_left + 0.5 * step, band_end - 0.5 * step], abs=0.06)
    assert high < low, "channel 0 is the lowest lane"
    heights = {word: float(y) for y, word in re.findall(r'y="([\d.]+)" text-anchor="end">(up|down)<', svg)}
    assert (
        heights["down"] < heights["up"] and abs(heights["up"] - low) < 14 and abs(heights["down"] - high) < 14
    )


def test_events_of_the_other_sign_have_a_colour_of_their_own():
    x = np.array([[1, 0], [-1, 0], [0, -1.0]])
    picture = strips.strip_picture(Strip([0] * 3, [0] * 3, x), NAMES, "s")
    assert len(events(picture.svg, "ink-line")) == 1 and len(events(picture.svg, "falling")) == 2
    assert "3 events in 2 channels, those of the other sign orange." in picture.caption


def test_a_crowded_input_becomes_an_image():
    rng = np.random.default_rng(0)
    x = (rng.random((800, 30)) < 0.5).astype(float)
    svg = strips.strip_picture(Strip([0] * 800, [0] * 800, x), NAMES, "s").svg
    data = re.search(r'href="data:image/png;base64,([^"]*)"', svg)[1]
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("L"))
    assert np.array_equal(image > 0, x.T[::-1] > 0)


def axis(svg):
    """Tick places and words of the time axis."""
    d = re.findall(r'<path class="base" d="M[\d.]+ [\d.]+h[\d.]+((?:M[\d.]+ [\d.]+v4)*)"', svg)[-1]
    places = [float(x) for x in re.findall(r"M([\d.]+) ", d)]
    return dict(zip(re.findall(r'text-anchor="middle">([\d.,]+)<', svg), places, strict=True))


def test_the_axis_is_in_seconds_when_the_step_is_known():
    rows = np.arange(1000) // 500
    known, unknown = (
        strips.strip_picture(Strip(rows, rows, step_ms=ms), NAMES, "s").svg for ms in (4.0, None)
    )
    assert "time in seconds" in known and "time step" in unknown
    # step 500 begins at 2 s; a tick stands at the middle of its step
    change = boxes(known, "k1")[0][0][0]
    half = (boxes(known, "k1")[0][0][2] - change) / 500 / 2
    assert axis(known)["2"] == pytest.approx(change + half, abs=0.1)
    assert axis(unknown)["500"] == pytest.approx(change + half, abs=0.1)
    assert set(axis(known)) == {"0", "0.5", "1", "1.5", "2", "2.5", "3", "3.5"}


def test_a_single_wrong_step_of_very_many_can_be_seen():
    labels = np.zeros(3900, dtype=int)
    said = labels.copy()
    said[777] = 1
    svg = strips.strip_picture(Strip(labels, said), NAMES, "s").svg
    ((x, _, end, _),) = boxes(svg, "ink-line")[0]
    assert end - x == pytest.approx(1.0, abs=0.11)


def test_very_long_sequences_are_cut_and_say_so():
    rows = np.zeros(strips.STRIP_STEPS + 1, dtype=int)
    cut = strips.strip_picture(Strip(rows, rows), NAMES, "s").caption
    assert "4,001 steps, all labelled; 4,001 of 4,001 are right" in cut
    assert "The first 4,000 steps are drawn." in cut
    assert "are drawn" not in strips.strip_picture(Strip(rows[1:], rows[1:]), NAMES, "s").caption


def test_nothing_leaves_the_picture_and_no_two_words_overlap():
    rng = np.random.default_rng(1)
    names = [f"class number {i}" for i in range(24)]
    rows = rng.integers(0, 24, 300)
    strip = Strip(rows, rows, rng.random((300, 8)), title="t", channels=["a long channel name"] * 8)
    svg = strips.strip_picture(strip, names, "s").svg
    width, height = map(float, re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg).groups())
    words = []
    for x, y, anchor, text in re.findall(
        r'<text x="([\d.]+)" y="([\d.]+)"[^>]*?(?: text-anchor="(\w+)")?>([^<]*)<', svg
    ):
        wide = plots.CHAR * len(text)
        start = float(x) - {"end": wide, "middle": wide / 2, "": 0}[anchor]
        words.append((start, float(y), start + wide, text))
    assert len(words) > 24 + 8 + 4
    for start, y, end, text in words:
        assert start >= -1 and end <= width + 1 and 9 <= y <= height - 2, text
    for i, (start, y, end, text) in enumerate(words):
        for other in words[i + 1 :]:
            apart = end <= other[0] + 0.2 or other[2] <= start + 0.2 or abs(y - other[1]) >= 11
            assert apart, (text, other[3])


def test_colours_go_to_the_most_frequent_classes_and_are_the_same_on_the_whole_page():
    few = plots.class_colours(10)
    assert few[:2] == ["k0", "k1"] and few[8:] == ["k0 v1", "k1 v1"] and len(set(few)) == 10
    weights = np.zeros(40)
    weights[[39, 5]] = 7, 3
    many = plots.class_colours(40, weights)
    assert many.count("rest") == 16 and "rest" not in (many[39], many[5])
    assert many[0] == "k0" and many[39] == "k7 v2"
    strip = Strip([39, 0, 30, 31], [39, 0, 30, 31])
    svg = strips.strip_picture(strip, [str(i) for i in range(40)], "s", many).svg
    assert "2 other classes" in svg and svg.count('class="area rest"') == 2


def colours_of(scheme):
    block = re.findall(r":root\{([^}]*)\}", html.STYLE)[scheme]
    own = re.findall(r":root\{([^}]*)\}", html.STEP_STYLE)[scheme]
    named = dict(re.findall(r"--(\w+):(#\w{6})", block + ";" + own))
    return {name: np.array([int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)]) for name, c in named.items()}


def linear(colour):
    return np.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)


def oklab(rgb):
    """Ottosson's perceptual space: a distance of 0.02 is about the smallest that can be seen."""
    to_cones = [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
    to_lab = [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
    return np.array(to_lab) @ np.cbrt(np.array(to_cones) @ np.clip(rgb, 0, 1))


# Machado, Oliveira & Fernandes 2009, severity 1: how colours look without one kind of cone
SIGHT = {
    "normal": np.eye(3),
    "protan": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deutan": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritan": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}


@pytest.mark.parametrize("sight", SIGHT)
@pytest.mark.parametrize("scheme", [0, 1])
def test_the_colours_of_classes_differ_for_every_eye_and_stand_out(scheme, sight):
    colours = colours_of(scheme)
    seen = [oklab(np.array(SIGHT[sight]) @ linear(colours[f"k{k}"])) for k in range(plots.PALETTE)]
    for i, one in enumerate(seen):
        for other in seen[:i]:
            assert np.linalg.norm(one - other) > 0.11
    light = np.array([0.2126, 0.7152, 0.0722])
    for ground in ("page", "pane"):
        for k in range(plots.PALETTE):
            pair = sorted(float(light @ linear(colours[name])) for name in (ground, f"k{k}"))
            assert (pair[1] + 0.05) / (pair[0] + 0.05) >= 2.2


def curve(svg, css):
    d = re.search(rf'<path class="{css}" d="(M[^"]*L[^"]*)"', svg)[1]
    pieces = [piece.split("L") for piece in d.split("M") if piece]
    return [[tuple(map(float, point.split(" "))) for point in piece] for piece in pieces]


def test_accuracy_over_time_has_a_point_a_step_and_holes_where_none_is_known():
    values = np.array([0.5, 0.75, np.nan, 1.0, 0.5])
    picture = strips.accuracy_over_time({"test": values})
    (a, b), (c, d) = curve(picture.svg, "first")
    assert a[1] == d[1] > b[1] > c[1], "larger is higher"
    assert a[1] - b[1] == pytest.approx(b[1] - c[1], abs=0.11)
    gap = b[0] - a[0]
    assert [c[0] - b[0], d[0] - c[0]] == pytest.approx([2 * gap, gap], abs=0.11)
    assert picture.caption == (
        "Test: 50.0\u202f% in the first step, 50.0\u202f% in the last; lowest 50.0\u202f% at step 0. "
        "1 step without an accuracy is blank."
    )
    assert "no step has an accuracy" in strips.accuracy_over_time({"x": np.array([np.nan])}).caption


def test_several_curves_have_keys_and_those_without_a_style_are_named():
    curves = {f"run {i}": np.linspace(0, 1, 5 + i) for i in range(8)}
    picture = strips.accuracy_over_time(curves)
    assert all(f">run {i}<" in picture.svg for i in range(6)) and ">run 6<" not in picture.svg
    assert "Not drawn: run 6, run 7." in picture.caption
    long = strips.accuracy_over_time({"test": np.tile([0.2, 0.9], 650)}, step_ms=4.0, wide=True)
    assert "time in seconds" in long.svg and long.width == strips.STRIP_WIDTH
    assert "Test: 55.0\u202f% in the first tenth, 55.0\u202f% in the last" in long.caption


def section(text, key):
    found = re.search(rf'<section id="{key}".*?</section>', text, re.S)
    return found[0] if found else ""


STRIP = Strip([0, 1, 1, -1], [0, 1, 0, 0], title="record 7", step_ms=4.0)


def test_the_sections_are_there_only_when_they_have_something():
    plain = render_report(ReportData(title="run"))
    assert not section(plain, "labels") and not section(plain, "onsets") and "--k0" not in plain
    full = render_report(
        ReportData(title="run", strips=[STRIP], over_time={"test": [0.5, 1.0]}, onsets={"P": Onsets(1, 1, 0)})
    )
    order = [full.index(f'<section id="{key}"') for key in ("confusion", "labels", "onsets", "samples")]
    assert order == sorted(order)
    assert section(full, "labels").count("<figure") == 2 and "--k0" in full
    assert "time in seconds" in section(full, "labels") and "Not shown" in section(full, "samples")


def test_without_strips_the_curve_stands_with_the_samples():
    over = {"test": [0.5, 1.0]}
    alone = render_report(ReportData(title="run", over_time=over))
    assert "Accuracy over time within a sequence" in section(alone, "samples") and not section(
        alone, "labels"
    )
    sample = SampleTrace(label=0, prediction=0, scores=np.eye(2))
    both = section(render_report(ReportData(title="run", over_time=over, samples=[sample])), "samples")
    assert both.count("<figure") == 2 and "Accuracy over time within a sequence" in both


def test_the_words_on_onsets_are_what_is_counted():
    truth, said = [1, 1, -1, 0, 0, 1], [1, 0, 0, 0, 1, 1]
    rows = match_onsets([truth], [said], 2, tolerance=1)
    assert rows == [Onsets(0, 0, 1), Onsets(1, 1, 0)]  # neither step 0 nor step 3 is an onset
    page = section(
        render_report(ReportData(title="run", onsets=dict(zip("ab", rows, strict=True)))), "onsets"
    )
    assert "a labelled step right after a labelled step of another class" in page
    assert "the first step of a sequence is none, nor is the first after a stretch without labels" in page


def test_onsets_are_a_table_with_totals():
    onsets = {"P": Onsets(10, 8, 2), "QR": Onsets(0, 0, 3), "TP": Onsets(5, 5, 0)}
    part = section(
        render_report(ReportData(title="run", onsets=onsets, onset_tolerance="37.5 steps (150 ms)")), "onsets"
    )
    rows = [re.findall(r"<t[hd][^>]*>([^<]*)</t[hd]>", row) for row in re.findall(r"<tr>.*?</tr>", part)]
    assert rows[1:] == [
        ["P", "10", "8", "2", "2", "80.0\u202f%", "80.0\u202f%"],
        ["QR", "0", "0", "0", "3", "none", "0.0\u202f%"],
        ["TP", "5", "5", "0", "0", "100.0\u202f%", "100.0\u202f%"],
        ["all classes", "15", "13", "2", "5", "86.7\u202f%", "72.2\u202f%"],
    ]
    assert "lies at most 37.5 steps (150 ms) away;" in part


def test_the_unit_runs_through_verdict_and_matrix():
    counts = [[9, 1, 0], [0, 10, 0], [0, 0, 0]]
    text = render_report(ReportData(title="run", unit="labelled steps", confusion=counts))
    assert "<strong>95.0\u202f%</strong> of the labelled test steps are right (19 of 20)." in text
    assert "19 of 20 labelled steps are right" in text
    assert "1 class had no labelled test step." in text and ">no steps<" in text
    assert "sample" not in section(text, "confusion")
    usual = render_report(ReportData(title="run", confusion=counts))
    assert "<strong>95.0\u202f%</strong> of the test samples are right (19 of 20)." in usual
    assert "19 of 20 samples are right" in usual and ">no samples<" in usual


def test_long_noisy_strips_stay_small_and_leave_room_for_samples():
    rng = np.random.default_rng(0)
    steps = 1300

    def strip():
        return Strip(*rng.integers(-1, 6, (2, steps)), (rng.random((steps, 4)) < 0.3).astype(float))

    sample = SampleTrace(
        label=None,
        prediction=None,
        input=(rng.random((steps, 4)) < 0.3).astype(float),
        hidden={"a": (rng.random((steps, 64)) < 0.1).astype(float)},
        membrane={"a": rng.normal(size=(steps, 4))},
        adaptation={"a": rng.normal(size=(steps, 4))},
        scores=rng.normal(size=(steps, 6)),
    )
    data = ReportData(
        title="long",
        strips=[strip() for _ in range(6)],
        samples=[sample] * 6,
        over_time={"test": rng.random(steps)},
    )
    text = render_report(data)
    assert len(text.encode()) < html.SIZE_LIMIT
    assert section(text, "labels").count("<figure") == 7 and section(text, "samples").count("<article") == 6
    ids = re.findall(r' id="([^"]*)"', text)
    assert len(ids) == len(set(ids))


def test_strips_that_do_not_fit_are_counted():
    rng = np.random.default_rng(0)
    one = Strip(*rng.integers(-1, 6, (2, 4000)), rng.random((4000, 150)))
    data = ReportData(
        title="large", strips=[one] * 30, samples=[SampleTrace(label=0, prediction=0, scores=np.eye(6))]
    )
    text = render_report(data)
    part = section(text, "labels")
    kept = part.count("<figure")
    assert 1 <= kept < 30 and f"{30 - kept} of 30 sequences were left out" in part
    assert len(text.encode()) < html.SIZE_LIMIT and "<article" in section(text, "samples")
    assert len(part.encode()) < html.SIZE_LIMIT * html.STRIP_SHARE
    alone = section(render_report(ReportData(title="large", strips=[one] * 30)), "labels")
    assert kept < alone.count("<figure") < 30, "without samples the strips have their room"


def test_samples_without_one_label_have_no_verdict_and_a_colour_a_class():
    scores = np.array([[0.0, 1.0, 0.5], [1.0, 0.0, 0.5]])
    sample = SampleTrace(label=None, prediction=None, scores=scores)
    text = render_report(ReportData(title="run", class_names=NAMES, samples=[sample]))
    part = section(text, "samples")
    assert "<h3>Sample 1</h3>" in part and "tag" not in part and "(a colour each)" in part
    assert all(f'class="k{k} line"' in part for k in range(3)) and all(f">{name}<" in part for name in NAMES)
    assert 'aria-label="Traces over 2 time steps of a sample"' in part
    ends = {k: curve(part, f"k{k} line")[0][-1][1] for k in range(3)}
    assert ends[0] < ends[2] < ends[1], "the last scores are 1, 0 and 0.5"


@pytest.mark.parametrize(
    ("label", "prediction", "head", "words"),
    [
        (1, None, "<h3>Sample 1: PQ</h3>", "of class “PQ”"),
        (None, 0, "<h3>Sample 1, taken for P</h3>", "“P” leads for good from step 1"),
    ],
)
def test_one_of_label_and_prediction_is_enough(label, prediction, head, words):
    scores = np.array([[0.0, 1.0, 0.5], [1.0, 0.0, 0.5]])
    sample = SampleTrace(label=label, prediction=prediction, scores=scores)
    part = section(render_report(ReportData(title="run", class_names=NAMES, samples=[sample])), "samples")
    assert head in part and words in part and "tag" not in part


def test_a_wrong_sample_is_kept_before_one_without_a_label():
    rng = np.random.default_rng(0)
    big = {"input": rng.random((480, 200)), "hidden": {f"l{i}": rng.random((480, 200)) for i in range(4)}}
    samples = [SampleTrace(label=None, prediction=None, **big) for _ in range(12)]
    samples.append(SampleTrace(label=0, prediction=1, **big))
    text = render_report(ReportData(title="run", samples=samples))
    assert "were left out" in text and "Sample 13: 0, taken for 1" in text
