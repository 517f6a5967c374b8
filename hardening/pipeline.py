"""A tuple of transforms, checked as a whole, and the program it becomes for one output of one model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardening import kernels
from hardening.errors import ConfigError, SpaceError
from hardening.kernels import opcodes
from hardening.noise import Key, derive, noise_table
from hardening.transforms import Op, State, Transform, _Noise
from hardening.types import Guarantee, OutputSpace, SpaceKind

#: How far from the declared space a model's own rounding may take a row, by dtype.
TOLERANCE = {"float16": 1e-2, "float32": 1e-3, "float64": 1e-3}
CELL_BITS = 12
CELLS = 1 << CELL_BITS


def declared_space(kind: SpaceKind) -> OutputSpace:
    """The space that scores of this kind start in, and have to end in."""
    return OutputSpace(kind, on_simplex=kind == "simplex")


@dataclass(frozen=True)
class Pipeline:
    """What one tier does to one output.

    Raises ConfigError, with a path relative to the tier, if a transform does not accept what the one before leaves,
    or if the end is not in the declared space.
    """

    space: SpaceKind
    transforms: tuple[Transform, ...]
    path: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        list(self.spaces())

    def spaces(self) -> Iterator[OutputSpace]:
        """The space each transform takes, in order."""
        space = declared_space(self.space)
        for i, transform in enumerate(self.transforms):
            yield space
            try:
                space = transform.space_after(space)
            except SpaceError as problem:
                raise ConfigError(f"{self.path}[{i}]", f"{transform.kind} {problem}") from None
        if self.space == "simplex" and not space.on_simplex:
            raise ConfigError(
                self.path, 'leaves the simplex, and the output is declared as one: end with {kind = "project"}'
            )

    def check_width(self, width: int) -> None:
        """Raise ConfigError if a transform's parameters make no sense for rows of `width` entries."""
        for i, transform in enumerate(self.transforms):
            try:
                transform.needs_width(width)
            except ValueError as problem:
                raise ConfigError(f"{self.path}[{i}]", str(problem)) from None

    def guarantee(self, width: int | None, itemsize: int = 4) -> Guarantee:
        """What one row of the released answer promises; its bits never exceed those of the raw dtype."""
        raw = math.inf if width is None else 8.0 * itemsize * width
        promise = Guarantee("capacity", "answer", bits=raw, keeps_top1=True)
        for transform, space in zip(self.transforms, self.spaces(), strict=True):
            promise = transform.guarantee(promise, space, width)
        if math.isinf(promise.bits) and width is not None:
            promise = Guarantee(
                promise.relation,
                promise.unit,
                promise.parameters,
                promise.scope,
                promise.assumptions,
                raw,
                promise.keeps_top1,
            )
        return promise

    def lower(self) -> tuple[tuple[Transform, Op], ...]:
        """Every instruction, with the transform it comes from."""
        return tuple(
            (transform, op)
            for transform, space in zip(self.transforms, self.spaces(), strict=True)
            for op in transform.lower(space)
        )

    def reference(self, scores: NDArray[Any], draws: Iterator[NDArray[np.int64]] | None = None) -> NDArray[np.float64]:
        """The pipeline in plain numpy on ``(rows, classes)`` scores that are valid in the declared space."""
        rows = np.asarray(scores, np.float64)
        if rows.shape[1] == 0:
            return rows.copy()
        if self.space in ("simplex", "sigmoid"):
            rows = np.clip(rows, 0.0, 1.0)
        if self.space == "simplex":
            rows = rows / (np.rint(rows * 2.0**40).sum(axis=1) / 2.0**40)[:, None]
        own = rows.argmax(axis=1)
        state = State(rows, own, own)
        for transform, space in zip(self.transforms, self.spaces(), strict=True):
            state = transform.reference(state, space, iter(()) if draws is None else draws)
        return state.rows


class Program:
    """A pipeline bound to one output of one model and to a key: arrays that the kernel runs.

    Attributes:
        keyed_by_input: whether it needs to know the question.
        fresh: whether it needs a nonce of the request.
    """

    def __init__(self, pipeline: Pipeline, width: int, key: Key | None, output: str, model_digest: str) -> None:
        pipeline.check_width(width)
        self.pipeline, self.width = pipeline, width
        lowered = pipeline.lower()
        self._ops = np.array([op.code for _, op in lowered], np.int64)
        self._params = np.zeros((len(lowered), opcodes.PARAMETERS))
        thresholds, aliases, secrets = [np.zeros(1, np.uint64)], [np.zeros(1, np.int32)], [bytes(32)]
        seen: dict[tuple[Any, ...], int] = {}
        for row, (transform, op) in zip(self._params, lowered, strict=True):
            row[: len(op.params)] = op.params
            if op.law is None:
                continue
            assert isinstance(transform, _Noise)
            if key is None:
                raise ConfigError("key", f"{transform.kind} noise needs a key: add [key] with a source to the policy")
            table = noise_table(op.law)
            row[2:6] = sum(map(len, thresholds)), table.bits, table.offset, len(secrets)
            thresholds.append(table.threshold)
            aliases.append(table.alias)
            context = transform.context()
            seen[context] = seen.get(context, -1) + 1
            secrets.append(derive(key, "noise", model_digest, output, seen[context], *context))
        keyed = {op.keyed for _, op in lowered if op.law is not None}
        self.keyed_by_input = opcodes.KEYED_INPUT in keyed
        self.fresh = opcodes.KEYED_FRESH in keyed
        if self.fresh and self.keyed_by_input:
            raise ConfigError(pipeline.path, 'mixes key = "fresh" with key = "input": one nonce cannot serve both')
        self._threshold, self._alias = np.concatenate(thresholds), np.concatenate(aliases)
        self._keys = np.frombuffer(b"".join(secrets), "<u4").reshape(-1, 8).astype(np.uint32)
        self._signs, self._planes = _projection(width, key, model_digest, output)
        space = {"simplex": opcodes.SPACE_SIMPLEX, "sigmoid": opcodes.SPACE_SIGMOID}.get(pipeline.space, 0)
        self._flags = (float(space), float(pipeline.space == "logits"))

    def run(
        self, scores: NDArray[Any], nonces: NDArray[np.uint32], per_row: int, scratch: Scratch
    ) -> tuple[int, NDArray[np.float64]]:
        """Harden float ``(vectors, width)`` scores in place.

        Args:
            nonces: uint32 ``(rows, 3)``, one per input row.
            per_row: vectors that belong to one input row.

        Returns:
            The kernel's status, 0 if all went well, and its summary ``(vectors, 4)``.
        """
        from hardening.kernels import program

        work = scores
        if scores.dtype not in (np.float32, np.float64) or not scores.flags.c_contiguous or not scores.flags.writeable:
            work = np.array(scores, np.float32 if scores.dtype == np.float32 else np.float64, order="C")
        summary = scratch.rows(len(work), self.width)
        flags = np.array([self._flags[0], TOLERANCE[scores.dtype.name], self._flags[1]])
        status = kernels.entry(program.run)(
            work,
            nonces,
            per_row,
            self._ops,
            self._params,
            self._threshold,
            self._alias,
            self._keys,
            self._signs,
            self._planes,
            scratch.numbers,
            scratch.raw,
            flags,
            summary,
        )
        if work is not scores and status == 0:
            scores[...] = work
        return int(status), summary


class Scratch:
    """Working memory of one thread; grows to the largest answer it has seen."""

    def __init__(self) -> None:
        self.numbers = np.zeros(64)
        self.raw = np.zeros(256 + 32, np.uint64)
        self._summary = np.zeros((1, 4))

    def rows(self, vectors: int, width: int) -> NDArray[np.float64]:
        """Room for a summary of `vectors` rows; makes sure that there is room for rows of `width` entries."""
        if len(self.numbers) < 3 * width + 32:
            self.numbers = np.zeros(3 * width + 32)
        if len(self._summary) < vectors:
            self._summary = np.zeros((vectors, 4))
        return self._summary[:vectors]


def _projection(
    width: int, key: Key | None, model_digest: str, output: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Secret signs and planes of the cells that coverage counts; known to nobody without the key."""
    import hashlib

    purpose = ("coverage", model_digest, output)
    seed = derive(key, *purpose) if key else hashlib.blake2b(repr(purpose).encode(), digest_size=32).digest()
    stream = hashlib.shake_256(seed).digest((width + 7) // 8 + CELL_BITS * 16 * 2)
    bits = np.unpackbits(np.frombuffer(stream[: (width + 7) // 8], np.uint8))[:width].astype(np.float64)
    planes = np.frombuffer(stream[(width + 7) // 8 :], "<i2").astype(np.float64)
    return bits * 2.0 - 1.0, planes
