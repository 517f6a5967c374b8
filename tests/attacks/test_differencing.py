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

import hardening
from hardening.config import KeySource, Output, Policy
from hardening.transforms import Gaussian, Laplace, Noise

SIGMA, TRIALS, REPEATS = 0.2, 120, 256
Oracle = Callable[[float, str], float]


def model(x: float) -> float:
    return 1 / (1 + math.exp(-3 * x))


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


def draw(*context: Any) -> float:
    """A naive keyed draw: a normal number that is a function of `context`."""
    digest = hashlib.blake2b(repr(context).encode(), digest_size=8).digest()
    return float(np.random.default_rng(int.from_bytes(digest, "little")).normal())


class Ours:
    """A Guard with this noise as an oracle; guards with one root share a key."""

    def __init__(self, root: Path, *noise: Noise, cipher: str | None = None) -> None:
        output = Output(space="scalar", tiers={"normal": noise})
        self.guard = hardening.Guard(Policy({"p": output}, key=KeySource("file:k.key", create=True), root=root), "m")

    def __call__(self, x: float, client: str = "a") -> float:
        scores, asked = {"p": np.array([[model(x)]])}, {"x": np.array([[x]])}
        return float(self.guard.harden(scores, client=client, inputs=asked)["p"][0, 0])


def targets(seed: int = 0) -> list[float]:
    return np.random.default_rng(seed).uniform(-1, 1, TRIALS).tolist()


def repeats(oracle: Oracle) -> Mean:
    """Error of the mean of 256 answers to one question, over that of a single answer."""
    one = math.sqrt(np.mean([(oracle(x, "a") - model(x)) ** 2 for x in targets()]))
    errors = [np.mean([oracle(x, "a") for _ in range(REPEATS)]) - model(x) for x in targets()]
    return mean(np.abs(errors) / (one * math.sqrt(2 / math.pi)))


def near_duplicates(oracle: Oracle, steps: int = REPEATS) -> Mean:
    """The same with 256 questions that are 1e-7 apart."""
    one = math.sqrt(np.mean([(oracle(x, "a") - model(x)) ** 2 for x in targets(1)]))
    errors = [np.mean([oracle(x + i * 1e-7, "a") for i in range(steps)]) - model(x) for x in targets(1)]
    return mean(np.abs(errors) / (one * math.sqrt(2 / math.pi)))


def collusion(oracle: Oracle, clients: int = 50) -> Mean:
    """The same with the answers of 50 clients to one question."""
    one = math.sqrt(np.mean([(oracle(x, "c0") - model(x)) ** 2 for x in targets(2)]))
    errors = [np.mean([oracle(x, f"c{i}") for i in range(clients)]) - model(x) for x in targets(2)]
    return mean(np.abs(errors) / (one * math.sqrt(2 / math.pi)))


def slope(oracle: Oracle) -> Mean:
    """How often two questions 1e-4 apart tell whether the score rises between them; it always does, or always falls.

    The attacker orders them by chance, and guesses where the answers are equal.
    """
    rng = np.random.default_rng(3)
    right = []
    for x in targets(3):
        rises = rng.random() < 0.5
        first, second = (x, x + 1e-4) if rises else (x + 1e-4, x)
        difference = oracle(second, "a") - oracle(first, "a")
        right.append(rises == (difference > 0 if difference else rng.random() < 0.5))
    return mean(right)


def between_clients(oracle: Oracle) -> Mean:
    """Error of f(x) - f(x') from both clients' answers to both questions, in deviations of the noise."""
    errors = []
    for x in targets(4):
        y = x + 0.5
        seen = np.mean([oracle(x, c) - oracle(y, c) for c in ("a", "b")])
        errors.append(abs(seen - (model(x) - model(y))) / SIGMA)
    return mean(errors)


def test_averaging_repeats(tmp_path: Path) -> None:
    """256 fresh answers leave a sixteenth of the error; 256 of ours are one."""
    rng = np.random.default_rng(5)
    naive = repeats(lambda x, c: model(x) + SIGMA * rng.normal())
    keyed, celled = repeats(Ours(tmp_path, Gaussian(SIGMA))), repeats(Ours(tmp_path, Gaussian(SIGMA, key="cell")))
    print(f"error left by 256 repeats: naive {naive}, keyed on the input {keyed}, on the cell {celled}")
    assert naive.high < 0.1
    for ours in (keyed, celled):
        assert ours.low < 1 < ours.high
    oracle = Ours(tmp_path, Gaussian(SIGMA))
    assert len({oracle(0.3) for _ in range(REPEATS)}) == 1


def test_near_duplicates_keyed_on_the_input_are_charged_one_by_one(tmp_path: Path) -> None:
    """They average noise away, which nothing keyed on the input can stop: so each of them is a question, and is paid."""
    oracle = Ours(tmp_path, Gaussian(SIGMA, sensitivity=0.1))
    gain = near_duplicates(oracle, 64)
    print(f"error left by 64 near-duplicates, keyed on the input: {gain}, paid for 64 times")
    assert gain.high < 0.3
    for i in range(REPEATS):
        oracle(0.3 + i * 1e-7, "thief")
    oracle(0.3, "honest")
    thief, honest = oracle.guard.standing("thief"), oracle.guard.standing("honest")
    assert thief.queries == REPEATS * honest.queries == REPEATS
    assert thief.bits == pytest.approx(REPEATS * honest.bits)
    assert honest.rho > 0
    assert thief.rho == pytest.approx(REPEATS * honest.rho)


def test_near_duplicates_in_a_cell_gain_nothing(tmp_path: Path) -> None:
    """A naive build that keys on the cell alone gives the exact difference of two scores, and so their slope."""
    cell = Gaussian(SIGMA).cell

    def naive(x: float, client: str) -> float:
        return model(x) + SIGMA * draw(math.floor(model(x) / cell))

    oracle = Ours(tmp_path, Gaussian(SIGMA, key="cell"))
    gain, fresh = near_duplicates(oracle, 64), near_duplicates(Ours(tmp_path, Gaussian(SIGMA)), 64)
    print(f"error left by 64 near-duplicates: on the cell {gain}, on the input {fresh}")
    assert gain.low < 1 < gain.high
    assert fresh.high < 0.3
    shown, hidden = slope(naive), slope(oracle)
    print(f"slope guessed by differencing: naive {shown}, ours on the cell {hidden}")
    assert shown.low > 0.9
    assert hidden.low < 0.5 < hidden.high
    keyed = slope(Ours(tmp_path, Gaussian(SIGMA)))
    print(f"slope guessed by differencing, ours on the input {keyed}")
    assert keyed.low < 0.5 < keyed.high


def test_crossing_cells_is_charged(tmp_path: Path) -> None:
    """A walk across the scores has one answer for each cell on its way, at the price of all its questions."""
    noise = Gaussian(SIGMA, key="cell")
    oracle = Ours(tmp_path, noise)
    walk = np.linspace(-1, 1, 400)
    answers = [oracle(x, "walker") for x in walk]
    cells = np.rint(np.array([model(x) for x in walk]) / noise.cell)
    crossings = int((np.diff(cells) != 0).sum())
    assert crossings > 3
    assert int((np.diff(answers) != 0).sum()) == crossings
    one = Ours(tmp_path, noise)
    one(0.0, "walker")
    assert oracle.guard.standing("walker").queries == len(walk)
    assert oracle.guard.standing("walker").bits == pytest.approx(len(walk) * one.guard.standing("walker").bits)


@pytest.mark.parametrize("other", [Gaussian(2 * SIGMA), Gaussian(SIGMA * 1.0001), Laplace(2 * SIGMA)])
def test_two_sigmas_do_not_solve(tmp_path: Path, other: Noise) -> None:
    """One draw at two scales is two equations: z = (s2 y1 - s1 y2) / (s2 - s1). Ours are two draws."""
    first, second = SIGMA, float(other.scale_value or 0)
    weak, strong = Ours(tmp_path, Gaussian(SIGMA)), Ours(tmp_path, other)

    def solve(one: Oracle, two: Oracle) -> Mean:
        solved = [(second * one(x, "a") - first * two(x, "a")) / (second - first) for x in targets(6)]
        return mean(np.abs([z - model(x) for z, x in zip(solved, targets(6), strict=True)]) / SIGMA)

    naive = solve(lambda x, c: model(x) + first * draw(x), lambda x, c: model(x) + second * draw(x))
    ours = solve(weak, strong)
    single = mean([abs(weak(x) - model(x)) / SIGMA for x in targets(6)])
    print(f"error of the solution in deviations: naive {naive}, ours {ours}, of one answer alone {single}")
    assert naive.high < 1e-6
    assert ours.low > single.high
    pairs = np.array([(weak(x) - model(x), strong(x) - model(x)) for x in np.linspace(-1, 1, 1000)])
    correlation = float(np.corrcoef(pairs.T)[0, 1])
    print(f"correlation of the two draws {correlation:.3f} +- {4 / math.sqrt(1000):.3f}")
    assert abs(correlation) < 4 / math.sqrt(1000)


def test_colluders_gain_nothing_against_global_noise(tmp_path: Path) -> None:
    """Fifty naive per-client draws leave a seventh of the error. A layer of the client's own is all that ours lose."""
    naive = collusion(lambda x, c: model(x) + SIGMA * draw(x, c))
    shared = collusion(Ours(tmp_path, Gaussian(SIGMA)))
    layered = collusion(Ours(tmp_path, Gaussian(SIGMA), Gaussian(SIGMA / 8, scope="client")))
    alone = collusion(Ours(tmp_path, Gaussian(SIGMA, scope="client")))
    print(f"error left by 50 colluders: naive {naive}, global {shared}, layered {layered}, each its own {alone}")
    assert naive.high < 0.25
    assert shared.low < 1 < shared.high
    assert layered.low < 1 < layered.high
    assert layered.value > 0.9 * shared.value
    assert alone.high < 0.25, "noise of each client's own is averaged by colluders: docs say so"


def test_two_clients_cannot_be_differenced(tmp_path: Path) -> None:
    """A naive offset for each client cancels between two questions; so does one for each question between clients."""
    per_client = between_clients(lambda x, c: model(x) + SIGMA * draw(c))
    assert per_client.high < 1e-9
    for noise in (
        (Gaussian(SIGMA),),
        (Gaussian(SIGMA, scope="client"),),
        (Gaussian(SIGMA), Gaussian(SIGMA / 8, scope="client")),
    ):
        oracle = Ours(tmp_path, *noise)
        ours = between_clients(oracle)
        print(f"error of a difference, in deviations: naive {per_client}, ours {ours} with {noise}")
        assert ours.low > 0.5
        # What is left between two clients is a layer that knows nothing of the score.
        left = [(oracle(x, "a") - oracle(x, "b"), model(x)) for x in np.linspace(-2, 2, 400)]
        seen, true = np.array(left).T
        if any(n.scope == "client" for n in noise):
            correlation = float(np.corrcoef(seen, true)[0, 1])
            print(f"correlation of the difference with the score {correlation:.3f} +- {4 / 20:.3f}")
            assert abs(correlation) < 0.2
        else:
            assert not seen.any()
    # A naive build that shares a draw between clients of two tiers, and clips in one of them, shows the clean score.
    clipped = [(model(x) + SIGMA * draw(x)) - (min(model(x), 0.5) + SIGMA * draw(x)) for x in (0.5, 1.0)]
    assert np.allclose(clipped, [model(0.5) - 0.5, model(1.0) - 0.5])
