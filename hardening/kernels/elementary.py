"""Logarithm and exponential on IEEE 754 operations alone, and therefore the same on every machine, unlike libm's."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from hardening.kernels.lanes import device

LN2 = 0.6931471805599453
#: ln 2 in two parts; the first has 32 bits, so that its product with a small integer is exact.
LN2_HIGH, LN2_LOW = 0.6931471803691238, 1.9082149292705877e-10
ROOT = 0.7071067811865476
HALF, MANTISSA = 0x3FE0000000000000, 0x000FFFFFFFFFFFFF


@device
def logarithms(x: Any) -> None:
    """Replaces normal positive numbers by their natural logarithms.

    With x = m 2^e and m from the root of one half to that of two, ln x = e ln 2 + 2 artanh((m - 1) / (m + 1)), of which
    the series is taken to a power at which 1e-15 is left.
    """
    bits = x.view(np.int64)
    for j in range(x.size):
        exponent = (bits[j] >> 52) - 1022
        bits[j] = (bits[j] & MANTISSA) | HALF
        m = x[j]
        exponent, m = (exponent - 1, 2.0 * m) if m < ROOT else (exponent, m)
        s = (m - 1.0) / (m + 1.0)
        q = s * s
        series = ((q * (1.0 / 19.0) + 1.0 / 17.0) * q + 1.0 / 15.0) * q + 1.0 / 13.0
        series = ((series * q + 1.0 / 11.0) * q + 1.0 / 9.0) * q + 1.0 / 7.0
        series = ((series * q + 1.0 / 5.0) * q + 1.0 / 3.0) * q + 1.0
        x[j] = exponent * LN2 + 2.0 * s * series


@device
def exponential(x: float, spare: Any) -> float:
    """e^x for x from -700 to 700, within 1e-15 of it; `spare` is a float64 array of one number to work with.

    With x = k ln 2 + r and r at most half of ln 2, e^x = 2^k e^r, and e^r by its series.
    """
    k = math.floor(x / LN2 + 0.5)
    r = (x - k * LN2_HIGH) - k * LN2_LOW
    series = 1.0
    for i in range(14, 0, -1):
        series = series * r / i + 1.0
    spare.view(np.int64)[0] = (k + 1023) << 52
    return series * float(spare[0])
