"""ONNX Runtime's telemetry is off, by what the process does and not by the variable alone.

ONNX Runtime 1.32 for Linux carries a telemetry client that, when onnxruntime is imported, makes a device identifier and
an SQLite store under ``~/.cache/Microsoft``, queues one event about the machine and tries to send it some seconds
later, or at the next start. It stays quiet under ``CI`` and its like, so every process here gets a bare environment.

Shown: a bare import makes that store (so the observation can see telemetry), an import of `hardening_onnx` makes
nothing, holds no such file and no socket. Not shown: that no code path inside the library could ever send something;
and a runtime without a store would need another observation, so there the tests skip.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

REPORT = """
import os, sys
held = []
for name in os.listdir("/proc/self/fd"):
    try:
        held.append(os.readlink(f"/proc/self/fd/{name}"))
    except OSError:
        pass
print("HELD", [h for h in held if h.startswith("socket:") or "Microsoft" in h])
"""
RUN = """
import numpy as np, onnxruntime
from onnx import TensorProto, helper
info = helper.make_tensor_value_info
graph = helper.make_graph([helper.make_node("Softmax", ["x"], ["p"])], "g", [info("x", TensorProto.FLOAT, ["N", 3])],
                          [info("p", TensorProto.FLOAT, ["N", 3])])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()
session = onnxruntime.InferenceSession(model)
session.run(None, {"x": np.zeros((1, 3), np.float32)})
"""

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="reads /proc")


def process(script: str, home: Path) -> subprocess.CompletedProcess[str]:
    """With nothing in its environment that switches telemetry off; a proxy that nobody serves keeps it from getting out
    should it be on."""
    home.mkdir()
    environment = {
        "HOME": str(home),
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "https_proxy": "http://127.0.0.1:9",
    }
    return subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)


def traces(home: Path) -> list[str]:
    return sorted(str(p.relative_to(home)) for p in home.rglob("*") if p.is_file() and "Microsoft" in str(p))


def events(home: Path) -> int:
    (store,) = home.rglob("onnxruntime.db")
    with contextlib.closing(sqlite3.connect(store)) as connection:
        return int(connection.execute("SELECT count(*) FROM events").fetchone()[0])


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home folder after a process that used onnxruntime alone: what telemetry looks like when it is on."""
    home = tmp_path_factory.mktemp("telemetry") / "bare"
    done = process("import onnxruntime\n" + RUN + REPORT, home)
    if not traces(home):
        pytest.skip("this build of ONNX Runtime keeps no telemetry store")
    assert "Microsoft" in done.stdout
    assert events(home) >= 1
    return home


@pytest.mark.usefixtures("bare")
def test_importing_hardening_onnx_leaves_no_trace(tmp_path: Path) -> None:
    done = process("import hardening_onnx\n" + RUN + REPORT, tmp_path / "ours")
    assert done.stdout.splitlines() == ["HELD []"]
    assert done.stderr == ""
    assert traces(tmp_path / "ours") == []


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize("command", ["import hardening.cli; hardening.cli.main(['init', '--help'])"])
def test_commands_leave_no_trace(command: str, tmp_path: Path) -> None:
    script = f"try:\n    {command}\nexcept SystemExit: pass\nimport sys; assert 'onnxruntime' in sys.modules\n"
    process(script + REPORT, tmp_path / "ours")
    assert traces(tmp_path / "ours") == []


def test_an_onnxruntime_that_was_imported_first_is_silenced_and_the_operator_told(bare: Path, tmp_path: Path) -> None:
    """It has queued its first event by then, and nothing takes that back: no more than that one is queued, and it is
    said. That the runtime's own switch is thrown is seen by watching it, for it leaves nothing to observe."""
    script = (
        "import onnxruntime\n"
        "throw = onnxruntime.disable_telemetry_events\n"
        "onnxruntime.disable_telemetry_events = lambda: (throw(), print('THROWN'))\n"
        "import hardening_onnx\n"
    )
    done = process(script + RUN, tmp_path / "late")
    assert done.stdout.splitlines() == ["THROWN"]
    assert "onnxruntime was imported before hardening_onnx" in done.stderr
    assert "set ORT_DISABLE_TELEMETRY=1" in done.stderr
    assert events(tmp_path / "late") <= events(bare)


@pytest.mark.usefixtures("bare")
def test_the_variable_set_by_the_caller_works_in_either_order(tmp_path: Path) -> None:
    script = "import os; os.environ['ORT_DISABLE_TELEMETRY'] = '1'\nimport onnxruntime, hardening_onnx\n"
    done = process(script + RUN + REPORT, tmp_path / "told")
    assert (done.stdout.splitlines(), done.stderr) == (["HELD []"], "")
    assert traces(tmp_path / "told") == []
