"""Learned delays on a GPU: the published comparison of delay learning, time and memory of an epoch, with ours beside it.

    python benchmarks/gpu_delays.py [--quick] [--json] [--dry-run]

Workload: 700 inputs, two hidden layers, 20 outputs, 1127 steps of 1 ms, batches of 256 with 1 % input spikes, 8156 samples an
epoch (as many as SHD has); every synapse has a learned delay up to the longest one. A training step (forward, backward, Adam) is
timed between two waits for the device, medians over rounds; an epoch is 32 of them. Memory is the most that torch's allocator
held. Kernels are wide in the first quarter of a training and narrow afterwards, so both are timed; evaluation uses whole delays.

The published columns are those of the mlGeNN authors (their table of DCLS and of EventProp with delays, another device): a ratio
to them compares devices as well as methods. The last rows are recurrent layers whose spikes come back through axonal delays.

Parity with the plain convolution, and of the recurrence with the reference loop, is checked on the device first; when it is red
no figure is printed and the exit code is 1. Without CUDA the exit code is 3; ``--dry-run`` goes through the script on the CPU
with tiny sizes.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from common import emit, table
from torch import nn
from torch.nn import functional

import spiketide as st
from spiketide.kernels import delay as kernels
from spiketide.surrogate import ATan
from spiketide.synapses.delay import KEPT

EPOCH = 32
"""Training steps of an epoch: 8156 samples in batches of 256."""
PUBLISHED = {  # (hidden, longest delay): seconds of an epoch and GiB, of DCLS and of mlGeNN
    (256, 64): (276.7, 7.1, 26.7, 3.3),
    (256, 256): (570.5, 8.8, 40.1, 3.6),
    (256, 512): (1046.3, 11.2, 39.6, 4.0),
    (256, 1000): (2222.6, 17.3, 38.9, 4.7),
    (512, 256): (1172.2, 16.0, 129.6, 6.2),
}
NARROW = 0.23


class Size(NamedTuple):
    """``T`` steps of ``B`` samples, ``n_in`` inputs, ``n_out`` outputs."""

    steps: int
    batch: int
    n_in: int
    n_out: int


FULL, TINY = Size(1127, 256, 700, 20), Size(20, 4, 12, 3)


def neuron(n: int) -> st.LIF:
    """A leaky neuron of 20 steps; the network of the comparison has current-based ones."""
    return st.LIF(n, tau_mem=20.0, surrogate=ATan(5.0))


def feed_forward(size: Size, hidden: int, longest: int, width: float) -> st.Sequential:
    """Delays at every synapse."""
    layers: list[nn.Module] = []
    sizes = (size.n_in, hidden, hidden, size.n_out)
    for i, (a, b) in enumerate(itertools.pairwise(sizes)):
        layers.append(st.SynapticDelay(a, b, longest, width=width))
        if i < 2:
            layers += [st.BatchNorm(b), neuron(b)]
    return st.Sequential(*layers)


def recurrent(size: Size, hidden: int, longest: int, width: float) -> st.Sequential:
    """Axonal delays in the recurrence of both hidden layers."""
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise((size.n_in, hidden, hidden)):
        back = st.Sequential(st.AxonalDelay(b, longest, width=width), st.Dense(b, b, bias=False))
        layers += [st.Dense(a, b), st.Recurrent(neuron(b), back)]
    return st.Sequential(*layers, st.Dense(hidden, size.n_out))


class Bench:
    """The device and the clock."""

    def __init__(self, dry: bool, quick: bool) -> None:
        self.dry, self.rounds = dry, 1 if dry else 3 if quick else 7
        self.device = torch.device("cpu" if dry else "cuda")
        self.size = TINY if dry else FULL
        made = torch.Generator().manual_seed(0)
        shape = (self.size.steps, self.size.batch, self.size.n_in)
        self.x = (torch.rand(shape, generator=made) < 0.01).float().to(self.device)
        self.y = torch.randint(self.size.n_out, (self.size.batch,), generator=made).to(self.device)

    def wait(self) -> None:
        """For the device."""
        if not self.dry:
            torch.cuda.synchronize()

    def measure(self, run: Callable[[], Any]) -> tuple[float, float]:
        """Seconds (median, after one run to warm up) and peak GiB."""
        run()
        self.wait()
        if not self.dry:
            torch.cuda.reset_peak_memory_stats()
        times = []
        for _ in range(self.rounds):
            begin = time.perf_counter()
            run()
            self.wait()
            times.append(time.perf_counter() - begin)
        peak = 0.0 if self.dry else torch.cuda.max_memory_allocated() / 2**30
        return statistics.median(times), peak

    def step(self, model: nn.Module) -> Callable[[], None]:
        """Forward, loss, backward, Adam."""
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-4, foreach=True)

        def run() -> None:
            optimizer.zero_grad(set_to_none=True)
            y, _ = model(self.x)
            functional.cross_entropy(y.mean(0), self.y).backward()
            optimizer.step()

        return run

    def forward(self, model: nn.Module) -> Callable[[], None]:
        """Evaluation."""

        def run() -> None:
            with torch.no_grad():
                model.eval()(self.x)

        return run


def parity(bench: Bench) -> list[str]:
    """What differs from the plain convolution, or from the reference loop."""
    red = []
    torch.manual_seed(0)
    for width, allowed in ((12.0, 1e-4), (NARROW, 2 * KEPT)):
        layer = st.SynapticDelay(20, 30, 24, width=width).to(bench.device)
        x = torch.rand(40, 8, 20, device=bench.device)
        frames = functional.pad(x, (0, 0, 0, 0, 24, 0))
        whole = layer.delays.whole(layer.effective_weight()).sum(-1)
        ours, theirs = layer(x)[0], kernels.reference(frames, whole)
        g = torch.randn_like(ours)
        pairs = zip(
            (ours, *torch.autograd.grad(ours, (layer.weight, layer.delays.delay), g)),
            (theirs, *torch.autograd.grad(theirs, (layer.weight, layer.delays.delay), g)),
            strict=True,
        )
        for what, (a, b) in zip(("output", "weight gradient", "delay gradient"), pairs, strict=True):
            error = float((a - b).detach().abs().max() / b.detach().abs().max())
            if not error <= 5 * allowed:
                red.append(f"{what} at width {width}: {error:.1e}, allowed {5 * allowed:.0e}")
    red += _recurrence(bench)
    return red


def _recurrence(bench: Bench) -> list[str]:
    """The fused recurrence against the reference engine, in float64: the same spikes, gradients within rounding."""
    found = []
    x = torch.rand(30, 5, 16, dtype=torch.float64, device=bench.device)
    for engine in (None, "reference"):
        torch.manual_seed(1)
        back = st.Sequential(st.AxonalDelay(16, 9, width=2.0), st.Dense(16, 16))
        layer = st.Recurrent(st.LIF(16, tau_mem=5.0, engine=engine), back).to(bench.device, torch.float64)
        y, _ = layer(x)
        found.append([y.detach(), *torch.autograd.grad(y.square().sum(), list(layer.parameters()))])
    return [
        f"recurrence, result {k}: {float((a - b).abs().max()):.1e}"
        for k, (a, b) in enumerate(zip(*found, strict=True))
        if not torch.allclose(a, b, rtol=1e-8, atol=1e-9)
    ]


def rows(bench: Bench, quick: bool) -> list[dict[str, Any]]:
    """One row a size."""
    sizes = [(5, 4)] if bench.dry else [(256, 64), (256, 1000)] if quick else list(PUBLISHED)
    found = []
    for hidden, longest in sizes:
        row: dict[str, Any] = {"what": "synaptic delays", "hidden": hidden, "longest": longest}
        for name, width in (("narrow", NARROW), ("wide", longest / 4)):
            model = feed_forward(bench.size, hidden, longest, width).to(bench.device)
            seconds, row[f"GiB, {name}"] = bench.measure(bench.step(model))
            row[f"s an epoch, {name}"] = EPOCH * seconds
            if name == "narrow":
                row["s an epoch, evaluation"] = EPOCH * bench.measure(bench.forward(model))[0]
            del model
        if (hidden, longest) in PUBLISHED:
            seconds, gib, other, less = PUBLISHED[hidden, longest]
            row |= {"DCLS s": seconds, "DCLS GiB": gib, "mlGeNN s": other, "mlGeNN GiB": less}
        found.append(row)
    hidden, longest = (5, 4) if bench.dry else (256, 64)
    row = {"what": "axonal delays in recurrence", "hidden": hidden, "longest": longest}
    for name, width in (("narrow", NARROW), ("wide", longest / 4)):
        model = recurrent(bench.size, hidden, longest, width).to(bench.device)
        seconds, row[f"GiB, {name}"] = bench.measure(bench.step(model))
        row[f"s an epoch, {name}"] = EPOCH * seconds
    return [*found, row]


def main() -> int:
    """Run it; the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--quick", action="store_true", help="fewer sizes and rounds")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON line, last")
    parser.add_argument("--dry-run", action="store_true", help="go through the script on the CPU")
    asked = parser.parse_args()
    if not asked.dry_run and not torch.cuda.is_available():
        print(
            "This benchmark needs a CUDA GPU, and torch sees none; --dry-run tests the script itself.",
            file=sys.stderr,
        )
        return 3
    torch.backends.cuda.matmul.allow_tf32 = False
    bench = Bench(asked.dry_run, asked.quick)
    result: dict[str, Any] = {
        "dry_run": asked.dry_run,
        "device": "cpu" if asked.dry_run else torch.cuda.get_device_name(),
        "torch": importlib.metadata.version("torch"),
    }
    red = parity(bench)
    result["parity"] = "red" if red else "green"
    if red:
        print("The parity gate is red; no figures are printed.", *red, sep="\n  ", file=sys.stderr)
        emit(result | {"failures": red}, asked.json)
        return 1
    result["rows"] = rows(bench, asked.quick)
    if not asked.json:
        head = list(dict.fromkeys(itertools.chain.from_iterable(result["rows"])))
        lines = [[_word(row.get(name)) for name in head] for row in result["rows"]]
        title = "Dry run: these times mean nothing" if asked.dry_run else f"{result['device']}, parity green"
        table(title, lines, head)
    emit(result, asked.json)
    return 0


def _word(value: Any) -> str:
    return "" if value is None else f"{value:.1f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
