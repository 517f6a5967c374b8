"""A replica's line to the store: it numbers the exchanges, knows whether the store is there, says when that changes.

Used by one thread at a time; `Ledger` sees to that.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Sequence
from typing import Any

from hardening.errors import LedgerError
from hardening.ledger.amounts import KINDS
from hardening.ledger.books import Ask
from hardening.ledger.store import Reply, Store
from hardening.types import Clock, Event, Sink

#: Seconds between two attempts to reach a store that failed: the first pause and the longest.
PAUSES = 0.1, 5.0
#: Seconds by which the wall clock may drift from the monotonic one between two looks.
DRIFT = 2.0
_EVENTS = {"unreachable": "ledger-unreachable", "full": "ledger-full", "not-durable": "ledger-not-durable"}


class Line:
    """Arguments are those of `Ledger`.

    Events: ``ledger-unreachable``, ``ledger-full``, ``ledger-not-durable``, ``ledger-back``; ``ledger-restored`` when
    the store was told what it had forgotten, or what was spent while it was away; ``clock-jumped``, with whose it was
    if it was the store's.

    Attributes:
        up: whether the last exchange succeeded.
        doubtful: whether the store may know less than it acknowledged, and has to be told all that this replica knows:
            after every failure, and when it does not remember the last exchange.
        retry_at: when a store that is down may be tried again, on the monotonic clock.
    """

    def __init__(
        self, store: Store, on_failure: str, sink: Sink | None, clock: Clock, monotonic: Callable[[], float]
    ) -> None:
        self._store, self._on_failure, self._sink = store, on_failure, sink
        self._clock, self._monotonic = clock, monotonic
        self._replica, self._number, self._last = secrets.token_hex(16), 0, 0
        self.up, self.doubtful = True, False
        self.retry_at, self._pause = -math.inf, PAUSES[0]
        self._cause, self._weakness = "", ""
        self._unsure = False
        self._heard = self._lost = monotonic()
        self._offset = clock() - self._heard

    def send(self, asks: Sequence[Ask]) -> Reply | None:
        """Settle `asks`; None if the store cannot be had."""
        self._number += 1
        return self._exchange(self._store.lease, asks)

    def part(self, asks: Sequence[Ask]) -> bool:
        """Settle `asks` for the last time, so that they can be forgotten here and there.

        If that fails, nothing else may be sent before the same has succeeded: it goes under the same number, so that
        the store knows whether it is the second time.
        """
        self._number += not self._unsure
        self._unsure = self._exchange(self._store.part, asks) is None
        return not self._unsure

    def _exchange(self, how: Callable[[str, int, Sequence[Ask]], Reply], asks: Sequence[Ask]) -> Reply | None:
        try:
            reply = how(self._replica, self._number, asks)
        except Exception as problem:
            self._failed(problem)
            return None
        self._succeeded(reply, asks)
        return reply

    def retire(self) -> None:
        """All was returned: have the store forget this replica."""
        if self._number:
            try:
                self._store.retire(self._replica)
            except Exception as problem:
                self._failed(problem)

    @property
    def silent(self) -> bool:
        """Whether a sign of life is due."""
        return self._number > 0 and self._monotonic() - self._heard >= self._store.heartbeat

    def look_at_clock(self) -> None:
        """Say so if somebody has set the wall clock."""
        offset = self._clock() - self._monotonic()
        if abs(offset - self._offset) > DRIFT:
            self.tell("clock-jumped", seconds=round(offset - self._offset, 3))
        self._offset = offset

    def tell(self, kind: str, client: str = "", /, **evidence: Any) -> None:
        """Emit an event."""
        if self._sink is not None:
            self._sink.emit(Event(kind, self._clock(), client, evidence))

    def _failed(self, problem: Exception) -> None:
        cause = problem.cause if isinstance(problem, LedgerError) else "unreachable"
        said = str(problem) if isinstance(problem, LedgerError) else f"{type(problem).__name__}: {problem}"
        now = self._monotonic()
        self.doubtful = True
        if self.up:
            self.up, self._lost, self._pause, self._cause = False, now, PAUSES[0], ""
        if cause != self._cause:
            self._cause = cause
            self.tell(_EVENTS[cause], problem=said, on_failure=self._on_failure)
        self.retry_at = now + self._pause
        self._pause = min(2 * self._pause, PAUSES[1])

    def _succeeded(self, reply: Reply, asks: Sequence[Ask]) -> None:
        self._heard = self._monotonic()
        if not self.up:
            self.up = True
            self.tell("ledger-back", seconds=round(self._heard - self._lost, 3))
        if self._store.weakness != self._weakness:
            self._weakness = self._store.weakness
            if self._weakness:
                self.tell("ledger-not-durable", problem=self._weakness, durability="best-effort")
        if reply.jumped:
            self.tell("clock-jumped", seconds=round(reply.jumped, 3), clock="store")
        self.doubtful = self.doubtful or reply.last < self._last
        self._last = self._number
        restored = [(ask, amount) for ask, amount in zip(asks, reply.restored, strict=False) if amount]
        if restored:
            sums = {str(kind): sum(amount for ask, amount in restored if ask.kind == kind) for kind in KINDS}
            self.tell("ledger-restored", accounts=len({ask.key for ask, _ in restored}), **sums)
