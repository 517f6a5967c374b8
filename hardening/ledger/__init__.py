"""Durable budgets by lease: what each account may still learn, for any number of replicas.

A replica leases a slice of a budget from a durable store, spends it without I/O and renews it before it runs out. What
was leased counts as spent until it is returned, so the books can only over-count: a crash forfeits what was on lease.
Budgets live as long as the account; only a grant, which leaves a record, gives more.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from hardening.errors import ConfigError, LedgerError
from hardening.ledger.amounts import Account, Budget, Cost, Shortfall, Window
from hardening.ledger.ledger import CAPACITY, ROOM, Ledger
from hardening.ledger.rules import LedgerRules
from hardening.ledger.store import Store
from hardening.types import Clock, Sink

if TYPE_CHECKING:
    from hardening.ledger.redis import RedisStore

__all__ = [
    "Account",
    "Budget",
    "Cost",
    "Ledger",
    "LedgerRules",
    "Shortfall",
    "Window",
    "check_store",
    "open_ledger",
    "open_store",
]


def open_store(rules: LedgerRules, *, root: Path = Path(), password: str | None = None) -> Store:
    """The store that `rules` name; a relative path is relative to `root`, `password` is what the reference holds.

    Raises ConfigError, also for a Redis server that answers and may forget what it acknowledges. One that does not
    answer is left for later: until then ``on_failure`` decides.
    """
    backend, address = rules.place
    if backend == "memory":
        from hardening.ledger.memory import MemoryStore

        return MemoryStore()
    if backend == "sqlite":
        from hardening.ledger.sqlite import SqliteStore

        return SqliteStore(root / address, timeout=rules.timeout)
    store = _redis(rules, password)
    try:
        store.connect()
    except LedgerError as problem:
        if problem.cause == "not-durable":
            raise _refusal(problem) from None
    return store


def check_store(rules: LedgerRules, *, root: Path = Path(), password: str | None = None, connect: bool = False) -> None:
    """Raise ConfigError where `open_store` would, without making a file; a server is asked only to `connect`.

    Then one that does not answer is an error too.
    """
    if rules.place.backend == "sqlite":
        from hardening.ledger.sqlite import check_file

        check_file(root / rules.place.address)
    if rules.place.backend == "redis":
        store = _redis(rules, password)
        try:
            if connect:
                store.connect()
        except LedgerError as problem:
            raise _refusal(problem) from None
        finally:
            store.close()


def _redis(rules: LedgerRules, password: str | None) -> RedisStore:
    from hardening.ledger.redis import RedisStore

    return RedisStore(rules.place.address, password=password, durability=rules.durability, timeout=rules.timeout)


def _refusal(problem: LedgerError) -> ConfigError:
    if problem.cause == "not-durable":
        return ConfigError("ledger.durability", f"{problem}; repair that, or write 'best-effort'")
    return ConfigError("ledger.url", str(problem))


def open_ledger(
    rules: LedgerRules,
    budgets: Mapping[str, Budget],
    *,
    root: Path = Path(),
    password: str | None = None,
    sink: Sink | None = None,
    clock: Clock = time.time,
    clients: int = 0,
) -> Ledger:
    """A ledger over the store that `rules` name, see `open_store`, with room for so many clients at least.

    Raises ConfigError.
    """
    store = open_store(rules, root=root, password=password)
    room = max(clients, CAPACITY if store.durable else ROOM)
    return Ledger(store, budgets, on_failure=rules.on_failure, sink=sink, clock=clock, capacity=room)
