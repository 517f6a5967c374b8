"""Embeddings: noise that grows with what a client has seen, and a rotation of the client's own (B4B)."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from hardening.kernels import layout
from hardening.noise import Law, grid_exponent
from hardening.transforms.base import Draws, Op, Rows, State, Transform, first_argmax, positive, require, whole
from hardening.types import Guarantee, OutputSpace

#: Cells that coverage is counted in.
CELLS = 1 << layout.CELL_BITS


@dataclass(frozen=True)
class CoverageNoise(Transform):
    """Gaussian noise that follows the client's coverage (Dubinski et al. 2023, B4B).

    Its standard deviation at a coverage of c per cent of the cells is ``base (exp(ln(alpha / base) c / beta) - 1)``,
    the paper's lambda being `base`, and at most `most`. It is drawn from a ladder of powers of two below `most`, at the
    highest that the formula allows; below the lowest, ``most / 2**15``, there is no noise. On one rung the same
    question has the same noise, for every client.

    Promises nothing about one answer: a new client gets none, and the rung follows from clean answers.
    """

    kind: ClassVar[str] = "coverage_noise"
    base: float = 1e-6
    alpha: float = 0.8
    beta: float = 80.0
    most: float = 0.8

    def __post_init__(self) -> None:
        for name in ("base", "alpha", "beta", "most"):
            positive(name, getattr(self, name))
        if self.alpha <= self.base:
            raise ValueError(f"alpha: must be more than base, the noise at a coverage of beta, not {self.alpha!r}")
        grid_exponent("gaussian", self.most)

    def sigma(self, percent: float) -> float:
        """Standard deviation at a coverage, before it is brought to a rung."""
        exponent = math.log(self.alpha / self.base) * percent / self.beta
        return min(self.most, self.base * math.expm1(min(exponent, 700.0)))

    def rung(self, visited: int) -> int:
        """Where on the ladder a client stands who has visited so many cells: from 0, no noise, to `layout.RUNGS`."""
        return int((self._thresholds <= visited).sum())

    @functools.cached_property
    def _thresholds(self) -> NDArray[np.int64]:
        """Cells from which on each rung holds; more than there are where it never does."""
        sigmas = np.array([self.sigma(100.0 * visited / CELLS) for visited in range(CELLS + 1)])
        rungs = self.most * 2.0 ** np.arange(1 - layout.RUNGS, 1)
        return np.searchsorted(sigmas, rungs).astype(np.int64)

    @property
    def _exponent(self) -> int:
        return grid_exponent("gaussian", self.most)

    def context(self) -> tuple[Any, ...]:
        return (self.kind, self.base, self.alpha, self.beta, self.most, self._exponent)

    def space_after(self, space: OutputSpace) -> OutputSpace:
        require(space, "embedding", why="coverage counts cells of an embedding space")
        return replace(space, low=-math.inf, high=math.inf, units=None)

    def guarantee(self, before: Guarantee, space: OutputSpace, width: int | None) -> Guarantee:
        sentence = "noise follows what the client has seen: the first answers have none"
        if before.relation == "none":
            return replace(before, bits=math.inf, keeps_top1=False)
        return Guarantee(assumptions=(*before.assumptions, sentence), relation="capacity")

    def lower(self, space: OutputSpace) -> tuple[Op, ...]:
        law = Law("gaussian", Fraction(self.most) * Fraction(2) ** self._exponent)
        numbers = (math.ldexp(1.0, -self._exponent), math.ldexp(1.0, self._exponent), 0, 0, 1.0, 0.0)
        return (
            Op("embedding.to_rung", (), self._thresholds, scratch=8, coverage=True),
            Op("additive.noise", numbers, keyed="input", law=law),
            Op("embedding.from_rung", (), self._thresholds, scratch=8, coverage=True),
        )

    def reference(self, state: State, space: OutputSpace, draws: Draws) -> State:
        rung, drawn = self.rung(state.coverage), next(draws)
        if rung == 0:
            return state
        scale = math.ldexp(1.0, self._exponent + layout.RUNGS - rung)
        rows = (np.rint(state.rows * scale) + drawn) / scale
        return state._replace(rows=rows, top=first_argmax(rows))


@dataclass(frozen=True)
class Orthogonal(Transform):
    """A secret orthogonal transform of the client's own, the same at all times; lengths and angles stay.

    Each round flips signs and mixes the first 2**m entries by a Walsh-Hadamard transform, does the same with other
    signs and the last 2**m, and permutes, all as the client's tag says. Who asks through two accounts gets answers that
    cannot be compared as they are.

    What it does not stop: the map from one account to another is linear, and as many shared questions as the embedding
    has entries give it away. A copy learnt within one account is as good as ever.
    """

    kind: ClassVar[str] = "orthogonal"
    rounds: int = 2

    def __post_init__(self) -> None:
        whole("rounds", self.rounds, 1, 8)

    def context(self) -> tuple[Any, ...]:
        return (self.kind, self.rounds)

    def space_after(self, space: OutputSpace) -> OutputSpace:
        require(space, "embedding", why="other entries have a meaning of their own")
        return replace(space, low=-math.inf, high=math.inf, units=None)

    def guarantee(self, before: Guarantee, space: OutputSpace, width: int | None) -> Guarantee:
        return replace(before, keeps_top1=False)

    def lower(self, space: OutputSpace) -> tuple[Op, ...]:
        return (Op("embedding.rotate", (float(self.rounds),), keyed="client", personal=True, scratch=5),)

    def reference(self, state: State, space: OutputSpace, draws: Draws) -> State:
        """Draws are uint64 words as int64, ``(rounds, classes)``, for one client."""
        rows, width = state.rows, state.rows.shape[1]
        for words in next(draws).astype(np.uint64):
            size = 1 << (width.bit_length() - 1)
            for bit, start in ((1, 0), (2, width - size)):
                rows = rows * np.where(words & np.uint64(bit), -1.0, 1.0)
                rows[:, start : start + size] = _walsh_hadamard(rows[:, start : start + size])
            order: list[int] = []
            for i, word in enumerate(words.tolist()):  # Fisher & Yates, from the inside out
                j = (word >> 32) * (i + 1) >> 32
                order.append(i)
                order[i], order[j] = order[j], i
            rows = rows[:, order]
        return state._replace(rows=rows, top=first_argmax(rows))


def _walsh_hadamard(rows: Rows) -> Rows:
    """Rows of 2**m entries by the symmetric orthogonal Hadamard matrix."""
    size, half = rows.shape[1], 1
    while half < size:
        pairs = rows.reshape(len(rows), -1, 2, half)
        a, b = pairs[:, :, 0], pairs[:, :, 1]
        rows = np.stack((a + b, a - b), axis=2).reshape(len(rows), size)
        half *= 2
    return rows * (1.0 / math.sqrt(size))
