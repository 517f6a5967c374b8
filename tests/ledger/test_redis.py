"""A real server: its durability, its absence, its restarts, and what is delivered late."""

from __future__ import annotations

import dataclasses
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from hardening.errors import ConfigError, LedgerError
from hardening.ledger import Account, Budget, Cost, Ledger, LedgerRules, Window, open_ledger, open_store
from hardening.ledger.amounts import UNITS
from hardening.ledger.books import Ask
from hardening.ledger.lease import FIRST
from hardening.ledger.redis import ACCOUNT, GRANTS, REPLICA, ROLL, RedisStore
from hardening.ledger.store import FORGET, REMEMBERED
from hardening.testing import FakeClock, RecordingSink
from tests.ledger.proxy import Proxy
from tests.ledger.server import DURABLE, FORGETFUL, PATIENCE, Server, reserve

ALICE, ONE = Account("credential", "alice"), Cost.of(bits=1.0)
BIT = UNITS[0]
Launch = Callable[..., Server]


def ask(own: int, used: int, need: int, want: int) -> Ask:
    return Ask(ALICE.key, "bits", own, used, need, want, 1 << 40, 0)


def call(server: Server, *command: Any) -> Any:
    store = reach(server.url, durability="best-effort")
    try:
        return store._with(lambda: store._call(*command))
    finally:
        store.close()


def reach(url: str, **more: Any) -> RedisStore:
    return RedisStore(url, timeout=PATIENCE, **more)


def wait_for_answers(store: RedisStore, seconds: float) -> None:
    """On the connection there is and on those to come: few where no answer can come, many where one has to."""
    store._pool.connection_kwargs["socket_timeout"] = seconds
    if store._connection is not None:
        store._connection._sock.settimeout(seconds)


@pytest.fixture
def empty(server: Server) -> Server:
    call(server, "FLUSHDB")
    return server


@pytest.fixture
def proxy(empty: Server) -> Iterator[Proxy]:
    proxy = Proxy(empty.port)
    yield proxy
    proxy.close()


def ledger(store: RedisStore, **more: Any) -> Ledger:
    settings: dict[str, Any] = {"background": False} | more
    return Ledger(store, {"credential": Budget(bits=1.0e6)}, **settings)


def kinds(sink: RecordingSink) -> list[str]:
    return [event.kind for event in sink.events]


# Durability


def test_a_durable_server_is_taken(empty: Server) -> None:
    store = open_store(LedgerRules(empty.url, timeout=PATIENCE))
    assert store.weakness == ""
    store.close()


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("appendonly", "no"),
        ("appendfsync", "everysec"),
        ("appendfsync", "no"),
        ("no-appendfsync-on-rewrite", "yes"),
        ("maxmemory-policy", "allkeys-lru"),
        ("maxmemory-policy", "allkeys-random"),
    ],
)
def test_a_server_that_may_forget_is_refused_unless_that_is_said(empty: Server, setting: str, value: str) -> None:
    right = call(empty, "CONFIG", "GET", setting)[1]
    call(empty, "CONFIG", "SET", setting, value)
    try:
        with pytest.raises(ConfigError, match=f"{setting} is {value}.* write 'best-effort'") as raised:
            open_store(LedgerRules(empty.url, timeout=PATIENCE))
        assert raised.value.path == "ledger.durability"
        sink = RecordingSink()
        books = open_ledger(
            LedgerRules(empty.url, durability="best-effort", timeout=PATIENCE),
            {"credential": Budget(bits=9.0)},
            sink=sink,
        )
        assert books.spend((ALICE,), ONE) is None
        books.close()
        assert kinds(sink) == ["ledger-not-durable"]
        assert f"{setting} is {value}" in sink.events[0].evidence["problem"]
    finally:
        call(empty, "CONFIG", "SET", setting, right)


def test_a_server_that_tells_nothing_may_forget(empty: Server) -> None:
    """As those are that a provider runs: CONFIG is refused to this user."""
    call(empty, "ACL", "SETUSER", "guest", "on", ">guest", "~*", "+@all", "-config")
    try:
        rules = LedgerRules(empty.url.replace("//", "//guest@"), password="env:UNUSED", timeout=PATIENCE)
        with pytest.raises(ConfigError, match="it does not tell"):
            open_store(rules, password="guest")
        loose = dataclasses.replace(rules, durability="best-effort")
        store = open_store(loose, password="guest")
        assert store.lease("a", 1, [ask(0, 0, 5, 5)]).granted == [5]
        store.close()
        wrong = open_store(loose, password="guess")  # says nothing yet: it may be repaired
        with pytest.raises(LedgerError, match=r"(?i)password"):
            wrong.read(ALICE.key)
    finally:
        call(empty, "ACL", "DELUSER", "guest")


def test_durability_is_checked_at_every_connect(launch: Launch) -> None:
    server, sink, clock = launch(*DURABLE), RecordingSink(), FakeClock()
    books = ledger(reach(server.url), sink=sink, monotonic=clock)
    assert [books.spend((ALICE,), ONE) for _ in range(2)] == [None, None]
    server.kill()
    server.options = FORGETFUL
    server.start()
    for _ in range(3):
        books.spend((ALICE,), Cost.of(bits=100.0))
        clock.now += 6.0
    assert books.spend((ALICE,), Cost.of(bits=100.0)) == (ALICE.key, "bits", "unreachable")
    server.kill()
    server.options = DURABLE
    server.start()
    clock.now += 6.0
    books.spend((ALICE,), Cost.of(bits=100.0))
    clock.now += 6.0
    assert books.spend((ALICE,), Cost.of(bits=100.0)) is None
    assert kinds(sink)[:2] == ["ledger-unreachable", "ledger-not-durable"]
    assert "ledger-back" in kinds(sink)
    books.close()


# Absence


def test_a_server_that_is_not_there_yet() -> None:
    held, port = reserve()
    sink, clock = RecordingSink(), FakeClock()
    with held:
        store = open_store(LedgerRules(f"redis://127.0.0.1:{port}", timeout=PATIENCE))
        books = Ledger(store, {"credential": Budget(bits=9.0)}, sink=sink, monotonic=clock, background=False)
        assert books.spend((ALICE,), ONE) == (ALICE.key, "bits", "unreachable")
        books.close()
    assert kinds(sink) == ["ledger-unreachable"]


@pytest.mark.parametrize("on_failure", ["deny", "allow"])
def test_a_partition(proxy: Proxy, empty: Server, on_failure: str) -> None:
    """What is leased is spent, the rest as the policy says; the books are right when the network is."""
    store, sink, clock = reach(proxy.url), RecordingSink(), FakeClock()
    books = ledger(store, sink=sink, monotonic=clock, on_failure=on_failure)
    assert books.spend((ALICE,), ONE) is None
    proxy.hold()
    wait_for_answers(store, 0.2)
    answers = [books.spend((ALICE,), ONE) for _ in range(FIRST + 20)]
    assert answers[: FIRST - 1] == [None] * (FIRST - 1)
    assert set(answers[FIRST:]) == {None if on_failure == "allow" else (ALICE.key, "bits", "unreachable")}
    proxy.release()
    wait_for_answers(store, PATIENCE)
    clock.now += 6.0
    assert books.spend((ALICE,), ONE) is None
    spent = 2 + answers.count(None)
    assert books.balance(ALICE)["bits"].total - books.held(ALICE)["bits"] == spent * BIT
    books.close()
    assert books.balance(ALICE)["bits"].total == spent * BIT
    assert kinds(sink)[:2] == ["ledger-unreachable", "ledger-back"]
    assert sink.events[0].evidence["on_failure"] == on_failure


def test_the_background_comes_back_by_itself(proxy: Proxy) -> None:
    back = threading.Event()

    class Sink(RecordingSink):
        def emit(self, event: Any) -> None:
            super().emit(event)
            if event.kind == "ledger-back":
                back.set()

    store, sink = reach(proxy.url), Sink()
    books = ledger(store, sink=sink, background=True)
    assert books.spend((ALICE,), ONE) is None
    proxy.hold()
    wait_for_answers(store, 0.2)
    assert books.spend((ALICE,), Cost.of(bits=1000.0)) == (ALICE.key, "bits", "unreachable")
    proxy.release()
    wait_for_answers(store, PATIENCE)
    assert back.wait(PATIENCE)
    assert books.spend((ALICE,), Cost.of(bits=1000.0)) is None
    books.close()
    assert kinds(sink) == ["ledger-unreachable", "ledger-back"]


def test_a_server_that_is_frozen_and_answers_late(launch: Launch) -> None:
    """It works on what was given up long ago, from a connection that is gone, before and after newer requests."""
    server, sink, clock = launch(*DURABLE), RecordingSink(), FakeClock()
    store = reach(server.url)
    books = ledger(store, sink=sink, monotonic=clock)
    assert books.spend((ALICE,), ONE) is None
    server.send(signal.SIGSTOP)
    wait_for_answers(store, 0.2)
    for _ in range(4):
        assert books.spend((ALICE,), Cost.of(bits=50.0)) == (ALICE.key, "bits", "unreachable")
        clock.now += 6.0
    server.send(signal.SIGCONT)
    wait_for_answers(store, PATIENCE)
    assert books.spend((ALICE,), Cost.of(bits=50.0)) is None
    books.close()
    assert books.balance(ALICE)["bits"].total == 51 * BIT


def test_a_return_that_is_delivered_late_takes_nothing_from_the_books(empty: Server) -> None:
    """Replica 'a' returned 90 in exchange 2, which was held up, and leased them again in exchange 3."""
    store = reach(empty.url)
    store.lease("a", 1, [ask(0, 0, 100, 100)])
    store.lease("a", 3, [ask(100, 10, 90, 90)])
    with pytest.raises(LedgerError, match="overtaken"):
        store.lease("a", 2, [ask(10, 10, 0, 0)])
    assert store.read(ALICE.key)["bits"].total == 100
    store.close()


def test_a_server_without_memory(launch: Launch) -> None:
    server, sink, clock = launch(*DURABLE), RecordingSink(), FakeClock()
    books = ledger(reach(server.url), sink=sink, monotonic=clock)
    assert books.spend((ALICE,), ONE) is None
    call(server, "CONFIG", "SET", "maxmemory", "1")
    assert books.spend((ALICE,), Cost.of(bits=50.0)) == (ALICE.key, "bits", "unreachable")
    call(server, "CONFIG", "SET", "maxmemory", "0")
    clock.now += 1.0
    assert books.spend((ALICE,), Cost.of(bits=50.0)) is None
    assert kinds(sink) == ["ledger-full", "ledger-back"]
    books.close()


# Restarts


def test_a_restart_forgets_nothing(launch: Launch) -> None:
    server, sink, clock = launch(*DURABLE), RecordingSink(), FakeClock()
    books = ledger(reach(server.url), sink=sink, monotonic=clock)
    assert books.spend((ALICE,), Cost.of(bits=500.0)) is None
    total = books.balance(ALICE)["bits"].total
    server.restart()
    assert int(call(server, "HGET", ACCOUNT + ALICE.key, "bits").split()[0]) == total
    assert books.spend((ALICE,), Cost.of(bits=5000.0)) == (ALICE.key, "bits", "unreachable")  # the connection is gone
    clock.now += 1.0
    assert books.spend((ALICE,), Cost.of(bits=5000.0)) is None
    assert kinds(sink) == ["ledger-unreachable", "ledger-back"]
    books.close()


def test_a_server_that_forgot_is_told_by_each_replica(launch: Launch) -> None:
    server, sink, clock = launch(*FORGETFUL), RecordingSink(), FakeClock()
    replicas = [ledger(reach(server.url, durability="best-effort"), sink=sink, monotonic=clock) for _ in range(2)]
    for books in replicas:
        assert books.spend((ALICE,), Cost.of(bits=300.0)) is None
    server.restart()
    assert call(server, "EXISTS", ACCOUNT + ALICE.key) == 0
    clock.now += RedisStore.heartbeat
    for books in replicas:
        books.tick()
    clock.now += 6.0
    for books in replicas:
        books.tick()
    held = sum(books.held(ALICE)["bits"] for books in replicas)
    assert replicas[0].balance(ALICE)["bits"].total == 600 * BIT + held
    assert kinds(sink).count("ledger-restored") == 2
    for books in replicas:
        books.close()


# Records


def test_records(empty: Server) -> None:
    store = reach(empty.url)
    store.lease("a", 1, [ask(0, 0, 5, 5)])
    assert call(empty, "TTL", ACCOUNT + ALICE.key) == -1, "accounts live for ever"
    assert FORGET - 600 <= call(empty, "TTL", REPLICA + "a") <= FORGET
    assert call(empty, "ZRANGE", ROLL, 0, -1) == [REPLICA + "a"]
    store.retire("a")
    assert call(empty, "EXISTS", REPLICA + "a", ROLL) == 0
    store.extend(ALICE.key, "rho", 7, "ticket 9")
    store.extend(ALICE.key, "rho", 2, "ticket 10")
    assert store.read(ALICE.key) == {"bits": (5, 0), "rho": (0, 9)}
    lines = [json.loads(line) for line in call(empty, "LRANGE", GRANTS, 0, -1)]
    assert [(line["key"], line["amount"], line["reason"]) for line in lines] == [
        (ALICE.key, 7, "ticket 9"),
        (ALICE.key, 2, "ticket 10"),
    ]
    store.close()


def test_a_replica_outlives_a_clock_that_is_set_forward(empty: Server) -> None:
    """As when the server's clock is set forward by more than a week: the record has expired, the replica has not."""
    clock = FakeClock()
    books = ledger(reach(empty.url), monotonic=clock)
    bob, spent = Account("credential", "bob"), 0
    for _ in range(3):
        for _ in range(100):
            assert books.spend((ALICE,), ONE) is None
            assert books.spend((bob,), ONE) is None
            clock.now += 0.01
        spent += 100
        (record,) = call(empty, "KEYS", REPLICA + "*")
        call(empty, "DEL", record)
        clock.now += 10.0
        books.tick()
        for account in (ALICE, bob):
            assert books.balance(account)["bits"].total - books.held(account)["bits"] == spent * BIT
    books.close()
    store = reach(empty.url)
    assert {store.read(account.key)["bits"].total for account in (ALICE, bob)} == {300 * BIT}
    store.close()


def test_books_that_are_lost_are_no_clock_that_was_set(launch: Launch) -> None:
    """With the accounts the roll is lost, too: so the replica tells what it knows."""
    server, clock = launch(*FORGETFUL), FakeClock()
    books = ledger(reach(server.url, durability="best-effort"), monotonic=clock)
    for _ in range(100):
        assert books.spend((ALICE,), ONE) is None
    call(server, "FLUSHALL")
    clock.now += 10.0
    books.tick()
    assert books.balance(ALICE)["bits"].total - books.held(ALICE)["bits"] == 100 * BIT
    books.close()


def test_the_roll_is_bounded(empty: Server) -> None:
    store = reach(empty.url)
    store._with(lambda: store._call("ZADD", ROLL, *(x for i in range(REMEMBERED + 50) for x in (i, f"dead {i}"))))
    store.lease("a", 1, [])
    assert call(empty, "ZCARD", ROLL) == REMEMBERED
    assert call(empty, "ZREVRANGE", ROLL, 0, 1) == [REPLICA + "a", f"dead {REMEMBERED + 49}"]
    store.close()


def test_a_server_whose_clock_is_set_is_told_of(empty: Server) -> None:
    """Seen from here, where a clock is that nobody sets: a day forward, and an hour back."""
    sink, clock = RecordingSink(), FakeClock()
    start, ours = time.monotonic(), FakeClock()
    store = reach(empty.url, monotonic=lambda: time.monotonic() - ours.now)
    budgets = {"credential": Budget(bits=1e6, queries=Window("1h", 100))}
    books = Ledger(store, budgets, sink=sink, clock=clock, monotonic=clock, background=False)
    for jump in (0.0, 86_400.0, 0.0, -3600.0, 0.0):
        ours.now += jump
        clock.now += 60.0
        books.spend((ALICE,), Cost.of(bits=100.0, queries=1))
        books.tick()
    assert [(e.kind, e.evidence["clock"]) for e in sink.events] == [("clock-jumped", "store")] * 2
    seconds = [e.evidence["seconds"] for e in sink.events]
    assert seconds == pytest.approx([86_400, -3600], abs=1 + time.monotonic() - start)
    books.close()


def test_a_damaged_entry_is_no_empty_one(empty: Server) -> None:
    call(empty, "HSET", ACCOUNT + ALICE.key, "bits", "12")
    store = reach(empty.url)
    with pytest.raises(LedgerError, match="damaged"):
        store.lease("a", 1, [ask(0, 0, 5, 5)])
    store.close()


def test_windows_go_by_the_clock_of_the_server(empty: Server) -> None:
    """Replicas whose own clocks disagree share one bucket."""
    budgets = {"credential": Budget(queries=Window("1d", 100))}
    replicas = [Ledger(reach(empty.url), budgets, clock=FakeClock(wall), background=False) for wall in (0.0, 1e9, 4e9)]
    admitted = sum(replicas[i % 3].spend((ALICE,), Cost(queries=1)) is None for i in range(400))
    assert 98 <= admitted <= 100
    for books in replicas:
        books.close()
