"""The operator's socket: private, replaced when stale, never taken from a live server; and the table it fills."""

from __future__ import annotations

import io
import json
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hardening_grpc.commands.clients import table
from hardening_grpc.control import Control, accounts, ask_clients
from rich.console import Console

from hardening.cli import main
from hardening.errors import ConfigError, HardeningError
from hardening.types import Standing

STANDINGS = {
    "alice": Standing(
        queries=1200, bits=40.5, posterior_entropy=1.25, label_entropy=0.5, coverage=0.125, tier="normal"
    ),
    "[bold]bob": Standing(queries=7, bits=float("inf"), code_length=12.0, tier="label"),
    "carol": Standing(queries=3, bits=90.0, tier="normal"),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "control.sock"


def test_accounts_by_bits(path: Path, tmp_path: Path) -> None:
    with Control(path, lambda: STANDINGS):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        rows = ask_clients(path)
        assert [p.name for p in tmp_path.iterdir()] == ["control.sock"]
    assert [r["client"] for r in rows] == ["[bold]bob", "carol", "alice"]
    assert rows[0]["bits"] is None
    assert rows == json.loads(json.dumps(accounts(STANDINGS)))
    assert {k: rows[2][k] for k in ("queries", "bits", "coverage", "tier")} == {
        "queries": 1200,
        "bits": 40.5,
        "coverage": 0.125,
        "tier": "normal",
    }
    assert not path.exists()


def test_a_stale_socket_is_replaced_and_a_live_one_is_not(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with Control(path, dict):
        with pytest.raises(ConfigError, match="a running server"):
            Control(path, dict)
        assert ask_clients(path) == []
    path.write_text("precious")
    with pytest.raises(ConfigError, match="not a socket"):
        Control(path, dict)
    assert path.read_text() == "precious"


def test_a_socket_that_somebody_else_put_there_stays(path: Path) -> None:
    with Control(path, dict):
        path.rename(path.with_name("moved"))
        path.write_text("not ours")
    assert path.read_text() == "not ours"


@pytest.mark.parametrize("name", ["absent/control.sock", "x" * 120, "x" * 300, "file/control.sock"])
def test_paths_that_cannot_be(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="--control: cannot listen on"):
        Control(tmp_path / name, dict)


@pytest.mark.parametrize(
    "question", [b"\n", b"\xff\n", b"[]\n", b'{"ask": "keys"}\n', b"x" * 9000 + b"\n", b'"' + b"[" * 4000]
)
def test_other_questions(question: bytes, path: Path) -> None:
    with Control(path, lambda: STANDINGS):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(path))
            connection.sendall(question)
            connection.shutdown(socket.SHUT_WR)
            with connection.makefile("rb") as stream:
                assert json.loads(stream.readline()) == {"error": 'ask {"ask": "clients"}'}
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(path))  # and hangs up
        assert len(ask_clients(path)) == 3


def test_nobody_there(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(HardeningError, match="no server answers"):
        ask_clients(path)
    assert main(["clients", "--control", str(path)]) == 2
    assert "hardening clients: no server answers at" in capsys.readouterr().err


def test_only_the_owner_is_answered(tmp_path: Path) -> None:
    """In a process that is not root, since root may connect to everything."""
    script = """
import os, pathlib, sys
from hardening_grpc.control import ask_clients
folder = os.open(sys.argv[1], os.O_RDONLY)
os.fchdir(folder)
if os.geteuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
else:
    os.chmod("control.sock", 0)
try:
    print(ask_clients(pathlib.Path("control.sock")))
except Exception as problem:
    print(type(problem).__name__, problem)
"""
    tmp_path.chmod(0o755)
    with Control(tmp_path / "control.sock", lambda: STANDINGS):
        command = [sys.executable, "-c", script, str(tmp_path)]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said == "HardeningError 'control.sock' answers only its owner: ask as the user who runs the server\n"


def test_the_command(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Control(path, lambda: STANDINGS):
        assert main(["clients", "--control", str(path), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["clients"] == json.loads(json.dumps(accounts(STANDINGS)))
        assert main(["clients", "--control", str(path)]) == 0
    assert "clients: 3, queries: 1,210" in capsys.readouterr().out


@pytest.mark.parametrize("width", [80, 120])
def test_the_table(width: int) -> None:
    out = io.StringIO()
    Console(width=width, file=out).print(table(accounts(STANDINGS)))
    rows = [line.split() for line in out.getvalue().splitlines()]
    assert ["alice", "1,200", "40", "1.250", "0.500", "0", "12.5%", "normal"] in rows
    assert ["[bold]bob", "7", "unbounded", "0.000", "0.000", "12", "0.0%", "label"] in rows
    assert "posterior" in out.getvalue()


def test_columns_that_say_something_are_shown() -> None:
    known = {
        "alice": Standing(queries=2, bits=10.0, rho=0.25, spent=0.42, suspicion=0.5, window=1.25, tier="normal"),
        "bob": Standing(queries=1, bits=20.0, spent=1.0, tier="deny"),
    }
    out = io.StringIO()
    Console(width=120, file=out).print(table(accounts(known)))
    bob, alice = [line.split() for line in out.getvalue().splitlines() if line.split()[:1] in (["alice"], ["bob"])]
    assert alice == [
        "alice",
        "2",
        "10",
        "0.25",
        "████░░░░░░",
        "42%",
        "0.000",
        "0.000",
        "0",
        "0.0%",
        "0.50",
        "1.25",
        "normal",
    ]
    assert bob == ["bob", "1", "20", "0", "██████████", "100%", "0.000", "0.000", "0", "0.0%", "0.00", "0.00", "deny"]
    for heading in ("rho", "budget spent", "suspicion", "window"):
        assert heading in out.getvalue()


def test_watching_goes_on(path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    looks: list[int] = []

    def standings() -> dict[str, Standing]:
        looks.append(1)
        return {"alice": Standing(queries=len(looks))}

    def interrupted(path: Path) -> list[dict[str, object]]:
        if len(looks) == 3:
            raise KeyboardInterrupt
        return ask_clients(path)

    monkeypatch.setattr("hardening_grpc.commands.clients.ask_clients", interrupted)
    with Control(path, standings):
        assert main(["clients", "--control", str(path), "--json", "--watch", "--every", "0.001"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [json.loads(line)["clients"][0]["queries"] for line in lines] == [1, 2, 3]
        looks.clear()
        assert main(["clients", "--control", str(path), "--watch", "--every", "0.001"]) == 0
        assert looks == [1, 1, 1]
        assert capsys.readouterr().out.count("clients: 1, queries:") == 3  # without a terminal: one table after another
