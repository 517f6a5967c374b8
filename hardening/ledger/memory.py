"""Books in memory: for one process, and gone with it."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping, Sequence

from hardening.ledger.amounts import KINDS, Kind
from hardening.ledger.books import Ask, Entry, settle
from hardening.ledger.store import Balance, Fold, Kept, Reply, Slot, check_number, milliseconds
from hardening.types import Clock


class MemoryStore:
    """Several replicas of one process may share it.

    Args:
        clock: seconds since the epoch, for windows.
    """

    heartbeat = math.inf
    weakness = ""
    durable = False

    def __init__(self, clock: Clock = time.time) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._entries: dict[tuple[str, Kind], Entry] = {}
        self._held: dict[str, dict[tuple[str, Kind], int]] = {}
        self._last: dict[str, int] = {}
        self._rows: dict[str, dict[str, bytes]] = {}
        self._alive: dict[str, tuple[int, float]] = {}  # number of the last exchange, and until when
        #: Key, kind, amount and reason of everything granted beyond a bound.
        self.grants: list[tuple[str, Kind, int, str]] = []

    def lease(self, replica: str, number: int, asks: Sequence[Ask]) -> Reply:
        with self._lock:
            return self._settle(replica, number, asks)

    def part(self, replica: str, number: int, asks: Sequence[Ask]) -> Reply:
        with self._lock:
            if number == self._last.get(replica):
                return Reply(number, [], [])
            reply = self._settle(replica, number, asks)
            for ask in asks:
                del self._held[replica][ask.key, ask.kind]
            return reply

    def _settle(self, replica: str, number: int, asks: Sequence[Ask]) -> Reply:
        last = self._last.get(replica, 0)
        check_number(number, last)
        self._last[replica] = number
        held, reply = self._held.setdefault(replica, {}), Reply(last, [], [], milliseconds(self._clock))
        for ask in asks:
            name = ask.key, ask.kind
            settled = settle(self._entries.get(name, Entry()), held.get(name, 0), ask, reply.now)
            self._entries[name], held[name] = settled.entry, settled.granted
            reply.granted.append(settled.granted)
            reply.restored.append(settled.restored)
        return reply

    def retire(self, replica: str) -> None:
        with self._lock:
            self._held.pop(replica, None)
            self._last.pop(replica, None)

    def extend(self, key: str, kind: Kind, amount: int, reason: str) -> None:
        with self._lock:
            entry = self._entries.get((key, kind), Entry())
            self._entries[key, kind] = entry._replace(extra=entry.extra + amount)
            self.grants.append((key, kind, amount, reason))

    def read(self, key: str) -> dict[Kind, Balance]:
        found = [(kind, self._entries.get((key, kind))) for kind in KINDS]
        return {kind: Balance(entry.total, entry.extra) for kind, entry in found if entry is not None}

    def read_all(self, keys: Sequence[str]) -> dict[str, dict[Kind, Balance]]:
        return {key: self.read(key) for key in keys}

    def keep(self, replica: str, number: int, rows: Mapping[str, bytes], lifetime: int, known: bool) -> Kept:
        with self._lock:
            last, until = self._alive.get(replica, (0, 0.0))
            if until == -math.inf:
                return "ended"
            if known and not last:
                return "forgotten"
            check_number(number, last)
            self._alive[replica] = number, self._clock() + lifetime
            for client, row in rows.items():
                self._rows.setdefault(client, {})[replica] = row
            return "kept"

    def kept(self, clients: Sequence[str]) -> list[list[Slot]]:
        with self._lock:
            return [
                [Slot(replica, self._dead(replica), row) for replica, row in self._rows.get(client, {}).items()]
                for client in clients
            ]

    def fold(self, folds: Sequence[Fold]) -> int:
        with self._lock:
            done = 0
            for client, before, into, row in folds:
                rows = self._rows.get(client, {})
                if all(rows.get(replica) == old and self._dead(replica) for replica, old in before.items()):
                    for replica in before:
                        del rows[replica]
                        if replica in self._alive:
                            self._alive[replica] = 0, -math.inf
                    rows[into] = row
                    done += 1
            return done

    def _dead(self, replica: str) -> bool:
        return self._alive.get(replica, (0, -math.inf))[1] < self._clock()

    def end(self, replica: str) -> None:
        with self._lock:
            self._alive[replica] = 0, -math.inf

    def close(self) -> None:
        """Nothing is held open."""

    def abandon(self) -> None:
        """The child goes on with a copy, in which the leases of the parent are spent."""
        self._lock = threading.Lock()
