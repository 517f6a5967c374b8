"""What is done about a client: pure functions of rules, evidence, state and time.

Nothing here knows who asks or holds anything: what is in force about a client is a value, `Acting`, passed in and out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from hardening.errors import ConfigError
from hardening.ledger.amounts import Window, milliseconds

DENY = "deny"
#: Most rows of a table of clients: its index has 32 bits for each.
MOST_CLIENTS = 2**32 - 2
#: Rungs of the identity ladder that a caller has to be placed on; the others follow from what is asked.
Identifying = Literal["credential", "principal", "organisation", "prefix"]


@dataclass(frozen=True)
class ClientRules:
    """Who may ask, and who is told apart.

    Attributes:
        anonymous: callers without a name share one ``account``, or are met with ``deny``.
        identity: rungs on which callers are told apart; budgets may be set on these, on ``model`` and on ``global``.
        ipv4, ipv6: length in bits of the network prefix that counts as one, by kind of address.
        probation: for how long, such as ``7d``, a credential is new and is charged to ``budgets.probation`` as well.
        credentials: most credentials of one organisation; further ones are refused.
        capacity: clients with an account of their own in a process; all others share one. Memory for them is there from
            the start: 896 bytes each, 16 to 32 of an index, and the name.
    """

    anonymous: Literal["account", "deny"] = "account"
    identity: tuple[Identifying, ...] = ("credential",)
    ipv4: int = 24
    ipv6: int = 48
    probation: str | None = None
    credentials: int | None = None
    capacity: int = 16_384

    def __post_init__(self) -> None:
        if self.anonymous not in ("account", "deny"):
            raise ConfigError("clients.anonymous", f"must be 'account' or 'deny', not {self.anonymous!r}")
        for name, most in (("ipv4", 32), ("ipv6", 128)):
            if not 1 <= getattr(self, name) <= most:
                raise ConfigError(f"clients.{name}", f"must be a whole number from 1 to {most}")
        if self.probation is not None:
            try:
                milliseconds(self.probation)
            except ValueError as problem:
                raise ConfigError("clients.probation", str(problem)) from None
        if self.credentials is not None and self.credentials < 1:
            raise ConfigError("clients.credentials", "must be a whole number from 1 on")
        if not 1 <= self.capacity <= MOST_CLIENTS:
            raise ConfigError("clients.capacity", f"must be a whole number from 1 to {MOST_CLIENTS}")
        if self.credentials is not None and "organisation" not in self.identity:
            raise ConfigError("clients.credentials", "is for each organisation: add 'organisation' to clients.identity")


@dataclass(frozen=True)
class Step:
    """What is done about a client from a suspicion `at` on.

    Attributes:
        at: in units of the alarm threshold, more than 0.
        tier: which tier answers; left out, the default.
        throttle: rows that may still be asked, as a token bucket.
        deny: refuse.
    """

    at: float
    tier: str | None = None
    throttle: Window | None = None
    deny: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.at < math.inf:
            raise ValueError(f"at: must be a number above 0, not {self.at!r}")
        if self.deny and (self.tier is not None or self.throttle is not None):
            raise ValueError("deny: leaves nothing for a tier or a throttle to do")
        if not self.deny and self.tier is None and self.throttle is None:
            raise ValueError("tier: missing; name a tier, a throttle, or deny = true")


@dataclass(frozen=True)
class Response:
    """The policy's section ``[respond]``.

    Attributes:
        suspicion: steps, from the lowest `Step.at` to the highest.
        hysteresis: how far below `Step.at` the suspicion has to fall before a step is taken back.
        ttl: after this long, such as ``24h``, an action ends by itself; only more evidence than there was then brings
            it back.
        shadow: take no action, and say in the events what would have been done. Budgets hold all the same.
        rows: most rows of a request that are answered before its own evidence is looked at. Of a larger one nothing is
            released until all of it is in; if that takes a step, the whole request gets what the step says.
    """

    suspicion: tuple[Step, ...] = ()
    hysteresis: float = 0.1
    ttl: str = "24h"
    shadow: bool = False
    rows: int = 64

    def __post_init__(self) -> None:
        levels = [step.at for step in self.suspicion]
        if levels != sorted(set(levels)):
            raise ValueError("suspicion: the steps must rise from one to the next")
        if not 0 <= self.hysteresis < math.inf:
            raise ValueError(f"hysteresis: must be a number from 0 on, not {self.hysteresis!r}")
        try:
            milliseconds(self.ttl)
        except ValueError as problem:
            raise ValueError(f"ttl: {problem}") from None
        if self.rows < 1:
            raise ValueError(f"rows: must be a whole number from 1 on, not {self.rows!r}")

    def check(self, tiers: Sequence[str]) -> None:
        """Raise ConfigError if a step names none of `tiers`, or is milder than the step before it."""
        before = tiers[0]
        for i, step in enumerate(self.suspicion):
            if step.tier is not None and step.tier not in tiers:
                raise ConfigError(
                    f"respond.suspicion[{i}].tier", f"unknown tier {step.tier!r}; known: {', '.join(tiers)}"
                )
            tier = DENY if step.deny else step.tier or tiers[0]
            if stricter(tiers, before, tier) != tier:
                raise ConfigError(
                    f"respond.suspicion[{i}]", f"is milder than the step before it: do no less than {before!r}"
                )
            before = tier

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is allowed and should be known."""
        if self.suspicion and self.hysteresis >= self.boundary:
            at = f"respond.suspicion[0].at, {self.boundary:g}"
            return (f"respond.hysteresis: is not below {at}: no step is ever taken back before its ttl is over",)
        return ()

    @property
    def boundary(self) -> float:
        """Below this suspicion nothing is done about a client about whom nothing was done."""
        return self.suspicion[0].at if self.suspicion else math.inf


class Acting(NamedTuple):
    """What is in force about one client.

    Attributes:
        step: number of the step, or -1.
        until: when it ends by itself, in seconds since the epoch.
        excused: evidence that has had its action; only more than this is acted upon.
        level, stamp: rows in the bucket of a throttle, and when it was filled last.
    """

    step: int = -1
    until: float = -math.inf
    excused: float = -math.inf
    level: float = 0.0
    stamp: float = 0.0


class Query(NamedTuple):
    """What is asked: `rows` at `now`, seconds since the epoch."""

    rows: int
    now: float


class Choice(NamedTuple):
    """What becomes of a query: the tier that answers, None for the default; or why it is refused, "" if it is not."""

    tier: str | None = None
    refusal: str = ""


CALM = Acting()


def decide(rules: Response, acting: Acting, suspicion: float, query: Query) -> tuple[Choice, Acting]:
    """What `rules` say to a query of a client about whom `acting` is in force; also what is in force from now on.

    A suspicion that is no number counts as the highest.
    """
    suspicion = math.inf if math.isnan(suspicion) else suspicion
    acting = _stepped(rules, acting, suspicion, query.now)
    if acting.step < 0:
        return Choice(), acting
    step = rules.suspicion[acting.step]
    if step.deny:
        return Choice(refusal=f"suspicion reached {step.at:g} (respond.suspicion[{acting.step}])"), acting
    if step.throttle is None:
        return Choice(step.tier), acting
    most, per = step.throttle.max, step.throttle.milliseconds / 1000
    level = min(most, acting.level + max(0.0, query.now - acting.stamp) * most / per)
    served = query.rows <= level
    acting = acting._replace(level=level - query.rows if served else level, stamp=query.now)
    return Choice(step.tier, "" if served else f"throttled (respond.suspicion[{acting.step}])"), acting


def _stepped(rules: Response, acting: Acting, suspicion: float, now: float) -> Acting:
    """The step in force at `now`."""
    if acting.step >= 0 and now >= acting.until:
        acting = Acting(excused=suspicion)
    if suspicion < rules.boundary - rules.hysteresis:
        return CALM
    reached = sum(step.at <= suspicion for step in rules.suspicion) - 1
    if reached > acting.step and suspicion > acting.excused:
        throttle = rules.suspicion[reached].throttle
        full = float(throttle.max) if throttle else 0.0
        return Acting(reached, now + milliseconds(rules.ttl) / 1000, -math.inf, full, now)
    kept = sum(step.at - rules.hysteresis <= suspicion for step in rules.suspicion) - 1
    if kept < acting.step:
        throttle = rules.suspicion[kept].throttle
        return acting._replace(step=kept, level=float(throttle.max) if throttle else 0.0, stamp=now)
    return acting


def stricter(tiers: Sequence[str], one: str, other: str) -> str:
    """The stricter of two tiers; `tiers` names them from the mildest to the strictest, and ``deny`` is beyond all."""
    return max(one, other, key=lambda tier: len(tiers) if tier == DENY else tiers.index(tier))


def fallen_back(tiers: Sequence[str], tier: str, on_exhausted: str) -> str:
    """What answers instead of `tier`, which cannot be paid for: ``deny`` unless `on_exhausted` is stricter than it."""
    chosen = stricter(tiers, tier, on_exhausted)
    return DENY if chosen == tier else chosen
