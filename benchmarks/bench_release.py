"""Post-processing alone, on arrays that are there already: admit and release against what peers do to the scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hardening
from benchmarks import variants
from benchmarks.gate import Race

SHAPES = ((1, 10), (1, 1000), (64, 10), (64, 1000), (1024, 1000), (1, 32000))
#: Width of the question that keys the noise.
FEATURES = 64


@pytest.mark.parametrize("shape", SHAPES, ids=[f"release-{rows}x{classes}" for rows, classes in SHAPES])
def test_release(shape: tuple[int, int], race: Race, tmp_path: Path) -> None:
    full = hardening.Guard(variants.load(tmp_path, "full", "p"))
    plain = hardening.Guard(variants.load(tmp_path, "plain", "p"))
    chain, art, rounded = variants.NUMPY["full"], variants.art("full"), variants.art("plain")

    def fresh(rng: np.random.Generator) -> tuple[Any, dict[str, Any]]:
        scores = np.exp(3.0 * rng.standard_normal(shape, np.float32))
        scores /= scores.sum(axis=1, keepdims=True)
        return scores, {"x": rng.standard_normal((shape[0], FEATURES), np.float32)}

    race(
        {
            "ART noise+round": lambda q: art(q[0], q[1]["x"]),
            "hardened": lambda q: full.harden({"p": q[0]}, client="bench", inputs=q[1]),
            "hardened plain": lambda q: plain.harden({"p": q[0]}, client="bench"),
            "numpy": lambda q: chain(q[0], q[1]["x"]),
            "ART round": lambda q: rounded(q[0], q[1]["x"]),
        },
        fresh,
    )
