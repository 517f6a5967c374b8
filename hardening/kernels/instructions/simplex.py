"""Back onto the simplex."""

from __future__ import annotations

from typing import Any

from hardening.kernels import layout
from hardening.kernels.blocks import HUGE, Block, add_at, block, largest, place, sum_above
from hardening.kernels.job import block_of, fields, forget_top, lead, own_of, params_of, report
from hardening.kernels.lanes import (
    WIDTH,
    across_max,
    across_min,
    device,
    fill,
    floor,
    larger,
    rint,
    smaller,
    some,
    where,
)
from hardening.kernels.memory import gather, load, scatter, store

FIXED_POINT = 2.0**32
#: Rows of at least this many classes are projected from a threshold that their best entries give.
LONG = 256
#: More than a threshold that starts an iteration may be off by rounding.
SLACK = 2.0**-30
#: Beyond this a sum of scores in fixed point is no longer exact.
MOST_SCORE = 2.0**18


def project(job: int) -> None:
    """Onto the simplex; p0 = 1: keep the model's own top class; p1: margin."""
    j = fields(job)
    b, p, own = block_of(j), params_of(j), own_of(j)
    keep = p[0] > 0.0
    far = project_block(b, keep, p[1], own)
    report(j, where(far, fill(float(layout.OUT_OF_RANGE)), fill(0.0)))
    if keep:
        lead(j, own)
    else:
        forget_top(j)


@device
def _threshold(b: Block, a: Any, mass: float, t: Any) -> Any:
    """The t at which what is above it, less t each, sums to `mass`, from a t that is not above it.

    Michelot's iteration, which is Newton's method on the threshold.
    """
    s, count = sum_above(b, a, t)
    going = count > 0.0
    while some(going):
        before = count
        t = where(going, (s - mass) / larger(count, fill(1.0)), t)
        s, count = sum_above(b, a, t)
        going = going & (count != before) & (count > 0.0)
    return t


@device
def _best_of_parts(b: Block) -> None:
    """Puts the largest entry of each of 64 parts of a long row into `marks`."""
    for k in range(WIDTH):
        store(b.marks, k, fill(-HUGE))
    for i in range(b.m):
        v = load(b.w, i)
        v = where(b.last, v, fill(-HUGE)) if i == b.m - 1 else v
        store(b.marks, i % WIDTH, larger(load(b.marks, i % WIDTH), v))


@device
def _project(b: Block, mass: float, highest: Any) -> None:
    """Onto {x >= 0, sum x = mass} (Michelot 1986)."""
    if b.wide and b.n >= LONG:
        # The threshold of any part of a row is at most that of the row, and its best entries come close.
        _best_of_parts(b)
        parts = block(b.marks, b.residual, b.residual, WIDTH * WIDTH, True)
        t = larger(_threshold(parts, b.marks, mass, highest - mass) - SLACK, highest - mass)
    else:
        total, _ = sum_above(b, b.w, fill(-HUGE))
        t = larger((total - mass) / float(b.n), highest - mass)
    t = _threshold(b, b.w, mass, t)
    for i in range(b.m):
        store(b.w, i, larger(load(b.w, i) - t, fill(0.0)))


@device
def _pool_top(b: Block, own: Any) -> None:
    """Lowers whatever is above `own`, and raises `own`, to the level at which `own` leads (isotonic pooling)."""
    start = gather(b.w, place(b, own))
    level = start
    s, count = sum_above(b, b.w, level)
    going = count > 0.0
    if not some(going):
        return
    pooled = going
    while some(going):
        before = count
        level = where(going, (start + s) / (1.0 + count), level)
        s, count = sum_above(b, b.w, level)
        going = going & (count != before) & (count > 0.0)
    level = where(pooled, floor(level * FIXED_POINT) / FIXED_POINT, level)
    for i in range(b.m):
        v = load(b.w, i)
        store(b.w, i, where(pooled, smaller(v, level), v))
    scatter(b.w, place(b, own), level)


@device
def project_block(b: Block, keep: bool, margin: float, own: Any) -> Any:
    """Euclidean projection onto the simplex, or onto its part where `own` leads by `margin`.

    Returns a mask of the rows with scores so large that sums in fixed point are not exact; their result is void.
    """
    low, high = fill(HUGE), fill(-HUGE)
    for i in range(b.m):
        v = rint(load(b.w, i) * FIXED_POINT) / FIXED_POINT
        store(b.w, i, v)
        v = where(b.last, v, fill(0.0)) if i == b.m - 1 else v
        low, high = smaller(low, v), larger(high, v)
    if b.wide:
        low, high = across_min(low), across_max(high)
    far = larger(high, 0.0 - low) > MOST_SCORE
    if some(far):
        return far
    if not keep or b.n < 2:
        # A row that ends within a vector has seen zeros there, which may be more than any of its entries.
        _project(b, 1.0, largest(b, b.w))
        return far
    gap = fill(margin)
    add_at(b, own, 0.0 - gap)
    _pool_top(b, own)
    _project(b, 1.0 - margin, gather(b.w, place(b, own)))
    add_at(b, own, gap)
    return far
