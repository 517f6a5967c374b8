"""Guard: `admit` before the model runs, `release` after. The only object that holds key, nonces and accounts."""

from __future__ import annotations

import contextlib
import contextvars
import hashlib
import math
import secrets
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardening.clients import ANONYMOUS, LONGEST_NAME, POOLED, Clients
from hardening.config import Policy
from hardening.errors import HardeningError, InputError, ReleaseError
from hardening.kernels import opcodes
from hardening.keys import load_key
from hardening.noise import derive, row_nonce
from hardening.pipeline import Program, Scratch
from hardening.types import Decision, Standing

_client: contextvars.ContextVar[str | None] = contextvars.ContextVar("hardening.client", default=None)
CAPACITY = 16_384


@contextlib.contextmanager
def as_client(client: str) -> Iterator[None]:
    """Queries inside the block are asked by `client`, unless they name somebody else."""
    token = _client.set(client)
    try:
        yield
    finally:
        _client.reset(token)


def _canonical(array: NDArray[Any]) -> NDArray[Any]:
    """Equal questions get equal bytes: little-endian, contiguous, one zero and one NaN."""
    if array.dtype.kind == "f":
        array = np.where(np.isnan(array), np.array(np.nan, array.dtype), array + np.array(0, array.dtype))
    if array.dtype.kind == "b":  # any byte but zero is true
        array = array.view(np.uint8) != 0
    if array.dtype.kind in "OSU":  # a digest each: neither the dtype's width nor the longest text of a batch matters
        texts = [v if isinstance(v, bytes) else str(v).encode() for v in array.ravel().tolist()]
        out = np.frombuffer(b"".join(hashlib.blake2b(t, digest_size=32).digest() for t in texts), np.uint8)
        return out.reshape(*array.shape, 32)
    return np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False))


def _bits(value: Any) -> float:
    """Raw size of an answer that is released as it is; what is of an unknown kind counts as unbounded."""
    if value is None:
        return 1.0
    if isinstance(value, str | bytes):
        return 8.0 * len(value.encode() if isinstance(value, str) else value)
    if isinstance(value, np.ndarray) and value.dtype.kind == "O":
        return sum(map(_bits, value.ravel().tolist()))
    if isinstance(value, np.ndarray | np.generic):
        return 8.0 * value.nbytes
    if isinstance(value, bool | int | float):
        return 64.0
    if isinstance(value, Mapping):
        return sum(map(_bits, (*value.keys(), *value.values())))
    if isinstance(value, list | tuple):
        return sum(map(_bits, value))
    return math.inf


class Guard:
    """Hardens answers under one policy, for one model.

    Args:
        policy: what may be released.
        model_digest: names the model, usually SHA-256 of its file in hex; part of every noise key.

    Raises ConfigError if the key cannot be had. Safe to share between threads.
    """

    def __init__(self, policy: Policy, model_digest: str | None = None) -> None:
        self.policy = policy
        self._digest = model_digest or ""
        self._key = load_key(policy.key, policy.root) if policy.key else None
        self._tag_key = derive(self._key, "tag", self._digest) if self._key else b""
        self._clients = Clients(CAPACITY)
        self._programs: dict[tuple[str, str, int], Program] = {}
        self._building = threading.Lock()
        self._local = threading.local()
        labels = [o.label_output for o in policy.outputs.values() if o.label_output]
        self.released = frozenset((*policy.outputs, *labels))
        self._scores_of = {o.label_output: name for name, o in policy.outputs.items() if o.label_output}

    def __enter__(self) -> Guard:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Forget compiled programs. A closed guard releases nothing."""
        self._programs = {}
        self.released = frozenset()

    def needs(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Model outputs to fetch, each once, for these to be released. Raises InputError for any other name."""
        for name in names:
            if name not in self.released:
                known = ", ".join(sorted(self.released)) or "none, the guard is closed"
                raise InputError(f"output {name!r} is not released by the policy; released: {known}")
        scores = (self._scores_of[n] for n in names if n in self._scores_of)
        return tuple(dict.fromkeys((*names, *scores)))

    def standing(self, client: str) -> Standing:
        """What `client` has learnt so far."""
        return self._clients.standing(client, self.policy.tiers[0])

    def clients(self) -> dict[str, Standing]:
        """The standing of every client, and of the pooled account if it was used."""
        standings = {name: self.standing(name) for name in self._clients.names()}
        pooled = self.standing(POOLED)
        return standings | ({POOLED: pooled} if pooled.queries else {})

    def admit(self, client: str | None, rows: int) -> Decision:
        """Charge `rows` to `client` before the model runs.

        Raises InputError for a name that is empty, too long or not text.
        """
        name = client if client is not None else _client.get()
        if name is None:
            name = ANONYMOUS
        if not isinstance(name, str) or not name or len(name) > LONGEST_NAME or not name.isprintable():
            raise InputError(f"client: must be 1 to {LONGEST_NAME} printable characters of text")
        slot = self._clients.slot(name)
        self._clients.charge(slot, rows)
        return Decision(name, slot, self.policy.tiers[0], rows, 0.0)

    def harden(
        self, outputs: Mapping[str, Any], *, client: str | None = None, inputs: Mapping[str, NDArray[Any]] | None = None
    ) -> dict[str, Any]:
        """Admit and release in one: a dict of arrays in, a dict of hardened arrays out; the caller's are not touched.

        Raises InputError, ReleaseError.
        """
        self.needs(tuple(outputs))
        first = next(iter(outputs.values()), ())
        decision = self.admit(client, len(first) if np.ndim(first) else 1)
        own = {n: v.copy() if isinstance(v, np.ndarray) else v for n, v in outputs.items()}
        return self.release(decision, own, inputs)

    def release(
        self, decision: Decision, outputs: dict[str, Any], inputs: Mapping[str, NDArray[Any]] | None
    ) -> dict[str, Any]:
        """Harden what the model returned; `outputs` must be the caller's own and is emptied, come what may.

        Raises ReleaseError, and then nothing is released.
        """
        failure: Exception
        try:
            return self._release_all(decision, outputs, inputs)
        except HardeningError as problem:
            failure = problem.with_traceback(None)
        except Exception as problem:
            failure = ReleaseError(", ".join(outputs), None, f"hardening failed ({type(problem).__name__})")
        finally:
            outputs.clear()
        # Raised out here, with no traceback and no context: the frames below hold raw scores.
        failure.__context__ = None
        raise failure

    def _release_all(
        self, decision: Decision, outputs: dict[str, Any], inputs: Mapping[str, NDArray[Any]] | None
    ) -> dict[str, Any]:
        answer: dict[str, Any] = {}
        for name, policy in self.policy.outputs.items():
            if name in outputs:
                answer[name] = self._release_one(decision, name, outputs[name], inputs)
            label = policy.label_output
            if label in outputs:
                answer[label] = self._labels(name, label, outputs[label], answer.get(name))
        return {name: answer[name] for name in outputs}

    def _release_one(self, decision: Decision, name: str, value: Any, inputs: Mapping[str, NDArray[Any]] | None) -> Any:
        policy = self.policy.outputs[name]
        if policy.space in ("open", "labels"):
            self._clients.charge(decision.slot, 0, _bits(value))
            return value
        if isinstance(value, list):
            return self._release_maps(decision, name, value, inputs)
        if not isinstance(value, np.ndarray) or value.dtype.kind != "f" or value.dtype.itemsize > 8:
            kind = value.dtype if isinstance(value, np.ndarray) else type(value).__name__
            raise ReleaseError(name, None, f"has {kind} values where the policy expects float scores ({policy.space})")
        if value.ndim == 0 or len(value) != decision.rows:
            raise ReleaseError(name, None, f"has shape {value.shape}, but {decision.rows} rows were asked")
        width = value.shape[-1] if value.ndim > 1 else 1
        vectors = value.reshape(-1, width) if value.size else value.reshape(int(np.prod(value.shape[:-1])), width)
        program = self._program(name, decision.tier, width)
        promise = program.pipeline.guarantee(width, value.dtype.itemsize)
        rho = promise.parameters.get("rho", 0.0)
        self._clients.charge(decision.slot, 0, promise.bits * len(vectors), rho * len(vectors))
        per_row = max(1, len(vectors) // max(1, decision.rows))
        nonces = self._nonces(name, program, decision.rows, inputs)
        status, summary = program.run(vectors, nonces, per_row, self._scratch())
        if status:
            row = (status // 8 - 1) // per_row
            raise ReleaseError(name, row, opcodes.PROBLEMS[status % 8])
        self._clients.observe(decision.slot, summary, width)
        return value if np.shares_memory(vectors, value) else vectors.reshape(value.shape)

    def _release_maps(
        self, decision: Decision, name: str, maps: list[Any], inputs: Mapping[str, NDArray[Any]] | None
    ) -> list[dict[Any, float]]:
        """A sequence of maps from class to score, as scikit-learn converters write it."""
        keys = list(maps[0]) if maps else []
        if any(not isinstance(m, dict) or list(m) != keys for m in maps):
            raise ReleaseError(name, None, "is a list, but not of maps over the same classes")
        scores = np.array([list(m.values()) for m in maps], np.float32).reshape(len(maps), len(keys))
        hardened = self._release_one(decision, name, scores, inputs)
        return [dict(zip(keys, row, strict=True)) for row in hardened.tolist()]

    def _labels(self, name: str, label: str, raw: Any, released: Any) -> NDArray[Any]:
        if released is None:
            raise ReleaseError(label, None, f"is derived from {name!r}, which was not given")
        raw = np.asarray(raw)
        classes: Any = self.policy.outputs[name].classes
        if isinstance(released, list):
            classes = classes or (tuple(released[0]) if released else ())
            scores = np.array([list(m.values()) for m in released])
        else:
            scores = released
        if classes is None:
            if raw.dtype.kind not in "iu":
                raise ReleaseError(label, None, f"holds {raw.dtype} labels: name them in outputs.{name}.classes")
            classes = range(scores.shape[-1])
        if len(scores) and scores.shape[-1] != len(classes):
            raise ReleaseError(label, None, f"{name!r} has {scores.shape[-1]} classes, the policy names {len(classes)}")
        chosen = scores.reshape(-1, max(1, len(classes))).argmax(axis=1)
        values = np.array(list(classes), raw.dtype if raw.dtype.kind in "iu" else object)
        return np.asarray(values[chosen].reshape(raw.shape))

    def _program(self, name: str, tier: str, width: int) -> Program:
        program = self._programs.get((name, tier, width))
        if program is None:
            with self._building:
                if len(self._programs) > 256:
                    self._programs = {}  # widths are chosen by callers of dynamic models; keep the table bounded
                program = Program(self.policy.pipeline(name, tier), width, self._key, name, self._digest)
                self._programs[name, tier, width] = program
        return program

    def _scratch(self) -> Scratch:
        if not hasattr(self._local, "scratch"):
            self._local.scratch = Scratch()
        scratch: Scratch = self._local.scratch
        return scratch

    def _nonces(
        self, name: str, program: Program, rows: int, inputs: Mapping[str, NDArray[Any]] | None
    ) -> NDArray[np.uint32]:
        if program.fresh and not program.keyed_by_input:
            return np.frombuffer(secrets.token_bytes(12 * rows), "<u4").reshape(rows, 3)
        if not program.keyed_by_input:
            return np.zeros((rows, 3), np.uint32)
        if not inputs:
            raise InputError(
                f"output {name!r} has noise keyed on the input: pass inputs= (a dict of arrays), "
                'or use key = "cell" or key = "fresh" in the policy'
            )
        shared, varying = hashlib.blake2b(digest_size=32), []
        for key in sorted(inputs):
            raw = np.asarray(inputs[key])
            array = _canonical(raw)
            dtype = "text" if raw.dtype.kind in "OSU" else array.dtype.str
            by_row = array.ndim > 0 and len(array) == rows
            shape = array.shape[1:] if by_row or array.shape[:1] == (1,) else array.shape
            shared.update(repr((key, dtype, shape, by_row)).encode())
            if by_row:
                varying.append(array.reshape(rows, -1).view(np.uint8) if array.size else np.zeros((rows, 0), np.uint8))
            else:
                shared.update(array.tobytes())
        context = shared.digest()
        packed = np.concatenate(varying, axis=1) if varying else np.zeros((rows, 0), np.uint8)
        nonces = b"".join(row_nonce(self._tag_key, context, row.tobytes()) for row in packed)
        return np.frombuffer(nonces, "<u4").reshape(rows, 3)
