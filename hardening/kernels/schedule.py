"""Key schedule of AES-128 (FIPS 197): done once for a key, in Python, and without a branch or a look-up by a secret."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

#: Rounds, and so round keys but one.
ROUNDS = 10
#: Bytes of a secret.
SECRET = 16


def _times(x: int, y: int) -> int:
    """Product in the field of FIPS 197, section 4.2, without a branch or a table."""
    product = 0
    for bit in range(8):
        product ^= -(y >> bit & 1) & x
        x = x << 1 ^ -(x >> 7) & 0x11B
    return product


def substitute(x: int) -> int:
    """The S-box of FIPS 197, section 5.1.1: x to the power 254, its bits mixed."""
    inverse, power = 1, x
    for _ in range(7):
        power = _times(power, power)
        inverse = _times(inverse, power)
    twice = inverse * 0x101
    return (twice ^ twice >> 4 ^ twice >> 5 ^ twice >> 6 ^ twice >> 7) & 0xFF ^ 0x63


def expand(secret: bytes) -> NDArray[np.uint64]:
    """Round keys, FIPS 197 section 5.2: two words for each of eleven, little-endian as they lie in memory.

    Raises ValueError if `secret` is not of 16 bytes.
    """
    if len(secret) != SECRET:
        raise ValueError(f"secret: AES-128 takes {SECRET} bytes, not {len(secret)}")
    words, constant = [secret[i : i + 4] for i in range(0, SECRET, 4)], 1
    for i in range(4, 4 * (ROUNDS + 1)):
        before = words[-1]
        if i % 4 == 0:
            before = bytes(substitute(x) for x in before[1:] + before[:1])
            before = bytes([before[0] ^ constant]) + before[1:]
            constant = _times(constant, 2)
        words.append(bytes(x ^ y for x, y in zip(words[-4], before, strict=True)))
    return np.frombuffer(b"".join(words), "<u8").astype(np.uint64)
