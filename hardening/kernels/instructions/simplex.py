"""Back onto the simplex."""

from __future__ import annotations

from typing import Any

import numpy as np

from hardening.kernels import layout
from hardening.kernels.blocks import (
    FEW,
    FIXED_POINT,
    HUGE,
    LONG,
    MOST_SCORE,
    Block,
    add_at,
    block,
    compact,
    count_above,
    few_of,
    first_equal,
    place,
    sum_above,
)
from hardening.kernels.job import block_of, fields, forget_top, lead, own_of, params_of, report
from hardening.kernels.lanes import (
    WIDTH,
    across_max,
    across_min,
    device,
    fill,
    floor,
    lane,
    larger,
    rint,
    smaller,
    some,
    where,
)
from hardening.kernels.layout import Job
from hardening.kernels.memory import gather, load, scatter, store

#: Steps towards a threshold: enough for a good bound, and more than it takes, for each leaves fewer entries above.
ROUGHLY, PRECISELY = 3, 1 << 40
#: More than a threshold that starts an iteration may be off by rounding.
SLACK = 2.0**-30


def project(job: int) -> None:
    """Onto the simplex; p0 = 1: keep the model's own top class; p1: margin."""
    j = fields(job)
    b, p, own = block_of(j), params_of(j), own_of(j)
    keep = p[0] > 0.0
    far, few = _project_block(b, keep, p[1], own, j[Job.FEW] == layout.SURVEYED)
    j[Job.LEFT] = few
    report(j, where(far, fill(float(layout.OUT_OF_RANGE)), fill(0.0)))
    if keep:
        lead(j, own)
    else:
        forget_top(j)


@device
def _threshold(b: Block, a: Any, mass: float, t: Any, steps: int) -> Any:
    """The t at which what is above it, less t each, sums to `mass`, from a t that is not above it.

    Michelot's iteration, which is Newton's method on the threshold; no step goes too far, so that a few of them give a
    lower bound.
    """
    s, count = sum_above(b, a, t)
    going = count > 0.0
    while some(going) and steps > 0:
        before = count
        t = where(going, (s - mass) / larger(count, fill(1.0)), t)
        s, count = sum_above(b, a, t)
        going = going & (count != before) & (count > 0.0)
        steps -= 1
    return t


@device
def _project(b: Block, mass: float, highest: Any) -> Any:
    """The threshold of the projection onto {x >= 0, sum x = mass} (Michelot 1986)."""
    total, _ = sum_above(b, b.w, fill(-HUGE))
    return _threshold(b, b.w, mass, larger((total - mass) / float(b.n), highest - mass), PRECISELY)


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
def _fixed(b: Block, i: int) -> Any:
    v = rint(load(b.w, i) * FIXED_POINT) / FIXED_POINT
    store(b.w, i, v)
    return v


@device
def _to_fixed_point(b: Block) -> tuple[Any, Any]:
    """Rounds every entry; returns the smallest and the largest. The best of 64 parts of the row are left in `marks`."""
    low, none = fill(HUGE), fill(-HUGE)
    p0, p1, p2, p3, p4, p5, p6, p7 = none, none, none, none, none, none, none, none
    i = 0
    while i + 8 < b.m:
        v0, v1, v2, v3 = _fixed(b, i), _fixed(b, i + 1), _fixed(b, i + 2), _fixed(b, i + 3)
        v4, v5, v6, v7 = _fixed(b, i + 4), _fixed(b, i + 5), _fixed(b, i + 6), _fixed(b, i + 7)
        low = smaller(
            low, smaller(smaller(smaller(v0, v1), smaller(v2, v3)), smaller(smaller(v4, v5), smaller(v6, v7)))
        )
        p0, p1, p2, p3 = larger(p0, v0), larger(p1, v1), larger(p2, v2), larger(p3, v3)
        p4, p5, p6, p7 = larger(p4, v4), larger(p5, v5), larger(p6, v6), larger(p7, v7)
        i += 8
    while i < b.m - 1:
        v0 = _fixed(b, i)
        low, p0 = smaller(low, v0), larger(p0, v0)
        i += 1
    v0 = _fixed(b, i)
    low, p1 = smaller(low, where(b.last, v0, low)), larger(p1, where(b.last, v0, none))
    if b.wide and b.n >= LONG:
        for k, p in enumerate((p0, p1, p2, p3, p4, p5, p6, p7)):
            store(b.marks, k, p)
    high = larger(larger(larger(p0, p1), larger(p2, p3)), larger(larger(p4, p5), larger(p6, p7)))
    return (across_min(low), across_max(high)) if b.wide else (low, high)


@device
def _best_part(b: Block) -> Any:
    """The largest entry, from the best of 64 parts of the row."""
    high = load(b.marks, 0)
    for k in range(1, WIDTH):
        high = larger(high, load(b.marks, k))
    return across_max(high)


@device
def _project_few(b: Block, keep: bool, mass: float, margin: float, own: Any, high: Any) -> Any:
    """Projects a long row by its few entries that matter; 0, and nothing is done, where they are not few.

    Otherwise what is returned is their number; their values are left in `residual`, their columns in `marks`.
    """
    # The threshold of any part of a row is at most that of the row, and its best entries come close.
    parts = block(b.marks, b.residual, b.residual, WIDTH * WIDTH, True)
    least = larger(_threshold(parts, b.marks, mass, high - mass, ROUGHLY) - SLACK, high - mass) - margin
    top = gather(b.w, place(b, own)) if keep else fill(HUGE)
    least = smaller(least, top - SLACK)  # what is above the top class is pooled with it
    few = compact(b, b.w, least, b.residual, b.marks)
    if few > b.n // FEW:
        return 0
    work = few_of(b, few)
    at = first_equal(work, b.marks, own)
    if keep and some(count_above(work, work.w, top) > 0.0):
        _pool_top(work, at)
        t = _project(work, mass, gather(work.w, at))
    else:
        t = _threshold(work, work.w, mass, least, PRECISELY)
    if lane(t, 0) < lane(least, 0):  # pooling has brought others in
        return 0
    for i in range(work.m):
        store(b.residual, i, larger(load(b.residual, i) - t, fill(0.0)))
    if keep:
        add_at(work, at, fill(margin))
    return few


@device
def _project_block(b: Block, keep: bool, margin: float, own: Any, surveyed: bool) -> tuple[Any, Any]:
    """Euclidean projection onto the simplex, or onto its part where `own` leads by `margin`.

    Returns a mask of the rows with scores so large that sums in fixed point are not exact, whose result is void; and
    the number of entries that are left as `_project_few` says, or 0.
    """
    if surveyed:
        low, high = fill(0.0), _best_part(b)
    else:
        low, high = _to_fixed_point(b)
    far = larger(high, 0.0 - low) > MOST_SCORE
    few: Any = np.int64(0)
    if some(far):
        return far, few
    keep = keep and b.n > 1
    gap = margin if keep else 0.0
    if keep:
        add_at(b, own, fill(0.0 - gap))
    if b.wide and b.n >= LONG:
        few = _project_few(b, keep, 1.0 - gap, gap, own, high)
    if few > 0:
        return far, few
    if keep:
        _pool_top(b, own)
        high = gather(b.w, place(b, own))
    t = _project(b, 1.0 - gap, high)
    for i in range(b.m):
        store(b.w, i, larger(load(b.w, i) - t, fill(0.0)))
    if keep:
        add_at(b, own, fill(gap))
    return far, few
