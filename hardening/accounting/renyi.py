"""Renyi divergences of mechanisms, and zero-concentrated differential privacy, which bounds all of them by a line."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from hardening.accounting.search import largest, least, not_negative, share

#: A Renyi divergence as a function of its order, above 1.
Renyi = Callable[[float], float]


def gaussian_rdp(ratio: float) -> Renyi:
    """Gaussian noise, continuous or discrete with integer shifts, at `ratio` = D / sigma: order * ratio^2 / 2.

    An equality for the continuous law (Mironov 2017) and for the discrete one where order times shift is whole, an
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
    share("delta", delta)
    if not order > 1:
        raise ValueError(f"order: must be above 1, not {order!r}")
    return max(0.0, _epsilon_at(order - 1, divergence, delta))


def rdp_epsilon(divergence: Renyi, delta: float) -> float:
    """An epsilon of (epsilon, delta): `rdp_epsilon_at` the best order found. Raises ValueError."""
    share("delta", delta)
    return max(0.0, least(lambda above: _epsilon_at(above, divergence(1 + above), delta), -12.0, 18.0))


# Zero-concentrated differential privacy (Bun & Steinke 2016)


def zcdp_epsilon(rho: float, delta: float, tv: float = 0.0) -> float:
    """An epsilon of (epsilon, delta) that rho-zCDP implies: `rdp_epsilon` of order * rho.

    `tv` is how far, in total variation, what is drawn is from the law that rho is about; its part of delta is taken off
    first, and if that is more than half of it, infinity is returned. Raises ValueError.
    """
    not_negative("rho", rho)
    share("delta", delta)
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
    not_negative("rho", rho)
    not_negative("epsilon", epsilon)
    if rho == 0:
        return 0.0
    if math.isinf(rho):
        return 1.0

    def at(above: float) -> float:
        order = 1 + above
        return above * (order * rho - epsilon) - math.log(order) + above * math.log(above / order)

    return min(1.0, math.exp(min(0.0, least(at, -12.0, 18.0))))


def zcdp_rho(epsilon: float, delta: float) -> float:
    """Largest rho found for which rho-zCDP implies (epsilon, delta). Raises ValueError."""
    share("delta", delta)
    not_negative("epsilon", epsilon)
    return largest(lambda rho: zcdp_epsilon(rho, delta) <= epsilon)


def pure_rho(epsilon: float) -> float:
    """The zCDP of a mechanism whose log-ratio never exceeds `epsilon` (Bun & Steinke 2016, proposition 1.4)."""
    not_negative("epsilon", epsilon)
    return epsilon * epsilon / 2


def zcdp_composed(losses: Iterable[float]) -> float:
    """The zCDP of mechanisms used together: their sum, rounded up."""
    total = math.fsum(losses)
    return math.nextafter(total, math.inf) if total > 0 else 0.0


def table_delta(tv: float, epsilon: float) -> float:
    """What `tv` of total variation between the drawn law and the ideal one adds to the delta of an (epsilon, delta)."""
    return tv * (1 + math.exp(min(epsilon, 700.0)))
