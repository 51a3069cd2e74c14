"""Training on Lightning: the module, parameter groups, run folders, recipes and their reproduction."""

from .classification import Classification, Output, stack
from .groups import ROLES, parameter_groups
from .recipe import Best, Claim, Recipe
from .reproduce import reproduce
from .run import Stopped, test, train

__all__ = [
    "ROLES",
    "Best",
    "Claim",
    "Classification",
    "Output",
    "Recipe",
    "Stopped",
    "parameter_groups",
    "reproduce",
    "stack",
    "test",
    "train",
]
