"""The recurrent product: row by row or in one pass, the same bits; the matrix gradient on both sides of its switch."""

from __future__ import annotations

import pytest
import torch

from spiketide import LIF, LeakyIntegrator
from spiketide.kernels import projection
from spiketide.scan import recurrent


@pytest.mark.parametrize("batch, n", [(1, 5), (4, 32), (9, 37)])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_both_ways_give_the_same_bits(monkeypatch, batch, n, scale):
    torch.manual_seed(0)
    lif, w = LIF(n, tau_mem=5.0), torch.randn(n, n)
    x = scale * torch.randn(20, batch, n)
    lengths = 20 - torch.arange(batch)
    outputs = []
    for most in (2.0, -1.0, recurrent.ROWS_UP_TO):
        monkeypatch.setattr(recurrent, "ROWS_UP_TO", most)
        y, end = lif(x, feedback=w, lengths=lengths)
        outputs.append((y, *end))
    assert 0.01 < float(outputs[0][0].mean()) < 0.6
    for other in outputs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(outputs[0], other, strict=True))


def test_graded_feedback_equals_the_reference():
    torch.manual_seed(0)
    w = (torch.randn(16, 16) / 16).requires_grad_()
    x = torch.randn(12, 3, 16)
    grads = []
    for engine in ("cpu", "reference"):
        y, _ = LeakyIntegrator(16, tau_mem=3.0, engine=engine)(x, feedback=w)
        grads.append((y, *torch.autograd.grad(y.square().sum(), w)))
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rate, engine", [(0.03, "event"), (0.6, "dense")])
def test_matrix_gradient_on_both_sides_of_the_switch(rate, engine):
    torch.manual_seed(0)
    x = (torch.rand(6000, 256) < rate).float()
    g = torch.randn(6000, 256)
    out = projection.weight_gradient(x, g)
    assert projection.last_engine() == engine
    torch.testing.assert_close(out, g.t() @ x, rtol=1e-4, atol=1e-3)
