"""Full back-propagation through time in memory that grows with the square root of the sequence."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .compose import Sequential, as_layer
from .errors import NonFiniteError, ParameterError, ShapeError
from .layer import TRAINING_ONLY, Layer
from .shapes import check_lengths
from .types import State

_again: ContextVar[bool] = ContextVar("spiketide_recomputing", default=False)


def recomputing() -> bool:
    """Whether a :class:`Checkpointed` layer is running a chunk a second time, in the backward: what looks on looks away then."""
    return _again.get()


class _SecondTime:
    """Says so while it is open; opened once for every backward through a graph that is retained."""

    def __enter__(self) -> None:
        self.token = _again.set(True)

    def __exit__(self, *error: object) -> None:
        _again.reset(self.token)


def _contexts() -> tuple[Any, Any]:
    return contextlib.nullcontext(), _SecondTime()


class Checkpointed(Layer):
    """A layer, or a whole network, that is differentiated through all of time while little of time is kept.

    The sequence is run in chunks of ``chunk`` steps that hand on their state. Of a chunk only its input and the state at its
    beginning are kept; what its backward needs is computed anew when the backward comes to it. With ``T / chunk`` states and one
    chunk's intermediate values at a time, about ``sqrt(T)`` steps a chunk make the memory grow with ``sqrt(T)``, for one more
    forward. Input and output of the layer itself are whole, and so are the outputs that :func:`spiketide.probe.record` is asked
    to keep.

    Outputs and states are those of the plain run, as its layers stream; gradients too, up to the order in which the parts of a
    weight's gradient are added. Without gradients the sequence is run at once. ``checkpoint=`` of a neuron does the same inside
    one scan; this does it for all that lies between, synapses included.

    Example:
        >>> import torch
        >>> from spiketide import ALIF, Checkpointed, Dense, LeakyIntegrator, Recurrent
        >>> parts = [Dense(4, 16), Recurrent(ALIF(16), Dense(16, 16)), Dense(16, 2), LeakyIntegrator(2)]
        >>> model = Checkpointed(parts)
        >>> y, state = model(torch.rand(100, 3, 4))
        >>> y.square().mean().backward()
        >>> tuple(y.shape), model.ranges(100)[:2], len(model.ranges(100))
        ((100, 3, 2), [(0, 10), (10, 20)], 10)

    Shapes:
        as its layer; the layer's state.

    Args:
        layer: the layer, or a list of layers, which become a :class:`spiketide.Sequential`.
        chunk: steps of a chunk; ``None``: about ``sqrt(T)``.

    Raises:
        ParameterError: a chunk that is no positive number of steps; a layer that cannot go on from a state (``Bidirectional``, a
            delay with a tail); in a forward with gradients, a layer that cannot in training mode (``BatchNorm``, whose statistics
            would be those of each chunk).
        ShapeError: a layer that makes chunks longer or shorter.

    Reference: Chen et al. 2016, "Training deep nets with sublinear memory cost", over time as in Gruslys et al. 2016. A mask of
        ``Dropout`` is part of the state, hence one for all chunks; other random numbers are drawn the same the second time.
    """

    def __init__(self, layer: nn.Module | Sequence[nn.Module], chunk: int | None = None) -> None:
        super().__init__()
        if isinstance(layer, (list, tuple)):
            layer = Sequential(*layer)
        if not isinstance(layer, nn.Module):
            raise ParameterError(
                f"Checkpointed expected a layer or a list of layers, got {type(layer).__name__}."
            )
        if chunk is not None and (isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1):
            raise ParameterError(f"Checkpointed expected a chunk of 1 or more steps, or None, got {chunk!r}.")
        self.layer, self.chunk = as_layer(layer), chunk
        for part in self.layer.modules():
            reason = getattr(part, "exempt", {}).get("streaming", "")
            if reason and not reason.startswith(TRAINING_ONLY):
                raise ParameterError(
                    f"Checkpointed runs a sequence in chunks, and {type(part).__name__} needs it whole ({reason}): leave it out "
                    "of the layer, or checkpoint the layers inside it."
                )
            if getattr(part, "tail", 0):
                raise ParameterError(
                    f"Checkpointed expected layers that give one step for each, got {type(part).__name__} with a tail, which "
                    "would grow on every chunk: use tail=0 there."
                )

    def initial_state(self, x: Tensor) -> State:
        """The layer's."""
        return self.layer.initial_state(x)

    def lengths_after(self, lengths: Tensor | None) -> Tensor | None:
        """The layer's."""
        return self.layer.lengths_after(lengths)

    def ranges(self, steps: int) -> list[tuple[int, int]]:
        """First step and end of every chunk of a sequence with gradients."""
        size = self.chunk
        if size is None:
            # as many chunks as give sqrt(T) steps each, and all of nearly one size
            size = math.ceil(steps / max(1, math.ceil(steps / max(1, math.isqrt(steps)))))
        return [(t, min(steps, t + size)) for t in range(0, steps, max(1, size))]

    def forward(
        self, x: Tensor, state: State | None = None, *, lengths: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Run the layer, chunk by chunk where there will be a backward."""
        if lengths is not None:
            check_lengths("Checkpointed", x, lengths)
            lengths = lengths.to(x.device)
        ranges = self.ranges(x.shape[0])
        if not torch.is_grad_enabled() or len(ranges) < 2:
            return self.layer(x, state, lengths=lengths)
        self._check_modes()
        outputs = []
        for start, stop in ranges:
            part = None if lengths is None else (lengths - start).clamp(0, stop - start)
            try:
                y, state = checkpoint(
                    self.layer,
                    x[start:stop],
                    state,
                    lengths=part,
                    use_reentrant=False,
                    preserve_rng_state=True,
                    context_fn=_contexts,
                )
            except NonFiniteError as error:
                if not start:
                    raise
                raise NonFiniteError(
                    f"{error} (Checkpointed: its steps count from {start}, where this chunk begins.)"
                ) from error
            if y.shape[0] != stop - start:
                raise ShapeError(
                    f"Checkpointed expected {stop - start} steps out of a chunk of as many, got {y.shape[0]}: its layer must "
                    "give one step for each."
                )
            outputs.append(y)
        return torch.cat(outputs), state  # type: ignore[return-value]

    def _check_modes(self) -> None:
        for part in self.layer.modules():
            if part.training and "streaming" in getattr(part, "exempt", {}):
                raise ParameterError(
                    f"Checkpointed cannot train through {type(part).__name__}: its statistics would be those of each chunk, and "
                    "be counted twice. Put it outside, or set it to eval() and train with its running statistics."
                )

    def extra_repr(self) -> str:
        """The arguments, for ``print(module)``."""
        return f"chunk={self.chunk}"
