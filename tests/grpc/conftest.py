"""Certificates that tests make for themselves, and servers in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

NOW = datetime.now(UTC)


class Authority:
    """A certificate authority in a folder: ``ca.pem``, and what `issue` makes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"authority of {folder.name}")])
        (folder / "ca.pem").write_bytes(self._sign(self._name, self._key, True, NOW, NOW + timedelta(days=1)))

    def _sign(self, name: x509.Name, key: Any, ca: bool, start: datetime, end: datetime) -> bytes:
        names = x509.SubjectAlternativeName([x509.DNSName("localhost")])
        builder = x509.CertificateBuilder(
            issuer_name=self._name,
            subject_name=name,
            public_key=key.public_key(),
            serial_number=x509.random_serial_number(),
            not_valid_before=start - timedelta(hours=1),
            not_valid_after=end,
        )
        builder = builder.add_extension(x509.BasicConstraints(ca, None), True).add_extension(names, False)
        return builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM)

    def issue(self, name: str, start: datetime = NOW, end: datetime = NOW + timedelta(days=1)) -> tuple[bytes, bytes]:
        """``NAME.pem`` and ``NAME.key``, for localhost; their contents."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        pem = self._sign(subject, key, False, start, end)
        secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (self.folder / f"{name}.pem").write_bytes(pem)
        (self.folder / f"{name}.key").write_bytes(secret)
        (self.folder / f"{name}.key").chmod(0o600)
        return pem, secret


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


class Served:
    """A running ``hardening serve --json``; `port` is where."""

    def __init__(self, arguments: list[str], prelude: str = "") -> None:
        script = f"{prelude}\nimport sys\nfrom hardening.cli import main\nsys.exit(main())"
        self.process = subprocess.Popen(
            [sys.executable, "-c", script, "serve", "--port", "0", "--json", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={k: v for k, v in os.environ.items() if not k.startswith("GRPC_")},
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.communicate()[1]
        self.facts: dict[str, Any] = json.loads(line)
        self.port: int = self.facts["port"]

    def finish(self) -> tuple[int, str, str]:
        """Exit code, rest of the output, errors; ends the process if it runs."""
        if self.process.poll() is None:
            self.process.terminate()
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, err


@pytest.fixture
def serve() -> Iterator[Callable[..., Served]]:
    """Starts servers, and ends those that still run."""
    running: list[Served] = []

    def start(*arguments: object, prelude: str = "") -> Served:
        running.append(Served([str(a) for a in arguments], prelude))
        return running[-1]

    yield start
    for served in running:
        if served.process.stdout and not served.process.stdout.closed:
            served.finish()
