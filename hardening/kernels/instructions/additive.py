"""Exact noise on an integer grid."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray

from hardening.kernels import layout, prf, tag
from hardening.kernels.blocks import Block, extremes, to_grid
from hardening.kernels.job import AREA, block_of, fields, forget_top, nonces_of, params_of, report, stream_of
from hardening.kernels.lanes import WIDTH, device, fill, larger, pointer, rint, where
from hardening.kernels.layout import Job
from hardening.kernels.memory import load, load_longs, load_words, store, transpose
from hardening.kernels.words import add_words, count_from, count_on_from, count_twice, repeat

#: Beyond this many steps a float64 no longer holds every integer that noise may add.
MOST_STEPS = 2.0**50


def to_cells(job: int) -> None:
    """Rounds to multiples of p0 and keys what is drawn next on the result: nonces of the quantised rows alone."""
    j = fields(job)
    b, cell = block_of(j), params_of(j)[0]
    key = carray(pointer(j[Job.CELL_KEY]), (tag.FINAL + b.n + 1 + tag.EXTRA,), np.uint64)
    row = carray(pointer(j[Job.ROW]), (b.n + 1,), np.uint64)
    question, nonces = nonces_of(j, 0), nonces_of(j, AREA)
    to_grid(b, 1.0 / cell)
    words = (b.n + 1) // 2 * 2
    for k in range(1 if b.wide else WIDTH):
        row[words - 1] = np.uint64(0)
        for c in range(b.n):
            v = b.w[c] if b.wide else b.w[WIDTH * c + k]
            row[c] = np.uint64(np.int64(v / cell))  # a power of two: exact
        tag.hash_words(row, words, key, nonces_of(j, 2 * AREA))
        for i in range(3):
            for other in range(k, WIDTH if b.wide else k + 1):
                nonces[WIDTH * i + other] = nonces_of(j, 2 * AREA)[i]
    for k in range(WIDTH):
        nonces[3 * WIDTH + k] = question[3 * WIDTH + k]
    forget_top(j)


def noise(job: int) -> None:
    """Noise from ChaCha20: steps of p0 (p1: 1/p0); DATA: alias table of 2**p2 slots; p3: its offset.

    p4 = 1: keyed on the cell that `to_cells` left; p5 = 1: noise of the client's own.
    """
    j = fields(job)
    b, p = block_of(j), params_of(j)
    low, high = extremes(b, b.w)
    far = larger(high, 0.0 - low) * p[1] > MOST_STEPS
    report(j, where(far, fill(float(layout.OUT_OF_RANGE)), fill(0.0)))
    key = carray(pointer(j[Job.SECRET]), (8,), np.uint32)
    table = carray(pointer(j[Job.DATA]), (1 << int(p[2]),), np.uint64)
    nonces, raw = nonces_of(j, AREA if p[4] > 0.0 else 0), stream_of(j)
    if p[5] > 0.0:
        nonces = personal(nonces, carray(pointer(j[Job.CLIENT]), (3,), np.uint32), nonces_of(j, 2 * AREA))
    if b.wide:
        _draw_along(b, p, table, key, nonces, raw)
    else:
        _draw_across(b, p, table, key, nonces, raw)
    forget_top(j)


@device
def personal(nonces: Any, client: Any, out: Any) -> Any:
    """The nonces of rows, shifted by the client's tag, which is as secret and as random as they are."""
    for k in range(WIDTH):
        for i in range(3):
            out[WIDTH * i + k] = np.uint32(nonces[WIDTH * i + k] + client[i])
        out[3 * WIDTH + k] = nonces[3 * WIDTH + k]
    return out


@device
def _draw(b: Block, i: int, raw: Any, word: int, p: Any, table: Any) -> None:
    z = prf.draw(load_longs(raw, word), table, int(p[2]), int(p[3]))
    store(b.w, i, (rint(load(b.w, i) * p[1]) + z) * p[0])


@device
def _draw_across(b: Block, p: Any, table: Any, key: Any, nonces: Any, raw: Any) -> None:
    """Noise for eight rows; `nonces` holds three words and a first counter for each lane, word by word."""
    n0, n1, n2, first = load_words(nonces, 0), load_words(nonces, 1), load_words(nonces, 2), load_words(nonces, 3)
    for i in range(b.m):
        if i % (2 * prf.BLOCK) == 0:
            prf.blocks(key, add_words(first, count_twice(np.uint32(i // prf.BLOCK))), n0, n1, n2, raw)
        _draw(b, i, raw, i % (2 * prf.BLOCK), p, table)


@device
def _draw_along(b: Block, p: Any, table: Any, key: Any, nonces: Any, raw: Any) -> None:
    """Noise for a row that is folded over the lanes; lanes of the cipher hold its blocks one after the other."""
    n0, n1, n2, first = nonces[0], nonces[WIDTH], nonces[2 * WIDTH], nonces[3 * WIDTH]
    for start in range(0, b.m, 4 * WIDTH):
        count = min(b.m - start, 4 * WIDTH)
        if count > 2 * WIDTH:
            more = count_on_from(np.uint32(first + start))
            prf.blocks(key, more, repeat(more, n0), repeat(more, n1), repeat(more, n2), raw)
        else:
            few = count_from(np.uint32(first + start))
            prf.blocks(key, few, repeat(few, n0), repeat(few, n1), repeat(few, n2), raw)
        for group in range((count + WIDTH - 1) // WIDTH):
            transpose(raw, group)  # a block's words are wanted side by side
        for i in range(count):
            _draw(b, start + i, raw, i, p, table)
