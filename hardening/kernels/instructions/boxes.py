"""Detections: a part of the columns of every row, taken out of the block while instructions work on it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray

from hardening.kernels.job import block_of, fields, forget_top, params_of
from hardening.kernels.lanes import WIDTH, device, pointer
from hardening.kernels.layout import Job


def take(job: int) -> None:
    """Sets the block aside; it is then one of p0 columns, those that DATA (int64) names, in their order."""
    j = fields(job)
    b, p = block_of(j), params_of(j)
    aside, columns, lanes = _aside(j, b.n), _columns(j, int(p[0])), 1 if b.wide else WIDTH
    for k in range(b.n * lanes):
        aside[k] = b.w[k]
    j[Job.WIDTH] = int(p[0])
    for c in range(int(p[0])):
        for k in range(lanes):
            b.w[c * lanes + k] = aside[columns[c] * lanes + k]
    forget_top(j)


def put(job: int) -> None:
    """Puts the block back that `take` set aside, of p1 columns, with what has become of p0 of them."""
    j = fields(job)
    p = params_of(j)
    j[Job.WIDTH] = int(p[1])
    b = block_of(j)
    aside, columns, lanes = _aside(j, b.n), _columns(j, int(p[0])), 1 if b.wide else WIDTH
    for c in range(int(p[0])):
        for k in range(lanes):
            aside[columns[c] * lanes + k] = b.w[c * lanes + k]
    for k in range(b.n * lanes):
        b.w[k] = aside[k]
    forget_top(j)


@device
def _aside(j: Any, columns: int) -> Any:
    return carray(pointer(j[Job.SCRATCH]), (WIDTH * columns,), np.float64)


@device
def _columns(j: Any, count: int) -> Any:
    return carray(pointer(j[Job.DATA]), (count,), np.int64)
