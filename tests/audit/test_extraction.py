"""The extraction attack by itself: intervals, gradients, students, budgets, views."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hardening.audit.extraction import (
    VIEWS,
    Extraction,
    Fidelity,
    Student,
    Training,
    _gradients,
    as_distribution,
    extract,
    one_hot,
    softmax,
    solve,
    train,
    wilson,
)


@pytest.mark.parametrize(
    ("agreed", "trials", "low", "high"),
    # 81 of 263 is the example of Newcombe (1998).
    [(0, 10, 0.0, 0.2775), (81, 263, 0.2553, 0.3662), (10, 10, 0.7225, 1.0), (0, 0, 0.0, 1.0)],
)
def test_wilson(agreed: int, trials: int, low: float, high: float) -> None:
    assert wilson(agreed, trials) == pytest.approx((low, high), abs=5e-5)


def test_wilson_covers() -> None:
    rng = np.random.default_rng(0)
    for p in (0.05, 0.5, 0.97):
        intervals = [wilson(int(n), 80) for n in rng.binomial(80, p, 4000)]
        assert 0.92 < np.mean([low <= p <= high for low, high in intervals]) < 0.98


def test_views() -> None:
    scores = np.array([[0.2, 0.5, 0.3], [-1.0, -2.0, -3.0], [0.4, 0.4, 0.2]])
    assert one_hot(scores).tolist() == [[0, 1, 0], [1, 0, 0], [1, 0, 0]]
    assert np.allclose(as_distribution(scores), [[0.2, 0.5, 0.3], [1 / 3] * 3, [0.4, 0.4, 0.2]])


def test_gradients_against_finite_differences() -> None:
    rng = np.random.default_rng(1)
    x, t = rng.normal(size=(7, 5)), softmax(rng.normal(size=(7, 3)))
    shapes = [(5, 4), (4,), (4, 3), (3,)]
    parameters = [rng.normal(size=s) for s in shapes]

    def loss() -> float:
        hidden = np.maximum(x @ parameters[0] + parameters[1], 0)
        p = softmax(hidden @ parameters[2] + parameters[3])
        penalty = sum((w * w).sum() for w in parameters[::2]) * 0.01 / 2
        return float(-(t * np.log(p)).sum(axis=1).mean() + penalty)

    student: Any = Student(tuple(zip(parameters[::2], parameters[1::2], strict=True)))
    found = _gradients(student, x, t, 0.01)
    for parameter, gradient in zip(parameters, found, strict=True):
        for index in np.ndindex(parameter.shape):
            kept = parameter[index]
            parameter[index] = kept + 1e-3
            above = loss()
            parameter[index] = kept - 1e-3
            below = loss()
            parameter[index] = kept
            assert gradient[index] == pytest.approx((above - below) / 2e-3, abs=2e-3)


def teacher(classes: int = 5) -> tuple[Any, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(2)
    weights = rng.normal(size=(8, classes))
    return (
        (lambda x: softmax(np.asarray(x, np.float64) @ weights)),
        rng.normal(size=(600, 8)),
        rng.normal(size=(500, 8)),
    )


def test_a_student_learns_and_is_reproducible() -> None:
    query, inputs, held_out = teacher()
    one, two = (train(inputs, query(inputs), np.random.default_rng(3)) for _ in range(2))
    assert all(
        np.array_equal(a, b) for l1, l2 in zip(one.layers, two.layers, strict=True) for a, b in zip(l1, l2, strict=True)
    )
    assert (one.labels(held_out) == query(held_out).argmax(axis=1)).mean() > 0.9


def test_extract_spends_no_more_than_its_budget() -> None:
    query, inputs, held_out = teacher()
    asked: list[int] = []

    def counted(x: np.ndarray) -> np.ndarray:
        asked.append(len(x))
        return np.asarray(query(x))

    labels = query(held_out).argmax(axis=1)
    quick = Training(hidden=(16,), steps=50)
    for budget, repeats, inputs_asked in ((100, 1, 100), (100, 3, 33), (10**6, 1, 600)):
        asked.clear()
        rng = np.random.default_rng(0)
        found = extract(
            counted, inputs, inputs, held_out, labels, budget=budget, rng=rng, repeats=repeats, training=quick
        )
        assert sum(asked) == found.queries == inputs_asked * repeats <= budget
        assert found.inputs == inputs_asked
        assert set(found.by_view) == set(VIEWS)
        assert found.fidelity.trials == 500


def test_more_questions_make_a_better_copy() -> None:
    query, inputs, held_out = teacher()
    labels = query(held_out).argmax(axis=1)
    few, many = (
        extract(query, inputs, inputs, held_out, labels, budget=n, rng=np.random.default_rng(1)) for n in (15, 600)
    )
    assert few.fidelity.interval[1] < many.fidelity.interval[0]


def test_the_better_view_is_reported() -> None:
    found = Extraction(10, 10, {"scores": Fidelity(3, 10), "labels": Fidelity(7, 10)})
    assert (found.view, found.fidelity.value) == ("labels", 0.7)


def test_solve_is_exact_on_exact_scores() -> None:
    query, inputs, held_out = teacher()
    labels = query(held_out).argmax(axis=1)
    found = solve(query, inputs, held_out, labels, budget=10, rng=np.random.default_rng(0))
    assert (found.view, found.fidelity.value) == ("equations", 1.0)
    assert solve(query, inputs, held_out, labels, budget=6, rng=np.random.default_rng(0)).fidelity.value < 1.0


def test_what_cannot_be_done_is_said() -> None:
    query, inputs, held_out = teacher()
    labels = query(held_out).argmax(axis=1)
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="budget: 3 queries do not pay for one input asked 4 times"):
        extract(query, inputs, inputs, held_out, labels, budget=3, rng=rng, repeats=4)
    with pytest.raises(ValueError, match="held_out: 500 rows of features, but 499 labels"):
        solve(query, inputs, held_out, labels[1:], budget=30, rng=rng)
    with pytest.raises(ValueError, match="nothing to ask"):
        extract(query, inputs[:0], inputs[:0], held_out, labels, budget=3, rng=rng)
