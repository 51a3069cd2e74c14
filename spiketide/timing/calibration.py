"""The scale of each layer before training, and neurons that have stopped to fire."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor, nn

from ..errors import ParameterError
from .base import TimingLayer
from .network import Network, named
from .psp import PSP, FixedSlope
from .shaping import AveragePool2d, EarliestPool2d

EARLY = 0.05
"""With a fixed slope: the share of the spikes that may come before the wanted time."""

FINEST = 64
"""Times and constants of kernels are looked at for a common measure of down to one part in so many of a step."""


def calibrate(network: Network, times: Tensor, moments: Sequence[float]) -> None:
    """Set the scale of every layer so that its spikes come when they are wanted, layer by layer.

    ``moments`` says for each layer when, as a part of its window: the median of its neurons, after pooling, of those that
    hear any input at all (silent ones count as late). With :class:`.psp.FixedSlope` it is the moment before which one spike in
    twenty comes: potentials then use the window without being cut at its beginning.

    The potentials of a binary layer whose inputs come at whole steps are whole multiples of one quantum, ``scale`` for
    :class:`.psp.Step`, ``scale / unit`` for :class:`.psp.ReL`. The threshold is put half a quantum off them (with
    :class:`.psp.FixedSlope`: as far from all of them as its climb allows), so no potential lies on it, and float32, float64 and
    whole numbers say the same spikes.

    Example:
        >>> import torch
        >>> from spiketide.timing import Network, TimingLinear, calibrate
        >>> _ = torch.manual_seed(0)
        >>> net = Network(TimingLinear(50, 400), TimingLinear(400, 10))
        >>> inputs = torch.randint(0, 32, (20, 50)).float()
        >>> calibrate(net, inputs, [0.5, 0.8])
        >>> median = float(net[0](inputs).detach().quantile(0.5))
        >>> 30 <= median <= 34
        True

    Args:
        network: it is changed in place.
        times: spike times of a hundred inputs or more, as the first layer gets them.
        moments: a number in (0, 1) for each :class:`.base.TimingLayer`.

    Raises:
        ParameterError: another number of moments, or a layer that no scale makes fire; the message names it.
        ShapeError, NonFiniteError: times that a layer refuses; the message names it.
    """
    modules = list(network.named_children())
    layers = [(name, layer) for name, layer in modules if isinstance(layer, TimingLayer)]
    if len(moments) != len(layers) or not all(0 < moment < 1 for moment in moments):
        raise ParameterError(
            f"calibrate expected {len(layers)} moments in (0, 1), one for each layer that fires, got {list(moments)}."
        )
    wanted = dict(zip([name for name, _ in layers], moments, strict=True))
    training = network.training
    network.eval()
    try:
        with torch.no_grad():
            for number, (name, layer) in enumerate(modules):
                if isinstance(layer, TimingLayer):
                    with named(name):
                        layer.check_times(times)
                    pools = []
                    for _, following in modules[number + 1 :]:
                        if not isinstance(following, (EarliestPool2d, AveragePool2d)):
                            break
                        pools.append(following)
                    _set_scale(name, layer, times, nn.Sequential(*pools), wanted[name])
                with named(name):
                    times = layer(times)
    finally:
        network.train(training)


def _set_scale(name: str, layer: TimingLayer, times: Tensor, pools: nn.Module, moment: float) -> None:
    aim = layer.start + moment * (layer.stop - layer.start)
    heard = pools(_hearing(layer, times)) < math.inf
    if not bool(heard.any()):
        raise ParameterError(
            f"layer {name} ({type(layer).__name__}) hears no spike at all: no scale makes it fire. Let the layer before fire "
            "earlier, or check the input (a picture that is all dark gives no spikes)."
        )
    part = EARLY if isinstance(layer.psp, FixedSlope) else 0.5

    def late(scale: float) -> bool:
        layer.scale.fill_(scale)
        out = pools(layer(times))[heard]
        if isinstance(layer.psp, FixedSlope):
            out = out[torch.isfinite(out)]
            if not len(out):
                return True
        place = max(0, math.ceil(part * out.numel()) - 1)
        return float(out.flatten().kthvalue(place + 1).values) > aim

    low, high = 1e-6, 1e6
    if late(high):
        raise ParameterError(
            f"layer {name} ({type(layer).__name__}) fires too late with any scale: its weights are mostly negative. Raise "
            f"mean, or ask for a later moment than {moment:g}."
        )
    for _ in range(40):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if late(middle) else (low, middle)
    layer.scale.fill_(_unambiguous(layer, times, high) if layer.binary else high)


def _unambiguous(layer: TimingLayer, times: Tensor, scale: float) -> float:
    """The next scale of a binary layer from this one on at which no potential can lie on the threshold.

    With inputs at whole steps (or halves, quarters ...), potentials are ``n quantum scale`` with whole ``n``. With free slopes
    they are compared with the threshold itself, so ``threshold / (quantum scale)`` is put to ``k + 1/2``.

    A climbing membrane fires at the step ``stop - u`` if its potential is ``threshold u / length`` or more, for ``u`` from 1 to
    ``length``: there ``k + 1/2`` would lie on a potential at ``u = 2``. A fraction in lowest terms with the denominator
    ``length + 1`` is away from all of them by ``1 / (length + 1)`` quanta or more.

    Where times or kernel have no common measure, potentials are multiples of nothing, and the scale stays as it is.
    """
    if isinstance(layer.psp, FixedSlope):
        step = None if layer.exact else _step(times)
        start = _fraction(layer.psp.start)
        if step is None or start is None:
            return scale
        quantum = float(_measure(step, start))
        parts = math.floor(layer.psp.length) + 1
        # bisection ends on a potential, from either side
        count = max(1, math.floor(layer.threshold / (scale * quantum) * (1 - 1e-6) * parts))
        while math.gcd(count, parts) > 1:
            count -= 1
        return layer.threshold * parts / (count * quantum)
    found = _quantum(layer.psp, times)
    if found is None:
        return scale
    level = max(1, math.ceil(layer.threshold / (scale * found) * (1 - 1e-6))) - 0.5
    return layer.threshold / (level * found)


def _quantum(psp: PSP, times: Tensor) -> float | None:
    """What all values of a kernel are multiples of, at the times at which a membrane with these inputs bends.

    ``None``: of nothing.
    """
    rise, fall, plateau = psp.shape
    if rise == 0:
        return 1.0
    step, up = _step(times), _fraction(rise)
    if step is None or up is None:
        return None
    if not plateau:
        return float(step / up)
    step = _measure(step, up)
    quantum = _measure(step / up, Fraction(1))
    if not math.isinf(fall):
        end = _fraction(fall)
        if end is None:
            return None
        step = _measure(step, end)
        quantum = _measure(_measure(step / up, Fraction(1)), step / (end - up))
    return float(quantum)


def _step(times: Tensor) -> Fraction | None:
    """The part of a step that all spike times are multiples of."""
    fired = times[torch.isfinite(times)].double()
    for parts in range(1, FINEST + 1):
        if not bool(((fired * parts).round() - fired * parts).abs().gt(1e-3).any()):
            return Fraction(1, parts)
    return None


def _fraction(number: float) -> Fraction | None:
    near = Fraction(number).limit_denominator(FINEST)
    return near if math.isclose(near, number, rel_tol=1e-9) else None


def _measure(a: Fraction, b: Fraction) -> Fraction:
    """The largest that both are multiples of."""
    return Fraction(
        math.gcd(a.numerator * b.denominator, b.numerator * a.denominator), a.denominator * b.denominator
    )


def _hearing(layer: TimingLayer, times: Tensor) -> Tensor:
    """0 where a neuron has an input that fires in time, else ``inf``."""
    weight = torch.ones_like(layer.effective_weight())
    end = layer.start or layer.stop
    active = (times < end).to(times.dtype)
    return torch.where(layer.mix(active, weight) > 0, 0.0, math.inf)


def revive(layer: TimingLayer, dead: Tensor, times: Tensor, *, height: float = 1.1) -> None:
    """Raise the weights of dead neurons so that a median input brings them to ``height`` thresholds.

    A constant is added to all weights of such a neuron, so what it had learnt to tell apart stays.

    Args:
        layer: it is changed in place.
        dead: ``(n,)``, which neurons (or maps) are meant.
        times: spike times of some inputs, as the layer gets them.
        height: potential in thresholds that the median input reaches at the end of the window.
    """
    if not bool(dead.any()):
        return
    with torch.no_grad():
        end = layer.start or layer.stop
        shape = layer.psp.shape
        heard = shape.value(end - times)
        potential = layer.mix(heard, layer.effective_weight())
        lift = layer.mix(heard, torch.ones_like(layer.weight))
        v = potential.movedim(1, 0).flatten(1).median(1).values
        per = lift.movedim(1, 0).flatten(1).median(1).values
        possible = dead & (per > 0)
        gain = (height * layer.threshold - v).clamp(min=0) / (per.clamp(min=1e-12) * layer.scale)
        layer.weight[possible] += gain[possible].view(-1, *[1] * (layer.weight.dim() - 1))
