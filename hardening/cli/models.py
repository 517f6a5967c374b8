"""The checker that reads model files: found under the entry-point group `GROUP`, so that the core needs no runtime."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

from hardening.config import Policy
from hardening.errors import ModelError
from hardening.types import ModelReport

GROUP = "hardening.models"


def examine(policy: Policy, model: str) -> ModelReport:
    """How `policy` fits the file `model`. Raises ModelError if it cannot be read or nothing here reads such files."""
    kind = Path(model).suffix.removeprefix(".") or "onnx"
    points = {point.name: point for point in metadata.entry_points(group=GROUP)}
    point = points.get(kind, points.get("onnx"))
    if point is None:
        raise ModelError("--model: nothing that reads models is installed: pip install 'hardening[onnx]'")
    try:
        check = point.load()
    except ImportError as problem:
        raise ModelError(f"--model needs the package {problem.name!r}: pip install 'hardening[{point.name}]'") from None
    report: ModelReport = check(policy, model)
    return report
