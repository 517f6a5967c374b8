"""Searches over one number, and checks of arguments."""

from __future__ import annotations

import math
from collections.abc import Callable

_GOLDEN = (math.sqrt(5) - 1) / 2
_STEPS = 200


def least(of: Callable[[float], float], low: float, high: float) -> float:
    """Least value met by a golden-section search between exp(low) and exp(high)."""
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_left, at_right = of(math.exp(left)), of(math.exp(right))
    best = min(at_left, at_right)
    for _ in range(_STEPS):
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - _GOLDEN * (high - low)
            at_left = of(math.exp(left))
        else:
            low, left, at_left = left, right, at_right
            right = low + _GOLDEN * (high - low)
            at_right = of(math.exp(right))
        best = min(best, at_left, at_right)
    return best


def largest(holds: Callable[[float], bool], low: float = -700.0, high: float = 700.0) -> float:
    """Largest number between exp(low) and exp(high) for which `holds`, by bisection of its logarithm.

    `holds` is true up to some point and false after it; 0 if it is never true, infinity if it is everywhere.
    """
    if not holds(math.exp(low)):
        return 0.0
    if holds(math.exp(high)):
        return math.inf
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        if holds(math.exp(middle)):
            low = middle
        else:
            high = middle
    return math.exp(low)


def not_negative(name: str, value: float) -> None:
    if not value >= 0:
        raise ValueError(f"{name}: must be a number from 0 on, not {value!r}")


def share(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{name}: must be between 0 and 1, not {value!r}")
