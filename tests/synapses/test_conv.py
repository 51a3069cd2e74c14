"""Convolutions in space."""

import pytest
import torch
from torch.nn import functional

from spiketide.errors import ParameterError, ShapeError
from spiketide.synapses import Conv1d, Conv2d

T, B = 5, 3


@pytest.mark.parametrize(
    "how", [{}, {"stride": 2, "padding": 3}, {"dilation": 2, "groups": 2, "bias": False}]
)
def test_conv1d_convolves_every_step(how):
    conv = Conv1d(4, 6, 5, **how)
    x = torch.randn(T, B, 4, 20, generator=torch.Generator().manual_seed(0))
    y, state = conv(x)
    assert state == ()
    how = {k: v for k, v in how.items() if k != "bias"}
    for t in range(T):
        torch.testing.assert_close(y[t], functional.conv1d(x[t], conv.weight, conv.bias, **how))
    assert tuple(y.shape[3:]) == conv.output_size(20)


@pytest.mark.parametrize("how", [{}, {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2)}])
def test_conv2d_convolves_every_step(how):
    conv = Conv2d(2, 4, (3, 5), **how)
    x = torch.randn(T, B, 2, 12, 14, generator=torch.Generator().manual_seed(0), requires_grad=True)
    y, _ = conv(x)
    for t in range(T):
        torch.testing.assert_close(y[t], functional.conv2d(x[t], conv.weight, conv.bias, **how))
    assert tuple(y.shape[3:]) == conv.output_size(12, 14)
    y.square().sum().backward()
    assert float(x.grad.abs().sum()) > 0 and float(conv.weight.grad.abs().sum()) > 0


def test_silent_past_the_end_of_a_sample():
    conv = Conv2d(1, 2, 3, padding=1)
    x = torch.randn(T, B, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([5, 0, 2])
    y, _ = conv(x, lengths=lengths)
    want, _ = conv(x)
    for b, n in enumerate(lengths):
        assert torch.equal(y[:n, b], want[:n, b]) and not y[n:, b].any()
    assert (want != 0).any(-1).any(-1).all()


def test_initial_weights_are_uniform_up_to_the_root_of_fan_in():
    torch.manual_seed(0)
    for conv, fan_in in ((Conv1d(8, 64, 8, groups=2), 32), (Conv2d(4, 64, (4, 4)), 64)):
        for parameter in conv.parameters():
            assert 0.9 < float(parameter.detach().abs().max()) * fan_in**0.5 <= 1.0


def test_bad_arguments_are_refused():
    for arguments, how in (((0, 1, 3), {}), ((1, 1, 0), {}), ((1, 1, 3), {"stride": 0})):
        with pytest.raises(ParameterError, match="integer"):
            Conv1d(*arguments, **how)
    for how in ({"padding": -1}, {"dilation": (1, 2, 3)}, {"stride": 1.5}, {"groups": 0}):
        with pytest.raises(ParameterError, match="integer"):
            Conv2d(2, 2, 3, **how)
    with pytest.raises(ParameterError, match="divide"):
        Conv2d(3, 4, 3, groups=2)


def test_bad_inputs_are_refused():
    conv = Conv2d(2, 4, 5)
    with pytest.raises(ShapeError, match="time axis"):
        conv(torch.zeros(B, 2, 8, 8))
    with pytest.raises(ShapeError, match=r"3 channels on axis 2"):
        conv(torch.zeros(T, B, 3, 8, 8))
    with pytest.raises(ShapeError, match=r"x\.float"):
        conv(torch.zeros(T, B, 2, 8, 8, dtype=torch.uint8))
    with pytest.raises(ShapeError, match="pad more"):
        conv(torch.zeros(T, B, 2, 8, 4))
    with pytest.raises(ShapeError, match="lengths"):
        conv(torch.zeros(T, B, 2, 8, 8), lengths=torch.ones(B))
    with pytest.raises(ShapeError, match="state"):
        conv(torch.zeros(T, B, 2, 8, 8), (torch.zeros(B),))
