"""Rounding to a grid: of decimals, or of the types on the simplex."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from hardening.transforms.base import (
    Draws,
    Labels,
    Op,
    Rows,
    State,
    Transform,
    bounded,
    no_labels,
    require,
    require_on_simplex,
    subset_bits,
    whole,
)
from hardening.types import Guarantee, OutputSpace

#: Spaces whose entries have bounds of their own, or may be given some.
BOUNDED = ("scalar", "sigmoid", "multilabel", "boxes")


def grid_bits(values: int, space: OutputSpace, width: int) -> float:
    """Bits of a row of entries with so many values each, of which a ``top_k`` may have left only some."""
    support = min(width, space.support or width)
    return support * math.log2(values) + subset_bits(width, support)


def types_bits(units: int, width: int) -> float:
    """log2 of the number of points on the simplex with `width` entries that are multiples of 1/`units`.

    There are C(units + width - 1, width - 1) of them (Reznik 2011).
    """
    if width < 1:
        return 0.0
    log = math.lgamma(units + width) - math.lgamma(width) - math.lgamma(units + 1)
    return max(0.0, log / math.log(2))


def _types_reference(rows: Rows, top: Labels, units: int) -> Rows:
    """Largest-remainder rounding of each row to multiples of 1/units, ties and lost tops given to `top`.

    The residual of `top` counts as the next larger float, which puts it ahead of its equals.
    """
    scaled = rows * units
    counts = np.floor(scaled)
    residuals = scaled - counts
    for i, (count, residual, t) in enumerate(zip(counts, residuals, top, strict=True)):
        width = len(count)
        missing = int(units - count.sum())
        if missing < 0 or missing >= width:
            extra = missing if missing < 0 else missing - width + 1
            count[t] += extra
            missing -= extra
        residual[t] = np.nextafter(residual[t], np.inf)
        order = np.argsort(-residual, kind="stable")
        receivers = order[:missing]
        count[receivers] += 1
        if count.argmax() != t:
            donors = [r for r in receivers if r != t]
            tied = int(count.argmax())
            weakest = min(donors, key=lambda j: (residual[j], -j)) if donors else tied
            count[weakest] -= 1
            count[t] += 1
        counts[i] = count
    return counts / units


@dataclass(frozen=True)
class Round(Transform):
    """Round to `decimals` places (Tramer et al. 2016). ART's `Rounded`.

    On the simplex the rounded row is the nearest one that still sums to one (largest remainder, as `Types` with
    10**decimals units); elsewhere each entry goes to the nearest multiple, halves to even.
    """

    kind: ClassVar[str] = "round"
    decimals: int

    def __post_init__(self) -> None:
        whole("decimals", self.decimals, 0, 9)

    @property
    def units(self) -> int:
        return int(10**self.decimals)

    def space_after(self, space: OutputSpace) -> OutputSpace:
        no_labels(space)
        if space.kind == "simplex":
            require_on_simplex(space)
            return replace(space, units=self.units)
        return replace(space, low=self._nearest(space.low), high=self._nearest(space.high))

    def _nearest(self, value: float) -> float:
        return float(np.rint(value * self.units) / self.units)

    def guarantee(self, before: Guarantee, space: OutputSpace, width: int | None) -> Guarantee:
        if space.kind == "simplex":
            return Types(n=self.units).guarantee(before, space, width)
        bits = math.inf
        if width is not None and math.isfinite(space.high - space.low):
            bits = grid_bits(math.floor((space.high - space.low) * self.units) + 2, space, width)
        return replace(before, bits=min(before.bits, bits), keeps_top1=False)

    def lower(self, space: OutputSpace) -> tuple[Op, ...]:
        simplex = space.kind == "simplex"
        return (Op("grid.types" if simplex else "grid.grid", (float(self.units),), sparse=simplex),)

    def reference(self, state: State, space: OutputSpace, draws: Draws) -> State:
        if space.kind == "simplex":
            return state._replace(rows=_types_reference(state.rows, state.top, self.units))
        with np.errstate(over="ignore"):
            scaled = state.rows * self.units  # from 2**52 on floats are whole
        return state._replace(rows=np.where(np.abs(scaled) < 2.0**52, np.rint(scaled) / self.units, state.rows))


@dataclass(frozen=True)
class Types(Transform):
    """Round to the nearest point of the simplex whose entries are multiples of 1/n (Reznik 2011).

    Deterministic, stateless, the same on every replica. Each entry moves by less than 1/n; the top class by less than
    2/n where a tie would otherwise cost it its place. Where entries have bounds of their own (scalar, sigmoid,
    multilabel, boxes), each goes to the nearest of n + 1 values that divide what lies between the bounds evenly.

    This is the only form of ModelGuard-S (Tang et al. 2024) on offer. Published, it answers with the first of the rows
    released so far that is near enough, else with the row itself, which joins them: what is released depends on who
    asked before and differs between replicas, the list grows without bound, a client can plant rows in it, and rows
    that are near none leave unchanged. A grid that is fixed beforehand limits an answer's bits without any of that.
    """

    kind: ClassVar[str] = "types"
    n: int

    def __post_init__(self) -> None:
        whole("n", self.n, 1, 10**9)

    def space_after(self, space: OutputSpace) -> OutputSpace:
        require(space, "simplex", *BOUNDED, why="other entries have no bounds to divide")
        if space.kind in BOUNDED:
            bounded(space)
            return space
        require_on_simplex(space)
        return replace(space, units=self.n)

    def guarantee(self, before: Guarantee, space: OutputSpace, width: int | None) -> Guarantee:
        bits = math.inf
        if space.kind in BOUNDED:
            bits = math.inf if width is None else grid_bits(self.n + 1, space, width)
            return replace(before, bits=min(before.bits, bits), keeps_top1=False)
        if width is not None:
            support = min(width, space.support or width)
            bits = types_bits(self.n, support) + subset_bits(width, support)
        return replace(before, bits=min(before.bits, bits))

    def lower(self, space: OutputSpace) -> tuple[Op, ...]:
        if space.kind in BOUNDED:
            return (Op("grid.even", (space.low, space.high, self._step(space))),)
        return (Op("grid.types", (float(self.n),), sparse=True),)

    def _step(self, space: OutputSpace) -> float:
        return (space.high - space.low) / self.n

    def reference(self, state: State, space: OutputSpace, draws: Draws) -> State:
        if space.kind in BOUNDED:
            rows = np.rint((state.rows - space.low) / self._step(space)) * self._step(space) + space.low
            return state._replace(rows=np.minimum(rows, space.high))
        return state._replace(rows=_types_reference(state.rows, state.top, self.n))
