"""How much a client's questions have told it, as five numbers, from counts.

Released bits and posterior entropy are sums of what the kernels write down for each row. Here are the entropy of
labels, their code length, coverage, and how far histograms are apart: plain functions of counts, so that whatever order
they were counted in, and wherever, sums of counts give the same.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

LN2 = math.log(2)


def _positive(counts: Any) -> NDArray[np.float64]:
    c = np.asarray(counts, np.float64)
    if c.ndim != 1 or (c < 0).any() or not np.isfinite(c).all():
        raise ValueError("counts must be a vector of finite numbers that are not negative")
    return np.asarray(c[c > 0])


def plugin_nats(counts: Any) -> float:
    """Entropy of the shares themselves, in nats; too low by about (classes - 1) / 2n."""
    c = _positive(counts)
    return float(-(c / c.sum() * np.log(c / c.sum())).sum()) if c.size else 0.0


def miller_madow_nats(counts: Any) -> float:
    """`plugin_nats` with its first-order bias added back (Miller 1955)."""
    c = _positive(counts)
    return plugin_nats(c) + (c.size - 1) / (2 * c.sum()) if c.size else 0.0


def grassberger_nats(counts: Any) -> float:
    """Grassberger's estimator (2003, "Entropy estimates from insufficient samplings"), in nats.

    ``ln N - sum n G(n) / N`` with ``G(n) = psi(n) + (-1)^n (psi((n+1)/2) - psi(n/2)) / 2``. It can be a little below 0.
    """
    from scipy.special import digamma  # not at the top: it is half of what importing this library would cost

    c = _positive(counts)
    if not c.size:
        return 0.0
    sign = np.where(c % 2 == 0, 1.0, -1.0)
    g = digamma(c) + 0.5 * sign * (digamma((c + 1) / 2) - digamma(c / 2))
    return float(math.log(c.sum()) - (c * g).sum() / c.sum())


def chao_shen_nats(counts: Any) -> float:
    """Chao & Shen's estimator (2003), in nats: for fewer rows than classes, some of which were therefore not seen.

    Shares are scaled by the coverage ``1 - f1/n`` (f1 classes seen once) and weighted by the chance of being seen.
    """
    c = _positive(counts)
    if not c.size:
        return 0.0
    n, once = c.sum(), int((c == 1).sum())
    p = (1 - (n - 1 if once == n else once) / n) * c / n
    if not p.any():  # one row alone says nothing about the rest
        return 0.0
    return float(-(p * np.log(p) / -np.expm1(n * np.log1p(-p))).sum()) if (p < 1).all() else 0.0


def label_entropy_bits(counts: Any) -> float:
    """Entropy of the distribution behind `counts` of each class, in bits; at least 0.

    By Grassberger's estimator, or by Chao & Shen's where there are fewer rows than classes.
    """
    c = np.asarray(counts, np.float64)
    nats = grassberger_nats(c) if c.sum() >= len(c) else chao_shen_nats(c)
    return max(0.0, nats / LN2)


def code_length_bits(counts: Any) -> float:
    """Krichevsky & Trofimov's (1981) code length of any sequence with these symbol counts, in bits."""
    from scipy.special import gammaln

    c = np.asarray(counts, np.float64)
    n, k = c.sum(), len(c)
    if n == 0:
        return 0.0
    nats = gammaln(n + k / 2) - gammaln(k / 2) - (gammaln(c + 0.5) - gammaln(0.5)).sum()
    return float(nats / LN2)


def coverage(cells: NDArray[np.uint8]) -> float:
    """Share of the bits of a bitmap that are set."""
    return float(np.bitwise_count(cells).sum()) / (8 * cells.size)


def pearson_distance(counts: Any, usual: Any) -> float:
    """One less the correlation of two histograms, in [0, 2] (the distance of HODA, Sadeghzadeh et al. 2022).

    1 where one of them is flat, for it then says nothing about the other.
    """
    a, b = (np.asarray(h, np.float64) - np.mean(h) for h in (counts, usual))
    size = math.sqrt(float((a * a).sum() * (b * b).sum()))
    return 1.0 - float((a * b).sum()) / size if size > 0 else 1.0


def variation_distance(counts: Any, usual: Any) -> float:
    """Total variation distance between the shares of two histograms, in [0, 1]; 0 where one of them is empty."""
    a, b = (np.asarray(h, np.float64) for h in (counts, usual))
    if not a.sum() or not b.sum():
        return 0.0
    return float(np.abs(a / a.sum() - b / b.sum()).sum() / 2)
