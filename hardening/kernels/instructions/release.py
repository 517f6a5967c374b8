"""The last step of every program: scores as they leave, in their dtype and in nothing but its ordinary numbers.

Parameters of all three: p0 = 1: on the simplex; p1 = 1: the model's own top class leads; p2: smallest normal number;
p3: largest number; p4: the number before it; p5: from one to the number after it.
"""

from __future__ import annotations

import math
from typing import Any

from hardening.kernels import layout
from hardening.kernels.blocks import HUGE, Block, divide, first_equal, place
from hardening.kernels.job import block_of, fields, own_of, params_of, report
from hardening.kernels.lanes import (
    WIDTH,
    across_max,
    across_sum,
    columns,
    device,
    fabs,
    fill,
    lane,
    larger,
    outer,
    rint,
    smaller,
    some,
    to_single,
    where,
)
from hardening.kernels.memory import load, store

#: Units of exact sums: 2**-40 and, of what that leaves, 2**-72.
COARSE, FINE = 2.0**40, 2.0**32


def single(job: int) -> None:
    """Scores that leave as float32."""
    j = fields(job)
    b, p = block_of(j), params_of(j)
    high = _bring_within(j, b, p[2], p[3], True)
    if p[1] > 0.0:
        _keep_lead(b, p, high, own_of(j), True)


def double(job: int) -> None:
    """Scores that leave as float64; on the simplex they are divided by their sum once more, where that counts."""
    j = fields(job)
    b, p = block_of(j), params_of(j)
    high = _bring_within(j, b, p[2], p[3], False)
    if p[0] > 0.0:
        off = _gap(b)
        far = fabs(off) > float(b.n) * 2.0**-53
        if some(far):
            total = where(far, fill(1.0) + off, fill(1.0))
            divide(b, total)
            high = _bring_within(j, b, p[2], p[3], False)
    if p[1] > 0.0:
        _keep_lead(b, p, high, own_of(j), False)


@device
def _bring_within(j: Any, b: Block, least: float, most: float, narrow: bool) -> Any:
    """No infinity, no subnormal number, no negative zero, rounded to float32 if `narrow`; returns the largest.

    NaN, which sums of the largest floats there are may end in, is an error.
    """
    none, high, lost = fill(0.0), fill(-HUGE), fill(0.0)
    for i in range(b.m):
        v = load(b.w, i)
        nothing = where(v != v, fill(float(layout.OUT_OF_RANGE)), none)
        lost = larger(lost, where(b.last, nothing, none) if i == b.m - 1 else nothing)
        v = smaller(larger(v, fill(-most)), fill(most))
        v = where(fabs(v) < least, none, v)
        v = to_single(v) if narrow else v
        store(b.w, i, v)
        high = larger(high, where(b.last, v, high) if i == b.m - 1 else v)
    report(j, across_max(lost) if b.wide else lost)
    return across_max(high) if b.wide else high


@device
def _gap(b: Block) -> Any:
    """The sum less one, exactly but for what is below 2**-73 in each entry."""
    coarse, fine, none = fill(0.0), fill(0.0), fill(0.0)
    for i in range(b.m):
        units = load(b.w, i) * COARSE
        units = where(b.last, units, none) if i == b.m - 1 else units
        whole = rint(units)
        coarse, fine = coarse + whole, fine + rint((units - whole) * FINE)
    if b.wide:
        coarse, fine = across_sum(coarse), across_sum(fine)
    return (coarse - COARSE) / COARSE + fine / (COARSE * FINE)


@outer
def _keep_lead(b: Block, p: Any, high: Any, own: Any, narrow: bool) -> None:
    """Where rounding has tied the class in `own` with an earlier one, it gets the number above the largest."""
    behind = first_equal(b, b.w, high) != own
    if not some(behind):
        return
    least, most, none = fill(p[2]), fill(p[3]), fill(0.0)
    above = where(high == none, least, high + fabs(high) * (0.75 * p[5]))
    full = behind & (above > most)
    above = where(fabs(above) < least, none, smaller(above, most))
    above = to_single(above) if narrow else above
    if some(full):
        for i in range(b.m):
            v = load(b.w, i)
            store(b.w, i, where(full, smaller(v, fill(p[4])), v))
    for k in range(1 if b.wide else WIDTH):
        if lane(where(behind, fill(1.0), none), k) > 0.0:
            c = int(lane(place(b, own), k))
            b.w[c] = lane(above, k)


@device
def _to_half(v: float) -> float:
    """The nearest number of eleven bits, halves to even; for what float16 holds as normal numbers, and 0."""
    if v == 0.0:
        return 0.0
    _, exponent = math.frexp(v)
    scale = math.ldexp(1.0, 11 - exponent)
    scaled = v * scale
    down = math.floor(scaled)
    rest = scaled - down
    up = rest > 0.5 or (rest == 0.5 and down % 2.0 == 1.0)
    return (down + (1.0 if up else 0.0)) / scale


def half(job: int) -> None:
    """Scores that leave as float16."""
    j = fields(job)
    b, p, own = block_of(j), params_of(j), own_of(j)
    for k in range(1 if b.wide else WIDTH):
        stride, first = (1, 0) if b.wide else (WIDTH, k)
        row = b.w[first : first + stride * (b.n - 1) + 1 : stride]
        nothing = 0.0
        for v in row:
            nothing = float(layout.OUT_OF_RANGE) if v != v else nothing
        report(j, where(columns(0) == float(k), fill(nothing), fill(0.0)))
        _row_to_half(row, p, int(lane(own, k)))


@outer
def _row_to_half(row: Any, p: Any, top: int) -> None:
    least, most = p[2], p[3]
    if p[0] > 0.0:
        _diffuse(row, top, least)
    high, lead = -HUGE, 0
    for c in range(row.size):
        v = min(max(row[c], -most), most)
        v = 0.0 if abs(v) < least else _to_half(v)
        row[c] = v
        if v > high:
            high, lead = v, c
    if p[1] > 0.0 and lead != top:
        above = least if high == 0.0 else high + abs(high) * (0.75 * p[5])
        if above > most:
            for c in range(row.size):
                row[c] = min(row[c], p[4])
        above = 0.0 if abs(above) < least else above
        row[top] = _to_half(min(above, most))


@device
def _diffuse(row: Any, top: int, least: float) -> None:
    """Entries of a distribution below `least` become 0 or `least`; what is left over goes to `top`."""
    carry = 0.0
    if row[top] < least:
        carry = row[top] - 2.0 * least
        row[top] = 2.0 * least
    for c in range(row.size):
        if row[c] < least:
            carry += row[c]
            row[c] = least if carry >= least else 0.0
            carry -= row[c]
    row[top] += carry
