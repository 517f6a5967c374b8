"""The accounts that a replica has open: a bounded number of each rung, those that were used last. No clock, no I/O."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping

from hardening.errors import InputError
from hardening.ledger.amounts import Account, Bound, Kind
from hardening.ledger.lease import Lease

#: Most accounts looked at for ones that nobody uses, at a time.
_STEPS = 4096
Row = tuple[Lease, ...]


class Roster:
    """Leases by account.

    Args:
        bounds: what is bounded, by rung.
        capacity: accounts of one rung. Whoever forgets some when the roster is `crowded` keeps it near that.
        shares: whether an account that is not open has to share the pooled one of its rung, which is full.
    """

    def __init__(
        self, bounds: Mapping[str, Mapping[Kind, Bound]], capacity: int, shares: Callable[[Account], bool]
    ) -> None:
        self._bounds, self._capacity, self._shares = bounds, capacity, shares
        self._rungs: dict[str, OrderedDict[Account, Row]] = {rung: OrderedDict() for rung in bounds}
        self._groups: dict[tuple[Account, ...], Row] = {}  # the same, by what requests name
        self._closed = False

    def __iter__(self) -> Iterator[Lease]:
        return (lease for rows in self._rungs.values() for row in rows.values() for lease in row)

    def close(self) -> None:
        """Give no leases to anybody any more."""
        self._closed = True
        self._groups.clear()

    def row(self, account: Account) -> Row:
        """The leases of one account, if it is open."""
        rows = self._rungs.get(account.rung)
        return () if rows is None else rows.get(account, ())

    def leases(self, accounts: tuple[Account, ...]) -> Row:
        """The leases of all accounts, each once, opened if need be. Raises InputError."""
        try:
            leases = self._groups.get(accounts)
        except TypeError:
            raise InputError("accounts: must be a tuple of accounts with names of text") from None
        return self._gather(accounts) if leases is None else leases

    def _gather(self, accounts: tuple[Account, ...]) -> Row:
        if self._closed:
            raise InputError("the ledger is closed: nothing can be spent")
        for account in accounts:
            account.check()
        charged = [account for account in accounts if account.rung in self._bounds]
        opened = [self._place(account) for account in charged]
        leases = tuple(lease for account in dict.fromkeys(opened) for lease in self._open(account))
        if opened == charged:  # who has to share may have an account of his own the next time
            if len(self._groups) >= self._capacity:
                self._groups.clear()
            self._groups[accounts] = leases
        return leases

    def _place(self, account: Account) -> Account:
        rows = self._rungs[account.rung]
        full = len(rows) >= self._capacity and account not in rows
        return account.pooled if full and self._shares(account) else account

    def _open(self, account: Account) -> Row:
        rows = self._rungs[account.rung]
        row = rows.get(account)
        if row is None:
            bounds = self._bounds[account.rung]
            row = rows[account] = tuple(Lease(account.key, kind, bound) for kind, bound in bounds.items())
        return row

    @property
    def crowded(self) -> bool:
        """Whether there are more accounts than there should be."""
        return any(len(rows) > self._capacity for rows in self._rungs.values())

    def unused(self, most: int) -> dict[Account, Row]:
        """Accounts with up to `most` leases of rungs that are crowded, which were not used for longest.

        Each account that was used since the last look gets a second chance; so an account that is used costs nothing.
        """
        found: dict[Account, Row] = {}
        for rows in self._rungs.values():
            steps = min(_STEPS, 2 * len(rows)) if len(rows) > self._capacity else 0
            for _ in range(steps):
                if most <= 0:
                    break
                account, row = next(iter(rows.items()))
                rows.move_to_end(account)
                if all([lease.quiet() for lease in row]):
                    found[account] = row
                    most -= len(row)
        return found

    def forget(self, account: Account) -> None:
        """Close an account, which nobody waits for."""
        self._rungs[account.rung].pop(account, None)
        self._groups.clear()
