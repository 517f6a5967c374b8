"""Saying less about classes: the best few, or the best alone."""

from __future__ import annotations

from typing import Any

from hardening.kernels import layout
from hardening.kernels.blocks import Block, add_at, divide, exact_sum, extremes, place
from hardening.kernels.job import block_of, fields, forget_top, params_of, top_of
from hardening.kernels.lanes import device, fill, larger, next_up, where
from hardening.kernels.memory import load, scatter, store
from hardening.kernels.order import mark_largest, raise_top


def top_k(job: int) -> None:
    """Keep p0 entries; p1: REMAINDER_*; p2: fill, or index of the class that takes the remainder."""
    j = fields(job)
    b, p = block_of(j), params_of(j)
    if p[0] < b.n:
        keep_top_k(b, int(p[0]), int(p[1]), p[2], top_of(j, b))
        if int(p[1]) == layout.REMAINDER_OTHER:
            forget_top(j)


def cutoff(job: int) -> None:
    """Zero for what is below p0; p1 = 1: not for the top class, and renormalised."""
    j = fields(job)
    b, p = block_of(j), params_of(j)
    top, column = fill(-1.0), b.column
    if p[1] > 0.0:
        top = top_of(j, b)
    for i in range(b.m):
        v = load(b.w, i)
        store(b.w, i, where((v >= p[0]) | (column == top), v, fill(0.0)))
        column = column + b.stride
    if p[1] > 0.0:
        divide(b, exact_sum(b, b.w))


def label_only(job: int) -> None:
    """One-hot of the top class."""
    j = fields(job)
    b = block_of(j)
    one_hot(b, top_of(j, b))


def at_half(job: int) -> None:
    """Each entry by itself: 1 from one half on, else 0."""
    b = block_of(fields(job))
    for i in range(b.m):
        store(b.w, i, where(load(b.w, i) >= 0.5, fill(1.0), fill(0.0)))


@device
def one_hot(b: Block, top: Any) -> None:
    column = b.column
    for i in range(b.m):
        store(b.w, i, where(column == top, fill(1.0), fill(0.0)))
        column = column + b.stride


@device
def keep_top_k(b: Block, k: int, mode: int, value: float, top: Any) -> None:
    """Leaves the k largest entries, ties to `top` and then to the lower index."""
    before = raise_top(b, b.w, top)
    low, high = extremes(b, b.w)
    mark_largest(b, b.w, fill(float(k)), 0.0 - next_up(0.0 - low), high)
    scatter(b.w, place(b, top), before)
    if mode == layout.REMAINDER_FILL:
        for i in range(b.m):
            store(b.w, i, where(load(b.marks, i) > 0.0, load(b.w, i), fill(value)))
        return
    for i in range(b.m):
        store(b.residual, i, load(b.w, i) * load(b.marks, i))
    mass = exact_sum(b, b.residual)
    if mode == layout.REMAINDER_SPREAD:
        share = larger(1.0 - mass, fill(0.0)) / float(b.n - k)
        for i in range(b.m):
            store(b.w, i, where(load(b.marks, i) > 0.0, load(b.w, i), share))
        return
    for i in range(b.m):
        store(b.w, i, load(b.residual, i))
    if mode == layout.REMAINDER_DROP:
        divide(b, mass)
    else:
        add_at(b, fill(value), larger(1.0 - mass, fill(0.0)))
