"""Errors of this library. Each message says what was expected, what came, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SpiketideError(Exception):
    """Base of every error raised on purpose by this library."""


class ShapeError(SpiketideError, ValueError):
    """A tensor has the wrong rank, size, dtype, device or order of axes."""


class ParameterError(SpiketideError, ValueError):
    """A constructor argument is out of its range or not known."""


class EngineError(SpiketideError, RuntimeError):
    """A scan or kernel engine is unknown, missing on this machine, or cannot run this dynamics."""


class DataError(SpiketideError, RuntimeError):
    """Data is missing, truncated, corrupt or empty."""


class RecipeError(SpiketideError, ValueError):
    """A recipe is unknown, misspelt or inconsistent."""


class RunError(SpiketideError, RuntimeError):
    """A run folder cannot be used: read-only, full, taken, or not a run."""


class NonFiniteError(SpiketideError, ArithmeticError):
    """NaN or infinity came in, or a state overflowed."""


def unknown(what: str, given: object, known: Iterable[object]) -> str:
    """The message for an unknown name: the nearest right one first, then all of them.

    Example:
        >>> from spiketide.errors import unknown
        >>> unknown("reset", "sotf", ["soft", "hard"])
        "unknown reset 'sotf'; did you mean 'soft'? Known: hard, soft"
    """
    names = sorted(str(name) for name in known)
    near = difflib.get_close_matches(str(given), names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return f"unknown {what} {str(given)!r}{hint} Known: {', '.join(names) if names else '(none)'}"
