"""Scans as torch operators: engine choice, autograd, fake kernels for ``torch.compile``, checkpointing, lengths.

What the backward keeps, per neuron and step (float32): the nodes of the saved set, 4 bytes each: LIF 4 (its membrane before the
reset), ALIF 8, and the input by reference when a coefficient's gradient reads it. :func:`saved_bytes` tells it for any dynamics.
With ``checkpoint=K`` only the state at every K-th step and the input are kept and the forward of a chunk is run again in the
backward; gradients are the same to the bit, because a chunk goes on from the running sums of the one after it.
"""

from __future__ import annotations

import functools
import importlib.util
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ..errors import EngineError, ParameterError, ShapeError, unknown
from ..kernels.projection import weight_gradient
from ..shapes import check_lengths, last_valid
from ..surrogate import Surrogate
from . import delayed, reference
from .dynamics import Dynamics, entry, mixes_samples, plan_for, program, register
from .gradients import first_derivative_only, reduce
from .graph import Plan

ENGINES = ("reference", "cpu", "gpu")

Feedback: TypeAlias = "Tensor | delayed.Delayed | Callable[[Tensor], Tensor]"


def _eager(x: Tensor) -> bool:
    """Whether nothing listens between caller and kernel: then the operator's dispatch, as slow as a small scan, is left out."""
    return (
        type(x) is Tensor
        and not torch.compiler.is_compiling()
        and not torch._C._len_torch_dispatch_stack()
        and not torch._C._are_functorch_transforms_active()
        and not torch.jit.is_tracing()
    )


# -- operators -------------------------------------------------------------------------------------------------------


def _module(engine: str) -> Any:
    if engine == "cpu":
        from . import cpu

        return cpu
    from . import gpu

    return gpu


def _plan(key: str, needs: Sequence[bool]) -> Plan:
    return plan_for(key, needs[0], tuple(needs[1:]))


def _keeps_input(key: str, needs: tuple[bool, ...]) -> bool:
    """Whether the backward reads the scan's input; a constant for the compiler, which need not trace the planning."""
    return program(key).x in _plan(key, needs).saved


# what torch.compiler.assume_constant_result does, without its two seconds of importing the compiler
_keeps_input._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _writes(key: str, needs: Sequence[bool]) -> int:
    if not needs:
        return 0
    p = program(key)
    return sum(1 for i in _plan(key, needs).saved if i != p.x)


def _arithmetic(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the arithmetic, the state and the saved values for inputs of ``dtype``."""
    return dtype if dtype in (torch.float32, torch.float64) else torch.float32


def _chunks(steps: int, size: int) -> list[tuple[int, int]]:
    return [(t, min(steps, t + size)) for t in range(0, steps, size)] or [(0, 0)]


def _shift(lengths: Tensor | None, start: int, stop: int) -> Tensor | None:
    return None if lengths is None else (lengths - start).clamp(0, stop - start)


def _scan_now(
    key: str,
    engine: str,
    x: Tensor,
    state: Sequence[Tensor],
    coefs: Sequence[Tensor],
    lengths: Tensor | None,
    needs: Sequence[bool],
    checkpoint: int,
) -> list[Tensor]:
    # returns [outputs, *final state, *saved]; needs = (input, *coefs), empty: nothing is saved
    run = _module(engine)
    if not needs:
        y, final, _ = run.forward(key, x, state, coefs, lengths, None)
        return [y, *final]
    if not checkpoint:
        y, final, stores = run.forward(key, x, state, coefs, lengths, (needs[0], tuple(needs[1:])))
        return [y, *final, *stores]
    outputs, borders, now = [], [], [s.clone() for s in state]
    for start, stop in _chunks(x.shape[0], checkpoint):
        borders.append(now)
        y, now, _ = run.forward(key, x[start:stop], now, coefs, _shift(lengths, start, stop), None)
        outputs.append(y)
    return [torch.cat(outputs), *now, *(torch.stack(border) for border in zip(*borders, strict=True))]


_scan_op = torch.library.custom_op("spiketide::scan", _scan_now, mutates_args=())


@_scan_op.register_fake
def _scan_fake(
    key: str,
    engine: str,
    x: Tensor,
    state: Sequence[Tensor],
    coefs: Sequence[Tensor],
    lengths: Tensor | None,
    needs: Sequence[bool],
    checkpoint: int,
) -> list[Tensor]:
    y = x.new_empty(x.shape)
    final = [s.new_empty(s.shape) for s in state]
    if needs and checkpoint:
        count = max(1, -(-x.shape[0] // checkpoint))
        return [y, *final, *(s.new_empty((count, *s.shape)) for s in state)]
    return [
        y,
        *final,
        *(x.new_empty(x.shape, dtype=_arithmetic(x.dtype)) for _ in range(_writes(key, needs))),
    ]


def _scan_backward_now(
    key: str,
    engine: str,
    gy: Tensor,
    gfinal: Sequence[Tensor],
    x: Tensor | None,
    state: Sequence[Tensor],
    coefs: Sequence[Tensor],
    saved: Sequence[Tensor],
    lengths: Tensor | None,
    needs: Sequence[bool],
    checkpoint: int,
) -> list[Tensor]:
    # returns [gradient of x (empty if not wanted), *of the state, *of every coefficient (empty if not wanted)]
    run = _module(engine)
    split = (needs[0], tuple(needs[1:]))
    if not checkpoint:
        gx, gstate, sums = run.backward(key, gy, gfinal, x, state, coefs, saved, lengths, split)
    else:
        if x is None:
            raise EngineError("a checkpointed scan lost its input.")
        gx = torch.empty_like(gy) if needs[0] else None
        gstate, sums = list(gfinal), None
        for c, (start, stop) in reversed(list(enumerate(_chunks(gy.shape[0], checkpoint)))):
            begin, part = [border[c] for border in saved], _shift(lengths, start, stop)
            _, _, stores = run.forward(key, x[start:stop], begin, coefs, part, split)
            gpart, gstate, sums = run.backward(
                key, gy[start:stop], gstate, x[start:stop], begin, coefs, stores, part, split, sums
            )
            if gx is not None:
                gx[start:stop] = gpart
    return [gx if gx is not None else gy.new_empty(0), *gstate, *reduce(key, needs, coefs, sums or [])]


_scan_backward_op = torch.library.custom_op("spiketide::scan_backward", _scan_backward_now, mutates_args=())


@_scan_backward_op.register_fake
def _scan_backward_fake(
    key: str,
    engine: str,
    gy: Tensor,
    gfinal: Sequence[Tensor],
    x: Tensor | None,
    state: Sequence[Tensor],
    coefs: Sequence[Tensor],
    saved: Sequence[Tensor],
    lengths: Tensor | None,
    needs: Sequence[bool],
    checkpoint: int,
) -> list[Tensor]:
    gx = gy.new_empty(gy.shape) if needs[0] else gy.new_empty(0)
    gcoefs = [c.new_empty(c.shape if n else 0) for c, n in zip(coefs, needs[1:], strict=True)]
    return [gx, *(s.new_empty(s.shape) for s in state), *gcoefs]


class _Scan(torch.autograd.Function):
    """The fused scan with its fused backward."""

    @staticmethod
    def forward(
        ctx: Any,
        key: str,
        engine: str,
        lengths: Tensor | None,
        checkpoint: int,
        needs: tuple[bool, ...],
        n_state: int,
        x: Tensor,
        *rest: Tensor,
    ) -> tuple[Tensor, ...]:
        state, coefs = rest[:n_state], rest[n_state:]
        run = _scan_now if _eager(x) else torch.ops.spiketide.scan
        out = run(key, engine, x, state, coefs, lengths, needs, checkpoint)
        keep_x = bool(checkpoint) or _keeps_input(key, needs)
        ctx.how = (key, engine, checkpoint, needs, n_state, keep_x, lengths is not None)
        extra = ([x] if keep_x else []) + ([lengths] if lengths is not None else [])
        ctx.save_for_backward(*state, *coefs, *extra, *out[1 + n_state :])
        return tuple(out[: 1 + n_state])

    @staticmethod
    def backward(ctx: Any, gy: Tensor, *gfinal: Tensor) -> Any:
        first_derivative_only()
        key, engine, checkpoint, needs, n_state, keep_x, has_lengths = ctx.how
        saved = list(ctx.saved_tensors)
        state, saved = saved[:n_state], saved[n_state:]
        coefs, saved = saved[: len(needs) - 1], saved[len(needs) - 1 :]
        x = saved.pop(0) if keep_x else None
        lengths = saved.pop(0) if has_lengths else None
        run = _scan_backward_now if _eager(gy) else torch.ops.spiketide.scan_backward
        out = run(key, engine, gy, gfinal, x, state, coefs, saved, lengths, needs, checkpoint)
        gcoefs = [g if need else None for g, need in zip(out[1 + n_state :], needs[1:], strict=True)]
        return (None,) * 6 + (out[0] if needs[0] else None, *out[1 : 1 + n_state], *gcoefs)


def _recurrent_now(
    key: str,
    engine: str,
    x: Tensor,
    state: Sequence[Tensor],
    previous: Tensor,
    coefs: Sequence[Tensor],
    weight: Tensor,
    lengths: Tensor | None,
    needs: Sequence[bool],
    save: bool,
    checkpoint: int,
) -> list[Tensor]:
    # returns [outputs, *final state, last outputs, *saved]; needs = (*coefs)
    recurrent = delayed.engine_module(engine)
    if not save or not checkpoint:
        y, final, last, stores = recurrent.forward(
            key, x, state, previous, coefs, weight, lengths, tuple(needs) if save else None
        )
        return [y, *final, last, *stores]
    outputs, borders, now, last = [], [], [s.clone() for s in state], previous.clone()
    for start, stop in _chunks(x.shape[0], checkpoint):
        borders.append([*now, last])
        y, now, last, _ = recurrent.forward(
            key, x[start:stop], now, last, coefs, weight, _shift(lengths, start, stop), None
        )
        outputs.append(y)
    return [torch.cat(outputs), *now, last, *(torch.stack(border) for border in zip(*borders, strict=True))]


_recurrent_op = torch.library.custom_op("spiketide::recurrent_scan", _recurrent_now, mutates_args=())


@_recurrent_op.register_fake
def _recurrent_fake(
    key: str,
    engine: str,
    x: Tensor,
    state: Sequence[Tensor],
    previous: Tensor,
    coefs: Sequence[Tensor],
    weight: Tensor,
    lengths: Tensor | None,
    needs: Sequence[bool],
    save: bool,
    checkpoint: int,
) -> list[Tensor]:
    first = [x.new_empty(x.shape), *(s.new_empty(s.shape) for s in state), previous.new_empty(previous.shape)]
    if not save:
        return first
    if checkpoint:
        count = max(1, -(-x.shape[0] // checkpoint))
        return [*first, *(s.new_empty((count, *s.shape)) for s in (*state, previous))]
    saved = _plan(key, (True, *needs)).saved
    return [*first, *(x.new_empty(x.shape, dtype=_arithmetic(x.dtype)) for _ in saved)]


def _recurrent_backward_now(
    key: str,
    engine: str,
    gy: Tensor,
    gfinal: Sequence[Tensor],
    glast: Tensor,
    x: Tensor | None,
    y: Tensor,
    state: Sequence[Tensor],
    previous: Tensor,
    coefs: Sequence[Tensor],
    weight: Tensor,
    saved: Sequence[Tensor],
    lengths: Tensor | None,
    needs: Sequence[bool],
    need_weight: bool,
    checkpoint: int,
) -> list[Tensor]:
    # returns [gradient of x, *of the state, of the previous outputs, of the weight (empty if not wanted), *of the coefs]
    recurrent = delayed.engine_module(engine)
    want = tuple(needs)
    if not checkpoint:
        gx, gstate, gfirst, sums = recurrent.backward(
            key, gy, gfinal, glast, state, coefs, weight, saved, lengths, want
        )
    else:
        if x is None:
            raise EngineError("a checkpointed recurrent scan lost its input.")
        gx, gstate, gfirst, running = torch.empty_like(gy, dtype=weight.dtype), list(gfinal), glast, None
        for c, (start, stop) in reversed(list(enumerate(_chunks(gy.shape[0], checkpoint)))):
            begin, part = [border[c] for border in saved], _shift(lengths, start, stop)
            _, _, _, stores = recurrent.forward(
                key, x[start:stop], begin[:-1], begin[-1], coefs, weight, part, want
            )
            gx[start:stop], gstate, gfirst, running = recurrent.backward(
                key, gy[start:stop], gstate, gfirst, begin[:-1], coefs, weight, stores, part, want, running
            )
        sums = running or []
    gweight = weight.new_empty(0)
    if need_weight:
        n = weight.shape[0]
        # past a sample's end gx is zero, so the outputs there do not matter
        with torch.autocast(gx.device.type, enabled=False):
            gweight = weight_gradient(y[:-1].reshape(-1, n).to(gx.dtype), gx[1:].reshape(-1, n))
            if gx.shape[0]:
                gweight += gx[0].t() @ previous
    return [gx.to(gy.dtype), *gstate, gfirst, gweight, *reduce(key, (True, *needs), coefs, sums)]


_recurrent_backward_op = torch.library.custom_op(
    "spiketide::recurrent_scan_backward", _recurrent_backward_now, mutates_args=()
)


@_recurrent_backward_op.register_fake
def _recurrent_backward_fake(
    key: str,
    engine: str,
    gy: Tensor,
    gfinal: Sequence[Tensor],
    glast: Tensor,
    x: Tensor | None,
    y: Tensor,
    state: Sequence[Tensor],
    previous: Tensor,
    coefs: Sequence[Tensor],
    weight: Tensor,
    saved: Sequence[Tensor],
    lengths: Tensor | None,
    needs: Sequence[bool],
    need_weight: bool,
    checkpoint: int,
) -> list[Tensor]:
    gcoefs = [c.new_empty(c.shape if n else 0) for c, n in zip(coefs, needs, strict=True)]
    gstate = [s.new_empty(s.shape) for s in (*state, previous)]
    # the matrix gradient comes input by input, as Dense keeps its weight
    gweight = weight.new_empty(weight.shape[::-1]).t() if need_weight else weight.new_empty(0)
    return [gy.new_empty(gy.shape), *gstate, gweight, *gcoefs]


class _RecurrentScan(torch.autograd.Function):
    """The fused recurrent scan with its fused backward."""

    @staticmethod
    def forward(
        ctx: Any,
        key: str,
        engine: str,
        lengths: Tensor | None,
        checkpoint: int,
        needs: tuple[bool, ...],
        need_weight: bool,
        n_state: int,
        x: Tensor,
        previous: Tensor,
        weight: Tensor,
        *rest: Tensor,
    ) -> tuple[Tensor, ...]:
        state, coefs = rest[:n_state], rest[n_state:]
        run = _recurrent_now if _eager(x) else torch.ops.spiketide.recurrent_scan
        out = run(key, engine, x, state, previous, coefs, weight, lengths, needs, True, checkpoint)
        ctx.how = (key, engine, checkpoint, needs, need_weight, n_state, lengths is not None)
        extra = ([x] if checkpoint else []) + ([lengths] if lengths is not None else [])
        ctx.save_for_backward(*state, *coefs, out[0], previous, weight, *extra, *out[2 + n_state :])
        return tuple(out[: 2 + n_state])

    @staticmethod
    def backward(ctx: Any, gy: Tensor, *gfinal: Tensor) -> Any:
        first_derivative_only()
        key, engine, checkpoint, needs, need_weight, n_state, has_lengths = ctx.how
        saved = list(ctx.saved_tensors)
        state, saved = saved[:n_state], saved[n_state:]
        coefs, saved = saved[: len(needs)], saved[len(needs) :]
        y, previous, weight, *saved = saved
        x = saved.pop(0) if checkpoint else None
        lengths = saved.pop(0) if has_lengths else None
        run = _recurrent_backward_now if _eager(gy) else torch.ops.spiketide.recurrent_scan_backward
        out = run(
            key,
            engine,
            gy,
            gfinal[:-1],
            gfinal[-1],
            x,
            y,
            state,
            previous,
            coefs,
            weight,
            saved,
            lengths,
            needs,
            need_weight,
            checkpoint,
        )
        gx, gstate, gfirst, gweight = out[0], out[1 : 1 + n_state], out[1 + n_state], out[2 + n_state]
        gcoefs = [g if need else None for g, need in zip(out[3 + n_state :], needs, strict=True)]
        return (None,) * 7 + (gx, gfirst, gweight if need_weight else None, *gstate, *gcoefs)


# -- the public functions ------------------------------------------------------------------------------------------------


@functools.cache
def _available(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


@functools.cache
def _warn_untraceable(key: str) -> None:
    mixed = " Its step mixes the samples of a batch: reduce over the last axis alone, as .mean(-1, keepdim=True) does."
    warnings.warn(
        f"this neuron runs on the reference engine, a slow loop: {entry(key).why}"
        + (mixed if mixes_samples(key) else ""),
        UserWarning,
        stacklevel=4,
    )


@functools.cache
def _warn_no_engine(device: str) -> None:
    what = (
        "Triton is not installed: pip install spiketide[gpu]"
        if device == "cuda"
        else "it has no fused engine"
    )
    warnings.warn(
        f"scans on {device} run on the reference engine, a slow loop: {what}", UserWarning, stacklevel=4
    )


def choose_engine(key: str, device: torch.device, engine: str | None) -> str:
    """The engine that will run, or an error that says why the wanted one cannot.

    ``None`` takes the fused engine of the tensor's device, and the reference loop (with a warning) for a step that cannot
    be traced.
    """
    if engine is None:
        if entry(key).program is None:
            _warn_untraceable(key)
            return "reference"
        if device.type == "cpu":
            return "cpu"
        if device.type == "cuda" and _available("triton"):
            return "gpu"
        _warn_no_engine(device.type)
        return "reference"
    if engine not in ENGINES:
        raise EngineError(unknown("engine", engine, ENGINES))
    if engine != "reference":
        program(key)
    if engine == "cpu" and device.type != "cpu":
        raise EngineError(f"engine='cpu' needs CPU tensors, got {device}: use engine=None or 'gpu'.")
    if engine == "gpu" and not _available("triton"):
        raise EngineError("engine='gpu' needs Triton, which is not installed: pip install spiketide[gpu].")
    if (
        engine == "gpu"
        and device.type != "cuda"
        and not (device.type == "cpu" and _module("gpu").interpreted())
    ):
        raise EngineError(
            f"engine='gpu' needs CUDA tensors, got {device}: move them with .to('cuda'), or use engine=None. (CPU tensors "
            "run in Triton's interpreter, a slow test mode, when TRITON_INTERPRET=1 is set before Python starts.)"
        )
    return engine


def _fits(shape: torch.Size, into: torch.Size) -> bool:
    """Whether a shape broadcasts to another; torch's own function for it takes longer than a small scan."""
    return len(shape) <= len(into) and all(
        a in (1, b) for a, b in zip(reversed(shape), reversed(into), strict=False)
    )


def _check_tensor(x: Tensor) -> None:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise ShapeError(
            f"scan expected a floating tensor (T, B, *N), got {getattr(x, 'dtype', type(x).__name__)}."
        )


def _prepare(
    dynamics: Dynamics,
    x: Tensor,
    state: Sequence[Tensor] | None,
    coefs: Sequence[Any],
    lengths: Tensor | None,
    engine: str,
) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...], Tensor | None]:
    if x.dim() < 2:
        raise ShapeError(f"scan expected (T, B, *N), got {tuple(x.shape)} with {x.dim()} axes.")
    dtype = _arithmetic(x.dtype)
    shape = x.shape[1:]
    if state is None:
        state = tuple(x.new_zeros(shape, dtype=dtype) for _ in dynamics.state)
    if len(state) != len(dynamics.state):
        raise ShapeError(
            f"scan expected {len(dynamics.state)} state tensors {dynamics.state}, got {len(state)}."
        )
    for name, s in zip(dynamics.state, state, strict=True):
        if s.shape != shape:
            raise ShapeError(
                f"scan expected state {name} of shape {tuple(shape)}, got {tuple(s.shape)}: a state belongs to one batch size."
            )
    if len(coefs) != len(dynamics.coefs):
        raise ShapeError(f"scan expected {len(dynamics.coefs)} coefs {dynamics.coefs}, got {len(coefs)}.")
    made = []
    for name, c in zip(dynamics.coefs, coefs, strict=True):
        tensor = c if isinstance(c, Tensor) else torch.full((), float(c), dtype=dtype, device=x.device)
        if not _fits(tensor.shape, shape[1:]):
            raise ShapeError(
                f"scan expected coef {name} to be a scalar or broadcastable to {tuple(shape[1:])}, got {tuple(tensor.shape)}."
            )
        made.append(tensor.to(device=x.device, dtype=dtype))
    if lengths is not None:
        check_lengths("scan", x, lengths)
        lengths = lengths.to(x.device)
    # the GPU kernels convert half inputs in registers; the other engines want them converted first
    return x if engine == "gpu" else x.to(dtype), tuple(s.to(dtype) for s in state), tuple(made), lengths


def scan(
    dynamics: Dynamics,
    x: Tensor,
    state: Sequence[Tensor] | None,
    coefs: Sequence[Any],
    surrogate: Surrogate,
    *,
    engine: str | None = None,
    lengths: Tensor | None = None,
    checkpoint: int | None = None,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run a neuron's step through time: ``s[t], state = step(x[t], *state, *coefs)``.

    Example:
        >>> import torch
        >>> from spiketide import spike
        >>> from spiketide.scan import Dynamics, scan
        >>> from spiketide.surrogate import FastSigmoid
        >>> def step(x, v, decay, threshold):
        ...     v = decay * v + x
        ...     s = spike(v - threshold)
        ...     return s, v - threshold * s
        >>> dynamics = Dynamics(("v",), ("decay", "threshold"), step)
        >>> y, (v,) = scan(dynamics, torch.full((4, 1, 1), 0.6), None, (1.0, 1.0), FastSigmoid(10.0))
        >>> y.flatten().tolist()
        [0.0, 1.0, 0.0, 1.0]

    Shapes:
        ``x (T, B, *N)``; each state ``(B, *N)`` or ``state=None`` for zeros; each coefficient a number, a scalar tensor or
        broadcastable to ``*N``; ``lengths (B,)`` integers; outputs ``(T, B, *N)`` and the final state.

    Args:
        dynamics: the neuron.
        x: its input current.
        state: where to begin.
        coefs: per-step numbers, in the order of ``dynamics.coefs``; every tensor among them is differentiable.
        surrogate: derivative of the spike.
        engine: ``"reference"``, ``"cpu"``, ``"gpu"``, or ``None`` to take the fused engine of the device.
        lengths: valid steps per sample; a step past the end gives 0, changes nothing and contributes no gradient.
        checkpoint: keep the state at every so many steps only and recompute in between, in the backward; exact to the bit on
            the fused engines.

    float16 and bfloat16 inputs are computed in float32 (state stays float32) and the outputs come back in their dtype.

    Raises:
        ShapeError: shapes or dtypes do not fit.
        EngineError: unknown engine, or one that cannot run here or cannot run this step.
    """
    return scan_registered(
        register(dynamics, surrogate), x, state, coefs, engine=engine, lengths=lengths, checkpoint=checkpoint
    )


def scan_registered(
    key: str,
    x: Tensor,
    state: Sequence[Tensor] | None,
    coefs: Sequence[Any],
    *,
    engine: str | None = None,
    lengths: Tensor | None = None,
    checkpoint: int | None = None,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """:func:`scan` for dynamics already registered (layers register once, when they are built)."""
    _check_tensor(x)
    found = entry(key)
    chosen = choose_engine(key, x.device, engine)
    out_dtype = x.dtype
    x, state, coefs, lengths = _prepare(found.dynamics, x, state, coefs, lengths, chosen)
    if checkpoint is not None and checkpoint < 1:
        raise ParameterError(f"checkpoint expected a number of steps >= 1, got {checkpoint}.")
    if chosen == "reference":
        if checkpoint is not None and torch.is_grad_enabled():
            return _reference_checkpointed(
                found.dynamics, found.surrogate, x, state, coefs, lengths, checkpoint, out_dtype
            )
        y, final, _ = reference.run(found.dynamics, x, state, coefs, found.surrogate, lengths)
        return y.to(out_dtype), final
    n_state = len(state)
    operands = (x, *state, *coefs)
    if torch.is_grad_enabled() and any(o.requires_grad for o in operands):
        needs = (x.requires_grad, *(c.requires_grad for c in coefs))
        y, *end = _Scan.apply(key, chosen, lengths, checkpoint or 0, needs, n_state, *operands)
    else:
        run = _scan_now if _eager(x) else torch.ops.spiketide.scan
        y, *end = run(key, chosen, x, state, coefs, lengths, (), 0)
    return y.to(out_dtype), tuple(end)


def _reference_checkpointed(
    dynamics: Dynamics,
    surrogate: Surrogate,
    x: Tensor,
    state: tuple[Tensor, ...],
    coefs: tuple[Tensor, ...],
    lengths: Tensor | None,
    checkpoint: int,
    out_dtype: torch.dtype,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    from torch.utils.checkpoint import checkpoint as recompute

    outputs, n_state = [], len(state)
    for start, stop in _chunks(x.shape[0], checkpoint):

        def chunk(
            part: Tensor, *operands: Tensor, bounds: tuple[int, int] = (start, stop)
        ) -> tuple[Tensor, ...]:
            begin, cs = operands[:n_state], operands[n_state:]
            y, final, _ = reference.run(dynamics, part, begin, cs, surrogate, _shift(lengths, *bounds))
            return (y, *final)

        y, *now = recompute(chunk, x[start:stop], *state, *coefs, use_reentrant=False)
        state = tuple(now)
        outputs.append(y)
    return torch.cat(outputs).to(out_dtype), state


def recurrent_scan(
    dynamics: Dynamics,
    x: Tensor,
    state: Sequence[Tensor] | None,
    coefs: Sequence[Any],
    surrogate: Surrogate,
    feedback: Feedback,
    *,
    previous: Tensor | None = None,
    engine: str | None = None,
    lengths: Tensor | None = None,
    checkpoint: int | None = None,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run a step driven by ``x[t] + feedback(s[t-1])``.

    Shapes:
        As :func:`scan`; with a matrix ``feedback (N, N)`` as in ``torch.nn.Linear`` (row = receiving neuron), ``x`` is
        ``(T, B, N)``. ``previous (B, *N)`` are the outputs before the first step (``None``: zeros).

    Args:
        dynamics: the neuron.
        x: its input current.
        state: where to begin.
        coefs: per-step numbers.
        surrogate: derivative of the spike.
        feedback: a matrix (fused); a matrix behind kernels over time, :class:`spiketide.scan.Delayed` (fused without
            ``checkpoint``; its ``before`` says what came before the first step); or any callable ``s (B, *N) -> (B, *N)``, which
            runs on the reference engine.
        previous: outputs before the first step.
        engine: as in :func:`scan`; on a GPU one launch for all steps up to 128 neurons in float32, beyond captured stretches of
            a matrix product and a fused kernel a step.
        lengths: valid steps per sample.
        checkpoint: as in :func:`scan`, for the fused engine.

    Returns:
        outputs ``(T, B, *N)`` and ``(*state, previous)`` after the last (valid) step.

    Raises:
        ShapeError: shapes do not fit.
        EngineError: a callable on a fused engine, or an unknown engine.
    """
    return recurrent_scan_registered(
        register(dynamics, surrogate),
        x,
        state,
        coefs,
        feedback,
        previous=previous,
        engine=engine,
        lengths=lengths,
        checkpoint=checkpoint,
    )


def recurrent_scan_registered(
    key: str,
    x: Tensor,
    state: Sequence[Tensor] | None,
    coefs: Sequence[Any],
    feedback: Feedback,
    *,
    previous: Tensor | None = None,
    engine: str | None = None,
    lengths: Tensor | None = None,
    checkpoint: int | None = None,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """:func:`recurrent_scan` for dynamics already registered."""
    _check_tensor(x)
    found = entry(key)
    matrix = feedback if isinstance(feedback, Tensor) else None
    late = feedback if isinstance(feedback, delayed.Delayed) else None
    chosen = choose_engine(key, x.device, engine)
    if late is not None and (checkpoint is not None or not _eager(x)):
        if engine not in (None, "reference"):
            raise EngineError(
                f"engine={engine!r} cannot run delays in recurrence here: they are fused without checkpoint and outside "
                "torch.compile. Leave engine=None."
            )
        chosen, checkpoint = "reference", None
    if engine is None and matrix is None and late is None:
        chosen = "reference"
    if chosen != "reference" and matrix is None and late is None:
        raise EngineError(
            'a callable feedback runs on engine="reference" only; give a matrix for the fused engine.'
        )
    if checkpoint is not None and checkpoint < 1:
        raise ParameterError(f"checkpoint expected a number of steps >= 1, got {checkpoint}.")
    out_dtype = x.dtype
    x, state, coefs, lengths = _prepare(found.dynamics, x, state, coefs, lengths, chosen)
    if matrix is not None and (x.dim() != 3 or tuple(matrix.shape) != (x.shape[2], x.shape[2])):
        raise ShapeError(
            f"recurrent_scan expected x (T, B, N) and a matrix (N, N), got {tuple(x.shape)} and {tuple(matrix.shape)}."
        )
    if previous is None:
        previous = x.new_zeros(x.shape[1:], dtype=_arithmetic(x.dtype))
    if previous.shape != x.shape[1:]:
        raise ShapeError(
            f"recurrent_scan expected previous of shape {tuple(x.shape[1:])}, got {tuple(previous.shape)}."
        )
    dtype = _arithmetic(x.dtype)
    previous = previous.to(dtype)
    if late is not None:
        delayed.check(late, x)
        late = late.to(dtype)
        if chosen != "reference":
            y, final = delayed.run(key, chosen, x, state, coefs, late, lengths)
            return y.to(out_dtype), (*final, last_valid(y, previous, lengths))
        feedback = delayed.called(late)
    if chosen == "reference":
        if checkpoint is not None:
            raise EngineError(
                "checkpoint in a recurrent scan runs on the fused engines, which need a matrix as feedback: leave it out here."
            )
        if matrix is not None:
            w = matrix.to(dtype)

            def call(s: Tensor) -> Tensor:
                # as in the fused engines, the arithmetic of a scan is float32 also under autocast
                with torch.autocast(s.device.type, enabled=False):
                    return s @ w.t()

        else:
            call = feedback  # type: ignore[assignment]
        y, final, last = reference.run(
            found.dynamics, x, state, coefs, found.surrogate, lengths, call, previous
        )
        if last is None:  # pragma: no cover - the loop always hands it on
            raise EngineError("the reference loop lost the last outputs.")
        return y.to(out_dtype), (*final, last)
    weight = matrix.to(dtype)  # type: ignore[union-attr]
    operands = (x, previous, weight, *state, *coefs)
    if torch.is_grad_enabled() and any(o.requires_grad for o in operands):
        needs = tuple(c.requires_grad for c in coefs)
        y, *end = _RecurrentScan.apply(
            key, chosen, lengths, checkpoint or 0, needs, weight.requires_grad, len(state), *operands
        )
    else:
        run = _recurrent_now if _eager(x) else torch.ops.spiketide.recurrent_scan
        y, *end = run(key, chosen, x, state, previous, coefs, weight, lengths, (), False, 0)
    return y.to(out_dtype), tuple(end)


def saved_bytes(
    dynamics: Dynamics,
    surrogate: Surrogate,
    *,
    need_input: bool = True,
    need_coefs: Sequence[bool] | bool = False,
) -> dict[str, int]:
    """What the backward of a fused scan keeps, in bytes per neuron and step (float32).

    Args:
        dynamics: the neuron.
        surrogate: its surrogate.
        need_input: whether the input's gradient is wanted.
        need_coefs: whether the coefficients' gradients are wanted, one flag or one each.

    Returns:
        ``written``: bytes stored by the forward beside its outputs; ``input``: 4 if the input is kept alive, else 0.
    """
    flags = [need_coefs] * len(dynamics.coefs) if isinstance(need_coefs, bool) else list(need_coefs)
    p = program(register(dynamics, surrogate))
    plan = p.plan(need_input, flags)
    return {"written": 4 * sum(i != p.x for i in plan.saved), "input": 4 * (p.x in plan.saved)}
