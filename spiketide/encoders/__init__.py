"""Encoders: from values to spikes (or currents) over time, ``encoder(x) -> (T, B, *N)``."""

from .base import Encoder as Encoder
from .direct import Direct as Direct
from .latency import Latency as Latency
from .poisson import Poisson as Poisson
from .population import Population as Population
