"""Back onto the simplex."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from hardening.transforms.base import Draws, Op, Rows, State, Transform, first_argmax, require
from hardening.types import Guarantee, OutputSpace

#: Fixed-point grid on which projections add up scores: sums are exact whatever their order, so every machine agrees.
FIXED_POINT = 2.0**32
#: How far a kept top class stays ahead of the others, in score.
MARGIN = 2.0**-20


@dataclass(frozen=True)
class Project(Transform):
    """Euclidean projection onto the simplex (Held, Wolfe & Crowder 1974; Michelot 1986).

    With `keep_top1` onto the part of it where the model's own top class leads by at least 2**-20; the label is then
    that of the clean scores, so a guarantee of the noise before holds only among models with the same label.
    """

    kind: ClassVar[str] = "project"
    keep_top1: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.keep_top1, bool):
            raise ValueError(f"keep_top1: must be true or false, not {self.keep_top1!r}")

    def space_after(self, space: OutputSpace) -> OutputSpace:
        require(space, "simplex", why="only distributions live on the simplex")
        return replace(space, on_simplex=True, low=-math.inf, high=math.inf, units=None, support=None)

    def guarantee(self, before: Guarantee, space: OutputSpace, width: int | None) -> Guarantee:
        if not self.keep_top1 or before.relation == "label-rr":  # what it keeps then is the label that was drawn
            return before
        if before.relation == "output-metric":
            sentence = "models are compared only where they agree on the label, which is released as it is"
            return replace(
                before,
                relation="label",
                keeps_top1=not space.relabelled,
                assumptions=(*before.assumptions, sentence),
            )
        return replace(before, keeps_top1=not space.relabelled)

    def lower(self, space: OutputSpace) -> tuple[Op, ...]:
        return (Op("simplex.project", (float(self.keep_top1), MARGIN)),)

    def reference(self, state: State, space: OutputSpace, draws: Draws) -> State:
        rows = np.rint(state.rows * FIXED_POINT) / FIXED_POINT
        out = np.empty_like(rows)
        for i, (row, own) in enumerate(zip(rows, state.own, strict=True)):
            out[i] = _project_keeping(row, int(own)) if self.keep_top1 else _project(row, 1.0)
        return State(out, state.own, state.own if self.keep_top1 else first_argmax(out))


def _project(row: Rows, mass: float) -> Rows:
    """Sort-based projection onto {x >= 0, sum x = mass}."""
    if not row.size:
        return row
    ordered = np.sort(row)[::-1]
    thresholds = (np.cumsum(ordered) - mass) / np.arange(1, row.size + 1)
    return np.asarray(np.maximum(row - thresholds[np.nonzero(ordered > thresholds)[0][-1]], 0.0))


def _project_keeping(row: Rows, top: int) -> Rows:
    if row.size < 2:
        return np.ones_like(row)
    row = row.copy()
    row[top] -= MARGIN
    others = np.sort(np.delete(row, top))[::-1]
    pooled, size = row[top], 1
    for value in others:
        if value <= pooled / size:
            break
        pooled, size = pooled + value, size + 1
    if size > 1:
        level = math.floor(pooled / size * FIXED_POINT) / FIXED_POINT
        row = np.minimum(row, level)
        row[top] = level
    out = _project(row, 1.0 - MARGIN)
    out[top] += MARGIN
    return out
