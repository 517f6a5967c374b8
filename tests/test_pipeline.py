"""The kernel against each transform's numpy reference on the same draws, and the promises that transforms make."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hardening import kernels
from hardening.errors import ConfigError
from hardening.kernels import layout
from hardening.noise import CIPHERS, Key, derive, noise_table, reference_noise, reference_stream
from hardening.pipeline import Pipeline
from hardening.program import Program, Question, Task
from hardening.transforms import (
    BoundaryRandomisedResponse,
    Canary,
    Clip,
    CoverageNoise,
    Cutoff,
    DynaNoise,
    Exponential,
    Gaussian,
    Grad2,
    KRandomisedResponse,
    LabelOnly,
    Laplace,
    Mad,
    MemGuard,
    Misinformation,
    Mld,
    Noise,
    Orthogonal,
    PermuteAndFlip,
    Project,
    RandomTarget,
    ReverseSigmoid,
    Round,
    Staircase,
    Temperature,
    TopK,
    Transform,
    Types,
    types_bits,
)

KEYS = {cipher: Key(1, cipher, bytes(range(32))) for cipher in CIPHERS}
KEY = KEYS[CIPHERS[0]]
V = [
    0.12109935,
    0.0498215,
    0.0993958,
    0.06410096,
    0.11366928,
    0.04645343,
    0.06419807,
    0.30685693,
    0.07616714,
    0.05823757,
]

SIMPLEX: dict[str, tuple[Transform, ...]] = {
    "nothing": (),
    "types": (Types(n=100),),
    "types-1": (Types(n=1),),
    "round": (Round(decimals=3),),
    "top-k": (TopK(k=3), Types(n=20)),
    "top-1": (TopK(k=1),),
    "spread": (TopK(k=2, remainder="spread"),),
    "other": (TopK(k=2, remainder="other", other=1),),
    "label": (LabelOnly(),),
    "temperature": (Temperature(t=2.0), Round(decimals=4)),
    "project": (Clip(low=0.05, high=0.6), Project()),
    "keep": (Clip(low=0.05, high=0.6), Project(keep_top1=True), Types(n=50)),
    "gaussian": (Gaussian(sigma=0.05), Project(keep_top1=True), Types(n=100)),
    "laplace": (Laplace(scale=0.1), Project(), Round(decimals=2)),
    "two": (Gaussian(sigma=0.05), Gaussian(sigma=0.05), Laplace(scale=0.05), Project()),
    "staircase": (Staircase(scale=0.5, sensitivity=0.2), Project(keep_top1=True), Types(n=100)),
    "fitted": (Gaussian(epsilon=2.0, delta=1e-6, sensitivity=0.05), Project()),
    "finest": (Gaussian(sigma=0.05, grid=15), Project()),
    "coarse": (Laplace(scale=0.1, grid=4), Project(), Types(n=20)),
    "reverse": (ReverseSigmoid(beta=0.01, gamma=0.2),),
    "exponential": (Exponential(epsilon=12.0),),
    "permute-and-flip": (Gaussian(sigma=0.02), Project(), PermuteAndFlip(epsilon=12.0)),
    "k-rr": (KRandomisedResponse(epsilon=3.0), Project(keep_top1=True), Types(n=3)),
    "boundary": (BoundaryRandomisedResponse(epsilon=0.5, margin=0.2),),
    "cutoff": (Cutoff(low=0.1),),
    "random": (RandomTarget(l1=0.8),),
    "random-any": (RandomTarget(l1=1.5, keep_top1=False), Types(n=100)),
    "memguard": (MemGuard(l1=0.3),),
    "memguard-sure": (MemGuard(l1=1.0, confidence=1.0), Types(n=100)),
    "dynanoise": (DynaNoise(variance=0.3, gain=2.0, t=10.0),),
    "dynanoise-any": (DynaNoise(keep_top1=False, key="fresh"), Round(decimals=3)),
    "dynanoise-after": (Gaussian(sigma=0.05), Project(), DynaNoise(variance=4.0)),
    "mld": (Mld(l1=1.0),),
    "mld-after-noise": (Gaussian(sigma=0.05), Project(keep_top1=True), Mld(l1=0.4)),
    "mad": (Mad(l1=0.6, keep_top1=False),),
    "grad2": (Grad2(l1=2.0),),
    "misinformation": (Misinformation(tau=0.5, nu=20.0),),
}


#: Every pipeline, and those that draw with every cipher.
DRAWN = [
    (name, cipher)
    for name, transforms in SIMPLEX.items()
    for cipher in (CIPHERS if any(op.keyed for _, op in Pipeline("simplex", transforms).lower()) else CIPHERS[:1])
]


def run(
    pipeline: Pipeline, scores: NDArray[Any], nonces: Any = None, model: str = "m", key: Key = KEY
) -> tuple[int, NDArray[Any]]:
    out = scores.copy()
    if nonces is None:
        nonces = np.arange(3 * len(scores), dtype=np.uint32).reshape(-1, 3)
    return Task(Program(pipeline, scores.shape[1], key, "p", model), out, len(out), nonces).run(), out


def draws(pipeline: Pipeline, nonces: NDArray[np.uint32], width: int, key: Key = KEY) -> Iterator[NDArray[Any]]:
    """The noise or words that the kernel must have used: another implementation of the cipher, the table in numpy."""
    fitted = pipeline.at(width)
    for (transform, op), context in zip(fitted.lower(), fitted.contexts(), strict=True):
        if op.keyed is None:
            continue
        secret = derive(key, "noise", "m", "p", *context)
        streams = [reference_stream(key.cipher, secret, nonce.tobytes(), 0, width) for nonce in nonces]
        if op.law is None:
            yield np.array(streams).reshape(len(nonces), width)
            continue
        table, n = noise_table(op.law), pipeline.columns.count(transform.of) if pipeline.space == "boxes" else width
        yield np.array([reference_noise(table, stream[:n]) for stream in streams]).reshape(len(nonces), n)


def distributions(rows: int, width: int, seed: int, spread: float) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    out = rng.dirichlet(np.full(width, spread), size=rows) + 1e-12
    out[:, rng.integers(width)] = out[:, rng.integers(width)]  # ties
    return np.asarray(out / out.sum(axis=1, keepdims=True))


@pytest.mark.parametrize(("name", "cipher"), DRAWN)
@settings(max_examples=15)
@given(st.integers(2, 40), st.integers(0, 2**32 - 1), st.sampled_from([0.05, 1.0, 50.0]), st.sampled_from(["f4", "f8"]))
def test_kernel_equals_reference(name: str, cipher: str, width: int, seed: int, spread: float, dtype: str) -> None:
    pipeline, key = Pipeline("simplex", SIMPLEX[name]), KEYS[cipher]
    x = distributions(5, width, seed, spread).astype(dtype)
    x[0] = 0
    x[0, -1] = 1
    x[1] = 1 / width
    nonces = np.random.default_rng(seed).integers(0, 2**32, (5, 3), dtype=np.uint32)
    status, out = run(pipeline, x, nonces, key=key)
    assert status == 0
    expected = pipeline.reference(x, draws(pipeline, nonces, width, key))
    np.testing.assert_allclose(out, expected.astype(dtype), rtol=1e-6 if dtype == "f4" else 1e-12, atol=1e-9)
    assert np.isfinite(out).all()
    assert (out >= 0).all()
    np.testing.assert_allclose(out.sum(axis=1, dtype=np.float64), 1.0, atol=width * 1e-7)
    if pipeline.guarantee(width).keeps_top1:
        assert np.array_equal(out.argmax(axis=1), x.argmax(axis=1))
    for i in range(len(x)):  # rows are independent
        alone = run(pipeline, x[i : i + 1], nonces[i : i + 1], key=key)[1]
        assert np.array_equal(alone[0], out[i])


@pytest.mark.parametrize("cipher", CIPHERS)
@pytest.mark.parametrize(
    ("space", "transforms"),
    [
        ("logits", (Clip(low=-5.0, high=5.0), Gaussian(sigma=0.25), Clip(low=-6.0, high=6.0), TopK(k=3))),
        ("logits", (Temperature(t=3.0), LabelOnly())),
        ("logits", (Clip(low=-5.0, high=5.0), Exponential(epsilon=20.0))),
        ("logits", (Clip(low=-5.0, high=6.5), PermuteAndFlip(epsilon=20.0))),
        ("logits", (Temperature(t=3.0), KRandomisedResponse(epsilon=3.0))),
        ("logits", (BoundaryRandomisedResponse(epsilon=0.0, margin=2.0),)),
        ("sigmoid", (Gaussian(sigma=0.1), Clip(low=0.0, high=1.0), Round(decimals=1))),
        ("sigmoid", (LabelOnly(),)),
        ("multilabel", (Gaussian(sigma=0.1), Clip(low=0.0, high=1.0), TopK(k=4), Round(decimals=2))),
        ("multilabel", (TopK(k=20), Types(n=7))),
        ("multilabel", (TopK(k=1), LabelOnly())),
        ("scalar", (Laplace(scale=3.0), Round(decimals=0))),
        ("embedding", (Gaussian(sigma=0.02), Round(decimals=3))),
    ],
)
def test_kernel_equals_reference_off_the_simplex(space: Any, transforms: tuple[Transform, ...], cipher: str) -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(6, 17)) * 4 if space not in ("sigmoid", "multilabel") else rng.random((6, 17))
    nonces = rng.integers(0, 2**32, (6, 3), dtype=np.uint32)
    pipeline = Pipeline(space, transforms)
    status, out = run(pipeline, x, nonces, key=KEYS[cipher])
    assert status == 0
    assert np.array_equal(out, pipeline.reference(x, draws(pipeline, nonces, 17, KEYS[cipher])))


@pytest.mark.parametrize("width", [3, 16, 20, 64, 70])
def test_masked_scores_may_be_the_least_floats(width: int) -> None:
    """All below -1e300: the top class is among them all the same."""
    x = np.full((9, width), np.finfo(np.float64).min)
    x[:, 2] /= 2
    for transforms in ((LabelOnly(),), (Clip(low=-2.0, high=2.0), TopK(k=2)), (Temperature(t=0.5),)):
        pipeline = Pipeline("logits", transforms, dense=True)
        status, out = run(pipeline, x)
        assert status == 0
        with np.errstate(over="ignore"):
            assert np.array_equal(out, pipeline.reference(x))
        assert np.array_equal(run(pipeline, x[:1])[1], out[:1])


def test_types_are_the_nearest_points() -> None:
    """Largest remainder is optimal in L1 among all points of the grid (Reznik 2011), here by enumeration."""
    rng = np.random.default_rng(0)
    n = 7
    grid = np.array([(i, j, n - i - j) for i in range(n + 1) for j in range(n + 1 - i)]) / n
    for x in rng.dirichlet(np.ones(3), size=200):
        out = run(Pipeline("simplex", (Types(n=n),)), x[None])[1][0]
        if out.argmax() == x.argmax() and np.sum(out == out.max()) == 1:
            assert np.abs(out - x).sum() <= np.abs(grid - x).sum(axis=1).min() + 2 / n
        assert np.abs(out - x).max() < 2 / n
    assert len(grid) == round(2 ** types_bits(n, 3))


def test_known_projections_and_roundings() -> None:
    """Rows whose answers were computed elsewhere: Rounded's published row, Duchi's examples."""
    out = run(Pipeline("simplex", (Round(decimals=3),)), np.array([V]))[1][0]
    expected = [0.121, 0.05, 0.099, 0.064, 0.114, 0.046, 0.064, 0.307, 0.076, 0.058]
    np.testing.assert_allclose(out, expected, atol=1.01e-3)
    assert out.sum() == pytest.approx(1.0, abs=1e-12)
    labels = run(Pipeline("simplex", (LabelOnly(),)), np.eye(3) * 0.85 + 0.05)[1]
    assert np.array_equal(labels, np.eye(3))
    three = np.array([[0.5, 0.3, 0.2]])
    assert run(Pipeline("simplex", (TopK(k=2),)), three)[1][0].tolist() == pytest.approx([0.625, 0.375, 0.0])


def test_published_reverse_sigmoid() -> None:
    pipeline = Pipeline("simplex", (ReverseSigmoid(beta=1.0, gamma=0.1, allow_flip=True),))
    out = run(pipeline, np.array([V]))[1][0]
    expected = [0.10733664, 0.07743666, 0.09712707, 0.08230411, 0.10377649]
    np.testing.assert_allclose(out[:5], expected, atol=1e-5)
    assert pipeline.guarantee(10).relation == "none"


@pytest.mark.parametrize("width", [100, 1000])
def test_reverse_sigmoid_that_flips_the_label_is_refused(width: int) -> None:
    with pytest.raises((ValueError, ConfigError), match="allow_flip"):
        Program(Pipeline("simplex", (ReverseSigmoid(beta=1.0, gamma=0.5),)), width, KEY, "p", "m")


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        ([0.5, math.nan, 0.5], layout.NOT_FINITE),
        ([0.5, math.inf, 0.5], layout.NOT_FINITE),
        ([0.5, -math.inf, 0.5], layout.NOT_FINITE),
        ([0.5, 0.4, 0.0], layout.NOT_SIMPLEX),
        ([1.5, -0.5, 0.0], layout.NOT_SIMPLEX),
        ([0.0, 0.0, 0.0], layout.NOT_SIMPLEX),
        ([1e300, 0.0, 0.0], layout.NOT_SIMPLEX),
    ],
)
def test_bad_rows_are_named(bad: list[float], problem: int) -> None:
    x = np.array([[0.2, 0.3, 0.5], bad])
    status, _ = run(Pipeline("simplex", (Types(n=10),)), x)
    assert status == 2 * 8 + problem


@pytest.mark.parametrize("width", [3, 10, 70])
@pytest.mark.parametrize(
    ("value", "problem"),
    [(math.nan, layout.NOT_FINITE), (math.inf, layout.NOT_FINITE), (2.0, layout.NOT_SIMPLEX), (1e300, 2)],
)
def test_the_offending_row_of_a_batch_is_named(width: int, value: float, problem: int) -> None:
    for row in (0, 7, 11, 19):
        x = distributions(20, width, 0, 1.0)
        x[row, width // 2] = value
        assert run(Pipeline("simplex", (Types(n=10),)), x)[0] == (row + 1) * 8 + problem


@pytest.mark.parametrize("cipher", CIPHERS)
def test_rows_are_the_same_alone_and_among_others(cipher: str) -> None:
    """Rows are worked on eight at a time or alone, as a batch happens to be cut; nobody can tell which."""
    for width in (1, 2, 9, 16, 17, 33, 64, 65, 200):
        x = distributions(21, width, width, 0.3) if width > 1 else np.ones((21, 1))
        nonces = np.random.default_rng(width).integers(0, 2**32, (21, 3), dtype=np.uint32)
        for transforms in (*SIMPLEX.values(), (Canary(rate=0.5), Types(n=100))):
            if any(isinstance(t, TopK) and (t.other or 0) >= width for t in transforms):
                continue
            pipeline = Pipeline("simplex", transforms)
            whole = run(pipeline, x, nonces, key=KEYS[cipher])[1]
            for cut in (1, 3, 8, 13):
                part = run(pipeline, x[cut:], nonces[cut:], key=KEYS[cipher])[1]
                assert np.array_equal(part, whole[cut:]), (width, transforms, cut)


@pytest.mark.parametrize("cipher", CIPHERS)
@pytest.mark.parametrize("width", [255, 256, 257, 300, 1000, 4096])
def test_long_rows_with_few_scores(width: int, cipher: str) -> None:
    """Such rows are rounded by what is not zero alone; the reference knows no such thing."""
    rng = np.random.default_rng(width)
    x = np.zeros((12, width))
    for i, few in enumerate((1, 1, 2, 3, 7, 8, 9, 30, width // 4, width // 4 + 1, width // 2, width)):
        columns = rng.permutation(width)[:few]
        x[i, columns] = rng.dirichlet(np.full(few, 0.7)) if i % 2 else 1 / few
    x[1] = 0
    x[1, -1] = 1
    nonces = rng.integers(0, 2**32, (12, 3), dtype=np.uint32)
    for transforms in (
        (Types(n=100),),
        (Types(n=3),),
        (Round(decimals=4),),
        (TopK(k=3), Types(n=20)),
        SIMPLEX["gaussian"],
        SIMPLEX["laplace"],
    ):
        pipeline = Pipeline("simplex", transforms)
        status, out = run(pipeline, x, nonces, key=KEYS[cipher])
        assert status == 0
        expected = pipeline.reference(x, draws(pipeline, nonces, width, KEYS[cipher]))
        np.testing.assert_allclose(out, expected, rtol=1e-12, atol=1e-15)


def test_scores_beyond_the_noise_grid_are_an_error() -> None:
    status, _ = run(Pipeline("scalar", (Gaussian(sigma=1e-3),)), np.array([[1e300]]))
    assert status == 8 + layout.OUT_OF_RANGE


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (3, 1), (1, 20000)])
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_odd_shapes(shape: tuple[int, int], dtype: str) -> None:
    x = np.zeros(shape, dtype)
    if x.size:
        x[:, 0] = 1
    status, out = run(Pipeline("simplex", SIMPLEX["gaussian"]), x)
    assert status == 0
    assert out.shape == x.shape
    assert out.dtype == x.dtype
    if x.size:
        assert (out.argmax(axis=1) == 0).all()
        np.testing.assert_allclose(out.sum(axis=1, dtype=np.float64), 1.0, atol=1e-2 if dtype == "f2" else 1e-5)


def test_read_only_and_strided_arrays_are_left_alone_or_hardened_in_place() -> None:
    x = np.asfortranarray(distributions(4, 6, 1, 1.0))
    status, out = run(Pipeline("simplex", (Types(n=4),)), x)
    assert status == 0
    assert np.array_equal(out * 4, np.rint(out * 4))


def twice(x: Any) -> Any:
    return x + x


def test_compiling_in_many_threads_leaves_numba_as_it_was() -> None:
    before, start = numba.config.CACHE_DIR, threading.Barrier(4)

    def compiled(kind: str) -> Any:
        start.wait()
        return kernels.entry(twice, kind)(3)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(compiled, ("int64", "float64", "int32", "float32"))) == [6, 6, 6, 6]
    assert before == numba.config.CACHE_DIR


def test_large_questions_let_go_of_the_interpreter_as_large_answers_do() -> None:
    pipeline, scores = Pipeline("scalar", (Gaussian(sigma=0.1),)), np.zeros((4, 3))
    program, nonces = Program(pipeline, 3, KEY, "p", "m"), np.zeros((4, 3), np.uint32)
    assert Task(program, scores, 4, nonces, Question(KEY, "m", {"x": np.zeros((4, 100))}, 4)).small
    assert not Task(program, scores, 4, nonces, Question(KEY, "m", {"x": np.zeros((4, 1 << 17))}, 4)).small
    assert not Task(program, np.zeros((4, 1 << 14)), 4, nonces).small


@pytest.mark.parametrize("cipher", CIPHERS)
def test_same_question_same_noise_and_nothing_else_shares_it(cipher: str) -> None:
    x = distributions(1, 10, 5, 1.0)
    nonce = np.array([[1, 2, 3]], np.uint32)
    raw = (Gaussian(sigma=0.05),)
    key, other_key = KEYS[cipher], KEYS[next(c for c in CIPHERS if c != cipher)]
    base = run(Pipeline("scalar", raw), x, nonce, key=key)[1]
    assert np.array_equal(base, run(Pipeline("scalar", raw), x, nonce, key=key)[1])
    others = [
        run(Pipeline("scalar", raw), x, nonce, key=other_key)[1],
        run(Pipeline("scalar", raw), x, nonce + np.uint32(1), key=key)[1],
        run(Pipeline("scalar", raw), x, nonce, model="another", key=key)[1],
        run(Pipeline("scalar", (Gaussian(sigma=0.050000001),)), x, nonce, key=key)[1],
        run(Pipeline("scalar", (Gaussian(sigma=0.05, key="cell"),)), x, nonce, key=key)[1],
    ]
    for other in others:
        # equal noise at two scales would solve for the clean row; here nothing lines up
        assert not np.allclose(base - x, other - x, atol=1e-3)


def test_a_draw_is_not_shared_where_it_would_cancel_out() -> None:
    """The same noise on scores and on their halves would give the scores away: twice the difference."""
    x, nonce = np.array([[3.0, -1.0, 0.5]]), np.array([[1, 2, 3]], np.uint32)
    plain = run(Pipeline("logits", (Gaussian(sigma=0.5),), dense=True), x, nonce)[1]
    halved = run(Pipeline("logits", (Temperature(t=2.0), Gaussian(sigma=0.5)), dense=True), x, nonce)[1]
    assert np.abs(2 * (plain - halved) - x).max() > 0.1
    # What comes after is a function of the noisy scores, which are therefore the same.
    rounded = run(Pipeline("logits", (Gaussian(sigma=0.5), Round(decimals=1)), dense=True), x, nonce)[1]
    assert np.array_equal(rounded, np.rint(plain * 10) / 10)


@pytest.mark.parametrize("cipher", CIPHERS)
def test_noise_of_the_client_is_the_client_s_own(cipher: str) -> None:
    """One layer for all, one for each client: what two clients share is the first."""
    x = np.zeros((9, 5))
    nonces = np.random.default_rng(1).integers(0, 2**32, (9, 3), dtype=np.uint32)
    shared, own = Gaussian(sigma=0.2), Gaussian(sigma=0.01, scope="client")
    answers = []
    for transforms in ((shared,), (shared, own)):
        for tag in ((1, 2, 3), (1, 2, 4)):
            out = x.copy()
            task = Task(Program(Pipeline("scalar", transforms), 5, KEYS[cipher], "p", "m"), out, 9, nonces)
            task.address_to(np.array(tag, np.uint32))
            assert task.run() == 0
            answers.append(out)
    alike, same, one, other = answers
    assert np.array_equal(alike, same)
    assert (one == other).mean() < 0.1
    assert np.abs(one - alike).max() < 0.06
    shifted = nonces + np.array([1, 2, 3], np.uint32)  # the tag is added to the nonce, word by word
    _, layer = draws(Pipeline("scalar", (shared, own)), shifted, 5, KEYS[cipher])
    assert np.array_equal(one - alike, layer * own.step)


def test_every_parameter_that_shapes_noise_keys_it() -> None:
    """Noise of one draw at two scales gives the clean score away: (s2 y1 - s1 y2) / (s2 - s1)."""
    settings: list[Noise] = [
        Gaussian(sigma=0.5),
        Gaussian(sigma=0.25),
        Gaussian(sigma=0.5, grid=7),
        Gaussian(sigma=0.5, key="fresh"),
        Gaussian(sigma=0.5, scope="client"),
        Laplace(scale=0.5),
        Staircase(scale=0.5, sensitivity=0.5),
        Staircase(scale=0.5, sensitivity=0.6),
        Staircase(scale=0.5, sensitivity=0.5, grid=3),
        *(
            Gaussian(epsilon=e, delta=d, sensitivity=1.0).at(k)
            for e, d, k in ((1, 1e-6, 4), (2, 1e-6, 4), (1, 1e-7, 4))
        ),
        Gaussian(epsilon=1, delta=1e-6, sensitivity=1.0).at(1000),
    ]
    assert len({noise.context() for noise in settings}) == len(settings)
    assert len({derive(KEY, "noise", *noise.context()) for noise in settings}) == len(settings)


def test_noise_without_a_scale_has_no_law_before_it_has_a_width() -> None:
    fitted = Gaussian(epsilon=1.0, delta=1e-6, sensitivity=0.1)
    with pytest.raises(ValueError, match=r"sigma: depends on the width of the rows; fit it with at\(width\)"):
        fitted.law  # noqa: B018
    (op,) = fitted.lower(next(Pipeline("scalar", (fitted,)).spaces()))
    assert (op.keyed, op.law, op.params) == ("input", None, ())
    assert fitted.at(10).at(1000) == fitted.at(10)
    assert fitted.at(0) == fitted.at(1)


@pytest.mark.parametrize("cipher", CIPHERS)
def test_cell_noise_gives_near_duplicates_nothing(cipher: str) -> None:
    x = np.full((256, 4), 0.26) + np.random.default_rng(0).normal(size=(256, 4)) * 1e-4
    nonces = np.random.default_rng(1).integers(0, 2**32, (256, 3), dtype=np.uint32)
    celled = run(Pipeline("scalar", (Gaussian(sigma=0.2, key="cell"),)), x, nonces, key=KEYS[cipher])[1]
    keyed = run(Pipeline("scalar", (Gaussian(sigma=0.2),)), x, nonces, key=KEYS[cipher])[1]
    assert len(np.unique(celled, axis=0)) == 1
    assert len(np.unique(keyed, axis=0)) == 256


@pytest.mark.parametrize(
    ("space", "transforms", "path"),
    [
        ("simplex", (Gaussian(sigma=0.1),), "tier"),
        ("simplex", (Gaussian(sigma=0.1), Types(n=5)), "tier[1]"),
        ("simplex", (Gaussian(sigma=65536.0), Project()), "tier[0]"),
        ("simplex", (Laplace(scale=2049.0), Project()), "tier[0]"),
        ("logits", (TopK(k=2),), "tier[0]"),
        ("logits", (Types(n=5),), "tier[0]"),
        ("scalar", (LabelOnly(),), "tier[0]"),
        ("labels", (Round(decimals=1),), "tier[0]"),
        ("embedding", (Project(),), "tier[0]"),
        ("embedding", (Types(n=5),), "tier[0]"),
        ("scalar", (Types(n=5),), "tier[0]"),
        ("scalar", (Orthogonal(),), "tier[0]"),
        ("simplex", (CoverageNoise(),), "tier[0]"),
        ("sigmoid", (TopK(k=1),), "tier[0]"),
        ("multilabel", (TopK(k=1, remainder="spread"),), "tier[0]"),
        ("multilabel", (Gaussian(sigma=0.1),), "tier"),
        ("boxes", (LabelOnly(),), "tier[0]"),
        ("boxes", (Round(decimals=1, of="score"),), "tier[0].of"),
        ("scalar", (Round(decimals=1, of="score"),), "tier[0].of"),
        ("logits", (), "tier"),
        ("logits", (Clip(low=-5.0, high=5.0), TopK(k=17)), "tier"),
        ("logits", (Clip(low=-5.0, high=5.0), TopK(k=3), Gaussian(sigma=0.1)), "tier"),
        ("logits", (Exponential(epsilon=1.0),), "tier[0]"),
        ("logits", (PermuteAndFlip(epsilon=1.0),), "tier[0]"),
        ("logits", (Clip(low=-5.0, high=5.0), Gaussian(sigma=1.0), Exponential(epsilon=1.0)), "tier[2]"),
        ("logits", (KRandomisedResponse(epsilon=1.0, key="cell"),), "tier[0]"),
        ("logits", (BoundaryRandomisedResponse(epsilon=1.0, margin=1.0, key="cell"),), "tier[0]"),
        ("simplex", (Gaussian(sigma=0.1), Exponential(epsilon=1.0)), "tier[1]"),
        ("simplex", (Gaussian(sigma=0.1), Canary(rate=0.1), Project()), "tier[1]"),
        ("simplex", (LabelOnly(), Canary(rate=0.1)), "tier[1]"),
        ("sigmoid", (KRandomisedResponse(epsilon=1.0),), "tier[0]"),
        ("scalar", (Canary(rate=0.1),), "tier[0]"),
    ],
)
def test_wrong_pairs_are_configuration_errors(space: Any, transforms: tuple[Transform, ...], path: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Pipeline(space, transforms, path="tier")
    assert caught.value.path == path


@pytest.mark.parametrize(
    "make",
    [
        lambda: Round(decimals=-1),
        lambda: Round(decimals=2.5),
        lambda: Types(n=0),
        lambda: TopK(k=0),
        lambda: TopK(k=1, remainder="other"),
        lambda: Clip(low=1.0, high=1.0),
        lambda: Temperature(t=0.0),
        lambda: Gaussian(sigma=math.inf),
        lambda: Gaussian(sigma=0.0),
        lambda: Gaussian(sigma=1.0, key="client"),
        lambda: Laplace(scale=math.nan),
        lambda: ReverseSigmoid(beta=0.0),
        lambda: ReverseSigmoid(beta=10.0, gamma=10.0),
        lambda: Exponential(epsilon=-0.1),
        lambda: PermuteAndFlip(epsilon=math.nan),
        lambda: KRandomisedResponse(epsilon=1001.0),
        lambda: KRandomisedResponse(epsilon=1.0, scope="everybody"),
        lambda: BoundaryRandomisedResponse(epsilon=1.0, margin=0.0),
        lambda: Canary(rate=0.0),
        lambda: Canary(rate=1.5),
        lambda: Canary(rate=math.nan),
    ],
)
def test_impossible_parameters_are_refused(make: Any) -> None:
    with pytest.raises(ValueError, match=":"):
        make()


def test_noise_without_a_key_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match=r"\[key\]"):
        Program(Pipeline("scalar", (Gaussian(sigma=0.1),)), 3, None, "p", "m")


def test_bits_per_answer() -> None:
    """Published counts: C(n + k - 1, k - 1) grid points; log2 k for a label."""
    assert Pipeline("simplex", (Types(n=10),)).guarantee(10).bits == pytest.approx(math.log2(92378))
    assert Pipeline("simplex", (Types(n=100),)).guarantee(10).bits == pytest.approx(41.955, abs=1e-3)
    assert Pipeline("simplex", (LabelOnly(),)).guarantee(1000).bits == pytest.approx(math.log2(1000))
    assert Pipeline("simplex", ()).guarantee(10).bits == 320
    assert Pipeline("simplex", (TopK(k=1), Types(n=10))).guarantee(10).bits == pytest.approx(math.log2(10))
    kept = Pipeline("simplex", SIMPLEX["gaussian"]).guarantee(10)
    assert (kept.relation, kept.keeps_top1) == ("label", True)
    plain = Pipeline("simplex", SIMPLEX["laplace"]).guarantee(10)
    assert (plain.relation, plain.keeps_top1) == ("output-metric", False)
    rho = Pipeline("scalar", (Gaussian(sigma=0.5, sensitivity=0.1),)).guarantee(1).parameters["rho"]
    assert rho == pytest.approx((0.1 + 2**-8) ** 2 / (2 * 0.25))  # a grid of 1/256 adds its step
    assert json.dumps(dict(kept.parameters))
