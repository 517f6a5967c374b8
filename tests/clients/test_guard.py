"""From a baseline in the policy to what is done about a client, through a guard."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path

import numpy as np
import pytest

import hardening
from hardening.clients import POOLED, Clients
from hardening.clients.evidence import suspicion
from hardening.clients.table import evidence
from hardening.config import parse_policy
from hardening.errors import ConfigError, Denied
from hardening.testing import RecordingSink
from hardening.types import Standing
from tests.clients import crowd
from tests.clients.test_evidence import flat
from tests.keys import fixed_key

POLICY = """schema = 1
[key]
source = "file:hardening.key"
create = true
[outputs.p]
space = "simplex"
[outputs.p.tiers]
normal = [ {kind = "gaussian", sigma = 0.02}, {kind = "project", keep_top1 = true}, {kind = "types", n = 100} ]
label = [ {kind = "label_only"} ]
[detect]
baseline = "baseline.json"
false_alarm = 1e-3
[respond]
suspicion = [ {at = 1.0, tier = "label"} ]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    fixed_key(tmp_path)
    (tmp_path / "baseline.json").write_text(crowd.digits().baseline.to_json())
    return tmp_path


def test_a_thief_gets_labels_alone_and_ordinary_clients_what_they_always_got(folder: Path) -> None:
    world, sink, rng = crowd.digits(), RecordingSink(), np.random.default_rng(3)
    with hardening.Guard(parse_policy(POLICY, folder), "m", sink=sink) as guard:

        def ask(client: str, x: np.ndarray) -> np.ndarray:
            scores = np.ascontiguousarray(world.scores(x), np.float32)
            return np.asarray(guard.harden({"p": scores}, client=client, inputs={"x": x})["p"])

        for client, questions in (("thief", world.ask("uniform", rng, 200)), ("user", world.draw(rng, 200)[0])):
            for part in np.array_split(questions, 20):
                told = ask(client, part)
            labels_alone = bool((told.max(axis=1) == 1.0).all())
            assert labels_alone == (client == "thief")
        assert guard.standing("thief").suspicion >= 1.0 > guard.standing("user").suspicion
        assert (guard.standing("thief").tier, guard.standing("user").tier) == ("label", "normal")
        before = guard.standing("thief").suspicion
        for _ in range(5):
            ask("thief", questions[:1])  # asked again, a question is no evidence
        assert guard.standing("thief").suspicion == pytest.approx(before, abs=0.5)
    assert {e.client for e in sink.events if e.kind == "tier-changed"} == {"thief"}


def judged(root: Path, suspicion: str, clients: str = "", tiers: str = "") -> hardening.Policy:
    """A policy under which answers that are all alike soon speak against whoever asks."""
    (root / "baseline.json").write_text(flat(0.1).to_json())
    tiers = tiers or 'normal = [ {kind = "types", n = 100} ]\nlabel = [ {kind = "label_only"} ]'
    return parse_policy(
        f"""schema = 1
[outputs.p]
space = "simplex"
[outputs.p.tiers]
{tiers}
[clients]
anonymous = "account"
{clients}
[detect]
baseline = "baseline.json"
[respond]
{suspicion}
""",
        root,
    )


def scores(rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.ones(4), rows).astype("f4")


def answered(guard: hardening.Guard, client: str, rows: int = 300) -> int:
    count = 0
    for row in scores(rows):
        with contextlib.suppress(Denied):
            guard.harden({"p": row[None]}, client=client)
            count += 1
    return count


def test_who_fills_the_table_is_flagged_all_the_same(tmp_path: Path) -> None:
    """Clients of the pooled account share its evidence and what is done about it; whoever was there before does not."""
    rules = judged(tmp_path, "suspicion = [ {at = 1.0, deny = true} ]", "capacity = 3")
    with hardening.Guard(rules, "m", sink=RecordingSink()) as guard:
        for name in ("old", "thief", "other"):
            guard.admit(name, 1)
        own = answered(guard, "thief")
        assert own < 100
        assert abs(answered(guard, "pooled thief") - own) <= 1, "no more than with an account of one's own"
        standings = [guard.standing(name) for name in ("pooled thief", "a third", POOLED)]
        assert len(set(standings)) == 1
        assert standings[0].suspicion >= 1.0
        assert standings[0].tier == "deny"
        with pytest.raises(Denied):
            guard.harden({"p": scores(1)}, client="a third")
        assert guard.standing("old").suspicion == 0.0
        assert len(guard.harden({"p": scores(1)}, client="old")["p"]) == 1


def test_before_the_table_is_full_nobody_answers_for_strangers(tmp_path: Path) -> None:
    rules = judged(tmp_path, "suspicion = [ {at = 1.0, deny = true} ]", "capacity = 3")
    with hardening.Guard(rules, "m", sink=RecordingSink()) as guard:
        answered(guard, "thief")
        assert guard.standing("stranger") == Standing(tier="normal")


def test_the_numbers_of_one_client_are_those_of_arrays(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    clients = Clients(40)
    for slot in range(40):
        row = clients._rows[slot]
        row["firsts"], row["restarts"] = rng.integers(0, 3), rng.integers(0, 2**32)
        row["wealth"] = rng.normal(0, 60) if slot else np.nan
    with np.errstate(invalid="ignore"):
        want = suspicion(evidence(clients._rows), 1e-3)
    found = [clients.suspicion_at(slot, 1e-3) for slot in range(41)]
    assert found == pytest.approx(want.tolist(), rel=1e-12, nan_ok=True)


@pytest.mark.parametrize(("step", "told"), [("deny = true", "refused"), ('tier = "label"', "labels")])
def test_one_large_request_is_judged_before_anything_of_it_is_released(tmp_path: Path, step: str, told: str) -> None:
    rules, sink = judged(tmp_path, f"suspicion = [ {{at = 1.0, {step}}} ]\nrows = 32"), RecordingSink()
    given = scores(5000)
    with hardening.Guard(rules, "m", sink=sink) as guard:
        for once in range(2):
            if told == "refused":
                with pytest.raises(Denied) as caught:
                    guard.harden({"p": given}, client="thief")
                assert str(caught.value) == Denied.SENTENCE
            else:
                answer = guard.harden({"p": given}, client="thief")["p"]
                assert np.array_equal(answer, np.eye(4, dtype="f4")[given.argmax(1)])
            assert guard.standing("thief").suspicion >= 1.0
            if not once:
                assert (given == scores(5000)).all(), "the caller's own stays"
        small = guard.harden({"p": given[:32]}, client="user")["p"]
        assert len(small) == 32
        assert small.max() < 1.0
    assert next(e.kind for e in sink.events if e.client == "thief") == "tier-changed"


def test_a_large_request_that_is_ordinary_is_answered_as_ever(tmp_path: Path) -> None:
    """Without evidence against it, rows of a large request are those of small ones, bit for bit."""
    rules = judged(tmp_path, 'suspicion = [ {at = 1.0, tier = "label"} ]\nrows = 16')
    (tmp_path / "baseline.json").write_text(flat(0.9).to_json())
    given = scores(500)
    with hardening.Guard(rules, "m") as guard:
        whole = guard.harden({"p": given}, client="a")["p"]
        parts = [guard.harden({"p": given[i : i + 16]}, client="b")["p"] for i in range(0, 500, 16)]
        assert guard.standing("a").suspicion < 1.0
        assert np.array_equal(whole, np.concatenate(parts))
        one, other = ({**guard.standing(name)._asdict(), "histogram": 0, "tier": 0} for name in "ab")
        assert one == pytest.approx(other, rel=1e-9)


def test_without_a_baseline_nobody_is_suspected(folder: Path) -> None:
    text = POLICY.replace('baseline = "baseline.json"\n', "")
    policy = parse_policy(text, folder)
    assert any("detect.baseline" in said for said in policy.warnings)
    world = crowd.digits()
    with hardening.Guard(policy, "m") as guard:
        x = world.ask("uniform", np.random.default_rng(3), 200)
        guard.harden({"p": world.scores(x).astype("f4")}, client="thief", inputs={"x": x})
        assert guard.standing("thief").suspicion == 0.0


@pytest.mark.parametrize(
    ("make", "path"),
    [
        (lambda f: (f / "baseline.json").unlink(), "detect.baseline"),
        (lambda f: (f / "baseline.json").write_text("{}"), "detect.baseline"),
        (
            lambda f: (f / "baseline.json").write_text(
                dataclasses.replace(crowd.digits().baseline, output="q").to_json()
            ),
            "detect.baseline",
        ),
    ],
)
def test_a_baseline_that_is_none(folder: Path, make: object, path: str) -> None:
    make(folder)  # type: ignore[operator]
    with pytest.raises(ConfigError) as caught:
        hardening.Guard(parse_policy(POLICY, folder), "m")
    assert caught.value.path.startswith(path)


def test_a_false_alarm_that_is_no_chance(folder: Path) -> None:
    with pytest.raises(ConfigError, match="false_alarm"):
        parse_policy(POLICY.replace("1e-3", "0.5"), folder)


@pytest.mark.parametrize("every", ["60s", "0m", "", "2d", "25h"])
def test_how_often_is_a_span_of_up_to_a_day(folder: Path, every: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_policy(POLICY.replace("false_alarm = 1e-3", f'every = "{every}"'), folder)
    assert caught.value.path == "detect.every"
    assert parse_policy(POLICY.replace("false_alarm = 1e-3", 'every = "24h"'), folder).detect.every == "24h"
