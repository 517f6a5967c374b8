"""Processes that keep rows of one client, and fold each other's, until they are killed. Run as a program: it forks.

Everybody is taken for dead at once, so that whoever writes again finds out that it was folded. What a process knows to
be kept it writes to a file afterwards; a kill in between leaves at most one write of each process out of it.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

from hardening.clients import Clients
from hardening.ledger import LedgerRules, open_store
from hardening.replica import Replica

MOST = 5


def replica(url: str, clients: Clients) -> Replica:
    def tell(kind: str, client: str, **facts: Any) -> None:
        if kind not in ("evidence-lost", "ledger-not-durable"):
            print(kind, facts, file=sys.stderr, flush=True)

    store = open_store(LedgerRules(url, timeout=30.0))
    return Replica(store, clients, "model", -1, [1.0], 1e-3, tell, time.time, time.monotonic)


def keep(url: str, log: Path, ready: int) -> NoReturn:
    rng, clients = random.Random(os.getpid()), Clients(1)
    slot, own = clients.slot("alice"), replica(url, clients)
    sure = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    own.meet(slot)
    while True:
        amount = rng.randint(1, MOST)
        clients.charge(slot, amount)
        own.write([slot])
        if not own._different()[slot] and int(clients.own(slot)["queries"]) >= amount:
            os.write(sure, bytes([amount]))
        os.write(ready, b"!")
        if rng.random() < 0.5:
            own.tick()


def start(url: str, log: Path) -> tuple[int, int]:
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(read)
        try:
            keep(url, log, write)
        finally:
            os._exit(4)
    os.close(write)
    return pid, read


def known(url: str) -> tuple[int, int]:
    """Rows that were asked, by what is kept; and in how many pieces."""
    clients = Clients(1)
    own = replica(url, clients)
    slot = clients.slot("alice")
    own.meet(slot)
    own.tick()
    (kept,) = own._store.kept([own._key(slot)])
    own.close()
    return int(clients.row("alice")["queries"]), len(kept)


def kill(url: str, log: Path, kills: int, seed: int) -> dict[str, int]:
    rng, most = random.Random(seed), 0
    for round_ in range(kills // 2):
        pair = [start(url, log) for _ in range(2)]
        for pid, ready in pair:
            for _ in range(rng.randrange(1, 12)):
                os.read(ready, 1)
            time.sleep(rng.expovariate(1000))  # a random point of what the process does next
            os.kill(pid, signal.SIGKILL)
        for pid, ready in pair:
            os.waitpid(pid, 0)
            os.close(ready)
        sure, (total, pieces) = sum(log.read_bytes()), known(url)
        assert sure <= total <= sure + 2 * MOST * (round_ + 1), (sure, total, round_)
        most = max(most, pieces)
    return {"kills": kills, "sure": sure, "total": total, "pieces": most}


if __name__ == "__main__":
    url, log, number, seed = sys.argv[1:]
    print(json.dumps(kill(url, Path(log), int(number), int(seed))))
