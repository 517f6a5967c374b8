"""Saying less about classes: the best few, or the best alone."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from hardening.errors import SpaceError
from hardening.kernels import layout
from hardening.transforms.base import (
    Draws,
    Labels,
    Op,
    Rows,
    State,
    Transform,
    exact_sum,
    first_argmax,
    positive,
    require,
    require_on_simplex,
    whole,
)
from hardening.types import Guarantee, OutputSpace

#: Spaces where every entry is a yes or no of its own.
INDEPENDENT = ("sigmoid", "multilabel")


def _keep_mask(rows: Rows, top: Labels, k: int) -> NDArray[np.bool_]:
    keep = np.zeros(rows.shape, bool)
    for i, t in enumerate(top):
        row = rows[i].copy()
        row[t] = np.nextafter(row[t], np.inf)
        keep[i, np.argsort(-row, kind="stable")[:k]] = True
    return keep


@dataclass(frozen=True)
class TopK(Transform):
    """Keep the k largest scores.

    remainder, on the simplex: ``drop`` renormalises what is kept; ``spread`` shares the rest evenly among the others;
    ``other`` adds the rest to the one class named by `other`, such as a class "unknown". On logits the others are
    filled with a public constant, one below the low end of the clip that must come before; on labels of which several
    may apply (multilabel), with zero.
    """

    kind: ClassVar[str] = "top_k"
    k: int
    remainder: Literal["drop", "spread", "other"] = "drop"
    other: int | None = None

    def __post_init__(self) -> None:
        whole("k", self.k, 1, 10**9)
        if self.remainder not in ("drop", "spread", "other"):
            raise ValueError(f"remainder: must be 'drop', 'spread' or 'other', not {self.remainder!r}")
        if (self.remainder == "other") != (self.other is not None):
            raise ValueError('other: the index of a class; needed with remainder = "other" and only there')
        if self.other is not None:
            whole("other", self.other, 0, 10**9)

    def needs_width(self, width: int) -> None:
        if self.other is not None and self.other >= width:
            raise ValueError(f"other: class {self.other} does not exist, the output has {width} classes")

    def space_after(self, space: OutputSpace) -> OutputSpace:
        if space.kind == "logits":
            if self.remainder != "drop":
                raise SpaceError("remainder has no meaning on logits: leave it out")
            if not math.isfinite(space.low):
                raise SpaceError("on logits it fills with one below the low end of a clip: put a clip before it")
            return replace(space, low=space.low - 1.0, support=self.k)
        if space.kind == "multilabel":
            if self.remainder != "drop":
                raise SpaceError("remainder has no meaning on independent labels: leave it out")
            return replace(space, low=min(space.low, 0.0), high=max(space.high, 0.0), support=self.k)
        require(space, "simplex", "logits", "multilabel", why="it needs classes")
        require_on_simplex(space)
        return replace(space, support=self.k if self.remainder == "drop" else None, units=None)

    def guarantee(self, before: Guarantee, space: OutputSpace, width: int | None) -> Guarantee:
        bits = before.bits
        if self.k == 1 and space.kind == "simplex" and self.remainder == "drop" and width:
            bits = min(bits, math.log2(width))
        return replace(before, bits=bits, keeps_top1=before.keeps_top1 and self.remainder == "drop")

    @staticmethod
    def _fill(space: OutputSpace) -> float:
        return space.low - 1.0 if space.kind == "logits" else 0.0

    def lower(self, space: OutputSpace) -> tuple[Op, ...]:
        if space.kind != "simplex":
            return (Op("classes.top_k", (float(self.k), float(layout.REMAINDER_FILL), self._fill(space))),)
        mode = {
            "drop": layout.REMAINDER_DROP,
            "spread": layout.REMAINDER_SPREAD,
            "other": layout.REMAINDER_OTHER,
        }[self.remainder]
        return (Op("classes.top_k", (float(self.k), float(mode), float(self.other or 0))),)

    def reference(self, state: State, space: OutputSpace, draws: Draws) -> State:
        rows, width = state.rows, state.rows.shape[1]
        if self.k >= width:
            return state
        keep = _keep_mask(rows, state.top, self.k)
        if space.kind != "simplex":
            return state._replace(rows=np.where(keep, rows, self._fill(space)))
        kept = np.where(keep, rows, 0.0)
        mass = exact_sum(kept)[:, None]
        if self.remainder == "drop":
            return state._replace(rows=kept / mass)
        rest = np.maximum(1.0 - mass, 0.0)
        if self.remainder == "spread":
            return state._replace(rows=np.where(keep, rows, rest / (width - self.k)))
        kept[:, int(self.other or 0)] += rest[:, 0]
        return state._replace(rows=kept, top=first_argmax(kept))


@dataclass(frozen=True)
class Cutoff(Transform):
    """Drop every score below `low`. ART's `HighConfidence`, whose rows need not be distributions nor keep a top class.

    On the simplex the top class always stays, and what is kept is renormalised; independent sigmoids become 0 one by
    one.
    """

    kind: ClassVar[str] = "cutoff"
    low: float

    def __post_init__(self) -> None:
        positive("low", self.low)
        if self.low >= 1.0:
            raise ValueError(f"low: must be below 1, the largest score there is, not {self.low!r}")

    def space_after(self, space: OutputSpace) -> OutputSpace:
        if space.kind == "sigmoid":
            return space
        require_on_simplex(space)
        return replace(space, units=None)

    def guarantee(self, before: Guarantee, space: OutputSpace, width: int | None) -> Guarantee:
        return replace(before, keeps_top1=before.keeps_top1 and space.kind == "simplex")

    def lower(self, space: OutputSpace) -> tuple[Op, ...]:
        return (Op("classes.cutoff", (self.low, float(space.kind == "simplex"))),)

    def reference(self, state: State, space: OutputSpace, draws: Draws) -> State:
        keep = state.rows >= self.low
        if space.kind == "sigmoid":
            return state._replace(rows=np.where(keep, state.rows, 0.0))
        if state.rows.shape[1]:
            keep[np.arange(len(keep)), state.top] = True
        kept = np.where(keep, state.rows, 0.0)
        return state._replace(rows=kept / exact_sum(kept)[:, None])


@dataclass(frozen=True)
class LabelOnly(Transform):
    """One-hot of the top class; of independent values (sigmoid, multilabel) each is 0 or 1. ART's `ClassLabels`."""

    kind: ClassVar[str] = "label_only"

    def space_after(self, space: OutputSpace) -> OutputSpace:
        require(space, "simplex", "logits", "sigmoid", "multilabel", why="it needs classes")
        support = space.support if space.kind in INDEPENDENT else 1
        return replace(space, on_simplex=space.kind == "simplex", low=0.0, high=1.0, support=support, units=None)

    def guarantee(self, before: Guarantee, space: OutputSpace, width: int | None) -> Guarantee:
        bits = math.inf
        if width:
            bits = float(width) if space.kind in INDEPENDENT else math.log2(width)
        keeps = before.keeps_top1 and space.kind not in INDEPENDENT
        return replace(before, bits=min(before.bits, bits), keeps_top1=keeps)

    def lower(self, space: OutputSpace) -> tuple[Op, ...]:
        return (Op("classes.at_half" if space.kind in INDEPENDENT else "classes.label_only"),)

    def reference(self, state: State, space: OutputSpace, draws: Draws) -> State:
        rows = state.rows
        if space.kind in INDEPENDENT:
            return state._replace(rows=(rows >= 0.5).astype(np.float64))
        onehot = np.zeros_like(rows)
        if rows.shape[1]:
            onehot[np.arange(len(rows)), state.top] = 1.0
        return state._replace(rows=onehot)
