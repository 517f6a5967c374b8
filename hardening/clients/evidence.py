"""What speaks against a client, as a bet that only somebody outside the ordinary can lose to us.

Each row that a client asks for the first time gets eight scores in [0, 1], one for each `Lane`. Of an ordinary client
the mean of every lane stays below what the baseline says. Somebody bets that it does not: with wealth M, the row's
scores s and the baseline's means mu, M is multiplied by ``1 + sum w b (s - mu)``, where weights w and bets b >= 0 are
chosen before the row is seen. For a client inside the null - ``E[s | past] <= mu`` in every lane - M is a
non-negative supermartingale that starts at 1, so the chance that it ever reaches 1/alpha is at most alpha (Ville 1939;
Waudby-Smith & Ramdas 2024). Nothing is assumed about how rows depend on each other.

The bet of a lane is Kelly's to first order, ``(m - mu) / v`` with the client's own recent mean m and the variance v of
an ordinary client's scores, capped; for a coin that is ``v = mu (1 - mu)``, and scores that vary less than coins bear
larger bets. Lanes share the stake by what they expect to gain. Nearly all thieves ask harder questions than ordinary
clients do, so the first bets are on that, before anything is known of the client.

A bettor that lost most of its wealth on an innocent year could not see the attack that follows. The stake is therefore
divided beforehand: bettor j = 0, 1, ... owns ``1 / ((j+1) (j+2))`` of it and starts when the one before is ruined.
What those who have not started own, ``1 / (j+2)``, is still there and counts: somebody new has lost nothing.

Repeats are no evidence: a client that polls one hard question says nothing by asking again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardening.kernels.layout import (
    CLOSE,
    EASY,
    EXPECTED,
    EXTREME,
    HARD,
    LABEL_BINS,
    LANES,
    MEMORY,
    NO_PRIOR,
    OCTAVES,
    PRIOR,
    RUIN,
    THRESHOLDS,
    Lane,
)

#: The most of its wealth that a bettor can lose on one row.
CAUTION = 0.75


def octave(rows: NDArray[Any]) -> NDArray[np.intp]:
    """Which set of the baseline's means holds after so many rows: the power of two that ``rows + 1`` reaches."""
    exponent = np.frexp(np.asarray(rows, np.float64) + 1)[1] - 1
    return np.asarray(np.minimum(exponent, OCTAVES - 1), np.intp)


def scores(numbers: NDArray[np.float64], rows: Rows) -> NDArray[np.float64]:
    """Scores float64 ``(n, LANES)`` of rows under the baseline's `numbers` (see `Job.BASELINE`)."""
    edges = numbers[:THRESHOLDS].reshape(LABEL_BINS, -1)[rows.label % LABEL_BINS]
    above, out = rows.entropy[:, None] > edges, np.zeros((len(rows.entropy), LANES))
    out[:, Lane.LOW], out[:, Lane.HIGH] = rows.entropy < edges[:, EASY], above[:, HARD].sum(axis=1) / len(HARD)
    out[:, Lane.TAIL], out[:, Lane.BOUNDARY] = above[:, EXTREME], rows.margin < edges[:, CLOSE]
    out[:, Lane.COLLAPSE], out[:, Lane.DIVERSE] = rows.same, 1 - rows.same
    out[:, Lane.NOVEL], out[:, Lane.DUPLICATE] = rows.new, rows.duplicate
    return out


@dataclass(frozen=True)
class Rows:
    """Rows asked for the first time; arrays of one length.

    Attributes:
        entropy, margin: of the clean rows.
        label: of the released rows.
        same: share of the client's earlier rows with the row's label, 0 if there are none.
        new: whether the client had never visited the row's cell.
        duplicate: whether nearly the same question was asked before.
    """

    entropy: NDArray[np.float64]
    margin: NDArray[np.float64]
    label: NDArray[np.int64]
    same: NDArray[np.float64]
    new: NDArray[np.bool_]
    duplicate: NDArray[np.bool_]


@dataclass(frozen=True)
class Bettors:
    """The bettors of several clients, or of one; arrays with a client along the first axis.

    Attributes:
        firsts: rows seen, uint32. restarts: bettors ruined so far, uint32.
        wealth: logarithm of the present bettor's wealth, as a factor of what it started with.
        excess: float32 ``(clients, LANES)``, recent mean of the scores above the baseline's means, shrunk towards what
            is expected of a client.
    """

    firsts: NDArray[np.int64]
    restarts: NDArray[np.int64]
    wealth: NDArray[np.float64]
    excess: NDArray[np.float32]

    @classmethod
    def new(cls, clients: int) -> Bettors:
        zeros = np.zeros(clients, np.int64)
        return cls(zeros, zeros.copy(), np.zeros(clients), np.zeros((clients, LANES), np.float32))

    def first(self, clients: int) -> Bettors:
        """The bettors of the first `clients`."""
        return Bettors(self.firsts[:clients], self.restarts[:clients], self.wealth[:clients], self.excess[:clients])

    def after(self, numbers: NDArray[np.float64], row: NDArray[np.float64]) -> Bettors:
        """After one more row of each client, with scores ``(clients, LANES)``."""
        sets = numbers[THRESHOLDS:EXPECTED].reshape(OCTAVES, 3, LANES)[octave(self.firsts)]
        mean, sharp, most = sets[:, 0], sets[:, 1], sets[:, 2]
        s = np.where(mean < 1, row, mean)
        expected = numbers[EXPECTED : EXPECTED + LANES]
        excess = np.where((self.firsts == 0)[:, None], expected, self.excess.astype(float))
        hope = np.maximum(excess, 0)
        bet = np.minimum(hope * sharp, most)
        gain = bet * hope
        whole = gain.sum(axis=1)
        share = gain / np.where(whole > 0, whole, 1)[:, None]
        wealth = self.wealth + np.log1p((share * bet * (s - mean)).sum(axis=1))
        ruined = wealth < RUIN
        rate = 1 / (np.minimum(self.firsts, MEMORY)[:, None] + np.where(expected > 0, PRIOR, NO_PRIOR))
        return Bettors(
            self.firsts + 1,
            self.restarts + ruined,
            np.where(ruined, 0.0, wealth),
            (excess + (s - mean - excess) * rate).astype(np.float32),
        )


def log_evidence(wealth: Any, restarts: Any) -> NDArray[np.float64]:
    """Logarithm of an e-process: the present bettor's wealth times what it owns of the stake, and what is unstaked."""
    j = np.asarray(restarts, np.float64)
    return np.asarray(np.logaddexp(np.asarray(wealth, np.float64) - np.log((j + 1) * (j + 2)), -np.log(j + 2)))


def log_wealth(evidence: Any, restarts: Any) -> NDArray[np.float64]:
    """The wealth, as a logarithm, with which bettor number `restarts` makes `log_evidence` what `evidence` is.

    What is not staked is no less than ``1 / (restarts + 2)``: evidence below that is raised to a little above it.
    """
    j = np.asarray(restarts, np.float64)
    above = np.maximum(np.asarray(evidence, np.float64) + np.log(j + 2), 2.0**-40)
    return np.asarray(np.log(j + 1) + above + np.log(-np.expm1(-above)))


def suspicion(evidence: Any, false_alarm: float) -> NDArray[np.float64]:
    """Evidence (a logarithm) in units of the alarm threshold: an honest client inside the calibrated null ever reaches
    s with probability at most ``false_alarm ** s``. At least 0."""
    if not 0 < false_alarm < 1:
        raise ValueError(f"false_alarm must be between 0 and 1, not {false_alarm!r}")
    return np.maximum(np.asarray(evidence, np.float64), 0.0) / math.log(1 / false_alarm)


def chance(at: float, false_alarm: float) -> float:
    """The most that the chance of ever reaching suspicion `at` can be, for an honest client inside the null."""
    return float(min(1.0, false_alarm**at))


def e_benjamini_hochberg(evidence: NDArray[np.float64], level: float) -> NDArray[np.bool_]:
    """Which of many clients to list, so that the expected share of honest ones among them is at most `level`.

    e-BH (Wang & Ramdas 2022), valid however clients depend on each other: the k with the most evidence, for the largest
    k with ``k e_(k) >= n / level``. `evidence` holds logarithms.
    """
    order = np.argsort(-evidence, kind="stable")
    k = np.arange(1, len(order) + 1)
    enough = np.log(k * level) + evidence[order] >= math.log(max(1, len(order)))
    listed = np.zeros(len(order), bool)
    listed[order[: int(k[enough].max(initial=0))]] = True
    return listed
