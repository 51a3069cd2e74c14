"""Trained constants and adaptation in a report: bars, outlines and curves where the numbers are."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spiketide.report import Constants, ReportData, SampleTrace, html, plots, render_report


def bars(svg):
    """(left, right, height) of every bar."""
    path = re.search(r'<path class="first area" d="([^"]*)"', svg)
    found = re.findall(r"M([\d.]+) [\d.]+v-([\d.]+)h([\d.]+)v", path[1]) if path else []
    return [(float(x), float(x) + float(wide), float(high)) for x, high, wide in found]


def outline(svg):
    """(left, right, height) of every stretch of the line before."""
    path = re.search(r'<path class="second thin" d="M([\d.]+) ([\d.]+)((?:V[\d.]+H[\d.]+)+)V', svg)
    x, base, rest = float(path[1]), float(path[2]), path[3]
    steps = []
    for y, end in re.findall(r"V([\d.]+)H([\d.]+)", rest):
        steps.append((x, float(end), base - float(y)))
        x = float(end)
    return [step for step in steps if step[2] > 0.05]


def tick_places(svg):
    d = re.findall(r'<path class="base" d="M[\d.]+ [\d.]+h[\d.]+((?:M[\d.]+ [\d.]+v4)*)"', svg)[-1]
    places = [float(x) for x in re.findall(r"M([\d.]+) ", d)]
    words = re.findall(r'text-anchor="middle">([−\d.e+]+)<', svg)
    return {float(word.replace("−", "-")): place for word, place in zip(words, places, strict=True)}


def test_bars_and_outline_stand_over_their_values_on_a_logarithmic_axis():
    picture = plots.constants_histogram("1 ALIF tau_mem", Constants([20.0] * 3, [5.0, 5.0, 80.0], "ms"))
    assert "value in ms, logarithmic" in picture.svg
    at = tick_places(picture.svg)
    assert {5.0, 20.0, 50.0} <= set(at)
    assert (at[20] - at[5]) / (at[50] - at[5]) == pytest.approx(np.log(4) / np.log(10), abs=0.01)
    low, high = bars(picture.svg)
    assert low[0] - 1 <= at[5] <= low[1] + 1 and low[2] == pytest.approx(2 * high[2], abs=0.2)
    ((start, stop, tall),) = outline(picture.svg)
    assert start <= at[20] <= stop and tall == pytest.approx(3 * high[2], abs=0.2)
    assert picture.caption == (
        "1 ALIF tau_mem of 3 neurons: 5 to 80 ms, median 5, after training; 20 ms for all before training."
    )


def test_close_or_signed_values_have_a_linear_axis():
    for values in ([10.0, 39.0], [-3.0, 0.0, 50.0]):
        picture = plots.constants_histogram("x", Constants(None, values))
        assert "logarithmic" not in picture.svg and "second" not in picture.svg
        assert "not known" in picture.caption
        at = tick_places(picture.svg)
        a, b, c = sorted(at)[:3]
        assert at[b] - at[a] == pytest.approx((at[c] - at[b]) * (b - a) / (c - b), abs=0.11)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=40),
    st.booleans(),
    st.sampled_from([1.0, -1.0]),
)
def test_every_value_is_in_a_bar_and_every_bar_in_the_picture(values, known, sign):
    trained = sign * np.array(values)
    picture = plots.constants_histogram("x", Constants(trained[::-1] if known else None, trained))
    drawn = bars(picture.svg)
    heights = np.array([high for *_, high in drawn])
    # some count of the highest bar makes whole numbers of all, which sum up to the values
    parts = [heights / heights.max() * count for count in range(1, len(values) + 1)]
    whole = [part for part in parts if np.allclose(part, np.rint(part), atol=0.05)]
    assert any(int(np.rint(part).sum()) == len(values) for part in whole)
    if known:
        assert [high for *_, high in outline(picture.svg)] == pytest.approx(
            [high for *_, high in drawn], abs=0.11
        )
    assert all(0 <= left < right <= plots.WIDTH for left, right, _ in drawn)
    at = sorted(tick_places(picture.svg).items())
    assert at and all(-1 <= place <= plots.WIDTH + 1 for _, place in at)


@settings(max_examples=100, deadline=None)
@given(st.floats(-290, 290), st.floats(0.61, 300))
def test_logarithmic_ticks_lie_inside_and_leave_room_for_their_words(start, decades):
    low, high = 10**start, 10 ** min(start + decades, 300)
    found = plots._log_ticks(low, high, room=320)
    assert all(low * 0.999 <= v <= high * 1.001 for v in found)
    places = [320 * np.log(v / low) / np.log(high / low) for v in found]
    for (a, x), (b, y) in zip(
        zip(found, places, strict=True), list(zip(found, places, strict=True))[1:], strict=False
    ):
        assert y - x > plots.CHAR * (len(plots._plain(a)) + len(plots._plain(b))) / 2


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (4.0, 90.0, [5, 10, 20, 50]),
        (0.5, 2000.0, [1, 3, 10, 30, 100, 300, 1000]),
        (1e-8, 1e9, [1e-5, 1.0, 1e5]),
    ],
)
def test_logarithmic_ticks_are_round(low, high, expected):
    found = plots._log_ticks(low, high, room=320)
    assert set(found) >= set(expected) and found == sorted(found)


def test_values_that_are_not_finite_are_left_out_and_counted():
    broken = Constants([20.0, 20.0, 20.0], [np.nan, np.inf, 20.0], "ms")
    picture = plots.constants_histogram("tau", broken)
    assert "2 values not finite, left out." in picture.caption and len(bars(picture.svg)) == 1
    none = plots.constants_histogram("tau", Constants(None, [np.nan], "ms"))
    assert "no finite value after training" in none.caption and bars(none.svg) == []
    text = render_report(
        ReportData(title="run", constants={"tau": broken, "gone": Constants(None, [np.nan])})
    )
    assert "none finite" in text and "nan" not in re.sub("<style>.*?</style>", "", text, flags=re.S)


def section(text):
    found = re.search(r'<section id="constants".*?</section>', text, re.S)
    return found[0] if found else ""


def test_the_table_says_what_numpy_says():
    rng = np.random.default_rng(0)
    begun, trained = rng.normal(20, 1, 36), rng.lognormal(3, 0.5, 36)
    part = section(
        render_report(ReportData(title="run", constants={"1 ALIF tau_mem": Constants(begun, trained, "ms")}))
    )
    rows = re.findall(r'<td class="when">(\w+)</td>(.*?)</tr>', part)
    assert [when for when, _ in rows] == ["before", "after"]
    for (_, row), values in zip(rows, (begun, trained), strict=True):
        cells = [float(cell) for cell in re.findall(r"<td>([^<]*)</td>", row)]
        own = [36, values.min(), np.median(values), values.mean(), values.max(), values.std()]
        assert cells == pytest.approx(own, rel=0.01)
    assert '<th scope="rowgroup" rowspan="2">1 ALIF tau_mem (ms)</th>' in part


def test_the_section_is_there_only_with_constants_and_comes_after_the_delays():
    assert not section(render_report(ReportData(title="run")))
    many = {f"{i} ALIF tau_mem": Constants(None, [1.0, 9.0]) for i in range(html.CONSTANT_FIGURES + 2)}
    text = render_report(ReportData(title="run", constants=many))
    part = section(text)
    assert text.index('id="firing"') < text.index('id="constants"') < text.index('id="diagnosis"')
    assert part.count("<figure") == html.CONSTANT_FIGURES and part.count('scope="rowgroup"') == len(many)
    assert f"The first {html.CONSTANT_FIGURES} of {len(many)} are drawn." in part
    assert "rowspan" not in part


# ── adaptation ────────────────────────────────────────────────────────────────────────────────────


def panes(svg):
    boxes = re.findall(r'class="pane" x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="([\d.]+)"', svg)
    return [tuple(map(float, box)) for box in boxes]


def test_adaptation_has_a_lane_beneath_each_membrane_on_an_axis_of_its_own():
    v = np.array([[0.0, 0.5], [1.2, 0.5], [0.2, 0.5]])
    a = np.array([[0.0, 10.0], [5.0, 20.0], [2.5, 40.0]])
    sample = SampleTrace(
        label=0,
        prediction=0,
        membrane={"lif": v},
        adaptation={"lif": a},
        threshold={"lif": 1 + a},
        neurons={"lif": [4, 2]},
    )
    picture = plots.sample_trace(sample, ("zero",), "s")
    high, low, high2, low2 = panes(picture.svg)
    assert [high[3], low[3], high2[3], low2[3]] == [plots.LANE, plots.LOW_LANE, plots.LANE, plots.LOW_LANE]
    assert high[1] + high[3] <= low[1] and low[1] + low[3] <= high2[1] and high2[1] + high2[3] <= low2[1]
    drawn = [
        [tuple(map(float, point.split(" "))) for point in d[1:].split("L")]
        for d in re.findall(r'<path class="adapt" d="(M[^"]*L[^"]*)"', picture.svg)
    ]
    assert len(drawn) == 2
    heights = np.array(
        [[lane[1] + lane[3] - y for _, y in points] for lane, points in zip((low, low2), drawn, strict=True)]
    )
    # both lanes have one scale: the heights are the values but for one factor
    scale = (heights[1, 2] - heights[0, 0]) / 40
    assert np.allclose(heights - heights[0, 0], a.T * scale, atol=0.12) and scale > 0
    assert heights.min() >= 0 and heights.max() <= plots.LOW_LANE
    assert ">adaptation<" in picture.svg and "Beneath each its adaptation, 0 to 40." in picture.caption
    ends = re.findall(
        rf'y="{low[1] + 10:.1f}" text-anchor="end">([^<]*)<'.replace(".0", "(?:.0)?"), picture.svg
    )
    assert "40" in ends


def test_without_adaptation_nothing_is_said_about_it():
    sample = SampleTrace(label=0, prediction=0, membrane={"lif": np.zeros((3, 1))})
    picture = plots.sample_trace(sample, ("zero",), "s")
    assert "adapt" not in picture.svg + picture.caption
    assert "path.adapt" not in render_report(ReportData(title="run", samples=[sample]))


def test_adaptation_that_is_not_finite_or_constant_is_drawn_too():
    for values, words in (
        (np.full((3, 1), np.nan), "its adaptation, no finite value."),
        (np.full((3, 1), 2.0), "its adaptation, 2 to 2."),
    ):
        sample = SampleTrace(
            label=None, prediction=None, membrane={"lif": np.zeros((3, 1))}, adaptation={"lif": values}
        )
        picture = plots.sample_trace(sample, (), "s")
        assert words in picture.caption and "nan" not in picture.svg


def test_the_ends_of_a_small_axis_are_short():
    assert [plots._end(v, 6.7) for v in (6.71, 0.0002, -0.5)] == ["6.7", "0", "−0.5"]
    assert plots._end(0.000234, 0.0003) == "2e−04"
