"""Units, costs, bounds, and what is refused."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardening.errors import InputError
from hardening.ledger import Account, Budget, Cost, Window
from hardening.ledger.amounts import MOST, UNITS, Bound


@given(st.floats(0, 1e6), st.floats(0, 1e3), st.integers(0, 1 << 40))
def test_a_cost_is_rounded_up_by_less_than_a_unit(bits: float, rho: float, queries: int) -> None:
    cost = Cost.of(bits, rho, queries)
    assert 0 <= cost.bits - Fraction(bits) * UNITS[0] < 1
    assert 0 <= cost.rho - Fraction(rho) * UNITS[1] < 1
    assert cost.queries == queries


def test_what_is_unknown_costs_more_than_any_budget_holds() -> None:
    assert Cost.of(bits=math.inf).bits == MOST
    assert Cost.of(rho=1e300).rho == MOST
    assert Budget(bits=MOST // UNITS[0]).bounds["bits"].limit < MOST


@pytest.mark.parametrize("amount", [-1.0, -1e-300, math.nan])
def test_a_cost_is_a_number_from_zero(amount: float) -> None:
    with pytest.raises(ValueError, match="rho: must be zero or more"):
        Cost.of(rho=amount)


@given(st.floats(2**-20, 4e9))
def test_a_bound_is_rounded_down(bits: float) -> None:
    assert 0 <= Fraction(bits) * UNITS[0] - Budget(bits=bits).bounds["bits"].limit < 1


def test_only_what_is_bounded_is_counted() -> None:
    assert Budget(queries=Window("2h", 7)).bounds == {"queries": Bound(7, 7_200_000)}
    assert Budget().bounds == {}


@pytest.mark.parametrize("bits", [0.0, -1.0, math.nan, math.inf, 1e10])
def test_a_bound_that_the_books_cannot_hold(bits: float) -> None:
    with pytest.raises(ValueError, match="bits: must be more than 0 and at most 4294967295"):
        Budget(bits=bits)


@pytest.mark.parametrize("per", ["", "h", "0h", "1", "30s", "1.5h", "-1h", "1 h", "1w", "9999999d"])
def test_a_window_that_is_none(per: str) -> None:
    with pytest.raises(ValueError, match="per: must be a number and one of m, h, d"):
        Window(per, 10)


@pytest.mark.parametrize("most", [0, -1, 1 << 53, True, 2.5])
def test_a_bucket_that_is_none(most: int) -> None:
    with pytest.raises(ValueError, match="max: must be a whole number from 1 to 1250999896 for a window of 1h"):
        Window("1h", most)


@pytest.mark.parametrize("name", ["", "x" * 65, "a\nb", "a\x00b", 7, None])
def test_names_of_accounts_are_bounded(name: str) -> None:
    with pytest.raises(InputError, match="1 to 64 printable characters"):
        Account("credential", name).check()


def test_rungs_are_known() -> None:
    Account("organisation", "x" * 64).check()
    with pytest.raises(InputError, match="unknown rung 'planet'; known: probation, credential, principal, organ"):
        Account("planet", "earth").check()
