from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hardening.ledger.memory import MemoryStore
from hardening.ledger.redis import RedisStore
from hardening.ledger.sqlite import SqliteStore
from hardening.ledger.store import Store
from hardening.testing import FakeClock
from tests.ledger.server import DURABLE, PATIENCE, Server

#: A day in the life of the clocks of these tests.
NOW = 1_750_000_000.0


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Shared by all tests, which use accounts of their own; durable."""
    server = Server(tmp_path_factory.mktemp("valkey"), *DURABLE)
    yield server
    server.close()


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts servers of a test's own, with these options."""
    servers: list[Server] = []

    def start(*options: str) -> Server:
        servers.append(Server(tmp_path, *options))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def clock() -> FakeClock:
    """The wall clock of the stores."""
    return FakeClock(NOW)


@pytest.fixture(params=["memory", "sqlite", "redis"])
def store(request: pytest.FixtureRequest, tmp_path: Path, clock: FakeClock) -> Iterator[Store]:
    """Each kind of store, empty."""
    made: Store
    if request.param == "memory":
        made = MemoryStore(clock)
    elif request.param == "sqlite":
        made = SqliteStore(tmp_path / "ledger.db", clock=clock, timeout=PATIENCE)
    else:
        redis = RedisStore(request.getfixturevalue("server").url, clock=clock, timeout=PATIENCE)
        redis._with(lambda: redis._call("FLUSHDB"))
        made = redis
    yield made
    made.close()
