"""Gradients too small to matter are zero, the arithmetic around is not touched."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from spiketide import LIF, Dense, Recurrent
from spiketide.kernels import flush
from spiketide.kernels.flush import flush_tiny, restore_tiny
from spiketide.kernels.threading import kernel

TINY = 1.1754944e-38
"""The smallest normal number of float32."""


@kernel(parallel=False)
def _product(a, b, out):
    mode = flush_tiny()
    out[0] = a[0] * b[0]
    restore_tiny(mode)
    out[1] = a[1] * b[1]


@pytest.mark.skipif(not flush.KNOWN, reason="this processor is asked nothing")
def test_denormal_results_are_zero_inside_and_not_outside() -> None:
    out = np.ones(2, np.float32)
    _product(np.full(2, 1e-30, np.float32), np.full(2, 1e-9, np.float32), out)
    assert out[0] == 0.0 and 0.0 < out[1] < TINY


@pytest.mark.parametrize(
    "layer", [LIF(64, tau_mem=2.0), Recurrent(LIF(64, tau_mem=2.0), Dense(64, 64, bias=False))]
)
def test_the_gradient_from_long_ago_has_no_denormal_numbers(layer: torch.nn.Module) -> None:
    torch.manual_seed(0)
    if isinstance(layer, Recurrent):
        with torch.no_grad():
            layer.synapse.weight.mul_(0.01)
    x = torch.full((400, 16, 64), 0.01, requires_grad=True)
    _, state = layer(x)
    leaf: Tensor = state[0] if isinstance(layer, LIF) else state[0][0]
    leaf.sum().backward()
    size = x.grad.abs()
    assert float(size[-1].min()) > 0.1 and float(size[0].max()) < TINY
    if flush.KNOWN:
        assert not bool(((size > 0) & (size < TINY)).any())
    # what this thread computes afterwards has denormal numbers as before
    assert float(torch.tensor(1e-30) * torch.tensor(1e-9)) > 0
