"""A hardened call against the bare call it replaces: the same feeds, the same outputs, one client."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import hardening_onnx
import numpy as np
import pytest

import hardening
from benchmarks import variants
from benchmarks.gate import Race
from benchmarks.models import MODELS

CASES = [
    pytest.param(
        model,
        rows,
        policy,
        id=f"{model}-{rows}-{policy}",
        marks=[pytest.mark.deep] if (model, rows) == ("magika", 64) else [],
    )
    for model in MODELS
    for rows in (1, 64)
    for policy in variants.POLICIES
]


@pytest.mark.parametrize(("model", "rows", "policy"), CASES)
def test_call(model: str, rows: int, policy: str, race: Race, tmp_path: Path) -> None:
    subject = MODELS[model]()
    source, output = subject.source
    chosen = variants.load(tmp_path, policy, output)
    bare = subject.session()
    hardened = hardening_onnx.wrap(
        bare, chosen
    )  # the same session, so that weights are as warm for one as for the other
    guard = hardening.Guard(chosen)
    chain, art = variants.NUMPY[policy], variants.art(policy)
    names = [output]

    def fresh(rng: np.random.Generator) -> tuple[dict[str, Any], Any]:
        x = subject.inputs(rng, rows)
        return {source: x}, bare.run(None, {source: x})[0]

    def postprocessed(step: variants.Chain, question: Any) -> object:
        return step(bare.run(None, question[0])[0], question[0][source])

    race(
        {
            "session.run": lambda q: bare.run(None, q[0]),
            "_sess.run": lambda q: bare._sess.run(names, q[0], None),
            "hardened": lambda q: hardened.run(None, q[0], client="bench"),
            "numpy": partial(postprocessed, chain),
            "ART": partial(postprocessed, art),
            "release alone": lambda q: guard.harden({output: q[1]}, client="bench", inputs=q[0]),
        },
        fresh,
        leanest="_sess.run",
    )
