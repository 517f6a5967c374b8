"""A privacy filter: adaptive composition up to a bound."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction

from hardening.accounting.search import not_negative

#: Parts of a nat that a filter counts in, so that sums are exact: 2**40 of them.
FILTER_UNITS = 2**40


@dataclass(frozen=True, slots=True)
class Filter:
    """A zCDP privacy filter: refuses what would take the sum of rho beyond its bound.

    Valid when every rho, even the choice to ask, depends on the answers before (Whitehouse et al. 2023, for zCDP with
    and without delta). A value: `charged` gives a new one. Counted in integers; charges are rounded up, the bound down.

    Attributes:
        bound, spent: in units of 2**-40; make one with `Filter.of`.
    """

    bound: int
    spent: int = 0

    @classmethod
    def of(cls, rho: float) -> Filter:
        """A filter with this bound, nothing of it spent. Raises ValueError."""
        if not (math.isfinite(rho) and rho >= 0):
            raise ValueError(f"rho: the bound of a filter must be a finite number from 0 on, not {rho!r}")
        return cls(math.floor(Fraction(rho) * FILTER_UNITS))

    def charged(self, rho: float, count: int = 1) -> Filter | None:
        """The filter after `count` answers of `rho` each; None if it refuses, whereupon nothing is spent.

        An infinite rho is always refused. Raises ValueError for a rho or a count that is negative or no number.
        """
        not_negative("rho", rho)
        not_negative("count", count)
        if math.isinf(rho):
            return None if count else self
        spent = self.spent + count * math.ceil(Fraction(rho) * FILTER_UNITS)
        return replace(self, spent=spent) if spent <= self.bound else None

    @property
    def left(self) -> float:
        """Rho that is left, rounded down."""
        left = Fraction(self.bound - self.spent, FILTER_UNITS)
        near = float(left)
        return near if Fraction(near) <= left else math.nextafter(near, 0.0)
