"""Logarithms, exponentials and roots that every machine computes alike, unlike libm's: for what is released.

Nothing but additions, multiplications, divisions and square roots, rounded as IEEE 754 has it and in a fixed order.
First for numbers in arrays, then lane by lane. Cheaper ones, for statistics, are in `summary`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir

from hardening.kernels.lanes import FLOATS, I64, LONGS, call, define, device, fill, larger, rint, smaller, splat, where
from hardening.kernels.words import numbers

LN2 = 0.6931471805599453
#: ln 2 in two parts; the first has 32 bits, so that its product with a small integer is exact.
LN2_HIGH, LN2_LOW = 0.6931471803691238, 1.9082149292705877e-10
ROOT = 0.7071067811865476
HALF, MANTISSA = 0x3FE0000000000000, 0x000FFFFFFFFFFFFF
LOG2_E = 1.4426950408889634
# log2(m) = 2 / ln 2 (s + s^3 / 3 + s^5 / 5 + ...) with s = (m - 1) / (m + 1), here at most 0.172.
_L = tuple(2.0 * LOG2_E / (2 * k + 1) for k in range(10))


def _taylor(terms: int) -> tuple[float, ...]:
    out = [1.0]
    for k in range(1, terms):
        out.append(out[-1] * LN2 / k)
    return tuple(out)


# 2**f = 1 + f ln 2 + (f ln 2)^2 / 2! + ... for f at most one half.
_E = _taylor(14)


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


@define(LONGS, FLOATS)
def exponent(b: ir.IRBuilder, x: Any) -> Any:
    """e with x / 2**e in [sqrt(1/2), sqrt(2)), for positive normal numbers."""
    bits = b.bitcast(x, LONGS.representation)
    return b.ashr(b.sub(bits, splat(b, ir.Constant(I64, 0x3FE6A09E667F3BCD))), splat(b, ir.Constant(I64, 52)))


@define(FLOATS, FLOATS, LONGS)
def without_exponent(b: ir.IRBuilder, x: Any, exponent: Any) -> Any:
    """x / 2**exponent."""
    bits = b.sub(b.bitcast(x, LONGS.representation), b.shl(exponent, splat(b, ir.Constant(I64, 52))))
    return b.bitcast(bits, FLOATS.representation)


@define(FLOATS, FLOATS)
def power_of_two(b: ir.IRBuilder, x: Any) -> Any:
    """2**x for whole numbers in [-1022, 1023]."""
    biased = b.add(b.fptosi(x, LONGS.representation), splat(b, ir.Constant(I64, 1023)))
    return b.bitcast(b.shl(biased, splat(b, ir.Constant(I64, 52))), FLOATS.representation)


@define(FLOATS, FLOATS)
def sqrt(b: ir.IRBuilder, x: Any) -> Any:
    """Square root of what is not negative, correctly rounded."""
    return call("llvm.sqrt.v8f64", b, x)


@device
def log2(x: Any) -> Any:
    """Base-2 logarithm of positive normal numbers, error below 2**-50 of the larger of it and 1."""
    whole = exponent(x)
    m = without_exponent(x, whole)
    s = (m - 1.0) / (m + 1.0)
    r = s * s
    q = fill(_L[9])
    for k in range(8, -1, -1):
        q = q * r + fill(_L[k])
    return numbers(whole) + s * q


@device
def exp2(x: Any) -> Any:
    """Two to the power of x for x in [-1000, 1000], relative error below 2**-50."""
    whole = rint(x)
    f = x - whole
    q = fill(_E[13])
    for k in range(12, -1, -1):
        q = q * f + fill(_E[k])
    return power_of_two(whole) * q


@device
def power(x: Any, exponent: float) -> Any:
    """x**exponent for x >= 0 and an exponent above zero; what leaves the range from 2**-1000 to 2**1000 stops there."""
    tiny = x < 2.0**-900
    bits = log2(larger(where(tiny, x * 2.0**200, x), fill(2.0**-900)))
    bits = (bits - where(tiny, fill(200.0), fill(0.0))) * exponent
    return where(x > 0.0, exp2(smaller(larger(bits, fill(-1000.0)), fill(1000.0))), fill(0.0))
