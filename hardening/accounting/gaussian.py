"""Gaussian differential privacy, and what an attacker's test can do."""

from __future__ import annotations

import math

from hardening.accounting.search import largest, not_negative, share


def _normal(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2))


def gdp_delta(mu: float, epsilon: float) -> float:
    """Least delta of (epsilon, delta) that mu-GDP implies (Balle & Wang 2018, theorem 8; Dong, Roth & Su 2022).

    For continuous Gaussian noise of standard deviation sigma and models D apart in L2, mu = D / sigma, and this is
    exact. Discrete Gaussian noise is not exactly GDP: see `discrete_gaussian_delta`. Raises ValueError.
    """
    not_negative("mu", mu)
    not_negative("epsilon", epsilon)
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
    share("delta", delta)
    if gdp_delta(mu, 0.0) <= delta:
        return 0.0
    return math.nextafter(largest(lambda epsilon: gdp_delta(mu, epsilon) > delta), math.inf)


def gdp_mu(epsilon: float, delta: float) -> float:
    """Largest mu for which mu-GDP implies (epsilon, delta), by bisection of its logarithm. Raises ValueError."""
    not_negative("epsilon", epsilon)
    share("delta", delta)
    return largest(lambda mu: gdp_delta(mu, epsilon) <= delta)


def gdp_true_positives(mu: float, false_positives: float) -> float:
    """Largest rate at which a test that errs at most `false_positives` of the time is right, under mu-GDP."""
    from scipy.special import ndtr, ndtri

    not_negative("mu", mu)
    return float(ndtr(ndtri(false_positives) + mu))


def gdp_advantage(mu: float) -> float:
    """Largest difference of true and false positive rates of any test under mu-GDP."""
    return math.erf(mu / (2 * math.sqrt(2)))


def true_positives(epsilon: float, delta: float, false_positives: float) -> float:
    """Largest rate at which a test that errs at most `false_positives` of the time is right, under (epsilon, delta)."""
    direct = math.exp(min(epsilon, 700.0)) * false_positives + delta
    return max(0.0, min(1.0, direct, 1.0 - math.exp(-epsilon) * (1.0 - delta - false_positives)))
