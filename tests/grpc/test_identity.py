"""Who is asking over gRPC: the key's owner, the network, forwarded addresses only past proxies of one's own; and what
their budgets do to an answer."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import hardening_onnx
import numpy as np
import pytest
from grpc import StatusCode
from hardening_grpc import Server
from hardening_grpc.auth import add_key, load_api_keys, read_keys
from hardening_grpc.codec import InferResponse
from hardening_grpc.control import Control, ask_clients, ask_grant
from hardening_grpc.identity import Callers, address, prefix
from hardening_grpc.service import INFERENCE, SENTENCES, Refusal, Service

from hardening.cli import main
from hardening.config import Auth, load_policy, parse_policy
from hardening.errors import ConfigError, Denied
from hardening.ledger import Account, Ledger
from hardening.ledger.amounts import UNITS
from hardening.ledger.sqlite import SqliteStore
from hardening.policy import ClientRules
from hardening.types import Identity
from tests.grpc.models import MLP_POLICY, arrays, call, mlp, request, write

X = np.random.default_rng(3).normal(size=(2, 8)).astype("f4")
RULES = ClientRules()
INFER = f"/{INFERENCE}/ModelInfer"
BUDGETS = """
[clients]
identity = ["credential", "organisation", "prefix"]
credentials = 3
[auth]
api_keys = "file:keys.toml"
[ledger]
url = "sqlite:///books.db"
[budgets.credential]
bits = 100.0
[budgets.organisation]
bits = 150.0
[budgets.prefix]
queries = { per = "1h", max = 5000 }
"""


@pytest.mark.parametrize(
    ("peer", "network"),
    [
        ("ipv4:203.0.113.77:51324", "203.0.113.0/24"),
        ("ipv6:%5B2001:db8:1:2::3%5D:443", "2001:db8:1::/48"),
        ("ipv6:[2001:db8:1:2::3]:443", "2001:db8:1::/48"),
        ("ipv6:[::ffff:203.0.113.77]:443", "203.0.113.0/24"),
        ("ipv6:[fe80::1%25eth0]:443", "fe80::/48"),
        ("unix:/run/hardening.sock", ""),
        ("unix:", ""),
        ("", ""),
        ("ipv4:nonsense:1", ""),
    ],
)
def test_the_network_of_a_peer(peer: str, network: str) -> None:
    assert prefix(address([], peer, 0), RULES) == network


def test_the_length_of_a_prefix_is_the_policys() -> None:
    rules = ClientRules(ipv4=16, ipv6=64)
    assert prefix("203.0.113.77", rules) == "203.0.0.0/16"
    assert prefix("2001:db8:1:2::3", rules) == "2001:db8:1:2::/64"


@pytest.mark.parametrize(
    ("hops", "noted", "found"),
    [
        (0, ["198.51.100.1"], "203.0.113.77"),
        (1, ["198.51.100.1"], "198.51.100.1"),
        (1, ["6.6.6.6, 198.51.100.1"], "198.51.100.1"),
        (1, ["6.6.6.6", "198.51.100.1"], "198.51.100.1"),
        (2, ["6.6.6.6, 198.51.100.1, 10.0.0.1"], "198.51.100.1"),
        (2, ["198.51.100.1"], ""),
        (1, [], ""),
    ],
)
def test_forwarded_addresses_count_only_past_our_own_proxies(hops: int, noted: list[str], found: str) -> None:
    metadata = [("x-forwarded-for", value) for value in noted]
    assert address(metadata, "ipv4:203.0.113.77:1", hops) == found


def test_callers_are_told_apart_as_the_policy_says(tmp_path: Path) -> None:
    keys = {name: add_key(tmp_path / "keys.toml", name, organisation="acme", now=1e9) for name in ("alice", "bob")}
    add_key(tmp_path / "keys.toml", "bob", True, principal="bo")
    known = load_api_keys(Auth("file:keys.toml"), tmp_path)
    metadata = [("x-api-key", keys["alice"]), ("x-forwarded-for", "198.51.100.1")]
    plain = parse_policy(MLP_POLICY + '[auth]\napi_keys = "file:k"\n')
    by_prefix = parse_policy(
        MLP_POLICY + '[auth]\napi_keys = "file:k"\ntrusted_hops = 1\n[clients]\nidentity = ["credential", "prefix"]\n'
    )
    alice = Identity("alice", "", "acme", since=1e9)
    assert Callers(plain, known).identify(metadata, "ipv4:203.0.113.77:1") == alice
    assert Callers(by_prefix, known).identify(metadata, "ipv4:203.0.113.77:1") == alice._replace(
        prefix="198.51.100.0/24"
    )
    assert Callers(parse_policy(MLP_POLICY), None).identify(metadata, "ipv4:203.0.113.77:1") == Identity("anonymous")
    replaced = read_keys(tmp_path / "keys.toml")["bob"]
    assert (replaced.organisation, replaced.principal, replaced.since) == ("acme", "bo", 1e9), "what it was, it stays"


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("alice = {}", "must be sha256:"),
        ('alice = {key = "DIGEST", since = 3}', "since must be a date and time with an offset"),
        ('alice = {key = "DIGEST", since = 2026-01-01T00:00:00}', "since must be a date and time with an offset"),
        ('alice = {key = "DIGEST", organisation = ""}', "organisation must be 1 to 64 printable"),
        ('alice = {key = "DIGEST", principal = "(none)"}', "principal must be 1 to 64 printable"),
        ('alice = {key = "DIGEST", principal = "(own) bob"}', "principal must be 1 to 64 printable"),
        ('alice = {key = "DIGEST", organization = "acme"}', "did you mean 'organisation'"),
    ],
)
def test_facts_about_a_client_that_are_wrong(line: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "keys.toml").write_text(line.replace("DIGEST", "sha256:" + "0" * 64))
    with pytest.raises(ConfigError, match=problem):
        read_keys(tmp_path / "keys.toml")


def test_the_command_says_whom_a_client_belongs_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "keys.toml"
    assert main(["credential", "al ice", "--keys", str(file), "--organisation", 'ac"me', "--principal", "é"]) == 0
    found = read_keys(file)["al ice"]
    assert (found.organisation, found.principal) == ('ac"me', "é")
    assert main(["credential", "bob", "--keys", str(file), "--organisation", "(none)"]) == 2
    assert "--organisation: it must be" in capsys.readouterr().err
    assert list(read_keys(file)) == ["al ice"]


def serve(folder: Path, sections: str = BUDGETS) -> tuple[Service, hardening_onnx.HardenedSession, dict[str, str]]:
    keys = {n: add_key(folder / "keys.toml", n, organisation="acme") for n in ("alice", "bob")}
    model, path = write(folder, mlp(), MLP_POLICY + sections)
    policy = load_policy(path)
    session = hardening_onnx.wrap(model, policy)
    assert policy.auth is not None
    return Service("model", session, load_api_keys(policy.auth, folder)), session, keys


def asked(service: Service, key: str, x: Any) -> str:
    """The code of an answer, or of a refusal with its sentence."""
    try:
        message = request({"x": x}).encode()
        service.answer(INFER, lambda: message, [("x-api-key", key)], "ipv4:203.0.113.77:1")
    except Refusal as problem:
        return f"{problem.code}: {problem}"
    return "OK"


def test_a_spent_budget_is_resource_exhausted_and_says_no_more(tmp_path: Path) -> None:
    service, session, keys = serve(tmp_path)
    codes: dict[str, list[str]] = {"alice": [], "bob": []}
    for i in range(6):
        for name, key in keys.items():
            codes[name].append(asked(service, key, X + np.float32(i)))
    # 34.9 bits for two rows: the organisation pays for four answers, whoever of its members asks.
    assert sum(code == "OK" for each in codes.values() for code in each) == 4
    assert {code for each in codes.values() for code in each} == {"OK", f"RESOURCE_EXHAUSTED: {Denied.SENTENCE}"}
    assert SENTENCES["PERMISSION_DENIED"] == Denied.SENTENCE
    standings = session.guard.clients()
    assert sum(s.bits for s in standings.values()) <= 150.0
    session.guard.close()


def test_over_a_real_transport(tmp_path: Path) -> None:
    keys = {"alice": add_key(tmp_path / "keys.toml", "alice", organisation="acme")}
    model, path = write(tmp_path, mlp(), MLP_POLICY + BUDGETS)
    policy = load_policy(path)
    session = hardening_onnx.wrap(model, policy)
    with Server("model", session, policy) as server, grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        told: Any = {"key": keys["alice"], "more": [("x-forwarded-for", "6.6.6.6")]}
        for i in range(2):
            message = request({"x": X + np.float32(i)}).encode()
            assert "p" in arrays(InferResponse.decode(call(channel, "ModelInfer", message, **told)))
        with pytest.raises(grpc.RpcError) as caught:
            call(channel, "ModelInfer", request({"x": X - 1}).encode(), **told)
        assert (caught.value.code(), caught.value.details()) == (StatusCode.RESOURCE_EXHAUSTED, Denied.SENTENCE)
        session.guard.grant("alice", bits=40.0, reason="a test")
        assert call(channel, "ModelInfer", request({"x": X - 2}).encode(), **told)
    session.guard.close()
    store = SqliteStore(tmp_path / "books.db")
    assert store.read("prefix:127.0.0.0/24")["queries"].total >= 8, "the peer's own network pays, whatever it claims"
    assert store.read("prefix:6.6.6.0/24") == {}
    store.close()


STEPS = """
[respond]
suspicion = [ {at = 0.5, throttle = {per = "1h", max = 1}}, {at = 2.0, deny = true} ]
"""
REFUSALS = {
    "bits": ("[budgets.credential]\nbits = 20.0\n", 0.0),
    "shared bits": ("[budgets.model]\nbits = 20.0\n", 0.0),
    "window": ('[budgets.credential]\nqueries = {per = "1h", max = 1}\n', 0.0),
    "throttle": (STEPS, 1.0),
    "suspicion": (STEPS, 3.0),
}


def test_refusals_over_a_real_transport_tell_nothing_apart(tmp_path: Path) -> None:
    """Whatever it was: before and after the model runs, the same code, details and metadata."""
    seen, reasons = set(), set()
    for kind, (sections, suspicion) in REFUSALS.items():
        folder = tmp_path / kind
        folder.mkdir()
        key = add_key(folder / "keys.toml", "alice", organisation="acme")
        model, path = write(folder, mlp(), MLP_POLICY + '[auth]\napi_keys = "file:keys.toml"\n' + sections)
        policy = load_policy(path)
        session = hardening_onnx.wrap(model, policy)
        row = session.guard._clients._rows[session.guard._clients.slot("alice")]
        row["firsts"], row["wealth"] = 1, 0.7 + suspicion * np.log(1 / policy.detect.false_alarm)
        with Server("model", session, policy) as server, grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            for _ in range(2):
                with pytest.raises(grpc.RpcError) as caught:
                    call(channel, "ModelInfer", request({"x": X}).encode(), key=key)
                told: Any = caught.value
                metadata = tuple(told.initial_metadata()), tuple(told.trailing_metadata())
                seen.add((told.code(), told.details(), metadata))
        with pytest.raises(Denied) as refused:
            session.run(["p"], {"x": X}, client=Identity("alice", organisation="acme"))
        reasons.add(refused.value.reason)
        session.guard.close()
    ((code, details, _),) = seen
    assert (code, details) == (StatusCode.RESOURCE_EXHAUSTED, Denied.SENTENCE)
    assert len(reasons) == len(REFUSALS), "the operator can tell"


def test_too_many_credentials_of_one_organisation(tmp_path: Path) -> None:
    for i in range(4):
        add_key(tmp_path / "keys.toml", f"c{i}", organisation="acme")
    model, path = write(tmp_path, mlp(), MLP_POLICY + BUDGETS)
    policy = load_policy(path)
    with pytest.raises(ConfigError, match=r"'acme' has 4 credentials, clients.credentials allows 3"):
        Server("model", hardening_onnx.wrap(model, policy), policy)


def spend_all(session: hardening_onnx.HardenedSession, first: int = 0) -> int:
    """How many questions that nobody asked before are answered."""
    answers = 0
    for i in range(20):
        try:
            answers += len(session.run(["p"], {"x": X[:1] + np.float32(first + i)}, client="alice"))
        except Denied:
            break
    return answers


def test_a_grant_over_the_control_socket(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, session, _ = serve(tmp_path)
    with Control(tmp_path / "c", session.guard.clients, session.guard.grant):
        assert spend_all(session) == 5
        (row,) = ask_clients(tmp_path / "c")
        assert (row["client"], row["tier"]) == ("alice", "deny")
        assert row["spent"] > 0.8
        more = ["clients", "grant", "alice", "--bits", "100", "--control", str(tmp_path / "c")]
        assert main([*more, "--reason", "contract 7"]) == 0
        assert capsys.readouterr().out == "granted to credential alice: 100 bits more\n"
        assert spend_all(session, 50) == 3, "then the organisation's is spent"
        assert main([*more, "--reason", "", "--json"]) == 2
        assert "reason: must be 1 to 500" in capsys.readouterr().err
        assert main([*more, "--reason", "x", "--rho", "1"]) == 2
        assert "rho: budgets.credential does not bound it" in capsys.readouterr().err
        assert main([*more, "--reason", "x", "--rung", "model"]) == 2
        assert "no budget on the rung 'model'" in capsys.readouterr().err
    with Control(tmp_path / "old", session.guard.clients):
        assert main([*more[:-1], str(tmp_path / "old"), "--reason", "x"]) == 2
        assert "ask" in capsys.readouterr().err
    session.guard.close()


def test_a_grant_straight_into_the_books(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, session, _ = serve(tmp_path)
    path = tmp_path / "policy.toml"
    assert spend_all(session) == 5
    arguments = ["clients", "grant", "alice", "--bits", "1e2", "--reason", "contract 7", "--policy", str(path)]
    done = subprocess.run(
        [sys.executable, "-m", "hardening", *arguments, "--json"], capture_output=True, text=True, check=True
    )
    facts = {"client": "alice", "rung": "credential", "bits": 100.0, "rho": 0.0, "reason": "contract 7"}
    assert json.loads(done.stdout) == {"granted": facts}
    books = Ledger(SqliteStore(tmp_path / "books.db"), {}, background=False)
    assert books.balance(Account("credential", "alice"))["bits"].extra == 100 * UNITS[0]
    books.close()
    session.guard.close()
    again = hardening_onnx.wrap(tmp_path / "model.onnx", load_policy(path))
    assert spend_all(again, 50) == 3
    again.guard.close()
    path.write_text(path.read_text().replace("sqlite:///books.db", "memory:"))
    assert main(arguments) == 2
    assert "ledger.url: is memory:" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["--control", "c", "--policy", "p"]])
def test_a_grant_goes_one_way(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["clients", "grant", "alice", "--bits", "1", "--reason", "x", *arguments])
    assert stop.value.code == 2
    assert "--control" in capsys.readouterr().err


def test_control_sockets_take_no_nonsense(tmp_path: Path) -> None:
    granted: list[str] = []

    def grant(client: str, *, reason: str) -> None:
        granted.append(f"{client}: {reason}")

    with Control(tmp_path / "c", dict, grant):
        for question in ({"ask": "grant"}, {"ask": "grant", "root": 1}, {"ask": "grants"}, {"ask": ["grant"]}, {}, 7):
            with socket.socket(socket.AF_UNIX) as connection, connection.makefile("rb") as stream:
                connection.connect(str(tmp_path / "c"))
                connection.sendall(json.dumps(question).encode() + b"\n")
                assert "error" in json.loads(stream.readline())
        ask_grant(tmp_path / "c", {"client": "alice", "reason": "why"})
    assert granted == ["alice: why"]


def test_clients_without_a_socket(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["clients"]) == 2
    assert "--control: missing" in capsys.readouterr().err
