"""Processes that spend until they are killed, or until there is nothing left. Run as a program of its own: it forks.

What a process releases it writes to a file after `spend` said yes, as a server answers after it was charged. A kill in
between leaves less in the file than was spent; nothing can leave more. So the books must never be below the file.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

from hardening.ledger import Account, Budget, Cost, LedgerRules, open_ledger, open_store
from tests.ledger.server import PATIENCE

BUDGETS = {"credential": Budget(bits=1000.0), "model": Budget(bits=4.0e9)}
LIMIT = 1000 << 20
MODEL = Account("model", "m")
DEAREST = 1 << 20


def spend(url: str, name: str, log: Path, cost: int, ready: int) -> NoReturn:
    """Spend random costs, or always `cost`, until refused; then return what is left. Never comes back."""
    rng = random.Random(os.getpid())
    ledger = open_ledger(LedgerRules(url, timeout=PATIENCE), BUDGETS)
    release = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(ready, b"!")
    accounts = Account("credential", name), MODEL
    while True:
        amount = cost or rng.randrange(1, DEAREST)
        shortfall = ledger.spend(accounts, Cost(bits=amount))
        if shortfall is not None:
            break
        os.write(release, amount.to_bytes(8, "little"))
        os.write(ready, b"!")
    ledger.close()
    os._exit(0 if shortfall.cause == "exhausted" else 3)


def start(url: str, name: str, log: Path, cost: int = 0) -> tuple[int, int]:
    """The process, and a pipe that has a byte when it is about to spend, and one for each release."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(read)
        try:
            spend(url, name, log, cost, write)
        finally:
            os._exit(4)
    os.close(write)
    return pid, read


def released(log: Path) -> int:
    data = log.read_bytes() if log.exists() else b""
    return sum(int.from_bytes(data[i : i + 8], "little") for i in range(0, len(data), 8))


def total(url: str, account: Account) -> int:
    store = open_store(LedgerRules(url, timeout=PATIENCE))
    try:
        balances = store.read(account.key)
        return balances["bits"].total if "bits" in balances else 0
    finally:
        store.close()


def kill(url: str, folder: Path, kills: int, seed: int) -> dict[str, float]:
    """Two processes at a time share a client; both are killed at random. A client gets a new name when spent."""
    rng = random.Random(seed)
    everything, stranded, most, name, before = 0, 0, 0, 0, 0
    for _ in range(kills // 2):
        account, log = Account("credential", f"{seed}-{name}"), folder / f"{seed}-{name}"
        pair = [start(url, account.name, log) for _ in range(2)]
        for pid, ready in pair:
            for _ in range(rng.randrange(1, 40)):
                os.read(ready, 1)
            time.sleep(rng.expovariate(2000))  # a random point of what the process does next
            os.kill(pid, signal.SIGKILL)
        for pid, ready in pair:
            os.waitpid(pid, 0)
            os.close(ready)
        out, booked = released(log), total(url, account)
        assert out <= booked <= LIMIT, (out, booked)
        lost = booked - out
        most, before = max(most, lost - before), lost
        if booked > LIMIT - 2 * DEAREST or rng.random() < 0.05:
            everything, stranded, name, before = everything + booked, stranded + lost, name + 1, 0
    final = [released(folder / f"{seed}-{i}") for i in range(name + 1)]
    assert sum(final) <= total(url, MODEL)
    return {"kills": kills, "released": sum(final), "stranded": stranded, "booked": everything, "most": most}


def hammer(url: str, folder: Path, processes: int, seed: int) -> dict[str, float]:
    """Processes share one client until each is refused, close, and the last drop is spent by one more."""
    name, log = f"hammer-{seed}", folder / f"hammer-{seed}"
    cost = LIMIT // 2000
    began = [start(url, name, log, cost) for _ in range(processes)]
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid, _ in began]
    first = released(log)
    pid, _ = start(url, name, log, cost)
    codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    return {"codes": max(codes), "first": first, "all": released(log), "limit": LIMIT, "cost": cost,
            "booked": total(url, Account("credential", name))}  # fmt: skip


if __name__ == "__main__":
    mode, url, folder, number, seed = sys.argv[1:]
    print(json.dumps({"kill": kill, "hammer": hammer}[mode](url, Path(folder), int(number), int(seed))))
