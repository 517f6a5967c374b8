"""Whose answers a copy was learnt from: real copies of a real model, and what an innocent model's p-values are."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from sklearn.datasets import load_digits
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import RandomForestClassifier

import hardening
from hardening.audit.attribution import Canaries, attribute, canaries_of, chance_of_hits
from hardening.audit.extraction import Training, one_hot, train
from hardening.cli import main
from hardening.config import Detect, KeySource, Near, Output, Policy
from hardening.noise import Key
from hardening.policy import Response, Step
from hardening.transforms import Canary, Clip, Gaussian, KRandomisedResponse, LabelOnly, Project, Transform, Types
from tests.keys import fixed_key

TIERS: dict[str, tuple[Transform, ...]] = {
    "labels": (Canary(rate=0.02), LabelOnly()),
    "scores": (Canary(rate=0.02), Gaussian(sigma=0.05), Project(keep_top1=True), Types(n=100)),
    "drawn": (Canary(rate=0.05), KRandomisedResponse(epsilon=5.0)),
}


class World:
    """A model of digits behind a policy; a client asks about half of them, the model was made from the other half."""

    def __init__(self, root: Path, tier: str = "labels") -> None:
        x, self.y = load_digits(return_X_y=True)
        self.x = x / 16
        self.asked = self.x[1::2]
        made = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.1).fit(self.x[::2], self.y[::2])
        self.scores = made.predict_proba(self.asked)
        self.own = self.scores.argmax(axis=1)
        rules = Output("simplex", {"normal": TIERS[tier]})
        self.policy = Policy({"p": rules}, key=fixed_key(root), root=root)

    def answers(self, client: str) -> NDArray[np.float64]:
        with hardening.Guard(self.policy, "digest") as guard:
            return np.asarray(guard.harden({"p": self.scores}, client=client, inputs={"x": self.asked})["p"])

    def canaries(self, client: str, **more: Any) -> Canaries:
        return canaries_of(self.policy, "digest", client, self.scores, **more)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_canaries_are_what_the_client_was_told(world: World) -> None:
    for client in ("alice", "bob"):
        told, known = world.answers(client).argmax(axis=1), world.canaries(client)
        assert 5 <= known.changed.sum() <= 40
        assert np.array_equal(told[known.question[known.changed]], known.label[known.changed])
        assert np.array_equal(told[known.question[~known.changed]], world.own[known.question[~known.changed]])
        assert (known.label != world.own[known.question]).all()
        assert len(np.unique(known.question)) == len(known.question) > 300


@pytest.mark.parametrize("tier", TIERS)
def test_a_thief_is_named_and_nobody_else(tmp_path: Path, tier: str) -> None:
    world = World(tmp_path, tier)
    told = {client: world.canaries(client) for client in ("alice", "bob", "carol")}
    answers = world.answers("alice")
    forest = RandomForestClassifier(50, random_state=0).fit(world.asked, answers.argmax(axis=1))
    how = Training(hidden=(64,), steps=1500, decay=0.0)
    student = train(world.asked, one_hot(answers), np.random.default_rng(0), how)
    for labels in (forest.predict(world.asked), student.labels(world.asked)):
        thief, *others = attribute(told, dict.fromkeys(told, labels))
        assert (thief.client, thief.corrected < 1e-9) == ("alice", True), thief
        assert all(innocent.p_value > 0.05 for innocent in others), others


def test_an_independent_model_is_not_accused(world: World) -> None:
    """Learnt from the same digits and their true labels, and from the model's own answers without canaries."""
    told = {client: world.canaries(client) for client in ("alice", "bob", "carol")}
    for target in (world.y[1::2], world.own):
        labels = RandomForestClassifier(50, random_state=1).fit(world.asked, target).predict(world.asked)
        for innocent in attribute(told, dict.fromkeys(told, labels)):
            assert innocent.p_value > 0.05, innocent


def test_clients_who_pool_their_answers_are_both_named(world: World) -> None:
    """Each asked for half of the questions; with three clients under suspicion, at a corrected level."""
    first, second = np.arange(len(world.asked)) % 2 == 0, np.arange(len(world.asked)) % 2 == 1
    labels = np.where(first, *(world.answers(c).argmax(axis=1) for c in ("alice", "bob")))
    copy = RandomForestClassifier(50, random_state=2).fit(world.asked, labels)
    told, given = {}, {}
    for client, part in (("alice", first), ("bob", second), ("carol", first)):
        told[client] = canaries_of(world.policy, "digest", client, world.scores[part])
        given[client] = copy.predict(world.asked[part])
    found = {a.client: a for a in attribute(told, given)}
    assert found["alice"].corrected < 1e-6
    assert found["bob"].corrected < 1e-6
    assert found["carol"].p_value > 0.05
    for one in found.values():
        assert one.corrected == pytest.approx(min(1.0, 3 * one.p_value))


def test_an_innocent_model_gets_small_p_values_no_more_often_than_they_say(world: World) -> None:
    """A bad model, with many wrong labels, against two hundred clients."""
    rng = np.random.default_rng(5)
    labels = np.where(rng.random(len(world.own)) < 0.5, rng.integers(0, 10, len(world.own)), world.own)
    told = {f"client {i}": world.canaries(f"client {i}") for i in range(200)}
    p = np.array([a.p_value for a in attribute(told, dict.fromkeys(told, labels))])
    for level in (0.02, 0.1, 0.3):
        assert stats.binomtest(int((p <= level).sum()), len(p), level, "greater").pvalue > 1e-3
    assert (p < 0.5).any()


def test_the_right_key_model_and_client_are_needed(world: World, tmp_path: Path) -> None:
    labels = world.answers("alice").argmax(axis=1)
    (tmp_path / "other").write_text(Key(1, "chacha20", bytes(32)).format())
    (tmp_path / "other").chmod(0o600)
    elsewhere = replace(world.policy, key=KeySource("file:other"))
    tries = [
        canaries_of(elsewhere, "digest", "alice", world.scores),
        canaries_of(world.policy, "another", "alice", world.scores),
        canaries_of(world.policy, "digest", "alicia", world.scores),
    ]
    for known in tries:
        assert attribute({"alice": known}, {"alice": labels})[0].p_value > 0.05
    assert attribute({"alice": world.canaries("alice")}, {"alice": labels})[0].p_value < 1e-9


def test_what_else_a_policy_says_does_not_matter(world: World) -> None:
    """It looks for near duplicates, keeps a log, and lets other tiers answer; nobody asks anything here."""
    known = world.canaries("alice")
    outputs = {
        "p": replace(world.policy.outputs["p"], tiers={"normal": TIERS["labels"], "strict": (LabelOnly(),)}),
        "q": Output("simplex", {"normal": (LabelOnly(),), "strict": (LabelOnly(),)}),
    }
    detect = Detect(log="log", output="q", near=Near("x", 1.0))
    rules = Response((Step(1.0, tier="strict"),))
    world.policy = replace(world.policy, outputs=outputs, detect=detect, respond=rules)
    again = world.canaries("alice")
    for name in ("question", "changed", "label"):
        assert np.array_equal(getattr(known, name), getattr(again, name))


def test_canaries_alone_are_enough(world: World) -> None:
    """What an interface that is dear can be asked: the canaries, and nothing else."""
    told, known = world.answers("alice").argmax(axis=1), world.canaries("alice")
    asked = np.full(len(told), -1)
    places = known.question[known.changed]
    asked[places] = told[places]
    (found,) = attribute({"alice": known}, {"alice": asked})
    assert (found.hits, found.canaries, found.controls) == (known.changed.sum(), known.changed.sum(), 0)
    assert found.p_value == pytest.approx((1 / 3) ** found.hits)
    asked[places] = world.own[places]
    assert attribute({"alice": known}, {"alice": asked})[0].p_value == 1.0


def test_published_scale() -> None:
    """250 triggers, ten classes (DAWN): a model that guesses, and a copy that kept four of five."""
    rng = np.random.default_rng(0)
    guesses = rng.integers(0, 10, 250)
    assert chance_of_hits(int((guesses == 0).sum()), 250, 0, 0, 10) > 0.05
    assert chance_of_hits(200, 250, 0, 0, 10) < 2.0**-64
    assert chance_of_hits(250, 250, 0, 0, 2) == 1.0  # of two classes the other one is no secret


@given(st.integers(1, 300), st.integers(1, 3000), st.integers(0, 300), st.integers(0, 3000))
def test_tails_against_scipy(canaries: int, controls: int, hits: int, control_hits: int) -> None:
    hits, control_hits = min(hits, canaries), min(control_hits, controls)
    found = chance_of_hits(hits, canaries, control_hits, controls, 10)
    expected = stats.hypergeom.sf(hits - 1, canaries + controls, hits + control_hits, canaries)
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-300)
    assert chance_of_hits(hits, canaries, 0, 0, 3) == pytest.approx(
        stats.binom.sf(hits - 1, canaries, 1 / 2), rel=1e-6, abs=1e-300
    )


def test_mistakes_are_named(world: World) -> None:
    known = world.canaries("alice")
    with pytest.raises(ValueError, match="'bob'"):
        attribute({"alice": known}, {"bob": world.own})
    with pytest.raises(ValueError, match="one for every question"):
        attribute({"alice": known}, {"alice": world.own[:10]})
    plain = replace(world.policy, outputs={"p": Output("simplex", {"normal": (LabelOnly(),)})})
    with pytest.raises(hardening.ConfigError, match="0 outputs have a canary"):
        canaries_of(plain, "digest", "alice", world.scores)
    with pytest.raises(hardening.ConfigError, match="has no canary"):
        canaries_of(plain, "digest", "alice", world.scores, output="p")
    with pytest.raises(hardening.ConfigError, match="unknown tier 'odd'"):
        canaries_of(world.policy, "digest", "alice", world.scores, tier="odd")
    with pytest.raises(hardening.ReleaseError, match="row 3"):
        canaries_of(
            world.policy, "digest", "alice", np.where(np.arange(len(world.scores))[:, None] == 3, 2.0, world.scores)
        )
    with pytest.raises(hardening.ReleaseError, match="questions, classes"):
        canaries_of(world.policy, "digest", "alice", world.scores[:, None])


def test_canaries_after_noise_that_is_keyed_on_the_question(world: World) -> None:
    """They are found again with what was asked; and in logits behind a clip."""
    steps = (Gaussian(sigma=0.05), Project(), Canary(rate=0.1), LabelOnly())
    noisy = replace(world.policy, outputs={"p": Output("simplex", {"normal": steps})})
    with pytest.raises(hardening.InputError, match="inputs"):
        canaries_of(noisy, "digest", "alice", world.scores)
    logits = replace(
        world.policy,
        outputs={"p": Output("logits", {"normal": (Clip(low=-8.0, high=8.0), Canary(rate=0.1))}, dense=True)},
    )
    for policy, scores in ((noisy, world.scores), (logits, np.log(world.scores + 1e-9))):
        known = canaries_of(policy, "digest", "alice", scores, inputs={"x": world.asked})
        with hardening.Guard(policy, "digest") as guard:
            told = guard.harden({"p": scores}, client="alice", inputs={"x": world.asked})["p"].argmax(axis=1)
        assert known.changed.sum() > 5
        assert np.array_equal(told[known.question[known.changed]], known.label[known.changed])


POLICY = """schema = 1
key = {source = "file:hardening.key"}
[outputs.p]
space = "simplex"
tiers.normal = [ {kind = "canary", rate = 0.02}, {kind = "label_only"} ]
"""


def test_the_command_names_the_thief(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, policy = tmp_path / "model.onnx", tmp_path / "policy.toml"
    model.write_bytes(b"a model")
    policy.write_text(POLICY)
    with hardening.Guard(hardening.load_policy(policy), hashlib.sha256(b"a model").hexdigest()) as guard:
        told = guard.harden({"p": world.scores}, client="alice")["p"].argmax(axis=1)
    copy = RandomForestClassifier(50, random_state=3).fit(world.asked, told).predict(world.asked)
    np.savez(tmp_path / "asked.npz", scores=world.scores, labels=copy)
    suspects = [f"{client}={tmp_path / 'asked.npz'}" for client in ("alice", "bob")]
    command = ["attribute", str(policy), "--model", str(model)]
    assert main([*command, *suspects, "--json"]) == 1
    first, second = json.loads(capsys.readouterr().out)
    assert (first["client"], first["named"], second["named"]) == ("alice", True, False)
    assert first["corrected"] == 2 * first["p_value"]
    assert main([*command, suspects[1]]) == 0
    assert capsys.readouterr().out.startswith("bob: not named: 0 of ")


@pytest.mark.parametrize(
    ("arrays", "argument", "message"),
    [
        (None, "alice", "must be CLIENT=FILE"),
        (None, "alice={}/absent.npz", "No such file"),
        (None, "alice={}/policy.toml", "does not hold numpy arrays"),
        ({"scores": np.ones((2, 2))}, "alice={}/asked.npz", "needs an array 'labels', (questions,) of whole numbers"),
        ({"scores": np.ones(2), "labels": np.ones(2, int)}, "alice={}/asked.npz", "needs an array 'scores'"),
        ({"scores": np.eye(9), "labels": np.ones(2, int)}, "alice={}/asked.npz", "one for every question"),
        ({"scores": np.ones((2, 2)), "labels": np.ones(2, int)}, "alice={}/asked.npz", "outside the declared space"),
    ],
)
def test_the_command_says_what_is_wrong(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str], arrays: Any, argument: str, message: str
) -> None:
    (tmp_path / "policy.toml").write_text(POLICY)
    if arrays is not None:
        np.savez(tmp_path / "asked.npz", **arrays)
    command = ["attribute", str(tmp_path / "policy.toml"), "--model", str(tmp_path / "policy.toml")]
    assert main([*command, argument.format(tmp_path)]) == 2
    assert message in capsys.readouterr().err
