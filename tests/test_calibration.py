"""Fits to a target, held against the law that is drawn; what noise costs, against draws and exact sums."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardening import accounting, calibration
from hardening.noise import (
    CIPHERS,
    Law,
    grid_exponents,
    noise_table,
    reference_noise,
    reference_stream,
    table_weights,
)
from hardening.pipeline import Pipeline
from hardening.transforms import Gaussian, Laplace, Staircase, Types

RATE, L1 = 0.05, 0.4


@settings(max_examples=60)
@given(st.floats(0.05, 8), st.floats(1e-8, 1e-2), st.floats(1e-3, 10), st.sampled_from([1, 2, 10, 100]))
def test_a_gaussian_fit_meets_its_target(epsilon: float, delta: float, sensitivity: float, width: int) -> None:
    """By the bound for rows and, along one axis, by the exact sum over the table."""
    noise = Gaussian(epsilon=epsilon, delta=delta, sensitivity=sensitivity).at(width)
    table = noise_table(noise.law)
    errors = accounting.table_delta(width * table.tv_bound, epsilon)
    distance = sensitivity / noise.step + math.sqrt(width)
    bound = accounting.discrete_gaussian_delta(float(noise.law.scale), distance, epsilon, width) + errors
    assert bound <= delta
    assert accounting.drawn_delta(table_weights(table), math.floor(distance), epsilon) <= delta
    ideal = sensitivity / accounting.gdp_mu(epsilon, delta)
    assert noise.sigma is not None
    assert noise.sigma >= ideal * (1 - 1e-9)
    if width == 1 and epsilon >= 0.5:
        assert noise.sigma < 1.06 * ideal
    assert len(table.threshold) <= 2**16


@settings(max_examples=60)
@given(st.floats(0.2, 12), st.floats(1e-3, 10), st.sampled_from([1, 2, 10]), st.sampled_from([Laplace, Staircase]))
def test_pure_fits_meet_their_target(epsilon: float, sensitivity: float, width: int, kind: Any) -> None:
    """The worst log-ratio of the drawn weights, over every distance that rounding leaves possible, tables apart."""
    noise = kind(epsilon=epsilon, sensitivity=sensitivity).at(width)
    weights = table_weights(noise_table(noise.law))
    entries = width if kind is Staircase else 1
    steps = noise.law.period if kind is Staircase else math.floor(sensitivity / noise.step + width)
    x = np.array([weights[v] for v in range(max(weights) + 1)], float)
    common = x[x > 2**40]  # where a unit of 2**-64 does not show
    if steps < len(common):
        assert entries * math.log(max(common[:-steps] / common[steps:])) <= epsilon * (1 + 1e-9)
    loss = epsilon / entries
    errors = accounting.table_delta(noise_table(noise.law).tv_bound, loss)
    for shift in {1, steps // 2, steps} - {0}:
        assert accounting.drawn_delta(weights, shift, loss) <= errors


@pytest.mark.parametrize("rows", [([0.5, 1.5], 1.0), ([2.5, 3.5], 1.0), ([0.49, 0.51], 0.02), ([7.5, 7.4999], 1e-4)])
def test_rounding_adds_what_is_charged_for_it(rows: tuple[list[float], float]) -> None:
    """Halves go to even numbers, which takes two scores one step apart to two steps apart."""
    values, apart = rows
    noise = Staircase(scale=16.0, sensitivity=apart, grid=0)
    moved = abs(np.diff(np.rint(values))[0])
    assert moved <= noise.law.period == math.floor(apart) + 1
    assert moved <= apart + 1


def test_ten_per_cent_less_noise_is_not_enough() -> None:
    noise = Gaussian(epsilon=1.0, delta=1e-6, sensitivity=0.1).at(1)
    less = noise_table(Law("gaussian", noise.law.scale * Fraction(9, 10)))
    shift = math.floor(0.1 / noise.step) + 1
    assert accounting.drawn_delta(table_weights(noise_table(noise.law)), shift, 1.0) <= 1e-6
    assert accounting.drawn_delta(table_weights(less), shift, 1.0) > 2e-6


@pytest.mark.parametrize(
    ("make", "width", "problem"),
    [
        (lambda: Gaussian(epsilon=0.01, delta=1e-6, sensitivity=1.0), 1000, "epsilon: too small for rows of 1000"),
        (lambda: Laplace(epsilon=0.01, sensitivity=1.0), 10, "epsilon: too small for rows of 10 entries, .* 0.0195"),
        (lambda: Staircase(epsilon=0.01, sensitivity=1.0), 10, "epsilon: too small"),
        (lambda: Gaussian(epsilon=1.0, delta=1e-14, sensitivity=1.0), 10, "delta: must exceed 2.64e-13"),
        (lambda: Gaussian(epsilon=1.0, delta=1e-6, sensitivity=1e-10), 1, "sensitivity: asks for noise of scale"),
        (lambda: Laplace(epsilon=1e-3, sensitivity=1e9), 1, "sensitivity: asks for noise of scale 1e"),
    ],
)
def test_targets_out_of_reach_say_what_would_be_in_it(make: Any, width: int, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        make().at(width)


def test_the_least_epsilon_that_is_named_can_be_had() -> None:
    for kind, extra, width in ((Gaussian, {"delta": 1e-6}, 1000), (Laplace, {}, 10), (Staircase, {}, 10)):
        with pytest.raises(ValueError, match="is the least") as caught:
            kind(epsilon=1e-3, sensitivity=0.01, **extra).at(width)
        least = float(str(caught.value).split("about ")[1].split()[0])
        assert kind(epsilon=1.1 * least, sensitivity=0.01, **extra).at(width).scale_value > 0


def law_of(kind: Any, scale: float) -> Law:
    return Law(kind, Fraction(scale) * Fraction(2) ** (8 if kind == "gaussian" else 6))


@pytest.mark.parametrize("kind", ["gaussian", "laplace"])
@pytest.mark.parametrize("width", [1, 10, 1000])
def test_expected_l1(kind: Any, width: int) -> None:
    """No less noise than the budget allows, no more than it costs in truth: summed exactly over the table."""
    scale = calibration.scale_for_expected_l1(kind, L1, width)
    assert calibration.expected_l1(kind, scale, width) == pytest.approx(L1, rel=1e-2)
    noise = Gaussian(scale) if kind == "gaussian" else Laplace(scale)
    weights = table_weights(noise_table(noise.law))
    mean = float(sum(abs(x) * w for x, w in weights.items()) / 2**64) * noise.step
    assert width * mean > 0.95 * L1
    assert width * (mean + noise.step / 2) <= L1
    rng = np.random.default_rng(0)
    rows = rng.random((2000, width))
    raw = reference_stream(CIPHERS[0], bytes(32), bytes(12), 0, rows.size).reshape(rows.shape)
    pipeline = Pipeline("scalar", (noise,))
    released = pipeline.reference(rows, iter([reference_noise(noise_table(noise.law), raw)]))
    spent = np.abs(released - rows).sum(axis=1)
    assert spent.mean() <= L1 + 5 * spent.std() / math.sqrt(len(rows))


@pytest.mark.parametrize("kind", ["gaussian", "laplace"])
def test_worst_l1_is_the_end_of_the_table(kind: Any) -> None:
    scale = calibration.scale_for_worst_l1(kind, L1, 10)
    noise = Gaussian(scale) if kind == "gaussian" else Laplace(scale)
    worst = 10 * (noise_table(noise.law).offset + 0.5) * noise.step
    assert 0.8 * L1 < worst <= L1


def difference_tail(law: Law) -> Any:
    """P[x - y >= d] for d = 0, 1, ... by exact convolution."""
    weights = table_weights(noise_table(law))
    reach = max(weights)
    p = np.array([weights[x] for x in range(-reach, reach + 1)], float) / 2**64
    return np.convolve(p, p)[::-1].cumsum()[::-1][2 * reach :]


@pytest.mark.parametrize("kind", [Gaussian, Laplace])
@pytest.mark.parametrize("scale", [1.0, 1.3, 1.99])
def test_flips_between_two_classes_are_bounded_by_exact_sums(kind: Any, scale: float) -> None:
    noise = kind(scale)
    tail = difference_tail(noise.law)
    for margin in (0.0, 0.1, 0.5, 1.0, 3.0, 8.0, 20.0):
        lost = max(0, math.ceil(margin / noise.step - 1))  # rounded, two scores are closer by up to a step
        exact = tail[lost] if lost < len(tail) else 0.0
        bound = calibration.flip_rate(kind.kind, scale, [[margin, 0.0]])
        assert exact <= bound * (1 + 1e-9)
        assert bound <= 1.15 * exact + 1e-15 or bound == 1.0


@pytest.mark.parametrize("kind", [Gaussian, Laplace])
def test_flip_rate_of_a_sample_of_rows(kind: Any) -> None:
    rng = np.random.default_rng(1)
    rows = rng.dirichlet(np.full(10, 0.1), 4000)
    scale = calibration.scale_for_flip_rate(kind.kind, RATE, rows)
    noise = kind(scale)
    raw = reference_stream(CIPHERS[0], bytes(32), bytes(12), 0, rows.size).reshape(rows.shape)
    released = Pipeline("scalar", (noise,)).reference(rows, iter([reference_noise(noise_table(noise.law), raw)]))
    flipped = (released.argmax(1) != rows.argmax(1)).mean()
    assert RATE / 4 < flipped <= RATE + 3 * math.sqrt(RATE / len(rows))
    one = calibration.scale_for_flip_rate(kind.kind, RATE, [[0.3, 0.0]])
    assert calibration.flip_rate(kind.kind, one, [[0.3, 0.0]]) <= RATE


@settings(max_examples=60)
@given(st.integers(2, 40), st.integers(1, 200), st.integers(0, 2**32 - 1), st.sampled_from([0.02, 1.0, 50.0]))
def test_types_never_move_a_row_further(width: int, n: int, seed: int, spread: float) -> None:
    rows = np.random.default_rng(seed).dirichlet(np.full(width, spread), 50)
    moved = np.abs(Pipeline("simplex", (Types(n=n),)).reference(rows) - rows).sum(axis=1)
    assert moved.max() <= calibration.types_l1(n, width) + 1e-9
    enough = calibration.types_for_worst_l1(L1, width)
    assert calibration.types_l1(enough, width) <= L1 < calibration.types_l1(max(enough - 1, 1), width) or enough == 1
    assert calibration.types_for_worst_l1(2.0, width) == 1


@pytest.mark.parametrize(
    "call",
    [
        lambda: calibration.scale_for_expected_l1("gaussian", 0.0, 10),
        lambda: calibration.scale_for_expected_l1("gaussian", math.inf, 10),
        lambda: calibration.scale_for_worst_l1("laplace", 1e-20, 10),
        lambda: calibration.scale_for_flip_rate("laplace", 1.0, [[0.1, 0.0]]),
        lambda: calibration.scale_for_flip_rate("laplace", 0.1, [[0.5, 0.5]]),
        lambda: calibration.scale_for_flip_rate("gaussian", 0.1, [[0.5]]),
        lambda: calibration.scale_for_flip_rate("gaussian", 0.1, [[math.nan, 0.0]]),
        lambda: calibration.types_for_worst_l1(-1.0, 3),
    ],
)
def test_budgets_that_make_no_sense(call: Any) -> None:
    with pytest.raises(ValueError, match=r"^(l1|rate|scores): "):
        call()


@pytest.mark.parametrize(
    ("epsilon", "flat", "mean"),
    [(0.1, 0.48750260351578966, 9.9958345482908393), (1.0, 0.37754066879814544, 0.95951737566747186),
     (5.0, 0.075858180021243551, 0.082641834927547782)],
)  # fmt: skip
def test_the_discrete_staircase_tends_to_the_published_one(epsilon: float, flat: float, mean: float) -> None:
    """Geng & Viswanath 2014: where it falls, and its mean cost exp(epsilon / 2) / (exp(epsilon) - 1)."""
    period = 10**6
    found = calibration.staircase_flat(epsilon, period)
    assert found / period == pytest.approx(flat, abs=2e-6)
    assert calibration.staircase_l1(epsilon, period, found) / period == pytest.approx(mean, rel=1e-5)


def test_the_staircase_costs_less_than_laplace_noise() -> None:
    for epsilon in (0.5, 1.0, 5.0, 10.0):
        costs = []
        for kind in (Staircase, Laplace):
            noise = kind(epsilon=epsilon, sensitivity=1.0).at(1)
            weights = table_weights(noise_table(noise.law))
            costs.append(float(sum(abs(x) * w for x, w in weights.items()) / 2**64) * noise.step)
            if kind is Staircase:
                expected = calibration.staircase_l1(noise._entry_loss, noise.law.period, noise.law.flat)
                assert costs[0] / noise.step == pytest.approx(expected, rel=1e-12)
        assert costs[0] < costs[1] * (1.0 if epsilon > 1 else 1.03)


def test_every_grid_that_is_offered_has_a_table() -> None:
    for kind, scale in (("gaussian", 0.7), ("laplace", 0.7), ("staircase", 0.7)):
        law: Any = kind
        for exponent in (grid_exponents(law, scale)[0], grid_exponents(law, scale)[-1]):
            table = noise_table(Law(law, Fraction(scale) * Fraction(2) ** exponent))
            assert sum(table_weights(table).values()) == 2**64
            assert table.bits <= 16
            assert table.tv_bound < calibration.TABLE_ERROR
