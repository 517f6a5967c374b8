"""Privacy loss as numbers: Gaussian trade-offs, Renyi divergences, zCDP, their conversions, and a filter.

Losses are in nats. A number from here means nothing without the relation it is about - which models (or records) are
told apart, per what unit - so whoever prints one prints that with it; `hardening.types.Guarantee` carries both.

Functions that state an upper bound stay one whatever their numerical search finds: every point searched is valid.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction

#: A Renyi divergence as a function of its order, above 1.
Renyi = Callable[[float], float]

_GOLDEN = (math.sqrt(5) - 1) / 2
_STEPS = 200


def _least(of: Callable[[float], float], low: float, high: float) -> float:
    """Least value met by a golden-section search between exp(low) and exp(high)."""
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_left, at_right = of(math.exp(left)), of(math.exp(right))
    best = min(at_left, at_right)
    for _ in range(_STEPS):
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - _GOLDEN * (high - low)
            at_left = of(math.exp(left))
        else:
            low, left, at_left = left, right, at_right
            right = low + _GOLDEN * (high - low)
            at_right = of(math.exp(right))
        best = min(best, at_left, at_right)
    return best


def largest(holds: Callable[[float], bool], low: float = -700.0, high: float = 700.0) -> float:
    """Largest number between exp(low) and exp(high) for which `holds`, by bisection of its logarithm.

    `holds` is true up to some point and false after it; 0 if it is never true, infinity if it is everywhere.
    """
    if not holds(math.exp(low)):
        return 0.0
    if holds(math.exp(high)):
        return math.inf
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        if holds(math.exp(middle)):
            low = middle
        else:
            high = middle
    return math.exp(low)


def _not_negative(name: str, value: float) -> None:
    if not value >= 0:
        raise ValueError(f"{name}: must be a number from 0 on, not {value!r}")


def _share(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{name}: must be between 0 and 1, not {value!r}")


def _normal(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2))


# Gaussian differential privacy


def gdp_delta(mu: float, epsilon: float) -> float:
    """Least delta of (epsilon, delta) that mu-GDP implies (Balle & Wang 2018, theorem 8; Dong, Roth & Su 2022).

    For continuous Gaussian noise of standard deviation sigma and models D apart in L2, mu = D / sigma, and this is
    exact. Discrete Gaussian noise is not exactly GDP: see `discrete_gaussian_delta`. Raises ValueError.
    """
    _not_negative("mu", mu)
    _not_negative("epsilon", epsilon)
    if mu == 0:
        return 0.0
    if math.isinf(mu):
        return 1.0
    near, far = epsilon / mu - mu / 2, epsilon / mu + mu / 2
    if near <= 0:
        return _normal(-near) - math.exp(epsilon) * _normal(-far) if epsilon < 700 else _normal(-near)
    from scipy.special import erfcx

    # e^epsilon cancels against the ratio of the two densities, which is what makes the far tail accurate.
    root = math.sqrt(2)
    return 0.5 * math.exp(-near * near / 2) * float(erfcx(near / root) - erfcx(far / root))


def gdp_epsilon(mu: float, delta: float) -> float:
    """Least epsilon of (epsilon, delta) that mu-GDP implies. Raises ValueError."""
    _share("delta", delta)
    if gdp_delta(mu, 0.0) <= delta:
        return 0.0
    return math.nextafter(largest(lambda epsilon: gdp_delta(mu, epsilon) > delta), math.inf)


def gdp_mu(epsilon: float, delta: float) -> float:
    """Largest mu for which mu-GDP implies (epsilon, delta), by bisection of its logarithm. Raises ValueError."""
    _not_negative("epsilon", epsilon)
    _share("delta", delta)
    return largest(lambda mu: gdp_delta(mu, epsilon) <= delta)


def gdp_true_positives(mu: float, false_positives: float) -> float:
    """Largest rate at which a test that errs at most `false_positives` of the time is right, under mu-GDP."""
    from scipy.special import ndtr, ndtri

    _not_negative("mu", mu)
    return float(ndtr(ndtri(false_positives) + mu))


def gdp_advantage(mu: float) -> float:
    """Largest difference of true and false positive rates of any test under mu-GDP."""
    return math.erf(mu / (2 * math.sqrt(2)))


def true_positives(epsilon: float, delta: float, false_positives: float) -> float:
    """Largest rate at which a test that errs at most `false_positives` of the time is right, under (epsilon, delta)."""
    direct = math.exp(min(epsilon, 700.0)) * false_positives + delta
    return max(0.0, min(1.0, direct, 1.0 - math.exp(-epsilon) * (1.0 - delta - false_positives)))


# Renyi divergences


def gaussian_rdp(ratio: float) -> Renyi:
    """Gaussian noise, continuous or discrete with integer shifts, at `ratio` = D / sigma: order * ratio^2 / 2.

    An equality for the continuous law (Mironov 2017) and for the discrete one at integer multiples of the shift, an
    upper bound elsewhere (Canonne, Kamath & Steinke 2020, proposition 5).
    """
    return lambda order: order * ratio * ratio / 2


def laplace_rdp(loss: float) -> Renyi:
    """Continuous Laplace noise whose worst log-ratio is `loss` = D / scale (Mironov 2017, table II)."""

    def divergence(order: float) -> float:
        up = math.log(order / (2 * order - 1)) + (order - 1) * loss
        down = math.log((order - 1) / (2 * order - 1)) - order * loss
        return _log_sum(up, down) / (order - 1)

    return divergence


def discrete_laplace_rdp(scale: float, shift: int) -> Renyi:
    """Discrete Laplace noise of `scale` steps between two integers `shift` steps apart, by summing its three pieces."""
    a, n = 1.0 / scale, abs(shift)
    mode, ends = math.log(math.tanh(a / 2)), math.log(-math.expm1(-a))

    def divergence(order: float) -> float:
        below = mode + a * n * (order - 1) - ends
        above = mode - a * n * order - ends
        rate = a * (2 * order - 1)  # between the two: a geometric sum of n - 1 terms
        between = (
            mode + a * n * (order - 1) - rate + math.log(-math.expm1(-rate * (n - 1))) - math.log(-math.expm1(-rate))
            if n > 1
            else -math.inf
        )
        return _log_sum(below, above, between) / (order - 1)

    return divergence


def randomized_response_rdp(epsilon: float, classes: int) -> Renyi:
    """k-ary randomised response: the true label with e^epsilon times the probability of any other."""
    other = -math.log(math.exp(epsilon) + classes - 1)

    def divergence(order: float) -> float:
        rest = math.log(classes - 2) + other if classes > 2 else -math.inf
        return _log_sum(order * epsilon + other, (1 - order) * epsilon + other, rest) / (order - 1)

    return divergence


def _log_sum(*logs: float) -> float:
    most = max(logs)
    return most + math.log(math.fsum(math.exp(x - most) for x in logs))


def _epsilon_at(above: float, divergence: float, delta: float) -> float:
    """Of order 1 + `above`, so that orders next to 1 lose nothing."""
    return divergence + math.log(above) - math.log1p(above) - (math.log(delta) + math.log1p(above)) / above


def rdp_epsilon_at(order: float, divergence: float, delta: float) -> float:
    """An epsilon of (epsilon, delta), for a mechanism with this Renyi divergence at this order.

    D + ln((a - 1) / a) - (ln delta + ln a) / (a - 1) at order a (Canonne, Kamath & Steinke 2020, proposition 12; Balle
    et al. 2020). Raises ValueError.
    """
    _share("delta", delta)
    if not order > 1:
        raise ValueError(f"order: must be above 1, not {order!r}")
    return max(0.0, _epsilon_at(order - 1, divergence, delta))


def rdp_epsilon(divergence: Renyi, delta: float) -> float:
    """An epsilon of (epsilon, delta): `rdp_epsilon_at` the best order found. Raises ValueError."""
    _share("delta", delta)
    return max(0.0, _least(lambda above: _epsilon_at(above, divergence(1 + above), delta), -12.0, 18.0))


# Zero-concentrated differential privacy (Bun & Steinke 2016)


def zcdp_epsilon(rho: float, delta: float, tv: float = 0.0) -> float:
    """An epsilon of (epsilon, delta) that rho-zCDP implies: `rdp_epsilon` of order * rho.

    `tv` is how far, in total variation, what is drawn is from the law that rho is about; its part of delta is taken off
    first, and if that is more than half of it, infinity is returned. Raises ValueError.
    """
    _not_negative("rho", rho)
    _share("delta", delta)
    if math.isinf(rho):
        return math.inf
    curve: Renyi = lambda order: order * rho  # noqa: E731
    at_most = rdp_epsilon(curve, delta / 2) if rho else 0.0
    errors = table_delta(tv, at_most)
    if errors > delta / 2:
        return math.inf
    return rdp_epsilon(curve, delta - errors) if rho else 0.0


def zcdp_delta(rho: float, epsilon: float) -> float:
    """A delta of (epsilon, delta) that rho-zCDP implies, by the same proposition. Raises ValueError."""
    _not_negative("rho", rho)
    _not_negative("epsilon", epsilon)
    if rho == 0:
        return 0.0
    if math.isinf(rho):
        return 1.0

    def at(above: float) -> float:
        order = 1 + above
        return above * (order * rho - epsilon) - math.log(order) + above * math.log(above / order)

    return min(1.0, math.exp(min(0.0, _least(at, -12.0, 18.0))))


def zcdp_rho(epsilon: float, delta: float) -> float:
    """Largest rho found for which rho-zCDP implies (epsilon, delta). Raises ValueError."""
    _share("delta", delta)
    _not_negative("epsilon", epsilon)
    return largest(lambda rho: zcdp_epsilon(rho, delta) <= epsilon)


def pure_rho(epsilon: float) -> float:
    """The zCDP of a mechanism whose log-ratio never exceeds `epsilon` (Bun & Steinke 2016, proposition 1.4)."""
    _not_negative("epsilon", epsilon)
    return epsilon * epsilon / 2


def zcdp_composed(losses: Iterable[float]) -> float:
    """The zCDP of mechanisms used together: their sum, rounded up."""
    total = math.fsum(losses)
    return math.nextafter(total, math.inf) if total > 0 else 0.0


# Discrete laws


def laplace_delta(loss: float, epsilon: float) -> float:
    """Delta of continuous Laplace noise in one dimension at D / scale = `loss`; discrete noise has no more of it."""
    return max(0.0, -math.expm1((epsilon - loss) / 2))


#: Variance, in squared steps, that is given up for smoothness in `discrete_gaussian_delta`, and what remains: twice
#: exp(-2 pi^2 variance), doubled again for the two normalisations.
_SMOOTH, SMOOTH_ERROR = 4.0, 4 * math.exp(-8 * math.pi**2)


def discrete_gaussian_delta(sigma: float, distance: float, epsilon: float, width: int = 1) -> float:
    """A delta of (epsilon, delta) for discrete Gaussian noise on each of `width` integers.

    The better of two bounds. One is that of its zCDP. The other: a continuous Gaussian of variance sigma^2 - 4, rounded
    to an integer by a discrete Gaussian of variance 4 around it, is a discrete Gaussian of variance sigma^2 up to
    `SMOOTH_ERROR` in total variation an entry (Poisson summation; Peikert 2010, theorem 3.1). Rounding is
    post-processing and moves with integer shifts, so that `gdp_delta` applies whatever direction the shift has.

    Args:
        sigma, distance: in steps of the grid; `distance` bounds the L2 norm of integer shifts.
    """
    best = zcdp_delta(distance * distance / (2 * sigma * sigma), epsilon)
    if sigma * sigma > _SMOOTH:
        smooth = gdp_delta(distance / math.sqrt(sigma * sigma - _SMOOTH), epsilon)
        best = min(best, smooth + table_delta(width * SMOOTH_ERROR, epsilon))
    return best


def drawn_delta(weights: Mapping[int, int], shift: int, epsilon: float) -> float:
    """The exact delta at `epsilon` of one integer of noise with these weights, between values `shift` apart.

    Hockey-stick divergence of the law as it is drawn, such as `noise.table_weights` reads back from a table.
    """
    grown = math.exp(epsilon)
    total = sum(weights.values())
    return math.fsum(max(0.0, w - grown * weights.get(x - shift, 0)) for x, w in weights.items()) / total


def table_delta(tv: float, epsilon: float) -> float:
    """What `tv` of total variation between the drawn law and the ideal one adds to the delta of an (epsilon, delta)."""
    return tv * (1 + math.exp(min(epsilon, 700.0)))


# Adaptive composition

#: Parts of a nat that a filter counts in, so that sums are exact: 2**40 of them.
FILTER_UNITS = 2**40


@dataclass(frozen=True, slots=True)
class Filter:
    """A zCDP privacy filter: refuses what would take the sum of rho beyond its bound.

    Valid when every rho, even the choice to ask, depends on the answers before (Whitehouse et al. 2023, for zCDP with
    and without delta). A value: `charged` gives a new one. Counted in integers; charges are rounded up, the bound down.

    Attributes:
        bound, spent: in units of 2**-40; make one with `Filter.of`.
    """

    bound: int
    spent: int = 0

    @classmethod
    def of(cls, rho: float) -> Filter:
        """A filter with this bound, nothing of it spent. Raises ValueError."""
        if not (math.isfinite(rho) and rho >= 0):
            raise ValueError(f"rho: the bound of a filter must be a finite number from 0 on, not {rho!r}")
        return cls(math.floor(Fraction(rho) * FILTER_UNITS))

    def charged(self, rho: float, count: int = 1) -> Filter | None:
        """The filter after `count` answers of `rho` each; None if it refuses, whereupon nothing is spent.

        An infinite rho is always refused. Raises ValueError for a rho or a count that is negative or no number.
        """
        _not_negative("rho", rho)
        _not_negative("count", count)
        if math.isinf(rho):
            return None if count else self
        spent = self.spent + count * math.ceil(Fraction(rho) * FILTER_UNITS)
        return replace(self, spent=spent) if spent <= self.bound else None

    @property
    def left(self) -> float:
        """Rho that is left, rounded down."""
        left = Fraction(self.bound - self.spent, FILTER_UNITS)
        near = float(left)
        return near if Fraction(near) <= left else math.nextafter(near, 0.0)
