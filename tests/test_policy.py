"""decide: what is done about a client, as a pure function; state goes in and comes out."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardening.errors import ConfigError
from hardening.ledger import Window
from hardening.policy import (
    CALM,
    DENY,
    Acting,
    Choice,
    ClientRules,
    Query,
    Response,
    Step,
    decide,
    fallen_back,
    stricter,
)

RULES = Response(
    (Step(0.5, throttle=Window("1m", 60)), Step(1.0, tier="suspect"), Step(1.5, tier="label"), Step(2.0, deny=True)),
    hysteresis=0.1,
    ttl="1h",
)
TIERS = ("normal", "suspect", "label")


def follow(suspicions: list[float], rules: Response = RULES, every: float = 1.0) -> list[Choice]:
    """The choices about one client whose suspicion takes these values, one query of one row each time."""
    acting, choices = CALM, []
    for i, suspicion in enumerate(suspicions):
        choice, acting = decide(rules, acting, suspicion, Query(1, i * every))
        choices.append(choice)
    return choices


def test_steps_go_up_and_down_with_hysteresis() -> None:
    tiers = [c.tier for c in follow([0.0, 0.99, 1.0, 0.95, 0.9, 0.89, 1.6, 1.45, 1.39, 0.3])]
    assert tiers == [None, None, "suspect", "suspect", "suspect", None, "label", "label", "suspect", None]


def test_what_is_denied() -> None:
    refusals = [c.refusal for c in follow([1.99, 2.0, 1.95, 1.89, math.nan])]
    assert refusals == ["", *["suspicion reached 2 (respond.suspicion[3])"] * 2, "", refusals[1]]


def test_without_steps_nothing_is_done() -> None:
    assert set(follow([0.0, 1e9, math.inf, math.nan], Response())) == {Choice()}


def test_an_action_ends_by_itself_and_only_more_evidence_brings_it_back() -> None:
    choice, acting = decide(RULES, CALM, 2.5, Query(1, 0.0))
    assert choice.refusal
    assert acting.until == 3600.0
    choice, still = decide(RULES, acting, 2.5, Query(1, 3599.9))
    assert (bool(choice.refusal), still) == (True, acting)
    choice, acting = decide(RULES, acting, 2.5, Query(1, 3600.0))
    assert (choice, acting.step, acting.excused) == (Choice(), -1, 2.5)
    for suspicion in (2.5, 2.2, 1.2):
        choice, acting = decide(RULES, acting, suspicion, Query(1, 4000.0))
        assert choice == Choice(), "the same evidence was acted upon before"
    choice, again = decide(RULES, acting, 2.51, Query(1, 4001.0))
    assert choice.refusal
    assert again.until == 4001.0 + 3600.0
    _, acting = decide(RULES, acting, 0.1, Query(1, 4002.0))
    assert acting == CALM, "evidence that is gone is forgotten"
    assert decide(RULES, acting, 2.4, Query(1, 4003.0))[0].refusal


def test_more_evidence_while_an_action_lasts_renews_it() -> None:
    _, acting = decide(RULES, CALM, 1.0, Query(1, 0.0))
    _, acting = decide(RULES, acting, 1.5, Query(1, 3000.0))
    assert acting.until == 6600.0
    _, acting = decide(RULES, acting, 1.3, Query(1, 3001.0))
    assert (acting.step, acting.until) == (1, 6600.0), "a milder step goes on for as long as the stricter would have"


def test_a_throttle_is_a_bucket() -> None:
    acting, served = CALM, []
    for i in range(200):
        choice, acting = decide(RULES, acting, 0.6, Query(1, i * 0.1))
        served.append(not choice.refusal)
    assert all(served[:60])
    assert sum(served) == 60 + 19
    assert decide(RULES, acting, 0.6, Query(61, 1000.0))[0].refusal
    assert decide(RULES, acting, 0.6, Query(60, 1000.0))[0] == Choice()
    back, _ = decide(RULES, acting, 0.6, Query(1, -1e6))
    assert back.refusal == "throttled (respond.suspicion[0])", "a clock that was set back fills no bucket"


@given(
    st.lists(st.tuples(st.floats(0, 4) | st.just(math.nan), st.integers(0, 90), st.floats(0, 5000)), max_size=60),
    st.floats(0, 1),
)
def test_decide_holds_its_promises(queries: list[tuple[float, int, float]], hysteresis: float) -> None:
    rules = Response(RULES.suspicion, hysteresis, RULES.ttl)
    acting, now = CALM, 0.0
    for suspicion, rows, pause in queries:
        now += pause
        before = acting
        choice, acting = decide(rules, before, suspicion, Query(rows, now))
        level = math.inf if math.isnan(suspicion) else suspicion
        if acting.step >= 0:
            step = rules.suspicion[acting.step]
            assert now < acting.until <= now + 3600.0, "whatever is in force has an end"
            assert level >= step.at - hysteresis
            assert acting.step == before.step or acting.step < before.step or level >= step.at
        if level < rules.boundary - hysteresis:
            assert acting == CALM
        if before == CALM and level >= rules.boundary:
            assert acting.step == max(i for i, s in enumerate(rules.suspicion) if s.at <= level)
        assert decide(rules, before, suspicion, Query(rows, now)) == (choice, acting), "pure"


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: Step(0.0, tier="a"), "at: must be a number above 0"),
        (lambda: Step(math.nan, tier="a"), "at: must be a number above 0"),
        (lambda: Step(1.0), "tier: missing; name a tier, a throttle, or deny = true"),
        (lambda: Step(1.0, tier="a", deny=True), "deny: leaves nothing"),
        (lambda: Response((Step(2.0, deny=True), Step(1.0, tier="a"))), "suspicion: the steps must rise"),
        (lambda: Response((Step(1.0, deny=True), Step(1.0, tier="a"))), "suspicion: the steps must rise"),
        (lambda: Response(hysteresis=-1), "hysteresis: must be"),
        (lambda: Response(ttl="1w"), "ttl: must be a number and one of m, h, d"),
    ],
)
def test_rules_that_are_none(make: object, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        make()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ({"anonymous": "maybe"}, "clients.anonymous"),
        ({"ipv4": 0}, "clients.ipv4"),
        ({"ipv6": 129}, "clients.ipv6"),
        ({"probation": "soon"}, "clients.probation"),
        ({"credentials": 0, "identity": ("credential", "organisation")}, "clients.credentials"),
        ({"credentials": 5}, "clients.credentials"),
    ],
)
def test_rules_about_clients_that_are_none(given: dict[str, object], path: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ClientRules(**given)  # type: ignore[arg-type]
    assert caught.value.path == path


def test_the_stricter_of_two() -> None:
    assert stricter(TIERS, "normal", "label") == "label"
    assert stricter(TIERS, "label", "suspect") == "label"
    assert stricter(TIERS, DENY, "label") == DENY
    assert fallen_back(TIERS, "normal", "label") == "label"
    assert fallen_back(TIERS, "label", "label") == DENY
    assert fallen_back(TIERS, "label", "suspect") == DENY, "what is milder costs more than what could not be paid"
    assert fallen_back(TIERS, "normal", DENY) == DENY


def test_calm_is_the_state_of_nothing() -> None:
    assert Acting() == CALM
    assert Response().boundary == math.inf
    assert RULES.boundary == 0.5
