"""Training of networks that learn by themselves, image by image: S4NN and BS4NN."""

from __future__ import annotations

import logging
from typing import Any

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from ..errors import ParameterError
from ..timing import OnlineNetwork, OnlineTargets, PixelTimes, decide
from ..types import Batch
from .single_spike import SHOWN_EVERY, SingleSpike

log = logging.getLogger("spiketide")


class OnlineTiming(SingleSpike):
    """A :class:`spiketide.timing.S4NN` or ``BS4NN``, which changes its own weights after every image.

    ::

        times = encoder(x)        network.learn(times, y)        label = output that fires first

    The size of a batch only says how often numbers are shown: images are learnt one after the other, in the order of the
    batches, and what is logged for ``train`` is what the network said to each before it was learnt. An epoch begins with new
    weights for neurons that hardly fired in the one before. Logged as in :class:`.single_spike.SingleSpike`; ``loss`` is
    :class:`spiketide.timing.OnlineTargets`.

    Example:
        >>> import torch
        >>> from spiketide import Batch
        >>> from spiketide.timing import S4NN
        >>> from spiketide.training import OnlineTiming
        >>> model = OnlineTiming(S4NN([64, 32, 10]))
        >>> model(Batch(torch.rand(3, 1, 8, 8), torch.zeros(3, dtype=torch.int64))).scores.shape
        torch.Size([3, 10])

    Args:
        network: with its learning rate and all other numbers.
        encoder: From data to spike times; ``None`` is ``PixelTimes()`` with the window of the network.

    Raises:
        ParameterError: another kind of network; several processes; a ``Trainer`` that was told to clip the gradient.
        ShapeError: a batch that is no :class:`spiketide.Batch`.
        DataError: NaN or intensities outside [0, 1].
        EngineError: an accelerator other than the CPU.
    """

    def __init__(self, network: OnlineNetwork, *, encoder: nn.Module | None = None):
        if not isinstance(network, OnlineNetwork):
            raise ParameterError(
                f"OnlineTiming expected a network that learns by itself (S4NN, BS4NN), got {type(network).__name__}: "
                "SingleSpike trains the others."
            )
        source = PixelTimes(int(network.output.stop)) if encoder is None else encoder
        targets = OnlineTargets(network.margin, wake=network.wake)
        super().__init__(network, encoder=source, loss=targets, lr=network.lr)
        self.automatic_optimization = False

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Never stepped: it shows the learning rate to whoever asks for it."""
        return torch.optim.SGD(self.network.parameters(), lr=self.lr)

    def _check_trainer(self) -> None:
        if self.trainer.gradient_clip_val:
            raise ParameterError(
                "OnlineTiming learns without a gradient, so there is none to clip: leave gradient_clip_val out of the Trainer."
            )

    def on_fit_start(self) -> None:
        """Refuse several processes.

        Raises:
            ParameterError: more than one.
        """
        if self.trainer.world_size > 1:
            raise ParameterError(
                f"OnlineTiming learns one image after the other and cannot share them among {self.trainer.world_size} processes: "
                "use --trainer.devices 1."
            )

    def on_train_epoch_start(self) -> None:
        """New weights for neurons that hardly fired in the epoch before."""
        super().on_train_epoch_start()
        net: Any = self.network
        drawn = net.begin_epoch()
        if drawn:
            log.info("%d neurons that hardly fired begin anew", drawn)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Learn the images of a batch; their loss before that."""
        net: Any = self.network
        fired, seen = net.learn(self.encode(batch), batch.y)
        loss = self.objective_of(fired, batch.y)
        self._add(fired, seen, batch.y, loss)
        if batch_idx % SHOWN_EVERY == 0:
            right = (decide(fired).label == batch.y).float().mean()
            self.log_dict({"loss": loss, "acc": right}, prog_bar=True, logger=False)
        return loss

    def on_train_epoch_end(self) -> None:
        """Log the epoch.

        Raises:
            ParameterError: a layer of which no neuron fired in the whole epoch.
        """
        sums, samples = self._sums, float(self._sums.get("samples", 0))
        if not samples:
            return
        self._write("train", sums, samples)
        for name in self._sizes:
            if float(sums[f"fired/{name}"]) == 0:
                raise ParameterError(
                    f"layer {name}: none of its neurons fired on any of {samples:.0f} images: lower threshold, raise spread, "
                    "and see that the input fires at all."
                )
        self._sums = {}
