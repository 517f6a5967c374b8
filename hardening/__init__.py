"""Harden what a model says: bounded, calibrated, accounted outputs for ONNX inference."""

__version__ = "0.1.0.dev0"
