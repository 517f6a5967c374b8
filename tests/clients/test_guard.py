"""From a baseline in the policy to what is done about a client, through a guard."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

import hardening
from hardening.config import parse_policy
from hardening.errors import ConfigError
from hardening.testing import RecordingSink
from tests.clients import crowd
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
