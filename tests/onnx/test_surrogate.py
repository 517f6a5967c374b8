"""A model output that a policy looks at and never releases: wrapped sessions, `check` and `explain`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hardening_onnx
import numpy as np
import onnxruntime as ort
import pytest

from hardening.cli import main
from hardening.config import Output, Policy
from hardening.errors import ConfigError, InputError, ModelError, ReleaseError
from hardening.pipeline import Pipeline
from hardening.transforms import Grad2, LabelOnly, Mad, Transform
from tests.onnx.graphs import HEAD, WEIGHTS, build, floats, node, weight

X = np.random.default_rng(1).normal(size=(6, 8)).astype("f4")


def model(copy: int = 5, kind: str = "Softmax") -> bytes:
    """x -> p, 5 classes, and s, the scores of a copy of it."""
    nodes = [*HEAD, node("Softmax", "z", "p"), node("MatMul", "x v", "u"), node(kind, "u", "s")]
    graph = build(nodes, {"p": floats("N", 5), "s": floats("N", copy)}, WEIGHTS | {"v": weight(8, copy)})
    return bytes(graph.SerializeToString())


def policy(*tier: Transform, **tiers: Any) -> Policy:
    return Policy({"p": Output("simplex", {"normal": tier, **tiers})})


TIER = Mad(l1=0.8, surrogate="s")


def test_it_is_fetched_and_not_returned() -> None:
    bare, session = ort.InferenceSession(model()), hardening_onnx.wrap(model(), policy(TIER))
    p, s = bare.run(["p", "s"], {"x": X})
    expected = Pipeline("simplex", (TIER,)).reference(p, None, s)
    assert [o.name for o in session.get_outputs()] == ["p"]
    for _ in range(4):  # from the third on by way of buffers
        (answer,) = session.run(None, {"x": X})
        np.testing.assert_allclose(answer, expected, atol=1e-6)
        assert np.array_equal(answer.argmax(axis=1), p.argmax(axis=1))
    (alone,) = session.run(["p"], {"x": X[3:4]})
    np.testing.assert_allclose(alone[0], answer[3], atol=1e-6)
    with pytest.raises(InputError, match="not released"):
        session.run(["p", "s"], {"x": X})


def test_one_that_no_tier_in_use_needs_is_fetched_all_the_same() -> None:
    session = hardening_onnx.wrap(model(), policy(LabelOnly(), strict=(TIER,)))
    assert session.guard.needs(("p",)) == ("p", "s")
    assert set(np.unique(session.run(None, {"x": X})[0])) == {0.0, 1.0}


def test_one_that_does_not_fit_is_refused_when_it_is_wrapped() -> None:
    with pytest.raises(ModelError, match="names output 't'"):
        hardening_onnx.wrap(model(), policy(Mad(l1=0.8, surrogate="t")))
    with pytest.raises(ConfigError, match="has 5 classes, its surrogate 's' has 4"):
        hardening_onnx.wrap(model(4), policy(TIER))


def test_faults_of_a_run_are_named_and_nothing_leaves() -> None:
    session = hardening_onnx.wrap(model(kind="Exp"), policy(TIER))
    with pytest.raises(ReleaseError, match=r"row 0.*surrogate returned NaN or infinity, or scores that are no distr"):
        session.run(None, {"x": X})
    given = hardening_onnx.wrap(model(kind="Exp"), policy(Grad2(l1=0.8, surrogate="s")))
    assert given.run(None, {"x": X})[0].shape == (6, 5)
    with pytest.raises(ReleaseError, match="surrogate returned NaN"):
        given.run(None, {"x": X * np.float32(1e30)})


CHECKED = """schema = 1
[outputs.p]
space = "simplex"
tiers.normal = [ {kind = "mad", l1 = 0.8, surrogate = "NAME"} ]
"""


@pytest.mark.parametrize(
    ("data", "name", "says"),
    [
        (model(), "s", None),
        (model(), "uniform", None),
        (model(), "t", 'outputs.p.tiers.normal[0].surrogate: the model has no output \'t\'; it has "p", "s"'),
        (model(4), "s", "outputs.p.tiers.normal[0].surrogate: rows of 's' have 4 entries, those of 'p' 5"),
        (model(kind="Shape"), "s", "outputs.p.tiers.normal[0].surrogate: 's' holds integers; a surrogate's scores are"),
    ],
)
def test_check_and_explain(tmp_path: Path, data: bytes, name: str, says: str | None, capsys: Any) -> None:
    if says and "integers" in says:
        nodes = [*HEAD, node("Softmax", "z", "p"), node("ArgMax", "z", "s", axis=1, keepdims=1)]
        data = build(nodes, {"p": floats("N", 5), "s": (7, ["N", 1])}, WEIGHTS).SerializeToString()
    (tmp_path / "m.onnx").write_bytes(data)
    (tmp_path / "p.toml").write_text(CHECKED.replace("NAME", name))
    files = [str(tmp_path / "p.toml"), "--model", str(tmp_path / "m.onnx")]
    assert main(["check", *files]) == (1 if says else 0)
    assert (says or "fits") in capsys.readouterr().out
    assert main(["explain", *files]) == (1 if says else 0)
    told = capsys.readouterr().out
    assert ("looks at   's' as well, an output that is fetched and never released" in told) == (name == "s")
    assert "none, per answer: no guarantee: deception only" in told
