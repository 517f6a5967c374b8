"""`hardening check` and `hardening explain` with a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import hardening_onnx
import numpy as np
import pytest
from onnx import TensorProto as T

import hardening
from hardening.cli import main
from tests.onnx.graphs import HEAD, TAILS, WEIGHTS, build, node

CHECKED = """schema = 1
[outputs.p]
space = "{space}"
{more}
tiers.normal = [ {tier} ]
"""


def checked(model: Path, space: str = "simplex", more: str = "", tier: str = '{kind = "label_only"}') -> Path:
    policy = model.with_name("policy.toml")
    policy.write_text(CHECKED.format(space=space, more=more, tier=tier))
    return policy


def test_check_passes_and_lists_what_is_closed(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy = checked(model, more='label_output = "label"')
    assert main(["check", str(policy), "--model", str(model)]) == 0
    out = capsys.readouterr().out
    assert f"{model}: fits" in out
    assert "closed: z: logits" in out
    assert "closed: odd: " in out
    assert "warning" not in out
    assert main(["check", str(policy), "--model", str(model), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)["model"]
    assert (facts["fits"], facts["problems"], facts["warnings"]) == (True, [], [])
    assert set(facts["closed"]) == {"z", "odd"}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ({"more": 'label_output = "absent"'}, "has no output 'absent'"),
        ({"more": 'label_output = "z"'}, "'z' holds floats; labels are integers or strings"),
        ({"more": 'label_output = "label"\nclasses = [1, 2]'}, "names 2 classes, rows have 5 entries"),
        ({"more": 'label_output = "label"\nclasses = ["a", "b", "c", "d", "e"]'}, "must be integers"),
        ({"tier": '{kind = "top_k", k = 1, remainder = "other", other = 9}'}, "class 9 does not exist"),
        ({"space": "labels", "tier": ""}, "labels are released as they are, and this output holds floats"),
        ({"space": "scalar", "tier": '{kind = "round", decimals = 1}'}, "declared scalar, but it seems to be simplex"),
    ],
)
def test_check_finds(text: dict[str, str], problem: str, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(checked(model, **text)), "--model", str(model)]) == 1
    out = capsys.readouterr().out
    assert problem in out
    assert "does not fit" in out


def test_check_tells_a_simplex_from_logits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nodes, declared, _ = TAILS["logsoftmax"]
    proved = build([*HEAD, *nodes[:-1], node("LogSoftmax", "z", "p")], {"p": declared}, WEIGHTS)
    guessed = build([*HEAD, node("Identity", "z", "p")], {"p": declared}, WEIGHTS)
    (tmp_path / "m.onnx").write_bytes(proved.SerializeToString())
    policy = checked(tmp_path / "m.onnx")
    assert main(["check", str(policy), "--model", str(tmp_path / "m.onnx")]) == 1
    assert "problem: outputs.p.space: declared simplex, but it seems to be logits" in capsys.readouterr().out
    (tmp_path / "m.onnx").write_bytes(guessed.SerializeToString())
    assert main(["check", str(policy), "--model", str(tmp_path / "m.onnx")]) == 0
    assert "warning: outputs.p.space: declared simplex, but it seems to be logits (a guess)" in capsys.readouterr().out


def test_check_misses_outputs_and_files(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy = checked(model)
    policy.write_text(policy.read_text().replace("outputs.p", "outputs.scores"))
    assert main(["check", str(policy), "--model", str(model)]) == 1
    assert 'the model has no such output; it has "p", "z", "label", "odd"' in capsys.readouterr().out
    assert main(["check", str(policy), "--model", str(model) + ".absent"]) == 2
    assert "cannot read" in capsys.readouterr().err


def test_explain_reads_widths_from_the_model(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", str(checked(model)), "--model", str(model), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)["outputs"]
    assert facts["p"]["normal"]["bits_per_answer"] == pytest.approx(np.log2(5))


def test_explain_says_where_the_policy_does_not_fit(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy = checked(model)
    policy.write_text(policy.read_text().replace("[outputs.", "[outputs.un"))
    assert main(["explain", str(policy), "--model", str(model)]) == 1
    said = capsys.readouterr()
    assert "problem: outputs.un" in said.err
    assert "label_only" in said.out


def test_noise_that_cannot_be_fitted_to_the_model_is_a_problem(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy = checked(model, tier='{kind = "laplace", epsilon = 0.005, sensitivity = 0.1}, {kind = "project"}')
    policy.write_text(policy.read_text().replace("schema = 1", 'schema = 1\n[key]\nsource = "env:KEY"'))
    assert main(["check", str(policy), "--model", str(model), "--no-files"]) == 1
    problem = "outputs.p.tiers.normal[0]: epsilon: too small for rows of 5 entries"
    assert problem in capsys.readouterr().out
    assert main(["explain", str(policy), "--model", str(model)]) == 1
    said = capsys.readouterr()
    assert problem in said.err
    assert "Laplace(scale fitted to the width, sensitivity=0.1)" in said.out


def test_check_without_the_extra_says_what_to_install(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def absent(_: Any) -> Any:
        raise ModuleNotFoundError("No module named 'onnx'", name="onnx")

    monkeypatch.setattr("importlib.metadata.EntryPoint.load", absent)
    assert main(["check", str(checked(model)), "--model", str(model)]) == 2
    assert "--model needs the package 'onnx': pip install 'hardening[onnx]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("absent", "detect.near.input: the model has no input {!r}; it takes"),
        ("words", "detect.near.input: {!r} "),
        ("shared", "detect.near.input: {!r} is one for all rows: an input with a row for each is needed"),
        ("x", None),
        ("ids", None),
        ("flags", None),
    ],
)
def test_near_duplicates_need_an_input_of_numbers(
    name: str, said: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the command and by `wrap`; what is one for all rows, the session alone knows."""
    inputs = {
        "x": (T.FLOAT, ["N", 8]),
        "ids": (T.INT64, ["N", 3]),
        "flags": (T.BOOL, ["N"]),
        "words": (T.STRING, ["N"]),
        "shared": (T.FLOAT, [4]),
    }
    model = tmp_path / "m.onnx"
    built = build([*HEAD, node("Softmax", "z", "p")], {"p": TAILS["softmax"][1]}, WEIGHTS, inputs)
    model.write_bytes(built.SerializeToString())
    policy = checked(model)
    policy.write_text(f'{policy.read_text()}[detect]\nnear = {{input = "{name}", span = 1.0}}\n')
    fits = main(["check", str(policy), "--model", str(model)]) == 0
    out = capsys.readouterr().out.replace('"', "'")
    assert fits == (said is None or name == "shared")
    if said is None:
        hardening_onnx.wrap(str(model), hardening.load_policy(policy)).guard.close()
        return
    with pytest.raises(hardening.ConfigError) as caught:
        hardening_onnx.wrap(str(model), hardening.load_policy(policy))
    assert said.format(name) in str(caught.value)
    assert fits or said.format(name) in out
