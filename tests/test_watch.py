"""All clients together, through real guards: a split attack is told of once, and honest fleets are left alone."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

import hardening
from hardening.clients import Clients, fleet
from hardening.clients.evidence import e_benjamini_hochberg
from hardening.clients.table import evidence
from hardening.config import Policy, parse_policy
from hardening.kernels import accounts
from hardening.testing import FakeClock, RecordingSink
from hardening.types import Alarm, Event
from hardening.watch import REMEMBERED, Told, Watch
from tests.clients import crowd
from tests.clients.test_evidence import flat

POLICY = """schema = 1
[outputs.p]
space = "simplex"
[outputs.p.tiers]
normal = [ {kind = "types", n = 100} ]
[detect]
baseline = "baseline.json"
false_alarm = 1e-3
"""


@pytest.fixture
def policy(tmp_path: Path) -> Policy:
    (tmp_path / "baseline.json").write_text(crowd.digits().baseline.to_json())
    return parse_policy(POLICY, tmp_path)


def ask(guard: hardening.Guard, client: str, x: np.ndarray) -> None:
    guard.harden({"p": np.ascontiguousarray(crowd.digits().scores(x), np.float32)}, client=client, inputs={"x": x})


def honest(guard: hardening.Guard, rng: np.random.Generator, clients: int, rows: int) -> None:
    """Each of them asks about some classes much more than about others."""
    world = crowd.digits()
    for i in range(clients):
        x, kind = world.draw(rng, 4 * rows)
        weights = rng.dirichlet(np.full(10, 2.0))[kind]
        ask(guard, f"user-{i}", x[rng.choice(len(x), rows, replace=False, p=weights / weights.sum())])


def told(sink: RecordingSink, kind: str = "fleet-suspected") -> list[Event]:
    return [event for event in sink.events if event.kind == kind]


def tick(guard: hardening.Guard) -> None:
    assert guard._watch is not None
    guard._watch.tick()


@pytest.mark.parametrize("attack", ["uniform", "foreign"])
def test_an_attack_split_over_four_hundred_identities_is_told_of_once(policy: Policy, attack: str) -> None:
    sink, clock, rng = RecordingSink(), FakeClock(100.0), np.random.default_rng(4)
    with hardening.Guard(policy, "m", sink=sink, clock=clock) as guard:
        honest(guard, rng, 150, 100)
        tick(guard)
        assert sink.events == []
        assert guard.alarms() == ()
        questions = crowd.digits().ask(attack, rng, 4000)
        for i, part in enumerate(np.array_split(questions[:2000], 400)):
            ask(guard, f"sybil-{i}", part)
        tick(guard)
        events = told(sink)
        assert events
        facts = events[0].evidence
        assert events[0].client == ""
        assert 200 <= facts["members"] <= 550
        assert facts["rows"] >= 1000
        assert facts["evidence"] > 50
        assert {"high", "tail"} & {lane for lane, _, _ in facts["lanes"]}
        assert sum(name.startswith("sybil") for name in facts["clients"]) >= 7
        assert json.loads(json.dumps(facts))["group"] == facts["group"]
        assert [alarm.group for alarm in guard.alarms()] == [event.evidence["group"] for event in events]
        listed = {name["client"] for event in told(sink, "clients-suspected") for name in event.evidence["clients"]}
        assert not any(name.startswith("user") for name in listed)
        # The same again is no news, though its evidence doubles.
        before = len(sink.events)
        clock.now += 60
        for i, part in enumerate(np.array_split(questions[2000:], 400)):
            ask(guard, f"sybil-{i}", part)
        tick(guard)
        assert len(told(sink)) == len(events)
        assert len(sink.events) - before <= 1  # clients that are listed by now
        assert guard.alarms()[0].since == 100.0
        assert guard.alarms()[0].evidence > facts["evidence"]


@pytest.mark.parametrize(("clients", "rows"), [(150, 60), (400, 10), (20, 300), (1200, 2)])
def test_honest_fleets_are_left_alone(policy: Policy, clients: int, rows: int) -> None:
    sink = RecordingSink()
    with hardening.Guard(policy, "m", sink=sink) as guard:
        honest(guard, np.random.default_rng(clients), clients, rows)
        tick(guard)
        assert guard.alarms() == ()
    assert sink.events == []


def test_who_is_listed_is_told_once(policy: Policy) -> None:
    sink, rng = RecordingSink(), np.random.default_rng(0)
    with hardening.Guard(policy, "m", sink=sink) as guard:
        honest(guard, rng, 20, 50)
        for _ in range(3):
            ask(guard, "thief", crowd.digits().ask("uniform", rng, 100))
            tick(guard)
        (event,) = told(sink, "clients-suspected")
        assert event.evidence["number"] == 1
        (found,) = event.evidence["clients"]
        assert found["client"] == "thief"
        assert found["suspicion"] > 1
        assert found["lanes"]
        ask(guard, "other", crowd.digits().ask("uniform", rng, 200))
        tick(guard)
        assert [c["client"] for c in told(sink, "clients-suspected")[1].evidence["clients"]] == ["other"]


def alarm(members: int, *lanes: str, since: float = 0.0) -> Alarm:
    return Alarm("g", members, (), 1, 9.0, tuple((lane, 0.5, 0.1) for lane in lanes), 0.0, 0.0, since)


def test_what_has_changed_is_told_again_and_what_wavers_is_not() -> None:
    first = Told.of(alarm(100, "high", since=5.0), np.arange(100), 1000, [])
    assert first.covers(alarm(100, "high"))
    assert first.covers(alarm(199))
    assert first.covers(alarm(51))
    for more in (alarm(200, "high"), alarm(50), alarm(100, "high", "low")):
        assert not first.covers(more)
    later = Told.of(alarm(200, "low", since=9.0), np.arange(200), 1000, [first])
    assert later.since == 5.0
    assert later.covers(alarm(100, "high"))
    assert later.covers(alarm(399, "low", "high"))
    assert not later.covers(alarm(400))


def watching(clients: Clients, sink: RecordingSink) -> Watch:
    def tell(kind: str, client: str, **facts: object) -> None:
        sink.emit(Event(kind, 0.0, client, facts))

    rules = parse_policy(POLICY)
    return Watch(rules, clients, flat(0.2), None, "m", tell, FakeClock(), FakeClock())


def test_what_is_remembered_of_groups_is_bounded() -> None:
    """However many attacks come and go."""
    clients, sink = Clients(4096), RecordingSink()
    for i in range(4096):
        clients.slot(f"client-{i}")
    watch, rng = watching(clients, sink), np.random.default_rng(0)
    for start in range(0, 4096 - 32, 32):
        rows = clients._rows
        rows[:4096] = np.zeros((), accounts.ROW)
        rows["firsts"][start : start + 32] = rows["queries"][start : start + 32] = 50
        rows["sums"][start : start + 32] = 256 * rng.integers(30, 40, (32, 1))
        watch.look()
        assert len(watch.alarms) == 1
    assert len(watch._told) == REMEMBERED
    assert len(told(sink)) == 127


def test_links_of_any_kind_make_groups() -> None:
    """Clients too few and too far apart for a cohort, tied by the rare cells that they all went to."""
    rng, clients, sink = np.random.default_rng(3), Clients(600), RecordingSink()
    for i in range(600):
        clients.slot(f"client-{i}")
    rows = clients._rows[:600]
    rows["firsts"] = rows["queries"] = 40
    rows["sums"] = 256 * rng.binomial(40, 0.08, (600, 8))
    rows["cells"] = rng.integers(0, 256, (600, 512)) & rng.integers(0, 256, (600, 512)) & 0x0F
    ring = rng.choice(600, 6, replace=False)
    assert watching(clients, sink).look() is None  # type: ignore[func-returns-value]
    assert sink.events == []
    rows["cells"][ring, 100:112] |= 0xF0  # where nobody else goes
    rows["sums"][ring, 0] = 256 * 24
    watch = watching(clients, sink)
    watch.look()
    groups = [a for a in watch.alarms if a.group == "6 that visit the same rare cells"]
    assert len(groups) == 1
    assert set(groups[0].clients) == {f"client-{i}" for i in ring}
    assert [lane for lane, _, _ in groups[0].lanes] == ["high"]


def test_pairs_are_drawn_together_by_more_than_chance() -> None:
    rng = np.random.default_rng(1)
    for clients, share in ((200, 0.01), (2000, 0.002), (50, 0.05)):
        cells = np.packbits(rng.random((clients, 4096)) < share * rng.lognormal(0, 1, (clients, 1)), axis=1)
        assert fleet.drawn_together(cells, 1e-3) == []
        cells[7, :12] = cells[11, :12] = 255
        assert [(a, b) for a, b, _ in fleet.drawn_together(cells, 1e-3)] == [(7, 11)]
    assert fleet.drawn_together(np.zeros((0, 512), np.uint8), 1e-3) == []


def pooled_by_hand(rows: np.ndarray, members: Iterable[int]) -> list[float]:
    own = rows[list(members)]
    own = own[own["firsts"] > 0]
    firsts = own["firsts"].astype(float)
    return [len(own), firsts.sum(), (firsts**2).sum(), *(own["sums"].astype(float).sum(axis=0) / 256)]


def test_groups_are_pooled_as_one_by_one() -> None:
    rng = np.random.default_rng(2)
    rows = np.zeros(300, accounts.ROW)
    rows["firsts"] = rng.integers(0, 3, 300) * rng.integers(1, 100, 300)
    rows["sums"] = rng.integers(0, 256, (300, 8)) * rows["firsts"][:, None]
    groups = [members for _, members in fleet.cohorts(rows)]
    found = fleet.pool(rows, groups)
    for i, members in enumerate(groups):
        whole = [found.clients[i], found.firsts[i], found.squares[i], *found.sums[i]]
        assert whole == pytest.approx(pooled_by_hand(rows, members))
    each, _ = fleet.evidence(flat(), found)
    assert each == pytest.approx([fleet.group_evidence(flat(), rows[members])[0] for members in groups])


def test_ticks_come_when_it_is_time(policy: Policy) -> None:
    """By a clock that nobody sets, ``detect.every`` apart."""
    clients, monotonic, ticks = Clients(4), FakeClock(), []
    watch = Watch(policy, clients, flat(), None, "m", lambda *_, **__: None, FakeClock(), monotonic)
    watch.tick = lambda: ticks.append(monotonic.now)  # type: ignore[method-assign]
    for now in range(0, 200, 7):
        monotonic.now = float(now)
        watch.glance()
    assert ticks == [63.0, 126.0, 189.0]


@pytest.mark.deep
def test_what_a_tick_costs() -> None:
    """Measured and printed, not asserted: 16,384 clients, one split attack, and a thread that wants to go on."""
    rng = np.random.default_rng(9)
    world, clients, sink = crowd.digits(), Clients(16_384), RecordingSink()
    each = [world.honest.client(rng, 30) for _ in range(15_000)]
    made = world.summed_up(world.ask("uniform", rng, 13_840))
    for i in range(16_384):
        clients.slot(f"client-{i}")
    slots = np.concatenate([np.repeat(np.arange(15_000), 30), 15_000 + np.arange(13_840) % 1384])
    crowd.fold(clients, world.baseline, slots, crowd.together([*each, made]))
    watch = watching(clients, sink)
    watch._baseline = world.baseline
    for label, others in (("alone", False), ("with what others saw", True)):
        if others:
            clients.adopt(3, [clients.own(4)])
        late: list[float] = []
        stop = threading.Event()

        def probe(late: list[float] = late, stop: threading.Event = stop) -> None:
            while not stop.is_set():
                before = time.perf_counter()
                time.sleep(0.0005)
                late.append(time.perf_counter() - before - 0.0005)

        thread = threading.Thread(target=probe)
        thread.start()
        start = time.perf_counter()
        watch.look()
        took = time.perf_counter() - start
        stop.set()
        thread.join()
        print(f"\n  a look {label}: {took * 1e3:.0f} ms; longest delay of another thread {max(late) * 1e3:.0f} ms")
    assert e_benjamini_hochberg(evidence(clients.rows()), 1e-3).shape == (16_384,)
    assert told(sink)
