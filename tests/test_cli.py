"""Commands as their user meets them: output, errors, exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hardening.cli import commands, main

POLICY = """schema = 1
[outputs.p]
space = "simplex"
tiers.normal = [ {kind = "types", n = 10} ]
tiers.label = [ {kind = "label_only"} ]
[outputs.q]
space = "logits"
tiers.normal = [ {kind = "clip", low = -5, high = 5}, {kind = "top_k", k = 1} ]
tiers.label = [ {kind = "label_only"} ]
"""


@pytest.fixture
def path(tmp_path: Path) -> str:
    (tmp_path / "policy.toml").write_text(POLICY)
    return str(tmp_path / "policy.toml")


def test_check(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", path]) == 0
    assert "valid; outputs p, q; tiers normal, label" in capsys.readouterr().out
    assert main(["check", path, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"valid": True, "outputs": ["p", "q"], "tiers": ["normal", "label"]}


def test_explain(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", path, "--classes", "10", "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert table["p"]["normal"]["bits_per_answer"] == pytest.approx(16.495, abs=1e-3)
    assert table["p"]["label"]["keeps_top1"] is True
    assert table["q"]["normal"]["program"] == [["clip", -5.0, 5.0], ["top_k", 1.0, 3.0, -6.0]]
    assert main(["explain", path]) == 0
    text = capsys.readouterr().out
    assert "unknown; give --classes or --model" in text
    assert "carries no more than its bits" in text


def test_mistakes(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path(path).write_text(POLICY.replace("n = 10", "m = 10"))
    assert main(["check", path]) == 2
    assert "hardening check: outputs.p.tiers.normal[0].m: unknown key; " in capsys.readouterr().err
    assert main(["explain", path + ".absent"]) == 2
    assert "cannot read the policy" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main(["nonsense"])
    assert stop.value.code == 2


@pytest.mark.parametrize("command", ["check", "explain"])
def test_help_has_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert f"example:\n  hardening {command} policy.toml" in capsys.readouterr().out


def test_commands_of_bindings_are_found_and_imported_only_when_called(capsys: pytest.CaptureFixture[str]) -> None:
    names = ("check", "clients", "credential", "demo", "explain", "init", "serve")
    assert set(names) <= set(commands())
    script = "import sys; from hardening.cli import commands, main; main(['check', '--help'])"
    loaded = subprocess.run(
        [sys.executable, "-c", f"import atexit, sys; atexit.register(lambda: print('LOADED', *sys.modules)); {script}"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.rpartition("LOADED")[2]
    assert "onnxruntime" not in loaded.split()
    assert "grpc" not in loaded.split()


def test_a_command_without_its_packages_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("hardening.cli.commands", lambda: {"absent": "hardening_absent.commands.absent"})
    assert main(["absent"]) == 2
    assert "pip install 'hardening[absent]'" in capsys.readouterr().err
