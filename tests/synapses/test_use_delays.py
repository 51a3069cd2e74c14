"""The page that tells how to use delays works as it stands, and its figures are right."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from spiketide import DelayAnneal, SynapticDelay
from spiketide.synapses.delay import taps_for

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "use_delays.md"


@pytest.fixture(scope="module")
def names() -> dict[str, Any]:
    """What all blocks of the page, in their order, leave behind."""
    torch.manual_seed(0)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) == 8
    space: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), space)
    return space


def test_tails(names: dict[str, Any]) -> None:
    network, lengths = names["network"], names["lengths"]
    assert names["y"].shape == (74, 8, 20) and names["scores"].shape == (8, 20)
    assert torch.equal(network.lengths_after(lengths), lengths + 24)


def test_learning(names: dict[str, Any]) -> None:
    groups = {group["name"]: group for group in names["groups"]}
    assert groups["delays"]["lr"] == pytest.approx(0.1) and groups["delays"]["weight_decay"] == 0
    assert names["widths"] == pytest.approx([12.27, 1.93, *[0.5] * 6], abs=0.005)
    assert torch.isfinite(names["loss"])
    for layer in (names["network"][0], names["network"][4]):
        delay = layer.delays.delay.detach()
        assert float(delay.min()) >= 0 and float(delay.max()) <= 24
    model = names["model"]
    assert model.lr_factors["delays"] * model.lr == pytest.approx(0.1)


def test_too_few_epochs_are_narrow_from_the_start() -> None:
    layer = SynapticDelay(2, 2, 24)
    DelayAnneal()(layer, 0, 3)
    assert layer.delays.effective_width() == pytest.approx(0.5)


def test_frozen(names: dict[str, Any]) -> None:
    assert names["same"]
    frozen, loaded, network = names["frozen"], names["loaded"], names["network"]
    assert not any(p.requires_grad for name, p in frozen.named_parameters() if name.endswith("delays.delay"))
    assert torch.equal(loaded(names["x"])[0], network[0](names["x"])[0])
    assert names["lags"].shape == (32, 140, 1) and torch.equal(names["lags"], loaded.delays.delay)


def test_streaming(names: dict[str, Any]) -> None:
    assert torch.allclose(names["streamed"], names["whole"], atol=1e-5)
    assert names["whole"].abs().max() > 0.01
    names["stream"].load_state_dict(names["network"].state_dict())


def test_the_other_layers(names: dict[str, Any]) -> None:
    assert names["shapes"] == [(62, 8, 32)] * 2 and names["back"].shape == (62, 8, 32)
    assert names["events"].shape == (6, 2, 4, 8, 8)
    assert sum(p.numel() for p in names["image"].parameters()) == 2 * 2 * 4 * 9


def test_feedback_arrives_a_step_after_its_delay(names: dict[str, Any]) -> None:
    recurrent = names["Recurrent"](
        names["neuron"](1),
        names["Sequential"](names["AxonalDelay"](1, 6, start=4.0), names["Dense"](1, 1, bias=False)),
    ).eval()
    with torch.no_grad():
        recurrent.synapse[1].weight.fill_(2.0)
        x = torch.zeros(12, 1, 1)
        x[0] = 2.0
        assert recurrent(x)[0].flatten().nonzero().flatten().tolist() == [0, 5, 10]


def test_controls(names: dict[str, Any]) -> None:
    fixed, dense, sparse, known = (names[name] for name in ("fixed", "dense", "sparse", "known"))
    assert not fixed.delays.delay.requires_grad and torch.equal(
        fixed.delays.delay, fixed.delays.delay.round()
    )
    assert torch.equal(dense.kernel(), dense.weight)  # all 25 lags, in their order
    assert torch.equal((sparse.kernel().abs().sum(-1) > 0).sum(1), torch.full((32,), 10))
    assert (known.delays.delay == 5).all()


def test_costs() -> None:
    assert (taps_for(0.5), taps_for(1.0), taps_for(1.5)) == (4, 8, None)
    counts = []
    for interpolation, width in (("none", 0.0), ("linear", 0.0), ("max", 0.0), ("gauss", 0.23)):
        layer = SynapticDelay(
            2, 2, 24, interpolation=interpolation, width=width, learn=interpolation != "none"
        )
        counts.append(layer.delays.count())
        assert layer.eval().delays.count() == 1
    assert counts == [1, 2, 2, 4]
    one, two = (SynapticDelay(50, 40, 24, kernel_count=k).weight.detach().abs().max() for k in (1, 2))
    assert float(one / two) == pytest.approx(2**0.5, rel=0.02)
