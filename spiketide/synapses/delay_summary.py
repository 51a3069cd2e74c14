"""What the delays of a network look like, layer by layer, before and after training: numbers and pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn

from ..errors import NonFiniteError, ParameterError, ShapeError
from .delay import _Delayed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PARAMETER = "delays.delay"
"""Name of the delays within a layer that has them."""


@dataclass(frozen=True, eq=False, kw_only=True)
class LayerDelays:
    """The delays of one layer; :func:`delay_statistics` makes it.

    Args:
        kind: class of the layer.
        max_delay: longest delay (steps).
        count: delays; connections that a mask leaves out do not count, here and below.
        learnt: whether they are learnt.
        lowest, mean, median, highest: of the delays (steps), not rounded; of an even number, the median lies between the
            middle two.
        histogram: how many delays round to 0, 1, ..., ``max_delay`` steps, as evaluation rounds them.
        share_at_zero: share of delays that are exactly 0, the lower border.
        share_at_max: share that are exactly ``max_delay``, the upper border.
        effective_width: of the interpolation as it is now (steps); evaluation that rounds does not use it.
        delays: the delays, in the shape of the layer's parameter; NaN where a mask leaves out the connection.
        histogram_before: the histogram before; ``None`` when nothing was given to compare with.
        moved: mean of the absolute movement since (steps), or ``None``.
        before: the delays before, or ``None``.
    """

    kind: str
    max_delay: int
    count: int
    learnt: bool
    lowest: float
    mean: float
    median: float
    highest: float
    histogram: tuple[int, ...]
    share_at_zero: float
    share_at_max: float
    effective_width: float
    delays: Tensor
    histogram_before: tuple[int, ...] | None = None
    moved: float | None = None
    before: Tensor | None = None

    def matrix(self) -> Tensor:
        """The delays as rows and columns: outputs and inputs, several of one connection side by side; a single row when
        there is one delay a channel.

        Shapes:
            ``(n_out, n_in * kernel_count)``, ``(1, n)`` or ``(c_out, c_in * kh * kw)``.
        """
        return self.delays.unsqueeze(0) if self.delays.dim() == 1 else self.delays.flatten(1)

    def to_dict(self) -> dict[str, Any]:
        """The numbers without the delays themselves, for :func:`spiketide.plain.to_json`."""
        return {key: value for key, value in vars(self).items() if key not in ("delays", "before")}


Before: TypeAlias = "Mapping[str, Tensor] | Mapping[str, LayerDelays]"


def delay_statistics(network: nn.Module, before: Before | None = None) -> dict[str, LayerDelays]:
    """How the delays of every delay layer of a network are spread, and how far they moved.

    Example:
        >>> import torch
        >>> from spiketide.synapses import AxonalDelay, delay_statistics
        >>> layer = AxonalDelay(3, 4, start=torch.tensor([0.0, 1.0, 4.0]))
        >>> first = delay_statistics(layer)
        >>> first[""].histogram, round(first[""].mean, 2), first[""].median
        ((1, 1, 0, 0, 1), 1.67, 1.0)
        >>> with torch.no_grad():
        ...     _ = layer.delays.delay.copy_(torch.tensor([0.0, 2.0, 3.0]))
        >>> delay_statistics(layer, first)[""].to_dict()["histogram_before"], round(delay_statistics(layer, first)[""].moved, 2)
        ((1, 1, 0, 0, 1), 0.67)

    Args:
        network: any module.
        before: what to compare with: the ``state_dict()`` of the same network, or what this function gave then. Layers that it
            does not know are not compared; keys that are no delays do not matter.

    Returns:
        Name of the layer (as ``named_modules``) -> its statistics, in the order of the network; empty without delay layers.

    Raises:
        ShapeError: delays before of another shape.
        NonFiniteError: delays that are NaN or infinite.
    """
    return {
        name: _summarise(name, module, _find(name, before))
        for name, module in network.named_modules()
        if isinstance(module, _Delayed)
    }


def _find(name: str, before: Before | None) -> Tensor | None:
    """The delays of a layer in whatever was given."""
    if before is None:
        return None
    found: Any = before.get(name)
    if isinstance(found, LayerDelays):
        return found.delays
    found = before.get(f"{name}.{PARAMETER}" if name else PARAMETER)
    return found.detach() if isinstance(found, Tensor) else None


def _summarise(name: str, layer: _Delayed, before: Tensor | None) -> LayerDelays:
    holder = layer.delays
    mask = getattr(layer, "mask", None)
    now = holder.delay.detach().cpu().double()
    there = torch.ones_like(now, dtype=torch.bool) if mask is None else (mask.cpu() != 0).expand_as(now)
    if before is not None:
        before = before.cpu().double()
        if before.shape != now.shape:
            raise ShapeError(
                f"delay_statistics expected delays of shape {tuple(now.shape)} before in layer {name!r}, got "
                f"{tuple(before.shape)}: compare with the same network."
            )
    for delays in (now, before):
        if delays is not None and not bool(torch.isfinite(delays[there]).all()):
            raise NonFiniteError(f"layer {name!r} holds delays that are NaN or infinite.")
    # outside its range a delay acts as the border
    now, end = now.clamp(0, holder.max_delay), float(holder.max_delay)
    before = None if before is None else before.clamp(0, holder.max_delay)
    kept = now[there]
    count = kept.numel()
    return LayerDelays(
        kind=type(layer).__name__,
        max_delay=holder.max_delay,
        count=count,
        learnt=holder.delay.requires_grad,
        lowest=float(kept.min()) if count else float("nan"),
        mean=float(kept.mean()),
        median=float(kept.quantile(0.5)) if 0 < count <= 2**24 else float(kept.median()),
        highest=float(kept.max()) if count else float("nan"),
        histogram=_histogram(kept, holder.places),
        share_at_zero=float((kept == 0).double().mean()),
        share_at_max=float((kept == end).double().mean()),
        effective_width=holder.effective_width(),
        delays=now.masked_fill(~there, float("nan")),
        histogram_before=None if before is None else _histogram(before[there], holder.places),
        moved=None if before is None else float((kept - before[there]).abs().mean()),
        before=None if before is None else before.masked_fill(~there, float("nan")),
    )


def _histogram(delays: Tensor, places: int) -> tuple[int, ...]:
    # .float(): rounded as the layer rounds, whose delays are float32
    return tuple(torch.bincount(delays.float().round().long(), minlength=places).tolist())


def plot_delays(network: nn.Module, before: Before | None = None) -> Figure:
    """Draw the delays of a network with matplotlib: one row a layer, the histogram on the left, the matrix on the right.

    With ``before`` the histogram before is drawn over that of now as a line. No display is needed, and nothing is shown or
    registered with ``pyplot``: ``figure.savefig(path)``, or make it the value of a notebook's cell.

    Example:
        >>> from spiketide.synapses import SynapticDelay, plot_delays
        >>> figure = plot_delays(SynapticDelay(5, 3, 8))
        >>> [axes.get_xlabel() for axes in figure.axes[:2]]
        ['delay (steps)', 'input']

    Args:
        network: with at least one delay layer.
        before: as :func:`delay_statistics`.

    Raises:
        ParameterError: the network has no delay layer.
        ShapeError, NonFiniteError: as :func:`delay_statistics`.
    """
    from matplotlib.figure import Figure

    layers = delay_statistics(network, before)
    if not layers:
        raise ParameterError(
            "plot_delays expected a network with delay layers (SynapticDelay, AxonalDelay, ...), got none."
        )
    figure = Figure(figsize=(9.0, 2.8 * len(layers)), layout="constrained")
    for row, (name, layer) in enumerate(layers.items()):
        left, right = (figure.add_subplot(len(layers), 2, 2 * row + place) for place in (1, 2))
        steps = range(layer.max_delay + 1)
        left.bar(steps, layer.histogram, width=1.0, color="C0", alpha=0.7, label="now")
        if layer.histogram_before is not None:
            edges = [step - 0.5 for step in range(layer.max_delay + 2)]
            left.stairs(layer.histogram_before, edges, color="C1", linewidth=1.5, label="before")
            left.legend()
        left.set(
            title=f"{name} {layer.kind}".strip(),
            xlabel="delay (steps)",
            ylabel="delays",
            xlim=(-0.5, layer.max_delay + 0.5),
        )
        picture = right.imshow(
            layer.matrix().numpy(),
            aspect="auto",
            vmin=0,
            vmax=max(1, layer.max_delay),
            interpolation="nearest",
        )
        one_each = layer.delays.dim() == 1
        right.set(
            title="" if layer.moved is None else f"moved by {layer.moved:.2f} steps on average",
            xlabel="channel" if one_each else "input",
            ylabel="" if one_each else "output",
        )
        if one_each:
            right.set_yticks([])
        figure.colorbar(picture, ax=right, label="delay (steps)")
    return figure
