"""What a program does to one row: float64 scratch in, float64 scratch out, nothing allocated.

Sums that decide what is released run over integers or multiples of a power of two, so they are exact and do not depend
on the width of the machine's vectors. Each function's plain-numpy twin is the `reference` of its transform.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

from hardening.kernels import opcodes
from hardening.kernels.lanes import FINITE, REORDER, bits_of, floor, from_bits, larger, log2, rint, smaller

Row = Any  # float64[::1]

SUM_GRID = 2.0**40
FIXED_POINT = 2.0**32
#: Beyond this many steps a float64 no longer holds every integer that noise may add.
MOST_STEPS = 2.0**50


@njit(fastmath=FINITE)
def largest(w: Row, n: int) -> float:
    m = w[0]
    for j in range(n):
        m = larger(m, w[j])
    return m


@njit(fastmath=FINITE)
def smallest(w: Row, n: int) -> float:
    m = w[0]
    for j in range(n):
        m = smaller(m, w[j])
    return m


@njit
def first_equal(w: Row, n: int, value: float) -> int:
    """First index that holds `value`; looks at 32 entries at a time so that the comparison vectorises."""
    j = 0
    while j + 32 <= n:
        hit = 0
        for i in range(32):
            hit |= int(w[j + i] == value)
        if hit:
            break
        j += 32
    while j < n - 1 and w[j] != value:
        j += 1
    return j


@njit
def first_argmax(w: Row, n: int) -> int:
    return first_equal(w, n, largest(w, n)) if n else 0


@njit(fastmath=REORDER)
def plain_sum(w: Row, n: int) -> float:
    s = 0.0
    for j in range(n):
        s += w[j]
    return s


@njit(fastmath=REORDER)
def exact_sum(w: Row, n: int) -> float:
    """Sum in fixed point: exact and order-free while it stays below 2**13."""
    s = 0.0
    for j in range(n):
        s += rint(w[j] * SUM_GRID)
    return s / SUM_GRID


@njit(fastmath=REORDER)
def nonfinite(w: Row, n: int) -> bool:
    s = 0.0
    for j in range(n):
        s += w[j] * 0.0
    return s != 0.0


@njit
def scale(w: Row, n: int, divisor: float) -> None:
    for j in range(n):
        w[j] = w[j] / divisor


@njit(fastmath=FINITE)
def entropy_bits(w: Row, n: int) -> float:
    """Shannon entropy of a distribution, in bits."""
    h = 0.0
    for j in range(n):
        p = larger(w[j], 1e-30)
        h -= p * log2(p)
    return larger(h, 0.0)


@njit(fastmath=FINITE)
def softmax_entropy_bits(w: Row, n: int, top: float, scratch: Row) -> float:
    """Entropy of softmax(w), in bits."""
    for j in range(n):
        scratch[j] = math.exp(w[j] - top)
    s = plain_sum(scratch, n)
    h = 0.0
    for j in range(n):
        h += scratch[j] * (w[j] - top)
    return larger((math.log(s) - h / s) / math.log(2.0), 0.0)


@njit(fastmath=REORDER)
def binary_entropy_bits(w: Row, n: int) -> float:
    """Mean entropy of independent yes/no scores, in bits."""
    h = 0.0
    for j in range(n):
        p = larger(w[j], 1e-30)
        q = larger(1.0 - w[j], 1e-30)
        h -= p * log2(p) + q * log2(q)
    return h / n if n else 0.0


@njit(fastmath=FINITE)
def cell_of(w: Row, n: int, signs: Row, planes: Row, fold: Row) -> int:
    """Sign pattern of a secret random projection: `len(planes)` / 16 bits.

    The row is first folded to 16 numbers with secret signs, then compared with random planes; a linear
    locality-sensitive hash (Charikar 2002) at one multiplication per entry.
    """
    for i in range(16):
        fold[i] = 0.0
    full = n - n % 16
    for j in range(0, full, 16):
        for i in range(16):
            fold[i] += signs[j + i] * w[j + i]
    for i in range(n - full):
        fold[i] += signs[full + i] * w[full + i]
    cell = 0
    for p in range(len(planes) // 16):
        s = 0.0
        for i in range(16):
            s += planes[p * 16 + i] * fold[i]
        cell = cell * 2 + int(s > 0.0)
    return cell


@njit
def count_above(w: Row, n: int, t: float) -> int:
    c = 0
    for j in range(n):
        c += int(w[j] > t)
    return c


@njit
def _ordered(x: float) -> int:
    """Maps doubles to integers of the same order."""
    b = bits_of(x)
    return b if b >= 0 else np.int64(-0x8000000000000000) - b


@njit
def _unordered(b: int) -> float:
    return from_bits(b if b >= 0 else np.int64(-0x8000000000000000) - b)


@njit
def threshold_of(w: Row, n: int, r: int) -> float:
    """A t with #{w > t} <= r <= #{w >= t}, for 0 < r < n and finite w: bisection, at most 90 passes."""
    low = smallest(w, n)
    if count_above(w, n, low) <= r:
        return low
    high = largest(w, n)
    for i in range(90):
        if i < 24:
            mid = low + (high - low) * 0.5
        else:
            a = _ordered(low)
            mid = _unordered(a + (_ordered(high) - a) // 2)
        if not (low < mid < high):
            if i >= 24:
                break
            continue
        c = count_above(w, n, mid)
        if c == r:
            return mid
        if c > r:
            low = mid
        else:
            high = mid
    return high


@njit
def to_types(w: Row, residual: Row, n: int, units: float, top: int) -> None:
    """Largest-remainder rounding to multiples of 1/units; ties, and a lost lead, go to `top`."""
    total = 0.0
    for j in range(n):
        scaled = w[j] * units
        count = floor(scaled)
        residual[j] = scaled - count
        w[j] = count
    total = plain_sum(w, n)
    missing = int(units - total)
    if missing < 0 or missing >= n:
        extra = missing if missing < 0 else missing - n + 1
        w[top] += extra
        missing -= extra
    if missing > 0:
        t = threshold_of(residual, n, missing)
        _hand_out(w, residual, n, missing, t, top)
    lead = first_argmax(w, n)
    if lead != top:
        _restore_top(w, residual, n, missing, top, lead)
    for j in range(n):
        w[j] = w[j] / units


@njit
def _hand_out(w: Row, residual: Row, n: int, missing: int, t: float, top: int) -> None:
    """One unit to each residual above t, what is left to those equal to t; marks receivers by adding 2."""
    above = count_above(residual, n, t)
    for j in range(n):
        got = 1.0 if residual[j] > t else 0.0
        w[j] += got
        residual[j] += 2.0 * got
    left = missing - above
    if left > 0 and residual[top] == t:
        w[top] += 1.0
        residual[top] += 2.0
        left -= 1
    j = 0
    while left > 0 and j < n:
        if residual[j] == t:
            w[j] += 1.0
            residual[j] += 2.0
            left -= 1
        j += 1


@njit
def _restore_top(w: Row, residual: Row, n: int, missing: int, top: int, lead: int) -> None:
    """Rounding has tied the top class with an earlier one: one unit moves to it from the weakest receiver."""
    donor = lead
    weakest = 4.0
    for j in range(n):
        if residual[j] >= 2.0 and j != top and residual[j] <= weakest:
            weakest = residual[j]
            donor = j
    w[donor] -= 1.0
    w[top] += 1.0


@njit
def keep_top_k(w: Row, kept: Row, n: int, k: int, mode: int, value: float, top: int) -> None:
    """Leaves the k largest entries, ties to `top` and then to the lower index."""
    t = threshold_of(w, n, k)
    left = k
    for j in range(n):
        kept[j] = 1.0 if w[j] > t else 0.0
    left -= count_above(w, n, t)
    if left > 0 and w[top] == t:
        kept[top] = 1.0
        left -= 1
    j = 0
    while left > 0 and j < n:
        if w[j] == t and kept[j] == 0.0:
            kept[j] = 1.0
            left -= 1
        j += 1
    if mode == opcodes.REMAINDER_FILL:
        for j in range(n):
            w[j] = w[j] if kept[j] > 0.0 else value
        return
    for j in range(n):
        kept[j] = w[j] * kept[j] if mode != opcodes.REMAINDER_SPREAD else kept[j]
    if mode == opcodes.REMAINDER_DROP:
        mass = exact_sum(kept, n)
        for j in range(n):
            w[j] = kept[j] / mass
        return
    if mode == opcodes.REMAINDER_OTHER:
        rest = larger(1.0 - exact_sum(kept, n), 0.0)
        for j in range(n):
            w[j] = kept[j]
        w[int(value)] += rest
        return
    mass = 0.0
    for j in range(n):
        mass += rint(w[j] * kept[j] * SUM_GRID)
    share = larger(1.0 - mass / SUM_GRID, 0.0) / (n - k)
    for j in range(n):
        w[j] = w[j] if kept[j] > 0.0 else share


@njit
def to_grid(w: Row, n: int, units: float) -> None:
    for j in range(n):
        w[j] = rint(w[j] * units) / units


@njit
def clip(w: Row, n: int, low: float, high: float) -> None:
    for j in range(n):
        w[j] = smaller(larger(w[j], low), high)


@njit
def one_hot(w: Row, n: int, top: int) -> None:
    for j in range(n):
        w[j] = 0.0
    w[top] = 1.0


@njit
def at_half(w: Row, n: int) -> None:
    for j in range(n):
        w[j] = 1.0 if w[j] >= 0.5 else 0.0


@njit
def temper(w: Row, n: int, t: float, simplex: bool, top: int) -> None:
    if not simplex:
        scale(w, n, t)
        return
    m = w[top]
    for j in range(n):
        w[j] = (w[j] / m) ** (1.0 / t)
    scale(w, n, exact_sum(w, n))


@njit
def reverse_sigmoid(w: Row, n: int, beta: float, gamma: float, simplex: bool) -> None:
    for j in range(n):
        p = smaller(larger(w[j], 1e-9), 1.0 - 1e-9)
        ratio = ((1.0 - p) / p) ** gamma
        w[j] = smaller(larger(p - beta * (1.0 / (1.0 + ratio) - 0.5), 0.0), 1.0)
    if simplex:
        s = exact_sum(w, n)
        if s > 0.0:
            scale(w, n, s)
        else:
            for j in range(n):
                w[j] = 1.0 / n


@njit(fastmath=REORDER)
def _sum_above(w: Row, n: int, t: float) -> tuple[float, int]:
    s = 0.0
    c = 0
    for j in range(n):
        above = w[j] > t
        s += w[j] if above else 0.0
        c += int(above)
    return s, c


@njit
def _project(w: Row, n: int, mass: float) -> None:
    """Onto {x >= 0, sum x = mass} by Michelot's iteration, which is Newton's method on the threshold."""
    t = larger((plain_sum(w, n) - mass) / n, largest(w, n) - mass)
    s, count = _sum_above(w, n, t)
    while count > 0:
        tighter = (s - mass) / count
        before = count
        t = tighter
        s, count = _sum_above(w, n, t)
        if count == before:
            break
    for j in range(n):
        w[j] = larger(w[j] - t, 0.0)


@njit
def project(w: Row, n: int, keep: bool, margin: float, own: int) -> None:
    """Euclidean projection onto the simplex, or onto its part where `own` leads by `margin`."""
    for j in range(n):
        w[j] = rint(w[j] * FIXED_POINT) / FIXED_POINT
    if not keep or n < 2:
        _project(w, n, 1.0)
        return
    w[own] -= margin
    level = w[own]
    s, count = _sum_above(w, n, level)
    if count > 0:
        start = w[own]
        while True:
            level = (start + s) / (1 + count)
            before = count
            s, count = _sum_above(w, n, level)
            if count == before or count == 0:
                break
        level = floor(level * FIXED_POINT) / FIXED_POINT
        for j in range(n):
            w[j] = smaller(w[j], level)
        w[own] = level
    _project(w, n, 1.0 - margin)
    w[own] += margin
