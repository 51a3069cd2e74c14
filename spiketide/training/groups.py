"""Parameter groups by role, so that time constants and delays can learn at their own pace and never decay."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import nn

from ..errors import ParameterError, unknown
from ..layer import parameter_roles

ROLES = ("weights", "time_constants", "thresholds", "delays")


def parameter_groups(
    model: nn.Module, *, lr: float, weight_decay: float = 0.0, multipliers: Mapping[str, float] | None = None
) -> list[dict[str, Any]]:
    """Groups for a torch optimiser: one a role, weights with and without decay apart.

    Weight decay pulls towards zero, which means nothing for a time constant, a threshold or a delay: only weights
    with two or more axes decay, never biases or the scales of a norm.

    Example:
        >>> import torch
        >>> from spiketide.training import parameter_groups
        >>> groups = parameter_groups(torch.nn.Linear(4, 2), lr=0.1, weight_decay=0.01)
        >>> [(group["name"], group["weight_decay"], len(group["params"])) for group in groups]
        [('weights', 0.01, 1), ('biases', 0.0, 1)]

    Args:
        model: whose trainable parameters are grouped.
        lr: learning rate of the weights.
        weight_decay: of the weights.
        multipliers: role -> factor on ``lr``, 0 or more; a role not named has factor 1.

    Raises:
        ParameterError: an unknown role, a rate, decay or factor below 0 or not finite, or nothing to train.
    """
    factors = dict(multipliers or {})
    for name in factors:
        if name not in ROLES:
            raise ParameterError(unknown("role", name, ROLES))
    rates = {"lr": lr, "weight_decay": weight_decay}
    for name, number in {**rates, **{f"a factor for {role}": f for role, f in factors.items()}}.items():
        if not 0 <= number < math.inf:
            raise ParameterError(f"parameter_groups expected {name} of 0 or more, got {number!r}.")
    members: dict[str, list[nn.Parameter]] = {}
    for parameter, name in parameter_roles(model).items():
        if parameter.requires_grad:
            if name not in ROLES:
                raise ParameterError(unknown("parameter role", name, ROLES))
            if name == "weights" and parameter.dim() < 2:
                name = "biases"
            members.setdefault(name, []).append(parameter)
    if not members:
        raise ParameterError("the model has no trainable parameter.")
    groups = []
    for name in sorted(members, key=("weights", "biases", *ROLES[1:]).index):
        factor = factors.get("weights" if name == "biases" else name, 1.0)
        decay = weight_decay if name == "weights" else 0.0
        groups.append({"params": members[name], "lr": lr * factor, "weight_decay": decay, "name": name})
    return groups
