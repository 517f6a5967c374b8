"""What holds for every answer, whatever the transform: each invariant over the registry, and a naive build that breaks it.

`broken` says which invariants a row violates. The naive builds are what such post-processing commonly looks like; each
of them fails the test that ours passes.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import hardening
from hardening.config import KeySource, Output, Policy
from hardening.errors import ConfigError, ReleaseError
from hardening.kernels import layout
from hardening.noise import Key, noise_table
from hardening.pipeline import Pipeline, Program, Task
from hardening.transforms import TRANSFORMS, Gaussian, Noise, Project, Round, Temperature, TopK, Types
from hardening.transforms.release import largest_gap
from tests.registry import CASES, EXAMPLES, Case

KEY = Key(1, "chacha20", bytes(range(32)))
DTYPES = ("f2", "f4", "f8")
FLAVOURS = ("spread", "peaked", "uniform", "one-hot", "ties", "near", "tiny", "huge")
every_case = pytest.mark.parametrize("case", CASES, ids=str)


def scores(space: str, flavour: str, rows: int, width: int, dtype: str, seed: int) -> NDArray[Any]:
    """Rows that a model may return in this space, the awkward ones among them."""
    rng, about = np.random.default_rng(seed), np.finfo(dtype)
    if space == "simplex":
        concentration = {"peaked": 0.03, "uniform": 1e9}.get(flavour, 1.0)
        x = rng.dirichlet(np.full(width, concentration), rows)
        if flavour == "one-hot":
            x = np.eye(width)[rng.integers(width, size=rows)]
        if flavour == "tiny":
            x = np.full((rows, width), float(about.smallest_subnormal) * 3)
            x[:, -1] = 1.0
    else:
        x = rng.normal(size=(rows, width)) if space not in ("sigmoid", "multilabel") else rng.random((rows, width))
        if flavour == "tiny":
            x = np.full((rows, width), float(about.smallest_subnormal) * -3 * (space not in ("sigmoid", "multilabel")))
        if flavour == "huge" and space not in ("sigmoid", "multilabel"):
            x = rng.choice([-1.0, 1.0], (rows, width)) * float(about.max)
    out = x.astype(dtype)
    if flavour in ("ties", "near") and width > 1:
        out[:, 0] = out.max(axis=1)
        out[:, -1] = out[:, 0] if flavour == "ties" else np.nextafter(out[:, 0], out.dtype.type(0))
        if space == "simplex":
            out /= out.sum(axis=1, dtype=np.float64)[:, None].astype(dtype)
    return out


def broken(x: NDArray[Any], y: NDArray[Any], space: str, keeps: bool) -> set[str]:
    """The invariants that the answer y to the scores x violates."""
    found = set()
    if (x.shape, x.dtype) != (y.shape, y.dtype):
        found.add("shape or dtype")
    if not np.isfinite(y).all():
        found.add("finite")
    if ((y != 0) & (np.abs(y) < np.finfo(y.dtype).smallest_normal)).any():
        found.add("normal")
    if (np.signbit(y) & (y == 0)).any():
        found.add("one zero")
    if space == "simplex" and "finite" not in found:
        most = largest_gap(y.shape[1], y.dtype)
        if (y < 0).any() or any(abs(math.fsum((-1.0, *row))) > most for row in y.astype("f8").tolist()):
            found.add("simplex")
    if space in ("sigmoid", "multilabel") and ((y < 0) | (y > 1)).any():
        found.add("range")
    if keeps and y.size and not np.array_equal(y.argmax(axis=1), x.argmax(axis=1)):
        found.add("label")
    return found


def harden(pipeline: Pipeline, x: NDArray[Any], nonces: Any = None, key: Key = KEY) -> tuple[int, NDArray[Any]]:
    out = x.copy()
    if nonces is None:
        nonces = np.arange(3 * len(x), dtype=np.uint32).reshape(-1, 3)
    return Task(Program(pipeline, x.shape[1], key, "p", "m"), out, len(out), nonces).run(), out


def test_every_kind_of_transform_has_examples() -> None:
    """A new transform is tested here as soon as it has one; until then this fails."""
    assert set(EXAMPLES) == set(TRANSFORMS)
    assert all(type(t) is TRANSFORMS[kind] for kind, examples in EXAMPLES.items() for t in examples)
    for transforms in EXAMPLES.values():
        for transform in transforms:
            assert any(c.transform == transform for c in CASES), f"no space takes {transform}"


@every_case
@settings(max_examples=12, deadline=None)
@given(st.integers(1, 40), st.integers(0, 2**32 - 1), st.sampled_from(FLAVOURS), st.sampled_from(DTYPES))
def test_every_answer_is_clean(case: Case, width: int, seed: int, flavour: str, dtype: str) -> None:
    x = scores(case.pipeline.space, flavour, 9, width, dtype, seed)
    keeps = case.pipeline.keeps_label(width)
    status, y = harden(case.pipeline, x)
    if status:  # the one thing that may be refused: noise has a grid, and beyond its reach there is none
        assert (status % 8, flavour) == (layout.OUT_OF_RANGE, "huge")
        assert isinstance(case.transform, Noise)
        return
    assert broken(x, y, case.pipeline.space, keeps) == set()
    nonces = np.arange(27, dtype=np.uint32).reshape(9, 3)
    for i in range(9):
        assert np.array_equal(harden(case.pipeline, x[i : i + 1], nonces[i : i + 1])[1][0], y[i]), "depends on others"


@pytest.mark.parametrize("space", ["simplex", "sigmoid", "logits", "scalar"])
@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=30, deadline=None)
@given(st.integers(1, 90), st.integers(0, 2**32 - 1), st.sampled_from(FLAVOURS))
def test_the_last_step_is_its_reference_bit_for_bit(
    space: Any, dtype: str, width: int, seed: int, flavour: str
) -> None:
    x, pipeline = scores(space, flavour, 9, width, dtype, seed), Pipeline(space, ())
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
    assert np.abs(y - clean).max() < 2.0**-13
    assert np.abs(np.cumsum(y - clean, axis=1)).max() < 2.0**-12, "mass stays near where it was"


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


def test_a_million_noisy_scores_without_nan() -> None:
    """Of three classes under noise of scale 2 a common build loses all mass in one row of twelve, and divides by it."""
    x = np.full((200_000, 3), 1 / 3)
    with np.errstate(all="ignore"):
        lost = int(np.isnan(_art_gaussian(x)).any(axis=1).sum())
    share, error = lost / len(x), 4 * math.sqrt(lost) / len(x)
    print(f"rows of NaN: naive {share:.4f} +- {error:.4f}, ours 0 of {len(x)}")
    assert 0.05 < share - error
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
    "types": lambda t, space, k: 2.0 / t.n,
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
@settings(max_examples=6, deadline=None)
@given(st.integers(2, 40), st.integers(0, 2**32 - 1), st.sampled_from(FLAVOURS[:6]))
def test_change_is_bounded(case: Case, width: int, seed: int, flavour: str) -> None:
    space = case.pipeline.space
    x = scores(space, flavour, 5, width, "f8", seed)
    if space == "simplex":
        x /= x.sum(axis=1, keepdims=True)
    status, y = harden(case.pipeline, x)
    assert status == 0
    before = np.clip(x, -8.0, 8.0) if len(case.pipeline.transforms) > 1 and space != "simplex" else x
    limit = CHANGE[case.transform.kind](case.transform, space, width)
    margin = 1e-9 + (2.0**-19 if Project(keep_top1=True) in case.pipeline.transforms else 0.0)
    assert np.abs(y - before).max() <= limit + margin
    if case.transform.kind == "clip" and len(case.pipeline.transforms) == 1:
        assert (np.minimum(np.maximum(x, 0.05), 0.6) == y).all()
    if space == "simplex":
        assert np.abs(y - x).sum(axis=1).max() <= 2.0


def test_a_naive_normal_draw_has_no_bound() -> None:
    noise = Gaussian(sigma=0.05)
    naive = np.random.default_rng(0).standard_cauchy(10_000) * 0.05
    assert np.abs(naive).max() > 5 * _reach(noise, "scalar", 1)
    status, y = harden(Pipeline("scalar", (noise,)), np.zeros((10_000, 1)))
    assert status == 0
    assert np.abs(y).max() <= _reach(noise, "scalar", 1)


BAD = {
    "nan": (math.nan, layout.NOT_FINITE),
    "infinity": (math.inf, layout.NOT_FINITE),
    "minus infinity": (-math.inf, layout.NOT_FINITE),
    "negative": (-0.3, layout.NOT_SIMPLEX),
    "above one": (1.4, layout.NOT_SIMPLEX),
}


@every_case
@pytest.mark.parametrize("bad", BAD)
def test_bad_rows_are_refused_by_name(case: Case, bad: str) -> None:
    value, problem = BAD[bad]
    space = case.pipeline.space
    if problem == layout.NOT_SIMPLEX and space not in ("simplex", "sigmoid", "multilabel"):
        return
    for dtype in DTYPES:
        for width in (3, 70):
            x = scores(space, "spread", 11, width, dtype, 0)
            x[7, 1] = value
            assert harden(case.pipeline, x)[0] == 8 * 8 + problem


@every_case
def test_rows_that_are_no_distribution_are_refused(case: Case) -> None:
    if case.pipeline.space != "simplex":
        return
    for dtype, tolerance in (("f2", 1e-2), ("f4", 1e-3), ("f8", 1e-3)):
        x = scores("simplex", "spread", 3, 4, dtype, 0)
        for factor, refused in ((0.0, True), (1 + 2 * tolerance, True), (1 - 2 * tolerance, True), (1 + tolerance / 4, False)):
            y = x.copy()
            y[1] = y[1] * factor
            status, _ = harden(case.pipeline, y)
            assert status == (2 * 8 + layout.NOT_SIMPLEX if refused else 0), (dtype, factor)


@every_case
@pytest.mark.parametrize("width", [0, 1, 200_000])
def test_rows_of_any_width(case: Case, width: int) -> None:
    """None, one, very many classes: a clean answer, or an error of the policy that says why."""
    for dtype in DTYPES if width < 2 else ("f2", "f4"):
        x = scores(case.pipeline.space, "spread", 1, width, dtype, 1) if width else np.zeros((3, 0), dtype)
        try:
            status, y = harden(case.pipeline, x)
        except ConfigError as problem:
            assert re.search("class 0 does not exist|with 200000 classes these change the top class", str(problem))
            continue
        assert status == 0
        assert broken(x, y, case.pipeline.space if width else "none", case.pipeline.keeps_label(width)) == set()


def guard_of(case: Case, root: Path) -> hardening.Guard:
    output = Output(space=case.pipeline.space, tiers={"normal": case.pipeline.transforms})
    return hardening.Guard(Policy({"p": output}, key=KeySource("file:k.key", create=True), root=root), "m")


@every_case
def test_arrays_however_they_lie(case: Case, tmp_path: Path) -> None:
    """Fortran order, strides, read-only memory: the same answer, and the caller's array stays as it is."""
    with guard_of(case, tmp_path) as guard:
        for dtype in DTYPES:
            x = scores(case.pipeline.space, "spread", 6, 5, dtype, 2)
            asked = {"x": np.arange(12.0).reshape(6, 2)}
            expected = guard.harden({"p": x}, inputs=asked)["p"]
            padded = np.zeros((12, 10), dtype)
            padded[::2, ::2] = x
            sealed = x.copy()
            sealed.flags.writeable = False
            for given in (np.asfortranarray(x), padded[::2, ::2], sealed, x[::-1].copy()[::-1]):
                assert np.array_equal(guard.harden({"p": given}, inputs=asked)["p"], expected)
                assert np.array_equal(given, x)
            decision = guard.admit("alice", 6)
            with pytest.raises(ReleaseError, match="read-only"):
                guard.release(decision, {"p": sealed}, asked)


@every_case
def test_same_question_same_answer_within_an_epoch(case: Case, tmp_path: Path) -> None:
    """And another one in the next, wherever something is drawn. A naive draw differs each time."""
    x = scores(case.pipeline.space, "spread", 40, 6, "f8", 4)
    nonces = np.random.default_rng(2).integers(0, 2**32, (40, 3), dtype=np.uint32)
    first, again = harden(case.pipeline, x, nonces)[1], harden(case.pipeline, x, nonces)[1]
    assert np.array_equal(first, again)
    later = harden(case.pipeline, x, nonces, Key(2, "chacha20", KEY.secret))[1]
    draws = any(op.keyed for _, op in case.pipeline.at(6).lower())
    assert np.array_equal(first, later) != draws
    rng = np.random.default_rng(0)
    assert not np.array_equal(x + rng.normal(size=x.shape), x + rng.normal(size=x.shape))


NOISES = [kind for kind, made in TRANSFORMS.items() if issubclass(made, Noise)]


@pytest.mark.parametrize("kind", NOISES)
@pytest.mark.parametrize("scale", [0.0, -1.0, math.inf, -math.inf, math.nan, 2.0**-41, 2.0**41, 5e-324])
def test_noise_of_impossible_scale_is_refused(kind: str, scale: float) -> None:
    made: Any = TRANSFORMS[kind]
    with pytest.raises(ValueError, match=f"^{made.scale_name}: "):
        made(**{made.scale_name: scale}, sensitivity=1.0)


@pytest.mark.parametrize("kind", NOISES)
def test_noise_below_its_grid_is_refused(kind: str) -> None:
    made: Any = TRANSFORMS[kind]
    for grid in (3, 40, -5):
        with pytest.raises(ValueError, match=r"^grid: must be a whole number from \d+ to \d+, not "):
            made(**{made.scale_name: 0.01}, sensitivity=0.01, grid=grid)


BUDGETED = [kind for kind, made in TRANSFORMS.items() if "l1" in made.__dataclass_fields__]


@pytest.mark.parametrize("kind", BUDGETED)
def test_budgets_of_nothing_and_of_everything(kind: str) -> None:
    """0 leaves rows as they are or is refused, 2 is as far as two distributions can be, what is no budget is refused."""
    made: Any = TRANSFORMS[kind]
    for l1 in (-0.1, 2.1, math.nan, math.inf, True, "1"):
        with pytest.raises(ValueError, match="^l1: "):
            made(l1=l1)
    x = scores("simplex", "spread", 30, 6, "f8", 5)
    if kind in ("random_target", "memguard"):
        with pytest.raises(ValueError, match="^l1: must be above 0"):
            made(l1=0)
    else:
        status, y = harden(Pipeline("simplex", (made(l1=0),)), x)
        assert status == 0
        np.testing.assert_allclose(y, x, rtol=0, atol=2e-15)
    status, y = harden(Pipeline("simplex", (made(l1=2),)), x)
    assert status == 0
    assert broken(x, y, "simplex", True) == set()
    assert 0.1 < np.abs(y - x).sum(axis=1).max() <= 2.0


def test_numbers_that_are_none_are_refused_everywhere() -> None:
    """NaN in any number of any transform."""
    for kind, examples in EXAMPLES.items():
        for field in dataclasses.fields(examples[0]):
            if "float" in str(field.type) or "int" in str(field.type):
                with pytest.raises(ValueError, match=f"{field.name}|missing"):
                    dataclasses.replace(examples[0], **{field.name: math.nan})
                    pytest.fail(f"{kind}.{field.name} may be NaN")


def test_rounding_to_many_decimals_is_all_a_dtype_has() -> None:
    for dtype in DTYPES:
        x = scores("simplex", "peaked", 20, 9, dtype, 6)
        status, y = harden(Pipeline("simplex", (Round(decimals=9),)), x)
        assert status == 0
        assert broken(x, y, "simplex", True) == set()
