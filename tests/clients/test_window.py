"""Windows of a hundred questions: the kernel against plain numpy, the bounds that a log sets, and who is told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hardening
from hardening.clients import Baseline, Clients
from hardening.clients.evidence import scores
from hardening.clients.log import Log
from hardening.clients.table import merge, standing
from hardening.clients.window import (
    FURTHER,
    LEAST_REACH,
    LEVEL,
    Tried,
    Window,
    at_most,
    bounds,
    independent,
    statistic,
    try_on,
    windows,
)
from hardening.config import ClientRules, Output, Policy
from hardening.errors import ConfigError
from hardening.kernels import accounts
from hardening.kernels.layout import LANES, PARTS, WINDOW, Lane
from hardening.testing import RecordingSink
from hardening.transforms import LabelOnly
from tests.clients.crowd import MOST, Summaries, fold
from tests.clients.test_evidence import flat


def watched(reach: float = 0.3, average: float = 0.2, mean: float = 0.9) -> Baseline:
    """A baseline with a window that expects the same of every lane."""
    window = Window((average,) * LANES, (reach,) * LANES, LEVEL, 9000, 8000.0)
    return replace(flat(mean), window=window)


def hard(reach: float) -> Baseline:
    """One whose windows stand out in `Lane.HIGH` alone."""
    reaches = tuple(reach if lane is Lane.HIGH else 9.0 for lane in Lane)
    return replace(flat(0.9), window=Window((0.2,) * LANES, reaches, LEVEL, 9000, 8000.0))


def some(rng: np.random.Generator, count: int) -> Log:
    """Rows of all sorts, some of them asked again, near ones and far ones."""
    keys = np.where(rng.random(count) < 0.2, rng.integers(1, 30, count), rng.integers(30, 2**32, count))
    return Log(
        rng.choice([0.0, 0.05, 0.5, 1.5, 3.0], count),
        rng.choice([0.0, 0.1, 0.9], count),
        rng.integers(0, 40, count),
        rng.integers(0, 50, count),
        keys.astype(np.uint32),
        rng.random(count) < 0.3,
        MOST,
    )


def entered(clients: Clients, baseline: Baseline | None, slot: int, log: Log) -> None:
    rows = np.stack([log.entropy, log.label, log.cell, log.margin], axis=1).reshape(-1, 4)
    fold(clients, baseline, np.full(len(rows), slot), Summaries(rows, log.keys()), log.duplicate)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0, 1, 99, 130, 400]), st.sampled_from([0.05, 0.3, 2.0]))
def test_the_kernel_does_what_the_reference_says(seed: int, count: int, reach: float) -> None:
    log, baseline, clients = some(np.random.default_rng(seed), count), watched(reach), Clients(1)
    entered(clients, baseline, 0, log)
    scored = scores(baseline.numbers(), log.firsts())
    assert baseline.window is not None
    found, expected = clients._rows[0], statistic(baseline.window, windows(scored))
    assert found["firsts"] == len(scored)
    assert found["windows"] == len(expected) == len(scored) // WINDOW
    assert found["opened"] == len(scored) % WINDOW
    assert found["beyond"] == (expected > 1).sum()
    assert found["window"] == pytest.approx(expected[-1] if len(expected) else 0, rel=1e-6)
    rest = scored[len(expected) * WINDOW :]
    assert found["open"].tolist() == np.floor(rest * PARTS + 0.5).sum(axis=0).tolist()
    assert standing(found, "t").window == float(found["window"])


def test_without_bounds_no_window_stands_out() -> None:
    clients, log = Clients(3), some(np.random.default_rng(0), 500)
    for slot, baseline in enumerate((None, flat(), watched())):
        entered(clients, baseline, slot, log)
    assert clients._rows["windows"][:3].tolist() == [0, 4, 4]
    assert clients._rows["window"][:2].tolist() == [0, 0]
    assert clients._rows["beyond"][:2].tolist() == [0, 0]
    assert clients._rows["beyond"][2] > 0


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 260), min_size=1, max_size=5), st.integers(0, 2**32 - 1))
def test_windows_merge_exactly(lengths: list[int], seed: int) -> None:
    """Closed ones add up; of the open ones, which are each of what one replica saw, the fullest goes on."""
    rng, clients = np.random.default_rng(seed), Clients(len(lengths))
    for slot, count in enumerate(lengths):
        entered(clients, watched(), slot, some(rng, count))
    parts = clients._rows[: len(lengths)]
    half = len(parts) // 2
    whole = merge(parts[rng.permutation(len(parts))])
    steps = merge(np.stack([merge(parts[: half + 1]), *parts[half + 1 :]]))
    for merged in (whole, steps):
        for name in ("windows", "beyond"):
            assert merged[name] == parts[name].sum()
        for name in ("window", "opened"):
            assert merged[name] == parts[name].max()
        fullest = parts["open"][parts["opened"] == parts["opened"].max()]
        assert merged["open"].tolist() in fullest.tolist()
        assert merged["opened"] < WINDOW
    assert whole["open"].tolist() == steps["open"].tolist()
    full = np.zeros(2, accounts.ROW)
    full["windows"] = 2**31 + 5
    assert merge(full)["windows"] == 2**32 - 1


def drawn(rng: np.random.Generator, clients: int, each: int, spread: float = 0.0) -> list[np.ndarray]:
    """Windows of clients whose own mean in every lane varies by `spread`, ``(each, LANES)`` for each client."""
    means = np.clip(0.2 + spread * rng.standard_normal((clients, 1, 1)), 0.01, 0.99)
    return list(rng.binomial(WINDOW, np.broadcast_to(means, (clients, each, LANES))) / WINDOW)


def test_windows_of_one_client_count_for_fewer_if_they_are_alike() -> None:
    rng = np.random.default_rng(0)
    assert independent(drawn(rng, 500, 6)) == pytest.approx(3000, rel=0.1)
    # sigma 0.04 is as much as the windows vary by themselves: rho = 1/2, and 6 count as 6 / (1 + 5/2).
    assert independent(drawn(rng, 2000, 6, 0.04)) == pytest.approx(12_000 / 3.5, rel=0.05)
    same = [np.full((6, LANES), i / 9) for i in range(10)]
    assert independent(same) == pytest.approx(10)
    assert independent([np.zeros((1, LANES))] * 7) == 7
    assert independent([]) == 0
    assert independent([np.ones((3, LANES))]) == 1


def test_as_few_stand_out_as_was_said() -> None:
    """Bounds from one half, tried on a much larger other one, over and over: too many in one of a hundred at most."""
    rng, over, count = np.random.default_rng(1), 0, 50
    rates = []
    for _ in range(count):
        found = bounds(drawn(rng, 1000, 5))
        assert found is not None
        assert found.level == LEVEL
        tried = try_on(found, drawn(rng, 4000, 5))
        rates.append(tried.beyond / tried.windows)
        over += rates[-1] > LEVEL
    assert over <= 0.01 * count + 2
    assert 0.1 * LEVEL < np.mean(rates) < LEVEL


def test_of_too_few_windows_the_furthest_is_the_bound() -> None:
    each = drawn(np.random.default_rng(2), 50, 4)
    found = bounds(each)
    assert found is not None
    every = np.concatenate(each)
    assert found.reach[Lane.HIGH] == pytest.approx((every - every.mean(axis=0))[:, Lane.HIGH].max())
    assert found.reach[Lane.NOVEL] == pytest.approx(FURTHER * (every - every.mean(axis=0))[:, Lane.NOVEL].max())
    assert found.level == at_most(0, found.independent) == pytest.approx(-np.log(0.01) / 200, rel=0.2)
    assert bounds([]) is None
    assert bounds([np.zeros((0, LANES))] * 3) is None
    still = bounds([np.full((2, LANES), 0.2)] * 4)
    assert still is not None
    assert still.reach == (LEAST_REACH,) * LANES
    assert try_on(still, []) == Tried()
    assert Tried().rate() == (0, 1)


def test_the_rate_of_others_is_known_as_well_as_they_are_independent() -> None:
    """5 of 100 between 1.64 % and 11.28 % (Clopper & Pearson), whether they are 100 or count as many."""
    for windows_, beyond in ((100, 5), (200, 10)):
        assert Tried(9, windows_, 100.0, beyond).rate() == (
            pytest.approx(0.016432, abs=1e-6),
            pytest.approx(0.112835, abs=1e-6),
        )


def test_who_stands_out_is_told_of_once_for_each_answer(tmp_path: Path) -> None:
    sink, rng = RecordingSink(), np.random.default_rng(3)
    policy = Policy({"p": Output("simplex", {"normal": (LabelOnly(),)})}, root=tmp_path)
    with hardening.Guard(policy, "m", sink=sink) as guard:
        guard._programs.baselines["p"] = hard(0.6).numbers()
        for start in range(0, 250, 10):  # ten rows of scores that hardly differ, then of scores that are plain
            for client, concentration in (("thief", 50.0), ("user", 0.2)):
                guard.harden({"p": rng.dirichlet(np.full(10, concentration), 10)}, client=client)
            assert len(sink.events) == (start + 10) // WINDOW
        assert [(e.kind, e.client) for e in sink.events] == [("window-alarm", "thief")] * 2
        evidence = sink.events[-1].evidence
        assert (evidence["windows"], evidence["closed"], evidence["beyond"]) == (1, 2, 2)
        assert evidence["last"] == guard.standing("thief").window > 1 > guard.standing("user").window
        guard.harden({"p": rng.dirichlet(np.full(10, 50.0), 300)}, client="batch")
        assert sink.events[-1].client == "batch"
        assert sink.events[-1].evidence["windows"] == 3
        json.dumps(dict(sink.events[-1].evidence))
        # Hardened without the interpreter's lock, and entered afterwards.
        guard.harden({"p": rng.dirichlet(np.full(10, 50.0), 4000)}, client="large")
        assert sink.events[-1].evidence["windows"] == sink.events[-1].evidence["closed"] == 40
        assert len(sink.events) == 4


def test_windows_of_those_without_an_account_are_those_of_the_pool(tmp_path: Path) -> None:
    sink, rng = RecordingSink(), np.random.default_rng(3)
    tiers = {"normal": (LabelOnly(),)}
    policy = Policy({"p": Output("simplex", tiers)}, clients=ClientRules(capacity=1), root=tmp_path)
    with hardening.Guard(policy, "m", sink=sink) as guard:
        guard._programs.baselines["p"] = hard(0.6).numbers()
        for client in ("first", "second", "third"):
            guard.harden({"p": rng.dirichlet(np.full(10, 50.0), 60)}, client=client)
    assert [e.client for e in sink.events if e.kind == "window-alarm"] == ["(pooled)"]


def test_bounds_survive_their_file_and_others_do_not() -> None:
    baseline = watched()
    assert baseline.window is not None
    tried = replace(baseline, window=replace(baseline.window, tried=Tried(9, 90, 80.0, 1)))
    assert Baseline.from_json(tried.to_json()) == tried
    assert Baseline.from_json(flat().to_json()).window is None
    for wrong in (
        {"reach": [0.1], "average": [0.1]},
        {"reach": [0.0] * LANES},
        {"average": [-1.0] * LANES},
        {"reach": [float("nan")] * 8},
    ):
        facts = json.loads(baseline.to_json())
        facts["window"] |= wrong
        with pytest.raises(ConfigError, match="its window must have 8 averages"):
            Baseline.from_json(json.dumps(facts))
    for text, problem in (
        (baseline.to_json().replace('"tried"', '"tired"'), "is not a baseline"),
        (baseline.to_json().replace('"dispersion"', '"dispersal"'), "is not a baseline"),
        (replace(baseline, dispersion=(0.0,) * LANES).to_json(), "its dispersions must be"),
    ):
        with pytest.raises(ConfigError, match=problem):
            Baseline.from_json(text)
