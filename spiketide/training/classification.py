"""Supervised classification of sequences: encoder, network, read-out, loss, and how they are optimised."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from ..compose import Sequential
from ..encoders import Encoder
from ..errors import NonFiniteError, ParameterError, ShapeError, unknown
from ..layer import Layer
from ..losses import CrossEntropy, Regulariser
from ..probe import mean_rates, record
from ..readouts import Readout
from ..synapses.delay import DelayAnneal, clamp_delays
from ..types import Batch
from .groups import parameter_groups
from .schedule import SCHEDULES, Schedule

OPTIMIZERS = ("adam", "adamw", "adamax", "sgd")


class Output(NamedTuple):
    """What one forward gives: read-out ``scores`` (B, C), the network's ``y`` (T, B, C), spikes of each layer by name."""

    scores: Tensor
    y: Tensor
    spikes: dict[str, Tensor]
    lengths: Tensor | None  # of y
    given: Tensor | None = None  # of the input: valid for every layer, also in front of a tail

    def lengths_of(self, spikes: Tensor) -> Tensor | None:
        """Valid steps of a layer (T_l, B, *N): all samples miss the same tails that come behind it."""
        return None if self.lengths is None else self.lengths - (self.y.shape[0] - spikes.shape[0])


class Classification(L.LightningModule):
    """A spiking network that is trained to name the class of a sequence.

    ::

        scores = readout(network(encoder(x)))        loss = loss(scores, y) + sum of the regularisers

    Logged for ``train``, ``val`` and ``test``: ``loss``, ``accuracy``, ``rate`` (spikes per neuron and step, mean over all
    spiking neurons) and ``rate/<layer>``.

    Example:
        >>> import torch
        >>> from spiketide import Batch
        >>> from spiketide.encoders import Latency
        >>> from spiketide.neurons import LIF, LeakyIntegrator
        >>> from spiketide.readouts import MaxMembrane
        >>> from spiketide.synapses import Dense
        >>> from spiketide.training import Classification
        >>> model = Classification(
        ...     network=[Dense(64, 32), LIF(32, tau_mem=5.0), Dense(32, 10), LeakyIntegrator(10, tau_mem=10.0)],
        ...     encoder=Latency(8),
        ...     readout=MaxMembrane(),
        ... )
        >>> model(Batch(torch.rand(3, 64), torch.zeros(3, dtype=torch.int64))).scores.shape
        torch.Size([3, 10])

    Args:
        network: A layer, or a list of modules, which become a :class:`spiketide.compose.Sequential`.
        readout: From the network's output to one score a class.
        encoder: Gives static data its time axis; ``None`` for data that has one.
        loss: Of scores and labels; ``None`` is the cross-entropy.
        regularisers: Penalties on the spikes, added to the loss.
        optimizer: ``"adam"``, ``"adamw"``, ``"adamax"`` or ``"sgd"``.
        lr: Learning rate of the weights.
        lr_time_constants: Factor on ``lr`` for time constants.
        lr_thresholds: Factor on ``lr`` for thresholds.
        lr_delays: Factor on ``lr`` for delays.
        betas: Decay of the running means of gradient and squared gradient; ``sgd`` takes the first as its momentum.
        weight_decay: Of weights with two or more axes; nothing else decays.
        schedule: ``"constant"``; ``"cosine"`` to zero at the end; ``"onecycle"`` up for 30 % of the steps and down to the
            end; ``"step"``, times ``step_factor`` every ``step_every`` epochs.
        schedule_delays: That of the delays; ``None``: the same.
        cycle_momentum: With ``"onecycle"``, the first of ``betas`` falls from 0.95 to 0.85 while the rate rises, and comes
            back (torch's default, used by the learned-delay paper); not for groups on another schedule.
        delay_anneal: Narrows the widths of learnt delays epoch by epoch; ``None``: they stay.
        step_every: Epochs.
        step_factor: Factor on the learning rate.
        clip: Clip the gradient by ``"norm"`` over all parameters or by ``"value"`` of each entry, or not.
        clip_at: The largest norm or value.

    Raises:
        ParameterError: an unknown name or a number out of range.
        NonFiniteError: NaN or Inf in a batch.
        ShapeError: a batch that is no :class:`spiketide.Batch`.

    Reference:
        One-cycle and cosine schedules as in ``torch.optim.lr_scheduler``, counted in optimiser steps:
        :class:`.schedule.Schedule`.
    """

    def __init__(
        self,
        network: Layer | list[nn.Module],
        readout: Readout,
        *,
        encoder: Encoder | None = None,
        loss: nn.Module | None = None,
        regularisers: list[Regulariser] | None = None,
        optimizer: Literal["adam", "adamw", "adamax", "sgd"] = "adamw",
        lr: float = 1e-3,
        lr_time_constants: float = 1.0,
        lr_thresholds: float = 1.0,
        lr_delays: float = 1.0,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        schedule: Literal["constant", "cosine", "onecycle", "step"] = "constant",
        schedule_delays: Literal["constant", "cosine", "onecycle", "step"] | None = None,
        cycle_momentum: bool = False,
        delay_anneal: DelayAnneal | None = None,
        step_every: int = 20,
        step_factor: float = 0.5,
        clip: Literal["norm", "value"] | None = None,
        clip_at: float = 1.0,
    ):
        super().__init__()
        for what, given, known in (
            ("optimizer", optimizer, OPTIMIZERS),
            ("schedule", schedule, SCHEDULES),
            ("schedule of the delays", schedule_delays, (*SCHEDULES, None)),
            ("clip", clip, ("norm", "value", None)),
        ):
            if given not in known:
                raise ParameterError("Classification: " + unknown(what, given, known))
        for name, number in (
            ("lr", lr),
            ("clip_at", clip_at),
            ("step_factor", step_factor),
            ("step_every", step_every),
        ):
            if not number > 0:
                raise ParameterError(f"Classification expected {name} above 0, got {number!r}.")
        self.network = Sequential(*network) if isinstance(network, list) else network
        self.encoder = encoder
        self.readout = readout
        self.loss = CrossEntropy() if loss is None else loss
        self.regularisers = nn.ModuleList(regularisers or [])
        self.optimizer = optimizer
        self.lr = float(lr)
        self.lr_factors = {
            "time_constants": lr_time_constants,
            "thresholds": lr_thresholds,
            "delays": lr_delays,
        }
        self.betas = (float(betas[0]), float(betas[1]))
        self.weight_decay = float(weight_decay)
        self.schedule = schedule
        self.schedule_delays = schedule if schedule_delays is None else schedule_delays
        self.cycle_momentum = bool(cycle_momentum)
        self.delay_anneal = delay_anneal
        self.step_every, self.step_factor = int(step_every), float(step_factor)
        self.clip, self.clip_at = clip, float(clip_at)

    def forward(self, batch: Batch, *, encoded: bool = False) -> Output:
        """Scores of a batch, and what the network did on the way; ``encoded`` says that ``x`` went through the encoder."""
        if not isinstance(batch, Batch):
            raise ShapeError(
                f"Classification expected batches Batch(x, y, lengths), time first, got {type(batch).__name__}: use a data "
                "module of spiketide.data (ArrayData takes arrays of your own), or a collate_fn that makes a Batch."
            )
        # One NaN would turn every weight into NaN without a word. Encoders check what they take themselves.
        if self.encoder is None and not bool(torch.isfinite(batch.x).all()):
            bad = int((~torch.isfinite(batch.x)).sum())
            raise NonFiniteError(
                f"a batch holds {bad} NaN or Inf among {batch.x.numel()} values: clean the data first."
            )
        x = batch.x if self.encoder is None or encoded else self.encoder(batch.x)
        with record(self.network) as records:
            y, _ = self.network(x, lengths=batch.lengths)
        lengths = self.network.lengths_after(batch.lengths)
        return Output(self.readout(y, lengths), y, records.spikes(), lengths, batch.lengths)

    def objective(self, output: Output, y: Tensor) -> Tensor:
        """The loss that is minimised."""
        loss = self.loss(output.scores, y)
        for penalty in self.regularisers:
            loss = loss + penalty(output.spikes, output.given)
        return loss

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one batch."""
        return self._step(batch, "train")

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one batch."""
        return self._step(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> Any:
        """The :class:`Output` of one batch, for whoever collects it."""
        output = self(batch)
        self._log(batch, output, self.objective(output, batch.y), "test")
        return output

    def _step(self, batch: Batch, stage: str) -> Tensor:
        output = self(batch)
        loss = self.objective(output, batch.y)
        self._log(batch, output, loss.detach(), stage)
        return loss

    def _log(self, batch: Batch, output: Output, loss: Tensor, stage: str) -> None:
        with torch.no_grad():
            accuracy = (output.scores.argmax(-1) == batch.y).float().mean()
            lengths = {name: output.lengths_of(spikes) for name, spikes in output.spikes.items()}
            rates, rate = mean_rates(output.spikes, lengths)
        values = {"loss": loss, "accuracy": accuracy, "rate": rate.to(loss.device)}
        named = {f"{stage}/{name}": value for name, value in values.items()}
        named |= {f"{stage}/rate/{name}": value for name, value in rates.items()}
        size = batch.y.shape[0]
        self.log_dict(named, on_step=False, on_epoch=True, batch_size=size, sync_dist=True)
        if stage == "train":
            shown = {"loss": loss, "acc": accuracy, "rate": rate}
            self.log_dict(shown, on_step=True, on_epoch=False, prog_bar=True, logger=False, batch_size=size)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Optimiser with a group a role, and the schedule counted in steps."""
        groups = parameter_groups(
            self, lr=self.lr, weight_decay=self.weight_decay, multipliers=self.lr_factors
        )
        optimizer: torch.optim.Optimizer
        if self.optimizer == "sgd":
            optimizer = torch.optim.SGD(groups, momentum=self.betas[0])
        elif self.optimizer == "adam":
            optimizer = torch.optim.Adam(groups, betas=self.betas)
        elif self.optimizer == "adamax":
            optimizer = torch.optim.Adamax(groups, betas=self.betas)
        else:
            optimizer = torch.optim.AdamW(groups, betas=self.betas)
        kinds = [self.schedule_delays if group["name"] == "delays" else self.schedule for group in groups]
        if set(kinds) == {"constant"}:
            return optimizer
        total = int(self.trainer.estimated_stepping_batches)
        epoch = max(1, total // max(1, self.trainer.max_epochs or 1))
        scheduler = Schedule(
            optimizer,
            kinds,
            total,
            step_every=self.step_every * epoch,
            step_factor=self.step_factor,
            cycle_momentum=self.cycle_momentum,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_epoch_start(self) -> None:
        """Narrow the delays' widths, as far as this epoch says."""
        if self.delay_anneal is not None:
            self.delay_anneal(self.network, self.current_epoch, self.trainer.max_epochs or 1)

    def on_train_batch_end(self, *_: Any) -> None:
        """Put delays back that the step moved out of their range."""
        clamp_delays(self.network)

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        """Clip as this module was told."""
        if self.clip is not None:
            self.clip_gradients(optimizer, gradient_clip_val=self.clip_at, gradient_clip_algorithm=self.clip)


def stack(layers: list[nn.Module]) -> Sequential:
    """A :class:`spiketide.compose.Sequential` from a list, for recipes, in which a list is an argument.

    Example:
        >>> from spiketide.neurons import LIF
        >>> from spiketide.synapses import Dense
        >>> from spiketide.training import stack
        >>> len(stack([Dense(4, 8), LIF(8)]))
        2

    Args:
        layers: Layers, or torch modules without memory.
    """
    return Sequential(*layers)
