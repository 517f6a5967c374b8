"""Fresh processes: importing, and the time to the first answer, with kernels compiled already and not yet."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import variants
from benchmarks.gate import Race
from benchmarks.models import mlp

#: Each runs the same model once, on the same question.
FEED = '{"x": numpy.ones((1, 64), "f4")}'
BARE = f"import numpy, onnxruntime; onnxruntime.InferenceSession('model.onnx').run(None, {FEED})"
HARDENED = (
    "import numpy, hardening, hardening_onnx; "
    f"hardening_onnx.wrap('model.onnx', hardening.load_policy('full.toml')).run(None, {FEED})"
)


class Fresh:
    """Runs statements in new processes, in a folder with a model and a policy."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._caches = folder, 0
        (folder / "model.onnx").write_bytes(mlp().data)
        variants.policy_file(folder, "full", "p")

    def run(self, statements: str, cache: str = "warm") -> None:
        """Raises CalledProcessError if they fail. `cache` is where compiled kernels are kept, in the folder."""
        environment = os.environ | {"HARDENING_CACHE": str(self._folder / cache)}
        subprocess.run([sys.executable, "-c", statements], cwd=self._folder, env=environment, check=True)

    def cold(self, statements: str) -> None:
        """With a cache that nothing was ever written to."""
        self._caches += 1
        self.run(statements, f"cold-{self._caches}")


@pytest.fixture
def process(tmp_path: Path) -> Fresh:
    return Fresh(tmp_path)


def test_import(race: Race, process: Fresh) -> None:
    race(
        {
            "import numpy": lambda _: process.run("import numpy"),
            "import hardening": lambda _: process.run("import hardening"),
        },
        lambda _: None,
    )


def test_start_warm(race: Race, process: Fresh) -> None:
    race({"bare": lambda _: process.run(BARE), "hardened": lambda _: process.run(HARDENED)}, lambda _: None)


@pytest.mark.deep
def test_start_cold(race: Race, process: Fresh) -> None:
    race(
        {"bare": lambda _: process.run(BARE), "hardened, cold": lambda _: process.cold(HARDENED)},
        lambda _: None,
        rounds=8,
    )
