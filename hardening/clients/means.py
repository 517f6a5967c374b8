"""What the mean scores of nearly every ordinary client stay below: the null that evidence is gathered against."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardening.kernels.layout import LANES, OCTAVES, Lane

#: Lanes whose means depend on how much a client has asked, and the first octave in which they are bet on: whoever sends
#: one class after another has no usual labels before it has sent some.
SETTLED = {Lane.COLLAPSE: 7, Lane.DIVERSE: 7, Lane.NOVEL: 3}
#: Standard deviations by which a client's past may differ from what it is like.
WANDER = 2.0
#: No mean is taken to be smaller.
LEAST_MEAN = 0.01
#: Rows over which an ordinary client's labels may be as far from its usual ones as they ever get.
BURST = 32
#: No client's scores are taken to vary less, as a share of what a coin would.
LEAST_DISPERSION = 0.05
#: Fewest clients that a baseline is made of, on either side of the split.
LEAST_CLIENTS = 20


def settle(scored: list[NDArray[np.float64]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What each client's mean score seems to be once its own rows' sampling noise is taken out of the spread.

    Means are drawn together until they vary as much as they would if each client had asked for ever (Louis 1984,
    "constrained" shrinkage), those of few rows more than those of many.

    Returns:
        float64 ``(clients, LANES)``, and the standard deviations ``(LANES,)``.
    """
    own = np.array([s.mean(axis=0) for s in scored])
    varies = np.mean([s.var(axis=0) for s in scored], axis=0)
    noise = varies / np.array([len(s) for s in scored])[:, None]
    true = np.maximum(own.var(axis=0, ddof=1) - noise.mean(axis=0), 0)
    average, whole = own.mean(axis=0), true + noise
    return average + (own - average) * np.sqrt(true / np.where(whole > 0, whole, 1)), np.sqrt(true)


def upper(scored: list[NDArray[np.float64]], quantile: float) -> NDArray[np.float64]:
    """What nearly all clients' means are below, ``(LANES,)``: their quantile and one standard error more."""
    settled, _ = settle(scored)
    high = np.clip(np.quantile(settled, quantile, axis=0, method="higher"), LEAST_MEAN, 1)
    varies = high * (1 - high) * dispersion(scored)
    return np.asarray(np.minimum(high + np.sqrt(varies / np.median([len(s) for s in scored])), 1.0))


def dispersion(scored: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Variance of clients' scores as a share of what coins with their means would have, ``(LANES,)``.

    1, the most there can be, where ordinary scores are too rare to tell: to bet more than on a coin would be ruin.
    """
    average = np.mean([s.mean(axis=0) for s in scored], axis=0)
    coin, varies = average * (1 - average), np.mean([s.var(axis=0) for s in scored], axis=0)
    known = coin > LEAST_MEAN
    return np.asarray(np.clip(np.where(known, varies / np.where(known, coin, 1.0), 1.0), LEAST_DISPERSION, 1.0))


def _longest(part: NDArray[np.float64]) -> NDArray[np.float64]:
    """The largest mean score that a client's rows have had over `BURST` of them, by lane."""
    sums = np.cumsum(np.concatenate([np.zeros((1, LANES)), part]), axis=0)
    n = min(BURST, len(part))
    return np.asarray(((sums[n:] - sums[:-n]) / n).max(axis=0))


def wandering(concentration: Any, rows: Any) -> Any:
    """How far above a client's concentration the mean of its next `Lane.COLLAPSE` may be, given what it asked before.

    A client with label shares p has concentration ``C = sum p^2``, but the mean of its next score is ``sum p q`` with
    the shares q among its earlier `rows`: C on average, with variance ``(sum p^3 - C^2) / rows``, at most
    ``(C^1.5 - C^2) / rows``. This is `WANDER` standard deviations. The same holds for `Lane.DIVERSE` below 1 - C.
    """
    c = np.clip(concentration, 0, 1)
    return WANDER * np.sqrt((c**1.5 - c**2) / rows)


def means(scored: list[NDArray[np.float64]], quantile: float) -> NDArray[np.float64]:
    """What nearly all clients' mean scores stay below, ``(OCTAVES, LANES)``; of labels also in a burst."""
    whole = upper(scored, quantile)
    out, rows = np.tile(whole, (OCTAVES, 1)), 2.0 ** np.arange(OCTAVES)
    same, other = whole[Lane.COLLAPSE], whole[Lane.DIVERSE]
    out[:, Lane.COLLAPSE] = np.minimum(same + wandering(same, rows), 1)
    out[:, Lane.DIVERSE] = np.minimum(other + wandering(1 - other, rows), 1)
    for o in range(OCTAVES):
        part = [s[2**o - 1 : 2 ** (o + 1) - 1] for s in scored]
        part = [p for p in part if len(p) >= 2 ** (o - 1)]
        enough = len(part) >= LEAST_CLIENTS
        out[o, Lane.NOVEL] = upper(part, quantile)[Lane.NOVEL] if enough else out[o - 1, Lane.NOVEL]
        burst = np.quantile([_longest(p) for p in part], quantile, axis=0, method="higher") if enough else out[o - 1]
        for lane in (Lane.COLLAPSE, Lane.DIVERSE):
            out[o, lane] = max(out[o, lane], burst[lane])
    for lane, first in SETTLED.items():
        out[:first, lane] = 1.0
    return out
