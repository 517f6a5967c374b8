"""Utility-bounded perturbation, and misinformation; both may look at a second row of scores, a surrogate's."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray

from hardening.kernels import layout
from hardening.kernels.blocks import Block
from hardening.kernels.costs import difference_costs, given_costs, log_costs, score_costs
from hardening.kernels.elementary import exponential
from hardening.kernels.job import block_of, fields, forget_top, params_of, put_row, report, take_row, top_of
from hardening.kernels.lanes import WIDTH, columns, device, fill, lane, pointer, where
from hardening.kernels.layout import Job
from hardening.kernels.perturb import DIGITS, UNIT, nearest, number, perturb, to_scores, to_units


@device
def _scratch(j: Any, part: int) -> Any:
    """float64 scratch for one row: part 0, 1 or 2."""
    n = j[Job.WIDTH]
    return carray(pointer(j[Job.SCRATCH] + 8 * n * part), (n,), np.float64)


@device
def _rows(b: Block) -> int:
    return 1 if b.wide else WIDTH


@device
def _surrogate(j: Any, k: int) -> Any:
    """The surrogate's scores for the row in lane k."""
    n = j[Job.WIDTH]
    return carray(pointer(j[Job.OTHER] + 8 * n * (j[Job.FIRST] + k)), (n,), np.float64)


@device
def _is_finite(row: Any) -> bool:
    nothing = 0.0
    for c in range(row.size):
        nothing += row[c] - row[c]
    return nothing == 0.0


@device
def _is_distribution(row: Any, tolerance: float) -> bool:
    total = np.int64(0)
    for c in range(row.size):
        if not 0.0 - tolerance <= row[c] <= 1.0 + tolerance:  # which NaN is not either
            return False
        total += nearest(row[c] * UNIT)
        if total > (1 << 60):
            return False
    return bool(abs(total / UNIT - 1.0) <= tolerance)


@device
def _blame_surrogate(j: Any, k: int) -> None:
    report(j, where(columns(0) == float(k), fill(float(layout.SURROGATE)), fill(0.0)))


@device
def _costs(j: Any, kind: int, k: int, units: Any, spare: Any, costs: Any) -> None:
    """What each class costs, as `layout.COST_` says."""
    if kind == layout.COST_LOGARITHM:
        log_costs(units, spare, costs)
    elif kind == layout.COST_SCORE:
        score_costs(units, costs)
    else:
        surrogate = _surrogate(j, k)
        if kind == layout.COST_GIVEN:
            if not _is_finite(surrogate):
                _blame_surrogate(j, k)
            else:
                given_costs(surrogate, costs)
                return
        elif _is_distribution(surrogate, float(j[Job.TOLERANCE]) * 1e-6):
            difference_costs(units, surrogate, costs)
            return
        else:
            _blame_surrogate(j, k)
        score_costs(units, costs)


def linear(job: int) -> None:
    """Cheapest row within a budget; p0: `layout.COST_`; p1: budget; p2: margin, both in units; p3 = 1: keep the top."""
    j = fields(job)
    b, p, row, spare = block_of(j), params_of(j), _scratch(j, 0), _scratch(j, 2)
    units, keys = row.view(np.int64), _scratch(j, 1).view(np.int64)
    room = carray(pointer(spare.ctypes.data), (b.n + DIGITS,), np.int64)
    top = top_of(j, b)
    for k in range(_rows(b)):
        take_row(b, b.w, k, row)
        to_units(row, units)
        _costs(j, int(p[0]), k, units, spare, keys)
        shift = number(keys)
        leader = int(lane(top, k))
        perturb(units, keys, room, shift, leader, p[3] > 0.0, np.int64(p[1]), np.int64(p[2]))
        to_scores(units, row)
        put_row(b, b.w, k, row)
    if p[3] == 0.0:
        forget_top(j)


def misinform(job: int) -> None:
    """Scores mixed with a surrogate's; p0: nu; p1: tau; p2 = 1: with the uniform distribution instead."""
    j = fields(job)
    b, p, row, spare = block_of(j), params_of(j), _scratch(j, 0), _scratch(j, 1)
    for k in range(_rows(b)):
        take_row(b, b.w, k, row)
        highest = 0.0
        for c in range(b.n):
            highest = max(highest, row[c])
        share = 1.0 / (1.0 + exponential(min(max(p[0] * (highest - p[1]), -700.0), 700.0), spare))
        if p[2] > 0.0:
            for c in range(b.n):
                spare[c] = 1.0 / b.n
        else:
            surrogate = _surrogate(j, k)
            if not _is_distribution(surrogate, float(j[Job.TOLERANCE]) * 1e-6):
                _blame_surrogate(j, k)
                continue
            total = np.int64(0)
            for c in range(b.n):
                total += nearest(max(surrogate[c], 0.0) * UNIT)
            for c in range(b.n):
                spare[c] = max(surrogate[c], 0.0) / (total / UNIT)
        for c in range(b.n):
            row[c] = nearest(((1.0 - share) * row[c] + share * spare[c]) * UNIT) / UNIT
        put_row(b, b.w, k, row)
    forget_top(j)
