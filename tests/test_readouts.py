"""Read-outs: values by hand, padding, the score of every moment, gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spiketide.errors import DataError, ParameterError, ShapeError
from spiketide.readouts import (
    FirstSpike,
    LastMembrane,
    MaxMembrane,
    MeanMembrane,
    Readout,
    SpikeCount,
    SumSoftmax,
)

ALL = [
    SpikeCount(),
    SpikeCount(normalise=True),
    LastMembrane(),
    MeanMembrane(),
    MaxMembrane(),
    SumSoftmax(),
    SumSoftmax(skip=2),
    FirstSpike(),
    FirstSpike(normalise=True),
]
every = pytest.mark.parametrize("readout", ALL, ids=lambda r: type(r).__name__ + str(id(r))[-3:])


def shortest(readout: Readout) -> int:
    return getattr(readout, "skip", 0) + 1


def values(readout: Readout, *shape: int, seed: int = 0) -> torch.Tensor:
    y = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return y.sigmoid() if isinstance(readout, FirstSpike) else y


def test_every_class_is_covered() -> None:
    assert {type(readout) for readout in ALL} == set(Readout.__subclasses__())


Y = torch.tensor([[[0.0, 1.0]], [[1.0, 1.0]], [[0.0, 0.0]], [[1.0, 0.0]]])  # (4, 1, 2)


@pytest.mark.parametrize(
    ("readout", "whole", "two"),
    [
        (SpikeCount(), [2.0, 2.0], [1.0, 2.0]),
        (SpikeCount(normalise=True), [0.5, 0.5], [0.5, 1.0]),
        (LastMembrane(), [1.0, 0.0], [1.0, 1.0]),
        (MeanMembrane(), [0.5, 0.5], [0.5, 1.0]),
        (MaxMembrane(), [1.0, 1.0], [1.0, 1.0]),
        (SumSoftmax(), [2.0, 2.0], [0.5 + 1 / (1 + torch.e), 0.5 + torch.e / (1 + torch.e)]),
        (FirstSpike(), [3.0, 4.0], [1.0, 2.0]),
        (FirstSpike(normalise=True), [0.75, 1.0], [0.5, 1.0]),
    ],
)
def test_by_hand(readout: Readout, whole: list[float], two: list[float]) -> None:
    torch.testing.assert_close(readout(Y), torch.tensor([whole]))
    torch.testing.assert_close(readout(Y, torch.tensor([2])), torch.tensor([two]))


def test_first_spike_orders_and_silence() -> None:
    s = torch.zeros(5, 1, 3)
    s[3, 0, 0] = s[1:, 0, 1] = 1
    assert FirstSpike()(s).tolist() == [[2.0, 4.0, 0.0]]
    s[4, 0, 2] = 1  # in the padding: never fired
    assert FirstSpike()(s, torch.tensor([4])).tolist() == [[1.0, 3.0, 0.0]]


def test_max_of_negative_membranes_with_padding() -> None:
    y = torch.tensor([[[-3.0]], [[-2.0]], [[5.0]]])
    assert MaxMembrane()(y, torch.tensor([2])).item() == -2.0
    assert MaxMembrane().evolve(y, torch.tensor([2])).flatten().tolist() == [-3.0, -2.0, -2.0]


def test_skip() -> None:
    y = torch.zeros(4, 2, 2)
    y[0, :, 0] = 100.0  # would win if it had a vote
    assert SumSoftmax(skip=1)(y, torch.tensor([4, 2])).tolist() == [[1.5, 1.5], [0.5, 0.5]]
    assert SumSoftmax(skip=1).evolve(y)[:, 0, 0].tolist() == [0.0, 0.5, 1.0, 1.5]


@every
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_padded_equals_unpadded(readout: Readout, data: st.DataObject) -> None:
    samples = data.draw(st.integers(1, 4))
    low = shortest(readout)
    lengths = [data.draw(st.integers(low, low + 5)) for _ in range(samples)]
    steps = max(lengths) + data.draw(st.integers(0, 3))
    poison = data.draw(st.sampled_from([float("nan"), float("inf"), float("-inf"), 7.0]))
    y = values(readout, steps, samples, 3)
    for b, length in enumerate(lengths):
        y[length:, b] = poison
    got = readout(y, torch.tensor(lengths))
    moments = readout.evolve(y, torch.tensor(lengths))
    assert got.shape == (samples, 3) and moments.shape == y.shape
    torch.testing.assert_close(moments[-1], got)
    for b, length in enumerate(lengths):
        alone = y[:length, b : b + 1]
        torch.testing.assert_close(got[b : b + 1], readout(alone))
        torch.testing.assert_close(moments[:length, b : b + 1], readout.evolve(alone))
        assert torch.equal(moments[length:, b], moments[length - 1 : length, b].expand(steps - length, 3))


@every
def test_evolve_is_the_readout_of_the_past(readout: Readout) -> None:
    y = values(readout, 7, 2, 3)
    moments = readout.evolve(y)
    for t in range(shortest(readout) - 1, 7):
        torch.testing.assert_close(moments[t], readout(y[: t + 1]))
    assert not torch.equal(moments[2], moments[-1])


@every
def test_gradcheck(readout: Readout) -> None:
    y = values(readout, 5, 2, 3).requires_grad_()
    lengths = torch.tensor([5, 3])
    assert torch.autograd.gradcheck(readout, (y,))
    assert torch.autograd.gradcheck(lambda y: readout(y, lengths), (y,))
    assert torch.autograd.gradcheck(lambda y: readout.evolve(y, lengths), (y,))


@every
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_padding_gets_no_gradient(readout: Readout, poison: float) -> None:
    y = values(readout, 5, 2, 3)
    y[3:, 1] = poison
    y.requires_grad_()
    readout(y, torch.tensor([5, 3])).square().sum().backward()
    assert bool((y.grad[3:, 1] == 0).all()) and bool(y.grad.isfinite().all())
    assert float(y.grad.abs().sum()) > 0


def test_first_spike_gradient_on_spikes() -> None:
    s = torch.zeros(6, 1, 3, dtype=torch.float64)
    s[2, 0, 0] = s[4, 0, 0] = s[0, 0, 1] = 1  # class 2 is silent
    s.requires_grad_()
    FirstSpike()(s).sum().backward()
    assert s.grad[:, 0, 0].tolist() == [2.0, 1.0, 2.0, 0.0, 0.0, 0.0]  # the first spike: until the next one
    assert s.grad[:, 0, 1].tolist() == [6.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    assert s.grad[:, 0, 2].tolist() == [6.0, 5.0, 4.0, 3.0, 2.0, 1.0]


@every
def test_int32_lengths(readout: Readout) -> None:
    y = values(readout, 6, 2, 3)
    assert torch.equal(readout(y, torch.tensor([6, 4], dtype=torch.int32)), readout(y, torch.tensor([6, 4])))


@every
def test_refuses(readout: Readout) -> None:
    y = values(readout, 6, 2, 3)
    for call in (readout, readout.evolve):
        with pytest.raises(DataError, match=r"valid steps in every sample, got 0"):
            call(y, torch.tensor([6, 0]))
        with pytest.raises(DataError, match="got 0"):
            call(y[:0])
        with pytest.raises(ShapeError, match="from 0 to T = 6, got 6 to 7"):
            call(y, torch.tensor([6, 7]))
        with pytest.raises(ShapeError, match="lengths"):
            call(y, torch.tensor([6, 6, 6]))
        with pytest.raises(ShapeError, match="integers"):
            call(y, torch.tensor([6.0, 6.0]))
        with pytest.raises(ShapeError, match=r"\(T, B, C\)"):
            call(y[0])
        with pytest.raises(ShapeError, match="flattened"):
            call(y.unsqueeze(-1))
        with pytest.raises(ShapeError, match="int64"):
            call(y.long())


def test_refuses_what_has_no_vote_or_is_no_spike() -> None:
    with pytest.raises(DataError, match=r"at least 3 valid steps.*got 2.*skip"):
        SumSoftmax(skip=2)(torch.zeros(5, 2, 3), torch.tensor([5, 2]))
    with pytest.raises(ParameterError, match="skip"):
        SumSoftmax(skip=-1)
    for bad in (-0.5, 1.5, float("nan")):
        with pytest.raises(DataError, match="spikes in"):
            FirstSpike()(torch.full((2, 1, 1), bad))
