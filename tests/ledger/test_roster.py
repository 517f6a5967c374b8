"""Any number of names: those that nobody uses are settled with the store and forgotten, and nobody's spending is."""

from __future__ import annotations

import contextlib
import ipaddress
import random
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from hardening.errors import LedgerError
from hardening.ledger import Account, Budget, Cost, Ledger, Window
from hardening.ledger.amounts import UNITS
from hardening.ledger.books import Ask
from hardening.ledger.memory import MemoryStore
from hardening.ledger.sqlite import SqliteStore
from hardening.ledger.store import BATCH, Store
from hardening.testing import FakeClock, RecordingSink
from tests.ledger.test_ledger import Switched

BIT = UNITS[0]
ALICE, BOB, MODEL = Account("credential", "alice"), Account("credential", "bob"), Account("model", "m")
ONE = Cost.of(bits=1.0)
CREDENTIAL = {"credential": Budget(bits=1000.0)}


def ledger(store: Store, budgets: dict[str, Budget] | None = None, **more: Any) -> Ledger:
    settings: dict[str, Any] = {"background": False, "monotonic": FakeClock(), "capacity": 300} | more
    return Ledger(store, CREDENTIAL if budgets is None else budgets, **settings)


def sybils(books: Ledger, count: int, name: str = "sybil") -> int:
    """So many new names ask for one bit each; how many were served."""
    return sum(books.spend((Account("credential", f"{name} {i}"),), ONE) is None for i in range(count))


def test_a_burst_of_names_after_a_restart_gives_nobody_anything(store: Store) -> None:
    """Alice has spent all, Bob has not: the one stays refused, the other is served, whatever the store."""
    before = ledger(store)
    assert before.spend((ALICE,), Cost.of(bits=1000.0)) is None
    assert before.spend((BOB,), ONE) is None
    before.close()
    after = ledger(store)
    sybils(after, 1000)
    assert after.spend((ALICE,), Cost.of(bits=500.0)) == (ALICE.key, "bits", "exhausted")
    assert after.spend((ALICE,), ONE) == (ALICE.key, "bits", "exhausted")
    assert after.spend((BOB,), Cost.of(bits=600.0)) is None
    assert after.spend((BOB,), Cost.of(bits=400.0)) == (BOB.key, "bits", "exhausted")


def test_a_durable_store_has_room_for_everybody(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "books.db")
    books = ledger(store)
    assert books.spend((ALICE,), ONE) is None
    assert sybils(books, 3000) == 3000
    assert len(list(books._roster)) <= 300 + BATCH
    with contextlib.closing(sqlite3.connect(tmp_path / "books.db")) as sql:
        assert sql.execute("SELECT count(*) FROM held").fetchone()[0] <= 300 + BATCH
        assert sql.execute("SELECT count(*) FROM entries WHERE key LIKE '%pooled%'").fetchone() == (0,)
    assert books.spend((ALICE,), ONE) is None
    books.close()
    store = SqliteStore(tmp_path / "books.db")
    names = [f"credential:sybil {i}" for i in range(3000)]
    assert {balance["bits"].total for balance in store.read_all(names).values()} == {BIT}
    assert store.read(ALICE.key)["bits"].total == 2 * BIT
    store.close()


def test_parting_twice_is_parting_once(store: Store) -> None:
    """The answer was lost, and the same is sent again; what was forgotten is not told to the books a second time."""

    def ask(own: int, used: int, need: int = 0, known: int = 0) -> Ask:
        return Ask(ALICE.key, "bits", own, used, need, need, 1 << 40, 0, known)

    assert store.lease("a", 1, [ask(0, 0, need=100)]).granted == [100]
    assert store.part("a", 2, [ask(30, 30, known=100)]).granted == [30]
    assert store.part("a", 2, [ask(30, 30, known=100)]).last == 2
    assert store.read(ALICE.key)["bits"].total == 30
    with pytest.raises(LedgerError, match="overtaken"):
        store.lease("a", 2, [ask(0, 0, need=5)])
    reply = store.lease("a", 3, [ask(0, 0, need=5)])
    assert (reply.last, reply.granted, reply.restored) == (2, [5], [0])
    with pytest.raises(LedgerError, match="overtaken"):
        store.part("a", 2, [ask(30, 30, known=100)])
    assert store.read(ALICE.key)["bits"].total == 35


def test_who_is_served_is_not_forgotten() -> None:
    """A client that asks now and then in a flood of new names makes no exchange but for its slices."""
    store = Switched()
    store.durable = True
    books = ledger(store, {"credential": Budget(bits=1e9)})
    asked = 0
    for i in range(3000):
        sybils(books, 1, f"flood {i}")
        if i % 20 == 0:
            before = store.exchanges
            assert books.spend((ALICE,), ONE) is None
            asked += store.exchanges - before
    assert asked < 20


def test_rows_on_lease_are_given_back_when_their_account_is_forgotten(clock: FakeClock) -> None:
    """A slow client in a flood gets all that its window lets through."""
    store = MemoryStore(clock)
    store.durable = True
    books = ledger(store, {"credential": Budget(queries=Window("1d", 50))}, clock=clock, monotonic=clock, capacity=10)
    for i in range(50):
        assert books.spend((ALICE,), Cost(queries=1)) is None, i
        for k in range(400):
            books.spend((Account("credential", f"flood {i} {k}"),), Cost(queries=1))
    assert books.spend((ALICE,), Cost(queries=1)) == (ALICE.key, "queries", "exhausted")


def test_each_rung_has_room_of_its_own() -> None:
    """One credential from all networks of a provider takes no room from other credentials."""
    books = ledger(MemoryStore(), CREDENTIAL | {"prefix": Budget(bits=1000.0)})
    first = int(ipaddress.ip_address("2001:db8::"))
    evil = Account("credential", "evil")
    for i in range(900):
        network = ipaddress.ip_network((first + (i << 80), 48))
        assert books.spend((evil, Account("prefix", str(network))), ONE) is None
    honest = [(Account("credential", f"honest {i}"), Account("prefix", "198.51.100.0/24")) for i in range(200)]
    assert [books.spend(accounts, Cost.of(bits=1.0)) for accounts in honest] == [None] * 200
    assert books.balance(honest[199][0])["bits"].total >= BIT, "an account of its own"


def test_books_in_memory_forget_nobody_and_share_beyond_capacity() -> None:
    books = ledger(MemoryStore())
    assert books.spend((ALICE,), Cost.of(bits=1000.0)) is None
    assert sybils(books, 5000) < 1400
    assert len(list(books._roster)) == 301
    assert books.spend((ALICE,), ONE) == (ALICE.key, "bits", "exhausted")
    assert books.spend((Account("credential", "sybil 0"),), Cost.of(bits=900.0)) is None
    assert books.balance(ALICE.pooled)["bits"].total == 1000 * BIT


@pytest.mark.parametrize("on_failure", ["deny", "allow"])
def test_a_flood_while_the_store_is_away(on_failure: str) -> None:
    """Memory stays bounded; what is allowed on credit is charged to the pooled account when the store is back."""
    store, sink, clock = Switched(), RecordingSink(), FakeClock()
    store.durable = True
    books = ledger(store, on_failure=on_failure, sink=sink, monotonic=clock, capacity=100)
    assert sybils(books, 90, "old") == 90
    store.failing = "unreachable"
    assert sybils(books, 500) == (500 if on_failure == "allow" else 0)
    assert len(list(books._roster)) <= 101
    store.failing = ""
    clock.now += 10.0
    books.tick()
    assert sybils(books, 500, "new") == 500
    books.close()
    pooled = sum(b.total for b in store.read(ALICE.pooled.key).values())
    assert pooled == (490 * BIT if on_failure == "allow" else 0)
    total = sum(entry.total for entry in store._entries.values())
    assert total == (90 + 500 + 500 * (on_failure == "allow")) * BIT


def test_many_threads_in_a_flood(store: Store) -> None:
    """Leases come and go under their feet; the books are exact."""
    store_budgets = {"credential": Budget(bits=50.0), "model": Budget(bits=4e9)}
    books = ledger(store, store_budgets, capacity=20 if store.durable else 10_000)
    names = [Account("credential", f"client {i}") for i in range(400)]

    def work(seed: int) -> dict[Account, int]:
        rng, spent = random.Random(seed), dict.fromkeys(names, 0)
        for _ in range(400):
            account, amount = names[int(rng.paretovariate(0.5)) % 400], rng.randrange(1, 4 * BIT)
            if books.spend((account, MODEL), Cost(bits=amount)) is None:
                spent[account] += amount
        return spent

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(work, range(8)))
    books.close() if isinstance(store, MemoryStore) else books.tick()
    for account in names:
        spent = sum(each[account] for each in found)
        balance = store.read(account.key).get("bits")
        booked = 0 if balance is None else balance.total - books.held(account).get("bits", 0)
        assert booked == spent <= 50 * BIT
