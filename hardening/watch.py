"""Watch: what is done about evidence off the request path, in one thread: it is kept, and all clients are looked at.

Nobody waits for it, but for the reading of what others saw of a client when it is met: whoever was flagged before a
restart would otherwise get the mildest tier until somebody looks.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardening.clients import Baseline, Clients, fleet
from hardening.clients.evidence import e_benjamini_hochberg, suspicion
from hardening.clients.fleet import FEWEST, Group, about_the_same
from hardening.clients.table import evidence, reasons
from hardening.config import Policy
from hardening.ledger.amounts import milliseconds
from hardening.ledger.store import Store
from hardening.replica import Replica
from hardening.types import Alarm, Clock

#: Seconds between two looks for clients who have reached a level, or whose past could not be read.
GLANCE = 1.0
#: Alarms that are remembered so as not to be told again, and names that one event has.
REMEMBERED, NAMES = 32, 8


#: How often one client nearly repeats another before the two are tied.
REPEATED = 5


@dataclass(frozen=True, eq=False)
class Told:
    """What was told about a group, whatever its members were at the time.

    Attributes:
        mask: who is in it, as told last. least, most: how many were.
        lanes: what spoke against it. since: when it was told first.
    """

    mask: NDArray[np.bool_]
    least: int
    most: int
    lanes: frozenset[str]
    since: float

    @classmethod
    def of(cls, alarm: Alarm, members: NDArray[np.intp], clients: int, before: Sequence[Told]) -> Told:
        """What is told from now on, `alarm` and all that was told of the same group `before`."""
        mask = np.zeros(clients, bool)
        mask[members] = True
        lanes = frozenset(lane for lane, _, _ in alarm.lanes).union(*(told.lanes for told in before))
        least = min([alarm.members, *(told.least for told in before)])
        most = max([alarm.members, *(told.most for told in before)])
        return cls(mask, least, most, lanes, min([alarm.since, *(told.since for told in before)]))

    def covers(self, alarm: Alarm) -> bool:
        """Whether `alarm` says nothing new: no lane, nor twice as many members or half of them."""
        return self.least / 2 < alarm.members < 2 * self.most and self.lanes.issuperset(
            lane for lane, _, _ in alarm.lanes
        )


class Watch:
    """Looks after what `clients` gather.

    Args:
        policy: its ``detect.every`` is how often evidence is written and groups are looked for.
        clients: the table. baseline: what ordinary clients ask.
        store: where evidence is kept, closed by `close`; None: in memory alone.
        model: what tells this model from others, whose evidence is kept apart.
        tell: emits an event: kind, client, evidence.
        clock: seconds since the epoch. monotonic: seconds on a clock that nobody sets.
        links: slots of clients whose questions nearly repeat each other's, and how often they did.

    Events: those of `Replica`; ``fleet-suspected``, once for each group until it has changed a lot;
    ``clients-suspected``, once for each client that is listed; ``watch-failed`` for an error that nobody expected.

    Attributes:
        alarms: groups that are suspected as of the last look, most evidence first.

    The thread starts with the first client that is met, and again after a fork.
    """

    def __init__(
        self,
        policy: Policy,
        clients: Clients,
        baseline: Baseline,
        store: Store | None,
        model: str,
        tell: Callable[..., None],
        clock: Clock = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        links: Callable[[], Iterable[tuple[int, int, int]]] = tuple,
    ) -> None:
        import scipy.special  # noqa: F401  # now: whoever needs it first would keep all others waiting

        self._clients, self._baseline, self._tell = clients, baseline, tell
        self._false_alarm, self._every = policy.detect.false_alarm, milliseconds(policy.detect.every) // 1000
        self._clock, self._monotonic, self._links = clock, monotonic, links
        self._levels = sorted({1.0, *(step.at for step in policy.respond.suspicion)})
        self._replica: Replica | None = None
        if store is not None:
            self._replica = Replica(
                store, clients, model, 3 * self._every, self._levels, self._false_alarm, tell, clock, monotonic
            )
        self._told: deque[Told] = deque(maxlen=REMEMBERED)
        self._listed = np.zeros(clients.pooled, bool)
        self.alarms: tuple[Alarm, ...] = ()
        self._closed = False
        self._begin()

    def _begin(self) -> None:
        self._bell, self._starting = threading.Event(), threading.Lock()
        self._thread: threading.Thread | None = None
        self._ticked = self._monotonic()

    def begin_again(self) -> None:
        """In a process just forked: it is a replica of its own, and has no thread yet."""
        self._begin()
        if self._replica is not None:
            self._replica.begin_again()

    def close(self) -> None:
        """Write down everything, and look no more."""
        with self._starting:
            if self._closed:
                return
            self._closed = True
        if self._replica is not None:
            self._replica.ending = True
        self._bell.set()
        if self._thread is not None:
            self._thread.join()
        if self._replica is not None:
            self._replica.close()

    # On the request path

    def meet(self, slot: int) -> None:
        """A client is seen for the first time, or again after it was forgotten."""
        if self._replica is not None:
            self._replica.meet(slot)
        if self._thread is None:
            self._start()

    def suspicion(self, client: str) -> float:
        """Evidence against `client` in units of the alarm threshold; it is written down at once if that has to be."""
        found = self._clients.suspicion(client, self._false_alarm)
        if found >= self._levels[0] and self._replica is not None:
            slot = self._clients.find(client)
            if slot is not None and self._replica.urgent(slot, found):
                self._bell.set()
        return found

    # The thread

    def _start(self) -> None:
        with self._starting:
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._run, name="hardening-watch", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while not self._closed:
            self._bell.wait(GLANCE)
            self._bell.clear()
            try:
                if not self._closed:
                    self.glance()
            except Exception as problem:
                self._tell("watch-failed", "", problem=f"{type(problem).__name__}: {problem}")

    def glance(self) -> None:
        """Do what cannot wait, and everything once it is time."""
        if self._monotonic() - self._ticked >= self._every:
            self._ticked = self._monotonic()
            self.tick()
        elif self._replica is not None:
            self._replica.glance()

    def tick(self) -> None:
        """Keep what is new, learn what others kept, look at all clients together."""
        if self._replica is not None:
            self._replica.tick()
        self.look()

    # All clients together

    def look(self) -> None:
        """Look for groups and for clients that are not ordinary, and tell of those that are new."""
        rows = self._clients.rows()
        against = evidence(rows)
        groups = fleet.suspicious(
            self._baseline, rows, self._false_alarm, linked=tuple(self._linked(rows)), most=REMEMBERED
        )
        self.alarms = tuple(self._alarm(group, against) for group in groups)
        self._list(rows, against)

    def _linked(self, rows: NDArray[Any]) -> Iterator[tuple[str, NDArray[np.intp]]]:
        """Groups by what ties their members to each other, one kind of tie after another."""
        ties = {
            "that visit the same rare cells": (fleet.drawn_together(rows["cells"], self._false_alarm), 1),
            "who nearly repeat each other": ([pair for pair in self._links() if max(pair[:2]) < len(rows)], REPEATED),
        }
        for how, (links, least) in ties.items():
            for members in fleet.clusters(links, least):
                if len(members) >= FEWEST:
                    yield f"{len(members)} {how}", np.array(members)

    def _alarm(self, group: Group, against: NDArray[np.float64]) -> Alarm:
        """What is to be known about a group; it is told if that is new."""
        first = group.members[np.argsort(-against[group.members], kind="stable")[:NAMES]]
        names = tuple(self._clients.name(int(slot)) for slot in first)
        facts = group.rows, group.evidence, group.lanes, group.gap, group.distance
        alarm = Alarm(group.name, len(group.members), names, *facts, self._clock())
        known = [told for told in self._told if about_the_same(told.mask, group.members)]
        if any(told.covers(alarm) for told in known):
            return alarm._replace(since=min(told.since for told in known))
        self._told = deque([told for told in self._told if told not in known], REMEMBERED)
        self._told.append(Told.of(alarm, group.members, self._clients.pooled, known))
        self._tell("fleet-suspected", "", **alarm._asdict())
        return alarm

    def _list(self, rows: NDArray[Any], against: NDArray[np.float64]) -> None:
        """Tell of clients that are listed for the first time."""
        listed = np.flatnonzero(e_benjamini_hochberg(against, self._false_alarm) & ~self._listed[: len(rows)])
        if not len(listed):
            return
        self._listed[listed] = True
        first = listed[np.argsort(-against[listed], kind="stable")[:NAMES]].tolist()
        clients = [
            {
                "client": self._clients.name(slot),
                "suspicion": float(suspicion(against[slot], self._false_alarm)),
                "lanes": [lane.name.lower() for lane, _ in reasons(rows[slot])],
            }
            for slot in first
        ]
        self._tell("clients-suspected", "", number=len(listed), clients=clients)
