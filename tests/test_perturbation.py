"""The linear program behind perturbation: published answers, HiGHS, its edges; the surrogate; misinformation."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import linprog

from hardening.config import Output, Policy, parse_policy
from hardening.errors import ConfigError, InputError, ReleaseError
from hardening.guard import Guard
from hardening.kernels import costs, elementary, layout, perturb
from hardening.pipeline import Pipeline
from hardening.program import Program, Task
from hardening.testing import RecordingSink
from hardening.transforms import Gaussian, Grad2, Mad, Misinformation, Mld, Project, Transform, Types
from hardening.transforms.perturbation import LEAST_L1, MARGIN

Row = NDArray[np.float64]
LOGARITHM, SCORE, DIFFERENCE, GIVEN = range(4)


@njit
def solve(y: Row, other: Row, kind: int, keep: bool, l1: float, margin: float) -> Any:
    row, spare, keys, top = y.copy(), np.empty(y.size), np.empty(y.size, np.int64), 0
    for j in range(y.size):
        if y[j] > y[top]:
            top = j
    units = row.view(np.int64)
    perturb.to_units(row, units)
    if kind == LOGARITHM:
        costs.log_costs(units, spare, keys)
    elif kind == SCORE:
        costs.score_costs(units, keys)
    elif kind == DIFFERENCE:
        costs.difference_costs(units, other, keys)
    else:
        costs.given_costs(other, keys)
    shift = perturb.number(keys)
    budget, lead = np.int64(l1 / 2 * perturb.UNIT), np.int64(margin * perturb.UNIT)
    room = np.empty(y.size + perturb.DIGITS, np.int64)
    perturb.perturb(units, keys, room, shift, top, keep, budget, lead)
    perturb.to_scores(units, row)
    return row


@njit
def logs(x: Row) -> None:
    elementary.logarithms(x)


@njit
def powers(x: Row, spare: Row) -> None:
    for i in range(x.size):
        x[i] = elementary.exponential(x[i], spare)


def highs(c: Row, y: Row, l1: float, margin: float | None) -> float:
    """The least c.z by scipy's HiGHS, with gains and losses of each class as variables."""
    k, top = len(y), int(y.argmax())
    one = sparse.identity(k, format="csr")
    rows = [sparse.csr_matrix(np.ones((1, 2 * k))), sparse.hstack([-one, one])]
    limits = [np.array([l1]), y]
    if margin is not None and k > 1:
        others = np.delete(np.arange(k), top)
        lead = one.tolil()[others]
        lead[:, top] = -1
        rows.append(sparse.hstack([lead, -lead]))
        limits.append(y[top] - margin - y[others])
    mass = sparse.csr_matrix(np.r_[np.ones(k), -np.ones(k)][None])
    best = linprog(
        np.r_[c, -c],
        A_ub=sparse.vstack(rows),
        b_ub=np.concatenate(limits),
        A_eq=mass,
        b_eq=[0.0],
        bounds=(0, None),
        method="highs",
    )
    assert best.status == 0, best.message
    return float(best.fun + c @ y)


def any_row(rng: np.random.Generator, widest: int = 24) -> Row:
    """A distribution: spread out, peaked, with ties, zeros and equal parts."""
    k = int(rng.integers(2, widest + 1))
    y = rng.dirichlet(np.full(k, rng.choice([0.05, 0.3, 1.0, 5.0, 100.0])))
    which = rng.random()
    if which < 0.2:
        y = np.rint(y * rng.integers(1, 20)) + (rng.random(k) < 0.3)
    if which > 0.95 or not y.sum():
        y = np.ones(k)
    return np.asarray(y / y.sum())


def agrees_with_highs(seed: int, rows: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(rows):
        y = any_row(rng)
        kind, k = int(rng.integers(4)), len(y)
        other = rng.dirichlet(np.ones(k))
        if kind == GIVEN:
            other = rng.standard_normal(k) if rng.random() < 0.5 else rng.integers(-2, 3, k).astype(float)
        c = (np.log(y + 1e-6), y, y - other, other)[kind]
        l1 = float(rng.choice([0.0, 0.01, 0.05, 0.2, 0.5, 1.0, 1.5, 2.0]))
        margin = float(rng.choice([MARGIN, 1e-4, 2.0**-20]))
        for keep in (False, True):
            z, lead = solve(y, other, kind, keep, l1, margin), min(margin, l1 / 2)
            assert abs(c @ z - highs(c, y, l1, lead - 1e-12 if keep else None)) <= 1e-6, (y, other, kind, keep, l1)
            assert np.abs(z - y).sum() <= l1 + 1e-9
            assert (z >= 0).all()
            assert abs(z.sum() - 1) < 1e-13
            if keep:
                assert z[y.argmax()] - np.delete(z, y.argmax()).max() >= lead - 1e-15


def test_exact_against_highs() -> None:
    agrees_with_highs(0, 1000)


@pytest.mark.deep
def test_exact_against_highs_on_many_rows() -> None:
    agrees_with_highs(1, 10_000)


# Rows of the program as it is published: c = ln(y + 1e-6), the top class kept by 1e-4.
@pytest.mark.parametrize(
    ("y", "l1", "z"),
    [
        ([0.7, 0.2, 0.1], 0.2, [0.6, 0.2, 0.2]),
        ([0.7, 0.2, 0.1], 0.5, [0.45, 0.2, 0.35]),
        ([0.7, 0.2, 0.1], 1.0, [0.3334, 0.3333, 0.3333]),
        ([0.9, 0.06, 0.04], 1.0, [0.4, 0.2001, 0.3999]),
        ([0.4, 0.35, 0.25], 0.2, [0.3501, 0.2999, 0.35]),
        ([0.4, 0.35, 0.25], 0.5, [0.45005, 0.1, 0.44995]),
        ([0.5, 0.3, 0.15, 0.05], 0.4, [0.30005, 0.29995, 0.15, 0.25]),
        ([0.97, 0.01, 0.01, 0.01], 1.0, [0.47, 0.4699, 0.0501, 0.01]),
        ([0.9, 0.05, 0.03, 0.02], 0.4, [0.7, 0.05, 0.03, 0.22]),
    ],
)
def test_known_answers_with_the_top_class_kept(y: list[float], l1: float, z: list[float]) -> None:
    row = np.array(y)
    np.testing.assert_allclose(solve(row, row, LOGARITHM, True, l1, 1e-4), z, atol=1e-12)


@pytest.mark.parametrize(
    ("y", "l1", "z"),
    [
        ([0.7, 0.2, 0.1], 0.5, [0.45, 0.2, 0.35]),
        ([0.7, 0.2, 0.1], 1.0, [0.2, 0.2, 0.6]),
        ([0.9, 0.06, 0.04], 1.0, [0.4, 0.06, 0.54]),
        ([0.7, 0.2, 0.1], 0.0, [0.7, 0.2, 0.1]),
        ([0.7, 0.2, 0.1], 2.0, [0.0, 0.0, 1.0]),
    ],
)
def test_known_answers_without(y: list[float], l1: float, z: list[float]) -> None:
    row, direction = np.array(y), np.array([2.0, 1.0, 0.0])
    np.testing.assert_allclose(solve(row, direction, GIVEN, False, l1, MARGIN), z, atol=1e-15)


def test_ties_are_resolved_as_stated() -> None:
    y, flat = np.full(4, 0.25), np.zeros(4)
    assert solve(y, flat, GIVEN, False, 1.0, MARGIN).tolist() == y.tolist()  # nothing costs less elsewhere
    two = np.array(
        [1.0, 0.0, 0.0, 1.0]
    )  # of equally dear classes the last gives first, of equally cheap the first gets
    assert solve(y, two, GIVEN, False, 0.4, MARGIN).tolist() == pytest.approx([0.25, 0.45, 0.25, 0.05])
    z = solve(y, flat, GIVEN, True, 1.0, MARGIN)  # of several best scores of the top class the least
    assert z[0] == pytest.approx(0.25 + 0.75 * MARGIN)
    assert z[1:].tolist() == pytest.approx([0.25 - 0.25 * MARGIN] * 3)


def released(transforms: tuple[Transform, ...], scores: Any, other: Any = None) -> tuple[int, Any]:
    pipeline, out = Pipeline("simplex", transforms), scores.copy()
    nonces = np.zeros((len(out), 3), np.uint32)
    return Task(Program(pipeline, out.shape[1], None, "p", "m"), out, len(out), nonces, None, other).run(), out


STEERED: tuple[Transform, ...] = (
    Mad(l1=0.7, surrogate="s"),
    Mad(l1=1.3, keep_top1=False, surrogate="s"),
    Grad2(l1=0.7, surrogate="s"),
    Grad2(l1=2.0, keep_top1=False, surrogate="s"),
    Misinformation(tau=0.6, nu=15.0, surrogate="s"),
)


@pytest.mark.parametrize("transform", STEERED, ids=repr)
@settings(max_examples=15)
@given(st.integers(1, 70), st.integers(0, 2**32 - 1), st.sampled_from(["f2", "f4", "f8"]))
def test_kernel_equals_reference_beside_a_surrogate(transform: Transform, width: int, seed: int, dtype: str) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.dirichlet(np.full(width, 0.5), 9).astype(dtype)
    scores[0] = 1 / width
    other = rng.dirichlet(np.full(width, 0.5), 9)
    other[1] = scores[1] / scores[1].sum(dtype=np.float64)
    if isinstance(transform, Grad2):
        other *= 10.0 ** rng.integers(-300, 300)
        other[2] = 0
        other[3] = 5e-324
        other[4] *= -1
    status, out = released((transform,), scores, other)
    assert status == 0
    expected = Pipeline("simplex", (transform,)).reference(scores, None, other)
    np.testing.assert_allclose(out, expected.astype(dtype), rtol=2e-3 if dtype == "f2" else 1e-6, atol=1e-9)
    if getattr(transform, "keep_top1", False):
        assert np.array_equal(out.argmax(axis=1), scores.argmax(axis=1))
    for i in range(9):
        assert np.array_equal(released((transform,), scores[i : i + 1], other[i : i + 1])[1][0], out[i])


def test_a_surrogate_may_be_off_the_simplex_by_rounding() -> None:
    other = np.zeros((3, 70))
    other[:, 5], other[:, 60] = 1.0009, -0.0009
    scores = np.zeros((3, 70))
    scores[0, 0] = scores[1, 69] = scores[2, 5] = 1
    for transform in (Mad(l1=1.5, surrogate="s"), Misinformation(tau=1.0, surrogate="s")):
        status, out = released((transform,), scores, other)
        assert status == 0
        expected = Pipeline("simplex", (transform,)).reference(scores, None, other)
        np.testing.assert_allclose(out, expected, atol=1e-12)
        assert (out >= 0).all()


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
@pytest.mark.parametrize("transform", [Mld(l1=0.3), Mad(l1=2.0), Grad2(l1=LEAST_L1)], ids=repr)
def test_the_top_class_is_kept_in_every_precision(transform: Transform, dtype: str) -> None:
    """Also where it is no further ahead than the last bit, or not at all."""
    rng = np.random.default_rng(0)
    for width in (2, 3, 10, 64, 65, 300):
        scores = rng.dirichlet(np.full(width, 2.0), 40).astype(dtype)
        scores[:10] = 1 / width
        top = rng.integers(width, size=40)
        highest = scores.max(axis=1)
        scores[np.arange(40), top] = np.nextafter(highest, np.array(1, dtype))
        scores[20:30, 0] = scores[20:30].max(axis=1)
        scores[30:, -1] = scores[30:].max(axis=1)
        scores /= scores.sum(axis=1, keepdims=True, dtype=np.float64).astype(dtype)
        status, out = released((transform,), scores)
        assert status == 0
        assert np.array_equal(out.argmax(axis=1), scores.argmax(axis=1))
        runner_up = np.sort(out, axis=1)[:, -2]
        assert (out.max(axis=1) > runner_up).all()


def test_float_rows_stay_within_the_budget_and_on_the_simplex() -> None:
    rng = np.random.default_rng(3)
    for width in (2, 5, 10, 100, 1000):
        scores = rng.dirichlet(np.full(width, 0.1), 50)
        scores[:5] = 0
        scores[:5, 0] = 1
        scores[5, :] = 5e-324
        scores[5, 1] = 1
        for l1 in (0.0, LEAST_L1, 0.4, 1.0, 2.0):
            for transform in (Mld(l1=l1), Mad(l1=l1, keep_top1=False), Grad2(l1=l1)):
                status, out = released((transform,), scores)
                assert status == 0
                assert np.abs(out - scores).sum(axis=1).max() <= l1 + 1e-9
                assert np.abs(out.sum(axis=1) - 1).max() <= width * 2.0**-40
                assert ((out == 0) | (out >= 2.0**-53)).all() or l1 == 0


def test_the_widest_and_the_narrowest_rows() -> None:
    for width in (0, 1):
        status, out = released((Mld(l1=1.0), Mad(l1=1.0)), np.ones((3, width)))
        assert status == 0
        assert np.array_equal(out, np.ones((3, width)))
    rng = np.random.default_rng(0)
    wide = rng.dirichlet(np.full(200_000, 0.01), 2)
    for scores in (wide, np.full((1, 200_000), 5e-6)):
        status, out = released((Mld(l1=1.0),), scores)
        assert status == 0
        assert np.abs(out - scores).sum(axis=1).max() <= 1.0 + 1e-9
        assert np.abs(out.sum(axis=1) - 1).max() <= 200_000 * 2.0**-40
        assert np.array_equal(out.argmax(axis=1), scores.argmax(axis=1))


def test_logarithm_and_exponential() -> None:
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.random(10_000) + 1e-6, 2.0 ** rng.uniform(-1000, 1000, 10_000), [1.0, 1e-6, 0.5, 2.0]])
    out = x.copy()
    logs(out)
    np.testing.assert_allclose(out, np.log(x), rtol=2e-15, atol=2e-15)
    x = np.concatenate([rng.uniform(-700, 700, 10_000), rng.uniform(-1, 1, 10_000), [0.0, 700.0, -700.0]])
    out = x.copy()
    powers(out, np.empty(1))
    np.testing.assert_allclose(out, np.exp(x), rtol=2e-15)


def test_the_gate_of_misinformation() -> None:
    """Published: nu = 1000; far below tau the answer is the surrogate's, far above it the model's, at tau half each."""
    scores = np.array([[0.9, 0.1], [0.5, 0.5], [0.55, 0.45]])
    other = np.array([[0.0, 1.0], [0.2, 0.8], [1.0, 0.0]])
    status, out = released((Misinformation(tau=0.5, surrogate="s"),), scores, other)
    assert status == 0
    np.testing.assert_allclose(out, [[0.9, 0.1], [0.35, 0.65], [0.55, 0.45]], atol=1e-15)
    status, out = released((Misinformation(tau=1.0, surrogate="s"),), scores, other)
    np.testing.assert_allclose(out, other, atol=1e-15)


@pytest.mark.parametrize("width", [3, 70])
@pytest.mark.parametrize("transform", STEERED, ids=repr)
def test_a_faulty_surrogate_is_named(transform: Transform, width: int) -> None:
    rng = np.random.default_rng(0)
    scores = rng.dirichlet(np.ones(width), 11)
    bad = [math.nan, math.inf, -math.inf] + ([] if isinstance(transform, Grad2) else [1.5, -0.5, 1e300])
    for value in bad:
        for row in (0, 5, 10):
            other = rng.dirichlet(np.ones(width), 11)
            other[row, 1] = value
            assert released((transform,), scores, other)[0] == (row + 1) * 8 + layout.SURROGATE
    with pytest.raises(ValueError, match="'s' are needed"):
        released((transform,), scores)
    with pytest.raises(ValueError, match="shape"):
        released((transform,), scores, scores[:, 1:])


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: Mld(l1=-0.1), "l1"),
        (lambda: Mld(l1=2.1), "l1"),
        (lambda: Mld(l1=math.nan), "l1"),
        (lambda: Mld(l1=True), "l1"),
        (lambda: Mld(l1=LEAST_L1 / 2), "l1"),
        (lambda: Mad(l1=1.0, keep_top1=1), "keep_top1"),
        (lambda: Mad(l1=1.0, surrogate=""), "surrogate"),
        (lambda: Grad2(l1=1.0, surrogate=None), "surrogate"),
        (lambda: Misinformation(tau=1.5), "tau"),
        (lambda: Misinformation(tau=math.nan), "tau"),
        (lambda: Misinformation(tau=0.5, nu=0.0), "nu"),
    ],
)
def test_impossible_parameters_are_refused(make: Any, field: str) -> None:
    with pytest.raises(ValueError, match=f"^{field}: "):
        make()


def test_what_is_promised() -> None:
    noise = (Gaussian(sigma=0.05), Project())

    def facts(*transforms: Transform) -> tuple[str, bool, float]:
        promise = Pipeline("simplex", transforms).guarantee(10)
        return promise.relation, promise.keeps_top1, promise.bits

    assert facts(Mld(l1=1.0)) == ("none", True, 320)
    assert facts(Mld(l1=1.0, keep_top1=False)) == ("none", False, 320)
    assert facts(Mld(l1=0.0, keep_top1=False)) == ("capacity", True, 320)
    assert facts(Misinformation(tau=0.5)) == ("none", False, 320)
    assert facts(*noise, Mld(l1=1.0))[0] == "output-metric"  # what follows noise takes nothing from its promise,
    assert facts(*noise, Mad(l1=1.0, surrogate="s"))[0] == "none"  # unless clean scores come in with it
    assert facts(Types(n=10), Mad(l1=1.0))[2] < 20
    assert facts(Types(n=10), Mad(l1=1.0, surrogate="s"))[2] == 320


POLICY = """
schema = 1
[outputs.p]
space = "simplex"
label_output = "label"
[outputs.p.tiers]
normal = [ {kind = "mad", l1 = 0.8, surrogate = "NAME"} ]
"""


@pytest.mark.parametrize(
    ("text", "path", "says"),
    [
        (POLICY.replace("NAME", "p"), "outputs.p.tiers.normal[0].surrogate", "released"),
        (POLICY.replace("NAME", "label"), "outputs.p.tiers.normal[0].surrogate", "labels of 'p'"),
        (POLICY.replace('"NAME"', "3"), "outputs.p.tiers.normal[0].surrogate", "string"),
        (POLICY.replace('"NAME"', '""'), "outputs.p.tiers.normal[0].surrogate", "uniform"),
        (POLICY.replace("0.8", "3"), "outputs.p.tiers.normal[0].l1", "0 to 2"),
        (POLICY.replace('"simplex"', '"logits"'), "outputs.p.tiers.normal[0]", "mad takes simplex"),
        (POLICY.replace("l1 = 0.8, ", ""), "outputs.p.tiers.normal[0].l1", "missing"),
        (POLICY.replace("} ]", '}, {kind = "grad2", l1 = 1, surrogate = "t"} ]'), "outputs.p.tiers.normal", "'NAME'"),
    ],
)
def test_policies_that_make_no_sense(text: str, path: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        parse_policy(text)
    assert caught.value.path == path


def guard(*transforms: Transform, sink: Any = None, **more: Any) -> Guard:
    return Guard(Policy({"p": Output("simplex", {"normal": transforms}, **more)}), sink=sink)


def test_a_surrogate_goes_in_and_does_not_come_out() -> None:
    rng = np.random.default_rng(0)
    p, s = rng.dirichlet(np.ones(5), 12).astype("f4"), rng.dirichlet(np.ones(5), 12).astype("f4")
    label = p.argmax(axis=1)
    expected = Pipeline("simplex", (Mad(l1=0.8, surrogate="s"),)).reference(p, None, s)
    with guard(Mad(l1=0.8, surrogate="s"), label_output="label") as g:
        assert g.needs(("label",)) == ("label", "p", "s")
        assert g.unreleased == {"s"}
        before = s.copy()
        for _ in range(4):  # from the third on by way of arrays that are kept
            out = g.harden({"s": s, "p": p, "label": label}, client="alice")
            assert set(out) == {"p", "label"}
            np.testing.assert_allclose(out["p"], expected, atol=1e-7)
            assert np.array_equal(out["label"], label)
        assert np.array_equal(s, before), "the caller's array was touched"
        with pytest.raises(InputError, match="'s' is not released"):
            g.needs(("s",))
        with pytest.raises(ReleaseError, match="surrogate 's', which was not given"):
            g.harden({"p": p})
        with pytest.raises(ReleaseError, match=r"surrogate 's' \(12, 4\)"):
            g.harden({"p": p, "s": s[:, :4]})
        with pytest.raises(ReleaseError, match="int64 values"):
            g.harden({"p": p, "s": s.astype(int)})


def test_a_surrogate_is_overwritten_whatever_happens() -> None:
    sink = RecordingSink()
    p, s = np.full((2, 4), 0.25), np.array([[1.0, 0, 0, 0], [0, 1.0, 0, 0]])
    with guard(Mad(l1=0.8, surrogate="s"), sink=sink) as g:
        for bad in (False, True):
            scores, beside = p.copy(), s.copy()
            if bad:
                beside[1, 2] = math.nan
            answer = {"p": scores, "s": beside}
            if bad:
                with pytest.raises(ReleaseError, match="surrogate returned NaN"):
                    g.release(g.admit("a", 2), answer, None)
                assert not scores.any()
            else:
                assert set(g.release(g.admit("a", 2), answer, None)) == {"p"}
            assert answer == {}
            assert not beside.any()
        scores, beside = p.copy(), s[:, :3].copy()
        with pytest.raises(ReleaseError, match="must be the same"):
            g.release(g.admit("a", 2), {"p": scores, "s": beside}, None)
        assert not scores.any()
        assert not beside.any()
    assert [e.kind for e in sink.events] == ["release-failed"] * 2
    assert not any("0.25" in json.dumps(dict(e.evidence)) for e in sink.events)


def test_a_thief_that_fits_by_likelihood_is_misled() -> None:
    """What it is for: the likeliest copy of the answers is further from the model than that of rounded ones."""
    rng = np.random.default_rng(0)
    clean = rng.dirichlet(np.full(10, 0.3), 500)
    rounded, misled = (released((t,), clean)[1] for t in (Types(n=10), Mld(l1=1.0)))

    def loss(answers: Any) -> float:
        return float(-(answers * np.log(clean + 1e-6)).sum(axis=1).mean())

    assert loss(misled) > 2 * loss(rounded)
    assert np.array_equal(misled.argmax(axis=1), clean.argmax(axis=1))
