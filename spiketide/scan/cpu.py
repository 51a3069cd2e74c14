"""The CPU engine: one fused Numba loop over time, printed from the neuron's traced step.

Layout: ``(T, M)`` with ``M = B * N`` contiguous. Threads take blocks of neurons; a block's state lives in the first cache
levels while the loop walks through time, and the innermost loop runs over one-dimensional contiguous slices, which LLVM
turns into vector instructions (two-dimensional indices would not vectorise). The lines that the next few hundred neurons
write are asked for first (:mod:`spiketide.kernels.lines`). Every neuron's arithmetic is independent of the
blocks, so results do not depend on the number of threads. Fused multiply-add is left off: the spikes are the reference's,
bit for bit.

A kernel is printed for a plan (which gradients are wanted), for float32 or float64, with or without lengths, and compiled
once: the source goes to the user's cache folder, where Numba keeps the machine code beside it across runs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..kernels import lines, tiles
from ..kernels.memory import empty_like
from ..kernels.threading import Kernel, threads
from . import cpu_math
from .dynamics import plan_for, program
from .graph import Plan, Program
from .printer import Dialect, emit
from .source import load_source


def _dialect(dtype: torch.dtype) -> Dialect:
    f32 = dtype == torch.float32
    kind = "F32" if f32 else "F64"

    def constant(value: float) -> str:
        return f"{kind}({value!r})".replace("inf", "np.inf").replace("nan", "np.nan")

    math = {
        name: (lambda a, n=name: f"math.{n}({a})") for name in ("log", "sqrt", "sin", "cos", "atan", "erf")
    }
    one, zero = constant(1.0), constant(0.0)
    spell: dict[str, Callable[..., str]] = {
        **math,
        "neg": lambda a: f"(-{a})",
        "abs": lambda a: f"abs({a})",
        "exp": (lambda a: f"exp32({a})") if f32 else (lambda a: f"math.exp({a})"),
        "tanh": (lambda a: f"tanh32({a})") if f32 else (lambda a: f"math.tanh({a})"),
        "sigmoid": (lambda a: f"sigmoid32({a})") if f32 else (lambda a: f"sigmoid64({a})"),
        # NaN wins, as in torch
        "maximum": lambda a, b: f"({a} if ({a} > {b}) | ({a} != {a}) else {b})",
        "minimum": lambda a, b: f"({a} if ({a} < {b}) | ({a} != {a}) else {b})",
        "where": lambda c, a, b: f"({a} if {c} else {b})",
        "not": lambda a: f"(not {a})",
        "tofloat": lambda a: f"({one} if {a} else {zero})",
        "spike": lambda a: f"({one} if {a} > {zero} else {zero})",
        "pow": lambda a, p: f"({a} ** {p})",
    }
    return Dialect(constant, spell)


HEADER = """\
import math
import numpy as np
from numba import njit, prange
from spiketide.kernels.flush import flush_tiny, restore_tiny
from spiketide.kernels.lines import prefetch_write
from spiketide.scan.cpu_math import exp32, sigmoid32, sigmoid64, tanh32
F32 = np.float32
F64 = np.float64
"""


def indent(lines: Sequence[str], depth: int) -> str:
    """Lines of source at a depth."""
    return "".join("    " * depth + line + "\n" for line in lines)


class Forward:
    """The body of one forward step over a row slice, for a program and a set of saved nodes."""

    def __init__(
        self, p: Program, saved: Sequence[int], masked: bool, dtype: torch.dtype, written: Sequence[int]
    ) -> None:
        names = {p.x: "xj"}
        names |= {s: f"s{k}j" for k, s in enumerate(p.state)}
        names |= {c: f"k{k}j" for k, c in enumerate(p.coefs)}
        given = dict(names)
        lines, read = emit(p.graph, [p.y, *p.next, *saved], names, _dialect(dtype))
        if masked:
            read |= set(p.state)
        self.load = [f"{given[i]} = {given[i][:-1]}_[j]" for i in sorted(read)]
        zero = _dialect(dtype).constant(0.0)
        store = []
        if masked:
            lines.append("m = t < l_[j]")
            store.append(f"y_[j] = {names[p.y]} if m else {zero}")
            store += [f"s{k}_[j] = {names[n]} if m else s{k}j" for k, n in enumerate(p.next)]
        else:
            store.append(f"y_[j] = {names[p.y]}")
            store += [f"s{k}_[j] = {names[n]}" for k, n in enumerate(p.next)]
        store += [f"z{q}_[j] = {names[i]}" for q, i in enumerate(saved) if i in written]
        self.body = [*self.load, *lines, *store]


class Backward:
    """The body of one backward step: at ``t > 0`` (earlier state rebuilt from what was saved) and at ``t = 0``."""

    def __init__(self, p: Program, plan: Plan, masked: bool, dtype: torch.dtype) -> None:
        self.later = self._print(p, plan, masked, dtype, first=False)
        self.first = self._print(p, plan, masked, dtype, first=True)

    @staticmethod
    def _print(p: Program, plan: Plan, masked: bool, dtype: torch.dtype, first: bool) -> list[str]:
        dialect = _dialect(dtype)
        coefs = {c: f"k{k}j" for k, c in enumerate(p.coefs)}
        loads: list[str] = []
        lines: list[str] = []
        prior: dict[int, str] = {}
        if first:
            for k in plan.prior:
                prior[p.state[k]] = f"s{k}j"
                loads.append(f"s{k}j = s{k}_[j]")
        elif plan.prior:
            names = dict(coefs) | {i: f"p{q}j" for q, i in enumerate(plan.saved)}
            made, read = emit(p.graph, [p.next[k] for k in plan.prior], names, dialect, prefix="u")
            loads += [f"p{q}j = p{q}_[j]" for q, i in enumerate(plan.saved) if i in read]
            lines += made
            prior = {p.state[k]: names[p.next[k]] for k in plan.prior}
            loads += [f"{coefs[c]} = {coefs[c][:-1]}_[j]" for c in sorted(read) if c in coefs]
        names = {**coefs, **{i: f"z{q}j" for q, i in enumerate(plan.saved)}, **prior}
        names[p.gy] = "gyj"
        names |= {g: f"g{k}j" for k, g in enumerate(p.gnext)}
        given = dict(names)
        outputs = [plan.grad_x, *plan.grad_state, *plan.grad_coefs]
        made, read = emit(p.graph, [o for o in outputs if o is not None], names, dialect)
        lines += made
        for i in sorted(read):
            if i in prior:
                continue
            line = f"{given[i]} = {given[i][:-1]}_[j]"
            if line not in loads:
                loads.append(line)
        zero = dialect.constant(0.0)
        value = lambda i: zero if i is None else names[i]  # noqa: E731
        store: list[str] = []
        if masked:
            loads += [line for k in range(len(p.state)) if (line := f"g{k}j = g{k}_[j]") not in loads]
            lines.append("m = t < l_[j]")
            store.append(f"gx_[j] = {value(plan.grad_x)} if m else {zero}")
            store += [f"g{k}_[j] = {value(i)} if m else g{k}j" for k, i in enumerate(plan.grad_state)]
            store += [
                f"q{k}_[j] += {names[i]} if m else {zero}"
                for k, i in enumerate(plan.grad_coefs)
                if i is not None
            ]
        else:
            store.append(f"gx_[j] = {value(plan.grad_x)}")
            store += [f"g{k}_[j] = {value(i)}" for k, i in enumerate(plan.grad_state)]
            store += [f"q{k}_[j] += {names[i]}" for k, i in enumerate(plan.grad_coefs) if i is not None]
        if plan.grad_x is None:
            store = [line for line in store if not line.startswith("gx_")]
        return [*loads, *lines, *store]


def rows(names: Sequence[str], where: str = "t, lo:hi") -> list[str]:
    """Slices that make every named array one-dimensional for the innermost loop."""
    return [f"{n}_ = {n}[{where}]" for n in names]


def compile_printed(text: str, stem: str, depends: tuple[Path, ...] = ()) -> Kernel:
    """A kernel from its printed source; ``depends``: files beside the usual ones whose functions it calls."""
    usual = (Path(cpu_math.__file__), Path(lines.__file__), Path(tiles.__file__))
    module = load_source(text, stem, usual + depends)
    # error_model: a zero division gives inf as torch does, and no branch stands in the way of vector code
    return Kernel(module.kernel, parallel=True, error_model="numpy")


def _share_scalars(body: list[str], scalars: Sequence[bool]) -> list[str]:
    """The body without the per-neuron loads of coefficients that are one number for all: they stay in a register."""
    once = {f"k{k}j = k{k}_[j]" for k, one in enumerate(scalars) if one}
    return [line for line in body if line not in once]


def _coef_names(scalars: Sequence[bool]) -> tuple[list[str], list[str], list[str]]:
    """Arguments, those that are rows, and the lines that read those that are scalars."""
    names = [f"k{k}" for k in range(len(scalars))]
    rowed = [n for n, one in zip(names, scalars, strict=True) if not one]
    return names, rowed, [f"{n}j = {n}[0]" for n in names if n not in rowed]


TILE = 256
"""Neurons whose output lines are fetched together: four streams of 1 KiB sit in a first-level cache of 32 KiB.

Measured on one core, LIF forward, ns per neuron-step: 0.80 without; 0.53, 0.48, 0.49, 0.49, 0.50 for tiles of 64 to 1024.
"""


def _tiled(
    fixed: Sequence[str],
    moving: Sequence[str],
    written: Sequence[str],
    body: Sequence[str],
    dtype: torch.dtype,
) -> list[str]:
    """A step ``t`` of a block, tile by tile: ask for the lines to be written, then the neurons."""
    line = 16 if dtype == torch.float32 else 8
    text = [f"for o in range(lo, hi, {TILE}):", f"    e = min(hi, o + {TILE})"]
    text += ["    " + row for row in (*rows(fixed, "o:e"), *rows(written, "t, o:e"), *moving)]
    if written:
        text += [f"    for j in range(0, e - o, {line}):"]
        text += [f"        prefetch_write({n}_, j)" for n in written]
    return [*text, "    for j in range(e - o):", *("        " + row for row in body)]


def _forward_source(
    p: Program, saved: Sequence[int], masked: bool, dtype: torch.dtype, scalars: Sequence[bool]
) -> str:
    written = [i for i in saved if i != p.x]
    body = Forward(p, saved, masked, dtype, written)
    states = [f"s{k}" for k in range(len(p.state))]
    coefs, rowed, reads = _coef_names(scalars)
    stores = [f"z{q}" for q, i in enumerate(saved) if i in written]
    args = ["x", *(["l"] if masked else []), *states, *coefs, "y", *stores, "block"]
    fixed = [*states, *rowed, *(["l"] if masked else [])]
    text = HEADER + f"\n\ndef kernel({', '.join(args)}):\n"
    text += indent(
        ["steps = x.shape[0]", "size = x.shape[1]", *reads, "for b in prange((size + block - 1) // block):"],
        1,
    )
    text += indent(["lo = b * block", "hi = min(size, lo + block)", "for t in range(steps):"], 2)
    step = _tiled(fixed, rows(["x"], "t, o:e"), ["y", *stores], _share_scalars(body.body, scalars), dtype)
    return text + indent(step, 3)


def _backward_source(
    p: Program, plan: Plan, masked: bool, dtype: torch.dtype, scalars: Sequence[bool]
) -> str:
    body = Backward(p, plan, masked, dtype)
    states = [f"s{k}" for k in range(len(p.state)) if k in plan.prior]
    coefs, rowed, reads = _coef_names(scalars)
    stores = [f"z{q}" for q in range(len(plan.saved))]
    grads = [f"g{k}" for k in range(len(p.state))]
    sums = [f"q{k}" for k, i in enumerate(plan.grad_coefs) if i is not None]
    gx = ["gx"] if plan.grad_x is not None else []
    args = ["gy", *(["l"] if masked else []), *states, *coefs, *stores, *gx, *grads, *sums, "block"]
    fixed = [*states, *rowed, *grads, *sums, *(["l"] if masked else [])]
    text = HEADER + f"\n\ndef kernel({', '.join(args)}):\n"
    text += indent(
        [
            "steps = gy.shape[0]",
            "size = gy.shape[1]",
            *reads,
            "for b in prange((size + block - 1) // block):",
        ],
        1,
    )
    text += indent(["mode = flush_tiny()"], 2)
    text += indent(["lo = b * block", "hi = min(size, lo + block)", "for r in range(steps - 1):"], 2)
    now = rows(["gy", *stores], "t, o:e")
    before = [f"p{q}_ = z{q}[t - 1, o:e]" for q in range(len(plan.saved))] if plan.prior else []
    later = _tiled(fixed, [*now, *before], gx, _share_scalars(body.later, scalars), dtype)
    text += indent(["t = steps - 1 - r", *later], 3)
    first = _tiled(fixed, now, gx, _share_scalars(body.first, scalars), dtype)
    return text + indent(["t = 0", *first, "restore_tiny(mode)"], 2)


@functools.cache
def _forward(
    key: str, saved: tuple[int, ...], masked: bool, dtype: torch.dtype, scalars: tuple[bool, ...]
) -> Kernel:
    return compile_printed(_forward_source(program(key), saved, masked, dtype, scalars), "forward")


@functools.cache
def _backward(key: str, plan: Plan, masked: bool, dtype: torch.dtype, scalars: tuple[bool, ...]) -> Kernel:
    return compile_printed(_backward_source(program(key), plan, masked, dtype, scalars), "backward")


RESIDENT = 3072
"""Numbers of a block that are read and written at every step: 12 KiB, a quarter of a first-level cache of 48 KiB.

Measured on two cores, LIF and ALIF forward and backward (T 500, 8192 neurons) against a copy of their bytes, medians of
three: 1.36 and 1.41 with it, 1.36 and 1.53 with 8192, 1.50 and 1.61 with 1536.
"""


def _block(size: int, resident: int) -> int:
    """Neurons a thread takes at once: equally many blocks for every thread, rows long enough to stream, state in cache.

    ``resident`` rows (state, coefficients, running sums) are read and written at every step and should stay in the first-level
    cache beside the rows that stream by.
    """
    share = -(-size // threads())
    turns = -(-share // max(64, RESIDENT // max(1, resident)))
    block = max(64, -(-share // turns))
    # whole tiles: blocks then begin at a cache line
    return block if block < TILE else -(-block // TILE) * TILE


def flat_coefs(
    coefs: Sequence[Tensor], batch: int, shape: Sequence[int], dtype: torch.dtype
) -> list[np.ndarray]:
    """Every coefficient as a contiguous row of ``M = B * N`` values."""
    return [c.to(dtype).expand(batch, *shape).reshape(-1).contiguous().numpy() for c in coefs]


def _mixed_coefs(
    coefs: Sequence[Tensor], batch: int, shape: Sequence[int], dtype: torch.dtype
) -> tuple[list[np.ndarray], tuple[bool, ...]]:
    """Coefficients as one number or as a row each, and which of them are one number."""
    scalars = tuple(c.numel() == 1 for c in coefs)
    arrays = [
        c.detach().to(dtype).reshape(1).contiguous().numpy()
        if one
        else flat_coefs([c.detach()], batch, shape, dtype)[0]
        for c, one in zip(coefs, scalars, strict=True)
    ]
    return arrays, scalars


def flat_lengths(lengths: Tensor, size: int) -> np.ndarray:
    """Lengths as one int32 per neuron."""
    return lengths.to(torch.int32).repeat_interleave(size // max(1, lengths.shape[0])).contiguous().numpy()


def forward(
    key: str,
    x: Tensor,
    state: Sequence[Tensor],
    coefs: Sequence[Tensor],
    lengths: Tensor | None,
    needs: tuple[bool, tuple[bool, ...]] | None,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Run the fused forward.

    Args:
        key: of the registered dynamics.
        x: ``(T, B, *N)`` float32 or float64.
        state: each ``(B, *N)``.
        coefs: each broadcastable to ``*N``.
        lengths: ``(B,)`` or ``None``.
        needs: what the backward will have to give (input, each coefficient); ``None``: no backward, nothing saved.

    Returns:
        outputs, final state, and the saved tensors.
    """
    p = program(key)
    steps, batch, *shape = x.shape
    dtype, size = x.dtype, x[0].numel() if x.shape[0] else 0
    saved: tuple[int, ...] = () if needs is None else plan_for(key, *needs).saved
    y = empty_like(x)
    final = [s.detach().to(dtype).clone(memory_format=torch.contiguous_format) for s in state]
    stores = [empty_like(y) for i in saved if i != p.x]
    if y.numel():
        args: list[Any] = [x.detach().contiguous().numpy().reshape(steps, size)]
        if lengths is not None:
            args.append(flat_lengths(lengths, size))
        args += [s.numpy().reshape(-1) for s in final]
        rows_, scalars = _mixed_coefs(coefs, batch, shape, dtype)
        args += rows_
        args += [t.numpy().reshape(steps, size) for t in (y, *stores)]
        args.append(_block(size, len(final) + scalars.count(False)))
        _forward(key, saved, lengths is not None, dtype, scalars).sized(steps * size, *args)
    return y, final, stores


def backward(
    key: str,
    gy: Tensor,
    gfinal: Sequence[Tensor],
    x: Tensor | None,
    state: Sequence[Tensor],
    coefs: Sequence[Tensor],
    stores: Sequence[Tensor],
    lengths: Tensor | None,
    needs: tuple[bool, tuple[bool, ...]],
    sums: list[Tensor] | None = None,
) -> tuple[Tensor | None, list[Tensor], list[Tensor]]:
    """Run the fused backward.

    Args:
        gy: gradient of the outputs.
        gfinal: gradient of the final state, each ``(B, *N)``.
        x: the forward's input, read only when the plan keeps it.
        stores: what the forward saved.
        sums: running gradients of the wanted coefficients, one value per neuron of the batch, to go on from (time chunks).

    Returns:
        gradient of the input, of the initial state, and for every wanted coefficient its gradient per neuron and sample
        ``(B, *N)``, not yet summed to the coefficient's shape.
    """
    p = program(key)
    plan = plan_for(key, *needs)
    steps, batch, *shape = gy.shape
    dtype, size = gy.dtype, gy[0].numel() if gy.shape[0] else 0
    gstate = [g.detach().to(dtype).clone(memory_format=torch.contiguous_format) for g in gfinal]
    gx = empty_like(gy) if plan.grad_x is not None else None
    wanted = [k for k, i in enumerate(plan.grad_coefs) if i is not None]
    if sums is None:
        sums = [gy.new_zeros((batch, *shape)) for _ in wanted]
    if gy.numel():
        kept = iter(stores)
        kept_rows = [x if i == p.x else next(kept) for i in plan.saved]
        args: list[Any] = [gy.detach().contiguous().numpy().reshape(steps, size)]
        if lengths is not None:
            args.append(flat_lengths(lengths, size))
        args += [state[k].detach().to(dtype).contiguous().numpy().reshape(-1) for k in plan.prior]
        rows_, scalars = _mixed_coefs(coefs, batch, shape, dtype)
        args += rows_
        args += [r.detach().contiguous().numpy().reshape(steps, size) for r in kept_rows if r is not None]
        if gx is not None:
            args.append(gx.numpy().reshape(steps, size))
        args += [g.numpy().reshape(-1) for g in (*gstate, *sums)]
        args.append(_block(size, len(gstate) + len(sums) + scalars.count(False)))
        _backward(key, plan, lengths is not None, dtype, scalars).sized(steps * size, *args)
    if needs[0] and gx is None:
        gx = torch.zeros_like(gy)
    return gx, gstate, sums
