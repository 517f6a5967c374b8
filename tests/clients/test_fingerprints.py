"""Near duplicates: what is found, what is not, and that the index never grows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardening.clients.fingerprints import HASHES, SHARE, Fingerprints
from hardening.errors import InputError


def matched(index: Fingerprints, *rows: np.ndarray) -> list[int]:
    return [int(index.seen(row[None]).duplicate[0]) for row in rows]


def reference(row: np.ndarray, window: int, step: float, offset: float, salt: np.ndarray) -> list[int]:
    """The smallest different hashes of all windows, each hashed on its own, in whole numbers."""
    mask = 2**64 - 1
    levels = [
        int(np.floor((v + offset) / step)) & mask if abs((v + offset) / step) < 2**62 else 0x9E3779B97F4A7C15
        for v in row
    ]
    factor, stir = (int(s) for s in salt)
    out = set()
    for i in range(len(row) - window + 1):
        h = 0
        for v in levels[i : i + window]:
            h = (h * factor + v) & mask
        h ^= stir
        h = (h ^ h >> 30) * 0xBF58476D1CE4E5B9 & mask
        h = (h ^ h >> 27) * 0x94D049BB133111EB & mask
        out.add((h ^ h >> 31) >> 32)
    return sorted(out)[:HASHES]


@settings(max_examples=60)
@given(
    st.lists(st.floats(allow_nan=True, allow_infinity=True, width=32), min_size=1, max_size=150),
    st.integers(1, 30),
)
def test_hashes_are_those_of_the_reference(values: list[float], window: int) -> None:
    index, row = Fingerprints(b"secret", 1.0, window), np.array(values)
    index.seen(row[None])
    kept = index._hashes[: int((index._index > 0).sum())].tolist()
    with np.errstate(invalid="ignore"):
        finite = np.where(np.isfinite(row), row, 1e300)
    assert kept == reference(finite, min(window, len(row)), index._step, index._offset, index._salt)


def test_nearly_the_same_again_is_found_and_others_are_not() -> None:
    rng = np.random.default_rng(0)
    index = Fingerprints(b"secret", 1.0)
    one, other = rng.random(3072), rng.random(3072)
    assert matched(index, one, one + 1e-9, other, one - 1e-9) == [0, 1, 0, 1]
    # The very same is no near duplicate, whoever asks it.
    assert matched(index, other, other) == [0, 0]


def test_a_change_in_one_place_is_seen_through() -> None:
    """Blacklight's promise: +-20 of 255 on one window's worth of entries leaves at least half of the hashes."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        index, one = Fingerprints(bytes([seed]), 1.0), rng.random(784)
        changed = one.copy()
        start = rng.integers(0, 764)
        changed[start : start + 20] += rng.uniform(-20, 20, 20) / 255
        assert matched(index, one, changed) == [0, 1]


def test_who_does_not_know_the_secret_does_not_know_the_hashes() -> None:
    rng = np.random.default_rng(0)
    one, kept = rng.random(500), []
    for secret in (b"a", b"b"):
        index = Fingerprints(secret, 1.0)
        index.seen(one[None])
        kept.append(set(index._hashes.tolist()))
    assert not kept[0] & kept[1]


def test_the_owner_of_the_earlier_question_is_told() -> None:
    rng = np.random.default_rng(0)
    index, rows = Fingerprints(b"s", 1.0), rng.random((4, 300))
    assert index.seen(rows, slot=3).owner.tolist() == [-1] * 4
    near = rows + 1e-9
    found = index.seen(np.concatenate([near[:1], rng.random((1, 300)), near[2:3], rows[3:]]), slot=8)
    assert found.duplicate.tolist() == [1, 0, 1, 0]
    assert found.owner.tolist() == [3, -1, 3, -1]
    assert index.seen(rows[:1] + 2e-9, slot=9).owner[0] in (3, 8)


def test_a_batch_is_looked_up_as_its_rows_are() -> None:
    rng = np.random.default_rng(0)
    rows = np.concatenate([rng.random((5, 100)), np.zeros((2, 100))])[[0, 1, 2, 0, 5, 6, 3, 4, 4]]
    whole, apart = Fingerprints(b"s", 1.0), Fingerprints(b"s", 1.0)
    rows = rows + rng.uniform(0, 1e-9, rows.shape)
    found = whole.seen(rows).duplicate.tolist()
    assert found == matched(apart, *rows) == [0, 0, 0, 1, 0, 1, 0, 0, 1]
    assert np.array_equal(whole._index, apart._index)


def test_the_index_is_bounded_and_forgets_the_oldest() -> None:
    rng = np.random.default_rng(0)
    index = Fingerprints(b"s", 1.0, size=1 << 12)
    size = index.nbytes
    first = rng.random(400)
    assert matched(index, first, first + 1e-9) == [0, 1]
    for _ in range(40):
        index.seen(rng.random((50, 400)))
    assert index.nbytes == size <= 12 * (1 << 12)
    assert matched(index, first) == [0]
    fresh = rng.random(400)
    assert matched(index, fresh, fresh + 1e-9) == [0, 1]


def test_kinds_of_input() -> None:
    rng = np.random.default_rng(0)
    index = Fingerprints(b"s", 255.0)
    pictures = rng.integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    assert index.seen(pictures).duplicate.tolist() == [0, 0, 0]
    assert index.seen(np.asfortranarray(pictures.astype(np.float32) + 0.01)).duplicate.tolist() == [1, 1, 1]
    assert index.seen(np.zeros((0, 5))).duplicate.shape == (0,)
    assert index.seen(np.array([1.5])).duplicate.shape == (1,)
    with pytest.raises(InputError, match="rows of numbers, not object"):
        index.seen(np.array([["a"]], object))
    for span, window in ((0, 5), (np.inf, 5), (1.0, 0)):
        with pytest.raises(ValueError, match="span must be"):
            Fingerprints(b"s", span, window)
    assert 0 < SHARE < 1
