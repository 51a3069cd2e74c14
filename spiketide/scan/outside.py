"""What a step reads from outside its arguments: globals, closure cells, helper functions.

The fused engines read a step once, so a number that it takes from outside is part of the kernel. :func:`fingerprint` tells
whether anything outside is another than when it was read; :func:`frozen` is the step as it was read, for the reference engine.
"""

from __future__ import annotations

import copy
import dis
import functools
from collections.abc import Iterator
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, ModuleType
from typing import Any

import torch

from ..surrogate import Surrogate

_LIBRARIES = frozenset({"builtins", "math", "numpy", "spiketide", "torch"})
_PLAIN = (bool, int, float, str, type(None), torch.dtype, torch.device, Surrogate)


@functools.cache
def _names(code: CodeType) -> tuple[frozenset[str], frozenset[str]]:
    """The globals, and the attributes of anything, that a function's code and the functions defined in it look up."""
    globals_, attributes = set(), set()
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            globals_.add(instruction.argval)
        elif instruction.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            attributes.add(instruction.argval)
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            more = _names(inner)
            globals_ |= more[0]
            attributes |= more[1]
    return frozenset(globals_), frozenset(attributes)


def _library(thing: Any) -> bool:
    """Whether this is a function, class or module of a library that no one changes at run time."""
    name = thing.__name__ if isinstance(thing, ModuleType) else getattr(thing, "__module__", None)
    return (isinstance(thing, ModuleType) or callable(thing)) and str(name).partition(".")[0] in _LIBRARIES


def _fixed(value: Any) -> bool:
    """Whether the name alone tells what a step gets: nothing in it can be another number later."""
    return isinstance(value, (BuiltinFunctionType, type)) or _library(value)


def _reads(function: FunctionType) -> Iterator[tuple[str, str, Any]]:
    """Where, under which name, and what a function reads: ``("cell" | "global" | a module's name, name, value)``."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield "cell", name, cell.cell_contents
        except ValueError:  # not bound yet
            continue
    if _library(function):
        return
    names, attributes = _names(function.__code__)
    for name in sorted(names & function.__globals__.keys()):
        value = function.__globals__[name]
        yield "global", name, value
        if isinstance(value, ModuleType) and not _library(value):
            for inner in sorted(attributes & vars(value).keys()):
                yield name, inner, vars(value)[inner]


def fingerprint(function: Any) -> tuple[Any, ...] | None:
    """A value that is another as soon as the function would compute with other numbers from outside.

    Returns:
        a hashable; ``None`` when that cannot be told (an object whose inside may change).
    """
    seen: set[int] = set()
    found: list[Any] = []

    def visit(part: Any) -> bool:
        if id(part) in seen:
            return True
        seen.add(id(part))
        for where, name, value in _reads(part):
            if isinstance(value, _PLAIN):
                found.append((where, name, type(value), repr(value)))
            elif isinstance(value, FunctionType):
                found.append((where, name, id(value)))
                if not visit(value):
                    return False
            elif isinstance(value, ModuleType) or _fixed(value):
                found.append((where, name, id(value)))
            else:
                return False
        return True

    if not isinstance(function, FunctionType):
        return None if function is not None else ()
    return tuple(found) if visit(function) else None


def frozen(function: Any) -> Any:
    """The function with all that it reads from outside as it is now.

    Functions that read nothing but libraries and other such functions come back as they are.
    """
    memo: dict[int, FunctionType] = {}

    def varies(part: FunctionType, seen: set[int]) -> bool:
        if id(part) in seen:
            return False
        seen.add(id(part))
        for _, _, value in _reads(part):
            if isinstance(value, FunctionType):
                if varies(value, seen):
                    return True
            elif not _fixed(value):
                return True
        return False

    def keep(value: Any) -> Any:
        if isinstance(value, FunctionType):
            return freeze(value)
        if isinstance(value, (ModuleType, *_PLAIN)) or _fixed(value):
            return value
        try:
            return copy.deepcopy(value)
        except Exception:  # what an object says that cannot be copied is its own affair: it is read live
            return value

    def freeze(part: FunctionType) -> FunctionType:
        if id(part) in memo:
            return memo[id(part)]
        if not varies(part, set()):
            return part
        outside = dict(part.__globals__)
        cells = tuple(CellType() for _ in part.__closure__ or ())
        twin = FunctionType(part.__code__, outside, part.__name__, part.__defaults__, cells)
        twin.__kwdefaults__ = part.__kwdefaults__
        memo[id(part)] = twin
        named = dict(zip(part.__code__.co_freevars, cells, strict=True))
        modules: dict[str, dict[str, Any]] = {}
        for where, name, value in _reads(part):
            if where == "cell":
                named[name].cell_contents = keep(value)
            elif where == "global":
                outside[name] = keep(value)
            else:
                modules.setdefault(where, {})[name] = keep(value)
        for name, values in modules.items():
            other = ModuleType(name)
            vars(other).update({**vars(outside[name]), **values})
            outside[name] = other
        return twin

    return freeze(function) if isinstance(function, FunctionType) else function
