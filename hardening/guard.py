"""Guard: `admit` before the model runs, `release` after. The only object that holds clock, key, accounts and sink."""

from __future__ import annotations

import contextlib
import contextvars
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from hardening.admission import Admission
from hardening.answer import Answer, Programs, wipe
from hardening.budgets import open_budgets
from hardening.clients import ANONYMOUS, LONGEST_NAME, POOLED, Baseline, Clients
from hardening.clients.table import reasons
from hardening.config import Policy
from hardening.errors import ConfigError, Denied, HardeningError, InputError, ReleaseError
from hardening.events import LogSink
from hardening.kernels import layout
from hardening.keys import load_key
from hardening.ledger import Ledger
from hardening.program import Task
from hardening.recent import Recent, layout_of
from hardening.types import Clock, Decision, Event, Identity, Sink, Standing

_client: contextvars.ContextVar[str | Identity | None] = contextvars.ContextVar("hardening.client", default=None)
_NAMES = (str, Identity)
CAPACITY = 16_384


@dataclass(slots=True)
class _Kept:
    """An answer that `harden` uses again, the arrays that it reads and writes, and whether nobody is using them.

    Whoever comes in between, from a signal or a finalizer, must not; nor may anyone after an answer that failed.
    """

    answer: Answer
    own: dict[str, NDArray[Any]]
    asked: dict[str, NDArray[Any]] | None
    free: bool = True


def _rows(outputs: Mapping[str, Any], inputs: Mapping[str, Any] | None) -> int:
    """Rows that were asked: as many as the first output has, or one where all of it answers the one row there is."""
    first = next(iter(outputs.values()), ())
    rows = len(first) if np.ndim(first) else 1
    asked = {len(array) for array in (inputs or {}).values() if np.ndim(array)}
    return 1 if 1 in asked and rows not in asked else rows


@contextlib.contextmanager
def as_client(client: str | Identity) -> Iterator[None]:
    """Queries inside the block are asked by `client`, unless they name somebody else.

    Not around a ``yield`` in a generator: what its caller asks until it goes on would be asked by `client` as well.
    """
    token = _client.set(client)
    try:
        yield
    finally:
        _client.reset(token)


def _baselines(policy: Policy) -> dict[str, NDArray[np.float64]]:
    """What ordinary clients ask, by output, as kernels read it."""
    name = policy.detect.baseline
    if name is None:
        return {}
    try:
        text = (policy.root / name).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise ConfigError("detect.baseline", f"cannot read {name!r}: {problem}") from None
    baseline = Baseline.from_json(text, "detect.baseline")
    if baseline.output not in policy.outputs:
        raise ConfigError("detect.baseline", f"is of the output {baseline.output!r}, which the policy does not name")
    return {baseline.output: baseline.numbers()}


class Guard:
    """Hardens answers under one policy, for one model.

    Args:
        policy: what may be released.
        model_digest: names the model, usually SHA-256 of its file in hex; part of every noise key.
        sink: where events go; by default to the log.
        clock: seconds since the epoch, for events, probations and what is done about clients.
        ledger: where budgets are kept, instead of what the policy says; closed with the guard.
        suspicion: evidence against a client by name, in units of the alarm threshold, from a detector of one's own.

    Raises ConfigError if the key or the ledger cannot be had. Safe to share between threads.
    """

    def __init__(
        self,
        policy: Policy,
        model_digest: str | None = None,
        *,
        sink: Sink | None = None,
        clock: Clock = time.time,
        ledger: Ledger | None = None,
        suspicion: Callable[[str], float] | None = None,
    ) -> None:
        self.policy = policy
        key = load_key(policy.key, policy.root) if policy.key else None
        self._programs = Programs(policy, key, model_digest or "", _baselines(policy))
        self._clients = Clients(CAPACITY)
        self._charge, self._serve = self._clients.charge, self._clients.serve
        self._decisions: dict[str | Identity, Decision] = {}
        self._sink: Sink = sink if sink is not None else LogSink()
        self._clock = clock
        labels = {o.label_output: name for name, o in policy.outputs.items() if o.label_output}
        self.released = frozenset((*policy.outputs, *labels))
        self._scores_of = labels
        #: Model outputs that are looked at and never released.
        self.unreleased = frozenset(other for name in policy.outputs for other in policy.unreleased(name))
        self._pooling = False
        self._recent: Recent[_Kept] = Recent()
        self._admission: Admission | None = None
        if policy.selective:
            suspects = self._suspicion if suspicion is None else suspicion
            if ledger is None and policy.budgets:
                ledger = open_budgets(policy, self._sink, clock)
            pooled = self._clients.pooled
            self._admission = Admission(policy, model_digest or "", ledger, suspects, pooled, self._tell, clock)

    def __enter__(self) -> Guard:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release nothing from now on, return what is on lease, and close the sink."""
        self._recent = Recent()
        self.released = frozenset()
        self._decisions.clear()
        if self._admission is not None:
            self._admission.close()
        self._sink.close()

    def _suspicion(self, client: str) -> float:
        return self._clients.suspicion(client, self.policy.detect.false_alarm)

    def needs(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Model outputs to fetch, each once, for these to be released. Raises InputError for any other name."""
        for name in names:
            if name not in self.released:
                known = ", ".join(sorted(self.released)) or "none, the guard is closed"
                raise InputError(f"output {name!r} is not released by the policy; released: {known}")
        scores = tuple(dict.fromkeys((*names, *(self._scores_of[n] for n in names if n in self._scores_of))))
        beside = (other for n in scores if n in self.policy.outputs for other in self.policy.unreleased(n))
        return tuple(dict.fromkeys((*scores, *beside)))

    def standing(self, client: str) -> Standing:
        """What `client` has learnt so far; bits and rho by the books where they bound a credential, else from here."""
        row = self._clients.standing(client, self.policy.tiers[0], self.policy.detect.false_alarm)
        return row if self._admission is None else self._admission.standing(row, client, self._clients.find(client))

    def grant(self, client: str, *, bits: float = 0.0, rho: float = 0.0, reason: str, rung: str = "credential") -> None:
        """Allow an account more than the policy's bound, for good; `client` is its name on that `rung`.

        Nothing else gives more. A record in the ledger and an event keep the reason. Raises InputError, LedgerError.
        """
        if self._admission is None:
            raise InputError("the policy has no budgets: there is nothing to grant")
        self._admission.grant(client, rung, bits, rho, reason)

    def clients(self) -> dict[str, Standing]:
        """The standing of every client, and of the pooled account if it was used."""
        standings = {name: self.standing(name) for name in self._clients.names()}
        pooled = self.standing(POOLED)
        return standings | ({POOLED: pooled} if pooled.queries else {})

    def admit(self, client: str | Identity | None, rows: int) -> Decision:
        """Charge `rows` to `client` before the model runs.

        Raises Denied if the policy refuses the caller or its budgets do, InputError for a name that is empty, too long
        or not text, and once the guard is closed.
        """
        if client is None and (client := _client.get()) is None:
            client = ANONYMOUS
        try:
            decision = self._decisions.get(client)
        except TypeError:  # not even hashable, let alone text
            decision = None
        if decision is None or decision.rows != rows:
            decision = self._decide(client, rows)
        self._charge(decision.slot, rows)
        return decision

    def _decide(self, who: Any, rows: int) -> Decision:
        """The long way: for whoever is not known, and for everybody where there is more to admit by than a name."""
        admission = self._admission
        if admission is not None and isinstance(who, _NAMES):
            caller = admission.known(who)
            if caller is not None:
                return admission.admit(caller, rows)
        name = who.credential if isinstance(who, Identity) else who
        slot = self._open(name)
        decision = Decision(name, slot, self.policy.tiers[0], rows)
        if admission is None and slot != self._clients.pooled:
            self._decisions[name] = decision
        if not self.released:
            self._decisions.clear()
            raise InputError("the guard is closed: it admits nobody")
        return decision if admission is None else admission.admit(admission.place(who, slot), rows)

    def _open(self, name: Any) -> int:
        """The account of a client. Raises Denied, InputError."""
        if not isinstance(name, str) or not name or len(name) > LONGEST_NAME or not name.isprintable():
            raise InputError(f"client: must be 1 to {LONGEST_NAME} printable characters of text")
        if name == POOLED:
            raise InputError(f"client: {POOLED!r} is the name of the shared account")
        if name == ANONYMOUS and self.policy.clients.anonymous == "deny":
            self._tell("denied", name, reason="callers without a name are refused (clients.anonymous)")
            raise Denied(name, "callers without a name are refused", "forbidden")
        slot = self._clients.slot(name)
        if slot == self._clients.pooled and not self._pooling:
            self._pooling = True
            self._tell("accounts-pooled", name, capacity=CAPACITY)
        return slot

    def _tell(self, kind: str, client: str, **evidence: Any) -> None:
        self._sink.emit(Event(kind, self._clock(), client, evidence))

    def harden(
        self,
        outputs: Mapping[str, Any],
        *,
        client: str | Identity | None = None,
        inputs: Mapping[str, NDArray[Any]] | None = None,
    ) -> dict[str, Any]:
        """Admit and release in one: a dict of arrays in, a dict of hardened arrays out; the caller's are not touched.

        Surrogates that the policy names are among the arrays that go in, and not among those that come out.

        Raises Denied, InputError, ReleaseError.
        """
        key, recent = layout_of(outputs, inputs), self._recent
        kept = recent.find(key)
        if kept is not None and kept.free:
            return self._harden_kept(kept, outputs, inputs, client, kept.answer.rows)
        self.needs(tuple(n for n in outputs if n not in self.unreleased))
        rows = _rows(outputs, inputs)
        decision = self.admit(client, rows)
        own = {n: v.copy() if isinstance(v, np.ndarray) else v for n, v in outputs.items()}
        answer = self.release(decision, own, inputs)
        if key is not None and recent.again(key):
            own = {n: np.empty(v.shape, v.dtype) for n, v in outputs.items()}
            # Little-endian, for the kernel reads these arrays and not copies of them that were made once.
            asked = (
                None if inputs is None else {n: np.empty(v.shape, v.dtype.newbyteorder("<")) for n, v in inputs.items()}
            )
            recent.keep(key, _Kept(self.bind(own, asked, rows), own, asked))
        return answer

    def _harden_kept(
        self,
        kept: _Kept,
        outputs: Mapping[str, Any],
        inputs: Mapping[str, NDArray[Any]] | None,
        client: str | Identity | None,
        rows: int,
    ) -> dict[str, Any]:
        own, asked = kept.own, kept.asked
        decision = self.admit(client, rows)
        kept.free = False
        for name, array in own.items():
            array[...] = outputs[name]
        if asked is not None and inputs is not None:
            for name, array in asked.items():
                array[...] = inputs[name]
        self.finish(decision, kept.answer)
        answer = {name: array.copy() for name, array in kept.answer.outputs.items()}
        kept.free = True
        return answer

    def bind(
        self,
        outputs: dict[str, Any],
        inputs: Mapping[str, NDArray[Any]] | None,
        rows: int,
        tier: str | None = None,
    ) -> Answer:
        """Check what a run returned, or buffers that runs will return to, and make it ready for `finish`.

        Raises ReleaseError, InputError, ConfigError.
        """
        return Answer(self._programs, self.policy.tiers[0] if tier is None else tier, outputs, inputs, rows)

    def release(
        self, decision: Decision, outputs: dict[str, Any], inputs: Mapping[str, NDArray[Any]] | None
    ) -> dict[str, Any]:
        """Harden what the model returned; `outputs` must be the caller's own and is emptied, come what may.

        Raises ReleaseError, and then nothing is released.
        """
        try:
            answer = self.bind(dict(outputs), inputs, decision.rows, decision.tier)
        except BaseException as problem:
            wipe(outputs.values())
            if not isinstance(problem, Exception):
                raise
            failure = self._failed(decision, ", ".join(outputs), problem)
        else:
            return self.finish(decision, answer).outputs
        finally:
            outputs.clear()
        raise failure

    def finish(self, decision: Decision, answer: Answer) -> Answer:
        """Charge `answer`, harden it in place and enter it into the client's account.

        Returns what was hardened: `answer`, or one over the same arrays for a tier that the client can pay for. Raises
        ReleaseError, Denied; the answer is then wiped and nothing is released.
        """
        try:
            if answer.only is None:
                return self._finish_all(decision, answer)
            status = self._serve(decision.slot, answer.only)
            if not status:
                return answer
            if status < 0:
                self._stands_out(decision, -status)
                return answer
            self._refuse(*answer.entries[0][:2], status)
        except BaseException as problem:
            names = ", ".join(answer.outputs)
            answer.wipe()
            if not isinstance(problem, Exception):
                raise
            failure = self._failed(decision, names, problem)
        raise failure

    def _finish_all(self, decision: Decision, answer: Answer) -> Answer:
        admission = self._admission
        if admission is not None:
            answer = admission.pay(decision, answer)
        answer.prepare(decision.client)
        for name, task, job in answer.entries:
            if task is None or task.small:
                status = self._serve(decision.slot, job)
            else:
                self._clients.observe(decision.slot, job)
                if not (status := task.run()):
                    status = self._clients.settle(decision.slot, job)
            if status > 0:
                self._refuse(name, task, status)
            if status < 0:
                self._stands_out(decision, -status)
        answer.complete()
        if admission is not None:
            admission.credit(decision, answer)
        return answer

    def _stands_out(self, decision: Decision, windows: int) -> None:
        """Tell of windows that this answer filled, and that stand out from those of ordinary clients."""
        client = POOLED if decision.slot == self._clients.pooled else decision.client
        row = self._clients.row(client)
        closed, beyond, last = (row[name].item() for name in ("windows", "beyond", "window"))
        lanes = {lane.name.lower(): round(above, 3) for lane, above in reasons(row)}
        self._tell("window-alarm", client, windows=windows, last=last, closed=closed, beyond=beyond, above=lanes)

    def _refuse(self, name: str, task: Task | None, status: int) -> NoReturn:
        row = None if task is None else task.row_of(status)
        raise ReleaseError(name, row, layout.PROBLEMS[status % 8])

    def _failed(self, decision: Decision, names: str, problem: Exception) -> HardeningError:
        """The error to raise, without traceback or context: the frames behind it hold raw scores."""
        if not isinstance(problem, HardeningError):
            problem = ReleaseError(names, None, f"hardening failed ({type(problem).__name__})")
        problem = problem.with_traceback(None)
        problem.__context__ = None
        if not isinstance(problem, Denied):  # which has been told
            self._tell("release-failed", decision.client, problem=str(problem))
        return problem
