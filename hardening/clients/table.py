"""What each client has learnt, in a bounded table of constant-size rows.

Nobody is evicted, so nothing spent is ever forgotten, nor any evidence; beyond capacity new identities share one pooled
account. Names are found by open addressing in memory that is all there from the start.
"""

from __future__ import annotations

import functools
import hashlib
import math
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardening import kernels
from hardening.clients.entropy import code_length_bits, coverage, label_entropy_bits
from hardening.clients.evidence import log_evidence, suspicion
from hardening.kernels.layout import MEMORY, Lane
from hardening.types import Standing

#: Longest name of a client, in characters; names are kept, so their length is part of the memory bound.
LONGEST_NAME = 64
POOLED = "(pooled)"
ANONYMOUS = "anonymous"
#: The probability that an honest client is ever flagged, where a policy does not say.
FALSE_ALARM = 1e-4
_MOST = 2**32 - 1


class Clients:
    """The table: constant-size rows, written by kernels that are atomic under the interpreter's lock; no I/O."""

    def __init__(self, capacity: int) -> None:
        from hardening.kernels import accounts, places

        line = 64  # bytes that memory comes in: what is written together lies in as few as possible
        size = (capacity + 1) * accounts.ROW.itemsize
        memory = np.empty(size + line, np.uint8)
        memory.fill(0)  # touches every page now, so that no query pays for it
        start = -int(memory.ctypes.data) % line
        self._rows = memory[start : start + size].view(accounts.ROW)  # the last row is the pooled account
        self._address = int(self._rows.ctypes.data)
        self._index = np.zeros(2 << capacity.bit_length(), np.uint64)
        self._names: list[str] = []
        self._opening = threading.Lock()
        self._find = kernels.entry(places.find, "uint64[::1]", "int64", "int64")
        serve = kernels.entry(accounts.serve, "bool_", "int64", "int64", "int64[::1]")
        #: ``charge(slot, rows)``, ``serve(slot, job)``, ``settle(slot, job)`` for what is hardened already, and
        #: ``observe(slot, job)`` before it is; see `kernels.accounts`.
        self.charge = functools.partial(kernels.entry(accounts.charge, "int64", "int64", "int64"), self._address)
        self.serve = functools.partial(serve, True, self._address)
        self.settle = functools.partial(serve, False, self._address)
        self.observe = functools.partial(kernels.entry(accounts.observe, "int64", "int64", "int64[::1]"), self._address)
        self.pooled = capacity
        #: What states of clients begin with, so that none is read that was kept by another version.
        self._layout = hashlib.blake2b(repr(accounts.ROW.descr).encode(), digest_size=8).digest()

    def _entry(self, client: str) -> int:
        """The index's entry for `client`, or -1 less the empty one where it belongs."""
        key, entry = hash(client), -1
        while (entry := self._find(self._index, key, entry)) >= 0:
            if self._names[self._place(entry)] == client:
                break
        return entry

    def _place(self, entry: int) -> int:
        return (int(self._index[entry]) & _MOST) - 1

    def slot(self, client: str) -> int:
        """The account of `client`, opened if need be: one of its own, or `pooled` beyond capacity."""
        entry = self._entry(client)
        if entry >= 0:
            return self._place(entry)
        with self._opening:
            entry = self._entry(client)
            if entry >= 0:
                return self._place(entry)
            slot = len(self._names)
            if slot < self.pooled:
                self._names.append(client)
                self._index[-1 - entry] = (hash(client) >> 32 & _MOST) << 32 | slot + 1
            return slot

    def find(self, client: str) -> int | None:
        """The slot of `client`, or None for a client never seen."""
        if client == POOLED:
            return self.pooled
        entry = self._entry(client)
        return self._place(entry) if entry >= 0 else None

    def suspicion(self, client: str, false_alarm: float = FALSE_ALARM) -> float:
        """Evidence against `client` in units of the alarm threshold; 0 without a baseline."""
        slot = self.find(client)
        return 0.0 if slot is None else float(suspicion(evidence(self._rows[slot]), false_alarm))

    def row(self, client: str) -> Any:
        """A copy of the row of `client` (`kernels.accounts.ROW`), or None for a client without an account."""
        slot = self.find(client)
        return None if slot is None else self._rows[slot].copy()

    def rows(self) -> NDArray[Any]:
        """A copy of the rows of all clients with an account, in the order of `names`."""
        return self._rows[: len(self._names)].copy()

    def standing(self, client: str, tier: str, false_alarm: float = FALSE_ALARM) -> Standing:
        """A copy of what `client` has learnt; zeros for a client never seen."""
        row = self.row(client)
        return Standing(tier=tier) if row is None else standing(row, tier, false_alarm)

    def names(self) -> tuple[str, ...]:
        """Clients with an account of their own, in order of appearance."""
        return tuple(self._names)

    def state(self, client: str) -> bytes:
        """What is known of `client`, to be kept; empty for a client never seen."""
        row = self.row(client)
        return b"" if row is None else self._layout + row.tobytes()

    def adopt(self, client: str, state: bytes) -> None:
        """Add what was kept of `client`, by an earlier process or another replica, to its account.

        Not idempotent: counts add up. Before the client is served here, for what it asks meanwhile would be lost.
        Raises ValueError for what `state` did not return.
        """
        if not state:
            return
        head = len(self._layout)
        if len(state) != head + self._rows.itemsize or not state.startswith(self._layout):
            raise ValueError(f"what was kept of the client {client!r} is no state of a client, or of another version")
        slot = self.slot(client)
        other = np.frombuffer(state[head:], self._rows.dtype)
        self._rows[slot] = merge(np.concatenate([self._rows[slot : slot + 1], other]))


def evidence(rows: NDArray[Any]) -> NDArray[np.float64]:
    """Logarithm of the e-process of each row; 0 where nothing was asked for the first time."""
    found = log_evidence(rows["wealth"], rows["restarts"])
    return np.where(rows["firsts"] > 0, found, 0.0)


def reasons(row: Any) -> tuple[tuple[Lane, float], ...]:
    """The lanes that speak against a client, and how far its recent mean is above what ordinary ones stay below."""
    above = [(lane, float(row["excess"][lane])) for lane in Lane if row["excess"][lane] > 0]
    return tuple(sorted(above, key=lambda found: -found[1]))


def standing(row: Any, tier: str, false_alarm: float = FALSE_ALARM) -> Standing:
    """What a row of the table says."""
    observed, classes = int(row["observed"]), int(row["classes"])
    labels = row["labels"][: max(1, classes)]
    # Classes that share a bin still have to be told apart by whoever writes the labels down.
    bins = len(row["labels"])
    folded = observed * math.log2(math.ceil(classes / bins)) if classes > bins else 0.0
    return Standing(
        queries=int(row["queries"]),
        bits=float(row["bits"]),
        rho=float(row["rho"]),
        posterior_entropy=float(row["entropy"]) / observed if observed else 0.0,
        label_entropy=label_entropy_bits(labels),
        code_length=code_length_bits(labels) + folded,
        coverage=coverage(row["cells"]),
        suspicion=float(suspicion(evidence(row), false_alarm)),
        tier=tier,
        histogram=tuple(int(h) for h in row["histogram"]),
        window=float(row["window"]),
    )


def merge(rows: NDArray[Any]) -> Any:
    """One row from several of the same client, kept by replicas that served it.

    Counts add up and bitmaps are united: exactly, whatever the order and partition. Evidence multiplies, which leaves
    it an e-process, for every replica bets on what it saw itself (Vovk & Wang 2021). Adding is not idempotent: whoever
    merges must take each replica's row once.
    """
    out = np.zeros((), rows.dtype)
    for name in ("queries", "observed", "bits", "rho", "entropy"):
        out[name] = rows[name].sum()
    # A window is of what one replica saw: the fullest goes on.
    fullest = max(range(len(rows)), key=lambda i: (int(rows["opened"][i]), rows["open"][i].tolist()))
    out["window"], out["opened"], out["open"] = rows["window"].max(), rows["opened"][fullest], rows["open"][fullest]
    for name in ("firsts", "windows", "beyond", "histogram", "sums", "labels"):
        out[name] = np.minimum(rows[name].sum(axis=0, dtype=np.uint64), _MOST)
    out["classes"] = rows["classes"].max()
    out["cells"] = np.bitwise_or.reduce(rows["cells"], axis=0)
    asked = rows[rows["firsts"] > 0]
    if len(asked):
        # Later bettors share 1 / (restarts + 2) of each replica's stake, of the merged one the product of these.
        stakes = math.prod(int(r) + 2 for r in asked["restarts"])
        out["restarts"] = min(stakes - 2, _MOST)
        j = float(out["restarts"])
        out["wealth"] = math.fsum(evidence(asked)) + math.log((j + 1) * (j + 2))
        weights = np.minimum(asked["firsts"], MEMORY).astype(np.float64)
        out["excess"] = (asked["excess"] * weights[:, None]).sum(axis=0) / weights.sum()
        out["recent"] = asked[int(asked["firsts"].argmax())]["recent"]
    return out
