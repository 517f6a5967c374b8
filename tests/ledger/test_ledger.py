"""One replica: charging all rungs or none, renewing before it runs out, failing as the policy says, and saying so."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import pytest

from hardening.errors import InputError, LedgerCause, LedgerError
from hardening.ledger import Account, Budget, Cost, Ledger, LedgerRules, Window, open_ledger
from hardening.ledger.amounts import MOST, UNITS
from hardening.ledger.books import SHARE, Ask
from hardening.ledger.lease import FIRST
from hardening.ledger.ledger import SWEEP
from hardening.ledger.memory import MemoryStore
from hardening.ledger.store import Reply, Store
from hardening.testing import FakeClock, RecordingSink
from tests.ledger.server import PATIENCE

ALICE, ACME, MODEL = Account("credential", "alice"), Account("organisation", "acme"), Account("model", "m")
BIT = UNITS[0]
ONE = Cost.of(bits=1.0)


class Switched(MemoryStore):
    """A store that can be had or not, and counts exchanges."""

    def __init__(self) -> None:
        super().__init__(FakeClock(1e9))
        self.failing: LedgerCause | Literal["bug", ""] = ""
        self.exchanges = 0
        self.asked: list[Ask] = []
        self.before: Callable[[], None] = lambda: None

    def lease(self, replica: str, number: int, asks: Sequence[Ask]) -> Reply:
        self.exchanges += 1
        self.before()
        if self.failing == "bug":
            raise ZeroDivisionError
        if self.failing:
            raise LedgerError("as the test says", self.failing)
        self.asked += asks
        return super().lease(replica, number, asks)


def ledger(store: Store, sink: RecordingSink | None = None, clock: FakeClock | None = None, **more: Any) -> Ledger:
    budgets = {"credential": Budget(bits=1000.0), "organisation": Budget(bits=2000.0), "model": Budget(rho=1.0)}
    monotonic = clock or FakeClock()
    settings: dict[str, Any] = {"budgets": budgets, "background": False, "clock": monotonic, "monotonic": monotonic}
    return Ledger(store, sink=sink, **(settings | more))


def kinds(sink: RecordingSink) -> list[str]:
    return [event.kind for event in sink.events]


def test_every_rung_is_charged_or_none(store: Store) -> None:
    books = ledger(store)
    dear = Cost.of(bits=1.0, rho=0.75)
    assert books.spend((ALICE, ACME, MODEL), dear) is None
    assert books.spend((ALICE, ACME, MODEL), dear) == ("model:m", "rho", "exhausted")
    books.close()
    fresh = ledger(store)
    assert {a: fresh.balance(a) for a in (ALICE, ACME)} == {
        ALICE: {"bits": (1 * BIT, 0)},
        ACME: {"bits": (1 * BIT, 0)},
    }
    assert fresh.balance(MODEL) == {"rho": (Cost.of(rho=0.75).rho, 0)}


def test_all_of_a_budget_is_spent_and_no_more(store: Store) -> None:
    books = ledger(store)
    assert sum(books.spend((ALICE,), ONE) is None for _ in range(1010)) == 1000
    assert books.spend((ALICE,), Cost.of(bits=2**-20)) == ("credential:alice", "bits", "exhausted")
    assert books.balance(ALICE)["bits"].total == 1000 * BIT


def test_most_requests_need_no_exchange() -> None:
    store = Switched()
    books = ledger(store, budgets={"credential": Budget(bits=1e9)})
    for _ in range(100_000):
        assert books.spend((ALICE,), ONE) is None
        books.tick()
    assert store.exchanges < 100


def test_what_a_crash_strands_is_bounded() -> None:
    """One replica holds at most a share of what is left, or a few requests."""
    store, rng = Switched(), random.Random(1)
    books = ledger(store)
    spent = 0
    while True:
        cost = Cost(bits=rng.randrange(1, 2 * BIT))
        left = 1000 * BIT - spent
        if books.spend((ALICE,), cost):
            break
        spent += cost.bits
        books.tick()
        assert books.held(ALICE)["bits"] <= max(FIRST * cost.bits, left // SHARE)
    assert 1000 * BIT - spent < 2 * BIT


def test_a_budget_outlives_replicas(store: Store) -> None:
    for _ in range(5):
        books = ledger(store)
        assert sum(books.spend((ALICE,), Cost.of(bits=10.0)) is None for _ in range(20)) == 20
        books.close()
    assert ledger(store).spend((ALICE,), Cost.of(bits=10.0)) == ("credential:alice", "bits", "exhausted")


def test_what_is_returned_can_be_spent_by_others() -> None:
    store = MemoryStore()
    first, second = ledger(store), ledger(store)
    assert first.spend((ALICE,), ONE) is None
    assert first.held(ALICE)["bits"] == (FIRST - 1) * BIT
    first.close()
    assert sum(second.spend((ALICE,), ONE) is None for _ in range(1010)) == 999


def test_what_nobody_uses_is_returned() -> None:
    store, clock = MemoryStore(), FakeClock()
    books = ledger(store, clock=clock)
    books.spend((ALICE,), ONE)
    for _ in range(2):
        assert books.held(ALICE)["bits"] > 0
        clock.now += SWEEP
        books.tick()
    assert books.held(ALICE)["bits"] == 0
    assert books.balance(ALICE)["bits"].total == BIT
    assert books.spend((ALICE,), ONE) is None


def test_credit_is_of_what_was_spent() -> None:
    books = ledger(MemoryStore())
    books.spend((ALICE, ACME), Cost.of(bits=600.0))
    books.credit((ALICE, ACME), Cost.of(bits=500.0))
    assert books.spend((ALICE, ACME), Cost.of(bits=900.0)) is None
    books.credit((ALICE,), Cost.of(bits=1e6))
    assert books.held(ALICE)["bits"] == 1000 * BIT
    books.close()


def test_what_was_credited_is_returned() -> None:
    store, clock = MemoryStore(), FakeClock()
    books = ledger(store, clock=clock)
    books.spend((ALICE,), Cost.of(bits=1000.0))
    clock.now += SWEEP
    books.tick()
    books.credit((ALICE,), Cost.of(bits=400.0))
    books.close()
    assert store.read(ALICE.key)["bits"].total == 600 * BIT


def test_windows_take_nothing_back_and_fill_by_themselves(clock: FakeClock) -> None:
    store = MemoryStore(clock)
    books = ledger(store, clock=clock, budgets={"credential": Budget(queries=Window("1h", 10))})
    four = Cost(queries=4)
    assert books.spend((ALICE,), four) is None
    assert books.spend((ALICE,), four) is None
    books.credit((ALICE,), four)
    assert books.spend((ALICE,), four) == ("credential:alice", "queries", "exhausted")
    clock.now += 1800
    assert books.spend((ALICE,), four) is None
    with pytest.raises(InputError, match="fills by itself"):
        books.grant(ALICE, four, reason="asked nicely")


def test_a_grant_is_audited_and_for_good(store: Store) -> None:
    sink = RecordingSink()
    books = ledger(store, sink)
    assert books.spend((ALICE,), Cost.of(bits=1000.0)) is None
    assert books.spend((ALICE,), ONE) == ("credential:alice", "bits", "exhausted")
    books.grant(ALICE, Cost.of(bits=2.0), reason="ticket 7")
    assert [books.spend((ALICE,), ONE) for _ in range(3)] == [None, None, ("credential:alice", "bits", "exhausted")]
    assert books.balance(ALICE)["bits"] == (1002 * BIT, 2 * BIT)
    (event,) = sink.events
    assert (event.kind, event.client) == ("budget-granted", "credential:alice")
    assert event.evidence == {"kind": "bits", "amount": 2 * BIT, "reason": "ticket 7"}


def test_an_infinite_cost_is_refused_whatever_happens() -> None:
    store = Switched()
    books = ledger(store, on_failure="allow")
    unknown = Cost.of(bits=float("inf"))
    assert books.spend((ALICE,), unknown) == ("credential:alice", "bits", "exhausted")
    store.failing = "unreachable"
    assert books.spend((ALICE,), unknown) == ("credential:alice", "bits", "exhausted")
    assert books.spend((ALICE,), ONE) is None
    assert max(unknown) == MOST


def test_what_is_not_bounded_is_not_charged() -> None:
    books = ledger(MemoryStore())
    assert books.spend((Account("prefix", "192.0.2.0/24"), ALICE), Cost.of(rho=1e9)) is None
    assert books.balance(ALICE) == {}


def test_names_are_checked_and_accounts_are_bounded() -> None:
    store = MemoryStore()
    books = ledger(store, capacity=3)
    with pytest.raises(InputError, match="1 to 64 printable"):
        books.spend((Account("credential", "x" * 65),), ONE)
    with pytest.raises(InputError, match="unknown rung"):
        books.spend((Account("planet", "earth"),), ONE)
    for i in range(1000):
        books.spend((Account("credential", f"sybil {i}"),), ONE)
    assert len(list(books._roster)) == 4
    assert books.balance(Account("credential", "(pooled)"))["bits"].total >= 997 * BIT
    assert [books.spend((Account("credential", f"more {i}"),), ONE) is None for i in range(4)] == [True] * 3 + [False]
    assert books.spend((Account("credential", "sybil 0"),), ONE) is None


def test_an_account_named_twice_is_charged_once() -> None:
    books = ledger(MemoryStore())
    assert books.spend((ALICE, ALICE, ALICE), Cost.of(bits=1000.0)) is None
    assert books.balance(ALICE)["bits"].total == 1000 * BIT


def test_closed() -> None:
    books = ledger(MemoryStore())
    assert books.spend((ALICE,), ONE) is None
    books.close()
    books.close()
    with pytest.raises(InputError, match="the ledger is closed"):
        books.spend((ALICE,), ONE)


def test_who_has_nothing_left_makes_the_store_work_once_a_second() -> None:
    store, clock = Switched(), FakeClock()
    books = ledger(store, clock=clock)
    books.spend((ALICE,), Cost.of(bits=1000.0))
    exchanges = store.exchanges
    for i in range(1, 4):
        assert {books.spend((ALICE,), ONE) for _ in range(100)} == {("credential:alice", "bits", "exhausted")}
        assert store.exchanges == exchanges + i
        clock.now += 1.0


# When the store cannot be had


@pytest.mark.parametrize(
    ("failing", "event"),
    [
        ("unreachable", "ledger-unreachable"),
        ("full", "ledger-full"),
        ("not-durable", "ledger-not-durable"),
        ("bug", "ledger-unreachable"),
    ],
)
def test_failing_closed(failing: Any, event: str) -> None:
    store, sink, clock = Switched(), RecordingSink(), FakeClock()
    books = ledger(store, sink, clock)
    assert books.spend((ALICE,), ONE) is None
    store.failing = failing
    leased = [books.spend((ALICE,), ONE) for _ in range(FIRST)]
    assert leased == [None] * (FIRST - 1) + [("credential:alice", "bits", "unreachable")]  # what is leased is spent
    exchanges = store.exchanges
    assert books.spend((ALICE,), ONE) == ("credential:alice", "bits", "unreachable")
    assert store.exchanges == exchanges  # nobody waits for a store that is known to be away
    store.failing = ""
    clock.now += 7.0
    assert books.spend((ALICE,), ONE) is None
    assert kinds(sink) == [event, "ledger-back"]
    assert sink.events[0].evidence["on_failure"] == "deny"
    assert sink.events[1].evidence == {"seconds": 7.0}


def test_failing_open_forgets_nothing() -> None:
    store, sink, clock = Switched(), RecordingSink(), FakeClock()
    books = ledger(store, sink, clock, on_failure="allow")
    store.failing = "unreachable"
    assert [books.spend((ALICE,), ONE) for _ in range(1500)] == [None] * 1500
    assert books.held(ALICE)["bits"] == 0
    store.failing = ""
    clock.now += 10.0
    books.tick()
    assert books.balance(ALICE)["bits"].total == 1500 * BIT
    assert books.spend((ALICE,), ONE) == ("credential:alice", "bits", "exhausted")
    assert kinds(sink) == ["ledger-unreachable", "ledger-back", "ledger-restored"]
    assert sink.events[-1].evidence == {"accounts": 1, "bits": 1500 * BIT, "rho": 0, "queries": 0}


def test_what_is_known_to_be_spent_stays_refused_while_the_store_is_away() -> None:
    store = Switched()
    books = ledger(store, on_failure="allow")
    assert books.spend((ALICE,), Cost.of(bits=1000.0)) is None
    assert books.spend((ALICE,), ONE) is not None
    store.failing = "unreachable"
    assert books.spend((ALICE,), ONE) == ("credential:alice", "bits", "exhausted")


def test_a_store_that_lost_data_is_told_by_every_replica() -> None:
    store, sink = Switched(), RecordingSink()
    clocks = [FakeClock(), FakeClock()]
    replicas = [ledger(store, sink, clock) for clock in clocks]
    many = [Account("credential", f"client {i}") for i in range(300)]
    for replica in replicas:
        for account in (*many, ALICE):
            assert replica.spend((account,), Cost.of(bits=100.0)) is None
    store._entries.clear()
    store._held.clear()
    store._last.clear()
    store.heartbeat = 10.0  # type: ignore[misc]
    for clock, replica in zip(clocks, replicas, strict=True):
        clock.now += 10.0
        replica.tick()
    for account in (*many, ALICE):
        held = sum(replica.held(account)["bits"] for replica in replicas)
        assert replicas[0].balance(account)["bits"].total == 200 * BIT + held
    restored = [e.evidence for e in sink.events if e.kind == "ledger-restored"]
    assert sum(e["bits"] for e in restored) >= 2 * 301 * 100 * BIT


def test_a_store_that_lost_data_and_then_an_answer_is_told_all_the_same() -> None:
    """The exchange whose answer was lost left a record, so that nothing seems to be missing."""
    store, clock = Switched(), FakeClock()
    books = ledger(store, clock=clock)
    assert books.spend((ALICE,), ONE) is None
    store._entries.clear()
    store._held.clear()
    store._last.clear()
    store._last[books._line._replica] = books._line._number + 1
    store.failing = "unreachable"
    assert books.spend((ACME,), ONE) is not None
    store.failing = ""
    clock.now += 10.0
    assert books.spend((ACME,), ONE) is None
    assert books.balance(ALICE)["bits"].total == BIT + books.held(ALICE)["bits"]


def test_requests_do_not_wait_for_a_store_that_is_away() -> None:
    """One does, to find out; then the thread does the trying."""
    store, clock = Switched(), FakeClock()
    store.failing = "unreachable"
    tried: list[int] = []
    again = threading.Event()

    def note() -> None:
        tried.append(threading.get_ident())
        if len(tried) > 1:
            again.set()

    store.before = note
    books = ledger(store, clock=clock, background=True)
    assert books.spend((ALICE,), ONE) is not None
    clock.now += 1000.0
    assert books.spend((ALICE,), ONE) is not None
    assert again.wait(PATIENCE)
    assert [ident == threading.get_ident() for ident in tried[:2]] == [True, False]
    books.close()


def test_the_clock_jumps() -> None:
    sink, wall, monotonic = RecordingSink(), FakeClock(1e9), FakeClock()
    books = Ledger(MemoryStore(), {}, sink=sink, clock=wall, monotonic=monotonic, background=False)
    for drift in (0.0, 0.5, 3600.0, -86_400.0, 0.0):
        monotonic.now += 1.0
        wall.now += 1.0 + drift
        books.tick()
    assert [(e.kind, e.evidence["seconds"]) for e in sink.events] == [
        ("clock-jumped", 3600.0),
        ("clock-jumped", -86_400.0),
    ]


# Threads and processes


def test_renewed_in_the_background_before_it_runs_out() -> None:
    store = Switched()
    renewed = threading.Event()
    caller = threading.get_ident()

    def note() -> None:
        if threading.get_ident() != caller:
            renewed.set()

    store.before = note
    books = Ledger(store, {"credential": Budget(bits=1000.0)})
    for _ in range(FIRST - 1):
        assert books.spend((ALICE,), ONE) is None
    assert renewed.wait(PATIENCE)
    with books._talking:  # until the answer is entered
        assert books.held(ALICE)["bits"] > BIT
    books.close()
    assert store._held == {}
    assert books._thread is not None
    assert not books._thread.is_alive()


def test_many_threads_spend_at_once(store: Store) -> None:
    books = Ledger(store, {"credential": Budget(bits=300.0), "organisation": Budget(bits=500.0)}, sink=RecordingSink())
    who = [(Account("credential", name), ACME) for name in "abc"]

    def work(i: int) -> list[int]:
        rng = random.Random(i)
        costs = [Cost(bits=rng.randrange(1, BIT)) for _ in range(200)]
        return [0 if books.spend(who[i % 3], cost) else cost.bits for cost in costs]

    with ThreadPoolExecutor(8) as pool:
        spent = [sum(s) for s in pool.map(work, range(8))]
    by_client = [sum(spent[i::3]) for i in range(3)]
    for accounts, amount in zip(who, by_client, strict=True):
        assert amount <= 300 * BIT
        assert books.balance(accounts[0])["bits"].total - books.held(accounts[0])["bits"] <= 300 * BIT
    assert 499 * BIT < sum(by_client) <= 500 * BIT
    assert books.balance(ACME)["bits"].total <= 500 * BIT
    books.close()


def test_a_request_of_a_thread_rides_with_another(clock: FakeClock) -> None:
    """While one exchange is under way the others gather, and one of them speaks for all."""
    store, clients = Switched(), 50
    accounts = [Account("credential", f"client {i}") for i in range(clients)]
    books = ledger(store)
    gathered = threading.Event()
    store.before = lambda: None if gathered.wait(PATIENCE) else pytest.fail("nobody came")
    with ThreadPoolExecutor(clients) as pool:
        answers = [pool.submit(books.spend, (account,), ONE) for account in accounts]
        while True:
            with books._lock:
                leases = list(books._roster)
                if len(leases) == clients and sum(lease.due for lease in leases) == clients - 1:
                    break
        gathered.set()
        assert [answer.result(PATIENCE) for answer in answers] == [None] * clients
    assert store.exchanges == 2


FORK = """
import os, sys
from hardening.ledger import Account, Budget, Cost, LedgerRules, open_ledger

url = sys.argv[1]
alice, one = Account("credential", "fork"), Cost.of(bits=1.0)
books = open_ledger(LedgerRules(url, timeout=60.0), {"credential": Budget(bits=1000.0)})
assert books.spend((alice,), Cost.of(bits=4.0)) is None
held, replica, connection = books.held(alice)["bits"], books._line._replica, books._store._connection
assert held > 0
read, write = os.pipe()
child = os.fork()
if not child:
    assert books.held(alice) == {}
    assert books._line._replica != replica
    assert books.spend((alice,), one) is None
    assert books._store._connection is not connection
    thread = books._thread is not None and books._thread.is_alive()
    os.write(write, f"{thread} {books.balance(alice)['bits'].total}".encode())
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert books.held(alice)["bits"] == held, "the parent goes on with its own"
assert books.spend((alice,), Cost.of(bits=500.0)) is None
total = books.balance(alice)["bits"].total
books.close()
print(os.read(read, 100).decode(), held, total)
"""


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
def test_a_fork_starts_without_leases(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    url = f"sqlite:///{tmp_path}/books.db"
    if kind == "redis":
        url = request.getfixturevalue("server").url
    run = subprocess.run([sys.executable, "-c", FORK, url], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    thread, in_child, held, total = run.stdout.split()
    assert thread == "True"
    assert int(in_child) >= 5 * BIT + int(held)
    assert int(total) >= 505 * BIT


def test_from_rules(tmp_path: Path) -> None:
    rules = LedgerRules("sqlite:///books.db", on_failure="allow")
    for _ in range(2):
        books = open_ledger(rules, {"credential": Budget(bits=10.0)}, root=tmp_path)
        assert books.spend((ALICE,), Cost.of(bits=5.0)) is None
        books.close()
    books = open_ledger(rules, {"credential": Budget(bits=10.0)}, root=tmp_path)
    assert books.spend((ALICE,), ONE) == ("credential:alice", "bits", "exhausted")
    books.close()
