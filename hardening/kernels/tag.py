"""The nonce of a question: a keyed universal hash of one canonical input row.

NH (Black et al. 1999, "UMAC"; 32-bit words) in four Toeplitz-shifted passes, with a key as long as the row, takes a row
to 256 bits; two rows of the same layout collide with probability at most 2**-128. Two strongly universal sums (Carter &
Wegman 1979, in the multiply-shift form of Dietzfelbinger 1996) take these to 96 bits, with collisions at most 2**-96
more. The nonce is never released; it only selects a keystream.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import carray

from hardening.kernels.lanes import WIDTH, device, pointer
from hardening.kernels.memory import load_longs, store
from hardening.kernels.words import (
    fill_longs,
    high_half,
    int128,
    multiply_add_wide,
    multiply_halves,
    one_of_doubles,
    one_of_halves,
    one_of_singles,
    total_of,
)

#: Words of the two final sums: for each an initial value and four factors of 128 bits.
FINAL = 20
#: Words by which the key is longer than the row, and words that a row is a multiple of.
EXTRA, STRIDE = 3, WIDTH
#: How an input's bytes are read: as they are, or as floats of one zero and one NaN.
RAW, HALF, SINGLE, DOUBLE = 0, 2, 4, 8
#: Columns of the table of inputs: address, bytes per row, bytes from one row to the next, and one of the above.
INPUT = 4


class Sums(NamedTuple):
    """What the four passes have come to, in eight lanes each."""

    s0: Any
    s1: Any
    s2: Any
    s3: Any


@device
def _nothing() -> Sums:
    return Sums(fill_longs(0), fill_longs(0), fill_longs(0), fill_longs(0))


@device
def _absorb(sums: Sums, x: Any, key: Any, first: int) -> Sums:
    """Eight words more, the row's `first` and those that follow."""
    place = FINAL + first
    return Sums(
        multiply_halves(sums.s0, x, load_longs(key[place:], 0)),
        multiply_halves(sums.s1, x, load_longs(key[place + 1 :], 0)),
        multiply_halves(sums.s2, x, load_longs(key[place + 2 :], 0)),
        multiply_halves(sums.s3, x, load_longs(key[place + 3 :], 0)),
    )


@device
def _finish(sums: Sums, key: Any, nonce: Any) -> None:
    v0, v1, v2, v3 = total_of(sums.s0), total_of(sums.s1), total_of(sums.s2), total_of(sums.s3)
    first = int128(key[0], key[1])
    first = multiply_add_wide(first, int128(key[2], key[3]), v0)
    first = multiply_add_wide(first, int128(key[4], key[5]), v1)
    first = multiply_add_wide(first, int128(key[6], key[7]), v2)
    first = multiply_add_wide(first, int128(key[8], key[9]), v3)
    second = int128(key[10], key[11])
    second = multiply_add_wide(second, int128(key[12], key[13]), v0)
    second = multiply_add_wide(second, int128(key[14], key[15]), v1)
    second = multiply_add_wide(second, int128(key[16], key[17]), v2)
    second = multiply_add_wide(second, int128(key[18], key[19]), v3)
    head = high_half(first)
    nonce[0] = np.uint32(head & np.uint64(0xFFFFFFFF))
    nonce[1] = np.uint32(head >> np.uint64(32))
    nonce[2] = np.uint32(high_half(second) >> np.uint64(32))


@device
def hash_words(row: Any, count: int, key: Any, nonce: Any) -> None:
    """Nonce uint32 ``(3,)`` of `count` words, a multiple of `STRIDE`; `key` is uint64 ``(FINAL + count + EXTRA,)``."""
    sums = _nothing()
    for i in range(count // STRIDE):
        sums = _absorb(sums, load_longs(row, i), key, i * STRIDE)
    _finish(sums, key, nonce)


@device
def _canonical(x: Any, kind: int) -> Any:
    """Equal numbers get equal bits."""
    if kind == SINGLE:
        return one_of_singles(x)
    if kind == DOUBLE:
        return one_of_doubles(x)
    if kind == HALF:
        return one_of_halves(x)
    return x


@device
def _rest(address: int, count: int, place: int) -> Any:
    """The last `count` bytes of an input, fewer than a vector, with zeros behind them; `place` is scratch."""
    words = carray(pointer(place), (STRIDE,), np.uint64)
    store(words, 0, fill_longs(0))
    source, target = carray(pointer(address), (count,), np.uint8), carray(pointer(place), (count,), np.uint8)
    for i in range(count):
        target[i] = source[i]
    return load_longs(words, 0)


@device
def hash_rows(inputs: Any, rows: int, key: Any, place: int, nonces: Any) -> None:
    """The nonce of every row, whose words are those of its inputs, each padded to a multiple of `STRIDE`.

    Args:
        inputs: int64 ``(inputs, INPUT)``; an input that all rows share has a stride of 0.
        key: uint64, see `hash_words`.
        place: address of scratch for `STRIDE` 64-bit words.
        nonces: uint32 ``(rows, 3)``, filled in.
    """
    for r in range(rows):
        sums, first = _nothing(), np.int64(0)
        for i in range(len(inputs)):
            size, kind = inputs[i, 1], inputs[i, 3]
            address, whole = inputs[i, 0] + r * inputs[i, 2], size // (8 * STRIDE)
            words = carray(pointer(address), (whole * STRIDE,), np.uint64)
            for k in range(whole):
                sums = _absorb(sums, _canonical(load_longs(words, k), kind), key, first)
                first += STRIDE
            done = 8 * STRIDE * whole
            if done < size:
                sums = _absorb(sums, _canonical(_rest(address + done, size - done, place), kind), key, first)
                first += STRIDE
        _finish(sums, key, nonces[r])
