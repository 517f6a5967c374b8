"""Admission: on which terms a caller is answered, and who pays. What a policy says beyond hardening alone is done here.

Rows are charged when they are asked, bits and privacy loss when it is known what an answer costs, before anything is
hardened; whoever cannot pay is answered by a stricter tier that can be paid for, or not at all.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

from hardening.answer import Answer
from hardening.budgets import granted
from hardening.clients import POOLED
from hardening.config import Policy
from hardening.errors import Denied, LedgerError
from hardening.ladder import Caller, Ladder
from hardening.ledger import Account, Cost, Ledger, Shortfall
from hardening.ledger.amounts import UNITS, Kind
from hardening.ledger.store import Balance
from hardening.policy import CALM, DENY, Acting, Query, decide, fallen_back, stricter
from hardening.repeats import Repeats
from hardening.types import Clock, Decision, Identity, Standing

#: Entries of what is remembered only to save work; beyond that it is forgotten.
MOST = 16_384
#: Seconds between two events that say the same about the same client.
PAUSE = 60.0


class _Exhausted(NamedTuple):
    """A tier that could not be paid for: what a row cost, what is done instead, and who fell short."""

    bits: int
    rho: int
    instead: str
    short: Shortfall


class Admission:
    """Keeps what is in force about each client: bounded by the table of clients, or forgotten and found out again.

    Args:
        policy: budgets, response, identity.
        model: name of the account of the rung ``model``.
        ledger: where the budgets are, or None without any; closed by `close`.
        suspicion: evidence against a client, in units of the alarm threshold.
        pooled: the slot of clients who have none of their own.
        tell: emits an event: kind, client, evidence.
        clock: seconds since the epoch.

    Safe to share between threads.
    """

    def __init__(
        self,
        policy: Policy,
        model: str,
        ledger: Ledger | None,
        suspicion: Callable[[str], float],
        pooled: int,
        tell: Callable[..., None],
        clock: Clock,
    ) -> None:
        self._policy, self._ledger, self._suspicion = policy, ledger, suspicion
        self._pooled, self._tell, self._clock = pooled, tell, clock
        self._ladder = Ladder(policy.clients, policy.budgets, model, clock)
        self._tiers, self._default = policy.tiers, policy.tiers[0]
        budgets = policy.budgets.values()
        self._counts = any(budget.queries is not None for budget in budgets)
        self._prices = any(budget.bits is not None or budget.rho is not None for budget in budgets)
        self._acting: dict[int, Acting] = {}
        self._stepping = threading.Lock()
        self._exhausted: dict[tuple[Account, ...], dict[str, _Exhausted]] = {}
        self._fallen: dict[int, str] = {}
        self._repeats = Repeats()
        self._told: dict[tuple[str, ...], tuple[float, int]] = {}

    def forget(self) -> None:
        """Know no caller any more: each is placed anew."""
        self._ladder.forget()

    def close(self) -> None:
        """Know nobody any more, and return what is on lease."""
        self.forget()
        if self._ledger is not None:
            self._ledger.close()

    def known(self, who: str | Identity) -> Caller | None:
        """A caller who was placed before, and still stands there."""
        return self._ladder.known(who)

    def place(self, who: str | Identity, slot: int) -> Caller:
        """Find the accounts of `who`, whose client has the account `slot`. Raises InputError, Denied."""
        try:
            return self._ladder.place(who, slot, keep=slot != self._pooled)
        except Denied as problem:
            self._tell_once("denied", problem.client, reason=problem.reason)
            raise

    # Before the model runs

    def admit(self, caller: Caller, rows: int) -> Decision:
        """Charge `rows`, and say which tier answers. Raises Denied."""
        tier = wanted = self._respond(caller, rows)
        if self._exhausted or self._fallen:
            tier = self._affordable(caller, wanted, rows)
            self._fall(caller.client, caller.slot, self._default if tier == wanted else tier)
        if self._counts:
            answering = self._charge(caller, tier, rows)
            if answering != tier:
                tier = self._affordable(caller, answering, rows)
        return Decision(caller.client, caller.slot, tier, rows, caller.accounts)

    def _respond(self, caller: Caller, rows: int) -> str:
        rules = self._policy.respond
        if not rules.suspicion:
            return self._default
        suspicion = self._suspicion(caller.client)
        if suspicion < rules.boundary and caller.slot not in self._acting:
            return self._default
        with self._stepping:
            before = self._acting.get(caller.slot, CALM)
            choice, acting = decide(rules, before, suspicion, Query(rows, self._clock()))
            if acting == CALM:
                self._acting.pop(caller.slot, None)
            else:
                self._acting[caller.slot] = acting
        if acting.step != before.step:
            steps = {"from": self._said(before), "to": self._said(acting), "because": "suspicion"}
            until = acting.until if acting.step >= 0 else None
            self._tell("tier-changed", caller.client, **steps, suspicion=suspicion, until=until, shadow=rules.shadow)
        if choice.refusal and rules.shadow:
            self._tell_once("denied", caller.client, reason=choice.refusal, shadow=True)
        elif choice.refusal:
            self._refuse(caller.client, choice.refusal)
        return self._default if rules.shadow or choice.tier is None else choice.tier

    def _said(self, acting: Acting) -> str:
        if acting.step < 0:
            return self._default
        step = self._policy.respond.suspicion[acting.step]
        return DENY if step.deny else (step.tier or self._default) + ", throttled" * (step.throttle is not None)

    def _charge(self, caller: Caller, tier: str, rows: int) -> str:
        """Charge the rows; a window that is spent does not take part, but says which tier answers."""
        assert self._ledger is not None
        accounts = caller.accounts
        while (short := self._ledger.spend(accounts, Cost(queries=rows))) is not None:
            rung = short.account.partition(":")[0]
            verdict = DENY if short.cause == "unreachable" else self._policy.budgets[rung].on_exhausted
            self._short(caller.client, short, verdict)
            tier = stricter(self._tiers, tier, verdict)
            accounts = tuple(account for account in accounts if account.rung != rung)
        return tier

    def _affordable(self, caller: Caller, tier: str, rows: int) -> str:
        """The tier that answers instead of ones that could not be paid for, as far as is known. Raises Denied."""
        spent = self._exhausted.get(caller.accounts)
        while spent and (found := spent.get(tier)) is not None:
            assert self._ledger is not None
            need = Cost(found.bits * rows, found.rho * rows)
            if self._ledger.spend(caller.accounts, need) is None:  # a grant, or fewer rows
                self._ledger.credit(caller.accounts, need)
                spent.pop(tier, None)
                if not spent:
                    self._exhausted.pop(caller.accounts, None)
                break
            tier = found.instead
            if tier == DENY:
                self._fall(caller.client, caller.slot, DENY)
                self._refuse(caller.client, f"{found.short.kind} of {found.short.account} are {found.short.cause}")
        return tier

    # Before the answer is released, and after

    def pay(self, decision: Decision, answer: Answer) -> Answer:
        """Charge for `answer` as the decision's tier hardens it, or as one does that can be paid for; return that.

        Raises Denied, and whatever `Answer` does.
        """
        answer = answer.at(decision.tier)
        if not self._prices:
            return answer
        assert self._ledger is not None
        while (short := self._ledger.spend(decision.accounts, answer.cost)) is not None:
            if short.cause == "unreachable":
                self._short(decision.client, short, DENY)
            answer = answer.at(self._instead(decision, answer, short))
        return answer

    def _instead(self, decision: Decision, answer: Answer, short: Shortfall) -> str:
        rung = short.account.partition(":")[0]
        tier = fallen_back(self._tiers, answer.tier, self._policy.budgets[rung].on_exhausted)
        if len(self._exhausted) >= MOST:
            self._exhausted.clear()
        rows = max(1, decision.rows)
        found = _Exhausted(answer.cost.bits // rows, answer.cost.rho // rows, tier, short)
        self._exhausted.setdefault(decision.accounts, {})[answer.tier] = found
        self._fall(decision.client, decision.slot, tier)
        self._short(decision.client, short, tier)
        return tier

    def credit(self, decision: Decision, answer: Answer) -> None:
        """Take back what was charged for rows that the client has been told before."""
        if not self._prices or answer.nonces is None or decision.slot == self._pooled:
            return
        assert self._ledger is not None
        rows = len(answer.nonces)
        repeated = self._repeats.count(decision.slot, decision.accounts, answer.nonces, answer.outputs)
        if repeated:
            bits, rho, _ = answer.cost
            self._ledger.credit(decision.accounts, Cost(bits * repeated // rows, rho * repeated // rows))

    # What is told

    def _short(self, client: str, short: Shortfall, verdict: str) -> None:
        """Say that a budget is spent, or cannot be had; raises Denied if that is the verdict."""
        facts = {"account": short.account, "budget": short.kind, "cause": short.cause, "instead": verdict}
        self._tell_once("budget-exhausted", client, **facts)
        if verdict == DENY:
            self._refuse(client, f"{short.kind} of {short.account} are {short.cause}")

    def _refuse(self, client: str, reason: str) -> NoReturn:
        self._tell_once("denied", client, reason=reason)
        raise Denied(client, reason)

    def _fall(self, client: str, slot: int, tier: str) -> None:
        """The lifetime budgets of a client let `tier` answer from now on."""
        before = self._fallen.get(slot, self._default)
        if slot == self._pooled or tier == before:
            return
        if tier == self._default:
            self._fallen.pop(slot, None)
        else:
            self._fallen[slot] = tier
        self._tell_once("tier-changed", client, **{"from": before, "to": tier, "because": "budget"})

    def _tell_once(self, kind: str, client: str, **evidence: Any) -> None:
        """An event, unless the same was told a moment ago; `times` counts what was not told since."""
        key, now = (kind, client, *map(str, evidence.values())), self._clock()
        at, times = self._told.get(key, (now - PAUSE, 0))
        if 0 <= now - at < PAUSE:
            self._told[key] = at, times + 1
            return
        if len(self._told) >= MOST:
            self._told.clear()
        self._told[key] = now, 0
        self._tell(kind, client, **evidence, times=times + 1)

    # What the operator asks and does

    def standings(self, rows: Mapping[str, tuple[Standing, int | None]]) -> dict[str, Standing]:
        """Rows of clients and their slots, with what the books say about them and the tiers that answer now."""
        books = self._look([client for client in rows if client != POOLED])
        found = {}
        for client, (row, slot) in rows.items():
            suspicion = self._suspicion(client)
            tier = self._default if slot is None else self._answering(slot, suspicion)
            found[client] = self._accounted(row._replace(suspicion=suspicion, tier=tier), client, books)
        return found

    def _answering(self, slot: int, suspicion: float) -> str:
        tier = self._fallen.get(slot, self._default)
        rules, acting = self._policy.respond, self._acting.get(slot, CALM)
        if rules.suspicion and not rules.shadow:
            choice, _ = decide(rules, acting, suspicion, Query(0, self._clock()))
            tier = stricter(self._tiers, tier, DENY if choice.refusal else choice.tier or self._default)
        return tier

    def _look(self, clients: Sequence[str]) -> dict[str, dict[Kind, Balance]] | None:
        """What the books say about the budgets of clients, if there are any; None if the books cannot be had."""
        if self._ledger is None or "credential" not in self._policy.budgets:
            return {}
        try:
            balances = self._ledger.balances([Account("credential", client) for client in clients])
        except LedgerError:
            return None
        return {account.name: found for account, found in balances.items()}

    def _accounted(self, row: Standing, client: str, books: dict[str, dict[Kind, Balance]] | None) -> Standing:
        if books is None:
            return row._replace(stale=client != POOLED)
        if client not in books:
            return row
        assert self._ledger is not None
        balances, held = books[client], self._ledger.held(Account("credential", client))
        budget, shares = self._policy.budgets["credential"], [row.spent]
        for kind, unit in zip(("bits", "rho"), UNITS, strict=False):
            if kind in balances and kind in budget.bounds:
                balance = balances[kind]
                spent = max(0, balance.total - held.get(kind, 0))
                row = row._replace(bits=spent / unit) if kind == "bits" else row._replace(rho=spent / unit)
                shares.append(min(1.0, spent / (budget.bounds[kind].limit + balance.extra)))
        return row._replace(spent=max(shares))

    def grant(self, client: str, rung: str, bits: float, rho: float, reason: str) -> None:
        """Allow an account more than the policy's bound, for good. Raises InputError, LedgerError."""
        account, cost = granted(self._policy, client, rung, bits, rho, reason)
        assert self._ledger is not None
        self._ledger.grant(account, cost, reason=reason)
        for accounts in list(self._exhausted):
            if account in accounts:
                self._exhausted.pop(accounts, None)
