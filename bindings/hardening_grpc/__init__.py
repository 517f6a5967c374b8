"""A hardened model behind gRPC: the Open Inference Protocol, with no generated stubs and no protobuf in the process."""
