"""A baseline from a log: what it holds, how it is tried, and the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hardening.cli import main
from hardening.clients import Baseline
from hardening.clients.baseline import EDGES, calibrate
from hardening.clients.evidence import scores
from hardening.clients.log import read_log, records
from hardening.clients.means import dispersion
from hardening.clients.window import interval
from hardening.errors import ConfigError
from hardening.kernels.layout import LABEL_BINS, LANES, Lane
from tests.clients import crowd


def test_intervals_against_known_answers() -> None:
    """Clopper & Pearson: 0 of 100 is at most 3.62 %, 5 of 100 between 1.64 % and 11.28 %, 100 of 100 the mirror."""
    assert interval(0, 100) == (0.0, pytest.approx(0.036217, abs=1e-6))
    assert interval(5, 100) == (pytest.approx(0.016432, abs=1e-6), pytest.approx(0.112835, abs=1e-6))
    assert interval(100, 100) == (pytest.approx(1 - 0.036217, abs=1e-6), 1.0)


def test_thresholds_and_means_are_those_of_the_log() -> None:
    logs = crowd.digits().logs(120, 200, 11)
    baseline = calibrate(logs, "p", 0.9)
    assert (baseline.output, baseline.quantile) == ("p", 0.9)
    assert 40 < baseline.clients < 80
    assert baseline.held_out.clients == 120 - baseline.clients or baseline.held_out.clients > 30
    every = np.concatenate([log.entropy[log.label == 3] for log in logs.values()])
    *edges, _ = baseline.thresholds[3]
    assert edges == sorted(edges)
    for edge, quantile in zip(edges, EDGES, strict=True):
        assert (every <= edge).mean() == pytest.approx(quantile, abs=0.05)
    assert baseline.thresholds[LABEL_BINS - 1] == baseline.thresholds[LABEL_BINS - 2], "no such label: those of all"
    # Nearly every client stays below, and the means are no larger than that takes.
    own = np.array([scores(baseline.numbers(), log.firsts()).mean(axis=0) for log in logs.values()])
    for lane in (Lane.HIGH, Lane.TAIL, Lane.LOW, Lane.BOUNDARY):
        mean = baseline.means[8][lane]
        assert (own[:, lane] > mean).mean() < 0.25
        assert baseline.average[lane] < mean < own[:, lane].max() + 0.05
    assert baseline.average[Lane.DUPLICATE] == 0
    assert baseline.means[8][Lane.DUPLICATE] >= 0.01


def test_held_out_clients_that_are_other_people_are_found_outside() -> None:
    """Thieves among the held-out half do not move the baseline; the check counts them."""
    rng = np.random.default_rng(0)
    from hardening.clients.baseline import _held_out

    logs = dict(crowd.digits().logs(120, 100, 12))
    names = [n for n in logs if _held_out(n)][:10]
    clean = calibrate(logs)
    for name in names:
        logs[name] = crowd.as_log(crowd.digits().summed_up(crowd.digits().ask("uniform", rng, 100)))
    mixed = calibrate(logs)
    assert mixed.means == clean.means
    assert mixed.held_out.outside >= clean.held_out.outside + 9
    assert mixed.held_out.flagged(1e-3) >= 9
    assert mixed.held_out.share_outside()[0] > 0.04


def test_too_small_a_log() -> None:
    rng = np.random.default_rng(0)
    few = {f"c{i}": crowd.as_log(crowd.digits().honest.client(rng, 50, "browses")) for i in range(30)}
    with pytest.raises(ConfigError, match="log: has 30 clients with at least 32 different questions, of 30 in all"):
        calibrate(few)
    with pytest.raises(ConfigError, match="has 0 clients with at least 32 different questions, of 30 in all"):
        calibrate(crowd.digits().logs(30, 20, 11))


def lines(clients: int, rows: int) -> list[str]:
    """A log as a guard can write it."""
    rng, out = np.random.default_rng(8), []
    for i in range(clients):
        asked = crowd.digits().honest.client(rng, rows)
        out += records(f"client-{i}", asked.rows.T, asked.keys, np.zeros(rows))
    return out


def test_a_log_survives_its_lines() -> None:
    rng = np.random.default_rng(8)
    asked = crowd.digits().honest.client(rng, 50)
    (log,) = read_log([*records("a", asked.rows.T, asked.keys, np.arange(50) == 3), "\n"], crowd.MOST).values()
    expected = crowd.as_log(asked, np.arange(50) == 3)
    for name in ("entropy", "margin", "label", "cell", "question", "duplicate"):
        assert np.array_equal(getattr(log, name), getattr(expected, name)), name
    (bare,) = read_log(records("a", asked.rows.T)).values()
    assert not bare.question.any()
    assert len(bare.firsts().entropy) > 1


GOOD = {"client": "a", "entropy": 0.5, "label": 1, "cell": 3, "margin": 0.5}


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("nonsense", "line 2: must be a JSON object"),
        ("[1]", "line 2: must be a JSON object"),
        (json.dumps(GOOD | {"entropy": -1}), "line 2.entropy: must be a number that is not negative"),
        (json.dumps(GOOD | {"entropy": "much"}), "line 2.entropy: must be a number"),
        (json.dumps(GOOD | {"margin": float("nan")}), "line 2.margin: must be a number"),
        (json.dumps(GOOD | {"label": 1.5}), "line 2.label: must be a whole number"),
        (json.dumps(GOOD | {"label": True}), "line 2.label: must be a whole number"),
        (json.dumps(GOOD | {"duplicate": 1}), "line 2.duplicate: must be true or false"),
        (json.dumps({"client": "a"}), "line 2.entropy: is missing: a number that is not negative"),
        (json.dumps(GOOD | {"shoe": 1}), "line 2.shoe: unknown key; known: client, entropy"),
    ],
)
def test_lines_that_are_wrong(line: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_log([json.dumps(GOOD), line])
    assert problem in str(caught.value)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("log") / "benign.jsonl"
    path.write_text("\n".join(lines(80, 130)) + "\n")
    return path


def test_the_command(log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    out = tmp_path / "baseline.json"
    arguments = ["calibrate", "--benign", str(log), "--classes", "10", "-o", str(out), "--output", "p"]
    assert main([*arguments, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    baseline = Baseline.from_json(out.read_text())
    assert facts["clients"] == baseline.clients
    assert facts["held_out"]["outside_interval"] == list(baseline.held_out.share_outside())
    assert facts["levels"]["0.5"] == pytest.approx(1e-2)
    assert facts["window"]["windows"] == baseline.window.windows > 0
    assert facts["window"]["held_out"]["windows"] == baseline.window.tried.windows > 0
    assert facts["window"]["held_out"]["interval"] == list(baseline.window.tried.rate())
    assert facts["window"]["level"] == baseline.window.level > 0.001
    assert facts["window"]["reach"]["high"] == baseline.window.reach[0]
    assert (baseline.output, baseline.classes) == ("p", 10)
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "entropy high for its label" in text
    assert "suspicion 1.0: an honest client inside the baseline ever gets there with chance 0.0001 at most" in text
    said = " ".join(text.split())
    assert "of all, with 95 % confidence" in said
    assert "of ordinary ones may stand out (so few as" in said
    assert max(map(len, text.splitlines())) <= 100


def test_a_baseline_that_does_not_hold_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Half of the clients are of another kind, in the half that is held out."""
    from hardening.clients.baseline import _held_out

    rng, out = np.random.default_rng(8), []
    for i in range(80):
        made = (
            crowd.digits().summed_up(crowd.digits().ask("foreign", rng, 120))
            if _held_out(f"c{i}")
            else crowd.digits().honest.client(rng, 120, "browses")
        )
        out += records(f"c{i}", made.rows.T, made.keys)
    (tmp_path / "log").write_text("\n".join(out))
    arguments = ["calibrate", "--benign", str(tmp_path / "log"), "-o", str(tmp_path / "b.json"), "--json"]
    assert main(arguments) == 1
    facts = json.loads(capsys.readouterr().out)
    assert facts["held_out"]["flagged"] > 20
    assert facts["window"]["held_out"]["beyond"] > 20


def test_mistakes(log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", "--benign", str(tmp_path / "absent")]) == 2
    assert "--benign: cannot read" in capsys.readouterr().err
    assert main(["calibrate", "--benign", str(log), "-o", str(tmp_path / "no" / "where")]) == 2
    assert "--out: cannot write" in capsys.readouterr().err
    (tmp_path / "short").write_text(json.dumps(GOOD))
    assert main(["calibrate", "--benign", str(tmp_path / "short")]) == 2
    assert "has 0 clients with at least 32 different questions" in capsys.readouterr().err
    (tmp_path / "cut").write_text(json.dumps(GOOD) + "\n" + json.dumps(GOOD)[:-9])
    assert main(["calibrate", "--benign", str(tmp_path / "cut")]) == 2
    assert f"--benign: {tmp_path / 'cut'}, line 2: must be a JSON object with client, " in capsys.readouterr().err
    assert main(["calibrate", "--benign", str(log), "--classes", "5", "--output", "p"]) == 2
    assert "--classes: 5, but the log has the label 9" in capsys.readouterr().err
    assert main(["calibrate", "--benign", str(log), "-o", str(tmp_path / "out")]) == 0
    assert "no guard takes a baseline of no output" in capsys.readouterr().err
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    assert main(["calibrate", "--benign", str(tmp_path / "bytes")]) == 2
    assert "it is not text in UTF-8" in capsys.readouterr().err
    for wrong in ("0", "1", "many"):
        with pytest.raises(SystemExit):
            main(["calibrate", "--benign", str(log), "--false-alarm", wrong])
        assert "must be a number between 0 and 1" in capsys.readouterr().err


def test_scores_too_rare_to_tell_are_taken_for_coins() -> None:
    """Two ones in ten thousand rows say nothing of how one varies who is no ordinary client; labels of a few do."""
    rng = np.random.default_rng(0)
    scored = [np.zeros((500, LANES)) for _ in range(20)]
    for rows in scored:
        rows[:, Lane.HIGH] = rng.random(500) < 0.3
        rows[:, Lane.COLLAPSE] = 0.3 + 0.05 * rng.random(500)
    scored[0][7, Lane.DUPLICATE] = scored[3][9, Lane.DUPLICATE] = 1.0
    found = dispersion(scored)
    assert found[Lane.DUPLICATE] == found[Lane.TAIL] == 1.0
    assert found[Lane.HIGH] == pytest.approx(1.0, abs=0.02)
    assert found[Lane.COLLAPSE] < 0.1
