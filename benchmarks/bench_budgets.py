"""A hardened call whose client has budgets in a ledger against one whose client has none: fresh questions."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import hardening_onnx
import numpy as np
import pytest

from benchmarks import variants
from benchmarks.gate import Race
from benchmarks.models import MODELS
from hardening.ledger import Budget, LedgerRules, Window

#: Whose bits are counted, and whose rows as well.
BUDGETS = {"credential": Budget(bits=4e9, queries=Window("1h", 10**9)), "model": Budget(bits=4e9)}


@pytest.mark.parametrize("rows", [pytest.param(1, id="budgets-1"), pytest.param(64, id="budgets-64")])
def test_budgets(rows: int, race: Race, tmp_path: Path) -> None:
    subject = MODELS["mlp"]()
    source, output = subject.source
    free = variants.load(tmp_path, "full", output)
    charged = dataclasses.replace(free, budgets=BUDGETS, ledger=LedgerRules("sqlite:///books.db"))
    bare = subject.session()
    hardened, counted = hardening_onnx.wrap(bare, free), hardening_onnx.wrap(bare, charged)

    def fresh(rng: np.random.Generator) -> dict[str, Any]:
        return {source: subject.inputs(rng, rows)}

    try:
        race(
            {
                "session.run": lambda q: bare.run(None, q),
                "hardened": lambda q: hardened.run(None, q, client="bench"),
                "budgets": lambda q: counted.run(None, q, client="bench"),
            },
            fresh,
        )
    finally:
        counted.guard.close()
