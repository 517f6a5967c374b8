"""Messages of the Open Inference Protocol (github.com/kserve/open-inference-protocol, grpc_predict_v2.proto) and of
the gRPC health checking protocol (grpc.health.v1), for both ends of the wire.

Attributes have the names of the protocol's fields. Empty messages have no class: they are ``b""``.
"""

from __future__ import annotations

from array import array
from typing import Any, ClassVar

from hardening_grpc.wire import Field, Message


class Parameter(Message):
    """InferParameter: one of five kinds, of which at most one is not None."""

    FIELDS: ClassVar = {
        1: Field("bool_param", "bool", oneof=True),
        2: Field("int64_param", "int64", oneof=True),
        3: Field("string_param", "string", oneof=True),
        4: Field("double_param", "double", oneof=True),
        5: Field("uint64_param", "uint64", oneof=True),
    }
    bool_param: bool | None
    int64_param: int | None
    string_param: str | None
    double_param: float | None
    uint64_param: int | None

    @property
    def value(self) -> bool | int | str | float | None:
        """The one value, or None."""
        return next((v for v in vars(self).values() if v is not None), None)


class Contents(Message):
    """InferTensorContents: a flattened tensor, in the field of its datatype."""

    FIELDS: ClassVar = {
        1: Field("bool_contents", "bool", repeated=True),
        2: Field("int_contents", "int32", repeated=True),
        3: Field("int64_contents", "int64", repeated=True),
        4: Field("uint_contents", "uint32", repeated=True),
        5: Field("uint64_contents", "uint64", repeated=True),
        6: Field("fp32_contents", "float", repeated=True),
        7: Field("fp64_contents", "double", repeated=True),
        8: Field("bytes_contents", "bytes", repeated=True),
    }
    bool_contents: array[int]
    int_contents: array[int]
    int64_contents: array[int]
    uint_contents: array[int]
    uint64_contents: array[int]
    fp32_contents: array[float]
    fp64_contents: array[float]
    bytes_contents: list[Any]


_PARAMETERS = Field("parameters", "message", Parameter, mapping=True)


class Tensor(Message):
    """InferInputTensor and InferOutputTensor."""

    FIELDS: ClassVar = {
        1: Field("name", "string"),
        2: Field("datatype", "string"),
        3: Field("shape", "int64", repeated=True),
        4: _PARAMETERS,
        5: Field("contents", "message", Contents),
    }
    name: str
    datatype: str
    shape: array[int]
    parameters: dict[str, Parameter]
    contents: Contents | None


class RequestedOutput(Message):
    """InferRequestedOutputTensor."""

    FIELDS: ClassVar = {1: Field("name", "string"), 2: _PARAMETERS}
    name: str
    parameters: dict[str, Parameter]


class InferRequest(Message):
    """ModelInferRequest."""

    FIELDS: ClassVar = {
        1: Field("model_name", "string"),
        2: Field("model_version", "string"),
        3: Field("id", "string"),
        4: _PARAMETERS,
        5: Field("inputs", "message", Tensor, repeated=True),
        6: Field("outputs", "message", RequestedOutput, repeated=True),
        7: Field("raw_input_contents", "bytes", repeated=True),
    }
    model_name: str
    model_version: str
    id: str
    parameters: dict[str, Parameter]
    inputs: list[Tensor]
    outputs: list[RequestedOutput]
    raw_input_contents: list[Any]


class InferResponse(Message):
    """ModelInferResponse."""

    FIELDS: ClassVar = {
        1: Field("model_name", "string"),
        2: Field("model_version", "string"),
        3: Field("id", "string"),
        4: _PARAMETERS,
        5: Field("outputs", "message", Tensor, repeated=True),
        6: Field("raw_output_contents", "bytes", repeated=True),
    }
    model_name: str
    model_version: str
    id: str
    parameters: dict[str, Parameter]
    outputs: list[Tensor]
    raw_output_contents: list[Any]


class ModelRequest(Message):
    """ModelReadyRequest and ModelMetadataRequest."""

    FIELDS: ClassVar = {1: Field("name", "string"), 2: Field("version", "string")}
    name: str
    version: str


class Flag(Message):
    """ServerLiveResponse, ServerReadyResponse and ModelReadyResponse."""

    FIELDS: ClassVar = {1: Field("value", "bool")}
    value: bool


class ServerMetadata(Message):
    """ServerMetadataResponse."""

    FIELDS: ClassVar = {
        1: Field("name", "string"),
        2: Field("version", "string"),
        3: Field("extensions", "string", repeated=True),
    }
    name: str
    version: str
    extensions: list[str]


class TensorMetadata(Message):
    """ModelMetadataResponse.TensorMetadata; -1 in a shape is a size that varies."""

    FIELDS: ClassVar = {
        1: Field("name", "string"),
        2: Field("datatype", "string"),
        3: Field("shape", "int64", repeated=True),
    }
    name: str
    datatype: str
    shape: array[int]


class ModelMetadata(Message):
    """ModelMetadataResponse; field 6 has a different type in every other server, so it is never sent."""

    FIELDS: ClassVar = {
        1: Field("name", "string"),
        2: Field("versions", "string", repeated=True),
        3: Field("platform", "string"),
        4: Field("inputs", "message", TensorMetadata, repeated=True),
        5: Field("outputs", "message", TensorMetadata, repeated=True),
    }
    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class HealthRequest(Message):
    """grpc.health.v1.HealthCheckRequest."""

    FIELDS: ClassVar = {1: Field("service", "string")}
    service: str


class HealthResponse(Message):
    """grpc.health.v1.HealthCheckResponse; see `SERVING` and `NOT_SERVING`."""

    FIELDS: ClassVar = {1: Field("status", "int32")}
    status: int


SERVING, NOT_SERVING = 1, 2
