"""Changing scores one by one: bounds and temperature."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from hardening.transforms.base import (
    Draws,
    Op,
    State,
    Transform,
    exact_sum,
    no_labels,
    positive,
    require,
    require_on_simplex,
)
from hardening.types import Guarantee, OutputSpace


@dataclass(frozen=True)
class Clip(Transform):
    """Limit every entry to [low, high]. Bounds what noise has to hide, and what an answer can carry."""

    kind: ClassVar[str] = "clip"
    low: float
    high: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"low, high: must be finite with low < high, not {self.low!r} and {self.high!r}")

    def space_after(self, space: OutputSpace) -> OutputSpace:
        no_labels(space)
        low, high = max(space.low, self.low), min(space.high, self.high)
        return replace(space, on_simplex=False, low=low, high=high, units=None)

    def guarantee(self, before: Guarantee, space: OutputSpace, width: int | None) -> Guarantee:
        return replace(before, keeps_top1=False)

    def lower(self, space: OutputSpace) -> tuple[Op, ...]:
        return (Op("scores.clip", (self.low, self.high)),)

    def reference(self, state: State, space: OutputSpace, draws: Draws) -> State:
        return state._replace(rows=np.minimum(np.maximum(state.rows, self.low), self.high))


@dataclass(frozen=True)
class Temperature(Transform):
    """Soften (t > 1) or sharpen (t < 1) scores: logits are divided by t, probabilities raised to 1/t and renormalised.

    Invertible, so it hides nothing by itself; it only makes later rounding and noise count for more or less.
    """

    kind: ClassVar[str] = "temperature"
    t: float

    def __post_init__(self) -> None:
        positive("t", self.t)
        if not 1e-3 <= self.t <= 1e3:
            raise ValueError(f"t: must be between 0.001 and 1000, not {self.t!r}")

    def space_after(self, space: OutputSpace) -> OutputSpace:
        if space.kind == "simplex":
            require_on_simplex(space)
            return replace(space, units=None)
        require(space, "logits", why="a temperature needs class scores")
        return replace(space, low=space.low / self.t, high=space.high / self.t)

    def lower(self, space: OutputSpace) -> tuple[Op, ...]:
        return (Op("scores.temper_simplex" if space.kind == "simplex" else "scores.temper_logits", (self.t,)),)

    def reference(self, state: State, space: OutputSpace, draws: Draws) -> State:
        if space.kind == "logits":
            return state._replace(rows=state.rows / self.t)
        top = np.take_along_axis(state.rows, state.top[:, None], axis=1)
        powers = np.power(state.rows / top, 1.0 / self.t)
        return state._replace(rows=powers / exact_sum(powers)[:, None])
