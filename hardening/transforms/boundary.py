"""Boundary-randomised response: which side of the decision boundary is not said close to it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from decimal import Decimal, localcontext
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from hardening.transforms.base import SECRECY, Labels, Op, State, positive, require
from hardening.transforms.labels import LabelMechanism
from hardening.types import Guarantee, OutputSpace


def flip_threshold(epsilon: float) -> int:
    """e^-epsilon / (1 + e^-epsilon) in units of 2**-64, rounded to the nearest."""
    with localcontext() as context:
        context.prec = 70
        grown = (-Decimal(epsilon)).exp()
        return int((grown / (1 + grown) * 2**64).to_integral_value())


@dataclass(frozen=True)
class BoundaryRandomisedResponse(LabelMechanism):
    """Near the decision boundary, where the best class leads by less than `margin`, a coin between it and the next one.

    BDPL (Zheng et al. 2019), with the lead in place of the distance to the boundary. The coin is that of Warner (1965),
    kept with chance 1 / (1 + e^-epsilon), as in the public implementation; the paper's formula keeps more often and its
    loss, as that of a label, is larger than epsilon. Away from the boundary the label is released as it is, so there is
    no bound on what a label tells about models in general.
    """

    kind: ClassVar[str] = "boundary_rr"
    margin: float = field(kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("margin", self.margin)

    def context(self) -> tuple[str | int | float, ...]:
        return (*super().context(), self.margin)

    def check(self, space: OutputSpace) -> None:
        require(space, "simplex", "logits", why="it draws one of two classes")

    def promise_of(self, before: Guarantee, width: int | None) -> Guarantee:
        bits = min(before.bits, math.inf if width is None else math.log2(max(width, 1)))
        if before.relation in ("output-metric", "label", "label-rr"):
            return replace(before, bits=bits, keeps_top1=False)
        odds = f"by odds of e^{self.epsilon:g}, for models that have the question there with the same two classes ahead"
        return Guarantee(
            "capacity",
            "answer",
            scope=self.scope,
            assumptions=(f"the label is a coin within the margin alone, {odds}", SECRECY),
            bits=bits,
        )

    def draw(self, space: OutputSpace) -> tuple[Op, ...]:
        threshold = np.array([flip_threshold(self.epsilon)], np.uint64)
        return (self.op("boundary.coin", (self.margin,), threshold),)

    def labels_of(self, state: State, space: OutputSpace, words: NDArray[np.uint64]) -> Labels:
        rows, labels = state.rows, state.top.copy()
        for i, (row, top) in enumerate(zip(rows, state.top, strict=True)):
            others = np.delete(row, top)
            if others.size and row[top] - others.max() < self.margin and words[i, 0] < flip_threshold(self.epsilon):
                second = int(others.argmax())
                labels[i] = second + int(second >= top)
        return labels
