"""Classical layers: their equations in plain loops, lengths, and sizes for a number of parameters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from spiketide.baselines import BASELINES, GRU, LSTM, RNN, parameter_count, size_for
from spiketide.errors import ParameterError, ShapeError


def parts(layer: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    cell = layer.cell
    zeros = torch.zeros(layer.gates * layer.n, dtype=torch.float64)
    biases = (cell.bias_ih_l0, cell.bias_hh_l0) if layer.bias else (zeros, zeros)
    return (cell.weight_ih_l0, cell.weight_hh_l0, *biases)


def lstm(layer: Any, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    w, u, b, d = parts(layer)
    h = c = x.new_zeros(x.shape[1], layer.n)
    out = []
    for step in x:
        i, f, g, o = (step @ w.t() + b + h @ u.t() + d).chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        out.append(h)
    return torch.stack(out), (h, c)


def gru(layer: Any, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    w, u, b, d = parts(layer)
    h = x.new_zeros(x.shape[1], layer.n)
    out = []
    for step in x:
        (ri, zi, gi), (rh, zh, gh) = (step @ w.t() + b).chunk(3, -1), (h @ u.t() + d).chunk(3, -1)
        r, z = (ri + rh).sigmoid(), (zi + zh).sigmoid()
        h = (1 - z) * (gi + r * gh).tanh() + z * h
        out.append(h)
    return torch.stack(out), (h,)


def rnn(layer: Any, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    w, u, b, d = parts(layer)
    h = x.new_zeros(x.shape[1], layer.n)
    out = []
    for step in x:
        h = (step @ w.t() + b + h @ u.t() + d).tanh()
        out.append(h)
    return torch.stack(out), (h,)


LOOPS = [(LSTM, lstm), (GRU, gru), (RNN, rnn)]


@pytest.mark.parametrize(("kind", "loop"), LOOPS)
@pytest.mark.parametrize("bias", [True, False])
def test_the_equations(kind: Any, loop: Any, bias: bool) -> None:
    layer = kind(3, 5, bias=bias).double()
    x = torch.randn(9, 4, 3, dtype=torch.float64)
    y, state = layer(x)
    want, end = loop(layer, x)
    torch.testing.assert_close(y, want, rtol=1e-12, atol=1e-12)
    for a, b in zip(state, end, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    lengths = torch.tensor([9, 0, 4, 1])
    y, state = layer(x, lengths=lengths)
    for k, steps in enumerate(lengths.tolist()):
        if steps:
            want, end = loop(layer, x[:steps, k : k + 1])
            torch.testing.assert_close(y[:steps, k : k + 1], want, rtol=1e-12, atol=1e-12)
        else:
            end = tuple(torch.zeros(1, 5, dtype=torch.float64) for _ in state)
        assert not bool(y[steps:, k].any())
        for a, b in zip(state, end, strict=True):
            torch.testing.assert_close(a[k : k + 1], b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", BASELINES)
@pytest.mark.parametrize("bias", [True, False])
def test_parameters_are_counted(kind: str, bias: bool) -> None:
    layer = BASELINES[kind](7, 5, bias=bias)
    readout = torch.nn.Linear(5, 3, bias=bias)
    want = sum(p.numel() for p in (*layer.parameters(), *readout.parameters()))
    assert parameter_count(kind, 7, 5, n_out=3, bias=bias) == want
    assert parameter_count(kind, 7, 5, bias=bias) == sum(p.numel() for p in layer.parameters())


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(sorted(BASELINES)),
    st.integers(1, 200),
    st.integers(1, 30_000),
    st.integers(0, 40),
    st.booleans(),
)
def test_no_other_size_is_nearer(kind: str, n_in: int, parameters: int, n_out: int, bias: bool) -> None:
    n = size_for(kind, n_in, parameters, n_out=n_out, bias=bias)
    sizes = range(1, 200)  # one gate of 200 units has 40,000 weights of feedback alone
    off = [abs(parameter_count(kind, n_in, k, n_out=n_out, bias=bias) - parameters) for k in sizes]
    assert n == 1 + off.index(min(off))


def test_a_size_comes_back_from_its_own_count() -> None:
    for n in (1, 36, 512, 4097):
        assert size_for("lstm", 40, parameter_count("lstm", 40, n, n_out=10), n_out=10) == n


def test_refusals() -> None:
    with pytest.raises(ParameterError, match="did you mean 'lstm'"):
        size_for("lsmt", 4, 100)
    with pytest.raises(ParameterError, match="parameters to be a positive"):
        size_for("gru", 4, 0)
    with pytest.raises(ParameterError, match="GRU expected n "):
        GRU(4, 0)
    with pytest.raises(ShapeError, match="4 features a step, got 5"):
        LSTM(4, 2)(torch.zeros(3, 2, 5))
    with pytest.raises(ShapeError, match="state of 2 tensors"):
        LSTM(4, 2)(torch.zeros(3, 2, 4), (torch.zeros(2, 2),))
