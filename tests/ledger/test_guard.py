"""Guards over real stores: several replicas, one client, restarts and grants in between."""

from __future__ import annotations

import contextlib
import math
import sqlite3
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import hardening
from hardening.config import Output, Policy
from hardening.errors import ConfigError, Denied
from hardening.ledger import Budget, Ledger, LedgerRules, open_store
from hardening.ledger.amounts import Kind
from hardening.ledger.redis import RedisStore
from hardening.ledger.store import Balance
from hardening.testing import RecordingSink
from hardening.transforms import LabelOnly, Types
from hardening.types import Identity
from tests.ledger.proxy import Proxy
from tests.ledger.server import DURABLE, FORGETFUL, PATIENCE, Server
from tests.ledger.test_redis import wait_for_answers

TIERS = {"normal": (Types(n=100),), "label": (LabelOnly(),)}
NORMAL, LABEL = math.log2(176851), 2.0
P = np.random.default_rng(0).dirichlet(np.ones(4), 4).astype("f4")


def policy(url: str, root: Path, bits: float = 2000.0, on_exhausted: str = "deny", **rules: str) -> Policy:
    budgets = {"credential": Budget(bits=bits, on_exhausted=on_exhausted), "model": Budget(bits=1e9)}
    return Policy(
        {"p": Output("simplex", TIERS)}, budgets=budgets, ledger=LedgerRules(url, timeout=PATIENCE, **rules), root=root
    )  # type: ignore[arg-type]


def exhaust(guard: hardening.Guard, client: str, seed: int = 0) -> tuple[int, int]:
    """Rows answered in full and by label alone, until the client is refused three times."""
    rng, full, labels, refused = np.random.default_rng(seed), 0, 0, 0
    while refused < 3:
        rows = int(rng.integers(1, 4))
        try:
            answer = guard.harden({"p": P[:rows]}, client=Identity(client))["p"]
        except Denied:
            refused += 1
            continue
        label = bool((answer.max(1) == 1).all())
        labels, full = labels + rows * label, full + rows * (not label)
    return full, labels


@pytest.fixture(params=["sqlite", "redis"])
def url(request: pytest.FixtureRequest) -> str:
    return "sqlite:///books.db" if request.param == "sqlite" else str(request.getfixturevalue("server").url)


def test_replicas_together_release_no_more_than_the_budget(
    url: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    name = request.node.name
    rules = policy(url, tmp_path, on_exhausted="label")
    guards = [hardening.Guard(rules) for _ in range(3)]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda i: exhaust(guards[i % 3], name, i), range(6)))
    for guard in guards:
        guard.close()
    with hardening.Guard(rules) as again:
        found.append(exhaust(again, name))
        bits = sum(full * NORMAL + labels * LABEL for full, labels in found)
        assert 2000 - 3 * LABEL < bits <= 2000
        assert again.standing(name).bits == pytest.approx(bits, rel=1e-6)
        assert again.standing(name).tier == "deny"


def test_budgets_and_grants_outlive_guards(url: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    name, rules = request.node.name, policy(url, tmp_path, bits=100.0)
    sink = RecordingSink()
    answered = 0
    for lives in range(3):
        with hardening.Guard(rules, f"model {lives}", sink=sink) as guard:
            for _ in range(4):
                try:
                    answered += len(guard.harden({"p": P[:1]}, client=name)["p"])
                except Denied:
                    break
            if lives == 1:
                guard.grant(name, bits=2 * NORMAL, reason="between two lives")
    assert answered == 7
    assert [e.kind for e in sink.events if e.kind.startswith("budget")] == [
        "budget-exhausted", "budget-granted", "budget-exhausted"
    ]  # fmt: skip


def test_a_grant_on_another_replica(tmp_path: Path, url: str, request: pytest.FixtureRequest) -> None:
    name, rules = request.node.name, policy(url, tmp_path, bits=20.0)
    with hardening.Guard(rules) as one, hardening.Guard(rules) as other:
        one.harden({"p": P[:1]}, client=name)
        with pytest.raises(Denied):
            one.harden({"p": P[:1]}, client=name)
        with pytest.raises(Denied):
            one.admit(name, 1)
        other.grant(name, bits=100.0, reason="on another replica")
        # A refusal stands for a second in the lease, so that whoever has nothing left cannot make the store work.
        assert one._admission is not None
        assert one._admission._ledger is not None
        for lease in one._admission._ledger._roster:
            lease.ask_again()
        assert one.admit(name, 1).tier == "normal"
        assert len(one.harden({"p": P[:1]}, client=name)["p"]) == 1


def test_standings_take_one_look_into_the_books(url: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Of all clients; and they are those of a look at each. Nobody renews a lease between two looks."""
    name, rules = request.node.name[-9:], policy(url, tmp_path)

    def replica() -> hardening.Guard:
        store = open_store(rules.ledger, root=tmp_path)
        return hardening.Guard(rules, ledger=Ledger(store, rules.budgets, background=False))

    with replica() as guard, replica() as other:
        for i in range(300):
            guard.harden({"p": P[: 1 + i % 3]}, client=f"{name} {i}")
        other.harden({"p": P}, client=f"{name} 0")
        standings = guard.clients()
        assert len(standings) == 300
        assert standings[f"{name} 0"].bits >= 5 * NORMAL * (1 - 1e-6)
        for i in range(1, 300):
            assert standings[f"{name} {i}"].bits == pytest.approx((1 + i % 3) * NORMAL, rel=1e-6)
        assert standings == {client: guard.standing(client) for client in standings}


def test_standings_while_the_books_cannot_be_had(tmp_path: Path, server: Server) -> None:
    """The first look finds out, in one timeout; the next do not wait at all. Both say so."""
    proxy = Proxy(server.port)
    rules = policy(proxy.url, tmp_path)
    try:
        with hardening.Guard(rules, sink=RecordingSink()) as guard:
            for i in range(200):
                guard.harden({"p": P}, client=f"away {i}")
            assert guard._admission is not None
            assert guard._admission._ledger is not None
            store, looks = guard._admission._ledger._store, []
            read = store.read_all

            def look(keys: Sequence[str]) -> dict[str, dict[Kind, Balance]]:
                looks.append(len(keys))
                return read(keys)

            store.read_all = look  # type: ignore[method-assign]
            proxy.hold()
            wait_for_answers(store, 0.2)  # type: ignore[arg-type]
            standings = guard.clients()
            assert (len(looks), {s.stale for s in standings.values()}) == (1, {True})
            assert [s.bits for s in standings.values()] == pytest.approx([4 * NORMAL] * 200)
            with pytest.raises(Denied):
                guard.harden({"p": P}, client="new while it is away")
            assert {s.stale for s in guard.clients().values()} == {True}
            assert len(looks) == 1
            proxy.release()
            wait_for_answers(store, PATIENCE)  # type: ignore[arg-type]
    finally:
        proxy.close()


def test_whoever_looks_keeps_nobody_from_renewing(tmp_path: Path, server: Server) -> None:
    """A look that waits for the network holds no lock that a request needs."""
    proxy = Proxy(server.port)
    try:
        with hardening.Guard(policy(server.url, tmp_path)) as guard, ThreadPoolExecutor(1) as pool:
            guard.harden({"p": P}, client="first")
            assert guard._admission is not None
            assert guard._admission._ledger is not None
            store = guard._admission._ledger._store
            store._reader = RedisStore(proxy.url, timeout=PATIENCE)  # type: ignore[attr-defined]
            proxy.hold()
            looking = pool.submit(guard.clients)
            for i in range(20):
                assert len(guard.harden({"p": P}, client=f"new {i}")["p"]) == 4
            assert not looking.done()
            proxy.release()
            assert not looking.result(PATIENCE)["first"].stale
    finally:
        proxy.close()


def test_a_look_does_not_wait_for_whoever_writes(tmp_path: Path) -> None:
    with hardening.Guard(policy("sqlite:///books.db", tmp_path)) as guard:
        guard.harden({"p": P}, client="alice")
        with contextlib.closing(sqlite3.connect(tmp_path / "books.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            standing = guard.clients()["alice"]
            assert not standing.stale
            assert standing.bits == pytest.approx(4 * NORMAL, rel=1e-6)


def test_a_restart_of_the_server_loses_nothing(tmp_path: Path) -> None:
    server = Server(tmp_path, *DURABLE)
    rules = policy(server.url, tmp_path, bits=500.0, on_failure="deny")
    try:
        with hardening.Guard(rules) as guard:
            before = [guard.harden({"p": P[:1]}, client="alice") for _ in range(5)]
            server.restart()
            full, _ = exhaust(guard, "alice")
        with hardening.Guard(rules) as guard:
            spent = guard.standing("alice").bits
    finally:
        server.close()
    assert spent >= (len(before) + full) * NORMAL * (1 - 1e-6)
    assert (len(before) + full) * NORMAL <= 500.0


def test_a_server_that_forgets_is_refused_unless_it_is_said(tmp_path: Path) -> None:
    server = Server(tmp_path, *FORGETFUL)
    try:
        with pytest.raises(ConfigError, match=r"ledger.durability: .*appendonly is no"):
            hardening.Guard(policy(server.url, tmp_path))
        sink = RecordingSink()
        with hardening.Guard(policy(server.url, tmp_path, durability="best-effort"), sink=sink) as guard:
            guard.harden({"p": P}, client="alice")
        assert "ledger-not-durable" in [e.kind for e in sink.events]
    finally:
        server.close()


def test_passwords_come_by_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(tmp_path, *DURABLE, "--requirepass", "sesame")
    monkeypatch.setenv("BOOKS_PASSWORD", "sesame\n")
    try:
        with hardening.Guard(policy(server.url, tmp_path, password="env:BOOKS_PASSWORD")) as guard:
            assert len(guard.harden({"p": P}, client="alice")["p"]) == 4
            assert guard.standing("alice").bits == pytest.approx(4 * NORMAL, rel=1e-6)
            assert "sesame" not in repr(vars(guard))
    finally:
        server.close()
    with pytest.raises(ConfigError, match=r"ledger.password: the environment variable NOT_THERE"):
        hardening.Guard(policy(server.url, tmp_path, password="env:NOT_THERE"))
