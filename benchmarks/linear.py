"""How others solve the linear programs of perturbation: a general solver, and a greedy loop in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import linprog

from hardening.transforms.perturbation import MARGIN

Rows = NDArray[np.float64]


def highs(scores: Rows, l1: float) -> Rows:
    """Maximum log-likelihood deviation that keeps the top class, row by row, by HiGHS: scipy's default solver.

    In fewer variables than published: what each class gains and loses.
    """
    return np.array([_solved(y, l1) for y in scores])


def _solved(y: Rows, l1: float) -> Any:
    k, top, cost = len(y), int(y.argmax()), np.log(y + 1e-6)
    one, others = sparse.identity(k, format="csr"), np.delete(np.arange(k), top)
    behind = sparse.csr_matrix((np.ones(k - 1), (np.arange(k - 1), np.full(k - 1, top))), (k - 1, k))
    lead = one[others] - behind
    limits = sparse.vstack(
        [sparse.csr_matrix(np.ones((1, 2 * k))), sparse.hstack([-one, one]), sparse.hstack([lead, -lead])]
    )
    found = linprog(
        np.r_[cost, -cost],
        A_ub=limits,
        b_ub=np.concatenate([[l1], y, y[top] - MARGIN - y[others]]),
        A_eq=sparse.csr_matrix(np.r_[np.ones(k), -np.ones(k)][None]),
        b_eq=[0.0],
        bounds=(0, None),
        method="highs",
    )
    return y + found.x[:k] - found.x[k:]


def greedy(scores: Rows, direction: Rows, l1: float) -> Rows:
    """Gradient redirection without the top class, row by row in a loop, as it is published but for the framework."""
    return np.array([_redirected(y, g, l1) for y, g in zip(scores, direction, strict=True)])


def _redirected(y: Rows, direction: Rows, l1: float) -> Rows:
    z, order = y.copy(), np.argsort(direction)
    cheapest = order[0]
    given = left = min(l1 / 2, 1.0 - z[cheapest])
    for j in order[:0:-1]:
        moved = min(z[j], left)
        z[j] -= moved
        left -= moved
        if left <= 0.0:
            break
    z[cheapest] += given - left
    return z
