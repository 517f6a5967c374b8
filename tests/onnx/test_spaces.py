"""Detections, labels of which several apply, logits and embeddings, from a graph to a drafted policy and an answer."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import hardening_onnx
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hardening_onnx.graph import read
from hardening_onnx.recognise import recognise
from onnx import TensorProto as T

import hardening
from hardening.cli import main
from tests.keys import fixed_key
from tests.onnx.graphs import HEAD, WEIGHTS, build, dense, floats, node, weight


def written(folder: Path, model: onnx.ModelProto) -> Path:
    onnx.checker.check_model(model)
    fixed_key(folder)
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    return folder / "m.onnx"


def drafted(model: Path, expected: int = 0) -> Path:
    policy = model.with_name("p.toml")
    assert main(["init", str(model), "-o", str(policy)]) == expected
    return policy


def detector(whole: bool) -> onnx.ModelProto:
    """Three candidates for each row of eight: four coordinates, a score and a class, side by side or apart."""
    nodes = [
        node("MatMul", "x w", "boxes"),
        node("MatMul", "x v", "z"),
        node("Sigmoid", "z", "all"),
        node("ReduceMax", "all", "scores", axes=[-1], keepdims=1),
        node("ArgMax", "z", "best", axis=-1, keepdims=1),
        node("Cast", "best", "classes", to=T.FLOAT),
        node("Concat", "boxes scores classes", "detections", axis=-1),
    ]
    outputs = (
        {"detections": floats("N", 3, 6)}
        if whole
        else {"boxes": floats("N", 3, 4), "all": floats("N", 3, 5), "best": (T.INT64, ["N", 3, 1])}
    )
    weights = {"w": weight(8, 4) * 50 + 300, "v": weight(8, 5)}
    return build(nodes if whole else nodes[:-2], outputs, weights, {"x": floats("N", 3, 8)})


def uncommented(text: str, name: str) -> str:
    """The section that the draft leaves to be decided, as it is proposed."""
    lines = text.splitlines()
    start = lines.index(f'# [outputs."{name}"]')
    end = next((i for i in range(start, len(lines)) if not lines[i].startswith("#")), len(lines))
    lines[start:end] = [line.removeprefix("# ") for line in lines[start:end]]
    return "\n".join(lines)


@pytest.mark.parametrize("whole", [True, False], ids=["in one", "apart"])
def test_detections(whole: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = written(tmp_path, detector(whole))
    name = "detections" if whole else "boxes"
    found = recognise(read(model))
    assert found[name].kind == "boxes"
    assert found[name].columns == (*["box"] * 4, *(["score", "label"] if whole else []))
    policy = drafted(model, 1 if whole else 0)
    assert "coordinates without a known range" in policy.read_text().replace("\n# ", " ")
    policy.write_text(uncommented(policy.read_text(), name).replace("640", "3000"))
    loaded = hardening.load_policy(policy)
    assert {n: o.space for n, o in loaded.outputs.items()} == (
        {"detections": "boxes"} if whole else {"boxes": "boxes", "all": "multilabel"}
    )
    capsys.readouterr()
    assert main(["check", str(policy), "--model", str(model), "--json"]) == 0
    session, bare = hardening_onnx.wrap(model, loaded), ort.InferenceSession(str(model))
    x = np.abs(np.random.default_rng(0).normal(size=(20, 3, 8))).astype("f4")
    names = [o.name for o in session.get_outputs()]
    for _ in range(3):  # the last time through buffers
        ours = dict(zip(names, session.run(None, {"x": x}, client="a"), strict=True))
    theirs = dict(zip(names, bare.run(names, {"x": x}), strict=True))
    moved = np.abs(ours[name][..., :4] - np.clip(theirs[name][..., :4], 0, 3000))
    assert 1 < moved.mean() < 30
    steps = ours[name][..., :4] / (3000 / 320)
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-3)
    scores = ours[name][..., 4] if whole else ours["all"]
    np.testing.assert_allclose(scores * 100, np.rint(scores * 100), atol=1e-4)
    if whole:
        assert np.array_equal(ours[name][..., 5], theirs[name][..., 5])
    alone = session.run([name], {"x": x[7:8]}, client="b")[0]
    assert np.array_equal(alone[0], ours[name][7])
    broken = np.where(np.arange(20)[:, None, None] == 3, np.float32(np.nan), x)
    with pytest.raises(hardening.errors.ReleaseError, match="row 3: the model returned NaN"):
        session.run([name], {"x": broken})


def test_boxes_between_zero_and_one_need_no_decision(tmp_path: Path) -> None:
    nodes, weights = dense(4)
    graph = [*nodes, node("Sigmoid", "z", "pred_boxes"), node("MatMul", "x v", "l"), node("Softmax", "l", "p")]
    outputs = {"pred_boxes": floats("N", 4), "p": floats("N", 5)}
    model = written(tmp_path, build(graph, outputs, weights | {"v": weight(8, 5)}))
    loaded = hardening.load_policy(drafted(model))
    assert {n: (o.space, o.range) for n, o in loaded.outputs.items()} == {
        "pred_boxes": ("boxes", (0.0, 1.0)),
        "p": ("simplex", None),
    }
    boxes, p = hardening_onnx.wrap(model, loaded).run(None, {"x": weight(30, 8)})
    assert 0 <= boxes.min() < boxes.max() <= 1
    np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-5)


def test_as_many_boxes_as_survive(tmp_path: Path) -> None:
    """NonMaxSuppression decides how many; one image is asked about at a time."""
    nodes = [
        node("NonMaxSuppression", "b s most iou", "picked"),
        node("Gather", "picked two", "index", axis=1),
        node("Squeeze", "index axes", "which"),
        node("Squeeze", "b axis0", "flat"),
        node("Gather", "flat which", "boxes", axis=0),
    ]
    weights = {"most": np.array([9]), "iou": np.array([0.5], "f4"), "two": np.array([2]), "axes": np.array([1])}
    inputs = {"b": floats(1, 9, 4), "s": floats(1, 1, 9)}
    graph = build(nodes, {"boxes": floats("K", 4)}, weights | {"axis0": np.array([0])}, inputs)
    model = written(tmp_path, graph)
    (tmp_path / "p.toml").write_text(
        'schema = 1\n[key]\nsource = "file:hardening.key"\n[outputs.boxes]\nspace = "boxes"\nrange = [0, 100]\n'
        'tiers.normal = [{kind = "gaussian", sigma = 1.0}, {kind = "clip", low = 0, high = 100}]\n'
    )
    session, bare = hardening_onnx.wrap(model, hardening.load_policy(tmp_path / "p.toml")), ort.InferenceSession(model)
    counts = set()
    for seed in range(12):
        rng = np.random.default_rng(seed)
        corner = rng.uniform(0, 40, (1, 9, 2))
        b = np.concatenate([corner, corner + rng.uniform(5, 60, (1, 9, 2))], axis=2).astype("f4")
        feed = {"b": b, "s": rng.random((1, 1, 9)).astype("f4")}
        ours, theirs = session.run(None, feed, client="a")[0], bare.run(None, feed)[0]
        counts.add(len(ours))
        assert ours.shape == theirs.shape
        assert 0.1 < np.abs(ours - theirs).mean() < 3
        assert np.array_equal(ours, session.run(None, feed, client="b")[0])
    assert len(counts) > 2
    assert session.guard.standing("a").queries == 12


def test_labels_of_which_several_apply(tmp_path: Path) -> None:
    yes = [node("GreaterOrEqual", "p half", "h"), node("Cast", "h", "y", to=T.INT64)]
    graph = [*HEAD, node("Sigmoid", "z", "p"), *yes]
    outputs = {"y": (T.INT64, ["N", 5]), "p": floats("N", 5)}
    model = written(tmp_path, build(graph, outputs, WEIGHTS | {"half": np.array(0.5, "f4")}))
    policy = drafted(model)
    assert hardening.load_policy(policy).outputs["p"].label_output == "y"
    assert main(["check", str(policy), "--model", str(model)]) == 0
    session = hardening_onnx.wrap(model, hardening.load_policy(policy))
    x = np.random.default_rng(0).normal(size=(300, 8)).astype("f4") * 0.3
    y, p = session.run(None, {"x": x}, client="a")
    raw, clean = ort.InferenceSession(str(model)).run(None, {"x": x})
    assert np.array_equal(y, (p >= 0.5).astype(np.int64))
    assert (y != raw).any()
    assert 0 < np.abs(p - clean).mean() < 0.1


def test_scikit_learn_multilabel(tmp_path: Path) -> None:
    from skl2onnx import to_onnx
    from sklearn.datasets import make_multilabel_classification
    from sklearn.neural_network import MLPClassifier

    x, y = make_multilabel_classification(200, n_features=6, n_classes=4, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a hundred steps do not converge, and need not
        fitted = MLPClassifier((8,), max_iter=300, random_state=0).fit(x.astype("f4"), y)
    converted = to_onnx(fitted, x[:1].astype("f4"), options={"zipmap": False})
    model = written(tmp_path, converted)
    (tmp_path / "p.toml").write_text(drafted(model).read_text().replace("0.05", "0.01"))
    session = hardening_onnx.wrap(model, hardening.load_policy(tmp_path / "p.toml"))
    label, p = session.run(None, {"X": x.astype("f4")})
    assert np.array_equal(label, (p >= 0.5).astype(label.dtype))
    assert label.shape == (200, 4)
    assert (label == fitted.predict(x.astype("f4"))).mean() > 0.9


def test_many_labels_are_cut_to_the_likeliest(tmp_path: Path) -> None:
    nodes, weights = dense(90)
    model = written(tmp_path, build([*nodes, node("Sigmoid", "z", "tags")], {"tags": floats("N", 90)}, weights))
    (tags,) = hardening_onnx.wrap(model, hardening.load_policy(drafted(model))).run(None, {"x": weight(30, 8)})
    assert ((tags > 0).sum(axis=1) <= 20).all()
    assert (tags > 0).sum() > 300


def test_whole_rows_of_logits_are_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = written(tmp_path, build([*HEAD, node("Identity", "z", "y")], {"y": floats("N", 5)}, WEIGHTS))
    policy = tmp_path / "p.toml"
    text = 'schema = 1\n[outputs.y]\nspace = "logits"\ndense = true\ntiers.normal = [{kind = "round", decimals = 1}]\n'
    policy.write_text(text)
    assert main(["check", str(policy)]) == 0
    assert "warning: outputs.y.dense: whole rows of logits are released" in capsys.readouterr().out
    assert main(["check", str(policy), "--model", str(model), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["warnings"][0].startswith("outputs.y.dense")
    hardening_onnx.wrap(model, hardening.load_policy(policy)).run(None, {"x": weight(2, 8)})
    policy.write_text(text.replace("dense = true\n", ""))
    assert main(["check", str(policy)]) == 2
    assert "releases dense logits" in capsys.readouterr().err
    cut = '{kind = "clip", low = -9, high = 9}, {kind = "top_k", k = 3}'
    policy.write_text(text.replace("dense = true\n", "").replace('{kind = "round", decimals = 1}', cut))
    with pytest.raises(hardening.ConfigError, match="releases 3 of 5 logits"):
        hardening_onnx.wrap(model, hardening.load_policy(policy))
    assert main(["check", str(policy), "--model", str(model)]) == 1
    assert "releases 3 of 5 logits: at most half" in capsys.readouterr().out
