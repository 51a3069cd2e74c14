"""Convolutions over time, and over time and space at once: every kernel row in time is a conduction delay."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import ParameterError, ShapeError, unknown
from ..kernels.convolution import Geometry, convolve
from ..layer import check_input, check_lengths, check_state
from ..shapes import check_dtype, no_tensor, silence_padding
from ..types import State
from .base import Synapse, independent, last_frames, per_axis, positive, uniform_

PADDINGS = ("causal", "same")


class _TemporalConv(Synapse):
    """A convolution over time and ``axes`` axes of space; the kernel's first axis is time."""

    axes: ClassVar[int]
    names: ClassVar[tuple[str, ...]]

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel_size: Any,
        *,
        stride: Any = 1,
        dilation: Any = 1,
        padding: str = "causal",
        space_padding: Any = "same",
        groups: int = 1,
        bias: bool = True,
        spread: float | None = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        self.c_in, self.c_out = positive(name, "c_in", c_in), positive(name, "c_out", c_out)
        self.kernel_size = per_axis(name, "kernel_size", kernel_size, self.axes + 1, 1)
        self.stride = per_axis(name, "stride", stride, self.axes + 1, 1)
        self.dilation = per_axis(name, "dilation", dilation, self.axes + 1, 1)
        if padding not in PADDINGS:
            raise ParameterError(f"{name}: " + unknown("padding of time", padding, PADDINGS))
        self.padding = padding
        self.space_padding: tuple[int, ...] | str = (
            space_padding
            if space_padding == "same"
            else per_axis(name, "space_padding", space_padding, self.axes, 0)
        )
        self.groups = positive(name, "groups", groups)
        if c_in % groups or c_out % groups:
            raise ParameterError(
                f"{name} expected groups to divide c_in and c_out, got groups={groups}, c_in={c_in}, c_out={c_out}."
            )
        if spread is not None and not (math.isfinite(spread) and spread > 0):
            raise ParameterError(f"{name} expected a spread of the first weights above 0, got {spread!r}.")
        self.spread = spread
        self.weight = nn.Parameter(torch.empty(c_out, c_in // groups, *self.kernel_size))
        self.bias = nn.Parameter(torch.empty(c_out)) if bias else None
        if padding != "causal":
            why = "it looks ahead in time (padding='same')"
            self.exempt = {"streaming": why, "causality": why}  # type: ignore[misc]
        elif self.stride[0] > 1:
            self.exempt = {"streaming": "with a stride in time it gives fewer steps than it takes"}  # type: ignore[misc]
        self.reset_parameters()

    @property
    def stateful(self) -> bool:  # type: ignore[override]
        """Whether it remembers: a causal kernel of more than one step its frames, one with a stride where it stands."""
        return self.padding == "causal" and (self.reach > 0 or self.stride[0] > 1)

    @property
    def mixes_steps(self) -> bool:
        """Whether its kernel spans more than a step, or skips some."""
        return self.reach > 0 or self.stride[0] > 1

    @property
    def reach(self) -> int:
        """Steps from the first to the last of a kernel: ``(kernel_size - 1) * dilation``."""
        return (self.kernel_size[0] - 1) * self.dilation[0]

    @property
    def ahead(self) -> int:
        """Steps that it looks ahead: 0 where causal, else ``floor(reach / 2)`` (and ``ceil`` back)."""
        return 0 if self.padding == "causal" else self.reach // 2

    def reset_parameters(self) -> None:
        """Draw weights and bias anew."""
        fan_in = self.weight[0].numel()
        if self.spread is None:
            uniform_(self.weight, fan_in)
        else:
            nn.init.normal_(self.weight, 0.0, self.spread / math.sqrt(fan_in))
        if self.bias is not None:
            uniform_(self.bias, fan_in) if self.spread is None else nn.init.zeros_(self.bias)

    def rows(self) -> Tensor:
        """What each output channel weighs ``(c_out, K)``: all taps, in space and in time."""
        return independent(self.weight.flatten(1), self.groups)

    def output_size(self, *size: int) -> tuple[int, ...]:
        """The spatial size that comes out for one that goes in; below one where the kernel does not fit."""
        found = []
        for axis, n in enumerate(size):
            k, s, d = self.kernel_size[axis + 1], self.stride[axis + 1], self.dilation[axis + 1]
            if self.space_padding == "same":
                found.append(-(-n // s))
            else:
                found.append((n + 2 * int(self.space_padding[axis]) - d * (k - 1) - 1) // s + 1)
        return tuple(found)

    def check(self, x: Tensor, lengths: Tensor | None) -> None:
        """Refuse anything but ``(T, B, c_in, *space)`` with room for the kernel."""
        name = type(self).__name__
        wanted = "(" + ", ".join(("T", "B", str(self.c_in), *self.names)) + ")"
        if not isinstance(x, Tensor) or x.dim() != 3 + self.axes or x.shape[2] != self.c_in:
            if not isinstance(x, Tensor):
                raise ShapeError(f"{name} expected {wanted}, got {type(x).__name__}.{no_tensor(x)}")
            order = "the order is time, batch, channels" + (", space" if self.axes else "")
            raise ShapeError(f"{name} expected {wanted}, got {tuple(x.shape)}: {order}; {self._remedy(x)}.")
        check_input(self, x, tuple(x.shape[2:]), lengths)
        check_dtype(self, x, self.weight)
        if self.axes and min(self.output_size(*x.shape[3:])) < 1:
            raise ShapeError(
                f"{name} with kernel {self.kernel_size}, dilation {self.dilation} and space_padding {self.space_padding} "
                f"expected a space that its kernel fits into, got {tuple(x.shape[3:])} in {tuple(x.shape)}."
            )

    def _remedy(self, x: Tensor) -> str:
        """What makes ``x`` fit, as far as its shape tells."""
        short = 3 + self.axes - x.dim()
        if short == 1 and self.c_in in x.shape[1:2]:
            return "for one sequence add the batch axis with x.unsqueeze(1)"
        if short == 1 and self.c_in == 1:
            return "add an axis for one channel with x.unsqueeze(2)"
        if short > 0 and x.dim() > 2 and x.shape[2] % self.c_in == 0 and x.shape[2] > self.c_in:
            return (
                f"if its {x.shape[2]} features are {self.c_in} channels in turn, unfold them with "
                f"x.unflatten(2, ({self.c_in}, -1)) (of a front end: flatten=False)"
            )
        if short == -1 and 1 in x.shape[2:]:
            return "take the axis of length 1 away with x.squeeze"
        return "bring the axes there with x.movedim, or change c_in"

    def initial_state(self, x: Tensor) -> State:
        """``reach`` silent frames ``(B, reach, c_in, *space)``, and with a stride no step since the last output."""
        if not self.stateful:
            return ()
        frames = x.new_zeros(x.shape[1], self.reach, *x.shape[2:])
        return (frames,) if self.stride[0] == 1 else (frames, x.new_zeros(x.shape[1]))

    def lengths_after(self, lengths: Tensor | None) -> Tensor | None:
        """Every ``stride``-th step; one more where ``padding="same"`` and the reach is odd."""
        if lengths is None:
            return None
        steps = lengths + (self.reach % 2 if self.padding == "same" else 0) * (lengths > 0)
        return -(-steps // self.stride[0])

    def apply_steps(self, x: Tensor) -> Tensor:
        """Not for a layer with memory."""
        raise NotImplementedError("a convolution over time remembers; call it as a layer.")

    def forward(
        self, x: Tensor, state: State | None = None, *, lengths: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Convolve ``T`` steps; the state of a causal one is the last ``reach`` frames of the input."""
        self.check(x, lengths)
        if lengths is not None:
            check_lengths(type(self).__name__, x, lengths)
        x = silence_padding(x, lengths)
        if state is not None and self.mixes_steps and not self.stateful:
            raise ShapeError(
                f"{type(self).__name__} looks ahead (padding='same'), so there is no state to go on from: give it the whole "
                "sequence with state=None, or build it with padding='causal'."
            )
        if state is not None:
            check_state(self, state, self.initial_state(x))
        if not self.stateful:
            back = -(-self.reach // 2)
            return silence_padding(self._convolve(x, back, back), self.lengths_after(lengths)), ()
        before = x.new_zeros(self.reach, *x.shape[1:]) if state is None else state[0].transpose(0, 1)
        end: State = (last_frames(before, x, lengths, self.reach),)
        frames, stride = torch.cat([before, x]), self.stride[0]
        if stride > 1:
            # the next output stands `wait` steps into these, counted from the last one of the steps before
            since = 0 if state is None or not x.shape[1] else int(state[1][0])
            wait = -since % stride
            frames = frames[wait:]
            lengths = None if lengths is None else (lengths - wait).clamp(min=0)
            end = (*end, x.new_full((x.shape[1],), (since + x.shape[0]) % stride))
        return silence_padding(self._convolve(frames, 0, 0), self.lengths_after(lengths)), end

    def _convolve(self, frames: Tensor, before: int, after: int) -> Tensor:
        """``frames (T', B, c_in, *space)`` with zeros at both ends of time -> ``(T, B, c_out, *space)``."""
        steps, batch = frames.shape[0] + before + after - self.reach, frames.shape[1]
        space = self.output_size(*frames.shape[3:])
        if steps < 1 or batch < 1 or not frames.shape[0]:
            none = 0 if not frames.shape[0] else max(0, -(-steps // self.stride[0]))
            return frames.new_zeros(none, batch, self.c_out, *space)
        pads = self._space_padding()
        if self.stride[0] == 1 and not frames.is_cuda:
            geometry = Geometry(self.dilation[0], before, after, self.stride[1:], self.dilation[1:], pads)
            y = convolve(
                frames.movedim(2, -1).contiguous(), self.weight, self.bias, geometry, groups=self.groups
            ).movedim(-1, 2)
        else:
            image = frames.movedim(0, 2)
            if before or after:
                image = functional.pad(image, (0, 0) * self.axes + (before, after))
            along: Any = (functional.conv1d, functional.conv2d, functional.conv3d)[self.axes]
            y = along(image, self.weight, self.bias, self.stride, (0, *pads), self.dilation, self.groups)
            y = y.movedim(2, 0)
        # an even kernel with "same" in space gives one place too many, as published cut off behind
        return y if tuple(y.shape[3:]) == space else y[(slice(None),) * 3 + tuple(slice(0, n) for n in space)]

    def _space_padding(self) -> tuple[int, ...]:
        if self.space_padding != "same":
            return tuple(int(p) for p in self.space_padding)
        return tuple(
            -(-(k - 1) * d // 2) for k, d in zip(self.kernel_size[1:], self.dilation[1:], strict=True)
        )

    def extra_repr(self) -> str:
        """Sizes, as ``print(layer)`` shows them."""
        return (
            f"{self.c_in}, {self.c_out}, kernel_size={self.kernel_size}, stride={self.stride}, dilation={self.dilation}, "
            f"padding={self.padding!r}, groups={self.groups}, bias={self.bias is not None}"
        )


class TemporalConv1d(_TemporalConv):
    r"""Convolve over time: a bank of conduction delays ``k d``, each with weights of its own.

    .. math:: y_o[t] = b_o + \sum_{c,k} w_{ock}\, x_c[t - (K - 1 - k)\, d + a]

    with dilation ``d`` and ``a`` steps of looking ahead: 0 where ``padding="causal"``, half the reach ``(K - 1) d`` where
    ``padding="same"``. The last entry of a kernel is the newest frame.

    Example:
        >>> import torch
        >>> from spiketide.synapses import TemporalConv1d
        >>> layer = TemporalConv1d(3, 8, 4, dilation=2)
        >>> y, state = layer(torch.rand(20, 5, 3))
        >>> more, state = layer(torch.rand(1, 5, 3), state)            # the next step of the same sequences
        >>> tuple(y.shape), tuple(state[0].shape)
        ((20, 5, 8), (5, 6, 3))

    Shapes:
        ``x (T, B, c_in)`` -> ``y (T', B, c_out)``; parameters ``weight (c_out, c_in / groups, K)`` and ``bias (c_out,)`` or
        ``None``. Causal: ``T' = ceil(T / stride)``, state ``(frames (B, (K - 1) d, c_in),)``. ``"same"``: no state, ``T' =
        ceil((T + 1) / stride)`` where the reach is odd, else ``ceil(T / stride)``.

    Args:
        c_in: channels in.
        c_out: channels out.
        kernel_size: steps (first) and places that the kernel spans.
        stride: steps and places between outputs. With a stride in time a chunk gives an output for every ``stride``-th step of
            the whole sequence; the state has a second part ``(B,)``, the steps since the last output.
        dilation: steps and places between kernel entries.
        padding: of time. ``"causal"``: silence before the sequence; it can stream. ``"same"``: as published, ``ceil(reach / 2)``
            silent steps before and behind, so it looks ahead, and the sequence grows by a step where the reach is odd.
        space_padding: zeros on either side of space, one number or one for each axis; ``"same"``: half of the kernel's width.
        groups: blocks of channels that do not see each other.
        bias: add a learnt offset per channel.
        spread: first weights normal with a deviation of ``spread / sqrt(fan_in)`` (the published: 0.15); ``None``: uniform in
            ``±1 / sqrt(fan_in)``. ``fan_in = c_in / groups * prod(kernel_size)``.

    Raises:
        ParameterError: a size out of range, an unknown padding, or groups that do not divide the channels.
        ShapeError: input of another rank or channel number, of integers, or too small for the kernel; a state of another batch.

    Reference:
        Zimmer, Pellegrini, Singh & Masquelier 2019. Differs: the published one is always ``"same"``.
    """

    axes = 0
    names = ()


class TemporalConv2d(_TemporalConv):
    r"""Convolve over time and one axis of space, for example the bands of a spectrogram.

    .. math:: y_o[t, f] = b_o + \sum_{c,k,l} w_{ockl}\, x_c[t - (K - 1 - k)\, d_t + a,\; f s + l d_f - p]

    Example:
        >>> import torch
        >>> from spiketide.synapses import TemporalConv2d
        >>> y, state = TemporalConv2d(3, 64, (4, 3), dilation=(4, 3))(torch.rand(50, 2, 3, 40))
        >>> tuple(y.shape), tuple(state[0].shape)
        ((50, 2, 64, 40), (2, 12, 3, 40))

    Shapes:
        ``x (T, B, c_in, F)`` -> ``y (T', B, c_out, F')``; parameters ``weight (c_out, c_in / groups, K_t, K_f)`` and ``bias``;
        state and ``T'`` as :class:`TemporalConv1d`; ``F' = ceil(F / stride)`` with ``space_padding="same"``.

    Args:
        c_in, c_out, kernel_size, stride, dilation, padding, space_padding, groups, bias, spread: as :class:`TemporalConv1d`;
            time comes first: ``kernel_size=(4, 3)`` spans four steps and three places.

    Raises:
        ParameterError, ShapeError: as :class:`TemporalConv1d`.

    Reference: as :class:`TemporalConv1d`.
    """

    axes = 1
    names = ("F",)


class TemporalConv3d(_TemporalConv):
    r"""Convolve over time and the two axes of an image: for event streams and video.

    Example:
        >>> import torch
        >>> from spiketide.synapses import TemporalConv3d
        >>> y, state = TemporalConv3d(2, 8, 3)(torch.rand(10, 4, 2, 16, 12))
        >>> tuple(y.shape), tuple(state[0].shape)
        ((10, 4, 8, 16, 12), (4, 2, 2, 16, 12))

    Shapes:
        ``x (T, B, c_in, H, W)`` -> ``y (T', B, c_out, H', W')``; parameters ``weight (c_out, c_in / groups, K_t, K_h, K_w)`` and
        ``bias``; state and ``T'`` as :class:`TemporalConv1d`.

    Args:
        c_in, c_out, kernel_size, stride, dilation, padding, space_padding, groups, bias, spread: as :class:`TemporalConv1d`;
            time comes first.

    Raises:
        ParameterError, ShapeError: as :class:`TemporalConv1d`.

    Reference: as :class:`TemporalConv1d`.
    """

    axes = 2
    names = ("H", "W")
