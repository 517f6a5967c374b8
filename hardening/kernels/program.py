"""The one kernel that runs every policy: a loop over blocks of rows, a loop over instructions.

`run` hardens scores in place. Nothing is written to a row before all of its work is done, and on the first block with a
row that is wrong the kernel stops and says which; the caller then throws the whole array away.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray

from hardening.kernels import opcodes, prf, rows, summary, tag
from hardening.kernels.blocks import SUM_GRID, Block, block, extremes, first_argmax, first_equal, survey
from hardening.kernels.lanes import WIDTH, device, fabs, fill, lane, larger, outer, pointer, rint, some, where
from hardening.kernels.memory import (
    load,
    load_at,
    load_every,
    load_longs,
    load_some,
    load_words,
    store,
    store_at,
    store_every,
    store_some,
    transpose,
)
from hardening.kernels.opcodes import Job
from hardening.kernels.words import add_words, count_from, count_on_from, count_twice, repeat

#: Beyond this many steps a float64 no longer holds every integer that noise may add.
MOST_STEPS = 2.0**50
#: Rows of at most this many classes may be taken eight at a time.
NARROW = 64
#: uint64 words of keystream that are made at a time, at most.
KEYSTREAM = 4 * WIDTH * prf.BLOCK
#: uint64 scratch of `run` beside the words of a row: keystream, and the nonces of eight rows, twice.
SCRATCH_WORDS = KEYSTREAM + 40
#: float64 scratch of `run` for each class, in vectors; and beside that.
SCRATCH_VECTORS, SCRATCH_NUMBERS = 3, summary.FOLD * WIDTH
#: Rows of the summary: entropy of the clean rows in bits, released labels, cells; each for `summary_room` vectors.
SUMMARY = 3


@device
def summary_room(vectors: int) -> int:
    """Places for each row of the summary: whole vectors of eight."""
    return (vectors + WIDTH - 1) // WIDTH * WIDTH


@device
def _check(b: Block, space: int, tolerance: float) -> tuple[Any, Any]:
    """What is wrong with each row, as an `opcodes` problem, and its largest entry.

    Brings rows within the tolerance into the space.
    """
    none, one = fill(0.0), fill(1.0)
    low, high, total = survey(b, b.w, SUM_GRID if space == opcodes.SPACE_SIMPLEX else 0.0)
    if some(total - total != none):
        _, _, nothing = survey(b, b.w, 0.0)  # a sum may overflow where no entry is at fault
        fault = where(nothing == none, fill(float(opcodes.NOT_SIMPLEX)), fill(float(opcodes.NOT_FINITE)))
        return where(total - total != none, fault, none), high
    problem = none
    if space == opcodes.SPACE_ANY:
        return problem, high
    off = fill(float(opcodes.NOT_SIMPLEX))
    problem = where((low < -tolerance) | (high > 1.0 + tolerance), off, problem)
    if some((low < 0.0) | (high > 1.0)):
        rows.clip(b, 0.0, 1.0)
        low, high, total = survey(b, b.w, SUM_GRID)
    if space == opcodes.SPACE_SIMPLEX:
        problem = where(fabs(total - one) > tolerance, off, problem)
        total = where(problem == none, total, one)
        rows.divide(b, total)
        high = rows.quotient(high, total, one / total)
    return problem, high


@device
def _draw(b: Block, i: int, raw: Any, word: int, p: Any, table: Any) -> None:
    z = prf.draw(load_longs(raw, word), table, int(p[2]), int(p[3]), int(p[4]))
    store(b.w, i, (rint(load(b.w, i) * p[1]) + z) * p[0])


@device
def _add_noise(b: Block, p: Any, table: Any, key: Any, nonces: Any, raw: Any) -> Any:
    """Integer noise; `nonces` holds three words and a first counter for each lane, word by word."""
    low, high = extremes(b, b.w)
    far = larger(high, 0.0 - low) * p[1] > MOST_STEPS
    problem = where(far, fill(float(opcodes.OUT_OF_RANGE)), fill(0.0))
    if b.wide:
        _draw_along(b, p, table, key, nonces, raw)
        return problem
    n0, n1, n2, first = load_words(nonces, 0), load_words(nonces, 1), load_words(nonces, 2), load_words(nonces, 3)
    for i in range(b.m):
        if i % (2 * prf.BLOCK) == 0:
            prf.blocks(key, add_words(first, count_twice(np.uint32(i // prf.BLOCK))), n0, n1, n2, raw)
        _draw(b, i, raw, i % (2 * prf.BLOCK), p, table)
    return problem


@device
def _draw_along(b: Block, p: Any, table: Any, key: Any, nonces: Any, raw: Any) -> None:
    """Noise for a row that is folded over the lanes; lanes of the cipher hold its blocks one after the other."""
    n0, n1, n2, first = nonces[0], nonces[WIDTH], nonces[2 * WIDTH], nonces[3 * WIDTH]
    for start in range(0, b.m, 4 * WIDTH):
        count = min(b.m - start, 4 * WIDTH)
        if count > 2 * WIDTH:
            more = count_on_from(np.uint32(first + start))
            prf.blocks(key, more, repeat(more, n0), repeat(more, n1), repeat(more, n2), raw)
        else:
            few = count_from(np.uint32(first + start))
            prf.blocks(key, few, repeat(few, n0), repeat(few, n1), repeat(few, n2), raw)
        for group in range((count + WIDTH - 1) // WIDTH):
            transpose(raw, group)  # a block's words are wanted side by side
        for i in range(count):
            _draw(b, start + i, raw, i, p, table)


@device
def _cell_nonces(b: Block, cell: float, key: Any, row: Any, nonces: Any, spare: Any) -> None:
    """Nonces that depend on the quantised rows alone."""
    rows.to_grid(b, 1.0 / cell)
    words = (b.n + 1) // 2 * 2
    for k in range(1 if b.wide else WIDTH):
        row[words - 1] = np.uint64(0)
        for j in range(b.n):
            v = b.w[j] if b.wide else b.w[WIDTH * j + k]
            row[j] = np.uint64(np.int64(rint_scalar(v / cell)))
        tag.hash_words(row, words, key, spare)
        for i in range(3):
            for other in range(k, WIDTH if b.wide else k + 1):
                nonces[WIDTH * i + other] = spare[i]


@device
def rint_scalar(x: float) -> float:
    return lane(rint(fill(x)), 0)


@outer
def _step(
    b: Block,
    code: int,
    after: int,
    p: Any,
    own: Any,
    top: Any,
    problem: Any,
    table: Any,
    keys: Any,
    cell_key: Any,
    row: Any,
    nonces: Any,
    raw: Any,
) -> tuple[Any, Any]:
    """One instruction; returns the top class from here on, and what went wrong."""
    if code == opcodes.NOISE:
        if int(p[6]) == opcodes.KEYED_CELL:
            spare = nonces[4 * WIDTH :]
            _cell_nonces(b, p[7], cell_key, row, spare, spare[4 * WIDTH :])
            for k in range(WIDTH):
                spare[3 * WIDTH + k] = nonces[3 * WIDTH + k]
            problem = larger(problem, _add_noise(b, p, table, keys[int(p[5])], spare, raw))
        else:
            problem = larger(problem, _add_noise(b, p, table, keys[int(p[5])], nonces, raw))
        if after != opcodes.PROJECT:  # which finds the top class itself
            top = first_argmax(b, b.w)
    elif code == opcodes.TYPES:
        rows.to_types(b, p[0], top)
    elif code == opcodes.PROJECT:
        far = rows.project(b, p[0] > 0.0, p[1], own)
        problem = where(far, fill(float(opcodes.OUT_OF_RANGE)), problem)
        top = own if p[0] > 0.0 else first_argmax(b, b.w)
    elif code == opcodes.GRID:
        rows.to_grid(b, p[0])
    elif code == opcodes.TOP_K:
        if p[0] < b.n:
            rows.keep_top_k(b, int(p[0]), int(p[1]), p[2], top)
            if int(p[1]) == opcodes.REMAINDER_OTHER:
                top = first_argmax(b, b.w)
    elif code == opcodes.LABEL_ONLY:
        if p[0] > 0.0:
            rows.at_half(b)
        else:
            rows.one_hot(b, top)
    elif code == opcodes.CLIP:
        rows.clip(b, p[0], p[1])
    elif code == opcodes.TEMPERATURE:
        rows.temper(b, p[0], p[1] > 0.0, top)
    elif code == opcodes.REVERSE_SIGMOID:
        rows.reverse_sigmoid(b, p[0], p[1], p[2] > 0.0)
        if p[3] > 0.0:
            top = first_argmax(b, b.w)
    return top, problem


@device
def _load_as(b: Block, y: Any, first: int) -> None:
    if b.wide:
        for i in range(b.m - 1):
            store(b.w, i, load_at(y, first * b.n + WIDTH * i))
        store(b.w, b.m - 1, load_some(y, first * b.n + WIDTH * (b.m - 1), b.last))
    else:
        for j in range(b.n):
            store(b.w, j, load_every(y, first * b.n + j, b.n))


@device
def _load(b: Block, job: Any, first: int) -> None:
    """One row, or eight, from `first` on."""
    count = job[Job.VECTORS] * b.n
    if job[Job.SINGLE] > 0:
        _load_as(b, carray(pointer(job[Job.SCORES]), (count,), np.float32), first)
    else:
        _load_as(b, carray(pointer(job[Job.SCORES]), (count,), np.float64), first)


@device
def _write_as(b: Block, y: Any, first: int) -> None:
    if b.wide:
        for i in range(b.m - 1):
            store_at(y, first * b.n + WIDTH * i, load(b.w, i))
        store_some(y, first * b.n + WIDTH * (b.m - 1), b.last, load(b.w, b.m - 1))
    else:
        for j in range(b.n):
            store_every(y, first * b.n + j, b.n, load(b.w, j))


@device
def _write(b: Block, job: Any, first: int) -> None:
    count = job[Job.VECTORS] * b.n
    if job[Job.SINGLE] > 0:
        _write_as(b, carray(pointer(job[Job.SCORES]), (count,), np.float32), first)
    else:
        _write_as(b, carray(pointer(job[Job.SCORES]), (count,), np.float64), first)


@device
def _nonces_of(nonces: Any, out: Any, first: int, per_row: int, n: int, wide: bool) -> None:
    """Nonce and first counter of each lane's vector: vectors of one row follow each other in its keystream."""
    row, behind = first // per_row, first % per_row
    for k in range(WIDTH):
        for i in range(3):
            out[WIDTH * i + k] = nonces[3 * row + i]
        out[3 * WIDTH + k] = np.uint32(behind * ((n + prf.BLOCK - 1) // prf.BLOCK))
        if not wide:
            behind += 1
            if behind == per_row:
                row, behind = row + 1, 0


@outer
def _harden(job: Any) -> int:
    n, vectors, per_row, space = job[Job.WIDTH], job[Job.VECTORS], job[Job.PER_ROW], job[Job.SPACE]
    steps, slots = job[Job.STEPS], job[Job.SLOTS]
    ops = carray(pointer(job[Job.OPS]), (steps,), np.int64)
    params = carray(pointer(job[Job.PARAMS]), (steps, opcodes.PARAMETERS), np.float64)
    table = carray(pointer(job[Job.TABLE]), (slots,), np.uint64)
    keys = carray(pointer(job[Job.KEYS]), (job[Job.MECHANISMS], 8), np.uint32)
    cell_key = carray(pointer(job[Job.CELL_KEY]), (tag.FINAL + n + 1 + tag.EXTRA,), np.uint64)
    signs = carray(pointer(job[Job.SIGNS]), ((n + WIDTH - 1) // WIDTH * WIDTH + summary.FOLD,), np.float64)
    room = WIDTH * (n if n <= NARROW else (n + WIDTH - 1) // WIDTH)
    numbers = carray(pointer(job[Job.NUMBERS]), (SCRATCH_VECTORS * room + SCRATCH_NUMBERS,), np.float64)
    words = carray(pointer(job[Job.WORDS]), (SCRATCH_WORDS,), np.uint64)
    row = carray(pointer(job[Job.ROW]), (n + 1,), np.uint64)
    nonces = carray(pointer(job[Job.NONCES]), (3 * job[Job.ROWS],), np.uint32)
    places = summary_room(vectors)
    out = carray(pointer(job[Job.SUMMARY]), (SUMMARY * places,), np.float64)
    raw, spare = words, carray(pointer(job[Job.WORDS] + 8 * KEYSTREAM), (2 * 40,), np.uint32)
    tolerance = float(job[Job.TOLERANCE]) * 1e-6
    first: Any = np.int64(0)  # a literal would be typed twice
    while first < vectors:
        wide = n > NARROW or vectors - first < WIDTH
        count = 1 if wide else WIDTH
        b = block(numbers, numbers[room:], numbers[2 * room :], n, wide)
        _load(b, job, first)
        problem, highest = _check(b, space, tolerance)
        own = first_equal(b, b.w, highest)
        top = own
        entropy = summary.clean_entropy(b, space, job[Job.LOGITS] > 0, highest)
        cell = summary.cells_of(b, signs, numbers[SCRATCH_VECTORS * room :], job[Job.CELL_BITS])
        if not some(problem > 0.0):
            if job[Job.MECHANISMS] > 0:
                _nonces_of(nonces, spare, first, per_row, n, wide)
            for s in range(steps):
                after = ops[s + 1] if s + 1 < steps else 0
                top, problem = _step(
                    b, ops[s], after, params[s], own, top, problem, table, keys, cell_key, row, spare, raw
                )
        if some(problem > 0.0):
            for k in range(count):
                if lane(problem, k) > 0.0:
                    return (first + k + 1) * 8 + int(lane(problem, k))
        _write(b, job, first)
        if wide:
            out[first], out[places + first], out[2 * places + first] = lane(entropy, 0), lane(top, 0), lane(cell, 0)
        else:
            store_at(out, first, entropy)
            store_at(out, places + first, top)
            store_at(out, 2 * places + first, cell)
        first += count
    return 0


@outer
def harden(job: Any) -> int:
    """Harden the scores that `job` (int64, see `opcodes.Job`) points at, in place.

    Returns:
        0, or ``(vector + 1) * 8 + problem`` for a vector that could not be hardened; the scores are then unfit for use.
    """
    if job[Job.INPUTS] > 0:
        tag.hash_rows(
            carray(pointer(job[Job.INPUT_TABLE]), (job[Job.INPUTS], tag.INPUT), np.int64),
            job[Job.ROWS],
            carray(pointer(job[Job.TAG_KEY]), (tag.FINAL + job[Job.ROW_WORDS] + tag.EXTRA,), np.uint64),
            job[Job.ROW],
            job[Job.ROW_WORDS],
            carray(pointer(job[Job.NONCES]), (job[Job.ROWS], 3), np.uint32),
        )
    if job[Job.WIDTH] == 0 or job[Job.VECTORS] == 0:
        return 0
    return _harden(job)


def run(job: Any) -> int:
    """`harden` alone, for answers so large that other threads should not wait for it: it lets the lock go."""
    return harden(job)
