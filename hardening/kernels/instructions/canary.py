"""Answers that are changed for one client alone, so that a copy gives away whose answers it was learnt from."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import carray

from hardening.kernels import stream, tag
from hardening.kernels.blocks import Block
from hardening.kernels.instructions.additive import personal
from hardening.kernels.instructions.labels import at, relabel, share
from hardening.kernels.job import AREA, block_of, fields, nonces_of, params_of, top_of
from hardening.kernels.lanes import WIDTH, device, lane, outer, pointer
from hardening.kernels.layout import Job

#: Classes that make a cell: the first of them may change places with any of the others.
RANKS = 4
#: A cell ends where the best class becomes so many times as likely against the next: in logits, its logarithm.
ODDS = 4.0
LOG_ODDS = 1.3862943611198906
#: The most levels of odds.
LEVELS = 4096.0


def canary_aes_128_ctr(job: int) -> None:
    """`_canary` from AES-128 in counter mode."""
    _canary(job, stream.aes_128_ctr)


def canary_chacha20(job: int) -> None:
    """`_canary` from ChaCha20."""
    _canary(job, stream.chacha20)


@outer
def _canary(job: int, words: Any) -> None:
    """In DATA's share of cells the best class and one of the three next change places; p0 = 1: scores are logits.

    What is drawn later by the question is drawn by that change as well. Otherwise the same noise would lie on both, and
    the difference between the answers of a client who has it and of one who has not would be what changed places.
    """
    j = fields(job)
    b, logits = block_of(j), params_of(j)[0] > 0.0
    threshold = carray(pointer(j[Job.DATA]), (1,), np.uint64)[0]
    order = carray(pointer(j[Job.SCRATCH]), (WIDTH, RANKS), np.int64)
    key = carray(pointer(j[Job.CELL_KEY]), (tag.FINAL + tag.STRIDE + tag.EXTRA,), np.uint64)
    cell = carray(pointer(j[Job.ROW]), (tag.STRIDE,), np.uint64)
    question, nonces, found = nonces_of(j, 0), nonces_of(j, AREA), nonces_of(j, 2 * AREA)
    top = top_of(j, b)
    for k in range(1 if b.wide else WIDTH):
        _rank(b, k, int(lane(top, k)), order[k])
        _name(b, k, order[k], logits, cell)
        tag.hash_words(cell, tag.STRIDE, key, found)
        for i in range(3):
            nonces[WIDTH * i + k] = found[i]
        nonces[3 * WIDTH + k] = np.uint32(0)  # wherever in an answer the row is
    mine = personal(nonces, carray(pointer(j[Job.CLIENT]), (3,), np.uint32), found)
    raw = words(j, b.wide, mine, 0, 2)
    for k in range(1 if b.wide else WIDTH):
        first, second, others = order[k, 0], order[k, 1], min(b.n, RANKS) - 1
        which = 1 + int(share(stream.word_of(raw, b.wide, k, 1), np.uint64(others)))
        leads = b.w[at(b, k, first)] > b.w[at(b, k, second)]
        chosen = leads & (stream.word_of(raw, b.wide, k, 0) < threshold)
        other = order[k, which * int(chosen)]
        best = b.w[at(b, k, first)]
        b.w[at(b, k, first)] = b.w[at(b, k, other)]
        b.w[at(b, k, other)] = best
        relabel(j, b, k, other)
        for i in range(3):
            for lane_of_row in range(k, WIDTH if b.wide else k + 1):
                question[WIDTH * i + lane_of_row] += np.uint32(which * int(chosen))


@device
def _rank(b: Block, k: int, top: int, order: Any) -> None:
    """The best classes of the row in lane k in order, of equals the first; `top` again where there are fewer."""
    order[0] = top
    for r in range(1, RANKS):
        best, value = top, -math.inf
        for c in range(b.n):
            taken = False
            for earlier in range(r):
                taken |= order[earlier] == c
            if not taken and (best == top or b.w[at(b, k, c)] > value):
                best, value = c, b.w[at(b, k, c)]
        order[r] = best


@device
def _name(b: Block, k: int, order: Any, logits: bool, cell: Any) -> None:
    """Words that name the cell: which classes are best, in their order, and by what odds the first one leads."""
    first, second = b.w[at(b, k, order[0])], b.w[at(b, k, order[1])]
    if logits:
        level = min(math.floor((first - second) / LOG_ODDS), LEVELS)
    else:
        level = float(math.frexp(min(first / second, 1e300) if second > 0.0 else 1e300)[1] // 2)
    for i in range(tag.STRIDE):
        cell[i] = np.uint64(order[i]) if i < RANKS else np.uint64(0)
    cell[RANKS] = np.uint64(int(level if level > 0.0 else 0.0))
