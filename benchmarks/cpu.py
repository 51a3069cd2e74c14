"""Speed on the CPU: ours against the same step without neurons, against a plain loop, and against peers where installed.

    OMP_WAIT_POLICY=passive python benchmarks/cpu.py [--quick] [--only w1,w2,w3,scan,memory,checkpoint,recurrent] [--json]

Every figure is behind a parity gate: spikes equal to the reference loop's, gradients within 1e-4 of them.
Entries run interleaved in one process; the ratio is the median over rounds of the ratio within a round.
"""

from __future__ import annotations

import argparse
import copy
import functools
import importlib.util
import itertools
import statistics
from collections.abc import Callable
from typing import Any

import torch
from common import emit, gate, interleaved, machine, median_ratio, peak_memory, table
from torch import Tensor, nn

import spiketide as st
from spiketide.init import Normal
from spiketide.neurons import StepNeuron
from spiketide.surrogate import ATan

DECAY, THRESHOLD = 0.9, 1.0
USER = "user's step / built-in"


def tau(decay: float) -> float:
    """The time constant in steps of a decay."""
    return float(-1.0 / torch.tensor(decay, dtype=torch.float64).log())


def our_lif(n: int, engine: str | None = None) -> st.LIF:
    """The workloads' LIF: decay 0.9, threshold 1, soft reset without gradient, arctan surrogate."""
    return st.LIF(
        n, tau_mem=tau(DECAY), threshold=THRESHOLD, reset="soft_detached", surrogate=ATan(2.0), engine=engine
    )


def binary(*shape: int, rate: float = 0.05, seed: int = 0) -> Tensor:
    """Random binary spikes."""
    return (torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < rate).float()


class SpikeATan(torch.autograd.Function):
    """The loop's spike, written as a user would."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x > 0).float()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return g / (1 + (torch.pi * x) ** 2)


class TorchLoop(nn.Module):
    """Linear and LIF as a plain loop over ``unbind(0)``, the input projection hoisted out of it."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        v: Any = 0.0
        out = []
        for h in self.linear(x).unbind(0):
            v = DECAY * v + h
            s = SpikeATan.apply(v - THRESHOLD)
            v = v - THRESHOLD * s.detach()
            out.append(s)
        return torch.stack(out)


class Ours(nn.Module):
    """Dense and LIF, in the sequence in which they run as one loop."""

    def __init__(self, linear: nn.Linear, engine: str | None = None) -> None:
        super().__init__()
        self.dense = st.Dense(linear.in_features, linear.out_features, bias=linear.bias is not None)
        self.dense.load_state_dict(linear.state_dict())
        self.lif = our_lif(linear.out_features, engine)
        self.pair = st.Sequential(self.dense, self.lif)

    def forward(self, x: Tensor) -> Tensor:
        return self.pair(x)[0]


def apart(pair: Ours, x: Tensor) -> Tensor:
    """The same layers one after the other."""
    return pair.lif(pair.dense(x)[0])[0]


def gate_pair(pair: Ours, x: Tensor) -> None:
    """The loop that is both layers gives their outputs and gradients."""
    begin = x.clone().requires_grad_()
    operands = (begin, *pair.parameters())
    together, separate = pair(begin), apart(pair, begin)
    seed = torch.randn(together.shape)
    gate("pair", bool(torch.equal(together, separate)), "spikes of the pair differ")
    ours = torch.autograd.grad(together, operands, seed)
    theirs = torch.autograd.grad(separate, operands, seed)
    gate("pair's gradients", all(map(close, ours, theirs)), "gradients of the pair differ")


def peers(linear: nn.Linear) -> dict[str, Callable[[Tensor], Tensor]]:
    """The peers that are installed, each as its documentation does it, with the projection hoisted (their best case)."""
    found: dict[str, Callable[[Tensor], Tensor]] = {}
    if importlib.util.find_spec("snntorch"):
        import snntorch
        from snntorch import surrogate as snn_surrogate

        cell = snntorch.Leaky(beta=DECAY, threshold=THRESHOLD, spike_grad=snn_surrogate.atan(alpha=2.0))

        def run_snntorch(x: Tensor) -> Tensor:
            mem, out = cell.init_leaky(), []
            for h in linear(x).unbind(0):
                s, mem = cell(h, mem)
                out.append(s)
            return torch.stack(out)

        found["snntorch"] = run_snntorch
    if importlib.util.find_spec("spikingjelly"):
        from spikingjelly.activation_based import functional, neuron, surrogate

        node = neuron.LIFNode(
            tau=1 / (1 - DECAY), decay_input=False, v_threshold=THRESHOLD, v_reset=None, detach_reset=True,
            surrogate_function=surrogate.ATan(2.0), step_mode="m",
        )  # fmt: skip

        def run_spikingjelly(x: Tensor) -> Tensor:
            functional.reset_net(node)
            return node(linear(x))

        found["spikingjelly"] = run_spikingjelly
    if importlib.util.find_spec("norse"):
        from norse.torch import LIFBoxParameters
        from norse.torch.functional.lif_box import LIFBoxFeedForwardState, lif_box_feed_forward_step

        p = LIFBoxParameters(tau_mem_inv=torch.tensor(100.0), v_th=torch.tensor(THRESHOLD))

        def run_norse(x: Tensor) -> Tensor:
            state, out = LIFBoxFeedForwardState(v=torch.zeros(x.shape[1], linear.out_features)), []
            for h in linear(x).unbind(0):
                s, state = lif_box_feed_forward_step(h * 10, state, p)
                out.append(s)
            return torch.stack(out)

        found["norse"] = run_norse
    return found


def training_step(
    forward: Callable[[Tensor], Tensor], x: Tensor, weights: list[Tensor]
) -> Callable[[], None]:
    """Forward and backward to the weights."""

    def step() -> None:
        for w in weights:
            w.grad = None
        y = forward(x)
        y.backward(_ones(y.shape))

    return step


@functools.cache
def _ones(shape: torch.Size) -> Tensor:
    return torch.ones(shape) * 0.01


def close(a: Tensor, b: Tensor, tolerance: float = 1e-4) -> bool:
    """Equal within ``tolerance`` of the largest value."""
    return float((a - b).abs().max()) <= tolerance * float(b.abs().max())


def w1(n: int, graded: bool, rounds: int) -> dict[str, Any]:
    """One Linear(n, n) and LIF, B 16, T 500, forward and backward to the weights."""
    torch.manual_seed(0)
    linear = nn.Linear(n, n)
    with torch.no_grad():
        linear.weight.mul_(4.0 if not graded else 1.0)
    x = torch.randn(500, 16, n) if graded else binary(500, 16, n)
    ours, loop = Ours(linear), TorchLoop(linear)
    reference = Ours(linear, engine="reference")
    with torch.no_grad():
        spikes, truth = ours(x), reference(x)
    rate = float(truth.mean())
    gate("firing rate", 0.01 < rate < 0.6, f"{rate:.4f}")
    # the projections round differently, so a membrane within an ulp of its threshold may tip; the scan itself is bit-exact
    differing = float((spikes != truth).float().mean())
    gate("spikes", differing < 1e-4, f"{differing:.2e} differ")
    gate_pair(ours, x)
    h = linear(x).detach().requires_grad_()
    a, b = ours.lif(h)[0], reference.lif(h)[0]
    ga, gb = torch.autograd.grad(a.sum(), h)[0], torch.autograd.grad(b.sum(), h)[0]
    gate("scan", bool(torch.equal(a, b)) and close(ga, gb), "fused and reference scans disagree")
    seed = torch.randn(500 * 16, n)
    dense = (linear(x).reshape(-1, n) * seed).sum()
    (gw,) = torch.autograd.grad(dense, linear.weight)
    (gw2,) = torch.autograd.grad((ours.dense(x)[0].reshape(-1, n) * seed).sum(), ours.dense.weight)
    gate("weight gradient", close(gw2, gw), "projection disagrees with the matrix product")
    entries: dict[str, Callable[[], None]] = {
        "linear only (floor)": training_step(linear, x, list(linear.parameters())),
        "spiketide": training_step(ours, x, list(ours.parameters())),
        "torch loop": training_step(loop, x, list(linear.parameters())),
    }
    for name, run in peers(linear).items():
        if n <= 512 or name not in {"norse"}:  # its loop takes 14 s a step at 2048
            entries[name] = training_step(run, x, list(linear.parameters()))
    times = interleaved(entries, rounds=rounds)
    floor = times["linear only (floor)"]
    return {
        "firing_rate": rate,
        "ms": {k: 1e3 * statistics.median(t) for k, t in times.items()},
        "ratio": {k: median_ratio(t, floor) for k, t in times.items()},
    }


def network(kind: str, sizes: list[int]) -> nn.Module:
    """Dense layers with LIF between them, and a summed linear read-out."""
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(itertools.pairwise(sizes)):
        linear = nn.Linear(a, b)
        with torch.no_grad():
            linear.weight.mul_(3.0)
        last = i == len(sizes) - 2
        if kind == "floor" or last:
            layers.append(linear if kind != "ours" else _dense(linear))
        elif kind == "ours":
            layers.append(Ours(linear))
        else:
            layers.append(TorchLoop(linear))
    return nn.Sequential(*layers)


class _Output(nn.Module):
    def __init__(self, dense: st.Dense) -> None:
        super().__init__()
        self.dense = dense

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(x)[0]


def _dense(linear: nn.Linear) -> nn.Module:
    dense = st.Dense(linear.in_features, linear.out_features)
    dense.load_state_dict(linear.state_dict())
    return _Output(dense)


def w2(rounds: int) -> dict[str, Any]:
    """Training step of 140-256-256-20, B 128, T 100, 5 % spikes, cross-entropy, Adam."""
    x = binary(100, 128, 140)
    target = torch.randint(20, (128,), generator=torch.Generator().manual_seed(1))
    sizes = [140, 256, 256, 20]

    def make(kind: str) -> tuple[nn.Module, Callable[[], None]]:
        torch.manual_seed(0)
        model = network(kind, sizes)
        optimizer = torch.optim.Adam(model.parameters(), 1e-4, foreach=True)

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            nn.functional.cross_entropy(model(x).mean(0), target).backward()
            optimizer.step()

        return model, step

    made = {
        name: make(kind)
        for name, kind in (("linear only (floor)", "floor"), ("spiketide", "ours"), ("torch loop", "loop"))
    }
    ours, loop = made["spiketide"][0], made["torch loop"][0]
    with torch.no_grad():
        first, second, plain = ours[:1](x), ours[:2](x), loop[:1](x)
    rates = [float(first.mean()), float(second.mean())]
    gate("firing rate", all(0.01 < r < 0.6 for r in rates), str(rates))
    differing = float((first != plain).float().mean())
    gate("spikes", differing < 1e-4, f"{differing:.2e} differ")
    gate_pair(ours[0], x)
    gate_pair(ours[1], first)
    times = interleaved({name: step for name, (_, step) in made.items()}, rounds=rounds)
    floor = times["linear only (floor)"]
    return {
        "firing_rate": rates,
        "ms": {k: 1e3 * statistics.median(t) for k, t in times.items()},
        "ratio": {k: median_ratio(t, floor) for k, t in times.items()},
    }


def scans(rounds: int) -> dict[str, Any]:
    """LIF and ALIF scans alone against a copy of the bytes they must move; a user's neuron against the built-in."""
    from spiketide import spike
    from spiketide.scan import saved_bytes

    def mine(x: Any, v: Any, decay: Any, threshold: Any) -> Any:
        v = decay * v + x
        s = spike(v - threshold)
        return s, v - threshold * s.detach()

    steps, batch, n = 500, 16, 512
    x = torch.randn(steps, batch, n, generator=torch.Generator().manual_seed(0))
    user = StepNeuron(
        n,
        mine,
        states=("v",),
        constants={"decay": float(our_lif(1).tau_mem.decay()), "threshold": THRESHOLD},
        surrogate=ATan(2.0),
    )
    alif = st.ALIF(
        n, threshold=0.1, adaptation=1.0, tau_mem=20.0, tau_adapt=100.0, learn=(), surrogate=ATan(2.0)
    )
    layers = {"LIF": our_lif(n), "LIF, user's step": user, "ALIF": alif}
    result: dict[str, Any] = {}
    entries: dict[str, Callable[[], None]] = {}
    gradient = torch.randn(steps, batch, n, generator=torch.Generator().manual_seed(1))
    size = x.numel() * 4
    for name, layer in layers.items():
        with torch.no_grad():
            rate = float(layer(x)[0].mean())
        gate(f"{name} firing rate", 0.01 < rate < 0.6, f"{rate:.3f}")
        written = saved_bytes(layer.dynamics, layer.surrogate)["written"] // 4
        # forward: read x, write y and what is saved; backward: read it back, read the gradient, write the gradient
        moved = size * (2 + written) + size * (2 + written)

        def run(layer: nn.Module = layer) -> None:
            h = x.detach().requires_grad_()
            y, _ = layer(h)
            y.backward(gradient)

        entries[name] = run
        buffer = torch.empty(moved // 8)
        other = torch.ones(moved // 8)

        def copy(a: Tensor = buffer, b: Tensor = other) -> None:
            a.copy_(b)

        def fresh(b: Tensor = other) -> None:
            # the same bytes into new memory, as every operation that returns a tensor must
            b.clone()

        entries[f"{name}: copy of the same bytes"] = copy
        entries[f"{name}: the same into fresh memory"] = fresh
        result[name] = {"firing_rate": rate, "bytes": moved}
    times = interleaved(entries, rounds=rounds, warmup=3)
    for name in layers:
        result[name]["ms"] = 1e3 * statistics.median(times[name])
        result[name]["copy_ms"] = 1e3 * statistics.median(times[f"{name}: copy of the same bytes"])
        result[name]["ratio_to_copy"] = median_ratio(times[name], times[f"{name}: copy of the same bytes"])
        result[name]["ratio_to_fresh_copy"] = median_ratio(
            times[name], times[f"{name}: the same into fresh memory"]
        )
    result[USER] = median_ratio(times["LIF, user's step"], times["LIF"])
    return result


def recurrent(rounds: int) -> dict[str, Any]:
    """Recurrent ALIF layer, T 784, B 256, N 256, against its dense matrix products."""
    torch.manual_seed(0)
    steps, batch, n = 784, 256, 256
    layer = st.Recurrent(st.ALIF(n, threshold=0.3, learn=()), st.Dense(n, n, bias=False))
    x = torch.randn(steps, batch, n) * 4.7  # 5 % firing
    gradient = torch.randn(steps, batch, n) * 0.01
    with torch.no_grad():
        y, _ = layer(x)
        rate = float(y.mean())
        gate("recurrent firing rate", 0.01 < rate < 0.6, f"{rate:.3f}")
        small = x[:50, :8]
        reference = st.Recurrent(st.ALIF(n, threshold=0.3, learn=(), engine="reference"), layer.synapse)
        differing = float((layer(small)[0] != reference(small)[0]).float().mean())
        gate("recurrent spikes", differing < 1e-3, f"{differing:.2e} differ")

    def ours() -> None:
        h = x.detach().requires_grad_()
        layer.synapse.weight.grad = None
        layer(h)[0].backward(gradient)

    flat = y.reshape(-1, n)
    g2 = gradient.reshape(-1, n)
    w = layer.synapse.weight.detach()

    def products() -> None:
        flat @ w.t()
        g2 @ w
        g2.t() @ flat

    times = interleaved(
        {"recurrent ALIF": ours, "three dense products (floor)": products}, rounds=rounds, warmup=1
    )
    floor = times["three dense products (floor)"]
    return {
        "firing_rate": rate,
        "ms": {k: 1e3 * statistics.median(t) for k, t in times.items()},
        "ratio": {k: median_ratio(t, floor) for k, t in times.items()},
    }


W3 = (1, 64, 256, 10)
"""Input, two recurrent adaptive layers, leaky integrators: Yin et al.'s S-MNIST network without its third hidden layer."""


def adaptive_network() -> st.Sequential:
    """W3 with the paper's constants, its time constants drawn as there and trained; weights that make it fire."""
    n, first, second, out = W3

    def layer(width: int) -> st.Recurrent:
        neuron = st.ALIF(
            width,
            tau_mem=Normal(20.0, 5.0, minimum=2.0),
            tau_adapt=Normal(200.0, 25.0, minimum=2.0),
            threshold=0.01,
            adaptation=1.8,
        )
        return st.Recurrent(neuron, st.Dense(width, width))

    readout = st.LeakyIntegrator(out, tau_mem=Normal(20.0, 5.0, minimum=2.0), learn=("tau_mem",))
    return st.Sequential(
        st.Dense(n, first),
        layer(first),
        st.Dense(first, second),
        layer(second),
        st.Dense(second, out),
        readout,
    )


class SpikeMultiGaussian(torch.autograd.Function):
    """The paper's spike: gamma 0.5, sigma 0.5, h 0.15, s 6."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors

        def normal(mean: float, sigma: float) -> Tensor:
            return torch.exp(-((x - mean) ** 2) / (2 * sigma**2)) / (sigma * (2 * torch.pi) ** 0.5)

        return g * 0.5 * (1.15 * normal(0.0, 0.5) - 0.15 * normal(0.5, 3.0) - 0.15 * normal(-0.5, 3.0))


class PaperLoop(nn.Module):
    """Yin et al.'s equations in a plain loop over ``unbind(0)``, with the weights and time constants of a network of ours.

    All layers within a step, as their code runs them; or, ``hoisted``, layer by layer with one product for all steps in front of
    every loop, which their code does not do.
    """

    def __init__(self, model: st.Sequential, hoisted: bool) -> None:
        super().__init__()
        self.model, self.hoisted = model, hoisted

    def parts(self) -> tuple[list[Any], list[Any]]:
        """Weights and per-step constants of every layer."""
        dense = [self.model[i] for i in (0, 2, 4)]
        linear = [(d.weight, d.bias) for d in dense]
        return linear, [
            *((r.neuron.coefs(), (r.synapse.weight, r.synapse.bias)) for r in (self.model[1], self.model[3])),
            self.model[5].coefs(),
        ]

    @staticmethod
    def step(drive: Tensor, state: Any, coefs: Any, back: Any) -> tuple[Tensor, Any]:
        """One step of an adaptive recurrent layer: (u, eta, s)."""
        u, eta, s = state
        alpha, rho, b0, beta = coefs
        eta = rho * eta + (1 - rho) * s
        theta = b0 + beta * eta
        current = drive + nn.functional.linear(s, *back)
        u = alpha * u + (1 - alpha) * current - theta * s
        s = SpikeMultiGaussian.apply(u - theta)
        return s, (u, eta, s)

    def forward(self, x: Tensor) -> Tensor:
        linear, (first, second, (alpha,)) = self.parts()
        batch = x.shape[1]
        states = [tuple(x.new_zeros(batch, n) for _ in range(3)) for n in W3[1:3]]
        o: Any = x.new_zeros(batch, W3[3])
        out = []
        if self.hoisted:
            h = x
            for k, layer in enumerate((first, second)):
                spikes, state = [], states[k]
                for drive in nn.functional.linear(h, *linear[k]).unbind(0):
                    s, state = self.step(drive, state, *layer)
                    spikes.append(s)
                h = torch.stack(spikes)
            for drive in nn.functional.linear(h, *linear[2]).unbind(0):
                o = alpha * o + (1 - alpha) * drive
                out.append(o)
            return torch.stack(out)
        for h in x.unbind(0):
            s = h
            for k, layer in enumerate((first, second)):
                s, states[k] = self.step(nn.functional.linear(s, *linear[k]), states[k], *layer)
            o = alpha * o + (1 - alpha) * nn.functional.linear(s, *linear[2])
            out.append(o)
        return torch.stack(out)


def recurrent_peers() -> dict[str, nn.Module]:
    """Peers on a network of the same sizes, as documented: recurrent LIF without adaptation, which is less work."""
    found: dict[str, nn.Module] = {}
    n, first, second, out = W3
    if importlib.util.find_spec("snntorch"):
        import snntorch
        from snntorch import surrogate as snn_surrogate

        class SnnTorch(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.dense = nn.ModuleList(
                    [nn.Linear(n, first), nn.Linear(first, second), nn.Linear(second, out)]
                )
                self.cells = nn.ModuleList(
                    snntorch.RLeaky(
                        beta=torch.full((k,), 0.95), linear_features=k, learn_beta=True,
                        spike_grad=snn_surrogate.atan(alpha=2.0),
                    )
                    for k in (first, second)
                )  # fmt: skip
                self.readout = snntorch.Leaky(
                    beta=torch.full((out,), 0.95), learn_beta=True, reset_mechanism="none"
                )

            def forward(self, x: Tensor) -> Tensor:
                states = [cell.init_rleaky() for cell in self.cells]
                membrane, outputs = self.readout.init_leaky(), []
                for h in x.unbind(0):
                    for k, cell in enumerate(self.cells):
                        h, mem = cell(self.dense[k](h), *states[k])
                        states[k] = (h, mem)
                    _, membrane = self.readout(self.dense[2](h), membrane)
                    outputs.append(membrane)
                return torch.stack(outputs)

        found["snntorch RLeaky"] = SnnTorch()
    if importlib.util.find_spec("norse"):
        from norse.torch import LICell, LIFRecurrentCell

        class Norse(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.cells = nn.ModuleList([LIFRecurrentCell(n, first), LIFRecurrentCell(first, second)])
                self.dense, self.readout = nn.Linear(second, out), LICell()

            def forward(self, x: Tensor) -> Tensor:
                states: list[Any] = [None, None]
                last, outputs = None, []
                for h in x.unbind(0):
                    for k, cell in enumerate(self.cells):
                        h, states[k] = cell(h, states[k])
                    o, last = self.readout(self.dense(h), last)
                    outputs.append(o)
                return torch.stack(outputs)

        found["norse LIFRecurrentCell"] = Norse()
    return found


def w3(rounds: int) -> dict[str, Any]:
    """Training step of W3 on pixel sequences, T 784, B 256: cross-entropy of the mean output, Adam."""
    torch.manual_seed(0)
    model = adaptive_network()
    x = torch.rand(784, 256, 1, generator=torch.Generator().manual_seed(2))
    target = torch.randint(W3[3], (256,), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        first = model[1](model[0](x)[0])[0]
        second = model[3](model[2](first)[0])[0]
    rates = [float(first.mean()), float(second.mean())]
    gate("firing rate", all(0.01 < r < 0.6 for r in rates), str(rates))
    # in double precision no membrane stands within rounding of its threshold
    wide = copy.deepcopy(model).double()
    few = x[:120, :4].double()
    truth = PaperLoop(wide, hoisted=False)(few)
    parameters = list(wide.parameters())
    want = torch.autograd.grad(truth.square().sum(), parameters)
    truth = truth.detach()
    for name, y in (("fused", wide(few)[0]), ("hoisted", PaperLoop(wide, hoisted=True)(few))):
        gate(f"W3 {name} outputs", close(y.detach(), truth, 1e-9), "differ from the paper's loop")
        got = torch.autograd.grad(y.square().sum(), parameters)
        gate(f"W3 {name} gradients", all(close(a, b, 1e-7) for a, b in zip(got, want, strict=True)), "differ")

    def training(network: Callable[[Tensor], Tensor], owner: nn.Module) -> Callable[[], None]:
        optimizer = torch.optim.Adam(owner.parameters(), 1e-5, foreach=True)

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            nn.functional.cross_entropy(network(x).mean(0), target).backward()
            optimizer.step()

        return step

    loops = {hoisted: copy.deepcopy(model) for hoisted in (False, True)}
    entries = {
        "spiketide": training(lambda h: model(h)[0], model),
        "paper's equations, torch loop": training(PaperLoop(loops[False], False), loops[False]),
        "the same, projections hoisted": training(PaperLoop(loops[True], True), loops[True]),
    }
    entries |= {name: training(peer, peer) for name, peer in recurrent_peers().items()}
    times = interleaved(entries, rounds=rounds, warmup=1)
    return {
        "firing_rate": rates,
        "ms": {k: 1e3 * statistics.median(t) for k, t in times.items()},
        "ratio": {k: median_ratio(t, times["spiketide"]) for k, t in times.items()},
    }


def _checkpoint_of(steps: int, checkpointed: bool) -> tuple[Callable[[], None], Callable[[], None]]:
    torch.manual_seed(0)
    plain = adaptive_network()
    model = st.Checkpointed(plain) if checkpointed else plain
    target = torch.randint(W3[3], (64,))

    def step(x: Tensor) -> Callable[[], None]:
        def run() -> None:
            model.zero_grad(set_to_none=True)
            nn.functional.cross_entropy(model(x)[0].mean(0), target).backward()

        return run

    return step(torch.rand(30, 64, 1)), step(torch.rand(steps, 64, 1))


def checkpoint() -> dict[str, Any]:
    """W3 at B 64 for growing T, plain and checkpointed: peak resident memory over the memory before, and time."""
    found: dict[str, Any] = {}
    for steps in (784, 1568, 3136):
        outputs = []
        for checkpointed in (False, True):
            torch.manual_seed(0)
            plain = adaptive_network()
            model = st.Checkpointed(plain, 20) if checkpointed else plain
            x = torch.rand(100, 4, 1, generator=torch.Generator().manual_seed(2))
            y, _ = model(x)
            y.square().sum().backward()
            outputs.append((y.detach(), [p.grad for p in plain.parameters()]))
        gate(
            "checkpointed outputs",
            bool(torch.equal(outputs[0][0], outputs[1][0])),
            "differ from the plain run",
        )
        gate(
            "checkpointed gradients",
            all(close(a, b, 1e-5) for a, b in zip(outputs[1][1], outputs[0][1], strict=True)),
            "differ from the plain run",
        )
        plain_mib, ours = (peak_memory(functools.partial(_checkpoint_of, steps, c)) for c in (False, True))
        times = interleaved({str(c): _checkpoint_of(steps, c)[1] for c in (False, True)}, rounds=3, warmup=1)
        found[str(steps)] = {
            "plain_MiB": plain_mib,
            "MiB": ours,
            "MiB_ratio": plain_mib / ours,
            "ms_ratio": median_ratio(times["True"], times["False"]),
        }
    return found


def _memory_of(kind: str) -> tuple[Callable[[], None], Callable[[], None]]:
    torch.manual_seed(0)
    linear = nn.Linear(512, 512)
    model = {"floor": lambda: linear, "ours": lambda: Ours(linear), "loop": lambda: TorchLoop(linear)}[kind]()
    weights = list(model.parameters())
    # a few steps of the same density take the same way through the library
    small, full = binary(40, 16, 512), binary(500, 16, 512)
    return training_step(model, small, weights), training_step(model, full, weights)


def memory() -> dict[str, Any]:
    """Peak resident memory of W1-512 over the memory before the step, in MiB."""
    peaks = {
        "linear only (floor)": peak_memory(functools.partial(_memory_of, "floor")),
        "spiketide": peak_memory(functools.partial(_memory_of, "ours")),
        "torch loop": peak_memory(functools.partial(_memory_of, "loop")),
    }
    return {"MiB": peaks, "share_of_loop": peaks["spiketide"] / peaks["torch loop"]}


def main() -> None:
    """Run the workloads asked for and print their tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few rounds, no W1-2048")
    parser.add_argument(
        "--only", default="w1,w2,w3,scan,memory,checkpoint,recurrent", help="workloads, comma-separated"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    only, rounds = set(args.only.split(",")), 7 if args.quick else 21
    result: dict[str, Any] = {"machine": machine()}
    print(", ".join(f"{k} {v}" for k, v in result["machine"].items()))
    jobs: dict[str, Callable[[], dict[str, Any]]] = {}
    if "w1" in only:
        jobs["W1-512, 5 % spikes"] = lambda: w1(512, False, rounds)
        jobs["W1-512, graded dense input"] = lambda: w1(512, True, rounds)
        if not args.quick:
            jobs["W1-2048, 5 % spikes"] = lambda: w1(2048, False, 7)
    if "w2" in only:
        jobs["W2 140-256-256-20, Adam step"] = lambda: w2(rounds)
    if "recurrent" in only:
        jobs["Recurrent ALIF 784 x 256 x 256"] = lambda: recurrent(3 if args.quick else 7)
    if "w3" in only:
        jobs["W3 1-64r-256r-10, adaptive, T 784, Adam step"] = lambda: w3(3 if args.quick else 5)
    for name, job in jobs.items():
        result[name] = job()
        rows = [(k, f"{v:.1f}", f"{result[name]['ratio'][k]:.2f}") for k, v in result[name]["ms"].items()]
        table(f"{name}   firing rate {result[name]['firing_rate']}", rows, ("entry", "ms", "ratio to floor"))
    if "scan" in only:
        result["scan"] = scans(rounds)
        rows = [
            (k, f"{v['ms']:.2f}", f"{v['ratio_to_copy']:.2f}", f"{v['ratio_to_fresh_copy']:.2f}")
            for k, v in result["scan"].items()
            if isinstance(v, dict)
        ]
        table(
            "Scans alone, T 500, 8192 neurons, forward + backward",
            rows,
            ("neuron", "ms", "to a copy", "to a fresh copy"),
        )
        print(f"  user's step / built-in LIF: {result['scan'][USER]:.2f}")
    if "memory" in only:
        result["memory"] = memory()
        table(
            "Peak memory of W1-512",
            [(k, f"{v:.0f}") for k, v in result["memory"]["MiB"].items()],
            ("entry", "MiB"),
        )
        print(f"  spiketide / torch loop: {result['memory']['share_of_loop']:.2f}")
    if "checkpoint" in only:
        result["checkpoint"] = checkpoint()
        table(
            "Full back-propagation, 1-64r-256r-10, B 64: peak memory and time of a training step",
            [
                (
                    k,
                    f"{v['plain_MiB']:.0f}",
                    f"{v['MiB']:.0f}",
                    f"{v['MiB_ratio']:.1f}",
                    f"{v['ms_ratio']:.2f}",
                )
                for k, v in result["checkpoint"].items()
            ],
            (
                "steps",
                "plain, MiB",
                "checkpointed, MiB",
                "memory, plain / checkpointed",
                "time, checkpointed / plain",
            ),
        )
    emit(result, args.json)


if __name__ == "__main__":
    main()
