"""One attack, many identities: too little from each to flag any, and noticed all the same; run with -s for figures."""

from __future__ import annotations

import contextlib
import math
import time
from collections import Counter

import numpy as np
import pytest

import hardening
from hardening.clients import Clients, fleet
from hardening.clients.baseline import interval
from hardening.clients.evidence import e_benjamini_hochberg
from hardening.clients.fingerprints import Fingerprints
from hardening.clients.table import evidence
from hardening.config import ClientRules, Output, Policy
from hardening.errors import Denied
from hardening.ledger import Budget
from hardening.testing import RecordingSink
from hardening.transforms import Types
from hardening.types import Identity
from tests.clients import crowd
from tests.clients.test_evidence import flat

ALPHA = 1e-3
HONEST = 300


def crowded(rng: np.random.Generator, lengths: list[int]) -> tuple[list[crowd.Summaries], list[np.ndarray]]:
    each = [crowd.digits().honest.client(rng, n) for n in lengths]
    return each, [np.full(n, i) for i, n in enumerate(lengths)]


def entered(each: list[crowd.Summaries], slots: list[np.ndarray]) -> np.ndarray:
    """The table's rows, after all of it was asked in random order."""
    where, asked = np.concatenate(slots), crowd.together(each)
    count = int(where.max()) + 1
    clients = Clients(count)
    for i in range(count):
        clients.slot(f"client-{i}")
    order = np.random.default_rng(0).permutation(len(where))
    order = order[np.argsort(where[order], kind="stable")] if count < 50 else order
    crowd.fold(clients, crowd.digits().baseline, where[order], asked.take(order))
    return clients.rows()


def split(rng: np.random.Generator, attack: str, identities: int, questions: int, how: str) -> np.ndarray:
    each, slots = crowded(rng, [100] * HONEST)
    made = crowd.digits().summed_up(crowd.digits().ask(attack, rng, questions))
    if how == "by class":
        label = made.rows[:, 1].astype(int)
        rank = np.argsort(np.argsort(label, kind="stable"), kind="stable")
        owner = rank * identities // questions
    else:
        owner = np.arange(questions) % identities
    return entered([*each, made], [*slots, HONEST + owner])


@pytest.mark.parametrize("how", ["round-robin", "by class"])
@pytest.mark.parametrize(("identities", "questions"), [(5, 2000), (400, 4000), (10_000, 20_000)])
@pytest.mark.parametrize("attack", ["uniform", "foreign"])
def test_a_split_attack_is_noticed(attack: str, identities: int, questions: int, how: str) -> None:
    rows = split(np.random.default_rng(4), attack, identities, questions, how)
    groups = fleet.suspicious(crowd.digits().baseline, rows, ALPHA)
    assert groups
    found = groups[0]
    share = (found.members >= HONEST).mean()
    alone = e_benjamini_hochberg(evidence(rows), ALPHA)
    print(
        f"\n  {attack}, {identities} identities {how}: {alone.sum()} listed alone; group of {len(found.members)} "
        f"({share:.0%} his), ln e {found.evidence:.0f}, gap {found.gap:.2f}, by {[name for name, _, _ in found.lanes]}"
    )
    assert share > 0.5
    if identities >= 400:
        assert alone[HONEST:].mean() < 0.1, "nobody would need the fleet's statistics"
    if how == "by class" and identities >= 400:
        assert "collapse" in [name for name, _, _ in found.lanes]
        assert found.gap > 0.5


@pytest.mark.parametrize("how", ["round-robin", "by class"])
def test_a_diluted_attack_over_four_hundred_identities(how: str) -> None:
    rows = split(np.random.default_rng(5), "diluted", 400, 4000, how)
    found = fleet.suspicious(crowd.digits().baseline, rows, ALPHA)[0]
    assert (found.members >= HONEST).mean() > 0.5


def test_honest_fleets_are_left_alone() -> None:
    """Of any make-up: long clients and short ones, ten thousand who asked twice, few who asked much."""
    rng, flagged, fleets = np.random.default_rng(6), 0, 0
    kinds = [[100] * 300, [10] * 400, [2] * 3000, [400] * 20, [1000, *[20] * 60], [3, 30, 300] * 60]
    for _ in range(3):
        for lengths in kinds:
            groups = fleet.suspicious(crowd.digits().baseline, entered(*crowded(rng, lengths)), ALPHA)
            flagged += bool(groups)
            fleets += 1
    low, high = interval(flagged, fleets)
    print(f"\n  {flagged} of {fleets} honest fleets flagged [{low:.3f}, {high:.3f}]")
    assert flagged <= 1


def test_the_gap_of_labels() -> None:
    """Two identities that ask about one class each: pooled entropy 1 of 1 bit, their own none. Alike: no gap."""
    assert fleet.entropy_gap(np.array([[1000, 0, 0], [0, 1000, 0]])) == pytest.approx(1, abs=1e-2)
    assert fleet.entropy_gap(np.array([[500, 500, 0], [500, 500, 0]])) == pytest.approx(0, abs=1e-2)
    assert fleet.entropy_gap(np.array([[5, 0], [7, 0], [0, 0]])) == 0
    assert fleet.entropy_gap(np.zeros((0, 4))) == 0


def test_identities_that_search_together_are_one_cluster() -> None:
    """A search dealt to six identities, each nearly repeating the others; honest clients are in no cluster."""
    rng, index = np.random.default_rng(7), Fingerprints(b"secret", 1.0, window=8)
    x, links = crowd.digits().x[900:], []
    for i in range(60):
        found = index.seen(x[rng.choice(len(x), 30, replace=False)], i)
        links += [(i, int(o), 1) for o in found.owner if o >= 0]
    start = x[5].astype(float)
    for t in range(120):
        found = index.seen(np.clip(start + rng.normal(0, 0.01, 64), 0, 1)[None], 60 + t % 6)
        links += [(60 + t % 6, int(o), 1) for o in found.owner if o >= 0]
    first, *others = fleet.clusters(links, 5)
    assert first == tuple(range(60, 66))
    assert not others


def test_identities_in_the_same_rare_cells_are_linked() -> None:
    cells = np.zeros((5, 512), np.uint8)
    cells[:, 0] = 0xFF  # where everybody goes
    cells[1:3, 100:103] = 1
    cells[3, 100] = 1
    usual = np.zeros(512, np.uint8)
    usual[0] = 0xFF
    pairs = fleet.shared_cells(cells, usual)
    assert pairs == Counter({(1, 2): 3, (1, 3): 1, (2, 3): 1})
    assert fleet.clusters(((a, b, n) for (a, b), n in pairs.items()), 3) == [(1, 2)]
    assert fleet.shared_cells(cells, most=4) == pairs


def test_an_empty_fleet_and_one_that_asked_nothing() -> None:
    clients = Clients(20)
    assert fleet.suspicious(crowd.digits().baseline, clients.rows(), ALPHA) == ()
    for i in range(20):
        clients.slot(str(i))
    assert fleet.suspicious(crowd.digits().baseline, clients.rows(), ALPHA) == ()
    assert fleet.group_evidence(flat(), clients.rows()) == (0.0, {})


def test_groups_are_bets_on_the_edge_of_their_null() -> None:
    """Honest groups whose average is at its limit: the e-value's mean is at most one."""
    from hardening.kernels import accounts

    rng, made = np.random.default_rng(8), flat()
    values = []
    for _ in range(3000):
        rows = np.zeros(20, accounts.ROW)
        rows["firsts"] = 50
        limit = dict(fleet.group_evidence(made, rows)[1])
        for lane, (_, at) in limit.items():
            hits = rng.binomial(49, at, 20)
            rows["sums"][:, lane] = 256 * (hits + (lane.name == "DIVERSE"))
        values.append(np.exp(fleet.group_evidence(made, rows)[0]))
    assert np.mean(values) <= 1 + 4 * np.std(values) / np.sqrt(3000)


NORMAL = math.log2(176_851)  # bits of one answer: grid points of four classes
BUDGETS = {"credential": Budget(bits=20_000.0), "organisation": Budget(bits=50_000.0), "model": Budget(bits=200_000.0)}
QUESTIONS = 15_000


@pytest.mark.parametrize("organisations", ["one", "one each"])
@pytest.mark.parametrize("how", ["round-robin", "by class"])
@pytest.mark.parametrize("identities", [5, 400, 10_000])
def test_all_identities_together_are_told_what_their_organisation_and_the_model_may_tell(
    identities: int, how: str, organisations: str
) -> None:
    """However an attack is dealt: what is released is bounded by the narrowest budgets that its identities share."""
    told_apart = ClientRules(identity=("credential", "organisation"))
    rules = Policy({"p": Output("simplex", {"normal": (Types(n=100),)})}, clients=told_apart, budgets=BUDGETS)
    scores = np.random.default_rng(10).dirichlet(np.ones(4), QUESTIONS).astype("f4")
    order = np.argsort(scores.argmax(1), kind="stable") if how == "by class" else np.arange(QUESTIONS)
    owner = np.empty(QUESTIONS, int)
    owner[order] = np.arange(QUESTIONS) * identities // QUESTIONS if how == "by class" else order % identities
    answers = np.zeros(identities, int)
    with hardening.Guard(rules, sink=RecordingSink()) as guard:
        for row, i in zip(scores, owner.tolist(), strict=True):
            who = Identity(f"sybil {i}", organisation="acme" if organisations == "one" else f"shell {i}")
            with contextlib.suppress(Denied):
                answers[i] += len(guard.harden({"p": row[None]}, client=who)["p"])
    credential, organisation, model = (budget.bits or 0.0 for budget in BUDGETS.values())
    asked = NORMAL * np.bincount(owner, minlength=identities)
    each = np.minimum(asked, credential)
    shared = min(each.sum(), organisation) if organisations == "one" else np.minimum(each, organisation).sum()
    released, bound = NORMAL * answers.sum(), min(shared, model)
    print(
        f"\n  {identities} identities {how}, organisations: {organisations}: {released:,.0f} bits released of "
        f"{asked.sum():,.0f} asked for; {organisation:,.0f} for an organisation, {model:,.0f} for all"
    )
    assert NORMAL * answers.max() <= credential
    assert bound - 5 * NORMAL < released <= bound * (1 + 1e-9)


@pytest.mark.deep
def test_a_table_of_sixteen_thousand_is_looked_through_in_little_time() -> None:
    """Measured and printed, not asserted: fleets are looked at off the request path."""
    rng = np.random.default_rng(9)
    rows = entered(*crowded(rng, [3] * 16_000))
    start = time.perf_counter()
    groups = fleet.suspicious(crowd.digits().baseline, rows, ALPHA)
    print(f"\n  {len(rows)} clients in {time.perf_counter() - start:.1f} s")
    assert len(groups) <= 1
