"""The log that a guard keeps: whole lines of everybody's rows, under other names, and never in anybody's way."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hardening.clients.log import read_log, records
from hardening.recorder import MOST, PAUSE, ROWS, Recorder
from hardening.testing import FakeClock


class Heard:
    """What was told, as (kind, evidence)."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, kind: str, client: str, **evidence: Any) -> None:
        assert client == ""
        self.events.append((kind, evidence))


def some(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Summary, questions and duplicates of so many rows."""
    rng = np.random.default_rng(seed)
    summary = np.stack([rng.random(rows), rng.integers(0, 9, rows), rng.integers(0, 4096, rows), rng.random(rows)])
    return summary, rng.integers(1, 2**32, rows, np.uint32), rng.integers(0, 2, rows, np.uint8)


def recorder(path: Path, heard: Heard, most: int = 1 << 30, clock: FakeClock | None = None, **kwargs: Any) -> Recorder:
    return Recorder(path, most, kwargs.get("pseudonym", lambda name: f"<{name}>"), heard, clock or FakeClock())


def test_rows_are_written_in_order_under_other_names(tmp_path: Path) -> None:
    heard, path = Heard(), tmp_path / "benign.jsonl"
    before = threading.active_count()
    log = recorder(path, heard)
    assert threading.active_count() == before, "nothing starts before there is something to write"
    expected = []
    for i in range(20):
        rows = some(3 * ROWS + i if i == 7 else i, i)
        log.record(f"c{i % 3}", *rows)
        expected += records(f"<c{i % 3}>", *rows)
    log.record("without", some(2)[0], None, np.zeros(2))
    expected += records("<without>", some(2)[0], None, None)
    log.close()
    assert path.read_text().splitlines() == expected
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert threading.active_count() == before
    assert heard.events == []
    log.record("late", *some(1))
    log.close()
    assert len(path.read_text().splitlines()) == len(expected), "what is closed takes no more"


def test_a_log_that_was_never_needed_leaves_nothing(tmp_path: Path) -> None:
    heard = Heard()
    log = recorder(tmp_path / "log", heard)
    log.record("nobody", *some(0))
    log.close()
    assert not (tmp_path / "log").exists()
    assert heard.events == []


def test_nobody_waits_for_the_writer_and_what_does_not_fit_is_counted(tmp_path: Path) -> None:
    heard, clock, gate, path = Heard(), FakeClock(1e9), threading.Event(), tmp_path / "log"

    def slow(name: str) -> str:
        gate.wait()
        return name

    log = recorder(path, heard, clock=clock, pseudonym=slow)
    summary, questions, duplicates = some(1)
    asked = MOST + 500
    for _ in range(asked):
        log.record("a", summary, questions, duplicates)
    log.record("a", *some(10 * ROWS))
    assert log._queue.qsize() <= MOST
    gate.set()
    log.close()
    lost = sum(evidence["rows"] for kind, evidence in heard.events)
    assert {kind for kind, _ in heard.events} == {"log-lost"}
    assert lost >= 500 - 65 + 10 * ROWS, "the writer had taken some"
    assert len(path.read_text().splitlines()) + lost == asked + 10 * ROWS


def test_the_count_is_told_once_a_minute_and_at_the_end(tmp_path: Path) -> None:
    heard, clock = Heard(), FakeClock(1e9)
    log = recorder(tmp_path / "log", heard, clock=clock)
    for rows, later in ((3, 0.0), (4, PAUSE / 2), (5, PAUSE / 2), (6, 1.0)):
        clock.now += later
        log._lose(rows)
        log._tell_lost(PAUSE)
    assert heard.events == [("log-lost", {"rows": 3}), ("log-lost", {"rows": 9})]
    log.close()
    assert heard.events[2:] == [("log-lost", {"rows": 6})]


def test_it_does_not_outgrow_its_size(tmp_path: Path) -> None:
    heard, path = Heard(), tmp_path / "log"
    for _ in range(3):  # of whatever process
        log = recorder(path, heard, most=5000)
        for i in range(200):
            log.record("a", *some(1, i))
        log.close()
        assert 4000 < path.stat().st_size <= 5000
        assert len(read_log(path.read_text().splitlines())["<a>"].label) > 20
    assert [e for e in heard.events if e[0] == "log-full"] == [("log-full", {"file": "log", "bytes": 5000})] * 3


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda p: None, "No such file or directory"),
        (lambda p: p.mkdir(parents=True), "Is a directory"),
        (lambda p: (p.parent.mkdir(), p.touch(), p.chmod(0o640)), "it is open to other users (0640): chmod 600 it"),
        (lambda p: (p.parent.mkdir(), p.symlink_to("/dev/full")), "it is not a file"),
    ],
)
def test_a_file_that_cannot_be_written_is_told(spoil: Any, said: str, tmp_path: Path) -> None:
    heard, path = Heard(), tmp_path / "no" / "log"
    spoil(path)
    log = recorder(path, heard)
    for i in range(300):
        log.record("a", *some(1, i))
    log.close()
    failed = [evidence for kind, evidence in heard.events if kind == "log-failed"]
    assert failed == [{"problem": f"cannot write 'log': {said}"}]
    assert sum(evidence["rows"] for kind, evidence in heard.events if kind == "log-lost") == 300
    assert not path.is_file() or path.stat().st_size == 0


def script(text: str, *arguments: str) -> Any:
    head = (
        "import json, os, sys, threading\nfrom pathlib import Path\nfrom tests.test_recorder import some\n"
        "from hardening.recorder import Recorder\ntold = []\n"
        "def tell(kind, client, **evidence): told.append([kind, evidence])\n"
        "log = Recorder(Path(sys.argv[1]), 1 << 30, str.upper, tell, lambda: 1e9)\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", head + text, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_full_disk_leaves_whole_lines_and_is_told(tmp_path: Path) -> None:
    """A limit on the size of files, which the system enforces as it does the size of a disk."""
    path = tmp_path / "log"
    told = script(
        "import resource, signal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))\n"
        "for i in range(500): log.record('a', *some(1, i))\n"
        "log.close()\n"
        "print(json.dumps(told))\n",
        str(path),
    )
    assert path.stat().st_size <= 10_000
    kept = len(read_log(path.read_text().splitlines()).get("A", some(0)[0]).label) if path.stat().st_size else 0
    assert ["log-failed", {"problem": "cannot write 'log': File too large"}] in told
    assert kept + sum(evidence["rows"] for kind, evidence in told if kind == "log-lost") == 500


def test_a_child_writes_its_own_rows_and_its_parent_the_others(tmp_path: Path) -> None:
    path = tmp_path / "log"
    told = script(
        "for i in range(40): log.record('parent', *some(5, i))\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    assert log._thread is None and log._queue.empty()\n"
        "    for i in range(30): log.record('child', *some(5, i))\n"
        "    log.close()\n"
        "    os._exit(0 if not told else 3)\n"
        "for i in range(40): log.record('parent', *some(5, i))\n"
        "log.close()\n"
        "print(json.dumps([told, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])]))\n",
        str(path),
    )
    assert told == [[], 0]
    logs = read_log(path.read_text().splitlines())
    assert {client: len(log.label) for client, log in logs.items()} == {"PARENT": 400, "CHILD": 150}


def test_many_threads_and_recorders_of_one_file(tmp_path: Path) -> None:
    heard, path = Heard(), tmp_path / "log"
    logs = [recorder(path, heard) for _ in range(3)]

    def ask(which: int) -> None:
        for i in range(100):
            logs[which % 3].record(f"c{which}", *some(3, i))

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for log in logs:
        log.close()
    assert heard.events == []
    found = read_log(path.read_text().splitlines())
    assert {client: len(log.label) for client, log in found.items()} == {f"<c{i}>": 300 for i in range(9)}
    expected = np.concatenate([some(3, i)[1] for i in range(100)])
    assert all(np.array_equal(log.question, expected) for log in found.values()), "each client's in its order"


def test_a_line_that_was_torn_spoils_no_other(tmp_path: Path) -> None:
    heard, path = Heard(), tmp_path / "log"
    path.touch(0o600)
    path.write_text('{"client": "a", "entr')
    log = recorder(path, heard)
    log.record("a", *some(2))
    log.close()
    torn, *whole = path.read_text().splitlines()
    assert torn == '{"client": "a", "entr'
    assert whole == list(records("<a>", *some(2)))
