"""The convolution that costs what its spikes cost: both ways agree, whatever the geometry, the density and the threads."""

from __future__ import annotations

import numba
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from spiketide.errors import EngineError
from spiketide.kernels import projection
from spiketide.kernels.convolution import Geometry, convolve


def both(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> list[list[Tensor]]:
    """Output and gradients of the dense and of the event way."""
    found = []
    for engine in ("dense", "event"):
        operands = [t.clone().requires_grad_() for t in (x, weight, bias) if t is not None]
        y = convolve(*operands[:2], operands[2] if bias is not None else None, geometry, engine=engine)
        assert projection.last_engine() == engine
        cotangent = torch.sin(torch.arange(y.numel(), dtype=y.dtype)).view(y.shape)
        found.append([y.detach(), *torch.autograd.grad((y * cotangent).sum(), operands)])
    return found


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_both_ways_agree(data: st.DataObject) -> None:
    axes = data.draw(st.integers(0, 2))
    steps, batch = data.draw(st.integers(4, 9)), data.draw(st.integers(1, 3))
    c_in, c_out = data.draw(st.sampled_from([(1, 1), (3, 5), (66, 17)]))
    taps, dilation = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 2))
    kernel = tuple(data.draw(st.integers(1, 3)) for _ in range(axes))
    reach = (taps - 1) * dilation
    geometry = Geometry(
        dilation,
        data.draw(st.integers(0, reach)),
        data.draw(st.integers(0, reach)),
        tuple(data.draw(st.integers(1, 2)) for _ in range(axes)),
        tuple(data.draw(st.integers(1, 2)) for _ in range(axes)),
        tuple(data.draw(st.integers(0, 2)) for _ in range(axes)),
    )
    steps += reach
    density = data.draw(st.sampled_from([0.0, 0.1, 0.6]))
    torch.manual_seed(data.draw(st.integers(0, 99)))
    size = (6, 5)[:axes]
    x = (torch.rand(steps, batch, *size, c_in) < density).double()
    if data.draw(st.booleans()):
        x = x * torch.randn_like(x)
    weight = torch.randn(c_out, c_in, taps, *kernel, dtype=torch.float64)
    bias = torch.randn(c_out, dtype=torch.float64) if data.draw(st.booleans()) else None
    for want, got in zip(*both(x, weight, bias, geometry), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-11)


def test_the_result_does_not_depend_on_the_number_of_threads() -> None:
    torch.manual_seed(0)
    x = (torch.rand(20, 8, 10, 32) < 0.1).float()
    weight = torch.randn(64, 32, 3, 3)
    geometry = Geometry(2, 4, 0, (1,), (1,), (1,))
    before, outcomes = numba.get_num_threads(), []
    try:
        for threads in {1, before}:
            numba.set_num_threads(threads)
            outcomes.append(both(x, weight, None, geometry)[1])
    finally:
        numba.set_num_threads(before)
    for a, b in zip(outcomes[0], outcomes[-1], strict=True):
        assert torch.equal(a, b)


def test_few_spikes_take_the_event_way_and_many_do_not() -> None:
    torch.manual_seed(0)
    geometry, weight = Geometry(1, 3, 0, (1,), (1,), (1,)), torch.randn(64, 64, 4, 3)
    for density, engine in ((0.03, "event"), (0.9, "dense")):
        convolve((torch.rand(40, 16, 20, 64) < density).float(), weight, None, geometry)
        assert projection.last_engine() == engine
    convolve(torch.rand(40, 16, 20, 64), weight, None, geometry)
    assert projection.last_engine() == "dense"


def test_only_what_is_asked_for_has_a_gradient() -> None:
    x = (torch.rand(6, 2, 3) < 0.5).double()
    weight = torch.randn(4, 3, 2, dtype=torch.float64, requires_grad=True)
    y = convolve(x, weight, None, Geometry(before=1), engine="event")
    y.sum().backward()
    assert weight.grad is not None and x.grad is None
    bias = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    convolve(x, weight.detach(), bias, Geometry(before=1), engine="event").sum().backward()
    torch.testing.assert_close(bias.grad, torch.full((4,), 12.0, dtype=torch.float64))


def test_it_says_where_it_cannot_run() -> None:
    x, weight = torch.zeros(4, 1, 2), torch.zeros(2, 1, 2)
    with pytest.raises(EngineError, match="it has groups"):
        convolve(x, weight, None, Geometry(before=1), groups=2, engine="event")
    with pytest.raises(EngineError, match="engine of a convolution"):
        convolve(x, weight, engine="sparse")
    with pytest.raises(EngineError, match="float16"):
        convolve(x.half(), torch.zeros(2, 2, 2).half(), engine="event")
