"""What each client has learnt, in a bounded table of constant-size rows.

Nobody is evicted, so nothing spent is ever forgotten; beyond capacity new identities share one pooled account.
The statistics are those of an information audit: mean and histogram of the entropy of the model's clean scores, entropy
of released labels (Grassberger 2003), code length of the released labels (Krichevsky & Trofimov 1981) and coverage, the
share of cells of a secret sign-projection that were visited.
"""

from __future__ import annotations

import functools
import math
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardening import kernels
from hardening.pipeline import CELLS
from hardening.types import Standing

#: Longest name of a client, in characters; names are kept, so their length is part of the memory bound.
LONGEST_NAME = 64
POOLED = "(pooled)"
ANONYMOUS = "anonymous"


def label_entropy_bits(counts: NDArray[Any]) -> float:
    """Entropy of the distribution behind `counts`, in bits, by Grassberger's (2003) estimator; at least 0."""
    from scipy.special import digamma  # not at the top: it is half of what importing this library would cost

    c = np.asarray(counts, np.float64)
    c = c[c > 0]
    if not c.size:
        return 0.0
    sign = np.where(c % 2 == 0, 1.0, -1.0)
    g = digamma(c) + 0.5 * sign * (digamma((c + 1) / 2) - digamma(c / 2))
    return max(0.0, float((math.log(c.sum()) - (c * g).sum() / c.sum()) / math.log(2)))


def code_length_bits(counts: NDArray[Any]) -> float:
    """Krichevsky-Trofimov code length of any sequence with these symbol counts, in bits."""
    from scipy.special import gammaln

    c = np.asarray(counts, np.float64)
    n, k = c.sum(), len(c)
    if n == 0:
        return 0.0
    nats = gammaln(n + k / 2) - gammaln(k / 2) - (gammaln(c + 0.5) - gammaln(0.5)).sum()
    return float(nats / math.log(2))


class Clients:
    """The table: constant-size rows, written by kernels that are atomic under the interpreter's lock; no I/O."""

    def __init__(self, capacity: int) -> None:
        from hardening.kernels import accounts

        self._rows = np.empty(capacity + 1, accounts.ROW)  # the last row is the pooled account
        self._rows.view(np.uint8).fill(0)  # touches every page now, so that no query pays for it
        self._address = int(self._rows.ctypes.data)
        self._slots: dict[str, int] = {}
        self._opening = threading.Lock()
        #: ``charge(slot, rows)``, ``serve``, ``observe`` and ``settle(slot, job)``, see `kernels.accounts`.
        self.charge = functools.partial(kernels.entry(accounts.charge, "int64", "int64", "int64"), self._address)
        self.serve = functools.partial(kernels.entry(accounts.serve, "int64", "int64", "int64[::1]"), self._address)
        self.observe = functools.partial(kernels.entry(accounts.observe, "int64", "int64", "int64[::1]"), self._address)
        self.settle = functools.partial(kernels.entry(accounts.settle, "int64", "int64", "int64[::1]"), self._address)
        self.pooled = capacity

    def slot(self, client: str) -> int:
        """The account of `client`, opened if need be: one of its own, or `pooled` beyond capacity."""
        slot = self._slots.get(client)
        if slot is None:
            with self._opening:
                slot = self._slots.get(client, len(self._slots))
                if slot < self.pooled:
                    self._slots[client] = slot
        return slot

    def find(self, client: str) -> int | None:
        """The slot of `client`, or None for a client never seen."""
        return self.pooled if client == POOLED else self._slots.get(client)

    def suspicion(self, client: str) -> float:
        """Evidence against `client` in units of the alarm threshold: 0, since nothing here gathers any."""
        return 0.0

    def standing(self, client: str, tier: str) -> Standing:
        """A copy of what `client` has learnt; zeros for a client never seen."""
        slot = self.find(client)
        if slot is None:
            return Standing(tier=tier)
        row = self._rows[slot].copy()
        observed, classes = int(row["observed"]), int(row["classes"])
        labels = row["labels"][: max(1, classes)]
        # Classes that share a bin still have to be told apart by whoever writes the labels down.
        bins = len(row["labels"])
        folded = observed * math.log2(math.ceil(classes / bins)) if classes > bins else 0.0
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
        return tuple(self._slots)
