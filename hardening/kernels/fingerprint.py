"""Near duplicates: which earlier question shares most of its parts with this one.

A row is quantised; every window of consecutive entries is hashed by a rolling polynomial, and the smallest of the mixed
hashes stand for the row (Li et al. 2022, "Blacklight"; minimal hashes: Broder 1997). They are looked up in an index of
fixed size, which forgets the oldest hash of a bucket first.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hardening.kernels.lanes import device

#: Entries of a bucket, and places to count the rows that hashes point at (a power of two).
WAYS, TALLY = 4, 1024
_GOLDEN, _FIRST, _SECOND = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_LOW = np.uint64(0xFFFFFFFF)


@device
def _mix(x: Any) -> Any:
    """Sixty-four bits stirred, as SplitMix does (Steele et al. 2014)."""
    x = (x ^ (x >> np.uint64(30))) * _FIRST
    x = (x ^ (x >> np.uint64(27))) * _SECOND
    return x ^ (x >> np.uint64(31))


@device
def _level(x: float, step: float, offset: float) -> Any:
    """The step that `x` is on; what is no number, and what is very large, has one of its own."""
    scaled = (x + offset) / step
    return np.uint64(np.int64(np.floor(scaled))) if abs(scaled) < 2.0**62 else _GOLDEN


@device
def _keep(hashes: Any, count: int, value: Any) -> int:
    """Inserts `value` into `count` sorted different hashes, dropping the largest when full; how many there are then."""
    if count == len(hashes) and value >= hashes[count - 1]:
        return count
    at = count
    while at > 0 and hashes[at - 1] > value:
        at -= 1
    if at > 0 and hashes[at - 1] == value:
        return count
    last = min(count, len(hashes) - 1)
    for k in range(last, at, -1):
        hashes[k] = hashes[k - 1]
    hashes[at] = value
    return min(count + 1, len(hashes))


@device
def minimal(row: Any, window: int, step: float, offset: float, salt: Any, hashes: Any) -> int:
    """Fills `hashes`, uint32, with the smallest of the hashes of `row`'s windows; returns how many there are.

    `salt`: uint64 ``(2,)``, the factor of the polynomial, odd, and what the hashes are mixed with.
    """
    factor, leaving, h = salt[0], np.uint64(1), np.uint64(0)
    for _ in range(window):
        leaving *= factor
    count = 0
    for i in range(len(row)):
        h = h * factor + _level(row[i], step, offset)
        if i >= window:
            h -= leaving * _level(row[i - window], step, offset)
        if i >= window - 1:
            count = _keep(hashes, count, np.uint32(_mix(h ^ salt[1]) >> np.uint64(32)))
    return count


@device
def _vote(tally: Any, row: Any) -> Any:
    """One more for `row` in an open-addressed tally of (row, votes); how many it has."""
    last = len(tally) - 1
    at = np.int64(_mix(np.uint64(row) * _GOLDEN) & np.uint64(last))
    while tally[at, 1] != np.uint32(0) and tally[at, 0] != row:
        at = (at + 1) & last
    tally[at, 0] = row
    tally[at, 1] += np.uint32(1)
    return np.int64(tally[at, 1])


def look(
    rows: Any, window: int, step: float, offset: float, salt: Any, index: Any, clock: Any, hashes: Any, tally: Any,
    matches: Any, found: Any, parts: Any,
) -> None:  # fmt: skip
    """Looks rows up, one after another, and enters each.

    Args:
        rows: float64 ``(n, d)``. window, step, offset, salt, hashes: as `minimal` takes them.
        index: uint64 ``(buckets, WAYS)``, buckets a power of two: a hash, and the number of the row it is of.
        clock: uint32 ``(1,)``, the number of the next row, never 0.
        tally: uint32 ``(TALLY, 2)``, at least twice as many as hashes times `WAYS`.
        matches: int64 ``(n,)``, filled in: hashes shared with the earlier row that shares most. found: uint32
            ``(n,)``, that row's number. parts: int64 ``(n,)``, how many hashes the row has.
    """
    last = np.uint64(len(index) - 1)
    for r in range(len(rows)):
        count = minimal(rows[r], window, step, offset, salt, hashes)
        tally[:] = np.uint32(0)
        best, of, now = 0, np.uint32(0), clock[0]
        for k in range(count):
            bucket = index[np.int64(_mix(np.uint64(hashes[k])) & last)]
            for way in range(WAYS):
                if bucket[way] != np.uint64(0) and np.uint32(bucket[way] >> np.uint64(32)) == hashes[k]:
                    other = np.uint32(bucket[way] & _LOW)
                    votes = _vote(tally, other)
                    if votes > best:
                        best, of = votes, other
            for way in range(WAYS - 1, 0, -1):
                bucket[way] = bucket[way - 1]
            bucket[0] = np.uint64(hashes[k]) << np.uint64(32) | np.uint64(now)
        matches[r], found[r], parts[r] = best, of, count
        clock[0] = now + np.uint32(1) if now < np.uint32(0xFFFFFFFF) else np.uint32(1)
