"""Near duplicates: which earlier question shares most of its parts with this one.

A row is quantised; every window of consecutive entries is hashed by a rolling polynomial, and the smallest of the mixed
hashes stand for the row (Li et al. 2022, "Blacklight"; minimal hashes: Broder 1997). They are looked up in an index of
fixed size, which forgets the oldest hash of a bucket first. What many rows have, such as an empty margin, is soon
forgotten of each, so a row is also known by half of the rest. The very same row is no near duplicate, so a row has a
name as well: NH (Black et al. 1999, "UMAC") of its bits, under keys that are drawn as they are needed.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hardening.kernels.lanes import device, prefetch

#: Entries of a bucket, and places to count the rows that hashes point at (a power of two).
WAYS, TALLY = 4, 1024
#: Fewest rare hashes that a row is told by alone.
RARE = 8
#: Secret words: the factor of the polynomial, odd; what hashes are mixed with; where the keys of names begin.
SALT = 3
_GOLDEN, _FIRST, _SECOND = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_LOW, _NONE = np.uint64(0xFFFFFFFF), np.uint64(0)
_SIZE, _INFINITY, _NAN = np.uint64(2**63 - 1), np.uint64(0x7FF0 << 48), np.uint64(0x7FF8 << 48)


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
def _minimal(levels: Any, window: int, salt: Any, hashes: Any) -> int:
    """Fills `hashes`, uint32, with the smallest of those of the windows of a quantised row; how many there are."""
    factor, leaving, h, count = salt[0], np.uint64(1), _NONE, 0
    for i in range(window - 1):
        h = h * factor + levels[i]
    for _ in range(window):
        leaving *= factor
    gone = _NONE
    for i in range(window - 1, len(levels)):
        h = h * factor + (levels[i] - leaving * gone)
        count = _keep(hashes, count, np.uint32(_mix(h ^ salt[1]) >> np.uint64(32)))
        gone = levels[i - window + 1]
    return count


@device
def _name(bits: Any, salt: Any) -> Any:
    """What tells a row, given by the bits of its float64 entries, from others: never 0; one zero, one NaN."""
    total = np.uint64(len(bits)) * _GOLDEN
    for i in range(len(bits)):
        x, key = bits[i], _mix(salt[2] + np.uint64(i) * _GOLDEN)
        size = x & _SIZE
        x = _NONE if size == _NONE else (_NAN if size > _INFINITY else x)
        total += ((x + key) & _LOW) * (((x >> np.uint64(32)) + (key >> np.uint64(32))) & _LOW)
    return max(_mix(total ^ salt[1]), np.uint64(1))


def fingerprint(
    rows: Any, window: int, step: float, offset: float, salt: Any, levels: Any, hashes: Any, parts: Any, names: Any
) -> None:
    """What stands for each row.

    Args:
        rows: float64 ``(n, d)``. window: entries that are hashed together, at most d.
        step, offset: of the quantisation. salt: uint64 ``(SALT,)``. levels: uint64 scratch ``(d,)``.
        hashes: uint32 ``(n, most)``, filled in, sorted. parts: int64 ``(n,)``, how many hashes each row has.
        names: uint64 ``(n,)``, the same for rows that are the same.
    """
    for r in range(len(rows)):
        row = rows[r]
        for i in range(len(levels)):
            levels[i] = _level(row[i], step, offset)
        parts[r] = _minimal(levels, window, salt, hashes[r])
        names[r] = _name(row.view(np.uint64), salt)


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


@device
def _remember(names: Any, name: Any) -> bool:
    """Puts a name first in its bucket; whether it was there."""
    bucket = names[np.int64(name & np.uint64(len(names) - 1))]
    at = 0
    while at < WAYS - 1 and bucket[at] != name:
        at += 1
    known = bucket[at] == name
    for way in range(at, 0, -1):
        bucket[way] = bucket[way - 1]
    bucket[0] = name
    return known


@device
def _place(value: Any, index: Any) -> Any:
    """The bucket of a hash."""
    return np.int64(_mix(np.uint64(value)) & np.uint64(len(index) - 1))


@device
def _is_of(entry: Any, hashed: Any) -> bool:
    return entry != _NONE and np.uint32(entry >> np.uint64(32)) == hashed


@device
def _likest(hashes: Any, rare: bool, index: Any, tally: Any) -> tuple[Any, Any, Any]:
    """Most hashes that one earlier row has as well, that row's number, and of how many.

    `rare`: without those that fill a bucket, so that rows which had them may have been forgotten there.
    """
    tally[:] = np.uint32(0)
    best, of, counted = np.int64(0), np.uint32(0), np.int64(0)
    for k in range(len(hashes)):
        bucket = index[_place(hashes[k], index)]
        if rare and _is_of(bucket[0], hashes[k]):
            full = True
            for way in range(1, WAYS):
                full &= _is_of(bucket[way], hashes[k])
            if full:
                continue
        counted += 1
        for way in range(WAYS):
            if _is_of(bucket[way], hashes[k]):
                other = np.uint32(bucket[way] & _LOW)
                votes = _vote(tally, other)
                if votes > best:
                    best, of = votes, other
    return best, of, counted


@device
def _match(hashes: Any, share: float, index: Any, tally: Any) -> tuple[bool, Any]:
    """Whether an earlier row has that share of the hashes, or of those that are rare; and its number."""
    for k in range(len(hashes)):
        prefetch(index.ctypes.data + 8 * WAYS * _place(hashes[k], index))
    best, of, counted = _likest(hashes, False, index, tally)
    if best > 0 and best >= share * counted:
        return True, of
    best, of, counted = _likest(hashes, True, index, tally)
    return counted >= RARE and best >= share * counted, of


@device
def _enter(hashes: Any, number: Any, index: Any) -> None:
    """As those of a row; the oldest of each bucket is forgotten."""
    for k in range(len(hashes)):
        bucket = index[_place(hashes[k], index)]
        for way in range(WAYS - 1, 0, -1):
            bucket[way] = bucket[way - 1]
        bucket[0] = np.uint64(hashes[k]) << np.uint64(32) | np.uint64(number)


def look(
    hashes: Any, parts: Any, names: Any, slot: int, share: float, index: Any, known: Any, owners: Any, clock: Any,
    tally: Any, duplicate: Any, owner: Any,
) -> int:  # fmt: skip
    """Looks rows up, one after another, and enters each as asked by the client at `slot`.

    Args:
        hashes, parts, names: from `fingerprint`. share: of its hashes that a near duplicate shares with one other row.
        index: uint64 ``(buckets, WAYS)``, buckets a power of two: a hash, and the number of the row it is of.
        known: uint64 ``(buckets, WAYS)``, the same for names. owners: int32 ``(rows,)``, a power of two, who asked the
            row of a number; older ones are forgotten.
        clock: uint32 ``(1,)``, the number of the next row, never 0.
        tally: uint32 ``(TALLY, 2)``, at least twice as many as hashes times `WAYS`.
        duplicate: uint8 ``(n,)``, filled in. owner: int64 ``(n,)``, filled in: who asked the earlier row, or -1.

    Returns:
        how many rows have an owner.
    """
    linked: Any = 0
    for r in range(len(parts)):
        now, count = clock[0], parts[r]
        like, of = _match(hashes[r, :count], share, index, tally)
        _enter(hashes[r, :count], now, index)
        same = _remember(known, names[r])
        kept = np.int64(np.uint32(now - of)) < len(owners)
        nearly = like and kept and not same
        duplicate[r], owner[r] = np.uint8(nearly), -1
        if nearly:
            owner[r] = owners[np.int64(of) & (len(owners) - 1)]
            linked += np.int64(owner[r] >= 0)
        owners[np.int64(now) & (len(owners) - 1)] = slot
        clock[0] = now + np.uint32(1) if now < np.uint32(0xFFFFFFFF) else np.uint32(1)
    return linked
