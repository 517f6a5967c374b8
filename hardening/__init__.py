"""Harden what a model says: bounded, calibrated, accounted outputs for ONNX inference."""

from hardening.config import KeySource, Output, Policy, load_policy
from hardening.errors import ConfigError, Denied, HardeningError, InputError, ModelError, ReleaseError
from hardening.guard import Guard, as_client
from hardening.types import Identity

__all__ = [
    "ConfigError",
    "Denied",
    "Guard",
    "HardeningError",
    "Identity",
    "InputError",
    "KeySource",
    "ModelError",
    "Output",
    "Policy",
    "ReleaseError",
    "as_client",
    "load_policy",
]
__version__ = "0.1.0.dev0"
