"""Evidence against one client, a row at a time: scores by lane, and the wealth of a bettor against its innocence.

`hardening.clients.evidence` says what is computed and why; this does the same in the client's packed row.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import carray

from hardening.kernels import layout
from hardening.kernels.lanes import (
    WIDTH,
    across_sum,
    apart,
    columns,
    device,
    fill,
    lane,
    larger,
    pointer,
    smaller,
    where,
)
from hardening.kernels.layout import (
    BASELINE_NUMBERS,
    CLOSE,
    EASY,
    EXPECTED,
    EXTREME,
    HARD,
    LANES,
    MEMORY,
    NO_PRIOR,
    OCTAVES,
    PRIOR,
    REMEMBERED,
    RUIN,
    THRESHOLDS,
    WINDOW,
    WINDOWS,
    Lane,
)
from hardening.kernels.memory import load, load_at, store_at

PARTS = float(layout.PARTS)
_HIGH, _TAIL, _LOW, _COLLAPSE, _DIVERSE, _NOVEL, _BOUNDARY, _DUPLICATE = map(float, Lane)
_MOST = np.uint32(0xFFFFFFFF)
_HARD, _HARDER = HARD.start, HARD.stop


@device
def _either(index: float, at: Any, value: float, rest: Any) -> Any:
    return where(at == index, fill(value), rest)


@device
def _yes(condition: bool) -> float:
    return 1.0 if condition else 0.0


@device
def _scores(numbers: Any, entropy: float, margin: float, same: float, new: bool, duplicate: bool) -> Any:
    """One score for each `Lane`."""
    at, s, hard = columns(0), fill(0.0), 0.0
    for k in range(_HARD, _HARDER):
        hard += _yes(entropy > numbers[k])
    s = _either(_LOW, at, _yes(entropy < numbers[EASY]), s)
    s = _either(_HIGH, at, hard / (_HARDER - _HARD), s)
    s = _either(_TAIL, at, _yes(entropy > numbers[EXTREME]), s)
    s = _either(_BOUNDARY, at, _yes(margin < numbers[CLOSE]), s)
    s = _either(_COLLAPSE, at, same, s)
    s = _either(_DIVERSE, at, 1.0 - same, s)
    s = _either(_NOVEL, at, _yes(new), s)
    return _either(_DUPLICATE, at, _yes(duplicate), s)


@device
def _octave(rows: int) -> int:
    """Power of two that `rows` + 1 reaches."""
    octave = 0
    while octave < OCTAVES - 1 and (rows + 1) >> (octave + 1):
        octave += 1
    return octave


@device
def seen(recent: Any, key: Any) -> bool:
    """Whether `key` is among the questions that are remembered; uint32 ``(REMEMBERED,)``, 0 where there is none."""
    found = False
    for k in range(REMEMBERED):
        found |= recent[k] == key
    return found


@device
def refresh(recent: Any, key: Any, newest: int) -> None:
    """Make `key`, one of those remembered, the last to be forgotten; the newest of the ring is at `newest`."""
    k = 0
    while k < REMEMBERED - 1 and recent[k] != key:
        k += 1
    while k != newest:
        after = (k + 1) % REMEMBERED
        recent[k] = recent[after]
        k = after
    recent[newest] = key


@apart
def weigh(
    baseline: int,
    counts: int,
    wealth: int,
    excess: int,
    sums: int,
    window: int,
    entropy: float,
    margin: float,
    label: int,
    same: float,
    new: bool,
    duplicate: bool,
) -> None:
    """Enters one row that is asked for the first time.

    Args:
        baseline: address of the numbers at `Job.BASELINE`.
        counts, wealth, excess, sums: addresses of what the client's row holds: uint32 first occurrences and restarts,
            a float64, float32 ``(LANES,)`` and uint32 ``(LANES,)``.
        window: address of the last window's statistic, float32, of three uint32 - rows in the open window, windows
            closed, and those that stood out - and of the open one's sums, uint16 ``(LANES,)``.
        label: bin of the row's label.
        same: share of the client's earlier rows with this label; 0 if there are none.
    """
    numbers = carray(pointer(baseline), (BASELINE_NUMBERS,), np.float64)
    count, rich = carray(pointer(counts), (2,), np.uint32), carray(pointer(wealth), (1,), np.float64)
    ahead, total = carray(pointer(excess), (LANES,), np.float32), carray(pointer(sums), (LANES,), np.uint32)
    rows = np.int64(count[0])
    place = THRESHOLDS // WIDTH + 3 * _octave(rows)
    mean, sharp, most = load(numbers, place), load(numbers, place + 1), load(numbers, place + 2)
    e = load(numbers, EXPECTED // WIDTH) if rows == 0 else load_at(ahead, 0)
    raw = _scores(numbers[8 * label :], entropy, margin, same, new, duplicate)
    s = where(mean < fill(1.0), raw, mean)
    hope = larger(e, fill(0.0))
    bet = smaller(hope * sharp, most)
    gain = bet * hope
    whole = lane(across_sum(gain), 0)
    if whole > 0.0:
        rich[0] += math.log1p(lane(across_sum(gain * bet * (s - mean)), 0) / whole)
        if rich[0] < RUIN and count[1] < _MOST:
            rich[0] = 0.0
            count[1] += np.uint32(1)
    prior = where(load(numbers, EXPECTED // WIDTH) > 0.0, fill(PRIOR), fill(NO_PRIOR))
    store_at(ahead, 0, e + (s - mean - e) / (prior + float(rows if rows < MEMORY else MEMORY)))
    windows = carray(pointer(window + 4), (3,), np.uint32)
    opened = carray(pointer(window + 16), (LANES,), np.uint16)
    for k in range(LANES):
        part = np.uint32(lane(raw, k) * PARTS + 0.5)
        total[k] = total[k] + part if total[k] < _MOST - part else _MOST
        opened[k] += np.uint16(part)
    windows[0] += np.uint32(1)
    if windows[0] >= WINDOW:
        _close(numbers, window, windows, opened)
    if count[0] < _MOST:
        count[0] += np.uint32(1)


@device
def _close(numbers: Any, window: int, windows: Any, opened: Any) -> None:
    """Note down how far a window stands out, and open the next."""
    furthest = 0.0
    for k in range(LANES):
        above = opened[k] / PARTS / windows[0] - numbers[WINDOWS + k]
        furthest = max(furthest, above * numbers[WINDOWS + LANES + k])
        opened[k] = np.uint16(0)
    carray(pointer(window), (1,), np.float32)[0] = furthest
    windows[0] = np.uint32(0)
    windows[1] += np.uint32(windows[1] < _MOST)
    windows[2] += np.uint32(furthest > 1.0 and windows[2] < _MOST)
