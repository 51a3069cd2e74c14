"""What the benchmarks share: interleaved medians, peak memory in a process of its own, the machine, the table."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch


def machine() -> dict[str, Any]:
    """Processor, cores, threads and versions that a figure belongs to."""
    import numba

    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as file:
            name = next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return {
        "processor": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numba": numba.__version__,
    }


def interleaved(
    entries: dict[str, Callable[[], Any]], *, rounds: int, warmup: int = 2
) -> dict[str, list[float]]:
    """Seconds of every entry, measured in turn so that a drift of the machine falls on all alike."""
    for _ in range(warmup):
        for run in entries.values():
            run()
    times: dict[str, list[float]] = {name: [] for name in entries}
    names = list(entries)
    for r in range(rounds):
        # another order each round: what ran before leaves its data in the caches
        for name in names[r % len(names) :] + names[: r % len(names)]:
            start = time.perf_counter()
            entries[name]()
            times[name].append(time.perf_counter() - start)
    return times


def median_ratio(times: Sequence[float], floor: Sequence[float]) -> float:
    """Median over rounds of the ratio within a round."""
    return statistics.median(a / b for a, b in zip(times, floor, strict=True))


def table(title: str, rows: Sequence[Sequence[Any]], head: Sequence[str]) -> None:
    """Print rows in columns."""
    cells = [[str(c) for c in row] for row in (head, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    print(f"\n{title}")
    for k, row in enumerate(cells):
        print(
            "  "
            + "  ".join(
                c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
            )
        )
        if k == 0:
            print("  " + "  ".join("-" * w for w in widths))


def _peak(
    function: Callable[[], tuple[Callable[[], Any], Callable[[], Any]]], threads: int, pipe: Any
) -> None:
    torch.set_num_threads(threads)
    small, step = function()
    small()  # compiled kernels, thread pools and libraries are not the step's memory
    gc.collect()
    base = _resident()
    _reset_peak()
    for _ in range(3):
        step()
    pipe.send(max(0.0, _peak_resident() - base))
    pipe.close()


def _resident() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


def _reset_peak() -> None:
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        pass


def _peak_resident() -> float:
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def peak_memory(function: Callable[[], tuple[Callable[[], Any], Callable[[], Any]]]) -> float:
    """Peak resident memory of a step over the memory before the first one, in MiB, in a fresh process (Linux).

    ``function`` makes the step and a small one of the same kind, which warms up; inputs and weights exist before.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(False)
    process = context.Process(target=_peak, args=(function, torch.get_num_threads(), theirs))
    process.start()
    theirs.close()
    try:
        return float(ours.recv())
    except EOFError:
        return float("nan")
    finally:
        process.join()


def gate(name: str, ok: bool, detail: str) -> None:
    """Refuse to print figures of something that computes something else."""
    if not ok:
        sys.exit(f"parity gate red: {name}: {detail}; no figures are printed.")


def emit(result: dict[str, Any], as_json: bool) -> None:
    """The result as one JSON line, last."""
    if as_json:
        print(json.dumps(result))
