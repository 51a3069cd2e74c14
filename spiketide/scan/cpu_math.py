"""Element-wise functions that Numba's loops can vectorise.

LLVM has no vector ``exp`` of its own, and Numba's calls the scalar C library once per neuron and step. The float32 version
here is straight-line arithmetic (Cody-Waite reduction, a polynomial of degree 6, the exponent built from bits), within two
units in the last place of the C library's, and vectorises like an addition. Float64, used for tests, keeps the C library.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

_LOW, _HIGH = np.float32(-87.0), np.float32(88.0)
_LOG2E = np.float32(1.4426950408889634)
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
_HALF, _ONE = np.float32(0.5), np.float32(1.0)
_C0, _C1, _C2 = np.float32(1.9875691500e-4), np.float32(1.3981999507e-3), np.float32(8.3334519073e-3)
_C3, _C4, _C5 = np.float32(4.1665795894e-2), np.float32(1.6666665459e-1), np.float32(5.0000001201e-1)
_BIAS, _SHIFT = np.int32(127), np.int32(23)


@njit(error_model="numpy", inline="always")
def exp32(x):  # type: ignore[no-untyped-def]
    """``exp(x)`` in float32; below -87 it is ``exp(-87)`` (1e-38), above 88 infinity, of NaN it is NaN."""
    c = _LOW if x < _LOW else x
    c = _HIGH if c > _HIGH else c
    n = np.floor(c * _LOG2E + _HALF)
    r = c - n * _LN2_HIGH
    r = r - n * _LN2_LOW
    p = _C0 * r + _C1
    p = p * r + _C2
    p = p * r + _C3
    p = p * r + _C4
    p = p * r + _C5
    p = p * (r * r) + r + _ONE
    bits = np.int32((np.int32(n) + _BIAS) << _SHIFT)
    y = p * bits.view(np.float32)
    y = np.float32(np.inf) if x > _HIGH else y
    return x if x != x else y


@njit(error_model="numpy", inline="always")
def sigmoid32(x):  # type: ignore[no-untyped-def]
    """``1 / (1 + exp(-x))`` in float32."""
    return _ONE / (_ONE + exp32(-x))


@njit(error_model="numpy", inline="always")
def tanh32(x):  # type: ignore[no-untyped-def]
    """``tanh(x)`` in float32: by the exponential of ``-2 |x|``, near zero (where that cancels) by its series."""
    a = -x if x < np.float32(0.0) else x
    e = exp32(np.float32(-2.0) * a)
    y = (_ONE - e) / (_ONE + e)
    far = -y if x < np.float32(0.0) else y
    s = x * x
    # Cephes' rational approximation for |x| < 0.625
    p = np.float32(-5.70498872745e-3) * s + np.float32(2.06390887954e-2)
    p = p * s + np.float32(-5.37397155531e-2)
    p = p * s + np.float32(1.33314422036e-1)
    p = p * s + np.float32(-3.33332819422e-1)
    near = p * s * x + x
    return near if a < np.float32(0.625) else far


@njit(error_model="numpy", inline="always")
def sigmoid64(x):  # type: ignore[no-untyped-def]
    """``1 / (1 + exp(-x))`` in float64."""
    return 1.0 / (1.0 + math.exp(-x))
