"""What is remembered of a row: its entropy and the cell of the score space it lies in. Statistics, never released."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir

from hardening.kernels import layout
from hardening.kernels.blocks import HUGE, Block
from hardening.kernels.elementary import LOG2_E, exponent, power_of_two, without_exponent
from hardening.kernels.job import NARROW
from hardening.kernels.lanes import (
    FLOATS,
    I32,
    WIDTH,
    LanesType,
    across_max,
    across_min,
    across_sum,
    bits_of,
    butterfly_1,
    butterfly_2,
    butterfly_4,
    call,
    count_of,
    define,
    device,
    fabs,
    fill,
    larger,
    rint,
    roughly_fused,
    smaller,
    some,
    vector,
    where,
)
from hardening.kernels.memory import flip, load, store
from hardening.kernels.words import numbers

SIXTEEN = ir.VectorType(I32, 2 * WIDTH)
SINGLES = LanesType("Singles", ir.VectorType(ir.FloatType(), 2 * WIDTH))
#: Numbers that a row is folded to before its cell is read off.
FOLD = 16


def _fit(function: Callable[[Any], Any], low: float, high: float, degree: int) -> tuple[float, ...]:
    """Coefficients of the Chebyshev interpolation, constant first."""
    fit = np.polynomial.chebyshev.Chebyshev.interpolate(function, degree, domain=[low, high])
    return tuple(float(c) for c in fit.convert(kind=np.polynomial.Polynomial, domain=[-1, 1], window=[-1, 1]).coef)


# log2(1 + m) = m q(m) on [sqrt(1/2) - 1, sqrt(2) - 1] and 2**x on [-1/2, 1/2], errors below 1e-5.
L0, L1, L2, L3, L4, L5 = _fit(
    lambda m: np.where(np.abs(m) < 1e-9, 1.0, np.log1p(m) / np.where(np.abs(m) < 1e-9, 1.0, m)) / np.log(2.0),
    np.sqrt(0.5) - 1,
    np.sqrt(2.0) - 1,
    5,
)
E0, E1, E2, E3, E4, E5 = _fit(np.exp2, -0.5, 0.5, 5)


@device
def log2(x: Any) -> Any:
    """Base-2 logarithm of positive normal numbers, absolute error below 1e-5; for statistics, not for releases."""
    whole = exponent(x)
    m = without_exponent(x, whole) - 1.0
    q = roughly_fused(fill(L5), m, fill(L4))
    q = roughly_fused(q, m, fill(L3))
    q = roughly_fused(q, m, fill(L2))
    q = roughly_fused(q, m, fill(L1))
    q = roughly_fused(q, m, fill(L0))
    return roughly_fused(m, q, numbers(whole))


@device
def exp2(x: Any) -> Any:
    """Two to the power of x for x in [-1000, 1000], relative error below 1e-5; for statistics, not for releases."""
    whole = rint(x)
    f = x - whole
    q = roughly_fused(fill(E5), f, fill(E4))
    q = roughly_fused(q, f, fill(E3))
    q = roughly_fused(q, f, fill(E2))
    q = roughly_fused(q, f, fill(E1))
    q = roughly_fused(q, f, fill(E0))
    return power_of_two(whole) * q


@device
def _total(b: Block, s: Any) -> Any:
    return across_sum(s) if b.wide else s


@define(SINGLES, FLOATS, FLOATS)
def singles(b: ir.IRBuilder, x: Any, y: Any) -> Any:
    """Sixteen numbers in single precision."""
    eight, both = ir.VectorType(ir.FloatType(), WIDTH), ir.Constant(SIXTEEN, list(range(2 * WIDTH)))
    return b.shuffle_vector(b.fptrunc(x, eight), b.fptrunc(y, eight), both)


@define(SINGLES, SINGLES, SINGLES)
def add_log2(b: ir.IRBuilder, h: Any, x: Any) -> Any:
    """h + x log2(x) of sixteen numbers from 0 to 1, for the work of eight in double precision."""
    kind = SINGLES.representation

    def number(x: float) -> Any:
        return ir.Constant(kind, [x] * 2 * WIDTH)

    def integer(x: int) -> Any:
        return ir.Constant(SIXTEEN, [x] * 2 * WIDTH)

    bits = b.bitcast(b.fadd(x, number(2.0**-100)), SIXTEEN)
    exponent = b.ashr(b.sub(bits, integer(0x3F3504F3)), integer(23))  # such that the rest lies around 1, by bits of 1/2
    m = b.fsub(b.bitcast(b.sub(bits, b.shl(exponent, integer(23))), kind), number(1.0))
    series = number(L5)
    for c in (L4, L3, L2, L1, L0):
        series = call("llvm.fmuladd.v16f32", b, series, m, number(c))
    logarithm = call("llvm.fmuladd.v16f32", b, m, series, b.sitofp(exponent, kind))
    return call("llvm.fmuladd.v16f32", b, x, logarithm, h)


@define(FLOATS, SINGLES)
def in_eight(b: ir.IRBuilder, x: Any) -> Any:
    """The sums of lanes that are eight apart."""
    low, high = (ir.Constant(vector(I32), list(range(k, k + WIDTH))) for k in (0, WIDTH))
    return b.fadd(*(b.fpext(b.shuffle_vector(x, x, half), FLOATS.representation) for half in (low, high)))


@device
def normalise(b: Block, total: Any, highest: Any) -> tuple[Any, Any, Any]:
    """Divides a distribution by its total; returns its first arg-max, before that, its Shannon entropy in bits and
    its `margin`.

    `highest` is the largest entry, which dividing may tie with one just below it. What lies beyond the end of a row
    that ends within a vector is zero.
    """
    inverse, first, best, next_best, none = 1.0 / total, fill(float(b.n)), fill(0.0), fill(0.0), fill(0.0)
    doubles, sixteen, i = fill(0.0), singles(none, none), 0
    long = b.n > NARROW  # shorter rows may come eight at a time or alone, and are to have the same entropy
    while i < b.m:
        v, u = load(b.w, i), load(b.w, i + 1) if i + 1 < b.m else none
        p, q = v * inverse, u * inverse
        store(b.w, i, p)
        if i + 1 < b.m:
            store(b.w, i + 1, q)
        next_best, best = larger(next_best, smaller(best, p)), larger(best, p)
        next_best, best = larger(next_best, smaller(best, q)), larger(best, q)
        if not b.wide or some((v == highest) | (u == highest)):  # in a long row it is rare vectors that hold it
            column = b.column + float(i) * b.stride
            first = smaller(first, where(u == highest, column + b.stride, first))
            first = smaller(first, where(v == highest, column, first))
        if long:
            sixteen = add_log2(sixteen, singles(p, q))
        else:
            doubles = roughly_fused(q, log2(q + 1e-30), roughly_fused(p, log2(p + 1e-30), doubles))
        i += 2
    first = across_min(first) if b.wide else first
    h = across_sum(in_eight(sixteen)) if long else _total(b, doubles)
    return first, larger(0.0 - h, none), _margin(b, best, next_best)


@device
def binary_entropy_bits(b: Block) -> Any:
    """Mean entropy of independent yes/no scores, in bits."""
    h, none = fill(0.0), fill(0.0)
    for i in range(b.m):
        p = larger(load(b.w, i), fill(1e-30))
        q = larger(1.0 - load(b.w, i), fill(1e-30))
        term = p * log2(p) + q * log2(q)
        h = h - (where(b.last, term, none) if i == b.m - 1 else term)
    return larger(_total(b, h) / float(b.n), none)


@device
def softmax_entropy_bits(b: Block, highest: Any) -> Any:
    """Entropy of softmax(w), in bits; `highest` is the largest entry."""
    s, h, none = fill(0.0), fill(0.0), fill(0.0)
    for i in range(b.m):
        x = larger((load(b.w, i) - highest) * LOG2_E, fill(-1000.0))
        p = exp2(x)
        p = where(b.last, p, none) if i == b.m - 1 else p
        s = s + p
        h = h + p * x
    s, h = _total(b, s), _total(b, h)
    return larger(log2(s) - h / s, none)


@device
def _turn(fold: Any, distance: int) -> None:
    """Two stages of a Walsh-Hadamard transform, of `distance` and of twice that."""
    for part in range(FOLD // 4):
        k = part // distance * 4 * distance + part % distance
        w, x = load(fold, k), load(fold, k + distance)
        y, z = load(fold, k + 2 * distance), load(fold, k + 3 * distance)
        store(fold, k, (w + x) + (y + z))
        store(fold, k + distance, (w - x) + (y - z))
        store(fold, k + 2 * distance, (w + x) - (y + z))
        store(fold, k + 3 * distance, (w - x) - (y - z))


@device
def _sign(bit: Any) -> float:
    return 1.0 if bit == 0 else -1.0


@device
def cells_of(b: Block, signs: Any, fold: Any, bits: int) -> Any:
    """The sign pattern of a secret random projection, `bits` of it, as a number.

    A locality-sensitive hash (Charikar 2002): the row is folded to 16 numbers with secret signs (`signs`: uint8, 0 or
    128, padded to whole vectors), turned by a Walsh-Hadamard transform (Ailon & Chazelle 2006) with the 16 more signs
    at its end, and read off by sign.
    """
    more = (len(signs) - FOLD) // WIDTH
    if b.wide:
        even, odd = fill(0.0), fill(0.0)
        for i in range(0, b.m, 2):
            even = even + flip(load(b.w, i), signs, i)
            if i + 1 < b.m:
                odd = odd + flip(load(b.w, i + 1), signs, i + 1)
        even = butterfly_4(butterfly_2(butterfly_1(flip(even, signs, more))))
        odd = butterfly_4(butterfly_2(butterfly_1(flip(odd, signs, more + 1))))
        cell = bits_of(even + odd > 0.0) + 256 * bits_of(even - odd > 0.0)
        return fill(float(cell % (1 << bits)))
    turned = len(signs) - FOLD
    for k in range(FOLD):
        store(fold, k, load(b.w, k) * _sign(signs[k] ^ signs[turned + k]) if k < b.n else fill(0.0))
    for i in range(FOLD, b.m):
        k = i % FOLD
        store(fold, k, load(fold, k) + load(b.w, i) * _sign(signs[i] ^ signs[turned + k]))
    _turn(fold, 1)
    _turn(fold, 4)
    cells, one, none = fill(0.0), fill(1.0), fill(0.0)
    for k in range(bits):
        cells = cells + where(load(fold, k) > 0.0, one, none) * float(1 << k)
    return cells


@device
def clean_entropy(b: Block, space: int, logits: bool, highest: Any) -> Any:
    """Entropy of the model's own row in bits where it is no distribution; 0 where the space has none."""
    if space == layout.SPACE_SIGMOID:
        return binary_entropy_bits(b)
    if logits:
        return softmax_entropy_bits(b, highest)
    return fill(0.0)


@device
def margin(b: Block) -> Any:
    """Largest entry less the next largest; for one yes/no score, how far it is from an even one, doubled."""
    none = fill(-HUGE)
    b0, b1, b2, b3, n0, n1, n2, n3 = none, none, none, none, none, none, none, none
    i = 0
    while i + 4 < b.m:  # four pairs, so that a comparison does not wait for the one before
        x0, x1, x2, x3 = load(b.w, i), load(b.w, i + 1), load(b.w, i + 2), load(b.w, i + 3)
        n0, n1, n2, n3 = (
            larger(n0, smaller(b0, x0)),
            larger(n1, smaller(b1, x1)),
            larger(n2, smaller(b2, x2)),
            larger(n3, smaller(b3, x3)),
        )
        b0, b1, b2, b3 = larger(b0, x0), larger(b1, x1), larger(b2, x2), larger(b3, x3)
        i += 4
    while i < b.m:
        x = where(b.last, load(b.w, i), none) if i == b.m - 1 else load(b.w, i)
        n0, b0 = larger(n0, smaller(b0, x)), larger(b0, x)
        i += 1
    n0, b0 = larger(larger(n0, n1), smaller(b0, b1)), larger(b0, b1)
    n2, b2 = larger(larger(n2, n3), smaller(b2, b3)), larger(b2, b3)
    return _margin(b, larger(b0, b2), larger(larger(n0, n2), smaller(b0, b2)))


@device
def _margin(b: Block, best: Any, next_best: Any) -> Any:
    """`margin`, from the best two entries of each lane."""
    if b.wide:
        top = across_max(best)
        # Of the lanes that hold the largest entry, all but one keep it for the second place.
        tied = count_of(best == top)
        below = across_max(larger(where(best == top, fill(-HUGE), best), next_best))
        next_best = top if tied > 1 else below
        best = top
    return fabs(best * 2.0 - 1.0) if b.n == 1 else best - next_best
