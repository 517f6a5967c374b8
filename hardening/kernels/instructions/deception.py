"""Published perturbations that promise nothing."""

from __future__ import annotations

from hardening.kernels.blocks import exact_sum
from hardening.kernels.job import block_of, fields, forget_top, params_of
from hardening.kernels.lanes import WIDTH, fill, where
from hardening.kernels.memory import load, store


def reverse_sigmoid(job: int) -> None:
    """p0: beta; p1: gamma; p2 = 1: renormalise; p3 = 1: may change the top class."""
    j = fields(job)
    b, params = block_of(j), params_of(j)
    beta, gamma = params[0], params[1]
    for k in range(WIDTH * b.m):
        p = min(max(b.w[k], 1e-9), 1.0 - 1e-9)
        ratio = ((1.0 - p) / p) ** gamma
        b.w[k] = min(max(p - beta * (1.0 / (1.0 + ratio) - 0.5), 0.0), 1.0)
    if params[2] > 0.0:
        s = exact_sum(b, b.w)
        for i in range(b.m):
            store(b.w, i, where(s > 0.0, load(b.w, i) / where(s > 0.0, s, fill(1.0)), fill(1.0 / b.n)))
    if params[3] > 0.0:
        forget_top(j)
