"""The section [ledger]: what its URL means, and errors with their dotted path."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from hardening.errors import ConfigError
from hardening.ledger import LedgerRules, open_store
from hardening.ledger.memory import MemoryStore
from hardening.ledger.sqlite import SqliteStore


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("memory:", ("memory", "")),
        ("sqlite:///books.db", ("sqlite", "books.db")),
        ("sqlite:///a/books.db", ("sqlite", "a/books.db")),
        ("sqlite:////var/books.db", ("sqlite", "/var/books.db")),
        ("redis://there", ("redis", "redis://there:6379/0")),
        ("redis://there:7000/3", ("redis", "redis://there:7000/3")),
        ("valkey://there:7000", ("redis", "redis://there:7000/0")),
        ("rediss://me@there/1", ("redis", "rediss://me@there:6379/1")),
        ("valkeys://[::1]:7000/", ("redis", "rediss://[::1]:7000/0")),
    ],
)
def test_places(url: str, place: tuple[str, str]) -> None:
    assert LedgerRules(url).place == place


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("", "unknown kind"),
        ("memory", "unknown kind"),
        ("memory://x", "unknown kind"),
        ("postgres://x", "unknown kind of ledger 'postgres'; known: memory:, sqlite:///hardening.db"),
        ("sqlite://books.db", "must be sqlite:///relative.db or sqlite:////absolute.db"),
        ("sqlite:///", "must be sqlite:///"),
        ("sqlite:///folder/", "must be sqlite:///"),
        ("sqlite:///x?mode=ro", "takes no options"),
        ("redis://", "must be redis://host:port/db"),
        ("redis://there/zero", "with a number for db"),
        ("redis://there/0?timeout=5", "takes no options"),
        ("redis://there:port", "not a URL"),
        ("redis://me:hunter2@there", "a password does not belong into a policy"),
    ],
)
def test_places_that_are_none(url: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as raised:
        LedgerRules(url)
    assert raised.value.path == "ledger.url"
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize(
    ("settings", "path"),
    [
        ({"durability": "none"}, "ledger.durability"),
        ({"on_failure": "open"}, "ledger.on_failure"),
        ({"timeout": 0.0}, "ledger.timeout"),
        ({"timeout": float("inf")}, "ledger.timeout"),
        ({"timeout": float("nan")}, "ledger.timeout"),
        ({"password": "env:X"}, "ledger.password"),
        ({"password": "hunter2", "url": "redis://there"}, "ledger.password"),
        ({"password": "env:", "url": "redis://there"}, "ledger.password"),
    ],
)
def test_settings_that_are_wrong(settings: dict[str, Any], path: str) -> None:
    with pytest.raises(ConfigError) as raised:
        LedgerRules(**settings)
    assert raised.value.path == path
    assert "hunter2" not in str(raised.value)


def test_stores_by_place(tmp_path: Path) -> None:
    assert isinstance(open_store(LedgerRules()), MemoryStore)
    store = open_store(LedgerRules("sqlite:///books.db"), root=tmp_path)
    assert isinstance(store, SqliteStore)
    assert (tmp_path / "books.db").exists()
    store.close()


def test_a_file_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ledger\.url: cannot open .*missing/books.db"):
        open_store(LedgerRules("sqlite:///missing/books.db"), root=tmp_path)


def test_the_client_of_redis_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(ConfigError, match=r"ledger\.url: needs the client: pip install 'hardening\[redis\]'"):
        open_store(LedgerRules("redis://127.0.0.1:1"))
