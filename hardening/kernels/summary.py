"""What is remembered of a row: its entropy and the cell of the score space it lies in. Statistics, never released."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from hardening.kernels import layout
from hardening.kernels.blocks import HUGE, Block, quotient
from hardening.kernels.elementary import LOG2_E, exponent, power_of_two, without_exponent
from hardening.kernels.lanes import (
    WIDTH,
    across_max,
    across_min,
    across_sum,
    bits_of,
    butterfly_1,
    butterfly_2,
    butterfly_4,
    count_of,
    device,
    fabs,
    fill,
    larger,
    rint,
    roughly_fused,
    smaller,
    some,
    where,
)
from hardening.kernels.memory import flip, load, store
from hardening.kernels.words import numbers

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


@device
def normalise(b: Block, total: Any, highest: Any) -> tuple[Any, Any]:
    """Divides a distribution by its total; returns its first arg-max, before that, and its Shannon entropy in bits.

    `highest` is the largest entry, which dividing may tie with one just below it. What lies beyond the end of a row
    that ends within a vector is zero.
    """
    inverse, first, h = 1.0 / total, fill(float(b.n)), fill(0.0)
    for i in range(b.m):
        v = load(b.w, i)
        p = quotient(v, total, inverse)
        store(b.w, i, p)
        found = v == highest
        if not b.wide or some(found):  # in a long row it is a rare vector that holds the largest
            first = smaller(first, where(found, b.column + float(i) * b.stride, first))
        h = roughly_fused(p, log2(p + 1e-30), h)
    return (across_min(first) if b.wide else first), larger(0.0 - _total(b, h), fill(0.0))


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
    next_best, best = larger(larger(n0, n2), smaller(b0, b2)), larger(b0, b2)
    if b.wide:
        top = across_max(best)
        # Of the lanes that hold the largest entry, all but one keep it for the second place.
        tied = count_of(best == top)
        below = across_max(larger(where(best == top, fill(-HUGE), best), next_best))
        next_best = top if tied > 1 else below
        best = top
    return fabs(best * 2.0 - 1.0) if b.n == 1 else best - next_best
