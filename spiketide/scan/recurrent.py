"""Recurrent scans on the CPU: the neuron's step with its own spikes fed back through a matrix, in one loop.

At step ``t`` a neuron is driven by ``x[t] + W s[t-1]``. The forward walks each sample through all of time: it adds the weight
columns of the neurons that spiked (spikes are few), then runs the step on the row and asks for the lines of the next. The
backward walks eight samples at a time: the step's backward, then the dense product that carries the gradient to the spikes
before, its sums in registers (:mod:`spiketide.kernels.tiles`). The gradient of the matrix is one product over all steps
afterwards. No Python runs inside the time loop.

Where spikes arrive late (:mod:`spiketide.scan.delayed`), a ring of rows, one for each step to come, collects them; the product is
with the row of the step.

Each sample's arithmetic is the same whatever the number of threads or neighbours.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..kernels import tiles
from ..kernels.memory import empty_like
from ..kernels.threading import Kernel
from ..shapes import last_valid
from .cpu import HEADER, Backward, Forward, compile_printed, flat_coefs, indent, rows
from .dynamics import plan_for, program
from .graph import Plan, Program

_PER_STEP = 8  # a recurrent neuron-step costs about this many plain ones, by its share of the product

ROWS_UP_TO = 0.55
"""Share of spiking neurons up to which rows are added one by one; above, four samples share a pass over the matrix.

Measured on one core at N = 256: 100 steps of 16 samples take 3.4 ms at a rate of 0.15 and 6.5 ms at 0.46 row by row, 6.3 to
7.6 ms with the shared pass. Both ways add in the same order and give the same bits, so the choice is made anew at every step.
"""

_TILES = """from spiketide.kernels.tiles import ROWS, lowest_bit, nonzero_bits, tile_product
NONE = np.uint64(0)
ONE = np.uint64(1)
"""

_ADD_ROWS = """

@njit(error_model="numpy")
def add_rows(out, w, r, index, count):
    n = out.shape[0]
    q = 0
    while q + 4 <= count:
        a = w[index[q]]
        b = w[index[q + 1]]
        c = w[index[q + 2]]
        d = w[index[q + 3]]
        ra = r[index[q]]
        rb = r[index[q + 1]]
        rc = r[index[q + 2]]
        rd = r[index[q + 3]]
        for j in range(n):
            out[j] = (((out[j] + ra * a[j]) + rb * b[j]) + rc * c[j]) + rd * d[j]
        q += 4
    while q < count:
        a = w[index[q]]
        ra = r[index[q]]
        for j in range(n):
            out[j] = out[j] + ra * a[j]
        q += 1
"""

_FRONT_PRODUCT = """

@njit(error_model="numpy")
def front_product(out, w, r):
    # out[b] += r[b] @ w for four samples: the rows in the same order as add_rows adds them, hence the same bits (a row of a
    # silent neuron adds zero), but each row is read once for all four
    n = out.shape[1]
    c0 = out[0]
    c1 = out[1]
    c2 = out[2]
    c3 = out[3]
    r0 = r[0]
    r1 = r[1]
    r2 = r[2]
    r3 = r[3]
    j = 0
    while j + 2 <= n:
        wa = w[j]
        wb = w[j + 1]
        a0, a1 = r0[j], r0[j + 1]
        b0, b1 = r1[j], r1[j + 1]
        d0, d1 = r2[j], r2[j + 1]
        e0, e1 = r3[j], r3[j + 1]
        for i in range(n):
            p, q = wa[i], wb[i]
            c0[i] = (c0[i] + a0 * p) + a1 * q
            c1[i] = (c1[i] + b0 * p) + b1 * q
            c2[i] = (c2[i] + d0 * p) + d1 * q
            c3[i] = (c3[i] + e0 * p) + e1 * q
        j += 2
    while j < n:
        wa = w[j]
        a0, b0, d0, e0 = r0[j], r1[j], r2[j], r3[j]
        for i in range(n):
            p = wa[i]
            c0[i] = c0[i] + a0 * p
            c1[i] = c1[i] + b0 * p
            c2[i] = c2[i] + d0 * p
            c3[i] = c3[i] + e0 * p
        j += 1
"""

_SPIKED = """

@njit(error_model="numpy")
def spiked(s, index):
    # where the spikes are, 64 neurons at a look
    n = s.shape[0]
    c = 0
    j = 0
    while j + 64 <= n:
        bits = nonzero_bits(s, j)
        while bits != NONE:
            index[c] = j + lowest_bit(bits)
            c += 1
            bits &= bits - ONE
        j += 64
    while j < n:
        if s[j] != 0:
            index[c] = j
            c += 1
        j += 1
    return c
"""

_BACK_PRODUCT = """

@njit(error_model="numpy", fastmath={"contract"})
def back_product(carry, g, strips, own, spare):
    # carry[b] = g[b] @ the matrix in strips for a tile of samples; every sum over the rows of the matrix in their order
    n = carry.shape[1]
    for k in range(strips.shape[0]):
        i = k * strips.shape[2]
        if i + strips.shape[2] <= n:
            tile_product(carry, own, i, g, strips[k])
        else:
            tile_product(spare, own, 0, g, strips[k])
            for b in range(ROWS):
                for q in range(n - i):
                    carry[b, i + q] = spare[b, q]
"""


_ARRIVE = """

@njit(error_model="numpy")
def arrive(ring, now, s, index, late, begin, stop):
    # the spikes of a step, added to the rows of the steps in which they arrive
    places = ring.shape[0]
    for q in range(spiked(s, index)):
        j = index[q]
        one = s[j]
        kernel = late[j]
        slot = (now + 1 + begin[j]) % places
        for d in range(begin[j], stop[j]):
            ring[slot, j] += one * kernel[d]
            slot += 1
            if slot == places:
                slot = 0
"""

_DEPART = """

@njit(error_model="numpy")
def depart(carry, ring, now, s, index, kernel, used, glate):
    # the gradient that a step's spikes get from the steps in which they arrive, and that of the kernel
    places, n = kernel.shape
    for j in range(n):
        carry[j] = 0
    slot = (now + 1) % places
    for d in range(places):
        if used[d]:
            row = ring[slot]
            k = kernel[d]
            for j in range(n):
                carry[j] = carry[j] + k[j] * row[j]
        slot += 1
        if slot == places:
            slot = 0
    for q in range(spiked(s, index)):
        j = index[q]
        one = s[j]
        slot = (now + 1) % places
        for d in range(places):
            glate[d, j] += one * ring[slot, j]
            slot += 1
            if slot == places:
                slot = 0
"""


def _forward_source(
    p: Program,
    saved: Sequence[int],
    dtype: torch.dtype,
    late: bool = False,
    keep: bool = False,
    masked: bool = False,
) -> str:
    body = Forward(p, saved, False, dtype, saved)
    states = [f"s{k}" for k in range(len(p.state))]
    coefs = [f"k{k}" for k in range(len(p.coefs))]
    stores = [f"z{q}" for q in range(len(saved))]
    feedback = ["late", "begin", "stop", *(["mask"] if masked else [])] if late else ["first"]
    kept = ["arrived"] if keep else []
    args = ["x", "w", *feedback, "l", *states, *coefs, "y", *stores, *kept, "most"]
    text = HEADER + _TILES + _SPIKED + _ADD_ROWS + _FRONT_PRODUCT + (_ARRIVE if late else "")
    text += f"\n\ndef kernel({', '.join(args)}):\n"
    text += indent(
        [
            *["steps = y.shape[0]", "n = w.shape[0]", "batch = l.shape[0]"],
            *(["places = late.shape[1]"] * late),
            "for u in prange((batch + 3) // 4):",
        ],
        1,
    )
    text += indent(["drive = np.zeros((4, n), x.dtype)", "back = np.zeros((4, n), x.dtype)"], 2)
    text += indent(["index = np.empty((4, n), np.int64)", "count = np.zeros(4, np.int64)"], 2)
    if late:
        text += indent(["ring = np.zeros((4, places, n), x.dtype)"], 2)
        text += indent(["found = np.empty(n, np.int64)"], 2)
    text += indent(["tile = min(4, batch - 4 * u)", "for t in range(steps):"], 2)
    text += indent(["spikes = 0", "for i in range(tile):"], 3)
    text += indent(
        ["b = 4 * u + i", "lo = b * n", "hi = lo + n", "count[i] = 0", "x_ = drive[i]", "r = back[i]"], 4
    )
    text += indent(["if t >= l[b]:"], 4)
    text += indent(["for j in range(n):", "    x_[j] = 0", "    r[j] = 0"], 5)
    text += indent([f"    {a}[t, lo + j] = 0" for a in kept] + ["continue"], 5)
    source = "ring[i, t % places]" if late else "first[lo:hi] if t == 0 else y[t - 1, lo:hi]"
    text += indent(["current = x[t, lo:hi]", f"s = {source}"], 4)
    begin = "0" if masked else "current[j]"  # what is masked comes first, alone
    text += indent(["for j in range(n):", f"    x_[j] = {begin}", "    r[j] = s[j]"], 4)
    if late:  # the row is free for the step that comes once all its places have passed
        text += indent(["    s[j] = 0", *(f"    {a}[t, lo + j] = r[j]" for a in kept)], 4)
    text += indent(["c = spiked(r, index[i])", "count[i] = c", "spikes += c"], 4)
    text += indent(["if spikes > most * 4 * n:", "    front_product(drive, w, back)"], 3)
    text += indent(
        ["else:", "    for i in range(tile):", "        add_rows(drive[i], w, back[i], index[i], count[i])"],
        3,
    )
    text += indent(["for i in range(tile):"], 3)
    text += indent(
        ["b = 4 * u + i", "lo = b * n", "hi = lo + n", "x_ = drive[i]", *rows(["y"]), "if t >= l[b]:"], 4
    )
    text += indent(["for j in range(n):", "    y_[j] = 0", "continue"], 5)
    if masked:
        text += indent(["current = x[t, lo:hi]", "part = mask[lo:hi]", "for j in range(n):"], 4)
        text += indent(["x_[j] = current[j] + part[j] * x_[j]"], 5)
    text += indent([*rows([*states], "lo:hi"), *rows(coefs, "0:n"), *rows(stores), "for j in range(n):"], 4)
    text += indent(body.body, 5)
    if late:
        text += indent(["arrive(ring[i], t, y_, found, late, begin, stop)"], 4)
    # a sample's rows lie a batch apart, too far for the hardware to see what comes next
    line, streams = (16 if dtype == torch.float32 else 8), ["x", "y", *stores, *kept]
    text += indent(["if t + 1 < steps:"], 4) + indent([f"{s}n = {s}[t + 1, lo:hi]" for s in streams], 5)
    text += indent([f"for j in range(0, n, {line}):"], 5)
    text += indent([f"prefetch_write({s}n, j)" for s in streams], 6)
    return text


def _neighbours(each: Sequence[str]) -> str:
    """The samples of a tile at step ``t``, as many at once as are not over: their rows lie side by side.

    For short rows, setting up two dozen slices costs more than the arithmetic. What follows is printed into the loop with samples
    ``i`` to ``k``, their neurons ``lo`` to ``hi``, and ``wide`` of them.
    """
    text = indent(["i = 0", "while i < tile:"], 3)
    text += indent(["lo = (ROWS * u + i) * n", "hi = lo", "if t >= l[ROWS * u + i]:"], 4)
    text += indent(["over = gx[t, lo : lo + n]", "keep = g[i]"], 5)
    text += indent(
        ["for j in range(n):", "    over[j] = ZERO", "    keep[j] = ZERO", "i += 1", "continue"], 5
    )
    text += indent(["k = i", "while k < tile and t < l[ROWS * u + k]:"], 4)
    return text + indent([*each, "hi += n", "k += 1"], 5) + indent(["wide = hi - lo"], 4)


def _backward_source(
    p: Program, plan: Plan, dtype: torch.dtype, late: bool = False, masked: bool = False
) -> str:
    body = Backward(p, plan, False, dtype)
    states = [f"s{k}" for k in range(len(p.state)) if k in plan.prior]
    coefs = [f"k{k}" for k in range(len(p.coefs))]
    stores = [f"z{q}" for q in range(len(plan.saved))]
    grads = [f"g{k}" for k in range(len(p.state))]
    sums = [f"q{k}" for k, i in enumerate(plan.grad_coefs) if i is not None]
    feedback = ["y", "late", "used", *(["mask"] if masked else [])] if late else ["glast"]
    args = ["gy", "strips", *feedback, "l", *states, *coefs, *stores, "gx", *grads, *sums]
    args.append("glate" if late else "gfirst")
    kind = "F32" if dtype == torch.float32 else "F64"
    text = HEADER + _TILES + f"ZERO = {kind}(0.0)\n" + _BACK_PRODUCT
    text += _SPIKED + _DEPART if late else ""
    text += f"\n\ndef kernel({', '.join(args)}):\n"
    text += indent(
        [
            "steps = gy.shape[0]",
            "n = strips.shape[1]",
            "batch = l.shape[0]",
            *(["places = late.shape[0]"] * late),
            "for u in prange((batch + ROWS - 1) // ROWS):",
        ],
        1,
    )
    text += indent(
        [
            "mode = flush_tiny()",
            "carry = np.zeros((ROWS, n), gy.dtype)",
            "carries = carry.reshape(ROWS * n)",
            "g = np.zeros((ROWS, n), gy.dtype)",
            "kept = g.reshape(ROWS * n)",
            "sum_ = np.empty(ROWS * n, gy.dtype)",
            "own = np.arange(ROWS)",
            "spare = np.empty((ROWS, strips.shape[2]), gy.dtype)",
            "tile = min(ROWS, batch - ROWS * u)",
            *(["ring = np.zeros((ROWS, places, n), gy.dtype)", "found = np.empty(n, np.int64)"] * late),
            "for back in range(steps):",
            "    t = steps - 1 - back",
        ],
        2,
    )
    if late:
        each = ["depart(carry[k], ring[k], t, y[t, hi : hi + n], found, late, used, glate[u])"]
    else:  # behind a sample's last step stands the gradient of its last output
        each = ["if t == l[ROWS * u + k] - 1:", "    c = carry[k]", "    last = glast[hi : hi + n]"]
        each += ["    for j in range(n):", "        c[j] = last[j]"]
    text += _neighbours(each)
    text += indent(["gx_ = gx[t, lo:hi]", "incoming = gy[t, lo:hi]", "extra = carries[i * n : k * n]"], 4)
    text += indent(["gy_ = sum_[0:wide]", "for j in range(wide):", "    gy_[j] = incoming[j] + extra[j]"], 4)
    text += indent(rows([*states, *grads, *sums], "lo:hi") + rows(coefs, "0:wide") + rows(stores), 4)
    later = [f"p{q}_ = z{q}[t - 1, lo:hi]" for q in range(len(plan.saved))] if plan.prior else []
    text += indent(["if t > 0:"], 4) + indent([*later, "for j in range(wide):"], 5) + indent(body.later, 6)
    text += indent(["else:"], 4) + indent(["for j in range(wide):"], 5) + indent(body.first, 6)
    text += indent(
        [
            *["keep = kept[i * n : k * n]", *(["part = mask[lo:hi]"] * masked), "for j in range(wide):"],
            "    keep[j] = gx_[j] * part[j]" if masked else "    keep[j] = gx_[j]",
            "i = k",
        ],
        4,
    )
    text += indent(["back_product(carry, g, strips, own, spare)"], 3)
    if late:
        text += indent(["for i in range(tile):", "    row = ring[i, t % places]", "    c = carry[i]"], 3)
        text += indent(["for j in range(n):", "    row[j] = c[j]"], 4)
        return text + indent(["restore_tiny(mode)"], 2)
    text += indent(["for i in range(tile):"], 2)
    text += indent(
        ["b = ROWS * u + i", "lo = b * n", "hi = lo + n", "c = carry[i] if l[b] > 0 else glast[lo:hi]"], 3
    )
    text += indent(["gfirst_ = gfirst[lo:hi]", "for j in range(n):", "    gfirst_[j] = c[j]"], 3)
    return text + indent(["restore_tiny(mode)"], 2)


@functools.cache
def _forward(
    key: str,
    saved: tuple[int, ...],
    dtype: torch.dtype,
    late: bool = False,
    keep: bool = False,
    masked: bool = False,
) -> Kernel:
    text = _forward_source(program(key), saved, dtype, late, keep, masked)
    return compile_printed(text, "recurrent_forward")


@functools.cache
def _backward(key: str, plan: Plan, dtype: torch.dtype, late: bool = False, masked: bool = False) -> Kernel:
    return compile_printed(_backward_source(program(key), plan, dtype, late, masked), "recurrent_backward")


def _steps(lengths: Tensor | None, steps: int, batch: int) -> Any:
    # clamped: a length beyond the sequence must not become a write beyond the arrays
    full = torch.full((batch,), steps, device="cpu") if lengths is None else lengths.clamp(0, steps)
    return full.to(torch.int64).contiguous().numpy()


def forward(
    key: str,
    x: Tensor,
    state: Sequence[Tensor],
    previous: Tensor,
    coefs: Sequence[Tensor],
    weight: Tensor,
    lengths: Tensor | None,
    need_coefs: tuple[bool, ...] | None,
) -> tuple[Tensor, list[Tensor], Tensor, list[Tensor]]:
    """Run the fused recurrent forward.

    Shapes: ``x (T, B, N)``, states and ``previous (B, N)``, ``weight (N, N)`` as ``torch.nn.Linear`` (row = receiving neuron).

    Returns:
        outputs, final state, last valid output of each sample, saved tensors.
    """
    steps, batch, n = x.shape
    dtype = x.dtype
    saved = () if need_coefs is None else plan_for(key, True, need_coefs).saved
    y = empty_like(x)
    final = [s.detach().to(dtype).clone(memory_format=torch.contiguous_format) for s in state]
    stores = [empty_like(y) for _ in saved]
    last = previous.detach().to(dtype).clone(memory_format=torch.contiguous_format)
    if y.numel():
        args: list[Any] = [
            x.detach().contiguous().numpy().reshape(steps, -1),
            weight.detach().to(dtype).t().contiguous().numpy(),
        ]
        args += [last.numpy().reshape(-1), _steps(lengths, steps, batch)]
        args += [s.numpy().reshape(-1) for s in final]
        args += flat_coefs([c.detach() for c in coefs], tiles.ROWS, (n,), dtype)
        args += [t.numpy().reshape(steps, -1) for t in (y, *stores)]
        args.append(ROWS_UP_TO)
        _forward(key, saved, dtype).sized(steps * batch * n * _PER_STEP, *args)
        last = last_valid(y, last, lengths).clone()
    return y, final, last, stores


def backward(
    key: str,
    gy: Tensor,
    gfinal: Sequence[Tensor],
    glast: Tensor,
    state: Sequence[Tensor],
    coefs: Sequence[Tensor],
    weight: Tensor,
    stores: Sequence[Tensor],
    lengths: Tensor | None,
    need_coefs: tuple[bool, ...],
    sums: list[Tensor] | None = None,
) -> tuple[Tensor, list[Tensor], Tensor, list[Tensor]]:
    """Run the fused recurrent backward.

    Returns:
        gradient of the drive ``(T, B, N)``, of the initial state, of the initial spikes, and the wanted coefficients'
        gradients per neuron and sample.
    """
    p = program(key)
    plan = plan_for(key, True, need_coefs)
    steps, batch, n = gy.shape
    dtype = gy.dtype
    gstate = [g.detach().to(dtype).clone(memory_format=torch.contiguous_format) for g in gfinal]
    gx = empty_like(gy)
    gfirst = glast.detach().to(dtype).clone(memory_format=torch.contiguous_format)
    if sums is None:
        sums = [gy.new_zeros((batch, n)) for i in plan.grad_coefs if i is not None]
    if gy.numel():
        args: list[Any] = [
            gy.detach().contiguous().numpy().reshape(steps, -1),
            tiles.pack(weight.detach().to(dtype)).numpy(),
        ]
        args += [glast.detach().to(dtype).contiguous().numpy().reshape(-1), _steps(lengths, steps, batch)]
        args += [state[k].detach().to(dtype).contiguous().numpy().reshape(-1) for k in plan.prior]
        args += flat_coefs([c.detach() for c in coefs], tiles.ROWS, (n,), dtype)
        args += [z.numpy().reshape(steps, -1) for z in stores]
        args.append(gx.numpy().reshape(steps, -1))
        args += [g.numpy().reshape(-1) for g in (*gstate, *sums)]
        args.append(gfirst.numpy().reshape(-1))
        _backward(key, plan, dtype).sized(steps * batch * n * _PER_STEP, *args)
    if p.grad_x is None and gx.numel():
        gx.zero_()
    return gx, gstate, gfirst, sums


def forward_late(
    key: str,
    x: Tensor,
    state: Sequence[Tensor],
    coefs: Sequence[Tensor],
    weight: Tensor,
    late: Tensor,
    mask: Tensor | None,
    lengths: Tensor | None,
    need_coefs: tuple[bool, ...] | None,
) -> tuple[Tensor, list[Tensor], Tensor, list[Tensor]]:
    """Run the fused forward with spikes that arrive late, from silence.

    Shapes: as :func:`forward`; ``late (P, N)``: what of a spike arrives 1 to ``P`` steps later; ``mask (B, N)``: factors of what
    comes out of the matrix.

    Returns:
        outputs, final state, what arrived ``(T, B, N)`` (empty without gradients), saved tensors.
    """
    steps, batch, n = x.shape
    dtype, keep = x.dtype, need_coefs is not None
    saved = () if need_coefs is None else plan_for(key, True, need_coefs).saved
    y, arrived = empty_like(x), empty_like(x) if keep else x.new_empty(0)
    final = [s.detach().to(dtype).clone(memory_format=torch.contiguous_format) for s in state]
    stores = [empty_like(y) for _ in saved]
    if y.numel():
        begin, stop = _span(late)
        args: list[Any] = [
            x.detach().contiguous().numpy().reshape(steps, -1),
            weight.detach().to(dtype).t().contiguous().numpy(),
            late.detach().t().contiguous().numpy(),
            begin,
            stop,
            *([] if mask is None else [mask.detach().to(dtype).contiguous().numpy().reshape(-1)]),
            _steps(lengths, steps, batch),
        ]
        args += [s.numpy().reshape(-1) for s in final]
        args += flat_coefs([c.detach() for c in coefs], tiles.ROWS, (n,), dtype)
        args += [t.numpy().reshape(steps, -1) for t in (y, *stores, *([arrived] if keep else []))]
        args.append(ROWS_UP_TO)
        kernel = _forward(key, saved, dtype, True, keep, mask is not None)
        kernel.sized(steps * batch * n * _PER_STEP, *args)
    return y, final, arrived, stores


def _span(late: Tensor) -> tuple[Any, Any]:
    """The first place of each column of ``late (P, N)`` that is not zero, and the one behind the last."""
    places = torch.arange(late.shape[0], device=late.device).unsqueeze(1)
    there = late.detach() != 0
    begin = torch.where(there, places, late.shape[0]).amin(0)
    stop = torch.where(there, places + 1, 0).amax(0)
    return torch.minimum(begin, stop).numpy(), stop.numpy()


def backward_late(
    key: str,
    gy: Tensor,
    gfinal: Sequence[Tensor],
    y: Tensor,
    state: Sequence[Tensor],
    coefs: Sequence[Tensor],
    weight: Tensor,
    late: Tensor,
    mask: Tensor | None,
    stores: Sequence[Tensor],
    lengths: Tensor | None,
    need_coefs: tuple[bool, ...],
) -> tuple[Tensor, list[Tensor], Tensor, list[Tensor]]:
    """Run the fused backward of :func:`forward_late`.

    Returns:
        gradient of the drive ``(T, B, N)``, of the initial state, of ``late``, and the wanted coefficients' gradients per
        neuron and sample.
    """
    p = program(key)
    plan = plan_for(key, True, need_coefs)
    steps, batch, n = gy.shape
    dtype = gy.dtype
    gstate = [g.detach().to(dtype).clone(memory_format=torch.contiguous_format) for g in gfinal]
    gx = empty_like(gy)
    # a sum for each tile of samples, added up in their order: the same whatever the number of threads
    glate = gy.new_zeros(-(-batch // tiles.ROWS), *late.shape)
    sums = [gy.new_zeros((batch, n)) for i in plan.grad_coefs if i is not None]
    if gy.numel():
        args: list[Any] = [
            gy.detach().contiguous().numpy().reshape(steps, -1),
            tiles.pack(weight.detach().to(dtype)).numpy(),
            y.detach().contiguous().numpy().reshape(steps, -1),
            late.detach().contiguous().numpy(),
            (late.detach() != 0).any(1).numpy(),
            *([] if mask is None else [mask.detach().to(dtype).contiguous().numpy().reshape(-1)]),
            _steps(lengths, steps, batch),
        ]
        args += [state[k].detach().to(dtype).contiguous().numpy().reshape(-1) for k in plan.prior]
        args += flat_coefs([c.detach() for c in coefs], tiles.ROWS, (n,), dtype)
        args += [z.numpy().reshape(steps, -1) for z in stores]
        args.append(gx.numpy().reshape(steps, -1))
        args += [g.numpy().reshape(-1) for g in (*gstate, *sums)]
        args.append(glate.numpy())
        _backward(key, plan, dtype, True, mask is not None).sized(steps * batch * n * _PER_STEP, *args)
    if p.grad_x is None and gx.numel():
        gx.zero_()
    return gx, gstate, glate.sum(0), sums
