"""What is recognised of an output, and on which evidence."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from hardening_onnx.graph import read
from hardening_onnx.recognise import recognise
from onnx import TensorProto as T
from onnx import helper

from tests.onnx.graphs import HEAD, ONE, TAILS, WEIGHTS, build, dense, floats, node


def kinds(model: onnx.ModelProto, folder: Path) -> dict[str, str]:
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    return {name: f.kind for name, f in recognise(read(folder / "m.onnx")).items()}


@pytest.mark.parametrize("tail", TAILS)
def test_recognised_by_its_last_operators(tail: str, tmp_path: Path) -> None:
    nodes, declared, kind = TAILS[tail]
    model = build([*HEAD, *nodes], {"y": declared}, WEIGHTS | ONE)
    onnx.checker.check_model(model)
    assert kinds(model, tmp_path) == {"y": kind}


@pytest.mark.parametrize(
    ("name", "width", "kind"),
    [
        ("y", 10, "logits"),
        ("y", 1000, "logits"),
        ("y", 384, "embedding"),
        ("class_scores", 512, "logits"),
        ("sentence_embedding", 10, "embedding"),
        ("pooledOutput", 30, "embedding"),
        ("y", 1, "scalar"),
        ("boxes", 4, "boxes"),
        ("boxes", 6, "unknown"),
    ],
)
def test_without_an_activation_name_and_width_decide_and_say_so(
    name: str, width: int, kind: str, tmp_path: Path
) -> None:
    nodes, weights = dense(width, name)
    (tmp_path / "m.onnx").write_bytes(build(nodes, {name: floats("N", width)}, weights).SerializeToString())
    (found,) = recognise(read(tmp_path / "m.onnx")).values()
    assert (found.kind, found.sure) == (kind, False)
    assert "without an activation" in found.why


def test_layer_norm_whole_and_decomposed_tells_the_scale(tmp_path: Path) -> None:
    gamma = np.full(8, 0.5, "f4")
    whole = build([node("LayerNormalization", "x g", "y", axis=-1)], {"y": floats("N", 8)}, {"g": gamma})
    (tmp_path / "w.onnx").write_bytes(whole.SerializeToString())
    parts = [
        node("ReduceMean", "x", "mean", axes=[1]),
        node("Sub", "x mean", "d"),
        node("Mul", "d d", "sq"),
        node("ReduceMean", "sq", "var", axes=[1]),
        node("Sqrt", "var", "sd"),
        node("Div", "d sd", "n"),
        node("Mul", "n g", "s"),
        node("Add", "s g", "y"),
    ]
    (tmp_path / "d.onnx").write_bytes(build(parts, {"y": floats("N", 8)}, {"g": gamma}).SerializeToString())
    for file in ("w.onnx", "d.onnx"):
        (found,) = recognise(read(tmp_path / file)).values()
        assert (found.kind, found.sure, found.scale) == ("embedding", True, 0.5)


def test_branches_that_agree(tmp_path: Path) -> None:
    def branch(op: str) -> onnx.GraphProto:
        outputs = [helper.make_tensor_value_info("inner", T.FLOAT, ["N", 5])]
        return helper.make_graph([node(op, "z", "inner")], "branch", [], outputs)

    for other, kind in (("Softmax", "simplex"), ("Sigmoid", "unknown")):
        nodes = [*HEAD, node("If", "c", "y", then_branch=branch("Softmax"), else_branch=branch(other))]
        inputs = {"x": floats("N", 8), "c": (T.BOOL, [])}
        assert kinds(build(nodes, {"y": floats("N", 5)}, WEIGHTS, inputs), tmp_path) == {"y": kind}


def test_state_and_detections_stay_unknown(tmp_path: Path) -> None:
    nodes = [node("Tanh", "state", "new_state"), node("Sigmoid", "x", "p"), node("NonMaxSuppression", "b s", "boxes")]
    inputs = {"x": floats("N", 8), "state": floats("N", 4), "b": floats(1, 9, 4), "s": floats(1, 2, 9)}
    outputs = {"new_state": floats("N", 4), "p": floats("N", 8), "boxes": (T.INT64, ["K", 3])}
    assert kinds(build(nodes, outputs, {}, inputs), tmp_path) == {
        "new_state": "unknown",
        "p": "multilabel",
        "boxes": "unknown",
    }


def test_a_graph_that_goes_round_or_on_for_ever_is_unknown(tmp_path: Path) -> None:
    round_ = [node("Identity", "b", "a"), node("Identity", "a", "b")]
    assert kinds(build(round_, {"a": floats("N", 8)}), tmp_path) == {"a": "unknown"}
    long = [node("Identity", "x" if i == 0 else f"t{i - 1}", f"t{i}") for i in range(500)]
    assert kinds(build(long, {"t499": floats("N", 8)}), tmp_path) == {"t499": "unknown"}


@pytest.mark.filterwarnings("ignore")  # the test data of the onnx package are full of them
def test_reference_values_lie_in_the_recognised_space(tmp_path: Path) -> None:
    """ONNX's own node tests, written out as functions of simpler operators too, with values computed by ONNX."""
    from onnx.backend.test.case.node import collect_testcases

    wanted = re.compile("softmax|sigmoid|argmax|ai_onnx_ml|clip|tanh|normaliz|logsumexp|div|exp_")
    seen: Counter[str] = Counter()
    for case in collect_testcases(None):
        if not wanted.search(case.name) or case.model is None or not case.data_sets:
            continue
        (tmp_path / "m.onnx").write_bytes(case.model.SerializeToString())
        found = recognise(read(tmp_path / "m.onnx"))
        names = [o.name for o in case.model.graph.output]
        for name, value in ((n, np.asarray(v)) for _, outs in case.data_sets for n, v in zip(names, outs, strict=True)):
            kind = found[name].kind
            seen[kind] += 1
            if kind == "simplex":
                assert np.allclose(value.astype("f8").sum(axis=-1), 1, atol=1e-2), case.name
                assert value.min() >= 0, case.name
            elif kind in ("sigmoid", "multilabel", "scalar"):
                low, high = max(found[name].low, -1e9), min(found[name].high, 1e9)
                assert ((value >= low - 1e-6) & (value <= high + 1e-6)).all(), case.name
            elif kind == "labels":
                assert value.dtype.kind in "iuUSO", case.name
    assert seen["simplex"] >= 10
    assert seen["labels"] >= 10
    assert seen["sigmoid"] + seen["multilabel"] >= 3
