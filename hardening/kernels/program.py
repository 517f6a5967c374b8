"""The one kernel that runs every policy: a loop over rows, a loop over instructions.

`run` hardens `y` in place. Nothing is written to a row before all of its work is done, and on the first row that is
wrong the kernel stops and says which; the caller then throws the whole array away.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from hardening.kernels import opcodes, prf, rows
from hardening.kernels.lanes import fabs, rint

#: float64 numbers of scratch that `run` needs for rows of `width`, beside the 16 of the fold.
SCRATCH_ROWS = 3
CHUNK = 256
#: Columns of the summary: entropy of the clean row in bits, largest possible entropy, released label, cell.
SUMMARY = 4


@njit
def _check(w: Any, n: int, space: int, tolerance: float) -> int:
    if rows.nonfinite(w, n):
        return opcodes.NOT_FINITE
    if space == opcodes.SPACE_ANY or n == 0:
        return opcodes.OK
    if rows.smallest(w, n) < -tolerance:
        return opcodes.NOT_SIMPLEX
    if space == opcodes.SPACE_SIGMOID:
        if rows.largest(w, n) > 1.0 + tolerance:
            return opcodes.NOT_SIMPLEX
        rows.clip(w, n, 0.0, 1.0)
        return opcodes.OK
    if rows.largest(w, n) > 1.0 + tolerance:
        return opcodes.NOT_SIMPLEX
    rows.clip(w, n, 0.0, 1.0)
    total = rows.exact_sum(w, n)
    if fabs(total - 1.0) > tolerance:
        return opcodes.NOT_SIMPLEX
    rows.scale(w, n, total)
    return opcodes.OK


@njit
def _add_noise(
    w: Any, z: Any, n: int, p: Any, threshold: Any, alias: Any, key: Any, nonce: Any, vector: int, raw: Any
) -> int:
    step, inverse, start, bits, offset, cell = p[0], p[1], int(p[2]), int(p[3]), int(p[4]), p[7]
    if int(p[6]) == opcodes.KEYED_CELL:
        rows.to_grid(w, n, 1.0 / cell)
    for j in range(n):
        w[j] = rint(w[j] * inverse)
    if rows.largest(w, n) > rows.MOST_STEPS or rows.smallest(w, n) < -rows.MOST_STEPS:
        return opcodes.OUT_OF_RANGE
    table = threshold[start : start + (1 << bits)]
    other = alias[start : start + (1 << bits)]
    block = vector * ((n + 7) // 8)
    for first in range(0, n, CHUNK):
        m = min(CHUNK, n - first)
        prf.fill(key, nonce, block + first // 8, raw, m)
        prf.draw(raw, m, table, other, bits, offset, z[first : first + m])
    for j in range(n):
        w[j] = (w[j] + z[j]) * step
    return opcodes.OK


@njit
def _cell_nonce(w: Any, n: int, cell: float, key: Any, state: Any, nonce: Any) -> None:
    """96 bits that depend on the quantised row alone: a chain of ChaCha20 blocks, each keyed by the one before."""
    for i in range(8):
        state[i] = key[i]
    for j in range(n):
        v = np.int64(rint(w[j] / cell))
        low, high = np.uint32(v & 0xFFFFFFFF), np.uint32((v >> 32) & 0xFFFFFFFF)
        prf.chacha_block(state, np.uint32(j), low, high, np.uint32(0x63656C6C), state[16:32])
        for i in range(8):
            state[i] = state[16 + i]
    for i in range(3):
        nonce[i] = state[i]


@njit
def _step(
    w: Any,
    z: Any,
    n: int,
    code: int,
    p: Any,
    own: int,
    top: int,
    threshold: Any,
    alias: Any,
    keys: Any,
    nonce: Any,
    spare: Any,
    state: Any,
    vector: int,
    raw: Any,
) -> tuple[int, int]:
    """One instruction; returns what went wrong, if anything, and the top class from here on."""
    if code == opcodes.NOISE:
        key = keys[int(p[5])]
        if int(p[6]) == opcodes.KEYED_CELL:
            _cell_nonce(w, n, p[7], key, state, spare)
            problem = _add_noise(w, z, n, p, threshold, alias, key, spare, vector, raw)
        else:
            problem = _add_noise(w, z, n, p, threshold, alias, key, nonce, vector, raw)
        return problem, rows.first_argmax(w, n) if problem == opcodes.OK else 0
    if code == opcodes.TYPES:
        rows.to_types(w, z, n, p[0], top)
    elif code == opcodes.PROJECT:
        rows.project(w, n, p[0] > 0.0, p[1], own)
        return opcodes.OK, own if p[0] > 0.0 else rows.first_argmax(w, n)
    elif code == opcodes.GRID:
        rows.to_grid(w, n, p[0])
    elif code == opcodes.TOP_K:
        if p[0] < n:
            rows.keep_top_k(w, z, n, int(p[0]), int(p[1]), p[2], top)
            if int(p[1]) == opcodes.REMAINDER_OTHER:
                return opcodes.OK, rows.first_argmax(w, n)
    elif code == opcodes.LABEL_ONLY:
        if p[0] > 0.0:
            rows.at_half(w, n)
        else:
            rows.one_hot(w, n, top)
    elif code == opcodes.CLIP:
        rows.clip(w, n, p[0], p[1])
    elif code == opcodes.TEMPERATURE:
        rows.temper(w, n, p[0], p[1] > 0.0, top)
    elif code == opcodes.REVERSE_SIGMOID:
        rows.reverse_sigmoid(w, n, p[0], p[1], p[2] > 0.0)
        if p[3] > 0.0:
            return opcodes.OK, rows.first_argmax(w, n)
    return opcodes.OK, top


@njit
def _summarise(w: Any, z: Any, n: int, own: int, space: int, logits: bool, signs: Any, planes: Any, out: Any) -> None:
    entropy, most = 0.0, 0.0
    if space == opcodes.SPACE_SIMPLEX:
        entropy, most = rows.entropy_bits(w, n), np.log2(n)
    elif space == opcodes.SPACE_SIGMOID:
        entropy, most = rows.binary_entropy_bits(w, n), 1.0
    elif logits:
        entropy, most = rows.softmax_entropy_bits(w, n, w[own], z), np.log2(n)
    out[0], out[1] = entropy, most
    out[3] = float(rows.cell_of(w, n, signs, planes, z[n : n + 16]))


def run(
    y: Any,
    nonces: Any,
    per_row: int,
    ops: Any,
    params: Any,
    threshold: Any,
    alias: Any,
    keys: Any,
    signs: Any,
    planes: Any,
    scratch: Any,
    raw: Any,
    flags: Any,
    summary: Any,
) -> int:
    """Harden `y` in place.

    Args:
        y: float32 or float64 ``(vectors, width)``.
        nonces: uint32 ``(rows, 3)``; vector v belongs to row v // per_row.
        ops: int64 ``(instructions,)`` opcodes, `params` float64 ``(instructions, 8)``.
        threshold, alias: all noise tables, end to end. keys: uint32 ``(mechanisms, 8)``.
        signs: float64 ``(width,)``, planes: float64 ``(cell bits * 16,)``: the projection behind `rows.cell_of`.
        scratch: float64, at least ``3 * width + 16``. raw: uint64 ``(CHUNK,)``.
        flags: float64 ``(space, tolerance, is logits)``.
        summary: float64 ``(vectors, 4)``, filled in.

    Returns:
        0, or ``(vector + 1) * 8 + problem`` for the first vector that could not be hardened; `y` is then unfit for use.
    """
    n = y.shape[1]
    w, z = scratch[:n], scratch[n : 2 * n + 16]
    space, logits = int(flags[0]), flags[2] > 0.0
    spare = raw[CHUNK : CHUNK + 2].view(np.uint32)[:3]
    state = raw[CHUNK + 2 : CHUNK + 18].view(np.uint32)
    for v in range(y.shape[0]):
        for j in range(n):
            w[j] = float(y[v, j])
        problem = _check(w, n, space, flags[1])
        if problem != opcodes.OK:
            return (v + 1) * 8 + problem
        if n == 0:
            continue
        own = rows.first_argmax(w, n)
        _summarise(w, z, n, own, space, logits, signs, planes, summary[v])
        top, nonce = own, nonces[v // per_row]
        for i in range(len(ops)):
            problem, top = _step(
                w, z, n, ops[i], params[i], own, top, threshold, alias, keys, nonce, spare, state, v % per_row, raw
            )
            if problem != opcodes.OK:
                return (v + 1) * 8 + problem
        summary[v, 2] = float(top)
        for j in range(n):
            y[v, j] = w[j]
    return 0
