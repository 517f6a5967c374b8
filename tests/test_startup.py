"""`hardening check` says beforehand what a guard or a server would refuse at its start, and changes nothing."""

from __future__ import annotations

import dataclasses
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hardening_grpc.auth import load_api_keys
from hardening_grpc.tls import server_credentials

import hardening
from hardening.cli import main
from hardening.config import KeySource, load_policy
from hardening.errors import ConfigError
from hardening.keys import load_key
from tests.clients import crowd
from tests.grpc.conftest import Authority
from tests.ledger.server import DURABLE, FORGETFUL, Server
from tests.onnx.graphs import mlp

POLICY = """schema = 1
[key]
source = "file:hardening.key"
create = true
[outputs.p]
space = "simplex"
tiers.normal = [ {kind = "gaussian", sigma = 0.02}, {kind = "project"} ]
tiers.label = [ {kind = "label_only"} ]
[detect]
baseline = "baseline.json"
[respond]
suspicion = [ {at = 1.0, tier = "label"} ]
[budgets.model]
bits = 1e6
[ledger]
url = "sqlite:///books.db"
"""
SERVED = """
[auth]
api_keys = "file:keys.toml"
[tls]
certificate = "file:server.pem"
key = "file:server.key"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "policy.toml").write_text(POLICY)
    (tmp_path / "baseline.json").write_text(crowd.digits().baseline.to_json())
    return tmp_path


def change(folder: Path, old: str, new: str) -> None:
    text = (folder / "policy.toml").read_text()
    assert old in text
    (folder / "policy.toml").write_text(text.replace(old, new))


def test_all_is_well_and_nothing_is_made(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(folder.iterdir())
    assert main(["check", str(folder / "policy.toml"), "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["problems"] == []
    assert said.err == ""
    assert sorted(folder.iterdir()) == before
    with hardening.Guard(load_policy(folder / "policy.toml")):
        pass
    assert {path.name for path in folder.iterdir()} >= {"hardening.key", "books.db"}
    assert main(["check", str(folder / "policy.toml")]) == 0


def _another_ledger(folder: Path) -> None:
    with sqlite3.connect(folder / "books.db") as sql:
        sql.execute("CREATE TABLE other (thing)")
    sql.close()


def _another_cipher(folder: Path) -> None:
    load_key(KeySource("file:hardening.key", create=True, cipher="chacha20"), folder)
    change(folder, "create = true", 'create = true\ncipher = "aes-128-ctr"')


def _open_to_all(folder: Path) -> None:
    load_key(KeySource("file:hardening.key", create=True), folder)
    (folder / "hardening.key").chmod(0o644)


def _of_another_output(folder: Path, output: str = "q") -> None:
    made = dataclasses.replace(crowd.digits().baseline, output=output)
    (folder / "baseline.json").write_text(made.to_json())


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no baseline": (lambda f: (f / "baseline.json").unlink(), "detect.baseline: cannot read 'baseline.json': No such"),
    "a folder": (lambda f: change(f, "baseline.json", "."), "detect.baseline: cannot read "),
    "no text": (lambda f: (f / "baseline.json").write_bytes(b"\xff"), "detect.baseline: cannot read 'baseline.json'"),
    "no such thing": (lambda f: (f / "baseline.json").write_text("{}"), "detect.baseline: is not a baseline"),
    "another output": (_of_another_output, "detect.baseline: 'baseline.json' is of the output 'q', which the policy"),
    "no output": (lambda f: _of_another_output(f, ""), "detect.baseline: 'baseline.json' does not say which output"),
    "no key": (lambda f: change(f, "create = true", ""), "key.source: cannot read 'hardening.key'"),
    "no variable": (
        lambda f: change(f, '"file:hardening.key"\ncreate = true', '"env:HARDENING_TEST_ABSENT"'),
        "key.source: the environment variable HARDENING_TEST_ABSENT is not set",
    ),
    "not a key": (lambda f: (f / "hardening.key").touch(0o600), "key: not a key"),
    "open to all": (_open_to_all, "key.source: 'hardening.key' is open to other users (0644)"),
    "another cipher": (_another_cipher, "key.cipher: the policy names 'aes-128-ctr', and the key is for 'chacha20'"),
    "no folder": (lambda f: change(f, "file:h", "file:no/h"), "key.source: cannot create 'hardening.key'"),
    "no folder of books": (lambda f: change(f, "books.db", "no/books.db"), "ledger.url: cannot open "),
    "not a database": (lambda f: (f / "books.db").write_bytes(b"books" * 500), "ledger.url: cannot open "),
    "a folder of books": (lambda f: (f / "books.db").mkdir(), "ledger.url: cannot open "),
    "other books": (_another_ledger, "ledger.url: "),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_a_guard_refuses_is_found_before(what: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spoil, problem = REFUSED[what]
    spoil(folder)
    assert main(["check", str(folder / "policy.toml")]) == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"hardening check: {problem}")
    assert len(said.err.splitlines()) == 1
    assert main(["check", str(folder / "policy.toml"), "--json"]) == 2
    assert capsys.readouterr().out.count(json.dumps(problem)[1:-1])
    assert main(["check", str(folder / "policy.toml"), "--no-files"]) == 0
    assert main(["explain", str(folder / "policy.toml")]) == 0
    with pytest.raises(ConfigError) as caught:
        hardening.Guard(load_policy(folder / "policy.toml"))
    assert problem.startswith(caught.value.path)


def test_all_of_it_is_said_at_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "baseline.json").unlink()
    change(folder, "create = true", "")
    change(folder, "books.db", "no/books.db")
    assert main(["check", str(folder / "policy.toml")]) == 2
    paths = [line.split(": ")[1] for line in capsys.readouterr().err.splitlines()]
    assert paths == ["detect.baseline", "key.source", "ledger.url"]


def test_folders_of_another_user(tmp_path: Path) -> None:
    """In a process that is not root, since root writes everywhere."""
    script = f"""
import os, pathlib
from hardening.config import KeySource
from hardening.keys import check_key
from hardening.ledger import LedgerRules, check_store
import hardening.ledger.sqlite
os.chdir({str(tmp_path)!r})
os.chmod(".", 0o555)
if os.geteuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
def try_all():
    yield lambda: check_key(KeySource("file:own.key", create=True), pathlib.Path())
    yield lambda: check_store(LedgerRules("sqlite:///books.db"))
for check in try_all():
    try:
        check()
    except Exception as problem:
        print(type(problem).__name__, problem, sep=": ")
"""
    try:
        said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    finally:
        tmp_path.chmod(0o700)
    assert said.splitlines() == [
        "ConfigError: key.source: cannot create 'own.key': the folder '.' is not writable",
        "ConfigError: ledger.url: cannot open 'books.db': the folder '.' is not writable",
    ]


def test_files_of_a_server(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "policy.toml"
    path.write_text(POLICY + SERVED)
    assert main(["check", str(path)]) == 2
    keys, tls = capsys.readouterr().err.splitlines()
    assert keys.startswith("hardening check: auth.api_keys: cannot read ")
    assert tls.startswith("hardening check: tls.certificate: cannot read 'server.pem'")
    Authority(folder).issue("server")
    (folder / "keys.toml").write_text('alice = "sha256:abc"\n')
    policy = load_policy(path)
    with pytest.raises(ConfigError) as caught:
        load_api_keys(policy.auth, policy.root)  # type: ignore[arg-type]
    server_credentials(policy.tls, policy.root)  # type: ignore[arg-type]
    assert main(["check", str(path)]) == 2
    assert capsys.readouterr().err == f"hardening check: {caught.value}\n"
    # Without the server's package, whether the files are there is all that is seen.
    monkeypatch.setattr("hardening.cli.startup.GROUP", "hardening.absent")
    assert main(["check", str(path)]) == 0
    (folder / "server.key").unlink()
    assert main(["check", str(path)]) == 2
    assert "tls.key: cannot read 'server.key'" in capsys.readouterr().err


@pytest.mark.parametrize(("classes", "code"), [(0, 0), (5, 0), (10, 2)])
def test_a_baseline_of_another_model(classes: int, code: int, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = folder / "m.onnx"
    model.write_bytes(mlp().SerializeToString())
    made = dataclasses.replace(crowd.digits().baseline, classes=classes)
    (folder / "baseline.json").write_text(made.to_json())
    assert main(["check", str(folder / "policy.toml"), "--model", str(model)]) == code
    problem = "detect.baseline: is of 10 classes, and rows of 'p' have 5 entries"
    assert (problem in capsys.readouterr().err) == (code == 2)


def test_a_server_with_books_is_asked_only_if_that_is_wanted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server = Server(folder, *DURABLE)
    try:
        change(folder, "sqlite:///books.db", server.url)
        assert main(["check", str(folder / "policy.toml"), "--connect"]) == 0
    finally:
        server.close()
    assert main(["check", str(folder / "policy.toml")]) == 0
    assert main(["check", str(folder / "policy.toml"), "--connect"]) == 2
    assert "hardening check: ledger.url: " in capsys.readouterr().err
    forgetful = Server(folder, *FORGETFUL)
    try:
        change(folder, server.url, forgetful.url)
        assert main(["check", str(folder / "policy.toml"), "--connect"]) == 2
        assert "hardening check: ledger.durability: " in capsys.readouterr().err
    finally:
        forgetful.close()
    change(folder, "[ledger]", '[ledger]\npassword = "env:HARDENING_TEST_ABSENT"')
    assert main(["check", str(folder / "policy.toml")]) == 2
    assert "ledger.password: the environment variable HARDENING_TEST_ABSENT is not set" in capsys.readouterr().err
    assert "HARDENING_TEST_ABSENT" not in os.environ
