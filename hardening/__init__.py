"""Harden what a model says: bounded, calibrated, accounted outputs for ONNX inference."""

from hardening.config import KeySource, Output, Policy, load_policy
from hardening.errors import ConfigError, Denied, HardeningError, ReleaseError

__all__ = ["ConfigError", "Denied", "HardeningError", "KeySource", "Output", "Policy", "ReleaseError", "load_policy"]
__version__ = "0.1.0.dev0"
