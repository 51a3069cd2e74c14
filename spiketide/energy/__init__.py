"""What a network costs: operations counted on real activity, priced by named and cited models."""

from .costs import COSTS as COSTS
from .costs import Costs as Costs
from .costs import costs as costs
from .formulas import PaperCounts as PaperCounts
from .formulas import paper_counts as paper_counts
from .meter import Counts as Counts
from .meter import LayerCounts as LayerCounts
from .meter import metering as metering
from .operations import Operations as Operations
from .operations import connections as connections
from .operations import count_operations as count_operations
from .report import Baseline as Baseline
from .report import BreakEven as BreakEven
from .report import Energy as Energy
from .report import break_even as break_even
from .report import energy_per_sample as energy_per_sample
from .report import equal_size as equal_size
from .report import price as price
from .report import summary as summary
from .report import table as table
from .step import StepOperations as StepOperations
from .step import step_operations as step_operations
