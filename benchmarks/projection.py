"""Event-driven projection against the matrix product: forward and weight gradient.

    python benchmarks/projection.py [--json] [--rounds N] [--threads N]

The entries of a workload run in turn in one process, and the medians (and the fastest rounds, which other work on the
machine disturbs least) are reported. Each event-driven result is first compared with the product's in float64; on
a mismatch nothing is printed but the error.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from spiketide.kernels import project
from spiketide.kernels.projection import choose

WORKLOADS = {
    "W1-512": (500 * 16, 512, 512),
    "W1-2048": (500 * 16, 2048, 2048),
    "W2-first": (100 * 128, 140, 256),
    "W2-hidden": (100 * 128, 256, 256),
    "W2-last": (100 * 128, 256, 20),
}
DENSITIES = (0.01, 0.05, 0.2)
TOLERANCE = 1e-5
"""Largest difference allowed, relative to the largest number of the result: float32 sums of some hundred terms."""


def step(
    engine: str | None, x: Tensor, weight: Tensor, bias: Tensor, cotangent: Tensor
) -> tuple[Tensor, ...]:
    """Forward, and the gradients of weight and bias; the input needs none."""
    y = functional.linear(x, weight, bias) if engine == "product" else project(x, weight, bias, engine=engine)
    return (y, *torch.autograd.grad(y, (weight, bias), cotangent))


def check(x: Tensor, weight: Tensor, bias: Tensor, cotangent: Tensor) -> None:
    """The parity gate."""
    exact = step("product", *(t.double() for t in (x, weight, bias, cotangent)))
    for name, got, want in zip(
        ("output", "weight", "bias"), step("event", x, weight, bias, cotangent), exact, strict=True
    ):
        error = float((got.double() - want).abs().max() / want.abs().max())
        if not error <= TOLERANCE:
            sys.exit(
                f"parity gate is red: {name} of {tuple(x.shape)} differs by {error:.1e}, allowed {TOLERANCE:.0e}"
            )


def interleaved(entries: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of every round of every entry, in turn; each has run once before."""
    for run in entries.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in entries}
    for _ in range(rounds):
        for name, run in entries.items():
            start = time.perf_counter()
            run()
            times[name].append(1e3 * (time.perf_counter() - start))
    return times


def measure(name: str, density: float, rounds: int) -> dict[str, object]:
    """One line of the table."""
    rows, n_in, n_out = WORKLOADS[name]
    torch.manual_seed(0)
    x = (torch.rand(rows, n_in) < density).float()
    weight = (torch.randn(n_in, n_out) / n_in**0.5).t().requires_grad_()
    plain = torch.nn.Linear(n_in, n_out)
    bias = torch.randn(n_out, requires_grad=True)
    cotangent = torch.randn(rows, n_out)
    check(x, weight, bias, cotangent)
    times = interleaved(
        {
            "product": lambda: step("product", x, plain.weight, plain.bias, cotangent),
            "event": lambda: step("event", x, weight, bias, cotangent),
            "chosen": lambda: step(None, x, weight, bias, cotangent),
        },
        rounds if n_in < 2048 else max(3, rounds // 3),
    )
    medians = {entry: statistics.median(t) for entry, t in times.items()}
    fastest = {entry: min(t) for entry, t in times.items()}
    return {
        "workload": name,
        "density": density,
        "choice": choose(rows, n_in, n_out, float(x.count_nonzero())),
        "median_ms": medians,
        "fastest_ms": fastest,
        "ratio": medians["chosen"] / medians["product"],
        "ratio_fastest": fastest["chosen"] / fastest["product"],
    }


def main() -> None:
    """Measure all workloads and print a table, or one line of JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON line instead of the table")
    parser.add_argument("--rounds", type=int, default=21, help="rounds of each entry (a third at N = 2048)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=sorted(WORKLOADS), help="one workload")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    names = [given.only] if given.only else list(WORKLOADS)
    lines = [measure(name, density, given.rounds) for name in names for density in DENSITIES]
    if given.json:
        print(json.dumps({"benchmark": "projection", "threads": given.threads, "lines": lines}))
        return
    print(f"forward + weight gradient, {given.threads} threads, float32: median (fastest) of ms")
    print(
        f"{'workload':<10}{'density':>8}{'product':>16}{'event':>16}{'chosen':>16}  choice  ratio (of fastest)"
    )
    for line in lines:
        medians, fastest = line["median_ms"], line["fastest_ms"]
        cells = "".join(f"{medians[e]:>8.2f} ({fastest[e]:5.1f})" for e in ("product", "event", "chosen"))
        print(
            f"{line['workload']:<10}{line['density']:>8.0%}{cells}  {line['choice']:<6}"
            f"  {line['ratio']:.2f}  ({line['ratio_fastest']:.2f})"
        )


if __name__ == "__main__":
    main()
