"""Published perturbations against membership inference. They promise nothing: attacks that read labels alone remain."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from hardening.transforms.base import (
    Draws,
    Keyed,
    Op,
    Rows,
    State,
    Transform,
    exact_sum,
    first_argmax,
    positive,
    require_on_simplex,
)
from hardening.transforms.deception import l1_budget, no_promise
from hardening.transforms.laws import Gaussian
from hardening.transforms.simplex import MARGIN
from hardening.types import Guarantee, OutputSpace

#: Scores below this count as this: a logarithm needs something to hold on to.
LEAST_SCORE = 2.0**-40
#: Least target for the top class: it has to stay ahead of the second in float16 too.
LEAST_CONFIDENCE = 0.505


@dataclass(frozen=True)
class MemGuard(Transform):
    """One profile of scores for every row that is within reach of it, the label kept (after MemGuard, Jia et al. 2019).

    The profile gives the top class `confidence`, the next one what is left, and the others nothing. A row whose L1
    distance d to it is at most `l1` becomes it, so that all such rows are the same but for the names of two classes;
    any other moves toward it by the share l1 / d. Where MemGuard searches a perturbation for each row, by the gradients
    of a classifier of its own, and releases it by chance, this is a closed form and draws nothing.

    `confidence` is by default 1 - l1 / 2, at least 0.505: rows that are certain, as members are, just reach it, and it
    reaches as far down as it can. With 1 they stay as they are, which costs less utility and hides less.
    """

    kind: ClassVar[str] = "memguard"
    l1: float
    confidence: float | None = None

    def __post_init__(self) -> None:
        l1_budget(self.l1)
        if self.confidence is not None and not LEAST_CONFIDENCE <= self.confidence <= 1.0:
            raise ValueError(f"confidence: must be from {LEAST_CONFIDENCE} to 1, not {self.confidence!r}")

    @property
    def target(self) -> float:
        """The score of the top class in the profile."""
        return max(1.0 - self.l1 / 2, LEAST_CONFIDENCE) if self.confidence is None else self.confidence

    def space_after(self, space: OutputSpace) -> OutputSpace:
        require_on_simplex(space)
        return replace(space, units=None, support=None)

    def guarantee(self, before: Guarantee, space: OutputSpace, width: int | None) -> Guarantee:
        return no_promise(before, before.keeps_top1)

    def lower(self, space: OutputSpace) -> tuple[Op, ...]:
        return (Op("membership.memguard", (self.l1, self.target)),)

    def reference(self, state: State, space: OutputSpace, draws: Draws) -> State:
        rows, every = state.rows, np.arange(len(state.rows))
        if rows.shape[1] < 2:
            return state
        others = rows.copy()
        others[every, state.top] = -np.inf
        second, rest = others.argmax(axis=1), 1.0 - self.target
        profile = np.zeros_like(rows)
        profile[every, state.top], profile[every, second] = self.target, rest
        best, next_best = rows[every, state.top], rows[every, second]
        away = np.abs(best - self.target) + np.abs(next_best - rest) + np.maximum(1.0 - best - next_best, 0.0)
        share = np.where(away > self.l1, self.l1 / np.maximum(away, self.l1), 1.0)[:, None]
        return state._replace(rows=rows * (1.0 - share) + share * profile)


@dataclass(frozen=True)
class DynaNoise(Transform):
    """Gaussian noise on log-scores, the more the surer the model, then a softmax (DynaNoise, Forough & Haddadi 2026).

    The noise has the variance ``variance * (1 + gain * (1 - H / log K))``, with H the entropy of the row and K its
    classes; the softmax has the temperature `t`. Here it is keyed, so that asking again gains nothing, and drawn as
    integers, in units of a 128th of the row's own deviation.

    With `keep_top1` the model's own label leads: where noise has put another class ahead, the two exchange scores.
    """

    kind: ClassVar[str] = "dynanoise"
    variance: float = 0.1
    gain: float = 1.0
    t: float = 1.0
    keep_top1: bool = True
    key: Keyed = field(default="input", kw_only=True)

    def __post_init__(self) -> None:
        positive("variance", self.variance)
        if not 2.0**-20 <= self.variance <= 2.0**20:
            raise ValueError(f"variance: must be between 2**-20 and 2**20, not {self.variance!r}")
        if not 0.0 <= self.gain <= 1e6:
            raise ValueError(f"gain: must be between 0 and 1000000, not {self.gain!r}")
        positive("t", self.t)
        if not 1e-3 <= self.t <= 1e3:
            raise ValueError(f"t: must be between 0.001 and 1000, not {self.t!r}")
        if not isinstance(self.keep_top1, bool):
            raise ValueError(f"keep_top1: must be true or false, not {self.keep_top1!r}")
        _ = self._noise  # which refuses a wrong key

    @property
    def _noise(self) -> Gaussian:
        """Of one deviation, which each row has its own measure of."""
        return Gaussian(sigma=1.0, key=self.key)

    def context(self) -> tuple[Any, ...]:
        return (self.kind, self.variance, self.gain, self.t, int(self.keep_top1), *self._noise.context())

    def space_after(self, space: OutputSpace) -> OutputSpace:
        require_on_simplex(space)
        return replace(space, units=None, support=None)

    def guarantee(self, before: Guarantee, space: OutputSpace, width: int | None) -> Guarantee:
        if before.relation == "output-metric" and self.keep_top1:
            sentence = "models are compared only where they agree on the label, which is released as it is"
            before = replace(before, relation="label", assumptions=(*before.assumptions, sentence))
        return replace(no_promise(before, self.keep_top1), bits=math.inf)

    def lower(self, space: OutputSpace) -> tuple[Op, ...]:
        softmax = (math.log2(math.e) / self.t, float(self.keep_top1), self.t * MARGIN)
        return (
            Op("membership.to_deviations", (self.variance, self.gain, LEAST_SCORE), scratch=1),
            *self._noise.lower(space),
            Op("membership.from_deviations", softmax, scratch=1),
        )

    def reference(self, state: State, space: OutputSpace, draws: Draws) -> State:
        rows, width = state.rows, state.rows.shape[1]
        bits = np.log2(np.maximum(rows, LEAST_SCORE))
        certain = 1.0 + exact_sum(rows * bits) / math.log2(width) if width > 1 else np.zeros(len(rows))
        sigma = np.sqrt(self.variance * (1.0 + self.gain * np.clip(certain, 0.0, 1.0)))[:, None]
        noisy = self._noise.reference(state._replace(rows=bits * math.log(2) / sigma), space, draws).rows * sigma
        if self.keep_top1 and width > 1:
            _put_ahead(noisy, state, self.t * MARGIN)
        grown = np.exp((noisy - noisy.max(axis=1, keepdims=True)) / self.t)
        rows = grown / grown.sum(axis=1, keepdims=True)
        return state._replace(rows=rows, top=state.own if self.keep_top1 else first_argmax(rows))


def _put_ahead(rows: Rows, state: State, gap: float) -> None:
    for row, own in zip(rows, state.own, strict=True):
        others = row.copy()
        others[own] = -np.inf
        leader = int(others.argmax())
        if row[own] < row[leader] + gap:
            high, low = max(row[own], row[leader]), min(row[own], row[leader])
            row[own], row[leader] = high + gap, low
