"""Commands as their user meets them: output, errors, exit codes."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import hardening
from hardening.cli import commands, main
from hardening.cli.progress import say_if_kernels_are_compiled

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
    facts = {"valid": True, "outputs": ["p", "q"], "tiers": ["normal", "label"], "warnings": [], "problems": []}
    assert json.loads(capsys.readouterr().out) == facts


def test_explain(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", path, "--classes", "10", "--json"]) == 0
    table = json.loads(capsys.readouterr().out)["outputs"]
    assert table["p"]["normal"]["bits_per_answer"] == pytest.approx(16.495, abs=1e-3)
    assert table["p"]["label"]["keeps_top1"] is True
    assert table["q"]["normal"]["program"] == [["scores.clip", -5.0, 5.0], ["classes.top_k", 1.0, 3.0, -6.0]]
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
    assert main(["check", str(Path(path).parent)]) == 2
    assert capsys.readouterr().err.endswith(f"cannot read the policy {str(Path(path).parent)!r}: Is a directory\n")
    Path(path).write_bytes(b"\xff\xfe")
    assert main(["check", path]) == 2
    assert "it is not text in UTF-8" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main(["nonsense"])
    assert stop.value.code == 2


@pytest.mark.parametrize("command", commands())
def test_help(command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert f"example:\n  hardening {command}" in text
    assert "--json" in text
    assert "exit codes:\n  0  all is well\n" in text
    assert "\n  2  a wrong policy, file or option" in text
    described = text.partition("positional arguments")[0].partition("options:")[0]
    assert max(map(len, described.splitlines())) <= 80


def test_all_commands_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for name, module in commands().items():
        summary = (importlib.import_module(module).__doc__ or "").splitlines()[0]
        assert f" {name} {summary}" in text
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert (stop.value.code, capsys.readouterr().out) == (0, f"hardening {hardening.__version__}\n")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["explain", "p", "--classes", "0"], "--classes: must be a whole number from 1 to 2147483647, not '0'"),
        (["explain", "p", "--classes", "ten"], "--classes: must be a whole number from 1"),
        (["clients", "--control", "c", "--every", "-1"], "--every: must be a number of seconds from 0.001 to 86400"),
        (["clients", "--control", "c", "--every", "nan"], "--every: must be a number of seconds"),
        (["serve", "m", "--policy", "p", "--grace", "-1"], "--grace: must be a number of seconds from 0"),
        (["serve", "m", "--policy", "p", "--port", "x"], "--port: must be a whole number from 0 to 65535, not 'x'"),
    ],
)
def test_numbers_that_make_no_sense(arguments: list[str], problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert problem in capsys.readouterr().err


def test_explain_fits_a_terminal(
    path: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["explain", path]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_output_that_nobody_reads_is_no_traceback(path: str) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "hardening", "explain", path]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


def test_who_waits_for_kernels_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("hardening.cli.progress.cache_directory", lambda: tmp_path)
    say_if_kernels_are_compiled()
    assert f"compiling kernels, about ten seconds, this once: they are kept in '{tmp_path}'" in capsys.readouterr().err
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "kernel.nbi").touch()
    say_if_kernels_are_compiled()
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("hardening.cli.progress.cache_directory", lambda: None)
    say_if_kernels_are_compiled()
    assert "is not kept: no private directory can be written" in capsys.readouterr().err


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


BUDGETS = """
[clients]
identity = ["credential", "organisation"]
[budgets.credential]
bits = 2e6
queries = { per = "1h", max = 5000 }
on_exhausted = "label"
[budgets.organisation]
bits = 1e7
[budgets.model]
bits = 1e9
[respond]
suspicion = [ {at = 1, tier = "normal", throttle = {per = "1m", max = 10}}, {at = 2, deny = true} ]
shadow = true
"""


def test_budgets_are_explained_and_books_in_memory_are_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(POLICY + BUDGETS)
    assert main(["explain", str(path), "--classes", "4"]) == 0
    said = capsys.readouterr().out.partition("\nbudgets\n")[2].splitlines()
    # One answer of both outputs carries log2 286 and 34 bits by 'normal', by 'label' 2 each.
    assert said == [
        "    credential   each credential: 2,000,000 bits over their life (0.2 % of the model's, whole answers: "
        "47,438 by 'normal' or 500,000 by 'label'), 5,000 rows in 1h; then answered by 'label', while that can be paid "
        "for",
        "    organisation each organisation: 10,000,000 bits over their life (1 % of the model's, whole answers: "
        "237,192 by 'normal'); then refused",
        "    model        all who ask this model: 1,000,000,000 bits over their life (whole answers: 23,719,237 by "
        "'normal'); then refused",
        "    ledger       memory, gone with the process",
        "alarms",
        "    baseline     none; uncalibrated: nobody is ever suspected",
        "    at 1         never reached: answered by 'normal', throttled to 10 rows in 1m",
        "    at 2         never reached: refused",
    ]
    assert main(["check", str(path)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert "warning: ledger.url: budgets are kept in memory: they begin anew with every process" in said
    assert any(line.startswith("warning: detect.baseline: without one nobody is suspected") for line in said)
    calibrated = '[ledger]\nurl = "sqlite:///books.db"\n[detect]\nbaseline = "baseline.json"\n'
    path.write_text(POLICY + BUDGETS + calibrated)
    assert main(["check", str(path), "--no-files"]) == 0
    assert "warning" not in capsys.readouterr().out
    path.write_text(POLICY)
    assert main(["explain", str(path), "--classes", "4"]) == 0
    assert "ledger" not in capsys.readouterr().out
