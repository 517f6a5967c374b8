"""A guarantee in plain words: what is protected, between whom, per what, and how well."""

from __future__ import annotations

import math
from typing import Any

from hardening.accounting import true_positives, zcdp_epsilon
from hardening.types import Guarantee

#: The delta at which a rho is converted for reading.
DELTA = 1e-6
#: The share of wrong accusations at which a loss is put in words.
WRONG = 0.01

#: Whom an answer does not tell apart, by relation.
_BETWEEN = {
    "output-metric": "two models",
    "label": "two models that give the same label",
    "label-rr": "any two models, however they differ",
    "shard": "two ensembles that differ by one training record",
}
_NORMS = {"l1": "by at most {} in L1", "l2": "by at most {} in L2", "linf": "in no entry by more than {}"}
_PROTECTS = {
    "capacity": "an answer carries no more than its bits; nothing else is promised",
    "output-metric": "models whose scores are close are hard to tell apart by an answer",
    "label": "models whose scores are close and whose labels agree are hard to tell apart by an answer; the label is "
    "released as it is",
    "label-rr": "the label is drawn: any two models, however they differ, give it with nearly the same chances",
    "shard": "one training record is hard to detect by an answer",
    "none": "no guarantee: deception only",
}


def in_words(promise: Guarantee) -> str:
    """One sentence: the relation, its unit, what is protected."""
    return f"{promise.relation}, per {promise.unit}: {_PROTECTS[promise.relation]}"


def conversion(promise: Guarantee) -> dict[str, Any] | None:
    """The loss as (epsilon, delta), with the relation and the unit it is about; None where none can be stated."""
    loss = promise.parameters
    if "epsilon" in loss and "delta" in loss:
        epsilon, delta = loss["epsilon"], loss["delta"]
    elif "rho" in loss:
        delta = DELTA
        epsilon = zcdp_epsilon(loss["rho"], delta, loss.get("tv", 0.0))
    else:
        return None
    if not math.isfinite(epsilon):
        return None
    return {"relation": promise.relation, "unit": promise.unit, "epsilon": epsilon, "delta": delta}


def loss_in_words(promise: Guarantee) -> str | None:
    """How well: between whom, at what distance, the loss in each measure, and what a guess can do with it.

    None where the relation has no loss to state.
    """
    if promise.relation not in _BETWEEN:
        return None
    facts, text = promise.parameters, f"between {_BETWEEN[promise.relation]}: "
    norm = next((name.removeprefix("sensitivity_") for name in facts if name.startswith("sensitivity_")), None)
    if norm is None and promise.relation != "label-rr":
        return "not stated: the policy gives no sensitivity, how far the scores of two such models differ"
    if norm is not None:
        apart = _NORMS[norm].format(f"{facts[f'sensitivity_{norm}']:.6g}")
        text = f"between {_BETWEEN[promise.relation]} whose scores differ {apart}: "
    measures = [f"rho = {facts['rho']:.4g} (zCDP)"] if math.isfinite(facts.get("rho", math.inf)) else []
    converted = conversion(promise)
    if converted is None:
        return text + (", ".join(measures) if measures else "not known without the width of a row")
    measures.append(f"epsilon = {converted['epsilon']:.4g} at delta = {converted['delta']:.2g}")
    right = true_positives(converted["epsilon"], converted["delta"], WRONG)
    guess = f"who names the wrong one in {100 * WRONG:g} % of cases names the right one in at most {100 * right:.3g} %"
    return f"{text}{', '.join(measures)}, {promise.relation} per {promise.unit}; {guess}"


def adds_up_in_words(promise: Guarantee) -> str | None:
    """What makes a stated loss grow; None where none is stated."""
    if conversion(promise) is None:
        return None
    if promise.scope == "client":
        return f"each {promise.unit} adds its rho, for each client anew: the noise is the client's own"
    return f"each {promise.unit} adds its rho, whichever client asks: the noise is the same for all"
