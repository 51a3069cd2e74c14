"""S4NN and BS4NN against the published rule, stepped through time in plain NumPy."""

import copy
import math

import numpy as np
import pytest
import torch

from spiketide.errors import DataError, NonFiniteError, ParameterError, ShapeError, SpiketideError
from spiketide.kernels.first_spike import Fired
from spiketide.timing import (
    BS4NN,
    S4NN,
    Network,
    OnlineLinear,
    OnlineTargets,
    PixelTimes,
    Step,
    STiDi,
    TimingLinear,
)
from spiketide.timing.s4nn import count_hits


class Reference:
    """Weights as lists of matrices (neurons, inputs); every layer is stepped through the clock, one image at a time."""

    def __init__(self, net):
        self.net = net
        self.binary = isinstance(net, BS4NN)
        self.weights = [layer.weight.detach().double().numpy().copy() for layer in net.layers]
        self.scales = [layer.scale.item() for layer in net.layers]
        self.counts = [np.zeros(len(w), int) for w in self.weights]
        self.images = 0

    def present(self, times):
        """Spike times of every layer, the end for silence, and the membranes of the outputs at every step."""
        end = int(self.net.output.stop)
        train = np.zeros((end, len(times)), bool)
        for i, t in enumerate(times):
            if t < end:
                train[int(t), i] = True
        clock = [np.where(np.isinf(times), end, times).astype(int)]
        for number, weight in enumerate(self.weights):
            seen, threshold = weight, self.net.output.threshold
            if self.binary:
                seen, threshold = np.where(weight >= 0, 1.0, -1.0), threshold / self.scales[number]
            v, found = np.zeros(len(weight)), np.full(len(weight), end)
            history = []
            out = np.zeros((end, len(weight)), bool)
            for t in range(end + 1):
                if t < end:
                    v = v + seen @ train[t]
                    history.append(v)
                above = (
                    v > threshold if t < end else np.ones(len(v), bool)
                )  # at the end everyone is made to fire
                for j in np.flatnonzero(above & (found == end)):
                    found[j] = min(t + 1, end)
            for j in np.flatnonzero(found < end):
                out[found[j], j] = True
            clock.append(found)
            train = out
        return clock, np.array(history)

    def learn(self, times, label, factor=1.0):
        end, net = int(self.net.output.stop), self.net
        clock, history = self.present(times)
        for count, found in zip(self.counts, clock[1:], strict=True):
            count += found < end
        self.images += 1
        t = clock[-1]
        first = min(t)
        goal = [float(x) for x in t]
        if first == end:
            if not self.binary:
                goal[label] = end - net.margin
        else:
            for k in range(len(t)):
                if t[k] - first < net.margin:
                    goal[k] = min(first + net.margin, end)
            goal[label] = first
        error = (np.array(goal) - t) / end
        error = error / np.linalg.norm(error) if np.any(error) else error
        for number in reversed(range(len(self.weights))):
            weight = self.weights[number]
            before, after = clock[number], clock[number + 1]
            old = weight.copy()
            change = np.zeros_like(weight)
            for j in range(len(weight)):
                for i in range(weight.shape[1]):
                    if before[i] < after[j]:
                        change[j, i] = error[j]
            weight -= net.lr * factor * change
            slope = (change * np.where(weight >= 0, 1.0, -1.0)).sum()  # signs after the update, as published
            weight *= 1 - net.lr * factor * net.weight_decay
            back = weight if net.updated else old
            error = (change * back).sum(0)
            error = error / np.linalg.norm(error) if np.any(error) else error
            if self.binary:
                self.scales[number] -= net.lr_scale * slope / weight.size
        return clock, history

    def begin_epoch(self):
        """The same draws from torch's generator."""
        for number, weight in enumerate(self.weights[:-1]):
            silent = self.counts[number] < self.net.dead * self.images
            layer = self.net.layers[number]
            weight[silent] = (
                layer.spread * torch.rand(int(silent.sum()), weight.shape[1], dtype=layer.weight.dtype)
            ).numpy()
        self.counts = [np.zeros_like(count) for count in self.counts]
        self.images = 0


STEPS = 20


def made(kind, sizes, **options):
    spread = [2.0] * (len(sizes) - 1)
    options = {"threshold": 8.0, "lr": 0.3, "weight_decay": 1e-2, "margin": 3, **options}
    net = (S4NN if kind == "real" else BS4NN)(sizes, steps=STEPS, spread=spread, **options).double()
    g = torch.Generator().manual_seed(5)
    for layer in net.layers:  # some negative ones too, as after some training
        with torch.no_grad():
            layer.weight.copy_(torch.rand(layer.weight.shape, generator=g) * 2.6 - 0.6)
    return net


def images(count, inputs, seed=0):
    g = torch.Generator().manual_seed(seed)
    times = torch.randint(0, STEPS + 8, (count, inputs), generator=g).double()
    return times.masked_fill(times >= STEPS, math.inf), torch.randint(0, 4, (count,), generator=g)


def compare(net, reference):
    for layer, weight, scale, count in zip(
        net.layers, reference.weights, reference.scales, reference.counts, strict=True
    ):
        np.testing.assert_allclose(layer.weight.detach().numpy(), weight, rtol=0, atol=1e-12)
        assert abs(layer.scale.item() - scale) < 1e-13
        assert layer.fired.tolist() == count.tolist()
    assert int(net.images) == reference.images


@pytest.mark.parametrize("updated", [True, False])
@pytest.mark.parametrize("kind", ["real", "binary"])
@pytest.mark.parametrize("sizes", [[30, 14, 4], [25, 12, 9, 4], [20, 4]])
def test_learning_equals_the_published_rule_stepped_through_time(kind, sizes, updated):
    options = {} if kind == "real" else {"initial_scale": 2.5, "lr_scale": 0.05, "margin": 1}
    net = made(kind, sizes, updated=updated, **options)
    reference = Reference(net)
    begun = [layer.weight.detach().clone() for layer in net.layers]
    times, y = images(40, sizes[0])
    times[7] = math.inf  # a black image: no output fires
    fired, seen = net.learn(times[:25], y[:25])
    more = net.learn(times[25:], y[25:], factor=0.5)
    for b in range(40):
        scale = reference.scales[-1]  # the real ones have a scale of 1
        clock, history = reference.learn(times[b].numpy(), int(y[b]), 1.0 if b < 25 else 0.5)
        told, all_times = (fired, seen) if b < 25 else more
        at = b if b < 25 else b - 25
        for found, want in zip(all_times.values(), clock[1:], strict=True):
            np.testing.assert_array_equal(found[at], np.where(want < STEPS, want, np.inf))
        first = min(clock[-1])
        decided = history[first - 1] if first < STEPS else history[STEPS - 3]
        np.testing.assert_allclose(told.potential[at], scale * decided, rtol=0, atol=1e-12)
    compare(net, reference)
    for layer, old in zip(net.layers, begun, strict=True):  # it learnt something, in every layer
        assert (layer.weight - old).detach().abs().max() > 0.05
    share = torch.isfinite(torch.cat([fired.times, more[0].times])).double().mean()
    assert 0.02 < share < 0.98


def test_layers_with_the_step_kernel_make_the_update_of_s4nn():
    """Specification, section 6, 3: displacement learning with a step, a constant slope and transfer by weights is S4NN's rule.

    There a spike comes in the step of the crossing, here a step later: outputs two steps, so windows end one and two steps before.
    """
    net = made("real", [30, 14, 4], updated=False, weight_decay=0.0)
    first, second = (
        TimingLinear(n_in, n_out, psp=Step(), stop=stop, threshold=8.0, rule=STiDi(slope="constant")).double()
        for n_in, n_out, stop in ((30, 14, STEPS - 1), (14, 4, STEPS - 2))
    )
    times, y = images(40, 30, seed=1)
    moved = silent = 0
    for b in range(40):
        for layer, mine in zip((first, second), net.layers, strict=True):
            layer.set_weight(mine.weight.detach().clone())
            layer.zero_grad()
        begun = [mine.weight.detach().clone() for mine in net.layers]
        one = slice(b, b + 1)
        hidden = first(times[one])
        fired = second.fire(hidden)
        said, seen = net.learn(times[one], y[one])
        assert torch.equal(hidden + 1, seen["1"]) and torch.equal(fired.times + 2, said.times)
        ended = torch.where(torch.isinf(fired.times), second.stop, fired.times).detach()
        d, _ = OnlineTargets(net.margin).displace(second, ended, torch.isfinite(fired.times), y[one])
        fired.times.backward(-torch.nn.functional.normalize(d))
        for layer, mine, old in zip((first, second), net.layers, begun, strict=True):
            torch.testing.assert_close(
                old - net.lr * layer.weight.grad, mine.weight.detach(), atol=1e-12, rtol=0
            )
            moved += bool((old != mine.weight).any())
        silent += bool(torch.isinf(fired.times).all())
    assert moved > 40 and silent < 20


def test_float32_learns_the_same_network():
    single, double = made("binary", [30, 14, 4]).float(), made("binary", [30, 14, 4])
    times, y = images(60, 30)
    for net, kind in ((single, torch.float32), (double, torch.float64)):
        net.learn(times.to(kind), y)
    for a, b in zip(single.layers, double.layers, strict=True):
        assert a.weight.dtype == torch.float32
        torch.testing.assert_close(a.weight.double(), b.weight.float().double(), atol=2e-5, rtol=0)


def test_no_output_fires():
    """S4NN wakes the right output by a margin before the end; BS4NN leaves such an image out."""
    for kind in ("real", "binary"):
        net = made(kind, [6, 5, 4], threshold=5.0, weight_decay=0.0)
        with torch.no_grad():
            net.output.weight.fill_(-1.0)
        begun = copy.deepcopy(net)
        times = torch.zeros(1, 6, dtype=torch.float64)
        fired, seen = net.learn(times, torch.tensor([2]))
        assert torch.isinf(fired.times).all()
        assert torch.isfinite(seen["1"]).any()
        moved = (net.output.weight - begun.output.weight).detach()
        if kind == "real":
            assert moved[2].abs().max() == pytest.approx(0.3)  # lr times an error of length 1
            assert (moved[2] >= 0).all() and not moved[[0, 1, 3]].any()
        else:
            assert not moved.any() and net.output.scale == begun.output.scale


def test_margin_is_cut_at_the_end_of_the_window():
    net = S4NN([1, 2], steps=10, threshold=1.0, spread=[1.0], margin=5, weight_decay=0.0).double()
    with torch.no_grad():
        net.output.weight.copy_(torch.tensor([[2.0], [2.0]]))
    net.learn(
        torch.tensor([[6.0]], dtype=torch.float64), torch.tensor([0])
    )  # both at 7: the wrong one to 10, not 12
    # its error is (10 - 7) / 10 before the length is made 1; the right one stays
    assert net.output.weight.flatten().tolist() == pytest.approx([2.0, 1.8])
    late = OnlineTargets(margin=5)
    times = torch.tensor([[7.0, 7.0]], dtype=torch.float64)
    assert late(net.output, Fired(times, times, times), torch.tensor([0])).item() == pytest.approx(
        0.5 * 0.3**2
    )


@pytest.mark.parametrize("kind", ["real", "binary"])
def test_the_loss_has_the_targets_that_learning_has(kind):
    """A network of one layer moves each weight by lr times the normalised displacement of the loss."""
    net = made(kind, [12, 4], threshold=5.0, weight_decay=0.0, margin=2)
    loss = OnlineTargets(net.margin, wake=net.wake)
    times, y = images(30, 12, seed=3)
    times[::4, 2:] = math.inf  # too few spikes to fire
    silent = 0
    for b in range(30):
        begun = net.output.weight.detach().clone()
        fired, _ = net.learn(times[b : b + 1], y[b : b + 1])
        found = torch.where(torch.isinf(fired.times), STEPS, fired.times)
        d, _ = loss.displace(net.output, found, torch.isfinite(fired.times), y[b : b + 1])
        d = torch.nn.functional.normalize(d)
        gate = times[b] < found[0][:, None]
        torch.testing.assert_close(
            begun - net.output.weight, net.lr * d[0][:, None] * gate, atol=1e-12, rtol=0
        )
        silent += bool(torch.isinf(fired.times).all())
    assert 0 < silent < 30


def test_dead_neurons_get_new_weights():
    net = made("real", [30, 14, 9, 4], dead=0.3)
    with torch.no_grad():
        net.layers[0].weight[3] = -1.0
        net.layers[1].weight[[0, 5]] = -1.0
    reference = Reference(net)
    times, y = images(30, 30)
    net.learn(times, y)
    for b in range(30):
        reference.learn(times[b].numpy(), int(y[b]))
    compare(net, reference)
    torch.manual_seed(9)
    drawn = net.begin_epoch()
    torch.manual_seed(9)
    expected = sum(int((count < 0.3 * 30).sum()) for count in reference.counts[:-1])
    reference.begin_epoch()
    assert drawn == expected >= 3
    compare(net, reference)
    assert (net.layers[0].weight[3] >= 0).all() and int(net.images) == 0
    assert net.begin_epoch() == 0  # nothing was counted since


def test_outputs_are_never_drawn_anew_and_binary_networks_draw_none():
    net = made("real", [30, 14, 4], dead=0.5)
    with torch.no_grad():
        net.output.weight[1] = -5.0
    times, y = images(20, 30)
    net.learn(times, torch.zeros_like(y))
    kept = net.output.weight.detach().clone()
    net.begin_epoch()
    assert torch.equal(net.output.weight, kept)
    binary = BS4NN([30, 14, 4], steps=STEPS)
    binary.learn(torch.full((5, 30), math.inf), torch.zeros(5, dtype=torch.int64))
    before = binary.layers[0].weight.detach().clone()
    assert binary.begin_epoch() == 0 and torch.equal(binary.layers[0].weight, before)


def test_evaluation_equals_learning_and_does_not_depend_on_the_threads(two_threads):
    for kind in ("real", "binary"):
        net = made(kind, [30, 14, 9, 4], weight_decay=0.0)
        times, y = images(203, 30)
        fired, seen = net.follow(times)
        torch.set_num_threads(1)
        alone, _ = net.follow(times)
        torch.set_num_threads(2)
        assert torch.equal(fired.times, alone.times) and torch.equal(fired.potential, alone.potential)
        frozen = copy.deepcopy(net)
        frozen.lr = 1e-300
        frozen.lr_scale = 0.0
        learnt, hidden = frozen.learn(times, y)
        assert torch.equal(learnt.times, fired.times)
        torch.testing.assert_close(learnt.potential, fired.potential)
        assert all(torch.equal(seen[name], hidden[name]) for name in seen) and list(seen) == ["1", "2", "3"]
        # layer by layer is the same network
        x = times
        for layer in net.layers:
            x = layer(x)
        assert torch.equal(x, fired.times)


def test_equality_does_not_fire():
    layer = OnlineLinear(2, 3, stop=10, threshold=2.0)
    layer.set_weight(torch.tensor([[1.0, 1.0], [1.0, 1.0 + 2**-20], [2.0, -1.0]]))
    assert layer(torch.tensor([[1.0, 4.0]])).tolist() == [[math.inf, 5.0, math.inf]]
    binary = OnlineLinear(2, 1, stop=10, threshold=2.0, binary=True, initial_scale=1.0)
    binary.set_weight(torch.ones(1, 2))
    assert binary(torch.tensor([[1.0, 4.0]])).tolist() == [[math.inf]]
    binary.scale.data.fill_(1.0 + 1e-9)
    assert binary(torch.tensor([[1.0, 4.0]])).tolist() == [[5.0]]


def test_a_spike_in_the_last_step_is_none():
    layer = OnlineLinear(1, 1, stop=10, threshold=1.0)
    layer.set_weight(torch.tensor([[2.0]]))
    assert layer(torch.tensor([[8.0], [9.0]])).tolist() == [[9.0], [math.inf]]
    fired = layer.fire(torch.tensor([[7.0], [8.0], [9.0]]))
    assert fired.potential.tolist() == [[2.0], [2.0], [0.0]]  # at 8; at 9; silent: at 7, three before the end


def test_both_counts():
    inf = math.inf
    times = torch.tensor(
        [[4.0, 4.0, 9.0], [4.0, 4.0, 9.0], [4.0, 4.0, 9.0], [inf, inf, inf], [inf, inf, inf], [5.0, 3.0, 9.0]]
    )
    potential = torch.tensor(
        [[3.0, 3.5, 9.0], [3.5, 3.0, 9.0], [3.0, 3.0, 9.0], [1.0, 2.0, 0.0], [1.0, 2.0, 0.0], [0.0, 3.0, 1.0]]
    )
    y = torch.tensor([0, 0, 1, 1, 0, 1])
    fired = Fired(times, potential, times)
    # 0: tied and lost by the membrane; 1: tied and won; 2: tied and lost by the number; 3: silent, right by the membrane;
    # 4: silent and wrong; 5: first
    assert count_hits(fired, y) == (pytest.approx(2 / 6), pytest.approx(5 / 6), pytest.approx(2 / 6))


def test_accuracy_of_a_network():
    net = S4NN([2, 2], steps=10, threshold=1.0)
    net.output.set_weight(torch.tensor([[2.0, 0.0], [0.0, 2.0]]))
    times = torch.tensor([[1.0, 5.0], [5.0, 1.0], [3.0, 3.0], [math.inf, math.inf]])
    assert net.accuracy(times, torch.tensor([0, 0, 1, 0])) == (0.25, 0.75, 0.25)


def test_saved_in_the_middle_of_an_epoch_it_goes_on_to_the_bit():
    times, y = images(60, 30)
    times = times.float()
    for kind in ("real", "binary"):
        options = {"dead": 0.3} if kind == "real" else {"lr_scale": 0.05}
        whole = made(kind, [30, 14, 4], **options).float()
        with torch.no_grad():
            whole.layers[0].weight[3] = -1.0
        whole.learn(times[:20], y[:20])
        stored = copy.deepcopy(whole.state_dict())
        torch.manual_seed(7)
        whole.learn(times[20:40], y[20:40])
        drawn = whole.begin_epoch()
        whole.learn(times[40:], y[40:])
        again = made(kind, [30, 14, 4], **options).float()
        again.load_state_dict(stored)
        torch.manual_seed(7)
        again.learn(times[20:40], y[20:40])
        assert again.begin_epoch() == drawn and (drawn > 0) == (kind == "real")
        again.learn(times[40:], y[40:])
        for (name, one), other in zip(whole.state_dict().items(), again.state_dict().values(), strict=True):
            assert torch.equal(one, other), name
        assert not torch.equal(stored["1.weight"], whole.state_dict()["1.weight"])


def test_weights_in_another_order_of_memory_are_learnt_too():
    net, other = made("real", [30, 14, 4]), made("real", [30, 14, 4])
    for layer in other.layers:
        layer.weight.data = layer.weight.data.contiguous()
        assert not layer.weight.t().is_contiguous()
    times, y = images(20, 30)
    net.learn(times, y)
    other.learn(times, y)
    for a, b in zip(net.layers, other.layers, strict=True):
        assert torch.equal(a.weight, b.weight)


def test_it_is_a_network_of_spike_times():
    net = BS4NN([784, 6, 10])
    assert isinstance(net, Network) and net.output.binary and net.output.stop == 256
    fired, seen = net.follow(PixelTimes(code="byte")(torch.rand(3, 1, 28, 28)))
    assert fired.times.shape == (3, 10) and seen["1"].shape == (3, 6)
    assert not net(PixelTimes()(torch.rand(3, 784))).requires_grad
    weight = net.layers[0].effective_weight()
    assert set(weight.unique().tolist()) == {5.0}
    initial = [layer.weight.detach() for layer in S4NN([784, 40, 10]).layers]
    assert 4.9 < initial[0].max() <= 5 and 47 < initial[1].max() <= 48 and initial[1].min() >= 0


# ------------------------------------------------------------------------------------------------------- the code of pixels


def test_pixels_of_all_levels():
    level = torch.arange(256)
    pixels = (level.float() / 255).unsqueeze(0)
    late = torch.tensor([(255 - i) * 256 // 255 for i in range(256)]).float()
    scaled = PixelTimes()(pixels)[0]
    assert torch.equal(scaled[1:], late[1:]) and torch.isinf(scaled[0]) and torch.isfinite(scaled[1:]).all()
    byte = PixelTimes(code="byte")(pixels)[0]
    assert torch.equal(byte[1:], (255 - level).float()[1:]) and torch.isinf(byte[0])
    short = PixelTimes(64)(pixels)[0]
    assert short[255] == 0 and short[1] == 63 and torch.isinf(short[0])
    assert torch.isinf(PixelTimes(code="byte")(torch.zeros(2, 3))).all()
    assert not PixelTimes()(torch.ones(2, 3)).any()


@pytest.mark.parametrize(
    ("x", "error"),
    [
        (torch.tensor([[math.nan]]), DataError),
        (torch.tensor([[1.2]]), DataError),
        (torch.tensor([[-0.1]]), DataError),
        (torch.tensor([[3]]), ShapeError),
    ],
)
def test_pixels_that_are_none(x, error):
    with pytest.raises(error, match="PixelTimes"):
        PixelTimes()(x)


# ---------------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("times", "error", "word"),
    [
        (torch.full((2, 5), math.nan), NonFiniteError, "10 of 10"),
        (torch.tensor([[0.0, 1.0, -1.0, 3.0, 4.0]] * 2), NonFiniteError, "2 of 10"),
        (torch.tensor([[0.0, 1.0, 2.5, 3.0, 4.0]] * 2), DataError, "2.5"),
        (torch.tensor([[0.0, 1.0, 20.0, 3.0, 4.0]] * 2), DataError, "0 to 19"),
        (torch.zeros(2, 6), ShapeError, r"\(B, 5\)"),
        (torch.zeros(5), ShapeError, r"\(B, 5\)"),
        (torch.zeros(0, 5), ShapeError, "at least one"),
        (torch.zeros(2, 5, dtype=torch.int64), ShapeError, "floating"),
    ],
)
def test_input_that_does_not_fit(times, error, word):
    net = S4NN([5, 3], steps=STEPS)
    with pytest.raises(error, match=word):
        net(times)
    before = net.output.weight.detach().clone()
    with pytest.raises(error, match=word):
        net.learn(times, torch.zeros(len(times), dtype=torch.int64))
    assert torch.equal(net.output.weight, before)


@pytest.mark.parametrize(
    ("y", "error"),
    [
        (torch.tensor([0, 3]), DataError),
        (torch.tensor([-1, 0]), DataError),
        (torch.tensor([0.0, 1.0]), ShapeError),
        (torch.tensor([0]), ShapeError),
    ],
)
def test_labels_that_do_not_fit(y, error):
    net = S4NN([5, 3], steps=STEPS)
    for ask in (net.learn, net.accuracy):
        with pytest.raises(error):
            ask(torch.zeros(2, 5), y)


@pytest.mark.parametrize(
    "options",
    [
        {"margin": 0},
        {"margin": STEPS},
        {"margin": 1.5},
        {"steps": 3},
        {"steps": 40000},
        {"threshold": 0.0},
        {"lr": 0.0},
        {"lr": math.nan},
        {"weight_decay": -1.0},
        {"weight_decay": 10.0},
        {"dead": 1.0},
        {"spread": [5.0]},
        {"spread": [5.0, 0.0]},
        {"sizes": [5]},
        {"sizes": [5, 0]},
    ],
)
def test_options_out_of_range(options):
    with pytest.raises(ParameterError):
        S4NN(**{"sizes": [5, 4, 3], "steps": STEPS, **options})


def test_options_of_binary_networks_out_of_range():
    for options in ({"initial_scale": 0.0}, {"lr_scale": -1.0}):
        with pytest.raises(ParameterError):
            BS4NN([5, 3], **options)
    with pytest.raises(ParameterError, match="code"):
        PixelTimes(code="byte_")


def test_a_scale_that_falls_to_zero_is_said():
    net = made("binary", [12, 4], threshold=5.0, lr_scale=1e4)
    times, y = images(30, 12)
    with pytest.raises(NonFiniteError, match="lr_scale"):
        net.learn(times, y)


def test_half_precision_is_refused():
    net = S4NN([5, 3], steps=STEPS).half()
    with pytest.raises(SpiketideError, match="float32 or float64"):
        net(torch.zeros(2, 5))
