"""The server over a real transport: status codes, limits, deadlines, an orderly end, and the session's own answers."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import hardening_onnx
import numpy as np
import pytest
from grpc import StatusCode
from hardening_grpc import Server, codec
from hardening_grpc.auth import add_key
from hardening_grpc.codec import InferResponse
from hardening_grpc.service import HEALTH, INFERENCE, SENTENCES

from hardening.config import Policy, load_policy
from hardening.errors import ConfigError, Denied
from tests.grpc.models import MLP_POLICY, arrays, call, mlp, request, write

X = np.random.default_rng(3).normal(size=(2, 8)).astype("f4")


def session_and_policy(folder: Path, sections: str = "") -> tuple[hardening_onnx.HardenedSession, Policy]:
    model, path = write(folder, mlp(), MLP_POLICY + sections)
    policy = load_policy(path)
    return hardening_onnx.wrap(model, policy), policy


@pytest.fixture
def parts(tmp_path: Path) -> tuple[hardening_onnx.HardenedSession, Policy]:
    return session_and_policy(tmp_path)


@pytest.fixture
def server(parts: tuple[hardening_onnx.HardenedSession, Policy]) -> Iterator[Server]:
    with Server("model", *parts) as server:
        yield server


@pytest.fixture
def channel(server: Server) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield channel


def failed(channel: grpc.Channel, method: str, data: bytes, **options: Any) -> tuple[StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call(channel, method, data, **options)
    return caught.value.code(), caught.value.details()


def told(code: StatusCode) -> tuple[StatusCode, str]:
    return code, SENTENCES[code.name]


def test_codes_and_sentences(
    channel: grpc.Channel, parts: tuple[hardening_onnx.HardenedSession, Policy], monkeypatch: pytest.MonkeyPatch
) -> None:
    good = request({"x": X}).encode()
    assert failed(channel, "ModelInfer", b"\xff") == told(StatusCode.INVALID_ARGUMENT)
    assert failed(channel, "ModelInfer", request({"x": X}, ["logits"]).encode()) == told(StatusCode.INVALID_ARGUMENT)
    overwritten = request({"x": X, "b2": np.zeros(4, "f4")}).encode()
    assert failed(channel, "ModelInfer", overwritten) == told(StatusCode.INVALID_ARGUMENT)
    other = request({"x": X}, model_name="other").encode()
    assert failed(channel, "ModelInfer", other) == told(StatusCode.NOT_FOUND)
    for problem, code in [
        (Denied("a", "spent"), StatusCode.RESOURCE_EXHAUSTED),
        (Denied("a", "banned", "forbidden"), StatusCode.PERMISSION_DENIED),
        (RuntimeError("0.73"), StatusCode.INTERNAL),
        (SystemExit(3), StatusCode.INTERNAL),
    ]:

        def fail(*_: Any, problem: BaseException = problem, **__: Any) -> Any:
            raise problem

        with monkeypatch.context() as patch:
            patch.setattr(parts[0], "run", fail)
            assert failed(channel, "ModelInfer", good) == told(code)
    assert len(InferResponse.decode(call(channel, "ModelInfer", good)).outputs) == 2


@pytest.mark.parametrize(
    "method",
    [
        "ModelConfig",
        "ModelStreamInfer",
        "RepositoryModelLoad",
        "SystemSharedMemoryRegister",
        "TraceSetting",
        f"/{HEALTH}/Watch",
        "/inference.model_repository.ModelRepositoryService/ModelRepositoryIndex",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/x",
    ],
)
def test_everything_else_is_unimplemented(method: str, channel: grpc.Channel) -> None:
    assert failed(channel, method, b"")[0] == StatusCode.UNIMPLEMENTED


def test_api_keys(tmp_path: Path) -> None:
    key = add_key(tmp_path / "keys.toml", "alice")
    session, policy = session_and_policy(tmp_path, '[auth]\napi_keys = "file:keys.toml"\n')
    asks = {
        "ModelInfer": request({"x": X}).encode(),
        "ModelReady": codec.ModelRequest(name="model").encode(),
        "ModelMetadata": codec.ModelRequest(name="model").encode(),
        "ServerMetadata": b"",
    }
    with Server("model", session, policy) as server, grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        for method, data in asks.items():
            assert failed(channel, method, data) == told(StatusCode.UNAUTHENTICATED)
            assert failed(channel, method, data, key="wrong") == told(StatusCode.UNAUTHENTICATED)
            assert call(channel, method, data, key)
        for method in ("ServerLive", "ServerReady", f"/{HEALTH}/Check"):
            assert call(channel, method, b"") == b"\x08\x01"
    assert {n: s.queries for n, s in session.guard.clients().items()} == {"alice": 2}


def test_callers_who_send_nothing_do_not_hold_the_workers(tmp_path: Path) -> None:
    key = add_key(tmp_path / "keys.toml", "alice")
    session, policy = session_and_policy(tmp_path, '[auth]\napi_keys = "file:keys.toml"\n')
    never = threading.Event()

    def silent(channel: grpc.Channel, method: str, *metadata: tuple[str, str]) -> grpc.Future:
        def nothing() -> Iterator[bytes]:
            never.wait()
            yield from ()

        return channel.stream_unary(method).future(nothing(), metadata=metadata, timeout=60)

    infer, check = f"/{INFERENCE}/ModelInfer", f"/{HEALTH}/Check"
    try:
        with (
            Server("model", session, policy, threads=2, patience=1.0) as server,
            grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel,
        ):
            # Strangers are refused before anything is read of them, and a probe without a message is answered.
            assert silent(channel, infer).exception().code() == StatusCode.UNAUTHENTICATED
            assert silent(channel, f"/{INFERENCE}/ServerLive").result() == b"\x08\x01"
            held = [silent(channel, infer, ("x-api-key", key)), *(silent(channel, check) for _ in range(3))]
            assert call(channel, "ModelInfer", request({"x": X}).encode(), key)
            assert {h.exception().code() for h in held} == {StatusCode.CANCELLED}
    finally:
        never.set()


def test_no_message_at_all(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        channel.stream_unary(f"/{INFERENCE}/ModelInfer")(iter(()), timeout=60)
    assert (caught.value.code(), caught.value.details()) == told(StatusCode.INVALID_ARGUMENT)


def test_large_messages(parts: tuple[hardening_onnx.HardenedSession, Policy]) -> None:
    with Server("model", *parts, max_message=4096) as server:
        with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            assert call(channel, "ModelInfer", request({"x": np.zeros((100, 8), "f4")}).encode())
            large = request({"x": np.zeros((200, 8), "f4")}).encode()
            assert failed(channel, "ModelInfer", large)[0] == StatusCode.RESOURCE_EXHAUSTED
        # A small message that would be large once decompressed does not get that far.
        with grpc.insecure_channel(f"127.0.0.1:{server.port}", compression=grpc.Compression.Gzip) as channel:
            assert failed(channel, "ModelInfer", large)[0] == StatusCode.UNIMPLEMENTED
    assert parts[0].guard.standing("anonymous").queries == 100


def test_a_port_in_use_is_an_error(parts: tuple[hardening_onnx.HardenedSession, Policy]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigError, match="cannot listen on 127"):
            Server("model", *parts, port=taken.getsockname()[1])
    with Server("model", *parts) as first, pytest.raises(ConfigError, match="the port is in use"):
        Server("model", *parts, port=first.port)


class Gate:
    """A session's run that waits to be let through."""

    def __init__(self, session: hardening_onnx.HardenedSession, patch: pytest.MonkeyPatch) -> None:
        self.entered, self.open, self._run = threading.Event(), threading.Event(), session.run
        patch.setattr(session, "run", self.run)

    def run(self, *arguments: Any, **options: Any) -> Any:
        self.entered.set()
        assert self.open.wait(60)
        return self._run(*arguments, **options)


def test_a_call_whose_deadline_passed_while_it_waited_is_not_run(
    parts: tuple[hardening_onnx.HardenedSession, Policy], monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(parts[0], monkeypatch)
    data = request({"x": X}).encode()
    with (
        Server("model", *parts, threads=1) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel,
        ThreadPoolExecutor(1) as pool,
    ):
        first = pool.submit(call, channel, "ModelInfer", data)
        assert gate.entered.wait(60)
        assert failed(channel, "ModelInfer", data, timeout=0.2)[0] == StatusCode.DEADLINE_EXCEEDED
        # Answered without a worker, after what came before it on the connection: the end of the waiting call.
        assert failed(channel, "Nothing", b"")[0] == StatusCode.UNIMPLEMENTED
        gate.open.set()
        assert first.result()
        assert call(channel, "ServerLive", b"")  # the one thread is past the waiting call by now
    assert parts[0].guard.standing("anonymous").queries == len(X)


def test_calls_at_once_on_one_connection(
    parts: tuple[hardening_onnx.HardenedSession, Policy], monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(parts[0], monkeypatch)
    data = request({"x": X}).encode()
    with (
        Server("model", *parts, max_streams=1) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel,
        grpc.insecure_channel(f"127.0.0.1:{server.port}", [("grpc.use_local_subchannel_pool", 1)]) as other,
        ThreadPoolExecutor(1) as pool,
    ):
        running = pool.submit(call, channel, "ModelInfer", data)
        assert gate.entered.wait(60)
        assert failed(channel, "ServerLive", b"", timeout=0.2)[0] == StatusCode.DEADLINE_EXCEEDED
        assert call(other, "ServerLive", b"")
        gate.open.set()
        assert running.result()
        assert call(channel, "ServerLive", b"")


def test_the_end_does_not_wait_longer_than_its_grace(
    parts: tuple[hardening_onnx.HardenedSession, Policy], monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(parts[0], monkeypatch)
    server = Server("model", *parts)
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel, ThreadPoolExecutor(1) as pool:
        running = pool.submit(failed, channel, "ModelInfer", request({"x": X}).encode())
        assert gate.entered.wait(60)
        server.stop(0.0)
        assert running.result(60)[0] in (StatusCode.CANCELLED, StatusCode.UNAVAILABLE)
        gate.open.set()


def test_the_end_lets_running_calls_finish(
    parts: tuple[hardening_onnx.HardenedSession, Policy], monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(parts[0], monkeypatch)
    server = Server("model", *parts)
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel, ThreadPoolExecutor(2) as pool:
        running = pool.submit(call, channel, "ModelInfer", request({"x": X}).encode())
        assert gate.entered.wait(60)
        ending, serving, stop = threading.Event(), [], server._server.stop

        def note_and_stop(grace: float) -> Any:
            serving.append(server.service.serving)
            stopped = stop(grace)
            ending.set()
            return stopped

        monkeypatch.setattr(server._server, "stop", note_and_stop)
        end = pool.submit(server.stop, 60.0)
        assert ending.wait(60)
        assert serving == [False]  # said before no new calls are taken
        gate.open.set()
        assert arrays(InferResponse.decode(running.result()))["p"].shape == (2, 4)
        end.result(60)
        assert failed(channel, "ServerLive", b"")[0] == StatusCode.UNAVAILABLE


def test_many_clients_at_once_get_the_sessions_very_answers(tmp_path: Path) -> None:
    clients = [f"client {i}" for i in range(6)]
    keys = {name: add_key(tmp_path / "keys.toml", name) for name in clients}
    session, policy = session_and_policy(tmp_path, '[auth]\napi_keys = "file:keys.toml"\n')
    reference, _ = session_and_policy(tmp_path)
    rng = np.random.default_rng(4)
    batches = [rng.normal(size=(n, 8)).astype("f4") for n in (1, 1, 2, 3, 7, 32)]
    want = [dict(zip(["p", "label"], reference.run(None, {"x": b}), strict=True)) for b in batches]
    rounds = 8

    def ask(name: str) -> int:
        wrong = 0
        order = np.random.default_rng(clients.index(name))
        with grpc.insecure_channel(f"127.0.0.1:{server.port}", [("grpc.use_local_subchannel_pool", 1)]) as channel:
            for _ in range(rounds):
                for i in order.permutation(len(batches)):
                    data = request({"x": batches[i]}, id=f"{name} {i}").encode()
                    response = InferResponse.decode(call(channel, "ModelInfer", data, keys[name]))
                    got = arrays(response)
                    same = all(got[k].tobytes() == v.tobytes() for k, v in want[i].items())
                    wrong += not same or response.id != f"{name} {i}"
        return wrong

    with Server("model", session, policy) as server, ThreadPoolExecutor(12) as pool:
        assert list(pool.map(ask, clients * 2)) == [0] * 12
    rows = 2 * rounds * sum(map(len, batches))
    assert {n: s.queries for n, s in session.guard.clients().items()} == dict.fromkeys(clients, rows)
