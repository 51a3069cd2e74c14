"""A neuron's step as a graph: traced once, differentiated, and cut where saving is cheapest.

The author of a neuron writes ``step(x, *state, *coefs) -> (s, *state')`` with ordinary arithmetic and torch functions.
Running it once on :class:`Symbol` operands records every operation, in its order, as one static-single-assignment graph.
From that graph come

* the forward kernels: the same operations in the same order, hence the same bits as torch's element-wise loop (a computer
  algebra system would reorder sums and flip spikes at the last bit, which is why the derivative is taken here and not there);
* the backward kernels: reverse-mode differentiation of the graph, spike nodes giving their surrogate derivative;
* the *saved set*: the fewest values per neuron and step from which the backward can recompute all it needs.

Nothing in this file knows an engine.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from ..errors import EngineError, SpiketideError
from ..surrogate import Surrogate, use

FLOAT, BOOL = "float", "bool"

_COMPARE = {"lt", "le", "gt", "ge", "eq", "ne"}
_LOGIC = {"and", "or", "not"}


class Node(NamedTuple):
    """One operation: its name, the nodes it reads, and a constant or an input's name."""

    op: str
    args: tuple[int, ...]
    value: float | str | None
    kind: str


class Graph:
    """Append-only list of nodes; equal operations on equal operands are one node (same value, so same bits)."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self._index: dict[Node, int] = {}
        self._needs: list[int] = []

    def add(self, op: str, *args: int, value: float | str | None = None) -> int:
        """The id of ``op(*args)``, made if new."""
        kind = BOOL if op in _COMPARE or op in _LOGIC else FLOAT
        node = Node(op, args, value, kind)
        if node not in self._index:
            self._index[node] = len(self.nodes)
            self.nodes.append(node)
        return self._index[node]

    def const(self, value: float) -> int:
        """The id of a constant."""
        return self.add("const", value=float(value))

    def input(self, name: str) -> int:
        """The id of an input."""
        return self.add("input", value=name)

    def order(self, wanted: Iterable[int], known: Iterable[int] = ()) -> list[int]:
        """The nodes to compute, in order, to get ``wanted`` when ``known`` are given (inputs are always given)."""
        have = set(known)
        todo, seen = [i for i in wanted if i not in have], set()
        while todo:
            i = todo.pop()
            if i in seen:
                continue
            seen.add(i)
            todo.extend(a for a in self.nodes[i].args if a not in have)
        return sorted(seen)

    def computable(self, known: int) -> int:
        """Every node that follows from ``known`` and constants; sets of nodes are bit masks here, for speed."""
        for i in range(len(self._needs), len(self.nodes)):
            node = self.nodes[i]
            self._needs.append(-1 if node.op == "input" else sum({1 << a for a in node.args}))
        for i, needs in enumerate(self._needs):
            if needs >= 0 and needs & ~known == 0:
                known |= 1 << i
        return known


class Symbol:
    """An operand that records what is done with it. Stands for one neuron's value at one step."""

    def __init__(self, graph: Graph, index: int) -> None:
        self.graph, self.index = graph, index

    # -- making nodes ---------------------------------------------------------------------------------------------
    def _id(self, other: Any) -> int:
        if isinstance(other, Symbol):
            return other.index
        if isinstance(other, (bool, int, float)):
            return self.graph.const(float(other))
        raise EngineError(
            f"a neuron's step may combine its arguments and numbers, got {type(other).__name__}: pass tensors as coefs."
        )

    def _float(self, i: int) -> int:
        return self.graph.add("tofloat", i) if self.graph.nodes[i].kind == BOOL else i

    def _new(self, op: str, *args: Any) -> Symbol:
        ids = [self._id(a) for a in args]
        if op not in _LOGIC and op != "where":
            ids = [self._float(i) for i in ids]
        elif op == "where":
            ids = [ids[0], self._float(ids[1]), self._float(ids[2])]
            if self.graph.nodes[ids[0]].kind != BOOL:
                raise EngineError(
                    "torch.where in a step expects a comparison as its condition, got a number."
                )
        elif any(self.graph.nodes[i].kind != BOOL for i in ids):
            raise EngineError("&, | and ~ in a step expect comparisons, got numbers.")
        return Symbol(self.graph, self.graph.add(op, *ids))

    def __add__(self, o: Any) -> Symbol:
        return self._new("add", self, o)

    def __radd__(self, o: Any) -> Symbol:
        return self._new("add", o, self)

    def __sub__(self, o: Any) -> Symbol:
        return self._new("sub", self, o)

    def __rsub__(self, o: Any) -> Symbol:
        return self._new("sub", o, self)

    def __mul__(self, o: Any) -> Symbol:
        return self._new("mul", self, o)

    def __rmul__(self, o: Any) -> Symbol:
        return self._new("mul", o, self)

    def __truediv__(self, o: Any) -> Symbol:
        return self._new("div", self, o)

    def __rtruediv__(self, o: Any) -> Symbol:
        return self._new("div", o, self)

    def __pos__(self) -> Symbol:
        return self

    def __neg__(self) -> Symbol:
        return self._new("neg", self)

    def __abs__(self) -> Symbol:
        return self._new("abs", self)

    def __pow__(self, exponent: Any) -> Symbol:
        if not isinstance(exponent, (int, float)):
            raise EngineError(
                "a step may raise to a constant power only; write exp(p * log(x)) for a variable one."
            )
        if exponent == 1:
            return self
        if exponent == 2:
            return self * self
        if exponent == 3:
            return self * self * self
        if exponent == 0.5:
            return self._new("sqrt", self)
        if exponent == -1:
            return self._new("div", 1.0, self)
        return Symbol(self.graph, self.graph.add("pow", self._float(self.index), value=float(exponent)))

    def __lt__(self, o: Any) -> Symbol:
        return self._new("lt", self, o)

    def __le__(self, o: Any) -> Symbol:
        return self._new("le", self, o)

    def __gt__(self, o: Any) -> Symbol:
        return self._new("gt", self, o)

    def __ge__(self, o: Any) -> Symbol:
        return self._new("ge", self, o)

    def __eq__(self, o: Any) -> Symbol:  # type: ignore[override]
        return self._new("eq", self, o)

    def __ne__(self, o: Any) -> Symbol:  # type: ignore[override]
        return self._new("ne", self, o)

    __hash__ = None  # type: ignore[assignment]

    def __and__(self, o: Any) -> Symbol:
        return self._new("and", self, o)

    def __or__(self, o: Any) -> Symbol:
        return self._new("or", self, o)

    def __invert__(self) -> Symbol:
        return self._new("not", self)

    def __bool__(self) -> bool:
        raise EngineError(
            "a neuron's step is traced once and cannot branch on values: replace `if` by torch.where(condition, a, b)."
        )

    # -- spikes -----------------------------------------------------------------------------------------------------
    def traced_spike(self, surrogate: Surrogate | None) -> Symbol:
        """A spike of this value; the smooth twin records its primitive instead."""
        chosen = surrogate if surrogate is not None else _tracing_surrogate()
        if chosen.smooth:
            return chosen.primitive(self)
        if chosen != _tracing_surrogate():
            raise EngineError(
                "the fused engines use one surrogate a layer: leave it out in spike(x) inside a step."
            )
        return self._new("spike", self)

    def traced_spike_derivative(self, surrogate: Surrogate | None) -> Symbol:
        """The surrogate derivative of this value, recorded."""
        return (surrogate if surrogate is not None else _tracing_surrogate()).derivative(self)

    # -- torch functions and methods ----------------------------------------------------------------------------------
    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Symbol:
        name = getattr(func, "__name__", str(func))
        maker = _FUNCTIONS.get(name)
        if maker is None:
            raise EngineError(
                f"the fused engines do not know torch.{name} in a neuron's step; known: {', '.join(sorted(_FUNCTIONS))}. "
                'Use engine="reference" or write it with these.'
            )
        return maker(*args, **(kwargs or {}))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name in _FUNCTIONS:
            maker = _FUNCTIONS[name]
            return lambda *args, **kwargs: maker(self, *args, **kwargs)
        if name in {"float", "double", "clone", "contiguous"}:
            return lambda: Symbol(self.graph, self._float(self.index))
        if name == "detach":
            return lambda: self._new("detach", self)
        if name in {"to", "type_as"}:
            return lambda *args, **kwargs: Symbol(self.graph, self._float(self.index))
        raise EngineError(f"the fused engines do not know .{name} in a neuron's step.")

    @property
    def dtype(self) -> Symbol:
        """Stands in for ``tensor.dtype`` in ``x.to(v.dtype)``."""
        return self


def _tracing_surrogate() -> Surrogate:
    from ..surrogate import _resolve

    return _resolve(None)


def _first(*operands: Any) -> Symbol:
    return next(o for o in operands if isinstance(o, Symbol))


def _unary(op: str) -> Callable[..., Symbol]:
    return lambda x: x._new(op, x)


def _binary(op: str) -> Callable[..., Symbol]:
    return lambda a, b: _first(a, b)._new(op, a, b)


def _where(condition: Any, a: Any, b: Any) -> Symbol:
    return _first(condition, a, b)._new("where", condition, a, b)


def _clamp(x: Symbol, min: float | None = None, max: float | None = None) -> Symbol:
    # written as torch differentiates it: the bound itself passes the gradient
    y = x
    if min is not None:
        y = _where(y < min, min, y)
    if max is not None:
        y = _where(y > max, max, y)
    return y


_FUNCTIONS: dict[str, Callable[..., Symbol]] = {
    **{
        name: _unary(name)
        for name in ("abs", "exp", "log", "sqrt", "sin", "cos", "tanh", "sigmoid", "atan", "erf", "neg")
    },
    **{name: _binary(name) for name in ("add", "sub", "mul", "div", "maximum", "minimum")},
    "arctan": _unary("atan"),
    "where": _where,
    "clamp": _clamp,
    "square": lambda x: x * x,
    "pow": lambda x, p: x**p,
    "relu": lambda x: _where(x <= 0, 0.0, x),
    "zeros_like": lambda x: Symbol(x.graph, x.graph.const(0.0)),
    "ones_like": lambda x: Symbol(x.graph, x.graph.const(1.0)),
    "heaviside": lambda x, v: _where(x > 0, 1.0, _where(x < 0, 0.0, v)),
}


class _Adjoint:
    """Reverse-mode differentiation of a graph, appending to the same graph."""

    def __init__(self, graph: Graph, surrogate: Surrogate) -> None:
        self.graph, self.surrogate = graph, surrogate
        self.grad: dict[int, int] = {}

    def _s(self, i: int) -> Symbol:
        return Symbol(self.graph, i)

    def _give(self, i: int, g: Symbol) -> None:
        if self.graph.nodes[i].op == "const" or self.graph.nodes[i].kind == BOOL:
            return
        self.grad[i] = g.index if i not in self.grad else (self._s(self.grad[i]) + g).index

    def run(self, seeds: Iterable[tuple[int, int]]) -> dict[int, int]:
        """Gradients by node id, from pairs of an output and its gradient; an output may stand there twice."""
        last = len(self.graph.nodes)
        for i, g in seeds:
            self._give(i, self._s(g))
        for i in range(last - 1, -1, -1):
            if i in self.grad:
                self._vjp(self.graph.nodes[i], i, self._s(self.grad[i]))
        return self.grad

    def _vjp(self, node: Node, i: int, g: Symbol) -> None:
        op, args = node.op, node.args
        a = self._s(args[0]) if args else g
        b = self._s(args[1]) if len(args) > 1 else g
        y = self._s(i)
        give = self._give
        zero = self._s(self.graph.const(0.0))
        if op in {"input", "const", "detach", "tofloat"} or node.kind == BOOL:
            return
        if op == "add":
            give(args[0], g)
            give(args[1], g)
        elif op == "sub":
            give(args[0], g)
            give(args[1], -g)
        elif op == "mul":
            give(args[0], g * b)
            give(args[1], g * a)
        elif op == "div":
            give(args[0], g / b)
            give(args[1], -g * y / b)
        elif op == "neg":
            give(args[0], -g)
        elif op == "abs":
            give(args[0], _where(a > 0, g, _where(a < 0, -g, zero)))
        elif op == "exp":
            give(args[0], g * y)
        elif op == "log":
            give(args[0], g / a)
        elif op == "sqrt":
            give(args[0], g / (2.0 * y))
        elif op == "sin":
            give(args[0], g * a._new("cos", a))
        elif op == "cos":
            give(args[0], -g * a._new("sin", a))
        elif op == "tanh":
            give(args[0], g * (1.0 - y * y))
        elif op == "sigmoid":
            give(args[0], g * (y * (1.0 - y)))
        elif op == "atan":
            give(args[0], g / (1.0 + a * a))
        elif op == "erf":
            give(args[0], g * ((2 / math.sqrt(math.pi)) * a._new("exp", -(a * a))))
        elif op == "pow":
            p = float(node.value)  # type: ignore[arg-type]
            give(args[0], g * (p * a ** (p - 1)))
        elif op == "maximum":
            # like torch: a tie shares the gradient
            half = _where(a == b, 0.5 * g, zero)
            give(args[0], _where(a > b, g, half))
            give(args[1], _where(a < b, g, half))
        elif op == "minimum":
            half = _where(a == b, 0.5 * g, zero)
            give(args[0], _where(a < b, g, half))
            give(args[1], _where(a > b, g, half))
        elif op == "where":
            give(args[1], _where(self._s(args[0]), g, zero))
            give(args[2], _where(self._s(args[0]), zero, g))
        elif op == "spike":
            with use(self.surrogate):
                give(args[0], g * self.surrogate.derivative(a))
        else:  # pragma: no cover - every op that can be recorded is listed
            raise EngineError(f"no derivative is known for {op} in a neuron's step.")


def _mask(nodes: Iterable[int]) -> int:
    mask = 0
    for i in nodes:
        mask |= 1 << i
    return mask


_MOST_TRIED = 10_000
"""Sets of values to save that a plan looks at: half a second."""


class Plan(NamedTuple):
    """What one backward needs: which nodes are saved, which earlier states are rebuilt, and what comes out."""

    saved: tuple[int, ...]
    """Nodes stored at every step, ``itemsize`` bytes per neuron-step each; the input ``x`` is kept, not copied."""
    prior: tuple[int, ...]
    """State components of the step before that the backward reads (rebuilt from its saved nodes)."""
    grad_x: int | None
    grad_state: tuple[int | None, ...]
    grad_coefs: tuple[int | None, ...]


class Program:
    """A neuron's step with its derivative, ready for an engine to print.

    Args:
        state, coefs: names, in the order of ``step``'s arguments.
        step: ``(x, *state, *coefs) -> (s, *state')``.
        surrogate: what a spike's derivative is.
        step_vjp: optional hand-written backward ``(gs, *gstate', x, *state, *coefs) -> (gx, *gstate, *gcoefs)``.

    Raises:
        EngineError: the step does something that cannot be traced, or returns another number of values.
    """

    def __init__(
        self,
        state: Sequence[str],
        coefs: Sequence[str],
        step: Callable[..., Any],
        surrogate: Surrogate,
        step_vjp: Callable[..., Any] | None = None,
    ) -> None:
        self.graph = graph = Graph()
        self.surrogate = surrogate
        symbol = lambda i: Symbol(graph, i)  # noqa: E731
        self.x = graph.input("x")
        self.state = tuple(graph.input(f"state{i}") for i in range(len(state)))
        self.coefs = tuple(graph.input(f"coef{i}") for i in range(len(coefs)))
        with use(surrogate):
            out = self._trace(
                step, "step", symbol(self.x), *map(symbol, self.state), *map(symbol, self.coefs)
            )
            ids = self._ids(out, 1 + len(state), "step", "(s, " + ", ".join(f"{s}'" for s in state) + ")")
        self.y, self.next = ids[0], tuple(ids[1:])
        self.forward_size = len(graph.nodes)
        self.gy = graph.input("gy")
        self.gnext = tuple(graph.input(f"gstate{i}") for i in range(len(state)))
        if step_vjp is None:
            outputs = (self.y, *self.next)
            grad = _Adjoint(graph, surrogate).run(zip(outputs, (self.gy, *self.gnext), strict=True))
            grads = [grad.get(i) for i in (self.x, *self.state, *self.coefs)]
        else:
            with use(surrogate):
                given = [self.gy, *self.gnext, self.x, *self.state, *self.coefs]
                out = self._trace(step_vjp, "step_vjp", *map(symbol, given))
            grads = list(self._ids(out, 1 + len(state) + len(coefs), "step_vjp", "(gx, *gstate, *gcoefs)"))
        self.grad_x = grads[0]
        self.grad_state = tuple(grads[1 : 1 + len(state)])
        self.grad_coefs = tuple(grads[1 + len(state) :])

    @property
    def learns(self) -> bool:
        """Whether a gradient of the output reaches anything: the input, the state or a constant."""
        seen: set[int] = set()
        rest = [g for g in (self.grad_x, *self.grad_state, *self.grad_coefs) if g is not None]
        while rest:
            node = rest.pop()
            if node == self.gy:
                return True
            if node not in seen:
                seen.add(node)
                rest.extend(self.graph.nodes[node].args)
        return False

    @staticmethod
    def _trace(function: Callable[..., Any], what: str, *operands: Symbol) -> Any:
        try:
            return function(*operands)
        except SpiketideError:
            raise
        except (TypeError, AttributeError, ValueError, NotImplementedError) as error:
            # what Python or torch say when they are given a Symbol that they cannot handle
            raise EngineError(f"{what} cannot be traced: {type(error).__name__}: {error}.") from error

    def _ids(self, out: Any, count: int, what: str, form: str) -> list[int]:
        values = out if isinstance(out, (tuple, list)) else (out,)
        if len(values) != count:
            raise EngineError(f"{what} must return {count} values {form}, got {len(values)}.")
        ids = []
        for value in values:
            if isinstance(value, Symbol):
                ids.append(value._float(value.index))
            elif isinstance(value, (int, float)):
                ids.append(self.graph.const(float(value)))
            else:
                raise EngineError(f"{what} must return traced values or numbers, got {type(value).__name__}.")
        return ids

    def plan(self, need_x: bool, need_coefs: Sequence[bool]) -> Plan:
        """The cheapest saved set for a backward that must give these gradients.

        Every node the backward reads must follow from the saved nodes of its step, the state before it and the
        coefficients; the state before it must follow from the saved nodes of the step before. Among the smallest sets
        the one with the least recomputation is taken.
        """
        graph = self.graph
        grad_coefs = tuple(g if n else None for g, n in zip(self.grad_coefs, need_coefs, strict=True))
        grad_x = self.grad_x if need_x else None
        outputs = [g for g in (grad_x, *self.grad_state, *grad_coefs) if g is not None]
        backward_inputs = {self.gy, *self.gnext}
        reads = self._forward_values_read(outputs, backward_inputs)
        # a node that leads to nothing the backward reads (nor to the next state) is never worth saving
        useful = {*reads, *graph.order(reads), *graph.order(self.next)}
        candidates = [i for i in self._varying() if i in useful]
        # an old state handed on as it is (a delay line) follows from nothing else
        candidates += [i for i in self.state if i in self.next and i in useful]
        base, wanted = set(self.coefs), _mask(reads)
        best: tuple[tuple[int, int, int], tuple[int, ...], tuple[int, ...]] | None = None

        def try_saving(saved: tuple[int, ...]) -> None:
            nonlocal best
            rebuilt = graph.computable(_mask((*base, *saved)))
            prior = [k for k, n in enumerate(self.next) if rebuilt >> n & 1]
            known = graph.computable(rebuilt | _mask(self.state[k] for k in prior))
            if wanted & ~known:
                return
            # only those earlier states that are really read, with what it costs to rebuild them
            work = graph.order(reads, {*saved, *base, *self.state})
            used = {a for i in (*work, *reads) for a in (*graph.nodes[i].args, i)} & set(self.state)
            prior = [k for k in prior if self.state[k] in used and self.state[k] not in saved]
            rework = graph.order([self.next[k] for k in prior], {*saved, *base})
            written = sum(1 for s in saved if s != self.x)
            cost = (len(saved), written, len(work) + len(rework))
            if best is None or cost < best[0]:
                best = (cost, saved, tuple(prior))

        # The states after the step, with the input, always do; anything smaller has to be searched for, and the search is
        # bounded: a step of a hundred operations with four states would take minutes to search through.
        natural = sorted({*self.next} & {*self._varying(), *self.state})
        try_saving(tuple(natural))
        try_saving(tuple(sorted({self.x, *natural})))
        tried = 0
        for size in range(len(self.state) + 3):
            if tried > _MOST_TRIED or (best is not None and best[0][0] < size):
                break
            for saved in itertools.combinations(candidates, size):
                try_saving(saved)
                tried += 1
                if tried > _MOST_TRIED:
                    break
        if best is None:  # pragma: no cover - see above
            raise EngineError("no set of values to save was found for this step.")
        return Plan(best[1], best[2], grad_x, self.grad_state, grad_coefs)

    def _varying(self) -> list[int]:
        """Float nodes of the forward that depend on the input or the state, but are not the state itself."""
        moving = {self.x, *self.state}
        for i in range(self.forward_size):
            if any(a in moving for a in self.graph.nodes[i].args):
                moving.add(i)
        return [
            i
            for i in sorted(moving)
            if i not in self.state and i < self.forward_size and self.graph.nodes[i].kind == FLOAT
        ]

    def _forward_values_read(self, outputs: Sequence[int], backward_inputs: set[int]) -> set[int]:
        """Values of the forward (or recomputable without gradients) at the border of the backward's own nodes."""
        graph = self.graph
        tainted = set(backward_inputs)
        for i, node in enumerate(graph.nodes):
            if any(a in tainted for a in node.args):
                tainted.add(i)
        border: set[int] = set()
        for i in graph.order(outputs):
            if i in tainted:
                border.update(a for a in graph.nodes[i].args if a not in tainted)
            elif i in outputs:
                border.add(i)
        return {i for i in border if graph.nodes[i].op != "const"}
