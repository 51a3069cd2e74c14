"""Synapses: layers that connect the outputs of some neurons to the inputs of others."""

from .base import Synapse as Synapse
from .conv import Conv1d as Conv1d
from .conv import Conv2d as Conv2d
from .delay import AxonalDelay as AxonalDelay
from .delay import DelayAnneal as DelayAnneal
from .delay import DelayedConv2d as DelayedConv2d
from .delay import DendriticDelay as DendriticDelay
from .delay import SynapticDelay as SynapticDelay
from .delay import clamp_delays as clamp_delays
from .delay import freeze as freeze
from .delay_summary import LayerDelays as LayerDelays
from .delay_summary import delay_statistics as delay_statistics
from .delay_summary import plot_delays as plot_delays
from .dense import Dense as Dense
from .temporal_conv import TemporalConv1d as TemporalConv1d
from .temporal_conv import TemporalConv2d as TemporalConv2d
from .temporal_conv import TemporalConv3d as TemporalConv3d
