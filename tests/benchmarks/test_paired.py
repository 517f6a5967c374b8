"""The statistics of paired measurement, on given timings and with a clock of its own."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from benchmarks.paired import AGAIN, MOST_CALLS, Interleaved, Ratio, decide, median_interval, ratio, shown


def test_median_interval_is_that_of_the_binomial() -> None:
    # For n = 10 the second smallest and largest cover the median with 1 - 2 * 11 / 1024.
    low, high, reached = median_interval([*range(10)], 0.95)
    assert (low, high) == (1, 8)
    assert math.isclose(reached, 1 - 22 / 1024)


def test_median_interval_does_not_depend_on_the_order() -> None:
    values = np.random.default_rng(0).normal(size=101).tolist()
    assert median_interval(values) == median_interval(sorted(values))


def test_few_values_give_their_range_and_admit_how_little_it_covers() -> None:
    assert median_interval([2.0, 1.0, 3.0], 0.99) == (1.0, 3.0, 0.75)
    assert median_interval([2.0], 0.99) == (2.0, 2.0, 0.0)
    with pytest.raises(ValueError, match="at least one value"):
        median_interval([])


@pytest.mark.parametrize("n", [8, 9, 25, 101])
def test_median_interval_covers_as_often_as_it_says(n: int) -> None:
    draws = np.random.default_rng(n).exponential(size=(4000, n))
    covered, reached = 0, 0.0
    for row in draws:
        low, high, reached = median_interval(row.tolist(), 0.95)
        covered += low <= math.log(2) <= high
    assert reached >= 0.95
    # Five standard deviations of 4000 Bernoulli trials.
    assert abs(covered / 4000 - reached) < 5 * math.sqrt(reached * (1 - reached) / 4000) + 1e-9


def test_drift_that_slows_whole_rounds_cancels() -> None:
    drift = np.random.default_rng(0).lognormal(0.0, 2.0, size=51)
    measured = ratio((1.5 * drift).tolist(), drift.tolist())
    assert math.isclose(measured.median, 1.5)
    assert math.isclose(measured.low, measured.high)


def test_rounds_have_to_match() -> None:
    with pytest.raises(ValueError, match="3 rounds, but base has 2"):
        ratio([1.0, 2.0, 3.0], [1.0, 2.0])


def of(low: float, high: float) -> Ratio:
    return Ratio((low + high) / 2, low, high, 0.99, 100)


def never() -> Ratio:
    raise AssertionError("a budget that is not exceeded needs no second measurement")


def test_a_budget_is_met_or_open_without_a_second_measurement() -> None:
    assert decide(of(0.8, 0.9), 1.0, never) == ("met", of(0.8, 0.9))
    assert decide(of(0.9, 1.1), 1.0, never) == ("within noise", of(0.9, 1.1))


def test_a_budget_is_exceeded_only_if_a_second_measurement_says_so_too() -> None:
    assert decide(of(1.1, 1.2), 1.0, lambda: of(1.05, 1.1)) == ("exceeded", of(1.05, 1.1))
    assert decide(of(1.1, 1.2), 1.0, lambda: of(0.95, 1.1)) == ("within noise", of(0.95, 1.1))
    assert decide(of(1.1, 1.2), 1.0, lambda: of(0.8, 0.9)) == ("met", of(0.8, 0.9))
    assert AGAIN > 1


class Work:
    """Variants that take as long as they say, by a clock that only they move."""

    def __init__(self) -> None:
        self.now, self.seen = 0, {"quick": [], "slow": []}  # type: tuple[int, dict[str, list[float]]]
        self.order: list[str] = []

    def lasting(self, name: str, nanoseconds: int) -> Callable[[float], None]:
        def call(value: float) -> None:
            self.now += nanoseconds
            self.seen[name].append(value)
            self.order.append(name)

        return call

    def interleaved(self, quick: int, slow: int) -> Interleaved:
        variants = {"quick": self.lasting("quick", quick), "slow": self.lasting("slow", slow)}
        return Interleaved(variants, lambda rng: float(rng.random()), clock=lambda: self.now)


def test_interleaved_times_one_call() -> None:
    work = Work()
    turns = work.interleaved(2_000, 6_000)
    turns.calls = {"quick": 4, "slow": 2}
    for _ in range(5):
        turns.round()
    assert turns.times == {"quick": pytest.approx([2e-6] * 5), "slow": pytest.approx([6e-6] * 5)}
    assert turns.ratio("slow", "quick").median == pytest.approx(3.0)


def test_every_call_gets_an_input_that_is_new_to_its_variant_and_common_to_the_round() -> None:
    work = Work()
    turns = work.interleaved(1_000, 1_000)
    turns.calls = {"quick": 3, "slow": 2}
    for _ in range(20):
        turns.round()
    assert len(set(work.seen["quick"])) == 60
    assert set(work.seen["slow"]) < set(work.seen["quick"])


def test_the_order_changes_between_rounds() -> None:
    work = Work()
    turns = work.interleaved(1_000, 1_000)
    for _ in range(20):
        turns.round()
    firsts = set(work.order[::2])
    assert firsts == {"quick", "slow"}


def test_calibration_makes_samples_of_equal_length_and_leaves_no_times() -> None:
    turns = Work().interleaved(1_000, 50_000)
    cost = turns.calibrate("quick", sample=250e-6)
    assert turns.calls == {"quick": MOST_CALLS, "slow": 5}
    assert cost == pytest.approx(MOST_CALLS * 1e-6 + 5 * 50e-6)
    assert turns.times == {"quick": [], "slow": []}


def test_no_variant_is_called_more_often_in_a_row_than_the_base() -> None:
    turns = Work().interleaved(1_000, 50_000)
    turns.calibrate("slow", sample=250e-6)
    assert turns.calls == {"quick": 5, "slow": 5}


def test_calibration_of_slow_variants_does_not_repeat_them() -> None:
    work = Work()
    work.interleaved(500_000_000, 500_000_000).calibrate("quick")
    assert work.order.count("slow") == 2


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0123, "0.0123"), (1.0, "1.000"), (3.14159, "3.142"), (0.065, "0.0650"), (12.34, "12.3"), (1234.5, "1234")],
)
def test_ratios_are_shown_with_the_digits_that_matter(value: float, text: str) -> None:
    assert shown(value) == text
