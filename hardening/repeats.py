"""What each client was answered lately, so that the same answer to the same question is charged once."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Rows remembered for each client. Larger batches are charged whole: they would push out what they are looked up in.
MOST = 16
_SIZE = 12


class Repeats:
    """Digests by account, the oldest forgotten first: 192 bytes a client. Forgetting only charges a repeat anew.

    A row counts as repeated if the question (by the 96 bits that key its noise), every byte released about it and those
    who paid for it are the same: then it says nothing that they do not know.
    """

    def __init__(self) -> None:
        self._lately: dict[int, bytes] = {}

    def count(self, slot: int, payers: tuple[Any, ...], nonces: NDArray[np.uint32], outputs: Mapping[str, Any]) -> int:
        """How many rows of an answer just released were released before; all of them are remembered."""
        rows, values = len(nonces), tuple(outputs.values())
        if rows > MOST or not all([_by_row(value, rows) for value in values]):
            return 0
        known, repeated = self._lately.get(slot, b""), 0
        prefix = _prefix(payers, tuple(outputs))
        for i in range(rows):
            told = [value.tobytes() if rows == 1 else value[i].tobytes() for value in values]
            parts = [prefix, nonces[i].tobytes(), *told]
            digest = hashlib.blake2b(b"".join(parts), digest_size=_SIZE).digest()
            at = known.find(digest)
            while at % _SIZE and at > 0:  # not where a digest begins
                at = known.find(digest, at + 1)
            if at >= 0:
                repeated += 1
                known = known[:at] + known[at + _SIZE :]
            known += digest
        self._lately[slot] = known[-MOST * _SIZE :]
        return repeated


def _by_row(value: Any, rows: int) -> bool:
    """Whether all rows are of one size, so that each bears the same part of the cost; one row bears all of it."""
    if type(value) is not np.ndarray or value.dtype.kind not in "fiub":
        return False
    return rows == 1 or (value.ndim > 0 and len(value) == rows)


@functools.lru_cache(maxsize=4096)
def _prefix(payers: tuple[Any, ...], names: tuple[str, ...]) -> bytes:
    return hashlib.blake2b(repr((payers, names)).encode(), digest_size=16).digest()
