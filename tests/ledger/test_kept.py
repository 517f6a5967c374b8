"""Rows of clients in the stores: each replica's own, dead replicas' folded, nobody's lost and nobody's twice."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import pytest

from hardening.errors import LedgerError
from hardening.ledger.redis import KEEPER, RedisStore
from hardening.ledger.sqlite import SqliteStore
from hardening.ledger.store import FORGET, Fold, Slot, Store
from hardening.testing import FakeClock

LIFE = 180


def of(store: Store, client: str = "alice") -> dict[str, tuple[bool, bytes]]:
    (slots,) = store.kept([client])
    assert len({slot.replica for slot in slots}) == len(slots)
    return {slot.replica: (slot.dead, slot.row) for slot in slots}


def test_a_replica_replaces_what_it_kept(store: Store) -> None:
    rows = {"alice": b"\x00\xff 1", "bob": b"2"}
    assert store.keep("one", 1, rows, LIFE, known=False) == "kept"
    assert store.keep("two", 1, {"alice": b"3"}, LIFE, known=False) == "kept"
    assert store.keep("one", 2, {"alice": b"4"}, LIFE, known=True) == "kept"
    assert of(store) == {"one": (False, b"4"), "two": (False, b"3")}
    assert store.kept(["nobody", "bob"]) == [[], [Slot("one", False, b"2")]]
    assert store.kept([]) == []
    assert store.keep("one", 3, {}, LIFE, known=True) == "kept"


def test_an_exchange_that_was_overtaken_keeps_nothing(store: Store) -> None:
    store.keep("one", 2, {"alice": b"new"}, LIFE, known=False)
    for late in (1, 2):
        with pytest.raises(LedgerError, match="overtaken"):
            store.keep("one", late, {"alice": b"old"}, LIFE, known=True)
    assert of(store) == {"one": (False, b"new")}


def test_who_is_not_heard_of_is_dead_and_may_come_back_until_it_is_folded(store: Store, clock: FakeClock) -> None:
    store.keep("one", 1, {"alice": b"1"}, LIFE, known=False)
    clock.now += LIFE + 1
    assert of(store) == {"one": (True, b"1")}
    assert store.keep("one", 2, {}, LIFE, known=True) == "kept"
    assert of(store) == {"one": (False, b"1")}
    store.end("one")
    assert of(store) == {"one": (True, b"1")}
    assert store.keep("one", 3, {"alice": b"2"}, LIFE, known=True) == "ended"
    assert store.keep("one", 4, {"alice": b"2"}, LIFE, known=False) == "ended"
    assert of(store) == {"one": (True, b"1")}


def test_folding_takes_the_right_to_write(store: Store, clock: FakeClock) -> None:
    for name in ("one", "two"):
        store.keep(name, 1, {"alice": name.encode(), "bob": b"b"}, LIFE, known=False)
    clock.now += LIFE + 1
    store.keep("three", 1, {"alice": b"alive"}, LIFE, known=False)
    both = Fold("alice", {"one": b"one", "two": b"two"}, "sum", b"1+2")
    assert store.fold([both, Fold("alice", {"one": b"one", "sum": b"1+2"}, "no", b"")]) == 1
    assert of(store) == {"sum": (True, b"1+2"), "three": (False, b"alive")}
    assert store.keep("one", 2, {"alice": b"late"}, LIFE, known=True) == "ended"
    assert of(store, "bob") == {"one": (True, b"b"), "two": (True, b"b")}
    assert store.fold([both, Fold("bob", {"one": b"b", "two": b"b"}, "more", b"2b")]) == 1
    # A sum is folded like what a dead replica kept.
    store.end("three")
    assert store.fold([Fold("alice", {"sum": b"1+2", "three": b"alive"}, "all", b"1+2+3")]) == 1
    assert of(store) == {"all": (True, b"1+2+3")}


def test_nothing_is_folded_that_lives_or_is_not_there(store: Store, clock: FakeClock) -> None:
    store.keep("dead", 1, {"alice": b"1"}, LIFE, known=False)
    clock.now += LIFE + 1
    store.keep("alive", 1, {"alice": b"2"}, LIFE, known=False)
    before = of(store)
    for rows in ({"dead": b"1", "alive": b"2"}, {"dead": b"1", "gone": b"3"}, {"dead": b"0"}):
        assert store.fold([Fold("alice", rows, "sum", b"3")]) == 0
    assert of(store) == before
    assert store.keep("dead", 2, {"alice": b"1"}, LIFE, known=True) == "kept"  # nothing was taken from it


def test_a_store_that_forgot_a_replica_says_so(store: Store, tmp_path: Path) -> None:
    assert store.keep("one", 7, {"alice": b"1"}, LIFE, known=True) == "forgotten"
    assert of(store) == {}
    assert store.keep("one", 8, {"alice": b"1"}, LIFE, known=False) == "kept"


def test_what_is_remembered_of_the_dead_is_forgotten_in_time(tmp_path: Path) -> None:
    clock = FakeClock(1e9)
    store = SqliteStore(tmp_path / "books.db", clock=clock)
    store.keep("one", 1, {"alice": b"1"}, LIFE, known=False)
    store.end("one")
    clock.now += FORGET + LIFE + 1
    store.close()
    assert of(store) == {"one": (True, b"1")}
    with contextlib.closing(sqlite3.connect(tmp_path / "books.db")) as sql:
        assert sql.execute("SELECT count(*) FROM keepers").fetchone() == (0,)
    store.close()


def test_records_in_redis_expire(request: pytest.FixtureRequest) -> None:
    store = RedisStore(request.getfixturevalue("server").url)
    store.keep("expiring", 1, {}, LIFE, known=False)
    assert 0 < store._with(lambda: store._call("TTL", KEEPER + "expiring")) <= FORGET
    store.end("expiring")
    assert 0 < store._with(lambda: store._call("TTL", KEEPER + "expiring")) <= FORGET
    store.close()


def test_a_ledger_made_before_there_were_rows_is_taken_further(tmp_path: Path) -> None:
    file = tmp_path / "books.db"
    store = SqliteStore(file)
    store.extend("credential:alice", "bits", 7, "before")
    store.close()
    with contextlib.closing(sqlite3.connect(file)) as sql:
        sql.executescript("DROP TABLE kept; DROP TABLE keepers")
    store = SqliteStore(file)
    assert store.keep("one", 1, {"alice": b"1"}, LIFE, known=False) == "kept"
    assert store.read("credential:alice")["bits"].extra == 7
    store.close()
