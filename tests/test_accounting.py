"""Privacy loss against known answers, exact sums over the drawn laws, and what the filter must refuse."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardening import accounting
from hardening.accounting import Filter
from hardening.noise import Law, noise_table, table_weights

#: sigma / D of the analytic Gaussian mechanism (Balle & Wang 2018, theorem 8), solved to 60 digits.
ANALYTIC = [
    (0.01, 1e-5, 243.78543767567803), (0.01, 1e-10, 501.29213292600076), (0.1, 1e-6, 36.30469042619578),
    (0.5, 1e-6, 8.057618480725043), (1.0, 1e-5, 3.730631634815942), (1.0, 1e-6, 4.224678889326835),
    (1.0, 1e-10, 5.867777749630527), (2.0, 1e-6, 2.2304762711864172), (4.0, 1e-10, 1.5753160293050714),
    (8.0, 1e-5, 0.6002290721989516), (10.0, 1e-5, 0.4998886197090085), (10.0, 1e-10, 0.6830439672274812),
]  # fmt: skip


@pytest.mark.parametrize(("epsilon", "delta", "ratio"), ANALYTIC)
def test_analytic_gaussian(epsilon: float, delta: float, ratio: float) -> None:
    assert 1 / accounting.gdp_mu(epsilon, delta) == pytest.approx(ratio, rel=1e-11)
    assert accounting.gdp_delta(1 / ratio, epsilon) == pytest.approx(delta, rel=1e-9)
    assert accounting.gdp_epsilon(1 / ratio, delta) == pytest.approx(epsilon, rel=1e-9)


def test_the_classical_formula_would_not_do() -> None:
    """sqrt(2 ln(1.25 / delta)) / epsilon is not private at epsilon = 10: its delta is twice what was asked."""
    sigma = math.sqrt(2 * math.log(1.25 / 1e-5)) / 10
    assert accounting.gdp_delta(1 / sigma, 10.0) == pytest.approx(2.27e-5, rel=5e-3)


@pytest.mark.parametrize(
    ("mu", "epsilon", "delta"),
    [
        (0.1, 0.0, 0.039877611676744923), (0.1, 1.0, 1.2308359836427042e-25), (0.1, 3.0, 7.3048061017543098e-200),
        (0.5, 3.0, 3.4009117356735288e-10), (1.0, 1.0, 0.12693673750664395), (2.0, 3.0, 0.18381307654447216),
        (4.0, 0.1, 0.95217804385543519), (4.0, 3.0, 0.83450008185309931),
    ],
)  # fmt: skip
def test_gdp_delta(mu: float, epsilon: float, delta: float) -> None:
    """Dong, Roth & Su 2022, corollary 2.13, at 60 digits; far tails as well."""
    assert accounting.gdp_delta(mu, epsilon) == pytest.approx(delta, rel=1e-11)


def test_gdp_ends() -> None:
    assert accounting.gdp_delta(0.0, 0.0) == 0
    assert accounting.gdp_delta(math.inf, 3.0) == 1
    assert accounting.gdp_delta(1e-3, 500.0) == 0
    assert accounting.gdp_delta(60.0, 1000.0) == pytest.approx(1.0)
    assert accounting.gdp_epsilon(1e-9, 1e-3) == 0
    assert accounting.gdp_epsilon(1.0, 1e-6) == pytest.approx(4.886554117462212, rel=1e-12)


@pytest.mark.parametrize(
    ("mu", "false_positives", "right"),
    [(0.1, 0.001, 0.00139382675683), (1.0, 0.001, 0.0182984684057), (1.0, 0.01, 0.0923622480737)],
)
def test_what_a_test_can_do_under_gdp(mu: float, false_positives: float, right: float) -> None:
    assert accounting.gdp_true_positives(mu, false_positives) == pytest.approx(right, rel=1e-10)
    grid = np.linspace(0, 8, 400)
    least = min(accounting.true_positives(e, accounting.gdp_delta(mu, e), false_positives) for e in grid)
    assert least == pytest.approx(right, rel=1e-3)  # the trade-off is the envelope of its (epsilon, delta)
    assert least >= right


def test_advantage() -> None:
    for mu, advantage in ((0.1, 0.0398776116767), (1.0, 0.382924922548), (2.0, 0.682689492137)):
        assert accounting.gdp_advantage(mu) == pytest.approx(advantage, rel=1e-11)


@pytest.mark.parametrize(
    ("rho", "delta", "epsilon", "gaussian"),
    [
        (0.005, 1e-5, 0.37526123569902315, 0.34066936468432641), (0.05, 1e-6, 1.471594750532416, 1.3675714750843067),
        (0.1, 1e-6, 2.1419389283854737, 1.9945269006963384), (0.5, 1e-5, 4.7283869849433139, 4.3771780956812246),
        (1.0, 1e-6, 7.7662166253117207, 7.2860809664186076), (5.0, 1e-6, 20.551948814041252, 19.423656474031051),
    ],
)  # fmt: skip
def test_zcdp(rho: float, delta: float, epsilon: float, gaussian: float) -> None:
    """Canonne, Kamath & Steinke 2020, proposition 12; below Bun & Steinke 2016."""
    assert accounting.zcdp_epsilon(rho, delta) == pytest.approx(epsilon, rel=1e-12)
    assert accounting.zcdp_delta(rho, epsilon) == pytest.approx(delta, rel=1e-9)
    assert accounting.zcdp_rho(epsilon, delta) == pytest.approx(rho, rel=1e-9)
    assert epsilon < rho + 2 * math.sqrt(rho * math.log(1 / delta))
    assert accounting.gdp_epsilon(math.sqrt(2 * rho), delta) == pytest.approx(gaussian, rel=1e-12)


def test_zcdp_ends() -> None:
    assert accounting.zcdp_epsilon(0.0, 1e-6) == 0
    assert accounting.zcdp_epsilon(math.inf, 1e-6) == math.inf
    assert accounting.zcdp_delta(math.inf, 1.0) == 1
    assert accounting.zcdp_delta(1e-3, 50.0) == 0
    assert accounting.zcdp_epsilon(0.1, 1e-6, tv=1e-9) > accounting.zcdp_epsilon(0.1, 1e-6)
    assert accounting.zcdp_epsilon(0.1, 1e-6, tv=1e-6) == math.inf
    assert accounting.zcdp_composed([0.1] * 10) >= 1
    assert accounting.zcdp_composed([]) == 0


@pytest.mark.parametrize("call", ["zcdp_epsilon(-1, .1)", "zcdp_epsilon(1, 0)", "gdp_mu(1, 1)", "gdp_delta(1, -1)"])
def test_numbers_that_make_no_sense(call: str) -> None:
    with pytest.raises(ValueError, match="must be"):
        eval(f"accounting.{call}")
    with pytest.raises(ValueError, match="order: must be above 1"):
        accounting.rdp_epsilon_at(1.0, 1.0, 1e-5)


@pytest.mark.parametrize(
    ("order", "divergence", "delta", "epsilon"),
    [(2, 1, 1e-5, 11.126631103850338), (8, 0.5, 1e-6, 2.0430498954161114), (64, 0.1, 1e-8, 0.3106293836761893)],
)
def test_rdp_at_an_order(order: float, divergence: float, delta: float, epsilon: float) -> None:
    assert accounting.rdp_epsilon_at(order, divergence, delta) == pytest.approx(epsilon, rel=1e-12)
    mironov = divergence + math.log(1 / delta) / (order - 1)  # proposition 3 of Mironov 2017
    assert epsilon < mironov


@pytest.mark.parametrize(
    ("loss", "order", "divergence"),
    [(1.0, 2, 0.61912362999859288), (1.0, 16, 0.95590676785031115), (0.5, 4, 0.32092653017871751)],
)
def test_laplace_rdp(loss: float, order: float, divergence: float) -> None:
    """Mironov 2017, table II."""
    assert accounting.laplace_rdp(loss)(order) == pytest.approx(divergence, rel=1e-13)
    fine = accounting.discrete_laplace_rdp(1000.0 / loss, 1000)(
        order
    )  # a grid of a thousand steps is nearly continuous
    assert fine == pytest.approx(divergence, rel=1e-5)


def renyi(order: float, p: dict[int, float], q: dict[int, float]) -> float:
    """From logarithms of probabilities."""
    logs = [order * p[x] + (1 - order) * q[x] for x in p if x in q]
    return (max(logs) + math.log(math.fsum(math.exp(v - max(logs)) for v in logs))) / (order - 1)


@pytest.mark.parametrize("order", [1.5, 2.0, 3.0, 8.0])
@pytest.mark.parametrize("shift", [1, 2, 5])
def test_divergences_of_discrete_laws_by_summing_them(order: float, shift: int) -> None:
    t = 3.0
    p = {x: math.log(math.tanh(1 / (2 * t))) - abs(x) / t for x in range(-400, 401)}
    q = {x + shift: v for x, v in p.items()}
    assert accounting.discrete_laplace_rdp(t, shift)(order) == pytest.approx(renyi(order, p, q), rel=1e-9)
    total = math.fsum(math.exp(-x * x / (2 * t * t)) for x in range(-120, 121))
    g = {x: -x * x / (2 * t * t) - math.log(total) for x in range(-120, 121)}
    h = {x + shift: v for x, v in g.items()}
    assert renyi(order, g, h) <= accounting.gaussian_rdp(shift / t)(order) * (1 + 1e-12)
    if order in (2.0, 3.0, 8.0):
        assert renyi(order, g, h) == pytest.approx(accounting.gaussian_rdp(shift / t)(order), rel=1e-9)


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_divergence_of_randomised_response(classes: int) -> None:
    epsilon, rest = 1.0, math.e + classes - 1
    p = {i: (i == 0) - math.log(rest) for i in range(classes)}
    q = {i: (i == 1) - math.log(rest) for i in range(classes)}
    for order in (1.5, 2.0, 20.0):
        divergence = accounting.randomized_response_rdp(epsilon, classes)(order)
        assert divergence == pytest.approx(renyi(order, p, q), rel=1e-12)
        assert divergence <= min(epsilon, order * accounting.pure_rho(epsilon))


@pytest.mark.parametrize(
    ("variance", "epsilon", "delta"),
    [(1, 1.0, 0.14135133940562191), (4, 0.5, 0.054007223694154421), (14, 1.0, 9.9561100419596722e-6)],
)
def test_exact_delta_of_the_discrete_gaussian(variance: int, epsilon: float, delta: float) -> None:
    """The published sum (Canonne, Kamath & Steinke 2020, theorem 7), and that of the table that is drawn from."""
    sigma = math.sqrt(variance)
    p = {x: math.exp(-x * x / (2 * variance)) for x in range(-80, 81)}
    total = math.fsum(p.values())
    summed = math.fsum(max(0.0, v - math.exp(epsilon) * p.get(x - 1, 0.0)) for x, v in p.items()) / total
    assert summed == pytest.approx(delta, rel=1e-10)
    drawn = accounting.drawn_delta(table_weights(noise_table(Law("gaussian", Fraction(sigma)))), 1, epsilon)
    assert drawn == pytest.approx(delta, rel=1e-9)
    assert accounting.discrete_gaussian_delta(sigma, 1.0, epsilon) >= delta


@settings(max_examples=40)
@given(st.integers(3, 60), st.integers(1, 120), st.floats(0.0, 6.0))
def test_no_discrete_gaussian_exceeds_its_bound(sigma: int, shift: int, epsilon: float) -> None:
    table = noise_table(Law("gaussian", Fraction(sigma)))
    bound = accounting.discrete_gaussian_delta(sigma, shift, epsilon)
    errors = accounting.table_delta(table.tv_bound, epsilon)
    assert accounting.drawn_delta(table_weights(table), shift, epsilon) <= bound * (1 + 1e-9) + errors + 1e-15
    assert bound <= accounting.zcdp_delta(shift**2 / (2 * sigma**2), epsilon)


@pytest.mark.parametrize("shift", [(3, 4), (5, 0), (1, 1), (7, -2)])
@pytest.mark.parametrize("epsilon", [0.1, 0.5, 1.5])
def test_the_bound_holds_in_every_direction(shift: tuple[int, int], epsilon: float) -> None:
    """Two entries at once, by summing over the plane: the delta depends on the direction, the bound does not."""
    sigma = 5.0
    x = np.arange(-60, 61)
    p = np.exp(-(x**2) / (2 * sigma**2))
    p /= p.sum()
    plane = np.multiply.outer(p, p)
    first, second = (np.exp(-((x - s) ** 2) / (2 * sigma**2)) / (sigma * math.sqrt(2 * math.pi)) for s in shift)
    moved = np.multiply.outer(first, second)
    exact = np.maximum(plane - math.exp(epsilon) * moved, 0).sum()
    bound = accounting.discrete_gaussian_delta(sigma, math.hypot(*shift), epsilon, width=2)
    assert exact <= bound
    assert bound <= accounting.zcdp_delta(math.hypot(*shift) ** 2 / (2 * sigma**2), epsilon)


def test_laplace_delta() -> None:
    """Closed form; discrete noise on a grid never has more."""
    for loss, epsilon, delta in ((1.0, 0.0, 0.39346934028736658), (2.0, 0.5, 0.52763344725898529), (1.0, 2.0, 0.0)):
        assert accounting.laplace_delta(loss, epsilon) == pytest.approx(delta, rel=1e-14)
    weights = table_weights(noise_table(Law("laplace", Fraction(40))))
    for epsilon in (0.0, 0.3, 0.9):
        assert accounting.drawn_delta(weights, 40, epsilon) <= accounting.laplace_delta(1.0, epsilon)


@given(st.lists(st.floats(0, 3) | st.floats(0, 1e-9), max_size=60), st.floats(0, 20))
def test_a_filter_never_goes_beyond_its_bound(losses: list[float], bound: float) -> None:
    """Whoever asks picks every loss knowing what was refused so far; in exact arithmetic."""
    state, spent = Filter.of(bound), Fraction(0)
    for rho in losses:
        after = state.charged(rho)
        if after is None:
            assert state.left < rho + 2**-39
            continue
        state, spent = after, spent + Fraction(rho)
    assert spent <= Fraction(bound)
    assert spent + Fraction(state.left) <= Fraction(bound)


def test_a_filter_refuses_what_it_cannot_count() -> None:
    state = Filter.of(1.0)
    assert state.charged(math.inf) is None
    assert state.charged(math.inf, 0) == state
    assert state.charged(1.0) == Filter(2**40, 2**40)
    assert state.charged(0.25, 5) is None
    assert state.charged(1e-300, 2**40) is not None  # no loss is free, however small
    assert state.charged(1e-300, 2**40 + 1) is None
    for call in (lambda: state.charged(-0.1), lambda: state.charged(math.nan), lambda: state.charged(0.1, -1)):
        with pytest.raises(ValueError, match="must be a number from 0 on"):
            call()
    for bound in (math.inf, math.nan, -1.0):
        with pytest.raises(ValueError, match="the bound of a filter"):
            Filter.of(bound)


@pytest.mark.parametrize(
    ("rho", "delta", "epsilon"), [(2**2 / (2 * 8.0**2), 1e-6, 1.1429257095713568), (0.375, 1e-6, 4.440775682446562)]
)
def test_what_other_accountants_say(rho: float, delta: float, epsilon: float) -> None:
    """OpenDP 0.16 of discrete Gaussian noise; dp-accounting 0.6, whose grid of orders costs it a little."""
    assert accounting.zcdp_epsilon(rho, delta) == pytest.approx(epsilon, rel=1e-4)
    assert accounting.zcdp_epsilon(rho, delta) <= epsilon * (1 + 1e-9)


def test_what_others_say_of_deltas() -> None:
    """OpenDP 0.16: zCDP of 1/32; dp-accounting 0.6: discrete laws, by distributions of the loss in small buckets."""
    assert accounting.zcdp_delta(1 / 32, 0.5) == pytest.approx(0.007159988494052642, rel=1e-7)
    gaussian, laplace = Law("gaussian", Fraction(2)), Law("laplace", Fraction(2))
    for law, shift, epsilon, delta in ((gaussian, 3, 1.0, 0.3190827455523167), (laplace, 2, 0.7, 0.16133011701416458)):
        drawn = accounting.drawn_delta(table_weights(noise_table(law)), shift, epsilon)
        assert drawn == pytest.approx(delta, rel=1e-3)
        assert drawn <= delta
