"""Synapses: layers that connect the outputs of some neurons to the inputs of others."""

from .base import Synapse as Synapse
from .conv import Conv1d as Conv1d
from .conv import Conv2d as Conv2d
from .dense import Dense as Dense
