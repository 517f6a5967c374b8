"""A log of what clients ask, kept while a guard serves: a queue in memory, and a thread that writes it to a file."""

from __future__ import annotations

import fcntl
import functools
import os
import queue
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hardening.clients.log import records
from hardening.config import Policy
from hardening.ledger.forks import watch
from hardening.noise import Key, derive
from hardening.types import Clock

#: Parts that wait to be written, at most, and rows of one: some 40 MB if all of them are there.
MOST, ROWS = 4096, 256
#: Parts that are written at once.
_TOGETHER = 64
#: Seconds that the first part waits for company: a turn of the thread for each would slow down who answers.
_LINGER = 0.05
#: Seconds between two events that say the same.
PAUSE = 60.0
#: Seconds that closing waits for the disk.
_PATIENCE = 10.0


class _Part(NamedTuple):
    """Rows of one answer; see `clients.log.records`."""

    client: str
    summary: NDArray[np.float64]
    questions: NDArray[np.uint32] | None
    duplicates: NDArray[Any]


class Recorder:
    """Appends rows to a log without any I/O, or waiting, for whoever records them. Safe to share between threads.

    The thread starts with the first record; after a fork the child starts its own. What does not fit into the queue, or
    on the disk, is left out and counted, and the count is told: ``log-lost``, at the end and at most once a minute.
    ``log-failed`` says why the file cannot be written, ``log-full`` that it has reached its size.

    Args:
        path: the file; made with mode 0600, appended to by any number of processes.
        most: bytes beyond which it does not grow.
        pseudonym: what stands for a client's name.
        tell: emits an event: kind, client, evidence.
        clock: seconds since the epoch.
    """

    def __init__(
        self, path: Path, most: int, pseudonym: Callable[[str], str], tell: Callable[..., None], clock: Clock
    ) -> None:
        self._path, self._most, self._tell, self._clock = path, most, tell, clock
        self._pseudonym = functools.lru_cache(maxsize=4096)(pseudonym)
        self._over = False
        self.begin_again()
        watch(self)

    def begin_again(self) -> None:
        """In a process just forked: what waits is the parent's to write."""
        self._queue: queue.SimpleQueue[_Part | None] = queue.SimpleQueue()  # may be used from a signal or a finalizer
        self._lock, self._closing = threading.RLock(), threading.Event()
        self._thread: threading.Thread | None = None
        self._lost = 0
        self._told: dict[str, float] = {}

    def record(
        self,
        client: str,
        summary: NDArray[np.float64],
        questions: NDArray[np.uint32] | None,
        duplicates: NDArray[Any],
    ) -> None:
        """Have the rows of an answer logged; arrays as `clients.log.records` takes them, which nobody may change."""
        if self._over:
            return
        for i in range(0, summary.shape[1], ROWS):
            part = slice(i, i + ROWS)
            if self._queue.qsize() >= MOST:
                self._lose(summary.shape[1] - i)
                return
            named = None if questions is None else questions[part]
            self._queue.put(_Part(client, summary[:, part], named, duplicates[part]))
        if self._thread is None:
            self._start()

    def close(self) -> None:
        """Write what waits, and take no more."""
        self._over = True
        thread = self._thread
        if thread is not None:
            self._closing.set()
            self._queue.put(None)
            thread.join(_PATIENCE)
        self._tell_lost()

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="hardening-log", daemon=True)
                try:
                    thread.start()
                except RuntimeError as problem:  # no more threads, or the interpreter ends
                    self._tell_once("log-failed", problem=str(problem))
                    return
                self._thread = thread

    def _lose(self, rows: int) -> None:
        with self._lock:
            self._lost += rows

    def _run(self) -> None:
        ended = False
        while not ended:
            parts = [self._queue.get()]
            self._closing.wait(_LINGER)
            while parts:
                while len(parts) < _TOGETHER and not self._queue.empty():
                    parts.append(self._queue.get())
                ended = ended or any(part is None for part in parts)
                self._write([part for part in parts if part is not None])
                self._tell_lost(PAUSE)
                parts = [] if self._queue.empty() else [self._queue.get()]

    def _write(self, parts: list[_Part]) -> None:
        if not parts or "log-full" in self._told:
            return
        rows = sum(part.summary.shape[1] for part in parts)
        lines = [line for part in parts for line in records(self._pseudonym(part.client), *part[1:])]
        try:
            fits = _append(self._path, ("\n".join(lines) + "\n").encode(), self._most)
        except OSError as problem:
            self._lose(rows)
            self._tell_once("log-failed", problem=f"cannot write {self._path.name!r}: {problem.strerror or problem}")
            return
        if not fits:
            self._over = True
            self._tell_once("log-full", file=self._path.name, bytes=self._most)

    def _tell_lost(self, pause: float = 0.0) -> None:
        with self._lock:
            rows = self._lost
            if rows and self._tell_once("log-lost", pause, rows=rows):
                self._lost = 0

    def _tell_once(self, kind: str, pause: float = PAUSE, **evidence: Any) -> bool:
        """Say so, unless the same was said less than `pause` seconds ago."""
        now = self._clock()
        if now - self._told.get(kind, now - pause) < pause:
            return False
        self._told[kind] = now
        self._tell(kind, "", **evidence)
        return True


def open_recorder(
    policy: Policy, key: Key, model_digest: str, tell: Callable[..., None], clock: Clock
) -> Recorder | None:
    """The log that a policy asks for, if it does; whoever has no `key` cannot tell whose its rows are."""
    rules = policy.detect
    if rules.log is None:
        return None

    def pseudonym(client: str) -> str:
        return derive(key, "log", model_digest, client)[:8].hex()

    return Recorder(policy.root / rules.log, rules.log_bytes, pseudonym, tell, clock)


def _append(path: Path, lines: bytes, most: int) -> bool:
    """Append whole lines, as far as the file stays within `most` bytes; whether all did. Raises OSError, none written.

    The file is opened each time, so that it can be moved away; the lock keeps other processes' lines apart.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError("it is not a file")
        if stat.S_IMODE(found.st_mode) & 0o077:
            raise OSError(f"it is open to other users ({stat.S_IMODE(found.st_mode):04o}): chmod 600 it")
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            return _append_to(descriptor, lines, most)
        finally:
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # a child that was forked just now has the descriptor, and the lock
    finally:
        os.close(descriptor)


def _append_to(descriptor: int, lines: bytes, most: int) -> bool:
    size = os.fstat(descriptor).st_size
    if size and os.pread(descriptor, 1, size - 1) != b"\n":
        lines = b"\n" + lines
    fits = size + len(lines) <= most
    if not fits:
        lines = lines[: lines.rfind(b"\n", 0, max(0, most - size)) + 1]
    try:
        left = memoryview(lines)
        while left:
            left = left[os.write(descriptor, left) :]
    except OSError:
        os.ftruncate(descriptor, size)
        raise
    return fits
