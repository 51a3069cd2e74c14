"""The delays in a report: bars, lines and cells at the places that the numbers say."""

import base64
import io
import re

import numpy as np
import pytest
import torch
from PIL import Image

from spiketide.report import ReportData, html, plots, render_report
from spiketide.synapses import AxonalDelay, DelayedConv2d, SynapticDelay, delay_statistics


def statistics(layer, after=None):
    before = delay_statistics(layer)
    if after is None:
        return before[""]
    with torch.no_grad():
        layer.delays.delay.copy_(after)
    return delay_statistics(layer, before)[""]


def bars(svg):
    """(left, height, width) of every bar."""
    path = re.search(r'<path class="first area" d="([^"]*)"', svg)
    found = re.findall(r"M([\d.]+) [\d.]+v-([\d.]+)h([\d.]+)v", path[1]) if path else []
    return [tuple(map(float, bar)) for bar in found]


def steps(svg):
    """The line before: base and heights over it."""
    path = re.search(r'<path class="second thin" d="M[\d.]+ ([\d.]+)((?:V[\d.]+H[\d.]+)+)V', svg)
    return [round(float(path[1]) - float(y), 1) for y in re.findall(r"V([\d.]+)", path[2])]


def image(svg, key):
    data = re.search(rf'<mask id="{key}"><image.*?base64,([^"]*)"', svg)[1]
    grey = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("L")).astype(int)
    return np.where(grey > 0, np.rint((grey - 60) * plots.IMAGE_LEVELS / 195), 0).astype(int)


START = torch.tensor([[0.0, 1.0], [2.0, 2.0]]).unsqueeze(-1)
AFTER = torch.tensor([[3.0, 3.0], [2.0, 3.0]]).unsqueeze(-1)


def test_histogram_bars_and_line_have_the_heights_of_the_counts():
    picture = plots.delay_histogram("0 SynapticDelay", statistics(SynapticDelay(2, 2, 3, start=START), AFTER))
    (x2, one, wide), (x3, three, _) = bars(picture.svg)
    assert three == pytest.approx(3 * one, rel=0.01) and x3 - x2 == pytest.approx(wide + 1, abs=0.2)
    assert steps(picture.svg) == pytest.approx([one, one, 2 * one, 0], abs=0.2)
    assert ">after<" in picture.svg and ">before<" in picture.svg
    assert "moved by 1.5 steps" in picture.caption and "75.0\u202f% at the longest" in picture.caption


def test_without_before_there_is_no_line():
    picture = plots.delay_histogram("x", statistics(SynapticDelay(2, 2, 3, start=START)))
    assert "second" not in picture.svg and len(bars(picture.svg)) == 3
    assert "not known" in picture.caption


def test_very_many_steps_share_bars_and_none_is_lost():
    layer = statistics(AxonalDelay(1001, 1000, start=torch.arange(1001.0)))
    picture = plots.delay_histogram("long", layer)
    drawn = bars(picture.svg)
    assert len(drawn) == 143 and "A bar holds 7 steps." in picture.caption
    assert max(x + wide for x, _, wide in drawn) <= plots.WIDTH
    assert all(wide > 1.5 for _, _, wide in drawn)


def test_the_map_has_a_cell_a_delay():
    layer = statistics(SynapticDelay(2, 2, 6, start=torch.tensor([[0.0, 6.0], [3.0, 5.0]]).unsqueeze(-1)))
    picture = plots.delay_map("x", layer, "k")
    assert image(picture.svg, "k-map").tolist() == [[1, 7], [4, 6]]
    assert image(picture.svg, "k-scale").tolist() == [[1, 2, 3, 4, 5, 6, 7]]
    assert 'class="crisp"' in picture.svg and "Blank" not in picture.caption


def test_missing_connections_are_blank_and_a_delay_of_zero_is_not():
    torch.manual_seed(0)
    synapses = SynapticDelay(5, 4, 6, fan_in=2, kernel_count=2, start=0.0)
    picture = plots.delay_map("x", statistics(synapses), "k")
    expected = synapses.mask.expand(-1, -1, 2).flatten(1).int().numpy()
    assert image(picture.svg, "k-map").tolist() == expected.tolist()
    assert "not connected (60.0\u202f%)" in picture.caption and "2 columns" in picture.caption


def test_large_maps_are_means_of_the_connections_there():
    layer = SynapticDelay(480, 320, 6, start=6.0)
    with torch.no_grad():
        layer.delays.delay[:, :240] = 0.0
    layer.mask = torch.ones(320, 480, 1)
    layer.mask[1::2] = 0  # half of the rows of each cell are not there, and do not pale it
    picture = plots.delay_map("x", delay_statistics(layer)[""], "k")
    found = image(picture.svg, "k-map")
    assert found.shape == (plots.MAP_ROWS, plots.MAP_COLUMNS)
    assert (found[:, :120] == 1).all() and (found[:, 120:] == 7).all()
    assert "320 × 480 delays, binned to 160 × 240 means" in picture.caption
    assert len(picture.svg) < 40_000


def test_channels_are_one_row():
    picture = plots.delay_map("x", statistics(AxonalDelay(3, 2, start=torch.tensor([0.0, 1.0, 2.0]))), "k")
    assert image(picture.svg, "k-map").tolist() == [[3, 5, 7]]
    assert ">channel<" in picture.svg and ">output<" not in picture.svg


def test_the_section_is_there_only_with_delays():
    layers = {"0 SynapticDelay": statistics(SynapticDelay(2, 2, 3, start=START), AFTER)}
    without, with_them = (
        render_report(ReportData(title="run")),
        render_report(ReportData(title="run", delays=layers)),
    )
    assert 'id="delays"' not in without and 'href="#delays"' not in without
    part = re.search(r'<section id="delays".*?</section>', with_them, re.S)[0]
    assert with_them.index('id="firing"') < with_them.index('id="delays"') < with_them.index('id="diagnosis"')
    assert part.count("<figure") == 2
    row = re.findall(r"<td>([^<]*)</td>", part)
    assert row == ["4 learnt", "2", "2.75", "3", "3", "0.0\u202f%", "75.0\u202f%", "2.27", "1.5"]


def test_the_table_has_every_layer_and_the_ids_are_unique():
    number = html.DELAY_LAYERS + 2
    layers = {f"{n} DelayedConv2d": statistics(DelayedConv2d(1, 2, 2, 3)) for n in range(number)}
    text = render_report(ReportData(title="run", delays=layers))
    part = re.search(r'<section id="delays".*?</section>', text, re.S)[0]
    assert part.count("<figure") == 2 * html.DELAY_LAYERS and part.count('<th scope="row">') == number
    assert f"The first {html.DELAY_LAYERS} of {number} layers are drawn." in part
    ids = re.findall(r'id="([^"]*)"', text)
    assert len(ids) == len(set(ids)) and part.count("unknown") == number


def test_no_connection_at_all_is_drawn_too():
    layer = SynapticDelay(2, 2, 2)
    layer.mask = torch.zeros(2, 2, 1)
    text = render_report(ReportData(title="run", delays={"x": delay_statistics(layer)[""]}))
    assert "no connection." in text and "nan" not in re.sub("<style>.*?</style>", "", text, flags=re.S)
