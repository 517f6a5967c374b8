"""The `race` fixture, the gate and the table: pytest hooks that benchmarks/conftest.py takes over.

pytest-benchmark is the harness: it runs the rounds and keeps their statistics. Its clock here is a `Stopwatch` that
only runs while the judged variant does, so its statistics and JSON are about that variant, in seconds a call, although
every round also runs all others. What decides is `paired`.
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pytest_benchmark.logger import PytestBenchmarkWarning

from benchmarks import budgets, table
from benchmarks.paired import AGAIN, Interleaved, Ratio, Variant, decide
from benchmarks.table import Result

#: By form: seconds that a row may take if it is slow, fewest and most rounds, and `budgets.allowed`'s slack.
FORMS = {"long": (10.0, 11, 401, 0.0), "short": (2.0, 9, 101, 0.1)}
RESULTS = pytest.StashKey[list[Result]]()
BUDGETS = pytest.StashKey[dict[str, budgets.Budget]]()


class Stopwatch:
    """A clock, in seconds, that stands still but for the time it is told to add."""

    def __init__(self) -> None:
        self.elapsed = 0.0

    def __call__(self) -> float:
        return self.elapsed


STOPWATCH = Stopwatch()


@functools.cache
def cpu_features() -> str:
    """What numba compiles for: the machine's, or what NUMBA_CPU_NAME and NUMBA_CPU_FEATURES say."""
    from llvmlite import binding
    from numba import config

    if config.CPU_NAME:
        return str(config.CPU_FEATURES or "")
    return str(binding.get_host_cpu_features().flatten())


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("budgets")
    group.addoption("--short", action="store_true", help="fewer rounds, and no row that takes minutes")
    group.addoption("--budgets", type=Path, default=budgets.BUDGETS, help="allowed ratios (default: %(default)s)")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[RESULTS] = []
    config.addinivalue_line("filterwarnings", "ignore::pytest_benchmark.logger.PytestBenchmarkWarning")
    try:
        config.stash[BUDGETS] = budgets.load(config.getoption("--budgets"))
    except (OSError, ValueError) as problem:
        raise pytest.UsageError(f"{config.getoption('--budgets')}: {problem}") from None


def pytest_sessionstart() -> None:
    # The harness warns of rows that failed before they were measured; as an error that would hide why they did.
    warnings.simplefilter("ignore", PytestBenchmarkWarning)


def row_of(item: pytest.Item) -> str:
    """The row that a benchmark measures: the name of its parameters, or its own."""
    callspec = getattr(item, "callspec", None)
    return str(callspec.id) if callspec else item.name.removeprefix("test_").replace("_", "-")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    races = [item for item in items if "race" in getattr(item, "fixturenames", ())]
    known = config.stash[BUDGETS]
    rows = [row_of(item) for item in races]
    files = {item.path for item in items}
    if not {path for file in files for path in file.parent.glob("bench_*.py")} <= files:
        known = {row: budget for row, budget in known.items() if row in rows}  # only a part was asked for
    problems = budgets.unmatched(rows, known)
    if problems:
        raise pytest.UsageError(f"{config.getoption('--budgets')}: {'; '.join(problems)}")
    for item in races:
        item.add_marker(pytest.mark.benchmark(timer=STOPWATCH))
    if config.getoption("--short"):
        deep = [item for item in items if item.get_closest_marker("deep")]
        items[:] = [item for item in items if item not in deep]
        config.hook.pytest_deselected(items=deep)


@dataclasses.dataclass(frozen=True)
class Race:
    """Runs one row. Made by the `race` fixture."""

    row: str
    group: str
    budget: budgets.Budget
    form: str
    benchmark: Any
    results: list[Result]

    def __call__(
        self,
        variants: Mapping[str, Variant],
        fresh: Callable[[np.random.Generator], Any],
        *,
        leanest: str | None = None,
        rounds: int | None = None,
    ) -> None:
        """Measure `variants`, and fail if the budget is exceeded.

        Args:
            variants: by name; among them the two that the budget compares.
            fresh: makes the input of one call.
            leanest: a second base that ratios are reported against.
            rounds: instead of as many as the form's time allows.
        """
        for name in (self.budget.subject, self.budget.base):
            if name not in variants:
                pytest.fail(f"{self.row}: the budget compares {name!r}; measured are: {', '.join(variants)}", False)
        turns = Interleaved(variants, fresh)
        cost = turns.calibrate(self.budget.base)
        seconds, fewest, most, slack = FORMS[self.form]
        at_most = budgets.allowed(self.budget, cpu_features(), slack)
        rounds = rounds or max(fewest, min(most, int(seconds / cost)))
        self.benchmark.pedantic(self._round, args=(turns,), rounds=rounds)
        if self.benchmark.disabled:
            return
        first = turns.ratio(self.budget.subject, self.budget.base)
        verdict, ratio = decide(first, at_most, lambda: self._again(turns, AGAIN * rounds))
        result = self._result(turns, ratio, verdict, at_most, leanest)
        self.results.append(result)
        self.benchmark.extra_info.update(dataclasses.asdict(result))
        if verdict == "exceeded":
            pytest.fail(
                f"{self.row}: {self.budget.compare} is {ratio} over {ratio.rounds} rounds (first measurement {first}), "
                f"the budget is {at_most:g}. {self.budget.why}",
                False,
            )

    def _round(self, turns: Interleaved) -> None:
        turns.round()
        STOPWATCH.elapsed += turns.times[self.budget.subject][-1]

    def _again(self, turns: Interleaved, rounds: int) -> Ratio:
        turns.times = {name: [] for name in turns.times}
        for _ in range(rounds):
            turns.round()
        return turns.ratio(self.budget.subject, self.budget.base)

    def _result(self, turns: Interleaved, ratio: Ratio, verdict: str, at_most: float, leanest: str | None) -> Result:
        base = self.budget.base
        return Result(
            row=self.row,
            group=self.group,
            subject=self.budget.subject,
            base=base,
            ratio=ratio,
            budget=at_most,
            verdict=verdict,
            variants={name: turns.ratio(name, base) for name in turns.times if name != base},
            leanest={f"hardened / {leanest}": turns.ratio("hardened", leanest)} if leanest else {},
            seconds={name: statistics.median(times) for name, times in turns.times.items()},
        )


@pytest.fixture
def race(request: pytest.FixtureRequest, benchmark: Any) -> Race:
    """Call it with the variants of this benchmark's row."""
    config, row = request.config, row_of(request.node)
    return Race(
        row,
        request.path.stem.removeprefix("bench_"),
        config.stash[BUDGETS][row],
        "short" if config.getoption("--short") else "long",
        benchmark,
        config.stash[RESULTS],
    )


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    results = config.stash[RESULTS]
    if results:
        terminalreporter.section("budgets")
        terminalreporter.write_line(table.render(results, terminalreporter.hasmarkup))
