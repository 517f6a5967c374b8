"""The arithmetic that kernels are made of, lane by lane, against numpy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit
from numpy.typing import NDArray

from hardening.kernels import blocks, lanes, memory, order, summary

Numbers = NDArray[np.float64]


@njit
def divided(x: Numbers, y: Numbers, out: Numbers) -> None:
    for i in range(len(x) // 8):
        divisor = memory.load(y, i)
        memory.store(out, i, blocks.quotient(memory.load(x, i), divisor, 1.0 / divisor))


@njit
def raised(x: Numbers, out: Numbers) -> None:
    for i in range(len(x) // 8):
        memory.store(out, i, lanes.next_up(memory.load(x, i)))


@njit
def middles(x: Numbers, y: Numbers, out: Numbers) -> None:
    for i in range(len(x) // 8):
        memory.store(out, i, lanes.halfway(memory.load(x, i), memory.load(y, i)))


@njit
def logarithms(x: Numbers, logs: Numbers, powers: Numbers) -> None:
    for i in range(len(x) // 8):
        v = memory.load(x, i)
        memory.store(logs, i, summary.log2(v))
        memory.store(powers, i, summary.exp2(summary.log2(v)))


@njit
def separated(w: Numbers, n: int, r: float, low: float, high: float) -> Any:
    b = blocks.block(w, np.empty_like(w), np.empty_like(w), n, True)
    return lanes.lane(order.separator(b, w, lanes.fill(r), lanes.fill(low), lanes.fill(high)), 0)


def test_quotients_are_correctly_rounded() -> None:
    rng = np.random.default_rng(0)
    for divisors in (rng.integers(1, 10**9, 1 << 16).astype(float), rng.uniform(0.5, 2.0, 1 << 16)):
        for scores in (rng.integers(0, 10**9, 1 << 16).astype(float), rng.random(1 << 16), rng.random(1 << 16) * 1e-30):
            out = np.empty(1 << 16)
            divided(scores, divisors, out)
            assert np.array_equal(out, scores / divisors)


floats = st.floats(-1e308, 1e308)


@settings(max_examples=200)
@given(st.lists(floats, min_size=8, max_size=8), st.lists(floats, min_size=8, max_size=8))
def test_steps_and_middles(first: list[float], second: list[float]) -> None:
    x, out = np.array(first), np.empty(8)
    raised(x, out)
    assert np.array_equal(out, np.nextafter(x, math.inf))
    low, high = np.minimum(first, second), np.maximum(first, second)
    middles(low, high, out)
    assert ((low <= out) & (out <= high)).all()
    apart = np.nextafter(low, math.inf) < high
    assert ((low < out) & (out < high))[apart].all(), "bisection must end"


def test_logarithms_are_as_good_as_they_say() -> None:
    x = np.exp(np.random.default_rng(1).uniform(-200, 200, 1 << 14))
    logs, powers = np.empty_like(x), np.empty_like(x)
    logarithms(x, logs, powers)
    assert np.abs(logs - np.log2(x)).max() < 1e-5
    assert np.abs(powers / x - 1).max() < 2e-5


@pytest.mark.parametrize("kind", ["uniform", "ties", "tiny", "two", "neighbours"])
def test_a_separator_separates(kind: str) -> None:
    rng = np.random.default_rng(2)
    n = 203
    w = np.zeros(208)
    w[:n] = {
        "uniform": rng.random(n),
        "ties": rng.integers(0, 4, n) / 4.0,
        "tiny": rng.random(n) * 5e-324 * 100,
        "two": np.where(rng.random(n) < 0.5, 1e-300, 1.0),
        "neighbours": 0.5 + rng.integers(0, 50, n) * 2.0**-53,
    }[kind]
    for r in (1, 2, 17, 100, n - 1):
        t = separated(w, n, float(r), -1e-9, 1.0)
        assert (w[:n] > t).sum() <= r <= (w[:n] >= t).sum()
