"""How far a client's last questions stand out, a hundred at a time, from such windows of ordinary clients.

The e-process of `evidence` holds for a client's whole life, and what ordinary clients do at their worst is inside its
null; it pays for both in delay. A window is looked at once, when `WINDOW` questions that were asked for the first time
have filled it, against windows of ordinary clients, and its level is a rate per window: an alarm that tells, not one
that acts.

The statistic is the largest of `LANES` numbers: how far the mean score of the window is above the average one, in
units of how far ordinary windows come. The graded rank of entropies among those of ordinary rows (`Lane.HIGH`) comes
close to the likelihood ratio against questions that are harder than ordinary ones, so nearly all false alarms that are
allowed are its own. The other lanes speak only beyond all that was ever seen, and most of them only well beyond.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hardening.kernels.layout import LANES, PARTS, WINDOW, Lane

#: The most windows of ordinary clients that may stand out, as a share, and the confidence of it.
LEVEL, CONFIDENCE = 1e-3, 0.99
#: How much further than the furthest ordinary window a lane has to be that does not go by entropies up or down, and the
#: least that any has to.
FURTHER, LEAST_REACH = 1.5, 0.05


def interval(found: float, of: float, confidence: float = 0.95) -> tuple[float, float]:
    """Clopper & Pearson's (1934) confidence interval of a share."""
    from scipy.special import betaincinv

    a = (1 - confidence) / 2
    low = float(betaincinv(found, of - found + 1, a)) if found else 0.0
    return low, float(betaincinv(found + 1, of - found, 1 - a)) if found < of else 1.0


def at_most(found: float, of: float) -> float:
    """What a share is below with `CONFIDENCE`, on one side."""
    return interval(found, of, 2 * CONFIDENCE - 1)[1]


@dataclass(frozen=True)
class Tried:
    """Windows of clients that took no part in setting the bounds.

    Attributes:
        clients: how many.
        windows: how many they filled.
        independent: as how many independent ones these count, for a client's windows are alike.
        beyond: how many stood out.
    """

    clients: int = 0
    windows: int = 0
    independent: float = 0.0
    beyond: int = 0

    def rate(self, confidence: float = 0.95) -> tuple[float, float]:
        """Confidence interval of the share of windows of ordinary clients that stand out."""
        if not self.windows:
            return 0.0, 1.0
        return interval(self.beyond * self.independent / self.windows, self.independent, confidence)


@dataclass(frozen=True)
class Window:
    """What windows of ordinary clients are like.

    Attributes:
        average: ``(LANES,)``, mean scores.
        reach: ``(LANES,)``, how far above these a window has to be to stand out.
        level: what the share of ordinary windows that stand out in `Lane.HIGH` is below, with `CONFIDENCE`: `LEVEL`, or
            as little as so many windows can show. What all lanes together come to, `tried` says.
        windows, independent: how many they were, and as how many independent ones they count.
        tried: how it did on others.
    """

    average: tuple[float, ...]
    reach: tuple[float, ...]
    level: float
    windows: int
    independent: float
    tried: Tried = Tried()


def windows(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean scores ``(n // WINDOW, LANES)`` of a client's windows, from those of its rows ``(n, LANES)``."""
    full = len(scores) // WINDOW
    parts = np.floor(scores[: full * WINDOW] * PARTS + 0.5) / PARTS
    return np.asarray(parts.reshape(full, WINDOW, LANES).mean(axis=1))


def statistic(window: Window, means: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far windows of mean scores ``(n, LANES)`` stand out: beyond 1 is an alarm. At least 0."""
    apart = (means - np.array(window.average)) / np.array(window.reach)
    return np.asarray(np.maximum(apart, 0.0).max(axis=1, initial=0.0))


def independent(each: Sequence[NDArray[np.float64]]) -> float:
    """As how many independent windows those of several clients count, ``(windows, LANES)`` each.

    Kish's (1965) design effect ``1 + (m - 1) rho`` with the correlation rho of two windows of one client in
    `Lane.HIGH`, by the analysis of variance; m is the mean number of windows of a window's client.
    """
    filled = [own[:, Lane.HIGH] for own in each if len(own)]
    counts = np.array([len(own) for own in filled], np.float64)
    n, clients = counts.sum(), len(counts)
    if n <= clients or clients < 2:
        return float(clients)
    means, whole = np.array([own.mean() for own in filled]), np.concatenate(filled).mean()
    between = (counts * (means - whole) ** 2).sum() / (clients - 1)
    within = sum(((own - own.mean()) ** 2).sum() for own in filled) / (n - clients)
    usual = (n - (counts**2).sum() / n) / (clients - 1)
    spread = between + (usual - 1) * within
    rho = min(max((between - within) / spread, 0.0), 1.0) if spread > 0 else 1.0
    return float(n / (1 + ((counts**2).sum() / n - 1) * rho))


def bounds(each: Sequence[NDArray[np.float64]]) -> Window | None:
    """The bounds that windows of these clients set, ``(windows, LANES)`` each; None if none of them filled one.

    `Lane.HIGH` reaches only so far that the share of windows beyond is still below `LEVEL` with `CONFIDENCE`; if there
    are too few windows for that, as far as the furthest of them, and `Window.level` says what that amounts to.
    `Lane.LOW` reaches as far as the furthest, other lanes `FURTHER`: how labels are batched has a longer tail than a
    log shows.
    """
    means = np.concatenate([np.zeros((0, LANES)), *each])
    if not len(means):
        return None
    average, effective = means.mean(axis=0), independent(each)
    above = np.sort(means - average, axis=0)[::-1]
    beyond = 0
    while at_most((beyond + 1) * effective / len(means), effective) <= LEVEL:
        beyond += 1
    reach = FURTHER * above[0]
    reach[[Lane.HIGH, Lane.LOW]] = above[beyond, Lane.HIGH], above[0, Lane.LOW]
    level = max(LEVEL, at_most(beyond * effective / len(means), effective))
    reach = np.maximum(reach, LEAST_REACH)
    return Window(tuple(average.tolist()), tuple(reach.tolist()), level, len(means), effective)


def try_on(window: Window, each: Sequence[NDArray[np.float64]]) -> Tried:
    """How `window` does on windows of other clients."""
    means = np.concatenate([np.zeros((0, LANES)), *each])
    beyond = int((statistic(window, means) > 1).sum())
    return Tried(sum(len(own) > 0 for own in each), len(means), independent(each), beyond)
