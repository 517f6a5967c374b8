"""Guard: what leaves, what does not, and what is remembered about whom."""

from __future__ import annotations

import dataclasses
import gc
import json
import math
import tracemalloc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hardening
from hardening.answer import Programs
from hardening.clients import POOLED, Clients, code_length_bits, label_entropy_bits
from hardening.config import ClientRules, Output, Policy
from hardening.errors import ConfigError, InputError, ReleaseError
from hardening.kernels.layout import JOB, Job
from hardening.testing import FakeClock, RecordingSink
from hardening.transforms import Gaussian, LabelOnly, Project, Round, TopK, Types
from tests.keys import fixed_key

NOISY = (Gaussian(sigma=0.05), Project(keep_top1=True), Types(n=100))


def policy(root: Path, space: Any = "simplex", tier: Any = NOISY, **kwargs: Any) -> Policy:
    output = Output(space=space, tiers={"normal": tier}, **kwargs)
    return Policy({"p": output}, key=fixed_key(root), root=root)


def batch(rows: int = 5, width: int = 4, seed: int = 0) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.ones(width), size=rows).astype("f4"), rng.normal(size=(rows, 7)).astype("f4")


def test_same_question_same_answer_across_guards_and_batches(tmp_path: Path) -> None:
    p, x = batch()
    with hardening.Guard(policy(tmp_path), "m") as one, hardening.Guard(policy(tmp_path), "m") as two:
        a = one.harden({"p": p}, client="alice", inputs={"x": x})["p"]
        b = two.harden({"p": p}, client="bob", inputs={"x": x})["p"]
        rows = [one.harden({"p": p[i : i + 1]}, inputs={"x": x[i : i + 1]})["p"][0] for i in range(len(p))]
        zero = one.harden({"p": p}, inputs={"x": np.where(x == x, x, 0) * 1.0})["p"]
        other = one.harden({"p": p}, inputs={"x": x + np.float32(1e-3)})["p"]
    assert np.array_equal(a, b)
    assert np.array_equal(a, np.array(rows))
    assert np.array_equal(a, zero)
    assert not np.array_equal(a, other)
    assert not np.array_equal(a, p)
    assert (a.dtype, a.shape) == (p.dtype, p.shape)
    assert np.array_equal(p, batch()[0]), "the caller's array was touched"
    with hardening.Guard(policy(tmp_path), "another model") as three:
        assert not np.array_equal(a, three.harden({"p": p}, inputs={"x": x})["p"])


def test_minus_zero_and_nan_payloads_are_the_same_question(tmp_path: Path) -> None:
    p, _ = batch(2)
    with hardening.Guard(policy(tmp_path)) as guard:
        answers = [guard.harden({"p": p}, inputs={"x": np.array([[v], [np.nan]], "f4")})["p"] for v in (0.0, -0.0)]
    assert np.array_equal(*answers)


def test_every_part_of_a_complex_number_has_one_zero(tmp_path: Path) -> None:
    p, _ = batch(2)
    with hardening.Guard(policy(tmp_path)) as guard:
        x = np.array([[1, 2], [3, 1j]], "c8")
        answers = [guard.harden({"p": p}, inputs={"x": v})["p"] for v in (x, x.astype(">c8"), x.copy("F"), x.conj())]
        assert np.array_equal(answers[1], answers[0])
        assert np.array_equal(answers[2], answers[0])
        assert np.array_equal(answers[3][0], answers[0][0])
        assert not np.array_equal(answers[3][1], answers[0][1])
        zeros = [guard.harden({"p": p}, inputs={"x": np.array([[z], [z]])})["p"] for z in (0j, -0j, complex(0, -0.0))]
    assert np.array_equal(zeros[0], zeros[1])
    assert np.array_equal(zeros[0], zeros[2])


@pytest.mark.parametrize("x", [np.zeros((2, 3), np.longdouble), np.zeros(2, "f4,i8"), np.array([[1], [2]], object)])
def test_inputs_with_bytes_that_mean_nothing_key_no_noise(tmp_path: Path, x: Any) -> None:
    p, _ = batch(2)
    with (
        hardening.Guard(policy(tmp_path)) as guard,
        pytest.raises(InputError, match=r"'x' holds .*noise cannot be keyed"),
    ):
        guard.harden({"p": p}, inputs={"x": x})


def test_answers_of_a_shape_seen_before_are_the_same(tmp_path: Path) -> None:
    """From the third time on, questions of one shape go through arrays that are kept; nobody can tell."""
    with hardening.Guard(policy(tmp_path), "m") as warm:
        for seed in range(6):
            p, x = batch(seed=seed)
            with hardening.Guard(policy(tmp_path), "m") as cold:
                expected = cold.harden({"p": p}, inputs={"x": x})["p"]
            given, asked = np.asfortranarray(p), np.asfortranarray(x)
            answer = warm.harden({"p": given}, client="alice", inputs={"x": asked})["p"]
            assert np.array_equal(answer, expected)
            assert np.array_equal(given, p)
            answer[...] = 9
        bad = p.copy()
        bad[3] = np.nan
        for _ in range(2):
            with pytest.raises(ReleaseError, match="row 3"):
                warm.harden({"p": bad}, client="alice", inputs={"x": x})
        for _ in range(4):
            assert np.array_equal(warm.harden({"p": p}, client="alice", inputs={"x": x})["p"], expected)
        assert warm.standing("alice").queries == 5 * 12


@pytest.mark.parametrize("dtype", [">f4", ">i8"])
def test_big_endian_questions_of_a_shape_seen_before_keep_their_own_noise(tmp_path: Path, dtype: str) -> None:
    p, _ = batch(2)
    rules = policy(tmp_path, space="scalar", tier=(Gaussian(sigma=0.1),))
    with hardening.Guard(rules) as warm, hardening.Guard(rules) as cold:
        for seed in range(5):
            x = np.random.default_rng(seed).integers(0, 1000, (2, 3)).astype(dtype)
            expected = cold.harden({"p": p}, inputs={"x": x.astype(dtype.replace(">", "<"))})["p"]
            assert np.array_equal(warm.harden({"p": p}, inputs={"x": x})["p"], expected), seed
            cold._recent.forget()


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_dtype_shape_and_simplex_are_kept(tmp_path: Path, dtype: str) -> None:
    p, x = batch()
    p = p.astype(dtype)[:, None, :].repeat(3, axis=1)
    with hardening.Guard(policy(tmp_path)) as guard:
        out = guard.harden({"p": p}, inputs={"x": x})["p"]
    assert (out.dtype, out.shape) == (p.dtype, p.shape)
    np.testing.assert_allclose(out.sum(axis=-1, dtype=np.float64), 1, atol=5e-3)
    assert not np.array_equal(out[:, 0], out[:, 1]), "vectors of one row must not share noise"


def test_labels_follow_the_released_scores(tmp_path: Path) -> None:
    tier = (Gaussian(sigma=0.3), Project(), Types(n=10))
    rules = policy(tmp_path, tier=tier, label_output="label", classes=("a", "b", "c", "d"))
    p, x = batch(200)
    raw = np.array(["a", "b", "c", "d"], object)[p.argmax(axis=1)]
    with hardening.Guard(rules) as guard:
        out = guard.harden({"label": raw, "p": p}, inputs={"x": x})
        assert guard.needs(("label",)) == ("label", "p")
        with pytest.raises(ReleaseError, match="derived from 'p'"):
            guard.harden({"label": raw}, inputs={"x": x})
        with pytest.raises(ReleaseError, match=r"holds int64 labels, which outputs.p.classes are not"):
            guard.harden({"label": p.argmax(axis=1), "p": p}, inputs={"x": x})
    assert list(out) == ["label", "p"]
    assert out["label"].tolist() == [("a", "b", "c", "d")[i] for i in out["p"].argmax(axis=1)]
    assert (out["label"] != raw).any(), "noise this strong must move some labels"


def test_sequences_of_maps(tmp_path: Path) -> None:
    maps = [{"no": 0.2, "yes": 0.8}, {"no": 0.55, "yes": 0.45}]
    rules = policy(tmp_path, tier=(LabelOnly(),), label_output="label")
    with hardening.Guard(rules) as guard:
        out = guard.harden({"p": maps, "label": np.array(["yes", "no"], object)})
        with pytest.raises(ReleaseError, match="same classes"):
            guard.harden({"p": [{"no": 1.0}, {"yes": 1.0}]})
    assert out["p"] == [{"no": 0.0, "yes": 1.0}, {"no": 1.0, "yes": 0.0}]
    assert out["label"].tolist() == ["yes", "no"]
    assert maps[0] == {"no": 0.2, "yes": 0.8}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([[0.5, 0.5], [math.nan, 0.5]], "row 1: the model returned NaN"),
        ([[0.5, 0.5], [0.9, 0.9]], "row 1: the model returned scores outside"),
        ([[0.5, math.inf], [0.5, 0.5]], "row 0: the model returned NaN"),
    ],
)
def test_bad_answers_release_nothing(tmp_path: Path, bad: Any, message: str) -> None:
    with hardening.Guard(policy(tmp_path, tier=(Types(n=4),))) as guard:
        decision = guard.admit("alice", 2)
        held = {"p": np.array(bad)}
        with pytest.raises(ReleaseError, match=message):
            guard.release(decision, held, None)
        assert held == {}
        assert guard.standing("alice").queries == 2


def test_what_is_refused(tmp_path: Path) -> None:
    p, x = batch()
    with hardening.Guard(policy(tmp_path)) as guard:
        with pytest.raises(InputError, match="'logits' is not released by the policy; released: p"):
            guard.harden({"logits": p}, inputs={"x": x})
        with pytest.raises(InputError, match=r"inputs=.*key = \"cell\""):
            guard.harden({"p": p})
        with pytest.raises(ReleaseError, match="int64 values"):
            guard.harden({"p": np.zeros((5, 4), np.int64)}, inputs={"x": x})
        with pytest.raises(ReleaseError, match="5 rows were asked"):
            guard.release(guard.admit("a", 5), {"p": p[:2].copy()}, {"x": x})
        for client in ("", "a" * 65, "a\nb", 7, b"alice"):
            with pytest.raises(InputError, match="client"):
                guard.harden({"p": p}, client=client, inputs={"x": x})  # type: ignore[arg-type]
    with pytest.raises(InputError, match="closed"):
        guard.harden({"p": p}, inputs={"x": x})


def test_noise_is_never_that_of_another_row(tmp_path: Path) -> None:
    """Where no input tells the rows apart, their noise would be one, and differences of scores free of it."""
    p, x = batch()
    with hardening.Guard(policy(tmp_path)) as guard:
        with pytest.raises(InputError, match="5 rows and no input has"):
            guard.harden({"p": p}, inputs={"x": x[:3]})
        one = guard.harden({"p": p}, client="alice", inputs={"x": x[:1]})["p"]
        assert guard.standing("alice").queries == 1, "all five answer the one question there is"
        assert len(np.unique(one - p, axis=0)) == 5


def test_zero_rows_and_zero_classes(tmp_path: Path) -> None:
    with hardening.Guard(policy(tmp_path, tier=(Types(n=4),))) as guard:
        assert guard.harden({"p": np.zeros((0, 4), "f4")})["p"].shape == (0, 4)
        assert guard.harden({"p": np.zeros((3, 0), "f4")})["p"].shape == (3, 0)


def test_mixed_keys_are_refused(tmp_path: Path) -> None:
    tier = (Gaussian(sigma=0.1, key="fresh"), Gaussian(sigma=0.1), Project())
    p, x = batch()
    with hardening.Guard(policy(tmp_path, tier=tier)) as guard, pytest.raises(ConfigError, match="mixes"):
        guard.harden({"p": p}, inputs={"x": x})


def test_fresh_noise_is_fresh(tmp_path: Path) -> None:
    p, _ = batch()
    with hardening.Guard(policy(tmp_path, tier=(Gaussian(sigma=0.1, key="fresh"), Project()))) as guard:
        answers = {guard.harden({"p": p})["p"].tobytes() for _ in range(8)}
    assert len(answers) == 8


def test_averaging_repeats_gains_nothing_unless_noise_is_fresh(tmp_path: Path) -> None:
    errors = {}
    p, x = batch(1, 1000)
    for key in ("input", "fresh"):
        tier = (Gaussian(sigma=0.1, key=key),)
        with hardening.Guard(policy(tmp_path, space="scalar", tier=tier)) as guard:
            answers = [guard.harden({"p": p}, inputs={"x": x})["p"] for _ in range(256)]
        one = np.abs(answers[0] - p).mean()
        errors[key] = np.abs(np.mean(answers, axis=0) - p).mean() / one
    assert errors["input"] == pytest.approx(1.0, rel=1e-5)
    assert errors["fresh"] < 0.25


def test_who_is_asking(tmp_path: Path) -> None:
    p, x = batch(2)
    with hardening.Guard(policy(tmp_path)) as guard:
        guard.harden({"p": p}, inputs={"x": x})
        with hardening.as_client("alice"):
            guard.harden({"p": p}, inputs={"x": x})
            guard.harden({"p": p}, client="bob", inputs={"x": x})
        assert {n: s.queries for n, s in guard.clients().items()} == {"anonymous": 2, "alice": 2, "bob": 2}
        assert guard.standing("nobody") == hardening.Guard(policy(tmp_path)).standing("nobody")


def test_standing_counts_what_was_learnt(tmp_path: Path) -> None:
    p = np.tile(np.array([[0.5, 0.5, 0, 0], [0, 0, 1, 0]], "f4"), (4, 1))
    with hardening.Guard(policy(tmp_path, tier=(TopK(k=2), Round(decimals=1)))) as guard:
        guard.harden({"p": p}, client="alice")
        s = guard.standing("alice")
    assert s.queries == 8
    assert s.posterior_entropy == pytest.approx(0.5, abs=1e-4)
    assert sum(s.histogram) == 8
    assert s.histogram[0] == 4
    assert s.bits == pytest.approx(8 * (math.log2(math.comb(4, 2)) + math.log2(11)), rel=1e-6)
    assert 0 < s.coverage <= 2 / 4096
    assert s.code_length == pytest.approx(code_length_bits(np.array([4, 0, 4, 0])))
    assert s.label_entropy == pytest.approx(label_entropy_bits(np.array([4, 4])))


def test_counts_stop_at_their_largest(tmp_path: Path) -> None:
    p = np.tile(np.array([[1, 0, 0, 0]], "f4"), (3, 1))
    with hardening.Guard(policy(tmp_path, tier=(Types(n=4),))) as guard:
        guard.harden({"p": p}, client="alice")
        row = guard._clients._rows[0]
        row["histogram"][0] = row["labels"][0] = 2**32 - 2
        guard.harden({"p": p}, client="alice")
        assert row["labels"][0] == 2**32 - 1
        assert guard.standing("alice").histogram[0] == 2**32 - 1
        assert guard.standing("alice").queries == 6


@pytest.mark.parametrize("width", [3, 10, 16, 40, 64])
def test_what_is_learnt_does_not_depend_on_how_a_batch_is_cut(tmp_path: Path, width: int) -> None:
    p, _ = batch(24, width)
    with hardening.Guard(policy(tmp_path, tier=(Types(n=4),))) as guard:
        guard.harden({"p": p}, client="whole")
        for i in range(len(p)):
            guard.harden({"p": p[i : i + 1]}, client="apart")
        whole, apart = guard.standing("whole"), guard.standing("apart")
    sums = ("posterior_entropy", "bits")
    for name in sums:
        assert getattr(whole, name) == pytest.approx(getattr(apart, name), rel=1e-12)
    assert whole._replace(**dict.fromkeys(sums, 0.0)) == apart._replace(**dict.fromkeys(sums, 0.0))
    assert whole.coverage > 0


def test_entropies_against_known_answers() -> None:
    """Counts (4, 2, 1, 1) and (100, 10, 1, 0, 0): Grassberger 2003 in nats, Krichevsky-Trofimov in bits."""
    cases = [
        ([4, 2, 1, 1], 1.5164710538079806, 18.169925001442312),
        ([100, 10, 1, 0, 0], 0.3645687094673855, 69.66835209163628),
    ]
    for counts, nats, bits in cases:
        assert label_entropy_bits(np.array(counts)) == pytest.approx(nats / math.log(2), rel=1e-12)
        assert code_length_bits(np.array(counts)) == pytest.approx(bits, rel=1e-12)
    assert label_entropy_bits(np.array([10, 0, 0])) == 0.0
    assert code_length_bits(np.zeros(3)) == 0.0


def test_the_table_is_bounded_and_forgets_nothing() -> None:
    clients = Clients(capacity=100)
    nothing = np.zeros(JOB, np.int64)
    nothing.view(np.float64)[Job.BITS] = 2.0
    for i in range(1000):
        slot = clients.slot(f"client-{i}")
        clients.charge(slot, 1)
        clients.settle(slot, nothing)
    assert clients.standing("client-0", "normal").queries == 1
    assert clients.standing("client-99", "normal").bits == 2.0
    pooled = clients.standing(POOLED, "normal")
    assert (pooled.queries, pooled.bits) == (900, 1800.0)
    assert len(clients.names()) == 100


def test_a_client_costs_at_most_a_kilobyte() -> None:
    tracemalloc.start()
    clients = Clients(capacity=4000)
    for i in range(4000):
        clients.slot(f"{i:036d}")
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert used / 4000 <= 1024


def test_widths_that_callers_choose_do_not_pile_up(tmp_path: Path) -> None:
    with hardening.Guard(policy(tmp_path, tier=(Types(n=4),))) as guard:
        guard.harden({"p": np.eye(1, 2)})
        first = weakref.ref(next(iter(guard._programs._known.values())))
        for width in range(3, 3 + Programs.MOST):
            guard.harden({"p": np.eye(1, width)})
        gc.collect()
        assert first() is None, "a program that the table forgot is still alive"
        assert len(guard._programs._known) <= Programs.MOST


def test_events_of_the_guard_never_show_the_key(tmp_path: Path) -> None:
    with hardening.Guard(policy(tmp_path)) as guard:
        secret = (tmp_path / "hardening.key").read_text().strip().split(":")[-1]
        shown = repr(guard) + repr(vars(guard)) + json.dumps(str(guard.policy))
    assert secret not in shown


def test_events_tell_the_operator_what_the_caller_is_not_told(tmp_path: Path) -> None:
    sink, clock = RecordingSink(), FakeClock(1000.0)
    rules = dataclasses.replace(policy(tmp_path, tier=(Types(n=4),)), clients=ClientRules(anonymous="deny"))
    p, _ = batch()
    with hardening.Guard(rules, sink=sink, clock=clock) as guard:
        for client in (None, "anonymous"):
            with pytest.raises(hardening.Denied) as caught:
                guard.harden({"p": p}, client=client)
            assert (str(caught.value), caught.value.code) == (hardening.Denied.SENTENCE, "forbidden")
        clock.now = 2000.0
        with pytest.raises(ReleaseError):
            guard.harden({"p": p * 2}, client="alice")
        assert guard.harden({"p": p}, client="alice")["p"].shape == p.shape
    assert [(e.kind, e.time, e.client) for e in sink.events] == [
        ("denied", 1000.0, "anonymous"),
        ("denied", 1000.0, "anonymous"),
        ("release-failed", 2000.0, "alice"),
    ]
    assert "clients.anonymous" in sink.events[0].evidence["reason"]
    assert "row 0" in sink.events[2].evidence["problem"]
    assert sink.closed


def test_pooling_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hardening.guard.CAPACITY", 3)
    sink = RecordingSink()
    p, _ = batch(1)
    with hardening.Guard(policy(tmp_path, tier=(Types(n=4),)), sink=sink) as guard:
        for i in range(10):
            guard.harden({"p": p}, client=f"client-{i}")
        assert guard.clients()[POOLED].queries == 7
        with pytest.raises(InputError, match="name of the shared account"):
            guard.harden({"p": p}, client=POOLED)
    assert [e.kind for e in sink.events] == ["accounts-pooled"]


def test_the_log_is_the_default_sink(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    p, _ = batch()
    with hardening.Guard(policy(tmp_path, tier=(Types(n=4),))) as guard, pytest.raises(ReleaseError):
        guard.harden({"p": p * np.nan}, client="alice")
    (record,) = (r for r in caplog.records if r.name == "hardening.events")
    assert record.levelname == "WARNING"
    assert json.loads(record.getMessage())["kind"] == "release-failed"
