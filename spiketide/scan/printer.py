"""Turning a traced graph into lines of Python source that Numba or Triton compiles.

Both engines print the same operations in the same order; they differ in how an operation is spelt, which a
:class:`Dialect` says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from .graph import Graph, Node


class Dialect(NamedTuple):
    """How an engine spells constants and operations.

    ``constant(value)`` gives the source of a typed constant; ``spell`` maps an operation to a function of its operands'
    source (and the node, for its constant).
    """

    constant: Callable[[float], str]
    spell: Mapping[str, Callable[..., str]]


INFIX = {
    "add": "+",
    "sub": "-",
    "mul": "*",
    "div": "/",
    "lt": "<",
    "le": "<=",
    "gt": ">",
    "ge": ">=",
    "eq": "==",
    "ne": "!=",
    "and": "&",
    "or": "|",
}


def expression(node: Node, operands: list[str], dialect: Dialect) -> str:
    """The source of one operation."""
    if node.op in dialect.spell:
        if node.op == "pow":
            return dialect.spell["pow"](operands[0], dialect.constant(float(node.value)))  # type: ignore[arg-type]
        return dialect.spell[node.op](*operands)
    return f"({operands[0]} {INFIX[node.op]} {operands[1]})"


def emit(
    graph: Graph, wanted: Iterable[int], names: dict[int, str], dialect: Dialect, prefix: str = "v"
) -> tuple[list[str], set[int]]:
    """Assignments that compute ``wanted``.

    Args:
        graph: the traced step.
        wanted: node ids.
        names: source names of the values already at hand; the new ones are added.
        dialect: the engine's spelling.
        prefix: of the new names.

    Returns:
        The lines, and the given nodes that they (or ``wanted`` itself) read, to be loaded first.
    """
    given = set(names)
    wanted = list(wanted)
    lines: list[str] = []
    read = {i for i in wanted if i in given}
    for i in graph.order(wanted, given):
        node = graph.nodes[i]
        if node.op == "const":
            names[i] = dialect.constant(float(node.value))  # type: ignore[arg-type]
            continue
        if node.op == "input":
            raise KeyError(f"input {node.value} is not at hand")
        read.update(a for a in node.args if a in given)
        operands = [names[a] for a in node.args]
        if node.op == "detach":
            names[i] = operands[0]
            continue
        names[i] = f"{prefix}{i}"
        lines.append(f"{prefix}{i} = {expression(node, operands, dialect)}")
    return lines, read
