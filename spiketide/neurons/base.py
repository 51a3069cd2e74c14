"""What all neurons share: constants in their stable range, resets, and the run through time."""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
import warnings
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any, ClassVar, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import NonFiniteError, ParameterError, unknown
from ..init import Init
from ..layer import Layer, check_input, check_state
from ..scan.autograd import Feedback, choose_engine, recurrent_scan_registered, scan_registered
from ..scan.dynamics import Dynamics, entry, register
from ..scan.projected import Projection, can_fuse, projected_scan
from ..shapes import check_finite, silence_padding, sizes
from ..surrogate import ATan, Surrogate
from ..types import State

Size: TypeAlias = int | Sequence[int]
Value: TypeAlias = float | Tensor | Init | Callable[..., Tensor] | Sequence[float]
"""A constant as the user gives it: a number, numbers one per neuron, or an initialiser ``init(shape) -> Tensor``."""

RESETS = ("soft", "soft_detached", "hard", "hard_detached", "none")

OUTPUTS = ("spikes", "membrane")
"""What a neuron hands on: its spikes, or its membrane after the step, which still spikes and resets inside."""


@functools.cache
def emitting(step: Callable[..., Any], position: int) -> Callable[..., Any]:
    """The step with the state variable at ``position`` as its output, in place of the spikes."""

    @functools.wraps(step)
    def read(*arguments: Any) -> Any:
        _, *state = step(*arguments)
        return state[position], *state

    return read


def _channels_last(x: Tensor) -> bool:
    """Whether the channels (axis 2) of ``(T, B, C, *S)`` are what lies side by side in memory, and not the last axis."""
    return not x.is_contiguous() and x.movedim(2, -1).is_contiguous()


def check_dt(dt: float) -> float:
    """``dt`` as a float if it is a positive time per step."""
    if not (isinstance(dt, Real) and math.isfinite(dt) and dt > 0):
        raise ParameterError(f"dt expected a positive time per step, got {dt!r}.")
    return float(dt)


def after_reset(reset: str, v: Any, s: Any, threshold: Any) -> Any:
    """The membrane after a spike.

    ``soft`` subtracts the threshold, ``hard`` goes to zero, ``none`` leaves it; the ``_detached`` forms pass no gradient through
    the spike of the reset.
    """
    if reset == "soft":
        return v - threshold * s
    if reset == "soft_detached":
        return v - threshold * s.detach()
    if reset == "hard":
        return v * (1 - s)
    if reset == "hard_detached":
        return v * (1 - s.detach())
    return v


def check_choice(what: str, given: str, known: Sequence[str]) -> str:
    """``given`` if it is one of ``known``."""
    if given not in known:
        raise ParameterError(unknown(what, given, known))
    return given


_SPAN = 16.0
"""e^16 = 9e6: the factor from the unit at which 1 - 1 / value and sigmoid are still below 1 in float32."""


class Constant(nn.Module):
    """A number of a neuron, fixed or learnable, one for all or one per neuron, kept inside its range.

    A learnable constant is stored unconstrained (``raw``) and mapped into its range, so no optimiser step can leave it:
    ``low < value``: ``low + exp(raw)``; ``low < value < high``: ``low + (high - low) sigmoid(raw)``; no range: ``raw`` itself.
    A ``raw`` beyond ``raw_range``, where float32 would round the value onto its bound or to infinity, counts as its end.

    Args:
        name: for messages.
        value: number, tensor, array or list broadcastable to ``shape``, or initialiser ``init(shape)``.
        shape: of the layer.
        learn: learnable; a plain number then becomes one value per neuron (one per channel for a feature map).
        low, high: open bounds of the range, ``None`` for none.
        role: parameter group that the training uses: ``"time_constants"``, ``"thresholds"`` or ``"weights"``.
        raw_range: of a learnable constant with a range; widened where the first value lies outside.

    Raises:
        ParameterError: not finite, out of range, or of a shape that does not broadcast to ``shape``.
    """

    def __init__(
        self,
        name: str,
        value: Value,
        shape: tuple[int, ...],
        *,
        learn: bool = False,
        low: float | None = None,
        high: float | None = None,
        role: str = "weights",
        raw_range: tuple[float, float] = (-_SPAN, _SPAN),
    ) -> None:
        super().__init__()
        self.name, self.low, self.high, self.role = name, low, high, role
        per_neuron = shape if len(shape) == 1 else (shape[0], *(1 for _ in shape[1:]))
        if isinstance(value, nn.Parameter) and not learn:
            raise ParameterError(
                f"{name} expected a value, got a torch.nn.Parameter, which this layer would copy and never train: pass "
                f"learn=({name!r},) to have it trained, or its .detach() for a fixed one."
            )
        if isinstance(value, (list, tuple, np.ndarray)):
            with contextlib.suppress(TypeError, ValueError, RuntimeError):  # then it is refused below
                value = torch.as_tensor(value)
        if isinstance(value, Tensor) and not value.is_complex():
            start = value.detach().to(torch.get_default_dtype()).clone()
        elif callable(value):
            drawn = value(per_neuron)
            if not isinstance(drawn, Tensor):
                raise ParameterError(
                    f"{name} expected an initialiser that returns a tensor, got {type(drawn).__name__}."
                )
            start = drawn.detach().to(torch.get_default_dtype())
        elif isinstance(value, Real):
            start = torch.tensor(float(value), dtype=torch.get_default_dtype())
        else:
            raise ParameterError(
                f"{name} expected a number, numbers one per neuron or an initialiser init(shape), got {value!r}."
            )
        try:
            fits = torch.broadcast_shapes(start.shape, shape) == shape
        except RuntimeError:
            fits = False
        if not fits:
            raise ParameterError(
                f"{name} expected one number or a shape that broadcasts to {shape}, got {tuple(start.shape)}."
            )
        # compared in float64: in float32 a bound a hair below the value would round to it
        wide = start.double()
        inside = torch.isfinite(wide).all()
        if low is not None:
            inside &= (wide > low).all()
        if high is not None:
            inside &= (wide < high).all()
        if not inside:
            limits = [f"{sign} {bound:g}" for sign, bound in ((">", low), ("<", high)) if bound is not None]
            if low is not None and -1e-9 < low < 0:  # zero itself is allowed
                limits[0] = ">= 0"
            wanted = " ".join(["finite values", " and ".join(limits)]).strip()
            raise ParameterError(f"{name} expected {wanted}, got {_brief(start)}.")
        if learn:
            if start.dim() == 0:
                start = start.expand(per_neuron).clone()
            self.raw = nn.Parameter(self._inverse(start))
            self.raw.role = role  # type: ignore[attr-defined]
            first = self.raw.detach()
            self.raw_range = (min(raw_range[0], float(first.min())), max(raw_range[1], float(first.max())))
        else:
            self.register_buffer("fixed", start)

    def _inverse(self, value: Tensor) -> Tensor:
        if self.low is None:
            return value
        if self.high is None:
            return torch.log(value - self.low)
        unit = (value - self.low) / (self.high - self.low)
        return torch.log(unit) - torch.log1p(-unit)

    @property
    def learnable(self) -> bool:
        """Whether it is trained."""
        return "raw" in self._parameters

    def forward(self) -> Tensor:
        """The value now, differentiable in ``raw``; scalar or broadcastable to the layer's shape."""
        # a model in half precision keeps its constants so, but a decay of 0.995 would be 0.996 in bfloat16
        stored: Tensor = self.raw if self.learnable else self.fixed  # type: ignore[assignment]
        raw = stored if stored.dtype in (torch.float32, torch.float64) else stored.float()
        if not self.learnable or self.low is None:
            return raw
        # held at the end of its range with the gradient of the end, so that training can bring it back
        raw = raw.detach().clamp(*self.raw_range) + (raw - raw.detach())
        if self.high is None:
            return self.low + torch.exp(raw)
        return self.low + (self.high - self.low) * torch.sigmoid(raw)

    def extra_repr(self) -> str:
        """Name, value and whether it is learnt."""
        return f"{self.name}={_brief(self.forward().detach())}{', learnable' if self.learnable else ''}"


def _brief(value: Tensor) -> str:
    if value.numel() == 1:
        return f"{float(value):g}"
    return f"{tuple(value.shape)} in [{float(value.min()):g}, {float(value.max()):g}]"


class TimeConstant(Constant):
    """A time constant, and the per-step multiplier it means.

    ``exp``: ``decay = exp(-dt / tau)``, the exact solution over a step; ``euler``: ``decay = 1 - dt / tau``. They are two
    different networks: for tau 10.05 and dt 10 they give 0.37 and 0.005. Learnable: ``tau = exp(raw)`` (``euler``:
    ``dt + exp(raw)``), so ``0 < decay < 1`` always.

    Args:
        name: for messages.
        value: tau, in the unit of ``dt`` (milliseconds by convention).
        shape: of the layer.
        dt: length of a step.
        discretisation: ``"exp"`` or ``"euler"``.
        learn: learnable.

    Raises:
        ParameterError: tau <= 0 (``euler``: tau < dt), dt <= 0, or an unknown discretisation.
    """

    def __init__(
        self,
        name: str,
        value: Value,
        shape: tuple[int, ...],
        *,
        dt: float = 1.0,
        discretisation: str = "exp",
        learn: bool = False,
    ) -> None:
        check_choice("discretisation", discretisation, ("exp", "euler"))
        dt = check_dt(dt)
        # euler allows tau == dt (no memory at all) when it is fixed
        low = 0.0 if discretisation == "exp" else dt * (1.0 if learn else 1 - 1e-7)
        # e^-(dt / tau) is above the smallest float32 for dt / tau < 81 = e^4.4
        raw_range = (math.log(dt) - (4.4 if discretisation == "exp" else _SPAN), math.log(dt) + _SPAN)
        super().__init__(name, value, shape, learn=learn, low=low, role="time_constants", raw_range=raw_range)
        self.dt, self.discretisation = dt, discretisation

    def decay(self) -> Tensor:
        """Per-step multiplier in (0, 1)."""
        ratio = self.dt / self.forward()
        return torch.exp(-ratio) if self.discretisation == "exp" else 1 - ratio


class Neuron(Layer):
    """A population of neurons of one model: a step, its constants, and the run through time.

    A model of your own is a subclass with ``states`` (names), a static ``step`` and ``coefs()``; it gets the fused forward and
    backward kernels on CPU and GPU, lengths, streaming, checkpointing and every test of the contract battery.

    Example:
        >>> import torch
        >>> from spiketide import spike
        >>> from spiketide.neurons import Neuron
        >>> class Quadratic(Neuron):
        ...     states = ("v",)
        ...     @staticmethod
        ...     def step(x, v, decay, threshold):
        ...         v = decay * v * (1 + 0.1 * v) + x
        ...         s = spike(v - threshold)
        ...         return s, v * (1 - s)
        ...     def coefs(self):
        ...         return 0.9, 1.0
        >>> y, (v,) = Quadratic(3)(torch.ones(5, 2, 3))
        >>> y.shape, int(y.sum())
        (torch.Size([5, 2, 3]), 12)

    Shapes:
        ``x (T, B, *n)`` current; ``y (T, B, *n)`` spikes (or the membrane, for read-outs); state: tensors ``(B, *n)``.

    Args:
        n: number of neurons, or the shape of a feature map.
        surrogate: derivative of the spike (default ``ATan(2)``).
        dt: length of a step, milliseconds by convention.
        engine: force a scan engine; ``None`` chooses by device.
        checkpoint: keep the state every so many steps only, and recompute in the backward.
        output: ``"spikes"``, or ``"membrane"``: hand on the membrane after the step, as a read-out of spiking units does.

    Raises:
        ParameterError: sizes, constants or names out of range; ``output="membrane"`` of a model without a state ``v``.
        ShapeError: input or state of another shape (see :meth:`Layer.forward`).
        NonFiniteError: NaN or infinity in the input, or a membrane that overflowed.
    """

    states: ClassVar[tuple[str, ...]] = ()
    spiking: ClassVar[bool] = True
    outputs: ClassVar[tuple[str, ...]] = OUTPUTS
    step: Callable[..., Any]

    def __init__(
        self,
        n: Size,
        *,
        surrogate: Surrogate | None = None,
        dt: float = 1.0,
        engine: str | None = None,
        checkpoint: int | None = None,
        output: str = "spikes",
    ) -> None:
        super().__init__()
        self.shape = sizes(type(self).__name__, n)
        self.output = check_choice("output", output, self.outputs)
        if output == "membrane" and "v" not in self.states:
            raise ParameterError(
                f'{type(self).__name__} has no state "v" whose course could be the output, only {self.states}.'
            )
        self.surrogate = surrogate if surrogate is not None else ATan(2.0)
        self.dt = check_dt(dt)
        if checkpoint is not None and (
            isinstance(checkpoint, bool) or not isinstance(checkpoint, int) or checkpoint < 1
        ):
            raise ParameterError(f"checkpoint expected a number of steps >= 1 or None, got {checkpoint!r}.")
        self.engine, self.checkpoint = engine, checkpoint
        self._key = register(self.dynamics, self.surrogate)
        traced = entry(self._key).program
        if traced is not None and not traced.learns:
            warnings.warn(
                f"{type(self).__name__}: no gradient passes the step's output, so nothing in front of it learns. A comparison "
                "has none: write spike(v - threshold), from spiketide, in place of (v > threshold).float().",
                UserWarning,
                stacklevel=3,
            )
        if engine is not None and engine != "gpu":
            choose_engine(self._key, torch.device("cpu"), engine)

    @property
    def dynamics(self) -> Dynamics:
        """The step with the names of its state and coefficients, read off its signature."""
        step = getattr(self, "step", None)
        if step is None:
            raise ParameterError(
                f"{type(self).__name__} expected a static method step(x, {', '.join(self.states) or '*states'}, *coefs), got "
                "none: write one that returns the spikes and the new states."
            )
        if inspect.ismethod(step):
            raise ParameterError(
                f"{type(self).__name__}.step must be a static method (@staticmethod, without self): it is read once, so what "
                "varies between neurons or in time belongs into coefs()."
            )
        names = tuple(inspect.signature(step).parameters)
        if not self.states or names[1 : 1 + len(self.states)] != self.states:
            raise ParameterError(
                f"{type(self).__name__}.step expected the arguments (x, {', '.join(self.states) or '*states'}, *coefs), "
                f"got {names}: set `states` to the names of the state variables."
            )
        vjp = getattr(self, "step_vjp", None)
        if self.output == "membrane":
            if vjp is not None:
                raise ParameterError(
                    f'{type(self).__name__} writes its own step_vjp, which is that of the spikes: output="membrane" needs a '
                    "derived one, leave step_vjp away."
                )
            step = emitting(step, self.states.index("v"))
        return Dynamics(self.states, names[1 + len(self.states) :], step, vjp)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        # a new surrogate or reset means other kernels; without this the assignment would silently do nothing
        plain = name not in ("_key", "training", "engine", "checkpoint") and not isinstance(
            value, (Tensor, nn.Module)
        )
        if plain and "_key" in self.__dict__:
            self.__dict__["_key"] = register(self.dynamics, self.surrogate)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._key = register(self.dynamics, self.surrogate)  # another process has its own table

    @property
    def emits_spikes(self) -> bool:
        """Whether what it hands on are spikes: not for a read-out, by its model or by ``output``."""
        return self.spiking and self.output == "spikes"

    def coefs(self) -> tuple[Any, ...]:
        """Per-step numbers in the order of ``step``'s arguments: numbers, scalars or tensors broadcastable to ``n``."""
        wanted = self.dynamics.coefs
        if wanted:
            raise NotImplementedError(
                f"{type(self).__name__} needs coefs(), which returns {', '.join(wanted)}: the constants of its step."
            )
        return ()

    def initial_state(self, x: Tensor) -> State:
        """Zeros ``(B, *n)`` for every state variable, float32 or float64."""
        dtype = x.dtype if x.dtype in (torch.float32, torch.float64) else torch.float32
        return tuple(x.new_zeros(x.shape[1:], dtype=dtype) for _ in self.states)

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        *,
        lengths: Tensor | None = None,
        feedback: Feedback | None = None,
        coefs: tuple[Any, ...] | None = None,
        behind: Projection | None = None,
    ) -> tuple[Tensor, State]:
        """Run ``T`` steps.

        ``feedback`` is what :class:`spiketide.Recurrent` passes (the state then ends in the last outputs); a matrix ``(C, C)``
        of a feature map connects the channels at each place. ``coefs`` stand in for :meth:`coefs`. ``behind`` is what
        :class:`spiketide.Sequential` passes where it makes one loop of a synapse and the neurons behind it: ``x`` is then the
        synapse's input.
        """
        if behind is not None:
            return self._run_behind(behind, x, state, lengths)
        check_input(self, x, self.shape, lengths)
        expected = self.initial_state(x)
        if feedback is not None:
            # its own zeros: torch.compile does not take one tensor for two operands of an operator
            expected = (*expected, torch.zeros_like(expected[0]))
        if state is None:
            state = expected
        else:
            check_state(self, state, expected)
        if coefs is None:
            coefs = self.coefs()
        if len(self.shape) > 1 and (isinstance(feedback, Tensor) or (feedback is None and _channels_last(x))):
            y, end = self._run_channels_last(x, state, coefs, lengths, feedback)
        else:
            y, end = self._run(x, state, coefs, lengths, feedback)
        self._check_finite(lambda: x, state, end, lengths)
        return y, end

    def fuses_with(self, synapse: Projection, x: Tensor) -> bool:
        """Whether this population and the synapse in front of it can be one loop for the synapse's input ``x (T, B, n_in)``."""
        kind = type(self)
        return (
            self.shape == (synapse.n_out,)
            and self.engine in (None, "cpu")
            and self.checkpoint is None
            and kind.forward is Neuron.forward
            and kind._run is Neuron._run
            and can_fuse(self._key, x, synapse.weight, synapse.bias)
        )

    def _run_behind(
        self, synapse: Projection, x: Tensor, state: State | None, lengths: Tensor | None
    ) -> tuple[Tensor, State]:
        expected = self.initial_state(x.new_empty(0, x.shape[1], synapse.n_out))
        if state is None:
            state = expected
        else:
            check_state(self, state, expected)
        x = silence_padding(x, lengths)
        y, end = projected_scan(self._key, x, synapse.weight, synapse.bias, state, self.coefs(), lengths)
        if end is None:  # a matrix product was cheaper, and this is its result
            return self.forward(silence_padding(y, lengths), state, lengths=lengths)
        self._check_finite(functools.partial(synapse.apply_steps, x), state, end, lengths)
        return y, end

    def _run(
        self,
        x: Tensor,
        state: State,
        coefs: tuple[Any, ...],
        lengths: Tensor | None,
        feedback: Feedback | None,
    ) -> tuple[Tensor, State]:
        if feedback is None:
            return scan_registered(
                self._key, x, state, coefs, engine=self.engine, lengths=lengths, checkpoint=self.checkpoint
            )
        return recurrent_scan_registered(
            self._key,
            x,
            state[:-1],
            coefs,
            feedback,
            previous=state[-1],
            engine=self.engine,
            lengths=lengths,
            checkpoint=self.checkpoint,
        )

    def _run_channels_last(
        self,
        x: Tensor,
        state: State,
        coefs: tuple[Any, ...],
        lengths: Tensor | None,
        feedback: Tensor | None,
    ) -> tuple[Tensor, State]:
        """A feature map whose channels lie side by side in memory; with ``feedback (C, C)`` between them at each place.

        Places then count as further samples of ``C`` neurons.
        """
        space, axes, batch = self.shape[1:], len(self.shape), x.shape[1]
        coefs = tuple(c.movedim(0, -1) if isinstance(c, Tensor) and c.dim() == axes else c for c in coefs)
        x = x.movedim(2, -1)
        state = tuple(s.movedim(1, -1) for s in state)
        if feedback is None:
            y, end = self._run(x, state, coefs, lengths, None)
        else:
            places = math.prod(space)
            if any(isinstance(c, Tensor) and c.shape[:-1].numel() > 1 for c in coefs):
                raise ParameterError(
                    f"{type(self).__name__} with connections between the channels of a place expected constants that are the "
                    "same at all places (one number, or one per channel), got one per neuron."
                )
            coefs = tuple(c.reshape(-1) if isinstance(c, Tensor) and c.dim() else c for c in coefs)
            merged = tuple(s.reshape(batch * places, self.shape[0]) for s in state)
            many = None if lengths is None else lengths.repeat_interleave(places)
            x = x.reshape(x.shape[0], merged[0].shape[0], self.shape[0])
            y, end = self._run(x, merged, coefs, many, feedback)
            y = y.unflatten(1, (batch, *space))
            end = tuple(s.unflatten(0, (batch, *space)) for s in end)
        return y.movedim(-1, 2), tuple(s.movedim(-1, 1) for s in end)

    def _check_finite(
        self, current: Callable[[], Tensor], begin: State, end: State, lengths: Tensor | None
    ) -> None:
        # A NaN or an infinity that comes in stays in the state, so looking at the last state is enough and costs 1/T of looking
        # at the input. On a GPU the look would wait for the device; there diagnose() does it.
        if torch.compiler.is_compiling() or any(leaf.device.type != "cpu" for leaf in end):
            return
        # a sum is finite if every term is, at a fifth of the cost of asking each; where it is not, the terms are asked
        if all(math.isfinite(leaf.detach().sum().item()) or bool(torch.isfinite(leaf).all()) for leaf in end):
            return
        name = type(self).__name__
        if not all(bool(torch.isfinite(leaf).all()) for leaf in begin):
            raise NonFiniteError(f"{name} was given a state with NaN or infinity: begin with None.")
        check_finite(name, current(), lengths)
        for constant, value in zip(self.dynamics.coefs, self.coefs(), strict=True):
            if not bool(torch.isfinite(torch.as_tensor(value)).all()):
                raise NonFiniteError(
                    f"{name}: the constant {constant} is NaN or infinite; its training diverged."
                )
        raise NonFiniteError(
            f"{name}: the state overflowed on finite input; lower the weights or the input scale."
        )

    def _learn(self, learn: Sequence[str], known: Sequence[str]) -> frozenset[str]:
        names = (learn,) if isinstance(learn, str) else tuple(learn)
        for name in names:
            if name not in known:
                raise ParameterError(unknown(f"learnable constant of {type(self).__name__}", name, known))
        return frozenset(names)

    def extra_repr(self) -> str:
        """Size and surrogate."""
        return f"{self.shape[0] if len(self.shape) == 1 else self.shape}, surrogate={self.surrogate}"


class StepNeuron(Neuron):
    """A neuron from a bare step function, for trying an idea in six lines.

    Example:
        >>> import torch
        >>> from spiketide import spike
        >>> from spiketide.neurons import StepNeuron
        >>> def step(x, v, decay, threshold):
        ...     v = decay * v + x
        ...     s = spike(v - threshold)
        ...     return s, v - threshold * s
        >>> neuron = StepNeuron(2, step, states=("v",), constants={"decay": 0.9, "threshold": 1.0}, learn=("threshold",))
        >>> y, _ = neuron(torch.ones(3, 1, 2))
        >>> [n for n, _ in neuron.named_parameters()]
        ['constants.threshold.raw']

    Shapes:
        as :class:`Neuron`.

    Args:
        n: number of neurons, or the shape of a feature map.
        step: ``(x, *states, *constants) -> (s, *states')``.
        states: names of the state variables.
        constants: name -> value of the remaining arguments (per-step numbers, unconstrained); those with a default value in the
            step's signature may be left out.
        learn: names of the learnable ones.
        surrogate, dt, engine, checkpoint: as :class:`Neuron`.

    Raises:
        ParameterError: arguments of ``step`` without a value, or values without an argument.
    """

    def __init__(
        self,
        n: Size,
        step: Callable[..., Any],
        *,
        states: Sequence[str],
        constants: dict[str, Value] | None = None,
        learn: Sequence[str] = (),
        surrogate: Surrogate | None = None,
        dt: float = 1.0,
        engine: str | None = None,
        checkpoint: int | None = None,
    ) -> None:
        self._given = step
        self.states = tuple(states)  # type: ignore[misc]
        super().__init__(n, surrogate=surrogate, dt=dt, engine=engine, checkpoint=checkpoint)
        parameters = inspect.signature(step).parameters
        values = {
            name: parameters[name].default
            for name in self.dynamics.coefs
            if parameters[name].default is not inspect.Parameter.empty
        }
        values |= constants or {}
        if set(self.dynamics.coefs) != set(values):
            raise ParameterError(
                f"step takes the constants {self.dynamics.coefs}, got values for {tuple(values)}."
            )
        chosen = self._learn(learn, self.dynamics.coefs)
        self.constants = nn.ModuleDict(
            {k: Constant(k, values[k], self.shape, learn=k in chosen) for k in self.dynamics.coefs}
        )

    @property
    def step(self) -> Callable[..., Any]:  # type: ignore[override]
        """The function given."""
        return self._given

    def coefs(self) -> tuple[Any, ...]:
        """The constants, in the order of the step's arguments."""
        return tuple(constant() for constant in self.constants.values())


def traced_by(neuron: Neuron) -> str:
    """Why a neuron cannot run on the fused engines, or an empty string if it can."""
    return entry(neuron._key).why
