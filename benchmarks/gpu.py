"""Speed on a GPU: the fused scans against a copy of the bytes they must move, and against peers where installed.

    python benchmarks/gpu.py [--quick] [--json] [--tune] [--dry-run]

Parity with the reference loop is checked on the device first, on fresh random numbers; when it is red no figure is printed and
the exit code is 1. Without CUDA the exit code is 3; ``--dry-run`` then goes through all of this script on the CPU, with tiny
sizes in Triton's interpreter, and prints no times that mean anything.

How it is timed: CUDA events around one call, medians over rounds, the entries of a workload one after another in each round.
Before each call the cache is flushed and the device is kept busy while the host enqueues the call's launches, so the scans'
figures are the device's time and not Python's. Steps marked "host" launch thousands of kernels and wait for Python; they
are timed from an idle device to an idle device.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import importlib.util
import inspect
import itertools
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from common import emit, table
from torch import Tensor, nn

import spiketide as st
from spiketide.scan import Dynamics, recurrent_scan, scan
from spiketide.scan.dynamics import program, register
from spiketide.surrogate import ATan, MultiGaussian, Surrogate


class Size(NamedTuple):
    """``T`` steps of ``B`` samples of ``N`` neurons."""

    steps: int
    batch: int
    n: int

    def __str__(self) -> str:
        return f"T={self.steps} M={self.batch * self.n}"


class Bench:
    """The device, the sizes, the clock and the rows found so far."""

    def __init__(self, dry: bool, quick: bool) -> None:
        self.dry, self.rounds = dry, 1 if dry else 15 if quick else 40
        self.device = torch.device("cpu" if dry else "cuda")
        self.rows: list[dict[str, Any]] = []
        self.flush = torch.empty(1 if dry else 2**28, dtype=torch.uint8, device=self.device)
        if dry:
            self.scans, self.linear, self.recurrent = [Size(3, 2, 40)], Size(3, 2, 16), Size(3, 2, 16)
        else:
            self.scans = [Size(500, 16, 512), Size(100, 128, 256), Size(1000, 256, 512)]
            self.linear, self.recurrent = Size(100, 256, 512), Size(250, 256, 256)
            if quick:
                self.scans = self.scans[:2]

    def synchronize(self) -> None:
        """Wait for the device."""
        if not self.dry:
            torch.cuda.synchronize()

    def _once(self, run: Callable[[], Any], host: bool) -> float:
        if self.dry:
            start = time.perf_counter()
            run()
            return 1e3 * (time.perf_counter() - start)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.flush.zero_()
        if host:
            torch.cuda.synchronize()
        else:
            torch.cuda._sleep(4_000_000)  # about two milliseconds, in which the host gets ahead
        begin.record()
        run()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end)

    def medians(self, entries: dict[str, Callable[[], Any]], host: bool = False) -> dict[str, float]:
        """Milliseconds of every entry, measured in turn."""
        for run in entries.values():
            for _ in range(1 if self.dry else 3):
                run()
        self.synchronize()
        times: dict[str, list[float]] = {name: [] for name in entries}
        rounds = max(1, self.rounds // 4) if host else self.rounds
        names = list(entries)
        for r in range(rounds):
            for name in names[r % len(names) :] + names[: r % len(names)]:
                times[name].append(self._once(entries[name], host))
        return {name: statistics.median(t) for name, t in times.items()}

    def normal(self, *size: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Random numbers on the device."""
        return torch.randn(size, device=self.device, dtype=torch.float32).to(dtype)


def neurons(n: int, device: torch.device) -> dict[str, tuple[Dynamics, Surrogate, tuple[Any, ...], float]]:
    """Dynamics, surrogate, coefficients and a scale of input that makes a few per cent of the steps spikes."""
    lif = st.LIF(n, tau_mem=10.0, surrogate=ATan(2.0)).to(device)
    alif = st.ALIF(n, threshold=0.1, learn=(), surrogate=MultiGaussian()).to(device)
    return {
        "LIF": (lif.dynamics, lif.surrogate, tuple(lif.coefs()), 0.5),
        "ALIF": (alif.dynamics, alif.surrogate, tuple(alif.coefs()), 1.5),
    }


# -- parity ------------------------------------------------------------------------------------------------------------------


def differences(
    run: Callable[[str, Tensor, list[Tensor], list[Tensor]], Any],
    x: Tensor,
    state: list[Tensor],
    coefs: list[Tensor],
    tolerance: float,
) -> Iterator[str]:
    """What differs between the reference loop and the GPU engine: outputs and state in any bit, gradients by ``tolerance``."""
    found = []
    gy = torch.randn_like(x)
    gstate = [torch.randn_like(s) for s in state]
    for engine in ("reference", "gpu"):
        leaves = [t.clone().requires_grad_() for t in (x, *state, *coefs)]
        y, final = run(engine, leaves[0], leaves[1 : 1 + len(state)], leaves[1 + len(state) :])
        grads = torch.autograd.grad([y, *final[: len(state)]], leaves, [gy, *gstate], allow_unused=True)
        found.append(
            (
                [y, *final],
                [torch.zeros_like(p) if g is None else g for g, p in zip(grads, leaves, strict=True)],
            )
        )
    (values, grads), (got_values, got_grads) = found
    rate = values[0].float().mean().item()
    if x.shape[0] > 20 and not 0.01 < rate < 0.6:
        yield f"firing rate {rate:.3f}: nothing was tested"
    for k, (want, got) in enumerate(zip(values, got_values, strict=True)):
        if not torch.equal(want, got):
            yield f"{f'state {k - 1}' if k else 'outputs'} differ in {(want != got).sum().item()} of {want.numel()}"
    for k, (want, got) in enumerate(zip(grads, got_grads, strict=True)):
        # norms, as single elements may cancel
        error = (want.double() - got.double()).norm() / want.double().norm().clamp(min=1e-12)
        # a single number's gradient is a sum over all neurons, whose terms cancel
        allowed = tolerance * (10 if want.numel() == 1 else 1)
        if not error <= allowed:
            yield f"gradient {k} differs by {error:.1e} > {allowed:.0e}"


TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-10, torch.bfloat16: 2e-3, torch.float16: 1e-3}


def parity(bench: Bench) -> list[str]:
    """Everything that is not as in the reference; empty: green."""
    red = []
    sizes = [Size(3, 2, 8)] if bench.dry else [Size(1, 3, 100), Size(2, 3, 100), Size(63, 5, 1000)]
    dtypes = (torch.float32, torch.bfloat16) if bench.dry else tuple(TOLERANCES)
    for name, dtype, (steps, batch, n) in itertools.product(("LIF", "ALIF"), dtypes, sizes):
        dynamics, surrogate, made, scale = neurons(n, bench.device)[name]
        arithmetic = torch.float64 if dtype == torch.float64 else torch.float32
        coefs = [torch.as_tensor(c, device=bench.device).to(arithmetic) for c in made]
        coefs[0] = coefs[0] * (
            1 - 0.1 * torch.rand(n, device=bench.device, dtype=arithmetic)
        )  # one value per neuron
        state = [bench.normal(batch, n, dtype=arithmetic) * 0.1 for _ in dynamics.state]
        x = bench.normal(steps, batch, n, dtype=dtype) * scale
        ends = torch.randint(0, steps + 1, (batch,), device=bench.device)
        ends[0] = steps
        for lengths in (None, ends):

            def run(engine: str, x: Tensor, state: Any, coefs: Any, lengths: Any = lengths) -> Any:
                return scan(dynamics, x, state, coefs, surrogate, engine=engine, lengths=lengths)  # noqa: B023

            # the interpreter cuts bfloat16 off where a GPU rounds to nearest
            tolerance = 1e-2 if bench.dry and dtype == torch.bfloat16 else TOLERANCES[dtype]
            found = list(differences(run, x, state, coefs, tolerance))
            where = f"{name} {dtype} {(steps, batch, n)}{' with lengths' if lengths is not None else ''}"
            # with lengths most of the outputs may be padding
            red += [f"{where}: {what}" for what in found if lengths is None or "firing rate" not in what]
    steps, batch, n = Size(3, 2, 8) if bench.dry else Size(40, 16, 128)
    dynamics, surrogate, made, scale = neurons(n, bench.device)["LIF"]
    # multiples of 1/16 sum exactly in any order
    weight = torch.randint(-4, 5, (n, n), device=bench.device).float() / 16

    def recurrent(engine: str, x: Tensor, state: Any, coefs: Any) -> Any:
        return recurrent_scan(dynamics, x, state, coefs, surrogate, weight, engine=engine)

    coefs = [torch.as_tensor(c, device=bench.device) for c in made]
    x, state = bench.normal(steps, batch, n) * scale, [bench.normal(batch, n) * 0.1]
    red += [f"recurrent LIF: {what}" for what in differences(recurrent, x, state, coefs, 1e-4)]
    if not bench.dry and torch.cuda.mem_get_info()[0] > 24 * 2**30:
        red += beyond_int32(bench)
    return red


def beyond_int32(bench: Bench) -> list[str]:
    """More than 2 ** 31 elements: the end of one long scan is that of its second half."""
    steps, size = 2_200, 1_000_000
    dynamics, surrogate, coefs, scale = neurons(size, bench.device)["LIF"]
    x = torch.empty(steps, 1, size, device=bench.device, dtype=torch.bfloat16).normal_().mul_(scale)
    y, (v,) = scan(dynamics, x, None, coefs, surrogate, engine="gpu")
    half = steps // 2
    _, state = scan(dynamics, x[:half], None, coefs, surrogate, engine="gpu")
    late, (u,) = scan(dynamics, x[half:], state, coefs, surrogate, engine="gpu")
    same = torch.equal(y[half:], late) and torch.equal(u, v)
    return [] if same else ["LIF of more than 2 ** 31 elements: its end is not that of its second half"]


# -- workloads ---------------------------------------------------------------------------------------------------------------


def copies(bench: Bench, moved: int) -> Callable[[], Any]:
    """A copy that reads and writes ``moved`` bytes in all."""
    a, b = (torch.empty(max(1, moved // 2), dtype=torch.uint8, device=bench.device) for _ in range(2))
    return lambda: b.copy_(a)


def scans(bench: Bench) -> None:
    """The kernels alone, forward and backward, against a copy of the bytes they must move."""
    from spiketide.scan import gpu

    for name, size, dtype in itertools.product(("LIF", "ALIF"), bench.scans, (torch.float32, torch.bfloat16)):
        steps, batch, n = size
        dynamics, surrogate, made, scale = neurons(n, bench.device)[name]
        key = register(dynamics, surrogate)
        coefs = [torch.as_tensor(c, device=bench.device) for c in made]
        needs = (True, (False,) * len(coefs))
        keeps_x = program(key).x in (plan := gpu.plan_for(key, *needs)).saved
        written = len(plan.saved) - keeps_x
        count, item = steps * batch * n, dtype.itemsize
        moved = {
            "forward": count * (2 * item + 4 * written),
            "backward": count * ((2 + keeps_x) * item + 4 * written),
        }
        if not bench.dry and torch.cuda.mem_get_info()[0] < 2.5 * sum(moved.values()):
            bench.rows.append(
                {"what": f"{name} scan", "size": str(size), "dtype": str(dtype)[6:], "skipped": "memory"}
            )
            continue
        x, gy = bench.normal(steps, batch, n, dtype=dtype) * scale, bench.normal(steps, batch, n, dtype=dtype)
        state = [torch.zeros(batch, n, device=bench.device) for _ in dynamics.state]
        y, _, stores = gpu.forward(key, x, state, coefs, None, needs)
        entries = {
            "forward": functools.partial(gpu.forward, key, x, state, coefs, None, needs),
            "backward": functools.partial(gpu.backward, key, gy, state, x, state, coefs, stores, None, needs),
            "copy forward": copies(bench, moved["forward"]),
            "copy backward": copies(bench, moved["backward"]),
        }
        ms = bench.medians(entries)
        for way in ("forward", "backward"):
            bench.rows.append(
                {
                    "what": f"{name} scan",
                    "way": way,
                    "size": str(size),
                    "dtype": str(dtype)[6:],
                    "ms": ms[way],
                    "copy_ms": ms[f"copy {way}"],
                    "ratio": ms[way] / ms[f"copy {way}"],
                    "GB/s": moved[way] / ms[way] / 1e6,
                    "firing_rate": y.float().mean().item(),
                }
            )
        del x, gy, y, stores, entries


def peer() -> Callable[[], nn.Module] | None:
    """SpikingJelly's multi-step LIF of the same dynamics on its Triton (else CuPy) kernels, if installed."""
    if importlib.util.find_spec("spikingjelly") is None:
        return None
    from spikingjelly.activation_based import neuron, surrogate

    def make() -> nn.Module:
        # decay 1 - 1/tau; soft reset with its gradient; input not scaled
        options = {
            "tau": 10.0,
            "decay_input": False,
            "v_threshold": 1.0,
            "v_reset": None,
            "detach_reset": False,
        }
        options |= {"surrogate_function": surrogate.ATan(alpha=2.0), "step_mode": "m"}
        if (
            "backend" in inspect.signature(neuron.LIFNode.__init__).parameters
        ):  # before 2.0; since then by device
            known = neuron.LIFNode(**options).supported_backends
            options["backend"] = next((b for b in ("triton", "cupy") if b in known), "torch")
        return neuron.LIFNode(**options)

    return make


def against_peer(bench: Bench) -> None:
    """A LIF layer forward and backward through autograd, ours and SpikingJelly's."""
    make = peer()
    for size, dtype in itertools.product(bench.scans, (torch.float32, torch.bfloat16)):
        x = (bench.normal(*size, dtype=dtype) * 0.5).requires_grad_()
        gy = bench.normal(*size, dtype=dtype)
        dynamics, surrogate, _, _ = neurons(size.n, bench.device)["LIF"]
        coefs = (torch.tensor(0.9, device=bench.device), torch.tensor(1.0, device=bench.device))

        def ours(
            x: Tensor = x, dynamics: Any = dynamics, surrogate: Any = surrogate, coefs: Any = coefs
        ) -> Tensor:
            return scan(dynamics, x, None, coefs, surrogate, engine="gpu")[0]

        layers: dict[str, Callable[[], Tensor]] = {"ours": ours}
        same = None
        if make is not None:
            node = make().to(bench.device)

            def theirs(x: Tensor = x, node: Any = node) -> Tensor:
                node.reset()
                return node(x)

            try:
                layers["SpikingJelly"] = theirs
                same = (theirs() == ours()).float().mean().item()
            except (
                Exception
            ) as error:  # a peer that does not run on this machine must not cost us our own figures
                layers.pop("SpikingJelly")
                print(f"SpikingJelly did not run on {size} {dtype}: {error}", file=sys.stderr)
        entries = {
            name: functools.partial(lambda layer, x, gy: torch.autograd.grad(layer(), x, gy), layer, x, gy)
            for name, layer in layers.items()
        }
        ms = bench.medians(entries)
        row = {
            "what": "LIF layer",
            "way": "both",
            "size": str(size),
            "dtype": str(dtype)[6:],
            "ms": ms["ours"],
        }
        if "SpikingJelly" in ms:
            row |= {
                "SpikingJelly_ms": ms["SpikingJelly"],
                "ratio": ms["ours"] / ms["SpikingJelly"],
                "same_spikes": same,
            }
        bench.rows.append(row)
        del x, gy, entries, layers


def linear(bench: Bench) -> None:
    """A training step of Linear + LIF against the same Linear alone."""
    size = bench.linear
    for dtype in (torch.float32, torch.bfloat16):
        x = (torch.rand(*size, device=bench.device) < 0.05).to(dtype).requires_grad_()
        gy = bench.normal(*size, dtype=dtype)
        layer = nn.Linear(size.n, size.n, device=bench.device, dtype=dtype)
        lif = st.LIF(size.n, tau_mem=10.0, engine="gpu").to(bench.device)
        wanted = [x, *layer.parameters()]

        def alone(layer: nn.Linear = layer, x: Tensor = x, gy: Tensor = gy, wanted: Any = wanted) -> Any:
            return torch.autograd.grad(layer(x), wanted, gy)

        def with_neurons(
            layer: nn.Linear = layer, lif: Any = lif, x: Tensor = x, gy: Tensor = gy, wanted: Any = wanted
        ) -> Any:
            return torch.autograd.grad(lif(layer(x))[0], wanted, gy)

        ms = bench.medians({"alone": alone, "with": with_neurons})
        bench.rows.append(
            {
                "what": "Linear + LIF",
                "way": "both",
                "size": str(size),
                "dtype": str(dtype)[6:],
                "ms": ms["with"],
                "linear_ms": ms["alone"],
                "ratio": ms["with"] / ms["alone"],
            }
        )


def recurrent(bench: Bench) -> None:
    """A recurrent layer forward and backward: ours, the reference loop, and its matrix products alone."""
    size = bench.recurrent
    steps, batch, n = size
    dynamics, surrogate, made, scale = neurons(n, bench.device)["LIF"]
    coefs = [torch.as_tensor(c, device=bench.device) for c in made]
    x = (bench.normal(steps, batch, n) * scale).requires_grad_()
    weight = (bench.normal(n, n) / n**0.5).requires_grad_()
    gy, row = bench.normal(steps, batch, n), bench.normal(batch, n)
    out = torch.empty_like(row)

    def layer(engine: str) -> Any:
        y, _ = recurrent_scan(dynamics, x, None, coefs, surrogate, weight, engine=engine)
        return torch.autograd.grad(y, (x, weight), gy)

    def products() -> None:
        with torch.no_grad():
            for _ in range(2 * steps):
                torch.mm(row, weight, out=out)

    entries = {"ours": lambda: layer("gpu"), "reference": lambda: layer("reference"), "products": products}
    ms = bench.medians(entries, host=True)
    bench.rows.append(
        {
            "what": "recurrent LIF",
            "way": "both, host",
            "size": str(size),
            "dtype": "float32",
            "ms": ms["ours"],
            "reference_ms": ms["reference"],
            "products_ms": ms["products"],
            "ratio": ms["ours"] / ms["products"],
        }
    )


def tune(bench: Bench) -> None:
    """The scans' forward and backward under other tilings than the chosen one."""
    from spiketide.scan import gpu

    chosen = gpu.tiling
    try:
        for block, warps, stages in itertools.product((64, 128, 256), (1, 2), (3, 6, 12, 24)):
            made = gpu.Tiling(block, warps, stages)
            gpu.tiling = lambda size, device, made=made: made
            before = len(bench.rows)
            scans(bench)
            for row in bench.rows[before:]:
                row["tiling"] = "/".join(map(str, made))
            if bench.dry:
                break
    finally:
        gpu.tiling = chosen


# -- report -------------------------------------------------------------------------------------------------------------------


def show(rows: list[dict[str, Any]], title: str) -> None:
    """The table."""
    others = ("copy_ms", "SpikingJelly_ms", "linear_ms", "products_ms")
    cells = []
    for row in rows:
        against = next((k for k in others if k in row), None)
        cells.append(
            [
                row["what"],
                row["size"],
                row["dtype"],
                row.get("way", ""),
                f"{row['ms']:.3f}" if "ms" in row else row["skipped"],
                f"{against[:-3]} {row[against]:.3f}" if against else "",
                f"{row['ratio']:.2f}" if "ratio" in row else "",
                f"{row['GB/s']:.0f}" if "GB/s" in row else "",
                row.get("tiling", ""),
            ]
        )
    table(title, cells, ("workload", "size", "dtype", "way", "ms", "against, ms", "ratio", "GB/s", "tiling"))


def main() -> int:
    """Run it; the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--quick", action="store_true", help="fewer sizes and rounds")
    parser.add_argument(
        "--json", action="store_true", help="print the result as one JSON line, last (and no table)"
    )
    parser.add_argument("--tune", action="store_true", help="time other tilings of the scans too (minutes)")
    parser.add_argument(
        "--dry-run", action="store_true", help="go through the script on the CPU, in the interpreter"
    )
    asked = parser.parse_args()
    if asked.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported
    elif not torch.cuda.is_available():
        print(
            "This benchmark needs a CUDA GPU, and torch sees none; --dry-run tests the script itself.",
            file=sys.stderr,
        )
        return 3
    if importlib.util.find_spec("triton") is None:
        print("This benchmark needs Triton: pip install spiketide[gpu].", file=sys.stderr)
        return 3
    torch.manual_seed(0 if asked.dry_run else int(time.time()))
    torch.backends.cuda.matmul.allow_tf32 = False
    start = time.perf_counter()
    bench = Bench(asked.dry_run, asked.quick)
    packages = ("torch", "triton", "spikingjelly")
    result: dict[str, Any] = {
        "dry_run": asked.dry_run,
        "device": "interpreter" if asked.dry_run else torch.cuda.get_device_name(),
        "versions": {
            p: importlib.metadata.version(p) for p in packages if importlib.util.find_spec(p) is not None
        },
    }
    red = parity(bench)
    result["parity"] = "red" if red else "green"
    if red:
        print("The parity gate is red; no figures are printed.", *red, sep="\n  ", file=sys.stderr)
        emit(result | {"failures": red}, asked.json)
        return 1
    for workload in (scans, against_peer, linear, recurrent, *([tune] if asked.tune else [])):
        workload(bench)
    result |= {"rows": bench.rows, "seconds": round(time.perf_counter() - start, 1)}
    if not asked.json:
        print(f"{result['device']}, {result['versions']}; parity green; {result['seconds']} s")
        show(bench.rows, "Dry run: the interpreter's times mean nothing" if asked.dry_run else "GPU")
    emit(result, asked.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
