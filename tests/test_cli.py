"""Commands as their user meets them: output, errors, exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hardening.cli import main

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
    assert "unknown; give --classes" in text
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
    assert f"example: hardening {command} policy.toml" in capsys.readouterr().out
