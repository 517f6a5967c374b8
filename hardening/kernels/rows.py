"""What each instruction does to a block of rows, in place. The plain-numpy twin of each is its transform's `reference`.

`top` is the class that leads now and `own` the model's own choice, as floats, in every lane of the row.
"""

from __future__ import annotations

from typing import Any

from hardening.kernels import opcodes
from hardening.kernels.blocks import (
    HUGE,
    Block,
    block,
    count_above,
    exact_sum,
    extremes,
    first_equal,
    largest,
    mark_largest,
    place,
    raise_top,
    sum_above,
)
from hardening.kernels.lanes import (
    WIDTH,
    across_max,
    across_min,
    across_sum,
    bits_of,
    device,
    fill,
    floor,
    fused,
    lane,
    larger,
    lowest_bit,
    next_up,
    rint,
    smaller,
    some,
    where,
)
from hardening.kernels.memory import gather, load, scatter, store

FIXED_POINT = 2.0**32
#: Rows of at least this many classes, of which at most one in `FEW` is not zero, are rounded by what is not zero alone.
LONG, FEW = 256, 4
#: More than a threshold that starts an iteration may be off by rounding.
SLACK = 2.0**-30
#: Beyond this a sum of scores in fixed point is no longer exact.
MOST_SCORE = 2.0**18


@device
def quotient(x: Any, divisor: Any, inverse: Any) -> Any:
    """x / divisor, correctly rounded, from the rounded inverse of the divisor (Markstein 1990): no division.

    For quotients and divisors far from the ends of the exponent's range, as scores are.
    """
    q = x * inverse
    return fused(fused(0.0 - q, divisor, x), inverse, q)


@device
def divide(b: Block, divisor: Any) -> None:
    inverse = 1.0 / divisor
    for i in range(b.m):
        store(b.w, i, quotient(load(b.w, i), divisor, inverse))


@device
def clip(b: Block, low: float, high: float) -> None:
    for i in range(b.m):
        store(b.w, i, smaller(larger(load(b.w, i), fill(low)), fill(high)))


@device
def to_grid(b: Block, units: float) -> None:
    many = fill(units)
    inverse = 1.0 / many
    for i in range(b.m):
        store(b.w, i, quotient(rint(load(b.w, i) * units), many, inverse))


@device
def one_hot(b: Block, top: Any) -> None:
    column = b.column
    for i in range(b.m):
        store(b.w, i, where(column == top, fill(1.0), fill(0.0)))
        column = column + b.stride


@device
def at_half(b: Block) -> None:
    for i in range(b.m):
        store(b.w, i, where(load(b.w, i) >= 0.5, fill(1.0), fill(0.0)))


@device
def temper(b: Block, t: float, simplex: bool, top: Any) -> None:
    if not simplex:
        for i in range(b.m):  # not `divide`: a mask may be the least float there is, and its quotient beyond it
            store(b.w, i, load(b.w, i) / t)
        return
    divide(b, gather(b.w, place(b, top)))
    for j in range(WIDTH * b.m):
        b.w[j] = b.w[j] ** (1.0 / t)
    divide(b, exact_sum(b, b.w))


@device
def reverse_sigmoid(b: Block, beta: float, gamma: float, simplex: bool) -> None:
    for j in range(WIDTH * b.m):
        p = min(max(b.w[j], 1e-9), 1.0 - 1e-9)
        ratio = ((1.0 - p) / p) ** gamma
        b.w[j] = min(max(p - beta * (1.0 / (1.0 + ratio) - 0.5), 0.0), 1.0)
    if simplex:
        s = exact_sum(b, b.w)
        for i in range(b.m):
            store(b.w, i, where(s > 0.0, load(b.w, i) / where(s > 0.0, s, fill(1.0)), fill(1.0 / b.n)))


@device
def _add_at(b: Block, column: Any, amount: Any) -> None:
    at = place(b, column)
    scatter(b.w, at, gather(b.w, at) + amount)


@device
def _pick(b: Block, few: int, room: int, top: Any) -> Any:
    """The `few` entries that are not zero, from left to right, in `residual`, their columns in `marks` from `room` on.

    Returns where `top` is among them.
    """
    leader, at, count = int(lane(top, 0)), 0, 0
    for j in range(room - WIDTH, room):
        b.residual[j] = 0.0
    for i in range(b.m):
        found = bits_of(load(b.w, i) > 0.0)
        while found != 0:
            j = WIDTH * i + lowest_bit(found)
            found &= found - 1
            if count < few:
                at = count if j == leader else at
                b.residual[count], b.marks[room + count] = b.w[j], float(j)
                count += 1
    return fill(float(at))


@device
def to_types(b: Block, units: float, top: Any) -> None:
    """Largest-remainder rounding to multiples of 1/units; ties, and a lost lead, go to `top`.

    A zero has no remainder and stays zero, so that of a long row with few scores only these are looked at.
    """
    few, room = 0, 0
    if b.wide and b.n >= LONG:
        few = int(lane(count_above(b, b.w, fill(0.0)), 0))
    picked = 0 < FEW * few <= b.n
    work, leader = b, top
    if picked:
        room = (few + WIDTH - 1) // WIDTH * WIDTH
        leader = _pick(b, few, room, top)
        work = block(b.residual, b.residual[room:], b.marks, few, True)
    _round_types(work, units, leader)
    if picked:
        for k in range(few):
            b.w[int(b.marks[room + k])] = b.residual[k]


@device
def _round_types(b: Block, units: float, top: Any) -> None:
    given, none, column = fill(0.0), fill(0.0), b.column
    for i in range(b.m):
        scaled = load(b.w, i) * units
        count = floor(scaled)
        residual = scaled - count  # that of `top` is raised, see `raise_top`
        store(b.residual, i, where(column == top, next_up(residual), residual))
        column = column + b.stride
        store(b.w, i, count)
        given = given + (where(b.last, count, none) if i == b.m - 1 else count)
    missing = units - (across_sum(given) if b.wide else given)
    most = fill(b.n - 1.0)
    extra = where(missing < 0.0, missing, where(missing > most, missing - most, none))
    if some(extra != 0.0):
        _add_at(b, top, extra)
        missing = missing - extra
    mark_largest(b, b.residual, missing, fill(-1e-9), fill(1.0))
    most = fill(-HUGE)
    for i in range(b.m):
        v = load(b.w, i) + load(b.marks, i)
        store(b.w, i, v)
        most = larger(most, where(b.last, v, most) if i == b.m - 1 else v)
    lead = first_equal(b, b.w, across_max(most) if b.wide else most)
    if some(lead != top):
        _restore_top(b, top, lead)
    divide(b, fill(units))


@device
def _restore_top(b: Block, top: Any, lead: Any) -> None:
    """Rounding has tied the top class with an earlier one: one unit moves to it from the weakest that was given one."""
    weakest = fill(HUGE)
    column = b.column
    for i in range(b.m):
        giver = (load(b.marks, i) > 0.0) & (column != top)
        giver = giver & b.last if i == b.m - 1 else giver
        weakest = where(giver, smaller(weakest, load(b.residual, i)), weakest)
        column = column + b.stride
    weakest = across_min(weakest) if b.wide else weakest
    donor = fill(-1.0)
    column = b.column
    for i in range(b.m):
        giver = (load(b.marks, i) > 0.0) & (column != top) & (load(b.residual, i) == weakest)
        giver = giver & b.last if i == b.m - 1 else giver
        donor = where(giver, larger(donor, column), donor)
        column = column + b.stride
    donor = across_max(donor) if b.wide else donor
    donor = where(donor < 0.0, lead, donor)
    unit = where(lead != top, fill(1.0), fill(0.0))
    _add_at(b, donor, 0.0 - unit)
    _add_at(b, top, unit)


@device
def keep_top_k(b: Block, k: int, mode: int, value: float, top: Any) -> None:
    """Leaves the k largest entries, ties to `top` and then to the lower index."""
    before = raise_top(b, b.w, top)
    low, high = extremes(b, b.w)
    mark_largest(b, b.w, fill(float(k)), 0.0 - next_up(0.0 - low), high)
    scatter(b.w, place(b, top), before)
    if mode == opcodes.REMAINDER_FILL:
        for i in range(b.m):
            store(b.w, i, where(load(b.marks, i) > 0.0, load(b.w, i), fill(value)))
        return
    for i in range(b.m):
        store(b.residual, i, load(b.w, i) * load(b.marks, i))
    mass = exact_sum(b, b.residual)
    if mode == opcodes.REMAINDER_SPREAD:
        share = larger(1.0 - mass, fill(0.0)) / float(b.n - k)
        for i in range(b.m):
            store(b.w, i, where(load(b.marks, i) > 0.0, load(b.w, i), share))
        return
    for i in range(b.m):
        store(b.w, i, load(b.residual, i))
    if mode == opcodes.REMAINDER_DROP:
        divide(b, mass)
    else:
        _add_at(b, fill(value), larger(1.0 - mass, fill(0.0)))


@device
def _threshold(b: Block, a: Any, mass: float, t: Any) -> Any:
    """The t at which what is above it, less t each, sums to `mass`, from a t that is not above it.

    Michelot's iteration, which is Newton's method on the threshold.
    """
    s, count = sum_above(b, a, t)
    going = count > 0.0
    while some(going):
        before = count
        t = where(going, (s - mass) / larger(count, fill(1.0)), t)
        s, count = sum_above(b, a, t)
        going = going & (count != before) & (count > 0.0)
    return t


@device
def _best_of_parts(b: Block) -> None:
    """Puts the largest entry of each of 64 parts of a long row into `marks`."""
    for k in range(WIDTH):
        store(b.marks, k, fill(-HUGE))
    for i in range(b.m):
        v = load(b.w, i)
        v = where(b.last, v, fill(-HUGE)) if i == b.m - 1 else v
        store(b.marks, i % WIDTH, larger(load(b.marks, i % WIDTH), v))


@device
def _project(b: Block, mass: float, highest: Any) -> None:
    """Onto {x >= 0, sum x = mass} (Michelot 1986)."""
    if b.wide and b.n >= LONG:
        # The threshold of any part of a row is at most that of the row, and its best entries come close.
        _best_of_parts(b)
        parts = block(b.marks, b.residual, b.residual, WIDTH * WIDTH, True)
        t = larger(_threshold(parts, b.marks, mass, highest - mass) - SLACK, highest - mass)
    else:
        total, _ = sum_above(b, b.w, fill(-HUGE))
        t = larger((total - mass) / float(b.n), highest - mass)
    t = _threshold(b, b.w, mass, t)
    for i in range(b.m):
        store(b.w, i, larger(load(b.w, i) - t, fill(0.0)))


@device
def _pool_top(b: Block, own: Any) -> None:
    """Lowers whatever is above `own`, and raises `own`, to the level at which `own` leads (isotonic pooling)."""
    start = gather(b.w, place(b, own))
    level = start
    s, count = sum_above(b, b.w, level)
    going = count > 0.0
    if not some(going):
        return
    pooled = going
    while some(going):
        before = count
        level = where(going, (start + s) / (1.0 + count), level)
        s, count = sum_above(b, b.w, level)
        going = going & (count != before) & (count > 0.0)
    level = where(pooled, floor(level * FIXED_POINT) / FIXED_POINT, level)
    for i in range(b.m):
        v = load(b.w, i)
        store(b.w, i, where(pooled, smaller(v, level), v))
    scatter(b.w, place(b, own), level)


@device
def project(b: Block, keep: bool, margin: float, own: Any) -> Any:
    """Euclidean projection onto the simplex, or onto its part where `own` leads by `margin`.

    Returns a mask of the rows with scores so large that sums in fixed point are not exact; their result is void.
    """
    low, high = fill(HUGE), fill(-HUGE)
    for i in range(b.m):
        v = rint(load(b.w, i) * FIXED_POINT) / FIXED_POINT
        store(b.w, i, v)
        v = where(b.last, v, fill(0.0)) if i == b.m - 1 else v
        low, high = smaller(low, v), larger(high, v)
    if b.wide:
        low, high = across_min(low), across_max(high)
    far = larger(high, 0.0 - low) > MOST_SCORE
    if some(far):
        return far
    if not keep or b.n < 2:
        # A row that ends within a vector has seen zeros there, which may be more than any of its entries.
        _project(b, 1.0, largest(b, b.w))
        return far
    gap = fill(margin)
    _add_at(b, own, 0.0 - gap)
    _pool_top(b, own)
    _project(b, 1.0 - margin, gather(b.w, place(b, own)))
    _add_at(b, own, gap)
    return far
