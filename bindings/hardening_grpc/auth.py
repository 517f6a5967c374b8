"""API keys: who is asking. The file holds digests, so that reading it opens nothing.

A key is ``hrdn_`` and 256 random bits in base64url; with that much entropy a plain SHA-256 is as good as a slow hash.

The file is TOML: ``alice = {key = "sha256:...", since = 2026-01-31T12:00:00Z, organisation = "acme"}``, and
``principal`` where several credentials belong to one. ``alice = "sha256:..."`` is short for the key alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import hmac
import json
import os
import re
import secrets
import stat
import time
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from hardening.clients import ANONYMOUS, LONGEST_NAME, POOLED
from hardening.config import Auth
from hardening.errors import ConfigError, HardeningError
from hardening.ladder import NOBODY
from hardening.strict import unknown
from hardening.types import Identity

_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_PATH = "auth.api_keys"


class Unauthenticated(HardeningError):
    """No key, an unknown key, or several keys. The message is for the operator."""


@dataclass(frozen=True)
class Credential:
    """What the file keeps of one client.

    Attributes:
        digest: SHA-256 of its key.
        since: when the client was made, in seconds since the epoch; a new key does not make it new.
        organisation, principal: whom it belongs to, or "".
    """

    digest: bytes
    since: float | None = None
    organisation: str = ""
    principal: str = ""


class ApiKeys:
    """Clients by the digests of their keys."""

    def __init__(self, credentials: Mapping[str, Credential]) -> None:
        self._clients = {
            c.digest: (c.digest, Identity(client, c.principal, c.organisation, since=c.since))
            for client, c in credentials.items()
        }

    def client(self, metadata: Iterable[tuple[str, str | bytes]]) -> Identity:
        """The client whose key is in the metadata of a call, as ``x-api-key: KEY`` or ``authorization: Bearer KEY``.

        Raises Unauthenticated.
        """
        keys = set()
        for name, value in metadata:
            scheme, _, credential = str(value).partition(" ")
            if name == "x-api-key":
                keys.add(str(value))
            elif name == "authorization" and scheme.lower() == "bearer":
                keys.add(credential.strip())
        if len(keys) != 1:
            raise Unauthenticated(f"{len(keys) or 'no'} API keys in the request")
        # Looked up by the digest of a secret: how long that takes says nothing about any stored key.
        digest = hashlib.sha256(keys.pop().encode()).digest()
        stored, client = self._clients.get(digest, (bytes(32), Identity("")))
        if not hmac.compare_digest(digest, stored):
            raise Unauthenticated("an unknown API key")
        return client


def load_api_keys(auth: Auth, root: Path, most: int | None = None) -> ApiKeys:
    """The keys of a policy. Raises ConfigError at ``auth.api_keys``, also for more than `most` of an organisation."""
    credentials = read_keys(root / auth.api_keys.removeprefix("file:"))
    for organisation, count in Counter(c.organisation for c in credentials.values() if c.organisation).items():
        if most is not None and count > most:
            raise ConfigError(_PATH, f"{organisation!r} has {count} credentials, clients.credentials allows {most}")
    return ApiKeys(credentials)


def check_name(name: str, path: str) -> None:
    """Raises ConfigError unless `name` can be a client's."""
    if not name or len(name) > LONGEST_NAME or not name.isprintable() or name in (ANONYMOUS, POOLED):
        raise ConfigError(
            path,
            f"{name!r} cannot be a client: 1 to {LONGEST_NAME} printable characters, not {ANONYMOUS} or {POOLED}",
        )


def read_keys(file: Path) -> dict[str, Credential]:
    """Credentials by client. Raises ConfigError if the file is open to writing by others, or holds anything else."""
    try:
        with file.open("rb") as stream:
            mode = stat.S_IMODE(os.fstat(stream.fileno()).st_mode)
            table = tomllib.loads(stream.read().decode())
    except OSError as problem:
        hint = "; hardening credential makes it" if isinstance(problem, FileNotFoundError) else ""
        raise ConfigError(_PATH, f"cannot read {str(file)!r}: {problem.strerror}{hint}") from None
    except UnicodeDecodeError:
        raise ConfigError(_PATH, f"{str(file)!r} is not text in UTF-8") from None
    except ValueError as problem:
        raise ConfigError(_PATH, f"{str(file)!r} is not valid TOML: {problem}") from None
    if mode & 0o022:
        raise ConfigError(_PATH, f"{str(file)!r} can be written by other users ({mode:04o}): chmod go-w it")
    credentials: dict[str, Credential] = {}
    digests: set[bytes] = set()
    for name, value in table.items():
        check_name(name, _PATH)
        credential = _credential(value if isinstance(value, dict) else {"key": value}, f"{name!r} in {str(file)!r}")
        if credential.digest in digests:
            raise ConfigError(_PATH, f"{name!r} in {str(file)!r} has the key of another client")
        digests.add(credential.digest)
        credentials[name] = credential
    return credentials


def _credential(table: Mapping[str, object], where: str) -> Credential:
    match = _DIGEST.fullmatch(key) if isinstance(key := table.get("key"), str) else None
    if match is None:
        raise ConfigError(_PATH, f"{where} must be sha256: and 64 hexadecimal digits")
    since, names = None, {"organisation": "", "principal": ""}
    for field, value in table.items():
        if field == "since":
            if not isinstance(value, datetime) or value.tzinfo is None:
                raise ConfigError(_PATH, f"{where}: since must be a date and time with an offset, or Z")
            since = value.timestamp()
        elif field in names:
            names[field] = _belongs(value, _PATH, f"{where}: {field}")
        elif field != "key":
            raise unknown(_PATH, field, ("key", "since", *names))
    return Credential(bytes.fromhex(match[1]), since, **names)


def _belongs(name: object, path: str, what: str) -> str:
    """The name of an organisation or a principal. Raises ConfigError."""
    fits = isinstance(name, str) and 0 < len(name) <= LONGEST_NAME and name.isprintable()
    if not fits or name in (POOLED, NOBODY):
        raise ConfigError(path, f"{what} must be 1 to {LONGEST_NAME} printable characters, not {name!r}")
    return str(name)


def add_key(
    file: Path,
    name: str,
    replacing: bool = False,
    *,
    organisation: str | None = None,
    principal: str | None = None,
    now: float | None = None,
) -> str:
    """Make a key for `name`, store its digest in `file` (made with mode 0600; changed as a whole or not at all).

    A client whose key is replaced stays what it was: its age, and its organisation and principal unless others are
    given. Returns the key, which is kept nowhere. Raises ConfigError; also if `name` has a key and is not `replacing`.
    """
    check_name(name, "NAME")
    key = f"hrdn_{secrets.token_urlsafe(32)}"
    given = {"organisation": organisation, "principal": principal}
    belongs = {field: _belongs(value, f"--{field}", "it") for field, value in given.items() if value is not None}
    with _locked(file.parent):
        credentials = read_keys(file) if file.exists() else {}
        if name in credentials and not replacing:
            raise ConfigError("NAME", f"{name!r} has a key already; --replace gives a new one and ends the old one")
        made = credentials.get(name, Credential(b"", time.time() if now is None else now))
        made = replace(made, organisation=belongs.get("organisation", made.organisation))
        made = replace(made, principal=belongs.get("principal", made.principal))
        credentials[name] = replace(made, digest=hashlib.sha256(key.encode()).digest())
        _write(file, "".join(_line(n, c) for n, c in credentials.items()))
    return key


def _line(name: str, credential: Credential) -> str:
    facts = {"key": f'"sha256:{credential.digest.hex()}"'}
    if credential.since is not None:
        facts["since"] = f"{datetime.fromtimestamp(credential.since, UTC):%Y-%m-%dT%H:%M:%SZ}"
    for field in ("organisation", "principal"):
        if value := getattr(credential, field):
            facts[field] = json.dumps(value, ensure_ascii=False)
    inner = ", ".join(f"{field} = {value}" for field, value in facts.items())
    return f"{json.dumps(name, ensure_ascii=False)} = {{{inner}}}\n"


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Two commands at once must not lose each other's key; the folder stays while the file is replaced."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as problem:
        raise ConfigError("--keys", f"cannot open the folder {str(folder)!r}: {problem.strerror}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _write(file: Path, text: str) -> None:
    draft = file.with_name(f".{file.name}.{secrets.token_hex(8)}")
    try:
        try:
            with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
            draft.replace(file)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as problem:
        raise ConfigError("--keys", f"cannot write {str(file)!r}: {problem.strerror}") from None
