"""Searches for adversarial inputs are seen within their first hundredth; run with -s to read the figures.

Three searches as published, against a perceptron that reads digits: Square (Andriushchenko et al. 2020, from scores),
NES (Ilyas et al. 2018, from scores) and HopSkipJump (Chen et al. 2020, from labels).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import pytest

from hardening.audit.extraction import wilson
from hardening.clients import Baseline, Clients
from hardening.clients.baseline import calibrate, interval
from hardening.clients.fingerprints import Fingerprints
from tests.clients import crowd

ALPHA = 1e-3
Search = Callable[[np.random.Generator, np.ndarray, int], Iterator[np.ndarray]]
#: What a search goes by, of a row and its label: how far the label is ahead.
Loss = Callable[[np.ndarray, int], float]


def loss(x: np.ndarray, label: int) -> float:
    p = crowd.digits().scores(x[None])[0]
    return float(np.log(p[label] + 1e-12) - np.log(np.delete(p, label).max() + 1e-12))


def square(
    rng: np.random.Generator, x: np.ndarray, label: int, size: float = 0.3, loss: Loss = loss
) -> Iterator[np.ndarray]:
    """Stripes first, then squares of the largest change, kept when they help."""
    best = np.clip(x + size * np.repeat(rng.choice([-1.0, 1.0], 8)[None], 8, 0).ravel(), 0, 1)
    yield best
    least = loss(best, label)
    while True:
        side = int(rng.integers(1, 4))
        r, c = rng.integers(0, 8 - side + 1, 2)
        new = best.reshape(8, 8).copy()
        new[r : r + side, c : c + side] = x.reshape(8, 8)[r : r + side, c : c + side] + size * rng.choice([-1.0, 1.0])
        new = np.clip(new, 0, 1).ravel()
        yield new
        if (now := loss(new, label)) < least:
            best, least = new, now


def nes(
    rng: np.random.Generator, x: np.ndarray, label: int, sigma: float = 0.01, loss: Loss = loss
) -> Iterator[np.ndarray]:
    """Gradients from fifty antithetic draws, steps along their sign."""
    now = x.copy()
    while True:
        gradient = np.zeros_like(now)
        for _ in range(25):
            u = rng.normal(size=now.shape)
            for side in (sigma, -sigma):
                asked = np.clip(now + side * u, 0, 1)
                yield asked
                gradient += side * u * loss(asked, label)
        now = np.clip(now - 0.01 * np.sign(gradient), 0, 1)


def hop_skip_jump(rng: np.random.Generator, x: np.ndarray, label: int) -> Iterator[np.ndarray]:
    """From noise of another class to the boundary by bisection, along it by the signs of answers around it."""

    def other(z: np.ndarray) -> bool:
        return int(crowd.digits().scores(z[None])[0].argmax()) != label

    far = rng.random(64)
    yield far
    while not other(far):
        far = rng.random(64)
        yield far
    for step in range(1, 1000):
        near = x.copy()
        for _ in range(10):
            middle = (near + far) / 2
            yield middle
            near, far = (near, middle) if other(middle) else (middle, far)
        gradient, delta = np.zeros(64), 0.02 * float(np.linalg.norm(far - x))
        for _ in range(int(100 * math.sqrt(step))):
            u = rng.normal(size=64)
            u /= np.linalg.norm(u)
            asked = np.clip(far + delta * u, 0, 1)
            yield asked
            gradient += u * (1 if other(asked) else -1)
        gradient /= max(float(np.linalg.norm(gradient)), 1e-9)
        far = np.clip(far + gradient * float(np.linalg.norm(far - x)) / math.sqrt(step), 0, 1)
        yield far


#: The searches, and the number of questions that they are usually given.
SEARCHES: Mapping[str, tuple[Search, int]] = {
    "Square": (square, 2000),
    "NES": (nes, 5000),
    "HopSkipJump": (hop_skip_jump, 5000),
}


def honest_rows(rng: np.random.Generator, count: int) -> np.ndarray:
    """Digits that nobody changed: some are asked by many clients."""
    x = crowd.digits().x[900:]
    return x[rng.choice(len(x), count, replace=False)]


@functools.cache
def watched() -> tuple[Fingerprints, Baseline]:
    """An index that has seen ordinary traffic, and a baseline with what it found in it."""
    rng, index, logs = np.random.default_rng(1), Fingerprints(b"secret", 1.0, window=8), {}
    for i in range(300):
        x = honest_rows(rng, 150)
        logs[f"client-{i}"] = crowd.as_log(crowd.digits().summed_up(x), index.seen(x, i).duplicate > 0)
    return index, calibrate(logs, "p")


def flagged_after(x: np.ndarray, slot: int = 0) -> int:
    """Questions until somebody asking `x` is flagged; one more than there are if never."""
    index, baseline = watched()
    clients, asked = Clients(1), crowd.digits().summed_up(x)
    nearly = index.seen(x, slot).duplicate
    for t in range(len(x)):
        crowd.fold(clients, baseline, np.zeros(1), asked.take(slice(t, t + 1)), nearly[t : t + 1])
        clients.slot("it")
        if clients.standing("it", "t", ALPHA).suspicion >= 1:
            return t + 1
    return len(x) + 1


@pytest.mark.parametrize("name", SEARCHES)
def test_searches_are_seen_in_their_first_hundredth(name: str) -> None:
    search, budget = SEARCHES[name]
    x, labels = crowd.digits().x[900:], crowd.digits().y[900:]
    delays = []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        target = int(rng.integers(len(x)))
        run = search(rng, x[target].astype(np.float64), int(labels[target]))
        asked = np.array([next(run) for _ in range(budget // 100)], np.float32)
        delays.append(flagged_after(asked, 1000 + seed))
    seen = sum(d <= budget // 100 for d in delays)
    low, high = wilson(seen, len(delays))
    print(
        f"\n  {name}: {seen} of {len(delays)} within {budget // 100} questions [{low:.3f}, {high:.3f}], "
        f"median {np.median(delays):.0f}"
    )
    assert seen == len(delays)


def test_ordinary_users_are_not_taken_for_searchers() -> None:
    rng = np.random.default_rng(9)
    flagged = sum(flagged_after(honest_rows(rng, 60), 5000 + i) <= 60 for i in range(300))
    low, high = interval(flagged, 300)
    print(f"\n  flagged {flagged} of 300 ordinary users [{low:.4f}, {high:.4f}]")
    assert flagged == 0


@pytest.mark.deep
def test_ordinary_users_are_hardly_ever_taken_for_searchers() -> None:
    rng = np.random.default_rng(10)
    flagged = sum(flagged_after(honest_rows(rng, 60), 5000 + i) <= 60 for i in range(5000))
    low, high = interval(flagged, 5000)
    print(f"\n  flagged {flagged} of 5000 ordinary users [{low:.5f}, {high:.5f}]")
    assert flagged <= 5000 * ALPHA
