"""`import spiketide` is light: no compiler, no framework, no plotting."""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
HEAVY = (
    "numba",
    "llvmlite",
    "lightning",
    "pytorch_lightning",
    "sklearn",
    "scipy",
    "matplotlib",
    "librosa",
    "jsonargparse",
    "pooch",
    "rich",
    "tensorboard",
    "triton",
    "torch._dynamo",
    "torch._inductor",
)
BUDGET = 0.3
"""Seconds beyond torch's own."""


def python(code: str, *options: str) -> subprocess.CompletedProcess[str]:
    # bytecode is kept between tries, as an installed package has it: what the import costs is measured, not the compiler of Python
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": ""}
    return subprocess.run(
        [sys.executable, *options, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env=environment,
        timeout=120,
    )


CONTENTS = (
    "LIF ALIF AdLIF CubaLIF IF LeakyIntegrator Dense Conv1d Conv2d Sequential Recurrent Bidirectional Residual BatchNorm Dropout spike "
    "surrogate Layer Neuron StepNeuron detach Batch diagnose"
)


def test_nothing_heavy_is_loaded_and_all_is_there() -> None:
    # what torch itself loads is not ours: it is imported first and left out
    code = (
        "import sys, torch; before = set(sys.modules); import spiketide; print(*sorted(set(sys.modules) - before));"
        f"[getattr(spiketide, name) for name in '{CONTENTS}'.split()]; print(spiketide.__version__)"
    )
    names, version = python(code).stdout.splitlines()
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", version)
    loaded = names.split()
    assert "spiketide" in loaded and "spiketide.neurons.lif" in loaded
    heavy = [name for name in loaded if any(name == h or name.startswith(h + ".") for h in HEAVY)]
    assert not heavy, f"import spiketide loads {heavy}"


def cost() -> float:
    """Seconds that the modules of `import spiketide` take beyond torch's own, by the interpreter's own clock."""
    lines = python("import torch; import spiketide", "-X", "importtime").stderr.splitlines()
    for line in lines:
        found = re.fullmatch(r"import time:\s*(\d+) \|\s*(\d+) \| spiketide", line)
        if found:
            return int(found[2]) / 1e6
    raise AssertionError("the interpreter did not say how long the import took")


def test_it_is_quick() -> None:
    # Wall time on a busy machine: the median of three, and more tries before it is called slow. A compiler or a framework in the
    # import costs a second or more and fails every try.
    figures: list[float] = []
    for _ in range(4):
        figures += [cost() for _ in range(3)]
        if statistics.median(figures[-3:]) < BUDGET:
            return
    raise AssertionError(
        f"import spiketide costs {[round(f, 2) for f in figures]} s, the budget is {BUDGET} s"
    )


def test_the_clock_would_notice() -> None:
    # the test above must be able to fail: one dear import is more than the budget
    lines = python("import scipy.stats", "-X", "importtime").stderr
    found = re.search(r"import time:\s*\d+ \|\s*(\d+) \| scipy\.stats\n", lines)
    assert found and int(found[1]) / 1e6 > BUDGET
