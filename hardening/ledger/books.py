"""The arithmetic of the books, in whole numbers: what a store does with one request for a lease. Pure.

A replica says how much it knows to hold, and the store answers with how much it holds from now on; both are sums over
the replica's life. Asking twice therefore changes nothing, an answer that was lost is found again by the next one, and
a store that lost what it knew is told by the replicas.
"""

from __future__ import annotations

from typing import NamedTuple

from hardening.ledger.amounts import MOST, Kind

#: A replica holds at most this share of what is left of a budget, unless one request needs more.
SHARE = 64
#: Rows leased from a window lapse after this share of it.
LAPSE = 64


class Ask(NamedTuple):
    """A replica's request about one kind of one account. Amounts are in units, sums over the replica's life.

    Attributes:
        key, kind: whose budget, of what.
        own: leased so far, to the replica's knowledge, less what it returned; includes all that it spent.
        used: spent so far; `own` - `used` is unspent.
        need: least that it must have unspent, or the request cannot be served.
        want: most that it likes to have unspent.
        limit, per: the policy's bound, see `amounts.Bound`.
        known: what the store said last that the replica holds; 0 if it said nothing.
        since: when it said so, on its own clock. Rows of a window that are given back, `known` - `own`, have lapsed by
            then if that is too long ago.
    """

    key: str
    kind: Kind
    own: int
    used: int
    need: int
    want: int
    limit: int
    per: int
    known: int = 0
    since: int = 0


class Entry(NamedTuple):
    """What a store keeps about one kind of one account.

    Attributes:
        total: leased to anybody so far, less what was returned; never below what was spent.
        extra: granted on top of the policy's bound.
        level: what is in the bucket, in units of 1 / `Ask.per`; the other fields are of windows only, too.
        stamp: when it was filled last, in milliseconds since the epoch; 0 before the first time.
        recent, before: leased in the current span of per / `LAPSE` and in the one before it.
    """

    total: int = 0
    extra: int = 0
    level: int = 0
    stamp: int = 0
    recent: int = 0
    before: int = 0


class Settled(NamedTuple):
    """The entry as it is from now on, what the replica holds (as in `Ask.own`), and what the store had forgotten."""

    entry: Entry
    granted: int
    restored: int


def settle(entry: Entry, recorded: int, ask: Ask, now: int) -> Settled:
    """Answer `ask` of a replica that holds `recorded`, at `now` milliseconds since the epoch."""
    return _window(entry, recorded, ask, now) if ask.per else _lifetime(entry, recorded, ask)


def _goal(ask: Ask, held: int, available: int) -> int:
    """What the replica is to hold from now on, when it holds `held` and as much as `available` could be added."""
    room = available + held - ask.used
    goal = max(ask.own, ask.used + min(ask.want, max(ask.need, room // SHARE)))
    goal = min(goal, held + available)
    return goal if goal >= ask.used + ask.need else ask.own


def _lifetime(entry: Entry, recorded: int, ask: Ask) -> Settled:
    restored = max(0, ask.own - recorded)
    held = recorded + restored
    total = min(MOST, entry.total + restored)
    goal = _goal(ask, held, max(0, min(MOST, ask.limit + entry.extra) - total))
    return Settled(entry._replace(total=total + goal - held), goal, restored)


def _window(entry: Entry, recorded: int, ask: Ask, now: int) -> Settled:
    """Rows are taken out of the bucket when they are leased, and may be spent until they lapse.

    So that no burst exceeds the bucket, it is filled only as far as there is room beside all that was leased within the
    last two spans. What a replica still holds when it renews counts as leased anew. What it gives back before it lapses
    is as if it had never been leased; it comes off the earlier span first, for that is forgotten sooner.
    """
    level, stamp, recent, before = _filled(entry, ask, now)
    restored = max(0, ask.own - recorded)
    fresh = 0 <= now - ask.since <= _span(ask)
    back = max(0, min(ask.known - ask.own, recorded - ask.own, recent + before)) if fresh else 0
    moved = min(back, before)
    before, recent = before - moved, recent - back + moved
    level = max(0, level - min(restored, ask.limit) * ask.per)
    level = min(level + back * ask.per, _room(ask, recent + before))
    goal = _goal(ask, ask.own, level // ask.per)
    kept = ask.own - ask.used
    moved = min(kept, before)
    before, recent = before - moved, max(recent + moved, kept) + goal - ask.own
    level = min(level - (goal - ask.own) * ask.per, _room(ask, recent + before))
    total = min(MOST, max(0, entry.total - back) + restored + goal - ask.own)
    return Settled(Entry(total, entry.extra, level, stamp, recent, before), goal, restored)


def _span(ask: Ask) -> int:
    """How long rows may be kept, in milliseconds."""
    return max(1, ask.per // LAPSE)


def _room(ask: Ask, outstanding: int) -> int:
    return max(0, ask.limit - outstanding) * ask.per


def _filled(entry: Entry, ask: Ask, now: int) -> tuple[int, int, int, int]:
    """Level, stamp, recent and before at `now`.

    A clock that was set forward fills the bucket once. One that was set back fills nothing until it is where it was;
    if that were to last longer than the window, it goes on from `now`.
    """
    if not entry.stamp:
        return ask.limit * ask.per, now, 0, 0
    level, stamp = entry.level, entry.stamp
    if now > stamp:
        level += min(now - stamp, ask.per) * ask.limit
        stamp = now
    elif stamp - now > ask.per:
        stamp = now
    span = _span(ask)
    spans = stamp // span - entry.stamp // span
    recent, before = entry.recent, entry.before
    if spans == 1:
        recent, before = 0, recent
    elif spans > 1:
        recent, before = 0, 0
    elif spans < 0:
        recent, before = 0, recent + before
    return min(level, _room(ask, recent + before)), stamp, recent, before
