"""From ordinary traffic to an alarm, with nothing but what a policy can say: log, calibrate, and flag who attacks.

A real model behind a wrapped session; ordinary clients ask about the same digits, attackers go by what they are told.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import hardening_onnx
import numpy as np
import pytest
from hardening_onnx.session import HardenedSession

from hardening.cli import main
from hardening.clients import fleet
from hardening.clients.table import reasons
from hardening.config import parse_policy
from hardening.kernels.layout import PARTS, Lane
from hardening.noise import CIPHERS, SECRET_BYTES, Key
from tests.attacks.searches import SEARCHES, run
from tests.clients import crowd
from tests.onnx.graphs import build, floats, node

POLICY = """schema = 1
[key]
source = "file:hardening.key"
[outputs.p]
space = "simplex"
[outputs.p.tiers]
normal = [ {kind = "gaussian", sigma = 0.02}, {kind = "project", keep_top1 = true}, {kind = "types", n = 100} ]
label = [ {kind = "label_only"} ]
[detect]
log = "benign.jsonl"
near = {input = "x", span = 1.0, window = 8}
"""
ALARM = """baseline = "baseline.json"
false_alarm = 1e-3
[respond]
suspicion = [ {at = 1.0, tier = "label"} ]
"""
CLIENTS, ROWS = 120, 120


def digits() -> bytes:
    """The perceptron of `crowd.digits`, as a model."""
    (w1, b1), (w2, b2) = crowd.digits().model.layers
    nodes = [
        node("Gemm", "x w1 b1", "h"),
        node("Relu", "h", "r"),
        node("Gemm", "r w2 b2", "z"),
        node("Softmax", "z", "p"),
    ]
    weights = {"w1": w1, "b1": b1, "w2": w2, "b2": b2}
    return bytes(build(nodes, {"p": floats("N", 10)}, weights, {"x": floats("N", 64)}).SerializeToString())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy, the log of ordinary traffic under it, and the baseline that the command makes of it."""
    folder = tmp_path_factory.mktemp("watched")
    (folder / "hardening.key").write_text(Key(1, CIPHERS[0], bytes(range(SECRET_BYTES))).format())
    (folder / "hardening.key").chmod(0o600)
    rng = np.random.default_rng(1)
    session = hardening_onnx.wrap(digits(), parse_policy(POLICY, folder))
    with session.guard:
        asked = [honest_rows(rng, ROWS) for _ in range(CLIENTS)]
        for start in range(0, ROWS, 8):
            for i, x in enumerate(asked):
                session.run(None, {"x": x[start : start + 8]}, client=f"client-{i}")
    log = folder / "benign.jsonl"
    assert len(log.read_text().splitlines()) == CLIENTS * ROWS
    assert "client-" not in log.read_text()
    arguments = ["--benign", str(log), "--output", "p", "--classes", "10", "-o", str(folder / "baseline.json")]
    assert main(["calibrate", *arguments]) == 0
    return folder


@pytest.fixture
def session(folder: Path) -> Iterator[HardenedSession]:
    made = hardening_onnx.wrap(digits(), parse_policy(POLICY.replace('log = "benign.jsonl"\n', "") + ALARM, folder))
    with made.guard:
        yield made


def honest_rows(rng: np.random.Generator, count: int) -> np.ndarray:
    """Digits that nobody changed: some are asked by many clients."""
    x = crowd.digits().x[900:]
    return x[rng.choice(len(x), count, replace=False)]


def told(session: HardenedSession, client: str, x: np.ndarray) -> np.ndarray:
    return np.asarray(session.run(None, {"x": np.asarray(x, np.float32).reshape(-1, 64)}, client=client)[0])


def flagged(session: HardenedSession) -> set[str]:
    return {name for name, standing in session.guard.clients().items() if standing.suspicion >= 1}


def test_a_thief_is_flagged_and_ordinary_clients_are_not(session: HardenedSession) -> None:
    rng = np.random.default_rng(2)
    for i in range(60):
        x = honest_rows(rng, 100)
        for part in (x[:40], x[40:], x[:40]):  # who asks again says nothing new
            told(session, f"user-{i}", part)
    assert flagged(session) == set()
    for i in range(5):
        for part in np.array_split(crowd.digits().ask("uniform", rng, 100), 25):
            answer = told(session, f"thief-{i}", part)
        assert (answer.max(axis=1) == 1).all(), "labels alone"
    assert flagged(session) == {f"thief-{i}" for i in range(5)}


@pytest.mark.parametrize("name", ["Square", "NES"])
def test_searches_are_flagged_within_their_first_hundredth(name: str, session: HardenedSession) -> None:
    """One question at a time, from what the session says, among ordinary traffic about the same pictures."""
    (search, budget), rng, going = SEARCHES[name], np.random.default_rng(3), []
    x, labels = crowd.digits().x[900:], crowd.digits().y[900:]
    for i in range(20):
        told(session, f"user-{i}", honest_rows(rng, 100))
    for i in range(20):
        target = int(rng.integers(len(x)))

        def ask(asked: np.ndarray, i: int = i, target: int = target) -> np.ndarray:
            told(session, f"user-{i}", x[rng.integers(len(x), size=2)])
            told(session, f"user-{i}", x[target])
            return told(session, f"search-{i}", asked)

        start = x[target].reshape(8, 8).astype(np.float64)
        if run(search(np.random.default_rng(i), start, int(labels[target])), ask, budget // 100).found is None:
            assert session.guard.standing(f"search-{i}").queries == budget // 100
            going.append(f"search-{i}")
    assert set(going) <= flagged(session) <= {f"search-{i}" for i in range(20)}
    assert len(going) >= 15, "the others had found what they looked for"
    for client in going:
        row = session.guard._clients.row(client)
        assert Lane.DUPLICATE in dict(reasons(row))
        assert row["sums"][Lane.DUPLICATE] >= PARTS * (row["firsts"] - 3)


def test_a_search_by_many_is_one_cluster(session: HardenedSession) -> None:
    rng = np.random.default_rng(4)
    for i in range(30):
        told(session, f"user-{i}", honest_rows(rng, 60))
    start = crowd.digits().x[905].astype(float)
    for t in range(120):
        told(session, f"part-{t % 6}", np.clip(start + rng.normal(0, 0.01, 64), 0, 1))
    names = tuple(session.guard.clients())
    first, *others = fleet.clusters(session.guard.links(), 5)
    assert {names[i] for i in first} == {f"part-{i}" for i in range(6)}
    assert not others
