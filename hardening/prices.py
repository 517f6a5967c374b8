"""What answers cost, as far as it is known before there are any: learnt from those to earlier questions of a kind."""

from __future__ import annotations

from collections.abc import Hashable

from hardening.ledger import Cost

#: Kinds of questions whose price is remembered; callers choose shapes, so beyond that the table starts anew.
MOST = 16_384
_NOTHING = Cost()


class Prices:
    """The least that the answer to a row has cost, by what is asked about and by tier.

    Args:
        counts: whether rows themselves are charged.
    """

    def __init__(self, *, counts: bool) -> None:
        self._counts = counts
        self._rows: dict[tuple[Hashable, str], Cost] = {}
        self._requests: dict[tuple[Hashable, str, int], Cost] = {}  # the same for so many rows, to save work

    def of(self, about: Hashable, tier: str, rows: int) -> Cost:
        """What `rows` are charged, with the least that their answers cost if that is known."""
        found = self._requests.get((about, tier, rows))
        if found is None:
            row = self._rows.get((about, tier), _NOTHING)
            found = row.times(rows, queries=rows if self._counts else 0)
            if len(self._requests) >= MOST:
                self._requests.clear()
            self._requests[about, tier, rows] = found
        return found

    def learn(self, about: Hashable, tier: str, row: Cost) -> None:
        """The answer to each row of a request has cost as much as `row`."""
        before = self._rows.get((about, tier))
        least = row if before is None else Cost(min(before.bits, row.bits), min(before.rho, row.rho))
        if least == before:
            return
        if len(self._rows) >= MOST:
            self._rows.clear()
        self._rows[about, tier] = least
        self._requests.clear()
