"""Learning rates over the steps of a training, a shape for each parameter group."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.optim import lr_scheduler

from ..errors import ParameterError, unknown

SCHEDULES = ("constant", "cosine", "onecycle", "step")

RISE, START, END = 0.3, 25.0, 1e4
"""One-cycle: share of the steps in which the rate rises, and what the peak is divided by at the start and (again) at the
end."""

MOMENTUM = (0.85, 0.95)
"""One-cycle: the first beta at the peak of the rate, and far from it."""


def _between(start: float, end: float, share: float) -> float:
    """Half a cosine from ``start`` to ``end``."""
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))


def onecycle(step: int, total: int) -> tuple[float, float]:
    """Factor on the peak rate, and first beta, at step ``0 <= step < total``.

    Example:
        >>> from spiketide.training.schedule import onecycle
        >>> [round(5e-3 * onecycle(e, 150)[0], 9) for e in (0, 44, 149)]
        [0.0002, 0.005, 2e-08]
    """
    peak = RISE * total - 1
    if step <= peak:
        share = step / peak if peak > 0 else 1.0
        return _between(1 / START, 1.0, share), _between(MOMENTUM[1], MOMENTUM[0], share)
    share = min(1.0, (step - peak) / max(1e-9, total - 1 - peak))
    return _between(1.0, 1 / START / END, share), _between(MOMENTUM[0], MOMENTUM[1], share)


class Schedule(lr_scheduler.LRScheduler):
    """Multiply each group's rate by its own shape.

    ``"cosine"`` falls to zero at ``total`` and ``"onecycle"`` reaches its end at the last step, as torch's schedulers of
    these names do.

    Args:
        optimizer: its groups' rates are the peaks.
        kinds: one of ``SCHEDULES`` for every group.
        total: steps of the whole training.
        step_every: steps between two factors of ``"step"``.
        step_factor: of ``"step"``.
        cycle_momentum: ``"onecycle"`` groups also cycle their first beta (``momentum`` for SGD).
        warmup: first steps, in which the rate rises evenly from ``1 / warmup`` of itself; the shape begins behind them. Not for
            ``"onecycle"``, which has a rise of its own.

    Raises:
        ParameterError: an unknown kind, or a warm-up of one that has its own.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        kinds: Sequence[str],
        total: int,
        *,
        step_every: int = 1,
        step_factor: float = 0.5,
        cycle_momentum: bool = False,
        warmup: int = 0,
    ) -> None:
        for kind in kinds:
            if kind not in SCHEDULES:
                raise ParameterError(unknown("schedule", kind, SCHEDULES))
        if warmup and "onecycle" in kinds:
            raise ParameterError(
                "a one-cycle schedule begins with a rise of its own: leave the warm-up at 0, or take another schedule."
            )
        if len(kinds) != len(optimizer.param_groups):
            raise ParameterError(
                f"Schedule expected a kind for each of {len(optimizer.param_groups)} groups, got {len(kinds)}."
            )
        self.kinds, self.total = list(kinds), max(1, int(total))
        self.step_every, self.step_factor = max(1, int(step_every)), float(step_factor)
        self.cycle_momentum, self.warmup = bool(cycle_momentum), max(0, int(warmup))
        super().__init__(optimizer)

    def factor(self, kind: str, step: int) -> float:
        """What the rate of a group is multiplied by at a step."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        step, total = step - self.warmup, max(1, self.total - self.warmup)
        if kind == "cosine":
            return (1 + math.cos(math.pi * min(step, total) / total)) / 2
        if kind == "onecycle":
            return onecycle(min(step, self.total), self.total + 1)[0]
        return self.step_factor ** (step // self.step_every) if kind == "step" else 1.0

    def get_lr(self) -> list[float | torch.Tensor]:
        """Rates of all groups at the step that comes; sets the momentum where it is cycled."""
        step = self.last_epoch
        if self.cycle_momentum:
            beta = onecycle(min(step, self.total), self.total + 1)[1]
            for kind, group in zip(self.kinds, self.optimizer.param_groups, strict=True):
                if kind == "onecycle" and "betas" in group:
                    group["betas"] = (beta, *group["betas"][1:])
                elif kind == "onecycle" and "momentum" in group:
                    group["momentum"] = beta
        return [base * self.factor(kind, step) for base, kind in zip(self.base_lrs, self.kinds, strict=True)]
