r"""Delayed projections: ``y[t] = sum over lags of k[lag] x[t - lag]``, a kernel over time for every synapse.

With ``K`` kernel places (lags ``K - 1`` to 0) and the ``K - 1`` frames before the sequence in front of it::

    y_o[t] = sum over i, n < K of  k_oi[n] x_i[t + n]          t = 0 .. T - 1,  x of T + K - 1 frames

which is a cross-correlation without padding (torch's ``conv1d``). Five ways to do it:

- ``reference``: that convolution, ``K`` multiply-adds a synapse and step, whatever stands in the kernel;
- ``reads``: where a kernel is a handful of neighbouring taps, only these, read shifted (:mod:`.delay_cpu`, :mod:`.delay_gpu`);
- ``events``: such taps for the nonzeros of the input alone (:mod:`.delay_events_cpu`); the input gradient by reads;
- ``windows``: whole kernels for the nonzeros of the input alone (:mod:`.delay_windows_cpu`); the input gradient by the next;
- ``wide``: in the frequency domain, by matrix products alone. The transform of a sequence of ``L`` frames is the product with
  a ``(2 F, L)`` matrix of cosines and sines (``F = L // 2 + 1``), and one complex product of ``(B, I)`` with ``(I, O)`` stands
  for each frequency: four real products a synapse and frequency, for any kernel.

All are exact up to rounding (``wide``: to about 1e-6 of the largest output in float32; ``reads`` and ``events`` give the same
bits). :func:`choose` takes the cheapest.
"""

from __future__ import annotations

import functools
import importlib.util
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from .memory import empty

TAPS = (1, 2, 4, 8)
"""Numbers of taps that the ``few`` way has loops for."""


def reference(x: Tensor, kernel: Tensor) -> Tensor:
    """The convolution itself.

    Shapes: ``x (T + K - 1, B, I)``, ``kernel (K, O, I)`` -> ``(T, B, O)``.
    """
    return functional.conv1d(x.permute(1, 2, 0), kernel.permute(1, 2, 0)).permute(2, 0, 1).contiguous()


def scatter(taps: Tensor, first: Tensor, places: int) -> Tensor:
    """The whole kernels of taps that stand side by side.

    Shapes: ``taps (O, I, M, N)``, ``first (O, I, M)`` the place of the first -> ``(places, O, I)``, summed over ``M``.
    """
    index = first.long().unsqueeze(-1) + torch.arange(taps.shape[-1], device=taps.device)
    kernel = taps.new_zeros(places, *taps.shape[:2])
    return kernel.scatter_add(0, index.flatten(2).permute(2, 0, 1), taps.flatten(2).permute(2, 0, 1))


# ------------------------------------------------------------------------------------------------------------ few taps


TILE_MEMORY = 4 << 20
"""Bytes of the tiles that are made at a time, unless the threads need more to share."""


class _Tiles:
    """Memory for some tiles of ``x (T, B, N)`` of a few samples each, silent lines around."""

    def __init__(self, x: Tensor, most: int, *, spread: bool = True) -> None:
        from . import delay_cpu

        length = _length(x.shape[0], x.itemsize, spread)
        self.x = x.numpy()
        self.room = empty((most, x.shape[2], length, delay_cpu.LANES), x.dtype).numpy()

    def fill(self, begin: int, count: int) -> Any:
        """``count`` tiles from tile ``begin`` on."""
        from . import delay_cpu

        tiles = self.room[:count]
        delay_cpu.to_tiles(self.x, tiles, begin * delay_cpu.LANES)
        return tiles


def _length(steps: int, itemsize: int, spread: bool) -> int:
    """Lines of a tile's row."""
    from . import delay_cpu

    length = steps + 2 * delay_cpu.EDGE
    if spread:
        # several rows at a time are read: 256 bytes off a multiple of 512, they lie evenly over the sets of a cache
        line = delay_cpu.LANES * itemsize
        length += (256 // line - length) % (512 // line)
    return length


def _waves(x: Tensor, units: int) -> list[tuple[int, int]]:
    """The tiles of ``x (T, B, N)``, some at a time: from which on, and how many; each is worked on in so many units."""
    from . import delay_cpu, threading

    total = -(-x.shape[1] // delay_cpu.LANES)
    size = x.shape[2] * _length(x.shape[0], x.itemsize, True) * delay_cpu.LANES * x.itemsize
    wave = max(1, TILE_MEMORY // max(1, size), -(-4 * threading.threads() // units))
    return [(begin, min(wave, total - begin)) for begin in range(0, total, wave)]


def _lines(weights: Tensor, frames: int) -> Any:
    """Where in a tile the input of every synapse ``(I * M)`` begins."""
    n_in, copies = weights.shape[1:3]
    rows = torch.arange(n_in, device="cpu") * _length(frames, weights.itemsize, True)
    return rows.repeat_interleave(copies).numpy()


class Events(NamedTuple):
    """The nonzeros of frames ``(T, B, I)``, listed by sample, input and time."""

    starts: Tensor
    """``(B, I + 1)`` int64, where the list of each input of a sample begins."""
    steps: Tensor
    """Their frames, int32."""
    values: Tensor
    """What they carry."""


def count_events(x: Tensor) -> Tensor:
    """Nonzeros of every input of every sample ``(B, I)`` int64, of frames ``(T, B, I)`` on the CPU."""
    from . import delay_events_cpu

    found = torch.empty(x.shape[1:], dtype=torch.int64, device="cpu")
    delay_events_cpu.count.sized(x.numel(), x.detach().contiguous().numpy(), found.numpy())
    return found


def list_events(x: Tensor, counts: Tensor) -> Events:
    """The lists, of numbers of nonzeros that are known."""
    from . import delay_events_cpu

    x = x.detach().contiguous()
    ends = counts.flatten().cumsum(0).view(counts.shape)
    starts = torch.empty(counts.shape[0], counts.shape[1] + 1, dtype=torch.int64, device="cpu")
    starts[:, 0] = ends[:, 0] - counts[:, 0]
    starts[:, 1:] = ends
    total = int(ends[-1, -1])
    steps = torch.zeros(total, dtype=torch.int32, device="cpu")
    values = torch.zeros(total, dtype=x.dtype, device="cpu")
    at = starts[:, :-1].clone(memory_format=torch.contiguous_format)
    delay_events_cpu.fill.sized(
        x.numel(), x.numpy(), starts.numpy(), at.numpy(), steps.numpy(), values.numpy()
    )
    return Events(starts, steps, values)


def _taps_beside(weights: Tensor) -> Any:
    """Taps as the loops over events read them: in reverse, input by input."""
    from . import delay_events_cpu

    beyond = -weights.shape[0] % delay_events_cpu.UNROLLED
    taps = weights.permute(1, 2, 0, 3).flip(-1)
    if beyond:
        taps = functional.pad(taps, (0, 0, 0, beyond))
    return taps.contiguous().numpy()


def _places_beside(first: Tensor) -> tuple[Any, Any, Any]:
    """Where they are added, and the least and the largest place of each input; see ``project`` there."""
    from . import delay_events_cpu

    beyond = -first.shape[0] % delay_events_cpu.UNROLLED
    places = 1 - first.permute(1, 2, 0)
    least, largest = places.flatten(1).amin(1), places.flatten(1).amax(1)
    if beyond:
        places = torch.cat([places, places[..., -1:].expand(*places.shape[:2], beyond)], -1)
    return (
        places.to(torch.int32).contiguous().numpy(),
        least.contiguous().numpy(),
        largest.contiguous().numpy(),
    )


def _group(steps: int, taps: int, itemsize: int) -> int:
    """Outputs whose steps share the first-level cache."""
    from . import delay_events_cpu

    most, each = delay_events_cpu.OUTPUTS, (steps + 2 * taps) * itemsize
    fit = delay_events_cpu.TILE_BYTES // each // delay_events_cpu.UNROLLED * delay_events_cpu.UNROLLED
    return max(most // 4, min(most, fit))


class _Few(torch.autograd.Function):
    """A few taps under autograd: forward and their gradient by events (if listed) or shifted reads, the input's by reads."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        taps: Tensor,
        first: Tensor,
        places: int,
        silent: tuple[int, int],
        engine: str,
        events: Events | None,
    ) -> Tensor:
        weights, first = taps.detach().contiguous(), first.contiguous()
        steps = x.shape[0] + sum(silent) - places + 1
        ctx.how = (places, silent, engine, x.shape[0], weights.shape)
        # the taps may change before the backward where the input needs no gradient: theirs is of the input alone
        kept = weights if ctx.needs_input_grad[0] else None
        if events is None:
            ctx.save_for_backward(kept, first, x)
            return _project(x, weights, first, steps, silent[0], engine)
        ctx.save_for_backward(kept, first, *events)
        return _project_events(events, weights, first, steps, silent[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        weights, first, *given = ctx.saved_tensors
        places, silent, engine, frames, shape = ctx.how
        gx = gtaps = None
        if ctx.needs_input_grad[1]:
            if len(given) == 1:
                gtaps = _tap_gradient(given[0], gy, gy.new_zeros(shape), first, silent[0], engine)
            else:
                gtaps = _event_gradient(Events(*given), gy, shape, first, silent[0])
        if ctx.needs_input_grad[0]:
            # the same sum with inputs and outputs, and the order of the taps, exchanged; what the silent frames would get is
            # left out
            back = weights.permute(1, 0, 2, 3).flip(-1).contiguous()
            at = (places - weights.shape[-1] - first.permute(1, 0, 2)).contiguous()
            gx = _project(gy, back, at, frames, places - 1 - silent[0], engine)
        return gx, gtaps, None, None, None, None, None


def _project_events(events: Events, weights: Tensor, first: Tensor, steps: int, before: int) -> Tensor:
    """Outputs ``(steps, B, O)`` of the nonzeros behind so many silent frames."""
    from . import delay_events_cpu

    y = empty((steps, events.starts.shape[0], weights.shape[0]), weights.dtype)
    group = _group(steps, weights.shape[-1], weights.itemsize)
    lists = (e.numpy() for e in events)
    delay_events_cpu.project(*lists, _taps_beside(weights), *_places_beside(first), before, group, y.numpy())
    return y


def _event_gradient(events: Events, gy: Tensor, shape: torch.Size, first: Tensor, before: int) -> Tensor:
    """Gradient of the taps, in their shape."""
    from . import delay_events_cpu

    places, least, largest = _places_beside(first)
    n_out, n_in, copies, width = shape
    padded = places.shape[-1]
    rows = empty((gy.shape[1], padded, gy.shape[0] + 2 * width), gy.dtype)
    delay_events_cpu.to_rows(gy.contiguous().numpy(), rows.numpy(), width)
    found = empty((n_in, copies, padded, width), gy.dtype)
    group = _group(gy.shape[0], width, gy.itemsize)
    lists = (e.numpy() for e in events)
    delay_events_cpu.gradient(*lists, rows.numpy(), places, least, largest, before, group, found.numpy())
    return found[:, :, :n_out].flip(-1).permute(2, 0, 1, 3).contiguous()


def _project(x: Tensor, weights: Tensor, first: Tensor, steps: int, before: int, engine: str) -> Tensor:
    """Outputs ``(steps, B, O)`` of frames behind so many silent ones."""
    x = x.detach().contiguous()
    if engine == "gpu":
        from . import delay_gpu

        return delay_gpu.project(x, weights, first, steps, before)
    from . import delay_cpu

    frames, batch, _ = x.shape
    n_out = weights.shape[0]
    y = empty((steps, batch, n_out), x.dtype)
    taps, lines = weights.flatten(1, 2).numpy(), _lines(weights, frames)
    places = (first - before).flatten(1).contiguous().numpy()
    waves = _waves(x, -(-n_out // delay_cpu.GROUP))
    tiles = _Tiles(x, waves[0][1])
    for wave in waves:
        sample = wave[0] * delay_cpu.LANES
        delay_cpu.project(tiles.fill(*wave), taps, places, lines, frames, sample, y.numpy())
    return y


def _tap_gradient(x: Tensor, gy: Tensor, found: Tensor, first: Tensor, before: int, engine: str) -> Tensor:
    """Gradient of the taps, added to the zeros of ``found``."""
    x, gy = x.detach().contiguous(), gy.contiguous()
    if engine == "gpu":
        from . import delay_gpu

        return delay_gpu.gradient(x, gy, found, first, before)
    from . import delay_cpu

    lines = _lines(found, x.shape[0])
    places = (first - before).flatten(1).contiguous().numpy()
    waves = _waves(x, found.shape[0])
    tiles, outer = _Tiles(x, waves[0][1]), _Tiles(gy, waves[0][1], spread=False)
    for wave in waves:
        delay_cpu.gradient(
            tiles.fill(*wave), outer.fill(*wave), places, lines, x.shape[0], gy.shape[0],
            found.flatten(1, 2).numpy(),
        )  # fmt: skip
    return found


def few_runs(device: torch.device, taps: int) -> bool:
    """Whether shifted reads are worth asking for: on the CPU; on a GPU with Triton for one tap (that choice is not measured)."""
    if device.type == "cpu":
        return True
    return device.type == "cuda" and taps == 1 and importlib.util.find_spec("triton") is not None


def few(
    x: Tensor,
    taps: Tensor,
    first: Tensor,
    places: int,
    silent: tuple[int, int] = (0, 0),
    *,
    engine: str | None = None,
    events: Events | None = None,
) -> Tensor:
    """Delayed projection by kernels of ``N`` neighbouring taps, by shifted reads or by events; float32 or float64.

    Shapes:
        ``x (T + places - 1, B, I)``, ``taps (O, I, M, N)`` with ``N`` one of 1, 2, 4, 8, ``first (O, I, M)`` int64 with
        ``0 <= first <= places - N`` -> ``(T, B, O)``. ``silent`` frames before and after ``x`` count among its frames and
        need not be given.

    Args:
        engine: ``"cpu"`` (Numba), ``"gpu"`` (Triton; CPU tensors in its interpreter), or ``None`` for that of the device.
        events: the nonzeros of ``x`` (:func:`list_events`), on the CPU; without them all of ``x`` is read shifted.
    """
    y: Tensor = _Few.apply(x, taps, first, places, silent, engine or ("gpu" if x.is_cuda else "cpu"), events)
    return y


# ---------------------------------------------------------------------------------------------------------------- wide


@functools.lru_cache(maxsize=32)
def _fourier(length: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Matrices to the frequencies of a real sequence ``(2 F, L)``, and back ``(L, 2 F)``."""
    count = length // 2 + 1
    with torch.inference_mode(False), torch.no_grad():  # they are kept: a training may ask for them next
        # the angle is taken modulo a turn in integers: exact for any length
        frames = torch.arange(length, device="cpu")
        turn = frames[:count].unsqueeze(1) * frames % length
        angle = turn.to(torch.float64) * (2 * math.pi / length)
        forward = torch.cat([torch.cos(angle), -torch.sin(angle)])
        share = torch.full((count,), 2.0 / length, dtype=torch.float64, device="cpu")
        share[0] = 1.0 / length
        if length % 2 == 0:
            share[-1] = 1.0 / length
        back = (forward * share.repeat(2).unsqueeze(1)).t()
        return forward.to(dtype).to(device), back.contiguous().to(dtype).to(device)


def _mm(a: Tensor, b: Tensor, *shape: int) -> Tensor:
    """``a @ b`` in the form ``shape``, into pooled memory on the CPU."""
    # no view of the product, which could not be changed in place
    out = empty(shape, b.dtype) if b.device.type == "cpu" else b.new_empty(shape)
    torch.mm(a, b, out=out.view(a.shape[0], b.shape[1]))
    return out


def _complex(a: Tensor, b: Tensor, sign: int, *shape: int) -> Tensor:
    """Products of the complex matrices of every frequency: ``a conj(b)`` for ``sign`` -1, ``a b`` for +1.

    Shapes: ``a (2, F, P, Q)``, ``b (2, F, Q, R)`` -> ``(2, F, P, R)``; real parts first.
    """
    out = empty(shape, a.dtype) if a.device.type == "cpu" else a.new_empty(shape)
    torch.bmm(a[0], b[0], out=out[0])
    torch.baddbmm(out[0], a[1], b[1], alpha=-sign, out=out[0])
    torch.bmm(a[1], b[0], out=out[1])
    torch.baddbmm(out[1], a[0], b[1], alpha=sign, out=out[1])
    return out


class _Wide(torch.autograd.Function):
    """The product of the transforms, and its gradients, under autograd."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Tensor, silent: tuple[int, int]) -> Tensor:
        given, batch, n_in = x.shape
        places, n_out, _ = kernel.shape
        length = given + sum(silent)
        steps, count = length - places + 1, length // 2 + 1
        to, back = _fourier(length, x.dtype, x.device)
        here = slice(silent[0], silent[0] + given)
        xf = _mm(to[:, here], x.reshape(given, -1), 2, count, batch, n_in)
        kf = _mm(to[:, :places], kernel.reshape(places, -1), 2, count, n_out, n_in)
        # conjugate of the kernel's transform: a correlation, not a convolution
        yf = _complex(xf, kf.transpose(2, 3), -1, 2, count, batch, n_out)
        ctx.save_for_backward(xf, kf)
        ctx.sizes = (length, places, steps, here)
        return _mm(back[:steps], yf.view(2 * count, -1), steps, batch, n_out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        xf, kf = ctx.saved_tensors
        length, places, steps, here = ctx.sizes
        _, count, batch, n_in = xf.shape
        n_out = kf.shape[2]
        to, back = _fourier(length, gy.dtype, gy.device)
        gf = _mm(back[:steps].t(), gy.reshape(steps, -1), 2, count, batch, n_out)
        gx = gkernel = None
        if ctx.needs_input_grad[0]:
            gxf = _complex(gf, kf, 1, 2, count, batch, n_in)
            gx = _mm(to[:, here].t(), gxf.view(2 * count, -1), here.stop - here.start, batch, n_in)
        if ctx.needs_input_grad[1]:
            # real part gr' xr + gi' xi, imaginary part gr' xi - gi' xr: conj(g)' x
            gkf = _complex(_conjugate(gf).transpose(2, 3), xf, 1, 2, count, n_out, n_in)
            gkernel = _mm(to[:, :places].t(), gkf.view(2 * count, -1), places, n_out, n_in)
        return gx, gkernel, None


def _conjugate(a: Tensor) -> Tensor:
    """``conj(a)``, in place: its second half is the imaginary part."""
    a[1].neg_()
    return a


def wide(x: Tensor, kernel: Tensor, silent: tuple[int, int] = (0, 0)) -> Tensor:
    """Delayed projection in the frequency domain, by matrix products.

    Shapes: ``x (T + K - 1, B, I)``, ``kernel (K, O, I)`` -> ``(T, B, O)``. ``silent`` frames before and after ``x`` count
    among its frames and need not be given.
    """
    y: Tensor = _Wide.apply(x, kernel, silent)
    return y


# ------------------------------------------------------------------------------------------------------------- windows

GROUP = 64
"""Most outputs whose kernels stand side by side."""


def _groups(n_out: int) -> tuple[int, int]:
    """How many groups the outputs make, and how many stand in each: a multiple of 8."""
    groups = -(-n_out // GROUP)
    return groups, -(-n_out // (8 * groups)) * 8


def _blocks(kernel: Tensor) -> Tensor:
    """Kernels ``(K, O, I)`` as blocks ``(groups, I, K, width)``, places in reverse, zeros beyond the last output."""
    n_out = kernel.shape[1]
    groups, width = _groups(n_out)
    padded = functional.pad(kernel.flip(0), (0, 0, 0, groups * width - n_out))
    return padded.unflatten(1, (groups, width)).permute(1, 3, 0, 2).contiguous()


def _from_blocks(blocks: Tensor, n_out: int) -> Tensor:
    """The reverse of :func:`_blocks`."""
    return blocks.permute(2, 0, 3, 1).flatten(1, 2)[:, :n_out].flip(0)


class _Windows(torch.autograd.Function):
    """Whole kernels by events under autograd; the input's gradient by a way that is dense."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Tensor, silent: tuple[int, int], events: Events) -> Tensor:
        from . import delay_windows_cpu

        kernel = kernel.detach()
        ctx.save_for_backward(kernel, *events)
        ctx.how = (silent, x.shape)
        steps = x.shape[0] + sum(silent) - kernel.shape[0] + 1
        y = empty((steps, x.shape[1], kernel.shape[1]), x.dtype)
        lists = (e.numpy() for e in events)
        delay_windows_cpu.project(*lists, _blocks(kernel).numpy(), silent[0], kernel.shape[1], y.numpy())
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        from . import delay_windows_cpu

        kernel, *given = ctx.saved_tensors
        silent, (frames, batch, n_in) = ctx.how
        places, n_out, _ = kernel.shape
        gx = gkernel = None
        if ctx.needs_input_grad[1]:
            groups, width = _groups(n_out)
            grouped = empty((batch, groups, gy.shape[0], width), gy.dtype)
            delay_windows_cpu.to_groups(gy.contiguous().numpy(), grouped.numpy())
            found = empty((groups, n_in, places, width), gy.dtype)
            lists = (e.numpy() for e in given)
            delay_windows_cpu.gradient(*lists, grouped.numpy(), silent[0], found.numpy())
            gkernel = _from_blocks(found, n_out).contiguous()
        if ctx.needs_input_grad[0]:
            # the same sum with inputs and outputs, and the order of the places, exchanged; what the silent frames would get
            # is left out
            back = kernel.flip(0).transpose(1, 2)
            around = [places - 1 - silent[0], places - 1 - silent[1]]
            gy, around[1] = gy[: gy.shape[0] + min(0, around[1])], max(0, around[1])
            if choose(frames, batch, n_out, n_in, None, places) == "wide":
                gx = wide(gy, back, (around[0], around[1]))
            else:
                with torch.autocast(gy.device.type, enabled=False):
                    gx = reference(functional.pad(gy, (0, 0, 0, 0, *around)), back)
        return gx, gkernel, None, None


def windows(x: Tensor, kernel: Tensor, events: Events, silent: tuple[int, int] = (0, 0)) -> Tensor:
    """Delayed projection by whole kernels for the nonzeros of the input alone, on the CPU.

    Shapes: ``x (T + K - 1, B, I)``, ``kernel (K, O, I)`` -> ``(T, B, O)``; ``silent`` as :func:`wide`, ``events`` of
    :func:`list_events`.
    """
    y: Tensor = _Windows.apply(x, kernel, silent, events)
    return y


def shift_channels(x: Tensor, kernel: Tensor) -> Tensor:
    """Delay every channel by its own kernel: ``y_i[t] = sum over n < K of k_i[n] x_i[t + n]``, differentiable by torch.

    Small inputs go through torch's depthwise convolution, larger ones through the frequency domain, in which a kernel is
    one complex number per frequency.

    Shapes: ``x (T + K - 1, B, N)``, ``kernel (K, N)`` -> ``(T, B, N)``.
    """
    length, batch, n = x.shape
    places = kernel.shape[0]
    if x.numel() * places < SMALL_SHIFT:
        weight = kernel.t().unsqueeze(1)
        return functional.conv1d(x.permute(1, 2, 0), weight, groups=n).permute(2, 0, 1)
    to, back = _fourier(length, x.dtype, x.device)
    count, steps = length // 2 + 1, length - places + 1
    xr, xi = (to @ x.reshape(length, -1)).view(2, count, batch, n).unbind(0)
    kr, ki = (to[:, :places] @ kernel).view(2, count, 1, n).unbind(0)
    yf = torch.stack([xr * kr + xi * ki, xi * kr - xr * ki])
    return (back[:steps] @ yf.view(2 * count, -1)).view(steps, batch, n)


SMALL_SHIFT = 1 << 20
"""Multiply-adds below which the depthwise convolution is no slower."""


# ----------------------------------------------------------------------------------------------------------- the choice


class Costs(NamedTuple):
    """Nanoseconds of one core.

    Measured on an EPYC core (AVX2) in float32. Only the ratios decide; with AVX-512 the products, shifted reads among them, are
    faster than here beside the events.
    """

    read: float = 0.07
    """A synapse and step of shifted reads, whatever its taps; mean of forward and gradient, as all that follows."""
    tap: float = 0.024
    """A tap of it."""
    tile: float = 2.7
    """Putting an element of the input into a tile."""
    spike: float = 1.5
    """Adding the taps of one synapse for one event."""
    listing: float = 25.0
    """Listing an event, and beginning with each of its outputs' groups."""
    element: float = 1.0
    """Looking for events at an element of the input."""
    window: float = 0.095
    """Adding one place of the kernel of one synapse for one event."""
    alone: float = 2.1
    """What windows may cost less where the input needs a gradient: its transforms serve the other passes of ``wide`` too."""
    hope: float = 0.7
    """What shifted reads count for where events may stand in for them, once the spikes are counted."""
    wide: float = 0.05
    """A multiply-add of torch's matrix products in the frequency domain."""
    reference: float = 0.03
    """A multiply-add of torch's convolution."""
    few_call: float = 500_000.0
    """What shifted reads or events take whatever the size."""
    wide_call: float = 1_000_000.0
    """What the way through the frequency domain takes."""
    reference_call: float = 500_000.0
    """What the convolution takes."""


COSTS = Costs()


def read_cost(steps: int, batch: int, n_in: int, n_out: int, taps: int) -> float:
    """Nanoseconds of one core for one pass by shifted reads."""
    places = -(-steps // 5) * 5 * -(-batch // 8) * 8
    return places * n_in * (n_out * (COSTS.read + COSTS.tap * taps) + COSTS.tile) + COSTS.few_call


def event_cost(elements: int, n_out: int, copies: int, events: float) -> float:
    """Nanoseconds of one core for one pass by the ``events`` among so many elements of the input."""
    updates = events * copies * (-(-n_out // 4) * 4)
    return COSTS.spike * updates + COSTS.listing * events + COSTS.element * elements + COSTS.few_call


def window_cost(elements: int, steps: int, n_out: int, places: int, events: float) -> float:
    """Nanoseconds of one core for one pass by whole kernels for the ``events`` among so many elements of the input."""
    updates = events * (-(-n_out // 8) * 8) * min(places, steps)
    return COSTS.window * updates + COSTS.listing * events + COSTS.element * elements + COSTS.few_call


def wide_cost(steps: int, batch: int, n_in: int, n_out: int, places: int) -> float:
    """Nanoseconds of one core for one pass in the frequency domain."""
    length = steps + places - 1
    twice = 2 * (length // 2 + 1)
    products = 2 * twice * batch * n_in * n_out
    transforms = twice * (length * batch * n_in + places * n_in * n_out + steps * batch * n_out)
    return (products + transforms) * COSTS.wide + COSTS.wide_call


def reference_cost(steps: int, batch: int, n_in: int, n_out: int, places: int) -> float:
    """Nanoseconds of one core for one pass of the convolution."""
    return steps * batch * n_in * n_out * places * COSTS.reference + COSTS.reference_call


def choose(
    steps: int,
    batch: int,
    n_in: int,
    n_out: int,
    taps: tuple[int, int] | None,
    places: int,
    events: float | None = None,
    gradient: bool = False,
) -> str:
    """The cheapest way: ``"reads"``, ``"events"``, ``"windows"``, ``"wide"`` or ``"reference"``.

    The sizes alone decide between shifted reads, the frequency domain and the convolution, and the spikes between one of these
    and its counterpart: events in place of reads, which give the same outputs to the bit, and events or windows in place of the
    frequency domain, where the past already knows of the future by a rounding error. So whole delays and narrow kernels stay
    causal to the bit.

    Example:
        >>> from spiketide.kernels.delay import choose
        >>> choose(100, 128, 140, 256, (1, 1), 25), choose(100, 128, 140, 256, (1, 4), 25, events=0.05 * 124 * 128 * 140)
        ('reads', 'events')
        >>> choose(100, 128, 140, 256, None, 25), choose(5, 2, 4, 4, None, 25)
        ('wide', 'reference')
        >>> choose(100, 128, 140, 256, None, 25, events=0.02 * 124 * 128 * 140)
        'windows'

    Args:
        steps, batch, n_in, n_out: sizes.
        taps: copies of a connection, and taps of each; ``None`` where a kernel is not a few taps.
        places: of a kernel.
        events: nonzeros of the input; ``None`` where their ways cannot run.
        gradient: whether the input needs one.
    """
    costs = {
        "wide": wide_cost(steps, batch, n_in, n_out, places),
        "reference": COSTS.reference * steps * batch * n_in * n_out * places + COSTS.reference_call,
    }
    if taps is not None:
        copies, each = taps
        costs["reads"] = copies * read_cost(steps, batch, n_in, n_out, each)
        if events is not None:
            costs["reads"] *= COSTS.hope
    way = min(costs, key=lambda name: costs[name])
    if events is None or way == "reference":
        return way
    elements = steps * batch * n_in
    if taps is not None:
        dense = costs[way] / (COSTS.hope if way == "reads" else 1.0)
        return "events" if event_cost(elements, n_out, taps[0], events) < dense else way
    sparse = window_cost(elements, steps, n_out, places, events) * (COSTS.alone if gradient else 1.0)
    return "windows" if sparse < costs[way] else way
