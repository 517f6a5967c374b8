"""Small real models, policies and a client without stubs, for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from hardening_grpc.codec import InferRequest, InferResponse, RequestedOutput
from hardening_grpc.service import INFERENCE
from hardening_grpc.tensors import DTYPES, encode_output
from onnx import TensorProto as T
from onnx import helper, numpy_helper

from tests.keys import fixed_key

#: Every datatype of the protocol that a model may have, by ONNX's.
TYPES = {
    "BOOL": T.BOOL,
    "UINT8": T.UINT8,
    "UINT16": T.UINT16,
    "UINT32": T.UINT32,
    "UINT64": T.UINT64,
    "INT8": T.INT8,
    "INT16": T.INT16,
    "INT32": T.INT32,
    "INT64": T.INT64,
    "FP16": T.FLOAT16,
    "FP32": T.FLOAT,
    "FP64": T.DOUBLE,
    "BYTES": T.STRING,
}

MLP_POLICY = """schema = 1
[key]
source = "file:hardening.key"
create = true
[outputs.p]
space = "simplex"
label_output = "label"
tiers.normal = [ {kind = "gaussian", sigma = 0.05}, {kind = "project", keep_top1 = true}, {kind = "types", n = 100} ]
"""


def _model(nodes: list[Any], inputs: list[Any], outputs: list[Any], weights: dict[str, Any]) -> bytes:
    tensors = [numpy_helper.from_array(v, k) for k, v in weights.items()]
    graph = helper.make_graph(nodes, "model", inputs, outputs, tensors)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString())


def mlp() -> bytes:
    """x (N, 8) -> p (N, 4), logits and label; the bias b2 is an initializer that is also an input."""
    rng = np.random.default_rng(0)
    weights = {"w": rng.normal(size=(8, 4)).astype("f4"), "b2": rng.normal(size=4).astype("f4")}
    value = helper.make_tensor_value_info
    return _model(
        [
            helper.make_node("Gemm", ["x", "w", "b2"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["p"]),
            helper.make_node("ArgMax", ["logits"], ["label"], axis=1, keepdims=0),
        ],
        [value("x", T.FLOAT, ["N", 8]), value("b2", T.FLOAT, [4])],
        [value("p", T.FLOAT, ["N", 4]), value("logits", T.FLOAT, ["N", 4]), value("label", T.INT64, ["N"])],
        weights,
    )


def echo(datatype: str) -> bytes:
    """x (N, 2) -> y, the same."""
    value = helper.make_tensor_value_info
    kind = TYPES[datatype]
    return _model(
        [helper.make_node("Identity", ["x"], ["y"])], [value("x", kind, ["N", 2])], [value("y", kind, ["N", 2])], {}
    )


ECHO_POLICY = """schema = 1
[outputs.y]
space = "open"
"""


def zipmap(strings: bool) -> bytes:
    """x (N, 3) -> probabilities, a sequence of maps, and label, as scikit-learn's converter writes them."""
    value = helper.make_tensor_value_info
    classes = {"classlabels_strings": ["cat", "dog", "eel"]} if strings else {"classlabels_int64s": [10, 20, 30]}
    key = T.STRING if strings else T.INT64
    maps = helper.make_value_info(
        "probabilities",
        helper.make_sequence_type_proto(helper.make_map_type_proto(key, helper.make_tensor_type_proto(T.FLOAT, []))),
    )
    nodes = [
        helper.make_node("Softmax", ["x"], ["p"]),
        helper.make_node("ZipMap", ["p"], ["probabilities"], domain="ai.onnx.ml", **classes),
        helper.make_node("ArgMax", ["x"], ["index"], axis=1, keepdims=0),
        helper.make_node("Gather", ["names", "index"], ["label"]),
    ]
    names = np.array(next(iter(classes.values())), object if strings else np.int64)
    return _model(nodes, [value("x", T.FLOAT, ["N", 3])], [maps, value("label", key, ["N"])], {"names": names})


ZIPMAP_POLICY = """schema = 1
[outputs.probabilities]
space = "simplex"
label_output = "label"
tiers.normal = [ {kind = "types", n = 20} ]
"""


def write(folder: Path, model: bytes, policy: str) -> tuple[Path, Path]:
    """model.onnx and policy.toml in `folder`, with the key of `tests.keys`."""
    fixed_key(folder)
    (folder / "model.onnx").write_bytes(model)
    (folder / "policy.toml").write_text(policy)
    return folder / "model.onnx", folder / "policy.toml"


def request(feed: dict[str, Any], outputs: Iterable[str] = (), **fields: Any) -> InferRequest:
    """A raw request for the model that `write` writes."""
    pairs = [encode_output(name, value) for name, value in feed.items()]
    fields = {
        "model_name": "model",
        "inputs": [t for t, _ in pairs],
        "raw_input_contents": [r for _, r in pairs],
    } | fields
    return InferRequest(outputs=[RequestedOutput(name=n) for n in outputs], **fields)


def arrays(response: InferResponse) -> dict[str, Any]:
    """The numeric outputs of a response."""
    return {
        t.name: np.frombuffer(raw, DTYPES[t.datatype]).reshape(tuple(t.shape))
        for t, raw in zip(response.outputs, response.raw_output_contents, strict=True)
    }


def call(
    channel: grpc.Channel,
    method: str,
    data: bytes,
    key: str | None = None,
    timeout: float = 60.0,
    more: Iterable[tuple[str, str]] = (),
) -> bytes:
    """One call, as a stranger would make it. Raises grpc.RpcError."""
    path = method if method.startswith("/") else f"/{INFERENCE}/{method}"
    metadata = [*([("x-api-key", key)] if key else []), *more]
    answer: bytes = channel.unary_unary(path)(data, metadata=metadata, timeout=timeout)
    return answer
