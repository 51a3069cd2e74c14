"""S4NN and BS4NN: single-spike networks that learn online, image by image, as published."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..encoders.base import check_values
from ..errors import DataError, EngineError, NonFiniteError, ParameterError, ShapeError, unknown
from ..kernels.first_spike import Fired
from .network import decide, optimistic

log = logging.getLogger("spiketide")

PIXEL_CODES = ("scaled", "byte")


class PixelTimes(nn.Module):
    """Spike times of pixels as in S4NN and BS4NN: bright ones first, black ones never.

    ::

        I = round(255 x)        "scaled":  t = floor((255 - I) / 255 steps)        "byte":  t = 255 - I

    Example:
        >>> import torch
        >>> from spiketide.timing import PixelTimes
        >>> pixels = torch.tensor([[255.0, 254.0, 1.0, 0.0]]) / 255
        >>> PixelTimes()(pixels).tolist(), PixelTimes(code="byte")(pixels).tolist()
        ([[0.0, 1.0, 254.0, inf]], [[0.0, 1.0, 254.0, inf]])
        >>> PixelTimes(64)(pixels).tolist()
        [[0.0, 0.0, 63.0, inf]]

    Shapes:
        ``x (B, *N)`` in [0, 1] -> spike times ``(B, *N)``, steps; ``inf``: never.

    Args:
        steps: of the window, with ``"scaled"``; later spikes do not exist.
        code: ``"scaled"`` (S4NN) or ``"byte"`` (BS4NN).

    Raises:
        ParameterError: ``steps`` not a positive integer, an unknown code.
        ShapeError, DataError: not a floating tensor; NaN, Inf or values outside [0, 1].

    Reference:
        Kheradpisheh & Masquelier 2020; Kheradpisheh, Mirsadeghi & Masquelier 2022. There a black pixel fires at the end of the
        window, or one step before, where it has no effect.
    """

    def __init__(self, steps: int = 256, *, code: Literal["scaled", "byte"] = "scaled"):
        super().__init__()
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise ParameterError(f"PixelTimes expected steps as a positive integer, got {steps!r}.")
        if code not in PIXEL_CODES:
            raise ParameterError("PixelTimes: " + unknown("code", code, PIXEL_CODES))
        self.steps, self.code = steps, code

    def forward(self, x: Tensor) -> Tensor:
        """Spike times of intensities."""
        check_values("PixelTimes", x)
        dark = (255 * (1 - x)).round_().to(torch.int32)
        late = dark if self.code == "byte" else (dark * self.steps).div_(255, rounding_mode="floor")
        return late.to(x.dtype).masked_fill_((dark == 255) | (late >= self.steps), math.inf)

    def extra_repr(self) -> str:
        """Settings, as ``print`` shows them."""
        return f"{self.steps}, code={self.code!r}"


class Accuracy(NamedTuple):
    """How often the outputs are right: shares of the images.

    ``strict``: the right output fires first; of several at once the one with the larger membrane at that step, then the lower
    number. ``optimistic``: the right output is among those that fire first, as the publications count; where none fires, it has
    the largest membrane three steps before the end. ``no_fire``: no output fires: never a strict hit.
    """

    strict: float
    optimistic: float
    no_fire: float


class OnlineNetwork(nn.Module):
    """Fully connected layers of neurons that fire at most once, learnt one image at a time: :class:`S4NN`, :class:`BS4NN`.

    Weights are changed by :meth:`learn`, never by autograd or an optimiser. The state dict holds all that training needs: the
    weights, and how often each neuron has fired since :meth:`begin_epoch`.

    Args:
        sizes: inputs, neurons of each layer.
        steps: of the window.
        threshold: of the membranes.
        lr: learning rate.
        margin: steps that a wrong output is to fire behind the first.
        weight_decay: after each image, weights times ``1 - lr * weight_decay``.
        spread: of each layer, initial weights are uniform from 0 to this; ``None``: 5, and 48 in layers behind the first.
        dead: hidden neurons that fired on a smaller share of the images of an epoch get new weights; 0: never.
        updated: errors travel back through the weights after their update, as published; ``False``: before it.
        wake: when no output fires, the right one is told to fire a margin before the end; ``False``: nothing is learnt then.
    """

    scale: Tensor | None
    images: Tensor

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        steps: int,
        threshold: float,
        lr: float,
        margin: int,
        weight_decay: float,
        spread: Sequence[float] | None,
        dead: float,
        updated: bool,
        wake: bool,
    ):
        super().__init__()
        word = type(self).__name__
        sizes = tuple(sizes)
        if len(sizes) < 2 or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in sizes):
            raise ParameterError(
                f"{word} expected sizes as two or more positive integers, inputs first, got {list(sizes)!r}."
            )
        for name, number, least in (("steps", steps, 4), ("margin", margin, 1)):
            if isinstance(number, bool) or not isinstance(number, int) or number < least:
                raise ParameterError(
                    f"{word} expected {name} as an integer of {least} or more, got {number!r}."
                )
        if steps >= 2**15:
            raise ParameterError(f"{word} expected fewer than {2**15} steps, got {steps}.")
        if margin >= steps:
            raise ParameterError(
                f"{word}: a margin of {margin} steps does not fit into a window of {steps}: lower margin or raise steps."
            )
        for name, value in (("threshold", threshold), ("lr", lr)):
            if not 0 < value < math.inf:
                raise ParameterError(f"{word} expected {name} above 0, got {value!r}.")
        if not 0 <= weight_decay or not lr * weight_decay < 1:
            raise ParameterError(
                f"{word} expected weight_decay from 0 to below 1 / lr = {1 / lr:g}, got {weight_decay!r}."
            )
        if not 0 <= dead < 1:
            raise ParameterError(f"{word} expected dead as a share from 0 to below 1, got {dead!r}.")
        spread = (5.0, *[48.0] * (len(sizes) - 2)) if spread is None else tuple(float(s) for s in spread)
        if len(spread) != len(sizes) - 1 or not all(0 < s < math.inf for s in spread):
            raise ParameterError(
                f"{word} expected spread as {len(sizes) - 1} positive numbers, one a layer, got {list(spread)!r}."
            )
        self.sizes, self.spread = sizes, spread
        self.steps, self.threshold, self.lr, self.margin = steps, float(threshold), float(lr), margin
        self.weight_decay, self.dead, self.updated, self.wake = (
            float(weight_decay),
            float(dead),
            updated,
            wake,
        )
        # Stored by input: what one spike adds to a layer lies together.
        self.weights = nn.ParameterList(
            nn.Parameter(torch.empty(n, m).t(), requires_grad=False)
            for n, m in zip(sizes, sizes[1:], strict=False)
        )
        self.scale = None
        self.register_buffer("images", torch.zeros((), dtype=torch.int64))
        for layer, n in enumerate(sizes[1:]):
            self.register_buffer(f"fired_{layer}", torch.zeros(n, dtype=torch.int64))
        self.reset_parameters()

    @property
    def fired(self) -> list[Tensor]:
        """On how many images of this epoch each neuron has fired, layer by layer."""
        return [self.get_buffer(f"fired_{layer}") for layer in range(len(self.weights))]

    def reset_parameters(self) -> None:
        """Draw all weights anew and forget what has fired."""
        with torch.no_grad():
            for weight, spread in zip(self.weights, self.spread, strict=True):
                weight.copy_(spread * torch.rand(weight.shape, dtype=weight.dtype))
            for count in (self.images, *self.fired):
                count.zero_()

    def forward(self, times: Tensor) -> Tensor:
        """Spike times of the outputs, ``(B, n_out)``; ``inf`` where one is silent."""
        return self.fire(times).times

    def fire(self, times: Tensor) -> Fired:
        """The same with the potentials of all outputs when the first one fires; where none does, three steps before the end.

        The field ``slope`` is empty: the membrane jumps.

        Args:
            times: of the inputs, ``(B, *N)``.
        """
        return self.follow(times)[0]

    def follow(self, times: Tensor) -> tuple[Fired, dict[str, Tensor]]:
        """The same, and the spike times of every layer by name.

        Args:
            times: of the inputs.
        """
        from ..kernels import online_timing
        from ..kernels.threading import threads

        given = self._whole(times)
        rows, signs, scale, membrane = self._arrays()
        out = tuple(np.empty((len(given), n), np.int32) for n in self.sizes[1:])
        potential = torch.empty(len(given), self.sizes[-1], dtype=self.weights[0].dtype)
        online_timing.evaluate(
            given, rows, signs, scale, np.empty(0, membrane), self.threshold, self.steps,
            min(len(given), 4 * threads()), out, potential.numpy(),
        )  # fmt: skip
        seen = {f"{layer}": self._times(steps, times.dtype) for layer, steps in enumerate(out)}
        return Fired(seen[f"{len(out) - 1}"], potential.to(times.dtype), times.new_empty(0)), seen

    @torch.no_grad()
    def learn(self, times: Tensor, y: Tensor) -> Fired:
        """Learn from these images one after the other, in their order.

        Args:
            times: of the inputs, ``(B, *N)``.
            y: labels, ``(B,)``.

        Returns:
            what the outputs said to each image before it was learnt, as :meth:`fire` does.

        Raises:
            ShapeError, NonFiniteError, DataError: input or labels that do not fit.
            EngineError: the weights are not on the CPU.
            NonFiniteError: a scale that is not above 0 any more: training diverged.
        """
        from ..kernels import online_timing

        given, labels = self._whole(times), self._labels(y, len(times))
        rows, signs, scale, membrane = self._arrays()
        real = rows[0].dtype.type

        def work(kind: Any) -> tuple[Any, ...]:
            return tuple(np.empty(n, kind) for n in self.sizes[1:])

        out = np.empty((len(given), self.sizes[-1]), np.int32)
        potential = torch.empty(len(given), self.sizes[-1], dtype=self.weights[0].dtype)
        online_timing.learn(
            given, labels, rows, signs, scale, work(real), work(real), work(real), work(real), work(np.int32),
            work(membrane), self.threshold, self.steps, self.lr, self.weight_decay, self.margin, self.wake, self.updated,
            self._lr_scale(), out, potential.numpy(), tuple(count.numpy() for count in self.fired),
        )  # fmt: skip
        self.images += len(given)
        self._store(rows, scale)
        return Fired(self._times(out, times.dtype), potential.to(times.dtype), times.new_empty(0))

    @torch.no_grad()
    def begin_epoch(self) -> int:
        """Give new weights to hidden neurons that hardly fired since the last call, and count anew.

        They are drawn from torch's global generator. To be called before an epoch, not after one: what is validated and kept is
        then what was learnt.

        Returns:
            how many got new weights.
        """
        drawn, images = 0, int(self.images)
        for layer, count in enumerate(self.fired):
            if images and not bool(count.any()):
                log.warning(
                    "%s: no neuron of layer %d fired on any of %d images: lower threshold or raise spread, and see that the "
                    "input fires at all",
                    type(self).__name__,
                    layer,
                    images,
                )
            if layer < len(self.weights) - 1 and images:
                silent = count < self.dead * images
                weight = self.weights[layer]
                new = self.spread[layer] * torch.rand(int(silent.sum()), weight.shape[1], dtype=weight.dtype)
                weight[silent] = new
                drawn += len(new)
            count.zero_()
        self.images.zero_()
        return drawn

    def accuracy(self, times: Tensor, y: Tensor) -> Accuracy:
        """Shares of these images that are named right.

        Args:
            times: of the inputs.
            y: labels.
        """
        labels = torch.from_numpy(self._labels(y, len(times)))
        return count_hits(self.fire(times), labels)

    def _lr_scale(self) -> float:
        return 0.0

    def _arrays(self) -> tuple[Any, Any, Any, Any]:
        """Weights by input, their signs and scales, type of the membranes: what the kernels take."""
        for weight in self.weights:
            if weight.device.type != "cpu":
                raise EngineError(
                    f"{type(self).__name__} learns and runs on the CPU, its weights are on {weight.device}: model.cpu()."
                )
            if weight.dtype not in (torch.float32, torch.float64):
                raise ShapeError(
                    f"{type(self).__name__} expected weights of float32 or float64, got {weight.dtype}."
                )
        rows = tuple(weight.detach().t().contiguous().numpy() for weight in self.weights)
        if self.scale is None:
            return rows, None, None, rows[0].dtype
        signs = tuple(np.where(w >= 0, np.int8(1), np.int8(-1)) for w in rows)
        scale = self.scale.detach().to(torch.float64, copy=True).numpy()
        return rows, signs, scale, np.int16 if max(self.sizes) < 2**15 else np.int32

    def _store(self, rows: Any, scale: Any) -> None:
        """Take back what was learnt, where the kernel had a copy."""
        for weight, learnt in zip(self.weights, rows, strict=True):
            if learnt.ctypes.data != weight.data_ptr():
                weight.copy_(torch.from_numpy(learnt).t())
        if self.scale is not None:
            if not bool((scale > 0).all()):
                raise NonFiniteError(
                    f"the scales of the layers became {scale.tolist()}, expected numbers above 0: training diverged, lower lr_scale."
                )
            self.scale.copy_(torch.from_numpy(scale))

    def _whole(self, times: Tensor) -> Any:
        """Checked input as whole steps ``(B, n_in)``, ``steps`` for never."""
        word, n_in = type(self).__name__, self.sizes[0]
        if not isinstance(times, Tensor) or not times.is_floating_point():
            got = times.dtype if isinstance(times, Tensor) else type(times).__name__
            raise ShapeError(
                f"{word} expected spike times in floating point (inf: never), got {got}: times.float()."
            )
        if times.dim() < 2 or math.prod(times.shape[1:]) != n_in:
            raise ShapeError(
                f"{word} expected spike times (B, *N) with {n_in} inputs a sample, got {tuple(times.shape)}."
            )
        if times.shape[0] == 0:
            raise ShapeError(f"{word} expected at least one sample, got {tuple(times.shape)}.")
        given = times.detach().flatten(1)
        if not bool(given.amin() >= 0):
            bad = int((~(given >= 0)).sum())
            raise NonFiniteError(
                f"{word} expected spike times from 0 on, or inf, got {bad} of {given.numel()} that are NaN or negative."
            )
        whole = given.clamp(max=self.steps).to(torch.int32)
        fits = (whole == given) & (whole < self.steps) | torch.isinf(given)
        if not bool(fits.all()):
            odd = float(given[~fits][0])
            raise DataError(
                f"{word} expected whole steps from 0 to {self.steps - 1}, or inf, got {int((~fits).sum())} others, for example "
                f"{odd:g}: encode the input with spiketide.timing.PixelTimes({self.steps}), or round it down."
            )
        return whole.contiguous().numpy()

    def _labels(self, y: Tensor, images: int) -> Any:
        word, classes = type(self).__name__, self.sizes[-1]
        if not isinstance(y, Tensor) or y.is_floating_point() or y.shape != (images,):
            got = f"{tuple(y.shape)} {y.dtype}" if isinstance(y, Tensor) else type(y).__name__
            raise ShapeError(f"{word} expected whole labels ({images},), one an image, got {got}.")
        if int(y.min()) < 0 or int(y.max()) >= classes:
            raise DataError(
                f"{word} has outputs 0 to {classes - 1}, got labels from {int(y.min())} to {int(y.max())}."
            )
        return y.detach().to("cpu", torch.int64).contiguous().numpy()

    def _times(self, steps: Any, kind: torch.dtype) -> Tensor:
        """Whole steps as spike times; a spike at the end is none."""
        found = torch.from_numpy(steps)
        return found.to(kind).masked_fill_(found >= self.steps, math.inf)

    def extra_repr(self) -> str:
        """Sizes and settings, as ``print(network)`` shows them."""
        sizes = "-".join(map(str, self.sizes))
        return (
            f"{sizes}, steps={self.steps}, threshold={self.threshold:g}, lr={self.lr:g}, margin={self.margin}"
        )


class S4NN(OnlineNetwork):
    r"""Integrate-and-fire neurons without leak, one spike each, trained by backpropagation of spike times: exactly as published.

    .. math::

        V_j(t) = \sum_i w_{ji} [t_i \le t] \qquad t_j = 1 + \min \{t : V_j(t) > \theta\} \qquad
        \delta_k = \frac{t^*_k - t_k}{T} \text{, then } \delta / \lVert\delta\rVert

        w_{kj} \leftarrow (1 - \eta\lambda)(w_{kj} - \eta\,\delta_k [t_j < t_k]) \qquad
        \delta_j = \sum_k [t_j < t_k]\, \delta_k w_{kj} \text{, then } \delta / \lVert\delta\rVert

    A neuron that has not fired by ``T - 1`` is silent, its time is ``T``. Targets: the right output where the first one is, wrong
    outputs less than a margin behind the first one a margin behind it, but not behind ``T``; others stay. When no output fires, the
    right one should at ``T - margin``.

    Example:
        >>> import torch
        >>> from spiketide.timing import S4NN
        >>> net = S4NN([2, 8, 2], steps=16, threshold=1.0, spread=[2.0, 2.0], lr=0.05, margin=2)
        >>> times = torch.tensor([[0.0, 5.0], [5.0, 0.0]])
        >>> for _ in range(30):
        ...     said = net.learn(times, torch.tensor([0, 1]))
        >>> net.accuracy(times, torch.tensor([0, 1])).strict
        1.0

    Shapes:
        ``times (B, *N)``, whole steps below ``steps`` or ``inf`` -> ``(B, n_out)``. Parameters: ``weights``, each ``(n_out, n_in)``.

    Args:
        sizes: inputs, neurons of each layer.
        steps: ``T``, of the window.
        threshold: of the membranes, which fire above it.
        lr: learning rate, the paper's eta.
        margin: steps, the paper's gamma.
        weight_decay: the paper's lambda.
        spread: of each layer, initial weights are uniform from 0 to this; ``None``: 5, and 48 in layers behind the first.
        dead: hidden neurons that fired on a smaller share of the images of an epoch get new weights; 0: never.
        updated: errors travel back through the weights after their update, as published; ``False``: before it.

    Raises:
        ParameterError: a number out of range, a margin that does not fit into the window.
        ShapeError: input or labels of another rank, size or type.
        NonFiniteError: NaN or negative times.
        DataError: times between two steps or past the window, labels that no output stands for.
        EngineError: weights that are not on the CPU.

    Reference:
        S. R. Kheradpisheh, T. Masquelier, "Temporal backpropagation for spiking neural networks with one spike per neuron",
        Int. J. Neural Systems 30(6), 2020. Any number of layers here, two there.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        steps: int = 256,
        threshold: float = 100.0,
        lr: float = 0.2,
        margin: int = 3,
        weight_decay: float = 1e-6,
        spread: Sequence[float] | None = None,
        dead: float = 0.001,
        updated: bool = True,
    ):
        super().__init__(
            sizes,
            steps=steps,
            threshold=threshold,
            lr=lr,
            margin=margin,
            weight_decay=weight_decay,
            spread=spread,
            dead=dead,
            updated=updated,
            wake=True,
        )


class BS4NN(OnlineNetwork):
    r"""S4NN with binary weights: signs and one scale a layer on the way forth, real weights on the way back.

    .. math::

        V_j(t) = \alpha \sum_i \mathrm{sign}(w_{ji}) [t_i \le t] \qquad
        \alpha \leftarrow \alpha - \eta_\alpha\, \mathrm{mean}_{ji}\bigl(\delta_j [t_i < t_j]\, \mathrm{sign}(w_{ji})\bigr)

    All else is as in :class:`S4NN` (errors pass through the real weights, updates straight through to them), but for the
    numbers, and that an image is left out when no output fires. A weight of 0 counts as positive.

    Example:
        >>> import torch
        >>> from spiketide.timing import BS4NN
        >>> net = BS4NN([784, 600, 10])
        >>> net.scale.tolist(), sum(weight.numel() for weight in net.weights)
        ([5.0, 5.0], 476400)

    Shapes:
        ``times (B, *N)``, whole steps below ``steps`` or ``inf`` -> ``(B, n_out)``. Parameters: ``weights``, each ``(n_out, n_in)``, and
        ``scale (layers,)``, always float64.

    Args:
        sizes: inputs, neurons of each layer.
        steps: of the window.
        threshold: of the membranes, which fire above it.
        lr: learning rate of the real weights, the paper's eta.
        margin: steps, the paper's gamma.
        weight_decay: of the real weights.
        spread: of each layer, initial real weights are uniform from 0 to this; ``None``: 5, and 48 in layers behind the first.
        dead: hidden neurons that fired on a smaller share of the images of an epoch get new weights; 0: never.
        updated: errors travel back through the weights after their update, as published; ``False``: before it.
        initial_scale: the paper's alpha at the beginning.
        lr_scale: its learning rate.

    Raises:
        ParameterError: a number out of range, a margin that does not fit into the window.
        ShapeError: input or labels of another rank, size or type.
        NonFiniteError: NaN or negative times; a scale that fell to 0.
        DataError: times between two steps or past the window, labels that no output stands for.
        EngineError: weights that are not on the CPU.

    Reference:
        S. R. Kheradpisheh, M. Mirsadeghi, T. Masquelier, "BS4NN: Binarized spiking neural networks with temporal coding and
        learning", Neural Processing Letters 54, 2022.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        steps: int = 256,
        threshold: float = 100.0,
        lr: float = 0.1,
        margin: int = 1,
        weight_decay: float = 0.0,
        spread: Sequence[float] | None = None,
        dead: float = 0.0,
        updated: bool = True,
        initial_scale: float = 5.0,
        lr_scale: float = 0.01,
    ):
        super().__init__(
            sizes,
            steps=steps,
            threshold=threshold,
            lr=lr,
            margin=margin,
            weight_decay=weight_decay,
            spread=spread,
            dead=dead,
            updated=updated,
            wake=False,
        )
        if not 0 < initial_scale < math.inf or not 0 <= lr_scale < math.inf:
            raise ParameterError(
                f"BS4NN expected initial_scale above 0 and lr_scale of 0 or more, got {initial_scale!r} and {lr_scale!r}."
            )
        self.initial_scale, self.lr_scale = float(initial_scale), float(lr_scale)
        del self.scale
        # In float64: one image moves it by less than float32 can tell.
        scale = torch.full((len(self.weights),), self.initial_scale, dtype=torch.float64)
        self.scale = nn.Parameter(scale, requires_grad=False)

    def _lr_scale(self) -> float:
        return self.lr_scale


def count_hits(fired: Fired, y: Tensor) -> Accuracy:
    """:class:`Accuracy` from what the outputs did.

    Args:
        fired: ``(B, C)``.
        y: labels, ``(B,)``.
    """
    decision = decide(fired)
    spoken = torch.isfinite(decision.time)
    return Accuracy(
        float(((decision.label == y) & spoken).double().mean()),
        float(optimistic(fired, y).double().mean()),
        float((~spoken).double().mean()),
    )
