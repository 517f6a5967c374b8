"""Tensors on the wire: every datatype both ways, and every way of not adding up is refused."""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np
import pytest
from hardening_grpc.codec import Contents, InferRequest, Tensor
from hardening_grpc.tensors import _CONTENTS, DTYPES, MAX_STRINGS, Declared, declared, decode_inputs, encode_output
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from hardening.errors import InputError, ModelError


def decode(tensor: Tensor, raw: list[bytes] | None = None, want: tuple[int, ...] = (-1, 2)) -> Any:
    """Over the wire and into an array; the input is declared with the tensor's own datatype."""
    request = InferRequest(inputs=[tensor], raw_input_contents=raw or [])
    read = InferRequest.decode(request.encode())
    return decode_inputs(read, {"x": Declared("x", tensor.datatype, want)})["x"]


@pytest.mark.parametrize("datatype", sorted(DTYPES))
@given(data=st.data())
def test_numbers_raw_and_typed(datatype: str, data: st.DataObject) -> None:
    value = data.draw(npst.arrays(DTYPES[datatype], st.tuples(st.integers(0, 3), st.just(2))))
    tensor, raw = encode_output("x", value)
    assert (tensor.datatype, list(tensor.shape)) == (datatype, list(value.shape))
    back = decode(tensor, [raw])
    assert back.tobytes() == value.tobytes()
    assert (back.dtype, back.shape) == (value.dtype.newbyteorder("="), value.shape)
    assert back.flags.aligned
    if datatype in _CONTENTS:
        contents = Contents(**{_CONTENTS[datatype]: value.ravel().tolist()})
        typed = decode(Tensor(name="x", datatype=datatype, shape=value.shape, contents=contents))
        assert np.array_equal(typed, value, equal_nan=datatype[:2] == "FP")
        assert typed.dtype == back.dtype


@given(st.lists(st.tuples(st.text(max_size=5), st.text(max_size=5)), max_size=4))
def test_strings_raw_and_typed(rows: list[tuple[str, str]]) -> None:
    value = np.array(rows, object).reshape(len(rows), 2)
    tensor, raw = encode_output("x", value)
    assert tensor.datatype == "BYTES"
    assert raw == b"".join(struct.pack("<I", len(t.encode())) + t.encode() for row in rows for t in row)
    assert decode(tensor, [raw]).tolist() == value.tolist()
    contents = Contents(bytes_contents=[t.encode() for t in value.ravel()])
    assert decode(Tensor(name="x", datatype="BYTES", shape=value.shape, contents=contents)).tolist() == value.tolist()


def tensor(datatype: str, shape: list[int], **contents: Any) -> Tensor:
    return Tensor(name="x", datatype=datatype, shape=shape, contents=Contents(**contents) if contents else None)


@pytest.mark.parametrize(
    ("given_tensor", "raw", "problem"),
    [
        (tensor("FP32", [1, 2]), [bytes(7)], "7 bytes"),
        (tensor("FP32", [1, 2]), [bytes(9)], "9 bytes"),
        (tensor("FP32", [1, 2]), [bytes(8), bytes(8)], "1 inputs, but 2 raw"),
        (tensor("FP32", [1, 2], fp32_contents=[1, 2]), [bytes(8)], "both raw and typed"),
        (tensor("FP32", [1, 2]), [], "0 values"),
        (tensor("FP32", [1, 2], fp32_contents=[1]), [], "1 values"),
        (tensor("FP32", [1, 2], fp64_contents=[1, 2]), [], "belong in fp32_contents"),
        (tensor("FP32", [1, 2], fp32_contents=[1, 2], int_contents=[1]), [], "belong in fp32_contents"),
        (tensor("FP32", [2]), [bytes(8)], "shape"),
        (tensor("FP32", [2, 1]), [bytes(8)], "shape"),
        (tensor("FP32", [-1, 2]), [bytes(8)], "shape"),
        (tensor("FP32", [-1, -2]), [bytes(8)], "shape"),
        (tensor("FP32", [1] * 5000), [bytes(4)], "shape"),
        (tensor("FP32", [2**62, 2]), [bytes(8)], "8 bytes"),
        (tensor("BOOL", [1, 2]), [b"\x01\x02"], "other than 0 and 1"),
        (tensor("INT8", [1, 2], int_contents=[1, 128]), [], "outside INT8"),
        (tensor("UINT16", [1, 2], uint_contents=[1, 65536]), [], "outside UINT16"),
        (tensor("FP16", [1, 2], fp32_contents=[1, 2]), [], "no typed contents"),
        (tensor("BYTES", [1, 2]), [struct.pack("<I", 1) + b"a"], "for 2 strings"),
        (tensor("BYTES", [1, 2]), [struct.pack("<I", 9) + b"a" * 4], "middle of a string"),
        (tensor("BYTES", [1, 2]), [struct.pack("<II", 0, 2**32 - 1)], "middle of a string"),
        (tensor("BYTES", [1, 2]), [struct.pack("<III", 0, 0, 0)], "after its last"),
        (tensor("BYTES", [1, 2]), [struct.pack("<I", 1) + b"\xff" + bytes(4)], "not UTF-8"),
        (tensor("BYTES", [2**20, 2]), [bytes(2**23)], f"at most {MAX_STRINGS}"),
        (tensor("BYTES", [2**40, 2]), [bytes(8)], "strings"),
    ],
)
def test_what_does_not_add_up(given_tensor: Tensor, raw: list[bytes], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        decode(given_tensor, raw)


def test_no_elements_but_an_impossible_shape() -> None:
    with pytest.raises(InputError, match="impossible shape"):
        decode(tensor("FP32", [0, 2**62, 2**62]), [b""], (-1, -1, -1))


def test_only_declared_inputs_each_once() -> None:
    want = {"x": Declared("x", "FP32", (1,)), "y": Declared("y", "FP32", (1,))}
    x, y, z = (Tensor(name=n, datatype="FP32", shape=[1]) for n in "xyz")

    def feed(*tensors: Tensor) -> Any:
        raw = [struct.pack("<f", 1.0)] * len(tensors)
        return decode_inputs(InferRequest(inputs=list(tensors), raw_input_contents=raw), want)

    assert sorted(feed(y, x)) == ["x", "y"]
    with pytest.raises(InputError, match="missing inputs: y"):
        feed(x)
    with pytest.raises(InputError, match="given twice"):
        feed(x, y, x)
    with pytest.raises(InputError, match="'z' is not declared"):
        feed(x, y, z)
    with pytest.raises(InputError, match="'BF16', not FP32"):
        feed(x, Tensor(name="y", datatype="BF16", shape=[1]))


class Argument:
    def __init__(self, kind: str, shape: list[Any]) -> None:
        self.name, self.type, self.shape = "a", kind, shape


def test_what_the_runtime_declares() -> None:
    assert declared(Argument("tensor(float)", ["N", None, 3]), "input") == Declared("a", "FP32", (-1, -1, 3))
    assert declared(Argument("seq(map(int64,tensor(float)))", []), "output") == Declared("a", "FP32", (-1, -1))
    for kind, what in [
        ("tensor(bfloat16)", "input"),
        ("tensor(float8e4m3fn)", "output"),
        ("seq(map(int64,tensor(float)))", "input"),
        ("seq(tensor(float))", "output"),
        ("sparse_tensor(float)", "output"),
    ]:
        with pytest.raises(ModelError, match="cannot be served"):
            declared(Argument(kind, []), what)


def test_zipmaps_are_dense_with_their_classes() -> None:
    out, raw = encode_output("p", [{"b": 0.25, "a": 0.75}, {"b": 1.0, "a": 0.0}])
    assert (out.datatype, list(out.shape)) == ("FP32", [2, 2])
    assert out.parameters["classes"].value == '["b", "a"]'
    assert np.frombuffer(raw, "<f4").tolist() == [0.25, 0.75, 1.0, 0.0]
    assert list(encode_output("p", [])[0].shape) == [0, 0]


def test_non_native_arrays_are_little_endian_on_the_wire() -> None:
    assert encode_output("x", np.array([1.5], ">f4"))[1] == struct.pack("<f", 1.5)
    strided = np.arange(6, dtype=np.float32).reshape(2, 3).T
    assert encode_output("x", strided)[1] == strided.copy().tobytes()
    assert math.prod(encode_output("x", np.float32(3).reshape(()))[0].shape) == 1
