"""Guard: `admit` before the model runs, `release` after. The only object that holds clock, key, accounts and sink."""

from __future__ import annotations

import contextlib
import contextvars
import logging
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from hardening.admission import Admission
from hardening.answer import Answer, Programs, wipe
from hardening.budgets import open_budgets, open_kept
from hardening.clients import ANONYMOUS, LONGEST_NAME, POOLED, Baseline, Clients
from hardening.clients.fingerprints import HASHES, Fingerprints
from hardening.clients.table import reasons
from hardening.config import Near, Policy
from hardening.errors import ConfigError, Denied, HardeningError, InputError, ReleaseError
from hardening.events import LogSink
from hardening.forks import watch
from hardening.kernels import layout
from hardening.keys import load_key, own_key
from hardening.ledger import Ledger
from hardening.noise import Key, derive
from hardening.program import Task
from hardening.recent import Recent, layout_of
from hardening.recorder import open_recorder
from hardening.types import Alarm, Clock, Decision, Event, Identity, Sink, Standing
from hardening.watch import Watch

_client: contextvars.ContextVar[str | Identity | None] = contextvars.ContextVar("hardening.client", default=None)
_log = logging.getLogger("hardening.policy")


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


def _fingerprints(near: Near | None, secret: Key, model_digest: str) -> Fingerprints | None:
    if near is None:
        return None
    return Fingerprints(derive(secret, "near", model_digest), near.span, near.window, near.rows * HASHES)


def _baseline(policy: Policy) -> Baseline | None:
    """What ordinary clients ask."""
    if policy.detect.baseline is None:
        return None
    return Baseline.read(policy.root / policy.detect.baseline, policy.outputs, "detect.baseline")


def _table(capacity: int) -> Clients:
    try:
        return Clients(capacity)
    except MemoryError:
        raise ConfigError("clients.capacity", f"there is no memory for {capacity} clients: lower it") from None


class Guard:
    """Hardens answers under one policy, for one model.

    Args:
        policy: what may be released.
        model_digest: names the model, usually SHA-256 of its file in hex; part of every noise key.
        sink: where events go; by default to the log.
        clock: seconds since the epoch, for events, probations and what is done about clients.
        ledger: where budgets are kept, instead of what the policy says; closed with the guard.
        suspicion: evidence against a client by name, in units of the alarm threshold, from a detector of one's own. For
            clients beyond the table's capacity it is asked about ``(pooled)`` as well, and the higher counts.

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
        given = {"ledger": ledger, "detect": suspicion}
        for warning in policy.warnings:
            if given.get(warning.partition(".")[0]) is None:
                _log.warning("%s", warning)
        key = load_key(policy.key, policy.root) if policy.key else None
        secret, digest, baseline = key or own_key(), model_digest or "", _baseline(policy)
        numbers = {} if baseline is None else {baseline.output: baseline.numbers()}
        scored = (*numbers, *(name for name, output in policy.outputs.items() if output.tiers))
        self._logged = (policy.detect.output or scored[0]) if policy.detect.log is not None else None
        self._programs = Programs(policy, key, digest, numbers, self._logged, secret)
        self._clients = _table(policy.clients.capacity)
        self._charge, self._serve = self._clients.charge, self._clients.serve
        self._decisions: dict[str | Identity, Decision] = {}
        self._sink: Sink = sink if sink is not None else LogSink()
        self._clock = clock
        self._recorder = open_recorder(policy, secret, digest, self._tell, clock)
        self._fingerprints = _fingerprints(policy.detect.near, secret, digest)
        labels = {o.label_output: name for name, o in policy.outputs.items() if o.label_output}
        self.released = frozenset((*policy.outputs, *labels))
        self._scores_of = labels
        #: Model outputs that are looked at and never released.
        self.unreleased = frozenset(other for name in policy.outputs for other in policy.unreleased(name))
        self._pooling = False
        self._recent: Recent[_Kept] = Recent()
        self._admission: Admission | None = None
        if policy.selective:
            suspects = self._suspicion if suspicion is None else self._judged_by(suspicion)
            if ledger is None and policy.budgets:
                ledger = open_budgets(policy, self._sink, clock)
            pooled = self._clients.pooled
            self._admission = Admission(policy, model_digest or "", ledger, suspects, pooled, self._tell, clock)
        self._watch: Watch | None = None
        if baseline is not None:
            kept = open_kept(policy)
            self._watch = Watch(policy, self._clients, baseline, kept, digest, self._tell, clock, links=self.links)
            watch(self)

    def __enter__(self) -> Guard:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release nothing from now on, return what is on lease, and close the sink."""
        self._recent = Recent()
        self.released = frozenset()
        self._decisions.clear()
        if self._watch is not None:
            self._watch.close()
        if self._admission is not None:
            self._admission.close()
        if self._recorder is not None:
            self._recorder.close()
        self._sink.close()

    def begin_again(self) -> None:
        """In a process just forked: nobody has been met there."""
        self._decisions.clear()
        if self._admission is not None:
            self._admission.forget()
        if self._watch is not None:
            self._watch.begin_again()

    def _suspicion(self, _: str, slot: int | None) -> float:
        if slot is None:
            return 0.0
        if self._watch is not None:
            return self._watch.suspicion(slot)
        return self._clients.suspicion_at(slot, self.policy.detect.false_alarm)

    def _judged_by(self, suspicion: Callable[[str], float]) -> Callable[[str, int | None], float]:
        """A detector by name; clients of the pooled account are judged by what it says of that, too."""
        pooled = self._clients.pooled
        return lambda name, slot: max(suspicion(name), suspicion(POOLED)) if slot == pooled else suspicion(name)

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
        return self._standings([client])[client]

    def _standings(self, clients: Iterable[str]) -> dict[str, Standing]:
        tier, alarm = self.policy.tiers[0], self.policy.detect.false_alarm
        rows = {client: self._clients.standing(client, tier, alarm) for client in clients}
        if self._admission is None:
            return rows
        return self._admission.standings({client: (row, self._clients.seat(client)) for client, row in rows.items()})

    def grant(self, client: str, *, bits: float = 0.0, rho: float = 0.0, reason: str, rung: str = "credential") -> None:
        """Allow an account more than the policy's bound, for good; `client` is its name on that `rung`.

        Nothing else gives more. A record in the ledger and an event keep the reason. Raises InputError, LedgerError.
        """
        if self._admission is None:
            raise InputError("the policy has no budgets: there is nothing to grant")
        self._admission.grant(client, rung, bits, rho, reason)

    def clients(self) -> dict[str, Standing]:
        """The standing of every client, and of the pooled account if it was used."""
        standings = self._standings([*self._clients.names(), POOLED])
        if not standings[POOLED].queries:
            del standings[POOLED]
        return standings

    def links(self) -> tuple[tuple[int, int, int], ...]:
        """Clients, by their place in `clients`, whose questions nearly repeat each other's, and how often they did.

        For `hardening.clients.fleet.clusters`; only where the policy looks for near duplicates.
        """
        return () if self._fingerprints is None else self._fingerprints.links()

    def alarms(self) -> tuple[Alarm, ...]:
        """Groups of clients that seem to be one attack, as of the last look at all of them (``detect.every``)."""
        return () if self._watch is None else self._watch.alarms

    def admit(self, client: str | Identity | None, rows: int, about: Hashable = None) -> Decision:
        """Charge `rows` to `client` before the model runs, and what it is known that their answers cost at least.

        Questions that are `about` the same, such as names and shapes of one row, are taken to cost the same a row.
        Raises Denied if the policy refuses the caller or its budgets do, InputError for a name that is empty, too long
        or not text, and once the guard is closed.
        """
        if client is None and (client := _client.get()) is None:
            client = ANONYMOUS
        if self._admission is not None:
            decision = self._admission.again(client, rows, about)
        else:
            try:
                decision = self._decisions.get(client)
            except TypeError:  # not even hashable, let alone text
                decision = None
        if decision is None or decision.rows != rows:
            decision = self._decide(client, rows, about)
        self._charge(decision.slot, rows)
        return decision

    def _decide(self, who: Any, rows: int, about: Hashable) -> Decision:
        """The long way, for whoever is not known."""
        admission = self._admission
        name = who.credential if isinstance(who, Identity) else who
        slot = self._open(name)
        decision = Decision(name, slot, self.policy.tiers[0], rows)
        if admission is None and slot != self._clients.pooled:
            self._decisions[name] = decision
        if not self.released:
            self._decisions.clear()
            raise InputError("the guard is closed: it admits nobody")
        return decision if admission is None else admission.admit(admission.place(who, slot), rows, about)

    def forgo(self, decision: Decision) -> None:
        """The model gave no answer: take back bits and privacy loss that were charged for it; rows stay charged."""
        if self._admission is not None:
            self._admission.forgo(decision)

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
            self._tell("accounts-pooled", name, capacity=self.policy.clients.capacity)
        if self._watch is not None:
            self._watch.meet(slot)
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
            if decision.rows > admission.at_once:
                answer.keep()
        if self._fingerprints is not None and answer.searched is not None:
            slot = -1 if decision.slot == self._clients.pooled else decision.slot
            answer.nearly[...] = self._fingerprints.seen(answer.searched, slot).duplicate
        if answer.single is None:
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
        if admission is not None and decision.rows > admission.at_once:
            answer = self._judged(admission, decision, answer)
        if answer.single is None:
            answer.complete()
        if self._recorder is not None and self._logged is not None:
            asked = answer.asked(self._logged)
            if asked is not None:
                self._recorder.record(decision.client, *asked)
        if admission is not None:
            admission.credit(decision, answer)
        return answer

    def _judged(self, admission: Admission, decision: Decision, answer: Answer) -> Answer:
        """A large answer, whose evidence is in: as it is, or hardened anew as that evidence says. Raises Denied."""
        other = admission.judge(decision, answer)
        if other is None:
            answer.forget()
            return answer
        answer = admission.pay(other, answer.anew(other.tier))
        answer.prepare(other.client)
        for name, task, job in answer.entries:
            self._clients.observe(other.slot, job)
            if task is not None and (status := task.run()):
                self._refuse(name, task, status)
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
