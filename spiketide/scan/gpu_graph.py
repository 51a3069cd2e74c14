"""A stretch of recurrent steps on the GPU as one captured graph.

A recurrent step is a matrix product and a kernel, some microseconds of work that the host takes longer to launch. So
:data:`STRETCH` steps are captured as a CUDA graph over buffers of their own, and a scan is a few replays: what a stretch reads is
copied into the buffers, what it writes out of them. States, running sums and the outputs fed back stay in the buffers from one
replay to the next. The steps that fill no stretch, and in the backward the first stretch, whose state before is a given one, are
launched one by one.

A graph is kept for every shape and stream, 16 at most; its buffers hold a stretch of inputs, outputs and saved values. Where
a capture fails, a warning says why and the steps are launched one by one from then on. In Triton's interpreter there is nothing
to capture: the same steps run over the same buffers.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .dynamics import plan_for, program
from .gpu import Launch, backward_kernel, forward_kernel, interpreted

STRETCH = 32
"""Steps a graph."""

_failed = False


class Form(NamedTuple):
    """What a graph is made for."""

    key: str
    need_coefs: tuple[bool, ...] | None
    scalars: tuple[bool, ...]
    masked: bool
    storage: torch.dtype
    dtype: torch.dtype
    batch: int
    n: int
    device: torch.device
    stream: int
    steps: int


def form(
    key: str,
    like: Tensor,
    dtype: torch.dtype,
    need_coefs: tuple[bool, ...] | None,
    scalars: tuple[bool, ...],
    masked: bool,
) -> Form | None:
    """The form for a sequence ``like (T, B, N)``; ``None``: its steps are launched one by one."""
    steps, batch, n = like.shape
    on_gpu = like.device.type == "cuda"
    if _failed or steps < 2 * STRETCH or (on_gpu and torch.cuda.is_current_stream_capturing()):
        return None
    stream = torch.cuda.current_stream(like.device).cuda_stream if on_gpu else 0
    return Form(key, need_coefs, scalars, masked, like.dtype, dtype, batch, n, like.device, stream, STRETCH)


def _captured(body: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """The body as one replay; its first run compiles the kernels and readies the libraries."""
    body()
    if device.type != "cuda" or interpreted():
        return body
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        body()
    return graph.replay


def _fill(buffers: Iterable[Tensor], values: Iterable[Tensor]) -> None:
    for buffer, value in zip(buffers, values, strict=True):
        buffer.copy_(value.reshape(buffer.shape))


class _Stretch:
    """Buffers that the forward and the backward have in common."""

    def __init__(self, f: Form) -> None:
        self.form = f
        make = functools.partial(torch.zeros, device=f.device, dtype=f.dtype)
        self.weight, self.product = make(f.n, f.n), make(f.batch, f.n)
        self.coefs = [torch.ones(1 if s else f.n, device=f.device, dtype=f.dtype) for s in f.scalars]
        self.ends = [torch.zeros(f.batch, device=f.device, dtype=torch.int32)] if f.masked else []
        self.make = make

    def rows(self, count: int, dtype: torch.dtype | None = None) -> Tensor:
        """A buffer of ``count`` steps."""
        f = self.form
        return torch.zeros(count, f.batch, f.n, device=f.device, dtype=dtype or f.dtype)


class Forward(_Stretch):
    """A stretch of the forward."""

    def __init__(self, f: Form) -> None:
        super().__init__(f)
        saved = () if f.need_coefs is None else plan_for(f.key, True, f.need_coefs).saved
        self.x, self.y = self.rows(f.steps, f.storage), self.rows(f.steps, f.storage)
        self.stores = [self.rows(f.steps) for _ in saved]
        self.fed = self.make(f.batch, f.n)
        self.state = [self.make(f.batch, f.n) for _ in program(f.key).state]
        kernel = forward_kernel(f.key, saved, f.scalars, f.masked, f.dtype, fed=True)
        launch = Launch(self.x, f.batch, (f.n,), step=True)
        tensors = [self.x, self.product, self.fed, *self.ends, *self.state, *self.coefs]
        tensors += [self.y, *self.state, *self.stores]
        to = self.weight.t()

        def body() -> None:
            for t in range(f.steps):
                torch.mm(self.fed, to, out=self.product)
                launch(kernel, tensors, t, t + 1)

        self.replay = _captured(body, f.device)

    def __call__(
        self,
        x: Tensor,
        weight: Tensor,
        coefs: Sequence[Tensor],
        ends: Sequence[Tensor],
        fed: Tensor,
        state: Sequence[Tensor],
        y: Tensor,
        stores: Sequence[Tensor],
    ) -> int:
        """Run as many whole stretches as fit; ``fed``, ``state``, ``y`` and ``stores`` are written. How many steps they were."""
        count = x.shape[0] // self.form.steps * self.form.steps
        carried = [self.fed, *self.state]
        _fill([self.weight, *self.coefs, *carried], [weight, *coefs, fed, *state])
        for start in range(0, count, self.form.steps):
            part = slice(start, start + self.form.steps)
            _fill([self.x, *self.ends], [x[part], *(e - start for e in ends)])
            self.replay()
            _fill([y[part], *(z[part] for z in stores)], [self.y, *self.stores])
        _fill([fed, *state], carried)
        return count


class Backward(_Stretch):
    """A stretch of the backward; its buffers begin with the step before, whose saved values a step may read."""

    def __init__(self, f: Form) -> None:
        super().__init__(f)
        assert f.need_coefs is not None
        plan, p = plan_for(f.key, True, f.need_coefs), program(f.key)
        self.gy, self.gx = self.rows(f.steps + 1, f.storage), self.rows(f.steps + 1)
        self.stores = [self.rows(f.steps + 1) for _ in plan.saved]
        self.gfed, self.glast = self.make(f.batch, f.n), self.make(f.batch, f.n)
        self.gstate = [self.make(f.batch, f.n) for _ in p.state]
        self.sums = [self.make(f.batch, f.n) for i in plan.grad_coefs if i is not None]
        unread = [
            self.make(f.batch, f.n) for _ in plan.prior
        ]  # the state before step 0, which is in no stretch
        kernel = backward_kernel(f.key, plan, f.scalars, f.masked, f.dtype, fed=True)
        launch = Launch(self.gx, f.batch, (f.n,), step=True)
        tensors = [self.gy, self.gfed, *([self.glast, *self.ends] if f.masked else []), *unread, *self.coefs]
        tensors += [*self.stores, *self.gstate, *([self.gx] if plan.grad_x is not None else [])]
        tensors += [*self.gstate, *self.sums]
        rows = self.gx.unbind(0)

        def body() -> None:
            for t in range(f.steps, 0, -1):
                launch(kernel, tensors, t, t + 1)
                torch.mm(rows[t], self.weight, out=self.gfed)

        self.replay = _captured(body, f.device)

    def __call__(
        self,
        start: int,
        gy: Tensor,
        weight: Tensor,
        coefs: Sequence[Tensor],
        ends: Sequence[Tensor],
        glast: Tensor,
        stores: Sequence[Tensor],
        gfed: Tensor,
        gstate: Sequence[Tensor],
        sums: Sequence[Tensor],
        gx: Tensor,
    ) -> int:
        """Run whole stretches before step ``start``; ``gfed``, ``gstate``, ``sums``, ``gx`` are written. The first step done."""
        steps = self.form.steps
        carried = [self.gfed, *self.gstate, *self.sums]
        given = [weight, *coefs, glast, gfed, *gstate, *sums]
        _fill([self.weight, *self.coefs, self.glast, *carried], given)
        while start >= steps + 1:
            start -= steps
            part = slice(start, start + steps)
            _fill([self.gy[1:], *self.ends], [gy[part], *(e - (start - 1) for e in ends)])
            _fill(self.stores, [z[start - 1 : start + steps] for z in stores])
            self.replay()
            gx[part].copy_(self.gx[1:])
        _fill([gfed, *gstate, *sums], carried)
        return start


@functools.lru_cache(maxsize=16)
def _forward(f: Form) -> Forward:
    return Forward(f)


@functools.lru_cache(maxsize=16)
def _backward(f: Form) -> Backward:
    return Backward(f)


def forward_of(f: Form | None) -> Forward | None:
    """The graph of this form, captured at its first use."""
    return None if f is None else _tried(_forward, f)


def backward_of(f: Form | None) -> Backward | None:
    """The graph of this form, captured at its first use."""
    return None if f is None else _tried(_backward, f)


def _tried(make: Callable[[Form], _Stretch], f: Form) -> Any:
    global _failed
    try:
        with torch.inference_mode(False):  # buffers made in inference could not be written outside of it
            return make(f)
    except RuntimeError as error:
        _failed = True
        warnings.warn(
            f"recurrent steps could not be captured as a graph and are launched one by one: {error}",
            UserWarning,
            stacklevel=2,
        )
        return None
