"""The nonce of a question: a keyed universal hash of one canonical input row.

NH (Black et al. 1999, "UMAC"; 64-bit words as in Krovetz 2007, "VMAC") in two Toeplitz-shifted passes, with a key as
long as the row, takes a row to 256 bits; two rows of the same layout collide with probability at most 2**-128. Two
strongly universal sums (Carter & Wegman 1979, in the multiply-shift form of Dietzfelbinger 1996) take these to the 96
bits of a ChaCha20 nonce, with collisions at most 2**-96 more. The nonce is never released; it only selects a keystream.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray

from hardening.kernels.lanes import device, pointer
from hardening.kernels.words import high_half, int128, low_half, multiply_add, multiply_add_wide

#: Words of the two final sums: for each an initial value and four factors of 128 bits.
FINAL = 20
#: Words by which the key is longer than the row.
EXTRA = 2
#: How an input's bytes are read: as they are, or as floats of one zero and one NaN.
RAW, HALF, SINGLE, DOUBLE = 0, 2, 4, 8
#: Columns of the table of inputs: address, bytes per row, bytes from one row to the next, one of the above, and the
#: words that a row takes when padded to 16 bytes.
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
    """Nonce uint32 ``(3,)`` of `count` words (even); `key` is uint64 ``(FINAL + count + EXTRA,)``."""
    a, b = int128(np.uint64(0), np.uint64(0)), int128(np.uint64(0), np.uint64(0))
    own = key[FINAL:]
    for pair in range(count >> 1):
        i = 2 * pair
        x, y = row[i], row[i + 1]
        a = multiply_add(a, x + own[i], y + own[i + 1])
        b = multiply_add(b, x + own[i + 2], y + own[i + 3])
    first = int128(key[0], key[1])
    first = multiply_add_wide(first, int128(key[2], key[3]), low_half(a))
    first = multiply_add_wide(first, int128(key[4], key[5]), high_half(a))
    first = multiply_add_wide(first, int128(key[6], key[7]), low_half(b))
    first = multiply_add_wide(first, int128(key[8], key[9]), high_half(b))
    second = int128(key[10], key[11])
    second = multiply_add_wide(second, int128(key[12], key[13]), low_half(a))
    second = multiply_add_wide(second, int128(key[14], key[15]), high_half(a))
    second = multiply_add_wide(second, int128(key[16], key[17]), low_half(b))
    second = multiply_add_wide(second, int128(key[18], key[19]), high_half(b))
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
        place, width: address of scratch for `width` 64-bit words, which is one row with every input padded to 16 bytes.
        nonces: uint32 ``(rows, 3)``, filled in.
    """
    row = carray(pointer(place), (width,), np.uint64)
    for r in range(rows):
        words = np.int64(0)
        for i in range(len(inputs)):
            end = words + inputs[i, 4]
            if end > words:
                row[end - 1] = np.uint64(0)
                row[end - 2] = np.uint64(0)
            _canonical(inputs[i, 0] + r * inputs[i, 2], inputs[i, 1], inputs[i, 3], place + 8 * words)
            words = end
        hash_words(row, words, key, nonces[r])
