"""Auditing the noise that is shipped: attackers who must tell two models apart, and what they can prove.

Every audit comes as a pair: noise as it is, for which the claimed loss lies inside the interval that the attack
establishes, and the same with a tenth less noise than is claimed, which is found out.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from hardening.noise import CIPHERS, Key
from hardening.pipeline import Pipeline
from hardening.program import Program, Task
from hardening.transforms import Gaussian, Laplace, Noise, Staircase

ROWS = 400_000
#: Chance that an interval misses the truth. All draws are keyed, so that what is tested here never changes.
BETA = 1e-4

CLAIMS: dict[str, Noise] = {
    "gaussian": Gaussian(sigma=1.0, sensitivity=97 / 128),
    "fitted": Gaussian(epsilon=2.0, delta=1e-5, sensitivity=65 / 64).at(1),
    "coarse": Gaussian(sigma=6.0, sensitivity=5.0, grid=0),
    "laplace": Laplace(scale=1.0, sensitivity=25 / 32),
    "staircase": Staircase(scale=1.0, sensitivity=25 / 32),
}


@pytest.fixture(params=CIPHERS)
def key(request: pytest.FixtureRequest) -> Key:
    return Key(1, request.param, bytes(range(32)))


def answers(noise: Noise, key: Key, score: float, world: int, rows: int = ROWS) -> NDArray[np.float64]:
    """What the compiled kernel releases for `rows` different questions that all have this score."""
    nonces = np.random.default_rng(world).integers(0, 2**32, (rows, 3), dtype=np.uint32)
    out = np.full((rows, 1), score)
    assert Task(Program(Pipeline("scalar", (noise,)), 1, key, "p", "m"), out, rows, nonces).run() == 0
    return out[:, 0]


def worlds(claim: Noise, built: Noise, key: Key) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Answers of two models as far apart as the claim allows, where rounding drives them a step further apart."""
    steps = (claim.sensitivity or 0) / claim.step
    assert steps % 2 == 1
    first, second = claim.step / 2, claim.step / 2 + (claim.sensitivity or 0)
    assert np.rint(second / claim.step) - np.rint(first / claim.step) == steps + 1
    return answers(built, key, first, 0), answers(built, key, second, 1)


def under_scaled(noise: Noise) -> Noise:
    """The same noise at nine tenths of its scale, on the same grid."""
    scale = 0.9 * (noise.scale_value or 0)
    return type(noise)(scale, sensitivity=noise.sensitivity, grid=noise.exponent)  # type: ignore[call-arg]


def clopper_pearson(hits: int, tries: int) -> tuple[float, float]:
    low = stats.beta.ppf(BETA / 2, hits, tries - hits + 1) if hits else 0.0
    high = stats.beta.ppf(1 - BETA / 2, hits + 1, tries - hits) if hits < tries else 1.0
    return float(low), float(high)


def audited_mu(first: NDArray[np.float64], second: NDArray[np.float64]) -> tuple[float, float]:
    """Interval of mu: the threshold is chosen on one half of the answers, and judged on the other."""

    def interval(zero: Any, one: Any, threshold: float) -> tuple[float, float]:
        wrong = clopper_pearson(int((zero >= threshold).sum()), len(zero))
        right = clopper_pearson(int((one >= threshold).sum()), len(one))
        z = stats.norm.ppf
        return float(z(right[0]) - z(wrong[1])), float(z(right[1]) - z(wrong[0]))

    half = len(first) // 2
    thresholds = np.quantile(np.concatenate([first[:half], second[:half]]), np.linspace(0.05, 0.95, 19))
    best = max(thresholds, key=lambda t: interval(first[:half], second[:half], t)[0])
    return interval(first[half:], second[half:], best)


def audited_epsilon(first: NDArray[np.float64], second: NDArray[np.float64]) -> tuple[float, float]:
    """Interval of the log-ratio of the event that an answer lies on the far side of the second score."""
    edge = np.median(second)
    wrong = clopper_pearson(int((first >= edge).sum()), len(first))
    right = clopper_pearson(int((second >= edge).sum()), len(second))
    return math.log(right[0] / wrong[1]), math.log(right[1] / wrong[0])


@pytest.mark.parametrize("name", ["gaussian", "fitted", "coarse"])
def test_gaussian_noise_is_what_it_claims_and_less_is_found_out(name: str, key: Key) -> None:
    """Two worlds, as Nasr et al. 2023 audit Gaussian differential privacy; mu = sqrt(2 rho)."""
    claim = CLAIMS[name]
    mu = math.sqrt(2 * Pipeline("scalar", (claim,)).guarantee(1).parameters["rho"])
    low, high = audited_mu(*worlds(claim, claim, key))
    assert low <= mu <= high
    assert high - low < 0.11 * mu
    low, _ = audited_mu(*worlds(claim, under_scaled(claim), key))
    assert low > mu


@pytest.mark.parametrize("name", ["laplace", "staircase"])
def test_pure_noise_is_what_it_claims_and_less_is_found_out(name: str, key: Key) -> None:
    claim = CLAIMS[name]
    epsilon = Pipeline("scalar", (claim,)).guarantee(1).parameters["epsilon"]
    low, high = audited_epsilon(*worlds(claim, claim, key))
    assert low <= epsilon <= high
    low, _ = audited_epsilon(*worlds(claim, under_scaled(claim), key))
    assert low > epsilon


def one_run_bound(guesses: int, right: int, beta: float = 0.05) -> float:
    """Least epsilon at which this many right guesses would not be rare (Steinke, Nasr & Jagielski 2023, delta = 0)."""
    low, high = 0.0, 50.0
    for _ in range(100):
        middle = (low + high) / 2
        rare = stats.binom.sf(right - 1, guesses, 1 / (1 + math.exp(-middle))) <= beta
        low, high = (middle, high) if rare else (low, middle)
    return low


@pytest.mark.parametrize(
    ("guesses", "right", "epsilon"),
    [(100, 75, 0.7022139309495059), (100, 90, 1.6308231927409742), (1000, 900, 2.021233233548991)],
)
def test_the_bound_of_one_run(guesses: int, right: int, epsilon: float) -> None:
    assert one_run_bound(guesses, right) == pytest.approx(epsilon, rel=1e-9)


def one_run(claim: Noise, built: Noise, key: Key) -> float:
    """One batch in which a coin decides, row by row, which of two models answers; only confident rows are guessed."""
    zero, one = worlds(claim, built, key)
    coins = np.random.default_rng(9).random(len(zero)) < 0.5
    seen = np.where(coins, one, zero)
    low, high = np.median(zero), np.median(one)
    confident = (seen <= low) | (seen >= high)
    guessed = seen >= high
    return one_run_bound(int(confident.sum()), int((guessed == coins)[confident].sum()), BETA)


@pytest.mark.parametrize("name", ["laplace", "staircase"])
def test_one_run_proves_no_more_than_is_claimed(name: str, key: Key) -> None:
    claim = CLAIMS[name]
    epsilon = Pipeline("scalar", (claim,)).guarantee(1).parameters["epsilon"]
    assert 0.95 * epsilon < one_run(claim, claim, key) <= epsilon
    assert one_run(claim, under_scaled(claim), key) > epsilon


def test_floating_point_gives_nothing_away(key: Key) -> None:
    """Mironov 2012, Haney et al. 2022: a sum with a naive float draw has bits that its clean score forbids.

    Under a score of one, no naive answer between 1/2 and 2 has bits below 2**-53; under zero many do. What is shipped
    has no bits below its grid, whatever the score.
    """

    def porous(values: NDArray[np.float64]) -> float:
        return float((values * 2.0**53 != np.rint(values * 2.0**53)).mean())

    draws = np.random.default_rng(0).normal(size=ROWS)
    assert porous(0.0 + draws) > 0.2
    assert porous(1.0 + draws[np.abs(draws) < 0.5]) == 0
    for noise in CLAIMS.values():
        for score in (0.0, 1.0, 1 / 3):
            assert porous(answers(noise, key, score, 0, 10_000) / noise.step) == 0
