"""The wire codec against protobuf: same bytes, same messages, same refusals; and no way to make it spend much."""

from __future__ import annotations

import math
import struct
import tracemalloc
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError
from hardening_grpc import codec, wire
from hardening_grpc.wire import Field, Message, WireError, varint
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

F = descriptor_pb2.FieldDescriptorProto
#: Our class and the protocol's name; each has the field numbers and types of the published .proto file.
NAMES: dict[type[Message], str] = {
    codec.Parameter: "InferParameter",
    codec.Contents: "InferTensorContents",
    codec.Tensor: "InferInputTensor",
    codec.RequestedOutput: "InferRequestedOutputTensor",
    codec.InferRequest: "ModelInferRequest",
    codec.InferResponse: "ModelInferResponse",
    codec.ModelRequest: "ModelMetadataRequest",
    codec.Flag: "ServerLiveResponse",
    codec.ServerMetadata: "ServerMetadataResponse",
    codec.TensorMetadata: "TensorMetadata",
    codec.ModelMetadata: "ModelMetadataResponse",
}
#: The protocol, written down from grpc_predict_v2.proto: type, name, number; "*" repeats, "map" is a map from string.
PROTOCOL = {
    "InferParameter": "?bool bool_param 1,?int64 int64_param 2,?string string_param 3,?double double_param 4,"
    "?uint64 uint64_param 5",
    "InferTensorContents": "*bool bool_contents 1,*int32 int_contents 2,*int64 int64_contents 3,"
    "*uint32 uint_contents 4,*uint64 uint64_contents 5,*float fp32_contents 6,*double fp64_contents 7,"
    "*bytes bytes_contents 8",
    "InferInputTensor": "string name 1,string datatype 2,*int64 shape 3,map:InferParameter parameters 4,"
    "InferTensorContents contents 5",
    "InferRequestedOutputTensor": "string name 1,map:InferParameter parameters 2",
    "ModelInferRequest": "string model_name 1,string model_version 2,string id 3,map:InferParameter parameters 4,"
    "*InferInputTensor inputs 5,*InferRequestedOutputTensor outputs 6,*bytes raw_input_contents 7",
    "ModelInferResponse": "string model_name 1,string model_version 2,string id 3,map:InferParameter parameters 4,"
    "*InferInputTensor outputs 5,*bytes raw_output_contents 6",
    "ModelMetadataRequest": "string name 1,string version 2",
    "ServerLiveResponse": "bool value 1",
    "ServerMetadataResponse": "string name 1,string version 2,*string extensions 3",
    "TensorMetadata": "string name 1,string datatype 2,*int64 shape 3",
    "ModelMetadataResponse": "string name 1,*string versions 2,string platform 3,*TensorMetadata inputs 4,"
    "*TensorMetadata outputs 5",
}
SCALARS = {
    "bool": F.TYPE_BOOL,
    "int32": F.TYPE_INT32,
    "int64": F.TYPE_INT64,
    "uint32": F.TYPE_UINT32,
    "uint64": F.TYPE_UINT64,
    "float": F.TYPE_FLOAT,
    "double": F.TYPE_DOUBLE,
    "string": F.TYPE_STRING,
    "bytes": F.TYPE_BYTES,
}


def _type(field: Any, kind: str) -> None:
    if kind in SCALARS:
        field.type = SCALARS[kind]
    else:
        field.type, field.type_name = F.TYPE_MESSAGE, f".oracle.{kind}"


def _oracle() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name="oracle.proto", package="oracle", syntax="proto3")
    for name, fields in PROTOCOL.items():
        message = file.message_type.add(name=name)
        if "?" in fields:
            message.oneof_decl.add(name="choice")
        for text in fields.split(","):
            kind, attribute, number = text.split()
            # A map is declared as what it is on the wire, repeated entries: marked as a map, upb drops entries with
            # unknown fields, where the specification skips only those fields.
            field = message.field.add(name=attribute, number=int(number), label=F.LABEL_OPTIONAL)
            if kind.startswith("map:"):
                entry = message.nested_type.add(name=attribute.title() + "Entry")
                entry.field.add(name="key", number=1, type=F.TYPE_STRING, label=F.LABEL_OPTIONAL)
                _type(entry.field.add(name="value", number=2, label=F.LABEL_OPTIONAL), kind[4:])
                field.label, field.type = F.LABEL_REPEATED, F.TYPE_MESSAGE
                field.type_name = f".oracle.{name}.{entry.name}"
                continue
            if kind[0] == "*":
                field.label = F.LABEL_REPEATED
            if kind[0] == "?":
                field.oneof_index = 0
            _type(field, kind.lstrip("*?"))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {n: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"oracle.{n}")) for n in PROTOCOL}


ORACLE = _oracle()
TEXT = st.text(st.characters(codec="utf-8"), max_size=6)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "bool": st.booleans(),
    "int32": st.integers(-(2**31), 2**31 - 1),
    "int64": st.integers(-(2**63), 2**63 - 1),
    "uint32": st.integers(0, 2**32 - 1),
    "uint64": st.integers(0, 2**64 - 1),
    "float": st.floats(width=32, allow_nan=False),
    "double": st.floats(allow_nan=False),
    "string": TEXT,
    "bytes": st.binary(max_size=6),
}


def value_of(field: Field) -> st.SearchStrategy[Any]:
    return messages(field.message) if field.message else VALUES[field.kind]


@st.composite
def messages(draw: st.DrawFn, kind: type[Message]) -> Message:
    values: dict[str, Any] = {}
    chosen = draw(st.sampled_from([None, *(f.name for f in kind.FIELDS.values() if f.oneof)]))
    for field in kind.FIELDS.values():
        if field.oneof:
            if field.name == chosen:
                values[field.name] = draw(value_of(field))
        elif field.mapping:
            values[field.name] = draw(st.dictionaries(TEXT, value_of(field), max_size=2))
        elif field.repeated:
            values[field.name] = draw(st.lists(value_of(field), max_size=3))
        elif draw(st.booleans()):
            values[field.name] = draw(value_of(field))
    return kind(**values)


def plain(message: Message) -> dict[str, Any]:
    """Our message as data; what is absent is left out."""
    return {f.name: _data(getattr(message, f.name)) for f in message.FIELDS.values()}


def _data(value: Any) -> Any:
    if isinstance(value, Message):
        return plain(value)
    if isinstance(value, dict):
        return {k: _data(v) for k, v in value.items()}
    if isinstance(value, memoryview):
        return bytes(value)
    if isinstance(value, float):
        return "nan" if math.isnan(value) else (value, math.copysign(1, value))
    if isinstance(value, (str, bytes, bool, int, type(None))):
        return value
    return [_data(v) for v in value]


def plain_oracle(message: Any, kind: type[Message]) -> dict[str, Any]:
    """protobuf's message as the same data."""
    out: dict[str, Any] = {}
    for field in kind.FIELDS.values():
        value = getattr(message, field.name)
        if (field.oneof or (field.kind == "message" and not field.repeated and not field.mapping)) and (
            not message.HasField(field.name)
        ):
            out[field.name] = None
        elif field.mapping:
            out[field.name] = {e.key: plain_oracle(e.value, field.message) if field.message else e.value for e in value}
        elif field.repeated:
            out[field.name] = [plain_oracle(v, field.message) if field.message else _data(v) for v in value]
        else:
            out[field.name] = plain_oracle(value, field.message) if field.message else _data(value)
    return out


def check_equal(ours: Message, theirs: Any) -> None:
    assert plain(ours) == plain_oracle(theirs, type(ours))


KINDS = st.sampled_from(list(NAMES))


@given(KINDS.flatmap(messages))
@settings(max_examples=300)
def test_both_ways(ours: Message) -> None:
    theirs = ORACLE[NAMES[type(ours)]]()
    theirs.ParseFromString(ours.encode())
    check_equal(ours, theirs)
    back = type(ours).decode(theirs.SerializeToString())
    check_equal(back, theirs)
    assert plain(back) == plain(ours)
    assert type(ours).decode(ours.encode()) == back


def agree(kind: type[Message], data: bytes) -> None:
    """Ours takes exactly what protobuf takes, and reads the same in it."""
    theirs = ORACLE[NAMES[kind]]()
    try:
        theirs.ParseFromString(data)
    except DecodeError:
        with pytest.raises(WireError):
            kind.decode(data)
    else:
        check_equal(kind.decode(data), theirs)


@given(KINDS.flatmap(messages), st.data())
@settings(max_examples=300)
def test_cut_and_changed_messages(message: Message, data: st.DataObject) -> None:
    whole = message.encode()
    assume(whole)
    agree(type(message), whole[: data.draw(st.integers(0, len(whole)))])
    changed = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    agree(type(message), bytes(changed))


@given(KINDS, st.lists(st.one_of(KINDS.flatmap(messages).map(lambda m: m.encode()), st.binary(max_size=20))))
@settings(max_examples=300)
@example(codec.InferRequest, [b"\x00\x00"])
@example(codec.Flag, [b"\x88\x80\x80\x80\x00\x01"])
@example(codec.Flag, [b"\x08" + b"\xff" * 9 + b"\x7f"])
@example(codec.Flag, [b"\x08" + b"\xff" * 10 + b"\x01"])
@example(codec.ModelRequest, [b"\x0a\x01\xff"])
def test_other_messages_and_noise_joined(kind: type[Message], parts: list[bytes]) -> None:
    agree(kind, b"".join(parts))


def field(number: int, wire_type: int, payload: bytes) -> bytes:
    return varint(number << 3 | wire_type) + (varint(len(payload)) if wire_type == wire.LENGTH else b"") + payload


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (codec.ModelRequest, field(1, 2, b"first") + field(1, 2, b"last")),
        (
            codec.ModelRequest,
            field(9, 0, b"\x05") + field(1, 2, b"m") + field(10, 5, bytes(4)) + field(11, 1, bytes(8)),
        ),
        (codec.ModelRequest, field(9, 3, b"") + field(3, 2, b"xy") + field(9, 4, b"") + field(2, 2, b"v")),
        (codec.ModelRequest, field(9, 3, b"") * 99 + field(9, 4, b"") * 99),
        (codec.ModelRequest, field(9, 3, b"") * 101 + field(9, 4, b"") * 101),
        (codec.ModelRequest, field(9, 3, b"") + field(8, 4, b"")),
        (codec.ModelRequest, field(9, 4, b"")),
        (codec.ModelRequest, field(1, 0, b"\x05")),
        (codec.Tensor, field(3, 0, b"\x05") + field(3, 2, b"\x06\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01")),
        (codec.Tensor, field(3, 2, b"") + field(3, 5, bytes(4))),
        (codec.Tensor, field(3, 2, b"\x80")),
        (codec.Tensor, field(5, 2, field(2, 0, b"\x01")) + field(5, 2, field(2, 2, b"\x02\x03"))),
        (codec.Contents, field(1, 2, b"\x00\x01\x02\x80\x02") + field(1, 0, b"\x7f")),
        (codec.Contents, field(2, 2, varint(2**35 + 7) + varint(-1)) + field(4, 0, varint(2**40 + 9))),
        (codec.Contents, field(6, 5, struct.pack("<f", 1.5)) + field(6, 2, struct.pack("<2f", -0.0, math.inf))),
        (codec.Contents, field(6, 2, bytes(6))),
        (codec.Contents, field(7, 1, struct.pack("<d", math.nan)) + field(7, 2, b"")),
        (codec.Parameter, field(1, 0, b"\x01") + field(3, 2, b"x")),
        (codec.Parameter, field(2, 0, b"\x00") + field(9, 0, b"\x00")),
        (codec.RequestedOutput, field(2, 2, field(1, 2, b"k") + field(2, 2, field(2, 0, b"\x01"))) * 2),
        (
            codec.RequestedOutput,
            field(2, 2, field(1, 2, b"k") + field(2, 2, field(2, 0, b"\x01")))
            + field(2, 2, field(2, 2, field(3, 2, b"late")) + field(1, 2, b"k")),
        ),
        (codec.RequestedOutput, field(2, 2, b"")),
        (codec.RequestedOutput, field(2, 2, field(2, 2, field(2, 0, b"\x01")) + field(2, 2, field(1, 0, b"\x00")))),
        (codec.RequestedOutput, field(2, 2, field(3, 0, b"\x01") + field(1, 2, b"k") + field(1, 2, b"l"))),
    ],
)
def test_corners_of_the_format(kind: type[Message], data: bytes) -> None:
    agree(kind, data)


def test_negative_zero_is_kept_and_zero_is_not_sent() -> None:
    assert codec.Flag(value=False).encode() == b""
    assert codec.Parameter(double_param=0.0).encode() == b"\x21" + bytes(8)
    back = codec.Parameter.decode(codec.Parameter(double_param=-0.0).encode()).double_param
    assert back is not None
    assert math.copysign(1, back) == -1
    with pytest.raises(TypeError, match="no field 'vaule'"):
        codec.Flag(vaule=True)


@given(st.integers(1, 5), st.data())
@settings(max_examples=100)
def test_packed_numbers_of_any_length(number: int, data: st.DataObject) -> None:
    values = data.draw(st.lists(st.integers(0, 2**64 - 1), max_size=40))
    tail = data.draw(st.sampled_from([b"", b"\x80", b"\xff" * 10 + b"\x01", b"\xff" * 9 + b"\x7f"]))
    agree(codec.Contents, field(number, 2, b"".join(map(varint, values)) + tail))


def test_packed_numbers_longer_than_a_block() -> None:
    numbers = [(7 * i) ** 3 % 2**63 - 2**20 for i in range(40_000)]
    assert len(codec.Tensor(shape=numbers).encode()) > 2 * wire.BLOCK
    agree(codec.Tensor, codec.Tensor(shape=numbers).encode())
    agree(codec.Contents, field(3, 2, b"\x80" * (wire.BLOCK + 1) + b"\x01"))


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (codec.InferRequest, field(1, 2, b"")[:1] + varint(2**62)),
        (codec.InferRequest, field(7, 2, b"") * (1 << 20)),
        (codec.InferRequest, field(5, 2, b"") * (1 << 20)),
        (codec.InferRequest, field(5, 2, field(4, 2, b"") * (1 << 20))),
        (codec.InferRequest, field(99, 0, b"\x00") * (1 << 20)),
        (codec.InferRequest, field(99, 3, b"") * (1 << 20)),
        (codec.Contents, field(1, 0, b"\x00") * (1 << 20)),
        (codec.InferRequest, field(5, 2, field(3, 2, b"\x80" * (1 << 21)))),
    ],
)
def test_hostile_messages_cost_little(kind: type[Message], data: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(WireError):
            kind.decode(data)
        assert tracemalloc.get_traced_memory()[1] < 1e8
    finally:
        tracemalloc.stop()


def test_byte_strings_are_views() -> None:
    data = codec.InferRequest(raw_input_contents=[bytes(1000)]).encode()
    view = codec.InferRequest.decode(data).raw_input_contents[0]
    assert isinstance(view, memoryview)
    assert view.obj is data
