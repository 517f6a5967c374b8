"""The README's snippets run as printed."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from hardening.config import parse_policy
from tests.clients.test_baseline import lines
from tests.keys import fixed_key

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def snippets(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.S)


COMMANDS = [line for block in snippets("sh") for line in block.splitlines() if not line.startswith("make ")]


def model() -> bytes:
    weights = numpy_helper.from_array(np.eye(8, 4, dtype="f4"), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["z"]), helper.make_node("Softmax", ["z"], ["p"])],
        "readme",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 8])],
        [helper.make_tensor_value_info("p", TensorProto.FLOAT, ["N", 4])],
        [weights],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(made.SerializeToString())


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    fixed_key(tmp_path)
    (tmp_path / "policy.toml").write_text(snippets("toml")[0])
    (tmp_path / "model.onnx").write_bytes(model())
    (tmp_path / "benign.jsonl").write_text("\n".join(lines(80, 80)) + "\n")
    return tmp_path


def test_python_runs_as_printed(folder: Path) -> None:
    names: dict[str, Any] = {"x": np.ones((2, 8), np.float32)}
    for snippet in snippets("python"):
        exec(compile(snippet, "README.md", "exec"), names)
    assert names["scores"].shape == (2, 4)
    assert names["session"].guard.standing("alice").queries == 2
    assert names["hardened"].shape == (2, 4)


def test_policies_are_valid() -> None:
    whole, *parts = snippets("toml")
    assert parts
    for part in parts:
        parse_policy(f"{whole}\n{part}")


def command(line: str) -> list[str]:
    program, *arguments = shlex.split(line)
    assert program == "hardening"
    return [sys.executable, "-m", "hardening", *arguments]


def test_commands_run_as_printed(folder: Path) -> None:
    serving = [line for line in COMMANDS if line.startswith("hardening serve")]
    asking = [line for line in COMMANDS if line.startswith("hardening clients")]
    assert len(serving) == 1
    assert [line.split()[2] for line in asking] == ["--control", "grant"]
    for line in COMMANDS:
        if line not in (*serving, *asking):
            done = subprocess.run(command(line), capture_output=True, text=True)
            assert done.returncode == 0, f"{line}: {done.stderr}"
            assert done.stdout
    with (folder / "policy.toml").open("a") as policy:  # what is served has budgets, for there to be something to grant
        policy.write(next(part for part in snippets("toml") if "[budgets." in part))
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        [*command(serving[0]), "--port", "0"], stdout=subprocess.PIPE, text=True, env=environment
    ) as server:
        try:
            assert server.stdout is not None
            assert "serving model 'model'" in server.stdout.readline()
            for line in asking:
                shown = subprocess.run(command(line), capture_output=True, text=True)
                assert shown.returncode == 0, shown.stderr
                assert shown.stdout
        finally:
            server.terminate()
        assert server.wait(60) == 0


def test_targets_exist() -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.M)
    named = {word for word in re.findall(r"make ([a-z-]+)", README) if word in ("demo", "test", "bench", "bench-short")}
    assert named == {"demo", "test", "bench", "bench-short"}
    assert named <= set(targets)


def test_every_transform_is_listed() -> None:
    from hardening.transforms import TRANSFORMS

    table = README.split("## What a policy can say")[1].split("##")[0]
    for kind in TRANSFORMS:
        assert f"`{kind}`" in table
