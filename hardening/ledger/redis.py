"""Books in a Redis or Valkey server, for replicas on many machines: one script, atomic, in one round trip.

A server keeps what it acknowledged only if it appends every write to its log and synchronises the log before it answers
(``appendonly yes``, ``appendfsync always``), never pauses that (``no-appendfsync-on-rewrite no``) and does not evict
(``maxmemory-policy`` noeviction, or a volatile one); see https://valkey.io/topics/persistence. That is checked at every
connect. Not for a cluster: the accounts of one request lie on one server. A fail-over to a copy that lags loses what
the copy had not received: replicas tell it again what they hold, but nobody tells what a replica that died had leased.
"""

from __future__ import annotations

import base64
import copy
import functools
import hashlib
import json
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, cast

from hardening.errors import ConfigError, LedgerError
from hardening.ledger.amounts import KINDS, Kind
from hardening.ledger.books import Ask
from hardening.ledger.script import EXTEND, FOLD, KEEP, KEPT, LEASE, READ
from hardening.ledger.store import BATCH, FORGET, Balance, Fold, Kept, Reply, Slot, check_number, milliseconds
from hardening.types import Clock

ACCOUNT, REPLICA, GRANTS = "hardening:account:", "hardening:replica:", "hardening:grants"
CLIENT, KEEPER = "hardening:client:", "hardening:keeper:"
#: Replicas by the time that they were heard of last.
ROLL = "hardening:replicas"
#: Seconds by which the server's clock may drift from this machine's monotonic one between two exchanges.
DRIFT = 2.0


class RedisStore:
    """One connection, used by one thread at a time; made when it is needed. Another one reads balances.

    Args:
        url: as redis-py understands it.
        password: of the server, if it asks for one.
        durability: what to do about a server that may forget, see `rules.LedgerRules`.
        timeout: seconds to connect, and to wait for an answer.
        clock: seconds since the epoch, for windows; the server's own if left out, which all replicas share.
        monotonic: seconds on a clock that nobody sets, to see when somebody sets the server's.

    Attributes:
        weakness: what the server connected to last would lose, in words; "" if nothing.

    Raises ConfigError if redis-py is not installed.
    """

    heartbeat = 10.0
    durable = True

    def __init__(
        self,
        url: str,
        *,
        password: str | None = None,
        durability: Literal["required", "best-effort"] = "required",
        timeout: float = 1.0,
        clock: Clock | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        try:
            import redis
        except ModuleNotFoundError:
            raise ConfigError("ledger.url", "needs the client: pip install 'hardening[redis]'") from None
        self._errors: Any = redis.exceptions
        # One connection of our own: redis-py's client would reconnect by itself, to a server that nobody has checked.
        self._pool: Any = redis.ConnectionPool.from_url(
            url,
            password=password,
            socket_timeout=timeout,
            socket_connect_timeout=timeout,
            decode_responses=True,
            client_name="hardening",
            protocol=2,
        )
        self._durability, self._clock, self._monotonic = durability, clock, monotonic
        self._drift, self._offset = DRIFT + 2 * timeout, math.nan
        self._lock = threading.Lock()
        self._connection: Any = None
        self.weakness = ""
        self._reader: RedisStore | None = None
        reader = copy.copy(self)
        reader.abandon()
        self._reader = reader

    def connect(self) -> None:
        """Connect now if need be. Raises LedgerError; its cause is ``not-durable`` if the server may forget."""
        self._with(lambda: None)

    def lease(self, replica: str, number: int, asks: Sequence[Ask]) -> Reply:
        return self._settle(replica, number, asks, "")

    def part(self, replica: str, number: int, asks: Sequence[Ask]) -> Reply:
        return self._settle(replica, number, asks, "parting")

    def _settle(self, replica: str, number: int, asks: Sequence[Ask], parting: str) -> Reply:
        given = "" if self._clock is None else milliseconds(self._clock)
        arguments: list[Any] = [number, FORGET, given, parting]
        for ask in asks:
            arguments += ask[1:]
        keys = [REPLICA + replica, ROLL, *(ACCOUNT + ask.key for ask in asks)]
        last, now, *amounts = map(int, self._with(lambda: self._run(LEASE, keys, arguments)))
        if not (parting and last == number):
            check_number(number, last)
        return Reply(last, amounts[::2], amounts[1::2], now, self._jumped(now) if given == "" else 0.0)

    def _jumped(self, now: int) -> float:
        """Seconds by which the server's clock was set since the exchange before."""
        before, self._offset = self._offset, now / 1000 - self._monotonic()
        jump = self._offset - before
        return jump if abs(jump) > self._drift else 0.0

    def retire(self, replica: str) -> None:
        self._with(lambda: [self._call("DEL", REPLICA + replica), self._call("ZREM", ROLL, REPLICA + replica)])

    def extend(self, key: str, kind: Kind, amount: int, reason: str) -> None:
        line = json.dumps({"key": key, "kind": kind, "amount": amount, "reason": reason})
        self._with(lambda: self._run(EXTEND, [ACCOUNT + key, GRANTS], [kind, amount, line]))

    def read(self, key: str) -> dict[Kind, Balance]:
        return self.read_all([key])[key]

    def read_all(self, keys: Sequence[str]) -> dict[str, dict[Kind, Balance]]:
        reader = self._reader or self
        found: dict[str, dict[Kind, Balance]] = {}
        for i in range(0, len(keys), BATCH):
            some = list(keys[i : i + BATCH])
            accounts = [ACCOUNT + key for key in some]
            read = functools.partial(reader._run, READ, accounts, list(KINDS))
            entries = iter(reader._with(read))
            for key in some:
                numbers = {kind: entry.split() for kind in KINDS if (entry := next(entries))}
                found[key] = {kind: Balance(int(n[0]), int(n[1])) for kind, n in numbers.items()}
        return found

    def keep(self, replica: str, number: int, rows: Mapping[str, bytes], lifetime: int, known: bool) -> Kept:
        arguments = [replica, number, int(known), lifetime, FORGET, self._now(), *map(_text, rows.values())]
        keys = [KEEPER + replica, *(CLIENT + client for client in rows)]
        status, last = self._with(lambda: self._run(KEEP, keys, arguments))
        if status == "kept":
            check_number(number, int(last))
        return cast(Kept, status)

    def kept(self, clients: Sequence[str]) -> list[list[Slot]]:
        keys = [CLIENT + client for client in clients]
        found = self._with(lambda: self._run(KEPT, keys, [KEEPER, self._now()]))
        return [
            [Slot(flat[i], bool(flat[i + 1]), base64.b64decode(flat[i + 2])) for i in range(0, len(flat), 3)]
            for flat in found
        ]

    def fold(self, folds: Sequence[Fold]) -> int:
        arguments: list[Any] = [KEEPER, self._now(), FORGET]
        for fold in folds:
            arguments += fold.into, _text(fold.row), len(fold.rows)
            for replica, row in fold.rows.items():
                arguments += replica, _text(row)
        return int(self._with(lambda: self._run(FOLD, [CLIENT + fold.client for fold in folds], arguments)))

    def end(self, replica: str) -> None:
        self._with(lambda: self._call("HSET", KEEPER + replica, "ended", 1))
        self._with(lambda: self._call("EXPIRE", KEEPER + replica, FORGET))

    def _now(self) -> int | str:
        return "" if self._clock is None else int(self._clock())

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()
        with self._lock:
            self._drop()

    def abandon(self) -> None:
        if self._reader is not None:
            self._reader.abandon()
        self._lock = threading.Lock()
        self._connection = None  # the child's descriptor is closed; the parent's connection is not shut down

    def _call(self, *command: Any) -> Any:
        self._connection.send_command(*command)
        return self._connection.read_response()

    def _run(self, script: str, keys: list[str], arguments: list[Any]) -> Any:
        digest = hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()
        try:
            return self._call("EVALSHA", digest, len(keys), *keys, *arguments)
        except self._errors.NoScriptError:
            return self._call("EVAL", script, len(keys), *keys, *arguments)

    def _with(self, work: Callable[[], Any]) -> Any:
        """Do `work` on a connection; whatever goes wrong closes it and raises LedgerError."""
        with self._lock:
            try:
                if self._connection is None:
                    self._connect()
                return work()
            except (self._errors.RedisError, OSError) as problem:
                self._drop()
                full = isinstance(problem, self._errors.OutOfMemoryError) or "MISCONF" in str(problem)
                raise LedgerError(str(problem), "full" if full else "unreachable") from None
            except BaseException:
                self._drop()
                raise

    def _connect(self) -> None:
        self._connection = self._pool.connection_class(**self._pool.connection_kwargs)
        self._connection.connect()
        self.weakness = self._find_weakness()
        if self.weakness and self._durability == "required":
            raise LedgerError(f"the server may forget what it acknowledges: {self.weakness}", "not-durable")

    def _find_weakness(self) -> str:
        settings: dict[str, str] = {}
        try:
            for pattern in ("*append*", "maxmemory-policy"):
                found = self._call("CONFIG", "GET", pattern)
                settings |= zip(found[::2], found[1::2], strict=True)
        except self._errors.ResponseError:
            return "it does not tell (CONFIG GET is refused)"
        wanted = {"appendonly": "yes", "appendfsync": "always", "no-appendfsync-on-rewrite": "no"}
        weak = [f"{name} is {settings.get(name)}" for name, right in wanted.items() if settings.get(name) != right]
        if settings.get("maxmemory-policy", "allkeys").startswith("allkeys"):
            weak.append(f"maxmemory-policy is {settings.get('maxmemory-policy')}")
        return ", ".join(weak)

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.disconnect()
            self._connection = None


def _text(row: bytes) -> str:
    """Answers are decoded as text, so that is what rows are."""
    return base64.b64encode(row).decode()
