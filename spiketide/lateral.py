"""A synapse and its neurons as one: thresholds in units of the weights' norm, and fast connections between the neurons."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .errors import ParameterError, ShapeError, unknown
from .layer import Layer
from .neurons.base import Constant, Neuron, Value
from .neurons.normalized_lif import NormalizedLIF
from .shapes import silence_padding
from .synapses.base import Synapse
from .types import State

EPSILON = 1e-8
"""Added to a squared norm before it divides, as published."""

CONNECTIONS = ("synapse", "free")


class _Owned(Layer):
    """A synapse whose weights are scaled before they are used, and what comes behind it."""

    def __init__(self, synapse: Synapse) -> None:
        super().__init__()
        name = type(self).__name__
        if not isinstance(synapse, Synapse):
            raise ParameterError(
                f"{name} expected a synapse first (Dense, TemporalConv2d, SynapticDelay, ...), got {type(synapse).__name__}."
            )
        synapse.rows()  # one that has none says so now
        self.synapse = synapse

    def prepared(self) -> tuple[dict[str, Tensor], Tensor | None]:
        """What a forward works out of the parameters alone: the synapse's scaled parameters, and the feedback between neurons.

        For who calls step by step with the same parameters (``Streamer``), to work it out once.
        """
        raise NotImplementedError(f"{type(self).__name__} needs prepared().")

    def _scaled(self, scale: Tensor) -> dict[str, Tensor]:
        """The synapse's parameters, all weights into an output times its ``scale``; ``(n_out,)``, or one number."""
        scaled = {}
        for name in ("weight", "bias"):
            value = getattr(self.synapse, name, None)
            if value is not None:
                one = scale.reshape(-1, *(1,) * (value.dim() - 1)) if scale.dim() else scale
                scaled[name] = value * one.to(value.dtype)
        return scaled

    def _project(
        self, x: Tensor, state: State | None, lengths: Tensor | None, scaled: dict[str, Tensor]
    ) -> tuple[Tensor, State]:
        """What the synapse gives with these parameters."""
        result: tuple[Tensor, State] = functional_call(self.synapse, scaled, (x, state), {"lengths": lengths})
        return result

    def _parts(self, state: State | None) -> tuple[Any, Any]:
        if state is None:
            return None, None
        if not isinstance(state, tuple) or len(state) != 2:
            raise ShapeError(
                f"{type(self).__name__} expected a state (synapse, what follows), as it returned it; pass None to begin."
            )
        return state

    def lengths_after(self, lengths: Tensor | None) -> Tensor | None:
        """The synapse's."""
        return self.synapse.lengths_after(lengths)


def _norms(rows: Tensor) -> Tensor:
    return rows.square().sum(1)


def _flat(value: Any) -> Any:
    """A constant per layer or channel as a number or ``(n_out,)``."""
    return value.reshape(-1) if isinstance(value, Tensor) and value.dim() else value


class Normalized(_Owned):
    r"""A synapse and its neurons, whose thresholds are counted in the squared norm of the weights into each of them.

    .. math:: x_j[t] = \frac{w_j \cdot in[t]}{|w_j|^2 + 10^{-8}} \qquad\text{into the neuron}

    The gradient goes through the norm. A weight vector that doubles makes nothing fire more.

    Example:
        >>> import torch
        >>> from spiketide import Normalized, NormalizedLIF, TemporalConv2d
        >>> layer = Normalized(TemporalConv2d(3, 16, (4, 3), bias=False), NormalizedLIF((16, 40)))
        >>> y, state = layer(torch.rand(30, 2, 3, 40))
        >>> tuple(y.shape)
        (30, 2, 16, 40)

    Shapes:
        ``x (T, B, *N_in)`` -> spikes ``(T', B, *n)``; state ``(synapse, neuron)``.

    Args:
        synapse: with weights ``weight`` whose first axis is the output: ``Dense``, the convolutions, ``SynapticDelay``. Norms
            count all taps in space and time.
        neuron: :class:`spiketide.NormalizedLIF` as published, or any other.

    Raises:
        ParameterError: a synapse or neuron that is none, or a synapse that does not say what its outputs weigh.
        ShapeError: as the synapse and the neuron; outputs of the synapse that are not as many as neurons.

    Reference: Zimmer, Pellegrini, Singh & Masquelier 2019.
    """

    def __init__(self, synapse: Synapse, neuron: Neuron) -> None:
        super().__init__(synapse)
        if not isinstance(neuron, Neuron):
            raise ParameterError(
                f"{type(self).__name__} expected a neuron second, got {type(neuron).__name__}: "
                f"{type(self).__name__}(Dense(4, 8, bias=False), NormalizedLIF(8))."
            )
        if synapse.rows().shape[0] != neuron.shape[0]:
            raise ParameterError(
                f"{type(self).__name__} expected a synapse with as many outputs as the neuron has channels, got "
                f"{synapse.rows().shape[0]} and {neuron.shape[0]} (of {neuron.shape})."
            )
        self.neuron = neuron

    def initial_state(self, x: Tensor) -> State:
        """``None`` leaves: the neurons know their shape only when the sequence reaches them."""
        return (None, None)

    def forward(
        self, x: Tensor, state: State | None = None, *, lengths: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Project and run the neurons."""
        before, inner = self._parts(state)
        scaled, feedback = self.prepared()
        options: dict[str, Any] = {}
        if isinstance(self.neuron, NormalizedLIF):
            # the gain is in the weights, where it costs nothing
            options["coefs"] = (*self.neuron.coefs()[:2], 1.0)
        drive, after = self._project(x, before, lengths, scaled)
        if feedback is not None:
            options["feedback"] = feedback
        y, end = self.neuron(drive, inner, lengths=self.synapse.lengths_after(lengths), **options)
        return y, (after, end)

    def prepared(self) -> tuple[dict[str, Tensor], Tensor | None]:
        """The weights over their squared norm, times the neuron's gain; no feedback."""
        return self._scaled(self._gain() * (1.0 / (_norms(self.synapse.rows()) + EPSILON))), None

    def _gain(self) -> Any:
        if not isinstance(self.neuron, NormalizedLIF):
            return 1.0
        # a decay of each neuron cannot go into the weights of a channel
        gain = self.neuron.gain()
        if isinstance(gain, Tensor) and gain.shape[1:].numel() > 1:
            raise ParameterError(
                "NormalizedLIF behind a convolution expected one decay for the layer or for each channel, got one a neuron."
            )
        return _flat(gain)


class Lateral(Normalized):
    r"""A synapse and its neurons with fast lateral connections, which take away from all what the spike of one has explained.

    .. math:: v[t] = \beta\, (v[t-1] - \tilde D\, s[t-1]) + (1 - \beta)\, \tilde w \cdot in[t], \qquad
        \tilde D_{ja} = \frac{w_j \cdot w_a}{|w_j|^2 + 10^{-8}}

    With ``D = W W^T`` of the synapse's own weights, ``|w_j|^2 v_j = w_j · (y - z)`` exactly, where ``y`` is the moving average of
    the input and ``z[t] = \beta (z[t-1] + W^T s[t-1])`` what the spikes say of it: a neuron fires when the error along its
    weights exceeds its threshold, and its spike takes that error from all. That is send-on-delta in as many dimensions as there
    are inputs (see the tutorial ``send_on_delta``). Of a convolution, the connections are between the channels at one place,
    with all taps in the inner products. In the scan, one fused loop; the gradient goes through ``D``.

    Example:
        >>> import torch
        >>> from spiketide import Dense, Lateral, NormalizedLIF
        >>> layer = Lateral(Dense(2, 16, bias=False), NormalizedLIF(16, reset="none"))
        >>> y, state = layer(torch.rand(30, 1, 2))
        >>> tuple(y.shape), tuple(layer.matrix().shape)
        ((30, 1, 16), (16, 16))

    Shapes:
        ``x (T, B, *N_in)`` -> spikes ``(T', B, *n)``; state ``(synapse, (*neuron, s[t-1]))``; with ``connections="free"`` a
        parameter ``weight (C, C)``, row = receiving channel.

    Args:
        synapse: as :class:`Normalized`.
        neuron: with ``reset="none"``, since the connections do it: :class:`spiketide.NormalizedLIF`, or
            :class:`spiketide.LIF` without ``scale_input``.
        connections: ``"synapse"``: ``D`` as above; ``"free"``: a matrix of its own, learnt, that begins at ``D``.
        normalized: ``False``: drive, threshold and ``D`` as they are, not divided by the norm.

    Raises:
        ParameterError: as :class:`Normalized`; a neuron with a reset of its own or without a known leak; an unknown kind of
            connections; a decay of each neuron of a feature map.

    Reference: Zimmer, Pellegrini, Singh & Masquelier 2019; Boerlin, Machens & Denève 2013. Differs: they leave
        no choice of a free matrix.
    """

    def __init__(
        self, synapse: Synapse, neuron: Neuron, *, connections: str = "synapse", normalized: bool = True
    ) -> None:
        super().__init__(synapse, neuron)
        if connections not in CONNECTIONS:
            raise ParameterError(unknown("kind of lateral connections", connections, CONNECTIONS))
        if getattr(neuron, "reset", "soft") != "none":
            raise ParameterError(
                f"Lateral expected a neuron without a reset of its own, got {type(neuron).__name__}(reset="
                f"{getattr(neuron, 'reset', None)!r}): the lateral connections take the spike off, pass reset='none'."
            )
        if not hasattr(neuron, "membrane_decay") or getattr(neuron, "scale_input", False):
            raise ParameterError(
                f"Lateral expected a NormalizedLIF, or a LIF with scale_input=False, got {type(neuron).__name__}: what a spike "
                "takes off has to leak as the membrane does."
            )
        self.connections, self.normalized = connections, bool(normalized)
        if connections == "free":
            self.weight = nn.Parameter(torch.empty(neuron.shape[0], neuron.shape[0]))
            self.reset_parameters()

    def reset_parameters(self) -> None:
        """A free matrix begins at the ``D`` of the synapse as it is now."""
        if self.connections == "free":
            with torch.no_grad():
                self.weight.copy_(self._gram(self.synapse.rows()))

    def _gram(self, rows: Tensor) -> Tensor:
        gram = rows @ rows.t()
        return gram / (_norms(rows) + EPSILON).unsqueeze(1) if self.normalized else gram

    def matrix(self) -> Tensor:
        """What the spike of a channel (column) takes off a channel (row), before the leak ``(C, C)``."""
        return self.weight if self.connections == "free" else self._gram(self.synapse.rows())

    def prepared(self) -> tuple[dict[str, Tensor], Tensor | None]:
        """The weights over their squared norm, times the neuron's gain; what the spikes take off."""
        rows = self.synapse.rows()
        scale = 1.0 / (_norms(rows) + EPSILON) if self.normalized else rows.new_ones(())
        taken = self.weight if self.connections == "free" else self._gram(rows)
        decay = _flat(self.neuron.membrane_decay())  # type: ignore[operator]
        feedback = -taken * (decay.unsqueeze(1) if isinstance(decay, Tensor) and decay.dim() else decay)
        return self._scaled(self._gain() * scale), feedback

    def extra_repr(self) -> str:
        """What the connections are."""
        return f"connections={self.connections!r}, normalized={self.normalized}"


class NormalizedReadout(_Owned):
    r"""One score a class and step from a synapse, in units of its weights' squared norm, less a threshold.

    .. math:: y_j[t] = \frac{p_j[t]}{|w_j|^2 + 10^{-8}} - b_j

    with ``p[t] = w · in[t]``, or with a decay ``p[t] = \beta p[t-1] + (1 - \beta) w · in[t]``. Under
    :class:`~spiketide.readouts.MeanMembrane` without a decay it is the published read-out "mean", under
    :class:`~spiketide.readouts.MaxMembrane` with a decay their "max".

    Example:
        >>> import torch
        >>> from spiketide import Dense, NormalizedReadout
        >>> from spiketide.readouts import MeanMembrane
        >>> y, _ = NormalizedReadout(Dense(64, 10, bias=False))(torch.rand(30, 2, 64))
        >>> tuple(MeanMembrane()(y).shape)
        (2, 10)

    Shapes:
        ``x (T, B, *N_in)`` -> ``y (T', B, n)``, zero past a sample's end; state ``(synapse, membrane)``, the second
        ``()`` without a decay.

    Args:
        synapse: as :class:`Normalized`, with a flat output.
        decay: of the membrane, one number for the layer or an initialiser, above 0 and below 1; ``None``: none.
        threshold: the paper's b, any number, one for each class, always learnt.
        learn_decay: train the decay.

    Raises:
        ParameterError: as :class:`Normalized`; decay outside (0, 1).

    Reference: Zimmer, Pellegrini, Singh & Masquelier 2019.
    """

    def __init__(
        self,
        synapse: Synapse,
        *,
        decay: Value | None = None,
        threshold: Value = 1.0,
        learn_decay: bool = True,
    ) -> None:
        super().__init__(synapse)
        self.membrane: NormalizedLIF | None = None
        n = synapse.rows().shape[0]
        if decay is not None:
            self.membrane = NormalizedLIF(
                n, decay=decay, learn=("decay",) if learn_decay else (), reset="none", output="membrane"
            )
        self.threshold = Constant("threshold", threshold, (n,), learn=True, role="thresholds")

    def initial_state(self, x: Tensor) -> State:
        """``None`` leaves."""
        return (None, None)

    def prepared(self) -> tuple[dict[str, Tensor], Tensor | None]:
        """The weights over their squared norm, times the membrane's gain; no feedback."""
        scale = 1.0 / (_norms(self.synapse.rows()) + EPSILON)
        if self.membrane is not None:
            scale = scale * _flat(self.membrane.gain())
        return self._scaled(scale), None

    def forward(
        self, x: Tensor, state: State | None = None, *, lengths: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Project, average, and take the threshold off."""
        before, inner = self._parts(state)
        y, after = self._project(x, before, lengths, self.prepared()[0])
        lengths, end = self.synapse.lengths_after(lengths), ()
        if self.membrane is not None:
            y, end = self.membrane(y, inner, lengths=lengths, coefs=(*self.membrane.coefs()[:2], 1.0))
        return silence_padding(y - self.threshold().to(y.dtype), lengths), (after, end)
