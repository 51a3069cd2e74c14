"""Encoders: from values to spikes (or currents) over time, ``encoder(x) -> (T, B, *N)``; from sound and signals to spikes."""

from .base import Encoder as Encoder
from .cochlea import BandLevels as BandLevels
from .cochlea import Cochlea as Cochlea
from .cochlea import Events as Events
from .cochlea import resample as resample
from .direct import Direct as Direct
from .latency import Latency as Latency
from .level_crossing import CodeReport as CodeReport
from .level_crossing import EventStream as EventStream
from .level_crossing import LevelCrossing as LevelCrossing
from .poisson import Poisson as Poisson
from .population import Population as Population
from .send_on_delta import DeltaReport as DeltaReport
from .send_on_delta import DeltaState as DeltaState
from .send_on_delta import SendOnDelta as SendOnDelta
from .ternary import Ternary as Ternary
from .window import Window as Window
