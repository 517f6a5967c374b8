"""ChaCha20 (RFC 8439) for many blocks side by side, and the integers of a noise table drawn from its keystream.

The blocks of one call are two of each of eight rows, each with a nonce of its own, or sixteen or thirty-two consecutive
ones of one row; the stream of a row is the same in all. Thirty-two take a quarter longer than sixteen: each step of the
cipher waits for the one before, so the second half fills the gaps of the first.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hardening.kernels.lanes import apart, device
from hardening.kernels.memory import gather_longs, store_stream
from hardening.kernels.words import (
    add_to_longs,
    add_words,
    below,
    low_bits,
    numbers,
    repeat,
    shift_right,
    where_longs,
    xor_rotate_7,
    xor_rotate_8,
    xor_rotate_12,
    xor_rotate_16,
)

U = np.uint32
_C0, _C1, _C2, _C3 = U(0x61707865), U(0x3320646E), U(0x79622D32), U(0x6B206574)
#: 64-bit words in one block.
BLOCK = 8


@device
def _quarter(a: Any, b: Any, c: Any, d: Any) -> Any:
    a = add_words(a, b)
    d = xor_rotate_16(d, a)
    c = add_words(c, d)
    b = xor_rotate_12(b, c)
    a = add_words(a, b)
    d = xor_rotate_8(d, a)
    c = add_words(c, d)
    b = xor_rotate_7(b, c)
    return a, b, c, d


@apart
def blocks(key: Any, counter: Any, n0: Any, n1: Any, n2: Any, out: Any) -> None:
    """As many blocks as `counter` has lanes.

    Args:
        key: uint32 ``(8,)``, the same for all.
        counter, n0, n1, n2: words, one per lane.
        out: uint64, eight for each lane; element ``64 * h + 8 * j + l`` becomes 64-bit word j of the block in lane
            8 h + l.
    """
    x = counter
    c0, c1, c2, c3 = repeat(x, _C0), repeat(x, _C1), repeat(x, _C2), repeat(x, _C3)
    k0, k1, k2, k3 = repeat(x, key[0]), repeat(x, key[1]), repeat(x, key[2]), repeat(x, key[3])
    k4, k5, k6, k7 = repeat(x, key[4]), repeat(x, key[5]), repeat(x, key[6]), repeat(x, key[7])
    x0, x1, x2, x3, x4, x5, x6, x7 = c0, c1, c2, c3, k0, k1, k2, k3
    x8, x9, x10, x11, x12, x13, x14, x15 = k4, k5, k6, k7, counter, n0, n1, n2
    for _ in range(10):
        x0, x4, x8, x12 = _quarter(x0, x4, x8, x12)
        x1, x5, x9, x13 = _quarter(x1, x5, x9, x13)
        x2, x6, x10, x14 = _quarter(x2, x6, x10, x14)
        x3, x7, x11, x15 = _quarter(x3, x7, x11, x15)
        x0, x5, x10, x15 = _quarter(x0, x5, x10, x15)
        x1, x6, x11, x12 = _quarter(x1, x6, x11, x12)
        x2, x7, x8, x13 = _quarter(x2, x7, x8, x13)
        x3, x4, x9, x14 = _quarter(x3, x4, x9, x14)
    store_stream(out, 0, add_words(x0, c0), add_words(x1, c1))
    store_stream(out, 1, add_words(x2, c2), add_words(x3, c3))
    store_stream(out, 2, add_words(x4, k0), add_words(x5, k1))
    store_stream(out, 3, add_words(x6, k2), add_words(x7, k3))
    store_stream(out, 4, add_words(x8, k4), add_words(x9, k5))
    store_stream(out, 5, add_words(x10, k6), add_words(x11, k7))
    store_stream(out, 6, add_words(x12, counter), add_words(x13, n0))
    store_stream(out, 7, add_words(x14, n1), add_words(x15, n2))


@device
def draw(raw: Any, table: Any, bits: int, offset: int) -> Any:
    """Eight integers by the alias method from eight 64-bit words, as floats.

    Constant work: nothing branches on what is drawn. `table` is uint64 ``(2**bits,)``, see `noise.packed`.
    """
    slot = shift_right(raw, 64 - bits)
    entry = gather_longs(table, slot)
    keep = below(low_bits(raw, 64 - bits), shift_right(entry, bits))
    drawn = where_longs(keep, slot, low_bits(entry, bits))
    return numbers(add_to_longs(drawn, -offset))
