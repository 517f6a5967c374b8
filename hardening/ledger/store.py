"""What every store of the books does, whatever it is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

from hardening.errors import LedgerError
from hardening.ledger.amounts import Kind
from hardening.ledger.books import Ask

#: Most requests in one exchange.
BATCH = 256
#: The record of a replica not heard of for this long, in seconds, is dropped. What it leased stays leased.
FORGET = 7 * 86_400
#: So many replicas whose records were dropped are still known by name, those heard of last: one may be alive all the
#: same, if a clock was set forward. What it holds is in the books already, and must not be entered twice.
REMEMBERED = 4096


class Reply(NamedTuple):
    """The answer to one exchange.

    Attributes:
        last: number of the replica's exchange before this one, as the store remembers it; 0 if it does not.
        granted: what the replica holds from now on, for each request.
        restored: what the store had forgotten and has been told again, for each request.
        now: the store's time, in milliseconds since the epoch.
        jumped: seconds by which a clock of the store's own was set since the exchange before, if it was.
    """

    last: int
    granted: list[int]
    restored: list[int]
    now: int = 0
    jumped: float = 0.0


class Balance(NamedTuple):
    """What the store knows about one kind of one account, in units: leased so far, and granted beyond the bound."""

    total: int
    extra: int


class Slot(NamedTuple):
    """What one replica keeps of a client: `row`, as it wrote it; `dead` if it will not write it again."""

    replica: str
    dead: bool
    row: bytes


class Fold(NamedTuple):
    """One row in place of several: `row` is kept under the name `into`, a new one, instead of `rows`, by replica."""

    client: str
    rows: Mapping[str, bytes]
    into: str
    row: bytes


#: ``kept``: it is. ``ended``: somebody took the replica for dead, nothing was kept. ``forgotten``: the store lost what
#: it knew of the replica, nothing was kept.
Kept = Literal["kept", "ended", "forgotten"]


class Store(Protocol):
    """The durable totals, and rows of clients, which mean nothing to the store.

    Every method but `close` and `abandon` raises LedgerError when the books cannot be had.

    Attributes:
        heartbeat: seconds after which a replica that had nothing to say should say so.
        weakness: what the store may lose although it acknowledged it, in words; "" if nothing.
        durable: whether it outlives the process, and has room for any number of accounts.
    """

    heartbeat: float
    weakness: str
    durable: bool

    def lease(self, replica: str, number: int, asks: Sequence[Ask]) -> Reply:
        """Settle `asks`, atomically, durably, in one round trip.

        `number` grows with every exchange of a replica: one that was overtaken is refused, for it may be a duplicate
        that was held up on its way.
        """

    def part(self, replica: str, number: int, asks: Sequence[Ask]) -> Reply:
        """As `lease`, and forget what the replica holds of these, which is nothing but what it spent.

        The same again, with the same number, changes nothing: so it is found out whether an answer that did not come
        was lost, or the request. The reply then has no amounts.
        """

    def retire(self, replica: str) -> None:
        """Forget a replica that has returned what it held."""

    def extend(self, key: str, kind: Kind, amount: int, reason: str) -> None:
        """Grant `amount` units beyond the policy's bound, and keep a record of it with `reason`."""

    def read(self, key: str) -> dict[Kind, Balance]:
        """What the books say about an account."""

    def read_all(self, keys: Sequence[str]) -> dict[str, dict[Kind, Balance]]:
        """What they say about each of these accounts. Exchanges do not wait for it."""

    def keep(self, replica: str, number: int, rows: Mapping[str, bytes], lifetime: int, known: bool) -> Kept:
        """Keep rows by client, each in place of what `replica` kept of it; atomically, durably, in one round trip.

        The replica counts as alive for `lifetime` seconds from now. `number` is as in `lease`. `known` says that it has
        kept something before.
        """

    def kept(self, clients: Sequence[str]) -> list[list[Slot]]:
        """What all replicas keep of each of `clients`. One round trip."""

    def fold(self, folds: Sequence[Fold]) -> int:
        """Put one row in place of several, durably, in one round trip; how often that was done.

        Each fold is done wholly, or not at all if one of its replicas is alive, or keeps something else by now. None of
        them can keep anything from now on.
        """

    def end(self, replica: str) -> None:
        """A replica that keeps rows says that it will not write again."""

    def close(self) -> None:
        """Let go of files and connections."""

    def abandon(self) -> None:
        """In a process just forked: let go of what belongs to the parent, without touching it."""


def check_number(number: int, last: int) -> None:
    """Raises LedgerError if exchange `number` was overtaken by `last`."""
    if number <= last:
        raise LedgerError(f"exchange {number} of this replica was overtaken by {last}")


def milliseconds(clock: Callable[[], float]) -> int:
    """The time of a clock that counts seconds."""
    return int(clock() * 1000)
