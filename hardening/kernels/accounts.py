"""Entries in the clients' table. These kernels keep the interpreter's lock, which makes each one atomic."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray

from hardening.kernels.lanes import call_at, count_bits, device, outer, pointer
from hardening.kernels.layout import CELL_BITS, JOB, SUMMARY, Job
from hardening.kernels.program import summary_room

HISTOGRAM_BINS = 8
#: Label counts kept per client; classes beyond share bins, which the code length accounts for.
LABEL_BINS = 32

#: One client. Fields of a kind stand together, so that a kernel sees each kind as one array. Counts of rows by bin stop
#: at 2**32 - 1.
ROW = np.dtype(
    [
        ("queries", np.int64),
        ("observed", np.int64),
        ("classes", np.int64),
        ("bits", np.float64),
        ("rho", np.float64),
        ("entropy", np.float64),
        ("histogram", np.uint32, HISTOGRAM_BINS),
        ("labels", np.uint32, LABEL_BINS),
        ("cells", np.uint8, (1 << CELL_BITS) // 8),
    ]
)
_SIZE = ROW.itemsize
_REALS, _HISTOGRAM, _LABELS, _CELLS = (int(ROW.fields[f][1]) for f in ("bits", "histogram", "labels", "cells"))  # type: ignore[index]


@device
def _counts(table: int, slot: int) -> Any:
    return carray(pointer(table + slot * _SIZE), (3,), np.int64)


@device
def _count(bins: Any, index: int) -> None:
    """One more, up to the largest number there is room for."""
    bins[index] += np.uint32(bins[index] < np.uint32(0xFFFFFFFF))


def charge(table: int, slot: int, rows: int) -> None:
    """Count `rows` queries of the client at `slot`; `table` is the address of an array of `ROW`."""
    _counts(table, slot)[0] += rows


def serve(table: int, slot: int, job: Any) -> int:
    """Harden the scores of `job`, if it has any, and, if all went well, `settle`; returns the status of `harden`."""
    watch(table, slot, job)
    status = call_at(job[Job.HARDEN], job.ctypes.data) if job[Job.HARDEN] != 0 else 0
    if status == 0:
        enter(table, slot, job)
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


def settle(table: int, slot: int, job: Any) -> None:
    """Enter one answer that is hardened already: what it cost and what its rows were like."""
    enter(table, slot, job)


@outer
def enter(table: int, slot: int, job: Any) -> None:
    base, vectors = table + slot * _SIZE, job[Job.VECTORS]
    counts, reals = _counts(table, slot), carray(pointer(base + _REALS), (3,), np.float64)
    histogram = carray(pointer(base + _HISTOGRAM), (HISTOGRAM_BINS,), np.uint32)
    labels = carray(pointer(base + _LABELS), (LABEL_BINS,), np.uint32)
    cells = carray(pointer(base + _CELLS), ((1 << CELL_BITS) // 8,), np.uint8)
    places = summary_room(vectors)
    summary = carray(pointer(job[Job.SUMMARY]), (SUMMARY, places), np.float64)
    costs = carray(pointer(job.ctypes.data), (JOB,), np.float64)
    reals[0] += costs[Job.BITS]
    reals[1] += costs[Job.RHO]
    if job[Job.WIDTH] == 0:
        return
    counts[1] += vectors
    counts[2] = max(counts[2], job[Job.WIDTH])
    most = costs[Job.MOST_ENTROPY]
    scale = HISTOGRAM_BINS / most if most > 0.0 else 0.0
    total = 0.0  # in a register: memory would be read back at every step
    for v in range(vectors):
        entropy, label, cell = summary[0, v], np.int64(summary[1, v]), np.int64(summary[2, v])
        total += entropy
        _count(histogram, min(np.int64(entropy * scale), HISTOGRAM_BINS - 1))
        _count(labels, label % LABEL_BINS)
        cells[cell >> 3] |= np.uint8(1 << (cell & 7))
    reals[2] += total
