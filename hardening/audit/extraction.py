"""Model extraction: train a copy of a model on its answers, and measure how often the copy agrees with it.

Two attacks, in plain numpy. `extract` trains a student by cross-entropy on the scores it was given (Tramer et al.
2016; Orekondy et al., Knockoff Nets, 2019). `solve` recovers a softmax regression from the logarithms of its scores
(Tramer et al. 2016, equation solving). Both are adaptive: the attacker looks at the answers in several ways, and what
is reported is the way that served him best, chosen on the very data that judges him - so the figures err in his favour.

Fidelity is top-1 agreement with the undefended model on inputs that were not asked (Jagielski et al. 2020).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Labels = NDArray[np.intp]
#: Answers a batch of model inputs: ``(n, ...)`` -> scores ``(n, classes)``.
Query = Callable[[NDArray[Any]], NDArray[Any]]


def wilson(agreed: int, trials: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Wilson's (1927) interval for a proportion; 95 % with the default `z`. No trials: (0, 1)."""
    if trials == 0:
        return 0.0, 1.0
    p, n = agreed / trials, trials
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    # At the ends one limit is the proportion itself; rounding must not move it past.
    return max(0.0, min(p, middle - half)), min(1.0, max(p, middle + half))


@dataclass(frozen=True)
class Fidelity:
    """How often a copy agrees with the model: `agreed` of `trials` inputs it never asked about."""

    agreed: int
    trials: int

    @property
    def value(self) -> float:
        return self.agreed / self.trials if self.trials else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval (Wilson)."""
        return wilson(self.agreed, self.trials)


@dataclass(frozen=True)
class Extraction:
    """What an attacker achieved.

    Attributes:
        queries: rows that were asked, repeats included.
        inputs: different rows that were asked.
        by_view: fidelity by the way in which the attacker looked at the answers.
    """

    queries: int
    inputs: int
    by_view: Mapping[str, Fidelity]

    @property
    def view(self) -> str:
        """The way that served the attacker best."""
        return max(self.by_view, key=lambda name: self.by_view[name].agreed)

    @property
    def fidelity(self) -> Fidelity:
        """Of the attacker's best way: an adaptive attacker's result."""
        return self.by_view[self.view]


def one_hot(scores: NDArray[Any]) -> Floats:
    """The arg-max of each row ``(n, classes)``, as a distribution. Ties go to the first."""
    out = np.zeros(scores.shape)
    out[np.arange(len(scores)), scores.argmax(axis=1)] = 1.0
    return out


def as_distribution(scores: NDArray[Any]) -> Floats:
    """Rows ``(n, classes)`` without negative entries, summing to one; uniform where nothing is left."""
    clipped = np.clip(np.asarray(scores, np.float64), 0.0, None)
    total = clipped.sum(axis=1, keepdims=True)
    return np.where(total > 0, clipped / np.where(total > 0, total, 1.0), 1.0 / scores.shape[1])


#: Ways to look at answers before learning from them.
VIEWS: Mapping[str, Callable[[NDArray[Any]], Floats]] = {"scores": as_distribution, "labels": one_hot}


def softmax(logits: NDArray[Any]) -> NDArray[Any]:
    """Of each row ``(n, classes)``."""
    grown = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(grown / grown.sum(axis=1, keepdims=True))


@dataclass(frozen=True)
class Student:
    """A multilayer perceptron with ReLU: weights and biases, layer by layer, in float32."""

    layers: tuple[tuple[NDArray[np.float32], NDArray[np.float32]], ...]

    def activations(self, features: NDArray[Any]) -> list[NDArray[Any]]:
        """What enters each layer, and the logits at the end."""
        out = [np.asarray(features, np.float32)]
        for i, (weight, bias) in enumerate(self.layers):
            pre = out[-1] @ weight + bias
            out.append(pre if i == len(self.layers) - 1 else np.maximum(pre, 0))
        return out

    def labels(self, features: NDArray[Any]) -> Labels:
        """The class the student gives to each row of features ``(n, d)``."""
        return np.asarray(self.activations(features)[-1].argmax(axis=1))


@dataclass(frozen=True)
class Training:
    """How a student is trained: Adam (Kingma & Ba 2015), cosine decay, soft-label cross-entropy.

    Attributes:
        hidden: widths of the hidden layers; empty for softmax regression.
        steps: minibatches.
        batch: rows a minibatch.
        rate: initial step size.
        decay: L2 penalty on weights.
    """

    hidden: tuple[int, ...] = (128,)
    steps: int = 800
    batch: int = 64
    rate: float = 5e-3
    decay: float = 1e-4


def train(
    features: NDArray[Any], targets: NDArray[Any], rng: np.random.Generator, training: Training | None = None
) -> Student:
    """A student of `targets` ``(n, classes)``, distributions, given `features` ``(n, d)``."""
    how = training or Training()
    x, t = np.asarray(features, np.float32), np.asarray(targets, np.float32)
    sizes = (x.shape[1], *how.hidden, t.shape[1])
    parameters: list[NDArray[np.float32]] = []
    for fan_in, fan_out in pairwise(sizes):
        parameters.append(rng.normal(0, math.sqrt(2 / fan_in), (fan_in, fan_out)).astype(np.float32))
        parameters.append(np.zeros(fan_out, np.float32))
    first, second = ([np.zeros_like(p) for p in parameters] for _ in range(2))
    batch = min(how.batch, len(x))
    order, start = rng.permutation(len(x)), 0
    for step in range(1, how.steps + 1):
        if start + batch > len(x):
            order, start = rng.permutation(len(x)), 0
        chosen = order[start : start + batch]
        start += batch
        rate = how.rate * 0.5 * (1 + math.cos(math.pi * step / how.steps))
        gradients = _gradients(Student(_paired(parameters)), x[chosen], t[chosen], how.decay)
        for p, g, m, v in zip(parameters, gradients, first, second, strict=True):
            m += 0.1 * (g - m)
            v += 0.001 * (g * g - v)
            p -= rate * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
    return Student(_paired(parameters))


def _paired(parameters: Sequence[NDArray[np.float32]]) -> tuple[tuple[NDArray[np.float32], NDArray[np.float32]], ...]:
    return tuple(zip(parameters[::2], parameters[1::2], strict=True))


def _gradients(student: Student, x: NDArray[Any], t: NDArray[Any], decay: float) -> list[NDArray[Any]]:
    """Of the mean cross-entropy, in the order weight, bias, weight, ..."""
    entered = student.activations(x)
    flow = (softmax(entered[-1]) - t) / len(x)
    gradients: list[NDArray[Any]] = []
    for i in range(len(student.layers) - 1, -1, -1):
        weight = student.layers[i][0]
        gradients = [entered[i].T @ flow + decay * weight, flow.sum(axis=0), *gradients]
        if i:
            flow = (flow @ weight.T) * (entered[i] > 0)
    return gradients


def _agreement(labels: Labels, truth: NDArray[Any]) -> Fidelity:
    return Fidelity(int((labels == truth).sum()), len(truth))


def _ask(query: Query, inputs: NDArray[Any], repeats: int) -> Floats:
    """The mean of `repeats` answers to each row."""
    total = np.asarray(query(inputs), np.float64)
    for _ in range(repeats - 1):
        total = total + query(inputs)
    return np.asarray(total / repeats)


def _spend(budget: int, repeats: int, available: int, judges: tuple[int, int]) -> int:
    if repeats < 1 or budget < repeats:
        raise ValueError(f"budget: {budget} queries do not pay for one input asked {repeats} times")
    if available < 1:
        raise ValueError("inputs: the attacker has nothing to ask")
    if judges[0] != judges[1]:
        raise ValueError(f"held_out: {judges[0]} rows of features, but {judges[1]} labels")
    return min(budget // repeats, available)


def extract(
    query: Query,
    inputs: NDArray[Any],
    features: NDArray[Any],
    held_out_features: NDArray[Any],
    held_out_labels: NDArray[Any],
    *,
    budget: int,
    rng: np.random.Generator,
    repeats: int = 1,
    views: Sequence[str] = tuple(VIEWS),
    training: Training | None = None,
) -> Extraction:
    """Ask about a random choice of `inputs`, train one student per view of the answers, compare with the model.

    Every view starts from the same weights and sees the same minibatches, so they differ by the answers alone.

    Args:
        query: the model as the attacker reaches it.
        inputs: ``(n, ...)``, what the attacker could ask.
        features: ``(n, d)``, what he computes from them himself.
        held_out_features: ``(m, d)`` of inputs to judge by.
        held_out_labels: ``(m,)``, the undefended model's arg-max for them.
        budget: rows he may ask, repeats included.
        rng: the choice, the initial weights and the minibatches.
        repeats: times each input is asked; answers are averaged.
        views: names from `VIEWS`.

    Raises ValueError if the budget does not pay for one input, or arrays do not fit together.
    """
    count = _spend(budget, repeats, len(inputs), (len(held_out_features), len(held_out_labels)))
    chosen = rng.permutation(len(inputs))[:count]
    answers = _ask(query, inputs[chosen], repeats)
    seed = int(rng.integers(2**63))
    by_view = {}
    for name in views:
        student = train(features[chosen], VIEWS[name](answers), np.random.default_rng(seed), training)
        by_view[name] = _agreement(student.labels(held_out_features), held_out_labels)
    return Extraction(count * repeats, count, by_view)


def solve(
    query: Query,
    inputs: NDArray[Any],
    held_out: NDArray[Any],
    held_out_labels: NDArray[Any],
    *,
    budget: int,
    rng: np.random.Generator,
    repeats: int = 1,
    training: Training | None = None,
) -> Extraction:
    """Recover a softmax regression: log-scores are linear in the input, so a few more answers than inputs determine it.

    Three ways are tried: least squares on the logarithms, and softmax regression trained on scores and on labels.

    Args:
        query: the model as the attacker reaches it.
        inputs: float ``(n, d)``, what he may ask.
        held_out: float ``(m, d)``, inputs to judge by, and `held_out_labels` ``(m,)`` the undefended model's arg-max.
        budget, rng, repeats: as for `extract`.

    Raises ValueError as `extract` does.
    """
    count = _spend(budget, repeats, len(inputs), (len(held_out), len(held_out_labels)))
    chosen = rng.permutation(len(inputs))[:count]
    x = np.asarray(inputs[chosen], np.float64)
    answers = _ask(query, inputs[chosen], repeats)
    # A score of zero was rounded down from something smaller than any that was seen.
    logs = np.log(np.clip(answers, 0.5 * answers[answers > 0].min(initial=1.0), None))
    known, judged = (np.c_[part, np.ones(len(part))] for part in (x, np.asarray(held_out, np.float64)))
    weights = np.linalg.lstsq(known, logs - logs.mean(axis=1, keepdims=True), rcond=None)[0]
    by_view = {"equations": _agreement((judged @ weights).argmax(axis=1), held_out_labels)}
    middle, spread = x.mean(axis=0), float(x.std()) or 1.0
    how = training or Training(hidden=(), rate=3e-2)
    seed = int(rng.integers(2**63))
    for name, view in VIEWS.items():
        student = train((x - middle) / spread, view(answers), np.random.default_rng(seed), how)
        by_view[name] = _agreement(student.labels((held_out - middle) / spread), held_out_labels)
    return Extraction(count * repeats, count, by_view)
