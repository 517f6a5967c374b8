"""What it takes to keep a client's books and evidence up to date, against one round trip to a server.

``100 updates`` enters a hundred rows of clients drawn at random into the packed table, with all that speaks for or
against each; a row is one update. ``round trip`` is one HINCRBY on a Valkey server of this machine, through nothing but
the socket, so that no client library is to blame.
"""

from __future__ import annotations

import math
import socket
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from benchmarks.gate import Race
from hardening import kernels
from hardening.clients import Baseline, Clients
from hardening.clients.baseline import HeldOut
from hardening.kernels import accounts
from hardening.kernels.layout import LABEL_BINS, LANES, OCTAVES
from tests.ledger.server import FORGETFUL, Server

UPDATES, CLASSES = 100, 10


def baseline() -> Baseline:
    """Any will do that lets the bettor bet: nothing is skipped for an ordinary client."""
    low, some = (0.1,) * LANES, (0.05,) * LANES
    means = ((1.0,) * LANES,) + (low,) * (OCTAVES - 1)
    edges = ((0.2, 0.5, 1.0, 1.5, 2.0, 2.5, 2.8, 0.1),) * LABEL_BINS
    return Baseline("p", 100, 10_000, edges, means, low, some, (1 / 8,) * 8, 0.999, HeldOut(100, 0, ()))


def updates(clients: int) -> Callable[[Any], object]:
    """Enters rows into a table of so many clients; the first pass over it is done."""
    table, numbers = Clients(clients), baseline().numbers()
    fold = kernels.entry(
        accounts.fold, "int64", "int64", "float64", "int64[::1]", "uint32[::1]", "float64[:, ::1]", "uint8[::1]"
    )
    nearly = np.zeros(UPDATES, np.uint8)

    def run(q: Any) -> object:
        slots, keys, rows = q
        return fold(table._address, numbers.ctypes.data, math.log2(CLASSES), slots, keys, rows, nearly)

    return run


def fresh_of(clients: int) -> Callable[[np.random.Generator], Any]:
    def fresh(rng: np.random.Generator) -> Any:
        rows = np.stack(
            [
                rng.random(UPDATES) * 3,
                rng.integers(0, CLASSES, UPDATES),
                rng.integers(0, 4096, UPDATES),
                rng.random(UPDATES),
            ],
            axis=1,
        )
        return rng.integers(0, clients, UPDATES), rng.integers(1, 2**32, UPDATES, np.uint32), rows

    return fresh


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[socket.socket]:
    """A connection to a server of our own that writes nothing to disk."""
    server = Server(tmp_path_factory.mktemp("redis"), *FORGETFUL)
    try:
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            yield connection
    finally:
        server.close()


@pytest.mark.parametrize(
    "clients",
    [
        pytest.param(10_000, id="clients-ten-thousand"),
        pytest.param(1_000_000, id="clients-a-million", marks=pytest.mark.deep),
    ],
)
def test_updates(clients: int, redis: socket.socket, race: Race) -> None:
    def round_trip(q: Any) -> object:
        key = b"client-%d" % q[0][0]
        redis.sendall(b"*4\r\n$7\r\nHINCRBY\r\n$%d\r\n%s\r\n$1\r\nq\r\n$1\r\n1\r\n" % (len(key), key))
        return redis.recv(64)

    race({"100 updates": updates(clients), "round trip": round_trip}, fresh_of(clients))
