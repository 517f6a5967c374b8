"""A tuple of transforms, checked as a whole, and the program it becomes for one output of one model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardening.errors import ConfigError, SpaceError
from hardening.transforms import Clip, Op, Round, State, Transform, Types, boxes
from hardening.transforms.base import subset_bits
from hardening.transforms.release import released
from hardening.types import Column, Guarantee, OutputSpace, SpaceKind

#: How far from the declared space a model's own rounding may take a row, by dtype.
TOLERANCE = {"float16": 1e-2, "float32": 1e-3, "float64": 1e-3}


#: Most logits of a row that are released, and the share of the classes that they are at most. With k numbers a row,
#: n questions give n k equations in n h + h V unknowns, h being the width of the layer before the V logits: a k below h
#: leaves any number of questions short of a solution. Where there are few classes, half of them stay unsaid.
MOST_LOGITS, MOST_LOGITS_SHARE = 16, 0.5


def declared_space(kind: SpaceKind, bounds: tuple[float, float] | None = None) -> OutputSpace:
    """The space that scores of this kind start and have to end in; `bounds` are of ``scalar`` and ``boxes``."""
    low, high = (0.0, 1.0) if kind in ("sigmoid", "multilabel") else bounds or (-math.inf, math.inf)
    return OutputSpace(kind, on_simplex=kind == "simplex", low=low, high=high)


@dataclass(frozen=True)
class Pipeline:
    """What one tier does to one output.

    Attributes:
        bounds: declared range of a ``scalar`` or of the coordinates of ``boxes``: what lies beyond it is brought to its
            ends before anything else is done.
        columns: what the columns of ``boxes`` hold.
        dense: whether logits may be released without a ``top_k``.

    Raises ConfigError, with a path relative to the tier, if a transform does not accept what the one before leaves,
    or if the end is not in the declared space.
    """

    space: SpaceKind
    transforms: tuple[Transform, ...]
    path: str = field(default="", compare=False)
    bounds: tuple[float, float] | None = None
    columns: tuple[Column, ...] = boxes.BOX
    dense: bool = False

    def __post_init__(self) -> None:
        for part, end in self._ends().items():
            self._check_end(self._starts()[part], end)
        names = [t.unreleased for t in self.transforms if t.unreleased is not None]
        if len(set(names)) > 1:
            raise ConfigError(
                self.path, f"looks at {' and '.join(map(repr, sorted(set(names))))}: one surrogate a tier"
            )

    @property
    def unreleased(self) -> str | None:
        """The model output that it looks at beside the one it hardens, if any."""
        return next((t.unreleased for t in self.transforms if t.unreleased is not None), None)

    def _starts(self) -> dict[str, OutputSpace]:
        """The space of a row; of detections, that of their coordinates and that of their scores."""
        starts = {"box": declared_space(self.space, self.bounds)}
        if self.space == "boxes" and "score" in self.columns:
            starts["score"] = declared_space("sigmoid")
        return starts

    def _trace(self) -> Iterator[tuple[OutputSpace, OutputSpace]]:
        """The space before and after each transform."""
        spaces = self._starts()
        for i, transform in enumerate(self.transforms):
            if transform.of not in spaces:
                raise ConfigError(f"{self.path}[{i}].of", "only boxes have scores, and those that columns name")
            before = spaces[transform.of]
            try:
                spaces[transform.of] = transform.space_after(before)
            except SpaceError as problem:
                raise ConfigError(f"{self.path}[{i}]", f"{transform.kind} {problem}") from None
            yield before, spaces[transform.of]

    def spaces(self) -> Iterator[OutputSpace]:
        """The space each transform takes, in order."""
        return (before for before, _ in self._trace())

    def _ends(self) -> dict[str, OutputSpace]:
        """What `_starts` has become."""
        return self._starts() | {t.of: after for t, (_, after) in zip(self.transforms, self._trace(), strict=True)}

    def _check_end(self, start: OutputSpace, end: OutputSpace) -> None:
        if start.on_simplex and not end.on_simplex:
            raise ConfigError(
                self.path, 'leaves the simplex, and the output is declared as one: end with {kind = "project"}'
            )
        if end.low < start.low or end.high > start.high:
            low, high = f"{start.low:.12g}", f"{start.high:.12g}"
            clip = f'{{kind = "clip", low = {low}, high = {high}}}'
            raise ConfigError(self.path, f"leaves the range from {low} to {high} that is declared: end with {clip}")
        if self.space == "logits" and not self.dense and (end.support or math.inf) > MOST_LOGITS:
            raise ConfigError(
                self.path,
                "releases dense logits, from which the last layer of the model can be found: end with top_k, k at most "
                f"{MOST_LOGITS}, or with label_only; to release them all the same, say dense = true beside the space",
            )

    def check_width(self, width: int) -> None:
        """Raise ConfigError if what the policy says makes no sense for rows of `width` entries, or fits none."""
        if self.space == "boxes" and width != len(self.columns):
            raise ConfigError(
                self.path, f"boxes have {width} columns here, the policy names {len(self.columns)}: set columns"
            )
        few = self._ends()["box"].support
        if self.space == "logits" and not self.dense and few and few > max(1, int(width * MOST_LOGITS_SHARE)):
            raise ConfigError(
                self.path,
                f"releases {few} of {width} logits: at most half of them, or say dense = true beside the space",
            )
        for i, transform in enumerate(self.transforms):
            try:
                transform.needs_width(self._width_of(transform.of, width))
            except ValueError as problem:
                raise ConfigError(f"{self.path}[{i}]", str(problem)) from None
        self.at(width)

    def at(self, width: int) -> Pipeline:
        """The pipeline for rows of `width` entries, its noise fitted to them. Raises ConfigError."""
        fitted = []
        for i, transform in enumerate(self.transforms):
            try:
                fitted.append(transform.at(self._width_of(transform.of, width)))
            except ValueError as problem:
                raise ConfigError(f"{self.path}[{i}]", str(problem)) from None
        return replace(self, transforms=tuple(fitted))

    def _width_of(self, part: str, width: int) -> int:
        """Entries of one part of a row."""
        return len(boxes.places(self.columns, part)) if self.space == "boxes" else width

    def guarantee(self, width: int | None, itemsize: int = 4) -> Guarantee:
        """What one row of the released answer promises; its bits never exceed those of the raw dtype."""
        if self.space != "boxes":
            return self._promise("box", width, itemsize)
        parts = [self._promise(part, self._width_of(part, 0), itemsize) for part in self._starts()]
        return boxes.both(parts, 8.0 * itemsize * self._width_of("label", 0))

    def _promise(self, part: str, width: int | None, itemsize: int) -> Guarantee:
        raw = math.inf if width is None else 8.0 * itemsize * width
        promise = Guarantee("capacity", "answer", bits=raw, keeps_top1=True)
        for transform, space in zip(self.transforms, self.spaces(), strict=True):
            if transform.of == part:
                promise = transform.guarantee(promise, space, width)
        few = self._ends()[part].support
        if width is not None and few is not None and few < width:
            raw = 8.0 * itemsize * few + subset_bits(width, few)
        return replace(promise, bits=min(promise.bits, raw))

    def lower(self) -> tuple[tuple[Transform, Op], ...]:
        """Every instruction, with the transform it comes from; of a pipeline `at` a width if noise is fitted to it."""
        return tuple((transform, op) for transform, ops in self._steps() for op in ops)

    def _steps(self) -> list[tuple[Transform, tuple[Op, ...]]]:
        """The instructions of every transform, and before them of what the output declares."""
        out = [(t, self._on_part(t.of, t.lower(s))) for t, s in zip(self.transforms, self.spaces(), strict=True)]
        if self.bounds is not None:
            limit = Clip(*self.bounds)
            out.insert(0, (limit, self._on_part("box", limit.lower(declared_space(self.space)))))
        if self.space == "boxes" and "score" in self.columns:
            within = (Op("scores.check", (0.0, 1.0)),)
            out.insert(0, (Clip(0.0, 1.0, of="score"), self._on_part("score", within)))
        return out

    def _on_part(self, part: str, ops: tuple[Op, ...]) -> tuple[Op, ...]:
        return boxes.on_part(ops, self.columns, part) if self.space == "boxes" else ops

    def contexts(self) -> Iterator[tuple[str | int | float, ...]]:
        """For every instruction of `lower` what keys its draws: every parameter that shapes them, and all that is done
        before. So two tiers share a draw only where it is applied to the same scores in the same way; otherwise the
        draw would cancel out between them.
        """
        before: list[str] = []
        for transform, ops in self._steps():
            part = (transform.of,) if self.space == "boxes" else ()
            for op in ops:
                yield (*transform.context(), *part, *before) if op.keyed else ()
            before.append(" ".join((repr(transform), *part)))

    def reference(
        self,
        scores: NDArray[Any],
        draws: Iterator[NDArray[Any]] | None = None,
        other: NDArray[Any] | None = None,
        coverage: int = 0,
    ) -> NDArray[np.float64]:
        """The pipeline in plain numpy on ``(rows, classes)`` scores that are valid in the declared space.

        What is returned holds numbers of the dtype of `scores`.

        Args:
            draws: of the mechanisms, in order.
            other: scores of the unreleased output, in the same shape.
            coverage: cells that the client has visited.
        """
        rows = np.array(scores, np.float64)
        if rows.shape[1] == 0:
            return rows
        for part, start in self._starts().items():
            at = boxes.places(self.columns, part) if self.space == "boxes" else slice(None)
            rows[:, at] = np.clip(rows[:, at], start.low, start.high)
        if self.space == "simplex":
            rows = np.clip(rows, 0.0, 1.0)
        own = rows.argmax(axis=1)
        if self.space == "simplex":
            rows = rows * (1.0 / (np.rint(rows * 2.0**40).sum(axis=1) / 2.0**40))[:, None]
        state = State(rows, own, own, None if other is None else np.asarray(other, np.float64), coverage)
        given = iter(()) if draws is None else draws
        for transform, space in zip(self.transforms, self.spaces(), strict=True):
            if self.space == "boxes":
                state = boxes.reference(transform, state, space, given, self.columns)
            else:
                state = transform.at(rows.shape[1]).reference(state, space, given)
        dtype = scores.dtype if scores.dtype.name in TOLERANCE else np.dtype(np.float64)
        return released(state.rows, state.own, dtype, self.space == "simplex", self.keeps_label(rows.shape[1]))

    @property
    def ends_on_grid(self) -> bool:
        """Whether rows leave as multiples of 1/n on the simplex, n at most 2**20: float32 tells all of these apart."""
        last = self.transforms[-1] if self.transforms else None
        units = last.n if isinstance(last, Types) else last.units if isinstance(last, Round) else math.inf
        return self.space == "simplex" and units <= 1 << 20

    def keeps_label(self, width: int) -> bool:
        """Whether the scores name a class, and that of a released row is promised to be the model's own."""
        return self.space in ("simplex", "logits") and self.guarantee(width).keeps_top1
