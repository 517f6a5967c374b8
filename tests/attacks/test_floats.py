"""One query, two possible scores: what the low bits of an answer give away, and that ours give nothing.

A naive sum of a score and a float draw has bits that some scores forbid (Mironov 2012; Haney et al. 2022), so one
answer can rule a score out for certain, whatever the noise is said to promise. Every attack is a function of an oracle,
``oracle(score, queries)``, and is run on a naive build of the same noise in the same dtype beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from hardening.noise import CIPHERS, Key
from hardening.pipeline import Pipeline
from hardening.program import Program, Task
from hardening.transforms import Gaussian, Laplace, Noise, Staircase

Oracle = Callable[[float, int], NDArray[Any]]
QUERIES = 40_000
PAIRS = [(0.0, 1.0), (0.25, 0.75), (0.01, 0.99)]
SHIPPED: dict[str, Noise] = {
    "gaussian": Gaussian(sigma=1.0),
    "small": Gaussian(sigma=0.05),
    "laplace": Laplace(scale=1.0),
    "staircase": Staircase(scale=1.0, sensitivity=0.5),
}


class Share(NamedTuple):
    """A share with its interval of four standard errors (Wilson 1927)."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}]"


def share(event: NDArray[np.bool_]) -> Share:
    n, p, z = event.size, float(event.mean()), 4.0
    middle, spread = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Share(p, (middle - spread) / (1 + z * z / n), (middle + spread) / (1 + z * z / n))


def ours(noise: Noise, dtype: str, cipher: str = "chacha20") -> Oracle:
    """The compiled kernel, each query with a nonce of its own."""
    program = Program(Pipeline("scalar", (noise,)), 1, Key(1, cipher, bytes(range(32))), "p", "m")

    def oracle(score: float, queries: int) -> NDArray[Any]:
        nonces = np.random.default_rng(int(score * 100) + 7).integers(0, 2**32, (queries, 3), dtype=np.uint32)
        out = np.full((queries, 1), score, dtype)
        assert Task(program, out, queries, nonces).run() == 0
        return out[:, 0]

    return oracle


def naive_sum(sigma: float, dtype: str) -> Oracle:
    """numpy's normal draws added in the answer's dtype."""

    def oracle(score: float, queries: int) -> NDArray[Any]:
        draws = np.random.default_rng(int(score * 100) + 7).normal(size=queries) * sigma
        return np.asarray(np.full(queries, score, dtype) + draws.astype(dtype))

    return oracle


def naive_laplace(score: float, queries: int) -> NDArray[Any]:
    """By the inverse of the distribution function, from multiples of 2**-53."""
    rng = np.random.default_rng(int(score * 100) + 7)
    uniform = rng.integers(1, 2**53, queries) * 2.0**-53
    return np.asarray(score + rng.choice([-1.0, 1.0], queries) * -np.log(uniform))


def lowest_bit(values: NDArray[Any], digits: int) -> NDArray[np.int64]:
    """Exponent of the lowest bit set in each value."""
    mantissa, exponent = np.frexp(np.abs(values.astype("f8")))
    whole = np.ldexp(mantissa, digits).astype(np.int64)
    return np.asarray(exponent - digits + np.log2(np.maximum(whole & -whole, 1)).astype(np.int64) + 2000 * (whole == 0))


def rules_out(answers: NDArray[Any], score: float) -> NDArray[np.bool_]:
    """Whether no draw in the answers' dtype, added to `score`, can have given an answer: it has too fine a bit."""
    digits = np.finfo(answers.dtype).nmant + 1
    if score == 0:
        return np.zeros(answers.shape, bool)
    own = np.frexp(float(answers.dtype.type(score)))[1]
    draw = np.frexp(answers.astype("f8") - float(answers.dtype.type(score)))[1]
    return lowest_bit(answers, digits) < np.minimum(own, draw) - digits


def granularity(oracle: Oracle, scores: tuple[float, float]) -> tuple[Share, Share]:
    """How often an answer about the first score rules the second out for certain, and in error the first."""
    answers = oracle(scores[0], QUERIES)
    return share(rules_out(answers, scores[1])), share(rules_out(answers, scores[0]))


def unreachable(answers: NDArray[Any], score: float) -> NDArray[np.bool_]:
    """Whether no draw of the naive Laplace sampler that is near enough gives an answer from `score`."""
    noise = answers.astype("f8") - score
    nearest, found = np.rint(np.exp(-np.abs(noise)) * 2.0**53).astype(np.int64), np.zeros(noise.shape, bool)
    for step in range(-3, 4):
        draw = -np.log(np.clip(nearest + step, 1, 2**53 - 1) * 2.0**-53)
        found |= score + np.sign(noise) * draw == answers
    return ~found


def reachability(oracle: Oracle, scores: tuple[float, float]) -> tuple[Share, Share]:
    """As `granularity`, where a score is ruled out that is `unreachable` from an answer."""
    answers = oracle(scores[0], QUERIES)
    return share(unreachable(answers, scores[1])), share(unreachable(answers, scores[0]))


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("scores", PAIRS)
def test_granularity_of_naive_sums(scores: tuple[float, float], dtype: str) -> None:
    """Measured for normal noise of deviation 1 in float64: 0.36, 0.12 and 0.25 of answers are proof of one score."""
    for sigma, least in ((1.0, 0.1), (0.05, 0.3)):
        wrong, right = granularity(naive_sum(sigma, dtype), scores)
        print(f"{dtype} {scores} sigma {sigma}: one naive answer proves a score with probability {wrong}, errs {right}")
        assert wrong.low > least
        assert right.value == 0


def test_granularity_of_naive_sums_in_half_precision() -> None:
    """Eleven digits leave fewer bits to betray; a score near the answers still does."""
    wrong, right = granularity(naive_sum(0.05, "f2"), (0.25, 0.75))
    print(f"f2: one naive answer proves a score with probability {wrong}, errs {right}")
    assert wrong.low > 0.04
    assert right.value == 0


@pytest.mark.parametrize("cipher", CIPHERS)
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
@pytest.mark.parametrize("name", SHIPPED)
def test_granularity_of_ours(name: str, dtype: str, cipher: str) -> None:
    """Every answer is a multiple of the grid under either score, so its low bits are the same for both."""
    noise = SHIPPED[name]
    oracle, scale = ours(noise, dtype, cipher), noise.scale_value or 0.0
    for first, second in PAIRS:
        for scores in ((first * scale, second * scale), (second * scale, first * scale)):
            wrong, right = granularity(oracle, scores)
            print(f"{name} {dtype} {scores}: ours rules out the wrong score {wrong}, the right one {right}")
            assert wrong.value == right.value == 0
            units = oracle(scores[0], QUERIES).astype("f8") / noise.step
            assert (units == np.rint(units)).all()


def guess(oracle: Oracle, scores: tuple[float, float], feature: Callable[[NDArray[Any]], NDArray[Any]]) -> Share:
    """How often a feature of one answer tells which of two scores it is about; the best rule is learnt on one half."""
    first, second = feature(oracle(scores[0], QUERIES)), feature(oracle(scores[1], QUERIES))
    half, values = QUERIES // 2, np.unique(np.concatenate([first, second]))
    says_second = {v: (second[:half] == v).sum() > (first[:half] == v).sum() for v in values}
    right = [not says_second[v] for v in first[half:]] + [says_second[v] for v in second[half:]]
    return share(np.array(right, bool))


@pytest.mark.parametrize("scores", PAIRS[:2])
def test_reachability_of_naive_draws(scores: tuple[float, float]) -> None:
    """Half of them and more prove one score (Mironov 2012)."""
    wrong, right = reachability(naive_laplace, scores)
    print(f"{scores}: one naive answer proves a score with probability {wrong}, errs {right}")
    assert wrong.low > 0.4
    assert right.high < 0.01


def test_reachability_tells_nothing_about_ours() -> None:
    """Of two scores a step of the grid apart, which noise of 32 steps hides: e^(1/32) to one, 0.508, is promised."""
    noise = SHIPPED["laplace"]
    scores = (0.0, noise.step)

    def reached(answers: NDArray[Any]) -> NDArray[np.int64]:
        return unreachable(answers, scores[0]) + 2 * unreachable(answers, scores[1])

    naive, coin = guess(naive_laplace, scores, reached), guess(ours(noise, "f8"), scores, reached)
    print(f"what a naive draw can reach tells two scores apart with probability {naive}, of ours {coin}")
    assert naive.low > 0.6
    assert coin.low < 0.5 < coin.high


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_low_bits_are_no_better_than_a_coin(dtype: str) -> None:
    """An attacker learns from answers of both kinds what their lowest bits say."""
    digits = np.finfo(dtype).nmant + 1

    def lowest(answers: NDArray[Any]) -> NDArray[np.int64]:
        return np.minimum(lowest_bit(answers, digits), 4 - digits)  # from there on bits depend on the size of an answer

    naive = guess(naive_sum(1.0, dtype), (0.0, 1.0), lowest)
    coin = guess(ours(SHIPPED["gaussian"], dtype), (0.0, 1.0), lowest)
    print(f"{dtype}: the lowest bit of a naive answer tells two scores apart with probability {naive}, of ours {coin}")
    assert naive.low > 0.52
    assert coin.low < 0.5 < coin.high
