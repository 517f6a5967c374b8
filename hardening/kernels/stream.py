"""The keystream of a block's rows, in the order of their classes: what labels are drawn from.

There is one function for each cipher; instructions are given the one they draw from.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray

from hardening.kernels import prf
from hardening.kernels.job import stream_of
from hardening.kernels.lanes import WIDTH, device, pointer
from hardening.kernels.layout import Job
from hardening.kernels.memory import load_words, transpose
from hardening.kernels.words import add_words, count_from, count_twice, repeat

#: Vectors of eight words that are made at a time, at most.
CHUNK = 2 * WIDTH


@device
def chacha20(j: Any, wide: bool, nonces: Any, start: int) -> Any:
    """Words of each row from its vector `start` on, a multiple of `CHUNK`; `CHUNK` vectors of them, see `word_of`.

    `nonces` holds three words and a first counter for each lane, word by word; a wide block has one row, lane 0.
    """
    raw, key = stream_of(j), carray(pointer(j[Job.SECRET]), (8,), np.uint32)
    if wide:
        counter = count_from(np.uint32(nonces[3 * WIDTH] + start))
        n0, n1, n2 = repeat(counter, nonces[0]), repeat(counter, nonces[WIDTH]), repeat(counter, nonces[2 * WIDTH])
        prf.blocks(key, counter, n0, n1, n2, raw)
        for group in range(2):
            transpose(raw, group)  # a block's words are wanted side by side
    else:
        counter = add_words(load_words(nonces, 3), count_twice(np.uint32(start // prf.BLOCK)))
        prf.blocks(key, counter, load_words(nonces, 0), load_words(nonces, 1), load_words(nonces, 2), raw)
    return raw


@device
def word_of(raw: Any, wide: bool, k: int, i: int) -> Any:
    """Word i, counted from the first that was made, of the row in lane k."""
    return raw[i] if wide else raw[WIDTH * i + k]
