"""XOR from ten seeds; equal bits from run to run and on any number of threads; laws of the membrane as properties."""

from __future__ import annotations

import math
import statistics
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from spiketide.timing import (
    PSP,
    EarliestPool2d,
    Flatten,
    Network,
    Ramp,
    RampUpDown,
    ReL,
    RelativeTargets,
    Silence,
    Step,
    STiDi,
    TimingConv2d,
    TimingCrossEntropy,
    TimingLinear,
    calibrate,
    decide,
    revive,
)

inf = math.inf

# ---------------------------------------------------------------------------------------- XOR

XOR = torch.tensor([[0.0, a, b] for a in (0.0, 24.0) for b in (0.0, 24.0)])
LABELS = torch.tensor([0, 1, 1, 0])


def solve_xor(seed: int, epochs: int = 300) -> int | None:
    """Epochs until all four are right by a first spike of their own; ``None``: never.

    Given: a bias and two inputs (early 0, late 24 of 64 steps), kernel up 8 and down by 80, slope chord, transfer weight, every
    sample's displacements of length 1, 16 hidden neurons, margin 6, plain SGD with 0.05 on the weights at a threshold of 1. Ours,
    as nothing is given: one sample at a time in a fixed order; weights around 2 / inputs with half (hidden) or all (output) of
    that as deviation, then scaled so that the medians come at 0.5 and 0.8 of the window; hidden neurons that fired for none of
    the four are woken; silent outputs count as firing at the end.
    """
    torch.manual_seed(seed)
    layer: Any = {"psp": RampUpDown(8.0, 80.0), "stop": 64.0, "rule": STiDi(transfer="weight", slope="chord")}
    net = Network(TimingLinear(3, 16, **layer), TimingLinear(16, 2, **layer))
    hidden, output = net[0], net.output
    hidden.set_weight(2 / 3 + 1 / 3 * torch.randn(16, 3))
    output.set_weight(2 / 16 + 2 / 16 * torch.randn(2, 16))
    calibrate(net, XOR, [0.5, 0.8])
    for each in (hidden, output):
        each.set_weight(each.effective_weight().detach())
    loss = RelativeTargets(6.0, reach=0.0)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.05)
    for epoch in range(epochs):
        for i in range(4):
            optimiser.zero_grad()
            fired, _ = net.follow(XOR[i : i + 1])
            loss(output, fired, LABELS[i : i + 1]).backward()
            optimiser.step()
        with torch.no_grad():
            fired, seen = net.follow(XOR)
        said = decide(fired)
        if bool(((said.label == LABELS) & ~said.tied & torch.isfinite(said.time)).all()):
            return epoch + 1
        revive(hidden, torch.isinf(seen["0"]).all(0), XOR)
    return None


def test_xor_is_solved_from_ten_seeds_out_of_ten() -> None:
    epochs = [solve_xor(seed) for seed in range(10)]
    solved = [n for n in epochs if n is not None]
    assert len(solved) == 10, epochs
    assert statistics.median(solved) <= 40, epochs
    assert min(solved) > 1, "solved before it learnt: no test of learning"


# ---------------------------------------------------------------------------------------- bits


def train(seed: int) -> list[Tensor]:
    """Some steps of a small convolutional network; its weights."""
    torch.manual_seed(seed)
    net = Network(
        TimingConv2d(1, 5, 3, psp=Ramp(16.0), stop=64.0),
        EarliestPool2d(),
        Flatten(),
        TimingLinear(125, 40, psp=ReL(64.0), stop=64.0),
        Silence(0.2),
        TimingLinear(40, 10, psp=RampUpDown(32.0, 90.0), stop=64.0),
    )
    times = torch.randint(0, 32, (33, 1, 12, 12)).float()
    times.masked_fill_(torch.rand_like(times) < 0.4, inf)
    y = torch.randint(0, 10, (33,))
    calibrate(net, times, [0.4, 0.6, 0.8])
    before = [p.detach().clone() for p in net.parameters()]
    optimiser = torch.optim.Adam(net.parameters(), lr=0.02)
    for _ in range(4):
        optimiser.zero_grad()
        TimingCrossEntropy()(net.output, net.follow(times)[0], y).backward()
        optimiser.step()
    after = [p.detach().clone() for p in net.parameters()]
    assert not any(torch.equal(a, b) for a, b in zip(after, before, strict=True))
    return after


def test_two_runs_with_one_seed_are_equal_to_the_bit() -> None:
    first, second, other = train(0), train(0), train(1)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_the_number_of_threads_changes_no_bit(two_threads: None) -> None:
    both = train(0)
    torch.set_num_threads(1)
    alone = train(0)
    assert all(torch.equal(a, b) for a, b in zip(both, alone, strict=True))


# ---------------------------------------------------------------------------------------- laws

STOP = 40.0
KERNELS: list[PSP] = [Step(), Ramp(8.0), RampUpDown(8.0, 24.0), ReL(16.0)]
"""With times in quarters and weights in sixteenths, every potential at an event is exact: no rounding decides who fires."""

kernels = st.sampled_from(KERNELS)
moments = st.one_of(st.integers(0, 80).map(lambda n: n / 4), st.just(inf))
weights = st.integers(-16, 40).map(lambda n: n / 16)


@st.composite
def cases(draw: st.DrawFn) -> tuple[TimingLinear, Tensor]:
    """A layer and times for it."""
    n_in, n_out, samples = draw(st.integers(1, 6)), draw(st.integers(1, 4)), draw(st.integers(1, 3))
    exact = draw(st.booleans())
    rows = draw(st.lists(st.lists(weights, min_size=n_in, max_size=n_in), min_size=n_out, max_size=n_out))
    times = draw(
        st.lists(st.lists(moments, min_size=n_in, max_size=n_in), min_size=samples, max_size=samples)
    )
    layer = TimingLinear(
        n_in, n_out, psp=draw(kernels), stop=STOP, exact=exact, rule=STiDi(slope="constant")
    ).double()
    layer.set_weight(torch.tensor(rows, dtype=torch.float64))
    return layer, torch.tensor(times, dtype=torch.float64)


def fire(layer: TimingLinear, times: Tensor) -> Tensor:
    with torch.no_grad():
        return layer(times)


LAW = settings(max_examples=150, deadline=None)


@LAW
@given(cases(), st.integers(0, 30))
def test_inputs_that_come_later_make_spikes_as_much_later(case: tuple[TimingLinear, Tensor], by: int) -> None:
    layer, times = case
    want = fire(layer, times) + by
    got = fire(layer, times + by)
    inside = want < STOP - 1e-9
    torch.testing.assert_close(got[inside], want[inside], rtol=0, atol=1e-9)
    assert bool(torch.isinf(got[want >= STOP]).all())


@LAW
@given(cases(), st.sampled_from([0.25, 0.5, 2.0, 3.0, 7.0]))
def test_weights_and_threshold_in_proportion_change_nothing(
    case: tuple[TimingLinear, Tensor], by: float
) -> None:
    layer, times = case
    other = TimingLinear(
        layer.n_in, layer.n_out, psp=layer.psp, stop=STOP, threshold=by, exact=layer.exact, rule=layer.rule
    ).double()
    other.set_weight(layer.weight.detach() * by)
    torch.testing.assert_close(fire(other, times), fire(layer, times), rtol=0, atol=1e-9)


@LAW
@given(cases(), st.randoms(use_true_random=False))
def test_the_order_of_the_inputs_changes_nothing(case: tuple[TimingLinear, Tensor], random: Any) -> None:
    layer, times = case
    order = list(range(layer.n_in))
    random.shuffle(order)
    want = fire(layer, times)
    layer.set_weight(layer.weight.detach()[:, order])
    torch.testing.assert_close(fire(layer, times[:, order]), want, rtol=0, atol=1e-9)


@LAW
@given(cases(), st.integers(0, 5), st.integers(1, 40))
def test_what_comes_after_a_spike_changes_nothing(
    case: tuple[TimingLinear, Tensor], which: int, late: int
) -> None:
    layer, times = case
    before = fire(layer, times)
    i = which % layer.n_in
    changed = times.clone()
    changed[:, i] = late
    after = fire(layer, changed)
    # neither the old nor the new spike of this input came before the neuron fired
    unmoved = (before < torch.minimum(times[:, i], changed[:, i])[:, None]) & torch.isfinite(before)
    assert torch.equal(after[unmoved], before[unmoved])


@LAW
@given(cases())
def test_a_sample_does_not_know_its_batch(case: tuple[TimingLinear, Tensor]) -> None:
    layer, times = case
    whole = fire(layer, times)
    for b in range(len(times)):
        assert torch.equal(fire(layer, times[b : b + 1]), whole[b : b + 1])


@pytest.mark.parametrize("psp", KERNELS, ids=repr)
def test_an_input_of_weight_zero_is_no_input(psp: PSP) -> None:
    layer = TimingLinear(5, 4, psp=psp, stop=STOP, rule=STiDi(slope="constant"))
    weight = torch.rand(4, 5)
    weight[:, 2] = 0
    layer.set_weight(weight)
    times = torch.randint(0, 20, (6, 5)).float()
    silent = times.clone()
    silent[:, 2] = inf
    assert torch.isfinite(fire(layer, times)).any()
    assert torch.equal(fire(layer, times), fire(layer, silent))
