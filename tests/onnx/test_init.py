"""What `hardening init` writes, and where."""

from __future__ import annotations

import json
import os
from pathlib import Path

import hardening_onnx
import numpy as np
import pytest
from hardening_onnx.graph import quoted, read

import hardening
from hardening.cli import main
from hardening.errors import ModelError
from tests.keys import fixed_key
from tests.onnx.graphs import HEAD, ONE, TAILS, WEIGHTS, build, floats, node, weight


def test_one_view_of_a_row_is_opened_with_its_label(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy = model.with_name("p.toml")
    assert main(["init", str(model), "-o", str(policy), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["policy"] == str(policy)
    assert {n: (o["kind"], o["open"]) for n, o in report["outputs"].items()} == {
        "p": ("simplex", True),
        "z": ("logits", False),
        "label": ("labels", True),
        "odd": ("unknown", False),
    }
    assert report["outputs"]["p"]["label_output"] == "label"
    assert report["outputs"]["label"]["label_of"] == "p"
    assert "second view" in report["outputs"]["z"]["reason_closed"]
    loaded = hardening.load_policy(policy)
    assert loaded.tiers == ("normal", "suspect", "label")
    session = hardening_onnx.wrap(model, loaded)
    p, label = session.run(None, {"x": weight(6, 8)})
    assert np.array_equal(p.argmax(axis=1), label)
    for name in ("z", "odd"):
        with pytest.raises(hardening.InputError, match="not released"):
            session.run([name], {"x": weight(6, 8)})


def test_every_line_is_explained(model: Path) -> None:
    policy = model.with_name("p.toml")
    main(["init", str(model), "-o", str(policy)])
    lines = policy.read_text().splitlines()
    for before, line in zip(["", *lines], lines, strict=False):
        closes = line in ("", "]") or line.startswith(("#", "[outputs."))
        assert closes or "#" in line or before.startswith("#"), line
        assert len(line) <= 140


@pytest.mark.parametrize("tail", ["logsoftmax", "nothing after it", "sigmoid", "tanh", "of length one", "labels"])
def test_every_kind_of_policy_loads_wraps_and_answers(tail: str, tmp_path: Path) -> None:
    fixed_key(tmp_path)
    nodes, declared, kind = TAILS[tail]
    (tmp_path / "m.onnx").write_bytes(build([*HEAD, *nodes], {"y": declared}, WEIGHTS | ONE).SerializeToString())
    assert main(["init", str(tmp_path / "m.onnx"), "-o", str(tmp_path / "p.toml")]) == 0
    policy = hardening.load_policy(tmp_path / "p.toml")
    assert policy.outputs["y"].space == kind
    session = hardening_onnx.wrap(tmp_path / "m.onnx", policy)
    (ours,) = session.run(None, {"x": weight(40, 8)})
    (bare,) = hardening_onnx.wrap(tmp_path / "m.onnx", hardening.Policy({"y": hardening.Output("open")})).run(
        None, {"x": weight(40, 8)}
    )
    assert (ours.shape, ours.dtype) == (bare.shape, bare.dtype)
    assert (kind == "labels") == np.array_equal(ours, bare)
    if kind == "logits":
        assert np.mean(ours.argmax(axis=1) == bare.argmax(axis=1)) > 0.8


def test_nothing_recognised_is_written_closed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nodes, declared, _ = TAILS["exp alone"]
    (tmp_path / "m.onnx").write_bytes(build([*HEAD, *nodes], {"y": declared}, WEIGHTS).SerializeToString())
    policy = tmp_path / "p.toml"
    assert main(["init", str(tmp_path / "m.onnx"), "-o", str(policy)]) == 1
    assert "every output commented out" in capsys.readouterr().out
    assert "# You decide: " in policy.read_text()
    with pytest.raises(hardening.ConfigError, match="name at least one output"):
        hardening.load_policy(policy)
    with pytest.raises(SystemExit):
        main(["init", "--help"])
    assert "exit code is 1" in " ".join(capsys.readouterr().out.split())


def test_files_are_written_whole_and_never_over_another(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy = model.with_name("p.toml")
    policy.write_text("mine")
    assert main(["init", str(model), "-o", str(policy)]) == 2
    assert "exists: --force overwrites it" in capsys.readouterr().err
    assert policy.read_text() == "mine"
    assert main(["init", str(model), "-o", str(policy), "--force"]) == 0
    assert policy.read_text().startswith("# What this model may reveal")
    assert sorted(os.listdir(model.parent)) == ["m.onnx", "p.toml"]
    assert main(["init", str(model), "-o", str(model.parent / "absent" / "p.toml")]) == 2
    assert "cannot write" in capsys.readouterr().err
    assert main(["init", str(model), "-o", "-"]) == 0
    printed = capsys.readouterr()
    assert printed.out == policy.read_text()
    assert '"p": simplex' in printed.err
    assert main(["init", str(model), "-o", "-", "--json"]) == 2


def test_models_that_cannot_be_read(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = model.read_bytes()
    broken = {"truncated": whole[: len(whole) // 2], "random": bytes(range(256)), "empty": b"", "text": b"not a model"}
    for name, data in broken.items():
        (model.parent / name).write_bytes(data)
        with pytest.raises(ModelError, match=f"{name}.* is not a"):
            read(model.parent / name)
    with pytest.raises(ModelError, match="cannot read"):
        read(model.parent / "absent")
    assert main(["init", str(model.parent / "truncated"), "-o", str(model.parent / "p.toml")]) == 2
    assert "is not a whole ONNX model" in capsys.readouterr().err
    assert not (model.parent / "p.toml").exists()


HOSTILE = 'y"]\nspace = "open"\n[outputs.z]\x1b[2J\u202e\x7f'


def test_names_from_a_stranger_change_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nodes = [*HEAD, node("Softmax", "z", "y"), node("Exp", "z", "odd")]
    nodes[-2].output[0], nodes[-1].output[0] = HOSTILE, HOSTILE + "2"
    outputs = {HOSTILE: floats("N", 5), HOSTILE + "2": floats("N", 5)}
    (tmp_path / "m.onnx").write_bytes(build(nodes, outputs, WEIGHTS).SerializeToString())
    assert main(["init", str(tmp_path / "m.onnx"), "-o", str(tmp_path / "p.toml")]) == 0
    assert "\x1b" not in capsys.readouterr().out
    policy = hardening.load_policy(tmp_path / "p.toml")
    assert {n: o.space for n, o in policy.outputs.items()} == {HOSTILE: "simplex"}
    assert quoted("a\nb") == '"a\\u000Ab"'


@pytest.mark.parametrize(("low", "high"), [(-1e-5, 1e-5), (0.0, 1.0), (-7.25, 3e4), (1e6, 1e9)])
def test_ranges_of_every_size(low: float, high: float, tmp_path: Path) -> None:
    fixed_key(tmp_path)
    nodes = [node("MatMul", "x w", "m"), node("Clip", "m low high", "y")]
    bounds = {"w": weight(8, 1), "low": np.array(low, "f4"), "high": np.array(high, "f4")}
    (tmp_path / "m.onnx").write_bytes(build(nodes, {"y": floats("N", 1)}, bounds).SerializeToString())
    assert main(["init", str(tmp_path / "m.onnx"), "-o", str(tmp_path / "p.toml")]) == 0
    session = hardening_onnx.wrap(tmp_path / "m.onnx", hardening.load_policy(tmp_path / "p.toml"))
    (y,) = session.run(None, {"x": weight(50, 8) * np.float32(high)})
    span = np.float32(high) - np.float32(low)
    assert y.min() >= low - 0.01 * span
    assert y.max() <= high + 0.01 * span
    assert len(np.unique(y)) > 5
