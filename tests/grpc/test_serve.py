"""The command in a process of its own: what it says, how it ends, what it refuses, and what it does not import."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import hardening_onnx
import numpy as np
import pytest
from hardening_grpc.auth import add_key
from hardening_grpc.codec import InferResponse
from hardening_grpc.control import ask_clients

from hardening.cli import main
from hardening.config import load_policy
from tests.grpc.conftest import Authority
from tests.grpc.models import MLP_POLICY, ZIPMAP_POLICY, arrays, call, mlp, request, write, zipmap

Serve = Callable[..., Any]
EXAMPLE = Path(__file__).parents[2] / "examples" / "serve_client.py"
X = np.random.default_rng(5).normal(size=(3, 8)).astype("f4")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_from_start_to_end(number: signal.Signals, serve: Serve, tmp_path: Path) -> None:
    model, policy = write(tmp_path, mlp(), MLP_POLICY)
    control = tmp_path / "control.sock"
    served = serve(model, "--policy", policy, "--control", control)
    assert served.facts | {"port": 0} == {
        "model": "model",
        "host": "127.0.0.1",
        "port": 0,
        "tls": False,
        "api_keys": False,
    }
    with grpc.insecure_channel(f"127.0.0.1:{served.port}") as channel:
        got = arrays(InferResponse.decode(call(channel, "ModelInfer", request({"x": X}).encode())))
    # The same policy and key in this process: the same noise.
    want = hardening_onnx.wrap(model, load_policy(policy)).run(["p"], {"x": X})[0]
    assert got["p"].tobytes() == want.tobytes()
    assert [(c["client"], c["queries"]) for c in ask_clients(control)] == [("anonymous", 3)]
    served.process.send_signal(number)
    assert served.process.wait(60) == 0
    code, _, err = served.finish()
    assert code == 0
    assert "listening on loopback only, every caller is the account 'anonymous'" in err
    assert "Traceback" not in err
    assert not control.exists()


def test_no_protobuf_in_the_process(serve: Serve, tmp_path: Path) -> None:
    model, policy = write(tmp_path, mlp(), MLP_POLICY)
    report = "import atexit, sys; atexit.register(lambda: print('MODULES', *sys.modules))"
    served = serve(model, "--policy", policy, prelude=report)
    with grpc.insecure_channel(f"127.0.0.1:{served.port}") as channel:
        assert call(channel, "ModelInfer", request({"x": X}).encode())
    code, out, _ = served.finish()
    modules = out.partition("MODULES")[2].split()
    assert code == 0
    assert "grpc" in modules
    assert "hardening_grpc.service" in modules
    assert not [m for m in modules if m == "google" or m.startswith(("google.protobuf", "onnx.", "grpc_tools"))]


def test_mistakes_exit_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, policy = write(tmp_path, mlp(), MLP_POLICY)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        for arguments, problem in [
            (["--port", str(taken.getsockname()[1])], "--port: cannot listen on 127.0.0.1"),
            (["--host", "0.0.0.0"], "auth: missing: without it only a loopback address is served, not '0.0.0.0'"),
            (["--control", str(tmp_path / "no" / "x.sock")], "--control: cannot listen on"),
        ]:
            assert main(["serve", str(model), "--policy", str(policy), *arguments]) == 2
            assert problem in capsys.readouterr().err
    assert main(["serve", str(tmp_path / "absent.onnx"), "--policy", str(policy)]) == 2
    assert "cannot read" in capsys.readouterr().err
    policy.write_text(MLP_POLICY + '[auth]\napi_keys = "file:absent.toml"\n')
    assert main(["serve", str(model), "--policy", str(policy)]) == 2
    assert "auth.api_keys: cannot read" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main(["serve", str(model), "--policy", str(policy), "--port", "70000"])
    assert stop.value.code == 2
    assert "must be a whole number from 0 to 65535" in capsys.readouterr().err
    # What a mistake leaves behind: default signal handlers, and no socket.
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert not list(tmp_path.glob("*.sock"))


def run_example(port: int, *arguments: object, key: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, EXAMPLE, f"localhost:{port}", "model", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"HARDENING_API_KEY": key},
    )


def test_the_example(serve: Serve, authority: Authority, tmp_path: Path) -> None:
    authority.issue("server")
    key = add_key(tmp_path / "keys.toml", "alice")
    sections = '[auth]\napi_keys = "file:keys.toml"\n[tls]\ncertificate = "file:server.pem"\nkey = "file:server.key"\n'
    model, policy = write(tmp_path, mlp(), MLP_POLICY + sections)
    served = serve(model, "--policy", policy, "--host", "0.0.0.0", "--control", tmp_path / "c")
    done = run_example(served.port, "--ca", tmp_path / "ca.pem", "--fill", 0.5, key=key)
    assert done.returncode == 0, done.stderr
    session = hardening_onnx.wrap(model, load_policy(policy))
    p, label = session.run(None, {"x": np.full((1, 8), 0.5, "f4")})
    assert done.stdout == f"p FP32 {p.tolist()}\nlabel INT64 {label.tolist()}\n"
    refused = run_example(served.port, "--ca", tmp_path / "ca.pem")
    assert refused.returncode == 1
    assert refused.stderr == "UNAUTHENTICATED: The request needs one valid API key.\n"
    assert [(c["client"], c["queries"]) for c in ask_clients(tmp_path / "c")] == [("alice", 1)]
    code, _, err = served.finish()
    assert code == 0
    assert "hardening.grpc" in err
    assert "no API keys in the request" in err
    assert key not in err


def test_the_example_prints_labels_that_are_texts(serve: Serve, tmp_path: Path) -> None:
    served = serve(*write(tmp_path, zipmap(True), ZIPMAP_POLICY)[:1], "--policy", tmp_path / "policy.toml")
    done = run_example(served.port)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "label BYTES ['cat']"


def test_two_servers_do_not_share_a_control_socket(
    serve: Serve, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, policy = write(tmp_path, mlp(), MLP_POLICY)
    serve(model, "--policy", policy, "--control", tmp_path / "c")
    assert main(["serve", str(model), "--policy", str(policy), "--port", "0", "--control", str(tmp_path / "c")]) == 2
    assert "is the socket of a running server: name another path, or stop it" in capsys.readouterr().err
    assert ask_clients(tmp_path / "c") == []


def test_without_certificates_nothing_is_served(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tls = '[tls]\ncertificate = "file:server.pem"\nkey = "file:server.key"\n'
    model, policy = write(tmp_path, mlp(), MLP_POLICY + tls)
    assert main(["serve", str(model), "--policy", str(policy), "--port", "0"]) == 2
    assert "tls.certificate: cannot read 'server.pem': No such file" in capsys.readouterr().err
