"""What each client has learnt, in a bounded table of constant-size rows.

Nobody is evicted, so nothing spent is ever forgotten; beyond capacity new identities share one pooled account.
The statistics are those of an information audit: mean and histogram of the entropy of the model's clean scores, entropy
of released labels (Grassberger 2003), code length of the released labels (Krichevsky & Trofimov 1981) and coverage, the
share of cells of a secret sign-projection that were visited.
"""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import digamma, gammaln

from hardening.pipeline import CELLS
from hardening.types import Standing

#: Longest name of a client, in characters; names are kept, so their length is part of the memory bound.
LONGEST_NAME = 64
#: Label counts kept per client; classes beyond share bins, which the code length accounts for.
LABEL_BINS = 32
HISTOGRAM_BINS = 8
POOLED = "(pooled)"
ANONYMOUS = "anonymous"

_ROW = np.dtype(
    [
        ("queries", np.int64),
        ("observed", np.int64),
        ("bits", np.float64),
        ("rho", np.float64),
        ("entropy", np.float64),
        ("classes", np.int64),
        ("histogram", np.uint32, HISTOGRAM_BINS),
        ("labels", np.uint32, LABEL_BINS),
        ("cells", np.uint8, CELLS // 8),
    ]
)


def label_entropy_bits(counts: NDArray[Any]) -> float:
    """Entropy of the distribution behind `counts`, in bits, by Grassberger's (2003) estimator; at least 0."""
    c = np.asarray(counts, np.float64)
    c = c[c > 0]
    if not c.size:
        return 0.0
    sign = np.where(c % 2 == 0, 1.0, -1.0)
    g = digamma(c) + 0.5 * sign * (digamma((c + 1) / 2) - digamma(c / 2))
    return max(0.0, float((math.log(c.sum()) - (c * g).sum() / c.sum()) / math.log(2)))


def code_length_bits(counts: NDArray[Any]) -> float:
    """Krichevsky-Trofimov code length of any sequence with these symbol counts, in bits."""
    c = np.asarray(counts, np.float64)
    n, k = c.sum(), len(c)
    if n == 0:
        return 0.0
    nats = gammaln(n + k / 2) - gammaln(k / 2) - (gammaln(c + 0.5) - gammaln(0.5)).sum()
    return float(nats / math.log(2))


class Clients:
    """The table. Every method takes the lock for a few array operations and does no I/O."""

    def __init__(self, capacity: int) -> None:
        self._rows = np.zeros(capacity + 1, _ROW)  # the last row is the pooled account
        self._slots: dict[str, int] = {}
        self._lock = threading.Lock()

    def slot(self, client: str) -> int:
        """The account of `client`, opened if need be: one of its own, or the pooled one beyond capacity."""
        with self._lock:
            slot = self._slots.get(client)
            if slot is None:
                slot = len(self._slots)
                if slot >= len(self._rows) - 1:
                    return len(self._rows) - 1
                self._slots[client] = slot
            return slot

    def charge(self, slot: int, queries: int, bits: float = 0.0, rho: float = 0.0) -> None:
        with self._lock:
            row = self._rows[slot]
            row["queries"] += queries
            row["bits"] += bits
            row["rho"] += rho

    def observe(self, slot: int, summary: NDArray[np.float64], classes: int) -> None:
        """Fold in the kernel's summary ``(vectors, 4)``: entropy, largest entropy, released label, cell."""
        share = summary[:, 0] / np.maximum(summary[:, 1], 1e-9)
        bins = np.clip(share * HISTOGRAM_BINS, 0, HISTOGRAM_BINS - 1).astype(np.int64)
        labels = summary[:, 2].astype(np.int64) % LABEL_BINS
        cells = summary[:, 3].astype(np.int64)
        with self._lock:
            row = self._rows[slot]
            row["observed"] += len(summary)
            row["entropy"] += summary[:, 0].sum()
            row["classes"] = max(int(row["classes"]), classes)
            np.add.at(row["histogram"], bins, 1)
            np.add.at(row["labels"], labels, 1)
            np.bitwise_or.at(row["cells"], cells // 8, (1 << (cells % 8)).astype(np.uint8))

    def standing(self, client: str, tier: str) -> Standing:
        """A copy of what `client` has learnt; zeros for a client never seen."""
        with self._lock:
            slot = len(self._rows) - 1 if client == POOLED else self._slots.get(client)
            if slot is None:
                return Standing(tier=tier)
            row = self._rows[slot].copy()
        observed, classes = int(row["observed"]), int(row["classes"])
        labels = row["labels"][: max(1, min(classes, LABEL_BINS))]
        # Classes that share a bin still have to be told apart by whoever writes the labels down.
        folded = observed * math.log2(math.ceil(classes / LABEL_BINS)) if classes > LABEL_BINS else 0.0
        return Standing(
            queries=int(row["queries"]),
            bits=float(row["bits"]),
            rho=float(row["rho"]),
            posterior_entropy=float(row["entropy"]) / observed if observed else 0.0,
            label_entropy=label_entropy_bits(labels),
            code_length=code_length_bits(labels) + folded,
            coverage=int(np.bitwise_count(row["cells"]).sum()) / CELLS,
            tier=tier,
            histogram=tuple(int(h) for h in row["histogram"]),
        )

    def names(self) -> tuple[str, ...]:
        """Clients with an account of their own, in order of appearance."""
        with self._lock:
            return tuple(self._slots)

    @property
    def bytes_per_client(self) -> int:
        """Size of one row; the name and its index entry come on top."""
        return _ROW.itemsize
