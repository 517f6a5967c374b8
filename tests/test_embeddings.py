"""Noise by coverage and rotations of the client's own: kernels against references, and what both do not stop."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import hardening
from hardening.config import Output, Policy
from hardening.kernels import layout
from hardening.kernels.instructions.embedding import STRETCH
from hardening.kernels.layout import Job
from hardening.noise import CIPHERS, Key, Law, derive, noise_table, reference_noise, reference_stream
from hardening.pipeline import Pipeline
from hardening.program import CELLS, Program, Task
from hardening.transforms import CoverageNoise, Gaussian, Orthogonal, Round
from tests.keys import fixed_key

KEYS = {cipher: Key(1, cipher, bytes(range(32))) for cipher in CIPHERS}
KEY = KEYS["chacha20"]
TAG = np.array([1, 2, 3], np.uint32)


def run(
    transforms: tuple[Any, ...],
    x: NDArray[Any],
    nonces: Any = None,
    coverage: int = 0,
    tag: Any = TAG,
    key: Key = KEY,
) -> NDArray[Any]:
    out = x.copy()
    if nonces is None:
        nonces = np.arange(3 * len(x), dtype=np.uint32).reshape(-1, 3)
    task = Task(Program(Pipeline("embedding", transforms), x.shape[1], key, "e", "m"), out, len(out), nonces)
    task.address_to(np.asarray(tag, np.uint32))
    task.job[Job.COVERAGE] = coverage
    assert task.run() == 0
    return out


def secret(transform: Any, key: Key) -> bytes:
    return derive(key, "noise", "m", "e", *transform.context())


def drawn(
    transform: CoverageNoise, nonces: NDArray[np.uint32], width: int, rung: int, key: Key
) -> Iterator[NDArray[np.int64]]:
    ((_, _), (_, op), _) = Pipeline("embedding", (transform,)).lower()
    assert isinstance(op.law, Law)
    table, unit, own = noise_table(op.law), rung << STRETCH, secret(transform, key)
    streams = (reference_stream(key.cipher, own, n.tobytes(), unit, width) for n in nonces)
    yield np.array([reference_noise(table, s) for s in streams]).reshape(len(nonces), width)


def rotation(transform: Orthogonal, width: int, tag: Any, key: Key) -> Iterator[NDArray[np.int64]]:
    padded, nonce = (width + 7) // 8 * 8, np.asarray(tag, np.uint32).tobytes()
    words = reference_stream(key.cipher, secret(transform, key), nonce, 0, padded * transform.rounds)
    yield words.reshape(transform.rounds, padded)[:, :width].astype(np.int64)


def test_noise_follows_the_published_curve() -> None:
    """sigma = lambda (exp(ln(alpha / lambda) c / beta) - 1) with lambda 1e-6, alpha 0.8, beta 80 (B4B)."""
    noise = CoverageNoise(most=30.0)
    known = {0: 0.0, 10: 4e-6, 30: 1.6e-4, 50: 0.00489, 60: 0.026749, 70: 0.146285, 80: 0.799999, 90: 4.374981}
    for percent, sigma in known.items():
        assert noise.sigma(percent) == pytest.approx(sigma, rel=0.15 if sigma < 1e-3 else 1e-3, abs=1e-12)
    assert CoverageNoise().sigma(100) == 0.8
    assert CoverageNoise(beta=1e-3).sigma(100) == 0.8  # the exponential alone would overflow


@settings(max_examples=40)
@given(st.floats(1e-9, 1e-3), st.floats(0.01, 10.0), st.floats(1.0, 100.0), st.integers(0, CELLS))
def test_a_rung_is_the_highest_power_of_two_that_the_curve_allows(
    base: float, most: float, beta: float, visited: int
) -> None:
    noise = CoverageNoise(base=base, alpha=0.8, beta=beta, most=most)
    rung, sigma = noise.rung(visited), noise.sigma(100 * visited / CELLS)
    assert 0 <= rung <= layout.RUNGS
    if rung:
        assert most * 2.0 ** (rung - layout.RUNGS) <= sigma
    if rung < layout.RUNGS:
        assert most * 2.0 ** (rung + 1 - layout.RUNGS) > sigma
    assert noise.rung(0) == 0


@pytest.mark.parametrize("cipher", CIPHERS)
@settings(max_examples=30)
@given(st.integers(1, 90), st.integers(0, CELLS), st.integers(0, 2**32 - 1), st.sampled_from(["f4", "f8"]))
def test_noise_equals_its_reference(cipher: str, width: int, visited: int, seed: int, dtype: str) -> None:
    rng = np.random.default_rng(seed)
    noise = CoverageNoise()
    x, nonces = rng.normal(size=(11, width)).astype(dtype), rng.integers(0, 2**32, (11, 3), dtype=np.uint32)
    key = KEYS[cipher]
    out = run((noise,), x, nonces, visited, key=key)
    draws = drawn(noise, nonces, width, noise.rung(visited), key)
    expected = Pipeline("embedding", (noise,)).reference(x, draws, coverage=visited)
    assert np.array_equal(out, expected.astype(dtype))
    assert np.array_equal(run((noise,), x[3:4], nonces[3:4], visited, key=key)[0], out[3])
    if noise.rung(visited) == 0:
        assert np.array_equal(out, x)


def test_noise_is_as_large_as_its_rung_and_of_its_own() -> None:
    noise, x = CoverageNoise(), np.zeros((400, 64))
    seen: dict[int, NDArray[Any]] = {}
    for visited in range(0, CELLS, 64):
        rung = noise.rung(visited)
        out = run((noise,), x, coverage=visited)
        if rung in seen:
            assert np.array_equal(seen[rung], out), "one rung, one noise"
        elif rung:
            sigma = 0.8 * 2.0 ** (rung - layout.RUNGS)
            assert out.std() == pytest.approx(sigma, rel=0.03)
            for other, earlier in seen.items():
                scaled = earlier * 2.0 ** (rung - other)
                assert abs(np.corrcoef(out.ravel(), scaled.ravel())[0, 1]) < 0.03
            seen[rung] = out
    assert len(seen) > 10


@pytest.mark.parametrize("cipher", CIPHERS)
@settings(max_examples=30)
@given(st.integers(1, 200), st.integers(1, 4), st.integers(0, 2**32 - 1), st.sampled_from(["f4", "f8"]))
def test_rotation_equals_its_reference(cipher: str, width: int, rounds: int, seed: int, dtype: str) -> None:
    rng = np.random.default_rng(seed)
    turn, x = Orthogonal(rounds=rounds), rng.normal(size=(11, width)).astype(dtype)
    tag = rng.integers(0, 2**32, 3, dtype=np.uint32)
    key = KEYS[cipher]
    out = run((turn,), x, tag=tag, key=key)
    expected = Pipeline("embedding", (turn,)).reference(x, rotation(turn, width, tag, key))
    assert np.array_equal(out, expected.astype(dtype))
    assert np.array_equal(run((turn,), x[3:4], tag=tag, key=key)[0], out[3])
    np.testing.assert_allclose(out @ out.T, x @ x.T, rtol=1e-4 if dtype == "f4" else 1e-12, atol=1e-3)


@pytest.mark.parametrize("width", [1, 2, 3, 16, 100, 384, 1000])
def test_rotations_are_orthogonal_dense_and_the_client_s_own(width: int) -> None:
    a, b = (run((Orthogonal(),), np.eye(width), tag=tag) for tag in ((1, 2, 3), (1, 2, 4)))
    np.testing.assert_allclose(a @ a.T, np.eye(width), atol=1e-12)
    assert np.array_equal(a, run((Orthogonal(),), np.eye(width)))
    if width >= 16:
        assert np.mean(np.abs(a) > 0.01 / math.sqrt(width)) > 0.7, "entries are mixed, not moved alone"
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.2


def guarded(tmp_path: Path, *transforms: Any) -> hardening.Guard:
    rules = {"e": Output("embedding", {"normal": transforms})}
    return hardening.Guard(Policy(rules, fixed_key(tmp_path), root=tmp_path), "m")


def test_who_sees_more_gets_more_noise(tmp_path: Path) -> None:
    """An honest client asks about one thing again and again, a thief about everything."""
    rng = np.random.default_rng(0)
    few, all_ = rng.normal(size=(3, 32)), rng.normal(size=(6000, 32))
    base = {"e": few.astype("f4")}, {"x": few.astype("f4")}
    with guarded(tmp_path, CoverageNoise(alpha=0.8, beta=50.0)) as guard:
        first = guard.harden(base[0], client="thief", inputs=base[1])["e"]
        assert np.array_equal(first, base[0]["e"]), "a new client gets no noise"
        for start in range(0, 6000, 500):
            rows = all_[start : start + 500].astype("f4")
            guard.harden({"e": rows}, client="thief", inputs={"x": rows})
            for _ in range(4):
                guard.harden(base[0], client="honest", inputs=base[1])
        seen = guard.standing("honest").coverage
        guard.harden(base[0], client="honest", inputs=base[1])
        assert guard.standing("honest").coverage == seen <= 3 / CELLS, "the same vectors add nothing"
        assert guard.standing("thief").coverage > 0.5 > 0.01 > guard.standing("honest").coverage
        honest = guard.harden(base[0], client="honest", inputs=base[1])["e"]
        thief = guard.harden(base[0], client="thief", inputs=base[1])["e"]
        again = guard.harden(base[0], client="thief", inputs=base[1])["e"]
        large = np.tile(few, (300, 20)).astype("f4")  # hardened without the interpreter's lock
        big = guard.harden({"e": large}, client="thief", inputs={"x": large})["e"]
    assert np.array_equal(honest, base[0]["e"])
    assert np.abs(thief - honest).mean() > 0.1
    assert np.array_equal(thief, again)
    assert np.abs(big - large).mean() > 0.1


def test_two_accounts_cannot_be_compared_until_shared_questions_give_the_map_away(tmp_path: Path) -> None:
    """The break, in the open: least squares over as many shared questions as there are entries, and no fewer."""
    width, rng = 48, np.random.default_rng(0)
    x = rng.normal(size=(400, width)).astype("f4")
    with guarded(tmp_path, Orthogonal()) as guard:
        a, b = (guard.harden({"e": x}, client=c, inputs={"x": x})["e"].astype("f8") for c in ("a", "b"))
        assert np.array_equal(guard.harden({"e": x[:1]}, client="a", inputs={"x": x[:1]})["e"][0], a[0].astype("f4"))
    np.testing.assert_allclose(np.linalg.norm(a, axis=1), np.linalg.norm(x, axis=1), rtol=1e-5)
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert abs(cosine.mean()) < 0.1, "answers to one question look unrelated"
    errors = {}
    for shared in (width // 2, width - 1, width, 2 * width):
        solved = np.linalg.lstsq(a[:shared], b[:shared], rcond=None)[0]
        errors[shared] = float(np.linalg.norm(a[200:] @ solved - b[200:]) / np.linalg.norm(b[200:]))
    print("relative error of the map by shared questions:", errors)
    assert errors[width // 2] > 0.5
    assert errors[width - 1] > 0.05
    assert errors[width] < 0.01
    noisy = (Gaussian(sigma=0.1), Orthogonal())
    with guarded(tmp_path, *noisy) as guard:
        a, b = (guard.harden({"e": x}, client=c, inputs={"x": x})["e"].astype("f8") for c in ("a", "b"))
    solved = np.linalg.lstsq(a[: 2 * width], b[: 2 * width], rcond=None)[0]
    assert np.linalg.norm(a[200:] @ solved - b[200:]) / np.linalg.norm(b[200:]) < 0.01, "noise for all hides no map"


def test_promises() -> None:
    plain = Pipeline("embedding", (CoverageNoise(),)).guarantee(384)
    assert (plain.relation, plain.bits) == ("capacity", 384 * 32)
    after = Pipeline("embedding", (Gaussian(sigma=0.1, sensitivity=0.1), Orthogonal(), Round(decimals=2)))
    assert after.guarantee(384).relation == "output-metric"
    assert after.guarantee(384).parameters["rho"] > 0


@pytest.mark.parametrize(
    "make",
    [
        lambda: CoverageNoise(base=0.0),
        lambda: CoverageNoise(base=1.0),
        lambda: CoverageNoise(most=math.inf),
        lambda: CoverageNoise(beta=-1.0),
        lambda: Orthogonal(rounds=0),
    ],
)
def test_impossible_parameters_are_refused(make: Any) -> None:
    with pytest.raises(ValueError, match=":"):
        make()
