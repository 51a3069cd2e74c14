"""What one update of a neuron costs, counted from its own step: from the traced graph that the kernels are printed from."""

from __future__ import annotations

from typing import NamedTuple

from ..errors import EngineError
from ..neurons.base import Neuron
from ..scan.dynamics import entry
from ..scan.graph import Graph, Node, Program

FREE = {"const", "input", "neg", "abs", "tofloat", "detach", "where", "and", "or", "not"}
"""Signs, selections and copies: wires, not arithmetic."""

COMPARISONS = {"lt", "le", "gt", "ge", "eq", "ne", "maximum", "minimum"}


class StepOperations(NamedTuple):
    """Operations of one neuron in one step.

    Args:
        mac: multiplications, each with the addition that may follow it: decays, adaptation, moving thresholds.
        ac: further additions.
        ac_per_spike: additions that are done when the neuron spikes only: resets, increments of an adaptation.
        comparisons: with the threshold, mostly.
        functions: exponentials, roots, divisions and the like that must be evaluated at every step.
        input_scale: of ``mac``, those that multiply the input with a constant, such as ``(1 - decay) x``; they can be
            folded into the weights in front of the neuron, exactly.
        state_reads, state_writes: state variables that the step reads and changes.
        coefs: constants that the step reads.
    """

    mac: int
    ac: int
    ac_per_spike: int
    comparisons: int
    functions: int
    input_scale: int
    state_reads: int
    state_writes: int
    coefs: tuple[str, ...]


def step_operations(neuron: Neuron) -> StepOperations:
    """Count the operations of a neuron's step, whoever wrote it.

    - What follows from constants alone (``1 - decay``) is computed once and costs nothing.
    - A product with a spike is a selection and costs nothing; the addition behind it is done only when there is a spike.
    - Every other multiplication is a multiply-accumulate, with one addition behind it if there is one.
    - Every other addition or subtraction is an accumulate, but ``v - threshold`` inside a spike is the comparison itself.

    Example:
        >>> from spiketide import LIF, ALIF
        >>> from spiketide.energy import step_operations
        >>> lif, alif = step_operations(LIF(1)), step_operations(ALIF(1))
        >>> lif.mac, lif.ac_per_spike, lif.comparisons
        (1, 1, 1)
        >>> alif.mac - alif.input_scale, alif.ac_per_spike
        (3, 2)

    Args:
        neuron: any neuron; its shape does not matter.

    Raises:
        EngineError: the step cannot be traced, so its operations are not known.

    Reference: the counts of LIF and ALIF equal those of :func:`.formulas.paper_counts`, which follow Yin et al. 2021; there the
        comparison is not counted.
    """
    found = entry(neuron._key)
    if found.program is None:
        raise EngineError(
            f"{type(neuron).__name__}: its operations cannot be counted, since its step cannot be traced: {found.why}"
        )
    return _count(found.program, found.dynamics.coefs)


def _count(program: Program, names: tuple[str, ...]) -> StepOperations:
    graph, outputs = program.graph, (program.y, *program.next)
    order = graph.order(outputs)
    nodes = graph.nodes
    constant = _constant(graph, program)
    binary, events = _binary(program, order)
    users: dict[int, list[int]] = {i: [] for i in order}
    for i in order:
        for a in nodes[i].args:
            users[a].append(i)
    moving = [i for i in order if i not in constant]
    gated = {i for i in moving if nodes[i].op == "mul" and any(a in binary for a in nodes[i].args)}
    spikes_alone = _inside_spikes(moving, users, nodes, outputs)
    products = [i for i in moving if nodes[i].op == "mul" and i not in gated and i not in binary]
    unfused = set(products)
    ac = per_spike = comparisons = functions = 0
    for i in moving:
        op, args = nodes[i].op, nodes[i].args
        if op in {"add", "sub"} and i not in binary:
            gates = [next(a for a in nodes[g].args if a in binary) for g in args if g in gated]
            # a spike added as it is, a += s, is an increment by one
            gates += [a for a in args if a in binary]
            fused = next((a for a in args if a in unfused), None)
            if gates:
                if all(gate in events for gate in gates):
                    per_spike += 1
                else:
                    ac += 1
            elif i in spikes_alone:
                continue  # the comparison, counted at the spike
            elif fused is not None:
                unfused.discard(fused)
            else:
                ac += 1
        elif op == "spike" or op in COMPARISONS:
            comparisons += 1
        elif op not in FREE and op not in {"mul", "add", "sub"}:
            functions += 1
    scaled = sum(
        1 for i in products if program.x in nodes[i].args and any(a in constant for a in nodes[i].args)
    )
    used = set(order)
    return StepOperations(
        mac=len(products),
        ac=ac,
        ac_per_spike=per_spike,
        comparisons=comparisons,
        functions=functions,
        input_scale=scaled if _only_scaled(program, users, nodes, constant) else 0,
        state_reads=sum(1 for i in program.state if i in used and users[i]),
        state_writes=sum(1 for old, new in zip(program.state, program.next, strict=True) if old != new),
        coefs=tuple(name for name, i in zip(names, program.coefs, strict=True) if i in used),
    )


def _constant(graph: Graph, program: Program) -> set[int]:
    """Nodes that follow from constants and coefficients alone: computed once, not at every step."""
    known: set[int] = set(program.coefs)
    for i, node in enumerate(graph.nodes[: program.forward_size]):
        if node.op == "const" or (node.args and all(a in known for a in node.args)):
            known.add(i)
    return known


def _binary(program: Program, order: list[int]) -> tuple[set[int], set[int]]:
    """Nodes that are 0 or 1 always, and of these the ones that are 1 as often as the neuron's output spikes."""
    nodes = program.graph.nodes
    events = {program.y} if nodes[program.y].op == "spike" else set()
    # a state that takes over the output is the spike of the step before: as frequent, one step later
    events |= {
        old for old, new in zip(program.state, program.next, strict=True) if new == program.y and events
    }
    known = {i for i in order if nodes[i].op == "const" and nodes[i].value in (0.0, 1.0)} | events
    ones = {i for i in order if nodes[i].op == "const" and nodes[i].value == 1.0}
    while True:
        before = len(known)
        for i in order:
            node = nodes[i]
            if _stays_binary(node, nodes, known, ones):
                known.add(i)
                if node.op in {"detach", "tofloat"} and node.args[0] in events:
                    events.add(i)
        for old, new in zip(program.state, program.next, strict=True):
            if new in known and new not in ones and nodes[new].op != "const":
                known.add(old)
        if len(known) == before:
            break
    return {i for i in known if nodes[i].op != "const"}, events


def _stays_binary(node: Node, nodes: list[Node], known: set[int], ones: set[int]) -> bool:
    if node.op == "spike" or node.kind == "bool":
        return True
    if node.op in {"detach", "tofloat"}:
        return node.args[0] in known or nodes[node.args[0]].kind == "bool"
    if node.op in {"mul", "maximum", "minimum"}:
        return all(a in known for a in node.args)
    if node.op == "where":
        return all(a in known for a in node.args[1:])
    return node.op == "sub" and node.args[0] in ones and node.args[1] in known


def _inside_spikes(
    moving: list[int], users: dict[int, list[int]], nodes: list[Node], outputs: tuple[int, ...]
) -> set[int]:
    """Differences that nothing but a spike or a comparison reads."""
    return {
        i
        for i in moving
        if nodes[i].op == "sub"
        and i not in outputs
        and users[i]
        and all(nodes[u].op == "spike" for u in users[i])
    }


def _only_scaled(
    program: Program, users: dict[int, list[int]], nodes: list[Node], constant: set[int]
) -> bool:
    """Whether the input is read in one place, as a product with a constant: only then the weights can take the factor."""
    reads = users.get(program.x, [])
    return (
        len(reads) == 1 and nodes[reads[0]].op == "mul" and any(a in constant for a in nodes[reads[0]].args)
    )
