"""Recurrent scans whose spikes come back late: each neuron's by a kernel over time of its own, then through one matrix.

At step ``t`` a neuron is driven by ``x[t] + m W z[t]`` (``m``: a mask of dropout, or nothing) with ``z[t] = sum over d of late[d]
s[t - 1 - d]``: the delay stands before the matrix, so there is one product a step, however long the kernels. On the CPU in one
loop (:mod:`.recurrent`): a spike is added to the rows of the steps in which it arrives, as many as its kernel has entries that
are not zero. On the GPU a step is a sum over what was sent, a product and a fused kernel (:mod:`.recurrent_gpu`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import ShapeError
from ..kernels.projection import weight_gradient
from .gradients import first_derivative_only, reduce


class Delayed(NamedTuple):
    """A feedback whose spikes come back late.

    Args:
        weight: ``(N, N)``, row = receiving neuron.
        late: ``(P, N)``: what of a spike arrives 1 to ``P`` steps after it.
        before: the outputs of the ``P`` steps before the first, oldest first ``(P, B, N)``; ``None``: silence.
        mask: factors of what comes out of the matrix ``(B, N)``, the same at every step, without a gradient; ``None``: none.
    """

    weight: Tensor
    late: Tensor
    before: Tensor | None = None
    mask: Tensor | None = None

    def after(self, y: Tensor) -> Delayed:
        """To go on behind steps that gave the outputs ``y (T, B, N)``."""
        before = y.new_zeros(len(self.late), *y.shape[1:]) if self.before is None else self.before
        return self._replace(before=torch.cat([before, y])[-len(self.late) :])

    def to(self, dtype: torch.dtype) -> Delayed:
        """In another dtype."""
        before, mask = (None if part is None else part.to(dtype) for part in (self.before, self.mask))
        return Delayed(self.weight.to(dtype), self.late.to(dtype), before, mask)


def check(feedback: Delayed, x: Tensor) -> None:
    """Refuse matrices and kernels that do not fit ``x (T, B, N)``.

    Raises:
        ShapeError: they do not.
    """
    weight, late, before, mask = feedback
    n = x.shape[-1]
    if (
        x.dim() != 3
        or tuple(weight.shape) != (n, n)
        or late.dim() != 2
        or late.shape[1] != n
        or not len(late)
    ):
        raise ShapeError(
            f"a delayed recurrent scan expected x (T, B, N), a matrix (N, N) and kernels (P, N), got {tuple(x.shape)}, "
            f"{tuple(weight.shape)} and {tuple(late.shape)}."
        )
    if before is not None and tuple(before.shape) != (len(late), *x.shape[1:]):
        raise ShapeError(
            f"a delayed recurrent scan expected outputs of the {len(late)} steps before of shape "
            f"{(len(late), *x.shape[1:])}, got {tuple(before.shape)}."
        )
    if mask is not None and mask.shape != x.shape[1:]:
        raise ShapeError(
            f"a delayed recurrent scan expected a mask of shape {tuple(x.shape[1:])}, got {tuple(mask.shape)}."
        )


def called(feedback: Delayed) -> Callable[[Tensor], Tensor]:
    """The feedback as the reference engine calls it, step by step with the last outputs."""
    weight, late, before, mask = feedback
    seen: list[Tensor] = [] if before is None else list(before.unbind(0)[:-1])

    def call(s: Tensor) -> Tensor:
        seen.append(s)
        del seen[: -len(late)]
        arrived = late[0] * seen[-1]
        for d in range(1, len(seen)):
            arrived = arrived + late[d] * seen[-1 - d]
        with torch.autocast(s.device.type, enabled=False):
            back = arrived @ weight.t()
        return back if mask is None else back * mask

    return call


def with_what_is_under_way(x: Tensor, feedback: Delayed) -> Tensor:
    """``x`` and what arrives of the outputs before the first step."""
    weight, late, before, mask = feedback
    if before is None:
        return x
    places = len(late)
    parts = []
    for t in range(min(places, x.shape[0])):
        # at step t, the output n steps before the first arrives by late[t + n - 1]
        rows = late[t:].flip(0).unsqueeze(1) * before[t:]
        parts.append(rows.sum(0))
    if not parts:
        return x
    with torch.autocast(x.device.type, enabled=False):
        arrived = torch.stack(parts) @ weight.t()
    arrived = arrived if mask is None else arrived * mask
    return torch.cat([x[: len(parts)] + arrived, x[len(parts) :]])


def engine_module(engine: str) -> Any:
    """Where the recurrent kernels of an engine are."""
    if engine == "cpu":
        from . import recurrent

        return recurrent
    from . import recurrent_gpu

    return recurrent_gpu


class _DelayedScan(torch.autograd.Function):
    """The fused loop of an engine, from silence, under autograd."""

    @staticmethod
    def forward(
        ctx: Any,
        key: str,
        engine: str,
        lengths: Tensor | None,
        needs: tuple[bool, ...],
        n_state: int,
        mask: Tensor | None,
        x: Tensor,
        weight: Tensor,
        late: Tensor,
        *rest: Tensor,
    ) -> tuple[Tensor, ...]:
        state, coefs = rest[:n_state], rest[n_state:]
        y, final, arrived, stores = engine_module(engine).forward_late(
            key, x, state, coefs, weight, late, mask, lengths, needs
        )
        ctx.how = (key, engine, needs, n_state, mask is not None, lengths is not None)
        extra = [part for part in (mask, lengths) if part is not None]
        ctx.save_for_backward(*state, *coefs, y, weight, late, arrived, *extra, *stores)
        return (y, *final)

    @staticmethod
    def backward(ctx: Any, gy: Tensor, *gfinal: Tensor) -> Any:
        first_derivative_only()
        key, engine, needs, n_state, has_mask, has_lengths = ctx.how
        saved = list(ctx.saved_tensors)
        state, saved = saved[:n_state], saved[n_state:]
        coefs, saved = saved[: len(needs)], saved[len(needs) :]
        y, weight, late, arrived, *saved = saved
        mask = saved.pop(0) if has_mask else None
        lengths = saved.pop(0) if has_lengths else None
        gx, gstate, glate, sums = engine_module(engine).backward_late(
            key, gy, gfinal, y, state, coefs, weight, late, mask, saved, lengths, needs
        )
        gweight = None
        if ctx.needs_input_grad[7]:
            n = weight.shape[0]
            # in float32 also under autocast
            with torch.autocast(gx.device.type, enabled=False):
                g = gx if mask is None else gx * mask
                gweight = weight_gradient(arrived.reshape(-1, n), g.reshape(-1, n))
        gcoefs = [
            g if need else None
            for g, need in zip(reduce(key, (True, *needs), coefs, sums), needs, strict=True)
        ]
        return None, None, None, None, None, None, gx.to(gy.dtype), gweight, glate, *gstate, *gcoefs


def run(
    key: str,
    engine: str,
    x: Tensor,
    state: Sequence[Tensor],
    coefs: Sequence[Tensor],
    feedback: Delayed,
    lengths: Tensor | None,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The fused loop of an engine; operands of one dtype, prepared by the caller.

    Returns:
        outputs and final state.
    """
    x = with_what_is_under_way(x, feedback)
    weight, late, _, mask = feedback
    operands = (x, weight, late, *state, *coefs)
    if torch.is_grad_enabled() and any(o.requires_grad for o in operands):
        needs = tuple(c.requires_grad for c in coefs)
        y, *end = _DelayedScan.apply(key, engine, lengths, needs, len(state), mask, *operands)
        return y, tuple(end)
    y, end, _, _ = engine_module(engine).forward_late(key, x, state, coefs, weight, late, mask, lengths, None)
    return y, tuple(end)
