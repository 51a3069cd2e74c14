"""The pictures show the numbers they were given."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from spiketide.report import SampleTrace, plots

NAMES = ("zero", "one", "two")


def moves(svg, css):
    """Start points of the sub-paths of every path of a class."""
    found = []
    for d in re.findall(rf'<path class="{css}"[^>]* d="([^"]*)"', svg):
        found += [(float(x), float(y)) for x, y in re.findall(r"M(-?[\d.]+) (-?[\d.]+)", d)]
    return found


def images(svg):
    packed = re.findall(r'href="data:image/png;base64,([^"]*)"', svg)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("L")) for data in packed]


def panes(svg):
    boxes = re.findall(r'class="pane" x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="([\d.]+)"', svg)
    return [tuple(map(float, box)) for box in boxes]


def test_every_spike_is_a_mark_at_its_step_and_neuron():
    spikes = np.zeros((10, 4))
    spikes[0, 0] = spikes[9, 3] = spikes[4, 1] = 1
    picture = plots.sample_trace(SampleTrace(label=0, prediction=0, input=spikes), NAMES, "s")
    (left, top, width, height) = panes(picture.svg)[0]
    marks = sorted(moves(picture.svg, "ink-line marks"))
    assert len(marks) == 3
    expected = [left + width * (t + 0.5) / 10 for t in (0, 4, 9)]
    assert [x for x, _ in marks] == pytest.approx(expected, abs=0.06)
    # Neuron 0 is at the bottom: the first mark lies lower (larger y) than the last.
    tall = 0.8 * height / 4
    middle = [y + tall / 2 for _, y in marks]
    assert middle == pytest.approx([top + height * f for f in (7 / 8, 5 / 8, 1 / 8)], abs=0.12)
    assert "3 spikes" in picture.caption


def test_a_crowded_raster_becomes_an_image_that_keeps_every_spike():
    spikes = np.zeros((100, 60))
    spikes[10:90] = 1
    spikes[95, 0] = 1
    picture = plots.sample_trace(SampleTrace(label=0, prediction=0, input=spikes), NAMES, "s")
    (image,) = images(picture.svg)
    assert np.array_equal(image > 0, spikes.T[::-1] > 0)
    assert picture.svg.count("<path") < 8


def test_a_long_raster_is_binned_and_keeps_a_lone_spike():
    rng = np.random.default_rng(0)
    spikes = (rng.random((3000, 700)) < 0.05).astype(float)
    spikes[2000:, 350:] = 0
    spikes[2500, 600] = 1
    picture = plots.sample_trace(SampleTrace(label=0, prediction=0, input=spikes), NAMES, "s")
    (image,) = images(picture.svg)
    assert image.shape == (plots.IMAGE_ROWS, plots.IMAGE_COLUMNS)
    quiet = image[:90, 330:]
    assert np.count_nonzero(quiet) == 1
    assert "stronger where they are denser" in picture.caption
    assert len(picture.svg) < 120_000


def test_graded_input_has_one_stencil_per_sign():
    graded = np.array([[1.0, -0.5], [0.5, 0.0]])
    picture = plots.sample_trace(SampleTrace(label=0, prediction=0, input=graded), NAMES, "s")
    positive, negative = images(picture.svg)
    # Rows are neurons from the top: neuron 1, neuron 0; columns are steps.
    assert (positive > 0).tolist() == [[False, False], [True, True]]
    assert positive[1, 0] == 255 and 0 < positive[1, 1] < 255
    assert (negative > 0).tolist() == [[True, False], [False, False]]
    assert 0 < negative[0, 0] < 255, "both signs share one scale"
    assert "graded from −0.5 to 1" in picture.caption


def test_a_weak_value_does_not_round_away():
    graded = np.array([[1.0, 0.004, 0.0]])
    picture = plots.sample_trace(SampleTrace(label=0, prediction=0, input=graded), NAMES, "s")
    (image,) = images(picture.svg)
    assert (image[:, 0] > 0).tolist() == [False, True, True]


def test_padded_steps_of_scores_and_membranes_are_not_drawn():
    scores = np.array([[0.0, 1.0, 0.0]] * 3 + [[9.0, 0.0, 0.0]] * 2)
    sample = SampleTrace(
        label=1, prediction=1, scores=scores, membrane={"lif": np.arange(5.0)[:, None]}, lengths=3
    )
    picture = plots.sample_trace(sample, NAMES, "s")
    assert "Membrane of lif, 1 neuron: 0 to 2;" in picture.caption
    assert (
        "“one” leads from the first step to the end; it ends at 1, the next class “zero” at 0."
        in picture.caption
    )
    left, _, width, _ = panes(picture.svg)[1]
    ends = [float(x) for x in re.findall(r'class="(?:other|first)" d="M[^"]*L([\d.]+) [\d.]+"', picture.svg)]
    assert ends == [pytest.approx(left + width * 2.5 / 3, abs=0.06)] * 3
    assert "9" not in re.findall(r'text-anchor="end">([\d.]+)<', picture.svg)


def test_padded_steps_are_not_drawn_and_said_to_be():
    spikes = np.ones((10, 2))
    picture = plots.sample_trace(SampleTrace(label=0, prediction=0, input=spikes, lengths=6), NAMES, "s")
    assert len(moves(picture.svg, "ink-line marks")) == 12
    assert "4 padded steps" in picture.caption


def test_scores_mark_the_final_step_and_both_classes():
    scores = np.array([[0.2, 0.5, 0.3], [0.6, 0.2, 0.2], [0.1, 0.2, 0.7], [0.1, 0.1, 0.8]])
    picture = plots.sample_trace(SampleTrace(label=1, prediction=2, scores=scores), NAMES, "s")
    (left, top, width, height) = panes(picture.svg)[0]
    assert moves(picture.svg, "mark") == [pytest.approx((left + width * 2.5 / 4, top), abs=0.06)]
    assert "final" not in picture.caption and "“two” leads for good from step 2 of 0–3 on" in picture.caption
    assert "the true class “one” at 0.1" in picture.caption
    assert "true: one" in picture.svg and "predicted: two" in picture.svg and "Probability" in picture.svg
    ends = [float(v) for v in re.findall(r'<path class="second" d="[^"]*L[\d.]+ ([\d.]+)"', picture.svg)]
    assert ends == [pytest.approx(top + height * 0.2, abs=0.06)]


def test_a_close_end_is_told_with_the_digits_that_decide_it():
    scores = np.array([[0.26101, 0.26112, 0.0]])
    picture = plots.sample_trace(SampleTrace(label=0, prediction=1, scores=scores), NAMES, "s")
    assert "it ends at 0.26112, the true class “zero” at 0.26101." in picture.caption


def test_without_a_final_step_nothing_is_marked():
    scores = np.array([[1.0, 2.0, 0.0], [1.0, 1.0, 0.0]])
    picture = plots.sample_trace(SampleTrace(label=1, prediction=1, scores=scores), NAMES, "s")
    assert moves(picture.svg, "mark") == []
    assert "does not lead alone" in picture.caption


def test_membrane_lanes_show_threshold_and_the_spikes_of_their_neuron():
    v = np.array([[0.0, 0.5], [1.2, 0.5], [0.2, 0.5]])
    spikes = np.zeros((3, 5))
    spikes[1, 4] = 1
    sample = SampleTrace(
        label=0,
        prediction=0,
        hidden={"lif": spikes},
        membrane={"lif": v},
        threshold={"lif": 1.0},
        neurons={"lif": [4, 2]},
    )
    svg = plots.sample_trace(sample, NAMES, "s").svg
    _, first, second = panes(svg)
    limits = moves(svg, "limit")[1:]  # the first one is the legend
    peak = min(
        float(y) for y in re.findall(r"[ML][\d.]+ ([\d.]+)", re.findall(r'first thin" d="([^"]*)', svg)[0])
    )
    assert len(limits) == 2 and first[1] < peak < limits[0][1] < first[1] + first[3]
    assert limits[1][1] - limits[0][1] == pytest.approx(second[1] - first[1], abs=0.11)
    left, top, width, _ = first
    assert moves(svg, "spike") == [pytest.approx((left + width / 2, top), abs=0.06)]


def test_values_that_are_not_finite_break_the_line_and_are_told():
    points = [
        (0, 1.0, None),
        (1, float("nan"), None),
        (2, 0.5, None),
        (3, 0.4, None),
        (4, float("inf"), None),
    ]
    picture = plots.learning_curve("loss", points, None)
    assert picture.svg.count('class="first dash dot"') == 1
    assert len(moves(picture.svg, "first dash")) == 2, "one legend key and one unbroken piece"
    assert "2 values are missing or not finite" in picture.caption
    assert "No validation values" in picture.caption
    assert "nan" not in picture.svg and "inf" not in picture.svg.replace("first", "")


def test_the_best_epoch_is_marked_with_its_values():
    points = [(1, 0.5, 0.4), (2, 0.7, 0.625), (3, 0.8, 0.5)]
    picture = plots.learning_curve("accuracy", points, 2)
    assert len(moves(picture.svg, "mark")) == 1
    assert "At the marked epoch 2: train 70.0\u202f%, validation 62.5\u202f%." in picture.caption
    assert "train 50.0\u202f% to 80.0\u202f%" in picture.caption
    assert moves(plots.learning_curve("accuracy", points, 9).svg, "mark") == []


def test_thinning_keeps_the_extremes():
    values = np.sin(np.arange(10_000) / 500)
    values[7777] = 9.0
    xs, ys = plots._thin(np.arange(10_000.0), values, 100)
    assert len(ys) <= 200
    assert ys.max() == 9.0 and xs[ys.argmax()] == 7777
    assert ys.min() == values.min()


@pytest.mark.parametrize("size", [2, 3, 10, 12, 13, 35, 40])
def test_the_matrix_has_a_cell_for_every_count(size):
    rng = np.random.default_rng(size)
    counts = np.diag(np.arange(1, size + 1)) + (rng.random((size, size)) < 0.1) * 2
    picture = plots.confusion_matrix(counts, [f"class {i}" for i in range(size)])
    assert picture.svg.count("<rect") == np.count_nonzero(counts) + 1
    shown = re.findall(r'class="cell[^"]*" text-anchor="middle">(\d+)<', picture.svg)
    assert sum(map(int, shown)) == counts.sum()
    right, total = np.trace(counts), counts.sum()
    assert f"{right:,} of {total:,} samples are right" in picture.caption
    edge = max(
        float(x) + float(w)
        for x, w in re.findall(r'<rect[^>]* x="([\d.]+)"[^>]* width="([\d.]+)"', picture.svg)
    )
    assert edge <= picture.width


def test_a_cell_is_as_strong_as_its_share_of_the_true_class():
    picture = plots.confusion_matrix(np.array([[3, 1], [0, 50]]), ["a", "b"])
    strengths = [float(v) for v in re.findall(r'fill-opacity="([\d.]+)"', picture.svg)]
    assert strengths == pytest.approx([0.12 + 0.88 * 0.75, 0.12 + 0.88 * 0.5, 1.0], abs=0.006)
    assert re.findall(r'<rect class="(\w+) area"', picture.svg) == ["first", "second", "first"]


def test_very_many_classes_become_an_image_and_a_list_of_the_worst():
    counts = np.eye(700, dtype=int) * 4
    counts[5, 9] = 12
    names = [str(i) for i in range(700)]
    matrix, bars = plots.confusion_matrix(counts, names), plots.class_accuracy(counts, names)
    right, wrong = images(matrix.svg)
    assert right.shape == wrong.shape == (plots.IMAGE_COLUMNS, plots.IMAGE_COLUMNS)
    assert np.count_nonzero(wrong) == 1
    assert bars.svg.count('class="track"') == plots.MAX_CLASSES
    assert "40 worst of 700" in bars.caption and "Lowest: “5” with 25.0" in bars.caption


def test_bars_are_as_long_as_the_accuracy_and_empty_classes_say_so():
    picture = plots.class_accuracy(np.array([[3, 1, 0], [2, 2, 0], [0, 0, 0]]), NAMES)
    track = float(re.search(r'class="track"[^>]* width="([\d.]+)"', picture.svg)[1])
    bars = [float(w) for w in re.findall(r'class="first area"[^>]* width="([\d.]+)"', picture.svg)]
    assert bars == pytest.approx([0.75 * track, 0.5 * track], abs=0.11)
    assert "no samples" in picture.svg
    assert "Lowest: “one” with 50.0\u202f%; highest: “zero” with 75.0\u202f%" in picture.caption


def test_confusions_are_ordered_by_count_then_place():
    counts = np.array([[9, 2, 0], [5, 9, 2], [0, 0, 9]])
    assert plots.confusions(counts) == [(1, 0, 5), (0, 1, 2), (1, 2, 2)]
    assert plots.confusions(np.eye(3, dtype=int)) == []


def test_the_histogram_tells_silent_neurons_and_the_mean():
    picture = plots.firing_histogram("lif", np.array([0.0, 0.0, 0.0, 0.3, 0.5]))
    assert "mean rate 0.16, median 0, highest 0.5; 3 never fired (60.0\u202f%)" in picture.caption
    assert "3 silent" in picture.svg
    assert len(moves(picture.svg, "second area")) == 1
    assert len(moves(picture.svg, "first area")) == 2
    everyone = plots.firing_histogram("lif", np.full(4, 0.2))
    assert "all of them fired" in everyone.caption and 'class="second area"' not in everyone.svg


def test_ticks_are_round_and_inside():
    assert plots.ticks(0.013, 0.987) == [0.25, 0.5, 0.75]
    assert plots.ticks(0, 29, 6, integer=True) == [0, 5, 10, 15, 20, 25]
    assert plots.ticks(0, 0, 5, integer=True) == [0]


def test_text_is_cut_and_escaped():
    assert plots.short("abcdef", 4) == "abc…"
    assert plots.clean('<a href="x">&\x00\x85\ud800') == "&lt;a href=&quot;x&quot;&gt;&amp;\ufffd\ufffd?"
    assert plots.number(-1234.5) == "\u22121,234" and plots.number(None) == "none"
    assert plots.number(float("nan")) == "not finite"
