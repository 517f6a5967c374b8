"""The gRPC server: grpcio's synchronous transport around a `Service`. It moves bytes; it knows no message."""

from __future__ import annotations

import ipaddress
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from hardening_onnx import HardenedSession

from hardening.config import Policy
from hardening.errors import ConfigError
from hardening_grpc.auth import load_api_keys
from hardening_grpc.service import Refusal, Service
from hardening_grpc.tls import server_credentials

MAX_MESSAGE = 16 * 2**20
MAX_STREAMS = 64
#: Calls at once over all connections, waiting ones included; bounds what waiting messages take.
MAX_CALLS = 256
THREADS = 4
#: Seconds in which a call's message has to come.
PATIENCE = 20.0
_IDENTITY_ONLY = 1 << grpc.Compression.NoCompression.value


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_exposure(policy: Policy, host: str) -> None:
    """Raises ConfigError if others could reach the server without a key, or read keys on the way."""
    if is_loopback(host):
        return
    if policy.auth is None:
        raise ConfigError(
            "auth", f"missing: without it only a loopback address is served, not {host!r}; add [auth] with api_keys"
        )
    if policy.tls is None and not policy.auth.allow_plaintext:
        raise ConfigError(
            "tls",
            f"missing: API keys would travel unencrypted on {host!r}; add [tls], or auth.allow_plaintext = true "
            "where something in front of the server ends TLS",
        )


class _Patience:
    """Ends calls whose message does not come. A worker waits for each, and there are few workers."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._since: dict[Any, float] = {}
        self._ended = threading.Event()
        threading.Thread(target=self._look, name="hardening-patience", daemon=True).start()

    def read(self, requests: Iterator[bytes], context: Any) -> bytes:
        """The one message of a call. Raises Refusal if there is none."""
        self._since[context] = time.monotonic()
        try:
            return next(requests)
        except (StopIteration, grpc.RpcError):
            raise Refusal("INVALID_ARGUMENT", "no message came, or not in time") from None
        finally:
            del self._since[context]

    def _look(self) -> None:
        while not self._ended.wait(self._seconds / 4):
            latest = time.monotonic() - self._seconds
            for context, since in list(self._since.items()):
                if since < latest:
                    context.cancel()

    def end(self) -> None:
        self._ended.set()


class _Methods(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Hands raw bytes to the service; a method that it does not have is UNIMPLEMENTED.

    Calls are taken as streams of one message, so that identity is settled before a message is waited for.
    """

    def __init__(self, service: Service, patience: _Patience) -> None:
        self._service = service
        self._patience = patience

    def service(self, details: Any) -> Any:
        if details.method not in self._service.methods:
            return None
        return grpc.stream_unary_rpc_method_handler(self._behaviour(details.method))

    def _behaviour(self, method: str) -> Callable[[Iterator[bytes], Any], bytes]:
        def behave(requests: Iterator[bytes], context: Any) -> bytes:
            def read() -> bytes:
                return self._patience.read(requests, context)

            left = context.time_remaining()
            try:
                if not context.is_active() or (left is not None and left <= 0):
                    raise Refusal("DEADLINE_EXCEEDED", "the deadline passed while the call waited")
                return self._service.answer(method, read, context.invocation_metadata(), context.peer())
            except Refusal as problem:
                told = problem
            context.abort(grpc.StatusCode[told.code], str(told))
            raise AssertionError("abort raises")

        return behave


class Server:
    """Serves one hardened model; listens from construction on. Also a context manager, which stops it.

    Args:
        name: what clients call the model.
        session: what `hardening_onnx.wrap` gave for `policy`.
        policy: its sections ``auth`` and ``tls`` say who may ask and how.
        host: address to listen on.
        port: TCP port, or 0 for one that is free.
        max_message: largest request, in bytes.
        max_streams: most calls at once on one connection.
        threads: worker threads.
        patience: seconds in which a call's message has to come, so that callers who send none do not hold the workers.

    Attributes:
        port: the TCP port.
        service: what answers.

    Raises ConfigError for unusable keys or certificates, an address that needs them, or a port that is not free;
    ModelError if the protocol cannot carry the model's inputs or outputs.
    """

    def __init__(
        self,
        name: str,
        session: HardenedSession,
        policy: Policy,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        max_message: int = MAX_MESSAGE,
        max_streams: int = MAX_STREAMS,
        threads: int = THREADS,
        patience: float = PATIENCE,
    ) -> None:
        check_exposure(policy, host)
        keys = load_api_keys(policy.auth, policy.root, policy.clients.credentials) if policy.auth else None
        credentials = server_credentials(policy.tls, policy.root) if policy.tls else None
        self.service = Service(name, session, keys)
        options = [
            ("grpc.so_reuseport", 0),  # with it, a second server on the same port would silently take half the calls
            ("grpc.max_receive_message_length", max_message),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_concurrent_streams", max_streams),
            # The limit on a message's size is checked before it is decompressed.
            ("grpc.compression_enabled_algorithms_bitset", _IDENTITY_ONLY),
        ]
        self._threads = ThreadPoolExecutor(threads, "hardening-grpc")
        self._patience = _Patience(patience)
        methods = _Methods(self.service, self._patience)
        self._server = grpc.server(self._threads, (methods,), options=options, maximum_concurrent_rpcs=MAX_CALLS)
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            if credentials is None:
                self.port: int = self._server.add_insecure_port(address)
            else:
                self.port = self._server.add_secure_port(address, credentials)
        except RuntimeError:
            self.port = 0
        if not self.port:
            self._patience.end()
            raise ConfigError("--port", f"cannot listen on {address}: the port is in use, or the address is not ours")
        self._server.start()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self, grace: float = 10.0) -> None:
        """Say that nothing is served any more, take no new calls, give running ones `grace` seconds to finish."""
        self.service.serving = False
        self._server.stop(grace).wait()
        self._patience.end()
        self._threads.shutdown(wait=False)
