"""The bet against a client: what the kernel does against plain numpy, and Ville's bound under honest play."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardening.clients import Baseline, Clients
from hardening.clients.baseline import HeldOut
from hardening.clients.evidence import (
    Bettors,
    chance,
    e_benjamini_hochberg,
    log_evidence,
    octave,
    scores,
    suspicion,
)
from hardening.clients.log import Log
from hardening.clients.means import wandering
from hardening.clients.table import evidence
from hardening.kernels.layout import LABEL_BINS, LANES, OCTAVES, PARTS, Lane
from tests.clients.crowd import MOST, Summaries, fold


def flat(mean: float = 0.2, **lanes: float) -> Baseline:
    """A baseline that expects the same mean of every lane but those given."""
    means = np.full((OCTAVES, LANES), mean)
    for name, value in lanes.items():
        means[:, Lane[name]] = value
    means[:3, [Lane.COLLAPSE, Lane.DIVERSE, Lane.NOVEL]] = 1.0
    edges = ((0.1, 0.3, 0.6, 1.0, 1.5, 2.0, 2.6, 0.2),) * LABEL_BINS
    nothing = (0.1,) * LANES
    return Baseline(
        "p", 100, 10_000, edges, tuple(map(tuple, means.tolist())), nothing, nothing, (1 / 8,) * 8, 0.999,
        HeldOut(100, 1, ()),
    )  # fmt: skip


ROWS = st.tuples(
    st.sampled_from([0.0, 0.05, 0.1, 0.5, 1.5, 2.5, MOST, 5e-324]),
    st.integers(0, 40),
    st.sampled_from([0, 1, 2, 7, 8, 4095]),
    st.sampled_from([0.0, 0.1, 0.2, 0.9, 1.0]),
    st.integers(0, 30),
    st.booleans(),
)


@settings(max_examples=60)
@given(st.lists(ROWS, max_size=80), st.sampled_from([0.01, 0.2, 0.6]))
def test_the_kernel_does_what_the_reference_says(asked: list[Any], mean: float) -> None:
    baseline = flat(mean, HIGH=0.05)
    columns = [np.array([row[i] for row in asked]) for i in range(6)] if asked else [np.zeros(0)] * 6
    entropy, label, cell, margin, question, nearly = columns
    log = Log(
        entropy.astype(float), margin.astype(float), label.astype(np.int64), cell.astype(np.int64),
        question.astype(np.uint32), nearly.astype(bool), MOST,
    )  # fmt: skip
    rows = np.stack([log.entropy, log.label, log.cell, log.margin], axis=1).reshape(-1, 4)
    clients = Clients(1)
    fold(clients, baseline, np.zeros(len(asked)), Summaries(rows, log.keys()), log.duplicate)
    firsts = log.firsts()
    numbers, bettors = baseline.numbers(), Bettors.new(1)
    scored = scores(numbers, firsts)
    for row in scored:
        bettors = bettors.after(numbers, row[None])
    found = clients._rows[0]
    assert found["firsts"] == len(scored)
    assert found["restarts"] == bettors.restarts[0]
    assert found["wealth"] == pytest.approx(bettors.wealth[0], rel=1e-9, abs=1e-9)
    np.testing.assert_allclose(found["excess"], bettors.excess[0], rtol=1e-9, atol=1e-12)
    assert found["sums"].tolist() == np.floor(scored * PARTS + 0.5).sum(axis=0).astype(int).tolist()
    assert found["histogram"].tolist() == (log.histogram().tolist() if len(asked) else [0] * 8)


def test_answers_stand_for_questions_without_a_name() -> None:
    """The kernel's way to tell them apart is the log's."""
    from hardening.kernels import entry
    from hardening.kernels.accounts import _answer

    def key(entropy: float, label: int, cell: int, margin: float) -> int:
        return int(_answer(entropy, label, cell, margin))

    compiled = entry(_answer.py_func, "float64", "int64", "int64", "float64")
    rng = np.random.default_rng(0)
    n = 200
    log = Log(
        rng.random(n) * 3, rng.random(n), rng.integers(0, 10, n), rng.integers(0, 4096, n), np.zeros(n, np.uint32),
        np.zeros(n, bool), MOST,
    )  # fmt: skip
    rows = zip(log.entropy.tolist(), log.label.tolist(), log.cell.tolist(), log.margin.tolist(), strict=True)
    assert [max(1, compiled(*row)) for row in rows] == log.keys().tolist()
    assert len(set(log.keys().tolist())) == n


@pytest.mark.parametrize(("rows", "expected"), [(0, 0), (1, 1), (2, 1), (3, 2), (6, 2), (7, 3), (2**40, OCTAVES - 1)])
def test_octaves(rows: int, expected: int) -> None:
    assert octave(np.array([rows]))[0] == expected


def played(mean: Any, draw: Any, clients: int, rows: int) -> np.ndarray:
    """The most evidence ever reached against clients whose scores `draw(t)` gives ``(clients, LANES)``."""
    numbers, bettors = mean.numbers(), Bettors.new(clients)
    highest = np.full(clients, -math.inf)
    for t in range(rows):
        bettors = bettors.after(numbers, draw(t))
        highest = np.maximum(highest, log_evidence(bettors.wealth, bettors.restarts))
    return highest


GAMES = {
    "coins": lambda rng, n, mu: (rng.random((n, LANES)) < mu).astype(float),
    "shares": lambda rng, n, mu: rng.beta(2 * mu, 2 * (1 - mu), (n, LANES)),
    "all lanes at once": lambda rng, n, mu: np.repeat((rng.random((n, 1)) < mu).astype(float), LANES, axis=1),
}


@pytest.mark.parametrize("mu", [0.02, 0.2, 0.5])
@pytest.mark.parametrize("game", GAMES)
def test_ever_reaching_a_level_is_as_rare_as_ville_says(game: str, mu: float) -> None:
    """On the edge of the null, the worst there is inside it: 4,000 clients of 500 rows, all looks counted."""
    rng = np.random.default_rng([4, int(mu * 100)])
    # What is said of variances is wrong, by much: it decides about the bets, and not about what they may win.
    baseline = replace(flat(mu), dispersion=(0.1, 1.0) * (LANES // 2))
    highest = played(baseline, lambda t: GAMES[game](rng, 4000, mu), 4000, 500)
    for alpha in (0.1, 0.01, 0.001):
        flagged = (highest >= -math.log(alpha)).sum()
        assert flagged <= 4000 * alpha + 3 * math.sqrt(4000 * alpha), (alpha, flagged)


def test_a_game_that_goes_by_the_past_is_no_way_out_of_the_null() -> None:
    """An adversary inside the null: more of the mean where the bettor staked least, silent where it staked most."""
    rng = np.random.default_rng(1)
    baseline, n = flat(0.2), 4000
    last = np.zeros((n, LANES))

    def draw(_: int) -> np.ndarray:
        nonlocal last
        chance_of = np.where(last > 0, 0.05, 0.2)
        last = (rng.random((n, LANES)) < chance_of).astype(float)
        return last

    highest = played(baseline, draw, n, 400)
    assert (highest >= math.log(100)).sum() <= 4000 * 0.01


@pytest.mark.parametrize("shares", [(0.3, 0.3, *[0.05] * 8), (0.5, *[0.1] * 5), (0.8, 0.2), (0.5, 0.5)])
@pytest.mark.parametrize("lane", [Lane.COLLAPSE, Lane.DIVERSE])
def test_labels_of_an_honest_client_are_no_evidence_whatever_came_first(lane: Lane, shares: tuple[float, ...]) -> None:
    """Clients just as concentrated as the baseline allows, whose scores hang on what they happened to ask before."""
    rng, n, p = np.random.default_rng(len(shares)), 2000, np.array(shares)
    c = float((p**2).sum())
    means = np.full((OCTAVES, LANES), 0.9999)
    means[:, lane] = np.minimum((c if lane is Lane.COLLAPSE else 1 - c) + wandering(c, 2.0 ** np.arange(OCTAVES)), 1)
    means[:3, [Lane.COLLAPSE, Lane.DIVERSE, Lane.NOVEL]] = 1.0
    baseline = replace(flat(), means=tuple(map(tuple, means.tolist())))
    counts = np.zeros((n, len(p)))

    def draw(t: int) -> np.ndarray:
        label, out = rng.choice(len(p), n, p=p), np.zeros((n, LANES))
        same = counts[np.arange(n), label] / max(t, 1)
        counts[np.arange(n), label] += 1
        out[:, Lane.COLLAPSE], out[:, Lane.DIVERSE] = same, 1 - same
        return out

    highest = played(baseline, draw, n, 600)
    for alpha in (0.1, 0.01, 0.001):
        assert (highest >= -math.log(alpha)).mean() <= alpha


def test_the_bet_finds_what_is_outside() -> None:
    rng = np.random.default_rng(2)
    highest = played(flat(0.2), lambda t: (rng.random((500, LANES)) < 0.6).astype(float), 500, 100)
    assert (highest >= math.log(1e4)).all()


def test_who_was_innocent_for_long_is_found_as_well() -> None:
    """Ten thousand innocent rows cost the bettor its start, not its sight."""
    rng = np.random.default_rng(3)
    numbers, bettors = flat(0.2).numbers(), Bettors.new(50)
    for _ in range(10_000):
        bettors = bettors.after(numbers, (rng.random((50, LANES)) < 0.19).astype(float))
    delay = np.full(50, 1000)
    for t in range(300):
        bettors = bettors.after(numbers, (rng.random((50, LANES)) < 0.7).astype(float))
        over = log_evidence(bettors.wealth, bettors.restarts) >= math.log(1e4)
        delay = np.where(over & (delay == 1000), t, delay)
    assert np.median(delay) < 150


def test_repeats_are_no_evidence() -> None:
    """A client that polls one hard question says nothing by asking again; other hard questions do."""
    hard = Summaries(np.tile([2.5, 0, 1, 0.0], (500, 1)), np.full(500, 7, np.uint32))
    clients = Clients(2)
    fold(clients, flat(), np.zeros(500), hard)
    assert clients._rows[0]["firsts"] == 1
    once = float(evidence(clients._rows[0]))
    fold(clients, flat(), np.zeros(500), hard)
    assert float(evidence(clients._rows[0])) == once < 0.5
    fold(clients, flat(), np.ones(500), hard._replace(keys=np.arange(1, 501, dtype=np.uint32)))
    assert clients._rows[1]["firsts"] == 500
    clients.slot("poller")
    clients.slot("thief")
    assert clients.standing("poller", "t").suspicion < 0.05
    assert clients.standing("thief", "t", 1e-3).suspicion > 1


@pytest.mark.parametrize(("every", "polled", "counted"), [(2, 1, 1), (16, 1, 1), (17, 1, 12), (4, 2, 2)])
def test_what_is_polled_among_other_questions_stays_remembered(every: int, polled: int, counted: int) -> None:
    """A question is forgotten once `REMEMBERED` others were asked since it was asked last, not since it was new."""
    n = 12 * every
    keys = np.arange(100, 100 + n, dtype=np.uint32)
    for k in range(polled):
        keys[k::every] = k + 1
    clients = Clients(1)
    fold(clients, flat(), np.zeros(n), Summaries(np.tile([0.5, 0, 1, 0.5], (n, 1)), keys))
    assert clients._rows[0]["firsts"] == n - 12 * polled + counted


def test_suspicion_is_in_units_of_the_alarm() -> None:
    assert suspicion(math.log(1e4), 1e-4) == pytest.approx(1)
    assert suspicion(-5.0, 1e-4) == 0
    assert chance(0.5, 1e-4) == pytest.approx(1e-2)
    assert chance(0, 1e-4) == 1
    for wrong in (0, 1, -1, math.nan):
        with pytest.raises(ValueError, match="false_alarm"):
            suspicion(1.0, wrong)


def test_lists_by_e_benjamini_hochberg() -> None:
    """e = (500, 120, 60, 35, 12, 3, 1, .5, .2, .1) at 0.05: the first two."""
    e = np.array([1, 500, 120, 60, 35, 12, 3, 0.5, 0.2, 0.1])
    assert np.flatnonzero(e_benjamini_hochberg(np.log(e), 0.05)).tolist() == [1, 2]
    assert not e_benjamini_hochberg(np.zeros(5), 0.05).any()
    assert e_benjamini_hochberg(np.zeros(0), 0.05).shape == (0,)


def test_false_discoveries_stay_rare_however_clients_copy_each_other() -> None:
    """E-values of twenty guilty and of eighty honest clients that are copies of one: the worst dependence."""
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(2000):
        honest = math.log(100) if rng.random() < 0.01 else -math.inf
        evidence = np.concatenate([np.full(20, math.log(1e4)), np.full(80, honest)])
        listed = e_benjamini_hochberg(evidence, 0.05)
        shares.append(listed[20:].sum() / max(1, listed.sum()))
    assert np.mean(shares) <= 0.05


def test_a_baseline_survives_its_file_and_nothing_else_does() -> None:
    from hardening.errors import ConfigError

    baseline = flat()
    assert Baseline.from_json(baseline.to_json()) == baseline
    facts = json.loads(baseline.to_json())
    wrong = [
        ("{}", "is not a baseline"),
        ("nonsense", "is not a baseline"),
        ("[]", "is not a baseline"),
        (json.dumps(facts | {"schema": 1}), "another schema"),
        (json.dumps(facts | {"means": [[0.5]]}), "16 times 8 numbers"),
        (json.dumps(facts | {"means": [[1e-300] * 8] * 16}), "numbers from 1e-06 to 1"),
        (json.dumps(facts | {"means": [[0.5], [0.1, 0.2]]}), "is not a baseline"),
        (json.dumps(facts | {"means": [["much"] * 8] * 16}), "is not a baseline"),
        (json.dumps(facts | {"average": [0.1]}), "lists of the wrong length"),
        (json.dumps(facts | {"clients": 0}), "no clients"),
        (json.dumps(facts | {"clients": "many"}), "is not a baseline"),
        (json.dumps(facts | {"extra": 1}), "is not a baseline"),
        (replace(baseline, means=((0.2,) * LANES,) * OCTAVES).to_json(), "no label before it"),
    ]
    for text, problem in wrong:
        with pytest.raises(ConfigError, match=problem):
            Baseline.from_json(text, "detect.baseline")
