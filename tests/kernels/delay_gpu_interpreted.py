"""The GPU kernels of delays in Triton's interpreter, against the convolution.

Not collected by itself: ``TRITON_INTERPRET=1`` must be set before Triton is imported, so ``test_delay_gpu.py`` runs this file in a
process of its own.
"""

from __future__ import annotations

import pytest
import torch
from helpers import assert_near

from spiketide.kernels import delay


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("taps", [1, 2, 4])
@pytest.mark.parametrize(
    ("size", "silent"),
    [((9, 2, 5, 6, 1), (0, 0)), ((35, 1, 2, 34, 2), (5, 0)), ((12, 3, 3, 4, 1), (6, 3))],
)
def test_outputs_and_gradients_are_those_of_the_convolution(
    size: tuple[int, ...], silent: tuple[int, int], taps: int, dtype: torch.dtype
) -> None:
    steps, batch, n_in, n_out, copies = size
    places = taps + 4
    torch.manual_seed(taps)
    given = steps + places - 1 - sum(silent)
    x = torch.randn(given, batch, n_in, dtype=dtype, requires_grad=True)
    w = torch.randn(n_out, n_in, copies, taps, dtype=dtype, requires_grad=True)
    first = torch.randint(0, places - taps + 1, (n_out, n_in, copies))
    before, after = (x.new_zeros(n, batch, n_in) for n in silent)
    truth = delay.reference(torch.cat([before, x, after]), delay.scatter(w, first, places))
    cotangent = torch.randn_like(truth)
    want = (truth.detach(), *torch.autograd.grad(truth, (x, w), cotangent))
    y = delay.few(x, w, first, places, silent, engine="gpu")
    got = (y.detach(), *torch.autograd.grad(y, (x, w), cotangent))
    for what, a, b in zip(("output", "input gradient", "tap gradient"), got, want, strict=True):
        assert_near(a.contiguous(), b.contiguous(), 2e-6 if dtype == torch.float32 else 1e-13, what)
