"""Read-outs: from the last layer's output over time to one score per class.

Each is called as ``readout(y, lengths)`` and gives scores ``(B, C)`` for ``torch.argmax`` and for
:class:`spiketide.losses.CrossEntropy`. Each also has ``evolve(y, lengths)``, the score of every moment: what
the read-out would say had the sequence ended there.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from .errors import DataError, ParameterError, ShapeError
from .shapes import check_lengths, time_mask


class Readout(nn.Module, ABC):
    """From ``(T, B, C)`` to scores ``(B, C)``, over the valid steps of each sample.

    Shapes:
        ``y``: ``(T, B, C)``; ``lengths``: ``(B,)`` integers from 1 to ``T``, or ``None`` when all are ``T``.

    Raises:
        ShapeError: not a floating tensor ``(T, B, C)``, or lengths of another shape or above ``T``.
        DataError: a sample without a valid step (after the skipped ones) has no score.
    """

    def forward(self, y: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Scores ``(B, C)``."""
        lengths = self._check(y, lengths)
        return self._score(y, lengths)

    def evolve(self, y: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Scores ``(T, B, C)``: at ``t`` from the steps up to ``t`` only, then held past a sample's end.

        ``evolve(y)[t]`` equals ``readout(y[: t + 1])``, and ``evolve(y, lengths)[-1]`` equals ``readout(y,
        lengths)``.
        """
        lengths = self._check(y, lengths)
        return self._evolve(y, lengths)

    @abstractmethod
    def _score(self, y: Tensor, lengths: Tensor | None) -> Tensor:
        """The score from checked arguments."""

    @abstractmethod
    def _evolve(self, y: Tensor, lengths: Tensor | None) -> Tensor:
        """The score of every moment from checked arguments."""

    def _check(self, y: Tensor, lengths: Tensor | None, skip: int = 0) -> Tensor | None:
        """Refuse what has no score; hand the lengths on, on the device of ``y``."""
        name = type(self).__name__
        if not isinstance(y, Tensor) or not y.is_floating_point() or y.dim() != 3:
            got = f"{tuple(y.shape)} {y.dtype}" if isinstance(y, Tensor) else type(y).__name__
            raise ShapeError(
                f"{name} expected a floating point tensor (T, B, C), got {got}: give it the output of the "
                "last layer, with feature maps flattened (y.flatten(2))."
            )
        if lengths is not None:
            check_lengths(name, y, lengths)
        # This look waits for a GPU, but a sample without a step would have a made-up score.
        shortest = y.shape[0] if lengths is None or not lengths.numel() else int(lengths.min())
        if shortest <= skip:
            raise DataError(
                f"{name} expected at least {skip + 1} valid steps in every sample, got {shortest}: "
                + (
                    "lower skip, or drop samples this short."
                    if skip
                    else "drop empty sequences from the data."
                )
            )
        return None if lengths is None else lengths.to(y.device)


def _past(y: Tensor, lengths: Tensor) -> Tensor:
    """True past a sample's end, ``(T, B, 1)``."""
    return ~time_mask(lengths, y.shape[0]).unsqueeze(-1)


def _without_past(y: Tensor, lengths: Tensor | None, fill: float = 0.0) -> Tensor:
    # Filled, not multiplied: 0 * inf would let the padding in.
    return y if lengths is None else y.masked_fill(_past(y, lengths), fill)


def _valid_steps(y: Tensor, lengths: Tensor | None) -> Tensor | int:
    """Valid steps of each sample, to divide ``(B, C)`` by."""
    return y.shape[0] if lengths is None else lengths.unsqueeze(-1)


def _elapsed(y: Tensor, lengths: Tensor | None) -> Tensor:
    """Valid steps of each sample up to each moment, to divide ``(T, B, C)`` by."""
    steps = torch.arange(1, y.shape[0] + 1, device=y.device).view(-1, 1, 1)
    return steps if lengths is None else torch.minimum(steps, lengths.view(1, -1, 1))


class SpikeCount(Readout):
    """How often each output neuron spiked.

    ::

        score_c = sum_t s[t, c]             normalise: divided by the valid steps, a rate in spikes per step

    Example:
        >>> import torch
        >>> from spiketide.readouts import SpikeCount
        >>> s = torch.tensor([[[1.0, 0.0]], [[1.0, 1.0]], [[1.0, 0.0]]])
        >>> SpikeCount()(s).tolist(), SpikeCount()(s, torch.tensor([2])).tolist()
        ([[3.0, 1.0]], [[2.0, 1.0]])

    Args:
        normalise: Divide by the valid steps of the sample.
    """

    def __init__(self, *, normalise: bool = False) -> None:
        super().__init__()
        self.normalise = normalise

    def _score(self, y: Tensor, lengths: Tensor | None) -> Tensor:
        count = _without_past(y, lengths).sum(0)
        return count / _valid_steps(y, lengths) if self.normalise else count

    def _evolve(self, y: Tensor, lengths: Tensor | None) -> Tensor:
        count = _without_past(y, lengths).cumsum(0)
        return count / _elapsed(y, lengths) if self.normalise else count


class LastMembrane(Readout):
    """The output at the last valid step, ``score_c = y[length - 1, c]``.

    Example:
        >>> import torch
        >>> from spiketide.readouts import LastMembrane
        >>> y = torch.tensor([[[1.0]], [[2.0]], [[3.0]]])
        >>> LastMembrane()(y).item(), LastMembrane()(y, torch.tensor([2])).item()
        (3.0, 2.0)
    """

    def _score(self, y: Tensor, lengths: Tensor | None) -> Tensor:
        if lengths is None:
            return y[-1]
        return y[lengths.long() - 1, torch.arange(y.shape[1], device=y.device)]

    def _evolve(self, y: Tensor, lengths: Tensor | None) -> Tensor:
        index = _elapsed(y, lengths).long() - 1
        return y.gather(0, index.expand(y.shape))


class MeanMembrane(Readout):
    """The mean output over the valid steps, ``score_c = mean_t y[t, c]``.

    Example:
        >>> import torch
        >>> from spiketide.readouts import MeanMembrane
        >>> y = torch.tensor([[[1.0]], [[2.0]], [[6.0]]])
        >>> MeanMembrane()(y).item(), MeanMembrane()(y, torch.tensor([2])).item()
        (3.0, 1.5)
    """

    def _score(self, y: Tensor, lengths: Tensor | None) -> Tensor:
        return _without_past(y, lengths).sum(0) / _valid_steps(y, lengths)

    def _evolve(self, y: Tensor, lengths: Tensor | None) -> Tensor:
        return _without_past(y, lengths).cumsum(0) / _elapsed(y, lengths)


class MaxMembrane(Readout):
    """The largest output over the valid steps, ``score_c = max_t y[t, c]``.

    The gradient goes to the step of the maximum, in equal parts where several steps share it.

    Example:
        >>> import torch
        >>> from spiketide.readouts import MaxMembrane
        >>> y = torch.tensor([[[-1.0]], [[-3.0]], [[0.0]]])
        >>> MaxMembrane()(y).item(), MaxMembrane()(y, torch.tensor([2])).item()
        (0.0, -1.0)
    """

    def _score(self, y: Tensor, lengths: Tensor | None) -> Tensor:
        # Every sample has a valid step, so the fill never wins.
        return _without_past(y, lengths, -torch.inf).amax(0)

    def _evolve(self, y: Tensor, lengths: Tensor | None) -> Tensor:
        return _without_past(y, lengths, -torch.inf).cummax(0).values


class SumSoftmax(Readout):
    """The sum over time of each step's softmax over the classes.

    ::

        score_c = sum_{t >= skip} softmax_c(y[t])                   from 0 to the number of counted steps

    Every step has one vote, however large its membranes. Published with cross-entropy on these scores, that
    is, with a second softmax: :class:`spiketide.losses.CrossEntropy` on this read-out is exactly that.

    Example:
        >>> import torch
        >>> from spiketide.readouts import SumSoftmax
        >>> y = torch.zeros(5, 1, 2)
        >>> SumSoftmax()(y).tolist(), SumSoftmax(skip=2)(y).tolist()
        ([[2.5, 2.5]], [[1.5, 1.5]])

    Args:
        skip: First steps that have no vote, while the membranes settle. ``evolve`` is zero there.

    Raises:
        ParameterError: ``skip`` below 0.
        DataError: a sample with no valid step after the skipped ones.

    Reference:
        Hammouamri et al. 2023 (``skip=0``, padding included there and not here); Yin et al. 2021, SHD: the
        steps t > 10, counted from 0, which is ``skip=11``.
    """

    def __init__(self, *, skip: int = 0) -> None:
        super().__init__()
        if skip < 0:
            raise ParameterError(f"SumSoftmax expected skip of 0 or more steps, got {skip!r}.")
        self.skip = int(skip)

    def _check(self, y: Tensor, lengths: Tensor | None, skip: int = 0) -> Tensor | None:
        return super()._check(y, lengths, self.skip)

    def _votes(self, y: Tensor, lengths: Tensor | None) -> Tensor:
        # The padding is filled before the softmax too: the derivative of softmax(inf) is NaN, and 0 * NaN is
        # NaN.
        return _without_past(_without_past(y, lengths).softmax(-1), lengths)

    def _score(self, y: Tensor, lengths: Tensor | None) -> Tensor:
        return self._votes(y, lengths)[self.skip :].sum(0)

    def _evolve(self, y: Tensor, lengths: Tensor | None) -> Tensor:
        votes = self._votes(y, lengths)
        return torch.cat([torch.zeros_like(votes[: self.skip]), votes[self.skip :].cumsum(0)])


class FirstSpike(Readout):
    """How early each output neuron spiked: the earliest has the highest score.

    ::

        fired[t, c] = 1 - prod_{u <= t} (1 - s[u, c])       has c fired by t?
        score_c     = sum_t fired[t, c]                     = length - (step of the first spike), 0 if silent

    For spikes of 0 and 1 the score is that count exactly, and it is a polynomial in the spikes, so that
    gradients need no further surrogate: ``d score / d s[u]`` is the number of steps from ``u`` on up to
    which no other spike came, that is, what a spike at ``u`` gains over none there; it is 0 after the first
    spike. A silent neuron gets a gradient at every step, largest at the first. Classes that fire first in
    the same step tie; ``argmax`` then takes the lower index.

    Example:
        >>> import torch
        >>> from spiketide.readouts import FirstSpike
        >>> s = torch.tensor([[[0.0, 0.0, 0.0]], [[1.0, 0.0, 0.0]], [[1.0, 1.0, 0.0]]])
        >>> FirstSpike()(s).tolist()
        [[2.0, 1.0, 0.0]]

    Args:
        normalise: Divide by the valid steps of the sample: 1 fired in the first step, 0 never.

    Raises:
        DataError: values outside [0, 1], which are not spikes.
    """

    def __init__(self, *, normalise: bool = False) -> None:
        super().__init__()
        self.normalise = normalise

    def _fired(self, y: Tensor, lengths: Tensor | None) -> Tensor:
        s = _without_past(y, lengths)
        if not bool(((s >= 0) & (s <= 1)).all()):
            raise DataError(
                f"FirstSpike expected spikes in [0, 1], got values from {s.min().item():.4g} to "
                f"{s.max().item():.4g}: give it the output of a spiking neuron, or read a membrane with "
                "MaxMembrane."
            )
        return _without_past(1 - (1 - s).cumprod(0), lengths)

    def _score(self, y: Tensor, lengths: Tensor | None) -> Tensor:
        score = self._fired(y, lengths).sum(0)
        return score / _valid_steps(y, lengths) if self.normalise else score

    def _evolve(self, y: Tensor, lengths: Tensor | None) -> Tensor:
        score = self._fired(y, lengths).cumsum(0)
        return score / _elapsed(y, lengths) if self.normalise else score
