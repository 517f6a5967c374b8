"""What no single client shows: an attack split over many identities.

Groups of clients are tested as if they were one: honest clients differ, but their averages hardly do, so the null of a
group is much tighter than that of a client. Groups are formed by what identities made for one purpose have in
common: they appear together, or ask equally little. Everything is a function of the table's rows, off the request path.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardening.clients.baseline import Baseline
from hardening.clients.entropy import label_entropy_bits, variation_distance
from hardening.clients.evidence import e_benjamini_hochberg, octave
from hardening.clients.means import LEAST_MEAN
from hardening.kernels.layout import PARTS, Lane

#: Lanes that mean the same however much a client has asked; of the others, groups of unlike clients say nothing.
STEADY = (Lane.HIGH, Lane.TAIL, Lane.LOW, Lane.COLLAPSE, Lane.DIVERSE, Lane.BOUNDARY, Lane.DUPLICATE)
#: Standard errors by which the average of a group of honest clients may differ from the baseline's.
MARGIN = 4.0
#: Fewest clients of a group.
LEAST = 8
#: Alternatives that the bet on a group is spread over: the odds of a score, as multiples of the baseline's.
_ODDS = np.exp(np.linspace(0.1, 3.0, 8))


@dataclass(frozen=True)
class Group:
    """A group of clients, pooled.

    Attributes:
        name: how it was formed.
        members: indices of the rows.
        rows: rows asked for the first time.
        evidence: logarithm of an e-value against all of them being ordinary.
        lanes: by name of a `Lane`, mean score and what it is expected to stay below; those that speak against it.
        gap: entropy of the pooled labels less the clients' mean, as a share of the largest possible: near 1 where each
            identity asks about classes of its own, near 0 where all ask alike.
        distance: total variation between the pooled entropy histogram and the baseline's.
    """

    name: str
    members: NDArray[np.intp]
    rows: int
    evidence: float
    lanes: tuple[tuple[str, float, float], ...]
    gap: float
    distance: float


def entropy_gap(labels: NDArray[Any]) -> float:
    """Entropy of pooled label counts less the mean of the clients' own, as a share of log2 of the labels seen.

    `labels` is ``(clients, bins)``; clients that asked nothing are left out. 0 for fewer than two labels.
    """
    asked = labels[labels.sum(axis=1) > 0].astype(np.float64)
    pooled = asked.sum(axis=0)
    seen = int((pooled > 0).sum())
    if seen < 2:
        return 0.0
    mean = float(np.mean([label_entropy_bits(own[pooled > 0]) for own in asked]))
    return max(0.0, label_entropy_bits(pooled[pooled > 0]) - mean) / float(np.log2(seen))


def group_evidence(baseline: Baseline, rows: NDArray[Any]) -> tuple[float, dict[Lane, tuple[float, float]]]:
    """Logarithm of an e-value against a group, and by lane its mean score and what that stays below if it is ordinary.

    A mixture of fixed bets, by lane and size of the deviation. Each is a product over rows, so it does not matter whose
    they are or in which order they came; its mean is at most 1 if the clients' means, weighted by their rows, average
    to no more than the limit: the baseline's average and `MARGIN` standard errors of it and of the group's.
    """
    asked = rows[rows["firsts"] > 0]
    firsts = asked["firsts"].astype(np.float64)
    means: dict[Lane, tuple[float, float]] = {}
    logs = []
    if not len(asked):
        return 0.0, means
    # A client's first row has no label before it to be held against.
    later, clients = firsts.sum() - len(asked), firsts.sum() ** 2 / (firsts**2).sum()
    for lane in STEADY:
        total = float(asked["sums"][:, lane].sum(dtype=np.uint64)) / PARTS
        trials = float(firsts.sum())
        if lane in (Lane.COLLAPSE, Lane.DIVERSE):
            total, trials = total - len(asked) * (lane == Lane.DIVERSE), later
        if trials < 1:
            continue
        limit = baseline.average[lane] + MARGIN * baseline.spread[lane] * np.sqrt(1 / clients + 1 / baseline.clients)
        # Averages over few rows are known only so well, on either side.
        limit += MARGIN * np.sqrt(baseline.average[lane] / baseline.rows)
        limit = min(max(limit, LEAST_MEAN), 1 - 1e-9)
        odds = _ODDS * limit / (1 - limit)
        p = odds / (1 + odds)
        logs.append(total * np.log(p / limit) + (trials - total) * np.log((1 - p) / (1 - limit)))
        means[lane] = (total / trials, limit)
    if not logs:
        return 0.0, means
    every = np.concatenate(logs)
    return float(np.logaddexp.reduce(every) - np.log(len(STEADY) * len(_ODDS))), means


def cohorts(rows: NDArray[Any], least: int = LEAST) -> Iterator[tuple[str, NDArray[np.intp]]]:
    """Names and members of the groups that are looked at.

    Clients are in order of appearance. All; blocks of a power of two of them, each half over the next; and those that
    asked about as much, by octaves: at most four groups for every `least` clients.
    """
    index = np.flatnonzero(rows["firsts"] > 0)
    if len(index) < least:
        return
    yield "all", index
    size = least
    while size < len(index):
        for start in range(0, len(index) - size // 2, max(1, size // 2)):
            block = index[start : start + size]
            yield f"{len(block)} that appeared from {int(block[0])} on", block
        size *= 2
    reached = octave(rows["firsts"][index])
    for o in np.unique(reached):
        if least <= (own := index[reached == o]).size < len(index):
            yield f"those with about {2 ** int(o)} questions", own


def describe(baseline: Baseline, name: str, rows: NDArray[Any], members: NDArray[np.intp]) -> Group:
    """One group, pooled."""
    own = rows[members]
    evidence, means = group_evidence(baseline, own)
    return Group(
        name,
        members,
        int(own["firsts"].sum(dtype=np.uint64)),
        evidence,
        tuple((lane.name.lower(), mean, limit) for lane, (mean, limit) in means.items() if mean > limit),
        entropy_gap(own["labels"]),
        variation_distance(own["histogram"].sum(axis=0, dtype=np.uint64), baseline.histogram),
    )


def suspicious(baseline: Baseline, rows: NDArray[Any], false_alarm: float, most: int = 32) -> tuple[Group, ...]:
    """The `most` groups to look into first, by evidence: at most `false_alarm` of all that could be listed are ordinary
    on average."""
    groups = list(cohorts(rows))
    if not groups:
        return ()
    evidence = np.array([group_evidence(baseline, rows[members])[0] for _, members in groups])
    listed = np.flatnonzero(e_benjamini_hochberg(evidence, false_alarm))
    return tuple(
        describe(baseline, groups[i][0], rows, groups[i][1]) for i in sorted(listed, key=lambda i: -evidence[i])[:most]
    )


def shared_cells(cells: NDArray[np.uint8], usual: NDArray[np.uint8] | None = None, most: int = 16) -> Counter[Any]:
    """How many rare cells each pair of clients has in common.

    Args:
        cells: uint8 ``(clients, bytes)``, bitmaps of visited cells.
        usual: bitmap of cells that ordinary clients visit; these tell nothing.
        most: cells with more visitors than this are no link either.
    """
    kept = cells if usual is None else cells & ~usual
    visited = np.unpackbits(kept, axis=1, bitorder="little").T
    pairs: Counter[Any] = Counter()
    for cell in np.flatnonzero((visited.sum(axis=1) > 1) & (visited.sum(axis=1) <= most)):
        who = np.flatnonzero(visited[cell]).tolist()
        pairs.update((a, b) for i, a in enumerate(who) for b in who[i + 1 :])
    return pairs


def clusters(links: Iterable[tuple[int, int, int]], least: int) -> Sequence[tuple[int, ...]]:
    """Clients that are linked, directly or through others, largest cluster first.

    Args:
        links: pairs of clients and how often each was seen: from `shared_cells`, or questions of the one that nearly
            repeat the other's (`Found.owner`).
        least: how often a pair has to have been seen.
    """
    counted: Counter[tuple[int, int]] = Counter()
    for a, b, times in links:
        if a != b:
            counted[min(a, b), max(a, b)] += times
    parent: dict[int, int] = {}

    def root(a: int) -> int:
        while parent.setdefault(a, a) != a:
            parent[a] = parent[parent[a]]
            a = parent[a]
        return a

    for (a, b), times in counted.items():
        if times >= least:
            parent[root(a)] = root(b)
    members: dict[int, list[int]] = {}
    for a in sorted(parent):
        members.setdefault(root(a), []).append(a)
    return sorted((tuple(m) for m in members.values() if len(m) > 1), key=len, reverse=True)
