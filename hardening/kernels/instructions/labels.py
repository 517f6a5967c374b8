"""Labels that are drawn. Every probability is an integer over a power of two, compared with words of the keystream.

All classes are looked at and as many words are made whatever is drawn: nothing branches on a draw.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray

from hardening.kernels import layout, prf, stream
from hardening.kernels.blocks import Block, first_argmax, place
from hardening.kernels.instructions.additive import personal
from hardening.kernels.instructions.classes import one_hot
from hardening.kernels.job import AREA, block_of, fields, lanes_of, nonces_of, params_of, top_of
from hardening.kernels.lanes import WIDTH, device, fill, lane, larger, outer, pointer, rint, smaller
from hardening.kernels.layout import Job
from hardening.kernels.memory import gather, load, store
from hardening.kernels.words import high_half, int128, is_less, low_half, multiply_add_wide


def exponential_aes_128_ctr(job: int) -> None:
    """`_exponential` from AES-128 in counter mode."""
    _exponential(job, stream.aes_128_ctr)


def exponential_chacha20(job: int) -> None:
    """`_exponential` from ChaCha20."""
    _exponential(job, stream.chacha20)


def permute_and_flip_aes_128_ctr(job: int) -> None:
    """`_permute_and_flip` from AES-128 in counter mode."""
    _permute_and_flip(job, stream.aes_128_ctr)


def permute_and_flip_chacha20(job: int) -> None:
    """`_permute_and_flip` from ChaCha20."""
    _permute_and_flip(job, stream.chacha20)


@device
def nonces_for(j: Any, p: Any) -> Any:
    """What the draw is keyed on: the question (p6 = 0) or its cell, for everybody (p7 = 0) or for the client."""
    nonces = nonces_of(j, AREA if p[6] > 0.0 else 0)
    if p[7] > 0.0:
        return personal(nonces, carray(pointer(j[Job.CLIENT]), (3,), np.uint32), nonces_of(j, 2 * AREA))
    return nonces


@device
def _to_levels(b: Block, p: Any) -> None:
    for i in range(b.m):
        level = rint((load(b.w, i) - p[0]) * p[1])
        store(b.w, i, smaller(larger(level, fill(0.0)), fill(p[2])))


@device
def at(b: Block, k: int, c: int) -> int:
    """Where class c of the row in lane k is in the arrays."""
    return c if b.wide else WIDTH * c + k


@device
def share(word: Any, total: Any) -> Any:
    """The word as a fraction of 2**64, times a total of 64 bits, rounded down."""
    return high_half(multiply_add_wide(int128(np.uint64(0), np.uint64(0)), int128(word, np.uint64(0)), total))


@device
def relabel(j: Any, b: Block, k: int, label: int) -> None:
    """Say that this is the label of the row in lane k, and what keeps the model's own label is to keep this one."""
    lanes = lanes_of(j)
    for other in range(k, WIDTH if b.wide else k + 1):
        lanes[layout.TOP + other] = lanes[layout.OWN + other] = float(label)
    j[Job.LEADS] = 1


@outer
def _exponential(job: int, words: Any) -> None:
    """One-hot of a class drawn with the weight that DATA has for its distance from the best, in levels.

    p0: the lowest score; p1: levels per score; p2: how many levels; p6 = 1: keyed on the cell that `to_cells` left;
    p7 = 1: a draw of the client's own.
    """
    j = fields(job)
    b, p = block_of(j), params_of(j)
    table = carray(pointer(j[Job.DATA]), (int(p[2]) + 1,), np.uint64)
    _to_levels(b, p)
    best = gather(b.w, place(b, first_argmax(b, b.w)))
    raw = words(j, b.wide, nonces_for(j, p), 0, 1)
    for k in range(1 if b.wide else WIDTH):
        relabel(j, b, k, _weighted(b, k, lane(best, k), table, stream.word_of(raw, b.wide, k, 0)))
    one_hot(b, top_of(j, b))


@device
def _weighted(b: Block, k: int, best: float, table: Any, word: Any) -> int:
    """The class in whose share of the total weight the word lies."""
    one, none = np.uint64(1), np.uint64(0)
    total, sofar = int128(none, none), int128(none, none)
    for c in range(b.n):
        total = multiply_add_wide(total, int128(table[int(best - b.w[at(b, k, c)])], none), one)
    # Word times total over 2**64, both halves of a total of more than 64 bits by themselves.
    wanted = int128(share(word, low_half(total)), none)
    wanted = multiply_add_wide(wanted, int128(word, none), high_half(total))
    label = 0
    for c in range(b.n):
        sofar = multiply_add_wide(sofar, int128(table[int(best - b.w[at(b, k, c)])], none), one)
        label += 1 - int(is_less(wanted, sofar))
    return label


@outer
def _permute_and_flip(job: int, words: Any) -> None:
    """One-hot of a class drawn evenly from those that come through, each with DATA's chance for its distance.

    Parameters as for `_exponential`. To go through all classes in random order and stop at the first that comes through
    (McKenna & Sheldon 2020) gives the same label as often; but here how long it takes does not tell.
    """
    j = fields(job)
    b, p = block_of(j), params_of(j)
    table = carray(pointer(j[Job.DATA]), (int(p[2]) + 1,), np.uint64)
    chosen = carray(pointer(j[Job.SCRATCH]), (WIDTH,), np.uint64)
    _to_levels(b, p)
    top = first_argmax(b, b.w)
    best = gather(b.w, place(b, top))
    nonces = nonces_for(j, p)
    for k in range(WIDTH):
        chosen[k] = np.uint64(0)
    for start in range(0, b.m, prf.CHUNK):
        count = min(b.m - start, prf.CHUNK)
        raw = words(j, b.wide, nonces, start, count)
        size = WIDTH if b.wide else 1  # classes in a vector, of one row
        first, end = size * start, min(size * (start + count), b.n)
        for k in range(1 if b.wide else WIDTH):
            leader, high = int(lane(top, k)), lane(best, k)
            for c in range(first, end):
                word, behind = stream.word_of(raw, b.wide, k, c - first), int(high - b.w[at(b, k, c)])
                b.marks[at(b, k, c)] = float(int((behind == 0) | (word < table[behind])))
                # The best class comes through whatever its word is, which is therefore free to choose with.
                chosen[k] += word * np.uint64(c == leader)
    for k in range(1 if b.wide else WIDTH):
        relabel(j, b, k, _evenly(b, k, chosen[k]))
    one_hot(b, top_of(j, b))


@device
def _evenly(b: Block, k: int, word: Any) -> int:
    """One of the classes that are marked, each with the same chance."""
    count = 0
    for c in range(b.n):
        count += int(b.marks[at(b, k, c)])
    before, sofar, label = int(share(word, np.uint64(count))), 0, 0
    for c in range(b.n):
        sofar += int(b.marks[at(b, k, c)])
        label += int(sofar <= before)
    return label
