"""Synaptic operations of a network: they live in :mod:`spiketide.energy.operations`."""

from ..energy.operations import Operations as Operations
from ..energy.operations import connections as connections
from ..energy.operations import count_operations as count_operations
