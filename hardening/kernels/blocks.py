"""A block of rows in lanes, what has to look at a whole row, and what is done to every entry of one.

A block lies in memory in one of two ways. *Narrow*: eight rows side by side, one in each lane. *Wide*: one row folded
over the eight lanes. Everything is written once for both: whatever a row has one of - its sum, its top class - is held
in every lane that the row occupies. Sums that decide what is released run over integers or multiples of a power of two;
they are exact, so both ways give the same answer bit for bit.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from hardening.kernels.lanes import (
    WIDTH,
    across_max,
    across_min,
    across_sum,
    columns,
    count_of,
    device,
    fabs,
    fill,
    fused,
    larger,
    rint,
    smaller,
    where,
)
from hardening.kernels.memory import column_at, gather, load, scatter, store, store_columns
from hardening.kernels.words import fill_longs, numbers, tally

#: A row of at least `LONG` classes is worked on by its few entries that count, if these are at most one in `FEW`.
LONG, FEW = 256, 4
#: Larger than anything that a row holds. Finite limits are not: masked scores are often the least float there is.
HUGE = math.inf
SUM_GRID = 2.0**40
#: Steps of scores in fixed point; beyond the other a sum of them is no longer exact.
FIXED_POINT, MOST_SCORE = 2.0**32, 2.0**18


class Block(NamedTuple):
    """Rows in lanes.

    Attributes:
        w, residual, marks: float64 arrays of ``8 * m``: the scores, and two to work with.
        n: classes. m: vectors of eight that the scores take.
        wide: one row in all lanes, or a row in each.
        last: mask of the lanes that are in use in the last vector.
        column: column of each lane in the first vector, as floats; `stride`: columns from one vector to the next.
        step, offset: column c of this lane's row is at ``c * step + offset`` in the arrays.
    """

    w: Any
    residual: Any
    marks: Any
    n: int
    m: int
    wide: bool
    last: Any
    column: Any
    stride: float
    step: float
    offset: Any


@device
def block(w: Any, residual: Any, marks: Any, n: int, wide: bool) -> Block:
    """An empty block for rows of n > 0 classes."""
    if wide:
        m = (n + WIDTH - 1) // WIDTH
        used = columns(WIDTH * (m - 1)) < float(n)
        return Block(w, residual, marks, n, m, wide, used, columns(0), 8.0, 1.0, fill(0.0))
    return Block(w, residual, marks, n, n, wide, fill(0.0) < 1.0, fill(0.0), 1.0, 8.0, columns(0))


@device
def place(b: Block, column: Any) -> Any:
    """Where `column` of each lane's row is in the arrays."""
    return column * b.step + b.offset


@device
def extremes(b: Block, a: Any) -> tuple[Any, Any]:
    """The smallest and the largest entry."""
    low, high = fill(HUGE), fill(-HUGE)
    for i in range(b.m - 1):
        v = load(a, i)
        low, high = smaller(low, v), larger(high, v)
    v = load(a, b.m - 1)
    low, high = smaller(low, where(b.last, v, low)), larger(high, where(b.last, v, high))
    return (across_min(low), across_max(high)) if b.wide else (low, high)


@device
def largest(b: Block, a: Any) -> Any:
    m0, m1, m2, m3 = fill(-HUGE), fill(-HUGE), fill(-HUGE), fill(-HUGE)
    i = 0
    while i + 4 < b.m:  # four, so that a comparison does not wait for the one before
        m0, m1 = larger(m0, load(a, i)), larger(m1, load(a, i + 1))
        m2, m3 = larger(m2, load(a, i + 2)), larger(m3, load(a, i + 3))
        i += 4
    while i < b.m - 1:
        m0 = larger(m0, load(a, i))
        i += 1
    m = larger(larger(m0, m1), larger(m2, m3))
    m = larger(m, where(b.last, load(a, b.m - 1), m))
    return across_max(m) if b.wide else m


@device
def first_equal(b: Block, a: Any, value: Any) -> Any:
    """First column that holds `value`; n if there is none."""
    none = fill(float(b.n))
    first, second, column, next_column, two = none, none, b.column, b.column + b.stride, b.stride + b.stride
    i = 0
    while i + 2 <= b.m:
        first = smaller(first, where(load(a, i) == value, column, none))
        second = smaller(second, where(load(a, i + 1) == value, next_column, none))
        column, next_column = column + two, next_column + two
        i += 2
    if i < b.m:
        first = smaller(first, where(load(a, i) == value, column, none))
    first = smaller(first, second)
    return across_min(first) if b.wide else first


@device
def first_argmax(b: Block, a: Any) -> Any:
    return first_equal(b, a, largest(b, a))


@device
def exact_sum(b: Block, a: Any) -> Any:
    """Sum in fixed point: exact and order-free while it stays below 2**13."""
    s0, s1, s2, s3 = fill(0.0), fill(0.0), fill(0.0), fill(0.0)
    i = 0
    while i + 4 < b.m:  # four sums, so that an addition does not wait for the one before
        s0, s1 = s0 + rint(load(a, i) * SUM_GRID), s1 + rint(load(a, i + 1) * SUM_GRID)
        s2, s3 = s2 + rint(load(a, i + 2) * SUM_GRID), s3 + rint(load(a, i + 3) * SUM_GRID)
        i += 4
    while i < b.m - 1:
        s0 = s0 + rint(load(a, i) * SUM_GRID)
        i += 1
    s = (s0 + s1) + (s2 + s3) + where(b.last, rint(load(a, b.m - 1) * SUM_GRID), fill(0.0))
    s = across_sum(s) if b.wide else s
    return s / SUM_GRID


@device
def survey(b: Block, a: Any, grid: float) -> tuple[Any, Any, Any]:
    """Smallest and largest entry, and the sum of multiples of 1 / grid nearest to the entries.

    The sum is NaN or infinite if any entry is; with a grid of 0 it is otherwise 0.
    """
    low, high, s0, s1 = fill(HUGE), fill(-HUGE), fill(0.0), fill(0.0)
    i = 0
    while i + 2 < b.m:
        v, u = load(a, i), load(a, i + 1)
        low, high = smaller(smaller(low, v), u), larger(larger(high, v), u)
        s0, s1 = s0 + rint(v * grid), s1 + rint(u * grid)
        i += 2
    while i < b.m - 1:
        v = load(a, i)
        low, high, s0 = smaller(low, v), larger(high, v), s0 + rint(v * grid)
        i += 1
    v = load(a, b.m - 1)
    low, high = smaller(low, where(b.last, v, low)), larger(high, where(b.last, v, high))
    s = s0 + s1 + where(b.last, rint(v * grid), fill(0.0))
    if b.wide:
        low, high, s = across_min(low), across_max(high), across_sum(s)
    return low, high, (s / grid if grid > 0.0 else s)


@device
def count_above(b: Block, a: Any, t: Any) -> Any:
    count = fill_longs(0)
    for i in range(b.m - 1):
        count = tally(count, load(a, i) > t)
    c = numbers(tally(count, (load(a, b.m - 1) > t) & b.last))
    return across_sum(c) if b.wide else c


@device
def sum_above(b: Block, a: Any, t: Any) -> tuple[Any, Any]:
    """Sum and number of the entries above t.

    Exact for multiples of one power of two, while the sum stays below 2**53 of them.
    """
    none, count = fill(0.0), fill_longs(0)
    s0, s1 = none, none
    i = 0
    while i + 2 < b.m:
        v, u = load(a, i), load(a, i + 1)
        s0, s1 = s0 + where(v > t, v, none), s1 + where(u > t, u, none)
        count = tally(tally(count, v > t), u > t)
        i += 2
    while i < b.m - 1:
        v = load(a, i)
        s0, count = s0 + where(v > t, v, none), tally(count, v > t)
        i += 1
    v = load(a, b.m - 1)
    above = (v > t) & b.last
    s, c = s0 + s1 + where(above, v, none), numbers(tally(count, above))
    return (across_sum(s), across_sum(c)) if b.wide else (s, c)


@device
def quotient(x: Any, divisor: Any, inverse: Any) -> Any:
    """x / divisor, correctly rounded, from the rounded inverse of the divisor (Markstein 1990): no division.

    For quotients and divisors far from the ends of the exponent's range, as scores are.
    """
    q = x * inverse
    return fused(fused(0.0 - q, divisor, x), inverse, q)


@device
def divide(b: Block, divisor: Any) -> None:
    inverse = 1.0 / divisor
    for i in range(b.m):
        store(b.w, i, quotient(load(b.w, i), divisor, inverse))


@device
def clip(b: Block, low: float, high: float) -> None:
    for i in range(b.m):
        store(b.w, i, smaller(larger(load(b.w, i), fill(low)), fill(high)))


@device
def to_grid(b: Block, units: float) -> None:
    many = fill(units)
    inverse = 1.0 / many
    for i in range(b.m):
        v = load(b.w, i)
        scaled = v * units
        rounded = quotient(rint(scaled), many, inverse)
        store(b.w, i, where(fabs(scaled) < 2.0**52, rounded, v))  # beyond, floats are whole, and products may overflow


@device
def add_at(b: Block, column: Any, amount: Any) -> None:
    """Adds to one entry of each row."""
    at = place(b, column)
    scatter(b.w, at, gather(b.w, at) + amount)


@device
def few_of(b: Block, few: int) -> Block:
    """The entries that are left of a row as a block of their own, in `residual`; their columns stay in `marks`."""
    room = (few + WIDTH - 1) // WIDTH * WIDTH
    return block(b.residual, b.residual[room:], b.marks[room:], few, True)


@device
def spread(b: Block, few: int) -> None:
    """Writes the row out of which only `few` entries are left: values in `residual`, columns in `marks`."""
    first = load(b.residual, 0)
    for i in range(b.m):
        store(b.w, i, first - first)  # zeros that do not look like it: the compiler would call memset, which is slower
    for k in range(few):
        b.w[int(b.marks[k])] = b.residual[k]


@device
def compact(b: Block, a: Any, t: Any, values: Any, columns: Any) -> Any:
    """The entries above t of a wide block's row, from left to right: their values, their columns; returns their number.

    Stops where they turn out not to be few. `values` has room for a vector more than the row.
    """
    count: Any = np.int64(0)
    most = b.n // FEW
    for i in range(b.m):
        if count > most:
            return count
        v = load(a, i)
        above = (v > t) & b.last if i == b.m - 1 else v > t
        store_columns(values, count, WIDTH * i, above)  # half as wide as floats: most of their stores stay in a line
        count += count_of(above)
    for k in range(count - 1, -1, -1):
        column = column_at(values, k)
        values[k], columns[k] = a[column], float(column)
    return count
