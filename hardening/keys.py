"""Secrets by reference: reading them, and creating a key where the policy allows it."""

from __future__ import annotations

import functools
import os
import secrets
import stat
from pathlib import Path

from hardening.config import KeySource
from hardening.errors import ConfigError
from hardening.noise import CIPHERS, SECRET_BYTES, Key


def read_reference(reference: str, root: Path, path: str) -> bytes:
    """What ``file:PATH`` (relative to `root`) or ``env:NAME`` holds. Raises ConfigError at `path`."""
    kind, _, name = reference.partition(":")
    if kind == "env":
        if name not in os.environ:
            raise ConfigError(path, f"the environment variable {name} is not set")
        return os.environ[name].encode()
    if kind != "file" or not name:
        raise ConfigError(path, f"must be file:PATH or env:NAME, not {reference!r}")
    try:
        return (root / name).read_bytes()
    except OSError as problem:
        raise ConfigError(path, f"cannot read {name!r}: {problem.strerror}") from None


@functools.cache
def own_key() -> Key:
    """A key of this process alone, for what no other has to know: where a policy has none of its own."""
    return Key(1, CIPHERS[0], secrets.token_bytes(SECRET_BYTES))


def load_key(source: KeySource, root: Path) -> Key:
    """The key a policy refers to; created, with mode 0600, if it is missing and the policy says so.

    Raises ConfigError if it cannot be read, is not a key, is for another cipher than the policy names, or is open to
    other users.
    """
    if _to_be_made(source, root):
        _create(root / source.source[5:], source.cipher or CIPHERS[0])
    return _read(source, root)


def check_key(source: KeySource, root: Path) -> None:
    """Raise ConfigError where `load_key` would; nothing is created."""
    if not _to_be_made(source, root):
        _read(source, root)
        return
    file = root / source.source[5:]
    if not os.access(file.parent, os.W_OK | os.X_OK):
        reason = "is not writable" if file.parent.is_dir() else "does not exist"
        raise ConfigError("key.source", f"cannot create {file.name!r}: the folder {str(file.parent)!r} {reason}")


def _to_be_made(source: KeySource, root: Path) -> bool:
    return source.create and not os.path.exists(root / source.source[5:])


def _read(source: KeySource, root: Path) -> Key:
    if source.source.startswith("file:"):
        file = root / source.source[5:]
        try:
            mode = stat.S_IMODE(file.stat().st_mode)
        except OSError as problem:
            missing = isinstance(problem, FileNotFoundError) and not source.create
            hint = "; create = true makes one" if missing else ""
            raise ConfigError("key.source", f"cannot read {source.source[5:]!r}: {problem.strerror}{hint}") from None
        if mode & 0o077:
            raise ConfigError("key.source", f"{source.source[5:]!r} is open to other users ({mode:04o}): chmod 600 it")
    try:
        text = read_reference(source.source, root, "key.source").decode("ascii")
    except UnicodeDecodeError:
        raise ConfigError("key.source", "does not hold a key: it is not text") from None
    key = Key.parse(text)
    if source.cipher not in (None, key.cipher):
        raise ConfigError(
            "key.cipher",
            f"the policy names {source.cipher!r}, and the key is for {key.cipher!r}, which decides: "
            "name that one or none, or use another key",
        )
    return key


def _create(file: Path, cipher: str) -> None:
    """Written whole under another name and linked into place, so that two processes cannot make two keys."""
    text = Key(1, cipher, secrets.token_bytes(SECRET_BYTES)).format() + "\n"
    draft = file.with_name(f".{file.name}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "w") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
            os.link(draft, file)
        except FileExistsError:
            pass
        finally:
            draft.unlink(missing_ok=True)
    except OSError as problem:
        raise ConfigError("key.source", f"cannot create {file.name!r}: {problem.strerror}") from None
