"""The packed table: names, rows, what is kept of a client, and replicas that are merged."""

from __future__ import annotations

import math
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hardening
from hardening.clients import Clients
from hardening.clients.evidence import log_evidence, scores
from hardening.clients.log import read_log, records
from hardening.clients.table import POOLED, evidence, merge, reasons
from hardening.config import Output, Policy
from hardening.kernels import accounts
from hardening.kernels.layout import PARTS, Job, Lane
from hardening.transforms import Gaussian, LabelOnly, Project
from tests.clients.crowd import Summaries, fold
from tests.clients.test_evidence import flat
from tests.keys import fixed_key


def test_sizes() -> None:
    """What every row of a client changes lies in two cache lines; everything in less than a kilobyte."""
    assert accounts.HOT == 128
    assert accounts.ROW.itemsize <= 1024
    assert accounts.ROW.itemsize % 64 == 0
    assert Clients(3)._address % 64 == 0


def test_names_are_found_again_whatever_they_hash_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names that collide in the index, wholly or in part, keep accounts of their own."""
    keys = {"a": 5, "b": 5, "c": 5 + (1 << 40), "d": 6, "e": -1}
    monkeypatch.setattr("hardening.clients.table.hash", lambda name: keys.get(name, 5), raising=False)
    clients = Clients(5)
    slots = [clients.slot(name) for name in keys]
    assert slots == [0, 1, 2, 3, 4]
    assert [clients.slot(name) for name in keys] == slots
    assert clients.slot("f") == clients.pooled
    assert clients.names() == tuple(keys)
    assert clients.row("f") is None


def test_threads_open_one_account_each() -> None:
    clients, names = Clients(64), [f"client-{i}" for i in range(64)]
    start, found = threading.Barrier(8), []

    def open_all() -> None:
        start.wait()
        found.append([clients.slot(name) for name in names])

    threads = [threading.Thread(target=open_all) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(own == found[0] for own in found)
    assert sorted(found[0]) == list(range(64))


def burst(identities: int) -> None:
    clients = Clients(1000)
    baseline = flat()
    for i in range(1000):
        clients.slot(f"honest-{i}")
    clients.charge(7, 3)
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for i in range(identities):
        slot = clients.slot(f"sybil-{i}")
        clients.charge(slot, 1)
    after, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak - before < 64_000
    assert after - before < 16_000
    assert clients.standing("honest-7", "t").queries == 3
    assert clients.standing(POOLED, "t").queries == identities
    assert clients.slot("honest-999") == 999
    fold(clients, baseline, np.array([999]), Summaries(np.array([[2.5, 0, 1, 0.0]]), np.array([9], np.uint32)))
    assert clients.standing("honest-999", "t").queries == 1


def test_a_burst_of_new_identities_takes_no_memory_and_forgets_nobody() -> None:
    burst(50_000)


@pytest.mark.deep
def test_ten_million_new_identities() -> None:
    burst(10_000_000)


LINES = st.tuples(
    st.sampled_from([0.0, 0.5, 2.5]),
    st.integers(0, 40),
    st.integers(0, 4095),
    st.sampled_from([0.1, 0.9]),
    st.integers(1, 2**32 - 1),
)


@settings(max_examples=50)
@given(st.lists(LINES, min_size=1, max_size=60), st.integers(1, 4), st.randoms())
def test_counts_and_bitmaps_merge_exactly(lines: list[tuple[float, ...]], replicas: int, random: object) -> None:
    """Whatever replica saw a row, in whatever order, and however partial results are merged."""
    values = np.array(lines)
    rows, keys = np.ascontiguousarray(values[:, :4]), values[:, 4].astype(np.uint32)
    rng = np.random.default_rng(random.randrange(2**32))  # type: ignore[attr-defined]
    shuffled = rng.permutation(len(rows))
    one, many = Clients(1), Clients(replicas)
    fold(one, None, np.zeros(len(rows)), Summaries(rows, keys))
    fold(many, None, rng.integers(0, replicas, len(rows)), Summaries(rows[shuffled], keys[shuffled]))
    parts = many._rows[:replicas]
    half = replicas // 2
    whole = merge(parts[rng.permutation(replicas)])
    steps = merge(np.stack([merge(parts[: half + 1]), *parts[half + 1 :]]))
    for merged in (whole, steps):
        for name in ("queries", "observed", "histogram", "labels", "cells", "firsts", "sums"):
            assert np.array_equal(merged[name], one._rows[0][name]), name
        assert merged["entropy"] == pytest.approx(one._rows[0]["entropy"], rel=1e-12)


def test_sums_of_scores_merge_exactly() -> None:
    """Of lanes that look at a row alone; what looks at a client's past is each replica's own past."""
    rng = np.random.default_rng(0)
    rows = np.stack([rng.random(300) * 3, rng.integers(0, 5, 300), rng.integers(0, 99, 300), rng.random(300)], axis=1)
    asked, where = Summaries(rows, np.arange(1, 301, dtype=np.uint32)), rng.integers(0, 3, 300)
    one, many = Clients(1), Clients(3)
    fold(one, flat(), np.zeros(300), asked)
    fold(many, flat(), where, asked)
    merged = merge(many._rows[:3])
    assert merged["firsts"] == 300
    for lane in (0, 1, 2, 6, 7):
        assert merged["sums"][lane] == one._rows[0]["sums"][lane]


def test_counts_stop_when_they_are_full_and_do_not_start_anew() -> None:
    rows = np.zeros(2, accounts.ROW)
    rows["labels"][:, 3] = 2**31 + 5
    assert merge(rows)["labels"][3] == 2**32 - 1


@pytest.mark.parametrize("replicas", [2, 5])
def test_merged_evidence_is_still_an_e_process(replicas: int) -> None:
    """Rows on the edge of the null, dealt to replicas; merged now and then, and gone on with by one of them."""
    rng, n, mu = np.random.default_rng(replicas), 2000, 0.2
    baseline = flat(
        mu, HIGH=mu, BOUNDARY=mu, LOW=0.99, TAIL=0.99, DUPLICATE=0.99, COLLAPSE=0.99, DIVERSE=0.99, NOVEL=0.99
    )
    clients = Clients(n * replicas)
    highest, key = np.full(n, -math.inf), 0
    for t in range(200):
        hit = rng.random(n) < mu
        rows = np.stack(
            [np.where(hit, 3.0, 0.2), rng.integers(0, 9, n), rng.integers(0, 4096, n), np.where(hit, 0, 0.5)], 1
        )
        slots = np.arange(n) * replicas + rng.integers(0, replicas, n)
        fold(clients, baseline, slots, Summaries(rows, np.arange(key + 1, key + n + 1, dtype=np.uint32)))
        key += n
        table = clients._rows[: n * replicas].reshape(n, replicas)
        if t % 50 == 49:
            for own in table:
                own[0] = merge(own)
                own[1:] = np.zeros((), accounts.ROW)
        highest = np.maximum(highest, evidence(table).sum(axis=1))
    for alpha in (0.1, 0.01):
        assert (highest >= -math.log(alpha)).mean() <= alpha + 3 * math.sqrt(alpha / n)


@pytest.mark.parametrize("rows", [1, 3, 20])
def test_many_short_lives_on_the_edge_of_the_null_are_no_evidence(rows: int) -> None:
    """Each process bets anew, and what all before it saw is folded: whoever looks, whenever, is bound by Ville."""
    rng, n, mu = np.random.default_rng(rows), 2000, 0.2
    baseline = flat(
        mu, HIGH=mu, BOUNDARY=mu, LOW=0.99, TAIL=0.99, DUPLICATE=0.99, COLLAPSE=0.99, DIVERSE=0.99, NOVEL=0.99
    )
    highest, key, before = np.full(n, -math.inf), 0, np.zeros(n, accounts.ROW)
    for _ in range(120 // rows):
        clients = Clients(n)
        for _ in range(rows):
            hit = rng.random(n) < mu
            asked = np.stack([np.where(hit, 3.0, 0.2), rng.integers(0, 9, n), rng.integers(0, 4096, n), ~hit / 2], 1)
            fold(clients, baseline, np.arange(n), Summaries(asked, np.arange(key + 1, key + n + 1, dtype=np.uint32)))
            key += n
            highest = np.maximum(highest, evidence(clients._rows[:n]) + evidence(before))
        before = merge(np.stack([before, clients._rows[:n]]))
    for alpha in (0.1, 0.01):
        assert (highest >= -math.log(alpha)).mean() <= alpha + 3 * math.sqrt(alpha / n)


def test_nothing_of_the_evidence_is_lost_in_merging() -> None:
    rows = np.zeros(3, accounts.ROW)
    rows["firsts"], rows["wealth"], rows["restarts"] = [9, 200, 0], [1.5, 2.5, 0], [0, 3, 0]
    merged = merge(rows)
    assert evidence(merged) == pytest.approx(float(evidence(rows).sum()))
    assert log_evidence(merged["wealth"], merged["restarts"]) == pytest.approx(evidence(rows[:2]).sum())
    # What is left for later bettors is no more than the replicas had left.
    assert 1 / (merged["restarts"] + 2) == pytest.approx(1 / 2 * 1 / 5)


def test_what_is_kept_of_a_client_outlives_the_process() -> None:
    asked = Summaries(np.tile([2.5, 0, 1, 0.0], (40, 1)), np.arange(1, 41, dtype=np.uint32))
    first, second = Clients(4), Clients(4)
    first.slot("alice")
    fold(first, flat(), np.zeros(40), asked)
    second.slot("bob")
    kept = first.pack(first.own(0))
    second.adopt(second.slot("alice"), [second.unpack(kept)])
    second.adopt(second.slot("alice"), [second.unpack(kept)])  # replaces what was adopted before
    assert second.standing("alice", "t") == first.standing("alice", "t")
    assert second.standing("alice", "t").suspicion > 0
    assert second.names() == ("bob", "alice")
    for wrong in (b"", b"abc", kept[:-1], bytes(8) + kept[8:], kept[:8]):
        with pytest.raises(ValueError, match="is no state of a client, or of another version"):
            second.unpack(wrong)


def test_a_guard_that_is_given_a_baseline_gathers_evidence(tmp_path: Path) -> None:
    """From questions, told apart by their nonces; the same rows asked again add nothing, nor does a second output."""
    noisy = (Gaussian(sigma=0.01), Project())
    outputs = {n: Output("simplex", {"normal": noisy}) for n in ("p", "q")}
    policy = Policy(outputs, fixed_key(tmp_path), root=tmp_path)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 3)).astype("f4")
    with hardening.Guard(policy, "m") as guard:
        guard._programs.baselines.update(dict.fromkeys(outputs, flat(0.1).numbers()))
        for _ in range(3):
            outs = {n: np.full((64, 4), 0.25, np.float32) for n in outputs}
            guard.release(guard.admit("alice", 64), outs, {"x": x})
        row = guard._clients.row("alice")
        suspicion = guard.standing("alice").suspicion
    assert row["observed"] == 2 * 3 * 64
    # Beyond the few questions that are remembered a client gives evidence again: 64 rows do not fit.
    assert row["firsts"] >= 64
    assert suspicion > 1


def test_polling_one_question_of_a_guard_is_no_evidence(tmp_path: Path) -> None:
    outputs = {n: Output("simplex", {"normal": (Gaussian(sigma=0.01), Project())}) for n in ("p", "q")}
    policy = Policy(outputs, fixed_key(tmp_path), root=tmp_path)
    x, said = np.ones((1, 3), "f4"), list[float]()
    with hardening.Guard(policy, "m") as guard:
        guard._programs.baselines.update(dict.fromkeys(outputs, flat(0.1).numbers()))
        for _ in range(100):
            answer = guard.bind({n: np.full((1, 4), 0.25, np.float32) for n in outputs}, {"x": x}, 1)
            assert all(job[Job.NAMES] != 0 for _, _, job in answer.entries)
            guard.finish(guard.admit("alice", 1), answer)
            said.append(guard.standing("alice").suspicion)
        assert guard._clients.row("alice")["firsts"] == 1
        assert set(said) == {said[0]}
        assert said[0] < 0.05


def test_what_a_guard_would_log_is_what_it_goes_by(tmp_path: Path) -> None:
    """Lines of a log, read again and scored by the baseline, add up to the sums in the client's row."""
    policy = Policy(
        {"p": Output("simplex", {"normal": (Gaussian(sigma=0.05), Project())})},
        fixed_key(tmp_path),
        root=tmp_path,
    )
    baseline, rng, lines = flat(0.1), np.random.default_rng(0), list[str]()
    with hardening.Guard(policy, "m") as guard:
        guard._programs.baselines["p"] = baseline.numbers()
        for _ in range(12):
            x = rng.integers(0, 4, (7, 2)).astype("f4")
            answer = guard.bind({"p": rng.dirichlet(np.ones(5), 7)}, {"x": x}, 7)
            answer.nearly[...] = rng.random(7) < 0.3
            guard.finish(guard.admit("alice", 7), answer)
            ((_, task, _),) = answer.entries
            assert task is not None
            lines += records("alice", *task.asked(), answer.nearly)
        row = guard._clients.row("alice")
    (log,) = read_log(lines, math.log2(5)).values()
    scored = scores(baseline.numbers(), log.firsts())
    assert len(scored) == row["firsts"] < 84
    assert np.floor(scored * PARTS + 0.5).sum(axis=0).astype(int).tolist() == row["sums"].tolist()
    assert log.histogram().tolist() == row["histogram"].tolist()


def test_near_duplicates_and_reasons(tmp_path: Path) -> None:
    """What somebody found out about the questions counts, and the table says what speaks against whom."""
    policy = Policy({"p": Output("simplex", {"normal": (LabelOnly(),)})}, root=tmp_path)
    rng = np.random.default_rng(0)
    with hardening.Guard(policy, "m") as guard:
        guard._programs.baselines["p"] = flat(0.9, DUPLICATE=0.1, NOVEL=1.0, DIVERSE=1.0).numbers()
        for client, nearly in (("searcher", 1), ("user", 0)):
            for _ in range(30):
                answer = guard.bind({"p": rng.dirichlet(np.ones(4), 1)}, None, 1)
                answer.nearly[...] = nearly
                guard.finish(guard.admit(client, 1), answer)
        assert guard.standing("searcher").suspicion > 1
        assert guard.standing("user").suspicion < 0.5
        (lane, above), *_ = reasons(guard._clients.row("searcher"))
        assert lane is Lane.DUPLICATE
        assert 0.6 < above < 0.9
        assert Lane.DUPLICATE not in dict(reasons(guard._clients.row("user")))


def test_margins_of_rows_alone_and_side_by_side(tmp_path: Path) -> None:
    """The largest entry less the next, for narrow blocks and for wide ones."""
    from hardening.pipeline import Pipeline
    from hardening.program import Program, Task

    rng = np.random.default_rng(0)
    for width in (1, 2, 3, 8, 9, 16, 63, 64, 65, 200):
        for kind in ("simplex", "logits"):
            p = rng.dirichlet(np.ones(width), 11) if kind == "simplex" else rng.normal(-3, 1, (11, width))
            p[0] = 1 / width if kind == "simplex" else -1.0
            clean = p.copy()
            task = Task(Program(Pipeline(kind, (LabelOnly(),)), width, None, "p", "m"), p, 11, np.zeros((11, 3), "u4"))
            assert task.run() == 0
            ordered = np.sort(clean, axis=1)
            expected = ordered[:, -1] - ordered[:, -2] if width > 1 else np.abs(2 * clean[:, 0] - 1)
            np.testing.assert_allclose(task.summary[3, :11], expected, atol=1e-9)
