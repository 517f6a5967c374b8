"""Changing scores one by one: bounds and temperature."""

from __future__ import annotations

from hardening.kernels import layout
from hardening.kernels.blocks import clip as clip_block
from hardening.kernels.blocks import divide, exact_sum, extremes, place
from hardening.kernels.elementary import power
from hardening.kernels.job import block_of, fields, params_of, report, top_of
from hardening.kernels.lanes import fill, where
from hardening.kernels.layout import Job
from hardening.kernels.memory import gather, load, store


def clip(job: int) -> None:
    """Every entry to [p0, p1]; of those that meet there, the one that led before does still."""
    j = fields(job)
    b, p = block_of(j), params_of(j)
    top_of(j, b)
    clip_block(b, p[0], p[1])


def check(job: int) -> None:
    """Entries beyond p0 or p1 go there if that is within the tolerance; others are a problem of the row."""
    j = fields(job)
    b, p = block_of(j), params_of(j)
    low, high = extremes(b, b.w)
    tolerance = float(j[Job.TOLERANCE]) * 1e-6
    off = (low < p[0] - tolerance) | (high > p[1] + tolerance)
    report(j, where(off, fill(float(layout.NOT_SIMPLEX)), fill(0.0)))
    clip_block(b, p[0], p[1])


def temper_logits(job: int) -> None:
    """Quotients by the temperature p0."""
    j = fields(job)
    b, t = block_of(j), params_of(j)[0]
    for i in range(b.m):  # not `divide`: a mask may be the least float there is, and its quotient beyond it
        store(b.w, i, load(b.w, i) / t)


def temper_simplex(job: int) -> None:
    """Powers by 1 over the temperature p0, renormalised."""
    j = fields(job)
    b, t = block_of(j), params_of(j)[0]
    divide(b, gather(b.w, place(b, top_of(j, b))))
    for i in range(b.m):
        store(b.w, i, power(load(b.w, i), 1.0 / t))
    divide(b, exact_sum(b, b.w))
