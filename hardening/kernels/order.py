"""Order statistics of the rows of a block."""

from __future__ import annotations

from typing import Any

from hardening.kernels.blocks import HUGE, Block, count_above, place
from hardening.kernels.lanes import across_sum, device, fill, halfway, lane, larger, next_up, some, where
from hardening.kernels.memory import gather, load, scatter, store
from hardening.kernels.words import fill_longs, numbers, tally

#: Up to this many classes, order statistics are found by comparing all pairs.
PAIRS = 16
#: Steps that a search by values may take before it goes on by bits.
PATIENCE = 32


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
        # In turn where a straight line between the ends would be r, and half way; at last half way in floats, which
        # must end.
        middle = halfway(low, high)
        if turn < PATIENCE:
            share = (below - r) / larger(below - above, fill(1.0)) if turn % 2 == 0 else fill(0.5)
            guess = low + (high - low) * share
            middle = where((low < guess) & (guess < high), guess, middle)
        turn += 1
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
