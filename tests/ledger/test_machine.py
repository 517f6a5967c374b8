"""Whatever replicas, network and store do to each other, the books are never below what was spent, nor above the bound.

A state machine drives several replicas over one store in memory, through a network that loses requests, loses answers
and delivers late; replicas crash and close, clients are idle, stores forget.
"""

from __future__ import annotations

import contextlib
import copy
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from hardening.errors import LedgerError
from hardening.ledger import Account, Budget, Cost, Ledger
from hardening.ledger.amounts import KINDS
from hardening.ledger.books import Ask
from hardening.ledger.memory import MemoryStore
from hardening.ledger.store import Reply
from hardening.testing import FakeClock

ALICE, BOB, ACME = Account("credential", "alice"), Account("credential", "bob"), Account("organisation", "acme")
ACCOUNTS = ALICE, BOB, ACME
BUDGETS = {"credential": Budget(bits=300 / 2**20, rho=500 / 2**40), "organisation": Budget(bits=450 / 2**20)}
LIMITS = {
    (account.key, kind): bound.limit for account in ACCOUNTS for kind, bound in BUDGETS[account.rung].bounds.items()
}
Network = Literal["works", "loses requests", "loses answers", "delivers late"]


class Wire(MemoryStore):
    """A store behind a network."""

    heartbeat = 10.0
    durable = False

    def __init__(self) -> None:
        super().__init__(FakeClock(1e9))
        self.state: Network = "works"
        self.late: list[Callable[[], Reply]] = []

    def lease(self, replica: str, number: int, asks: Sequence[Ask]) -> Reply:
        return self.send(lambda: MemoryStore.lease(self, replica, number, asks))

    def part(self, replica: str, number: int, asks: Sequence[Ask]) -> Reply:
        return self.send(lambda: MemoryStore.part(self, replica, number, asks))

    def send(self, request: Callable[[], Reply]) -> Reply:
        if self.state == "loses requests":
            raise LedgerError("lost")
        if self.state == "delivers late":
            self.late.append(request)
            raise LedgerError("late")
        reply = request()
        if self.state == "loses answers":
            raise LedgerError("lost")
        return reply

    def deliver(self, which: int) -> None:
        with contextlib.suppress(LedgerError):  # refused if it was overtaken
            self.late.pop(which % len(self.late))()

    def retire(self, replica: str) -> None:
        if self.state != "works":
            raise LedgerError("lost")
        super().retire(replica)


class Replica:
    def __init__(self, store: MemoryStore, on_failure: Literal["deny", "allow"], capacity: int) -> None:
        self.clock = FakeClock()
        self.ledger = Ledger(
            store, BUDGETS, on_failure=on_failure, monotonic=self.clock, background=False, capacity=capacity
        )
        self.spent: Counter[tuple[str, str]] = Counter()

    def count(self, accounts: Sequence[Account], cost: Cost, sign: int) -> None:
        for account in accounts:
            for kind, amount in zip(KINDS, cost, strict=True):
                if kind in BUDGETS[account.rung].bounds:
                    self.spent[account.key, kind] += sign * amount


REPLICAS = st.integers(0, 2)
COSTS = st.builds(Cost, bits=st.integers(0, 40), rho=st.integers(0, 60))
WHO = st.sampled_from([(ALICE,), (ALICE, ACME), (BOB, ACME), (ACME,), (ALICE, ALICE)])


class Replicas(RuleBasedStateMachine):
    """Fails closed, over a store that keeps what it acknowledged."""

    on_failure: Literal["deny", "allow"] = "deny"
    capacity = 1000

    @initialize()
    def start(self) -> None:
        self.store = Wire()
        self.replicas = [Replica(self.store, self.on_failure, self.capacity) for _ in range(3)]
        self.gone: Counter[tuple[str, str]] = Counter()
        self.crashed = False
        self.last: tuple[Replica, tuple[Account, ...], Cost] | None = None

    @rule(which=REPLICAS, who=WHO, cost=COSTS, times=st.integers(1, 5))
    def spend(self, which: int, who: tuple[Account, ...], cost: Cost, times: int) -> None:
        replica = self.replicas[which]
        for _ in range(times):
            if replica.ledger.spend(who, cost) is None:
                charged = tuple(dict.fromkeys(who))
                replica.count(charged, cost, 1)
                self.last = replica, charged, cost

    @rule()
    def credit(self) -> None:
        if self.last is not None and self.last[0] in self.replicas:
            replica, who, cost = self.last
            replica.ledger.credit(who, cost)
            replica.count(who, cost, -1)
            self.last = None

    @rule(which=REPLICAS, seconds=st.sampled_from([0.0, 0.5, 3.0, 15.0, 31.0]))
    def time_passes(self, which: int, seconds: float) -> None:
        self.replicas[which].clock.now += seconds
        self.replicas[which].ledger.tick()

    @rule(state=st.sampled_from(["works", "works", "loses requests", "loses answers", "delivers late"]))
    def network(self, state: Network) -> None:
        self.store.state = state

    @precondition(lambda self: self.store.late)
    @rule(which=st.integers(0, 9))
    def delivers(self, which: int) -> None:
        self.store.deliver(which)

    @rule(which=REPLICAS, cleanly=st.booleans())
    def replaced(self, which: int, cleanly: bool) -> None:
        old = self.replicas[which]
        if cleanly:
            old.ledger.close()
        self.crashed = self.crashed or not cleanly or self.store.state != "works"
        self.gone.update(old.spent)
        self.replicas[which] = Replica(self.store, self.on_failure, self.capacity)

    def spent(self) -> Counter[tuple[str, str]]:
        return sum((replica.spent for replica in self.replicas), self.gone.copy())

    def total(self, name: tuple[str, str]) -> int:
        balances = self.store.read(name[0])
        return next((b.total for kind, b in balances.items() if kind == name[1]), 0)

    @invariant()
    def never_below_what_was_spent_nor_above_the_bound(self) -> None:
        for name, amount in self.spent().items():
            assert amount <= self.total(name) <= LIMITS[name]

    def teardown(self) -> None:
        """Once the network works and everybody has closed, the books are exact, if nobody went without a word.

        What is delivered after that can only be counted too much.
        """
        if not hasattr(self, "store"):
            return
        self.store.state = "works"
        exact = not self.crashed
        for replica in self.replicas:
            replica.clock.now += 10.0
            replica.ledger.tick()
            replica.ledger.close()
        for name, amount in self.spent().items():
            assert amount <= self.total(name) <= LIMITS[name]
            assert not exact or amount == self.total(name)
        while self.store.late:
            self.store.deliver(0)
        for name, amount in self.spent().items():
            assert amount <= self.total(name)


class Crowded(Replicas):
    """Replicas that have room for one account of each rung forget the others, once they are settled."""

    capacity = 1

    def start(self) -> None:
        super().start()
        self.store.durable = True

    start = initialize()(start)

    @rule()
    def credit(self) -> None:
        """What is credited is gone if the account was forgotten in between."""
        super().credit()
        self.crashed = True


class Open(Replicas):
    """Fails open: nothing is forgotten, whatever the bound says."""

    on_failure = "allow"

    @rule(which=REPLICAS, cleanly=st.just(True))
    def replaced(self, which: int, cleanly: bool) -> None:
        """Who closes while the store is away takes what it spent on credit with it; that is said in an event."""
        if self.store.state == "works":
            self.replicas[which].clock.now += 10.0
            self.replicas[which].ledger.tick()
            super().replaced(which, cleanly)

    @invariant()
    def never_below_what_was_spent_nor_above_the_bound(self) -> None:
        """Not while the store is away."""

    def teardown(self) -> None:
        if not hasattr(self, "store"):
            return
        self.store.state = "works"
        for replica in self.replicas:
            replica.clock.now += 10.0
            replica.ledger.tick()
            replica.ledger.close()
        for name, amount in self.spent().items():
            assert amount <= self.total(name)


class CrowdedOpen(Open):
    """Who is new while nothing can be settled shares an account, so the books are right for each rung."""

    capacity = 1

    def start(self) -> None:
        super().start()
        self.store.durable = True

    start = initialize()(start)

    def spent(self) -> Counter[tuple[str, str]]:
        rungs: Counter[tuple[str, str]] = Counter()
        for (key, kind), amount in super().spent().items():
            rungs[key.partition(":")[0], kind] += amount
        return rungs

    def total(self, name: tuple[str, str]) -> int:
        rung, kind = name
        accounts = {account for account in ACCOUNTS if account.rung == rung}
        names = [(account.key, kind) for account in accounts | {account.pooled for account in accounts}]
        return sum(super(CrowdedOpen, self).total(each) for each in names)


class Forgetful(Replicas):
    """The store goes back to an older state: each replica raises it again to what it knows."""

    def start(self) -> None:
        super().start()
        self.remember()

    start = initialize()(start)

    @rule()
    def remember(self) -> None:
        store = self.store
        self.kept = copy.deepcopy((store._entries, store._held, store._last))

    @rule()
    def forget(self) -> None:
        store = self.store
        store._entries, store._held, store._last = copy.deepcopy(self.kept)

    @rule(which=REPLICAS, cleanly=st.just(True))
    def replaced(self, which: int, cleanly: bool) -> None:
        """Nobody goes away: what a replica that is gone was granted, nobody can tell a store that forgot it."""

    @invariant()
    def never_below_what_was_spent_nor_above_the_bound(self) -> None:
        """Not until the replicas have spoken to the store again."""

    def teardown(self) -> None:
        if not hasattr(self, "store"):
            return
        self.store.state = "works"
        for replica in self.replicas:
            replica.clock.now += 10.0
            replica.ledger.tick()
        for name, amount in self.spent().items():
            assert amount <= self.total(name)


def run(machine: type[Replicas], examples: int) -> None:
    run_state_machine_as_test(machine, settings=settings(max_examples=examples, stateful_step_count=40))


@pytest.mark.parametrize("machine", [Replicas, Crowded, Open, CrowdedOpen, Forgetful])
def test_replicas(machine: type[Replicas]) -> None:
    run(machine, 100)


@pytest.mark.deep
@pytest.mark.parametrize("machine", [Replicas, Crowded, Open, CrowdedOpen, Forgetful])
def test_replicas_for_long(machine: type[Replicas]) -> None:
    run(machine, 1000)
