"""``x @ weight.T + bias`` that costs what the spikes of ``x`` cost, and the choice how to do it.

Two ways ("engines"):

- ``"dense"``: torch's matrix product.
- ``"event"``: list the nonzeros of ``x`` once and add the weight rows that they name; the weight gradient
  adds rows of the output's gradient by the same lists. The input gradient is dense either way: a surrogate
  gradient is not sparse.

Both give the same numbers up to rounding, except that the event way never touches a weight whose input is
zero (zero times an infinite weight is nothing there, and NaN in a matrix product). The results of the event
way do not depend on the number of threads. :func:`choose` says which way is cheaper.

The backward keeps the lists instead of ``x``: 4 bytes a nonzero (and its value, unless all are one) and 8
bytes a row, where ``x`` takes 4 or 8 bytes an element; and the weight, when the input needs a gradient.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from ..errors import EngineError, unknown
from .memory import empty

if TYPE_CHECKING:
    import numpy as np

ENGINES = ("dense", "event")


# -------------------------------------------------------------------------------- what each way costs


class Costs(NamedTuple):
    """Nanoseconds of one core.

    Measured on a Sapphire Rapids server core (AVX-512, 2 MiB second-level cache) in float32. Only the ratios
    decide. In float64 a sum moves twice the bytes and a product does half the flops a cycle: the ratios stay.
    """

    product: float = 0.0135
    """A multiply-add of torch's matrix product: 150 GFLOP/s a core."""
    fetch: float = 0.3
    """Bringing an element of ``x`` to a matrix product, which dominates where it has few columns.

    On an EPYC the product of 12800 x 256 numbers with 20 columns takes as long as one with 64 would at the speed of wide ones.
    """
    event: float = 0.048
    """Adding one number of a gathered row, read from the second-level cache."""
    start: float = 15.0
    """Beginning the sum of (up to) 64 columns of a row: a loop whose end the processor cannot predict."""
    element: float = 0.2
    """Looking at an element of ``x`` and skipping its bit if it is zero."""
    listing: float = 3.0
    """Listing a nonzero, and sorting it by input for the weight gradient."""
    call: float = 150_000.0
    """Starting the five kernels from Python, while every other core waits."""


COSTS = Costs()


def event_cost(rows: int, n_in: int, n_out: int, events: float, *, gradient: bool = True) -> float:
    """Nanoseconds of the event way, forward and (``gradient``) weight gradient; grows with every argument."""
    # Sums go over 64 columns at a time, and over 16 for the rest.
    columns = -(-n_out // 16) * 16
    starts = n_out // 64 + (columns - n_out // 64 * 64) // 16
    passes = 2.0 if gradient else 1.0
    return (
        COSTS.call
        + COSTS.element * rows * n_in
        + COSTS.listing * events
        + passes * (COSTS.event * events * columns + COSTS.start * rows * starts)
    )


def dense_cost(rows: int, n_in: int, n_out: int, *, gradient: bool = True) -> float:
    """Nanoseconds of the matrix products, forward and (``gradient``) weight gradient."""
    return (2.0 if gradient else 1.0) * rows * n_in * (COSTS.product * n_out + COSTS.fetch)


def choose(rows: int, n_in: int, n_out: int, events: float, *, gradient: bool = True) -> str:
    """The cheaper way for ``events`` nonzeros among ``rows * n_in`` elements: ``"event"`` or ``"dense"``.

    More events never turn ``"dense"`` into ``"event"``.

    Example:
        >>> from spiketide.kernels.projection import choose
        >>> choose(8000, 512, 512, 0.05 * 8000 * 512), choose(8000, 512, 512, 0.9 * 8000 * 512)
        ('event', 'dense')
    """
    event = event_cost(rows, n_in, n_out, events, gradient=gradient)
    return "event" if event < dense_cost(rows, n_in, n_out, gradient=gradient) else "dense"


SAMPLE_ROWS = 64
"""Rows looked at first: dense input is recognised by these, without a pass over all of it."""

TRUST = 0.5
"""Share of the sampled density that is taken for granted: only a sample far too dense says "dense" alone."""


def _worth_counting(x: Tensor, n_out: int, gradient: bool) -> bool:
    """Whether a sample of the rows of ``x (rows, n_in)`` leaves a chance that the event way is cheaper."""
    rows, n_in = x.shape
    if choose(rows, n_in, n_out, 0, gradient=gradient) == "dense":
        return False
    from . import projection_cpu

    # Steps of a golden section: time and samples are the rows' two axes, and both get looked at evenly.
    seen, step = (SAMPLE_ROWS, round(0.618 * rows)) if rows > SAMPLE_ROWS else (rows, 1)
    events = projection_cpu.sample(_numpy(x), step, seen) * rows / seen
    return choose(rows, n_in, n_out, TRUST * events, gradient=gradient) == "event"


# -------------------------------------------------------------------------------------- the event way


class Events(NamedTuple):
    """The nonzeros of a matrix, row by row.

    Shapes: ``starts (rows + 1,)`` int64; ``columns (events,)`` int32, in order in each row;
    ``values (events,)``, empty when every value is one.
    """

    starts: Tensor
    columns: Tensor
    values: Tensor


def _numpy(x: Tensor) -> np.ndarray[Any, Any]:
    array: np.ndarray[Any, Any] = x.numpy(force=True)  # force: also from a tensor that needs a gradient
    return array


def list_events(x: Tensor, n_out: int, *, gradient: bool = True, engine: str | None = None) -> Events | None:
    """The nonzeros of contiguous ``x (rows, n_in)``, or ``None`` when a matrix product is cheaper."""
    events = None
    if engine == "event" or (engine is None and _worth_counting(x, n_out, gradient)):
        from . import projection_cpu

        array = _numpy(x)
        masks, starts, graded = projection_cpu.find(array)
        rows, n_in = array.shape
        if engine == "event" or choose(rows, n_in, n_out, float(starts[-1]), gradient=gradient) == "event":
            lists = (starts, *projection_cpu.lists(array, masks, starts, graded))
            events = Events(*map(torch.from_numpy, lists))
    _last.engine = "dense" if events is None else "event"
    return events


def _forward(events: Events, weight: Tensor, bias: Tensor | None) -> Tensor:
    from . import projection_cpu

    w = weight.t().contiguous()  # no copy where the weight is stored so, as that of Dense is
    offset = weight.new_empty(0) if bias is None else bias.contiguous()
    y = empty((events.starts.shape[0] - 1, weight.shape[0]), weight.dtype)
    starts, columns, values = map(_numpy, events)
    projection_cpu.project(_numpy(w), _numpy(offset), starts, columns, values, _numpy(y))
    return y


def _weight_gradient(events: Events, gy: Tensor, n_in: int, bias: bool) -> tuple[Tensor, Tensor | None]:
    """``(n_out, n_in)``, stored input by input as the weight is; and, as it passes by, the sum of all rows."""
    from . import projection_cpu

    gw = empty((n_in, gy.shape[1]), gy.dtype)
    gb = gy.new_empty(gy.shape[1] if bias else 0)
    starts, columns, values = map(_numpy, events)
    projection_cpu.weight_gradient(_numpy(gy.contiguous()), starts, columns, values, _numpy(gw), _numpy(gb))
    return gw.t(), gb if bias else None


def weight_gradient(x: Tensor, gy: Tensor, *, engine: str | None = None) -> Tensor:
    """``gy.T @ x`` at the cost of the nonzeros of ``x``, chosen as :func:`project` chooses; not itself differentiable.

    Shapes: ``x (rows, n_in)``, ``gy (rows, n_out)`` -> ``(n_out, n_in)``.
    """
    if x.device.type == "cpu" and x.dtype == gy.dtype and x.dtype in (torch.float32, torch.float64):
        events = list_events(x.contiguous(), gy.shape[1], engine=engine)
        if events is not None:
            return _weight_gradient(events, gy, x.shape[1], False)[0]
    return _outer(x, gy)


def _outer(x: Tensor, gy: Tensor) -> Tensor:
    """``gy.T @ x``, stored input by input; the narrow matrix first, as the products run faster so (20 of 256: 1.7 times)."""
    if gy.shape[1] < x.shape[1]:
        return product(gy.t(), x).t().contiguous().t()
    return product(x.t(), gy).t()


def product(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` into pooled memory: the page faults of a fresh result can cost as much as the product."""
    return torch.mm(a, b, out=empty((a.shape[0], b.shape[1]), a.dtype))


class _Dense(torch.autograd.Function):
    """The dense way under autograd, where the library chose it: torch's products, pooled results."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        if bias is None:
            return product(x, weight.t())
        return torch.addmm(bias, x, weight.t(), out=empty((x.shape[0], weight.shape[0]), x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        gx = product(gy, weight) if needs_x else None
        gw = _outer(x, gy) if needs_weight else None
        return gx, gw, gy.sum(0) if needs_bias else None


def project_dense(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x @ weight.T + bias`` of contiguous ``x (rows, n_in)`` by matrix products, the results in pooled memory."""
    y: Tensor = _Dense.apply(x, weight, bias)
    return y


class _Project(torch.autograd.Function):
    """The event way under autograd."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, events: Events) -> Tensor:
        ctx.n_in = weight.shape[1]
        ctx.save_for_backward(*events, weight if ctx.needs_input_grad[0] else None)
        return _forward(events, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        starts, columns, values, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, _ = ctx.needs_input_grad
        gx = product(gy, weight) if needs_x else None
        if not needs_weight:
            return gx, None, gy.sum(0) if needs_bias else None, None
        return gx, *_weight_gradient(Events(starts, columns, values), gy, ctx.n_in, needs_bias), None


# --------------------------------------------------------------------------------- under torch.compile
#
# A graph can neither branch on how many spikes a tensor holds, nor keep lists whose length is not known. So
# there the choice is made inside one opaque operator, and another one lists the nonzeros again for the
# weight gradient: a tenth of what it then does with them.


@torch.library.custom_op(
    "spiketide::project",
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor? bias, str engine) -> Tensor",
)
def _project_op(x: Tensor, weight: Tensor, bias: Tensor | None, engine: str) -> Tensor:
    events = list_events(x.contiguous(), weight.shape[0], engine=engine or None)
    return functional.linear(x, weight, bias) if events is None else _forward(events, weight, bias)


@_project_op.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, engine: str) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


@torch.library.custom_op(
    "spiketide::project_weight_gradient",
    mutates_args=(),
    schema="(Tensor x, Tensor gy, str engine) -> Tensor",
)
def _weight_gradient_op(x: Tensor, gy: Tensor, engine: str) -> Tensor:
    return weight_gradient(x, gy, engine=engine or None)


@_weight_gradient_op.register_fake
def _(x: Tensor, gy: Tensor, engine: str) -> Tensor:
    return gy.new_empty(x.shape[1], gy.shape[1]).t()


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _, ctx.engine = inputs
    ctx.save_for_backward(x, weight)


def _backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    needs_x, needs_weight, needs_bias, _ = ctx.needs_input_grad
    gx = product(gy, weight) if needs_x else None
    gw = torch.ops.spiketide.project_weight_gradient(x, gy, ctx.engine) if needs_weight else None
    return gx, gw, gy.sum(0) if needs_bias else None, None


_project_op.register_autograd(_backward, setup_context=_save)


# ------------------------------------------------------------------------------------------ the choice


class _Last(threading.local):
    engine: str | None = None


_last = _Last()


def last_engine() -> str | None:
    """The way that the last projection run by this thread took: for tests and benchmarks."""
    return _last.engine


def why_not(x: Tensor, weight: Tensor, bias: Tensor | None) -> str | None:
    """What keeps the event way from taking these tensors, if anything."""
    if torch.is_autocast_enabled("cpu"):
        return "automatic mixed precision is on"
    if torch.jit.is_tracing():
        return "torch.jit is tracing"
    if torch._C._are_functorch_transforms_active():
        return "a torch.func transform is active"
    for name, tensor in (("input", x), ("weight", weight), ("bias", bias)):
        if tensor is None:
            continue
        if tensor.device.type != "cpu":
            return f"the {name} is on {tensor.device}, and it runs on the CPU"
        if tensor.dtype not in (torch.float32, torch.float64) or tensor.dtype != weight.dtype:
            return f"the {name} is {tensor.dtype}, and it takes float32 or float64, the same for all"
        if tensor.layout != torch.strided:
            return f"the {name} is {tensor.layout}, and it takes strided tensors"
        if not torch.compiler.is_compiling() and type(tensor) not in (Tensor, torch.nn.Parameter):
            return f"the {name} is a {type(tensor).__name__}, and it takes plain tensors"
    return None


def project(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, engine: str | None = None) -> Tensor:
    r"""Project at the cost of the nonzeros: ``y = x @ weight.T + bias``.

    .. math:: y_{r,o} = b_o + \sum_{j:\, x_{r,j} \neq 0} w_{o,j}\, x_{r,j}

    Takes the place of :func:`torch.nn.functional.linear`: the same results up to rounding. On a GPU, in
    half precision, under autocast and inside ``torch.func`` it *is* that function. It works inside
    ``torch.compile``.

    Example:
        >>> import torch
        >>> from spiketide.kernels import project
        >>> x = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 1.0]])
        >>> project(x, torch.tensor([[1.0, 2.0, 4.0]]), engine="event")
        tensor([[2.],
                [5.]])

    Shapes:
        ``x (..., n_in)``, ``weight (n_out, n_in)``, ``bias (n_out,)`` -> ``(..., n_out)``. Where
        ``weight.t()`` is contiguous, as :class:`spiketide.synapses.Dense` stores it, no step copies the
        weight.

    Args:
        x: the input, of any values; those that are exactly zero are skipped where that is cheaper.
        weight: from every input to every output.
        bias: added to every row.
        engine: ``None`` to choose by cost (:func:`choose`); ``"dense"`` or ``"event"`` to force a way.

    Raises:
        EngineError: unknown engine, or ``"event"`` forced where it cannot run.
        RuntimeError: differentiated twice on the CPU; only ``engine="dense"`` can be.
    """
    if engine is not None and engine not in ENGINES:
        raise EngineError(unknown("projection engine", engine, ENGINES))
    reason = None if engine == "dense" else why_not(x, weight, bias)
    if engine == "event" and reason:
        raise EngineError(
            f"the event-driven projection cannot run here: {reason}. Leave engine=None to choose."
        )
    if engine == "dense" or reason:
        _last.engine = "dense"
        return functional.linear(x, weight, bias)
    flat = x.reshape(-1, x.shape[-1])
    shape = (*x.shape[:-1], weight.shape[0])
    if torch.compiler.is_compiling():
        return torch.ops.spiketide.project(flat, weight, bias, engine or "").view(shape)
    flat = flat.contiguous()
    gradient = torch.is_grad_enabled() and weight.requires_grad
    events = list_events(flat.detach(), weight.shape[0], gradient=gradient, engine=engine)
    if events is None:
        return project_dense(flat, weight, bias).view(shape)
    y: Tensor = _Project.apply(flat, weight, bias, events)
    return y.view(shape)
