"""Synapses with delays: learnt per connection, per axon or per dendrite.

A delay ``d`` is counted in steps, ``0 <= d <= max_delay``; 0 arrives in the same step. While it is learnt, a delay is a
small kernel over time around it (see ``interpolation``), so that the loss has a slope in ``d``; in evaluation it is
rounded to whole steps, one tap a connection. A layer keeps the last ``max_delay`` frames as its state, so that a sequence
may come in chunks.
"""

from __future__ import annotations

import copy
import math
import warnings
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import Self

from ..errors import NonFiniteError, ParameterError, ShapeError, unknown
from ..init import Init
from ..kernels import delay as kernels
from ..layer import check_input, check_state
from ..shapes import check_dtype, is_whole, silence_padding
from ..types import State
from .base import Synapse, last_frames, per_axis, positive

Network = TypeVar("Network", bound=nn.Module)

INTERPOLATIONS = ("gauss", "linear", "max", "none")

KEPT = 1e-3
"""Share of a Gaussian's mass that may lie outside its kept taps.

Four taps hold all but 2.6e-4 of a Gaussian of width 0.5, eight all but 2.5e-4 of one of width 1. The kept taps are
normalised to their sum, so a tap is off by at most that share of the weight, and the kernel still sums to the weight.
"""

EPSILON = 1e-7
"""Added to a kernel's normaliser, as published."""


def taps_for(width: float) -> int | None:
    """Neighbouring taps that hold all but ``KEPT`` of a Gaussian of effective ``width``, wherever it is centred; or ``None``.

    Example:
        >>> from spiketide.synapses.delay import taps_for
        >>> taps_for(0.5), taps_for(1.0), taps_for(12.27)
        (4, 8, None)
    """
    for taps in kernels.TAPS[1:]:
        reach = taps // 2
        # the worst centre stands on a tap: as many taps behind it as in front of it less one; farther than twice the reach
        # there is either nothing, or already too much before
        mass = [math.exp(-0.5 * (n / width) ** 2) for n in range(-2 * reach - 1, 2 * reach + 2)]
        near = sum(mass[reach + 2 : 3 * reach + 2])
        if near >= (1 - KEPT) * sum(mass):
            return taps
    return None


class _Delays(nn.Module):
    """Delays, how wide they are interpolated, and the kernels that this makes of weights.

    Not a layer: what the delay layers have in common.
    """

    role: ClassVar[str] = "delays"
    width: Tensor

    def __init__(
        self,
        owner: str,
        shape: tuple[int, ...],
        max_delay: int,
        *,
        interpolation: str,
        learn: bool,
        width: float | None,
        offset: float,
        round_in_eval: bool,
        start: Tensor | Init | float | str | None,
    ) -> None:
        super().__init__()
        if not is_whole(max_delay, 0):
            raise ParameterError(f"{owner} expected max_delay to be steps >= 0, got {max_delay!r}.")
        if interpolation not in INTERPOLATIONS:
            raise ParameterError(f"{owner}: " + unknown("interpolation", interpolation, INTERPOLATIONS))
        if learn and interpolation == "none":
            raise ParameterError(
                f"{owner}: delays without interpolation have no gradient; pass learn=False for fixed delays, or one of "
                f"{INTERPOLATIONS[:3]}."
            )
        if width is not None and not (math.isfinite(width) and width >= 0):
            raise ParameterError(f"{owner} expected width >= 0 (steps), got {width!r}.")
        if not (math.isfinite(offset) and offset >= 0) or (interpolation == "gauss" and offset == 0):
            raise ParameterError(f"{owner} expected an offset of the width above 0, got {offset!r}.")
        self.owner, self.max_delay, self.interpolation = owner, int(max_delay), interpolation
        self.round_in_eval, self.offset = bool(round_in_eval), float(offset)
        self.begin = float((self.max_delay + 1) // 2) if width is None else float(width)
        used = learn and interpolation in ("gauss", "max")
        self.register_buffer("width", torch.tensor(self.begin if used else 0.0))
        self.delay = nn.Parameter(torch.empty(shape), requires_grad=bool(learn))
        self.start = start
        self.draw()

    @property
    def places(self) -> int:
        """Places of a kernel: lags ``max_delay`` to 0."""
        return self.max_delay + 1

    def draw(self) -> None:
        """Delays uniform over all lags (those beyond the largest on it, as published), or as given; whole if not learnt."""
        start = self.start
        with torch.no_grad():
            if isinstance(start, str):
                if start != "every" or self.delay.shape[-1] != self.places:
                    raise ParameterError(
                        f"{self.owner} expected start to be a number, a tensor, an initialiser, or 'every' with kernel_count = "
                        f"max_delay + 1 = {self.places}, got {start!r} with {self.delay.shape[-1]}."
                    )
                self.delay.copy_(torch.arange(self.places))
            elif isinstance(start, Init):  # what it draws beyond the longest delay is put there
                self.delay.copy_(start(tuple(self.delay.shape)).clamp(0.0, float(self.max_delay)))
            elif start is None:
                nn.init.uniform_(self.delay, 0.0, self.max_delay + 1.0)
                self.delay.clamp_(0.0, float(self.max_delay))
            else:
                given = torch.as_tensor(start, dtype=self.delay.dtype)
                if given.shape == self.delay.shape[:-1] and self.delay.shape[-1] == 1:
                    given = given.unsqueeze(-1)  # a delay for each connection
                try:
                    given = given.expand(self.delay.shape)
                except RuntimeError:
                    raise ParameterError(
                        f"{self.owner} expected delays of shape {tuple(self.delay.shape)}, got {tuple(given.shape)}."
                    ) from None
                if not bool(((given >= 0) & (given <= self.max_delay)).all()):
                    raise ParameterError(
                        f"{self.owner} expected delays from 0 to max_delay = {self.max_delay} steps, got "
                        f"{float(given.min()):g} to {float(given.max()):g}."
                    )
                self.delay.copy_(given)
            if self.interpolation == "none":
                self.delay.round_()

    def freeze_(self) -> None:
        """Whole delays, not learnt from now on."""
        self.clamp_()
        with torch.no_grad():
            self.delay.round_()
            self.width.zero_()
        self.interpolation = "none"
        self.delay.requires_grad_(False)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        loaded = state_dict.get(f"{prefix}delay")
        if isinstance(loaded, Tensor) and loaded.numel() and float(loaded.max()) > self.max_delay + 1:
            warnings.warn(
                f"{self.owner}: the delays loaded go up to {float(loaded.max()):g} steps, and max_delay = {self.max_delay}: "
                f"longer ones act as {self.max_delay} steps. Build the layer with the max_delay that they were trained with.",
                UserWarning,
                stacklevel=4,
            )
        super()._load_from_state_dict(state_dict, prefix, *args)

    def clamp_(self) -> None:
        """Put delays that an optimiser moved out of their range back on its border."""
        with torch.no_grad():
            self.delay.clamp_(0.0, float(self.max_delay))

    def inside(self) -> Tensor:
        """Delays in their range; one outside acts as the border, and its gradient still brings it back."""
        raw = self.delay
        if raw.device.type == "cpu" and not torch.compiler.is_compiling():
            total = raw.detach().sum().item()
            if not math.isfinite(total) and not bool(torch.isfinite(raw).all()):
                raise NonFiniteError(
                    f"{self.owner} holds delays that are NaN or infinite: lower the learning rate of the delays."
                )
        return raw + (raw.clamp(0.0, float(self.max_delay)) - raw).detach()

    @property
    def rounded(self) -> bool:
        """Whether delays act as whole steps now."""
        return self.interpolation == "none" or (not self.training and self.round_in_eval)

    def effective_width(self) -> float:
        """Width of the interpolation in steps: a Gaussian's deviation, a triangle's half-base."""
        if self.interpolation == "gauss":
            return abs(float(self.width)) + self.offset
        return abs(float(self.width)) + 1.0

    def count(self) -> int | None:
        """Neighbouring taps that make up a kernel now; ``None``: the whole of it."""
        if self.rounded:
            taps: int | None = 1
        elif self.interpolation == "gauss":
            taps = taps_for(self.effective_width())
        else:
            reach = 2 * math.ceil(self.effective_width())
            taps = next((n for n in kernels.TAPS if n >= reach), None)
        return taps if taps is not None and taps <= self.places else None

    def few(self, weight: Tensor, taps: int) -> tuple[Tensor, Tensor]:
        """Kernels of ``taps`` neighbouring taps ``(*shape, taps)``, and the place of the first ``(*shape)``; place 0 is
        the longest lag."""
        if self.rounded:
            whole = self.inside().detach().round()
            return weight.unsqueeze(-1), (self.max_delay - whole).long()
        centre = self.max_delay - self.inside()
        first = (centre.detach().floor() - (taps // 2 - 1)).clamp(0, self.places - taps)
        place = first.unsqueeze(-1) + torch.arange(taps, device=centre.device, dtype=centre.dtype)
        return weight.unsqueeze(-1) * self._shape(place - centre.unsqueeze(-1)), first.long()

    def whole(self, weight: Tensor) -> Tensor:
        """Kernels over all places ``(places, *shape)``."""
        if self.rounded:
            taps, first = self.few(weight, 1)
            at = torch.arange(self.places, device=first.device).reshape(-1, *[1] * first.dim())
            return torch.where(at == first, taps.squeeze(-1), taps.new_zeros(()))
        centre = self.max_delay - self.inside()
        place = torch.arange(self.places, device=centre.device, dtype=centre.dtype)
        return weight * self._shape(place.reshape(-1, *[1] * centre.dim()) - centre, axis=0)

    def _shape(self, distance: Tensor, axis: int = -1) -> Tensor:
        """The normalised kernel at these distances from its centre."""
        if self.interpolation == "linear":
            return (1 - distance.abs()).relu()
        if self.interpolation == "gauss":
            # far tails end at 1e-20, not among the denormal numbers, on which some processors are a hundred times slower
            exponent = -0.5 * (distance / self.effective_width()).square()
            if self.effective_width() < 0.3:
                # between two steps so narrow a Gaussian would vanish against the published 1e-7; here its largest tap is 1
                exponent = exponent - exponent.detach().amax(axis, keepdim=True)
            shape = torch.exp(exponent.clamp(min=-46.0))
        else:
            shape = (self.effective_width() - distance.abs()).relu()
        return shape / (EPSILON + shape.sum(axis, keepdim=True))

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        learnt = "learnt" if self.delay.requires_grad else "fixed"
        return f"max_delay={self.max_delay}, {learnt}, {self.interpolation}, width={float(self.width):g}"


class _Delayed(Synapse):
    """What the delay layers share: the frames that they remember, and their tail."""

    stateful: ClassVar[bool] = True
    delays: _Delays
    tail: int

    def features(self) -> tuple[int, ...]:
        """Shape of a frame of the input."""
        raise NotImplementedError

    def check(self, x: Tensor, lengths: Tensor | None) -> None:
        """Refuse anything but ``(T, B, *features)``."""
        check_input(self, x, self.features(), lengths)
        if isinstance(weight := getattr(self, "weight", None), Tensor):
            check_dtype(self, x, weight)

    def initial_state(self, x: Tensor) -> State:
        """``max_delay`` silent frames ``(B, max_delay, *features)``."""
        return (x.new_zeros(x.shape[1], self.delays.max_delay, *x.shape[2:]),)

    def lengths_after(self, lengths: Tensor | None) -> Tensor | None:
        """Longer by the tail."""
        return lengths if lengths is None else lengths + self.tail

    def apply_steps(self, x: Tensor) -> Tensor:
        """Not for a layer with memory."""
        raise NotImplementedError("a delayed synapse remembers; call it as a layer.")

    def run(self, frames: Tensor, silent: tuple[int, int]) -> Tensor:
        """``frames (max_delay + T, B, *features)`` -> outputs of the last ``T``; ``silent`` ones at both ends are left out."""
        raise NotImplementedError

    def forward(
        self, x: Tensor, state: State | None = None, *, lengths: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Delay and project ``T`` steps; the state is the last ``max_delay`` frames of the input."""
        self.check(x, lengths)
        x = silence_padding(x, lengths)
        if state is None:
            before = None
            y = self.run(x, (self.delays.max_delay, self.tail))
        else:
            check_state(self, state, self.initial_state(x))
            before = state[0].transpose(0, 1)
            y = self.run(torch.cat([before, x]), (0, self.tail))
        return silence_padding(y, self.lengths_after(lengths)), (self.remember(before, x, lengths),)

    def freeze(self) -> Self:
        """A copy with whole delays that are not learnt: its output, in any mode, is this layer's in evaluation with
        ``round_in_eval``. For a network see :func:`freeze`."""
        return freeze(self)

    def remember(self, before: Tensor | None, x: Tensor, lengths: Tensor | None) -> Tensor:
        """The last ``max_delay`` frames of each sample ``(B, max_delay, *features)``; ``before`` is ``None`` for silence."""
        kept, tail = self.delays.max_delay, (0, self.tail)
        if lengths is None and before is None and x.shape[0] + self.tail < kept:
            around = (kept - x.shape[0] - self.tail, self.tail)
            return functional.pad(x, (*[0, 0] * (x.dim() - 1), *around)).transpose(0, 1)
        if before is None:
            before = x.new_zeros(kept, *x.shape[1:]) if lengths is not None else x[:0]
        if lengths is None:
            recent = _given(x[max(0, x.shape[0] - kept) :], tail) if self.tail else x
            return last_frames(before, recent, None, kept)
        return last_frames(before, _given(x, tail), lengths + self.tail, kept)


def _given(frames: Tensor, silent: tuple[int, int]) -> Tensor:
    """The frames with the silent ones that were left out."""
    if not any(silent):
        return frames
    before, after = (frames.new_zeros(n, *frames.shape[1:]) for n in silent)
    return torch.cat([before, frames, after])


def check_tail(owner: str, tail: int) -> int:
    """Silent steps after the sequence, 0 or more."""
    if not is_whole(tail, 0):
        raise ParameterError(f"{owner} expected a tail of 0 or more steps, got {tail!r}.")
    return int(tail)


class SynapticDelay(_Delayed):
    r"""All-to-all synapses, each with a weight and a delay of its own, both learnt.

    .. math:: y_o[t] = \sum_i \sum_m \sum_{\delta=0}^{D} k_{oim}[\delta]\, x_i[t - \delta], \qquad
        k_{oim}[\delta] = w_{oim} \frac{e_\delta}{10^{-7} + \sum_{\delta'} e_{\delta'}}, \quad
        e_\delta = \exp\Big(-\tfrac12 \Big(\frac{\delta - d_{oim}}{\sigma}\Big)^2\Big)

    with ``0 <= d <= D = max_delay`` steps. ``sigma = |width| + offset`` is no parameter but scheduled from wide to narrow by
    :class:`DelayAnneal`: wide kernels find far delays, narrow ones are nearly the single tap that evaluation uses. In
    evaluation delays are rounded to whole steps and every connection is one tap of weight ``w`` (``round_in_eval``).

    What it costs: with few taps (``"linear"``, narrow Gaussians, evaluation) what the input's spikes cost, or about a linear
    layer for every tap, by shifted reads; with wide kernels what the spikes and the lags cost, or about five linear layers,
    in the frequency domain, however long the kernel. The cheapest is taken. Narrow Gaussians are truncated: see :data:`KEPT`.

    Example:
        >>> import torch
        >>> from spiketide.synapses import SynapticDelay
        >>> layer = SynapticDelay(1, 1, 4, start=3.0).eval()
        >>> x = torch.zeros(6, 1, 1)
        >>> x[0] = 1.0
        >>> y, _ = layer(x)
        >>> y.flatten().nonzero().flatten().tolist(), bool(y[3] == layer.weight.flatten())
        ([3], True)

    Shapes:
        ``x (T, B, n_in)`` -> ``y (T + tail, B, n_out)``; state: ``(frames (B, max_delay, n_in),)``. Parameters ``weight`` and
        ``delays.delay``, both ``(n_out, n_in, kernel_count)``; the delays are in the parameter group ``"delays"``.

    Args:
        n_in: number of inputs.
        n_out: number of outputs.
        max_delay: longest delay (steps); a kernel has ``max_delay + 1`` places. May exceed the length of a sequence.
        kernel_count: weights and delays per connection.
        interpolation: ``"gauss"``; ``"max"``, a triangle of half-base ``|width| + 1``; ``"linear"``, between the two
            neighbouring steps; ``"none"``, whole steps (then ``learn=False``).
        learn: whether the delays are learnt; fixed ones stay as drawn.
        width: initial width (steps); ``None``: half of the kernel, as published. Not used by ``"linear"``.
        offset: added to the width of a Gaussian; 0.27 as published, so that a width of 0.23 means 0.5.
        round_in_eval: whole steps in evaluation.
        fan_in: connect each output to so many inputs, drawn at random; ``None``: to all.
        density: connect each pair with this probability; not together with ``fan_in``.
        tail: silent steps appended to the sequence, so that what is under way at its end still arrives. With ``lengths``
            a sample then has ``lengths + tail`` valid steps (:meth:`lengths_after`). Only for a sequence's last chunk.
        start: initial delays, one number, a tensor or an initialiser (cut off at the longest delay); ``None``: uniform;
            ``"every"``: the lags 0 to ``max_delay`` in turn, one for each of ``kernel_count = max_delay + 1`` (not learnt, a
            dense temporal convolution).

    Raises:
        ParameterError: sizes, delays or widths out of range, an unknown interpolation.
        ShapeError: input of another rank or size, a state of another batch.
        NonFiniteError: delays that are NaN.

    Reference:
        Hammouamri, Khalfaoui-Hassani, Masquelier 2023, arXiv 2306.17670 (there ``p = (K - 1) / 2 - d`` with ``K =
        max_delay + 1`` is learnt, by
        the same gradient with the other sign; ``K`` must be odd there and need not here). In evaluation a tap is ``w``,
        there ``w / (1 + 1e-7)``.
    """

    exempt: ClassVar[dict[str, str]] = {
        "causality": "large inputs only, while kernels are wide: in the frequency domain a rounding error (1e-6 of the "
        "largest output) of the past depends on the future; whole delays and narrow kernels keep the law to the bit"
    }
    mask: Tensor | None

    def __init__(
        self,
        n_in: int,
        n_out: int,
        max_delay: int,
        *,
        kernel_count: int = 1,
        interpolation: str = "gauss",
        learn: bool = True,
        width: float | None = None,
        offset: float = 0.27,
        round_in_eval: bool = True,
        fan_in: int | None = None,
        density: float | None = None,
        tail: int = 0,
        start: Tensor | Init | float | str | None = None,
    ) -> None:
        super().__init__()
        self.n_in = positive("SynapticDelay", "n_in", n_in)
        self.n_out = positive("SynapticDelay", "n_out", n_out)
        self.kernel_count = positive("SynapticDelay", "kernel_count", kernel_count)
        self.tail = check_tail("SynapticDelay", tail)
        shape = (self.n_out, self.n_in, self.kernel_count)
        self.weight = nn.Parameter(torch.empty(shape))
        self.delays = _Delays(
            "SynapticDelay",
            shape,
            max_delay,
            interpolation=interpolation,
            learn=learn,
            width=width,
            offset=offset,
            round_in_eval=round_in_eval,
            start=start,
        )
        self.register_buffer("mask", self._connect(fan_in, density))
        self._draw_weights()

    def _connect(self, fan_in: int | None, density: float | None) -> Tensor | None:
        if fan_in is None and density is None:
            return None
        if fan_in is not None and density is not None:
            raise ParameterError("SynapticDelay expected fan_in or density, got both.")
        chance = torch.rand(self.n_out, self.n_in)
        if density is not None:
            if not 0 < density <= 1:
                raise ParameterError(f"SynapticDelay expected a density in (0, 1], got {density!r}.")
            mask = chance < density
        else:
            count = positive("SynapticDelay", "fan_in", fan_in)
            if count > self.n_in:
                raise ParameterError(
                    f"SynapticDelay expected fan_in of at most n_in = {self.n_in}, got {count}."
                )
            mask = torch.zeros_like(chance, dtype=torch.bool)
            mask.scatter_(1, chance.argsort(1)[:, :count], True)
        return mask.unsqueeze(-1).to(self.weight.dtype)

    def _draw_weights(self) -> None:
        inputs = self.n_in if self.mask is None else max(1, round(float(self.mask.sum()) / self.n_out))
        bound = math.sqrt(6.0 / (inputs * self.kernel_count))
        nn.init.uniform_(self.weight, -bound, bound)

    def reset_parameters(self) -> None:
        """Draw weights and delays anew: Kaiming-uniform for ReLU over the fan-in, delays as at first."""
        self._draw_weights()
        self.delays.draw()

    def features(self) -> tuple[int, ...]:
        """``(n_in,)``."""
        return (self.n_in,)

    def effective_weight(self) -> Tensor:
        """The weights of the connections that are there ``(n_out, n_in, kernel_count)``."""
        return self.weight if self.mask is None else self.weight * self.mask

    def kernel(self) -> Tensor:
        """The kernels as they act now ``(n_out, n_in, max_delay + 1)``, by lag: ``[..., 0]`` acts in the same step."""
        weight, taps = self.effective_weight(), self.delays.count()
        if taps is None:
            kernel = self.delays.whole(weight).sum(-1)
        else:
            kernel = kernels.scatter(*self.delays.few(weight, taps), self.delays.places)
        return kernel.flip(0).permute(1, 2, 0)

    def rows(self) -> Tensor:
        """The kernels, all lags ``(n_out, n_in (max_delay + 1))``."""
        return self.kernel().flatten(1)

    def run(self, frames: Tensor, silent: tuple[int, int]) -> Tensor:
        """Project by the cheapest of the ways; which, changes nothing but rounding."""
        weight, delays = self.effective_weight().to(frames.dtype), self.delays
        steps, batch = frames.shape[0] + sum(silent) - delays.max_delay, frames.shape[1]
        if steps < 1 or batch < 1:
            return frames.new_zeros(max(0, steps), batch, self.n_out)
        taps = delays.count()
        each = events = counts = None
        if taps is not None and kernels.few_runs(frames.device, taps):
            each = (self.kernel_count, taps)
        if frames.device.type == "cpu" and _plain(frames):
            counts = kernels.count_events(frames)
            events = float(counts.sum())
        inner = frames.requires_grad and torch.is_grad_enabled()
        way = kernels.choose(steps, batch, self.n_in, self.n_out, each, delays.places, events, inner)
        if not _plain(frames) or not frames.shape[0]:
            way = "reference"
        listed = None
        if counts is not None and way in ("events", "windows"):
            listed = kernels.list_events(frames, counts)
            if way == "events" and not math.isfinite(float(listed.values.sum())):
                way, listed = "reads", None  # where no tap reads them, infinities are to do nothing
        if taps is not None:
            values, first = delays.few(weight, taps)
            if way in ("reads", "events"):
                return kernels.few(frames, values, first, delays.places, silent, events=listed)
            kernel = kernels.scatter(values, first, delays.places)
        else:
            kernel = delays.whole(weight).sum(-1)
        if listed is not None:
            return kernels.windows(frames, kernel, listed, silent)
        if way == "reference":
            return kernels.reference(_given(frames, silent), kernel)
        return kernels.wide(frames, kernel, silent)

    def extra_repr(self) -> str:
        """Sizes, as ``print(layer)`` shows them."""
        text = f"{self.n_in}, {self.n_out}, kernel_count={self.kernel_count}, tail={self.tail}"
        return text if self.mask is None else f"{text}, density={float(self.mask.mean()):.3g}"


def _plain(x: Tensor) -> bool:
    """Whether our own loops and products may take it: real memory of float32 or float64, and nothing that traces or casts."""
    return (
        type(x) is Tensor
        and x.dtype in (torch.float32, torch.float64)
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and not torch.jit.is_tracing()
        and not torch.is_autocast_enabled(x.device.type)
    )


class _ChannelDelay(_Delayed):
    """One delay per channel."""

    exempt: ClassVar[dict[str, str]] = {
        "causality": "large inputs only, while kernels are wide: as SynapticDelay",
    }

    def __init__(
        self,
        n: int,
        max_delay: int,
        *,
        interpolation: str = "gauss",
        learn: bool = True,
        width: float | None = None,
        offset: float = 0.27,
        round_in_eval: bool = True,
        tail: int = 0,
        start: Tensor | Init | float | str | None = None,
    ) -> None:
        super().__init__()
        owner = type(self).__name__
        self.n = positive(owner, "n", n)
        self.tail = check_tail(owner, tail)
        self.delays = _Delays(
            owner,
            (self.n,),
            max_delay,
            interpolation=interpolation,
            learn=learn,
            width=width,
            offset=offset,
            round_in_eval=round_in_eval,
            start=start,
        )

    def reset_parameters(self) -> None:
        """Draw the delays anew."""
        self.delays.draw()

    def features(self) -> tuple[int, ...]:
        """``(n,)``."""
        return (self.n,)

    def run(self, frames: Tensor, silent: tuple[int, int]) -> Tensor:
        """Shift every channel by its own delay."""
        frames = _given(frames, silent)
        one = self.delays.delay.new_ones(self.n)
        steps = frames.shape[0] - self.delays.max_delay
        if steps < 1:
            return frames.new_zeros(0, *frames.shape[1:])
        taps = self.delays.count()
        if taps is not None:
            values, first = self.delays.few(one, taps)
            step = torch.arange(steps, device=frames.device).unsqueeze(1)
            y = frames.new_zeros(())
            for n in range(taps):
                index = (first + n + step).unsqueeze(1).expand(-1, frames.shape[1], -1)
                y = y + values[..., n].to(frames.dtype) * frames.gather(0, index)
            return y
        return kernels.shift_channels(frames, self.delays.whole(one).to(frames.dtype))

    def kernel(self) -> Tensor:
        """The kernels as they act now ``(n, max_delay + 1)``, by lag: ``[:, 0]`` acts in the same step."""
        one, taps = self.delays.delay.new_ones(self.n), self.delays.count()
        if taps is None:
            places = self.delays.whole(one)
        else:
            values, first = self.delays.few(one, taps)
            places = kernels.scatter(
                values.view(self.n, 1, 1, -1), first.view(self.n, 1, 1), self.delays.places
            ).squeeze(-1)
        return places.flip(0).t()

    def extra_repr(self) -> str:
        """Sizes, as ``print(layer)`` shows them."""
        return f"{self.n}, tail={self.tail}"


class AxonalDelay(_ChannelDelay):
    r"""One learnt delay per axon, in front of any synapse: ``y_i[t] = x_i[t - d_i]``.

    ``Sequential(AxonalDelay(n, 20), Dense(n, m))`` has ``n`` delays where :class:`SynapticDelay` has ``n * m``, and costs
    a shift and one linear layer.

    Example:
        >>> import torch
        >>> from spiketide.synapses import AxonalDelay
        >>> layer = AxonalDelay(2, 3, start=torch.tensor([1.0, 3.0])).eval()
        >>> x = torch.zeros(4, 1, 2)
        >>> x[0] = 1.0
        >>> layer(x)[0].squeeze(1).t().tolist()
        [[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]]

    Shapes:
        ``x (T, B, n)`` -> ``y (T + tail, B, n)``; state: ``(frames (B, max_delay, n),)``; parameter ``delays.delay (n,)``.

    Args:
        n: number of axons.
        max_delay, interpolation, learn, width, offset, round_in_eval, tail, start: as :class:`SynapticDelay`.

    Raises:
        ParameterError, ShapeError, NonFiniteError: as :class:`SynapticDelay`.

    Reference:
        Bouhadjar and Neftci, arXiv 2602.09746: the same kernels, one per axon.
    """


class DendriticDelay(_ChannelDelay):
    r"""One learnt delay per receiving neuron, behind any synapse: ``y_o[t] = x_o[t - d_o]``.

    ``Sequential(Dense(n, m), DendriticDelay(m, 20))``. The operation is that of :class:`AxonalDelay`; the name says where
    it stands.

    Shapes:
        ``x (T, B, n)`` -> ``y (T + tail, B, n)``; state: ``(frames (B, max_delay, n),)``; parameter ``delays.delay (n,)``.

    Args:
        n: number of receiving neurons.
        max_delay, interpolation, learn, width, offset, round_in_eval, tail, start: as :class:`SynapticDelay`.

    Raises:
        ParameterError, ShapeError, NonFiniteError: as :class:`SynapticDelay`.

    Reference:
        Bouhadjar and Neftci, arXiv 2602.09746.
    """


class DelayedConv2d(_Delayed):
    r"""A convolution over an image in which every kernel weight has a delay of its own.

    Shapes:
        ``x (T, B, c_in, H, W)`` -> ``y (T + tail, B, c_out, H', W')``, ``H'`` as for :class:`spiketide.synapses.Conv2d`; state:
        ``(frames (B, max_delay, c_in, H, W),)``. Parameters ``weight`` and ``delays.delay``: ``(c_out, c_in, kh, kw)``.

    Example:
        >>> import torch
        >>> from spiketide.synapses import DelayedConv2d
        >>> y, _ = DelayedConv2d(2, 3, 3, max_delay=4, padding=1)(torch.rand(6, 1, 2, 8, 8))
        >>> tuple(y.shape)
        (6, 1, 3, 8, 8)

    Args:
        c_in: channels in.
        c_out: channels out.
        kernel_size: of the convolution, one number or two.
        max_delay: longest delay (steps).
        stride, padding: of the convolution, one number or two.
        interpolation, learn, width, offset, round_in_eval, tail, start: as :class:`SynapticDelay`.

    Raises:
        ParameterError, ShapeError, NonFiniteError: as :class:`SynapticDelay`.

    Reference:
        Khalfaoui-Hassani et al., dilated convolution with learnable spacings, with time as the learnt axis. One
        three-dimensional convolution over all lags.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel_size: int | tuple[int, int],
        max_delay: int,
        *,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        interpolation: str = "gauss",
        learn: bool = True,
        width: float | None = None,
        offset: float = 0.27,
        round_in_eval: bool = True,
        tail: int = 0,
        start: Tensor | Init | float | str | None = None,
    ) -> None:
        super().__init__()
        self.c_in = positive("DelayedConv2d", "c_in", c_in)
        self.c_out = positive("DelayedConv2d", "c_out", c_out)
        self.kernel_size = per_axis("DelayedConv2d", "kernel_size", kernel_size, 2, 1)
        self.stride = per_axis("DelayedConv2d", "stride", stride, 2, 1)
        self.padding = per_axis("DelayedConv2d", "padding", padding, 2, 0)
        self.tail = check_tail("DelayedConv2d", tail)
        shape = (self.c_out, self.c_in, *self.kernel_size)
        self.weight = nn.Parameter(torch.empty(shape))
        self.delays = _Delays(
            "DelayedConv2d",
            shape,
            max_delay,
            interpolation=interpolation,
            learn=learn,
            width=width,
            offset=offset,
            round_in_eval=round_in_eval,
            start=start,
        )
        self._draw_weights()

    def _draw_weights(self) -> None:
        bound = math.sqrt(6.0 / (self.c_in * math.prod(self.kernel_size)))
        nn.init.uniform_(self.weight, -bound, bound)

    def reset_parameters(self) -> None:
        """Draw weights and delays anew."""
        self._draw_weights()
        self.delays.draw()

    def check(self, x: Tensor, lengths: Tensor | None) -> None:
        """Refuse anything but ``(T, B, c_in, H, W)`` with an image of at least the kernel's size."""
        if x.dim() != 5 or x.shape[2] != self.c_in:
            raise ShapeError(
                f"DelayedConv2d expected (T, B, {self.c_in}, H, W), got {tuple(x.shape)}: channels come before the image."
            )
        check_input(self, x, tuple(x.shape[2:]), lengths)
        for size, kernel, pad in zip(x.shape[3:], self.kernel_size, self.padding, strict=True):
            if size + 2 * pad < kernel:
                raise ShapeError(
                    f"DelayedConv2d expected images of at least {self.kernel_size} with padding {self.padding}, got "
                    f"{tuple(x.shape[3:])}."
                )

    def rows(self) -> Tensor:
        """The kernels, all lags and places ``(c_out, c_in (max_delay + 1) kh kw)``."""
        return self.delays.whole(self.weight).movedim(0, -1).flatten(1)

    def run(self, frames: Tensor, silent: tuple[int, int]) -> Tensor:
        """One convolution over lags and space."""
        frames = _given(frames, silent)
        kernel = self.delays.whole(self.weight).permute(1, 2, 0, 3, 4).to(frames.dtype)
        steps = max(0, frames.shape[0] - self.delays.max_delay)
        if not steps:  # a silent frame says what shape nothing has
            frames = torch.cat([frames, frames.new_zeros(1, *frames.shape[1:])])
        y = functional.conv3d(
            frames.permute(1, 2, 0, 3, 4),
            kernel,
            stride=(1, *self.stride),
            padding=(0, *self.padding),
        )
        return y.permute(2, 0, 1, 3, 4)[:steps]

    def extra_repr(self) -> str:
        """Sizes, as ``print(layer)`` shows them."""
        return f"{self.c_in}, {self.c_out}, {self.kernel_size}, stride={self.stride}, padding={self.padding}"


class DelayAnneal:
    """Narrow the widths of all delays of a network, epoch by epoch.

    In epoch ``e`` of ``E`` the width is ``W0 (final / W0) ^ (min(e, E_s) / E_s)`` with ``E_s = floor(share * E)``, and
    ``W0`` where the width began; a width already at or below ``final`` stays, that of loaded weights too.

    Example:
        >>> from spiketide.synapses import DelayAnneal, SynapticDelay
        >>> layer = SynapticDelay(4, 4, 24)
        >>> anneal = DelayAnneal()
        >>> for epoch in (0, 20, 40):
        ...     anneal(layer, epoch, 150)
        ...     print(round(layer.delays.effective_width(), 2))
        12.27
        1.69
        0.5

    Args:
        final: last width (steps, before the offset).
        share: of the epochs after which it is reached.

    Raises:
        ParameterError: a width below 0 or a share outside (0, 1].

    Reference:
        Hammouamri et al. 2023: ``final = 0.23``, a quarter of the epochs. There it is narrowed at the end of an epoch,
        before evaluation, in which it does not matter.
    """

    def __init__(self, final: float = 0.23, share: float = 0.25) -> None:
        if not (math.isfinite(final) and final > 0):
            raise ParameterError(f"DelayAnneal expected a final width above 0, got {final!r}.")
        if not 0 < share <= 1:
            raise ParameterError(f"DelayAnneal expected a share of the epochs in (0, 1], got {share!r}.")
        self.final, self.share = float(final), float(share)

    def __call__(self, network: nn.Module, epoch: int, epochs: int) -> None:
        """Set the widths for an epoch."""
        last = math.floor(self.share * epochs)
        for module in network.modules():
            if (
                isinstance(module, _Delays)
                and module.interpolation in ("gauss", "max")
                and module.delay.requires_grad
            ):
                begin, reached = module.begin, self.final * (1 + 1e-6)  # the width is a float32
                if begin > reached and float(module.width) > reached:
                    done = 1.0 if last == 0 else min(epoch, last) / last
                    module.width.fill_(begin * (self.final / begin) ** done)


def freeze(network: Network, *, tails: bool = True) -> Network:
    """A copy of a network whose delays, wherever in it, are whole steps and not learnt.

    Its output, in evaluation, is that of the network with ``round_in_eval``; it shares nothing with the network, so training its
    weights further leaves the network as it is.

    Example:
        >>> import torch
        >>> from spiketide import LIF, AxonalDelay, Dense, Recurrent, Sequential, SynapticDelay, freeze
        >>> behind = Recurrent(LIF(8), Sequential(AxonalDelay(8, 5), Dense(8, 8)))
        >>> network = Sequential(SynapticDelay(4, 8, 5), behind).eval()
        >>> frozen, x = freeze(network), torch.rand(20, 2, 4)
        >>> torch.equal(frozen(x)[0], network(x)[0])
        True
        >>> [name for name, p in frozen.named_parameters() if p.requires_grad]
        ['0.weight', '1.synapse.1.weight', '1.synapse.1.bias']

    Args:
        network: a delay layer, or any module that holds some; one without delays is copied only.
        tails: whether the silent steps at the end of every call stay. A tail belongs to a sequence's end: a network that goes on
            chunk by chunk is frozen with ``tails=False``.
    """
    frozen = copy.deepcopy(network)
    for module in frozen.modules():
        if isinstance(module, _Delays):
            module.freeze_()
        if not tails and isinstance(module, _Delayed):
            module.tail = 0
    return frozen


def clamp_delays(network: nn.Module) -> None:
    """Put every delay of a network back into its range: after each optimiser step, as published."""
    for module in network.modules():
        if isinstance(module, _Delays):
            module.clamp_()
