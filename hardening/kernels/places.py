"""An index by open addressing: from 64-bit keys to places in a table, in memory that never grows."""

from __future__ import annotations

from typing import Any

import numpy as np


def find(index: Any, key: int, after: int) -> Any:
    """Where `key` is in an index, or would be.

    Args:
        index: uint64 ``(size,)``, a power of two of entries; each holds the upper half of a key and, in its lower half,
            one more than a place, or is 0. Some entry must be 0.
        key: 64 bits, well mixed.
        after: -1, or the entry that was found but belongs to another key with the same upper half.

    Returns:
        the entry, or ``-1 - entry`` for the empty one where `key` would go (linear probing).
    """
    last = len(index) - 1
    word = np.uint64(key)
    at = np.int64(word & np.uint64(last)) if after < 0 else (after + 1) & last
    upper = word >> np.uint64(32)
    while index[at] != np.uint64(0):
        if index[at] >> np.uint64(32) == upper:
            return at
        at = (at + 1) & last
    return -1 - at
