"""One process among those that served the same clients: what it saw is kept in the ledger, and what others saw is held
against its clients as well.

Every replica keeps one row of a client, all of it anew whenever something was added, and reads those of the others. So
writing twice changes nothing, and no contribution counts twice. Rows of replicas that died are folded into one, which
first takes from them the right to write: one that was only asleep is told so, and goes on under another name.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from hardening.clients import Clients
from hardening.clients.evidence import suspicion
from hardening.clients.table import merge
from hardening.errors import LedgerError
from hardening.ledger.store import BATCH, FORGET, Fold, Slot, Store
from hardening.types import Clock

#: Clients that are folded in one exchange, and at the end of a process.
FOLDED, FOLDED_LAST = 32, 1024
#: Seconds between two attempts to reach a store that failed: the first pause and the longest.
PAUSES = 0.1, 5.0
T = TypeVar("T")


class Replica:
    """Keeps what `clients` has gathered.

    Args:
        store: where it is kept; closed by `close`.
        clients: the table.
        scope: what tells apart tables that share a store: evidence is about one model.
        lifetime: seconds without a sign of life after which others take this replica for dead; a whole number.
        levels: suspicions, ascending, that are written down at once when they are reached.
        false_alarm: what a suspicion is measured by.
        tell: emits an event: kind, client, evidence.
        clock: seconds since the epoch. monotonic: seconds on a clock that nobody sets.

    Events: ``evidence-unreachable``, ``evidence-back``; ``evidence-unreadable`` where another version of this library
    kept something, which is left as it is; ``evidence-lost`` if others took this process for dead.

    Safe to share between threads. Requests wait for the store at the first sight of a client (`meet`), and not while it
    is known to be down; the rest is for a thread of its own.
    """

    def __init__(
        self,
        store: Store,
        clients: Clients,
        scope: str,
        lifetime: int,
        levels: Sequence[float],
        false_alarm: float,
        tell: Callable[..., None],
        clock: Clock,
        monotonic: Callable[[], float],
    ) -> None:
        self._store, self._clients, self._lifetime = store, clients, lifetime
        self._scope = hashlib.blake2b(scope.encode(), digest_size=8).hexdigest()
        self._levels, self._false_alarm = np.array([*levels, math.inf]), false_alarm
        self._tell, self._clock, self._monotonic = tell, clock, monotonic
        self._closed = self._unreadable = False
        self._weakness = ""
        #: Set, whatever goes on ends with the present exchange; `close` does what is left to do.
        self.ending = False
        self._next_one, self._talking = threading.Lock(), threading.Lock()
        self._begin()

    def _begin(self) -> None:
        count = self._clients.pooled + 1
        self._name, self._number, self._known, self._heard = secrets.token_hex(16), 0, False, self._clock()
        self._written = np.zeros_like(self._clients.counters())
        self._next = np.full(count, self._levels[0])  # suspicion at which each is written down at once
        self._met = np.zeros(count, bool)
        self._digests = np.zeros(count, np.int64)  # of what others kept
        self._strange = np.zeros(count, np.int64)  # how many of these cannot be read
        self._untidy: set[int] = set()
        self.up, self._retry_at, self._pause = True, -math.inf, PAUSES[0]

    def begin_again(self) -> None:
        """In a process just forked: what was seen so far is the parent's to write down, and so is the connection."""
        self._store.abandon()
        self._next_one, self._talking = threading.Lock(), threading.Lock()
        self._clients.divide()
        self._begin()

    def close(self) -> None:
        """Write down everything, and say that there will be no more."""
        self._retry_at, self.ending = -math.inf, False
        self.write(np.flatnonzero(self._different()))
        self._tidy(sorted(self._untidy)[:FOLDED_LAST])
        with self._line():
            self._closed = True
            if self._known and self._may_try():
                self._try(lambda: self._store.end(self._name))
            self._store.close()

    # On the request path

    def meet(self, slot: int) -> None:
        """Read what others saw of the client at `slot`, unless it was read; if the store is down, `glance` does it."""
        if self._met[slot] or not self.up:
            return
        with self._line():
            if not self._met[slot] and self.up and not self._closed:
                self._read([slot])

    def urgent(self, slot: int, suspicion: float) -> bool:
        """Whether the client at `slot` has reached a level that is not written down, and can be."""
        return self.up and bool(suspicion >= self._next[slot])

    # Off it

    def glance(self) -> None:
        """Write down whoever has reached a level, and read whoever was met while the store was down."""
        found = suspicion(self._clients.evidence(), self._false_alarm)
        reached = np.flatnonzero(found >= self._next)
        if len(reached):
            different = self._different()[reached]
            self.write(reached[different])
            self._tidy([slot for slot in reached[different].tolist() if slot in self._untidy])
            others = reached[~different]  # by what others saw, and have written down
            self._next[others] = self._level(found[others])
        self._in_batches(np.flatnonzero(~self._met[self._used()]).tolist(), self._read)

    def tick(self) -> None:
        """Write down what is new, or a sign of life; read what is new of every client; fold what dead replicas left."""
        changed = np.flatnonzero(self._different())
        self.write(changed)
        if self._known and not len(changed):
            with self._line():
                if self._may_try():
                    self._keep([])
        self._in_batches(range(len(self._met[self._used()])), self._read)
        with self._line():
            untidy = sorted(self._untidy)
        self._tidy(untidy)

    def write(self, slots: Iterable[int]) -> None:
        """Write down what this replica saw of the clients at `slots`."""
        self._in_batches([int(slot) for slot in slots], self._keep)

    def _tidy(self, slots: Sequence[int]) -> None:
        """Fold what several dead replicas kept of the clients at `slots`."""
        self._in_batches(slots, self._fold, FOLDED)

    def _in_batches(self, slots: Sequence[int], work: Callable[[Sequence[int]], bool], most: int = BATCH) -> None:
        for start in range(0, len(slots), most):
            with self._line():
                stopped = self._closed or self.ending or not self._may_try()
                if stopped or not work(slots[start : start + most]):
                    return

    @contextlib.contextmanager
    def _line(self) -> Iterator[None]:
        """Use the store, one after another: whoever waits comes next, not who goes on with the next batch."""
        with self._next_one:
            self._talking.acquire()
        try:
            yield
        finally:
            self._talking.release()

    def _used(self) -> slice:
        """Slots with an account, and the pooled one once it may be used."""
        count = len(self._clients.names())
        return slice(count + (count == self._clients.pooled))

    def _different(self) -> NDArray[np.bool_]:
        """Which rows are not as they were written down."""
        found: NDArray[np.bool_] = (self._clients.counters() != self._written).any(axis=1)
        return found

    def _level(self, reached: Any) -> Any:
        """The level that comes after a suspicion."""
        return self._levels[np.searchsorted(self._levels, reached, "right")]

    def _key(self, slot: int) -> str:
        return f"{self._scope}:{self._clients.name(slot)}"

    # The store: call within `_line`; each says whether it could be had

    def _keep(self, slots: Sequence[int]) -> bool:
        rows = [self._clients.own(slot) for slot in slots]
        packed = {self._key(slot): self._clients.pack(row) for slot, row in zip(slots, rows, strict=True)}
        self._number += 1
        status = self._try(
            lambda: self._store.keep(self._name, self._number, packed, self._lifetime, self._known),
        )
        if status == "forgotten" and abs(self._clock() - self._heard) < FORGET / 2:
            self._known, self._written[:], self._next[:] = False, 0, self._levels[0]  # it will be told again
        elif status in ("ended", "forgotten"):
            self._resign()
        if status != "kept":
            return False
        self._known, self._heard = True, self._clock()
        for slot, row in zip(slots, rows, strict=True):
            self._written[slot] = np.frombuffer(row.tobytes(), np.uint64)[: self._written.shape[1]]
            self._next[slot] = self._level(self._clients.suspicion_at(slot, self._false_alarm))
        return True

    def _resign(self) -> None:
        """Somebody took this replica for dead and folded what it kept. What it had not written down yet is lost."""
        self._tell("evidence-lost", "", seconds=round(self._clock() - self._heard, 3))
        self._clients.divide()
        self._begin()

    def _read(self, slots: Sequence[int]) -> bool:
        found = self._try(lambda: self._store.kept([*map(self._key, slots)]))
        if found is None:
            return False
        for slot, kept in zip(slots, found, strict=True):
            others = sorted(s for s in kept if s.replica != self._name)
            digest = hash(tuple((s.replica, s.row) for s in others))
            if digest != self._digests[slot]:
                rows = self._readable(slot, others)
                self._clients.adopt(slot, [*rows.values()])
                self._digests[slot], self._strange[slot] = digest, len(others) - len(rows)
            if sum(s.dead for s in others) > 1 + self._strange[slot]:
                self._untidy.add(slot)
            self._met[slot] = True
        return True

    def _readable(self, slot: int, kept: Sequence[Slot]) -> dict[str, Any]:
        """Rows that were kept, by replica; what another version kept is left out."""
        rows = {}
        for replica, _, packed in kept:
            try:
                rows[replica] = self._clients.unpack(packed)
            except ValueError as problem:
                if not self._unreadable:
                    self._unreadable = True
                    self._tell("evidence-unreadable", self._clients.name(slot), problem=str(problem))
        return rows

    def _fold(self, slots: Sequence[int]) -> bool:
        found = self._try(lambda: self._store.kept([*map(self._key, slots)]))
        if found is None:
            return False
        folds = []
        for slot, kept in zip(slots, found, strict=True):
            dead = {s.replica: s.row for s in kept if s.dead and s.replica != self._name}
            rows = self._readable(slot, [s for s in kept if s.replica in dead])
            if len(rows) > 1:
                row = self._clients.pack(merge(np.array([*rows.values()])))
                before = {replica: dead[replica] for replica in rows}
                folds.append(Fold(self._key(slot), before, secrets.token_hex(16), row))
        if folds and self._try(lambda: self._store.fold(folds)) is None:
            return False
        self._untidy.difference_update(slots)
        return True

    def _may_try(self) -> bool:
        return self.up or self._monotonic() >= self._retry_at

    def _try(self, work: Callable[[], T]) -> T | None:
        """What `work` returns, or None if the store cannot be had."""
        try:
            result = work()
        except Exception as problem:
            if self.up:
                self.up, self._pause = False, PAUSES[0]
                cause = problem.cause if isinstance(problem, LedgerError) else "unreachable"
                self._tell("evidence-unreachable", "", cause=cause, problem=f"{type(problem).__name__}: {problem}")
            self._retry_at = self._monotonic() + self._pause
            self._pause = min(2 * self._pause, PAUSES[1])
            return None
        if not self.up:
            self.up = True
            self._tell("evidence-back", "")
        if self._store.weakness != self._weakness:
            self._weakness = self._store.weakness
            self._tell("ledger-not-durable", "", problem=self._weakness, durability="best-effort")
        return result
