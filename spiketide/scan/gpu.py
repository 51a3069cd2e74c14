"""The GPU engine: one fused Triton loop over time, printed from the neuron's traced step.

Layout: ``(T, M)`` with ``M = B * N`` contiguous. One program takes a block of neurons and walks them through time with their
state, coefficients and running gradients in registers, so memory sees each input once and each output once. The rows of the
steps to come are fetched asynchronously while the present one is computed (Triton's software pipelining), because nothing but
the state depends on the step before. The number of steps is a run-time value: one kernel serves every length.

Bits: arithmetic is float32 (float64 for float64 inputs) in the order of the traced step; fused multiply-add is off, division
and square root round to nearest, and ``exp`` and its kin are those of CUDA's math library, as in torch's own kernels. So the
spikes are the reference's, bit for bit.

Storage: inputs, outputs and their gradients may be bfloat16 or float16; they are converted in registers, no float32 copy is
made. State, coefficients and the saved values stay float32: the backward rebuilds the membrane before the threshold from what
was saved, and rounded to 8 bits it could fall on the other side of the threshold from the spike that was sent on.

Sequences of different ``lengths``: a block stops at the end of its longest sample; past a sample's end its state is kept, its
output and gradient are zero.

Without a GPU, Triton's interpreter runs the same kernels on CPU tensors when ``TRITON_INTERPRET=1`` is set before Triton is
imported.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .dynamics import plan_for, program
from .graph import Plan, Program
from .printer import Dialect, emit
from .source import load_source

# -- printing --------------------------------------------------------------------------------------------------------------


class _Constants:
    """Typed constants of a kernel, made once above its loop: a bare ``0.1`` would be rounded to float32."""

    def __init__(self, kind: str, tile: str) -> None:
        self.kind, self.tile = kind, tile
        self.names: dict[str, str] = {}

    def __call__(self, value: float) -> str:
        text = repr(value) if math.isfinite(value) else f'float("{value}")'
        return self.names.setdefault(text, f"c{len(self.names)}")

    def lines(self) -> list[str]:
        return [f"{name} = tl.full({self.tile}, {text}, {self.kind})" for text, name in self.names.items()]


def _dialect(dtype: torch.dtype, constant: Callable[[float], str]) -> Dialect:
    f32 = dtype == torch.float32
    one, zero, minus = constant(1.0), constant(0.0), constant(-1.0)
    # Triton's own `/`, sqrt and exp are approximations in float32; torch's kernels round to nearest
    divide = (lambda a, b: f"tl.div_rn({a}, {b})") if f32 else (lambda a, b: f"({a} / {b})")
    names = ("exp", "log", "sin", "cos", "tanh", "atan", "erf")
    spell: dict[str, Callable[..., str]] = {
        **{name: (lambda a, n=name: f"lib.{n}({a})") for name in names},
        "div": divide,
        "neg": lambda a: f"({a} * {minus})",  # Triton writes -a as 0 - a, which loses the sign of zero
        "abs": lambda a: f"tl.abs({a})",
        "sqrt": lambda a: f"tl.sqrt_rn({a})" if f32 else f"tl.sqrt({a})",
        "sigmoid": lambda a: divide(one, f"({one} + lib.exp({a} * {minus}))"),
        "maximum": lambda a, b: f"tl.where(({a} > {b}) | ({a} != {a}), {a}, {b})",
        "minimum": lambda a, b: f"tl.where(({a} < {b}) | ({a} != {a}), {a}, {b})",
        "where": lambda c, a, b: f"tl.where({c}, {a}, {b})",
        "not": lambda a: f"(~{a})",
        "tofloat": lambda a: f"tl.where({a}, {one}, {zero})",
        "spike": lambda a: f"tl.where({a} > {zero}, {one}, {zero})",
        "pow": lambda a, p: f"lib.pow({a}, {p})",
    }
    return Dialect(constant, spell)


def _kind(dtype: torch.dtype) -> str:
    return "tl.float32" if dtype == torch.float32 else "tl.float64"


LINE, TILE = "(BLOCK,)", "(ROWS, COLS)"
"""The neurons of a program: so many of the flat batch, or all of some samples."""


def _text(
    args: Sequence[str], before: list[str], loop: str, body: list[str], after: list[str], tile: str = LINE
) -> str:
    lib = "spiketide.scan.gpu_math" if interpreted() else "triton.language.extra.libdevice"
    package, _, name = lib.rpartition(".")
    head = ["import triton", "import triton.language as tl", f"from {package} import {name} as lib", "", ""]
    form = ", ".join(f"{name}: tl.constexpr" for name in tile.strip("(,)").split(", "))
    # Triton would compile again where the number of steps happens to be 1 or a multiple of 16
    head += ['@triton.jit(do_not_specialize=["start", "stop"])']
    head += [f"def kernel({', '.join(args)}, start, stop, size, n, {form}, STAGES: tl.constexpr):"]
    lines = ["    " + line for line in before]
    lines += ["    " + loop, *("        " + line for line in body)]
    lines += ["    " + line for line in after]
    return "\n".join([*head, *lines]) + "\n"


def _opening(p: Program, scalars: Sequence[bool], masked: bool, kind: str, tile: str = LINE) -> list[str]:
    """Where this program's neurons are, their coefficients and the last step any of them takes."""
    if tile == LINE:
        lines = [
            "lo = tl.program_id(0).to(tl.int64) * BLOCK",
            "o = tl.arange(0, BLOCK)",
            "inside = lo + o < size",
        ]
    else:
        lines = [
            "lo = tl.program_id(0).to(tl.int64) * ROWS * n",
            "column = tl.arange(0, COLS)",
            "o = tl.arange(0, ROWS)[:, None] * n + column[None, :]",
            "inside = (lo + o < size) & (column < n)[None, :]",
            "known = (column < n)[:, None] & (column < n)[None, :]",
            # row = where a connection goes to, column = where it comes from
            f"w = tl.load(w_ + column[:, None] * n + column[None, :], mask=known, other=0.0).to({kind})",
        ]
    lines += [
        "wide = tl.full((), 1, tl.int64) * size",  # T * M may pass 2 ** 31
    ]
    for k, scalar in enumerate(scalars):
        if scalar:
            lines.append(f"k{k} = tl.broadcast_to(tl.load(k{k}_), {tile})")
        else:
            lines.append(f"k{k} = tl.load(k{k}_ + (lo + o) % n, mask=inside, other=1.0)")
    if masked:
        lines.append("length = tl.load(l_ + (lo + o) // n, mask=inside, other=0)")
        longest = "tl.max(length, axis=0)" if tile == LINE else "tl.max(tl.max(length, axis=1), axis=0)"
        lines.append(f"last = tl.minimum(stop, {longest})")
    else:
        lines.append("last = stop")
    return lines


def _load(name: str, at: str, kind: str) -> str:
    return f"{name} = tl.load({name}_ + {at} + o, mask=inside, other=0.0).to({kind})"


def forward_source(
    p: Program,
    saved: Sequence[int],
    scalars: Sequence[bool],
    masked: bool,
    dtype: torch.dtype,
    fed: bool = False,
    resident: bool = False,
) -> str:
    """The forward kernel's text.

    Args:
        p: the traced step.
        saved: nodes to store at every step.
        scalars: for every coefficient, whether it is one number (else one per neuron).
        masked: whether there are lengths.
        dtype: of the arithmetic.
        fed: the input is ``x[t]`` plus a product ``d (B, N)``, and the outputs fed back next are kept in ``r (B, N)``.
        resident: with ``fed``, the kernel makes the products itself, of a matrix ``w (N, N)`` that it holds.
    """
    kind, tile = _kind(dtype), TILE if resident else LINE
    constant = _Constants(kind, tile)
    names = {p.x: "x"}
    names |= {s: f"s{k}" for k, s in enumerate(p.state)}
    names |= {c: f"k{k}" for k, c in enumerate(p.coefs)}
    written = [i for i in saved if fed or i != p.x]
    lines, read = emit(p.graph, [p.y, *p.next, *written], names, _dialect(dtype, constant))
    zero = constant(0.0)
    states = range(len(p.state))
    args = ["x_", *(["w_" if resident else "d_", "r_"] if fed else []), *(["l_"] if masked else [])]
    args += [f"s{k}_" for k in states] + [f"k{k}_" for k in range(len(p.coefs))]
    args += ["y_", *(f"f{k}_" for k in states), *(f"z{q}_" for q in range(len(written)))]

    body = ["row = t * wide + lo"]
    if p.x in read or p.x in written:
        body.append(_load("x", "row", kind))
        product = f'tl.dot(r, tl.trans(w), input_precision="ieee", out_dtype={kind})' if resident else "d"
        body += [f"x = x + {product}"] if fed else []
    body += lines
    keep = (lambda new, old: f"tl.where(alive, {new}, {old})") if masked else (lambda new, old: new)
    body += ["alive = t < length"] if masked else []
    body.append(f"tl.store(y_ + row + o, {keep(names[p.y], zero)}, mask=inside)")
    body += [f"tl.store(z{q}_ + row + o, {names[i]}, mask=inside)" for q, i in enumerate(written)]
    body += [f"r = {keep(names[p.y], 'r')}"] if fed else []
    # the matrix has zeros where no neurons are, but what a step makes of nothing may be NaN
    body += [f"r = tl.where(inside, r, {zero})"] if resident else []
    # through names of their own: a new state may be another state's old value
    body += [f"n{k} = {keep(names[i], f's{k}')}" for k, i in enumerate(p.next)]
    body += [f"s{k} = n{k}" for k in states]

    before = _opening(p, scalars, masked, kind, tile) + constant.lines()
    before += [_load(f"s{k}", "lo", kind) for k in states]
    before += [_load("d", "lo", kind)] if fed and not resident else []
    before += [_load("r", "lo", kind)] if fed else []
    after = [f"tl.store(f{k}_ + lo + o, s{k}, mask=inside)" for k in states]
    after += ["tl.store(r_ + lo + o, r, mask=inside)"] if fed else []
    if masked:
        after += ["for t in range(tl.maximum(start, last), stop):"]
        after += [f"    tl.store(y_ + t * wide + lo + o, {zero}, mask=inside)"]
    return _text(args, before, "for t in tl.range(start, last, num_stages=STAGES):", body, after, tile)


def backward_source(
    p: Program,
    plan: Plan,
    scalars: Sequence[bool],
    masked: bool,
    dtype: torch.dtype,
    fed: bool = False,
    resident: bool = False,
) -> str:
    """The backward kernel's text; ``fed``: gradients of the outputs fed back are added (``d (B, N)``, and ``e (B, N)`` for a
    sample's last step when there are lengths); ``resident``: see :func:`forward_source`, ``d`` is then handed on as well."""
    kind, tile = _kind(dtype), TILE if resident else LINE
    constant = _Constants(kind, tile)
    dialect = _dialect(dtype, constant)
    states, saved = range(len(p.state)), range(len(plan.saved))
    sums = [k for k, i in enumerate(plan.grad_coefs) if i is not None]
    coefs = {c: f"k{k}" for k, c in enumerate(p.coefs)}
    zero = constant(0.0)

    # the state before a step: from what the step before saved, or at the beginning the given one
    rebuilt = dict(coefs) | {i: f"p{q}" for q, i in enumerate(plan.saved)}
    body, _ = emit(p.graph, [p.next[k] for k in plan.prior], rebuilt, dialect, prefix="u")
    body += [f"b{k} = tl.where(t > 0, {rebuilt[p.next[k]]}, s{k})" for k in plan.prior]

    names = {**coefs, **{i: f"z{q}" for q, i in enumerate(plan.saved)}}
    names |= {p.state[k]: f"b{k}" for k in plan.prior}
    names |= {p.gy: "gy"} | {g: f"g{k}" for k, g in enumerate(p.gnext)}
    outputs = [plan.grad_x, *plan.grad_state, *plan.grad_coefs]
    lines, _ = emit(p.graph, [o for o in outputs if o is not None], names, dialect)
    value = lambda i: zero if i is None else names[i]  # noqa: E731

    args = ["gy_", *(["d_"] if fed else []), *(["w_"] if resident else [])]
    args += [*(["e_"] if fed and masked else []), *(["l_"] if masked else [])]
    args += (
        [f"s{k}_" for k in plan.prior] + [f"k{k}_" for k in range(len(p.coefs))] + [f"z{q}_" for q in saved]
    )
    args += [f"g{k}_" for k in states] + (["gx_"] if plan.grad_x is not None else [])
    args += [f"h{k}_" for k in states] + [f"q{k}_" for k in sums]

    top = ["t = start + last - 1 - back", "row = t * wide + lo", _load("gy", "row", kind)]
    if fed and masked:
        top.append("gy = gy + tl.where(t + 1 < length, d, e)")
    elif fed:
        top.append("gy = gy + d")
    if plan.prior:
        # the row before is fetched for the rebuilding and kept for the next turn: every saved value is read once (at t = 0,
        # where there is none, row 0 is fetched and not used)
        top.append("earlier = tl.maximum(t - 1, 0) * wide + lo")
        top += [f"p{q} = tl.load(z{q}_ + earlier + o, mask=inside, other=0.0).to({kind})" for q in saved]
    else:
        top += [_load(f"z{q}", "row", kind) for q in saved]
    body = [*top, *body, *lines]
    keep = (lambda new, old: f"tl.where(alive, {new}, {old})") if masked else (lambda new, old: new)
    body += ["alive = t < length"] if masked else []
    if plan.grad_x is not None:
        body.append(f"gx = {keep(value(plan.grad_x), zero)}")
        body.append("tl.store(gx_ + row + o, gx, mask=inside)")
    if resident and plan.grad_x is not None:
        body.append(f"gx = tl.where(inside, gx, {zero})")
        body.append(f'd = tl.dot(gx, w, input_precision="ieee", out_dtype={kind})')
    elif resident:
        body.append(f"d = tl.where(inside, {zero}, {zero})")
    body += [f"q{k} = q{k} + {keep(value(plan.grad_coefs[k]), zero)}" for k in sums]
    body += [f"n{k} = {keep(value(i), f'g{k}')}" for k, i in enumerate(plan.grad_state)]
    body += [f"g{k} = n{k}" for k in states]
    body += [f"z{q} = p{q}" for q in saved] if plan.prior else []

    before = _opening(p, scalars, masked, kind, tile) + constant.lines()
    before += [_load(f"s{k}", "lo", kind) for k in plan.prior]
    before += [_load(f"g{k}", "lo", kind) for k in states] + [_load(f"q{k}", "lo", kind) for k in sums]
    before += [_load("d", "lo", kind)] if fed else []
    before += [_load("e", "lo", kind)] if fed and masked else []
    if plan.prior:
        before.append("row = tl.maximum(last - 1, 0) * wide + lo")
        before += [_load(f"z{q}", "row", kind) for q in saved]
    after = [f"tl.store(h{k}_ + lo + o, g{k}, mask=inside)" for k in states]
    after += [f"tl.store(q{k}_ + lo + o, q{k}, mask=inside)" for k in sums]
    after += ["tl.store(d_ + lo + o, d, mask=inside)"] if resident else []
    if masked and plan.grad_x is not None:
        after += ["for t in range(tl.maximum(start, last), stop):"]
        after += [f"    tl.store(gx_ + t * wide + lo + o, {zero}, mask=inside)"]
    return _text(args, before, "for back in tl.range(start, last, num_stages=STAGES):", body, after, tile)


# -- compiling and launching -------------------------------------------------------------------------------------------------


@functools.cache
def interpreted() -> bool:
    """Whether Triton's interpreter stands in for a GPU in this process (``TRITON_INTERPRET=1`` when Triton was imported)."""
    import triton
    import triton.language as tl

    return not isinstance(tl.cdiv, triton.JITFunction)


class Tiling(NamedTuple):
    """How the neurons are shared out: neurons a program, warps a program, rows of input in flight."""

    block: int
    warps: int
    stages: int


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def tiling(size: int, device: torch.device) -> Tiling:
    """The tiling for ``size`` neurons.

    One warp a program, because neurons never wait for each other. Few neurons: two a thread, so that every multiprocessor has
    some, and many rows in flight, as nothing else hides the memory's latency. Many: four a thread (16-byte accesses in float32).
    Reasoned, not yet measured on a device; ``benchmarks/gpu.py --tune`` measures.
    """
    if size >= 128 * 4 * _multiprocessors(device):
        return Tiling(128, 1, 6)
    return Tiling(64, 1, 16)


@functools.cache
def forward_kernel(
    key: str,
    saved: tuple[int, ...],
    scalars: tuple[bool, ...],
    masked: bool,
    dtype: torch.dtype,
    fed: bool = False,
    resident: bool = False,
) -> Any:
    """The compiled forward."""
    text = forward_source(program(key), saved, scalars, masked, dtype, fed, resident)
    return load_source(text, _kernel_name("forward", fed, resident)).kernel


@functools.cache
def backward_kernel(
    key: str,
    plan: Plan,
    scalars: tuple[bool, ...],
    masked: bool,
    dtype: torch.dtype,
    fed: bool = False,
    resident: bool = False,
) -> Any:
    """The compiled backward."""
    text = backward_source(program(key), plan, scalars, masked, dtype, fed, resident)
    return load_source(text, _kernel_name("backward", fed, resident)).kernel


def _kernel_name(way: str, fed: bool, resident: bool) -> str:
    return f"gpu_resident_{way}" if resident else f"gpu_fed_{way}" if fed else f"gpu_{way}"


class Launch:
    """Launches of kernels on one set of neurons ``(B, *N)`` of one device.

    Args:
        like: a tensor on the device.
        batch, shape: ``B`` and ``N``.
        step: every launch runs a single step, so there are no rows to fetch ahead.
    """

    def __init__(self, like: Tensor, batch: int, shape: Sequence[int], step: bool = False) -> None:
        self.n = math.prod(shape)
        self.size = batch * self.n
        self.device = like.device
        self.tiling = tiling(self.size, like.device)
        if step:
            self.tiling = self.tiling._replace(stages=1)
        self.grid = (-(-self.size // self.tiling.block),)

    def on_device(self) -> Any:
        """The context in which this device is the current one, as Triton launches on the current device."""
        return torch.cuda.device(self.device) if self.device.type == "cuda" else contextlib.nullcontext()

    def __call__(self, kernel: Any, tensors: Sequence[Tensor], start: int, stop: int) -> None:
        """Run steps ``start`` to ``stop``."""
        block, warps, stages = self.tiling
        kernel[self.grid](
            *tensors,
            start,
            stop,
            self.size,
            self.n,
            BLOCK=block,
            STAGES=stages,
            num_warps=warps,
            enable_fp_fusion=False,
        )


RESIDENT = 128
"""Neurons up to which a recurrent scan is one launch: their matrix, 64 KiB, stays in the registers and the shared memory of
each multiprocessor."""

ROWS = 4
"""Samples a program of a recurrent scan in one launch: with more the compiled kernels spill registers, with fewer each step would
read the matrix for less work. Reasoned and compiled, not measured on a device."""


def resident(n: int, dtype: torch.dtype) -> bool:
    """Whether a recurrent scan over ``n`` neurons is one launch. Not in float64, whose matrices take twice the place."""
    return n <= RESIDENT and dtype == torch.float32


class ResidentLaunch(Launch):
    """Launches of kernels that hold the matrix between ``n`` neurons, and take all neurons of a few samples each."""

    def __init__(self, like: Tensor, batch: int, n: int) -> None:
        super().__init__(like, batch, (n,))
        self.columns = max(16, 1 << (n - 1).bit_length())
        self.grid = (-(-batch // ROWS),)

    def __call__(self, kernel: Any, tensors: Sequence[Tensor], start: int, stop: int) -> None:
        """Run steps ``start`` to ``stop``."""
        kernel[self.grid](
            *tensors,
            start,
            stop,
            self.size,
            self.n,
            ROWS=ROWS,
            COLS=self.columns,
            STAGES=2,
            num_warps=8 if self.columns > 64 else 4,
            enable_fp_fusion=False,
        )


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype of the arithmetic, the state and the saved values for inputs like ``x``."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def scalar_flags(coefs: Sequence[Tensor]) -> tuple[bool, ...]:
    """For every coefficient, whether it is one number."""
    return tuple(c.numel() == 1 for c in coefs)


def flat_coefs(coefs: Sequence[Tensor], shape: Sequence[int], dtype: torch.dtype) -> list[Tensor]:
    """Every coefficient as one number or one row of ``N``."""
    made = (c.detach().to(dtype) for c in coefs)
    return [(c if c.numel() == 1 else c.expand(tuple(shape))).contiguous() for c in made]


def flat_lengths(lengths: Tensor | None, steps: int) -> list[Tensor]:
    """Lengths as the kernels read them, if there are any."""
    return [] if lengths is None else [lengths.clamp(max=steps).to(torch.int32).contiguous()]


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
        x: ``(T, B, *N)`` float32, float64, bfloat16 or float16.
        state: each ``(B, *N)``, float32 (float64 for float64 inputs).
        coefs: each broadcastable to ``*N``.
        lengths: ``(B,)`` or ``None``.
        needs: what the backward will have to give (input, each coefficient); ``None``: no backward, nothing saved.

    Returns:
        outputs in the dtype of ``x``, final state, and the saved tensors (float32 or float64).
    """
    p = program(key)
    steps, batch, *shape = x.shape
    dtype = compute_dtype(x)
    saved: tuple[int, ...] = () if needs is None else plan_for(key, *needs).saved
    x = x.detach().contiguous()
    y = torch.empty_like(x)
    first = [s.detach().to(dtype).contiguous() for s in state]
    stores = [torch.empty_like(x, dtype=dtype) for i in saved if i != p.x]
    if not y.numel():
        return y, [s.clone() for s in first], stores
    final = [torch.empty_like(s) for s in first]
    launch = Launch(x, batch, shape)
    kernel = forward_kernel(key, saved, scalar_flags(coefs), lengths is not None, dtype)
    with launch.on_device():
        tensors = [
            x,
            *flat_lengths(lengths, steps),
            *first,
            *flat_coefs(coefs, shape, dtype),
            y,
            *final,
            *stores,
        ]
        launch(kernel, tensors, 0, steps)
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
        gy: gradient of the outputs, in their dtype.
        gfinal: gradient of the final state, each ``(B, *N)``.
        x: the forward's input, read only when the plan keeps it.
        stores: what the forward saved.
        sums: running gradients of the wanted coefficients, one value per neuron of the batch, to go on from (time chunks).

    Returns:
        gradient of the input in the dtype of ``gy``, of the initial state, and for every wanted coefficient its gradient per
        neuron and sample ``(B, *N)``, not yet summed to the coefficient's shape.
    """
    p = program(key)
    plan = plan_for(key, *needs)
    steps, batch, *shape = gy.shape
    dtype = compute_dtype(gy)
    gy = gy.detach().contiguous()
    last = [g.detach().to(dtype).contiguous() for g in gfinal]
    gx = torch.empty_like(gy) if plan.grad_x is not None else None
    if sums is None:
        wanted = sum(i is not None for i in plan.grad_coefs)
        sums = [gy.new_zeros((batch, *shape), dtype=dtype) for _ in range(wanted)]
    if not gy.numel():
        return (torch.zeros_like(gy) if needs[0] else None), [g.clone() for g in last], sums
    gstate = [torch.empty_like(g) for g in last]
    kept = iter(stores)
    rows = [x.detach().contiguous() if i == p.x and x is not None else next(kept) for i in plan.saved]
    before = [state[k].detach().to(dtype).contiguous() for k in plan.prior]
    launch = Launch(gy, batch, shape)
    kernel = backward_kernel(key, plan, scalar_flags(coefs), lengths is not None, dtype)
    with launch.on_device():
        tensors = [gy, *flat_lengths(lengths, steps), *before, *flat_coefs(coefs, shape, dtype), *rows, *last]
        tensors += [*([gx] if gx is not None else []), *gstate, *sums]
        launch(kernel, tensors, 0, steps)
    if needs[0] and gx is None:
        gx = torch.zeros_like(gy)
    return gx, gstate, sums
