"""Books are backed up and restored as the README says, with real servers and files."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hardening.errors import ConfigError
from hardening.ledger import LedgerRules, open_store
from hardening.ledger.books import Ask
from hardening.ledger.redis import RedisStore
from hardening.ledger.sqlite import SqliteStore
from hardening.ledger.store import Store
from tests.ledger.server import DURABLE, FORGETFUL, PATIENCE, Server

KEY, SPENT = "credential:alice", 500
Launch = Callable[..., Server]


def spend(store: Store) -> None:
    store.lease("a", 1, [Ask(KEY, "bits", 0, 0, SPENT, SPENT, 1 << 40, 0)])
    assert spent(store) == SPENT


def spent(store: Store) -> int:
    balance = store.read(KEY).get("bits")
    return 0 if balance is None else balance.total


def call(server: Server, *command: Any) -> Any:
    store = RedisStore(server.url, durability="best-effort", timeout=PATIENCE)
    try:
        return store._with(lambda: store._call(*command))
    finally:
        store.close()


def wait(server: Server, line: str) -> None:
    """Until the server says `line` about itself."""
    while line not in call(server, "INFO", "persistence"):
        pass


def written(folder: Path) -> Server:
    """A server over `folder` with something in its books."""
    folder.mkdir()
    server = Server(folder, *DURABLE)
    store = open_store(LedgerRules(server.url, timeout=PATIENCE))
    spend(store)
    store.close()
    return server


def check(server: Server) -> None:
    """The books are there, and the server keeps what it acknowledges; after another restart as well."""
    for _ in range(2):
        store = open_store(LedgerRules(server.url, timeout=PATIENCE))
        assert spent(store) == SPENT
        store.close()
        server.restart()
    server.close()


def test_the_append_only_folder(tmp_path: Path) -> None:
    """Copied while no rewrite is under way; the copy is a folder that a server starts from."""
    server = written(tmp_path / "first")
    call(server, "CONFIG", "SET", "auto-aof-rewrite-percentage", "0")
    wait(server, "aof_rewrite_in_progress:0")
    (tmp_path / "second").mkdir()
    shutil.copytree(tmp_path / "first" / "appendonlydir", tmp_path / "second" / "appendonlydir")
    server.close()
    check(Server(tmp_path / "second", *DURABLE))


def snapshot(folder: Path) -> Path:
    server = written(folder)
    call(server, "BGSAVE")
    wait(server, "rdb_bgsave_in_progress:0")
    server.close()
    return folder / "dump.rdb"


def test_a_snapshot_is_loaded_without_the_log_which_is_then_switched_on(tmp_path: Path) -> None:
    dump = snapshot(tmp_path / "first")
    (tmp_path / "second").mkdir()
    shutil.copy(dump, tmp_path / "second")
    server = Server(tmp_path / "second", *FORGETFUL)
    with pytest.raises(ConfigError, match="appendonly is no"):  # nobody is served from it yet
        open_store(LedgerRules(server.url, timeout=PATIENCE))
    call(server, "CONFIG", "SET", "appendonly", "yes")
    wait(server, "aof_rewrite_scheduled:0")
    wait(server, "aof_rewrite_in_progress:0")
    assert "aof_last_bgrewrite_status:ok" in call(server, "INFO", "persistence")
    server.kill()
    server.options = DURABLE
    server.start()
    check(server)


def test_a_snapshot_is_not_looked_at_by_a_server_that_has_a_log(tmp_path: Path) -> None:
    """Why it takes the way above: a server with ``appendonly yes`` begins with empty books beside it."""
    dump = snapshot(tmp_path / "first")
    (tmp_path / "second").mkdir()
    shutil.copy(dump, tmp_path / "second")
    server = Server(tmp_path / "second", *DURABLE)
    store = open_store(LedgerRules(server.url, timeout=PATIENCE))
    assert spent(store) == 0
    store.close()
    server.close()


def test_sqlite(tmp_path: Path) -> None:
    """While the writer is there, whose last words are in the write-ahead log alone."""
    store = SqliteStore(tmp_path / "books.db")
    spend(store)
    with (
        contextlib.closing(sqlite3.connect(tmp_path / "books.db")) as source,
        contextlib.closing(sqlite3.connect(tmp_path / "copy.db")) as copy,
    ):
        source.backup(copy)  # what .backup of the command line does
    restored = SqliteStore(tmp_path / "copy.db")
    assert spent(restored) == SPENT
    restored.close()
    store.close()
