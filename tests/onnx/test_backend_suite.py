"""ONNX's backend tests have the same outcome, test by test, with and without a hardened session in between."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

SUITE = Path(__file__).with_name("backend_suite.py")


def outcomes(which: str, home: Path) -> dict[str, Any]:
    """In a process of its own: the suite makes its tests on import and looks for models under the home folder."""
    environment = os.environ | {"ONNX_HOME": str(home), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, str(SUITE), which], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_outcomes_are_identical(tmp_path: Path) -> None:
    with ThreadPoolExecutor() as pool:
        bare, hardened = pool.map(lambda which: outcomes(which, tmp_path / which), ("bare", "hardened"))
    verdicts = Counter(verdict for verdict, _ in bare["outcomes"].values())
    assert len(bare["outcomes"]) > 3000
    assert verdicts["passed"] > 1200
    assert bare["runs"] == 0
    assert hardened["runs"] >= verdicts["passed"]
    differing = {
        name: (outcome, hardened["outcomes"].get(name))
        for name, outcome in bare["outcomes"].items()
        if hardened["outcomes"].get(name) != outcome
    }
    assert differing == {}
    assert hardened["outcomes"].keys() == bare["outcomes"].keys()
