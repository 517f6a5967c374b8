"""What hardening costs, and what repeating a question gains, measured on real sessions."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Overhead:
    """One hardened call against the bare call with the same input, in pairs.

    Attributes:
        bare_us, hardened_us: median time of a call, in microseconds.
        ratio: median of the pairs' ratios, hardened over bare.
        interval: 95 % interval of that median, from order statistics.
    """

    what: str
    pairs: int
    bare_us: float
    hardened_us: float
    ratio: float
    interval: tuple[float, float]


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the median by order statistics (normal approximation to the binomial)."""
    ordered, n = sorted(values), len(values)
    reach = 0.98 * math.sqrt(n)
    low, high = math.floor(n / 2 - reach), math.ceil(n / 2 + reach) - 1
    return ordered[max(0, low)], ordered[min(n - 1, high)]


def overhead(
    what: str, bare: Callable[[Any], Any], hardened: Callable[[Any], Any], questions: Sequence[Any], pairs: int
) -> Overhead:
    """Ask each question both ways, one right after the other, each way first in turn; the first pairs are not counted.

    Every pair has a question of its own as long as there are enough of them.
    """
    warm = min(20, pairs)
    times = np.empty((pairs, 2))
    for i in range(-warm, pairs):
        question = questions[i % len(questions)]
        for which in (0, 1) if i % 2 else (1, 0):
            ask = (bare, hardened)[which]
            start = time.perf_counter_ns()
            ask(question)
            spent = time.perf_counter_ns() - start
            if i >= 0:
                times[i, which] = spent / 1e3
    ratios = times[:, 1] / times[:, 0]
    medians = np.median(times, axis=0)
    return Overhead(
        what, pairs, float(medians[0]), float(medians[1]), float(np.median(ratios)), median_interval(ratios.tolist())
    )


@dataclass(frozen=True)
class Repeats:
    """Error of the mean of repeated answers, root mean square over questions and classes, by number of repeats."""

    times: tuple[int, ...]
    keyed: tuple[float, ...]
    fresh: tuple[float, ...]


def averaging_error(
    ask: Callable[[NDArray[Any]], NDArray[Any]], clean: NDArray[Any], questions: NDArray[Any], times: Sequence[int]
) -> tuple[float, ...]:
    """For each count in `times`: how far the mean of that many answers is from the `clean` scores."""
    total = np.zeros(clean.shape)
    errors = []
    for asked in range(1, max(times) + 1):
        total += ask(questions)
        if asked in times:
            errors.append(float(np.sqrt(np.mean((total / asked - clean) ** 2))))
    return tuple(errors)
