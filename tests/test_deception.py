"""What deceptions promise: budgets, kept labels, draws that asking again does not change."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hardening.noise import Key
from hardening.pipeline import Pipeline
from hardening.program import Program, Task
from hardening.transforms import DynaNoise, Gaussian, MemGuard, Project, RandomTarget, Transform, Types

KEY = Key(1, "chacha20", bytes(range(32)))


def run(x: NDArray[Any], *transforms: Transform, seed: int = 0, model: str = "m") -> NDArray[Any]:
    out = x.copy()
    nonces = np.random.default_rng(seed).integers(0, 2**32, (len(x), 3), dtype=np.uint32)
    assert Task(Program(Pipeline("simplex", transforms), x.shape[1], KEY, "p", model), out, len(x), nonces).run() == 0
    return out


#: Rows of a few classes, often with ties, zeros, certainty, and scores that only a float64 tells apart.
ROWS = st.lists(
    st.lists(st.sampled_from([0.0, 1e-300, 1e-12, 0.5, 1.0, 1.0 + 2**-50, 7.0]), min_size=5, max_size=5), min_size=1
)


def distributions(rows: list[list[float]], dtype: str) -> NDArray[Any]:
    x = np.array(rows)
    x[x.sum(axis=1) == 0, 0] = 1.0
    return (x / x.sum(axis=1, keepdims=True)).astype(dtype)


@settings(max_examples=60)
@given(ROWS, st.sampled_from([1e-3, 0.3, 1.0, 2.0]), st.sampled_from(["f4", "f8"]), st.sampled_from([None, 0.505, 1.0]))
def test_memguard_keeps_budget_and_label(rows: list[list[float]], l1: float, dtype: str, confidence: Any) -> None:
    x = distributions(rows, dtype)
    out = run(x, MemGuard(l1=l1, confidence=confidence))
    assert np.abs(out.astype("f8") - x).sum(axis=1).max() <= l1 + (1e-6 if dtype == "f4" else 1e-9)
    assert np.array_equal(out.argmax(axis=1), x.argmax(axis=1))


def test_memguard_by_hand() -> None:
    """Within reach a row becomes the profile; beyond, it goes the share l1 / d of the way (MemGuard's probability)."""
    x = np.array([[0.9, 0.1, 0.0], [0.6, 0.2, 0.2], [1.0, 0.0, 0.0]])
    out = run(x, MemGuard(l1=0.4, confidence=1.0))
    assert out == pytest.approx(np.array([[1.0, 0.0, 0.0], [0.8, 0.1, 0.1], [1.0, 0.0, 0.0]]))
    assert MemGuard(l1=0.4).target == 0.8
    assert MemGuard(l1=1.5).target == 0.505
    x = np.array([[0.9, 0.1, 0.0], [0.5, 0.2, 0.3], [1.0, 0.0, 0.0]])
    expected = [[0.8, 0.2, 0.0], [0.7, 0.2 / 3, 0.7 / 3], [0.8, 0.2, 0.0]]
    assert run(x, MemGuard(l1=0.4)) == pytest.approx(np.array(expected))


@pytest.mark.parametrize("width", [2, 5, 30, 100, 300])
def test_memguard_makes_all_rows_within_reach_the_same(width: int) -> None:
    x = np.random.default_rng(width).dirichlet(np.full(width, 2.0 / width), 400)
    out = run(x, MemGuard(l1=0.5))
    profile = np.zeros(width)
    profile[:2] = 0.75, 0.25
    ordered = -np.sort(-x, axis=1)
    reached = np.abs(ordered - profile).sum(axis=1) <= 0.5 - 1e-9
    assert 20 < reached.sum() <= 400
    assert len(np.unique(-np.sort(-out[reached], axis=1), axis=0)) == 1
    assert np.abs(out[~reached] - x[~reached]).sum(axis=1) == pytest.approx(0.5)


@settings(max_examples=60)
@given(ROWS, st.sampled_from([1e-3, 0.3, 1.0, 2.0]), st.sampled_from(["f4", "f8"]))
def test_random_target_keeps_budget_and_label(rows: list[list[float]], l1: float, dtype: str) -> None:
    x = distributions(rows, dtype)
    slack = 1e-6 if dtype == "f4" else 1e-9
    kept, free = run(x, RandomTarget(l1=l1)), run(x, RandomTarget(l1=l1, keep_top1=False))
    for out in (kept, free):
        assert np.abs(out.astype("f8") - x).sum(axis=1).max() <= l1 + slack
    assert np.array_equal(kept.argmax(axis=1), x.argmax(axis=1))


def test_random_target_moves_what_it_says() -> None:
    """In L1 it is l1 (1 - y_j), and j is never the top class; every other is as likely."""
    n, l1 = 20000, 0.4
    y = np.array([0.1, 0.55, 0.05, 0.2, 0.1])
    out = run(np.tile(y, (n, 1)), RandomTarget(l1=l1))
    target = (out - (1 - l1 / 2) * y).argmax(axis=1)
    expected = (1 - l1 / 2) * y + l1 / 2 * np.eye(5)[target]
    assert out == pytest.approx(expected)
    assert np.abs(out - y).sum(axis=1) == pytest.approx(l1 * (1 - y[target]))
    counts = np.bincount(target, minlength=5)
    assert counts[1] == 0
    assert np.abs(counts[[0, 2, 3, 4]] - n / 4).max() < 5 * math.sqrt(n * 3 / 16)
    # Without the label kept the whole budget is moved, whoever leads then.
    far = run(np.tile(y, (n, 1)), RandomTarget(l1=1.6, keep_top1=False))
    assert (far.argmax(axis=1) != 1).all()
    near = run(np.tile(y, (n, 1)), RandomTarget(l1=1.6))
    others = np.sort(near, axis=1)
    assert (near.argmax(axis=1) == 1).all()
    assert others[:, -1] - others[:, -2] == pytest.approx(2.0**-20)


def entropies(x: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(-(x * np.log(np.maximum(x, 1e-300))).sum(axis=1))


@pytest.mark.parametrize("width", [2, 4, 20, 64, 100])
def test_dynanoise_is_as_loud_as_published(width: int) -> None:
    """Log-ratios of answers differ from clean ones by noise of twice the variance, which follows the entropy."""
    rows = np.random.default_rng(width).dirichlet(np.full(width, 2.0), 3)
    for sharp in (1.0, 4.0):
        for y in rows**sharp / (rows**sharp).sum(axis=1, keepdims=True):
            x = np.tile(y, (8000, 1))
            out = run(x, DynaNoise(variance=0.04, gain=3.0, t=2.0, keep_top1=False), seed=width)
            off = 2.0 * np.log(out[:, 0] / out[:, 1]) - math.log(y[0] / y[1])
            certain = 1.0 - entropies(y[None])[0] / math.log(width)
            assert off.mean() == pytest.approx(0.0, abs=0.03)
            assert off.var() == pytest.approx(2 * 0.04 * (1 + 3.0 * certain), rel=0.08)


@settings(max_examples=60)
@given(ROWS, st.sampled_from([1e-3, 1.0, 100.0]), st.sampled_from([0.5, 1.0, 10.0]), st.sampled_from(["f4", "f8"]))
def test_dynanoise_keeps_the_label(rows: list[list[float]], variance: float, t: float, dtype: str) -> None:
    x = distributions(rows, dtype)
    out = run(x, DynaNoise(variance=variance, gain=2.0, t=t))
    assert np.array_equal(out.argmax(axis=1), x.argmax(axis=1))
    assert np.isfinite(out).all()
    assert np.abs(out.sum(axis=1, dtype="f8") - 1).max() < 1e-6


def test_dynanoise_exchanges_scores_where_the_label_would_be_lost() -> None:
    x = np.tile([0.3, 0.4, 0.2, 0.1], (200, 1))
    kept, free = (run(x, DynaNoise(variance=2.0, keep_top1=keep), model="m") for keep in (True, False))
    assert (kept.argmax(axis=1) == 1).all()
    assert 0.2 < (free.argmax(axis=1) != 1).mean() < 0.8


DRAWING: dict[str, tuple[Transform, ...]] = {
    "random": (RandomTarget(l1=0.8),),
    "dynanoise": (DynaNoise(variance=0.5),),
}


@pytest.mark.parametrize("name", DRAWING)
def test_asking_again_gains_nothing_and_nothing_else_shares_a_draw(name: str) -> None:
    x = np.random.default_rng(0).dirichlet(np.full(10, 2.0), 40)
    first = run(x, *DRAWING[name])
    assert np.array_equal(first, run(x, *DRAWING[name]))
    assert np.array_equal(first[7:9], run(x, *DRAWING[name])[7:9])
    for other in (run(x, *DRAWING[name], seed=1), run(x, *DRAWING[name], model="another")):
        assert (first == other).all(axis=1).mean() < 0.3


def test_near_duplicates_share_the_noise_of_a_cell() -> None:
    x = np.tile([0.3, 0.4, 0.2, 0.1], (64, 1)) + np.random.default_rng(0).normal(0, 1e-6, (64, 4))
    x /= x.sum(axis=1, keepdims=True)
    spread = {key: run(x, DynaNoise(variance=1.0, key=key)).std(axis=0).max() for key in ("input", "cell")}
    assert spread["cell"] < 1e-4 < 0.05 < spread["input"]


def test_noise_before_a_deception_keeps_its_promise() -> None:
    noisy: tuple[Transform, ...] = (Gaussian(sigma=0.1), Project())
    for transforms, relation in (
        ((*noisy, MemGuard(l1=0.5)), "output-metric"),
        ((*noisy, RandomTarget(l1=0.5)), "output-metric"),
        ((*noisy, DynaNoise(keep_top1=False)), "output-metric"),
        ((*noisy, DynaNoise()), "label"),
        ((DynaNoise(),), "none"),
        ((MemGuard(l1=0.5),), "none"),
        ((Types(n=10), RandomTarget(l1=0.5)), "none"),
    ):
        assert Pipeline("simplex", transforms).guarantee(10).relation == relation
    assert Pipeline("simplex", (DynaNoise(),)).guarantee(10).keeps_top1
    assert not Pipeline("simplex", (RandomTarget(l1=0.5, keep_top1=False),)).guarantee(10).keeps_top1
    kept = Pipeline("simplex", (Types(n=10), MemGuard(l1=0.5))).guarantee(10)
    assert kept.bits == Pipeline("simplex", (Types(n=10),)).guarantee(10).bits


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: MemGuard(l1=0.0), "l1"),
        (lambda: MemGuard(l1=2.5), "l1"),
        (lambda: MemGuard(l1=math.nan), "l1"),
        (lambda: MemGuard(l1=0.5, confidence=0.5), "confidence"),
        (lambda: MemGuard(l1=0.5, confidence=1.5), "confidence"),
        (lambda: RandomTarget(l1=-1.0), "l1"),
        (lambda: RandomTarget(l1=1.0, keep_top1=1), "keep_top1"),  # type: ignore[arg-type]
        (lambda: RandomTarget(l1=1.0, key="cell"), "key"),  # type: ignore[arg-type]
        (lambda: DynaNoise(variance=0.0), "variance"),
        (lambda: DynaNoise(variance=1e9), "variance"),
        (lambda: DynaNoise(gain=-1.0), "gain"),
        (lambda: DynaNoise(t=1e-9), "t"),
        (lambda: DynaNoise(t=math.inf), "t"),
        (lambda: DynaNoise(keep_top1="yes"), "keep_top1"),  # type: ignore[arg-type]
        (lambda: DynaNoise(key="client"), "key"),  # type: ignore[arg-type]
    ],
)
def test_impossible_parameters_are_refused(make: Any, name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}: must be"):
        make()


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (3, 1), (9, 1), (1, 20000)])
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
@pytest.mark.parametrize(
    "made", [MemGuard(l1=0.5), RandomTarget(l1=0.5), DynaNoise(variance=4.0)], ids=lambda t: t.kind
)
def test_odd_shapes(made: Transform, dtype: str, shape: tuple[int, int]) -> None:
    x = np.zeros(shape, dtype)
    if x.size:
        x[:, -1] = 1
    out = run(x, made)
    assert (out.shape, out.dtype) == (x.shape, x.dtype)
    assert np.isfinite(out).all()
    if x.size:
        assert (out.argmax(axis=1) == shape[1] - 1).all()
        assert out.sum(axis=1, dtype="f8") == pytest.approx(1.0, abs=1e-2 if dtype == "f2" else 1e-5)
