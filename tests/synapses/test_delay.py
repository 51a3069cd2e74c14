"""Delays: the published mathematics, whole delays, streaming, connectivity, refusals."""

from __future__ import annotations

import copy
import itertools
import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from helpers import assert_near
from torch import Tensor, nn

from spiketide import (
    LIF,
    AxonalDelay,
    BatchNorm,
    DelayAnneal,
    DelayedConv2d,
    DendriticDelay,
    Dense,
    Recurrent,
    Residual,
    Sequential,
    SynapticDelay,
    errors,
    freeze,
)
from spiketide.kernels import delay as kernels
from spiketide.synapses.delay import EPSILON, KEPT, clamp_delays, taps_for
from spiketide.training import parameter_groups


def impulse(steps: int, n: int = 1, at: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    x = torch.zeros(steps, 1, n, dtype=dtype)
    x[at] = 1.0
    return x


def published(p: Tensor, weight: Tensor, width: float, places: int) -> Tensor:
    """The kernel as the paper's code defines it, written out: position p, centre p + (K - 1) / 2, effective width |SIG| + 0.27."""
    centre = p + (places - 1) / 2
    n = torch.arange(places, dtype=p.dtype)
    e = torch.exp(-0.5 * ((n - centre.unsqueeze(-1)) / (abs(width) + 0.27)) ** 2)
    return weight.unsqueeze(-1) * e / (1e-7 + e.sum(-1, keepdim=True))


# --------------------------------------------------------------------------------------------- the paper's acceptance


@pytest.mark.parametrize(("position", "arrives"), [(12.0, 0), (-12.0, 24), (0.0, 12)])
def test_one_spike_arrives_after_its_delay(position: float, arrives: int) -> None:
    """learned delays, acceptance 1: K = 25, right padding 12."""
    delay = 12.0 - position
    layer = SynapticDelay(1, 1, 24, start=delay, tail=12).double().eval()
    y, _ = layer(impulse(20, at=3))
    assert y.shape[0] == 20 + 12
    expected = torch.zeros(32, dtype=torch.float64)
    if 3 + arrives < 32:
        expected[3 + arrives] = layer.weight.item()
    assert torch.equal(y.flatten(), expected)


@pytest.mark.parametrize("width", [12.0, 3.0, 0.73, 0.23, 0.0])
def test_a_kernel_sums_to_its_weight_wherever_it_is_centred(width: float) -> None:
    """Acceptance 2, for any width, also at the borders of the kernel."""
    torch.manual_seed(0)
    layer = SynapticDelay(5, 7, 24, width=width, offset=0.27 if width else 0.05).double()
    with torch.no_grad():
        layer.delays.delay[0, 0] = 0.0
        layer.delays.delay[1, 1] = 24.0
    sums = layer.kernel().sum(-1)
    assert_near(sums, layer.weight.sum(-1), 1e-6, "sum of the kernel")
    layer.eval()
    kernel = layer.kernel()
    assert torch.equal((kernel != 0).sum(-1), torch.ones(7, 5, dtype=torch.long)), (
        "whole delays: one tap each"
    )
    assert torch.equal(kernel.sum(-1), layer.weight.squeeze(-1))


@pytest.mark.parametrize("width", [12.0, 3.0])
def test_wide_kernels_are_the_published_ones(width: float) -> None:
    torch.manual_seed(1)
    layer = SynapticDelay(4, 6, 24, width=width).double()
    p = 12.0 - layer.delays.delay.detach().squeeze(-1)
    want = published(p, layer.weight.detach().squeeze(-1), width, 25).flip(-1)  # by lag
    assert_near(layer.kernel().detach(), want, 1e-12, "kernel")


@pytest.mark.parametrize("width", [0.23, 0.5, 0.73])
def test_narrow_kernels_are_truncated_within_the_stated_bound(width: float) -> None:
    torch.manual_seed(2)
    layer = SynapticDelay(30, 40, 24, width=width).double()
    assert layer.delays.count() == taps_for(width + 0.27) is not None
    p = 12.0 - layer.delays.delay.detach().squeeze(-1)
    weight = layer.weight.detach().squeeze(-1)
    want = published(p, weight, width, 25).flip(-1)
    error = (layer.kernel().detach() - want).abs().sum(-1) / weight.abs()
    assert float(error.max()) <= 2 * KEPT
    assert float(error.max()) > 0, "nothing was truncated: this tests nothing"


def test_the_position_gradient_is_the_derived_formula_and_the_finite_difference() -> None:
    """Acceptance 3: dL/dp = 1/s^2 sum_n g[n] k[n] ((n - c) - nbar), and dL/dd = -dL/dp."""
    torch.manual_seed(3)
    places, width = 25, 3.0
    layer = SynapticDelay(3, 4, 24, width=width).double()
    with torch.no_grad():
        layer.delays.delay.uniform_(2.0, 22.0)
    x, cotangent = torch.rand(40, 2, 3, dtype=torch.float64), torch.randn(40, 2, 4, dtype=torch.float64)
    y, _ = layer(x)
    (grad,) = torch.autograd.grad((y * cotangent).sum(), layer.delays.delay)
    # g_oi[n] = sum over time and samples of dL/dI[t] x[t - (K - 1) + n]
    padded = torch.cat([torch.zeros(places - 1, 2, 3, dtype=torch.float64), x])
    g = torch.stack([torch.einsum("tbo,tbi->oi", cotangent, padded[n : n + 40]) for n in range(places)], -1)
    c = 24.0 - layer.delays.delay.detach()
    n = torch.arange(places, dtype=torch.float64)
    s = width + 0.27
    e = torch.exp(-0.5 * ((n - c) / s) ** 2)
    share = e / (EPSILON + e.sum(-1, keepdim=True))
    k = layer.weight.detach() * share
    mean = ((n - c) * share).sum(-1, keepdim=True)
    formula = (g * k * ((n - c) - mean)).sum(-1) / s**2
    assert_near(-grad.squeeze(-1), formula, 1e-6, "gradient of the position")
    step = 1e-5
    with torch.no_grad():
        start = layer.delays.delay[1, 2, 0].item()
        losses = []
        for value in (start + step, start - step):
            layer.delays.delay[1, 2, 0] = value
            losses.append((layer(x)[0] * cotangent).sum())
    difference = float((losses[0] - losses[1]) / (2 * step))
    assert difference == pytest.approx(float(grad[1, 2, 0]), rel=1e-6, abs=1e-6 * float(grad.abs().max()))


@pytest.mark.parametrize(
    ("hidden", "layers", "classes", "count", "published_count"),
    [
        (256, 2, 20, 1, 214_016),
        (512, 2, 35, 1, 705_536),
        (512, 2, 35, 2, 1_409_024),
        (512, 3, 35, 1, 1_230_848),
        (512, 3, 35, 2, 2_458_624),
    ],
)
def test_parameter_counts_to_the_unit(
    hidden: int, layers: int, classes: int, count: int, published_count: int
) -> None:
    """Acceptance 4: weights, positions and the affine part of the norms."""
    from spiketide import BatchNorm

    sizes = [140, *[hidden] * layers, classes]
    parts: list[nn.Module] = [
        SynapticDelay(a, b, 24, kernel_count=count) for a, b in itertools.pairwise(sizes)
    ]
    parts += [BatchNorm(hidden) for _ in range(layers)]
    assert sum(p.numel() for part in parts for p in part.parameters()) == published_count


def test_widths_and_rates_over_the_epochs_are_the_published_tables() -> None:
    """Acceptance 5: the width of epoch 37 of 150 is 0.5, its factor 0.898633; rates of the two one-cycles."""
    from spiketide.training.schedule import Schedule, onecycle

    layer, anneal = SynapticDelay(2, 2, 24), DelayAnneal()
    widths = []
    for epoch in range(150):
        anneal(layer, epoch, 150)
        widths.append(float(layer.delays.width))
    assert widths[0] == 12.0
    assert widths[1] / widths[0] == pytest.approx(0.898633, abs=1e-6)
    assert layer.delays.effective_width() == pytest.approx(0.5)
    assert widths[36] > widths[37] == pytest.approx(0.23) == widths[149]
    weight = [5e-3 * onecycle(epoch, 150)[0] for epoch in range(150)]
    assert weight[0] == pytest.approx(2e-4) and weight[44] == pytest.approx(5e-3)
    assert weight[149] == pytest.approx(2e-8)
    # against torch's own scheduler, rates and cycled momentum
    plain = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=5e-3)
    theirs = torch.optim.lr_scheduler.OneCycleLR(plain, 5e-3, total_steps=151)
    mine = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=5e-3)
    ours = Schedule(mine, ["onecycle"], 150, cycle_momentum=True)
    for _ in range(150):
        assert ours.get_last_lr()[0] == pytest.approx(theirs.get_last_lr()[0], rel=1e-6)
        assert mine.param_groups[0]["betas"][0] == pytest.approx(plain.param_groups[0]["betas"][0], rel=1e-6)
        for scheduler in (ours, theirs):
            scheduler.optimizer.step()
            scheduler.step()
    cosine = Schedule(
        torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=0.1), ["cosine"], 150, cycle_momentum=True
    )
    rates = []
    for _ in range(150):
        rates.append(cosine.get_last_lr()[0])
        cosine.optimizer.step()
        cosine.step()
    assert rates[0] == pytest.approx(0.1) and rates[75] == pytest.approx(0.05)
    assert cosine.optimizer.param_groups[0]["betas"][0] == 0.9


# ------------------------------------------------------------------------------------------------------ the three ways


SIZES = [(9, 3, 5, 6, 1), (20, 17, 4, 33, 2), (6, 16, 7, 9, 3), (12, 33, 3, 18, 1)]


def by_events(x: Tensor, w: Tensor, first: Tensor, places: int, silent: tuple[int, int] = (0, 0)) -> Tensor:
    """The taps added for the nonzeros alone."""
    events = kernels.list_events(x, kernels.count_events(x))
    return kernels.few(x, w, first, places, silent, events=events)


def by_windows(x: Tensor, kernel: Tensor, silent: tuple[int, int] = (0, 0)) -> Tensor:
    """Whole kernels added for the nonzeros alone."""
    return kernels.windows(x, kernel, kernels.list_events(x, kernels.count_events(x)), silent)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("taps", kernels.TAPS)
@pytest.mark.parametrize("more", [5, 70])
@pytest.mark.parametrize("size", SIZES)
def test_reads_events_and_frequency_domain_are_the_convolution(
    size: tuple[int, ...], more: int, taps: int, dtype: torch.dtype
) -> None:
    steps, batch, n_in, n_out, copies = size
    places = taps + more
    torch.manual_seed(taps)
    x = torch.randn(steps + places - 1, batch, n_in, dtype=dtype)
    x = (x * (torch.rand_like(x) < 0.3)).requires_grad_()
    w = torch.randn(n_out, n_in, copies, taps, dtype=dtype, requires_grad=True)
    first = torch.randint(0, places - taps + 1, (n_out, n_in, copies))
    cotangent = torch.randn(steps, batch, n_out, dtype=dtype)
    kernel = kernels.scatter(w, first, places)
    results = []
    for y in (
        kernels.reference(x, kernel),
        kernels.few(x, w, first, places),
        by_events(x, w, first, places),
        by_windows(x, kernel),
        kernels.wide(x, kernel),
    ):
        results.append((y.detach(), *torch.autograd.grad(y, (x, w), cotangent, retain_graph=True)))
    rtol = 3e-6 if dtype == torch.float32 else 1e-13
    for way, got in zip(("reads", "events", "windows", "wide"), results[1:], strict=True):
        for what, a, b in zip(("output", "input gradient", "tap gradient"), got, results[0], strict=True):
            assert_near(a.contiguous(), b.contiguous(), rtol, f"{way}: {what}")
    assert torch.equal(results[1][0], results[2][0]), "reads and events give the same bits"


@pytest.mark.parametrize("silent", [(8, 0), (8, 3), (0, 5), (2, 1)])
def test_silent_frames_that_are_left_out_count_as_if_given(silent: tuple[int, int]) -> None:
    torch.manual_seed(12)
    before, after = silent
    x = torch.randn(20, 5, 4, dtype=torch.float64, requires_grad=True)
    w = torch.randn(7, 4, 2, 2, dtype=torch.float64, requires_grad=True)
    first = torch.randint(0, 8, (7, 4, 2))
    padded = torch.cat([x.new_zeros(before, 5, 4), x, x.new_zeros(after, 5, 4)])
    kernel = kernels.scatter(w, first, 9)
    truth = kernels.reference(padded, kernel)
    cotangent = torch.randn_like(truth)
    want = (truth.detach(), *torch.autograd.grad(truth, (x, w), cotangent, retain_graph=True))
    ways = (
        kernels.few(x, w, first, 9, silent),
        by_events(x, w, first, 9, silent),
        by_windows(x, kernel, silent),
        kernels.wide(x, kernel, silent),
    )
    for y in ways:
        got = (y.detach(), *torch.autograd.grad(y, (x, w), cotangent, retain_graph=True))
        for what, a, b in zip(("output", "input gradient", "tap gradient"), got, want, strict=True):
            assert_near(a.contiguous(), b.contiguous(), 1e-12, what)


def test_reads_are_the_same_however_few_tiles_are_made_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(13)
    x = torch.randn(40, 90, 3, requires_grad=True)
    w = torch.randn(150, 3, 1, 4, requires_grad=True)
    first = torch.randint(0, 60, (150, 3, 1))
    outcomes = []
    for memory in (1 << 30, 1):
        monkeypatch.setattr(kernels, "TILE_MEMORY", memory)
        y = kernels.few(x, w, first, 63, (62, 0))
        outcomes.append((y.detach(), *torch.autograd.grad(y.square().sum(), (x, w))))
    assert len(kernels._waves(x.detach(), 3)) > 1
    for a, b in zip(*outcomes, strict=True):
        assert torch.equal(a, b)


def test_events_cost_nothing_where_nothing_happens_and_touch_no_weight_there() -> None:
    x = torch.zeros(6, 2, 3)
    x[2, 1, 0] = 2.0
    w = torch.full((4, 3, 1, 2), float("inf"))
    w[:, 0] = 1.0
    w.requires_grad_()
    first = torch.zeros(4, 3, 1, dtype=torch.int64)
    y = by_events(x, w, first, 2, (1, 0))
    want = torch.zeros(6, 2, 4)
    want[2:4, 1] = 2.0
    assert torch.equal(y, want)
    (gradient,) = torch.autograd.grad(y.sum(), w)
    assert bool((gradient[:, 0] == 2.0).all()) and not gradient[:, 1:].any()
    silent = by_events(torch.zeros(6, 2, 3), w, first, 2, (1, 0))
    assert not silent.any() and not torch.autograd.grad(silent.sum(), w)[0].any()


def test_channels_are_shifted_alike_by_convolution_and_frequency_domain(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(11)
    layer = AxonalDelay(6, 12, width=4.0).double()
    x = torch.rand(30, 3, 6, dtype=torch.float64, requires_grad=True)
    cotangent = torch.randn(30, 3, 6, dtype=torch.float64)
    outcomes = []
    for limit in (0, 1 << 40):
        monkeypatch.setattr(kernels, "SMALL_SHIFT", limit)
        y, _ = layer(x)
        outcomes.append((y.detach(), *torch.autograd.grad(y, (x, layer.delays.delay), cotangent)))
    for a, b in zip(*outcomes, strict=True):
        assert_near(a, b, 1e-12, "shift of channels")


def by_windows_of_taps(x: Tensor, w: Tensor, first: Tensor, places: int) -> Tensor:
    return by_windows(x, kernels.scatter(w, first, places))


@pytest.mark.parametrize("way", [kernels.few, by_events, by_windows_of_taps])
def test_no_way_depends_on_the_number_of_threads(way: Any) -> None:
    torch.manual_seed(0)
    x = torch.randn(30, 40, 90, requires_grad=True)
    w = torch.randn(210, 90, 1, 4, requires_grad=True)
    first = torch.randint(0, 4, (210, 90, 1))
    before, outcomes = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            y = way(x, w, first, 8)
            outcomes.append((y.detach(), *torch.autograd.grad(y.square().sum(), (x, w))))
    finally:
        torch.set_num_threads(before)
    for a, b in zip(*outcomes, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("width", [12.0, 0.23])
def test_the_layer_is_the_same_by_every_way(width: float, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(4)
    layer = SynapticDelay(6, 5, 24, width=width, kernel_count=2).double()
    x = torch.rand(30, 3, 6, dtype=torch.float64)
    outcomes = {}
    for way in ("reference", "wide", "windows", "reads", "events"):
        if way in ("reads", "events") and width > 1:
            continue
        monkeypatch.setattr(kernels, "choose", lambda *a, way=way: way)
        y, _ = layer(x)
        grads = torch.autograd.grad(y.square().sum(), (layer.weight, layer.delays.delay))
        outcomes[way] = (y.detach(), *grads)
    for way, outcome in outcomes.items():
        for a, b in zip(outcome, outcomes["reference"], strict=True):
            assert_near(a, b, 1e-11, way)


def test_the_future_touches_the_past_by_rounding_alone_where_kernels_are_wide(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The exemption of SynapticDelay, and its bound; narrow and whole delays have none."""
    torch.manual_seed(5)
    x = torch.rand(100, 4, 20)
    other = x.clone()
    other[50:] = torch.rand(50, 4, 20)
    layer = SynapticDelay(20, 30, 24)
    monkeypatch.setattr(kernels, "choose", lambda *a: "wide")
    a, b = layer(x)[0].detach(), layer(other)[0].detach()
    leak = float((a[:50] - b[:50]).abs().max() / a.abs().max())
    assert 0 < leak <= 1e-6
    layer.eval()
    for way in ("reads", "events"):
        monkeypatch.setattr(kernels, "choose", lambda *a, way=way: way)
        assert torch.equal(layer(x)[0][:50], layer(other)[0][:50])


def test_few_taps_cost_less_and_wide_kernels_more() -> None:
    assert taps_for(0.5) == 4 and taps_for(12.27) is None
    widths = [0.3, 0.5, 0.8, 1.0, 1.5, 2.0]
    counts = [taps_for(w) or 99 for w in widths]
    assert counts == sorted(counts)
    assert kernels.choose(100, 128, 140, 256, (1, 1), 25) == "reads"
    assert kernels.choose(100, 128, 256, 256, None, 25) == "wide"


@pytest.mark.parametrize("taps", kernels.TAPS)
def test_few_events_are_cheaper_than_reads_and_many_are_not(taps: int) -> None:
    elements = 100 * 128 * 140
    ways = [
        kernels.choose(100, 128, 140, 256, (1, taps), 1001, share * elements)
        for share in (0.0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
    ]
    turn = ways.index("reads")
    assert 2 <= turn <= 7 and ways == ["events"] * turn + ["reads"] * (len(ways) - turn)


@pytest.mark.parametrize("size", [(100, 128, 140, 256), (300, 64, 200, 100)])
def test_few_events_are_cheaper_than_the_frequency_domain_and_many_are_not(size: tuple[int, ...]) -> None:
    elements, turns = size[0] * size[1] * size[2], []
    for gradient in (False, True):
        ways = [
            kernels.choose(*size, None, 25, share * elements, gradient)
            for share in (0.0, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0)
        ]
        turns.append(ways.index("wide"))
        assert ways == ["windows"] * turns[-1] + ["wide"] * (len(ways) - turns[-1])
    assert 2 <= turns[1] < turns[0] <= 6  # an input that needs a gradient goes there all the same


def test_the_layer_goes_by_what_its_input_holds() -> None:
    torch.manual_seed(14)
    layer = SynapticDelay(64, 256, 30, width=0.23)
    sparse, dense = (torch.rand(50, 32, 64) < share for share in (0.01, 0.9))
    made = [layer(x.float())[0].grad_fn for x in (sparse, dense)]
    # what is kept for the backward: the lists, or the input itself
    kept = [[tuple(t.shape) for t in f.saved_tensors if t is not None] for f in made]
    assert (32, 65) in kept[0] and (50, 32, 64) not in kept[0]
    assert (50, 32, 64) in kept[1] and (32, 65) not in kept[1]


@pytest.mark.parametrize(
    ("interpolation", "evaluation"), [("linear", False), ("gauss", True), ("max", False)]
)
@pytest.mark.parametrize("max_delay", [2, 3, 5, 24])
def test_what_the_input_holds_elsewhere_changes_no_bit_of_narrow_kernels(
    interpolation: str, evaluation: bool, max_delay: int
) -> None:
    """Whatever way it goes: neither the future, nor the neighbours, nor whether a gradient is asked for."""
    torch.manual_seed(15)
    layer = SynapticDelay(96, 96, max_delay, interpolation=interpolation, width=0.0).train(not evaluation)
    x = (torch.rand(100, 32, 96) < 0.02) * torch.rand(100, 32, 96)
    later, beside = x.clone(), x.clone()
    later[50:], beside[:, 1:] = 1.0, 1.0
    y = layer(x)[0]
    assert torch.equal(y[:50], layer(later)[0][:50])
    assert torch.equal(y[:, 0], layer(beside)[0][:, 0])
    assert torch.equal(y, layer(x.clone().requires_grad_())[0])


def test_a_tail_longer_than_the_longest_delay_has_gradients() -> None:
    torch.manual_seed(16)
    layer = SynapticDelay(96, 96, 12, tail=30)
    x = (torch.rand(60, 32, 96) < 0.005).float().requires_grad_()
    y, _ = layer(x)
    assert y.shape[0] == 90 and type(y.grad_fn).__name__ == "_WindowsBackward"
    g = torch.randn_like(y)
    (found,) = torch.autograd.grad(y, x, g)
    double = copy.deepcopy(layer).double()
    exact = x.detach().double().requires_grad_()
    padded = torch.cat([exact.new_zeros(12, 32, 96), exact, exact.new_zeros(30, 32, 96)])
    kernel = double.delays.whole(double.effective_weight()).sum(-1)
    (wanted,) = torch.autograd.grad(kernels.reference(padded, kernel), exact, g.double())
    assert_near(found, wanted.float(), 1e-5)
    nothing = torch.zeros(0, 32, 96, requires_grad=True)
    layer(nothing)[0].sum().backward()
    assert nothing.grad is not None and nothing.grad.shape == nothing.shape


@pytest.mark.parametrize("way", ["reads", "events", "windows", "wide"])
def test_gradients_of_many_spikes_keep_their_digits(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes back is the same everywhere: the sums grow with the number of spikes."""
    torch.manual_seed(17)
    layer = SynapticDelay(4, 32, 8, interpolation="linear")
    x = (torch.rand(600, 64, 4) < 0.05).float()
    double = copy.deepcopy(layer).double()
    monkeypatch.setattr(kernels, "choose", lambda *a: "reference")
    double(x.double())[0].mean().backward()
    monkeypatch.setattr(kernels, "choose", lambda *a: way)
    layer(x)[0].mean().backward()
    found, wanted = layer.weight.grad, double.weight.grad
    assert found is not None and wanted is not None
    assert float((found.double() - wanted).abs().max() / wanted.abs().max()) < 2e-6


def test_infinities_that_no_tap_reads_do_nothing() -> None:
    torch.manual_seed(18)
    layer = SynapticDelay(64, 64, 24, width=0.23, start=20.0)
    x = (torch.rand(60, 32, 64) < 0.02).float()
    x[-1, 0, 0] = math.inf
    y, _ = layer(x)
    y.square().sum().backward()
    assert y.isfinite().all()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in layer.parameters())


def test_layers_of_the_cpu_run_whatever_the_default_device() -> None:
    sizes = [(6, 2, 4), (40, 16, 64)]
    layers = [SynapticDelay(n, 64, 3, width=width) for _, _, n in sizes for width in (2.0, 0.23)]
    inputs = [torch.rand(*size) for size in sizes for _ in range(2)]
    axonal = AxonalDelay(64, 200)
    with torch.device("meta"):
        for layer, x in zip(layers, inputs, strict=True):
            y, _ = layer(x * (x < 0.05))
            y.sum().backward()
            assert y.device.type == "cpu"
        assert axonal(inputs[-1])[0].device.type == "cpu"


def test_training_goes_on_after_inference_mode() -> None:
    """What is kept between calls is made so that a gradient may need it."""
    x = torch.rand(311, 8, 64)
    axonal = AxonalDelay(64, 201)
    with torch.inference_mode():
        axonal(x)
    axonal(x)[0].sum().backward()
    assert axonal.delays.delay.grad is not None


@pytest.mark.parametrize("way", ["reads", "events", "windows", "wide", "reference"])
def test_outputs_may_be_changed_in_place(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(19)
    layer = SynapticDelay(12, 16, 5, interpolation="linear")
    monkeypatch.setattr(kernels, "choose", lambda *a: way)
    y, _ = layer(torch.rand(20, 4, 12))
    wanted = y.detach().relu()
    assert torch.equal(y.relu_(), wanted)
    y.sum().backward()


@pytest.mark.parametrize("share", [0.02, 1.0])
def test_whole_delays_may_change_before_the_gradient_of_their_weights(share: float) -> None:
    torch.manual_seed(20)
    layer = SynapticDelay(64, 64, 24).eval()
    x = (torch.rand(50, 16, 64) < share).float()
    (wanted,) = torch.autograd.grad(layer(x)[0].sum(), layer.weight)
    y, _ = layer(x)
    with torch.no_grad():
        layer.weight += 1.0
    y.sum().backward()
    assert layer.weight.grad is not None and torch.equal(layer.weight.grad, wanted)


def test_no_list_of_events_grows_beyond_its_room() -> None:
    """As where a thread that takes denormal numbers for zeros has counted."""
    x = (torch.rand(30, 3, 70) < 0.3).float()
    counts = kernels.count_events(x)
    fewer = counts - (counts > 0).long()
    events = kernels.list_events(x, fewer)
    assert len(events.steps) == int(fewer.sum()) and events.values.all()
    more = kernels.list_events(x, counts + 1)
    assert int((more.values != 0).sum()) == int(counts.sum()) == len(more.values) - counts.numel()


def test_the_state_is_not_the_whole_sequence() -> None:
    """Who keeps the last frames does not keep all of them; gradients still pass."""
    x = torch.rand(40, 2, 3, requires_grad=True)
    for delay, own in ((5, True), (39, False)):
        _, (frames,) = SynapticDelay(3, 4, delay)(x)
        assert torch.equal(frames, x[40 - delay :].transpose(0, 1))
        assert (frames.untyped_storage().nbytes() < x.untyped_storage().nbytes()) == own
        (g,) = torch.autograd.grad(frames.sum(), x)
        assert torch.equal(g, (torch.arange(40) >= 40 - delay).float().view(40, 1, 1).expand_as(g))
    _, (frames,) = SynapticDelay(3, 4, 60)(x)
    assert torch.equal(frames[:, 20:], x.transpose(0, 1)) and not frames[:, :20].any()


# ------------------------------------------------------------------------------------------------------ the layer itself


@pytest.mark.parametrize("interpolation", ["gauss", "linear", "max"])
def test_a_frozen_layer_is_the_layer_in_evaluation(interpolation: str) -> None:
    torch.manual_seed(6)
    layer = SynapticDelay(6, 5, 9, interpolation=interpolation, fan_in=4)
    x = torch.rand(15, 3, 6)
    frozen = layer.freeze()
    assert not frozen.delays.delay.requires_grad and torch.equal(
        frozen.delays.delay, frozen.delays.delay.round()
    )
    want = layer.eval()(x)[0]
    for mode in (True, False):
        assert torch.equal(frozen.train(mode)(x)[0], want)
    assert not torch.equal(layer.train()(x)[0], want), "training uses other kernels: this tests nothing"
    for cls in (AxonalDelay, DendriticDelay):
        channel = cls(6, 9, interpolation=interpolation)
        assert torch.equal(channel.freeze()(x)[0], channel.eval()(x)[0])


def test_a_frozen_network_holds_no_learnt_delay_anywhere_and_shares_nothing() -> None:
    torch.manual_seed(7)
    network = Sequential(
        SynapticDelay(6, 8, 9),
        BatchNorm(8),
        Recurrent(LIF(8, threshold=0.3), Sequential(AxonalDelay(8, 5), Dense(8, 8))),
        Residual(Sequential(DendriticDelay(8, 4))),
    )
    x = torch.rand(15, 3, 6)
    network(x)  # statistics
    network.eval()
    want, frozen = network(x)[0], freeze(network)
    assert not frozen.training and torch.equal(frozen(x)[0], want) and want.abs().sum() > 0
    delays = [p for name, p in frozen.named_parameters() if name.endswith("delay")]
    assert len(delays) == 3
    assert all(torch.equal(p, p.round()) and not p.requires_grad for p in delays)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in frozen.parameters() if p.requires_grad], 0.1)
    frozen.train()(x)[0].sum().backward()
    optimizer.step()
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert any(p.requires_grad for name, p in network.named_parameters() if name.endswith("delay"))


def test_a_network_frozen_without_tails_streams() -> None:
    torch.manual_seed(21)
    tailed = Sequential(SynapticDelay(6, 8, 5, tail=2), LIF(8), AxonalDelay(8, 4, tail=3)).eval()
    x = torch.rand(20, 2, 6)
    assert freeze(tailed)(x)[0].shape[0] == 25
    plain = freeze(tailed, tails=False)
    whole, _ = plain(x)
    assert_near(whole, tailed(x)[0][:20], 1e-6)
    state, parts = None, []
    for chunk in x.split(3):
        part, state = plain(chunk, state)
        parts.append(part)
    assert_near(torch.cat(parts), whole, 1e-6)


def test_a_delay_for_each_connection_may_be_given_without_the_axis_of_copies() -> None:
    delays = torch.arange(6.0).view(2, 3)
    assert torch.equal(SynapticDelay(3, 2, 5, start=delays).delays.delay[..., 0], delays)
    with pytest.raises(errors.ParameterError, match="delays of shape"):
        SynapticDelay(3, 2, 5, kernel_count=2, start=delays)


def test_weights_with_longer_delays_than_the_layer_has_are_named() -> None:
    long, short = SynapticDelay(2, 3, 10, start=8.25), SynapticDelay(2, 3, 4)
    with pytest.warns(UserWarning, match=r"go up to 8\.25 steps, and max_delay = 4"):
        short.load_state_dict(long.state_dict())
    assert torch.equal(short.eval()(torch.rand(9, 1, 2))[0][:4], torch.zeros(4, 1, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SynapticDelay(2, 3, 10).load_state_dict(long.state_dict())


def test_annealing_leaves_loaded_narrow_kernels_narrow() -> None:
    trained, layer, anneal = SynapticDelay(2, 2, 24), SynapticDelay(2, 2, 24), DelayAnneal()
    anneal(trained, 40, 150)
    layer.load_state_dict(trained.state_dict())
    anneal(layer, 0, 150)
    assert layer.delays.effective_width() == pytest.approx(0.5)
    anneal(new := SynapticDelay(2, 2, 24), 0, 150)
    assert new.delays.effective_width() == pytest.approx(12.27)


def test_sizes_may_be_numpy_integers() -> None:
    three, four = np.int64(3), np.int32(4)
    layers = [
        SynapticDelay(three, four, np.int64(5), tail=np.int64(2)),
        Dense(three, four),
        Dense(three, four),
    ]
    for layer in layers:
        assert layer(torch.rand(6, 2, 3))[0].shape[2] == 4
    for value in (layers[0].n_in, layers[0].delays.max_delay, layers[0].tail, layers[1].n_out):  # type: ignore[union-attr]
        assert type(value) is int
    with pytest.raises(errors.ParameterError):
        SynapticDelay(3, 4, np.float64(5))  # type: ignore[arg-type]


def test_linear_interpolation_stands_between_the_neighbouring_steps() -> None:
    layer = SynapticDelay(1, 1, 6, interpolation="linear", start=2.25).double()
    y, _ = layer(impulse(8))
    w = layer.weight.item()
    assert y.flatten().tolist() == pytest.approx([0, 0, 0.75 * w, 0.25 * w, 0, 0, 0, 0])


@pytest.mark.parametrize("delay", [0.0, 6.0])
def test_delays_at_their_borders_lose_nothing(delay: float) -> None:
    for interpolation in ("gauss", "linear", "max"):
        layer = SynapticDelay(1, 1, 6, interpolation=interpolation, width=0.2, start=delay).double()
        y, _ = layer(impulse(20))
        assert float(y.detach().sum()) == pytest.approx(layer.weight.item(), rel=1e-6)


def test_kernels_add_up() -> None:
    layer = SynapticDelay(1, 1, 5, kernel_count=2, start=torch.tensor([[[1.0, 4.0]]])).double().eval()
    y, _ = layer(impulse(6))
    a, b = layer.weight.flatten().tolist()
    assert y.flatten().tolist() == [0, a, 0, 0, b, 0]


def test_fixed_delays_are_whole_and_stay() -> None:
    layer = SynapticDelay(4, 4, 8, interpolation="none", learn=False)
    assert torch.equal(layer.delays.delay, layer.delays.delay.round())
    layer(torch.rand(5, 2, 4))[0].sum().backward()
    assert layer.delays.delay.grad is None and layer.weight.grad is not None


def test_connectivity_is_drawn_once_and_only_connected_weights_act_and_learn() -> None:
    torch.manual_seed(7)
    layer = SynapticDelay(20, 30, 4, fan_in=5)
    assert layer.mask is not None
    assert torch.equal(layer.mask.squeeze(-1).sum(1), torch.full((30,), 5.0))
    layer(torch.rand(9, 2, 20))[0].square().sum().backward()
    assert layer.weight.grad is not None and layer.delays.delay.grad is not None
    apart = layer.mask == 0
    assert (
        float(layer.weight.grad[apart].abs().max()) == 0 == float(layer.delays.delay.grad[apart].abs().max())
    )
    assert float(layer.weight.grad[~apart].abs().min()) > 0
    sparse = SynapticDelay(100, 100, 4, density=0.3)
    assert sparse.mask is not None and 0.25 < float(sparse.mask.mean()) < 0.35
    bound = math.sqrt(6 / 5)
    assert 0.9 * bound < float(layer.weight.detach().abs().max()) <= bound


def test_a_tail_lets_what_is_under_way_arrive_and_moves_the_lengths() -> None:
    layer = SynapticDelay(1, 1, 6, start=5.0, tail=6).eval()
    x = torch.zeros(4, 2, 1)
    x[1, 0] = x[3, 1] = 1.0
    y, _ = layer(x, lengths=torch.tensor([2, 4]))
    assert y.shape[0] == 10
    assert [int(i) for i in y.detach()[:, :, 0].abs().argmax(0)] == [6, 8]
    assert layer.lengths_after(torch.tensor([2, 4])).tolist() == [8, 10]  # type: ignore[union-attr]
    short = layer(x, lengths=torch.tensor([0, 4]))[0]
    assert float(short.detach()[:, 0].abs().max()) == 0
    net = Sequential(layer, SynapticDelay(1, 2, 6, tail=3))
    assert net.lengths_after(torch.tensor([2, 4])).tolist() == [11, 13]  # type: ignore[union-attr]
    assert net(x, lengths=torch.tensor([2, 4]))[0].shape[0] == 13


def test_a_delay_longer_than_the_sequence_is_carried_to_the_next_chunk() -> None:
    layer = SynapticDelay(1, 1, 50, start=40.0).eval()
    x = impulse(60, dtype=torch.float32)
    whole, _ = layer(x)
    first, state = layer(x[:3])
    rest, _ = layer(x[3:], state)
    assert float(first.detach().abs().max()) == 0 and int(whole.detach().flatten().abs().argmax()) == 40
    assert torch.equal(torch.cat([first, rest]), whole)


def test_delayed_convolution_shifts_every_kernel_weight_by_its_own_delay() -> None:
    torch.manual_seed(8)
    layer = DelayedConv2d(2, 3, 3, max_delay=4, padding=1, interpolation="linear").double().eval()
    x = torch.rand(9, 2, 2, 5, 4, dtype=torch.float64)
    y, _ = layer(x)
    padded = torch.nn.functional.pad(
        torch.cat([torch.zeros(4, 2, 2, 5, 4, dtype=torch.float64), x]), (1, 1, 1, 1)
    )
    want = torch.zeros_like(y)
    for o in range(3):
        for c in range(2):
            for i in range(3):
                for j in range(3):
                    d = round(layer.delays.delay[o, c, i, j].item())
                    w = layer.weight[o, c, i, j]
                    want[:, :, o] += w * padded[4 - d : 13 - d, :, c, i : i + 5, j : j + 4]
    assert_near(y.detach(), want.detach(), 1e-12, "delayed convolution")


def test_delays_have_a_parameter_group_of_their_own_that_does_not_decay() -> None:
    layer = SynapticDelay(4, 4, 8)
    groups = {
        g["name"]: g for g in parameter_groups(layer, lr=0.1, weight_decay=0.1, multipliers={"delays": 20.0})
    }
    assert groups["delays"]["params"] == [layer.delays.delay]
    assert groups["delays"]["weight_decay"] == 0 and groups["delays"]["lr"] == pytest.approx(2.0)
    assert groups["weights"]["weight_decay"] == 0.1


def test_a_copy_knows_its_delays() -> None:
    """A deep copy of a parameter forgets its attributes; the word of its module stays."""
    from spiketide.energy import connections

    layer = copy.deepcopy(SynapticDelay(3, 4, 8, start=8.0)).eval()
    assert [g["name"] for g in parameter_groups(layer, lr=0.1)] == ["weights", "delays"]
    x = torch.zeros(20, 1, 3)
    x[2, 0, 1] = x[15, 0, 2] = 0.7  # the second arrives after the end
    assert connections(layer, x) == 4.0


@pytest.mark.parametrize("lengths", [None, [9, 4, 0]])
@pytest.mark.parametrize("tail", [0, 2, 7])
def test_the_state_is_the_last_frames_the_tail_among_them(tail: int, lengths: list[int] | None) -> None:
    x = torch.rand(9, 3, 2)
    ends = torch.tensor([9, 9, 9] if lengths is None else lengths)
    for max_delay in (0, 3, 8, 14):
        layer = SynapticDelay(2, 2, max_delay, width=1.0, tail=tail)
        _, (state,) = layer(x, lengths=None if lengths is None else ends)
        for b, end in enumerate(ends.tolist()):
            frames = torch.cat([torch.zeros(max_delay, 2), x[:end, b], torch.zeros(tail, 2)])
            assert torch.equal(state[b], frames[frames.shape[0] - max_delay :])


def test_delays_outside_their_range_act_as_the_border_and_are_put_back() -> None:
    layer = SynapticDelay(2, 2, 8)
    with torch.no_grad():
        layer.delays.delay[0, 0] = 100.0
        layer.delays.delay[1, 1] = -3.0
    assert layer.kernel().shape == (2, 2, 9)
    layer(torch.rand(12, 1, 2))[0].sum().backward()
    assert bool(torch.isfinite(layer.delays.delay.grad).all())  # type: ignore[arg-type]
    clamp_delays(nn.Sequential(layer))
    assert layer.delays.delay[0, 0].item() == 8.0 and layer.delays.delay[1, 1].item() == 0.0


def test_recurrence_over_delays_is_the_written_out_loop() -> None:
    """s[t] = step(x[t] + sum over i of w_oi s_i[t - 1 - d_oi])."""
    torch.manual_seed(9)
    neuron, synapse = (
        LIF(5, tau_mem=5.0, threshold=0.4),
        SynapticDelay(5, 5, 3, interpolation="none", learn=False),
    )
    layer = Recurrent(neuron, synapse).eval()
    x = torch.rand(25, 2, 5) * 0.3
    y, _ = layer(x)
    assert 0.02 < y.detach().mean().item() < 0.9
    delays, weight = synapse.delays.delay.squeeze(-1).long(), synapse.weight.detach().squeeze(-1)
    spikes: list[Tensor] = []
    state = None
    for t in range(25):
        current = x[t].clone()
        for o in range(5):
            for i in range(5):
                past = t - 1 - int(delays[o, i])
                if past >= 0:
                    current[:, o] += weight[o, i] * spikes[past][:, i]
        s, state = neuron(current.unsqueeze(0), state)
        spikes.append(s[0].detach())
    differing = (torch.stack(spikes) != y).float().mean()
    assert differing.item() == 0.0


def test_axonal_delays_before_a_linear_layer_are_synaptic_delays_of_equal_rows() -> None:
    torch.manual_seed(10)
    axonal, dense = AxonalDelay(4, 7, width=1.5).double(), Dense(4, 3, bias=False).double()
    synaptic = SynapticDelay(4, 3, 7, width=1.5).double()
    with torch.no_grad():
        synaptic.weight.copy_(dense.weight.unsqueeze(-1))
        synaptic.delays.delay.copy_(axonal.delays.delay.reshape(1, 4, 1).expand(3, 4, 1))
    x = torch.rand(20, 2, 4, dtype=torch.float64)
    for mode in (True, False):
        a = Sequential(axonal, dense).train(mode)(x)[0]
        assert_near(a.detach(), synaptic.train(mode)(x)[0].detach(), 1e-12, "axonal")


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor"
)  # of torch.compile, where a graph breaks
@pytest.mark.parametrize("width", [6.0, 0.23])
def test_it_works_inside_a_compiled_model_and_under_autocast(width: float) -> None:
    torch.manual_seed(13)
    layer = SynapticDelay(6, 5, 12, width=width)
    x = torch.rand(20, 3, 6)
    want = layer(x)[0]
    grads = torch.autograd.grad(want.square().sum(), tuple(layer.parameters()))
    compiled = torch.compile(lambda x: layer(x)[0], backend="aot_eager")
    got = compiled(x)
    assert_near(got.detach(), want.detach(), 1e-5, "compiled")
    for a, b in zip(torch.autograd.grad(got.square().sum(), tuple(layer.parameters())), grads, strict=True):
        assert_near(a, b, 1e-4, "compiled: gradient")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = layer(x)[0]
    assert half.dtype == torch.bfloat16
    assert_near(half.detach().float(), want.detach(), 2e-2, "autocast")


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_delay": -1}, "max_delay to be steps >= 0"),
        ({"max_delay": 2.5}, "max_delay to be steps >= 0"),
        ({"interpolation": "cubic"}, "cubic"),
        ({"interpolation": "none"}, "no gradient"),
        ({"width": -1.0}, "width >= 0"),
        ({"width": float("nan")}, "width >= 0"),
        ({"offset": 0.0}, "offset"),
        ({"start": -2.0}, "from 0 to max_delay = 8"),
        ({"start": 9.0}, "from 0 to max_delay = 8"),
        ({"start": float("nan")}, "from 0 to max_delay = 8"),
        ({"start": torch.zeros(3)}, "shape"),
        ({"kernel_count": 0}, "kernel_count"),
        ({"fan_in": 5}, "at most n_in = 4"),
        ({"density": 0.0}, "density"),
        ({"fan_in": 2, "density": 0.5}, "got both"),
        ({"tail": -1}, "tail"),
    ],
)
def test_bad_arguments_are_refused_by_name(arguments: dict, message: str) -> None:
    with pytest.raises(errors.ParameterError, match=message):
        SynapticDelay(4, 2, **{"max_delay": 8, **arguments})


def test_a_tail_in_recurrence_is_refused() -> None:
    with pytest.raises(errors.ParameterError, match="tail=0"):
        Recurrent(LIF(4), Sequential(AxonalDelay(4, 6, tail=2), Dense(4, 4)))


def test_rates_of_layers_in_front_of_tails_count_their_own_steps() -> None:
    from spiketide import Batch, LeakyIntegrator
    from spiketide.probe import mean_rates
    from spiketide.readouts import MeanMembrane
    from spiketide.training import Classification

    torch.manual_seed(14)
    network = [
        SynapticDelay(3, 4, 4, tail=2),
        LIF(4, threshold=1e-6),
        SynapticDelay(4, 2, 4, tail=5),
        LeakyIntegrator(2),
    ]
    model = Classification(network, MeanMembrane()).eval()
    with torch.no_grad():
        model.network[0].weight.abs_()
    x = torch.rand(6, 3, 3) + 0.5
    lengths = torch.tensor([6, 4, 1])
    output = model(Batch(x, torch.zeros(3, dtype=torch.int64), lengths))
    (spikes,) = output.spikes.values()
    assert output.lengths is not None and output.lengths.tolist() == [13, 11, 8]
    steps = output.lengths_of(spikes)
    assert steps is not None and steps.tolist() == [8, 6, 3]
    rates, _ = mean_rates({"a": spikes}, {"a": steps})
    assert rates["a"].item() == pytest.approx(spikes.detach().sum().item() / (17 * 4))
    assert 0 < rates["a"].item() <= 1


def test_nan_delays_and_foreign_states_are_refused() -> None:
    layer = SynapticDelay(2, 2, 8)
    with pytest.raises(errors.ShapeError, match="another batch"):
        layer(torch.rand(3, 2, 2), layer.initial_state(torch.rand(3, 4, 2)))
    with torch.no_grad():
        layer.delays.delay[0, 0] = float("nan")
    with pytest.raises(errors.NonFiniteError, match="learning rate of the delays"):
        layer(torch.rand(3, 2, 2))


@pytest.mark.parametrize("arguments", [{"final": 0.0}, {"share": 0.0}, {"share": 1.5}])
def test_a_schedule_that_makes_no_sense_is_refused(arguments: dict) -> None:
    with pytest.raises(errors.ParameterError):
        DelayAnneal(**arguments)
