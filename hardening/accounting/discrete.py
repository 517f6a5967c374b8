"""Delta of noise on the integers, by bounds and by exact sums."""

from __future__ import annotations

import math
from collections.abc import Mapping

from hardening.accounting.gaussian import gdp_delta
from hardening.accounting.renyi import table_delta, zcdp_delta


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
