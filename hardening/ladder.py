"""The identity ladder: which accounts pay for what somebody asks, from the credential up to everybody's."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import NamedTuple

from hardening.clients import LONGEST_NAME, POOLED
from hardening.errors import Denied, InputError
from hardening.ledger import Account, Budget
from hardening.ledger.amounts import RUNGS, milliseconds
from hardening.policy import ClientRules
from hardening.types import Clock, Identity

#: The account, on each rung, of all callers who cannot be placed on it.
NOBODY = "(none)"
#: What the name of a credential begins with on the rung ``principal``, where it has no principal.
OWN = "(own"
#: Callers remembered to save work; beyond that they are forgotten and placed again.
MOST = 16_384


class Caller(NamedTuple):
    """Somebody who asks: the accounts that pay for it, and until when they do (a probation ends)."""

    client: str
    slot: int
    accounts: tuple[Account, ...]
    until: float


class Ladder:
    """Places callers on the rungs that have a budget.

    Args:
        rules: who is told apart.
        budgets: by rung.
        model: what tells this model from others, such as its digest.
        clock: seconds since the epoch, for probations.
    """

    def __init__(self, rules: ClientRules, budgets: Mapping[str, Budget], model: str, clock: Clock) -> None:
        self._rules, self._clock = rules, clock
        self._rungs = [rung for rung in RUNGS if rung in budgets]
        self._probation = 0.0 if rules.probation is None else milliseconds(rules.probation) / 1000
        fits = len(model) <= LONGEST_NAME and model.isprintable()
        self._model = (model or NOBODY) if fits else hashlib.blake2b(model.encode(), digest_size=32).hexdigest()
        self._callers: dict[str | Identity, Caller] = {}
        self._members: dict[str, set[str]] = {}

    def forget(self) -> None:
        """Know no caller any more."""
        self._callers.clear()

    def known(self, who: str | Identity) -> Caller | None:
        """A caller who was placed before, and still stands there."""
        try:
            caller = self._callers.get(who)
        except TypeError:  # names that are not even hashable, let alone text
            return None
        return caller if caller is not None and (caller.until == math.inf or self._clock() < caller.until) else None

    def place(self, who: str | Identity, slot: int, *, keep: bool) -> Caller:
        """Find the accounts of `who`, whose client has the row `slot`; remember them if told to `keep` them.

        Raises InputError for a name that cannot be, Denied for one credential too many.
        """
        identity = who if isinstance(who, Identity) else Identity(who)
        _check(identity)
        self._join(identity)
        accounts, until = self._accounts(identity)
        caller = Caller(identity.credential, slot, accounts, until)
        if keep:
            if len(self._callers) >= MOST:
                self._callers.clear()
            self._callers[who] = caller
        return caller

    def _join(self, who: Identity) -> None:
        most = self._rules.credentials
        if most is None or not who.organisation:
            return
        name = who.organisation if len(self._members) < MOST or who.organisation in self._members else POOLED
        members = self._members.setdefault(name, set())
        if who.credential not in members:
            if len(members) >= most:
                raise Denied(who.credential, f"{name!r} has {most} credentials already (clients.credentials)")
            members.add(who.credential)

    def _accounts(self, who: Identity) -> tuple[tuple[Account, ...], float]:
        names = {
            "probation": who.credential,
            "credential": who.credential,
            "principal": who.principal or own(who.credential),
            "organisation": who.organisation or NOBODY,
            "prefix": who.prefix or NOBODY,
            "model": self._model,
            "global": "all",
        }
        rungs, until = self._rungs, math.inf
        if "probation" in rungs and who.since is not None:
            until = who.since + self._probation
            if self._clock() >= until:
                rungs, until = [rung for rung in rungs if rung != "probation"], math.inf
        return tuple(Account(rung, names[rung]) for rung in rungs), until


def own(credential: str) -> str:
    """The name of a credential on the rung ``principal`` where it has none: ``(own) alice``, long ones by a digest."""
    name = f"{OWN}) {credential}"
    if len(name) <= LONGEST_NAME:
        return name
    return f"{OWN}#) {hashlib.blake2b(credential.encode(), digest_size=28).hexdigest()}"


def reserved(name: str) -> bool:
    """Whether no principal, organisation or network may be called that: accounts of ours are."""
    return name in (POOLED, NOBODY) or name.startswith(OWN)


def _check(who: Identity) -> None:
    for field in ("principal", "organisation", "prefix"):
        name = getattr(who, field)
        if not isinstance(name, str) or len(name) > LONGEST_NAME or not name.isprintable():
            raise InputError(f"{field}: must be up to {LONGEST_NAME} printable characters of text")
        if reserved(name):
            raise InputError(f"{field}: {name!r} is the name of a shared account or of a credential's own")
    if who.since is not None and not (isinstance(who.since, int | float) and math.isfinite(who.since)):
        raise InputError("since: must be a number of seconds since the epoch")
