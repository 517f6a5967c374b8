"""Query entropy: who asks what no file would ask? Thresholds from ordinary clients, tried on others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hardening.types import Standing

#: Thresholds lie these factors beyond a quantile of the calibrating clients: for the mean entropy, which varies much
#: between ordinary clients, and for the distance between histograms, which varies less.
QUANTILE, MEAN_MARGIN, DISTANCE_MARGIN = 0.95, 3.0, 1.75


def shares(standing: Standing) -> NDArray[np.float64]:
    """The entropy histogram of a client as shares of its rows."""
    counts = np.asarray(standing.histogram, np.float64)
    return np.asarray(counts / max(1.0, counts.sum()))


@dataclass(frozen=True)
class Threshold:
    """What ordinary clients look like.

    Attributes:
        clients: how many were looked at.
        low, high: bounds of the mean posterior entropy, bits: quantiles of the calibrating clients, with their margin.
        usual: pooled entropy histogram, as shares.
        distance: bound of the total variation distance from `usual`, likewise.
    """

    clients: int
    low: float
    high: float
    usual: tuple[float, ...]
    distance: float


@dataclass(frozen=True)
class Watched:
    """One client against a threshold. `reasons` is empty for a client that is not flagged."""

    client: str
    queries: int
    entropy: float
    histogram: tuple[float, ...]
    distance: float
    reasons: tuple[str, ...]

    @property
    def flagged(self) -> bool:
        return bool(self.reasons)


def _distance(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    return float(np.abs(a - b).sum() / 2)


def calibrate(standings: Sequence[Standing]) -> Threshold:
    """The threshold that these ordinary clients suggest."""
    usual = np.mean([shares(s) for s in standings], axis=0)
    means = [s.posterior_entropy for s in standings]
    low, high = np.quantile(means, [1 - QUANTILE, QUANTILE])
    distance = np.quantile([_distance(shares(s), usual) for s in standings], QUANTILE)
    return Threshold(
        len(standings),
        float(low / MEAN_MARGIN),
        float(high * MEAN_MARGIN),
        tuple(usual.tolist()),
        float(distance * DISTANCE_MARGIN),
    )


def judge(client: str, standing: Standing, threshold: Threshold) -> Watched:
    """Compare what a client has asked with the threshold, on both sides of the mean and in the histogram."""
    own = shares(standing)
    distance = _distance(own, np.array(threshold.usual))
    entropy = standing.posterior_entropy
    reasons = {
        "mean low": entropy < threshold.low,
        "mean high": entropy > threshold.high,
        "histogram": distance > threshold.distance,
    }
    found = tuple(reason for reason, holds in reasons.items() if holds)
    return Watched(client, standing.queries, entropy, tuple(own.tolist()), distance, found)


def ordinary_files(kinds: Sequence[str], count: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """Indices of the files that one ordinary client sends: `count` draws among a random half of the `kinds` there are.

    Clients differ, as people do; a threshold calibrated on equal clients would be too narrow.
    """
    names = np.array(sorted(set(kinds)))
    own = rng.permutation(names)[: max(1, len(names) // 2)]
    available = np.flatnonzero(np.isin(np.asarray(kinds), own))
    return np.asarray(rng.choice(available, count, replace=len(available) < count))
