"""Tensors of the protocol to numpy arrays and back."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from hardening.errors import InputError, ModelError
from hardening_grpc.codec import InferRequest, Parameter, Tensor

#: Numeric datatypes of the protocol, little-endian on the wire; BYTES holds strings. BF16 has no numpy type, and a
#: model that takes or gives it is refused when the server starts.
DTYPES = {
    "BOOL": np.dtype(bool),
    "UINT8": np.dtype("<u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("<i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
DATATYPES = {dtype: name for name, dtype in DTYPES.items()}
#: The field of InferTensorContents for each datatype; FP16 has none and travels raw.
_CONTENTS = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
#: ONNX Runtime's names of the datatypes.
_ONNX = {
    "bool": "BOOL",
    "string": "BYTES",
    "float16": "FP16",
    "float": "FP32",
    "double": "FP64",
    **{f"{u}int{n}": f"{u.upper()}INT{n}" for u in ("", "u") for n in (8, 16, 32, 64)},
}
#: Most strings in one tensor: each becomes an object.
MAX_STRINGS = 1 << 16
MAX_RANK = 32


class Declared(NamedTuple):
    """What the runtime says of an input or an output (`onnxruntime.NodeArg`), in the protocol's words; -1 varies."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class _NodeArg(Protocol):
    name: str
    type: str
    shape: list[Any]


def declared(argument: _NodeArg, what: str) -> Declared:
    """A model's input or output in the protocol's words. A ZipMap, scikit-learn's sequence of maps from class to
    score, is a dense FP32 tensor. Raises ModelError for what the protocol cannot say."""
    kind = argument.type
    if what == "output" and kind.startswith("seq(map(") and kind.endswith("tensor(float)))"):
        return Declared(argument.name, "FP32", (-1, -1))
    if not kind.startswith("tensor(") or kind[7:-1] not in _ONNX:
        raise ModelError(
            f"{what} {argument.name!r} is {kind}, which cannot be served: "
            f"only tensors of {', '.join(sorted(_ONNX))} can, and outputs of scikit-learn's ZipMap"
        )
    shape = tuple(n if isinstance(n, int) and n >= 0 else -1 for n in argument.shape or ())
    return Declared(argument.name, _ONNX[kind[7:-1]], shape)


def decode_inputs(request: InferRequest, inputs: Mapping[str, Declared]) -> dict[str, NDArray[Any]]:
    """The arrays of a request, native, aligned and contiguous. Raises InputError unless they are just the declared
    inputs, with their datatypes, sizes that fit, and every byte accounted for."""
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise InputError(f"{len(request.inputs)} inputs, but {len(raw)} raw contents")
    feed: dict[str, NDArray[Any]] = {}
    for index, tensor in enumerate(request.inputs):
        if tensor.name not in inputs:
            raise InputError(f"input {tensor.name!r} is not declared")
        if tensor.name in feed:
            raise InputError(f"input {tensor.name!r} is given twice")
        _check_declared(tensor, inputs[tensor.name])
        if raw and tensor.contents is not None:
            raise InputError(f"input {tensor.name!r} has both raw and typed contents")
        feed[tensor.name] = _from_raw(tensor, raw[index]) if raw else _from_contents(tensor)
    missing = [name for name in inputs if name not in feed]
    if missing:
        raise InputError(f"missing inputs: {', '.join(missing)}")
    return feed


def _check_declared(tensor: Tensor, want: Declared) -> None:
    if tensor.datatype != want.datatype:
        raise InputError(f"input {want.name!r} is {tensor.datatype!r}, not {want.datatype}")
    shape = tensor.shape[: MAX_RANK + 1].tolist()
    fits = len(shape) == len(want.shape) and all(n >= 0 for n in shape)
    if not fits or any(w not in (-1, n) for n, w in zip(shape, want.shape, strict=True)):
        raise InputError(f"input {want.name!r} has shape {shape}, not {list(want.shape)}")


def _from_raw(tensor: Tensor, raw: memoryview) -> NDArray[Any]:
    shape = tuple(tensor.shape)
    if tensor.datatype == "BYTES":
        return _strings(tensor.name, _split(tensor.name, raw, math.prod(shape)), shape)
    dtype = DTYPES[tensor.datatype]
    if math.prod(shape) * dtype.itemsize != len(raw):
        raise InputError(f"input {tensor.name!r} has {len(raw)} bytes for shape {list(shape)} of {tensor.datatype}")
    flat = np.frombuffer(raw, dtype)
    if tensor.datatype == "BOOL" and flat.view(np.uint8).max(initial=0) > 1:
        raise InputError(f"input {tensor.name!r} has bytes other than 0 and 1 for BOOL")
    return _shaped(tensor.name, flat.astype(dtype.newbyteorder("=")), shape)


def _from_contents(tensor: Tensor) -> NDArray[Any]:
    name, shape = tensor.name, tuple(tensor.shape)
    field = _CONTENTS.get(tensor.datatype)
    if field is None:
        raise InputError(f"input {name!r} is {tensor.datatype}, which has no typed contents: send it raw")
    given = {} if tensor.contents is None else {k: v for k, v in vars(tensor.contents).items() if len(v)}
    if set(given) - {field}:
        raise InputError(f"input {name!r} is {tensor.datatype}, its contents belong in {field}")
    values = given.get(field, ())
    if len(values) != math.prod(shape):
        raise InputError(f"input {name!r} has {len(values)} values for shape {list(shape)}")
    if tensor.datatype == "BYTES":
        return _strings(name, values, shape)
    wide = np.asarray(values)
    narrow = wide.astype(DTYPES[tensor.datatype].newbyteorder("="))
    if narrow.dtype.kind in "iu" and not np.array_equal(narrow, wide):
        raise InputError(f"input {name!r} has values outside {tensor.datatype}")
    return _shaped(name, narrow, shape)


def _split(name: str, raw: memoryview, count: int) -> list[memoryview]:
    """Elements of a BYTES tensor: each is preceded by its length, 4 bytes little-endian."""
    if count * 4 > len(raw) or count > MAX_STRINGS:
        raise InputError(f"input {name!r} has {len(raw)} bytes for {count} strings; at most {MAX_STRINGS} are taken")
    parts, at = [], 0
    for _ in range(count):
        start = at + 4
        at = start + int.from_bytes(raw[at:start], "little")
        if start > len(raw) or at > len(raw):
            raise InputError(f"input {name!r} ends in the middle of a string")
        parts.append(raw[start:at])
    if at != len(raw):
        raise InputError(f"input {name!r} has bytes after its last string")
    return parts


def _strings(name: str, parts: Iterable[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    out = np.empty(math.prod(shape), object)
    try:
        for index, part in enumerate(parts):
            out[index] = str(part, "utf-8")
    except UnicodeDecodeError:
        raise InputError(f"input {name!r} has a string that is not UTF-8") from None
    return _shaped(name, out, shape)


def _shaped(name: str, flat: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    try:
        return flat.reshape(shape)
    except ValueError:  # no elements, but sizes whose product overflows
        raise InputError(f"input {name!r} has the impossible shape {list(shape)}") from None


def encode_output(name: str, value: Any) -> tuple[Tensor, bytes]:
    """A hardened output as metadata and raw contents.

    A ZipMap becomes FP32 of shape (rows, classes), and the parameter ``classes`` holds its class names as a JSON list.
    """
    parameters = {}
    if isinstance(value, list):
        classes = list(value[0]) if value else []
        parameters["classes"] = Parameter(string_param=json.dumps(classes))
        value = np.array([[row[c] for c in classes] for row in value], np.float32).reshape(len(value), len(classes))
    if value.dtype.kind in "OSU":
        texts = [t if isinstance(t, bytes) else str(t).encode() for t in value.ravel().tolist()]
        datatype, raw = "BYTES", b"".join(len(t).to_bytes(4, "little") + t for t in texts)
    else:
        little = value.dtype.newbyteorder("<")
        datatype, raw = DATATYPES[little], value.astype(little, copy=False).tobytes()
    return Tensor(name=name, datatype=datatype, shape=value.shape, parameters=parameters), raw
