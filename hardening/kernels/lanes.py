"""Scalar building blocks that LLVM turns into vector instructions.

numba widens 32-bit integers, puts no fast-math flags on selects and calls libm for rounding; each of these costs a
factor of five or more in a row loop. The intrinsics below emit the one instruction that is meant.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

_DOUBLE = ir.DoubleType()
_I64 = ir.IntType(64)
#: Flags that allow reordering only: NaN and infinity keep their meaning.
REORDER = {"reassoc", "nsz", "contract"}
#: For loops over rows that are known to be finite.
FINITE = {"reassoc", "nsz", "contract", "nnan", "ninf", "arcp"}


def _unary(name: str) -> Callable[[ir.IRBuilder, Any], Any]:
    def emit(builder: ir.IRBuilder, x: Any) -> Any:
        return builder.call(builder.module.declare_intrinsic(name, [_DOUBLE]), [x])

    return emit


@intrinsic
def rint(_ctx: Any, x: Any) -> Any:
    """Nearest integer, halves to even."""
    return types.float64(types.float64), lambda c, b, s, a: _unary("llvm.rint")(b, a[0])


@intrinsic
def floor(_ctx: Any, x: Any) -> Any:
    return types.float64(types.float64), lambda c, b, s, a: _unary("llvm.floor")(b, a[0])


@intrinsic
def fabs(_ctx: Any, x: Any) -> Any:
    return types.float64(types.float64), lambda c, b, s, a: _unary("llvm.fabs")(b, a[0])


def _select(compare: str) -> Callable[..., Any]:
    def emit(_context: Any, builder: ir.IRBuilder, _signature: Any, args: Any) -> Any:
        flags = ("nnan", "nsz")
        test = builder.fcmp_ordered(compare, args[0], args[1], flags=flags)
        return builder.select(test, args[0], args[1], flags=flags)

    return emit


@intrinsic
def larger(_ctx: Any, x: Any, y: Any) -> Any:
    """max of two finite numbers."""
    return types.float64(types.float64, types.float64), _select(">")


@intrinsic
def smaller(_ctx: Any, x: Any, y: Any) -> Any:
    """min of two finite numbers."""
    return types.float64(types.float64, types.float64), _select("<")


@intrinsic
def bits_of(_ctx: Any, x: Any) -> Any:
    return types.int64(types.float64), lambda c, b, s, a: b.bitcast(a[0], _I64)


@intrinsic
def from_bits(_ctx: Any, x: Any) -> Any:
    return types.float64(types.int64), lambda c, b, s, a: b.bitcast(a[0], _DOUBLE)


_MANTISSA = (1 << 52) - 1
_HALF = 0x3FE << 52
# log2(m) = (m - 1) q(m - 1) on [sqrt(1/2), sqrt(2)], Chebyshev fit; absolute error below 2e-7.
_LOG2 = np.polynomial.chebyshev.Chebyshev.interpolate(
    lambda x: np.where(np.abs(x) < 1e-9, 1.0, np.log1p(x) / np.where(np.abs(x) < 1e-9, 1.0, x)) / np.log(2.0),
    9,
    domain=[np.sqrt(0.5) - 1, np.sqrt(2.0) - 1],
).convert(kind=np.polynomial.Polynomial, domain=[-1, 1], window=[-1, 1])
C0, C1, C2, C3, C4, C5, C6, C7, C8, C9 = (float(c) for c in _LOG2.coef)


@njit(fastmath=FINITE)
def log2(x: float) -> float:
    """Base-2 logarithm of a positive normal number, absolute error below 1e-6; for statistics, not for releases."""
    bits = bits_of(x)
    exponent = (bits >> 52) - 1022
    m = from_bits((bits & _MANTISSA) | _HALF)
    small = 1.0 if m < 0.7071067811865476 else 0.0
    m = m + m * small - 1.0
    q = ((((((((C9 * m + C8) * m + C7) * m + C6) * m + C5) * m + C4) * m + C3) * m + C2) * m + C1) * m + C0
    return m * q + (float(exponent) - small)
