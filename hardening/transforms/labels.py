"""Labels that are drawn: what is released is a class, and its chances hardly depend on the model.

Every chance is an integer over 2**64, from a table that is computed exactly; nothing is drawn in floating point. Scores
are first put on a grid of `LEVELS` steps over the range that the space or a clip gives them.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field, replace
from decimal import Decimal, localcontext
from fractions import Fraction
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from hardening.errors import SpaceError
from hardening.transforms.base import (
    SECRECY,
    Draws,
    Keyed,
    Labels,
    Op,
    Rows,
    State,
    Transform,
    check_key,
    first_argmax,
    require,
    require_on_simplex,
)
from hardening.types import Guarantee, OutputSpace

#: Steps of the grid that scores are put on, over their whole range.
LEVELS = 4096
#: Cells of ``key = "cell"`` over the range of the scores, at least; their width is a power of two.
CELLS = 16
#: Largest epsilon: beyond it nothing is hidden.
MOST_EPSILON = 1000.0
#: Total-variation distance of what is drawn to the exact law, for each class: weights and thresholds are off by at most
#: one unit of 2**-64 each, and so is each class's share of the last word.
TV_PER_CLASS = 2.0**-63


@functools.lru_cache(maxsize=64)
def decay(rate: Fraction, steps: int, one: int) -> NDArray[np.uint64]:
    """exp(-rate d) for d = 0, ..., steps in units of 1 / one, rounded to the nearest; below 2**64."""
    with localcontext() as context:
        context.prec = 70
        factor = (-Decimal(rate.numerator) / Decimal(rate.denominator)).exp()
        value, values = Decimal(one), []
        for _ in range(steps + 1):
            values.append(min(int(value.to_integral_value()), 2**64 - 1))
            value *= factor
    table = np.array(values, np.uint64)
    table.flags.writeable = False
    return table


def score_range(space: OutputSpace) -> tuple[float, float]:
    """Between what the scores lie. Raises SpaceError if nothing bounds them."""
    require(space, "simplex", "logits", why="it draws one of several classes")
    if space.kind == "simplex":
        require_on_simplex(space)
        return 0.0, 1.0
    if not math.isfinite(space.high - space.low):
        raise SpaceError("needs scores within known bounds: put a clip before it")
    return space.low, space.high


@dataclass(frozen=True)
class LabelMechanism(Transform):
    """A one-hot row whose class is drawn; the same question gets the same label.

    key, scope: as for noise. With ``cell`` the label is that of a cell of the quantised scores, drawn once: asking
    again nearby gains nothing either, but models in different cells can be told apart, so no epsilon is promised.
    """

    epsilon: float
    key: Keyed = field(default="input", kw_only=True)
    scope: Literal["global", "client"] = field(default="global", kw_only=True)

    #: Of the privacy loss: rho over epsilon^2, and why.
    rho_per_square: ClassVar[float] = 0.5
    rho_source: ClassVar[str] = "rho = epsilon^2 / 2 (Bun & Steinke 2016)"

    def __post_init__(self) -> None:
        if not 0.0 <= self.epsilon <= MOST_EPSILON:
            raise ValueError(f"epsilon: must be from 0 to {MOST_EPSILON:g}, not {self.epsilon!r}")
        check_key(self.key, self.scope)

    def context(self) -> tuple[str | int | float, ...]:
        return (self.kind, self.epsilon, self.key, self.scope)

    def space_after(self, space: OutputSpace) -> OutputSpace:
        self.check(space)
        if self.key == "cell":
            score_range(space)
        bounds = (space.low, space.high) if space.kind == "simplex" else (0.0, 1.0)
        return replace(
            space,
            on_simplex=space.kind == "simplex",
            low=bounds[0],
            high=bounds[1],
            support=1,
            units=None,
            relabelled=True,
        )

    def check(self, space: OutputSpace) -> None:
        """Raise SpaceError if labels cannot be drawn in this space."""
        score_range(space)

    def cell(self, space: OutputSpace) -> float:
        """Width of the cells of ``key = "cell"``."""
        low, high = score_range(space)
        return math.ldexp(1.0, math.frexp((high - low) / CELLS)[1] - 1)

    def capacity(self, width: int) -> float:
        """Most bits that a drawn label of `width` classes can carry."""
        raise NotImplementedError

    def guarantee(self, before: Guarantee, space: OutputSpace, width: int | None) -> Guarantee:
        if self.key == "cell":
            return Guarantee(
                "capacity",
                "answer",
                scope=self.scope,
                assumptions=(
                    "the label of a cell is drawn once: it hides where in a cell the scores lie, nothing else",
                ),
                bits=min(before.bits, math.inf if width is None else math.log2(max(width, 1))),
            )
        return self.promise_of(before, width)

    def promise_of(self, before: Guarantee, width: int | None) -> Guarantee:
        """`guarantee` of a draw that is not keyed on a cell."""
        tv = math.inf if width is None else width * TV_PER_CLASS
        return Guarantee(
            "label-rr",
            "distinct input" if self.key == "input" else "answer",
            {
                "epsilon": self.epsilon,
                "delta": min(1.0, (1.0 + math.exp(min(self.epsilon, 700.0))) * tv),
                "rho": self.rho_per_square * self.epsilon**2,
            },
            self.scope,
            (
                "the loss is that of one question; those of different questions add up",
                SECRECY,
                self.rho_source,
            ),
            min(before.bits, math.inf if width is None else self.capacity(max(width, 1))),
        )

    def op(self, call: str, numbers: tuple[float, ...], data: NDArray[np.uint64]) -> Op:
        """The instruction that draws, given its numbers and table."""
        padded = (*numbers, *(0.0,) * (6 - len(numbers)))
        flags = (float(self.key == "cell"), float(self.scope == "client"))
        scratch = int(call == "labels.permute_and_flip")
        return Op(call, (*padded, *flags), data, self.key, self.scope == "client", scratch=scratch)

    def lower(self, space: OutputSpace) -> tuple[Op, ...]:
        cells = (Op("additive.to_cells", (self.cell(space),)),) if self.key == "cell" else ()
        return (*cells, *self.draw(space))

    def draw(self, space: OutputSpace) -> tuple[Op, ...]:
        """The instructions after the scores were put into cells, if they are."""
        raise NotImplementedError

    def reference(self, state: State, space: OutputSpace, draws: Draws) -> State:
        if self.key == "cell":
            rows = np.rint(state.rows / self.cell(space)) * self.cell(space)
            state = state._replace(rows=rows, top=first_argmax(rows))
        labels = self.labels_of(state, space, next(draws))
        onehot = np.zeros_like(state.rows)
        onehot[np.arange(len(labels)), labels] = 1.0
        return state._replace(rows=onehot, own=labels, top=labels)

    def labels_of(self, state: State, space: OutputSpace, words: NDArray[np.uint64]) -> Labels:
        """The labels that each row's 64-bit words draw."""
        raise NotImplementedError


def _behind(rows: Rows, low: float, high: float, steps: int) -> NDArray[np.int64]:
    """By how many levels each score is behind the best of its row."""
    levels = np.clip(np.rint((rows - low) * (steps / (high - low))), 0, steps).astype(np.int64)
    return np.asarray(levels.max(axis=1, keepdims=True) - levels)


def _drawn_by_weight(behind: NDArray[np.int64], table: NDArray[np.uint64], words: NDArray[np.uint64]) -> Labels:
    labels = []
    for row, word in zip(behind, words[:, 0].tolist(), strict=True):
        sums = np.cumsum(table[row].astype(object))
        labels.append(int(np.sum(sums <= word * sums[-1] // 2**64)))
    return np.array(labels, np.intp)


@dataclass(frozen=True)
class Exponential(LabelMechanism):
    """A class with chances proportional to exp(epsilon score / (2 D)) (McSherry & Talwar 2007).

    D is how far the scores of two models can be apart, whatever the models: 1 on the simplex, the width of the clip on
    logits. Any change of the model then changes the chances of a label by a factor of at most e^epsilon; and by bounded
    range the loss is rho-zCDP with rho = epsilon^2 / 8 (Cesar & Rogers 2021).
    """

    kind: ClassVar[str] = "exponential"
    rho_per_square: ClassVar[float] = 0.125
    rho_source: ClassVar[str] = "rho = epsilon^2 / 8 by bounded range (Cesar & Rogers 2021)"

    def capacity(self, width: int) -> float:
        """No more than the divergence between any two laws, which rho bounds."""
        return min(math.log2(width), self.rho_per_square * self.epsilon**2 / math.log(2))

    @property
    def table(self) -> NDArray[np.uint64]:
        """Weight of a class by how many levels it is behind the best, in units of 2**-63."""
        return decay(Fraction(self.epsilon) / (2 * LEVELS), LEVELS, 1 << 63)

    def draw(self, space: OutputSpace) -> tuple[Op, ...]:
        low, high = score_range(space)
        return (self.op("labels.exponential", (low, LEVELS / (high - low), LEVELS), self.table),)

    def labels_of(self, state: State, space: OutputSpace, words: NDArray[np.uint64]) -> Labels:
        return _drawn_by_weight(_behind(state.rows, *score_range(space), LEVELS), self.table, words)


@dataclass(frozen=True)
class PermuteAndFlip(LabelMechanism):
    """Classes in random order; the first that comes through, with chance exp(epsilon (score - best) / (2 D)).

    McKenna & Sheldon 2020, D as for `Exponential`: the same epsilon, and never more often a worse class. Drawn as an
    even choice from all that come through, which is the same law in constant work. Its range is not bounded as that of
    the exponential mechanism is: rho = epsilon^2 / 2.
    """

    kind: ClassVar[str] = "permute_and_flip"

    def capacity(self, width: int) -> float:
        """No more than the divergence between any two laws of pure loss epsilon (Bun & Steinke 2016)."""
        return min(math.log2(width), self.epsilon * math.tanh(self.epsilon / 2) / math.log(2))

    @property
    def table(self) -> NDArray[np.uint64]:
        """Chance of a class to come through by how many levels it is behind the best, in units of 2**-64."""
        return decay(Fraction(self.epsilon) / (2 * LEVELS), LEVELS, 1 << 64)

    def draw(self, space: OutputSpace) -> tuple[Op, ...]:
        low, high = score_range(space)
        return (self.op("labels.permute_and_flip", (low, LEVELS / (high - low), LEVELS), self.table),)

    def labels_of(self, state: State, space: OutputSpace, words: NDArray[np.uint64]) -> Labels:
        behind = _behind(state.rows, *score_range(space), LEVELS)
        through = (behind == 0) | (words < self.table[behind])
        free = words[np.arange(len(words)), behind.argmin(axis=1)].tolist()  # the best comes through whatever its word
        picked = (np.flatnonzero(row)[word * int(row.sum()) // 2**64] for row, word in zip(through, free, strict=True))
        return np.array(list(picked), np.intp)


@dataclass(frozen=True)
class KRandomisedResponse(LabelMechanism):
    """The model's label with chance e^epsilon / (e^epsilon + K - 1), else evenly one of the K - 1 others (Warner 1965).

    It needs a label and nothing else: scores on the simplex, or logits whatever their range.
    """

    kind: ClassVar[str] = "k_rr"

    def check(self, space: OutputSpace) -> None:
        require(space, "simplex", "logits", why="it draws one of several classes")

    def capacity(self, width: int) -> float:
        """That of a symmetric channel, log2 K + p log2 p + (1 - p) log2((1 - p) / (K - 1))."""
        if width < 2:
            return 0.0
        lost = math.exp(-self.epsilon)
        kept, other = 1.0 / (1.0 + (width - 1) * lost), lost / (1.0 + (width - 1) * lost)
        lower = (width - 1) * other * math.log2(other) if other > 0 else 0.0
        return max(0.0, math.log2(width) + kept * math.log2(kept) + lower)

    @property
    def table(self) -> NDArray[np.uint64]:
        """Weights of the model's label and of each other one, in units of 2**-63."""
        return decay(Fraction(self.epsilon), 1, 1 << 63)

    def draw(self, space: OutputSpace) -> tuple[Op, ...]:
        draw = self.op("labels.exponential", (0.0, 1.0, 1.0), self.table)
        return Op("classes.label_only"), draw

    def labels_of(self, state: State, space: OutputSpace, words: NDArray[np.uint64]) -> Labels:
        behind = (np.arange(state.rows.shape[1]) != state.top[:, None]).astype(np.int64)
        return _drawn_by_weight(behind, self.table, words)
