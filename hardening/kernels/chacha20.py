"""ChaCha20 (RFC 8439) for many blocks side by side; a block is a unit of `prf`.

Thirty-two take a quarter longer than sixteen: each step of the cipher waits for the one before, so the second half
fills the gaps of the first.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hardening.kernels.lanes import WIDTH, apart, device
from hardening.kernels.memory import load_four_times, load_twice, store_stream, transpose
from hardening.kernels.words import (
    add_words,
    count_four_times,
    count_from,
    count_on_from,
    count_twice,
    repeat,
    xor_rotate_7,
    xor_rotate_8,
    xor_rotate_12,
    xor_rotate_16,
)

U = np.uint32
_C0, _C1, _C2, _C3 = U(0x61707865), U(0x3320646E), U(0x79622D32), U(0x6B206574)
#: 32-bit words of key material.
KEY = 8


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
def along(key: Any, nonces: Any, unit: int, vectors: int, out: Any) -> None:
    """The first row's stream in order; see `prf`."""
    n0, n1, n2, first = nonces[0], nonces[WIDTH], nonces[2 * WIDTH], nonces[3 * WIDTH]
    if vectors > 2 * WIDTH:
        more = count_on_from(np.uint32(first + unit))
        blocks(key, more, repeat(more, n0), repeat(more, n1), repeat(more, n2), out)
    else:
        few = count_from(np.uint32(first + unit))
        blocks(key, few, repeat(few, n0), repeat(few, n1), repeat(few, n2), out)
    for group in range((vectors + WIDTH - 1) // WIDTH):
        transpose(out, group)


@device
def across(key: Any, nonces: Any, unit: int, vectors: int, out: Any) -> None:
    """The streams of eight rows side by side; see `prf`."""
    if vectors > 2 * WIDTH:
        more = add_words(load_four_times(nonces, 3), count_four_times(np.uint32(unit)))
        n0, n1, n2 = load_four_times(nonces, 0), load_four_times(nonces, 1), load_four_times(nonces, 2)
        blocks(key, more, n0, n1, n2, out)
    else:
        few = add_words(load_twice(nonces, 3), count_twice(np.uint32(unit)))
        blocks(key, few, load_twice(nonces, 0), load_twice(nonces, 1), load_twice(nonces, 2), out)
