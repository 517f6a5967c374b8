"""Read an ONNX file as a graph: who makes a tensor, from which constants, in which shape. No session is made.

Weights kept in further files stay there, until a constant of moderate size is asked for.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import external_data_helper, numpy_helper

from hardening.errors import ModelError

Shape = tuple[int | str | None, ...]
#: Largest constant that is read: scales, axes and class names, not weights of layers.
LARGEST_CONSTANT = 1 << 20
_FLOATS = {onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16}
_KEEPS_SHAPE = {"Identity", "Cast", "Softmax", "LogSoftmax", "Sigmoid", "Tanh", "Clip"}
_INTEGERS = {
    getattr(onnx.TensorProto, name)
    for name in ("INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64")
}


@dataclass(frozen=True)
class Value:
    """A graph input or output as it is declared.

    Attributes:
        holds: ``maps`` is a sequence of maps from class to score, as ZipMap writes it.
        shape: None where the model does not say; an axis is a number, a symbol or None.
    """

    name: str
    holds: Literal["floats", "integers", "strings", "maps", "other"]
    shape: Shape | None

    @property
    def width(self) -> int | None:
        """Size of the last axis, if it is fixed; a plain vector holds rows of one."""
        if not self.shape:
            return None
        last = self.shape[-1] if len(self.shape) > 1 else 1
        return last if isinstance(last, int) and last > 0 else None


def _shape(kind: Any) -> Shape | None:
    if not kind.HasField("shape"):
        return None
    return tuple(d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in kind.shape.dim)


def _value(info: Any) -> Value:
    kind = info.type
    if kind.HasField("sequence_type"):
        maps = kind.sequence_type.elem_type.HasField("map_type")
        return Value(info.name, "maps" if maps else "other", None)
    if not kind.HasField("tensor_type"):
        return Value(info.name, "other", None)
    element = kind.tensor_type.elem_type
    holds: Literal["floats", "integers", "strings", "other"] = "other"
    if element in _FLOATS:
        holds = "floats"
    elif element in _INTEGERS:
        holds = "integers"
    elif element == onnx.TensorProto.STRING:
        holds = "strings"
    return Value(info.name, holds, _shape(kind.tensor_type))


class Graph:
    """One graph of a model; a branch of an ``If`` is a graph whose `outer` is the one around it."""

    def __init__(self, proto: Any, model: onnx.ModelProto, folder: Path, outer: Graph | None = None) -> None:
        self._model, self._folder, self._outer = model, folder, outer
        self.opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)
        self._makers = {name: (node, i) for node in proto.node for i, name in enumerate(node.output) if name}
        self._tensors = {t.name: t for t in proto.initializer}
        self._shapes: dict[str, Shape | None] = {v.name: _value(v).shape for v in (*proto.value_info, *proto.output)}
        self._shapes |= {t.name: tuple(t.dims) for t in proto.initializer}
        for node in reversed(proto.node):
            if node.op_type in _KEEPS_SHAPE and node.input and self._shapes.get(node.input[0]) is None:
                self._shapes[node.input[0]] = self._shapes.get(node.output[0])
        self._inferred = outer is not None
        self.outputs = tuple(_value(o) for o in proto.output)
        self.inputs = tuple(_value(i) for i in proto.input if i.name not in self._tensors)

    def maker(self, tensor: str) -> tuple[Any, int] | None:
        """The node that makes `tensor` and which of its outputs that is, or None for an input or an initializer."""
        found = self._makers.get(tensor)
        return found if found or self._outer is None else self._outer.maker(tensor)

    def branch(self, proto: Any) -> Graph:
        return Graph(proto, self._model, self._folder, self)

    def shape(self, tensor: str) -> Shape | None:
        """Declared, or inferred by ONNX's own shape inference; None if neither knows."""
        if self._shapes.get(tensor) is None and not self._inferred:
            self._inferred = True
            self._shapes |= {k: v for k, v in _inferred_shapes(self._model).items() if self._shapes.get(k) is None}
        found = self._shapes.get(tensor)
        return found if found is not None or self._outer is None else self._outer.shape(tensor)

    def width(self, tensor: str) -> int | None:
        """Size of the last axis, if it is fixed."""
        shape = self.shape(tensor)
        return shape[-1] if shape and isinstance(shape[-1], int) and shape[-1] > 0 else None

    def constant(self, tensor: str) -> NDArray[Any] | None:
        """The value of a constant of moderate size, else None. Raises ModelError if its file cannot be read."""
        proto = self._tensors.get(tensor)
        if proto is None:
            made = self._makers.get(tensor)
            if made is None:
                return self._outer.constant(tensor) if self._outer else None
            if made[0].op_type != "Constant":
                return None
            value = attributes(made[0])
            plain = next((value[k] for k in value if k.startswith("value_")), None)
            if plain is not None:
                return np.asarray(plain)
            proto = value.get("value")
        if proto is None or np.prod(proto.dims, dtype=np.float64) > LARGEST_CONSTANT:
            return None
        try:
            return np.asarray(numpy_helper.to_array(proto, str(self._folder)))
        except Exception as problem:
            raise ModelError(f"the constant {quoted(tensor)} cannot be read ({type(problem).__name__})") from None


def quoted(text: str) -> str:
    """A TOML basic string, free of line breaks and control characters: names come from files of strangers."""
    plain = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else _escaped(c) for c in plain) + '"'


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\u{code:04X}" if code < 0x10000 else f"\\U{code:08X}"


def attributes(node: Any) -> dict[str, Any]:
    """A node's attributes by name; texts are decoded."""

    def text(value: Any) -> Any:
        if isinstance(value, bytes):
            return value.decode("utf-8", "replace")
        return [text(v) for v in value] if isinstance(value, list) else value

    return {a.name: text(onnx.helper.get_attribute_value(a)) for a in node.attribute}


def _inferred_shapes(model: onnx.ModelProto) -> dict[str, Shape | None]:
    try:
        inferred = onnx.shape_inference.infer_shapes(model)
    except Exception:  # shapes are evidence only: a model that inference cannot follow has less of it
        return {}
    return {v.name: _value(v).shape for v in (*inferred.graph.value_info, *inferred.graph.output)}


def _external(proto: Any) -> Iterator[Any]:
    for tensor in proto.initializer:
        if external_data_helper.uses_external_data(tensor):
            yield tensor
    for node in proto.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _external(attribute.g)


def read(model: str | os.PathLike[str]) -> Graph:
    """The main graph of an ONNX file.

    Raises ModelError if the file cannot be read, is not a whole ONNX model, or lacks a file that its weights are in.
    """
    path = Path(model)
    name = quoted(os.fspath(model))
    try:
        data = path.read_bytes()
    except OSError as problem:
        raise ModelError(f"cannot read {name}: {problem.strerror}") from None
    try:
        proto = onnx.load_model_from_string(data)
    except Exception:
        raise ModelError(f"{name} is not a whole ONNX model: its bytes cannot be decoded") from None
    if not proto.ir_version or not proto.graph.output or not proto.opset_import:
        raise ModelError(f"{name} is not an ONNX model: it declares no IR version, operator set or output")
    for tensor in _external(proto.graph):
        place = next((e.value for e in tensor.external_data if e.key == "location"), "")
        if re.match(r"[/\\]|.*\.\.", place) or not (path.parent / place).is_file():
            raise ModelError(f"{name} keeps weights in {quoted(place)}, which is not beside it")
    for info in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        for axis in info.type.tensor_type.shape.dim:
            if axis.dim_value < 0:  # some exporters write -1 for a free axis, which shape inference does not take
                axis.ClearField("dim_value")
    return Graph(proto.graph, proto, path.parent)
