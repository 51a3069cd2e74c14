"""Neurons: one model a file, each a step of plain arithmetic."""

from .adlif import AdLIF as AdLIF
from .alif import ALIF as ALIF
from .base import Constant as Constant
from .base import Neuron as Neuron
from .base import StepNeuron as StepNeuron
from .base import TimeConstant as TimeConstant
from .cuba_lif import CubaLIF as CubaLIF
from .integrate_fire import IF as IF
from .leaky_integrator import LeakyIntegrator as LeakyIntegrator
from .lif import LIF as LIF
from .normalized_lif import NormalizedLIF as NormalizedLIF
from .resonate_fire import BalancedResonateFire as BalancedResonateFire
from .se_adlif import SEAdLIF as SEAdLIF
