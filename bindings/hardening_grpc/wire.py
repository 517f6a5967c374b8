"""The protocol buffers wire format (protobuf.dev/programming-guides/encoding) for messages described as tables.

Everything read here comes from strangers. Lengths are compared with what is there before anything is sliced, byte
strings are views of the message and not copies, numbers are kept in packed arrays, and a message may have no more than
`MAX_FIELDS` fields, so that time and memory stay in proportion to the size of the message.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

import numpy as np

#: Most fields in one message and all that it holds; packed numbers count as one.
MAX_FIELDS = 1 << 16
#: Deepest nesting of (unknown) groups, as in the reference implementation.
MAX_DEPTH = 100
#: Bytes of packed numbers that are worked on at a time; bounds the temporary memory.
BLOCK = 1 << 16

VARINT, FIXED64, LENGTH, START, END, FIXED32 = range(6)

Kind = Literal["bool", "int32", "int64", "uint32", "uint64", "float", "double", "string", "bytes", "message"]
_WIRE = {"float": FIXED32, "double": FIXED64, "string": LENGTH, "bytes": LENGTH, "message": LENGTH}
_CODE = {"bool": "B", "int32": "i", "int64": "q", "uint32": "I", "uint64": "Q", "float": "f", "double": "d"}
_ZERO: dict[str, Any] = {"bool": False, "float": 0.0, "double": 0.0, "string": "", "bytes": b""}
_FIXED = {"float": struct.Struct("<f"), "double": struct.Struct("<d")}

#: Up to so many bytes of packed numbers, a shape say, are sooner read one by one than by numpy.
_FEW = 32
_SMALL = [bytes((value,)) for value in range(0x80)]

M = TypeVar("M", bound="Message")


class WireError(ValueError):
    """The bytes are not a message of this kind, or it has too many fields."""


class Field(NamedTuple):
    """One field of a message.

    Attributes:
        name: attribute that holds it.
        kind: type of the value, or of a map's values.
        message: class of the value where `kind` is ``message``.
        repeated: a list; numbers are an `array.array`.
        mapping: a dict from str.
        oneof: present or None, and its arrival clears the other fields of the kind.
    """

    name: str
    kind: Kind
    message: type[Message] | None = None
    repeated: bool = False
    mapping: bool = False
    oneof: bool = False

    def empty(self) -> Any:
        """The value of a field that did not arrive."""
        if self.mapping:
            return {}
        if self.repeated:
            return array(_CODE[self.kind]) if self.kind in _CODE else []
        if self.oneof or self.kind == "message":
            return None
        return _ZERO.get(self.kind, 0)


class Message:
    """Base of all messages: attributes as `FIELDS` names them, by field number; compares by value."""

    FIELDS: ClassVar[Mapping[int, Field]] = {}

    def __init__(self, **values: Any) -> None:
        for field in self.FIELDS.values():
            value = values.pop(field.name) if field.name in values else field.empty()
            if field.repeated and field.kind in _CODE and not isinstance(value, array):
                value = array(_CODE[field.kind], value)
            setattr(self, field.name, value)
        if values:
            raise TypeError(f"{type(self).__name__} has no field {next(iter(values))!r}")

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in vars(self).items())})"

    def encode(self) -> bytes:
        """The message as bytes; proto3's defaults are left out, repeated numbers are packed."""
        out: list[bytes | memoryview] = []
        for number, field in self.FIELDS.items():
            value = getattr(self, field.name)
            if value is not None:
                _put_field(out, number, field, value)
        return b"".join(out)

    @classmethod
    def decode(cls: type[M], data: bytes) -> M:
        """The message in `data`; byte strings in it are views of `data`. Raises WireError."""
        message = cls()
        _Reader(memoryview(data)).message(message, 0, len(data))
        return message


def varint(value: int) -> bytes:
    """`value` modulo 2**64 in base 128, least significant group first."""
    if 0 <= value < 0x80:
        return _SMALL[value]
    value &= 0xFFFF_FFFF_FFFF_FFFF
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _put_field(out: list[bytes | memoryview], number: int, field: Field, value: Any) -> None:
    if field.mapping:
        entry = Field("value", field.kind, field.message)
        for key, item in value.items():
            pair: list[bytes | memoryview] = []
            _put(pair, 1, Field("key", "string"), key)
            _put(pair, 2, entry, item)
            _put_bytes(out, number, pair)
    elif field.repeated and field.kind in _CODE:
        if len(value):
            packed = [_FIXED[field.kind].pack(v) if field.kind in _FIXED else varint(int(v)) for v in value]
            _put_bytes(out, number, packed)
    elif field.repeated:
        for item in value:
            _put(out, number, field, item)
    elif field.oneof or field.kind == "message" or not _is_default(field, value):
        _put(out, number, field, value)


def _is_default(field: Field, value: Any) -> bool:
    # The sign bit of a zero is information: proto3 leaves out +0.0 only.
    if field.kind in _FIXED:
        return not any(_FIXED[field.kind].pack(value))
    return not value


def _put_bytes(out: list[bytes | memoryview], number: int, parts: list[Any]) -> None:
    out += (varint(number << 3 | LENGTH), varint(sum(map(len, parts))), *parts)


def _put(out: list[bytes | memoryview], number: int, field: Field, value: Any) -> None:
    if field.kind == "message":
        _put_bytes(out, number, [value.encode()])
    elif field.kind in ("string", "bytes"):
        _put_bytes(out, number, [value.encode() if isinstance(value, str) else memoryview(value).cast("B")])
    elif field.kind in _FIXED:
        out += (varint(number << 3 | _WIRE[field.kind]), _FIXED[field.kind].pack(value))
    else:
        out += (varint(number << 3 | VARINT), varint(int(value)))


def _narrow(kind: str, value: int) -> Any:
    """An unsigned 64-bit varint as a value of `kind`: truncated to its width, as the format demands."""
    if kind == "bool":
        return value != 0
    bits = 32 if kind in ("int32", "uint32") else 64
    value &= (1 << bits) - 1
    return value - (1 << bits) if kind[0] == "i" and value >> (bits - 1) else value


def unpack_varints(kind: str, data: memoryview) -> Iterator[bytes]:
    """Packed varints as the bytes of an `array.array` of `kind`, block by block. Raises WireError."""
    at = 0
    while at < len(data):
        raw = np.frombuffer(data[at : at + BLOCK], np.uint8)
        ends = np.flatnonzero(raw < 0x80)
        if not ends.size or (at + len(raw) == len(data) and ends[-1] != raw.size - 1):
            raise WireError("a number that does not end")
        starts = np.concatenate(([0], ends[:-1] + 1))
        lengths = ends - starts + 1
        if lengths.max() > 10:
            raise WireError("a number that does not end")
        values = np.zeros(len(ends), np.uint64)
        for place in range(int(lengths.max())):
            longer = lengths > place
            group = (raw[starts[longer] + place] & np.uint8(0x7F)).astype(np.uint64)
            values[longer] |= group << np.uint64(7 * place)
        yield (values != 0).tobytes() if kind == "bool" else values.astype(_CODE[kind]).tobytes()
        at += int(ends[-1]) + 1


class _Reader:
    """Reads one message; counts the fields of all that it holds."""

    def __init__(self, data: memoryview) -> None:
        self.data = data
        self.fields = 0

    def varint(self, at: int, end: int, most: int = 10) -> tuple[int, int]:
        value = shift = 0
        for at in range(at, min(end, at + most)):  # noqa: B020
            byte = self.data[at]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value & 0xFFFF_FFFF_FFFF_FFFF, at + 1
            shift += 7
        raise WireError("a number that does not end")

    def tag(self, at: int, end: int) -> tuple[int, int, int]:
        value, at = self.varint(at, end, 5)
        self.fields += 1
        if self.fields > MAX_FIELDS:
            raise WireError(f"more than {MAX_FIELDS} fields")
        if value >> 32 or not value >> 3 or value & 7 > FIXED32:
            raise WireError("not a tag of a field")
        return value >> 3, value & 7, at

    def payload(self, wire: int, at: int, end: int) -> tuple[int, int]:
        """Where the payload of a field starts and stops."""
        if wire == VARINT:
            return at, self.varint(at, end)[1]
        if wire == LENGTH:
            size, at = self.varint(at, end)
        else:
            size = 4 if wire == FIXED32 else 8
        if size > end - at:
            raise WireError("a field that is longer than its message")
        return at, at + size

    def skip_group(self, number: int, at: int, end: int) -> int:
        """Past the end of an unknown group."""
        open_groups = [number]
        while open_groups:
            number, wire, at = self.tag(at, end)
            if wire == START:
                open_groups.append(number)
                if len(open_groups) > MAX_DEPTH:
                    raise WireError("groups are nested too deep")
            elif wire == END:
                if open_groups.pop() != number:
                    raise WireError("a group that ends as another")
            else:
                at = self.payload(wire, at, end)[1]
        return at

    def parts(self, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """Number, wire type, start and stop of every field; groups, which proto3 does not have, are skipped."""
        while at < end:
            number, wire, at = self.tag(at, end)
            if wire == START:
                at = self.skip_group(number, at, end)
            elif wire == END:
                raise WireError("the end of a group that did not start")
            else:
                start, at = self.payload(wire, at, end)
                yield number, wire, start, at

    def message(self, message: Message, at: int, end: int) -> None:
        """Read into `message`, merging with what it holds."""
        for number, wire, start, stop in self.parts(at, end):
            field = message.FIELDS.get(number)
            if field is None:
                continue
            expected = _WIRE.get(field.kind, VARINT)
            if field.mapping:
                if wire == LENGTH:
                    key, value = self.entry(field, start, stop)
                    getattr(message, field.name)[key] = value
            elif field.repeated and field.kind in _CODE and wire == LENGTH:
                self.packed(field.kind, getattr(message, field.name), start, stop)
            elif wire == expected:
                self.assign(message, field, start, stop)

    def assign(self, message: Message, field: Field, start: int, stop: int) -> None:
        if field.repeated:
            getattr(message, field.name).append(self.value(field, None, start, stop))
            return
        value = self.value(field, getattr(message, field.name), start, stop)
        if field.oneof:
            for other in message.FIELDS.values():
                if other.oneof:
                    setattr(message, other.name, None)
        setattr(message, field.name, value)

    def entry(self, field: Field, at: int, end: int) -> tuple[str, Any]:
        """One pair of a map; what is missing has its default."""
        key: Any = ""
        value: Any = field.message() if field.message else Field("value", field.kind).empty()
        for number, wire, start, stop in self.parts(at, end):
            if number == 1 and wire == LENGTH:
                key = self.value(Field("key", "string"), None, start, stop)
            elif number == 2 and wire == _WIRE.get(field.kind, VARINT):
                value = self.value(field, value, start, stop)
        return key, value

    def value(self, field: Field, current: Any, start: int, stop: int) -> Any:
        kind = field.kind
        if kind == "message":
            assert field.message is not None
            message = current if current is not None else field.message()
            self.message(message, start, stop)
            return message
        if kind == "bytes":
            return self.data[start:stop]
        if kind == "string":
            try:
                return str(self.data[start:stop], "utf-8")
            except UnicodeDecodeError:
                raise WireError("a string that is not UTF-8") from None
        if kind in _FIXED:
            return _FIXED[kind].unpack_from(self.data, start)[0]
        return _narrow(kind, self.varint(start, stop)[0])

    def packed(self, kind: str, into: array[Any], start: int, stop: int) -> None:
        data = self.data[start:stop]
        if kind in _FIXED:
            if len(data) % _FIXED[kind].size:
                raise WireError("packed numbers end in the middle of one")
            little = np.dtype(_CODE[kind]).newbyteorder("<")
            into.frombytes(np.frombuffer(data, little).astype(_CODE[kind]).tobytes())
        elif len(data) > _FEW:
            for block in unpack_varints(kind, data):
                into.frombytes(block)
        else:
            while start < stop:
                value, start = self.varint(start, stop)
                into.append(_narrow(kind, value))
