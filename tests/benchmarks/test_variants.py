"""What is compared does the same work: the numpy peers against the guard, and the models against their declaration."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import hardening
from benchmarks import bench_perturb, linear, variants
from benchmarks.models import MODELS
from hardening.transforms import Grad2, Mld
from tests.keys import fixed_key


def scores(rows: int, classes: int) -> np.ndarray:
    p = np.exp(2.0 * np.random.default_rng(rows).standard_normal((rows, classes))).astype("f4")
    return p / p.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("shape", [(1, 10), (64, 10), (8, 1000)])
def test_the_plain_numpy_chain_equals_the_policy(shape: tuple[int, int], tmp_path: Path) -> None:
    p = scores(*shape)
    with hardening.Guard(variants.load(tmp_path, "plain", "p")) as guard:
        hardened = guard.harden({"p": p}, client="bench")["p"]
    np.testing.assert_allclose(variants.numpy_plain(p, p), hardened, atol=1e-6)


def test_the_full_numpy_chain_keeps_what_the_policy_keeps_and_is_keyed(tmp_path: Path) -> None:
    fixed_key(tmp_path, "bench.key")
    p, x = scores(500, 10), np.random.default_rng(1).standard_normal((500, 64)).astype("f4")
    with hardening.Guard(variants.load(tmp_path, "full", "p")) as guard:
        ours = guard.harden({"p": p}, client="bench", inputs={"x": x})["p"]
    naive = variants.numpy_full(p, x)
    np.testing.assert_array_equal(naive, variants.numpy_full(p, x))
    assert not np.array_equal(naive, variants.numpy_full(p, x, key=bytes([1]) * 32))
    for released in (ours, naive):
        np.testing.assert_array_equal(released.max(axis=1), released[np.arange(500), p.argmax(axis=1)])
        np.testing.assert_allclose(released.sum(axis=1), 1.0, atol=1e-6)
        np.testing.assert_allclose(released * variants.UNITS, np.rint(released * variants.UNITS), atol=1e-4)
    # Both move a score by as much as the other, within a tenth.
    assert np.abs(naive - p).mean() == pytest.approx(np.abs(ours - p).mean(), rel=0.1)


@pytest.mark.parametrize("classes", bench_perturb.CLASSES)
def test_the_linear_programs_are_the_same(classes: int) -> None:
    scores, direction = bench_perturb.fresh(3, classes)(np.random.default_rng(0))
    solved, cost = linear.highs(scores, 1.0), np.log(scores + 1e-6)
    ours = np.array(bench_perturb.ours(Mld(l1=1.0), 3, classes)((scores, direction)))
    np.testing.assert_allclose((ours * cost).sum(axis=1), (solved * cost).sum(axis=1), atol=1e-6)
    transform = Grad2(l1=1.0, keep_top1=False, surrogate="direction")
    ours = np.array(bench_perturb.ours(transform, 3, classes)((scores, direction)))
    np.testing.assert_allclose(ours, linear.greedy(scores, direction, 1.0), atol=1e-12)


@pytest.mark.parametrize("name", MODELS)
def test_models_give_distributions(name: str) -> None:
    model = MODELS[name]()
    source, output = model.source
    p = model.session().run([output], {source: model.inputs(np.random.default_rng(0), 2)})[0]
    assert p.shape[0] == 2
    np.testing.assert_allclose(p.sum(axis=1), 1.0, atol=1e-3)
    if name != "magika":  # which is sure that noise is no file type at all
        assert p.max() < 0.999
