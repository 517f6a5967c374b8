"""A hardened model behind gRPC: the Open Inference Protocol, with no generated stubs and no protobuf in the process."""

from hardening_grpc.server import Server

__all__ = ["Server"]
