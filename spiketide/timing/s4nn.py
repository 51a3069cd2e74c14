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
from ..shapes import check_tensor, is_whole
from .base import TimingLayer
from .linear import TimingLinear
from .loss import TimingLoss
from .network import Network, decide, optimistic
from .psp import Step
from .rules import STiDi
from .shaping import Flatten

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
        if not is_whole(steps):
            raise ParameterError(f"PixelTimes expected steps as a positive integer, got {steps!r}.")
        if code not in PIXEL_CODES:
            raise ParameterError("PixelTimes: " + unknown("code", code, PIXEL_CODES))
        self.steps, self.code = int(steps), code

    def forward(self, x: Tensor) -> Tensor:
        """Spike times of intensities."""
        check_tensor("PixelTimes", x, "intensities from 0 to 1")
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


class OnlineLinear(TimingLinear):
    r"""A layer of :class:`S4NN` or :class:`BS4NN`: strictly above the threshold, and the spike comes a step later.

    .. math:: V_j(t) = \sum_i w_{ji} [t_i \le t] \qquad t_j = 1 + \min \{t : V_j(t) > \theta\} \text{, if that is below } T

    With ``binary`` weights, :math:`w` is ``scale`` times the sign of ``weight``; a weight of 0 counts as positive. There is no
    gradient: the network that it belongs to changes its weights.

    Example:
        >>> import torch
        >>> from spiketide.timing import OnlineLinear
        >>> layer = OnlineLinear(2, 1, stop=8, threshold=1.0)
        >>> layer.set_weight(torch.tensor([[1.0, 0.5]]))
        >>> layer(torch.tensor([[0.0, 4.0], [0.0, 7.0], [0.0, float("inf")]])).tolist()  # in step 7 it is too late
        [[5.0], [inf], [inf]]

    Shapes:
        ``times (B, n_in)``, whole steps below ``stop`` or ``inf`` -> ``(B, n_out)``. Parameter: ``weight (n_out, n_in)``.

    Args:
        n_in: number of inputs.
        n_out: number of neurons.
        stop: steps of the window.
        threshold: of the membranes.
        spread: initial weights are uniform from 0 to this.
        binary: forward with the signs of the weights.
        initial_scale: of binary weights, then learnt; kept in float64, as one image moves it by less than float32 can tell.

    Raises:
        ParameterError: a number out of range.
        ShapeError: input of another rank or size, or of integers.
        NonFiniteError: NaN or negative times.
        DataError: times between two steps or past the window.
        EngineError: weights that are not on the CPU.
    """

    fired: Tensor

    def __init__(
        self,
        n_in: int,
        n_out: int,
        *,
        stop: int = 256,
        threshold: float = 100.0,
        spread: float = 5.0,
        binary: bool = False,
        initial_scale: float = 5.0,
    ):
        for name, value in (("spread", spread), ("initial_scale", initial_scale)):
            if not 0 < value < math.inf:
                raise ParameterError(f"OnlineLinear expected {name} above 0, got {value!r}.")
        if not is_whole(stop, 4) or stop >= 2**15:
            raise ParameterError(
                f"OnlineLinear expected stop as an integer from 4 to {2**15 - 1}, got {stop!r}."
            )
        self.spread, self.initial_scale = float(spread), float(initial_scale) if binary else 1.0
        super().__init__(
            n_in,
            n_out,
            psp=Step(),
            stop=stop,
            threshold=threshold,
            rule=STiDi(slope="constant"),
            binary=binary,
            learn_scale=binary,
        )
        # Stored by input: what one spike adds to the layer lies together.
        self.weight = nn.Parameter(self.weight.detach().t().contiguous().t())
        self.scale.data = self.scale.data.double()
        self.register_buffer("fired", torch.zeros(n_out, dtype=torch.int64))

    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        with torch.no_grad():
            self.weight.copy_(self.draw(self.weight.shape[0]))
            self.scale.fill_(self.initial_scale)

    def draw(self, neurons: int) -> Tensor:
        """New weights for so many neurons, from torch's global generator."""
        return self.spread * torch.rand(neurons, self.n_in, dtype=self.weight.dtype)

    def fire(self, times: Tensor, *, potential: bool = True) -> Fired:
        """Spike times, and all potentials when the first neuron fires; where none does, three steps before the end.

        The field ``slope`` is empty: the membrane jumps.

        Args:
            times: of the inputs, ``(B, n_in)``.
            potential: has no effect here.
        """
        return evaluate([self], times)[0]

    def rows(self) -> Any:
        """Weights by input, ``(n_in, n_out)``: the layer's own memory, or a copy where that lies otherwise.

        Raises:
            EngineError: the weights are not on the CPU.
            ShapeError: they are not of float32 or float64.
        """
        if self.weight.device.type != "cpu":
            raise EngineError(
                f"{type(self).__name__} learns and runs on the CPU, its weights are on {self.weight.device}: model.cpu()."
            )
        if self.weight.dtype not in (torch.float32, torch.float64):
            raise ShapeError(
                f"{type(self).__name__} expected weights of float32 or float64, got {self.weight.dtype}."
            )
        return self.weight.detach().t().contiguous().numpy()

    def extra_repr(self) -> str:
        """Sizes and settings, as ``print(layer)`` shows them."""
        return f"{self.n_in}, {self.n_out}, stop={self.stop:g}, threshold={self.threshold:g}, binary={self.binary}"


def evaluate(layers: Sequence[OnlineLinear], times: Tensor) -> tuple[Fired, list[Tensor]]:
    """What the last of these layers does, and the spike times of all, compiled and over many images at once.

    Args:
        layers: one behind the other.
        times: of the inputs, ``(B, n_in)``.
    """
    from ..kernels import online_timing
    from ..kernels.threading import threads

    last = layers[-1]
    given, (rows, signs, scale, membrane) = _whole(times, layers[0]), _arrays(layers)
    out = tuple(np.empty((len(given), layer.n_out), np.int32) for layer in layers)
    potential = torch.empty(len(given), last.n_out, dtype=last.weight.dtype, device="cpu")
    online_timing.evaluate(
        given, rows, signs, scale, np.empty(0, membrane), last.threshold, int(last.stop),
        min(len(given), 4 * threads()), out, potential.numpy(),
    )  # fmt: skip
    seen = [_times(steps, last, times.dtype) for steps in out]
    return Fired(seen[-1], potential.to(times.dtype), times.new_empty(0)), seen


def _arrays(layers: Sequence[OnlineLinear]) -> tuple[Any, Any, Any, Any]:
    """Weights by input, their signs and scales, type of the membranes: what the kernels take."""
    rows = tuple(layer.rows() for layer in layers)
    if not layers[0].binary:
        return rows, None, None, rows[0].dtype
    signs = tuple(np.where(w >= 0, np.int8(1), np.int8(-1)) for w in rows)
    scale = np.array([layer.scale.item() for layer in layers])
    return rows, signs, scale, np.int16 if max(layer.n_in for layer in layers) < 2**15 else np.int32


def _whole(times: Tensor, layer: OnlineLinear) -> Any:
    """Checked spike times ``(B, n_in)`` as whole steps; the end of the window for never."""
    word, stop = type(layer).__name__, int(layer.stop)
    check_tensor(word, times, "spike times")
    if not times.is_floating_point():
        raise ShapeError(
            f"{word} expected spike times in floating point (inf: never), got {times.dtype}: times.float()."
        )
    layer.check(times)
    if len(times) == 0:
        raise ShapeError(f"{word} expected at least one sample, got {tuple(times.shape)}.")
    given = times.detach()
    if not bool(given.amin() >= 0):  # NaN fails every comparison
        bad = int((~(given >= 0)).sum())
        raise NonFiniteError(
            f"{word} expected spike times from 0 on, or inf, got {bad} of {given.numel()} that are NaN or negative."
        )
    whole = given.clamp(max=stop).to(torch.int32)
    fits = ((whole == given) & (whole < stop)) | torch.isinf(given)
    if not bool(fits.all()):
        raise DataError(
            f"{word} expected whole steps from 0 to {stop - 1}, or inf, got {int((~fits).sum())} others, for example "
            f"{float(given[~fits][0]):g}: encode the input with spiketide.timing.PixelTimes({stop}), or round it down."
        )
    return whole.contiguous().numpy()


def _times(steps: Any, layer: OnlineLinear, kind: torch.dtype) -> Tensor:
    """Whole steps as spike times; a spike at the end is none."""
    found = torch.from_numpy(steps)
    return found.to(kind).masked_fill_(found >= int(layer.stop), math.inf)


class OnlineNetwork(Network):
    """Fully connected layers of neurons that fire at most once, learnt one image at a time: :class:`S4NN`, :class:`BS4NN`.

    Weights are changed by :meth:`learn`, never by autograd or an optimiser. The state dict holds all that training needs: the
    weights, and how often each neuron has fired since :meth:`begin_epoch`.

    Args:
        layers: one behind the other, all with the same window, threshold and kind of weights.
        lr: learning rate.
        margin: steps that a wrong output is to fire behind the first.
        weight_decay: after each image, weights times ``1 - lr * weight_decay``.
        dead: hidden neurons that fired on a smaller share of the images of an epoch get new weights; 0: never.
        updated: errors travel back through the weights after their update, as published; ``False``: before it.
        wake: when no output fires, the right one is told to fire a margin before the end; ``False``: nothing is learnt then.
        lr_scale: learning rate of the scales of binary weights.
    """

    images: Tensor

    def __init__(
        self,
        layers: Sequence[OnlineLinear],
        *,
        lr: float,
        margin: int,
        weight_decay: float,
        dead: float,
        updated: bool,
        wake: bool,
        lr_scale: float = 0.0,
    ):
        word, steps = type(self).__name__, int(layers[-1].stop)
        super().__init__(Flatten(), *layers)
        if not is_whole(margin):
            raise ParameterError(f"{word} expected margin as a positive integer, got {margin!r}.")
        if margin >= steps:
            raise ParameterError(
                f"{word}: a margin of {margin} steps does not fit into a window of {steps}: lower margin or raise steps."
            )
        if not 0 < lr < math.inf or not 0 <= lr_scale < math.inf:
            raise ParameterError(
                f"{word} expected lr above 0 and lr_scale of 0 or more, got {lr!r} and {lr_scale!r}."
            )
        if not weight_decay >= 0 or not lr * weight_decay < 1:
            raise ParameterError(
                f"{word} expected weight_decay from 0 to below 1 / lr = {1 / lr:g}, got {weight_decay!r}."
            )
        if not 0 <= dead < 1:
            raise ParameterError(f"{word} expected dead as a share from 0 to below 1, got {dead!r}.")
        self.lr, self.margin, self.weight_decay, self.lr_scale = (
            float(lr),
            int(margin),
            float(weight_decay),
            float(lr_scale),
        )
        self.dead, self.updated, self.wake = float(dead), bool(updated), bool(wake)
        self.register_buffer("images", torch.zeros((), dtype=torch.int64))

    @property
    def layers(self) -> list[OnlineLinear]:
        """The layers that fire."""
        return [layer for layer in self if isinstance(layer, OnlineLinear)]

    def forward(self, times: Tensor) -> Tensor:
        """Spike times of the outputs, ``(B, n_out)``; ``inf`` where one is silent."""
        return self.follow(times)[0].times

    def follow(self, times: Tensor) -> tuple[Fired, dict[str, Tensor]]:
        """What the outputs do, as :meth:`OnlineLinear.fire`, and the spike times of every layer by name.

        Args:
            times: of the inputs, ``(B, *N)``.
        """
        fired, seen = evaluate(self.layers, self._flat(times))
        return fired, self._named(seen)

    @torch.no_grad()
    def learn(self, times: Tensor, y: Tensor, *, factor: float = 1.0) -> tuple[Fired, dict[str, Tensor]]:
        """Learn from these images one after the other, in their order.

        Args:
            times: of the inputs, ``(B, *N)``.
            y: labels, ``(B,)``.
            factor: on the learning rate (of the weights, not of the scales).

        Returns:
            what the network said to each image before it was learnt, as :meth:`follow` does.

        Raises:
            ShapeError, NonFiniteError, DataError: input or labels that do not fit.
            EngineError: the weights are not on the CPU.
            NonFiniteError: a scale that is not above 0 any more: training diverged.
        """
        from ..kernels import online_timing

        layers, last = self.layers, self.layers[-1]
        given, labels = _whole(self._flat(times), layers[0]), self._labels(y, len(times))
        rows, signs, scale, membrane = _arrays(layers)
        real = rows[0].dtype

        def work(kind: Any) -> tuple[Any, ...]:
            return tuple(np.empty(layer.n_out, kind) for layer in layers)

        out = tuple(np.empty((len(given), layer.n_out), np.int32) for layer in layers)
        potential = torch.empty(len(given), last.n_out, dtype=last.weight.dtype, device="cpu")
        online_timing.learn(
            given, labels, rows, signs, scale, work(real), work(real), work(real), work(real), work(np.int32),
            work(membrane), last.threshold, int(last.stop), self.lr * factor, self.weight_decay, self.margin, self.wake,
            self.updated, self.lr_scale, out, potential.numpy(), tuple(layer.fired.numpy() for layer in layers),
        )  # fmt: skip
        self.images += len(given)
        for number, layer in enumerate(layers):
            if rows[number].ctypes.data != layer.weight.data_ptr():  # the kernel had a copy
                layer.weight.copy_(torch.from_numpy(rows[number]).t())
            if scale is not None:
                if not scale[number] > 0:
                    raise NonFiniteError(
                        f"the scale of layer {number} became {scale[number]:g}, expected a number above 0: training diverged, "
                        "lower lr_scale."
                    )
                layer.scale.fill_(float(scale[number]))
        seen = [_times(steps, last, times.dtype) for steps in out]
        return Fired(seen[-1], potential.to(times.dtype), times.new_empty(0)), self._named(seen)

    @torch.no_grad()
    def begin_epoch(self) -> int:
        """Give new weights to hidden neurons that hardly fired since the last call, and count anew.

        They are drawn from torch's global generator. To be called before an epoch, not after one: what is validated and kept is
        then what was learnt.

        Returns:
            how many got new weights.
        """
        drawn, images = 0, int(self.images)
        for layer in self.layers:
            if images and layer is not self.output:
                silent = layer.fired < self.dead * images
                new = layer.draw(int(silent.sum()))
                layer.weight[silent] = new
                drawn += len(new)
            layer.fired.zero_()
        self.images.zero_()
        return drawn

    def accuracy(self, times: Tensor, y: Tensor) -> Accuracy:
        """Shares of these images that are named right.

        Args:
            times: of the inputs, ``(B, *N)``.
            y: labels, ``(B,)``.
        """
        labels = torch.from_numpy(self._labels(y, len(times)))
        return count_hits(self.follow(times)[0], labels)

    def _flat(self, times: Tensor) -> Tensor:
        return times.flatten(1) if isinstance(times, Tensor) and times.dim() > 2 else times

    def _named(self, seen: Sequence[Tensor]) -> dict[str, Tensor]:
        names = (name for name, layer in self.named_children() if isinstance(layer, OnlineLinear))
        return dict(zip(names, seen, strict=True))

    def _labels(self, y: Tensor, images: int) -> Any:
        word, classes = type(self).__name__, self.layers[-1].n_out
        if not isinstance(y, Tensor) or y.is_floating_point() or y.shape != (images,):
            got = f"{tuple(y.shape)} {y.dtype}" if isinstance(y, Tensor) else type(y).__name__
            raise ShapeError(f"{word} expected whole labels ({images},), one an image, got {got}.")
        if int(y.min()) < 0 or int(y.max()) >= classes:
            raise DataError(
                f"{word} has outputs 0 to {classes - 1}, got labels from {int(y.min())} to {int(y.max())}."
            )
        return y.detach().to("cpu", torch.int64).contiguous().numpy()


def _stack(
    word: str, sizes: Sequence[int], spread: Sequence[float] | None, **layer: Any
) -> list[OnlineLinear]:
    """Layers of these sizes."""
    sizes = list(sizes)
    if len(sizes) < 2:
        raise ParameterError(
            f"{word} expected sizes as two or more positive integers, inputs first, got {sizes!r}."
        )
    spread = [5.0, *[48.0] * (len(sizes) - 2)] if spread is None else list(spread)
    if len(spread) != len(sizes) - 1:
        raise ParameterError(
            f"{word} expected spread as {len(sizes) - 1} numbers, one a layer, got {spread!r}."
        )
    return [
        OnlineLinear(n_in, n_out, spread=high, **layer)
        for n_in, n_out, high in zip(sizes, sizes[1:], spread, strict=False)
    ]


class S4NN(OnlineNetwork):
    r"""Integrate-and-fire neurons without leak, one spike each, trained by backpropagation of spike times: exactly as published.

    .. math::

        V_j(t) = \sum_i w_{ji} [t_i \le t] \qquad t_j = 1 + \min \{t : V_j(t) > \theta\} \qquad
        \delta_k = \frac{t^*_k - t_k}{T} \text{, then } \delta / \lVert\delta\rVert

        w_{kj} \leftarrow (1 - \eta\lambda)(w_{kj} - \eta\,\delta_k [t_j < t_k]) \qquad
        \delta_j = \sum_k [t_j < t_k]\, \delta_k w_{kj} \text{, then } \delta / \lVert\delta\rVert

    A neuron that has not fired by ``T - 1`` is silent, its time is ``T``. Targets: the right output where the first one is,
    wrong outputs less than a margin behind the first one a margin behind it, but not behind ``T``; others stay. When no output
    fires, the right one should at ``T - margin``.

    Example:
        >>> import torch
        >>> from spiketide.timing import S4NN
        >>> _ = torch.manual_seed(1)
        >>> net = S4NN([2, 8, 2], steps=16, threshold=1.0, spread=[2.0, 2.0], lr=0.1, margin=2)
        >>> times = torch.tensor([[0.0, 5.0], [5.0, 0.0]])
        >>> for _ in range(30):
        ...     fired, seen = net.learn(times, torch.tensor([0, 1]))
        >>> net.accuracy(times, torch.tensor([0, 1])).strict
        1.0

    Shapes:
        ``times (B, *N)``, whole steps below ``steps`` or ``inf`` -> ``(B, n_out)``. Layers: :class:`OnlineLinear`.

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
        layers = _stack("S4NN", sizes, spread, stop=steps, threshold=threshold)
        super().__init__(
            layers, lr=lr, margin=margin, weight_decay=weight_decay, dead=dead, updated=updated, wake=True
        )


class BS4NN(OnlineNetwork):
    r"""S4NN with binary weights: signs and one scale a layer on the way forth, real weights on the way back.

    .. math::

        V_j(t) = \alpha \sum_i \mathrm{sign}(w_{ji}) [t_i \le t] \qquad
        \alpha \leftarrow \alpha - \eta_\alpha\, \mathrm{mean}_{ji}\bigl(\delta_j [t_i < t_j]\, \mathrm{sign}(w_{ji})\bigr)

    with the signs after the weights' update, as published: with those before it, the scale of the outputs falls from 5 to 3 in
    training, where it should rise (the published network ends at 9). All else is as in :class:`S4NN` (errors pass through the
    real weights, updates straight through to them), but for the numbers, and that an image is left out when no output fires. A
    weight of 0 counts as positive.

    Example:
        >>> import torch
        >>> from spiketide.timing import BS4NN
        >>> net = BS4NN([784, 600, 10])
        >>> [layer.scale.item() for layer in net.layers], sum(layer.weight.numel() for layer in net.layers)
        ([5.0, 5.0], 476400)

    Shapes:
        ``times (B, *N)``, whole steps below ``steps`` or ``inf`` -> ``(B, n_out)``. Layers: :class:`OnlineLinear`.

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
        layers = _stack(
            "BS4NN", sizes, spread, stop=steps, threshold=threshold, binary=True, initial_scale=initial_scale
        )
        super().__init__(
            layers,
            lr=lr,
            margin=margin,
            weight_decay=weight_decay,
            dead=dead,
            updated=updated,
            wake=False,
            lr_scale=lr_scale,
        )


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


class OnlineTargets(TimingLoss):
    """How far the outputs of :class:`S4NN` and :class:`BS4NN` are from their targets: to watch; learning does not need it.

    ::

        loss = mean over images of 1/2 sum_k ((target_k - t_k) / T)^2        a silent output: t_k = T

    Example:
        >>> import torch
        >>> from spiketide.kernels.first_spike import Fired
        >>> from spiketide.timing import S4NN, OnlineTargets
        >>> net = S4NN([2, 2], steps=10, margin=3)
        >>> times = torch.tensor([[5.0, 4.0], [float("inf"), float("inf")]])  # targets 4 and 7; 7 and the end
        >>> loss = OnlineTargets(margin=3)(net.output, Fired(times, times, times), torch.tensor([0, 0]))
        >>> round(loss.item(), 6)  # (0.1^2 + 0.3^2 + 0.3^2) / 2 / 2
        0.0475

    Args:
        margin: steps.
        wake: whether there are targets where no output fires.

    Raises:
        ParameterError: a margin that is not positive.
    """

    def __init__(self, margin: int = 3, *, wake: bool = True):
        super().__init__(reach=0.0)
        if not margin > 0:
            raise ParameterError(f"OnlineTargets expected a margin above 0 steps, got {margin!r}.")
        self.margin, self.wake = margin, wake

    def displace(self, layer: TimingLayer, times: Tensor, fired: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        right = torch.zeros_like(fired).scatter_(1, y[:, None], True)
        first = times.amin(1, keepdim=True)
        early = torch.where(times - first < self.margin, (first + self.margin).clamp(max=layer.stop), times)
        target = torch.where(right, first, early)
        silent = torch.where(right & self.wake, layer.stop - self.margin, times)
        d = (torch.where(first < layer.stop, target, silent) - times) / layer.stop
        return d, 0.5 * d.square().sum(1).mean()
