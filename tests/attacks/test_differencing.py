"""Asking again, asking nearly the same, asking as somebody else: what it gains against naive noise, and against ours.

Every attack is a function of an oracle, ``oracle(x, client)``: the hardened score of one question. The model is a
logistic curve along one line. A naive build keys, or does not key, its noise as such builds do; ours is a Guard.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

import hardening
from hardening.config import Output, Policy
from hardening.transforms import Canary, Clip, Gaussian, LabelOnly, Laplace, Noise, Transform
from tests.keys import fixed_key

SIGMA, TRIALS, REPEATS = 0.2, 400, 256
Scores = NDArray[np.float64]
Oracle = Callable[[Scores, str], Scores]


def model(x: Scores) -> Scores:
    return np.asarray(1 / (1 + np.exp(-3 * x)))


class Mean(NamedTuple):
    """A mean with its interval of four standard errors."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


def mean(values: Any) -> Mean:
    v = np.asarray(values, float)
    error = 4 * v.std(ddof=1) / math.sqrt(v.size)
    return Mean(float(v.mean()), float(v.mean() - error), float(v.mean() + error))


def draws(*context: Any) -> Scores:
    """Naive keyed draws: at each place of the given arrays a normal number, a function of what stands there."""

    def one(*at: Any) -> float:
        digest = hashlib.blake2b(repr(at).encode(), digest_size=8).digest()
        return float(np.random.default_rng(int.from_bytes(digest, "little")).normal())

    return np.asarray(np.vectorize(one, otypes=[float])(*context))


class Ours:
    """A Guard with this noise as an oracle. The key is always the same, so that what is tested here never changes."""

    def __init__(self, root: Path, *transforms: Transform, space: Any = "scalar") -> None:
        output = Output(space=space, tiers={"normal": transforms}, dense=space == "logits")
        self.guard = hardening.Guard(Policy({"p": output}, key=fixed_key(root), root=root), "m")

    def __call__(self, x: Scores, client: str = "a") -> Scores:
        flat = np.ravel(x)
        answer = self.guard.harden({"p": model(flat)[:, None]}, client=client, inputs={"x": flat[:, None]})["p"]
        return np.asarray(answer[:, 0].reshape(np.shape(x)))


def targets(seed: int) -> Scores:
    return np.random.default_rng(seed).uniform(-1, 1, TRIALS)


def left(answers: Scores, clean: Scores) -> Mean:
    """Error of the mean of each column of answers, over the mean error of the first row."""
    return mean(np.abs(answers.mean(axis=0) - clean) / np.abs(answers[0] - clean).mean())


def repeats(oracle: Oracle) -> Mean:
    """What 256 answers to one question leave of the error of one."""
    x = targets(0)
    return left(np.array([oracle(x, "a") for _ in range(REPEATS)]), model(x))


def near_duplicates(oracle: Oracle) -> Mean:
    """What the answers to 256 questions 1e-7 apart leave of it."""
    x = targets(1)
    return left(oracle(x + np.arange(REPEATS)[:, None] * 1e-7, "a"), model(x))


def collusion(oracle: Oracle, clients: int = 50) -> Mean:
    """What the answers of 50 clients to one question leave of it."""
    x = targets(2)
    return left(np.array([oracle(x, f"c{i}") for i in range(clients)]), model(x))


def slope(oracle: Oracle) -> Mean:
    """How often the answers to two questions 1e-4 apart tell whose score is larger; equal ones tell nothing."""
    x, coins = targets(3), np.random.default_rng(3).random((2, TRIALS)) < 0.5
    first, second = np.where(coins[0], [x, x + 1e-4], [x + 1e-4, x])
    difference = oracle(second, "a") - oracle(first, "a")
    return mean(np.where(difference == 0, coins[1], difference > 0) == coins[0])


def between_clients(oracle: Oracle) -> Mean:
    """Error of f(x) - f(x') from both clients' answers to both questions, in deviations of the noise."""
    x = targets(4)
    seen = np.mean([oracle(x, c) - oracle(x + 0.5, c) for c in ("a", "b")], axis=0)
    return mean(np.abs(seen - (model(x) - model(x + 0.5))) / SIGMA)


def test_averaging_repeats(tmp_path: Path) -> None:
    """256 fresh answers leave a sixteenth of the error; 256 of ours are one."""
    rng = np.random.default_rng(5)
    naive = repeats(lambda x, client: model(x) + SIGMA * rng.normal(size=x.shape))
    assert naive.high < 0.1
    for key in ("input", "cell"):
        oracle = Ours(tmp_path, Gaussian(SIGMA, key=key))
        ours = repeats(oracle)
        print(f"error left by 256 repeats: naive {naive}, ours keyed on the {key} {ours}")
        assert ours.low < 1 < ours.high
        assert len({float(oracle(np.array(0.3))) for _ in range(REPEATS)}) == 1


def test_near_duplicates_keyed_on_the_input_are_charged_one_by_one(tmp_path: Path) -> None:
    """They average noise away, which no key on the input can stop: so each of them is a question, and is paid for."""
    oracle = Ours(tmp_path, Gaussian(SIGMA, sensitivity=0.1))
    gain = near_duplicates(oracle)
    print(f"error left by 256 near-duplicates, keyed on the input: {gain}, paid for 256 times")
    assert gain.high < 0.1
    oracle(0.3 + np.arange(REPEATS) * 1e-7, "batch")
    for i in range(REPEATS):
        oracle(np.array(0.3 + i * 1e-7), "singly")
    oracle(np.array(0.3), "honest")
    honest = oracle.guard.standing("honest")
    assert honest.rho > 0
    for name in ("batch", "singly"):
        thief = oracle.guard.standing(name)
        assert thief.queries == REPEATS * honest.queries == REPEATS
        assert thief.bits == pytest.approx(REPEATS * honest.bits)
        assert thief.rho == pytest.approx(REPEATS * honest.rho)


def test_near_duplicates_in_a_cell_gain_nothing(tmp_path: Path) -> None:
    """A naive build that keys on the cell and leaves the score in it gives its slope away (Gadotti et al. 2019)."""
    noise = Gaussian(SIGMA, key="cell")
    gain, paid = near_duplicates(Ours(tmp_path, noise)), near_duplicates(Ours(tmp_path, Gaussian(SIGMA)))
    print(f"error left by 256 near-duplicates: ours on the cell {gain}, on the input {paid}")
    assert gain.low < 1 < gain.high
    assert paid.high < 0.1
    naive = slope(lambda x, client: model(x) + SIGMA * draws(np.rint(model(x) / noise.cell)))
    assert naive.low > 0.9
    for ours in (noise, Gaussian(SIGMA)):
        guessed = slope(Ours(tmp_path, ours))
        print(f"slope guessed by differencing: naive {naive}, ours on the {ours.key} {guessed}")
        assert guessed.low < 0.5 < guessed.high


def test_crossing_cells_is_charged(tmp_path: Path) -> None:
    """A walk across the scores has one answer for each cell on its way, at the price of all its questions."""
    noise = Gaussian(SIGMA, key="cell")
    oracle, walk = Ours(tmp_path, noise), np.linspace(-1, 1, 400)
    answers = np.array([float(oracle(x, "walker")) for x in walk])
    oracle(np.array(0.0), "stander")
    crossings = np.diff(np.rint(model(walk) / noise.cell)) != 0
    assert crossings.sum() > 3
    assert np.array_equal(np.diff(answers) != 0, crossings)
    walker, stander = oracle.guard.standing("walker"), oracle.guard.standing("stander")
    assert walker.queries == len(walk)
    assert walker.bits == pytest.approx(len(walk) * stander.bits)


@pytest.mark.parametrize("other", [Gaussian(2 * SIGMA), Gaussian(SIGMA * 1.0001), Laplace(2 * SIGMA)], ids=str)
def test_two_scales_do_not_solve(tmp_path: Path, other: Noise) -> None:
    """One draw at two scales is two equations: z = (s2 y1 - s1 y2) / (s2 - s1). Ours are two draws."""
    first, second, x = SIGMA, float(other.scale_value or 0), targets(6)
    weak, strong = Ours(tmp_path, Gaussian(SIGMA)), Ours(tmp_path, other)

    def solve(one: Oracle, two: Oracle) -> Mean:
        solved = (second * one(x, "a") - first * two(x, "b")) / (second - first)
        return mean(np.abs(solved - model(x)) / SIGMA)

    naive = solve(lambda x, client: model(x) + first * draws(x), lambda x, client: model(x) + second * draws(x))
    ours, single = solve(weak, strong), mean(np.abs(weak(x) - model(x)) / SIGMA)
    print(f"error of the solution in deviations: naive {naive}, ours {ours}, of one answer alone {single}")
    assert naive.high < 1e-6
    assert ours.low > single.high
    correlation = float(np.corrcoef(weak(x) - model(x), strong(x) - model(x))[0, 1])
    print(f"correlation of the two draws {correlation:.3f} +- {4 / math.sqrt(TRIALS):.3f}")
    assert abs(correlation) < 4 / math.sqrt(TRIALS)


def test_two_tiers_cannot_be_differenced(tmp_path: Path) -> None:
    """One draw on a score and on the same score clipped cancels, and shows what was cut off."""
    x, clip = targets(7), Clip(low=0.4, high=0.6)

    def error(one: Oracle, two: Oracle) -> Mean:
        return mean(np.abs((one(x, "a") - two(x, "b")) - (model(x) - np.clip(model(x), 0.4, 0.6))) / SIGMA)

    naive = error(
        lambda x, client: model(x) + SIGMA * draws(x),
        lambda x, client: np.clip(model(x), 0.4, 0.6) + SIGMA * draws(x),
    )
    ours = error(Ours(tmp_path, Gaussian(SIGMA)), Ours(tmp_path, clip, Gaussian(SIGMA)))
    print(f"error of what was cut off, in deviations: naive {naive}, ours {ours}")
    assert naive.high < 1e-9
    assert ours.low > 0.8


def test_colluders_gain_nothing_against_global_noise(tmp_path: Path) -> None:
    """Fifty naive draws, one for each client, leave a seventh of the error.

    So does ours if all of it is the client's own; of global noise with a layer of the client's own, the layer is lost.
    """
    naive = collusion(lambda x, client: model(x) + SIGMA * draws(x, client))
    shared = collusion(Ours(tmp_path, Gaussian(SIGMA)))
    layered = collusion(Ours(tmp_path, Gaussian(SIGMA), Gaussian(SIGMA / 8, scope="client")))
    alone = collusion(Ours(tmp_path, Gaussian(SIGMA, scope="client")))
    print(f"error left by 50 colluders: naive {naive}, global {shared}, layered {layered}, of their own {alone}")
    assert naive.high < 0.25
    assert shared.low < 1 < shared.high
    assert layered.low < 1 < layered.high
    assert layered.value > 0.95
    assert alone.high < 0.25


@pytest.mark.parametrize(
    "noise",
    [
        (Gaussian(SIGMA),),
        (Gaussian(SIGMA, scope="client"),),
        (Gaussian(SIGMA), Gaussian(SIGMA / 8, scope="client")),
    ],
    ids=str,
)
def test_two_clients_cannot_be_differenced(tmp_path: Path, noise: tuple[Noise, ...]) -> None:
    """A naive offset for each client cancels between two questions; what is left between two of ours is noise alone."""
    oracle, x = Ours(tmp_path, *noise), np.linspace(-2, 2, TRIALS)
    naive = between_clients(lambda x, client: model(x) + SIGMA * draws(client))
    ours = between_clients(oracle)
    print(f"error of a difference, in deviations: naive {naive}, ours {ours}")
    assert naive.high < 1e-9
    assert ours.low > 0.6
    between = oracle(x, "a") - oracle(x, "b")
    if noise == (Gaussian(SIGMA),):
        assert not between.any()
    else:
        correlation = float(np.corrcoef(between, model(x))[0, 1])
        print(f"correlation of the difference with the score {correlation:.3f} +- {4 / math.sqrt(TRIALS):.3f}")
        assert abs(correlation) < 4 / math.sqrt(TRIALS)


def test_canaries_cannot_be_differenced(tmp_path: Path) -> None:
    """Two clients of whom one is told another order: under the same noise their difference is what changed places."""
    rng = np.random.default_rng(8)
    x, clean = rng.normal(size=(TRIALS, 3)), rng.normal(size=(TRIALS, 6)) * 2
    top = clean.argmax(axis=1)

    def errors(one: Scores, two: Scores, other: NDArray[np.intp]) -> Mean:
        """Of the lead over the class that took its place, in deviations."""
        every = np.arange(len(one))
        lead = (clean[every, top] - clean[every, other])[other != top]
        seen = (one[every, top] - two[every, top])[other != top]
        return mean(np.abs(seen - lead) / SIGMA)

    swapped, other = clean.copy(), np.argsort(-clean, axis=1)[:, 1]
    every = np.arange(TRIALS)
    swapped[every, top], swapped[every, other] = clean[every, other], clean[every, top]
    noise = SIGMA * draws(x[:, :1] * np.ones(6), np.arange(6) * np.ones((TRIALS, 1)))
    naive = errors(clean + noise, swapped + noise, other)
    transforms = (Canary(rate=0.5), Gaussian(SIGMA))
    ours = Ours(tmp_path, *transforms, space="logits").guard
    told = Ours(tmp_path, Canary(rate=0.5), LabelOnly(), space="logits").guard
    labels, answers = (
        [g.harden({"p": clean}, client=c, inputs={"x": x})["p"] for c in ("a", "b")] for g in (told, ours)
    )
    first, second = labels[0].argmax(axis=1), labels[1].argmax(axis=1)
    only = np.where(first == top, second, top)  # the second client was told another class, and the first was not
    assert (only != top).sum() > 50
    hidden = errors(answers[0], answers[1], only)
    print(f"error of a lead from two clients' answers, in deviations: naive {naive}, ours {hidden}")
    assert naive.high < 1e-9
    assert hidden.low > 0.6
    alike = (first == second) & (first == top)
    assert np.array_equal(answers[0][alike], answers[1][alike]), "who is told the same has the same noise"
