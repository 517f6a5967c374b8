"""The linear program of utility-bounded perturbation, for one row.

It is ``min c.z`` for z on the simplex with a bounded L1 distance from y, and with the top class kept if that is wanted.
Scores are whole numbers, of which `UNIT` are one, and so are costs; every sum that decides is exact, and neither the
order of the work nor the machine matters. A key is a cost and, in its low bits, the column: no two are equal, and of
equal costs the lower column counts as the cheaper. Nothing is allocated; a row's width bounds the steps.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from hardening.kernels.lanes import apart, device

#: Scores are multiples of 1 / UNIT.
UNIT = 2.0**52
#: Costs are whole numbers of at most this much: `PLACES` digits of `PLACE` bits.
MOST_COST = 2.0**34
PLACES, PLACE, DIGITS = 6, 6, 64
#: Up to this many keys are sorted by insertion.
SHORT = 32
#: More than a row has units.
ROOM = 1 << 53


@device
def nearest(x: float) -> Any:
    return np.int64(math.floor(x + 0.5))


@device
def to_units(row: Any, units: Any) -> None:
    """Scores to whole numbers; both arrays may be the same memory."""
    for j in range(row.size):
        units[j] = nearest(row[j] * UNIT)


@device
def to_scores(units: Any, row: Any) -> None:
    for j in range(row.size):
        row[j] = units[j] / UNIT


@device
def number(keys: Any) -> Any:
    """Makes keys of costs; returns how many low bits hold the column."""
    shift = 0
    while (1 << shift) < keys.size:
        shift += 1
    for j in range(keys.size):
        keys[j] = (keys[j] << shift) | j
    return shift


@device
def _split(keys: Any, units: Any, at: Any, low: Any, high: Any) -> tuple[Any, Any, Any]:
    """Units of the classes with keys above `at`; of the keys up to it and above it, those next to it.

    But for keys beyond `low` and `high`, in whose stead these are returned.
    """
    s = np.int64(0)
    for j in range(units.size):
        above = keys[j] > at
        s += units[j] if above else np.int64(0)
        low = max(low, low if above else keys[j])
        high = min(high, keys[j] if above else high)
    return s, low, high


@device
def _donors(keys: Any, units: Any, level: Any, highest: Any, budget: Any) -> tuple[Any, Any, Any]:
    """Who gives `budget` or all there is, the dearest first, among classes with keys of at least `level`.

    Returns the key above which everything is given, what the class with that key gives, and the sum of it all.
    """
    low, high = level - 1, highest
    available, _, _ = _split(keys, units, low, low, high)
    given = min(budget, available)
    rest = given
    while low < high:
        middle = low + (high - low) // 2
        s, below, above = _split(keys, units, middle, low, high)
        if s <= given:
            high, rest = below, given - s
        else:
            low = above
    return high, rest, given


@device
def _after(units: Any, key: Any, last: Any, rest: Any, cheapest: Any, given: Any) -> Any:
    """What a class is left with."""
    if key > last:
        return np.int64(0)
    if key == last:
        units -= rest
    return units + given if key == cheapest else units


@apart
def perturb(units: Any, keys: Any, room: Any, shift: int, top: int, keep: bool, budget: Any, margin: Any) -> None:
    """Replaces `units` by the cheapest row of the same sum that at most `budget` of them have to be moved for.

    What is moved goes to the cheapest class, from the dearest on, and only where that lowers the cost: a fractional
    knapsack. With `keep`, `top` leads by at least `margin` afterwards, or by `budget` if that is less; it must be a
    largest entry before. `keys` and `room`, for `DIGITS` numbers more than the row has, are overwritten.
    """
    cheapest, highest = keys[0], keys[0]
    for j in range(units.size):
        cheapest, highest = min(cheapest, keys[j]), max(highest, keys[j])
    level = ((cheapest >> shift) + 1) << shift
    last, rest, given = _donors(keys, units, level, highest, budget)
    if keep and units.size > 1:
        margin = min(margin, budget)
        most = np.int64(0)
        for j in range(units.size):
            if j != top:
                most = max(most, _after(units[j], keys[j], last, rest, cheapest, given))
        if _after(units[top], keys[top], last, rest, cheapest, given) < most + margin:
            _perturb_below(units, keys, room, shift, top, budget, margin)
            return
    for j in range(units.size):
        units[j] = _after(units[j], keys[j], last, rest, cheapest, given)


@apart
def sort(keys: Any, spare: Any, tallies: Any, shift: int, count: int) -> None:
    """The first `count` keys, which are in the order of their columns, in ascending order.

    A few by insertion, more by their digits from the last on. `spare`: room for as many; `tallies`: for `DIGITS`.
    """
    if count <= SHORT:
        for k in range(1, count):
            key, i = keys[k], k
            while i > 0 and keys[i - 1] > key:
                keys[i] = keys[i - 1]
                i -= 1
            keys[i] = key
        return
    source, target, least = keys, spare, np.int64(MOST_COST) << shift
    for place in range(shift, shift + PLACES * PLACE, PLACE):
        for d in range(DIGITS):
            tallies[d] = 0
        for k in range(count):
            tallies[((source[k] + least) >> place) & (DIGITS - 1)] += 1
        before = np.int64(0)
        for d in range(DIGITS):
            tallies[d], before = before, before + tallies[d]
        for k in range(count):
            d = ((source[k] + least) >> place) & (DIGITS - 1)
            target[tallies[d]] = source[k]
            tallies[d] += 1
        source, target = target, source


class Others(NamedTuple):
    """The classes beside the top one in ascending order of cost.

    Attributes:
        keys, scores: of the first `size` entries each; the rest is of no meaning. shift: see `number`.
        total: of the whole row. cost: of the top class.
    """

    keys: Any
    scores: Any
    shift: int
    size: int
    total: Any
    cost: Any


class Filling(NamedTuple):
    """How the others are filled best once the score of the top class is fixed.

    Attributes:
        slope: what one unit more for the top class would cost; below 0 where the cap is too low for any filling.
        along: for how many units more, at least, that stays so.
        low, high: classes before `low` are filled up to the cap, those behind `high` are emptied.
        more, less: what class `low` gets, and class `high` gives, beside.
    """

    slope: Any
    along: Any
    low: int
    high: int
    more: Any
    less: Any


@device
def _steps(amount: Any, rate: Any) -> Any:
    """So many steps of `rate` until `amount` is used up."""
    return (amount + rate - 1) // rate if rate > 0 else np.int64(ROOM)


@apart
def _fill(row: Others, y: Any, v: Any, budget: Any, margin: Any) -> Filling:
    """How `row` is filled best under the cap ``v - margin``, where the top class had y and is to have v."""
    keys, scores, shift, count = row.keys, row.scores, row.shift, row.size
    none, cap, falls = np.int64(0), v - margin, np.int64(v < y)
    more, less = budget - max(v - y, none), budget - max(y - v, none)
    losers = falls
    for i in range(count):
        less -= max(scores[i] - cap, none)
        losers += scores[i] > cap
    if less < 0:
        return Filling(np.int64(-1), _steps(0 - less, losers), 0, 0, none, none)
    low, high = 0, count - 1
    while low < count and max(cap - scores[low], none) < more:
        more -= max(cap - scores[low], none)
        low += 1
    while high >= 0 and min(scores[high], cap) <= less:
        less -= min(scores[high], cap)
        high -= 1
    binds = low <= high
    if not binds:
        # More could be moved than is worth it: the cheapest are full, the rest is empty, one has what is left.
        rest = row.total - v
        low = min(max(rest - 1, none) // cap, count - 1)
        rest -= low * cap
        if rest > cap:
            return Filling(np.int64(-1), _steps(rest - cap, count + 1), 0, 0, none, none)
        high, more, less = low, rest - min(scores[low], cap), none
    price, worth = keys[low] >> shift, keys[high] >> shift  # of a unit less to get, and of a unit less to give
    slope, gains, losses = row.cost - (worth if falls else price), 1 - falls, falls
    for i in range(low):
        below = scores[i] <= cap
        slope += (keys[i] >> shift) - price if below else none
        gains += below
    for i in range(high):
        above = scores[i] > cap
        slope += (keys[i] >> shift) - worth if above else none
        losses += above
    along = y - v if falls else row.total
    for i in range(count):
        along = min(along, scores[i] - cap if scores[i] > cap else along)
    if binds:
        along = min(along, _steps(more, gains), _steps(min(scores[high], cap) - less, losses))
    else:
        used = max(v - y, none) + max(more, none)
        for i in range(low):
            used += max(cap - scores[i], none)
        along = min(along, _steps(more + min(scores[low], cap), low + 1), _steps(budget - used, gains))
    return Filling(slope, along, low, high, more, less)


@apart
def _perturb_below(units: Any, keys: Any, room: Any, shift: int, top: int, budget: Any, margin: Any) -> None:
    """`perturb` where the margin binds.

    The least cost is a convex, piecewise linear function of the top class's score, and its minimum is where the slope
    changes sign: the search halves, and leaves the piece it is on. Of several best scores it finds the least.
    """
    count, columns = units.size - 1, (1 << shift) - 1
    spare, tallies = room[: units.size], room[units.size :]
    y, cost, total = units[top], keys[top] >> shift, units[top]
    for j in range(top, count):
        keys[j] = keys[j + 1]
    sort(keys, spare, tallies, shift, count)
    for i in range(count):
        spare[i] = units[keys[i] & columns]
        total += spare[i]
    row = Others(keys, spare, shift, count, total, cost)
    low, high = max(y - budget, margin + 1), min(y + budget, total)
    while low < high:
        filling = _fill(row, y, low, budget, margin)
        if filling.slope >= 0:
            high = low
        else:
            low = min(low + max(filling.along, 1), high)
            middle = low + (high - low) // 2
            filling = _fill(row, y, middle, budget, margin)
            if filling.slope >= 0:
                high = middle
            else:
                low = min(middle + max(filling.along, 1), high)
    best = _fill(row, y, high, budget, margin)
    cap = high - margin
    for i in range(count):
        z = cap if i < best.low else (min(spare[i], cap) if i <= best.high else 0)
        units[keys[i] & columns] = z + (best.more if i == best.low else 0) - (best.less if i == best.high else 0)
    units[top] = high
