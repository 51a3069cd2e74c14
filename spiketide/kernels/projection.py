"""``x @ weight.T + bias`` that costs what the spikes of ``x`` cost, and the choice between the two ways to do it.

Ways ("engines"):

- ``"dense"``: torch's matrix product.
- ``"event"``: list the nonzeros of ``x`` once, add the weight rows that they name; the weight gradient adds rows of the
  output gradient by the same lists. The input gradient is dense in either way: a surrogate gradient is not sparse.

Both give the same numbers up to rounding, except that where ``x`` is zero the event-driven way does not touch the weight
(zero times an infinite weight is nothing, not NaN). :func:`choose` says which one is cheaper.

What the backward keeps: the lists (2 bytes a nonzero, 4 + 2 or 8 + 2 when the values are not all one, 8 bytes a row)
instead of ``x`` (4 or 8 bytes an element), and the weight when the input needs a gradient.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from ..errors import EngineError, unknown

if TYPE_CHECKING:
    import numpy as np

ENGINES = ("dense", "event")


# ------------------------------------------------------------------------------------------- what each way costs


class Costs(NamedTuple):
    """Nanoseconds of one core, measured on a Sapphire Rapids server core with AVX-512 (``benchmarks/projection.py``).

    Only their ratios decide. They are for float32; float64 moves twice the bytes and does half the flops a cycle, so the
    ratios stay.
    """

    product: float = 0.0145
    """One multiply-add of torch's matrix product (two flops)."""
    event: float = 0.075
    """Adding one gathered number, from the second-level cache; forward and weight gradient alike."""
    list_element: float = 0.6
    """Looking at one element of ``x``: counted once, then listed."""
    list_event: float = 4.0
    """Listing one nonzero and sorting it by input for the weight gradient."""
    row: float = 20.0
    """Beginning a row of the output (the loop around it)."""
    call: float = 60_000.0
    """Starting the kernels from Python and their threads."""


COSTS = Costs()


def event_cost(rows: int, n_in: int, n_out: int, events: float, *, gradient: bool = True) -> float:
    """Nanoseconds of the event-driven way (forward, and the weight gradient); grows with every argument."""
    passes = 2.0 if gradient else 1.0
    # A gathered row shorter than 64 numbers costs as much as one of 64: the loop around it dominates.
    return (
        COSTS.call
        + COSTS.list_element * rows * n_in
        + COSTS.list_event * events
        + COSTS.row * rows
        + passes * COSTS.event * events * max(n_out, 64)
    )


def dense_cost(rows: int, n_in: int, n_out: int, *, gradient: bool = True) -> float:
    """Nanoseconds of the matrix products (forward, and the weight gradient)."""
    return (2.0 if gradient else 1.0) * COSTS.product * rows * n_in * n_out


def choose(rows: int, n_in: int, n_out: int, events: float, *, gradient: bool = True) -> str:
    """The cheaper way for ``events`` nonzeros among ``rows * n_in`` elements: ``"event"`` or ``"dense"``.

    More events never turn ``"dense"`` into ``"event"``.

    Example:
        >>> from spiketide.kernels.projection import choose
        >>> choose(8000, 512, 512, 0.05 * 8000 * 512), choose(8000, 512, 512, 0.9 * 8000 * 512)
        ('event', 'dense')
    """
    cheaper = event_cost(rows, n_in, n_out, events, gradient=gradient) < dense_cost(
        rows, n_in, n_out, gradient=gradient
    )
    return "event" if cheaper else "dense"


SAMPLE_ROWS = 64
"""Rows looked at to see whether listing ``x`` is worth a try: graded input is recognised by its first few thousand elements."""


def _worth_listing(x: Tensor, n_out: int, gradient: bool) -> bool:
    """Whether a sample of the rows of ``x (rows, n_in)`` leaves a chance that the event-driven way is cheaper."""
    rows, n_in = x.shape
    if choose(rows, n_in, n_out, 0, gradient=gradient) == "dense":
        return False
    sample = x[:: max(1, rows // SAMPLE_ROWS)]
    # The sample may be unlucky: only one far above the limit is trusted to say "dense".
    events = float(sample.count_nonzero()) * rows / sample.shape[0]
    return choose(rows, n_in, n_out, 0.5 * events, gradient=gradient) == "event"


# ------------------------------------------------------------------------------------------------ the event way


class Events(NamedTuple):
    """The nonzeros of a matrix, row by row.

    Shapes: ``starts (rows + 1,)`` int64; ``columns (events,)`` uint16 (int32 above 65536 inputs), in order in each row;
    ``values (events,)``, empty when every value is one.
    """

    starts: Tensor
    columns: Tensor
    values: Tensor


def _numpy(x: Tensor) -> np.ndarray[Any, Any]:
    return x.detach().numpy()


def _list_events(x: Tensor, n_out: int, gradient: bool, engine: str | None) -> Events | None:
    """The nonzeros of ``x (rows, n_in)``, or ``None`` when they turn out too many for the event way to pay."""
    from . import projection_cpu

    array = _numpy(x)
    starts = projection_cpu.count(array)
    if engine is None and choose(x.shape[0], x.shape[1], n_out, float(starts[-1]), gradient=gradient) == "dense":
        return None
    columns, values = projection_cpu.lists(array, starts)
    return Events(torch.from_numpy(starts), torch.from_numpy(columns), torch.from_numpy(values))


def _forward_event(events: Events, weight: Tensor, bias: Tensor | None) -> Tensor:
    from . import projection_cpu

    rows_of_inputs = weight.t().contiguous()  # nothing to copy when the weight is stored this way, as Dense does
    offset = weight.new_empty(0) if bias is None else bias.contiguous()
    y = weight.new_empty(events.starts.shape[0] - 1, weight.shape[0])
    projection_cpu.project(_numpy(rows_of_inputs), _numpy(offset), *map(_numpy, events), _numpy(y))
    return y


def _weight_gradient_event(events: Events, gy: Tensor, n_in: int) -> Tensor:
    """``(n_out, n_in)``, stored input by input as the weight is."""
    from . import projection_cpu

    gw = gy.new_empty(n_in, gy.shape[1])
    projection_cpu.weight_gradient(_numpy(gy.contiguous()), *map(_numpy, events), _numpy(gw))
    return gw.t()


class _Project(torch.autograd.Function):
    """The event way under autograd, for tensors that hold numbers (not traced)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, events: Events) -> Tensor:  # type: ignore[override]
        ctx.n_in = weight.shape[1]
        ctx.save_for_backward(*events, weight if ctx.needs_input_grad[0] else None)
        return _forward_event(events, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        starts, columns, values, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, _ = ctx.needs_input_grad
        gx = gy @ weight if needs_x else None
        gw = None
        if needs_weight:
            gw = _weight_gradient_event(Events(starts, columns, values), gy, ctx.n_in)
        return gx, gw, gy.sum(0) if needs_bias else None, None


# -------------------------------------------------------------------------------------------- under torch.compile
#
# A graph cannot branch on how many spikes a tensor holds, nor carry lists of unknown length at no cost; so there the choice
# is made inside one opaque operator, and another one lists the nonzeros again for the weight gradient.


@torch.library.custom_op(
    "spiketide::project", mutates_args=(), schema="(Tensor x, Tensor weight, Tensor? bias, str engine) -> Tensor"
)
def _project_op(x: Tensor, weight: Tensor, bias: Tensor | None, engine: str) -> Tensor:
    x = x.contiguous()
    events = _events_if_cheaper(x, weight.shape[0], True, engine or None)
    if events is None:
        return functional.linear(x, weight, bias)
    return _forward_event(events, weight, bias)


@_project_op.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, engine: str) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


@torch.library.custom_op(
    "spiketide::project_weight_gradient", mutates_args=(), schema="(Tensor x, Tensor gy, str engine) -> Tensor"
)
def _weight_gradient_op(x: Tensor, gy: Tensor, engine: str) -> Tensor:
    x, gy = x.contiguous(), gy.contiguous()
    events = _events_if_cheaper(x, gy.shape[1], True, engine or None)
    if events is None:
        return (x.t() @ gy).t()
    return _weight_gradient_event(events, gy, x.shape[1])


@_weight_gradient_op.register_fake
def _(x: Tensor, gy: Tensor, engine: str) -> Tensor:
    return gy.new_empty(x.shape[1], gy.shape[1]).t()


def _save_for_op(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _, engine = inputs
    ctx.save_for_backward(x, weight)
    ctx.engine = engine


def _backward_of_op(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    needs_x, needs_weight, needs_bias, _ = ctx.needs_input_grad
    return (
        gy @ weight if needs_x else None,
        torch.ops.spiketide.project_weight_gradient(x, gy, ctx.engine) if needs_weight else None,
        gy.sum(0) if needs_bias else None,
        None,
    )


_project_op.register_autograd(_backward_of_op, setup_context=_save_for_op)


# ------------------------------------------------------------------------------------------------------ the choice


class _Last(threading.local):
    engine: str | None = None


_last = _Last()


def last_engine() -> str | None:
    """The way that the last projection of this thread took (tests and benchmarks ask; a traced graph does not say)."""
    return _last.engine


def _events_if_cheaper(x: Tensor, n_out: int, gradient: bool, engine: str | None) -> Events | None:
    """The lists of contiguous ``x (rows, n_in)`` when the event way is asked for or cheaper, else ``None``."""
    events = None
    if engine == "event" or (engine is None and _worth_listing(x, n_out, gradient)):
        events = _list_events(x, n_out, gradient, engine)
    _last.engine = "dense" if events is None else "event"
    return events


def _why_not(x: Tensor, weight: Tensor, bias: Tensor | None) -> str | None:
    """Why the event way cannot take these tensors, if so."""
    for what, tensor in (("input", x), ("weight", weight), ("bias", bias)):
        if tensor is None:
            continue
        if tensor.device.type != "cpu":
            return f"the {what} is on {tensor.device}; it runs on the CPU"
        if tensor.dtype not in (torch.float32, torch.float64) or tensor.dtype != weight.dtype:
            return f"the {what} is {tensor.dtype}; it takes float32 or float64, the same for all"
        if tensor.layout != torch.strided or not (torch.compiler.is_compiling() or type(tensor) in _PLAIN):
            return f"the {what} is a {type(tensor).__name__} of layout {tensor.layout}; it takes plain tensors"
    if torch.is_autocast_enabled("cpu"):
        return "automatic mixed precision is on"
    if torch._C._are_functorch_transforms_active():
        return "a torch.func transform is active"
    return None


_PLAIN = (Tensor, torch.nn.Parameter)


def project(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, engine: str | None = None) -> Tensor:
    r"""Project by a matrix at the cost of the nonzeros: ``y = x @ weight.T + bias``.

    .. math:: y_{r,o} = b_o + \sum_{j:\, x_{r,j} \neq 0} x_{r,j}\, w_{o,j}

    Works in any place of a model where :func:`torch.nn.functional.linear` does, with the same results up to rounding;
    on a GPU, in half precision, under autocast and inside ``torch.func`` it *is* that function.

    Example:
        >>> import torch
        >>> from spiketide.kernels import project
        >>> x = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 1.0]])
        >>> project(x, torch.tensor([[1.0, 2.0, 4.0]]), engine="event")
        tensor([[2.],
                [5.]])

    Shapes:
        ``x (..., n_in)``, ``weight (n_out, n_in)``, ``bias (n_out,)`` -> ``(..., n_out)``. Fastest when ``weight.t()`` is
        contiguous, as :class:`spiketide.synapses.Dense` stores it; the weight's gradient is stored so.

    Args:
        x: the input, any values; those that are exactly zero are skipped where that is cheaper.
        weight: weights from every input to every output.
        bias: added to every row.
        engine: ``None`` to choose by cost; ``"dense"`` or ``"event"`` to force one (tests, benchmarks).

    Raises:
        EngineError: unknown engine, or ``"event"`` forced where it cannot run.
        RuntimeError: the event way was differentiated twice (use ``engine="dense"`` for that).
    """
    if engine is not None and engine not in ENGINES:
        raise EngineError(unknown("projection engine", engine, ENGINES))
    why_not = None if engine == "dense" else _why_not(x, weight, bias)
    if engine == "event" and why_not:
        raise EngineError(f"the event-driven projection cannot run here: {why_not}. Leave engine=None to choose.")
    if engine == "dense" or why_not:
        _last.engine = "dense"
        return functional.linear(x, weight, bias)
    flat = x.reshape(-1, x.shape[-1])
    if torch.compiler.is_compiling():
        y = torch.ops.spiketide.project(flat, weight, bias, engine or "")
        return y.view(*x.shape[:-1], weight.shape[0])
    gradient = torch.is_grad_enabled() and weight.requires_grad
    flat = flat.contiguous()
    events = _events_if_cheaper(flat.detach(), weight.shape[0], gradient, engine)
    if events is None:
        return functional.linear(x, weight, bias)
    y = _Project.apply(flat, weight, bias, events)
    return y.view(*x.shape[:-1], weight.shape[0])
