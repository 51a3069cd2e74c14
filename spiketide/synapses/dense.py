"""All-to-all synapses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ParameterError, unknown
from ..kernels import project
from ..layer import check_input
from ..shapes import check_dtype
from .base import Synapse, positive, uniform_


def _orthogonal(weight: Tensor) -> None:
    # in float64 and then rounded: with another number of threads a decomposition differs in its last digits only
    with torch.no_grad():
        weight.copy_(nn.init.orthogonal_(torch.empty(weight.shape, dtype=torch.float64)))


INITS: dict[str, Callable[[Tensor], Any] | None] = {
    "uniform": None,
    "xavier_uniform": nn.init.xavier_uniform_,
    "xavier_normal": nn.init.xavier_normal_,
    "kaiming_normal": nn.init.kaiming_normal_,
    "orthogonal": _orthogonal,
    "zeros": nn.init.zeros_,
}
"""How weights may begin; ``None`` is Kaiming's rule with the gain of ``torch.nn.Linear``."""


class Dense(Synapse):
    r"""Connect every input to every output: at each step, ``y[t] = W x[t] + b``.

    .. math:: y_o[t] = b_o + \sum_j w_{oj}\, x_j[t]

    Costs what the spikes cost: where few of the inputs are nonzero (measured at each call), the weights of
    those that spiked are added up, forward and in the weight gradient; otherwise it is a matrix product.
    The results agree up to rounding.

    The weights begin uniform in ``±1/sqrt(n_in)`` (Kaiming's rule with the gain of
    :class:`torch.nn.Linear`), and so does the bias; with another ``init`` the bias begins at zero.

    Example:
        >>> import torch
        >>> from spiketide.synapses import Dense
        >>> dense = Dense(3, 2)
        >>> y, state = dense(torch.zeros(5, 4, 3))
        >>> tuple(y.shape), state, bool((y == dense.bias).all())
        ((5, 4, 2), (), True)

    Shapes:
        ``x (T, B, n_in)`` -> ``y (T, B, n_out)``, state ``()``. Parameters: ``weight (n_out, n_in)``,
        stored so that ``weight.t()`` is contiguous (the weights of one input lie together), and
        ``bias (n_out,)`` or ``None``. Tools that take a parameter for a contiguous vector
        (``torch.nn.utils.parameters_to_vector`` and ``prune``, ``torch.optim.LBFGS``) do not take it so.

    Args:
        n_in: number of inputs.
        n_out: number of outputs.
        bias: add a learnt offset at every step.
        init: how the weights begin: ``"uniform"`` as above, ``"xavier_uniform"``, ``"xavier_normal"``, ``"kaiming_normal"``,
            ``"orthogonal"`` or ``"zeros"`` of ``torch.nn.init``.

    Raises:
        ParameterError: a size that is not a positive integer, an unknown init.
        ShapeError: input of another rank or size, or of integers.
    """

    def __init__(self, n_in: int, n_out: int, *, bias: bool = True, init: str = "uniform") -> None:
        super().__init__()
        if init not in INITS:
            raise ParameterError(unknown("init of the weights", init, list(INITS)))
        self.init = init
        self.n_in = positive("Dense", "n_in", n_in)
        self.n_out = positive("Dense", "n_out", n_out)
        self.weight = nn.Parameter(torch.empty(n_in, n_out).t())
        self.bias = nn.Parameter(torch.empty(n_out)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weights and bias anew."""
        draw = INITS[self.init]
        if draw is None:
            uniform_(self.weight, self.n_in)
        else:
            draw(self.weight)
        if self.bias is not None:
            uniform_(self.bias, self.n_in) if draw is None else nn.init.zeros_(self.bias)

    def rows(self) -> Tensor:
        """The weights into each output ``(n_out, n_in)``."""
        return self.weight

    def check(self, x: Tensor, lengths: Tensor | None) -> None:
        """Refuse anything but ``(T, B, n_in)``."""
        check_input(self, x, (self.n_in,), lengths)
        check_dtype(self, x, self.weight)

    def apply_steps(self, x: Tensor) -> Tensor:
        """``x @ weight.T + bias``."""
        return project(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        """Sizes, as ``print(layer)`` shows them."""
        return f"{self.n_in}, {self.n_out}, bias={self.bias is not None}"
