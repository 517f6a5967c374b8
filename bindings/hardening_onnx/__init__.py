"""A drop-in, allow-list InferenceSession: `wrap` a model or an existing session and call `run` as before."""

import os

# A security library must not phone home; ONNX Runtime reads this when it is imported.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

from hardening_onnx.session import HardenedSession, wrap

__all__ = ["HardenedSession", "wrap"]
