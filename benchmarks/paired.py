"""Interleaved paired measurement, and what may be concluded from it.

A shared machine changes its speed from one second to the next, so two times taken apart do not compare. Here all
variants run in every round, in shuffled order and on the same fresh inputs; a comparison is the median of the ratios
within rounds, and drift that slows a whole round cancels. The interval is that of the order statistics of those ratios
(David & Nagaraja 2003, section 7.1): it assumes independent rounds, and nothing about how they are distributed.

A budget is exceeded only where the whole interval lies above it, and once more so in a second measurement with
`AGAIN` times as many rounds. For a ratio that is exactly at its budget the chance of a false alarm is then
((1 - `CONFIDENCE`) / 2) ** 2 = 2.5e-5 a row; a ratio that is higher than the budget by less than the interval's half
width may pass, and is reported as such.
"""

from __future__ import annotations

import gc
import math
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

CONFIDENCE = 0.99
#: How many times the rounds of the first measurement the second one has.
AGAIN = 3
#: A sample is a loop of calls that lasts about this long, in seconds: long against the clock's own cost.
SAMPLE = 250e-6
MOST_CALLS = 64
#: A round that lasts longer than this, in seconds, needs no second look before the number of rounds is chosen.
TRIAL = 0.1

Variant = Callable[[Any], object]
Verdict = Literal["met", "within noise", "exceeded"]


@dataclass(frozen=True)
class Ratio:
    """Median of per-round ratios and its interval, which covers the true median with at least `confidence`."""

    median: float
    low: float
    high: float
    confidence: float
    rounds: int

    def against(self, budget: float) -> Verdict:
        """Whether this measurement alone shows that the budget is met, or exceeded, or cannot tell."""
        if self.low > budget:
            return "exceeded"
        return "met" if self.high <= budget else "within noise"

    def __str__(self) -> str:
        return f"{shown(self.median)} [{shown(self.low)}, {shown(self.high)}]"


def shown(value: float) -> str:
    """A ratio for people: about three significant digits, near 1 four."""
    if value < 0.1:
        return f"{value:#.3g}"
    return f"{value:.3f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def median_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float, float]:
    """The narrowest symmetric pair of order statistics that covers the median, and the confidence it reaches.

    With too few values for `confidence` it is their whole range, with the confidence that has. Raises ValueError for
    no values.
    """
    if not values:
        raise ValueError("values: an interval needs at least one value")
    ordered, n = sorted(values), len(values)
    chosen, outside = 0, 2.0 * 0.5**n
    tail = 0.0
    for k in range((n + 1) // 2):
        tail += math.comb(n, k) / 2**n
        if 2.0 * tail > 1.0 - confidence:
            break
        chosen, outside = k, 2.0 * tail
    return ordered[chosen], ordered[n - 1 - chosen], max(0.0, 1.0 - outside)


def ratio(times: Sequence[float], base: Sequence[float], confidence: float = CONFIDENCE) -> Ratio:
    """Compare two variants by their times in the same rounds. Raises ValueError if the rounds do not match."""
    if len(times) != len(base):
        raise ValueError(f"times: {len(times)} rounds, but base has {len(base)}; they are compared round by round")
    ratios = [t / b for t, b in zip(times, base, strict=True)]
    low, high, reached = median_interval(ratios, confidence)
    return Ratio(statistics.median(ratios), low, high, reached, len(ratios))


def decide(first: Ratio, budget: float, again: Callable[[], Ratio]) -> tuple[Verdict, Ratio]:
    """The verdict on a budget, and the measurement it rests on: `again` is called only if the first one exceeds it."""
    verdict = first.against(budget)
    if verdict != "exceeded":
        return verdict, first
    second = again()
    return second.against(budget), second


class Interleaved:
    """Variants that take turns.

    Args:
        variants: by name; each is called with one input.
        fresh: makes one input; every call of a variant gets one that this variant has not seen before.
        seed: of inputs and order.
        clock: nanoseconds.

    Attributes:
        times: seconds a call, by variant, one for each round so far.
        calls: how many calls of a variant make one sample.
    """

    def __init__(
        self,
        variants: Mapping[str, Variant],
        fresh: Callable[[np.random.Generator], Any],
        seed: int = 0,
        clock: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        self._variants, self._fresh, self._clock = dict(variants), fresh, clock
        self._inputs, self._order = np.random.default_rng(seed), random.Random(seed)
        self.times: dict[str, list[float]] = {name: [] for name in self._variants}
        self.calls = dict.fromkeys(self._variants, 1)

    def calibrate(self, base: str, sample: float = SAMPLE) -> float:
        """Warm every variant up and choose `calls`; returns how long a round takes, in seconds.

        No variant gets more calls in a row than `base`: what follows a model's run once must not profit from a loop
        that keeps it in the caches.
        """
        for variant in self._variants.values():
            variant(self._fresh(self._inputs))
        cost = self._timed_round()
        while cost < TRIAL and len(self.times[next(iter(self.times))]) < 4:
            quickest = {name: min(times) for name, times in self.times.items()}
            most = max(1, min(MOST_CALLS, round(sample / quickest[base])))
            self.calls = {n: max(1, min(most, round(sample / t))) for n, t in quickest.items()}
            cost = self._timed_round()
        self.times = {name: [] for name in self._variants}
        return cost

    def _timed_round(self) -> float:
        began = self._clock()
        self.round()
        return (self._clock() - began) / 1e9

    def round(self) -> None:
        """Every variant once, in a new order, on the same new inputs. The garbage collector waits."""
        inputs = [self._fresh(self._inputs) for _ in range(max(self.calls.values()))]
        order = list(self._variants)
        self._order.shuffle(order)
        collecting = gc.isenabled()
        gc.disable()
        try:
            for name in order:
                variant, own = self._variants[name], inputs[: self.calls[name]]
                began = self._clock()
                for value in own:
                    variant(value)
                self.times[name].append((self._clock() - began) / 1e9 / len(own))
        finally:
            if collecting:
                gc.enable()

    def ratio(self, variant: str, base: str) -> Ratio:
        """Of two variants, over all rounds so far."""
        return ratio(self.times[variant], self.times[base])
