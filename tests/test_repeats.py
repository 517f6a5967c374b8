"""Credits for repeats: only where an answer follows from its question, so that nothing can be averaged for nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hardening.config import Output, Policy
from hardening.ledger import Budget
from hardening.repeats import MOST, Repeats
from hardening.transforms import (
    BoundaryRandomisedResponse,
    Canary,
    Clip,
    CoverageNoise,
    Gaussian,
    LabelOnly,
    Project,
    ReverseSigmoid,
    Round,
    Types,
)
from tests.keys import fixed_key
from tests.test_admission import NOISY, World

X = np.ones((1, 3), "f4")
P = np.array([[0.4, 0.3, 0.2, 0.1]], "f4")


def charged(root: Path, outputs: dict[str, Output], given: dict[str, Any], times: int = 64) -> tuple[float, float]:
    """Bits in the books after one question was asked once, and after it was asked `times`."""
    rules = Policy(outputs, key=fixed_key(root), root=root, budgets={"credential": Budget(bits=1e9)})
    world, spent = World(rules), []
    for _ in range(times):
        world.guard.harden(given, client="alice", inputs={"x": X})
        spent.append(world.total())
    return spent[0], spent[-1]


FRESH = (Gaussian(sigma=0.5, key="fresh"), Project(), LabelOnly())


@pytest.mark.parametrize(
    "beside", [FRESH, (BoundaryRandomisedResponse(epsilon=1.0, margin=0.9, key="fresh"), LabelOnly())]
)
def test_a_part_that_is_drawn_afresh_is_paid_for_every_time(tmp_path: Path, beside: Any) -> None:
    outputs = {"p": Output("simplex", {"normal": NOISY}), "q": Output("simplex", {"normal": beside})}
    once, all_times = charged(tmp_path, outputs, {"p": P, "q": P})
    assert all_times == pytest.approx(64 * once, rel=1e-6)


def test_noise_that_follows_what_else_was_asked_is_paid_for_every_time(tmp_path: Path) -> None:
    """Between two answers to one question a client may visit cells: the same answer under other noise is news."""
    follows = (CoverageNoise(), Clip(low=-1.0, high=1.0), Round(decimals=0))
    outputs = {"e": Output("embedding", {"normal": follows})}
    once, all_times = charged(tmp_path, outputs, {"e": P})
    assert once > 0
    assert all_times == pytest.approx(64 * once, rel=1e-6)


@pytest.mark.parametrize(
    "beside",
    [
        (ReverseSigmoid(beta=0.1, gamma=0.2), Types(n=100)),
        (Gaussian(sigma=0.5, key="cell"), Project(), LabelOnly()),
        (BoundaryRandomisedResponse(epsilon=1.0, margin=0.9), LabelOnly()),
        (Gaussian(sigma=0.5, scope="client"), Project(), LabelOnly()),
        (Canary(rate=0.5), LabelOnly()),
    ],
    ids=["deception", "cell", "boundary", "personal", "canary"],
)
def test_what_follows_from_the_question_is_paid_for_once(tmp_path: Path, beside: Any) -> None:
    """And can therefore not be averaged: it is the same every time, which the credit depends on."""
    outputs = {
        "p": Output("simplex", {"normal": NOISY}, label_output="y"),
        "q": Output("simplex", {"normal": beside}),
    }
    once, all_times = charged(tmp_path, outputs, {"p": P, "y": np.zeros(1, np.int64), "q": P})
    assert all_times == once > 0


def test_a_model_that_draws_is_not_averaged_for_nothing(tmp_path: Path) -> None:
    """Its labels differ between two answers to one question: who was told both is credited no more."""
    rules = Policy(
        {"p": Output("simplex", {"normal": NOISY}), "y": Output("labels")},
        key=fixed_key(tmp_path),
        root=tmp_path,
        budgets={"credential": Budget(bits=1e9)},
    )
    world, spent = World(rules), []
    for draw in (0, 0, 1, 1, 0, 1):
        given = {"p": P, "y": np.array([draw])}
        world.guard.harden(given, client="alice", inputs={"x": X})
        spent.append(world.total())
    once = spent[0]
    assert spent == pytest.approx([once * n for n in (1, 1, 2, 3, 4, 5)], rel=1e-6)
    for _ in range(2):
        world.guard.harden({"p": P, "y": np.array([0])}, client="bob", inputs={"x": X})
    assert world.guard.standing("bob").bits == pytest.approx(once, rel=1e-6), "others are"


def test_questions_are_told_apart_by_tier_payers_and_names() -> None:
    repeats, nonces, answer = Repeats(), np.arange(3, dtype=np.uint32).reshape(1, 3), {"p": np.ones((1, 4))}
    ways: list[tuple[Any, ...]] = [
        (("a",), "normal", nonces, answer),
        (("a",), "label", nonces, answer),
        (("b",), "normal", nonces, answer),
        (("a",), "normal", nonces, {"q": answer["p"]}),
        (("a",), "normal", nonces + 1, answer),
    ]
    assert [repeats.count(0, *way) for way in ways] == [0] * 5
    assert [repeats.count(0, *way) for way in ways] == [1] * 5
    assert [repeats.count(1, *way) for way in ways] == [0] * 5, "to somebody else all of it is new"


def test_memory_is_bounded() -> None:
    repeats, rng = Repeats(), np.random.default_rng(0)
    for _ in range(100):
        nonces = rng.integers(0, 2**32, (7, 3), dtype=np.uint32)
        assert repeats.count(5, (), "normal", nonces, {"p": rng.random((7, 2))}) == 0
    (kept,) = repeats._lately.values()
    assert kept is not None
    assert len(kept) == MOST * 24
