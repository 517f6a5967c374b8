"""What a policy's budgets mean: who pays, how much there is, what answers then, and how well the books are kept."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from hardening.config import Policy
from hardening.ledger import Budget
from hardening.ledger.amounts import RUNGS
from hardening.policy import DENY

_WHO = {
    "probation": "each new credential",
    "credential": "each credential",
    "principal": "each principal",
    "organisation": "each organisation",
    "prefix": "each network",
    "model": "all who ask this model",
    "global": "all who ask any model",
}
_KEPT = {
    "memory": "memory, gone with the process",
    "sqlite": "SQLite, for processes on this machine; durable: a lease is on the disk (synchronous=FULL) before any of "
    "it is spent",
    "redis": "Redis, for processes on many machines; durable: a lease is in the server's log on disk before any of it "
    "is spent, and a server that may forget is refused",
}
_BEST_EFFORT = "Redis, for processes on many machines; best-effort: what the server forgets can be spent again"
_MEANWHILE = {
    "deny": "while it cannot be had, what no lease covers is refused",
    "allow": "while it cannot be had, what no lease covers is answered, and charged later",
}


def budgets(policy: Policy, bits: Mapping[str, float | None]) -> dict[str, Any]:
    """The budgets by rung as plain data; `bits` are those of one answer, by tier, where they are known."""
    return {rung: _facts(policy, rung, policy.budgets[rung], bits) for rung in RUNGS if rung in policy.budgets}


def _facts(policy: Policy, rung: str, budget: Budget, bits: Mapping[str, float | None]) -> dict[str, Any]:
    model = policy.budgets.get("model")
    whole = model.bits if model is not None and rung not in ("model", "global") else None
    known = {tier: cost for tier, cost in bits.items() if cost and math.isfinite(cost)}
    used = (policy.tiers[0], budget.on_exhausted)
    return {
        "who": _WHO[rung],
        "bits": budget.bits,
        "share_of_model": budget.bits / whole if budget.bits and whole else None,
        "answers": {t: int(budget.bits // known[t]) for t in used if t in known} if budget.bits else {},
        "rho": budget.rho,
        "rows": {"max": budget.queries.max, "per": budget.queries.per} if budget.queries else None,
        "on_exhausted": budget.on_exhausted,
    }


def ledger(policy: Policy) -> dict[str, Any] | None:
    """Where the books are, as plain data; None for a policy without budgets."""
    if not policy.budgets:
        return None
    rules = policy.ledger
    backend = rules.place.backend
    durable = backend == "sqlite" or (backend == "redis" and rules.durability == "required")
    return {"backend": backend, "durable": durable, "on_failure": rules.on_failure}


def budgets_in_words(facts: Mapping[str, Any], books: Mapping[str, Any] | None) -> Iterator[tuple[str, str]]:
    """What `budgets` and `ledger` found, as pairs of a word and a sentence."""
    for rung, budget in facts.items():
        yield rung, f"{budget['who']}: {', '.join(_amounts(budget))}; {_then(budget)}"
    if books is not None:
        kept = _BEST_EFFORT if books["backend"] == "redis" and not books["durable"] else _KEPT[books["backend"]]
        meanwhile = f"; {_MEANWHILE[books['on_failure']]}" * (books["backend"] != "memory")
        yield "ledger", f"{kept}{meanwhile}"


def _amounts(budget: Mapping[str, Any]) -> Iterator[str]:
    if budget["bits"] is not None:
        share = budget["share_of_model"]
        remarks = [] if share is None else [f"{100 * share:.3g} % of the model's"]
        if budget["answers"]:
            each = " or ".join(f"{count:,} by {tier!r}" for tier, count in budget["answers"].items())
            remarks.append(f"whole answers: {each}")
        said = f" ({', '.join(remarks)})" if remarks else ""
        yield f"{budget['bits']:,.0f} bits over their life{said}"
    if budget["rho"] is not None:
        yield f"rho {budget['rho']:.6g} (zCDP) over their life"
    if budget["rows"] is not None:
        yield f"{budget['rows']['max']:,} rows in {budget['rows']['per']}"


def _then(budget: Mapping[str, Any]) -> str:
    if budget["on_exhausted"] == DENY:
        return "then refused"
    bounded = budget["bits"] is not None or budget["rho"] is not None
    return f"then answered by {budget['on_exhausted']!r}{', while that can be paid for' * bounded}"
