"""The scan: a neuron's step through time, on any engine."""

from .autograd import recurrent_scan as recurrent_scan
from .autograd import saved_bytes as saved_bytes
from .autograd import scan as scan
from .delayed import Delayed as Delayed
from .dynamics import Dynamics as Dynamics
