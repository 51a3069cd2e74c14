"""The GPU engine, tested on machines without a GPU: interpreted against the reference, and compiled ahead of time."""

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
from gpu_interpreted import CASES

from spiketide.errors import EngineError
from spiketide.scan import recurrent_scan, scan
from spiketide.scan.autograd import choose_engine
from spiketide.scan.dynamics import plan_for, program, register
from spiketide.surrogate import ATan

triton = pytest.importorskip("triton")

ROOT = Path(__file__).parents[2]


LIF = CASES["lif"].dynamics


def in_a_process(*args: str, interpret: bool) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    if interpret:
        env["TRITON_INTERPRET"] = "1"
    return subprocess.run(
        [sys.executable, *args], cwd=ROOT, env=env, capture_output=True, text=True, timeout=240
    )


def test_kernels_in_the_interpreter_equal_the_reference() -> None:
    done = in_a_process(
        "-m", "pytest", "-p", "no:cacheprovider", "tests/scan/gpu_interpreted.py", interpret=True
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed and int(passed[1]) >= 30, done.stdout


# -- engine choice ---------------------------------------------------------------------------------------------------------


def test_cpu_tensors_are_refused_without_the_interpreter() -> None:
    x = torch.zeros(3, 2, 4)
    with pytest.raises(EngineError, match=r"needs CUDA tensors, got cpu.*TRITON_INTERPRET=1"):
        scan(LIF, x, None, (0.9, 1.0), ATan(2.0), engine="gpu")
    with pytest.raises(EngineError, match="needs CUDA tensors"):
        recurrent_scan(LIF, x, None, (0.9, 1.0), ATan(2.0), torch.eye(4), engine="gpu")


def test_cuda_tensors_take_the_gpu_engine() -> None:
    key = register(LIF, ATan(2.0))
    assert choose_engine(key, torch.device("cuda", 1), None) == "gpu"
    assert choose_engine(key, torch.device("cuda"), "gpu") == "gpu"
    with pytest.raises(EngineError, match="engine='cpu' needs CPU tensors"):
        choose_engine(key, torch.device("cuda"), "cpu")


# -- compiled ahead of time --------------------------------------------------------------------------------------------------


def kernels(
    name: str,
    masked: bool,
    fed: bool = False,
    dtype: torch.dtype = torch.float32,
    resident: bool = False,
) -> tuple[Any, Any]:
    """Forward and backward of a case, first coefficient a scalar, all gradients wanted."""
    from spiketide.scan import gpu

    key = register(CASES[name].dynamics, CASES[name].surrogate)
    count = len(CASES[name].dynamics.coefs)
    plan = plan_for(key, True, (True,) * count)
    scalars = (True, *(False,) * (count - 1))
    return (
        gpu.forward_kernel(key, plan.saved, scalars, masked, dtype, fed, resident),
        gpu.backward_kernel(key, plan, scalars, masked, dtype, fed, resident),
    )


def compiled(
    kernel: Any,
    capability: int,
    storage: str = "fp32",
    arithmetic: str = "fp32",
    fusion: bool = False,
    one: bool = False,
    columns: int = 64,
) -> Any:
    """Machine code for a GPU that need not be here; ``one``: of a single neuron; ``columns``: of a recurrence in one launch."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from spiketide.scan import gpu

    types, constants, hints = {}, {}, {}
    for at, name in enumerate(kernel.arg_names):
        if name in (chosen := {"BLOCK": 128, "STAGES": 6, "ROWS": gpu.ROWS, "COLS": columns}):
            types[name], constants[(at,)] = "constexpr", chosen[name]
            if name == "STAGES" and "ROWS" in kernel.arg_names:
                constants[(at,)] = 2
        elif name in ("size", "n") and one:
            types[name], constants[(at,)] = "constexpr", 1
        elif name in ("start", "stop", "size", "n"):
            types[name] = "i32"
        else:
            types[name] = "*" + {
                "x_": storage,
                "y_": storage,
                "gx_": storage,
                "gy_": storage,
                "l_": "i32",
            }.get(name, arithmetic)
        if name.endswith("_") or (name == "size" and not one):
            hints[(at,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, types, constexprs=constants, attrs=hints)
    warps = 1 if "BLOCK" in kernel.arg_names else 8 if columns > 64 else 4
    return triton.compile(
        source,
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": warps, "enable_fp_fusion": fusion},
    )


def tool(name: str, code: Any, tmp_path: Path, *flags: str) -> str:
    """What NVIDIA's binary tools, which Triton brings, say about machine code."""
    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    if not path.exists():
        pytest.skip(f"this Triton has no {name}")
    (tmp_path / "kernel.cubin").write_bytes(code.asm["cubin"])
    return subprocess.run(
        [path, *flags, tmp_path / "kernel.cubin"], capture_output=True, text=True, check=True
    ).stdout


def check(code: Any) -> str:
    """What must hold for every kernel; its PTX."""
    ptx = code.asm["ptx"]
    assert code.asm["cubin"][:4] == b"\x7fELF"
    assert "cp.async" in ptx, "rows to come must be fetched while the present one is computed"
    assert "div.full" not in ptx and "sqrt.approx" not in ptx, "torch divides and takes roots to nearest"
    products = re.findall(r"arith\.muli .*: (\S+)", code.asm["ttir"])
    assert products and set(products) == {"i64"}, (
        "an offset of more than 2 ** 31 elements must not wrap around"
    )
    return ptx


@pytest.mark.parametrize("capability", [80, 90])
def test_lif_compiles_without_contraction_or_spills(capability: int, tmp_path: Path) -> None:
    forward, backward = (compiled(k, capability) for k in kernels("lif", masked=False))
    for code in (forward, backward):
        assert "fma.rn" not in check(code)
        usage = tool("cuobjdump", code, tmp_path, "-res-usage")
        registers, stack, local = (
            int(re.search(rf"{what}:(\d+)", usage)[1]) for what in ("REG", "STACK", "LOCAL")
        )  # type: ignore[index]
        assert registers <= 96 and stack == local == 0, usage
    # the assembler could still contract; the forward has no division, whose expansion is made of fused operations
    assert "FFMA" not in tool("nvdisasm", forward, tmp_path, "-c")
    assert "ld.global.v4" in forward.asm["ptx"] and "st.global.v4" in forward.asm["ptx"].replace(".b32", "")


def test_the_look_at_contraction_can_fail(tmp_path: Path) -> None:
    forward, _ = kernels("lif", masked=False)
    assert "FFMA" in tool("nvdisasm", compiled(forward, 80, fusion=True), tmp_path, "-c")


def test_alif_with_lengths_compiles_in_bfloat16(tmp_path: Path) -> None:
    forward, backward = (compiled(k, 90, storage="bf16") for k in kernels("alif", masked=True))
    assert "fma.rn" not in check(forward) and "cvt.rn.bf16" in check(backward), "stores round to nearest"
    # the surrogate's three exponentials are the accurate ones, made of fused operations on purpose
    assert "ex2.approx" in backward.asm["ptx"] and "fma.rn" in backward.asm["ptx"]
    for code in (forward, backward):
        assert re.search(r"LOCAL:0 ", tool("cuobjdump", code, tmp_path, "-res-usage"))


def test_other_forms_compile() -> None:
    for kernel in kernels("lif", masked=True, fed=True):
        assert compiled(kernel, 90).asm["ptx"]
    forward, _ = kernels("lif", masked=False)
    assert compiled(forward, 80, one=True).asm["ptx"], "a single neuron makes sizes constants"


@pytest.mark.parametrize("columns", [16, 32, 64, 128])
@pytest.mark.parametrize("name", ["lif", "alif"])
def test_a_recurrence_in_one_launch_compiles_and_stays_on_the_chip(
    name: str, columns: int, tmp_path: Path
) -> None:
    for kernel in kernels(name, masked=True, fed=True, resident=True):
        code = compiled(kernel, 90, columns=columns)
        usage = tool("cuobjdump", code, tmp_path, "-res-usage")
        stack, local = (int(re.search(rf"{what}:(\d+)", usage)[1]) for what in ("STACK", "LOCAL"))  # type: ignore[index]
        assert stack == local == 0, "the matrix does not fit: " + usage
        assert code.metadata.shared <= 227 * 1024


def test_every_operation_compiles() -> None:
    """The interpreter has stand-ins for the math library, so its names are tested here, in both precisions."""
    forward, backward = kernels("odd", masked=False)
    check(compiled(forward, 90))
    check(compiled(backward, 90))
    forward, _ = kernels("odd", masked=False, dtype=torch.float64)
    double = compiled(forward, 80, storage="fp64", arithmetic="fp64").asm
    assert "div.rn.f64" in double["ptx"] and "sqrt.rn.f64" in double["ptx"] and "f32" not in double["ttir"]


def test_one_kernel_serves_every_length() -> None:
    for kernel in kernels("lif", masked=True):
        loose = {p.name for p in kernel.params if p.do_not_specialize}
        assert loose == {"start", "stop"} and not {"start", "stop"} & {
            p.name for p in kernel.params if p.is_constexpr
        }


def test_what_is_saved_is_what_the_plan_says() -> None:
    """Bytes moved per neuron and step, which the benchmark divides by: the printed loop loads and stores no more."""
    from spiketide.scan import gpu

    key = register(LIF, ATan(2.0))
    plan = plan_for(key, True, (False, False))
    forward = gpu.forward_source(program(key), plan.saved, (True, True), False, torch.float32)
    backward = gpu.backward_source(program(key), plan, (True, True), False, torch.float32)
    loops = [text[text.index("in tl.range") :].split("\n    tl.store")[0] for text in (forward, backward)]
    assert [(loop.count("tl.load"), loop.count("tl.store")) for loop in loops] == [(1, 2), (2, 1)]


# -- the benchmark ---------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_benchmark_without_a_gpu_says_so() -> None:
    done = in_a_process("benchmarks/gpu.py", "--json", interpret=False)
    assert done.returncode == 3 and "CUDA" in done.stderr and not done.stdout.strip()


def test_benchmark_dry_run_goes_through_all_of_it() -> None:
    done = in_a_process("benchmarks/gpu.py", "--dry-run", "--json", interpret=False)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout.strip().splitlines()[-1])
    assert report["parity"] == "green" and report["dry_run"] is True
    assert {row["what"] for row in report["rows"]} >= {
        "LIF scan",
        "ALIF scan",
        "Linear + LIF",
        "recurrent LIF",
    }
