"""API keys: who is asking. The file holds digests, so that reading it opens nothing.

A key is ``hrdn_`` and 256 random bits in base64url; with that much entropy a plain SHA-256 is as good as a slow hash.
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
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from hardening.clients import ANONYMOUS, LONGEST_NAME, POOLED
from hardening.config import Auth
from hardening.errors import ConfigError, HardeningError

_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_PATH = "auth.api_keys"


class Unauthenticated(HardeningError):
    """No key, an unknown key, or several keys. The message is for the operator."""


class ApiKeys:
    """Clients by the SHA-256 digests of their keys."""

    def __init__(self, digests: Mapping[str, bytes]) -> None:
        self._clients = {digest: (digest, client) for client, digest in digests.items()}

    def client(self, metadata: Iterable[tuple[str, str | bytes]]) -> str:
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
        stored, client = self._clients.get(digest, (bytes(32), ""))
        if not hmac.compare_digest(digest, stored):
            raise Unauthenticated("an unknown API key")
        return client


def load_api_keys(auth: Auth, root: Path) -> ApiKeys:
    """The keys of a policy. Raises ConfigError at ``auth.api_keys``."""
    return ApiKeys(read_keys(root / auth.api_keys.removeprefix("file:")))


def check_name(name: str, path: str) -> None:
    """Raises ConfigError unless `name` can be a client's."""
    if not name or len(name) > LONGEST_NAME or not name.isprintable() or name in (ANONYMOUS, POOLED):
        raise ConfigError(
            path,
            f"{name!r} cannot be a client: 1 to {LONGEST_NAME} printable characters, not {ANONYMOUS} or {POOLED}",
        )


def read_keys(file: Path) -> dict[str, bytes]:
    """Digests by client. Raises ConfigError if the file is open to writing by others, or holds anything else."""
    try:
        with file.open("rb") as stream:
            mode = stat.S_IMODE(os.fstat(stream.fileno()).st_mode)
            table = tomllib.loads(stream.read().decode())
    except OSError as problem:
        raise ConfigError(_PATH, f"cannot read {str(file)!r}: {problem.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(_PATH, f"{str(file)!r} is not text in UTF-8") from None
    except ValueError as problem:
        raise ConfigError(_PATH, f"{str(file)!r} is not valid TOML: {problem}") from None
    if mode & 0o022:
        raise ConfigError(_PATH, f"{str(file)!r} can be written by other users ({mode:04o}): chmod go-w it")
    digests: dict[str, bytes] = {}
    for name, value in table.items():
        check_name(name, _PATH)
        match = _DIGEST.fullmatch(value) if isinstance(value, str) else None
        if match is None:
            raise ConfigError(_PATH, f"{name!r} in {str(file)!r} must be sha256: and 64 hexadecimal digits")
        digest = bytes.fromhex(match[1])
        if digest in digests.values():
            raise ConfigError(_PATH, f"{name!r} in {str(file)!r} has the key of another client")
        digests[name] = digest
    return digests


def add_key(file: Path, name: str, replace: bool = False) -> str:
    """Make a key for `name`, store its digest in `file` (made with mode 0600; changed as a whole or not at all).

    Returns the key, which is kept nowhere. Raises ConfigError; also if `name` has a key and `replace` is false.
    """
    check_name(name, "NAME")
    key = f"hrdn_{secrets.token_urlsafe(32)}"
    with _locked(file.parent):
        digests = read_keys(file) if file.exists() else {}
        if name in digests and not replace:
            raise ConfigError("NAME", f"{name!r} has a key already; --replace gives a new one and ends the old one")
        digests[name] = hashlib.sha256(key.encode()).digest()
        lines = [f'{json.dumps(n, ensure_ascii=False)} = "sha256:{d.hex()}"\n' for n, d in digests.items()]
        _write(file, "".join(lines))
    return key


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
