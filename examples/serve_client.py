"""Ask a hardened model over gRPC, with grpcio and no generated code.

    hardening serve model.onnx --policy policy.toml --port 8001
    python examples/serve_client.py 127.0.0.1:8001 model

Fills the model's numeric inputs with a constant and prints each answer. An API key, if the server wants one, is taken
from the environment variable HARDENING_API_KEY; --ca names the certificate of the server's authority, for TLS.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import grpc
import numpy as np
from hardening_grpc.codec import InferRequest, InferResponse, ModelMetadata, ModelRequest, Tensor
from hardening_grpc.service import INFERENCE
from hardening_grpc.tensors import DTYPES


def texts(raw: memoryview) -> list[str]:
    """The elements of a BYTES tensor; each is preceded by its length, four bytes little-endian."""
    found = []
    while raw:
        end = 4 + int.from_bytes(raw[:4], "little")
        found.append(str(raw[4:end], "utf-8"))
        raw = raw[end:]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("address", help="HOST:PORT")
    parser.add_argument("model")
    parser.add_argument("--fill", type=float, default=1.0)
    parser.add_argument("--ca", type=Path)
    options = parser.parse_args()

    key = os.environ.get("HARDENING_API_KEY")
    headers = [("authorization", f"Bearer {key}")] if key else []
    if options.ca:
        channel = grpc.secure_channel(options.address, grpc.ssl_channel_credentials(options.ca.read_bytes()))
    else:
        channel = grpc.insecure_channel(options.address)

    def ask(method: str, message: ModelRequest | InferRequest) -> bytes:
        answer: bytes = channel.unary_unary(f"/{INFERENCE}/{method}")(message.encode(), metadata=headers, timeout=60)
        return answer

    with channel:
        try:
            model = ModelMetadata.decode(ask("ModelMetadata", ModelRequest(name=options.model)))
            question = InferRequest(model_name=options.model, id="example")
            for wanted in model.inputs:
                shape = [n if n > 0 else 1 for n in wanted.shape]
                question.inputs.append(Tensor(name=wanted.name, datatype=wanted.datatype, shape=shape))
                question.raw_input_contents.append(np.full(shape, options.fill, DTYPES[wanted.datatype]).tobytes())
            answer = InferResponse.decode(ask("ModelInfer", question))
        except grpc.RpcError as refused:
            print(f"{refused.code().name}: {refused.details()}", file=sys.stderr)
            return 1
    for tensor, raw in zip(answer.outputs, answer.raw_output_contents, strict=True):
        values = texts(raw) if tensor.datatype == "BYTES" else np.frombuffer(raw, DTYPES[tensor.datatype])
        print(tensor.name, tensor.datatype, np.reshape(values, tuple(tensor.shape)).tolist())
    return 0


if __name__ == "__main__":
    sys.exit(main())
