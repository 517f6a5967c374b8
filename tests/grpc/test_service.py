"""The service without a transport: what is asked for and not offered, what strangers are told, what the log keeps."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import hardening_onnx
import numpy as np
import pytest
from hardening_grpc import codec, service
from hardening_grpc.codec import Contents, InferResponse, Parameter, RequestedOutput
from hardening_grpc.service import HEALTH, INFERENCE, SENTENCES, Refusal, Service
from hypothesis import given, settings
from hypothesis import strategies as st

import hardening
from hardening.errors import Denied, ReleaseError
from tests.grpc.models import ECHO_POLICY, MLP_POLICY, TYPES, ZIPMAP_POLICY, arrays, echo, mlp, request, write, zipmap

Served = tuple[Service, hardening_onnx.HardenedSession]
NUMPY = {"BOOL": "?", "FP16": "f2", "FP32": "f4", "FP64": "f8"}
X = np.random.default_rng(1).normal(size=(6, 8)).astype("f4")


def make(folder: Path, model: bytes, policy: str) -> Served:
    model_path, policy_path = write(folder, model, policy)
    session = hardening_onnx.wrap(model_path, hardening.load_policy(policy_path))
    return Service("model", session), session


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    return make(tmp_path_factory.mktemp("mlp"), mlp(), MLP_POLICY)


def ask(subject: Service, method: str, data: bytes) -> bytes:
    return subject.answer(method, lambda: data, [])


def infer(subject: Service, message: Any) -> InferResponse:
    return InferResponse.decode(ask(subject, f"/{INFERENCE}/ModelInfer", message.encode()))


def refused(subject: Service, data: bytes, method: str = f"/{INFERENCE}/ModelInfer") -> str:
    """The code; the sentence is always the code's own, and nothing is chained to it."""
    with pytest.raises(Refusal) as caught:
        ask(subject, method, data)
    assert str(caught.value) == SENTENCES[caught.value.code]
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    return caught.value.code


def test_the_answer_is_the_sessions(served: Served) -> None:
    subject, session = served
    want = dict(zip(["p", "label"], session.run(None, {"x": X}), strict=True))
    response = infer(subject, request({"x": X}, id="query-1"))
    assert (response.id, response.model_name, response.model_version) == ("query-1", "model", "1")
    assert [t.name for t in response.outputs] == ["p", "label"]
    assert all(t.contents is None for t in response.outputs)
    for name, value in arrays(response).items():
        assert value.dtype == want[name].dtype
        assert np.array_equal(value, want[name])
    assert list(arrays(infer(subject, request({"x": X}, ["label"], model_version="1")))) == ["label"]
    typed = request({"x": X}, ["p"], raw_input_contents=[])
    typed.inputs[0].contents = Contents(fp32_contents=X.ravel().tolist())
    assert np.array_equal(arrays(infer(subject, typed))["p"], want["p"])


def test_metadata_and_readiness(served: Served) -> None:
    subject = served[0]
    named = codec.ModelRequest(name="model").encode()
    meta = codec.ModelMetadata.decode(ask(subject, f"/{INFERENCE}/ModelMetadata", named))
    assert (meta.name, meta.versions) == ("model", ["1"])
    assert [(t.name, t.datatype, list(t.shape)) for t in meta.inputs] == [("x", "FP32", [-1, 8])]
    # Neither the logits, which the policy does not release, nor the overridable initializer can be seen.
    assert [(t.name, t.datatype, list(t.shape)) for t in meta.outputs] == [
        ("p", "FP32", [-1, 4]),
        ("label", "INT64", [-1]),
    ]
    server = codec.ServerMetadata.decode(ask(subject, f"/{INFERENCE}/ServerMetadata", b""))
    assert (server.name, server.version, server.extensions) == ("hardening", hardening.__version__, [])
    states = {}
    for serving in (False, True):
        subject.serving = serving
        states[serving] = (
            codec.Flag.decode(ask(subject, f"/{INFERENCE}/ServerLive", b"")).value,
            codec.Flag.decode(ask(subject, f"/{INFERENCE}/ServerReady", b"")).value,
            codec.Flag.decode(ask(subject, f"/{INFERENCE}/ModelReady", named)).value,
            codec.HealthResponse.decode(ask(subject, f"/{HEALTH}/Check", b"")).status,
        )
    assert states == {True: (True, True, True, codec.SERVING), False: (True, False, False, codec.NOT_SERVING)}


@pytest.mark.parametrize("datatype", sorted(TYPES))
def test_every_datatype_through_a_model(datatype: str, tmp_path: Path) -> None:
    subject, _ = make(tmp_path, echo(datatype), ECHO_POLICY)
    values = np.array([["", "naïve\0"], ["b" * 300, "c"]], object)
    if datatype != "BYTES":
        values = np.array([[0, 1], [1, 1]]).astype(
            {"BOOL": "?", "FP16": "f2", "FP32": "f4", "FP64": "f8"}.get(datatype, datatype.lower())
        )
    sent = request({"x": values})
    response = infer(subject, sent)
    assert response.outputs[0].datatype == datatype
    assert [bytes(r) for r in response.raw_output_contents] == sent.raw_input_contents


@pytest.mark.parametrize("strings", [True, False])
def test_zipmaps(strings: bool, tmp_path: Path) -> None:
    subject, session = make(tmp_path, zipmap(strings), ZIPMAP_POLICY)
    x = np.random.default_rng(2).normal(size=(4, 3)).astype("f4")
    maps, labels = session.run(None, {"x": x})
    response = infer(subject, request({"x": x}))
    classes = json.loads(response.outputs[0].parameters["classes"].value)
    assert classes == (["cat", "dog", "eel"] if strings else [10, 20, 30])
    scores = np.frombuffer(response.raw_output_contents[0], "<f4").reshape(4, 3)
    assert scores.tolist() == [[np.float32(m[c]) for c in classes] for m in maps]
    assert [classes[i] for i in scores.argmax(1)] == list(labels)
    assert response.outputs[1].datatype == ("BYTES" if strings else "INT64")
    meta = codec.ModelMetadata.decode(
        ask(subject, f"/{INFERENCE}/ModelMetadata", codec.ModelRequest(name="model").encode())
    )
    assert next((t.name, t.datatype, list(t.shape)) for t in meta.outputs) == ("probabilities", "FP32", [-1, -1])


TRUE, TEXT = Parameter(bool_param=True), Parameter(string_param="region")


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"model_name": "other"}, "NOT_FOUND"),
        ({"model_version": "2"}, "NOT_FOUND"),
        ({"outputs": [RequestedOutput(name="logits")]}, "INVALID_ARGUMENT"),
        ({"outputs": [RequestedOutput(name="p"), RequestedOutput(name="p")]}, "INVALID_ARGUMENT"),
        (
            {"outputs": [RequestedOutput(name="p", parameters={"classification": Parameter(int64_param=3)})]},
            "INVALID_ARGUMENT",
        ),
        ({"outputs": [RequestedOutput(name="p", parameters={"shared_memory_region": TEXT})]}, "INVALID_ARGUMENT"),
        ({"outputs": [RequestedOutput(name="p", parameters={"": Parameter()})]}, "INVALID_ARGUMENT"),
        ({"parameters": {"sequence_id": Parameter(int64_param=7)}}, "INVALID_ARGUMENT"),
        ({"parameters": {"sequence_start": TRUE}}, "INVALID_ARGUMENT"),
        ({"parameters": {"priority": TEXT}}, "INVALID_ARGUMENT"),
        ({"parameters": {"triton_unheard_of": TRUE}}, "INVALID_ARGUMENT"),
        ({"inputs": []}, "INVALID_ARGUMENT"),
    ],
)
def test_what_is_not_offered(change: dict[str, Any], code: str, served: Served) -> None:
    subject, session = served
    before = session.guard.standing("anonymous")
    message = request({"x": X})
    for name, value in change.items():
        setattr(message, name, value)
    assert refused(subject, message.encode()) == code
    assert session.guard.standing("anonymous") == before


def test_parameters_of_inputs(served: Served) -> None:
    for name, parameter, fine in [
        ("shared_memory_region", TEXT, False),
        ("shared_memory_byte_size", Parameter(int64_param=8), False),
        ("content_type", Parameter(string_param="np"), True),
        ("binary_data_size", Parameter(int64_param=1), True),
        ("content_type", TRUE, False),
    ]:
        message = request({"x": X})
        message.inputs[0].parameters = {name: parameter}
        if fine:
            assert len(infer(served[0], message).outputs) == 2
        else:
            assert refused(served[0], message.encode()) == "INVALID_ARGUMENT"


def test_harmless_parameters_change_nothing(served: Served) -> None:
    harmless = {
        "sequence_id": Parameter(int64_param=0),
        "sequence_start": Parameter(bool_param=False),
        "sequence_end": Parameter(bool_param=False),
        "priority": Parameter(uint64_param=1),
        "timeout": Parameter(int64_param=1000),
        "triton_enable_empty_final_response": TRUE,
    }
    assert infer(served[0], request({"x": X}, parameters=harmless)) == infer(served[0], request({"x": X}))


@pytest.mark.parametrize("data", [b"\xff", b"\x0a\x05mode", b"\x0a\x01\xff", b"\x0b\x0a\x05model"])
@pytest.mark.parametrize("method", ["ModelInfer", "ModelReady", "ModelMetadata"])
def test_garbled_messages(method: str, data: bytes, served: Served) -> None:
    assert refused(served[0], data, f"/{INFERENCE}/{method}") == "INVALID_ARGUMENT"


@pytest.fixture(scope="module")
def integers(tmp_path_factory: pytest.TempPathFactory) -> Service:
    return make(tmp_path_factory.mktemp("echo"), echo("INT64"), ECHO_POLICY)[0]


@given(data=st.data())
@settings(max_examples=300)
def test_changed_requests_are_answered_or_called_malformed(data: st.DataObject, integers: Service) -> None:
    whole = bytearray(request({"x": np.arange(6).reshape(3, 2)}, ["y"], id="q").encode())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    whole = whole[: data.draw(st.integers(0, len(whole)))] if data.draw(st.booleans()) else whole
    try:
        answer = InferResponse.decode(ask(integers, f"/{INFERENCE}/ModelInfer", bytes(whole)))
    except Refusal as problem:
        told = problem.code
    else:
        assert [t.name for t in answer.outputs] == ["y"]
        return
    assert told in ("INVALID_ARGUMENT", "NOT_FOUND")


def test_health_of_other_services(served: Served) -> None:
    subject = served[0]
    assert ask(subject, f"/{HEALTH}/Check", codec.HealthRequest(service=INFERENCE).encode()) == b"\x08\x01"
    assert refused(subject, codec.HealthRequest(service="x").encode(), f"/{HEALTH}/Check") == "NOT_FOUND"
    assert refused(subject, b"\xff", f"/{HEALTH}/Check") == "INVALID_ARGUMENT"


CANARY = "0.734512345"


@pytest.mark.parametrize("step", ["run", "encode_output", "InferResponse", "encode", "decode_inputs"])
@pytest.mark.parametrize("problem", [ValueError, MemoryError, KeyboardInterrupt, ReleaseError])
def test_a_failure_at_any_step_says_nothing(
    step: str,
    problem: type[BaseException],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    subject, session = make(tmp_path, mlp(), MLP_POLICY)

    def fail(*_: Any, **__: Any) -> Any:
        raise ReleaseError("p", 3, "is not a simplex") if problem is ReleaseError else problem(f"score {CANARY}")

    where: Any = {"run": session, "encode": InferResponse}.get(step, service)
    monkeypatch.setattr(where, step, fail)
    with caplog.at_level(logging.DEBUG, "hardening.grpc"):
        assert refused(subject, request({"x": X}).encode()) == "INTERNAL"
    assert CANARY not in caplog.text
    assert ("row 3" if problem is ReleaseError else problem.__name__) in caplog.text


def test_scores_that_cannot_be_hardened(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    assert refused(served[0], request({"x": np.full((2, 8), np.nan, "f4")}).encode()) == "INTERNAL"
    assert "output 'p', row 0" in caplog.text


@pytest.mark.parametrize(("code", "status"), [("exhausted", "RESOURCE_EXHAUSTED"), ("forbidden", "PERMISSION_DENIED")])
def test_denials(
    code: Any,
    status: str,
    served: Served,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    subject, session = served

    def deny(*_: Any, **__: Any) -> Any:
        raise Denied("anonymous", "the budget of 3 bits is spent", code)

    monkeypatch.setattr(session, "run", deny)
    assert refused(subject, request({"x": X}).encode()) == status
    assert SENTENCES[status] == Denied.SENTENCE
    assert "the budget of 3 bits is spent" in caplog.text


def test_the_log_is_bounded_and_on_one_line(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    refused(served[0], request({"x": X}, model_name="a\nERROR forged" + "b" * 10_000).encode())
    assert len(caplog.records) == 1
    message = caplog.records[0].getMessage()
    assert "\n" not in message
    assert len(message) < 500
