"""What a replica may spend without asking: the arithmetic of one lease. No clock, no lock, no I/O."""

from __future__ import annotations

import math

from hardening.ledger.amounts import KINDS, MOST, Bound, Kind
from hardening.ledger.books import LAPSE, Ask

#: A slice holds at least this many requests, if the store lets it.
FIRST = 4
#: A slice that was used up within QUICK seconds is doubled, one that lasted SLOW seconds is halved.
QUICK, SLOW = 1.0, 10.0
#: Seconds for which a refusal stands, so that whoever has nothing left cannot make the store work.
STANDS = 1.0


class Lease:
    """One kind of one account. Amounts are in units, times in seconds on the replica's own clock.

    Attributes:
        left: unspent; negative if more was spent than was leased, while the store could not be had.
        spent: spent so far, and what lapsed.
        mark: renew once less than this is left.
        due: whether it waits for the next exchange.
        lapses: when what is left lapses.
        parting: whether the replica is about to forget it, and has asked the store to do so, too.
    """

    __slots__ = (
        "_granted", "_idle_at", "_least", "_need", "_parted", "_refused", "_renewed", "_since", "_slice", "_wish",
        "bound", "due", "index", "key", "kind", "lapses", "left", "mark", "parting", "spent",
    )  # fmt: skip

    def __init__(self, key: str, kind: Kind, bound: Bound) -> None:
        self.key, self.kind, self.bound = key, kind, bound
        self.index = KINDS.index(kind)
        self.left = self.spent = 0
        self.due = self.parting = False
        self._parted = 0  # spent when the parting began
        self._need = self._least = self._wish = 0  # of the requests that wait for it, the smallest and the sum
        self._begin()

    def _begin(self) -> None:
        """Know nothing of what the store granted."""
        self.lapses, self._renewed = math.inf, -math.inf
        self._slice = 0  # what to have unspent after the next renewal
        self._granted = self._since = 0  # the store's last answer, and when it was
        self._refused = MOST  # what the store cannot cover, as far as is known
        self._idle_at = -1
        self.mark = 0

    def put(self, amount: int) -> None:
        """Take back `amount` of what was spent over a lifetime; a window forgets by itself, and takes nothing back."""
        amount = 0 if self.bound.per else min(amount, self.spent - self._parted)
        self.left += amount
        self.spent -= amount

    def lapse(self) -> None:
        """What is left is over: it counts as spent."""
        lapsed = max(0, self.left)
        self.left -= lapsed
        self.spent += lapsed
        self.lapses = math.inf

    def refuses(self, amount: int, now: float = -math.inf) -> bool:
        """Whether `amount` is neither here nor to be had, as of the last answer, if that still stands at `now`."""
        return self.left < amount and self._refused <= amount and now - self._renewed < STANDS

    def ask_again(self) -> None:
        """No refusal stands any more."""
        self._refused = MOST

    def idle(self) -> bool:
        """Whether nothing was spent since this was last asked."""
        before, self._idle_at = self._idle_at, self.spent
        return before == self.spent

    def quiet(self) -> bool:
        """Whether nobody waits for it, and nothing was spent since this or `idle` was last asked."""
        return self.idle() and not self.due and not self.parting and self.left >= 0

    def wait(self, amount: int, *, needed: bool = True) -> None:
        """A request that costs `amount` waits for the next renewal; if it is not `needed`, for a slice and no more."""
        self._least = min(self._least or amount, amount)
        if needed:
            self._need = min(self._need or amount, amount)
        self._wish = min(MOST, self._wish + amount)
        self._idle_at = -1

    def abandon(self) -> None:
        """Return at the next exchange what is left, unless somebody waits for more by then."""
        self._slice = -1

    def part(self) -> Ask:
        """The last request: what is left is returned, and what was spent is settled."""
        self.left = min(0, self.left)
        self.parting, self._parted = True, self.spent
        return self._say(0, 0)

    def parted(self) -> None:
        """The store has forgotten this lease. What was spent meanwhile, on credit, is owed to it."""
        self.spent -= self._parted
        self.parting, self._parted = False, 0
        self._begin()

    def ask(self, now: float) -> Ask:
        """The request for a renewal, or for the return of what is left. Nobody waits from now on."""
        need, least = self._need, self._least
        if self._slice < 0 and not least:
            self.left = min(0, self.left)  # gone from here at once, whatever becomes of the request
        quick, slow = (self._span / 8, self._span) if self.bound.per else (QUICK, SLOW)
        if now - self._renewed < quick:
            self._slice *= 2
        elif now - self._renewed > slow:
            self._slice //= 2
        self._slice = want = min(MOST, max(self._slice, self._wish, FIRST * least, 0))
        self._need = self._least = self._wish = 0
        return self._say(min(need, MOST), want)

    def confirm(self) -> Ask:
        """The request that only says what is spent and held here."""
        return self._say(0, 0)

    def _say(self, need: int, want: int) -> Ask:
        own = min(MOST, self.spent + max(0, self.left))
        known = min(MOST, self._granted)
        return Ask(self.key, self.kind, own, min(own, self.spent), need, want, *self.bound, known, self._since)

    def renew(self, ask: Ask, granted: int, sent: float, now: int) -> None:
        """Enter the answer of the store at `now`, its time, to `ask` of `sent`.

        Meanwhile more may have been spent, or put back.
        """
        self._granted, self._since = granted, now
        self.left = granted - self.spent
        covered = granted >= ask.used + ask.need
        self._refused = MOST if covered else ask.need
        self._slice = min(self._slice, max(self.left, ask.need))
        self.mark = max(0, self.left) // 2
        self._renewed = sent
        if self.bound.per:
            self.lapses = sent + self._span

    @property
    def _span(self) -> float:
        """How long rows of a window may be kept, in seconds."""
        return self.bound.per / LAPSE / 1000
