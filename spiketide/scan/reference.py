"""The truth: the neuron's step run by torch, one step at a time, differentiated by autograd."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import EngineError
from ..shapes import silence_padding
from ..surrogate import Surrogate, use
from .dynamics import Dynamics


class _StepWithVjp(torch.autograd.Function):
    """One step whose backward is the author's ``step_vjp``."""

    @staticmethod
    def forward(ctx: Any, dynamics: Dynamics, surrogate: Surrogate, *operands: Tensor) -> Any:
        ctx.dynamics, ctx.surrogate = dynamics, surrogate
        ctx.save_for_backward(*operands)
        with use(surrogate):
            out = dynamics.step(*operands)
        return tuple(o.clone() if any(o is i for i in operands) else o for o in _values(dynamics, out))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        operands = ctx.saved_tensors
        with use(ctx.surrogate):
            out = ctx.dynamics.step_vjp(*grads, *operands)
        shaped = [
            _of_shape(g, o, operands[0].shape) if need else None
            for g, o, need in zip(out, operands, ctx.needs_input_grad[2:], strict=True)
        ]
        return (None, None, *shaped)


def _of_shape(gradient: Any, operand: Tensor, full: torch.Size) -> Tensor:
    """A gradient per neuron and sample (the author may give a number), summed to one of ``operand``."""
    g = torch.as_tensor(gradient, dtype=operand.dtype, device=operand.device)
    return g.expand(full).sum_to_size(operand.shape)


def _values(dynamics: Dynamics, out: Any) -> Sequence[Any]:
    """What a step returned: a bare tensor would else be taken apart along its batch."""
    values = out if isinstance(out, (tuple, list)) else (out,)
    if len(values) != 1 + len(dynamics.state):
        form = ", ".join(["s", *(f"{name}'" for name in dynamics.state)])
        raise EngineError(f"step must return {1 + len(dynamics.state)} values ({form}), got {len(values)}.")
    return values


_BRANCHED = "Boolean value of Tensor"
"""How torch's message begins when Python's ``if`` is given a tensor of several values."""


class _Steps:
    """Calls the step on copies of its operands for as long as it writes into them, so that the caller's stay as they are."""

    def __init__(self, dynamics: Dynamics, surrogate: Surrogate) -> None:
        self.dynamics, self.surrogate = dynamics, surrogate
        self.written: list[bool] | None = None  # by operand; not known before the first step

    def __call__(self, *operands: Tensor) -> Any:
        copied = self.written if self.written is not None else [True] * len(operands)
        given = [o.clone() if c else o for o, c in zip(operands, copied, strict=True)]
        # tensors of inference mode do not say whether they were written: those are copied at every step
        before = [None if g.is_inference() else g._version for g in given] if self.written is None else []
        try:
            if self.dynamics.step_vjp is None:
                out = self.dynamics.step(*given)
            else:
                out = _StepWithVjp.apply(self.dynamics, self.surrogate, *given)
        except RuntimeError as error:
            if _BRANCHED not in str(error):
                raise
            raise EngineError(
                "a neuron's step runs on whole tensors and cannot branch on values: replace `if` by "
                "torch.where(condition, a, b)."
            ) from error
        if self.written is None:
            self.written = [b is None or g._version != b for g, b in zip(given, before, strict=True)]
        return out


def _of_neurons(value: Any, like: Tensor) -> Tensor:
    """What a step returned, one value per neuron: it may return a number, a comparison or a coefficient."""
    if isinstance(value, Tensor) and value.shape == like.shape and value.dtype == like.dtype:
        return value
    return torch.as_tensor(value, dtype=like.dtype, device=like.device).expand(like.shape)


def run(
    dynamics: Dynamics,
    x: Tensor,
    state: Sequence[Tensor],
    coefs: Sequence[Tensor],
    surrogate: Surrogate,
    lengths: Tensor | None = None,
    feedback: Callable[[Tensor], Tensor] | None = None,
    previous: Tensor | None = None,
) -> tuple[Tensor, tuple[Tensor, ...], Tensor | None]:
    """Loop over time.

    Shapes: ``x (T, B, *N)``, each state ``(B, *N)``, each coefficient broadcastable to ``*N``; ``lengths (B,)``.
    With ``feedback``, ``x[t] + feedback(s[t-1])`` drives step ``t``; ``previous (B, *N)`` is ``s[-1]``.

    Returns:
        outputs ``(T, B, *N)``, final state, and the last valid output of each sample (with feedback only).
    """
    states: tuple[Tensor, ...] = tuple(state)
    outputs: list[Tensor] = []
    last = previous
    alive = None
    if lengths is not None:
        alive = [(t < lengths).view(-1, *([1] * (x.dim() - 2))) for t in range(x.shape[0])]
        # masking the outputs alone would let NaN in the padding into the gradients: 0 * NaN is NaN
        x = silence_padding(x, lengths)
    step = _Steps(dynamics, surrogate)
    with use(surrogate):
        # unbind once: x[t] under autograd writes a zero of the whole sequence per step, quadratic in T
        for t, current in enumerate(x.unbind(0)):
            drive = current if feedback is None else current + feedback(last)  # type: ignore[arg-type]
            out = step(drive, *states, *coefs)
            s, *new = (_of_neurons(value, drive) for value in _values(dynamics, out))
            if alive is None:
                states = tuple(new)
                last = s if feedback is not None else None
            else:
                m = alive[t]
                states = tuple(torch.where(m, n, o) for n, o in zip(new, states, strict=True))
                if feedback is not None:
                    last = torch.where(m, s, last)  # type: ignore[arg-type]
                s = torch.where(m, s, torch.zeros_like(s))
            outputs.append(s)
    if not outputs:
        return x.new_zeros(x.shape), states, last
    return torch.stack(outputs), states, last
