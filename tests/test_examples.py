"""Everything under examples/ runs, and the policy there shows every key that there is."""

from __future__ import annotations

import ast
import dataclasses
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from skl2onnx import to_onnx
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

import hardening
from hardening.cli import main
from hardening.clients.log import read_log
from hardening.config import Auth, Detect, KeySource, Near, Output, Policy, Tls, load_policy
from hardening.ledger import Budget, LedgerRules, Window
from hardening.ledger.amounts import RUNGS
from hardening.policy import ClientRules, Response, Step
from hardening.transforms import TRANSFORMS
from tests.clients import crowd
from tests.keys import fixed_key
from tests.ledger.server import DURABLE, Server

EXAMPLES = Path(__file__).parent.parent / "examples"
POLICY = EXAMPLES / "policy.toml"


def test_the_policy_shows_every_kind_and_every_key() -> None:
    policy = load_policy(POLICY)
    used = {type(t) for o in policy.outputs.values() for tier in o.tiers.values() for t in tier}
    assert used == set(TRANSFORMS.values())
    text = POLICY.read_text()
    keys = {f.name for f in dataclasses.fields(Policy)} - {"root"} | {*RUNGS}
    rules = (Detect, Near, KeySource, Auth, Tls, ClientRules, Budget, Window, LedgerRules, Response, Step, Output)
    for kind in (*rules, *TRANSFORMS.values()):
        keys |= {f.name for f in dataclasses.fields(kind)}
    assert {k for k in keys if not re.search(rf"\b{k}\b *=|^\[{k}[.\]]|\.{k}\]", text, re.M)} == set()
    assert [line for line in text.splitlines() if line.startswith("#")]


def test_the_policy_is_valid_and_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(POLICY), "--no-files", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts == {
        "valid": True,
        "outputs": [
            *("probabilities", "logits", "severity", "price", "tags", "age", "embedding", "detections"),
            *("language", "model_version"),
        ],
        "tiers": ["normal", "private", "blurred", "deceptive", "suspect", "label"],
        "warnings": [],
        "problems": [],
    }
    assert main(["explain", str(POLICY), "--classes", "4", "--json"]) == 0
    explained = json.loads(capsys.readouterr().out)["outputs"]
    assert explained["probabilities"]["normal"]["relation"] == "label"
    assert explained["probabilities"]["private"]["relation"] == "label-rr"
    assert explained["probabilities"]["deceptive"]["relation"] == "none"
    assert explained["logits"]["normal"]["relation"] == "output-metric"
    assert {t["relation"] for t in explained["severity"].values()} == {"none"}
    assert [t["looks_at"] for t in explained["severity"].values()] == [
        *(None, None, None, "severity_copy"),
        *(None, "severity_copy"),
    ]
    assert explained["detections"]["label"]["transforms"] == ["Types(n=40)", "LabelOnly() of the score"]
    assert explained["price"]["suspect"]["conversion"] == {
        "relation": "output-metric",
        "unit": "answer",
        "epsilon": 0.5,
        "delta": 1e-6,
    }
    for output in ("probabilities", "logits", "severity", "price"):
        assert all(tier["bits_per_answer"] > 0 for tier in explained[output].values())


def test_every_tier_of_the_policy_fits_its_classes() -> None:
    policy = load_policy(POLICY)
    for name, output in policy.outputs.items():
        for tier in output.tiers:
            policy.pipeline(name, tier).check_width(len(output.columns or range(4)))


def test_the_policy_hardens(tmp_path: Path) -> None:
    fixed_key(tmp_path)
    (tmp_path / "policy.toml").write_text(POLICY.read_text())
    usual = dataclasses.replace(crowd.digits().baseline, output="probabilities")
    (tmp_path / "baseline.json").write_text(usual.to_json())
    rng = np.random.default_rng(0)
    inputs = {"x": rng.normal(size=(5, 8)).astype("f4")}
    clean = {
        "probabilities": rng.dirichlet(np.ones(4), 5).astype("f4"),
        "logits": rng.normal(size=(5, 4)).astype("f4"),
        "severity": rng.dirichlet(np.ones(4), 5),
        "price": np.array([[3.0], [8.25], [0.0], [-1.0], [100.0]], "f4"),
        "tags": rng.random((5, 9)).astype("f4"),
        "age": rng.uniform(-5, 130, (5, 1)).astype("f4"),
        "embedding": rng.normal(size=(5, 32)).astype("f4"),
        "detections": np.dstack([rng.uniform(0, 640, (5, 7, 4)), rng.random((5, 7, 1)), np.full((5, 7, 1), 3)]),
        "language": np.arange(5),
        "model_version": np.full(5, 3),
    }
    with hardening.Guard(load_policy(tmp_path / "policy.toml")) as guard:
        released = guard.harden(clean, client="alice", inputs=inputs)
        with pytest.raises(hardening.Denied):
            guard.harden(clean, inputs=inputs)
        assert guard.standing("alice").queries == 5
        assert guard.standing("alice").suspicion < 1
    (log,) = read_log((tmp_path / "benign.jsonl").read_text().splitlines()).values()
    assert np.array_equal(log.label, clean["probabilities"].argmax(1))
    assert np.array_equal(released["probabilities"].argmax(1), clean["probabilities"].argmax(1))
    assert np.array_equal(released["severity"].argmax(1), clean["severity"].argmax(1))
    np.testing.assert_allclose(np.abs(released["severity"] - clean["severity"]).sum(1), 0.5, atol=0.2)
    for name, units in (("probabilities", 100), ("logits", 10)):
        assert not np.array_equal(released[name], clean[name])
        np.testing.assert_allclose(released[name] * units, np.rint(released[name] * units), atol=1e-4)
    assert (released["price"] != clean["price"]).any()
    assert np.abs(released["price"] - clean["price"]).max() < 20
    lengths = [np.linalg.norm(side["embedding"], axis=1) for side in (released, clean)]
    np.testing.assert_allclose(*lengths, rtol=1e-5)
    assert ((released["tags"] > 0).sum(1) <= 3).all()
    assert released["age"].min() >= 0
    assert released["age"].max() <= 120
    assert np.array_equal(released["detections"][..., :4], np.rint(released["detections"][..., :4]))
    assert (released["detections"][..., 5] == 3).all()
    for name in ("language", "model_version"):
        assert np.array_equal(released[name], clean[name])


def test_wrap_session(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x, y = load_iris(return_X_y=True)
    x = x.astype("f4")
    names = np.array(["setosa", "versicolor", "virginica"])[y]
    converted = to_onnx(LogisticRegression(max_iter=500).fit(x, names), x[:1])
    fixed_key(tmp_path)
    (tmp_path / "iris.onnx").write_bytes(converted.SerializeToString())
    model, policy = str(tmp_path / "iris.onnx"), str(tmp_path / "iris.toml")
    assert main(["init", model, "-o", policy]) == 0
    assert f"next: hardening explain {policy} --model {model}" in capsys.readouterr().out
    assert main(["check", policy, "--model", model]) == 0
    command = [sys.executable, str(EXAMPLES / "wrap_session.py"), model, policy, "bob"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    label, scores, standing = done.stdout.splitlines()
    assert label == "output_label ['setosa']"
    (row,) = ast.literal_eval(scores.removeprefix("output_probability "))
    assert list(row) == ["setosa", "versicolor", "virginica"]
    assert sum(row.values()) == pytest.approx(1)
    assert standing.startswith("Standing(queries=1, bits=12.33")


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
def test_shared_ledger(kind: str, tmp_path: Path) -> None:
    """Run twice, as it says. Whoever stops while the other still holds something leaves a little for later."""
    server = Server(tmp_path, *DURABLE) if kind == "redis" else None
    command = [sys.executable, str(EXAMPLES / "shared_ledger.py"), server.url if server else "sqlite:///budgets.db"]
    full, labels = [], []
    try:
        for _ in range(2):
            run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
            assert run.returncode == 0, run.stderr
            *replicas, last = run.stdout.splitlines()
            found = [re.fullmatch(r"(\d+) full answers, then (\d+) labels, then nothing", line) for line in replicas]
            full.append(sum(int(m[1]) for m in found if m))
            labels.append(sum(int(m[2]) for m in found if m))
            assert re.fullmatch(r"\d+ bits in all, of 10000", last)
    finally:
        if server:
            server.close()
    bits = sum(full) * math.log2(176_851) + sum(labels) * 2.0
    assert 10_000 - 20 < bits <= 10_000
    assert full[0] > 500
    assert full[1] < 10


def test_detect_extraction(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "detect_extraction.py")]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert re.match(r"\d+ of 104 held-out clients are outside the baseline\n", run.stdout)
    stolen = re.findall(r"^thief, (.*): (\d+) answers, a copy that agrees with the model on (\d+)%$", run.stdout, re.M)
    (calm, all_, good), (watched, few, bad) = stolen
    assert (calm, all_, watched) == ("not watched", "1500", "watched")
    assert int(few) < 150
    assert int(good) > 90 > int(bad) + 5
    standings = re.findall(r"^(.*?) +(\d+) rows  suspicion (\S+)  next answered by (\w+)$", run.stdout, re.M)
    *ordinary, thief = standings
    assert {(rows, tier) for _, rows, _, tier in ordinary} == {("200", "normal")}
    assert len(ordinary) == 8
    assert max(float(suspicion) for _, _, suspicion, _ in ordinary) < 1
    assert (thief[0], thief[1], thief[3]) == ("thief", few, "deny")
    assert float(thief[2]) >= 2
