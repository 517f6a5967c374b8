"""Near duplicates among questions of all clients, in an index that never grows.

Searching for adversarial inputs, and for a class boundary, takes many questions that hardly differ. What is quantised,
cut into windows and hashed of a question survives small changes; most of it is found again in an earlier one. The very
same question is none: many ask about the same thing, and who repeats himself is known by the question's key.
"""

from __future__ import annotations

import functools
import hashlib
import threading
from collections import Counter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hardening import kernels
from hardening.errors import InputError

#: Hashes that stand for a question, and the share of them that a near duplicate has in common with an earlier one.
HASHES, SHARE = 50, 0.5
#: The step of quantisation as a part of the range of ordinary inputs: 50 of 255 levels of a picture.
STEP = 50 / 255
#: Pairs of clients whose questions are nearly the same; beyond that the half seen least often is forgotten.
MOST_LINKS = 1 << 14
#: Entries that are hashed at a time, and up to how many without letting go of the interpreter's lock.
_CHUNK, _SMALL = 1 << 18, 1 << 14


class Found(NamedTuple):
    """What was found of each row: whether it is a near duplicate of another, and the client that asked that, or -1."""

    duplicate: NDArray[np.uint8]
    owner: NDArray[np.int64]


class Prints(NamedTuple):
    """What stands for rows: their smallest hashes, how many each row has, and what only the same row has."""

    hashes: NDArray[np.uint32]  # (n, HASHES), sorted
    parts: NDArray[np.int64]
    names: NDArray[np.uint64]


class Fingerprints:
    """An index of the fingerprints of questions. Safe to share between threads.

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
        stream = hashlib.shake_256(secret + b"fingerprints").digest(8 * (fingerprint.SALT + 1))
        self.window, self._step = window, span * STEP
        self._offset = int.from_bytes(stream[-8:], "little") / 2**64 * self._step
        self._salt = np.frombuffer(stream[:-8], "<u8").copy()
        self._salt[0] |= np.uint64(1)
        buckets = 1 << max(0, (size - 1).bit_length() - (fingerprint.WAYS - 1).bit_length())
        # A row has up to `HASHES` of them; names and owners are remembered of more rows than the index has hashes of.
        rows = max(fingerprint.WAYS, buckets * fingerprint.WAYS // 8)
        self._index = np.empty((buckets, fingerprint.WAYS), np.uint64)
        self._known = np.empty((rows // fingerprint.WAYS, fingerprint.WAYS), np.uint64)
        self._owners = np.empty(rows, np.int32)
        for array, nothing in ((self._index, 0), (self._known, 0), (self._owners, -1)):
            array.fill(nothing)
        self._clock = np.ones(1, np.uint32)
        self._tally = np.zeros((fingerprint.TALLY, 2), np.uint32)
        self._links: Counter[tuple[int, int]] = Counter()
        self._linking = threading.RLock()  # again, for whoever comes in between from a signal
        self._print = functools.partial(
            kernels.entry, fingerprint.fingerprint, "float64[:, ::1]", "int64", "float64", "float64", "uint64[::1]",
            "uint64[::1]", "uint32[:, ::1]", "int64[::1]", "uint64[::1]",
        )  # fmt: skip
        self._print_small = self._print()
        self._look = kernels.entry(
            fingerprint.look, "uint32[:, ::1]", "int64[::1]", "uint64[::1]", "int64", "float64", "uint64[:, ::1]",
            "uint64[:, ::1]", "int32[::1]", "uint32[::1]", "uint32[:, ::1]", "uint8[::1]", "int64[::1]",
        )  # fmt: skip

    @property
    def nbytes(self) -> int:
        """What the index takes, however many questions there were."""
        return self._index.nbytes + self._known.nbytes + self._owners.nbytes

    def prints(self, inputs: NDArray[Any]) -> Prints:
        """What stands for rows ``(n, ...)``, numbers of any kind. Raises InputError for what is not numbers."""
        if inputs.dtype.kind not in "fiub" or inputs.ndim < 1:
            raise InputError(f"near duplicates are looked for among rows of numbers, not {inputs.dtype} {inputs.shape}")
        count = len(inputs)
        made = Prints(np.empty((count, HASHES), np.uint32), np.zeros(count, np.int64), np.zeros(count, np.uint64))
        if not inputs.size:
            return made
        flat = inputs.reshape(count, -1)
        width = flat.shape[1]
        step, levels, window = max(1, _CHUNK // width), np.empty(width, np.uint64), min(self.window, width)
        run = self._print_small if flat.size <= _SMALL else self._print(nogil=True)
        for i in range(0, count, step):
            rows = np.ascontiguousarray(flat[i : i + step], np.float64)
            part = slice(i, i + step)
            run(
                rows, window, self._step, self._offset, self._salt, levels, made.hashes[part], made.parts[part],
                made.names[part],
            )  # fmt: skip
        return made

    def seen(self, inputs: NDArray[Any], slot: int = -1) -> Found:
        """Look rows up ``(n, ...)``, one after another, and remember them as asked by the client at `slot`, -1: nobody.

        Raises InputError for what is not numbers.
        """
        made, count = self.prints(inputs), len(inputs)
        found = Found(np.empty(count, np.uint8), np.empty(count, np.int64))
        # Holds the interpreter's lock, which makes it atomic.
        linked = self._look(
            *made, slot, SHARE, self._index, self._known, self._owners, self._clock, self._tally, *found
        )
        if linked and slot >= 0:
            self._link(slot, found.owner)
        return found

    def _link(self, slot: int, owners: NDArray[np.int64]) -> None:
        with self._linking:
            for owner in owners.tolist():
                if owner >= 0 and owner != slot:
                    self._links[min(slot, owner), max(slot, owner)] += 1
            if len(self._links) > MOST_LINKS:
                self._links = Counter(dict(self._links.most_common(MOST_LINKS // 2)))

    def links(self) -> tuple[tuple[int, int, int], ...]:
        """Pairs of clients, by slot, and how often one asked nearly what the other had; for `fleet.clusters`."""
        with self._linking:
            return tuple((a, b, times) for (a, b), times in self._links.items())
