"""How much noise: from a privacy target, or from what it may cost a user.

A fit to a target holds for the law that is drawn, not for its ideal: scores are rounded to a grid first, which adds up
to step * sqrt(K) to a distance in L2, step * K to one in L1 and a step to one in each entry, for rows of K entries;
and the tables of the noise are exact in units of 2**-64, which adds to delta.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hardening.accounting import SMOOTH_ERROR, gdp_epsilon, gdp_mu, table_delta
from hardening.accounting.search import largest
from hardening.noise import LawKind, grid_exponent, grid_exponents

#: No table of a fit has more than 2**16 values, so that in total variation it is off by less than this, per entry.
TABLE_ERROR = 2.0**-48
#: A finer grid is taken only where rounding to a coarser one would cost more than this share of the noise.
_ROUNDING = 1.05
#: Fits are larger by this than the equations say, which covers the rounding of their floating-point solution.
_MARGIN = 1 + 2.0**-30


#: Laws whose cost to a user has a closed form.
Costed = Literal["gaussian", "laplace"]


class Fit(NamedTuple):
    """Noise that meets a target: its scale, and the grid, with steps of 2**-grid."""

    scale: float
    grid: int


def _fit(kind: LawKind, needed: Callable[[float], float]) -> Fit | None:
    """The coarsest grid on which rounding costs little, else the one with the least noise.

    Args:
        needed: the scale that meets the target on a grid of this step; 0.0 stands for no rounding.
    """
    ideal = needed(0.0)
    if not 2.0**-30 <= ideal <= 2.0**30:
        raise ValueError(f"sensitivity: asks for noise of scale {ideal:g}; scales go from 2**-30 to 2**30")
    finest = grid_exponents(kind, ideal)[-1]
    grids = range(grid_exponent(kind, ideal), finest + 1), range(finest, finest - 40, -1)
    fits = [[Fit(needed(math.ldexp(1.0, -g)), g) for g in tried] for tried in grids]
    own, every = ([f for f in tried if f.scale < 2.0**40 and f.grid in grid_exponents(kind, f.scale)] for tried in fits)
    return next((f for f in own if f.scale <= _ROUNDING * ideal), min(every, default=None))


@functools.lru_cache(maxsize=256)
def gaussian_fit(epsilon: float, delta: float, sensitivity: float, width: int) -> Fit:
    """Discrete Gaussian noise that is (epsilon, delta) for rows of `width` entries `sensitivity` apart in L2.

    Analytic (Balle & Wang 2018), by bisection, with the bound `accounting.discrete_gaussian_delta` for the discrete
    law. Raises ValueError, which names the parameter to change.
    """
    errors = table_delta(width * (TABLE_ERROR + SMOOTH_ERROR), epsilon)
    if not delta > 2 * errors:
        raise ValueError(
            f"delta: must exceed {2 * errors:.3g} with rows of {width} entries, twice what the tables of the noise err"
        )
    mu = gdp_mu(epsilon, delta - errors)

    def needed(step: float) -> float:
        return _MARGIN * math.hypot((sensitivity + step * math.sqrt(width)) / mu, 2 * step)

    fit = _fit("gaussian", needed)
    if fit is None:
        least = gdp_epsilon(math.sqrt(width) / 2**11, delta)
        raise _too_small(width, least)
    return fit


@functools.lru_cache(maxsize=256)
def laplace_fit(epsilon: float, sensitivity: float, width: int) -> Fit:
    """Discrete Laplace noise that is epsilon for rows of `width` entries `sensitivity` apart in L1, tables apart."""
    fit = _fit("laplace", lambda step: _MARGIN * (sensitivity + step * width) / epsilon)
    if fit is None:
        raise _too_small(width, width / 2**9)
    return fit


@functools.lru_cache(maxsize=256)
def staircase_fit(epsilon: float, sensitivity: float, width: int) -> Fit:
    """Staircase noise that is epsilon for rows of `width` entries each at most `sensitivity` apart, tables apart.

    The staircase charges the smallest change as much as the largest, so every entry gets epsilon / width.
    """

    def needed(step: float) -> float:
        period = (math.floor(sensitivity / step) + 1) * step if step else sensitivity
        return _MARGIN * width * period / epsilon

    fit = _fit("staircase", needed)
    if fit is None:
        raise _too_small(width, width / 2**8)
    return fit


def _too_small(width: int, least: float) -> ValueError:
    return ValueError(
        f"epsilon: too small for rows of {width} entries, whose rounding to any grid costs more; about {least:.3g} is "
        "the least"
    )


def staircase_flat(loss: float, period: int) -> int:
    """Steps of each period before the fall, for the least expected |x| (Geng & Viswanath 2014), at `loss` a period."""
    best = period / (1 + math.exp(loss / 2))
    near = {min(period, max(1, round_(best))) for round_ in (math.floor, math.ceil)}
    return min(sorted(near), key=lambda flat: staircase_l1(loss, period, flat))


def staircase_l1(loss: float, period: int, flat: int) -> float:
    """Expected |x| of the discrete staircase, in steps."""
    ratio = math.exp(-loss)
    mass = flat + (period - flat) * ratio
    first = flat * (flat - 1) / 2 + ratio * (period * (period - 1) - flat * (flat - 1)) / 2
    total = 2 * mass / (1 - ratio) - 1
    return 2 * (first / (1 - ratio) + period * mass * ratio / (1 - ratio) ** 2) / total


# What noise may cost: in L1 over a row, before any projection or rounding that follows, or in changed top classes

#: Expected |x| of one entry, and the largest that a table holds, in units of the scale.
_MEAN = {"gaussian": math.sqrt(2 / math.pi), "laplace": 1.0}
_MOST = {"gaussian": math.sqrt(130 * math.log(2)), "laplace": 65 * math.log(2)}


def _step(kind: Costed, scale: float) -> float:
    return math.ldexp(1.0, -grid_exponent(kind, scale))


def expected_l1(kind: Costed, scale: float, width: int) -> float:
    """Bound of the mean L1 distance that gaussian or laplace noise puts between a row and its answer."""
    return width * (_MEAN[kind] * scale + _step(kind, scale) / 2)


def worst_l1(kind: Costed, scale: float, width: int) -> float:
    """Bound of the largest L1 distance that gaussian or laplace noise can put between a row and its answer.

    What a table in units of 2**-64 holds ends there: 9.5 standard deviations, or 45 scales of Laplace noise.
    """
    return width * (_MOST[kind] * scale + 1.5 * _step(kind, scale))


def scale_for_expected_l1(kind: Costed, l1: float, width: int) -> float:
    """Largest sigma or scale whose mean L1 cost over a row is at most `l1`. Raises ValueError."""
    return _within("l1", l1, lambda scale: expected_l1(kind, scale, width))


def scale_for_worst_l1(kind: Costed, l1: float, width: int) -> float:
    """Largest sigma or scale whose L1 cost over a row never exceeds `l1`. Raises ValueError."""
    return _within("l1", l1, lambda scale: worst_l1(kind, scale, width))


def flip_rate(kind: Costed, scale: float, scores: ArrayLike) -> float:
    """Bound of the share of rows whose top class changes under gaussian or laplace noise.

    The mean over `scores` ``(rows, classes)`` of the union bound over a row's other classes; a single margin m is the
    row [[m, 0]]. Two steps of the grid are taken off each margin: for the rounding, and for the discrete law.
    """
    rows = np.asarray(scores, np.float64)
    if rows.ndim != 2 or rows.shape[1] < 2 or not len(rows) or not np.isfinite(rows).all():
        raise ValueError("scores: must be finite rows of two or more classes, at least one")
    ordered = np.sort(rows, axis=1)
    margins = ordered[:, -1:] - ordered[:, :-1] - 2 * _step(kind, scale)
    tails = _gaussian_tail(margins / scale) if kind == "gaussian" else _laplace_tail(margins / scale)
    return float(np.minimum(1.0, np.sort(tails, axis=1).sum(axis=1)).mean())


def _gaussian_tail(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """P[difference of two standard Gaussians >= x]."""
    from scipy.special import ndtr

    return np.asarray(ndtr(-x / math.sqrt(2)))


def _laplace_tail(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """P[difference of two Laplace variables of scale 1 >= x]."""
    above = 0.5 * np.exp(-np.abs(x)) * (1 + np.abs(x) / 2)
    return np.where(x >= 0, above, 1 - above)


def scale_for_flip_rate(kind: Costed, rate: float, scores: ArrayLike) -> float:
    """Largest sigma or scale that changes at most `rate` of the top classes, by `flip_rate`. Raises ValueError."""
    if not 0 < rate < 1:
        raise ValueError(f"rate: must be between 0 and 1, not {rate!r}")
    return _within("rate", rate, lambda scale: flip_rate(kind, scale, scores))


def _within(name: str, budget: float, cost: Callable[[float], float]) -> float:
    if not (math.isfinite(budget) and budget > 0):
        raise ValueError(f"{name}: must be a positive finite number, not {budget!r}")
    limit = 39 * math.log(2)
    scale = largest(lambda scale: cost(scale) <= budget, -limit, limit)
    if not 0 < scale < math.inf:
        raise ValueError(f"{name}: no noise with a scale between 2**-39 and 2**39 costs {budget!r}")
    return scale


def types_l1(n: int, width: int) -> float:
    """Bound of the L1 distance that rounding to multiples of 1/n moves a distribution over `width` classes.

    That of the nearest point, 2 a (K - a) / (K n) with a = K // 2 (Reznik 2011), and 2 / n for a top class that would
    lose its place in a tie.
    """
    half = width // 2
    return min(2.0, (2 * half * (width - half) / width + 2) / n)


def types_for_worst_l1(l1: float, width: int) -> int:
    """Least n for which `types_l1` is at most `l1`. Raises ValueError."""
    if not (math.isfinite(l1) and l1 > 0):
        raise ValueError(f"l1: must be a positive finite number, not {l1!r}")
    if l1 >= 2:
        return 1
    half = width // 2
    return math.ceil((2 * half * (width - half) / width + 2) / l1)
