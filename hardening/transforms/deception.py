"""Published perturbations that promise nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

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
from hardening.transforms.simplex import MARGIN
from hardening.types import Guarantee, OutputSpace


def no_promise(before: Guarantee, keeps_top1: bool) -> Guarantee:
    """What is left after a deception: nothing, unless noise came before, whose promise nothing later can break."""
    if before.relation in ("output-metric", "label", "label-rr"):
        return replace(before, keeps_top1=keeps_top1)
    return replace(before, relation="none", parameters={}, keeps_top1=keeps_top1)


def l1_budget(value: float) -> None:
    """Raises ValueError unless `value` is above 0 and at most 2."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 < value <= 2.0:
        raise ValueError(f"l1: must be above 0 and at most 2, the largest distance of two distributions, not {value!r}")


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
        return no_promise(before, before.keeps_top1 and not self.allow_flip)

    def lower(self, space: OutputSpace) -> tuple[Op, ...]:
        numbers = (self.beta, self.gamma, float(space.kind == "simplex"), float(self.allow_flip))
        return (Op("deception.reverse_sigmoid", numbers),)

    def reference(self, state: State, space: OutputSpace, draws: Draws) -> State:
        rows = self._map(state.rows)
        if space.kind == "simplex" and rows.shape[1]:
            total = exact_sum(rows)[:, None]
            rows = np.where(total > 0, rows / np.where(total > 0, total, 1.0), 1.0 / rows.shape[1])
        return state._replace(rows=rows, top=first_argmax(rows) if self.allow_flip else state.top)


@dataclass(frozen=True)
class RandomTarget(Transform):
    """Moves l1 / 2 of every score to a class other than the top one, drawn for each question (Mazeika et al. 2022).

    y becomes (1 - a) y + a e_j with a = l1 / 2, which is 2 a (1 - y_j) away in L1; each class other than the top one is
    j with a probability of 1 / (K - 1), to within 2**-64. With `keep_top1` the amount a of a row is limited so that
    class j stays behind the top class by 2**-20: rows that are not sure move less than the budget allows. Asked about
    many inputs that are nearly alike, the mean of the answers is a known function of the clean scores.
    """

    kind: ClassVar[str] = "random_target"
    l1: float
    keep_top1: bool = True
    key: Literal["input", "fresh"] = field(default="input", kw_only=True)

    def __post_init__(self) -> None:
        l1_budget(self.l1)
        if not isinstance(self.keep_top1, bool):
            raise ValueError(f"keep_top1: must be true or false, not {self.keep_top1!r}")
        if self.key not in ("input", "fresh"):
            raise ValueError(f"key: must be 'input' or 'fresh', not {self.key!r}")

    def context(self) -> tuple[str | int | float, ...]:
        return (self.kind, self.l1, int(self.keep_top1), self.key)

    def space_after(self, space: OutputSpace) -> OutputSpace:
        require_on_simplex(space)
        return replace(space, units=None, support=None)

    def guarantee(self, before: Guarantee, space: OutputSpace, width: int | None) -> Guarantee:
        return replace(no_promise(before, before.keeps_top1 and self.keep_top1), bits=math.inf)

    def lower(self, space: OutputSpace) -> tuple[Op, ...]:
        return (Op("deception.random_target", (self.l1 / 2, float(self.keep_top1), MARGIN), keyed=self.key),)

    def reference(self, state: State, space: OutputSpace, draws: Draws) -> State:
        rows, width, every = state.rows.copy(), state.rows.shape[1], np.arange(len(state.rows))
        words = [int(word) for word in next(draws)[:, 0]]
        if width < 2:
            return state
        drawn = np.array([(word % 2**64) * (width - 1) >> 64 for word in words], np.intp)
        target = drawn + (drawn >= state.top)
        lead = rows[every, state.top] - rows[every, target]
        most = np.maximum((lead - MARGIN) / (1.0 + lead), 0.0)
        amount = np.minimum(self.l1 / 2, most) if self.keep_top1 else np.full(len(rows), self.l1 / 2)
        rows *= 1.0 - amount[:, None]
        rows[every, target] += amount
        return state._replace(rows=rows, top=state.top if self.keep_top1 else first_argmax(rows))
