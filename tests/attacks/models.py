"""Victims as ONNX models."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from hardening.audit.extraction import Query, Student


def exported(student: Student) -> bytes:
    """The student as an ONNX model from float32 ``x`` to distributions ``p``."""
    nodes, weights, entering = [], [], "x"
    for i, (w, b) in enumerate(student.layers):
        weights += [numpy_helper.from_array(w, f"w{i}"), numpy_helper.from_array(b, f"b{i}")]
        nodes.append(helper.make_node("Gemm", [entering, f"w{i}", f"b{i}"], [f"z{i}"]))
        entering = f"z{i}"
        if i < len(student.layers) - 1:
            nodes.append(helper.make_node("Relu", [f"z{i}"], [f"r{i}"]))
            entering = f"r{i}"
    nodes.append(helper.make_node("Softmax", [entering], ["p"], axis=1))
    graph = helper.make_graph(
        nodes,
        "student",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", student.layers[0][0].shape[0]])],
        [helper.make_tensor_value_info("p", TensorProto.FLOAT, ["N", student.layers[-1][0].shape[1]])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(model.SerializeToString())


def asking(session: Any, **names: str) -> Query:
    """What an attacker who reaches this session can do."""
    return lambda x: np.asarray(session.run(["p"], {"x": np.asarray(x, np.float32)}, **names)[0])
