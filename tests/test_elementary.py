"""Functions for what is released: against the same in Python, and by the same steps in numpy bit for bit."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit
from numpy.typing import NDArray

from hardening.kernels import elementary, memory

Numbers = NDArray[np.float64]
EPSILON = 2.0**-50


@njit
def evaluated(x: Numbers, exponent: float, logs: Numbers, powers: Numbers, roots: Numbers, raised: Numbers) -> None:
    for i in range(len(x) // 8):
        v = memory.load(x, i)
        logs_here = elementary.log2(v)
        memory.store(logs, i, logs_here)
        memory.store(powers, i, elementary.exp2(logs_here))
        memory.store(roots, i, elementary.sqrt(v))
        memory.store(raised, i, elementary.power(v, exponent))


def of(x: Any, exponent: float = 1.0) -> tuple[Numbers, Numbers, Numbers, Numbers]:
    x = np.asarray(x, np.float64)
    out = tuple(np.empty(len(x)) for _ in range(4))
    evaluated(x, exponent, *out)
    return out  # type: ignore[return-value]


@settings(max_examples=200)
@given(st.lists(st.floats(2.0**-900, 2.0**900), min_size=8, max_size=8), st.floats(1e-3, 1.0))
def test_they_are_accurate(numbers: list[float], exponent: float) -> None:
    logs, powers, roots, raised = of(numbers, exponent)
    for x, log, back, root, power in zip(numbers, logs, powers, roots, raised, strict=True):
        assert abs(log - math.log2(x)) <= EPSILON * max(1.0, abs(math.log2(x)))
        assert abs(back / x - 1) <= EPSILON * max(2.0, abs(math.log2(x)))
        assert root == math.sqrt(x)
        assert abs(power / x**exponent - 1) <= EPSILON * max(2.0, abs(math.log2(x)))


def test_powers_of_two_are_exact() -> None:
    exponents = np.arange(-1000, 1000)
    logs, powers, _, _ = of(np.exp2(exponents))
    assert np.array_equal(logs, exponents)
    assert np.array_equal(powers, np.exp2(exponents))


def test_they_are_made_of_nothing_but_ieee_operations() -> None:
    """numpy's additions, multiplications and divisions, in the same order, give the same bits."""
    x = np.random.default_rng(0).random(1 << 12) ** 4 + 1e-12
    logs, powers, _, _ = of(x)
    mantissa, exponent = np.frexp(x)
    low = mantissa < math.sqrt(0.5)
    mantissa, exponent = np.where(low, 2 * mantissa, mantissa), exponent - low
    s = (mantissa - 1.0) / (mantissa + 1.0)
    total = np.full(len(x), elementary._L[-1])
    for coefficient in elementary._L[-2::-1]:
        total = total * (s * s) + coefficient
    assert np.array_equal(logs, exponent + s * total)
    whole = np.rint(logs)
    total = np.full(len(x), elementary._E[-1])
    for coefficient in elementary._E[-2::-1]:
        total = total * (logs - whole) + coefficient
    assert np.array_equal(powers, np.ldexp(total, whole.astype(int)))


def test_powers_of_zero_and_of_denormal_numbers() -> None:
    x = [0.0, 5e-324, 1e-310, 2.0**-1022, 1e-300, 1e-200, 1.0, 2.0]
    for exponent in (1e-3, 0.1, 0.5, 3.0):
        *_, raised = of(x, exponent)
        expected = [max(v**exponent, 2.0**-1000) if v else 0.0 for v in x]
        np.testing.assert_allclose(raised, expected, rtol=1e-12)
