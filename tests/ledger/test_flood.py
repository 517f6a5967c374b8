"""A flood of names through Guard and real books: after a restart, with old clients and new ones among it.

Run with -s for figures.
"""

from __future__ import annotations

import gc
import itertools
import math
import random
import resource
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import hardening
from hardening.clients import POOLED, Clients
from hardening.config import ClientRules, Output, Policy
from hardening.errors import Denied
from hardening.ledger import Account, Budget, Ledger, LedgerRules
from hardening.ledger.amounts import UNITS
from hardening.ledger.sqlite import SqliteStore
from hardening.transforms import Types
from hardening.types import Event

NORMAL = math.log2(176_851)  # bits of one answer: grid points of four classes
SCORES = {"p": np.array([[0.1, 0.2, 0.3, 0.4]], "f4")}
#: Seven answers for one client, and as many for all as anybody asks here.
BUDGETS = {"credential": Budget(bits=7.5 * NORMAL), "model": Budget(bits=4e9)}


class Kinds:
    """A sink that keeps which kinds of events there were, and no more."""

    def __init__(self) -> None:
        self.kinds: set[str] = set()

    def emit(self, event: Event) -> None:
        self.kinds.add(event.kind)

    def close(self) -> None:
        pass


class Flood:
    """A guard over a file, asked by many threads."""

    def __init__(self, root: Path, capacity: int | None = None) -> None:
        tiers = {"normal": (Types(n=100),)}
        rules = Policy(
            {"p": Output("simplex", tiers)},
            clients=ClientRules(capacity=capacity or 16_384),
            budgets=BUDGETS,
            ledger=LedgerRules("sqlite:///books.db"),
            root=root,
        )
        store = SqliteStore(root / "books.db", timeout=60.0)
        self.ledger = Ledger(store, BUDGETS, capacity=capacity)
        self.sink = Kinds()
        self.guard = hardening.Guard(rules, "m", sink=self.sink, ledger=self.ledger)
        self.answered = 0

    def ask(self, client: str, times: int = 1) -> int:
        """How many answers the client got."""
        got = 0
        for _ in range(times):
            try:
                got += len(self.guard.harden(SCORES, client=client)["p"])
            except Denied:
                break
        return got

    def come(self, first: int, last: int, regulars: int, threads: int = 12) -> None:
        """New names, of whom each asks once and is answered; and `regulars` who come back a few times each."""

        def work(thread: int) -> int:
            rng, got = random.Random(thread), 0
            for i in range(first + thread, last, threads):
                assert self.ask(f"new {i}") == 1
                got += 1
                if i % 50 == 0:
                    got += self.ask(f"regular {rng.randrange(regulars)}")
            return got

        with ThreadPoolExecutor(threads) as pool:
            self.answered += sum(pool.map(work, range(threads)))

    def check(self, names: int) -> None:
        """Everybody is in the books with what they were told, and all of them together."""
        some = [Account("credential", f"new {i}") for i in range(0, names, max(1, names // 1000))]
        for account, balance in self.ledger.balances(some).items():
            told = balance["bits"].total - self.ledger.held(account).get("bits", 0)
            assert told == pytest.approx(NORMAL * UNITS[0], abs=2), account
        model = Account("model", "m")
        told = self.ledger.balance(model)["bits"].total - self.ledger.held(model)["bits"]
        assert told == pytest.approx(self.answered * NORMAL * UNITS[0], rel=1e-6)
        assert self.ledger.balance(Account("credential", POOLED)) == {}
        assert self.sink.kinds <= {"accounts-pooled", "budget-exhausted", "tier-changed", "denied"}


def lives(root: Path, capacity: int | None = None) -> Flood:
    """Before the restart Alice has spent all that she may, and Bob three answers of seven."""
    before = Flood(root, capacity)
    assert (before.ask("alice", 8), before.ask("bob", 3)) == (7, 3)
    before.guard.close()
    after = Flood(root, capacity)
    after.answered = 10
    return after


def end(flood: Flood, names: int) -> None:
    """Nobody's spending is forgotten, whoever has something left is served."""
    assert flood.ask("alice", 8) == 0
    bob, carol = flood.ask("bob", 8), flood.ask("carol", 8)
    assert (bob, carol) == (4, 7)
    flood.answered += 11
    flood.check(names)
    flood.guard.close()


def test_a_flood_after_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With tables an eighth of a thousand long, so that a few thousand names are as many as millions."""
    for name in ("ladder.MOST", "prices.MOST", "events._MOST"):
        monkeypatch.setattr(f"hardening.{name}", 128)
    flood = lives(tmp_path, 128)
    flood.come(0, 1500, regulars=20)
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        flood.come(1500, 4500, regulars=20)
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    print(f"\n  3,000 more names: {grown:,} bytes more")
    assert grown < 300_000, "100 bytes for each name would be kept for ever"
    end(flood, 4500)


def resident() -> int:
    """Bytes of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


@pytest.mark.deep
def test_a_million_names(tmp_path: Path) -> None:
    """With tables as long as they are. A name that is kept takes 150 bytes at least, here and there."""
    flood, start, sizes, at = lives(tmp_path), time.perf_counter(), [], [0, 100_000, 500_000, 1_000_000]
    for first, last in itertools.pairwise(at):
        flood.come(first, last, regulars=1000, threads=48)
        gc.collect()
        sizes.append(resident() / 1e6)
    said = ", ".join(f"{size:,.0f} MB after {last:,} names" for last, size in zip(at[1:], sizes, strict=True))
    print(f"\n  {said}; {time.perf_counter() - start:,.0f} s")
    assert sizes[2] - sizes[1] < 500_000 * 50 / 1e6
    end(flood, 1_000_000)


@pytest.mark.deep
def test_ten_million_names_in_the_table() -> None:
    clients = Clients(16_384)
    for i in range(20_000):
        clients.slot(f"name {i}")
    before, start = resident(), time.perf_counter()
    for i in range(20_000, 10_000_000):
        assert clients.slot(f"name {i}") == clients.pooled
    grown = resident() - before
    print(f"\n  10,000,000 names in {time.perf_counter() - start:,.0f} s: {grown / 1e6:,.1f} MB more")
    assert grown < 5e6
    assert [clients.slot(f"name {i}") for i in (0, 16_383, 16_384)] == [0, 16_383, clients.pooled]
