"""What no single client shows: an attack split over many identities.

Groups of clients are tested as if they were one: honest clients differ, but their averages hardly do, so the null of a
group is much tighter than that of a client. Groups are formed by what identities made for one purpose have in
common: they appear together, or ask equally little. Everything is a function of the table's rows, off the request path.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hardening.clients.baseline import Baseline
from hardening.clients.entropy import label_entropy_bits, variation_distance
from hardening.clients.evidence import e_benjamini_hochberg, octave
from hardening.clients.means import LEAST_MEAN
from hardening.kernels.layout import LANES, PARTS, Lane

#: Lanes that mean the same however much a client has asked; of the others, groups of unlike clients say nothing.
STEADY = (Lane.HIGH, Lane.TAIL, Lane.LOW, Lane.COLLAPSE, Lane.DIVERSE, Lane.BOUNDARY, Lane.DUPLICATE)
#: Standard errors by which the average of a group of honest clients may differ from the baseline's.
MARGIN = 4.0
#: Fewest clients of a group.
LEAST = 8
#: Fewest clients of a group that were linked, or are left of another.
FEWEST = 3
_LESS = ", less those of other groups"
#: Clients of a group, evenly spread over it, by whose labels its gap is told.
_SAMPLE = 1024
#: Bytes of bitmaps that are looked at together.
_BYTES = 8
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


class Pooled(NamedTuple):
    """What the evidence against groups depends on; arrays ``(groups,)``, `sums` ``(groups, LANES)``.

    Attributes:
        clients: how many asked anything.
        firsts, squares: sum of the rows that they asked for the first time, and of the squares of these.
        sums: sums of their scores.
    """

    clients: NDArray[np.float64]
    firsts: NDArray[np.float64]
    squares: NDArray[np.float64]
    sums: NDArray[np.float64]


def pool(rows: NDArray[Any], groups: Sequence[NDArray[np.intp]]) -> Pooled:
    """What there is to know of `groups`, which are indices of `rows`."""
    firsts = rows["firsts"].astype(np.float64)
    each = np.column_stack([firsts > 0, firsts, firsts**2, rows["sums"] / PARTS])
    found = np.array([each[members].sum(axis=0) for members in groups]).reshape(len(groups), 3 + LANES)
    return Pooled(found[:, 0], found[:, 1], found[:, 2], found[:, 3:])


def evidence(baseline: Baseline, groups: Pooled) -> tuple[NDArray[np.float64], dict[Lane, NDArray[np.float64]]]:
    """Logarithms of e-values against groups ``(groups,)``; by lane mean scores and what they stay below if they are
    ordinary, ``(2, groups)``, NaN where there is no row to go by.

    A mixture of fixed bets, by lane and size of the deviation. Each is a product over rows, so it does not matter whose
    they are or in which order they came; its mean is at most 1 if the clients' means, weighted by their rows, average
    to no more than the limit: the baseline's average and `MARGIN` standard errors of it and of the group's.
    """
    any_ = groups.firsts > 0
    firsts = np.where(any_, groups.firsts, 1.0)
    # A client's first row has no label before it to be held against.
    later, clients = groups.firsts - groups.clients, firsts**2 / np.where(any_, groups.squares, 1.0)
    means: dict[Lane, NDArray[np.float64]] = {}
    logs = []
    for lane in STEADY:
        total, trials = groups.sums[:, lane], groups.firsts
        if lane in (Lane.COLLAPSE, Lane.DIVERSE):
            total, trials = total - groups.clients * (lane == Lane.DIVERSE), later
        limit = baseline.average[lane] + MARGIN * baseline.spread[lane] * np.sqrt(1 / clients + 1 / baseline.clients)
        # Averages over few rows are known only so well, on either side.
        limit += MARGIN * np.sqrt(baseline.average[lane] / baseline.rows)
        limit = np.clip(limit, LEAST_MEAN, 1 - 1e-9)
        odds = _ODDS[:, None] * limit / (1 - limit)
        p, some = odds / (1 + odds), trials >= 1
        bets = total * np.log(p / limit) + (trials - total) * np.log((1 - p) / (1 - limit))
        logs.append(np.where(some, bets, -np.inf))
        means[lane] = np.where(some, [total / np.maximum(trials, 1), limit], np.nan)
    whole = np.logaddexp.reduce(np.concatenate(logs)) - np.log(len(STEADY) * len(_ODDS))
    return np.where(any_, whole, 0.0), means


def group_evidence(baseline: Baseline, rows: NDArray[Any]) -> tuple[float, dict[Lane, tuple[float, float]]]:
    """`evidence` against all of `rows` as one group."""
    found, means = evidence(baseline, pool(rows, [np.arange(len(rows))]))
    pairs = {lane: (float(pair[0, 0]), float(pair[1, 0])) for lane, pair in means.items()}
    return float(found[0]), {lane: pair for lane, pair in pairs.items() if not np.isnan(pair[0])}


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
        entropy_gap(own["labels"][:: 1 + len(own) // _SAMPLE]),
        variation_distance(own["histogram"].sum(axis=0, dtype=np.uint64), baseline.histogram),
    )


def suspicious(
    baseline: Baseline,
    rows: NDArray[Any],
    false_alarm: float,
    most: int = 32,
    linked: Sequence[tuple[str, NDArray[np.intp]]] = (),
) -> tuple[Group, ...]:
    """The `most` groups to look into first, by evidence: at most `false_alarm` of all that could be listed are ordinary
    on average. Looked at are the `cohorts`, and groups by name that were `linked` in another way; each without the
    members of those listed before it, which may be all that there is against it.
    """
    groups = [*cohorts(rows), *linked]
    if not groups:
        return ()
    found, _ = evidence(baseline, pool(rows, [members for _, members in groups]))
    listed = np.flatnonzero(e_benjamini_hochberg(found, false_alarm))
    left, found = [groups[i] for i in listed], found[listed]
    level, known, chosen = found.min(initial=np.inf), np.zeros(len(rows), bool), list[Group]()
    while left and len(chosen) < most:
        name, members = left[int(found.argmax())]
        chosen.append(describe(baseline, name, rows, members))
        known[members] = True
        left = [_without(known, *group) for group in left]
        left = [group for group in left if len(group[1]) >= FEWEST]
        found, _ = evidence(baseline, pool(rows, [members for _, members in left]))
        left, found = [left[i] for i in np.flatnonzero(found >= level)], found[found >= level]
    return tuple(chosen)


def _without(known: NDArray[np.bool_], name: str, members: NDArray[np.intp]) -> tuple[str, NDArray[np.intp]]:
    rest = members[~known[members]]
    return name if len(rest) == len(members) or name.endswith(_LESS) else name + _LESS, rest


def about_the_same(mask: NDArray[np.bool_], members: NDArray[np.intp]) -> bool:
    """Whether more than half of the smaller of two groups is in the other; `mask` has one of them, client by client."""
    return 2 * int(mask[members].sum()) > min(int(mask.sum()), len(members))


def rare_cells(
    cells: NDArray[np.uint8], usual: NDArray[np.uint8] | None = None, most: int = 16
) -> Iterator[NDArray[np.intp]]:
    """The visitors of each cell that more than one client visits, and no more than `most`.

    Args:
        cells: uint8 ``(clients, bytes)``, bitmaps of visited cells.
        usual: bitmap of cells that ordinary clients visit; these tell nothing.
    """
    for start in range(0, cells.shape[1], _BYTES):
        part = cells[:, start : start + _BYTES]
        visited = np.unpackbits(part if usual is None else part & ~usual[start : start + _BYTES], axis=1)
        count = visited.sum(axis=0)
        for cell in np.flatnonzero((count > 1) & (count <= most)):
            yield np.flatnonzero(visited[:, cell])


def shared_cells(cells: NDArray[np.uint8], usual: NDArray[np.uint8] | None = None, most: int = 16) -> Counter[Any]:
    """How many rare cells each pair of clients has in common; arguments are those of `rare_cells`."""
    return _shared(rare_cells(cells, usual, most))


def _shared(visitors: Iterable[NDArray[np.intp]]) -> Counter[Any]:
    pairs: Counter[Any] = Counter()
    for each in visitors:
        who = each.tolist()
        pairs.update((a, b) for i, a in enumerate(who) for b in who[i + 1 :])
    return pairs


def drawn_together(cells: NDArray[np.uint8], false_alarm: float) -> list[tuple[int, int, int]]:
    """Pairs of clients with so many rare cells in common that chance would give any pair as many with a probability of
    at most `false_alarm`; as `clusters` takes them.

    By chance is: a rare cell is visited as often as it is, by whoever visits many cells more likely than by others. The
    number in common is then no more spread than Poisson's, whose tail is bounded by Chernoff's.
    """
    visitors = list(rare_cells(cells))
    pairs = _shared(visitors)
    if not pairs:
        return []
    count = np.array([len(each) for each in visitors], np.float64)
    own = np.bitwise_count(cells).sum(axis=1) / np.bitwise_count(cells).sum()
    who, shared = np.array(list(pairs)), np.array(list(pairs.values()), np.float64)
    expected = own[who[:, 0]] * own[who[:, 1]] * (count**2).sum()
    tail = np.where(shared > expected, shared - expected + shared * np.log(expected / shared), 0.0)
    chosen = np.flatnonzero(tail < np.log(false_alarm) - np.log(len(cells) * (len(cells) - 1) / 2))
    return [(int(who[i, 0]), int(who[i, 1]), int(shared[i])) for i in chosen]


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
