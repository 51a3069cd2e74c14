"""Speed of learned delays: ours against DCLS with SpikingJelly (where installed), and against the same net of linear layers.

    OMP_WAIT_POLICY=passive python benchmarks/delays.py [--quick] [--only train,eval,length,recurrence,memory] [--json]

One training step of 140-256-256-20, B 128, T 100, K 25, 5 % input spikes, batch norm, dropout, Adam. Kernels are wide
(width 12) in the first quarter of a training and narrow (width 0.5) afterwards; evaluation uses whole delays. All nets
are causal: no tail. ``recurrence`` is one recurrent layer of 256 neurons whose spikes come back through axonal delays of 1 to
25 steps: in its fused loop, stepped in torch, and the recurrence without delays, against its three dense products. Figures stand
behind a parity gate: our layer's output and gradients are DCLS's, within the truncation that the layer states; the fused
recurrence is the stepped one.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import itertools
import statistics
from collections.abc import Callable
from typing import Any

import torch
from common import emit, gate, interleaved, machine, median_ratio, peak_memory, table
from torch import Tensor, nn
from torch.nn import functional

import spiketide as st
from spiketide.surrogate import ATan
from spiketide.synapses.delay import KEPT

SIZES = (140, 256, 256, 20)
STEPS, BATCH = 100, 128
TAU = 1.005  # steps; retention 0.005 per step, Euler
WIDE, NARROW = 12.0, 0.23


def spikes(steps: int = STEPS) -> Tensor:
    """Five per cent of random spikes."""
    return (torch.rand(steps, BATCH, SIZES[0], generator=torch.Generator().manual_seed(0)) < 0.05).float()


def neuron(n: int) -> st.LIF:
    """The published neuron: Euler decay, hard reset without gradient, arctan surrogate."""
    return st.LIF(n, tau_mem=TAU, discretisation="euler", reset="hard_detached", surrogate=ATan(5.0))


class Theirs(nn.Module):
    """DCLS and SpikingJelly as the published code uses them, without the right padding."""

    def __init__(self, places: int, width: float, version: str = "gauss") -> None:
        super().__init__()
        from DCLS.construct.modules import Dcls1d
        from spikingjelly.activation_based import neuron as sj
        from spikingjelly.activation_based import surrogate

        self.places = places
        self.delays, self.norms, self.neurons = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for i, (a, b) in enumerate(itertools.pairwise(SIZES)):
            layer = Dcls1d(
                a, b, kernel_count=1, groups=1, dilated_kernel_size=places, bias=False, version=version
            )
            with torch.no_grad():
                layer.P.uniform_(-(places // 2), places // 2)
                if hasattr(layer, "SIG"):
                    layer.SIG.fill_(width)
            if hasattr(layer, "SIG"):
                layer.SIG.requires_grad_(False)
            self.delays.append(layer)
            if i < len(SIZES) - 2:
                self.norms.append(nn.BatchNorm1d(b))
                self.neurons.append(
                    sj.LIFNode(
                        tau=TAU,
                        decay_input=False,
                        v_reset=0.0,
                        detach_reset=True,
                        step_mode="m",
                        surrogate_function=surrogate.ATan(5.0),
                    )
                )

    def forward(self, x: Tensor) -> Tensor:
        from spikingjelly.activation_based import functional as sj

        sj.reset_net(self)
        for i, layer in enumerate(self.delays):
            h = layer(functional.pad(x.permute(1, 2, 0), (self.places - 1, 0)))
            if i == len(self.delays) - 1:
                return h.permute(2, 0, 1)
            h = self.norms[i](h).permute(2, 0, 1)
            x = self.neurons[i](h)
            if self.training:  # one mask for all steps
                x = x * functional.dropout(torch.ones_like(x[0]), 0.4)
        return x


def ours(kind: str, places: int = 25, width: float = WIDE) -> st.Sequential:
    """Delay layers of ours, or linear ones."""
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(itertools.pairwise(SIZES)):
        if kind == "delays":
            layers.append(st.SynapticDelay(a, b, places - 1, width=width))
        elif kind == "linear":
            layers.append(st.Framewise(nn.Linear(a, b, bias=False)))
        else:
            layers.append(st.Dense(a, b, bias=False))
        if i < len(SIZES) - 2:
            layers += [st.BatchNorm(b), neuron(b), st.Dropout(0.4)]
    return st.Sequential(*layers)


def training_step(model: nn.Module, x: Tensor) -> Callable[[], None]:
    """Forward, loss, backward, Adam."""
    target = torch.randint(SIZES[-1], (BATCH,), generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-4, foreach=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        y = model(x)
        y = y[0] if isinstance(y, tuple) else y
        functional.cross_entropy(y.softmax(-1).sum(0), target).backward()
        optimizer.step()

    return step


def evaluation(model: nn.Module, x: Tensor) -> Callable[[], None]:
    """Forward alone."""
    model.eval()

    def step() -> None:
        with torch.no_grad():
            model(x)

    return step


def have_peer() -> bool:
    """Whether DCLS and SpikingJelly are installed."""
    return all(importlib.util.find_spec(name) for name in ("DCLS", "spikingjelly"))


def check_parity() -> None:
    """Our layer computes what DCLS does."""
    if not have_peer():
        print("  DCLS or SpikingJelly is not installed: without the peer, and without the gate against it")
        return
    from DCLS.construct.modules import Dcls1d

    for width, allowed in ((WIDE, 1e-4), (NARROW, 2 * KEPT)):
        torch.manual_seed(0)
        theirs = Dcls1d(20, 30, kernel_count=1, dilated_kernel_size=25, bias=False, version="gauss")
        mine = st.SynapticDelay(20, 30, 24, width=width)
        with torch.no_grad():
            theirs.P.uniform_(-12, 12)
            theirs.SIG.fill_(width)
            mine.weight.copy_(theirs.weight)
            mine.delays.delay.copy_(12.0 - theirs.P[0])
        x = torch.rand(40, 8, 20)
        y = mine(x)[0]
        z = theirs(functional.pad(x.permute(1, 2, 0), (24, 0))).permute(2, 0, 1)
        cotangent = torch.randn_like(y)
        g = torch.autograd.grad(y, (mine.weight, mine.delays.delay), cotangent)
        h = torch.autograd.grad(z, (theirs.weight, theirs.P), cotangent)
        for name, a, b, factor in (
            ("output", y, z, 1.0),
            ("weight gradient", g[0], h[0], 1.0),
            ("delay gradient", g[1], -h[1][0], 5.0),
        ):
            error = float((a - b).detach().abs().max() / b.detach().abs().max())
            gate(
                f"{name} at width {width}",
                error <= factor * allowed,
                f"{error:.1e}, allowed {factor * allowed:.0e}",
            )


def train(width: float, rounds: int, places: int = 25) -> dict[str, Any]:
    """Training steps at one width."""
    x = spikes()
    made: dict[str, nn.Module] = {
        "nn.Linear": ours("linear"),
        "Dense (event-driven)": ours("dense"),
        "spiketide": ours("delays", places, width),
    }
    if have_peer():
        made["DCLS + SpikingJelly"] = Theirs(places, width)
    return _measure({k: training_step(m, x) for k, m in made.items()}, rounds)


def evaluate(rounds: int) -> dict[str, Any]:
    """Evaluation with whole delays."""
    x = spikes()
    made: dict[str, nn.Module] = {
        "nn.Linear": ours("linear"),
        "Dense (event-driven)": ours("dense"),
        "spiketide": ours("delays"),
    }
    if have_peer():
        made["DCLS + SpikingJelly"] = Theirs(25, 0.0, "max")
    return _measure({k: evaluation(m, x) for k, m in made.items()}, rounds)


def length(rounds: int) -> dict[str, Any]:
    """The narrow training step at longer kernels."""
    x = spikes()
    entries = {f"K = {k}": training_step(ours("delays", k, NARROW), x) for k in (25, 51, 101, 201)}
    return _measure(entries, rounds, floor="K = 25")


def recurrence(rounds: int) -> dict[str, Any]:
    """One recurrent layer, forward and backward."""
    n = SIZES[1]
    torch.manual_seed(0)
    x = 1.04 * torch.rand(STEPS, BATCH, n)  # about 5 % fire

    def layer(width: float | None) -> st.Recurrent:
        torch.manual_seed(0)
        back = st.Dense(n, n, bias=False)
        synapse = back if width is None else st.Sequential(st.AxonalDelay(n, 24, width=width), back)
        return st.Recurrent(neuron(n), synapse)

    def run(model: st.Recurrent) -> Callable[[], None]:
        def once() -> None:
            y, _ = model(x)
            y.sum().backward()
            model.zero_grad()

        return once

    def stepped(width: float) -> st.Recurrent:
        model = layer(width)
        model._late = lambda: None  # type: ignore[method-assign]
        return model

    rows, matrix = torch.rand(STEPS * BATCH, n), torch.rand(n, n)

    def products() -> None:
        rows @ matrix
        rows @ matrix
        rows.t() @ rows

    a, b = layer(NARROW), stepped(NARROW)
    y, z = a(x)[0], b(x)[0]
    g, h = (torch.autograd.grad(o.sum(), m.synapse[1].weight)[0] for o, m in ((y, a), (z, b)))
    differing = float((y != z).float().mean())
    gate("recurrence: spikes that differ", differing < 1e-3, f"{differing:.1e}, allowed 1e-3")
    if not differing:
        error = float((g - h).abs().max() / h.abs().max())
        gate("recurrence: weight gradient", error < 1e-4, f"{error:.1e}, allowed 1e-4")
    entries = {
        "three dense products": products,
        "without delays": run(layer(None)),
        "delays, width 0.5": run(a),
        "delays, width 12.27": run(layer(WIDE)),
    }
    found = _measure(entries, rounds, floor="three dense products")
    slow = _measure(
        {"delays, width 0.5": run(a), "stepped": run(b)}, max(2, rounds // 4), floor="delays, width 0.5"
    )
    found["ms"]["delays, width 0.5, stepped"] = slow["ms"]["stepped"]
    found["ratio"]["delays, width 0.5, stepped"] = slow["ms"]["stepped"] / found["ms"]["three dense products"]
    found["rate"] = float(y.detach().mean())
    found["stepped"] = slow["ratio"]["stepped"]
    return found


def _measure(entries: dict[str, Callable[[], None]], rounds: int, floor: str = "nn.Linear") -> dict[str, Any]:
    times = interleaved(entries, rounds=rounds)
    result: dict[str, Any] = {
        "ms": {k: 1e3 * statistics.median(t) for k, t in times.items()},
        "ratio": {k: median_ratio(t, times[floor]) for k, t in times.items()},
    }
    if "DCLS + SpikingJelly" in times:
        result["faster"] = median_ratio(times["DCLS + SpikingJelly"], times["spiketide"])
    return result


def _memory_of(kind: str, places: int) -> tuple[Callable[[], None], Callable[[], None]]:
    torch.manual_seed(0)
    model = Theirs(places, NARROW) if kind == "theirs" else ours("delays", places, NARROW)
    return training_step(model, spikes(30)), training_step(model, spikes())


def memory() -> dict[str, Any]:
    """Peak memory of a narrow training step, MiB."""
    peaks = {}
    for places in (25, 201):
        peaks[f"spiketide, K = {places}"] = peak_memory(functools.partial(_memory_of, "ours", places))
        if have_peer():
            peaks[f"DCLS + SpikingJelly, K = {places}"] = peak_memory(
                functools.partial(_memory_of, "theirs", places)
            )
    return {"MiB": peaks}


def main() -> None:
    """Run what is asked for and print its tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few rounds")
    parser.add_argument(
        "--only", default="train,eval,length,recurrence,memory", help="parts, comma-separated"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    # the far tails of Gaussians are denormal numbers, on which some processors are a hundred times slower; not what is compared
    torch.set_flush_denormal(True)
    only, rounds = set(args.only.split(",")), 3 if args.quick else 9
    result: dict[str, Any] = {"machine": machine()}
    print(", ".join(f"{k} {v}" for k, v in result["machine"].items()))
    check_parity()
    jobs: dict[str, Callable[[], dict[str, Any]]] = {}
    if "train" in only:
        jobs["Training step, width 0.5"] = lambda: train(NARROW, rounds)
        jobs["Training step, width 12.27"] = lambda: train(WIDE, rounds)
    if "eval" in only:
        jobs["Evaluation, whole delays"] = lambda: evaluate(rounds)
    if "length" in only:
        jobs["Training step, width 0.5, longer kernels"] = lambda: length(rounds)
    if "recurrence" in only:
        jobs["Recurrence with axonal delays, forward and backward"] = lambda: recurrence(rounds)
    for name, job in jobs.items():
        result[name] = job()
        rows = [(k, f"{v:.1f}", f"{result[name]['ratio'][k]:.2f}") for k, v in result[name]["ms"].items()]
        table(name, rows, ("entry", "ms", "ratio to the first"))
        if "faster" in result[name]:
            print(f"  spiketide is {result[name]['faster']:.1f} x faster than DCLS + SpikingJelly")
        if "stepped" in result[name]:
            print(f"  {result[name]['stepped']:.1f} x faster than stepped; rate {result[name]['rate']:.3f}")
    if "memory" in only:
        result["memory"] = memory()
        table(
            "Peak memory of a training step, width 0.5",
            [(k, f"{v:.0f}") for k, v in result["memory"]["MiB"].items()],
            ("entry", "MiB"),
        )
    emit(result, args.json)


if __name__ == "__main__":
    main()
