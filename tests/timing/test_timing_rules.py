"""Every transfer and every slope against pairwise sums over neurons and inputs, written out; the same in a convolution."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from spiketide.kernels.first_spike import Fired
from spiketide.timing import (
    PSP,
    S4NN,
    FixedSlope,
    Network,
    Ramp,
    RampUpDown,
    ReL,
    RelativeTargets,
    Rule,
    SpikeProp,
    Step,
    STiDi,
    TimingConv2d,
    TimingLinear,
)

inf = math.inf
STOP = 32.0
KERNELS: list[PSP] = [Step(), Ramp(8.0), RampUpDown(6.0, 18.0), ReL(16.0)]


def rise(psp: PSP) -> float:
    return {"Step": 1.0, "Ramp": 8.0, "RampUpDown": 6.0, "ReL": 16.0}[type(psp).__name__]


def eps(psp: PSP, s: float) -> float:
    if isinstance(psp, Step):
        return float(s >= 0)
    up = max(s, 0.0) / rise(psp)
    if isinstance(psp, ReL):
        return up
    if isinstance(psp, RampUpDown) and s > 6.0:
        return max(0.0, (18.0 - s) / 12.0)
    return min(up, 1.0)


def eps_slope(psp: PSP, s: float) -> float:
    """From the left, as the membrane comes to its threshold."""
    if isinstance(psp, Step) or s <= 0:
        return 0.0
    if isinstance(psp, ReL) or s <= rise(psp):
        return 1 / rise(psp)
    return -1 / 12.0 if isinstance(psp, RampUpDown) and s <= 18.0 else 0.0


def plain(
    rule: Rule, psp: PSP, times: Tensor, weight: Tensor, fired: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of the weights and of the times, for neurons all of which see all inputs; loops over everything."""
    u, limit = rise(psp), rule.slope_limit
    samples, n_in = times.shape
    n_out = weight.shape[0]
    dw, dt = torch.zeros_like(weight), torch.zeros_like(times)
    for b in range(samples):
        a = torch.zeros(n_out, n_in, dtype=torch.float64)
        gate = torch.zeros(n_out, n_in, dtype=torch.float64)
        for j in range(n_out):
            silent = bool(torch.isinf(fired[b, j]))
            at = STOP if silent else float(fired[b, j])
            s = [at - float(t) for t in times[b]]
            r = sum(float(weight[j, i]) * eps_slope(psp, s[i]) for i in range(n_in))
            if silent or rule.slope == "constant":
                g = 1.0
            elif rule.slope == "chord":
                g = at / (2 * u)
            elif rule.slope == "local":
                g = min(1 / (u * r), limit)
            else:
                g = min(1 / r, u * limit)
            for i in range(n_in):
                dw[j, i] += -float(grad[b, j]) * g * eps(psp, s[i])
                gate[j, i] = s[i] >= 0 if isinstance(psp, Step) else s[i] > 0
                if not silent and rule.transfer in ("exact", "share"):
                    a[j, i] = float(weight[j, i]) * eps_slope(psp, s[i]) * min(1 / r, u * limit)
        if rule.transfer == "weight":
            back = weight * gate
        elif rule.transfer == "sign":
            back = torch.where(weight >= 0, 1.0, -1.0) * gate
        elif rule.transfer == "exact":
            back = a
        else:
            total = a.abs().sum(0)
            back = torch.where(total > 0, a / total.clamp(min=1e-30), 0)
        d = grad[b] @ back
        if rule.normalise and float(d.norm()) > 0:
            d = d * grad[b].norm() / d.norm()
        dt[b] = d
    return dw, dt


RULES = [
    *(Rule(transfer=transfer, normalise=False) for transfer in ("weight", "sign", "share", "exact")),
    *(Rule(slope=slope) for slope in ("constant", "chord", "local", "exact")),
    Rule(transfer="share", slope="local", normalise=True, slope_limit=0.7),
    Rule(transfer="exact", slope="exact", normalise=True, slope_limit=0.7),
    SpikeProp(),
    STiDi(),
]


def fits(rule: Rule, psp: PSP) -> bool:
    return not isinstance(psp, Step) or (
        rule.transfer in ("weight", "sign") and rule.slope in ("constant", "chord")
    )


PAIRS = [
    pytest.param(
        psp, rule, exact, id=f"{psp!r}-{rule!r}-{rule.slope_limit:g}-{'exact' if exact else 'whole'}"
    )
    for psp in KERNELS
    for rule in RULES
    for exact in (False, True)
    if fits(rule, psp)
]


def some_times(exact: bool, *size: int) -> Tensor:
    times = torch.rand(size, dtype=torch.float64) * 22 if exact else torch.randint(0, 22, size).double()
    return times.masked_fill(torch.rand(size) < 0.15, inf)


@pytest.mark.parametrize(("psp", "rule", "exact"), PAIRS)
def test_a_rule_is_its_sum_over_pairs(psp: PSP, rule: Rule, exact: bool) -> None:
    layer = TimingLinear(9, 8, psp=psp, stop=STOP, rule=rule, exact=exact).double()
    weight = torch.randn(8, 9, dtype=torch.float64) / 3 + 0.25
    layer.set_weight(weight)
    times = some_times(exact, 5, 9).requires_grad_()
    fired = layer(times)
    assert torch.isfinite(fired).sum() > 12 and torch.isinf(fired).any()
    grad = torch.randn(5, 8, dtype=torch.float64)  # silent neurons get one too, as outputs do
    fired.backward(grad)
    dw, dt = plain(rule, psp, times.detach(), weight, fired.detach(), grad)
    assert layer.weight.grad is not None and times.grad is not None
    assert float(dt.abs().max()) > 0.01
    torch.testing.assert_close(layer.weight.grad, dw, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(times.grad, dt, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("options", [{}, {"padding": 1, "stride": 2, "groups": 2}], ids=str)
@pytest.mark.parametrize(("psp", "rule", "exact"), [p for p in PAIRS if p.values[2] is False])
def test_a_convolution_is_its_windows_one_by_one(
    psp: PSP, rule: Rule, exact: bool, options: dict[str, int]
) -> None:
    """Transfers add up over windows; ``share`` divides by the sum over all neurons that see the input."""
    layer = TimingConv2d(2, 4, 3, psp=psp, stop=STOP, rule=rule, exact=exact, **options).double()
    weight = torch.randn(layer.weight.shape, dtype=torch.float64) / 3 + 0.25
    layer.set_weight(weight)
    times = some_times(exact, 2, 2, 5, 5).requires_grad_()
    fired = layer(times)
    assert torch.isfinite(fired).sum() > 8
    grad = torch.randn(fired.shape, dtype=torch.float64)
    fired.backward(grad)

    # the same as a fully connected layer with many weights of 0 that are no connections
    padding, stride, groups = (
        options.get(name, default) for name, default in (("padding", 0), ("stride", 1), ("groups", 1))
    )
    given = times.detach()
    high, wide = fired.shape[2:]
    dw = torch.zeros_like(weight)
    parts: dict[str, Tensor] = {}
    for name in ("signed", "absolute"):
        parts[name] = torch.zeros(2, 2, 5 + 2 * padding, 5 + 2 * padding, dtype=torch.float64)
    padded = torch.nn.functional.pad(given, [padding] * 4, value=inf)
    single = Rule(
        transfer="exact" if rule.transfer == "share" else rule.transfer,
        slope=rule.slope,
        normalise=False,
        slope_limit=rule.slope_limit,
    )
    for group in range(groups):
        maps = slice(group * 4 // groups, (group + 1) * 4 // groups)
        channels = slice(group * 2 // groups, (group + 1) * 2 // groups)
        for y in range(high):
            for x in range(wide):
                window = (
                    slice(None),
                    channels,
                    slice(y * stride, y * stride + 3),
                    slice(x * stride, x * stride + 3),
                )
                seen = padded[window]
                flat = weight[maps].flatten(1)
                part, back = plain(
                    single, psp, seen.flatten(1), flat, fired.detach()[:, maps, y, x], grad[:, maps, y, x]
                )
                dw[maps] += part.view_as(dw[maps])
                parts["signed"][window] += back.view_as(seen)
                if rule.transfer == "share":
                    for o in range(maps.start, maps.stop):
                        one = plain(
                            single,
                            psp,
                            seen.flatten(1),
                            weight[o : o + 1].flatten(1),
                            fired.detach()[:, o : o + 1, y, x],
                            torch.ones(2, 1, dtype=torch.float64),
                        )[1]
                        parts["absolute"][window] += one.abs().view_as(seen)
    inside = slice(padding, 5 + padding)
    dt = parts["signed"][:, :, inside, inside]
    if rule.transfer == "share":
        total = parts["absolute"][:, :, inside, inside]
        dt = torch.where(total > 0, dt / total.clamp(min=1e-30), 0)
    if rule.normalise:
        size = [p.flatten(1).norm(dim=1)[:, None, None, None] for p in (grad, dt)]
        dt = dt * size[0] / size[1]
    assert layer.weight.grad is not None and times.grad is not None
    torch.testing.assert_close(layer.weight.grad, dw, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(times.grad, dt, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("psp", [*KERNELS, FixedSlope(16.0, 16.0)], ids=repr)
def test_displacements_keep_their_length_from_layer_to_layer(psp: PSP) -> None:
    layer = TimingLinear(9, 8, psp=psp, stop=STOP, rule=STiDi(slope="constant", normalise=True)).double()
    times = torch.randint(0, 16, (6, 9)).double().requires_grad_()
    fired = layer(times)
    grad = torch.randn(6, 8, dtype=torch.float64)
    grad[2] = 0
    fired.backward(grad)
    assert times.grad is not None
    torch.testing.assert_close(times.grad.norm(dim=1), grad.norm(dim=1), rtol=1e-12, atol=0)
    assert torch.equal(times.grad[2], torch.zeros(9).double())


@pytest.mark.parametrize("slope", ["constant", "chord"])
@pytest.mark.parametrize("transfer", ["weight", "sign"])
def test_a_fixed_slope_takes_the_words_of_the_rule_too(transfer: str, slope: str) -> None:
    psp = FixedSlope(16.0, 16.0)
    rule = STiDi(transfer=transfer, slope=slope, normalise=False)
    layer = TimingLinear(9, 8, psp=psp, stop=STOP, rule=rule, exact=True, threshold=2.0).double()
    weight = torch.randn(8, 9, dtype=torch.float64) / 2 + 0.1
    layer.set_weight(weight)
    times = (torch.rand(5, 9, dtype=torch.float64) * 20).requires_grad_()
    out = layer(times)
    grad = torch.randn(5, 8, dtype=torch.float64)
    out.backward(grad)
    fired = out.detach()
    assert (fired > 16).all() and torch.isinf(fired).any() and torch.isfinite(fired).any()
    dw, dt = torch.zeros_like(weight), torch.zeros(5, 9, dtype=torch.float64)
    for b in range(5):
        for j in range(8):
            at = min(float(fired[b, j]), STOP)
            g = 16.0 / 2.0 * (1.0 if slope == "constant" else (at - 16.0) / (2 * 16.0))
            for i in range(9):
                x = max(0.0, 16.0 - float(times.detach()[b, i])) / 16.0
                dw[j, i] += -float(grad[b, j]) * g * x
                w = float(weight[j, i])
                if x > 0:
                    dt[b, i] += (
                        float(grad[b, j]) / 2.0 * (w if transfer == "weight" else math.copysign(1.0, w))
                    )
    assert layer.weight.grad is not None and times.grad is not None
    torch.testing.assert_close(layer.weight.grad, dw, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(times.grad, dt, rtol=1e-10, atol=1e-12)


def test_inputs_that_never_fired_or_too_late_learn_nothing() -> None:
    for psp in KERNELS:
        layer = TimingLinear(3, 1, psp=psp, stop=STOP, rule=STiDi(slope="constant")).double()
        layer.set_weight(torch.tensor([[3.0, 1.0, 1.0]]))
        times = torch.tensor([[0.0, 31.0, inf]]).double().requires_grad_()
        layer(times).sum().backward()
        assert layer.weight.grad is not None and times.grad is not None
        assert (layer.weight.grad != 0).tolist() == [[True, False, False]]
        assert (times.grad != 0).tolist() == [[True, False, False]]


@pytest.mark.parametrize("psp", KERNELS[1:], ids=repr)
@pytest.mark.parametrize("slope", ["constant", "chord", "local", "exact"])
def test_a_wish_to_fire_earlier_makes_a_neuron_fire_earlier(psp: PSP, slope: str) -> None:
    layer = TimingLinear(9, 8, psp=psp, stop=STOP, rule=Rule(slope=slope), exact=True).double()
    layer.set_weight(torch.randn(8, 9, dtype=torch.float64) / 3 + 0.3)
    times = some_times(True, 1, 9)
    before = layer(times)
    alive = torch.isfinite(before)
    assert alive.sum() >= 3
    for sign in (1.0, -1.0):
        layer.zero_grad()
        layer(times).backward(torch.full((1, 8), sign, dtype=torch.float64))
        assert layer.weight.grad is not None
        kept = layer.weight.detach().clone()
        with torch.no_grad():
            layer.weight -= 1e-6 * layer.weight.grad
            moved = sign * (layer(times) - before)[alive]
            assert bool((moved < 0).all()), "down the gradient: earlier where it is positive"
            layer.weight.copy_(kept)


@pytest.mark.parametrize("transfer", ["weight", "sign", "share", "exact"])
@pytest.mark.parametrize("psp", KERNELS[1:], ids=repr)
def test_a_too_late_right_output_comes_earlier(psp: PSP, transfer: str) -> None:
    """A step of the output layer by its targets; a step of the hidden layer alone, where the right output alone is displaced."""
    for moved in (0, 1):
        torch.manual_seed(3)
        rule = Rule(transfer=transfer)
        net = Network(
            TimingLinear(12, 20, psp=psp, stop=STOP, exact=True, rule=rule),
            TimingLinear(20, 3, psp=psp, stop=STOP, exact=True, rule=rule),
        ).double()
        for layer in net:
            layer.set_weight(
                torch.rand(layer.weight.shape, dtype=torch.float64) * 3.5 / layer.weight.shape[1]
            )
        times = torch.rand(1, 12, dtype=torch.float64) * 10
        fired, _ = net.follow(times)
        assert torch.isfinite(fired.times).all()
        right = fired.times.argmax(1)
        if moved == 1:
            RelativeTargets(1.0)(net.output, fired, right).backward()
        else:
            fired.times[0, right].sum().backward()
        with torch.no_grad():
            net[moved].weight -= 1e-4 * net[moved].weight.grad
        after = net(times)
        assert float(after.detach()[0, right]) < float(fired.times.detach()[0, right])


def test_one_step_is_that_of_s4nn() -> None:
    """Kernel Step, slope constant, transfer weight, margin 3, rate 0.2, plain SGD, errors through the weights before their update.

    There a spike counts one step later in each layer and the window ends for all at 256. So outputs come two steps earlier here,
    and the windows end at 255 and 254; nothing reaches the end, where targets there are cut.
    """
    sizes, steps = [30, 20, 5], 256
    theirs = S4NN(
        sizes,
        updated=False,
        weight_decay=0.0,
        lr=0.2,
        margin=3,
        threshold=100.0,
        spread=[12.0, 30.0],
        dead=0.0,
    )
    rule = STiDi(slope="constant")
    mine = Network(
        TimingLinear(30, 20, psp=Step(), stop=steps - 1, threshold=100.0, rule=rule),
        TimingLinear(20, 5, psp=Step(), stop=steps - 2, threshold=100.0, rule=rule),
    )
    times = torch.randint(0, 200, (1, 30)).float()
    times[0, :3] = inf
    y = torch.tensor([3])
    learnt = [layer.weight for layer in theirs.modules() if isinstance(layer, TimingLinear)]
    given = [weight.detach().clone() for weight in learnt]
    for layer, weight in zip(mine, given, strict=True):
        layer.set_weight(weight)
    said = theirs.follow(times)[0].times
    optimiser = torch.optim.SGD(mine.parameters(), lr=0.2)
    fired, seen = mine.follow(times)
    assert torch.equal(fired.times + 2, said) and torch.isfinite(said).all() and float(said.min()) + 3 < 256
    assert torch.isfinite(seen["0"]).any() and (seen["0"][0] > fired.times[0].max()).any()
    RelativeTargets(3.0)(mine.output, fired, y).backward()
    optimiser.step()
    theirs.learn(times, y)
    for layer, weight, before in zip(mine, learnt, given, strict=True):
        step = (weight - before).detach()
        assert float(step.abs().max()) > 1e-3
        torch.testing.assert_close(layer.weight.detach() - before, step, rtol=0, atol=2e-5)


def test_that_step_of_s4nn_in_plain_sums() -> None:
    """The same from the published formulas alone, in loops, so that both cannot be wrong together."""
    torch.manual_seed(5)
    w = [torch.rand(20, 30).double() * 12, torch.rand(5, 20).double() * 30]
    t_in = torch.randint(0, 200, (30,)).tolist()
    y, gamma, theta, window = 2, 3, 100.0, 256

    def fire(weight: Tensor, before: list[int]) -> list[int]:
        out = []
        for row in weight.tolist():
            t = 0
            while t < window - 1 and sum(v for v, s in zip(row, before, strict=True) if s <= t) <= theta:
                t += 1
            out.append(t + 1)
        return out

    hidden = fire(w[0], t_in)
    last = fire(w[1], hidden)
    first = min(last)
    target = [first if k == y else max(t, first + gamma) for k, t in enumerate(last)]
    delta = torch.tensor([(a - b) / window for a, b in zip(target, last, strict=True)]).double()
    delta /= delta.norm()
    d_hidden = torch.zeros(20).double()
    grad = [torch.zeros_like(part) for part in w]
    for k, t_k in enumerate(last):
        for j, t_j in enumerate(hidden):
            if t_j < t_k:
                grad[1][k, j] = delta[k]
                d_hidden[j] += delta[k] * w[1][k, j]
    d_hidden /= d_hidden.norm()
    for j, t_j in enumerate(hidden):
        for i, t_i in enumerate(t_in):
            if t_i < t_j:
                grad[0][j, i] = d_hidden[j]
    assert max(last) < window and max(hidden) < window

    rule = STiDi(slope="constant")
    mine = Network(
        TimingLinear(30, 20, psp=Step(), stop=window - 1, threshold=theta, rule=rule),
        TimingLinear(20, 5, psp=Step(), stop=window - 2, threshold=theta, rule=rule),
    ).double()
    for layer, weight in zip(mine, w, strict=True):
        layer.set_weight(weight)
    fired, _ = mine.follow(torch.tensor([t_in]).double())
    assert (fired.times + 2).tolist() == [last]
    RelativeTargets(float(gamma))(mine.output, fired, torch.tensor([y])).backward()
    for layer, want in zip(mine, grad, strict=True):
        torch.testing.assert_close(layer.weight.grad, want, rtol=1e-10, atol=1e-12)


def test_a_layer_without_gradients_wanted_gives_none() -> None:
    layer: Any = TimingLinear(4, 3)
    times = torch.zeros(2, 4, requires_grad=True)
    layer.weight.requires_grad_(False)
    layer(times).sum().backward()
    assert layer.weight.grad is None and times.grad is not None
    fired: Fired = layer.fire(times.detach())
    assert not fired.times.requires_grad and not fired.potential.requires_grad
