"""Utility-bounded perturbation: the most misleading row within an L1 budget, and misinformation where scores are low.

One linear program serves three published defences. z replaces y, both distributions:

    minimise c.z  subject to  |z - y|_1 <= l1,  and z_top >= z_j + MARGIN for every other class j if `keep_top1` says so

It is solved exactly, on scores in units of 2**-52 and costs to 34 bits, so that all replicas agree. Ties: of equally
dear classes the last gives first, of equally cheap ones the first receives, and of several best scores for the top
class the least is taken. Where all classes cost the same, nothing moves unless the margin asks for it. None of them
promises anything: who knows the mechanism can undo part of it, and a thief who only reads labels does not notice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from hardening.kernels import layout
from hardening.transforms.base import Draws, Op, Rows, State, Transform, first_argmax, positive, require_on_simplex
from hardening.types import Guarantee, OutputSpace

UNIT = 2.0**52
MOST_COST, LOG_UNIT, FLOOR = 2.0**34, 2.0**30, 1e-6
#: How far a kept top class leads. Published is 1e-4, of which half precision may leave nothing; of the powers of two
#: this is the least that leaves it ahead after rounding to float16, whatever the row.
MARGIN = 2.0**-11
#: The least budget, but for none, with which any row can be given that margin and something is left to perturb with.
LEAST_L1 = 4 * MARGIN
UNIFORM = "uniform"


def _name(value: Any) -> None:
    if not isinstance(value, str) or not value:
        raise ValueError(f'surrogate: must be the name of a model output, or "uniform", not {value!r}')


def _falls_to_none(before: Guarantee, keeps_top1: bool, looks_aside: bool) -> Guarantee:
    """Deception promises nothing. What noise before it promised remains, unless clean scores of a surrogate come in."""
    if looks_aside:
        return replace(before, relation="none", parameters={}, assumptions=(), bits=math.inf, keeps_top1=keeps_top1)
    if before.relation in ("output-metric", "label", "label-rr"):
        return replace(before, keeps_top1=keeps_top1)
    return replace(before, relation="none", parameters={}, keeps_top1=keeps_top1)


@dataclass(frozen=True)
class Bounded(Transform):
    """What the linear programs share; each has its costs.

    Parameters: `l1` (0 to 2) bounds the L1 distance between the row before and after; with 0 the row stays as it is.
    With `keep_top1` the class that leads before leads afterwards, by 2**-11 at least.
    """

    l1: float
    keep_top1: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.l1, bool) or not isinstance(self.l1, int | float) or not 0.0 <= self.l1 <= 2.0:
            raise ValueError(f"l1: must be from 0 to 2, which is as far as two distributions can be, not {self.l1!r}")
        if not isinstance(self.keep_top1, bool):
            raise ValueError(f"keep_top1: must be true or false, not {self.keep_top1!r}")
        if self.keep_top1 and 0.0 < self.l1 < LEAST_L1:
            raise ValueError(
                f"l1: with keep_top1 must be 0 or at least {LEAST_L1:.2g}, not {self.l1!r}: a tie for the top class "
                "could not be broken within less"
            )

    @property
    def _cost_kind(self) -> int:
        raise NotImplementedError

    def _costs(self, y: Rows, other: Rows | None) -> NDArray[np.int64]:
        """Whole costs of ``(rows, classes)`` scores."""
        raise NotImplementedError

    def space_after(self, space: OutputSpace) -> OutputSpace:
        require_on_simplex(space)
        return replace(space, units=None, support=None) if self.l1 > 0 else space

    def guarantee(self, before: Guarantee, space: OutputSpace, width: int | None) -> Guarantee:
        if self.l1 == 0:
            return before
        return _falls_to_none(before, before.keeps_top1 and self.keep_top1, self.unreleased is not None)

    def lower(self, space: OutputSpace) -> tuple[Op, ...]:
        if self.l1 == 0:
            return ()
        budget, margin = math.floor(self.l1 / 2 * UNIT), MARGIN * UNIT
        params = (float(self._cost_kind), float(budget), margin, float(self.keep_top1))
        return (Op("perturbation.linear", params, scratch=4),)

    def reference(self, state: State, space: OutputSpace, draws: Draws) -> State:
        if self.l1 == 0:
            return state
        units = nearest(state.rows * UNIT)
        costs = self._costs(units / UNIT, state.other)
        budget = math.floor(self.l1 / 2 * UNIT)
        out = np.empty_like(units)
        for i, (y, c, top) in enumerate(zip(units.tolist(), costs.tolist(), state.top.tolist(), strict=True)):
            out[i] = _perturbed(y, c, top if self.keep_top1 else None, budget, int(MARGIN * UNIT))
        rows = out / UNIT
        return state._replace(rows=rows, top=state.top if self.keep_top1 else first_argmax(rows))


@dataclass(frozen=True)
class Mld(Bounded):
    """Maximum log-likelihood deviation, ModelGuard-W (Tang et al. 2024): c = ln(y + 1e-6).

    Mass goes from classes that the model thinks likely to unlikely ones, which hurts whoever fits a copy to the answers
    by likelihood. Per row, as published with a batch of one.
    """

    kind: ClassVar[str] = "mld"

    @property
    def _cost_kind(self) -> int:
        return layout.COST_LOGARITHM

    def _costs(self, y: Rows, other: Rows | None) -> NDArray[np.int64]:
        m, exponent = np.frexp(y + FLOOR)
        low = m < math.sqrt(0.5)
        m, exponent = np.where(low, 2.0 * m, m), exponent - low
        s = (m - 1.0) / (m + 1.0)
        q, series = s * s, np.full_like(s, 1.0 / 19.0)
        for k in range(17, 0, -2):
            series = series * q + 1.0 / k
        return nearest((exponent * math.log(2.0) + 2.0 * s * series) * LOG_UNIT)


@dataclass(frozen=True)
class Steered(Bounded):
    """What looks at a `surrogate`: the name of an output of the model that is not released, or "uniform"."""

    surrogate: str = UNIFORM

    _against: ClassVar[int]

    def __post_init__(self) -> None:
        super().__post_init__()
        _name(self.surrogate)

    @property
    def unreleased(self) -> str | None:
        return None if self.surrogate == UNIFORM or self.l1 == 0 else self.surrogate

    @property
    def _cost_kind(self) -> int:
        return layout.COST_SCORE if self.surrogate == UNIFORM else self._against

    def _costs(self, y: Rows, other: Rows | None) -> NDArray[np.int64]:
        if self.surrogate == UNIFORM:
            return nearest(y * MOST_COST)
        assert other is not None
        return nearest(self._given_costs(y, other) * MOST_COST)

    def _given_costs(self, y: Rows, other: Rows) -> Rows:
        raise NotImplementedError


@dataclass(frozen=True)
class Mad(Steered):
    """Maximising angular deviation, MAD (Orekondy et al. 2020), in its linear form (Tang et al. 2024): c = y - p'.

    p' are the scores of a surrogate for the thief's copy. The gradient by which an answer y trains the last layer of
    such a copy is the outer product of y - p' and its features; that of z has the least product with it where
    z.(y - p') is least, and no gradient has to be computed. Without `keep_top1` and with it these are the published
    variants ``lp_extreme`` and ``lp_argmax``. `surrogate`: an output of the model that holds p' and is not released, or
    "uniform", which is what a surrogate says that has not been trained.
    """

    kind: ClassVar[str] = "mad"
    _against: ClassVar[int] = layout.COST_DIFFERENCE

    def _given_costs(self, y: Rows, other: Rows) -> Rows:
        return np.asarray(y - np.clip(other, 0.0, 1.0))


@dataclass(frozen=True)
class Grad2(Steered):
    """Gradient redirection, GRAD^2 (Mazeika et al. 2022): c is the direction in which the copy is to be driven.

    `surrogate`: an output of the model that holds this direction and is not released, any finite numbers, one for each
    class: the derivative of (the gradient that an answer gives a surrogate) . (the gradient wanted) by the answer. Or
    "uniform": against the gradient of the true answer, in the last layer of a surrogate that has not been trained,
    where c = y - 1/K. As published it comes with ``keep_top1 = false``.
    """

    kind: ClassVar[str] = "grad2"
    _against: ClassVar[int] = layout.COST_GIVEN

    def _given_costs(self, y: Rows, other: Rows) -> Rows:
        most = np.abs(other).max(axis=1, keepdims=True)
        return np.asarray(np.divide(other, most, out=np.zeros_like(other), where=most > 0))


@dataclass(frozen=True)
class Misinformation(Transform):
    """Adaptive misinformation (Kariyappa & Qureshi 2020): (1 - a) y + a g, a = 1 / (1 + exp(nu (max y - tau))).

    Where the model is not sure, as it is not on most of what a thief asks, the answer becomes that of a surrogate g.
    `surrogate`: an output of the model that holds g, trained to be wrong, and is not released; or "uniform". Promises
    nothing, and questions of the kind that the model was trained on are answered truly.
    """

    kind: ClassVar[str] = "misinformation"
    tau: float
    nu: float = 1000.0
    surrogate: str = UNIFORM

    def __post_init__(self) -> None:
        positive("nu", self.nu)
        if not 0.0 <= self.tau <= 1.0:
            raise ValueError(f"tau: must be from 0 to 1, as scores are, not {self.tau!r}")
        _name(self.surrogate)

    @property
    def unreleased(self) -> str | None:
        return None if self.surrogate == UNIFORM else self.surrogate

    def space_after(self, space: OutputSpace) -> OutputSpace:
        require_on_simplex(space)
        return replace(space, units=None, support=None)

    def guarantee(self, before: Guarantee, space: OutputSpace, width: int | None) -> Guarantee:
        return _falls_to_none(before, False, self.unreleased is not None)

    def lower(self, space: OutputSpace) -> tuple[Op, ...]:
        return (Op("perturbation.misinform", (self.nu, self.tau, float(self.surrogate == UNIFORM)), scratch=2),)

    def reference(self, state: State, space: OutputSpace, draws: Draws) -> State:
        y = state.rows
        exponent = np.clip(self.nu * (y.max(axis=1, keepdims=True) - self.tau), -700.0, 700.0)
        share = 1.0 / (1.0 + np.exp(exponent))
        g: Any = 1.0 / y.shape[1]
        if self.surrogate != UNIFORM:
            assert state.other is not None
            positive_part = np.maximum(state.other, 0.0)
            g = positive_part / (nearest(positive_part * UNIT).sum(axis=1, keepdims=True) / UNIT)
        rows = nearest(((1.0 - share) * y + share * g) * UNIT) / UNIT
        return state._replace(rows=rows, top=first_argmax(rows))


def nearest(x: Rows) -> NDArray[np.int64]:
    return np.floor(x + 0.5).astype(np.int64)


def _perturbed(y: list[int], costs: list[int], top: int | None, budget: int, margin: int) -> list[int]:
    """The linear program in whole numbers, one row; by transfers, the top class's score by bisection."""
    order = sorted(range(len(y)), key=lambda j: (costs[j], j))
    best, z, left = order[0], list(y), budget
    for j in reversed(order):
        if costs[j] > costs[best]:
            moved = min(z[j], left)
            z[j], z[best], left = z[j] - moved, z[best] + moved, left - moved
    margin = min(margin, budget)
    if top is None or len(y) < 2 or z[top] >= max(v for j, v in enumerate(z) if j != top) + margin:
        return z
    order.remove(top)

    def cost(v: int) -> int | None:
        others = _others(y, order, v - margin, max(v - y[top], 0), max(y[top] - v, 0), budget)
        return None if others is None else sum(others[j] * costs[j] for j in order) + v * costs[top]

    low, high = max(y[top] - budget, margin), min(y[top] + budget, sum(y))
    while low < high:
        middle = (low + high) // 2
        here, next_ = cost(middle), cost(middle + 1)
        if here is None or (next_ is not None and next_ < here):
            low = middle + 1
        else:
            high = middle
    others = _others(y, order, low - margin, max(low - y[top], 0), max(y[top] - low, 0), budget)
    assert others is not None
    return [low if j == top else others[j] for j in range(len(y))]


def _others(y: list[int], order: list[int], cap: int, gain: int, loss: int, budget: int) -> dict[int, int] | None:
    """The cheapest filling of all but the top class, which gained or lost; None if there is none."""
    z = {j: min(y[j], cap) for j in order}
    loss += sum(y[j] - z[j] for j in order)
    if cap < 0 or max(gain, loss) > budget:
        return None
    for j in order:  # the cheapest first
        moved = min(cap - z[j], max(loss - gain, 0))
        z[j], gain = z[j] + moved, gain + moved
    for j in reversed(order):
        moved = min(z[j], max(gain - loss, 0))
        z[j], loss = z[j] - moved, loss + moved
    if gain != loss or gain > budget:
        return None
    first, last, left = 0, len(order) - 1, budget - gain
    while first < last and left > 0:
        moved = min(left, cap - z[order[first]], z[order[last]])
        z[order[first]], z[order[last]], left = z[order[first]] + moved, z[order[last]] - moved, left - moved
        first, last = first + (z[order[first]] == cap), last - (z[order[last]] == 0)
    return z
