"""TLS as a client meets it, and every certificate that must not be served with."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import grpc
import hardening_onnx
import pytest
from hardening_grpc import Server
from hardening_grpc.auth import add_key
from hardening_grpc.server import check_exposure
from hardening_grpc.tls import server_credentials

from hardening.config import Auth, Output, Policy, Tls, load_policy
from hardening.errors import ConfigError
from tests.grpc.conftest import NOW, Authority
from tests.grpc.models import MLP_POLICY, call, mlp, write

TLS = """
[tls]
certificate = "file:server.pem"
key = "file:server.key"
"""


def serve(folder: Path, sections: str) -> Server:
    model, policy_path = write(folder, mlp(), MLP_POLICY + sections)
    policy = load_policy(policy_path)
    return Server("model", hardening_onnx.wrap(model, policy), policy)


def live(server: Server, *identity: bytes, ca: bytes) -> bool:
    """Whether a client that trusts `ca` gets an answer, with a key and a certificate of its own if given."""
    credentials = grpc.ssl_channel_credentials(ca, *identity)
    with grpc.secure_channel(f"localhost:{server.port}", credentials) as channel:
        try:
            return call(channel, "ServerLive", b"") == b"\x08\x01"
        except grpc.RpcError as problem:
            if problem.code() != grpc.StatusCode.UNAVAILABLE:  # the transport's own: there is no connection
                raise
            return False


def test_tls(authority: Authority, tmp_path: Path) -> None:
    authority.issue("server")
    (tmp_path / "other").mkdir()
    ca, other = (tmp_path / "ca.pem").read_bytes(), Authority(tmp_path / "other")
    with serve(tmp_path, TLS) as server:
        assert live(server, ca=ca)
        assert not live(server, ca=(other.folder / "ca.pem").read_bytes())
        with grpc.insecure_channel(f"localhost:{server.port}") as channel, pytest.raises(grpc.RpcError):
            call(channel, "ServerLive", b"")


def test_mutual_tls(authority: Authority, tmp_path: Path) -> None:
    authority.issue("server")
    pem, key = authority.issue("client")
    (tmp_path / "other").mkdir()
    foreign_pem, foreign_key = Authority(tmp_path / "other").issue("client")
    ca = (tmp_path / "ca.pem").read_bytes()
    with serve(tmp_path, TLS + 'client_ca = "file:ca.pem"\n') as server:
        assert live(server, key, pem, ca=ca)
        assert not live(server, ca=ca)
        assert not live(server, foreign_key, foreign_pem, ca=ca)


def test_a_key_and_tls_on_every_address(authority: Authority, tmp_path: Path) -> None:
    authority.issue("server")
    key = add_key(tmp_path / "keys.toml", "alice")
    model, path = write(tmp_path, mlp(), MLP_POLICY + TLS + '[auth]\napi_keys = "file:keys.toml"\n')
    policy = load_policy(path)
    credentials = grpc.ssl_channel_credentials((tmp_path / "ca.pem").read_bytes())
    with (
        Server("model", hardening_onnx.wrap(model, policy), policy, host="0.0.0.0") as server,
        grpc.secure_channel(f"localhost:{server.port}", credentials) as channel,
    ):
        assert call(channel, "ModelReady", b"\x0a\x05model", key) == b"\x08\x01"
        with pytest.raises(grpc.RpcError) as caught:
            call(channel, "ModelReady", b"\x0a\x05model", key + "x")
        assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize(
    ("host", "auth", "tls", "path"),
    [
        ("127.0.0.1", None, None, None),
        ("::1", None, None, None),
        ("localhost", None, None, None),
        ("127.9.9.9", Auth("file:k"), None, None),
        ("0.0.0.0", None, None, "auth"),
        ("::", None, Tls("file:c", "file:k"), "auth"),
        ("example.org", None, None, "auth"),
        ("10.0.0.1", Auth("file:k"), None, "tls"),
        ("10.0.0.1", Auth("file:k", allow_plaintext=True), None, None),
        ("10.0.0.1", Auth("file:k"), Tls("file:c", "file:k"), None),
    ],
)
def test_what_may_be_reached_from_elsewhere(host: str, auth: Auth | None, tls: Tls | None, path: str | None) -> None:
    policy = Policy({"y": Output("open")}, auth=auth, tls=tls)
    if path is None:
        check_exposure(policy, host)
    else:
        with pytest.raises(ConfigError) as caught:
            check_exposure(policy, host)
        assert caught.value.path == path


def refused(path: str, problem: str, folder: Path, tls: Tls | None = None) -> None:
    with pytest.raises(ConfigError, match=problem) as caught:
        server_credentials(tls or Tls("file:server.pem", "file:server.key", "file:ca.pem"), folder)
    assert caught.value.path == path


def test_certificates_that_are_wrong(authority: Authority, tmp_path: Path) -> None:
    refused("tls.certificate", "cannot read 'server.pem'", tmp_path)
    pem, key = authority.issue("server")
    assert server_credentials(Tls("file:server.pem", "file:server.key", "file:ca.pem"), tmp_path)

    (tmp_path / "server.key").unlink()
    refused("tls.key", "cannot read 'server.key'", tmp_path)
    (tmp_path / "server.key").write_bytes(key)
    (tmp_path / "server.key").chmod(0o640)
    refused("tls.key", r"open to other users \(0640\)", tmp_path)
    (tmp_path / "server.key").chmod(0o600)
    (tmp_path / "server.key").write_bytes(key.replace(b"M", b"N"))
    refused("tls.key", "does not hold a PEM private key", tmp_path)
    authority.issue("another")
    refused("tls.key", "is not the key of", tmp_path, Tls("file:server.pem", "file:another.key"))

    (tmp_path / "server.key").write_bytes(key)
    for garbled in (b"", b"\xff", key, pem[:-40], pem.replace(b"M", b"N")):
        (tmp_path / "server.pem").write_bytes(garbled)
        refused("tls.certificate", "does not hold PEM certificates", tmp_path)
    (tmp_path / "server.pem").write_bytes(pem)
    (tmp_path / "ca.pem").write_bytes(b"x")
    refused("tls.client_ca", "does not hold PEM certificates", tmp_path)
    (tmp_path / "ca.pem").unlink()
    refused("tls.client_ca", "cannot read 'ca.pem'", tmp_path)


def test_certificates_out_of_date(authority: Authority, tmp_path: Path) -> None:
    tls = Tls("file:server.pem", "file:server.key")
    authority.issue("server", end=NOW - timedelta(minutes=1))
    refused("tls.certificate", "expired on", tmp_path, tls)
    authority.issue("server", start=NOW + timedelta(hours=3))
    refused("tls.certificate", "not valid before", tmp_path, tls)
    authority.issue("server", end=NOW + timedelta(days=2))
    with pytest.raises(ConfigError, match=r"'file:ca\.pem' expired on"):
        server_credentials(Tls(tls.certificate, tls.key, "file:ca.pem"), tmp_path, NOW + timedelta(days=1, seconds=1))
