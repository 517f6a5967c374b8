"""The last step of every program: scores as they leave, in their dtype and in nothing but its ordinary numbers.

A float64 row becomes one of the released dtype, each entry rounded once, to nearest. No NaN, no infinity, no subnormal
number and no negative zero leaves: what is beyond the largest finite number becomes that, what is below the smallest
normal one becomes 0. On the simplex the sum of a released row of K entries, taken exactly, differs from one by at most
``(K + 2) u``, u being the unit roundoff 2**-11, 2**-24 or 2**-53; as multiples of 1/n are rounded once, they are the
floats nearest to these. A top class that is promised leads after rounding as well: where it ties with an earlier one it
gets the next larger float.

In float16 scores below 2**-14 are subnormal, and long rows consist of little else. On the simplex they become 0 or
2**-14 by error diffusion (Floyd & Steinberg 1976, in one dimension), in the order of the classes, so each moves by less
than 2**-14; what is left over, less than 2**-14 too, goes to the leading class, which gets 2**-13 if it has less.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from hardening.transforms.base import Labels, Op, Rows

#: Exact sums of float64 rows are in units of 2**-40 and, of what that leaves, 2**-72.
COARSE, FINE = 2.0**40, 2.0**32


def release(dtype: DTypeLike, simplex: bool, keep: bool) -> Op:
    """The instruction for rows that leave as `dtype`; with `keep` the model's own top class leads."""
    about = np.finfo(np.dtype(dtype))
    numbers = (about.smallest_normal, about.max, np.nextafter(about.max, about.dtype.type(0)), about.eps)
    name = {"float16": "half", "float32": "single", "float64": "double"}[np.dtype(dtype).name]
    return Op(f"release.{name}", (float(simplex), float(keep), *map(float, numbers)))


def released(rows: Rows, top: Labels, dtype: DTypeLike, simplex: bool, keep: bool) -> Rows:
    """The same in plain numpy: float64 rows that `dtype` holds exactly. `top`: labels that lead."""
    _, _, least, most, before, eps = release(dtype, simplex, keep).params
    kind: Any = np.dtype(dtype).type
    out = np.clip(rows, -most, most)
    if simplex and kind is np.float16:
        for row, t in zip(out, top, strict=True):
            diffuse(row, int(t), least)
    out[np.abs(out) < least] = 0.0
    if simplex and kind is np.float64 and rows.size:
        units = out * COARSE
        whole = np.rint(units)
        off = (whole.sum(axis=1) - COARSE) / COARSE + np.rint((units - whole) * FINE).sum(axis=1) / (COARSE * FINE)
        far = np.abs(off) > rows.shape[1] * 2.0**-53
        out[far] /= (1.0 + off[far])[:, None]
    out = out.astype(kind).astype(np.float64)
    if keep and rows.size:
        for row, t in zip(out, top, strict=True):
            if row.argmax() != t:
                _lift(row, int(t), kind, (least, most, before, eps))
    return out


def diffuse(row: NDArray[np.float64], top: int, least: float) -> None:
    """Entries of a distribution below `least` become 0 or `least`, in place."""
    carry = 0.0
    if row[top] < least:
        carry, row[top] = row[top] - 2 * least, 2 * least
    for c, v in enumerate(row):
        if v < least:
            carry += v
            row[c] = least if carry >= least else 0.0
            carry -= row[c]
    row[top] += carry


def _lift(row: NDArray[np.float64], top: int, kind: Any, about: tuple[float, ...]) -> None:
    least, most, before, eps = about
    high = row.max()
    above = least if high == 0 else high + abs(high) * 0.75 * eps
    if above > most:
        row[:] = np.minimum(row, before)
    above = 0.0 if abs(above) < least else above
    row[top] = float(kind(min(above, most)))


def largest_gap(width: int, dtype: DTypeLike) -> float:
    """How far from one the exact sum of a released distribution of `width` entries may be."""
    return math.ldexp(float(np.finfo(np.dtype(dtype)).eps), -1) * (width + 2)
