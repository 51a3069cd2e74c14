"""Classical recurrent layers with the verb of this package, to compare spiking networks with."""

from __future__ import annotations

import math
from typing import ClassVar

from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from .errors import ParameterError, unknown
from .layer import Layer
from .shapes import check_input, check_state
from .synapses.base import positive
from .types import State


class _Classical(Layer):
    """A recurrent layer of torch, time first, with its state as argument and result."""

    cell: nn.RNNBase
    gates: ClassVar[int]
    """Matrices of the input, and as many of the feedback."""
    kept: ClassVar[int] = 1
    """State variables of a unit."""

    def __init__(self, n_in: int, n: int, *, bias: bool = True) -> None:
        super().__init__()
        owner = type(self).__name__
        self.n_in, self.n, self.bias = positive(owner, "n_in", n_in), positive(owner, "n", n), bool(bias)
        self.cell = self._make()
        self.reset_parameters()

    def _make(self) -> nn.RNNBase:
        raise NotImplementedError

    def reset_parameters(self) -> None:
        """Draw weights and biases anew, uniform in ``±1/sqrt(n)`` as torch's own."""
        self.cell.reset_parameters()

    def initial_state(self, x: Tensor) -> State:
        """Zeros ``(B, n)`` for every state variable."""
        return tuple(x.new_zeros(x.shape[1], self.n) for _ in range(self.kept))

    def forward(
        self, x: Tensor, state: State | None = None, *, lengths: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Run ``T`` steps; a sample's state is that after its own last step."""
        check_input(self, x, (self.n_in,), lengths)
        begin = self.initial_state(x)
        if state is not None:
            check_state(self, state, begin)
            begin = state
        steps, batch = x.shape[:2]
        if not steps or not batch:
            return x.new_zeros(steps, batch, self.n), begin
        if lengths is None:
            y, end = self.cell(x, self._inward(begin))
            return y, self._outward(end)
        # Only the steps that a sample has are run: what stands in the padding is never read. Torch takes no empty
        # samples, so these are left out and keep their state.
        some = (lengths > 0).nonzero().squeeze(1).to(x.device)
        y = x.new_zeros(steps, batch, self.n)
        if not some.numel():
            return y, begin
        packed = pack_padded_sequence(
            x.index_select(1, some), lengths[lengths > 0].cpu(), enforce_sorted=False
        )
        out, end = self.cell(packed, self._inward(tuple(leaf.index_select(0, some) for leaf in begin)))
        padded, _ = pad_packed_sequence(out, total_length=steps)
        after = zip(begin, self._outward(end), strict=True)
        return y.index_copy(1, some, padded), tuple(old.index_copy(0, some, new) for old, new in after)

    def _inward(self, state: State) -> Tensor | tuple[Tensor, ...]:
        """The state as torch takes it: ``(1, B, n)``, alone where there is one variable."""
        given = tuple(leaf.unsqueeze(0).contiguous() for leaf in state)
        return given if len(given) > 1 else given[0]

    def _outward(self, end: Tensor | tuple[Tensor, ...]) -> State:
        return tuple(leaf.squeeze(0) for leaf in (end if isinstance(end, tuple) else (end,)))

    def extra_repr(self) -> str:
        """Sizes, as ``print(layer)`` shows them."""
        return f"{self.n_in}, {self.n}, bias={self.bias}"


class LSTM(_Classical):
    """Long short-term memory; in the place of ``Dense(n_in, n)`` and ``Recurrent(ALIF(n), Dense(n, n))``.

    ::

        i, f, o = sigmoid(W x[t] + U h[t-1] + b)  each with matrices of its own
        g = tanh(W x[t] + U h[t-1] + b)
        c[t] = f c[t-1] + i g                     h[t] = o tanh(c[t])

    Example:
        >>> import torch
        >>> from spiketide.baselines import LSTM
        >>> y, (h, c) = LSTM(4, 8)(torch.rand(10, 3, 4), lengths=torch.tensor([10, 2, 0]))
        >>> tuple(y.shape), bool((y[1, 1] == h[1]).all()), bool(y[2:, 1].any())
        ((10, 3, 8), True, False)

    Shapes:
        ``x (T, B, n_in)`` -> ``h (T, B, n)``, zero past a sample's length; state ``(h, c)``, each ``(B, n)``.
        ``4 n (n_in + n + 2)`` parameters, in ``cell`` as torch has them (two biases).

    Args:
        n_in: number of inputs.
        n: number of units.
        bias: with biases.

    Raises:
        ParameterError: a size that is not a positive integer.
        ShapeError: input or state of another shape.

    Reference: Hochreiter & Schmidhuber 1997 with forget gates (Gers et al. 2000), computed by :class:`torch.nn.LSTM`.
    """

    gates, kept = 4, 2

    def __init__(self, n_in: int, n: int, *, bias: bool = True) -> None:
        super().__init__(n_in, n, bias=bias)

    def _make(self) -> nn.RNNBase:
        return nn.LSTM(self.n_in, self.n, bias=self.bias)


class GRU(_Classical):
    """Gated recurrent units.

    ::

        r, z = sigmoid(W x[t] + b + U h[t-1] + b')  each with matrices of its own
        g = tanh(W x[t] + b + r (U h[t-1] + b'))    h[t] = (1 - z) g + z h[t-1]

    Example:
        >>> import torch
        >>> from spiketide.baselines import GRU
        >>> layer = GRU(4, 8)
        >>> x = torch.rand(10, 3, 4)
        >>> y, state = layer(x[:6])
        >>> rest, _ = layer(x[6:], state)
        >>> bool(torch.allclose(torch.cat([y, rest]), layer(x)[0]))
        True

    Shapes:
        ``x (T, B, n_in)`` -> ``h (T, B, n)``, zero past a sample's length; state ``(h,)``, ``(B, n)``.
        ``3 n (n_in + n + 2)`` parameters.

    Args:
        n_in, n, bias: as :class:`LSTM`.

    Raises:
        ParameterError, ShapeError: as :class:`LSTM`.

    Reference: Cho et al. 2014, with the reset behind the product as in :class:`torch.nn.GRU`, which computes it.
    """

    gates = 3

    def __init__(self, n_in: int, n: int, *, bias: bool = True) -> None:
        super().__init__(n_in, n, bias=bias)

    def _make(self) -> nn.RNNBase:
        return nn.GRU(self.n_in, self.n, bias=self.bias)


class RNN(_Classical):
    """Plain recurrent units: ``h[t] = tanh(W x[t] + U h[t-1] + b)``.

    Example:
        >>> import torch
        >>> from spiketide.baselines import RNN
        >>> y, (h,) = RNN(4, 8)(torch.rand(10, 3, 4))
        >>> tuple(y.shape), bool((y[-1] == h).all())
        ((10, 3, 8), True)

    Shapes:
        ``x (T, B, n_in)`` -> ``h (T, B, n)``, zero past a sample's length; state ``(h,)``, ``(B, n)``.
        ``n (n_in + n + 2)`` parameters.

    Args:
        n_in, n, bias: as :class:`LSTM`.

    Raises:
        ParameterError, ShapeError: as :class:`LSTM`.

    Reference: Elman 1990, computed by :class:`torch.nn.RNN`.
    """

    gates = 1

    def __init__(self, n_in: int, n: int, *, bias: bool = True) -> None:
        super().__init__(n_in, n, bias=bias)

    def _make(self) -> nn.RNNBase:
        return nn.RNN(self.n_in, self.n, bias=self.bias)


BASELINES: dict[str, type[_Classical]] = {"lstm": LSTM, "gru": GRU, "rnn": RNN}


def parameter_count(kind: str, n_in: int, n: int, *, n_out: int = 0, bias: bool = True) -> int:
    """Parameters of a classical layer, with a dense read-out of ``n_out`` outputs behind it if there is one.

    ``gates n (n_in + n + 2 bias) + n_out (n + bias)`` with 4, 3 and 1 gates.

    Example:
        >>> from spiketide.baselines import parameter_count
        >>> parameter_count("lstm", 40, 64), parameter_count("rnn", 40, 64, n_out=10)
        (27136, 7434)
    """
    if kind not in BASELINES:
        raise ParameterError(unknown("classical layer", kind, BASELINES))
    return BASELINES[kind].gates * n * (n_in + n + 2 * bias) + n_out * (n + bias)


def size_for(kind: str, n_in: int, parameters: int, *, n_out: int = 0, bias: bool = True) -> int:
    """The number of units with which a classical network has about as many parameters as another network.

    The size, at least 1, whose :func:`parameter_count` is nearest to ``parameters``; of two as near, the smaller.

    Example:
        >>> from spiketide.baselines import parameter_count, size_for
        >>> n = size_for("lstm", 40, 23_000, n_out=10)
        >>> n, parameter_count("lstm", 40, n, n_out=10)
        (57, 23152)

    Args:
        kind: ``"lstm"``, ``"gru"`` or ``"rnn"``.
        n_in: number of inputs.
        parameters: of the network to compare with.
        n_out: outputs of the dense read-out behind it; 0: none.
        bias: with biases.

    Raises:
        ParameterError: an unknown kind, or no positive number of parameters.
    """
    positive("size_for", "n_in", n_in)
    positive("size_for", "parameters", parameters)
    if kind not in BASELINES:
        raise ParameterError(unknown("classical layer", kind, BASELINES))
    # gates n^2 + (gates (n_in + 2 bias) + n_out) n + n_out bias = parameters; whole numbers, so exact at any size
    gates = BASELINES[kind].gates
    slope = gates * (n_in + 2 * bias) + n_out
    below = max(
        1, (math.isqrt(max(0, slope**2 + 4 * gates * (parameters - n_out * bias))) - slope) // (2 * gates)
    )

    def off(n: int) -> int:
        return abs(parameter_count(kind, n_in, n, n_out=n_out, bias=bias) - parameters)

    return min((below, below + 1), key=off)
