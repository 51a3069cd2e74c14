"""Normalisation over time and batch, and dropout that stays put in time."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from .errors import NonFiniteError, ParameterError, ShapeError
from .layer import Layer
from .shapes import check_finite, check_input, check_state, silence_padding, sizes, time_mask
from .types import State

_BY_BATCH = (
    "training mode only: every output depends on the statistics of all valid steps of all samples of the "
    "call; in eval mode, with the running statistics, the law holds"
)
_DRAWN = (
    "training mode only: with state None the mask is drawn from torch's global generator, so two calls agree "
    "only from the same seed and batch size; with a carried state, and in eval mode, the law holds"
)


class BatchNorm(Layer):
    """Batch normalisation of each channel over the valid steps of all samples.

    ::

        y[t, b, c] = (x[t, b, c] - mean_c) / sqrt(var_c + eps) * weight_c + bias_c

    In training mode ``mean_c`` and ``var_c`` (biased) are taken over the batch, the valid steps ``t <
    lengths[b]`` and, for a feature map, over space; the running statistics then move by ``running = (1 -
    momentum) * running + momentum * new`` (the new variance unbiased). In eval mode the running statistics
    are used. Without ``lengths`` this equals ``torch.nn.BatchNorm1d`` (``2d``, ``3d``) on the steps of all
    samples in one row.

    The running statistics are the one thing that a forward of this package writes into a module, and only in
    training mode. In several processes each one normalises by its own part of the batch.

    Example:
        >>> import torch
        >>> from spiketide.norms import BatchNorm
        >>> x = torch.tensor([[[1.0], [9.0]], [[3.0], [9.0]]])  # (T=2, B=2, N=1); sample 2 is empty
        >>> y, state = BatchNorm(1)(x, lengths=torch.tensor([2, 0]))
        >>> y.squeeze(-1).round(decimals=3).tolist()
        [[-1.0, 0.0], [1.0, 0.0]]

    Shapes:
        ``x`` and ``y``: ``(T, B, N)`` or ``(T, B, C, *space)``; ``weight``, ``bias``, ``running_mean``,
        ``running_var``: ``(N,)`` or ``(C,)``; the state is ``()``.

    Args:
        n: Features ``N``, or the shape ``(C, *space)`` of a feature map.
        momentum: Share of the new statistics in the running ones, 0 to 1.
        eps: Added to the variance, in squared units of ``x``.
        affine: Learn ``weight`` (begins at 1) and ``bias`` (begins at 0).

    Raises:
        ParameterError: a size below 1, ``momentum`` outside [0, 1], ``eps`` not above 0.
        ShapeError: wrong input; fewer than two values per channel in training mode.
        NonFiniteError: NaN or infinity in training mode on the CPU; the running statistics stay as they were.

    Reference:
        Ioffe and Szegedy 2015, arXiv 1502.03167. Over time and batch as in Hammouamri et al. 2023 (learned
        delays), where padded steps enter the statistics; here they do not, and their outputs are zero.
    """

    exempt: ClassVar[dict[str, str]] = {
        "streaming": _BY_BATCH,
        "causality": _BY_BATCH,
        "batch_independence": _BY_BATCH,
        "purity": "training mode only: a forward updates the running statistics; in eval mode it changes "
        "nothing",
    }

    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self, n: int | tuple[int, ...], *, momentum: float = 0.1, eps: float = 1e-5, affine: bool = True
    ) -> None:
        super().__init__()
        self.shape = sizes("BatchNorm", n)
        if not 0.0 <= momentum <= 1.0:
            raise ParameterError(f"BatchNorm expected momentum in [0, 1], got {momentum!r}.")
        if not (eps > 0.0 and math.isfinite(eps)):
            raise ParameterError(f"BatchNorm expected eps above 0, got {eps!r}.")
        self.momentum, self.eps = float(momentum), float(eps)
        channels = self.shape[0]
        self.weight = nn.Parameter(torch.ones(channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(channels)) if affine else None
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(
        self, x: Tensor, state: State | None = None, *, lengths: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Normalise ``T`` steps; steps past a sample's end are neither counted nor let through."""
        check_input(self, x, self.shape, lengths)
        if state is not None:
            check_state(self, state, ())
        before = self._statistics(x)
        if lengths is None:
            y = self._normalise(x.flatten(0, 1)).unflatten(0, x.shape[:2])
            self._check_finite(before, x, None)
            return y, ()
        if self.training:
            valid = time_mask(lengths.to(x.device), x.shape[0])
            # Only the valid rows are handed on, so that nothing in the padding, not even NaN, can reach the
            # statistics.
            rows = self._normalise(x[valid])
            self._check_finite(before, x, lengths)
            return rows.new_zeros(x.shape).index_put((valid,), rows), ()
        rows = self._normalise(silence_padding(x, lengths).flatten(0, 1))
        return silence_padding(rows.unflatten(0, x.shape[:2]), lengths), ()

    def _normalise(self, rows: Tensor) -> Tensor:
        """Normalise ``(valid steps, C, *space)``."""
        per_channel = rows.numel() // self.shape[0]
        if self.training and per_channel < 2:
            raise ShapeError(
                "BatchNorm expected at least 2 valid values per channel in training mode, got "
                f"{per_channel}: a variance needs two. Use a larger batch (drop a last batch of one), more "
                "steps, or eval mode."
            )
        return functional.batch_norm(
            rows,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            training=self.training,
            momentum=self.momentum,
            eps=self.eps,
        )

    def _statistics(self, x: Tensor) -> tuple[Tensor, Tensor] | None:
        """The running statistics before a forward that moves them; on a GPU a look at them would wait for the device."""
        if not self.training or x.device.type != "cpu" or torch.compiler.is_compiling():
            return None
        return self.running_mean.clone(), self.running_var.clone()

    def _check_finite(self, before: tuple[Tensor, Tensor] | None, x: Tensor, lengths: Tensor | None) -> None:
        """Put the running statistics back if what came in was not finite: they hold all of it, and would never forget it."""
        if before is None or math.isfinite(float((self.running_mean + self.running_var).sum())):
            return
        if not all(bool(torch.isfinite(statistic).all()) for statistic in before):
            raise NonFiniteError(
                "BatchNorm: the running statistics are NaN or infinite; its training diverged."
            )
        self.running_mean.copy_(before[0])
        self.running_var.copy_(before[1])
        check_finite("BatchNorm", x, lengths)
        raise NonFiniteError("BatchNorm: the variance of its input overflowed; lower the input's scale.")

    def extra_repr(self) -> str:
        """The arguments, for ``print(module)``."""
        n = self.shape[0] if len(self.shape) == 1 else self.shape
        return f"{n}, momentum={self.momentum}, eps={self.eps}, affine={self.weight is not None}"


class Dropout(Layer):
    """Dropout with one mask per sample and feature, the same at every step.

    ::

        m[b, n] = 1 / (1 - p) with probability 1 - p, else 0        drawn once, when a sequence begins
        y[t, b, n] = m[b, n] * x[t, b, n]

    A mask that changed from step to step would be noise that the membranes average away; a fixed one silences
    a neuron for the whole sample. The mask is the layer's state: it is drawn when ``state`` is ``None`` and
    carried on with the state, so that a streamed sequence keeps it. In eval mode, and with ``p`` 0, the layer
    is the identity and its state is ``()``.

    Example:
        >>> import torch
        >>> from spiketide.norms import Dropout
        >>> _ = torch.manual_seed(0)
        >>> layer = Dropout(0.5)
        >>> y, state = layer(torch.ones(3, 1, 6))
        >>> bool((y[0] == y[2]).all()), sorted(set(y.flatten().tolist()))
        (True, [0.0, 2.0])
        >>> again, _ = layer(torch.ones(1, 1, 6), state)
        >>> bool((again[0] == y[0]).all())
        True

    Shapes:
        ``x`` and ``y``: ``(T, B, *N)``; the state in training mode: ``(m,)`` with ``m`` ``(B, *N)``.

    Args:
        p: Probability that a feature of a sample is silenced, in [0, 1).

    Raises:
        ParameterError: ``p`` outside [0, 1).
        ShapeError: wrong input, or a state of another batch or of the other mode.

    Reference:
        Srivastava et al. 2014; the mask fixed in time as in Hammouamri et al. 2023 (learned delays), section
        "dropout".
    """

    exempt: ClassVar[dict[str, str]] = {"batch_independence": _DRAWN}

    def __init__(self, p: float) -> None:
        super().__init__()
        if not 0.0 <= p < 1.0:
            raise ParameterError(f"Dropout expected a probability p in [0, 1), got {p!r}.")
        self.p = float(p)

    def initial_state(self, x: Tensor) -> State:
        """A freshly drawn mask in training mode, ``()`` in eval mode."""
        if not self.training or self.p == 0.0:
            return ()
        return (functional.dropout(x.new_ones(x.shape[1:]), self.p, training=True),)

    def begin(self, x: Tensor, state: State | None) -> State:
        """The state to go on from for ``x (T, B, *N)``: as given and checked, or drawn."""
        if state is None:
            return self.initial_state(x)
        check_state(self, state, (x.new_empty(x.shape[1:]),) if self.training and self.p > 0.0 else ())
        return state

    def forward(
        self, x: Tensor, state: State | None = None, *, lengths: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Multiply every step by the mask of its sample."""
        check_input(self, x, tuple(x.shape[2:]) if isinstance(x, Tensor) else (), lengths)
        state = self.begin(x, state)
        return silence_padding(x * state[0] if state else x, lengths), state

    def extra_repr(self) -> str:
        """The arguments, for ``print(module)``."""
        return f"{self.p}"
