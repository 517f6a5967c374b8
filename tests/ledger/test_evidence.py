"""Evidence that outlives processes: guards over real stores, restarted, killed, forked and beside each other."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hardening
from hardening.config import Policy, parse_policy
from hardening.errors import ConfigError, LedgerError
from hardening.ledger.memory import MemoryStore
from hardening.ledger.redis import RedisStore
from hardening.ledger.sqlite import SqliteStore
from hardening.ledger.store import Kept
from hardening.testing import FakeClock, RecordingSink
from hardening.types import Event
from hardening.watch import Watch
from tests.clients.test_evidence import flat
from tests.ledger.server import DURABLE, Server

ROOT = Path(__file__).parent.parent.parent
POLICY = """schema = 1
[key]
source = "file:hardening.key"
create = true
[outputs.p]
space = "simplex"
[outputs.p.tiers]
normal = [ {{kind = "gaussian", sigma = 0.02}}, {{kind = "project", keep_top1 = true}}, {{kind = "types", n = 100}} ]
label = [ {{kind = "label_only"}} ]
[detect]
baseline = "baseline.json"
[ledger]
url = "{url}"
[respond]
suspicion = [ {{at = 1.0, tier = "label"}} ]
"""


@pytest.fixture(params=["sqlite", "redis"])
def url(request: pytest.FixtureRequest) -> str:
    if request.param == "sqlite":
        return "sqlite:///books.db"
    server: Server = request.getfixturevalue("server")
    store = RedisStore(server.url)
    store._with(lambda: store._call("FLUSHDB"))
    store.close()
    return server.url


def policy(url: str, folder: Path) -> Policy:
    (folder / "baseline.json").write_text(flat(0.1).to_json())
    return parse_policy(POLICY.format(url=url), folder)


def ask(guard: hardening.Guard, client: str, rows: int, seed: int = 0, odd: bool = True) -> bool:
    """Ask for rows that a model is as unsure of as can be, or sure of; whether the answer was labels alone.

    No noise makes a label alone of what was none: that would take seven standard deviations.
    """
    x = np.random.default_rng(seed).normal(size=(rows, 3)).astype("f4")
    p = np.tile(np.full(4, 0.25) if odd else np.array([0.85, 0.05, 0.05, 0.05]), (rows, 1)).astype("f4")
    told = guard.harden({"p": p}, client=client, inputs={"x": x})["p"]
    return bool((told.max(axis=1) == 1.0).all())


def flag(guard: hardening.Guard, client: str) -> None:
    """Until labels are all that there is."""
    for seed in range(100):
        if ask(guard, client, 4, seed):
            return
    raise AssertionError("nobody noticed")


def test_who_was_flagged_is_flagged_after_a_restart(url: str, tmp_path: Path) -> None:
    rules = policy(url, tmp_path)
    with hardening.Guard(rules, "m") as guard:
        flag(guard, "thief")
        ask(guard, "user", 1)
        before = {name: guard.standing(name) for name in ("thief", "user")}
    for restart in range(3):
        with hardening.Guard(rules, "m") as guard:
            assert ask(guard, "thief", 1, 1000 + restart, odd=False)
            assert not ask(guard, "user", 1, 1000 + restart, odd=False)
            assert guard.standing("thief").queries == before["thief"].queries + restart + 1
            assert guard.standing("thief").suspicion >= 1
            assert guard.standing("thief").tier == "label"
    with hardening.Guard(rules, "another model") as guard:
        assert not ask(guard, "thief", 1)


def test_the_first_answer_after_a_restart_is_by_the_tier_that_is_due(url: str, tmp_path: Path) -> None:
    """Also for a whole batch, and for a decision that is kept."""
    rules = policy(url, tmp_path)
    with hardening.Guard(rules, "m") as guard:
        flag(guard, "thief")
    with hardening.Guard(rules, "m") as guard:
        assert guard.admit("thief", 64).tier == "label"


def test_replicas_add_up(url: str, tmp_path: Path) -> None:
    """Too little for either to be flagged by; both together flag it at both."""
    rules = policy(url, tmp_path)
    with hardening.Guard(rules, "m") as one, hardening.Guard(rules, "m") as two:
        for guard, seeds in ((one, (1, 2)), (two, (3, 4))):
            for seed in seeds:
                assert not ask(guard, "thief", 2, seed)
        alone = [guard.standing("thief").suspicion for guard in (one, two)]
        assert max(alone) < 1
        for guard in (one, two, one):
            assert guard._watch is not None
            guard._watch.tick()
        together = [guard.standing("thief").suspicion for guard in (one, two)]
        assert together == pytest.approx([sum(alone)] * 2)
        assert sum(alone) > 1
        for guard in (one, two):
            assert guard.standing("thief").queries == 8
            assert ask(guard, "thief", 1, 9)


KILLED = """
import sys
from pathlib import Path
import hardening
from tests.ledger.test_evidence import ask, flag, policy
guard = hardening.Guard(policy(sys.argv[1], Path(sys.argv[2])), "m")
flag(guard, "thief")
guard._watch.glance()  # what the thread does when a level is reached
for seed in range(3):
    ask(guard, "user", 1, seed)
print("flagged", guard.standing("thief").suspicion, flush=True)
sys.stdin.read()
"""


def test_killed_after_a_level_was_reached(url: str, tmp_path: Path) -> None:
    """What was below a level and not yet written is lost; who had reached it is flagged still, and for good."""
    command = [sys.executable, "-c", KILLED, url, str(tmp_path)]
    for restart in range(2):
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
            assert process.stdout is not None
            said = process.stdout.readline().split()
            process.send_signal(signal.SIGKILL)
        assert said[0] == "flagged"
        with hardening.Guard(policy(url, tmp_path), "m") as guard:
            assert ask(guard, "thief", 1, 1000 + restart, odd=False)
            assert 1 <= guard.standing("thief").suspicion <= float(said[1])
            assert guard.standing("user").queries == 0


def kill(url: str, folder: Path, kills: int) -> None:
    url = url.replace("sqlite:///", f"sqlite:///{folder}/")
    command = [sys.executable, "-m", "tests.ledger.keeper", url, str(folder / "log"), str(kills), "0"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    found = json.loads(run.stdout)
    assert found["sure"] > kills
    assert found["pieces"] <= 2


def test_processes_that_fold_each_other_are_killed_at_random_points(url: str, tmp_path: Path) -> None:
    kill(url, tmp_path, 60)


@pytest.mark.deep
def test_killed_at_many_random_points(url: str, tmp_path: Path) -> None:
    kill(url, tmp_path, 1000)


FORKED = """
import os, sys
from pathlib import Path
import hardening
from hardening.testing import RecordingSink
from tests.ledger.test_evidence import ask, flag, policy
sink = RecordingSink()
guard = hardening.Guard(policy(sys.argv[1], Path(sys.argv[2])), "m", sink=sink)
flag(guard, "thief")
guard._watch.tick()
ask(guard, "user", 2, 5)
asked = guard.standing("thief").queries
child = os.fork()
if not child:
    assert guard._watch._thread is None
    assert ask(guard, "thief", 1, 7)
    assert guard._watch._thread is not None and guard._watch._thread.is_alive()
    assert guard.standing("thief").queries == asked + 1
    ask(guard, "user", 3, 6)
    guard.close()
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert ask(guard, "thief", 1, 8)
guard._watch.tick()
print(guard.standing("thief").queries - asked, guard.standing("user").queries, flush=True)
assert not [e for e in sink.events if e.kind.startswith(("evidence", "watch"))]
guard.close()
with hardening.Guard(policy(sys.argv[1], Path(sys.argv[2])), "m") as guard:
    ask(guard, "user", 1, 9)
    print(guard.standing("user").queries)
"""


def test_a_fork_makes_a_replica_of_its_own(url: str, tmp_path: Path) -> None:
    """What the parent saw counts in the child, once; and what the child sees, in the parent."""
    command = [sys.executable, "-c", FORKED, url, str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["2", "5", "6"]


def kinds(sink: RecordingSink) -> list[str]:
    return [event.kind for event in sink.events if event.kind != "tier-changed"]


def test_while_the_server_is_away_everybody_is_answered(tmp_path: Path) -> None:
    server, sink, clock = Server(tmp_path, *DURABLE), RecordingSink(), FakeClock()
    rules = policy(server.url, tmp_path)
    try:
        with hardening.Guard(rules, "m") as guard:
            flag(guard, "thief")
        with hardening.Guard(rules, "m", sink=sink) as guard:
            assert guard._watch is not None
            replica = guard._watch._replica
            assert replica is not None
            replica._monotonic = clock
            server.kill()
            assert not ask(guard, "thief", 1, odd=False)  # nothing is known of it yet
            assert not ask(guard, "user", 1, odd=False)
            assert kinds(sink) == ["evidence-unreachable"]
            server.start()
            clock.now += 10.0
            guard._watch.glance()
            assert kinds(sink) == ["evidence-unreachable", "evidence-back"]
            assert ask(guard, "thief", 1, odd=False)
        with hardening.Guard(rules, "m") as guard:
            ask(guard, "thief", 1)
            assert guard.standing("user").queries == 0
            ask(guard, "user", 1)
            assert guard.standing("user").queries == 2
    finally:
        server.close()


def test_a_store_that_is_none_is_refused_as_for_budgets(tmp_path: Path) -> None:
    (tmp_path / "books.db").write_text("something else, long enough to be no empty file " * 40)
    with pytest.raises(ConfigError, match=r"ledger\.url"):
        hardening.Guard(policy("sqlite:///books.db", tmp_path), "m")


def test_a_sqlite_file_that_is_locked_delays_no_second_request(tmp_path: Path) -> None:
    rules, sink = policy("sqlite:///books.db", tmp_path), RecordingSink()
    with hardening.Guard(rules, "m", sink=sink) as guard:
        assert guard._watch is not None
        assert guard._watch._replica is not None
        store = guard._watch._replica._store
        assert isinstance(store, SqliteStore)
        tried = []

        def broken(begin: str) -> Any:
            tried.append(begin)
            raise LedgerError("locked")

        store._begin = broken  # type: ignore[method-assign]
        for i in range(5):
            ask(guard, f"client {i}", 1)
        assert len(tried) <= 2  # the thread may look as well
        assert kinds(sink) == ["evidence-unreachable"]
        del store._begin


def test_in_memory_nothing_is_kept_and_nothing_is_opened(tmp_path: Path) -> None:
    rules = policy("memory:", tmp_path)
    with hardening.Guard(rules, "m") as guard:
        assert guard._watch is not None
        assert guard._watch._replica is None
        flag(guard, "thief")
        guard._watch.tick()
        assert guard.standing("thief").suspicion >= 1
    with hardening.Guard(rules, "m") as guard:
        assert guard.standing("thief").suspicion == 0


def test_the_thread_starts_with_the_first_client_and_writes_levels_at_once(tmp_path: Path) -> None:
    """A real thread, woken by whoever reaches a level, not by a clock."""
    rules, written = policy("memory:", tmp_path), threading.Event()

    class Store(MemoryStore):
        def keep(self, replica: str, number: int, rows: Mapping[str, bytes], lifetime: int, known: bool) -> Kept:
            status = super().keep(replica, number, rows, lifetime, known)
            written.set()
            return status

    with hardening.Guard(rules, "m") as guard:
        store, before = Store(), guard._watch
        assert before is not None
        guard._watch = watch = Watch(
            rules, guard._clients, flat(0.1), store, "m", lambda kind, client, **facts: None, monotonic=FakeClock()
        )
        assert watch._thread is None
        assert {t.name for t in threading.enumerate()} & {"hardening-watch"} == set()
        flag(guard, "thief")
        thread: threading.Thread | None = watch._thread
        assert thread is not None
        assert written.wait(60)
        (slots,) = store.kept([watch._replica._key(0)])  # type: ignore[union-attr]
        assert len(slots) == 1
        before.close()
    assert not thread.is_alive()
    watch.close()
    watch.meet(0)
    assert not thread.is_alive()


def test_an_error_that_nobody_expected_is_told_and_the_thread_goes_on(tmp_path: Path) -> None:
    events: list[Event] = []
    told = threading.Semaphore(0)

    def tell(kind: str, client: str, **facts: Any) -> None:
        events.append(Event(kind, 0.0, client, facts))
        told.release()

    rules = policy("memory:", tmp_path)
    with hardening.Guard(rules, "m") as guard:
        watch = Watch(rules, guard._clients, flat(0.1), None, "m", tell)
        watch.glance = lambda: 1 // 0  # type: ignore[method-assign]
        watch.meet(0)
        for _ in range(2):
            watch._bell.set()
            assert told.acquire(timeout=60)
        watch.close()
    assert {event.kind for event in events} == {"watch-failed"}
    assert events[0].evidence == {"problem": "ZeroDivisionError: integer division or modulo by zero"}


def test_the_process_id_of_nobody_matters() -> None:
    """Names of replicas are drawn, not made of what two containers may share."""
    from hardening.clients import Clients
    from hardening.replica import Replica

    def made() -> Replica:
        return Replica(MemoryStore(), Clients(1), "m", 1, [1.0], 1e-3, lambda *_, **__: None, FakeClock(), FakeClock())

    assert len({made()._name for _ in range(100)}) == 100
    assert str(os.getpid()) != made()._name
