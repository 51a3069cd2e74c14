"""All-to-all synapses."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..kernels import project
from ..layer import check_input
from .base import Synapse, positive, uniform_


class Dense(Synapse):
    r"""Connect every input to every output: at each step, ``y[t] = W x[t] + b``.

    .. math:: y_o[t] = b_o + \sum_j w_{oj}\, x_j[t]

    Costs what the spikes cost: where few of the inputs are nonzero (measured at each call), the weights of
    those that spiked are added up, forward and in the weight gradient; otherwise it is a matrix product.
    The results agree up to rounding.

    The weights begin uniform in ``±1/sqrt(n_in)`` (Kaiming's rule with the gain of
    :class:`torch.nn.Linear`), and so does the bias.

    Example:
        >>> import torch
        >>> from spiketide.synapses import Dense
        >>> dense = Dense(3, 2)
        >>> y, state = dense(torch.zeros(5, 4, 3))
        >>> tuple(y.shape), state, bool((y == dense.bias).all())
        ((5, 4, 2), (), True)

    Shapes:
        ``x (T, B, n_in)`` -> ``y (T, B, n_out)``, state ``()``. Parameters: ``weight (n_out, n_in)``,
        stored so that ``weight.t()`` is contiguous (the weights of one input lie together; nothing else
        depends on it), and ``bias (n_out,)`` or ``None``.

    Args:
        n_in: number of inputs.
        n_out: number of outputs.
        bias: add a learnt offset at every step.

    Raises:
        ParameterError: a size that is not a positive integer.
        ShapeError: input of another rank or size, or of integers.
    """

    def __init__(self, n_in: int, n_out: int, *, bias: bool = True) -> None:
        super().__init__()
        self.n_in = positive("Dense", "n_in", n_in)
        self.n_out = positive("Dense", "n_out", n_out)
        self.weight = nn.Parameter(torch.empty(n_in, n_out).t())
        self.bias = nn.Parameter(torch.empty(n_out)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weights and bias anew."""
        uniform_(self.weight, self.n_in)
        if self.bias is not None:
            uniform_(self.bias, self.n_in)

    def check(self, x: Tensor, lengths: Tensor | None) -> None:
        """Refuse anything but ``(T, B, n_in)``."""
        check_input(self, x, (self.n_in,), lengths)

    def apply_steps(self, x: Tensor) -> Tensor:
        """``x @ weight.T + bias``."""
        return project(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        """Sizes, as ``print(layer)`` shows them."""
        return f"{self.n_in}, {self.n_out}, bias={self.bias is not None}"
