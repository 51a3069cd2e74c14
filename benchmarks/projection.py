"""Event-driven projection against the matrix product: forward, weight and bias gradient.

    python benchmarks/projection.py [--json] [--only NAME] [--rounds N] [--threads N]

Each event-driven result is first compared with a product in float64; on a mismatch no figure is printed. The
entries of a line run interleaved in one process. The fastest rounds are given beside the medians: other work
on the machine disturbs them least.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import torch
from common import emit, gate, interleaved, machine, median_ratio, table
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
"""Name -> rows (steps times batch), inputs, outputs."""

DENSITIES = (0.01, 0.05, 0.2)

TOLERANCE = 1e-5
"""Largest difference, relative to the largest number of the result: float32 sums of some hundred terms."""


def step(
    engine: str | None, x: Tensor, weight: Tensor, bias: Tensor, cotangent: Tensor
) -> tuple[Tensor, ...]:
    """Forward, and the gradients of weight and bias; the input needs none."""
    y = functional.linear(x, weight, bias) if engine == "linear" else project(x, weight, bias, engine=engine)
    return (y, *torch.autograd.grad(y, (weight, bias), cotangent))


def check(name: str, *tensors: Tensor) -> None:
    """The parity gate."""
    exact = step("linear", *(t.double() for t in tensors))
    for what, got, want in zip(("output", "weight", "bias"), step("event", *tensors), exact, strict=True):
        error = float((got.detach() - want.detach()).abs().max() / want.detach().abs().max())
        gate(f"{name} {what}", error <= TOLERANCE, f"differs by {error:.1e}, allowed {TOLERANCE:.0e}")


def measure(name: str, density: float, rounds: int) -> dict[str, Any]:
    """One line of the table."""
    rows, n_in, n_out = WORKLOADS[name]
    torch.manual_seed(0)
    x = (torch.rand(rows, n_in) < density).float()
    weight = (torch.randn(n_in, n_out) / n_in**0.5).t().requires_grad_()
    bias = torch.randn(n_out, requires_grad=True)
    cotangent = torch.randn(rows, n_out)
    check(name, x, weight, bias, cotangent)
    plain = torch.nn.Linear(n_in, n_out)
    times = interleaved(
        {
            "linear": lambda: step("linear", x, plain.weight, plain.bias, cotangent),
            "event": lambda: step("event", x, weight, bias, cotangent),
            "chosen": lambda: step(None, x, weight, bias, cotangent),
        },
        rounds=rounds if n_in < 2048 else max(3, rounds // 3),
    )
    return {
        "workload": name,
        "density": density,
        "choice": choose(rows, n_in, n_out, float(x.count_nonzero())),
        "median_ms": {entry: 1e3 * statistics.median(t) for entry, t in times.items()},
        "fastest_ms": {entry: 1e3 * min(t) for entry, t in times.items()},
        "event_ratio": median_ratio(times["event"], times["linear"]),
        "ratio": median_ratio(times["chosen"], times["linear"]),
        "fastest_ratio": min(times["chosen"]) / min(times["linear"]),
    }


def main() -> None:
    """Measure all workloads; print a table, and one line of JSON where asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON line last")
    parser.add_argument("--only", choices=sorted(WORKLOADS), help="one workload")
    parser.add_argument("--rounds", type=int, default=21, help="rounds of each entry (a third at N = 2048)")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    names = [given.only] if given.only else list(WORKLOADS)
    lines = [measure(name, density, given.rounds) for name in names for density in DENSITIES]
    rows = [
        (
            line["workload"],
            f"{line['density']:.0%}",
            *(
                f"{line['median_ms'][e]:.2f} ({line['fastest_ms'][e]:.2f})"
                for e in ("linear", "event", "chosen")
            ),
            line["choice"],
            f"{line['ratio']:.2f} ({line['fastest_ratio']:.2f})",
        )
        for line in lines
    ]
    head = ("workload", "density", "linear", "event", "chosen", "choice", "ratio")
    table(f"forward + gradients, {given.threads} threads, ms: median (fastest)", rows, head)
    emit({"benchmark": "projection", "machine": machine(), "lines": lines}, given.json)


if __name__ == "__main__":
    main()
