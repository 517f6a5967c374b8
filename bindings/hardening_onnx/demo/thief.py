"""The demo's attacks: a copy of magika from its answers, and a softmax regression solved from its scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardening.audit.extraction import Extraction, Training, extract, solve

#: The undefended model's name among the tiers.
BARE = "undefended"
_DIMENSIONS = 192


def compress(pool: NDArray[Any], held_out: NDArray[Any], rng: np.random.Generator) -> tuple[NDArray[Any], NDArray[Any]]:
    """Principal components of `pool` by randomised subspace iteration (Halko, Martinsson & Tropp 2011), of both sets.

    The attacker computes this from files alone, without asking anything.
    """
    rank = min(_DIMENSIONS, *pool.shape)
    mean = pool.mean(axis=0)
    centred = pool - mean
    basis = rng.normal(size=(pool.shape[1], min(rank + 16, *pool.shape))).astype(pool.dtype)
    for _ in range(3):
        basis = np.linalg.qr(centred.T @ np.linalg.qr(centred @ basis)[0])[0]
    right = np.linalg.svd(centred @ basis, full_matrices=False)[2]
    basis = basis @ right[:rank].T
    compressed = centred @ basis
    scale = float(compressed.std()) or 1.0
    return compressed / scale, (held_out - mean) @ basis / scale


def copies(
    answers: Mapping[str, NDArray[Any]],
    features: NDArray[Any],
    held_out: NDArray[Any],
    labels: NDArray[Any],
    budgets: Sequence[int],
    seed: int,
    done: Callable[[float], None],
) -> dict[str, tuple[Extraction, ...]]:
    """For each tier of `answers` (scores of the whole pool, as released), an attack with each budget.

    Attacks with the same budget ask the same questions and start from the same weights, whatever the tier.
    """
    everything = np.arange(len(features))
    training = Training(hidden=(_DIMENSIONS,), steps=600)
    table: dict[str, tuple[Extraction, ...]] = {}
    for tier, scores in answers.items():
        row = []
        for budget in budgets:
            rng = np.random.default_rng([seed, budget])
            query = scores.__getitem__
            row.append(
                extract(query, everything, features, held_out, labels, budget=budget, rng=rng, training=training)
            )
            done((len(table) + len(row) / len(budgets)) / len(answers))
        table[tier] = tuple(row)
    return table


def solutions(
    queries: Mapping[str, Callable[[NDArray[Any]], NDArray[Any]]], width: int, budgets: Sequence[int], seed: int
) -> dict[str, tuple[Extraction, ...]]:
    """Recover a softmax regression over `width` normal inputs through each tier, with each budget."""
    rng = np.random.default_rng([seed, 5])
    inputs, held_out = (rng.normal(size=(n, width)).astype(np.float32) for n in (max(budgets), 2000))
    labels = queries[BARE](held_out).argmax(axis=1)
    return {
        tier: tuple(
            solve(query, inputs, held_out, labels, budget=n, rng=np.random.default_rng([seed, n])) for n in budgets
        )
        for tier, query in queries.items()
    }
