"""Commands that need ONNX Runtime, registered under the entry-point group ``hardening.commands``."""
