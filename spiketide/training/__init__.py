"""Training on Lightning: the module, parameter groups, run folders, recipes and their reproduction."""

from .classification import Classification, stack
from .groups import ROLES, parameter_groups
from .labelling import Labelling
from .online import OnlineTiming
from .recipe import Best, Claim, Recipe
from .reproduce import reproduce
from .run import Stopped, open_run, test, train
from .single_spike import SingleSpike
from .task import Output, Task

__all__ = [
    "ROLES",
    "Best",
    "Claim",
    "Classification",
    "Labelling",
    "OnlineTiming",
    "Output",
    "Recipe",
    "SingleSpike",
    "Stopped",
    "Task",
    "open_run",
    "parameter_groups",
    "reproduce",
    "stack",
    "test",
    "train",
]
