"""Published perturbations that promise nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray

from hardening.kernels import aes, chacha20
from hardening.kernels.blocks import add_at, exact_sum, place
from hardening.kernels.elementary import power
from hardening.kernels.job import block_of, fields, forget_top, nonces_of, params_of, stream_of, top_of
from hardening.kernels.lanes import WIDTH, device, fill, larger, outer, pointer, smaller, where
from hardening.kernels.layout import Job
from hardening.kernels.memory import gather, load, store


def reverse_sigmoid(job: int) -> None:
    """p0: beta; p1: gamma; p2 = 1: renormalise; p3 = 1: may change the top class."""
    j = fields(job)
    b, params = block_of(j), params_of(j)
    beta, gamma, none, one = params[0], params[1], fill(0.0), fill(1.0)
    for i in range(b.m):
        p = smaller(larger(load(b.w, i), fill(1e-9)), fill(1.0 - 1e-9))
        ratio = power((one - p) / p, gamma)
        store(b.w, i, smaller(larger(p - beta * (one / (one + ratio) - 0.5), none), one))
    if params[2] > 0.0:
        s = exact_sum(b, b.w)
        for i in range(b.m):
            store(b.w, i, where(s > 0.0, load(b.w, i) / where(s > 0.0, s, fill(1.0)), fill(1.0 / b.n)))
    if params[3] > 0.0:
        forget_top(j)


def random_target_aes_128_ctr(job: int) -> None:
    """`_random_target` from AES-128 in counter mode."""
    _random_target(job, carray(pointer(fields(job)[Job.SECRET]), (aes.KEY,), np.uint64), aes.across)


def random_target_chacha20(job: int) -> None:
    """`_random_target` from ChaCha20."""
    _random_target(job, carray(pointer(fields(job)[Job.SECRET]), (chacha20.KEY,), np.uint32), chacha20.across)


@outer
def _random_target(job: int, key: Any, across: Any) -> None:
    """Moves p0 of each row to a class that is drawn; p1 = 1: less, where the top class would not lead by p2."""
    j = fields(job)
    b, p, raw = block_of(j), params_of(j), stream_of(j)
    if b.n < 2:
        return
    across(key, nonces_of(j, 0), 0, 1, raw)
    top = top_of(j, b)
    target = _one_of_others(raw, b.n, top, b.residual)
    amount = fill(p[0])
    if p[1] > 0.0:
        ahead = gather(b.w, place(b, top)) - gather(b.w, place(b, target))
        amount = smaller(amount, larger((ahead - p[2]) / (1.0 + ahead), fill(0.0)))
    for i in range(b.m):
        store(b.w, i, load(b.w, i) * (1.0 - amount))
    add_at(b, target, amount)
    if p[1] == 0.0:
        forget_top(j)


@device
def _one_of_others(raw: Any, n: int, top: Any, room: Any) -> Any:
    """A class other than `top` for each lane, from its 64-bit word: each alike, to within 2**-64."""
    half, many = np.uint64(32), np.uint64(n - 1)
    for k in range(WIDTH):
        high, low = raw[k] >> half, raw[k] & np.uint64(0xFFFFFFFF)
        room[k] = float((high * many + (low * many >> half)) >> half)
    drawn = load(room, 0)
    return drawn + where(drawn >= top, fill(1.0), fill(0.0))
