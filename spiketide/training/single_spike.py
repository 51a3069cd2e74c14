"""Supervised classification by the first spike of an output."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ParameterError
from ..kernels.first_spike import Fired
from ..timing import (
    Decision,
    IntensityToLatency,
    Network,
    TimingCrossEntropy,
    TimingLayer,
    TimingLoss,
    calibrate,
    decide,
    optimistic,
    revive,
    to_train,
)
from ..types import Batch
from .task import Output, Task

log = logging.getLogger("spiketide")

SHOWN_EVERY = 20
"""Steps between two updates of the numbers beside the progress bar."""

CALIBRATED_ON = 256
"""Training images that the initial scales are set by."""


class SingleSpike(Task):
    """A network whose neurons fire once at most, trained to fire the right output first.

    ::

        times = encoder(x)        fired = network(times)        label = output that fires first

    Logged for ``train``, ``val`` and ``test``: ``loss``; ``accuracy`` (strict: a tie goes to the larger potential, never counts
    as a hit by itself); ``optimistic`` (a tie counts as a hit, as published scores of S4NN do); ``no_fire``, the share of images
    on which no output fires, decided by potentials; ``time``, the mean step of a decision; ``spikes`` of all neurons an image;
    ``rate`` (spikes a neuron) and ``rate/<layer>``.

    Example:
        >>> import torch
        >>> from spiketide import Batch
        >>> from spiketide.timing import Flatten, TimingLinear
        >>> from spiketide.training import SingleSpike
        >>> model = SingleSpike([Flatten(), TimingLinear(64, 32), TimingLinear(32, 10)])
        >>> model(Batch(torch.rand(3, 1, 8, 8), torch.zeros(3, dtype=torch.int64))).scores.shape
        torch.Size([3, 10])

    Args:
        network: Layers of :mod:`spiketide.timing`, the last one a firing layer with a neuron a class.
        encoder: From data to spike times; ``None`` is ``IntensityToLatency()``.
        loss: Which output should move where; ``None`` is ``TimingCrossEntropy()``.
        moments: When each layer should fire before training, as a part of its window: see :func:`spiketide.timing.calibrate`.
            ``None``: the initial scales stay.
        revive_below: Neurons (or maps) that fired on a smaller share of an epoch's chances get larger weights
            (:func:`spiketide.timing.revive`); 0: never.
        **training: Optimiser: see :class:`.task.Task`.

    Raises:
        ParameterError: a network that does not end in a firing layer, a layer that cannot fire, a number out of range.
        NonFiniteError: NaN or Inf in a batch.
        ShapeError: a batch that is no :class:`spiketide.Batch`, intensities outside [0, 1].
    """

    def __init__(
        self,
        network: list[nn.Module] | Network,
        *,
        encoder: nn.Module | None = None,
        loss: TimingLoss | None = None,
        moments: list[float] | None = None,
        revive_below: float = 0.0,
        **training: Any,
    ):
        if training.get("truncate") is not None or training.get("regularisers"):
            raise ParameterError(
                "SingleSpike has no steps to truncate and no spike trains to regularise: leave truncate and regularisers out."
            )
        if not 0 <= revive_below < 1:
            raise ParameterError(
                f"SingleSpike expected revive_below from 0 to below 1, got {revive_below!r}."
            )
        chain: Any = network if isinstance(network, Network) else Network(*network)
        source: Any = IntensityToLatency() if encoder is None else encoder
        spread = getattr(source, "steps", 0) * getattr(source, "span", 1.0)
        if spread > chain.hears_until:
            log.warning(
                "%s gives spike times up to step %g, and the first layer hears inputs until step %g: later ones are lost. Give "
                "both the same number of steps, for example encoder=IntensityToLatency(%d).",
                type(source).__name__,
                spread,
                chain.hears_until,
                chain.hears_until,
            )
        super().__init__(chain, encoder=source, **training)
        self.loss = TimingCrossEntropy() if loss is None else loss
        self.loss.check(chain.output)
        self.moments = moments
        self.revive_below = float(revive_below)
        self.calibrated: Tensor
        self.register_buffer("calibrated", torch.tensor(moments is None))
        self._sums: dict[str, Tensor | float] = {}

    @property
    def steps(self) -> int:
        """Steps until the output's window ends."""
        net: Any = self.network
        return math.ceil(net.output.stop)

    # ------------------------------------------------------------------------------------------ forward

    def follow(self, batch: Batch, *, encoded: bool = False) -> tuple[Fired, dict[str, Tensor]]:
        """What the output did, and the spike times of every layer by name."""
        net: Any = self.network
        found: tuple[Fired, dict[str, Tensor]] = net.follow(self.encode(batch, encoded=encoded))
        return found

    def forward(self, batch: Batch, *, encoded: bool = False) -> Output:
        """Scores whose largest is the decision, the output's spike train, and which neurons fired.

        ``spikes`` has one step here: 1 for each neuron that fired at all.
        """
        fired, seen = self.follow(batch, encoded=encoded)
        return self.output_of(fired, seen)

    def output_of(self, fired: Fired, seen: dict[str, Tensor]) -> Output:
        """The same from what the network did."""
        net: Any = self.network
        scores = -net.output.virtual(fired).detach()
        top = scores.amax(1, keepdim=True) + 1e-3
        scores = scores.scatter(1, decide(fired).label[:, None], top)
        spikes = {name: torch.isfinite(times).float().unsqueeze(0) for name, times in seen.items()}
        return Output(scores, to_train(fired.times.detach(), self.steps), spikes, None)

    def scores(self, y: Tensor, lengths: Tensor | None) -> Tensor:
        """From the output's train: early is high, silent is low, ``(B, C)``."""
        return self.evolve(Output(y, y, {}, None))[-1]

    def evolve(self, output: Output) -> Tensor:
        """At every step, the outputs that have fired: the earlier, the higher; 0 for the others, ``(T, B, C)``."""
        y = output.y
        clock = torch.arange(len(y), 0, -1, dtype=y.dtype, device=y.device).view(-1, 1, 1)
        return (y * clock).cumsum(0)

    def answers(self, output: Output) -> Tensor:
        """At every step what is said, ``(T, B)``; -1 as long as no output has fired."""
        scores = self.evolve(output)
        said = scores.argmax(-1)
        # the whole decision, with its rule for ties, from the moment of the first spike on
        return torch.where(scores.amax(-1) > 0, output.scores.argmax(-1).expand_as(said), -1)

    def criterion(self, scores: Tensor, y: Tensor) -> Tensor:
        """Share of wrong answers; the loss that trains needs the spikes: see :meth:`objective_of`."""
        return (scores.argmax(-1) != y).float().mean()

    def objective_of(self, fired: Fired, y: Tensor) -> Tensor:
        """The loss whose gradient displaces the outputs' spikes."""
        net: Any = self.network
        loss: Tensor = self.loss(net.output, fired, y)
        return loss

    def measures(self, output: Output, y: Tensor) -> dict[str, tuple[Tensor, int]]:
        """``accuracy`` alone; the rest needs the spikes: see :meth:`measures_of`."""
        return {"accuracy": ((output.scores.argmax(-1) == y).float().mean(), len(y))}

    def measures_of(self, fired: Fired, seen: dict[str, Tensor], y: Tensor) -> dict[str, Tensor]:
        """Sums over samples: right answers strict and optimistic, images without a first spike, time, spikes of a layer."""
        decision: Decision = decide(fired)
        known = torch.isfinite(decision.time)
        sums = {
            "accuracy": (decision.label == y).sum(),
            "optimistic": optimistic(fired, y).sum(),
            "no_fire": (~known).sum(),
            "time": torch.where(known, decision.time, float(self.steps)).sum(),
        }
        return sums | {f"fired/{name}": torch.isfinite(times).sum() for name, times in seen.items()}

    # ------------------------------------------------------------------------------------------ training

    def on_fit_start(self) -> None:
        """Set the scales of the layers, once in the life of a run.

        Raises:
            ParameterError: a layer that no scale makes fire.
        """
        if not bool(self.calibrated):
            data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
            loader = data.train_dataloader() if data is not None else self.trainer.train_dataloader
            self.prepare(loader or ())

    def prepare(self, batches: Iterable[Batch]) -> None:
        """Set the scales by the first images, as training begins; nothing on a network that has them set.

        Raises:
            ParameterError: a layer that no scale makes fire.
        """
        if bool(self.calibrated):
            return
        images: list[Tensor] = []
        for batch in batches:
            images.append(batch.x)
            if sum(map(len, images)) >= CALIBRATED_ON:
                break
        net: Any = self.network
        calibrate(net, self._times(torch.cat(images)[:CALIBRATED_ON]), self.moments or [])
        self.calibrated.fill_(True)

    def _times(self, x: Tensor) -> Tensor:
        """Spike times of images that come from the loader itself: of the device and precision of the weights."""
        net: Any = self.network
        source: Any = self.encoder
        times: Tensor = source(x.to(net.output.weight))
        return times

    def on_train_epoch_start(self) -> None:
        """Begin the sums of an epoch."""
        self._sums = {}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one batch."""
        fired, seen = self.follow(batch)
        loss = self.objective_of(fired, batch.y)
        with torch.no_grad():
            self._add(fired, seen, batch.y, loss.detach())
            if batch_idx % SHOWN_EVERY == 0:
                right = (decide(fired).label == batch.y).float().mean()
                self.log_dict({"loss": loss.detach(), "acc": right}, prog_bar=True, logger=False)
        return loss

    def _add(self, fired: Fired, seen: dict[str, Tensor], y: Tensor, loss: Tensor) -> None:
        sums = self.measures_of(fired, seen, y) | {"loss": loss * len(y), "samples": torch.tensor(len(y))}
        if self.revive_below > 0:
            for name, times in seen.items():
                axes = [axis for axis in range(times.dim()) if axis != 1]
                sums[f"alive/{name}"] = torch.isfinite(times).sum(axes)
        for name, value in sums.items():
            self._sums[name] = self._sums.get(name, 0) + value
        self._sizes = {name: times[0].numel() for name, times in seen.items()}

    def on_train_epoch_end(self) -> None:
        """Log the epoch; wake neurons that did not fire.

        Raises:
            ParameterError: a layer of which no neuron fired in the whole epoch, where none is woken.
        """
        sums, samples = self._sums, float(self._sums.get("samples", 0))
        if not samples:
            return
        self._write("train", sums, samples)
        net: Any = self.network
        for name in self._sizes:
            layer = getattr(net, name)
            if not self.revive_below and float(sums[f"fired/{name}"]) == 0:
                raise ParameterError(
                    f"layer {name} ({type(layer).__name__}): none of its neurons fired on any of {samples:.0f} images. "
                    "Give moments, so that its scale is set before training, lower the learning rate, or set "
                    "revive_below (0.001)."
                )
        if self.revive_below:
            self._revive(samples)
        self._sums = {}

    def _revive(self, samples: float) -> None:
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        loader: Any = data.train_dataloader() if data is not None else self.trainer.train_dataloader
        batch = next(iter(loader))
        times = self._times(batch.x)
        net: Any = self.network
        with torch.no_grad():
            for name, layer in net.named_children():
                if isinstance(layer, TimingLayer) and layer is not net.output:
                    alive: Any = self._sums[f"alive/{name}"]
                    chances = samples * self._sizes[name] / len(alive)
                    dead = alive < self.revive_below * chances
                    if bool(dead.any()):
                        log.info("layer %s: %d of %d neurons are woken", name, int(dead.sum()), len(dead))
                        revive(layer, dead, times)
                times = layer(times)

    def _step(self, batch: Batch, stage: str) -> Tensor:
        fired, seen = self.follow(batch)
        loss = self.objective_of(fired, batch.y).detach()
        self._note(fired, seen, batch.y, loss, stage)
        return loss

    def test_step(self, batch: Batch, batch_idx: int) -> Any:
        """The :class:`.task.Output` of one batch with the spike times of input and layers, for whoever collects it."""
        times = self.encode(batch)
        fired, seen = self.follow(batch._replace(x=times), encoded=True)
        self._note(fired, seen, batch.y, self.objective_of(fired, batch.y).detach(), "test")
        return self.output_of(fired, seen)._replace(times={"input": times, **seen})

    def _note(self, fired: Fired, seen: dict[str, Tensor], y: Tensor, loss: Tensor, stage: str) -> None:
        sums: dict[str, Any] = dict(self.measures_of(fired, seen, y))
        self._sizes = {name: times[0].numel() for name, times in seen.items()}
        self._write(stage, sums | {"loss": loss * len(y)}, float(len(y)))

    def _write(self, stage: str, sums: dict[str, Any], samples: float) -> None:
        means = {
            name: float(value) / samples for name, value in sums.items() if not name.startswith("alive/")
        }
        spikes = sum(means[f"fired/{name}"] for name in self._sizes)
        named = {
            f"{stage}/{name}": means[name] for name in ("loss", "accuracy", "optimistic", "no_fire", "time")
        }
        named |= {f"{stage}/spikes": spikes, f"{stage}/rate": spikes / sum(self._sizes.values())}
        named |= {f"{stage}/rate/{name}": means[f"fired/{name}"] / size for name, size in self._sizes.items()}
        self.log_dict(named, on_step=False, on_epoch=True, batch_size=int(samples), sync_dist=True)
