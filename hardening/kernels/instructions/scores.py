"""Changing scores one by one: bounds and temperature."""

from __future__ import annotations

from hardening.kernels.blocks import clip as clip_block
from hardening.kernels.blocks import divide, exact_sum, place
from hardening.kernels.elementary import power
from hardening.kernels.job import block_of, fields, params_of, top_of
from hardening.kernels.memory import gather, load, store


def clip(job: int) -> None:
    """Every entry to [p0, p1]."""
    j = fields(job)
    p = params_of(j)
    clip_block(block_of(j), p[0], p[1])


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
