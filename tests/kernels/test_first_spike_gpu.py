"""First spikes on the GPU, tested on machines without one: interpreted against the CPU engine, and compiled ahead of time."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

triton = pytest.importorskip("triton")

ROOT = Path(__file__).parents[2]


def test_kernels_in_the_interpreter_equal_the_cpu() -> None:
    command = [
        sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests/kernels/first_spike_gpu_interpreted.py",
    ]  # fmt: skip
    env = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed and int(passed[1]) == 60, done.stdout


def variants() -> list[Any]:
    from spiketide.kernels import first_spike_gpu as gpu

    fire = {"BN": gpu.NEURONS, "BETWEEN": gpu.BETWEEN}
    weights, inputs = {"BN": gpu.ROWS, "BI": gpu.COLUMNS}, {"BN": gpu.DEEP, "BI": gpu.INPUTS}
    return [
        pytest.param("fire_kernel", {**fire, "EXACT": False, "POTENTIAL": True, "SLOPE": True}, id="fire"),
        pytest.param(
            "fire_kernel", {**fire, "EXACT": True, "POTENTIAL": False, "SLOPE": False}, id="fire-exact"
        ),
        pytest.param("weights_kernel", {**weights, "JUMP": False}, id="weights"),
        pytest.param("weights_kernel", {**weights, "JUMP": True}, id="weights-jump"),
        pytest.param("inputs_kernel", {**inputs, "JUMP": False, "BY_SLOPE": True}, id="inputs-slope"),
        pytest.param("inputs_kernel", {**inputs, "JUMP": True, "BY_SLOPE": False}, id="inputs-jump"),
    ]


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(("name", "fixed"), variants())
def test_kernels_compile_ahead_of_time(name: str, fixed: dict[str, Any], capability: int) -> None:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from spiketide.kernels import first_spike_gpu

    kernel: Any = getattr(first_spike_gpu, name)
    types: dict[str, str] = {}
    constants: dict[tuple[int, ...], Any] = {}
    for at, argument in enumerate(kernel.arg_names):
        if argument in fixed:
            types[argument], constants[(at,)] = "constexpr", fixed[argument]
        elif argument in ("which_", "total_"):
            types[argument] = "*i64" if argument == "which_" else "*i32"
        else:
            types[argument] = "*fp32" if argument.endswith("_") else "i32"
    code = triton.compile(
        ASTSource(kernel, types, constexprs=constants),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": 1 if name == "fire_kernel" else 4},
    )
    assert code.asm["cubin"][:4] == b"\x7fELF"
    ptx = code.asm["ptx"]
    assert "fma" in ptx
    assert "atom" not in ptx and "red.global" not in ptx  # every sum has one order
    if name == "fire_kernel":
        assert "div.rn" in ptx and "div.full" not in ptx
