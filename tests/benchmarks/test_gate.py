"""The gate passes, fails and refuses, in benchmark sessions of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
BENCHMARK = """
import pytest

def test_adding(race):
    race({"long": lambda n: sum(range(20 * n)), "short": lambda n: sum(range(n))}, lambda rng: 200 + rng.integers(20))

@pytest.mark.deep
def test_deep(race):
    race({"long": lambda n: None, "short": lambda n: None}, lambda rng: None)
"""
CONFTEST = (ROOT / "benchmarks" / "conftest.py").read_text()
SETTINGS = "[pytest]\npython_files = bench_*.py\nfilterwarnings = error\nmarkers = deep: long\n"


def budget(row: str, at_most: float, compare: str = "long / short") -> str:
    return f'[{row}]\ncompare = "{compare}"\nat_most = {at_most}\nwhy = "It is only a test."\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "bench_adding.py").write_text(BENCHMARK)
    (tmp_path / "pytest.ini").write_text(SETTINGS)
    return tmp_path


def session(folder: Path, budgets: str, *options: str) -> subprocess.CompletedProcess[str]:
    (folder / "budgets.toml").write_text(budgets)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--short",
        "--budgets=budgets.toml",
        "--benchmark-json=out.json",
        *options,
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)


def test_a_budget_that_cannot_be_met_fails_and_says_by_how_much(folder: Path) -> None:
    done = session(folder, budget("adding", 0.001) + budget("deep", 9))
    assert done.returncode == 1, done.stdout + done.stderr
    message = next(line for line in done.stdout.splitlines() if line.startswith("adding: "))
    assert message.startswith("adding: long / short is ")
    assert "the budget is 0.0011. It is only a test." in message  # with a tenth of slack in the short form
    low, high = message.split("[")[1].split("]")[0].split(", ")
    assert 0.001 < float(low) <= float(high)
    (measured,) = json.loads((folder / "out.json").read_text())["benchmarks"]
    assert measured["extra_info"]["verdict"] == "exceeded"


def test_a_budget_that_is_met_passes_and_the_result_is_in_the_file(folder: Path) -> None:
    done = session(folder, budget("adding", 1e6) + budget("deep", 9))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "adding: long / short" in done.stdout
    (measured,) = json.loads((folder / "out.json").read_text())["benchmarks"]
    found = measured["extra_info"]
    assert found["row"] == "adding"
    assert found["verdict"] == "met"
    assert found["budget"] == pytest.approx(1.1e6)
    assert found["ratio"]["low"] <= found["ratio"]["median"] <= found["ratio"]["high"]
    # The harness saw every round, and the judged variant alone.
    assert measured["stats"]["rounds"] == found["ratio"]["rounds"]
    assert measured["stats"]["median"] == pytest.approx(found["seconds"]["long"])


def test_the_short_form_leaves_deep_rows_out(folder: Path) -> None:
    assert "1 passed, 1 deselected" in session(folder, budget("adding", 1e6) + budget("deep", 9)).stdout


@pytest.mark.parametrize(
    ("budgets", "message"),
    [
        (budget("adding", 9), "benchmark 'deep' has no budget"),
        (budget("adding", 9) + budget("deep", 9) + budget("gone", 9), "budget 'gone' has no benchmark"),
        (budget("adding", -1) + budget("deep", 9), "adding.at_most: must be a ratio above 0, not -1"),
    ],
)
def test_budgets_and_benchmarks_that_do_not_match_are_refused(folder: Path, budgets: str, message: str) -> None:
    done = session(folder, budgets)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert message in done.stderr


def test_a_budget_for_a_variant_that_is_not_measured_fails(folder: Path) -> None:
    done = session(folder, budget("adding", 9, "longer / short") + budget("deep", 9))
    assert done.returncode == 1
    assert "adding: the budget compares 'longer'; measured are: long, short" in done.stdout
