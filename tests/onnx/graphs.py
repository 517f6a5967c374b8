"""Small models made on the spot, by the operators that they end in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto as T
from onnx import helper, numpy_helper

Shape = Sequence[int | str]
Outputs = dict[str, tuple[int, Shape]]


def node(op: str, inputs: str, outputs: str, domain: str = "", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), outputs.split(), domain=domain, **attributes)


def build(
    nodes: Sequence[onnx.NodeProto],
    outputs: Outputs,
    weights: dict[str, Any] | None = None,
    inputs: Outputs | None = None,
    opset: int = 17,
) -> onnx.ModelProto:
    """A model with input x, float [N, 8], unless `inputs` say otherwise."""
    declared = inputs or {"x": (T.FLOAT, ["N", 8])}
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info(n, *v) for n, v in declared.items()],
        [helper.make_tensor_value_info(n, *v) for n, v in outputs.items()],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in (weights or {}).items()],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def weight(*shape: int) -> Any:
    return np.random.default_rng(1).normal(size=shape).astype("f4")


def floats(*shape: int | str) -> tuple[int, Shape]:
    return T.FLOAT, shape


def dense(width: int, name: str = "z") -> tuple[list[onnx.NodeProto], dict[str, Any]]:
    nodes = [node("MatMul", "x w", "m"), node("Add", "m b", name)]
    return nodes, {"w": weight(8, width), "b": weight(width)}


HEAD, WEIGHTS = dense(5)
ONE = {"one": np.array(1, "f4"), "axes": np.array([1]), "flat": np.array([-1])}
TAILS: dict[str, tuple[list[onnx.NodeProto], tuple[int, Shape], str]] = {
    "softmax": ([node("Softmax", "z", "y")], floats("N", 5), "simplex"),
    "identity": ([node("Softmax", "z", "s"), node("Identity", "s", "y")], floats("N", 5), "simplex"),
    "decomposed": (
        [
            node("ReduceMax", "z", "top", axes=[1]),
            node("Sub", "z top", "d"),
            node("Exp", "d", "e"),
            node("ReduceSum", "e axes", "sum"),
            node("Div", "e sum", "y"),
        ],
        floats("N", 5),
        "simplex",
    ),
    "logsumexp": (
        [node("ReduceLogSumExp", "z", "l", axes=[1]), node("Sub", "z l", "d"), node("Exp", "d", "y")],
        floats("N", 5),
        "simplex",
    ),
    "exp of logsoftmax": ([node("LogSoftmax", "z", "l"), node("Exp", "l", "y")], floats("N", 5), "simplex"),
    "normalised sigmoid": (
        [node("Sigmoid", "z", "s"), node("Normalizer", "s", "y", "ai.onnx.ml", norm="L1")],
        floats("N", 5),
        "simplex",
    ),
    "logsoftmax": ([node("LogSoftmax", "z", "y")], floats("N", 5), "logits"),
    "sigmoid": ([node("Sigmoid", "z", "y")], floats("N", 5), "multilabel"),
    "averaged sigmoid": (
        [node("Sigmoid", "z", "s"), node("ReduceMean", "s", "y", axes=[1])],
        floats("N", 1),
        "sigmoid",
    ),
    "nothing after it": ([node("Identity", "z", "y")], floats("N", 5), "logits"),
    "divided by a temperature": ([node("Div", "z one", "y")], floats("N", 5), "logits"),
    "labels": ([node("ArgMax", "z", "y", axis=1, keepdims=0)], (T.INT64, ["N"]), "labels"),
    "tanh": ([node("Tanh", "z", "y")], floats("N", 5), "embedding"),
    "of length one": ([node("LpNormalization", "z", "y", axis=1, p=2)], floats("N", 5), "embedding"),
    "divided by its norm": (
        [node("ReduceL2", "z", "l", axes=[1]), node("Div", "z l", "y")],
        floats("N", 5),
        "embedding",
    ),
    "exp alone": ([node("Exp", "z", "y")], floats("N", 5), "unknown"),
    "top of them": ([node("Constant", "", "k", value_ints=[2]), node("TopK", "z k", "y i")], floats("N", 2), "unknown"),
    "glued": ([node("Sigmoid", "z", "s"), node("Concat", "z s", "y", axis=1)], floats("N", 10), "unknown"),
    "turned": ([node("Softmax", "z", "s"), node("Transpose", "s", "y", perm=[1, 0])], floats(5, "N"), "unknown"),
    "flattened": ([node("Softmax", "z", "s"), node("Reshape", "s flat", "y")], floats("M"), "unknown"),
    "over rows": ([node("Softmax", "z", "y", axis=0)], floats("N", 5), "unknown"),
    "of integers": (
        [node("Softmax", "z", "s"), node("Cast", "s", "y", to=T.INT64)],
        (T.INT64, ["N", 5]),
        "unknown",
    ),
}


def mlp() -> onnx.ModelProto:
    """Probabilities, the logits they come from, the label, and something that no rule knows."""
    nodes = [
        *HEAD,
        node("Softmax", "z", "p"),
        node("ArgMax", "z", "label", axis=1, keepdims=0),
        node("Exp", "z", "odd"),
    ]
    outputs = {"p": floats("N", 5), "z": floats("N", 5), "label": (T.INT64, ["N"]), "odd": floats("N", 5)}
    return build(nodes, outputs, WEIGHTS)
