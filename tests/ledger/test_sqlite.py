"""The file: how it is opened, what is refused, what happens when it is full, locked, removed or replaced."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from hardening.errors import ConfigError, LedgerError
from hardening.ledger import Account, Budget, Cost, Ledger
from hardening.ledger.amounts import UNITS
from hardening.ledger.books import Ask
from hardening.ledger.sqlite import SqliteStore
from hardening.ledger.store import FORGET
from hardening.testing import FakeClock, RecordingSink
from tests.ledger.server import PATIENCE

ALICE, ONE = Account("credential", "alice"), Cost.of(bits=1.0)


def ask(own: int, used: int, need: int, want: int, key: str = "credential:alice") -> Ask:
    return Ask(key, "bits", own, used, need, want, 1 << 40, 0)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "books.db"


def test_every_commit_is_synchronised(file: Path) -> None:
    store = SqliteStore(file)
    sql = store._connection
    assert sql is not None
    assert sql.execute("PRAGMA synchronous").fetchone()[0] == 2  # FULL
    assert sql.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    store.close()


def test_only_the_owner_may_read_it(file: Path) -> None:
    before = os.umask(0o002)
    try:
        store = SqliteStore(file)
        store.lease("a", 1, [ask(0, 0, 1, 1)])
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in file.parent.iterdir()}
    finally:
        os.umask(before)
    assert modes == {"books.db": 0o600, "books.db-wal": 0o600, "books.db-shm": 0o600}
    store.close()


def test_what_is_no_ledger_is_left_alone(file: Path) -> None:
    file.write_text("something else, long enough to be no empty file " * 40)
    with pytest.raises(ConfigError, match=r"ledger\.url: cannot open .*not a database"):
        SqliteStore(file)
    other = file.with_name("other.db")
    with contextlib.closing(sqlite3.connect(other)) as sql:
        sql.execute("CREATE TABLE theirs (x)")
    with pytest.raises(ConfigError, match="is not a ledger of version 1"):
        SqliteStore(other)
    newer = file.with_name("newer.db")
    SqliteStore(newer).close()
    with contextlib.closing(sqlite3.connect(newer)) as sql:
        sql.execute("PRAGMA user_version = 2")
    with pytest.raises(ConfigError, match="is not a ledger of version 1"):
        SqliteStore(newer)
    with contextlib.closing(sqlite3.connect(other)) as sql:
        assert [name for (name,) in sql.execute("SELECT name FROM sqlite_master")] == ["theirs"]


@pytest.mark.parametrize("attempt", range(5))
def test_many_open_a_new_file_at_once(file: Path, attempt: int) -> None:
    with ThreadPoolExecutor(16) as pool:
        stores = list(pool.map(lambda _: SqliteStore(file, timeout=PATIENCE), range(16)))
        replies = list(pool.map(lambda i: stores[i].lease(f"{i}", 1, [ask(0, 0, 5, 5)]), range(16)))
    assert {reply.granted[0] for reply in replies} == {5}
    assert stores[0].read(ALICE.key)["bits"].total == 80
    for store in stores:
        store.close()


def test_whoever_writes_too_long_makes_it_fail_closed(file: Path) -> None:
    sink, clock = RecordingSink(), FakeClock()
    books = Ledger(
        SqliteStore(file, timeout=0.01),
        {"credential": Budget(bits=1.0e6)},
        sink=sink,
        monotonic=clock,
        background=False,
    )
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert books.spend((ALICE,), ONE) == ("credential:alice", "bits", "unreachable")
    clock.now += 1.0
    assert books.spend((ALICE,), ONE) is None
    assert [event.kind for event in sink.events] == ["ledger-unreachable", "ledger-back"]
    books.close()


@contextlib.contextmanager
def full_disk(file: Path) -> Iterator[None]:
    """No file can grow: not the log, nor anything else."""
    largest = max((path.stat().st_size for path in file.parent.iterdir()), default=0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("on_failure", ["deny", "allow"])
def test_a_full_disk(file: Path, on_failure: str) -> None:
    """Nothing is released that is not in the books; and once there is room again, they are right."""
    sink, clock = RecordingSink(), FakeClock()
    budgets = {"credential": Budget(bits=1.0e6)}
    books = Ledger(
        SqliteStore(file), budgets, on_failure=on_failure, sink=sink, monotonic=clock, background=False  # type: ignore[arg-type]
    )  # fmt: skip
    assert books.spend((ALICE,), ONE) is None
    with full_disk(file):
        answers = [books.spend((ALICE,), Cost.of(bits=10.0)) for _ in range(20)]
    spent = 1 + 10 * answers.count(None)
    assert spent == (201 if on_failure == "allow" else 1)
    clock.now += 1.0
    books.tick()
    books.close()
    after = SqliteStore(file)
    assert after.read(ALICE.key)["bits"].total == spent * UNITS[0]
    after.close()
    wanted = ["ledger-full", "ledger-back"] + (["ledger-restored"] if on_failure == "allow" else [])
    assert [event.kind for event in sink.events] == wanted


def test_a_database_that_may_not_grow(file: Path) -> None:
    store = SqliteStore(file)
    assert store._connection is not None
    store._connection.execute("PRAGMA max_page_count = 8")
    many = [ask(0, 0, 1, 1, f"credential:{i:060}") for i in range(1000)]
    with pytest.raises(LedgerError, match="full") as raised:
        store.lease("a", 1, many)
    assert store.read(many[0].key) == {}
    assert raised.value.cause == "full"
    store.close()


@pytest.mark.parametrize("replaced", [False, True])
def test_a_file_that_was_removed_is_written_again(file: Path, replaced: bool) -> None:
    """Nobody goes on writing into a file that has no name any more; what this replica spent is in the new one."""
    sink, clock = RecordingSink(), FakeClock()
    store = SqliteStore(file)
    old = file.with_name("old.db")
    SqliteStore(old).close()
    books = Ledger(store, {"credential": Budget(bits=1.0e6)}, sink=sink, monotonic=clock, background=False)
    for _ in range(10):
        assert books.spend((ALICE,), ONE) is None
    for path in file.parent.glob("books.db*"):
        path.unlink()
    if replaced:
        shutil.copy(old, file)
    assert books.spend((ALICE,), Cost.of(bits=500.0)) is None
    books.close()
    after = SqliteStore(file)
    assert after.read(ALICE.key)["bits"].total == 510 * UNITS[0]
    after.close()
    assert [event.kind for event in sink.events] == ["ledger-restored"]


def test_replicas_that_died_are_forgotten_and_their_leases_stay_leased(file: Path) -> None:
    clock = FakeClock(1e9)
    store = SqliteStore(file, clock=clock)
    store.lease("dead", 1, [ask(0, 0, 5, 5)])
    clock.now += FORGET / 2
    store.lease("alive", 1, [ask(0, 0, 7, 7)])
    store.close()
    clock.now += FORGET / 2 + 1
    store = SqliteStore(file, clock=clock)
    assert store.lease("alive", 2, [ask(7, 7, 0, 0)]).last == 1
    assert store.read(ALICE.key)["bits"].total == 12
    store.close()
    with contextlib.closing(sqlite3.connect(file)) as sql:
        assert sql.execute("SELECT replica FROM held").fetchall() == [("alive",)]


def test_names_of_replicas_that_died_are_bounded(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hardening.ledger.sqlite.REMEMBERED", 5)
    clock = FakeClock(1e9)
    store = SqliteStore(file, clock=clock)
    for i in range(20):
        clock.now += 1
        store.lease(f"dead {i}", 1, [ask(0, 0, 5, 5)])
    store.close()
    clock.now += FORGET + 1
    SqliteStore(file, clock=clock).close()
    with contextlib.closing(sqlite3.connect(file)) as sql:
        names = sql.execute("SELECT replica FROM replicas ORDER BY seen").fetchall()
        assert names == [(f"dead {i}",) for i in range(15, 20)]
        assert sql.execute("SELECT count(*) FROM held").fetchone() == (0,)


@pytest.mark.parametrize("jumps", [[1.75e9], [1e9, 1.75e9, 3e9], [1.75e9, 1e8, 2e9]])
@pytest.mark.parametrize("on_failure", ["deny", "allow"])
def test_a_replica_outlives_a_clock_that_is_set_forward(file: Path, jumps: list[float], on_failure: str) -> None:
    """A machine starts in 1970 and learns the time when it is on the net; then another process opens the file, which
    forgets who was silent for a week. Who is alive all the same is not charged twice, whatever it does next."""
    wall, clock = FakeClock(3600.0 * 24 * 30), FakeClock()
    budgets = {"credential": Budget(bits=1000.0)}
    settings: dict[str, Any] = {"clock": wall, "monotonic": clock, "background": False, "on_failure": on_failure}
    books = Ledger(SqliteStore(file, clock=wall, timeout=0.01), budgets, **settings)
    bob, spent = Account("credential", "bob"), 0
    for jump in [*jumps, None]:
        for _ in range(100):
            assert books.spend((ALICE,), ONE) is None
            assert books.spend((bob,), ONE) is None
            clock.now += 0.01
        spent += 100
        if jump is not None:
            wall.now = jump
            SqliteStore(file, clock=wall).close()
        if on_failure == "allow":
            with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")  # what is spent now is owed
                assert [books.spend((ALICE,), ONE) for _ in range(100)] == [None] * 100
                spent_alice = 100
            clock.now += 10.0
        else:
            spent_alice = 0
        books.tick()
        for account, amount in ((ALICE, spent + spent_alice), (bob, spent)):
            assert books.balance(account)["bits"].total - books.held(account)["bits"] == amount * UNITS[0]
        if spent_alice:
            books.credit((ALICE,), Cost.of(bits=float(spent_alice)))
    books.close()
    after = SqliteStore(file, clock=wall)
    assert {after.read(account.key)["bits"].total for account in (ALICE, bob)} == {spent * UNITS[0]}
    after.close()


def test_an_exchange_that_was_overtaken_is_refused(file: Path) -> None:
    store = SqliteStore(file)
    store.lease("a", 2, [ask(0, 0, 5, 5)])
    with pytest.raises(LedgerError, match="overtaken"):
        store.lease("a", 2, [ask(0, 0, 0, 0)])
    assert store.read(ALICE.key)["bits"].total == 5
    store.close()


def test_grants_are_on_record(file: Path) -> None:
    store = SqliteStore(file, clock=FakeClock(1e9))
    store.extend(ALICE.key, "rho", 7, "ticket 9")
    store.close()
    with contextlib.closing(sqlite3.connect(file)) as sql:
        assert sql.execute("SELECT * FROM grants").fetchall() == [(10**9, ALICE.key, "rho", 7, "ticket 9")]


def test_nothing_is_opened_at_import() -> None:
    script = "import sys, hardening.ledger; print({'redis', 'sqlite3', 'numba'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"
