"""Published perturbations that promise nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from hardening.transforms.base import (
    Draws,
    Op,
    State,
    Transform,
    exact_sum,
    first_argmax,
    positive,
    require,
    require_on_simplex,
)
from hardening.types import Guarantee, OutputSpace


@dataclass(frozen=True)
class ReverseSigmoid(Transform):
    """Deceptive perturbation y - beta (s(gamma logit y) - 1/2), renormalised (Lee et al. 2019). ART's `ReverseSigmoid`.

    No guarantee: the map is deterministic and a table undoes it. Parameters that could change the top class of some
    row are refused unless `allow_flip` says that this is meant.
    """

    kind: ClassVar[str] = "reverse_sigmoid"
    beta: float = 1.0
    gamma: float = 0.1
    allow_flip: bool = False

    def __post_init__(self) -> None:
        positive("beta", self.beta)
        positive("gamma", self.gamma)
        if not self.allow_flip:
            self.needs_width(2)

    def _map(self, p: Any) -> Any:
        clipped = np.clip(p, 1e-9, 1 - 1e-9)
        ratio = np.power((1.0 - clipped) / clipped, self.gamma)
        return np.clip(clipped - self.beta * (1.0 / (1.0 + ratio) - 0.5), 0.0, 1.0)

    def needs_width(self, width: int) -> None:
        if self.allow_flip or width < 2:
            return
        logit = np.linspace(-21.0, 21.0, 20001)
        p = 1.0 / (1.0 + np.exp(-logit))
        # Below a leading score q there can be anything up to min(q, 1 - q); the grid is symmetric about one half.
        reached = np.maximum.accumulate(self._map(p))
        reached = np.minimum(reached, reached[::-1])
        leads = p >= 1.0 / width
        flips = self._map(p)[leads] < reached[leads] - 1e-12
        if flips.any():
            raise ValueError(
                f"beta, gamma: with {width} classes these change the top class of some rows (a leading score of "
                f"{p[leads][flips][0]:.3g} can fall behind); choose smaller ones or set allow_flip = true"
            )

    def space_after(self, space: OutputSpace) -> OutputSpace:
        if space.kind in ("sigmoid", "multilabel"):
            return replace(space, low=0.0, high=1.0, units=None, support=None)
        require(space, "simplex", "sigmoid", "multilabel", why="it needs probabilities")
        require_on_simplex(space)
        return replace(space, units=None)

    def guarantee(self, before: Guarantee, space: OutputSpace, width: int | None) -> Guarantee:
        keeps = before.keeps_top1 and not self.allow_flip
        if before.relation in ("output-metric", "label"):
            return replace(before, keeps_top1=keeps)
        return replace(before, relation="none", parameters={}, keeps_top1=keeps)

    def lower(self, space: OutputSpace) -> tuple[Op, ...]:
        numbers = (self.beta, self.gamma, float(space.kind == "simplex"), float(self.allow_flip))
        return (Op("deception.reverse_sigmoid", numbers),)

    def reference(self, state: State, space: OutputSpace, draws: Draws) -> State:
        rows = self._map(state.rows)
        if space.kind == "simplex" and rows.shape[1]:
            total = exact_sum(rows)[:, None]
            rows = np.where(total > 0, rows / np.where(total > 0, total, 1.0), 1.0 / rows.shape[1])
        return state._replace(rows=rows, top=first_argmax(rows) if self.allow_flip else state.top)
