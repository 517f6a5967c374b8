"""Drawn labels: known answers, the exact law, its privacy, and that asking again gains nothing."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

import hardening
from hardening.config import Output, Policy
from hardening.noise import Key, derive, reference_stream
from hardening.pipeline import Pipeline
from hardening.program import Program, Task
from hardening.transforms import (
    BoundaryRandomisedResponse,
    Clip,
    Exponential,
    Gaussian,
    KRandomisedResponse,
    Laplace,
    PermuteAndFlip,
    Project,
    Temperature,
    Transform,
)
from hardening.transforms.boundary import flip_threshold
from hardening.transforms.labels import LEVELS, TV_PER_CLASS, LabelMechanism, decay
from tests.keys import fixed_key

KEY = Key(1, "chacha20", bytes(range(32)))
UNIT = 1 << 64


def drawn(
    space: Any, transforms: tuple[Transform, ...], rows: NDArray[Any], nonces: Any = None, tag: Any = None
) -> NDArray[np.intp]:
    """The labels that the kernel draws; of one row for as many questions as there are nonces."""
    if nonces is None:
        nonces = np.random.default_rng(0).integers(0, 2**32, (len(rows), 3), dtype=np.uint32)
    out = np.array(np.broadcast_to(rows, (len(nonces), rows.shape[-1])))
    task = Task(Program(Pipeline(space, transforms), out.shape[1], KEY, "p", "m"), out, len(out), nonces)
    if tag is not None:
        task.address_to(np.array(tag, np.uint32))
    assert task.run() == 0
    assert np.array_equal(np.sort(out, axis=1)[:, -2:], np.tile([0.0, 1.0], (len(out), 1)))
    return np.asarray(out.argmax(axis=1))


def behind(row: Any, low: float = 0.0, high: float = 1.0) -> list[int]:
    levels = np.rint((np.asarray(row, float) - low) * (LEVELS / (high - low))).astype(int)
    return [int(v) for v in levels.max() - levels]


def law_by_weight(weights: list[int]) -> list[Fraction]:
    """How many of 2**64 words fall to each class: those w with floor(w W / 2**64) below its share of the sum W."""
    total, sofar, counts = sum(weights), 0, [0]
    for weight in weights:
        sofar += weight
        counts.append(-(-sofar * UNIT // total))
    return [Fraction(b - a, UNIT) for a, b in pairwise(counts)]


def law_of_permute_and_flip(chances: list[Fraction]) -> list[Fraction]:
    """The definition, for an order of all classes that is drawn evenly: p_i times the integral of prod (1 - p_j t)."""
    law = []
    for i, p in enumerate(chances):
        poly = [Fraction(1)]
        for other in chances[:i] + chances[i + 1 :]:
            poly = [a - other * b for a, b in zip([*poly, Fraction(0)], [Fraction(0), *poly], strict=True)]
        law.append(p * sum(c / (n + 1) for n, c in enumerate(poly)))
    return law


def law(mechanism: LabelMechanism, row: Any, low: float = 0.0, high: float = 1.0) -> list[Fraction]:
    """The exact chances of each class, from the integers of the mechanism's table."""
    if isinstance(mechanism, KRandomisedResponse):
        keep, other = mechanism.table.tolist()
        return law_by_weight([keep if i == int(np.argmax(row)) else other for i in range(len(row))])
    assert isinstance(mechanism, Exponential | PermuteAndFlip)
    table = mechanism.table.tolist()
    if isinstance(mechanism, Exponential):
        return law_by_weight([table[d] for d in behind(row, low, high)])
    return law_of_permute_and_flip([Fraction(table[d], UNIT) if d else Fraction(1) for d in behind(row, low, high)])


#: Scores, the width of their range - times the epsilon for a sensitivity of 1 it is ours - and the published chances.
KNOWN: list[tuple[list[float], float, float, list[float], list[float]]] = [
    ([1, 0], 1.0, 1.0, [0.62245933120185, 0.37754066879815], [0.69673467014368, 0.30326532985632]),
    (
        [3, 2, 0, 0],
        4.0,
        4.0,
        [0.48714165725503, 0.2954663507484, 0.10869599599829, 0.10869599599829],
        [0.57287437575337, 0.26067001739597, 0.083227803425329, 0.083227803425329],
    ),
    (
        [1, 0.9, 0.5, 0.1, 0],
        1.0,
        4.0,
        [0.40205136808723, 0.32917181937009, 0.14790643261414, 0.066458644152787, 0.054411735775753],
        [0.45521859409514, 0.32687844620676, 0.12320251770116, 0.052254231666641, 0.042446210330302],
    ),
]


@pytest.mark.parametrize(("scores", "high", "epsilon", "exponential", "flipped"), KNOWN)
def test_known_laws(
    scores: list[float], high: float, epsilon: float, exponential: list[float], flipped: list[float]
) -> None:
    """By exact enumeration of the definitions; a score of 0.9 is off the grid by a quarter of a step."""
    for mechanism, expected in ((Exponential(epsilon), exponential), (PermuteAndFlip(epsilon), flipped)):
        found = [float(p) for p in law(mechanism, scores, 0.0, high)]
        assert found == pytest.approx(expected, abs=2e-4 if 0.9 in scores else 1e-13)
        assert sum(law(mechanism, scores, 0.0, high)) == 1


@pytest.mark.parametrize(
    ("classes", "epsilon", "kept", "capacity"),
    [
        (2, 1.0, 0.73105857863000488, 0.160058462017),
        (10, 0.5, 0.15482809896025466, 0.0210046674281),
        (10, 1.0, 0.23196931668407394, 0.105899930062),
        (10, 3.0, 0.69056785770301561, 1.44853453435),
        (100, 3.0, 0.16866478870682007, 0.477997355867),
    ],
)
def test_known_randomised_response(classes: int, epsilon: float, kept: float, capacity: float) -> None:
    """p = e^eps / (e^eps + k - 1); capacity log2 k + p log2 p + (1 - p) log2((1 - p) / (k - 1))."""
    mechanism = KRandomisedResponse(epsilon)
    assert float(law(mechanism, np.eye(classes)[0])[0]) == pytest.approx(kept, abs=1e-15)
    promise = Pipeline("simplex", (mechanism,)).guarantee(classes)
    assert promise.bits == pytest.approx(capacity, abs=1e-11)
    assert KRandomisedResponse(0.0).capacity(classes) == pytest.approx(0.0, abs=1e-12)
    assert KRandomisedResponse(900.0).capacity(classes) == pytest.approx(math.log2(classes))


@pytest.mark.parametrize(("epsilon", "flip"), [(0.0, 0.5), (1.0, 0.2689414213699951), (5.0, 0.0066928509242848554)])
def test_known_coins(epsilon: float, flip: float) -> None:
    """Of the public implementation of BDPL: e^-eps / (1 + e^-eps)."""
    assert flip_threshold(epsilon) / UNIT == pytest.approx(flip, rel=1e-15)


@settings(max_examples=30)
@given(st.floats(0.0, 1000.0), st.sampled_from([1, 7, 300]))
def test_tables_are_exact(epsilon: float, steps: int) -> None:
    table = decay(Fraction(epsilon) / steps, steps, 1 << 64).tolist()
    assert table[0] == UNIT - 1
    assert all(a >= b for a, b in pairwise(table))
    assert [t / UNIT for t in table] == pytest.approx([math.exp(-epsilon * d / steps) for d in range(steps + 1)])


ROW = np.array([[0.05, 0.4, 0.35, 0.15, 0.05, 0.0]])


def floats_of_law(mechanism: LabelMechanism, row: Any) -> NDArray[np.float64]:
    """`law` in floating point: the integral by Gauss's quadrature, which is exact for polynomials of this degree."""
    if not isinstance(mechanism, PermuteAndFlip):
        return np.array([float(p) for p in law(mechanism, row)])
    chances = mechanism.table[behind(row)] / UNIT
    nodes, weights = np.polynomial.legendre.leggauss(len(row))
    factors = 1 - np.outer(chances, (nodes + 1) / 2)
    return np.array([p * (np.delete(factors, i, 0).prod(axis=0) @ weights) / 2 for i, p in enumerate(chances)])


@pytest.mark.parametrize("repeat", [1, 20])
@pytest.mark.parametrize("mechanism", [Exponential(5.0), PermuteAndFlip(5.0), KRandomisedResponse(1.5)])
def test_labels_follow_the_exact_law(mechanism: LabelMechanism, repeat: int) -> None:
    """Narrow blocks, and wide ones with every class twenty times."""
    row = np.repeat(ROW, repeat, axis=1)
    space: Any = "simplex" if repeat == 1 else "logits"
    steps: tuple[Transform, ...] = (mechanism,) if repeat == 1 else (Clip(low=0.0, high=1.0), mechanism)
    nonces = np.random.default_rng(7).integers(0, 2**32, (200_000 // repeat, 3), dtype=np.uint32)
    expected = floats_of_law(mechanism, row[0]) * len(nonces)
    assert expected.sum() == pytest.approx(len(nonces))
    observed = np.bincount(drawn(space, steps, row, nonces), minlength=row.shape[1])
    assert expected.min() > 5
    chi2 = ((observed - expected) ** 2 / expected).sum()
    assert chi2 < stats.chi2.isf(1e-6, len(expected) - 1)


@pytest.mark.parametrize("epsilon", [0.0, 1.0, 4.0])
def test_coins_at_the_boundary(epsilon: float) -> None:
    """Within the margin the runner-up has its exact share; beyond it nothing ever changes."""
    nonces = np.random.default_rng(8).integers(0, 2**32, (100_000, 3), dtype=np.uint32)
    close, apart = np.array([[0.1, 0.42, 0.48]]), np.array([[0.1, 0.4, 0.5]])
    mechanism = BoundaryRandomisedResponse(epsilon, margin=0.08)
    swapped = int((drawn("simplex", (mechanism,), close, nonces) == 1).sum())
    assert set(np.unique(drawn("simplex", (mechanism,), close, nonces))) == {1, 2}
    assert stats.binomtest(swapped, len(nonces), flip_threshold(epsilon) / UNIT).pvalue > 1e-6
    assert (drawn("simplex", (mechanism,), apart, nonces) == 2).all()


MECHANISMS = [Exponential(2.0), PermuteAndFlip(2.0), KRandomisedResponse(2.0)]


@pytest.mark.parametrize("mechanism", MECHANISMS)
@settings(max_examples=60)
@given(st.integers(2, 5), st.integers(0, 2**32 - 1))
def test_no_two_models_are_further_apart_than_promised(mechanism: LabelMechanism, width: int, seed: int) -> None:
    """Any two rows, as different as they can be: loss, divergences of every order, and bits."""
    rng = np.random.default_rng(seed)
    rows = rng.dirichlet(np.full(width, rng.choice([0.05, 1.0])), 2)
    if seed % 3 == 0:
        rows = np.eye(width)[rng.permutation(width)[:2]]
    p, q = (np.array([float(x) for x in law(mechanism, row)]) for row in rows)
    promise = Pipeline("simplex", (mechanism,)).guarantee(width)
    loss, rho = promise.parameters["epsilon"], promise.parameters["rho"]
    assert np.abs(np.log(p / q)).max() <= loss + 1e-12
    for order in (1.0001, 1.5, 2.0, 5.0, 50.0):
        divergence = math.log((p**order * q ** (1 - order)).sum()) / (order - 1)
        assert divergence <= rho * order + 1e-9
    middle = (p + q) / 2  # two models that are as likely: what a label tells, in bits
    assert sum(0.5 * (x * np.log2(x / middle)).sum() for x in (p, q)) <= promise.bits + 1e-12


@pytest.mark.parametrize("mechanism", [Exponential(3.0), PermuteAndFlip(3.0), KRandomisedResponse(3.0)])
def test_an_attacker_with_many_answers_finds_no_larger_loss(mechanism: LabelMechanism) -> None:
    """The two-world game on what the kernel draws: which of two models answers? Half of the answers choose the label to
    watch, the other half judges, with Clopper and Pearson's limits."""
    nonces = np.random.default_rng(11).integers(0, 2**32, (100_000, 3), dtype=np.uint32)
    worlds = [drawn("simplex", (mechanism,), np.eye(10)[i : i + 1], nonces + np.uint32(i)) for i in (0, 1)]
    first, second = (np.array([np.bincount(half, minlength=10) for half in np.split(w, 2)]) for w in worlds)
    label = int(np.argmax((first[0] + 1) / (second[0] + 1)))
    limits = [stats.binomtest(int(w[1][label]), 50_000).proportion_ci(0.9999) for w in (first, second)]
    found = math.log(limits[0].low / limits[1].high)
    one, other = (float(law(mechanism, np.eye(10)[i])[0]) for i in (0, 1))
    assert 0.8 * math.log(one / other) < found <= mechanism.epsilon


def test_rows_of_one_question_are_drawn_apart() -> None:
    """A sequence of distributions for each question: they follow each other in its keystream."""
    for width in (8, 70):
        mechanism, rows = PermuteAndFlip(1.0), np.full((12, width), 1 / width)
        rows[:, 0] *= 1.01
        rows /= rows.sum(axis=1, keepdims=True)
        nonces = np.random.default_rng(9).integers(0, 2**32, (3, 3), dtype=np.uint32)
        pipeline, out = Pipeline("simplex", (mechanism,)), rows.copy()
        assert Task(Program(pipeline, width, KEY, "p", "m"), out, 3, nonces).run() == 0
        secret, per_vector = derive(KEY, "noise", "m", "p", *next(pipeline.contexts())), (width + 7) // 8
        words = [
            reference_stream("chacha20", secret, nonces[i // 4].tobytes(), i % 4 * per_vector, width) for i in range(12)
        ]
        assert np.array_equal(out, pipeline.reference(rows, iter([np.array(words)])))
        assert len(np.unique(out.argmax(axis=1))) > 3


def test_the_loss_is_reached() -> None:
    """The promise is no better than what holds: an attacker with the worst two models comes close to it."""
    two = np.eye(40)[:2]
    for mechanism in (PermuteAndFlip(3.0), KRandomisedResponse(3.0), Exponential(3.0)):
        p, q = ([float(x) for x in law(mechanism, row)] for row in two)
        assert math.log(p[0] / q[0]) > 0.4 * 3.0, mechanism
    p, q = ([float(x) for x in law(KRandomisedResponse(3.0), row)] for row in two)
    assert math.log(p[0] / q[0]) == pytest.approx(3.0)


@settings(max_examples=25)
@given(st.integers(2, 40), st.integers(0, 2**32 - 1), st.floats(0.0, 30.0))
def test_sampling_error_is_within_its_bound(width: int, seed: int, epsilon: float) -> None:
    """Between the integers that are drawn by and the ideal law, which is computed with 60 digits."""
    row = np.random.default_rng(seed).dirichlet(np.ones(width))
    mechanism = Exponential(epsilon)
    high_precision = [Fraction(int(w), 1 << 200) for w in _weights(epsilon, behind(row))]
    total = sum(high_precision)
    distance = sum(abs(a - b / total) for a, b in zip(law(mechanism, row), high_precision, strict=True)) / 2
    assert distance <= width * Fraction(TV_PER_CLASS)


def _weights(epsilon: float, levels: list[int]) -> list[Any]:
    from decimal import Decimal, localcontext

    with localcontext() as context:
        context.prec = 80
        return [((-Decimal(epsilon) * d / (2 * LEVELS)).exp() * 2**200).to_integral_value() for d in levels]


def test_asking_again_gains_nothing_and_nothing_else_shares_a_draw() -> None:
    logits = np.array([[1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3]])
    nonces = np.random.default_rng(3).integers(0, 2**32, (400, 3), dtype=np.uint32)
    clip, base = Clip(low=-1.0, high=1.0), Exponential(2.0)
    asked = drawn("logits", (clip, base), logits, nonces)
    assert np.array_equal(asked, drawn("logits", (clip, base), logits, nonces))
    others = [
        drawn("logits", (clip, Exponential(2.0000001)), logits, nonces),
        drawn("logits", (Clip(low=-1.0, high=1.0000001), base), logits, nonces),
        drawn("logits", (Temperature(t=1.0000001), clip, base), logits, nonces),
        drawn("logits", (clip, Exponential(2.0, scope="client")), logits, nonces, (1, 2, 3)),
        drawn("logits", (clip, Exponential(2.0, scope="client")), logits, nonces, (1, 2, 4)),
        drawn("logits", (clip, base), logits, nonces + np.uint32(1)),
    ]
    for i, other in enumerate(others):
        for another in (asked, *others[:i]):
            assert 0.05 < (other == another).mean() < 0.35  # one in eight, as of independent draws


@pytest.mark.parametrize("kind", [Exponential, PermuteAndFlip, KRandomisedResponse])
def test_near_duplicates_of_a_cell_get_one_label(kind: Any) -> None:
    """By their cell all labels are one; by the question the majority gives the model's label away."""
    rng = np.random.default_rng(4)
    rows = np.array([0.02, 0.4, 0.3, 0.28]) + rng.uniform(-1e-4, 1e-4, (300, 4))
    rows /= rows.sum(axis=1, keepdims=True)
    assert len(np.unique(drawn("simplex", (kind(epsilon=2.0, key="cell"),), rows))) == 1
    asked = drawn("simplex", (kind(epsilon=8.0),), rows)
    assert np.bincount(asked).argmax() == 1
    promise = Pipeline("simplex", (kind(epsilon=2.0, key="cell"),)).guarantee(4)
    assert (promise.relation, promise.bits, dict(promise.parameters)) == ("capacity", 2.0, {})


def test_what_drawn_labels_promise() -> None:
    for mechanism in MECHANISMS:
        promise = Pipeline("simplex", (mechanism,)).guarantee(10)
        assert (promise.relation, promise.unit, promise.keeps_top1) == ("label-rr", "distinct input", False)
        assert 0 < promise.parameters["delta"] < 1e-16
        assert promise.bits <= math.log2(10)
        assert promise.assumptions
    loss = {type(m): Pipeline("simplex", (m,)).guarantee(10).parameters["rho"] for m in MECHANISMS}
    assert loss == {Exponential: 0.5, PermuteAndFlip: 2.0, KRandomisedResponse: 2.0}
    fresh = Pipeline("simplex", (PermuteAndFlip(2.0, key="fresh", scope="client"),)).guarantee(10)
    assert (fresh.unit, fresh.scope) == ("answer", "client")
    blurred = Pipeline("simplex", (BoundaryRandomisedResponse(1.0, margin=0.1),)).guarantee(10)
    assert (blurred.relation, blurred.keeps_top1) == ("capacity", False)
    assert blurred.bits == pytest.approx(math.log2(10))
    assert not blurred.parameters
    unknown = Pipeline("simplex", (Exponential(2.0),)).guarantee(None)
    assert math.isinf(unknown.bits)
    assert unknown.parameters["delta"] == 1.0


def test_what_comes_after_a_drawn_label_knows_no_other() -> None:
    """`project` keeps the label that was drawn, not the model's; the promise stays what it was."""
    rows = np.random.default_rng(5).dirichlet(np.ones(6), 64)
    drawn_alone = drawn("simplex", (KRandomisedResponse(0.5),), rows)
    assert (drawn_alone != rows.argmax(axis=1)).any()
    kept = (KRandomisedResponse(0.5), Project(keep_top1=True))
    out = rows.copy()
    nonces = np.random.default_rng(0).integers(0, 2**32, (64, 3), dtype=np.uint32)
    assert Task(Program(Pipeline("simplex", kept), 6, KEY, "p", "m"), out, 64, nonces).run() == 0
    assert np.array_equal(out.argmax(axis=1), drawn_alone)
    noisy = (*kept, Laplace(scale=0.1), Project(keep_top1=True))
    for steps in (kept, noisy):
        promise = Pipeline("simplex", steps).guarantee(6)
        assert (promise.relation, promise.keeps_top1) == ("label-rr", False)
    before = Pipeline("simplex", (Gaussian(sigma=0.1), Project(), BoundaryRandomisedResponse(1.0, margin=0.2)))
    assert before.guarantee(6).relation == "output-metric"


def test_a_label_output_says_what_was_drawn(tmp_path: Path) -> None:
    rules = Output("simplex", {"normal": (PermuteAndFlip(3.0),)}, label_output="label", classes=("a", "b", "c"))
    policy = Policy({"p": rules}, key=fixed_key(tmp_path), root=tmp_path)
    x = np.arange(200.0)[:, None]
    outputs = {
        "p": np.tile(np.array([[0.2, 0.5, 0.3]], "f4"), (200, 1)),
        "label": np.array(["b"] * 200, object),
    }
    with hardening.Guard(policy) as guard:
        first, second = (guard.harden(outputs, client=who, inputs={"x": x}) for who in ("alice", "bob"))
    assert np.array_equal(first["p"], second["p"])
    assert [("a", "b", "c")[i] for i in first["p"].argmax(axis=1)] == first["label"].tolist()
    assert set(first["label"]) == {"a", "b", "c"}


def test_drawn_labels_need_a_key() -> None:
    for mechanism in (*MECHANISMS, BoundaryRandomisedResponse(1.0, margin=0.1)):
        with pytest.raises(hardening.ConfigError, match=r"\[key\]"):
            Policy({"p": Output("simplex", {"normal": (mechanism,)})})
