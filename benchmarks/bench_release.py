"""Post-processing alone, on arrays that are there already, against what peers do to the scores.

``hardened`` is the step as a hardened session takes it: scores and question copied into arrays that are kept, the rows
charged, hardened in place and entered into the client's account. ``Guard.harden`` is the same for other runtimes, with
its copies and look-ups.
"""

from __future__ import annotations

from collections.abc import Callable
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

    def step(guard: hardening.Guard) -> Callable[[Any], object]:
        rows = shape[0]
        scores, question = np.empty(shape, np.float32), np.empty((rows, FEATURES), np.float32)
        answer = guard.bind({"p": scores}, {"x": question}, rows)

        def run(q: Any) -> object:
            scores[...], question[...] = q[0], q[1]["x"]
            guard.finish(guard.admit("bench", rows), answer)
            return scores

        return run

    race(
        {
            "ART noise+round": lambda q: art(q[0], q[1]["x"]),
            "hardened": step(full),
            "hardened plain": step(plain),
            "Guard.harden": lambda q: full.harden({"p": q[0]}, client="bench", inputs=q[1]),
            "numpy": lambda q: chain(q[0], q[1]["x"]),
            "ART round": lambda q: rounded(q[0], q[1]["x"]),
        },
        fresh,
    )
