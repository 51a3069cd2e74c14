"""spiketide: supervised training of spiking neural networks on data that lives in time."""

__version__ = "0.1.0"

from . import surrogate as surrogate
from .checkpointed import Checkpointed as Checkpointed
from .compose import Bidirectional as Bidirectional
from .compose import Framewise as Framewise
from .compose import Recurrent as Recurrent
from .compose import Residual as Residual
from .compose import Sequential as Sequential
from .compose import Substeps as Substeps
from .diagnose import diagnose as diagnose
from .lateral import Lateral as Lateral
from .lateral import Normalized as Normalized
from .lateral import NormalizedReadout as NormalizedReadout
from .layer import Layer as Layer
from .neurons import ALIF as ALIF
from .neurons import IF as IF
from .neurons import LIF as LIF
from .neurons import AdLIF as AdLIF
from .neurons import BalancedResonateFire as BalancedResonateFire
from .neurons import CubaLIF as CubaLIF
from .neurons import LeakyIntegrator as LeakyIntegrator
from .neurons import Neuron as Neuron
from .neurons import NormalizedLIF as NormalizedLIF
from .neurons import SEAdLIF as SEAdLIF
from .neurons import StepNeuron as StepNeuron
from .norms import BatchNorm as BatchNorm
from .norms import Dropout as Dropout
from .surrogate import spike as spike
from .synapses import AxonalDelay as AxonalDelay
from .synapses import Conv1d as Conv1d
from .synapses import Conv2d as Conv2d
from .synapses import DelayAnneal as DelayAnneal
from .synapses import DelayedConv2d as DelayedConv2d
from .synapses import DendriticDelay as DendriticDelay
from .synapses import Dense as Dense
from .synapses import SynapticDelay as SynapticDelay
from .synapses import TemporalConv1d as TemporalConv1d
from .synapses import TemporalConv2d as TemporalConv2d
from .synapses import TemporalConv3d as TemporalConv3d
from .synapses import freeze as freeze
from .types import Batch as Batch
from .types import detach as detach
