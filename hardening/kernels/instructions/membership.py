"""Published perturbations against membership inference."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray

from hardening.kernels.blocks import HUGE, Block, add_at, divide, exact_sum, first_argmax, largest, place, survey
from hardening.kernels.elementary import LN2, exp2, log2, sqrt
from hardening.kernels.job import block_of, fields, forget_top, lead, own_of, params_of, top_of
from hardening.kernels.lanes import WIDTH, device, fabs, fill, larger, pointer, smaller, where
from hardening.kernels.layout import Job
from hardening.kernels.memory import gather, load, scatter, store

#: Grid on which up to 2**21 numbers of at most 1 add up exactly.
SUM_GRID = 2.0**32


def memguard(job: int) -> None:
    """Toward p1 for the class that leads and 1 - p1 for the next, by at most p0 in L1."""
    j = fields(job)
    b, p = block_of(j), params_of(j)
    if b.n < 2:
        return
    top = top_of(j, b)
    best, (second, column) = gather(b.w, place(b, top)), _runner_up(b, top)
    high, low, most = fill(p[1]), fill(1.0 - p[1]), fill(p[0])
    rest = larger((1.0 - best) - second, fill(0.0))
    away = (fabs(best - high) + fabs(second - low)) + rest
    share = where(away > most, most / larger(away, most), fill(1.0))
    for i in range(b.m):
        store(b.w, i, load(b.w, i) * (1.0 - share))
    add_at(b, top, share * high)
    add_at(b, column, share * low)


def to_deviations(job: int) -> None:
    """Log-scores in units of their noise's standard deviation: its square is p0, and p1 p0 more as the entropy falls.

    Scores below p2 count as p2. The unit is left in the scratch for `from_deviations`.
    """
    j = fields(job)
    b, p = block_of(j), params_of(j)
    for i in range(b.m):
        v = load(b.w, i)
        bits = log2(larger(v, fill(p[2])))
        store(b.residual, i, v * bits)
        store(b.w, i, bits * LN2)
    entropy = 0.0 - exact_sum(b, b.residual)
    most = log2(fill(float(b.n)))
    certain = where(most > 0.0, 1.0 - entropy / where(most > 0.0, most, fill(1.0)), fill(0.0))
    certain = smaller(larger(certain, fill(0.0)), fill(1.0))
    sigma = sqrt(p[0] * (1.0 + p[1] * certain))
    divide(b, sigma)
    store(_unit_of(j), 0, sigma)
    forget_top(j)


def from_deviations(job: int) -> None:
    """Scores again, by a softmax whose exponents are multiplied by p0; p1 = 1: the model's own label leads by p2."""
    j = fields(job)
    b, p, own = block_of(j), params_of(j), own_of(j)
    sigma = load(_unit_of(j), 0)
    for i in range(b.m):
        store(b.w, i, load(b.w, i) * sigma)
    if p[1] > 0.0 and b.n > 1:
        _put_ahead(b, own, p[2])
    highest = largest(b, b.w)
    for i in range(b.m):
        store(b.w, i, exp2(larger((load(b.w, i) - highest) * p[0], fill(-1000.0))))
    _, _, total = survey(b, b.w, SUM_GRID)
    divide(b, total)
    if p[1] > 0.0:
        lead(j, own)
    else:
        forget_top(j)


@device
def _unit_of(j: Any) -> Any:
    return carray(pointer(j[Job.SCRATCH]), (WIDTH,), np.float64)


@device
def _runner_up(b: Block, top: Any) -> tuple[Any, Any]:
    """The largest score beside that of `top`, and the first column that holds it; for at least two classes."""
    column = b.column
    for i in range(b.m):
        store(b.residual, i, where(column == top, fill(-HUGE), load(b.w, i)))
        column = column + b.stride
    return largest(b, b.residual), first_argmax(b, b.residual)


@device
def _put_ahead(b: Block, own: Any, gap: float) -> None:
    """Where another class has overtaken `own`, the two exchange their scores; `own` leads by at least the gap."""
    at = place(b, own)
    mine, (other, column) = gather(b.w, at), _runner_up(b, own)
    there, ahead = place(b, column), larger(mine, other)
    scatter(b.w, there, smaller(mine, other))
    scatter(b.w, at, larger(ahead, where(mine < other + gap, ahead + gap, ahead)))
