"""What is known of a price before there is an answer: the least that one of its kind has cost, and bounded memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardening.ledger import Cost
from hardening.ledger.amounts import MOST
from hardening.prices import Prices

COSTS = st.builds(Cost, st.integers(0, 50), st.integers(0, 50))


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(("normal", "label")), COSTS), max_size=20))
def test_the_least_of_each_kind(learnt: list[tuple[str, str, Cost]]) -> None:
    prices = Prices(counts=True)
    for about, tier, row in learnt:
        prices.of(about, tier, 3)
        prices.learn(about, tier, row)
    for about in "ab":
        for tier in ("normal", "label"):
            rows = [row for a, t, row in learnt if (a, t) == (about, tier)]
            least = Cost(min((r.bits for r in rows), default=0), min((r.rho for r in rows), default=0))
            assert prices.of(about, tier, 3) == Cost(3 * least.bits, 3 * least.rho, 3)


def test_what_nobody_can_pay_stays_payable_by_nobody() -> None:
    prices = Prices(counts=False)
    prices.learn("a", "normal", Cost.of(bits=float("inf")))
    assert prices.of("a", "normal", 1000) == Cost(MOST, 0, 0)
    assert prices.of("a", "normal", 0).queries == 0


def test_kinds_are_chosen_by_callers_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hardening.prices.MOST", 8)
    prices = Prices(counts=True)
    for kind in range(100):
        prices.of(kind, "normal", 1)
        prices.learn(kind, "normal", Cost(kind))
        assert prices.of(kind, "normal", 2) == Cost(2 * kind, 0, 2)
        assert max(len(prices._rows), len(prices._requests)) <= 8
