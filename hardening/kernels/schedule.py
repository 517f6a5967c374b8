"""Key schedule of AES-128 (FIPS 197): done once for a key, in Python, and without a branch or a look-up by a secret."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

#: Rounds, and so round keys but one.
ROUNDS = 10
#: Bytes of a secret.
SECRET = 16


#: The lowest bit of each of four bytes that lie side by side, 16 bits apart.
_LOW = 0x0001_0001_0001_0001


def spread(octets: bytes) -> int:
    """Four bytes side by side, the first one lowest."""
    return int.from_bytes(b"".join(bytes((octet, 0)) for octet in octets), "little")


def together(fields: int) -> bytes:
    """What `spread` took apart."""
    return fields.to_bytes(8, "little")[::2]


def _times(x: int, y: int) -> int:
    """Products of four bytes each in the field of FIPS 197, section 4.2."""
    product = 0
    for bit in range(8):
        product ^= (y >> bit & _LOW) * 0xFF & x
        x <<= 1
        x ^= (x >> 8 & _LOW) * 0x11B
    return product


def substitute(x: int) -> int:
    """The S-box of FIPS 197, section 5.1.1, on four bytes: each to the power 254, its bits mixed."""
    inverse, power = _LOW, x
    for _ in range(7):
        power = _times(power, power)
        inverse = _times(inverse, power)
    twice = inverse * 0x101
    return (twice ^ twice >> 4 ^ twice >> 5 ^ twice >> 6 ^ twice >> 7) & 0xFF * _LOW ^ 0x63 * _LOW


def expand(secret: bytes) -> NDArray[np.uint64]:
    """Round keys, FIPS 197 section 5.2: two words for each of eleven, little-endian as they lie in memory.

    Raises ValueError if `secret` is not of 16 bytes.
    """
    if len(secret) != SECRET:
        raise ValueError(f"secret: AES-128 takes {SECRET} bytes, not {len(secret)}")
    words, constant = [spread(secret[i : i + 4]) for i in range(0, SECRET, 4)], 1
    for i in range(4, 4 * (ROUNDS + 1)):
        before = words[-1]
        if i % 4 == 0:
            before = substitute(before >> 16 | (before & 0xFF) << 48) ^ constant
            constant = _times(constant, 2)
        words.append(words[-4] ^ before)
    return np.frombuffer(b"".join(map(together, words)), "<u8").astype(np.uint64)
