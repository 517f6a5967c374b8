"""What is counted, in which units, for whom, and how much of it a policy allows."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from hardening.clients import LONGEST_NAME, POOLED
from hardening.errors import InputError

Kind = Literal["bits", "rho", "queries"]
KINDS: tuple[Kind, ...] = get_args(Kind)
#: Units to one bit, to one rho (zCDP) and to one query. Integers add up exactly, in any order.
UNITS = (1 << 20, 1 << 40, 1)
#: Largest number in the books. The sum of two of them is exact in a double, and Redis' scripts count in doubles.
MOST = (1 << 52) - 1

#: The identity ladder, from one caller to everybody. ``probation`` is a credential while it is new.
Rung = Literal["probation", "credential", "principal", "organisation", "prefix", "model", "global"]
RUNGS: tuple[Rung, ...] = get_args(Rung)


class Account(NamedTuple):
    """Who is charged: a rung of the identity ladder, and a name of 1 to 64 printable characters."""

    rung: str
    name: str

    @property
    def key(self) -> str:
        """Its name in the books, such as ``credential:alice``; at most 77 characters."""
        return f"{self.rung}:{self.name}"

    @property
    def pooled(self) -> Account:
        """The account that identities of this rung share once a replica has no room for more."""
        return Account(self.rung, POOLED)

    def check(self) -> None:
        """Raises InputError for an account that cannot be."""
        if self.rung not in RUNGS:
            raise InputError(f"account: unknown rung {self.rung!r}; known: {', '.join(RUNGS)}")
        name = self.name
        if not isinstance(name, str) or not 0 < len(name) <= LONGEST_NAME or not name.isprintable():
            raise InputError(f"account: the name must be 1 to {LONGEST_NAME} printable characters of text")


class Cost(NamedTuple):
    """What one request is charged, in whole `UNITS`; every account that it names pays all of it."""

    bits: int = 0
    rho: int = 0
    queries: int = 0

    @classmethod
    def of(cls, bits: float = 0.0, rho: float = 0.0, queries: int = 0) -> Cost:
        """From bits, rho and rows; rounded up. What is infinite costs more than any budget holds.

        Raises ValueError for a negative amount or NaN.
        """
        amounts = []
        for kind, amount, unit in zip(KINDS, (bits, rho, queries), UNITS, strict=True):
            if not amount >= 0:
                raise ValueError(f"{kind}: must be zero or more, not {amount!r}")
            amounts.append(math.ceil(amount * unit) if amount < MOST // unit else MOST)
        return cls(*amounts)

    def times(self, rows: int, *, queries: int = 0) -> Cost:
        """Of so many rows where this is the cost of one, and the least there is of none; `queries` are as given."""
        rows = max(1, rows)
        return Cost(min(MOST, self.bits * rows), min(MOST, self.rho * rows), queries)


def milliseconds(span: str) -> int:
    """A span of time, such as ``1h``: a whole number and one of m, h, d. Raises ValueError."""
    if not re.fullmatch(r"[1-9][0-9]{0,5}[mhd]", span):
        raise ValueError(f"must be a number and one of m, h, d, such as '1h', not {span!r}")
    return int(span[:-1]) * {"m": 60_000, "h": 3_600_000, "d": 86_400_000}[span[-1]]


@dataclass(frozen=True)
class Window:
    """A token bucket that holds `max` rows and fills up within `per`, such as ``1h``: a number and one of m, h, d.

    Any stretch of time T sees at most ``max * (1 + T / per)`` rows.
    """

    per: str
    max: int

    def __post_init__(self) -> None:
        try:
            most = MOST // self.milliseconds
        except ValueError as problem:
            raise ValueError(f"per: {problem}") from None
        if type(self.max) is not int or not 1 <= self.max <= most:
            raise ValueError(f"max: must be a whole number from 1 to {most} for a window of {self.per}")

    @property
    def milliseconds(self) -> int:
        """Length of the window."""
        return milliseconds(self.per)


class Bound(NamedTuple):
    """The most of one kind: `limit` in units; over a lifetime if `per` is 0, else a bucket filled in `per` ms."""

    limit: int
    per: int = 0


@dataclass(frozen=True)
class Budget:
    """What one rung allows each of its accounts. What is left out is neither bounded nor counted.

    Attributes:
        bits: released bits over the account's life.
        rho: zero-concentrated privacy loss over the account's life.
        queries: rows in a window.
        on_exhausted: the tier that answers when a budget is spent, or ``deny``.
    """

    bits: float | None = None
    rho: float | None = None
    queries: Window | None = None
    on_exhausted: str = "deny"

    def __post_init__(self) -> None:
        for kind, unit in zip(KINDS[:2], UNITS, strict=False):
            value = getattr(self, kind)
            if value is not None and not 0 < value <= MOST // unit:
                raise ValueError(f"{kind}: must be more than 0 and at most {MOST // unit}, not {value!r}")

    @property
    def bounds(self) -> dict[Kind, Bound]:
        """What is bounded, by kind, rounded down to whole units."""
        bounds: dict[Kind, Bound] = {}
        if self.bits is not None:
            bounds["bits"] = Bound(math.floor(self.bits * UNITS[0]))
        if self.rho is not None:
            bounds["rho"] = Bound(math.floor(self.rho * UNITS[1]))
        if self.queries is not None:
            bounds["queries"] = Bound(self.queries.max, self.queries.milliseconds)
        return bounds


class Shortfall(NamedTuple):
    """Why a request was not charged: `account` has too little of `kind` left, or the store that knows is away."""

    account: str
    kind: Kind
    cause: Literal["exhausted", "unreachable"]
