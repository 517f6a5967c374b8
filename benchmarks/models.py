"""Models to harden: two made here with random weights, and magika's real one from its wheel."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from itertools import pairwise
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, checker, helper, numpy_helper

Rng = np.random.Generator


@dataclass(frozen=True)
class Model:
    """An ONNX model with one input and one output of class probabilities.

    Attributes:
        data: the model's bytes.
        source: names of its input and its output.
        inputs: makes a batch of inputs.
    """

    data: bytes
    source: tuple[str, str]
    inputs: Callable[[Rng, int], NDArray[Any]]

    def session(self) -> onnxruntime.InferenceSession:
        """A bare session."""
        return onnxruntime.InferenceSession(self.data, options(), ["CPUExecutionProvider"])


def options() -> onnxruntime.SessionOptions:
    """One thread: what is compared is work, not scheduling."""
    chosen = onnxruntime.SessionOptions()
    chosen.intra_op_num_threads = chosen.inter_op_num_threads = 1
    return chosen


def _serialised(nodes: list[Any], weights: dict[str, NDArray[Any]], shape: list[int], classes: int) -> bytes:
    graph = helper.make_graph(
        [*nodes, helper.make_node("Softmax", ["z"], ["p"], axis=-1)],
        "benchmark",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *shape])],
        [helper.make_tensor_value_info("p", TensorProto.FLOAT, ["N", classes])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    checker.check_model(model)
    return bytes(model.SerializeToString())


def mlp(features: int = 64, hidden: int = 256, classes: int = 10) -> Model:
    """A multilayer perceptron whose run costs little more than the call."""
    rng = np.random.default_rng(0)
    weights = {
        "w1": rng.normal(size=(features, hidden)) / math.sqrt(features),
        "b1": rng.normal(size=hidden) * 0.1,
        "w2": rng.normal(size=(hidden, classes)) * 3.0 / math.sqrt(hidden),
        "b2": rng.normal(size=classes) * 0.1,
    }
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "w2", "b2"], ["z"]),
    ]
    data = _serialised(nodes, weights, [features], classes)
    return Model(data, ("x", "p"), lambda rng, n: rng.standard_normal((n, features), np.float32))


def cnn(classes: int = 100) -> Model:
    """Three convolutions over 3x32x32 images."""
    rng = np.random.default_rng(0)
    nodes, weights, last, channels = [], {}, "x", (3, 32, 64, 128)
    for i, (before, after) in enumerate(pairwise(channels)):
        weights[f"w{i}"] = rng.normal(size=(after, before, 3, 3)) * math.sqrt(2.0 / (9 * before))
        weights[f"b{i}"] = rng.normal(size=after) * 0.01
        nodes += [
            helper.make_node("Conv", [last, f"w{i}", f"b{i}"], [f"c{i}"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", [f"c{i}"], [f"r{i}"]),
            helper.make_node("MaxPool", [f"r{i}"], [f"m{i}"], kernel_shape=[2, 2], strides=[2, 2]),
        ]
        last = f"m{i}"
    weights |= {"w": rng.normal(size=(channels[-1], classes)) / 4.0, "b": rng.normal(size=classes) * 0.1}
    nodes += [
        helper.make_node("GlobalAveragePool", [last], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"]),
        helper.make_node("Gemm", ["f", "w", "b"], ["z"]),
    ]
    data = _serialised(nodes, weights, [3, 32, 32], classes)
    return Model(data, ("x", "p"), lambda rng, n: rng.standard_normal((n, 3, 32, 32), np.float32))


def magika() -> Model:
    """Google's file type detector: 2048 bytes of a file in, 214 classes out."""
    data = resources.files("magika").joinpath("models/standard_v3_3/model.onnx").read_bytes()
    return Model(data, ("bytes", "target_label"), lambda rng, n: rng.integers(0, 256, (n, 2048), np.int32))


MODELS: dict[str, Callable[[], Model]] = {"mlp": mlp, "cnn": cnn, "magika": magika}
