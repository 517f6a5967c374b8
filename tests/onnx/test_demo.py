"""The demo as its user runs it, with a small budget: real model, real files, every section."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hardening_onnx.demo import files, measure, models, watch

from hardening.cli import main
from hardening.errors import ModelError

TIERS = ["normal", "suspect", "label"]


#: The demo with a clock that stands, so that on a busy machine it asks no less than on others: copies from fewer
#: answers are too much alike to tell apart.
UNHURRIED = """
import os, sys, types
os.environ["OPENBLAS_NUM_THREADS"] = "1"  # or it would run in another process, with a clock that goes
from hardening.cli import main
from hardening_onnx.demo import questions
questions.time = types.SimpleNamespace(monotonic=lambda: 0.0)
sys.exit(main())
"""


def demo(*arguments: str, program: tuple[str, str] = ("-m", "hardening")) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *program, "demo", *arguments]
    environment = os.environ | {"COLUMNS": "100"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.fixture(scope="module")
def told() -> dict[str, Any]:
    result = demo("--seconds", "10", "--json", "--seed", "3", program=("-c", UNHURRIED))
    assert result.returncode == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_setting(told: dict[str, Any]) -> None:
    setting = told["setting"]
    assert setting["classes"] == 214
    assert setting["seed"] == 3
    assert 64 <= setting["asked"] <= 400
    assert setting["held_out"] >= 50


def test_answers_and_tiers(told: dict[str, Any]) -> None:
    assert len(told["answers"]) >= 3
    for example in told["answers"]:
        assert list(example["answers"]) == ["undefended", *TIERS]
        best = {row[0][0] for row in example["answers"].values()}
        assert len(best) == 1, "every tier keeps the best class"
        assert example["answers"]["label"] == [[best.pop(), 1.0]]
        for _, score in example["answers"]["normal"]:
            assert score * 20 == pytest.approx(round(score * 20), abs=1e-5)
    bits = [told["tiers"][tier]["bits_per_answer"] for tier in TIERS]
    assert bits == sorted(bits, reverse=True)
    assert bits[-1] == pytest.approx(math.log2(214))
    for tier in told["tiers"].values():
        assert tier["top1_kept"] == 1.0
        assert 0 < tier["mean_l1"] < 1
        assert "epsilon" not in tier["parameters"]


def test_overhead_is_measured_on_both_models(told: dict[str, Any]) -> None:
    assert [cost["what"] for cost in told["overhead"]] == ["magika", "tiny perceptron"]
    for cost in told["overhead"]:
        low, high = cost["interval"]
        assert 0 < low <= cost["ratio"] <= high
        assert cost["bare_us"] > 0


def test_attacks(told: dict[str, Any]) -> None:
    for attacks in (told["extraction"], told["equations"]):
        assert list(attacks) == ["undefended", *TIERS]
        for row in attacks.values():
            for found in row:
                low, high = found["interval"]
                assert 0 <= low <= found["fidelity"] == max(found["by_view"].values()) <= high <= 1
    for row in zip(*(told["extraction"][tier] for tier in ["undefended", *TIERS]), strict=True):
        assert len({found["by_view"]["labels"] for found in row}) == 1, "labels are the floor"
    first, *_, last = told["extraction"]["undefended"]
    assert first["interval"][1] < last["fidelity"]
    assert told["equations"]["undefended"][0]["fidelity"] > 0.99
    for tier in TIERS:
        assert told["equations"][tier][0]["interval"][1] < 0.6


def test_repeats(told: dict[str, Any]) -> None:
    repeats = told["repeats"]
    assert repeats["times"] == [1, 4, 16, 64]
    # Of 1800 free errors each: outside with chance 1e-12, by the F distribution of the ratio of their squares.
    assert repeats["fresh"][0] / repeats["fresh"][-1] == pytest.approx(8, rel=0.18)
    assert repeats["keyed"][0] / repeats["keyed"][-1] == pytest.approx(1, abs=1e-5)


def test_alarms(told: dict[str, Any]) -> None:
    alarms = told["alarms"]
    assert alarms["baseline"]["levels"]["1.0"] == pytest.approx(1e-4)
    assert "false_alarm = 1e-4" in alarms["policy"]
    held = alarms["baseline"]["held_out"]
    assert held["clients"] >= 100
    assert held["flagged"] <= 2
    assert len(alarms["ordinary"]) == 60
    # Files differ between machines, and a share of ordinary clients is outside of what the alarms promise for.
    assert sum(client["flagged"] is not None for client in alarms["ordinary"]) <= 3
    thieves = {client["client"]: client for client in alarms["thieves"]}
    for name in ("random bytes", "spliced chunks"):
        assert thieves[name]["flagged"]
        assert thieves[name]["answers"]["suspect"]
    assert thieves["spliced chunks"]["refused"]
    assert thieves["real files only"]["flagged"] is None, "the demo says that this thief is not seen"
    for client in (*alarms["ordinary"], *alarms["thieves"]):
        assert set(client["answers"]) <= set(TIERS)
        assert client["questions"] == sum(client["answers"].values())
        assert (client["flagged"] is None) == (client["suspicion"] < 1)
        assert client["suspicion"] >= 2 or not client["refused"]
        if client["flagged"] is None:
            assert list(client["answers"]) == ["normal"]
        else:
            assert client["answers"]["normal"] >= client["flagged"]


def test_text_fits_and_ends_with_the_next_steps() -> None:
    result = demo("--seconds", "5")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 100
    for step in ("init model.onnx -o policy.toml", "check policy.toml", "explain policy.toml", "serve model.onnx"):
        assert any(f"hardening {step}" in line for line in lines[-10:]), step
    assert "epsilon" not in result.stdout
    assert "Traceback" not in result.stderr


def test_wrong_options(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["demo", "--seconds", "1"]) == 2
    assert "--seconds: must be from 5 to 3600, not 1" in capsys.readouterr().err
    assert main(["demo", "--seed", "-1"]) == 2
    assert "--seed: must not be negative" in capsys.readouterr().err


def test_without_magika_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None)
    with pytest.raises(ModelError, match=r"pip install 'hardening\[demo\]'"):
        models.find_magika()


def test_files_are_the_same_for_the_same_seed_and_folders_are_not_shared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In folders that nobody else writes to; those of this machine may change from one look to the next."""
    assert all(root.is_dir() for root in files.roots())
    rng = np.random.default_rng(0)
    for folder in range(20):
        (tmp_path / str(folder)).mkdir()
        for kind in range(16):
            (tmp_path / str(folder) / f"file.{kind}").write_bytes(rng.bytes(300))
    monkeypatch.setattr(files, "roots", lambda: [tmp_path])
    one, two, other = files.collect(5, 60, 20), files.collect(5, 60, 20), files.collect(6, 60, 20)
    assert (len(one.pool), len(one.held_out)) == (60, 16)  # one of each kind at most is held out
    assert one.pool == two.pool
    assert np.array_equal(one.held_out_inputs, two.held_out_inputs)
    assert one.pool != other.pool
    assert not {p.parent for p in one.pool} & {p.parent for p in one.held_out}
    assert all(tmp_path in path.parents for path in one.pool)


def test_encoding_matches_the_documented_windows(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(b"\n  " + b"ab" * 600 + b"\n\n")
    row = files.read(file)
    assert row is not None
    assert bytes(row[:1024].astype(np.uint8)) == b"ab" * 512
    assert bytes(row[1024:].astype(np.uint8)) == b"ab" * 512
    short = files.encode(b"  xyz", b"xyz  ")
    assert bytes(short[:3].astype(np.uint8)) == b"xyz" == bytes(short[-3:].astype(np.uint8))
    assert (short[3:-3] == files.PAD).all()
    (tmp_path / "small").write_bytes(b"x" * 20)
    assert files.read(tmp_path / "small") is None
    assert files.read(tmp_path / "absent") is None


def test_median_interval_covers_the_median() -> None:
    rng = np.random.default_rng(0)
    intervals = [measure.median_interval(rng.exponential(size=101).tolist()) for _ in range(1000)]
    assert 0.93 < np.mean([low <= math.log(2) <= high for low, high in intervals]) < 0.98


def test_overhead_pairs_the_same_questions() -> None:
    asked: dict[str, list[int]] = {"bare": [], "hardened": []}
    found = measure.overhead("counting", asked["bare"].append, asked["hardened"].append, range(7), 30)
    assert asked["bare"] == asked["hardened"]
    assert found.pairs == 30


def test_ordinary_clients_send_files_of_some_kinds() -> None:
    kinds = [".a", ".b", ".c", ".d"] * 30
    rng = np.random.default_rng(0)
    sent = [watch.ordinary_files(kinds, 40, rng) for _ in range(50)]
    assert all(len(set(chosen)) == 40 for chosen in sent)
    assert {len({kinds[i] for i in chosen}) for chosen in sent} == {2}
    assert len({frozenset(kinds[i] for i in chosen) for chosen in sent}) == 6
    assert len(watch.ordinary_files(kinds, 100, rng)) == 100  # more than there are: some are sent again


@pytest.mark.deep
def test_at_full_length_on_a_machine_without_kernels(tmp_path: Path) -> None:
    environment = os.environ | {"COLUMNS": "80", "HARDENING_CACHE": str(tmp_path)}
    command = [sys.executable, "-m", "hardening", "demo"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith(f"compiling kernels, about ten seconds, this once: they are kept in '{tmp_path}")
    assert "Asking the same question again" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 81  # the one line of Python is not broken
    assert any(tmp_path.rglob("*.nbi"))
