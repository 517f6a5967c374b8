"""What each client has learnt, in a bounded table of constant-size rows.

Nobody is evicted, so nothing spent is ever forgotten, nor any evidence; beyond capacity new identities share one pooled
account. Names are found by open addressing in memory that is all there from the start.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import math
import threading
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardening import kernels
from hardening.clients.entropy import code_length_bits, coverage, label_entropy_bits
from hardening.clients.evidence import log_evidence, log_wealth, suspicion
from hardening.forks import watch
from hardening.kernels.layout import MEMORY, Lane
from hardening.types import Standing

#: Longest name of a client, in characters; names are kept, so their length is part of the memory bound.
LONGEST_NAME = 64
POOLED = "(pooled)"
ANONYMOUS = "anonymous"
#: The probability that an honest client is ever flagged, where a policy does not say.
FALSE_ALARM = 1e-4
_MOST = 2**32 - 1
#: Rows that are copied without letting other threads run: a quarter of a millisecond's work.
_AT_ONCE = 256
#: Words at the start of a row of which one changes with whatever is entered: queries, observed, classes, bits.
_CHANGING = 4


class Clients:
    """The table: constant-size rows, written by kernels that are atomic under the interpreter's lock; no I/O.

    A second table holds what others saw of the same clients, processes before this one or beside it (`adopt`). Bets are
    made on what is seen here; what is said about a client is about both.
    """

    def __init__(self, capacity: int) -> None:
        from hardening.kernels import accounts, places

        # What of a row is written together lies in as few lines as possible; the last row is the pooled account.
        memory = kernels.lines((capacity + 1) * accounts.ROW.itemsize)
        self._rows = memory.view(accounts.ROW)
        self._address = int(self._rows.ctypes.data)
        # In words: an assignment of so few keeps the interpreter's lock, and is atomic beside the kernels.
        self._words = memory.view(np.uint64).reshape(capacity + 1, -1)
        self._cells = self._words[:, -accounts.ROW["cells"].itemsize // 8 :]
        self._others = np.zeros(0, accounts.ROW)  # as many as `_rows`, once there is anything
        self._ahead = np.zeros(capacity + 1)  # the evidence in these
        self._index = np.zeros(2 << capacity.bit_length(), np.uint64)
        self._names: list[str] = []
        self._bets = tuple(self._rows[name] for name in ("firsts", "wealth", "restarts"))
        self.begin_again()
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
        watch(self)

    def begin_again(self) -> None:
        """In a process just forked: another thread's hold on the lock is the parent's."""
        self._opening = threading.Lock()

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

    def name(self, slot: int) -> str:
        """Whose account `slot` is."""
        return POOLED if slot == self.pooled else self._names[slot]

    def seat(self, client: str) -> int | None:
        """The slot that would answer for `client`: its own, once the table is full the `pooled` one, else None."""
        slot = self.find(client)
        return self.pooled if slot is None and len(self._names) >= self.pooled else slot

    def suspicion(self, client: str, false_alarm: float = FALSE_ALARM) -> float:
        """Evidence against `client` in units of the alarm threshold; 0 without a baseline.

        Clients of the pooled account share what there is against it: who asked what of it nobody knows any more.
        """
        slot = self.seat(client)
        return 0.0 if slot is None else self.suspicion_at(slot, false_alarm)

    def suspicion_at(self, slot: int, false_alarm: float = FALSE_ALARM) -> float:
        """The same for the account at `slot`; what `evidence.suspicion` says of one row, without making arrays."""
        firsts, wealth, restarts = self._bets
        log = self._ahead.item(slot)
        if firsts.item(slot):
            j = restarts.item(slot)
            bet, kept = wealth.item(slot) - math.log((j + 1) * (j + 2)), -math.log(j + 2)
            log += max(bet, kept) + math.log1p(math.exp(-abs(bet - kept)))
        return 0.0 if log <= 0 else log / math.log(1 / false_alarm)

    def evidence(self) -> NDArray[np.float64]:
        """Logarithms of the evidence against each account, the pooled one last: float64 ``(capacity + 1,)``."""
        return np.asarray(evidence(self._rows) + self._ahead)

    def row(self, client: str) -> Any:
        """A copy of all that is known of `client` (`kernels.accounts.ROW`), or None for one without an account."""
        slot = self.find(client)
        return None if slot is None else self._row(slot)

    def _row(self, slot: int) -> Any:
        own = self._rows[slot].copy()
        return merge(np.array([own, self._others[slot]])) if len(self._others) else own

    def rows(self) -> NDArray[Any]:
        """The same of all clients with an account, in the order of `names`."""
        count = len(self._names)
        out = np.empty(count, self._rows.dtype)
        for start in range(0, count, _AT_ONCE):
            part = slice(start, min(start + _AT_ONCE, count))
            out[part] = self._rows[part]
            if len(self._others):
                out[part] = merge(np.stack([out[part], self._others[part]]))
        return out

    def standing(self, client: str, tier: str, false_alarm: float = FALSE_ALARM) -> Standing:
        """A copy of what `client` has learnt, or all clients of the pooled account; zeros for a client never seen."""
        slot = self.seat(client)
        return Standing(tier=tier) if slot is None else standing(self._row(slot), tier, false_alarm)

    def names(self) -> tuple[str, ...]:
        """Clients with an account of their own, in order of appearance."""
        return tuple(self._names)

    # What is kept elsewhere

    def counters(self) -> NDArray[np.uint64]:
        """Of each account, the pooled one last, numbers that are others whenever something was entered here."""
        return self._words[:, :_CHANGING].copy()

    def own(self, slot: int) -> Any:
        """A copy of what this process saw of the client at `slot`."""
        return self._rows[slot].copy()

    def pack(self, row: Any) -> bytes:
        """A row, to be kept."""
        return self._layout + zlib.compress(row.tobytes(), 1)

    def unpack(self, state: bytes) -> Any:
        """The row that was packed. Raises ValueError for what is none, or was packed by another version."""
        packed = b""
        if state.startswith(self._layout):
            with contextlib.suppress(zlib.error):
                packed = zlib.decompress(state[len(self._layout) :])
        if len(packed) != self._rows.itemsize:
            raise ValueError("what was kept of a client is no state of a client, or of another version")
        return np.frombuffer(packed, self._rows.dtype)[0]

    def adopt(self, slot: int, rows: Sequence[Any]) -> None:
        """`rows` are all that others saw of the client at `slot`, each replica's once, in place of what they were."""
        if len(rows) or len(self._others):
            seen = merge(np.array([*rows, np.zeros((), self._rows.dtype)]))
            self._adopt(slice(slot, slot + 1), seen.reshape(1))

    def _adopt(self, part: slice, seen: NDArray[Any]) -> None:
        if not len(self._others):
            self._others = np.zeros(len(self._rows), self._rows.dtype)
        self._others[part], self._ahead[part] = seen, evidence(seen)
        # What goes by coverage goes by all of it. A bitmap takes no harm from being kept twice.
        self._cells[part] |= np.ascontiguousarray(seen["cells"]).view(np.uint64)

    def divide(self) -> None:
        """From now on this process is another: what it saw so far, others saw."""
        self._opening = threading.Lock()
        for start in range(0, len(self._rows), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            own = self._rows[part].copy()
            if own["queries"].any() or own["observed"].any():
                self._words[part] = 0
                self._adopt(part, merge(np.stack([own, self._others[part]])) if len(self._others) else own)


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
    """One row from several of the same client, kept by replicas that served it; or of many clients at once.

    Args:
        rows: ``(replicas, ...)``.

    Counts add up and bitmaps are united: exactly, whatever the order and partition. Evidence multiplies, which leaves
    it an e-process, for every replica bets on what it saw itself (Vovk & Wang 2021); one that is so small that a row
    cannot say it is raised to 2**-32. Adding is not idempotent: whoever merges must take each replica's row once.
    """
    out = np.zeros(rows.shape[1:], rows.dtype)
    for name in ("queries", "observed", "bits", "rho", "entropy"):
        out[name] = rows[name].sum(axis=0)
    _go_on(out, rows)
    for name in ("firsts", "windows", "beyond", "histogram", "sums", "labels"):
        out[name] = np.minimum(rows[name].sum(axis=0, dtype=np.uint64), _MOST)
    out["classes"] = rows["classes"].max(axis=0)
    out["cells"] = np.bitwise_or.reduce(rows["cells"], axis=0)
    asked = rows["firsts"] > 0
    # Of each replica's stake its later bettors have 1 / (restarts + 2) left, of the merged one the product of these.
    with np.errstate(over="ignore"):
        stakes = np.where(asked, rows["restarts"] + 2.0, 1.0).prod(axis=0)
    restarts = np.clip(stakes - 2, 0, _MOST)
    some = asked.any(axis=0)
    out["restarts"] = restarts
    out["wealth"] = np.where(some, log_wealth(_exactly(evidence(rows)), restarts), 0.0)
    weights = np.minimum(rows["firsts"], MEMORY).astype(np.float64)
    total = np.maximum(weights.sum(axis=0), 1.0)
    out["excess"] = (rows["excess"] * weights[..., None]).sum(axis=0) / total[..., None]
    latest = rows["firsts"].argmax(axis=0)[None]
    out["recent"] = np.take_along_axis(rows["recent"], latest[..., None], axis=0)[0]
    return out


def _go_on(out: NDArray[Any], rows: NDArray[Any]) -> None:
    """A window is of what one replica saw: the fullest goes on, of two as full the one with the larger counts."""
    out["window"] = rows["window"].max(axis=0)
    opened, counts = rows["opened"][0], rows["open"][0].astype(np.int64)
    for row in rows[1:]:
        others = row["open"].astype(np.int64)
        change = others - counts
        first = np.take_along_axis(change, (change != 0).argmax(axis=-1)[..., None], axis=-1)[..., 0]
        fuller = (row["opened"] > opened) | ((row["opened"] == opened) & (first > 0))
        opened, counts = np.where(fuller, row["opened"], opened), np.where(fuller[..., None], others, counts)
    out["opened"], out["open"] = opened, counts


def _exactly(logs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sums along the first axis, whatever the order."""
    if len(logs) < 3:
        return np.asarray(logs.sum(axis=0))
    columns: Sequence[Any] = logs.reshape(len(logs), -1).T.tolist()
    return np.array([math.fsum(column) for column in columns]).reshape(logs.shape[1:])
