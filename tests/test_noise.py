"""Keys, tables and keystreams against known answers, other implementations and the ideal laws."""

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
from hardening.kernels import prf
from hardening.noise import Key, Law, derive, grid_exponent, noise_table, table_weights

KEY = Key(1, "chacha20", bytes(range(32)))


def keystream(secret: bytes, nonce: bytes, counter: int, words: int) -> Any:
    out = np.zeros(words + 8, np.uint64)
    prf.fill(np.frombuffer(secret, "<u4"), np.frombuffer(nonce, "<u4"), counter, out[: (words + 7) // 8 * 8], words)
    return out[:words]


def test_rfc8439_block() -> None:
    """RFC 8439, section 2.3.2."""
    stream = keystream(bytes(range(32)), bytes.fromhex("000000090000004a00000000"), 1, 8)
    assert stream.tobytes().hex() == (
        "10f1e7e4d13b5915500fdd1fa32071c4c7d1f4c733c068030422aa9ac3d46c4e"
        "d2826446079faa0914c2d705d98b02a2b5129cd1de164eb9cbd083e8a2503c4e"
    )


@settings(max_examples=60, deadline=None)
@given(
    st.binary(min_size=32, max_size=32), st.binary(min_size=12, max_size=12), st.integers(0, 2**31), st.integers(1, 99)
)
def test_stream_equals_an_independent_implementation(secret: bytes, nonce: bytes, counter: int, words: int) -> None:
    expected = noise.reference_stream(secret, nonce, counter, words)
    assert np.array_equal(keystream(secret, nonce, counter, words), expected)


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


@pytest.mark.parametrize(
    "law", [Law("gaussian", Fraction(3)), Law("laplace", Fraction(2)), Law("gaussian", Fraction(200))]
)
def test_draws_follow_the_table(law: Law) -> None:
    table = noise_table(law)
    raw = noise.reference_stream(bytes(32), bytes(12), 0, 400_000)
    out = np.empty(raw.size)
    prf.draw(raw, raw.size, table.threshold, table.alias, table.bits, table.offset, out)
    assert np.array_equal(out, noise.reference_noise(table, raw))
    weights = table_weights(table)
    values = sorted(weights)
    expected = np.array([weights[v] for v in values]) / 2**64 * raw.size
    observed = np.array([(out == v).sum() for v in values])
    common = expected >= 5
    chi2 = ((observed - expected)[common] ** 2 / expected[common]).sum()
    assert chi2 < stats.chi2.isf(1e-6, common.sum() - 1)


@given(st.sampled_from(["gaussian", "laplace"]), st.floats(1e-6, 1e6))
def test_grid_puts_the_scale_in_its_octave(kind: str, scale: float) -> None:
    in_steps = math.ldexp(scale, grid_exponent(kind, scale))
    assert (128 <= in_steps < 256) if kind == "gaussian" else (32 <= in_steps < 64)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.inf, math.nan, 1e-20, 1e20])
def test_impossible_scales_are_refused(scale: float) -> None:
    with pytest.raises(ValueError, match="noise scale"):
        grid_exponent("gaussian", scale)


def test_key_round_trip_and_silence() -> None:
    assert Key.parse(KEY.format() + "\n") == KEY
    assert Key.parse(KEY.format()) != Key(2, "chacha20", KEY.secret)
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
        (Key(2, "chacha20", KEY.secret), "noise", "gaussian", 0.5),
        (Key(1, "chacha20", bytes(32)), "noise", "gaussian", 0.5),
    ]
    secrets = {derive(*c) for c in contexts}
    assert len(secrets) == len(contexts)
    assert derive(*contexts[0]) == derive(*contexts[0])
    assert all(len(s) == 32 for s in secrets)


def test_device_functions_are_callable_from_kernels() -> None:
    @njit
    def first_word(key: Any, nonce: Any, out: Any) -> Any:
        prf.fill(key, nonce, 0, out, 8)
        return out[0]

    got = first_word(np.zeros(8, np.uint32), np.zeros(3, np.uint32), np.zeros(8, np.uint64))
    assert int(got).to_bytes(8, "little").hex() == "76b8e0ada0f13d90"
