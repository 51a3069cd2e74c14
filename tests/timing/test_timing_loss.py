"""Losses by hand, and decisions: ties, silence, refusals."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from spiketide.errors import DataError, ParameterError, ShapeError
from spiketide.kernels.first_spike import Fired
from spiketide.timing import (
    FixedSlope,
    Network,
    RelativeTargets,
    TimingCrossEntropy,
    TimingLinear,
    TimingLoss,
    decide,
    optimistic,
)

inf = math.inf
LAYER = TimingLinear(1, 3, stop=64.0)
LATE = TimingLinear(1, 3, psp=FixedSlope(100.0, 50.0), stop=150.0)


def displacements(
    loss: TimingLoss,
    times: list[list[float]],
    potential: list[list[float]],
    y: list[int],
    layer: TimingLinear = LAYER,
) -> tuple[Tensor, float]:
    """What each output is asked for, of a batch, and the value of the loss."""
    t = torch.tensor(times, dtype=torch.float64, requires_grad=True)
    v = torch.tensor(potential, dtype=torch.float64)
    value = loss(layer, Fired(t, v, v), torch.tensor(y))
    value.backward()
    assert t.grad is not None
    return -len(y) * t.grad, float(value.detach())


ABOVE = [[1.0, 1.0, 1.0]]


def test_relative_targets_by_hand() -> None:
    loss = RelativeTargets(8.0, normalise=False)
    # the right one is second: to the first; the first and one less than a margin behind it: to a margin behind it
    d, value = displacements(loss, [[10.0, 16.0, 40.0]], ABOVE, [1])
    assert (64 * d).tolist() == [[8.0, -6.0, 0.0]]
    assert value == pytest.approx(0.5 * (8**2 + 6**2) / 64**2)
    # the right one is first by more than a margin: nothing to learn
    d, value = displacements(loss, [[10.0, 18.0, 40.0]], ABOVE, [0])
    assert d.abs().sum() == 0 and value == 0
    # a tie: the right one stays, the other goes a margin back
    d, _ = displacements(loss, [[10.0, 10.0, 15.0]], ABOVE, [0])
    assert (64 * d).tolist() == [[0.0, 8.0, 3.0]]
    # two samples: the mean
    _, value = displacements(loss, [[10.0, 16.0, 40.0], [10.0, 18.0, 40.0]], ABOVE * 2, [1, 0])
    assert value == pytest.approx(0.5 * (8**2 + 6**2) / 64**2 / 2)


def test_relative_targets_of_silent_outputs_by_hand() -> None:
    loss = RelativeTargets(8.0, normalise=False)
    # potential 0.75 of the threshold at the end: 16 steps behind the end; below -1: no farther than two windows
    d, _ = displacements(loss, [[60.0, inf, inf]], [[1.0, 0.75, -5.0]], [1])
    assert (64 * d).tolist() == [[8.0, 60.0 - 80.0, 0.0]]
    # none fires: the right one a margin before the end, the others stay
    d, _ = displacements(loss, [[inf, inf, inf]], [[0.9, 0.5, 0.0]], [1])
    assert (64 * d).tolist() == [[0.0, (64 - 8) - (64 + 32), 0.0]]
    d, _ = displacements(loss, [[inf, inf, inf]], [[0.9, -7.0, 0.0]], [1])
    assert (64 * d).tolist() == [[0.0, (64 - 8) - (64 + 128), 0.0]]
    # without reach, silent ones fire at the end, as in S4NN
    d, _ = displacements(
        RelativeTargets(8.0, normalise=False, reach=0.0), [[inf, inf, inf]], [[0.9, 0.5, 0.0]], [1]
    )
    assert (64 * d).tolist() == [[0.0, -8.0, 0.0]]


def test_a_later_window_is_counted_from_its_beginning() -> None:
    loss = RelativeTargets(8.0, normalise=False)
    d, _ = displacements(loss, [[110.0, 116.0, inf]], [[1.0, 1.0, 0.5]], [2], LATE)
    assert (50 * d).tolist() == [[8.0, 2.0, 110.0 - (150 + 25)]]


def test_normalised_displacements_have_length_one_or_none() -> None:
    d, value = displacements(
        RelativeTargets(8.0), [[10.0, 16.0, 40.0], [10.0, 18.0, 40.0]], ABOVE * 2, [1, 0]
    )
    torch.testing.assert_close(d, torch.tensor([[0.8, -0.6, 0.0], [0.0, 0.0, 0.0]]).double())
    assert value == pytest.approx(0.5 * 100 / 64**2 / 2)


def test_cross_entropy_is_that_of_torch() -> None:
    times = [[10.0, 16.0, 40.0], [3.0, 3.0, inf]]
    potential = [[1.0, 1.0, 1.0], [1.0, 1.0, 0.5]]
    virtual = torch.tensor(
        [[10.0, 16.0, 40.0], [3.0, 3.0, 64 + 32.0]], dtype=torch.float64, requires_grad=True
    )
    for smoothing in (0.0, 0.3):
        virtual.grad = None
        want = F.cross_entropy(-virtual / 4.0, torch.tensor([1, 2]), label_smoothing=smoothing)
        want.backward()
        d, value = displacements(TimingCrossEntropy(4.0, smoothing=smoothing), times, potential, [1, 2])
        assert value == pytest.approx(want.item(), rel=1e-12)
        assert virtual.grad is not None
        # in units of 1 / tau and summed, not averaged, over the batch
        torch.testing.assert_close(d, -4.0 * 2 * virtual.grad, rtol=1e-10, atol=1e-14)


def test_smoothing_by_hand() -> None:
    d, value = displacements(TimingCrossEntropy(4.0, smoothing=0.3), [[5.0, 5.0, 5.0]], ABOVE, [2])
    torch.testing.assert_close(d, torch.tensor([[1 / 3 - 0.1, 1 / 3 - 0.1, 1 / 3 - 0.8]]).double())
    assert value == pytest.approx(math.log(3))


@pytest.mark.parametrize(
    ("layer", "times", "pulled"),
    [
        (LAYER, [47.9, 48.1, 63.0], [False, True, True]),
        (LAYER, [48.0, inf, 3.0], [False, True, False]),
        (LATE, [137.4, 137.6, inf], [False, True, True]),
    ],
)
def test_the_anchor_pulls_right_outputs_that_are_late(
    layer: TimingLinear, times: list[float], pulled: list[bool]
) -> None:
    """Three quarters of 64 are 48; of the window from 100 to 150, 137.5."""
    for loss, other in (
        (TimingCrossEntropy(8.0, anchor=0.25, anchor_at=0.75), TimingCrossEntropy(8.0)),
        (
            RelativeTargets(8.0, normalise=False, anchor=0.25, anchor_at=0.75),
            RelativeTargets(8.0, normalise=False),
        ),
    ):
        for y in range(3):
            got, with_it = displacements(loss, [times], [[0.5] * 3], [y], layer)
            without, alone = displacements(other, [times], [[0.5] * 3], [y], layer)
            want = torch.zeros(1, 3).double()
            want[0, y] = -0.25 if pulled[y] else 0.0
            torch.testing.assert_close(got - without, want, rtol=0, atol=1e-12)
            assert with_it == alone


def test_the_anchor_comes_before_the_length_is_set() -> None:
    d, _ = displacements(RelativeTargets(8.0, anchor=0.5), [[62.0, 64 - 1.0, 9.0]], ABOVE, [2])
    assert d.norm() == 0
    d, _ = displacements(RelativeTargets(8.0, anchor=0.5), [[50.0, inf, inf]], [[1.0, 0.0, 0.0]], [0])
    assert d.tolist() == [[-1.0, 0.0, 0.0]]


def test_displacements_are_averaged_over_the_batch() -> None:
    times = torch.tensor([[10.0, 16.0]] * 4, requires_grad=True)
    TimingCrossEntropy(6.0)(LAYER, Fired(times, times, times), torch.tensor([0, 1, 0, 0])).backward()
    p = 1 / (1 + math.exp(-1))
    assert times.grad is not None
    want = torch.tensor([[1 - p, p - 1], [-p, p], [1 - p, p - 1], [1 - p, p - 1]]) / 4
    torch.testing.assert_close(times.grad, want, rtol=1e-5, atol=0)


# ---------------------------------------------------------------------------------------- decisions

TIMES = torch.tensor([[5.0, 3.0, 7.0], [4.0, 9.0, 4.0], [4.0, 4.0, 4.0], [inf, inf, inf], [inf, 2.0, inf]])
POTENTIAL = torch.tensor(
    [[1.0, 1.0, 9.0], [1.0, 9.0, 1.5], [1.2, 1.2, 1.1], [0.1, 0.5, 0.4], [9.0, 1.0, 9.0]]
)
FIRED = Fired(TIMES, POTENTIAL, POTENTIAL)


def test_the_first_spike_decides_then_the_potential_then_the_number() -> None:
    said = decide(FIRED)
    assert said.label.tolist() == [1, 2, 0, 1, 1]
    assert said.time.tolist() == [3.0, 4.0, 4.0, inf, 2.0]
    assert said.tied.tolist() == [False, True, True, False, False]


def test_optimists_count_a_tie_as_a_hit() -> None:
    hits = [optimistic(FIRED, torch.full((5,), label)).tolist() for label in range(3)]
    assert hits == [
        [False, True, True, False, False],
        [True, False, True, True, True],
        [False, True, True, False, False],
    ]


def test_a_decision_does_not_know_about_virtual_times() -> None:
    """The potential of a silent output never beats a spike, however late."""
    said = decide(Fired(torch.tensor([[63.0, inf]]), torch.tensor([[1.0, 5.0]]), TIMES))
    assert said.label.tolist() == [0]


# ---------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: RelativeTargets(0.0), "a margin above 0 steps, got 0.0"),
        (lambda: RelativeTargets(math.nan), "a margin above 0 steps"),
        (lambda: TimingCrossEntropy(0.0), "tau above 0 steps, got 0.0"),
        (lambda: TimingCrossEntropy(8.0, smoothing=1.0), "smoothing from 0 to below 1, got 1.0"),
        (lambda: TimingCrossEntropy(8.0, anchor=-0.1), "anchor and reach of 0 or more, got -0.1"),
        (lambda: TimingCrossEntropy(8.0, anchor=math.nan), "anchor and reach of 0 or more, got nan"),
        (lambda: RelativeTargets(8.0, reach=-1.0), "anchor and reach of 0 or more"),
        (
            lambda: RelativeTargets(8.0, anchor_at=0.0),
            "anchor_at above 0 and up to 1, a part of the window, got 0.0",
        ),
        (lambda: RelativeTargets(8.0, anchor_at=1.5), "anchor_at above 0 and up to 1"),
    ],
)
def test_losses_that_are_refused(make: Any, words: str) -> None:
    with pytest.raises(ParameterError, match=words):
        make()


@pytest.mark.parametrize(("layer", "margin"), [(LAYER, 64.0), (LAYER, inf), (LATE, 50.0)])
def test_a_margin_that_does_not_fit_into_the_window(layer: TimingLinear, margin: float) -> None:
    length = 64 if layer is LAYER else 50
    with pytest.raises(
        ParameterError,
        match=rf"a margin of .* does not fit into a window of {length}: lower the margin or lengthen",
    ):
        displacements(RelativeTargets(margin), [[1.0, 2.0, 3.0]], ABOVE, [0], layer)
    displacements(RelativeTargets(length - 1.0), [[101.0, 102.0, 103.0]], ABOVE, [0], layer)


@pytest.mark.parametrize("loss", [RelativeTargets(8.0), TimingCrossEntropy()], ids=repr)
def test_labels_that_are_refused(loss: TimingLoss) -> None:
    fired = Fired(torch.zeros(2, 3), torch.ones(2, 3), torch.ones(2, 3))
    for y, words in (
        (torch.tensor([0, 1, 2]), r"\(B, C\) and whole labels \(B,\), got \(2, 3\) and \(3,\)"),
        (torch.tensor([[0], [1]]), r"got \(2, 3\) and \(2, 1\)"),
        (torch.tensor([0.0, 1.0]), "got .* of torch.float32"),
    ):
        with pytest.raises(ShapeError, match=words):
            loss(LAYER, fired, y)
    for y in (torch.tensor([0, 3]), torch.tensor([-1, 2])):
        with pytest.raises(DataError, match=r"has outputs 0 to 2, got labels from (0 to 3|-1 to 2)"):
            loss(LAYER, fired, y)
    loss(LAYER, fired, torch.tensor([0, 2], dtype=torch.int32))
    with pytest.raises(ShapeError, match=r"outputs \(B, C\)"):
        loss(LAYER, Fired(*[torch.zeros(2, 3, 1)] * 3), torch.tensor([0, 1]))


def test_spike_times_alone_are_refused_with_what_to_ask() -> None:
    network = Network(TimingLinear(3, 4), TimingLinear(4, 2))
    times, y = torch.rand(5, 3) * 8, torch.zeros(5, dtype=torch.long)
    for refused in (
        lambda: TimingCrossEntropy()(network.output, network(times), y),
        lambda: decide(network(times)),
    ):
        with pytest.raises(ParameterError, match=r"got Tensor: fired, seen = network.follow\(times\)"):
            refused()
    fired, _ = network.follow(times)
    assert decide(fired).label.shape == y.shape and TimingCrossEntropy()(network.output, fired, y).isfinite()
