"""The policy's section ``[ledger]``: where the books are kept, and what happens when they cannot be had."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple
from urllib.parse import SplitResult, urlsplit

from hardening.errors import ConfigError

Backend = Literal["memory", "sqlite", "redis"]
EXAMPLES = "memory:, sqlite:///hardening.db, sqlite:////var/lib/hardening.db, redis://host:6379/0"


class Place(NamedTuple):
    """Where the books are: a path for sqlite, a URL that redis-py understands for redis, nothing for memory."""

    backend: Backend
    address: str = ""


@dataclass(frozen=True)
class LedgerRules:
    """Where budgets are kept. Raises ConfigError.

    Attributes:
        url: ``memory:`` (one process, gone with it); ``sqlite:///relative.db`` or ``sqlite:////absolute.db``;
            ``redis://host:port/db`` or ``valkey://``, with TLS ``rediss://`` or ``valkeys://``. No passwords.
        password: reference to the server's password, ``env:NAME`` or ``file:PATH``; its user stands in the URL.
        durability: ``required``: a Redis server that may forget what it acknowledged is refused. ``best-effort``: it is
            taken, and said in an event.
        on_failure: ``deny`` what no lease covers while the books cannot be had, or ``allow`` it and charge it later;
            a process that ends before that takes the debt with it.
        timeout: seconds that one exchange with the store may take.
    """

    url: str = "memory:"
    password: str | None = None
    durability: Literal["required", "best-effort"] = "required"
    on_failure: Literal["deny", "allow"] = "deny"
    timeout: float = 1.0

    def __post_init__(self) -> None:
        for name, choices in (("durability", ("required", "best-effort")), ("on_failure", ("deny", "allow"))):
            if getattr(self, name) not in choices:
                said = " or ".join(repr(c) for c in choices)
                raise ConfigError(f"ledger.{name}", f"must be {said}, not {getattr(self, name)!r}")
        if not (0 < self.timeout < math.inf):
            raise ConfigError("ledger.timeout", f"must be a number of seconds above 0, not {self.timeout!r}")
        backend = self.place.backend
        if self.password is not None:
            kind, _, name = self.password.partition(":")
            if kind not in ("env", "file") or not name:
                raise ConfigError("ledger.password", "must be env:NAME or file:PATH")
            if backend != "redis":
                raise ConfigError("ledger.password", f"a ledger in {backend} has none; leave it out")

    @property
    def place(self) -> Place:
        """The URL, taken apart."""
        if self.url == "memory:":
            return Place("memory")
        try:
            parts = urlsplit(self.url)
            port = parts.port
        except ValueError as problem:
            raise ConfigError("ledger.url", f"not a URL: {problem}") from None
        if parts.query or parts.fragment:
            raise ConfigError("ledger.url", "takes no options after ? or #")
        if parts.scheme == "sqlite":
            return self._sqlite(parts)
        if parts.scheme in ("redis", "rediss", "valkey", "valkeys"):
            return self._redis(parts, port)
        raise ConfigError("ledger.url", f"unknown kind of ledger {parts.scheme or self.url!r}; known: {EXAMPLES}")

    def _sqlite(self, parts: SplitResult) -> Place:
        if not self.url.startswith("sqlite:///") or len(parts.path) < 2 or parts.path.endswith("/"):
            raise ConfigError("ledger.url", "must be sqlite:///relative.db or sqlite:////absolute.db")
        return Place("sqlite", parts.path[1:])

    def _redis(self, parts: SplitResult, port: int | None) -> Place:
        if parts.password is not None:
            raise ConfigError("ledger.url", "a password does not belong into a policy; refer to it: ledger.password")
        database = parts.path.removeprefix("/") or "0"
        if not parts.hostname or not database.isascii() or not database.isdigit():
            raise ConfigError("ledger.url", f"must be {parts.scheme}://host:port/db, with a number for db")
        secure = "rediss" if parts.scheme in ("rediss", "valkeys") else "redis"
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        user = f"{parts.username}@" if parts.username else ""
        return Place("redis", f"{secure}://{user}{host}:{port or 6379}/{database}")
