"""A neuron as one step, and the table of steps the engines have read."""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from ..errors import EngineError, ParameterError
from ..surrogate import Surrogate, use
from .graph import Plan, Program
from .outside import fingerprint, frozen


class Dynamics(NamedTuple):
    """A neuron's arithmetic, independent of shape, device and engine.

    Args:
        state: names of the state variables, e.g. ``("v",)``.
        coefs: names of the per-step numbers, e.g. ``("decay", "threshold")``: scalars or one per neuron.
        step: ``(x, *state, *coefs) -> (s, *state')``, ordinary arithmetic and torch functions.
        step_vjp: optional hand-written backward ``(gs, *gstate', x, *state, *coefs) -> (gx, *gstate, *gcoefs)``; ``None``
            derives it from ``step``. Use :func:`spiketide.surrogate.spike_derivative` for the spike.

    Example:
        >>> from spiketide import spike
        >>> from spiketide.scan import Dynamics
        >>> def step(x, v, decay, threshold):
        ...     v = decay * v + x
        ...     s = spike(v - threshold)
        ...     return s, v - threshold * s
        >>> Dynamics(("v",), ("decay", "threshold"), step).state
        ('v',)
    """

    state: tuple[str, ...]
    coefs: tuple[str, ...]
    step: Callable[..., Any]
    step_vjp: Callable[..., Any] | None = None


class Entry(NamedTuple):
    """A registered pair of dynamics and surrogate; ``program`` is ``None`` when the step cannot be traced (``why``)."""

    dynamics: Dynamics
    surrogate: Surrogate
    program: Program | None
    why: str


_TABLE: dict[str, Entry] = {}
_KEYS: dict[tuple[Any, ...], str] = {}


def register(dynamics: Dynamics, surrogate: Surrogate) -> str:
    """The key under which the engines find this dynamics with this surrogate.

    Custom operators take tensors and strings, not functions, so a table from key to dynamics is needed. The key is a digest
    of the traced graph: two neurons with the same arithmetic share their kernels, in every process and across runs.

    A number that the step reads from outside its arguments is taken as it is now, on every engine; the same step registered
    after that number changed is another neuron.
    """
    if not isinstance(surrogate, Surrogate):
        raise ParameterError(f"expected a surrogate such as FastSigmoid(10.0), got {surrogate!r}.")
    outside = (fingerprint(dynamics.step), fingerprint(dynamics.step_vjp))
    pair = (dynamics, surrogate, *outside)
    known = None not in outside
    if known and pair in _KEYS:
        return _KEYS[pair]
    program, why = None, ""
    fixed = dynamics
    try:
        program = Program(dynamics.state, dynamics.coefs, dynamics.step, surrogate, dynamics.step_vjp)
        described = repr(
            (
                program.graph.nodes,
                program.y,
                program.next,
                program.grad_x,
                program.grad_state,
                program.grad_coefs,
            )
        )
        fixed = dynamics._replace(step=frozen(dynamics.step), step_vjp=frozen(dynamics.step_vjp))
    except EngineError as error:
        why = str(error)
        code = getattr(dynamics.step, "__code__", None)
        # such a key is this process's own; classes of one name are told apart (a notebook cell run again makes a new one)
        own = (id(dynamics.step), id(dynamics.step_vjp), id(type(surrogate)))
        described = repr((dynamics.state, dynamics.coefs, getattr(code, "co_code", None), own))
    described += repr((dynamics.state, dynamics.coefs, surrogate, dynamics.step_vjp is not None))
    key = hashlib.sha256(described.encode()).hexdigest()[:16]
    if known:
        _KEYS[pair] = key
    _TABLE.setdefault(key, Entry(fixed, surrogate, program, why))
    return key


def entry(key: str) -> Entry:
    """What was registered under ``key``."""
    try:
        return _TABLE[key]
    except KeyError:
        raise EngineError(
            f"no dynamics is registered under {key!r} in this process: build the layer here before running a graph "
            "compiled elsewhere."
        ) from None


def mixes_samples(key: str) -> bool:
    """Whether a step that cannot be traced answers a sample otherwise beside another one, as one with a mean over all does.

    It is tried out on small tensors; a step that they do not fit counts as one that does not.
    """
    found = entry(key)
    draw = torch.Generator().manual_seed(0)
    operands = [torch.rand(2, 4, generator=draw, device="cpu") for _ in range(1 + len(found.dynamics.state))]
    coefs = [torch.tensor(0.5, device="cpu") for _ in found.dynamics.coefs]
    with contextlib.suppress(Exception), torch.no_grad(), use(found.surrogate):
        both = found.dynamics.step(*(o.clone() for o in operands), *coefs)
        alone = found.dynamics.step(*(o[:1].clone() for o in operands), *coefs)
        return any(not torch.equal(torch.as_tensor(a)[:1], b) for a, b in zip(both, alone, strict=True))
    return False


def program(key: str) -> Program:
    """The traced program under ``key``.

    Raises:
        EngineError: the step could not be traced; the message says what in it.
    """
    found = entry(key)
    if found.program is None:
        raise EngineError(f'the fused engines cannot run this step: {found.why} (engine="reference" can)')
    return found.program


@functools.cache
def plan_for(key: str, need_x: bool, need_coefs: tuple[bool, ...]) -> Plan:
    """The saved set and outputs for the gradients wanted."""
    return program(key).plan(need_x, need_coefs)
