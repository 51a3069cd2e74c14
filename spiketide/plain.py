"""Results as JSON: one way for files, the command line and whoever reads them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def plain(content: Any) -> Any:
    """The same content for JSON, which knows no NaN and no infinity: such a number becomes ``None``.

    Example:
        >>> from spiketide.plain import plain
        >>> plain({"loss": float("nan"), "rates": (0.5, float("inf"))})
        {'loss': None, 'rates': [0.5, None]}
    """
    if isinstance(content, Mapping):
        return {key: plain(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [plain(value) for value in content]
    if isinstance(content, float) and not math.isfinite(content):
        return None
    return content


def to_json(content: Any, *, indent: int | None = None) -> str:
    """JSON that every reader takes: ``json.dumps`` alone would write ``NaN``, which is none.

    Example:
        >>> from spiketide.plain import to_json
        >>> to_json({"test_loss": float("nan"), "samples": 3})
        '{"test_loss": null, "samples": 3}'

    Args:
        content: Mappings, sequences, strings, numbers, ``None``.
        indent: As of ``json.dumps``.
    """
    return json.dumps(plain(content), indent=indent, allow_nan=False)
