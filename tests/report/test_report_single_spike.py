"""Pictures of first spikes: marks and windows at the places that the times say, curves and words that agree with the numbers."""

import base64
import io
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from spiketide.errors import ParameterError, ShapeError
from spiketide.report import (
    FirstSpikes,
    FirstSpikeSample,
    ReportData,
    first_spike_plots,
    plots,
    render_report,
)

INF = float("inf")
NAMES = ("zero", "one", "two")
STEPS = 40
WINDOWS = {"input": (0, 10), "0 conv": (10, 20), "2 out": (20, 40)}


def sample(label=1, prediction=1, outputs=(30.0, 22.0, INF), **changed):
    times = {"input": [0.0, 3.0, INF, 9.0], "0 conv": [10.0, 19.0, INF, INF, 12.0], "2 out": outputs}
    return FirstSpikeSample(label=label, prediction=prediction, times=times, **changed)


def found(**changed):
    rng = np.random.default_rng(0)
    decisions = rng.integers(20, 40, 50).astype(float)
    decisions[:5] = INF
    labels = np.arange(50) % 3
    decided = np.array([(decisions <= step).mean() for step in range(STEPS)])
    given = {
        "windows": WINDOWS,
        "spikes": {
            "input": rng.integers(1, 9, 10),
            "0 conv": [0] * 10 + [3] * 10,
            "2 out": [0] * 25 + [2] * 15,
        },
        "decisions": decisions,
        "labels": labels,
        "accuracy": 0.8 * decided,
        "decided": decided,
        "samples": [sample(image=np.eye(4)), sample(label=0, prediction=1)],
        "filters": {"0 conv": rng.normal(size=(6, 1, 3, 3))},
    }
    return FirstSpikes(**{**given, **changed})


def report(**changed):
    return ReportData(title="first spikes", class_names=NAMES, first_spikes=found(**changed))


def headings(text):
    """The headings of a page whose pictures are all well formed."""
    for svg in re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL):
        ElementTree.fromstring(svg)
    return re.findall(r'<h2 id="h-\w+">([^<]+)</h2>', text)


def test_the_page_has_the_sections_of_first_spikes_and_no_others():
    assert headings(render_report(report())) == [
        "Summary", "Learning curves", "Confusion matrix", "Spike times and deadlines", "First spikes",
        "Weights of the first layer", "Firing rates", "Diagnosis", "How it was run",
    ]  # fmt: skip
    without = headings(render_report(ReportData(title="spike trains", class_names=NAMES)))
    assert "First spikes" not in without and "Samples over time" in without
    assert render_report(report()) == render_report(report())


def test_marks_stand_at_the_spike_times():
    svg = first_spike_plots.first_spike_raster(sample(), found(), NAMES, "f").svg
    left, right = 90.0, plots.WIDTH - 8.0
    paths = re.findall(r'<path class="ink-line marks"[^>]* d="([^"]*)"', svg)
    assert len(paths) == 2  # input and hidden layer
    for path, times in zip(paths, ([0, 3, 9], [10, 12, 19]), strict=True):
        places = sorted(float(x) for x in re.findall(r"M([\d.]+) ", path))
        expected = [left + (right - left) * (time + 0.5) / STEPS for time in times]
        assert places == pytest.approx(expected, abs=0.06)


def test_neuron_zero_is_at_the_top():
    svg = first_spike_plots.first_spike_raster(sample(), found(), NAMES, "f").svg
    marks = re.findall(
        r"M([\d.]+) ([\d.]+)v", re.findall(r'<path class="ink-line marks"[^>]* d="([^"]*)"', svg)[0]
    )
    by_time = sorted((float(x), float(y)) for x, y in marks)
    assert [y for _, y in by_time] == sorted(y for _, y in by_time)  # neurons 0, 1, 3 fire at 0, 3, 9


def test_windows_are_shaded_where_they_are():
    svg = first_spike_plots.first_spike_raster(sample(), found(), NAMES, "f").svg
    panes = re.findall(r'<rect class="pane" x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', svg)
    width = plots.WIDTH - 98.0
    for (x, wide), (start, stop) in zip(panes, WINDOWS.values(), strict=True):
        assert float(x) == pytest.approx(90 + width * start / STEPS, abs=0.06)
        assert float(wide) == pytest.approx(width * (stop - start) / STEPS, abs=0.11)


def test_outputs_are_coloured_and_the_first_one_is_marked():
    picture = first_spike_plots.first_spike_raster(sample(label=0, prediction=1), found(), NAMES, "f")
    dots = dict(re.findall(r'<circle class="(\w+)" cx="([\d.]+)"', picture.svg))
    assert set(dots) == {"first", "second"} and float(dots["second"]) < float(dots["first"])
    marks = re.findall(r"M([\d.]+) ", re.findall(r'<path class="mark" d="([^"]*)"', picture.svg)[0])
    assert marks == [dots["second"]] * 3
    assert picture.caption == "“one” fires first, at step 22; the true class “zero” fires at 30."
    right = first_spike_plots.first_spike_raster(sample(), found(), NAMES, "f")
    assert right.caption == "“one” fires first, at step 22, 8 before the next."
    assert set(re.findall(r'<circle class="(\w+)"', right.svg)) == {"first", "other"}


@pytest.mark.parametrize(
    ("outputs", "words"),
    [
        ((INF, INF, INF), "No output fires: the largest potential says “one”."),
        ((INF, 25.0, INF), "“one” fires first, at step 25, and no other output fires."),
        ((25.0, 25.0, INF), "“one” fires first, at step 25 (as another one does: the larger potential decides)."),
    ],
)  # fmt: skip
def test_the_caption_says_what_decided(outputs, words):
    picture = first_spike_plots.first_spike_raster(sample(outputs=outputs), found(), NAMES, "f")
    assert picture.caption == words
    assert ('class="mark"' in picture.svg) == (outputs[1] < INF)


def test_the_picture_shows_the_image():
    image = np.zeros((4, 4))
    image[0, 1:] = 1.0
    svg = first_spike_plots.first_spike_raster(sample(image=image), found(), NAMES, "f").svg
    packed = re.search(r'href="data:image/png;base64,([^"]+)"', svg).group(1)
    drawn = np.asarray(Image.open(io.BytesIO(base64.b64decode(packed))).convert("L"))
    np.testing.assert_array_equal(drawn > 0, image > 0)


def test_many_outputs_keep_the_two_in_question():
    outputs = np.full(100, 35.0)
    outputs[[97, 3]] = 21.0, 30.0
    many = sample(label=3, prediction=97, outputs=outputs)
    names = [f"c{index}" for index in range(100)]
    svg = first_spike_plots.first_spike_raster(many, found(), names, "f").svg
    assert ">c97<" in svg and ">c3<" in svg and svg.count("<circle") == plots.MAX_CLASSES


def test_the_deadline_ends_at_the_last_share():
    picture = first_spike_plots.deadline_curve(found())
    assert (
        "At the end 72.0\u202f% are right, 90.0\u202f% decided; the undecided ones count as wrong"
        in picture.caption
    )
    data = found()
    half = int(np.argmax(data.accuracy >= data.accuracy[-1] / 2))
    assert f"50.0\u202f% of the last accuracy is reached at step {half}," in picture.caption
    lines = [
        re.findall(rf'<path class="{css}" d="([^"]*)"', picture.svg)[-1] for css in ("first", "second dash")
    ]
    ends = [tuple(map(float, re.split("[ML]", d)[-1].split(" "))) for d in lines]
    assert ends[0] == pytest.approx(
        (plots.WIDTH - 8 - 0.5 * (plots.WIDTH - 8 - 44) / 21, 42 + 150 * 0.28), abs=0.6
    )
    assert ends[1][1] == pytest.approx(42 + 150 * 0.1, abs=0.06)


def test_nothing_decided_is_drawn_too():
    mute = {
        "decisions": [INF] * 4,
        "labels": [0, 1, 2, 2],
        "accuracy": [0.0] * STEPS,
        "decided": [0.0] * STEPS,
    }
    text = render_report(report(**mute, samples=[sample(outputs=(INF, INF, INF))]))
    assert "First spikes" in headings(text)
    assert text.count("never decided") == 3 and "On 4 samples no output fires" in text
    assert "At the end 0.0\u202f% are right, 0.0\u202f% decided" in text


def test_the_boxes_of_decision_times_are_quartiles():
    decisions = np.concatenate([np.arange(20.0, 31.0), [25.0, INF]])
    labels = [0] * 11 + [1, 1]
    data = found(decisions=decisions, labels=labels)
    picture = first_spike_plots.decision_times(data, NAMES)
    boxes = re.findall(r'<rect class="first area" x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', picture.svg)
    dots = re.findall(r'<circle class="second" cx="([\d.]+)"', picture.svg)
    (whiskers,) = re.findall(r'<path class="other" d="([^"]*)"', picture.svg)
    ends = [tuple(map(float, pair)) for pair in re.findall(r"M([\d.]+) [\d.]+H([\d.]+)", whiskers)]
    # quartiles of 20..30 are 22.5, 25, 27.5; 5 % and 95 % are 20.5 and 29.5
    (x, wide), middle, (low, high) = tuple(map(float, boxes[0])), float(dots[0]), ends[0]
    unit = (high - low) / 9
    assert x - low == pytest.approx(2 * unit, abs=0.11) and wide == pytest.approx(5 * unit, abs=0.11)
    assert middle - x == pytest.approx(2.5 * unit, abs=0.11)
    assert len(boxes) == 2 and "On 1 sample no output fires" in picture.caption
    assert "Earliest: “zero”, median 25" in picture.caption


def test_layer_histograms_count_all_spikes():
    data = found()
    picture = first_spike_plots.layer_times(data)
    bars = [len(re.findall("z", d)) for d in re.findall(r'<path class="first area" d="([^"]*)"', picture.svg)]
    assert bars == [10, 10, 15]
    mean = plots.number(float(data.spikes["0 conv"].sum()) / 50)
    assert f"0 conv: {mean} spikes a sample, window 10 to 20." in picture.caption
    long = found(
        windows={"a": (0, 400)},
        spikes={"a": [1] * 400},
        accuracy=[0.0] * 400,
        decided=[0.0] * 400,
        samples=[],
        filters={},
    )
    assert "A bar holds 4 steps." in first_spike_plots.layer_times(long).caption


def test_filters_have_both_signs_where_they_are():
    weights = np.zeros((2, 1, 2, 2))
    weights[0, 0, 0, 1], weights[1, 0, 1, 0] = 1.0, -0.5
    picture = first_spike_plots.filter_tiles("0 conv", weights, "w")
    masks = []
    for packed in re.findall(r'href="data:image/png;base64,([^"]+)"', picture.svg):
        masks.append(np.asarray(Image.open(io.BytesIO(base64.b64decode(packed))).convert("L")).astype(int))
    positive, negative = masks
    assert positive.shape == (2, 17)  # six tiles across, a column between two
    assert np.argwhere(positive).tolist() == [[0, 1]] and np.argwhere(negative).tolist() == [[1, 3]]
    assert positive[0, 1] == 255 > negative[1, 3] > 100
    assert picture.caption == "0 conv: 2 filters of 2 × 2, on one scale up to 1 thresholds."
    many = first_spike_plots.filter_tiles("x", np.ones((400, 1, 28, 28)), "w").caption
    assert "400 neurons of 28 × 28" in many and "The first 60 are shown." in many


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        ({"accuracy": [0.1] * 3}, ShapeError, "accuracy and decided of the same T"),
        ({"labels": [0, 1]}, ShapeError, "a label for every decision"),
        ({"spikes": {"input": [1] * 41}}, ShapeError, "40 steps at most"),
        ({"spikes": {"deep": [1]}}, ShapeError, "a window for 'deep'"),
        ({"windows": {**WINDOWS, "input": (5, 5)}}, ParameterError, "0 <= start < stop"),
        ({"accuracy": [0.5] * STEPS}, ParameterError, "no more right answers than there are answers"),
        ({"decided": [1.5] * STEPS}, ParameterError, "shares from 0 to 1"),
        ({"filters": {"a": np.zeros((3, 3))}}, ShapeError, r"\(n, C, H, W\)"),
        ({"decisions": [[1.0]]}, ShapeError, "decisions as a row"),
    ],
)
def test_what_does_not_fit_is_refused(changed, error, words):
    with pytest.raises(error, match=words):
        found(**changed)


def test_samples_that_do_not_fit_are_refused():
    with pytest.raises(ShapeError, match="NaN"):
        FirstSpikeSample(label=0, prediction=0, times={"out": [float("nan")]})
    with pytest.raises(ShapeError, match="at least"):
        FirstSpikeSample(label=0, prediction=0, times={})
    with pytest.raises(ShapeError, match=r"picture \(H, W\)"):
        sample(image=np.zeros(4))
    with pytest.raises(ShapeError, match="3 output times"):
        report(samples=[sample(outputs=(1.0, 2.0))])
    with pytest.raises(ParameterError, match="classes of first_spikes within 0..2, got 5"):
        report(samples=[sample(label=5)])
