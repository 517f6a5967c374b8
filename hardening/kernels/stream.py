"""The keystream of a block's rows, in the order of their classes: what labels are drawn from.

There is one function for each cipher; instructions are given the one they draw from. `CHUNK` vectors of a row's words
are made at most, from vector `start` on, a multiple of `CHUNK`; `nonces` are as in `prf`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray

from hardening.kernels import aes
from hardening.kernels import chacha20 as chacha
from hardening.kernels.job import stream_of
from hardening.kernels.lanes import WIDTH, device, pointer
from hardening.kernels.layout import Job
from hardening.kernels.prf import UNIT


@device
def aes_128_ctr(j: Any, wide: bool, nonces: Any, start: int, vectors: int) -> Any:
    """From AES-128 in counter mode; to be read by `word_of`."""
    raw, key = stream_of(j), carray(pointer(j[Job.SECRET]), (aes.KEY,), np.uint64)
    if wide:
        aes.along(key, nonces, start, vectors, raw)
    else:
        aes.across(key, nonces, start // UNIT, vectors, raw)
    return raw


@device
def chacha20(j: Any, wide: bool, nonces: Any, start: int, vectors: int) -> Any:
    """From ChaCha20; to be read by `word_of`."""
    raw, key = stream_of(j), carray(pointer(j[Job.SECRET]), (chacha.KEY,), np.uint32)
    if wide:
        chacha.along(key, nonces, start, vectors, raw)
    else:
        chacha.across(key, nonces, start // UNIT, vectors, raw)
    return raw


@device
def word_of(raw: Any, wide: bool, k: int, i: int) -> Any:
    """Word i, counted from the first that was made, of the row in lane k."""
    return raw[i] if wide else raw[WIDTH * i + k]
