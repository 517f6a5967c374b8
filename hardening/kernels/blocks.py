"""A block of rows in lanes, and what has to look at a whole row: sums, extremes, order statistics.

A block lies in memory in one of two ways. *Narrow*: eight rows side by side, one in each lane. *Wide*: one row folded
over the eight lanes. Everything is written once for both: whatever a row has one of - its sum, its top class - is held
in every lane that the row occupies. Sums that decide what is released run over integers or multiples of a power of two;
they are exact, so both ways give the same answer bit for bit.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from hardening.kernels.lanes import (
    WIDTH,
    across_max,
    across_min,
    across_sum,
    columns,
    device,
    fill,
    halfway,
    lane,
    larger,
    next_up,
    rint,
    smaller,
    some,
    where,
)
from hardening.kernels.memory import gather, load, scatter, store
from hardening.kernels.words import fill_longs, numbers, tally

#: Larger than anything that a row holds. Finite limits are not: masked scores are often the least float there is.
HUGE = math.inf
SUM_GRID = 2.0**40
#: Up to this many classes, order statistics are found by comparing all pairs.
PAIRS = 16


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
    m = fill(-HUGE)
    for i in range(b.m - 1):
        m = larger(m, load(a, i))
    m = larger(m, where(b.last, load(a, b.m - 1), m))
    return across_max(m) if b.wide else m


@device
def first_equal(b: Block, a: Any, value: Any) -> Any:
    """First column that holds `value`; n if there is none."""
    first, column = fill(float(b.n)), b.column
    for i in range(b.m):
        first = smaller(first, where(load(a, i) == value, column, first))
        column = column + b.stride
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
def raise_top(b: Block, a: Any, top: Any) -> Any:
    """Puts `top` ahead of its equals: its entry becomes the next larger float. Returns what it was."""
    at = place(b, top)
    before = gather(a, at)
    scatter(a, at, next_up(before))
    return before


@device
def _mark_by_pairs(b: Block, a: Any, r: Any) -> None:
    """Each entry's rank, by comparing it with every other one; equals rank from left to right."""
    column = b.column
    for i in range(b.m):
        v, rank = load(a, i), fill_longs(0)
        if b.wide:
            for k in range(b.n):
                other = fill(a[k])
                rank = tally(rank, (other > v) | ((other >= v) & (fill(float(k)) < column)))
        else:
            for k in range(i):
                rank = tally(rank, load(a, k) >= v)
            for k in range(i + 1, b.n):
                rank = tally(rank, load(a, k) > v)
        store(b.marks, i, where(numbers(rank) < r, fill(1.0), fill(0.0)))
        column = column + b.stride


@device
def separator(b: Block, a: Any, r: Any, low: Any, high: Any) -> Any:
    """A t with #{a > t} <= r <= #{a >= t}, for 0 < r < n; `HUGE` where r <= 0.

    Everything in `a` is above `low`, and nothing is above `high`.
    """
    wanted = r > 0.0
    below, above = fill(float(b.n)), fill(0.0)
    t, active = high, wanted
    turn = 0
    while some(active):
        # In turn: where a straight line between the ends would be r; half way; half way in floats, which must end.
        middle = halfway(low, high)
        if turn < 2:
            share = (below - r) / larger(below - above, fill(1.0)) if turn == 0 else fill(0.5)
            guess = low + (high - low) * share
            middle = where((low < guess) & (guess < high), guess, middle)
        turn = turn + 1 if turn < 2 else 0
        active = active & (low < middle) & (middle < high)
        c = count_above(b, a, middle)
        hit, more, fewer = active & (c == r), active & (c > r), active & (c < r)
        t = where(hit, middle, t)
        active = active & ~hit
        low, below = where(more, middle, low), where(more, c, below)
        high, above = where(fewer, middle, high), where(fewer, c, above)
        t = where(active, high, t)
    return where(wanted, t, fill(HUGE))


@device
def mark_largest(b: Block, a: Any, r: Any, low: Any, high: Any) -> None:
    """Puts 1 into `marks` for the r largest entries of `a`, of equals the leftmost, and 0 for the others.

    Everything in `a` is above `low`, and nothing is above `high`.
    """
    if b.n <= PAIRS:
        _mark_by_pairs(b, a, r)
        return
    one, none = fill(1.0), fill(0.0)
    t = separator(b, a, r, low, high)
    marked = none
    for i in range(b.m):
        mark = where(load(a, i) > t, one, none)
        store(b.marks, i, mark)
        marked = marked + (where(b.last, mark, none) if i == b.m - 1 else mark)
    left = r - (across_sum(marked) if b.wide else marked)
    if not some(left > 0.0):
        return
    if b.wide:
        short, tie, j = lane(left, 0), lane(t, 0), 0
        while short > 0.0 and j < b.n:
            if a[j] == tie:
                b.marks[j] = 1.0
                short -= 1.0
            j += 1
        return
    for i in range(b.m):
        extra = where((load(a, i) == t) & (left > 0.0), one, none)
        store(b.marks, i, load(b.marks, i) + extra)
        left = left - extra
