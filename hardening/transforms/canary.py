"""Answers changed for one client alone, to tell later whose answers a copy was learnt from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from hardening.errors import SpaceError
from hardening.transforms.base import Draws, Labels, Op, Rows, State, Transform, require, require_on_simplex
from hardening.types import Guarantee, OutputSpace

#: Classes that name a cell, words of the name, the odds where a cell ends as a logarithm, the most levels of odds: the
#: constants of the kernel.
RANKS, NAME, LOG_ODDS, LEVELS = 4, 8, 1.3862943611198906, 4096


@dataclass(frozen=True)
class Canary(Transform):
    """In a small share of cells the best class and one of the next three change places (DAWN, Szyller et al. 2021).

    A cell is the four best classes in their order, with the odds of the first against the second in powers of four;
    near-duplicates of a question share it, and with it the decision. Which cells are changed, and for which class, is
    drawn by the key for each client. The row's scores stay what they are, in another order. What keeps the model's own
    label afterwards, such as ``project``, keeps the one that is told.

    A cell's chance to be changed is rate * 2**64, rounded down, over 2**64: of the cells that a client visits the share
    that is changed is binomial with at most that mean, and so is the mean share of his answers. It is no cap on a
    single client: if half of his questions lie in one cell, half of his answers are changed with that chance. A row
    whose best class does not lead alone is never changed.

    Put it before the noise, so that near-duplicates stay in one cell. Noise that follows is drawn by the question and
    by what changed places: the answers of two clients, one of whom is told another order, differ by more than that.
    The rate does not key what is drawn: with a higher one there are more canaries beside the same ones, and records
    stay valid.
    """

    kind: ClassVar[str] = "canary"
    rate: float

    def __post_init__(self) -> None:
        if not 0.0 < self.rate <= 1.0:
            raise ValueError(f"rate: must be above 0 and at most 1, not {self.rate!r}")

    @property
    def threshold(self) -> int:
        """The rate in units of 2**-64, rounded down; at most 2**64 - 1."""
        return min(int(Fraction(self.rate) * 2**64), 2**64 - 1)

    def context(self) -> tuple[str | int | float, ...]:
        return (self.kind,)

    def space_after(self, space: OutputSpace) -> OutputSpace:
        require(space, "simplex", "logits", why="it changes which class is best")
        if space.kind == "simplex":
            require_on_simplex(space)
        if space.support == 1:
            raise SpaceError("would change a row that has one class only: put it before")
        return replace(space, relabelled=True)

    def guarantee(self, before: Guarantee, space: OutputSpace, width: int | None) -> Guarantee:
        """Chances that depend on the released row and the client alone take nothing away from a promise."""
        return replace(before, keeps_top1=False)

    def lower(self, space: OutputSpace) -> tuple[Op, ...]:
        numbers = (float(space.kind == "logits"),)
        data = np.array([self.threshold], np.uint64)
        return (Op("canary.canary", numbers, data, keyed="cell", personal=True, scratch=RANKS),)

    def reference(self, state: State, space: OutputSpace, draws: Draws) -> State:
        """Draws are two words for each row, of the keystream that `cells` and the client select."""
        rows, labels = state.rows.copy(), state.top.copy()
        words, width = next(draws), rows.shape[1]
        order = ranks(rows, state.top)
        for i, (row, best) in enumerate(zip(rows, order, strict=True)):
            which = 1 + int(words[i, 1]) * (min(width, RANKS) - 1) // 2**64
            if width > 1 and row[best[0]] > row[best[1]] and int(words[i, 0]) < self.threshold:
                labels[i] = best[which]
                row[[best[0], best[which]]] = row[[best[which], best[0]]]
        return state._replace(rows=rows, own=labels, top=labels)


def ranks(rows: Rows, top: Labels) -> NDArray[np.int64]:
    """The four best classes of each row, `top` first and of equals the leftmost; `top` again where there are fewer."""
    ahead = rows.copy()
    ahead[np.arange(len(rows)), top] = np.inf
    order = np.argsort(-ahead, axis=1, kind="stable")[:, :RANKS]
    missing = RANKS - order.shape[1]
    return np.hstack([order, np.repeat(np.asarray(top)[:, None], missing, axis=1)]).astype(np.int64)


def cells(rows: Rows, top: Labels, space: OutputSpace) -> NDArray[np.uint64]:
    """Eight words ``(rows, 8)`` that name the cell of each row, given the class that leads."""
    order = ranks(rows, top)
    first, second = (rows[np.arange(len(rows)), order[:, i]] for i in (0, 1))
    if space.kind == "logits":
        level = np.minimum(np.floor((first - second) / LOG_ODDS), LEVELS)
    else:
        ratio = np.divide(first, second, out=np.full(len(rows), 1e300), where=second > 0)
        level = np.frexp(np.minimum(ratio, 1e300))[1] // 2
    named = np.zeros((len(rows), NAME), np.uint64)
    named[:, :RANKS], named[:, RANKS] = order, np.maximum(level, 0)
    return named
