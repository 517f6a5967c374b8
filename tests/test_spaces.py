"""Every output space from a policy to a hardened answer: what it takes, what it refuses, what is charged."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import hardening
from hardening.config import Output, Policy, parse_policy
from hardening.errors import ConfigError, ReleaseError, SpaceError
from hardening.kernels import layout
from hardening.pipeline import Pipeline, declared_space
from hardening.program import Program, Task
from hardening.transforms import (
    TRANSFORMS,
    Clip,
    Gaussian,
    LabelOnly,
    Laplace,
    ReverseSigmoid,
    Round,
    TopK,
    Transform,
    Types,
)
from hardening.types import Column
from tests.keys import fixed_key
from tests.test_pipeline import KEY, draws

README = (Path(__file__).parent.parent / "README.md").read_text()
#: The shortest setting of every transform.
SETTINGS: dict[str, Any] = {"k": 1, "n": 4, "decimals": 1, "low": 0.1, "high": 1.0, "t": 2.0}
SETTINGS |= {"sigma": 0.1, "scale": 0.1, "l1": 0.5, "tau": 0.5, "epsilon": 1.0, "margin": 0.1, "rate": 0.1}
WITH_SCORES = ("simplex", "sigmoid", "multilabel", "logits", "embedding", "scalar", "boxes")


def example(kind: str) -> Transform:
    fields = [f.name for f in dataclasses.fields(TRANSFORMS[kind]) if f.default is dataclasses.MISSING]
    try:
        return TRANSFORMS[kind](**{name: SETTINGS[name] for name in fields})
    except ValueError:  # noise whose scale may be left out, for a target
        return TRANSFORMS[kind](sensitivity=0.1, **{TRANSFORMS[kind].scale_name: 0.1})  # type: ignore[attr-defined, call-arg]


def accepted(transform: Transform, kind: Any) -> str:
    space = declared_space(kind)
    try:
        transform.space_after(space)
    except SpaceError:
        try:
            transform.space_after(dataclasses.replace(space, low=-1.0, high=1.0))
        except SpaceError:
            return ""
        return "bounded"
    return "yes"


def test_the_readme_says_which_transform_takes_which_space() -> None:
    rows = [[c.strip() for c in line.strip("|").split("|")] for line in README.splitlines() if line.startswith("|")]
    (head,) = (row for row in rows if row[1:] == [f"`{kind}`" for kind in WITH_SCORES])
    table = {row[0].strip("`"): row[1:] for row in rows[rows.index(head) + 2 :][: len(TRANSFORMS)]}
    assert table == {k: [accepted(example(k), space) for space in WITH_SCORES] for k in TRANSFORMS}
    for kind in TRANSFORMS:
        assert accepted(example(kind), "labels") == accepted(example(kind), "open") == ""


SPACES: dict[str, tuple[Any, dict[str, Any], tuple[Transform, ...]]] = {
    "simplex": ("simplex", {}, (Types(n=10),)),
    "sigmoid": ("sigmoid", {}, (Gaussian(sigma=0.1), Clip(low=0.0, high=1.0), Round(decimals=2))),
    "multilabel": ("multilabel", {}, (Gaussian(sigma=0.1), Clip(low=0.0, high=1.0), TopK(k=2), Types(n=20))),
    "logits": ("logits", {}, (Clip(low=-5.0, high=5.0), Laplace(scale=0.1), Clip(low=-5.0, high=5.0), TopK(k=3))),
    "embedding": ("embedding", {}, (Gaussian(sigma=0.1), Clip(low=-3.0, high=3.0), Round(decimals=1))),
    "scalar": ("scalar", {"range": (-2.0, 1.5)}, (Gaussian(sigma=0.1), Clip(low=-2.0, high=1.5), Types(n=7))),
    "boxes": (
        "boxes",
        {"range": (0.0, 2.0), "columns": ("label", "box", "box", "box", "box", "score", "score")},
        (
            Gaussian(sigma=0.1),
            Round(decimals=1, of="score"),
            Clip(low=0.0, high=2.0),
            LabelOnly(of="score"),
            Types(n=20),
        ),
    ),
}


def pipeline(name: str) -> Pipeline:
    kind, more, transforms = SPACES[name]
    bounds, columns = more.get("range"), more.get("columns", ())
    return Pipeline(kind, transforms, "tier", bounds=bounds, columns=columns)


def clean(name: str, rows: int, width: int, seed: int) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, width))
    if name == "simplex":
        return rng.dirichlet(np.ones(width), rows)
    if name in ("sigmoid", "multilabel"):
        return rng.random((rows, width))
    if name == "boxes":
        x[:, 5:7] = rng.random((rows, 2))
    return x


def run(pipe: Pipeline, x: NDArray[Any], nonces: Any = None) -> tuple[int, NDArray[Any]]:
    out = x.copy()
    nonces = np.zeros((len(x), 3), np.uint32) if nonces is None else nonces
    return Task(Program(pipe, x.shape[1], KEY, "p", "m"), out, len(out), nonces).run(), out


@pytest.mark.parametrize("name", SPACES)
@settings(max_examples=15)
@given(st.integers(8, 80), st.integers(0, 2**32 - 1), st.sampled_from(["f2", "f4", "f8"]))
def test_kernel_equals_reference(name: str, width: int, seed: int, dtype: str) -> None:
    pipe = pipeline(name)
    width = len(pipe.columns) if name == "boxes" else width
    x = clean(name, 11, width, seed).astype(dtype)
    nonces = np.random.default_rng(seed).integers(0, 2**32, (11, 3), dtype=np.uint32)
    status, out = run(pipe, x, nonces)
    assert status == 0
    expected = pipe.reference(x, draws(pipe, nonces, width)).astype(dtype)
    if name == "simplex":
        np.testing.assert_allclose(out, expected, rtol=1e-3)
    else:
        assert np.array_equal(out, expected)
    for i in (0, 9):
        assert np.array_equal(run(pipe, x[i : i + 1], nonces[i : i + 1])[1][0], out[i])


def test_deception_of_independent_labels_equals_its_reference() -> None:
    deceive, x = ReverseSigmoid(beta=0.2, gamma=0.2, allow_flip=True), clean("multilabel", 11, 17, 0)
    pipe = Pipeline("multilabel", (deceive,))
    status, out = run(pipe, x)
    assert status == 0
    np.testing.assert_allclose(out, pipe.reference(x), rtol=1e-9)
    assert 0 <= out.min() < out.max() <= 1


@settings(max_examples=25)
@given(st.lists(st.sampled_from(get_args(Column)), min_size=1, max_size=90), st.integers(0, 2**32 - 1))
def test_columns_of_every_kind_and_number(columns: list[Column], seed: int) -> None:
    columns = [*columns, "box"]
    scores = (Types(n=5, of="score"),) if "score" in columns else ()
    steps = (Gaussian(sigma=0.5), *scores, Clip(low=-1.0, high=1.0), Round(decimals=1))
    pipe = Pipeline("boxes", steps, bounds=(-1.0, 1.0), columns=tuple(columns))
    rng = np.random.default_rng(seed)
    x, nonces = rng.random((11, len(columns))), rng.integers(0, 2**32, (11, 3), dtype=np.uint32)
    status, out = run(pipe, x, nonces)
    assert status == 0
    assert np.array_equal(out, pipe.reference(x, draws(pipe, nonces, len(columns))))
    kept = [c == "label" for c in columns]
    assert np.array_equal(out[:, kept], x[:, kept])


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused_in_every_space(name: str, value: float) -> None:
    for row in (0, 9):
        x = clean(name, 11, 7 if name == "boxes" else 12, 0)
        x[row, 3] = value
        assert run(pipeline(name), x)[0] == (row + 1) * 8 + layout.NOT_FINITE


@pytest.mark.parametrize(("name", "column"), [("sigmoid", 3), ("multilabel", 3), ("boxes", 5)])
def test_scores_from_zero_to_one_are_checked_with_a_tolerance(name: str, column: int) -> None:
    for value, fault in ((1.0005, False), (-0.0005, False), (1.1, True), (-0.1, True)):
        x = clean(name, 11, 7 if name == "boxes" else 12, 0)
        x[9, column] = value
        status, out = run(pipeline(name), x)
        assert status == (10 * 8 + layout.NOT_SIMPLEX if fault else 0)
        assert fault or (out[:, column] >= 0.0).all() <= (out[:, column] <= 1.0).all()


def test_a_range_is_where_values_are_brought_and_kept() -> None:
    x = np.array([[-1e30], [-2.1], [0.26], [1.6], [1e30]])
    bare = Pipeline("scalar", (), bounds=(-2.0, 1.5))
    assert run(bare, x)[1].ravel().tolist() == [-2.0, -2.0, 0.26, 1.5, 1.5]
    grid = run(Pipeline("scalar", (Types(n=7),), bounds=(-2.0, 1.5)), x)[1].ravel()
    assert grid.tolist() == [-2.0, -2.0, 0.5, 1.5, 1.5]
    noisy = run(pipeline("scalar"), np.tile(x, (200, 1)))[1]
    assert -2.0 <= noisy.min() < noisy.max() <= 1.5
    with pytest.raises(ConfigError, match=r'end with \{kind = "clip", low = -2, high = 1.5\}'):
        Pipeline("scalar", (Gaussian(sigma=0.1),), bounds=(-2.0, 1.5))
    with pytest.raises(ConfigError, match="leaves the range"):
        Pipeline("scalar", (Round(decimals=0),), bounds=(-2.0, 1.7))


def test_a_range_gives_bits_and_sensitivity() -> None:
    def promise(*steps: Transform, width: int = 1) -> Any:
        return Pipeline("scalar", steps, bounds=(0.0, 10.0)).guarantee(width)

    assert promise(Types(n=7)).bits == 3
    assert promise(Round(decimals=1), width=2).bits == pytest.approx(2 * math.log2(102))
    assert promise().bits == 32
    step = 2.0**-7  # of noise of standard deviation 1 to 2
    gauss = promise(Gaussian(sigma=1.0), Clip(low=0.0, high=10.0), width=4).parameters
    assert gauss["rho"] == pytest.approx((20 + 2 * step) ** 2 / 2)
    stated = promise(Gaussian(sigma=1.0, sensitivity=0.5), Clip(low=0.0, high=10.0)).parameters
    assert stated["rho"] == pytest.approx((0.5 + step) ** 2 / 2)
    assert "rho" not in Pipeline("scalar", (Gaussian(sigma=1.0),)).guarantee(4).parameters


def test_few_labels_or_logits_carry_few_bits() -> None:
    def bits(space: Any, *steps: Transform, width: int = 1000) -> float:
        return Pipeline(space, steps).guarantee(width).bits

    places = math.log2(math.comb(1000, 3))
    clip = Clip(low=-10.0, high=10.0)
    assert bits("logits", clip, TopK(k=3)) == pytest.approx(3 * 32 + places)
    assert bits("logits", clip, TopK(k=3), Round(decimals=1)) == pytest.approx(3 * math.log2(212) + places)
    assert bits("multilabel", TopK(k=3), Types(n=1)) == pytest.approx(3 + places)
    assert bits("multilabel", LabelOnly(), width=20) == 20
    assert bits("sigmoid", Round(decimals=1), width=1) == pytest.approx(math.log2(12))
    boxes = Pipeline(
        "boxes",
        (Types(n=255), Types(n=15, of="score")),
        bounds=(0.0, 640.0),
        columns=("box", "box", "box", "box", "score", "label"),
    )
    assert boxes.guarantee(6).bits == 4 * 8 + 4 + 32
    assert boxes.guarantee(6, itemsize=8).bits == 4 * 8 + 4 + 64
    assert boxes.guarantee(6).relation == "capacity"


def test_boxes_promise_no_more_than_their_weakest_part() -> None:
    noise = (Gaussian(sigma=1.0), Clip(low=0.0, high=9.0))
    scores = (Gaussian(sigma=0.1, of="score", sensitivity=0.1), Clip(low=0.0, high=1.0, of="score"))
    four: tuple[Column, ...] = ("box",) * 4

    def promise(steps: tuple[Transform, ...], *more: Column) -> Any:
        return Pipeline("boxes", steps, bounds=(0.0, 9.0), columns=(*four, *more)).guarantee(None)

    alone = promise(noise)
    assert alone.relation == "output-metric"
    assert promise(noise, "score").relation == "capacity", "scores are released as they are"
    assert promise((*noise, *scores), "score", "label").relation == "capacity", "so are labels"
    both = promise((*noise, *scores), "score")
    assert both.relation == "output-metric"
    step = 2.0**-11
    assert both.parameters["rho"] == pytest.approx(alone.parameters["rho"] + (0.1 + step) ** 2 / 0.02)


POLICY = """
schema = 1
[outputs.o]
space = "{space}"
{more}
tiers.normal = [{steps}]
"""
CUT = '{kind = "clip", low = -9, high = 9}, {kind = "top_k", k = 5}'


@pytest.mark.parametrize(
    ("space", "more", "steps", "path"),
    [
        ("logits", "", '{kind = "clip", low = -9, high = 9}, {kind = "round", decimals = 0}', "outputs.o.tiers.normal"),
        ("logits", "", CUT.replace("5", "17"), "outputs.o.tiers.normal"),
        ("logits", "dense = 1", CUT, "outputs.o.dense"),
        ("simplex", "dense = true", "", "outputs.o.dense"),
        ("simplex", "range = [0, 1]", "", "outputs.o.range"),
        ("scalar", "range = [1, 0]", "", "outputs.o.range"),
        ("scalar", "range = [0]", "", "outputs.o.range"),
        ("scalar", "range = [0, inf]", "", "outputs.o.range"),
        ("scalar", 'columns = ["box"]', "", "outputs.o.columns"),
        ("boxes", 'columns = ["score"]', "", "outputs.o.columns"),
        ("boxes", 'columns = ["box", "boks"]', "", "outputs.o.columns[1]"),
        ("boxes", "", '{kind = "types", n = 3}', "outputs.o.tiers.normal[0]"),
        ("boxes", "", '{kind = "round", decimals = 1, of = "label"}', "outputs.o.tiers.normal[0].of"),
        ("boxes", 'label_output = "l"', "", "outputs.o.label_output"),
        ("multilabel", 'label_output = "l"\nclasses = [0, 1]', "", "outputs.o.classes"),
    ],
)
def test_what_does_not_go_with_a_space_is_named_by_path(space: str, more: str, steps: str, path: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_policy(POLICY.format(space=space, more=more, steps=steps))
    assert caught.value.path == path, str(caught.value)


def test_dense_logits_are_refused_unless_the_policy_says_the_word() -> None:
    whole = parse_policy(POLICY.format(space="logits", more="dense = true", steps=""))
    (warning,) = whole.warnings
    assert warning.startswith("outputs.o.dense: whole rows of logits are released")
    cut = parse_policy(POLICY.format(space="logits", more="", steps=CUT))
    assert cut.warnings == ()
    cut.pipeline("o", "normal").check_width(10)
    with pytest.raises(ConfigError, match="releases 5 of 9 logits: at most half"):
        cut.pipeline("o", "normal").check_width(9)
    label = parse_policy(POLICY.format(space="logits", more="", steps='{kind = "label_only"}'))
    label.pipeline("o", "normal").check_width(1)


def guard(tmp_path: Path, **outputs: Output) -> hardening.Guard:
    return hardening.Guard(Policy(outputs, fixed_key(tmp_path), root=tmp_path), "m")


@pytest.mark.parametrize("name", SPACES)
def test_every_space_through_a_guard(name: str, tmp_path: Path) -> None:
    kind, more, transforms = SPACES[name]
    width = 7 if name == "boxes" else 12
    x = clean(name, 9, width, 1).astype("f4")
    with guard(tmp_path, o=Output(kind, {"normal": transforms}, **more)) as g:
        for _ in range(4):  # the last ones go through arrays that are kept
            out = g.harden({"o": x}, client="alice", inputs={"x": x})["o"]
            alone = g.harden({"o": x[4:5]}, client="bob", inputs={"x": x[4:5]})["o"]
            assert np.array_equal(out[4], alone[0])
        alice = g.standing("alice")
        promise = g.policy.pipeline("o", "normal").guarantee(width)
        bad = x.copy()
        bad[3, 2] = np.nan
        with pytest.raises(ReleaseError, match="row 3: the model returned NaN"):
            g.harden({"o": bad}, client="alice", inputs={"x": x})
    assert (out.dtype, out.shape) == (x.dtype, x.shape)
    assert not np.array_equal(out, x)
    assert alice.bits == pytest.approx(4 * 9 * promise.bits)
    entropic = name in ("simplex", "sigmoid", "multilabel", "logits")
    assert (alice.posterior_entropy > 0) == entropic
    assert alice.posterior_entropy <= (1 if name in ("sigmoid", "multilabel") else math.log2(12))
    assert alice.coverage > 0


@pytest.mark.parametrize("dtype", ["i8", "f4", "?"])
def test_labels_of_which_several_apply_follow_the_released_scores(dtype: str, tmp_path: Path) -> None:
    p = np.random.default_rng(0).random((200, 5)).astype("f4")
    raw = (p >= 0.5).astype(dtype)
    steps = (Gaussian(sigma=0.2), Clip(low=0.0, high=1.0), TopK(k=2), Round(decimals=2))
    with guard(tmp_path, p=Output("multilabel", {"normal": steps}, label_output="label")) as g:
        out = g.harden({"label": raw.copy(), "p": p}, inputs={"x": p})
        maps = [dict(zip("abcde", row, strict=True)) for row in p.tolist()]
        zipped = g.harden({"label": raw.copy(), "p": maps}, inputs={"x": p})
        with pytest.raises(ReleaseError, match="a 0 or 1 for each 'p' is needed"):
            g.harden({"label": raw[:, 0].copy(), "p": p}, inputs={"x": p})
    assert out["label"].dtype == raw.dtype
    assert np.array_equal(out["label"], (out["p"] >= 0.5).astype(dtype))
    assert (out["label"] != raw).any()
    assert ((out["p"] > 0).sum(1) <= 2).all()
    assert np.array_equal(zipped["label"], out["label"])
    assert np.array_equal(np.array([list(m.values()) for m in zipped["p"]], "f4"), out["p"])


def test_the_boxes_of_one_image_may_be_of_any_number(tmp_path: Path) -> None:
    """Two outputs, and as many detections as there are in the one image that was asked about."""
    boxes = Output("boxes", {"normal": (Gaussian(sigma=2.0), Clip(low=0.0, high=640.0))}, range=(0.0, 640.0))
    scores = Output("sigmoid", {"normal": (Round(decimals=1),)})
    rng, image = np.random.default_rng(0), np.zeros((1, 3, 8, 8), "f4")
    with guard(tmp_path, boxes=boxes, scores=scores) as g:
        for count in (0, 1, 7, 20):
            clean_ = {"boxes": rng.uniform(0, 640, (count, 4)).astype("f4"), "scores": rng.random(count).astype("f4")}
            out = g.harden(clean_, client="a", inputs={"x": image})
            decision = g.admit("b", 1)
            released = g.release(decision, {n: v.copy() for n, v in clean_.items()}, {"x": image})
            assert released["boxes"].shape == (count, 4)
            assert np.array_equal(released["boxes"], out["boxes"])
            assert len(np.unique((released["boxes"] - clean_["boxes"])[:, 0])) == count, "noise of its own for each box"
            assert np.array_equal(released["scores"], np.rint(clean_["scores"] * 10).astype("f4") / np.float32(10))
        assert g.standing("a").queries == g.standing("b").queries == 4
        with pytest.raises(ReleaseError, match="2 rows were asked"):
            g.release(g.admit("b", 2), {"boxes": np.zeros((5, 4), "f4")}, {"x": np.zeros((2, 3), "f4")})
        with pytest.raises(ConfigError, match="boxes have 6 columns here, the policy names 4"):
            g.release(g.admit("b", 1), {"boxes": np.zeros((1, 5, 6), "f4")}, {"x": image})
