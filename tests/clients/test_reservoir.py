"""The reservoir: distances between questions in constant memory."""

from __future__ import annotations

import numpy as np
import pytest

from hardening.clients.reservoir import DIMENSIONS, ENOUGH, POINTS, Reservoir, normality, projection


def after(points: np.ndarray, seed: int = 0) -> Reservoir:
    rng, kept = np.random.default_rng(seed), Reservoir.new()
    for point in points:
        kept = kept.after(point, 0, rng.random())
    return kept


def test_a_verdict_takes_enough_distances() -> None:
    rng = np.random.default_rng(0)
    assert normality(rng.normal(size=ENOUGH - 1)) is None
    normal = normality(rng.normal(size=500))
    assert normal is not None
    assert normal >= 0.99
    two = normality(np.concatenate([rng.normal(0, 0.1, 250), rng.normal(1, 0.1, 250)]))
    assert two is not None
    assert two < 0.9
    assert normality(np.ones(200)) == 0.0


def test_memory_is_bounded() -> None:
    kept = after(np.random.default_rng(1).normal(size=(1500, DIMENSIONS)) * np.linspace(1, 50, 1500)[:, None])
    assert len(kept.points) == len(kept.labels) == POINTS
    assert len(kept.distances) <= 512
    assert kept.offered > POINTS


def test_only_news_is_kept() -> None:
    """A question nearer than the class's threshold adds a distance and no point."""
    rng = np.random.default_rng(2)
    kept = after(rng.normal(size=(300, DIMENSIONS)))
    (_, limit), *_ = kept.limits
    again = kept.after(kept.points[0] + np.float32(1e-3), 0, 0.5)
    assert again.offered == kept.offered
    assert again.distances[-1] < limit
    assert kept.after(np.full(DIMENSIONS, 100, "f4"), 0, 0.0).offered == kept.offered + 1
    assert kept.after(kept.points[0], 1, 0.0).distances is kept.distances, "the first of a class has no neighbour"


def test_what_is_kept_is_a_fair_sample() -> None:
    """Each of 400 questions is kept as often as any other."""
    counts = np.zeros(400)
    points = np.repeat(2.0 ** np.arange(400)[:, None] % 9973, DIMENSIONS, 1).astype("f4")
    points[:, 0] = np.arange(400) * 1e4
    for seed in range(60):
        rng, kept = np.random.default_rng(seed), Reservoir.new()
        for point in points:
            kept = kept._with(point, 0, rng.random())
        counts[(kept.points[:, 0] / 1e4).round().astype(int)] += 1
    early, late = counts[:200].mean(), counts[200:].mean()
    assert early == pytest.approx(60 * POINTS / 400, rel=0.05)
    assert late == pytest.approx(early, rel=0.08)


def test_projection_keeps_distances_and_is_secret() -> None:
    x = np.random.default_rng(3).normal(size=(100, 3000))
    p = projection(b"s", 3000)
    assert p.shape == (3000, DIMENSIONS)
    assert np.array_equal(p, projection(b"s", 3000))
    assert not np.array_equal(p, projection(b"t", 3000))
    ratio = np.linalg.norm(x @ p, axis=1) / np.linalg.norm(x, axis=1)
    assert ratio.mean() == pytest.approx(1, abs=0.05)


def test_questions_made_from_each_other_are_not_normal() -> None:
    """Draws apart from each other against those of a Jacobian augmentation: seeds and small steps from them."""
    rng = np.random.default_rng(4)
    honest = after(rng.normal(size=(400, DIMENSIONS))).normality()
    seeds = rng.normal(size=(50, DIMENSIONS))
    made = [seeds]
    while sum(map(len, made)) < 400:
        made.append(np.concatenate(made) + 0.1 * np.sign(rng.normal(size=(sum(map(len, made)), DIMENSIONS))))
    thief = after(np.concatenate(made)[:400]).normality()
    assert honest is not None
    assert thief is not None
    assert thief < 0.9 < honest
