"""A tuple of transforms, checked as a whole, and the program it becomes for one output of one model."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardening import kernels
from hardening.errors import ConfigError, SpaceError
from hardening.kernels import layout
from hardening.kernels.layout import Job, Step
from hardening.noise import Key, derive, noise_table, packed, round_keys
from hardening.transforms import Clip, Op, Round, State, Transform, Types, boxes
from hardening.transforms.base import subset_bits
from hardening.transforms.release import release, released
from hardening.types import Column, Guarantee, OutputSpace, SpaceKind

#: How far from the declared space a model's own rounding may take a row, by dtype.
TOLERANCE = {"float16": 1e-2, "float32": 1e-3, "float64": 1e-3}
CELLS = 1 << layout.CELL_BITS
#: Up to this many scores, and up to this many 64-bit words of the question (some 50 microseconds each), an answer is
#: hardened without letting go of the interpreter's lock.
SMALL, SMALL_QUESTION = 1 << 15, 1 << 16


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
            rows = rows / (np.rint(rows * 2.0**40).sum(axis=1) / 2.0**40)[:, None]
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


class Program:
    """A pipeline bound to one output of one model and to a key: arrays that the kernel runs.

    Args:
        baseline: what ordinary clients ask, as `Job.BASELINE` has it, if evidence is to be gathered.

    Attributes:
        pipeline, width: what it runs, on rows of how many entries.
        keyed_by_input: whether it needs to know the question.
        fresh: whether it needs a nonce of the request.
        personal: whether it needs the client's tag.
        unreleased: the model output that it looks at beside the one it hardens, if any.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        width: int,
        key: Key | None,
        output: str,
        model_digest: str,
        baseline: NDArray[np.float64] | None = None,
    ) -> None:
        pipeline.check_width(width)
        fitted = pipeline.at(width)
        self.pipeline, self.width = pipeline, width
        self._promises: dict[int, Guarantee] = {}
        lowered = fitted.lower()
        keyed: set[str | None] = {op.keyed for _, op in lowered}
        self.keyed_by_input, self.fresh = "input" in keyed, "fresh" in keyed
        self.personal = any(op.personal for _, op in lowered)
        self.unreleased = pipeline.unreleased
        self.scratch = max((op.scratch for _, op in lowered), default=0)
        if self.fresh and self.keyed_by_input:
            raise ConfigError(pipeline.path, 'mixes key = "fresh" with key = "input": one nonce cannot serve both')
        steps = np.zeros((len(lowered), layout.STEP), np.int64)
        params = np.zeros((len(lowered), layout.PARAMETERS))
        self._alive: list[Any] = [steps, params]
        for step, row, (transform, op), context in zip(steps, params, lowered, fitted.contexts(), strict=True):
            row[: len(op.params)] = op.params
            call, data = op.call, op.data
            if op.law is not None:
                table = noise_table(op.law)
                row[2:4], data = (table.bits, table.offset), packed(table)
            if op.keyed is not None:
                if key is None:
                    raise ConfigError("key", f"{transform.kind} draws by a key: add [key] with a source to the policy")
                secret = derive(key, "noise", model_digest, output, *context)
                step[Step.SECRET] = self._keep(round_keys(key.cipher, secret))
                call = f"{call}_{key.cipher.replace('-', '_')}"
            step[Step.FUNCTION] = kernels.address(call)
            step[Step.PARAMS] = row.ctypes.data
            step[Step.DATA] = 0 if data is None else self._keep(data)
        cell_key = hash_key(derive(key, "cell", model_digest, output) if key else bytes(32), whole_words(width))
        spaces = {"simplex": layout.SPACE_SIMPLEX} | dict.fromkeys(("sigmoid", "multilabel"), layout.SPACE_SIGMOID)
        self._steps, self._keeps = steps, pipeline.keeps_label(width)
        self._whole: dict[str, NDArray[np.int64]] = {}
        self._job = np.zeros(layout.JOB, np.int64)
        for place, value in (
            (Job.WIDTH, width),
            (Job.SPACE, spaces.get(pipeline.space, layout.SPACE_ANY)),
            (Job.LOGITS, int(pipeline.space == "logits")),
            (Job.NAMED, int(self.keyed_by_input)),
            (Job.DRAWS, int(any(op.keyed for _, op in lowered))),
            (Job.WATCHES, int(any(op.coverage for _, op in lowered))),
            (Job.HARDEN, kernels.harden_address()),
            (Job.CELL_KEY, self._keep(cell_key)),
            (Job.SIGNS, self._keep(_signs(width, key, model_digest, output))),
            (Job.CELL_BITS, layout.CELL_BITS),
            (Job.BASELINE, 0 if baseline is None else self._keep(baseline)),
        ):
            self._job[place] = value

    def _keep(self, array: NDArray[Any]) -> int:
        """The address of an array that lives as long as this does."""
        self._alive.append(array)
        return int(array.ctypes.data)

    def promise(self, itemsize: int) -> Guarantee:
        """The pipeline's guarantee for rows of floats of `itemsize` bytes."""
        if itemsize not in self._promises:  # on the program: a cache of the class would keep every program for ever
            self._promises[itemsize] = self.pipeline.guarantee(self.width, itemsize)
        return self._promises[itemsize]

    def job(self, dtype: str) -> NDArray[np.int64]:
        """A new job of this program for scores that leave as `dtype`, but without them; the program must outlive it."""
        grid = self.pipeline.ends_on_grid and dtype != "float16"  # whose points are numbers that may leave
        steps = self._steps if grid else self._whole.get(dtype)
        if steps is None:
            op = release(dtype, self.pipeline.space == "simplex", self._keeps)
            last = np.zeros((1, layout.STEP), np.int64)
            last[0, Step.FUNCTION] = kernels.address(op.call)
            last[0, Step.PARAMS] = self._keep(np.array(op.params))
            steps = self._whole[dtype] = np.concatenate([self._steps, last])
        job = self._job.copy()
        job[Job.STEPS], job[Job.COUNT] = steps.ctypes.data, len(steps)
        return job


class Task:
    """One output's scores, tied to a program: hardened in place, as often as they are filled anew.

    Args:
        scores: float16, float32 or float64 ``(vectors, width)``; copied in and out if the kernel cannot work in place.
        rows: input rows; `scores` has as many vectors for each.
        nonces: uint32 ``(rows, 3)``, one for each input row.
        question: where the kernel finds the inputs, if it is to compute the nonces.
        other: floats in the shape of `scores`, of the output that the program looks at beside; copied.
    """

    def __init__(
        self,
        program: Program,
        scores: NDArray[Any],
        rows: int,
        nonces: NDArray[np.uint32],
        question: Question | None = None,
        other: NDArray[Any] | None = None,
    ) -> None:
        from hardening.kernels.job import SCRATCH_WORDS
        from hardening.kernels.program import SCRATCH_NUMBERS, SCRATCH_VECTORS

        self.program, self.rows, self.question = program, rows, question
        self._scores = self._work = scores
        if scores.dtype not in (np.float32, np.float64) or not scores.flags.c_contiguous or not scores.flags.writeable:
            self._work = np.empty(scores.shape, np.float32 if scores.dtype == np.float32 else np.float64)
        asked = question.words * rows if question else 0
        self.in_place, self.small = self._work is scores, scores.size <= SMALL and asked <= SMALL_QUESTION
        vectors, width = scores.shape
        numbers = np.empty(SCRATCH_VECTORS * lanes_room(width) + SCRATCH_NUMBERS)
        scratch = np.empty(program.scratch * (width + 8))
        words = np.empty(SCRATCH_WORDS, np.uint64)
        self.summary = np.empty((layout.SUMMARY, (vectors + 7) // 8 * 8))
        row = np.empty(whole_words(width), np.uint64)
        self._tag = np.zeros(3, np.uint32)
        if program.unreleased is not None and (other is None or other.shape != scores.shape):
            raise ValueError(f"other: the scores of {program.unreleased!r} are needed, of shape {scores.shape}")
        self._other = np.empty(0) if other is None else other
        beside = self._beside = np.empty(self._other.shape)
        self._alive, self._nonces = (words, row), nonces
        self._traces = (self._work, numbers, scratch, beside, self.summary)
        self.job = program.job(scores.dtype.name)
        for place, value in (
            (Job.SCORES, self._work.ctypes.data),
            (Job.SINGLE, int(self._work.dtype == np.float32)),
            (Job.VECTORS, vectors),
            (Job.ROWS, rows),
            (Job.PER_ROW, max(1, vectors // max(1, rows))),
            (Job.TOLERANCE, round(TOLERANCE[scores.dtype.name] * 1e6)),
            (Job.NUMBERS, numbers.ctypes.data),
            (Job.SCRATCH, scratch.ctypes.data),
            (Job.WORDS, words.ctypes.data),
            (Job.ROW, row.ctypes.data),
            (Job.NONCES, nonces.ctypes.data),
            (Job.SUMMARY, self.summary.ctypes.data),
            (Job.CLIENT, self._tag.ctypes.data),
            (Job.OTHER, beside.ctypes.data),
        ):
            self.job[place] = value
        if question is not None:
            self.job[Job.INPUT_TABLE], self.job[Job.INPUTS] = question.table.ctypes.data, len(question.table)
            self.job[Job.TAG_KEY], self.job[Job.ROW_WORDS] = question.key.ctypes.data, question.words

    def address_to(self, tag: NDArray[np.uint32]) -> None:
        """Harden for the client with this tag, uint32 ``(3,)``, from now on."""
        self._tag[...] = tag

    def fetch(self) -> None:
        """Copy the scores to where the kernel works, if it cannot work on them, and those of the other output."""
        if not self.in_place:
            self._work[...] = self._scores
        self._beside[...] = self._other

    def put_back(self) -> None:
        """Copy the hardened scores back, if need be."""
        if not self.in_place:
            self._scores[...] = self._work

    def wipe(self) -> None:
        """Overwrite what the kernel worked on."""
        for array in self._traces:
            array.fill(0)

    def run(self) -> int:
        """Harden, on its own; returns the kernel's status, 0 if all went well."""
        from hardening.kernels.program import run

        self.fetch()
        status = int(kernels.entry(run, "int64[::1]", nogil=True)(self.job))
        if status == 0:
            self.put_back()
        return status

    def asked(self) -> tuple[NDArray[np.float64], NDArray[np.uint32] | None]:
        """What is remembered of the rows hardened last, for a log (`clients.log.records`).

        Returns:
            their summary, float64 ``(SUMMARY, vectors)``, and what tells the questions apart, uint32 ``(vectors,)``, or
            None where the nonces do not.
        """
        vectors = int(self.job[Job.VECTORS])
        named = np.repeat(self._nonces[:, 0], int(self.job[Job.PER_ROW])) if self.job[Job.NAMED] else None
        return self.summary[:, :vectors].copy(), named

    def row_of(self, status: int) -> int:
        """The input row that a status complains about."""
        return (status // 8 - 1) // int(self.job[Job.PER_ROW])


class Question:
    """The inputs of a run, laid out so that the kernel can hash each row: a table of addresses, and the hash's key.

    Args:
        key: the policy's key.
        model_digest: as for `Program`.
        inputs: little-endian contiguous arrays by name, which must stay where they are; those with `rows` entries along
            their first axis belong row by row, others are part of every row. Text is not taken: digest it first.
    """

    def __init__(self, key: Key, model_digest: str, inputs: Mapping[str, NDArray[Any]], rows: int) -> None:
        from hardening.kernels import tag

        table: list[tuple[int, ...]] = []
        layout: list[str | int] = []
        for name in sorted(inputs):
            array = inputs[name]
            by_row = array.ndim > 0 and len(array) == rows
            size = array.nbytes // rows if by_row and rows else array.nbytes
            kind = array.dtype.itemsize if array.dtype.kind == "f" and array.dtype.itemsize <= 8 else tag.RAW
            table.append((array.ctypes.data, size, size if by_row else 0, kind))
            each = by_row or array.shape[:1] == (1,)
            layout += [name, array.dtype.str, each, repr(array.shape[each:])]
        self._alive = dict(inputs)
        self.table = np.array(table, np.int64).reshape(-1, tag.INPUT)
        self.words = sum(whole_words((size + 7) // 8) for size in self.table[:, 1].tolist())
        self.key = hash_key(derive(key, "tag", model_digest, *layout), self.words)


def lanes_room(width: int) -> int:
    """float64 numbers that a block of rows of `width` entries takes."""
    from hardening.kernels.job import NARROW
    from hardening.kernels.lanes import WIDTH

    return WIDTH * (width if width <= NARROW else (width + WIDTH - 1) // WIDTH)


def whole_words(count: int) -> int:
    """64-bit words that the row hash takes for `count` of them."""
    from hardening.kernels.tag import STRIDE

    return (count + STRIDE - 1) // STRIDE * STRIDE


def hash_key(secret: bytes, words: int) -> NDArray[np.uint64]:
    """Key of the row hash for rows of `words` 64-bit words: SHAKE256 (FIPS 202) of a secret of its own."""
    return _hash_key(secret, words) if words <= 1 << 14 else _hash_key.__wrapped__(secret, words)


@functools.lru_cache(maxsize=32)
def _hash_key(secret: bytes, words: int) -> NDArray[np.uint64]:
    from hardening.kernels import tag

    return np.frombuffer(hashlib.shake_256(secret).digest(8 * (tag.FINAL + words + tag.EXTRA)), "<u8")


def _signs(width: int, key: Key | None, model_digest: str, output: str) -> NDArray[np.uint8]:
    """Secret signs behind the cells that coverage counts, for `kernels.summary.cells_of`."""
    from hardening.kernels.lanes import WIDTH
    from hardening.kernels.summary import FOLD

    purpose = ("coverage", model_digest, output)
    seed = derive(key, *purpose) if key else hashlib.blake2b(repr(purpose).encode(), digest_size=32).digest()
    padded = (width + WIDTH - 1) // WIDTH * WIDTH
    stream = np.frombuffer(hashlib.shake_256(seed).digest((padded + FOLD) // 8), np.uint8)
    return np.left_shift(np.unpackbits(stream), np.uint8(7))
