"""Budgets, identity and response through Guard: what is charged, who pays, what happens when it cannot be paid."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hardening
from hardening.accounting import Filter
from hardening.clients import POOLED
from hardening.config import ClientRules, Output, Policy
from hardening.errors import Denied, HardeningError, InputError, LedgerError, ReleaseError
from hardening.ledger import Account, Budget, Cost, Ledger, LedgerRules, Window
from hardening.ledger.amounts import UNITS
from hardening.ledger.memory import MemoryStore
from hardening.noise import Key
from hardening.policy import Response, Step
from hardening.testing import FakeClock, RecordingSink
from hardening.transforms import Gaussian, LabelOnly, Project, Types
from hardening.types import Identity
from tests.keys import fixed_key

NOW = 1.75e9
NOISY = (Gaussian(sigma=0.05, sensitivity=0.1), Project(), Types(n=100))
#: At four classes: log2 of 176851 grid points, of 286, and of 4.
TIERS = {"normal": (Types(n=100),), "coarse": (Types(n=10),), "label": (LabelOnly(),)}
NORMAL, COARSE, LABEL = math.log2(176851), math.log2(286), 2.0
P = np.random.default_rng(0).dirichlet(np.ones(4), 8).astype("f4")
X = np.random.default_rng(1).normal(size=(8, 5)).astype("f4")
ALICE = Account("credential", "alice")


def policy(root: Path, tiers: Any = None, **sections: Any) -> Policy:
    output = Output("simplex", TIERS if tiers is None else tiers)
    return Policy({"p": output}, key=fixed_key(root), root=root, **sections)


class World:
    """A guard over books in memory, with clocks of its own."""

    def __init__(self, rules: Policy, store: MemoryStore | None = None, **more: Any) -> None:
        self.sink, self.clock = RecordingSink(), FakeClock(NOW)
        self.store = MemoryStore(self.clock) if store is None else store
        self.ledger = Ledger(
            self.store, rules.budgets, sink=self.sink, clock=self.clock, monotonic=self.clock, background=False
        )
        self.guard = hardening.Guard(rules, "m", sink=self.sink, clock=self.clock, ledger=self.ledger, **more)

    def ask(self, client: str | Identity = "alice", rows: int = 1, at: int = 0) -> Any:
        return self.guard.harden({"p": P[at : at + rows]}, client=client, inputs={"x": X[at : at + rows]})["p"]

    def denied(self, client: str | Identity = "alice", rows: int = 1) -> Denied:
        with pytest.raises(Denied) as caught:
            self.ask(client, rows)
        return caught.value

    def total(self, account: Account = ALICE, kind: Any = "bits") -> float:
        """Bits or rho in the durable books, after everything on lease has been returned."""
        balance = self.ledger.balance(account).get(kind)
        held = self.ledger.held(account).get(kind, 0)
        return 0.0 if balance is None else (balance.total - held) / UNITS[("bits", "rho").index(kind)]

    def events(self, kind: str) -> list[Any]:
        return [e for e in self.sink.events if e.kind == kind]


def tier_of(answer: Any) -> str:
    """The tier whose grid an answer is on."""
    for units, name in ((1, "label"), (10, "coarse"), (100, "normal")):
        if np.allclose(answer * units, np.rint(answer * units), atol=1e-4):
            return name
    raise AssertionError(answer)


def test_bits_are_charged_before_release_and_never_beyond_the_budget(tmp_path: Path) -> None:
    world = World(policy(tmp_path, budgets={"credential": Budget(bits=100.0)}))
    for n in range(1, 6):
        world.ask()
        assert world.total() == pytest.approx(n * NORMAL, rel=1e-6)
    denied = world.denied()
    assert (str(denied), denied.code) == (Denied.SENTENCE, "exhausted")
    assert denied.reason == "bits of credential:alice are exhausted"
    assert world.total() == pytest.approx(5 * NORMAL, rel=1e-6)
    assert world.guard.standing("alice").bits == pytest.approx(5 * NORMAL, rel=1e-6)
    assert world.guard.standing("alice").spent == pytest.approx(5 * NORMAL / 100, rel=1e-6)
    assert world.guard.standing("alice").tier == "deny"
    assert tier_of(world.ask("bob")) == "normal"


def test_whoever_is_exhausted_is_answered_by_a_tier_that_can_be_paid(tmp_path: Path) -> None:
    budget = Budget(bits=40.0, on_exhausted="label")
    world = World(policy(tmp_path, budgets={"credential": budget}))
    tiers = [tier_of(world.ask()) for _ in range(4)]
    assert tiers == ["normal", "normal", "label", "label"]
    assert world.guard.standing("alice").tier == "label"
    world.denied()
    assert world.total() == pytest.approx(2 * NORMAL + 2 * LABEL, rel=1e-6)
    changes = [(e.evidence["from"], e.evidence["to"]) for e in world.events("tier-changed")]
    assert changes == [("normal", "label"), ("label", "deny")]
    exhausted = [(e.client, e.evidence["account"], e.evidence["instead"]) for e in world.events("budget-exhausted")]
    assert exhausted == [("alice", "credential:alice", "label"), ("alice", "credential:alice", "deny")]


def test_the_answer_of_a_lower_tier_is_that_tiers(tmp_path: Path) -> None:
    """For one-shot answers and for kept ones, of every dtype that is copied or not, with labels that follow."""
    tiers = {"normal": NOISY, "label": (LabelOnly(),)}
    output = Output("simplex", tiers, label_output="y")
    key = fixed_key(tmp_path)
    plain = Policy({"p": dataclasses.replace(output, tiers={"label": tiers["label"]})}, key=key, root=tmp_path)
    rules = Policy(
        {"p": output}, key=key, root=tmp_path, budgets={"credential": Budget(bits=320.0, on_exhausted="label")}
    )
    world, reference = World(rules), hardening.Guard(plain, "m")
    labels = P.argmax(1)
    for dtype in ("f2", "f4", "f8"):
        scores = {"y": labels, "p": P.astype(dtype)}
        want = reference.harden(scores)
        for i in range(4):
            got = world.guard.harden(scores, client=dtype, inputs={"x": X + np.float32(i)})
        assert list(got) == ["y", "p"]
        assert np.array_equal(got["p"], want["p"])
        assert np.array_equal(got["y"], want["y"])
        assert got["p"].dtype == np.dtype(dtype)
    maps = [dict(zip("abcd", row, strict=True)) for row in P.tolist()]
    for _ in range(4):
        got = world.guard.harden({"p": maps}, client="maps", inputs={"x": X})
    assert [list(m.values()) for m in got["p"]] == want["p"].tolist()


def test_an_exhausted_client_is_met_before_the_model_runs(tmp_path: Path) -> None:
    budgets = {"credential": Budget(bits=22.0, on_exhausted="label")}
    world = World(policy(tmp_path, budgets=budgets))
    world.ask()
    world.ask()
    decision = world.guard.admit("alice", 1)
    assert decision.tier == "label"
    assert world.total() == pytest.approx(NORMAL + 2 * LABEL, rel=1e-6), "it is paid for already"
    for _ in range(2):
        world.guard.forgo(decision)
        assert world.total() == pytest.approx(NORMAL + LABEL, rel=1e-6), "what never came is given back, once"
    world.denied(rows=8)
    with pytest.raises(Denied):
        world.guard.admit("alice", 8)
    assert world.guard.admit("alice", 1).tier == "label", "what is smaller may still be paid for"
    assert world.guard.admit("bob", 1).tier == "normal"
    assert world.guard.admit("carol", 8).tier == "label", "what answers cost is known from those to others"


def test_answers_of_one_kind_that_cost_more_or_less_are_charged_what_they_cost(tmp_path: Path) -> None:
    """What was charged beforehand is the least so far; the rest follows, and what was too much is given back."""
    rules = Policy({"text": Output("open")}, root=tmp_path, budgets={"credential": Budget(bits=8 * 60.0)})
    world, spent = World(rules), 0
    for length in (9, 12, 3, 12, 1, 20):
        world.guard.harden({"text": np.array(["x" * length], object)}, client="alice")
        spent += length
        assert world.total() == pytest.approx(8 * spent, rel=1e-6)
    with pytest.raises(Denied):
        world.guard.harden({"text": np.array(["x" * 4], object)}, client="alice")
    assert world.total() == pytest.approx(8 * spent, rel=1e-6), "nothing of what was too dear"
    world.guard.harden({"text": np.array(["x" * 3], object)}, client="alice")
    assert world.total() == pytest.approx(8 * 60, rel=1e-6)
    with pytest.raises(Denied):
        world.guard.admit("alice", 1)


def test_an_answer_without_rows_that_says_something_is_charged(tmp_path: Path) -> None:
    rules = Policy({"text": Output("open")}, root=tmp_path, budgets={"credential": Budget(bits=1e4)})
    world = World(rules)
    for times in (1, 2):
        decision = world.guard.admit("alice", 0)
        world.guard.release(decision, {"text": np.zeros(4, "f4")}, None)
        assert world.total() == pytest.approx(128 * times, rel=1e-6)


def test_a_decision_pays_for_one_answer(tmp_path: Path) -> None:
    world = World(policy(tmp_path, budgets={"credential": Budget(bits=1e4)}))
    world.ask()
    decision = world.guard.admit("alice", 1)
    for times in (2, 3):
        world.guard.release(decision, {"p": P[:1].copy()}, None)
        assert world.total() == pytest.approx(times * NORMAL, rel=1e-6)
    world.guard.forgo(decision)
    assert world.total() == pytest.approx(3 * NORMAL, rel=1e-6), "what was released is not given back"


def test_what_is_denied_is_wiped(tmp_path: Path) -> None:
    world = World(policy(tmp_path, budgets={"credential": Budget(bits=100.0)}))
    decision = world.guard.admit("alice", 8)
    scores = P.copy()
    held = {"p": scores}
    with pytest.raises(Denied) as caught:
        world.guard.release(decision, held, {"x": X})
    assert held == {}
    assert not scores.any()
    assert caught.value.__context__ is None
    assert [e.kind for e in world.sink.events].count("release-failed") == 0


def test_every_rung_that_has_a_budget_is_charged(tmp_path: Path) -> None:
    rungs = ("credential", "principal", "organisation", "prefix", "model", "global")
    clients = ClientRules(identity=("credential", "principal", "organisation", "prefix"))
    world = World(policy(tmp_path, clients=clients, budgets={rung: Budget(bits=1e6) for rung in rungs}))
    world.ask(Identity("alice", "al", "acme", "203.0.113.0/24"))
    world.ask(Identity("bob", "", "acme"))
    world.ask("carol")
    names = {
        ("credential", "alice"): 1, ("credential", "bob"): 1, ("credential", "carol"): 1,
        ("principal", "al"): 1, ("principal", "(own) bob"): 1, ("principal", "(own) carol"): 1,
        ("organisation", "acme"): 2, ("organisation", "(none)"): 1,
        ("prefix", "203.0.113.0/24"): 1, ("prefix", "(none)"): 2, ("model", "m"): 3, ("global", "all"): 3,
    }  # fmt: skip
    for name, answers in names.items():
        assert world.total(Account(*name)) == pytest.approx(answers * NORMAL, rel=1e-6), name


def test_a_credential_and_a_principal_of_one_name_do_not_share_an_account(tmp_path: Path) -> None:
    clients = ClientRules(identity=("credential", "principal"))
    world = World(policy(tmp_path, clients=clients, budgets={"principal": Budget(bits=20.0)}))
    world.ask(Identity("alice", principal="bob"))
    world.denied(Identity("carol", principal="bob"))
    world.ask(Identity("bob"))
    long = ["x" * 63 + end for end in "yz"]
    for name in long:
        world.ask(name)
        world.denied(name)


def test_a_farm_of_credentials_gains_nothing_beyond_its_organisation(tmp_path: Path) -> None:
    clients = ClientRules(identity=("credential", "organisation"))
    budgets = {"credential": Budget(bits=1e3), "organisation": Budget(bits=2e3), "model": Budget(bits=1e4)}
    for farm in ("sybils", ""):
        world = World(policy(tmp_path, clients=clients, budgets=budgets))
        answers = 0
        for i in range(100):
            for _ in range(10):
                try:
                    answers += len(world.ask(Identity(f"c{i}", organisation=farm)))
                except Denied:
                    break
        assert 2e3 - NORMAL - 100 < answers * NORMAL <= 2e3
        assert len(world.ask(Identity("honest", organisation="acme"), rows=8)) == 8


def test_credentials_of_an_organisation_are_capped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clients = ClientRules(identity=("credential", "organisation"), credentials=2)
    world = World(policy(tmp_path, clients=clients))
    for name in ("a", "b", "a"):
        world.ask(Identity(name, organisation="acme"))
    denied = world.denied(Identity("c", organisation="acme"))
    assert (denied.code, str(denied)) == ("exhausted", Denied.SENTENCE)
    assert "clients.credentials" in world.events("denied")[0].evidence["reason"]
    monkeypatch.setattr("hardening.ladder.MOST", 3)
    for i in range(5):
        world.ask(Identity(f"x{i}"))
        if i < 4:
            world.ask(Identity(f"c{i}", organisation=f"org{i}"))
    assert "'(pooled)' has 2" in world.denied(Identity("c", organisation="org4")).reason, "beyond, they count as one"


def test_new_credentials_are_on_probation(tmp_path: Path) -> None:
    budgets = {"probation": Budget(bits=50.0), "credential": Budget(bits=500.0)}
    world = World(policy(tmp_path, clients=ClientRules(probation="7d"), budgets=budgets))
    new, old = Identity("new", since=NOW - 6.9 * 86400), Identity("old", since=NOW - 7 * 86400)
    for who in (new, "unknown"):
        for _ in range(2):
            world.ask(who)
        assert world.denied(who).reason.startswith("bits of probation:")
    for _ in range(20):
        world.ask(old)
    world.clock.now += 0.2 * 86400
    assert len([world.ask(new) for _ in range(20)]) == 20
    assert world.total(Account("credential", "new")) == pytest.approx(22 * NORMAL, rel=1e-6)
    world.denied("unknown")


def test_names_on_the_ladder_are_bounded(tmp_path: Path) -> None:
    world = World(policy(tmp_path, budgets={"credential": Budget(bits=1e6)}))
    for bad in ("x" * 65, "a\nb", "(none)", POOLED, "(own) bob", 7):
        with pytest.raises(InputError, match="organisation: "):
            world.ask(Identity("alice", organisation=bad))  # type: ignore[arg-type]
        with pytest.raises(InputError, match="principal: "):
            world.ask(Identity("alice", principal=bad))  # type: ignore[arg-type]
    for since in (math.nan, math.inf, "2026"):
        with pytest.raises(InputError, match="since: "):
            world.ask(Identity("alice", since=since))  # type: ignore[arg-type]
    for bad in ("", "x" * 65, "a\nb", 7, None, [1]):
        with pytest.raises(InputError, match="client: "):
            world.ask(Identity(bad))  # type: ignore[arg-type]


def test_identities_without_budgets_are_their_credentials(tmp_path: Path) -> None:
    with hardening.Guard(policy(tmp_path)) as guard:
        for prefix in ("203.0.113.0/24", "198.51.100.0/24"):
            guard.harden({"p": P}, client=Identity("alice", prefix=prefix))
        with hardening.as_client(Identity("bob")):
            guard.harden({"p": P})
        assert {name: s.queries for name, s in guard.clients().items()} == {"alice": 16, "bob": 8}
        with pytest.raises(InputError, match="no budgets: there is nothing to grant"):
            guard.grant("alice", bits=1.0, reason="why not")


def test_rows_are_limited_by_a_window(tmp_path: Path) -> None:
    world = World(policy(tmp_path, budgets={"credential": Budget(queries=Window("1h", 64))}))
    answered = 0
    for _ in range(100):
        with contextlib.suppress(Denied):
            answered += len(world.guard.harden({"p": P[:1]}, client="alice")["p"])
    assert 60 <= answered <= 64
    assert world.guard.standing("alice").queries == answered, "who is refused was not served"
    assert world.guard.standing("alice").tier == "normal", "a window is nothing that a client is"
    world.clock.now += 7200
    assert len(world.ask()) == 1
    assert {e.evidence["budget"] for e in world.events("budget-exhausted")} == {"queries"}
    assert len(world.events("denied")) == 1, "not one event for each of them"


def test_a_spent_window_may_choose_a_tier(tmp_path: Path) -> None:
    clients = ClientRules(identity=("credential", "organisation"))
    budgets = {
        "credential": Budget(bits=1e4, queries=Window("1h", 64), on_exhausted="coarse"),
        "organisation": Budget(queries=Window("1h", 6400)),
    }
    world = World(policy(tmp_path, clients=clients, budgets=budgets))
    tiers = [tier_of(world.ask(Identity("alice", organisation="acme"))) for _ in range(100)]
    assert tiers == sorted(tiers, reverse=True)
    assert 36 <= tiers.count("coarse") <= 40
    bits = tiers.count("normal") * NORMAL + tiers.count("coarse") * COARSE
    assert world.total() == pytest.approx(bits, rel=1e-6)


def test_repeats_of_an_exact_row_are_credited(tmp_path: Path) -> None:
    world = World(policy(tmp_path, {"normal": NOISY}, budgets={"credential": Budget(bits=1e4, rho=1e3)}))
    answer = world.ask(rows=4)
    spent, rho = world.total(), world.total(kind="rho")
    assert spent == pytest.approx(4 * NORMAL, rel=1e-6)
    assert rho > 0
    assert np.array_equal(world.ask(rows=4), answer)
    assert np.array_equal(world.ask(rows=2, at=1), answer[1:3])
    assert (world.total(), world.total(kind="rho")) == (pytest.approx(spent), pytest.approx(rho))
    world.ask(rows=4, at=2)
    assert world.total() == pytest.approx(6 * NORMAL, rel=1e-6), "two of the four were new"
    world.ask("bob", rows=4)
    assert world.total(Account("credential", "bob")) == pytest.approx(spent), "to somebody else they are new"
    assert world.guard.standing("alice").queries == 14


def test_what_is_not_literally_the_same_is_charged_again(tmp_path: Path) -> None:
    rules = policy(tmp_path, {"normal": NOISY}, budgets={"credential": Budget(bits=1e6)})
    world = World(rules)
    for i, scores in enumerate((P[:1], P[1:2], P[:1] * 1)):
        world.guard.harden({"p": scores}, client="alice", inputs={"x": X[:1]})
        assert world.total() == pytest.approx((i + 1) * NORMAL, rel=1e-6), "not the question alone decides"
    fresh = World(policy(tmp_path, {"normal": (Gaussian(sigma=0.1, key="fresh"), Project(), Types(n=100))},
                         budgets=rules.budgets))  # fmt: skip
    still = World(policy(tmp_path, {"normal": (Types(n=100),)}, budgets=rules.budgets))
    for world in (fresh, still):
        for _ in range(3):
            world.ask()
        assert world.total() == pytest.approx(3 * NORMAL, rel=1e-6)


def test_all_of_an_answer_to_one_row_has_to_be_the_same(tmp_path: Path) -> None:
    """Such as the scores of all objects in one image; what differs in the last of them only is another answer."""
    world = World(policy(tmp_path, {"normal": NOISY}, budgets={"credential": Budget(bits=1e6)}))
    others = P.copy()
    others[-1] = others[-1, ::-1]
    for scores, charged in ((P, 8), (P, 8), (others, 16), (P[:7], 23)):
        world.guard.harden({"p": scores}, client="alice", inputs={"x": X[:1]})
        assert world.total() == pytest.approx(charged * NORMAL, rel=1e-6)


def test_forgotten_repeats_are_charged_again(tmp_path: Path) -> None:
    world = World(policy(tmp_path, {"normal": NOISY}, budgets={"credential": Budget(bits=1e6)}))
    many = np.random.default_rng(2).normal(size=(20, 5)).astype("f4")
    for x in (many[:1], *many[1:].reshape(19, 1, 5), many[:1]):
        world.guard.harden({"p": P[:1]}, client="alice", inputs={"x": x})
    assert world.total() == pytest.approx(21 * NORMAL, rel=1e-6)
    whole = World(world.guard.policy)
    for _ in range(2):
        whole.guard.harden({"p": np.repeat(P[:1], 20, 0)}, client="alice", inputs={"x": many})
    assert whole.total() == pytest.approx(40 * NORMAL, rel=1e-6), "a large batch is charged whole"


def test_who_pays_from_elsewhere_pays_there(tmp_path: Path) -> None:
    clients = ClientRules(identity=("credential", "prefix"))
    budgets = {"credential": Budget(bits=1e6), "prefix": Budget(bits=1e6)}
    world = World(policy(tmp_path, {"normal": NOISY}, clients=clients, budgets=budgets))
    for prefix in ("a", "b", "a"):
        world.ask(Identity("alice", prefix=prefix))
    assert world.total(Account("prefix", "a")) == world.total(Account("prefix", "b")) > 0


@given(st.lists(st.tuples(st.integers(1, 8), st.booleans()), max_size=30))
@settings(max_examples=30)
def test_rho_is_refused_as_a_filter_refuses_it(steps: list[tuple[int, bool]]) -> None:
    """Against `accounting.Filter`, whatever is asked, with the choice of noise depending on what was answered."""
    bound, rhos = 2.0, (0.03, 0.4)
    ledger = Ledger(MemoryStore(), {"credential": Budget(rho=bound)}, background=False)
    gate = Filter.of(bound)
    for rows, strong in steps:
        rho = rows * rhos[strong]
        charged = gate.charged(rho)
        assert (ledger.spend((ALICE,), Cost.of(rho=rho)) is None) == (charged is not None)
        gate = charged or gate
    assert ledger.balance(ALICE).get("rho", (0,))[0] - ledger.held(ALICE)["rho"] == gate.spent if steps else True


def test_rho_of_the_tier_that_answers(tmp_path: Path) -> None:
    tiers = {"normal": NOISY, "strong": (Gaussian(sigma=0.2, sensitivity=0.1), Project(), Types(n=100))}
    rules = policy(tmp_path, tiers, budgets={"credential": Budget(rho=10.0, on_exhausted="strong")})
    rho = {tier: rules.pipeline("p", tier).guarantee(4).parameters["rho"] for tier in tiers}
    world = World(rules)
    asked = dict.fromkeys(tiers, 0)
    with contextlib.suppress(Denied):
        for i in range(1000):
            world.guard.harden({"p": P[:1]}, client="alice", inputs={"x": np.full((1, 5), i, "f4")})
            asked[world.guard.standing("alice").tier] += 1
    assert world.guard.standing("alice").tier == "deny"
    spent = sum(asked[tier] * rho[tier] for tier in tiers)
    assert world.total(kind="rho") == pytest.approx(spent, rel=1e-6)
    assert 10.0 - rho["strong"] < spent <= 10.0
    assert world.guard.standing("alice").rho == pytest.approx(spent, rel=1e-6)


@pytest.mark.parametrize("url", ["memory:", "sqlite:///books.db"])
def test_hammering_threads_never_exceed_a_budget(tmp_path: Path, url: str) -> None:
    clients = ClientRules(identity=("credential", "organisation"))
    budgets = {"credential": Budget(bits=4000.0), "organisation": Budget(bits=6000.0), "model": Budget(bits=7000.0)}
    rules = policy(tmp_path, clients=clients, budgets=budgets, ledger=LedgerRules(url))
    with hardening.Guard(rules, "m") as guard:

        def hammer(i: int) -> list[str]:
            released = []
            who = Identity(f"c{i % 3}", organisation=f"o{i % 2}")
            for n in range(120):
                try:
                    guard.harden({"p": P[: 1 + n % 4]}, client=who)
                    released += [who.credential] * (1 + n % 4)
                except Denied:
                    pass
            return released

        with ThreadPoolExecutor(8) as pool:
            released = [name for names in pool.map(hammer, range(12)) for name in names]
    assert len(released) * NORMAL <= 7000
    assert max(released.count(f"c{i}") for i in range(3)) * NORMAL <= 4000
    assert len(released) * NORMAL > 7000 - 4 * NORMAL - 1


def test_neither_restart_nor_key_rotation_resets_a_budget(tmp_path: Path) -> None:
    rules = policy(tmp_path, {"normal": NOISY}, budgets={"credential": Budget(bits=200.0)},
                   ledger=LedgerRules("sqlite:///books.db"))  # fmt: skip
    answers, spent = 0, []
    for epoch in range(1, 5):
        (tmp_path / "hardening.key").write_text(Key(epoch, "chacha20", bytes([epoch] * 32)).format())
        (tmp_path / "hardening.key").chmod(0o600)
        with hardening.Guard(rules, f"model {epoch}") as guard:
            for i in range(4):
                try:
                    guard.harden({"p": P[:1]}, client="alice", inputs={"x": X[i : i + 1]})
                    answers += 1
                except Denied:
                    pass
            spent.append(guard.standing("alice").bits)
    assert answers == 11
    assert spent == pytest.approx([4 * NORMAL, 8 * NORMAL, 11 * NORMAL, 11 * NORMAL], rel=1e-6)
    with hardening.Guard(rules) as guard:
        assert guard.standing("alice").bits == pytest.approx(11 * NORMAL, rel=1e-6)
        assert guard.standing("alice").queries == 0
        assert guard.standing("nobody").bits == 0


def test_a_full_table_of_clients_forgets_no_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hardening.ladder.MOST", 3)
    clients = ClientRules(capacity=3)
    world = World(policy(tmp_path, {"normal": NOISY}, clients=clients, budgets={"credential": Budget(bits=50.0)}))
    for i in range(10):
        for at in range(2):
            world.ask(f"c{i}", at=at)
        world.denied(f"c{i}", rows=2)
    for i in range(10):
        assert world.total(Account("credential", f"c{i}")) == pytest.approx(2 * NORMAL, rel=1e-6)
        world.ask(f"c{i}", at=3) if i >= 10 else world.denied(f"c{i}", rows=3)
    assert len(world.guard.clients()) == 4


def test_the_ledger_has_room_for_the_clients_of_the_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hardening.ledger.ROOM", 3)
    for capacity, answered in ((2, 4), (7, 7)):
        rules = policy(tmp_path, clients=ClientRules(capacity=capacity), budgets={"credential": Budget(bits=20.0)})
        count = 0
        with hardening.Guard(rules) as guard:
            for i in range(7):
                with contextlib.suppress(Denied):
                    guard.harden({"p": P[:1]}, client=f"c{i}")
                    count += 1
        assert count == answered, "what is beyond shares one account"


@pytest.mark.parametrize("where", ["harden", "credit"])
def test_what_fails_after_the_charge_stays_charged(tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(policy(tmp_path, {"normal": NOISY}, budgets={"credential": Budget(bits=1e4)}))
    world.ask(rows=2)
    before = world.total()
    if where == "harden":
        bad = P[:3].copy()
        bad[2] = np.nan
        with pytest.raises(ReleaseError):
            world.guard.harden({"p": bad}, client="alice", inputs={"x": X[:3]})
    else:
        assert world.guard._admission is not None
        monkeypatch.setattr(world.guard._admission._repeats, "count", lambda *_: 1 / 0)
        with pytest.raises(HardeningError):
            world.ask(rows=3)
    assert world.total() == pytest.approx(before + 3 * NORMAL, rel=1e-6)


class Failing(MemoryStore):
    """Books that can be had or not."""

    away = False

    def lease(self, *args: Any) -> Any:
        if self.away:
            raise LedgerError("as the test says")
        return super().lease(*args)

    def read(self, key: str) -> Any:
        if self.away:
            raise LedgerError("as the test says")
        return super().read(key)


def test_books_that_are_away_close_the_door(tmp_path: Path) -> None:
    store = Failing()
    world = World(policy(tmp_path, budgets={"credential": Budget(bits=1e6, on_exhausted="label")}), store)
    world.ask()
    store.away = True
    served = 0
    with contextlib.suppress(Denied):
        while True:
            world.ask()
            served += 1
    denied = world.denied()
    assert served * NORMAL <= 1e6 / 32, "what was on lease, and no more"
    assert (str(denied), denied.code) == (Denied.SENTENCE, "exhausted")
    assert world.guard.standing("alice").bits == pytest.approx((served + 1) * NORMAL, rel=1e-6), "as far as is known"
    assert world.events("budget-exhausted")[0].evidence["cause"] == "unreachable"
    store.away = False
    world.clock.now += 10
    world.ask()


def test_a_grant_gives_more_and_nothing_else_does(tmp_path: Path) -> None:
    world = World(policy(tmp_path, budgets={"credential": Budget(bits=20.0, on_exhausted="coarse")}))
    world.ask()
    assert world.denied().code == "exhausted"
    world.clock.now += 1e7
    world.denied()
    world.guard.grant("alice", bits=2 * NORMAL, reason="a contract")
    assert [tier_of(world.ask()) for _ in range(2)] == ["normal", "normal"]
    assert world.guard.standing("alice").tier == "normal"
    world.denied()
    assert world.store.grants == [("credential:alice", "bits", Cost.of(bits=2 * NORMAL).bits, "a contract")]
    (event,) = world.events("budget-granted")
    assert (event.client, event.evidence["reason"]) == ("credential:alice", "a contract")
    assert world.guard.standing("alice").spent == pytest.approx(3 * NORMAL / (20 + 2 * NORMAL), rel=1e-6)


@pytest.mark.parametrize(
    ("grant", "problem"),
    [
        ({"bits": 0.0}, "give bits, rho or both"),
        ({"bits": -1.0}, "bits: must be a number from 0 on"),
        ({"bits": math.nan}, "bits: must be a number from 0 on"),
        ({"bits": "7"}, "bits: must be a number from 0 on"),
        ({"rho": 1.0}, "rho: budgets.credential does not bound it"),
        ({"bits": 1.0, "reason": " "}, "reason: must be 1 to 500"),
        ({"bits": 1.0, "reason": "x" * 501}, "reason: must be 1 to 500"),
        ({"bits": 1.0, "rung": "model"}, "no budget on the rung 'model'"),
        ({"bits": 1.0, "client": "x" * 65}, "1 to 64 printable"),
    ],
)
def test_grants_that_are_none(tmp_path: Path, grant: dict[str, Any], problem: str) -> None:
    world = World(policy(tmp_path, budgets={"credential": Budget(bits=20.0)}))
    with pytest.raises(InputError, match=problem):
        world.guard.grant(**{"client": "alice", "reason": "because", **grant})
    assert world.store.grants == []


RESPOND = Response(
    (Step(0.5, throttle=Window("1m", 60)), Step(1.0, tier="coarse"), Step(1.5, deny=True)), hysteresis=0.2, ttl="1h"
)


def suspected(rules: Policy, level: dict[str, float]) -> World:
    return World(rules, suspicion=lambda client: level.get(client, 0.0))


def test_suspicion_chooses_the_tier(tmp_path: Path) -> None:
    level = {"alice": 0.0}
    world = suspected(policy(tmp_path, respond=RESPOND), level)
    tiers = []
    for value in (0.4, 0.6, 1.0, 0.9, 0.7):
        level["alice"] = value
        tiers.append(tier_of(world.ask()))
        assert world.guard.standing("alice").suspicion == value
    assert tiers == ["normal", "normal", "coarse", "coarse", "normal"]
    level["alice"] = 1.5
    world.denied()
    assert world.guard.standing("alice").tier == "deny"
    assert tier_of(world.ask("bob")) == "normal"
    changes = [(e.evidence["from"], e.evidence["to"]) for e in world.events("tier-changed")]
    assert changes == [
        ("normal", "normal, throttled"),
        ("normal, throttled", "coarse"),
        ("coarse", "normal, throttled"),
        ("normal, throttled", "deny"),
    ]
    world.clock.now += 3600
    assert tier_of(world.ask()) == "normal", "an action ends by itself"
    assert world.guard.standing("alice").tier == "normal"


def test_the_stricter_of_budget_and_suspicion_answers(tmp_path: Path) -> None:
    level = {"alice": 1.0}
    rules = policy(tmp_path, respond=RESPOND, budgets={"credential": Budget(bits=21.0, on_exhausted="label")})
    world = suspected(rules, level)
    assert [tier_of(world.ask()) for _ in range(4)] == ["coarse", "coarse", "label", "label"]
    level["alice"] = 0.0
    assert world.guard.admit("alice", 1).tier in ("normal", "label")
    assert world.total() <= 21.0


class Rising:
    """A detector that has seen enough only once it has been asked before: when an answer is there."""

    def __init__(self, *levels: float) -> None:
        self.levels = list(levels)

    def __call__(self, _: str) -> float:
        return self.levels.pop(0) if len(self.levels) > 1 else self.levels[0]


BOTH = (dataclasses.replace(Output("simplex", {"normal": NOISY, "label": (LabelOnly(),)}), label_output="y"),
        Output("simplex", {"normal": NOISY, "label": (Types(n=10),)}))  # fmt: skip


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "maps"])
def test_a_large_answer_is_hardened_anew_by_a_stricter_tier(tmp_path: Path, dtype: str) -> None:
    """The same as if that tier had answered from the start, and no more is charged for it."""
    rules = Policy(
        {"p": BOTH[0], "q": BOTH[1]}, key=fixed_key(tmp_path), root=tmp_path,
        budgets={"credential": Budget(bits=1e5)}, respond=Response((Step(1.0, tier="label"),), rows=4),
    )  # fmt: skip
    p: Any = [dict(zip("abcd", row, strict=True)) for row in P.tolist()] if dtype == "maps" else P.astype(dtype)
    given = {"y": np.array(list("abcd"))[P.argmax(1)] if dtype == "maps" else P.argmax(1), "p": p, "q": P}
    told, totals = [], []
    for levels in ((0.0, 1.0), (1.0,), (0.0,)):
        world = World(rules, suspicion=Rising(*levels))
        told.append(world.guard.harden(given, client="alice", inputs={"x": X}))
        totals.append(world.total())
    for name in given:
        assert repr(told[0][name]) == repr(told[1][name])
    assert repr(told[0]["q"]) != repr(told[2]["q"])
    assert totals[0] == pytest.approx(8 * (LABEL + COARSE), rel=1e-6)
    assert totals[1] == totals[0]
    assert totals[2] == pytest.approx(8 * 2 * NORMAL, rel=1e-6)


def test_a_large_answer_that_is_refused_leaves_nothing_and_stays_charged(tmp_path: Path) -> None:
    respond = Response((Step(1.0, throttle=Window("1m", 6)), Step(2.0, deny=True)), rows=4)
    rules = policy(tmp_path, respond=respond, budgets={"credential": Budget(bits=1e4)})
    for level in (1.0, 2.0):
        world = World(rules, suspicion=Rising(0.0, level))
        scores = P.copy()
        decision = world.guard.admit("alice", 8)
        held = {"p": scores}
        with pytest.raises(Denied):
            world.guard.release(decision, held, {"x": X})
        assert held == {}
        assert not scores.any()
        assert world.total() == pytest.approx(8 * NORMAL, rel=1e-6)
    world = World(rules, suspicion=Rising(0.0, 1.0))
    assert tier_of(world.ask(rows=5)) == "normal", "a throttle lets that many rows pass"
    world.denied(rows=2)
    world = World(rules, suspicion=Rising(0.0, 2.0))
    assert tier_of(world.ask(rows=4)) == "normal", "of so few rows the evidence counts from the next request on"
    world.denied()


def test_large_requests_at_the_same_time_are_judged_by_what_came_in_between(tmp_path: Path) -> None:
    """Also if another request of the client took the step before this one was there."""
    level = {"alice": 0.0}
    respond = Response((Step(0.5, throttle=Window("1m", 8)), Step(1.0, tier="label"), Step(2.0, deny=True)), rows=4)
    world = suspected(policy(tmp_path, respond=respond), level)
    early = [world.guard.admit("alice", 8) for _ in range(4)]
    level["alice"] = 0.5
    world.ask()
    with pytest.raises(Denied):
        world.guard.release(early[0], {"p": P.copy()}, None)
    level["alice"] = 1.0
    assert tier_of(world.ask(rows=5)) == "label"
    assert tier_of(world.guard.release(early[1], {"p": P.copy()}, None)["p"]) == "label"
    level["alice"] = 2.0
    world.denied()
    with pytest.raises(Denied):
        world.guard.release(early[2], {"p": P.copy()}, None)
    level["alice"] = 0.0
    assert tier_of(world.guard.release(early[3], {"p": P.copy()}, None)["p"]) == "normal"


def test_shadow_only_says_what_would_have_been(tmp_path: Path) -> None:
    level = {"alice": 0.0}
    shadow = dataclasses.replace(RESPOND, shadow=True)
    world = suspected(policy(tmp_path, respond=shadow), level)
    for value in (0.6, 1.2, 1.7, 1.7):
        level["alice"] = value
        assert tier_of(world.ask()) == "normal"
        assert world.guard.standing("alice").tier == "normal"
    told = [(e.evidence["to"], e.evidence["shadow"]) for e in world.events("tier-changed")]
    assert told == [("normal, throttled", True), ("coarse", True), ("deny", True)]
    assert [e.evidence["shadow"] for e in world.events("denied")] == [True]


def test_all_denials_of_a_policy_look_alike(tmp_path: Path) -> None:
    """Whoever is refused cannot tell a spent budget from a spent window, a throttle, suspicion, or books away."""
    budgets = {"credential": Budget(bits=1e4, queries=Window("1h", 5000))}
    level = {"suspect": 2.0, "throttled": 0.6}
    world = suspected(policy(tmp_path, respond=RESPOND, budgets=budgets), level)
    denials = [world.denied("suspect")]
    for _ in range(60):
        world.ask("throttled")
    denials.append(world.denied("throttled"))
    small = {"credential": Budget(bits=1.0)}
    window = {"credential": Budget(queries=Window("1h", 1))}
    denials.append(World(policy(tmp_path, budgets=small)).denied())
    denials.append(World(policy(tmp_path, budgets=window)).denied(rows=2))
    store = Failing()
    store.away = True
    denials.append(World(policy(tmp_path, budgets=budgets), store).denied())
    capped = World(policy(tmp_path, clients=ClientRules(identity=("credential", "organisation"), credentials=1)))
    capped.ask(Identity("first", organisation="acme"))
    denials.append(capped.denied(Identity("second", organisation="acme")))
    seen = {(type(d), str(d), repr(d), d.args, d.code, d.__cause__, d.__context__) for d in denials}
    assert len(seen) == 1
    assert len({d.reason for d in denials}) == 6, "the operator can tell"


def effects(world: World) -> list[Any]:
    """Grows with all that a guard asks of its ledger, and the ledger of its books, in order."""
    seen: list[Any] = []

    def watched(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args: (seen.append((name, *args)), call(*args))[1]

    for name in ("spend", "credit"):
        setattr(world.ledger, name, watched(name, getattr(world.ledger, name)))
    lease = world.store.lease
    world.store.lease = lambda replica, number, asks: (seen.append((number, *asks)), lease(replica, number, asks))[1]  # type: ignore[method-assign]
    return seen


THROTTLED = Response((Step(0.5, throttle=Window("1m", 10**6)), Step(1.0, tier="label"), Step(2.0, deny=True)), rows=6)
SHADOW = dataclasses.replace(THROTTLED, shadow=True)


@pytest.mark.parametrize(
    ("respond", "low", "high"), [(THROTTLED, 0.0, 0.49), (THROTTLED, 0.5, 0.99), (SHADOW, 0.5, 3.0)],
    ids=["suspected", "throttled and not held up", "shadow"],
)  # fmt: skip
def test_no_answer_tells_a_flagged_client_from_another(
    tmp_path: Path, respond: Response, low: float, high: float
) -> None:
    """Flagged but not degraded: every answer is the same, byte for byte, so no statistic of them separates the two.

    Nor does anything else that is done for it, in kind, number or order; what is left is told to the operator alone.
    """
    quiet, flagged = {"alice": 0.0}, {"alice": 0.0}
    budgets = {"credential": Budget(bits=6e3, queries=Window("1h", 5000))}
    rules = policy(
        tmp_path, {"normal": NOISY, "coarse": NOISY[:2], "label": (LabelOnly(),)}, respond=respond, budgets=budgets
    )
    worlds = suspected(rules, quiet), suspected(rules, flagged)
    seen = [effects(world) for world in worlds]
    rng, refused, asked = np.random.default_rng(3), 0, []
    for i in range(140):
        rows = int(rng.integers(1, 9))
        flagged["alice"] = float(rng.uniform(low, high))
        scores, x = rng.dirichlet(np.ones(4), rows).astype("f4"), rng.normal(size=(rows, 5)).astype("f4")
        if i % 7 == 3:
            scores, x = asked[-1]
        asked.append((scores, x))
        answers = []
        for world in worlds:
            try:
                answers.append(world.guard.harden({"p": scores}, client="alice", inputs={"x": x})["p"].tobytes())
            except Denied as problem:
                answers.append((str(problem), problem.code, problem.args))
                refused += 1
            world.clock.now += 1.0
        assert answers[0] == answers[1]
    assert 0 < refused < 200, "both kinds of outcome are compared"
    assert seen[0] == seen[1]
    assert len(seen[0]) > 140
    assert worlds[0].total() == worlds[1].total(), "nor does what they have left"
    changed = [e for e in worlds[1].events("tier-changed") if e.evidence["because"] == "suspicion"]
    assert bool(changed) == (high >= 0.5)
    assert not [e for e in worlds[0].events("tier-changed") if e.evidence["because"] == "suspicion"]


def test_events_hold_nothing_of_questions_and_answers(tmp_path: Path) -> None:
    level = {"alice": 0.0}
    budgets = {"credential": Budget(bits=60.0, queries=Window("1h", 64), on_exhausted="label")}
    world = suspected(policy(tmp_path, respond=RESPOND, budgets=budgets), level)
    for value in (0.0, 0.6, 1.1, 1.1, 1.1, 1.1, 1.1, 1.6):
        level["alice"] = value
        with contextlib.suppress(Denied):
            world.ask()
    kinds = {e.kind for e in world.sink.events}
    assert kinds == {"tier-changed", "budget-exhausted", "denied"}
    for event in world.sink.events:
        for value in event.evidence.values():
            assert value is None or isinstance(value, str | int | float)


def test_clients_come_with_what_the_books_say(tmp_path: Path) -> None:
    world = World(policy(tmp_path, budgets={"credential": Budget(bits=100.0)}))
    for i in range(3):
        for _ in range(i + 1):
            world.ask(f"c{i}")
    spent = {name: s.bits for name, s in world.guard.clients().items()}
    assert spent == pytest.approx({f"c{i}": (i + 1) * NORMAL for i in range(3)}, rel=1e-6)


def test_a_closed_guard_returns_its_leases(tmp_path: Path) -> None:
    rules = policy(tmp_path, budgets={"credential": Budget(bits=1e6)}, ledger=LedgerRules("sqlite:///books.db"))
    with hardening.Guard(rules) as guard:
        guard.harden({"p": P}, client="alice")
    with pytest.raises(InputError, match="closed"):
        guard.admit("alice", 1)
    ledger = Ledger(MemoryStore(), {})
    ledger.close()
    with hardening.Guard(rules) as guard:
        assert guard.standing("alice").bits == pytest.approx(8 * NORMAL, rel=1e-6)


def test_a_tier_that_cannot_be_bound_releases_nothing(tmp_path: Path) -> None:
    """The fallback needs the question, and there is none."""
    tiers = {"normal": (Types(n=100),), "noisy": NOISY}
    world = World(policy(tmp_path, tiers, budgets={"credential": Budget(bits=20.0, on_exhausted="noisy")}))
    world.guard.harden({"p": P[:1]}, client="alice")
    with pytest.raises(HardeningError):
        world.guard.harden({"p": P[:1]}, client="alice")


def test_no_lock_is_held_while_a_client_is_told(tmp_path: Path) -> None:
    """A sink that asks the guard, as a dashboard might, does not wait for itself."""
    guards: list[Callable[[], object]] = []

    class Curious(RecordingSink):
        def emit(self, event: Any) -> None:
            super().emit(event)
            for ask in guards:
                ask()

    rules = policy(tmp_path, respond=RESPOND, budgets={"credential": Budget(bits=20.0)})
    guard = hardening.Guard(rules, sink=Curious(), suspicion=lambda client: 1.6)
    guards.append(lambda: guard.standing("alice"))
    done = threading.Event()

    def ask() -> None:
        with pytest.raises(Denied):
            guard.harden({"p": P[:1]}, client="alice")
        done.set()

    threading.Thread(target=ask, daemon=True).start()
    assert done.wait(60)
    guard.close()
