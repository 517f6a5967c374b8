"""What each client was answered lately, so that the same answer to the same question is charged once."""

from __future__ import annotations

import secrets
import struct
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Rows remembered for each client. Larger batches are charged whole: they would push out what they are looked up in.
MOST = 16
#: An entry: the nonce, what else tells questions apart, and a digest of the answer; the first two are the question.
_ENTRY = struct.Struct("<12sIq")
_QUESTION, _SIZE = 16, _ENTRY.size


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
        self,
        slot: int,
        payers: Hashable,
        tier: str,
        nonces: NDArray[np.uint32],
        outputs: Mapping[str, NDArray[Any]],
    ) -> int:
        """How many rows of an answer just released were released before; all of them are remembered.

        Each of `outputs` has as many rows as `nonces`, or there is but one.
        """
        rows, known = len(nonces), self._lately.get(slot, b"")
        if known is None or rows > MOST:
            return 0
        repeated, terms = 0, hash((payers, tier, *outputs)) & 0xFFFFFFFF
        for i in range(rows):
            told = self._secret
            for value in outputs.values():
                told += (value if rows == 1 else value[i]).tobytes()
            entry = _ENTRY.pack((nonces if rows == 1 else nonces[i]).tobytes(), terms, hash(told))
            question = entry[:_QUESTION]
            at = known.find(question)
            while at % _SIZE and at > 0:  # not where an entry begins
                at = known.find(question, at + 1)
            if at >= 0:
                if known[at : at + _SIZE] != entry:
                    self._lately[slot] = None
                    return 0
                repeated += 1
                known = known[:at] + known[at + _SIZE :]
            known += entry
        self._lately[slot] = known[-MOST * _SIZE :]
        return repeated
