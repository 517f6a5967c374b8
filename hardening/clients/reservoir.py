"""Distances between a client's questions, in constant memory, to be looked at off the request path.

Honest questions are about normally far from the nearest earlier one of their class; questions made from each other
are not (Juuti et al. 2019, "PRADA"). PRADA keeps every question. Here a reservoir keeps few, projected to few
dimensions; natural questions pass, whoever asks them, so this is one statistic among others and no alarm by itself.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Questions kept, the dimensions they are projected to, distances kept, and how many a verdict takes.
POINTS, DIMENSIONS, DISTANCES, ENOUGH = 256, 16, 512, 100
#: Standard deviations beyond which a distance is left out of the test.
OUTLIERS = 3.0


def projection(secret: bytes, width: int) -> NDArray[np.float32]:
    """Secret signs ``(width, DIMENSIONS)`` that keep distances on average (Achlioptas 2003)."""
    stream = hashlib.shake_256(secret + b"reservoir").digest((width * DIMENSIONS + 7) // 8)
    bits = np.unpackbits(np.frombuffer(stream, np.uint8))[: width * DIMENSIONS].reshape(width, DIMENSIONS)
    return np.asarray((2.0 * bits - 1) / np.sqrt(DIMENSIONS), np.float32)


@dataclass(frozen=True)
class Reservoir:
    """What is kept of one client.

    Attributes:
        points: float32 ``(<= POINTS, DIMENSIONS)``, and labels, their classes.
        distances: the latest distances, at most `DISTANCES`, oldest first.
        limits: by class, the distance beyond which a question is news: PRADA's threshold, which only rises.
        offered: questions that were news, kept or not.
    """

    points: NDArray[np.float32]
    labels: NDArray[np.int64]
    distances: NDArray[np.float64]
    limits: tuple[tuple[int, float], ...] = ()
    offered: int = 0

    @classmethod
    def new(cls) -> Reservoir:
        return cls(np.zeros((0, DIMENSIONS), np.float32), np.zeros(0, np.int64), np.zeros(0))

    def after(self, point: NDArray[Any], label: int, draw: float) -> Reservoir:
        """After one more question, projected to `point` ``(DIMENSIONS,)``; `draw` is uniform on [0, 1)."""
        own = self.points[self.labels == label]
        if not len(own):
            return self._with(point, label, draw)
        distance = float(np.sqrt(((own - point) ** 2).sum(axis=1).min()))
        distances = np.append(self.distances, distance)[-DISTANCES:]
        limits = dict(self.limits)
        news = distance > limits.get(label, -1.0)
        limits[label] = max(limits.get(label, -1.0), float(distances.mean() - distances.std()))
        made = replace(self, distances=distances, limits=tuple(sorted(limits.items())))
        return made._with(point, label, draw) if news else made

    def _with(self, point: NDArray[Any], label: int, draw: float) -> Reservoir:
        """Every question offered is as likely to be among those kept (Vitter 1985, algorithm R)."""
        points, labels, offered = self.points, self.labels, self.offered + 1
        at = len(points) if len(points) < POINTS else int(draw * offered)
        if at == len(points) and at < POINTS:
            points, labels = np.append(points, [point], axis=0).astype(np.float32), np.append(labels, label)
        elif at < POINTS:
            points, labels = points.copy(), labels.copy()
            points[at], labels[at] = point, label
        return replace(self, points=points, labels=labels, offered=offered)

    def normality(self) -> float | None:
        """Shapiro & Wilk's W (1965) of the distances without outliers; None while there are fewer than `ENOUGH`."""
        return normality(self.distances)


def normality(distances: NDArray[Any]) -> float | None:
    """See `Reservoir.normality`. 0 where all distances are the same."""
    if len(distances) < ENOUGH:
        return None
    from scipy.stats import shapiro

    spread = distances.std()
    kept = distances[np.abs(distances - distances.mean()) <= OUTLIERS * spread]
    return float(shapiro(kept).statistic) if spread > 0 and np.ptp(kept) > 0 else 0.0
