"""Ledger: what one process may spend. The only object here with locks, a thread and clocks."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from hardening.errors import InputError, LedgerError
from hardening.forks import watch
from hardening.ledger.amounts import KINDS, MOST, Account, Budget, Cost, Kind, Shortfall
from hardening.ledger.books import Ask
from hardening.ledger.lease import Lease
from hardening.ledger.line import Line
from hardening.ledger.roster import Roster, Row
from hardening.ledger.store import BATCH, Balance, Store
from hardening.types import Clock, Sink

#: Accounts of one rung that a replica has open. Beyond that, those that were not used for longest are settled with the
#: store and forgotten.
CAPACITY = 16_384
#: Where the books are in memory alone, nothing is forgotten; beyond that, new identities share one pooled account.
ROOM = 65_536
#: Seconds between two looks for leases that nobody uses; one that was not used from one look to the next is returned.
SWEEP = 30.0
_TICK = 1.0


class Ledger:
    """Spends budgets by lease: takes a slice from the durable store, then spends it without I/O.

    Args:
        store: where the totals are; the ledger closes it.
        budgets: what is allowed, by rung of the identity ladder; a rung that is missing is not charged.
        on_failure: whether to ``deny`` what no lease covers while the store cannot be had, or to ``allow`` it; it is
            then charged when the store is back, beyond the bound if need be.
        sink: where events go.
        clock: seconds since the epoch, for events.
        monotonic: seconds on a clock that nobody sets.
        background: renew in a thread of its own; without it, whoever owns the ledger calls `tick`.
        capacity: accounts of one rung that are kept open; `CAPACITY` or `ROOM` if left out.

    Safe to share between threads. After a fork, the child is another replica and has no leases.
    """

    def __init__(
        self,
        store: Store,
        budgets: Mapping[str, Budget],
        *,
        on_failure: Literal["deny", "allow"] = "deny",
        sink: Sink | None = None,
        clock: Clock = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        background: bool = True,
        capacity: int | None = None,
    ) -> None:
        self._store, self._on_failure, self._sink = store, on_failure, sink
        self._bounds = {rung: budget.bounds for rung, budget in budgets.items()}
        self._clock, self._monotonic = clock, monotonic
        self._background = background
        self._capacity = capacity or (CAPACITY if store.durable else ROOM)
        self._closed = self._ended = False
        self._begin()
        watch(self)

    def _begin(self) -> None:
        self._lock = threading.Lock()  # leases; held for microseconds, never during I/O
        self._talking = threading.Lock()  # the line; taken before the other
        self._bell = threading.Event()
        self._thread: threading.Thread | None = None
        self._line = Line(self._store, self._on_failure, self._sink, self._clock, self._monotonic)
        self._roster = Roster(self._bounds, self._capacity, self._shares)
        self._due: list[Lease] = []
        self._parting: tuple[dict[Account, Row], list[Ask]] = {}, []
        self._holding: dict[Lease, None] = {}
        self._swept = self._monotonic()

    def begin_again(self) -> None:
        """In a process just forked: what was leased belongs to the parent, and so does the connection."""
        self._store.abandon()
        self._begin()

    # What a caller does

    def spend(self, accounts: tuple[Account, ...], cost: Cost) -> Shortfall | None:
        """Charge `cost` to every one of `accounts`, or to none of them: the answer then says which falls short.

        No I/O while the leases suffice. Raises InputError for an account that cannot be, and once the ledger is closed.
        """
        with self._lock:
            leases = self._roster.leases(accounts)
            short = self._short(leases, cost)
            if short is None:
                self._take(leases, cost)
                return None
            refusal = self._refusal(leases, cost, self._monotonic())
            if refusal is not None:
                return refusal
            asked = self._wait(leases, cost, short)
        while True:
            reached = self._exchange(asked)
            with self._lock:
                leases = self._roster.leases(accounts)  # anew: what is not used may be forgotten
                short = self._short(leases, cost)
                if short is None or (not reached and self._on_failure == "allow" and not self._refusal(leases, cost)):
                    self._take(leases, cost)
                    return None
                refusal = self._refusal(leases, cost)
                if refusal is not None:
                    self._give_back(asked, refusal)
                    return refusal
                if not reached:
                    return Shortfall(short.key, short.kind, "unreachable")
                asked += self._wait(leases, cost, short)

    def credit(self, accounts: tuple[Account, ...], cost: Cost) -> None:
        """Take back bits and rho that were charged and not released. At most what was spent here; rows stay charged."""
        with self._lock:
            for lease in self._roster.leases(accounts):
                lease.put(cost[lease.index])
                self._hold(lease)

    def held(self, account: Account) -> dict[Kind, int]:
        """What this replica has on lease and unspent, in units: what would be lost if it died now."""
        with self._lock:
            return {lease.kind: max(0, lease.left) for lease in self._roster.row(account)}

    def balance(self, account: Account) -> dict[Kind, Balance]:
        """What the durable books say about an account. One round trip; raises LedgerError, InputError."""
        return self.balances([account])[account]

    def balances(self, accounts: Sequence[Account]) -> dict[Account, dict[Kind, Balance]]:
        """What the durable books say about accounts. A round trip for every few hundred; exchanges do not wait for it.

        Raises LedgerError, at once while the store is known to be away, and InputError.
        """
        for account in accounts:
            account.check()
        if not self._line.up:
            raise LedgerError("the books cannot be had at the moment")
        found = self._store.read_all([account.key for account in accounts])
        return {account: found[account.key] for account in accounts}

    def grant(self, account: Account, cost: Cost, *, reason: str) -> None:
        """Allow an account more bits or rho than the policy's bound, for good. A record and an event say so.

        Raises LedgerError - it may have been granted all the same: see `balance` before trying again - and InputError
        for rows, whose window fills by itself.
        """
        account.check()
        if cost.queries:
            raise InputError("queries: a window fills by itself; only bits and rho can be granted")
        for kind, amount in zip(KINDS, cost, strict=True):
            if amount:
                self._store.extend(account.key, kind, min(amount, MOST), reason)
                with self._lock:
                    for lease in self._roster.row(account):
                        lease.ask_again()
                self._line.tell("budget-granted", account.key, kind=kind, amount=amount, reason=reason)

    def close(self) -> None:
        """Return what is unspent, and let go of the store."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._roster.close()
        self._bell.set()
        if self._thread is not None:
            self._thread.join()
        with self._lock:
            for lease in [*self._holding]:
                lease.abandon()
                self._make_due(lease)
        returned = self._exchange()
        with self._talking:
            self._ended = True
            if returned:
                self._line.retire()
            self._store.close()

    # What the thread does

    def tick(self) -> None:
        """Renew what runs low, return what nobody uses, try again what failed, say what happened to the clock."""
        with self._talking:
            self._line.look_at_clock()
        now = self._monotonic()
        if now - self._swept >= SWEEP:
            self._swept = now
            self._sweep()
        if self._due or self._line.silent:
            self._exchange()

    def _run(self) -> None:
        while not self._closed:
            wait = _TICK if self._line.up else max(0.01, self._line.retry_at - self._monotonic())
            self._bell.wait(wait)
            self._bell.clear()
            if not self._closed:
                self.tick()

    def _sweep(self) -> None:
        if not self._line.up:
            return
        with self._lock:
            holding = [*self._holding]
        for lease in holding:
            with self._lock:
                if lease.left <= 0:
                    self._holding.pop(lease, None)
                elif lease.idle():
                    lease.abandon()
                    self._make_due(lease)

    # Leases: call with the lock held

    def _shares(self, account: Account) -> bool:
        """Whether an account has to share one: what cannot be forgotten is bounded, but for who is in the books."""
        return not self._line.up if self._store.durable else not self._store.read(account.key)

    def _short(self, leases: Sequence[Lease], cost: Cost) -> Lease | None:
        """The first lease that does not cover `cost`."""
        now = self._monotonic()
        for lease in leases:
            if lease.lapses <= now:
                lease.lapse()
            amount = cost[lease.index]
            if amount and lease.left < amount:
                return lease
        return None

    def _refusal(self, leases: Sequence[Lease], cost: Cost, now: float = -math.inf) -> Shortfall | None:
        for lease in leases:
            if lease.refuses(cost[lease.index], now):
                return Shortfall(lease.key, lease.kind, "exhausted")
        return None

    def _take(self, leases: Sequence[Lease], cost: Cost) -> None:
        for lease in leases:
            amount = cost[lease.index]
            lease.left -= amount
            lease.spent += amount
            if lease.left < lease.mark and not lease.due:
                self._make_due(lease)
                self._bell.set()

    def _wait(self, leases: Sequence[Lease], cost: Cost, short: Lease) -> list[Lease]:
        """Have a request wait for what it lacks, of which `short` is the first; returns that.

        From narrow to wide: of what comes after the first account that falls short, a slice will do, until it is known
        that this one can pay. So whoever cannot pay gets nothing of what he shares with others.
        """
        lacking = [lease for lease in leases if cost[lease.index] and lease.left < cost[lease.index]]
        for lease in lacking:
            lease.wait(cost[lease.index], needed=lease.key == short.key)
            self._make_due(lease)
        return lacking

    def _give_back(self, asked: Sequence[Lease], refusal: Shortfall) -> None:
        """What was leased for a request that was refused by a wider account is returned."""
        for lease in asked:
            if lease.left > 0 and lease.key != refusal.account:
                lease.abandon()
                self._make_due(lease)
        self._bell.set()

    def _hold(self, lease: Lease) -> None:
        """Note that there may be something to return; rows of a window are not returned, they lapse."""
        if lease.left > 0 and not lease.bound.per:
            self._holding[lease] = None

    def _make_due(self, lease: Lease) -> None:
        if not lease.due:
            lease.due = True
            self._due.append(lease)

    # The store: call without the lock

    def _exchange(self, mine: Sequence[Lease] = ()) -> bool:
        """Settle what is due, or at least what is `mine`; False if the store cannot be had."""
        if self._background and self._thread is None and not self._closed:
            self._start()
        with self._talking:
            while self._may_talk(mine):
                if not self._part():  # before anything else, if it is not known how that ended
                    break
                with self._lock:
                    batch, self._due = self._due[:BATCH], self._due[BATCH:]
                if not self._settle(batch) or (self._line.doubtful and not self._assert_all()):
                    break
                if not self._due:
                    break
            reached = self._line.up and not self._ended
            if reached and self._store.durable and self._roster.crowded:
                self._part(more=True)
            return reached

    def _may_talk(self, mine: Sequence[Lease]) -> bool:
        """Whether there is a reason to: with `mine`, somebody else may have asked for it meanwhile."""
        if self._ended or (mine and not any(lease.due for lease in mine)):
            return False
        if self._line.up:
            return True
        # While the store is down, requests do not wait for it: the thread tries again, or whoever stands in for it.
        alone = not self._background or self._closed or threading.current_thread() is self._thread
        return alone and self._monotonic() >= self._line.retry_at

    def _settle(self, batch: Sequence[Lease], *, confirming: bool = False) -> bool:
        with self._lock:
            sent = self._monotonic()
            asks = []
            for lease in batch:
                if confirming:
                    asks.append(lease.confirm())
                else:
                    lease.due = False
                    asks.append(lease.ask(sent))
        reply = self._line.send(asks)
        with self._lock:
            if reply is None:
                for lease in batch:
                    self._make_due(lease)
                return False
            for lease, ask, amount in zip(batch, asks, reply.granted, strict=True):
                lease.renew(ask, amount, sent, reply.now)
                self._hold(lease)
        return True

    def _part(self, *, more: bool = False) -> bool:
        """Settle accounts that are to be forgotten, and forget them: what is under way, or `more` that nobody uses."""
        rows, asks = self._parting
        if more and not rows:
            with self._lock:
                rows = self._roster.unused(BATCH)
                asks = [lease.part() for row in rows.values() for lease in row]
            self._parting = rows, asks
        if not rows:
            return True
        if not self._line.part(asks):
            return False
        with self._lock:
            for account, row in rows.items():
                for lease in row:
                    lease.parted()
                    self._holding.pop(lease, None)
                if not any(lease.due or lease.spent for lease in row):  # nobody has come meanwhile
                    self._roster.forget(account)
        self._parting = {}, []
        return True

    def _assert_all(self) -> bool:
        """Tell the store all that this replica holds and ever spent."""
        with self._lock:
            leases = [lease for lease in self._roster if lease.spent or lease.left]
        for i in range(0, len(leases), BATCH):
            if not self._settle(leases[i : i + BATCH], confirming=True):
                return False
        self._line.doubtful = False
        return True

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="hardening-ledger", daemon=True)
                self._thread.start()
