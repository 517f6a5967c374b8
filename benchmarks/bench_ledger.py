"""Charging a request by lease, against the least that asking a server for every request could cost: one round trip."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.gate import Race
from hardening.ledger import Account, Budget, Cost, Ledger, Window
from hardening.ledger.redis import RedisStore
from hardening.ledger.sqlite import SqliteStore
from hardening.ledger.store import Store
from tests.ledger.server import DURABLE, Server

BUDGETS = {"credential": Budget(bits=4e9, queries=Window("1h", 10**9)), "model": Budget(bits=4e9)}
ACCOUNTS = Account("credential", "bench"), Account("model", "bench")
COST = Cost.of(bits=6.66, queries=1)


@pytest.mark.parametrize("kind", [pytest.param("sqlite", id="spend-sqlite"), pytest.param("redis", id="spend-redis")])
def test_spend(kind: str, race: Race, tmp_path: Path) -> None:
    server = Server(tmp_path, *DURABLE)
    plain = RedisStore(server.url)
    store: Store = SqliteStore(tmp_path / "books.db") if kind == "sqlite" else RedisStore(server.url)
    books = Ledger(store, BUDGETS)
    asking = iter(range(1, 1 << 40))
    try:
        race(
            {
                "spend": lambda _: books.spend(ACCOUNTS, COST),
                "PING": lambda _: plain._with(lambda: plain._call("PING")),
                "exchange": lambda _: plain.lease("bench", next(asking), []),
            },
            lambda rng: None,
        )
    finally:
        books.close()
        plain.close()
        server.close()
