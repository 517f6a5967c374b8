"""Transport security: a policy's certificates, checked before they are given to gRPC."""

from __future__ import annotations

import stat
from datetime import UTC, datetime
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from hardening.config import Tls
from hardening.errors import ConfigError
from hardening.keys import read_reference


def server_credentials(tls: Tls, root: Path, now: datetime | None = None) -> grpc.ServerCredentials:
    """Credentials for `grpc.Server.add_secure_port`; with ``client_ca``, clients must have a certificate of that CA.

    Raises ConfigError, with the dotted path, if a file is missing, garbled, out of date at `now` (the present if left
    out), open to others, or if key and certificate are no pair.
    """
    now = now or datetime.now(UTC)
    chain, leaf = _certificates(tls.certificate, root, "tls.certificate", now)
    key = read_reference(tls.key, root, "tls.key")
    if tls.key.startswith("file:"):
        mode = stat.S_IMODE((root / tls.key.removeprefix("file:")).stat().st_mode)
        if mode & 0o077:
            raise ConfigError("tls.key", f"{tls.key[5:]!r} is open to other users ({mode:04o}): chmod 600 it")
    try:
        private = load_pem_private_key(key, None)
    except (ValueError, TypeError):
        raise ConfigError("tls.key", f"{tls.key!r} does not hold a PEM private key without a password") from None
    raw = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if private.public_key().public_bytes(*raw) != leaf.public_key().public_bytes(*raw):
        raise ConfigError("tls.key", f"{tls.key!r} is not the key of the first certificate in {tls.certificate!r}")
    ca = _certificates(tls.client_ca, root, "tls.client_ca", now)[0] if tls.client_ca else None
    return grpc.ssl_server_credentials([(key, chain)], ca, require_client_auth=ca is not None)


def _certificates(reference: str, root: Path, path: str, now: datetime) -> tuple[bytes, x509.Certificate]:
    """PEM bytes and the first certificate in them."""
    pem = read_reference(reference, root, path)
    try:
        certificates = x509.load_pem_x509_certificates(pem)
    except ValueError:
        raise ConfigError(path, f"{reference!r} does not hold PEM certificates") from None
    for certificate in certificates:
        if now > certificate.not_valid_after_utc:
            raise ConfigError(path, f"{reference!r} expired on {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC")
        if now < certificate.not_valid_before_utc:
            raise ConfigError(
                path, f"{reference!r} is not valid before {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC"
            )
    return pem, certificates[0]
