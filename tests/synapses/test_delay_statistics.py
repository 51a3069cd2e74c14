"""Statistics of delays, against numbers by hand, and their picture."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from spiketide.compose import Sequential
from spiketide.errors import NonFiniteError, ParameterError, ShapeError
from spiketide.neurons import LIF
from spiketide.plain import to_json
from spiketide.synapses import (
    AxonalDelay,
    DelayAnneal,
    DelayedConv2d,
    DendriticDelay,
    Dense,
    SynapticDelay,
    delay_statistics,
    plot_delays,
)

START = torch.tensor([[[0.0], [1.4], [4.0]], [[0.0], [2.6], [3.4]]])


def test_numbers_by_hand() -> None:
    found = delay_statistics(SynapticDelay(3, 2, 4, start=START))
    assert list(found) == [""]
    layer = found[""]
    assert (layer.kind, layer.max_delay, layer.count, layer.learnt) == ("SynapticDelay", 4, 6, True)
    assert (layer.lowest, layer.highest) == (0.0, 4.0)
    assert layer.mean == pytest.approx(11.4 / 6)
    assert layer.median == pytest.approx(2.0)  # between 1.4 and 2.6
    assert layer.histogram == (2, 1, 0, 2, 1)
    assert layer.share_at_zero == pytest.approx(1 / 3) and layer.share_at_max == pytest.approx(1 / 6)
    assert layer.effective_width == pytest.approx(2.27)
    assert (layer.histogram_before, layer.moved, layer.before) == (None, None, None)
    assert layer.delays.shape == (2, 3, 1)
    torch.testing.assert_close(layer.matrix(), START[..., 0].double())


def test_before_is_a_state_or_an_earlier_result() -> None:
    network = Sequential(
        SynapticDelay(3, 2, 4, start=START), LIF(2), Dense(2, 2), AxonalDelay(2, 3, start=1.0)
    )
    state = {key: value.clone() for key, value in network.state_dict().items()}
    first = delay_statistics(network)
    assert list(first) == ["0", "3"]
    with torch.no_grad():
        network[0].delays.delay.copy_(START + torch.tensor([[[1.0], [-0.6], [0.0]], [[0.0], [0.0], [0.6]]]))
    for before in (state, first):
        after = delay_statistics(network, before)
        assert after["0"].histogram_before == first["0"].histogram == (2, 1, 0, 2, 1)
        assert after["0"].histogram == (1, 2, 0, 1, 2)
        assert after["0"].moved == pytest.approx(2.2 / 6)
        assert after["3"].moved == 0.0 and after["3"].histogram_before == (0, 2, 0, 0)
        torch.testing.assert_close(after["0"].before, START.double())


def test_what_is_given_is_not_kept_by_reference() -> None:
    layer = AxonalDelay(3, 4, start=1.0)
    first = delay_statistics(layer)
    with torch.no_grad():
        layer.delays.delay.fill_(3.0)
    assert first[""].delays.tolist() == [1.0, 1.0, 1.0]
    assert delay_statistics(layer, first)[""].moved == 2.0


def test_layers_unknown_before_are_not_compared() -> None:
    network = Sequential(AxonalDelay(2, 3), DendriticDelay(2, 3))
    state = {key: value for key, value in network.state_dict().items() if key.startswith("1.")}
    found = delay_statistics(network, state)
    assert found["0"].moved is None and found["1"].moved == 0.0


def test_connections_that_are_not_there_do_not_count() -> None:
    layer = SynapticDelay(6, 4, 5, fan_in=2, kernel_count=3)
    assert layer.mask is not None
    with torch.no_grad():
        layer.delays.delay.copy_(torch.where(layer.mask > 0, 2.0, 5.0))
    found = delay_statistics(layer, delay_statistics(layer))[""]
    assert found.count == 4 * 2 * 3
    assert found.histogram == (0, 0, 24, 0, 0, 0) and found.histogram_before == found.histogram
    assert found.mean == 2.0 and found.share_at_max == 0.0 and found.moved == 0.0
    assert found.matrix().shape == (4, 18)
    assert int(found.matrix().isnan().sum()) == 4 * 4 * 3


def test_delays_outside_act_as_the_border_and_histograms_round_as_evaluation_does() -> None:
    layer = SynapticDelay(8, 1, 3)
    with torch.no_grad():
        layer.delays.delay.copy_(
            torch.tensor([-1.0, 0.5, 1.5, 2.5, 2.500001, 9.0, 3.0, 0.0]).reshape(1, 8, 1)
        )
    found = delay_statistics(layer)[""]
    assert (found.lowest, found.highest) == (0.0, 3.0)
    assert (found.share_at_zero, found.share_at_max) == (0.25, 0.25)
    layer.eval()
    with torch.no_grad():
        layer.weight.fill_(1.0)
        assert found.histogram == tuple(layer.kernel().sum((0, 1)).int().tolist()) == (3, 0, 2, 3)


def test_every_kind_of_layer() -> None:
    network = nn.ModuleDict(
        {
            "axon": AxonalDelay(3, 4, interpolation="linear"),
            "image": DelayedConv2d(2, 3, (3, 2), max_delay=5),
            "fixed": SynapticDelay(2, 2, 3, learn=False, interpolation="none", start="every", kernel_count=4),
            "none": SynapticDelay(2, 2, 0),
        }
    )
    found = delay_statistics(network)
    assert [layer.count for layer in found.values()] == [3, 36, 16, 4]
    assert [tuple(layer.matrix().shape) for layer in found.values()] == [(1, 3), (3, 12), (2, 8), (2, 2)]
    assert found["fixed"].histogram == (4, 4, 4, 4) and not found["fixed"].learnt and found["axon"].learnt
    assert (
        found["none"].histogram == (4,) and found["none"].share_at_zero == found["none"].share_at_max == 1.0
    )
    assert all(sum(layer.histogram) == layer.count for layer in found.values())


def test_the_width_is_the_present_one() -> None:
    layer = SynapticDelay(2, 2, 24)
    assert delay_statistics(layer)[""].effective_width == pytest.approx(12.27)
    DelayAnneal()(layer, 40, 150)
    assert delay_statistics(layer)[""].effective_width == pytest.approx(0.5)


def test_json() -> None:
    network = Sequential(SynapticDelay(3, 2, 4, start=START), SynapticDelay(2, 2, 2, density=1e-9))
    found = delay_statistics(network, delay_statistics(network))
    read = json.loads(to_json({name: layer.to_dict() for name, layer in found.items()}))
    assert read["0"]["histogram"] == [2, 1, 0, 2, 1] and read["0"]["moved"] == 0.0
    assert read["0"].keys() == vars(found["0"]).keys() - {"delays", "before"}
    # a layer without a single connection has no mean
    assert read["1"]["count"] == 0 and read["1"]["mean"] is None and read["1"]["histogram"] == [0, 0, 0]


def test_without_delay_layers() -> None:
    assert delay_statistics(Sequential(Dense(2, 2), LIF(2))) == {}
    with pytest.raises(ParameterError, match="delay layers"):
        plot_delays(Dense(2, 2))


def test_refusals() -> None:
    layer = SynapticDelay(3, 2, 4)
    with pytest.raises(ShapeError, match=r"\(2, 3, 1\).*\(3, 3, 1\)"):
        delay_statistics(layer, SynapticDelay(3, 3, 4).state_dict())
    before = delay_statistics(layer)
    with torch.no_grad():
        layer.delays.delay[0, 0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match="NaN"):
        delay_statistics(layer, before)


def test_the_picture_shows_the_numbers() -> None:
    network = Sequential(SynapticDelay(3, 2, 4, start=START), AxonalDelay(2, 3, start=1.0))
    before = delay_statistics(network)
    with torch.no_grad():
        network[0].delays.delay.fill_(3.0)
    figure = plot_delays(network, before)
    histogram, matrix, channels = figure.axes[0], figure.axes[1], figure.axes[3]
    assert [bar.get_height() for bar in histogram.patches[:5]] == [0, 0, 0, 6, 0]
    assert histogram.patches[5].get_data().values.tolist() == [2, 1, 0, 2, 1]  # type: ignore[attr-defined]
    assert histogram.get_title() == "0 SynapticDelay" and histogram.get_legend() is not None
    assert matrix.images[0].get_array().tolist() == [[3.0] * 3] * 2  # type: ignore[union-attr]
    assert matrix.images[0].get_clim() == (0, 4)
    assert "1.57 steps" in matrix.get_title()
    assert channels.get_title() == "1 AxonalDelay"
    alone = plot_delays(network[1])
    assert alone.axes[0].get_legend() is None and len(alone.axes[0].patches) == 4


def test_the_picture_needs_no_display(tmp_path: Path) -> None:
    code = (
        "import sys; from spiketide.synapses import SynapticDelay, plot_delays\n"
        "assert 'matplotlib' not in sys.modules\n"
        "plot_delays(SynapticDelay(4, 3, 6, fan_in=2)).savefig(sys.argv[1])\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    path = tmp_path / "delays.png"
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        env={"MPLCONFIGDIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert path.read_bytes().startswith(b"\x89PNG")
