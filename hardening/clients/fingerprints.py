"""Near duplicates among questions of all clients, in an index that never grows.

Searching for adversarial inputs, and for a class boundary, takes many questions that hardly differ. What is quantised,
cut into windows and hashed of a question survives small changes; most of it is found again in an earlier one. The very
same question is none: many ask about the same thing, and who repeats himself is known by the question's key.
"""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hardening import kernels
from hardening.errors import InputError

#: Hashes that stand for a question, and the share of them that a near duplicate has in common with an earlier one.
HASHES, SHARE = 50, 0.5
#: The step of quantisation as a part of the range of ordinary inputs: 50 of 255 levels of a picture.
STEP = 50 / 255


class Found(NamedTuple):
    """What was found of each row: whether it is a near duplicate of another, and the client that asked that, or -1."""

    duplicate: NDArray[np.uint8]
    owner: NDArray[np.int64]


class Fingerprints:
    """An index of the fingerprints of questions.

    Args:
        secret: whoever does not know it cannot tell which changes of a question escape.
        span: range of ordinary inputs, largest less smallest.
        window: entries that are hashed together: 20 or more for pictures, 1 for a few unrelated columns.
        size: hashes that are remembered, rounded up to a power of two, of eight bytes each.
    """

    def __init__(self, secret: bytes, span: float, window: int = 20, size: int = 1 << 18) -> None:
        from hardening.kernels import fingerprint

        if not (span > 0 and np.isfinite(span)) or window < 1 or size < 1:
            raise ValueError("span must be finite and above 0, window and size at least 1")
        stream = hashlib.shake_256(secret + b"fingerprints").digest(24)
        self.window, self._step = window, span * STEP
        self._offset = int.from_bytes(stream[16:], "little") / 2**64 * self._step
        self._salt = np.frombuffer(stream[:16], "<u8").copy()
        self._salt[0] |= np.uint64(1)
        buckets = 1 << max(0, (size - 1).bit_length() - (fingerprint.WAYS - 1).bit_length())
        self._index = np.empty((buckets, fingerprint.WAYS), np.uint64)
        self._index.fill(0)
        self._owners = np.full(max(1, self._index.size // HASHES), -1, np.int64)
        self._exact = np.zeros(len(self._owners), np.int64)
        self._clock = np.ones(1, np.uint32)
        self._hashes, self._tally = np.zeros(HASHES, np.uint32), np.zeros((fingerprint.TALLY, 2), np.uint32)
        self._look = kernels.entry(
            fingerprint.look, "float64[:, ::1]", "int64", "float64", "float64", "uint64[::1]", "uint64[:, ::1]",
            "uint32[::1]", "uint32[::1]", "uint32[:, ::1]", "int64[::1]", "uint32[::1]", "int64[::1]",
        )  # fmt: skip

    @property
    def nbytes(self) -> int:
        """What the index takes, however many questions there were."""
        return self._index.nbytes + self._owners.nbytes + self._exact.nbytes

    def seen(self, inputs: NDArray[Any], slot: int = -1) -> Found:
        """Look rows up ``(n, ...)``, numbers of any kind, and remember them as asked by the client at `slot`.

        One at a time: callers hold the interpreter's lock, or one of their own. Raises InputError for what is not
        numbers.
        """
        if inputs.dtype.kind not in "fiub" or inputs.ndim < 1:
            raise InputError(f"near duplicates are looked for among rows of numbers, not {inputs.dtype} {inputs.shape}")
        rows = np.ascontiguousarray(inputs.reshape(len(inputs), -1), np.float64) if inputs.size else np.zeros((0, 1))
        matches, parts, number = np.zeros(len(rows), np.int64), np.zeros(len(rows), np.int64), np.zeros(len(rows), "u4")
        first = int(self._clock[0])
        window = min(self.window, rows.shape[1])
        self._look(
            rows, window, self._step, self._offset, self._salt, self._index, self._clock, self._hashes, self._tally,
            matches, number, parts,
        )  # fmt: skip
        nearly = (matches >= np.maximum(SHARE * parts, 1)) & (parts > 0)
        size = len(self._owners)
        owner = np.full(len(rows), -1, np.int64)
        for i, row in enumerate(rows):
            now, exact = (first + i) % 2**32, hash(row.tobytes())
            earlier = int(number[i])
            if nearly[i] and (now - earlier) % 2**32 < size:
                owner[i] = self._owners[earlier % size]
                if self._exact[earlier % size] == exact:  # many ask about the same thing; that is no search
                    nearly[i], owner[i] = False, -1
            self._owners[now % size], self._exact[now % size] = slot, exact
        return Found(nearly.astype(np.uint8), owner)
