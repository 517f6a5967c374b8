"""Rounding to a grid: of decimals, or of the types on the simplex."""

from __future__ import annotations

from typing import Any

from hardening.kernels.blocks import FEW, HUGE, LONG, Block, add_at, compact, divide, few_of, first_equal, to_grid
from hardening.kernels.job import block_of, fields, params_of, top_of
from hardening.kernels.lanes import (
    across_max,
    across_min,
    across_sum,
    device,
    fill,
    floor,
    larger,
    next_up,
    rint,
    smaller,
    some,
    where,
)
from hardening.kernels.layout import Job
from hardening.kernels.memory import load, store
from hardening.kernels.order import mark_largest


def grid(job: int) -> None:
    """Nearest multiples of 1/p0; of entries that meet there, the one that led before does still."""
    j = fields(job)
    b = block_of(j)
    top_of(j, b)
    to_grid(b, params_of(j)[0])


def even(job: int) -> None:
    """Nearest of the values between p0 and p1 that are p2 apart; leads as in `grid`."""
    j = fields(job)
    b, p = block_of(j), params_of(j)
    low, high, step = p[0], p[1], p[2]
    top_of(j, b)
    for i in range(b.m):
        v = rint((load(b.w, i) - low) / step) * step + low
        store(b.w, i, smaller(v, fill(high)))


def types(job: int) -> None:
    """Nearest point of the simplex whose entries are multiples of 1/p0."""
    j = fields(job)
    b = block_of(j)
    top = top_of(j, b)
    j[Job.LEFT] = _to_types(b, params_of(j)[0], top, j[Job.FEW])


@device
def _to_types(b: Block, units: float, top: Any, few: Any) -> Any:
    """Largest-remainder rounding to multiples of 1/units; ties, and a lost lead, go to `top`.

    A zero has no remainder and stays zero, so that of a long row with few scores only these are looked at; `few` is
    their number where the instruction before has left them, else not above 0. Returns the number of those that this
    leaves, or 0.
    """
    if few <= 0 and b.wide and b.n >= LONG:
        few = compact(b, b.w, fill(0.0), b.residual, b.marks)
    if few <= 0 or few > b.n // FEW:
        _round_types(b, units, top)
        return 0
    work = few_of(b, few)
    _round_types(work, units, first_equal(work, b.marks, top))
    return few


@device
def _round_types(b: Block, units: float, top: Any) -> None:
    given, none, column = fill(0.0), fill(0.0), b.column
    for i in range(b.m):
        scaled = load(b.w, i) * units
        count = floor(scaled)
        residual = scaled - count  # that of `top` is raised, see `raise_top`
        store(b.residual, i, where(column == top, next_up(residual), residual))
        column = column + b.stride
        store(b.w, i, count)
        given = given + (where(b.last, count, none) if i == b.m - 1 else count)
    missing = units - (across_sum(given) if b.wide else given)
    most = fill(b.n - 1.0)
    extra = where(missing < 0.0, missing, where(missing > most, missing - most, none))
    if some(extra != 0.0):
        add_at(b, top, extra)
        missing = missing - extra
    mark_largest(b, b.residual, missing, fill(-1e-9), fill(1.0))
    best, lead, column = fill(-HUGE), fill(float(b.n)), b.column
    for i in range(b.m):
        v = load(b.w, i) + load(b.marks, i)
        store(b.w, i, v)
        v = where(b.last, v, best) if i == b.m - 1 else v
        lead, best = where(v > best, column, lead), larger(best, v)
        column = column + b.stride
    if b.wide:
        lead = across_min(where(best == across_max(best), lead, fill(float(b.n))))
    if some(lead != top):
        _restore_top(b, top, lead)
    divide(b, fill(units))


@device
def _restore_top(b: Block, top: Any, lead: Any) -> None:
    """Rounding has tied the top class with an earlier one: one unit moves to it from the weakest that was given one."""
    weakest = fill(HUGE)
    column = b.column
    for i in range(b.m):
        giver = (load(b.marks, i) > 0.0) & (column != top)
        giver = giver & b.last if i == b.m - 1 else giver
        weakest = where(giver, smaller(weakest, load(b.residual, i)), weakest)
        column = column + b.stride
    weakest = across_min(weakest) if b.wide else weakest
    donor = fill(-1.0)
    column = b.column
    for i in range(b.m):
        giver = (load(b.marks, i) > 0.0) & (column != top) & (load(b.residual, i) == weakest)
        giver = giver & b.last if i == b.m - 1 else giver
        donor = where(giver, larger(donor, column), donor)
        column = column + b.stride
    donor = across_max(donor) if b.wide else donor
    donor = where(donor < 0.0, lead, donor)
    unit = where(lead != top, fill(1.0), fill(0.0))
    add_at(b, donor, 0.0 - unit)
    add_at(b, top, unit)
