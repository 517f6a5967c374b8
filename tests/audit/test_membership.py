"""Membership inference by itself: areas, intervals, rates, statistics, attacks on models that remember or do not."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardening.audit.extraction import softmax
from hardening.audit.membership import STATISTICS, Records, gap, infer, roc, rule, separation, tpr_at

SOME = st.lists(st.integers(0, 5).map(float), min_size=1, max_size=12)


@settings(max_examples=200)
@given(SOME, SOME)
def test_area_is_the_share_of_pairs_in_order(members: list[float], others: list[float]) -> None:
    pairs = [1.0 if m > o else 0.5 if m == o else 0.0 for m, o in itertools.product(members, others)]
    found = separation(np.array(members), np.array(others))
    area = float(np.mean(pairs))
    assert found.auc == pytest.approx(max(area, 1 - area))
    assert found.interval[0] <= found.auc <= found.interval[1]
    assert 0.5 <= found.accuracy <= 1.0
    false, true = roc(np.array(members), np.array(others))
    assert (false[0], true[0], false[-1], true[-1]) == (0, 0, 1, 1)
    assert (np.diff(false) * (true[1:] + true[:-1]) / 2).sum() == pytest.approx(area)
    turned = separation(-np.array(members), -np.array(others))
    assert (turned.auc, turned.tpr, turned.accuracy) == pytest.approx((found.auc, found.tpr, found.accuracy))


def test_intervals_cover() -> None:
    """Of two normal laws one deviation apart the area is Phi(1 / sqrt 2)."""
    rng = np.random.default_rng(0)
    truth = 0.5 * (1 + math.erf(0.5))
    intervals = [separation(rng.normal(1, 1, 80), rng.normal(0, 1, 120)).interval for _ in range(1000)]
    assert 0.92 < np.mean([low <= truth <= high for low, high in intervals]) < 0.98


@pytest.mark.parametrize(
    ("members", "others", "fpr", "tpr"),
    # The first three are ART's own cases of `get_roc_for_fpr`.
    [
        ([0.35, 0.33, 0.6], [0.3], 0.001, 1.0),
        ([0.35, 0.32, 0.6, 0.6], [0.33, 0.2], 0.5, 1.0),
        ([0.35, 0.32, 0.6, 0.6], [0.33, 0.2], 0.0, 0.75),
        ([0.5, 0.5], [0.5, 0.5], 0.25, 0.25),
        ([1.0], [0.0], 1.0, 1.0),
    ],
)
def test_rates(members: list[float], others: list[float], fpr: float, tpr: float) -> None:
    assert tpr_at(np.array(members), np.array(others), fpr) == pytest.approx(tpr)


@pytest.mark.parametrize(("members", "others"), [([], [1.0]), ([1.0], []), ([math.nan], [1.0]), ([1.0], [math.inf])])
def test_what_cannot_be_compared(members: list[float], others: list[float]) -> None:
    with pytest.raises(ValueError, match="members and others"):
        separation(np.array(members), np.array(others))


def test_each_record_has_a_probability_of_its_own() -> None:
    """ART's rule-based attack gives all records of a batch the last one's probability (1.20.1)."""
    scores = np.array([[0.9, 0.1, 0.0], [0.3, 0.6, 0.1], [0.7, 0.2, 0.1]])
    labels = np.array([0, 0, 0])
    assert gap(scores, labels).tolist() == [1, 0, 1]
    assert rule(scores, labels).tolist() == pytest.approx([0.9, 0.4, 0.7])
    for statistic in STATISTICS.values():
        alone = [statistic(scores[i : i + 1], labels[i : i + 1])[0] for i in range(3)]
        assert statistic(scores, labels).tolist() == alone


def test_statistics_by_hand() -> None:
    scores, labels = np.array([[0.5, 0.25, 0.25]]), np.array([1])
    entropy = 0.5 * math.log(0.5) + 0.5 * math.log(0.25)
    modified = 0.75 * math.log(0.25) + 0.5 * math.log(0.5) + 0.25 * math.log(0.75)
    by_hand = {"confidence": 0.5, "likelihood": 0.25, "entropy": entropy, "modified entropy": modified, "rule": 0.5}
    assert {name: s(scores, labels)[0] for name, s in STATISTICS.items()} == pytest.approx(by_hand)
    certain = np.array([[1.0, 0.0]])
    assert all(np.isfinite(s(certain, np.array([k]))).all() for s in STATISTICS.values() for k in (0, 1))


def test_a_model_that_remembers_and_one_that_does_not() -> None:
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(5, 3))
    x = rng.normal(size=(600, 5))
    labels = (x @ weights).argmax(axis=1)
    members, others = Records(x[:300], labels[:300]), Records(x[300:], labels[300:])
    known = {row.tobytes() for row in members.inputs}

    def fair(rows: np.ndarray) -> np.ndarray:
        return softmax(rows @ weights)

    def remembers(rows: np.ndarray) -> np.ndarray:
        sure = np.array([[8.0 if row.tobytes() in known else 1.0] for row in rows])
        return softmax(rows @ weights * sure)

    def nudged(rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return rows + rng.normal(0, 0.1, rows.shape)

    told = infer(remembers, members, others, rng=np.random.default_rng(1), disturb=nudged, copies=5)
    assert told.scores["confidence"].interval[0] > 0.75
    assert told.scores["trained"].interval[0] > 0.7
    assert told.labels["gap"].auc == 0.5  # always right
    nothing = infer(fair, members, others, rng=np.random.default_rng(1), disturb=nudged, copies=5)
    assert all(found.interval[0] < 0.52 for found in (*nothing.scores.values(), *nothing.labels.values(), nothing.near))
    assert nothing.floor == max(found.auc for found in nothing.labels.values())
    assert told.scores[told.best].auc == max(found.auc for found in told.scores.values())
