"""The one kernel that runs every policy: a loop over blocks of rows, a loop over instructions.

`harden` works on scores in place. Nothing is written to a row before all of its work is done, and on the first block
with a row that is wrong the kernel stops and says which; the caller then throws the whole array away.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray

from hardening.kernels import layout, prf, summary, tag
from hardening.kernels.blocks import HUGE, SUM_GRID, Block, clip, first_equal, spread, survey
from hardening.kernels.job import NARROW, block_of, fields, lanes_of, lead, nonces_of, room_of, top_of
from hardening.kernels.lanes import (
    WIDTH,
    across_max,
    across_min,
    across_sum,
    call_at,
    device,
    execute,
    fabs,
    fill,
    lane,
    larger,
    outer,
    pointer,
    rint,
    smaller,
    some,
    where,
)
from hardening.kernels.layout import SUMMARY, Job, Step
from hardening.kernels.memory import load, load_at, load_every, load_some, store, store_at, store_every, store_some

#: float64 scratch for each class, in vectors; and beside that.
SCRATCH_VECTORS, SCRATCH_NUMBERS = 3, summary.FOLD * WIDTH


@device
def summary_room(vectors: int) -> int:
    """Places for each row of the summary: whole vectors of eight."""
    return (vectors + WIDTH - 1) // WIDTH * WIDTH


@device
def _load_as(b: Block, y: Any, first: int, grid: float) -> tuple[Any, Any, Any]:
    """`blocks.survey` of scores while they are loaded."""
    low, high, s = fill(HUGE), fill(-HUGE), fill(0.0)
    if not b.wide:
        for j in range(b.n):
            v = load_every(y, first * b.n + j, b.n)
            store(b.w, j, v)
            low, high, s = smaller(low, v), larger(high, v), s + rint(v * grid)
        return low, high, (s / grid if grid > 0.0 else s)
    for i in range(b.m - 1):
        v = load_at(y, first * b.n + WIDTH * i)
        store(b.w, i, v)
        low, high, s = smaller(low, v), larger(high, v), s + rint(v * grid)
    v = load_some(y, first * b.n + WIDTH * (b.m - 1), b.last)
    store(b.w, b.m - 1, v)
    low, high = smaller(low, where(b.last, v, low)), larger(high, where(b.last, v, high))
    s = across_sum(s + rint(v * grid))
    return across_min(low), across_max(high), (s / grid if grid > 0.0 else s)


@device
def _load(b: Block, j: Any, first: int, grid: float) -> tuple[Any, Any, Any]:
    """One row, or eight, from `first` on."""
    count = j[Job.VECTORS] * b.n
    if j[Job.SINGLE] > 0:
        return _load_as(b, carray(pointer(j[Job.SCORES]), (count,), np.float32), first, grid)
    return _load_as(b, carray(pointer(j[Job.SCORES]), (count,), np.float64), first, grid)


@device
def _take(b: Block, j: Any, first: int, tolerance: float) -> tuple[Any, Any, Any, Any]:
    """Loads rows and brings them into the space: what is wrong with each (see `layout`), label, entropy, margin."""
    none, one, space = fill(0.0), fill(1.0), j[Job.SPACE]
    low, high, total = _load(b, j, first, SUM_GRID if space == layout.SPACE_SIMPLEX else 0.0)
    if some(total - total != none):
        _, _, nothing = survey(b, b.w, 0.0)  # a sum may overflow where no entry is at fault
        fault = where(nothing == none, fill(float(layout.NOT_SIMPLEX)), fill(float(layout.NOT_FINITE)))
        return where(total - total != none, fault, none), none, none, none
    if space == layout.SPACE_ANY:
        entropy = summary.clean_entropy(b, space, j[Job.LOGITS] > 0, high)
        return none, first_equal(b, b.w, high), entropy, summary.margin(b)
    off = fill(float(layout.NOT_SIMPLEX))
    problem = where((low < -tolerance) | (high > 1.0 + tolerance), off, none)
    if some((low < 0.0) | (high > 1.0)):
        clip(b, 0.0, 1.0)
        low, high, total = survey(b, b.w, SUM_GRID)
    if space == layout.SPACE_SIGMOID:
        return problem, first_equal(b, b.w, high), summary.clean_entropy(b, space, False, high), summary.margin(b)
    problem = where(fabs(total - one) > tolerance, off, problem)
    own, entropy, margin = summary.normalise(b, where(problem == none, total, one), high)
    return problem, own, entropy, margin


@device
def _write_as(b: Block, y: Any, first: int, few: int) -> None:
    if few > 0:
        start = load(b.residual, 0)
        for i in range(b.m - 1):
            store_at(y, first * b.n + WIDTH * i, start - start)  # as in `spread`
        store_some(y, first * b.n + WIDTH * (b.m - 1), b.last, start - start)
        for k in range(few):
            y[first * b.n + int(b.marks[k])] = b.residual[k]
    elif b.wide:
        for i in range(b.m - 1):
            store_at(y, first * b.n + WIDTH * i, load(b.w, i))
        store_some(y, first * b.n + WIDTH * (b.m - 1), b.last, load(b.w, b.m - 1))
    else:
        for j in range(b.n):
            store_every(y, first * b.n + j, b.n, load(b.w, j))


@device
def _write(b: Block, j: Any, first: int) -> None:
    count, few = j[Job.VECTORS] * b.n, j[Job.FEW]
    if j[Job.SINGLE] > 0:
        _write_as(b, carray(pointer(j[Job.SCORES]), (count,), np.float32), first, few)
    else:
        _write_as(b, carray(pointer(j[Job.SCORES]), (count,), np.float64), first, few)


@device
def _spread_nonces(j: Any, first: int, wide: bool) -> None:
    """Nonce and first unit of each lane's vector: vectors of one row follow each other in its keystream."""
    nonces, out = carray(pointer(j[Job.NONCES]), (3 * j[Job.ROWS],), np.uint32), nonces_of(j, 0)
    n, per_row = j[Job.WIDTH], j[Job.PER_ROW]
    row, behind = first // per_row, first % per_row
    for k in range(WIDTH):
        for i in range(3):
            out[WIDTH * i + k] = nonces[3 * row + i]
        out[3 * WIDTH + k] = np.uint32(behind * ((n + prf.UNIT - 1) // prf.UNIT))
        if not wide:
            behind += 1
            if behind == per_row:
                row, behind = row + 1, 0


@device
def _run(b: Block, j: Any, job: int) -> None:
    """Every instruction on the block at hand."""
    steps = carray(pointer(j[Job.STEPS]), (j[Job.COUNT], layout.STEP), np.int64)
    j[Job.LEFT] = 0
    for s in range(j[Job.COUNT]):
        j[Job.PARAMS], j[Job.DATA] = steps[s, Step.PARAMS], steps[s, Step.DATA]
        j[Job.SECRET] = steps[s, Step.SECRET]
        few = j[Job.LEFT]
        if few > 0 and steps[s, Step.SPARSE] == 0:
            spread(b, few)
            few = 0
        j[Job.FEW], j[Job.LEFT] = few, 0
        execute(steps[s, Step.FUNCTION], job)
    j[Job.FEW] = j[Job.LEFT]


@outer
def _harden(j: Any, job: int) -> int:
    n, vectors = j[Job.WIDTH], j[Job.VECTORS]
    room, places = room_of(n), summary_room(j[Job.VECTORS])
    signs = carray(pointer(j[Job.SIGNS]), ((n + WIDTH - 1) // WIDTH * WIDTH + summary.FOLD,), np.uint8)
    fold = carray(pointer(j[Job.NUMBERS] + 8 * SCRATCH_VECTORS * room), (SCRATCH_NUMBERS,), np.float64)
    out = carray(pointer(j[Job.SUMMARY]), (SUMMARY * places,), np.float64)
    tolerance = float(j[Job.TOLERANCE]) * 1e-6
    lanes = lanes_of(j)
    first: Any = np.int64(0)  # a literal would be typed twice
    while first < vectors:
        wide = n > NARROW or vectors - first < WIDTH
        j[Job.FIRST], j[Job.WIDE] = first, np.int64(wide)
        b = block_of(j)
        problem, own, entropy, margin = _take(b, j, first, tolerance)
        cell = summary.cells_of(b, signs, fold, j[Job.CELL_BITS])
        if not some(problem > 0.0):
            store(lanes, layout.OWN // WIDTH, own)
            store(lanes, layout.PROBLEM // WIDTH, problem)
            lead(j, own)
            if j[Job.DRAWS] > 0:
                _spread_nonces(j, first, wide)
            _run(b, j, job)
            problem = load(lanes, layout.PROBLEM // WIDTH)
        if some(problem > 0.0):
            for k in range(1 if wide else WIDTH):
                if lane(problem, k) > 0.0:
                    return (first + k + 1) * 8 + int(lane(problem, k))
        top = top_of(j, b)
        _write(b, j, first)
        if wide:
            out[first], out[places + first], out[2 * places + first] = lane(entropy, 0), lane(top, 0), lane(cell, 0)
            out[3 * places + first] = lane(margin, 0)
            first += 1
        else:
            store_at(out, first, entropy)
            store_at(out, places + first, top)
            store_at(out, 2 * places + first, cell)
            store_at(out, 3 * places + first, margin)
            first += WIDTH
    return 0


def harden(job: int) -> int:
    """Harden the scores that the job at an address (see `layout.Job`) points at, in place.

    Returns:
        0, or ``(vector + 1) * 8 + problem`` for a vector that could not be hardened; the scores are then unfit for use.
    """
    j = fields(job)
    if j[Job.INPUTS] > 0:
        tag.hash_rows(
            carray(pointer(j[Job.INPUT_TABLE]), (j[Job.INPUTS], tag.INPUT), np.int64),
            j[Job.ROWS],
            carray(pointer(j[Job.TAG_KEY]), (tag.FINAL + j[Job.ROW_WORDS] + tag.EXTRA,), np.uint64),
            j[Job.ROW],
            carray(pointer(j[Job.NAMES]), (j[Job.ROWS], 3), np.uint32),
        )
    if j[Job.WIDTH] == 0 or j[Job.VECTORS] == 0:
        return 0
    return _harden(j, job)


def run(job: Any) -> int:
    """`harden` alone, for answers so large that other threads should not wait for it: it lets the lock go."""
    return call_at(job[Job.HARDEN], job.ctypes.data)
