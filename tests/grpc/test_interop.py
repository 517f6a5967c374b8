"""A stock client, tritonclient, in an environment of its own, against a real server in a process of its own."""

from __future__ import annotations

import json
import subprocess
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hardening_onnx
import numpy as np
import pytest
from hardening_grpc.auth import add_key
from hardening_grpc.service import SENTENCES

import hardening
from hardening.config import load_policy
from tests.grpc.conftest import Authority
from tests.grpc.models import ECHO_POLICY, MLP_POLICY, ZIPMAP_POLICY, echo, mlp, write, zipmap

pytestmark = pytest.mark.interop
Serve = Callable[..., Any]
ENVIRONMENT = Path(__file__).parents[2] / ".cache" / "interop"

#: Runs in the other environment: `steps` from the standard input, one result each to the standard output.
SCRIPT = """
import json, sys
import numpy as np
import tritonclient.grpc as t

job = json.load(sys.stdin)
client = t.InferenceServerClient(job["url"], **job.get("options", {}))
headers = job.get("headers")

def infer(step):
    inputs = []
    for name, datatype, values in step["inputs"]:
        array = np.array(values, object if datatype == "BYTES" else t.triton_to_np_dtype(datatype))
        tensor = t.InferInput(name, array.shape, datatype)
        tensor.set_data_from_numpy(array)
        inputs.append(tensor)
    outputs = [t.InferRequestedOutput(n, **o) for n, o in step.get("outputs", {}).items()] or None
    result = client.infer("model", inputs, outputs=outputs, headers=headers, **step.get("options", {}))
    message = result.get_response()
    answer = {"id": message.id, "version": message.model_version, "outputs": {}}
    for o in message.outputs:
        values = result.as_numpy(o.name)
        values = [v.decode() for v in values.ravel()] if o.datatype == "BYTES" else values.tolist()
        answer["outputs"][o.name] = [o.datatype, list(o.shape), values]
        answer["classes"] = o.parameters["classes"].string_param or answer.get("classes", "")
    return answer

steps = {
    "live": lambda s: client.is_server_live(),
    "ready": lambda s: client.is_server_ready(),
    "model_ready": lambda s: client.is_model_ready("model", headers=headers),
    "other_ready": lambda s: client.is_model_ready("other", headers=headers),
    "server": lambda s: client.get_server_metadata(headers=headers, as_json=True),
    "model": lambda s: client.get_model_metadata("model", headers=headers, as_json=True),
    "config": lambda s: client.get_model_config("model", headers=headers),
    "infer": infer,
}
results = []
for step in job["steps"]:
    try:
        results.append(steps[step["do"]](step))
    except t.InferenceServerException as problem:
        results.append([problem.status(), problem.message()])
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def stock() -> Path:
    """The Python of an environment with tritonclient; made once, and used again by later runs."""
    python = ENVIRONMENT / "bin" / "python"
    if not (ENVIRONMENT / "ready").exists():
        venv.create(ENVIRONMENT, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "tritonclient[grpc]"], check=True)
        (ENVIRONMENT / "ready").touch()
    return python


def talk(python: Path, port: int, *steps: dict[str, Any], **job: Any) -> list[Any]:
    job |= {"url": f"localhost:{port}", "steps": list(steps)}
    # -I: neither this project nor the user's packages; only what is installed there.
    done = subprocess.run(
        [python, "-I", "-c", SCRIPT], input=json.dumps(job), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    results: list[Any] = json.loads(done.stdout)
    return results


X = np.random.default_rng(6).normal(size=(3, 8)).astype("f4")
ASK = {"do": "infer", "inputs": [["x", "FP32", X.tolist()]]}


def test_metadata_and_inference(stock: Path, serve: Serve, tmp_path: Path) -> None:
    model, policy = write(tmp_path, mlp(), MLP_POLICY)
    served = serve(model, "--policy", policy)
    results = talk(
        stock,
        served.port,
        *({"do": d} for d in ("live", "ready", "model_ready", "other_ready", "server", "model", "config")),
        ASK | {"options": {"request_id": "q1", "priority": 1, "timeout": 1000}},
        ASK | {"outputs": {"label": {}}},
        ASK | {"outputs": {"p": {"class_count": 2}}},
        ASK | {"outputs": {"logits": {}}},
        ASK | {"options": {"sequence_id": 7}},
    )
    assert results[:3] == [True, True, True]
    assert results[3] == ["StatusCode.NOT_FOUND", SENTENCES["NOT_FOUND"]]
    assert results[4] == {"name": "hardening", "version": hardening.__version__}
    assert results[5] == {
        "name": "model",
        "versions": ["1"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": ["-1", "8"]}],
        "outputs": [
            {"name": "p", "datatype": "FP32", "shape": ["-1", "4"]},
            {"name": "label", "datatype": "INT64", "shape": ["-1"]},
        ],
    }
    assert results[6][0] == "StatusCode.UNIMPLEMENTED"
    p, label = hardening_onnx.wrap(model, load_policy(policy)).run(None, {"x": X})
    assert results[7]["id"] == "q1"
    assert results[7]["version"] == "1"
    assert results[7]["outputs"] == {"p": ["FP32", [3, 4], p.tolist()], "label": ["INT64", [3], label.tolist()]}
    assert results[8]["outputs"] == {"label": ["INT64", [3], label.tolist()]}
    for refused in results[9:]:
        assert refused == ["StatusCode.INVALID_ARGUMENT", SENTENCES["INVALID_ARGUMENT"]]


@pytest.mark.parametrize(
    ("datatype", "values"),
    [
        ("BYTES", [["naïve", ""], ["b", "c" * 300]]),
        ("FP16", [[0.5, -2.0]]),
        ("BOOL", [[True, False]]),
        ("INT8", [[-1, 7]]),
    ],
)
def test_datatypes(datatype: str, values: list[Any], stock: Path, serve: Serve, tmp_path: Path) -> None:
    model, policy = write(tmp_path, echo(datatype), ECHO_POLICY)
    served = serve(model, "--policy", policy)
    (result,) = talk(stock, served.port, {"do": "infer", "inputs": [["x", datatype, values]]})
    flat = [v for row in values for v in row] if datatype == "BYTES" else values
    assert result["outputs"]["y"] == [datatype, [len(values), 2], flat]


def test_zipmap(stock: Path, serve: Serve, tmp_path: Path) -> None:
    model, policy = write(tmp_path, zipmap(strings=True), ZIPMAP_POLICY)
    served = serve(model, "--policy", policy)
    (result,) = talk(stock, served.port, {"do": "infer", "inputs": [["x", "FP32", [[0, 9, 0], [0, 0, 9]]]]})
    assert result["outputs"]["probabilities"][:2] == ["FP32", [2, 3]]
    assert result["outputs"]["label"] == ["BYTES", [2], ["dog", "eel"]]
    assert json.loads(result["classes"]) == ["cat", "dog", "eel"]


def test_keys_over_tls(stock: Path, serve: Serve, authority: Authority, tmp_path: Path) -> None:
    authority.issue("server")
    authority.issue("client")
    key = add_key(tmp_path / "keys.toml", "alice")
    model, policy = write(
        tmp_path,
        mlp(),
        MLP_POLICY
        + '[auth]\napi_keys = "file:keys.toml"\n[tls]\ncertificate = "file:server.pem"\nkey = "file:server.key"\n'
        + 'client_ca = "file:ca.pem"\n',
    )
    served = serve(model, "--policy", policy, "--host", "0.0.0.0")
    tls = {"ssl": True, "root_certificates": str(tmp_path / "ca.pem")}
    mutual = tls | {"private_key": str(tmp_path / "client.key"), "certificate_chain": str(tmp_path / "client.pem")}
    p, _ = hardening_onnx.wrap(model, load_policy(policy)).run(None, {"x": X})
    for headers in ({"x-api-key": key}, {"authorization": f"Bearer {key}"}):
        (result,) = talk(stock, served.port, ASK, options=mutual, headers=headers)
        assert result["outputs"]["p"][2] == p.tolist()
    for headers in ({}, {"x-api-key": "hrdn_wrong"}):
        (result,) = talk(stock, served.port, ASK, options=mutual, headers=headers)
        assert result == ["StatusCode.UNAUTHENTICATED", SENTENCES["UNAUTHENTICATED"]]
    (result,) = talk(stock, served.port, ASK, options=tls, headers={"x-api-key": key})
    assert result[0] == "StatusCode.UNAVAILABLE"  # the transport's own: no certificate, no connection


#: Until a budget can be written in a policy, the account is closed from within the server's process.
CLOSED = """
from hardening.errors import Denied
from hardening_onnx import HardenedSession
def run(self, names, feed, client=None):
    raise Denied(client or "anonymous", "the budget is spent", {code!r})
HardenedSession.run = run
"""


@pytest.mark.parametrize(("code", "status"), [("exhausted", "RESOURCE_EXHAUSTED"), ("forbidden", "PERMISSION_DENIED")])
def test_a_denial(code: str, status: str, stock: Path, serve: Serve, tmp_path: Path) -> None:
    model, policy = write(tmp_path, mlp(), MLP_POLICY)
    served = serve(model, "--policy", policy, prelude=CLOSED.format(code=code))
    (result,) = talk(stock, served.port, ASK)
    assert result == [f"StatusCode.{status}", hardening.Denied.SENTENCE]
    assert "the budget is spent" in served.finish()[2]
