"""The time at which each neuron of a layer first reaches its threshold, and what a displacement of it asks of inputs and weights.

A membrane is a weighted sum of piecewise-linear kernels, so between two events it is a straight line: its crossing is found
exactly, without stepping through time::

    V_j(t) = sum_i w_ji eps(t - t_i)          t_j = first t in [0, stop) with V_j(t) >= threshold, else inf

An input gives one to three events, at each of which slope and offset of the line change. :func:`fire_linear` and
:func:`fire_conv` walk the events of a sample in the order of time; :func:`clock_linear` and :func:`clock_conv` are the same by
stepping, the reference. :func:`learn` makes a learning rule's update and transfer of the wanted displacements, by
:func:`back_linear` and :func:`back_conv`, which give the two sums::

    dw_ji = sum_samples u_j eps(t_j - t_i)                       update
    d_i   = sum_j  c_j  b_ji  [t_i < t_j]                        transfer: "gate"
    d_i   = sum_j  c_j  b_ji  eps'(t_j - t_i)                    transfer: "slope"
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import EngineError

STEP_WIDTH = 2.0**-100
"""Rise of the instantaneous kernel in the backward pass, less than any two times differ by."""

NO_PLATEAU = 1e30
"""Steps of the way up of a kernel that never stops rising, in the loops of the backward pass."""


class Shape(NamedTuple):
    """A piecewise-linear kernel: 0 before the spike, up to 1 after ``rise`` steps, down to 0 after ``fall``.

    Args:
        rise: steps of the way up; 0 is a jump.
        fall: steps from the spike to the end of the way down; ``inf``: it stays.
        plateau: whether it stops rising at ``rise``; if not it goes on, and ``rise`` is only the unit.
    """

    rise: float
    fall: float = math.inf
    plateau: bool = True

    def events(self) -> list[tuple[float, float, float]]:
        """Delay after the spike, change of slope, jump."""
        if self.rise == 0:
            return [(0.0, 0.0, 1.0)]
        up = 1.0 / self.rise
        if not self.plateau:
            return [(0.0, up, 0.0)]
        if math.isinf(self.fall):
            return [(0.0, up, 0.0), (self.rise, -up, 0.0)]
        down = 1.0 / (self.fall - self.rise)
        return [(0.0, up, 0.0), (self.rise, -up - down, 0.0), (self.fall, down, 0.0)]

    def value(self, s: Tensor) -> Tensor:
        """``eps(s)``; ``s = -inf`` (an input that never fired) gives 0."""
        if self.rise == 0:
            return (s >= 0).to(s.dtype)
        after = s.clamp(min=0)
        if not self.plateau:
            return after / self.rise
        up = (after / self.rise).clamp(max=1)
        if math.isinf(self.fall):
            return up
        return up - ((after - self.rise) / (self.fall - self.rise)).clamp(0, 1)

    def slope(self, s: Tensor) -> Tensor:
        """``eps'(s)``: on the left side of a kink, as the firing time comes from the left."""
        if self.rise == 0:
            return torch.zeros_like(s)
        rising = (s > 0) & ((s <= self.rise) if self.plateau else torch.ones_like(s, dtype=torch.bool))
        slope = rising.to(s.dtype) / self.rise
        if not math.isinf(self.fall):
            slope = slope - ((s > self.rise) & (s <= self.fall)).to(s.dtype) / (self.fall - self.rise)
        return slope

    def numbers(self) -> tuple[float, float, float, float, float]:
        """``(shift, rise, 1/rise, fall, 1/(fall - rise))`` of the loops of the backward pass."""
        if self.rise == 0:
            return 0.0, STEP_WIDTH, 1 / STEP_WIDTH, math.inf, 0.0
        # finite, as the loops subtract it
        rise = self.rise if self.plateau else NO_PLATEAU
        if math.isinf(self.fall):
            return 0.0, rise, 1 / self.rise, math.inf, 0.0
        return 0.0, rise, 1 / self.rise, self.fall, 1 / (self.fall - self.rise)


class Window(NamedTuple):
    """Where a conv layer reads: sizes of the kernel, zeros around the image, stride, groups of channels."""

    kernel: tuple[int, int]
    padding: int = 0
    stride: int = 1
    groups: int = 1

    def out(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the output."""
        high, wide = (
            (n + 2 * self.padding - k) // self.stride + 1 for n, k in zip(size, self.kernel, strict=True)
        )
        return high, wide


class Terms(NamedTuple):
    """The numbers of a learning rule: what a wanted displacement ``d_j = -grad_j`` becomes; see :class:`spiketide.timing.Rule`.

    ::

        u_j = d_j G_j         c_j = grad_j, for transfer "share" and "exact" grad_j min(1 / r_j, limit unit)

    Args:
        gain: ``G``: ``"constant"`` 1, ``"chord"`` ``t_j / (2 unit)``, ``"local"`` ``min(1 / (unit r_j), limit)``, ``"exact"``
            that times ``unit``. 1 where a neuron is silent.
        transfer: ``"weight"``, ``"sign"``, ``"share"`` or ``"exact"``.
        normalise: give each sample's ``d_i`` the length (2-norm) of its ``d_j``.
        unit: steps.
        limit: of ``1 / (unit r)``.
        stop: end of the window, the time of a silent neuron.
    """

    gain: str
    transfer: str
    normalise: bool
    unit: float
    limit: float
    stop: float

    @property
    def steep(self) -> bool:
        """Whether the slopes of the membranes at their spikes are needed."""
        return self.gain in ("local", "exact") or self.transfer in ("share", "exact")


class Fired(NamedTuple):
    """What the neurons of a layer did.

    Shapes:
        all ``(B, *N)``. ``times``: steps, ``inf`` without a spike. ``potential``: at the spike, or at the end of the window
        without one. ``slope``: of the membrane at the spike, per step; 0 without one. The last two may be empty, where nobody
        asked.
    """

    times: Tensor
    potential: Tensor
    slope: Tensor


def fire_linear(
    times: Tensor,
    weight: Tensor,
    shape: Shape,
    *,
    threshold: float,
    stop: float,
    exact: bool,
    potential: bool = True,
    slope: bool = True,
) -> Fired:
    """First spikes of fully connected neurons.

    Shapes:
        ``times (B, n_in)``, ``weight (n_out, n_in)`` -> all three ``(B, n_out)``.

    Args:
        times: of the inputs; ``inf``: never.
        weight: of each synapse.
        shape: the kernel.
        threshold: of the membrane.
        stop: end of the window, steps: later spikes do not exist.
        exact: times between the steps; else the first whole step at or after the crossing.
        potential: also give the potentials; without it that field may be empty.
        slope: the same for the slopes.
    """
    engine = _engine(times)
    wanted = (potential, slope) if times.device.type == "cpu" else ()
    return engine.fire_linear(times, weight, shape, threshold, stop, exact, *wanted)


def fire_conv(
    times: Tensor,
    weight: Tensor,
    shape: Shape,
    window: Window,
    *,
    threshold: float,
    stop: float,
    exact: bool,
    potential: bool = False,
    slope: bool = True,
) -> Fired:
    """First spikes of neurons that look at a window of an image.

    Shapes:
        ``times (B, C, H, W)``, ``weight (O, C / groups, kh, kw)`` -> ``(B, O, H', W')``, on the CPU channels last in memory.

    Args:
        times: of the inputs; ``inf``: never.
        weight: of each synapse.
        shape: the kernel over time.
        window: the kernel over space.
        threshold: of the membrane.
        stop: end of the window of time, steps.
        exact: times between the steps; else the first whole step at or after the crossing.
        potential: also give the potentials of all neurons; without it that field is empty.
        slope: also give the slopes; without it that field may be empty.
    """
    engine = _engine(times)
    wanted = (slope,) if times.device.type == "cpu" else ()
    return engine.fire_conv(times, weight, shape, window, threshold, stop, exact, potential, *wanted)


def back_linear(
    times: Tensor, fired: Tensor, update: Tensor, carry: Tensor, back: Tensor, shape: Shape, *, by_slope: bool
) -> tuple[Tensor, Tensor]:
    """Both sums of a learning rule in a fully connected layer.

    Shapes:
        ``times (B, n_in)``; ``fired``, ``update`` and ``carry (B, n_out)``; ``back (n_out, n_in)`` -> ``dw (n_out, n_in)``,
        ``d (B, n_in)``.

    Args:
        times: of the inputs.
        fired: of the outputs, finite: the end of the window for one that is silent.
        update: ``u`` above.
        carry: ``c`` above.
        back: ``b`` above.
        shape: the kernel.
        by_slope: transfer by the kernel's slope, not by the gate.
    """
    return _engine(times).back_linear(times, fired, update, carry, back, shape, by_slope)


def back_conv(
    times: Tensor,
    fired: Tensor,
    update: Tensor,
    carry: Tensor,
    back: Tensor,
    shape: Shape,
    window: Window,
    *,
    by_slope: bool,
) -> tuple[Tensor, Tensor]:
    """Both sums of a learning rule in a convolution; only neurons with ``update`` or ``carry`` not 0 are looked at.

    Shapes:
        ``times (B, C, H, W)``; ``fired``, ``update`` and ``carry (B, O, H', W')``; ``back (O, C / groups, kh, kw)`` -> ``dw`` as
        ``back``, ``d`` as ``times``.

    Args:
        times: of the inputs.
        fired: of the outputs, finite.
        update: ``u`` above.
        carry: ``c`` above.
        back: ``b`` above.
        shape: the kernel over time.
        window: the kernel over space.
        by_slope: transfer by the kernel's slope, not by the gate.
    """
    return _engine(times).back_conv(times, fired, update, carry, back, shape, window, by_slope)


def learn(
    times: Tensor,
    fired: Fired,
    grad: Tensor,
    weight: Tensor,
    shape: Shape,
    window: Window | None,
    terms: Terms,
    *,
    wants_times: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """A learning rule from beginning to end: the gradients of the weights and of the inputs' times.

    On the CPU the terms of neurons without a displacement are not even computed. Elsewhere, and with ``"share"``, this is
    :func:`update_and_carry`, then :func:`back_linear` or :func:`back_conv`.

    Shapes:
        as :func:`back_linear`, or with a window :func:`back_conv`; ``grad`` as ``fired.times`` -> ``dw``, ``d`` or ``None``.

    Args:
        times: of the inputs.
        fired: of the neurons; potentials are not needed, slopes if ``terms.steep``.
        grad: of the neurons' times: minus the wanted displacement.
        weight: of the membrane.
        shape: the kernel over time.
        window: the kernel over space; ``None``: fully connected.
        terms: the rule.
        wants_times: whether the gradient of the inputs' times is wanted.
    """
    back = weight
    if terms.transfer == "sign":
        back = torch.where(weight >= 0, 1.0, -1.0).to(weight.dtype)
    if times.device.type == "cpu" and terms.transfer != "share":
        dw, d = _engine(times).learn(times, fired, grad, back, shape, window, terms, wants_times)
        return dw, d
    at, update, carry = update_and_carry(fired, grad, terms)

    def sums(update: Tensor, carry: Tensor, back: Tensor, shape: Shape) -> tuple[Tensor, Tensor]:
        by_slope = terms.transfer in ("share", "exact")
        if window is None:
            return back_linear(times, at, update, carry, back, shape, by_slope=by_slope)
        return back_conv(times, at, update, carry, back, shape, window, by_slope=by_slope)

    dw, d = sums(update, carry, back, shape)
    if not wants_times:
        return dw, None
    if terms.transfer == "share":
        one, none = update_and_carry(fired, torch.ones_like(grad), terms)[2], torch.zeros_like(update)
        total = sums(none, one, weight.abs(), shape)[1]
        if not math.isinf(shape.fall):
            # the falling part counts in the sum with a minus
            total = 2 * sums(none, one, weight.abs(), Shape(shape.rise))[1] - total
        d = torch.where(total > 0, d / total.clamp(min=1e-30), 0)
    return dw, even(grad, d) if terms.normalise else d


def update_and_carry(fired: Fired, grad: Tensor, terms: Terms) -> tuple[Tensor, Tensor, Tensor]:
    """Times (of silent neurons: the end), ``u`` and ``c`` of :class:`Terms`.

    Args:
        fired: of the neurons; slopes if ``terms.steep``.
        grad: of the neurons' times.
        terms: the rule.
    """
    silent = torch.isinf(fired.times)
    at = torch.where(silent, terms.stop, fired.times)
    gain: Tensor | float = 1.0
    if terms.gain == "chord":
        gain = torch.where(silent, 1.0, at / (2 * terms.unit))
    elif terms.gain != "constant":
        gain = (1 / (terms.unit * fired.slope.clamp(min=1e-30))).clamp(max=terms.limit)
        gain = torch.where(silent, 1.0, gain * terms.unit if terms.gain == "exact" else gain)
    carry = grad
    if terms.transfer in ("share", "exact"):
        inverse = (1 / fired.slope.clamp(min=1e-30)).clamp(max=terms.limit * terms.unit)
        carry = torch.where(silent, 0, grad * inverse)
    return at, -grad * gain, carry


def even(grad: Tensor, d: Tensor) -> Tensor:
    """``d`` with the length that each sample has in ``grad``.

    Args:
        grad: ``(B, *N)``.
        d: ``(B, *M)``.
    """
    mine = grad.flatten(1).norm(dim=1)
    theirs = d.flatten(1).norm(dim=1)
    ratio = torch.where(theirs > 0, mine / theirs.clamp(min=1e-30), 0)
    return d * ratio.view(-1, *[1] * (d.dim() - 1))


def clock_linear(times: Tensor, weight: Tensor, shape: Shape, *, threshold: float, stop: float) -> Tensor:
    """The first whole step at which each neuron is at its threshold, by stepping through time: the reference.

    Shapes:
        as :func:`fire_linear`.
    """
    found = torch.full((times.shape[0], weight.shape[0]), math.inf, dtype=times.dtype, device=times.device)
    for step in range(math.ceil(stop)):
        v = shape.value(step - times) @ weight.t()
        found = torch.where((v >= threshold) & torch.isinf(found), float(step), found)
    return found


def clock_conv(
    times: Tensor, weight: Tensor, shape: Shape, window: Window, *, threshold: float, stop: float
) -> Tensor:
    """The same for :func:`fire_conv`: a dense convolution at each step."""
    found: Tensor | None = None
    for step in range(math.ceil(stop)):
        v = F.conv2d(
            shape.value(step - times),
            weight,
            padding=window.padding,
            stride=window.stride,
            groups=window.groups,
        )
        if found is None:
            found = torch.full_like(v, math.inf)
        found = torch.where((v >= threshold) & torch.isinf(found), float(step), found)
    assert found is not None
    return found


def _engine(times: Tensor):  # type: ignore[no-untyped-def]
    """The compiled loops of the machine that holds the tensors."""
    if times.device.type == "cpu":
        if times.dtype not in (torch.float32, torch.float64):
            raise EngineError(
                f"first spikes are computed in float32 and float64 on the CPU, got {times.dtype}: times.float()."
            )
        from . import first_spike_cpu

        return first_spike_cpu
    if times.device.type == "cuda":
        from . import first_spike_gpu

        return first_spike_gpu
    raise EngineError(
        f"first spikes are computed on cpu and cuda, got {times.device.type}: move the model there."
    )
