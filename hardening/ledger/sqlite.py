"""Books in a SQLite file: for any number of processes on one machine, durable once acknowledged.

The file is in WAL mode with synchronous=FULL: a commit returns after the log has been synchronised to the disk
(https://www.sqlite.org/pragma.html#pragma_synchronous). Not for network file systems.
"""

from __future__ import annotations

import contextlib
import os
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import cast

from hardening.errors import ConfigError, LedgerError
from hardening.ledger.amounts import Kind
from hardening.ledger.books import Ask, Entry, settle
from hardening.ledger.store import (
    BATCH,
    FORGET,
    REMEMBERED,
    Balance,
    Fold,
    Kept,
    Reply,
    Slot,
    check_number,
    milliseconds,
)
from hardening.types import Clock

VERSION = 1
_SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS entries (key TEXT, kind TEXT, total INTEGER NOT NULL, extra INTEGER NOT NULL,
    level INTEGER NOT NULL, stamp INTEGER NOT NULL, recent INTEGER NOT NULL, before INTEGER NOT NULL,
    PRIMARY KEY (key, kind)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS replicas (replica TEXT PRIMARY KEY, last INTEGER NOT NULL, seen INTEGER NOT NULL)
    WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS held (replica TEXT, key TEXT, kind TEXT, granted INTEGER NOT NULL,
    PRIMARY KEY (replica, key, kind)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS grants (time INTEGER, key TEXT, kind TEXT, amount INTEGER, reason TEXT);
PRAGMA user_version = {VERSION};
COMMIT;
"""
#: Came later, and is added to ledgers that were made before.
_KEPT = """
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS kept (client TEXT, replica TEXT, row BLOB NOT NULL, PRIMARY KEY (client, replica))
    WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS keepers (replica TEXT PRIMARY KEY, number INTEGER NOT NULL, until INTEGER NOT NULL,
    ended INTEGER NOT NULL) WITHOUT ROWID;
COMMIT;
"""
#: Connections of the parent. They must not even be closed in the child (https://www.sqlite.org/howtocorrupt.html 2.6).
_inherited: list[sqlite3.Connection | None] = []


class SqliteStore:
    """One connection, used by one thread at a time.

    Args:
        path: the file; made, with mode 0600, if it is not there.
        clock: seconds since the epoch, for windows.
        timeout: seconds to wait for another process that is writing.

    Raises ConfigError if the file cannot be opened or is something else.
    """

    heartbeat = FORGET / 14
    weakness = ""
    durable = True

    def __init__(self, path: str | os.PathLike[str], *, clock: Clock = time.time, timeout: float = 1.0) -> None:
        self._path, self._clock, self._timeout = Path(path), clock, timeout
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._identity: tuple[int, int] | None = None
        try:
            with self._lock:
                self._patiently(self._open)
        except (OSError, sqlite3.Error) as problem:
            raise ConfigError("ledger.url", f"cannot open {str(path)!r}: {problem}") from None

    def lease(self, replica: str, number: int, asks: Sequence[Ask]) -> Reply:
        with self._transaction() as sql:
            return self._settle_all(sql, replica, number, asks)

    def part(self, replica: str, number: int, asks: Sequence[Ask]) -> Reply:
        with self._transaction() as sql:
            if _last(sql, replica)[0] == number:
                return Reply(number, [], [])
            reply = self._settle_all(sql, replica, number, asks)
            names = [(replica, ask.key, ask.kind) for ask in asks]
            sql.executemany("DELETE FROM held WHERE replica = ? AND key = ? AND kind = ?", names)
            return reply

    def _settle_all(self, sql: sqlite3.Connection, replica: str, number: int, asks: Sequence[Ask]) -> Reply:
        last, forgotten = _last(sql, replica)
        check_number(number, last)
        entered = -number if forgotten else number
        sql.execute("REPLACE INTO replicas VALUES (?, ?, ?)", (replica, entered, int(self._clock())))
        reply = Reply(last, [], [], milliseconds(self._clock))
        for ask in asks:
            _settle(sql, replica, ask, min(ask.known, ask.own) if forgotten else 0, reply)
        return reply

    def retire(self, replica: str) -> None:
        with self._transaction() as sql:
            sql.execute("DELETE FROM held WHERE replica = ?", (replica,))
            sql.execute("DELETE FROM replicas WHERE replica = ?", (replica,))

    def extend(self, key: str, kind: Kind, amount: int, reason: str) -> None:
        with self._transaction() as sql:
            sql.execute(
                "INSERT INTO entries VALUES (?, ?, 0, ?, 0, 0, 0, 0)"
                " ON CONFLICT DO UPDATE SET extra = extra + excluded.extra",
                (key, kind, amount),
            )
            sql.execute("INSERT INTO grants VALUES (?, ?, ?, ?, ?)", (int(self._clock()), key, kind, amount, reason))

    def read(self, key: str) -> dict[Kind, Balance]:
        return self.read_all([key])[key]

    def read_all(self, keys: Sequence[str]) -> dict[str, dict[Kind, Balance]]:
        found: dict[str, dict[Kind, Balance]] = {key: {} for key in keys}
        for i in range(0, len(keys), BATCH):
            some = keys[i : i + BATCH]
            marks = ", ".join("?" * len(some))
            with self._transaction("BEGIN") as sql:  # reads beside whoever writes
                query = f"SELECT key, kind, total, extra FROM entries WHERE key IN ({marks})"
                for key, kind, total, extra in sql.execute(query, some):
                    found[key][cast(Kind, kind)] = Balance(total, extra)
        return found

    def keep(self, replica: str, number: int, rows: Mapping[str, bytes], lifetime: int, known: bool) -> Kept:
        with self._transaction() as sql:
            row = sql.execute("SELECT number, ended FROM keepers WHERE replica = ?", (replica,)).fetchone()
            if row and row[1]:
                return "ended"
            if known and not row:
                return "forgotten"
            check_number(number, row[0] if row else 0)
            until = int(self._clock()) + lifetime
            sql.execute("REPLACE INTO keepers VALUES (?, ?, ?, 0)", (replica, number, until))
            sql.executemany("REPLACE INTO kept VALUES (?, ?, ?)", [(c, replica, row) for c, row in rows.items()])
            return "kept"

    def kept(self, clients: Sequence[str]) -> list[list[Slot]]:
        with self._transaction("BEGIN") as sql:
            now, found = int(self._clock()), []
            for client in clients:
                rows = sql.execute(_SLOTS, (now, client)).fetchall()
                found.append([Slot(replica, bool(dead), row) for replica, dead, row in rows])
            return found

    def fold(self, folds: Sequence[Fold]) -> int:
        with self._transaction() as sql:
            now, done = int(self._clock()), 0
            for client, before, into, row in folds:
                dead = {replica: old for replica, dead, old in sql.execute(_SLOTS, (now, client)) if dead}
                if before.items() <= dead.items():
                    each = [(replica,) for replica in before]
                    sql.executemany("UPDATE keepers SET ended = 1 WHERE replica = ?", each)
                    sql.executemany("DELETE FROM kept WHERE client = ? AND replica = ?", [(client, *e) for e in each])
                    sql.execute("INSERT INTO kept VALUES (?, ?, ?)", (client, into, row))
                    done += 1
            return done

    def end(self, replica: str) -> None:
        with self._transaction() as sql:
            sql.execute("UPDATE keepers SET ended = 1 WHERE replica = ?", (replica,))

    def close(self) -> None:
        with self._lock:
            self._drop()

    def abandon(self) -> None:
        self._lock = threading.Lock()
        _inherited.append(self._connection)
        self._connection = None

    @contextlib.contextmanager
    def _transaction(self, begin: str = "BEGIN IMMEDIATE") -> Iterator[sqlite3.Connection]:
        """One transaction; whatever goes wrong undoes it, closes the connection and raises LedgerError."""
        with self._lock:
            try:
                sql = self._patiently(lambda: self._begin(begin))
                yield sql
                sql.execute("COMMIT")
            except (OSError, sqlite3.Error, ConfigError) as problem:
                self._drop()
                full = getattr(problem, "sqlite_errorname", "") in ("SQLITE_FULL", "SQLITE_IOERR_WRITE")
                raise LedgerError(f"{self._path.name}: {problem}", "full" if full else "unreachable") from None
            except BaseException:
                self._drop()
                raise

    def _patiently(self, work: Callable[[], sqlite3.Connection]) -> sqlite3.Connection:
        """Try until nobody else writes: SQLite's own waiting pauses for longer and longer, and starves the unlucky."""
        deadline = time.monotonic() + self._timeout
        while True:
            try:
                return work()
            except sqlite3.OperationalError as problem:
                if getattr(problem, "sqlite_errorcode", 0) & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
            time.sleep(random.uniform(0.0005, 0.002))

    def _begin(self, begin: str) -> sqlite3.Connection:
        sql = self._open()
        sql.execute(begin)
        return sql

    def _open(self) -> sqlite3.Connection:
        """The connection; a new one if there is none, or if the file was removed or replaced."""
        if self._connection is not None:
            if self._identity == self._identify():
                return self._connection
            self._drop()
        sql = sqlite3.connect(self._path, timeout=0, isolation_level=None, check_same_thread=False)
        try:
            self._set_up(sql)
        except BaseException:
            sql.close()
            raise
        self._connection, self._identity = sql, self._identify()
        return sql

    def _set_up(self, sql: sqlite3.Connection) -> None:
        sql.execute("PRAGMA synchronous = FULL")
        version = _version(sql, self._path)
        if version != VERSION:
            os.chmod(self._path, 0o600)  # by name: to close a descriptor of our own would drop SQLite's locks
        if sql.execute("PRAGMA journal_mode = WAL").fetchone()[0] != "wal":
            raise ConfigError("ledger.url", f"{str(self._path)!r}: its file system has no write-ahead log for SQLite")
        if version != VERSION:
            sql.executescript(_SCHEMA)
        if not sql.execute("SELECT count(*) FROM sqlite_master WHERE name = 'keepers'").fetchone()[0]:
            sql.executescript(_KEPT)
        sql.execute("DELETE FROM keepers WHERE until < ?", (int(self._clock()) - FORGET,))
        _forget_silent(sql, int(self._clock()) - FORGET)

    def _identify(self) -> tuple[int, int] | None:
        try:
            stat = os.stat(self._path)
        except FileNotFoundError:
            return None
        return stat.st_dev, stat.st_ino

    def _drop(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()  # rolls back
            self._connection = None


def check_file(path: Path) -> None:
    """Raise ConfigError where `SqliteStore` would, as far as can be told without making or changing a file."""
    folder = path.parent
    if not os.access(folder, os.W_OK | os.X_OK):  # the log stands beside the file
        reason = "is not writable" if folder.is_dir() else "does not exist"
        raise ConfigError("ledger.url", f"cannot open {str(path)!r}: the folder {str(folder)!r} {reason}")
    if not path.exists():
        return
    if not os.access(path, os.R_OK | os.W_OK):
        raise ConfigError("ledger.url", f"cannot open {str(path)!r}: it must be readable and writable")
    try:
        with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as sql:
            _version(sql, path)
    except sqlite3.Error as problem:
        raise ConfigError("ledger.url", f"cannot open {str(path)!r}: {problem}") from None


def _version(sql: sqlite3.Connection, path: Path) -> int:
    """The version of a ledger's tables, 0 for an empty file. Raises ConfigError for anything else."""
    # In one statement, for somebody else may be making the file at this moment.
    version, tables = sql.execute(
        "SELECT user_version, (SELECT count(*) FROM sqlite_master) FROM pragma_user_version"
    ).fetchone()
    if version != VERSION and (version or tables):
        raise ConfigError("ledger.url", f"{str(path)!r} is not a ledger of version {VERSION}")
    return int(version)


#: What replicas keep of a client; dead is who ended, who is overdue, and whoever nothing is known of.
_SLOTS = """
SELECT replica, coalesce(ended OR until < ?, 1), row FROM kept LEFT JOIN keepers USING (replica) WHERE client = ?
"""


def _last(sql: sqlite3.Connection, replica: str) -> tuple[int, bool]:
    """The replica's last exchange, and whether what it holds was forgotten: its number is negative then."""
    row = sql.execute("SELECT last FROM replicas WHERE replica = ?", (replica,)).fetchone()
    last = row[0] if row else 0
    return abs(last), last < 0


def _settle(sql: sqlite3.Connection, replica: str, ask: Ask, unrecorded: int, reply: Reply) -> None:
    """Settle `ask` of a replica that holds `unrecorded` if there is no record of it."""
    name = ask.key, ask.kind
    row = sql.execute(
        "SELECT total, extra, level, stamp, recent, before FROM entries WHERE key = ? AND kind = ?", name
    ).fetchone()
    held = sql.execute(
        "SELECT granted FROM held WHERE replica = ? AND key = ? AND kind = ?", (replica, *name)
    ).fetchone()
    settled = settle(Entry(*row) if row else Entry(), held[0] if held else unrecorded, ask, reply.now)
    sql.execute("REPLACE INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (*name, *settled.entry))
    sql.execute("REPLACE INTO held VALUES (?, ?, ?, ?)", (replica, *name, settled.granted))
    reply.granted.append(settled.granted)
    reply.restored.append(settled.restored)


def _forget_silent(sql: sqlite3.Connection, before: int) -> None:
    """Forget what replicas hold that were not heard of since `before`, and remember that it was forgotten.

    The clock may have been set forward, and the replica be alive: it is told apart from one that was never known.
    """
    silent = "SELECT replica FROM replicas WHERE seen < ? AND last > 0"
    sql.execute("BEGIN IMMEDIATE")
    sql.execute(f"DELETE FROM held WHERE replica IN ({silent})", (before,))
    sql.execute("UPDATE replicas SET last = -last WHERE seen < ? AND last > 0", (before,))
    newest = f"SELECT replica FROM replicas WHERE last < 0 ORDER BY seen DESC LIMIT {REMEMBERED}"
    sql.execute(f"DELETE FROM replicas WHERE last < 0 AND replica NOT IN ({newest})")
    sql.execute("COMMIT")
