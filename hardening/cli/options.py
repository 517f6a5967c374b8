"""Numbers on the command line: types for argparse which say what would be right."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable


def whole(low: int, high: int = 2**31 - 1) -> Callable[[str], int]:
    """A whole number from `low` to `high`, both included."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"must be a whole number from {low} to {high}, not {text!r}")
        return value

    return read


def seconds(low: float, high: float = 86400.0) -> Callable[[str], float]:
    """Seconds from `low` to `high`, both included."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"must be a number of seconds from {low:g} to {high:g}, not {text!r}")
        return value

    return read


def amount(text: str) -> float:
    """A number above 0, such as ``1e6``."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0, not {text!r}")
    return value
