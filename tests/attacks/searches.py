"""Searches for adversarial inputs, as generators: what they yield is a question, what they are sent its scores.

A search returns when it has what it looks for: a picture of another class, within `SIZE` of every entry of the original
(Square, NES) or within a distance of `NEAR` of it (HopSkipJump).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping
from typing import Any, NamedTuple

import numpy as np

SIZE, NEAR = 0.15, 1.0
Asked = Generator[np.ndarray, np.ndarray, np.ndarray]
Search = Callable[[np.random.Generator, np.ndarray, int], Asked]


def margin(p: np.ndarray, label: int) -> float:
    """How far the label is ahead, in logarithms; negative: it is not."""
    return float(np.log(p[label] + 1e-12) - np.log(np.delete(p, label).max() + 1e-12))


def square(rng: np.random.Generator, x: np.ndarray, label: int) -> Asked:
    """Stripes first, then squares of the largest change, kept when they help (Andriushchenko et al. 2020)."""
    width = len(x)
    best = np.clip(x + SIZE * rng.choice([-1.0, 1.0], width), 0, 1)
    least = margin((yield best), label)
    while least > 0:
        side = int(rng.integers(1, width // 3 + 2))
        r, c = rng.integers(0, width - side + 1, 2)
        new = best.copy()
        new[r : r + side, c : c + side] = x[r : r + side, c : c + side] + SIZE * rng.choice([-1.0, 1.0])
        new = np.clip(new, 0, 1)
        now = margin((yield new), label)
        if now < least:
            best, least = new, now
    return best


def nes(rng: np.random.Generator, x: np.ndarray, label: int, sigma: float = 0.01, blur: float = 0.0) -> Asked:
    """Gradients from fifty antithetic draws, steps along their sign (Ilyas et al. 2018).

    `blur`: what is added to draws besides, evenly drawn up to so much, to hide that they are alike.
    """
    now = x.copy()
    while margin((yield now), label) > 0:
        gradient = np.zeros_like(now)
        for _ in range(25):
            u = rng.normal(size=now.shape)
            for side in (sigma, -sigma):
                p = yield np.clip(now + side * u + (rng.uniform(-blur, blur, now.shape) if blur else 0), 0, 1)
                gradient += side * u * margin(p, label)
        now = np.clip(now - 0.01 * np.sign(gradient), np.maximum(x - SIZE, 0), np.minimum(x + SIZE, 1))
    return now


def hop_skip_jump(rng: np.random.Generator, x: np.ndarray, label: int) -> Asked:
    """From noise of another class to the boundary by bisection, along it by the signs of answers (Chen et al. 2020)."""
    far = rng.random(x.shape)
    while (yield far).argmax() == label:
        far = rng.random(x.shape)
    for step in range(1, 1000):
        near = x.copy()
        for _ in range(10):
            middle = (near + far) / 2
            other = (yield middle).argmax() != label
            near, far = (near, middle) if other else (middle, far)
        distance = float(np.linalg.norm(far - x))
        if distance < NEAR:
            break
        gradient, delta = np.zeros_like(x), 0.02 * distance
        for _ in range(int(100 * math.sqrt(step))):
            u = rng.normal(size=x.shape)
            u /= np.linalg.norm(u)
            p = yield np.clip(far + delta * u, 0, 1)
            gradient += u * (1 if p.argmax() != label else -1)
        gradient /= max(float(np.linalg.norm(gradient)), 1e-9)
        # As large a step as stays on the other side.
        stride = distance / math.sqrt(step)
        while stride > 1e-3 * distance:
            new = np.clip(far + stride * gradient, 0, 1)
            if (yield new).argmax() != label:
                far = new
                break
            stride /= 2
    return far


#: The searches, and the number of questions that they are usually given.
SEARCHES: Mapping[str, tuple[Search, int]] = {
    "Square": (square, 2000),
    "NES": (nes, 5000),
    "HopSkipJump": (hop_skip_jump, 5000),
}


class Run(NamedTuple):
    """What was asked, ``(n, side, side)``, and the adversarial picture, None if the questions ran out."""

    asked: np.ndarray
    found: np.ndarray | None


def run(search: Asked, ask: Any, questions: int) -> Run:
    """A search that may ask so much."""
    asked, found, question = list[np.ndarray](), None, next(search)
    try:
        while len(asked) < questions:
            asked.append(question)
            question = search.send(ask(question[None])[0])
        search.close()
    except StopIteration as end:
        found = end.value
    return Run(np.array(asked, np.float32), found)
