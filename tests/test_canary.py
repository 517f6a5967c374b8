"""Canaries: the exact rate, cells that near-duplicates share, every client's own, and rows that stay plausible."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

import hardening
from hardening.config import Output, Policy
from hardening.noise import CIPHERS, Key, derive, reference_nonce, reference_stream
from hardening.pipeline import Pipeline
from hardening.program import Program, Task, hash_key, whole_words
from hardening.transforms import Canary, Clip, Gaussian, LabelOnly, Project, TopK, Transform, Types
from hardening.transforms.canary import cells, ranks
from hardening.types import OutputSpace
from tests.keys import fixed_key

KEY = Key(1, "chacha20", bytes(range(32)))
TAG = (1, 2**31, 5)


def released(
    rows: NDArray[Any],
    *steps: Transform,
    key: Key = KEY,
    tag: tuple[int, ...] = TAG,
    space: Any = "simplex",
    model: str = "m",
) -> NDArray[Any]:
    out = rows.copy()
    nonces = np.arange(3 * len(out), dtype=np.uint32).reshape(-1, 3)
    pipeline = Pipeline(space, steps, dense=space == "logits")
    task = Task(Program(pipeline, out.shape[1], key, "p", model), out, len(out), nonces)
    task.address_to(np.array(tag, np.uint32))
    assert task.run() == 0
    return out


def distributions(rows: int, width: int, seed: int, spread: float = 1.0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).dirichlet(np.full(width, spread), rows)


def words_of(pipeline: Pipeline, rows: NDArray[Any], width: int, key: Key) -> NDArray[np.uint64]:
    """Two words for each row, from its cell's name, the row hash in Python's integers and an independent cipher."""
    (context,) = pipeline.contexts()
    secret = derive(key, "noise", "m", "p", *context)
    hashing = [int(k) for k in hash_key(derive(key, "cell", "m", "p"), whole_words(width))][:31]
    out = []
    for cell in cells(rows, rows.argmax(axis=1), OutputSpace(pipeline.space)):
        nonce = np.frombuffer(reference_nonce(cell.tolist(), hashing), "<u4") + np.array(TAG, np.uint32)
        out.append(reference_stream(key.cipher, secret, nonce.tobytes(), 0, 2))
    return np.array(out)


@settings(max_examples=40)
@given(
    st.integers(1, 80),
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.05, 1.0, 50.0]),
    st.sampled_from(["simplex", "logits"]),
    st.sampled_from(["f4", "f8"]),
    st.sampled_from(CIPHERS),
)
def test_kernel_equals_reference(width: int, seed: int, spread: float, space: Any, dtype: str, cipher: str) -> None:
    key = Key(1, cipher, KEY.secret)
    x = distributions(11, width, seed, spread) if width > 1 else np.ones((11, 1))
    x = x if space == "simplex" else np.random.default_rng(seed).normal(0, 8, x.shape)
    x[0] = x[0, -1] if space == "logits" else 1 / width  # all are equal
    x[1] = 0
    x[1, -1] = 1
    x = x.astype(dtype)
    pipeline = Pipeline(space, (Canary(rate=0.5),), dense=space == "logits")
    valid = pipeline.reference(x, iter([np.full((11, 2), 2**64 - 1, np.uint64)]))  # as the kernel has it, nothing done
    out = released(x, *pipeline.transforms, space=space, key=key)
    expected = pipeline.reference(x, iter([words_of(pipeline, valid, width, key)]))
    np.testing.assert_array_equal(out, expected.astype(dtype))
    assert np.array_equal(np.sort(out, axis=1), np.sort(valid.astype(dtype), axis=1))  # another order, nothing else
    alone = [released(row[None], *pipeline.transforms, space=space, key=key)[0] for row in x]
    assert np.array_equal(alone, out)


def test_the_class_that_leads_is_one_of_the_next_three() -> None:
    x = distributions(4000, 12, 1)
    changed = released(x, Canary(rate=1.0)).argmax(axis=1)
    order = ranks(x, x.argmax(axis=1))
    place = (order == changed[:, None]).argmax(axis=1)
    counts = np.bincount(place, minlength=4)
    assert counts[0] == 0
    assert stats.chisquare(counts[1:]).pvalue > 1e-6


def test_the_rate_is_exact() -> None:
    """DAWN's 16 bits made 327 / 65536 of 0.005; here it is off by less than 2**-64, and met over a million cells."""
    assert int(Fraction(0.005) * 2**16) == 327
    assert 0 <= Fraction(0.005) - Fraction(Canary(0.005).threshold, 2**64) < Fraction(1, 2**64)
    assert Canary(1.0).threshold == 2**64 - 1
    changed = total = 0
    for seed in range(5):
        x = distributions(200_000, 48, seed).astype("f4")
        own = x.argmax(axis=1)
        named = np.unique(cells(x.astype("f8"), own, OutputSpace("simplex")), axis=0)
        assert len(named) > 180_000
        changed += int((released(x, Canary(rate=0.005)).argmax(axis=1) != own).sum())
        total += len(x)
    assert abs(changed / total - 0.005) < 0.0002


def test_over_clients_the_rate_holds_for_every_cell() -> None:
    """One question, many clients: a client has it or has it not, and as many have it as the policy says."""
    x = distributions(1, 10, 3)
    rng = np.random.default_rng(0)
    tags = rng.integers(0, 2**32, (4000, 3), dtype=np.uint32)
    program, changed = Program(Pipeline("simplex", (Canary(rate=0.05),)), 10, KEY, "p", "m"), 0
    out = x.copy()
    task = Task(program, out, 1, np.zeros((1, 3), np.uint32))
    for tag in tags:
        out[...] = x
        task.address_to(tag)
        assert task.run() == 0
        changed += int(out.argmax() != x.argmax())
    assert stats.binomtest(changed, len(tags), 0.05).pvalue > 1e-6


def test_more_canaries_are_beside_the_same_ones() -> None:
    x = distributions(5000, 10, 4)
    few, many = (released(x, Canary(rate=r)).argmax(axis=1) for r in (0.01, 0.1))
    own = x.argmax(axis=1)
    assert 0 < (few != own).sum() < (many != own).sum()
    assert np.array_equal(many[few != own], few[few != own])


def test_near_duplicates_share_the_decision() -> None:
    """Also in batches, under another question's nonce, and wherever in the batch."""
    x = distributions(400, 10, 5, 0.5)
    near = x * np.exp(np.random.default_rng(0).normal(0, 1e-3, x.shape))
    near /= near.sum(axis=1, keepdims=True)
    same = (cells(x, x.argmax(1), OutputSpace("simplex")) == cells(near, near.argmax(1), OutputSpace("simplex"))).all(1)
    assert same.mean() > 0.95
    one, other = (released(r, Canary(rate=0.3)).argmax(axis=1) for r in (x, near))
    assert (one != x.argmax(axis=1)).sum() > 50
    assert np.array_equal(one[same], other[same])
    assert np.array_equal(released(x[::-1], Canary(rate=0.3))[::-1].argmax(axis=1), one)


@pytest.mark.parametrize("byte", range(32))
def test_every_byte_of_the_key_matters(byte: int) -> None:
    x = distributions(500, 10, 6)
    secret = bytearray(KEY.secret)
    secret[byte] ^= 1
    base, other = (released(x, Canary(rate=0.5), key=k) for k in (KEY, Key(1, "chacha20", bytes(secret))))
    assert 0.25 < (base.argmax(axis=1) == other.argmax(axis=1)).mean() < 0.42  # one in three by chance


def test_client_model_and_epoch_matter() -> None:
    x = distributions(2000, 10, 6)
    base = released(x, Canary(rate=0.5)).argmax(axis=1)
    others: list[dict[str, Any]] = [
        {"tag": (1, 2**31, 6)},
        {"tag": (2, 2**31, 5)},
        {"model": "n"},
        {"key": Key(2, "chacha20", KEY.secret)},
    ]
    for other in others:
        assert 0.28 < (released(x, Canary(rate=0.5), **other).argmax(axis=1) == base).mean() < 0.39


def test_no_key_no_canaries() -> None:
    with pytest.raises(hardening.ConfigError, match=r"\[key\]"):
        Policy({"p": Output("simplex", {"normal": (Canary(rate=0.01),)})})


def test_later_steps_keep_the_label_that_is_told(tmp_path: Path) -> None:
    x = distributions(600, 10, 7, 0.3)
    told = released(x, Canary(rate=0.3)).argmax(axis=1)
    assert (told != x.argmax(axis=1)).sum() > 50
    for steps in (
        (LabelOnly(),),
        (Types(n=20),),
        (TopK(k=2),),
        (Gaussian(sigma=0.2), Project(keep_top1=True), Types(n=100)),
        (Clip(low=0.0, high=0.3), Project(keep_top1=True)),
    ):
        assert np.array_equal(released(x, Canary(rate=0.3), *steps).argmax(axis=1), told)
        assert not Pipeline("simplex", (Canary(rate=0.3), *steps)).guarantee(10).keeps_top1


def test_what_canaries_promise() -> None:
    """They take nothing away from noise before them; noise after them compares models where they agree."""
    noise = (Gaussian(sigma=0.1, sensitivity=0.1), Project())
    plain, later = (Pipeline("simplex", steps).guarantee(10) for steps in (noise, (*noise, Canary(rate=0.01))))
    assert later == plain
    earlier = Pipeline("simplex", (Canary(rate=0.01), *noise)).guarantee(10)
    assert set(earlier.assumptions) > set(plain.assumptions)
    assert Pipeline("simplex", (Canary(rate=0.01),)).guarantee(10).keeps_top1 is False


def test_through_a_guard_every_client_has_canaries_of_its_own(tmp_path: Path) -> None:
    rules = Output("simplex", {"normal": (Canary(rate=0.2), LabelOnly())}, label_output="label")
    policy = Policy({"p": rules}, key=fixed_key(tmp_path), root=tmp_path)
    x = distributions(500, 10, 8).astype("f4")
    outputs = {"p": x, "label": x.argmax(axis=1)}
    with hardening.Guard(policy) as guard:
        answers = [guard.harden(outputs, client=who) for who in ("alice", "bob", "alice")]
    for answer in answers:
        assert np.array_equal(answer["p"].argmax(axis=1), answer["label"])
        assert 50 < (answer["label"] != outputs["label"]).sum() < 150
    assert np.array_equal(answers[0]["label"], answers[2]["label"])
    assert not np.array_equal(answers[0]["label"], answers[1]["label"])
