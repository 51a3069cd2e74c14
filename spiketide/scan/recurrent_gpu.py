"""Recurrent scans on the GPU: one launch for all steps where the matrix stays on the chip, else captured stretches of steps.

Up to :data:`spiketide.scan.gpu.RESIDENT` neurons a kernel holds the matrix and takes all neurons of a few samples through time:
no sample waits for another. Beyond, a step is one matrix product and one fused step kernel, captured in stretches
(:mod:`.gpu_graph`).

At step ``t`` a neuron is driven by ``x[t] + W s[t-1]``. The product is torch's; the step kernel is the scan's own kernel over a
window of one step: it adds the product to the input, runs the step, writes outputs and saved values in their place and keeps
``s[t]`` in float32 for the next product. The backward is the same from the end: the step's backward, then the product that
carries the gradient to the outputs before. All buffers are made before the loop, no step waits for the host. The gradient
of the matrix is one product over all steps afterwards, made by the caller.

Where spikes come back late (:mod:`.delayed`), a sum over the outputs of the steps before stands in front of each product.

The sum ``x[t] + W s[t-1]`` is rounded after the product, as in the reference, so equal products give equal bits. Products are
float32 also under automatic mixed precision and for bfloat16 and float16 inputs, whose outputs are fed back unrounded.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import gpu_graph
from .dynamics import plan_for, program
from .gpu import (
    Launch,
    ResidentLaunch,
    backward_kernel,
    compute_dtype,
    flat_coefs,
    flat_lengths,
    forward_kernel,
    resident,
    scalar_flags,
)


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
    """Run the recurrent forward.

    Shapes: ``x (T, B, N)``, states and ``previous (B, N)``, ``weight (N, N)`` as ``torch.nn.Linear`` (row = receiving neuron).

    Returns:
        outputs in the dtype of ``x``, final state, last valid output of each sample, saved tensors.
    """
    steps, batch, n = x.shape
    dtype = compute_dtype(x)
    saved = () if need_coefs is None else plan_for(key, True, need_coefs).saved
    x = x.detach().contiguous()
    y = torch.empty_like(x)
    stores = [torch.empty_like(x, dtype=dtype) for _ in saved]
    final = [s.detach().to(dtype).clone(memory_format=torch.contiguous_format) for s in state]
    fed = previous.detach().to(dtype).clone(memory_format=torch.contiguous_format)
    if not y.numel():
        return y, final, fed, stores
    ends, numbers, flags = (
        flat_lengths(lengths, steps),
        flat_coefs(coefs, (n,), dtype),
        scalar_flags(coefs),
    )
    inner = [*ends, *final, *numbers, y, *final, *stores]
    if resident(n, dtype):
        one = ResidentLaunch(x, batch, n)
        kernel = forward_kernel(key, saved, flags, lengths is not None, dtype, fed=True, resident=True)
        with one.on_device():
            one(kernel, [x, weight.detach().to(dtype).contiguous(), fed, *inner], 0, steps)
        return y, final, fed, stores
    launch = Launch(x, batch, (n,), step=True)
    kernel = forward_kernel(key, saved, flags, lengths is not None, dtype, fed=True)
    with launch.on_device():
        w, done = weight.detach().to(dtype), 0
        graph = gpu_graph.form(key, x, dtype, need_coefs, flags, lengths is not None)
        if (stretch := gpu_graph.forward_of(graph)) is not None:
            done = stretch(x, w, numbers, ends, fed, final, y, stores)
        product, wt = torch.empty_like(fed), w.t()
        tensors = [x, product, fed, *inner]
        for t in range(done, steps):
            torch.mm(fed, wt, out=product)
            launch(kernel, tensors, t, t + 1)
    return y, final, fed, stores


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
    """Run the recurrent backward.

    Returns:
        gradient of the drive ``(T, B, N)`` in float32 (the matrix's gradient is made from it), of the initial state, of the
        initial outputs, and the wanted coefficients' gradients per neuron and sample.
    """
    p = program(key)
    plan = plan_for(key, True, need_coefs)
    steps, batch, n = gy.shape
    dtype = compute_dtype(gy)
    gy = gy.detach().contiguous()
    gx = torch.zeros_like(gy, dtype=dtype) if p.grad_x is None else torch.empty_like(gy, dtype=dtype)
    gstate = [g.detach().to(dtype).clone(memory_format=torch.contiguous_format) for g in gfinal]
    glast = glast.detach().to(dtype).contiguous()
    gfed = glast.clone()
    if sums is None:
        wanted = sum(i is not None for i in plan.grad_coefs)
        sums = [torch.zeros_like(gfed) for _ in range(wanted)]
    if not gy.numel():
        return gx, gstate, gfed, sums
    ends = flat_lengths(lengths, steps)
    before = [state[k].detach().to(dtype).contiguous() for k in plan.prior]
    # past a sample's last step nothing is fed back: its last outputs have the gradient given from outside
    numbers = flat_coefs(coefs, (n,), dtype)
    inner = [*([glast, *ends] if ends else []), *before, *numbers, *stores]
    inner += [*gstate, *([gx] if plan.grad_x is not None else []), *gstate, *sums]
    w, flags, masked = weight.detach().to(dtype).contiguous(), scalar_flags(coefs), lengths is not None
    if resident(n, dtype):
        one = ResidentLaunch(gy, batch, n)
        with one.on_device():
            one(
                backward_kernel(key, plan, flags, masked, dtype, fed=True, resident=True),
                [gy, gfed, w, *inner],
                0,
                steps,
            )
    else:
        launch = Launch(gy, batch, (n,), step=True)
        kernel = backward_kernel(key, plan, flags, masked, dtype, fed=True)
        with launch.on_device():
            rows, tensors = gx.unbind(0), [gy, gfed, *inner]

            def one_by_one(first: int, stop: int) -> None:
                for t in reversed(range(first, stop)):
                    launch(kernel, tensors, t, t + 1)
                    torch.mm(rows[t], w, out=gfed)

            stop, graph = steps, gpu_graph.form(key, gy, dtype, need_coefs, flags, masked)
            if (stretch := gpu_graph.backward_of(graph)) is not None:
                stop = stretch(steps, gy, w, numbers, ends, glast, stores, gfed, gstate, sums, gx)
            one_by_one(0, stop)
    if lengths is not None:
        gfed = torch.where((lengths > 0).unsqueeze(1), gfed, glast)
    return gx, gstate, gfed, sums


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
    """Run the recurrent forward with spikes that arrive late, from silence.

    Shapes: as :func:`forward`; ``late (P, N)``: what of a spike arrives 1 to ``P`` steps later; ``mask (B, N)``: factors of what
    comes out of the matrix.

    Returns:
        outputs, final state, what arrived ``(T, B, N)`` (empty without gradients), saved tensors.
    """
    steps, batch, n = x.shape
    dtype, keep, places = compute_dtype(x), need_coefs is not None, len(late)
    saved = () if need_coefs is None else plan_for(key, True, need_coefs).saved
    x = x.detach().contiguous()
    y = torch.empty_like(x)
    stores = [torch.empty_like(x, dtype=dtype) for _ in saved]
    final = [s.detach().to(dtype).clone(memory_format=torch.contiguous_format) for s in state]
    arrived = x.new_empty((steps, batch, n) if keep else 0, dtype=dtype)
    if not y.numel():
        return y, final, arrived, stores
    fed = x.new_zeros((batch, n), dtype=dtype)
    sent = x.new_zeros((places + steps, batch, n), dtype=dtype)
    launch = Launch(x, batch, (n,), step=True)
    kernel = forward_kernel(key, saved, scalar_flags(coefs), lengths is not None, dtype, fed=True)
    with launch.on_device():
        product, wt, now = torch.empty_like(fed), weight.detach().to(dtype).t(), torch.empty_like(fed)
        factors = None if mask is None else mask.detach().to(dtype)
        oldest_first = late.detach().to(dtype).flip(0).unsqueeze(1)
        tensors = [x, product, fed, *flat_lengths(lengths, steps), *final, *flat_coefs(coefs, (n,), dtype)]
        tensors += [y, *final, *stores]
        for t in range(steps):
            z = arrived[t] if keep else now
            torch.sum(oldest_first * sent[t : t + places], 0, out=z)
            torch.mm(z, wt, out=product)
            if factors is not None:
                product.mul_(factors)
            launch(kernel, tensors, t, t + 1)
            sent[places + t].copy_(fed)
    return y, final, arrived, stores


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
    """Run the recurrent backward of :func:`forward_late`.

    Returns:
        gradient of the drive ``(T, B, N)`` in float32, of the initial state, of ``late``, and the wanted coefficients' gradients
        per neuron and sample.
    """
    p = program(key)
    plan = plan_for(key, True, need_coefs)
    steps, batch, n = gy.shape
    dtype, places = compute_dtype(gy), len(late)
    gy = gy.detach().contiguous()
    gx = torch.zeros_like(gy, dtype=dtype) if p.grad_x is None else torch.empty_like(gy, dtype=dtype)
    gstate = [g.detach().to(dtype).clone(memory_format=torch.contiguous_format) for g in gfinal]
    gfed = gy.new_zeros((batch, n), dtype=dtype)
    sums = [torch.zeros_like(gfed) for i in plan.grad_coefs if i is not None]
    glate = late.new_zeros(late.shape)
    if not gy.numel():
        return gx, gstate, glate, sums
    launch = Launch(gy, batch, (n,), step=True)
    kernel = backward_kernel(key, plan, scalar_flags(coefs), lengths is not None, dtype, fed=True)
    ends = flat_lengths(lengths, steps)
    # what reaches the spikes of a step through the product of each step; nothing does behind the last one
    garrived = gy.new_zeros((steps + places, batch, n), dtype=dtype)
    with launch.on_device():
        w, weights = weight.detach().to(dtype), late.detach().to(dtype).unsqueeze(1)
        before = [state[k].detach().to(dtype).contiguous() for k in plan.prior]
        tensors = [gy, gfed, *([torch.zeros_like(gfed), *ends] if ends else []), *before]
        tensors += [*flat_coefs(coefs, (n,), dtype), *stores]
        tensors += [*gstate, *([gx] if plan.grad_x is not None else []), *gstate, *sums]
        for t in reversed(range(steps)):
            torch.sum(weights * garrived[t + 1 : t + 1 + places], 0, out=gfed)
            launch(kernel, tensors, t, t + 1)
            torch.mm(gx[t] if mask is None else gx[t] * mask, w, out=garrived[t])
        for d in range(min(places, steps - 1)):
            glate[d] = (garrived[d + 1 : steps] * y[: steps - 1 - d]).sum((0, 1))
    return gx, gstate, glate, sums
