"""Several processes, one client: what each saw counts once, whoever dies, sleeps, folds or restarts in between."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardening.clients import POOLED, Clients
from hardening.clients.evidence import log_evidence, log_wealth
from hardening.clients.table import evidence, merge
from hardening.errors import LedgerError
from hardening.kernels import accounts
from hardening.ledger.memory import MemoryStore
from hardening.ledger.redis import RedisStore
from hardening.ledger.sqlite import SqliteStore
from hardening.ledger.store import FORGET, Fold, Kept, Slot, Store
from hardening.replica import Replica
from hardening.testing import FakeClock, RecordingSink
from hardening.types import Event
from tests.clients.crowd import Summaries, fold
from tests.clients.test_evidence import flat
from tests.ledger.conftest import NOW

LIFE, ALPHA = 180, 1e-3
BASELINE = flat(0.1)
COUNTS = ("queries", "observed", "histogram", "labels", "cells", "firsts", "sums", "classes")
Open = Callable[[], Store]


def opened(kind: str, folder: Path, clock: FakeClock, request: pytest.FixtureRequest) -> Open:
    """Opens one store again and again, empty at first."""
    if kind == "memory":
        shared = MemoryStore(clock)
        return lambda: shared
    if kind == "sqlite":
        return lambda: SqliteStore(folder / "books.db", clock=clock, timeout=30)
    url = request.getfixturevalue("server").url
    first = RedisStore(url)
    first._with(lambda: first._call("FLUSHDB"))
    first.close()
    return lambda: RedisStore(url, clock=clock)


@pytest.fixture(params=["memory", "sqlite", "redis"])
def stores(request: pytest.FixtureRequest, tmp_path: Path, clock: FakeClock) -> Open:
    return opened(request.param, tmp_path, clock, request)


class Process:
    """A table of clients, and the replica that keeps it."""

    def __init__(self, store: Store, clock: FakeClock, capacity: int = 8, scope: str = "model") -> None:
        self.sink, self.clients, self.monotonic = RecordingSink(), Clients(capacity), FakeClock()
        self.rng = np.random.default_rng(0)

        def tell(kind: str, client: str, **facts: Any) -> None:
            self.sink.emit(Event(kind, clock(), client, facts))

        self.replica = Replica(store, self.clients, scope, LIFE, [1.0, 2.0], ALPHA, tell, clock, self.monotonic)

    def ask(self, client: str, rows: int, key: int = 1, odd: bool = True) -> None:
        """`rows` new questions, numbered from `key` on; odd ones speak against the client."""
        slot = self.clients.slot(client)
        self.replica.meet(slot)
        summary = np.tile([2.5, 0, 1, 0.0] if odd else [0.05, 3, 2, 0.5], (rows, 1))
        fold(self.clients, BASELINE, np.full(rows, slot), Summaries(summary, np.arange(key, key + rows).astype("u4")))

    @property
    def kinds(self) -> list[str]:
        return [event.kind for event in self.sink.events]

    def row(self, client: str = "alice") -> Any:
        return self.clients.row(client)


def seen_afresh(store: Store, clock: FakeClock, client: str = "alice") -> Any:
    process = Process(store, clock)
    process.replica.meet(process.clients.slot(client))
    return process.row(client)


def test_what_was_gathered_outlives_processes(stores: Open, clock: FakeClock) -> None:
    for orderly in (True, False):
        before = Process(stores(), clock)
        before.ask("alice", 40, key=1 + 100 * orderly)
        before.replica.tick()
        known = before.row()
        if orderly:
            before.replica.close()
        after = Process(stores(), clock)
        after.ask("bob", 1)
        after.replica.meet(after.clients.slot("alice"))
        for name in COUNTS:
            assert np.array_equal(after.row()[name], known[name]), name
        assert float(evidence(after.row())) == pytest.approx(float(evidence(known)), rel=1e-12)
        assert after.clients.suspicion("alice", ALPHA) > 1
        assert after.clients.suspicion("bob", ALPHA) < 0.1  # the first bet is on what thieves do
        # One harmless question to a process that knows nothing yet takes hardly anything from what is known.
        after.ask("alice", 1, key=900, odd=False)
        assert after.clients.suspicion("alice", ALPHA) > 1
    assert after.kinds == []


def test_restarts_hardly_acquit_anybody(clock: FakeClock) -> None:
    """A hundred processes, each asked one harmless question: each loses a first bet, a hundredth of the threshold."""
    store = MemoryStore(clock)
    first = Process(store, clock)
    first.ask("alice", 9)
    first.replica.tick()
    before = first.clients.suspicion("alice", ALPHA)
    assert 2 < before < 2.5
    for life in range(100):
        process = Process(store, clock)
        process.ask("alice", 1, key=100 + life, odd=False)
        now = process.clients.suspicion("alice", ALPHA)
        assert before - 0.0101 < now < before
        before = now
        process.replica.tick()
        clock.now += LIFE / 10
    assert before > 1


def test_replicas_of_one_client_have_the_evidence_of_all(stores: Open, clock: FakeClock) -> None:
    many = [Process(stores(), clock) for _ in range(3)]
    for i, process in enumerate(many):
        process.ask("alice", 2 + i, key=100 * i + 1)
    parts = [process.clients.own(0) for process in many]
    assert all(process.clients.suspicion("alice", ALPHA) < 1 for process in many)
    for process in many + many:
        process.replica.tick()
    whole = merge(np.array(parts))
    for process in many:
        for name in COUNTS:
            assert np.array_equal(process.row()[name], whole[name]), name
        assert float(evidence(process.row())) == pytest.approx(float(evidence(whole)), rel=1e-12)
        assert process.clients.own(0) == parts[many.index(process)]
        assert process.clients.standing("alice", "t", ALPHA).queries == 9
        assert process.clients.suspicion("alice", ALPHA) > 1.2


def test_models_are_kept_apart(clock: FakeClock) -> None:
    store = MemoryStore(clock)
    one, other = Process(store, clock), Process(store, clock, scope="another model")
    one.ask("alice", 40)
    one.replica.tick()
    other.ask("alice", 1)
    other.replica.tick()
    assert other.row()["queries"] == 1
    assert seen_afresh(store, clock)["queries"] == 40


def test_the_shared_account_is_kept_as_well(clock: FakeClock) -> None:
    store = MemoryStore(clock)
    for _ in range(2):
        full = Process(store, clock, capacity=1)
        full.ask("first", 1)
        full.ask("second", 3)
        full.replica.tick()
    assert full.row(POOLED)["queries"] == 6
    assert full.row("first")["queries"] == 2


class Recorder:
    """A store that notes the last row of every replica that was kept; the oracle of all that is done to them later."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.rows: dict[tuple[str, str], bytes] = {}
        self.lost = False

    def keep(self, replica: str, number: int, rows: Mapping[str, bytes], lifetime: int, known: bool) -> Kept:
        status = self._store.keep(replica, number, rows, lifetime, known)
        if status == "kept":
            self.rows |= {(client, replica): row for client, row in rows.items()}
        if self.lost:
            raise LedgerError("the answer was lost")
        return status

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["ask", "ask", "write", "tick", "lose", "kill", "close", "sleep", "fork"]),
        st.integers(0, 2),
        st.integers(1, 5),
    ),
    max_size=40,
)


def played(store: Store, clock: FakeClock, steps: Sequence[tuple[str, int, int]]) -> None:
    recorder = Recorder(store)
    made: Callable[[], Process] = lambda: Process(recorder, clock)  # type: ignore[arg-type]  # noqa: E731
    processes, key = [made() for _ in range(3)], 1
    for step, which, amount in steps:
        process, recorder.lost = processes[which], step == "lose"
        if step == "ask":
            process.ask("alice", amount, key, odd=amount % 2 == 0)
            key += amount
        elif step == "write":
            process.replica.write([0] if process.clients.names() else [])
        elif step in ("tick", "lose"):
            process.monotonic.now += 10
            process.replica.tick()
        elif step == "sleep":
            clock.now += LIFE * amount / 3
        elif step == "fork":
            process.replica._store = Unforked(recorder)  # type: ignore[assignment]
            process.replica.begin_again()
        elif step in ("kill", "close"):
            if step == "close":
                process.replica.close()
            processes[which] = made()
    recorder.lost = False
    rows = [Clients(1).unpack(row) for row in recorder.rows.values()]
    whole = merge(np.array([*rows, np.zeros((), accounts.ROW)]))
    found = seen_afresh(store, clock)
    assert found is not None
    for name in COUNTS:
        assert np.array_equal(found[name], whole[name]), name
    assert float(evidence(found)) == pytest.approx(float(evidence(whole)), rel=1e-9, abs=1e-9)
    for process in processes:
        process.monotonic.now += 10
        process.replica.tick()  # who was taken for dead finds out
    for process in processes:
        process.monotonic.now += 10
        process.replica.tick()
        process.replica.tick()
    rows = [Clients(1).unpack(row) for row in recorder.rows.values()]
    whole = merge(np.array([*rows, np.zeros((), accounts.ROW)]))
    for process in processes:
        process.replica.tick()
        if process.clients.names():
            for name in set(COUNTS) - {"cells"}:
                assert np.array_equal(process.row()[name], whole[name]), name
            # Cells that a parent had not written down when it was forked are known to its child all the same.
            assert not (whole["cells"] & ~process.row()["cells"]).any()


class Unforked:
    """Nothing is the parent's here."""

    def __init__(self, store: Any) -> None:
        self._store = store

    def abandon(self) -> None: ...

    def close(self) -> None: ...

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


class Shared(Unforked):
    """One connection for all processes of a test."""


@settings(deadline=None, max_examples=150)
@given(STEPS)
def test_every_row_that_was_kept_counts_once_whatever_happens(steps: list[tuple[str, int, int]]) -> None:
    clock = FakeClock(NOW)
    played(Shared(MemoryStore(clock)), clock, steps)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
def test_the_same_over_a_real_store(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Fewer courses, but real ones."""
    rng, names = np.random.default_rng(1), ["ask", "ask", "write", "tick", "lose", "kill", "close", "sleep", "fork"]
    for course in range(6):
        folder, clock = tmp_path / str(course), FakeClock(NOW)
        folder.mkdir()
        store = opened(kind, folder, clock, request)()
        steps = [(names[rng.integers(len(names))], int(rng.integers(3)), int(rng.integers(1, 6))) for _ in range(40)]
        played(Shared(store), clock, steps)  # type: ignore[arg-type]
        store.close()


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.tuples(st.floats(-3, 30), st.integers(0, 5), st.integers(0, 300)), min_size=1, max_size=12),
    st.randoms(),
)
def test_evidence_adds_up_whatever_the_order_and_partition(lines: list[tuple[float, int, int]], random: Any) -> None:
    rows = np.zeros(len(lines), accounts.ROW)
    rows["wealth"], rows["restarts"], rows["firsts"] = np.array(lines).T
    total = math.fsum(evidence(rows))
    shuffled = rows[random.sample(range(len(rows)), len(rows))]
    assert evidence(merge(rows)) == evidence(merge(shuffled)) == pytest.approx(total, rel=1e-12, abs=1e-12)
    cuts = sorted(random.sample(range(len(rows) + 1), min(3, len(rows))))
    parts = [part for part in np.split(shuffled, cuts) if len(part)]
    assert evidence(merge(np.array([merge(part) for part in parts]))) == pytest.approx(total, rel=1e-11, abs=1e-11)
    at_once = merge(np.stack([rows, rows[::-1]], axis=1))
    assert at_once[0] == merge(rows)
    assert at_once[1] == merge(rows[::-1])


@pytest.mark.parametrize("restarts", [0, 1, 1000, 2**32 - 1])
def test_wealth_is_found_again_from_evidence(restarts: int) -> None:
    for told in (-22.0, -5.0, -1e-12, 0.0, 1e-12, 3.0, 700.0, 1e5):
        floor = -math.log(restarts + 2.0)
        found = float(log_evidence(log_wealth(told, restarts), restarts))
        assert found == pytest.approx(max(told, floor), rel=1e-12, abs=1e-11)
        assert found >= floor


def test_a_thousand_ruined_replicas_are_no_evidence_and_no_error() -> None:
    rows = np.zeros(5000, accounts.ROW)
    rows["firsts"], rows["restarts"], rows["wealth"] = 10, 3, -3.0
    merged = merge(rows)
    assert merged["restarts"] == 2**32 - 1
    assert float(evidence(merged)) == pytest.approx(-32 * math.log(2), abs=1e-6)


REAL = [pytest.param(kind, 3000, marks=pytest.mark.deep) for kind in ("sqlite", "redis")]


@pytest.mark.parametrize(("kind", "lives"), [("memory", 3000), ("sqlite", 300), ("redis", 300), *REAL])
def test_thousands_of_restarts_do_not_make_the_store_grow(
    kind: str, lives: int, tmp_path: Path, clock: FakeClock, request: pytest.FixtureRequest
) -> None:
    store, most = Shared(opened(kind, tmp_path, clock, request)()), 0
    shared: Store = store  # type: ignore[assignment]
    for life in range(lives):
        process = Process(shared, clock, capacity=1)
        process.ask("alice", 1, key=life + 1)
        process.replica.tick()
        if life % 2:
            process.replica.close()
        clock.now += LIFE / 10
        most = max(most, len(shared.kept([process.replica._key(0)])[0]))
    assert most <= 8  # those killed within one lifetime, one sum, one own
    assert seen_afresh(shared, clock)["queries"] == lives
    if kind == "sqlite":
        rows = store._store._connection.execute("SELECT count(*), sum(length(row)) FROM kept").fetchone()
        assert rows[0] <= 8
        assert rows[1] <= 8 * 1024


def test_processes_that_fold_at_once(tmp_path: Path, clock: FakeClock) -> None:
    """Each over a connection of its own, a hundred dead replicas before them."""
    for i in range(100):
        dead = Process(SqliteStore(tmp_path / "books.db", clock=clock, timeout=30), clock)
        for client in ("alice", "bob", "carol"):
            dead.ask(client, 1, key=i + 1)
        dead.replica.write(range(3))
        dead.replica._store.close()
    clock.now += LIFE + 1
    many = [Process(SqliteStore(tmp_path / "books.db", clock=clock, timeout=30), clock) for _ in range(4)]

    def work(process: Process) -> None:
        for round_ in range(5):
            for client in ("alice", "bob", "carol"):
                process.ask(client, 1, key=1000 * round_ + 7)
            process.replica.tick()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, many))
    for process in many + many:
        process.replica.tick()
    for client in ("alice", "bob", "carol"):
        assert [int(process.row(client)["queries"]) for process in many] == [120] * 4
    (kept,) = many[0].replica._store.kept([many[0].replica._key(0)])
    assert len(kept) == 5
    assert {process for each in many for process in each.kinds} == set()
    for process in many:
        process.replica.close()


def test_who_was_only_asleep_goes_on_under_another_name(stores: Open, clock: FakeClock) -> None:
    asleep, awake = Process(stores(), clock), Process(stores(), clock)
    asleep.ask("alice", 10)
    awake.ask("alice", 5, key=100)
    asleep.replica.tick()
    awake.replica.tick()
    asleep.ask("alice", 3, key=50)  # not written down in time
    clock.now += LIFE + 1
    third = Process(stores(), clock)
    third.ask("alice", 1, key=200)
    third.replica.tick()  # folds the two
    asleep.ask("alice", 2, key=70)
    asleep.replica.tick()
    assert asleep.kinds == ["evidence-lost"]
    assert asleep.sink.events[0].evidence["seconds"] == LIFE + 1
    asleep.ask("alice", 4, key=90)
    asleep.replica.tick()
    assert asleep.row()["queries"] == 10 + 5 + 1 + 4
    third.replica.tick()
    assert third.row()["queries"] == asleep.row()["queries"]


def test_a_store_that_forgot_is_told_again(clock: FakeClock) -> None:
    process = Process(MemoryStore(clock), clock)
    process.ask("alice", 40)
    process.ask("bob", 2)
    process.replica.tick()
    process.replica._store = emptied = MemoryStore(clock)
    process.replica.tick()
    process.replica.glance()
    assert seen_afresh(emptied, clock)["queries"] == 40  # reached a level: at once
    process.replica.tick()
    assert seen_afresh(emptied, clock, "bob")["queries"] == 2
    assert process.row()["queries"] == 40
    # So long after its last word nobody can tell whether it was taken for dead.
    clock.now += FORGET
    process.replica._store = MemoryStore(clock)
    process.replica.tick()
    assert process.kinds == ["evidence-lost"]


def test_levels_are_written_down_at_once_and_the_rest_later(clock: FakeClock) -> None:
    store = MemoryStore(clock)
    process = Process(store, clock)
    process.ask("alice", 2)
    process.replica.glance()
    assert store._rows == {}
    process.ask("alice", 40, key=10)
    found = process.clients.suspicion("alice", ALPHA)
    assert found > 2
    assert process.replica.urgent(0, found)
    process.replica.glance()
    assert not process.replica.urgent(0, found)
    assert seen_afresh(store, clock)["queries"] == 42
    process.ask("alice", 1, key=60)
    process.replica.glance()
    assert seen_afresh(store, clock)["queries"] == 42
    process.replica.tick()
    assert seen_afresh(store, clock)["queries"] == 43
    # Whoever got there by what others saw is no news; more of their own is.
    other = Process(store, clock)
    other.ask("alice", 1, key=80)
    assert other.replica.urgent(0, other.clients.suspicion("alice", ALPHA))
    other.replica.glance()
    assert not other.replica.urgent(0, other.clients.suspicion("alice", ALPHA))


class Away(MemoryStore):
    """Cannot be had while it is `away`; counts how often that was tried."""

    away, tried = True, 0

    def _check(self) -> None:
        self.tried += 1
        if self.away:
            raise LedgerError("no answer")

    def keep(self, replica: str, number: int, rows: Mapping[str, bytes], lifetime: int, known: bool) -> Kept:
        self._check()
        return super().keep(replica, number, rows, lifetime, known)

    def kept(self, clients: Sequence[str]) -> list[list[Slot]]:
        self._check()
        return super().kept(clients)

    def fold(self, folds: Sequence[Fold]) -> int:
        self._check()
        return super().fold(folds)


def test_while_the_store_is_away_requests_go_on_and_do_not_wait(clock: FakeClock) -> None:
    store = Away(clock)
    before = Process(store, clock)
    store.away = False
    before.ask("client 3", 40)
    before.replica.close()
    store.away, store.tried = True, 0
    process = Process(store, clock)
    for i in range(8):
        process.ask(f"client {i}", 1)
    assert store.tried == 1
    assert process.kinds == ["evidence-unreachable"]
    assert process.sink.events[0].evidence == {"cause": "unreachable", "problem": "LedgerError: no answer"}
    process.replica.glance()
    process.replica.tick()
    assert store.tried == 1
    process.monotonic.now += 1.0
    process.replica.glance()
    assert store.tried == 2
    store.away = False
    assert process.clients.suspicion("client 3", ALPHA) < 1
    process.monotonic.now += 1.0
    process.replica.glance()
    assert process.clients.suspicion("client 3", ALPHA) > 1
    assert process.kinds == ["evidence-unreachable", "evidence-back"]
    store.away = True
    process.ask("client 1", 1, key=7)
    process.replica.tick()
    store.away = False
    process.replica.close()  # tries once more, whatever it waits for
    assert seen_afresh(store, clock, "client 1")["queries"] == 2


def test_what_another_version_kept_is_left_alone(stores: Open, clock: FakeClock) -> None:
    store = stores()
    key = Process(store, clock).replica
    strange = f"{key._scope}:alice"
    for i in range(3):
        store.keep(f"old {i}", 1, {strange: b"another version's"}, LIFE, known=False)
        store.end(f"old {i}")
    for life in range(4):
        process = Process(stores(), clock)
        process.ask("alice", 5, key=10 * life + 1)
        process.replica.tick()
        process.replica.tick()
        assert process.kinds == ["evidence-unreadable"]
        assert process.sink.events[0].client == "alice"
        assert process.row()["queries"] == 5 * (life + 1)
        process.replica.close()
    (kept,) = stores().kept([strange])
    assert sum(slot.row == b"another version's" for slot in kept) == 3
    assert len(kept) == 5


def test_the_end_waits_for_one_exchange_and_not_for_all(clock: FakeClock) -> None:
    """A process with thousands of clients is told to end in the middle of a look: what it saw is written, once."""
    process = Process(MemoryStore(clock), clock, capacity=2000)
    for i in range(2000):
        process.clients.charge(process.clients.slot(f"client {i}"), 1)
    store, exchanges = process.replica._store, list[int]()

    class Ending(Unforked):
        def keep(self, *arguments: Any) -> Kept:
            exchanges.append(len(arguments[2]))
            process.replica.ending = True
            return self._store.keep(*arguments)

    process.replica._store = Ending(store)  # type: ignore[assignment]
    process.replica.tick()
    assert len(exchanges) == 1
    process.replica._store = store
    process.replica.close()
    kept = store.kept([process.replica._key(slot) for slot in range(2000)])
    assert [[slot.dead for slot in slots] for slots in kept] == [[True]] * 2000


def test_who_waits_for_the_store_comes_before_the_next_batch(clock: FakeClock) -> None:
    """A request that meets a client while thousands are written waits for one exchange."""
    process = Process(MemoryStore(clock), clock, capacity=2000)
    for i in range(1999):
        process.clients.charge(process.clients.slot(f"client {i}"), 1)
    store, met, waiting = process.replica._store, threading.Event(), threading.Event()
    order = []

    class Slow(Unforked):
        def keep(self, *arguments: Any) -> Kept:
            order.append("batch")
            waiting.set()
            while len(order) == 1 and not process.replica._next_one.locked():
                time.sleep(0)  # until the request stands in line
            return self._store.keep(*arguments)

        def kept(self, clients: Sequence[str]) -> Any:
            if len(clients) == 1:
                order.append("request")
                met.set()
            return self._store.kept(clients)

    process.replica._store = Slow(store)  # type: ignore[assignment]
    thread = threading.Thread(target=process.replica.tick)
    thread.start()
    assert waiting.wait(60)
    process.replica.meet(process.clients.slot("new"))
    assert met.is_set()
    thread.join()
    assert order[:3] == ["batch", "request", "batch"]
