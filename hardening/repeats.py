"""What each client was answered lately, so that the same answer to the same question is charged once."""

from __future__ import annotations

import functools
import hashlib
import secrets
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Rows remembered for each client. Larger batches are charged whole: they would push out what they are looked up in.
MOST = 16
#: Bytes of an entry: the nonce, what else tells questions apart, and a digest of the answer.
_NONCE, _TERMS, _ANSWER = 12, 4, 8
_QUESTION, _SIZE = _NONCE + _TERMS, _NONCE + _TERMS + _ANSWER


class Repeats:
    """Questions and digests of their answers by account, the oldest forgotten first: 384 bytes a client.

    A row counts as repeated if the question (by the 96 bits that key its noise), the tier that answers, every byte
    released about it and those who paid for it are the same: then it says nothing that they do not know. That rests on
    answers that follow from their questions. Of a model that draws, or whose rows look at each other, they do not, and
    asking often enough would average for nothing: whoever is given two answers to one question is credited no more.
    Forgetting only charges a repeat anew.
    """

    def __init__(self) -> None:
        self._lately: dict[int, bytes | None] = {}
        self._secret = secrets.token_bytes(16)  # nobody can look for answers that hash alike

    def count(
        self, slot: int, payers: tuple[Any, ...], tier: str, nonces: NDArray[np.uint32], outputs: Mapping[str, Any]
    ) -> int:
        """How many rows of an answer just released were released before; all of them are remembered."""
        rows, values = len(nonces), tuple(outputs.values())
        known = self._lately.get(slot, b"")
        if known is None or rows > MOST or not all([_by_row(value, rows) for value in values]):
            return 0
        repeated, terms = 0, _terms(payers, tier, tuple(outputs))
        for i in range(rows):
            told = [value.tobytes() if rows == 1 else value[i].tobytes() for value in values]
            question = nonces[i].tobytes() + terms
            answer = hash(b"".join([self._secret, *told])).to_bytes(_ANSWER, "little", signed=True)
            at = known.find(question)
            while at % _SIZE and at > 0:  # not where an entry begins
                at = known.find(question, at + 1)
            if at >= 0:
                if known[at + _QUESTION : at + _SIZE] != answer:
                    self._lately[slot] = None
                    return 0
                repeated += 1
                known = known[:at] + known[at + _SIZE :]
            known += question + answer
        self._lately[slot] = known[-MOST * _SIZE :]
        return repeated


def _by_row(value: Any, rows: int) -> bool:
    """Whether all rows are of one size, so that each bears the same part of the cost; one row bears all of it."""
    if type(value) is not np.ndarray or value.dtype.kind not in "fiub":
        return False
    return rows == 1 or (value.ndim > 0 and len(value) == rows)


@functools.lru_cache(maxsize=4096)
def _terms(payers: tuple[Any, ...], tier: str, names: tuple[str, ...]) -> bytes:
    return hashlib.blake2b(repr((payers, tier, names)).encode(), digest_size=_TERMS).digest()
