"""Commands of the `hardening` program that need ONNX Runtime."""
