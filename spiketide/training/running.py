"""Read-outs of a sequence that is still coming: the score of everything so far, at a cost that does not grow."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import ParameterError
from ..readouts import LastMembrane, MaxMembrane, MeanMembrane, Readout, SpikeCount, SumSoftmax

RUNNING = (SpikeCount, LastMembrane, MeanMembrane, MaxMembrane, SumSoftmax)
"""Read-outs that need of the past no more than one number a class and the number of steps."""


class RunningReadout:
    """``readout.evolve`` of one sequence, fed a few steps at a time.

    What it keeps is a sum or a maximum in double precision, and the number of steps.

    Example:
        >>> import torch
        >>> from spiketide.readouts import MeanMembrane
        >>> from spiketide.training.running import RunningReadout
        >>> running = RunningReadout(MeanMembrane())
        >>> running(torch.tensor([[1.0], [3.0]])).tolist(), running(torch.tensor([[8.0]])).tolist()
        ([[1.0], [2.0]], [[4.0]])

    Shapes:
        ``y (n, C)``, the next steps -> the scores after each of them ``(n, C)``.

    Args:
        readout: one of :data:`RUNNING`.

    Raises:
        ParameterError: another read-out.
    """

    def __init__(self, readout: Readout) -> None:
        if type(readout) not in RUNNING:
            raise ParameterError(
                f"{type(readout).__name__} has no form for a stream; known: {', '.join(kind.__name__ for kind in RUNNING)}. "
                "Train with one of these."
            )
        self.readout = readout
        self.reset()

    def reset(self) -> None:
        """Begin another sequence."""
        self.steps = 0
        self._kept: Tensor | None = None

    def __call__(self, y: Tensor) -> Tensor:
        """The scores after each of the next steps."""
        readout, first = self.readout, self.steps
        self.steps += len(y)
        if isinstance(readout, LastMembrane) or not len(y):
            return y
        values = y.double()
        if isinstance(readout, SumSoftmax):
            values = values.softmax(-1)
            values[: max(0, readout.skip - first)] = 0.0  # these steps have no vote
        if self._kept is not None:
            values = torch.cat([self._kept, values])
        so_far = values.cummax(0).values if isinstance(readout, MaxMembrane) else values.cumsum(0)
        self._kept = so_far[-1:].clone()
        so_far = so_far[-len(y) :]
        if isinstance(readout, MeanMembrane) or (isinstance(readout, SpikeCount) and readout.normalise):
            so_far = so_far / torch.arange(first + 1, self.steps + 1).unsqueeze(1)
        return so_far.to(y.dtype)
