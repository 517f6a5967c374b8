"""Who is flagged, after how many questions, and how often wrongly; run with -s to read the figures.

Clients of models of real data: handwritten digits, and a table of cell nuclei with two classes. Honest ones differ in
what they ask about, a tenth of them polls; the baseline is made of other honest clients. Evidence is looked at after
every question.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from hardening.audit.extraction import extract, wilson
from hardening.clients import Clients
from hardening.clients.baseline import interval
from tests.clients import crowd

ALPHAS = (1e-2, 1e-3, 1e-4)


WORLDS = {"digits": crowd.digits, "cells": crowd.cells}


def shares(course: np.ndarray) -> dict[float, tuple[int, float]]:
    """For each alpha: how many clients were ever flagged, and the median question at which these were."""
    out = {}
    for alpha in ALPHAS:
        over = course >= -math.log(alpha)
        flagged = over.any(axis=0)
        out[alpha] = (
            int(flagged.sum()),
            float(np.median(over.argmax(axis=0)[flagged]) + 1) if flagged.any() else math.nan,
        )
    return out


def told(name: str, course: np.ndarray) -> dict[float, tuple[int, float]]:
    found = shares(course)
    for alpha, (flagged, delay) in found.items():
        low, high = wilson(flagged, course.shape[1])
        print(
            f"  {name:10} alpha {alpha:g}: {flagged / course.shape[1]:.3f} [{low:.3f}, {high:.3f}] flagged within "
            f"{len(course)} questions, median {delay:.0f}"
        )
    return found


def thieves(name: str, count: int, questions: int = 100, world: str = "digits") -> np.ndarray:
    rng, of = np.random.default_rng(3), WORLDS[world]()
    each = [of.summed_up(of.ask(name, rng, questions)) for _ in range(count)]
    return crowd.course(Clients(count), WORLDS[world]().baseline, each)


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("name", ["uniform", "foreign", "jacobian"])
def test_thieves_are_flagged_within_a_hundred_questions(name: str, world: str) -> None:
    print()
    found = told(name, thieves(name, 200, world=world))
    for alpha in ALPHAS:
        assert wilson(found[alpha][0], 200)[0] > 0.95


def test_half_of_the_questions_hidden_among_honest_ones() -> None:
    print()
    found = told("diluted", thieves("diluted", 400))
    assert found[1e-2][0] / 400 > 0.95
    assert wilson(found[1e-3][0], 400)[0] > 0.75
    # More questions make up for the disguise; where there are but two classes it takes them.
    assert told("diluted", thieves("diluted", 200, 250))[1e-4][0] >= 198
    assert told("diluted", thieves("diluted", 200, 100, "cells"))[1e-2][0] > 100
    assert told("diluted", thieves("diluted", 200, 400, "cells"))[1e-3][0] >= 190


def honest(count: int, world: str = "digits", questions: int = 1000) -> dict[float, int]:
    """How many of so many honest clients are ever flagged."""
    rng, flagged = np.random.default_rng(21), dict.fromkeys(ALPHAS, 0)
    for start in range(0, count, 500):
        each = [WORLDS[world]().honest.client(rng, questions) for _ in range(min(500, count - start))]
        for alpha, (found, _) in shares(crowd.course(Clients(500), WORLDS[world]().baseline, each)).items():
            flagged[alpha] += found
    print()
    for alpha, found in flagged.items():
        low, high = interval(found, count)
        print(f"  alpha {alpha:g}: {found} of {count} honest clients ever flagged [{low:.5f}, {high:.5f}]")
    return flagged


@pytest.mark.parametrize("world", WORLDS)
def test_honest_clients_are_hardly_ever_flagged(world: str) -> None:
    flagged = honest(2000, world)
    assert flagged[1e-2] <= 2000 * 1e-2
    assert flagged[1e-3] <= 2000 * 1e-3


@pytest.mark.deep
@pytest.mark.parametrize("world", WORLDS)
def test_ten_thousand_honest_clients(world: str) -> None:
    flagged = honest(10_000, world)
    assert flagged[1e-2] <= 10_000 * 1e-2
    assert flagged[1e-3] <= 10_000 * 1e-3


def test_the_held_out_check_speaks_of_these_clients() -> None:
    """What calibration says of strangers holds for strangers."""
    held = crowd.digits().baseline.held_out
    low, high = held.share_outside()
    print(f"\n  outside: {held.outside} of {held.clients} [{low:.4f}, {high:.4f}]")
    assert high < 0.05
    assert held.flagged(1e-2) <= max(3, 0.01 * held.clients * 3)


def test_a_thief_who_asks_what_honest_clients_ask_is_not_detectable() -> None:
    """And this is the limit of all of it: such a thief is an honest client as far as anyone can see, and learns.

    What is left against him is a budget: fewer answers, less of a copy.
    """
    rng, count = np.random.default_rng(31), 200
    each = [crowd.digits().honest.client(rng, 400) for _ in range(count)]
    print()
    found = told("disguised", crowd.course(Clients(count), crowd.digits().baseline, each))
    assert found[1e-2][0] <= 0.03 * count
    pool, _ = crowd.digits().draw(rng, 400)
    held_out, _ = crowd.digits().draw(rng, 1000)
    labels = crowd.digits().scores(held_out).argmax(axis=1)
    fidelity = {}
    for budget in (40, 400):
        copy = extract(crowd.digits().scores, pool, pool, held_out, labels, budget=budget, rng=np.random.default_rng(1))
        fidelity[budget] = copy.fidelity
        low, high = copy.fidelity.interval
        print(f"  a copy from {budget} of his answers agrees on {copy.fidelity.value:.3f} [{low:.3f}, {high:.3f}]")
    assert fidelity[400].interval[0] > 0.8
    assert fidelity[40].interval[1] < fidelity[400].interval[0]
