"""Real processes: killed at random points, hammering one client, over a real file and a real server."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hardening.ledger import Account, Budget, Cost, Ledger
from hardening.ledger.amounts import UNITS
from hardening.ledger.books import SHARE
from hardening.ledger.lease import FIRST
from hardening.ledger.redis import RedisStore
from hardening.ledger.store import Balance
from tests.ledger.server import DURABLE, PATIENCE, Server
from tests.ledger.victim import LADDER

ROOT = Path(__file__).parent.parent.parent
BITS = 1000


@pytest.fixture(params=["sqlite", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/books.db"
    server: Server = request.getfixturevalue("server")
    store = RedisStore(server.url, timeout=PATIENCE)
    store._with(lambda: store._call("FLUSHDB"))
    store.close()
    return server.url


def victims(mode: str, url: str, folder: Path, number: int, seed: int = 0) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.ledger.victim", mode, url, str(folder), str(number), str(seed)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    result: dict[str, Any] = json.loads(run.stdout)
    return result


def kill(url: str, folder: Path, kills: int) -> None:
    """Each kill is checked where it happens, see `victim.kill`: released <= booked <= bound."""
    found = victims("kill", url, folder, kills)
    assert found["kills"] == kills
    assert found["released"] > kills * UNITS[0]
    # Of what is left one replica strands a share, or a few requests; here two are killed at a time.
    assert found["most"] <= 2 * (BITS // SHARE + 1 + 4) * UNITS[0]


def test_killed_at_random_points(url: str, tmp_path: Path) -> None:
    kill(url, tmp_path, 150)


@pytest.mark.deep
def test_killed_at_thousands_of_random_points(url: str, tmp_path: Path) -> None:
    kill(url, tmp_path, 2000)


def strand(url: str, folder: Path, kills: int) -> None:
    """What a kill takes from each budget is a slice of it, or a few requests; also where somebody was refused."""
    found = victims("strand", url, folder, kills)
    said = ", ".join(f"{rung} {share['mean']:.2%} (at most {share['most']:.2%})" for rung, share in found.items())
    print(f"\n  {url.partition(':')[0]}, {kills} kills: stranded {said}")
    for rung, share in found.items():
        few = (FIRST + 1) * 8 * 17 / (LADDER[rung].bits or 0.0)
        assert 0 <= share["mean"] <= share["most"] <= 1 / SHARE + few, rung


def test_what_a_kill_strands_of_each_rung(url: str, tmp_path: Path) -> None:
    strand(url, tmp_path, 12)


@pytest.mark.deep
def test_what_many_kills_strand_of_each_rung(url: str, tmp_path: Path) -> None:
    strand(url, tmp_path, 200)


def hammer(url: str, folder: Path, processes: int) -> None:
    found = victims("hammer", url, folder, processes, processes)
    assert found["codes"] == 0
    assert found["first"] <= found["all"] == found["booked"] <= found["limit"]
    assert found["limit"] - found["all"] < found["cost"]


@pytest.mark.parametrize("processes", [2, 8])
def test_processes_that_hammer_one_client_spend_all_of_its_budget_and_no_more(
    url: str, tmp_path: Path, processes: int
) -> None:
    hammer(url, tmp_path, processes)


@pytest.mark.deep
@pytest.mark.parametrize("processes", [2, 3, 4, 5, 6, 7, 8])
def test_any_number_of_processes(url: str, tmp_path: Path, processes: int) -> None:
    for _ in range(2):
        hammer(url, tmp_path, processes)


def kill_server(server: Server, kills: int) -> None:
    """The server dies at random points while a client spends; what it had acknowledged is there when it is back."""
    rng = random.Random(kills)
    books = Ledger(RedisStore(server.url, timeout=PATIENCE), {"credential": Budget(bits=4e9)})
    accounts = [Account("credential", f"client {i}") for i in range(kills)]
    spent, refused = [0] * kills, 0
    current, progress, stop = 0, threading.Semaphore(0), threading.Event()

    def work() -> None:
        nonlocal refused
        while not stop.is_set():
            i, cost = current, Cost(bits=rng.randrange(1, 1 << 44))  # so dear that every few need a new lease
            if books.spend((accounts[i],), cost) is None:
                spent[i] += cost.bits
                progress.release()
            else:
                refused += 1

    thread = threading.Thread(target=work)
    try:
        thread.start()
        for current in range(kills):
            for _ in range(rng.randrange(1, 20)):
                assert progress.acquire(timeout=PATIENCE)
            before = spent[current]
            server.restart()
            assert booked(server, accounts[current]) >= before
    finally:
        stop.set()
        thread.join()
        books.close()
    assert refused
    for account, amount in zip(accounts, spent, strict=True):
        assert booked(server, account) >= amount


def booked(server: Server, account: Account) -> int:
    reader = RedisStore(server.url, timeout=PATIENCE)
    try:
        return reader.read(account.key).get("bits", Balance(0, 0)).total
    finally:
        reader.close()


def test_the_server_killed_at_random_points(launch: Callable[..., Server]) -> None:
    kill_server(launch(*DURABLE), 10)


@pytest.mark.deep
def test_the_server_killed_at_many_random_points(launch: Callable[..., Server]) -> None:
    kill_server(launch(*DURABLE), 200)
