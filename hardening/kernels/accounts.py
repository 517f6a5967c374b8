"""Entries in the clients' table. These kernels keep the interpreter's lock, which makes each one atomic."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray

from hardening.kernels.evidence import refresh, seen, weigh
from hardening.kernels.lanes import call_at, count_bits, device, outer, pointer, prefetch
from hardening.kernels.layout import (
    CELL_BITS,
    HISTOGRAM_BINS,
    JOB,
    LABEL_BINS,
    LANES,
    REMEMBERED,
    SUMMARY,
    Job,
)
from hardening.kernels.program import summary_room

#: One client. Fields of a kind stand together, so that a kernel sees each kind as one array. Counts of rows by bin stop
#: at 2**32 - 1. The first `HOT` bytes, two cache lines, are what every row changes; of the rest it touches a line each.
ROW = np.dtype(
    [
        ("queries", np.int64),
        ("observed", np.int64),
        ("classes", np.int64),
        ("bits", np.float64),
        ("rho", np.float64),
        ("entropy", np.float64),
        ("wealth", np.float64),
        ("firsts", np.uint32),
        ("restarts", np.uint32),
        ("excess", np.float32, LANES),
        ("window", np.float32),
        ("opened", np.uint32),
        ("windows", np.uint32),
        ("beyond", np.uint32),
        ("open", np.uint16, LANES),
        ("recent", np.uint32, REMEMBERED),
        ("histogram", np.uint32, HISTOGRAM_BINS),
        ("sums", np.uint32, LANES),
        ("labels", np.uint32, LABEL_BINS),
        ("cells", np.uint8, (1 << CELL_BITS) // 8),
    ]
)
_SIZE = ROW.itemsize
(_REALS, _WEALTH, _FIRSTS, _EXCESS, _WINDOW, _BEYOND, _RECENT, _HISTOGRAM, _SUMS, _LABELS, _CELLS) = (
    int(ROW.fields[f][1])  # type: ignore[index]
    for f in (
        *("bits", "wealth", "firsts", "excess", "window", "beyond"),
        *("recent", "histogram", "sums", "labels", "cells"),
    )
)
HOT = _RECENT
#: Bytes that memory comes in, and rows of a log that are brought near before they are entered.
_LINE, _AHEAD = 64, 8


@device
def _counts(table: int, slot: int) -> Any:
    return carray(pointer(table + slot * _SIZE), (3,), np.int64)


@device
def _count(bins: Any, index: int) -> None:
    """One more, up to the largest number there is room for."""
    bins[index] += np.uint32(bins[index] < np.uint32(0xFFFFFFFF))


def charge(table: int, slot: int, rows: int) -> None:
    """Count `rows` queries of the client at `slot`; `table` is the address of an array of `ROW`.

    While the model runs, the rest of the row is on its way to the cache.
    """
    _counts(table, slot)[0] += rows
    _bring(table, slot)


@device
def _bring(table: int, slot: int) -> None:
    for offset in range(0, _CELLS, _LINE):
        prefetch(table + slot * _SIZE + offset)


def serve(harden: bool, table: int, slot: int, job: Any) -> int:
    """Harden the scores of `job`, if it has any and `harden` says so; returns the status of `harden`.

    If all went well, enter the answer: what it cost and what its rows were like; returns then how many of the client's
    windows it made stand out, less than zero, or 0. One kernel for both, for compiling takes seconds.
    """
    status = 0
    if harden and job[Job.HARDEN] != 0:
        watch(table, slot, job)
        status = call_at(job[Job.HARDEN], job.ctypes.data)
    if status == 0:
        beyond = carray(pointer(table + slot * _SIZE + _BEYOND), (1,), np.uint32)
        before: Any = np.int64(beyond[0])
        enter(table, slot, job)
        status = before - np.int64(beyond[0])
    return status


@outer
def watch(table: int, slot: int, job: Any) -> None:
    """Tell `job` how many cells the client has visited so far, if it goes by that."""
    if job[Job.WATCHES] > 0:
        cells = carray(pointer(table + slot * _SIZE + _CELLS), ((1 << CELL_BITS) // 64,), np.uint64)
        visited = np.int64(0)
        for k in range(len(cells)):
            visited += count_bits(cells[k])
        job[Job.COVERAGE] = visited


def observe(table: int, slot: int, job: Any) -> None:
    """`watch`, for a job that is hardened without `serve`."""
    watch(table, slot, job)


@outer
def enter(table: int, slot: int, job: Any) -> None:
    base, vectors = table + slot * _SIZE, job[Job.VECTORS]
    counts, reals = _counts(table, slot), carray(pointer(base + _REALS), (3,), np.float64)
    places = summary_room(vectors)
    summary = carray(pointer(job[Job.SUMMARY]), (SUMMARY, places), np.float64)
    costs = carray(pointer(job.ctypes.data), (JOB,), np.float64)
    reals[0] += costs[Job.BITS]
    reals[1] += costs[Job.RHO]
    if job[Job.WIDTH] == 0:
        return
    counts[2] = max(counts[2], job[Job.WIDTH])
    most, baseline = costs[Job.MOST_ENTROPY], job[Job.BASELINE]
    scale = HISTOGRAM_BINS / most if most > 0.0 else 0.0
    total = 0.0  # in a register: memory would be read back at every step
    for v in range(vectors):
        entropy, label, cell = summary[0, v], np.int64(summary[1, v]), np.int64(summary[2, v])
        total += entropy
        if baseline != 0:
            row = v // job[Job.PER_ROW]
            nearly = job[Job.DUPLICATES] != 0 and carray(pointer(job[Job.DUPLICATES]), (job[Job.ROWS],), np.uint8)[row]
            key = _question(job, row) if job[Job.NAMES] != 0 else _answer(entropy, label, cell, summary[3, v])
            _first(base, baseline, key, entropy, label, cell, summary[3, v], nearly)
        _enter_row(base, scale, entropy, label, cell)
    counts[1] += vectors
    reals[2] += total


@device
def _enter_row(base: int, scale: float, entropy: float, label: int, cell: int) -> None:
    histogram = carray(pointer(base + _HISTOGRAM), (HISTOGRAM_BINS,), np.uint32)
    labels = carray(pointer(base + _LABELS), (LABEL_BINS,), np.uint32)
    cells = carray(pointer(base + _CELLS), ((1 << CELL_BITS) // 8,), np.uint8)
    _count(histogram, min(np.int64(entropy * scale), HISTOGRAM_BINS - 1))
    _count(labels, label % LABEL_BINS)
    cells[cell >> 3] |= np.uint8(1 << (cell & 7))


@device
def _question(job: Any, row: int) -> Any:
    """What a question is remembered by: a word of its name."""
    return carray(pointer(job[Job.NAMES]), (3 * job[Job.ROWS],), np.uint32)[3 * row]


@device
def _answer(entropy: float, label: int, cell: int, margin: float) -> Any:
    """The same for questions without a name: those with one clean answer pass for one question."""
    mixed = np.int64(entropy * 2.0**40) * 31 + np.int64(margin * 2.0**40)
    mixed = (mixed * 4097 + cell) * 1048583 + label
    return np.uint32(np.uint64(mixed) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(32))


@device
def _first(
    base: int, baseline: int, key: Any, entropy: float, label: int, cell: int, margin: float, nearly: bool
) -> None:
    """Gathers evidence from a row unless its question was asked a short while ago; before `_enter_row`."""
    recent = carray(pointer(base + _RECENT), (REMEMBERED,), np.uint32)
    key = max(key, np.uint32(1))
    firsts = carray(pointer(base + _FIRSTS), (1,), np.uint32)
    if seen(recent, key):
        refresh(recent, key, np.int64(firsts[0] - np.uint32(1)) % REMEMBERED)
        return
    recent[firsts[0] % np.uint32(REMEMBERED)] = key
    labels = carray(pointer(base + _LABELS), (LABEL_BINS,), np.uint32)
    cells = carray(pointer(base + _CELLS), ((1 << CELL_BITS) // 8,), np.uint8)
    observed = np.int64(0)
    for k in range(LABEL_BINS):
        observed += np.int64(labels[k])
    same = labels[label % LABEL_BINS] / max(observed, 1)
    new = cells[cell >> 3] & np.uint8(1 << (cell & 7)) == 0
    weigh(
        baseline,
        base + _FIRSTS,
        base + _WEALTH,
        base + _EXCESS,
        base + _SUMS,
        base + _WINDOW,
        entropy,
        margin,
        label % LABEL_BINS,
        same,
        new,
        nearly,
    )


def fold(table: int, baseline: int, most: float, slots: Any, keys: Any, rows: Any, nearly: Any) -> None:
    """Enter rows of many clients, one after another, as `serve` does: what a log holds, or another process saw.

    Args:
        baseline: address of the numbers at `Job.BASELINE`, or 0.
        most: largest possible entropy, bits.
        slots: int64 ``(n,)``. keys: uint32 ``(n,)``, what the questions are remembered by.
        rows: float64 ``(n, SUMMARY)``, as in the summary of a job. nearly: uint8 ``(n,)``, as `Job.DUPLICATES`.
    """
    scale = HISTOGRAM_BINS / most if most > 0.0 else 0.0
    for i in range(len(slots)):
        if i + _AHEAD < len(slots):
            _bring(table, slots[i + _AHEAD])
            prefetch(table + slots[i + _AHEAD] * _SIZE + _CELLS + (np.int64(rows[i + _AHEAD, 2]) >> 3))
        base = table + slots[i] * _SIZE
        counts, reals = _counts(table, slots[i]), carray(pointer(base + _REALS), (3,), np.float64)
        entropy, label, cell = rows[i, 0], np.int64(rows[i, 1]), np.int64(rows[i, 2])
        if baseline != 0:
            _first(base, baseline, keys[i], entropy, label, cell, rows[i, 3], nearly[i] > 0)
        _enter_row(base, scale, entropy, label, cell)
        counts[0] += 1
        counts[1] += 1
        reals[2] += entropy
