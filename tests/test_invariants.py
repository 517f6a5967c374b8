"""What holds for every answer, whatever the transform: each invariant, and a naive build that breaks it.

`broken` says which invariants a row violates. The naive builds are what such post-processing commonly looks like; each
of them fails the test that ours passes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hardening.kernels import layout
from hardening.noise import Key, noise_table
from hardening.pipeline import Pipeline
from hardening.transforms import (
    TRANSFORMS,
    Clip,
    CoverageNoise,
    Gaussian,
    Noise,
    Orthogonal,
    Project,
    Round,
    Temperature,
    TopK,
    Transform,
    Types,
)
from tests.registry import CASES, EXAMPLES, Case
from tests.rows import DTYPES, FLAVOURS, KEY, WITHIN_ONE, broken, harden, scores

every_case = pytest.mark.parametrize("case", CASES, ids=str)


def test_every_kind_of_transform_has_examples() -> None:
    """A new transform is tested here as soon as it has one; until then this fails."""
    assert set(EXAMPLES) == set(TRANSFORMS)
    assert all(type(t) is TRANSFORMS[kind] for kind, examples in EXAMPLES.items() for t in examples)
    for transforms in EXAMPLES.values():
        for transform in transforms:
            assert any(c.transform == transform for c in CASES), f"no space takes {transform}"


@every_case
@settings(max_examples=12)
@given(st.integers(1, 40), st.integers(0, 2**32 - 1), st.sampled_from(FLAVOURS), st.sampled_from(DTYPES))
def test_every_answer_is_clean(case: Case, width: int, seed: int, flavour: str, dtype: str) -> None:
    x = scores(case.pipeline.space, flavour, 9, width, dtype, seed)
    keeps = case.pipeline.keeps_label(x.shape[1])
    status, y = harden(case.pipeline, x)
    if status:  # the one thing that may be refused: noise has a grid with two ends, and so have floats in a sum
        assert (status % 8, flavour) == (layout.OUT_OF_RANGE, "huge")
        assert isinstance(case.transform, Noise | CoverageNoise | Orthogonal)
        return
    assert broken(x, y, case.pipeline.space, keeps) == set()
    nonces = np.arange(27, dtype=np.uint32).reshape(9, 3)
    for i in range(9):
        assert np.array_equal(harden(case.pipeline, x[i : i + 1], nonces[i : i + 1])[1][0], y[i]), "depends on others"


@pytest.mark.parametrize("space", ["simplex", "sigmoid", "logits", "scalar"])
@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=30)
@given(st.integers(1, 90), st.integers(0, 2**32 - 1), st.sampled_from(FLAVOURS))
def test_the_last_step_is_its_reference_bit_for_bit(
    space: Any, dtype: str, width: int, seed: int, flavour: str
) -> None:
    x, pipeline = scores(space, flavour, 9, width, dtype, seed), Pipeline(space, (), dense=True)
    status, y = harden(pipeline, x)
    assert status == 0
    assert np.array_equal(y, pipeline.reference(x).astype(dtype))


@pytest.mark.parametrize("width", [20_000, 200_000])
def test_long_rows_in_half_precision_keep_their_mass(width: int) -> None:
    """Most of their entries are subnormal: each moves by less than 2**-14, and as floats alone they would be lost."""
    x = np.random.default_rng(0).dirichlet(np.full(width, 5.0), 2).astype("f2")
    clean = x.astype("f8") / x.sum(axis=1, dtype="f8")[:, None]
    naive = np.where(x < np.finfo("f2").smallest_normal, 0, x).astype("f8")
    print(f"{width} classes: mass left by naive flushing {naive.sum(axis=1)}")
    assert (naive.sum(axis=1) < 0.75).all()
    status, y = harden(Pipeline("simplex", ()), x)
    assert status == 0
    assert broken(x, y, "simplex", True) == set()
    change, top = y - clean, x.argmax(axis=1)
    assert np.abs(np.cumsum(change, axis=1)).max() < 2.0**-12, "mass stays near where it was"
    assert np.abs(change[[0, 1], top]).max() < 3 * 2.0**-14
    change[[0, 1], top] = 0
    assert np.abs(change).max() < 2.0**-14


def _art_gaussian(x: NDArray[Any]) -> NDArray[Any]:
    noisy = np.clip(x + np.random.default_rng(0).normal(size=x.shape) * 2, 0, None).astype(x.dtype)
    return np.asarray(noisy / noisy.sum(axis=1, keepdims=True))


NAIVE: dict[str, tuple[str, str, str, str, Callable[[NDArray[Any]], NDArray[Any]]]] = {
    "noise renormalised": ("simplex", "spread", "f4", "finite", _art_gaussian),
    "logits divided": ("logits", "huge", "f4", "finite", lambda x: np.asarray(x / x.dtype.type(0.05))),
    "passed on": ("simplex", "tiny", "f4", "normal", lambda x: x),
    "half precision": ("simplex", "peaked", "f2", "normal", lambda x: x),
    "rounded": ("simplex", "spread", "f8", "simplex", lambda x: np.round(x, 2)),
    "cut off": ("simplex", "uniform", "f8", "simplex", lambda x: np.where(x > 0.35, x, 0.0)),
    "rounded ties": ("simplex", "near", "f8", "label", lambda x: np.floor(x[:, ::-1] * 4)[:, ::-1] / 4),
    "rounded scalars": ("scalar", "tiny", "f4", "one zero", lambda x: np.round(x, 2)),
    "noisy sigmoids": ("sigmoid", "spread", "f4", "range", lambda x: (x + 1).astype(x.dtype)),
}


@pytest.mark.parametrize("name", NAIVE)
def test_naive_builds_break_them(name: str) -> None:
    space, flavour, dtype, invariant, build = NAIVE[name]
    x = scores(space, flavour, 200, 5, dtype, 3)
    if name == "rounded ties":
        x = np.roll(x, 1, axis=1)
    with np.errstate(all="ignore"):
        assert invariant in broken(x, build(x), space, invariant == "label")


def test_naive_noise_depends_on_the_rest_of_the_batch() -> None:
    """A generator that goes on from row to row gives a row other noise alone; ours is a function of the row's own."""
    x = scores("simplex", "spread", 9, 5, "f8", 1)
    assert not np.array_equal(_art_gaussian(x)[3], _art_gaussian(x[3:4])[0])


def test_a_million_noisy_scores_without_nan() -> None:
    """Of three classes under noise of scale 2 a common build loses all mass in one row of twelve, and divides by it."""
    x = np.full((200_000, 3), 1 / 3)
    with np.errstate(all="ignore"):
        lost = int(np.isnan(_art_gaussian(x)).any(axis=1).sum())
    share, error = lost / len(x), 4 * math.sqrt(lost) / len(x)
    print(f"rows of NaN: naive {share:.4f} +- {error:.4f}, ours 0 of {len(x)}")
    assert share - error > 0.05
    nonces = np.random.default_rng(1).integers(0, 2**32, (len(x), 3), dtype=np.uint32)
    status, y = harden(Pipeline("simplex", (Gaussian(sigma=2.0), Project())), x, nonces)
    assert status == 0
    assert broken(x[:5000], y[:5000], "simplex", False) == set()
    assert np.isfinite(y).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [3, 10, 100, 1000])
def test_types_are_multiples_rounded_once(dtype: str, n: int) -> None:
    """Each entry is the float nearest to some k/n, and these k add up to n."""
    x = scores("simplex", "spread", 50, 7, "f8", n).astype(dtype)
    status, y = harden(Pipeline("simplex", (Types(n=n),)), x)
    assert status == 0
    k = np.rint(y.astype("f8") * n)
    assert np.array_equal((k / n).astype(dtype), y)
    assert (k.sum(axis=1) == n).all()
    naive = np.asarray(np.round(x.astype(dtype) * y.dtype.type(n)) / y.dtype.type(n))
    assert (np.rint(naive.astype("f8") * n).sum(axis=1) != n).any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_labels_are_kept_through_the_last_rounding(dtype: str) -> None:
    """Classes one float apart, which renormalising ties in the dtype: the first of two equals would take the lead."""
    x = np.full((4000, 5), 0.1665, dtype)
    x[:, 1] = np.random.default_rng(0).uniform(0.2498, 0.25, len(x)).astype(dtype)
    x[:, 0] = np.nextafter(x[:, 1], x.dtype.type(0))
    naive = (x.astype("f8") / x.sum(axis=1, dtype="f8")[:, None]).astype(dtype)
    lost = int((naive.argmax(axis=1) != 1).sum())
    print(f"labels lost by dividing naively: {lost} of {len(x)}; ours 0")
    assert lost > 0
    for transforms in ((), (TopK(k=2),), (Temperature(t=1.01),), (Project(keep_top1=True),)):
        status, y = harden(Pipeline("simplex", transforms), x)
        assert status == 0
        assert broken(x, y, "simplex", True) == set()


#: By how much an entry may change at most, beside the last rounding; the L2 norm where an entry alone says little.
CHANGE: dict[str, Callable[[Any, str, int], float]] = {
    "round": lambda t, space, k: (2.0 if space == "simplex" else 0.5) / t.units,
    "types": lambda t, space, k: (2.0 if space in ("simplex", *WITHIN_ONE) else 8.0) / t.n,  # of the clip, half a step
    "top_k": lambda t, space, k: math.inf if space == "logits" else 1.0,
    "cutoff": lambda t, space, k: 1.0 if space == "simplex" else t.low,
    "label_only": lambda t, space, k: math.inf if space == "logits" else 1.0,
    "clip": lambda t, space, k: math.inf,  # as far as a score lies outside; never beyond low and high
    "temperature": lambda t, space, k: math.inf if space == "logits" else 1.0,
    "gaussian": lambda t, space, k: _reach(t, space, k),
    "laplace": lambda t, space, k: _reach(t, space, k),
    "staircase": lambda t, space, k: _reach(t, space, k),
    "project": lambda t, space, k: 2.0**-19,
    "permute_and_flip": lambda t, space, k: math.inf if space == "logits" else 1.0,
    "exponential": lambda t, space, k: math.inf if space == "logits" else 1.0,
    "k_rr": lambda t, space, k: math.inf if space == "logits" else 1.0,
    "boundary_rr": lambda t, space, k: math.inf if space == "logits" else 1.0,
    "canary": lambda t, space, k: math.inf if space == "logits" else 1.0,
    "coverage_noise": lambda t, space, k: _reach(Gaussian(t.most), space, k),
    "orthogonal": lambda t, space, k: math.inf,  # lengths stay, entries are anything within them
    "reverse_sigmoid": lambda t, space, k: 1.0,
    "random_target": lambda t, space, k: t.l1 / 2,
    "memguard": lambda t, space, k: t.l1 / 2,
    "dynanoise": lambda t, space, k: 1.0,
    "mld": lambda t, space, k: t.l1 / 2,
    "mad": lambda t, space, k: t.l1 / 2,
    "grad2": lambda t, space, k: t.l1 / 2,
    "misinformation": lambda t, space, k: 1.0,
}


def _reach(noise: Noise, space: str, width: int) -> float:
    """Noise comes from a table with two ends; a projection is no further from a distribution than what it projects."""
    most = noise.step * (noise_table(noise.law).offset + 0.5) + (noise.cell / 2 if noise.key == "cell" else 0.0)
    return most if space != "simplex" else most * math.sqrt(width) + 2.0**-19


def test_every_kind_says_how_far_it_goes() -> None:
    assert set(CHANGE) == set(TRANSFORMS)


@every_case
@settings(max_examples=6)
@given(st.integers(2, 40), st.integers(0, 2**32 - 1), st.sampled_from(FLAVOURS[:6]))
def test_change_is_bounded(case: Case, width: int, seed: int, flavour: str) -> None:
    space = case.pipeline.space
    x = scores(space, flavour, 5, width, "f8", seed)
    if space == "simplex":
        x /= x.sum(axis=1, keepdims=True)
    status, y = harden(case.pipeline, x)
    assert status == 0
    before = np.clip(x, -8.0, 8.0) if len(case.pipeline.transforms) > 1 and space != "simplex" else x
    limit = CHANGE[case.transform.kind](case.transform, space, x.shape[1])
    margin = 1e-9 + (2.0**-19 if Project(keep_top1=True) in case.pipeline.transforms else 0.0)
    assert np.abs(y - before).max() <= limit + margin
    if case.transform.kind == "clip" and len(case.pipeline.transforms) == 1:
        assert (np.minimum(np.maximum(x, 0.05), 0.6) == y).all()
    if space == "simplex":
        assert np.abs(y - x).sum(axis=1).max() <= 2.0 + 1e-12


def test_a_naive_normal_draw_has_no_bound() -> None:
    noise = Gaussian(sigma=0.05)
    naive = np.random.default_rng(0).standard_cauchy(10_000) * 0.05
    assert np.abs(naive).max() > 5 * _reach(noise, "scalar", 1)
    status, y = harden(Pipeline("scalar", (noise,)), np.zeros((10_000, 1)))
    assert status == 0
    assert np.abs(y).max() <= _reach(noise, "scalar", 1)


@every_case
def test_same_question_same_answer_within_an_epoch(case: Case) -> None:
    """And another one in the next, wherever something is drawn. A naive draw differs each time."""
    x = scores(case.pipeline.space, "spread", 40, 6, "f8", 4)
    nonces = np.random.default_rng(2).integers(0, 2**32, (40, 3), dtype=np.uint32)
    first, again = harden(case.pipeline, x, nonces)[1], harden(case.pipeline, x, nonces)[1]
    assert np.array_equal(first, again)
    later = harden(case.pipeline, x, nonces, Key(2, "chacha20", KEY.secret))[1]
    draws = any(op.keyed for _, op in case.pipeline.at(x.shape[1]).lower())
    assert np.array_equal(first, later) != draws
    rng = np.random.default_rng(0)
    assert not np.array_equal(x + rng.normal(size=x.shape), x + rng.normal(size=x.shape))


#: A higher rate makes more canaries beside the same ones; it shapes which rows are changed, not how.
NOT_KEYED = {("canary", "rate")}


@every_case
def test_two_settings_never_share_a_draw(case: Case) -> None:
    """Whatever number changes what an instruction does changes the key of all that is drawn with it or after it."""

    def done(transform: Transform) -> tuple[list[Any], list[Any]]:
        at = case.pipeline.transforms.index(case.transform)
        changed = (*case.pipeline.transforms[:at], transform, *case.pipeline.transforms[at + 1 :], *later)
        pipeline = dataclasses.replace(case.pipeline, transforms=changed)
        ops = [op for _, op in pipeline.lower()]
        shapes = [(op.call, op.params, op.law, None if op.data is None else op.data.tobytes()) for op in ops]
        return shapes, [context for op, context in zip(ops, pipeline.contexts(), strict=True) if op.keyed]

    end = (Project(),) if case.pipeline.space == "simplex" else ()
    later = (Gaussian(0.3), *end, *((Clip(low=0.0, high=1.0),) if case.pipeline.space in WITHIN_ONE else ()))
    shapes, keys = done(case.transform)
    assert len(set(keys)) == len(keys)
    for field in dataclasses.fields(case.transform):
        value = getattr(case.transform, field.name)
        if type(value) not in (int, float) or (case.transform.kind, field.name) in NOT_KEYED:
            continue
        try:
            other = dataclasses.replace(
                case.transform, **{field.name: value + 1 if type(value) is int else value * 0.99}
            )
        except ValueError:
            continue
        others, other_keys = done(other)
        assert others == shapes or not set(keys) & set(other_keys), field.name


def test_rounding_to_many_decimals_is_all_a_dtype_has() -> None:
    for dtype in DTYPES:
        x = scores("simplex", "peaked", 20, 9, dtype, 6)
        status, y = harden(Pipeline("simplex", (Round(decimals=9),)), x)
        assert status == 0
        assert broken(x, y, "simplex", True) == set()
