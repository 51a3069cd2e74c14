"""The exact rule against finite differences: how a spike moves when an input or a weight does."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from spiketide.timing import PSP, Ramp, RampUpDown, ReL, SpikeProp, TimingLinear

STOP = 64.0
CASES = {"A": Ramp(9.0), "B": RampUpDown(6.0, 31.0), "line": ReL(40.0)}
kernels = pytest.mark.parametrize("psp", CASES.values(), ids=CASES)

SAMPLES, N_IN, N_OUT = 12, 14, 10


def layer_and_times(psp: PSP) -> tuple[TimingLinear, Tensor]:
    random = torch.Generator().manual_seed(3)
    layer = TimingLinear(
        N_IN, N_OUT, psp=psp, stop=STOP, exact=True, rule=SpikeProp(slope_limit=1e6)
    ).double()
    layer.set_weight(torch.randn(N_OUT, N_IN, generator=random, dtype=torch.float64) * 0.5 + 0.2)
    times = torch.rand(SAMPLES, N_IN, generator=random, dtype=torch.float64) * 60
    times[torch.rand(times.shape, generator=random) < 0.1] = math.inf
    return layer, times


def inside(psp: PSP, times: Tensor, fired: Tensor, w: Tensor) -> Tensor:
    """Neurons that fire strictly inside a segment, and not so flat that a second order matters: ``(B, n_out)``."""
    shape = psp.shape
    delays = [0.0, shape.rise] if shape.plateau else [0.0]
    delays += [] if math.isinf(shape.fall) else [shape.fall]
    kinks = torch.cat([times + delay for delay in delays], 1)
    kinks = torch.where(torch.isfinite(kinks), kinks, 1e9)
    away = (fired.unsqueeze(2) - kinks.unsqueeze(1)).abs().amin(2)
    slope = (w * psp.slope(fired.unsqueeze(2) - times.unsqueeze(1))).sum(2)
    return torch.isfinite(fired) & (away > 1e-3) & (slope > 1e-2)


@kernels
def test_derivatives_equal_finite_differences(psp: PSP) -> None:
    layer, times = layer_and_times(psp)
    w = layer.effective_weight().detach()
    with torch.no_grad():
        fired = layer(times)
    good = inside(psp, times, fired, w)
    assert 30 < int(good.sum()) < good.numel()
    h = 1e-5

    def moved(times: Tensor, w: Tensor, j: int) -> float:
        with torch.no_grad():
            layer.set_weight(w)
            return float(layer(times)[0, j])

    cases = moving = falling = 0
    for b, j in good.nonzero().tolist()[:40]:
        layer.set_weight(w)
        layer.zero_grad()
        t = times[b : b + 1].clone().requires_grad_()
        layer(t)[0, j].backward()
        assert t.grad is not None and layer.weight.grad is not None
        by_time, by_weight = t.grad[0].clone(), layer.weight.grad[j].clone()
        assert not layer.weight.grad[torch.arange(N_OUT) != j].any()
        for i in range(N_IN):
            if torch.isinf(times[b, i]):
                assert by_time[i] == 0 and by_weight[i] == 0
                continue
            step = torch.zeros(1, N_IN, dtype=torch.float64)
            step[0, i] = h
            one = times[b : b + 1]
            numeric = (moved(one + step, w, j) - moved(one - step, w, j)) / (2 * h)
            assert abs(numeric - by_time[i]) <= 1e-6 * max(1.0, abs(numeric))
            other = torch.zeros_like(w)
            other[j, i] = h
            numeric = (moved(one, w + other, j) - moved(one, w - other, j)) / (2 * h)
            assert abs(numeric - by_weight[i]) <= 1e-6 * max(1.0, abs(numeric))
            cases += by_weight[i] != 0
            moving += by_time[i] != 0
            falling += bool(psp.slope(fired[b, j] - times[b, i]) < 0)
    assert cases > 100 and moving > 50
    assert falling > 20 or not isinstance(psp, RampUpDown)


@kernels
def test_moving_all_inputs_moves_the_output_as_far(psp: PSP) -> None:
    layer, times = layer_and_times(psp)
    w = layer.effective_weight().detach()
    times.requires_grad_()
    fired = layer(times)
    good = inside(psp, times.detach(), fired.detach(), w)
    checked = 0
    for j in range(N_OUT):
        (a,) = torch.autograd.grad(
            fired[:, j], times, torch.ones(SAMPLES, dtype=torch.float64), retain_graph=True
        )
        total = a.sum(1)
        assert not total[torch.isinf(fired[:, j])].any()
        mine = good[:, j]
        assert float((total[mine] - 1).abs().amax() if mine.any() else 0) < 1e-12
        assert bool((a[mine] < 0).any()) or not mine.any()  # a weighted average with weights of both signs
        checked += int(mine.sum())
    assert checked > 30
