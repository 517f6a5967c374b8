"""One hardened model behind the methods of the Open Inference Protocol and of gRPC health checking.

Bytes in, bytes out, and no gRPC: `Service` is what a transport calls. A stranger learns a status code and a fixed
sentence (`Refusal`); what happened goes to the log ``hardening.grpc``.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from hardening_onnx import HardenedSession

import hardening
from hardening.errors import Denied, HardeningError, InputError
from hardening.types import Identity
from hardening_grpc import codec
from hardening_grpc.auth import ApiKeys, Unauthenticated
from hardening_grpc.codec import InferRequest, InferResponse, Parameter
from hardening_grpc.identity import Callers
from hardening_grpc.tensors import declared, decode_inputs, encode_output
from hardening_grpc.wire import WireError

log = logging.getLogger("hardening.grpc")
INFERENCE = "inference.GRPCInferenceService"
HEALTH = "grpc.health.v1.Health"
#: The one version that is served.
VERSION = "1"
#: Every status that is ever given, and the one sentence that goes with it.
SENTENCES = {
    "INVALID_ARGUMENT": "The request is malformed or asks for what is not offered.",
    "NOT_FOUND": "There is no such model, version or service here.",
    "RESOURCE_EXHAUSTED": Denied.SENTENCE,
    "PERMISSION_DENIED": Denied.SENTENCE,
    "UNAUTHENTICATED": "The request needs one valid API key.",
    "DEADLINE_EXCEEDED": "The deadline has passed.",
    "INTERNAL": "The request failed.",
}
_DENIALS = {"exhausted": "RESOURCE_EXHAUSTED", "forbidden": "PERMISSION_DENIED"}
_LONGEST_REASON = 300


class Refusal(Exception):
    """What a stranger is told: a status `code` and its sentence. `reason` is for the log."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(SENTENCES[code])
        self.code = code
        self.reason = reason


#: Parameters of a request that change nothing here, and when: no sequences are kept, and neither priority nor a queue's
#: timeout exists. Any other would be a wish that is not fulfilled, so it is refused.
_HARMLESS: Mapping[str, Callable[[Any], bool]] = {
    "sequence_id": lambda value: value in (0, ""),
    "sequence_start": lambda value: value is False,
    "sequence_end": lambda value: value is False,
    "priority": lambda value: type(value) is int,
    "timeout": lambda value: type(value) is int,
    "triton_enable_empty_final_response": lambda value: type(value) is bool,
}
#: The same for inputs: hints that other servers' clients add, which the declared datatype overrides.
_HARMLESS_INPUT: Mapping[str, Callable[[Any], bool]] = {
    "binary_data_size": lambda value: type(value) is int,
    "content_type": lambda value: type(value) is str,
}


def _check_parameters(
    parameters: Mapping[str, Parameter], harmless: Mapping[str, Callable[[Any], bool]], where: str
) -> None:
    for name, parameter in parameters.items():
        if name not in harmless or not harmless[name](parameter.value):
            raise InputError(f"the parameter {name!r} of {where} is not offered")


def refusal(problem: BaseException) -> Refusal:
    """What a stranger is told of `problem`. Messages of foreign errors may quote scores: they are kept out of it."""
    if isinstance(problem, Refusal):
        return problem
    if isinstance(problem, Denied):
        return Refusal(_DENIALS.get(problem.code, "PERMISSION_DENIED"), problem.reason)
    if isinstance(problem, Unauthenticated):
        return Refusal("UNAUTHENTICATED", str(problem))
    if isinstance(problem, InputError | WireError):
        return Refusal("INVALID_ARGUMENT", str(problem))
    if isinstance(problem, HardeningError):
        return Refusal("INTERNAL", str(problem))
    frames = traceback.extract_tb(problem.__traceback__)
    return Refusal("INTERNAL", f"{type(problem).__name__} at {frames[-1].filename}:{frames[-1].lineno}")


class Service:
    """Answers requests about one model.

    Args:
        name: what clients call the model.
        session: the hardened model.
        keys: who may ask, or None: everybody may, as the anonymous account.

    Raises ModelError if the protocol cannot carry the model's inputs or outputs.
    """

    def __init__(self, name: str, session: HardenedSession, keys: ApiKeys | None = None) -> None:
        self.name = name
        self.serving = True
        self._session = session
        self._callers = Callers(session.guard.policy, keys)
        self._inputs = {i.name: declared(i, "input") for i in session.get_inputs()}
        self._outputs = {o.name: declared(o, "output") for o in session.get_outputs()}
        #: By full method name; a probe needs no key.
        self._probes: dict[str, Callable[[Callable[[], bytes]], bytes]] = {
            f"/{INFERENCE}/ServerLive": lambda _: codec.Flag(value=True).encode(),
            f"/{INFERENCE}/ServerReady": lambda _: codec.Flag(value=self.serving).encode(),
            f"/{HEALTH}/Check": self._health,
        }
        self._asked: dict[str, Callable[[bytes, Identity], bytes]] = {
            f"/{INFERENCE}/ModelReady": self._model_ready,
            f"/{INFERENCE}/ServerMetadata": self._server_metadata,
            f"/{INFERENCE}/ModelMetadata": self._model_metadata,
            f"/{INFERENCE}/ModelInfer": self._infer,
        }
        self.methods = frozenset((*self._probes, *self._asked))

    def answer(
        self, method: str, read: Callable[[], bytes], metadata: Iterable[tuple[str, str | bytes]], peer: str = ""
    ) -> bytes:
        """The encoded response to one request of `peer`, which `read` gives. Raises Refusal, and nothing else.

        Nothing is read of callers without a key, nor for a method whose message is empty.
        """
        client = "nobody"
        try:
            if method in self._probes:
                return self._probes[method](read)
            caller = self._callers.identify(metadata, peer)
            client = caller.credential
            return self._asked[method](read(), caller)
        except BaseException as problem:
            told = refusal(problem)
        level = logging.ERROR if told.code == "INTERNAL" else logging.WARNING
        log.log(level, "%s for %s: %s: %s", method, client, told.code, told.reason[:_LONGEST_REASON])
        raise told  # outside the except clause: a chained error would keep frames that hold raw scores

    def _check_model(self, name: str, version: str) -> None:
        if name != self.name or version not in ("", VERSION):
            raise Refusal("NOT_FOUND", f"asked for model {name!r}, version {version!r}")

    def _health(self, read: Callable[[], bytes]) -> bytes:
        service = codec.HealthRequest.decode(read()).service
        if service not in ("", INFERENCE):
            raise Refusal("NOT_FOUND", f"asked for service {service!r}")
        return codec.HealthResponse(status=codec.SERVING if self.serving else codec.NOT_SERVING).encode()

    def _model_ready(self, data: bytes, _: Identity) -> bytes:
        request = codec.ModelRequest.decode(data)
        self._check_model(request.name, request.version)
        return codec.Flag(value=self.serving).encode()

    def _server_metadata(self, data: bytes, _: Identity) -> bytes:
        return codec.ServerMetadata(name="hardening", version=hardening.__version__).encode()

    def _model_metadata(self, data: bytes, _: Identity) -> bytes:
        request = codec.ModelRequest.decode(data)
        self._check_model(request.name, request.version)
        tensors = [
            [codec.TensorMetadata(name=t.name, datatype=t.datatype, shape=t.shape) for t in side.values()]
            for side in (self._inputs, self._outputs)
        ]
        return codec.ModelMetadata(
            name=self.name, versions=[VERSION], platform="onnxruntime_onnx", inputs=tensors[0], outputs=tensors[1]
        ).encode()

    def _infer(self, data: bytes, client: Identity) -> bytes:
        request = InferRequest.decode(data)
        self._check_model(request.model_name, request.model_version)
        _check_parameters(request.parameters, _HARMLESS, "the request")
        for tensor in request.inputs:
            _check_parameters(tensor.parameters, _HARMLESS_INPUT, f"input {tensor.name!r}")
        names = self._wanted(request)
        feed = decode_inputs(request, self._inputs)
        values = self._session.run(names, feed, client=client)
        outputs = [encode_output(name, value) for name, value in zip(names, values, strict=True)]
        return InferResponse(
            model_name=self.name,
            model_version=VERSION,
            id=request.id,
            outputs=[tensor for tensor, _ in outputs],
            raw_output_contents=[raw for _, raw in outputs],
        ).encode()

    def _wanted(self, request: InferRequest) -> list[str]:
        """Names of the outputs that are asked for; none named means all that the policy releases."""
        names = [output.name for output in request.outputs]
        for output in request.outputs:
            if output.name not in self._outputs or names.count(output.name) > 1:
                raise InputError(f"output {output.name!r} is not released by the policy, or is asked for twice")
            _check_parameters(output.parameters, {}, f"output {output.name!r}")
        return names or list(self._outputs)
