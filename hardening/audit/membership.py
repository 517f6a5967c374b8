"""Membership inference: tell from a model's answers whether a record was in its training data.

Attacks on scores threshold a statistic of each answer (Salem et al. 2019; Song & Mittal 2021) or train a classifier on
half of the records, whose membership the attacker is given along with the defended answers to them. Attacks on labels
ask whether the label is right (the gap attack of Yeom et al. 2018) and whether it stays so when the input is disturbed
(Choquette-Choo et al. 2021). No defence that keeps the labels changes what these find: theirs is the floor, beside
which every other figure belongs. Who disturbs inputs and reads the scores too goes above it, since a defence of single
answers does little for their mean.

What is reported errs in the attacker's favour: he may turn a statistic around, and picks his thresholds on the very
records that judge him.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hardening.audit.extraction import Floats, Query, Training, as_distribution, softmax, train, wilson

Z95 = 1.959963984540054
#: Disturbs a batch of inputs.
Disturb = Callable[[NDArray[Any], np.random.Generator], NDArray[Any]]


class Records(NamedTuple):
    """Inputs ``(n, ...)`` and their true classes ``(n,)``."""

    inputs: NDArray[Any]
    labels: NDArray[Any]


@dataclass(frozen=True)
class Separation:
    """How well a statistic tells members from others, either way around.

    Attributes:
        auc: area under the ROC curve, of the better direction; ties count half.
        interval: 95 % for `auc` (DeLong et al. 1988).
        tpr: share of members found at a false-positive rate of `fpr`; among equals he draws lots.
        tpr_interval: 95 % for `tpr` (Wilson), the threshold taken as given.
        fpr: that rate.
        accuracy: of the best threshold, with as many members as others.
    """

    auc: float
    interval: tuple[float, float]
    tpr: float
    tpr_interval: tuple[float, float]
    fpr: float
    accuracy: float


@dataclass(frozen=True)
class Membership:
    """What attackers found out.

    Attributes:
        scores: by attacks on the scores of one answer for each record.
        labels: by attacks on labels alone: of one answer (``gap``), of many near the record (``disturbed``).
        near: by the true class's mean score in the many answers near the record.
    """

    scores: Mapping[str, Separation]
    labels: Mapping[str, Separation]
    near: Separation

    @property
    def best(self) -> str:
        """The attack on the scores of one answer that separates best."""
        return max(self.scores, key=lambda name: self.scores[name].auc)

    @property
    def floor(self) -> float:
        """The area that labels alone give."""
        return max(found.auc for found in self.labels.values())


def roc(members: Floats, others: Floats) -> tuple[Floats, Floats]:
    """False and true positive rates at every threshold, from (0, 0) to (1, 1); a larger statistic means a member."""
    thresholds = np.unique(np.concatenate([members, others]))[::-1]
    rates = [1.0 - np.searchsorted(np.sort(part), thresholds, "left") / len(part) for part in (others, members)]
    return np.concatenate([[0.0], rates[0]]), np.concatenate([[0.0], rates[1]])


def tpr_at(members: Floats, others: Floats, fpr: float) -> float:
    """Share of members found at a false-positive rate; between two thresholds he draws lots."""
    false, true = roc(members, others)
    at = int(np.searchsorted(false, fpr, "right")) - 1
    if at + 1 == len(false):
        return 1.0
    return float(true[at] + (fpr - false[at]) / (false[at + 1] - false[at]) * (true[at + 1] - true[at]))


def _area(members: Floats, others: Floats) -> tuple[float, float]:
    """Area under the ROC curve, and its standard error (DeLong et al. 1988)."""

    def below(part: Floats, of: Floats) -> Floats:
        ordered = np.sort(part)
        both = np.searchsorted(ordered, of, "left") + np.searchsorted(ordered, of, "right")
        return np.asarray(both / (2 * len(part)), np.float64)

    over, under = below(others, members), 1.0 - below(members, others)
    spread = sum(float(part.var(ddof=1)) / len(part) if len(part) > 1 else math.inf for part in (over, under))
    return float(over.mean()), math.sqrt(spread)


def separation(members: Floats, others: Floats, fpr: float = 0.01) -> Separation:
    """How well a statistic of members ``(n,)`` separates them from others ``(m,)``.

    Raises ValueError if there are none of either, or one is not a number.
    """
    if not len(members) or not len(others):
        raise ValueError("members and others: at least one record of each is needed")
    if not (np.isfinite(members).all() and np.isfinite(others).all()):
        raise ValueError("members and others: a statistic is NaN or infinite")
    area, error = _area(members, others)
    area = max(area, 1.0 - area)
    ways = ((members, others), (-members, -others))
    tpr = max(tpr_at(*way, fpr) for way in ways)
    accuracy = max(float((0.5 + (true - false) / 2).max()) for false, true in (roc(*way) for way in ways))
    interval = (max(0.0, area - Z95 * error), min(1.0, area + Z95 * error))
    found = round(tpr * len(members))
    return Separation(area, interval, tpr, wilson(found, len(members)), fpr, accuracy)


def _confidence(scores: Floats, labels: NDArray[Any]) -> Floats:
    return np.asarray(scores.max(axis=1))


def _likelihood(scores: Floats, labels: NDArray[Any]) -> Floats:
    return np.asarray(scores[np.arange(len(scores)), labels])


def _log(x: Floats) -> Floats:
    return np.asarray(np.log(np.maximum(x, 1e-30)))


def _certainty(scores: Floats, labels: NDArray[Any]) -> Floats:
    return np.asarray((scores * _log(scores)).sum(axis=1))


def _modified_certainty(scores: Floats, labels: NDArray[Any]) -> Floats:
    """Minus the modified entropy of Song & Mittal (2021), which knows the true class."""
    own, terms = _likelihood(scores, labels), scores * _log(1.0 - scores)
    return np.asarray((1.0 - own) * _log(own) + terms.sum(axis=1) - _likelihood(terms, labels))


def gap(scores: Floats, labels: NDArray[Any]) -> Floats:
    """1 where the label is right (Yeom et al. 2018): reads nothing but the label."""
    return np.asarray(scores.argmax(axis=1) == labels, np.float64)


def rule(scores: Floats, labels: NDArray[Any]) -> Floats:
    """The gap attack's probability that a record is a member: the top score where the label is right, else its rest."""
    top = _confidence(scores, labels)
    return np.where(gap(scores, labels) > 0, top, 1.0 - top)


#: Statistics of scores ``(n, classes)`` and true classes ``(n,)``; the larger, the more like a member.
STATISTICS: Mapping[str, Callable[[Floats, NDArray[Any]], Floats]] = {
    "confidence": _confidence,
    "likelihood": _likelihood,
    "entropy": _certainty,
    "modified entropy": _modified_certainty,
    "rule": rule,
}


def _features(scores: Floats, labels: NDArray[Any]) -> Floats:
    """Sorted scores, the logarithms of the first few, whether the label is right: what a classifier is shown."""
    ordered = -np.sort(-scores, axis=1)
    return np.column_stack([ordered, _log(ordered[:, :5] + 1e-6) / 5, gap(scores, labels)])


def trained(members: tuple[Floats, NDArray[Any]], others: tuple[Floats, NDArray[Any]], seed: int) -> Separation:
    """A classifier trained on every second record, judged by the rest."""
    known, judged = ([_features(*part)[start::2] for part in (members, others)] for start in (0, 1))
    targets = np.repeat(np.eye(2)[::-1], [len(part) for part in known], axis=0)
    how = Training(hidden=(64,), steps=1000, decay=1e-5)
    student = train(np.concatenate(known), targets, np.random.default_rng(seed), how)
    member = [softmax(student.activations(part)[-1].astype(np.float64))[:, 0] for part in judged]
    return separation(member[0], member[1])


def infer(
    query: Query,
    members: Records,
    others: Records,
    *,
    rng: np.random.Generator,
    disturb: Disturb,
    copies: int = 40,
) -> Membership:
    """Attack a model in every way there is here.

    Args:
        query: the model as the attacker reaches it.
        members, others: records it was trained on, and records of the same kind that it was not.
        rng: the attacker's own randomness.
        disturb: small changes of the input, such as flipped bits.
        copies: disturbed inputs asked about for each record.

    Raises ValueError as `separation` does.
    """
    parts = (members, others)
    of_members, of_others = ((as_distribution(query(part.inputs)), part.labels) for part in parts)
    scores = {name: separation(statistic(*of_members), statistic(*of_others)) for name, statistic in STATISTICS.items()}
    scores["trained"] = trained(of_members, of_others, int(rng.integers(2**63)))
    right, mean = ([np.zeros(len(part.labels)) for part in parts] for _ in range(2))
    for count, total, part in zip(right, mean, parts, strict=True):
        for _ in range(copies):
            near = np.asarray(query(disturb(part.inputs, rng)), np.float64)
            count += gap(near, part.labels)
            total += _likelihood(near, part.labels)
    labels = {"gap": separation(gap(*of_members), gap(*of_others)), "disturbed": separation(right[0], right[1])}
    return Membership(scores, labels, separation(mean[0], mean[1]))
