"""The outputs of one run: checked against the policy, tied to programs, hardened in place."""

from __future__ import annotations

import functools
import math
import secrets
import threading
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardening.asked import question_of, searched
from hardening.config import Output, Policy
from hardening.errors import InputError, ReleaseError
from hardening.kernels import layout
from hardening.kernels.layout import Job
from hardening.ledger import Cost
from hardening.noise import Key, derive
from hardening.program import Program, Question, Task
from hardening.transforms.classes import INDEPENDENT


class Programs:
    """Every program that a policy has called for so far, for one model. Safe to share between threads."""

    #: Widths are chosen by the callers of models with dynamic shapes; beyond this many the table starts anew.
    MOST = 256

    def __init__(
        self,
        policy: Policy,
        key: Key | None,
        model_digest: str,
        baselines: Mapping[str, NDArray[np.float64]] | None = None,
        logged: str | None = None,
        secret: Key | None = None,
    ) -> None:
        #: By output, what ordinary clients ask (`Baseline.numbers`), where evidence is to be gathered.
        self.baselines = dict(baselines or {})
        #: The output whose rows are logged; and what questions are hashed under to tell them apart, by default the key.
        self.logged, self.secret = logged, secret or key
        self.policy, self.key, self.model_digest = policy, key, model_digest
        self._known: dict[tuple[str, str, int], Program] = {}
        self._building = threading.Lock()
        self.tag = functools.lru_cache(maxsize=4096)(self._tag)

    def names(self, output: str) -> bool:
        """Whether the questions about an output are told apart, even if its noise is not keyed on them."""
        return self.secret is not None and (output in self.baselines or output == self.logged)

    def get(self, output: str, tier: str, width: int) -> Program:
        program = self._known.get((output, tier, width))
        if program is None:
            with self._building:
                if len(self._known) >= self.MOST:
                    self._known = {}
                pipeline, baseline = self.policy.pipeline(output, tier), self.baselines.get(output)
                program = Program(pipeline, width, self.key, output, self.model_digest, baseline)
                self._known[output, tier, width] = program
        return program

    def _tag(self, client: str) -> NDArray[np.uint32]:
        """What tells a client's own noise from others': uint32 ``(3,)``, a secret."""
        assert self.key is not None
        return np.frombuffer(derive(self.key, "client", self.model_digest, client)[:12], "<u4")


class Answer:
    """What one run returned, or buffers that runs return to again and again.

    Args:
        programs: of the policy and model at hand.
        tier: which of the policy's tiers hardens.
        outputs: arrays by name, in the order in which they are wanted. They are hardened in place where the kernel can
            (float32 or float64, contiguous, writable). Those that are not released, but looked at, do not get into the
            answer, and are overwritten once it is there.
        inputs: the arrays that were asked about, for noise keyed on them; read whenever `harden` runs.
        rows: how many rows were asked.

    Attributes:
        tier: as given.
        nonces: of noise keyed on the input, once it is hardened: uint32 ``(rows, 3)``, one for each distinct row.
        searched: what near duplicates are to be looked for in, ``(rows, ...)``, if the policy asks for it.

    Raises ReleaseError if an output is not what the policy expects, InputError if the noise, or the search for near
    duplicates, needs inputs and those given will not do.
    """

    def __init__(
        self,
        programs: Programs,
        tier: str,
        outputs: dict[str, Any],
        inputs: Mapping[str, NDArray[Any]] | None,
        rows: int,
    ) -> None:
        hidden = {other for name in programs.policy.outputs for other in programs.policy.unreleased(name)}
        self._hidden = {n: v for n, v in outputs.items() if n in hidden}
        self.outputs, self.rows = {n: v for n, v in outputs.items() if n not in hidden}, rows
        #: uint8 ``(rows,)``: 1 where a question is nearly one that was asked before, if somebody found out.
        self.nearly = np.zeros(rows, np.uint8)
        #: For each output: its task, and a job that says what to do and what the answer costs. An output that is
        #: released as it is has no task; its job holds the costs alone.
        self.entries: list[tuple[str, Task | None, NDArray[np.int64]]] = []
        self._programs, self.tier, self._inputs = programs, tier, inputs
        self._others: dict[str, Answer] = {}
        self._bits, self._rho = 0.0, 0.0
        near = programs.policy.detect.near
        self.searched = None if near is None else searched(inputs, rows, near.input)
        self._names: NDArray[np.uint32] | None = None
        self.nonces: NDArray[np.uint32] | None = None
        self._maps: dict[str, NDArray[np.float32]] = {}
        self._fresh: list[NDArray[np.uint32]] = []
        self._derived: list[tuple[str, str, Output]] = []
        for name, rules in programs.policy.outputs.items():
            if name in outputs:
                self._take(name, rules, outputs[name])
            elif rules.label_output in outputs:
                raise ReleaseError(rules.label_output or "", None, f"is derived from {name!r}, which was not given")
            if rules.label_output in outputs:
                self._derived.append((name, rules.label_output or "", rules))
        #: The one job there is, if one call of a kernel is all there is to do, and nobody has to pay for it.
        self.only = None if programs.policy.selective or programs.policy.detect.watches else self._only()

    @functools.cached_property
    def cost(self) -> Cost:
        """What the whole answer is charged, rows aside."""
        return Cost.of(self._bits, self._rho)

    def at(self, tier: str) -> Answer:
        """This answer as another tier hardens it: the same arrays, before either was hardened. Raises as this does."""
        if tier == self.tier:
            return self
        other = self._others.get(tier)
        if other is None:
            outputs = self.outputs | self._hidden
            other = self._others[tier] = Answer(self._programs, tier, outputs, self._inputs, self.rows)
        return other

    def _only(self) -> NDArray[np.int64] | None:
        if len(self.entries) != 1 or self._derived or self._maps or self._fresh or self._hidden:
            return None
        _, task, job = self.entries[0]
        return job if task is None or (task.in_place and task.small and not task.program.personal) else None

    def _take(self, name: str, rules: Output, value: Any) -> None:
        if rules.space in ("open", "labels"):
            self._enter(name, None, np.zeros(layout.JOB, np.int64), _raw_bits(value), None)
            return
        if isinstance(value, list):
            value = self._maps[name] = _scores_of_maps(name, value)
        if not isinstance(value, np.ndarray) or value.dtype.kind != "f" or value.dtype.itemsize > 8:
            kind = value.dtype if isinstance(value, np.ndarray) else type(value).__name__
            raise ReleaseError(name, None, f"has {kind} values where the policy expects float scores ({rules.space})")
        # All of an answer belongs to the one row that was asked, such as the boxes of one image.
        if value.ndim == 0 or (len(value) != self.rows and self.rows != 1):
            raise ReleaseError(name, None, f"has shape {value.shape}, but {self.rows} rows were asked")
        width = value.shape[-1] if value.ndim > 1 else 1
        vectors = value.reshape(math.prod(value.shape[:-1]) if value.ndim > 1 else len(value), width)
        if not np.shares_memory(vectors, value) and value.size:
            raise ReleaseError(name, None, "is not contiguous")
        if not value.flags.writeable:
            raise ReleaseError(name, None, "is read-only, and scores are hardened in place: pass a copy")
        program = self._programs.get(name, self.tier, width)
        question = self._ask(name, program)
        task = Task(
            program,
            vectors,
            self.rows,
            self._nonces_for(program),
            question,
            self._beside(name, program, vectors, value),
            self._names if program.keyed_by_input or self._programs.names(name) else None,
        )
        task.job[Job.DUPLICATES] = self.nearly.ctypes.data
        promise = program.promise(value.dtype.itemsize)
        most = dict.fromkeys(("simplex", "logits"), math.log2(max(width, 1))) | dict.fromkeys(INDEPENDENT, 1.0)
        rho = promise.parameters.get("rho")
        loss = None if rho is None else rho * len(vectors) if len(vectors) else 0.0
        self._enter(name, task, task.job, promise.bits * len(vectors), loss, most.get(rules.space, 0.0))

    def _enter(
        self, name: str, task: Task | None, job: NDArray[np.int64], bits: float, rho: float | None, entropy: float = 0.0
    ) -> None:
        """One more output, and what it costs; a `rho` that is not known costs more than any budget has."""
        self._bits += bits
        self._rho += math.inf if rho is None else rho
        floats = job.view(np.float64)
        floats[Job.BITS], floats[Job.RHO], floats[Job.MOST_ENTROPY] = bits, rho or 0.0, entropy
        self.entries.append((name, task, job))

    def _beside(self, name: str, program: Program, vectors: NDArray[Any], value: NDArray[Any]) -> NDArray[Any] | None:
        """Scores of the unreleased output that the program looks at, in the shape of `vectors`. Raises ReleaseError."""
        other = program.unreleased
        if other is None:
            return None
        if other not in self._hidden:
            raise ReleaseError(name, None, f"is perturbed by its surrogate {other!r}, which was not given")
        found = self._hidden[other]
        if not isinstance(found, np.ndarray) or found.dtype.kind != "f" or found.dtype.itemsize > 8:
            kind = found.dtype if isinstance(found, np.ndarray) else type(found).__name__
            raise ReleaseError(name, None, f"needs float scores of its surrogate {other!r}, which holds {kind} values")
        if found.shape != value.shape:
            raise ReleaseError(
                name, None, f"has shape {value.shape}, its surrogate {other!r} {found.shape}: they must be the same"
            )
        return found.reshape(vectors.shape)

    def _nonces_for(self, program: Program) -> NDArray[np.uint32]:
        """What the noise of an output is keyed on, one nonce for each row; where that is the input, their names."""
        if program.keyed_by_input:
            assert self._names is not None
            self.nonces = self._names
            return self._names
        nonces = np.zeros((self.rows, 3), np.uint32)
        if program.fresh:
            self._fresh.append(nonces)
        return nonces

    def _ask(self, name: str, program: Program) -> Question | None:
        """The question, for the first output that goes by it; its kernel fills the names in, which all outputs share.

        Raises InputError where noise is keyed on the question and there is none; what is only watched does without.
        """
        if self._names is not None or not (program.keyed_by_input or self._programs.names(name)):
            return None
        secret = self._programs.secret
        assert secret is not None
        try:
            question = question_of(self._inputs, self.rows, name, secret, self._programs.model_digest)
        except InputError:
            if program.keyed_by_input:
                raise
            return None
        self._names = np.zeros((self.rows, 3), np.uint32)
        return question

    def asked(self, output: str) -> tuple[NDArray[np.float64], NDArray[np.uint32] | None, NDArray[np.uint8]] | None:
        """What a log keeps of the rows of an output hardened last (`clients.log.records`); None if it has none."""
        for name, task, job in self.entries:
            if name == output and task is not None:
                return *task.asked(), np.repeat(self.nearly, int(job[Job.PER_ROW]))
        return None

    def prepare(self, client: str) -> None:
        """Before the kernels run: fresh nonces, the client's tag, and copies of scores that they cannot work on."""
        for nonces in self._fresh:
            nonces[...] = np.frombuffer(secrets.token_bytes(nonces.nbytes), "<u4").reshape(nonces.shape)
        for _, task, _ in self.entries:
            if task is not None:
                task.fetch()
                if task.program.personal:
                    task.address_to(self._programs.tag(client))

    def complete(self) -> None:
        """After the kernels ran: what follows from the hardened scores, such as labels. Raises ReleaseError."""
        wipe(self._hidden.values())
        for _, task, _ in self.entries:
            if task is not None:
                task.put_back()
        for name, scores in self._maps.items():
            keys = [list(m) for m in self.outputs[name]]
            self.outputs[name] = [dict(zip(k, row, strict=True)) for k, row in zip(keys, scores.tolist(), strict=True)]
        for name, label, rules in self._derived:
            self.outputs[label] = _labels(name, label, rules, self.outputs[label], self.outputs[name])

    def wipe(self) -> None:
        """Overwrite whatever scores are still held."""
        wipe((*self.outputs.values(), *self._maps.values(), *self._hidden.values()))
        for _, task, _ in self.entries:
            if task is not None:
                task.wipe()
        for other in self._others.values():
            other.wipe()
        self.outputs, self._hidden, self._others = {}, {}, {}


def wipe(values: Iterable[Any]) -> None:
    """Overwrite the arrays among `values`, whoever still holds them."""
    for value in values:
        if isinstance(value, np.ndarray) and value.flags.writeable and value.dtype.kind != "V":
            value.fill(0)


def _raw_bits(value: Any) -> float:
    """Size of an answer that is released as it is; what is of an unknown kind counts as unbounded."""
    if value is None:
        return 1.0
    if isinstance(value, str | bytes):
        return 8.0 * len(value.encode() if isinstance(value, str) else value)
    if isinstance(value, np.ndarray) and value.dtype.kind == "O":
        return sum(map(_raw_bits, value.ravel().tolist()))
    if isinstance(value, np.ndarray | np.generic):
        return 8.0 * value.nbytes
    if isinstance(value, bool | int | float):
        return 64.0
    if isinstance(value, Mapping):
        return sum(map(_raw_bits, (*value.keys(), *value.values())))
    if isinstance(value, list | tuple):
        return sum(map(_raw_bits, value))
    return math.inf


def _scores_of_maps(name: str, maps: list[Any]) -> NDArray[np.float32]:
    """Scores of a sequence of maps from class to score, as scikit-learn converters write it."""
    keys = list(maps[0]) if maps and isinstance(maps[0], dict) else []
    if any(not isinstance(m, dict) or list(m) != keys for m in maps):
        raise ReleaseError(name, None, "is a list, but not of maps over the same classes")
    return np.array([list(m.values()) for m in maps], np.float32).reshape(len(maps), len(keys))


def _labels(name: str, label: str, rules: Output, given: Any, released: Any) -> NDArray[Any]:
    """The labels that released scores say, in the shape and dtype of the model's own labels; in place if it can be."""
    raw: NDArray[Any] = np.asarray(given)
    if rules.space in INDEPENDENT:
        return _yes_or_no(name, label, raw, released)
    classes: Any = rules.classes
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
    try:
        values = np.array(list(classes), object if raw.dtype.kind in "OSU" else raw.dtype)
    except (ValueError, TypeError, OverflowError):
        raise ReleaseError(label, None, f"holds {raw.dtype} labels, which outputs.{name}.classes are not") from None
    return _in_place(raw, np.asarray(values[chosen].reshape(raw.shape)))


def _yes_or_no(name: str, label: str, raw: NDArray[Any], released: Any) -> NDArray[Any]:
    """One for every released value of at least one half."""
    scores = np.array([list(m.values()) for m in released]) if isinstance(released, list) else released
    if raw.dtype.kind not in "biuf" or raw.size != scores.size:
        raise ReleaseError(label, None, f"holds {raw.dtype} in shape {raw.shape}: a 0 or 1 for each {name!r} is needed")
    return _in_place(raw, (scores >= 0.5).reshape(raw.shape).astype(raw.dtype))


def _in_place(raw: NDArray[Any], answer: NDArray[Any]) -> NDArray[Any]:
    if raw.flags.writeable and raw.dtype == answer.dtype:
        raw[...] = answer
        return raw
    return answer
