"""Delays on the GPU, tested on machines without one: interpreted against the convolution, and compiled ahead of time."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton")

ROOT = Path(__file__).parents[2]


def test_kernels_in_the_interpreter_equal_the_convolution() -> None:
    command = [
        sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests/kernels/delay_gpu_interpreted.py",
    ]  # fmt: skip
    env = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed and int(passed[1]) == 18, done.stdout


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("name", ["project_kernel", "gradient_kernel"])
def test_kernels_compile_ahead_of_time(name: str, capability: int) -> None:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from spiketide.kernels import delay_gpu

    kernel: Any = getattr(delay_gpu, name)
    fixed = {"COPIES": 1, "TAPS": 4, "BT": delay_gpu.STEPS, "BO": delay_gpu.OUTPUTS}
    types: dict[str, str] = {}
    constants: dict[tuple[int, ...], int] = {}
    for at, argument in enumerate(kernel.arg_names):
        if argument in fixed:
            types[argument], constants[(at,)] = "constexpr", fixed[argument]
        elif argument == "first_":
            types[argument] = "*i64"
        else:
            types[argument] = "*fp32" if argument.endswith("_") else "i32"
    code = triton.compile(
        ASTSource(kernel, types, constexprs=constants), target=GPUTarget("cuda", capability, 32)
    )
    assert code.asm["cubin"][:4] == b"\x7fELF"
    assert "fma" in code.asm["ptx"]


def test_the_benchmark_goes_through_and_refuses_without_a_gpu() -> None:
    command = [sys.executable, "benchmarks/gpu_delays.py", "--json"]
    done = subprocess.run([*command, "--dry-run"], cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout.strip().splitlines()[-1])
    assert report["parity"] == "green" and report["dry_run"] is True
    assert [row["what"] for row in report["rows"]] == ["synaptic delays", "axonal delays in recurrence"]
    if not torch.cuda.is_available():
        refused = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
        assert refused.returncode == 3 and "CUDA" in refused.stderr and not refused.stdout.strip()
