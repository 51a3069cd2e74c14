"""What every supervised task shares: encoder, network, regularisers, and how they are optimised."""

from __future__ import annotations

import logging
import math
import warnings
from abc import ABC, abstractmethod
from typing import Any, Literal, NamedTuple

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from ..compose import Sequential
from ..encoders import Encoder
from ..errors import NonFiniteError, ParameterError, ShapeError, unknown
from ..layer import Layer, unstreamable
from ..losses import Regulariser
from ..probe import mean_rates, record
from ..synapses.delay import DelayAnneal, clamp_delays
from ..types import Batch, State, detach
from .groups import parameter_groups
from .schedule import SCHEDULES, Schedule

log = logging.getLogger("spiketide")

OVERFLOWS = 10
"""Steps in a row without a finite gradient after which a run has diverged."""

OPTIMIZERS = ("adam", "adamw", "adamax", "radam", "sgd")


class Output(NamedTuple):
    """What one forward gives: read-out ``scores`` (B, C), the network's ``y`` (T, B, C), spikes of each layer by name."""

    scores: Tensor
    y: Tensor
    spikes: dict[str, Tensor]
    lengths: Tensor | None  # of y
    given: Tensor | None = None  # of the input: valid for every layer, also in front of a tail
    first: int = 0  # step of the sequence with which ``y`` begins: that of its window, with truncation
    times: dict[str, Tensor] | None = (
        None  # single-spike networks: spike times of "input" and of each layer, (B, *N)
    )

    def by_step(self) -> dict[str, Tensor]:
        """The spikes with those of substeps (:class:`spiketide.Substeps`) averaged: one value for each step of the output."""
        steps = self.y.shape[0]
        return {
            name: s if s.shape[0] <= steps else s.unflatten(0, (steps, s.shape[0] // steps)).mean(1)
            for name, s in self.spikes.items()
        }

    def lengths_of(self, spikes: Tensor) -> Tensor | None:
        """Valid steps of a layer (T_l, B, *N): all samples miss the same tails that come behind it, or have substeps."""
        if self.lengths is not None and spikes.shape[0] > self.y.shape[0]:
            return self.lengths * (spikes.shape[0] // self.y.shape[0])
        return None if self.lengths is None else self.lengths - (self.y.shape[0] - spikes.shape[0])


class Task(L.LightningModule, ABC):
    """A spiking network that is trained, whatever for: :class:`.Classification` of sequences or :class:`.Labelling` of steps.

    ::

        output = scores of network(encoder(x))        loss = objective(output, y) + sum of the regularisers

    Logged for ``train``, ``val`` and ``test``: ``loss``, what :meth:`measures` gives (``accuracy`` first), ``rate`` (spikes
    per neuron and step, mean over all spiking neurons) and ``rate/<layer>``.

    Args:
        network: A layer, or a list of modules, which become a :class:`spiketide.compose.Sequential`.
        encoder: Gives static data its time axis; ``None`` for data that has one.
        regularisers: Penalties on the spikes, added to the loss.
        optimizer: ``"adam"``, ``"adamw"``, ``"adamax"``, ``"radam"`` (its weight decay apart from the gradient, as AdamW's) or
            ``"sgd"``.
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
        warmup: Epochs (also parts of one) in which the rate rises evenly to its peak, before the schedule begins; not with
            ``"onecycle"``.
        clip: Clip the gradient by ``"norm"`` over all parameters or by ``"value"`` of each entry, or not.
        clip_at: The largest norm or value.
        truncate: Truncated back-propagation through time: the sequence is run in windows of so many steps, with an
            optimiser step after each; the state goes on into the next window, its gradient does not. A window in which
            nothing counts (of :class:`.Labelling` no step, of :class:`.Classification` no sample that goes on) only hands on
            the state: no optimiser step, no part in the loss that is logged. ``None``: full back-propagation.
        average: Validate, keep and test a moving average of the weights instead of the last ones: after every batch it becomes
            ``average`` times itself and the rest of them (0.99: some hundred batches). Training goes on from its own weights.

    Raises:
        ParameterError: an unknown name or a number out of range; a ``Trainer`` that was told to clip the gradient, or, with
            ``truncate``, to accumulate it.
        NonFiniteError: NaN or Inf in a batch.
        ShapeError: a batch that is no :class:`spiketide.Batch`.

    Reference:
        Truncation with an optimiser step a window: Yin et al. 2021, PS-MNIST (100 steps). One-cycle and cosine schedules as in
        ``torch.optim.lr_scheduler``, counted in optimiser steps, with ``truncate`` in batches: :class:`.schedule.Schedule`.
    """

    def __init__(
        self,
        network: Layer | list[nn.Module],
        *,
        encoder: Encoder | None = None,
        regularisers: list[Regulariser] | None = None,
        optimizer: Literal["adam", "adamw", "adamax", "radam", "sgd"] = "adamw",
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
        warmup: float = 0.0,
        clip: Literal["norm", "value"] | None = None,
        clip_at: float = 1.0,
        truncate: int | None = None,
        average: float | None = None,
    ):
        super().__init__()
        word = type(self).__name__
        for what, given, known in (
            ("optimizer", optimizer, OPTIMIZERS),
            ("schedule", schedule, SCHEDULES),
            ("schedule of the delays", schedule_delays, (*SCHEDULES, None)),
            ("clip", clip, ("norm", "value", None)),
        ):
            if given not in known:
                raise ParameterError(f"{word}: " + unknown(what, given, known))
        for name, number in (
            ("lr", lr),
            ("clip_at", clip_at),
            ("step_factor", step_factor),
            ("step_every", step_every),
        ):
            if not number > 0:
                raise ParameterError(f"{word} expected {name} above 0, got {number!r}.")
        for name, number in (
            ("lr_time_constants", lr_time_constants),
            ("lr_thresholds", lr_thresholds),
            ("lr_delays", lr_delays),
            ("weight_decay", weight_decay),
        ):
            if not 0 <= number < math.inf:
                raise ParameterError(f"{word} expected {name} of 0 or more, got {number!r}.")
        if lr == math.inf:
            raise ParameterError(f"{word} expected a finite lr above 0, got {lr!r}.")
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise ParameterError(f"{word} expected two betas from 0 to below 1, got {betas!r}.")
        if truncate is not None and (
            isinstance(truncate, bool) or not isinstance(truncate, int) or truncate < 1
        ):
            raise ParameterError(f"{word} expected truncate of 1 or more steps, or None, got {truncate!r}.")
        if not (warmup >= 0 and math.isfinite(warmup)):
            raise ParameterError(f"{word} expected warmup of 0 or more epochs, got {warmup!r}.")
        if warmup and "onecycle" in (schedule, schedule_delays):
            raise ParameterError(
                f'{word} expected warmup=0 with schedule="onecycle", which has a rise of its own.'
            )
        if average is not None and not 0 < average < 1:
            raise ParameterError(f"{word} expected average above 0 and below 1, or None, got {average!r}.")
        self.average = average
        self.warmup = float(warmup)
        self.network = Sequential(*network) if isinstance(network, list) else network
        self.encoder = encoder
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
        self.truncate = truncate
        self._overflows = 0
        if truncate is not None:
            self.automatic_optimization = False  # several optimiser steps a batch
            if (part := unstreamable(self.network)) is not None:
                raise ParameterError(
                    f"{word}: truncate needs a network that carries its state from window to window; "
                    f"{type(part).__name__} does not. Use truncate=None."
                )

    def forward(self, batch: Batch, *, encoded: bool = False) -> Output:
        """Scores of a batch, and what the network did on the way; ``encoded`` says that ``x`` went through the encoder."""
        y, spikes, _ = self.run(self.encode(batch, encoded=encoded), None, batch.lengths)
        lengths = self.network.lengths_after(batch.lengths)
        return Output(self.scores(y, lengths), y, spikes, lengths, batch.lengths)

    def encode(self, batch: Batch, *, encoded: bool = False) -> Tensor:
        """The input of the network, ``(T, B, *N)``."""
        if not isinstance(batch, Batch):
            raise ShapeError(
                f"{type(self).__name__} expected batches Batch(x, y, lengths), time first, got {type(batch).__name__}: use a "
                "data module of spiketide.data (ArrayData takes arrays of your own), or a collate_fn that makes a Batch."
            )
        data = getattr(getattr(self, "_trainer", None), "datamodule", None)
        if self.encoder is None and not getattr(data, "temporal", True):
            raise ShapeError(
                f"{type(self).__name__} expected an encoder, which makes sequences of samples without a time axis "
                f"({type(data).__name__} says temporal=False): for example encoder=Direct(16) or Latency(16) of "
                "spiketide.encoders."
            )
        # One NaN would turn every weight into NaN without a word. Encoders check what they take themselves.
        if self.encoder is None and not bool(torch.isfinite(batch.x).all()):
            bad = int((~torch.isfinite(batch.x)).sum())
            raise NonFiniteError(
                f"a batch holds {bad} NaN or Inf among {batch.x.numel()} values{_where(batch.x)}: clean the data first."
            )
        return batch.x if self.encoder is None or encoded else self.encoder(batch.x)

    def run(
        self, x: Tensor, state: State | None, lengths: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor], State]:
        """The network on encoded input: its output, the spikes of its layers, its state after the last step."""
        with record(self.network) as records:
            y, end = self.network(x, state, lengths=lengths)
        return y, records.spikes(), end

    @abstractmethod
    def scores(self, y: Tensor, lengths: Tensor | None) -> Tensor:
        """What is compared with the labels, from the network's output ``(T, B, C)``."""

    @abstractmethod
    def evolve(self, output: Output) -> Tensor:
        """The scores of every moment, ``(T, B, C)``: what would be said had the sequence ended there."""

    def answers(self, output: Output) -> Tensor:
        """The class that would be said at every moment, ``(T, B)``; -1 where nothing is said yet, which is never right."""
        return self.evolve(output).argmax(-1)

    def targets(self, output: Output, y: Tensor) -> Tensor:
        """The labels as they count in the loss."""
        return y

    @abstractmethod
    def criterion(self, scores: Tensor, y: Tensor) -> Tensor:
        """The loss of the scores alone."""

    @abstractmethod
    def measures(self, output: Output, y: Tensor) -> dict[str, tuple[Tensor, int]]:
        """Word -> value and how many decisions it is the mean of: what is logged beside the loss."""

    def objective(self, output: Output, y: Tensor) -> Tensor:
        """The loss that is minimised."""
        loss = self.criterion(output.scores, self.targets(output, y))
        for penalty in self.regularisers:
            loss = loss + penalty(output.by_step(), output.given)
        return loss

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one batch."""
        return self._step(batch, "train") if self.truncate is None else self._truncated(batch, self.truncate)

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one batch."""
        return self._step(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> Any:
        """The :class:`Output` of one batch, for whoever collects it."""
        output = self(batch)
        self._log(output, batch.y, self.objective(output, batch.y), "test")
        return output

    def _step(self, batch: Batch, stage: str) -> Tensor:
        output = self(batch)
        loss = self.objective(output, batch.y)
        self._log(output, batch.y, loss.detach(), stage)
        return loss

    def _truncated(self, batch: Batch, window: int) -> Tensor:
        """One optimiser step a window; the loss of all of them, averaged."""
        x, lengths = self.encode(batch), batch.lengths
        optimizer: Any = self.optimizers()
        state: State | None = None
        seen: list[Tensor] = []  # outputs of the windows before, without their graphs
        fired: dict[str, list[Tensor]] = {}
        losses = []
        for start in range(0, x.shape[0], window):
            here = None if lengths is None else (lengths - start).clamp(0, window)
            y, spikes, end = self.run(x[start : start + window], state, here)
            state = detach(end)
            past = None if lengths is None else lengths.clamp(max=start + window)
            output = self.windowed(seen, y, spikes, here, past)._replace(first=start)
            labels = self.labels_of(batch.y, start, start + window)
            mine = self.counted(output, labels) > 0
            if self._anywhere(mine):
                loss = self.objective(output, labels)
                optimizer.zero_grad()
                self.manual_backward(loss)
                if self.clip is not None:
                    self.clip_gradients(
                        optimizer, gradient_clip_val=self.clip_at, gradient_clip_algorithm=self.clip
                    )
                optimizer.step()
                clamp_delays(self.network)
            if mine:
                losses.append(loss.detach())
            seen.append(y.detach())
            for name, s in spikes.items():
                fired.setdefault(name, []).append(s.detach())
        schedule: Any = self.lr_schedulers()
        if schedule is not None:
            with warnings.catch_warnings():
                # a first batch without a step that counts; the schedule is one of batches
                warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
                schedule.step()
        y = torch.cat(seen)
        whole = {name: torch.cat(parts) for name, parts in fired.items()}
        with torch.no_grad():
            output = Output(self.scores(y, lengths), y, whole, lengths, lengths)
        if not losses:
            self._log(output, batch.y, None, "train")
            return y.new_zeros(())
        mean = torch.stack(losses).mean()
        self._log(output, batch.y, mean, "train")
        return mean

    def _anywhere(self, mine: bool) -> bool:
        """Whether a window counts in any process: all of them step together, or none."""
        if self.trainer.world_size == 1:
            return mine
        told = torch.tensor(float(mine), device=self.device)
        return bool(self.trainer.strategy.reduce(told, reduce_op="sum") > 0)

    def counted(self, output: Output, y: Tensor) -> int:
        """How many decisions the loss of a window is about: of 0 there is nothing to learn.

        Here the samples that have not ended.
        """
        return output.y.shape[1] if output.given is None else int((output.given > 0).sum())

    def windowed(
        self,
        seen: list[Tensor],
        y: Tensor,
        spikes: dict[str, Tensor],
        here: Tensor | None,
        past: Tensor | None,
    ) -> Output:
        """What is judged after a window: its own steps, unless the task looks back (``past``: valid steps up to its end)."""
        return Output(self.scores(y, here), y, spikes, here, here)

    def labels_of(self, y: Tensor, start: int, stop: int) -> Tensor:
        """The labels that a window is judged by."""
        return y

    def _log(self, output: Output, y: Tensor, loss: Tensor | None, stage: str) -> None:
        with torch.no_grad():
            measured = self.measures(output, y)
            lengths = {name: output.lengths_of(spikes) for name, spikes in output.spikes.items()}
            rates, rate = mean_rates(output.spikes, lengths)
        samples = output.y.shape[1]
        rate = rate.to(output.y.device)
        named = {f"{stage}/rate": rate} | ({} if loss is None else {f"{stage}/loss": loss})
        named |= {f"{stage}/rate/{name}": value for name, value in rates.items()}
        self.log_dict(named, on_step=False, on_epoch=True, batch_size=samples, sync_dist=True)
        for name, (value, count) in measured.items():
            if count:
                self.log(
                    f"{stage}/{name}", value, on_step=False, on_epoch=True, batch_size=count, sync_dist=True
                )
        if stage == "train":
            first = next(iter(measured.values()))[0]
            shown = (
                {"acc": first, "rate": rate} if loss is None else {"loss": loss, "acc": first, "rate": rate}
            )
            self.log_dict(
                shown, on_step=True, on_epoch=False, prog_bar=True, logger=False, batch_size=samples
            )

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Optimiser with a group a role, and the schedule counted in steps."""
        groups = parameter_groups(
            self, lr=self.lr, weight_decay=self.weight_decay, multipliers=self.lr_factors
        )
        # one pass over each tensor, four times faster than torch's default on the CPU; under mixed precision Lightning refuses to
        # clip the gradients of fused optimisers, which may scale them themselves
        mixed = self._trainer is not None and "mixed" in str(self._trainer.precision)
        fused = None if mixed or any(p.device.type != "cpu" for p in self.parameters()) else True
        optimizer: torch.optim.Optimizer
        if self.optimizer == "sgd":
            optimizer = torch.optim.SGD(groups, momentum=self.betas[0], fused=fused)
        elif self.optimizer == "adam":
            optimizer = torch.optim.Adam(groups, betas=self.betas, fused=fused)
        elif self.optimizer == "adamax":
            optimizer = torch.optim.Adamax(groups, betas=self.betas)
        elif self.optimizer == "radam":
            optimizer = torch.optim.RAdam(groups, betas=self.betas, decoupled_weight_decay=True)
        else:
            optimizer = torch.optim.AdamW(groups, betas=self.betas, fused=fused)
        kinds = [self.schedule_delays if group["name"] == "delays" else self.schedule for group in groups]
        if set(kinds) == {"constant"} and not self.warmup:
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
            warmup=round(self.warmup * epoch),
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_callbacks(self) -> list[L.Callback]:
        """The moving average of the weights, where it is wanted.

        Raises:
            ParameterError: a trainer that was told to do what this module does by its own arguments.
        """
        if self.trainer.state.fn == TrainerFn.FITTING:
            self._check_trainer()
        if self.average is None:
            return []
        from lightning.pytorch import callbacks

        if not hasattr(callbacks, "EMAWeightAveraging"):
            raise ParameterError(
                f"average={self.average} needs Lightning 2.6 or newer, this is {L.__version__}: pip install -U lightning, "
                "or leave it out."
            )
        return [callbacks.EMAWeightAveraging(decay=self.average)]

    def _check_trainer(self) -> None:
        # Lightning asks for the callbacks before it looks at the trainer itself, and its advice would not help here.
        word = type(self).__name__
        value, kind = self.trainer.gradient_clip_val, self.trainer.gradient_clip_algorithm
        if value or (value is not None and self.clip is not None):
            chosen = f'{word}(..., clip="{getattr(kind, "value", kind) or "norm"}", clip_at={value})'
            raise ParameterError(
                f"{word} clips the gradient by its own arguments, with truncate in every window: instead of "
                f"Trainer(gradient_clip_val={value}) use {chosen if value else f'{word}(..., clip=None)'}."
            )
        if self.truncate is not None and self.trainer.accumulate_grad_batches != 1:
            raise ParameterError(
                f"{word} with truncate={self.truncate} makes an optimiser step after every window, so that no gradient is "
                f"left to gather over {self.trainer.accumulate_grad_batches} batches: leave accumulate_grad_batches at 1 and "
                "take a larger batch_size, or use truncate=None."
            )

    def on_train_epoch_start(self) -> None:
        """Narrow the delays' widths, as far as this epoch says."""
        if self.delay_anneal is not None:
            self.delay_anneal(self.network, self.current_epoch, self.trainer.max_epochs or 1)

    def on_train_batch_end(self, *_: Any) -> None:
        """Put delays back that the step moved out of their range."""
        clamp_delays(self.network)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Leave a step out whose gradient is NaN or infinite: it would turn every weight into NaN.

        Long sequences overflow now and then in float32. Ten such steps in a row are a diverged run.

        Raises:
            NonFiniteError: the tenth in a row; it names a parameter, and the checkpoint of the last whole epoch stands.
        """
        named = [(name, p.grad) for name, p in self.named_parameters() if p.grad is not None]
        if not named:
            return
        norms = torch.stack(torch._foreach_norm([grad for _, grad in named]))
        if math.isfinite(norms.sum().item()):
            self._overflows = 0
            return
        self._overflows += 1
        bad = [name for (name, _), norm in zip(named, norms.tolist(), strict=True) if not math.isfinite(norm)]
        where = bad[0] if bad else named[0][0]
        log.warning(
            "the gradient of %s (and %d others) is not finite: this step is left out",
            where,
            max(0, len(bad) - 1),
        )
        if self._overflows >= OVERFLOWS:
            raise NonFiniteError(
                f"the gradient of {where} was NaN or infinite in {OVERFLOWS} steps in a row: the run diverged. Lower the "
                "learning rate (--model.lr) or clip the gradient (--model.clip norm --model.clip_at 1.0); the checkpoint of the "
                "last whole epoch is kept."
            )
        optimizer.zero_grad(set_to_none=True)

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        """Clip as this module was told."""
        if self.clip is not None:
            self.clip_gradients(optimizer, gradient_clip_val=self.clip_at, gradient_clip_algorithm=self.clip)


def _where(x: Tensor) -> str:
    """Which sample of a batch, and which step, holds the first NaN or Inf."""
    if x.dim() < 3:
        return f", the first in sample {int((~torch.isfinite(x)).nonzero()[0][0])}"
    step, sample = ((~torch.isfinite(x)).flatten(2).any(2)).nonzero()[0].tolist()
    return f", the first in sample {sample} at step {step}"
