"""Admission: on which terms a caller is answered, and who pays. What a policy says beyond hardening alone is done here.

Rows are charged when they are asked, and with them, as soon as it is known what an answer to a question of the kind
costs, bits and privacy loss; what is missing is charged before anything is hardened. Whoever cannot pay is answered by
a stricter tier that can be paid for, or not at all.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import NoReturn

from hardening.answer import Answer
from hardening.budgets import granted
from hardening.clients import POOLED
from hardening.config import Policy
from hardening.errors import Denied, LedgerError
from hardening.events import Once
from hardening.forks import watch
from hardening.ladder import Caller, Ladder
from hardening.ledger import Account, Cost, Ledger, Shortfall
from hardening.ledger.amounts import UNITS, Kind
from hardening.ledger.store import Balance
from hardening.policy import CALM, DENY, Acting, Query, decide, fallen_back, stricter
from hardening.prices import Prices
from hardening.repeats import MOST as FEW
from hardening.repeats import Repeats
from hardening.types import Clock, Decision, Identity, Standing

_NOTHING = Cost()
_NAMES = (str, Identity)


class Admission:
    """Keeps what is in force about each client: bounded by the table of clients, or forgotten and found out again.

    Args:
        policy: budgets, response, identity.
        model: name of the account of the rung ``model``.
        ledger: where the budgets are, or None without any; closed by `close`.
        suspicion: evidence against a client, given its name and slot, in units of the alarm threshold.
        pooled: the slot of clients who have none of their own.
        tell: emits an event: kind, client, evidence.
        clock: seconds since the epoch.

    Clients without a slot of their own share one, and with it what is in force about it.

    Attributes:
        at_once: most rows that are answered before their own evidence is looked at.

    Safe to share between threads.
    """

    def __init__(
        self,
        policy: Policy,
        model: str,
        ledger: Ledger | None,
        suspicion: Callable[[str, int | None], float],
        pooled: int,
        tell: Callable[..., None],
        clock: Clock,
    ) -> None:
        self._policy, self._ledger, self._suspicion = policy, ledger, suspicion
        self._pooled, self._tell, self._clock = pooled, tell, clock
        self._ladder = Ladder(policy.clients, policy.budgets, model, clock)
        self._tiers, self._default = policy.tiers, policy.tiers[0]
        budgets = policy.budgets.values()
        self._priced = any(budget.bits is not None or budget.rho is not None for budget in budgets)
        self._prices = Prices(counts=any(budget.queries is not None for budget in budgets))
        self._responds = bool(policy.respond.suspicion)
        self.at_once = policy.respond.rows if policy.respond.suspicion else math.inf
        self._acting: dict[int, Acting] = {}
        self._fallen: dict[int, str] = {}
        self._repeats = Repeats()
        self._tell_once = Once(tell, clock).tell
        self.begin_again()
        watch(self)

    def begin_again(self) -> None:
        """In a process just forked: another thread's hold on the lock is the parent's."""
        self._stepping = threading.Lock()

    def forget(self) -> None:
        """Know no caller any more: each is placed anew."""
        self._ladder.forget()

    def close(self) -> None:
        """Know nobody any more, and return what is on lease."""
        self.forget()
        if self._ledger is not None:
            self._ledger.close()

    def again(self, who: str | Identity, rows: int, about: Hashable) -> Decision | None:
        """What `admit` says about a caller who was placed before, and still stands there; None for any other."""
        caller = self._ladder.known(who) if isinstance(who, _NAMES) else None
        return None if caller is None else self.admit(caller, rows, about)

    def place(self, who: str | Identity, slot: int) -> Caller:
        """Find the accounts of `who`, whose client has the account `slot`. Raises InputError, Denied."""
        try:
            return self._ladder.place(who, slot, keep=slot != self._pooled)
        except Denied as problem:
            self._tell_once("denied", problem.client, reason=problem.reason)
            raise

    # Before the model runs

    def admit(self, caller: Caller, rows: int, about: Hashable) -> Decision:
        """Charge `rows`, and their answers if it is known what they cost; say which tier answers. Raises Denied."""
        client, slot, accounts, _ = caller
        tier, step = self._respond(client, slot, rows) if self._responds else (self._default, -1)
        if self._ledger is None:
            return Decision(client, slot, tier, rows, step=step)
        cost = self._prices.of(about, tier, rows)
        if self._ledger.spend(accounts, cost) is not None:
            tier, cost = self._otherwise(caller, tier, rows, about)
        if self._fallen and (cost.bits or cost.rho):
            self._rise(client, slot, tier)
        return Decision(client, slot, tier, rows, accounts, about, [cost], step)

    def _otherwise(self, caller: Caller, tier: str, rows: int, about: Hashable) -> tuple[str, Cost]:
        """The tier that answers where `tier` cannot be paid for, and what was charged; nothing, if it raises Denied.

        A window that is spent does not take part any more, but says which tier answers.
        """
        assert self._ledger is not None
        payers = windows = caller.accounts
        while True:
            cost = self._prices.of(about, tier, rows)
            answers = cost._replace(queries=0)
            if (short := self._ledger.spend(payers, answers)) is not None:
                tier = self._instead(caller.client, caller.slot, tier, short)
                continue
            if (short := self._ledger.spend(windows, Cost(queries=cost.queries))) is None:
                return tier, cost
            self._ledger.credit(payers, answers)
            rung = short.account.partition(":")[0]
            verdict = DENY if short.cause == "unreachable" else self._policy.budgets[rung].on_exhausted
            self._short(caller.client, short, verdict)
            windows = tuple(account for account in windows if account.rung != rung)
            tier = stricter(self._tiers, tier, verdict)

    def _respond(self, client: str, slot: int, rows: int) -> tuple[str, int]:
        """What the evidence says: the tier that answers, and the step in force. Raises Denied."""
        rules = self._policy.respond
        suspicion = self._suspicion(client, slot)
        if suspicion < rules.boundary and slot not in self._acting:
            return self._default, -1
        with self._stepping:
            before = self._acting.get(slot, CALM)
            choice, acting = decide(rules, before, suspicion, Query(rows, self._clock()))
            if acting == CALM:
                self._acting.pop(slot, None)
            else:
                self._acting[slot] = acting
        if acting.step != before.step:
            steps = {"from": self._said(before), "to": self._said(acting), "because": "suspicion"}
            until = acting.until if acting.step >= 0 else None
            self._tell("tier-changed", client, **steps, suspicion=suspicion, until=until, shadow=rules.shadow)
        if choice.refusal and rules.shadow:
            self._tell_once("denied", client, reason=choice.refusal, shadow=True)
        elif choice.refusal:
            self._refuse(client, choice.refusal)
        return self._default if rules.shadow or choice.tier is None else choice.tier, acting.step

    def _said(self, acting: Acting) -> str:
        if acting.step < 0:
            return self._default
        step = self._policy.respond.suspicion[acting.step]
        return DENY if step.deny else (step.tier or self._default) + ", throttled" * (step.throttle is not None)

    # Before the answer is released, and after

    def pay(self, decision: Decision, answer: Answer) -> Answer:
        """Charge for `answer` as the decision's tier hardens it, or as one does that can be paid for; return that.

        What was charged beforehand is settled, once. Raises Denied, and whatever `Answer` does.
        """
        answer = answer.at(decision.tier)
        if not self._priced:
            return answer
        assert self._ledger is not None
        paid: Cost = decision.advance.pop() if decision.advance else _NOTHING
        while True:
            cost = answer.cost
            if cost.bits == paid.bits and cost.rho == paid.rho:
                return answer
            self._prices.learn(decision.about, answer.tier, answer.price)
            more = Cost(max(0, cost.bits - paid.bits), max(0, cost.rho - paid.rho))
            if (short := self._ledger.spend(decision.accounts, more)) is None:
                less = Cost(max(0, paid.bits - cost.bits), max(0, paid.rho - cost.rho))
                self._ledger.credit(decision.accounts, less)
                self._rise(decision.client, decision.slot, answer.tier)
                return answer
            self._ledger.credit(decision.accounts, paid)
            paid = _NOTHING
            answer = answer.at(self._instead(decision.client, decision.slot, answer.tier, short))

    def forgo(self, decision: Decision) -> None:
        """Take back what was charged beforehand for an answer that does not come."""
        if decision.advance and self._ledger is not None:
            self._ledger.credit(decision.accounts, decision.advance.pop())

    def judge(self, decision: Decision, answer: Answer) -> Decision | None:
        """Another decision about `answer`, which is hardened and not released, now that its own evidence is in.

        None if it can stay as it is. Raises Denied.
        """
        client, slot = decision.client, decision.slot
        rules, suspicion = self._policy.respond, self._suspicion(client, slot)
        if suspicion < rules.boundary:
            return None
        _, acting = decide(rules, self._acting.get(slot, CALM), suspicion, Query(0, self._clock()))
        if acting.step <= decision.step:
            return None
        tier, step = self._respond(client, slot, decision.rows)
        tier = stricter(self._tiers, answer.tier, tier)
        return None if tier == answer.tier else decision._replace(tier=tier, advance=[answer.cost], step=step)

    def _instead(self, client: str, slot: int, tier: str, short: Shortfall) -> str:
        """What answers instead of `tier`, for which bits or rho fall `short`. Raises Denied."""
        if short.cause == "unreachable":
            self._short(client, short, DENY)
        rung = short.account.partition(":")[0]
        tier = fallen_back(self._tiers, tier, self._policy.budgets[rung].on_exhausted)
        self._fall(client, slot, tier)
        self._short(client, short, tier)
        return tier

    def credit(self, decision: Decision, answer: Answer) -> None:
        """Take back what was charged for rows that the client has been told before."""
        rows = decision.rows
        if not self._priced or rows > FEW or decision.slot == self._pooled or not answer.creditable:
            return
        assert self._ledger is not None
        assert answer.nonces is not None
        repeated = self._repeats.count(decision.slot, decision.accounts, answer.tier, answer.nonces, answer.outputs)
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

    def _rise(self, client: str, slot: int, tier: str) -> None:
        """A client's lifetime budgets have paid for `tier`."""
        fallen = self._fallen.get(slot) if self._fallen else None
        if fallen is not None and fallen != tier and stricter(self._tiers, fallen, tier) == fallen:
            self._fall(client, slot, self._default)

    # What the operator asks and does

    def standings(self, rows: Mapping[str, tuple[Standing, int | None]]) -> dict[str, Standing]:
        """Rows of clients and their slots, with what the books say about them and the tiers that answer now."""
        books = self._look([client for client in rows if client != POOLED])
        found = {}
        for client, (row, slot) in rows.items():
            suspicion = self._suspicion(client, slot)
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
