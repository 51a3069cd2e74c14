"""The GPU engine: one fused Triton loop over time, printed from the neuron's traced step.

Layout: ``(T, M)`` with ``M = B * N`` contiguous. One program takes a block of neurons and walks them through time with their
state, coefficients and running gradients in registers, so memory sees each input once and each output once. The rows of the
steps to come are fetched asynchronously while the present one is computed (Triton's software pipelining), because nothing but
the state depends on the step before. The number of steps is a run-time value: one kernel serves every length.

Bits: arithmetic is float32 (float64 for float64 inputs) in the order of the traced step; fused multiply-add is off, division
and square root round to nearest, and ``exp`` and its kin are those of CUDA's math library, as in torch's own kernels. So the
spikes are the reference's, bit for bit.

Storage: inputs, outputs and their gradients may be bfloat16 or float16; they are converted in registers, no float32 copy is made.
State, coefficients and the saved values stay float32: the backward rebuilds the membrane before the threshold from what was
saved, and rounded to 8 bits it would fall on the other side of the threshold from the spike that was sent on.

Sequences of different ``lengths``: a block stops at the end of its longest sample; past a sample's end its state is kept, its
output and gradient are zero.

Without a GPU, Triton's interpreter runs the same kernels on CPU tensors when ``TRITON_INTERPRET=1`` is set before Triton is
imported.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import EngineError
from .cpu import indent, plan_for
from .dynamics import program
from .graph import Plan, Program
from .printer import Dialect, emit
from .source import load_source
