"""A policy's books: the ledger that keeps budgets, and the one thing that gives more, a grant."""

from __future__ import annotations

import math
import time

from hardening.config import Policy
from hardening.errors import ConfigError, InputError
from hardening.events import LogSink
from hardening.keys import read_reference
from hardening.ledger import Account, Cost, Ledger, check_store, open_ledger, open_store
from hardening.ledger.store import Store
from hardening.types import Clock, Sink

_LONGEST_REASON = 500


def open_budgets(policy: Policy, sink: Sink, clock: Clock = time.time) -> Ledger:
    """The ledger over the books that `policy` names. Raises ConfigError."""
    rules, said, clients = policy.ledger, _password(policy), policy.clients.capacity
    return open_ledger(rules, policy.budgets, root=policy.root, password=said, sink=sink, clock=clock, clients=clients)


def check_budgets(policy: Policy, connect: bool = False) -> None:
    """Raise ConfigError where `open_budgets` would; see `hardening.ledger.check_store`."""
    check_store(policy.ledger, root=policy.root, password=_password(policy), connect=connect)


def open_kept(policy: Policy) -> Store | None:
    """The same books, for what is kept of clients; None where they would be gone with the process. Raises ConfigError.

    A connection of its own: whoever waits for a lease does not wait for this.
    """
    if policy.ledger.place.backend == "memory":
        return None
    return open_store(policy.ledger, root=policy.root, password=_password(policy))


def _password(policy: Policy) -> str | None:
    reference = policy.ledger.password
    if reference is None:
        return None
    return read_reference(reference, policy.root, "ledger.password").decode(errors="replace").strip()


def granted(policy: Policy, client: str, rung: str, bits: float, rho: float, reason: str) -> tuple[Account, Cost]:
    """What a grant adds, and to which account; `client` is a name on `rung`. Raises InputError if it would be void."""
    budget = policy.budgets.get(rung)
    if budget is None:
        raise InputError(f"the policy has no budget on the rung {rung!r}: there is nothing to grant")
    amounts = {"bits": bits, "rho": rho}
    for kind, amount in amounts.items():
        if not isinstance(amount, int | float) or not 0 <= amount < math.inf:
            raise InputError(f"{kind}: must be a number from 0 on, not {amount!r}")
        if amount and kind not in budget.bounds:
            raise InputError(f"{kind}: budgets.{rung} does not bound it, so there is nothing to grant")
    if not any(amounts.values()):
        raise InputError("grant: give bits, rho or both, more than 0")
    if not isinstance(reason, str) or not 0 < len(reason.strip()) <= _LONGEST_REASON or not reason.isprintable():
        raise InputError(f"reason: must be 1 to {_LONGEST_REASON} printable characters; it stays in the books")
    account = Account(rung, client)
    account.check()
    return account, Cost.of(bits, rho)


def grant(policy: Policy, client: str, *, rung: str, bits: float, rho: float, reason: str) -> None:
    """Grant straight into the books of `policy`, without a server. Raises ConfigError, InputError, LedgerError."""
    if policy.ledger.place.backend == "memory":
        raise ConfigError("ledger.url", "is memory:, which only the process that serves has: ask it by its --control")
    account, cost = granted(policy, client, rung, bits, rho, reason)
    ledger = open_budgets(policy, LogSink())
    try:
        ledger.grant(account, cost, reason=reason)
    finally:
        ledger.close()
