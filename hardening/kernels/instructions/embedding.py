"""Embeddings: rungs of noise by coverage, and a rotation of the client's own."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray

from hardening.kernels import aes, chacha20, layout, prf
from hardening.kernels.blocks import Block
from hardening.kernels.job import (
    AREA,
    block_of,
    fields,
    forget_top,
    nonces_of,
    params_of,
    put_row,
    stream_of,
    take_row,
)
from hardening.kernels.lanes import WIDTH, device, outer, pointer
from hardening.kernels.layout import Job
from hardening.kernels.memory import load, store

#: Each rung draws from a stretch of the row's keystream of its own, this many blocks long.
STRETCH = 24


def to_rung(job: int) -> None:
    """Scales rows up so that noise of the top rung is noise of the client's; DATA: cells from which each rung holds.

    Keys what is drawn next on the question and the rung. Without noise, sets the rows aside.
    """
    j = fields(job)
    b, rung = block_of(j), _rung(j)
    question, nonces = nonces_of(j, 0), nonces_of(j, AREA)
    for k in range(AREA):
        nonces[k] = question[k]
    for k in range(3 * WIDTH, AREA):
        nonces[k] = np.uint32(nonces[k] + np.uint32(rung << STRETCH))
    if rung == 0:
        aside = carray(pointer(j[Job.SCRATCH]), (WIDTH * b.m,), np.float64)
        for k in range(WIDTH * b.m):
            aside[k] = b.w[k]
    else:
        _scale(b, 2.0 ** (layout.RUNGS - rung))


def from_rung(job: int) -> None:
    """Undoes `to_rung`, but for the noise that came between."""
    j = fields(job)
    b, rung = block_of(j), _rung(j)
    if rung == 0:
        aside = carray(pointer(j[Job.SCRATCH]), (WIDTH * b.m,), np.float64)
        for k in range(WIDTH * b.m):
            b.w[k] = aside[k]
    else:
        _scale(b, 2.0 ** (rung - layout.RUNGS))
    forget_top(j)


@device
def _rung(j: Any) -> int:
    thresholds, rung = carray(pointer(j[Job.DATA]), (layout.RUNGS,), np.int64), 0
    for k in range(layout.RUNGS):
        rung += int(thresholds[k] <= j[Job.COVERAGE])
    return rung


@device
def _scale(b: Block, factor: float) -> None:
    for i in range(b.m):
        store(b.w, i, load(b.w, i) * factor)


def rotate_aes_128_ctr(job: int) -> None:
    """`_rotate` by AES-128 in counter mode."""
    _rotate(job, carray(pointer(fields(job)[Job.SECRET]), (aes.KEY,), np.uint64), aes.along)


def rotate_chacha20(job: int) -> None:
    """`_rotate` by ChaCha20."""
    _rotate(job, carray(pointer(fields(job)[Job.SECRET]), (chacha20.KEY,), np.uint32), chacha20.along)


@outer
def _rotate(job: int, key: Any, along: Any) -> None:
    """p0 rounds of signs, Walsh-Hadamard transforms and a permutation, from the keystream of the client's tag."""
    j = fields(job)
    b, rounds, n = block_of(j), int(params_of(j)[0]), j[Job.WIDTH]
    scratch = carray(pointer(j[Job.SCRATCH]), (5 * n,), np.float64)
    x, y, signs, order = scratch, scratch[n:], scratch[2 * n :], scratch[4 * n :]
    size = 1
    while 2 * size <= n:
        size *= 2
    for r in range(rounds):
        _draw_round(j, n, r, key, along, signs, order)
        for k in range(1 if b.wide else WIDTH):
            take_row(b, b.w, k, x)
            for part in range(2):
                for i in range(n):
                    x[i] *= signs[part * n + i]
                _walsh_hadamard(x[part * (n - size) :], size)
            for i in range(n):
                y[i] = x[int(order[i])]
            put_row(b, b.w, k, y)
    forget_top(j)


@outer
def _draw_round(j: Any, n: int, r: int, key: Any, along: Any, signs: Any, order: Any) -> None:
    """From n words 2 n signs, by their lowest bits, and a permutation (Fisher & Yates, from the inside out)."""
    tag, nonce = carray(pointer(j[Job.CLIENT]), (3,), np.uint32), nonces_of(j, 2 * AREA)
    raw, units, most = stream_of(j), (n + prf.UNIT - 1) // prf.UNIT, prf.CHUNK * prf.UNIT
    for k in range(3):
        nonce[WIDTH * k] = tag[k]
    nonce[3 * WIDTH] = np.uint32(0)
    for start in range(0, n, most):
        vectors = min(prf.CHUNK, units - start // prf.UNIT)
        along(key, nonce, r * units + start // prf.UNIT, vectors, raw)
        for i in range(start, min(n, start + most)):
            word = raw[i - start]
            signs[i] = -1.0 if word & np.uint64(1) else 1.0
            signs[n + i] = -1.0 if word & np.uint64(2) else 1.0
            at = np.int64(((word >> np.uint64(32)) * np.uint64(i + 1)) >> np.uint64(32))
            order[i] = order[at]
            order[at] = float(i)


@device
def _walsh_hadamard(x: Any, size: int) -> None:
    half = 1
    while half < size:
        for start in range(0, size, 2 * half):
            for i in range(start, start + half):
                a, b = x[i], x[i + half]
                x[i], x[i + half] = a + b, a - b
        half *= 2
    factor = 1.0 / np.sqrt(float(size))
    for i in range(size):
        x[i] *= factor
