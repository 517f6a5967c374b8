"""Perturbation alone, by our programs and by what others solve the same linear programs with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from benchmarks import linear
from benchmarks.gate import Race
from hardening.pipeline import Pipeline
from hardening.program import Program, Task
from hardening.transforms import Grad2, Mld, Transform

L1 = 1.0
#: Rows at a time: the general solver takes a second for a hundred of them, and ours so little for as few that a cold
#: start would be measured; it gets `AHEAD` times as many.
FEW, MANY, AHEAD = 8, 64, 64
CLASSES = (10, 100, 1000)


def ours(transform: Transform, rows: int, classes: int) -> Callable[[Any], object]:
    """The transform on scores, and on a direction if it wants one, in arrays that are there already."""
    scores, direction = np.empty((rows, classes)), np.empty((rows, classes))
    program = Program(Pipeline("simplex", (transform,)), classes, None, "p", "")
    nonces = np.zeros((rows, 3), np.uint32)
    task = Task(program, scores, rows, nonces, None, direction if program.unreleased else None)

    def run(q: Any) -> object:
        scores[...], direction[...] = q
        if status := task.run():
            raise RuntimeError(f"status {status}")
        return scores

    return run


def fresh(rows: int, classes: int) -> Callable[[np.random.Generator], Any]:
    def make(rng: np.random.Generator) -> Any:
        scores = np.exp(4.0 * rng.standard_normal((rows, classes)))
        return scores / scores.sum(axis=1, keepdims=True), rng.standard_normal((rows, classes))

    return make


@pytest.mark.parametrize("classes", CLASSES, ids=[f"mld-{k}" for k in CLASSES])
def test_likelihood(classes: int, race: Race) -> None:
    rows = AHEAD * FEW
    race(
        {"mld of 512 rows": ours(Mld(l1=L1), rows, classes), "HiGHS of 8": lambda q: linear.highs(q[0][:FEW], L1)},
        fresh(rows, classes),
    )


@pytest.mark.parametrize("classes", CLASSES, ids=[f"grad2-{k}" for k in CLASSES])
def test_redirection(classes: int, race: Race) -> None:
    transform = Grad2(l1=L1, keep_top1=False, surrogate="direction")
    race(
        {"grad2": ours(transform, MANY, classes), "numpy": lambda q: linear.greedy(q[0], q[1], L1)},
        fresh(MANY, classes),
    )
