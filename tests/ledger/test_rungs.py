"""Rungs that are leased together: whoever is refused by one gets nothing of what he shares with others on the next."""

from __future__ import annotations

from typing import Any

import pytest

from hardening.ledger import Account, Budget, Cost, Ledger, Window
from hardening.ledger.amounts import UNITS
from hardening.ledger.books import SHARE
from hardening.ledger.ledger import SWEEP
from hardening.ledger.store import Store
from hardening.testing import FakeClock

BIT = UNITS[0]
ACME, MODEL = Account("organisation", "acme"), Account("model", "m")


def pair(store: Store, clock: FakeClock, **budgets: Any) -> list[Ledger]:
    """Two replicas."""
    return [Ledger(store, budgets, clock=clock, monotonic=clock, background=False) for _ in range(2)]


def who(name: str) -> tuple[Account, ...]:
    return Account("credential", name), MODEL


def test_a_request_that_a_narrow_rung_refuses_takes_no_more_than_a_slice_of_the_wide_one(
    store: Store, clock: FakeClock
) -> None:
    here, there = pair(store, clock, credential=Budget(bits=1e4), model=Budget(bits=1e6))
    assert here.spend(who("evil"), Cost.of(bits=9e5)) == ("credential:evil", "bits", "exhausted")
    assert here.held(MODEL)["bits"] <= 1e6 / SHARE * BIT
    served = 0
    while there.spend(who(f"honest {served}"), Cost.of(bits=5000.0)) is None:
        served += 1
    assert 5000 * served > (1 - 1 / SHARE) * 1e6 - 1e4


def test_refused_batches_of_every_size_starve_nobody_elsewhere(store: Store, clock: FakeClock) -> None:
    """One client that has spent its window of 100 rows asks for more, in ever new sizes; on the other replica
    200 others ask for 150 rows a minute, of 180 that the model's window lets through."""
    here, there = pair(
        store, clock, credential=Budget(queries=Window("1h", 100)), model=Budget(queries=Window("1h", 10_800))
    )
    assert here.spend(who("evil"), Cost(queries=100)) is None
    served = 0
    for minute in range(20):
        clock.now += 60
        for k in range(40):
            here.spend(who("evil"), Cost(queries=int(10_800 * 0.99**k)))
        for i in range(10):
            served += there.spend(who(f"honest {(10 * minute + i) % 200}"), Cost(queries=15)) is None
    assert served == 200


def test_what_was_leased_for_a_request_that_a_wide_rung_refuses_is_returned(store: Store, clock: FakeClock) -> None:
    here, there = pair(store, clock, credential=Budget(bits=9e5), organisation=Budget(bits=9e5), model=Budget(bits=1e5))
    accounts = Account("credential", "evil"), ACME, MODEL
    assert here.spend(accounts, Cost.of(bits=5e5)) == ("model:m", "bits", "exhausted")
    here.tick()
    assert [here.held(account)["bits"] for account in accounts[:2]] == [0, 0]
    assert here.held(MODEL)["bits"] <= 1e5 / SHARE * BIT
    assert there.spend((Account("credential", "honest"), ACME), Cost.of(bits=8.9e5)) is None


def test_rows_that_were_leased_for_a_request_that_was_refused_are_given_back(store: Store, clock: FakeClock) -> None:
    """Rows of a window, too, while they have not lapsed; and none is there twice."""
    many, few = Budget(queries=Window("1d", 1000)), Budget(queries=Window("1d", 100))
    here, there = pair(store, clock, credential=many, organisation=many, model=few)
    accounts = Account("credential", "evil"), ACME, MODEL
    assert here.spend(accounts, Cost(queries=900)) == ("model:m", "queries", "exhausted")
    here.tick()
    honest = Account("credential", "honest"), ACME
    assert there.spend(honest, Cost(queries=990)) is None
    more = Account("credential", "another"), ACME
    assert here.spend(more, Cost(queries=11)) == ("organisation:acme", "queries", "exhausted")
    assert store.read(ACME.key)["queries"].total <= 1000


def test_a_request_that_all_rungs_can_pay_is_granted_however_much_it_is(store: Store, clock: FakeClock) -> None:
    budgets = {rung: Budget(bits=1e6, rho=1.0) for rung in ("credential", "organisation", "model")}
    here, there = pair(store, clock, **budgets)
    accounts = Account("credential", "alice"), ACME, MODEL
    assert here.spend(accounts, Cost.of(bits=6e5, rho=0.9)) is None
    assert there.spend(accounts, Cost.of(bits=3.9e5, rho=0.09)) is None
    assert there.spend(accounts, Cost.of(bits=2e4)) == ("credential:alice", "bits", "exhausted")


@pytest.mark.parametrize("bits", [9e5, 5e4, 2e4])
def test_a_replica_that_is_in_use_keeps_no_more_than_a_slice(store: Store, clock: FakeClock, bits: float) -> None:
    here, there = pair(store, clock, credential=Budget(bits=1000.0), model=Budget(bits=1e6))
    for i in range(20):
        assert here.spend(who("evil"), Cost.of(bits=bits - i)) is not None
        assert here.spend(who(f"honest {i}"), Cost.of(bits=1.0)) is None
        assert here.held(MODEL)["bits"] <= 1e6 / SHARE * BIT
        clock.now += SWEEP
        here.tick()
    assert there.spend(who("other"), Cost.of(bits=500.0)) is None
