"""Entropies against known answers, and what no estimate may be."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardening.clients import code_length_bits, label_entropy_bits
from hardening.clients.entropy import (
    chao_shen_nats,
    coverage,
    grassberger_nats,
    miller_madow_nats,
    pearson_distance,
    plugin_nats,
    variation_distance,
)

FEW = [100, 10, 1, 0, 0]
#: Counts; nats by plug-in, Miller-Madow, Grassberger 2003, Chao-Shen; Krichevsky-Trofimov bits.
KNOWN: list[tuple[list[int], float, float, float, float, float]] = [
    ([4, 2, 1, 1], 1.2130075659799042, 1.4005075659799042, 1.5164710538079806, 1.5783733070193486, 18.169925001442312),
    ([10, 0, 0, 0], 0.0, 0.0, -0.0016552361476502853, 0.0, 5.964169927164985),
    ([5, 5, 5, 5], 1.3862943611198906, 1.4612943611198905, 1.5994284523488025, 1.390704580087795, 45.93301926725124),
    (FEW, 0.3532881334857612, 0.36229714249477024, 0.3645687094673855, 0.38377483828636305, 69.66835209163628),
    ([1] * 8, 2.0794415416798357, 2.5169415416798357, 3.349804387141314, 4.391693242921066, 30.6655302326331),
]
COUNTS = st.lists(st.integers(0, 10**6), min_size=1, max_size=40)


@pytest.mark.parametrize(("counts", "plain", "corrected", "grassberger", "chao_shen", "bits"), KNOWN)
def test_known_answers(
    counts: list[int], plain: float, corrected: float, grassberger: float, chao_shen: float, bits: float
) -> None:
    assert plugin_nats(counts) == pytest.approx(plain, abs=1e-12)
    assert miller_madow_nats(counts) == pytest.approx(corrected, abs=1e-12)
    assert grassberger_nats(counts) == pytest.approx(grassberger, rel=1e-9)
    assert chao_shen_nats(counts) == pytest.approx(chao_shen, rel=1e-9, abs=1e-12)
    assert code_length_bits(counts) == pytest.approx(bits, rel=1e-12)


def test_which_estimator_is_used() -> None:
    assert label_entropy_bits([4, 2, 1, 1]) == pytest.approx(1.5164710538079806 / math.log(2))
    few = [1, 1, 1, 0, 0, 0, 0, 0]
    assert label_entropy_bits(few) == pytest.approx(chao_shen_nats(few) / math.log(2))
    for nothing in ([0, 0], [1, 0], [10, 0]):
        assert label_entropy_bits(nothing) == 0.0


@pytest.mark.parametrize(("classes", "rows"), [(10, 30), (100, 100), (1000, 100)])
def test_corrections_help(classes: int, rows: int) -> None:
    """Dirichlet(1) sources: the shares' own entropy is off by more than what is reported."""
    rng = np.random.default_rng(0)
    off: dict[str, list[float]] = {"plain": [], "reported": []}
    for _ in range(60):
        p = rng.dirichlet(np.ones(classes))
        counts = rng.multinomial(rows, p)
        true = -(p * np.log2(np.maximum(p, 1e-300))).sum()
        off["plain"].append(plugin_nats(counts) / math.log(2) - true)
        off["reported"].append(label_entropy_bits(counts) - true)
    plain, reported = (float(np.sqrt(np.mean(np.square(v)))) for v in off.values())
    assert reported < 0.9 * plain


@given(COUNTS)
def test_bounds(counts: list[int]) -> None:
    n, k = sum(counts), len(counts)
    assert 0 <= plugin_nats(counts) <= math.log(max(1, sum(c > 0 for c in counts))) + 1e-9
    assert 0 <= label_entropy_bits(counts) < 64
    if n:
        redundancy = code_length_bits(counts) - n * plugin_nats(counts) / math.log(2)
        assert -1e-6 * n <= redundancy <= (k - 1) / 2 * math.log2(n) + math.log2(k) + 1e-6 * n + 1e-6


@given(COUNTS, st.randoms())
def test_order_does_not_matter(counts: list[int], shuffle: Any) -> None:
    other = list(counts)
    shuffle.shuffle(other)
    assert code_length_bits(other) == pytest.approx(code_length_bits(counts), rel=1e-9)
    assert label_entropy_bits(other) == pytest.approx(label_entropy_bits(counts), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("bad", [[-1, 2], [math.nan], [math.inf], [[1, 2]]])
def test_what_are_no_counts(bad: Any) -> None:
    with pytest.raises(ValueError, match="counts must be"):
        plugin_nats(bad)


def test_distances() -> None:
    assert pearson_distance([8, 1, 1, 0], [8, 1, 1, 0]) == pytest.approx(0, abs=1e-12)
    assert pearson_distance([8, 1, 1, 0], [2, 3, 3, 2]) == pytest.approx(1.46852, abs=1e-5)
    assert pearson_distance([1, 0], [0, 1]) == pytest.approx(2)
    assert pearson_distance([1, 1], [0, 1]) == 1.0
    assert variation_distance([2, 2], [1, 0]) == 0.5
    assert variation_distance([0, 0], [1, 0]) == 0.0


def test_coverage_of_a_uniform_fill() -> None:
    """The expected share of 4096 cells after n uniform visits is 1 - (1 - 1/4096)^n: .024, .217, .632, .913."""
    rng = np.random.default_rng(0)
    for visits, share in ((100, 0.024), (1000, 0.217), (4096, 0.632), (10_000, 0.913)):
        seen = np.zeros(4096, bool)
        seen[rng.integers(0, 4096, visits)] = True
        assert coverage(np.packbits(seen)) == pytest.approx(share, abs=0.012)
