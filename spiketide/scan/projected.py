"""A dense synapse and the neurons behind it as one loop, where the synapse's input is sparse.

``s[t], state = step(W x[t] + b, *state, *coefs)``: :func:`projected_scan` gives what :func:`spiketide.kernels.project` and
:func:`spiketide.scan.scan` give one after the other, and moves a third less memory
(:mod:`spiketide.scan.projected_cpu`). :class:`spiketide.Sequential` takes this way by itself where a
:class:`spiketide.Dense` stands before a neuron and the event-driven projection is the cheaper one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from ..kernels.projection import Events, list_events, project_dense, why_not
from .autograd import _eager, _prepare
from .dynamics import entry
from .gradients import first_derivative_only, reduce


class Projection(Protocol):
    """What the loop needs of a synapse: ``W x + b``."""

    n_out: int
    weight: torch.nn.Parameter
    bias: torch.nn.Parameter | None

    def apply_steps(self, x: Tensor) -> Tensor:
        """The input current by itself."""
        ...


class _Projected(torch.autograd.Function):
    """The fused loop with its fused backward."""

    @staticmethod
    def forward(
        ctx: Any,
        key: str,
        shape: tuple[int, int],
        lengths: Tensor | None,
        needs: tuple[bool, ...],
        n_state: int,
        events: Events,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        *rest: Tensor,
    ) -> tuple[Tensor, ...]:
        from . import projected_cpu

        state, coefs = rest[:n_state], rest[n_state:]
        y, final, stores = projected_cpu.forward(
            key, events, weight, bias, shape, state, coefs, lengths, (needs[0], needs[1:])
        )
        ctx.how = (key, needs, n_state, x.shape)
        # without a gradient of the input the weights may change before the backward, as those of torch's layers may
        ctx.save_for_backward(
            *events, weight if ctx.needs_input_grad[6] else None, lengths, *state, *coefs, *stores
        )
        return (y, *final)

    @staticmethod
    def backward(ctx: Any, gy: Tensor, *gfinal: Tensor) -> Any:
        first_derivative_only()
        from . import projected_cpu

        key, needs, n_state, x_shape = ctx.how
        starts, columns, values, weight, lengths, *saved = ctx.saved_tensors
        state, saved = saved[:n_state], saved[n_state:]
        coefs, stores = saved[: len(needs) - 1], saved[len(needs) - 1 :]
        gx, gweight, gbias, gstate, sums = projected_cpu.backward(
            key,
            gy,
            gfinal,
            Events(starts, columns, values),
            x_shape[-1],
            ctx.needs_input_grad[8],
            state,
            coefs,
            stores,
            lengths,
            (needs[0], needs[1:]),
            weight,
        )
        if gx is not None:
            gx = gx.view(x_shape)
        gcoefs = [
            g if need else None for g, need in zip(reduce(key, needs, coefs, sums), needs[1:], strict=True)
        ]
        return (None,) * 6 + (gx, gweight, gbias, *gstate, *gcoefs)


def can_fuse(key: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether :func:`projected_scan` takes these: plain tensors on the CPU in float32 or float64, a step that was traced."""
    return (
        _eager(x)
        and x.dim() == 3
        and x.numel() > 0
        and entry(key).program is not None
        and why_not(x, weight, bias) is None
        # without a weight gradient there is nothing that the backward could add up while it is in the cache
        and (weight.requires_grad or not torch.is_grad_enabled())
    )


def projected_scan(
    key: str,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    state: Sequence[Tensor],
    coefs: Sequence[Any],
    lengths: Tensor | None = None,
) -> tuple[Tensor, tuple[Tensor, ...] | None]:
    """Run a registered neuron's step on ``W x[t] + b``, fused where the nonzeros of ``x`` make that the cheaper way.

    Shapes:
        ``x (T, B, n_in)``, zero past a sample's end; ``weight (N, n_in)``, ``bias (N,)``; each state ``(B, N)``; each
        coefficient a number or ``(N,)``; ``lengths (B,)``.

    Args:
        key: of the registered dynamics; :func:`can_fuse` said yes.
        x: nonzeros are looked for.
        weight: of the synapse.
        bias: of the synapse, or ``None``.
        state: where the neurons begin.
        coefs: per-step numbers.
        lengths: valid steps per sample.

    Returns:
        outputs ``(T, B, N)`` and the final state; or, where a matrix product is cheaper, the input current ``(T, B, N)`` and
        ``None``: the scan is then still to be run.
    """
    steps, batch, n_in = x.shape
    n = weight.shape[0]
    flat = x.reshape(-1, n_in).contiguous()
    gradient = torch.is_grad_enabled()
    events = list_events(flat.detach(), n, gradient=gradient)
    if events is None:
        return project_dense(flat, weight, bias).view(steps, batch, n), None
    _, state, coefs, _ = _prepare(entry(key).dynamics, x.new_empty(0, batch, n), state, coefs, None, "cpu")
    if not gradient:
        from . import projected_cpu

        y, final, _ = projected_cpu.forward(
            key, events, weight, bias, (steps, batch), state, coefs, lengths, None
        )
        return y, tuple(final)
    needs = (True, *(c.requires_grad for c in coefs))
    y, *end = _Projected.apply(
        key, (steps, batch), lengths, needs, len(state), events, flat, weight, bias, *state, *coefs
    )
    return y, tuple(end)
