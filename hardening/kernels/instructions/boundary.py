"""A coin between the two best classes where they are close."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray

from hardening.kernels import stream
from hardening.kernels.blocks import HUGE, Block, first_argmax, place
from hardening.kernels.instructions.classes import one_hot
from hardening.kernels.instructions.labels import nonces_for, relabel
from hardening.kernels.job import block_of, fields, params_of, top_of
from hardening.kernels.lanes import WIDTH, device, fill, lane, outer, pointer
from hardening.kernels.layout import Job
from hardening.kernels.memory import gather, scatter


def coin_aes_128_ctr(job: int) -> None:
    """`_coin` from AES-128 in counter mode."""
    _coin(job, stream.aes_128_ctr)


def coin_chacha20(job: int) -> None:
    """`_coin` from ChaCha20."""
    _coin(job, stream.chacha20)


@outer
def _coin(job: int, words: Any) -> None:
    """One-hot of the top class; where it leads by less than p0, in DATA's share of cases, of the next one instead.

    p6, p7: as for `labels`.
    """
    j = fields(job)
    b, p = block_of(j), params_of(j)
    threshold = carray(pointer(j[Job.DATA]), (1,), np.uint64)[0]
    top = top_of(j, b)
    second, lead = _runner_up(b, top)
    raw = words(j, b.wide, nonces_for(j, p), 0, 1)
    for k in range(1 if b.wide else WIDTH):
        swap = (lane(lead, k) < p[0]) & (stream.word_of(raw, b.wide, k, 0) < threshold)
        relabel(j, b, k, int(lane(top, k)) + int(lane(second, k) - lane(top, k)) * int(swap))
    one_hot(b, top_of(j, b))


@device
def _runner_up(b: Block, top: Any) -> tuple[Any, Any]:
    """The best class but `top`, of equals the first, and by how much `top` leads; infinitely if there is no other."""
    leader = place(b, top)
    best = gather(b.w, leader)
    scatter(b.w, leader, fill(-HUGE))
    second = first_argmax(b, b.w)
    lead = best - gather(b.w, place(b, second))
    scatter(b.w, leader, best)
    return second, lead
