"""Near duplicates: what is found, what is not, and that the index never grows."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardening.clients import fingerprints
from hardening.clients.fingerprints import HASHES, SHARE, Fingerprints
from hardening.errors import InputError
from hardening.kernels.fingerprint import RARE, WAYS

GOLDEN = 0x9E3779B97F4A7C15


def matched(index: Fingerprints, *rows: np.ndarray) -> list[int]:
    return [int(index.seen(row[None]).duplicate[0]) for row in rows]


MASK = 2**64 - 1


def mix(h: int) -> int:
    h = (h ^ h >> 30) * 0xBF58476D1CE4E5B9 & MASK
    h = (h ^ h >> 27) * 0x94D049BB133111EB & MASK
    return h ^ h >> 31


def reference(row: np.ndarray, index: Fingerprints) -> tuple[list[int], int]:
    """The smallest different hashes of all windows, each hashed on its own, and the row's name, in whole numbers."""
    factor, stir, begin = (int(s) for s in index._salt)
    scaled = [(float(v) + index._offset) / index._step for v in row]
    levels = [math.floor(v) & MASK if abs(v) < 2**62 else GOLDEN for v in scaled]
    out, window = set(), min(index.window, len(row))
    for i in range(len(row) - window + 1):
        h = 0
        for v in levels[i : i + window]:
            h = (h * factor + v) & MASK
        out.add(mix(h ^ stir) >> 32)
    total = len(row) * GOLDEN
    for i, v in enumerate(row):
        x = 0x7FF8 << 48 if np.isnan(v) else int(np.float64(v + 0.0).view("u8"))
        key = mix((begin + i * GOLDEN) & MASK)
        total += ((x + key) % 2**32) * (((x >> 32) + (key >> 32)) % 2**32)
    return sorted(out)[:HASHES], max(mix(total & MASK ^ stir), 1)


class Plain:
    """The index with its buckets as lists, the newest first."""

    def __init__(self, index: Fingerprints) -> None:
        self.index, self.now, self.owners = index, 1, dict[int, int]()
        self.hashes: dict[int, list[tuple[int, int]]] = {}
        self.names: dict[int, list[int]] = {}

    def seen(self, row: np.ndarray, slot: int) -> tuple[int, int]:
        hashes, name = reference(row, self.index)
        buckets = [self.hashes.setdefault(mix(h) % len(self.index._index), []) for h in hashes]
        every = list(zip(hashes, buckets, strict=True))
        rare = [(h, bucket) for h, bucket in every if [kept for kept, _ in bucket] != [h] * WAYS]
        best, of = self.likest(every)
        like = best >= max(SHARE * len(every), 1)
        if not like:
            best, of = self.likest(rare)
            like = len(rare) >= RARE and best >= SHARE * len(rare)
        for h, bucket in every:
            bucket.insert(0, (h, self.now))
            del bucket[WAYS:]
        names = self.names.setdefault(name % len(self.index._known), [])
        same = name in names
        if same:
            names.remove(name)
        names.insert(0, name)
        del names[WAYS:]
        nearly = like and self.now - of < len(self.index._owners) and not same
        owner = self.owners.get(of, -1) if nearly else -1
        self.owners[self.now] = slot
        self.now += 1
        return int(nearly), owner

    def likest(self, hashes: list[tuple[int, list[tuple[int, int]]]]) -> tuple[int, int]:
        votes: Counter[int] = Counter()
        best, of = 0, 0
        for h, bucket in hashes:
            for kept, number in bucket:
                if kept == h:
                    votes[number] += 1
                    if votes[number] > best:
                        best, of = votes[number], number
        return best, of


@settings(max_examples=60)
@given(
    st.lists(st.floats(allow_nan=True, allow_infinity=True, width=32), min_size=1, max_size=150),
    st.integers(1, 30),
)
def test_hashes_and_names_are_those_of_the_reference(values: list[float], window: int) -> None:
    index, row = Fingerprints(b"secret", 1.0, window), np.array(values)
    made = index.prints(np.stack([row, row[::-1]]))
    for i, each in enumerate((row, row[::-1])):
        kept, name = made.hashes[i, : made.parts[i]].tolist(), int(made.names[i])
        assert (kept, name) == reference(each, index)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(0, 4)), max_size=60),
    st.integers(1, 4),
    st.sampled_from([1, 64, 256]),
)
def test_rows_are_looked_up_as_the_reference_does(asked: list[tuple[int, int, int]], window: int, size: int) -> None:
    """Few different rows, each in few variants, by few clients: ties, the same again, and a full index are common."""
    index = Fingerprints(b"secret", 1.0, window, size)
    plain, base = Plain(index), np.random.default_rng(window).random((4, 12))
    for which, variant, slot in asked:
        row = base[which].copy()
        row[variant] += variant
        found = index.seen(row[None], slot)
        assert (int(found.duplicate[0]), int(found.owner[0])) == plain.seen(row, slot)


def test_one_zero_and_one_nan() -> None:
    index = Fingerprints(b"secret", 1.0, 2)
    payload = np.array([0x7FF8 << 48 | 5], np.uint64).view(np.float64)[0]
    rows = np.array([[0.0, np.nan, 1.0], [-0.0, payload, 1.0], [5e-324, np.nan, 1.0]])
    names = index.prints(rows).names
    assert names[0] == names[1] != names[2]
    assert matched(index, *rows) == [0, 0, 1]


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
        kept.append(set(Fingerprints(secret, 1.0).prints(one[None]).hashes[0].tolist()))
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
    assert index.seen(np.zeros((3, 0))).duplicate.tolist() == [0, 0, 0]
    assert index.seen(np.array([1.5])).duplicate.shape == (1,)
    with pytest.raises(InputError, match="rows of numbers, not object"):
        index.seen(np.array([["a"]], object))
    for span, window in ((0, 5), (np.inf, 5), (1.0, 0)):
        with pytest.raises(ValueError, match="span must be"):
            Fingerprints(b"s", span, window)
    assert 0 < SHARE < 1


def test_the_very_same_question_stays_the_same_however_many_nearly_repeat_it() -> None:
    """A search around a question that many ask takes it out of the index, and makes nobody suspect who asks it."""
    rng = np.random.default_rng(0)
    index, popular = Fingerprints(b"s", 1.0), rng.random(300)
    assert matched(index, popular) == [0]
    near = popular + rng.uniform(0, 1e-9, (50, 300))
    assert index.seen(near, 7).duplicate.all()
    assert matched(index, popular, popular) == [0, 0]


def test_large_rows_are_what_small_ones_are() -> None:
    """Cut into chunks, and hashed without the interpreter's lock."""
    rng = np.random.default_rng(0)
    index, rows = Fingerprints(b"s", 1.0), rng.random((5, 150_528)).astype(np.float32)
    made = index.prints(rows)
    for i, row in enumerate(rows):
        assert (made.hashes[i].tolist(), int(made.names[i])) == reference(row, index)
    assert matched(index, *rows, *(rows + np.float32(1e-4))) == [0] * 5 + [1] * 5


def test_who_nearly_repeats_whom_is_counted_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprints, "MOST_LINKS", 8)
    rng = np.random.default_rng(0)
    index, rows = Fingerprints(b"s", 1.0), rng.random((20, 200))
    for i in range(3):
        index.seen(rows[:1] + 1e-9 * i, i % 2)
    index.seen(rows[:1] + 9e-9)  # by nobody
    assert index.links() == ((0, 1, 2),)
    for i in range(1, 20):
        index.seen(rows[i : i + 1], 100 + i)
        index.seen(rows[i : i + 1] + 1e-9, 200 + i)
        assert len(index.links()) <= 8
    assert (0, 1, 2) in index.links(), "what was seen most often is kept"
    assert (119, 219, 1) in index.links()
