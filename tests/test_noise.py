"""Keys, tables and draws against known answers and the ideal laws; the streams behind them: test_ciphers.py."""

from __future__ import annotations

import math
import pickle
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit
from scipy import stats

from hardening import noise
from hardening.errors import ConfigError
from hardening.kernels import memory, prf
from hardening.noise import CIPHERS, Key, Law, derive, grid_exponent, grid_exponents, noise_table, table_weights
from hardening.pipeline import Pipeline
from hardening.program import Program, Question, Task
from hardening.transforms import Gaussian

KEY = Key(1, CIPHERS[0], bytes(range(32)))


@njit
def draw_all(raw: Any, table: Any, bits: int, offset: int, out: Any) -> None:
    for i in range(len(raw) // 8):
        memory.store(out, i, prf.draw(raw, i, table, bits, offset))


@pytest.mark.parametrize(
    ("kind", "scale", "variance"),
    [
        ("gaussian", Fraction(1), 0.99999978876772808),
        ("gaussian", Fraction(1, 2), 0.21501267508813849),
        ("laplace", Fraction(1), 1.8413471884155846),
        ("gaussian", Fraction(1024, 5), 41943.04),
        ("laplace", Fraction(50), 2 * math.exp(1 / 50) / math.expm1(1 / 50) ** 2),
    ],
)
def test_tables_hold_the_exact_law(kind: Any, scale: Fraction, variance: float) -> None:
    table = noise_table(Law(kind, scale))
    weights = table_weights(table)
    assert sum(weights.values()) == 2**64
    assert all(weights[x] == weights[-x] for x in weights)
    assert sum(x * x * w for x, w in weights.items()) / 2**64 == pytest.approx(variance, rel=1e-12)
    assert not table.threshold.flags.writeable
    assert table.tv_bound < 2.0**-48


#: Bits after the point of whole numbers that stand for fractions.
POINT = 400


def exponential(x: Fraction) -> int:
    """e^-x for x >= 0, by the series of e^x in whole numbers alone: good to 2**-300, relatively."""
    halvings = max(0, math.ceil(x).bit_length())
    small = (x.numerator << POINT) // (x.denominator << halvings)
    term = total = 1 << POINT
    k = 0
    while term:
        k += 1
        term = (term * small >> POINT) // k
        total += term
    for _ in range(halvings):
        total = total * total >> POINT
    return (1 << 2 * POINT) // total


def level(law: Law, x: int) -> Fraction:
    """-ln P(x) / P(0), as the docstring of `Law` defines it."""
    if law.kind == "gaussian":
        return Fraction(x * x) / (2 * law.scale**2)
    steps = x if law.kind == "laplace" else x // law.period + (x % law.period >= law.flat)
    return Fraction(steps * law.period) / law.scale


@pytest.mark.parametrize(
    "law",
    [
        Law("gaussian", Fraction(1)),
        Law("gaussian", Fraction(1977, 128)),
        Law("laplace", Fraction(7, 3)),
        Law("staircase", Fraction(5), 13, 7),
        Law("staircase", Fraction(3), 4, 4),
        Law("staircase", Fraction(2), 1, 1),
    ],
)
def test_tables_are_the_law_in_units_of_two_to_the_minus_64(law: Law) -> None:
    """Against whole numbers alone: all weights but the mode's within half a unit, the whole within its bound."""
    table = noise_table(law)
    weights = table_weights(table)
    reach = 2 * max(weights) + 40
    ratios = [exponential(level(law, x)) for x in range(reach)]
    total = 2 * sum(ratios) - (1 << POINT)
    ideal = {x: (ratios[abs(x)] << POINT + 64) // total for x in range(1 - reach, reach)}
    assert set(weights) <= set(ideal)
    off = {x: abs((weights.get(x, 0) << POINT) - v) for x, v in ideal.items()}
    assert Fraction(sum(off.values()), 2 << POINT + 64) <= table.tv_bound
    assert all(2 * error <= (1 << POINT) + (1 << POINT - 40) for x, error in off.items() if x)
    assert all(weights[x] == weights[-x] for x in weights)


def test_a_staircase_of_single_steps_is_the_laplace_law() -> None:
    laplace, stairs = noise_table(Law("laplace", Fraction(9, 2))), noise_table(Law("staircase", Fraction(9, 2), 1, 1))
    assert table_weights(laplace) == table_weights(stairs)


@pytest.mark.parametrize("cipher", CIPHERS)
@pytest.mark.parametrize(
    "law",
    [
        Law("gaussian", Fraction(3)),
        Law("laplace", Fraction(2)),
        Law("gaussian", Fraction(200)),
        Law("staircase", Fraction(6), 10, 3),
    ],
)
def test_draws_follow_the_table(law: Law, cipher: str) -> None:
    table = noise_table(law)
    raw = noise.reference_stream(cipher, bytes(32), bytes(12), 0, 400_000)
    out = np.empty(raw.size)
    draw_all(raw, noise.packed(table), table.bits, table.offset, out)
    assert np.array_equal(out, noise.reference_noise(table, raw))
    weights = table_weights(table)
    values = sorted(weights)
    expected = np.array([weights[v] for v in values]) / 2**64 * raw.size
    observed = np.array([(out == v).sum() for v in values])
    common = expected >= 5
    chi2 = ((observed - expected)[common] ** 2 / expected[common]).sum()
    assert chi2 < stats.chi2.isf(1e-6, common.sum() - 1)


@given(st.sampled_from(["gaussian", "laplace", "staircase"]), st.floats(1e-6, 1e6))
def test_grid_puts_the_scale_in_its_octave(kind: Any, scale: float) -> None:
    in_steps = math.ldexp(scale, grid_exponent(kind, scale))
    assert (128 <= in_steps < 256) if kind == "gaussian" else (32 <= in_steps < 64)
    grids = grid_exponents(kind, scale)
    assert grid_exponent(kind, scale) in grids
    assert 1 <= math.ldexp(scale, grids[0]) < 2
    assert math.ldexp(scale, grids[-1]) < (256 if kind == "staircase" else 512 if kind == "laplace" else 2048)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.inf, math.nan, 1e-20, 1e20])
def test_impossible_scales_are_refused(scale: float) -> None:
    with pytest.raises(ValueError, match="noise scale"):
        grid_exponent("gaussian", scale)


@pytest.mark.parametrize("cipher", CIPHERS)
def test_keys_survive_as_text(cipher: str) -> None:
    key = Key(7, cipher, KEY.secret)
    assert Key.parse(key.format() + "\n") == key
    assert key.format().startswith(f"hardening-key:1:7:{cipher}:")
    assert Key.parse(key.format()) != Key(8, cipher, KEY.secret)
    assert Key.parse(key.format()) != Key(7, next(c for c in CIPHERS if c != cipher), KEY.secret)


def test_keys_are_silent() -> None:
    for text in (repr(KEY), str(KEY), f"{KEY}"):
        assert "hidden" in text
        assert "AAEC" not in text
        assert "\\x01" not in text
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(KEY)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("", "key"),
        ("hardening-key:2:1:chacha20:AAAA", "key"),
        ("hardening-key:1:x:chacha20:AAAA", "key.epoch"),
        ("hardening-key:1:0:chacha20:" + "A" * 43 + "=", "key.epoch"),
        ("hardening-key:1:1:rot13:" + "A" * 43 + "=", "key.cipher"),
        ("hardening-key:1:1:AES-128-CTR:" + "A" * 43 + "=", "key.cipher"),
        ("hardening-key:1:1:chacha20:SEKRET*!", "key.secret"),
        ("hardening-key:1:1:chacha20:SEKR", "key.secret"),
    ],
)
def test_bad_keys_name_the_fault_and_not_the_secret(text: str, path: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Key.parse(text)
    assert caught.value.path == path
    assert "SEKR" not in str(caught.value)


def test_derivation_separates_everything() -> None:
    contexts: list[tuple[Any, ...]] = [
        (KEY, "noise", "gaussian", 0.5),
        (KEY, "noise", "gaussian", 0.25),
        (KEY, "noise", "laplace", 0.5),
        (KEY, "tag", "gaussian", 0.5),
        (KEY, "noise", "gauss", "ian", 0.5),
        (KEY, "noise", b"gaussian", 0.5),
        (KEY, "noise", "gaussian", "0x1.0000000000000p-1"),
        (Key(2, KEY.cipher, KEY.secret), "noise", "gaussian", 0.5),
        (Key(1, CIPHERS[1], KEY.secret), "noise", "gaussian", 0.5),
        (Key(1, KEY.cipher, bytes(32)), "noise", "gaussian", 0.5),
    ]
    secrets = {derive(*c) for c in contexts}
    assert len(secrets) == len(contexts)
    assert derive(*contexts[0]) == derive(*contexts[0])
    assert all(len(s) == 32 for s in secrets)


def nonces_of(inputs: dict[str, Any], rows: int, key: Key = KEY) -> Any:
    """Nonces of input rows as the kernel computes them for the first output of a model."""
    program = Program(Pipeline("scalar", (Gaussian(sigma=1.0),)), 1, key, "p", "m")
    nonces = np.zeros((rows, 3), np.uint32)
    Task(program, np.zeros((rows, 1)), rows, nonces, Question(key, "m", inputs, rows)).run()
    return nonces


@settings(max_examples=40)
@given(st.integers(0, 70), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_the_row_hash_is_what_its_reference_says(size: int, rows: int, seed: int) -> None:
    octets = np.random.default_rng(seed).integers(0, 256, (rows, size), dtype=np.uint8)
    question = Question(KEY, "m", {"x": octets}, rows)
    key = [int(k) for k in question.key]
    for row, nonce in zip(octets, nonces_of({"x": octets}, rows), strict=True):
        padded = row.tobytes().ljust((size + 63) // 64 * 64, b"\0")
        assert nonce.tobytes() == noise.reference_nonce(np.frombuffer(padded, "<u8").tolist(), key)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_equal_numbers_are_the_same_question(dtype: str) -> None:
    """One zero, one NaN; everything else that differs in a bit is another question."""
    nans = {"f2": (0x7E00, 0xFE01), "f4": (0x7FC00000, 0xFF800001), "f8": (0x7FF8 << 48, 0xFFF0 << 48 | 1)}[dtype]
    whole = {"f2": "u2", "f4": "u4", "f8": "u8"}[dtype]
    one = np.array([[0.0, 1.5, np.inf, 0]], dtype)
    two = np.array([[-0.0, 1.5, np.inf, 0]], dtype)
    one.view(whole)[0, 3], two.view(whole)[0, 3] = nans
    assert np.array_equal(nonces_of({"x": one}, 1), nonces_of({"x": two}, 1))
    for j, value in ((0, np.finfo(dtype).tiny), (1, np.nextafter(one[0, 1], one[0, 0])), (2, -np.inf)):
        other = one.copy()
        other[0, j] = value
        assert not np.array_equal(nonces_of({"x": one}, 1), nonces_of({"x": other}, 1))


def test_rows_are_hashed_alone_and_with_what_they_share() -> None:
    rng = np.random.default_rng(0)
    x, mask = rng.normal(size=(6, 9)).astype("f4"), np.arange(3)
    together = nonces_of({"x": x, "mask": mask}, 6)
    for i in range(6):
        assert np.array_equal(nonces_of({"x": x[i : i + 1], "mask": mask}, 1)[0], together[i])
    assert not np.array_equal(nonces_of({"x": x, "mask": mask + 1}, 6), together)
    assert not np.array_equal(nonces_of({"y": x, "mask": mask}, 6), together)
    assert not np.array_equal(nonces_of({"x": x, "mask": mask}, 6, Key(2, KEY.cipher, KEY.secret)), together)
    assert len(np.unique(together, axis=0)) == 6


def test_a_million_questions_have_a_million_nonces() -> None:
    """Structured inputs - counters - on which a weak hash collides."""
    nonces = nonces_of({"x": np.arange(1_000_000, dtype=np.int64)[:, None] * np.array([[1, 1 << 32]])}, 1_000_000)
    assert len(np.unique(nonces.view([("", np.uint32)] * 3))) == 1_000_000
    for column in nonces.T:
        assert abs((column >> 31).mean() - 0.5) < 0.01
