"""Run ONNX's own backend tests on ONNX Runtime, bare or through a hardened session whose outputs are all open.

``python backend_suite.py bare|hardened`` prints one JSON object: ``outcomes`` by test, each a verdict and what was
raised, and ``runs``, the number of answers that went through hardened sessions.
"""

from __future__ import annotations

import json
import sys
import unittest
import warnings
from typing import Any

import hardening_onnx
import onnx.backend.test
import onnxruntime
from onnxruntime.backend.backend import OnnxRuntimeBackend

from hardening import Output, Policy

runs = 0


class Hardened(OnnxRuntimeBackend):
    """The runtime's backend with every session replaced by a hardened one."""

    @classmethod
    def prepare(cls, model: Any, device: str | None = None, **kwargs: Any) -> Any:
        prepared = super().prepare(model, device, **kwargs)
        if isinstance(prepared._session, hardening_onnx.HardenedSession):
            return prepared
        policy = Policy({o.name: Output("open") for o in prepared._session.get_outputs()})
        return super().prepare(hardening_onnx.wrap(prepared._session, policy))


def count_runs() -> None:
    run = hardening_onnx.HardenedSession.run

    def counted(*args: Any, **kwargs: Any) -> Any:
        global runs
        answer = run(*args, **kwargs)
        runs += 1
        return answer

    hardening_onnx.HardenedSession.run = counted  # type: ignore[method-assign]


class Outcomes(unittest.TestResult):
    def __init__(self) -> None:
        super().__init__()
        self.of: dict[str, tuple[str, str]] = {}

    def addSuccess(self, test: Any) -> None:
        self.of[test.id()] = ("passed", "")

    def addFailure(self, test: Any, error: Any) -> None:
        self.of[test.id()] = ("failed", repr(error[1]))

    def addError(self, test: Any, error: Any) -> None:
        self.of[test.id()] = ("error", repr(error[1]))

    def addSkip(self, test: Any, reason: str) -> None:
        self.of[test.id()] = ("skipped", reason)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    onnxruntime.set_default_logger_severity(4)
    count_runs()
    backend = {"bare": OnnxRuntimeBackend, "hardened": Hardened}[sys.argv[1]]
    outcomes = Outcomes()
    onnx.backend.test.BackendTest(backend, "backend_suite").test_suite.run(outcomes)
    print(json.dumps({"outcomes": outcomes.of, "runs": runs}))
