"""Sections of a policy that refer to secrets: they hold references (``file:PATH``, ``env:NAME``), never a secret."""

from __future__ import annotations

from dataclasses import dataclass

from hardening.errors import ConfigError
from hardening.noise import CIPHERS


def _check_reference(path: str, reference: str, kinds: tuple[str, ...] = ("file", "env")) -> None:
    kind, _, name = reference.partition(":")
    if kind not in kinds or not name:
        known = " or ".join({"file": "file:PATH", "env": "env:NAME"}[k] for k in kinds)
        raise ConfigError(path, f"must be {known}, not {reference!r}")


@dataclass(frozen=True)
class KeySource:
    """Where the key is: `source` is ``file:PATH`` or ``env:NAME``; `create` makes a missing file, with mode 0600.

    `cipher`, one of `hardening.noise.CIPHERS`, is what a new key is made for and an existing one has to be for. Left
    out, an existing key keeps its own, and a new one gets the first.
    """

    source: str
    create: bool = False
    cipher: str | None = None

    def __post_init__(self) -> None:
        _check_reference("key.source", self.source)
        if self.cipher is not None and self.cipher not in CIPHERS:
            raise ConfigError("key.cipher", f"unknown cipher {self.cipher!r}; known: {', '.join(CIPHERS)}")
        if self.create and self.source.startswith("env:"):
            raise ConfigError("key.create", "only a file can be created; with env: leave it out")


@dataclass(frozen=True)
class Auth:
    """Who may ask a server: `api_keys` is ``file:PATH``, a TOML file of client names and digests of their keys.

    `allow_plaintext` lets the keys travel without TLS on an address other than loopback, for servers behind something
    that ends TLS for them. `trusted_hops` is how many proxies of one's own every call passes: the address that the
    outermost of them noted in ``x-forwarded-for`` is the caller's. With 0 that header is not looked at.
    """

    api_keys: str
    allow_plaintext: bool = False
    trusted_hops: int = 0

    def __post_init__(self) -> None:
        _check_reference("auth.api_keys", self.api_keys, ("file",))
        if self.trusted_hops < 0:
            raise ConfigError("auth.trusted_hops", f"must be a whole number from 0 on, not {self.trusted_hops!r}")


@dataclass(frozen=True)
class Tls:
    """A server's certificate chain and private key (PEM), by reference; with `client_ca`, clients need certificates."""

    certificate: str
    key: str
    client_ca: str | None = None

    def __post_init__(self) -> None:
        for name in ("certificate", "key", "client_ca"):
            reference = getattr(self, name)
            if reference is not None:
                _check_reference(f"tls.{name}", reference)
