"""The nonce of a question: a keyed universal hash of one canonical input row.

NH (Black et al. 1999, "UMAC"; 32-bit words) in four Toeplitz-shifted passes, with a key as long as the row, takes a row
to 256 bits; two rows of the same layout collide with probability at most 2**-128. Two strongly universal sums (Carter &
Wegman 1979, in the multiply-shift form of Dietzfelbinger 1996) take these to 96 bits, with collisions at most 2**-96
more. The nonce is never released; it only selects a keystream.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray

from hardening.kernels.lanes import WIDTH, device, pointer
from hardening.kernels.memory import load_longs
from hardening.kernels.words import fill_longs, high_half, int128, multiply_add_wide, multiply_halves, total_of

#: Words of the two final sums: for each an initial value and four factors of 128 bits.
FINAL = 20
#: Words by which the key is longer than the row, and words that a row is a multiple of.
EXTRA, STRIDE = 3, WIDTH
#: How an input's bytes are read: as they are, or as floats of one zero and one NaN.
RAW, HALF, SINGLE, DOUBLE = 0, 2, 4, 8
#: Columns of the table of inputs: address, bytes per row, bytes from one row to the next, one of the above, and the
#: words that a row takes.
INPUT = 5


@device
def _canonical(address: int, count: int, kind: int, out: int) -> None:
    """`count` bytes at `address`, copied to the address `out`; equal numbers get equal bytes."""
    if kind == SINGLE:
        source = carray(pointer(address), (count // 4,), np.uint32)
        target = carray(pointer(out), (count // 4,), np.uint32)
        for i in range(count // 4):
            v = source[i]
            size = v & np.uint32(0x7FFFFFFF)
            v = np.uint32(0) if size == 0 else v
            target[i] = np.uint32(0x7FC00000) if size > np.uint32(0x7F800000) else v
    elif kind == DOUBLE:
        wide = carray(pointer(address), (count // 8,), np.uint64)
        long = carray(pointer(out), (count // 8,), np.uint64)
        for i in range(count // 8):
            w = wide[i]
            length = w & np.uint64(0x7FFFFFFFFFFFFFFF)
            w = np.uint64(0) if length == np.uint64(0) else w
            long[i] = np.uint64(0x7FF8000000000000) if length > np.uint64(0x7FF0000000000000) else w
    elif kind == HALF:
        halves = carray(pointer(address), (count // 2,), np.uint16)
        short = carray(pointer(out), (count // 2,), np.uint16)
        for i in range(count // 2):
            h = halves[i]
            least = h & np.uint16(0x7FFF)
            h = np.uint16(0) if least == 0 else h
            short[i] = np.uint16(0x7E00) if least > np.uint16(0x7C00) else h
    else:
        plain = carray(pointer(address), (count,), np.uint8)
        octets = carray(pointer(out), (count,), np.uint8)
        for i in range(count):
            octets[i] = plain[i]


@device
def hash_words(row: Any, count: int, key: Any, nonce: Any) -> None:
    """Nonce uint32 ``(3,)`` of `count` words, a multiple of `STRIDE`; `key` is uint64 ``(FINAL + count + EXTRA,)``."""
    k0, k1, k2, k3 = key[FINAL:], key[FINAL + 1 :], key[FINAL + 2 :], key[FINAL + 3 :]
    s0, s1, s2, s3 = fill_longs(0), fill_longs(0), fill_longs(0), fill_longs(0)
    for i in range(count // WIDTH):
        x = load_longs(row, i)
        s0, s1 = multiply_halves(s0, x, load_longs(k0, i)), multiply_halves(s1, x, load_longs(k1, i))
        s2, s3 = multiply_halves(s2, x, load_longs(k2, i)), multiply_halves(s3, x, load_longs(k3, i))
    v0, v1, v2, v3 = total_of(s0), total_of(s1), total_of(s2), total_of(s3)
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
def hash_rows(inputs: Any, rows: int, key: Any, place: int, width: int, nonces: Any) -> None:
    """The nonce of every row.

    Args:
        inputs: int64 ``(inputs, INPUT)``; an input that all rows share has a stride of 0.
        key: uint64, see `hash_words`.
        place, width: address of scratch for `width` 64-bit words: one row, every input padded to whole words, and the
            row to a multiple of `STRIDE`.
        nonces: uint32 ``(rows, 3)``, filled in.
    """
    row = carray(pointer(place), (width,), np.uint64)
    for i in range(max(0, width - STRIDE), width):
        row[i] = np.uint64(0)
    for r in range(rows):
        words = np.int64(0)
        for i in range(len(inputs)):
            end = words + inputs[i, 4]
            if end > words:
                row[end - 1] = np.uint64(0)
            _canonical(inputs[i, 0] + r * inputs[i, 2], inputs[i, 1], inputs[i, 3], place + 8 * words)
            words = end
        hash_words(row, width, key, nonces[r])
