"""Extraction of real victims with and without a policy; run with -s to read the figures.

What a policy promises is asserted, what it merely does is printed: rounding and small noise do not stop learning.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import hardening_onnx
import numpy as np
import onnxruntime
import pytest
from sklearn.datasets import load_digits

from hardening.audit.extraction import Extraction, Query, Training, extract, one_hot, solve, train
from hardening.config import Output, Policy
from hardening.transforms import Gaussian, LabelOnly, Project, Types
from tests.attacks.models import asking, exported
from tests.keys import fixed_key

TIERS: dict[str, tuple[Any, ...]] = {
    "normal": (Gaussian(sigma=0.05), Project(keep_top1=True), Types(n=100)),
    "rounded": (Types(n=10),),
    "noisy": (Gaussian(sigma=0.1), Project()),
    "faint": (Gaussian(sigma=0.004), Project()),
    "fresh": (Gaussian(sigma=0.004, key="fresh"), Project()),
    "label": (LabelOnly(),),
}


class Victim(NamedTuple):
    """An ONNX model as a thief meets it, bare and in each tier; inputs he may ask, and digits to judge by."""

    queries: dict[str, Query]
    pool: np.ndarray
    held_out: np.ndarray
    labels: np.ndarray
    accuracy: float


def victim(hidden: tuple[int, ...], root: Path) -> Victim:
    """Handwritten digits: 900 to train on, 400 that the thief has himself, 497 to judge by."""
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.data))
    x, y = (data.data[order] / 16).astype(np.float32), data.target[order]
    student = train(x[:900], one_hot(np.eye(10)[y[:900]]), np.random.default_rng(1), Training(hidden))
    bare = onnxruntime.InferenceSession(exported(student), providers=["CPUExecutionProvider"])
    queries: dict[str, Query] = {"undefended": asking(bare)}
    for tier, steps in TIERS.items():
        policy = Policy({"p": Output("simplex", {tier: steps})}, fixed_key(root), root=root)
        queries[tier] = asking(hardening_onnx.wrap(bare, policy), client="a thief")
    labels = queries["undefended"](x[1300:]).argmax(axis=1)
    return Victim(queries, x[900:1300], x[1300:], labels, float((labels == y[1300:]).mean()))


@pytest.fixture(scope="module")
def perceptron(tmp_path_factory: pytest.TempPathFactory) -> Victim:
    return victim((64,), tmp_path_factory.mktemp("perceptron"))


@pytest.fixture(scope="module")
def regression(tmp_path_factory: pytest.TempPathFactory) -> Victim:
    return victim((), tmp_path_factory.mktemp("regression"))


def printed(tier: str, found: Extraction) -> Extraction:
    low, high = found.fidelity.interval
    print(
        f"  {tier:11} {found.queries:5} queries: fidelity {found.fidelity.value:.3f} [{low:.3f}, {high:.3f}]"
        f" by {found.view}; {', '.join(f'{v} {f.value:.3f}' for v, f in found.by_view.items())}"
    )
    return found


def copied(of: Victim, tier: str, budget: int, repeats: int = 1) -> Extraction:
    found = extract(
        of.queries[tier],
        of.pool,
        of.pool,
        of.held_out,
        of.labels,
        budget=budget,
        rng=np.random.default_rng(7),
        repeats=repeats,
        training=Training(hidden=(48,)),
    )
    return printed(tier, found)


def test_copying_digits(perceptron: Victim) -> None:
    assert perceptron.accuracy > 0.93
    print()
    found = {tier: copied(perceptron, tier, 400) for tier in perceptron.queries}
    # The attack works, or nothing below would mean anything.
    assert found["undefended"].fidelity.interval[0] > 0.88
    # Under the label tier scores are labels: nothing is left that scores would add, exactly.
    views = found["label"].by_view
    assert views["scores"] == views["labels"]
    # Tiers that keep the top class leave the label thief exactly what he had: the floor of what any of them can do.
    for tier in ("normal", "rounded", "label"):
        assert found[tier].by_view["labels"] == found["undefended"].by_view["labels"]
    # A budget, not noise, is what holds a thief back.
    capped = copied(perceptron, "undefended", 20)
    assert capped.fidelity.interval[1] < found["label"].fidelity.interval[0]


def test_repeating_questions_gains_nothing_under_keyed_noise(perceptron: Victim) -> None:
    # Dim digits, to which every class is a possible answer: nothing but noise stands before the scores.
    dim = perceptron.pool * 0.05
    clean = perceptron.queries["undefended"](dim)
    assert clean.min() > 5 * 0.004
    print()
    gains = {}
    for tier in ("faint", "fresh"):
        answers = [perceptron.queries[tier](dim).astype(np.float64) for _ in range(64)]
        one, all64 = (float(np.sqrt(np.mean((a - clean) ** 2))) for a in (answers[0], np.mean(answers, axis=0)))
        gains[tier] = one / all64
        print(f"  {tier}: error of one answer {one:.5f}, of the mean of 64 {all64:.5f}, ratio {gains[tier]:.2f}")
        assert all(np.array_equal(a, answers[0]) for a in answers) == (tier == "faint")
    assert gains["faint"] == pytest.approx(1.0, abs=1e-9)
    # Of 3600 free errors each: outside with chance 6e-12, by the F distribution of the ratio of their squares.
    assert gains["fresh"] == pytest.approx(8.0, rel=0.12)


def test_repeats_do_not_improve_a_copy_under_keyed_noise(perceptron: Victim) -> None:
    print()
    once, again = (copied(perceptron, "noisy", 100 * n, repeats=n) for n in (1, 8))
    assert (once.queries, again.queries) == (100, 800)
    assert once.by_view == again.by_view


def test_solving_a_softmax_regression(regression: Victim) -> None:
    rng = np.random.default_rng(3)
    inputs = rng.random((2000, 64)).astype(np.float32)
    print()

    def solved(tier: str, budget: int) -> Extraction:
        rng = np.random.default_rng([3, budget])
        query = regression.queries[tier]
        return printed(tier, solve(query, inputs, regression.held_out, regression.labels, budget=budget, rng=rng))

    assert solved("undefended", 70).by_view["equations"].value == 1.0
    for tier in ("normal", "rounded", "noisy", "label"):
        assert solved(tier, 70).fidelity.interval[1] < 0.8
    # And honestly: with more questions it comes back.
    assert solved("rounded", 2000).fidelity.interval[0] > 0.9
