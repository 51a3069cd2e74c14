r"""Delayed projections: ``y[t] = sum over lags of k[lag] x[t - lag]``, a kernel over time for every synapse.

With ``K`` kernel places (lags ``K - 1`` to 0) and the ``K - 1`` frames before the sequence in front of it::

    y_o[t] = sum over i, n < K of  k_oi[n] x_i[t + n]          t = 0 .. T - 1,  x of T + K - 1 frames

which is a cross-correlation without padding (torch's ``conv1d``). Three ways to do it:

- ``reference``: that convolution, ``K`` multiply-adds a synapse and step, whatever stands in the kernel;
- ``few``: where a kernel is a handful of neighbouring taps, only these, read shifted (:mod:`.delay_cpu`, :mod:`.delay_gpu`);
- ``wide``: in the frequency domain, by matrix products alone. The transform of a sequence of ``L`` frames is the product with
  a ``(2 F, L)`` matrix of cosines and sines (``F = L // 2 + 1``), and one complex product of ``(B, I)`` with ``(I, O)`` stands
  for each frequency: four real products a synapse and frequency, for any kernel.

All are exact up to rounding (``wide``: to about 1e-6 of the largest output in float32). :func:`choose` takes the cheaper
of the last two.
"""

from __future__ import annotations

import functools
import importlib.util
import math
from typing import Any

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


def _tiles(x: Tensor, before: int = 0, after: int = 0, *, spread: bool = True) -> Any:
    """``x (T, B, N)`` as tiles of 16 samples, silent lines around."""
    from . import delay_cpu

    steps, batch, n = x.shape
    length = before + steps + after
    if spread:
        # sixteen rows at a time are read: four lines off a multiple of eight, they lie evenly over the sets of a cache
        length += (4 - length) % 8
    tiles = empty((-(-batch // delay_cpu.LANES), n, length, delay_cpu.LANES), x.dtype)
    delay_cpu.to_tiles(x.detach().contiguous().numpy(), tiles.numpy(), before)
    return tiles.numpy()


def _lines(first: Tensor, rows: int) -> Any:
    """Where every synapse begins to read in a tile whose inputs have so many lines each ``(O, I * M)``."""
    inputs = torch.arange(first.shape[1]).unsqueeze(1) * rows
    return (first + inputs).flatten(1).contiguous().numpy()


def _whole_chunks(steps: int) -> int:
    """Silent lines after ``steps`` so that the loops may run in whole chunks."""
    from . import delay_cpu

    return -steps % delay_cpu.CHUNK


class _Few(torch.autograd.Function):
    """Shifted reads of a few taps under autograd."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, taps: Tensor, first: Tensor, places: int, silent: tuple[int, int], engine: str
    ) -> Tensor:
        weights, first = taps.detach().contiguous(), first.contiguous()
        ctx.save_for_backward(x, weights, first)
        ctx.how = (places, silent, engine)
        return _project(x.detach(), weights, first, x.shape[0] + sum(silent) - places + 1, silent, engine)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        x, weights, first = ctx.saved_tensors
        places, silent, engine = ctx.how
        gx = gtaps = None
        if ctx.needs_input_grad[1]:
            gtaps = _tap_gradient(x.detach(), gy, weights, first, silent, engine)
        if ctx.needs_input_grad[0]:
            # the same sum with inputs and outputs, and the order of the taps, exchanged; from the first frame that was given:
            # what the silent ones before it would get is left out
            back = weights.permute(1, 0, 2, 3).flip(-1).contiguous()
            at = places - weights.shape[-1] - first.permute(1, 0, 2) + silent[0]
            gx = _project(gy, back, at.contiguous(), x.shape[0], (places - 1, places - 1), engine)
        return gx, gtaps, None, None, None, None


def _project(
    x: Tensor, weights: Tensor, first: Tensor, steps: int, silent: tuple[int, int], engine: str
) -> Tensor:
    """Outputs ``(steps, B, O)`` of frames between silent ones."""
    if engine == "gpu":
        from . import delay_gpu

        return delay_gpu.project(x.contiguous(), weights, first, steps, silent[0])
    from . import delay_cpu

    tiles = _tiles(x, silent[0], silent[1] + _whole_chunks(steps))
    y = empty((steps, x.shape[1], weights.shape[0]), x.dtype)
    delay_cpu.project(tiles, weights.flatten(1, 2).numpy(), _lines(first, tiles.shape[2]), y.numpy())
    return y


def _tap_gradient(
    x: Tensor, gy: Tensor, weights: Tensor, first: Tensor, silent: tuple[int, int], engine: str
) -> Tensor:
    """Gradient of the taps, in the shape of ``weights``."""
    if engine == "gpu":
        from . import delay_gpu

        return delay_gpu.gradient(x.contiguous(), gy.contiguous(), weights, first, silent[0])
    from . import delay_cpu

    found, after = torch.empty_like(weights), _whole_chunks(gy.shape[0])
    tiles = _tiles(x, silent[0], silent[1] + after)
    lines = _lines(first, tiles.shape[2])
    delay_cpu.gradient(tiles, _tiles(gy, 0, after, spread=False), lines, found.flatten(1, 2).numpy())
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
) -> Tensor:
    """Delayed projection by kernels of ``N`` neighbouring taps, read shifted; float32 or float64.

    Shapes:
        ``x (T + places - 1, B, I)``, ``taps (O, I, M, N)`` with ``N`` one of 1, 2, 4, 8, ``first (O, I, M)`` int64 with
        ``0 <= first <= places - N`` -> ``(T, B, O)``. ``silent`` frames before and after ``x`` count among its frames and
        need not be given.

    Args:
        engine: ``"cpu"`` (Numba), ``"gpu"`` (Triton; CPU tensors in its interpreter), or ``None`` for that of the device.
    """
    y: Tensor = _Few.apply(x, taps, first, places, silent, engine or ("gpu" if x.is_cuda else "cpu"))
    return y


# ---------------------------------------------------------------------------------------------------------------- wide


@functools.lru_cache(maxsize=32)
def _fourier(length: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Matrices to the frequencies of a real sequence ``(2 F, L)``, and back ``(L, 2 F)``."""
    count = length // 2 + 1
    # the angle is taken modulo a turn in integers: exact for any length
    turn = torch.arange(count).unsqueeze(1) * torch.arange(length) % length
    angle = turn.to(torch.float64) * (2 * math.pi / length)
    forward = torch.cat([torch.cos(angle), -torch.sin(angle)])
    share = torch.full((count,), 2.0 / length, dtype=torch.float64)
    share[0] = 1.0 / length
    if length % 2 == 0:
        share[-1] = 1.0 / length
    back = (forward * share.repeat(2).unsqueeze(1)).t()
    return forward.to(dtype).to(device), back.contiguous().to(dtype).to(device)


def _mm(a: Tensor, b: Tensor, *shape: int) -> Tensor:
    """``a @ b`` into pooled memory on the CPU, seen as ``shape``."""
    if b.device.type != "cpu":
        return (a @ b).view(shape)
    return torch.mm(a, b, out=empty((a.shape[0], b.shape[1]), b.dtype)).view(shape)


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

FEW_MACS, WIDE_MACS, REFERENCE_MACS = 40.0, 75.0, 50.0
"""Multiply-adds a nanosecond of one core: shifted reads, torch's products, torch's convolution. Measured on a Xeon
(AVX-512)."""

WIDE_CALL, REFERENCE_CALL = 300_000.0, 50_000.0
"""Nanoseconds that the way takes whatever the size."""


def few_cost(steps: int, batch: int, n_in: int, n_out: int, taps: int) -> float:
    """Nanoseconds of one core for one pass by shifted reads."""
    return -(-batch // 16) * 16 * steps * n_in * n_out * taps / FEW_MACS


def wide_cost(steps: int, batch: int, n_in: int, n_out: int, places: int) -> float:
    """Nanoseconds of one core for one pass in the frequency domain."""
    length = steps + places - 1
    twice = 2 * (length // 2 + 1)
    products = 2 * twice * batch * n_in * n_out
    transforms = twice * (length * batch * n_in + places * n_in * n_out + steps * batch * n_out)
    return (products + transforms) / WIDE_MACS + WIDE_CALL


def reference_cost(steps: int, batch: int, n_in: int, n_out: int, places: int) -> float:
    """Nanoseconds of one core for one pass of the convolution."""
    return steps * batch * n_in * n_out * places / REFERENCE_MACS + REFERENCE_CALL


def choose(steps: int, batch: int, n_in: int, n_out: int, taps: int | None, places: int) -> str:
    """The cheapest way: ``"few"`` (``taps`` is the number for all copies together, ``None`` where it cannot run),
    ``"wide"`` or ``"reference"``.

    Example:
        >>> from spiketide.kernels.delay import choose
        >>> choose(100, 128, 140, 256, 2, 25), choose(100, 128, 140, 256, None, 25), choose(5, 2, 4, 4, None, 25)
        ('few', 'wide', 'reference')
    """
    costs = {
        "wide": wide_cost(steps, batch, n_in, n_out, places),
        "reference": reference_cost(steps, batch, n_in, n_out, places),
    }
    if taps is not None:
        costs["few"] = few_cost(steps, batch, n_in, n_out, taps)
    return min(costs, key=lambda way: costs[way])
