"""The operator's socket: private, replaced when stale, never taken from a live server; and the table it fills."""

from __future__ import annotations

import io
import json
import math
import socket
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hardening_grpc.commands.clients import Accounts, suspects
from hardening_grpc.control import Control, accounts, ask_clients, ask_groups
from rich.console import Console

import hardening
from hardening.cli import main
from hardening.config import Output, Policy
from hardening.errors import ConfigError, HardeningError
from hardening.ledger import Budget
from hardening.testing import RecordingSink
from hardening.transforms import Types
from hardening.types import Alarm, Standing

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


def shown(standings: dict[str, Standing], width: int) -> str:
    out = io.StringIO()
    Console(width=width, file=out).print(Accounts(accounts(standings)))
    return out.getvalue()


ALARM = Alarm(
    "400 that appeared from 300 on", 400, ("[bold]sybil-1", "sybil-2", "sybil-3", "sybil-4"), 4000, 1529.4,
    (("high", 0.85, 0.259), ("collapse", 0.316, 0.149)), 0.03, 0.48, 100.0,
)  # fmt: skip


def test_groups_that_are_suspected(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Control(path, lambda: STANDINGS, alarms=lambda: (ALARM, ALARM._replace(evidence=float("inf"), members=5))):
        assert ask_groups(path)[0] == json.loads(json.dumps(ALARM._asdict()))
        assert main(["clients", "--control", str(path), "--json"]) == 0
        said = json.loads(capsys.readouterr().out)
        assert said == {"clients": json.loads(json.dumps(accounts(STANDINGS))), "groups": ask_groups(path)}
        assert said["groups"][1]["evidence"] is None
        assert main(["clients", "--control", str(path)]) == 0
        shown = capsys.readouterr().out
        assert shown.index("clients: 3") < shown.index("suspected together: 2")
    with Control(path, lambda: STANDINGS):
        assert ask_groups(path) == []
        assert main(["clients", "--control", str(path)]) == 0
        assert "suspected" not in capsys.readouterr().out


@pytest.mark.parametrize("width", [80, 140])
def test_the_table_of_groups(width: int) -> None:
    out = io.StringIO()
    Console(width=width, file=out).print(suspects(json.loads(json.dumps([ALARM._asdict()]))))
    said = " ".join(out.getvalue().split())
    for part in ("400", "4,000", "1,529", "0.03", "[bold]", "sybil-2"):
        assert part in said
    if width > 80:
        assert "high 0.85 > 0.26, collapse 0.32 > 0.15" in said
        assert "[bold]sybil-1, sybil-2, sybil-3, ..." in said


@pytest.mark.parametrize("width", [80, 120])
def test_the_table(width: int) -> None:
    text = shown(STANDINGS, width)
    rows = [line.split() for line in text.splitlines()]
    assert ["alice", "1,200", "40", "normal", "1.250", "0.500", "0", "12.5%"] in rows
    assert ["[bold]bob", "7", "unbounded", "label", "0.000", "0.000", "12", "0.0%"] in rows
    assert "posterior" in text


KNOWN = {
    "alice": Standing(queries=2, bits=10.0, rho=0.25, spent=0.42, suspicion=0.5, window=2.5, tier="normal"),
    "bob": Standing(queries=1, bits=20.0, spent=0.999, suspicion=1.25, tier="deny"),
    "c" * 64: Standing(spent=1.0, suspicion=math.inf, tier="deny"),
}


def test_columns_that_say_something_are_shown() -> None:
    text = shown(KNOWN, 140)
    bob, alice = [line.split() for line in text.splitlines() if line.split()[:1] in (["alice"], ["bob"])]
    known = ["alice", "2", "10", "0.25", "████░░░░░░", "42%", "normal", "0.50", "2.50", "0.000", "0.000", "0", "0.0%"]
    assert alice == known
    # Not all of a budget is spent before all of it is.
    assert bob == ["bob", "1", "20", "0", "██████████", "99%", "deny", "1.25", "0.00", "0.000", "0.000", "0", "0.0%"]
    assert "clients: 3, queries: 3, suspected: 2" in text
    assert "unbounded" in text
    assert text.count("c" * 16) == 3  # a long name goes on in the next line
    for heading in ("rho", "budget spent", "suspicion", "window"):
        assert heading in text


@pytest.mark.parametrize("width", [70, 80, 90, 100, 110, 120])
def test_what_does_not_fit_is_left_out_as_a_whole(width: int) -> None:
    text = shown({name: known for name, known in KNOWN.items() if len(name) < 10}, width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    (bob,) = [line.split() for line in text.splitlines() if line.split()[:1] == ["bob"]]
    assert bob[:8] == ["bob", "1", "20", "0", "██████████", "99%", "deny", "1.25"]
    assert ("0.0%" in bob) == (width >= 120)


def test_nobody_has_asked_yet() -> None:
    text = shown({}, 80)
    assert "clients: 0, queries: 0" in text
    assert "suspicion" not in text


def test_a_table_that_is_full(path: Path, tmp_path: Path) -> None:
    """As many clients as a guard tells apart, by books in memory."""
    tiers = {"normal": (Types(n=100),)}
    rules = Policy({"p": Output("simplex", tiers)}, budgets={"credential": Budget(bits=100.0)}, root=tmp_path)
    scores = {"p": np.array([[0.1, 0.2, 0.3, 0.4]], "f4")}
    with hardening.Guard(rules, sink=RecordingSink()) as guard, Control(path, guard.clients):
        capacity = guard._clients.pooled
        for i in range(capacity):
            guard.harden(scores, client=f"client {i}")
        guard.harden(scores, client="client 7")
        rows = ask_clients(path)
    assert len(rows) == capacity
    assert rows[0]["client"] == "client 7"
    assert rows[0]["spent"] == pytest.approx(2 * np.log2(176851) / 100)
    assert {row["spent"] for row in rows[1:]} == {rows[0]["spent"] / 2}


def test_books_that_cannot_be_had_are_told_of() -> None:
    out = io.StringIO()
    Console(width=120, file=out).print(Accounts(accounts({"alice": Standing(queries=2, bits=10.0, stale=True)})))
    assert "The books cannot be had: what follows is what the server counted itself" in " ".join(out.getvalue().split())
    out = io.StringIO()
    Console(width=120, file=out).print(Accounts(accounts(STANDINGS)))
    assert "books" not in out.getvalue()


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
