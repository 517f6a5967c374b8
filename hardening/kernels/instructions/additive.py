"""Exact noise on an integer grid."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray

from hardening.kernels import aes, chacha20, layout, prf, tag
from hardening.kernels.blocks import FIXED_POINT, HUGE, LONG, MOST_SCORE, to_grid
from hardening.kernels.job import AREA, block_of, fields, forget_top, nonces_of, params_of, report, stream_of
from hardening.kernels.lanes import WIDTH, across_max, device, fabs, fill, lane, larger, outer, pointer, rint, where
from hardening.kernels.layout import Job
from hardening.kernels.memory import load, store

#: Beyond this many steps a float64 no longer holds every integer that noise may add.
MOST_STEPS = 2.0**50


def to_cells(job: int) -> None:
    """Rounds to multiples of p0 and keys what is drawn next on the result: nonces of the quantised rows alone."""
    j = fields(job)
    b, cell = block_of(j), params_of(j)[0]
    words = (b.n + tag.STRIDE - 1) // tag.STRIDE * tag.STRIDE
    key = carray(pointer(j[Job.CELL_KEY]), (tag.FINAL + words + tag.EXTRA,), np.uint64)
    row = carray(pointer(j[Job.ROW]), (words,), np.uint64)
    question, nonces = nonces_of(j, 0), nonces_of(j, AREA)
    to_grid(b, 1.0 / cell)
    for c in range(b.n, words):
        row[c] = np.uint64(0)
    for k in range(1 if b.wide else WIDTH):
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


def noise_aes_128_ctr(job: int) -> None:
    """`_noise` from AES-128 in counter mode."""
    _noise(job, carray(pointer(fields(job)[Job.SECRET]), (aes.KEY,), np.uint64), aes.along, aes.across)


def noise_chacha20(job: int) -> None:
    """`_noise` from ChaCha20."""
    _noise(job, carray(pointer(fields(job)[Job.SECRET]), (chacha20.KEY,), np.uint32), chacha20.along, chacha20.across)


@outer
def _noise(job: int, key: Any, along: Any, across: Any) -> None:
    """Noise in steps of p0 (p1: 1/p0); DATA: alias table of 2**p2 slots; p3: its offset.

    p4 = 1: keyed on the cell that `to_cells` left; p5 = 1: noise of the client's own.
    """
    j = fields(job)
    b, p = block_of(j), params_of(j)
    bits, offset = int(p[2]), int(p[3])
    table = carray(pointer(j[Job.DATA]), (1 << bits,), np.uint64)
    nonces, raw = nonces_of(j, AREA if p[4] > 0.0 else 0), stream_of(j)
    if p[5] > 0.0:
        nonces = personal(nonces, carray(pointer(j[Job.CLIENT]), (3,), np.uint32), nonces_of(j, 2 * AREA))
    step, steps, most = fill(p[0]), fill(p[1]), fill(0.0)
    long = b.wide and b.n >= LONG
    if long:
        for k in range(WIDTH):
            store(b.marks, k, fill(-HUGE))
    for start in range(0, b.m, prf.CHUNK):
        count = min(b.m - start, prf.CHUNK)
        if b.wide:
            along(key, nonces, start, count, raw)
        else:
            across(key, nonces, start // prf.UNIT, count, raw)
        whole, i = min(count, b.m - 1 - start), 0
        while i + 4 <= whole:
            u0, v0 = _add(b.w, start + i, prf.draw(raw, i, table, bits, offset), step, steps)
            u1, v1 = _add(b.w, start + i + 1, prf.draw(raw, i + 1, table, bits, offset), step, steps)
            u2, v2 = _add(b.w, start + i + 2, prf.draw(raw, i + 2, table, bits, offset), step, steps)
            u3, v3 = _add(b.w, start + i + 3, prf.draw(raw, i + 3, table, bits, offset), step, steps)
            most = larger(larger(most, larger(u0, u1)), larger(u2, u3))
            if long:
                part = i // 4
                store(b.marks, part, larger(larger(load(b.marks, part), larger(v0, v1)), larger(v2, v3)))
            i += 4
        while i < count:
            units, _ = _add(b.w, start + i, prf.draw(raw, i, table, bits, offset), step, steps)
            units = where(b.last, units, most) if i == whole else units
            most, i = larger(most, units), i + 1
    most = across_max(most) if b.wide else most
    report(j, where(most > MOST_STEPS, fill(float(layout.OUT_OF_RANGE)), fill(0.0)))
    if long and p[1] <= FIXED_POINT and (lane(most, 0) + float(1 << bits)) * p[0] <= MOST_SCORE:
        j[Job.LEFT] = layout.SURVEYED
    forget_top(j)


@device
def _add(w: Any, i: int, drawn: Any, step: Any, steps: Any) -> tuple[Any, Any]:
    """Adds noise to a vector of scores; returns how many steps they were, regardless of sign, and what they are now."""
    units = rint(load(w, i) * steps)
    noisy = (units + drawn) * step
    store(w, i, noisy)
    return fabs(units), noisy


@device
def personal(nonces: Any, client: Any, out: Any) -> Any:
    """The nonces of rows, shifted by the client's tag, which is as secret and as random as they are."""
    for k in range(WIDTH):
        for i in range(3):
            out[WIDTH * i + k] = np.uint32(nonces[WIDTH * i + k] + client[i])
        out[3 * WIDTH + k] = nonces[3 * WIDTH + k]
    return out
