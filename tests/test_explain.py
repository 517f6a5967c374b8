"""What `hardening explain` says of alarms, budgets and books: each number is the one that the parts stand for."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from hardening.cli import main
from hardening.cli.alarms import odds
from hardening.clients.evidence import chance
from tests.clients import crowd

POLICY = """schema = 1
[outputs.p]
space = "simplex"
tiers.normal = [ {kind = "types", n = 10} ]
tiers.label = [ {kind = "label_only"} ]
"""
DETECT = """
[detect]
baseline = "baseline.json"
false_alarm = 1e-3
"""
RESPOND = """
[respond]
suspicion = [ {at = 0.8, throttle = {per = "1m", max = 60}}, {at = 1.5, tier = "label"}, {at = 3.5, deny = true} ]
hysteresis = 0.25
ttl = "12h"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "baseline.json").write_text(crowd.digits().baseline.to_json())
    return tmp_path


def explained(folder: Path, capsys: pytest.CaptureFixture[str], text: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The JSON, and what the text says after the tiers by its first word."""
    path = folder / "policy.toml"
    path.write_text(text)
    assert main(["explain", str(path), "--classes", "4", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert main(["explain", str(path), "--classes", "4"]) == 0
    rest = re.split(r"^(?:budgets|alarms)$", capsys.readouterr().out, maxsplit=1, flags=re.M)[1]
    words = "|".join((r"at \S+", "taken back", r"[a-z]+"))
    return facts, dict(re.findall(rf"^    ({words}) +(.+)$", rest, re.M))


def test_chances_of_every_step(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts, said = explained(folder, capsys, POLICY + DETECT + RESPOND)
    steps = facts["alarms"]["steps"]
    assert [step["at"] for step in steps] == [0.8, 1.0, 1.5, 3.5]
    assert [step["chance"] for step in steps] == [pytest.approx(1e-3**at) for at in (0.8, 1.0, 1.5, 3.5)]
    assert [(s["tier"], s["throttle"], s["deny"]) for s in steps] == [
        (None, {"max": 60, "per": "1m"}, False),
        (None, {"max": 60, "per": "1m"}, False),
        ("label", None, False),
        (None, None, True),
    ]
    assert said["at 0.8"] == "at most 1 in 251: throttled to 60 rows in 1m"
    assert said["at 1"] == "at most 1 in 1,000, the alarm threshold: throttled to 60 rows in 1m"
    assert said["at 1.5"] == "at most 1 in 31,622: answered by 'label'"
    assert said["at 3.5"] == "at most 3.2e-11: refused"
    assert "fallen 0.25 below the step, or 12h after" in said["taken back"]
    assert "shadow" not in said


def test_who_is_outside(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts, said = explained(folder, capsys, POLICY + DETECT + RESPOND + "shadow = true\n")
    baseline, told = crowd.digits().baseline, facts["alarms"]
    held, (low, high) = told["baseline"]["held_out"], baseline.held_out.share_outside()
    assert (held["clients"], held["outside"]) == (baseline.held_out.clients, baseline.held_out.outside)
    assert held["outside_interval"] == [low, high]
    assert held["flagged"] == baseline.held_out.flagged(1e-3)
    outside = f"{held['outside']} of {held['clients']} held-out clients, so {100 * low:.2f} % to {100 * high:.2f} %"
    assert said["outside"].startswith(outside)
    assert told["watches"] == "p"
    assert said["watches"].startswith("'p': ")
    assert f"{baseline.clients:,} ordinary clients" in said["watches"]
    assert told["shadow"] is True
    assert said["shadow"].startswith("nothing of this is done")


def test_the_threshold_is_said_where_nothing_is_done(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts, said = explained(folder, capsys, POLICY + DETECT)
    (step,) = facts["alarms"]["steps"]
    assert (step["at"], step["chance"]) == (1.0, pytest.approx(1e-3))
    assert said["at 1"] == "at most 1 in 1,000, the alarm threshold: nothing is done"
    assert "taken back" not in said


@pytest.mark.parametrize("respond", ["", RESPOND])
def test_without_a_baseline(respond: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts, said = explained(folder, capsys, POLICY + respond)
    assert facts["alarms"]["calibrated"] is False
    assert [step["chance"] for step in facts["alarms"]["steps"]] == [None] * (3 if respond else 0)
    assert said["baseline"] == "none; uncalibrated: nobody is ever suspected"
    assert "chance" not in said
    assert ("at 1.5" in said) == bool(respond)


def test_a_baseline_that_is_not_there_yet(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "baseline.json").unlink()
    facts, said = explained(folder, capsys, POLICY + DETECT + RESPOND)
    assert facts["alarms"]["problem"].startswith("detect.baseline: cannot read 'baseline.json'")
    assert facts["alarms"]["baseline"] is None
    assert said["baseline"].endswith("no guard starts without it")
    assert "outside" not in said
    assert said["at 1.5"] == "at most 1 in 31,622: answered by 'label'"


def test_odds_are_never_better_than_the_chance() -> None:
    for level in (0.1, 1e-2, 3e-3, 1e-4, 1e-6):
        for at in (0.1, 0.5, 0.8, 1.0, 1.3, 1.5):
            probability = chance(at, level)
            said = odds(probability)
            if said.startswith("1 in "):
                assert 1 / int(said[5:].replace(",", "")) >= probability * (1 - 1e-8)
    assert [odds(p) for p in (1.0, 1e-4, 1e-9, 1e-12)] == ["1 in 1", "1 in 10,000", "1 in 1,000,000,000", "1e-12"]


BUDGETS = """
[budgets.credential]
bits = 1000
rho = 2.5
queries = { per = "1h", max = 5000 }
on_exhausted = "label"
[budgets.model]
queries = { per = "1d", max = 10 }
on_exhausted = "label"
[budgets.global]
bits = 10
"""
LEDGERS = {
    'url = "memory:"': ("memory, gone with the process", ("memory", False)),
    'url = "sqlite:///b.db"': ("SQLite, for processes on this machine; durable", ("sqlite", True)),
    'url = "redis://h/0"': ("Redis, for processes on many machines; durable", ("redis", True)),
    'url = "redis://h/0"\ndurability = "best-effort"': (
        "Redis, for processes on many machines; best-effort: what the server forgets can be spent again",
        ("redis", False),
    ),
}


def test_budgets(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts, said = explained(folder, capsys, POLICY + BUDGETS.replace("rho = 2.5\n", ""))
    assert facts["budgets"]["credential"] == {
        "who": "each credential",
        "bits": 1000.0,
        "share_of_model": None,
        "answers": {"normal": 122, "label": 500},  # of log2 286 bits and 2
        "rho": None,
        "rows": {"max": 5000, "per": "1h"},
        "on_exhausted": "label",
    }
    assert said["model"] == "all who ask this model: 10 rows in 1d; then answered by 'label'"
    assert said["global"].endswith("(whole answers: 1 by 'normal'); then refused")
    assert said["credential"].endswith("then answered by 'label', while that can be paid for")


def test_a_budget_of_rho_is_no_epsilon(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    noise = '{kind = "gaussian", sigma = 0.1, sensitivity = 0.1}, {kind = "project"}'
    keyed = POLICY.replace("schema = 1", 'schema = 1\n[key]\nsource = "env:KEY"')
    keyed = keyed.replace('{kind = "types", n = 10}', noise).replace('{kind = "label_only"}', noise)
    _, said = explained(folder, capsys, keyed + BUDGETS)
    assert "rho 2.5 (zCDP) over their life" in said["credential"]
    assert not [line for line in said.values() if "epsilon" in line]


@pytest.mark.parametrize("rules", LEDGERS)
def test_ledgers(rules: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sentence, (backend, durable) = LEDGERS[rules]
    text = POLICY + BUDGETS.replace("rho = 2.5\n", "") + f"[ledger]\n{rules}\n"
    facts, said = explained(folder, capsys, text)
    assert facts["ledger"] == {"backend": backend, "durable": durable, "on_failure": "deny"}
    assert said["ledger"].startswith(sentence)
    assert ("what no lease covers is refused" in said["ledger"]) == (backend != "memory")
    _, said = explained(folder, capsys, text + 'on_failure = "allow"\n')
    assert ("answered, and charged later" in said["ledger"]) == (backend != "memory")


def test_it_fits_a_terminal(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "policy.toml").write_text(POLICY + DETECT + RESPOND + BUDGETS.replace("rho = 2.5\n", ""))
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["explain", str(folder / "policy.toml"), "--classes", "4"]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80
