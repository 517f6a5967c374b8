"""Bad and odd input, for every transform in every space: a clean answer as documented, or an error that says why."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hardening
from hardening.config import Output, Policy
from hardening.errors import ConfigError, ReleaseError
from hardening.kernels import layout
from hardening.pipeline import Pipeline
from hardening.transforms import TRANSFORMS, Noise, ReverseSigmoid, TopK, Transform
from tests.keys import fixed_key
from tests.registry import CASES, EXAMPLES, Case
from tests.rows import DTYPES, WITHIN_ONE, broken, harden, scores

every_case = pytest.mark.parametrize("case", CASES, ids=str)


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
    if problem == layout.NOT_SIMPLEX and space not in ("simplex", *WITHIN_ONE):
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
        for factor in (0.0, 1 + 2 * tolerance, 1 - 2 * tolerance, 1 + tolerance / 4):
            y = x.copy()
            y[1] = y[1] * factor
            refused = abs(factor - 1) > tolerance
            assert harden(case.pipeline, y)[0] == (2 * 8 + layout.NOT_SIMPLEX if refused else 0), (dtype, factor)


#: Policies that make no sense for some widths, and why.
REFUSED: dict[tuple[str, int], dict[Transform, str]] = {
    ("top_k", 0): {TopK(k=1, remainder="other", other=0): "class 0 does not exist"},
    ("reverse_sigmoid", 200_000): {ReverseSigmoid(beta=0.01, gamma=0.2): "with 200000 classes these change the top"},
}


@every_case
@pytest.mark.parametrize("width", [0, 1, 200_000])
def test_rows_of_any_width(case: Case, width: int) -> None:
    """None, one, very many classes: a clean answer, or an error of the policy that says why."""
    space = case.pipeline.space
    for dtype in DTYPES if width < 2 else ("f2", "f4"):
        if space == "boxes":
            with pytest.raises(ConfigError, match=f"boxes have {width} columns here, the policy names 4"):
                harden(case.pipeline, np.zeros((3, width), dtype))
            continue
        x = scores(space, "spread", 1, width, dtype, 1) if width else np.zeros((3, 0), dtype)
        if why := REFUSED.get((case.transform.kind, width), {}).get(case.transform):
            with pytest.raises(ConfigError, match=why):
                harden(case.pipeline, x)
            continue
        status, y = harden(case.pipeline, x)
        assert status == 0
        assert broken(x, y, space if width else "none", case.pipeline.keeps_label(width)) == set()


def guard_of(case: Case, root: Path) -> hardening.Guard:
    pipeline = case.pipeline
    output = Output(space=pipeline.space, tiers={"normal": pipeline.transforms}, dense=pipeline.dense)
    return hardening.Guard(Policy({"p": output}, key=fixed_key(root), root=root), "m")


@every_case
def test_arrays_however_they_lie(case: Case, tmp_path: Path) -> None:
    """Fortran order, strides, read-only memory: the same answer, and the caller's array stays as it is."""
    with guard_of(case, tmp_path) as guard:
        for dtype in DTYPES:
            x = scores(case.pipeline.space, "spread", 6, 5, dtype, 2)
            asked = {"x": np.arange(12.0).reshape(6, 2)}
            expected = guard.harden({"p": x}, inputs=asked)["p"]
            padded = np.zeros((12, 2 * x.shape[1]), dtype)
            padded[::2, ::2] = x
            sealed = x.copy()
            sealed.flags.writeable = False
            for given in (np.asfortranarray(x), padded[::2, ::2], sealed, x[::-1].copy()[::-1]):
                assert np.array_equal(guard.harden({"p": given}, inputs=asked)["p"], expected)
                assert np.array_equal(given, x)
            decision = guard.admit("alice", 6)
            with pytest.raises(ReleaseError, match="read-only"):
                guard.release(decision, {"p": sealed}, asked)


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
    """0 leaves rows as they are, or is refused; 2 is as far as two distributions can be; all else is refused."""
    made: Any = TRANSFORMS[kind]
    for l1 in (-0.1, 2.1, math.nan, math.inf, True, "1"):
        with pytest.raises(ValueError, match=r"^l1: "):
            made(l1=l1)
    x = scores("simplex", "spread", 30, 6, "f8", 5)
    if kind in ("random_target", "memguard"):
        with pytest.raises(ValueError, match=r"^l1: must be above 0"):
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
    for examples in EXAMPLES.values():
        for field in dataclasses.fields(examples[0]):
            if "float" in str(field.type) or "int" in str(field.type):
                with pytest.raises(ValueError, match=f"{field.name}|missing"):
                    dataclasses.replace(examples[0], **{field.name: math.nan})
