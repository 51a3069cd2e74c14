"""Cross-entropy on scores, and penalties on recorded spikes."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spiketide.errors import DataError, ParameterError, ShapeError
from spiketide.losses import Activity, CrossEntropy, Regulariser, Silence, SpikeRate
from spiketide.neurons import LIF, LeakyIntegrator
from spiketide.probe import Records
from spiketide.readouts import SumSoftmax

PENALTIES = [
    SpikeRate(target=0.3, weight=2.0),
    SpikeRate(target=0.3, weight=2.0, per="layer"),
    Silence(minimum=0.6, weight=2.0),
    Activity(weight=2.0),
    Activity(weight=2.0, by_depth=True),
]
every = pytest.mark.parametrize("penalty", PENALTIES, ids=lambda p: type(p).__name__)


def graded(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_every_class_is_covered() -> None:
    assert {type(penalty) for penalty in PENALTIES} == set(Regulariser.__subclasses__())


def test_cross_entropy_by_hand() -> None:
    scores = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]])
    y = torch.tensor([0, 1])
    assert CrossEntropy()(scores, y).item() == pytest.approx((math.log(4 / 3) + math.log(2)) / 2)
    smooth = -(0.9 * math.log(0.75) + 0.1 * math.log(0.25)) / 2 + math.log(2) / 2
    assert CrossEntropy(label_smoothing=0.2)(scores, y).item() == pytest.approx(smooth)


def test_cross_entropy_on_sum_of_softmaxes_is_the_double_softmax() -> None:
    o, y = torch.randn(6, 4, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0])
    z = sum(torch.softmax(o[t], dim=1) for t in range(6))
    published = -(z.exp() / z.exp().sum(1, keepdim=True))[torch.arange(4), y].log().mean()
    torch.testing.assert_close(CrossEntropy()(SumSoftmax()(o), y), published)


def test_cross_entropy_gradcheck() -> None:
    y = torch.tensor([0, 2])
    for smoothing in (0.0, 0.1):
        loss = CrossEntropy(label_smoothing=smoothing)
        assert torch.autograd.gradcheck(lambda s, loss=loss: loss(s, y), (graded(2, 3).requires_grad_(),))


def test_cross_entropy_refuses() -> None:
    loss = CrossEntropy()
    scores, y = torch.zeros(2, 3), torch.tensor([0, 2])
    with pytest.raises(ShapeError, match="read-out"):
        loss(torch.zeros(5, 2, 3), y)
    with pytest.raises(ShapeError, match="labels"):
        loss(scores, torch.tensor([0]))
    with pytest.raises(ShapeError, match="int64"):
        loss(scores, y.float())
    with pytest.raises(DataError, match="from 0 to 2, got 0 to 3"):
        loss(scores, torch.tensor([0, 3]))
    with pytest.raises(DataError, match="got -1"):
        loss(scores, torch.tensor([-1, 0]))
    with pytest.raises(ParameterError, match="label_smoothing"):
        CrossEntropy(label_smoothing=1.0)


# Two neurons, T = 4, two samples of 4 and 2 valid steps (K = 6): neuron 0 fires in 3 of 6, neuron 1 never.
S = torch.zeros(4, 2, 2, dtype=torch.float64)
S[0, :, 0] = S[3, 0, 0] = 1
S[2:, 1] = 1  # padding
LENGTHS = torch.tensor([4, 2])


@pytest.mark.parametrize(
    ("penalty", "value"),
    [
        (SpikeRate(target=0.3, weight=2.0), 2 * (0.2**2 + 0) / 2),
        (SpikeRate(target=0.2, weight=2.0, per="layer"), 2 * 0.05**2),
        (SpikeRate(target=0.3, weight=2.0, per="layer"), 0.0),
        (Silence(minimum=0.6, weight=2.0), 2 * (0.1**2 + 0.6**2) / 2),
        (Silence(minimum=0.4, weight=1.0), 0.4**2 / 2),
        (Activity(weight=2.0), 2 * 0.5 * 3 / 12),
    ],
)
def test_by_hand(penalty: Regulariser, value: float) -> None:
    assert penalty({"hidden": S}, LENGTHS).item() == pytest.approx(value)
    assert penalty({"a": S, "b": S}, LENGTHS).item() == pytest.approx(2 * value)  # layers add up


def test_activity_by_depth_and_gradient() -> None:
    layers = {f"{i}": torch.ones(2, 1, 2, requires_grad=True) for i in range(4)}
    loss = Activity(weight=0.1, by_depth=True)(layers)
    assert loss.item() == pytest.approx(0.1 * 0.5 * (1 + 2 + 3 + 4) / 4)
    loss.backward()
    assert torch.allclose(layers["0"].grad, torch.full((2, 1, 2), 0.1 * 0.25 / 4))
    assert torch.allclose(layers["3"].grad, torch.full((2, 1, 2), 0.1 * 1.0 / 4))
    s = torch.tensor([[[1.0, 0.0]]], requires_grad=True)
    Activity(weight=1.0)({"0": s}).backward()
    assert s.grad.tolist() == [[[0.5, 0.0]]]  # a neuron that did not fire is not pushed


def test_silence_pushes_only_the_silent() -> None:
    s = S.clone().requires_grad_()
    Silence(minimum=0.4, weight=1.0)({"0": s}, LENGTHS).backward()
    assert bool((s.grad[:, 0, 1] < 0).all()) and bool((s.grad[:2, 1, 1] < 0).all())
    assert bool((s.grad[..., 0] == 0).all()) and bool((s.grad[2:, 1] == 0).all())


@every
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_padding_changes_nothing(penalty: Regulariser, data: st.DataObject) -> None:
    lengths = [data.draw(st.integers(0, 5)) for _ in range(data.draw(st.integers(1, 3)))]
    if sum(lengths) == 0:
        return
    steps = max(lengths) + data.draw(st.integers(0, 2))
    s = graded(steps, len(lengths), 2, 3)
    for b, length in enumerate(lengths):
        s[length:, b] = float("nan")
    row = torch.cat([s[:length, b] for b, length in enumerate(lengths)]).unsqueeze(1)  # one long sample
    got = penalty({"0": s}, torch.tensor(lengths))
    torch.testing.assert_close(got, penalty({"0": row}))


@every
def test_gradcheck(penalty: Regulariser) -> None:
    s = graded(4, 2, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: penalty({"a": s, "b": s.square()}, LENGTHS), (s,))


@every
def test_only_spiking_records_count(penalty: Regulariser) -> None:
    records = Records()
    records["hidden"], records["out"] = S, 100 * S
    records.modules.update(hidden=LIF(2), out=LeakyIntegrator(2))
    assert penalty(records, LENGTHS).item() == penalty({"hidden": S}, LENGTHS).item()
    with pytest.raises(DataError, match="record"):
        penalty({})


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SpikeRate(target=1.5, weight=1.0), "target"),
        (lambda: SpikeRate(target=0.1, weight=-1.0), "weight"),
        (lambda: SpikeRate(target=0.1, weight=float("nan")), "weight"),
        (lambda: SpikeRate(target=0.1, weight=1.0, per="neurons"), "did you mean 'neuron'"),
        (lambda: Silence(minimum=0.0, weight=1.0), "minimum"),
        (lambda: Activity(weight=-0.1), "weight"),
    ],
)
def test_refuses_parameters(build, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        build()


@every
def test_refuses_lengths(penalty: Regulariser) -> None:
    with pytest.raises(DataError, match="all 0"):
        penalty({"0": S}, torch.tensor([0, 0]))
    with pytest.raises(ShapeError, match="from 0 to T = 4, got 0 to 5"):
        penalty({"0": S}, torch.tensor([5, 0]))
    with pytest.raises(ShapeError, match="lengths"):
        penalty({"0": S}, torch.tensor([4]))
    with pytest.raises(DataError, match="at least one step"):
        penalty({"0": S[:0]})
