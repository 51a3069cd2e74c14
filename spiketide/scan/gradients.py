"""What the fused scans' backward passes share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import EngineError
from .dynamics import program


def reduce(key: str, needs: Sequence[bool], coefs: Sequence[Tensor], sums: Sequence[Tensor]) -> list[Tensor]:
    """Gradients per neuron and sample, summed to each coefficient's own shape."""
    grads, left = [], iter(sums)
    for coef, need, node in zip(coefs, needs[1:], program(key).grad_coefs, strict=True):
        if not need:
            grads.append(coef.new_empty(0))
        elif node is None:
            grads.append(torch.zeros_like(coef))
        else:
            grads.append(next(left).sum(0).sum_to_size(coef.shape).clone())
    return grads


def first_derivative_only() -> None:
    """Refuse ``create_graph=True``."""
    # grad mode is on inside a backward only for create_graph=True; without this the second derivative would be silently zero
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise EngineError(
            "the fused scans give first derivatives only, and create_graph=True asks for more: build the layer with "
            'engine="reference".'
        )
