"""Processes that spend until they are killed, or until there is nothing left. Run as a program of its own: it forks.

What a process releases it writes to a file after `spend` said yes, as a server answers after it was charged. A kill in
between leaves less in the file than was spent; nothing can leave more. So the books must never be below the file.
"""

from __future__ import annotations

import json
import math
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


#: What a server is like: each client and organisation may be told a share of what all may be.
LADDER = {"credential": Budget(bits=2e4), "organisation": Budget(bits=2e5), "model": Budget(bits=2e6)}
CLIENTS, ORGANISATIONS = 60, 6


def who(client: int) -> tuple[Account, ...]:
    return (
        Account("credential", f"client {client}"),
        Account("organisation", f"organisation {client % ORGANISATIONS}"),
        MODEL,
    )


def serve(url: str, log: Path, ready: int) -> NoReturn:
    """Serve clients with one to eight rows of 17 bits, until killed; one of them asks for far more than it has left,
    in ever new amounts, all of which those whom it shares its other budgets with could still be told."""
    rng = random.Random(os.getpid())
    ledger = open_ledger(LedgerRules(url, timeout=PATIENCE), LADDER)
    release = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    while True:
        client, amount = rng.randrange(CLIENTS), 17 * rng.randrange(1, 9)
        if ledger.spend(who(client), Cost.of(bits=amount)) is None:
            os.write(release, client.to_bytes(2, "little") + amount.to_bytes(2, "little"))
        os.write(ready, b"!")
        if rng.random() < 0.05:
            ledger.spend(who(0), Cost.of(bits=rng.randrange(20_001, 150_000)))


def strand(url: str, folder: Path, kills: int, seed: int) -> dict[str, dict[str, float]]:
    """What each kill strands of the budgets that the process used, as shares of these, by rung: mean and most."""
    rng, log, shares, before = random.Random(seed), folder / "released", {rung: [] for rung in LADDER}, {}
    accounts = {account for client in range(CLIENTS) for account in who(client)}
    for _ in range(kills):
        start = log.stat().st_size if log.exists() else 0
        read, write = os.pipe()
        pid = os.fork()
        if not pid:
            serve(url, log, write)
        os.close(write)
        for _ in range(rng.randrange(50, 400)):
            os.read(read, 1)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(read)
        data, spent, used = log.read_bytes(), dict.fromkeys(accounts, 0), set()
        for i in range(0, len(data), 4):
            for account in who(int.from_bytes(data[i : i + 2], "little")):
                spent[account] += int.from_bytes(data[i + 2 : i + 4], "little") << 20
                if i >= start:
                    used.add(account)
        for account in used:
            lost = total(url, account) - spent[account]
            bits = LADDER[account.rung].bits or math.inf
            shares[account.rung].append((lost - before.get(account, 0)) / (bits * 2**20))
            before[account] = lost
    return {rung: {"mean": sum(found) / len(found), "most": max(found)} for rung, found in shares.items()}


if __name__ == "__main__":
    mode, url, folder, number, seed = sys.argv[1:]
    run = {"kill": kill, "hammer": hammer, "strand": strand}[mode]
    print(json.dumps(run(url, Path(folder), int(number), int(seed))))
