"""What a policy says about clients, in plain words: who pays, how much there is, and what is done about them."""

from __future__ import annotations

from collections.abc import Iterator

from hardening.config import Policy
from hardening.ledger import Budget
from hardening.ledger.amounts import RUNGS
from hardening.policy import DENY, Step

_WHO = {
    "probation": "each new credential",
    "credential": "each credential",
    "principal": "each principal",
    "organisation": "each organisation",
    "prefix": "each network",
    "model": "all who ask this model",
    "global": "all who ask any model",
}


def budgets_in_words(policy: Policy) -> Iterator[str]:
    """A line for each budget, the ledger and each step of the response; nothing for a policy without."""
    for rung in RUNGS:
        if rung in policy.budgets:
            budget = policy.budgets[rung]
            instead = "refused" if budget.on_exhausted == DENY else f"answered by {budget.on_exhausted!r}"
            yield f"budget {rung}: {_WHO[rung]}, {', '.join(_amounts(policy, rung, budget))}; then {instead}"
    if policy.budgets:
        where = {"memory": "memory, gone with the process", "sqlite": "SQLite", "redis": "Redis"}
        yield f"ledger: {where[policy.ledger.place.backend]}"
    for step in policy.respond.suspicion:
        shadow = " (only said in the events)" * policy.respond.shadow
        yield f"suspicion from {step.at:g} on: {_action(step)}{shadow}"


def _amounts(policy: Policy, rung: str, budget: Budget) -> Iterator[str]:
    if budget.bits is not None:
        whole = policy.budgets.get("model", budget).bits
        compared = "model" in policy.budgets and whole is not None and rung not in ("model", "global")
        share = f" ({100 * budget.bits / (whole or 1.0):.3g} % of the model's)" if compared else ""
        yield f"{budget.bits:,.0f} bits over their life{share}"
    if budget.rho is not None:
        yield f"rho {budget.rho:.6g} over their life"
    if budget.queries is not None:
        yield f"{budget.queries.max:,} rows in {budget.queries.per}"


def _action(step: Step) -> str:
    if step.deny:
        return "refused"
    tier = f"answered by {step.tier!r}" if step.tier is not None else ""
    throttle = f"throttled to {step.throttle.max:,} rows in {step.throttle.per}" if step.throttle else ""
    return ", ".join(part for part in (tier, throttle) if part)
