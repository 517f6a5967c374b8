"""The models of the demo: magika's own, and two small ones made on the spot."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from hardening.errors import ModelError

#: Size of the small models: inputs, hidden units of the multilayer perceptron, classes.
INPUTS, HIDDEN, CLASSES = 16, 16, 10


class Magika(NamedTuple):
    """magika's model file and the names of its classes, by index."""

    path: Path
    classes: tuple[str, ...]
    version: str


def find_magika() -> Magika:
    """The model inside the installed package, which is not imported. Raises ModelError if it is not there."""
    spec = importlib.util.find_spec("magika")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    found = sorted(p for folder in folders for p in Path(folder).glob("models/*/model.onnx"))
    if not found:
        raise ModelError("the model of the package 'magika' is not installed: pip install 'hardening[demo]'")
    path = found[-1]
    try:
        config = json.loads(path.with_name("config.min.json").read_text("utf-8"))
        sizes, classes = (
            (config["beg_size"], config["end_size"], config["padding_token"]),
            config["target_labels_space"],
        )
    except (OSError, ValueError, KeyError) as problem:
        raise ModelError(f"{path.with_name('config.min.json')} cannot be read: {problem!r}") from None
    if sizes != (1024, 1024, 256):
        raise ModelError(f"{path}: this magika reads files differently (sizes {sizes}); pip install 'magika==1.0.3'")
    return Magika(path, tuple(classes), path.parent.name)


def _serialised(nodes: list[Any], weights: dict[str, NDArray[Any]]) -> bytes:
    graph = helper.make_graph(
        nodes,
        "demo",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", INPUTS])],
        [helper.make_tensor_value_info("p", TensorProto.FLOAT, ["N", CLASSES])],
        [numpy_helper.from_array(w.astype(np.float32), name) for name, w in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(model.SerializeToString())


def perceptron(rng: np.random.Generator) -> bytes:
    """x float32 ``(N, INPUTS)`` -> probabilities p ``(N, CLASSES)``, through one hidden layer; answers are unsure."""
    weights = {
        "w1": rng.normal(0, INPUTS**-0.5, (INPUTS, HIDDEN)),
        "b1": rng.normal(0, 0.1, HIDDEN),
        "w2": rng.normal(0, 0.5 * HIDDEN**-0.5, (HIDDEN, CLASSES)),
        "b2": rng.normal(0, 0.1, CLASSES),
    }
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "w2", "b2"], ["z"]),
        helper.make_node("Softmax", ["z"], ["p"], axis=1),
    ]
    return _serialised(nodes, weights)


def regression(rng: np.random.Generator) -> bytes:
    """Softmax regression, x float32 ``(N, INPUTS)`` -> probabilities p ``(N, CLASSES)``."""
    weights = {"w": rng.normal(0, 0.75, (INPUTS, CLASSES)), "b": rng.normal(0, 0.5, CLASSES)}
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["z"]),
        helper.make_node("Softmax", ["z"], ["p"], axis=1),
    ]
    return _serialised(nodes, weights)
