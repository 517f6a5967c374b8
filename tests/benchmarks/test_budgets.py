"""Budgets are read strictly, and each belongs to one benchmark."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import budgets, table
from benchmarks.paired import Ratio
from benchmarks.table import Result

ROOT = Path(__file__).parent.parent.parent
GOOD = '[a]\ncompare = "x / y"\nat_most = 1\nwhy = "Because."\n'


def written(folder: Path, text: str) -> Path:
    path = folder / "budgets.toml"
    path.write_text(text)
    return path


def test_a_budget_says_what_is_compared(tmp_path: Path) -> None:
    budget = budgets.load(written(tmp_path, GOOD))["a"]
    assert (budget.subject, budget.base, budget.at_most) == ("x", "y", 1.0)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("at_most", "atmost", "a: a budget has the keys at_most, compare, why"),
        ('"x / y"', '"x"', "a.compare: must name two variants"),
        ("= 1", "= 0", "a.at_most: must be a ratio above 0"),
        ("= 1", "= true", "a.at_most: must be a ratio above 0"),
        ("= 1", "= nan", "a.at_most: must be a ratio above 0"),
        ("= 1", "= 1\nnarrow = 0", "a.narrow: must be a ratio above 0"),
        ("Because.", "", "a.why: must be a sentence"),
        ("[a]", "b = 1\n[a]", "b: a budget has the keys"),
    ],
)
def test_a_wrong_budget_is_named(tmp_path: Path, before: str, after: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        budgets.load(written(tmp_path, GOOD.replace(before, after)))


def test_a_budget_may_be_another_on_machines_with_narrow_vectors(tmp_path: Path) -> None:
    one, two = (budgets.load(written(tmp_path, GOOD.replace("= 1", m)))["a"] for m in ("= 1", "= 1\nnarrow = 2"))
    wide, narrow = "+avx2,+avx512f", "+avx2,-avx512f"
    assert [budgets.allowed(b, f) for b in (one, two) for f in (wide, narrow)] == [1.0, 1.0, 1.0, 2.0]
    assert budgets.allowed(two, narrow, 0.1) == pytest.approx(2.2)


def test_rows_without_budget_and_budgets_without_row_are_named(tmp_path: Path) -> None:
    known = budgets.load(written(tmp_path, GOOD))
    assert budgets.unmatched(["a"], known) == []
    assert budgets.unmatched([], known) == ["budget 'a' has no benchmark"]
    assert budgets.unmatched(["a", "b", "a"], known) == [
        "benchmark 'b' has no budget",
        "'a' names more than one benchmark",
    ]


def test_every_benchmark_has_its_budget() -> None:
    command = [sys.executable, "-m", "pytest", "benchmarks", "--collect-only", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(f"[{row}]" in done.stdout or f"test_{row}".replace("-", "_") in done.stdout for row in budgets.load())


def test_the_table_names_row_ratio_interval_budget_and_verdict() -> None:
    ratio = Ratio(1.234, 1.2, 1.3, 0.99, 50)
    result = Result(
        "mlp", "call", "ours", "bare", ratio, 1.1, "exceeded", {"ours": ratio}, {}, {"ours": 2e-6, "bare": 1}
    )
    text = table.render([result], colour=False)
    for part in ("mlp", "call: ours / bare", "1.234", "1.200 - 1.300", "1.100", "exceeded", "2 µs", "1 s"):
        assert part in text
    assert "\x1b" not in text
