"""A pipeline bound to one output of one model and to a key, and tied to scores and questions: what the kernel runs."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardening import kernels
from hardening.errors import ConfigError
from hardening.kernels import layout
from hardening.kernels.layout import Job, Step
from hardening.noise import Key, derive, noise_table, packed, round_keys
from hardening.pipeline import TOLERANCE, Pipeline
from hardening.transforms.release import release
from hardening.types import Guarantee

CELLS = 1 << layout.CELL_BITS
#: Up to this many scores, and up to this many 64-bit words of the question (some 50 microseconds each), an answer is
#: hardened without letting go of the interpreter's lock.
SMALL, SMALL_QUESTION = 1 << 15, 1 << 16


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
            step[Step.FUNCTION], step[Step.SPARSE] = kernels.address(call), op.sparse
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
        question: where the kernel finds the inputs, if it is to compute the names.
        other: floats in the shape of `scores`, of the output that the program looks at beside; copied.
        names: uint32 ``(rows, 3)``, what tells the questions apart; where the noise is keyed on these, the nonces.
    """

    def __init__(
        self,
        program: Program,
        scores: NDArray[Any],
        rows: int,
        nonces: NDArray[np.uint32],
        question: Question | None = None,
        other: NDArray[Any] | None = None,
        names: NDArray[np.uint32] | None = None,
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
        numbers = kernels.lines(8 * (SCRATCH_VECTORS * lanes_room(width) + SCRATCH_NUMBERS)).view(np.float64)
        scratch = np.empty(program.scratch * (width + 8))
        words = kernels.lines(8 * SCRATCH_WORDS).view(np.uint64)
        self.summary = np.empty((layout.SUMMARY, (vectors + 7) // 8 * 8))
        row = np.empty(whole_words(width), np.uint64)
        self._tag = np.zeros(3, np.uint32)
        if program.unreleased is not None and (other is None or other.shape != scores.shape):
            raise ValueError(f"other: the scores of {program.unreleased!r} are needed, of shape {scores.shape}")
        self._other = np.empty(0) if other is None else other
        beside = self._beside = np.empty(self._other.shape)
        if names is None and program.keyed_by_input:
            names = nonces
        self._alive, self._names = (words, row, nonces), names
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
            (Job.NAMES, 0 if names is None else names.ctypes.data),
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
            None where nothing does.
        """
        vectors = int(self.job[Job.VECTORS]) if self.job[Job.WIDTH] else 0
        named = None if self._names is None else np.repeat(self._names[:, 0], int(self.job[Job.PER_ROW]))
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
